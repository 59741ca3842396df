//! Random numbers by position: the i-th of a stream is a function of (seed, stream, i), whoever asks and in what order.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijection of 64-bit numbers that leaves no trace of their order (the finalizer of SplitMix64; G. Steele et al. 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

pub fn bits(seed: u64, stream: u64, index: u64) -> u64 {
    let key = mix(seed.wrapping_add(GOLDEN)) ^ mix(stream.wrapping_mul(GOLDEN).wrapping_add(1));
    mix(mix(key.wrapping_add(index.wrapping_mul(GOLDEN))).wrapping_add(key))
}

/// Uniform in [0, 1), 53 bits.
pub fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    (bits(seed, stream, index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_uniform_and_differ() {
        for (seed, stream) in [(0, 0), (0, 1), (1, 0)] {
            let n = 40_000;
            let x: Vec<f64> = (0..n).map(|i| uniform(seed, stream, i)).collect();
            let mean = x.iter().sum::<f64>() / n as f64;
            let neighbours = x.windows(2).map(|w| (w[0] - 0.5) * (w[1] - 0.5)).sum::<f64>() / n as f64;
            assert!((mean - 0.5).abs() < 0.006 && neighbours.abs() < 0.002, "{mean} {neighbours}");
            assert!(x.iter().all(|&x| (0.0..1.0).contains(&x)));
        }
        assert_ne!(bits(0, 1, 5), bits(1, 0, 5));
        assert_ne!(bits(0, 0, 5), bits(0, 1, 5));
    }
}
