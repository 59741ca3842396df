//! One token of some neurons of one batch row, forward and backward.

use crate::isa::Isa;
use crate::lif::problem::{Constants, Inputs, Reset, Span, Surrogate};
use crate::lif::CHUNK;
use crate::math::exp_pair;

/// The numbers of [`Reset`] as constants that a loop is compiled for.
const SUBTRACT: u8 = 0;
const BEFORE: u8 = 1;
const ZERO: u8 = 2;
const NOTHING: u8 = 3;

/// u and s of a token from those of the one before.
#[inline(always)]
pub fn advance(
    reset: Reset,
    constants: Constants<'_>,
    x: &[f32],
    before: (&[f32], &[f32]),
    u: &mut [f32],
    s: &mut [f32],
) {
    match reset {
        Reset::Subtract => advance_with::<SUBTRACT>(constants, x, before, u, s),
        Reset::SubtractBeforeDecay => advance_with::<BEFORE>(constants, x, before, u, s),
        Reset::Zero => advance_with::<ZERO>(constants, x, before, u, s),
        Reset::Nothing => advance_with::<NOTHING>(constants, x, before, u, s),
    }
}

#[inline(always)]
fn advance_with<const RESET: u8>(
    constants: Constants<'_>,
    x: &[f32],
    (u_before, s_before): (&[f32], &[f32]),
    u: &mut [f32],
    s: &mut [f32],
) {
    let n = u.len();
    let (beta, theta, gain) = (&constants.beta[..n], &constants.theta[..n], &constants.gain[..n]);
    let (x, u_before, s_before, s) = (&x[..n], &u_before[..n], &s_before[..n], &mut s[..n]);
    for j in 0..n {
        let current = gain[j] * x[j];
        // No fused operations here: rounding decides whether a neuron spikes.
        let now = match RESET {
            SUBTRACT => beta[j] * u_before[j] + current - theta[j] * s_before[j],
            BEFORE => beta[j] * (u_before[j] - theta[j] * s_before[j]) + current,
            ZERO => beta[j] * (u_before[j] * (1.0 - s_before[j])) + current,
            _ => beta[j] * u_before[j] + current,
        };
        u[j] = now;
        s[j] = if now > theta[j] { 1.0 } else { 0.0 };
    }
}

/// u and s before and at each token of a stretch, computed again: `CHUNK` + 1 rows of `width` each.
pub struct Stretch<'b> {
    pub u: &'b mut [f32],
    pub s: &'b mut [f32],
    pub width: usize,
}

impl Stretch<'_> {
    /// Tokens from `chunk * CHUNK` on of a span.
    #[inline(always)]
    pub fn fill(&mut self, inputs: &Inputs<'_>, constants: Constants<'_>, kept: &[f32], span: Span, chunk: usize) {
        let (n, first) = (self.width, chunk * CHUNK);
        if chunk == 0 {
            self.u[..n].copy_from_slice(inputs.state(inputs.u0, span));
            self.s[..n].copy_from_slice(inputs.state(inputs.s0, span));
        } else {
            let before = inputs.stored(kept, span, chunk);
            self.u[..n].copy_from_slice(before);
            for ((s, &u), &theta) in self.s[..n].iter_mut().zip(before).zip(constants.theta) {
                *s = if u > theta { 1.0 } else { 0.0 };
            }
        }
        for t in first..inputs.shape.tokens.min(first + CHUNK) {
            let at = (t - first) * n;
            if inputs.is_start(span.batch, t) {
                // Only a token that starts a document sees what is before it, and it sees nothing.
                self.u[at..at + n].fill(0.0);
                self.s[at..at + n].fill(0.0);
            }
            let (u_before, u) = self.u[at..].split_at_mut(n);
            let (s_before, s) = self.s[at..].split_at_mut(n);
            advance(inputs.reset, constants, inputs.row(inputs.x, span, t), (u_before, s_before), &mut u[..n], s);
        }
    }
    /// u and s before token number `i` of the stretch.
    #[inline(always)]
    pub fn before(&self, i: usize) -> (&[f32], &[f32]) {
        let at = i * self.width;
        (&self.u[at..at + self.width], &self.s[at..at + self.width])
    }
    /// u at that token.
    #[inline(always)]
    pub fn at(&self, i: usize) -> &[f32] {
        &self.u[(i + 1) * self.width..(i + 2) * self.width]
    }
}

