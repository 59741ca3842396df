//! The backward pass of one job: chunk by chunk from the end, each replayed from its stored state.

use crate::fast_weights::problem::{Head, Rows, Token};
use crate::fast_weights::wide::{add, fma, load, mul, oja, passed, positive, scaled, store, sub, times};
use crate::fast_weights::{Lanes, CHUNK, DELTA, HEBB, LANES, OJA, ZERO};
use crate::gemm::fold_lanes;
use crate::isa::{Isa, Job};

pub struct Backward<'a> {
    pub head: Head<'a>,
    /// States before each chunk, (chunk, group, rows, lanes).
    pub boundaries: &'a [f32],
    /// Gradients of the state after the last token: rows (rank) of this job's columns; `slow_bar` is empty where S is
    /// off.
    pub fast_bar: Vec<&'a [f32]>,
    pub slow_bar: Vec<&'a [f32]>,
    /// Per token, the gradient of what it reads.
    pub read_bar: Rows<'a>,
    /// Gradients: per token, this job's part of those of q, k, eta and gate.
    pub q: Vec<&'a mut [f32]>,
    pub k: Vec<&'a mut [f32]>,
    pub v: Vec<&'a mut [f32]>,
    pub eta: Vec<&'a mut [f32]>,
    pub gate: Vec<&'a mut [f32]>,
    /// Gradients of the state before the first token.
    pub fast: Vec<&'a mut [f32]>,
    pub slow: Vec<&'a mut [f32]>,
    /// This job's part of the gradients of rho_f, rho_s, eta_s.
    pub rates: &'a mut [f64; 3],
}

/// Sums over columns, still in lanes.
struct Sums {
    /// (CHUNK, rank)
    q: Vec<Lanes>,
    k: Vec<Lanes>,
    /// Per token: of the gradient of eta, and of S times F.
    eta: [Lanes; CHUNK],
    into: [Lanes; CHUNK],
    keep: Lanes,
    slow: Lanes,
}

impl Job for Backward<'_> {
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

impl Backward<'_> {
    #[inline(always)]
    fn rule<I: Isa, const RULE: usize, const SLOW: bool>(mut self) {
        let head = self.head;
        let rows = head.rows();
        let mut bars = vec![ZERO; head.groups() * rows];
        head.pack(&self.fast_bar, 0, &mut bars);
        head.pack(&self.slow_bar, head.rank, &mut bars);
        let (mut states, mut errors) = (vec![ZERO; (CHUNK + 1) * rows], [ZERO; CHUNK]);
        let lanes = vec![ZERO; CHUNK * head.rank];
        let zero = [ZERO; CHUNK];
        let mut sums = Sums { q: lanes.clone(), k: lanes, eta: zero, into: zero, keep: ZERO, slow: ZERO };
        let (kept, _) = self.boundaries.as_chunks();
        for chunk in (0..head.chunks()).rev() {
            let (first, last) = (chunk * CHUNK, head.tokens.min((chunk + 1) * CHUNK));
            sums.clear();
            for group in 0..head.groups() {
                states[..rows].copy_from_slice(&kept[(chunk * head.groups() + group) * rows..][..rows]);
                for (i, t) in (first..last).enumerate() {
                    let (before, after) = states[i * rows..][..2 * rows].split_at_mut(rows);
                    if head.starts(t) {
                        before.fill(ZERO);
                    }
                    let (now, value) = (head.token(t), load(head.v.row(t), group));
                    (_, errors[i]) = head.step::<I, RULE, SLOW>(&now, value, before, after);
                }
                let bar = &mut bars[group * rows..][..rows];
                for (i, t) in (first..last).enumerate().rev() {
                    let (now, value) = (head.token(t), load(head.v.row(t), group));
                    let (read_bar, before) = (load(self.read_bar.row(t), group), &states[i * rows..][..rows]);
                    let v = sums.step::<I, RULE, SLOW>(&head, &now, i, value, errors[i], before, read_bar, bar);
                    store(&v, group, self.v[t]);
                    if head.starts(t) {
                        bar.fill(ZERO);
                    }
                }
            }
            self.finish_chunk(first, last, &sums);
        }
        head.unpack(&bars, 0, &mut self.fast);
        head.unpack(&bars, head.rank, &mut self.slow);
    }

    /// Sum the lanes of a chunk.
    #[inline(always)]
    fn finish_chunk(&mut self, first: usize, last: usize, sums: &Sums) {
        let rank = self.head.rank;
        for (i, t) in (first..last).enumerate() {
            let (q, k) = (&sums.q[i * rank..][..rank], &sums.k[i * rank..][..rank]);
            for (y, lanes) in self.q[t].iter_mut().zip(q) {
                *y = fold_lanes(lanes);
            }
            for (y, lanes) in self.k[t].iter_mut().zip(k) {
                *y = fold_lanes(lanes);
            }
            self.eta[t][0] = fold_lanes(&sums.eta[i]);
            if self.head.slow {
                let consolidated = fold_lanes(&sums.into[i]);
                self.rates[2] += f64::from(self.head.token(t).gate * consolidated);
                if let Some(gate) = self.gate.get_mut(t) {
                    gate[0] = self.head.eta_s * consolidated;
                }
            }
        }
        self.rates[0] += f64::from(fold_lanes(&sums.keep));
        self.rates[1] += f64::from(fold_lanes(&sums.slow));
    }
}

