//! Bindings of the associative graph. `bouton.substrate` is the interface for people; this one takes arrays as they are.

use std::path::PathBuf;

use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::python::{invalid, slice, slice_mut, writable, Array, Count};
use crate::substrate::graph;
use crate::substrate::learn::{Plasticity, Rule};
use crate::substrate::memory::view;
use crate::substrate::random;
use crate::substrate::spread::{Active, Mode, Options};
use crate::substrate::surprise::{self, Pairs, Readout, Settings};
use crate::substrate::trace::{Trace, WORDS};
use crate::substrate::trophin::Trophin;
use crate::substrate::working::Working;

type Ids<'py> = PyReadonlyArray1<'py, u32>;
type Values<'py> = PyReadonlyArray1<'py, f32>;
type IdArray<'py> = Bound<'py, PyArray1<u32>>;
type ValueArray<'py> = Bound<'py, PyArray1<f32>>;
/// Ids, levels, and the scale of the levels.
type Step<'py> = (IdArray<'py>, ValueArray<'py>, f32);
/// The kept changes (changes, 8 words), oldest first, and how many were offered and kept.
type Changes<'py> = (Bound<'py, PyArray2<u32>>, u64, u64);

fn named<T: Copy>(what: &str, name: &str, all: &[(&str, T)]) -> PyResult<T> {
    all.iter().find(|(known, _)| *known == name).map(|&(_, value)| value).ok_or_else(|| {
        let known: Vec<_> = all.iter().map(|(known, _)| *known).collect();
        invalid(format!("{what} = '{name}' is unknown; known: {}", known.join(", ")))
    })
}

fn step<'py>(py: Python<'py>, active: Active) -> Step<'py> {
    (active.ids.into_pyarray(py), active.levels.into_pyarray(py), active.scale)
}

/// How to spread, see [`Options`].
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Spreading<'py> {
    steps: Count,
    k: Count,
    epsilon: f64,
    signed: bool,
    saturation: f32,
    gain: Option<f32>,
    mode: String,
    threads: Count,
    goals: Ids<'py>,
    goal_strength: f32,
    groups: Option<Ids<'py>>,
    group_top_k: Count,
    record: bool,
}

/// Contexts (pairs, width), their levels, and the answers; see [`Pairs`] and [`Readout`].
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Reading<'py> {
    relation: Count,
    first: u32,
    count: Count,
    contexts: PyReadonlyArray2<'py, u32>,
    levels: Option<PyReadonlyArray2<'py, f32>>,
    targets: Ids<'py>,
    threads: Count,
}

impl Reading<'_> {
    fn parts(&self) -> PyResult<(Readout, Pairs<'_>)> {
        let shape = self.contexts.shape();
        let targets = slice!(self.targets, "targets")?;
        let levels = match &self.levels {
            None => None,
            Some(levels) if levels.shape() == shape => Some(slice!(levels, "levels")?),
            Some(levels) => {
                return Err(invalid(format!("levels has shape {:?}, but must have {shape:?}", levels.shape())))
            }
        };
        if shape[0] != targets.len() {
            return Err(invalid(format!("contexts has {} rows, but targets has {}", shape[0], targets.len())));
        }
        let pairs = Pairs { width: shape[1], contexts: slice!(self.contexts, "contexts")?, levels, targets };
        Ok((Readout { relation: self.relation.0, first: self.first, count: self.count.0 }, pairs))
    }
}

/// The associative graph.
#[pyclass]
struct Graph {
    graph: graph::Graph,
}

#[pymethods]
impl Graph {
    #[new]
    fn new(nodes: Count) -> PyResult<Self> {
        Ok(Graph { graph: graph::Graph::new(nodes.0).map_err(invalid)? })
    }