/// The surrogate derivatives at u - theta.
#[inline(always)]
pub fn slopes<I: Isa>((surrogate, alpha): (Surrogate, f64), u: &[f32], theta: &[f32], slope: &mut [f32]) {
    let a = alpha as f32;
    match surrogate {
        Surrogate::Atan => {
            let (half, scale) = ((alpha / 2.0) as f32, (std::f64::consts::FRAC_PI_2 * alpha) as f32);
            each(u, theta, slope, |x| {
                let y = scale * x;
                half / (1.0 + y * y)
            });
        }
        Surrogate::FastSigmoid => each(u, theta, slope, |x| {
            let y = 1.0 + a * x.abs();
            1.0 / (y * y)
        }),
        Surrogate::Sigmoid => each(u, theta, slope, |x| {
            let (_, small) = exp_pair::<I, f32>(a * x.abs());
            a * small / ((1.0 + small) * (1.0 + small))
        }),
        Surrogate::Triangle => each(u, theta, slope, |x| {
            let y = 1.0 - a * x.abs();
            a * if y > 0.0 { y } else { 0.0 }
        }),
        Surrogate::Rectangle => {
            let reach = (0.5 / alpha) as f32;
            each(u, theta, slope, |x| if x.abs() < reach { a } else { 0.0 });
        }
    }
}

#[inline(always)]
fn each(u: &[f32], theta: &[f32], slope: &mut [f32], f: impl Fn(f32) -> f32) {
    let n = slope.len();
    let (u, theta) = (&u[..n], &theta[..n]);
    for j in 0..n {
        slope[j] = f(u[j] - theta[j]);
    }
}

/// What one token takes in on the way back.
pub struct Token<'a> {
    pub x: &'a [f32],
    /// gradient of the loss in the spikes
    pub s_bar: &'a [f32],
    pub slope: &'a [f32],
    pub u_before: &'a [f32],
    pub s_before: &'a [f32],
}

/// Gradients that pass on to the token before: in u, and in s by what a spike does there.
pub struct Carry<'b> {
    pub u: &'b mut [f32],
    pub s: &'b mut [f32],
}

/// Sums over tokens.
pub struct Sums<'b> {
    pub beta: &'b mut [f32],
    pub theta: &'b mut [f32],
    pub gain: &'b mut [f32],
}

/// One token of the backward pass: `x_bar` = gradient in I_t.
#[inline(always)]
pub fn retreat(
    reset: Reset,
    detach: bool,
    constants: Constants<'_>,
    token: Token<'_>,
    carry: Carry<'_>,
    sums: Sums<'_>,
    x_bar: &mut [f32],
) {
    match (reset, detach) {
        (Reset::Subtract, true) => retreat_with::<SUBTRACT, true>(constants, token, carry, sums, x_bar),
        (Reset::Subtract, false) => retreat_with::<SUBTRACT, false>(constants, token, carry, sums, x_bar),
        (Reset::SubtractBeforeDecay, true) => retreat_with::<BEFORE, true>(constants, token, carry, sums, x_bar),
        (Reset::SubtractBeforeDecay, false) => retreat_with::<BEFORE, false>(constants, token, carry, sums, x_bar),
        (Reset::Zero, true) => retreat_with::<ZERO, true>(constants, token, carry, sums, x_bar),
        (Reset::Zero, false) => retreat_with::<ZERO, false>(constants, token, carry, sums, x_bar),
        (Reset::Nothing, _) => retreat_with::<NOTHING, true>(constants, token, carry, sums, x_bar),
    }
}

#[inline(always)]
fn retreat_with<const RESET: u8, const DETACH: bool>(
    constants: Constants<'_>,
    token: Token<'_>,
    carry: Carry<'_>,
    sums: Sums<'_>,
    x_bar: &mut [f32],
) {
    let n = x_bar.len();
    let (beta, theta, gain) = (&constants.beta[..n], &constants.theta[..n], &constants.gain[..n]);
    let (x, s_bar, slope) = (&token.x[..n], &token.s_bar[..n], &token.slope[..n]);
    let (u_before, s_before) = (&token.u_before[..n], &token.s_before[..n]);
    let (u_carry, s_carry) = (&mut carry.u[..n], &mut carry.s[..n]);
    let (beta_sum, theta_sum, gain_sum) = (&mut sums.beta[..n], &mut sums.theta[..n], &mut sums.gain[..n]);
    for j in 0..n {
        let (u, s) = (u_before[j], s_before[j]);
        let q = slope[j] * (s_bar[j] + s_carry[j]);
        let delta = q + u_carry[j];
        x_bar[j] = gain[j] * delta;
        gain_sum[j] += delta * x[j];
        let decayed = beta[j] * delta;
        // What is left of u before the token, its gradient, and those of theta and of s through the reset.
        let (left, into_u, into_theta, into_s) = match RESET {
            SUBTRACT => (u, decayed, delta * s, -theta[j] * delta),
            BEFORE => (u - theta[j] * s, decayed, decayed * s, -theta[j] * decayed),
            ZERO => (u * (1.0 - s), decayed * (1.0 - s), 0.0, -u * decayed),
            _ => (u, decayed, 0.0, 0.0),
        };
        beta_sum[j] += delta * left;
        theta_sum[j] -= q + into_theta;
        u_carry[j] = into_u;
        s_carry[j] = if DETACH { 0.0 } else { into_s };
    }
}
