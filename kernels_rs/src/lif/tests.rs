//! The kernels against the definition as a plain loop: spikes to the last bit, gradients against the backward pass
//! written out in double precision.

use crate::isa::Level;
use crate::lif::problem::{Constants, Inputs, Reset, Shape, Surrogate, Weights};
use crate::lif::run::{backward_into, forward_into, Cotangents, Gradients, Outputs};

/// Numbers in (-1, 1) that depend on the seed alone.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

struct Problem {
    shape: Shape,
    reset: Reset,
    surrogate: (Surrogate, f64),
    detach: bool,
    x: Vec<f32>,
    beta: Vec<f32>,
    theta: Vec<f32>,
    gain: Vec<f32>,
    u0: Vec<f32>,
    s0: Vec<f32>,
    starts: Vec<bool>,
    weights: Option<Vec<f32>>,
    s_bar: Vec<f32>,
    last_bar: Vec<f32>,
}

/// What a pass through the neurons leaves, forward and backward.
#[derive(Debug, PartialEq)]
struct Found {
    spikes: Vec<f32>,
    last: Vec<f32>,
    /// of x, beta, theta, gain, u0, s0 and the weights
    gradients: Vec<Vec<f32>>,
}

impl Problem {
    fn new(shape: Shape, reset: Reset, surrogate: Surrogate, detach: bool, recurrent: bool) -> Problem {
        let Shape { batch, tokens, width } = shape;
        let (whole, state) = (batch * tokens * width, batch * width);
        let scaled = |seed, count, scale: f32, offset: f32| -> Vec<f32> {
            numbers(seed, count).into_iter().map(|x| x * scale + offset).collect()
        };
        Problem {
            shape,
            reset,
            surrogate: (surrogate, 2.0),
            detach,
            x: scaled(1, whole, 1.2, 0.1),
            beta: scaled(2, width, 0.1, 0.85),
            theta: scaled(3, width, 0.2, 0.9),
            gain: scaled(4, width, 0.3, 1.0),
            u0: scaled(5, state, 0.5, 0.0),
            s0: numbers(6, state).into_iter().map(|x| f32::from(x > 0.5)).collect(),
            starts: numbers(7, batch * tokens).into_iter().map(|x| x > 0.85).collect(),
            // Multiples of 1/16, so that the order in which spikes are summed does not matter.
            weights: recurrent
                .then(|| numbers(8, width * width).into_iter().map(|x| (x * 8.0).round() / 16.0).collect()),
            s_bar: numbers(9, whole),
            last_bar: numbers(10, state),
        }
    }

    fn run(&self, threads: usize, level: Level) -> Found {
        let Shape { batch, tokens, width } = self.shape;
        let (whole, state) = (batch * tokens * width, batch * width);
        let mut inputs = Inputs {
            shape: self.shape,
            reset: self.reset,
            constants: Constants { beta: &self.beta, theta: &self.theta, gain: &self.gain },
            x: &self.x,
            u0: &self.u0,
            s0: &self.s0,
            starts: Some(&self.starts),
            weights: self.weights.as_ref().map(|values| Weights { values, transposed: false }),
        };
        let (mut spikes, mut last) = (vec![0.0; whole], vec![0.0; state]);
        let mut kept = vec![0.0; state * self.shape.kept()];
        let mut currents = vec![0.0; if self.weights.is_some() { whole } else { 0 }];
        let outputs = Outputs { spikes: &mut spikes, last: &mut last, kept: &mut kept, currents: &mut currents };
        forward_into(&inputs, outputs, threads, level).unwrap();
        if self.weights.is_some() {
            inputs.x = &currents;
        }
        let sizes = [whole, width, width, width, state, state, self.weights.as_ref().map_or(0, Vec::len)];
        let mut gradients: Vec<Vec<f32>> = sizes.iter().map(|&size| vec![f32::NAN; size]).collect();
        let [x, beta, theta, gain, u0, s0, weights] = &mut gradients[..] else { unreachable!() };
        let bars = Cotangents {
            surrogate: self.surrogate,
            detach: self.detach,
            kept: &kept,
            spikes: &spikes,
            s_bar: &self.s_bar,
            last_bar: &self.last_bar,
        };
        backward_into(&inputs, bars, Gradients { x, beta, theta, gain, u0, s0, weights }, threads, level).unwrap();
        Found { spikes, last, gradients }
    }

