//! Exponential, softplus, logarithm and the logistic gate in plain `f32`, written without branches so that a loop
//! over keys vectorises. Relative errors are below 4e-7 on the ranges stated; the unit tests measure them.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::isa::Isa;
use crate::lanes::{fma, Real};

const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN_2: f32 = std::f32::consts::LN_2;
/// ln 2 in two parts; the first has so few bits that `n * LN2_HIGH` is exact.
pub const LN2_HIGH: f32 = 0.693_359_4;
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// Adding 1.5 * 2^23 rounds to an integer, whose two's complement is then in the low mantissa bits.
pub const ROUND: f32 = 12_582_912.0;
/// Exponents whose powers are still normal numbers on both sides, to the bases e and 2.
const EXP_LIMIT: f32 = 86.5;
const EXP2_LIMIT: f32 = 125.0;

/// 2^x on [-1/2, 1/2], degree 6, relative error 2e-9 before rounding: even and odd powers.
const EXP2_EVEN: [f32; 4] = [1.0, 0.240_226_47, 0.009_618_489, 0.000_153_458_12];
const EXP2_ODD: [f32; 3] = [LN_2, 0.055_503_288, 0.001_339_993_2];

/// log1p(x)/x on [0, 1], degree 7, relative error 2e-7.
pub const LOG1P: [f32; 8] = [
    0.999_999_8,
    -0.499_974_05,
    0.332_754_8,
    -0.244_954_65,
    0.177_452_46,
    -0.107_681_76,
    0.044_089_653,
    -0.008_539_212,
];
/// log1p(x)/x on [sqrt(1/2) - 1, sqrt(2) - 1], degree 8, relative error 3e-8 before rounding.
const LOG_MANTISSA: [f32; 9] = [
    0.999_999_97,
    -0.499_999_88,
    0.333_341_86,
    -0.250_020_74,
    0.199_568_33,
    -0.165_624_02,
    0.149_522_83,
    -0.143_667_88,
    0.087_222_43,
];

#[inline(always)]
pub fn min<R: Real>(a: R, b: R) -> R {
    a.zip(b, |a, b| if a < b { a } else { b })
}

#[inline(always)]
pub fn max<R: Real>(a: R, b: R) -> R {
    a.zip(b, |a, b| if a > b { a } else { b })
}

#[inline(always)]
fn horner<I: Isa, R: Real>(coefficients: &[f32], x: R) -> R {
    let mut i = coefficients.len() - 1;
    let mut sum = R::splat(coefficients[i]);
    while i > 0 {
        i -= 1;
        sum = fma::<I, R>(sum, x, R::splat(coefficients[i]));
    }
    sum
}

/// As [`horner`], but even and odd powers by themselves: one product more, and little more than half as long a chain of
/// operations that wait for each other.
#[inline(always)]
pub fn split_horner<I: Isa, R: Real>(coefficients: &[f32], x: R) -> R {
    let square = x * x;
    let last = coefficients.len() - 1;
    let (mut high, mut low) = (R::splat(coefficients[last]), R::splat(coefficients[last - 1]));
    let mut i = last - 1;
    while i > 1 {
        high = fma::<I, R>(high, square, R::splat(coefficients[i - 1]));
        low = fma::<I, R>(low, square, R::splat(coefficients[i - 2]));
        i -= 2;
    }
    if i == 1 {
        // `low` is of odd powers, and `high` of even ones but for the last.
        fma::<I, R>(low, x, fma::<I, R>(high, square, R::splat(coefficients[0])))
    } else {
        fma::<I, R>(high, x, low)
    }
}

/// m times 2 to the power of the integer in the low bits of `shifted`, for normal m and results: no multiplication.
#[inline(always)]
fn raise<R: Real>(m: R, shifted: R) -> R {
    m.zip(shifted, |m, s| f32::from_bits(m.to_bits().wrapping_add(s.to_bits() << 23)))
}

/// As [`raise`], with the power negated.
#[inline(always)]
fn lower<R: Real>(m: R, shifted: R) -> R {
    m.zip(shifted, |m, s| f32::from_bits(m.to_bits().wrapping_sub(s.to_bits() << 23)))
}

/// `(2^x, 2^-x)` for the price of little more than one, for |x| <= 125 (beyond it nothing is promised).
#[inline(always)]
pub fn exp2_pair_within<I: Isa, R: Real>(x: R) -> (R, R) {
    let shifted = x + R::splat(ROUND);
    let r = x - (shifted - R::splat(ROUND));
    let r2 = r * r;
    let even = horner::<I, R>(&EXP2_EVEN, r2);
    let odd = horner::<I, R>(&EXP2_ODD, r2) * r;
    (raise(even + odd, shifted), lower(even - odd, shifted))
}

