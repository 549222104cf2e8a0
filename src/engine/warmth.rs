//! Warmth: remembers the hot keys of the memory tier across restarts.
//!
//! While entries are inserted, the hashes of the hottest keys are written every [`INTERVAL`] to one
//! of two files. After a restart the newer whole file is read. A background thread then looks up
//! its keys, hottest first, and inserts their records into the memory tier. A lost list costs only
//! warmth.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Engine, file_names};
use crate::concurrent::lock;
use crate::error::Result;
use crate::id::{KeyHash, SegmentId, StoreId};
use crate::index::geometry::IndexEntry;
use crate::io::aligned::AlignedBuf;
use crate::io::{Disk, create_or_resize, is_shortage};
use crate::segment::extent::Extent;
use crate::segment::format;
use crate::tier::warmth_list::{KEYS_MAX, WarmthList};

/// How often the keys of the memory tier are recorded while they change.
pub(in crate::engine) const INTERVAL: Duration = Duration::from_secs(2);
/// Keys that one step brings back. The step reads their records in the order of their positions.
const REFILL_KEYS: usize = 8192;
/// At most one key in this many bytes of memory is recorded or brought back.
const BYTES_PER_KEY: u64 = 256;
/// Records with at most this many bytes between them are read at once.
const REFILL_GAP: u64 = 16 << 10;
/// Upper bound of the bytes of one such read.
const REFILL_SPAN: u64 = 256 << 10;

/// Upper bound of the number of keys that are recorded or brought back with `memory` bytes.
fn keys_max(memory: u64) -> usize {
    KEYS_MAX.min((memory / BYTES_PER_KEY) as usize)
}

/// Progress of recording and of refilling.
#[derive(Debug, Default)]
pub(in crate::engine) struct WarmthState {
    /// Sequence of the newest file.
    sequence: u64,
    /// Number of inserts into the memory tier at the last recording.
    recorded_inserts: u64,
    /// Keys that are still to be brought back, coldest first.
    refill: Vec<KeyHash>,
    /// Number of keys at the end of `refill` that have proved themselves.
    refill_proved: usize,
}

impl WarmthState {
    /// The newer of the two files that is whole, as a refill. Without a whole file the refill is
    /// empty.
    pub(in crate::engine) fn load(disk: &dyn Disk, store: StoreId, memory: u64) -> Self {
        let read = |parity: u64| WarmthList::read(store, disk.open(&file_names::warmth_list(parity))?.as_ref(), keys_max(memory));
        let newest = [0, 1].into_iter().filter_map(|parity| read(parity).ok().flatten()).max_by_key(|list| list.sequence);
        let Some(mut list) = newest else { return Self::default() };
        list.hashes.reverse();
        Self { sequence: list.sequence, recorded_inserts: 0, refill: list.hashes, refill_proved: list.proved }
    }
}

impl Engine {
    /// Records the hottest keys of the memory tier, if the tier changed. A failure costs only
    /// warmth, so it is logged and not returned.
    pub(crate) fn step_record_warmth(&self) -> Result<bool> {
        let mut state = lock(&self.warmth);
        let inserts = self.reads.memory().inserts();
        // The old list is better while its keys are still being brought back.
        if inserts == state.recorded_inserts || !state.refill.is_empty() {
            return Ok(false);
        }
        match self.record_warmth(state.sequence + 1) {
            Ok(()) => {
                state.sequence += 1;
                state.recorded_inserts = inserts;
            }
            Err(error) => {
                let counter = if is_shortage(&error) { &self.counters.disk_full } else { &self.counters.write_errors };
                counter.fetch_add(1, Ordering::Relaxed);
                self.context.warn_of("the list of hot keys was not written; the next start is colder", None, &error);
            }
        }
        Ok(false)
    }

    /// Writes the hottest keys to the file of this sequence.
    fn record_warmth(&self, sequence: u64) -> io::Result<()> {
        let (hashes, proved) = self.reads.memory().hottest(keys_max(self.context.settings.memory));
        let list = WarmthList { sequence, hashes, proved };
        let file = create_or_resize(self.context.disk.as_ref(), &file_names::warmth_list(sequence), list.file_len(), self.context.store)?;
        list.write(self.context.store, file.as_ref())
    }

    /// Brings back the next recorded keys. Returns whether there may be more.
    pub(crate) fn step_refill(&self) -> Result<bool> {
        let (mut keys, proved) = {
            let mut state = lock(&self.warmth);
            if self.reads.memory().is_full() {
                state.refill = Vec::new();
            }
            let keep = state.refill.len().saturating_sub(REFILL_KEYS);
            let keys = state.refill.split_off(keep);
            let proved = state.refill_proved.min(keys.len());
            state.refill_proved -= proved;
            (keys, proved)
        };
        // The keys that have proved themselves are the hottest, so they are at the end.
        let hot = keys.split_off(keys.len() - proved);
        for (hashes, proved) in [(&hot, true), (&keys, false)] {
            self.refill(hashes, proved);
        }
        Ok(!hot.is_empty() || !keys.is_empty())
    }

    /// Reads the records of these keys, near ones together, and inserts them into the memory tier.
    fn refill(&self, hashes: &[KeyHash], proved: bool) {
        let mut wanted: Vec<(IndexEntry, KeyHash)> = hashes.iter().filter_map(|hash| Some((self.index.get(*hash)?, *hash))).collect();
        wanted.sort_by_key(|(entry, _)| entry.location);
        let mut rest = &wanted[..];
        while let Some((first, _)) = rest.first() {
            if self.health.is_closing() {
                return;
            }
            let (segment, start) = (first.location.segment, extent_of(first).start());
            let mut end = extent_of(first).end();
            let in_one_read = rest.iter().take_while(|(entry, _)| {
                let extent = extent_of(entry);
                let is_near = entry.location.segment == segment && u64::from(entry.location.offset) <= end + REFILL_GAP;
                let fits = is_near && (extent.end() - start <= REFILL_SPAN || extent.start() == start);
                end = if fits { end.max(extent.end()) } else { end };
                fits
            });
            let count = in_one_read.count();
            self.refill_span(segment, extent_of(first), end, &rest[..count], proved);
            rest = &rest[count..];
        }
    }

    /// Reads a segment from `first` to `end`, and inserts the records of `wanted` into the memory
    /// tier.
    fn refill_span(&self, segment: SegmentId, first: Extent, end: u64, wanted: &[(IndexEntry, KeyHash)], proved: bool) {
        let Some(life) = self.table.life(segment) else { return };
        // Another life of another size may have begun since; its records do not verify at the
        // positions of this one.
        let extent = first.up_to(end, self.table.row(segment).size);
        if extent.is_empty() {
            return;
        }
        let mut buf = AlignedBuf::zeroed(extent.len());
        let read = self.table.file(segment).and_then(|file| file.read_at(extent.start(), &mut buf));
        if read.is_err() {
            // A get of these entries reads them again, and reports the failure.
            return;
        }
        for (entry, hash) in wanted {
            let at = life.base.plus(entry.location.offset.into());
            let Some(bytes) = buf.get(extent.index_of(entry.location.offset)..) else { continue };
            if let Some(record) = format::decode_record(self.context.store, at, life.base_lsn, bytes)
                && let Some(item) = self.item_of(*hash, bytes, &record)
            {
                self.reads.memory().insert(&item, proved, || self.still_current(*hash, entry, at));
            }
        }
    }
}

/// The sectors that a read of an entry takes, in a segment of any size.
fn extent_of(entry: &IndexEntry) -> Extent {
    Extent::of_sectors(entry.location.offset, entry.sectors, u64::MAX)
}
