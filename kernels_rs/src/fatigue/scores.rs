//! K and V as the tiles want them, and the logits (base 2) of a tile. Forward and backward pass share this code, so that the
//! backward pass sees the very logits of the forward pass (a last bit could flip a branch of rule `min`).

use std::borrow::Cow;
use std::f32::consts::LOG2_E;

use crate::fatigue::problem::{Shape, LOGIT_LIMIT};
use crate::fatigue::{Row, FEW_QUERIES, HALF_KEYS, HALF_QUERIES, KEYS, QUERIES};
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

    /// tile[r][j] = left[r] . x[key + j] for `rows` rows, zero in a corner; `left` has QUERIES rows of length `stride`.
    #[inline(always)]
    pub fn tile<I: Isa>(&self, left: &[f32], stride: usize, rows: usize, corner: bool, key: usize, tile: &mut [Row]) {
        let dim = self.dim;
        match &self.panels {
            Some(panels) => {
                if corner {
                    tile[..HALF_QUERIES].iter_mut().for_each(|row| row[HALF_KEYS..].fill(0.0));
                }
                let (parts, count) = row_parts(rows, corner);
                for part in &parts[..count] {
                    I::gemm::<false, false>(Matrices {
                        m: part.rows,
                        n: part.keys,
                        k: dim,
                        a: &left[part.row * stride..],
                        lda: stride,
                        b: &panels[key * dim..][..KEYS * dim],
                        ldb: KEYS,
                        c: &mut tile.as_flattened_mut()[part.row * KEYS..],
                        ldc: KEYS,
                    });
                }
            }
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

/// Rows of a tile that have something in their first `keys` columns alone.
#[derive(Clone, Copy)]
struct RowPart {
    row: usize,
    /// A multiple of 8: rows beyond the queries are zero.
    rows: usize,
    keys: usize,
}

/// The parts of a tile, and how many there are.
#[inline(always)]
fn row_parts(rows: usize, corner: bool) -> ([RowPart; 2], usize) {
    let whole = rows.div_ceil(8) * 8;
    if corner {
        let first = RowPart { row: 0, rows: HALF_QUERIES, keys: HALF_KEYS };
        ([first, RowPart { row: HALF_QUERIES, rows: whole - HALF_QUERIES, keys: KEYS }], 2)
    } else {
        ([RowPart { row: 0, rows: whole, keys: KEYS }; 2], 1)
    }
}

/// sums (rows, width) += tile (rows, KEYS) x (KEYS, width); a corner of the tile counts as zero.
#[inline(always)]
pub fn add_along_keys<I: Isa>(tile: &[Row], rows: usize, corner: bool, x: &[f32], width: usize, sums: &mut [f32]) {
    let (parts, count) = row_parts(rows, corner);
    for part in &parts[..count] {
        I::gemm::<false, true>(Matrices {
            m: part.rows,
            n: width,
            k: part.keys,
            a: &tile.as_flattened()[part.row * KEYS..],
            lda: KEYS,
            b: x,
            ldb: width,
            c: &mut sums[part.row * width..],
            ldc: width,
        });
    }
}

/// sums (KEYS, width) += tile (rows, KEYS), transposed, x (rows, width); a corner of the tile counts as zero.
#[inline(always)]
pub fn add_along_queries<I: Isa>(tile: &[Row], rows: usize, corner: bool, x: &[f32], width: usize, sums: &mut [f32]) {
    // First key, number of keys, first query that sees any of them.
    let parts =
        if corner { [(0, HALF_KEYS, 0), (HALF_KEYS, KEYS - HALF_KEYS, HALF_QUERIES)] } else { [(0, KEYS, 0); 2] };
    for &(key, keys, row) in &parts[..1 + usize::from(corner)] {
        I::gemm::<true, true>(Matrices {
            m: keys,
            n: width,
            k: rows - row,
            a: &tile.as_flattened()[row * KEYS + key..],
            lda: KEYS,
            b: &x[row * width..],
            ldb: width,
            c: &mut sums[key * width..],
            ldc: width,
        });
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

/// A visible logit of a tile (base 2) that is beyond the limit (or NaN), if any, to the base e.
#[inline(always)]
pub fn beyond_limit(tile: &[Row], seen: Option<&[Row]>, rows: usize) -> Option<f32> {
    const LIMIT: f32 = LOGIT_LIMIT * LOG2_E;
    let within = |logit: f32| logit.abs() <= LIMIT; // false for NaN
    for r in 0..rows {
        // Hardly ever is there one: count without a branch, look closer only then.
        let outside: u32 = tile[r].iter().map(|&logit| u32::from(!within(logit))).sum();
        if outside > 0 {
            let visible = |j: usize| seen.is_none_or(|mask| mask[r][j] != 0.0);
            let found = (0..KEYS).find(|&j| visible(j) && !within(tile[r][j]));
            if let Some(j) = found {
                return Some(tile[r][j] / LOG2_E);
            }
        }
    }
    None
}
