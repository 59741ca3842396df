//! The backward pass of one head: groups of query blocks in reverse order, inside the blocks of keys, inside the group's
//! blocks in reverse order, each replayed from its stored state.

use std::f32::consts::LN_2;

use crate::fatigue::forward::{decays, load_state, pad_state};
use crate::fatigue::mask::Kind;
use crate::fatigue::problem::{HeadInputs, Kinetics, Rule};
use crate::fatigue::scores::{add_along_keys, add_along_queries, load_block, pad_rows, Products};
use crate::fatigue::synapse::{replay, retreat, Query, Record, Sums, EXACT, OFF};
use crate::fatigue::{blocks_per_group, new_tile, Row, KEYS, QUERIES};
use crate::gemm::dot;
use crate::isa::{Isa, Job};
use crate::math::{FEW_GATE_TERMS, GATE_TERMS};

/// Backward pass of one head as a job for an instruction set.
pub struct Backward<'a> {
    pub inputs: HeadInputs<'a>,
    /// (tq, dim), (tq,) and the boundaries of the forward pass
    pub out: &'a [f32],
    pub total: &'a [f32],
    pub boundaries: &'a [f32],
    /// Gradients with respect to the output (tq, dim) and to the final state (tk,)
    pub out_bar: &'a [f32],
    pub calcium_bar: &'a [f32],
    pub pool_bar: &'a [f32],
    /// Whether gradients of the kinetics are wanted.
    pub learn: bool,
    /// Gradients of q (tq, dim), of k and v (tk, dim), of the kinetics and of the initial state (tk,)
    pub q_grad: &'a mut [f32],
    pub k_grad: &'a mut [f32],
    pub v_grad: &'a mut [f32],
    pub kinetics_grad: &'a mut [f64; 10],
    pub calcium_grad: &'a mut [f32],
    pub pool_grad: &'a mut [f32],
}

impl Job for Backward<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let x = &self.inputs;
        match (x.rule, x.kinetics.terms, self.learn) {
            (_, OFF, _) => run::<I, true, OFF, false>(self),
            (Rule::Min, FEW_GATE_TERMS, false) if I::TAILORED => run::<I, true, FEW_GATE_TERMS, false>(self),
            (Rule::Min, GATE_TERMS, false) if I::TAILORED => run::<I, true, GATE_TERMS, false>(self),
            (Rule::Min, FEW_GATE_TERMS | GATE_TERMS, true) if I::TAILORED => run::<I, true, GATE_TERMS, true>(self),
            (Rule::Min, _, _) => run::<I, true, EXACT, true>(self),
            (Rule::Mul, FEW_GATE_TERMS, false) if I::TAILORED => run::<I, false, FEW_GATE_TERMS, false>(self),
            (Rule::Mul, GATE_TERMS, false) if I::TAILORED => run::<I, false, GATE_TERMS, false>(self),
            (Rule::Mul, FEW_GATE_TERMS | GATE_TERMS, true) if I::TAILORED => run::<I, false, GATE_TERMS, true>(self),
            (Rule::Mul, _, _) => run::<I, false, EXACT, true>(self),
        }
    }
}

