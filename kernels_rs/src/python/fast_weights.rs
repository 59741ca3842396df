//! Python's view of `fast_weights`: arrays in, flat arrays out, checked as in `python`.

use numpy::{
    IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3, PyReadonlyArray4,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::fast_weights::run::{self, Inputs, Shape};
use crate::fast_weights::{CHUNK, LANES, RULES};
use crate::isa::Level;
use crate::python::{invalid, slice, Count};

type Flat<'py> = Bound<'py, PyArray1<f32>>;

macro_rules! optional {
    ($array:expr, $name:literal) => {
        match &$array {
            Some(array) => Some(slice!(array, $name)?),
            None => None,
        }
    };
}

/// The arguments that both passes share, see [`Inputs`].
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Call<'py> {
    rule: String,
    q: PyReadonlyArray4<'py, f32>,
    k: PyReadonlyArray4<'py, f32>,
    v: PyReadonlyArray4<'py, f32>,
    eta: PyReadonlyArray3<'py, f32>,
    gate: Option<PyReadonlyArray3<'py, f32>>,
    rates: PyReadonlyArray2<'py, f32>,
    fast: PyReadonlyArray4<'py, f32>,
    slow: Option<PyReadonlyArray4<'py, f32>>,
    starts: Option<PyReadonlyArray2<'py, u8>>,
}

impl Call<'_> {
    fn inputs(&self) -> PyResult<Inputs<'_>> {
        let (q, v) = (self.q.shape(), self.v.shape());
        let shape = Shape { batch: q[0], tokens: q[1], heads: q[2], rank: q[3], dv: v[3] };
        let Shape { batch, tokens, heads, rank, dv } = shape;
        let expected = |name: &str, found: Option<&[usize]>, wanted: &[usize]| match found {
            Some(found) if found != wanted => {
                Err(invalid(format!("{name} has shape {found:?}, but must have {wanted:?}")))
            }
            _ => Ok(()),
        };
        expected("k", Some(self.k.shape()), &[batch, tokens, heads, rank])?;
        expected("v", Some(v), &[batch, tokens, heads, dv])?;
        expected("eta", Some(self.eta.shape()), &[batch, tokens, heads])?;
        expected("gate", self.gate.as_ref().map(|x| x.shape()), &[batch, tokens, heads])?;
        expected("rates", Some(self.rates.shape()), &[3, heads])?;
        expected("fast", Some(self.fast.shape()), &[batch, heads, rank, dv])?;
        expected("slow", self.slow.as_ref().map(|x| x.shape()), &[batch, heads, rank, dv])?;
        expected("starts", self.starts.as_ref().map(|x| x.shape()), &[batch, tokens])?;
        let rule = RULES.iter().position(|&name| name == self.rule);
        Ok(Inputs {
            shape,
            rule: rule
                .ok_or_else(|| invalid(format!("rule = '{}' is unknown; known: {}", self.rule, RULES.join(", "))))?,
            q: slice!(self.q, "q")?,
            k: slice!(self.k, "k")?,
            v: slice!(self.v, "v")?,
            eta: slice!(self.eta, "eta")?,
            gate: optional!(self.gate, "gate"),
            rates: slice!(self.rates, "rates")?,
            fast: slice!(self.fast, "fast")?,
            slow: optional!(self.slow, "slow"),
            starts: optional!(self.starts, "starts"),
        })
    }
}

/// Forward pass: `(read, fast, slow, boundaries)`; the last is empty unless `keep`.
#[pyfunction]
fn fast_weights<'py>(py: Python<'py>, call: Call<'py>, keep: bool, threads: Count) -> PyResult<[Flat<'py>; 4]> {
    let inputs = call.inputs()?;
    let x = py.detach(|| run::forward(&inputs, keep, threads.0, Level::best())).map_err(invalid)?;
    Ok([x.read, x.fast, x.slow, x.boundaries].map(|x| x.into_pyarray(py)))
}

/// Backward pass: gradients of `(q, k, v, eta, gate, rates, fast, slow)`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn fast_weights_backward<'py>(
    py: Python<'py>,
    call: Call<'py>,
    boundaries: PyReadonlyArray1<'py, f32>,
    grad_read: PyReadonlyArray4<'py, f32>,
    grad_fast: PyReadonlyArray4<'py, f32>,
    grad_slow: Option<PyReadonlyArray4<'py, f32>>,
    threads: Count,
) -> PyResult<[Flat<'py>; 8]> {
    let inputs = call.inputs()?;
    let kept = slice!(boundaries, "boundaries")?;
    let bars = (slice!(grad_read, "grad_read")?, slice!(grad_fast, "grad_fast")?, optional!(grad_slow, "grad_slow"));
    let x = py.detach(|| run::backward(&inputs, kept, bars, threads.0, Level::best())).map_err(invalid)?;
    Ok([x.q, x.k, x.v, x.eta, x.gate, x.rates, x.fast, x.slow].map(|x| x.into_pyarray(py)))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    // What a stored state needs: one per so many tokens, its columns padded to so many.
    m.add("FAST_WEIGHTS_CHUNK", CHUNK)?;
    m.add("FAST_WEIGHTS_LANES", LANES)?;
    m.add_function(wrap_pyfunction!(fast_weights, m)?)?;
    m.add_function(wrap_pyfunction!(fast_weights_backward, m)?)?;
    Ok(())
}
