//! The validated description of one call.

use crate::scan::GROUP;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub tokens: usize,
    pub channels: usize,
}

impl Shape {
    pub fn check(&self) -> Result<(), String> {
        let Shape { batch, tokens, channels } = *self;
        if batch == 0 || tokens == 0 || channels == 0 {
            return Err(format!("x must not be empty; its shape is ({batch}, {tokens}, {channels})"));
        }
        Ok(())
    }
    pub fn dims(&self) -> [usize; 3] {
        [self.batch, self.tokens, self.channels]
    }
    /// Jobs of a batch row.
    pub fn groups(&self) -> usize {
        self.channels.div_ceil(GROUP)
    }
    /// First channel and number of channels of a group.
    pub fn group(&self, index: usize) -> (usize, usize) {
        let start = index * GROUP;
        (start, GROUP.min(self.channels - start))
    }
}

/// An array of shape (batch, tokens, channels) in which any axis may have size 1 and then holds for all.
#[derive(Clone, Copy, Debug)]
pub struct Coefficient<'a> {
    values: &'a [f32],
    dims: [usize; 3],
}

impl<'a> Coefficient<'a> {
    pub fn new(values: &'a [f32], dims: [usize; 3]) -> Coefficient<'a> {
        Coefficient { values, dims }
    }
    fn check(&self, name: &str, shape: &Shape) -> Result<(), String> {
        let full = shape.dims();
        if self.dims.iter().zip(full).any(|(&found, whole)| found != 1 && found != whole) {
            return Err(format!("{name} has shape {:?}, which cannot be broadcast to {full:?}", self.dims));
        }
        // No overflow: each factor is at most that of `x`, which exists.
        let expected = self.dims.iter().product::<usize>();
        if self.values.len() != expected {
            return Err(format!("{name} has {} elements, but {expected} are needed", self.values.len()));
        }
        Ok(())
    }
    /// Its gradient has a value for every token (else one per batch row and channel).
    pub fn per_token(&self) -> bool {
        self.dims[1] > 1
    }
    /// The numbers of `count` channels from `first`, or the one number that holds for all of them.
    #[inline(always)]
    pub fn row(&self, batch: usize, token: usize, first: usize, count: usize) -> &'a [f32] {
        let [batches, tokens, channels] = self.dims;
        let batch = if batches == 1 { 0 } else { batch };
        let token = if tokens == 1 { 0 } else { token };
        let start = (batch * tokens + token) * channels;
        if channels == 1 {
            &self.values[start..start + 1]
        } else {
            &self.values[start + first..start + first + count]
        }
    }
}

/// Inputs of a call; every slice is row-major.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub shape: Shape,
    pub a: Coefficient<'a>,
    /// (batch, channels), y before the first token
    pub state: &'a [f32],
    /// (batch, tokens): before such a token y is 0
    pub starts: Option<&'a [bool]>,
    pub floor: Option<Coefficient<'a>>,
}

impl Inputs<'_> {
    /// `rows`: arrays of (batch, tokens, channels) by name.
    pub fn check(&self, rows: &[(&str, &[f32])]) -> Result<(), String> {
        self.shape.check()?;
        let Shape { batch, tokens, channels } = self.shape;
        let whole = self.shape.dims().iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let whole = whole.ok_or_else(|| format!("x is too large: its shape is {:?}", self.shape.dims()))?;
        for (name, values) in rows {
            if values.len() != whole {
                return Err(format!("{name} has {} elements, but {whole} are needed", values.len()));
            }
        }
        self.a.check("a", &self.shape)?;
        if let Some(floor) = self.floor {
            floor.check("floor", &self.shape)?;
        }
        if self.state.len() != batch * channels {
            return Err(format!("state has {} elements, but {} are needed", self.state.len(), batch * channels));
        }
        if let Some(starts) = self.starts.filter(|starts| starts.len() != batch * tokens) {
            return Err(format!("starts has {} elements, but {} are needed", starts.len(), batch * tokens));
        }
        Ok(())
    }
    /// The part that one job needs; `index` = batch row * groups + group.
    pub fn span(&self, index: usize) -> Span {
        let groups = self.shape.groups();
        let (first, count) = self.shape.group(index % groups);
        Span { batch: index / groups, first, count }
    }
    #[inline(always)]
    pub fn is_start(&self, batch: usize, token: usize) -> bool {
        self.starts.is_some_and(|starts| starts[batch * self.shape.tokens + token])
    }
    /// Where the row of a span lies in an array of (batch, tokens, channels).
    #[inline(always)]
    pub fn row<'b>(&self, values: &'b [f32], span: &Span, token: usize) -> &'b [f32] {
        let start = (span.batch * self.shape.tokens + token) * self.shape.channels + span.first;
        &values[start..start + span.count]
    }
    /// The state of a span.
    #[inline(always)]
    pub fn before(&self, span: &Span) -> &[f32] {
        let start = span.batch * self.shape.channels + span.first;
        &self.state[start..start + span.count]
    }
}

/// Some channels of a batch row.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub batch: usize,
    pub first: usize,
    pub count: usize,
}
