//! An associative graph that learns by local rules: nodes with levels of activation, weighted edges of named relations,
//! spreading, three-factor learning, growth and pruning.
//!
//! Nodes and edges are arrays, one per field. The edges of one relation are a [`graph::Layer`]: for every node a row of
//! the shared pool, sorted by target. Every sum over edges is made in one canonical order (the node's own decayed level,
//! then relation by relation, ascending sources), and threads share out targets or rows, never the terms of a sum: so
//! results are the same to the last bit for any number of threads, pushed along rows or pulled through the transpose.

pub mod edges;
pub mod explain;
pub mod file;
pub mod graph;
pub mod learn;
pub mod memory;
pub mod random;
pub mod select;
pub mod share;
pub mod spread;
pub mod step;
pub mod surprise;
pub mod trace;
pub mod transpose;
pub mod trophin;
pub mod update;
pub mod working;

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod learn_tests;
#[cfg(test)]
mod tests;

/// No node.
pub const NONE: u32 = u32::MAX;
/// Weights are at most this large, relations' weights [`MOST_RELATION`] and levels [`MOST_LEVEL`]: no sum of products of
/// them over 2^32 edges reaches infinity, so levels are always numbers.
pub const MOST_WEIGHT: f32 = 1e6;
pub const MOST_RELATION: f32 = 1e3;
pub const MOST_LEVEL: f32 = 1e18;

/// `Err` that names the argument unless all values are numbers of magnitude `most` or less.
pub fn bounded(name: &str, values: &[f32], most: f32) -> Result<(), String> {
    match values.iter().find(|x| x.is_nan() || x.abs() > most) {
        None => Ok(()),
        Some(x) => Err(format!("{name} contains {x}, but must be numbers from -{most:e} to {most:e}")),
    }
}

/// `Err` that names the argument unless all are nodes.
pub fn within(name: &str, ids: &[u32], nodes: usize) -> Result<(), String> {
    match ids.iter().find(|&&id| id as usize >= nodes) {
        None => Ok(()),
        Some(id) => Err(format!("{name} contains {id}, but the graph has the nodes 0 to {}", nodes as i64 - 1)),
    }
}

/// `Err` unless the two have the same number of elements.
pub fn same_length(name: &str, found: usize, other: &str, wanted: usize) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{name} has {found} elements, but {other} has {wanted}"))
}
