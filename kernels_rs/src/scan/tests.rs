//! The kernels against the definition as a plain loop in double precision, whose gradient is taken by central
//! differences; shapes and numbers are drawn by proptest.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::isa::Level;
use crate::scan::problem::{Coefficient, Inputs, Shape};
use crate::scan::run::{backward, forward, Gradients, Wanted};
use crate::scan::GROUP;

/// Everything a call depends on.
#[derive(Clone, Debug)]
struct Problem {
    shape: Shape,
    a: Vec<f64>,
    a_dims: [usize; 3],
    x: Vec<f64>,
    floor: Option<(Vec<f64>, [usize; 3])>,
    state: Vec<f64>,
    starts: Option<Vec<bool>>,
}

fn single(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

fn index(dims: [usize; 3], at: [usize; 3]) -> usize {
    let i = |axis: usize| if dims[axis] == 1 { 0 } else { at[axis] };
    (i(0) * dims[1] + i(1)) * dims[2] + i(2)
}

impl Problem {
    /// y in double precision, and the smallest distance from a tie with the floor.
    fn naive(&self) -> (Vec<f64>, f64) {
        let Shape { batch, tokens, channels } = self.shape;
        let mut y = vec![0.0; self.x.len()];
        let mut margin = f64::INFINITY;
        for b in 0..batch {
            for n in 0..channels {
                let mut now = self.state[b * channels + n];
                for t in 0..tokens {
                    if self.starts.as_ref().is_some_and(|starts| starts[b * tokens + t]) {
                        now = 0.0;
                    }
                    let here = (b * tokens + t) * channels + n;
                    now = self.a[index(self.a_dims, [b, t, n])] * now + self.x[here];
                    if let Some((floor, dims)) = &self.floor {
                        let floor = floor[index(*dims, [b, t, n])];
                        margin = margin.min((now - floor).abs());
                        now = now.max(floor);
                    }
                    y[here] = now;
                }
            }
        }
        (y, margin)
    }

    fn with_inputs<R>(&self, work: impl FnOnce(&Inputs<'_>, &[f32]) -> R) -> R {
        let (a, x, state) = (single(&self.a), single(&self.x), single(&self.state));
        let floor = self.floor.as_ref().map(|(values, dims)| (single(values), *dims));
        let inputs = Inputs {
            shape: self.shape,
            a: Coefficient::new(&a, self.a_dims),
            state: &state,
            starts: self.starts.as_deref(),
            floor: floor.as_ref().map(|(values, dims)| Coefficient::new(values, *dims)),
        };
        work(&inputs, &x)
    }

    fn forward(&self, threads: usize, level: Level) -> Vec<f32> {
        self.with_inputs(|inputs, x| forward(inputs, x, threads, level).unwrap())
    }

    /// Weights of y and of its last row in the loss.
    fn bars(&self) -> (Vec<f64>, Vec<f64>) {
        let wave = |i: usize| f64::from(((i as f64 * 0.7).sin() + 0.2) as f32);
        ((0..self.x.len()).map(wave).collect(), (5..5 + self.state.len()).map(wave).collect())
    }

    fn backward(&self, threads: usize, level: Level) -> Gradients {
        let y = self.forward(threads, level);
        let (y_bar, last_bar) = self.bars();
        let (y_bar, last_bar) = (single(&y_bar), single(&last_bar));
        let wanted = Wanted { a: true, floor: true };
        self.with_inputs(|inputs, _| backward(inputs, &y, &y_bar, &last_bar, wanted, threads, level).unwrap())
    }

    fn loss(&self) -> f64 {
        let (y, _) = self.naive();
        let Shape { tokens, channels, .. } = self.shape;
        let (y_bar, last_bar) = self.bars();
        let all: f64 = y.iter().zip(&y_bar).map(|(a, b)| a * b).sum();
        let last = y.chunks_exact(tokens * channels).flat_map(|row| &row[(tokens - 1) * channels..]);
        all + last.zip(&last_bar).map(|(a, b)| a * b).sum::<f64>()
    }

    /// Derivative of the loss in one number.
    fn slope(&self, pick: impl Fn(&mut Problem) -> &mut f64) -> f64 {
        let at = |h: f64| {
            let mut moved = self.clone();
            *pick(&mut moved) += h;
            moved.loss()
        };
        (at(1e-5) - at(-1e-5)) / 2e-5
    }

    /// The first `at` tokens, or those from `at` on, which begin with `state`.
    fn part(&self, from: usize, to: usize, state: Vec<f64>) -> Problem {
        let Shape { batch, tokens, channels } = self.shape;
        let cut = |values: &[f64], dims: [usize; 3]| {
            if dims[1] == 1 {
                return (values.to_vec(), dims);
            }
            let rows = values.chunks_exact(dims[1] * dims[2]);
            let kept = rows.flat_map(|row| row[from * dims[2]..to * dims[2]].to_vec()).collect();
            // One token of several is not "the same for all", but as it is alone, it makes no difference.
            (kept, [dims[0], to - from, dims[2]])
        };
        let (a, a_dims) = cut(&self.a, self.a_dims);
        let (x, _) = cut(&self.x, [batch, tokens, channels]);
        let starts =
            self.starts.as_ref().map(|s| s.chunks_exact(tokens).flat_map(|row| row[from..to].to_vec()).collect());
        let floor = self.floor.as_ref().map(|(values, dims)| cut(values, *dims));
        Problem { shape: Shape { tokens: to - from, ..self.shape }, a, a_dims, x, floor, state, starts }
    }
}

/// Numbers that single precision holds, so that both sides compute from the same.
fn numbers(count: usize, low: f32, high: f32) -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(low..high, count).prop_map(|x| x.into_iter().map(f64::from).collect())
}

fn dims(shape: Shape) -> impl Strategy<Value = [usize; 3]> {
    any::<[bool; 3]>().prop_map(move |whole| std::array::from_fn(|i| if whole[i] { shape.dims()[i] } else { 1 }))
}

fn problem(channels: impl Strategy<Value = usize>) -> impl Strategy<Value = Problem> {
    (1usize..4, 1usize..20, channels).prop_flat_map(|(batch, tokens, channels)| {
        let shape = Shape { batch, tokens, channels };
        let coefficient = move |low: f32, high: f32| {
            dims(shape).prop_flat_map(move |dims| (numbers(dims.iter().product(), low, high), Just(dims)))
        };
        (
            coefficient(-0.4, 1.1),
            numbers(batch * tokens * channels, -2.0, 2.0),
            prop::option::of(coefficient(-1.0, 1.0)),
            numbers(batch * channels, -2.0, 2.0),
            prop::option::of(prop::collection::vec(prop::bool::weighted(0.2), batch * tokens)),
        )
            .prop_map(move |((a, a_dims), x, floor, state, starts)| Problem {
                shape,
                a,
                a_dims,
                x,
                floor,
                state,
                starts,
            })
    })
}

/// Few channels, or about as many as one job takes.
fn some_channels() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..6, 14usize..19, GROUP - 1..GROUP + 3]
}

