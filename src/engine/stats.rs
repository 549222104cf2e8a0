//! What users see of the counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Engine;
use super::counters;
use super::refused::Refused;
use crate::id::Lsn;
use crate::segment::table::Stage;

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
    io_uring: bool = |e: &Engine| e.context.disk.reads_together(),
    /// Entries that the index knows.
    entries: u64 = |e: &Engine| e.index.entries(),
    /// Bytes of DRAM that the index takes.
    index_bytes: u64 = |e: &Engine| e.index.allocated(),
    /// Bytes of DRAM accounted for: index, rings, footers under construction, buffers of reads in flight, memory tier.
    memory_bytes: u64 = |e: &Engine| e.memory_bytes(),
    /// Bytes of DRAM, not accounted for, in values that users still have and the memory tier does not.
    kept_value_bytes: u64 = |e: &Engine| e.reads.kept_value_bytes(),
    /// Entries in the memory tier.
    memory_tier_entries: u64 = |e: &Engine| e.reads.memory().entries(),
    /// Bytes in the memory tier.
    memory_tier_bytes: u64 = |e: &Engine| e.reads.memory().bytes(),
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
    segments_free: u64 = |e: &Engine| e.segments_in(Stage::Free),
    /// Segments with a footer.
    segments_sealed: u64 = |e: &Engine| e.segments_in(Stage::Sealed),
    /// Segments that are not used again, since a write or a sync failed for them.
    segments_quarantined: u64 = |e: &Engine| e.segments_in(Stage::Quarantined) + e.segments_in(Stage::Failed),
    /// Segments emptied.
    segments_reclaimed: u64 = |e: &Engine| count(&e.counters.reclaimed),
    /// Records kept while their segment was emptied.
    reinserted: u64 = |e: &Engine| count(&e.counters.reinserted),
    /// Live entries forgotten while their segment was emptied.
    evicted: u64 = |e: &Engine| count(&e.counters.evicted),
    /// The newest mutation.
    appended: Lsn = |e: &Engine| e.log.marks().appended(),
    /// Everything up to here has left the write buffer.
    written: Lsn = |e: &Engine| e.log.marks().written(),
    /// Everything up to here is synced.
    durable: Lsn = |e: &Engine| e.log.marks().durable(),
    /// Entries of this version and older may have been evicted; newer ones were not.
    reclaimed: Lsn = |e: &Engine| e.log.marks().reclaimed(),
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
    syncs: u64 = |e: &Engine| e.durability.syncs(),
    /// Times that a mutation waited for room, by cause.
    waits: PerCause = |e: &Engine| PerCause::of(&e.counters.waits),
    /// Mutations that were refused with [`crate::Error::WouldBlock`] or [`crate::Error::TimedOut`], by
    /// cause.
    refusals: PerCause = |e: &Engine| PerCause::of(&e.counters.refusals),
}

/// Counts by cause: why mutations waited for room, or were refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PerCause {
    /// The segment ring was full: flash takes records more slowly than they come.
    pub segment_ring: u64,
    /// The WAL ring was full.
    pub wal_ring: u64,
    /// More than twice [`crate::Options::sync_bytes`] were unsynced.
    pub unsynced_bytes: u64,
    /// The oldest unsynced mutation was older than three times [`crate::Options::sync_interval`].
    pub unsynced_age: u64,
    /// No segment was ready: the oldest one is being emptied, or the disk is full.
    pub segment: u64,
    /// A segment failed, and its records are moved first.
    pub rescue: u64,
    /// A checkpoint takes longer than the records that come while it is written allow.
    pub checkpoint: u64,
    /// The index takes more than its share of [`crate::Options::memory`].
    pub index: u64,
    /// The manifest's files were too short for another namespace or resume token.
    pub manifest: u64,
}

impl PerCause {
    fn of(counts: &counters::PerCause) -> Self {
        Self {
            segment_ring: counts.of(Refused::SegmentRingFull),
            wal_ring: counts.of(Refused::WalRingFull),
            unsynced_bytes: counts.of(Refused::UnsyncedBytes),
            unsynced_age: counts.of(Refused::UnsyncedAge),
            segment: counts.of(Refused::NoSegment) + counts.of(Refused::Reserved),
            rescue: counts.of(Refused::RescueFirst),
            checkpoint: counts.of(Refused::CheckpointBehind),
            index: counts.of(Refused::IndexFull),
            manifest: counts.of(Refused::ManifestFull),
        }
    }

    /// All causes together.
    pub fn total(&self) -> u64 {
        let Self { segment_ring, wal_ring, unsynced_bytes, unsynced_age, segment, rescue, checkpoint, index, manifest } = *self;
        segment_ring + wal_ring + unsynced_bytes + unsynced_age + segment + rescue + checkpoint + index + manifest
    }
}

impl Engine {
    fn segments_in(&self, stage: Stage) -> u64 {
        self.table.count(stage) as u64
    }
}
