//! The recurrent map itself: which of its rows spikes pick, its transpose, and its gradient.

use crate::isa::{Isa, Job, Level};
use crate::lif::problem::{Inputs, Shape};
use crate::threads::{for_each, zeros};

/// Rows of the gradient that a job makes.
const BLOCK: usize = 64;
/// Rows of a strip of the transpose.
const STRIP: usize = 16;

/// Appends the positions of the spikes, in order.
#[inline(always)]
pub fn active(s: &[f32], found: &mut Vec<u32>) {
    let (groups, rest) = s.as_chunks::<16>();
    for (i, group) in groups.iter().enumerate() {
        let mut bits = 0u32;
        for (l, &x) in group.iter().enumerate() {
            bits |= u32::from(x != 0.0) << l;
        }
        while bits != 0 {
            found.push(16 * i as u32 + bits.trailing_zeros());
            bits &= bits - 1;
        }
    }
    for (i, _) in rest.iter().enumerate().filter(|(_, &x)| x != 0.0) {
        found.push((16 * groups.len() + i) as u32);
    }
}

/// The transpose of a square matrix.
pub fn transposed(x: &[f32], width: usize, threads: usize) -> Result<Vec<f32>, String> {
    let mut y = zeros(&[width, width])?;
    let jobs: Vec<_> = y.chunks_mut(STRIP * width).enumerate().collect();
    for_each(threads, jobs, |(strip, out)| {
        let count = out.len() / width;
        for (j, row) in x.chunks_exact(width).enumerate() {
            for (i, &value) in row[strip * STRIP..][..count].iter().enumerate() {
                out[i * width + j] = value;
            }
        }
    })?;
    Ok(y)
}

/// The spikes that the tokens of a batch row hear, one list after another.
#[derive(Default)]
struct Events {
    /// Where the list of each token ends.
    ends: Vec<usize>,
    neurons: Vec<u32>,
}

struct List<'a, 'b> {
    inputs: &'a Inputs<'a>,
    spikes: &'a [f32],
    batch: usize,
    events: &'b mut Events,
}

impl Job for List<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let span = self.inputs.whole(self.batch);
        for t in 0..self.inputs.shape.tokens {
            if !self.inputs.is_start(self.batch, t) {
                let heard = if t == 0 {
                    self.inputs.state(self.inputs.s0, span)
                } else {
                    self.inputs.row(self.spikes, span, t - 1)
                };
                active(heard, &mut self.events.neurons);
            }
            self.events.ends.push(self.events.neurons.len());
        }
    }
}

struct Gradient<'a, 'b> {
    inputs: &'a Inputs<'a>,
    events: &'a [Events],
    x_bar: &'a [f32],
    /// The first row, and the rows of the result.
    first: usize,
    out: &'b mut [f32],
    /// (width, `BLOCK`)
    sums: &'b mut [f32],
}

/// Sum over tokens of the gradient in I_t times s_{t-1}: each spike adds a row to the transpose.
pub fn gradient(
    inputs: &Inputs<'_>,
    spikes: &[f32],
    x_bar: &[f32],
    out: &mut [f32],
    threads: usize,
    level: Level,
) -> Result<(), String> {
    let Shape { batch, width, .. } = inputs.shape;
    let mut events: Vec<_> = (0..batch).map(|_| Events::default()).collect();
    let lists = events.iter_mut().enumerate().map(|(batch, events)| List { inputs, spikes, batch, events }).collect();
    for_each(threads, lists, |job| level.run(job))?;
    let mut sums = zeros(&[width.div_ceil(BLOCK), width, BLOCK])?;
    let mut jobs = Vec::with_capacity(width.div_ceil(BLOCK));
    let blocks = out.chunks_mut(BLOCK * width).zip(sums.chunks_exact_mut(width * BLOCK));
    for (i, (out, sums)) in blocks.enumerate() {
        jobs.push(Gradient { inputs, events: &events, x_bar, first: i * BLOCK, out, sums });
    }
    for_each(threads, jobs, |job| level.run(job))
}

impl Job for Gradient<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Shape { tokens, width, .. } = self.inputs.shape;
        let count = self.out.len() / width;
        let (sums, _) = self.sums.as_chunks_mut::<BLOCK>();
        for (batch, events) in self.events.iter().enumerate() {
            let span = self.inputs.whole(batch);
            let mut begin = 0;
            for (t, &end) in events.ends.iter().enumerate() {
                let mut row = [0f32; BLOCK];
                row[..count].copy_from_slice(&self.inputs.row(self.x_bar, span, t)[self.first..][..count]);
                // Before the first token s may be any number; later a spike is 1.
                let weights = (t == 0).then(|| self.inputs.state(self.inputs.s0, span));
                for &j in &events.neurons[begin..end] {
                    let (sum, weight) = (&mut sums[j as usize], weights.map_or(1.0, |s| s[j as usize]));
                    for l in 0..BLOCK {
                        sum[l] = I::fma(weight, row[l], sum[l]);
                    }
                }
                begin = end;
            }
            debug_assert_eq!(events.ends.len(), tokens);
        }
        for (i, row) in self.out.chunks_exact_mut(width).enumerate() {
            for (y, sum) in row.iter_mut().zip(sums.iter()) {
                *y = sum[i];
            }
        }
    }
}
