//! Both passes of one job: a group of channels of one batch row, token by token.

use crate::isa::{Isa, Job};
use crate::scan::problem::{Inputs, Span};
use crate::scan::GROUP;

/// Tokens whose contributions to the gradient of a constant are added in single precision.
const TERMS: usize = 64;

const ZEROS: [f32; GROUP] = [0.0; GROUP];

/// Forward pass of one job.
pub struct Forward<'a, 'b> {
    pub inputs: &'a Inputs<'a>,
    pub span: Span,
    /// (batch, tokens, channels)
    pub x: &'a [f32],
    /// One row for each token.
    pub y: Vec<&'b mut [f32]>,
}

impl Job for Forward<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let (inputs, span) = (self.inputs, self.span);
        for t in 0..self.y.len() {
            let (done, rest) = self.y.split_at_mut(t);
            let before = if inputs.is_start(span.batch, t) {
                &ZEROS[..span.count]
            } else if t == 0 {
                inputs.before(&span)
            } else {
                &*done[t - 1]
            };
            let a = inputs.a.row(span.batch, t, span.first, span.count);
            let x = inputs.row(self.x, &span, t);
            match inputs.floor.map(|floor| floor.row(span.batch, t, span.first, span.count)) {
                None => step::<I>(a, before, x, rest[0]),
                Some(floor) => {
                    step::<I>(a, before, x, rest[0]);
                    raise(floor, rest[0]);
                }
            }
        }
    }
}

/// y = a before + x
#[inline(always)]
fn step<I: Isa>(a: &[f32], before: &[f32], x: &[f32], y: &mut [f32]) {
    let n = y.len();
    let (before, x) = (&before[..n], &x[..n]);
    if a.len() == n {
        for j in 0..n {
            y[j] = I::fma(a[j], before[j], x[j]);
        }
    } else {
        let a = a[0];
        for j in 0..n {
            y[j] = I::fma(a, before[j], x[j]);
        }
    }
}

/// y = max(y, floor); what is not a number stays.
#[inline(always)]
fn raise(floor: &[f32], y: &mut [f32]) {
    let n = y.len();
    if floor.len() == n {
        for j in 0..n {
            y[j] = if y[j] <= floor[j] { floor[j] } else { y[j] };
        }
    } else {
        let floor = floor[0];
        for value in y.iter_mut() {
            *value = if *value <= floor { floor } else { *value };
        }
    }
}

/// Where the gradient of a coefficient goes.
pub enum Into<'b> {
    /// Nobody asks for it.
    Nothing,
    /// One row for each token.
    Rows(Vec<&'b mut [f32]>),
    /// One row: the sum over the tokens.
    Sum(&'b mut [f32]),
}

/// Backward pass of one job, from the last token to the first.
pub struct Backward<'a, 'b> {
    pub inputs: &'a Inputs<'a>,
    pub span: Span,
    /// (batch, tokens, channels), what the forward pass returned
    pub y: &'a [f32],
    /// (batch, tokens, channels), gradient of the loss in y
    pub y_bar: &'a [f32],
    /// (batch, channels), gradient in the state after the last token
    pub last_bar: &'a [f32],
    /// One row for each token.
    pub x_bar: Vec<&'b mut [f32]>,
    pub a_bar: Into<'b>,
    pub floor_bar: Into<'b>,
    /// One row.
    pub state_bar: &'b mut [f32],
}

impl Job for Backward<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let (inputs, span) = (self.inputs, self.span);
        let n = span.count;
        // What the later tokens pass on to y_t.
        let mut carry = [0f32; GROUP];
        let start = span.batch * inputs.shape.channels + span.first;
        carry[..n].copy_from_slice(&self.last_bar[start..start + n]);
        let (mut a_sum, mut floor_sum) = (Sum::new(), Sum::new());
        for t in (0..inputs.shape.tokens).rev() {
            let gradient = &mut *self.x_bar[t];
            add(inputs.row(self.y_bar, &span, t), &carry, gradient);
            if let Some(floor) = inputs.floor {
                let floor = floor.row(span.batch, t, span.first, n);
                let y = inputs.row(self.y, &span, t);
                match &mut self.floor_bar {
                    Into::Nothing => split(floor, y, gradient, &mut [0f32; GROUP][..n]),
                    Into::Rows(rows) => split(floor, y, gradient, rows[t]),
                    Into::Sum(_) => {
                        let mut part = [0f32; GROUP];
                        split(floor, y, gradient, &mut part[..n]);
                        floor_sum.add(&part[..n]);
                    }
                }
            }
            let fresh = inputs.is_start(span.batch, t);
            let before = if fresh {
                &ZEROS[..n]
            } else if t == 0 {
                inputs.before(&span)
            } else {
                inputs.row(self.y, &span, t - 1)
            };
            match &mut self.a_bar {
                Into::Nothing => (),
                Into::Rows(rows) => multiply(before, gradient, rows[t]),
                Into::Sum(_) => {
                    let mut part = [0f32; GROUP];
                    multiply(before, gradient, &mut part[..n]);
                    a_sum.add(&part[..n]);
                }
            }
            if fresh {
                carry = ZEROS;
            } else {
                multiply(inputs.a.row(span.batch, t, span.first, n), gradient, &mut carry[..n]);
            }
        }
        self.state_bar.copy_from_slice(&carry[..n]);
        if let Into::Sum(row) = self.a_bar {
            a_sum.finish(row);
        }
        if let Into::Sum(row) = self.floor_bar {
            floor_sum.finish(row);
        }
    }
}

