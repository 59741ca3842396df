//! Working memory: a few nodes whose levels fade with every tick and join the seeds of the next spread.

use crate::substrate::spread::Active;

#[derive(Clone, Debug, PartialEq)]
pub struct Working {
    /// What is left of a level after a tick, the most nodes held, and the level below which one is dropped.
    pub decay: f32,
    pub capacity: usize,
    pub floor: f32,
    pub held: Active,
}

impl Working {
    pub fn new(decay: f32, capacity: usize, floor: f32) -> Result<Working, String> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(format!("decay = {decay} must be from 0 to 1"));
        }
        if floor.is_nan() || floor < 0.0 {
            return Err(format!("floor = {floor} must be at least 0"));
        }
        Ok(Working { decay, capacity, floor, held: Active::default() })
    }

    /// Fade.
    pub fn tick(&mut self) {
        self.held.levels.iter_mut().for_each(|level| *level *= self.decay);
        self.settle();
    }

    /// Take in active nodes at `gain` times their level; of two levels of a node the higher stays.
    pub fn absorb(&mut self, active: &Active, gain: f32) {
        let mut ids = std::mem::take(&mut self.held.ids);
        let mut levels = std::mem::take(&mut self.held.levels);
        ids.extend(&active.ids);
        levels.extend(active.levels.iter().map(|level| gain * level));
        self.held = Active::of(&ids, &levels);
        self.settle();
    }

    /// Only what is strong enough, and of that the strongest; ties to the lower id.
    fn settle(&mut self) {
        let held = self.held.ids.iter().copied().zip(self.held.levels.iter().copied());
        let mut kept: Vec<(u32, f32)> = held.filter(|x| x.1 >= self.floor && x.1 > 0.0).collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        kept.truncate(self.capacity);
        kept.sort_by_key(|x| x.0);
        (self.held.ids, self.held.levels) = kept.into_iter().unzip();
    }
}

impl Default for Working {
    fn default() -> Self {
        Working { decay: 0.7, capacity: 64, floor: 0.01, held: Active::default() }
    }
}
