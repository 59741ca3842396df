//! What one thread does in a step: the sums of its share of the nodes, and which of them may stay active.

use crate::isa::{prefetch, Isa, Job, Level};
use crate::substrate::graph::{Layer, Nodes, Pool};
use crate::substrate::memory::Buffer;
use crate::substrate::select::{block_of, Candidates, Scan, BLOCK};
use crate::substrate::spread::Active;
use crate::substrate::transpose::Transposed;
use crate::threads::for_each;

/// Rows between the one that is asked for from memory and the one that is read; nodes, for what stands per node.
const AHEAD: usize = 8;
pub(super) const NODES_AHEAD: usize = 16;
/// Edges per block of nodes from which on all blocks count as touched, and are not marked one by one.
const EVERYWHERE: u64 = 4;

/// Room that is kept between calls.
pub struct Scratch {
    /// All zeros between calls; within one, zeros in the blocks that are not dirty.
    pub(super) sums: Buffer<f32>,
    pub(super) dirty: Vec<u8>,
    /// For a pull: the level of every node, and that times the weight of each relation, where it is not 1.
    pub(super) levels: Buffer<f32>,
    pub(super) scaled: Vec<Buffer<f32>>,
    pub(super) parts: Vec<Candidates>,
    pub(super) rows: Vec<Rows>,
    pub(super) spare: Active,
}

impl Scratch {
    pub fn new(nodes: usize) -> Result<Scratch, String> {
        let whole = nodes.next_multiple_of(BLOCK);
        Ok(Scratch {
            sums: Buffer::zeros(whole)?,
            dirty: vec![0; whole / BLOCK],
            levels: Buffer::zeros(0)?,
            scaled: Vec::new(),
            parts: Vec::new(),
            rows: Vec::new(),
            spare: Active::default(),
        })
    }

    pub fn bytes(&self) -> usize {
        let of_pair = |ids: &Vec<u32>, levels: &Vec<f32>| 4 * (ids.capacity() + levels.capacity());
        self.sums.bytes()
            + self.dirty.capacity()
            + self.levels.bytes()
            + self.scaled.iter().map(Buffer::bytes).sum::<usize>()
            + self.parts.iter().map(|part| of_pair(&part.ids, &part.levels)).sum::<usize>()
            + self.rows.iter().map(Rows::bytes).sum::<usize>()
            + of_pair(&self.spare.ids, &self.spare.levels)
    }

    /// Zeros again. Every thread clears the share that it had.
    pub(super) fn clear(&mut self, threads: usize, cuts: &[usize]) -> Result<(), String> {
        self.parts.resize_with(cuts.len() - 1, Candidates::default);
        for_each(threads, parts(cuts, &mut self.sums, &mut self.dirty, &mut self.parts), |mut part| part.clear())
    }
}

/// A row along which a level is pushed.
#[derive(Clone, Copy)]
pub(super) struct Row {
    start: u32,
    len: u32,
    /// The level times the weight of the relation.
    level: f32,
}

/// Rows of one relation, of a part of the active nodes.
#[derive(Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    pub(super) edges: u64,
}

/// What all parts read.
pub(super) struct View<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) pool: &'a Pool,
    pub(super) active: &'a Active,
    /// Those of a part of the active nodes together, `relations` of them.
    pub(super) rows: &'a [Rows],
    pub(super) relations: usize,
    pub(super) shares: usize,
    pub(super) count: usize,
    pub(super) level: Level,
}

impl Rows {
    fn bytes(&self) -> usize {
        size_of::<Row>() * self.rows.capacity()
    }

    /// The rows of these nodes.
    pub(super) fn gather(&mut self, layer: &Layer, weight: f32, active: (&[u32], &[f32])) {
        let (ids, levels) = active;
        self.rows.clear();
        self.rows.reserve(ids.len());
        for (i, (&id, &level)) in ids.iter().zip(levels).enumerate() {
            if let Some(&later) = ids.get(i + NODES_AHEAD) {
                prefetch(bytemuck::cast_slice(&layer.place[later as usize..=later as usize]));
            }
            let [start, len] = layer.place[id as usize];
            if len > 0 {
                self.rows.push(Row { start, len, level: level * weight });
            }
        }
        self.edges = self.rows.iter().map(|row| row.len as u64).sum();
    }
}

