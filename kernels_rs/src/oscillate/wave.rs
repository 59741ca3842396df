//! Sine, cosine and hyperbolic tangent, written without branches so that a loop over columns vectorises.
//!
//! The angle is computed and reduced in double precision: the product of two single-precision numbers is exact there,
//! so that a large omega x costs no digits. Up to |omega x + phi| = 1e6 the errors are below 2.5 units in the last place
//! of sine and cosine, up to 1e9 below 1e-6 absolutely; beyond 2^51 the values mean nothing, but stay within [-1, 1].

use crate::isa::Isa;
use crate::lanes::fma;
use crate::math::{split_horner, LN2_HIGH, LN2_LOW, ROUND};

/// pi / 2 in three parts; products of the first two with integers below 2^20 are exact.
const HALF_PI: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];
/// Adding 1.5 * 2^52 rounds to an integer, which is then in the low mantissa bits.
const ROUND_DOUBLE: f64 = 6_755_399_441_055_744.0;
/// A reduced angle is at most pi / 4, or a little more by rounding.
const MOST: f32 = 0.79;

/// (sin r / r - 1) / r^2 and (cos r - 1 + r^2 / 2) / r^4 in r^2 for |r| <= pi / 4, relative errors of the functions
/// 4e-9 and 2e-10 before rounding.
const SINE: [f32; 3] = [-0.166_666_55, 0.008_332_16, -0.000_195_152_5];
const COSINE: [f32; 3] = [0.041_666_646, -0.001_388_731_6, 2.443_312e-5];
/// (exp(r) - 1 - r) / r^2 for |r| <= ln 2 / 2, relative error of exp(r) - 1 2e-8 before rounding.
const EXPM1: [f32; 5] = [0.499_999_97, 0.166_665_43, 0.041_667_197, 0.008_366_518, 0.001_388_272_9];
/// Beyond this argument tanh is 1, and its derivative as good as 0.
const FLAT: f32 = 40.0;

/// omega x + phi as (r, quarter): r + quarter pi / 2, |r| <= pi / 4.
#[inline(always)]
pub fn angle(omega: f32, x: f32, phi: f32) -> (f32, u32) {
    let whole = f64::from(omega) * f64::from(x) + f64::from(phi);
    let shifted = whole * std::f64::consts::FRAC_2_PI + ROUND_DOUBLE;
    let quarters = shifted - ROUND_DOUBLE;
    let [high, middle, low] = HALF_PI;
    let r = (((whole - quarters * high) - quarters * middle) - quarters * low) as f32;
    // What is not a number stays one.
    let r = if r > MOST { MOST } else { r };
    (if r < -MOST { -MOST } else { r }, shifted.to_bits() as u32)
}

/// Sine and cosine of such an angle.
#[inline(always)]
pub fn sine_cosine<I: Isa>(r: f32, quarter: u32) -> (f32, f32) {
    let z = r * r;
    let sine = fma::<I, f32>(r * z, split_horner::<I, f32>(&SINE, z), r);
    let cosine = fma::<I, f32>(z * z, split_horner::<I, f32>(&COSINE, z), fma::<I, f32>(z, -0.5, 1.0));
    let odd = quarter & 1 != 0;
    let (first, second) = if odd { (cosine, sine) } else { (sine, cosine) };
    let signed = |x: f32, bit: u32| f32::from_bits(x.to_bits() ^ ((bit & 2) << 30));
    (signed(first, quarter), signed(second, quarter.wrapping_add(1)))
}

/// tanh(x) and its derivative.
#[inline(always)]
pub fn tanh<I: Isa>(x: f32) -> (f32, f32) {
    let size = x.abs();
    let y = 2.0 * if size < FLAT { size } else { FLAT };
    let shifted = fma::<I, f32>(y, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<I, f32>(n, -LN2_LOW, fma::<I, f32>(n, -LN2_HIGH, y));
    let small = fma::<I, f32>(r * r, split_horner::<I, f32>(&EXPM1, r), r);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    // exp(y) - 1 = 2^n (exp(r) - 1) + (2^n - 1)
    let grown = fma::<I, f32>(small, power, power - 1.0);
    let share = 1.0 / (grown + 2.0);
    ((grown * share).copysign(x), 4.0 * ((grown + 1.0) * share) * share)
}
