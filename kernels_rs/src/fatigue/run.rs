//! A whole call: the heads over the threads. Every head is computed by one thread alone and sums over heads are made
//! afterwards in order, so the result does not depend on the number of threads.

use crate::fatigue::backward::Backward;
use crate::fatigue::decode::Decode;
use crate::fatigue::forward::Forward;
use crate::fatigue::problem::{Inputs, LOGIT_LIMIT};
use crate::fatigue::FEW_QUERIES;
use crate::isa::Level;
use crate::threads::{for_each, zeros};

/// Results of the forward pass, shapes as in [`Forward`] with (batch, heads) in front: vectors, or room for them.
pub struct Outputs<T> {
    pub out: T,
    pub total: T,
    pub calcium: T,
    pub pool: T,
    pub boundaries: T,
}

/// Gradients with respect to the results.
pub struct Cotangents<'a> {
    pub out: &'a [f32],
    pub calcium: &'a [f32],
    pub pool: &'a [f32],
}

/// Gradients with respect to the inputs; `kinetics` is (10, heads).
pub struct Gradients<T> {
    pub q: T,
    pub k: T,
    pub v: T,
    pub kinetics: T,
    pub calcium: T,
    pub pool: T,
}

/// [`forward_into`] new vectors.
pub fn forward(inputs: &Inputs<'_>, keep: bool, threads: usize, level: Level) -> Result<Outputs<Vec<f32>>, String> {
    inputs.check()?;
    let s = inputs.shape;
    let heads = s.batch * s.heads;
    let mut x = Outputs {
        out: zeros(&[heads, s.tq, s.dim])?,
        total: zeros(&[heads, s.tq])?,
        calcium: zeros(&[heads, s.tk])?,
        pool: zeros(&[heads, s.tk])?,
        boundaries: zeros(&[heads, if keep { inputs.boundaries() } else { 0 }])?,
    };
    let room = Outputs {
        out: &mut x.out[..],
        total: &mut x.total[..],
        calcium: &mut x.calcium[..],
        pool: &mut x.pool[..],
        boundaries: &mut x.boundaries[..],
    };
    forward_into(inputs, keep, room, threads, level)?;
    Ok(x)
}

/// Forward pass; `keep`: store what the backward pass needs. All of `x` is written, whatever it held, unless there is an
/// error.
pub fn forward_into(
    inputs: &Inputs<'_>,
    keep: bool,
    x: Outputs<&mut [f32]>,
    threads: usize,
    level: Level,
) -> Result<(), String> {
    inputs.check()?;
    let s = inputs.shape;
    let heads = s.batch * s.heads;
    let per_head = if keep { inputs.boundaries() } else { 0 };
    fits(&[
        ("out", x.out.len(), heads * s.tq * s.dim),
        ("total", x.total.len(), heads * s.tq),
        ("calcium", x.calcium.len(), heads * s.tk),
        ("pool", x.pool.len(), heads * s.tk),
        ("boundaries", x.boundaries.len(), heads * per_head),
    ])?;
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
        None => Ok(()),
        Some(logit) => Err(format!(
            "a logit q.k / sqrt(D) is {logit}; it must be within +-{LOGIT_LIMIT} (normalise q and k, or bound their gain)"
        )),
    }
}

/// [`backward_into`] new vectors.
pub fn backward(
    inputs: &Inputs<'_>,
    saved: (&[f32], &[f32], &[f32]),
    bars: &Cotangents<'_>,
    learn: bool,
    threads: usize,
    level: Level,
) -> Result<Gradients<Vec<f32>>, String> {
    inputs.check()?;
    let s = inputs.shape;
    let (heads, kv_heads) = (s.batch * s.heads, s.batch * s.kv_heads);
    let mut x = Gradients {
        q: zeros(&[heads, s.tq, s.dim])?,
        k: zeros(&[kv_heads, s.tk, s.dim])?,
        v: zeros(&[kv_heads, s.tk, s.dim])?,
        kinetics: zeros(&[10, s.heads])?,
        calcium: zeros(&[heads, s.tk])?,
        pool: zeros(&[heads, s.tk])?,
    };
    let room = Gradients {
        q: &mut x.q[..],
        k: &mut x.k[..],
        v: &mut x.v[..],
        kinetics: &mut x.kinetics[..],
        calcium: &mut x.calcium[..],
        pool: &mut x.pool[..],
    };
    backward_into(inputs, saved, bars, learn, room, threads, level)?;
    Ok(x)
}

