//! Validation of [`Options`], and the values derived from them.

use std::time::Duration;

use super::{Ack, Compression, OnHostCrash, Options, RecoveryMode, WalValues};
use crate::compress;
use crate::error::{Error, Result};

/// Most segments of a store. Each may hold a file descriptor, and the memory for the bookkeeping of
/// segments is outside the bound on the index.
pub(crate) const SEGMENTS_MAX: u64 = 4096;
/// Longest record that a WAL frame may hold itself, in bytes.
pub(crate) const INLINE_LEN_MAX: usize = 4096;

const SEGMENTS_MIN: u64 = 8;
pub(crate) const SEGMENT_SIZE_MIN: u64 = 64 << 10;
pub(crate) const SEGMENT_SIZE_MAX: u64 = 1 << 31;
pub(crate) const FLASH_MAX: u64 = SEGMENTS_MAX * SEGMENT_SIZE_MAX;
const FLASH_DEFAULT: u64 = 4 << 30;
const MEMORY_MIN: u64 = 1 << 20;
const MEMORY_DEFAULT: u64 = 256 << 20;
/// Bounds the number of unsynced LSNs: up to twice this many bytes stay unsynced, and the shortest
/// record takes 64 B of both streams. So fewer LSNs can be lost than recovery skips after a host
/// crash.
const SYNC_BYTES_MAX: u64 = 256 << 20;
/// Largest ring, in bytes.
pub(crate) const RING_MAX: u64 = 32 << 20;
/// Footers of segments that are not sealed may take one byte in this many of `memory`.
const FOOTERS_SHARE: u64 = 16;
/// One mark in the WAL for this many bytes of footers. An entry of a footer takes 10 bytes or more.
const MARK_SHARE: u64 = 8;
/// One byte in this many of `memory` may be buffers that are kept for the next read.
const POOL_SHARE: u64 = 256;
/// Upper bound of the bytes of buffers that are kept for the next read.
const POOL_BYTES_MAX: u64 = 2 << 20;
/// A buffer of background work takes one byte in this many of `memory`.
const WORK_BUFFER_SHARE: u64 = 64;
/// Largest buffer of background work, in bytes.
const WORK_BUFFER_MAX: u64 = 1 << 20;
/// Buffers of background work that are in use together.
const WORK_BUFFERS: u64 = 2;
/// The allocator's own bytes for a partition of the index, relative to those of an empty one: the
/// head of a piece, its rounding, and holes between pieces that grow.
const ALLOCATOR_PER_EMPTY: u64 = 2;
/// The allocator's own bytes may exceed the budget by one byte in this many of it.
const ALLOCATOR_EXCESS_SHARE: u64 = 10;
/// An empty index takes at most this part of its share, as a numerator and a denominator.
const EMPTY_INDEX_MAX: (u64, u64) = (2, 3);

/// Sizes of an existing store, from its manifest and checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// Bytes of flash for segments.
    pub(crate) flash: u64,
    /// Bytes of one segment.
    pub(crate) segment_size: u64,
    /// Bytes of the ring of the segment stream.
    pub(crate) segment_ring: u64,
    /// Bytes of the ring of the WAL.
    pub(crate) wal_ring: u64,
    /// Entries in the checkpoint.
    pub(crate) entries: u64,
}

impl Stored {
    /// Bytes of DRAM that suffice to keep every entry.
    fn memory(&self) -> u64 {
        (self.entries * 11 + 2 * RING_MAX).max(4 * empty_index(self.flash))
    }
}

/// Bytes of an empty index: one partition of 16 B for each 64 KiB of flash.
fn empty_index(flash: u64) -> u64 {
    flash.next_power_of_two() / (64 << 10) * 16
}

/// Validated options, and the values derived from them.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) segments: u32,
    pub(crate) segment_size: u64,
    pub(crate) segment_ring: u64,
    pub(crate) wal_ring: u64,
    /// Bytes of frames that one WAL file holds.
    pub(crate) wal_payload: u64,
    pub(crate) flash: u64,
    pub(crate) memory: u64,
    pub(crate) ack: Ack,
    pub(crate) sync_interval: Duration,
    pub(crate) sync_bytes: u64,
    pub(crate) wal_values: WalValues,
    pub(crate) compression: Compression,
    pub(crate) on_host_crash: OnHostCrash,
    pub(crate) recovery: RecoveryMode,
    /// Bytes of `memory` that the rings, the footers and the buffers leave for the index.
    pub(crate) index_bytes_max: u64,
    /// Most bytes of DRAM for the footers of all segments that are not sealed. Half of it is for
    /// the open segment, which takes no more records then.
    pub(crate) footers_bytes_max: u64,
    /// Marks in the WAL after which a segment is sealed early, so that the WAL gets short. There is
    /// more than one for each record that `footers_bytes_max` allows.
    pub(crate) marks_max: u64,
    /// Most bytes of buffers that are kept for the next read.
    pub(crate) pool_bytes: u64,
    /// Bytes of a buffer of background work: a multiple of 4 KiB.
    pub(crate) work_buffer: usize,
    /// Most changes of the index that recovery merges at once. Unlimited but in tests, which need
    /// several merges in a small store.
    pub(crate) batch_len_max: usize,
}

