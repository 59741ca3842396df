//! One number, or four side by side: the arithmetic of `math` and `fatigue::synapse` is written once for both.
//!
//! A loop over keys vectorises by itself. But one synapse is a chain of some fifty dependent operations, longer than
//! what a processor looks ahead, so that its units would wait for each other. Four chains per iteration, interleaved
//! operation by operation, keep them busy.

use std::ops::{Add, Mul, Sub};

use crate::isa::Isa;

pub trait Real: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    fn splat(x: f32) -> Self;
    fn map(self, f: impl Fn(f32) -> f32) -> Self;
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self;
    fn zip3(self, b: Self, c: Self, f: impl Fn(f32, f32, f32) -> f32) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        f(self)
    }
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        f(self, other)
    }
    #[inline(always)]
    fn zip3(self, b: Self, c: Self, f: impl Fn(f32, f32, f32) -> f32) -> Self {
        f(self, b, c)
    }
}

/// Fields, not an array: the compiler sees four independent numbers without having to unroll anything.
#[derive(Clone, Copy)]
pub struct Four(pub f32, pub f32, pub f32, pub f32);

impl Real for Four {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Four(x, x, x, x)
    }
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Four(f(self.0), f(self.1), f(self.2), f(self.3))
    }
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Four(f(self.0, b.0), f(self.1, b.1), f(self.2, b.2), f(self.3, b.3))
    }
    #[inline(always)]
    fn zip3(self, b: Self, c: Self, f: impl Fn(f32, f32, f32) -> f32) -> Self {
        Four(f(self.0, b.0, c.0), f(self.1, b.1, c.1), f(self.2, b.2, c.2), f(self.3, b.3, c.3))
    }
}

impl Add for Four {
    type Output = Four;
    #[inline(always)]
    fn add(self, b: Four) -> Four {
        self.zip(b, |x, y| x + y)
    }
}

impl Sub for Four {
    type Output = Four;
    #[inline(always)]
    fn sub(self, b: Four) -> Four {
        self.zip(b, |x, y| x - y)
    }
}

impl Mul for Four {
    type Output = Four;
    #[inline(always)]
    fn mul(self, b: Four) -> Four {
        self.zip(b, |x, y| x * y)
    }
}

impl Four {
    /// The four numbers at `j`, `j + N/4`, ... of a row: each stream is contiguous in `j`.
    #[inline(always)]
    pub fn load<const N: usize>(row: &[f32; N], j: usize) -> Four {
        Four(row[j], row[j + N / 4], row[j + N / 2], row[j + N / 4 * 3])
    }
    #[inline(always)]
    pub fn store<const N: usize>(self, row: &mut [f32; N], j: usize) {
        row[j] = self.0;
        row[j + N / 4] = self.1;
        row[j + N / 2] = self.2;
        row[j + N / 4 * 3] = self.3;
    }
    #[inline(always)]
    pub fn sum(self) -> f32 {
        (self.0 + self.1) + (self.2 + self.3)
    }
}

/// a * b + c, rounded once where the processor can.
#[inline(always)]
pub fn fma<I: Isa, R: Real>(a: R, b: R, c: R) -> R {
    a.zip3(b, c, I::fma)
}
