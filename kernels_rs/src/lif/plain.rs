//! Both passes of one job of the plain scan: some neurons of one batch row, token by token.

use crate::isa::{prefetch, Isa, Job};
use crate::lif::neuron::{advance, spike};
use crate::lif::patch::{Lanes, Patch, LANES};
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
        let (inputs, span, n) = (self.inputs, self.span, self.span.count);
        let mut sums = [ZEROS; 3];
        let mut patch = Patch::new(inputs, self.bars);
        self.u0_bar.copy_from_slice(inputs.state(self.bars.last_bar, span));
        self.s0_bar.fill(0.0);
        for chunk in (0..inputs.shape.tokens.div_ceil(CHUNK)).rev() {
            for column in (0..n).step_by(LANES) {
                self.ask_for(chunk, column);
                self.take(chunk, column, &sums, &mut patch);
                patch.back::<I>();
                self.give(chunk, column, &mut sums, &patch);
            }
            if chunk % TERMS == 0 {
                for (whole, part) in self.sums.iter_mut().zip(&mut sums) {
                    flush(part, whole);
                }
            }
        }
    }
}

impl Backward<'_, '_> {
    fn part(&self, column: usize) -> Span {
        let count = LANES.min(self.span.count - column);
        Span { batch: self.span.batch, first: self.span.first + column, count }
    }

    /// What the stretch before this one will need: it is met backwards, which the processor does not foresee.
    #[inline(always)]
    fn ask_for(&self, chunk: usize, column: usize) {
        let part = self.part(column);
        for t in chunk.saturating_sub(1) * CHUNK..chunk * CHUNK {
            prefetch(self.inputs.row(self.inputs.x, part, t));
            prefetch(self.inputs.row(self.bars.s_bar, part, t));
            prefetch(&self.x_bar[t][column..column + part.count]);
        }
        if chunk > 1 {
            prefetch(self.inputs.stored(self.bars.kept, part, chunk - 1));
        }
    }

    #[inline(always)]
    fn take(&self, chunk: usize, column: usize, sums: &[[f32; GROUP]; 3], patch: &mut Patch) {
        let (inputs, part, bars) = (self.inputs, self.part(column), self.bars);
        let (first, here) = (chunk * CHUNK, column..column + part.count);
        patch.tokens = CHUNK.min(inputs.shape.tokens - first);
        for i in 0..patch.tokens {
            patch.fresh[i] = inputs.is_start(part.batch, first + i);
            load(inputs.row(inputs.x, part, first + i), &mut patch.x[i]);
            load(inputs.row(bars.s_bar, part, first + i), &mut patch.bar[i]);
        }
        let constants = inputs.constants.part(part);
        load(constants.beta, &mut patch.beta);
        load(constants.theta, &mut patch.theta);
        load(constants.gain, &mut patch.gain);
        if chunk == 0 {
            load(inputs.state(inputs.u0, part), &mut patch.u);
            load(inputs.state(inputs.s0, part), &mut patch.s);
        } else {
            load(inputs.stored(bars.kept, part, chunk), &mut patch.u);
            for l in 0..LANES {
                patch.s[l] = spike(patch.u[l], patch.theta[l]);
            }
        }
        load(&self.u0_bar[here.clone()], &mut patch.u_bar);
        load(&self.s0_bar[here.clone()], &mut patch.s_bar);
        for (row, sum) in sums.iter().zip(&mut patch.sums) {
            load(&row[here.clone()], sum);
        }
    }

    #[inline(always)]
    fn give(&mut self, chunk: usize, column: usize, sums: &mut [[f32; GROUP]; 3], patch: &Patch) {
        let here = column..column + self.part(column).count;
        for (bar, row) in patch.bar[..patch.tokens].iter().zip(&mut self.x_bar[chunk * CHUNK..]) {
            store(bar, &mut row[here.clone()]);
        }
        store(&patch.u_bar, &mut self.u0_bar[here.clone()]);
        store(&patch.s_bar, &mut self.s0_bar[here.clone()]);
        for (row, sum) in sums.iter_mut().zip(&patch.sums) {
            store(sum, &mut row[here.clone()]);
        }
    }
}

/// Some numbers into lanes; what is in those beyond does not matter.
#[inline(always)]
fn load(x: &[f32], lanes: &mut Lanes) {
    match x.first_chunk() {
        Some(whole) => *lanes = *whole,
        None => lanes[..x.len()].copy_from_slice(x),
    }
}

#[inline(always)]
fn store(lanes: &Lanes, y: &mut [f32]) {
    match y.first_chunk_mut() {
        Some(whole) => *whole = *lanes,
        None => y.copy_from_slice(&lanes[..y.len()]),
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
