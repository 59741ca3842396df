//! A whole call: jobs over the threads. How a call is cut into jobs depends on its shape alone, and sums over jobs are
//! made afterwards in order, so the result does not depend on the number of threads.

use crate::fast_weights::backward::Backward;
use crate::fast_weights::forward::Forward;
use crate::fast_weights::problem::{Head, Rows};
use crate::fast_weights::{CHUNK, LANES, RULES};
use crate::isa::Level;
use crate::threads::{for_each, zeros};

/// So many jobs are wanted: where batch and heads give fewer, the columns of a head are cut as well.
const JOBS: usize = 8;
/// Less work than so many state updates is not worth a second thread.
const ALONE: usize = 1 << 17;

#[derive(Clone, Copy)]
pub struct Shape {
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub rank: usize,
    pub dv: usize,
}

/// q, k (B, T, H, r), v (B, T, H, dv), eta (B, T, H), gate likewise or None (1 everywhere), rates (3, H): rho_f, rho_s,
/// eta_s; fast (B, H, r, dv), slow likewise or None (S is off), starts (B, T) or None.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub shape: Shape,
    pub rule: usize,
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub eta: &'a [f32],
    pub gate: Option<&'a [f32]>,
    pub rates: &'a [f32],
    pub fast: &'a [f32],
    pub slow: Option<&'a [f32]>,
    pub starts: Option<&'a [u8]>,
}

/// Results, shapes as in [`Inputs`]; `slow` is empty where S is off, `boundaries` where they are not wanted.
#[derive(PartialEq)]
pub struct Outputs {
    pub read: Vec<f32>,
    pub fast: Vec<f32>,
    pub slow: Vec<f32>,
    pub boundaries: Vec<f32>,
}

/// Gradients, shapes as in [`Inputs`]; `gate` and `slow` are empty where those are None.
#[derive(PartialEq)]
pub struct Gradients {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub eta: Vec<f32>,
    pub gate: Vec<f32>,
    pub rates: Vec<f32>,
    pub fast: Vec<f32>,
    pub slow: Vec<f32>,
}

impl Inputs<'_> {
    /// Columns of each job of a head.
    fn widths(&self) -> Vec<usize> {
        let (dv, pairs) = (self.shape.dv, self.shape.batch * self.shape.heads);
        let groups = dv.div_ceil(LANES);
        let parts = JOBS.div_ceil(pairs).min(groups);
        let edge = |part: usize| (groups * part / parts * LANES).min(dv);
        (0..parts).map(|part| edge(part + 1) - edge(part)).collect()
    }

    /// Length of the stored states of a job.
    fn kept(&self, width: usize) -> usize {
        let states = if self.slow.is_some() { 2 } else { 1 };
        self.shape.tokens.div_ceil(CHUNK) * width.next_multiple_of(LANES) * self.shape.rank * states
    }

    /// Length of all stored states.
    pub fn boundaries(&self) -> usize {
        self.shape.batch * self.shape.heads * self.kept(self.shape.dv)
    }

    fn threads(&self, wanted: usize) -> usize {
        let s = self.shape;
        if s.batch * s.heads * s.tokens * s.rank * s.dv < ALONE {
            1
        } else {
            wanted
        }
    }

    fn check(&self) -> Result<(), String> {
        let s = self.shape;
        if self.rule >= RULES.len() {
            return Err(format!("rule {} must be below {}", self.rule, RULES.len()));
        }
        let product = |sizes: &[usize]| {
            let size = sizes.iter().try_fold(1usize, |x, &y| x.checked_mul(y));
            size.filter(|&x| x > 0).ok_or_else(|| format!("sizes {sizes:?} must be positive and their product small"))
        };
        let each = product(&[s.batch, s.tokens, s.heads])?;
        let state = product(&[s.batch, s.heads, s.rank, s.dv])?;
        product(&[each, s.rank, s.dv, 2 * LANES])?;
        for (name, found, expected) in [
            ("q", self.q.len(), each * s.rank),
            ("k", self.k.len(), each * s.rank),
            ("v", self.v.len(), each * s.dv),
            ("eta", self.eta.len(), each),
            ("gate", self.gate.map_or(each, <[f32]>::len), each),
            ("rates", self.rates.len(), 3 * s.heads),
            ("fast", self.fast.len(), state),
            ("slow", self.slow.map_or(state, <[f32]>::len), state),
            ("starts", self.starts.map_or(s.batch * s.tokens, <[u8]>::len), s.batch * s.tokens),
        ] {
            expect(name, found, expected)?;
        }
        Ok(())
    }

    /// The jobs' inputs, ordered by batch, head and columns.
    fn heads(&self, widths: &[usize]) -> Vec<Head<'_>> {
        let s = self.shape;
        let mut all = Vec::with_capacity(s.batch * s.heads * widths.len());
        for b in 0..s.batch {
            for h in 0..s.heads {
                let mut column = 0;
                for &width in widths {
                    all.push(Head {
                        tokens: s.tokens,
                        rank: s.rank,
                        rule: self.rule,
                        slow: self.slow.is_some(),
                        q: self.rows(self.q, b, h, s.rank, 0, s.rank),
                        k: self.rows(self.k, b, h, s.rank, 0, s.rank),
                        v: self.rows(self.v, b, h, s.dv, column, width),
                        eta: self.rows(self.eta, b, h, 1, 0, 1),
                        gate: self.gate.map(|gate| self.rows(gate, b, h, 1, 0, 1)),
                        rho_f: self.rates[h],
                        rho_s: self.rates[s.heads + h],
                        eta_s: self.rates[2 * s.heads + h],
                        starts: self.starts.map_or(&[], |starts| &starts[b * s.tokens..][..s.tokens]),
                    });
                    column += width;
                }
            }
        }
        all
    }

    /// `width` numbers from `column` on of the rows of a head in an array (B, T, H, size).
    fn rows<'a>(&self, data: &'a [f32], b: usize, h: usize, size: usize, column: usize, width: usize) -> Rows<'a> {
        let s = self.shape;
        Rows { data: &data[(b * s.tokens * s.heads + h) * size + column..], stride: s.heads * size, width }
    }

    /// Per job, its columns of the rows of a state (B, H, r, dv).
    fn states<'a>(&self, state: &'a [f32], widths: &[usize]) -> Vec<Vec<&'a [f32]>> {
        let mut all = Vec::new();
        for head in state.chunks_exact(self.shape.rank * self.shape.dv) {
            let mut column = 0;
            for &width in widths {
                all.push(head.chunks_exact(self.shape.dv).map(|row| &row[column..column + width]).collect());
                column += width;
            }
        }
        all
    }
}

