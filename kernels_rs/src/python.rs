//! Python's view: arrays in, arrays out. Whatever does not fit is a `ValueError` (or `TypeError` for a wrong dtype).

use numpy::{
    IntoPyArray, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3, PyReadonlyArray4,
    PyReadwriteArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::fatigue::problem::{Inputs, Kinetics, Release, Rule, Shape, KINETICS};
use crate::fatigue::run::{self, Cotangents, Gradients, Outputs};
use crate::isa::Level;
use crate::peak;

mod fast_weights;
mod graph;
mod lif;
mod oscillate;
mod scan;

type Array<'py, const N: usize> = Bound<'py, numpy::PyArray<f32, numpy::ndarray::Dim<[usize; N]>>>;
type Writable<'py, const N: usize> = PyReadwriteArray<'py, f32, numpy::ndarray::Dim<[usize; N]>>;

fn invalid(message: impl Into<String>) -> PyErr {
    PyValueError::new_err(message.into())
}

macro_rules! slice {
    ($array:expr, $name:literal) => {
        $array.as_slice().map_err(|_| $crate::python::invalid(concat!($name, " must be contiguous in row-major order")))
    };
}
use slice;

/// The array to be written into; one that is read-only, or also an input, is a `ValueError`.
fn writable<'py, const N: usize>(array: &Array<'py, N>, name: &str) -> PyResult<Writable<'py, N>>
where
    numpy::ndarray::Dim<[usize; N]>: numpy::ndarray::Dimension,
{
    array.try_readwrite().map_err(|error| invalid(format!("{name} cannot be written: {error}")))
}

macro_rules! slice_mut {
    ($array:expr, $name:literal) => {
        $array
            .as_slice_mut()
            .map_err(|_| $crate::python::invalid(concat!($name, " must be contiguous in row-major order")))
    };
}
use slice_mut;

/// A number of things. What is negative or too large is a `ValueError`, not Python's `OverflowError`.
#[derive(Clone, Copy)]
struct Count(usize);

impl<'py> FromPyObject<'_, 'py> for Count {
    type Error = PyErr;
    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Count> {
        match value.extract::<usize>() {
            Ok(count) => Ok(Count(count)),
            Err(error) if error.is_instance_of::<PyTypeError>(value.py()) => Err(error),
            Err(_) => Err(invalid(format!("{} must be from 0 to {}", value.str()?, usize::MAX))),
        }
    }
}

/// The arguments that both passes share.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Call<'py> {
    q: PyReadonlyArray4<'py, f32>,
    k: PyReadonlyArray4<'py, f32>,
    v: PyReadonlyArray4<'py, f32>,
    kinetics: PyReadonlyArray2<'py, f32>,
    calcium: PyReadonlyArray3<'py, f32>,
    pool: PyReadonlyArray3<'py, f32>,
    rule: String,
    release: String,
    segments_q: Option<PyReadonlyArray2<'py, i64>>,
    segments_k: Option<PyReadonlyArray2<'py, i64>>,
    window: Option<Count>,
    /// `calcium` and `pool` are those of the keys before the first query alone, or of the last of them; else of all keys.
    old_state: bool,
}

impl Call<'_> {
    fn inputs(&self) -> PyResult<Inputs<'_>> {
        let (q, k) = (self.q.shape(), self.k.shape());
        let shape = Shape { batch: q[0], heads: q[1], kv_heads: k[1], tq: q[2], tk: k[2], dim: q[3] };
        shape.check().map_err(invalid)?;
        let expected = |name: &str, found: &[usize], wanted: &[usize]| {
            if found == wanted {
                Ok(())
            } else {
                Err(invalid(format!("{name} has shape {found:?}, but must have {wanted:?}")))
            }
        };
        let of_keys = [shape.batch, shape.kv_heads, shape.tk, shape.dim];
        expected("k", k, &of_keys)?;
        expected("v", self.v.shape(), &of_keys)?;
        expected("kinetics", self.kinetics.shape(), &[KINETICS.len(), shape.heads])?;
        let of_state = self.calcium.shape()[2];
        let old = shape.tk - shape.tq;
        if self.old_state && of_state < old {
            return Err(invalid(format!("calcium has {of_state} keys, but there are {old} before the first query")));
        }
        let state = [shape.batch, shape.heads, if self.old_state { of_state } else { shape.tk }];
        expected("calcium", self.calcium.shape(), &state)?;
        expected("pool", self.pool.shape(), &state)?;
        let segments = match (&self.segments_q, &self.segments_k) {
            (None, None) => None,
            (Some(of_queries), Some(of_keys)) => {
                expected("segments_q", of_queries.shape(), &[shape.batch, shape.tq])?;
                expected("segments_k", of_keys.shape(), &[shape.batch, shape.tk])?;
                Some((slice!(of_queries, "segments_q")?, slice!(of_keys, "segments_k")?))
            }
            _ => return Err(invalid("segments_q and segments_k must be given together")),
        };
        let rule = match self.rule.as_str() {
            "min" => Rule::Min,
            "mul" => Rule::Mul,
            other => return Err(invalid(format!("rule = '{other}' is unknown; known: min, mul"))),
        };
        let release = match self.release.as_str() {
            "kinetic" => Release::Kinetic,
            "age" => Release::Age,
            "off" => Release::Off,
            other => return Err(invalid(format!("release = '{other}' is unknown; known: kinetic, age, off"))),
        };
        let rows = slice!(self.kinetics, "kinetics")?;
        let kinetics = (0..shape.heads)
            .map(|head| Kinetics::new(std::array::from_fn(|i| rows[i * shape.heads + head]), release))
            .collect::<Result<_, _>>()
            .map_err(invalid)?;
        let inputs = Inputs {
            shape,
            rule,
            release,
            q: slice!(self.q, "q")?,
            k: slice!(self.k, "k")?,
            v: slice!(self.v, "v")?,
            kinetics,
            calcium: slice!(self.calcium, "calcium")?,
            pool: slice!(self.pool, "pool")?,
            state: if self.old_state { (of_state - old)..of_state } else { 0..shape.tk },
            of_state,
            segments,
            window: self.window.map(|count| count.0),
        };
        inputs.check().map_err(invalid)?;
        Ok(inputs)
    }
}