/// z = x + y
#[inline(always)]
fn add(x: &[f32], y: &[f32], z: &mut [f32]) {
    let n = z.len();
    let (x, y) = (&x[..n], &y[..n]);
    for j in 0..n {
        z[j] = x[j] + y[j];
    }
}

/// z = x y; x may be one number for all.
#[inline(always)]
fn multiply(x: &[f32], y: &[f32], z: &mut [f32]) {
    let n = z.len();
    let y = &y[..n];
    if x.len() == n {
        for j in 0..n {
            z[j] = x[j] * y[j];
        }
    } else {
        let x = x[0];
        for j in 0..n {
            z[j] = x * y[j];
        }
    }
}

/// The gradient in y goes on into the affine branch where y is above its floor, else into the floor.
#[inline(always)]
fn split(floor: &[f32], y: &[f32], gradient: &mut [f32], of_floor: &mut [f32]) {
    let n = y.len();
    let (gradient, of_floor) = (&mut gradient[..n], &mut of_floor[..n]);
    if floor.len() == n {
        for j in 0..n {
            let all = gradient[j];
            let above = y[j] > floor[j];
            gradient[j] = if above { all } else { 0.0 };
            of_floor[j] = if above { 0.0 } else { all };
        }
    } else {
        let floor = floor[0];
        for j in 0..n {
            let all = gradient[j];
            let above = y[j] > floor;
            gradient[j] = if above { all } else { 0.0 };
            of_floor[j] = if above { 0.0 } else { all };
        }
    }
}

/// Sums of many rows: short stretches in single, the whole in double precision.
struct Sum {
    stretch: [f32; GROUP],
    whole: [f64; GROUP],
    terms: usize,
}

impl Sum {
    fn new() -> Sum {
        Sum { stretch: ZEROS, whole: [0.0; GROUP], terms: 0 }
    }
    #[inline(always)]
    fn add(&mut self, row: &[f32]) {
        let stretch = &mut self.stretch[..row.len()];
        for j in 0..row.len() {
            stretch[j] += row[j];
        }
        self.terms += 1;
        if self.terms == TERMS {
            self.flush();
        }
    }
    #[inline(always)]
    fn flush(&mut self) {
        for j in 0..GROUP {
            self.whole[j] += f64::from(self.stretch[j]);
            self.stretch[j] = 0.0;
        }
        self.terms = 0;
    }
    #[inline(always)]
    fn finish(mut self, row: &mut [f32]) {
        self.flush();
        for (y, &sum) in row.iter_mut().zip(&self.whole) {
            *y = sum as f32;
        }
    }
}