impl Sums {
    fn clear(&mut self) {
        self.q.fill(ZERO);
        self.k.fill(ZERO);
        self.eta.fill(ZERO);
        self.into.fill(ZERO);
        (self.keep, self.slow) = (ZERO, ZERO);
    }

    /// One token and group: `bar` goes from the gradients of the state after it to those of the state `before` it.
    /// Returns the gradient of v.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn step<I: Isa, const RULE: usize, const SLOW: bool>(
        &mut self,
        head: &Head<'_>,
        now: &Token<'_>,
        i: usize,
        value: Lanes,
        error: Lanes,
        before: &[Lanes],
        read_bar: Lanes,
        bar: &mut [Lanes],
    ) -> Lanes {
        let rank = head.rank;
        // q and k of unknown length, see `Head::step`.
        let (q, k, eta, into) = (now.q, now.k, now.eta, now.into);
        let (fast, slow) = before.split_at(rank);
        let (fast_bar, slow_bar) = bar.split_at_mut(rank);
        let slow_bar = &mut slow_bar[..slow.len()];
        let (q_sum, k_sum) = (&mut self.q[i * rank..][..rank], &mut self.k[i * rank..][..rank]);
        let raw = if RULE == OJA { oja(head.rho_f, eta, value) } else { ZERO };
        let keep = if RULE == OJA { positive(raw) } else { [head.rho_f; LANES] };
        let write = times(eta, error);
        let (mut write_bar, mut keep_bar) = (ZERO, ZERO);
        let (mut into_sum, mut slow_sum) = (self.into[i], self.slow);
        for r in 0..rank {
            let (mut f, old) = (fast_bar[r], fast[r]);
            if SLOW {
                let s = slow_bar[r];
                into_sum = fma::<I>(s, scaled::<I>(k[r], write, mul(keep, old)), into_sum);
                slow_sum = fma::<I>(s, slow[r], slow_sum);
                f = scaled::<I>(into, s, f);
                fast_bar[r] = f;
            }
            write_bar = scaled::<I>(k[r], f, write_bar);
            keep_bar = fma::<I>(f, old, keep_bar);
        }
        (self.into[i], self.slow) = (into_sum, slow_sum);
        let mut v_bar = times(eta, write_bar);
        let known_bar = times(-1.0, v_bar);
        let mut eta_sum = fma::<I>(write_bar, error, self.eta[i]);
        if RULE == OJA {
            keep_bar = passed(keep_bar, raw);
            let back = mul(keep_bar, value);
            eta_sum = sub(eta_sum, mul(back, value));
            v_bar = scaled::<I>(-2.0 * eta, back, v_bar);
        }
        self.eta[i] = eta_sum;
        self.keep = add(self.keep, keep_bar);
        for r in 0..rank {
            let (f, old) = (fast_bar[r], fast[r]);
            let seen = if SLOW { add(old, slow[r]) } else { old };
            q_sum[r] = fma::<I>(read_bar, seen, q_sum[r]);
            let mut key = fma::<I>(f, write, k_sum[r]);
            let mut back = scaled::<I>(q[r], read_bar, mul(keep, f));
            if RULE == DELTA {
                key = fma::<I>(old, known_bar, key);
                back = scaled::<I>(k[r], known_bar, back);
            }
            k_sum[r] = key;
            fast_bar[r] = back;
            if SLOW {
                slow_bar[r] = scaled::<I>(q[r], read_bar, times(head.rho_s, slow_bar[r]));
            }
        }
        v_bar
    }
}
