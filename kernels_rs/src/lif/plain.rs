//! Both passes of one job of the plain scan: some neurons of one batch row, token by token.

use crate::isa::{Isa, Job};
use crate::lif::neuron::{advance, retreat, slopes, Stretch, Token};
use crate::lif::problem::{Inputs, Span};
use crate::lif::run::Cotangents;
use crate::lif::{CHUNK, GROUP, TERMS};

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
        let (inputs, span, bars) = (self.inputs, self.span, self.bars);
        let (n, constants) = (span.count, inputs.constants.part(span));
        let tokens = inputs.shape.tokens;
        let (mut u, mut s) = ([0f32; (CHUNK + 1) * GROUP], [0f32; (CHUNK + 1) * GROUP]);
        let mut stretch = Stretch { inputs, span, zeros: &ZEROS[..n], u: &mut u, s: &mut s, first: 0 };
        let (mut slope, mut sums) = (ZEROS, [ZEROS; 3]);
        self.u0_bar.copy_from_slice(inputs.state(bars.last_bar, span));
        self.s0_bar.fill(0.0);
        for chunk in (0..tokens.div_ceil(CHUNK)).rev() {
            stretch.fill(constants, bars.kept, chunk);
            for t in (chunk * CHUNK..tokens.min((chunk + 1) * CHUNK)).rev() {
                slopes::<I>(bars.surrogate, stretch.at(t), constants.theta, &mut slope[..n]);
                let token = Token {
                    x: inputs.row(inputs.x, span, t),
                    s_bar: inputs.row(bars.s_bar, span, t),
                    slope: &slope[..n],
                    before: stretch.before(t),
                };
                let carry = (&mut *self.u0_bar, &mut *self.s0_bar);
                let sums = sums.each_mut().map(|sum| &mut sum[..n]);
                retreat(inputs.reset, bars.detach, constants, token, carry, sums, self.x_bar[t]);
                if inputs.is_start(span.batch, t) {
                    self.u0_bar.fill(0.0);
                    self.s0_bar.fill(0.0);
                }
            }
            if chunk % TERMS == 0 {
                for (whole, part) in self.sums.iter_mut().zip(&mut sums) {
                    flush(part, whole);
                }
            }
        }
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
