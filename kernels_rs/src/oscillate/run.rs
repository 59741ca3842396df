//! A whole call: blocks of rows over the threads, columns block by block. Sums over rows are made per block of rows and
//! added in order, so the result does not depend on the number of threads.

use crate::isa::{Isa, Job, Level};
use crate::oscillate::wave::{angle, sine_cosine, tanh};
use crate::oscillate::{BLOCK, ROWS};
use crate::threads::{for_each, zeros};

/// With fewer numbers than this a second thread costs more than it helps.
const WORTH_THREADS: usize = 1 << 13;

/// x (rows, width), the others (width).
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub width: usize,
    pub x: &'a [f32],
    pub omega: &'a [f32],
    pub phi: &'a [f32],
    pub baseline: Option<&'a [f32]>,
}

impl Inputs<'_> {
    fn check(&self, others: &[(&str, usize, usize)]) -> Result<(), String> {
        let width = self.width;
        if width == 0 || !self.x.len().is_multiple_of(width) {
            return Err(format!("x has {} elements, which is not a number of rows of width {width}", self.x.len()));
        }
        let own = [
            ("omega", self.omega.len(), width),
            ("phi", self.phi.len(), width),
            ("baseline", self.baseline.map_or(width, <[f32]>::len), width),
        ];
        for &(name, found, wanted) in own.iter().chain(others) {
            if found != wanted {
                return Err(format!("{name} has {found} elements, but {wanted} are needed"));
            }
        }
        Ok(())
    }

    fn threads(&self, wanted: usize) -> usize {
        if self.x.len() < WORTH_THREADS {
            1
        } else {
            wanted
        }
    }
}

struct Forward<'a, 'b> {
    inputs: Inputs<'a>,
    x: &'a [f32],
    y: &'b mut [f32],
}

/// y, shaped like x.
pub fn forward_into(inputs: &Inputs<'_>, y: &mut [f32], threads: usize, level: Level) -> Result<(), String> {
    inputs.check(&[("y", y.len(), inputs.x.len())])?;
    let part = rows_of_a_job(inputs) * inputs.width;
    let parts = inputs.x.chunks(part).zip(y.chunks_mut(part));
    let jobs = parts.map(|(x, y)| Forward { inputs: *inputs, x, y }).collect();
    for_each(inputs.threads(threads), jobs, |job| level.run(job))
}

/// Few rows are shared out among several jobs too.
fn rows_of_a_job(inputs: &Inputs<'_>) -> usize {
    const JOBS: usize = 8;
    (inputs.x.len() / inputs.width).div_ceil(JOBS).clamp(1, ROWS)
}

impl Job for Forward<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Inputs { width, omega, phi, baseline, .. } = self.inputs;
        for first in (0..width).step_by(BLOCK) {
            let here = first..width.min(first + BLOCK);
            let zero = [0f32; BLOCK];
            let baseline = baseline.map_or(&zero[..here.len()], |baseline| &baseline[here.clone()]);
            for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
                let (omega, phi) = (&omega[here.clone()], &phi[here.clone()]);
                forward_block::<I>(&x[here.clone()], omega, phi, baseline, &mut y[here.clone()]);
            }
        }
    }
}

#[inline(always)]
fn forward_block<I: Isa>(x: &[f32], omega: &[f32], phi: &[f32], baseline: &[f32], y: &mut [f32]) {
    let n = y.len().min(BLOCK);
    let (x, y, baseline) = (&x[..n], &mut y[..n], &baseline[..n]);
    let (r, quarter) = angles(x, omega, phi);
    for j in 0..n {
        let (sine, _) = sine_cosine::<I>(r[j], quarter[j]);
        let (envelope, _) = tanh::<I>(x[j]);
        y[j] = sine * envelope + baseline[j];
    }
}

/// In a loop by itself: it works on numbers of twice the size.
#[inline(always)]
fn angles(x: &[f32], omega: &[f32], phi: &[f32]) -> ([f32; BLOCK], [u32; BLOCK]) {
    let n = x.len();
    let (omega, phi) = (&omega[..n], &phi[..n]);
    let (mut r, mut quarter) = ([0f32; BLOCK], [0u32; BLOCK]);
    for j in 0..n.min(BLOCK) {
        (r[j], quarter[j]) = angle(omega[j], x[j], phi[j]);
    }
    (r, quarter)
}

