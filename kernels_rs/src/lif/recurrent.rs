//! Both passes of the recurrent scan. A job takes some batch rows through all tokens: no thread waits for another.
//!
//! Forward, the few neurons that spike add their rows of the transposed map, one after the other. Backward the
//! gradient is dense: one product with the map per token for all rows of the job.

use crate::gemm::Matrices;
use crate::isa::{Isa, Job, Level};
use crate::lif::neuron::{advance, retreat, slopes, Stretch, Token};
use crate::lif::plain::flush;
use crate::lif::problem::{Inputs, Shape, Weights};
use crate::lif::run::{useful_threads, Cotangents, Outputs};
use crate::lif::weights::{active, transposed};
use crate::lif::{CHUNK, TERMS};
use crate::threads::{for_each, zeros};

/// Columns of a sum that are kept in registers.
const BLOCK: usize = 64;
/// Columns of a panel of the map.
const PANEL: usize = 32;
/// Rows of a product must be a multiple of this.
const ROWS: usize = 8;
/// With fewer tokens in all it does not pay to transpose the map.
const WORTH_TRANSPOSING: usize = 8;
/// Fewer additions of a row than this are not worth a second thread.
const WORTH_THREADS: usize = 256;

/// The map as the forward pass reads it.
#[derive(Clone, Copy)]
enum Map<'a> {
    /// Row j: what neuron j says to each.
    Says(&'a [f32]),
    /// Row i: what neuron i hears.
    Hears(&'a [f32]),
}

struct Forward<'a, 'b> {
    inputs: &'a Inputs<'a>,
    map: Map<'a>,
    batch: usize,
    spikes: &'b mut [f32],
    last: &'b mut [f32],
    kept: &'b mut [f32],
    currents: &'b mut [f32],
    /// Three rows.
    scratch: &'b mut [f32],
}

pub fn forward(inputs: &Inputs<'_>, x: Outputs<'_>, threads: usize, level: Level) -> Result<(), String> {
    let Shape { batch, tokens, width } = inputs.shape;
    let Some(Weights { values, transposed: turned }) = inputs.weights else {
        return Err("the recurrent scan needs weights".to_string());
    };
    let turned_here;
    let map = if turned {
        Map::Says(values)
    } else if batch * tokens < WORTH_TRANSPOSING {
        Map::Hears(values)
    } else {
        turned_here = transposed(values, width, useful_threads(threads, inputs.shape))?;
        Map::Says(&turned_here)
    };
    let mut scratch = zeros(&[batch, 3, width])?;
    let mut scratches = scratch.chunks_exact_mut(3 * width);
    let mut kept = x.kept.chunks_exact_mut((inputs.shape.kept() * width).max(1));
    let mut currents = x.currents.chunks_exact_mut(tokens * width);
    let rows = x.spikes.chunks_exact_mut(tokens * width).zip(x.last.chunks_exact_mut(width));
    let mut jobs = Vec::with_capacity(batch);
    for (batch, (spikes, last)) in rows.enumerate() {
        let kept = kept.next().unwrap_or_default();
        let currents = currents.next().unwrap_or_default();
        let scratch = scratches.next().unwrap_or_default();
        jobs.push(Forward { inputs, map, batch, spikes, last, kept, currents, scratch });
    }
    let threads = if batch * tokens < WORTH_THREADS { useful_threads(threads, inputs.shape) } else { threads };
    for_each(threads, jobs, |job| level.run(job))
}

impl Job for Forward<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let (inputs, span) = (self.inputs, self.inputs.whole(self.batch));
        let n = span.count;
        let (state, current) = self.scratch.split_at_mut(2 * n);
        let (mut old, mut new) = state.split_at_mut(n);
        let zero = vec![0f32; n];
        let mut heard = Vec::with_capacity(n);
        for t in 0..inputs.shape.tokens {
            let (done, rest) = self.spikes.split_at_mut(t * n);
            let before: (&[f32], &[f32]) = if inputs.is_start(self.batch, t) {
                (&zero, &zero)
            } else if t == 0 {
                (inputs.state(inputs.u0, span), inputs.state(inputs.s0, span))
            } else {
                (&*old, &done[(t - 1) * n..])
            };
            heard.clear();
            active(before.1, &mut heard);
            match self.map {
                Map::Says(map) => add_rows::<I>(before.1, &heard, map, inputs.row(inputs.x, span, t), current),
                Map::Hears(map) => gather::<I>(before.1, &heard, map, inputs.row(inputs.x, span, t), current),
            }
            if t > 0 && t % CHUNK == 0 && !self.kept.is_empty() {
                self.kept[(t / CHUNK - 1) * n..][..n].copy_from_slice(old);
            }
            if !self.currents.is_empty() {
                self.currents[t * n..][..n].copy_from_slice(current);
            }
            advance(inputs.reset, inputs.constants, current, before, new, &mut rest[..n]);
            std::mem::swap(&mut old, &mut new);
        }
        self.last.copy_from_slice(old);
    }
}

