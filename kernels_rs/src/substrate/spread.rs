//! Spreading of activation, synchronously: old levels in, new levels out, the k highest stay.
//!
//! One step, for the nodes u that are active with level a(u):
//! `raw(v) = a(v) decay(v) + sum over relations r, over ascending u, of (a(u) weight(r)) weight(u, v)`;
//! nodes below their threshold fall silent, then all but the k highest; what is left is cut at the saturation and, if
//! wanted, divided by the total activity; goals are set to their strength. Push adds along the rows of active nodes,
//! pull gathers what arrives at every node; the terms and their order are the same, and so are the results.

use crate::substrate::graph::Graph;
use crate::substrate::select::BLOCK;
use crate::substrate::share::Scratch;
use crate::substrate::step::shares;
use crate::substrate::{bounded, same_length, within, MOST_LEVEL};
use crate::threads;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Auto,
    Push,
    Pull,
}

#[derive(Clone, Copy)]
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
        if ids.is_sorted_by(|a, b| a < b) && !levels.contains(&0.0) {
            return Active { ids: ids.to_vec(), levels: levels.to_vec(), scale: 1.0 };
        }
        let mut pairs: Vec<(u32, f32)> = ids.iter().copied().zip(levels.iter().copied()).collect();
        pairs.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        pairs.dedup_by_key(|pair| pair.0);
        pairs.retain(|pair| pair.1 != 0.0);
        let (ids, levels) = pairs.into_iter().unzip();
        Active { ids, levels, scale: 1.0 }
    }

    /// Nodes `first..end` and their levels.
    pub(super) fn between(&self, first: usize, end: usize) -> (&[u32], &[f32]) {
        let here =
            self.ids.partition_point(|&id| (id as usize) < first)..self.ids.partition_point(|&id| (id as usize) < end);
        (&self.ids[here.clone()], &self.levels[here])
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
        let mut scratch = match self.scratch.take() {
            Some(kept) => kept,
            None => Scratch::new(self.count)?,
        };
        let seeds = Active::of(ids, levels);
        let options = Options { threads: threads::count(options.threads), ..*options };
        let outcome = threads::within(options.threads, || self.steps(seeds, &options, &mut scratch))??;
        self.scratch = Some(scratch);
        Ok(outcome)
    }

    fn steps(&mut self, seeds: Active, options: &Options<'_>, scratch: &mut Scratch) -> Result<Outcome, String> {
        let mut active = seeds;
        let goals = Active::of(options.goals, &vec![options.goal_strength; options.goals.len()]);
        put_goals(&mut active, &goals);
        let (mut steps, mut edges, mut history) = (0, 0, Vec::new());
        let mut converged = active.ids.is_empty();
        while steps < options.steps && !converged {
            if options.record && steps == 0 {
                history.push(active.clone());
            }
            // The seeds were set, they did not fire.
            let (mut next, passed) = self.step(&active, steps > 0, options, scratch)?;
            put_goals(&mut next, &goals);
            self.clock = self.clock.saturating_add(1);
            converged = next.ids.is_empty() || (options.epsilon > 0.0 && change(&active, &next) < options.epsilon);
            scratch.spare = std::mem::replace(&mut active, next);
            steps += 1;
            edges += passed;
            if options.record {
                history.push(active.clone());
            }
        }
        if steps > 0 {
            self.fire(&active, options.threads, scratch)?;
        }
        let threads = if edges > 0 { options.threads } else { 1 };
        scratch.clear(threads, &shares(threads, self.count.next_multiple_of(BLOCK), None))?;
        Ok(Outcome { active, steps, converged, edges, history })
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

/// Sum of the magnitudes of all changes over that of the new levels.
fn change(old: &Active, new: &Active) -> f64 {
    let mut before = old.ids.iter().zip(&old.levels).peekable();
    let (mut changes, mut total) = (0f64, 0f64);
    for (&id, &level) in new.ids.iter().zip(&new.levels) {
        while let Some((_, &gone)) = before.next_if(|&(&other, _)| other < id) {
            changes += gone.abs() as f64;
        }
        let was = before.next_if(|&(&other, _)| other == id).map_or(0.0, |(_, &was)| was);
        changes += (level as f64 - was as f64).abs();
        total += level.abs() as f64;
    }
    (changes + before.map(|(_, &gone)| gone.abs() as f64).sum::<f64>()) / total
}
