//! Bringing a store back: checkpoint, footers, WAL, and what only the rings hold.
//!
//! Nothing that is read here is changed, but for segment files that were not sealed: they get the records that the dead process had not written out, and their
//! footers. Both would be written again, with the same bytes, if recovery is killed: the next manifest alone ends it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Sender;

use super::files;
use super::flush::write_footer;
use crate::codec::{round_down, round_up};
use crate::config::{OnHostCrash, Settings};
use crate::id::{Location, Lsn, Position, SegmentId, StoreId};
use crate::index::batch::Batch;
use crate::index::geometry::{Entry, Geometry};
use crate::index::{self, Index};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, Disk, File, Mapping, SECTOR};
use crate::manifest::{Checkpoint, Manifest, Segment, SegmentState};
use crate::segment::footer;
use crate::segment::format::{self, Life};
use crate::segment::reader;
use crate::segment::table::{self, Row, State, WalStart};
use crate::segment::writer::Full;
use crate::wal::format::Mutation;
use crate::wal::replay::{Replay, Summary};

/// What kind of stop preceded an open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Start {
    /// None: the store is new.
    #[default]
    Created,
    /// An orderly close.
    Clean,
    /// The process ended without closing; the host went on.
    Process,
    /// The host went down.
    Host,
}

/// What recovery found and did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// What preceded.
    pub kind: Start,
    /// Entries loaded from the checkpoint.
    pub checkpoint_entries: u64,
    /// Whether the checkpoint was missing, damaged or of another geometry, so that the index was rebuilt from footers alone.
    pub rebuilt: bool,
    /// Entries applied from footers of segments that the checkpoint does not cover.
    pub footer_entries: u64,
    /// WAL frames read.
    pub wal_frames: u64,
    /// Entries in the index afterwards.
    pub entries: u64,
    /// Bytes of WAL above the durable watermark that were not whole and were cut.
    pub torn_bytes: u64,
    /// Whether one copy of the manifest was missing or not whole: its writing was interrupted, or it rotted. The other copy says everything.
    pub manifest_repaired: bool,
    /// What was found damaged, one line each.
    pub damaged: Vec<String>,
    /// The host went down: mutations after this LSN may be missing, since they were not synced. Everything up to it is there.
    pub maybe_lost_after: Option<Lsn>,
    /// The store was alive at least until this store time, in ms since 1970.
    pub alive_until_ms: u64,
    /// From the call of open until the cache could serve.
    pub took: Duration,
}

/// A store that is ready for its next manifest.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) manifest: Manifest,
    pub(super) index: Index,
    pub(super) report: RecoveryReport,
    /// No WAL position at or above it was ever used.
    pub(super) wal_limit: u64,
}

/// A segment that only the WAL describes.
#[derive(Debug)]
struct Unsealed {
    row: Row,
    entries: Vec<footer::Entry>,
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    store: StoreId,
    rows: Vec<Row>,
    index: Index,
    /// Changes that are not in the index yet.
    batch: Batch,
    report: RecoveryReport,
    floor: Position,
    files: HashMap<SegmentId, Arc<dyn File>>,
}

