//! Spreading and edges against plain definitions, and the same bits for any number of threads and either direction.

use crate::substrate::graph::Graph;
use crate::substrate::spread::{Active, Mode, Options};

/// A sequence of pseudo-random numbers.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
    pub fn unit(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 20) as f32
    }
}

/// `degree` random edges of each node in each of these relations, of both signs.
pub fn random(nodes: usize, degree: usize, relations: &[f32], seed: u64) -> Graph {
    let mut dice = Dice::new(seed);
    let mut graph = Graph::new(nodes).unwrap();
    for (i, &weight) in relations.iter().enumerate() {
        let relation = graph.relation(&format!("r{i}"), weight).unwrap();
        let sources: Vec<u32> = (0..nodes * degree).map(|e| (e / degree) as u32).collect();
        let targets: Vec<u32> = sources.iter().map(|_| dice.below(nodes) as u32).collect();
        let weights: Vec<f32> = sources.iter().map(|_| 1.4 * dice.unit() - 0.4).collect();
        graph.connect(relation, &sources, &targets, &weights).unwrap();
    }
    let ids: Vec<u32> = (0..nodes as u32).collect();
    let decay: Vec<f32> = ids.iter().map(|_| dice.unit()).collect();
    graph.set_field("decay", &ids, &decay).unwrap();
    let threshold: Vec<f32> = ids.iter().map(|_| 0.05 * dice.unit()).collect();
    graph.set_field("threshold", &ids, &threshold).unwrap();
    graph
}

/// One step by its definition, over all nodes and all pairs, with sums in f32 in the canonical order.
fn step_by_definition(graph: &Graph, active: &Active, k: usize, signed: bool) -> Vec<(u32, f32)> {
    let n = graph.count;
    let mut sums = vec![0f32; n];
    for (v, sum) in sums.iter_mut().enumerate() {
        *sum += active.level(v as u32) * graph.nodes.decay[v];
        for (r, relation) in graph.relations.iter().enumerate() {
            for (&u, &level) in active.ids.iter().zip(&active.levels) {
                if let Some(slot) = graph.find(r, u, v as u32) {
                    *sum += (level * relation.weight) * graph.pool.weight[slot];
                }
            }
        }
    }
    let size = |x: f32| if signed { x.abs() } else { x };
    let mut kept: Vec<(u32, f32)> = (0..n as u32).zip(sums).collect();
    kept.retain(|&(v, x)| size(x) > 0.0 && size(x) >= graph.nodes.threshold[v as usize]);
    kept.sort_by(|a, b| size(b.1).total_cmp(&size(a.1)).then(a.0.cmp(&b.0)));
    kept.truncate(k);
    kept.sort_by_key(|x| x.0);
    kept
}

#[test]
fn a_step_equals_its_definition() {
    for (signed, k, seed) in [(false, 12, 1), (true, 12, 2), (true, 1000, 3), (false, 1, 4), (true, 0, 5)] {
        let mut graph = random(150, 6, &[0.7, 1.0, -0.5], seed);
        let seeds: Vec<u32> = vec![3, 140, 77, 3];
        let levels = vec![0.5, 1.0, -2.0, 0.75];
        let mut active = Active::of(&seeds, &levels);
        for mode in [Mode::Push, Mode::Pull] {
            for steps in 1..4 {
                let options = Options { steps, k, signed, mode, ..Options::default() };
                let found = graph.spread(&seeds, &levels, &options).unwrap().active;
                if steps == 1 {
                    active = Active::of(&seeds, &levels);
                }
                let wanted = step_by_definition(&graph, &active, k, signed);
                let pairs: Vec<_> = found.ids.iter().copied().zip(found.levels.iter().copied()).collect();
                assert_eq!(pairs, wanted, "{mode:?}, {steps} steps, k {k}");
                active = found;
            }
        }
    }
}

