//! The edges seen from their targets: what a pull reads. Made on demand, dropped by whatever changes an edge.

use std::ops::Range;

use crate::substrate::graph::Graph;
use crate::substrate::memory::Buffer;
use crate::substrate::select::{block_of, BLOCK};

/// Bits of an edge's target, within its block; the others are those of the source, within its range.
const TARGET_BITS: u32 = BLOCK.trailing_zeros();
/// The largest range of sources.
const FAR: usize = 1 << (u32::BITS - TARGET_BITS);
/// Sources whose levels stay in the second-level cache while they are gathered.
const NEAR: usize = 1 << 18;
/// Edges into a block of targets below which a range of sources is not worth a pass of its own.
const FEW: usize = 32;

/// Incoming edges of one relation from one range of sources: blocks of targets, within a block ascending sources. The
/// ranges of a relation ascend, so that one after the other they give every sum in the canonical order.
pub struct Incoming {
    pub relation: usize,
    pub sources: Range<usize>,
    /// Where the edges of each block begin, and one element more.
    pub start: Buffer<u32>,
    /// Source and target of each edge.
    pub ends: Buffer<u32>,
    pub weight: Buffer<f32>,
}

pub struct Transposed {
    pub layers: Vec<Incoming>,
}

impl Incoming {
    /// Add what arrives at the nodes from block `first` on.
    #[inline]
    pub fn add(&self, first: usize, levels: &[f32], sums: &mut [f32]) {
        let levels = &levels[self.sources.clone()];
        let (blocks, _) = sums.as_chunks_mut::<BLOCK>();
        let starts = &self.start[first..=first + blocks.len()];
        for (sums, here) in blocks.iter_mut().zip(starts.windows(2)) {
            let here = here[0] as usize..here[1] as usize;
            for (&ends, &weight) in self.ends[here.clone()].iter().zip(&self.weight[here]) {
                sums[ends as usize & (BLOCK - 1)] += levels[(ends >> TARGET_BITS) as usize] * weight;
            }
        }
    }
}

impl Transposed {
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|x| x.start.bytes() + x.ends.bytes() + x.weight.bytes()).sum()
    }
}

impl Graph {
    /// Make the transpose unless it is there.
    pub fn transpose(&mut self) -> Result<(), String> {
        if self.transposed.is_none() {
            let mut layers = Vec::new();
            for (relation, _) in self.used() {
                let edges: usize = self.layers[relation].place.iter().map(|place| place[1] as usize).sum();
                let worth = edges / (FEW * self.count.div_ceil(BLOCK));
                let ranges = self.count.div_ceil(NEAR).min(worth).max(self.count.div_ceil(FAR));
                let size = self.count.div_ceil(ranges);
                for first in (0..self.count).step_by(size) {
                    layers.push(self.incoming(relation, first..self.count.min(first + size))?);
                }
            }
            self.transposed = Some(Transposed { layers });
        }
        Ok(())
    }

    fn incoming(&self, relation: usize, sources: Range<usize>) -> Result<Incoming, String> {
        let (layer, pool) = (&self.layers[relation], &self.pool);
        let mut start = Buffer::<u32>::zeros(self.count.div_ceil(BLOCK) + 1)?;
        for node in sources.clone() {
            for &target in &pool.target[layer.row(node as u32)] {
                start[block_of(target as usize) + 1] += 1;
            }
        }
        for i in 1..start.len() {
            start[i] += start[i - 1];
        }
        let edges = start[start.len() - 1] as usize;
        let (mut ends, mut weight) = (Buffer::<u32>::zeros(edges)?, Buffer::<f32>::zeros(edges)?);
        let (mut next, ends_, weight_) = (start.to_vec(), &mut ends[..], &mut weight[..]);
        for node in sources.clone() {
            let (row, source) = (layer.row(node as u32), ((node - sources.start) as u32) << TARGET_BITS);
            for (&target, &w) in pool.target[row.clone()].iter().zip(&pool.weight[row]) {
                let place = &mut next[block_of(target as usize)];
                ends_[*place as usize] = source | target & (BLOCK as u32 - 1);
                weight_[*place as usize] = w;
                *place += 1;
            }
        }
        Ok(Incoming { relation, sources, start, ends, weight })
    }
}