    /// The graph of a file, and the extra bytes that were saved with it.
    #[staticmethod]
    fn open<'py>(
        py: Python<'py>,
        path: PathBuf,
        verify: bool,
        threads: Count,
    ) -> PyResult<(Self, Bound<'py, PyBytes>)> {
        let (graph, extra) = py.detach(|| graph::Graph::open(&path, verify, threads.0)).map_err(invalid)?;
        Ok((Graph { graph }, PyBytes::new(py, &extra)))
    }

    fn save(&self, py: Python<'_>, path: PathBuf, extra: &[u8]) -> PyResult<()> {
        py.detach(|| self.graph.save(&path, extra)).map_err(invalid)
    }

    #[getter]
    fn nodes(&self) -> usize {
        self.graph.count
    }

    #[getter]
    fn edges(&self) -> u64 {
        self.graph.live
    }

    #[getter]
    fn clock(&self) -> u32 {
        self.graph.clock
    }

    /// Name and weight of each relation.
    #[getter]
    fn relations(&self) -> Vec<(String, f32)> {
        self.graph.relations.iter().map(|relation| (relation.name.clone(), relation.weight)).collect()
    }

    /// Bytes by what they hold, and slots without an edge.
    fn size<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let size = self.graph.size();
        let found = PyDict::new(py);
        for (name, bytes) in [
            ("nodes", size.nodes),
            ("rows", size.rows),
            ("edges", size.edges),
            ("eligibility", size.eligibility),
            ("transpose", size.transposed),
            ("scratch", size.scratch),
        ] {
            found.set_item(name, bytes)?;
        }
        found.set_item("slack", size.slack)?;
        Ok(found)
    }

    /// A read-only array of one field, without a copy: decay, threshold, bias, kind, fired, last, target, weight,
    /// eligibility.
    fn view<'py>(&self, py: Python<'py>, field: &str) -> PyResult<Bound<'py, PyAny>> {
        let (nodes, pool) = (&self.graph.nodes, &self.graph.pool);
        Ok(match field {
            "decay" => view::<f32, f32>(py, &nodes.decay)?.into_any(),
            "threshold" => view::<f32, f32>(py, &nodes.threshold)?.into_any(),
            "bias" => view::<f32, f32>(py, &nodes.bias)?.into_any(),
            "kind" => view::<u8, u8>(py, &nodes.kind)?.into_any(),
            "fired" => view::<u32, u32>(py, &nodes.fired)?.into_any(),
            "last" => view::<u32, u32>(py, &nodes.last)?.into_any(),
            "target" => view::<u32, u32>(py, &pool.target)?.into_any(),
            "weight" => view::<f32, f32>(py, &pool.weight)?.into_any(),
            "eligibility" => view::<f32, f32>(py, &pool.eligibility)?.into_any(),
            other => return Err(invalid(format!("field = '{other}' is unknown"))),
        })
    }

    /// First slot and number of edges of each node's row, (2 nodes) without a copy; empty without edges.
    fn rows<'py>(&self, py: Python<'py>, relation: Count) -> PyResult<IdArray<'py>> {
        self.graph.check_relation(relation.0).map_err(invalid)?;
        view::<[u32; 2], u32>(py, &self.graph.layers[relation.0].place)
    }

    fn add_nodes(&mut self, more: Count) -> PyResult<usize> {
        self.graph.add_nodes(more.0).map_err(invalid)
    }

    fn relation(&mut self, name: &str, weight: f32) -> PyResult<usize> {
        self.graph.relation(name, weight).map_err(invalid)
    }

    fn set_relation_weight(&mut self, relation: Count, weight: f32) -> PyResult<()> {
        self.graph.set_relation_weight(relation.0, weight).map_err(invalid)
    }

    fn set_field(&mut self, field: &str, ids: Ids<'_>, values: Values<'_>) -> PyResult<()> {
        self.graph.set_field(field, slice!(ids, "ids")?, slice!(values, "values")?).map_err(invalid)
    }

    fn set_kind(&mut self, ids: Ids<'_>, kinds: PyReadonlyArray1<'_, u8>) -> PyResult<()> {
        self.graph.set_kind(slice!(ids, "ids")?, slice!(kinds, "kinds")?).map_err(invalid)
    }

    fn connect(
        &mut self,
        py: Python<'_>,
        relation: Count,
        sources: Ids<'_>,
        targets: Ids<'_>,
        weights: Values<'_>,
    ) -> PyResult<usize> {
        let (sources, targets) = (slice!(sources, "sources")?, slice!(targets, "targets")?);
        let weights = slice!(weights, "weights")?;
        py.detach(|| self.graph.connect(relation.0, sources, targets, weights)).map_err(invalid)
    }

    fn disconnect(&mut self, py: Python<'_>, relation: Count, sources: Ids<'_>, targets: Ids<'_>) -> PyResult<usize> {
        let (sources, targets) = (slice!(sources, "sources")?, slice!(targets, "targets")?);
        py.detach(|| self.graph.disconnect(relation.0, sources, targets)).map_err(invalid)
    }

    /// The weight of an edge, or None.
    fn find(&self, relation: Count, source: u32, target: u32) -> PyResult<Option<f32>> {
        self.graph.check_relation(relation.0).map_err(invalid)?;
        crate::substrate::within("edge", &[source, target], self.graph.count).map_err(invalid)?;
        Ok(self.graph.find(relation.0, source, target).map(|slot| self.graph.pool.weight[slot]))
    }

    fn prune(
        &mut self,
        py: Python<'_>,
        relation: Count,
        below: f32,
        idle: Option<u32>,
        budget: Count,
    ) -> PyResult<usize> {
        py.detach(|| self.graph.prune(relation.0, below, idle, budget.0)).map_err(invalid)
    }

    fn forget(&mut self, py: Python<'_>, relation: Count, keep: f32) -> PyResult<()> {
        py.detach(|| self.graph.forget(relation.0, keep)).map_err(invalid)
    }

    fn compact(&mut self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.graph.compact()).map_err(invalid)
    }

    fn transpose(&mut self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.graph.transpose()).map_err(invalid)
    }

    /// The last active nodes, steps, whether it settled, edges passed, and every step if recorded.
    #[allow(clippy::type_complexity)]
    fn spread<'py>(
        &mut self,
        py: Python<'py>,
        ids: Ids<'_>,
        levels: Values<'_>,
        how: Spreading<'_>,
    ) -> PyResult<(Step<'py>, usize, bool, u64, Vec<Step<'py>>)> {
        let groups = match &how.groups {
            None => None,
            Some(groups) => Some((slice!(groups, "groups")?, how.group_top_k.0)),
        };
        let options = Options {
            steps: how.steps.0,
            k: how.k.0,
            epsilon: how.epsilon,
            signed: how.signed,
            saturation: how.saturation,
            gain: how.gain,
            mode: named("mode", &how.mode, &[("auto", Mode::Auto), ("push", Mode::Push), ("pull", Mode::Pull)])?,
            threads: how.threads.0,
            goals: slice!(how.goals, "goals")?,
            goal_strength: how.goal_strength,
            groups,
            record: how.record,
        };
        let (ids, levels) = (slice!(ids, "seeds")?, slice!(levels, "levels")?);
        let found = py.detach(|| self.graph.spread(ids, levels, &options)).map_err(invalid)?;
        let history = found.history.into_iter().map(|active| step(py, active)).collect();
        Ok((step(py, found.active), found.steps, found.converged, found.edges, history))
    }

    /// Sources, relations (2^32 - 1: the node itself), weights and contributions of a node's sum one step later.
    #[allow(clippy::type_complexity)]
    fn terms<'py>(
        &self,
        py: Python<'py>,
        ids: Ids<'_>,
        levels: Values<'_>,
        target: u32,
    ) -> PyResult<(IdArray<'py>, IdArray<'py>, ValueArray<'py>, ValueArray<'py>)> {
        let before = Active::of(slice!(ids, "ids")?, slice!(levels, "levels")?);
        let terms = self.graph.terms(&before, target).map_err(invalid)?;
        Ok((
            terms.iter().map(|term| term.source).collect::<Vec<_>>().into_pyarray(py),
            terms.iter().map(|term| term.relation).collect::<Vec<_>>().into_pyarray(py),
            terms.iter().map(|term| term.weight).collect::<Vec<_>>().into_pyarray(py),
            terms.iter().map(|term| term.contribution).collect::<Vec<_>>().into_pyarray(py),
        ))
    }

    /// Three-factor learning; `rule` is delta, oja or eligible. Returns how many edges were made.
    #[allow(clippy::too_many_arguments)]
    fn learn(
        &mut self,
        py: Python<'_>,
        relation: Count,
        pre: (Ids<'_>, Values<'_>),
        post: (Ids<'_>, Values<'_>),
        rule: &str,
        eta: f32,
        reward: f32,
        clip: (f32, f32),
        create: Option<f32>,
        budget: Count,
    ) -> PyResult<usize> {
        let rules = [("delta", Rule::Delta), ("eligible", Rule::Eligible), ("oja", Rule::Oja)];
        let how = Plasticity { rule: named("rule", rule, &rules)?, eta, reward, clip, create, budget: budget.0 };
        let pre = (slice!(pre.0, "pre")?, slice!(pre.1, "levels of pre")?);
        let post = (slice!(post.0, "post")?, slice!(post.1, "levels of post")?);
        py.detach(|| self.graph.learn(relation.0, pre, post, &how)).map_err(invalid)
    }

    fn settle(&mut self, py: Python<'_>, rate: f32, eta: f32) -> PyResult<()> {
        py.detach(|| self.graph.settle(rate, eta)).map_err(invalid)
    }

    fn fade(&mut self, py: Python<'_>, keep: f32) -> PyResult<()> {
        py.detach(|| self.graph.fade(keep)).map_err(invalid)
    }

    fn reinforce(&mut self, py: Python<'_>, relation: Count, reward: f32, eta: f32, clip: (f32, f32)) -> PyResult<()> {
        py.detach(|| self.graph.reinforce(relation.0, reward, eta, clip)).map_err(invalid)
    }

    /// Common factor of all eligibilities.
    #[getter]
    fn eligibility_scale(&self) -> f32 {
        self.graph.eligibility_scale
    }

    /// Scores of all answers into `out` (pairs, count).
    fn scores(&self, py: Python<'_>, reading: Reading<'_>, out: Array<'_, 2>) -> PyResult<()> {
        let (readout, pairs) = reading.parts()?;
        let mut out = writable(&out, "out")?;
        let out = slice_mut!(out, "out")?;
        py.detach(|| self.graph.scores(readout, &pairs, reading.threads.0, out)).map_err(invalid)
    }

    /// -ln of the probability of each target into `losses`.
    fn losses(&self, py: Python<'_>, reading: Reading<'_>, losses: Array<'_, 1>) -> PyResult<()> {
        let (readout, pairs) = reading.parts()?;
        let mut losses = writable(&losses, "losses")?;
        let losses = slice_mut!(losses, "losses")?;
        py.detach(|| self.graph.losses(readout, &pairs, reading.threads.0, losses)).map_err(invalid)
    }

    /// Learn the answers of all pairs; `rule` is surprise or perceptron. `trophin` are the levels of the answers, which
    /// advance, and rho, release and gain: see [`Trophin`].
    #[allow(clippy::too_many_arguments)]
    fn surprise(
        &mut self,
        py: Python<'_>,
        reading: Reading<'_>,
        losses: Array<'_, 1>,
        rule: &str,
        eta: f32,
        bias_eta: f32,
        clip: (f32, f32),
        batch: Count,
        trophin: Option<(Array<'_, 1>, f32, f32, f32)>,
    ) -> PyResult<()> {
        let (readout, pairs) = reading.parts()?;
        let rules = [("perceptron", surprise::Rule::Perceptron), ("surprise", surprise::Rule::Surprise)];
        let rule = named("rule", rule, &rules)?;
        let how = Settings { rule, eta, bias_eta, clip, batch: batch.0, threads: reading.threads.0 };
        let mut losses = writable(&losses, "losses")?;
        let losses = slice_mut!(losses, "losses")?;
        let mut levels = trophin.as_ref().map(|trophin| writable(&trophin.0, "trophin")).transpose()?;
        let trophin = match (&mut levels, trophin.as_ref()) {
            (Some(levels), Some(&(_, rho, release, gain))) => {
                Some(Trophin { level: slice_mut!(levels, "trophin")?, rho, release, gain })
            }
            _ => None,
        };
        py.detach(|| self.graph.surprise(readout, &pairs, &how, trophin, losses)).map_err(invalid)
    }

    #[getter]
    fn modulator(&self) -> f32 {
        self.graph.modulator.value
    }

    fn modulate(&mut self, reward: f32) -> PyResult<f32> {
        crate::substrate::bounded("reward", &[reward], crate::substrate::MOST_WEIGHT).map_err(invalid)?;
        self.graph.modulator.adjust(reward);
        Ok(self.graph.modulator.value)
    }

    /// An empty working memory of these constants.
    fn set_working(&mut self, decay: f32, capacity: Count, floor: f32) -> PyResult<()> {
        self.graph.working = Working::new(decay, capacity.0, floor).map_err(invalid)?;
        Ok(())
    }

    fn working<'py>(&self, py: Python<'py>) -> (IdArray<'py>, ValueArray<'py>) {
        let held = &self.graph.working.held;
        (held.ids.clone().into_pyarray(py), held.levels.clone().into_pyarray(py))
    }

    fn tick(&mut self) {
        self.graph.working.tick();
    }

    fn absorb(&mut self, ids: Ids<'_>, levels: Values<'_>, gain: f32) -> PyResult<()> {
        let (ids, levels) = (slice!(ids, "ids")?, slice!(levels, "levels")?);
        crate::substrate::within("ids", ids, self.graph.count).map_err(invalid)?;
        crate::substrate::same_length("levels", levels.len(), "ids", ids.len()).map_err(invalid)?;
        crate::substrate::bounded("levels", levels, crate::substrate::MOST_LEVEL).map_err(invalid)?;
        crate::substrate::bounded("gain", &[gain], 1.0).map_err(invalid)?;
        self.graph.working.absorb(&Active::of(ids, levels), gain);
        Ok(())
    }

    /// Keep the last `capacity` changes, every n-th of them; 0: none.
    fn set_trace(&mut self, capacity: Count, every: u64) -> PyResult<()> {
        self.graph.trace = match capacity.0 {
            0 => None,
            more => Some(Trace::new(more, every).map_err(invalid)?),
        };
        Ok(())
    }

    /// None if off.
    fn trace<'py>(&self, py: Python<'py>) -> PyResult<Option<Changes<'py>>> {
        let Some(trace) = &self.graph.trace else { return Ok(None) };
        let words: Vec<u32> = trace.ordered().into_iter().flatten().collect();
        let rows = words.len() / WORDS;
        Ok(Some((words.into_pyarray(py).reshape([rows, WORDS])?, trace.offered, trace.kept)))
    }

    #[getter]
    fn seed(&self) -> u64 {
        self.graph.seed
    }

    /// Begin the random numbers anew.
    #[setter]
    fn set_seed(&mut self, seed: u64) {
        (self.graph.seed, self.graph.drawn) = (seed, 0);
    }

    /// The next `count` random numbers in [0, 1).
    fn uniform<'py>(&mut self, py: Python<'py>, count: Count) -> Bound<'py, PyArray1<f64>> {
        let (seed, first) = (self.graph.seed, self.graph.drawn);
        self.graph.drawn += count.0 as u64;
        (first..self.graph.drawn).map(|i| random::uniform(seed, 0, i)).collect::<Vec<_>>().into_pyarray(py)
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Graph>()
}