    /// One neuron after the other, token by token; u in the precision of the kernel, gradients in double.
    fn definition(&self) -> (Vec<f32>, Vec<f32>, Vec<Vec<f64>>) {
        let Shape { batch, tokens, width } = self.shape;
        let heard = |i: usize, j: usize| self.weights.as_ref().map_or(0.0, |w| w[i * width + j]);
        let (mut spikes, mut last) = (vec![0.0; self.x.len()], self.u0.clone());
        // I, and u before and after, at each token
        let (mut current, mut old, mut new) = (self.x.clone(), vec![0f32; self.x.len()], vec![0f32; self.x.len()]);
        let mut s_old = vec![0f32; self.x.len()];
        for b in 0..batch {
            let mut s = self.s0[b * width..][..width].to_vec();
            for t in 0..tokens {
                let row = (b * tokens + t) * width;
                let u = &mut last[b * width..][..width];
                if self.starts[b * tokens + t] {
                    u.fill(0.0);
                    s.fill(0.0);
                }
                for i in 0..width {
                    current[row + i] += (0..width).map(|j| heard(i, j) * s[j]).sum::<f32>();
                    (old[row + i], s_old[row + i]) = (u[i], s[i]);
                    let (beta, theta, x) = (self.beta[i], self.theta[i], self.gain[i] * current[row + i]);
                    new[row + i] = match self.reset {
                        Reset::Subtract => beta * u[i] + x - theta * s[i],
                        Reset::SubtractBeforeDecay => beta * (u[i] - theta * s[i]) + x,
                        Reset::Zero => beta * (u[i] * (1.0 - s[i])) + x,
                        Reset::Nothing => beta * u[i] + x,
                    };
                }
                for i in 0..width {
                    u[i] = new[row + i];
                    s[i] = f32::from(u[i] > self.theta[i]);
                    spikes[row + i] = s[i];
                }
            }
        }
        let state = batch * width;
        let sizes = [self.x.len(), width, width, width, state, state, self.weights.as_ref().map_or(0, Vec::len)];
        let mut g: Vec<Vec<f64>> = sizes.iter().map(|&size| vec![0.0; size]).collect();
        for b in 0..batch {
            let mut u_bar: Vec<f64> = self.last_bar[b * width..][..width].iter().map(|&x| f64::from(x)).collect();
            let mut s_bar = vec![0f64; width];
            for t in (0..tokens).rev() {
                let row = (b * tokens + t) * width;
                let (mut u_before, mut s_before) = (vec![0f64; width], vec![0f64; width]);
                for i in 0..width {
                    let (beta, theta, gain) = (self.beta[i] as f64, self.theta[i] as f64, self.gain[i] as f64);
                    let (u, s) = (f64::from(old[row + i]), f64::from(s_old[row + i]));
                    let q = (f64::from(self.s_bar[row + i]) + s_bar[i]) * self.slope(f64::from(new[row + i]) - theta);
                    let delta = u_bar[i] + q;
                    g[0][row + i] = gain * delta;
                    g[3][i] += delta * f64::from(current[row + i]);
                    let through_reset = f64::from(u8::from(!self.detach));
                    g[2][i] -= q;
                    u_before[i] = beta * delta;
                    match self.reset {
                        Reset::Subtract => {
                            g[1][i] += delta * u;
                            g[2][i] -= delta * s;
                            s_before[i] -= through_reset * theta * delta;
                        }
                        Reset::SubtractBeforeDecay => {
                            g[1][i] += delta * (u - theta * s);
                            g[2][i] -= delta * beta * s;
                            s_before[i] -= through_reset * theta * beta * delta;
                        }
                        Reset::Zero => {
                            g[1][i] += delta * u * (1.0 - s);
                            u_before[i] *= 1.0 - s;
                            s_before[i] -= through_reset * beta * u * delta;
                        }
                        Reset::Nothing => g[1][i] += delta * u,
                    }
                }
                for i in 0..width {
                    for j in 0..width {
                        s_before[j] += f64::from(heard(i, j)) * g[0][row + i];
                        if !g[6].is_empty() {
                            g[6][i * width + j] += g[0][row + i] * f64::from(s_old[row + j]);
                        }
                    }
                }
                (u_bar, s_bar) = (u_before, s_before);
                if self.starts[b * tokens + t] {
                    u_bar.fill(0.0);
                    s_bar.fill(0.0);
                }
            }
            g[4][b * width..][..width].copy_from_slice(&u_bar);
            g[5][b * width..][..width].copy_from_slice(&s_bar);
        }
        (spikes, last, g)
    }

