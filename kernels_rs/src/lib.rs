//! CPU kernels of Bouton, forward and backward: `fatigue` is presynaptic-fatigue attention, `fast_weights` the
//! fast-weight recurrence, `scan` the first-order recurrences, `lif` the leaky integrate-and-fire neurons and `oscillate`
//! the oscillating activation; `substrate` is the associative graph, which learns by itself; `peak` is what the processor
//! can do at most; `python` has the bindings.

pub mod fast_weights;
pub mod fatigue;
pub mod gemm;
pub mod isa;
pub mod lanes;
pub mod lif;
pub mod math;
pub mod oscillate;
pub mod peak;
#[cfg(feature = "extension-module")]
mod python;
pub mod scan;
pub mod substrate;
pub mod threads;
