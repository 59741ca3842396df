//! Properties of the kernels on shapes drawn by proptest.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::fatigue::problem::{Release, Rule, Shape};
use crate::fatigue::tests::Problem;
use crate::isa::Level;

fn shapes() -> impl Strategy<Value = Shape> {
    let length = || prop_oneof![1usize..9, 60usize..70, 120usize..140];
    (1usize..3, 1usize..3, 1usize..3, length(), prop_oneof![Just(0usize), 1usize..80], 1usize..40).prop_map(
        |(batch, kv_heads, group, tq, old, dim)| Shape {
            batch,
            heads: kv_heads * group,
            kv_heads,
            tq,
            tk: tq + old,
            dim,
        },
    )
}

fn problems() -> impl Strategy<Value = Problem> {
    let window = prop_oneof![Just(None), (1usize..100).prop_map(Some)];
    (shapes(), any::<[bool; 2]>(), prop_oneof![Just(1.0f32), Just(0.6f32)], window).prop_map(
        |(shape, [min, kinetic], lam, window)| {
            let rule = if min { Rule::Min } else { Rule::Mul };
            let release = if kinetic { Release::Kinetic } else { Release::Age };
            Problem { window, ..Problem::new(shape, rule, release, lam, 3.0) }
        },
    )
}

/// For each of the leading `x.len() / (rows * width)` parts its rows `from..to`.
fn rows(x: &[f64], rows: usize, width: usize, from: usize, to: usize) -> Vec<f64> {
    x.chunks_exact(rows * width).flat_map(|part| part[from * width..to * width].to_vec()).collect()
}

/// The queries `from..to` alone, with the keys up to the last of them, from this state of all these keys.
fn part(whole: &Problem, from: usize, to: usize, calcium: Vec<f64>, pool: Vec<f64>) -> Problem {
    let Shape { tq, tk, dim, .. } = whole.shape;
    let keys = tk - tq + to;
    Problem {
        shape: Shape { tq: to - from, tk: keys, ..whole.shape },
        q: rows(&whole.q, tq, dim, from, to),
        k: rows(&whole.k, tk, dim, 0, keys),
        v: rows(&whole.v, tk, dim, 0, keys),
        calcium,
        pool,
        ..whole.clone()
    }
}

/// `old` keys as a call left them, and the fresh ones behind them as `all` has them.
fn continued(old: &[f32], keys: usize, all: &[f64], tk: usize) -> Vec<f64> {
    let heads = old.chunks_exact(keys).zip(all.chunks_exact(tk));
    heads
        .flat_map(|(old, all)| old.iter().map(|&x| f64::from(x)).chain(all[keys..].to_vec()).collect::<Vec<_>>())
        .collect()
}

fn close(found: &[f32], whole: &[f32]) -> bool {
    found.len() == whole.len() && found.iter().zip(whole).all(|(a, b)| (a - b).abs() < 1e-5)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0),
        ..ProptestConfig::default()
    })]

    #[test]
    fn splitting_anywhere_equals_the_whole(whole in problems(), cut in 0.0f64..1.0) {
        let Shape { tq, tk, dim, .. } = whole.shape;
        prop_assume!(tq > 1);
        let at = 1 + (cut * (tq - 1) as f64) as usize;
        let level = Level::best();
        let (x, _) = whole.run(1, level);
        let keys = tk - tq + at;
        let head = part(&whole, 0, at, rows(&whole.calcium, tk, 1, 0, keys), rows(&whole.pool, tk, 1, 0, keys));
        let (first, _) = head.run(1, level);
        let state = [(&first.calcium, &whole.calcium), (&first.pool, &whole.pool)];
        let [calcium, pool] = state.map(|(old, all)| continued(old, keys, all, tk));
        let (second, _) = part(&whole, at, tq, calcium, pool).run(1, level);
        let heads = x.out.chunks_exact(tq * dim);
        let parts = first.out.chunks_exact(at * dim).zip(second.out.chunks_exact((tq - at) * dim));
        for (out, (before, after)) in heads.zip(parts) {
            prop_assert!(close(before, &out[..at * dim]) && close(after, &out[at * dim..]));
        }
        prop_assert!(close(&second.calcium, &x.calcium) && close(&second.pool, &x.pool));
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits(problem in problems(), threads in 2usize..6) {
        let ((x, g), (y, h)) = (problem.run(1, Level::best()), problem.run(threads, Level::best()));
        prop_assert_eq!((x.out, x.calcium, x.pool), (y.out, y.calcium, y.pool));
        prop_assert_eq!((g.q, g.k, g.v, g.kinetics), (h.q, h.k, h.v, h.kinetics));
    }

    #[test]
    fn instruction_sets_agree(problem in problems()) {
        let (x, _) = problem.run(1, Level::Portable);
        for level in Level::available() {
            let (y, _) = problem.run(1, level);
            prop_assert!(close(&y.out, &x.out) && close(&y.calcium, &x.calcium) && close(&y.pool, &x.pool));
        }
    }
}
