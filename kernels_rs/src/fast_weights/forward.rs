//! The forward pass of one job.

use crate::fast_weights::problem::Head;
use crate::fast_weights::wide::{load, store};
use crate::fast_weights::{CHUNK, DELTA, HEBB, OJA, ZERO};
use crate::isa::{Isa, Job};

pub struct Forward<'a> {
    pub head: Head<'a>,
    /// State before the first token: rows (rank) of this job's columns; `slow` is empty where S is off.
    pub fast_before: Vec<&'a [f32]>,
    pub slow_before: Vec<&'a [f32]>,
    /// Per token, what it reads.
    pub read: Vec<&'a mut [f32]>,
    pub fast: Vec<&'a mut [f32]>,
    pub slow: Vec<&'a mut [f32]>,
    /// States before each chunk, (chunk, group, rows, lanes); empty: not wanted.
    pub boundaries: &'a mut [f32],
}

impl Job for Forward<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        match (self.head.rule, self.head.slow) {
            (HEBB, false) => self.rule::<I, HEBB, false>(),
            (HEBB, true) => self.rule::<I, HEBB, true>(),
            (OJA, false) => self.rule::<I, OJA, false>(),
            (OJA, true) => self.rule::<I, OJA, true>(),
            (_, false) => self.rule::<I, DELTA, false>(),
            (_, true) => self.rule::<I, DELTA, true>(),
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn rule<I: Isa, const RULE: usize, const SLOW: bool>(mut self) {
        let head = self.head;
        let rows = head.rows();
        let mut states = vec![ZERO; head.groups() * rows];
        head.pack(&self.fast_before, 0, &mut states);
        head.pack(&self.slow_before, head.rank, &mut states);
        let (mut before, mut after) = (vec![ZERO; rows], vec![ZERO; rows]);
        let (kept, _) = self.boundaries.as_chunks_mut();
        let mut kept = kept.chunks_exact_mut(states.len());
        for (chunk, reads) in self.read.chunks_mut(CHUNK).enumerate() {
            if let Some(kept) = kept.next() {
                kept.copy_from_slice(&states);
            }
            for (group, state) in states.chunks_exact_mut(rows).enumerate() {
                before.copy_from_slice(state);
                for (t, read) in (chunk * CHUNK..).zip(reads.iter_mut()) {
                    if head.starts(t) {
                        before.fill(ZERO);
                    }
                    let (now, value) = (head.token(t), load(head.v.row(t), group));
                    let (lanes, _) = head.step::<I, RULE, SLOW>(&now, value, &before, &mut after);
                    store(&lanes, group, read);
                    std::mem::swap(&mut before, &mut after);
                }
                state.copy_from_slice(&before);
            }
        }
        head.unpack(&states, 0, &mut self.fast);
        head.unpack(&states, head.rank, &mut self.slow);
    }
}
