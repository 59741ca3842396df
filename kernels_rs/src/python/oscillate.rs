//! Bindings of the oscillating activation.

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::isa::Level;
use crate::oscillate::run::{self, Gradients, Inputs};
use crate::python::{invalid, slice, slice_mut, writable, Array, Count};

/// x (rows, width), the others (width).
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Call<'py> {
    x: PyReadonlyArray2<'py, f32>,
    omega: PyReadonlyArray1<'py, f32>,
    phi: PyReadonlyArray1<'py, f32>,
    baseline: Option<PyReadonlyArray1<'py, f32>>,
}

impl Call<'_> {
    fn inputs(&self) -> PyResult<Inputs<'_>> {
        let baseline = match &self.baseline {
            None => None,
            Some(baseline) => Some(slice!(baseline, "baseline")?),
        };
        let (omega, phi) = (slice!(self.omega, "omega")?, slice!(self.phi, "phi")?);
        Ok(Inputs { width: self.x.shape()[1], x: slice!(self.x, "x")?, omega, phi, baseline })
    }
}

/// Room for the gradients.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct GradientRoom<'py> {
    x: Array<'py, 2>,
    omega: Array<'py, 1>,
    phi: Array<'py, 1>,
    baseline: Array<'py, 1>,
}

/// sin(omega x + phi) tanh(x) + baseline, into `y`.
#[pyfunction]
fn oscillate<'py>(py: Python<'py>, call: Call<'py>, y: Array<'py, 2>, threads: Count) -> PyResult<()> {
    let inputs = call.inputs()?;
    let mut room = writable(&y, "y")?;
    let y = slice_mut!(room, "y")?;
    py.detach(|| run::forward_into(&inputs, y, threads.0, Level::best())).map_err(invalid)
}

/// Gradients from that in y, into `room`.
#[pyfunction]
fn oscillate_backward<'py>(
    py: Python<'py>,
    call: Call<'py>,
    grad_y: PyReadonlyArray2<'py, f32>,
    room: GradientRoom<'py>,
    threads: Count,
) -> PyResult<()> {
    let inputs = call.inputs()?;
    let y_bar = slice!(grad_y, "grad_y")?;
    let (mut x, mut omega) = (writable(&room.x, "x_grad")?, writable(&room.omega, "omega_grad")?);
    let (mut phi, mut baseline) = (writable(&room.phi, "phi_grad")?, writable(&room.baseline, "baseline_grad")?);
    let grads = Gradients {
        x: slice_mut!(x, "x_grad")?,
        omega: slice_mut!(omega, "omega_grad")?,
        phi: slice_mut!(phi, "phi_grad")?,
        baseline: slice_mut!(baseline, "baseline_grad")?,
    };
    py.detach(|| run::backward_into(&inputs, y_bar, grads, threads.0, Level::best())).map_err(invalid)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(oscillate, m)?)?;
    m.add_function(wrap_pyfunction!(oscillate_backward, m)?)?;
    Ok(())
}
