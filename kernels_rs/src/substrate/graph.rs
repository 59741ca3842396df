//! The graph: fields of nodes, layers of rows, the pool of edges.

use crate::substrate::learn::Modulator;
use crate::substrate::memory::Buffer;
use crate::substrate::share::Scratch;
use crate::substrate::trace::Trace;
use crate::substrate::transpose::Transposed;
use crate::substrate::working::Working;
use crate::substrate::{bounded, within, MOST_LEVEL, MOST_RELATION};

/// A named kind of edge; its weight multiplies every contribution along such an edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Relation {
    pub name: String,
    pub weight: f32,
}

/// For each node where its edges of one relation lie in the pool. Without edges there are no rows.
pub struct Layer {
    /// First slot and number of edges.
    pub place: Buffer<[u32; 2]>,
    /// Slots from the first on that the row may use.
    pub room: Buffer<u32>,
}

/// One value per node.
pub struct Nodes {
    /// What is left of a level after one step.
    pub decay: Buffer<f32>,
    /// Least magnitude of a level that is kept.
    pub threshold: Buffer<f32>,
    /// Resting potential: score of the node as an answer, without any evidence.
    pub bias: Buffer<f32>,
    /// What the node stands for; the meaning of the numbers is the caller's.
    pub kind: Buffer<u8>,
    /// Steps in which the node was active since thresholds settled, and the last of all.
    pub fired: Buffer<u32>,
    pub last: Buffer<u32>,
}

/// The edges of all rows. A slot that belongs to no row, or is beyond its row's length, is slack.
pub struct Pool {
    pub target: Buffer<u32>,
    pub weight: Buffer<f32>,
    /// Trace of recent coincidences, where a rule asked for it: empty, or as long as `target`.
    pub eligibility: Buffer<f32>,
    /// Starts of abandoned rows by size class: class c has room for 4 * 2^c edges.
    pub free: Vec<Vec<u32>>,
}

pub struct Graph {
    pub count: usize,
    pub nodes: Nodes,
    pub relations: Vec<Relation>,
    pub layers: Vec<Layer>,
    pub pool: Pool,
    pub live: u64,
    /// Steps of spreading so far.
    pub clock: u32,
    /// The clock when thresholds settled.
    pub settled: u32,
    pub transposed: Option<Transposed>,
    pub scratch: Option<Scratch>,
    pub modulator: Modulator,
    pub working: Working,
    pub trace: Option<Trace>,
    /// Common factor of all eligibilities.
    pub eligibility_scale: f32,
    /// Seed of the random numbers, and how many have been drawn from stream 0.
    pub seed: u64,
    pub drawn: u64,
}

/// What is stored, in bytes; `slack` are slots of the pool without an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub nodes: usize,
    pub rows: usize,
    pub edges: usize,
    pub eligibility: usize,
    pub transposed: usize,
    pub scratch: usize,
    pub slack: u64,
}

pub const DECAY: f32 = 0.85;

impl Layer {
    pub fn empty() -> Result<Layer, String> {
        Ok(Layer { place: Buffer::zeros(0)?, room: Buffer::zeros(0)? })
    }

    pub fn is_empty(&self) -> bool {
        self.place.is_empty()
    }

    /// Slots of the row of `node`.
    #[inline(always)]
    pub fn row(&self, node: u32) -> std::ops::Range<usize> {
        let [start, len] = self.place[node as usize];
        start as usize..start as usize + len as usize
    }

    pub(super) fn resize(&mut self, nodes: usize) -> Result<(), String> {
        self.place.resize(nodes, [0, 0])?;
        self.room.resize(nodes, 0)
    }
}

impl Graph {
    /// `count` nodes without edges.
    pub fn new(count: usize) -> Result<Graph, String> {
        let mut graph = Graph {
            count: 0,
            nodes: Nodes {
                decay: Buffer::zeros(0)?,
                threshold: Buffer::zeros(0)?,
                bias: Buffer::zeros(0)?,
                kind: Buffer::zeros(0)?,
                fired: Buffer::zeros(0)?,
                last: Buffer::zeros(0)?,
            },
            relations: Vec::new(),
            layers: Vec::new(),
            pool: Pool {
                target: Buffer::zeros(0)?,
                weight: Buffer::zeros(0)?,
                eligibility: Buffer::zeros(0)?,
                free: Vec::new(),
            },
            live: 0,
            clock: 0,
            settled: 0,
            transposed: None,
            scratch: None,
            modulator: Modulator { value: 0.0 },
            working: Working::default(),
            trace: None,
            eligibility_scale: 1.0,
            seed: 0,
            drawn: 0,
        };
        graph.add_nodes(count)?;
        Ok(graph)
    }