fn shaped<'py, const N: usize>(py: Python<'py>, values: Vec<f32>, shape: [usize; N]) -> PyResult<Array<'py, N>>
where
    numpy::ndarray::Dim<[usize; N]>: numpy::ndarray::Dimension,
    [usize; N]: numpy::ndarray::IntoDimension<Dim = numpy::ndarray::Dim<[usize; N]>>,
{
    values.into_pyarray(py).reshape(shape)
}

/// Room for the results of the forward pass; what it holds is overwritten.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Room<'py> {
    out: Array<'py, 4>,
    calcium: Array<'py, 3>,
    pool: Array<'py, 3>,
    total: Array<'py, 3>,
    boundaries: Array<'py, 1>,
}

/// Room for the gradients.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct GradientRoom<'py> {
    q: Array<'py, 4>,
    k: Array<'py, 4>,
    v: Array<'py, 4>,
    kinetics: Array<'py, 2>,
    calcium: Array<'py, 3>,
    pool: Array<'py, 3>,
}

/// Forward pass into `room`; its `boundaries` stay as they are unless `keep`.
#[pyfunction]
fn fatigue_attention<'py>(
    py: Python<'py>,
    call: Call<'py>,
    room: Room<'py>,
    keep: bool,
    threads: Count,
) -> PyResult<()> {
    let inputs = call.inputs()?;
    let mut out = writable(&room.out, "out")?;
    let (mut calcium, mut pool) = (writable(&room.calcium, "calcium")?, writable(&room.pool, "pool")?);
    let (mut total, mut boundaries) = (writable(&room.total, "total")?, writable(&room.boundaries, "boundaries")?);
    let x = Outputs {
        out: slice_mut!(out, "out")?,
        calcium: slice_mut!(calcium, "calcium")?,
        pool: slice_mut!(pool, "pool")?,
        total: slice_mut!(total, "total")?,
        boundaries: slice_mut!(boundaries, "boundaries")?,
    };
    py.detach(|| run::forward_into(&inputs, keep, x, threads.0, Level::best())).map_err(invalid)
}

/// Backward pass: gradients of `(q, k, v, kinetics, calcium, pool)` into `room`; that of the kinetics is zero unless
/// `learn`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn fatigue_attention_backward<'py>(
    py: Python<'py>,
    call: Call<'py>,
    out: PyReadonlyArray4<'py, f32>,
    total: PyReadonlyArray3<'py, f32>,
    boundaries: PyReadonlyArray1<'py, f32>,
    grad_out: PyReadonlyArray4<'py, f32>,
    grad_calcium: PyReadonlyArray3<'py, f32>,
    grad_pool: PyReadonlyArray3<'py, f32>,
    room: GradientRoom<'py>,
    learn: bool,
    threads: Count,
) -> PyResult<()> {
    let inputs = call.inputs()?;
    let saved = (slice!(out, "out")?, slice!(total, "total")?, slice!(boundaries, "boundaries")?);
    let bars = Cotangents {
        out: slice!(grad_out, "grad_out")?,
        calcium: slice!(grad_calcium, "grad_calcium")?,
        pool: slice!(grad_pool, "grad_pool")?,
    };
    let (mut q, mut kinetics) = (writable(&room.q, "q_grad")?, writable(&room.kinetics, "kinetics_grad")?);
    let (mut k, mut v) = (writable(&room.k, "k_grad")?, writable(&room.v, "v_grad")?);
    let (mut calcium, mut pool) = (writable(&room.calcium, "calcium_grad")?, writable(&room.pool, "pool_grad")?);
    let x = Gradients {
        q: slice_mut!(q, "q_grad")?,
        k: slice_mut!(k, "k_grad")?,
        v: slice_mut!(v, "v_grad")?,
        kinetics: slice_mut!(kinetics, "kinetics_grad")?,
        calcium: slice_mut!(calcium, "calcium_grad")?,
        pool: slice_mut!(pool, "pool_grad")?,
    };
    py.detach(|| run::backward_into(&inputs, saved, &bars, learn, x, threads.0, Level::best())).map_err(invalid)
}

/// The instruction set that the kernels use on this machine.
#[pyfunction]
fn instruction_set() -> &'static str {
    Level::best().name()
}

/// The most FLOP/s (float32) that `threads` threads (0: one per core) reach with these instructions, in about 20 ms.
#[pyfunction]
fn fma_peak(py: Python<'_>, threads: usize) -> PyResult<f64> {
    py.detach(|| peak::fma_peak(threads, Level::best())).map_err(invalid)
}

#[pymodule]
fn bouton_kernels(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("QUERIES_PER_BLOCK", crate::fatigue::QUERIES)?;
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_function(wrap_pyfunction!(fatigue_attention, m)?)?;
    m.add_function(wrap_pyfunction!(fatigue_attention_backward, m)?)?;
    m.add_function(wrap_pyfunction!(fma_peak, m)?)?;
    m.add_function(wrap_pyfunction!(scan::scan, m)?)?;
    m.add_function(wrap_pyfunction!(scan::scan_backward, m)?)?;
    m.add_function(wrap_pyfunction!(instruction_set, m)?)?;
    fast_weights::register(m)?;
    graph::register(m)?;
    lif::register(m)?;
    oscillate::register(m)?;
    Ok(())
}
