//! One step of spreading, shared out among threads.
//!
//! First every thread looks up the rows of a part of the active nodes; then every thread makes the sums of its share of
//! the nodes, from that part of each row, which is sorted, that lies within its share, row after row in order.

use crate::isa::{prefetch, Level};
use crate::substrate::graph::Graph;
use crate::substrate::memory::Buffer;
use crate::substrate::select::{best, inhibit, pivot, Candidates, BLOCK};
use crate::substrate::share::{parts, Rows, Scratch, View, NODES_AHEAD};
use crate::substrate::spread::{Active, Mode, Options};
use crate::substrate::transpose::Transposed;
use crate::threads::for_each;

/// Pull once more than this share of all edges would be pushed along, if the transpose is there.
const SHARE_FOR_PULL: f64 = 0.1;
/// Edges below which a second thread costs more than it helps.
const WORTH_THREADS: f64 = 16_384.0;

impl Graph {
    /// The nodes that are active after one step, without goals, and the number of edges passed. Counts the firing of
    /// `active` if `fired`.
    pub(super) fn step(
        &mut self,
        active: &Active,
        fired: bool,
        options: &Options<'_>,
        scratch: &mut Scratch,
    ) -> Result<(Active, u64), String> {
        let expected = active.ids.len() as f64 * self.live as f64 / self.count as f64;
        let threads = if expected < WORTH_THREADS { 1 } else { options.threads };
        let Scratch { sums, dirty, levels, scaled, parts: found, rows, spare } = scratch;
        let whole = sums.len();
        let mut cuts = shares(threads, whole, None);
        let relations = self.rows(active, fired, options.mode != Mode::Pull, threads, rows)?;
        let pushed: u64 = rows.iter().map(|part| part.edges).sum();
        let pull = match options.mode {
            Mode::Push => None,
            Mode::Auto if (pushed as f64) < SHARE_FOR_PULL * self.live as f64 => None,
            _ => self.transposed.as_ref(),
        };
        let edges = if pull.is_some() { self.live } else { pushed };
        if pull.is_some() {
            cuts = shares(threads, whole, pull);
            put(active, 1.0, whole, levels, threads, &cuts)?;
            while scaled.len() < self.relations.len() {
                scaled.push(Buffer::zeros(0)?);
            }
            for (dense, relation) in scaled.iter_mut().zip(&self.relations) {
                put(active, relation.weight, if relation.weight == 1.0 { 0 } else { whole }, dense, threads, &cuts)?;
            }
        }
        let shares = cuts.len() - 1;
        let view = View {
            nodes: &self.nodes,
            pool: &self.pool,
            active,
            rows,
            relations,
            shares,
            count: self.count,
            level: Level::best(),
        };
        found.resize_with(shares, Candidates::default);
        let (k, signed) = (options.k, options.signed);
        let share = k as f64 / self.count.max(1) as f64;
        for_each(threads, parts(&cuts, sums, dirty, found), |mut part| {
            match pull {
                Some(transposed) => part.pull(&view, levels, transposed, scaled),
                None => part.push(&view),
            }
            let estimate = pivot(part.sums, share, signed);
            part.scan(&view, estimate, signed);
        })?;
        let mut next = Active { scale: 1.0, ..std::mem::take(spare) };
        if !best(found, k, &mut next.ids, &mut next.levels) {
            for_each(threads, parts(&cuts, sums, dirty, found), |mut part| part.scan(&view, 0.0, signed))?;
            best(found, k, &mut next.ids, &mut next.levels);
        }
        if let Some((groups, most)) = options.groups {
            inhibit(groups, most, &mut next.ids, &mut next.levels);
        }
        next.levels.iter_mut().for_each(|level| *level = level.clamp(-options.saturation, options.saturation));
        if let Some(gain) = options.gain {
            next.scale = (gain as f64 / (1.0 + activity(&next.levels))) as f32;
            next.levels.iter_mut().for_each(|level| *level *= next.scale);
        }
        Ok((next, edges))
    }

