//! Why a node has its level: the terms of its sum, in the order in which they were added.

use crate::substrate::graph::Graph;
use crate::substrate::spread::Active;
use crate::substrate::{within, NONE};

/// What one node passed on along one edge. The relation of a node's own decayed level is [`NONE`], its weight the decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    pub source: u32,
    pub relation: u32,
    pub weight: f32,
    pub contribution: f32,
}

impl Graph {
    /// The terms of the level that `target` has one step after `before`: added one by one to zero they give its sum to the
    /// last bit.
    pub fn terms(&self, before: &Active, target: u32) -> Result<Vec<Term>, String> {
        within("target", &[target], self.count)?;
        within("before", &before.ids, self.count)?;
        let mut terms = Vec::new();
        let (own, decay) = (before.level(target), self.nodes.decay[target as usize]);
        if own != 0.0 {
            terms.push(Term { source: target, relation: NONE, weight: decay, contribution: own * decay });
        }
        for (relation, factor) in self.used() {
            for (&source, &level) in before.ids.iter().zip(&before.levels) {
                if let Some(slot) = self.find(relation, source, target) {
                    let weight = self.pool.weight[slot];
                    let contribution = (level * factor) * weight;
                    terms.push(Term { source, relation: relation as u32, weight, contribution });
                }
            }
        }
        Ok(terms)
    }
}