/// The part of the `left` bytes of the budget that the index may allocate in a store with this much
/// `flash`.
///
/// The allocator takes some bytes for each partition besides. They may exceed the budget by
/// [`ALLOCATOR_EXCESS_SHARE`]. The index gives way to the rest, but it keeps enough for an empty
/// index.
fn index_bytes_max(memory: u64, left: u64, flash: u64) -> u64 {
    let (part, whole) = EMPTY_INDEX_MAX;
    let empty = empty_index(flash);
    let reserve = (empty * ALLOCATOR_PER_EMPTY).saturating_sub(memory / ALLOCATOR_EXCESS_SHARE);
    left.saturating_sub(reserve).max(left.min((empty * whole).div_ceil(part)))
}

/// Whether a share of `index_bytes_max` is enough for a store whose index takes `empty` bytes
/// without an entry.
pub(crate) fn has_room_for_empty(index_bytes_max: u64, empty: u64) -> bool {
    let (part, whole) = EMPTY_INDEX_MAX;
    empty.saturating_mul(whole) <= index_bytes_max.saturating_mul(part)
}

/// Division of flash into segments.
#[derive(Clone, Copy)]
struct Sizes {
    flash: u64,
    segment_size: u64,
    segments: u32,
}

/// Bytes of the two rings.
#[derive(Clone, Copy)]
struct Rings {
    segment: u64,
    wal: u64,
}

impl Rings {
    /// Bytes of DRAM, with the buffers from which partial blocks are written.
    fn allocated(self) -> u64 {
        [self.segment, self.wal].map(|size| size + (size / 32).clamp(4 << 10, 128 << 10)).iter().sum()
    }
}

fn invalid<T>(name: &'static str, reason: String) -> Result<T> {
    Err(Error::InvalidOption { name, reason })
}

impl Options {
    /// Checks every option and derives the settings. `stored` holds the sizes of the store if it
    /// exists.
    pub(crate) fn validate(&self, stored: Option<Stored>) -> Result<Settings> {
        let memory = self.memory.unwrap_or_else(|| self.default_memory(stored));
        self.check_ranges(memory)?;
        let sizes = self.derive_geometry(stored)?;
        self.check_write_ranges()?;
        let rings = self.derive_rings(memory, sizes.flash, stored);
        let work_buffer = (memory / WORK_BUFFER_SHARE).min(WORK_BUFFER_MAX) >> 12 << 12;
        let footers_bytes_max = (memory / FOOTERS_SHARE).min(sizes.segment_size);
        let pool_bytes = (memory / POOL_SHARE).min(POOL_BYTES_MAX);
        let besides_index = rings.allocated() + footers_bytes_max + pool_bytes + WORK_BUFFERS * work_buffer;
        let index_bytes_max = index_bytes_max(memory, memory.saturating_sub(besides_index), sizes.flash);
        self.check_index(memory, index_bytes_max, sizes.flash, stored)?;
        Ok(Settings {
            segments: sizes.segments,
            segment_size: sizes.segment_size,
            segment_ring: rings.segment,
            wal_ring: rings.wal,
            wal_payload: rings.wal * 2,
            flash: sizes.flash,
            memory,
            ack: self.ack,
            sync_interval: self.sync_interval,
            sync_bytes: self.sync_bytes,
            wal_values: self.wal_values,
            compression: self.compression,
            on_host_crash: self.on_host_crash,
            recovery: self.recovery,
            index_bytes_max,
            footers_bytes_max,
            marks_max: footers_bytes_max / MARK_SHARE,
            pool_bytes,
            work_buffer: work_buffer as usize,
            batch_len_max: self.batch_len_max,
        })
    }

    /// The budget if none is given.
    fn default_memory(&self, stored: Option<Stored>) -> u64 {
        let modest = MEMORY_DEFAULT.min(self.memory_max / 4).max(MEMORY_MIN);
        modest.max(stored.map_or(0, |s| s.memory())).min(self.memory_max)
    }

    /// Checks the options of the directory, of memory and of reads.
    fn check_ranges(&self, memory: u64) -> Result<()> {
        if self.dir.as_os_str().is_empty() {
            return invalid("dir", "it is empty; give a directory".to_owned());
        }
        if memory < MEMORY_MIN {
            return invalid("memory", format!("{memory} B given, the minimum is {MEMORY_MIN} B"));
        }
        if !(1..=4096).contains(&self.depth) {
            return invalid("depth", format!("{} given, the range is 1 to 4096", self.depth));
        }
        if !(1..=256).contains(&self.read_threads) {
            return invalid("read_threads", format!("{} given, the range is 1 to 256", self.read_threads));
        }
        Ok(())
    }

