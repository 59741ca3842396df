//! A log of changes of weights: a ring of the latest, all of them or every n-th. Without it nothing is done or kept.

/// One change of one weight: eight words of four bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub step: u32,
    pub source: u32,
    pub target: u32,
    pub relation: u16,
    /// See [`crate::substrate::learn::code`].
    pub rule: u16,
    pub old: f32,
    pub new: f32,
    pub reward: f32,
}

pub const WORDS: usize = 8;

impl Change {
    pub fn words(&self, number: u64) -> [u32; WORDS] {
        let kind = self.relation as u32 | (self.rule as u32) << 16;
        let (old, new, reward) = (self.old.to_bits(), self.new.to_bits(), self.reward.to_bits());
        [self.step, self.source, self.target, kind, old, new, reward, number as u32]
    }
}

/// The latest changes, oldest overwritten first.
pub struct Trace {
    pub ring: Vec<[u32; WORDS]>,
    pub capacity: usize,
    /// Every n-th change is kept.
    pub every: u64,
    /// Changes that were offered, and kept.
    pub offered: u64,
    pub kept: u64,
}

impl Trace {
    pub fn new(capacity: usize, every: u64) -> Result<Trace, String> {
        if capacity == 0 || every == 0 {
            return Err(format!("capacity = {capacity} and every = {every} must be at least 1"));
        }
        Ok(Trace { ring: Vec::new(), capacity, every, offered: 0, kept: 0 })
    }

    #[inline]
    pub fn offer(&mut self, change: impl FnOnce() -> Change) {
        if self.offered.is_multiple_of(self.every) {
            self.keep(change().words(self.offered));
        }
        self.offered += 1;
    }

    pub fn keep(&mut self, words: [u32; WORDS]) {
        if self.ring.len() < self.capacity {
            self.ring.push(words);
        } else {
            self.ring[(self.kept % self.capacity as u64) as usize] = words;
        }
        self.kept += 1;
    }

    /// Oldest first.
    pub fn ordered(&self) -> Vec<[u32; WORDS]> {
        let oldest = if self.ring.len() < self.capacity { 0 } else { (self.kept % self.capacity as u64) as usize };
        self.ring[oldest..].iter().chain(&self.ring[..oldest]).copied().collect()
    }
}
