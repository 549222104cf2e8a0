//! Counters, and what users see of them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;

use super::Engine;
use crate::id::Lsn;
use crate::io::ring::Ring;
use crate::segment::table::Stage;

/// A count of what many threads do at once: each adds in a place of its own, so that none waits for another's cache line.
#[derive(Debug, Default)]
pub(super) struct StripedCounter([CachePadded<AtomicU64>; STRIPES]);

/// A power of two. More threads than that share places.
const STRIPES: usize = 8;

impl StripedCounter {
    pub(super) fn add(&self) {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static PLACE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES);
        self.0[PLACE.with(|place| *place)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(|place| place.load(Ordering::Relaxed)).sum()
    }
}

/// Counted since open.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits_memory: StripedCounter,
    pub(super) hits_buffer: StripedCounter,
    pub(super) hits_flash: StripedCounter,
    pub(super) misses: StripedCounter,
    pub(super) puts: AtomicU64,
    pub(super) deletes: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) collisions: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) read_errors: AtomicU64,
    pub(super) disk_full: AtomicU64,
    pub(super) write_errors: AtomicU64,
    pub(super) reclaimed: AtomicU64,
    pub(super) reinserted: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) segment_bytes: AtomicU64,
    pub(super) wal_bytes: AtomicU64,
    pub(super) manifest_bytes: AtomicU64,
    pub(super) checkpoint_bytes: AtomicU64,
    pub(super) checkpoints: AtomicU64,
    pub(super) syncs: AtomicU64,
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr,)*) => {
        /// What a cache holds and has done since it was opened.
        #[derive(Clone, Debug, Default)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Engine {
            /// A reading of every figure; they are not taken at the same instant.
            pub(crate) fn stats(&self) -> Stats {
                Stats { $($name: $value(self),)* }
            }
        }
    };
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

stats! {
    /// Whether reads of [`crate::Cache::get_many`] go through `io_uring`.
    io_uring: bool = |e: &Engine| e.disk.reads_together(),
    /// Entries that the index knows.
    entries: u64 = |e: &Engine| e.index.entries(),
    /// Bytes of DRAM that the index takes.
    index_bytes: u64 = |e: &Engine| e.index.allocated(),
    /// Bytes of DRAM accounted for: index, rings, footers under construction, buffers of reads in flight, memory tier.
    memory_bytes: u64 = |e: &Engine| e.memory_bytes(),
    /// Bytes of DRAM, not accounted for, in values that users still have and the memory tier does not.
    kept_value_bytes: u64 = |e: &Engine| e.values.bytes().saturating_sub(e.memory.value_bytes()),
    /// Entries in the memory tier.
    memory_tier_entries: u64 = |e: &Engine| e.memory.entries(),
    /// Bytes in the memory tier.
    memory_tier_bytes: u64 = |e: &Engine| e.memory.bytes(),
    /// Gets answered by the memory tier.
    hits_memory: u64 = |e: &Engine| e.counters.hits_memory.sum(),
    /// Gets answered by the write buffer.
    hits_buffer: u64 = |e: &Engine| e.counters.hits_buffer.sum(),
    /// Gets answered by flash.
    hits_flash: u64 = |e: &Engine| e.counters.hits_flash.sum(),
    /// Gets without an answer.
    misses: u64 = |e: &Engine| e.counters.misses.sum(),
    /// Puts that took effect.
    puts: u64 = |e: &Engine| count(&e.counters.puts),
    /// Deletes.
    deletes: u64 = |e: &Engine| count(&e.counters.deletes),
    /// Entries that were found expired.
    expired: u64 = |e: &Engine| count(&e.counters.expired),
    /// Gets that found another key under the same fingerprint.
    collisions: u64 = |e: &Engine| count(&e.counters.collisions),
    /// Records and footer blocks that did not verify.
    damaged: u64 = |e: &Engine| count(&e.counters.damaged),
    /// Reads that the disk refused.
    read_errors: u64 = |e: &Engine| count(&e.counters.read_errors),
    /// Segments, checkpoints and lists of what is hot that a write or a sync failed for.
    write_errors: u64 = |e: &Engine| count(&e.counters.write_errors),
    /// Times that a segment, a checkpoint or a list of what is hot found no room on the disk.
    disk_full: u64 = |e: &Engine| count(&e.counters.disk_full),
    /// Segments in the table.
    segments_total: u64 = |e: &Engine| e.table.len() as u64,
    /// Segments without a life.
    segments_free: u64 = |e: &Engine| e.segments(Stage::Free),
    /// Segments with a footer.
    segments_sealed: u64 = |e: &Engine| e.segments(Stage::Sealed),
    /// Segments that are not used again, since a write or a sync failed for them.
    segments_quarantined: u64 = |e: &Engine| e.segments(Stage::Quarantined) + e.segments(Stage::Failed),
    /// Segments emptied.
    segments_reclaimed: u64 = |e: &Engine| count(&e.counters.reclaimed),
    /// Records kept while their segment was emptied.
    reinserted: u64 = |e: &Engine| count(&e.counters.reinserted),
    /// Live entries forgotten while their segment was emptied.
    evicted: u64 = |e: &Engine| count(&e.counters.evicted),
    /// The newest mutation.
    appended: Lsn = |e: &Engine| Lsn(count(&e.marks.appended)),
    /// Everything up to here has left the write buffer.
    written: Lsn = |e: &Engine| Lsn(count(&e.marks.written)),
    /// Everything up to here is synced.
    durable: Lsn = |e: &Engine| e.durable(),
    /// Entries of this version and older may have been evicted; newer ones were not.
    reclaimed: Lsn = |e: &Engine| Lsn(count(&e.marks.reclaimed)),
    /// Age of the oldest unsynced mutation.
    unsynced_age: Duration = |e: &Engine| e.unsynced_age(),
    /// Bytes written to segments: records, footers, headers.
    flash_bytes_written: u64 = |e: &Engine| count(&e.counters.segment_bytes),
    /// Bytes written to WAL files.
    wal_bytes_written: u64 = |e: &Engine| count(&e.counters.wal_bytes),
    /// Bytes written to manifests.
    manifest_bytes_written: u64 = |e: &Engine| count(&e.counters.manifest_bytes),
    /// Bytes written to checkpoints.
    checkpoint_bytes_written: u64 = |e: &Engine| count(&e.counters.checkpoint_bytes),
    /// Checkpoints taken.
    checkpoints: u64 = |e: &Engine| count(&e.counters.checkpoints),
    /// Syncs of the WAL.
    syncs: u64 = |e: &Engine| count(&e.counters.syncs),
}

impl Engine {
    fn memory_bytes(&self) -> u64 {
        self.memory_besides_tier() + self.memory.allocated()
    }

    /// Bytes of DRAM that are not the memory tier's.
    fn memory_besides_tier(&self) -> u64 {
        let log = crate::concurrent::lock(&self.log);
        let open = log.open.as_ref().map_or(0, |open| open.allocated());
        let full: usize = log.full.iter().map(|full| full.footer.allocated()).sum();
        let failed: usize = log.failed.iter().map(|failed| failed.allocated()).sum();
        self.index.allocated()
            + Ring::allocated(self.settings.segment_ring)
            + Ring::allocated(self.settings.wal_ring)
            + self.reads.bytes()
            + self.buffers.bytes_max()
            + (open + full + failed) as u64
    }

    /// Gives the memory tier what the rest leaves of the budget now.
    pub(super) fn balance_memory(&self) {
        self.memory.set_budget(self.settings.memory.saturating_sub(self.memory_besides_tier()));
    }
}
