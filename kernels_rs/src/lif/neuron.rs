//! One token of one neuron, forward and backward; and the loops over the neurons of a row.

use crate::isa::Isa;
use crate::lif::problem::{Constants, Inputs, Reset, Span, Surrogate};
use crate::lif::CHUNK;
use crate::math::exp_pair;

/// The numbers of [`Reset`] and [`Surrogate`] as constants that a loop is compiled for.
pub const SUBTRACT: u8 = 0;
pub const BEFORE: u8 = 1;
pub const ZERO: u8 = 2;
pub const NOTHING: u8 = 3;
pub const ATAN: u8 = 0;
pub const FAST_SIGMOID: u8 = 1;
pub const SIGMOID: u8 = 2;
pub const TRIANGLE: u8 = 3;
pub const RECTANGLE: u8 = 4;

/// u of a token, from u and s of the one before.
#[inline(always)]
pub fn potential<const RESET: u8>([beta, theta, gain]: [f32; 3], x: f32, u: f32, s: f32) -> f32 {
    let current = gain * x;
    // No fused operations here: rounding decides whether a neuron spikes.
    match RESET {
        SUBTRACT => beta * u + current - theta * s,
        BEFORE => beta * (u - theta * s) + current,
        ZERO => beta * (u * (1.0 - s)) + current,
        _ => beta * u + current,
    }
}

#[inline(always)]
pub fn spike(u: f32, theta: f32) -> f32 {
    if u > theta {
        1.0
    } else {
        0.0
    }
}

/// A surrogate derivative with what depends on its sharpness alone.
#[derive(Clone, Copy)]
pub struct Slope {
    alpha: f32,
    half: f32,
    scale: f32,
    reach: f32,
}

impl Slope {
    pub fn new(alpha: f64) -> Slope {
        Slope {
            alpha: alpha as f32,
            half: (alpha / 2.0) as f32,
            scale: (std::f64::consts::FRAC_PI_2 * alpha) as f32,
            reach: (0.5 / alpha) as f32,
        }
    }
    /// At x = u - theta.
    #[inline(always)]
    pub fn at<I: Isa, const SURROGATE: u8>(self, x: f32) -> f32 {
        let Slope { alpha, half, scale, reach } = self;
        match SURROGATE {
            ATAN => half / (1.0 + (scale * x) * (scale * x)),
            FAST_SIGMOID => {
                let y = 1.0 + alpha * x.abs();
                1.0 / (y * y)
            }
            SIGMOID => {
                let (_, small) = exp_pair::<I, f32>(alpha * x.abs());
                alpha * small / ((1.0 + small) * (1.0 + small))
            }
            TRIANGLE => {
                let y = 1.0 - alpha * x.abs();
                alpha * if y > 0.0 { y } else { 0.0 }
            }
            _ => {
                if x.abs() < reach {
                    alpha
                } else {
                    0.0
                }
            }
        }
    }
}

/// Gradients at one token, of one neuron.
pub struct Shares {
    /// in I_t
    pub x: f32,
    /// added to those of beta, theta and gain
    pub beta: f32,
    pub theta: f32,
    pub gain: f32,
    /// in u of the token before, and in its s by what a spike does there
    pub u: f32,
    pub s: f32,
}

/// `s_bar`: gradient in the spike; `u_bar`: that in u from the tokens after; x, u and s: I_t and what was before.
#[inline(always)]
pub fn shares<const RESET: u8>(
    [beta, theta, gain]: [f32; 3],
    slope: f32,
    s_bar: f32,
    u_bar: f32,
    [x, u, s]: [f32; 3],
) -> Shares {
    let q = slope * s_bar;
    let delta = q + u_bar;
    let decayed = beta * delta;
    // What is left of u before the token, and the gradients in it, in theta, and in s through the reset.
    let (left, into_u, into_theta, into_s) = match RESET {
        SUBTRACT => (u, decayed, delta * s, -theta * delta),
        BEFORE => (u - theta * s, decayed, decayed * s, -theta * decayed),
        ZERO => (u * (1.0 - s), decayed * (1.0 - s), 0.0, -u * decayed),
        _ => (u, decayed, 0.0, 0.0),
    };
    Shares {
        x: gain * delta,
        beta: delta * left,
        theta: -(q + into_theta),
        gain: delta * x,
        u: into_u,
        s: into_s,
    }
}

