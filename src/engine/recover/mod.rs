//! Recovery: rebuilds the index and the catalog of a store from its files.
//!
//! The steps, for a store that was not closed in order:
//!
//! 1. The manifest states the segments, the checkpoint and the position at which the WAL begins.
//! 2. `sealed` loads the checkpoint into the index. Then it applies the footers of segments that
//!    were sealed after the checkpoint began, oldest first.
//! 3. `unsealed` replays the WAL. Each frame names a record in a segment without a footer. A record
//!    that only the segment ring holds is written into its segment file.
//! 4. `unsealed` writes and syncs the footers of those segments, so that they are sealed.
//! 5. `open` writes a new manifest, which begins the next life of the store.
//!
//! After an orderly close everything is sealed, and the steps 3 and 4 are left out. After a host
//! crash the rings are not trusted to be whole: each record that was not synced is verified.
//!
//! Recovery may be killed at any point and begin again. Until the new manifest is durable, the old
//! one counts. Of the files that the old one names, recovery changes three kinds only:
//!
//! - The file of an unsealed segment gets records and a footer. The next attempt writes the same
//!   bytes to the same places.
//! - The file of a failed segment is replaced, once the replacement is sealed and synced. The
//!   replacement holds every record that could be read.
//! - The file of a segment without records, which is free or quarantined, may be removed.
//!
//! A segment file for which a write or a sync failed, now or in an earlier life, is never written
//! again. A replacement file takes every record that can still be read. If such a failure is new,
//! recovery first writes a manifest that states it, and then begins again.

mod sealed;
mod unaligned;
mod unsealed;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, HostClocks};
use crate::config::{OnHostCrash, RecoveryMode, Settings};
use crate::engine::file_names;
use crate::engine::recovery_report::{RecoveryReport, Start};
use crate::id::{Location, Lsn, Position, SegmentId, StoreId};
use crate::index::Index;
use crate::index::batch::Batch;
use crate::index::checkpoint::Header;
use crate::index::geometry::{Geometry, IndexEntry};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, Disk, File, create, is_shortage, remove_own};
use crate::manifest::catalog::Catalog;
use crate::manifest::{Manifest, ManifestStore, OpeningReport, Segment, SegmentState, Stop};
use crate::segment::footer;
use crate::segment::table::{self, Row, Stage};
use crate::wal::replay::{IgnoreAll, Replay, Summary};

/// LSNs that are skipped after a host crash, or if the WAL has a hole that was not repaired. More
/// than can have been assigned and then lost, so that no LSN is used twice.
const LSN_GAP: u64 = 1 << 24;
/// Upper bound of the bytes of the index for an entry.
const SLOT_BYTES: u64 = 9;
/// Changes that wait to be merged may take one byte in this many of the memory that the index
/// leaves of its share. The rest is for the growth of the index.
const CHANGES_SHARE: u64 = 2;
/// They may take one byte in this many of the budget in any case, since each merge passes over the
/// whole index. That is the share of the footers, which do not exist yet.
const CHANGES_OF_FOOTERS_SHARE_MIN: u64 = 16;
/// The same during the replay, when the footers take their share.
const CHANGES_OF_REPLAY_SHARE_MIN: u64 = 32;

/// A store that is ready for its next manifest.
#[derive(Debug)]
pub(in crate::engine) struct Recovered {
    pub(in crate::engine) manifest: Manifest,
    pub(in crate::engine) index: Index,
    /// How the last process stopped. The report may state a worse stop, which nobody has heard of.
    pub(in crate::engine) stop: Start,
    pub(in crate::engine) report: RecoveryReport,
    /// No WAL position at or above this one was ever used.
    pub(in crate::engine) wal_limit: u64,
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    store: StoreId,
    hash_seed: u64,
    rows: Vec<Row>,
    index: Index,
    /// Changes that are not merged into the index yet.
    batch: Batch,
    settings: &'a Settings,
    catalog: Catalog,
    report: RecoveryReport,
    /// Records below it are not served.
    floor: Position,
    files: HashMap<SegmentId, Arc<dyn File>>,
    /// Segments whose file failed during this attempt.
    failed: Vec<SegmentId>,
    /// Every record of an unsealed segment is verified, even without a reason for doubt: an earlier
    /// opening may have overwritten unreadable records with marks, and then been refused.
    trusts_nothing: bool,
    /// Position at which the log is taken to end, if that is given.
    cut: Option<u64>,
}