/// Brings back the store that `manifest` describes.
pub(super) fn recover(disk: &dyn Disk, settings: &Settings, mut manifest: Manifest, manifest_damaged: bool) -> io::Result<Recovered> {
    let kind = match manifest.clean {
        true => Start::Clean,
        false if manifest.boot_id == disk.boot_id() => Start::Process,
        false => Start::Host,
    };
    let mut report = RecoveryReport { kind, alive_until_ms: manifest.time_ms, ..RecoveryReport::default() };
    report.manifest_repaired = manifest_damaged;
    let cold = kind == Start::Host && settings.on_host_crash == OnHostCrash::Cold;
    if cold {
        forget_all(&mut manifest);
    }
    let fresh = Segment { size: settings.segment_size, ..Segment::default() };
    let count = manifest.segments.len().max(settings.segments as usize);
    manifest.segments.resize(count, fresh);
    let size_max = manifest.segments.iter().map(|s| s.size).max().unwrap_or(0).max(settings.segment_size);
    let geometry = Geometry::new(count as u32, size_max);
    let mut recovery = Recovery {
        disk,
        store: manifest.store,
        rows: rows_of(&manifest.segments),
        index: Index::new(geometry),
        batch: Batch::new(geometry),
        report,
        floor: manifest.floor,
        files: HashMap::new(),
    };
    recovery.load_sealed(manifest.checkpoint, manifest.hash_seed)?;
    let mut wal_limit = manifest.wal_start;
    if kind != Start::Clean {
        let (wal_ring, _) = disk.map(files::RINGS[1], manifest.wal_ring)?;
        let (segment_ring, _) = disk.map(files::RINGS[0], manifest.segment_ring)?;
        let mut replay = Replay::open(disk, manifest.store, wal_ring, manifest.wal_payload)?;
        wal_limit = replay.limit(manifest.wal_start);
        let summary = match cold {
            true => Summary { end: manifest.wal_start, ..Summary::default() },
            false => recovery.replay(&mut replay, &manifest, kind, segment_ring.as_ref())?,
        };
        manifest.next_lsn = manifest.next_lsn.max(summary.last.next());
        manifest.time_ms = manifest.time_ms.max(summary.time_ms);
        wal_limit = wal_limit.max(replay.limit(summary.end));
    }
    Ok(recovery.finish(manifest, wal_limit))
}

fn forget_all(manifest: &mut Manifest) {
    manifest.checkpoint = None;
    for segment in &mut manifest.segments {
        segment.state = SegmentState::Free;
    }
}

fn rows_of(segments: &[Segment]) -> Vec<Row> {
    let row = |(i, s): (usize, &Segment)| Row {
        state: match s.state {
            SegmentState::Free => State::Free,
            SegmentState::Open => State::Full,
            SegmentState::Sealed => State::Sealed,
            SegmentState::Quarantined => State::Quarantined,
        },
        size: s.size,
        life: Life { id: SegmentId(i as u32), base: s.base, base_lsn: s.base_lsn },
        last_lsn: s.last_lsn,
        wal_start: WalStart::default(),
    };
    segments.iter().enumerate().map(row).collect()
}

