//! Reclaims the oldest segment: wanted entries are appended again, the others are evicted.
//!
//! 1. The segment begins to drain, and `reclaimed` rises to its last LSN. A caller that then misses
//!    an entry can know that it was evicted.
//! 2. Every entry of its footer that the index still points to is live. A live entry is kept,
//!    evicted, or dropped because it expired or its namespace was dropped.
//! 3. A kept entry is appended at the end of the stream under its old LSN. It counts against the
//!    budget of moves.
//! 4. The moves are synced. An entry that was durable in its old place must be durable in its new
//!    place before the old one is reused.
//! 5. The segment is free.
//!
//! While live entries fit into flash with room to spare, all of them are kept. Beyond that only hot
//! entries are kept, up to a share of the segment's records, so that reclaiming always gains room.
//! If step 3 or 4 cannot finish, the segment stays sealed, and a later attempt empties the rest of
//! it.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;

use super::occupancy::{Capacity, ready_wanted};
use crate::config::{Activity, Cause, Evicted};
use crate::engine::Engine;
use crate::engine::refused::Helps;
use crate::id::{Location, NamespaceGeneration, SegmentId};
use crate::io::{is_loss, is_shortage};
use crate::segment::footer::FooterEntry;
use crate::segment::format::{self, Kind, Record};
use crate::segment::reader::{Listing, SMALL_WINDOW, SegmentView, WINDOW};
use crate::segment::table::{Row, Stage};

/// When not all live entries are kept, one byte in this many of the records of a segment may be
/// reinserted.
const REINSERT_SHARE: u64 = 4;

/// The entries that a drain may append again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Those that flash has room for, or that are hot.
    Wanted,
    /// None: the disk is full, and an append would take room.
    Nothing,
}

/// The outcome for a live entry.
enum Fate {
    /// The entry has another place, or a newer version came.
    Kept,
    /// The entry expired, or its namespace was dropped.
    Dead(Cause),
    /// The entry is not hot enough, or there is no room for it.
    Unwanted,
}

impl Engine {
    /// Empties the oldest sealed segment, and returns it. `None` if there is none, or if it could
    /// not be freed yet.
    pub(super) fn drain_oldest(&self, keep: Keep) -> Option<SegmentId> {
        // If a failed segment is older, its records are rescued first.
        let oldest = self.table.select(|r| matches!(r.stage, Stage::Sealed | Stage::Failed)).first().copied();
        let row = oldest.filter(|row| row.stage == Stage::Sealed)?;
        let drained = self.drain(&row, keep);
        if !drained {
            self.occupancy.deny_space();
        }
        drained.then_some(row.life.id)
    }

    /// Empties a sealed segment. Returns false if the moves could not be synced, or if the entries
    /// could not all be moved. Then the segment stays sealed, and a later call empties the rest of
    /// it.
    fn drain(&self, row: &Row, keep: Keep) -> bool {
        let _observed = self.context.observe(Activity::Reclaim);
        let id = row.life.id;
        self.table.drain(id);
        // Raised before the first entry goes, so that a caller that misses one can know why.
        self.log.marks().raise_reclaimed(row.last_lsn);
        let finished = self.drain_entries(row, keep).unwrap_or_else(|error| {
            if is_shortage(&error) {
                // No descriptor for the file is free now. A later call may have one.
                self.context.warn_of("a segment cannot be emptied now; it is tried again", Some(id), &error);
                return false;
            }
            if !is_loss(&error) {
                // Its entries may be read again once the reason is gone, so they are not given up.
                let _recorded = self.fail("emptying a segment", &error);
                return false;
            }
            self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
            self.context.warn_of("a segment cannot be read; its entries are lost", Some(id), &error);
            self.index.remove_segment(id);
            true
        });
        self.events.room.signal();
        // Without room for the WAL no move can be synced. Then earlier moves of this segment may be
        // lost by a host crash, as if they had been evicted: `reclaimed` is past them.
        if !finished || (keep == Keep::Wanted && !self.moves_are_synced(id)) {
            self.table.keep(id);
            return false;
        }
        self.table.free(id);
        self.counters.reclaimed.fetch_add(1, Ordering::Relaxed);
        self.events.prepare.signal();
        true
    }

