//! Which keys a query sees: not later ones, not beyond the window, only those of its own segment.

use crate::fatigue::{Row, HALF_KEYS, HALF_QUERIES, KEYS};

pub struct Visibility<'a> {
    /// Query i stands at position `offset + i`.
    pub offset: usize,
    pub keys: usize,
    /// A query at t sees the keys in (t - window, t].
    pub window: Option<usize>,
    /// Segment of every query and of every key.
    pub segments: Option<(&'a [i64], &'a [i64])>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All keys of the tile are later than all its queries.
    Future,
    /// Nothing is seen, but there are keys that rest meanwhile.
    Hidden,
    /// Some pairs are seen: the tile has a mask.
    Partial,
    /// Every pair is seen.
    Full,
}

impl Visibility<'_> {
    /// The keys that query `i` may see by position: `first..end`.
    fn range(&self, i: usize) -> (usize, usize) {
        let position = self.offset + i;
        (self.window.map_or(0, |w| (position + 1).saturating_sub(w)), position + 1)
    }

    /// Whether the first half of a tile's queries sees none of the second half of its keys, as on the diagonal.
    pub fn has_corner(&self, start: usize, rows: usize, key: usize) -> bool {
        rows > HALF_QUERIES && self.range(start + HALF_QUERIES - 1).1 <= key + HALF_KEYS
    }

    /// The kind of the tile of queries `start..start + rows` and keys `key..key + KEYS`; where it is `Partial`, `seen`
    /// gets 1 at visible pairs and 0 elsewhere.
    pub fn tile(&self, start: usize, rows: usize, key: usize, seen: &mut [Row]) -> Kind {
        let end_key = (key + KEYS).min(self.keys);
        let (first_low, first_end) = self.range(start);
        let (last_low, last_end) = self.range(start + rows - 1);
        if key >= last_end {
            return Kind::Future;
        }
        if end_key <= first_low {
            return Kind::Hidden;
        }
        let inside = key + KEYS <= first_end.min(self.keys) && key >= last_low;
        let one_segment = self.segments.is_none_or(|(q, k)| {
            let segment = q[start];
            q[start..start + rows].iter().chain(&k[key..end_key]).all(|&s| s == segment)
        });
        if inside && one_segment {
            return Kind::Full;
        }
        let mut any = false;
        for (r, row) in seen.iter_mut().enumerate().take(rows) {
            let (low, end) = self.range(start + r);
            let first = low.saturating_sub(key).min(KEYS);
            let last = end.min(end_key).saturating_sub(key).clamp(first, KEYS);
            row.fill(0.0);
            match self.segments {
                None => {
                    row[first..last].fill(1.0);
                    any |= first < last;
                }
                Some((q, k)) => {
                    for (cell, segment) in row[first..last].iter_mut().zip(&k[(key + first).min(self.keys)..]) {
                        let same = q[start + r] == *segment;
                        *cell = f32::from(u8::from(same));
                        any |= same;
                    }
                }
            }
        }
        if any {
            Kind::Partial
        } else {
            Kind::Hidden
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fatigue::Tile;
    use crate::fatigue::QUERIES;

    #[test]
    fn the_diagonal_has_corners() {
        let aligned = Visibility { offset: 64, keys: 256, window: None, segments: None };
        assert!(aligned.has_corner(64, 64, 128) && aligned.has_corner(0, 40, 64));
        assert!(!aligned.has_corner(64, 64, 64) && !aligned.has_corner(64, HALF_QUERIES, 128));
    }

    #[test]
    fn tiles_agree_with_the_definition() {
        let q: Vec<i64> = (0..150).map(|t| (t + 50) / 60).collect();
        let k: Vec<i64> = (0..200).map(|t| t / 60).collect();
        for window in [None, Some(1), Some(40), Some(90), Some(500)] {
            for segments in [None, Some((&q[..], &k[..]))] {
                let v = Visibility { offset: 50, keys: 200, window, segments };
                let mut seen: Tile = [[9.0; KEYS]; QUERIES];
                for start in (0..150).step_by(QUERIES) {
                    let rows = QUERIES.min(150 - start);
                    for key in (0..200).step_by(KEYS) {
                        let kind = v.tile(start, rows, key, &mut seen);
                        for r in 0..rows {
                            for (j, cell) in seen[r].iter().enumerate() {
                                let (t, p) = (50 + start + r, key + j);
                                let expected = p < 200
                                    && p <= t
                                    && window.is_none_or(|w| p + w > t)
                                    && segments.is_none_or(|(q, k)| q[start + r] == k[p]);
                                let found = match kind {
                                    Kind::Full => true,
                                    Kind::Partial => *cell == 1.0,
                                    Kind::Future | Kind::Hidden => false,
                                };
                                assert_eq!(found, expected, "{window:?} {start} {key} {r} {j}");
                                assert!(kind != Kind::Future || p > t);
                                let corner = v.has_corner(start, rows, key) && r < HALF_QUERIES && j >= HALF_KEYS;
                                assert!(!corner || kind == Kind::Future || !found);
                            }
                        }
                    }
                }
            }
        }
    }
}
