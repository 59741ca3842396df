//! The validated description of one call.

use crate::lif::{CHUNK, GROUP};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub tokens: usize,
    pub width: usize,
}

impl Shape {
    /// Stored membrane potentials of a batch row: before each stretch but the first.
    pub fn kept(&self) -> usize {
        self.tokens.saturating_sub(1) / CHUNK
    }
    /// Jobs of a batch row in the plain scan.
    pub fn groups(&self) -> usize {
        self.width.div_ceil(GROUP)
    }
}

/// What a spike does to the membrane potential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    Subtract,
    SubtractBeforeDecay,
    Zero,
    Nothing,
}

/// The derivative that the backward pass takes for that of a spike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surrogate {
    Atan,
    FastSigmoid,
    Sigmoid,
    Triangle,
    Rectangle,
}

impl Reset {
    pub const ALL: [(&'static str, Reset); 4] = [
        ("subtract", Reset::Subtract),
        ("subtract_before_decay", Reset::SubtractBeforeDecay),
        ("zero", Reset::Zero),
        ("none", Reset::Nothing),
    ];
}

impl Surrogate {
    pub const ALL: [(&'static str, Surrogate); 5] = [
        ("atan", Surrogate::Atan),
        ("fast_sigmoid", Surrogate::FastSigmoid),
        ("sigmoid", Surrogate::Sigmoid),
        ("triangle", Surrogate::Triangle),
        ("rectangle", Surrogate::Rectangle),
    ];
}

/// The constants of the neurons, one number each.
#[derive(Clone, Copy)]
pub struct Constants<'a> {
    pub beta: &'a [f32],
    pub theta: &'a [f32],
    pub gain: &'a [f32],
}

impl<'a> Constants<'a> {
    pub fn part(&self, span: Span) -> Constants<'a> {
        let Span { first, count, .. } = span;
        Constants {
            beta: &self.beta[first..first + count],
            theta: &self.theta[first..first + count],
            gain: &self.gain[first..first + count],
        }
    }
}

/// Recurrent weights (width, width): row i is what neuron i hears; stored the other way round if `transposed`.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    pub values: &'a [f32],
    pub transposed: bool,
}

/// Inputs of a call; every slice is row-major.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub shape: Shape,
    pub reset: Reset,
    pub constants: Constants<'a>,
    /// (batch, tokens, width); in the backward pass with what the neurons heard of each other
    pub x: &'a [f32],
    /// (batch, width), membrane potential and spikes before the first token
    pub u0: &'a [f32],
    pub s0: &'a [f32],
    /// (batch, tokens): before such a token both are 0
    pub starts: Option<&'a [bool]>,
    pub weights: Option<Weights<'a>>,
}

/// Some neurons of a batch row.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub batch: usize,
    pub first: usize,
    pub count: usize,
}

impl<'a> Inputs<'a> {
    /// `others`: arrays by name, their lengths and those that they must have.
    pub fn check(&self, others: &[(&str, usize, usize)]) -> Result<(), String> {
        let Shape { batch, tokens, width } = self.shape;
        let whole = batch.checked_mul(tokens).and_then(|n| n.checked_mul(width)).filter(|&n| n > 0);
        if whole.is_none_or(|n| n > isize::MAX as usize / 64) {
            return Err(format!("x must be neither empty nor huge; its shape is ({batch}, {tokens}, {width})"));
        }
        let square = width.checked_mul(width).ok_or_else(|| format!("{width} neurons are too many"))?;
        let own = [
            ("x", self.x.len(), batch * tokens * width),
            ("beta", self.constants.beta.len(), width),
            ("theta", self.constants.theta.len(), width),
            ("gain", self.constants.gain.len(), width),
            ("u0", self.u0.len(), batch * width),
            ("s0", self.s0.len(), batch * width),
            ("starts", self.starts.map_or(batch * tokens, <[bool]>::len), batch * tokens),
            ("w_rec", self.weights.map_or(square, |w| w.values.len()), square),
        ];
        for &(name, found, wanted) in own.iter().chain(others) {
            if found != wanted {
                return Err(format!("{name} has {found} elements, but {wanted} are needed"));
            }
        }
        Ok(())
    }
    /// The part that one job of the plain scan needs; `index` = batch row * groups + group.
    pub fn span(&self, index: usize) -> Span {
        let groups = self.shape.groups();
        let first = index % groups * GROUP;
        Span { batch: index / groups, first, count: GROUP.min(self.shape.width - first) }
    }
    /// All neurons of a batch row.
    pub fn whole(&self, batch: usize) -> Span {
        Span { batch, first: 0, count: self.shape.width }
    }
    #[inline(always)]
    pub fn is_start(&self, batch: usize, token: usize) -> bool {
        self.starts.is_some_and(|starts| starts[batch * self.shape.tokens + token])
    }
    /// Where the row of a span lies in an array of (batch, tokens, width).
    #[inline(always)]
    pub fn row<'b>(&self, values: &'b [f32], span: Span, token: usize) -> &'b [f32] {
        let start = (span.batch * self.shape.tokens + token) * self.shape.width + span.first;
        &values[start..start + span.count]
    }
    /// The same in an array of (batch, width).
    #[inline(always)]
    pub fn state<'b>(&self, values: &'b [f32], span: Span) -> &'b [f32] {
        let start = span.batch * self.shape.width + span.first;
        &values[start..start + span.count]
    }
    /// The membrane potential before stretch `chunk` > 0.
    #[inline(always)]
    pub fn stored<'b>(&self, kept: &'b [f32], span: Span, chunk: usize) -> &'b [f32] {
        let start = (span.batch * self.shape.kept() + chunk - 1) * self.shape.width + span.first;
        &kept[start..start + span.count]
    }
}