/// Backward pass from the results of the forward pass with `keep`. All of `x` is written, whatever it held, unless there
/// is an error.
pub fn backward_into(
    inputs: &Inputs<'_>,
    saved: (&[f32], &[f32], &[f32]),
    bars: &Cotangents<'_>,
    learn: bool,
    x: Gradients<&mut [f32]>,
    threads: usize,
    level: Level,
) -> Result<(), String> {
    inputs.check()?;
    let s = inputs.shape;
    let (heads, kv_heads) = (s.batch * s.heads, s.batch * s.kv_heads);
    let (out, total, boundaries) = saved;
    let per_head = inputs.boundaries();
    fits(&[
        ("out", out.len(), heads * s.tq * s.dim),
        ("total", total.len(), heads * s.tq),
        ("boundaries", boundaries.len(), heads * per_head),
        ("grad_out", bars.out.len(), heads * s.tq * s.dim),
        ("grad_calcium", bars.calcium.len(), heads * s.tk),
        ("grad_pool", bars.pool.len(), heads * s.tk),
        ("q_grad", x.q.len(), heads * s.tq * s.dim),
        ("k_grad", x.k.len(), kv_heads * s.tk * s.dim),
        ("v_grad", x.v.len(), kv_heads * s.tk * s.dim),
        ("kinetics_grad", x.kinetics.len(), 10 * s.heads),
        ("calcium_grad", x.calcium.len(), heads * s.tk),
        ("pool_grad", x.pool.len(), heads * s.tk),
    ])?;
    // Every query head has gradients of its own, which are added up below; they grow in place where no heads share keys.
    let size = s.tk * s.dim;
    let (mut own_k, mut own_v) = (Vec::new(), Vec::new());
    let (k_grads, v_grads) = if s.group() == 1 {
        x.k.fill(0.0);
        x.v.fill(0.0);
        (&mut *x.k, &mut *x.v)
    } else {
        (own_k, own_v) = (zeros(&[heads, s.tk, s.dim])?, zeros(&[heads, s.tk, s.dim])?);
        (&mut own_k[..], &mut own_v[..])
    };
    let mut kinetics = vec![[0f64; 10]; heads];
    let mut jobs = Vec::with_capacity(heads);
    let of_keys = k_grads.chunks_exact_mut(size).zip(v_grads.chunks_exact_mut(size));
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
    for (name, row) in x.kinetics.chunks_exact_mut(s.heads).enumerate() {
        for (head, y) in row.iter_mut().enumerate() {
            let sum = (0..s.batch).map(|b| kinetics[b * s.heads + head][name]).sum::<f64>();
            *y = if learn { sum as f32 } else { 0.0 };
        }
    }
    if s.group() > 1 {
        sum_groups(&own_k, s.group(), size, x.k);
        sum_groups(&own_v, s.group(), size, x.v);
    }
    Ok(())
}

/// An error that names the first array without the length it must have.
fn fits(lengths: &[(&str, usize, usize)]) -> Result<(), String> {
    match lengths.iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((name, found, expected)) => Err(format!("{name} has {found} elements, but {expected} are needed")),
    }
}

/// out = sums of `group` consecutive blocks of length `size`.
fn sum_groups(x: &[f32], group: usize, size: usize, out: &mut [f32]) {
    for (sum, blocks) in out.chunks_exact_mut(size).zip(x.chunks_exact(group * size)) {
        sum.copy_from_slice(&blocks[..size]);
        for block in blocks[size..].chunks_exact(size) {
            for (y, &value) in sum.iter_mut().zip(block) {
                *y += value;
            }
        }
    }
}