/// Room for the gradients, shaped like what they belong to.
pub struct Gradients<'b> {
    pub x: &'b mut [f32],
    pub omega: &'b mut [f32],
    pub phi: &'b mut [f32],
    pub baseline: &'b mut [f32],
}

struct Backward<'a, 'b> {
    inputs: Inputs<'a>,
    x: &'a [f32],
    y_bar: &'a [f32],
    x_bar: &'b mut [f32],
    /// (3, width), of omega, phi and baseline
    sums: &'b mut [f32],
}

/// Gradients from that in y.
pub fn backward_into(
    inputs: &Inputs<'_>,
    y_bar: &[f32],
    grads: Gradients<'_>,
    threads: usize,
    level: Level,
) -> Result<(), String> {
    let width = inputs.width;
    inputs.check(&[
        ("grad_y", y_bar.len(), inputs.x.len()),
        ("x_grad", grads.x.len(), inputs.x.len()),
        ("omega_grad", grads.omega.len(), width),
        ("phi_grad", grads.phi.len(), width),
        ("baseline_grad", grads.baseline.len(), width),
    ])?;
    let part = rows_of_a_job(inputs) * width;
    let mut sums = zeros(&[inputs.x.len().div_ceil(part), 3, width])?;
    let mut jobs = Vec::new();
    let parts = inputs.x.chunks(part).zip(y_bar.chunks(part)).zip(grads.x.chunks_mut(part));
    for (((x, y_bar), x_bar), sums) in parts.zip(sums.chunks_exact_mut(3 * width)) {
        jobs.push(Backward { inputs: *inputs, x, y_bar, x_bar, sums });
    }
    for_each(inputs.threads(threads), jobs, |job| level.run(job))?;
    for (which, out) in [grads.omega, grads.phi, grads.baseline].into_iter().enumerate() {
        for (j, y) in out.iter_mut().enumerate() {
            *y = sums.chunks_exact(3 * width).map(|part| f64::from(part[which * width + j])).sum::<f64>() as f32;
        }
    }
    Ok(())
}

impl Job for Backward<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Inputs { width, omega, phi, .. } = self.inputs;
        let (of_omega, rest) = self.sums.split_at_mut(width);
        let (of_phi, of_baseline) = rest.split_at_mut(width);
        for first in (0..width).step_by(BLOCK) {
            let here = first..width.min(first + BLOCK);
            let (omega, phi) = (&omega[here.clone()], &phi[here.clone()]);
            let (of_omega, of_phi) = (&mut of_omega[here.clone()], &mut of_phi[here.clone()]);
            let of_baseline = &mut of_baseline[here.clone()];
            let rows = self.x.chunks_exact(width).zip(self.y_bar.chunks_exact(width));
            for ((x, y_bar), x_bar) in rows.zip(self.x_bar.chunks_exact_mut(width)) {
                let (x, y_bar, x_bar) = (&x[here.clone()], &y_bar[here.clone()], &mut x_bar[here.clone()]);
                backward_block::<I>(x, y_bar, omega, phi, x_bar, of_omega, of_phi, of_baseline);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn backward_block<I: Isa>(
    x: &[f32],
    y_bar: &[f32],
    omega: &[f32],
    phi: &[f32],
    x_bar: &mut [f32],
    of_omega: &mut [f32],
    of_phi: &mut [f32],
    of_baseline: &mut [f32],
) {
    let n = x_bar.len().min(BLOCK);
    let (x, y_bar, omega) = (&x[..n], &y_bar[..n], &omega[..n]);
    let (x_bar, of_omega) = (&mut x_bar[..n], &mut of_omega[..n]);
    let (of_phi, of_baseline) = (&mut of_phi[..n], &mut of_baseline[..n]);
    let (r, quarter) = angles(x, omega, phi);
    for j in 0..n {
        let (sine, cosine) = sine_cosine::<I>(r[j], quarter[j]);
        let (envelope, slope) = tanh::<I>(x[j]);
        let swing = cosine * envelope;
        let into_phi = y_bar[j] * swing;
        x_bar[j] = y_bar[j] * I::fma(omega[j], swing, sine * slope);
        of_omega[j] += into_phi * x[j];
        of_phi[j] += into_phi;
        of_baseline[j] += y_bar[j];
    }
}
