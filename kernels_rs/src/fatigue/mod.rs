//! Presynaptic-fatigue attention on the CPU.
//!
//! Along the queries t, for each key j: E = exp(L), C' = rho_c C + alpha log1p(E), P = sigmoid(s C'/(C' + k_d) + b)
//! E/(E + kappa); rule `min` releases W = min(P, R), rule `mul` W = P R; the pool R refills towards r_max by rho_r;
//! out = sum n v / sum n with n = E (eps + W)^lam. A pair that is not visible has E = 0.
//!
//! One pass over groups of query blocks; inside, over blocks of keys. No score leaves its tile.

pub mod backward;
pub mod decode;
pub mod forward;
pub mod mask;
pub mod problem;
pub mod run;
pub mod scores;
pub mod synapse;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

/// Queries in a tile; the state of every key is stored at these boundaries for the backward pass.
pub const QUERIES: usize = 64;
/// Keys in a tile.
pub const KEYS: usize = 64;
/// Half a tile: on the diagonal the first queries see none of the last keys, and no product is made of these.
pub const HALF_QUERIES: usize = QUERIES / 2;
pub const HALF_KEYS: usize = KEYS / 2;
/// With so few queries (decoding) nothing is packed: scores and sums run over rows of K and V as they lie.
pub const FEW_QUERIES: usize = 4;

/// Blocks of queries that share one pass over the keys: as many as stay in the second-level cache together with what a
/// tile needs.
pub fn blocks_per_group(padded_dim: usize) -> usize {
    (512 / padded_dim).clamp(1, 4)
}

/// One number per key of a tile.
pub type Row = [f32; KEYS];
/// One number per query and key of a tile.
pub type Tile = [Row; QUERIES];

/// A tile on the heap.
pub fn new_tile() -> Box<[Row]> {
    vec![[0f32; KEYS]; QUERIES].into_boxed_slice()
}
