//! Arithmetic on a group of columns. One operation per loop, on local arrays: longer loop bodies, or stores to slices
//! in between, keep the compiler from using whole vectors.

use crate::fast_weights::{Lanes, LANES, ZERO};
use crate::isa::Isa;

/// a b + c.
#[inline(always)]
pub fn fma<I: Isa>(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    let mut y = ZERO;
    for x in 0..LANES {
        y[x] = I::fma(a[x], b[x], c[x]);
    }
    y
}

/// a b + c for a number a.
#[inline(always)]
pub fn scaled<I: Isa>(a: f32, b: Lanes, c: Lanes) -> Lanes {
    let mut y = ZERO;
    for x in 0..LANES {
        y[x] = I::fma(a, b[x], c[x]);
    }
    y
}

#[inline(always)]
pub fn times(a: f32, b: Lanes) -> Lanes {
    let mut y = ZERO;
    for x in 0..LANES {
        y[x] = a * b[x];
    }
    y
}

#[inline(always)]
pub fn mul(a: Lanes, b: Lanes) -> Lanes {
    let mut y = ZERO;
    for x in 0..LANES {
        y[x] = a[x] * b[x];
    }
    y
}

#[inline(always)]
pub fn add(a: Lanes, b: Lanes) -> Lanes {
    let mut y = ZERO;
    for x in 0..LANES {
        y[x] = a[x] + b[x];
    }
    y
}

#[inline(always)]
pub fn sub(a: Lanes, b: Lanes) -> Lanes {
    let mut y = ZERO;
    for x in 0..LANES {
        y[x] = a[x] - b[x];
    }
    y
}

/// Oja's decay before it is cut off at 0: rho - eta v^2.
#[inline(always)]
pub fn oja(rho: f32, eta: f32, v: Lanes) -> Lanes {
    let mut y = ZERO;
    for x in 0..LANES {
        y[x] = rho - eta * v[x] * v[x];
    }
    y
}

/// Zero where negative; not a number stays what it is.
#[inline(always)]
pub fn positive(a: Lanes) -> Lanes {
    let mut y = ZERO;
    for x in 0..LANES {
        y[x] = if a[x] < 0.0 { 0.0 } else { a[x] };
    }
    y
}

/// `a` where `raw` is not negative, else zero: the gradient through [`positive`], which passes at exactly 0 as in
/// torch.clamp.
#[inline(always)]
pub fn passed(a: Lanes, raw: Lanes) -> Lanes {
    let mut y = ZERO;
    for x in 0..LANES {
        y[x] = if raw[x] >= 0.0 { a[x] } else { 0.0 };
    }
    y
}

/// Columns of one group of a row, zeros beyond its end.
#[inline(always)]
pub fn load(row: &[f32], group: usize) -> Lanes {
    let rest = &row[group * LANES..];
    if let Some(full) = rest.first_chunk::<LANES>() {
        return *full;
    }
    let mut lanes = ZERO;
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

#[inline(always)]
pub fn store(lanes: &Lanes, group: usize, row: &mut [f32]) {
    let rest = &mut row[group * LANES..];
    if let Some(full) = rest.first_chunk_mut::<LANES>() {
        *full = *lanes;
    } else {
        let count = rest.len();
        rest.copy_from_slice(&lanes[..count]);
    }
}
