//! The oscillating activation y = sin(omega x + phi) tanh(x) + baseline, one omega, phi and baseline for each column.
//!
//! Both passes read x and compute sine, cosine and tanh anew, so that x alone is kept. Arrays are (rows, width).

pub mod run;
pub mod wave;

#[cfg(test)]
mod tests;

/// Columns that are computed together: what they need stays in the first-level cache.
pub const BLOCK: usize = 128;
/// Rows of a job; a sum over them is made in single precision, the sum of those in double.
pub const ROWS: usize = 128;
