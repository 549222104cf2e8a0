//! Segments that a write or a sync failed for: what they superseded must not come back, and what can still be read of them is worth keeping.
//!
//! The file is not written to again. Its records, from the ring or from the file where they verify, are appended again elsewhere; where they do not, a tombstone is, so
//! that no older version is served, now or after a restart. Until both are durable the WAL keeps the segment's frames, and nobody is told that anything is synced.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Engine;
use super::append::{Append, NoRoom};
use super::flush::Dirty;
use crate::concurrent::lock;
use crate::error::Result;
use crate::id::{Location, SegmentId};
use crate::io::aligned::AlignedBuf;
use crate::manifest::{ManifestStore, SegmentState};
use crate::segment::footer;
use crate::segment::format::{self, Draft, Record};
use crate::segment::table::{Row, Stage};
use crate::segment::writer::{Full, Open};

/// A store that has lost one in this many of its segments takes no more mutations.
const FAILED_SHARE_MAX: u64 = 4;

/// A segment that failed while it held records without a footer.
#[derive(Debug)]
pub(super) struct Failed {
    row: Row,
    entries: Vec<footer::FooterEntry>,
    /// Entries that were looked at.
    done: AtomicUsize,
    /// Offset of what had not been written out, and those bytes.
    unwritten: (u32, Vec<u8>),
}

impl Failed {
    /// Bytes of DRAM held.
    pub(super) fn allocated(&self) -> usize {
        self.entries.len() * size_of::<footer::FooterEntry>() + self.unwritten.1.len()
    }

    pub(super) fn is_done(&self) -> bool {
        // Pairs with the release in `rescue`: what was appended before is there.
        self.done.load(Ordering::Acquire) == self.entries.len()
    }
}

impl Engine {
    /// Takes a segment that is being filled, or waits for its footer, out of use.
    pub(super) fn fail_segment(&self, dirty: &mut Dirty, id: SegmentId, error: &io::Error) -> Result<()> {
        dirty.0.remove(&id);
        let mut log = lock(&self.log);
        let full: Option<Full> = match log.full.iter().position(|full| full.life.id == id) {
            Some(i) => log.full.remove(i),
            None => log.open.take_if(|open| open.life.id == id).map(Open::retire),
        };
        let Some(full) = full else { return Ok(()) };
        let end = full.end().0;
        let start = self.segment_ring.written().clamp(full.life.base.0, end);
        let mut unwritten = vec![0; (end - start) as usize];
        // They were not written out, so the ring still has them.
        let _held = unwritten.is_empty() || self.segment_ring.load(start, &mut unwritten);
        self.table.change(id, &[Stage::Open, Stage::Full], |row| row.stage = Stage::Failed);
        let row = self.table.row(id);
        let unwritten = ((start - full.life.base.0) as u32, unwritten);
        log.failed.push_back(Arc::new(Failed { row, entries: full.footer.entries_so_far(), done: AtomicUsize::new(0), unwritten }));
        log.failures += 1;
        drop(log);
        self.events.prepare.signal();
        self.events.room.signal();
        self.record_failure(id, error)
    }

    /// A segment without records is not used again.
    pub(super) fn quarantine(&self, id: SegmentId, from: Stage, error: &io::Error) -> Result<()> {
        self.table.change(id, &[from], |row| row.stage = Stage::Quarantined);
        self.record_failure(id, error)
    }

    /// Bytes of segments that failed since the opening.
    pub(super) fn given_up(&self) -> u64 {
        self.table.select(|r| matches!(r.stage, Stage::Failed | Stage::Quarantined)).iter().map(|r| r.size).sum()
    }

    fn record_failure(&self, id: SegmentId, error: &io::Error) -> Result<()> {
        self.counters.write_errors.fetch_add(1, Ordering::Relaxed);
        tracing::error!(dir = %self.dir.display(), segment = %id, %error, "a segment cannot be written; it is not used again before the next opening");
        if self.given_up() * FAILED_SHARE_MAX > self.settings.flash {
            return Err(self.fail("writing too many segments", error));
        }
        Ok(())
    }

    /// Tells a next process, which could not know, which segments failed.
    pub(super) fn state_failed(&self, manifest: &mut ManifestStore) -> Result<()> {
        let is_stated =
            |row: &Row| matches!(manifest.segments[row.life.id.index()].state, SegmentState::Failed | SegmentState::Quarantined);
        if self.table.select(|row| matches!(row.stage, Stage::Failed | Stage::Quarantined)).iter().all(is_stated) {
            return Ok(());
        }
        self.write_manifest(manifest).map_err(|e| self.fail("writing the manifest", &e))
    }

