//! The edges seen from their targets: what a pull reads. Made on demand, dropped by whatever changes an edge.

use crate::substrate::graph::Graph;
use crate::substrate::memory::Buffer;

/// Incoming edges of one relation, ascending by (target, source).
pub struct Incoming {
    pub relation: usize,
    /// Where the edges of each target begin, and one element more.
    pub start: Buffer<u32>,
    pub source: Buffer<u32>,
    pub weight: Buffer<f32>,
}

pub struct Transposed {
    pub layers: Vec<Incoming>,
}

impl Transposed {
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|x| x.start.bytes() + x.source.bytes() + x.weight.bytes()).sum()
    }
}

impl Graph {
    /// Make the transpose unless it is there.
    pub fn transpose(&mut self) -> Result<(), String> {
        if self.transposed.is_none() {
            let layers = self.used().map(|(relation, _)| self.incoming(relation)).collect::<Result<_, _>>()?;
            self.transposed = Some(Transposed { layers });
        }
        Ok(())
    }

    fn incoming(&self, relation: usize) -> Result<Incoming, String> {
        let (layer, pool) = (&self.layers[relation], &self.pool);
        let mut start = Buffer::<u32>::zeros(self.count + 1)?;
        for node in 0..self.count as u32 {
            for &target in &pool.target[layer.row(node)] {
                start[target as usize + 1] += 1;
            }
        }
        for i in 0..self.count {
            start[i + 1] += start[i];
        }
        let edges = start[self.count] as usize;
        let (mut source, mut weight) = (Buffer::<u32>::zeros(edges)?, Buffer::<f32>::zeros(edges)?);
        let mut next = start.to_vec();
        for node in 0..self.count as u32 {
            let row = layer.row(node);
            for (&target, &w) in pool.target[row.clone()].iter().zip(&pool.weight[row]) {
                let place = &mut next[target as usize];
                source[*place as usize] = node;
                weight[*place as usize] = w;
                *place += 1;
            }
        }
        Ok(Incoming { relation, start, source, weight })
    }
}
