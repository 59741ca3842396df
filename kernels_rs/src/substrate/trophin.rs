//! Metaplasticity of a readout: answers that were right of late learn faster.

use crate::substrate::surprise::Readout;
use crate::substrate::{bounded, same_length};

/// Rates of learning stay numbers.
const MOST_TROPHIN: f32 = 1e6;

/// Neurotrophin of the answers: a trace B of how often each was right of late, which raises the rate at which it learns,
/// `B_t = rho B_{t-1} + (1 - rho) release [answer = target_t]`, `eta_t = eta (1 + gain B_{t-1})`, pair by pair.
pub struct Trophin<'a> {
    /// B after the last pair, one per answer.
    pub level: &'a mut [f32],
    pub rho: f32,
    pub release: f32,
    pub gain: f32,
}

impl Trophin<'_> {
    pub(super) fn check(&self, readout: Readout) -> Result<(), String> {
        same_length("trophin", self.level.len(), "the answers", readout.count)?;
        bounded("trophin", self.level, MOST_TROPHIN)?;
        bounded("trophin gain", &[self.gain], MOST_TROPHIN)?;
        bounded("trophin release", &[self.release], MOST_TROPHIN)?;
        if !(0.0..=1.0).contains(&self.rho) {
            return Err(format!("trophin rho = {} must be from 0 to 1", self.rho));
        }
        Ok(())
    }

    /// The answers that were right and what is left of their release, the last one first, as far back as it counts.
    fn releases<'b>(&'b self, powers: &'b [f32], targets: &'b [u32]) -> impl Iterator<Item = (u32, f32)> + 'b {
        let left = powers.iter().map(|power| (1.0 - self.rho) * self.release * power);
        targets.iter().rev().copied().zip(left.take_while(|left| *left >= f32::MIN_POSITIVE))
    }

    /// Errors of a pair, times what the pairs before it in the batch left of the rate.
    pub(super) fn scale(
        &self,
        powers: &[f32],
        before: &[u32],
        readout: Readout,
        errors: &mut [f32],
        rates: &mut [f32],
    ) {
        let faded = powers[before.len()];
        for (rate, level) in rates.iter_mut().zip(&self.level[..]) {
            *rate = 1.0 + self.gain * (faded * level);
        }
        for (target, left) in self.releases(powers, before) {
            rates[(target - readout.first) as usize] += self.gain * left;
        }
        errors.iter_mut().zip(&rates[..]).for_each(|(e, rate)| *e *= rate);
    }

    /// Behind the pairs of a batch.
    pub(super) fn advance(&mut self, powers: &[f32], targets: &[u32], readout: Readout) {
        let mut after: Vec<f32> = self.level.iter().map(|level| level * powers[targets.len()]).collect();
        for (target, left) in self.releases(powers, targets) {
            after[(target - readout.first) as usize] += left;
        }
        self.level.copy_from_slice(&after);
    }
}
