//! The forward pass of a few queries (decoding). Such a pass waits for memory, so K and V are read once, as they lie,
//! by all the query heads that share them, and each is asked for while the other is worked on.

use crate::fatigue::forward::{load_state, rest, Forward};
use crate::fatigue::mask::Kind;
use crate::fatigue::problem::Rule;
use crate::fatigue::scores::beyond_limit;
use crate::fatigue::synapse::{advance, EXACT, OFF};
use crate::fatigue::{FEW_QUERIES, KEYS};
use crate::gemm::{add_scaled, dots, fold_lanes};
use crate::isa::{Isa, Job};
use crate::math::{FEW_GATE_TERMS, GATE_TERMS};

/// The query heads of one key head as a job for an instruction set; each has at most [`FEW_QUERIES`] queries.
pub struct Decode<'a> {
    pub heads: Vec<Forward<'a>>,
}

impl<'a> Decode<'a> {
    /// Whether `head` can be computed by the same code as those that are there.
    pub fn takes(&self, head: &Forward<'a>) -> bool {
        self.heads.first().is_none_or(|first| first.inputs.kinetics.terms == head.inputs.kinetics.terms)
    }
}

impl Job for Decode<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Some(first) = self.heads.first() else { return };
        match (first.inputs.rule, first.inputs.kinetics.terms) {
            (_, OFF) => run::<I, true, OFF>(self.heads),
            (Rule::Min, FEW_GATE_TERMS) if I::TAILORED => run::<I, true, FEW_GATE_TERMS>(self.heads),
            (Rule::Min, GATE_TERMS) if I::TAILORED => run::<I, true, GATE_TERMS>(self.heads),
            (Rule::Min, _) => run::<I, true, EXACT>(self.heads),
            (Rule::Mul, FEW_GATE_TERMS) if I::TAILORED => run::<I, false, FEW_GATE_TERMS>(self.heads),
            (Rule::Mul, GATE_TERMS) if I::TAILORED => run::<I, false, GATE_TERMS>(self.heads),
            (Rule::Mul, _) => run::<I, false, EXACT>(self.heads),
        }
    }
}

#[inline(always)]
fn run<I: Isa, const MIN: bool, const TERMS: usize>(mut heads: Vec<Forward<'_>>) {
    let Some(first) = heads.first() else { return };
    let shape = first.inputs.shape;
    let (k, v) = (first.inputs.k, first.inputs.v);
    let (dim, tq, tk) = (shape.dim, shape.tq, shape.tk);
    let rows = heads.len() * tq;
    let mut queries = vec![0f32; rows * dim];
    for (head, scaled) in heads.iter().zip(queries.chunks_exact_mut(tq * dim)) {
        for (y, x) in scaled.iter_mut().zip(head.inputs.q) {
            *y = x * shape.scale_to_base_2();
        }
    }
    let mut sums = vec![0f32; rows * dim];
    let mut totals = vec![[0f32; 16]; rows];
    let mut tile = vec![[0f32; KEYS]; rows];
    let mut mask = [[0f32; KEYS]; FEW_QUERIES];

    for head in &mut heads {
        if !head.boundaries.is_empty() {
            let (calcium, pool) = head.boundaries.split_at_mut(tk);
            let known = head.inputs.calcium.len();
            pool.fill(head.inputs.kinetics.r_max);
            calcium[..known].copy_from_slice(head.inputs.calcium);
            pool[..known].copy_from_slice(head.inputs.pool);
        }
    }
    for key in (0..tk).step_by(KEYS) {
        let end = tk.min(key + KEYS);
        let (keys, values) = (&k[key * dim..end * dim], &v[key * dim..end * dim]);
        let next_keys = &k[end * dim..tk.min(end + KEYS) * dim];
        // All heads of the batch row see the same keys.
        let kind = heads[0].inputs.visibility.tile(0, tq, key, &mut mask);
        let visible = matches!(kind, Kind::Full | Kind::Partial);
        if visible {
            for (r, query) in queries.chunks_exact(dim).enumerate() {
                let ahead = if r == 0 { values } else { &[] };
                dots::<I>(query, keys, ahead, &mut tile[r]);
            }
        }
        for (index, head) in heads.iter_mut().enumerate() {
            let kin = &head.inputs.kinetics;
            let mut calcium = load_state(head.inputs.calcium, key, 0.0);
            let mut pool = load_state(head.inputs.pool, key, kin.r_max);
            if visible {
                let tile = &mut tile[index * tq..][..tq];
                let seen = (kind == Kind::Partial).then_some(&mask[..]);
                if let Some(logit) = beyond_limit(tile, seen, tq) {
                    *head.excess = Some(logit);
                    return;
                }
                for r in 0..tq {
                    let total = &mut totals[index * tq + r];
                    if kind == Kind::Full {
                        advance::<I, MIN, TERMS, false>(&mut tile[r], &mask[r], &mut calcium, &mut pool, total, kin);
                    } else {
                        advance::<I, MIN, TERMS, true>(&mut tile[r], &mask[r], &mut calcium, &mut pool, total, kin);
                    }
                }
            } else if kind == Kind::Hidden {
                rest(tq, &mut calcium, &mut pool, kin);
            }
            head.calcium[key..end].copy_from_slice(&calcium[..end - key]);
            head.pool[key..end].copy_from_slice(&pool[..end - key]);
        }
        if visible {
            for (r, sum) in sums.chunks_exact_mut(dim).enumerate() {
                let ahead = if r == 0 { next_keys } else { &[] };
                add_scaled::<I>(&tile[r][..end - key], values, ahead, sum);
            }
        }
    }
    for (index, head) in heads.iter_mut().enumerate() {
        for r in 0..tq {
            let row = index * tq + r;
            let total = fold_lanes(&totals[row]);
            head.total[r] = total;
            let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
            for (y, &sum) in head.out[r * dim..][..dim].iter_mut().zip(&sums[row * dim..]) {
                *y = sum * inverse;
            }
        }
    }
}
