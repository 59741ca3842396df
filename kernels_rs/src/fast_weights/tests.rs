//! Against a plain loop in double precision, and against itself on other instruction sets and numbers of threads.

use crate::fast_weights::run::{backward, forward, Inputs, Shape};
use crate::fast_weights::{DELTA, OJA, RULES};
use crate::isa::Level;

/// Numbers in [-0.5, 0.5).
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from((x >> 40) as f32 / (1u64 << 24) as f32) - 0.5
    };
    (0..count).map(|_| next()).collect()
}

const NAMES: [&str; 8] = ["q", "k", "v", "eta", "gate", "rates", "fast", "slow"];

/// A call in double precision; `x` in the order of [`NAMES`].
#[derive(Clone)]
struct Case {
    shape: Shape,
    rule: usize,
    slow: bool,
    gated: bool,
    x: [Vec<f64>; 8],
    starts: Option<Vec<u8>>,
}

impl Case {
    fn new(shape: Shape, rule: usize, variant: usize) -> Case {
        let Shape { batch, tokens, heads, rank, dv } = shape;
        let (each, state) = (batch * tokens * heads, batch * heads * rank * dv);
        let sizes = [each * rank, each * rank, each * dv, each, each, 3 * heads, state, state];
        let mut x = sizes.map(|size| numbers(size as u64 + 17 * (rule + 3 * variant) as u64, size));
        // Rates of 0 to 1 and decays of 0.5 to 1; values of up to 2, so that Oja's decay reaches 0 at some tokens.
        x[2].iter_mut().for_each(|v| *v *= 4.0);
        x[3..5].iter_mut().flatten().for_each(|rate| *rate += 0.5);
        x[5].iter_mut().for_each(|rate| *rate = 0.75 + 0.5 * *rate);
        let starts = (0..batch * tokens).map(|t| u8::from(t % 11 == 7)).collect();
        Case {
            shape,
            rule,
            slow: variant & 1 == 0,
            gated: variant & 2 == 0,
            x,
            starts: (variant & 4 == 0).then_some(starts),
        }
    }

    /// read, F, S as one list.
    fn plain(&self) -> Vec<f64> {
        let Shape { batch, tokens, heads, rank, dv } = self.shape;
        let [q, k, v, eta, gate, rates, fast, slow] = &self.x;
        let mut read = vec![0.0; v.len()];
        let (mut fast, mut slow) = (fast.clone(), if self.slow { slow.clone() } else { vec![0.0; slow.len()] });
        for (b, t, h) in (0..batch * tokens * heads).map(|i| (i / heads / tokens, i / heads % tokens, i % heads)) {
            let (row, pair) = ((b * tokens + t) * heads + h, b * heads + h);
            let state = pair * rank * dv..(pair + 1) * rank * dv;
            let (fast, slow) = (&mut fast[state.clone()], &mut slow[state]);
            if self.starts.as_ref().is_some_and(|starts| starts[b * tokens + t] != 0) {
                fast.fill(0.0);
                slow.fill(0.0);
            }
            let (q, k, eta) = (&q[row * rank..][..rank], &k[row * rank..][..rank], eta[row]);
            let gate = if self.gated { gate[row] } else { 1.0 };
            for c in 0..dv {
                let v = v[row * dv + c];
                let at = |r: usize| r * dv + c;
                read[row * dv + c] = (0..rank).map(|r| q[r] * (fast[at(r)] + slow[at(r)])).sum();
                let known: f64 = (0..rank).map(|r| k[r] * fast[at(r)]).sum();
                let error = if self.rule == DELTA { v - known } else { v };
                let keep = if self.rule == OJA { (rates[h] - eta * v * v).max(0.0) } else { rates[h] };
                for r in 0..rank {
                    fast[at(r)] = keep * fast[at(r)] + eta * k[r] * error;
                    if self.slow {
                        slow[at(r)] = rates[heads + h] * slow[at(r)] + rates[2 * heads + h] * gate * fast[at(r)];
                    }
                }
            }
        }
        [read, fast, if self.slow { slow } else { vec![] }].concat()
    }

