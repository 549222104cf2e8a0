//! Bringing a store back: checkpoint, footers, WAL, and what only the rings hold.
//!
//! Nothing that is read here is changed, but for segment files that were not sealed: they get the records that the dead process had not written out, and their
//! footers. Both would be written again, with the same bytes, if recovery is killed: the next manifest alone ends it. A file that a write or a sync failed for, then or now, is
//! not written again: one with what can be read of it takes its place.

mod sealed;
mod unaligned;
mod unsealed;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{OnHostCrash, RecoveryMode, Settings};
use crate::engine::file_names;
use crate::engine::recovery_report::{RecoveryReport, Start};
use crate::id::{Location, Lsn, Position, SegmentId, StoreId};
use crate::index::Index;
use crate::index::batch::Batch;
use crate::index::checkpoint::Header;
use crate::index::geometry::{Geometry, IndexEntry};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, Disk, File, is_shortage};
use crate::manifest::catalog::Catalog;
use crate::manifest::{Manifest, ManifestStore, Segment, SegmentState};
use crate::segment::footer;
use crate::segment::table::{self, Row, Stage};
use crate::wal::replay::{IgnoreAll, Replay, Summary};

/// LSNs that are skipped after a host crash, or if the end of the log is lost: more than can have been assigned and then lost, so that none is used twice.
const LSN_GAP: u64 = 1 << 24;
/// Bytes of the index for an entry, at most.
const SLOT_BYTES: u64 = 9;
/// Of what the index leaves of its room once it is there, one byte in so many may be changes to it that wait, and no more than this: the index grows meanwhile.
const CHANGES_SHARE: u64 = 2;
const CHANGES_BYTES_MAX: u64 = 256 << 20;
/// Index changes that are merged at once, however little DRAM there is: each merge passes over the
/// whole index.
const BATCH_LEN_MIN: usize = 1 << 21;

/// A store that is ready for its next manifest.
#[derive(Debug)]
pub(in crate::engine) struct Recovered {
    pub(in crate::engine) manifest: Manifest,
    pub(in crate::engine) index: Index,
    pub(in crate::engine) report: RecoveryReport,
    /// No WAL position at or above it was ever used.
    pub(in crate::engine) wal_limit: u64,
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    store: StoreId,
    hash_seed: u64,
    rows: Vec<Row>,
    index: Index,
    /// Changes that are not in the index yet.
    batch: Batch,
    /// See [`Settings::batch_len_max`].
    batch_len_max: usize,
    catalog: Catalog,
    report: RecoveryReport,
    floor: Position,
    files: HashMap<SegmentId, Arc<dyn File>>,
    /// Segments whose file failed now, for the first time.
    failed: Vec<SegmentId>,
    /// Records of unsealed segments are looked at even if nothing speaks against them: an opening before may have marked what it could not read, and been refused.
    trusts_nothing: bool,
}

/// An empty batch for the index changes that `room` bytes of DRAM hold.
///
/// It holds [`BATCH_LEN_MIN`] changes even if there is less room, but never more than `len_max`.
fn new_batch(geometry: Geometry, room: u64, len_max: usize) -> Batch {
    Batch::new(geometry, Batch::len_for(room).max(BATCH_LEN_MIN).min(len_max))
}

/// What the checkpoint that counts states of itself, if it can be read.
pub(in crate::engine) fn checkpoint_header(disk: &dyn Disk, manifest: &Manifest) -> Option<Header> {
    let named = manifest.checkpoint?;
    let mut block = AlignedBuf::zeroed(BLOCK);
    disk.open(&file_names::checkpoint(named.sequence)).and_then(|file| file.read_at(0, &mut block)).ok()?;
    Header::decode(manifest.store, &block).filter(|header| header.sequence == named.sequence)
}

