//! Making, finding and removing edges.

use crate::substrate::graph::{Graph, Layer, Pool};
use crate::substrate::memory::Buffer;
use crate::substrate::{bounded, same_length, within, MOST_WEIGHT};

/// Room of the smallest row that grows.
const SMALLEST: usize = 4;

/// A target and the bits of a weight in one number, so that they are moved together.
type Packed = u64;

fn pack(target: u32, weight: f32) -> Packed {
    (target as u64) << 32 | weight.to_bits() as u64
}

fn target(edge: Packed) -> u32 {
    (edge >> 32) as u32
}

fn weight(edge: Packed) -> f32 {
    f32::from_bits(edge as u32)
}

impl Pool {
    /// A place for at least `edges` edges: where, and the room there.
    fn allocate(&mut self, edges: usize) -> Result<(usize, usize), String> {
        let room = edges.max(SMALLEST).next_power_of_two();
        let class = (room / SMALLEST).trailing_zeros() as usize;
        if let Some(start) = self.free.get_mut(class).and_then(Vec::pop) {
            return Ok((start as usize, room));
        }
        Ok((self.extend(room)?, room))
    }

    /// `room` new slots at the end.
    fn extend(&mut self, room: usize) -> Result<usize, String> {
        let start = self.target.len();
        let end = start.checked_add(room).filter(|&end| end <= u32::MAX as usize);
        let end = end.ok_or_else(|| format!("edges = {start} + {room} are too many: at most {} fit", u32::MAX))?;
        self.target.resize(end, 0)?;
        self.weight.resize(end, 0.0)?;
        if !self.eligibility.is_empty() {
            self.eligibility.resize(end, 0.0)?;
        }
        Ok(start)
    }

    fn release(&mut self, start: usize, room: usize) {
        if room >= SMALLEST {
            let class = (room / SMALLEST).ilog2() as usize;
            if self.free.len() <= class {
                self.free.resize(class + 1, Vec::new());
            }
            self.free[class].push(start as u32);
        }
    }

    fn put(&mut self, slot: usize, edge: Packed, eligibility: f32) {
        self.target[slot] = target(edge);
        self.weight[slot] = weight(edge);
        if let Some(x) = self.eligibility.get_mut(slot) {
            *x = eligibility;
        }
    }
}

/// Edges to be made, by source: ascending targets, the last of equal ones.
struct Rows {
    start: Vec<u32>,
    edges: Vec<Packed>,
    len: Vec<u32>,
}

impl Rows {
    fn of(nodes: usize, sources: &[u32], targets: &[u32], weights: &[f32]) -> Rows {
        let mut start = vec![0u32; nodes + 1];
        for &source in sources {
            start[source as usize + 1] += 1;
        }
        for i in 0..nodes {
            start[i + 1] += start[i];
        }
        let mut next = start.clone();
        let mut edges = vec![0; sources.len()];
        for ((&source, &target), &weight) in sources.iter().zip(targets).zip(weights) {
            let place = &mut next[source as usize];
            edges[*place as usize] = pack(target, weight);
            *place += 1;
        }
        let len = (0..nodes).map(|i| sort(&mut edges[start[i] as usize..start[i + 1] as usize])).collect();
        Rows { start, edges, len }
    }

    fn row(&self, node: usize) -> &[Packed] {
        let start = self.start[node] as usize;
        &self.edges[start..start + self.len[node] as usize]
    }
}

/// Sort by target and keep the last of equal ones; returns how many are left.
fn sort(row: &mut [Packed]) -> u32 {
    if row.is_sorted_by(|&a, &b| target(a) < target(b)) {
        return row.len() as u32;
    }
    row.sort_by_key(|&edge| target(edge));
    let mut kept = 0;
    for i in 0..row.len() {
        if kept > 0 && target(row[kept - 1]) == target(row[i]) {
            kept -= 1;
        }
        row[kept] = row[i];
        kept += 1;
    }
    kept as u32
}

impl Graph {
    /// Make edges of one relation, or set the weights of those that exist; of equal ones the last counts. Returns how
    /// many are new.
    pub fn connect(
        &mut self,
        relation: usize,
        sources: &[u32],
        targets: &[u32],
        weights: &[f32],
    ) -> Result<usize, String> {
        self.check_relation(relation)?;
        same_length("targets", targets.len(), "sources", sources.len())?;
        same_length("weights", weights.len(), "sources", sources.len())?;
        within("sources", sources, self.count)?;
        within("targets", targets, self.count)?;
        bounded("weights", weights, MOST_WEIGHT)?;
        if sources.is_empty() {
            return Ok(0);
        }
        if sources.len() > u32::MAX as usize {
            return Err(format!("sources has {} elements, but at most {} fit", sources.len(), u32::MAX));
        }
        let rows = Rows::of(self.count, sources, targets, weights);
        self.transposed = None;
        let made = if self.layers[relation].is_empty() {
            self.fill(relation, &rows)?
        } else {
            let given = (0..self.count).filter(|&node| rows.len[node] > 0);
            given.map(|node| self.merge(relation, node, rows.row(node))).sum::<Result<usize, String>>()?
        };
        self.live += made as u64;
        Ok(made)
    }

