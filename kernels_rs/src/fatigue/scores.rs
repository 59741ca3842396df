//! K and V as the tiles want them, and the logits of a tile. Forward and backward pass share this code, so that the
//! backward pass sees the very logits of the forward pass (a last bit could flip a branch of rule `min`).

use std::borrow::Cow;

use crate::fatigue::problem::{Shape, LOGIT_LIMIT};
use crate::fatigue::{Row, FEW_QUERIES, KEYS, QUERIES};
use crate::gemm::{dot, dots, Matrices};
use crate::isa::Isa;

/// Rows of length `dim` with zeros up to `padded`; borrowed if nothing is missing.
pub fn pad_rows(x: &[f32], dim: usize, padded: usize, rows: usize) -> Cow<'_, [f32]> {
    if dim == padded && x.len() == rows * dim {
        return Cow::Borrowed(x);
    }
    let mut out = vec![0f32; rows * padded];
    for (to, from) in out.chunks_exact_mut(padded).zip(x.chunks_exact(dim)) {
        to[..dim].copy_from_slice(from);
    }
    Cow::Owned(out)
}

/// Panels of `KEYS` columns: panel p holds x[p * KEYS + j][d] at `[d][j]`, zero beyond the last row.
pub fn transpose_panels(x: &[f32], dim: usize) -> Vec<f32> {
    let rows = x.len() / dim;
    let mut out = vec![0f32; rows.div_ceil(KEYS) * KEYS * dim];
    for (panel, block) in out.chunks_exact_mut(KEYS * dim).zip(x.chunks(KEYS * dim)) {
        for (j, row) in block.chunks_exact(dim).enumerate() {
            for (d, &value) in row.iter().enumerate() {
                panel[d * KEYS + j] = value;
            }
        }
    }
    out
}

/// Products of a block of query rows with the keys (or values) of one head.
pub struct Products<'a> {
    rows: &'a [f32],
    panels: Option<Vec<f32>>,
    dim: usize,
}

impl<'a> Products<'a> {
    /// `x` (rows, dim). With few queries the products run over `x` as it lies.
    pub fn new(x: &'a [f32], shape: &Shape) -> Products<'a> {
        let panels = (shape.tq > FEW_QUERIES).then(|| transpose_panels(x, shape.dim));
        Products { rows: x, panels, dim: shape.dim }
    }

    /// tile[r][j] = left[r] . x[key + j] for `rows` rows; `left` has QUERIES rows of length `stride`.
    #[inline(always)]
    pub fn tile<I: Isa>(&self, left: &[f32], stride: usize, rows: usize, key: usize, tile: &mut [Row]) {
        let dim = self.dim;
        match &self.panels {
            Some(panels) => I::gemm::<false, false>(Matrices {
                m: rows.div_ceil(8) * 8,
                n: KEYS,
                k: dim,
                a: left,
                lda: stride,
                b: &panels[key * dim..][..KEYS * dim],
                ldb: KEYS,
                c: tile.as_flattened_mut(),
                ldc: KEYS,
            }),
            None => {
                let end = self.rows.len().min((key + KEYS) * dim);
                for (r, out) in tile.iter_mut().enumerate().take(rows) {
                    out.fill(0.0);
                    dots::<I>(&left[r * stride..][..dim], &self.rows[key * dim..end], &[], out);
                }
            }
        }
    }
}

/// A block of rows, scaled, with zeros up to QUERIES rows of length `padded`.
pub fn load_block(x: &[f32], dim: usize, padded: usize, start: usize, rows: usize, scale: f32, out: &mut [f32]) {
    out[..QUERIES * padded].fill(0.0);
    for (to, from) in out.chunks_exact_mut(padded).zip(x[start * dim..(start + rows) * dim].chunks_exact(dim)) {
        for (y, &value) in to.iter_mut().zip(from) {
            *y = value * scale;
        }
    }
}

/// Whether the logits must be looked at: by Cauchy and Schwarz most inputs cannot reach the limit.
#[inline(always)]
pub fn may_exceed_limit<I: Isa>(q: &[f32], k: &[f32], shape: &Shape) -> bool {
    let (q, k) = (largest_square::<I>(q, shape.dim), largest_square::<I>(k, shape.dim));
    let bound = (f64::from(q) * f64::from(k)).sqrt() * f64::from(shape.scale());
    // The norms are rounded: leave them some room.
    bound.is_nan() || bound > f64::from(LOGIT_LIMIT) * 0.999
}

/// Largest squared norm of a row, NaN if there is one.
#[inline(always)]
fn largest_square<I: Isa>(x: &[f32], dim: usize) -> f32 {
    let mut most = 0f32;
    for row in x.chunks_exact(dim) {
        let square = dot::<I>(row, row);
        // Written so that a NaN stays.
        most = if square <= most { most } else { square };
        if most.is_nan() {
            break;
        }
    }
    most
}

/// A visible logit of a tile that is beyond the limit (or NaN), if any.
#[inline(always)]
pub fn beyond_limit(tile: &[Row], seen: Option<&[Row]>, rows: usize) -> Option<f32> {
    let within = |logit: f32| logit.abs() <= LOGIT_LIMIT; // false for NaN
    for r in 0..rows {
        // Hardly ever is there one: count without a branch, look closer only then.
        let outside: u32 = tile[r].iter().map(|&logit| u32::from(!within(logit))).sum();
        if outside > 0 {
            let visible = |j: usize| seen.is_none_or(|mask| mask[r][j] != 0.0);
            let found = (0..KEYS).find(|&j| visible(j) && !within(tile[r][j]));
            if let Some(j) = found {
                return Some(tile[r][j]);
            }
        }
    }
    None
}
