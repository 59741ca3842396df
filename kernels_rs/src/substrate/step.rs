//! One step of spreading, shared out among threads.
//!
//! First every thread looks up the rows of a part of the active nodes and cuts each row, which is sorted, at the nodes
//! that bound the threads' shares; then every thread makes the sums of its share of the nodes, from all rows in order.

use crate::isa::Level;
use crate::substrate::graph::{Graph, Relation};
use crate::substrate::select::{best, inhibit, pivot, Candidates, BLOCK};
use crate::substrate::share::{parts, Row, Rows, Scratch, View};
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
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            more => more,
        };
        let expected = active.ids.len() as f64 * self.live as f64 / self.count as f64;
        let threads = if expected < WORTH_THREADS { 1 } else { threads };
        let whole = scratch.sums.len();
        let mut cuts = shares(threads, whole, None);
        let rows = self.rows(active, fired, options.mode == Mode::Pull, threads, &cuts)?;
        let pushed: u64 = rows.iter().flat_map(|part| &part.rows).map(|row| row.len as u64).sum();
        let pull = match options.mode {
            Mode::Push => None,
            Mode::Auto if (pushed as f64) < SHARE_FOR_PULL * self.live as f64 => None,
            _ => self.transposed.as_ref(),
        };
        let edges = if pull.is_some() { self.live } else { pushed };
        let Scratch { sums, dirty, levels, scaled, parts: found } = scratch;
        if pull.is_some() {
            cuts = shares(threads, whole, pull);
            levels.resize(self.count, 0.0);
            put(active, 1.0, levels);
            scale(active, &self.relations, self.count, scaled);
        }
        let shares = cuts.len() - 1;
        let view = View { nodes: &self.nodes, pool: &self.pool, active, rows: &rows, shares, count: self.count };
        found.resize_with(shares, Candidates::default);
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
            put(active, 0.0, levels);
            scaled.iter_mut().filter(|dense| !dense.is_empty()).for_each(|dense| put(active, 0.0, dense));
        }
        let mut next = Active { scale: 1.0, ..Active::default() };
        if !best(&found.iter().collect::<Vec<_>>(), k, &mut next.ids, &mut next.levels) {
            for_each(threads, parts(&cuts, sums, dirty, found), |mut part| part.scan(&view, 0.0, signed, level))?;
            best(&found.iter().collect::<Vec<_>>(), k, &mut next.ids, &mut next.levels);
        }
        if let Some((groups, most)) = options.groups {
            inhibit(groups, most, &mut next.ids, &mut next.levels);
        }
        next.levels.iter_mut().for_each(|level| *level = level.clamp(-options.saturation, options.saturation));
        if let Some(gain) = options.gain {
            let total: f64 = next.levels.iter().map(|level| level.abs() as f64).sum();
            next.scale = (gain as f64 / (1.0 + total)) as f32;
            next.levels.iter_mut().for_each(|level| *level *= next.scale);
        }
        Ok((next, edges))
    }

    /// The rows of the active nodes, relation by relation, cut at these nodes (none if `pull`); counts their firing.
    fn rows(
        &mut self,
        active: &Active,
        fired: bool,
        pull: bool,
        threads: usize,
        cuts: &[usize],
    ) -> Result<Vec<Rows>, String> {
        let Graph { nodes, layers, pool, relations, clock, .. } = self;
        let used: Vec<_> = layers.iter().zip(&*relations).filter(|(layer, _)| !pull && !layer.is_empty()).collect();
        let size = active.ids.len().div_ceil(threads).max(1);
        let chunks = active.ids.chunks(size).zip(active.levels.chunks(size));
        let count = chunks.len();
        let mut rows: Vec<Vec<Rows>> = Vec::new();
        rows.resize_with(count, || used.iter().map(|_| Rows::default()).collect());
        let (mut counts, mut last, mut begin) = (&mut nodes.fired[..], &mut nodes.last[..], 0);
        let mut jobs = Vec::with_capacity(count);
        for (chunk, rows) in chunks.zip(&mut rows) {
            let end = chunk.0[chunk.0.len() - 1] as usize + 1;
            let (mine, later) = counts.split_at_mut(end - begin);
            let (when, rest) = last.split_at_mut(end - begin);
            jobs.push((chunk, rows, begin, mine, when));
            (counts, last, begin) = (later, rest, end);
        }
        for_each(threads, jobs, |((ids, levels), rows, begin, counts, last)| {
            if fired {
                for &id in ids {
                    let at = id as usize - begin;
                    counts[at] = counts[at].saturating_add(1);
                    last[at] = *clock;
                }
            }
            for ((layer, relation), found) in used.iter().zip(rows) {
                found.rows.extend(ids.iter().zip(levels).filter_map(|(&id, &level)| {
                    let [start, len] = layer.place[id as usize];
                    (len > 0).then_some(Row { start, len, level: level * relation.weight })
                }));
                if cuts.len() > 2 {
                    found.cut(pool, cuts);
                }
            }
        })?;
        // Chunk by chunk they were made, relation by relation they are wanted.
        let mut chunks: Vec<_> = rows.into_iter().map(Vec::into_iter).collect();
        Ok((0..used.len()).flat_map(|_| chunks.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>()).collect())
    }
}

/// Where to cut the nodes for this many threads: equal numbers of nodes, or for a pull of edges.
fn shares(threads: usize, end: usize, pull: Option<&Transposed>) -> Vec<usize> {
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

/// Levels times `factor` into a dense array.
fn put(active: &Active, factor: f32, dense: &mut [f32]) {
    active.ids.iter().zip(&active.levels).for_each(|(&id, &level)| dense[id as usize] = level * factor);
}

/// Dense levels times the weight of each relation; none where that is 1.
fn scale(active: &Active, relations: &[Relation], count: usize, scaled: &mut Vec<Vec<f32>>) {
    scaled.resize_with(relations.len(), Vec::new);
    for (dense, relation) in scaled.iter_mut().zip(relations) {
        dense.resize(if relation.weight == 1.0 { 0 } else { count }, 0.0);
        if !dense.is_empty() {
            put(active, relation.weight, dense);
        }
    }
}
