//! Emptying the oldest segment: what is to be kept is appended again, the rest is forgotten.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;

use super::Engine;
use super::append::{Append, NoRoom};
use crate::concurrent::lock;
use crate::config::{Activity, Cause, Evicted};
use crate::id::{Location, NamespaceGeneration, SegmentId};
use crate::io::is_shortage;
use crate::segment::footer;
use crate::segment::format::{self, Draft, Kind, Record};
use crate::segment::reader::{self, SMALL_WINDOW, SegmentView, WINDOW};
use crate::segment::table::{Row, Stage};

/// While live entries take up to this share (in percent) of what records can take of flash, all of them are to be kept: there is garbage enough to win room from.
const KEEP_ALL_PERCENT: u64 = 75;
/// Segments besides the ready ones that hold no sealed records: free, open, and waiting for their footer.
const SEGMENTS_IN_FLIGHT: u64 = 4;
/// PastEnd that, at most one in this many bytes of a drained segment's records is reinserted, what is hot, so that reclaiming always wins room.
const REINSERT_SHARE: u64 = 4;
/// A version this much older than the newest may be too far from a segment's base to be stated relative to it.
const FAR: u64 = 1 << 30;

/// What becomes of an entry.
enum Fate {
    /// It has another place, or a newer version came.
    ManifestStore,
    /// It would not be served any more.
    Dead(Cause),
    /// It is not wanted enough, or there is no room for it.
    Unwanted,
}

impl Engine {
    /// Empties the oldest sealed segment. False if there is none, or if it could not be freed yet.
    pub(super) fn drain_oldest(&self) -> bool {
        // One that was sealed after a segment failed waits until that one's entries are elsewhere.
        let oldest = self.table.select(|r| matches!(r.stage, Stage::Sealed | Stage::Failed)).first().copied();
        let drained = oldest.filter(|row| row.stage == Stage::Sealed).map(|row| self.drain(&row));
        self.segment_space_denied.fetch_or(drained == Some(false), Ordering::AcqRel);
        drained == Some(true)
    }

    /// Whether the index takes more than its share of the budget, so that entries must go even if flash has room for them.
    pub(super) fn index_is_over_budget(&self) -> bool {
        self.index.allocated() > self.settings.index_bytes_max
    }

    /// Empties a sealed segment. False if what was moved could not be synced, or the engine stops: the segment stays, and what is left of it is emptied at another time.
    fn drain(&self, row: &Row) -> bool {
        let _observed = self.observe(Activity::Reclaim);
        let id = row.life.id;
        self.table.change(id, &[Stage::Sealed], |row| row.stage = Stage::Draining);
        // Said before the first entry goes, so that whoever misses one can know why.
        self.marks.reclaimed.fetch_max(row.last_lsn.0, Ordering::AcqRel);
        let finished = self.drain_entries(row).unwrap_or_else(|error| {
            if is_shortage(&error) {
                // Of file descriptors: another time.
                tracing::warn!(dir = %self.dir.display(), segment = %id, %error, "a segment cannot be emptied now");
                return false;
            }
            self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(dir = %self.dir.display(), segment = %id, %error, "a segment cannot be read; its entries are forgotten");
            self.index.remove_segment(id);
            true
        });
        self.events.room.signal();
        if !finished || !self.moves_are_synced(id) {
            self.table.change(id, &[Stage::Draining], |row| row.stage = Stage::Sealed);
            return false;
        }
        self.table.withdraw(id);
        self.table.change(id, &[Stage::Draining], |row| row.stage = Stage::Free);
        self.counters.reclaimed.fetch_add(1, Ordering::Relaxed);
        self.events.prepare.signal();
        true
    }

    /// Whether everything that was moved out of a segment is durable in its new place. It must be before the old one is free: it may have been durable there. What was moved to a
    /// segment that failed since is so once its rescue has ended.
    fn moves_are_synced(&self, id: SegmentId) -> bool {
        let moved_until = self.table.row(id).moved_until;
        let synced = || self.marks.synced_bytes.load(Ordering::Relaxed) >= moved_until;
        if !synced() {
            let _recorded = self.step_sync();
        }
        synced()
    }

