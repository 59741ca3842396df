//! First-order recurrences along time, for every channel of every batch row by itself:
//!
//! ```text
//! y_t = a_t y_{t-1} + x_t              affine
//! y_t = max(a_t y_{t-1} + x_t, f_t)    max-affine; at a tie the floor is taken
//! ```
//!
//! Arrays are (batch, tokens, channels): the numbers of one token lie side by side, so that a step of the recurrence is
//! one pass over a row. A step waits for the one before it; the channels of a job are many enough to fill that time.

pub mod kernels;
pub mod problem;
pub mod run;

#[cfg(test)]
mod tests;

/// Channels of a job: a row of them is worth several dependent operations, and stays in the first-level cache.
pub const GROUP: usize = 256;
