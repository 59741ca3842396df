//! The kernels against the definition as a plain loop in double precision, whose gradient is taken by central
//! differences.

use crate::fatigue::problem::{Inputs, Kinetics, Release, Rule, Shape};
use crate::fatigue::run::{backward, forward, Cotangents, Gradients, Outputs};
use crate::isa::Level;

/// Everything a call depends on, in double precision.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) shape: Shape,
    pub(super) rule: Rule,
    pub(super) release: Release,
    pub(super) window: Option<usize>,
    pub(super) segments: Option<(Vec<i64>, Vec<i64>)>,
    pub(super) q: Vec<f64>,
    pub(super) k: Vec<f64>,
    pub(super) v: Vec<f64>,
    /// (10, heads)
    pub(super) kinetics: Vec<f64>,
    /// (batch, heads, tk); keys of the call itself are fresh
    pub(super) calcium: Vec<f64>,
    pub(super) pool: Vec<f64>,
}

/// Numbers in (-1, 1) that depend on the seed alone.
fn noise(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // What single precision holds, so that both sides compute from the same numbers.
            f64::from(((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0) as f32)
        })
        .collect()
}

impl Problem {
    pub(super) fn new(shape: Shape, rule: Rule, release: Release, lam: f32, s: f32) -> Problem {
        let Shape { batch, heads, kv_heads, tq, tk, dim } = shape;
        let typical = [0.85f32, 0.55, 0.7, s, -0.8, 1.0, 0.975, 1.0, lam, 1e-2];
        let jitter = noise(7, 10 * heads);
        let kinetics = (0..10 * heads)
            .map(|i| match i / heads {
                8 => f64::from(lam),
                row => f64::from(typical[row] * (0.97 + 0.02 * jitter[i] as f32)),
            })
            .collect::<Vec<f64>>();
        let old = tk - tq;
        let state = noise(5, batch * heads * tk);
        let mut calcium = vec![0.0; batch * heads * tk];
        let mut pool = vec![0.0; batch * heads * tk];
        for i in 0..batch * heads * tk {
            let is_old = i % tk < old;
            calcium[i] = if is_old { 0.5 + 0.25 * state[i] } else { 0.0 };
            pool[i] = if is_old { 0.5 + 0.25 * state[i] } else { kinetics[7 * heads + i / tk % heads] };
        }
        let scaled = |seed, count| noise(seed, count).into_iter().map(|x| x * 2.0).collect();
        Problem {
            shape,
            rule,
            release,
            window: None,
            segments: None,
            q: scaled(1, batch * heads * tq * dim),
            k: scaled(2, batch * kv_heads * tk * dim),
            v: scaled(3, batch * kv_heads * tk * dim),
            kinetics,
            calcium,
            pool,
        }
    }

    /// The call's own keys are born with a full pool, whatever `r_max` is.
    fn fill_fresh(&mut self) {
        let Shape { heads, tq, tk, .. } = self.shape;
        for (i, pool) in self.pool.iter_mut().enumerate().filter(|(i, _)| i % tk >= tk - tq) {
            *pool = self.kinetics[7 * heads + i / tk % heads];
        }
    }

    fn sees(&self, row: usize, i: usize, j: usize) -> bool {
        let Shape { tq, tk, .. } = self.shape;
        let t = tk - tq + i;
        j <= t
            && self.window.is_none_or(|w| j + w > t)
            && self.segments.as_ref().is_none_or(|(q, k)| q[row * tq + i] == k[row * tk + j])
    }