    /// Whether appends are refused for good.
    fn is_stopping(&self) -> bool {
        self.closing.load(Ordering::Acquire) || self.failure.get().is_some()
    }

    /// Moves or forgets every live entry of a segment. False if the engine stops, or another segment fails, before that is done.
    fn drain_entries(&self, row: &Row) -> io::Result<bool> {
        let file = self.table.file(row.life.id)?;
        let contents = reader::entries(self.store, row, self.hash_seed, file.as_ref());
        self.counters.damaged.fetch_add(contents.lost, Ordering::Relaxed);
        let location = |entry: &footer::FooterEntry| Location { segment: row.life.id, offset: entry.offset };
        let is_live = |e: &&footer::FooterEntry| !e.tombstone && self.index.get(e.hash).is_some_and(|now| now.location == location(e));
        let live: Vec<&footer::FooterEntry> = contents.entries.iter().filter(is_live).collect();
        let data_bytes: u64 = contents.entries.iter().map(|e| u64::from(e.len)).sum();
        let keep_all = self.room_for_all(data_bytes, row.size) && !self.index_is_over_budget();
        let mut budget = match keep_all {
            // Nothing is synced meanwhile, so nothing that is moved would make room.
            _ if self.segments(Stage::Failed) > 0 => 0,
            true => row.size,
            false => data_bytes / REINSERT_SHARE,
        };
        // As long as others are ready, nobody waits for this one.
        let is_calm = lock(&self.log).ready.len() >= self.ready_wanted();
        let mut window = SegmentView::new(file.as_ref(), row.size, if is_calm { SMALL_WINDOW } else { WINDOW });
        let generations = self.generations();
        for entry in live {
            let keep = u64::from(entry.len) <= budget && (keep_all || self.is_hot(entry, location(entry)));
            if !keep && self.listener.is_none() {
                self.evict(entry, location(entry));
                continue;
            }
            let Some((record, bytes)) = self.record_in(&mut window, row, entry) else {
                self.index.remove_if_at(entry.hash, location(entry));
                continue;
            };
            let fate = match self.cause_of_death(&record, &generations) {
                Some(cause) => Fate::Dead(cause),
                None if keep => self.try_reinsert(row, entry, &record, bytes),
                None => Fate::Unwanted,
            };
            match fate {
                Fate::ManifestStore => budget = budget.saturating_sub(entry.len.into()),
                _ if self.is_stopping() => return Ok(false),
                Fate::Dead(cause) => {
                    if self.index.remove_if_at(entry.hash, location(entry)) {
                        self.tell(&record, bytes, cause);
                    }
                }
                // A segment failed meanwhile. It goes first, and then there may be room again.
                Fate::Unwanted if keep && self.segments(Stage::Failed) > 0 => return Ok(false),
                Fate::Unwanted => {
                    if self.evict(entry, location(entry)) {
                        self.tell(&record, bytes, Cause::Capacity);
                    }
                }
            }
        }
        if contents.lost > 0 {
            self.index.remove_segment(row.life.id);
        }
        Ok(true)
    }