/// No files are written, and the same problems are drawn each time.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..ProptestConfig::default() }
}

fn close(found: f32, exact: f64, scale: f64) -> bool {
    (f64::from(found) - exact).abs() <= 1e-5 * scale.max(1.0)
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn equals_the_definition(problem in problem(some_channels())) {
        let (exact, _) = problem.naive();
        for level in Level::available() {
            for (found, exact) in problem.forward(1, level).iter().zip(&exact) {
                prop_assert!(close(*found, *exact, exact.abs()), "{} {found} {exact}", level.name());
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits(problem in problem(some_channels()), threads in 2usize..6) {
        let level = Level::best();
        prop_assert_eq!(problem.forward(1, level), problem.forward(threads, level));
        let (one, many) = (problem.backward(1, level), problem.backward(threads, level));
        prop_assert_eq!((one.x, one.a, one.state, one.floor), (many.x, many.a, many.state, many.floor));
    }

    #[test]
    fn splitting_anywhere_equals_the_whole(problem in problem(some_channels()), cut in 0.0f64..1.0) {
        let Shape { batch, tokens, channels } = problem.shape;
        let at = (cut * tokens as f64) as usize;
        let level = Level::best();
        let whole = problem.forward(1, level);
        let head = if at == 0 { vec![] } else { problem.part(0, at, problem.state.clone()).forward(1, level) };
        let after = head.chunks_exact((at * channels).max(1)).flat_map(|row| &row[row.len() - channels..]);
        let state = if at == 0 { problem.state.clone() } else { after.map(|&y| f64::from(y)).collect() };
        let tail = problem.part(at, tokens, state).forward(1, level);
        for b in 0..batch {
            let row = &whole[b * tokens * channels..][..tokens * channels];
            prop_assert_eq!(&row[..at * channels], &head[b * at * channels..][..at * channels]);
            let rest = (tokens - at) * channels;
            prop_assert_eq!(&row[at * channels..], &tail[b * rest..][..rest]);
        }
    }

    /// Maps y -> max(a y + x, f) with a >= 0 are closed under composition: one token that does the work of two.
    #[test]
    fn two_tokens_in_one_give_the_same_ends(
        steps in prop::collection::vec([0.0f32..1.1, -2.0f32..2.0, -1.0f32..1.0], 2..30),
        state in -2.0f32..2.0,
        bounded: bool,
    ) {
        let steps = &steps[..steps.len() / 2 * 2];
        let run = |steps: &[[f64; 3]]| {
            let column = |i: usize| steps.iter().map(|step| step[i]).collect::<Vec<f64>>();
            let dims = [1, steps.len(), 1];
            let problem = Problem {
                shape: Shape { batch: 1, tokens: steps.len(), channels: 1 },
                a: column(0),
                a_dims: dims,
                x: column(1),
                floor: bounded.then(|| (column(2), dims)),
                state: vec![f64::from(state)],
                starts: None,
            };
            problem.forward(1, Level::best())
        };
        let steps: Vec<[f64; 3]> = steps.iter().map(|step| step.map(f64::from)).collect();
        let merged: Vec<[f64; 3]> = steps
            .chunks_exact(2)
            .map(|two| {
                let ([a, x, f], [b, y, g]) = (two[0], two[1]);
                [a * b, b * x + y, (b * f + y).max(g)]
            })
            .collect();
        let (each, both) = (run(&steps), run(&merged));
        for (i, &y) in both.iter().enumerate() {
            prop_assert!(close(each[2 * i + 1], f64::from(y), 4.0), "{i}: {} {y}", each[2 * i + 1]);
        }
    }
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn gradients_equal_central_differences(problem in problem(1usize..6)) {
        // A difference across the kink says nothing.
        prop_assume!(problem.naive().1 > 1e-3);
        let Shape { batch, tokens, channels } = problem.shape;
        // Gradients of a coefficient come per batch row and channel, and per token where it differs between tokens.
        let reduced = |found: &[f32], dims: [usize; 3]| {
            let rows = if dims[1] == 1 { 1 } else { tokens };
            let mut sums = vec![0f64; dims.iter().product()];
            for (i, &value) in found.iter().enumerate() {
                let at = [i / channels / rows, i / channels % rows, i % channels];
                sums[index(dims, at)] += f64::from(value);
            }
            sums
        };
        let close = |name: &str, i: usize, found: f64, exact: f64| {
            prop_assert!((found - exact).abs() < 2e-4 * exact.abs().max(1.0), "d{name}[{i}] is {found}, not {exact}");
            Ok(())
        };
        for level in Level::available() {
            let g = problem.backward(1, level);
            prop_assert_eq!(g.a.len(), batch * if problem.a_dims[1] == 1 { 1 } else { tokens } * channels);
            for (i, &found) in g.x.iter().enumerate() {
                close("x", i, f64::from(found), problem.slope(|p| &mut p.x[i]))?;
            }
            for (i, &found) in g.state.iter().enumerate() {
                close("state", i, f64::from(found), problem.slope(|p| &mut p.state[i]))?;
            }
            for (i, &found) in reduced(&g.a, problem.a_dims).iter().enumerate() {
                close("a", i, found, problem.slope(|p| &mut p.a[i]))?;
            }
            if let Some((_, dims)) = problem.floor {
                for (i, &found) in reduced(&g.floor, dims).iter().enumerate() {
                    let exact = problem.slope(|p| match &mut p.floor {
                        Some((values, _)) => &mut values[i],
                        None => unreachable!(),
                    });
                    close("floor", i, found, exact)?;
                }
            }
        }
    }
}

#[test]
fn many_tokens_and_threads_give_the_same_bits() {
    let shape = Shape { batch: 2, tokens: 150, channels: 300 };
    let wave = |count: usize, f: f64| (0..count).map(|i| f64::from((i as f64 * f).sin() as f32)).collect::<Vec<f64>>();
    let problem = Problem {
        shape,
        a: wave(300, 0.3),
        a_dims: [1, 1, 300],
        x: wave(2 * 150 * 300, 0.11),
        floor: Some((wave(150, 0.9), [1, 150, 1])),
        state: wave(600, 0.2),
        starts: None,
    };
    let (y, g) = (problem.forward(1, Level::best()), problem.backward(1, Level::best()));
    for threads in [2, 3, 5] {
        let h = problem.backward(threads, Level::best());
        assert_eq!(y, problem.forward(threads, Level::best()));
        assert_eq!((&g.x, &g.a, &g.state, &g.floor), (&h.x, &h.a, &h.state, &h.floor));
    }
}

#[test]
fn bad_inputs_are_refused() {
    let shape = Shape { batch: 2, tokens: 3, channels: 4 };
    let problem = Problem {
        shape,
        a: vec![0.5; 4],
        a_dims: [1, 1, 4],
        x: vec![1.0; 24],
        floor: Some((vec![0.0], [1, 1, 1])),
        state: vec![0.0; 8],
        starts: Some(vec![false; 6]),
    };
    let refused = |change: fn(&mut Inputs<'_>)| {
        problem.with_inputs(|inputs, x| {
            let mut inputs = *inputs;
            change(&mut inputs);
            forward(&inputs, x, 1, Level::best()).err()
        })
    };
    assert!(refused(|_| ()).is_none());
    assert!(refused(|x| x.shape.tokens = 0).unwrap().contains("empty"));
    assert!(refused(|x| x.shape.tokens = 4).unwrap().contains("x has"));
    assert!(refused(|x| x.shape.tokens = usize::MAX).unwrap().contains("too large"));
    assert!(refused(|x| x.state = &[0.0; 7]).unwrap().contains("state"));
    assert!(refused(|x| x.starts = Some(&[true; 5])).unwrap().contains("starts"));
    assert!(refused(|x| x.a = Coefficient::new(&[1.0; 3], [1, 1, 3])).unwrap().contains("broadcast"));
    assert!(refused(|x| x.a = Coefficient::new(&[1.0; 3], [1, 1, 4])).unwrap().contains("a has"));
    assert!(refused(|x| x.floor = Some(Coefficient::new(&[1.0; 2], [1, 2, 1]))).unwrap().contains("floor"));
}
