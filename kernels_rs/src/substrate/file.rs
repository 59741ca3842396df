//! The graph as one file: a header, a table of sections, and the arrays themselves, page by page as they are in memory.
//!
//! Saving writes a file beside the target, makes it durable and renames it: whoever is interrupted leaves the old file or
//! the new one. Opening maps the file, private to the process, and copies nothing; every section has a checksum, and an
//! error names the section that is damaged.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytemuck::{cast_slice, Pod};

use crate::substrate::graph::{Graph, Layer, Nodes, Pool, Relation};
use crate::substrate::learn::Modulator;
use crate::substrate::memory::{Buffer, Memory};
use crate::substrate::spread::Active;
use crate::substrate::trace::{Trace, WORDS};
use crate::substrate::working::Working;
use crate::threads::for_each;

const MAGIC: &[u8; 8] = b"BOUTONGR";
const VERSION: u32 = 1;
const HEADER: usize = 32;
const ENTRY: usize = 64;
const NAME: usize = 40;
const PAGE: usize = 4096;
/// Bytes whose checksum one job makes.
const BLOCK: usize = 4 << 20;

struct Entry {
    name: String,
    offset: usize,
    bytes: usize,
    crc: u32,
}

impl Graph {
    fn scalars(&self) -> Vec<u64> {
        let trace = self.trace.as_ref().map_or([0; 4], |t| [t.capacity as u64, t.every, t.offered, t.kept]);
        let floats = [
            self.modulator.value,
            self.eligibility_scale,
            self.working.decay,
            self.working.floor,
            self.working.held.scale,
        ];
        let whole = [
            self.count as u64,
            self.live,
            self.clock as u64,
            self.seed,
            self.drawn,
            self.working.capacity as u64,
            self.settled as u64,
        ];
        whole.into_iter().chain(trace).chain(floats.map(|x| x.to_bits() as u64)).collect()
    }

    /// Write everything, and the caller's own `extra` bytes, in place of the file `path`.
    pub fn save(&self, path: &Path, extra: &[u8]) -> Result<(), String> {
        let scalars = self.scalars();
        let names = self.relations.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join("\n");
        let weights: Vec<f32> = self.relations.iter().map(|r| r.weight).collect();
        let trace = self.trace.as_ref().map_or(&[][..], |trace| &trace.ring);
        let (n, p, held) = (&self.nodes, &self.pool, &self.working.held);
        let mut sections: Vec<(String, &[u8])> = vec![
            ("scalars".into(), cast_slice(&scalars)),
            ("relation names".into(), names.as_bytes()),
            ("relation weights".into(), cast_slice(&weights)),
            ("decay".into(), cast_slice(&n.decay)),
            ("threshold".into(), cast_slice(&n.threshold)),
            ("bias".into(), cast_slice(&n.bias)),
            ("kind".into(), &n.kind),
            ("fired".into(), cast_slice(&n.fired)),
            ("last".into(), cast_slice(&n.last)),
            ("target".into(), cast_slice(&p.target)),
            ("weight".into(), cast_slice(&p.weight)),
            ("eligibility".into(), cast_slice(&p.eligibility)),
            ("working memory ids".into(), cast_slice(&held.ids)),
            ("working memory levels".into(), cast_slice(&held.levels)),
            ("trace".into(), cast_slice(trace)),
            ("extra".into(), extra),
        ];
        for (relation, layer) in self.layers.iter().enumerate() {
            sections.push((format!("rows {relation}"), cast_slice(&layer.place)));
            sections.push((format!("room {relation}"), cast_slice(&layer.room)));
        }
        replace(path, |file| write(file, &sections))
            .map_err(|error| format!("{} cannot be written: {error}", path.display()))
    }

    /// The graph of a file and its extra bytes. Without `verify` the checksums of the arrays are not looked at.
    pub fn open(path: &Path, verify: bool, threads: usize) -> Result<(Graph, Vec<u8>), String> {
        let named = |error: String| format!("{} cannot be opened: {error}", path.display());
        let file = File::open(path).map_err(|error| named(error.to_string()))?;
        let memory = Arc::new(Memory::of_file(&file).map_err(named)?);
        let table = table(memory.bytes()).map_err(named)?;
        if verify {
            check(&Memory::to_read(&file).map_err(named)?, &table, threads).map_err(named)?;
        }
        Reader { memory, table }.graph().map_err(named)
    }
}