    /// All rows of a relation without edges, one behind the other.
    fn fill(&mut self, relation: usize, rows: &Rows) -> Result<usize, String> {
        let total = rows.len.iter().map(|&len| len as usize).sum();
        let mut slot = self.pool.extend(total)?;
        let mut layer = Layer { place: Buffer::zeros(self.count)?, room: Buffer::of(&rows.len)? };
        for node in 0..self.count {
            let row = rows.row(node);
            layer.place[node] = [slot as u32, rows.len[node]];
            let here = slot..slot + row.len();
            for ((to, w), &edge) in
                self.pool.target[here.clone()].iter_mut().zip(&mut self.pool.weight[here.clone()]).zip(row)
            {
                (*to, *w) = (target(edge), weight(edge));
            }
            slot = here.end;
        }
        self.layers[relation] = layer;
        Ok(total)
    }

    /// Put sorted edges into the row of `node`; returns how many are new.
    fn merge(&mut self, relation: usize, node: usize, edges: &[Packed]) -> Result<usize, String> {
        let old = self.layers[relation].row(node as u32);
        let mut missing = Vec::new();
        for &edge in edges {
            match self.pool.target[old.clone()].binary_search(&target(edge)) {
                Ok(at) => self.pool.weight[old.start + at] = weight(edge),
                Err(_) => missing.push(edge),
            }
        }
        if missing.is_empty() {
            return Ok(0);
        }
        let len = old.len() + missing.len();
        let had_room = self.layers[relation].room[node] as usize;
        let (start, room) = if len > had_room { self.pool.allocate(len)? } else { (old.start, had_room) };
        // From the end, so that nothing is overwritten before it has moved.
        let (mut from, mut new) = (old.len(), missing.len());
        for to in (0..len).rev() {
            let last = (from > 0).then(|| self.pool.target[old.start + from - 1]);
            if new > 0 && last.is_none_or(|last| target(missing[new - 1]) > last) {
                new -= 1;
                self.pool.put(start + to, missing[new], 0.0);
            } else {
                from -= 1;
                self.move_edge(old.start + from, start + to);
            }
        }
        if start != old.start {
            self.pool.release(old.start, had_room);
        }
        let layer = &mut self.layers[relation];
        layer.place[node] = [start as u32, len as u32];
        layer.room[node] = room as u32;
        Ok(missing.len())
    }

    fn move_edge(&mut self, from: usize, to: usize) {
        if from != to {
            let edge = pack(self.pool.target[from], self.pool.weight[from]);
            let eligibility = self.pool.eligibility.get(from).copied().unwrap_or(0.0);
            self.pool.put(to, edge, eligibility);
        }
    }

    /// The slot of an edge.
    pub fn find(&self, relation: usize, source: u32, target: u32) -> Option<usize> {
        let layer = &self.layers[relation];
        if layer.is_empty() {
            return None;
        }
        let row = layer.row(source);
        self.pool.target[row.clone()].binary_search(&target).ok().map(|at| row.start + at)
    }

    /// Remove the edges of a relation of which `drop(source, slot)`; returns how many.
    pub fn remove(&mut self, relation: usize, mut drop: impl FnMut(u32, usize) -> bool) -> usize {
        let mut removed = 0;
        for node in 0..self.layers[relation].place.len() as u32 {
            let row = self.layers[relation].row(node);
            let mut kept = row.start;
            for slot in row.clone() {
                if !drop(node, slot) {
                    self.move_edge(slot, kept);
                    kept += 1;
                }
            }
            removed += row.end - kept;
            self.layers[relation].place[node as usize][1] = (kept - row.start) as u32;
        }
        self.live -= removed as u64;
        if removed > 0 {
            self.transposed = None;
        }
        removed
    }

    /// Remove these edges, where they exist; returns how many did.
    pub fn disconnect(&mut self, relation: usize, sources: &[u32], targets: &[u32]) -> Result<usize, String> {
        self.check_relation(relation)?;
        same_length("targets", targets.len(), "sources", sources.len())?;
        within("sources", sources, self.count)?;
        within("targets", targets, self.count)?;
        let mut slots: Vec<_> = sources.iter().zip(targets).filter_map(|(&s, &t)| self.find(relation, s, t)).collect();
        slots.sort_unstable();
        Ok(self.remove(relation, |_, slot| slots.binary_search(&slot).is_ok()))
    }

    /// Move all rows together, without slack.
    pub fn compact(&mut self) -> Result<(), String> {
        let old = &self.pool;
        let eligible = !old.eligibility.is_empty();
        let live = self.live as usize;
        let mut new = Pool {
            target: Buffer::zeros(live)?,
            weight: Buffer::zeros(live)?,
            eligibility: Buffer::zeros(if eligible { live } else { 0 })?,
            free: Vec::new(),
        };
        let mut slot = 0;
        for layer in &mut self.layers {
            for node in 0..layer.place.len() {
                let row = layer.row(node as u32);
                let here = slot..slot + row.len();
                new.target[here.clone()].copy_from_slice(&old.target[row.clone()]);
                new.weight[here.clone()].copy_from_slice(&old.weight[row.clone()]);
                if eligible {
                    new.eligibility[here.clone()].copy_from_slice(&old.eligibility[row]);
                }
                layer.place[node][0] = slot as u32;
                layer.room[node] = layer.place[node][1];
                slot = here.end;
            }
        }
        self.pool = new;
        Ok(())
    }
}