/// Brings back the store that `manifest` describes.
pub(in crate::engine) fn recover(
    disk: &Arc<dyn Disk>,
    clock: &dyn Clock,
    settings: &Settings,
    mut manifest: Manifest,
    manifest_damaged: bool,
) -> io::Result<Recovered> {
    let mut damaged = Vec::new();
    loop {
        let done = match attempt(disk.as_ref(), clock, settings, manifest.clone(), manifest_damaged) {
            // What a new file needs may be there, in files of no use.
            Err(error) if is_shortage(&error) && remove_free(disk.as_ref(), &manifest) => continue,
            done => done?,
        };
        match done {
            Ok(mut recovered) => {
                damaged.retain(|line| !recovered.report.damaged.contains(line));
                recovered.report.damaged.splice(..0, damaged);
                return Ok(recovered);
            }
            Err(interrupted) => {
                // For whoever comes next, should this one not come to its end. Of each segment, a second file is the last.
                interrupted.failed.iter().for_each(|id| manifest.segments[id.index()].state = SegmentState::Failed);
                manifest = ManifestStore::begin(Arc::clone(disk), manifest)?.clone();
                // What could not be read may have been marked as such, so that nobody finds it again.
                damaged.extend(interrupted.report.damaged);
            }
        }
    }
}

/// Removes the files of segments without a life, if a segment waits for a new file. Whether any was removed, so that it is worth another attempt.
fn remove_free(disk: &dyn Disk, manifest: &Manifest) -> bool {
    let waits = manifest.segments.iter().any(|segment| segment.state == SegmentState::Failed);
    let free = (0..).map(SegmentId).zip(&manifest.segments).filter(|(_, segment)| waits && segment.state == SegmentState::Free);
    free.filter(|(id, _)| disk.remove(&table::file_name(*id)).is_ok()).count() > 0
}

/// What an attempt came to that found files which must be replaced first.
struct Interrupted {
    failed: Vec<SegmentId>,
    report: RecoveryReport,
}

/// How the store was stopped.
fn classify_stop(manifest: &Manifest, disk: &dyn Disk) -> Start {
    match manifest.clean {
        true => Start::Clean,
        false if manifest.boot_id == disk.boot_id() => Start::Process,
        false => Start::Host,
    }
}

/// Bytes of DRAM for changes that wait to be merged into an index of `entries`, besides the room
/// that the entries themselves will take.
fn room_for_changes(settings: &Settings, entries: u64) -> u64 {
    match entries {
        // Without a checkpoint the size of the index is unknown.
        0 => 0,
        known => (settings.index_bytes_max.saturating_sub(known.saturating_mul(SLOT_BYTES)) / CHANGES_SHARE).min(CHANGES_BYTES_MAX),
    }
}

/// One attempt to recover. Ends early if it found files that must be replaced first.
fn attempt(
    disk: &dyn Disk,
    clock: &dyn Clock,
    settings: &Settings,
    mut manifest: Manifest,
    manifest_damaged: bool,
) -> io::Result<Result<Recovered, Interrupted>> {
    let kind = classify_stop(&manifest, disk);
    let mut report = RecoveryReport { kind, alive_until_ms: manifest.time_ms, ..RecoveryReport::default() };
    report.manifest_repaired = manifest_damaged;
    let is_cold = kind == Start::Host && settings.on_host_crash == OnHostCrash::Cold;
    if is_cold {
        forget_all(&mut manifest);
        report.maybe_lost_after = Some(Lsn::ZERO);
    }
    let fresh = Segment { size: settings.segment_size, ..Segment::default() };
    let count = manifest.segments.len().max(settings.segments as usize);
    manifest.segments.resize(count, fresh);
    let geometry = geometry(&manifest, settings);
    let header = checkpoint_header(disk, &manifest);
    let room = room_for_changes(settings, header.as_ref().map_or(0, |header| header.entries));
    tracing::debug!(?kind, room, "recovering");
    let mut recovery = Recovery {
        disk,
        store: manifest.store,
        hash_seed: manifest.hash_seed,
        rows: table::rows_of(&manifest.segments),
        index: Index::new(geometry),
        batch: new_batch(geometry, room, settings.batch_len_max),
        batch_len_max: settings.batch_len_max,
        catalog: manifest.catalog.clone(),
        report,
        floor: manifest.floor,
        files: HashMap::new(),
        failed: Vec::new(),
        trusts_nothing: settings.recovery == RecoveryMode::Refuse,
    };
    if settings.recovery == RecoveryMode::Rebuild {
        // For good: the checkpoint may be the reason for which the caller asked.
        recovery.report.rebuilt = manifest.checkpoint.take().is_some();
    }
    let mut lap = lap(clock);
    recovery.load_sealed(manifest.checkpoint, header.as_ref(), room)?;
    recovery.check_files()?;
    let report = &mut recovery.report;
    report.load_took = lap();
    tracing::debug!(
        checkpoint = report.checkpoint_entries,
        footers = report.footer_entries,
        rebuilt = report.rebuilt,
        "sealed segments are known"
    );
    let mut wal_limit = manifest.wal_start;
    if kind != Start::Clean {
        wal_limit = recovery.replay_unsealed(&mut manifest, kind, is_cold)?;
        if !recovery.failed.is_empty() {
            return Ok(Err(Interrupted { failed: recovery.failed, report: recovery.report }));
        }
        recovery.report.replay_took = lap();
    }
    Ok(Ok(recovery.finish(manifest, wal_limit)))
}

