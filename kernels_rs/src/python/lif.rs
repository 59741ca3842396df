//! Bindings of the leaky integrate-and-fire neurons.

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::isa::Level;
use crate::lif::problem::{Constants, Inputs, Reset, Shape, Surrogate, Weights};
use crate::lif::run::{self, Cotangents, Gradients, Outputs};
use crate::lif::CHUNK;
use crate::python::{invalid, slice, slice_mut, writable, Array, Count};

/// The arguments that both passes share, see [`Inputs`]; `w_rec` is the transpose of the map if `transposed`.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Call<'py> {
    x: PyReadonlyArray3<'py, f32>,
    beta: PyReadonlyArray1<'py, f32>,
    theta: PyReadonlyArray1<'py, f32>,
    gain: PyReadonlyArray1<'py, f32>,
    u0: PyReadonlyArray2<'py, f32>,
    s0: PyReadonlyArray2<'py, f32>,
    starts: Option<PyReadonlyArray2<'py, bool>>,
    w_rec: Option<PyReadonlyArray2<'py, f32>>,
    transposed: bool,
    reset: String,
}

fn named<T: Copy>(what: &str, name: &str, all: &[(&'static str, T)]) -> PyResult<T> {
    all.iter().find(|(known, _)| *known == name).map(|&(_, value)| value).ok_or_else(|| {
        let known: Vec<_> = all.iter().map(|(known, _)| *known).collect();
        invalid(format!("{what} = '{name}' is unknown; known: {}", known.join(", ")))
    })
}

impl Call<'_> {
    fn inputs(&self) -> PyResult<Inputs<'_>> {
        let x = self.x.shape();
        let shape = Shape { batch: x[0], tokens: x[1], width: x[2] };
        let starts = self.starts.as_ref();
        for (name, found, wanted) in [
            ("u0", Some(self.u0.shape()), [shape.batch, shape.width]),
            ("s0", Some(self.s0.shape()), [shape.batch, shape.width]),
            ("starts", starts.map(|x| x.shape()), [shape.batch, shape.tokens]),
            ("w_rec", self.w_rec.as_ref().map(|x| x.shape()), [shape.width, shape.width]),
        ] {
            if found.is_some_and(|found| found != wanted) {
                return Err(invalid(format!("{name} has shape {found:?}, but must have {wanted:?}")));
            }
        }
        let constants = Constants {
            beta: slice!(self.beta, "beta")?,
            theta: slice!(self.theta, "theta")?,
            gain: slice!(self.gain, "gain")?,
        };
        let weights = match &self.w_rec {
            None => None,
            Some(map) => Some(Weights { values: slice!(map, "w_rec")?, transposed: self.transposed }),
        };
        Ok(Inputs {
            shape,
            reset: named("reset", &self.reset, &Reset::ALL)?,
            constants,
            x: slice!(self.x, "x")?,
            u0: slice!(self.u0, "u0")?,
            s0: slice!(self.s0, "s0")?,
            starts: starts.map(|x| slice!(x, "starts")).transpose()?,
            weights,
        })
    }
}

/// Room for the results, see [`Outputs`].
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Room<'py> {
    spikes: Array<'py, 3>,
    last: Array<'py, 2>,
    kept: Array<'py, 3>,
    currents: Array<'py, 3>,
}

/// Room for the gradients; that of `w_rec` may be empty.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct GradientRoom<'py> {
    x: Array<'py, 3>,
    beta: Array<'py, 1>,
    theta: Array<'py, 1>,
    gain: Array<'py, 1>,
    u0: Array<'py, 2>,
    s0: Array<'py, 2>,
    w_rec: Array<'py, 2>,
}

/// Forward pass into `room`; `kept` and `currents` are left alone where they are empty.
#[pyfunction]
fn lif<'py>(py: Python<'py>, call: Call<'py>, room: Room<'py>, threads: Count) -> PyResult<()> {
    let inputs = call.inputs()?;
    let (mut spikes, mut last) = (writable(&room.spikes, "spikes")?, writable(&room.last, "last")?);
    let (mut kept, mut currents) = (writable(&room.kept, "kept")?, writable(&room.currents, "currents")?);
    let x = Outputs {
        spikes: slice_mut!(spikes, "spikes")?,
        last: slice_mut!(last, "last")?,
        kept: slice_mut!(kept, "kept")?,
        currents: slice_mut!(currents, "currents")?,
    };
    py.detach(|| run::forward_into(&inputs, x, threads.0, Level::best())).map_err(invalid)
}

/// Backward pass: gradients into `room`; `x` of the call is what the neurons were given in all.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn lif_backward<'py>(
    py: Python<'py>,
    call: Call<'py>,
    spikes: PyReadonlyArray3<'py, f32>,
    kept: PyReadonlyArray3<'py, f32>,
    grad_spikes: PyReadonlyArray3<'py, f32>,
    grad_last: PyReadonlyArray2<'py, f32>,
    surrogate: String,
    alpha: f64,
    detach_reset: bool,
    room: GradientRoom<'py>,
    threads: Count,
) -> PyResult<()> {
    let inputs = call.inputs()?;
    let bars = Cotangents {
        surrogate: (named("surrogate", &surrogate, &Surrogate::ALL)?, alpha),
        detach: detach_reset,
        kept: slice!(kept, "kept")?,
        spikes: slice!(spikes, "spikes")?,
        s_bar: slice!(grad_spikes, "grad_spikes")?,
        last_bar: slice!(grad_last, "grad_last")?,
    };
    let (mut x, mut weights) = (writable(&room.x, "x_grad")?, writable(&room.w_rec, "w_rec_grad")?);
    let (mut beta, mut theta) = (writable(&room.beta, "beta_grad")?, writable(&room.theta, "theta_grad")?);
    let mut gain = writable(&room.gain, "gain_grad")?;
    let (mut u0, mut s0) = (writable(&room.u0, "u0_grad")?, writable(&room.s0, "s0_grad")?);
    let x = Gradients {
        x: slice_mut!(x, "x_grad")?,
        beta: slice_mut!(beta, "beta_grad")?,
        theta: slice_mut!(theta, "theta_grad")?,
        gain: slice_mut!(gain, "gain_grad")?,
        u0: slice_mut!(u0, "u0_grad")?,
        s0: slice_mut!(s0, "s0_grad")?,
        weights: slice_mut!(weights, "w_rec_grad")?,
    };
    py.detach(|| run::backward_into(&inputs, bars, x, threads.0, Level::best())).map_err(invalid)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    // Tokens between two stored membrane potentials.
    m.add("LIF_CHUNK", CHUNK)?;
    m.add_function(wrap_pyfunction!(lif, m)?)?;
    m.add_function(wrap_pyfunction!(lif_backward, m)?)?;
    Ok(())
}