/// out = x + the sum of the rows of `map` that `heard` names, times s, in that order.
#[inline(always)]
fn add_rows<I: Isa>(s: &[f32], heard: &[u32], map: &[f32], x: &[f32], out: &mut [f32]) {
    let n = x.len();
    let mut first = 0;
    while first + BLOCK <= n {
        let mut sum = [0f32; BLOCK];
        for &j in heard {
            let j = j as usize;
            let (weight, row) = (s[j], &map[j * n + first..][..BLOCK]);
            for l in 0..BLOCK {
                sum[l] = I::fma(weight, row[l], sum[l]);
            }
        }
        let (x, out) = (&x[first..][..BLOCK], &mut out[first..][..BLOCK]);
        for l in 0..BLOCK {
            out[l] = x[l] + sum[l];
        }
        first += BLOCK;
    }
    let rest = &mut out[first..n];
    rest.fill(0.0);
    for &j in heard {
        let weight = s[j as usize];
        for (sum, &w) in rest.iter_mut().zip(&map[j as usize * n + first..(j as usize + 1) * n]) {
            *sum = I::fma(weight, w, *sum);
        }
    }
    for (sum, x) in rest.iter_mut().zip(&x[first..]) {
        *sum += x;
    }
}

/// The same from the map stored the other way round.
#[inline(always)]
fn gather<I: Isa>(s: &[f32], heard: &[u32], map: &[f32], x: &[f32], out: &mut [f32]) {
    for ((out, x), row) in out.iter_mut().zip(x).zip(map.chunks_exact(x.len())) {
        let mut sum = 0f32;
        for &j in heard {
            sum = I::fma(s[j as usize], row[j as usize], sum);
        }
        *out = x + sum;
    }
}

struct Backward<'a, 'b> {
    inputs: &'a Inputs<'a>,
    bars: Cotangents<'a>,
    /// The map in panels of `PANEL` columns, zeros beyond the last.
    panels: &'a [f32],
    level: Level,
    /// The first batch row.
    batch: usize,
    x_bar: &'b mut [f32],
    u0_bar: &'b mut [f32],
    s0_bar: &'b mut [f32],
    sums: &'b mut [f64],
    scratch: &'b mut [f32],
}

/// Numbers of scratch memory of a job of `rows` batch rows.
fn scratch(rows: usize, width: usize) -> usize {
    let padded = rows.next_multiple_of(ROWS);
    // The stretches of all rows, their sums, a row of slopes, the gradients in I, and those that it gives in s.
    rows * (2 * (CHUNK + 1) + 3) * width + width + padded * (width + width.next_multiple_of(PANEL))
}

/// The gradients of x, u0 and s0, and (batch, 3, width) the sums of those of beta, theta and gain.
pub fn backward(
    inputs: &Inputs<'_>,
    weights: Weights<'_>,
    bars: Cotangents<'_>,
    (x_bar, u0_bar, s0_bar): (&mut [f32], &mut [f32], &mut [f32]),
    sums: &mut [f64],
    threads: usize,
    level: Level,
) -> Result<(), String> {
    let Shape { batch, tokens, width } = inputs.shape;
    let cores = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    // A product is the same to the last bit however many rows are taken together.
    let rows = batch.div_ceil(cores.max(1)).next_multiple_of(ROWS).min(4 * ROWS).min(batch);
    let panels = panels(weights, width)?;
    let mut room = zeros(&[batch.div_ceil(rows), scratch(rows, width)])?;
    let mut rooms = room.chunks_exact_mut(scratch(rows, width));
    let mut jobs = Vec::new();
    let states = u0_bar.chunks_mut(rows * width).zip(s0_bar.chunks_mut(rows * width));
    let parts = x_bar.chunks_mut(rows * tokens * width).zip(states).zip(sums.chunks_mut(rows * 3 * width));
    for (i, ((x_bar, (u0_bar, s0_bar)), sums)) in parts.enumerate() {
        let scratch = rooms.next().unwrap_or_default();
        let (panels, batch) = (&panels, i * rows);
        jobs.push(Backward { inputs, bars, panels, level, batch, x_bar, u0_bar, s0_bar, sums, scratch });
    }
    for_each(useful_threads(threads, inputs.shape), jobs, |job| level.run(job))
}