    /// Whether every entry that was moved out of a segment is durable in its new place. The old
    /// place may have been durable, so it is not reused before. A move into a segment that has
    /// failed since is durable once that segment is rescued.
    fn moves_are_synced(&self, id: SegmentId) -> bool {
        let moved_until = self.table.row(id).moved_until;
        let synced = || self.log.marks().synced_bytes() >= moved_until;
        if !synced() {
            let _recorded = self.step_sync();
        }
        synced()
    }

    /// Moves or evicts every live entry of a segment. Returns false if the engine stops or another
    /// segment fails before that is done.
    fn drain_entries(&self, row: &Row, keep: Keep) -> io::Result<bool> {
        let file = self.table.file(row.life.id)?;
        let at_once = self.context.settings.work_buffer;
        let mut listing = Listing::new(self.context.store, row, self.context.hash_seed, file.as_ref(), at_once);
        let location = |entry: &FooterEntry| Location { segment: row.life.id, offset: entry.offset };
        let data_bytes = listing.data_bytes();
        let keep_all = self.has_room_for_all(data_bytes, row.size) && !self.index_is_over_budget();
        let mut budget = match keep_all {
            // While a segment is failed no sync succeeds, so a move would gain no room.
            _ if self.table.count(Stage::Failed) > 0 || keep == Keep::Nothing => 0,
            true => row.size,
            false => data_bytes / REINSERT_SHARE,
        };
        // While enough other segments are ready, no writer waits for this one, and small reads
        // disturb gets less.
        let is_calm = self.log.lock().ready_count() >= ready_wanted(self.context.settings.segments);
        let window = if is_calm { SMALL_WINDOW } else { WINDOW };
        let mut window = SegmentView::new(file.as_ref(), row.size, window.min(at_once));
        let generations = self.namespaces.generations();
        let is_live = |e: &FooterEntry| !e.tombstone && self.index.names(e.hash, location(e));
        for entry in listing.by_ref().flatten().filter(is_live) {
            let entry = &entry;
            let keep = u64::from(entry.len) <= budget && (keep_all || self.is_hot(entry, location(entry)));
            if !keep && self.context.listener.is_none() {
                self.evict(entry, location(entry));
                continue;
            }
            let Some((record, bytes)) = self.record_in(&mut window, row, entry)? else {
                self.index.remove_if_at(entry.hash, location(entry));
                continue;
            };
            let fate = match self.cause_of_death(&record, &generations) {
                Some(cause) => Fate::Dead(cause),
                None if keep => self.try_reinsert(row, entry, &record, bytes),
                None => Fate::Unwanted,
            };
            match fate {
                Fate::Kept => budget = budget.saturating_sub(entry.len.into()),
                _ if self.health.is_stopping() => return Ok(false),
                Fate::Dead(cause) => {
                    if self.index.remove_if_at(entry.hash, location(entry)) {
                        self.tell(&record, bytes, cause);
                    }
                }
                // Another segment failed meanwhile. Its records are rescued first, and then there
                // may be room again.
                Fate::Unwanted if keep && self.table.count(Stage::Failed) > 0 => return Ok(false),
                Fate::Unwanted => {
                    if self.evict(entry, location(entry)) {
                        self.tell(&record, bytes, Cause::Capacity);
                    }
                }
            }
        }
        if let Some(error) = listing.take_refusal() {
            return Err(error);
        }
        self.counters.damaged.fetch_add(listing.lost(), Ordering::Relaxed);
        if listing.lost() > 0 {
            self.index.remove_segment(row.life.id);
        }
        Ok(true)
    }

