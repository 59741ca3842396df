//! The synapses of one tile: what a row of queries does to the keys, forwards and backwards. Every loop runs over
//! keys without branches and vectorises; pairs that are not seen have E = 0, after which the equations need no case.

use crate::fatigue::problem::Kinetics;
use crate::fatigue::{Row, Tile, KEYS, QUERIES};
use crate::isa::Isa;
use crate::lanes::{fma, Four, Real};
use crate::math::{self, exp2_pair, exp2_pair_within, exp_pair, gate, max, min, softplus2, split_horner};

/// `TERMS` of a kernel: how many coefficients stand for the gate at exponent 1, or this for any gate and any exponent.
pub const EXACT: usize = 0;
/// Or this for no fatigue at all: n = E, nothing else moves. What the synapses cost is measured against it.
pub const OFF: usize = usize::MAX;

/// Release at a pair, up to the pool.
struct Spike<R> {
    e: R,
    /// min(E, 1 / E) and max(log2 E, 0)
    smaller: R,
    above: R,
    calcium: R,
    hill: R,
    gate: R,
    coupling: R,
    p: R,
}

#[inline(always)]
fn spike<I: Isa, R: Real, const TERMS: usize, const MASKED: bool>(
    logit: R,
    seen: R,
    calcium: R,
    kin: &Kinetics,
) -> Spike<R> {
    let one = R::splat;
    // A visible logit has been checked against the limit; a hidden one may be anything.
    let (up, down) = if MASKED { exp2_pair::<I, R>(logit) } else { exp2_pair_within::<I, R>(logit) };
    let (mut e, mut smaller, mut above) = (up, min(up, down), max(logit, one(0.0)));
    let mut constant = one(kin.constant);
    if MASKED {
        e = e * seen;
        smaller = smaller * seen;
        above = above * seen;
        constant = constant * seen;
    }
    // alpha log1p(E) = alpha (ln E where E > 1) + alpha log1p(min(E, 1/E)), added to what is left in two steps.
    let left = fma::<I, R>(one(kin.rho_c), calcium, one(kin.alpha_ln_2) * above);
    let calcium = fma::<I, R>(smaller, split_horner::<I, R>(&kin.log1p, smaller), left);
    // One reciprocal serves both saturations.
    let bound = e + one(kin.kappa);
    let sensed = calcium + one(kin.k_d);
    let reciprocal = math::reciprocal(bound * sensed);
    let hill = bound * reciprocal;
    let coupling = e * (sensed * reciprocal);
    let gate = if TERMS == EXACT {
        one(kin.content) * math::sigmoid::<I, R>(fma::<I, R>(one(kin.s), calcium * hill, one(kin.b)))
    } else {
        gate::<I, R, TERMS>(&kin.gate, calcium * hill)
    };
    let p = fma::<I, R>(gate, coupling, constant);
    Spike { e, smaller, above, calcium, hill, gate, coupling, p }
}

/// E alone.
#[inline(always)]
fn weight<I: Isa, const MASKED: bool>(logit: Four, seen: Four) -> Four {
    if MASKED {
        exp2_pair::<I, Four>(logit).0 * seen
    } else {
        exp2_pair_within::<I, Four>(logit).0
    }
}

/// Released vesicles and the pool after it.
#[inline(always)]
fn drain<I: Isa, R: Real, const MIN: bool>(p: R, pool: R, kin: &Kinetics) -> (R, R) {
    let (released, left) = if MIN { (min(p, pool), max(pool - p, R::splat(0.0))) } else { (p * pool, pool - p * pool) };
    (released, fma::<I, R>(R::splat(kin.rho_r), left, R::splat(kin.recovery)))
}

/// `(eps + W)^lam`
#[inline(always)]
fn strength<I: Isa, R: Real, const TERMS: usize>(reach: R, kin: &Kinetics) -> R {
    if TERMS == EXACT {
        exp_pair::<I, R>(R::splat(kin.lam) * math::log::<I, R>(reach)).0
    } else {
        reach
    }
}