/// Makes the manifest's next LSN and time those after the replayed WAL. Skips LSNs that may have been
/// assigned and lost.
fn settle(manifest: &mut Manifest, kind: Start, summary: &Summary) {
    manifest.next_lsn = manifest.next_lsn.max(summary.last.next());
    if kind == Start::Host || summary.holes.iter().any(|hole| !hole.repaired) {
        manifest.next_lsn = Lsn(manifest.next_lsn.0 + LSN_GAP);
    }
    manifest.time_ms = manifest.time_ms.max(summary.time_ms);
}

/// How long it has been since the last call, or the beginning.
fn lap(clock: &dyn Clock) -> impl FnMut() -> Duration {
    let mut last = clock.monotonic();
    move || {
        let before = std::mem::replace(&mut last, clock.monotonic());
        last.saturating_sub(before)
    }
}

/// Leaves nothing that could be served, and no resume token: it may not be the newest.
fn forget_all(manifest: &mut Manifest) {
    manifest.checkpoint = None;
    manifest.catalog.tokens.clear();
    for segment in manifest.segments.iter_mut().filter(|s| !matches!(s.state, SegmentState::Failed | SegmentState::Quarantined)) {
        segment.state = SegmentState::Free;
    }
}

/// The geometry of an index that can name every record there is, and every one to come.
pub(in crate::engine) fn geometry(manifest: &Manifest, settings: &Settings) -> Geometry {
    let used = || manifest.segments.iter().enumerate().filter(|(_, s)| s.state != SegmentState::Free);
    let count = used().map(|(i, _)| i as u32 + 1).max().unwrap_or(0).max(settings.segments);
    let size = used().map(|(_, s)| s.size).max().unwrap_or(0).max(settings.segment_size);
    Geometry::new(count, size)
}

