//! The statistics that users see.
//!
//! The macro `stats` lists each figure once: its documentation, its type, and the expression that
//! reads it. It makes the public struct [`Stats`] and the function that fills it. [`PerCause`] is
//! the public form of the counters of back-pressure.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Engine;
use super::counters;
use super::refused::Refused;
use crate::id::Lsn;
use crate::segment::table::Stage;

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr,)*) => {
        /// Figures of an open cache: its current contents, and counts of events since it was
        /// opened.
        ///
        /// [`crate::Cache::stats`] returns it. The figures are not read at one instant, so two of
        /// them may disagree by the events in between. Counts start at 0 at each opening. A read of
        /// the figures takes no I/O.
        #[derive(Clone, Debug, Default)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Engine {
            /// Reads every figure, one after the other.
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
    /// Whether reads that are in flight together go through `io_uring`, as in
    /// [`crate::Cache::get_many`]. [`crate::Options::backend`] chooses it.
    io_uring: bool = |e: &Engine| e.context.disk.reads_together(),
    /// Entries in the index. Includes expired entries until a read or reclaim removes them, and
    /// entries of dropped namespaces until reclaim does.
    entries: u64 = |e: &Engine| e.index.entries(),
    /// Whether the disk had no room for a further segment at the last attempt. Entries are evicted
    /// then although [`crate::Options::flash`] allows more. The store takes more as soon as the
    /// disk gives it.
    disk_limits_flash: bool = |e: &Engine| e.health.disk_room().is_full(),
    /// Bytes of DRAM in the index.
    index_bytes: u64 = |e: &Engine| e.index.allocated(),
    /// Bytes of DRAM that count against [`crate::Options::memory`]: index, rings, footers under
    /// construction, records of failed segments, read buffers, memory tier. With
    /// [`crate::Options::read_only`] also the bytes that recovery would have written.
    memory_bytes: u64 = |e: &Engine| e.memory_bytes(),
    /// Bytes of DRAM in values that users hold and the memory tier does not. They do not count
    /// against [`crate::Options::memory`].
    kept_value_bytes: u64 = |e: &Engine| e.reads.kept_value_bytes(),
    /// Entries in the memory tier.
    memory_tier_entries: u64 = |e: &Engine| e.reads.memory().entries(),
    /// Bytes of DRAM in the entries of the memory tier, with their bookkeeping.
    memory_tier_bytes: u64 = |e: &Engine| e.reads.memory().bytes(),
    /// Gets answered by the memory tier. A peek is not counted as a hit or a miss.
    hits_memory: u64 = |e: &Engine| e.counters.hits_memory.sum(),
    /// Gets answered by the write buffer, without a device read.
    hits_buffer: u64 = |e: &Engine| e.counters.hits_buffer.sum(),
    /// Gets answered by flash, with a device read.
    hits_flash: u64 = |e: &Engine| e.counters.hits_flash.sum(),
    /// Gets that found no value. Includes values that expired or could not be read.
    misses: u64 = |e: &Engine| e.counters.misses.sum(),
    /// Puts that took effect. Includes touches, and stored values of loaders.
    puts: u64 = |e: &Engine| count(&e.counters.puts),
    /// Deletes that took effect. Includes deletes of absent keys.
    deletes: u64 = |e: &Engine| count(&e.counters.deletes),
    /// Values that were compressed for a put, whether or not the put then took effect.
    compressions: u64 = |e: &Engine| count(&e.counters.compressions),
    /// Expired entries that a read removed from the index.
    expired: u64 = |e: &Engine| count(&e.counters.expired),
    /// Lookups that found the record of another key with the same fingerprint. They are misses.
    collisions: u64 = |e: &Engine| count(&e.counters.collisions),
    /// Records, and stretches of footers, that were lost because their bytes did not verify or
    /// their file is missing.
    damaged: u64 = |e: &Engine| count(&e.counters.damaged),
    /// Reads of segment files that failed with an I/O error. The keys missed.
    read_errors: u64 = |e: &Engine| count(&e.counters.read_errors),
    /// Segments, checkpoints and warmth lists for which a write or a sync failed.
    write_errors: u64 = |e: &Engine| count(&e.counters.write_errors),
    /// Times that there was no room on the disk, no quota or no file descriptor for a segment, the
    /// WAL, a checkpoint, the manifest or a warmth list.
    disk_full: u64 = |e: &Engine| count(&e.counters.disk_full),
    /// Segments of the store, in any stage.
    segments_total: u64 = |e: &Engine| e.table.len() as u64,
    /// Segments that hold no records and wait for their next use.
    segments_free: u64 = |e: &Engine| e.segments_in(Stage::Free),
    /// Full segments with a durable footer, except one that is being emptied.
    segments_sealed: u64 = |e: &Engine| e.segments_in(Stage::Sealed),
    /// Segments for which a write or a sync failed. They are not used again before the next
    /// opening.
    segments_quarantined: u64 = |e: &Engine| e.segments_in(Stage::Quarantined) + e.segments_in(Stage::Failed),
    /// Segments that were emptied for reuse.
    segments_reclaimed: u64 = |e: &Engine| count(&e.counters.reclaimed),
    /// Records that were appended again because their segment was emptied or failed.
    reinserted: u64 = |e: &Engine| count(&e.counters.reinserted),
    /// Entries that were forgotten while their segment was emptied, to make room.
    evicted: u64 = |e: &Engine| count(&e.counters.evicted),
    /// LSN of the newest mutation.
    appended: Lsn = |e: &Engine| e.log.marks().appended(),
    /// LSN up to which all mutations are written to files.
    written: Lsn = |e: &Engine| e.log.marks().written(),
    /// LSN up to which all mutations are synced. They survive a power cut.
    durable: Lsn = |e: &Engine| e.log.marks().durable(),
    /// LSN up to which entries may have been evicted. Entries with a newer version were not.
    reclaimed: Lsn = |e: &Engine| e.log.marks().reclaimed(),
    /// Age of the oldest unsynced mutation, zero without one.
    unsynced_age: Duration = |e: &Engine| e.unsynced_age(),
    /// Bytes written to segment files in records and footers.
    flash_bytes_written: u64 = |e: &Engine| count(&e.counters.segment_bytes),
    /// Bytes written to WAL files.
    wal_bytes_written: u64 = |e: &Engine| count(&e.counters.wal_bytes),
    /// Bytes written to manifests.
    manifest_bytes_written: u64 = |e: &Engine| count(&e.counters.manifest_bytes),
    /// Bytes written to checkpoint files.
    checkpoint_bytes_written: u64 = |e: &Engine| count(&e.counters.checkpoint_bytes),
    /// Checkpoints of the index that were completed.
    checkpoints: u64 = |e: &Engine| count(&e.counters.checkpoints),
    /// Syncs of the WAL that succeeded.
    syncs: u64 = |e: &Engine| e.durability.syncs(),
    /// Times that a mutation or a catalog change waited for room, by cause.
    waits: PerCause = |e: &Engine| PerCause::of(&e.counters.waits),
    /// Mutations that failed with [`crate::Error::WouldBlock`] or [`crate::Error::TimedOut`], by
    /// cause.
    refusals: PerCause = |e: &Engine| PerCause::of(&e.counters.refusals),
    /// Values that [`crate::Cache::get_or_fill`] loaded and returned without storing them, by
    /// reason.
    not_stored: NotStored = |e: &Engine| NotStored::of(&e.counters.not_stored),
}

