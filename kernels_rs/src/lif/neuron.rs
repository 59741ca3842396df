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

/// u and s before and at each token of a stretch, computed again: `CHUNK` + 1 rows of as many numbers as `zeros` has.
pub struct Stretch<'a, 'b> {
    pub inputs: &'a Inputs<'a>,
    pub span: Span,
    pub zeros: &'a [f32],
    pub u: &'b mut [f32],
    pub s: &'b mut [f32],
    /// The first token.
    pub first: usize,
}

impl Stretch<'_, '_> {
    /// Go to stretch number `chunk`.
    #[inline(always)]
    pub fn fill(&mut self, constants: Constants<'_>, kept: &[f32], chunk: usize) {
        let (inputs, span, n) = (self.inputs, self.span, self.zeros.len());
        self.first = chunk * CHUNK;
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
        for t in self.first..inputs.shape.tokens.min(self.first + CHUNK) {
            let at = (t - self.first) * n;
            let (u_before, u) = self.u[at..at + 2 * n].split_at_mut(n);
            let (s_before, s) = self.s[at..at + 2 * n].split_at_mut(n);
            let fresh = inputs.is_start(span.batch, t);
            let before: (&[f32], &[f32]) = if fresh { (self.zeros, self.zeros) } else { (u_before, s_before) };
            advance(inputs.reset, constants, inputs.row(inputs.x, span, t), before, u, s);
        }
    }
    /// u and s before token t.
    #[inline(always)]
    pub fn before(&self, t: usize) -> (&[f32], &[f32]) {
        let n = self.zeros.len();
        let at = (t - self.first) * n;
        if self.inputs.is_start(self.span.batch, t) {
            (self.zeros, self.zeros)
        } else {
            (&self.u[at..at + n], &self.s[at..at + n])
        }
    }
    /// u at token t.
    #[inline(always)]
    pub fn at(&self, t: usize) -> &[f32] {
        let n = self.zeros.len();
        &self.u[(t - self.first + 1) * n..][..n]
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
#[derive(Clone, Copy)]
pub struct Token<'a> {
    pub x: &'a [f32],
    /// gradient of the loss in the spikes
    pub s_bar: &'a [f32],
    pub slope: &'a [f32],
    /// u and s before it
    pub before: (&'a [f32], &'a [f32]),
}

/// One token of the backward pass: `x_bar` becomes the gradient in I_t, those in beta, theta and gain are added to
/// `sums`, and `carry` is what passes on to the token before: the gradient in u, and that in s by what a spike does
/// there.
#[inline(always)]
pub fn retreat(
    reset: Reset,
    detach: bool,
    constants: Constants<'_>,
    token: Token<'_>,
    carry: (&mut [f32], &mut [f32]),
    sums: [&mut [f32]; 3],
    x_bar: &mut [f32],
) {
    let (u, s) = carry;
    let [b, h, g] = sums;
    match (reset, detach) {
        (Reset::Subtract, true) => retreat_with::<SUBTRACT, true>(constants, token, u, s, b, h, g, x_bar),
        (Reset::Subtract, false) => retreat_with::<SUBTRACT, false>(constants, token, u, s, b, h, g, x_bar),
        (Reset::SubtractBeforeDecay, true) => retreat_with::<BEFORE, true>(constants, token, u, s, b, h, g, x_bar),
        (Reset::SubtractBeforeDecay, false) => retreat_with::<BEFORE, false>(constants, token, u, s, b, h, g, x_bar),
        (Reset::Zero, true) => retreat_with::<ZERO, true>(constants, token, u, s, b, h, g, x_bar),
        (Reset::Zero, false) => retreat_with::<ZERO, false>(constants, token, u, s, b, h, g, x_bar),
        (Reset::Nothing, _) => retreat_with::<NOTHING, true>(constants, token, u, s, b, h, g, x_bar),
    }
}

/// Every slice that is written is an argument by itself: only so does the compiler know that no two of them overlap.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn retreat_with<const RESET: u8, const DETACH: bool>(
    constants: Constants<'_>,
    token: Token<'_>,
    u_carry: &mut [f32],
    s_carry: &mut [f32],
    beta_sum: &mut [f32],
    theta_sum: &mut [f32],
    gain_sum: &mut [f32],
    x_bar: &mut [f32],
) {
    let n = x_bar.len();
    let (beta, theta, gain) = (&constants.beta[..n], &constants.theta[..n], &constants.gain[..n]);
    let (x, s_bar, slope) = (&token.x[..n], &token.s_bar[..n], &token.slope[..n]);
    let (u_before, s_before) = (&token.before.0[..n], &token.before.1[..n]);
    let (u_carry, s_carry) = (&mut u_carry[..n], &mut s_carry[..n]);
    let (beta_sum, theta_sum, gain_sum) = (&mut beta_sum[..n], &mut theta_sum[..n], &mut gain_sum[..n]);
    for j in 0..n {
        let (u, s) = (u_before[j], s_before[j]);
        let q = slope[j] * (s_bar[j] + s_carry[j]);
        let delta = q + u_carry[j];
        x_bar[j] = gain[j] * delta;
        gain_sum[j] += delta * x[j];
        let decayed = beta[j] * delta;
        // What is left of u before the token, and the gradients in it, in theta, and in s through the reset.
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
