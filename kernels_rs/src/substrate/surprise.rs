//! Learning to name the answer: nodes that are active give scores to a range of answers, and every edge behind an active
//! node changes by `eta M x e`, e being the surprise `onehot - softmax(scores)` (with the exact normaliser), or the
//! error of the perceptron `onehot(target) - onehot(best)`.
//!
//! Weights stand still within a batch: first all scores of the batch (pairs shared out among threads), then all changes
//! (rows shared out, each changed by its pairs in their order). So any number of threads gives the same bits.

use crate::isa::{Isa, Job, Level};
use crate::math::exp_pair;
use crate::substrate::graph::Graph;
use crate::substrate::learn::check_clip;
use crate::substrate::trophin::Trophin;
use crate::substrate::update::Item;
use crate::substrate::{bounded, same_length, within, MOST_LEVEL, MOST_WEIGHT, NONE};
use crate::threads::for_each;

/// Numbers that the errors of a batch may take.
const MOST_ERRORS: usize = 1 << 22;
/// Pairs of a job.
const PAIRS: usize = 8;
const LANES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Surprise,
    Perceptron,
}

/// What was active, and the answer: `width` nodes per pair, `NONE` where there are fewer; without levels all are 1.
#[derive(Clone, Copy)]
pub struct Pairs<'a> {
    pub width: usize,
    pub contexts: &'a [u32],
    pub levels: Option<&'a [f32]>,
    pub targets: &'a [u32],
}

/// Through which edges, and which nodes are answers: `first..first + count`.
#[derive(Clone, Copy)]
pub struct Readout {
    pub relation: usize,
    pub first: u32,
    pub count: usize,
}

#[derive(Clone, Copy)]
pub struct Settings {
    pub rule: Rule,
    pub eta: f32,
    /// Rate of the resting potentials.
    pub bias_eta: f32,
    pub clip: (f32, f32),
    pub batch: usize,
    pub threads: usize,
}

/// exp of all scores less their maximum in place of them; the maximum and the sum.
struct Exponentials<'a> {
    scores: &'a mut [f32],
    found: &'a mut (f32, f32),
}

impl Job for Exponentials<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let mut tops = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = self.scores.as_chunks::<LANES>();
        for x in whole {
            for j in 0..LANES {
                tops[j] = if x[j] > tops[j] { x[j] } else { tops[j] };
            }
        }
        let top = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &x| most.max(x));
        let mut sums = [0f32; LANES];
        let (whole, rest) = self.scores.as_chunks_mut::<LANES>();
        for x in whole {
            for j in 0..LANES {
                x[j] = exp_pair::<I, f32>(x[j] - top).0;
                sums[j] += x[j];
            }
        }
        let mut sum: f32 = sums.iter().sum();
        for x in rest {
            *x = exp_pair::<I, f32>(*x - top).0;
            sum += *x;
        }
        *self.found = (top, sum);
    }
}

impl Pairs<'_> {
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    fn check(&self, graph: &Graph, readout: Readout) -> Result<(), String> {
        graph.check_relation(readout.relation)?;
        let end = readout.first as usize + readout.count;
        if readout.count == 0 || end > graph.count {
            let (first, count) = (readout.first, readout.count);
            return Err(format!("outputs = ({first}, {count}) must be a range of the {} nodes", graph.count));
        }
        same_length("contexts", self.contexts.len(), "the product of its shape", self.len() * self.width)?;
        if let Some(&id) = self.contexts.iter().find(|&&id| id != NONE && id as usize >= graph.count) {
            within("contexts", &[id], graph.count)?;
        }
        if let Some(levels) = self.levels {
            same_length("levels", levels.len(), "contexts", self.contexts.len())?;
            bounded("levels", levels, MOST_LEVEL)?;
        }
        match self.targets.iter().find(|&&t| t < readout.first || t as usize >= end) {
            Some(t) => {
                Err(format!("targets contains {t}, which is not among the outputs {} to {}", readout.first, end - 1))
            }
            None => Ok(()),
        }
    }

    /// Node and level of each member of a pair's context.
    pub(super) fn context(&self, pair: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let here = pair * self.width..(pair + 1) * self.width;
        let levels = self.levels.map(|levels| &levels[here.clone()]);
        let nodes = self.contexts[here].iter().enumerate();
        nodes.filter(|(_, &id)| id != NONE).map(move |(i, &id)| (id, levels.map_or(1.0, |levels| levels[i])))
    }
}

impl Graph {
    /// Scores of the answers: resting potentials, and what the context adds.
    fn score(&self, readout: Readout, pairs: &Pairs<'_>, pair: usize, scores: &mut [f32]) {
        let first = readout.first as usize;
        scores.copy_from_slice(&self.nodes.bias[first..first + readout.count]);
        let layer = &self.layers[readout.relation];
        if layer.is_empty() {
            return;
        }
        let weight = self.relations[readout.relation].weight;
        for (id, level) in pairs.context(pair) {
            let row = layer.row(id);
            let level = level * weight;
            for (&target, &w) in self.pool.target[row.clone()].iter().zip(&self.pool.weight[row]) {
                // Edges to other nodes than answers fall outside.
                if let Some(score) = scores.get_mut((target as usize).wrapping_sub(first)) {
                    *score += level * w;
                }
            }
        }
    }

    /// The scores of every pair, (pairs, count).
    pub fn scores(&self, readout: Readout, pairs: &Pairs<'_>, threads: usize, out: &mut [f32]) -> Result<(), String> {
        pairs.check(self, readout)?;
        same_length("out", out.len(), "the scores", pairs.len() * readout.count)?;
        let jobs: Vec<_> = out.chunks_mut(readout.count * PAIRS).enumerate().collect();
        for_each(threads, jobs, |(job, out)| {
            for (i, scores) in out.chunks_mut(readout.count).enumerate() {
                self.score(readout, pairs, job * PAIRS + i, scores);
            }
        })
    }