impl Recovery<'_> {
    fn file(&mut self, id: SegmentId) -> io::Result<Arc<dyn File>> {
        if let Some(file) = self.files.get(&id) {
            return Ok(Arc::clone(file));
        }
        let file = open_segment(self.disk, &self.rows[id.index()])?;
        self.files.insert(id, Arc::clone(&file));
        Ok(file)
    }

    /// Brings the index to where sealed segments say: the checkpoint, then the footers of what was sealed since. Without a checkpoint, all footers.
    fn load_sealed(&mut self, named: Option<Checkpoint>, hash_seed: u64) -> io::Result<()> {
        if let Some(checkpoint) = named {
            let loaded = self.with_footers(checkpoint.start, hash_seed, |recovery| recovery.load_checkpoint(checkpoint.sequence))?;
            if loaded {
                return Ok(());
            }
            // Another geometry is as good a reason as damage: footers say everything.
            self.report.rebuilt = true;
            self.index = Index::new(self.index.geometry());
        }
        self.with_footers(Position(0), hash_seed, |_| Ok(true)).map(drop)
    }

    /// Runs `first`, and if it says so applies the footers of sealed segments that end after `start`, oldest first. They are read and sorted by a thread of their own
    /// meanwhile.
    fn with_footers(&mut self, start: Position, hash_seed: u64, first: impl FnOnce(&mut Self) -> io::Result<bool>) -> io::Result<bool> {
        let after = |r: &&Row| r.state == State::Sealed && r.life.base.plus(r.size) > start;
        let mut rows: Vec<Row> = self.rows.iter().filter(after).copied().collect();
        rows.sort_by_key(|r| r.life.base);
        let reader = FooterReader { disk: self.disk, store: self.store, hash_seed, geometry: self.index.geometry(), floor: self.floor };
        let (to, from) = crossbeam::channel::bounded(1);
        std::thread::scope(|scope| {
            scope.spawn(move || reader.read_all(&rows, &to));
            if !first(self)? {
                return Ok(false);
            }
            for part in from {
                match part {
                    Footers::Entries(mut batch, count) => {
                        batch.merge(&self.index);
                        self.report.footer_entries += count;
                    }
                    Footers::Lost(row, lost, to) => self.lose(&row, &lost, to),
                    Footers::Unreadable(row, error) => {
                        self.rows[row.life.id.index()].state = State::Free;
                        self.lose(&row, &format!("it cannot be read ({error})"), row.size as u32);
                    }
                }
            }
            Ok(true)
        })
    }

    /// A stretch of a sealed segment is lost: what it superseded or deleted is unknown, so nothing before its end is served.
    fn lose(&mut self, row: &Row, what: &str, to: u32) {
        self.report.damaged.push(format!("segment {}: {what}; everything older is dropped", row.life.id));
        self.raise_floor(row.life.base.plus(to.into()));
    }

    /// Loads a checkpoint. False if it is not there, not whole, or of another geometry.
    fn load_checkpoint(&mut self, sequence: u64) -> io::Result<bool> {
        let file = match self.disk.open(&files::checkpoint(sequence)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Ok(self.checkpoint_unreadable(&e)),
        };
        let (rows, floor) = (self.rows.clone(), self.floor);
        let keep = move |bases: &[u64]| -> Box<dyn Fn(Location) -> bool> {
            let same: Vec<Option<Position>> = rows
                .iter()
                .zip(bases.iter().copied().chain(std::iter::repeat(0)))
                .map(|(row, base)| (base != 0 && row.life.base.0 == base && row.state != State::Free).then_some(row.life.base))
                .collect();
            Box::new(move |at: Location| match same.get(at.segment.index()) {
                Some(Some(base)) => base.plus(at.offset.into()) >= floor,
                _ => false,
            })
        };
        let loaded = match index::checkpoint::load(self.store, sequence, file.as_ref(), &self.index, keep) {
            Ok(loaded) => loaded,
            Err(e) => return Ok(self.checkpoint_unreadable(&e)),
        };
        self.report.checkpoint_entries = loaded.unwrap_or(0);
        Ok(loaded.is_some())
    }

    /// A checkpoint that cannot be read costs time only.
    fn checkpoint_unreadable(&mut self, error: &io::Error) -> bool {
        self.report.damaged.push(format!("the checkpoint cannot be read: {error}"));
        false
    }

    fn apply(&mut self, row: &Row, entry: &footer::Entry) {
        change(&mut self.batch, row, entry, self.floor);
        if self.batch.is_full() {
            self.batch.merge(&self.index);
        }
    }

    /// Forgets every entry below `floor`, for good.
    fn raise_floor(&mut self, floor: Position) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        self.batch.merge(&self.index);
        let rows = &self.rows;
        self.index.retain(|entry| rows[entry.location.segment.index()].life.base.plus(entry.location.offset.into()) >= floor);
    }

    /// Applies the WAL, brings what only the rings hold into the segment files, and seals them.
    fn replay(&mut self, replay: &mut Replay, manifest: &Manifest, kind: Start, ring: &dyn Mapping) -> io::Result<Summary> {
        let mut unsealed = self.unsealed();
        let mut inline = Vec::new();
        let mut unknown = Position(0);
        let summary =
            replay.run((manifest.wal_start, manifest.wal_lsn), manifest.durable, kind == Start::Process, |mutation, moved, bytes| {
                let Some(i) = unsealed.iter().position(|u| contains(&u.row, mutation.record)) else {
                    // Sealed segments speak for themselves. One that the manifest does not know can only be a lost manifest's.
                    if !self.rows.iter().any(|row| row.state == State::Sealed && contains(row, mutation.record)) {
                        unknown = unknown.max(mutation.record);
                    }
                    return Ok(());
                };
                let (row, entry) = (unsealed[i].row, entry_of(&unsealed[i].row, mutation));
                if moved && kind == Start::Host && !self.is_there(&row, &entry, ring) {
                    // The move did not last, so it did not happen: the old place is not reused before the new one is synced.
                    return Ok(());
                }
                self.apply(&row, &entry);
                unsealed[i].entries.push(entry);
                if !bytes.is_empty() {
                    inline.push((i, entry, bytes.to_vec()));
                }
                Ok(())
            })?;
        self.batch.merge(&self.index);
        self.report.wal_frames = summary.frames;
        self.report.torn_bytes = summary.torn_bytes;
        self.report.alive_until_ms = self.report.alive_until_ms.max(summary.time_ms);
        let durable = summary.durable.max(manifest.durable);
        if kind == Start::Host {
            self.report.maybe_lost_after = Some(durable);
        }
        if unknown > Position(0) {
            self.report.damaged.push("the WAL names a segment that the manifest does not know; everything older is dropped".to_owned());
            self.raise_floor(unknown);
        }
        for hole in &summary.holes {
            let (from, to) = (hole.from, hole.to);
            self.report.damaged.push(format!("WAL bytes {from} to {to} are lost; everything older is dropped"));
            self.raise_floor(hole.floor);
        }
        self.restore(&mut unsealed, &inline, ring, (kind == Start::Host).then_some(durable))?;
        for segment in unsealed {
            self.seal(segment)?;
        }
        Ok(summary)
    }

    /// Whether the record of `entry` can be had, from the ring or from its file.
    fn is_there(&mut self, row: &Row, entry: &footer::Entry, ring: &dyn Mapping) -> bool {
        let at = row.life.base.plus(entry.offset.into());
        let mut bytes = vec![0; entry.len as usize];
        crate::io::ring::copy(ring.words(), at.0, &mut bytes);
        let in_ring = format::decode_record(self.store, at, row.life.base_lsn, &bytes).is_some();
        in_ring || self.file(row.life.id).and_then(|file| verifies_in_file(self.store, row, entry, file.as_ref())).unwrap_or(false)
    }

    fn unsealed(&self) -> Vec<Unsealed> {
        let mut rows: Vec<Row> = self.rows.iter().filter(|r| r.state == State::Full).copied().collect();
        rows.sort_by_key(|r| r.life.base);
        rows.into_iter().map(|row| Unsealed { row, entries: Vec::new() }).collect()
    }

    /// Writes into segment files what the WAL or the ring hold of their records. `verify_after`: records of later versions may be in neither, nor in the file.
    fn restore(
        &mut self,
        unsealed: &mut [Unsealed],
        inline: &[(usize, footer::Entry, Vec<u8>)],
        ring: &dyn Mapping,
        verify_after: Option<Lsn>,
    ) -> io::Result<()> {
        let mut held: HashMap<(usize, u32), &[u8]> = inline.iter().map(|(i, e, bytes)| ((*i, e.offset), &bytes[..])).collect();
        let end_of = |u: &Unsealed| u.entries.last().map(|e| u.row.life.base.0 + u64::from(e.offset + e.len));
        let head = unsealed.iter().filter_map(end_of).max().unwrap_or(0);
        let low = head.saturating_sub(ring.words().len() as u64 * 8);
        for (i, segment) in unsealed.iter_mut().enumerate() {
            if segment.entries.is_empty() {
                continue;
            }
            let mut inline = |offset| held.remove(&(i, offset));
            if let Err(error) = self.restore_segment(segment, &mut inline, ring, low, verify_after) {
                self.give_up(segment, &error);
            }
        }
        Ok(())
    }

    /// Restores one segment: see [`Recovery::restore`]. `low`: the ring holds nothing below it.
    fn restore_segment<'b>(
        &mut self,
        segment: &mut Unsealed,
        inline: &mut dyn FnMut(u32) -> Option<&'b [u8]>,
        ring: &dyn Mapping,
        low: u64,
        verify_after: Option<Lsn>,
    ) -> io::Result<()> {
        let (row, store) = (segment.row, self.store);
        let file = self.file(row.life.id)?;
        let mut patch = Patch::new(file.as_ref());
        let mut from_ring = Vec::new();
        let mut lost = Vec::new();
        for (n, entry) in segment.entries.iter().enumerate() {
            let at = row.life.base.plus(entry.offset.into());
            let verifies = |bytes: &[u8]| format::decode_record(store, at, row.life.base_lsn, bytes).is_some();
            from_ring.resize(entry.len as usize, 0);
            if let Some(bytes) = inline(entry.offset).filter(|bytes| verifies(bytes)) {
                patch.write(entry.offset, bytes)?;
                continue;
            }
            if at.0 >= low {
                crate::io::ring::copy(ring.words(), at.0, &mut from_ring);
                if verifies(&from_ring) {
                    patch.write(entry.offset, &from_ring)?;
                    continue;
                }
            }
            let certain = verify_after.is_none_or(|durable| entry.lsn <= durable);
            if !certain && !verifies_in_file(store, &row, entry, file.as_ref())? {
                lost.push(n);
            }
        }
        patch.flush()?;
        for n in lost {
            // Its frame is there, its bytes are not: the key misses, and no older version of it is served.
            let entry = &mut segment.entries[n];
            let location = Location { segment: row.life.id, offset: entry.offset };
            self.index.remove_if_at(entry.hash, location);
            entry.tombstone = true;
        }
        Ok(())
    }

    /// Forgets a segment that cannot be read or written, and everything older, since what it superseded will not be known any more.
    fn give_up(&mut self, segment: &mut Unsealed, error: &io::Error) {
        let row = segment.row;
        self.report.damaged.push(format!("segment {} cannot be restored: {error}; everything older is dropped", row.life.id));
        segment.entries.clear();
        self.raise_floor(row.life.base.plus(row.size));
    }

    /// Writes the footer of a segment, or frees it if nothing is in it.
    fn seal(&mut self, segment: Unsealed) -> io::Result<()> {
        let id = segment.row.life.id;
        let Some(last) = segment.entries.last() else {
            self.rows[id.index()].state = State::Free;
            return Ok(());
        };
        let mut builder = footer::Builder::default();
        segment.entries.iter().for_each(|entry| builder.push(entry));
        let last_lsn = segment.entries.iter().map(|e| e.lsn).max().unwrap_or(Lsn::ZERO);
        let data_end = last.offset + last.len;
        if u64::from(data_end) + u64::from(builder.blocks() + 1) * BLOCK as u64 > segment.row.size {
            // Gaps cost footer blocks of their own; more of them than a damaged WAL leaves room for.
            let mut segment = segment;
            self.give_up(&mut segment, &io::Error::other("its footer does not fit"));
            self.rows[id.index()].state = State::Free;
            return Ok(());
        }
        let full = Full { life: segment.row.life, size: segment.row.size, data_end, footer: builder, last_lsn };
        let file = self.file(id)?;
        write_footer(self.store, full, file.as_ref())?;
        file.sync()?;
        let row = &mut self.rows[id.index()];
        row.state = State::Sealed;
        row.last_lsn = last_lsn;
        Ok(())
    }

    fn finish(mut self, mut manifest: Manifest, wal_limit: u64) -> Recovered {
        self.batch.merge(&self.index);
        for (segment, row) in manifest.segments.iter_mut().zip(&self.rows) {
            let below_floor = row.life.base.plus(row.size) <= self.floor;
            segment.last_lsn = row.last_lsn;
            segment.state = match row.state {
                State::Quarantined => SegmentState::Quarantined,
                State::Sealed if !below_floor => SegmentState::Sealed,
                _ => SegmentState::Free,
            };
        }
        // No position at or above the next base was ever used, so nothing above it is suspect.
        manifest.floor = self.floor.min(manifest.next_base);
        self.report.entries = self.index.entries();
        Recovered { manifest, index: self.index, report: self.report, wal_limit }
    }
}