#[inline(always)]
fn run<I: Isa, const MIN: bool, const TERMS: usize, const LEARN: bool>(job: Backward<'_>) {
    let HeadInputs { shape, q, k, v, ref kinetics, ref visibility, .. } = job.inputs;
    let (dim, tk, padded) = (shape.dim, shape.tk, shape.padded_dim());
    let key_blocks = tk.div_ceil(KEYS);
    let keys = pad_rows(k, dim, padded, key_blocks * KEYS);
    let scores = Products::new(k, &shape);
    let slopes = Products::new(v, &shape);

    let mut calcium_bar = pad_state(job.calcium_bar, key_blocks, 0.0);
    let mut pool_bar = pad_state(job.pool_bar, key_blocks, 0.0);
    let mut keys_bar = Padded::new(job.k_grad, dim, padded, key_blocks * KEYS);
    let mut values_bar = Padded::new(job.v_grad, dim, padded, key_blocks * KEYS);
    let group = blocks_per_group(padded).min(shape.blocks());
    let size = QUERIES * padded;
    let mut queries = vec![0f32; group * size];
    let mut outs_bar = vec![0f32; group * size];
    let mut queries_bar = vec![0f32; group * size];
    let mut row_terms = vec![Query { inverse_total: 0.0, delta: 0.0 }; group * QUERIES];
    let mut logits = new_tile();
    let mut weights = new_tile();
    let mut mask = [[0f32; KEYS]; QUERIES];
    let mut record = Record::zero();
    let mut totals = Totals::default();

    for first in (0..shape.blocks()).step_by(group).rev() {
        let blocks = group.min(shape.blocks() - first);
        for b in 0..blocks {
            let (start, rows) = shape.block(first + b);
            load_block(q, dim, padded, start, rows, shape.scale_to_base_2(), &mut queries[b * size..][..size]);
            load_block(job.out_bar, dim, padded, start, rows, 1.0, &mut outs_bar[b * size..][..size]);
            for (r, terms) in row_terms[b * QUERIES..].iter_mut().enumerate().take(rows) {
                let t = start + r;
                let total = job.total[t];
                terms.inverse_total = if total > 0.0 { 1.0 / total } else { 0.0 };
                terms.delta = dot::<I>(&job.out_bar[t * dim..][..dim], &job.out[t * dim..][..dim]);
            }
        }
        queries_bar.fill(0.0);
        for key_block in 0..key_blocks {
            let key = key_block * KEYS;
            let mut reached = false;
            for b in (0..blocks).rev() {
                let (start, rows) = shape.block(first + b);
                let kind = visibility.tile(start, rows, key, &mut mask);
                if kind == Kind::Future {
                    break;
                }
                reached = true;
                let (of_calcium, of_pool) = shape.boundary(first + b);
                let row_terms = &row_terms[b * QUERIES..];
                let (queries, outs_bar) = (&queries[b * size..][..size], &outs_bar[b * size..][..size]);
                let queries_bar = &mut queries_bar[b * size..][..size];
                // Without fatigue nothing is stored.
                let stored = |span| job.boundaries.get(span).unwrap_or_default();
                let mut calcium = load_state(stored(of_calcium), key, 0.0);
                let mut pool = load_state(stored(of_pool), key, kinetics.r_max);
                let (calcium_bar, pool_bar) = (&mut calcium_bar[key_block], &mut pool_bar[key_block]);
                if kind == Kind::Hidden {
                    totals.rest(rows, &calcium, &pool, calcium_bar, pool_bar, kinetics);
                    continue;
                }
                let before = calcium;
                let corner = kind == Kind::Partial && visibility.has_corner(start, rows, key);
                scores.tile::<I>(queries, padded, rows, corner, key, &mut logits);
                for r in 0..rows {
                    let (row, seen) = (&logits[r], &mask[r]);
                    if kind == Kind::Full {
                        replay::<I, MIN, TERMS, false, LEARN>(
                            r,
                            row,
                            seen,
                            &mut calcium,
                            &mut pool,
                            kinetics,
                            &mut record,
                        );
                    } else {
                        replay::<I, MIN, TERMS, true, LEARN>(
                            r,
                            row,
                            seen,
                            &mut calcium,
                            &mut pool,
                            kinetics,
                            &mut record,
                        );
                    }
                }
                slopes.tile::<I>(outs_bar, padded, rows, corner, key, &mut logits);
                let mut sums = Sums::zero();
                for r in (0..rows).rev() {
                    let before = if r == 0 { before } else { record.calcium[r - 1] };
                    let terms = row_terms[r];
                    if kind == Kind::Full {
                        retreat::<I, MIN, TERMS, false, LEARN>(
                            r,
                            terms,
                            &record,
                            &mask[r],
                            &before,
                            &mut logits[r],
                            &mut weights[r],
                            calcium_bar,
                            pool_bar,
                            &mut sums,
                            kinetics,
                        );
                    } else {
                        retreat::<I, MIN, TERMS, true, LEARN>(
                            r,
                            terms,
                            &record,
                            &mask[r],
                            &before,
                            &mut logits[r],
                            &mut weights[r],
                            calcium_bar,
                            pool_bar,
                            &mut sums,
                            kinetics,
                        );
                    }
                }
                if LEARN {
                    totals.add(&sums, KEYS.min(tk - key));
                }
                let span = key * padded..(key + KEYS) * padded;
                add_along_queries::<I>(&weights, rows, corner, outs_bar, padded, &mut values_bar.rows()[span.clone()]);
                add_along_queries::<I>(&logits, rows, corner, queries, padded, &mut keys_bar.rows()[span]);
                add_along_keys::<I>(&logits, rows, corner, &keys[key * padded..], padded, queries_bar);
            }
            if !reached {
                break;
            }
        }
        for b in 0..blocks {
            let (start, rows) = shape.block(first + b);
            let to = &mut job.q_grad[start * dim..(start + rows) * dim];
            store_rows(&queries_bar[b * size..][..size], padded, dim, shape.scale(), to);
        }
    }
    // The queries were scaled, so the gradient of the keys is in the keys' own units, but for the base of the logits.
    keys_bar.finish(dim, padded, LN_2);
    values_bar.finish(dim, padded, 1.0);
    job.calcium_grad.copy_from_slice(&calcium_bar.as_flattened()[..tk]);
    job.pool_grad.copy_from_slice(&pool_bar.as_flattened()[..tk]);
    *job.kinetics_grad = totals.gradients(kinetics);
}