/// One row of queries: logits (base 2) become unnormalised weights, which `total` gathers; the state moves on.
#[inline(always)]
pub fn advance<I: Isa, const MIN: bool, const TERMS: usize, const MASKED: bool>(
    logits: &mut Row,
    seen: &Row,
    calcium: &mut Row,
    pool: &mut Row,
    total: &mut [f32; KEYS / 4],
    kin: &Kinetics,
) {
    for (j, total) in total.iter_mut().enumerate() {
        let logit = Four::load(logits, j);
        if TERMS == OFF {
            let n = weight::<I, MASKED>(logit, Four::load(seen, j));
            n.store(logits, j);
            *total += n.sum();
            continue;
        }
        let x = spike::<I, Four, TERMS, MASKED>(logit, Four::load(seen, j), Four::load(calcium, j), kin);
        let (released, after) = drain::<I, Four, MIN>(x.p, Four::load(pool, j), kin);
        let n = x.e * strength::<I, Four, TERMS>(Four::splat(kin.eps) + released, kin);
        x.calcium.store(calcium, j);
        after.store(pool, j);
        n.store(logits, j);
        *total += n.sum();
    }
}

/// What the backward pass reads of a tile, per query and key.
pub struct Record {
    pub e: Tile,
    /// Rule min: what was released, with a minus sign where that was the whole pool. Rule mul: P.
    pub release: Tile,
    /// Pool that the query finds; rule min needs it for the gradients of the kinetics alone.
    pub pool: Tile,
    /// dP/dL through the coupling.
    pub unbound: Tile,
    /// dP/dC.
    pub slope: Tile,
    /// The rest serves the gradients of the kinetics alone. dP/d(s S + b):
    pub bend: Tile,
    /// 1 / (C + k_d)
    pub hill: Tile,
    /// Calcium after the query.
    pub calcium: Tile,
    pub softplus: Tile,
}

impl Record {
    pub fn zero() -> Box<Record> {
        let zero = || [[0f32; KEYS]; QUERIES];
        Box::new(Record {
            e: zero(),
            release: zero(),
            pool: zero(),
            unbound: zero(),
            slope: zero(),
            bend: zero(),
            hill: zero(),
            calcium: zero(),
            softplus: zero(),
        })
    }
}