    fn with_inputs<R>(&self, body: impl FnOnce(Inputs<'_>) -> R) -> R {
        let x = self.x.each_ref().map(|x| x.iter().map(|&x| x as f32).collect::<Vec<f32>>());
        body(Inputs {
            shape: self.shape,
            rule: self.rule,
            q: &x[0],
            k: &x[1],
            v: &x[2],
            eta: &x[3],
            gate: self.gated.then_some(&x[4]),
            rates: &x[5],
            fast: &x[6],
            slow: self.slow.then_some(&x[7]),
            starts: self.starts.as_deref(),
        })
    }
}

fn shape(batch: usize, tokens: usize, heads: usize, rank: usize, dv: usize) -> Shape {
    Shape { batch, tokens, heads, rank, dv }
}

fn compare(name: &str, found: &[f32], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len(), "{name}");
    let scale = wanted.iter().fold(0.1, |scale: f64, x| scale.max(x.abs()));
    for (i, (&x, &y)) in found.iter().zip(wanted).enumerate() {
        assert!((f64::from(x) - y).abs() < tolerance * scale, "{name}[{i}] is {x}, should be {y} (scale {scale})");
    }
}

#[test]
fn equals_the_plain_loop_on_every_level_and_any_number_of_threads() {
    for size in [shape(1, 1, 1, 1, 1), shape(2, 37, 3, 5, 19), shape(1, 64, 2, 16, 80)] {
        for (rule, variant) in (0..3).flat_map(|rule| (0..8).map(move |variant| (rule, variant))) {
            let case = Case::new(size, rule, variant);
            let expected = case.plain();
            case.with_inputs(|inputs| {
                for level in Level::available() {
                    let x = forward(&inputs, true, 1, level).unwrap();
                    let found = [&x.read[..], &x.fast, &x.slow].concat();
                    compare(&format!("{} {variant} {}", RULES[rule], level.name()), &found, &expected, 1e-5);
                    let slow = inputs.slow.map(|_| &x.slow[..]);
                    let gradients =
                        |threads| backward(&inputs, &x.boundaries, (inputs.v, &x.fast, slow), threads, level).unwrap();
                    assert!(forward(&inputs, true, 3, level).unwrap() == x);
                    assert!(gradients(1) == gradients(3));
                }
            });
        }
    }
}

#[test]
fn gradients_equal_differences_of_the_plain_loop() {
    for size in [shape(2, 19, 2, 3, 3), shape(1, 10, 1, 2, 35)] {
        for (rule, variant) in (0..3).flat_map(|rule| (0..8).map(move |variant| (rule, variant))) {
            let case = Case::new(size, rule, variant);
            let weights = numbers(99, case.plain().len());
            let loss = |case: &Case| case.plain().iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>();
            let single: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
            let (read_bar, rest) = single.split_at(case.x[2].len());
            let (fast_bar, slow_bar) = rest.split_at(case.x[6].len());
            let found = case.with_inputs(|inputs| {
                let x = forward(&inputs, true, 1, Level::best()).unwrap();
                let bars = (read_bar, fast_bar, inputs.slow.map(|_| slow_bar));
                backward(&inputs, &x.boundaries, bars, 1, Level::best()).unwrap()
            });
            let found = [found.q, found.k, found.v, found.eta, found.gate, found.rates, found.fast, found.slow];
            for (n, found) in found.iter().enumerate() {
                let (mut changed, step) = (case.clone(), 1e-6);
                let mut wanted = Vec::with_capacity(found.len());
                for i in 0..found.len() {
                    let mut at = |x: f64| {
                        changed.x[n][i] = x;
                        loss(&changed)
                    };
                    let x = case.x[n][i];
                    wanted.push((at(x + step) - at(x - step)) / (2.0 * step));
                    at(x);
                }
                compare(&format!("d{} {} {variant}", NAMES[n], RULES[rule]), found, &wanted, 2e-5);
            }
            assert_eq!(found[4].is_empty(), !(case.slow && case.gated));
            assert_eq!(found[7].is_empty(), !case.slow);
        }
    }
}

#[test]
fn a_wrong_length_is_an_error() {
    Case::new(shape(1, 2, 1, 1, 1), 0, 0).with_inputs(|mut inputs| {
        assert!(forward(&inputs, false, 1, Level::best()).is_ok());
        inputs.v = &inputs.v[..1];
        let error = forward(&inputs, false, 1, Level::best()).err();
        assert_eq!(error.as_deref(), Some("v has 1 elements, but 2 are needed"));
    });
}