#[test]
fn threads_and_direction_change_no_bit() {
    let mut graph = random(9000, 12, &[0.9, 0.3], 7);
    let seeds: Vec<u32> = (0..9000).step_by(3).collect();
    let levels: Vec<f32> = seeds.iter().map(|&id| 0.1 + id as f32 / 9000.0).collect();
    for (k, signed) in [(9000, true), (300, false), (2500, true)] {
        let mut all = Vec::new();
        for mode in [Mode::Push, Mode::Pull, Mode::Auto] {
            for threads in [1, 2, 3, 8] {
                let options = Options { steps: 3, k, signed, mode, threads, gain: Some(50.0), ..Options::default() };
                all.push(graph.spread(&seeds, &levels, &options).unwrap().active);
            }
        }
        assert!(!all[0].ids.is_empty() && all[0].ids.len() <= k);
        assert!(all.iter().all(|x| x == &all[0]), "k = {k}");
    }
    // From few nodes: most blocks are not touched.
    for steps in 1..4 {
        let from = |mode| Options { steps, k: 20, signed: true, mode, ..Options::default() };
        let mut spread = |mode| graph.spread(&[4000, 5], &[1.0, 0.5], &from(mode)).unwrap().active;
        let pushed = spread(Mode::Push);
        assert_eq!(pushed.ids.len(), 20);
        assert_eq!(pushed, spread(Mode::Pull));
    }
}

#[test]
fn a_misleading_sample_changes_no_result() {
    // All nodes that the sample takes are silent but a few, whose levels are the highest by far.
    let n = 40_000;
    let mut graph = Graph::new(n).unwrap();
    let seeds: Vec<u32> = (0..n as u32).filter(|i| i % 9 != 0 || i % 90 == 0).collect();
    let levels: Vec<f32> = seeds.iter().map(|i| if i % 90 == 0 { 100.0 } else { 1.0 + *i as f32 / n as f32 }).collect();
    let options = Options { steps: 1, k: 1000, ..Options::default() };
    let found = graph.spread(&seeds, &levels, &options).unwrap().active;
    assert_eq!(found.ids.len(), 1000);
    assert_eq!(found.levels.iter().filter(|&&x| x > 80.0).count(), n.div_ceil(90));
}

#[test]
fn goals_groups_saturation_and_convergence() {
    let mut graph = Graph::new(6).unwrap();
    let relation = graph.relation("r", 1.0).unwrap();
    graph.connect(relation, &[0, 0, 0, 0], &[1, 2, 3, 4], &[0.4, 0.3, 0.2, 5.0]).unwrap();
    let groups = [u32::MAX, 7, 7, 7, 1, u32::MAX];
    let options = Options {
        steps: 1,
        goals: &[5],
        goal_strength: 2.0,
        groups: Some((&groups, 1)),
        saturation: 3.0,
        ..Options::default()
    };
    let found = graph.spread(&[0], &[1.0], &options).unwrap().active;
    assert_eq!(found.ids, [0, 1, 4, 5]);
    assert_eq!(found.levels, [0.85, 0.4, 3.0, 2.0]);
    graph.set_field("decay", &[0], &[1.0]).unwrap();
    graph.set_field("decay", &[1, 2, 3, 4, 5], &[0.5; 5]).unwrap();
    let outcome = graph.spread(&[0], &[1.0], &Options { steps: 99, epsilon: 1e-5, ..Options::default() }).unwrap();
    assert!(outcome.converged && outcome.steps < 25, "{} steps", outcome.steps);
    assert!((outcome.active.level(4) - 10.0).abs() < 1e-3);
    assert_eq!(graph.nodes.fired[0] as usize, outcome.steps + 1);
    assert_eq!(graph.nodes.last[0], graph.clock);
}