/// The nodes `first..` of which one thread makes the sums.
pub(super) struct Part<'a> {
    pub(super) first: usize,
    pub(super) sums: &'a mut [f32],
    pub(super) dirty: &'a mut [u8],
    pub(super) found: &'a mut Candidates,
}

/// How many of ascending nodes are below one; without a branch that depends on them.
#[inline(always)]
fn below(nodes: &[u32], end: u32) -> usize {
    const SHORT: usize = 64;
    match nodes.len() {
        0..=SHORT => nodes.iter().map(|&node| (node < end) as u32).sum::<u32>() as usize,
        _ => nodes.partition_point(|&node| node < end),
    }
}

/// [`Part::add`] for every instruction set.
struct Add<'a, 'b, 'c, const MARK: bool>(&'a mut Part<'b>, &'a View<'c>);

impl<const MARK: bool> Job for Add<'_, '_, '_, MARK> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        self.0.add::<MARK>(self.1);
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
        let (ids, levels) = view.active.between(self.first, self.first + self.sums.len());
        for (&id, &level) in ids.iter().zip(levels) {
            // Added to a zero, as in a pull: a product that is minus zero must not stay one.
            self.sums[id as usize - self.first] += level * view.nodes.decay[id as usize];
            self.dirty[block_of(id as usize - self.first)] = 1;
        }
        let edges: u64 = view.rows.iter().map(|rows| rows.edges).sum();
        if edges / view.shares as u64 >= EVERYWHERE * self.dirty.len() as u64 {
            self.dirty.fill(1);
            view.level.run(Add::<false>(self, view));
        } else {
            view.level.run(Add::<true>(self, view));
        }
    }

    /// Relation by relation, ascending sources.
    #[inline(always)]
    fn add<const MARK: bool>(&mut self, view: &View<'_>) {
        let (targets, weights) = (&view.pool.target[..], &view.pool.weight[..]);
        let (sums, dirty, first) = (&mut *self.sums, &mut *self.dirty, self.first);
        let (begin, end) = (first, first + sums.len());
        for part in (0..view.relations).flat_map(|relation| view.rows[relation..].iter().step_by(view.relations)) {
            for (i, row) in part.rows.iter().enumerate() {
                if let Some(later) = part.rows.get(i + AHEAD) {
                    let later = later.start as usize..(later.start + later.len) as usize;
                    prefetch(bytemuck::cast_slice(&targets[later.clone()]));
                    prefetch(&weights[later]);
                }
                let slots = row.start as usize..(row.start + row.len) as usize;
                let (mut targets, mut weights) = (&targets[slots.clone()], &weights[slots]);
                // Rows ascend: its part of one is what lies between two cuts.
                if end < view.count {
                    let cut = below(targets, end as u32);
                    (targets, weights) = (&targets[..cut], &weights[..cut]);
                }
                if begin > 0 {
                    let cut = below(targets, begin as u32);
                    (targets, weights) = (&targets[cut..], &weights[cut..]);
                }
                for (&target, &weight) in targets.iter().zip(weights) {
                    let at = target as usize - first;
                    sums[at] += row.level * weight;
                    if MARK {
                        dirty[block_of(at)] = 1;
                    }
                }
            }
        }
    }

    pub(super) fn pull(&mut self, view: &View<'_>, levels: &[f32], transposed: &Transposed, scaled: &[Buffer<f32>]) {
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

    pub(super) fn scan(&mut self, view: &View<'_>, pivot: f32, signed: bool) {
        self.found.pivot = pivot;
        let count = view.count.min(self.first + self.sums.len()) - self.first;
        view.level.run(Scan {
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
    for (bounds, found) in cuts.windows(2).zip(found) {
        let (here, later) = sums.split_at_mut(bounds[1] - bounds[0]);
        let (mine, others) = dirty.split_at_mut((bounds[1] - bounds[0]) / BLOCK);
        (sums, dirty) = (later, others);
        parts.push(Part { first: bounds[0], sums: here, dirty: mine, found });
    }
    parts
}
