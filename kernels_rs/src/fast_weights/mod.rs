//! Fast weights on the CPU, token by token.
//!
//! read_t = q_t (F + S), then F' = keep F + eta k_t (x) error, S' = rho_s S + eta_s g F'. Rule `hebb`: keep = rho_f,
//! error = v_t; `oja`: keep_c = max(rho_f - eta v_tc^2, 0); `delta`: error = v_t - k_t F. A document starts at zero.
//!
//! Columns of v never meet, except in the gradients of what they share. So a job owns some columns of one head, and
//! goes through them in groups of 16 lanes and chunks of a few tokens, whose states stay in the first-level cache.
//! With a rank as small as this op's, no chunkwise form needs less arithmetic.

pub mod backward;
pub mod forward;
pub mod problem;
pub mod run;
#[cfg(test)]
mod tests;
mod wide;

/// Columns per group; the last group of a job is padded with zeros, which stay zeros.
pub const LANES: usize = 16;
/// Tokens between two stored states; the backward pass replays this many at a time.
pub const CHUNK: usize = 16;
pub const RULES: [&str; 3] = ["hebb", "oja", "delta"];
pub const HEBB: usize = 0;
pub const OJA: usize = 1;
pub const DELTA: usize = 2;

/// One number per column of a group.
pub type Lanes = [f32; LANES];
pub const ZERO: Lanes = [0.0; LANES];