/// A row: u and s from those `before`.
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
        u[j] = potential::<RESET>([beta[j], theta[j], gain[j]], x[j], u_before[j], s_before[j]);
        s[j] = spike(u[j], theta[j]);
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
    pub fn fill(&mut self, kept: &[f32], chunk: usize) {
        let (inputs, span, n) = (self.inputs, self.span, self.zeros.len());
        let constants = inputs.constants.part(span);
        self.first = chunk * CHUNK;
        if chunk == 0 {
            self.u[..n].copy_from_slice(inputs.state(inputs.u0, span));
            self.s[..n].copy_from_slice(inputs.state(inputs.s0, span));
        } else {
            let before = inputs.stored(kept, span, chunk);
            self.u[..n].copy_from_slice(before);
            for ((s, &u), &theta) in self.s[..n].iter_mut().zip(before).zip(constants.theta) {
                *s = spike(u, theta);
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

/// A row of surrogate derivatives.
#[inline(always)]
pub fn slopes<I: Isa>((surrogate, alpha): (Surrogate, f64), u: &[f32], theta: &[f32], slope: &mut [f32]) {
    let of = Slope::new(alpha);
    match surrogate {
        Surrogate::Atan => slopes_with::<I, ATAN>(of, u, theta, slope),
        Surrogate::FastSigmoid => slopes_with::<I, FAST_SIGMOID>(of, u, theta, slope),
        Surrogate::Sigmoid => slopes_with::<I, SIGMOID>(of, u, theta, slope),
        Surrogate::Triangle => slopes_with::<I, TRIANGLE>(of, u, theta, slope),
        Surrogate::Rectangle => slopes_with::<I, RECTANGLE>(of, u, theta, slope),
    }
}

#[inline(always)]
fn slopes_with<I: Isa, const SURROGATE: u8>(of: Slope, u: &[f32], theta: &[f32], slope: &mut [f32]) {
    let n = slope.len();
    let (u, theta) = (&u[..n], &theta[..n]);
    for j in 0..n {
        slope[j] = of.at::<I, SURROGATE>(u[j] - theta[j]);
    }
}

/// What a row takes in on the way back.
#[derive(Clone, Copy)]
pub struct Token<'a> {
    pub x: &'a [f32],
    /// gradient of the loss in the spikes
    pub s_bar: &'a [f32],
    pub slope: &'a [f32],
    /// u and s before it
    pub before: (&'a [f32], &'a [f32]),
}

/// A row of [`shares`]: `carry` are the gradients in u and s, on the way in those from the tokens after.
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
    match reset {
        Reset::Subtract => retreat_with::<SUBTRACT>(constants, token, u, s, b, h, g, x_bar),
        Reset::SubtractBeforeDecay => retreat_with::<BEFORE>(constants, token, u, s, b, h, g, x_bar),
        Reset::Zero => retreat_with::<ZERO>(constants, token, u, s, b, h, g, x_bar),
        Reset::Nothing => retreat_with::<NOTHING>(constants, token, u, s, b, h, g, x_bar),
    }
    if detach {
        s.fill(0.0);
    }
}

/// Every slice that is written is an argument by itself: only so does the compiler know that no two of them overlap.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn retreat_with<const RESET: u8>(
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
        let (before, s_bar) = ([x[j], u_before[j], s_before[j]], s_bar[j] + s_carry[j]);
        let share = shares::<RESET>([beta[j], theta[j], gain[j]], slope[j], s_bar, u_carry[j], before);
        x_bar[j] = share.x;
        beta_sum[j] += share.beta;
        theta_sum[j] += share.theta;
        gain_sum[j] += share.gain;
        u_carry[j] = share.u;
        s_carry[j] = share.s;
    }
}
