//! The validated description of one call.

use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;

use crate::fatigue::mask::Visibility;
use crate::fatigue::synapse::{EXACT, OFF};
use crate::fatigue::QUERIES;
use crate::math::{fit_gate, Gate, FEW_GATE_TERMS, GATE_TERMS, LOG1P};

/// Logits beyond this are refused: they are exponentiated without subtracting a maximum.
pub const LOGIT_LIMIT: f32 = 40.0;

/// Sizes: query heads share key heads in groups of `heads / kv_heads`; the queries are the last `tq` of `tk` positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub tq: usize,
    pub tk: usize,
    pub dim: usize,
}

impl Shape {
    pub fn check(&self) -> Result<(), String> {
        let Shape { batch, heads, kv_heads, tq, tk, dim } = *self;
        if batch == 0 || heads == 0 || kv_heads == 0 || tq == 0 || dim == 0 {
            return Err(format!(
                "q, k, v must not be empty; got batch {batch}, heads {heads}/{kv_heads}, T {tq}, D {dim}"
            ));
        }
        if heads % kv_heads != 0 {
            return Err(format!("{heads} query heads cannot share {kv_heads} key heads: it must divide them"));
        }
        if tq > tk {
            return Err(format!("{tq} queries need at least as many keys; there are {tk}"));
        }
        Ok(())
    }
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
    /// Blocks of queries.
    pub fn blocks(&self) -> usize {
        self.tq.div_ceil(QUERIES)
    }
    /// First query and number of queries of a block.
    pub fn block(&self, index: usize) -> (usize, usize) {
        let start = index * QUERIES;
        (start, QUERIES.min(self.tq - start))
    }
    /// Where the state before a block of queries is stored: calcium, then pool, of the keys that the block reaches.
    pub fn boundary(&self, block: usize) -> (Range<usize>, Range<usize>) {
        let (start, rows) = self.block(block);
        let old = self.tk - self.tq;
        // The blocks before are whole, and reach QUERIES, 2 QUERIES, ... keys beyond the old ones.
        let first = 2 * (block * old + QUERIES * (block * (block + 1) / 2));
        let reach = old + start + rows;
        (first..first + reach, first + reach..first + 2 * reach)
    }
    /// Numbers stored at all boundaries of a head.
    pub fn boundaries(&self) -> usize {
        self.boundary(self.blocks() - 1).1.end
    }
    /// `dim` rounded up to whole lanes.
    pub fn padded_dim(&self) -> usize {
        self.dim.div_ceil(16) * 16
    }
    /// From q.k to a logit.
    pub fn scale(&self) -> f32 {
        (1.0 / (self.dim as f64).sqrt()) as f32
    }
    /// From q.k to a logit to the base 2, which is what the tiles hold: 2^x needs no product to reduce its argument.
    pub fn scale_to_base_2(&self) -> f32 {
        (LOG2_E / (self.dim as f64).sqrt()) as f32
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Min,
    Mul,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    Kinetic,
    Age,
    /// No synapses: plain attention by the same loops, whose state is meaningless.
    Off,
}

/// Names of the kinetic constants in the order of their rows.
pub const KINETICS: [&str; 10] = ["rho_c", "alpha_ca", "k_d", "s", "b", "kappa", "rho_r", "r_max", "lam", "eps"];

/// The constants of one head, as the loops use them.
#[derive(Clone, Copy, Debug)]
pub struct Kinetics {
    pub rho_c: f32,
    pub alpha: f32,
    /// alpha ln 2, and alpha times the polynomial of log1p(x) / x
    pub alpha_ln_2: f32,
    pub log1p: [f32; LOG1P.len()],
    pub k_d: f32,
    pub s: f32,
    pub b: f32,
    pub kappa: f32,
    pub rho_r: f32,
    pub r_max: f32,
    pub lam: f32,
    pub eps: f32,
    pub recovery: f32,
    /// P = constant + content * gate * coupling: (0, 1) for the synapse, (its constant, 0) for the control by age.
    pub constant: f32,
    pub content: f32,
    /// `content` times the gate as a polynomial.
    pub gate: [f32; GATE_TERMS],
    /// How many of its coefficients do, or [`EXACT`] where neither its polynomial nor the exponent 1 holds: then there
    /// is a logarithm and a second and third exponential; or [`OFF`].
    pub terms: usize,
}

impl Kinetics {
    /// Row values in the order of [`KINETICS`].
    pub fn new(values: [f32; 10], release: Release) -> Result<Kinetics, String> {
        if release == Release::Off {
            let anything = [0.5, 1.0, 1.0, 1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0];
            return Ok(Kinetics { terms: OFF, ..Kinetics::new(anything, Release::Age)? });
        }
        let [rho_c, alpha, k_d, s, b, kappa, rho_r, r_max, lam, eps] = values;
        for (name, value) in KINETICS.iter().zip(values) {
            if !value.is_finite() {
                return Err(format!("kinetics.{name} = {value} must be finite"));
            }
        }
        for (name, value) in [("rho_c", rho_c), ("rho_r", rho_r)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(format!("kinetics.{name} = {value} must be in [0, 1]"));
            }
        }
        for (name, value) in [("k_d", k_d), ("kappa", kappa), ("r_max", r_max)] {
            if value <= 0.0 {
                return Err(format!("kinetics.{name} = {value} must be positive"));
            }
        }
        for (name, value) in [("alpha_ca", alpha), ("eps", eps)] {
            if value < 0.0 {
                return Err(format!("kinetics.{name} = {value} must not be negative"));
            }
        }
        let age = release == Release::Age;
        let nothing = Gate { coefficients: [0.0; GATE_TERMS], terms: FEW_GATE_TERMS };
        let fitted = if age { Some(nothing) } else { fit_gate(f64::from(s), f64::from(b)) };
        let gate = fitted.filter(|_| lam == 1.0);
        let sigmoid = 1.0 / (1.0 + (-f64::from(b)).exp());
        let alpha = if age { 0.0 } else { alpha };
        Ok(Kinetics {
            rho_c: if age { 1.0 } else { rho_c },
            alpha,
            alpha_ln_2: (f64::from(alpha) * LN_2) as f32,
            log1p: LOG1P.map(|c| alpha * c),
            k_d,
            s,
            b,
            kappa,
            rho_r,
            r_max,
            lam,
            eps,
            recovery: ((1.0 - f64::from(rho_r)) * f64::from(r_max)) as f32,
            constant: if age { (sigmoid / (1.0 + f64::from(kappa))) as f32 } else { 0.0 },
            content: if age { 0.0 } else { 1.0 },
            gate: gate.map_or([0.0; GATE_TERMS], |g| g.coefficients),
            terms: gate.map_or(EXACT, |g| g.terms),
        })
    }
}

