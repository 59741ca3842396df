//! Three-factor learning: `dw = eta M r x y`, the product of what was active before (x), an error or activity behind the
//! edge (y), and a third factor that both share: the reward r and the modulator M.
//!
//! * `Delta`: the product as it stands; with levels as y it is Hebb's rule, with errors the delta rule.
//! * `Oja`: `dw = eta M r y (x - y w)`, which bounds the sum of squared weights (E. Oja 1982, J. Math. Biol. 15:267).
//! * `Eligible`: the coincidence x y is added to the edge's eligibility and waits for a reward
//!   (W. Gerstner et al. 2018, Front. Neural Circuits 12:53).

use crate::substrate::graph::Graph;
use crate::substrate::memory::Buffer;
use crate::substrate::spread::Active;
use crate::substrate::trace::Change;
use crate::substrate::{bounded, same_length, within, MOST_LEVEL, MOST_WEIGHT};

/// Below this the common factor of all eligibilities is multiplied into them.
const SMALLEST_SCALE: f32 = 1e-6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Delta,
    Oja,
    Eligible,
}

/// Numbers that [`Change`] records carry.
pub mod code {
    pub const DELTA: u16 = 0;
    pub const OJA: u16 = 1;
    pub const REINFORCE: u16 = 2;
    pub const SURPRISE: u16 = 3;
    pub const PERCEPTRON: u16 = 4;
}

/// Global third factor (a dopamine-like tone): `m` in [-0.5, 1], which moves towards recent rewards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Modulator {
    pub value: f32,
}

impl Modulator {
    const KEEP: f32 = 0.95;
    const TAKE: f32 = 0.3;

    pub fn adjust(&mut self, reward: f32) {
        self.value = (Self::KEEP * self.value + Self::TAKE * reward).clamp(-0.5, 1.0);
    }

