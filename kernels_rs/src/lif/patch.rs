//! Some neurons over one stretch, on the way back: few enough that their state stays in registers, so that beside them
//! only x, the gradients that come and those that go pass through memory.

use std::ops::Range;

use crate::isa::Isa;
use crate::lif::neuron::{potential, shares, spike, Slope};
use crate::lif::neuron::{ATAN, BEFORE, FAST_SIGMOID, NOTHING, RECTANGLE, SIGMOID, SUBTRACT, TRIANGLE, ZERO};
use crate::lif::problem::{Inputs, Reset, Span, Surrogate};
use crate::lif::run::Cotangents;
use crate::lif::CHUNK;

type Lanes<const L: usize> = [f32; L];
/// beta, theta and gain
type Constants<const L: usize> = [Lanes<L>; 3];

/// What goes from a stretch to the one before it.
#[derive(Clone, Copy)]
pub struct Carry<const L: usize> {
    /// gradients in u and s
    pub u: Lanes<L>,
    pub s: Lanes<L>,
    /// of beta, theta and gain
    pub sums: [Lanes<L>; 3],
}

/// Room for `L` neurons; kept over many calls, since to make it is dearer than to fill it.
#[repr(align(64))]
pub struct Patch<const L: usize> {
    /// u and s before each token
    u: [Lanes<L>; CHUNK],
    s: [Lanes<L>; CHUNK],
    /// u - theta at each token, then the surrogate derivatives there
    slope: [Lanes<L>; CHUNK],
}

/// The first numbers of a row.
#[inline(always)]
pub fn lanes<const L: usize>(row: &[f32]) -> Lanes<L> {
    let mut y = [0.0; L];
    y.copy_from_slice(&row[..L]);
    y
}

impl<const L: usize> Patch<L> {
    pub fn new() -> Patch<L> {
        Patch { u: [[0.0; L]; CHUNK], s: [[0.0; L]; CHUNK], slope: [[0.0; L]; CHUNK] }
    }

    /// The backward pass of stretch `chunk` of the neurons of `span`, which are `x_bar[..][at..at + L]`.
    #[inline(always)]
    pub fn run<I: Isa>(
        &mut self,
        inputs: &Inputs<'_>,
        bars: Cotangents<'_>,
        span: Span,
        chunk: usize,
        carry: &mut Carry<L>,
        (x_bar, at): (&mut [&mut [f32]], usize),
    ) {
        let of = inputs.constants.part(span);
        let constants = [lanes(of.beta), lanes(of.theta), lanes(of.gain)];
        let tokens = chunk * CHUNK..inputs.shape.tokens.min((chunk + 1) * CHUNK);
        let before = if chunk == 0 {
            (lanes(inputs.state(inputs.u0, span)), lanes(inputs.state(inputs.s0, span)))
        } else {
            let u: Lanes<L> = lanes(inputs.stored(bars.kept, span, chunk));
            let mut s = [0.0; L];
            for i in 0..L {
                s[i] = spike(u[i], constants[1][i]);
            }
            (u, s)
        };
        match inputs.reset {
            Reset::Subtract => self.advance::<SUBTRACT>(inputs, span, tokens.clone(), constants, before),
            Reset::SubtractBeforeDecay => self.advance::<BEFORE>(inputs, span, tokens.clone(), constants, before),
            Reset::Zero => self.advance::<ZERO>(inputs, span, tokens.clone(), constants, before),
            Reset::Nothing => self.advance::<NOTHING>(inputs, span, tokens.clone(), constants, before),
        }
        let of = Slope::new(bars.surrogate.1);
        match bars.surrogate.0 {
            Surrogate::Atan => self.slopes::<I, ATAN>(of),
            Surrogate::FastSigmoid => self.slopes::<I, FAST_SIGMOID>(of),
            Surrogate::Sigmoid => self.slopes::<I, SIGMOID>(of),
            Surrogate::Triangle => self.slopes::<I, TRIANGLE>(of),
            Surrogate::Rectangle => self.slopes::<I, RECTANGLE>(of),
        }
        let x_bar = (&mut x_bar[tokens.clone()], at);
        match inputs.reset {
            Reset::Subtract => self.retreat::<SUBTRACT>(inputs, bars, span, tokens, constants, carry, x_bar),
            Reset::SubtractBeforeDecay => self.retreat::<BEFORE>(inputs, bars, span, tokens, constants, carry, x_bar),
            Reset::Zero => self.retreat::<ZERO>(inputs, bars, span, tokens, constants, carry, x_bar),
            Reset::Nothing => self.retreat::<NOTHING>(inputs, bars, span, tokens, constants, carry, x_bar),
        }
    }

    /// Compute the stretch again, from u and s before it.
    #[inline(always)]
    fn advance<const RESET: u8>(
        &mut self,
        inputs: &Inputs<'_>,
        span: Span,
        tokens: Range<usize>,
        [beta, theta, gain]: Constants<L>,
        (mut u, mut s): (Lanes<L>, Lanes<L>),
    ) {
        for (k, t) in tokens.enumerate() {
            if inputs.is_start(span.batch, t) {
                (u, s) = ([0.0; L], [0.0; L]);
            }
            (self.u[k], self.s[k]) = (u, s);
            let x: Lanes<L> = lanes(inputs.row(inputs.x, span, t));
            for i in 0..L {
                u[i] = potential::<RESET>([beta[i], theta[i], gain[i]], x[i], u[i], s[i]);
                s[i] = spike(u[i], theta[i]);
                self.slope[k][i] = u[i] - theta[i];
            }
        }
    }

    /// One loop over all tokens and neurons: of two nested ones the compiler takes the wrong one for its lanes.
    #[inline(always)]
    fn slopes<I: Isa, const SURROGATE: u8>(&mut self, of: Slope) {
        for x in self.slope.as_flattened_mut() {
            *x = of.at::<I, SURROGATE>(*x);
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn retreat<const RESET: u8>(
        &self,
        inputs: &Inputs<'_>,
        bars: Cotangents<'_>,
        span: Span,
        tokens: Range<usize>,
        [beta, theta, gain]: Constants<L>,
        carry: &mut Carry<L>,
        (x_bar, at): (&mut [&mut [f32]], usize),
    ) {
        let Carry { u: mut u_carry, s: mut s_carry, sums: [mut b, mut h, mut g] } = *carry;
        for (k, t) in tokens.enumerate().rev() {
            let x: Lanes<L> = lanes(inputs.row(inputs.x, span, t));
            let s_bar: Lanes<L> = lanes(inputs.row(bars.s_bar, span, t));
            let (u, s, slope) = (self.u[k], self.s[k], self.slope[k]);
            let mut out = [0.0; L];
            for i in 0..L {
                let (before, s_bar) = ([x[i], u[i], s[i]], s_bar[i] + s_carry[i]);
                let share = shares::<RESET>([beta[i], theta[i], gain[i]], slope[i], s_bar, u_carry[i], before);
                out[i] = share.x;
                b[i] += share.beta;
                h[i] += share.theta;
                g[i] += share.gain;
                u_carry[i] = share.u;
                s_carry[i] = if bars.detach { 0.0 } else { share.s };
            }
            x_bar[k][at..at + L].copy_from_slice(&out);
            if inputs.is_start(span.batch, t) {
                (u_carry, s_carry) = ([0.0; L], [0.0; L]);
            }
        }
        *carry = Carry { u: u_carry, s: s_carry, sums: [b, h, g] };
    }
}
