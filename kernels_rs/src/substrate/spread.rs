//! Spreading of activation, synchronously: old levels in, new levels out, the k highest stay.
//!
//! One step, for the nodes u that are active with level a(u):
//! `raw(v) = a(v) decay(v) + sum over relations r, over ascending u, of (a(u) weight(r)) weight(u, v)`;
//! nodes below their threshold fall silent, then all but the k highest; what is left is cut at the saturation and, if
//! wanted, divided by the total activity; goals are set to their strength. Push adds along the rows of active nodes,
//! pull gathers what arrives at every node; the terms and their order are the same, and so are the results.

use crate::isa::{prefetch, Level};
use crate::substrate::graph::{Graph, Layer, Nodes, Pool, Relation};
use crate::substrate::select::{best, block_of, inhibit, pivot, Candidates, Scan, BLOCK};
use crate::substrate::transpose::Transposed;
use crate::substrate::{bounded, same_length, within, MOST_LEVEL};
use crate::threads::for_each;

/// Pull once more than this share of all edges would be pushed along, if the transpose is there.
const SHARE_FOR_PULL: f64 = 0.1;
/// Edges below which a second thread costs more than it helps.
const WORTH_THREADS: u64 = 1 << 14;
/// Rows between the one that is asked for from memory and the one that is read.
const AHEAD: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Auto,
    Push,
    Pull,
}

pub struct Options<'a> {
    pub steps: usize,
    /// Most nodes that stay active, goals not counted.
    pub k: usize,
    /// Stop when |a(t) - a(t-1)| / |a(t)| (sums of magnitudes) is below.
    pub epsilon: f64,
    /// Negative levels propagate too, and magnitudes are compared; else they fall silent.
    pub signed: bool,
    /// Largest magnitude of a level.
    pub saturation: f32,
    /// Divide by one plus the total activity and multiply by this.
    pub gain: Option<f32>,
    pub mode: Mode,
    pub threads: usize,
    pub goals: &'a [u32],
    pub goal_strength: f32,
    /// Group of every node (`u32::MAX`: none), and how many of each group stay.
    pub groups: Option<(&'a [u32], usize)>,
    /// Keep the active nodes of every step.
    pub record: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            steps: 8,
            k: usize::MAX,
            epsilon: 0.0,
            signed: false,
            saturation: MOST_LEVEL,
            gain: None,
            mode: Mode::Auto,
            threads: 1,
            goals: &[],
            goal_strength: 1.0,
            groups: None,
            record: false,
        }
    }
}

/// Active nodes, ascending ids. A level is the saturated sum times `scale`, or a goal's strength.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Active {
    pub ids: Vec<u32>,
    pub levels: Vec<f32>,
    pub scale: f32,
}

impl Active {
    /// Of equal ids the highest level; silent ones are left out.
    pub fn of(ids: &[u32], levels: &[f32]) -> Active {
        let mut pairs: Vec<(u32, f32)> = ids.iter().copied().zip(levels.iter().copied()).collect();
        pairs.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        pairs.dedup_by_key(|pair| pair.0);
        pairs.retain(|pair| pair.1 != 0.0);
        let (ids, levels) = pairs.into_iter().unzip();
        Active { ids, levels, scale: 1.0 }
    }

    pub fn level(&self, id: u32) -> f32 {
        self.ids.binary_search(&id).map_or(0.0, |at| self.levels[at])
    }
}

pub struct Outcome {
    pub active: Active,
    pub steps: usize,
    pub converged: bool,
    /// Edges that were passed.
    pub edges: u64,
    /// The seeds and the active nodes after each step, if recorded.
    pub history: Vec<Active>,
}

/// Room that is kept between calls; all zeros between them.
#[derive(Default)]
pub struct Scratch {
    sums: Vec<f32>,
    dirty: Vec<u8>,
    levels: Vec<f32>,
    scaled: Vec<Vec<f32>>,
    parts: Vec<Candidates>,
}

impl Scratch {
    pub fn bytes(&self) -> usize {
        let scaled: usize = self.scaled.iter().map(Vec::capacity).sum();
        4 * (self.sums.capacity() + self.levels.capacity() + scaled) + self.dirty.capacity()
    }