/// Rows that grow by whole tiles: the result itself where its rows are whole, else a copy with room for the rest.
struct Padded<'a> {
    result: &'a mut [f32],
    copy: Option<Vec<f32>>,
}

impl<'a> Padded<'a> {
    /// `result` (some rows, dim) is all zeros.
    fn new(result: &'a mut [f32], dim: usize, padded: usize, rows: usize) -> Padded<'a> {
        let whole = dim == padded && result.len() == rows * dim;
        Padded { result, copy: (!whole).then(|| vec![0f32; rows * padded]) }
    }
    fn rows(&mut self) -> &mut [f32] {
        self.copy.as_mut().map_or(&mut *self.result, |copy| &mut copy[..])
    }
    fn finish(self, dim: usize, padded: usize, scale: f32) {
        match self.copy {
            Some(copy) => store_rows(&copy, padded, dim, scale, self.result),
            None if scale == 1.0 => (),
            None => self.result.iter_mut().for_each(|x| *x *= scale),
        }
    }
}

fn store_rows(from: &[f32], padded: usize, dim: usize, scale: f32, to: &mut [f32]) {
    for (y, x) in to.chunks_exact_mut(dim).zip(from.chunks_exact(padded)) {
        for (b, &a) in y.iter_mut().zip(x) {
            *b = a * scale;
        }
    }
}

/// [`Sums`] over keys and tiles in double precision.
#[derive(Default)]
struct Totals {
    rho_c: f64,
    alpha: f64,
    hill: f64,
    slope: f64,
    bias: f64,
    coupling: f64,
    rho_r: f64,
    r_max: f64,
    lam: f64,
    eps: f64,
    age: f64,
}

impl Totals {
    /// Only the first `present` lanes are keys.
    fn add(&mut self, sums: &Sums, present: usize) {
        let fold = |lanes: &Row| lanes[..present].iter().map(|&x| f64::from(x)).sum::<f64>();
        self.rho_c += fold(&sums.rho_c);
        self.alpha += fold(&sums.alpha);
        self.hill += fold(&sums.hill);
        self.slope += fold(&sums.slope);
        self.bias += fold(&sums.bias);
        self.coupling += fold(&sums.coupling);
        self.rho_r += fold(&sums.rho_r);
        self.r_max += fold(&sums.r_max);
        self.lam += fold(&sums.lam);
        self.eps += fold(&sums.eps);
        self.age += fold(&sums.age);
    }

    /// The adjoint of a tile in which nothing is seen.
    fn rest(&mut self, steps: usize, calcium: &Row, pool: &Row, c_bar: &mut Row, r_bar: &mut Row, kin: &Kinetics) {
        let (decay, refill) = decays(steps, kin);
        let (decay_less, refill_less) = decays(steps - 1, kin);
        let count = steps as f64;
        for j in 0..KEYS {
            let (c, r) = (f64::from(c_bar[j]), f64::from(r_bar[j]));
            self.rho_c += count * f64::from(decay_less) * f64::from(calcium[j]) * c;
            self.rho_r += count * f64::from(refill_less) * f64::from(pool[j] - kin.r_max) * r;
            if kin.rho_r < 1.0 {
                // `gradients` multiplies by 1 - rho_r, which the one-step form has.
                self.r_max += (1.0 - f64::from(refill)) / (1.0 - f64::from(kin.rho_r)) * r;
            }
            c_bar[j] *= decay;
            r_bar[j] *= refill;
        }
    }

    /// In the order of [`crate::fatigue::problem::KINETICS`].
    fn gradients(&self, kin: &Kinetics) -> [f64; 10] {
        let rho_r = self.rho_r;
        let r_max = self.r_max * (1.0 - f64::from(kin.rho_r));
        if kin.content == 0.0 {
            let sigmoid = 1.0 / (1.0 + (-f64::from(kin.b)).exp());
            let scale = self.age * sigmoid / (1.0 + f64::from(kin.kappa));
            let kappa = -scale / (1.0 + f64::from(kin.kappa));
            return [0.0, 0.0, 0.0, 0.0, scale * (1.0 - sigmoid), kappa, rho_r, r_max, self.lam, self.eps];
        }
        let k_d = -self.hill * f64::from(kin.s);
        let kappa = -self.coupling / f64::from(kin.kappa);
        [self.rho_c, self.alpha, k_d, self.slope, self.bias, kappa, rho_r, r_max, self.lam, self.eps]
    }
}
