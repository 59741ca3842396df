//! The most arithmetic that the processor does: chains of fused multiply-adds that stay in registers and do not wait
//! for each other. What a kernel reaches is quoted as a share of this.

use std::hint::black_box;
use std::time::Instant;

use crate::isa::{Isa, Job, Level};
use crate::threads::for_each;

/// Long enough for the clock, short enough to find a moment without other load.
// Without optimisation it takes long, and measures nothing but itself.
const STEPS: usize = if cfg!(debug_assertions) { 10_000 } else { 200_000 };
const REPEATS: usize = 12;

/// `CHAINS * LANES` numbers, `steps` times x = x * a + b; returns their sum, and how many operations that was.
#[inline(always)]
pub fn spin<I: Isa, const CHAINS: usize, const LANES: usize>(steps: usize) -> (f32, f64) {
    let (mut a, mut b, mut x) = ([0f32; LANES], [0f32; LANES], [[0f32; LANES]; CHAINS]);
    for l in 0..LANES {
        a[l] = black_box(0.999);
        b[l] = black_box(1e-3);
        for (c, chain) in x.iter_mut().enumerate() {
            chain[l] = (c * LANES + l) as f32;
        }
    }
    for _ in 0..steps {
        for chain in x.iter_mut() {
            for l in 0..LANES {
                chain[l] = I::fma(chain[l], a[l], b[l]);
            }
        }
    }
    let mut sum = 0.0;
    for chain in &x {
        for value in chain {
            sum += value;
        }
    }
    (sum, 2.0 * (CHAINS * LANES * steps) as f64)
}

struct Spin<'a>(&'a mut f64);

impl Job for Spin<'_> {
    fn run<I: Isa>(self) {
        let (sum, operations) = I::spin(STEPS);
        black_box(sum);
        *self.0 = operations;
    }
}

/// FLOP/s in float32 of `threads` threads together (0: one per core), a multiply-add counted as two: the best of
/// several short runs.
pub fn fma_peak(threads: usize, level: Level) -> Result<f64, String> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let mut best = 0f64;
    for _ in 0..REPEATS {
        let mut operations = vec![0f64; threads];
        let begin = Instant::now();
        for_each(threads, operations.iter_mut().collect(), |count| level.run(Spin(count)))?;
        let seconds = begin.elapsed().as_secs_f64();
        if seconds > 0.0 {
            best = best.max(operations.iter().sum::<f64>() / seconds);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chains_converge_to_their_fixed_point() {
        // x = 0.999 x + 0.001 has the fixed point 1
        struct Check;
        impl Job for Check {
            fn run<I: Isa>(self) {
                let (sum, operations) = I::spin(50_000);
                let values = operations / 100_000.0;
                assert!((f64::from(sum) / values - 1.0).abs() < 1e-3, "{sum} {values}");
            }
        }
        for level in Level::available() {
            level.run(Check);
        }
    }

    /// Which of them is faster is a measurement, not a test: other work on the machine may decide it.
    #[test]
    fn every_instruction_set_is_measured_on_every_thread() {
        for level in Level::available() {
            for threads in [1, 2] {
                let peak = fma_peak(threads, level).unwrap();
                assert!(peak.is_finite() && peak > 1e6, "{peak}");
            }
        }
    }
}