fn expect(name: &str, found: usize, expected: usize) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{name} has {found} elements, but {expected} are needed"))
}

type Parts<'a> = std::vec::IntoIter<Vec<&'a mut [f32]>>;

/// Deal an array (outer, rows, inner, all widths) to jobs (outer, inner, width), a row at a time.
fn deal<'a>(mut data: &'a mut [f32], [outer, rows, inner]: [usize; 3], widths: &[usize]) -> Parts<'a> {
    let parts = inner * widths.len();
    let mut all: Vec<Vec<_>> = (0..outer * parts).map(|_| Vec::with_capacity(rows)).collect();
    for o in 0..outer {
        for _ in 0..rows {
            for job in 0..parts {
                let (row, rest) = std::mem::take(&mut data).split_at_mut(widths[job % widths.len()]);
                all[o * parts + job].push(row);
                data = rest;
            }
        }
    }
    all.into_iter()
}

/// One more row list; an array that is off has none for anyone.
fn next<'a>(parts: &mut Option<Parts<'a>>) -> Vec<&'a mut [f32]> {
    parts.as_mut().and_then(Iterator::next).unwrap_or_default()
}

/// Forward pass; `keep`: store what the backward pass needs.
pub fn forward(inputs: &Inputs<'_>, keep: bool, threads: usize, level: Level) -> Result<Outputs, String> {
    inputs.check()?;
    let s = inputs.shape;
    let widths = inputs.widths();
    let mut x = Outputs {
        read: vec![0.0; inputs.v.len()],
        fast: vec![0.0; inputs.fast.len()],
        slow: vec![0.0; inputs.slow.map_or(0, <[f32]>::len)],
        boundaries: zeros(&[if keep { inputs.boundaries() } else { 0 }])?,
    };
    let state = [s.batch * s.heads, s.rank, 1];
    let mut reads = deal(&mut x.read, [s.batch, s.tokens, s.heads], &widths);
    let mut fasts = deal(&mut x.fast, state, &widths);
    let mut slows = inputs.slow.map(|_| deal(&mut x.slow, state, &widths));
    let mut fasts_before = inputs.states(inputs.fast, &widths).into_iter();
    let mut slows_before = inputs.states(inputs.slow.unwrap_or_default(), &widths).into_iter();
    let mut rest = &mut x.boundaries[..];
    let mut jobs = Vec::new();
    for head in inputs.heads(&widths) {
        let (boundaries, later) =
            std::mem::take(&mut rest).split_at_mut(if keep { inputs.kept(head.v.width) } else { 0 });
        rest = later;
        jobs.push(Forward {
            head,
            fast_before: fasts_before.next().unwrap_or_default(),
            slow_before: slows_before.next().unwrap_or_default(),
            read: reads.next().unwrap_or_default(),
            fast: fasts.next().unwrap_or_default(),
            slow: next(&mut slows),
            boundaries,
        });
    }
    for_each(inputs.threads(threads), jobs, |job| level.run(job))?;
    Ok(x)
}

