//! Both passes of one job of the plain scan: some neurons of one batch row, token by token.

use crate::isa::{prefetch, Isa, Job};
use crate::lif::neuron::{advance, retreat, slopes, Stretch, Token};
use crate::lif::problem::{Inputs, Span};
use crate::lif::run::Cotangents;
use crate::lif::{CHUNK, GROUP, TERMS};

/// Tokens between asking for a row and its use.
const AHEAD: usize = 2;
const ZEROS: [f32; GROUP] = [0.0; GROUP];

/// Forward pass of one job.
pub struct Forward<'a, 'b> {
    pub inputs: &'a Inputs<'a>,
    pub span: Span,
    /// One row for each token.
    pub spikes: Vec<&'b mut [f32]>,
    /// One row for each stretch but the first; none if the backward pass is not to come.
    pub kept: Vec<&'b mut [f32]>,
    /// One row.
    pub last: &'b mut [f32],
}

impl Job for Forward<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let (inputs, span) = (self.inputs, self.span);
        let (n, constants) = (span.count, inputs.constants.part(span));
        let mut states = [ZEROS; 2];
        for t in 0..self.spikes.len() {
            let (done, rest) = self.spikes.split_at_mut(t);
            let [a, b] = &mut states;
            let (old, new) = if t % 2 == 0 { (a, b) } else { (b, a) };
            let before: (&[f32], &[f32]) = if inputs.is_start(span.batch, t) {
                (&ZEROS[..n], &ZEROS[..n])
            } else if t == 0 {
                (inputs.state(inputs.u0, span), inputs.state(inputs.s0, span))
            } else {
                (&old[..n], &*done[t - 1])
            };
            if t > 0 && t % CHUNK == 0 && !self.kept.is_empty() {
                self.kept[t / CHUNK - 1].copy_from_slice(&old[..n]);
            }
            advance(inputs.reset, constants, inputs.row(inputs.x, span, t), before, &mut new[..n], rest[0]);
        }
        self.last.copy_from_slice(&states[self.spikes.len() % 2][..n]);
    }
}

/// Backward pass of one job, from the last token to the first.
pub struct Backward<'a, 'b> {
    pub inputs: &'a Inputs<'a>,
    pub span: Span,
    pub bars: Cotangents<'a>,
    /// One row for each token.
    pub x_bar: Vec<&'b mut [f32]>,
    /// One row each.
    pub u0_bar: &'b mut [f32],
    pub s0_bar: &'b mut [f32],
    /// One row each for beta, theta and gain.
    pub sums: Vec<&'b mut [f64]>,
}

impl Job for Backward<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let (inputs, bars, span) = (self.inputs, self.bars, self.span);
        let (n, constants) = (span.count, inputs.constants.part(span));
        let (mut u, mut s) = ([0f32; (CHUNK + 1) * GROUP], [0f32; (CHUNK + 1) * GROUP]);
        let (mut slope, mut s_carry, mut sums) = (ZEROS, ZEROS, [ZEROS; 3]);
        let u_carry = &mut *self.u0_bar;
        u_carry.copy_from_slice(inputs.state(bars.last_bar, span));
        let (u, s) = (&mut u[..(CHUNK + 1) * n], &mut s[..(CHUNK + 1) * n]);
        let mut stretch = Stretch { inputs, span, zeros: &ZEROS[..n], u, s, first: 0 };
        for chunk in (0..inputs.shape.tokens.div_ceil(CHUNK)).rev() {
            stretch.fill(bars.kept, chunk);
            for t in (chunk * CHUNK..inputs.shape.tokens.min((chunk + 1) * CHUNK)).rev() {
                // Tokens are met backwards, which the processor does not foresee: those soon needed are asked for.
                if t >= AHEAD {
                    prefetch(inputs.row(bars.s_bar, span, t - AHEAD));
                    prefetch(self.x_bar[t - AHEAD]);
                }
                if t >= CHUNK {
                    prefetch(inputs.row(inputs.x, span, t - CHUNK));
                }
                let slope = &mut slope[..n];
                slopes::<I>(bars.surrogate, stretch.at(t), constants.theta, slope);
                let token = Token {
                    x: inputs.row(inputs.x, span, t),
                    s_bar: inputs.row(bars.s_bar, span, t),
                    slope,
                    before: stretch.before(t),
                };
                let [b, h, g] = &mut sums;
                let carry = (&mut *u_carry, &mut s_carry[..n]);
                let x_bar = &mut *self.x_bar[t];
                retreat(inputs.reset, bars.detach, constants, token, carry, [b, h, g], x_bar);
                if inputs.is_start(span.batch, t) {
                    u_carry.fill(0.0);
                    s_carry.fill(0.0);
                }
            }
            if chunk % TERMS == 0 {
                for (whole, part) in self.sums.iter_mut().zip(&mut sums) {
                    flush(part, whole);
                }
            }
        }
        self.s0_bar.copy_from_slice(&s_carry[..n]);
    }
}

/// whole += part, part = 0
#[inline(always)]
pub fn flush(part: &mut [f32], whole: &mut [f64]) {
    for (y, x) in whole.iter_mut().zip(part) {
        *y += f64::from(*x);
        *x = 0.0;
    }
}