/// The header of the checkpoint that the manifest names, if it can be read and verifies.
pub(in crate::engine) fn checkpoint_header(disk: &dyn Disk, manifest: &Manifest) -> Option<Header> {
    let named = manifest.checkpoint?;
    let mut block = AlignedBuf::zeroed(BLOCK);
    disk.open(&file_names::checkpoint(named.sequence)).and_then(|file| file.read_at(0, &mut block)).ok()?;
    Header::decode(manifest.store, &block).filter(|header| header.sequence == named.sequence)
}

/// Recovers the store that `manifest` describes. Ignores the log from position `cut` on, if it is
/// given: a live process may be appending there.
pub(in crate::engine) fn recover(
    disk: &Arc<dyn Disk>,
    clock: &dyn Clock,
    settings: &Settings,
    mut manifest: Manifest,
    manifest_damaged: bool,
    cut: Option<u64>,
) -> io::Result<Recovered> {
    let mut damaged = Vec::new();
    loop {
        let done = match attempt(disk.as_ref(), clock, settings, manifest.clone(), manifest_damaged, cut) {
            // Files of free segments may hold the space that a replacement needs.
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
                // A later process reads this if the next attempt does not finish. A segment gets at
                // most one replacement an opening.
                interrupted.failed.iter().for_each(|id| manifest.segments[id.index()].state = SegmentState::Failed);
                manifest = ManifestStore::begin(Arc::clone(disk), manifest)?.clone();
                // The next attempt may not find this damage again: unreadable records may be
                // overwritten with marks by now.
                damaged.extend(interrupted.report.damaged);
            }
        }
    }
}

/// Removes the files of free segments, if a segment waits for a replacement. True if it removed
/// any, so that another attempt may find space.
fn remove_free(disk: &dyn Disk, manifest: &Manifest) -> bool {
    let waits = manifest.segments.iter().any(|segment| segment.state == SegmentState::Failed);
    let free = (0..).map(SegmentId).zip(&manifest.segments).filter(|(_, segment)| waits && segment.state == SegmentState::Free);
    free.filter(|(id, _)| remove_own(disk, &table::file_name(*id), manifest.store).is_ok()).count() > 0
}

/// The result of an attempt that found files which must be replaced first.
struct Interrupted {
    failed: Vec<SegmentId>,
    report: RecoveryReport,
}

/// Whether everything that the last process wrote is in the page cache or on the medium.
///
/// It is not after a restart of the host. It is not either if a file system was shut down and
/// mounted again, if a volume was detached, and if the store is a copy or a snapshot.
pub(crate) fn page_cache_is_whole(manifest: &Manifest, disk: &dyn Disk) -> io::Result<bool> {
    let rings = [file_names::segment_ring(manifest.segment_ring), file_names::wal_ring(manifest.wal_ring)];
    let is_cached = || Ok::<_, io::Error>(disk.is_cached(&rings[0])? && disk.is_cached(&rings[1])?);
    Ok(manifest.boot_id == disk.boot_id() && (!manifest.rings_marked || is_cached()?))
}

/// How the last process stopped: by a close, a process crash or a host crash. A lost page cache
/// counts as a host crash.
fn classify_stop(manifest: &Manifest, disk: &dyn Disk) -> io::Result<Start> {
    Ok(match manifest.clean {
        true => Start::Clean,
        false if page_cache_is_whole(manifest, disk)? => Start::Process,
        false => Start::Host,
    })
}