/// Counts of loaded values that were returned to the caller and not stored, by reason.
///
/// [`Stats::not_stored`] is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotStored {
    /// There was no room within the [`crate::Wait`] of the call. Or the value was stored, and its
    /// sync took longer.
    pub no_room: u64,
    /// The cache has failed, is closed, or was opened for reading only.
    pub stopped: u64,
    /// The key is empty, or the key or the value is too long.
    pub length: u64,
    /// The version for the [`crate::Condition`] could not be read, or the value could not be
    /// compressed.
    pub io: u64,
    /// A put or delete of the key, or another load, came during the load. Or the
    /// [`crate::Condition`] did not hold.
    pub overtaken: u64,
    /// Another load of the key was under way, and the caller did not wait for it any longer, or was
    /// called by its loader.
    pub alone: u64,
}

impl NotStored {
    fn of(counts: &counters::FillCounts) -> Self {
        use counters::NotStored as Why;
        Self {
            no_room: counts.of(Why::NoRoom),
            stopped: counts.of(Why::Stopped),
            length: counts.of(Why::Length),
            io: counts.of(Why::Io),
            overtaken: counts.of(Why::Overtaken),
            alone: counts.of(Why::Alone),
        }
    }

    /// The sum over all reasons.
    pub fn total(&self) -> u64 {
        let Self { no_room, stopped, length, io, overtaken, alone } = *self;
        no_room + stopped + length + io + overtaken + alone
    }
}

/// Counts of back-pressure by cause, for mutations that waited for room or failed for lack of it.
///
/// [`Stats::waits`] counts each wait and [`Stats::refusals`] each failed mutation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PerCause {
    /// The footers of segments that are not sealed took their whole share of
    /// [`crate::Options::memory`]: records arrive faster than segments are sealed.
    pub footers: u64,
    /// The segment ring was full: records arrive faster than flash takes them.
    pub segment_ring: u64,
    /// The WAL ring was full: frames arrive faster than the WAL is written out.
    pub wal_ring: u64,
    /// More than twice [`crate::Options::sync_bytes`] were unsynced.
    pub unsynced_bytes: u64,
    /// The oldest unsynced mutation was older than three times [`crate::Options::sync_interval`].
    pub unsynced_age: u64,
    /// No segment was ready: the oldest one is being emptied, or the disk is full.
    pub segment: u64,
    /// A segment failed, and its records are appended again first.
    pub rescue: u64,
    /// A checkpoint was still being written when too many records had arrived since it began.
    pub checkpoint: u64,
    /// The index took more than its share of [`crate::Options::memory`].
    pub index: u64,
    /// The manifest's files were too short for another namespace or resume token.
    pub manifest: u64,
}

impl PerCause {
    fn of(counts: &counters::PerCause) -> Self {
        Self {
            footers: counts.of(Refused::FootersFull),
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

    /// The sum over all causes.
    pub fn total(&self) -> u64 {
        let Self { footers, segment_ring, wal_ring, unsynced_bytes, unsynced_age, segment, rescue, checkpoint, index, manifest } = *self;
        footers + segment_ring + wal_ring + unsynced_bytes + unsynced_age + segment + rescue + checkpoint + index + manifest
    }
}

impl Engine {
    fn segments_in(&self, stage: Stage) -> u64 {
        self.table.count(stage) as u64
    }
}
