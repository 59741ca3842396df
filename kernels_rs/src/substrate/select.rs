//! Which nodes stay active: the k highest levels, ties to the lower id, found without sorting all of them.
//!
//! A pivot, estimated from a sample, throws out most nodes in one pass; it never changes the result: where too few are
//! left, the pass is repeated without it.

use crate::isa::{Isa, Job};

/// Nodes in a block: blocks that nothing was added to are not looked at.
pub const BLOCK: usize = 64;
const BLOCK_BITS: u32 = BLOCK.trailing_zeros();
/// Levels that the pivot is estimated from.
const SAMPLE: usize = 4096;

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
        if self.signed {
            self.with(f32::abs);
        } else {
            self.with(|x| x);
        }
    }
}

impl Scan<'_> {
    #[inline(always)]
    fn with(self, size: impl Fn(f32) -> f32) {
        const LANES: usize = 16;
        // Above zero, and not below the pivot.
        let least = self.found.pivot.max(f32::from_bits(1));
        let Candidates { ids, levels, .. } = self.found;
        ids.clear();
        levels.clear();
        let (blocks, _) = self.levels.as_chunks::<BLOCK>();
        for (block, (x, _)) in blocks.iter().zip(self.dirty).enumerate().filter(|(_, (_, &touched))| touched != 0) {
            let (parts, _) = x.as_chunks::<LANES>();
            for (part, x) in parts.iter().enumerate() {
                // Mostly all sixteen are below, which one comparison tells.
                let mut above = 0u32;
                for &x in x {
                    above |= (size(x) >= least) as u32;
                }
                if above == 0 {
                    continue;
                }
                let (mut lanes, mut count) = ([0u8; LANES], 0);
                for (j, &x) in x.iter().enumerate() {
                    lanes[count & (LANES - 1)] = j as u8;
                    count += (size(x) >= least) as usize;
                }
                for &j in &lanes[..count.min(LANES)] {
                    let at = block * BLOCK + part * LANES + j as usize;
                    if size(x[j as usize]) >= self.threshold[at] {
                        ids.push((self.first + at) as u32);
                        levels.push(x[j as usize]);
                    }
                }
            }
        }
    }
}

/// Higher is better: the magnitude, then the lower id.
fn key(id: u32, level: f32) -> u64 {
    (level.abs().to_bits() as u64) << 32 | !id as u64
}

/// The `k` best of all candidates into `ids` and `levels`, ascending ids. False if a pivot may have thrown out one of them.
pub fn best(parts: &[&Candidates], k: usize, ids: &mut Vec<u32>, levels: &mut Vec<f32>) -> bool {
    ids.clear();
    levels.clear();
    let pivot = parts.iter().fold(0f32, |most, part| most.max(part.pivot));
    let total: usize = parts.iter().map(|part| part.ids.len()).sum();
    let each = || parts.iter().flat_map(|part| part.ids.iter().copied().zip(part.levels.iter().copied()));
    if total <= k {
        if pivot > 0.0 && (total < k || each().any(|(_, level)| level.abs() < pivot)) {
            return false;
        }
        each().for_each(|(id, level)| {
            ids.push(id);
            levels.push(level);
        });
        return true;
    }
    if k == 0 {
        return true;
    }
    let mut keys: Vec<u64> = each().map(|(id, level)| key(id, level)).collect();
    let last = *keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1;
    if f32::from_bits((last >> 32) as u32) < pivot {
        return false;
    }
    each().filter(|&(id, level)| key(id, level) >= last).for_each(|(id, level)| {
        ids.push(id);
        levels.push(level);
    });
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
