//! A whole call: jobs over the threads. Sums over tokens are made within a batch row, and those of the rows are added in
//! order, so the result does not depend on the number of threads.

use crate::isa::Level;
use crate::lif::problem::{Inputs, Shape, Surrogate};
use crate::lif::{plain, recurrent, weights, GROUP};
use crate::threads::for_each;

/// With fewer numbers than this a second thread costs more than it helps.
const WORTH_THREADS: usize = 1 << 15;

/// Room for the results; what it holds is overwritten.
pub struct Outputs<'b> {
    /// (batch, tokens, width)
    pub spikes: &'b mut [f32],
    /// (batch, width), u after the last token
    pub last: &'b mut [f32],
    /// (batch, stretches - 1, width), or empty if the backward pass is not to come
    pub kept: &'b mut [f32],
    /// (batch, tokens, width), I of the recurrent scan; empty like `kept`, and in the plain scan
    pub currents: &'b mut [f32],
}

/// What the backward pass starts from, beside the inputs (of which `x` is I).
#[derive(Clone, Copy)]
pub struct Cotangents<'a> {
    pub surrogate: (Surrogate, f64),
    pub detach: bool,
    pub kept: &'a [f32],
    /// (batch, tokens, width), what the forward pass returned; used with weights alone
    pub spikes: &'a [f32],
    pub s_bar: &'a [f32],
    pub last_bar: &'a [f32],
}

/// Room for the gradients, shaped like what they belong to; that of the weights may be empty: then nobody asks for it.
pub struct Gradients<'b> {
    pub x: &'b mut [f32],
    pub beta: &'b mut [f32],
    pub theta: &'b mut [f32],
    pub gain: &'b mut [f32],
    pub u0: &'b mut [f32],
    pub s0: &'b mut [f32],
    pub weights: &'b mut [f32],
}

pub fn useful_threads(threads: usize, shape: Shape) -> usize {
    if shape.batch * shape.tokens * shape.width < WORTH_THREADS {
        1
    } else {
        threads
    }
}

pub fn forward_into(inputs: &Inputs<'_>, x: Outputs<'_>, threads: usize, level: Level) -> Result<(), String> {
    let shape = inputs.shape;
    inputs.check(&[])?;
    let (whole, state) = (shape.batch * shape.tokens * shape.width, shape.batch * shape.width);
    let or_empty = |found: usize, wanted: usize| if found == 0 { 0 } else { wanted };
    inputs.check(&[
        ("spikes", x.spikes.len(), whole),
        ("last", x.last.len(), state),
        ("kept", x.kept.len(), or_empty(x.kept.len(), state * shape.kept())),
        ("currents", x.currents.len(), or_empty(x.currents.len(), whole)),
    ])?;
    if inputs.weights.is_some() {
        return recurrent::forward(inputs, x, threads, level);
    }
    let spikes = rows_of_jobs(x.spikes, shape.tokens, shape.width);
    let mut kept: Vec<_> = (0..spikes.len()).map(|_| Vec::new()).collect();
    if !x.kept.is_empty() {
        kept = rows_of_jobs(x.kept, shape.kept(), shape.width);
    }
    let last = rows_of_jobs(x.last, 1, shape.width).into_iter().flatten();
    let mut jobs = Vec::with_capacity(spikes.len());
    for (i, ((spikes, kept), last)) in spikes.into_iter().zip(kept).zip(last).enumerate() {
        jobs.push(plain::Forward { inputs, span: inputs.span(i), spikes, kept, last });
    }
    for_each(useful_threads(threads, shape), jobs, |job| level.run(job))
}

pub fn backward_into(
    inputs: &Inputs<'_>,
    bars: Cotangents<'_>,
    x: Gradients<'_>,
    threads: usize,
    level: Level,
) -> Result<(), String> {
    let shape = inputs.shape;
    inputs.check(&[])?;
    let Shape { batch, tokens, width } = shape;
    let (whole, state) = (batch * tokens * width, batch * width);
    inputs.check(&[
        ("kept", bars.kept.len(), state * shape.kept()),
        ("grad_spikes", bars.s_bar.len(), whole),
        ("grad_last", bars.last_bar.len(), state),
        ("x_grad", x.x.len(), whole),
        ("beta_grad", x.beta.len(), width),
        ("theta_grad", x.theta.len(), width),
        ("gain_grad", x.gain.len(), width),
        ("u0_grad", x.u0.len(), state),
        ("s0_grad", x.s0.len(), state),
    ])?;
    let alpha = bars.surrogate.1;
    if !(alpha > 0.0 && alpha < f64::INFINITY) {
        return Err(format!("alpha = {alpha} must be a number > 0"));
    }
    // (batch, 3, width)
    let mut sums = vec![0f64; 3 * state];
    if let Some(of_map) = inputs.weights {
        if !x.weights.is_empty() {
            let square = width * width;
            inputs.check(&[("spikes", bars.spikes.len(), whole), ("w_rec_grad", x.weights.len(), square)])?;
        }
        recurrent::backward(inputs, of_map, bars, (&mut *x.x, x.u0, x.s0), &mut sums, threads, level)?;
        if !x.weights.is_empty() {
            weights::gradient(inputs, bars.spikes, x.x, x.weights, useful_threads(threads, shape), level)?;
        }
    } else {
        let x_bars = rows_of_jobs(x.x, tokens, width);
        let u0_bars = rows_of_jobs(x.u0, 1, width).into_iter().flatten();
        let s0_bars = rows_of_jobs(x.s0, 1, width).into_iter().flatten();
        let sums_of_jobs = rows_of_jobs(&mut sums, 3, width);
        let mut jobs = Vec::with_capacity(x_bars.len());
        for (i, (((x_bar, u0_bar), s0_bar), sums)) in x_bars.into_iter().zip(u0_bars).zip(s0_bars).zip(sums_of_jobs).enumerate()
        {
            jobs.push(plain::Backward { inputs, span: inputs.span(i), bars, x_bar, u0_bar, s0_bar, sums });
        }
        for_each(useful_threads(threads, shape), jobs, |job| level.run(job))?;
    }
    for (which, out) in [x.beta, x.theta, x.gain].into_iter().enumerate() {
        for (j, y) in out.iter_mut().enumerate() {
            *y = (0..batch).map(|b| sums[(3 * b + which) * width + j]).sum::<f64>() as f32;
        }
    }
    Ok(())
}

/// For each job, batch row by batch row and group by group, its part of the rows of an array (batch, rows, width).
fn rows_of_jobs<T>(values: &mut [T], rows: usize, width: usize) -> Vec<Vec<&mut [T]>> {
    let groups = width.div_ceil(GROUP);
    let batch = values.len() / (rows * width).max(1);
    let mut jobs: Vec<_> = (0..batch * groups).map(|_| Vec::with_capacity(rows)).collect();
    for (index, row) in values.chunks_exact_mut(width).enumerate() {
        let first = index / rows * groups;
        for (job, part) in jobs[first..].iter_mut().zip(row.chunks_mut(GROUP)) {
            job.push(part);
        }
    }
    jobs
}
