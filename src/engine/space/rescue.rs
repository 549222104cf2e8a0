//! Moves the records of failed segments to other segments.
//!
//! The file of a failed segment is not written again. Its records still count: without a lost
//! tombstone or newer version, an older version would come back. For each record one of these
//! happens:
//!
//! - Nothing, if the index has a newer version elsewhere.
//! - A record that verifies, in the file or among the bytes that were not flushed, is appended
//!   again elsewhere.
//! - For any other record a tombstone is appended, so that no older version is served, even after a
//!   restart.
//!
//! Until all of that is durable, the WAL keeps the frames of the segment, and no sync succeeds.
//! Then the segment is quarantined.

use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::log::sync::Synced;
use crate::engine::refused::Refused;
use crate::error::Result;
use crate::manifest::ManifestStore;
use crate::segment::failed::Failed;
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
            let entry = &entry;
            let location = failed.location(entry);
            let names_it = || self.index.get(entry.hash).map(|now| now.location == location);
            match names_it() {
                Some(false) => {}
                Some(true)
                    if let Some((record, bytes)) = failed.record(self.context.store, entry, || self.table.file(location.segment))
                        && self.reinsert(failed.row(), entry, &record, &bytes)? => {}
                // The record is lost, or its entry was deleted or found expired or damaged since.
                // Older versions may lie in older segments.
                _ => self.bury(entry, || names_it() != Some(false))?,
            }
            failed.advance();
        }
        Ok(())
    }
}
