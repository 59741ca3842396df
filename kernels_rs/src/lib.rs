//! CPU kernels of Bouton. `fatigue` is presynaptic-fatigue attention, forward and backward; `python` its bindings.

pub mod fatigue;
pub mod gemm;
pub mod isa;
pub mod lanes;
pub mod math;
#[cfg(feature = "extension-module")]
mod python;
