//! Memory of the graph: whole pages, anonymous or of a file, which a [`Buffer`] sees as elements of one type.
//!
//! The only module of the graph with `unsafe`. Three facts make it sound: a page map never moves and lives as long as the
//! last buffer or view of it; two buffers never share bytes ([`Buffer::mapped`] is called by `file` for disjoint
//! sections alone); and a map of a file is private (copy on write), so what is written stays in this process.
#![allow(unsafe_code)]

use std::fs::File;
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::{MmapMut, MmapOptions, MmapRaw};

/// From this size on, that of one large page, they are asked for: rows are read in no order, and page tables cost as much
/// as the rows.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;

/// Pages, zeroed or of a file.
pub struct Memory {
    map: MmapRaw,
}

impl Memory {
    fn anonymous(bytes: usize) -> Result<Memory, String> {
        let refused = |error| format!("no memory for {bytes} bytes of the graph: {error}");
        let map = MmapOptions::new().len(bytes.max(1)).map_anon().map_err(refused)?;
        #[cfg(target_os = "linux")]
        if bytes >= LARGE {
            // Only a wish: where it is refused the pages are small.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Memory { map: map.into() })
    }

    /// The whole file, private to this process.
    pub fn of_file(file: &File) -> Result<Memory, String> {
        // SAFETY: what another process writes into the file may show up in pages not yet written by this one, as values
        // of numeric types without invalid patterns; `save` never writes into an existing file.
        let map: MmapMut = unsafe { MmapOptions::new().map_copy(file) }.map_err(|error| error.to_string())?;
        Ok(Memory { map: map.into() })
    }

    /// The whole file as it is now, all pages at once, to be looked through and let go.
    pub fn to_read(file: &File) -> Result<impl std::ops::Deref<Target = [u8]>, String> {
        // SAFETY: as above; it is never written.
        unsafe { MmapOptions::new().populate().map(file) }.map_err(|error| error.to_string())
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the map is that long and lives as long as `self`; it is read before any buffer of it is written.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr(), self.map.len()) }
    }
}

/// A growing array of numbers in memory that does not move while a view of it exists.
pub struct Buffer<T> {
    memory: Arc<Memory>,
    offset: usize,
    len: usize,
    capacity: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Result<Self, String> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| format!("no memory for {len} elements"))?;
        Ok(Buffer { memory: Arc::new(Memory::anonymous(bytes)?), offset: 0, len, capacity: len, kind: PhantomData })
    }

    pub fn of(values: &[T]) -> Result<Self, String> {
        let mut buffer = Self::zeros(values.len())?;
        buffer.copy_from_slice(values);
        Ok(buffer)
    }

    /// `len` elements of `memory` from byte `offset` on, which nobody else may use.
    pub(super) fn mapped(memory: Arc<Memory>, offset: usize, len: usize) -> Result<Self, String> {
        let end = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(offset));
        if end.is_none_or(|end| end > memory.map.len()) || !offset.is_multiple_of(align_of::<T>()) {
            return Err(format!("{len} elements at byte {offset} are not within the file"));
        }
        Ok(Buffer { memory, offset, len, capacity: len, kind: PhantomData })
    }

    fn start(&self) -> *mut T {
        self.memory.map.as_mut_ptr().wrapping_add(self.offset).cast()
    }

    /// Bytes that are reserved, whether used or not.
    pub fn bytes(&self) -> usize {
        self.capacity * size_of::<T>()
    }

    /// Make it `len` long; new elements are `value`. Room grows by half at least, into memory of its own.
    pub fn resize(&mut self, len: usize, value: T) -> Result<(), String> {
        let old = self.len;
        if len > self.capacity {
            let mut larger = Self::zeros(len.max(self.capacity + self.capacity / 2))?;
            larger[..old].copy_from_slice(self);
            *self = larger;
        }
        self.len = len;
        if len > old {
            self[old..].fill(value);
        }
        Ok(())
    }
}

impl<T: Pod> std::ops::Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `capacity` elements from `start` on are within the map, aligned, and of a type that every pattern of
        // bits is a value of.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl<T: Pod> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the map is writable, and no other buffer has these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

#[cfg(feature = "extension-module")]
mod view {
    use super::{Arc, Buffer, Memory, Pod};
    use numpy::{Element, PyArray1, PyArrayMethods};
    use pyo3::prelude::*;

    /// Keeps the pages of a view alive.
    #[pyclass(frozen)]
    struct Pages {
        _memory: Arc<Memory>,
    }

    /// The numbers as a read-only NumPy array, without a copy. It shows later changes until the buffer grows.
    pub fn view<'py, T: Pod, N: Pod + Element>(
        py: Python<'py>,
        buffer: &Buffer<T>,
    ) -> PyResult<Bound<'py, PyArray1<N>>> {
        let owner = Bound::new(py, Pages { _memory: buffer.memory.clone() })?.into_any();
        let elements = numpy::ndarray::ArrayView1::from(bytemuck::cast_slice::<T, N>(buffer));
        // SAFETY: the owner keeps the pages, which do not move; the array cannot be written through.
        let array = unsafe { PyArray1::borrow_from_array(&elements, owner) };
        array.try_readwrite()?.make_nonwriteable();
        Ok(array)
    }
}
#[cfg(feature = "extension-module")]
pub use view::view;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_keeps_what_it_had() {
        let mut x = Buffer::<u32>::of(&[1, 2, 3]).unwrap();
        x.resize(5, 9).unwrap();
        assert_eq!(&x[..], [1, 2, 3, 9, 9]);
        x.resize(2, 0).unwrap();
        x.resize(4, 7).unwrap();
        assert_eq!(&x[..], [1, 2, 7, 7]);
        assert!(Buffer::<u64>::zeros(usize::MAX).is_err());
        assert_eq!(Buffer::<u64>::zeros(0).unwrap().len(), 0);
    }

    #[test]
    fn what_lies_outside_of_the_pages_is_refused() {
        let memory = Arc::new(Memory::anonymous(64).unwrap());
        assert!(Buffer::<u64>::mapped(memory.clone(), 8, 7).is_ok());
        assert!(Buffer::<u64>::mapped(memory.clone(), 8, 1 << 20).is_err_and(|e| e.contains("within")));
        assert!(Buffer::<u64>::mapped(memory.clone(), 4, 1).is_err());
        assert!(Buffer::<u64>::mapped(memory, usize::MAX - 7, usize::MAX).is_err());
    }
}