    /// Count the firing of the active nodes.
    pub(super) fn fire(&mut self, active: &Active, threads: usize, scratch: &mut Scratch) -> Result<(), String> {
        let threads = if (active.ids.len() as f64) < WORTH_THREADS { 1 } else { threads };
        self.rows(active, true, false, threads, &mut scratch.rows).map(|_| ())
    }

    /// The rows of the active nodes if `wanted`, those of a part of the nodes together; of how many relations. Counts
    /// their firing if `fired`.
    fn rows(
        &mut self,
        active: &Active,
        fired: bool,
        wanted: bool,
        threads: usize,
        rows: &mut Vec<Rows>,
    ) -> Result<usize, String> {
        let Graph { nodes, layers, relations, clock, .. } = self;
        let used = layers.iter().zip(&*relations).filter(|(layer, _)| wanted && !layer.is_empty());
        let used: Vec<_> = used.collect();
        let size = active.ids.len().div_ceil(threads).max(1);
        let chunks = active.ids.chunks(size).zip(active.levels.chunks(size));
        rows.resize_with(chunks.len() * used.len(), Rows::default);
        let mut rows = &mut rows[..];
        let (mut counts, mut last, mut begin) = (&mut nodes.fired[..], &mut nodes.last[..], 0);
        let mut jobs = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let end = chunk.0[chunk.0.len() - 1] as usize + 1;
            let (mine, later) = counts.split_at_mut(end - begin);
            let (when, rest) = last.split_at_mut(end - begin);
            let (own, others) = rows.split_at_mut(used.len());
            jobs.push((chunk, own, begin, mine, when));
            (counts, last, rows, begin) = (later, rest, others, end);
        }
        for_each(threads, jobs, |((ids, levels), rows, begin, counts, last)| {
            if fired {
                fire(ids, begin, counts, last, *clock);
            }
            for ((layer, relation), found) in used.iter().zip(rows) {
                found.gather(layer, relation.weight, (ids, levels));
            }
        })?;
        Ok(used.len())
    }
}

/// Count the firing of these nodes; the counts begin with node `begin`.
fn fire(ids: &[u32], begin: usize, counts: &mut [u32], last: &mut [u32], clock: u32) {
    for (i, &id) in ids.iter().enumerate() {
        if let Some(&later) = ids.get(i + NODES_AHEAD) {
            let at = later as usize - begin;
            prefetch(bytemuck::cast_slice(&counts[at..=at]));
            prefetch(bytemuck::cast_slice(&last[at..=at]));
        }
        let at = id as usize - begin;
        counts[at] = counts[at].saturating_add(1);
        last[at] = clock;
    }
}

/// Sum of the magnitudes, in an order that the processor can follow eight at a time.
fn activity(levels: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    let (whole, rest) = levels.as_chunks::<8>();
    for x in whole {
        for j in 0..8 {
            sums[j] += x[j].abs() as f64;
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|level| level.abs() as f64).sum::<f64>()
}

/// Where to cut the nodes for this many threads: equal numbers of nodes, or for a pull of edges.
pub(super) fn shares(threads: usize, end: usize, pull: Option<&Transposed>) -> Vec<usize> {
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

/// Levels times `factor` as `len` numbers, one per node.
fn put(
    active: &Active,
    factor: f32,
    len: usize,
    dense: &mut Buffer<f32>,
    threads: usize,
    cuts: &[usize],
) -> Result<(), String> {
    dense.resize(len, 0.0)?;
    if len == 0 {
        return Ok(());
    }
    let mut rest = &mut dense[..];
    let mut jobs = Vec::with_capacity(cuts.len());
    for bounds in cuts.windows(2) {
        let (mine, later) = rest.split_at_mut(bounds[1] - bounds[0]);
        jobs.push((bounds[0], mine));
        rest = later;
    }
    for_each(threads, jobs, |(first, dense)| {
        dense.fill(0.0);
        let (ids, levels) = active.between(first, first + dense.len());
        ids.iter().zip(levels).for_each(|(&id, &level)| dense[id as usize - first] = level * factor);
    })
}