    /// out, calcium, pool
    fn naive(&self) -> [Vec<f64>; 3] {
        let Shape { batch, heads, kv_heads, tq, tk, dim } = self.shape;
        let (mut calcium, mut pool) = (self.calcium.clone(), self.pool.clone());
        let mut out = vec![0.0; self.q.len()];
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for index in 0..batch * heads {
            let (row, head) = (index / heads, index % heads);
            let kv = row * kv_heads + head / (heads / kv_heads);
            let [rho_c, alpha, k_d, s, b, kappa, rho_r, r_max, lam, eps] =
                std::array::from_fn(|i| self.kinetics[i * heads + head]);
            for i in 0..tq {
                let q = &self.q[(index * tq + i) * dim..][..dim];
                let mut total = 0.0;
                let mut sum = vec![0.0; dim];
                for j in 0..tk {
                    let (c, r) = (&mut calcium[index * tk + j], &mut pool[index * tk + j]);
                    let k = &self.k[(kv * tk + j) * dim..][..dim];
                    let logit: f64 = q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt();
                    let seen = self.sees(row, i, j);
                    let e = if seen { logit.exp() } else { 0.0 };
                    let p = if self.release == Release::Age {
                        if seen {
                            sigmoid(b) / (1.0 + kappa)
                        } else {
                            0.0
                        }
                    } else {
                        *c = rho_c * *c + alpha * e.ln_1p();
                        sigmoid(s * *c / (*c + k_d) + b) * e / (e + kappa)
                    };
                    let w = if self.rule == Rule::Min { p.min(*r) } else { p * *r };
                    *r = rho_r * (*r - w) + (1.0 - rho_r) * r_max;
                    let n = e * (eps + w).powf(lam);
                    total += n;
                    for (y, x) in sum.iter_mut().zip(&self.v[(kv * tk + j) * dim..]) {
                        *y += n * x;
                    }
                }
                for (y, x) in out[(index * tq + i) * dim..].iter_mut().zip(&sum) {
                    *y = if total > 0.0 { x / total } else { 0.0 };
                }
            }
        }
        [out, calcium, pool]
    }

