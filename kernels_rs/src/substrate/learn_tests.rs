//! Learning: the same bits for any number of threads; growth, pruning and eligibility against plain sums.

use crate::substrate::graph::Graph;
use crate::substrate::learn::{Plasticity, Rule};
use crate::substrate::surprise::{self, Pairs, Readout, Settings};
use crate::substrate::tests::{random, Dice};
use crate::substrate::trace::Trace;
use crate::substrate::trophin::Trophin;
use crate::substrate::NONE;

const HOW: Plasticity =
    Plasticity { rule: Rule::Delta, eta: 0.5, reward: 1.0, clip: (-1.0, 1.0), create: None, budget: usize::MAX };

#[test]
fn surprise_is_the_same_for_any_number_of_threads_and_lowers_the_loss() {
    let (answers, width, pairs) = (50, 3, 700);
    let mut dice = Dice::new(5);
    let targets: Vec<u32> = (0..pairs).map(|_| dice.below(answers) as u32).collect();
    let contexts: Vec<u32> = targets
        .iter()
        .flat_map(|&target| {
            let noise = dice.below(200) as u32;
            [50 + target, 100 + noise, if noise > 100 { NONE } else { 60 + target }]
        })
        .collect();
    let mut found = Vec::new();
    for threads in [1, 2, 8] {
        let mut graph = random(300, 40, &[1.0], 9);
        graph.trace = Some(Trace::new(5000, 7).unwrap());
        let own: Vec<u32> = (0..50).collect();
        let behind: Vec<u32> = (50..100).collect();
        graph.connect(0, &behind, &own, &[0.0; 50]).unwrap();
        let pairs = Pairs { width, contexts: &contexts, levels: None, targets: &targets };
        let readout = Readout { relation: 0, first: 0, count: answers };
        let rule = surprise::Rule::Surprise;
        let how = Settings { rule, eta: 0.2, bias_eta: 0.01, clip: (-9.0, 9.0), batch: 64, threads };
        let mut losses = vec![0f32; targets.len()];
        let (mut first, mut level) = (0.0, vec![0f32; answers]);
        for round in 0..5 {
            let trophin = Trophin { level: &mut level, rho: 0.9, release: 1.0, gain: 0.5 };
            graph.surprise(readout, &pairs, &how, Some(trophin), &mut losses).unwrap();
            first = if round == 0 { losses.iter().sum() } else { first };
        }
        assert!(losses.iter().sum::<f32>() < 0.5 * first);
        let trace = graph.trace.as_ref().unwrap();
        assert!(trace.kept > 5000 && trace.kept <= trace.offered.div_ceil(7), "edges to other nodes do not change");
        assert!((level.iter().sum::<f32>() - 1.0).abs() < 1e-5, "what decays is what was released");
        found.push((losses, level, graph.pool.weight.to_vec(), graph.nodes.bias.to_vec(), trace.ordered()));
    }
    assert!(found.iter().all(|x| x == &found[0]));
}

#[test]
fn growth_and_pruning_keep_to_their_budgets() {
    let mut graph = Graph::new(10).unwrap();
    let r = graph.relation("r", 1.0).unwrap();
    let (ids, levels): (Vec<u32>, Vec<f32>) = (0..10).map(|i| (i, 0.1 * (i + 1) as f32)).unzip();
    let how = Plasticity { create: Some(0.2), budget: 6, ..HOW };
    assert_eq!(graph.learn(r, (&ids, &levels), (&ids, &levels), &how).unwrap(), 6);
    assert!(graph.find(r, 9, 8).is_some() && graph.find(r, 8, 9).is_some() && graph.find(r, 9, 9).is_none());
    assert_eq!(graph.prune(r, f32::INFINITY, None, 4).unwrap(), 4);
    assert_eq!(graph.live, 2);
    assert!(graph.find(r, 9, 8).is_some(), "the strongest stay");
}

#[test]
fn eligibility_fades_for_all_edges_at_once() {
    let mut graph = Graph::new(3).unwrap();
    let r = graph.relation("r", 1.0).unwrap();
    graph.connect(r, &[0, 1], &[2, 2], &[0.0, 0.0]).unwrap();
    let how = Plasticity { rule: Rule::Eligible, ..HOW };
    let mut wanted = [0f64; 2];
    for step in 0..200u32 {
        graph.learn(r, (&[step % 2], &[1.0]), (&[2], &[0.5]), &how).unwrap();
        wanted[step as usize % 2] += 0.5;
        graph.fade(0.8).unwrap();
        wanted.iter_mut().for_each(|x| *x *= 0.8);
    }
    graph.reinforce(r, 1.0, 1.0, (-9.0, 9.0)).unwrap();
    for (slot, wanted) in wanted.into_iter().enumerate() {
        assert!((graph.pool.weight[slot] as f64 - wanted).abs() < 1e-5, "{wanted}");
    }
}
