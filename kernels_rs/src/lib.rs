//! CPU kernels of Bouton. `fatigue` is presynaptic-fatigue attention, forward and backward; `peak` what the processor
//! can do at most; `python` the bindings.

pub mod fatigue;
pub mod gemm;
pub mod isa;
pub mod lanes;
pub mod math;
pub mod peak;
#[cfg(feature = "extension-module")]
mod python;