    fn with_inputs<R>(&self, body: impl FnOnce(Inputs<'_>) -> R) -> R {
        let single = |x: &[f64]| x.iter().map(|&value| value as f32).collect::<Vec<f32>>();
        let (q, k, v) = (single(&self.q), single(&self.k), single(&self.v));
        let (calcium, pool, kinetics) = (single(&self.calcium), single(&self.pool), single(&self.kinetics));
        let heads = self.shape.heads;
        body(Inputs {
            shape: self.shape,
            rule: self.rule,
            release: self.release,
            q: &q,
            k: &k,
            v: &v,
            kinetics: (0..heads)
                .map(|h| Kinetics::new(std::array::from_fn(|i| kinetics[i * heads + h]), self.release).unwrap())
                .collect(),
            calcium: &calcium,
            pool: &pool,
            of_state: self.shape.tk,
            state: 0..self.shape.tk,
            segments: self.segments.as_ref().map(|(q, k)| (&q[..], &k[..])),
            window: self.window,
        })
    }

    fn bars(&self) -> [Vec<f64>; 3] {
        [noise(11, self.q.len()), noise(12, self.calcium.len()), noise(13, self.pool.len())]
    }

    pub(super) fn run(&self, threads: usize, level: Level) -> (Outputs<Vec<f32>>, Gradients<Vec<f32>>) {
        let bars = self.bars().map(|x| x.iter().map(|&y| y as f32).collect::<Vec<f32>>());
        self.with_inputs(|inputs| {
            let x = forward(&inputs, true, threads, level).unwrap();
            let cotangents = Cotangents { out: &bars[0], calcium: &bars[1], pool: &bars[2] };
            let saved = (&x.out[..], &x.total[..], &x.boundaries[..]);
            let gradients = backward(&inputs, saved, &cotangents, true, threads, level).unwrap();
            (x, gradients)
        })
    }

    fn loss(&self) -> f64 {
        let pairs = self.naive().into_iter().zip(self.bars());
        pairs.map(|(x, bar)| x.iter().zip(&bar).map(|(a, b)| a * b).sum::<f64>()).sum()
    }

    /// Derivative of the loss along `direction` of the field that `pick` chooses.
    fn slope(&self, pick: impl Fn(&mut Problem) -> &mut Vec<f64>, direction: &[f64]) -> f64 {
        let step = 1e-6;
        let at = |h: f64| {
            let mut moved = self.clone();
            pick(&mut moved).iter_mut().zip(direction).for_each(|(x, d)| *x += h * d);
            moved.fill_fresh();
            moved.loss()
        };
        (at(step) - at(-step)) / (2.0 * step)
    }

    fn check(&self, label: &str) {
        let exact = self.naive();
        for level in Level::available() {
            let (x, mut g) = self.run(1, level);
            let Shape { heads, tq, tk, .. } = self.shape;
            for (i, &bar) in g.pool.iter().enumerate().filter(|(i, _)| i % tk >= tk - tq) {
                g.kinetics[7 * heads + i / tk % heads] += bar;
            }
            let label = format!("{label} {}", level.name());
            for (name, found, exact) in
                [("out", &x.out, &exact[0]), ("calcium", &x.calcium, &exact[1]), ("pool", &x.pool, &exact[2])]
            {
                let error = distance(found, exact);
                assert!(error < 1e-6, "{label}: {name} differs by {error:e}");
            }
            type Pick = fn(&mut Problem) -> &mut Vec<f64>;
            let fields: [(&str, Pick, &Vec<f32>); 4] = [
                ("q", |p| &mut p.q, &g.q),
                ("k", |p| &mut p.k, &g.k),
                ("v", |p| &mut p.v, &g.v),
                ("kinetics", |p| &mut p.kinetics, &g.kinetics),
            ];
            for (name, pick, gradient) in fields {
                // Differences step over a few kinks of rule `min`, which the many sums of the kinetics show.
                let tolerance = if name == "kinetics" { 1e-4 } else { 2e-5 };
                let size = gradient.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>().sqrt();
                // Along itself (all of it counts) and along noise (each component counts).
                let along = gradient.iter().map(|&y| f64::from(y) / size).collect::<Vec<f64>>();
                for direction in [along, noise(17, gradient.len())] {
                    let found: f64 = gradient.iter().zip(&direction).map(|(&a, b)| f64::from(a) * b).sum();
                    let exact = self.slope(pick, &direction);
                    assert!(
                        (found - exact).abs() < tolerance * size.max(1e-3),
                        "{label}: d{name} is {found}, not {exact}"
                    );
                }
            }
        }
    }
}

/// Relative distance in the Euclidean norm.
fn distance(found: &[f32], exact: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = found.iter().zip(exact).map(|(&a, b)| square(f64::from(a) - b)).sum();
    (error / exact.iter().map(|&b| square(b)).sum::<f64>().max(1e-12)).sqrt()
}

const SHAPES: [Shape; 4] = [
    Shape { batch: 2, heads: 2, kv_heads: 1, tq: 9, tk: 9, dim: 5 },
    Shape { batch: 1, heads: 2, kv_heads: 2, tq: 70, tk: 150, dim: 16 },
    Shape { batch: 1, heads: 1, kv_heads: 1, tq: 3, tk: 70, dim: 24 },
    Shape { batch: 1, heads: 1, kv_heads: 1, tq: 1, tk: 65, dim: 7 },
];

#[test]
fn equals_the_definition() {
    for shape in SHAPES {
        for rule in [Rule::Min, Rule::Mul] {
            Problem::new(shape, rule, Release::Kinetic, 1.0, 3.0).check(&format!("{shape:?} {rule:?}"));
            Problem::new(shape, rule, Release::Kinetic, 0.6, 9.0).check(&format!("{shape:?} {rule:?} general"));
            Problem::new(shape, rule, Release::Age, 1.0, 3.0).check(&format!("{shape:?} {rule:?} age"));
        }
    }
}

#[test]
fn equals_the_definition_with_windows_and_segments() {
    for shape in SHAPES {
        let Shape { batch, tq, tk, .. } = shape;
        let of_keys: Vec<i64> = (0..batch * tk).map(|i| ((i % tk) / 13) as i64).collect();
        let of_queries = (0..batch * tq).map(|i| of_keys[i / tq * tk + tk - tq + i % tq]).collect::<Vec<i64>>();
        for release in [Release::Kinetic, Release::Age] {
            for window in [None, Some(5)] {
                for segments in [None, Some((of_queries.clone(), of_keys.clone()))] {
                    let mut problem = Problem::new(shape, Rule::Min, release, 1.0, 3.0);
                    problem.window = window;
                    problem.segments = segments;
                    problem.check(&format!("{shape:?} {release:?} window {window:?}"));
                }
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for tq in [45, 3] {
        let shape = Shape { batch: 2, heads: 4, kv_heads: 2, tq, tk: 80, dim: 20 };
        let mut problem = Problem::new(shape, Rule::Min, Release::Kinetic, 1.0, 3.0);
        // A head of another form of the gate among those that share keys.
        problem.kinetics[3 * shape.heads + 1] = 9.0;
        let (x, g) = problem.run(1, Level::best());
        for threads in [2, 3, 5] {
            let (y, h) = problem.run(threads, Level::best());
            assert_eq!((&x.out, &x.calcium, &x.pool), (&y.out, &y.calcium, &y.pool));
            assert_eq!((&g.q, &g.k, &g.v, &g.kinetics), (&h.q, &h.k, &h.v, &h.kinetics));
        }
    }
}

#[test]
fn a_state_of_old_keys_does() {
    for (tq, tk) in [(1, 70), (3, 66), (40, 130), (5, 5)] {
        let shape = Shape { batch: 2, heads: 2, kv_heads: 1, tq, tk, dim: 8 };
        let problem = Problem::new(shape, Rule::Min, Release::Kinetic, 1.0, 3.0);
        problem.with_inputs(|whole| {
            // The state of the old keys, with some that are no longer there before each.
            let (old, gone) = (tk - tq, 3);
            let cut = |x: &[f32]| -> Vec<f32> {
                x.chunks(tk).flat_map(|row| [&[9.0; 3][..], &row[..old]].concat()).collect()
            };
            let (calcium, pool) = (cut(whole.calcium), cut(whole.pool));
            let expected = forward(&whole, true, 1, Level::best()).unwrap();
            let part =
                Inputs { calcium: &calcium, pool: &pool, of_state: gone + old, state: gone..gone + old, ..whole };
            let found = forward(&part, true, 1, Level::best()).unwrap();
            assert_eq!((&found.out, &found.calcium, &found.pool), (&expected.out, &expected.calcium, &expected.pool));
            assert_eq!(found.boundaries, expected.boundaries);
        });
    }
}

#[test]
fn bad_inputs_are_refused() {
    let shape = Shape { batch: 1, heads: 2, kv_heads: 1, tq: 4, tk: 6, dim: 8 };
    let problem = Problem::new(shape, Rule::Min, Release::Kinetic, 1.0, 3.0);
    let refused = |change: fn(&mut Inputs<'_>)| {
        problem.with_inputs(|mut inputs| {
            change(&mut inputs);
            forward(&inputs, false, 1, Level::best()).err()
        })
    };
    assert!(refused(|_| ()).is_none());
    assert!(refused(|x| x.shape.tq = 7).unwrap().contains("queries"));
    assert!(refused(|x| x.shape.heads = 3).unwrap().contains("q has"));
    assert!(refused(|x| x.shape.dim = 0).unwrap().contains("empty"));
    assert!(refused(|x| x.window = Some(0)).unwrap().contains("window"));
    assert!(refused(|x| x.pool = &[]).unwrap().contains("pool"));
    assert!(refused(|x| x.segments = Some((&[0; 4], &[0; 5]))).unwrap().contains("segments_k"));
    for (row, value) in [(0, 1.5), (2, 0.0), (5, f32::NAN), (9, -1.0)] {
        let mut values = [0.9, 0.5, 0.7, 3.0, -0.8, 1.0, 0.9, 1.0, 1.0, 1e-3];
        values[row] = value;
        assert!(Kinetics::new(values, Release::Kinetic).is_err());
    }
    let mut loud = problem.clone();
    loud.q.iter_mut().for_each(|x| *x *= 1e3);
    loud.with_inputs(|x| assert!(forward(&x, false, 1, Level::best()).is_err_and(|e| e.contains("logit"))));
    loud.q[0] = f64::NAN;
    loud.with_inputs(|x| assert!(forward(&x, false, 1, Level::best()).is_err()));
}
