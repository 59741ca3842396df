//! The synapses of one tile: what a row of queries does to the keys, forwards and backwards. Every loop runs over
//! keys without branches and vectorises; pairs that are not seen have E = 0, after which the equations need no case.

use crate::fatigue::problem::Kinetics;
use crate::fatigue::{Row, Tile, KEYS, QUERIES};
use crate::isa::Isa;
use crate::math::{self, exp_pair, gate, max, min, softplus};

/// Release at one pair, up to the pool.
struct Spike {
    e: f32,
    softplus: f32,
    calcium: f32,
    hill: f32,
    gate: f32,
    coupling: f32,
    p: f32,
}

#[inline(always)]
fn spike<I: Isa, const FAST: bool, const MASKED: bool>(logit: f32, seen: f32, calcium: f32, kin: &Kinetics) -> Spike {
    let (up, down) = exp_pair::<I>(logit);
    let mut softplus = softplus::<I>(logit, min(up, down));
    let mut e = up;
    let mut constant = kin.constant;
    if MASKED {
        e *= seen;
        softplus *= seen;
        constant *= seen;
    }
    let calcium = I::fma(kin.rho_c, calcium, kin.alpha * softplus);
    // One reciprocal serves both saturations.
    let bound = e + kin.kappa;
    let sensed = calcium + kin.k_d;
    let reciprocal = 1.0 / (bound * sensed);
    let hill = bound * reciprocal;
    let coupling = e * (sensed * reciprocal);
    let gate = if FAST {
        gate::<I>(&kin.gate, calcium * hill)
    } else {
        math::sigmoid::<I>(I::fma(kin.s, calcium * hill, kin.b))
    };
    let p = I::fma(kin.content, gate * coupling, constant);
    Spike { e, softplus, calcium, hill, gate, coupling, p }
}

/// Released vesicles and the pool after it.
#[inline(always)]
fn drain<I: Isa, const MIN: bool>(p: f32, pool: f32, kin: &Kinetics) -> (f32, f32) {
    if MIN {
        (min(p, pool), I::fma(kin.rho_r, max(pool - p, 0.0), kin.recovery))
    } else {
        let released = p * pool;
        (released, I::fma(kin.rho_r, pool - released, kin.recovery))
    }
}

/// `(eps + W)^lam`
#[inline(always)]
fn strength<I: Isa, const FAST: bool>(reach: f32, kin: &Kinetics) -> f32 {
    if FAST {
        reach
    } else {
        exp_pair::<I>(kin.lam * math::log::<I>(reach)).0
    }
}

/// One row of queries: logits become unnormalised weights, the state moves on.
#[inline(always)]
pub fn advance<I: Isa, const MIN: bool, const FAST: bool, const MASKED: bool>(
    logits: &mut Row,
    seen: &Row,
    calcium: &mut Row,
    pool: &mut Row,
    kin: &Kinetics,
) {
    for j in 0..KEYS {
        let x = spike::<I, FAST, MASKED>(logits[j], seen[j], calcium[j], kin);
        calcium[j] = x.calcium;
        let (released, after) = drain::<I, MIN>(x.p, pool[j], kin);
        pool[j] = after;
        logits[j] = x.e * strength::<I, FAST>(kin.eps + released, kin);
    }
}

/// What the backward pass reads of a tile.
pub struct Record {
    pub e: Tile,
    pub softplus: Tile,
    /// Row t: calcium after query t.
    pub calcium: Tile,
    pub hill: Tile,
    pub gate: Tile,
    pub coupling: Tile,
    pub p: Tile,
    /// Row t: pool that query t finds.
    pub pool: Tile,
}

impl Record {
    pub fn zero() -> Box<Record> {
        let zero = || [[0f32; KEYS]; QUERIES];
        Box::new(Record {
            e: zero(),
            softplus: zero(),
            calcium: zero(),
            hill: zero(),
            gate: zero(),
            coupling: zero(),
            p: zero(),
            pool: zero(),
        })
    }
}

/// As [`advance`], but keeps everything; the arithmetic is the same to the last bit.
#[inline(always)]
pub fn replay<I: Isa, const MIN: bool, const FAST: bool, const MASKED: bool>(
    t: usize,
    logits: &Row,
    seen: &Row,
    calcium: &mut Row,
    pool: &mut Row,
    kin: &Kinetics,
    record: &mut Record,
) {
    for j in 0..KEYS {
        let x = spike::<I, FAST, MASKED>(logits[j], seen[j], calcium[j], kin);
        calcium[j] = x.calcium;
        record.e[t][j] = x.e;
        record.softplus[t][j] = x.softplus;
        record.calcium[t][j] = x.calcium;
        record.hill[t][j] = x.hill;
        record.gate[t][j] = x.gate;
        record.coupling[t][j] = x.coupling;
        record.p[t][j] = x.p;
        record.pool[t][j] = pool[j];
        pool[j] = drain::<I, MIN>(x.p, pool[j], kin).1;
    }
}

