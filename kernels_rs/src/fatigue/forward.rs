//! The forward pass of one head: an outer loop over groups of query blocks, inside over blocks of keys, inside over
//! the blocks of the group: a block of keys comes once per group, and its state stays in the first-level cache.

use crate::fatigue::mask::Kind;
use crate::fatigue::problem::{HeadInputs, Kinetics, Rule};
use crate::fatigue::scores::{add_along_keys, beyond_limit, load_block, may_exceed_limit, pad_rows, Products};
use crate::fatigue::synapse::{advance, EXACT, OFF};
use crate::fatigue::{blocks_per_group, new_tile, Row, KEYS, QUERIES};
use crate::gemm::fold_lanes;
use crate::isa::{Isa, Job};
use crate::math::{FEW_GATE_TERMS, GATE_TERMS};

/// Forward pass of one head as a job for an instruction set.
pub struct Forward<'a> {
    pub inputs: HeadInputs<'a>,
    /// (tq, dim)
    pub out: &'a mut [f32],
    /// (tq,), the sum of n
    pub total: &'a mut [f32],
    /// (tk,), the state after the last query
    pub calcium: &'a mut [f32],
    pub pool: &'a mut [f32],
    /// Calcium and pool before each block of queries, see `Shape::boundary`; empty if no backward pass will come
    pub boundaries: &'a mut [f32],
    /// A visible logit beyond the limit, if there was one; the results are then meaningless.
    pub excess: &'a mut Option<f32>,
}

impl Job for Forward<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let x = &self.inputs;
        match (x.rule, x.kinetics.terms) {
            (_, OFF) => run::<I, true, OFF>(self),
            (Rule::Min, FEW_GATE_TERMS) if I::TAILORED => run::<I, true, FEW_GATE_TERMS>(self),
            (Rule::Min, GATE_TERMS) if I::TAILORED => run::<I, true, GATE_TERMS>(self),
            (Rule::Min, _) => run::<I, true, EXACT>(self),
            (Rule::Mul, FEW_GATE_TERMS) if I::TAILORED => run::<I, false, FEW_GATE_TERMS>(self),
            (Rule::Mul, GATE_TERMS) if I::TAILORED => run::<I, false, GATE_TERMS>(self),
            (Rule::Mul, _) => run::<I, false, EXACT>(self),
        }
    }
}