    /// Append `more` nodes with default fields; returns the id of the first.
    pub fn add_nodes(&mut self, more: usize) -> Result<usize, String> {
        let first = self.count;
        let count = first.checked_add(more).filter(|&n| n < u32::MAX as usize).ok_or_else(|| {
            format!("nodes = {first} + {more} is too many: a graph has at most {} nodes", u32::MAX - 1)
        })?;
        self.nodes.decay.resize(count, DECAY)?;
        self.nodes.threshold.resize(count, 0.0)?;
        self.nodes.bias.resize(count, 0.0)?;
        self.nodes.kind.resize(count, 0)?;
        self.nodes.fired.resize(count, 0)?;
        self.nodes.last.resize(count, 0)?;
        for layer in self.layers.iter_mut().filter(|layer| !layer.is_empty()) {
            layer.resize(count)?;
        }
        self.count = count;
        self.scratch = None;
        self.transposed = None;
        Ok(first)
    }

    /// The index of a relation; one that is new gets `weight`, a known one keeps its own.
    pub fn relation(&mut self, name: &str, weight: f32) -> Result<usize, String> {
        if let Some(known) = self.relations.iter().position(|relation| relation.name == name) {
            return Ok(known);
        }
        if name.is_empty() || name.contains('\n') {
            return Err(format!("relation = {name:?} is not a name: it must be one line that is not empty"));
        }
        if self.relations.len() >= u16::MAX as usize {
            return Err(format!("relation = '{name}' is one too many: a graph has at most {} relations", u16::MAX));
        }
        bounded("relation weight", &[weight], MOST_RELATION)?;
        self.relations.push(Relation { name: name.to_owned(), weight });
        self.layers.push(Layer::empty()?);
        Ok(self.relations.len() - 1)
    }

    pub fn set_relation_weight(&mut self, relation: usize, weight: f32) -> Result<(), String> {
        bounded("relation weight", &[weight], MOST_RELATION)?;
        self.check_relation(relation)?;
        self.relations[relation].weight = weight;
        Ok(())
    }

    pub fn check_relation(&self, relation: usize) -> Result<(), String> {
        if relation < self.relations.len() {
            return Ok(());
        }
        Err(format!("relation = {relation} does not exist: the graph has {} relations", self.relations.len()))
    }

    /// Indices and weights of the relations that have edges, in order.
    pub fn used(&self) -> impl Iterator<Item = (usize, f32)> + '_ {
        (0..self.layers.len()).filter(|&r| !self.layers[r].is_empty()).map(|r| (r, self.relations[r].weight))
    }

    /// Set `field` (decay, threshold or bias) of some nodes.
    pub fn set_field(&mut self, field: &str, ids: &[u32], values: &[f32]) -> Result<(), String> {
        within("ids", ids, self.count)?;
        super::same_length("values", values.len(), "ids", ids.len())?;
        let (buffer, low, high) = match field {
            "decay" => (&mut self.nodes.decay, 0.0, 1.0),
            "threshold" => (&mut self.nodes.threshold, 0.0, MOST_LEVEL),
            "bias" => (&mut self.nodes.bias, -80.0, 80.0),
            other => return Err(format!("field = '{other}' is unknown; known: bias, decay, threshold")),
        };
        if let Some(x) = values.iter().find(|x| !(low..=high).contains(*x)) {
            return Err(format!("{field} = {x} is not valid: it must be from {low} to {high}"));
        }
        for (&id, &value) in ids.iter().zip(values) {
            buffer[id as usize] = value;
        }
        Ok(())
    }

    pub fn set_kind(&mut self, ids: &[u32], kinds: &[u8]) -> Result<(), String> {
        within("ids", ids, self.count)?;
        super::same_length("kinds", kinds.len(), "ids", ids.len())?;
        for (&id, &kind) in ids.iter().zip(kinds) {
            self.nodes.kind[id as usize] = kind;
        }
        Ok(())
    }

    pub fn size(&self) -> Size {
        let n = &self.nodes;
        let of_layer = |layer: &Layer| layer.place.bytes() + layer.room.bytes();
        Size {
            nodes: n.decay.bytes()
                + n.threshold.bytes()
                + n.bias.bytes()
                + n.kind.bytes()
                + n.fired.bytes()
                + n.last.bytes(),
            rows: self.layers.iter().map(of_layer).sum(),
            edges: self.pool.target.bytes() + self.pool.weight.bytes(),
            eligibility: self.pool.eligibility.bytes(),
            transposed: self.transposed.as_ref().map_or(0, Transposed::bytes),
            scratch: self.scratch.as_ref().map_or(0, Scratch::bytes),
            slack: (self.pool.target.bytes() / size_of::<u32>()) as u64 - self.live,
        }
    }
}
