//! Some neurons of one batch row through a stretch of the backward pass: forward to find u again, and back. All that
//! they need is gathered here, so that it stays in registers.

use crate::isa::Isa;
use crate::lif::neuron::*;
use crate::lif::problem::{Inputs, Reset, Surrogate};
use crate::lif::run::Cotangents;
use crate::lif::CHUNK;

pub const LANES: usize = 16;
pub type Lanes = [f32; LANES];

const NONE: Lanes = [0.0; LANES];

pub struct Patch {
    reset: Reset,
    surrogate: Surrogate,
    slope: Slope,
    detach: bool,
    pub beta: Lanes,
    pub theta: Lanes,
    pub gain: Lanes,
    /// How many tokens there are, and before which of them u and s are 0.
    pub tokens: usize,
    pub fresh: [bool; CHUNK],
    pub x: [Lanes; CHUNK],
    /// Before: gradient in the spikes; after: in x.
    pub bar: [Lanes; CHUNK],
    /// u and s before the first token.
    pub u: Lanes,
    pub s: Lanes,
    /// Before: gradients in u and s of the last token from those after it; after: in those before the first token.
    pub u_bar: Lanes,
    pub s_bar: Lanes,
    /// Gradients in beta, theta and gain are added here.
    pub sums: [Lanes; 3],
}

impl Patch {
    pub fn new(inputs: &Inputs<'_>, bars: Cotangents<'_>) -> Patch {
        Patch {
            reset: inputs.reset,
            surrogate: bars.surrogate.0,
            slope: Slope::new(bars.surrogate.1),
            detach: bars.detach,
            beta: NONE,
            theta: NONE,
            gain: NONE,
            tokens: 0,
            fresh: [false; CHUNK],
            x: [NONE; CHUNK],
            bar: [NONE; CHUNK],
            u: NONE,
            s: NONE,
            u_bar: NONE,
            s_bar: NONE,
            sums: [NONE; 3],
        }
    }

    #[inline(always)]
    pub fn back<I: Isa>(&mut self) {
        match self.reset {
            Reset::Subtract => self.back_from::<I, SUBTRACT>(),
            Reset::SubtractBeforeDecay => self.back_from::<I, BEFORE>(),
            Reset::Zero => self.back_from::<I, ZERO>(),
            Reset::Nothing => self.back_from::<I, NOTHING>(),
        }
    }

    #[inline(always)]
    fn back_from<I: Isa, const RESET: u8>(&mut self) {
        match self.surrogate {
            Surrogate::Atan => self.back_with::<I, RESET, ATAN>(),
            Surrogate::FastSigmoid => self.back_with::<I, RESET, FAST_SIGMOID>(),
            Surrogate::Sigmoid => self.back_with::<I, RESET, SIGMOID>(),
            Surrogate::Triangle => self.back_with::<I, RESET, TRIANGLE>(),
            Surrogate::Rectangle => self.back_with::<I, RESET, RECTANGLE>(),
        }
    }

    #[inline(always)]
    fn back_with<I: Isa, const RESET: u8, const SURROGATE: u8>(&mut self) {
        // Copies: what is behind a reference would go to memory and back at every token.
        let (beta, theta, gain, tokens) = (self.beta, self.theta, self.gain, self.tokens.min(CHUNK));
        let (slope, detach, fresh) = (self.slope, self.detach, self.fresh);
        let (mut u, mut s) = (self.u, self.s);
        let (mut us, mut ss, mut slopes) = ([NONE; CHUNK], [NONE; CHUNK], [NONE; CHUNK]);
        for i in 0..tokens {
            if fresh[i] {
                (u, s) = (NONE, NONE);
            }
            (us[i], ss[i]) = (u, s);
            let (x, at) = (&self.x[i], &mut slopes[i]);
            for l in 0..LANES {
                u[l] = potential::<RESET>([beta[l], theta[l], gain[l]], x[l], u[l], s[l]);
                s[l] = spike(u[l], theta[l]);
                at[l] = slope.at::<I, SURROGATE>(u[l] - theta[l]);
            }
        }
        let (mut u_bar, mut s_bar) = (self.u_bar, self.s_bar);
        let [mut beta_sum, mut theta_sum, mut gain_sum] = self.sums;
        for i in (0..tokens).rev() {
            let (x, bar) = (&self.x[i], &mut self.bar[i]);
            for l in 0..LANES {
                let before = [x[l], us[i][l], ss[i][l]];
                let constants = [beta[l], theta[l], gain[l]];
                let share = shares::<RESET>(constants, slopes[i][l], bar[l] + s_bar[l], u_bar[l], before);
                bar[l] = share.x;
                beta_sum[l] += share.beta;
                theta_sum[l] += share.theta;
                gain_sum[l] += share.gain;
                u_bar[l] = share.u;
                s_bar[l] = if detach { 0.0 } else { share.s };
            }
            if fresh[i] {
                (u_bar, s_bar) = (NONE, NONE);
            }
        }
        (self.u_bar, self.s_bar, self.sums) = (u_bar, s_bar, [beta_sum, theta_sum, gain_sum]);
    }
}