#[inline(always)]
fn run<I: Isa, const MIN: bool, const TERMS: usize>(job: Forward<'_>) {
    let HeadInputs { shape, q, k, v, ref kinetics, ref visibility, .. } = job.inputs;
    let (dim, tk) = (shape.dim, shape.tk);
    let padded = shape.padded_dim();
    let key_blocks = tk.div_ceil(KEYS);
    let values = pad_rows(v, dim, padded, key_blocks * KEYS);
    let products = Products::new(k, &shape);
    let check = may_exceed_limit::<I>(q, k, &shape);

    let mut calcium = pad_state(job.inputs.calcium, key_blocks, 0.0);
    let mut pool = pad_state(job.inputs.pool, key_blocks, kinetics.r_max);
    let group = blocks_per_group(padded).min(shape.blocks());
    let mut queries = vec![0f32; group * QUERIES * padded];
    let mut sums = vec![0f32; group * QUERIES * padded];
    let mut totals = vec![[0f32; 16]; group * QUERIES];
    let mut tile = new_tile();
    let mut mask = [[0f32; KEYS]; QUERIES];

    for first in (0..shape.blocks()).step_by(group) {
        let blocks = group.min(shape.blocks() - first);
        for (b, block) in queries.chunks_exact_mut(QUERIES * padded).enumerate().take(blocks) {
            let (start, rows) = shape.block(first + b);
            load_block(q, dim, padded, start, rows, shape.scale_to_base_2(), block);
        }
        sums.fill(0.0);
        totals.fill([0.0; 16]);
        for key_block in 0..key_blocks {
            let key = key_block * KEYS;
            let (calcium, pool) = (&mut calcium[key_block], &mut pool[key_block]);
            let mut reached = false;
            for b in 0..blocks {
                let (start, rows) = shape.block(first + b);
                let kind = visibility.tile(start, rows, key, &mut mask);
                if kind == Kind::Future {
                    continue;
                }
                reached = true;
                if !job.boundaries.is_empty() {
                    let (of_calcium, of_pool) = shape.boundary(first + b);
                    let reached = KEYS.min(of_calcium.len() - key);
                    job.boundaries[of_calcium][key..key + reached].copy_from_slice(&calcium[..reached]);
                    job.boundaries[of_pool][key..key + reached].copy_from_slice(&pool[..reached]);
                }
                if kind == Kind::Hidden {
                    rest(rows, calcium, pool, kinetics);
                    continue;
                }
                let span = b * QUERIES * padded..(b + 1) * QUERIES * padded;
                let corner = kind == Kind::Partial && visibility.has_corner(start, rows, key);
                products.tile::<I>(&queries[span.clone()], padded, rows, corner, key, &mut tile);
                if check {
                    let seen = (kind == Kind::Partial).then_some(&mask[..]);
                    if let Some(logit) = beyond_limit(&tile, seen, rows) {
                        *job.excess = Some(logit);
                        return;
                    }
                }
                let totals = &mut totals[b * QUERIES..][..rows];
                for (r, total) in totals.iter_mut().enumerate() {
                    let row = &mut tile[r];
                    if kind == Kind::Full {
                        advance::<I, MIN, TERMS, false>(row, &mask[r], calcium, pool, total, kinetics);
                    } else {
                        advance::<I, MIN, TERMS, true>(row, &mask[r], calcium, pool, total, kinetics);
                    }
                }
                let values = &values[key * padded..];
                add_along_keys::<I>(&tile, rows, corner, values, padded, &mut sums[span]);
            }
            if !reached {
                break;
            }
        }
        for b in 0..blocks {
            let (start, rows) = shape.block(first + b);
            for r in 0..rows {
                let total = fold_lanes(&totals[b * QUERIES + r]);
                job.total[start + r] = total;
                let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
                let out = &mut job.out[(start + r) * dim..][..dim];
                for (y, &sum) in out.iter_mut().zip(&sums[(b * QUERIES + r) * padded..]) {
                    *y = sum * inverse;
                }
            }
        }
    }
    job.calcium.copy_from_slice(&calcium.as_flattened()[..tk]);
    job.pool.copy_from_slice(&pool.as_flattened()[..tk]);
}

/// A state of so many blocks of keys.
pub fn pad_state(x: &[f32], blocks: usize, missing: f32) -> Vec<Row> {
    let mut out = vec![[missing; KEYS]; blocks];
    for (to, from) in out.as_flattened_mut().iter_mut().zip(x) {
        *to = *from;
    }
    out
}

/// The part of a state that belongs to the keys from `key` on.
#[inline(always)]
pub fn load_state(x: &[f32], key: usize, missing: f32) -> Row {
    let mut out = [missing; KEYS];
    for (to, from) in out.iter_mut().zip(x.get(key..).unwrap_or_default()) {
        *to = *from;
    }
    out
}

/// State of keys that nobody sees for `steps` queries: calcium decays, the pool recovers.
pub fn rest(steps: usize, calcium: &mut Row, pool: &mut Row, kin: &Kinetics) {
    let (decay, refill) = decays(steps, kin);
    for (c, r) in calcium.iter_mut().zip(pool) {
        *c *= decay;
        *r = kin.r_max + (*r - kin.r_max) * refill;
    }
}

/// (rho_c, rho_r) to the power of `steps`.
pub fn decays(steps: usize, kin: &Kinetics) -> (f32, f32) {
    let power = |rho: f32| f64::from(rho).powi(steps as i32) as f32;
    (power(kin.rho_c), power(kin.rho_r))
}