/// One attempt to recover. Ends early if it finds files that must be replaced first.
fn attempt(
    disk: &dyn Disk,
    clock: &dyn Clock,
    settings: &Settings,
    mut manifest: Manifest,
    manifest_damaged: bool,
    cut: Option<u64>,
) -> io::Result<Result<Recovered, Interrupted>> {
    let kind = classify_stop(&manifest, disk)?;
    if manifest.boot_id != disk.boot_id() {
        manifest.time.boot_ms = None;
    }
    let mut report = RecoveryReport { kind, manifest_repaired: manifest_damaged, ..RecoveryReport::default() };
    let is_cold = settings.on_host_crash == OnHostCrash::Cold && is_host_crash_unheard(disk, &manifest, kind)?;
    if is_cold {
        forget_all(&mut manifest);
        report.maybe_lost_after = Some(Lsn::ZERO);
    }
    let fresh = Segment { size: settings.segment_size, ..Segment::default() };
    let count = manifest.segments.len().max(settings.segments as usize);
    manifest.segments.resize(count, fresh);
    let geometry = geometry(&manifest, settings);
    let header = checkpoint_header(disk, &manifest);
    tracing::debug!(?kind, "recovering");
    let mut recovery = Recovery {
        disk,
        store: manifest.store,
        hash_seed: manifest.hash_seed,
        rows: table::rows_of(&manifest.segments),
        index: Index::new(geometry),
        batch: Batch::new(geometry, 0),
        settings,
        catalog: manifest.catalog.clone(),
        report,
        floor: manifest.floor,
        files: HashMap::new(),
        failed: Vec::new(),
        trusts_nothing: settings.recovery == RecoveryMode::Refuse,
        cut,
    };
    if settings.recovery == RecoveryMode::Rebuild {
        // Dropped for good: a bad checkpoint may be the reason why the caller asked for a rebuild.
        recovery.report.rebuilt = manifest.checkpoint.take().is_some();
    }
    let mut lap = stopwatch(clock);
    recovery.load_sealed(manifest.checkpoint, header.as_ref())?;
    recovery.batch = recovery.new_batch(0, CHANGES_OF_REPLAY_SHARE_MIN);
    recovery.check_files()?;
    let report = &mut recovery.report;
    report.load_took = lap();
    tracing::debug!(
        checkpoint = report.checkpoint_entries,
        footers = report.footer_entries,
        rebuilt = report.rebuilt,
        "sealed segments are loaded"
    );
    let mut wal_limit = manifest.wal_start;
    if kind != Start::Clean {
        wal_limit = recovery.replay_unsealed(&mut manifest, kind, is_cold)?;
        if !recovery.failed.is_empty() {
            return Ok(Err(Interrupted { failed: recovery.failed, report: recovery.report }));
        }
        recovery.report.replay_took = lap();
    }
    conclude(&mut recovery.report, &mut manifest, &HostClocks::read(clock));
    Ok(Ok(recovery.finish(manifest, kind, wal_limit)))
}

/// Whether the last process stopped by a host crash, or an earlier one did and nobody has heard of
/// it.
fn is_host_crash_unheard(disk: &dyn Disk, manifest: &Manifest, kind: Start) -> io::Result<bool> {
    if kind != Start::Process || manifest.report.pending != Some(Stop::Host) {
        return Ok(kind == Start::Host || manifest.report.pending == Some(Stop::Host));
    }
    let (ring, _) = disk.view(&file_names::wal_ring(manifest.wal_ring), manifest.wal_ring)?;
    let mut replay = Replay::open(disk, manifest.store, Arc::clone(&ring), manifest.wal_payload)?;
    let summary = replay.run((manifest.wal_start, manifest.wal_lsn), manifest.durable, true, &mut IgnoreAll)?;
    Ok(!summary.heard || !ring.is_whole())
}

/// Completes the report of this opening with the stop, the losses and the time of the last sign of
/// life. `manifest` states the last life, with the marks of its WAL.
///
/// If nobody has heard the report before, this report states its losses too: the worst stop, the
/// lowest LSN and the earliest time.
fn conclude(report: &mut RecoveryReport, manifest: &mut Manifest, now: &HostClocks) {
    let (last, before) = (manifest.time, manifest.report);
    // After a host crash, mutations are there only if they returned before the last sync.
    let alive_ms = if report.kind == Start::Host { manifest.durable_ms.min(last.store_ms) } else { last.store_ms };
    let stop = match report.kind {
        Start::Created | Start::Clean => Stop::Clean,
        Start::Process => Stop::Process,
        Start::Host => Stop::Host,
    };
    let mut merged = OpeningReport {
        pending: Some(stop),
        lost_after: report.maybe_lost_after,
        alive_ms,
        alive_wall_ms: now.wall_of(&last.back_at(alive_ms), before.alive_wall_ms),
    };
    if before.pending.is_some() {
        let earlier = now.wall_of(&last.back_at(before.alive_ms), before.alive_wall_ms);
        merged.pending = merged.pending.max(before.pending);
        merged.lost_after = [merged.lost_after, before.lost_after].into_iter().flatten().min();
        merged.alive_ms = alive_ms.min(before.alive_ms);
        merged.alive_wall_ms = merged.alive_wall_ms.min(earlier).min(before.alive_wall_ms);
    }
    report.kind = match merged.pending {
        Some(Stop::Host) => Start::Host,
        Some(Stop::Process) => Start::Process,
        Some(Stop::Clean) | None => Start::Clean,
    };
    report.maybe_lost_after = merged.lost_after;
    report.alive_until_ms = merged.alive_wall_ms;
    report.clock_went_back = now.went_back_since(&last);
    manifest.report = merged;
}