    /// The record of an entry, if it verifies. A place that cannot be read costs the entries that lie there.
    fn record_in<'w>(&self, window: &'w mut SegmentView<'_>, row: &Row, entry: &footer::FooterEntry) -> Option<(Record, &'w [u8])> {
        let bytes = match window.bytes(entry.offset, entry.len) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(dir = %self.dir.display(), segment = %row.life.id, %error, "an entry cannot be read");
                return None;
            }
        };
        let record = format::decode_record(self.store, row.life.base.plus(entry.offset.into()), row.life.base_lsn, bytes);
        if record.is_none() {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
        }
        record.map(|record| (record, bytes))
    }

    /// Forgets an entry that is still wanted. Says whether it was there.
    fn evict(&self, entry: &footer::FooterEntry, location: Location) -> bool {
        let evicted = self.index.remove_if_at(entry.hash, location);
        if evicted {
            self.memory.supersede(entry.hash, None, || ());
        }
        self.counters.evicted.fetch_add(u64::from(evicted), Ordering::Relaxed);
        evicted
    }

    /// Why an entry would not be served any more, if so.
    fn cause_of_death(&self, record: &Record, generations: &HashSet<NamespaceGeneration>) -> Option<Cause> {
        match &record.kind {
            Kind::Put { namespace, .. } if !generations.contains(namespace) => Some(Cause::Dropped),
            Kind::Put { expires_ms: Some(at), .. } if *at <= self.time.now_ms() => {
                self.record_time_passed(*at);
                Some(Cause::Expired)
            }
            _ => None,
        }
    }

    /// Tells the listener, if there is one, which entry goes.
    fn tell(&self, record: &Record, bytes: &[u8], cause: Cause) {
        if let (Some(listener), Kind::Put { key, .. }) = (&self.listener, &record.kind) {
            listener.call(&Evicted { key: &bytes[key.clone()], version: record.lsn, cause });
        }
    }

    /// Reinserts, and while a ring is full writes it out and tries again: nobody else may be about to, and others may be quicker to fill it.
    fn try_reinsert(&self, row: &Row, entry: &footer::FooterEntry, record: &Record, bytes: &[u8]) -> Fate {
        let progress = || (self.segment_ring.written(), self.wal.written(), self.marks.synced_bytes.load(Ordering::Acquire));
        loop {
            let before = progress();
            match self.reinsert(row, entry, record, bytes) {
                Ok(_) => return Fate::ManifestStore,
                Err(NoRoom::Segment) => return Fate::Unwanted,
                Err(NoRoom::Unwritten) => {}
            }
            let _recorded = self.step_flush().and_then(|_| self.step_sync());
            if progress() == before {
                return Fate::Unwanted;
            }
        }
    }

    /// Whether flash has room for every live entry. What part of a segment records can take, beside header, footer and what no record fitted into, is taken from segments
    /// that were emptied recent_occupancy.
    fn room_for_all(&self, data_bytes: u64, size: u64) -> bool {
        let recent_occupancy = {
            let (mut recent_occupancy, window) = (lock(&self.recent_occupancy), (u64::from(self.settings.segments) / 8).max(8));
            for (sum, now) in recent_occupancy.iter_mut().zip([data_bytes, size]) {
                *sum = *sum - *sum / window + now;
            }
            *recent_occupancy
        };
        let [data_bytes, sizes] = recent_occupancy.map(u128::from);
        let in_flight = SEGMENTS_IN_FLIGHT + self.ready_wanted() as u64;
        let usable = u128::from(self.settings.flash.saturating_sub(in_flight * self.settings.segment_size + self.given_up()));
        u128::from(self.index.record_bytes()) * 100 * sizes <= usable * data_bytes * u128::from(KEEP_ALL_PERCENT)
    }

    fn is_hot(&self, entry: &footer::FooterEntry, location: Location) -> bool {
        let Some(current) = self.index.get(entry.hash).filter(|now| now.location == location) else { return false };
        current.hot || self.memory.holds(entry.hash)
    }

    /// Appends a record again under its old version, unless the index no longer names it. Says whether it did.
    pub(super) fn reinsert(&self, row: &Row, entry: &footer::FooterEntry, record: &Record, bytes: &[u8]) -> Result<bool, NoRoom> {
        let is_far = self.appended().0.saturating_sub(record.lsn.0) >= FAR;
        let Some(draft) = Draft::of_record(bytes, record, is_far) else { return Ok(false) };
        let location = Location { segment: row.life.id, offset: entry.offset };
        let _in_order = lock(self.stripe(entry.hash));
        if self.index.get(entry.hash).is_none_or(|now| now.location != location) {
            return Ok(false);
        }
        let what = Append {
            hash: entry.hash,
            draft: &draft,
            tombstone: false,
            supersedes: true,
            inline: false,
            version: Some(record.lsn),
            urgent: row.stage == Stage::Failed,
        };
        let placed = self.append(&what)?;
        self.index.insert(entry.hash, &placed.entry);
        self.counters.reinserted.fetch_add(1, Ordering::Relaxed);
        let appended = self.marks.appended_bytes.load(Ordering::Relaxed);
        self.table.change(row.life.id, &[Stage::Draining, Stage::Failed], |row| row.moved_until = appended);
        Ok(true)
    }
}