/// (panels, width, `PANEL`), each so many columns of the map.
fn panels(weights: Weights<'_>, width: usize) -> Result<Vec<f32>, String> {
    let turned_back;
    let map = if weights.transposed {
        turned_back = transposed(weights.values, width, 1)?;
        &turned_back
    } else {
        weights.values
    };
    let mut panels = zeros(&[width.div_ceil(PANEL), width, PANEL])?;
    for (p, panel) in panels.chunks_exact_mut(width * PANEL).enumerate() {
        for (to, from) in panel.chunks_exact_mut(PANEL).zip(map.chunks_exact(width)) {
            let columns = &from[p * PANEL..width.min((p + 1) * PANEL)];
            to[..columns.len()].copy_from_slice(columns);
        }
    }
    Ok(panels)
}

/// out += delta times the map; a job by itself, so that the compiler keeps its tiles in registers.
struct Product<'a, 'b> {
    width: usize,
    panels: &'a [f32],
    /// (rows, width)
    delta: &'a [f32],
    /// (rows, width rounded up to panels)
    out: &'b mut [f32],
}

impl Job for Product<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let (n, ldc) = (self.width, self.width.next_multiple_of(PANEL));
        for (p, panel) in self.panels.chunks_exact(n * PANEL).enumerate() {
            I::gemm::<false, true>(Matrices {
                m: self.delta.len() / n,
                n: PANEL,
                k: n,
                a: self.delta,
                lda: n,
                b: panel,
                ldb: PANEL,
                c: &mut self.out[p * PANEL..],
                ldc,
            });
        }
    }
}

impl Job for Backward<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let (inputs, bars, scratch) = (self.inputs, self.bars, self.scratch);
        let Shape { tokens, width: n, .. } = inputs.shape;
        let rows = self.u0_bar.len() / n;
        let (padded, columns) = (rows.next_multiple_of(ROWS), n.next_multiple_of(PANEL));
        let (u, scratch) = scratch.split_at_mut(rows * (CHUNK + 1) * n);
        let (s, scratch) = scratch.split_at_mut(rows * (CHUNK + 1) * n);
        let (sums, scratch) = scratch.split_at_mut(rows * 3 * n);
        let (slope, scratch) = scratch.split_at_mut(n);
        let (delta, scratch) = scratch.split_at_mut(padded * n);
        let s_carry = &mut scratch[..padded * columns];
        self.u0_bar.copy_from_slice(&bars.last_bar[self.batch * n..][..rows * n]);
        let zeros = vec![0f32; n];
        let mut stretches = Vec::with_capacity(rows);
        for (r, (u, s)) in u.chunks_exact_mut((CHUNK + 1) * n).zip(s.chunks_exact_mut((CHUNK + 1) * n)).enumerate() {
            stretches.push(Stretch { inputs, span: inputs.whole(self.batch + r), zeros: &zeros, u, s, first: 0 });
        }
        for chunk in (0..tokens.div_ceil(CHUNK)).rev() {
            for stretch in &mut stretches {
                stretch.fill(bars.kept, chunk);
            }
            for t in (chunk * CHUNK..tokens.min((chunk + 1) * CHUNK)).rev() {
                for (r, stretch) in stretches.iter().enumerate() {
                    let span = stretch.span;
                    slopes::<I>(bars.surrogate, stretch.at(t), inputs.constants.theta, slope);
                    let token = Token {
                        x: inputs.row(inputs.x, span, t),
                        s_bar: inputs.row(bars.s_bar, span, t),
                        slope,
                        before: stretch.before(t),
                    };
                    let (beta, rest) = sums[r * 3 * n..][..3 * n].split_at_mut(n);
                    let (theta, gain) = rest.split_at_mut(n);
                    let carry = (&mut self.u0_bar[r * n..][..n], &mut s_carry[r * columns..][..n]);
                    let x_bar = &mut self.x_bar[(r * tokens + t) * n..][..n];
                    retreat(inputs.reset, bars.detach, inputs.constants, token, carry, [beta, theta, gain], x_bar);
                    let delta = &mut delta[r * n..][..n];
                    if inputs.is_start(span.batch, t) {
                        self.u0_bar[r * n..][..n].fill(0.0);
                        s_carry[r * columns..][..n].fill(0.0);
                        delta.fill(0.0);
                    } else {
                        delta.copy_from_slice(x_bar);
                    }
                }
                self.level.run(Product { width: n, panels: self.panels, delta, out: s_carry });
            }
            if chunk % TERMS == 0 {
                flush(sums, self.sums);
            }
        }
        for (out, carry) in self.s0_bar.chunks_exact_mut(n).zip(s_carry.chunks_exact(columns)) {
            out.copy_from_slice(&carry[..n]);
        }
    }
}
