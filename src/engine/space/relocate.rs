//! Appends records of a segment again, so that the segment is no longer needed.

use std::sync::atomic::Ordering;

use crate::engine::Engine;
use crate::engine::log::append::{Append, Appending};
use crate::engine::refused::Refused;
use crate::id::Location;
use crate::segment::footer::FooterEntry;
use crate::segment::format::{Draft, Record};
use crate::segment::table::{Row, Stage};

/// A record whose LSN is this much older than the newest one states its LSN in full. The relative
/// form, counted from the base of the new segment, may be too short for it.
const FAR: u64 = 1 << 30;

impl Engine {
    /// Appends a record again under its LSN, if the index still points to it. Returns whether it
    /// was appended.
    pub(in crate::engine) fn reinsert(&self, row: &Row, entry: &FooterEntry, record: &Record, bytes: &[u8]) -> Result<bool, Refused> {
        let is_far = self.log.marks().appended().0.saturating_sub(record.lsn.0) >= FAR;
        let Some(draft) = Draft::of_record(bytes, record, is_far) else { return Ok(false) };
        let location = Location { segment: row.life.id, offset: entry.offset };
        let _in_order = self.log.stripe(entry.hash);
        if !self.index.names(entry.hash, location) {
            return Ok(false);
        }
        let kind = Appending::Move { lsn: record.lsn, urgent: row.stage == Stage::Failed };
        let placed = self.append(&Append { hash: entry.hash, draft: &draft, kind })?;
        self.index.insert(entry.hash, &placed.entry);
        self.counters.reinserted.fetch_add(1, Ordering::Relaxed);
        self.table.record_move(row.life.id, self.log.marks().appended_bytes());
        Ok(true)
    }

    /// Appends a tombstone for the hash of a lost entry, if `is_wanted` still returns true under
    /// its stripe lock. From then on no older version of the key is served, even after a restart.
    /// Returns whether it was appended.
    pub(super) fn bury(&self, entry: &FooterEntry, is_wanted: impl Fn() -> bool) -> Result<bool, Refused> {
        let draft = Draft::tombstone(entry.hash);
        let _in_order = self.log.stripe(entry.hash);
        if !is_wanted() {
            return Ok(false);
        }
        self.append(&Append { hash: entry.hash, draft: &draft, kind: Appending::Burial })?;
        self.reads.memory().supersede(entry.hash, None, || self.index.remove(entry.hash));
        Ok(true)
    }
}
