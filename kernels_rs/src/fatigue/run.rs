//! A whole call: the heads over the threads. Every head is computed by one thread alone and sums over heads are made
//! afterwards in order, so the result does not depend on the number of threads.

use crate::fatigue::backward::Backward;
use crate::fatigue::decode::Decode;
use crate::fatigue::forward::Forward;
use crate::fatigue::problem::{Inputs, LOGIT_LIMIT};
use crate::fatigue::FEW_QUERIES;
use crate::isa::Level;
use crate::threads::{for_each, zeros};

/// Results of the forward pass, shapes as in [`Forward`] with (batch, heads) in front.
pub struct Outputs {
    pub out: Vec<f32>,
    pub total: Vec<f32>,
    pub calcium: Vec<f32>,
    pub pool: Vec<f32>,
    pub boundaries: Vec<f32>,
}

/// Gradients with respect to the results.
pub struct Cotangents<'a> {
    pub out: &'a [f32],
    pub calcium: &'a [f32],
    pub pool: &'a [f32],
}

/// Gradients with respect to the inputs; `kinetics` is (10, heads).
pub struct Gradients {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub kinetics: Vec<f32>,
    pub calcium: Vec<f32>,
    pub pool: Vec<f32>,
}

/// Forward pass; `keep`: store what the backward pass needs.
pub fn forward(inputs: &Inputs<'_>, keep: bool, threads: usize, level: Level) -> Result<Outputs, String> {
    inputs.check()?;
    let s = inputs.shape;
    let heads = s.batch * s.heads;
    let per_head = if keep { inputs.boundaries() } else { 0 };
    let mut x = Outputs {
        out: zeros(&[heads, s.tq, s.dim])?,
        total: zeros(&[heads, s.tq])?,
        calcium: zeros(&[heads, s.tk])?,
        pool: zeros(&[heads, s.tk])?,
        boundaries: zeros(&[heads, per_head])?,
    };
    let mut excess = vec![None; heads];
    let mut boundaries = x.boundaries.chunks_exact_mut(per_head.max(1));
    let mut jobs = Vec::with_capacity(heads);
    let parts = x.out.chunks_exact_mut(s.tq * s.dim).zip(x.total.chunks_exact_mut(s.tq));
    let states = x.calcium.chunks_exact_mut(s.tk).zip(x.pool.chunks_exact_mut(s.tk)).zip(&mut excess);
    for (index, ((out, total), ((calcium, pool), excess))) in parts.zip(states).enumerate() {
        let boundaries = boundaries.next().unwrap_or_default();
        jobs.push(Forward { inputs: inputs.head(index), out, total, calcium, pool, boundaries, excess });
    }
    if s.tq <= FEW_QUERIES {
        // Heads that share their keys go together where they share the form of the gate too (else the bits of the result
        // would depend on the company), unless that would leave threads without work.
        let together = if s.batch * s.kv_heads >= threads.max(1) { s.group() } else { 1 };
        let mut groups: Vec<Decode<'_>> = Vec::with_capacity(heads);
        for (index, job) in jobs.into_iter().enumerate() {
            match groups.last_mut() {
                Some(group) if index % together > 0 && group.takes(&job) => group.heads.push(job),
                _ => groups.push(Decode { heads: vec![job] }),
            }
        }
        for_each(threads, groups, |job| level.run(job))?;
    } else {
        for_each(threads, jobs, |job| level.run(job))?;
    }
    match excess.into_iter().flatten().next() {
        None => Ok(x),
        Some(logit) => Err(format!(
            "a logit q.k / sqrt(D) is {logit}; it must be within +-{LOGIT_LIMIT} (normalise q and k, or bound their gain)"
        )),
    }
}

/// Backward pass from the results of the forward pass with `keep`.
pub fn backward(
    inputs: &Inputs<'_>,
    saved: (&[f32], &[f32], &[f32]),
    bars: &Cotangents<'_>,
    learn: bool,
    threads: usize,
    level: Level,
) -> Result<Gradients, String> {
    inputs.check()?;
    let s = inputs.shape;
    let heads = s.batch * s.heads;
    let (out, total, boundaries) = saved;
    let per_head = inputs.boundaries();
    for (name, found, expected) in [
        ("out", out.len(), heads * s.tq * s.dim),
        ("total", total.len(), heads * s.tq),
        ("boundaries", boundaries.len(), heads * per_head),
        ("grad_out", bars.out.len(), heads * s.tq * s.dim),
        ("grad_calcium", bars.calcium.len(), heads * s.tk),
        ("grad_pool", bars.pool.len(), heads * s.tk),
    ] {
        if found != expected {
            return Err(format!("{name} has {found} elements, but {expected} are needed"));
        }
    }
    let mut x = Gradients {
        q: zeros(&[heads, s.tq, s.dim])?,
        k: zeros(&[heads, s.tk, s.dim])?,
        v: zeros(&[heads, s.tk, s.dim])?,
        kinetics: zeros(&[10, s.heads])?,
        calcium: zeros(&[heads, s.tk])?,
        pool: zeros(&[heads, s.tk])?,
    };
    let mut kinetics = vec![[0f64; 10]; heads];
    let mut jobs = Vec::with_capacity(heads);
    let of_keys = x.k.chunks_exact_mut(s.tk * s.dim).zip(x.v.chunks_exact_mut(s.tk * s.dim));
    let states = x.calcium.chunks_exact_mut(s.tk).zip(x.pool.chunks_exact_mut(s.tk));
    let rest = x.q.chunks_exact_mut(s.tq * s.dim).zip(&mut kinetics);
    for (index, (((k_grad, v_grad), (calcium_grad, pool_grad)), (q_grad, kinetics_grad))) in
        of_keys.zip(states).zip(rest).enumerate()
    {
        jobs.push(Backward {
            inputs: inputs.head(index),
            out: &out[index * s.tq * s.dim..][..s.tq * s.dim],
            total: &total[index * s.tq..][..s.tq],
            boundaries: &boundaries[index * per_head..][..per_head],
            out_bar: &bars.out[index * s.tq * s.dim..][..s.tq * s.dim],
            calcium_bar: &bars.calcium[index * s.tk..][..s.tk],
            pool_bar: &bars.pool[index * s.tk..][..s.tk],
            learn,
            q_grad,
            k_grad,
            v_grad,
            kinetics_grad,
            calcium_grad,
            pool_grad,
        });
    }
    for_each(threads, jobs, |job| level.run(job))?;
    if learn {
        for (name, row) in x.kinetics.chunks_exact_mut(s.heads).enumerate() {
            for (head, y) in row.iter_mut().enumerate() {
                *y = (0..s.batch).map(|b| kinetics[b * s.heads + head][name]).sum::<f64>() as f32;
            }
        }
    }
    x.k = sum_groups(x.k, s.group(), s.tk * s.dim);
    x.v = sum_groups(x.v, s.group(), s.tk * s.dim);
    Ok(x)
}

/// Sums of `group` consecutive blocks of length `size`.
fn sum_groups(x: Vec<f32>, group: usize, size: usize) -> Vec<f32> {
    if group == 1 {
        return x;
    }
    let mut out = Vec::with_capacity(x.len() / group);
    for blocks in x.chunks_exact(group * size) {
        let start = out.len();
        out.extend_from_slice(&blocks[..size]);
        for block in blocks[size..].chunks_exact(size) {
            for (y, &value) in out[start..].iter_mut().zip(block) {
                *y += value;
            }
        }
    }
    out
}
