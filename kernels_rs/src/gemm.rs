//! Small dense products in register tiles. Lanes run along the columns of B and C; A is broadcast, so it may be read
//! along its rows or its columns at no cost. Every sum runs over `k` in order: the result of an element does not
//! depend on the sizes around it.

use crate::isa::{prefetch, Isa};

/// C (m, n) = A (m, k) B (k, n), row-major with row strides; A is stored (k, m) where `TRANSPOSED`.
/// `m` must be a multiple of 8, `n` of 16, `k` positive.
pub struct Matrices<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: &'a [f32],
    pub lda: usize,
    pub b: &'a [f32],
    pub ldb: usize,
    pub c: &'a mut [f32],
    pub ldc: usize,
}

#[inline(always)]
pub fn multiply<I: Isa, const MR: usize, const NR: usize, const TRANSPOSED: bool, const ADD: bool>(x: Matrices<'_>) {
    let Matrices { m, n, k, a, lda, b, ldb, c, ldc } = x;
    let mut column = 0;
    while column + NR <= n {
        for row in (0..m).step_by(MR) {
            tile::<I, MR, NR, TRANSPOSED, ADD>(k, a, lda, row, &b[column..], ldb, &mut c[row * ldc + column..], ldc);
        }
        column += NR;
    }
    while column + 16 <= n {
        for row in (0..m).step_by(MR) {
            tile::<I, MR, 16, TRANSPOSED, ADD>(k, a, lda, row, &b[column..], ldb, &mut c[row * ldc + column..], ldc);
        }
        column += 16;
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn tile<I: Isa, const MR: usize, const NR: usize, const TRANSPOSED: bool, const ADD: bool>(
    k: usize,
    a: &[f32],
    lda: usize,
    row: usize,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
) {
    let mut sum = [[0f32; NR]; MR];
    if TRANSPOSED {
        // One view per column: where the compiler sees that neighbours are contiguous, it vectorises along them instead.
        let mut columns: [&[f32]; MR] = [&[]; MR];
        for (i, column) in columns.iter_mut().enumerate() {
            *column = &a[row + i..][..(k - 1) * lda + 1];
        }
        for p in 0..k {
            let right = &b[p * ldb..][..NR];
            for i in 0..MR {
                let left = columns[i][p * lda];
                for j in 0..NR {
                    sum[i][j] = I::fma(left, right[j], sum[i][j]);
                }
            }
        }
    } else {
        let mut rows: [&[f32]; MR] = [&[]; MR];
        for (i, x) in rows.iter_mut().enumerate() {
            *x = &a[(row + i) * lda..][..k];
        }
        for p in 0..k {
            let right = &b[p * ldb..][..NR];
            for i in 0..MR {
                for j in 0..NR {
                    sum[i][j] = I::fma(rows[i][p], right[j], sum[i][j]);
                }
            }
        }
    }
    for i in 0..MR {
        let out = &mut c[i * ldc..][..NR];
        for j in 0..NR {
            out[j] = if ADD { out[j] + sum[i][j] } else { sum[i][j] };
        }
    }
}

/// Sum over `x[d] * y[d]` in 16 fixed lanes.
#[inline(always)]
pub fn dot<I: Isa>(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (x_chunks, x_rest) = x.as_chunks::<16>();
    let (y_chunks, y_rest) = y.as_chunks::<16>();
    for (a, b) in x_chunks.iter().zip(y_chunks) {
        for l in 0..16 {
            lanes[l] = I::fma(a[l], b[l], lanes[l]);
        }
    }
    for (l, (a, b)) in x_rest.iter().zip(y_rest).enumerate() {
        lanes[l] = I::fma(*a, *b, lanes[l]);
    }
    fold_lanes(&lanes)
}

/// out[i] = row i of `rows` . x, each to the last bit as [`dot`]; four at a time, so that none is waited for. `ahead` is
/// asked for from memory meanwhile: what is read next.
#[inline(always)]
pub fn dots<I: Isa>(x: &[f32], rows: &[f32], ahead: &[f32], out: &mut [f32]) {
    let dim = x.len();
    let mut groups = rows.chunks_exact(4 * dim);
    let mut wanted = ahead.chunks(4 * dim);
    let (out_groups, out_rest) = out[..rows.len() / dim].as_chunks_mut::<4>();
    for (four, group) in out_groups.iter_mut().zip(&mut groups) {
        if let Some(part) = wanted.next() {
            prefetch(part);
        }
        let (a, rest) = group.split_at(dim);
        let (b, rest) = rest.split_at(dim);
        let (c, d) = rest.split_at(dim);
        // Independent of one another: the processor works on all four at once.
        *four = [dot::<I>(x, a), dot::<I>(x, b), dot::<I>(x, c), dot::<I>(x, d)];
    }
    for part in wanted {
        prefetch(part);
    }
    for (y, row) in out_rest.iter_mut().zip(groups.remainder().chunks_exact(dim)) {
        *y = dot::<I>(x, row);
    }
}

/// y += sum of weights[i] * row i of x, in order; four rows at a time, so that y is not waited for at every row. `ahead`
/// as for [`dots`].
#[inline(always)]
pub fn add_scaled<I: Isa>(weights: &[f32], x: &[f32], ahead: &[f32], y: &mut [f32]) {
    let width = y.len();
    let (weight_groups, weight_rest) = weights.as_chunks::<4>();
    let mut groups = x.chunks_exact(4 * width);
    let mut wanted = ahead.chunks(4 * width);
    for (w, rows) in weight_groups.iter().zip(&mut groups) {
        if let Some(part) = wanted.next() {
            prefetch(part);
        }
        let (a, rest) = rows.split_at(width);
        let (b, rest) = rest.split_at(width);
        let (c, d) = rest.split_at(width);
        for ((((y, a), b), c), d) in y.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *y = I::fma(w[3], *d, I::fma(w[2], *c, I::fma(w[1], *b, I::fma(w[0], *a, *y))));
        }
    }
    for part in wanted {
        prefetch(part);
    }
    for (weight, row) in weight_rest.iter().zip(groups.remainder().chunks_exact(width)) {
        for (y, x) in y.iter_mut().zip(row) {
            *y = I::fma(*weight, *x, *y);
        }
    }
}

/// Sum of 16 lanes, always in the same tree.
#[inline(always)]
pub fn fold_lanes(lanes: &[f32; 16]) -> f32 {
    let (mut eight, mut four) = ([0f32; 8], [0f32; 4]);
    for l in 0..8 {
        eight[l] = lanes[l] + lanes[l + 8];
    }
    for l in 0..4 {
        four[l] = eight[l] + eight[l + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Job, Level};

    struct Product<'a, const TRANSPOSED: bool>(Matrices<'a>);
    impl<const TRANSPOSED: bool> Job for Product<'_, TRANSPOSED> {
        fn run<I: Isa>(self) {
            I::gemm::<TRANSPOSED, true>(self.0);
        }
    }

    fn check<const TRANSPOSED: bool>(level: Level, m: usize, n: usize, k: usize) {
        let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
        let mut c = vec![1f32; m * n];
        let lda = if TRANSPOSED { m } else { k };
        level.run(Product::<TRANSPOSED>(Matrices { m, n, k, a: &a, lda, b: &b, ldb: n, c: &mut c, ldc: n }));
        for i in 0..m {
            for j in 0..n {
                let left = |p: usize| if TRANSPOSED { a[p * m + i] } else { a[i * k + p] };
                let exact: f32 = 1.0 + (0..k).map(|p| left(p) * b[p * n + j]).sum::<f32>();
                assert_eq!(c[i * n + j], exact, "{} {m} {n} {k} at {i} {j}", level.name());
            }
        }
    }

    #[test]
    fn products_of_small_integers_are_exact() {
        for level in Level::available() {
            for (m, n, k) in [(8, 16, 5), (16, 32, 1), (8, 48, 33), (24, 80, 7)] {
                check::<false>(level, m, n, k);
                check::<true>(level, m, n, k);
            }
        }
    }
}