/// Notes in `batch` what an entry of a footer, or of the WAL, does to the index.
fn change(batch: &mut Batch, row: &Row, entry: &footer::Entry, floor: Position) {
    if entry.tombstone {
        batch.remove(entry.hash);
    } else if row.life.base.plus(entry.offset.into()) >= floor {
        let location = Location { segment: row.life.id, offset: entry.offset };
        batch.insert(entry.hash, &Entry::new(location, entry.len as usize));
    }
}

/// A part of what footers say, in order.
enum Footers {
    /// Sorted changes, and how many entries they come from.
    Entries(Batch, u64),
    /// Stretches of a segment are lost, up to this offset.
    Lost(Row, String, u32),
    Unreadable(Row, io::Error),
}

/// Reads footers while the checkpoint is loaded.
struct FooterReader<'a> {
    disk: &'a dyn Disk,
    store: StoreId,
    hash_seed: u64,
    geometry: Geometry,
    floor: Position,
}

impl FooterReader<'_> {
    /// Sends everything that the footers of `rows` say, until nobody wants it.
    fn read_all(&self, rows: &[Row], to: &Sender<Footers>) {
        let (mut batch, mut count) = (Batch::new(self.geometry), 0);
        for row in rows {
            let read = open_segment(self.disk, row).and_then(|file| reader::entries(self.store, row, self.hash_seed, file.as_ref()));
            let damage = match &read {
                Ok(contents) if contents.lost == 0 => None,
                Ok(contents) => Some(Footers::Lost(*row, format!("{} stretches lost", contents.lost), contents.lost_to)),
                Err(error) => Some(Footers::Unreadable(*row, io::Error::new(error.kind(), error.to_string()))),
            };
            if batch.is_full() || damage.is_some() {
                batch.sort();
                let full = std::mem::replace(&mut batch, Batch::new(self.geometry));
                let sent = to.send(Footers::Entries(full, std::mem::take(&mut count)));
                if sent.is_err() || damage.is_some_and(|damage| to.send(damage).is_err()) {
                    return;
                }
            }
            let contents = read.unwrap_or_default();
            let floor = self.floor.max(row.life.base.plus(contents.lost_to.into()));
            contents.entries.iter().for_each(|entry| change(&mut batch, row, entry, floor));
            count += contents.entries.len() as u64;
        }
        if !batch.is_empty() {
            batch.sort();
            // Whoever does not want it has given up on the checkpoint and asks again.
            let _unwanted = to.send(Footers::Entries(batch, count));
        }
    }
}