impl Recovery<'_> {
    /// Replays the WAL and restores the unsealed segments; for a cold start only the newest LSN and
    /// time are read. Returns a position that no WAL position in use reaches.
    fn replay_unsealed(&mut self, manifest: &mut Manifest, kind: Start, is_cold: bool) -> io::Result<u64> {
        let (wal_ring, is_wal_ring_lost) = self.disk.view(&file_names::wal_ring(manifest.wal_ring), manifest.wal_ring)?;
        let segment_ring = self.disk.view(&file_names::segment_ring(manifest.segment_ring), manifest.segment_ring)?;
        let mut replay = Replay::open(self.disk, manifest.store, wal_ring, manifest.wal_payload)?;
        if kind == Start::Process && is_wal_ring_lost {
            // It held frames that the files do not hold yet.
            replay.mark_end_unknown();
        }
        let unused = replay.limit(manifest.wal_start);
        let summary = match is_cold {
            true => replay.run((manifest.wal_start, manifest.wal_lsn), manifest.durable, false, &mut IgnoreAll)?,
            false => unsealed::replay(self, &mut replay, manifest, kind, &segment_ring)?,
        };
        if !self.failed.is_empty() {
            return Ok(unused);
        }
        settle(manifest, kind, &summary);
        tracing::debug!(frames = summary.frames, torn = summary.torn_bytes, holes = summary.holes.len(), "the WAL is replayed");
        // A file that is lost may have been followed by frames that only the ring held.
        Ok(unused.max(replay.limit(summary.end) + manifest.wal_payload))
    }

    fn file(&mut self, id: SegmentId) -> io::Result<Arc<dyn File>> {
        if let Some(file) = self.files.get(&id) {
            return Ok(Arc::clone(file));
        }
        let file = open_segment(self.disk, &self.rows[id.index()])?;
        self.files.insert(id, Arc::clone(&file));
        Ok(file)
    }

    /// Makes the file that is to take the place of one that failed.
    fn create_replacement(&self, row: &Row) -> io::Result<Arc<dyn File>> {
        let name = table::replacement_name(row.life.id);
        // One that is left may have failed as well.
        match self.disk.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.disk.create(&name, row.size).inspect_err(|_| {
            // What it takes is not kept from others.
            let _left_if_it_must = self.disk.remove(&name);
        })
    }

    fn apply(&mut self, row: &Row, entry: &footer::FooterEntry) {
        change(&mut self.batch, row, entry, self.floor);
        if self.batch.is_full() {
            self.batch.merge(&self.index);
        }
    }

    /// Reports sealed segments whose file is not there, or shorter than it was: what the index knows of them misses.
    fn check_files(&mut self) -> io::Result<()> {
        let files: HashMap<String, u64> = self.disk.list()?.into_iter().collect();
        for row in self.rows.iter().filter(|row| row.stage == Stage::Sealed) {
            let problem = match files.get(&table::file_name(row.life.id)) {
                None => "its file is missing",
                Some(len) if *len < row.size => "its file is shorter than it was",
                Some(_) => continue,
            };
            self.report.damaged.push(format!("segment {}: {problem}; its entries miss", row.life.id));
        }
        Ok(())
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

    /// Removes the files that failed in an earlier life, so that their segments get new ones: what is known to have failed is never written again. Which are gone.
    fn remove_given_up(&self, manifest: &Manifest) -> Vec<SegmentId> {
        let numbered = (0..).map(SegmentId).zip(&manifest.segments);
        let given_up = numbered.filter(|(_, segment)| segment.state == SegmentState::Quarantined).map(|(id, _)| id);
        let gone = |id: &SegmentId| match self.disk.remove(&table::file_name(*id)) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        given_up.filter(gone).collect()
    }

    fn finish(mut self, mut manifest: Manifest, wal_limit: u64) -> Recovered {
        self.batch.merge(&self.index);
        let given_up = self.remove_given_up(&manifest);
        for (segment, row) in manifest.segments.iter_mut().zip(&self.rows) {
            let below_floor = row.life.base.plus(row.size) <= self.floor;
            segment.last_lsn = row.last_lsn;
            segment.state = match row.stage {
                Stage::Failed | Stage::Quarantined if !given_up.contains(&row.life.id) => SegmentState::Quarantined,
                Stage::Sealed if !below_floor => SegmentState::Sealed,
                _ => SegmentState::Free,
            };
        }
        // No position at or above the next base was ever used, so nothing above it is suspect.
        manifest.floor = self.floor.min(manifest.next_base);
        manifest.catalog = self.catalog;
        self.report.entries = self.index.entries();
        Recovered { manifest, index: self.index, report: self.report, wal_limit }
    }
}

/// Notes in `batch` what an entry of a footer, or of the WAL, does to the index.
fn change(batch: &mut Batch, row: &Row, entry: &footer::FooterEntry, floor: Position) {
    if entry.tombstone {
        batch.remove(entry.hash);
    } else if row.life.base.plus(entry.offset.into()) >= floor {
        let location = Location { segment: row.life.id, offset: entry.offset };
        batch.insert(entry.hash, &IndexEntry::new(location, entry.len as usize));
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
