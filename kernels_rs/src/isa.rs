//! Which instructions a kernel is compiled for, and the choice among them at run time.
//!
//! A kernel is one generic function over [`Isa`]; [`Level::run`] enters it through a function that allows the compiler
//! the instructions of one level. Besides `substrate::memory` this is the only module with `unsafe`: calls into code for a
//! processor feature, made after the feature was found present, and a hint about memory.
#![allow(unsafe_code)]

use std::sync::OnceLock;

use crate::gemm::{self, Matrices};
use crate::peak;

/// The few choices that differ between instruction sets.
pub trait Isa: Copy + Send + Sync + 'static {
    /// Whether code is made for every case that has a quicker form. Where it is not, the general form serves all: it
    /// spares much of the build, for processors that hardly anyone has.
    const TAILORED: bool;
    /// a * b + c, rounded once where the processor can.
    fn fma(a: f32, b: f32, c: f32) -> f32;
    /// C = A B, or C += A B, in register tiles that fit this level.
    fn gemm<const TRANSPOSED: bool, const ADD: bool>(matrices: Matrices<'_>);
    /// As many chains of multiply-adds as keep the units busy and fit the registers: see [`peak::spin`].
    fn spin(steps: usize) -> (f32, f64);
}

/// Any processor: separate multiplication and addition.
#[derive(Clone, Copy)]
pub struct Portable;
/// Fused multiply-add and 16 registers of 8 lanes (AVX2), or 32 of 4 (NEON).
#[derive(Clone, Copy)]
pub struct Narrow;
/// Fused multiply-add and 32 registers of 16 lanes (AVX-512).
#[derive(Clone, Copy)]
pub struct Wide;

impl Isa for Portable {
    const TAILORED: bool = false;
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn gemm<const TRANSPOSED: bool, const ADD: bool>(matrices: Matrices<'_>) {
        gemm::multiply::<Self, 4, 16, TRANSPOSED, ADD>(matrices);
    }
    #[inline(always)]
    fn spin(steps: usize) -> (f32, f64) {
        peak::spin::<Self, 4, 16>(steps)
    }
}

impl Isa for Narrow {
    const TAILORED: bool = true;
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn gemm<const TRANSPOSED: bool, const ADD: bool>(matrices: Matrices<'_>) {
        gemm::multiply::<Self, 4, 16, TRANSPOSED, ADD>(matrices);
    }
    #[inline(always)]
    fn spin(steps: usize) -> (f32, f64) {
        peak::spin::<Self, 4, 16>(steps)
    }
}

impl Isa for Wide {
    const TAILORED: bool = true;
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn gemm<const TRANSPOSED: bool, const ADD: bool>(matrices: Matrices<'_>) {
        gemm::multiply::<Self, 8, 32, TRANSPOSED, ADD>(matrices);
    }
    #[inline(always)]
    fn spin(steps: usize) -> (f32, f64) {
        peak::spin::<Self, 4, 64>(steps)
    }
}

/// Ask for `x` from memory without waiting for it. Only a hint: what the processor makes of it changes no result.
#[inline(always)]
pub fn prefetch(x: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in x.chunks(16) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: every x86-64 processor has the instruction, and the address is that of an element.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// Work that can be compiled for every level.
pub trait Job {
    fn run<I: Isa>(self);
}

/// The instruction sets there is code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Portable,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// All levels that this processor can execute, the best one last.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "aarch64")]
        levels.push(Level::Neon);
        #[cfg(target_arch = "x86_64")]
        {
            let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if fma {
                levels.push(Level::Avx2);
            }
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq");
            if fma && wide {
                levels.push(Level::Avx512);
            }
        }
        levels
    }

    /// The best level of this processor.
    pub fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::available().last().copied().unwrap_or(Level::Portable))
    }

    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }

    /// Execute `job` with the instructions of this level, or portably where the processor lacks them.
    pub fn run<J: Job>(self, job: J) {
        match self {
            Level::Portable => job.run::<Portable>(),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => job.run::<Narrow>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 if !Level::available().contains(&self) => job.run::<Portable>(),
            // SAFETY: the guard above has just seen that this processor has every feature of the level.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { run_avx2(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { run_avx512(job) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<J: Job>(job: J) {
    job.run::<Narrow>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
fn run_avx512<J: Job>(job: J) {
    job.run::<Wide>();
}