/// Backward pass; `bars`: gradients of read, final F and final S (None where S is off).
pub fn backward(
    inputs: &Inputs<'_>,
    boundaries: &[f32],
    bars: (&[f32], &[f32], Option<&[f32]>),
    threads: usize,
    level: Level,
) -> Result<Gradients, String> {
    inputs.check()?;
    let s = inputs.shape;
    let (read_bar, fast_bar, slow_bar) = (bars.0, bars.1, bars.2.unwrap_or_default());
    let slow_len = inputs.slow.map_or(0, <[f32]>::len);
    expect("boundaries", boundaries.len(), inputs.boundaries())?;
    expect("grad_read", read_bar.len(), inputs.v.len())?;
    expect("grad_fast", fast_bar.len(), inputs.fast.len())?;
    expect("grad_slow", slow_bar.len(), slow_len)?;
    let widths = inputs.widths();
    let gate_len = if inputs.slow.is_some() { inputs.gate.map_or(0, <[f32]>::len) } else { 0 };
    // Every part of the columns has its own sums for what the columns of a head share.
    let shared = |size: usize| vec![0.0; size * widths.len()];
    let (mut q, mut k) = (shared(inputs.q.len()), shared(inputs.k.len()));
    let (mut eta, mut gate) = (shared(inputs.eta.len()), shared(gate_len));
    let mut v = vec![0.0; inputs.v.len()];
    let (mut fast, mut slow) = (vec![0.0; fast_bar.len()], vec![0.0; slow_len]);
    let mut sums = vec![[0f64; 3]; s.batch * s.heads * widths.len()];

    let (each, state) = ([s.batch, s.tokens, s.heads], [s.batch * s.heads, s.rank, 1]);
    let by_part = |data, size: usize| deal_parts(data, each, size, widths.len());
    let (mut qs, mut ks) = (by_part(&mut q, s.rank), by_part(&mut k, s.rank));
    let mut etas = by_part(&mut eta, 1);
    let mut gates = (gate_len > 0).then(|| by_part(&mut gate, 1));
    let mut vs = deal(&mut v, each, &widths);
    let mut fasts = deal(&mut fast, state, &widths);
    let mut slows = (slow_len > 0).then(|| deal(&mut slow, state, &widths));
    let mut fast_bars = inputs.states(fast_bar, &widths).into_iter();
    let mut slow_bars = inputs.states(slow_bar, &widths).into_iter();
    let mut rest = boundaries;
    let mut jobs = Vec::new();
    for (index, (head, rates)) in inputs.heads(&widths).into_iter().zip(&mut sums).enumerate() {
        let (boundaries, later) = rest.split_at(inputs.kept(head.v.width));
        rest = later;
        let pair = index / widths.len();
        let column: usize = widths[..index % widths.len()].iter().sum();
        jobs.push(Backward {
            boundaries,
            fast_bar: fast_bars.next().unwrap_or_default(),
            slow_bar: slow_bars.next().unwrap_or_default(),
            read_bar: inputs.rows(read_bar, pair / s.heads, pair % s.heads, s.dv, column, head.v.width),
            head,
            q: qs.next().unwrap_or_default(),
            k: ks.next().unwrap_or_default(),
            v: vs.next().unwrap_or_default(),
            eta: etas.next().unwrap_or_default(),
            gate: next(&mut gates),
            fast: fasts.next().unwrap_or_default(),
            slow: next(&mut slows),
            rates,
        });
    }
    for_each(inputs.threads(threads), jobs, |job| level.run(job))?;

    let mut rates = vec![0.0; inputs.rates.len()];
    for (name, row) in rates.chunks_exact_mut(s.heads).enumerate() {
        for (head, y) in row.iter_mut().enumerate() {
            let of_head = sums.chunks_exact(widths.len()).skip(head).step_by(s.heads);
            *y = of_head.flatten().map(|sum| sum[name]).sum::<f64>() as f32;
        }
    }
    let total = |data| sum_parts(data, widths.len());
    Ok(Gradients { q: total(q), k: total(k), v, eta: total(eta), gate: total(gate), rates, fast, slow })
}

/// Deal an array (parts, B, T, H, size) to jobs (B, H, parts), a row at a time.
fn deal_parts(data: &mut [f32], each: [usize; 3], size: usize, parts: usize) -> Parts<'_> {
    let length = data.len() / parts;
    let mut by_part: Vec<_> = data.chunks_exact_mut(length).map(|part| deal(part, each, &[size])).collect();
    let mut all = Vec::with_capacity(each[0] * each[2] * parts);
    for _ in 0..each[0] * each[2] {
        all.extend(by_part.iter_mut().filter_map(Iterator::next));
    }
    all.into_iter()
}

/// Sum of the `parts` equal parts of an array, in order.
fn sum_parts(mut data: Vec<f32>, parts: usize) -> Vec<f32> {
    let length = data.len() / parts;
    let (first, rest) = data.split_at_mut(length);
    for part in rest.chunks_exact(length.max(1)) {
        for (y, x) in first.iter_mut().zip(part) {
            *y += x;
        }
    }
    data.truncate(length);
    data
}
