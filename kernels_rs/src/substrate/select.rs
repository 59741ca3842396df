//! Which nodes stay active: the k highest levels, ties to the lower id, found without sorting all of them.
//!
//! A pivot, estimated from a sample, throws out most nodes in one pass; it never changes the result: where too few are
//! left, the pass is repeated without it.

use crate::isa::{Isa, Job};

/// Nodes in a block: blocks that nothing was added to are not looked at.
pub const BLOCK: usize = 64;
const BLOCK_BITS: u32 = BLOCK.trailing_zeros();
/// Levels that the pivot is estimated from.
const SAMPLE: usize = 1024;

#[inline(always)]
pub fn block_of(index: usize) -> usize {
    index >> BLOCK_BITS
}

/// Nodes with a level that might be among the highest, ascending ids.
#[derive(Default)]
pub struct Candidates {
    pub ids: Vec<u32>,
    pub levels: Vec<f32>,
    /// Nodes whose magnitude is below this were left out.
    pub pivot: f32,
}

/// A magnitude that about `share` of the levels reach, with some margin; 0 where that is not worth while.
pub fn pivot(levels: &[f32], share: f64, signed: bool) -> f32 {
    let stride = (levels.len() / SAMPLE).max(1);
    let drawn = levels.len() / stride;
    let expected = share * drawn as f64;
    let rank = (expected + 4.0 * expected.sqrt() + 4.0) as usize;
    if levels.len() < SAMPLE || rank >= drawn / 4 {
        return 0.0;
    }
    let magnitude = |x: f32| if signed { x.abs() } else { x };
    let mut sample: Vec<f32> = levels.iter().step_by(stride).map(|&x| magnitude(x)).filter(|&x| x > 0.0).collect();
    if rank >= sample.len() {
        return 0.0;
    }
    *sample.select_nth_unstable_by(rank, |a, b| b.total_cmp(a)).1
}

/// One pass over the touched blocks; `levels` is padded with zeros to whole blocks.
pub struct Scan<'a> {
    pub first: usize,
    pub levels: &'a [f32],
    pub dirty: &'a [u8],
    pub threshold: &'a [f32],
    pub signed: bool,
    pub found: &'a mut Candidates,
}

impl Job for Scan<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        // Floats that are no NaN are ordered as these integers are: all, or their magnitudes.
        let bits = if self.signed { i32::MAX } else { -1 };
        let size = |x: f32| x.to_bits() as i32 & bits;
        // Above zero, and not below the pivot.
        let least = size(self.found.pivot).max(1);
        let Candidates { ids, levels, .. } = self.found;
        ids.clear();
        levels.clear();
        let (blocks, _) = self.levels.as_chunks::<BLOCK>();
        let (mut some, mut values) = ([0u32; ROOM], [0f32; ROOM]);
        let mut kept = 0;
        for (block, (x, _)) in blocks.iter().zip(self.dirty).enumerate().filter(|(_, (_, &touched))| touched != 0) {
            let mut above = [0u8; BLOCK];
            for j in 0..BLOCK {
                above[j] = (size(x[j]) >= least) as u8;
            }
            let mut above = mask(&above);
            if above == 0 {
                continue;
            }
            let first = block * BLOCK;
            let threshold = &self.threshold[first..self.threshold.len().min(first + BLOCK)];
            while above != 0 {
                // Mostly there are few, and four without a branch are quicker than one by one.
                for _ in 0..4 {
                    let j = above.trailing_zeros() as usize & (BLOCK - 1);
                    let least = threshold.get(j).copied().unwrap_or(0.0).to_bits() as i32;
                    (some[kept & (ROOM - 1)], values[kept & (ROOM - 1)]) = ((self.first + first + j) as u32, x[j]);
                    kept += ((above != 0) & (size(x[j]) >= least)) as usize;
                    above &= above.wrapping_sub(1);
                }
            }
            if kept + 2 * BLOCK > ROOM {
                ids.extend_from_slice(&some[..kept]);
                levels.extend_from_slice(&values[..kept]);
                kept = 0;
            }
        }
        ids.extend_from_slice(&some[..kept]);
        levels.extend_from_slice(&values[..kept]);
    }
}

/// Candidates that are collected before they are handed on.
const ROOM: usize = 1024;

/// Bit j of the result is byte j, which is 0 or 1.
#[inline(always)]
fn mask(flags: &[u8; BLOCK]) -> u64 {
    let (eights, _) = flags.as_chunks::<8>();
    eights.iter().enumerate().fold(0, |mask, (i, &eight)| {
        // Byte j of the eight is moved to bit 56 + j; no two bits meet on the way.
        let byte = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        mask | byte << (8 * i)
    })
}

/// Higher is better: the magnitude, then the lower id.
fn key(id: u32, level: f32) -> u64 {
    (level.abs().to_bits() as u64) << 32 | !id as u64
}

/// The `k` best of all candidates into `ids` and `levels`, ascending ids. False if a pivot may have thrown out one of them.
pub fn best(parts: &[Candidates], k: usize, ids: &mut Vec<u32>, levels: &mut Vec<f32>) -> bool {
    ids.clear();
    levels.clear();
    let pivot = parts.iter().fold(0f32, |most, part| most.max(part.pivot));
    let total: usize = parts.iter().map(|part| part.ids.len()).sum();
    if total <= k {
        let below = |part: &Candidates| part.levels.iter().any(|level| level.abs() < pivot);
        if pivot > 0.0 && (total < k || parts.iter().any(below)) {
            return false;
        }
        for part in parts {
            ids.extend_from_slice(&part.ids);
            levels.extend_from_slice(&part.levels);
        }
        return true;
    }
    if k == 0 {
        return true;
    }
    let mut keys = Vec::with_capacity(total);
    for part in parts {
        keys.extend(part.ids.iter().zip(&part.levels).map(|(&id, &level)| key(id, level)));
    }
    let last = *keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1;
    if f32::from_bits((last >> 32) as u32) < pivot {
        return false;
    }
    // Written whether it stays or not: the next one then takes its place.
    ids.resize(k + 1, 0);
    levels.resize(k + 1, 0.0);
    let mut kept = 0;
    for part in parts {
        for (&id, &level) in part.ids.iter().zip(&part.levels) {
            let at = kept.min(k);
            (ids[at], levels[at]) = (id, level);
            kept += (key(id, level) >= last) as usize;
        }
    }
    ids.truncate(k);
    levels.truncate(k);
    true
}

/// Inhibition: of every group the `k` best stay; nodes of group `u32::MAX` stay always. Keeps the order.
pub fn inhibit(groups: &[u32], k: usize, ids: &mut Vec<u32>, levels: &mut Vec<f32>) {
    let mut order: Vec<usize> = (0..ids.len()).filter(|&i| groups[ids[i] as usize] != u32::MAX).collect();
    order.sort_unstable_by_key(|&i| (groups[ids[i] as usize], !key(ids[i], levels[i])));
    let mut keep = vec![true; ids.len()];
    let mut rank = 0;
    for (at, &i) in order.iter().enumerate() {
        let same = at > 0 && groups[ids[order[at - 1]] as usize] == groups[ids[i] as usize];
        rank = if same { rank + 1 } else { 0 };
        keep[i] = rank < k;
    }
    let mut flags = keep.iter();
    ids.retain(|_| *flags.next().unwrap_or(&true));
    let mut flags = keep.iter();
    levels.retain(|_| *flags.next().unwrap_or(&true));
}