    /// What every rule multiplies its rate by.
    pub fn factor(self) -> f32 {
        (1.0 + self.value).max(0.0)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Plasticity {
    pub rule: Rule,
    pub eta: f32,
    pub reward: f32,
    /// Least and greatest weight.
    pub clip: (f32, f32),
    /// Pairs of different nodes without an edge get one where the change is at least this large.
    pub create: Option<f32>,
    /// Most edges that are made, the largest changes first.
    pub budget: usize,
}

impl Plasticity {
    fn check(&self) -> Result<(), String> {
        bounded("eta", &[self.eta], MOST_WEIGHT)?;
        bounded("reward", &[self.reward], MOST_WEIGHT)?;
        check_clip(self.clip)?;
        match self.create {
            Some(least) if least.is_nan() || least < 0.0 => Err(format!("create = {least} must be at least 0")),
            Some(_) if self.rule == Rule::Eligible => Err("create goes with a rule that changes weights".into()),
            _ => Ok(()),
        }
    }
}

pub fn check_clip(clip: (f32, f32)) -> Result<(), String> {
    bounded("clip", &[clip.0, clip.1], MOST_WEIGHT)?;
    if clip.0 >= clip.1 {
        return Err(format!("clip = ({}, {}) must be two ascending numbers", clip.0, clip.1));
    }
    Ok(())
}

impl Graph {
    /// Change the edges of one relation from active nodes `pre` to `post`; returns how many were made.
    pub fn learn(
        &mut self,
        relation: usize,
        pre: (&[u32], &[f32]),
        post: (&[u32], &[f32]),
        how: &Plasticity,
    ) -> Result<usize, String> {
        how.check()?;
        self.check_relation(relation)?;
        for (name, (ids, levels)) in [("pre", pre), ("post", post)] {
            within(name, ids, self.count)?;
            same_length("levels", levels.len(), name, ids.len())?;
            bounded(name, levels, MOST_LEVEL)?;
        }
        let (pre, post) = (Active::of(pre.0, pre.1), Active::of(post.0, post.1));
        if how.rule == Rule::Eligible && self.pool.eligibility.is_empty() {
            self.pool.eligibility = Buffer::zeros(self.pool.target.len())?;
        }
        let step = how.eta * self.modulator.factor() * how.reward;
        let mut missing = Vec::new();
        for (&source, &x) in pre.ids.iter().zip(&pre.levels) {
            let row = if self.layers[relation].is_empty() { 0..0 } else { self.layers[relation].row(source) };
            let mut slot = row.start;
            for (&target, &y) in post.ids.iter().zip(&post.levels) {
                slot += self.pool.target[slot..row.end].partition_point(|&other| other < target);
                if slot < row.end && self.pool.target[slot] == target {
                    self.change(relation, source, slot, (x, y, step), how);
                } else if let Some(least) = how.create.filter(|_| source != target) {
                    let delta = step * x * y;
                    if delta.abs() >= least && delta != 0.0 {
                        missing.push((source, target, delta));
                    }
                }
            }
        }
        self.transposed = None;
        self.grow(relation, missing, how)
    }

    fn change(&mut self, relation: usize, source: u32, slot: usize, (x, y, step): (f32, f32, f32), how: &Plasticity) {
        let old = self.pool.weight[slot];
        let (delta, rule) = match how.rule {
            Rule::Eligible => {
                self.pool.eligibility[slot] += x * y / self.eligibility_scale;
                return;
            }
            Rule::Delta => (step * x * y, code::DELTA),
            Rule::Oja => (step * y * (x - y * old), code::OJA),
        };
        let new = (old + delta).clamp(how.clip.0, how.clip.1);
        self.pool.weight[slot] = new;
        if let Some(trace) = &mut self.trace {
            let (step, target) = (self.clock, self.pool.target[slot]);
            let relation = relation as u16;
            trace.offer(|| Change { step, source, target, relation, rule, old, new, reward: how.reward });
        }
    }

    /// Make the edges with the largest changes, within the budget.
    fn grow(&mut self, relation: usize, mut missing: Vec<(u32, u32, f32)>, how: &Plasticity) -> Result<usize, String> {
        if missing.len() > how.budget {
            missing.sort_by(|a, b| b.2.abs().total_cmp(&a.2.abs()).then((a.0, a.1).cmp(&(b.0, b.1))));
            missing.truncate(how.budget);
        }
        let sources: Vec<u32> = missing.iter().map(|x| x.0).collect();
        let targets: Vec<u32> = missing.iter().map(|x| x.1).collect();
        let weights: Vec<f32> = missing.iter().map(|x| x.2.clamp(how.clip.0, how.clip.1)).collect();
        let made = self.connect(relation, &sources, &targets, &weights)?;
        if let Some(trace) = &mut self.trace {
            let (step, relation, reward) = (self.clock, relation as u16, how.reward);
            let rule = if how.rule == Rule::Oja { code::OJA } else { code::DELTA };
            for ((&source, &target), &new) in sources.iter().zip(&targets).zip(&weights) {
                trace.offer(|| Change { step, source, target, relation, rule, old: 0.0, new, reward });
            }
        }
        Ok(made)
    }

    /// Multiply every eligibility by `keep`; costs nothing until the common factor must be multiplied in.
    pub fn fade(&mut self, keep: f32) -> Result<(), String> {
        if !(0.0..=1.0).contains(&keep) {
            return Err(format!("keep = {keep} must be from 0 to 1"));
        }
        let scale = self.eligibility_scale * keep;
        if scale < SMALLEST_SCALE {
            self.pool.eligibility.iter_mut().for_each(|x| *x *= scale);
            self.eligibility_scale = 1.0;
        } else {
            self.eligibility_scale = scale;
        }
        Ok(())
    }

    /// The reward that eligible edges waited for: `dw = eta M r e`.
    pub fn reinforce(&mut self, relation: usize, reward: f32, eta: f32, clip: (f32, f32)) -> Result<(), String> {
        self.check_relation(relation)?;
        bounded("reward", &[reward], MOST_WEIGHT)?;
        bounded("eta", &[eta], MOST_WEIGHT)?;
        check_clip(clip)?;
        if self.pool.eligibility.is_empty() {
            return Ok(());
        }
        self.transposed = None;
        let step = eta * self.modulator.factor() * reward * self.eligibility_scale;
        for source in 0..self.layers[relation].place.len() as u32 {
            for slot in self.layers[relation].row(source) {
                let (e, old) = (self.pool.eligibility[slot], self.pool.weight[slot]);
                if e == 0.0 {
                    continue;
                }
                let new = (old + step * e).clamp(clip.0, clip.1);
                self.pool.weight[slot] = new;
                if let Some(trace) = &mut self.trace {
                    let (step, target, relation) = (self.clock, self.pool.target[slot], relation as u16);
                    let rule = code::REINFORCE;
                    trace.offer(|| Change { step, source, target, relation, rule, old, new, reward });
                }
            }
        }
        Ok(())
    }

    /// Multiply all weights of a relation by `keep`.
    pub fn forget(&mut self, relation: usize, keep: f32) -> Result<(), String> {
        self.check_relation(relation)?;
        if !(0.0..=1.0).contains(&keep) {
            return Err(format!("keep = {keep} must be from 0 to 1"));
        }
        for source in 0..self.layers[relation].place.len() as u32 {
            let row = self.layers[relation].row(source);
            self.pool.weight[row].iter_mut().for_each(|w| *w *= keep);
        }
        self.transposed = None;
        Ok(())
    }

    /// Homeostasis: thresholds move by `eta` times what the share of steps in which a node was active is above `rate`, but
    /// not below 0; then counting begins anew.
    pub fn settle(&mut self, rate: f32, eta: f32) -> Result<(), String> {
        if !(0.0..=1.0).contains(&rate) {
            return Err(format!("rate = {rate} must be from 0 to 1"));
        }
        bounded("eta", &[eta], MOST_WEIGHT)?;
        let steps = (self.clock - self.settled).max(1) as f32;
        for (threshold, fired) in self.nodes.threshold.iter_mut().zip(&mut self.nodes.fired[..]) {
            *threshold = (*threshold + eta * (*fired as f32 / steps - rate)).clamp(0.0, MOST_LEVEL);
            *fired = 0;
        }
        self.settled = self.clock;
        Ok(())
    }

    /// Remove up to `budget` edges of a relation, the weakest first: those with |weight| below `below`, if `idle` is
    /// given only where the source was not active in the last `idle` steps. Returns how many.
    pub fn prune(&mut self, relation: usize, below: f32, idle: Option<u32>, budget: usize) -> Result<usize, String> {
        self.check_relation(relation)?;
        if below.is_nan() || below < 0.0 {
            return Err(format!("below = {below} must be at least 0"));
        }
        let mut weak = Vec::new();
        for source in 0..self.layers[relation].place.len() as u32 {
            let silent = self.clock - self.nodes.last[source as usize];
            if idle.is_none_or(|idle| silent > idle) {
                let slots = self.layers[relation].row(source);
                weak.extend(slots.map(|s| (self.pool.weight[s].abs(), source, s)).filter(|x| x.0 < below));
            }
        }
        if weak.len() > budget {
            // Ties by source, and within a row by target, as the slots are.
            weak.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            weak.truncate(budget);
        }
        let mut slots: Vec<usize> = weak.into_iter().map(|x| x.2).collect();
        slots.sort_unstable();
        Ok(self.remove(relation, |_, slot| slots.binary_search(&slot).is_ok()))
    }
}