    /// -ln of the probability of each target.
    pub fn losses(
        &self,
        readout: Readout,
        pairs: &Pairs<'_>,
        threads: usize,
        losses: &mut [f32],
    ) -> Result<(), String> {
        pairs.check(self, readout)?;
        same_length("losses", losses.len(), "targets", pairs.len())?;
        let jobs: Vec<_> = losses.chunks_mut(PAIRS).enumerate().collect();
        let level = Level::best();
        for_each(threads, jobs, |(job, losses)| {
            let mut scores = vec![0f32; readout.count];
            for (i, loss) in losses.iter_mut().enumerate() {
                let pair = job * PAIRS + i;
                self.score(readout, pairs, pair, &mut scores);
                let own = scores[(pairs.targets[pair] - readout.first) as usize];
                let mut found = (0.0, 0.0);
                level.run(Exponentials { scores: &mut scores, found: &mut found });
                *loss = found.1.ln() + found.0 - own;
            }
        })
    }

    /// Learn all pairs, batch by batch; `losses` gets -ln of the probability that each target had before its batch.
    pub fn surprise(
        &mut self,
        readout: Readout,
        pairs: &Pairs<'_>,
        how: &Settings,
        mut trophin: Option<Trophin<'_>>,
        losses: &mut [f32],
    ) -> Result<(), String> {
        pairs.check(self, readout)?;
        same_length("losses", losses.len(), "targets", pairs.len())?;
        if let Some(trophin) = &trophin {
            trophin.check(readout)?;
        }
        bounded("eta", &[how.eta], MOST_WEIGHT)?;
        bounded("bias_eta", &[how.bias_eta], MOST_WEIGHT)?;
        check_clip(how.clip)?;
        if how.batch == 0 || how.batch.saturating_mul(readout.count) > MOST_ERRORS.max(readout.count) {
            let most = (MOST_ERRORS / readout.count).max(1);
            return Err(format!("batch = {} must be from 1 to {most} with {} outputs", how.batch, readout.count));
        }
        self.transposed = None;
        let mut errors = crate::threads::zeros(&[how.batch.min(pairs.len()), readout.count])?;
        let mut items = Vec::new();
        let rho = trophin.as_ref().map_or(0.0, |trophin| trophin.rho);
        let powers: Vec<f32> = std::iter::successors(Some(1.0), |power| Some(power * rho))
            .take(errors.len() / readout.count + 1)
            .collect();
        crate::threads::within(how.threads, || {
            (0..pairs.len()).step_by(how.batch).try_for_each(|first| {
                let here = first..pairs.len().min(first + how.batch);
                let errors = &mut errors[..here.len() * readout.count];
                let raised = trophin.as_ref().map(|trophin| (trophin, &powers[..]));
                let found = (&mut errors[..], &mut losses[here.clone()], &mut items);
                self.errors(readout, pairs, how, here.clone(), found, raised)?;
                if let Some(trophin) = &mut trophin {
                    trophin.advance(&powers, &pairs.targets[here], readout);
                }
                self.apply(readout, how, &items, errors)
            })
        })?
    }

    /// The errors of a batch, (pairs, count), and its losses; beside that the rows that they will change.
    fn errors(
        &self,
        readout: Readout,
        pairs: &Pairs<'_>,
        how: &Settings,
        here: std::ops::Range<usize>,
        (errors, losses, items): (&mut [f32], &mut [f32], &mut Vec<Item>),
        raised: Option<(&Trophin<'_>, &[f32])>,
    ) -> Result<(), String> {
        enum Part<'a> {
            Members(&'a mut Vec<Item>),
            Errors(usize, &'a mut [f32], &'a mut [f32]),
        }
        let (level, first) = (Level::best(), here.start);
        let chunks = errors.chunks_mut(readout.count * PAIRS).zip(losses.chunks_mut(PAIRS)).enumerate();
        let mut jobs = vec![Part::Members(items)];
        jobs.extend(chunks.map(|(job, (errors, losses))| Part::Errors(job, errors, losses)));
        for_each(how.threads, jobs, |part| {
            let (job, errors, losses) = match part {
                Part::Members(items) => return self.members(readout, pairs, how, here.clone(), items),
                Part::Errors(job, errors, losses) => (job, errors, losses),
            };
            let mut rates = vec![0f32; if raised.is_some() { readout.count } else { 0 }];
            for (i, (x, loss)) in errors.chunks_mut(readout.count).zip(losses).enumerate() {
                let pair = first + job * PAIRS + i;
                self.score(readout, pairs, pair, x);
                let target = (pairs.targets[pair] - readout.first) as usize;
                let own = x[target];
                let mut found = (0.0, 0.0);
                level.run(Exponentials { scores: x, found: &mut found });
                let (top, sum) = found;
                *loss = sum.ln() + top - own;
                match how.rule {
                    Rule::Surprise => {
                        let scale = -1.0 / sum;
                        x.iter_mut().for_each(|p| *p *= scale);
                        x[target] += 1.0;
                    }
                    Rule::Perceptron => {
                        // The first of the highest; the exponential of the maximum is the largest.
                        let best = x.iter().enumerate().fold(0, |best, (j, &p)| if p > x[best] { j } else { best });
                        x.fill(0.0);
                        x[target] += 1.0;
                        x[best] -= 1.0;
                    }
                }
                if let Some((trophin, powers)) = raised {
                    trophin.scale(powers, &pairs.targets[first..pair], readout, x, &mut rates);
                }
            }
        })
    }
}
