//! The kernels against the definition in double precision, its derivatives taken by hand.

use crate::isa::Level;
use crate::oscillate::run::{backward_into, forward_into, Gradients, Inputs};

const ROWS: usize = 150;

/// Numbers over the range that a unit meets, and far beyond it.
fn numbers(count: usize, step: f64, scale: f64) -> Vec<f32> {
    (0..count).map(|i| (((i as f64 * step).sin() * 43_758.547).fract() * scale) as f32).collect()
}

/// y, and the gradients of x, omega, phi and baseline.
type Results = [Vec<f32>; 5];

struct Problem {
    width: usize,
    x: Vec<f32>,
    omega: Vec<f32>,
    phi: Vec<f32>,
    baseline: Option<Vec<f32>>,
    y_bar: Vec<f32>,
}

impl Problem {
    fn new(width: usize, scale: f64, baseline: bool) -> Problem {
        let count = ROWS * width;
        Problem {
            width,
            x: numbers(count, 1.37, scale),
            omega: numbers(width, 2.11, 4.0),
            phi: numbers(width, 3.73, 3.0),
            baseline: baseline.then(|| numbers(width, 0.91, 1.0)),
            y_bar: numbers(count, 5.17, 1.0),
        }
    }

    fn run(&self, threads: usize, level: Level) -> Results {
        let Problem { width, x, omega, phi, .. } = self;
        let inputs = Inputs { width: *width, x, omega, phi, baseline: self.baseline.as_deref() };
        let mut all = [x.len(), x.len(), *width, *width, *width].map(|size| vec![f32::NAN; size]);
        let [y, x_bar, omega_bar, phi_bar, baseline_bar] = &mut all;
        forward_into(&inputs, y, threads, level).unwrap();
        let gradients = Gradients { x: x_bar, omega: omega_bar, phi: phi_bar, baseline: baseline_bar };
        backward_into(&inputs, &self.y_bar, gradients, threads, level).unwrap();
        all
    }

    fn definition(&self) -> [Vec<f64>; 5] {
        let n = self.width;
        let mut all = [self.x.len(), self.x.len(), n, n, n].map(|size| vec![0f64; size]);
        for (i, (&x, &y_bar)) in self.x.iter().zip(&self.y_bar).enumerate() {
            let (x, y_bar, j) = (f64::from(x), f64::from(y_bar), i % n);
            let (omega, phi) = (f64::from(self.omega[j]), f64::from(self.phi[j]));
            let baseline = self.baseline.as_ref().map_or(0.0, |b| f64::from(b[j]));
            let (sine, cosine) = (omega * x + phi).sin_cos();
            let envelope = x.tanh();
            all[0][i] = sine * envelope + baseline;
            all[1][i] = y_bar * (omega * cosine * envelope + sine * (1.0 - envelope * envelope));
            all[2][j] += y_bar * cosine * envelope * x;
            all[3][j] += y_bar * cosine * envelope;
            all[4][j] += y_bar;
        }
        all
    }
}

#[test]
fn both_passes_equal_the_definition() {
    for (width, scale, baseline) in [(1, 3.0, false), (7, 3.0, true), (128, 0.01, true), (300, 40.0, false)] {
        let problem = Problem::new(width, scale, baseline);
        let wanted = problem.definition();
        for level in Level::available() {
            for (which, (found, wanted)) in problem.run(2, level).iter().zip(&wanted).enumerate() {
                let size = wanted.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
                for (&a, &b) in found.iter().zip(wanted) {
                    let name = level.name();
                    assert!((f64::from(a) - b).abs() < 3e-6 * size, "{name}, width {width}, {which}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let problem = Problem::new(200, 3.0, true);
    let one = problem.run(1, Level::best());
    for threads in [2, 3, 8] {
        assert_eq!(problem.run(threads, Level::best()), one);
    }
}

#[test]
fn bad_inputs_are_refused() {
    let (x, three, two) = (vec![0.5; 6], vec![1.0; 3], vec![1.0; 2]);
    let inputs = Inputs { width: 3, x: &x, omega: &three, phi: &two, baseline: None };
    let error = forward_into(&inputs, &mut [0.0; 6], 1, Level::best()).unwrap_err();
    assert!(error.contains("phi has 2 elements, but 3 are needed"), "{error}");
    let inputs = Inputs { width: 4, x: &x, omega: &three, phi: &three, baseline: None };
    assert!(forward_into(&inputs, &mut [0.0; 6], 1, Level::best()).unwrap_err().contains("width 4"));
}
