//! Leaky integrate-and-fire neurons along time, alone or hearing each other's last spikes:
//!
//! ```text
//! I_t = x_t + W s_{t-1}                                  W is absent in the plain scan
//! u_t = beta u_{t-1} + gain I_t - theta s_{t-1}          reset `subtract`, or with `before_decay`
//! u_t = beta (u_{t-1} - theta s_{t-1}) + gain I_t
//! u_t = beta (u_{t-1} (1 - s_{t-1})) + gain I_t          reset `zero`
//! u_t = beta u_{t-1} + gain I_t                          reset `none`
//! s_t = 1[u_t > theta]
//! ```
//!
//! Arrays are (batch, tokens, width): the neurons of one token lie side by side. The membrane potential is computed in
//! the order written, product by product and sum by sum without fused operations, so that every level of instructions,
//! and torch, finds the same spikes to the last bit. The backward pass computes it again, a stretch of [`CHUNK`] tokens
//! at a time, from the one before each stretch: it is cheaper than to write it to memory and to read it.

pub mod neuron;
pub mod patch;
pub mod plain;
pub mod problem;
pub mod recurrent;
pub mod run;
pub mod weights;

#[cfg(test)]
mod tests;

/// Neurons of a job of the plain scan: their state stays in the first-level cache.
pub const GROUP: usize = 512;
/// Tokens between two stored membrane potentials.
pub const CHUNK: usize = 8;
/// Stretches whose contributions to the gradient of a constant are added in single precision.
pub const TERMS: usize = 8;