/// `(2^x, 2^-x)`; |x| is cut at 125.
#[inline(always)]
pub fn exp2_pair<I: Isa, R: Real>(x: R) -> (R, R) {
    exp2_pair_within::<I, R>(max(min(x, R::splat(EXP2_LIMIT)), R::splat(-EXP2_LIMIT)))
}

/// `(exp(x), exp(-x))`; |x| is cut at 87.
#[inline(always)]
pub fn exp_pair<I: Isa, R: Real>(x: R) -> (R, R) {
    let x = max(min(x, R::splat(EXP_LIMIT)), R::splat(-EXP_LIMIT));
    let shifted = fma::<I, R>(x, R::splat(LOG2_E), R::splat(ROUND));
    let n = shifted - R::splat(ROUND);
    let r = fma::<I, R>(n, R::splat(-LN2_LOW), fma::<I, R>(n, R::splat(-LN2_HIGH), x));
    let r2 = r * r;
    let even = horner::<I, R>(&[1.0, 0.5, 1.0 / 24.0, 1.0 / 720.0], r2);
    let odd = horner::<I, R>(&[1.0, 1.0 / 6.0, 1.0 / 120.0, 1.0 / 5040.0], r2) * r;
    (raise(even + odd, shifted), lower(even - odd, shifted))
}

/// log1p(2^x) from x and min(2^x, 2^-x).
#[inline(always)]
pub fn softplus2<I: Isa, R: Real>(x: R, smaller: R) -> R {
    fma::<I, R>(smaller, split_horner::<I, R>(&LOG1P, smaller), R::splat(LN_2) * max(x, R::splat(0.0)))
}

/// Natural logarithm of a positive normal number; smaller arguments count as 1e-37.
#[inline(always)]
pub fn log<I: Isa, R: Real>(x: R) -> R {
    const SQRT_HALF_BITS: u32 = 0x3f35_04f3;
    let x = max(x, R::splat(1e-37));
    let exponent = x.map(|x| (x.to_bits().wrapping_sub(SQRT_HALF_BITS) as i32 >> 23) as f32);
    let mantissa = x.map(|x| {
        let offset = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
        f32::from_bits((offset & 0x007f_ffff).wrapping_add(SQRT_HALF_BITS))
    });
    let m = mantissa - R::splat(1.0);
    let small = fma::<I, R>(m, horner::<I, R>(&LOG_MANTISSA, m), exponent * R::splat(LN2_LOW));
    fma::<I, R>(exponent, R::splat(LN2_HIGH), small)
}

#[inline(always)]
pub fn reciprocal<R: Real>(x: R) -> R {
    x.map(|x| 1.0 / x)
}

#[inline(always)]
pub fn sigmoid<I: Isa, R: Real>(x: R) -> R {
    let (_, negative) = exp_pair::<I, R>(x);
    reciprocal(R::splat(1.0) + negative)
}

/// Most coefficients of the gate sigmoid(s S + b), S in [0, 1], as a polynomial in S - 1/2.
pub const GATE_TERMS: usize = 14;
/// Coefficients that do for gains up to about 3.
pub const FEW_GATE_TERMS: usize = 11;

/// Relative error up to which the polynomial stands for the logistic function.
const GATE_TOLERANCE: f64 = 3e-7;

/// A polynomial of the gate: its coefficients (zero beyond `terms`), and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    pub coefficients: [f32; GATE_TERMS],
    pub terms: usize,
}

/// The shortest polynomial that stands for the gate, or `None` where the slope is too steep for them. Found ones are
/// remembered: fitting takes longer than a step of a short sequence.
pub fn fit_gate(slope: f64, bias: f64) -> Option<Gate> {
    const MOST: usize = 4096;
    thread_local! {
        static FOUND: RefCell<HashMap<(u64, u64), Option<Gate>>> = RefCell::default();
    }
    let key = (slope.to_bits(), bias.to_bits());
    FOUND.with_borrow_mut(|found| {
        if found.len() >= MOST {
            found.clear();
        }
        *found.entry(key).or_insert_with(|| {
            [FEW_GATE_TERMS, GATE_TERMS].into_iter().find_map(|terms| fit_gate_with(terms, slope, bias))
        })
    })
}