fn write(file: &mut File, sections: &[(String, &[u8])]) -> std::io::Result<()> {
    let mut table = Vec::with_capacity(sections.len() * ENTRY);
    let mut offset = (HEADER + sections.len() * ENTRY).next_multiple_of(PAGE);
    for (name, bytes) in sections {
        let mut entry = [0u8; ENTRY];
        entry[..name.len()].copy_from_slice(name.as_bytes());
        entry[NAME..NAME + 8].copy_from_slice(&(offset as u64).to_le_bytes());
        entry[NAME + 8..NAME + 16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        entry[NAME + 16..NAME + 20].copy_from_slice(&crc32fast::hash(bytes).to_le_bytes());
        table.extend(entry);
        offset = (offset + bytes.len()).next_multiple_of(PAGE);
    }
    let mut header = Vec::with_capacity(HEADER);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((sections.len() as u32).to_le_bytes());
    header.extend(crc32fast::hash(&table).to_le_bytes());
    let own = crc32fast::hash(&header);
    header.extend(own.to_le_bytes());
    header.resize(HEADER, 0);
    header.extend(table);
    put(file, &header)?;
    sections.iter().try_for_each(|(_, bytes)| put(file, bytes))
}

/// The bytes, and zeros up to the next page.
fn put(file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    file.write_all(bytes)?;
    file.write_all(&[0; PAGE][..bytes.len().next_multiple_of(PAGE) - bytes.len()])
}

/// Write beside `path`, make durable, rename.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> std::io::Result<()> {
    let name = path.file_name().ok_or_else(|| std::io::Error::other("it has no name"))?.to_string_lossy();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = folder.join(format!(".{name}.{}.partial", std::process::id()));
    let done = (|| {
        let mut file = File::create(&beside)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if done.is_err() {
        let _ = fs::remove_file(&beside);
    } else if let Ok(folder) = File::open(folder) {
        // The rename itself; some file systems cannot.
        let _ = folder.sync_all();
    }
    done
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> usize {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes) as usize
}

fn table(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    if bytes.len() < HEADER || &bytes[..8] != MAGIC {
        return Err("it is not a file of a graph".into());
    }
    if number(bytes, 20) != crc32fast::hash(&bytes[..20]) {
        return Err("section 'header' is damaged".into());
    }
    if number(bytes, 8) != VERSION {
        return Err(format!("it has version {}, but {VERSION} is known here", number(bytes, 8)));
    }
    let end = HEADER + number(bytes, 12) as usize * ENTRY;
    if bytes.len() < end || number(bytes, 16) != crc32fast::hash(&bytes[HEADER..end]) {
        return Err("section 'table' is damaged".into());
    }
    let entries = bytes[HEADER..end].chunks(ENTRY).map(|entry| {
        let name: Vec<u8> = entry[..NAME].iter().copied().take_while(|&c| c != 0).collect();
        let name = String::from_utf8_lossy(&name).into_owned();
        let (offset, size, crc) = (long(entry, NAME), long(entry, NAME + 8), number(entry, NAME + 16));
        if offset.checked_add(size).is_none_or(|end| end > bytes.len()) {
            return Err(format!("section '{name}' is cut off"));
        }
        Ok(Entry { name, offset, bytes: size, crc })
    });
    entries.collect()
}

/// Compare all checksums, block by block on all threads; then no row may leave the pool and no edge the nodes, as in a
/// file of good checksums that somebody else made.
fn check(bytes: &[u8], table: &[Entry], threads: usize) -> Result<(), String> {
    let of = |entry: &Entry| &bytes[entry.offset..entry.offset + entry.bytes];
    let blocks: Vec<(usize, &[u8])> =
        table.iter().enumerate().flat_map(|(i, entry)| of(entry).chunks(BLOCK).map(move |block| (i, block))).collect();
    let is_target: Vec<bool> = table.iter().map(|entry| entry.name == "target").collect();
    let mut found: Vec<(crc32fast::Hasher, u32)> = vec![(crc32fast::Hasher::new(), 0); blocks.len()];
    for_each(threads, found.iter_mut().zip(&blocks).collect(), |((sum, most), (section, block))| {
        sum.update(block);
        if is_target[*section] {
            // While the block is at hand.
            *most =
                bytemuck::try_cast_slice(block).map_or(0, |targets: &[u32]| targets.iter().fold(0, |m, &t| m.max(t)));
        }
    })?;
    let mut whole: Vec<crc32fast::Hasher> = vec![crc32fast::Hasher::new(); table.len()];
    for ((section, _), (sum, _)) in blocks.iter().zip(&found) {
        whole[*section].combine(sum);
    }
    if let Some((entry, _)) = table.iter().zip(whole).find(|(entry, sum)| sum.clone().finalize() != entry.crc) {
        return Err(format!("section '{}' is damaged", entry.name));
    }
    let size = |name: &str| table.iter().find(|entry| entry.name == name).map_or(0, |entry| entry.bytes);
    let (nodes, slots) = (size("kind"), size("target") / size_of::<u32>());
    if slots > 0 && found.iter().any(|&(_, most)| most as usize >= nodes) {
        return Err("section 'target' names a node that does not exist".into());
    }
    for entry in table {
        let Some(relation) = entry.name.strip_prefix("rows ") else { continue };
        let room = table.iter().find(|other| other.name.strip_prefix("room ") == Some(relation)).map_or(&[][..], of);
        let rows: &[[u32; 2]] = bytemuck::try_cast_slice(of(entry)).unwrap_or(&[]);
        let room: &[u32] = bytemuck::try_cast_slice(room).unwrap_or(&[]);
        let inside = |(&[start, len], &room): (&[u32; 2], &u32)| len <= room && start as usize + room as usize <= slots;
        if rows.len() != room.len() || !rows.iter().zip(room).all(inside) {
            return Err(format!("section '{}' has a row outside of the edges", entry.name));
        }
    }
    Ok(())
}

struct Reader {
    memory: Arc<Memory>,
    table: Vec<Entry>,
}

impl Reader {
    fn section(&self, name: &str) -> Result<&Entry, String> {
        self.table.iter().find(|entry| entry.name == name).ok_or_else(|| format!("section '{name}' is missing"))
    }

    fn bytes(&self, name: &str) -> Result<&[u8], String> {
        let entry = self.section(name)?;
        Ok(&self.memory.bytes()[entry.offset..entry.offset + entry.bytes])
    }

    /// A copy.
    fn list<T: Pod>(&self, name: &str) -> Result<Vec<T>, String> {
        bytemuck::try_cast_slice(self.bytes(name)?).map(<[T]>::to_vec).map_err(|e| format!("section '{name}': {e}"))
    }

    /// The array where it is, which must have `len` elements.
    fn buffer<T: Pod>(&self, name: &str, len: usize) -> Result<Buffer<T>, String> {
        let entry = self.section(name)?;
        if entry.bytes != len * size_of::<T>() {
            return Err(format!("section '{name}' has {} bytes, but {} are needed", entry.bytes, len * size_of::<T>()));
        }
        Buffer::mapped(self.memory.clone(), entry.offset, len)
    }

    fn graph(&self) -> Result<(Graph, Vec<u8>), String> {
        let scalars: [u64; 16] =
            self.list("scalars")?.try_into().map_err(|_| "section 'scalars' has the wrong size".to_owned())?;
        let [count, live, clock, seed, drawn, capacity, settled, ring, every, offered, kept, floats @ ..] = scalars;
        let [modulator, eligibility_scale, decay, floor, scale] = floats.map(|x| f32::from_bits(x as u32));
        let count = count as usize;
        let nodes = Nodes {
            decay: self.buffer("decay", count)?,
            threshold: self.buffer("threshold", count)?,
            bias: self.buffer("bias", count)?,
            kind: self.buffer("kind", count)?,
            fired: self.buffer("fired", count)?,
            last: self.buffer("last", count)?,
        };
        let slots = self.section("target")?.bytes / size_of::<u32>();
        let eligible = if self.section("eligibility")?.bytes > 0 { slots } else { 0 };
        let pool = Pool {
            target: self.buffer("target", slots)?,
            weight: self.buffer("weight", slots)?,
            eligibility: self.buffer("eligibility", eligible)?,
            free: Vec::new(),
        };
        let names = String::from_utf8_lossy(self.bytes("relation names")?).into_owned();
        let weights: Vec<f32> = self.list("relation weights")?;
        let relations: Vec<Relation> =
            names.lines().zip(weights).map(|(name, weight)| Relation { name: name.to_owned(), weight }).collect();
        let mut layers = Vec::new();
        for relation in 0..relations.len() {
            let rows = format!("rows {relation}");
            let len = if self.section(&rows)?.bytes > 0 { count } else { 0 };
            layers
                .push(Layer { place: self.buffer(&rows, len)?, room: self.buffer(&format!("room {relation}"), len)? });
        }
        let held = Active { ids: self.list("working memory ids")?, levels: self.list("working memory levels")?, scale };
        let trace: Vec<[u32; WORDS]> = self.list("trace")?;
        let graph = Graph {
            count,
            nodes,
            relations,
            layers,
            pool,
            live,
            clock: clock as u32,
            settled: settled as u32,
            transposed: None,
            scratch: None,
            modulator: Modulator { value: modulator },
            working: Working { decay, capacity: capacity as usize, floor, held },
            trace: (ring > 0).then_some(Trace { ring: trace, capacity: ring as usize, every, offered, kept }),
            eligibility_scale,
            seed,
            drawn,
        };
        Ok((graph, self.bytes("extra")?.to_vec()))
    }
}