    /// Goes on with segments that failed, as far as there is room. Says whether that changed anything, and if something is left to do, what it waits for.
    pub(super) fn step_rescue(&self, manifest: &mut ManifestStore) -> Result<(bool, Option<NoRoom>)> {
        let all: Vec<Arc<Failed>> = lock(&self.log).failed.iter().cloned().collect();
        if all.is_empty() {
            return Ok((false, None));
        }
        self.state_failed(manifest)?;
        let done = || all.iter().map(|failed| failed.done.load(Ordering::Relaxed)).sum::<usize>();
        let before = done();
        let rescued = all.iter().try_for_each(|failed| self.rescue(failed));
        let bytes = self.marks.appended_bytes.load(Ordering::Acquire);
        self.step_flush()?;
        self.step_sync()?;
        // What superseded their records, here or elsewhere, must be as durable as they may have been.
        let is_synced = self.marks.synced_bytes.load(Ordering::Acquire) >= bytes;
        if let Some(waits) = rescued.err().or((!is_synced).then_some(NoRoom::Unwritten)) {
            return Ok((done() > before, Some(waits)));
        }
        for Failed { row, .. } in all.iter().map(Arc::as_ref) {
            self.table.withdraw(row.life.id);
            self.index.remove_segment(row.life.id);
            self.table.change(row.life.id, &[Stage::Failed], |row| row.stage = Stage::Quarantined);
        }
        lock(&self.log).failed.drain(..all.len());
        self.write_manifest(manifest).map_err(|e| self.fail("writing the manifest", &e))?;
        self.events.room.signal();
        Ok((true, None))
    }

    /// Appends again what a segment held, or what says that it is gone.
    pub(super) fn rescue(&self, failed: &Failed) -> Result<(), NoRoom> {
        for entry in &failed.entries[failed.done.load(Ordering::Relaxed)..] {
            let location = Location { segment: failed.row.life.id, offset: entry.offset };
            let names_it = || self.index.get(entry.hash).map(|now| now.location == location);
            match names_it() {
                Some(false) => {}
                Some(true)
                    if let Some((record, bytes)) = self.bytes_of(failed, entry)
                        && self.reinsert(&failed.row, entry, &record, &bytes)? => {}
                // Lost, or deleted, or found expired or damaged by now: older versions may lie in older segments.
                _ => self.bury(entry, || names_it() != Some(false))?,
            }
            failed.done.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// Removes what has this hash, durably, if `still` says so under its stripe.
    fn bury(&self, entry: &footer::FooterEntry, still: impl Fn() -> bool) -> Result<(), NoRoom> {
        let draft = Draft::tombstone(entry.hash);
        let _in_order = lock(self.stripe(entry.hash));
        if still() {
            self.append(&Append {
                hash: entry.hash,
                draft: &draft,
                tombstone: true,
                supersedes: true,
                inline: false,
                version: None,
                urgent: true,
            })?;
            self.memory.supersede(entry.hash, None, || self.index.remove(entry.hash));
        }
        Ok(())
    }

    /// The record of an entry, if it verifies, and its bytes.
    fn bytes_of(&self, failed: &Failed, entry: &footer::FooterEntry) -> Option<(Record, Vec<u8>)> {
        let (life, len) = (&failed.row.life, entry.len as usize);
        let (from, held) = &failed.unwritten;
        let mut bytes = vec![0; len];
        let in_file = (*from as usize).saturating_sub(entry.offset as usize).min(len);
        if in_file > 0 {
            let range = format::sectors(entry.offset, in_file);
            let mut buf = AlignedBuf::zeroed((range.end - range.start) as usize);
            self.table.file(life.id).and_then(|file| file.read_at(range.start, &mut buf)).ok()?;
            let start = (u64::from(entry.offset) - range.start) as usize;
            bytes[..in_file].copy_from_slice(&buf[start..start + in_file]);
        }
        if in_file < len {
            let start = (entry.offset as usize + in_file) - *from as usize;
            bytes[in_file..].copy_from_slice(held.get(start..start + len - in_file)?);
        }
        let record = format::decode_record(self.store, life.base.plus(entry.offset.into()), life.base_lsn, &bytes)?;
        Some((record, bytes))
    }
}