/// Interpolation at Chebyshev nodes.
fn fit_gate_with(terms: usize, slope: f64, bias: f64) -> Option<Gate> {
    let exact = |y: f64| 1.0 / (1.0 + (-(slope * (y + 0.5) + bias)).exp());
    let node = |i: usize| 0.5 * (std::f64::consts::PI * (i as f64 + 0.5) / terms as f64).cos();
    let mut divided: Vec<f64> = (0..terms).map(|i| exact(node(i))).collect();
    for order in 1..terms {
        for i in (order..terms).rev() {
            divided[i] = (divided[i] - divided[i - 1]) / (node(i) - node(i - order));
        }
    }
    // Newton's form to powers of y, from the innermost factor outwards.
    let mut power = [0f64; GATE_TERMS];
    for i in (0..terms).rev() {
        for j in (1..GATE_TERMS).rev() {
            power[j] = power[j - 1] - node(i) * power[j];
        }
        power[0] = divided[i] - node(i) * power[0];
    }
    let coefficients = power.map(|c| c as f32);
    let value = |y: f64| coefficients.iter().rev().fold(0.0, |sum, &c| sum * y + f64::from(c));
    let fits = (0..=64).all(|i| {
        let y = f64::from(i) / 64.0 - 0.5;
        (value(y) / exact(y) - 1.0).abs() <= GATE_TOLERANCE
    });
    fits.then_some(Gate { coefficients, terms })
}

/// The first `TERMS` coefficients at S = `hill`.
#[inline(always)]
pub fn gate<I: Isa, R: Real, const TERMS: usize>(coefficients: &[f32; GATE_TERMS], hill: R) -> R {
    split_horner::<I, R>(&coefficients[..TERMS], hill - R::splat(0.5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Portable, Wide};

    fn worst(range: std::ops::Range<i32>, step: f64, relative_error: impl Fn(f32) -> f64) -> f64 {
        range.map(|i| relative_error((f64::from(i) * step) as f32)).fold(0.0, f64::max)
    }

    fn check<I: Isa>() {
        let error = |approximate: f32, exact: f64| (f64::from(approximate) / exact - 1.0).abs();
        assert!(worst(-86_000..86_000, 1e-3, |x| error(exp_pair::<I, f32>(x).0, f64::from(x).exp())) < 3e-7);
        assert!(worst(-86_000..86_000, 1e-3, |x| error(exp_pair::<I, f32>(x).1, (-f64::from(x)).exp())) < 3e-7);
        assert!(worst(-125_000..125_000, 1e-3, |x| error(exp2_pair::<I, f32>(x).0, f64::from(x).exp2())) < 2e-7);
        assert!(worst(-125_000..125_000, 1e-3, |x| error(exp2_pair::<I, f32>(x).1, (-f64::from(x)).exp2())) < 2e-7);
        let softplus_of = |x: f32| {
            let (up, down) = exp2_pair::<I, f32>(x);
            softplus2::<I, f32>(x, min(up, down))
        };
        assert!(worst(-45_000..45_000, 1e-3, |x| error(softplus_of(x), f64::from(x).exp2().ln_1p())) < 6e-7);
        assert!(
            worst(1..500_000, 1e-4, |x| {
                // Near 1 the logarithm vanishes: the error is then measured against the distance from 1.
                (f64::from(log::<I, f32>(x)) - f64::from(x).ln()).abs() / f64::from(x).ln().abs().max(1e-6)
            }) < 4e-7
        );
        assert!(
            worst(-30_000..30_000, 1e-3, |x| error(sigmoid::<I, f32>(x), 1.0 / (1.0 + (-f64::from(x)).exp()))) < 5e-7
        );
    }

    #[test]
    fn elementary_functions_are_accurate() {
        check::<Portable>();
        check::<Wide>();
    }

    #[test]
    fn logarithm_of_extremes_is_finite() {
        assert!((f64::from(log::<Portable, f32>(0.0)) - 1e-37f64.ln()).abs() < 1e-4);
        assert!((log::<Portable, f32>(3e38) - 3e38f32.ln()).abs() < 1e-4);
    }

    #[test]
    fn gate_polynomial_fits_or_is_refused() {
        for (slope, bias) in [(3.0, -0.8), (3.0, -3.0), (4.0, -0.8), (0.0, 0.3), (2.0, 5.0), (-3.0, 1.0)] {
            let c = fit_gate(slope, bias).expect("moderate slopes are within reach of the polynomial");
            for i in 0..=1000 {
                let hill = i as f32 / 1000.0;
                let exact = 1.0 / (1.0 + (-(slope * f64::from(hill) + bias)).exp());
                assert!(
                    (f64::from(gate::<Wide, f32, GATE_TERMS>(&c.coefficients, hill)) / exact - 1.0).abs() < 6e-7,
                    "{slope} {bias} {hill}"
                );
            }
        }
        assert!(fit_gate(12.0, -6.0).is_none());
    }
}
