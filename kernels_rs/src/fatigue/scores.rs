//! K and V as the tiles want them, and the logits of a tile. Forward and backward pass share this code, so that the
//! backward pass sees the very logits of the forward pass (a last bit could flip a branch of rule `min`).

use std::borrow::Cow;

use crate::fatigue::problem::{Shape, LOGIT_LIMIT};
use crate::fatigue::{Row, FEW_QUERIES, KEYS, QUERIES};
use crate::gemm::{dot, Matrices};
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
                for (r, out) in tile.iter_mut().enumerate().take(rows) {
                    let query = &left[r * stride..][..dim];
                    let mut keys = self.rows[key * dim..].chunks_exact(dim);
                    for cell in out.iter_mut() {
                        *cell = keys.next().map_or(0.0, |row| dot::<I>(query, row));
                    }
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
pub fn may_exceed_limit(q: &[f32], k: &[f32], shape: &Shape) -> bool {
    let largest = |x: &[f32]| {
        x.chunks_exact(shape.dim).fold(0f64, |most, row| {
            let square: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
            if square <= most {
                most
            } else {
                square
            } // a NaN stays
        })
    };
    let bound = (largest(q) * largest(k)).sqrt() * f64::from(shape.scale());
    bound.is_nan() || bound > f64::from(LOGIT_LIMIT)
}

/// The visible logit of a tile that is farthest beyond the limit (or NaN), if any.
pub fn beyond_limit(tile: &[Row], seen: Option<&[Row]>, rows: usize) -> Option<f32> {
    let mut worst = None;
    for r in 0..rows {
        for j in 0..KEYS {
            let logit = tile[r][j];
            let visible = seen.is_none_or(|mask| mask[r][j] != 0.0);
            if visible && (logit.is_nan() || logit.abs() > LOGIT_LIMIT) {
                worst = Some(logit);
            }
        }
    }
    worst
}