    fn slope(&self, x: f64) -> f64 {
        let (surrogate, alpha) = self.surrogate;
        match surrogate {
            Surrogate::Atan => alpha / 2.0 / (1.0 + (std::f64::consts::FRAC_PI_2 * alpha * x).powi(2)),
            Surrogate::FastSigmoid => (1.0 + alpha * x.abs()).powi(-2),
            Surrogate::Sigmoid => {
                let p = 1.0 / (1.0 + (-alpha * x).exp());
                alpha * p * (1.0 - p)
            }
            Surrogate::Triangle => alpha * (1.0 - alpha * x.abs()).max(0.0),
            Surrogate::Rectangle => alpha * f64::from(u8::from(x.abs() < 0.5 / alpha)),
        }
    }
}

fn check(problem: &Problem) {
    let (spikes, last, gradients) = problem.definition();
    let firing = spikes.iter().filter(|&&s| s == 1.0).count();
    assert!(spikes.len() < 20 || (firing > 0 && firing < spikes.len()));
    for level in Level::available() {
        let found = problem.run(2, level);
        let name = level.name();
        assert_eq!(found.spikes, spikes, "{name} {:?}", problem.reset);
        assert_eq!(found.last, last, "{name} {:?}", problem.reset);
        for (which, (a, b)) in found.gradients.iter().zip(&gradients).enumerate() {
            let scale = b.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
            for (&a, &b) in a.iter().zip(b) {
                let error = (f64::from(a) - b).abs() / scale;
                assert!(error < 2e-4, "{name} {:?} {:?}: {which}: {a} {b}", problem.reset, problem.surrogate);
            }
        }
    }
}

#[test]
fn every_reset_and_surrogate_equals_the_definition() {
    let shape = Shape { batch: 2, tokens: 21, width: 19 };
    for (_, reset) in Reset::ALL {
        for (_, surrogate) in Surrogate::ALL {
            for detach in [true, false] {
                check(&Problem::new(shape, reset, surrogate, detach, false));
            }
        }
    }
}

#[test]
fn neurons_that_hear_each_other_equal_the_definition() {
    for (i, (_, reset)) in Reset::ALL.into_iter().enumerate() {
        let shape = Shape { batch: 3, tokens: 11, width: [16, 5, 33, 40][i] };
        check(&Problem::new(shape, reset, Surrogate::ALL[i].1, i % 2 == 0, true));
    }
}

/// More neurons than a job has, more tokens than are added in single precision, and shapes of one.
#[test]
fn other_shapes_equal_the_definition() {
    for (batch, tokens, width) in [(1, 1, 1), (2, 8, 3), (1, 9, 1030), (1, 150, 4)] {
        check(&Problem::new(Shape { batch, tokens, width }, Reset::Subtract, Surrogate::Atan, true, false));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for recurrent in [false, true] {
        let shape = Shape { batch: 5, tokens: 40, width: 200 };
        let problem = Problem::new(shape, Reset::Subtract, Surrogate::Atan, true, recurrent);
        let one = problem.run(1, Level::best());
        for threads in [2, 3, 8] {
            assert_eq!(problem.run(threads, Level::best()), one);
        }
    }
}

#[test]
fn bad_inputs_are_refused() {
    let shape = Shape { batch: 2, tokens: 3, width: 4 };
    let mut problem = Problem::new(shape, Reset::Subtract, Surrogate::Atan, true, false);
    problem.theta.pop();
    let inputs = Inputs {
        shape,
        reset: problem.reset,
        constants: Constants { beta: &problem.beta, theta: &problem.theta, gain: &problem.gain },
        x: &problem.x,
        u0: &problem.u0,
        s0: &problem.s0,
        starts: None,
        weights: None,
    };
    let (mut spikes, mut last) = (vec![0.0; 24], vec![0.0; 8]);
    let outputs = Outputs { spikes: &mut spikes, last: &mut last, kept: &mut [], currents: &mut [] };
    let error = forward_into(&inputs, outputs, 1, Level::best()).unwrap_err();
    assert!(error.contains("theta has 3 elements, but 4 are needed"), "{error}");
}