fn open_segment(disk: &dyn Disk, row: &Row) -> io::Result<Arc<dyn File>> {
    let id = row.life.id;
    let file = disk.open(&table::file_name(id))?;
    if file.len() < row.size {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("segment {id} is shorter than it was")));
    }
    Ok(file)
}

fn contains(row: &Row, at: Position) -> bool {
    (row.life.base..row.life.base.plus(row.size)).contains(&at)
}

fn entry_of(row: &Row, m: &Mutation) -> footer::Entry {
    let offset = (m.record.0 - row.life.base.0) as u32;
    footer::Entry { hash: m.hash, offset, len: m.record_len, lsn: m.lsn, tombstone: m.tombstone }
}

fn verifies_in_file(store: StoreId, row: &Row, entry: &footer::Entry, file: &dyn File) -> io::Result<bool> {
    let range = format::sectors(entry.offset, entry.len as usize);
    let mut bytes = AlignedBuf::zeroed((range.end - range.start) as usize);
    file.read_at(range.start, &mut bytes)?;
    let here = &bytes[(u64::from(entry.offset) - range.start) as usize..];
    let at = row.life.base.plus(entry.offset.into());
    Ok(format::decode_record(store, at, row.life.base_lsn, here).is_some())
}

/// Puts bytes into a file at any offset, in whole blocks: what surrounds them is read first and kept.
struct Patch<'a> {
    file: &'a dyn File,
    buf: AlignedBuf,
    /// Offset in the file of the buffer's first byte, a multiple of a block.
    start: u64,
    len: usize,
}

