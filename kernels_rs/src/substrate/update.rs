//! The second half of a batch of surprises: every row behind an active node changes by the errors of its pairs, in their
//! order. Rows are shared out among threads by where they lie.

use crate::substrate::graph::Graph;
use crate::substrate::learn::code;
use crate::substrate::surprise::{Pairs, Readout, Rule, Settings};
use crate::substrate::trace::{Change, WORDS};
use crate::threads::for_each;

/// Jobs per thread.
const JOBS: usize = 16;

impl Graph {
    /// Members of the contexts of a batch that have a row, by the place of their row, then by pair.
    pub(super) fn members(
        &self,
        readout: Readout,
        pairs: &Pairs<'_>,
        how: &Settings,
        here: std::ops::Range<usize>,
        items: &mut Vec<Item>,
    ) {
        items.clear();
        let layer = &self.layers[readout.relation];
        if layer.is_empty() {
            return;
        }
        let step = how.eta * self.modulator.factor();
        let factor = self.relations[readout.relation].weight;
        for pair in here.clone() {
            items.extend(pairs.context(pair).filter_map(|(source, level)| {
                let [start, len] = layer.place[source as usize];
                let pair = (pair - here.start) as u32;
                (len > 0).then_some(Item { start, len, pair, source, step: step * level * factor })
            }));
        }
        items.sort_by_key(|item| item.start);
    }

    /// Change the rows of a batch, each by all its pairs.
    pub(super) fn apply(
        &mut self,
        readout: Readout,
        how: &Settings,
        items: &[Item],
        errors: &[f32],
    ) -> Result<(), String> {
        let (first, count) = (readout.first as usize, readout.count);
        if how.bias_eta != 0.0 {
            let rate = how.bias_eta * self.modulator.factor();
            for x in errors.chunks(count) {
                for (bias, e) in self.nodes.bias[first..first + count].iter_mut().zip(x) {
                    *bias = (*bias + rate * e).clamp(-80.0, 80.0);
                }
            }
        }
        let total: u64 = items.iter().map(|item| item.len as u64).sum();
        let mut weights = &mut self.pool.weight[..];
        let targets = &self.pool.target[..];
        let mut jobs = Vec::new();
        let (mut begin, mut at) = (0, 0);
        let share = total / (JOBS * how.threads.clamp(1, 64)) as u64 + 1;
        let sampling = self.trace.as_ref().map(|trace| (trace.every, trace.offered));
        let mut passed = 0;
        while begin < items.len() {
            let (mut end, mut edges) = (begin, 0);
            while end < items.len() && (edges < share || items[end].start == items[end - 1].start) {
                edges += items[end].len as u64;
                end += 1;
            }
            let (low, last) = (items[begin].start as usize, items[end - 1]);
            let high = (last.start + last.len) as usize;
            let (_, later) = weights.split_at_mut(low - at);
            let (mine, later) = later.split_at_mut(high - low);
            (weights, at) = (later, high);
            let sampling = sampling.map(|(every, offered)| (every, offered + passed));
            jobs.push(Rows { low, edges, weights: mine, items: &items[begin..end], sampling, changes: Vec::new() });
            passed += edges;
            begin = end;
        }
        // Some rows are wanted by many pairs and cannot be shared out: the largest jobs begin.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.edges));
        let found = std::sync::Mutex::new(Vec::new());
        let rule = if how.rule == Rule::Surprise { code::SURPRISE } else { code::PERCEPTRON };
        let (clock, relation, clip) = (self.clock, readout.relation as u16, how.clip);
        for_each(how.threads, jobs, |mut job| {
            job.change(targets, errors, first, count, clip, |item, target, old, new| Change {
                step: clock,
                source: item.source,
                target,
                relation,
                rule,
                old,
                new,
                reward: 1.0,
            });
            if !job.changes.is_empty() {
                if let Ok(mut found) = found.lock() {
                    found.push((job.low, job.changes));
                }
            }
        })?;
        if let Some(trace) = &mut self.trace {
            let mut found = found.into_inner().unwrap_or_default();
            found.sort_by_key(|x| x.0);
            found.into_iter().flat_map(|x| x.1).for_each(|words| trace.keep(words));
            trace.offered += total;
        }
        Ok(())
    }
}

/// One member of one context: its row, and the rate times its level.
#[derive(Clone, Copy)]
pub(super) struct Item {
    start: u32,
    len: u32,
    pair: u32,
    source: u32,
    step: f32,
}

/// Rows that one job changes, in slots from `low` on.
struct Rows<'a> {
    low: usize,
    /// Changes to make.
    edges: u64,
    weights: &'a mut [f32],
    items: &'a [Item],
    /// Every how many changes one is recorded, and how many there were before.
    sampling: Option<(u64, u64)>,
    changes: Vec<[u32; WORDS]>,
}

impl Rows<'_> {
    fn change(
        &mut self,
        targets: &[u32],
        errors: &[f32],
        first: usize,
        count: usize,
        clip: (f32, f32),
        record: impl Fn(&Item, u32, f32, f32) -> Change,
    ) {
        for item in self.items {
            let slots = item.start as usize..(item.start + item.len) as usize;
            let errors = &errors[item.pair as usize * count..(item.pair as usize + 1) * count];
            let weights = &mut self.weights[slots.start - self.low..slots.end - self.low];
            let targets = &targets[slots];
            if let Some((every, passed)) = &mut self.sampling {
                let from = (*every - *passed % *every) % *every;
                for i in (from as usize..targets.len()).step_by(*every as usize) {
                    if let Some(e) = errors.get((targets[i] as usize).wrapping_sub(first)) {
                        let new = (weights[i] + item.step * e).clamp(clip.0, clip.1);
                        self.changes.push(record(item, targets[i], weights[i], new).words(*passed + i as u64));
                    }
                }
                *passed += targets.len() as u64;
            }
            for (w, &target) in weights.iter_mut().zip(targets) {
                if let Some(e) = errors.get((target as usize).wrapping_sub(first)) {
                    *w = (*w + item.step * e).clamp(clip.0, clip.1);
                }
            }
        }
    }
}
