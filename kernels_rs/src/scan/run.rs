//! A whole call: jobs of some channels of a batch row over the threads. How the work is cut never depends on the number
//! of threads, and no two jobs add into the same number, so neither do the results.

use crate::isa::Level;
use crate::scan::kernels::{Backward, Forward, Into};
use crate::scan::problem::{Coefficient, Inputs, Shape};
use crate::scan::GROUP;
use crate::threads::{for_each, zeros};

/// With fewer numbers than this a second thread costs more than it helps.
const WORTH_THREADS: usize = 1 << 15;

/// Gradients; `a` and `floor` have one row per token if theirs do, (batch, tokens, channels), else (batch, 1, channels);
/// they are empty if nobody asked.
pub struct Gradients {
    pub x: Vec<f32>,
    pub a: Vec<f32>,
    pub state: Vec<f32>,
    pub floor: Vec<f32>,
}

/// Forward pass: y, with the shape of `x`.
pub fn forward(inputs: &Inputs<'_>, x: &[f32], threads: usize, level: Level) -> Result<Vec<f32>, String> {
    inputs.check(&[("x", x)])?;
    let mut y = zeros(&inputs.shape.dims())?;
    let jobs = rows_of_jobs(&mut y, inputs.shape);
    let jobs = jobs.into_iter().enumerate().map(|(i, y)| Forward { inputs, span: inputs.span(i), x, y }).collect();
    for_each(useful_threads(threads, inputs.shape), jobs, |job| level.run(job))?;
    Ok(y)
}

/// Which gradients are asked for beside those of `x` and the state.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub a: bool,
    pub floor: bool,
}

/// Backward pass from the result `y` of the forward pass and the gradients in it and in its last row.
pub fn backward(
    inputs: &Inputs<'_>,
    y: &[f32],
    y_bar: &[f32],
    last_bar: &[f32],
    wanted: Wanted,
    threads: usize,
    level: Level,
) -> Result<Gradients, String> {
    inputs.check(&[("y", y), ("grad_y", y_bar)])?;
    let shape = inputs.shape;
    if last_bar.len() != inputs.state.len() {
        return Err(format!("grad_last has {} elements, but {} are needed", last_bar.len(), inputs.state.len()));
    }
    let size = |coefficient: Option<Coefficient<'_>>| match coefficient {
        None => zeros(&[0]),
        Some(x) => zeros(&[shape.batch, if x.per_token() { shape.tokens } else { 1 }, shape.channels]),
    };
    let a = Some(inputs.a).filter(|_| wanted.a);
    let floor = inputs.floor.filter(|_| wanted.floor);
    let mut grads = Gradients {
        x: zeros(&shape.dims())?,
        a: size(a)?,
        state: zeros(&[shape.batch, shape.channels])?,
        floor: size(floor)?,
    };
    let x_rows = rows_of_jobs(&mut grads.x, shape);
    let targets = targets(&mut grads.a, a, shape).into_iter().zip(targets(&mut grads.floor, floor, shape));
    let states = rows_of_jobs(&mut grads.state, Shape { tokens: 1, ..shape }).into_iter().flatten();
    let mut jobs = Vec::with_capacity(shape.batch * shape.groups());
    for (i, ((x_bar, (a_bar, floor_bar)), state_bar)) in x_rows.into_iter().zip(targets).zip(states).enumerate() {
        let span = inputs.span(i);
        jobs.push(Backward { inputs, span, y, y_bar, last_bar, x_bar, a_bar, floor_bar, state_bar });
    }
    for_each(useful_threads(threads, shape), jobs, |job| level.run(job))?;
    Ok(grads)
}

fn useful_threads(threads: usize, shape: Shape) -> usize {
    if shape.dims().iter().product::<usize>() < WORTH_THREADS {
        1
    } else {
        threads
    }
}

/// For each job its part of the rows of an array (batch, tokens, channels).
fn rows_of_jobs(values: &mut [f32], shape: Shape) -> Vec<Vec<&mut [f32]>> {
    let groups = shape.groups();
    let mut jobs: Vec<_> = (0..shape.batch * groups).map(|_| Vec::with_capacity(shape.tokens)).collect();
    for (index, row) in values.chunks_exact_mut(shape.channels).enumerate() {
        let batch = index / shape.tokens;
        for (job, part) in jobs[batch * groups..].iter_mut().zip(row.chunks_mut(GROUP)) {
            job.push(part);
        }
    }
    jobs
}

/// For each job where its part of the gradient of a coefficient goes.
fn targets<'b>(values: &'b mut [f32], coefficient: Option<Coefficient<'_>>, shape: Shape) -> Vec<Into<'b>> {
    match coefficient {
        None => (0..shape.batch * shape.groups()).map(|_| Into::Nothing).collect(),
        Some(x) if x.per_token() => rows_of_jobs(values, shape).into_iter().map(Into::Rows).collect(),
        Some(_) => {
            let rows = rows_of_jobs(values, Shape { tokens: 1, ..shape });
            rows.into_iter().flatten().map(Into::Sum).collect()
        }
    }
}