/// Raises the manifest's next LSN and time above those of the replayed WAL. Skips LSNs that may
/// have been assigned and lost.
fn settle(manifest: &mut Manifest, kind: Start, summary: &Summary) {
    manifest.next_lsn = manifest.next_lsn.max(summary.last.next());
    if kind == Start::Host || summary.holes.iter().any(|hole| !hole.repaired) {
        manifest.next_lsn = Lsn(manifest.next_lsn.0 + LSN_GAP);
    }
    let mark = summary.newest_mark;
    if mark.time_ms > manifest.time.store_ms {
        manifest.time = manifest.time.at(mark.time_ms, mark.wall_offset_ms);
    }
    // Everything before a frame of the log is there.
    manifest.durable_ms = manifest.durable_ms.max(mark.time_ms);
    if summary.heard {
        manifest.report.pending = None;
    }
}

/// A function that returns the time since its last call. The first call returns the time since the
/// stopwatch was made.
fn stopwatch(clock: &dyn Clock) -> impl FnMut() -> Duration {
    let mut last = clock.monotonic();
    move || {
        let before = std::mem::replace(&mut last, clock.monotonic());
        last.saturating_sub(before)
    }
}

/// Frees every segment and drops the checkpoint and all resume tokens, for a cold start. A resume
/// token may not be the newest one that was set.
fn forget_all(manifest: &mut Manifest) {
    manifest.checkpoint = None;
    manifest.catalog.tokens.clear();
    for segment in manifest.segments.iter_mut().filter(|s| !matches!(s.state, SegmentState::Failed | SegmentState::Quarantined)) {
        segment.state = SegmentState::Free;
    }
}

/// The geometry of an index that can name every record of the existing segments and of the segments
/// that `settings` ask for.
pub(in crate::engine) fn geometry(manifest: &Manifest, settings: &Settings) -> Geometry {
    let used = || manifest.segments.iter().enumerate().filter(|(_, s)| s.state != SegmentState::Free);
    let count = used().map(|(i, _)| i as u32 + 1).max().unwrap_or(0).max(settings.segments);
    let size = used().map(|(_, s)| s.size).max().unwrap_or(0).max(settings.segment_size);
    Geometry::new(count, size)
}