    fn prepare(&mut self, nodes: usize) {
        let whole = nodes.next_multiple_of(BLOCK);
        if self.sums.len() != whole {
            *self = Scratch {
                sums: vec![0.0; whole],
                dirty: vec![0; whole / BLOCK],
                levels: vec![0.0; nodes],
                ..Scratch::default()
            };
        }
    }
}

/// A row along which a level is pushed.
#[derive(Clone, Copy)]
struct Row {
    start: u32,
    len: u32,
    /// The level times the weight of the relation.
    level: f32,
}

/// The nodes `first..` of which one thread makes the sums.
struct Part<'a> {
    first: usize,
    sums: &'a mut [f32],
    dirty: &'a mut [u8],
    found: &'a mut Candidates,
}

/// What all parts read.
struct View<'a> {
    nodes: &'a Nodes,
    pool: &'a Pool,
    active: &'a Active,
    rows: &'a [Row],
    count: usize,
}

impl Part<'_> {
    fn clear(&mut self) {
        for (block, touched) in self.dirty.iter_mut().enumerate().filter(|(_, touched)| **touched != 0) {
            self.sums[block * BLOCK..(block + 1) * BLOCK].fill(0.0);
            *touched = 0;
        }
    }

    fn whole(&self, count: usize) -> bool {
        self.first == 0 && self.sums.len() >= count
    }

    fn push(&mut self, view: &View<'_>) {
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
        let (targets, weights, whole) = (&view.pool.target[..], &view.pool.weight[..], self.whole(view.count));
        for (i, row) in view.rows.iter().enumerate() {
            if let Some(later) = view.rows.get(i + AHEAD) {
                let later = later.start as usize..(later.start + later.len) as usize;
                prefetch(bytemuck::cast_slice(&targets[later.clone()]));
                prefetch(&weights[later]);
            }
            let slots = row.start as usize..(row.start + row.len) as usize;
            let (mut targets, mut weights) = (&targets[slots.clone()], &weights[slots]);
            if !whole {
                let from = targets.partition_point(|&to| (to as usize) < self.first);
                let to = from + targets[from..].partition_point(|&to| (to as usize) < end);
                (targets, weights) = (&targets[from..to], &weights[from..to]);
            }
            for (&target, &weight) in targets.iter().zip(weights) {
                let at = target as usize - self.first;
                self.sums[at] += row.level * weight;
                self.dirty[block_of(at)] = 1;
            }
        }
    }

    fn pull(&mut self, view: &View<'_>, levels: &[f32], transposed: &Transposed, scaled: &[Vec<f32>]) {
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

    fn scan(&mut self, view: &View<'_>, pivot: f32, signed: bool, level: Level) {
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
fn parts<'a>(
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

impl Options<'_> {
    fn check(&self, graph: &Graph, ids: &[u32], levels: &[f32]) -> Result<(), String> {
        same_length("levels", levels.len(), "seeds", ids.len())?;
        within("seeds", ids, graph.count)?;
        bounded("levels", levels, MOST_LEVEL)?;
        within("goals", self.goals, graph.count)?;
        bounded("goal_strength", &[self.goal_strength], MOST_LEVEL)?;
        if !(self.saturation > 0.0 && self.saturation <= MOST_LEVEL) {
            return Err(format!("saturation = {} must be above 0 and at most {MOST_LEVEL:e}", self.saturation));
        }
        if self.gain.is_some_and(|gain| !(gain > 0.0 && gain <= MOST_LEVEL)) {
            return Err(format!("gain = {} must be above 0 and at most {MOST_LEVEL:e}", self.gain.unwrap_or(0.0)));
        }
        if self.epsilon.is_nan() || self.epsilon < 0.0 {
            return Err(format!("epsilon = {} must be at least 0", self.epsilon));
        }
        if let Some((groups, _)) = self.groups {
            same_length("groups", groups.len(), "the graph", graph.count)?;
        }
        Ok(())
    }
}

impl Graph {
    /// Spread from seeds; counts the firing of nodes and advances the clock.
    pub fn spread(&mut self, ids: &[u32], levels: &[f32], options: &Options<'_>) -> Result<Outcome, String> {
        options.check(self, ids, levels)?;
        if options.mode == Mode::Pull {
            self.transpose()?;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.prepare(self.count);
        let outcome = self.steps(Active::of(ids, levels), options, &mut scratch);
        // Whatever happened, the next call finds zeros.
        let whole = scratch.sums.len();
        scratch.parts.resize_with(scratch.parts.len().max(1), Candidates::default);
        parts(&[0, whole], &mut scratch.sums, &mut scratch.dirty, &mut scratch.parts).iter_mut().for_each(Part::clear);
        self.scratch = scratch;
        outcome
    }

    fn steps(&mut self, seeds: Active, options: &Options<'_>, scratch: &mut Scratch) -> Result<Outcome, String> {
        let mut active = seeds;
        let goals = Active::of(options.goals, &vec![options.goal_strength; options.goals.len()]);
        put_goals(&mut active, &goals);
        let mut outcome = Outcome {
            active: Active::default(),
            steps: 0,
            converged: active.ids.is_empty(),
            edges: 0,
            history: Vec::new(),
        };
        let mut failed = None;
        if options.record {
            outcome.history.push(active.clone());
        }
        for (&id, &level) in active.ids.iter().zip(&active.levels) {
            scratch.levels[id as usize] = level;
        }
        while outcome.steps < options.steps && !outcome.converged {
            let (mut next, edges) = match self.step(&active, options, scratch) {
                Ok(found) => found,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            put_goals(&mut next, &goals);
            let residual = replace(&active, &next, &mut scratch.levels);
            self.clock = self.clock.saturating_add(1);
            for &id in &next.ids {
                let fired = &mut self.nodes.fired[id as usize];
                *fired = fired.saturating_add(1);
                self.nodes.last[id as usize] = self.clock;
            }
            active = next;
            outcome.steps += 1;
            outcome.edges += edges;
            outcome.converged = active.ids.is_empty() || residual < options.epsilon;
            if options.record {
                outcome.history.push(active.clone());
            }
        }
        for &id in &active.ids {
            scratch.levels[id as usize] = 0.0;
        }
        outcome.active = active;
        failed.map_or(Ok(outcome), Err)
    }

    /// The nodes that are active after one step, without goals, and the number of edges passed.
    fn step(&self, active: &Active, options: &Options<'_>, scratch: &mut Scratch) -> Result<(Active, u64), String> {
        let used: Vec<(usize, f32)> = self.used().collect();
        let rows = if options.mode == Mode::Pull { Vec::new() } else { self.rows(active, &used) };
        let pushed: u64 = rows.iter().map(|row| row.len as u64).sum();
        let pull = match options.mode {
            Mode::Push => None,
            Mode::Auto if (pushed as f64) < SHARE_FOR_PULL * self.live as f64 => None,
            _ => self.transposed.as_ref(),
        };
        let edges = if pull.is_some() { self.live } else { pushed };
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            more => more,
        };
        let threads = if edges < WORTH_THREADS { 1 } else { threads };
        let view = View { nodes: &self.nodes, pool: &self.pool, active, rows: &rows, count: self.count };
        let Scratch { sums, dirty, levels, scaled, parts: found } = scratch;
        if pull.is_some() {
            scale(active, &self.relations, levels.len(), scaled);
        }
        let cuts = self.cuts(threads, sums.len(), pull);
        found.resize_with(cuts.len() - 1, Candidates::default);
        let (k, signed, level) = (options.k, options.signed, Level::best());
        let share = k as f64 / self.count.max(1) as f64;
        for_each(threads, parts(&cuts, sums, dirty, found), |mut part| {
            match pull {
                Some(transposed) => part.pull(&view, levels, transposed, scaled),
                None => part.push(&view),
            }
            let estimate = pivot(part.sums, share, signed);
            part.scan(&view, estimate, signed, level);
        })?;
        if pull.is_some() {
            unscale(active, scaled);
        }
        let mut next = Active { scale: 1.0, ..Active::default() };
        if !best(&found.iter().collect::<Vec<_>>(), k, &mut next.ids, &mut next.levels) {
            for_each(threads, parts(&cuts, sums, dirty, found), |mut part| part.scan(&view, 0.0, signed, level))?;
            best(&found.iter().collect::<Vec<_>>(), k, &mut next.ids, &mut next.levels);
        }
        if let Some((groups, most)) = options.groups {
            inhibit(groups, most, &mut next.ids, &mut next.levels);
        }
        next.levels.iter_mut().for_each(|level| *level = saturate(*level, options.saturation));
        if let Some(gain) = options.gain {
            let total: f64 = next.levels.iter().map(|level| level.abs() as f64).sum();
            next.scale = (gain as f64 / (1.0 + total)) as f32;
            next.levels.iter_mut().for_each(|level| *level *= next.scale);
        }
        Ok((next, edges))
    }

    /// The rows of the active nodes, relation by relation.
    fn rows(&self, active: &Active, used: &[(usize, f32)]) -> Vec<Row> {
        let mut rows = Vec::with_capacity(active.ids.len() * used.len());
        for &(relation, weight) in used {
            let layer: &Layer = &self.layers[relation];
            rows.extend(active.ids.iter().zip(&active.levels).filter_map(|(&id, &level)| {
                let [start, len] = layer.place[id as usize];
                (len > 0).then_some(Row { start, len, level: level * weight })
            }));
        }
        rows
    }

    /// Where to cut the nodes for this many threads: equal numbers of nodes, or for a pull of edges.
    fn cuts(&self, threads: usize, end: usize, pull: Option<&Transposed>) -> Vec<usize> {
        let heaviest = pull.and_then(|transposed| transposed.layers.iter().max_by_key(|layer| layer.ends.len()));
        let mut cuts: Vec<usize> = (0..=threads)
            .map(|i| match heaviest {
                Some(layer) if i < threads => {
                    let wanted = (layer.ends.len() as u64 * i as u64 / threads as u64) as u32;
                    layer.start.partition_point(|&start| start < wanted) * BLOCK
                }
                _ => (end / BLOCK) * i / threads * BLOCK,
            })
            .collect();
        cuts.dedup();
        cuts
    }
}

/// The sum as a level.
pub fn saturate(sum: f32, most: f32) -> f32 {
    sum.clamp(-most, most)
}

/// Dense levels times the weight of each relation; none where that is 1.
fn scale(active: &Active, relations: &[Relation], count: usize, scaled: &mut Vec<Vec<f32>>) {
    scaled.resize_with(relations.len(), Vec::new);
    for (dense, relation) in scaled.iter_mut().zip(relations) {
        dense.resize(if relation.weight == 1.0 { 0 } else { count }, 0.0);
        if !dense.is_empty() {
            for (&id, &level) in active.ids.iter().zip(&active.levels) {
                dense[id as usize] = level * relation.weight;
            }
        }
    }
}

fn unscale(active: &Active, scaled: &mut [Vec<f32>]) {
    for dense in scaled.iter_mut().filter(|dense| !dense.is_empty()) {
        active.ids.iter().for_each(|&id| dense[id as usize] = 0.0);
    }
}

/// Set the goals among the active nodes.
fn put_goals(active: &mut Active, goals: &Active) {
    if !goals.ids.is_empty() {
        let others = active.ids.iter().zip(&active.levels).filter(|(id, _)| goals.ids.binary_search(id).is_err());
        let (mut ids, mut levels): (Vec<u32>, Vec<f32>) = others.unzip();
        ids.extend(&goals.ids);
        levels.extend(&goals.levels);
        *active = Active { scale: active.scale, ..Active::of(&ids, &levels) };
    }
}

/// Put the new levels in place of the old ones in the dense array; returns the relative change.
fn replace(old: &Active, new: &Active, dense: &mut [f32]) -> f64 {
    let magnitudes = |levels: &[f32]| levels.iter().map(|level| level.abs() as f64).sum::<f64>();
    let (mut change, mut gone) = (0f64, magnitudes(&old.levels));
    for (&id, &level) in new.ids.iter().zip(&new.levels) {
        let before = dense[id as usize];
        change += (level as f64 - before as f64).abs();
        gone -= before.abs() as f64;
    }
    old.ids.iter().for_each(|&id| dense[id as usize] = 0.0);
    new.ids.iter().zip(&new.levels).for_each(|(&id, &level)| dense[id as usize] = level);
    (change + gone.max(0.0)) / magnitudes(&new.levels)
}