/// As [`advance`], but keeps what the backward pass needs; the arithmetic is the same to the last bit.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn replay<I: Isa, const MIN: bool, const TERMS: usize, const MASKED: bool, const LEARN: bool>(
    t: usize,
    logits: &Row,
    seen: &Row,
    calcium: &mut Row,
    pool: &mut Row,
    kin: &Kinetics,
    record: &mut Record,
) {
    let sensor = Four::splat(kin.s * kin.k_d);
    for j in 0..KEYS / 4 {
        let logit = Four::load(logits, j);
        if TERMS == OFF {
            weight::<I, MASKED>(logit, Four::load(seen, j)).store(&mut record.e[t], j);
            continue;
        }
        let x = spike::<I, Four, TERMS, MASKED>(logit, Four::load(seen, j), Four::load(calcium, j), kin);
        let found = Four::load(pool, j);
        let content = x.gate * x.coupling;
        let bend = content - content * x.gate;
        x.e.store(&mut record.e[t], j);
        let (released, after) = drain::<I, Four, MIN>(x.p, found, kin);
        if MIN {
            let depleted = x.p.zip(found, |p, pool| if p < pool { 1.0 } else { -1.0 });
            released.zip(depleted, f32::copysign).store(&mut record.release[t], j);
        } else {
            x.p.store(&mut record.release[t], j);
        }
        if LEARN || !MIN {
            found.store(&mut record.pool[t], j);
        }
        (content - content * x.coupling).store(&mut record.unbound[t], j);
        (bend * sensor * (x.hill * x.hill)).store(&mut record.slope[t], j);
        if LEARN {
            bend.store(&mut record.bend[t], j);
            x.hill.store(&mut record.hill[t], j);
            x.calcium.store(&mut record.calcium[t], j);
            softplus2::<I, Four>(x.above, x.smaller).store(&mut record.softplus[t], j);
        }
        x.calcium.store(calcium, j);
        after.store(pool, j);
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

/// An adjoint this small counts as none. It would go on to decay into subnormal numbers, the last of which rounds to
/// itself for ever, and arithmetic on those is a hundred times slower on many processors.
const NOTHING: f32 = 1e-30;

#[inline(always)]
fn settle(x: f32) -> f32 {
    if x.abs() < NOTHING {
        0.0
    } else {
        x
    }
}

/// The adjoint of one row. `logits_bar` enters as dout . v and leaves as the gradient of the logits; `weights` gets the
/// normalised weights; `calcium_bar`, `pool_bar` go from the state after the query to the state before it. `before`:
/// calcium that the query finds, read where the kinetics are learned.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn retreat<I: Isa, const MIN: bool, const TERMS: usize, const MASKED: bool, const LEARN: bool>(
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
        if TERMS == OFF {
            let n = record.e[t][j] * query.inverse_total;
            logits_bar[j] = n * (logits_bar[j] - query.delta);
            weights[j] = n;
            continue;
        }
        let (e, release) = (record.e[t][j], record.release[t][j]);
        let pool = if LEARN || !MIN { record.pool[t][j] } else { 0.0 };
        let released = if MIN { release.abs() } else { release * pool };
        let reach = kin.eps + released;
        let slope = (logits_bar[j] - query.delta) * query.inverse_total;
        let n = e * strength::<I, f32, TERMS>(reach, kin);
        let g = n * slope;
        let w_bar = if TERMS == EXACT { kin.lam * g / max(reach, 1e-37) } else { e * slope };
        weights[j] = n * query.inverse_total;

        let after = pool_bar[j];
        let carried = kin.rho_r * after;
        let left;
        let p_bar;
        if MIN {
            let enough = release.is_sign_positive();
            left = if enough { pool - released } else { 0.0 };
            p_bar = if enough { w_bar - carried } else { 0.0 };
            pool_bar[j] = settle(if enough { carried } else { w_bar });
        } else {
            let net = w_bar - carried;
            left = pool - released;
            p_bar = pool * net;
            pool_bar[j] = settle(I::fma(release, net, carried));
        }

        let c_bar = I::fma(p_bar, record.slope[t][j], calcium_bar[j]);
        calcium_bar[j] = settle(kin.rho_c * c_bar);
        let logistic = e / (1.0 + e);
        let unbound = p_bar * record.unbound[t][j];
        logits_bar[j] = I::fma(kin.alpha * c_bar, logistic, g + unbound);

        if LEARN {
            let hill = record.hill[t][j];
            let x_bar = p_bar * record.bend[t][j];
            let sensed = x_bar * hill * record.calcium[t][j];
            sums.rho_c[j] = I::fma(c_bar, before[j], sums.rho_c[j]);
            sums.alpha[j] = I::fma(c_bar, record.softplus[t][j], sums.alpha[j]);
            sums.hill[j] = I::fma(sensed, hill, sums.hill[j]);
            sums.slope[j] += sensed;
            sums.bias[j] += x_bar;
            sums.coupling[j] += unbound;
            sums.rho_r[j] = I::fma(after, left - kin.r_max, sums.rho_r[j]);
            sums.r_max[j] += after;
            sums.lam[j] = I::fma(g, math::log::<I, f32>(reach), sums.lam[j]);
            sums.eps[j] += w_bar;
            sums.age[j] += if MASKED { p_bar * seen[j] } else { p_bar };
        }
    }
}