impl Recovery<'_> {
    /// Replays the WAL and restores the unsealed segments. A cold start reads only the newest LSN
    /// and time. Returns a position above every WAL position in use.
    fn replay_unsealed(&mut self, manifest: &mut Manifest, kind: Start, is_cold: bool) -> io::Result<u64> {
        let (wal_ring, is_wal_ring_lost) = self.disk.view(&file_names::wal_ring(manifest.wal_ring), manifest.wal_ring)?;
        let segment_ring = self.disk.view(&file_names::segment_ring(manifest.segment_ring), manifest.segment_ring)?;
        let mut replay = Replay::open(self.disk, manifest.store, Arc::clone(&wal_ring), manifest.wal_payload)?;
        if kind == Start::Process && is_wal_ring_lost {
            // The lost ring held frames that no WAL file holds.
            replay.mark_end_unknown();
        }
        self.cut.inspect(|cut| replay.cut_at(*cut));
        let unused = replay.limit(manifest.wal_start);
        let summary = match is_cold {
            true => replay.run((manifest.wal_start, manifest.wal_lsn), manifest.durable, kind == Start::Process, &mut IgnoreAll)?,
            false => unsealed::replay(self, &mut replay, manifest, kind, &segment_ring)?,
        };
        if !wal_ring.is_whole() || !segment_ring.0.is_whole() {
            // A page could not be read any more, and read as zeros. The next opening finds out
            // which bytes are lost.
            return Err(io::Error::other("a ring became unreadable while it was replayed; open the store again"));
        }
        if !self.failed.is_empty() {
            return Ok(unused);
        }
        settle(manifest, kind, &summary);
        tracing::debug!(frames = summary.frames, torn = summary.torn_bytes, holes = summary.holes.len(), "the WAL was replayed");
        // A lost WAL file may have been followed by frames that only the ring held.
        Ok(unused.max(replay.limit(summary.end) + manifest.wal_payload))
    }

    /// The file of a segment, opened once.
    fn file(&mut self, id: SegmentId) -> io::Result<Arc<dyn File>> {
        if let Some(file) = self.files.get(&id) {
            return Ok(Arc::clone(file));
        }
        let file = open_segment(self.disk, &self.rows[id.index()])?;
        self.files.insert(id, Arc::clone(&file));
        Ok(file)
    }

    /// Creates the replacement for the file of a failed segment.
    fn create_replacement(&self, row: &Row) -> io::Result<Arc<dyn File>> {
        let name = table::replacement_name(row.life.id);
        // A replacement that an earlier opening left may have failed as well.
        match remove_own(self.disk, &name, self.store) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => create(self.disk, &name, row.size),
        }
    }

    /// An empty batch of index changes, before `entries` more are loaded into the index. It may use
    /// a part of what they leave of the index's share, or one byte in `share_min` of the budget if
    /// that is more.
    ///
    /// The memory that those entries will take is left alone, although changes are freed as they
    /// come: an allocator need not give freed memory to another thread.
    fn new_batch(&self, entries: u64, share_min: u64) -> Batch {
        let index = self.index.allocated().saturating_add(entries.saturating_mul(SLOT_BYTES));
        let room = self.settings.index_bytes_max.saturating_sub(index) / CHANGES_SHARE;
        let len = Batch::len_for(room.max(self.settings.memory / share_min));
        Batch::new(self.index.geometry(), len.min(self.settings.batch_len_max))
    }

    /// Applies an entry to the index, in batches.
    fn apply(&mut self, row: &Row, entry: &footer::FooterEntry) {
        change(&mut self.batch, row, entry, self.floor);
        if self.batch.is_full() {
            self.batch.merge(&self.index);
        }
    }

    /// Reports sealed segments whose file is missing or too short: entries that the index has for
    /// them are misses.
    fn check_files(&mut self) -> io::Result<()> {
        let files: HashMap<String, u64> = self.disk.list()?.into_iter().collect();
        for row in self.rows.iter().filter(|row| row.stage == Stage::Sealed) {
            let problem = match files.get(&table::file_name(row.life.id)) {
                None => "its file is missing",
                Some(len) if *len < row.size => "its file is too short",
                Some(_) => continue,
            };
            self.report.damaged.push(format!("segment {}: {problem}; gets of its entries miss", row.life.id));
        }
        Ok(())
    }

    /// Raises the floor for good: drops every entry below it.
    fn raise_floor(&mut self, floor: Position) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        self.batch.merge(&self.index);
        let rows = &self.rows;
        self.index.retain(|entry| rows[entry.location.segment.index()].life.base.plus(entry.location.offset.into()) >= floor);
    }

    /// Removes the files that failed in an earlier life, so that their segments get new files: a
    /// file that failed is never written again. Returns the segments whose file is gone.
    fn remove_given_up(&self, manifest: &Manifest) -> Vec<SegmentId> {
        let numbered = (0..).map(SegmentId).zip(&manifest.segments);
        let given_up = numbered.filter(|(_, segment)| segment.state == SegmentState::Quarantined).map(|(id, _)| id);
        let gone = |id: &SegmentId| match remove_own(self.disk, &table::file_name(*id), self.store) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        given_up.filter(gone).collect()
    }

    /// Describes the recovered store in a manifest that is not written yet.
    fn finish(mut self, mut manifest: Manifest, stop: Start, wal_limit: u64) -> Recovered {
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
        // No position at or above the next base was ever used, so a floor above it is not needed.
        manifest.floor = self.floor.min(manifest.next_base);
        manifest.catalog = self.catalog;
        self.report.entries = self.index.entries();
        Recovered { manifest, index: self.index, stop, report: self.report, wal_limit }
    }
}

/// Adds the effect of an entry, from a footer or the WAL, to `batch`.
fn change(batch: &mut Batch, row: &Row, entry: &footer::FooterEntry, floor: Position) {
    if entry.tombstone {
        batch.remove(entry.hash);
    } else if row.life.base.plus(entry.offset.into()) >= floor {
        let location = Location { segment: row.life.id, offset: entry.offset };
        batch.insert(entry.hash, &IndexEntry::new(location, entry.len as usize));
    }
}

/// Opens the file of a segment. An error if it is shorter than the segment.
fn open_segment(disk: &dyn Disk, row: &Row) -> io::Result<Arc<dyn File>> {
    let id = row.life.id;
    let file = disk.open(&table::file_name(id))?;
    if file.len() < row.size {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file of segment {id} is too short")));
    }
    Ok(file)
}
