//! Moves the records of failed segments to other segments.
//!
//! The file of a failed segment is not written again. Its records still count: without a lost
//! tombstone or newer version, an older version would come back. For each record one of these
//! happens:
//!
//! - Nothing, if the index names a newer record with the same hash elsewhere. Another key may share
//!   the fingerprint, so the hash of that record is compared. That may take a read.
//! - A record that verifies, in the file or among the bytes that were not flushed, is appended
//!   again elsewhere.
//! - For any other record a tombstone is appended, so that no older version is served, even after a
//!   restart.
//!
//! Until all of that is durable, the WAL keeps the frames of the segment, and no sync succeeds.
//! Then the segment is quarantined.

use std::io;
use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::log::sync::Synced;
use crate::engine::ops::read::ReadFailed;
use crate::engine::refused::Refused;
use crate::error::Result;
use crate::id::KeyHash;
use crate::index::geometry::IndexEntry;
use crate::io::is_loss;
use crate::manifest::ManifestStore;
use crate::segment::failed::Failed;
use crate::segment::footer::FooterEntry;
use crate::segment::table::Stage;

/// The result of one step of the rescue.
#[derive(Debug)]
pub(super) struct Rescued {
    /// Whether the step moved a record or finished the rescue.
    pub(super) changed: bool,
    /// Why the rescue is not finished.
    pub(super) waits: Option<Refused>,
    /// Whether the sync found no room on the disk.
    pub(super) found_shortage: bool,
}

impl Engine {
    /// Rescues the records of failed segments, as far as there is room.
    pub(super) fn step_rescue(&self, manifest: &mut ManifestStore) -> Result<Rescued> {
        let all: Vec<Arc<Failed>> = self.log.lock().failed();
        if all.is_empty() {
            return Ok(Rescued { changed: false, waits: None, found_shortage: false });
        }
        self.state_failed(manifest)?;
        let done = || all.iter().map(|failed| failed.done()).sum::<usize>();
        let before = done();
        let rescued = all.iter().try_for_each(|failed| self.rescue(failed));
        let bytes = self.log.marks().appended_bytes();
        self.step_flush()?;
        let found_shortage = self.sync()? == Synced::NoRoom;
        // The records that supersede those of failed segments must be durable first, wherever they
        // lie: the superseded ones may have been durable.
        let is_synced = self.log.marks().synced_bytes() >= bytes;
        if let Some(cause) = rescued.err().or((!is_synced).then_some(Refused::UnsyncedBytes)) {
            return Ok(Rescued { changed: done() > before, waits: Some(cause), found_shortage });
        }
        for id in all.iter().map(|failed| failed.row().life.id) {
            self.table.withdraw(id);
            self.index.remove_segment(id);
            self.table.quarantine(id, Stage::Failed);
        }
        self.log.lock().forget_failed(all.len());
        self.write_manifest(manifest)?;
        self.events.room.signal();
        Ok(Rescued { changed: true, waits: None, found_shortage })
    }

    /// Appends every record of a failed segment again, or a tombstone if it is lost.
    pub(in crate::engine) fn rescue(&self, failed: &Failed) -> Result<(), Refused> {
        for entry in failed.remaining() {
            while !self.rescue_entry(failed, &entry)? {}
            failed.advance();
        }
        Ok(())
    }

    /// Appends the record of an entry again, or a tombstone, unless a newer version is in the log.
    /// Returns false if the index changed meanwhile, and the entry is to be looked at again.
    fn rescue_entry(&self, failed: &Failed, entry: &FooterEntry) -> Result<bool, Refused> {
        let place = failed.location(entry);
        let named = self.index.get(entry.hash);
        let refuse = |error: io::Error| {
            // The record may be read again once the reason is gone, so nothing is buried.
            let _recorded = self.fail("rescuing a segment", &error);
            Refused::Closing
        };
        if named.as_ref().is_some_and(|named| named.location == place)
            && let Some((record, bytes)) = failed.record(self.context.store, entry, || self.table.file(place.segment)).map_err(refuse)?
            && self.reinsert(failed.row(), entry, &record, &bytes)?
        {
            return Ok(true);
        }
        if let Some(named) = named.as_ref().filter(|named| named.location != place)
            && self.hash_at(named).map_err(refuse)? == Some(entry.hash)
        {
            return Ok(true);
        }
        // One of these:
        // - The record is lost.
        // - Its entry was deleted, or found expired or damaged since.
        // - Another key with the same fingerprint has its slot, and loses it here too.
        // Older versions may lie in older segments.
        let location = named.map(|named| named.location);
        self.bury(entry, || self.index.get(entry.hash).map(|now| now.location) == location)
    }

    /// The hash of the record at an index entry. `None` if the record is lost or gone. Fails if it
    /// cannot be read for a reason that says nothing of its bytes.
    fn hash_at(&self, named: &IndexEntry) -> io::Result<Option<KeyHash>> {
        let segment = named.location.segment;
        if let Some(failed) = self.log.lock().failed().iter().find(|failed| failed.row().life.id == segment) {
            // Its record is appended again too, or buried.
            return Ok(failed.hash_at(named.location.offset));
        }
        let Some(life) = self.table.life(segment) else { return Ok(None) };
        match self.read(named, &life) {
            Ok(found) => Ok(found.map(|found| found.record.effect(self.context.hash_seed, found.bytes()).0)),
            Err(ReadFailed(error)) if is_loss(&error) => Ok(None),
            Err(ReadFailed(error)) => Err(error),
        }
    }
}