#[test]
fn edges_are_made_found_removed_and_compacted() {
    let mut dice = Dice::new(11);
    let mut graph = Graph::new(30).unwrap();
    let relations = [graph.relation("a", 1.0).unwrap(), graph.relation("b", 0.5).unwrap()];
    let mut wanted = std::collections::BTreeMap::new();
    for round in 0..200 {
        let relation = relations[dice.below(2)];
        let (s, t): (Vec<u32>, Vec<u32>) =
            (0..dice.below(6)).map(|_| (dice.below(30) as u32, dice.below(30) as u32)).unzip();
        if round % 3 == 2 {
            let there = s.iter().zip(&t).filter(|(&s, &t)| wanted.remove(&(relation, s, t)).is_some()).count();
            assert_eq!(graph.disconnect(relation, &s, &t).unwrap(), there);
        } else {
            let w: Vec<f32> = s.iter().map(|_| dice.unit()).collect();
            let before = wanted.len();
            for i in 0..s.len() {
                wanted.insert((relation, s[i], t[i]), w[i]);
            }
            assert_eq!(graph.connect(relation, &s, &t, &w).unwrap(), wanted.len() - before);
        }
        if round % 50 == 49 {
            graph.compact().unwrap();
            assert_eq!(graph.size().slack, 0);
        }
        assert_eq!(graph.live as usize, wanted.len());
    }
    for (&(r, s, t), &w) in &wanted {
        assert_eq!(graph.pool.weight[graph.find(r, s, t).unwrap()], w);
    }
    for r in relations {
        for node in 0..30 {
            assert!(graph.pool.target[graph.layers[r].row(node)].is_sorted_by(|a, b| a < b));
        }
    }
}

#[test]
fn abandoned_rows_are_used_again() {
    let mut graph = Graph::new(2000).unwrap();
    let relation = graph.relation("r", 1.0).unwrap();
    for target in 0..2000u32 {
        graph.connect(relation, &[target % 20], &[target], &[0.1]).unwrap();
    }
    assert_eq!(graph.live, 2000);
    assert!(graph.size().slack < 4000, "{:?}", graph.size());
}

#[test]
fn ten_million_edges_take_no_more_than_130_megabytes() {
    let per_edge = |degree: usize| {
        let nodes = 20_000;
        let size = random(nodes, degree, &[1.0], 1);
        let (size, live) = (size.size(), size.live);
        (size.nodes + size.rows + size.edges) as f64 / live as f64
    };
    assert!(per_edge(10) <= 13.0, "{}", per_edge(10));
}

#[test]
fn what_does_not_fit_is_an_error_that_names_it() {
    let mut graph = Graph::new(3).unwrap();
    let r = graph.relation("r", 1.0).unwrap();
    assert!(graph.connect(r, &[3], &[0], &[0.0]).is_err_and(|e| e.contains("sources contains 3")));
    assert!(graph.connect(r, &[0], &[0], &[f32::NAN]).is_err_and(|e| e.contains("weights contains NaN")));
    assert!(graph.connect(r, &[0, 1], &[0], &[0.0]).is_err_and(|e| e.contains("targets has 1")));
    assert!(graph.connect(9, &[0], &[0], &[0.0]).is_err_and(|e| e.contains("relation = 9")));
    assert!(graph.relation("two\nlines", 1.0).is_err());
    assert!(graph.spread(&[9], &[1.0], &Options::default()).is_err_and(|e| e.contains("seeds contains 9")));
    let options = Options { saturation: f32::NAN, ..Options::default() };
    assert!(graph.spread(&[0], &[1.0], &options).is_err_and(|e| e.contains("saturation")));
    assert!(graph.set_field("decay", &[0], &[1.5]).is_err_and(|e| e.contains("decay = 1.5")));
    assert!(graph.set_field("colour", &[0], &[1.5]).is_err_and(|e| e.contains("known: bias")));
    assert!(Graph::new(u32::MAX as usize).is_err());
    let empty = graph.spread(&[], &[], &Options::default()).unwrap();
    assert!(empty.converged && empty.active.ids.is_empty());
}