    /// The record of an entry, if it verifies. If its place cannot be read, only the entries there
    /// are lost.
    fn record_in<'w>(&self, window: &'w mut SegmentView<'_>, row: &Row, entry: &FooterEntry) -> io::Result<Option<(Record, &'w [u8])>> {
        let bytes = match window.bytes(entry.offset, entry.len) {
            Ok(bytes) => bytes,
            Err(error) if !is_loss(&error) => return Err(error),
            Err(error) => {
                self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
                self.context.warn_of("an entry cannot be read while its segment is emptied; it is lost", Some(row.life.id), &error);
                return Ok(None);
            }
        };
        let record = format::decode_record(self.context.store, row.life.base.plus(entry.offset.into()), row.life.base_lsn, bytes);
        if record.is_none() {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
        }
        Ok(record.map(|record| (record, bytes)))
    }

    /// Removes a live entry. Returns whether the index still had it.
    fn evict(&self, entry: &FooterEntry, location: Location) -> bool {
        let evicted = self.index.remove_if_at(entry.hash, location);
        if evicted {
            self.reads.memory().supersede(entry.hash, None, || ());
        }
        self.counters.evicted.fetch_add(u64::from(evicted), Ordering::Relaxed);
        evicted
    }

    /// Why an entry is dead: it expired, or its namespace was dropped. `None` if it can still be
    /// served.
    fn cause_of_death(&self, record: &Record, generations: &HashSet<NamespaceGeneration>) -> Option<Cause> {
        match &record.kind {
            Kind::Put { namespace, .. } if !generations.contains(namespace) => Some(Cause::Dropped),
            Kind::Put { expires_ms: Some(at), .. } if *at <= self.context.time.now_ms() => {
                self.record_time_passed(*at);
                Some(Cause::Expired)
            }
            _ => None,
        }
    }

    /// Tells the listener, if there is one, that an entry goes.
    fn tell(&self, record: &Record, bytes: &[u8], cause: Cause) {
        if let Kind::Put { key, .. } = &record.kind {
            self.context.tell(&Evicted { key: &bytes[key.clone()], version: record.lsn, cause });
        }
    }

    /// Reinserts a record. While a ring is full, it writes the ring out and tries again. No other
    /// thread may be about to do so, and other writers may fill the ring first.
    fn try_reinsert(&self, row: &Row, entry: &FooterEntry, record: &Record, bytes: &[u8]) -> Fate {
        let progress = || {
            let (segment_ring, wal) = (self.log.segment_ring().written(), self.log.wal().written());
            (segment_ring, wal, self.log.marks().synced_bytes(), self.log.lock().allocated())
        };
        loop {
            let before = progress();
            match self.reinsert(row, entry, record, bytes) {
                Ok(_) => return Fate::Kept,
                Err(cause) if cause.helped_by() != Helps::WriteOut => return Fate::Unwanted,
                Err(_) => {}
            }
            let _recorded = self.step_flush().and_then(|_| self.step_seal()).and_then(|_| self.step_sync());
            if progress() == before {
                return Fate::Unwanted;
            }
        }
    }

    /// Whether flash has room for every live entry. Called as a segment with `data_bytes` of
    /// records is emptied.
    fn has_room_for_all(&self, data_bytes: u64, size: u64) -> bool {
        let settings = &self.context.settings;
        let capacity = Capacity {
            flash: self.flash(),
            segments: settings.segments,
            segment_size: settings.segment_size,
            ready: ready_wanted(settings.segments),
            failed_bytes: self.failed_bytes(),
        };
        self.occupancy.has_room_for_all(data_bytes, size, self.index.record_bytes(), &capacity)
    }

    /// Bytes that segments can take: the store's flash, or less if the disk gives less.
    pub(super) fn flash(&self) -> u64 {
        let settings = &self.context.settings;
        if !self.health.disk_room().is_full() {
            return settings.flash;
        }
        let is_there = |row: &Row| row.stage != Stage::Free || self.table.has_file(row.life.id, row.size);
        self.table.select(is_there).iter().map(|row| row.size).sum::<u64>().min(settings.flash)
    }

    /// Whether an entry was read since it was appended here, or is in the memory tier.
    fn is_hot(&self, entry: &FooterEntry, location: Location) -> bool {
        let Some(current) = self.index.get(entry.hash).filter(|now| now.location == location) else { return false };
        current.hot || self.reads.memory().holds(entry.hash)
    }
}
