//! What one job sees: some columns of one head, and the recurrence of one token on one group of columns.

use crate::fast_weights::wide::{add, load, mul, oja, positive, scaled, store, sub, times};
use crate::fast_weights::{Lanes, CHUNK, DELTA, LANES, OJA, ZERO};
use crate::isa::Isa;

/// One row per token, `stride` numbers apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub width: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub fn row(&self, t: usize) -> &'a [f32] {
        &self.data[t * self.stride..][..self.width]
    }
}

/// Inputs of one job: q, k (T, rank), v (T, columns), eta and gate (T, 1), starts (T) or empty.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub tokens: usize,
    pub rank: usize,
    pub rule: usize,
    pub slow: bool,
    pub q: Rows<'a>,
    pub k: Rows<'a>,
    pub v: Rows<'a>,
    pub eta: Rows<'a>,
    pub gate: Option<Rows<'a>>,
    pub rho_f: f32,
    pub rho_s: f32,
    pub eta_s: f32,
    pub starts: &'a [u8],
}

/// What all columns of a token share.
#[derive(Clone, Copy)]
pub struct Token<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub eta: f32,
    pub gate: f32,
    /// eta_s gate: what share of F is consolidated.
    pub into: f32,
}

impl<'a> Head<'a> {
    pub fn groups(&self) -> usize {
        self.v.width.div_ceil(LANES)
    }

    pub fn chunks(&self) -> usize {
        self.tokens.div_ceil(CHUNK)
    }

    /// Rows of the state of one group: F and, if it is on, S.
    pub fn rows(&self) -> usize {
        self.rank * if self.slow { 2 } else { 1 }
    }

    #[inline(always)]
    pub fn starts(&self, t: usize) -> bool {
        self.starts.get(t).is_some_and(|&x| x != 0)
    }

    #[inline(always)]
    pub fn token(&self, t: usize) -> Token<'a> {
        let gate = match &self.gate {
            Some(gate) => gate.row(t)[0],
            None => 1.0,
        };
        let (q, k) = (self.q.row(t), self.k.row(t));
        Token { q, k, eta: self.eta.row(t)[0], gate, into: self.eta_s * gate }
    }

    /// Read, then write, one group of columns: `after` from `before`. Returns what is read, and the error that is
    /// written: v, less the prediction of rule delta.
    #[inline(always)]
    pub fn step<I: Isa, const RULE: usize, const SLOW: bool>(
        &self,
        now: &Token<'_>,
        value: Lanes,
        before: &[Lanes],
        after: &mut [Lanes],
    ) -> (Lanes, Lanes) {
        let rank = self.rank;
        // Of a length that the compiler does not know: a loop over r without checks would be turned inside out, with r
        // along the lanes and every load a gather.
        let (q, k) = (now.q, now.k);
        let (fast, slow) = before.split_at(rank);
        let (fast_after, slow_after) = after.split_at_mut(rank);
        let (fast_after, slow_after) = (&mut fast_after[..rank], &mut slow_after[..slow.len()]);
        let (mut read, mut known) = (ZERO, ZERO);
        for r in 0..rank {
            let f = fast[r];
            let seen = if SLOW { add(f, slow[r]) } else { f };
            read = scaled::<I>(q[r], seen, read);
            if RULE == DELTA {
                known = scaled::<I>(k[r], f, known);
            }
        }
        let error = if RULE == DELTA { sub(value, known) } else { value };
        let keep = if RULE == OJA { positive(oja(self.rho_f, now.eta, value)) } else { [self.rho_f; LANES] };
        let write = times(now.eta, error);
        for r in 0..rank {
            let f = scaled::<I>(k[r], write, mul(keep, fast[r]));
            fast_after[r] = f;
            if SLOW {
                slow_after[r] = scaled::<I>(now.into, f, times(self.rho_s, slow[r]));
            }
        }
        (read, error)
    }

    /// Rows of this job's columns to groups of lanes.
    pub fn pack(&self, rows: &[&[f32]], first: usize, groups: &mut [Lanes]) {
        for (group, state) in groups.chunks_exact_mut(self.rows()).enumerate() {
            for (row, lanes) in rows.iter().zip(&mut state[first..]) {
                *lanes = load(row, group);
            }
        }
    }

    pub fn unpack(&self, groups: &[Lanes], first: usize, rows: &mut [&mut [f32]]) {
        for (group, state) in groups.chunks_exact(self.rows()).enumerate() {
            for (row, lanes) in rows.iter_mut().zip(&state[first..]) {
                store(lanes, group, row);
            }
        }
    }
}