/// Inputs of a call; every slice is row-major in the shape given and was checked to have its length.
pub struct Inputs<'a> {
    pub shape: Shape,
    pub rule: Rule,
    pub release: Release,
    /// (batch, heads, tq, dim)
    pub q: &'a [f32],
    /// (batch, kv_heads, tk, dim)
    pub k: &'a [f32],
    pub v: &'a [f32],
    /// (heads,)
    pub kinetics: Vec<Kinetics>,
    /// (batch, heads, of_state), the state before the first query
    pub calcium: &'a [f32],
    pub pool: &'a [f32],
    pub of_state: usize,
    /// Which of them belong to the first keys; keys without a state are fresh.
    pub state: Range<usize>,
    /// (batch, tq) and (batch, tk)
    pub segments: Option<(&'a [i64], &'a [i64])>,
    pub window: Option<usize>,
}

impl Inputs<'_> {
    /// Numbers to store per head for the backward pass.
    pub fn boundaries(&self) -> usize {
        if self.release == Release::Off {
            0
        } else {
            self.shape.boundaries()
        }
    }

    pub fn check(&self) -> Result<(), String> {
        self.shape.check()?;
        let Shape { batch, heads, kv_heads, tq, tk, dim } = self.shape;
        let mut lengths = vec![
            ("q", self.q.len(), batch * heads * tq * dim),
            ("k", self.k.len(), batch * kv_heads * tk * dim),
            ("v", self.v.len(), batch * kv_heads * tk * dim),
            ("kinetics", self.kinetics.len(), heads),
            ("calcium", self.calcium.len(), batch * heads * self.of_state),
            ("pool", self.pool.len(), batch * heads * self.of_state),
        ];
        if let Some((of_queries, of_keys)) = self.segments {
            lengths.push(("segments_q", of_queries.len(), batch * tq));
            lengths.push(("segments_k", of_keys.len(), batch * tk));
        }
        for (name, found, expected) in lengths {
            if found != expected {
                return Err(format!("{name} has {found} elements, but {expected} are needed"));
            }
        }
        if self.state.end > self.of_state || self.state.len() > tk {
            return Err(format!("a state of {:?} out of {} does not fit {tk} keys", self.state, self.of_state));
        }
        if self.window == Some(0) {
            return Err("window = 0 must be at least 1".into());
        }
        Ok(())
    }

    /// What one (batch, query head) sees; `index` = batch index * heads + head.
    pub fn head(&self, index: usize) -> HeadInputs<'_> {
        let Shape { heads, kv_heads, tq, tk, dim, .. } = self.shape;
        let (row, head) = (index / heads, index % heads);
        let kv = row * kv_heads + head / self.shape.group();
        HeadInputs {
            shape: self.shape,
            rule: self.rule,
            q: &self.q[index * tq * dim..][..tq * dim],
            k: &self.k[kv * tk * dim..][..tk * dim],
            v: &self.v[kv * tk * dim..][..tk * dim],
            kinetics: self.kinetics[head],
            calcium: &self.calcium[index * self.of_state..][self.state.clone()],
            pool: &self.pool[index * self.of_state..][self.state.clone()],
            visibility: Visibility {
                offset: tk - tq,
                keys: tk,
                window: self.window,
                segments: self.segments.map(|(q, k)| (&q[row * tq..][..tq], &k[row * tk..][..tk])),
            },
        }
    }
}

/// The part of [`Inputs`] that belongs to one query head of one batch row.
pub struct HeadInputs<'a> {
    pub shape: Shape,
    pub rule: Rule,
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub kinetics: Kinetics,
    /// State of the first keys; the rest are fresh.
    pub calcium: &'a [f32],
    pub pool: &'a [f32],
    pub visibility: Visibility<'a>,
}