impl<'a> Patch<'a> {
    fn new(file: &'a dyn File) -> Self {
        Self { file, buf: AlignedBuf::zeroed(1 << 20), start: 0, len: 0 }
    }

    fn write(&mut self, offset: u32, mut bytes: &[u8]) -> io::Result<()> {
        let mut offset = u64::from(offset);
        while !bytes.is_empty() {
            if self.len == 0 || offset != self.start + self.len as u64 || self.len == self.buf.len() {
                self.flush()?;
                self.start = round_down(offset, BLOCK as u64);
                self.len = (offset - self.start) as usize;
                if self.len > 0 {
                    self.file.read_at(self.start, &mut self.buf[..BLOCK])?;
                }
            }
            let n = bytes.len().min(self.buf.len() - self.len);
            self.buf[self.len..self.len + n].copy_from_slice(&bytes[..n]);
            self.len += n;
            offset += n as u64;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let end = round_up(self.len as u64, BLOCK as u64) as usize;
        if end > self.len {
            let mut last = AlignedBuf::zeroed(BLOCK);
            self.file.read_at(self.start + (end - BLOCK) as u64, &mut last)?;
            let within = self.len % BLOCK;
            self.buf[self.len..end].copy_from_slice(&last[within..]);
        }
        self.file.write_at(self.start, &self.buf[..end])?;
        self.len = 0;
        Ok(())
    }
}

const _: () = assert!(BLOCK.is_multiple_of(SECTOR), "a block can be read");