    /// Chooses the size of flash and of a segment: as given, or as stored, or the default.
    fn derive_geometry(&self, stored: Option<Stored>) -> Result<Sizes> {
        let flash = self.flash.or(stored.map(|s| s.flash)).unwrap_or(FLASH_DEFAULT);
        if flash < SEGMENTS_MIN * SEGMENT_SIZE_MIN {
            return invalid("flash", format!("{flash} B given, the minimum is {} B", SEGMENTS_MIN * SEGMENT_SIZE_MIN));
        }
        if flash > FLASH_MAX {
            return invalid("flash", format!("{flash} B given, the maximum is {FLASH_MAX} B"));
        }
        let segment_size = match (self.segment_size, stored) {
            (Some(size), _) => size,
            (None, Some(stored)) if stored.flash == flash => stored.segment_size,
            (None, _) if flash < 4 << 20 => SEGMENT_SIZE_MIN,
            (None, _) if flash > SEGMENTS_MAX << 30 => SEGMENT_SIZE_MAX,
            (None, _) => (flash / 512).next_power_of_two().clamp(256 << 10, 1 << 30),
        };
        if !segment_size.is_power_of_two() || !(SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&segment_size) {
            return invalid("segment_size", format!("{segment_size} B given, it must be a power of two from 64 KiB to 2 GiB"));
        }
        self.check_stored(flash, segment_size, stored)?;
        let segments = flash / segment_size;
        if !(SEGMENTS_MIN..=SEGMENTS_MAX).contains(&segments) {
            let reason = format!("flash holds {segments} segments of {segment_size} B, the range is {SEGMENTS_MIN} to {SEGMENTS_MAX}");
            return invalid("segment_size", reason);
        }
        Ok(Sizes { flash, segment_size, segments: segments as u32 })
    }

    /// Refuses sizes that differ from those of the store, if the store must not be resized.
    fn check_stored(&self, flash: u64, segment_size: u64, stored: Option<Stored>) -> Result<()> {
        let differs = |s: &Stored| (s.flash, s.segment_size) != (flash, segment_size);
        let Some(stored) = stored.filter(|s| !self.resize && differs(s)) else { return Ok(()) };
        let name = if stored.flash == flash { "segment_size" } else { "flash" };
        let of = |flash, segment_size| format!("{flash} B in segments of {segment_size} B");
        let reason = format!("{} given, the store has {}", of(flash, segment_size), of(stored.flash, stored.segment_size));
        Err(Error::NeedsResize { name, reason })
    }

