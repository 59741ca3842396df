//! What one thread does in a step: the sums of its share of the nodes, and which of them may stay active.

use crate::isa::{prefetch, Level};
use crate::substrate::graph::{Nodes, Pool};
use crate::substrate::select::{block_of, Candidates, Scan, BLOCK};
use crate::substrate::spread::Active;
use crate::substrate::transpose::Transposed;

/// Rows between the one that is asked for from memory and the one that is read.
const AHEAD: usize = 8;

/// Room that is kept between calls; all zeros between them.
#[derive(Default)]
pub struct Scratch {
    pub(super) sums: Vec<f32>,
    pub(super) dirty: Vec<u8>,
    pub(super) levels: Vec<f32>,
    pub(super) scaled: Vec<Vec<f32>>,
    pub(super) parts: Vec<Candidates>,
}

impl Scratch {
    pub fn bytes(&self) -> usize {
        let scaled: usize = self.scaled.iter().map(Vec::capacity).sum();
        4 * (self.sums.capacity() + self.levels.capacity() + scaled) + self.dirty.capacity()
    }

    pub fn prepare(&mut self, nodes: usize) {
        let whole = nodes.next_multiple_of(BLOCK);
        if self.sums.len() != whole {
            *self = Scratch { sums: vec![0.0; whole], dirty: vec![0; whole / BLOCK], ..Scratch::default() };
        }
    }

    pub fn clear(&mut self) {
        let whole = self.sums.len();
        self.parts.resize_with(1, Candidates::default);
        parts(&[0, whole], &mut self.sums, &mut self.dirty, &mut self.parts).iter_mut().for_each(Part::clear);
    }
}

/// A row along which a level is pushed.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) start: u32,
    pub(super) len: u32,
    /// The level times the weight of the relation.
    pub(super) level: f32,
}

/// Rows of one relation, of a part of the active nodes; where each is cut for the threads, from 0 to its length.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) rows: Vec<Row>,
    pub(super) cuts: Vec<u32>,
}

/// The nodes `first..` of which one thread makes the sums: the share number `share`.
pub(super) struct Part<'a> {
    pub(super) share: usize,
    pub(super) first: usize,
    pub(super) sums: &'a mut [f32],
    pub(super) dirty: &'a mut [u8],
    pub(super) found: &'a mut Candidates,
}

/// What all parts read.
pub(super) struct View<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) pool: &'a Pool,
    pub(super) active: &'a Active,
    pub(super) rows: &'a [Rows],
    pub(super) shares: usize,
    pub(super) count: usize,
}

impl Rows {
    /// Cut every row at these nodes.
    pub(super) fn cut(&mut self, pool: &Pool, nodes: &[usize]) {
        for (i, row) in self.rows.iter().enumerate() {
            if let Some(later) = self.rows.get(i + AHEAD) {
                let slots = later.start as usize..(later.start + later.len) as usize;
                prefetch(bytemuck::cast_slice(&pool.target[slots]));
            }
            let targets = &pool.target[row.start as usize..(row.start + row.len) as usize];
            let mut from = 0;
            self.cuts.push(0);
            for &node in &nodes[1..nodes.len() - 1] {
                from += targets[from..].partition_point(|&to| (to as usize) < node);
                self.cuts.push(from as u32);
            }
            self.cuts.push(row.len);
        }
    }

    /// The slots of a row that belong to one of the shares.
    #[inline(always)]
    fn slots(&self, row: usize, share: usize, shares: usize) -> std::ops::Range<usize> {
        let Row { start, len, .. } = self.rows[row];
        match self.cuts.get(row * (shares + 1) + share..) {
            Some([from, to, ..]) => (start + from) as usize..(start + to) as usize,
            _ => start as usize..(start + len) as usize,
        }
    }
}

impl Part<'_> {
    fn clear(&mut self) {
        for (block, touched) in self.dirty.iter_mut().enumerate().filter(|(_, touched)| **touched != 0) {
            self.sums[block * BLOCK..(block + 1) * BLOCK].fill(0.0);
            *touched = 0;
        }
    }

    pub(super) fn push(&mut self, view: &View<'_>) {
        self.clear();
        let end = self.first + self.sums.len();
        let ids = &view.active.ids;
        let here =
            ids.partition_point(|&id| (id as usize) < self.first)..ids.partition_point(|&id| (id as usize) < end);
        for (&id, &level) in ids[here.clone()].iter().zip(&view.active.levels[here]) {
            // Added to a zero, as in a pull: a product that is minus zero must not stay one.
            self.sums[id as usize - self.first] += level * view.nodes.decay[id as usize];
            self.dirty[block_of(id as usize - self.first)] = 1;
        }
        let (targets, weights) = (&view.pool.target[..], &view.pool.weight[..]);
        let (sums, dirty, first) = (&mut *self.sums, &mut *self.dirty, self.first);
        for part in view.rows {
            for (i, row) in part.rows.iter().enumerate() {
                if i + AHEAD < part.rows.len() {
                    let later = part.slots(i + AHEAD, self.share, view.shares);
                    prefetch(bytemuck::cast_slice(&targets[later.clone()]));
                    prefetch(&weights[later]);
                }
                let slots = part.slots(i, self.share, view.shares);
                for (&target, &weight) in targets[slots.clone()].iter().zip(&weights[slots]) {
                    let at = target as usize - first;
                    sums[at] += row.level * weight;
                    dirty[block_of(at)] = 1;
                }
            }
        }
    }

    pub(super) fn pull(&mut self, view: &View<'_>, levels: &[f32], transposed: &Transposed, scaled: &[Vec<f32>]) {
        let nodes = self.first..view.count.min(self.first + self.sums.len());
        self.dirty.fill(1);
        for ((sum, &level), &decay) in
            self.sums.iter_mut().zip(&levels[nodes.clone()]).zip(&view.nodes.decay[nodes.clone()])
        {
            *sum = 0.0 + level * decay;
        }
        for incoming in &transposed.layers {
            let scaled = &scaled[incoming.relation];
            incoming.add(self.first / BLOCK, if scaled.is_empty() { levels } else { scaled }, self.sums);
        }
    }

    pub(super) fn scan(&mut self, view: &View<'_>, pivot: f32, signed: bool, level: Level) {
        self.found.pivot = pivot;
        let count = view.count.min(self.first + self.sums.len()) - self.first;
        level.run(Scan {
            first: self.first,
            levels: self.sums,
            dirty: self.dirty,
            threshold: &view.nodes.threshold[self.first..self.first + count],
            signed,
            found: self.found,
        });
    }
}

/// Cut the sums at these block-aligned nodes.
pub(super) fn parts<'a>(
    cuts: &[usize],
    mut sums: &'a mut [f32],
    mut dirty: &'a mut [u8],
    found: &'a mut [Candidates],
) -> Vec<Part<'a>> {
    let mut parts = Vec::with_capacity(found.len());
    for (share, (bounds, found)) in cuts.windows(2).zip(found).enumerate() {
        let (here, later) = sums.split_at_mut(bounds[1] - bounds[0]);
        let (mine, others) = dirty.split_at_mut((bounds[1] - bounds[0]) / BLOCK);
        (sums, dirty) = (later, others);
        parts.push(Part { share, first: bounds[0], sums: here, dirty: mine, found });
    }
    parts
}
