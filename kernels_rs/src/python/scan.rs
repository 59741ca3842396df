//! Bindings of the recurrences.

use numpy::{IntoPyArray, PyArrayMethods, PyReadonlyArray2, PyReadonlyArray3, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::isa::Level;
use crate::python::{invalid, shaped, slice, Array, Count};
use crate::scan::problem::{Coefficient, Inputs, Shape};
use crate::scan::run::{self, Wanted};

type Rows<'py> = PyReadonlyArray3<'py, f32>;
type Gradients<'py> = (Array<'py, 3>, Option<Array<'py, 3>>, Array<'py, 2>, Option<Array<'py, 3>>);

fn dims(x: &Rows<'_>) -> [usize; 3] {
    [x.shape()[0], x.shape()[1], x.shape()[2]]
}

/// What both passes share; `like` has the shape of x.
fn inputs<'a>(
    like: &Rows<'_>,
    a: &'a Rows<'_>,
    state: &'a PyReadonlyArray2<'_, f32>,
    starts: Option<&'a PyReadonlyArray2<'_, bool>>,
    floor: Option<&'a Rows<'_>>,
) -> PyResult<Inputs<'a>> {
    let [batch, tokens, channels] = dims(like);
    let same = |name: &str, found: &[usize], wanted: [usize; 2]| {
        if found == wanted {
            Ok(())
        } else {
            Err(invalid(format!("{name} has shape {found:?}, but must have {wanted:?}")))
        }
    };
    same("state", state.shape(), [batch, channels])?;
    if let Some(starts) = starts {
        same("starts", starts.shape(), [batch, tokens])?;
    }
    Ok(Inputs {
        shape: Shape { batch, tokens, channels },
        a: Coefficient::new(slice!(a, "a")?, dims(a)),
        state: slice!(state, "state")?,
        starts: starts.map(|x| slice!(x, "starts")).transpose()?,
        floor: match floor {
            None => None,
            Some(x) => Some(Coefficient::new(slice!(x, "floor")?, dims(x))),
        },
    })
}

/// y (batch, tokens, channels) with y_t = a_t y_{t-1} + x_t, and not below `floor` if there is one. Any axis of `a` and
/// `floor` may have size 1; `state` is y before the first token; before a token of `starts` y is 0.
#[pyfunction]
#[pyo3(signature = (x, a, state, starts, floor, threads))]
pub fn scan<'py>(
    py: Python<'py>,
    x: Rows<'py>,
    a: Rows<'py>,
    state: PyReadonlyArray2<'py, f32>,
    starts: Option<PyReadonlyArray2<'py, bool>>,
    floor: Option<Rows<'py>>,
    threads: Count,
) -> PyResult<Array<'py, 3>> {
    let inputs = inputs(&x, &a, &state, starts.as_ref(), floor.as_ref())?;
    let rows = slice!(x, "x")?;
    let y = py.detach(|| run::forward(&inputs, rows, threads.0, Level::best())).map_err(invalid)?;
    shaped(py, y, inputs.shape.dims())
}

/// Gradients of `(x, a, state, floor)` from those in y and in its last row; those of `a` and `floor` are None unless
/// wanted, (batch, tokens, channels) if theirs differ between tokens, else (batch, 1, channels).
#[pyfunction]
#[pyo3(signature = (grad_y, grad_last, y, a, state, starts, floor, want_a, want_floor, threads))]
#[allow(clippy::too_many_arguments)]
pub fn scan_backward<'py>(
    py: Python<'py>,
    grad_y: Rows<'py>,
    grad_last: PyReadonlyArray2<'py, f32>,
    y: Rows<'py>,
    a: Rows<'py>,
    state: PyReadonlyArray2<'py, f32>,
    starts: Option<PyReadonlyArray2<'py, bool>>,
    floor: Option<Rows<'py>>,
    want_a: bool,
    want_floor: bool,
    threads: Count,
) -> PyResult<Gradients<'py>> {
    let inputs = inputs(&y, &a, &state, starts.as_ref(), floor.as_ref())?;
    if grad_y.shape() != y.shape() || grad_last.shape() != state.shape() {
        return Err(invalid(format!(
            "grad_y {:?} and grad_last {:?} must have the shapes of y {:?} and state {:?}",
            grad_y.shape(),
            grad_last.shape(),
            y.shape(),
            state.shape()
        )));
    }
    let (y, y_bar, last_bar) = (slice!(y, "y")?, slice!(grad_y, "grad_y")?, slice!(grad_last, "grad_last")?);
    let wanted = Wanted { a: want_a, floor: want_floor };
    let level = Level::best();
    let work = || run::backward(&inputs, y, y_bar, last_bar, wanted, threads.0, level);
    let found = py.detach(work).map_err(invalid)?;
    let [batch, tokens, channels] = inputs.shape.dims();
    let rows_of = |x: Coefficient<'_>| [batch, if x.per_token() { tokens } else { 1 }, channels];
    let a_bar = if want_a { Some(shaped(py, found.a, rows_of(inputs.a))?) } else { None };
    let floor_bar = match inputs.floor.filter(|_| want_floor) {
        None => None,
        Some(x) => Some(shaped(py, found.floor, rows_of(x))?),
    };
    Ok((
        shaped(py, found.x, [batch, tokens, channels])?,
        a_bar,
        found.state.into_pyarray(py).reshape([batch, channels])?,
        floor_bar,
    ))
}