    /// Checks the options of syncs and of compression.
    fn check_write_ranges(&self) -> Result<()> {
        if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&self.sync_interval) {
            return invalid("sync_interval", format!("{:?} given, the range is 1 ms to 1 h", self.sync_interval));
        }
        if !(64 << 10..=SYNC_BYTES_MAX).contains(&self.sync_bytes) {
            return invalid("sync_bytes", format!("{} B given, the range is 64 KiB to 256 MiB", self.sync_bytes));
        }
        match self.compression {
            Compression::Zstd(_) if !compress::IS_SUPPORTED => {
                invalid("compression", "everwarm was built without the feature `zstd`".to_owned())
            }
            Compression::Zstd(level) if !(-7..=22).contains(&level) => {
                invalid("compression", format!("zstd level {level} given, the range is -7 to 22"))
            }
            _ => Ok(()),
        }
    }

    /// Chooses the sizes of the rings. A ring of another size is another file, so a store keeps its
    /// rings unless `memory` is given.
    fn derive_rings(&self, memory: u64, flash: u64, stored: Option<Stored>) -> Rings {
        if self.read_only {
            // Nothing is appended.
            return Rings { segment: 2 * SEGMENT_SIZE_MIN, wal: SEGMENT_SIZE_MIN / 2 };
        }
        let power_below = |n: u64| 1u64 << n.max(1).ilog2();
        let kept = stored.filter(|_| self.memory.is_none());
        // A record fits into half of this ring. `flash` holds eight segments or more, so half of a
        // quarter of it is a whole segment. The ring is smaller, and limits the length of a record,
        // only if `memory` is small or a segment exceeds RING_MAX / 2.
        let segment = kept.map_or(power_below(memory.min(flash) / 4).clamp(2 * SEGMENT_SIZE_MIN, RING_MAX), |s| s.segment_ring);
        let wal = match self.wal_values {
            WalValues::Always => segment,
            WalValues::Never | WalValues::Host => segment / 4,
        };
        Rings { segment, wal: wal.max(kept.map_or(0, |s| s.wal_ring)) }
    }

    /// Refuses a `memory` that is too small for the index: for an empty one, or for the entries of
    /// a store that must not be resized.
    fn check_index(&self, memory: u64, index_bytes_max: u64, flash: u64, stored: Option<Stored>) -> Result<()> {
        let empty_index = empty_index(flash);
        // The first validation runs before the manifest is read, and a store that exists may have
        // less flash than the default.
        let is_known = self.flash.is_some() || stored.is_some();
        if is_known && !has_room_for_empty(index_bytes_max, empty_index) {
            let reason = format!("{memory} B given, {flash} B of flash need at least {} B", (empty_index * 4).max(MEMORY_MIN));
            return invalid("memory", reason);
        }
        if let Some(stored) = stored.filter(|s| !self.resize && s.entries.saturating_mul(8) > index_bytes_max) {
            let needed = stored.memory();
            let reason = format!("{memory} B given, the index of the {} entries of the store needs at least {needed} B", stored.entries);
            return Err(Error::NeedsResize { name: "memory", reason });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: Options) -> &'static str {
        match options.validate(None) {
            Err(Error::InvalidOption { name, .. }) => name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_valid_and_scale() {
        let s = Options::new("x").validate(None).unwrap();
        assert_eq!((s.segments, s.segment_size), (512, 8 << 20));
        let s = Options::new("x").memory(1 << 20).flash(512 << 10).validate(None).unwrap();
        assert_eq!((s.segments, s.segment_size), (8, 64 << 10));
        assert_eq!((s.segment_ring, s.wal_ring, s.wal_payload), (128 << 10, 32 << 10, 64 << 10));
        let s = Options::new("x").flash(1 << 40).memory(1 << 30).validate(None).unwrap();
        assert_eq!((s.segments, s.segment_size), (1024, 1 << 30));
    }

    #[test]
    fn memory_of_a_512th_of_flash_is_enough() {
        for flash in (20..43).flat_map(|bits| [1u64 << bits, (1 << bits) + (1 << (bits - 3)), (1 << bits) + (1 << (bits - 9))]) {
            for wal_values in [WalValues::Host, WalValues::Always] {
                let options = Options::new("x").flash(flash).memory((flash / 512).max(1 << 20)).wal_values(wal_values);
                assert!(options.validate(None).is_ok(), "{flash} {:?}", options.validate(None));
            }
        }
    }

    #[test]
    fn a_store_is_resized_only_if_resize_allows_it() {
        let rings = (1 << 16, 1 << 16);
        let stored = |entries| Some(Stored { flash: 1 << 30, segment_size: 2 << 20, segment_ring: rings.0, wal_ring: rings.1, entries });
        let o = || Options::new("x").resize(false);
        let refused = |options: Options, entries| match options.validate(stored(entries)) {
            Err(Error::NeedsResize { name, .. }) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(o().flash(2 << 30), 0), "flash");
        assert_eq!(refused(o().segment_size(1 << 20), 0), "segment_size");
        assert_eq!(refused(o().memory(16 << 20), 10_000_000), "memory");
        let settings = o().validate(stored(100_000_000)).unwrap();
        assert!(settings.index_bytes_max > 900_000_000, "memory that is not given is enough");
        assert_eq!((settings.segment_ring, settings.wal_ring), rings, "the rings stay unless memory is given");
        assert_eq!(o().memory(64 << 20).validate(stored(0)).unwrap().segment_ring, 16 << 20);
        assert!(Options::new("x").flash(2 << 30).memory(16 << 20).validate(stored(10_000_000)).is_ok());
    }

    #[test]
    fn each_bad_option_is_named() {
        let o = || Options::new("x");
        assert_eq!(refused(o().memory(0)), "memory");
        assert_eq!(refused(o().memory(256 << 20).flash(1 << 40)), "memory");
        assert_eq!(refused(Options::new("")), "dir");
        assert_eq!(refused(o().flash(1)), "flash");
        assert_eq!(refused(o().flash(u64::MAX)), "flash");
        assert_eq!(refused(o().segment_size(65_537)), "segment_size");
        assert_eq!(refused(o().segment_size(1 << 31)), "segment_size");
        assert_eq!(refused(o().flash(1 << 40).segment_size(1 << 16)), "segment_size");
        assert_eq!(refused(o().sync_interval(Duration::ZERO)), "sync_interval");
        assert_eq!(refused(o().sync_bytes(1)), "sync_bytes");
        assert_eq!(refused(o().sync_bytes(1 << 30)), "sync_bytes");
        assert_eq!(refused(o().depth(0)), "depth");
        assert_eq!(refused(o().read_threads(257)), "read_threads");
        assert_eq!(refused(o().compression(Compression::Zstd(23))), "compression");
    }
}
