//! Both passes of one job of the plain scan: some neurons of one batch row, token by token.

use crate::isa::{Isa, Job};
use crate::lif::neuron::advance;
use crate::lif::patch::{lanes, Carry, Patch};
use crate::lif::problem::{Inputs, Span};
use crate::lif::run::Cotangents;
use crate::lif::{CHUNK, GROUP, TERMS};

/// Neurons that are taken back together.
const LANES: usize = 16;
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
        let n = self.span.count;
        let (mut s_carry, mut sums) = (ZEROS, [ZEROS; 3]);
        let (mut many, mut one) = (Patch::<LANES>::new(), Patch::<1>::new());
        self.u0_bar.copy_from_slice(self.inputs.state(self.bars.last_bar, self.span));
        for chunk in (0..self.inputs.shape.tokens.div_ceil(CHUNK)).rev() {
            for j in (0..n - n % LANES).step_by(LANES) {
                self.patch::<I, LANES>(&mut many, chunk, j, &mut s_carry, &mut sums);
            }
            for j in n - n % LANES..n {
                self.patch::<I, 1>(&mut one, chunk, j, &mut s_carry, &mut sums);
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

impl Backward<'_, '_> {
    /// `L` neurons, from number `j` of the span on, over one stretch.
    #[inline(always)]
    fn patch<I: Isa, const L: usize>(
        &mut self,
        patch: &mut Patch<L>,
        chunk: usize,
        j: usize,
        s_carry: &mut [f32],
        sums: &mut [[f32; GROUP]; 3],
    ) {
        let span = Span { first: self.span.first + j, count: L, ..self.span };
        let [b, h, g] = sums;
        let parts =
            [&mut self.u0_bar[j..j + L], &mut s_carry[j..j + L], &mut b[j..j + L], &mut h[j..j + L], &mut g[j..j + L]];
        let mut carry = Carry { u: lanes(parts[0]), s: lanes(parts[1]), sums: [2, 3, 4].map(|i| lanes(parts[i])) };
        patch.run::<I>(self.inputs, self.bars, span, chunk, &mut carry, (&mut self.x_bar, j));
        let [x, y, z] = carry.sums;
        for (part, values) in parts.into_iter().zip([carry.u, carry.s, x, y, z]) {
            part.copy_from_slice(&values);
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