/// Sums towards the gradients of the kinetics, one lane per key.
#[derive(Clone)]
pub struct Sums {
    pub rho_c: Row,
    pub alpha: Row,
    pub hill: Row,
    pub slope: Row,
    pub bias: Row,
    pub coupling: Row,
    pub rho_r: Row,
    pub r_max: Row,
    pub lam: Row,
    pub eps: Row,
    pub age: Row,
}

impl Sums {
    pub fn zero() -> Sums {
        let z = [0f32; KEYS];
        Sums { rho_c: z, alpha: z, hill: z, slope: z, bias: z, coupling: z, rho_r: z, r_max: z, lam: z, eps: z, age: z }
    }
}

/// Scalars of a query row in the backward pass.
#[derive(Clone, Copy)]
pub struct Query {
    /// 1 / sum of n, 0 where the query sees nothing.
    pub inverse_total: f32,
    /// dout . out
    pub delta: f32,
}

/// The adjoint of one row. `logits_bar` enters as dout . v and leaves as the gradient of the logits; `weights` gets the
/// normalised weights; `calcium_bar`, `pool_bar` go from the state after the query to the state before it.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn retreat<I: Isa, const MIN: bool, const FAST: bool, const MASKED: bool, const LEARN: bool>(
    t: usize,
    query: Query,
    record: &Record,
    seen: &Row,
    before: &Row,
    logits_bar: &mut Row,
    weights: &mut Row,
    calcium_bar: &mut Row,
    pool_bar: &mut Row,
    sums: &mut Sums,
    kin: &Kinetics,
) {
    for j in 0..KEYS {
        let (e, p, pool) = (record.e[t][j], record.p[t][j], record.pool[t][j]);
        let (gate, coupling, hill) = (record.gate[t][j], record.coupling[t][j], record.hill[t][j]);
        let released = if MIN { min(p, pool) } else { p * pool };
        let reach = kin.eps + released;
        let slope = (logits_bar[j] - query.delta) * query.inverse_total;
        let n = e * strength::<I, FAST>(reach, kin);
        let g = n * slope;
        let w_bar = if FAST { e * slope } else { kin.lam * g / max(reach, 1e-37) };
        weights[j] = n * query.inverse_total;

        let after = pool_bar[j];
        let carried = kin.rho_r * after;
        let left;
        let p_bar;
        if MIN {
            let enough = p < pool;
            left = if enough { pool - p } else { 0.0 };
            p_bar = if enough { w_bar - carried } else { 0.0 };
            pool_bar[j] = if enough { carried } else { w_bar };
        } else {
            let net = w_bar - carried;
            left = pool - released;
            p_bar = pool * net;
            pool_bar[j] = I::fma(p, net, carried);
        }

        let drive = kin.content * p_bar * (gate * coupling);
        let x_bar = drive - drive * gate;
        let unbound = drive - drive * coupling;
        let through_hill = x_bar * hill;
        let c_bar = I::fma(kin.s * kin.k_d * through_hill, hill, calcium_bar[j]);
        calcium_bar[j] = kin.rho_c * c_bar;
        let logistic = e / (1.0 + e);
        logits_bar[j] = I::fma(kin.alpha * c_bar, logistic, g + unbound);

        if LEARN {
            let sensed = through_hill * record.calcium[t][j];
            sums.rho_c[j] = I::fma(c_bar, before[j], sums.rho_c[j]);
            sums.alpha[j] = I::fma(c_bar, record.softplus[t][j], sums.alpha[j]);
            sums.hill[j] = I::fma(sensed, hill, sums.hill[j]);
            sums.slope[j] += sensed;
            sums.bias[j] += x_bar;
            sums.coupling[j] += unbound;
            sums.rho_r[j] = I::fma(after, left - kin.r_max, sums.rho_r[j]);
            sums.r_max[j] += after;
            sums.lam[j] = I::fma(g, math::log::<I>(reach), sums.lam[j]);
            sums.eps[j] += w_bar;
            sums.age[j] += if MASKED { p_bar * seen[j] } else { p_bar };
        }
    }
}
