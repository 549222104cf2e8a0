//! Options: what a user may choose, validated once.

#[cfg(feature = "toml")]
mod file;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::id::Lsn;
#[cfg(feature = "toml")]
pub use file::parse_size;

/// Longest key, in bytes.
pub const KEY_LEN_MAX: usize = 65_535;

/// Most segments a store may have: each may hold a file descriptor, and the memory of a segment's bookkeeping is not in the index bound.
pub(crate) const SEGMENTS_MAX: u64 = 4096;
const SEGMENTS_MIN: u64 = 8;
const SEGMENT_SIZE_MIN: u64 = 64 << 10;
const SEGMENT_SIZE_MAX: u64 = 1 << 31;
const FLASH_MAX: u64 = SEGMENTS_MAX * SEGMENT_SIZE_MAX;
const MEMORY_DEFAULT: u64 = 256 << 20;
/// Twice this of the shortest records, 64 B of both streams, are fewer than the LSNs that are skipped after a host crash.
const SYNC_BYTES_MAX: u64 = 256 << 20;
const RING_MAX: u64 = 32 << 20;

/// When a mutation is acknowledged. See the crate documentation for what each survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Ack {
    /// Visible to every reader in the process.
    Memory,
    /// What recovery needs is in the page cache or on the device: survives kill -9.
    #[default]
    Process,
    /// The same is synced: survives a power cut.
    Host,
}

/// Which values the WAL holds itself, besides the segment that holds them anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum WalValues {
    /// None. Flash writes each value once.
    Never,
    /// Those of records up to 4 KiB that are put at [`Ack::Host`], so that an acknowledgement needs one synced file.
    #[default]
    Host,
    /// Those of all records up to 4 KiB.
    Always,
}

/// How values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// zstd at this level (-7 to 22), for values of at least 128 B that become smaller.
    Zstd(i32),
}

/// How reads that can be in flight together are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Backend {
    /// `io_uring` where the process may use it, else the portable way. Which one it is stands in the statistics.
    #[default]
    Auto,
    /// `io_uring`; opening fails where it cannot be used.
    #[cfg_attr(feature = "toml", serde(rename = "io_uring"))]
    IoUring,
    /// `pread`: one after the other for a thread, by [`Options::read_threads`] for tasks.
    Portable,
}

/// What to do with the data of a store whose host crashed, so that mutations which were not yet synced may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum OnHostCrash {
    /// Serve it. The recovery report states the window.
    #[default]
    Serve,
    /// Start empty.
    Cold,
}

/// What an opening does with what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum RecoveryMode {
    /// Serves what can be trusted, and reports what was lost.
    #[default]
    Serve,
    /// As `Serve`, but leaves the checkpoint aside and reads what segments themselves say. Slower.
    Rebuild,
    /// Opens only if nothing that an opening looks at is damaged (the manifest aside, of which one copy is enough); else fails with [`Error::Corrupt`], and another mode can still be chosen.
    Refuse,
}

/// Something that happens in the background, or at open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activity {
    /// Unsynced bytes are written out and synced.
    Sync,
    /// A full segment gets its footer.
    Seal,
    /// The index is written to a checkpoint.
    Checkpoint,
    /// The oldest segment is emptied.
    Reclaim,
    /// The store is brought back.
    Recovery,
}

/// See [`Options::activity`].
#[derive(Clone)]
pub(crate) struct Observer(Arc<dyn Fn(Activity, bool) + Send + Sync>);

impl Observer {
    /// Reports `activity` until the guard is dropped.
    pub(crate) fn begin(observer: Option<&Self>, activity: Activity) -> impl Drop + use<> {
        struct During(Option<Observer>, Activity);
        impl Drop for During {
            fn drop(&mut self) {
                if let Some(Observer(call)) = &self.0 {
                    call(self.1, false);
                }
            }
        }
        if let Some(Self(call)) = observer {
            call(activity, true);
        }
        During(observer.cloned(), activity)
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// Why an entry left flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Room was needed, and it was not hot enough.
    Capacity,
    /// It had expired.
    Expired,
    /// Its namespace had been dropped.
    Dropped,
}

/// An entry that left flash. See [`Options::on_evict`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Evicted<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The LSN of the put.
    pub version: Lsn,
    /// Why.
    pub cause: Cause,
}

/// See [`Options::on_evict`].
#[derive(Clone)]
pub(crate) struct Listener(Arc<dyn Fn(&Evicted<'_>) + Send + Sync>);

impl Listener {
    pub(crate) fn call(&self, evicted: &Evicted<'_>) {
        let call = std::panic::AssertUnwindSafe(|| (self.0)(evicted));
        if std::panic::catch_unwind(call).is_err() {
            tracing::error!("the listener of evictions panicked");
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

/// What a store that exists says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) flash: u64,
    pub(crate) segment_size: u64,
    pub(crate) segment_ring: u64,
    pub(crate) wal_ring: u64,
    /// Entries of its checkpoint.
    pub(crate) entries: u64,
}

impl Stored {
    /// Bytes of DRAM that are enough to keep all of it.
    fn memory(&self) -> u64 {
        (self.entries * 10 + 2 * RING_MAX).max(4 * empty_index(self.flash))
    }
}

/// Bytes of an empty index: one partition of 16 B for each 64 KiB of flash.
fn empty_index(flash: u64) -> u64 {
    flash.next_power_of_two() / (64 << 10) * 16
}

/// How a cache is opened. `Options::new(dir)` and the defaults are a sensible start; set `memory` and `flash`.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) dir: PathBuf,
    pub(crate) memory: Option<u64>,
    pub(crate) flash: Option<u64>,
    pub(crate) segment_size: Option<u64>,
    pub(crate) ack: Ack,
    pub(crate) sync_interval: Duration,
    pub(crate) sync_bytes: u64,
    pub(crate) wal_values: WalValues,
    pub(crate) compression: Compression,
    pub(crate) on_host_crash: OnHostCrash,
    pub(crate) create: bool,
    pub(crate) resize: bool,
    pub(crate) lock_timeout: Duration,
    pub(crate) backend: Backend,
    pub(crate) depth: u32,
    pub(crate) read_threads: u32,
    pub(crate) recovery: RecoveryMode,
    pub(crate) activity: Option<Observer>,
    pub(crate) listener: Option<Listener>,
    /// See [`Settings::batch_len_max`].
    pub(crate) batch_len_max: usize,
}

impl Options {
    /// Options for the store in `dir`, which is created (with its parents) if it does not exist.
    pub fn new(dir: impl AsRef<Path>) -> Self {
        Self {
            dir: dir.as_ref().to_owned(),
            memory: None,
            flash: None,
            segment_size: None,
            ack: Ack::Process,
            sync_interval: Duration::from_millis(100),
            sync_bytes: 64 << 20,
            wal_values: WalValues::Host,
            compression: Compression::None,
            on_host_crash: OnHostCrash::Serve,
            create: true,
            resize: true,
            lock_timeout: Duration::from_secs(5),
            backend: Backend::Auto,
            depth: 128,
            read_threads: 8,
            recovery: RecoveryMode::Serve,
            activity: None,
            listener: None,
            batch_len_max: usize::MAX,
        }
    }

    /// Another directory.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = dir.as_ref().to_owned();
        self
    }

    /// Bytes of DRAM for everything: index, buffers, memory tier. Default 256 MiB, and for a store that exists at least what its index needs. Minimum 1 MiB, maximum what the
    /// machine has; large flash needs more than the minimum, and a 512th of it is enough. If the index does not fit, the oldest entries are evicted.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Bytes of flash for segments; WAL, rings and checkpoints come on top. Default: what the store has, 4 GiB for a new one. Minimum 512 KiB, at most 8 TiB. A store of
    /// another size is resized (see [`Options::resize`]): a smaller one keeps what is newest, or hot, and fits; if the segments that it had do not fit beside a new one, that
    /// may be nothing.
    #[must_use]
    pub fn flash(mut self, bytes: u64) -> Self {
        self.flash = Some(bytes);
        self
    }

    /// Bytes of one segment: the unit of reclaim, a power of two from 64 KiB to 2 GiB. Default: a 512th of `flash`, rounded up to a power of two, between 256 KiB and 1 GiB (2 GiB if `flash` is above 4 TiB, 64 KiB if it is below 4 MiB).
    #[must_use]
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.segment_size = Some(bytes);
        self
    }

    /// The level at which mutations are acknowledged unless a call says otherwise. Default [`Ack::Process`].
    #[must_use]
    pub fn ack(mut self, level: Ack) -> Self {
        self.ack = level;
        self
    }

    /// A sync begins when the oldest unsynced mutation is this old. Default 100 ms, 1 ms to 1 h. Writers wait while it is three times as old.
    #[must_use]
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.sync_interval = interval;
        self
    }

    /// Most bytes that stay unsynced. Default 64 MiB, 64 KiB to 256 MiB. Writers wait beyond twice this.
    #[must_use]
    pub fn sync_bytes(mut self, bytes: u64) -> Self {
        self.sync_bytes = bytes;
        self
    }

    /// Which values the WAL holds. Default [`WalValues::Host`].
    #[must_use]
    pub fn wal_values(mut self, which: WalValues) -> Self {
        self.wal_values = which;
        self
    }

    /// How values are stored from now on; what is stored already stays readable. Default [`Compression::None`].
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// What to do after a host crash. Default [`OnHostCrash::Serve`].
    #[must_use]
    pub fn on_host_crash(mut self, what: OnHostCrash) -> Self {
        self.on_host_crash = what;
        self
    }

    /// Whether to create a store where there is none. Default true.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Whether a store of another `flash` or `segment_size` is brought to the ones given here, and one whose index outgrows `memory` loses its oldest entries. If false,
    /// opening fails with [`Error::NeedsResize`] instead. Default true.
    #[must_use]
    pub fn resize(mut self, resize: bool) -> Self {
        self.resize = resize;
        self
    }

    /// How long to wait for a holder that is going away (a killed process whose writes are still landing). Default 5 s.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// How reads that can be in flight together are done. Default [`Backend::Auto`].
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Reads of one `get_many`, or of all tasks together, that are in flight at once. Default 128, 1 to 4096.
    #[must_use]
    pub fn depth(mut self, reads: u32) -> Self {
        self.depth = reads;
        self
    }

    /// Threads that read for tasks where there is no `io_uring`, started as they are needed. Default 8, 1 to 256.
    #[must_use]
    pub fn read_threads(mut self, threads: u32) -> Self {
        self.read_threads = threads;
        self
    }

    /// What an opening does with what it finds. Default [`RecoveryMode::Serve`].
    #[must_use]
    pub fn recovery(mut self, mode: RecoveryMode) -> Self {
        self.recovery = mode;
        self
    }

    /// Calls `observer` when an activity begins (`true`) and ends (`false`), from the thread that does it, which is one of the background's or, for [`Activity::Sync`], one that
    /// waits for the sync: for tools that want to interrupt it.
    #[must_use]
    pub fn activity(mut self, observer: impl Fn(Activity, bool) + Send + Sync + 'static) -> Self {
        self.activity = Some(Observer(Arc::new(observer)));
        self
    }

    /// Calls `listener` for each entry that leaves flash when the oldest segment is emptied, from the thread that empties it, which waits for the call to return: it
    /// must not call mutations, `checkpoint` or `close` of the same cache, since what they may wait for is done by that thread. Entries that are replaced, deleted, or found expired by a get are not evicted. Emptying then reads every record, not only those that are kept.
    #[must_use]
    pub fn on_evict(mut self, listener: impl Fn(&Evicted<'_>) + Send + Sync + 'static) -> Self {
        self.listener = Some(Listener(Arc::new(listener)));
        self
    }

    /// What [`Options::memory`] was set to, if it was.
    pub fn memory_given(&self) -> Option<u64> {
        self.memory
    }

    /// What [`Options::flash`] was set to, if it was.
    pub fn flash_given(&self) -> Option<u64> {
        self.flash
    }

    /// What [`Options::segment_size`] was set to, if it was.
    pub fn segment_size_given(&self) -> Option<u64> {
        self.segment_size
    }

    /// Checks every option and derives what follows from them. `stored` is the geometry of the store if it exists.
    pub(crate) fn validate(&self, stored: Option<Stored>) -> Result<Settings> {
        let invalid = |name, reason: String| Err(Error::InvalidOption { name, reason });
        if self.dir.as_os_str().is_empty() {
            return invalid("dir", "a directory is needed".to_owned());
        }
        let memory = self.memory.unwrap_or_else(|| MEMORY_DEFAULT.max(stored.map_or(0, |s| s.memory())));
        if memory < 1 << 20 {
            return invalid("memory", format!("{memory} B given, at least 1 MiB is needed"));
        }
        if !(1..=4096).contains(&self.depth) {
            return invalid("depth", format!("{} given, 1 to 4096 is possible", self.depth));
        }
        if !(1..=256).contains(&self.read_threads) {
            return invalid("read_threads", format!("{} given, 1 to 256 is possible", self.read_threads));
        }
        let flash = self.flash.or(stored.map(|s| s.flash)).unwrap_or(4 << 30);
        if flash < SEGMENTS_MIN * SEGMENT_SIZE_MIN {
            return invalid("flash", format!("{flash} B given, at least {} are needed", SEGMENTS_MIN * SEGMENT_SIZE_MIN));
        }
        if flash > FLASH_MAX {
            return invalid("flash", format!("{flash} B given, {FLASH_MAX} are the most"));
        }
        let segment_size = match (self.segment_size, stored) {
            (Some(size), _) => size,
            (None, Some(stored)) if stored.flash == flash => stored.segment_size,
            (None, _) if flash < 4 << 20 => SEGMENT_SIZE_MIN,
            (None, _) if flash > SEGMENTS_MAX << 30 => SEGMENT_SIZE_MAX,
            (None, _) => (flash / 512).next_power_of_two().clamp(256 << 10, 1 << 30),
        };
        if !segment_size.is_power_of_two() || !(SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&segment_size) {
            return invalid("segment_size", format!("{segment_size} given, a power of two from 64 KiB to 2 GiB is needed"));
        }
        if let Some(stored) = stored.filter(|s| !self.resize && (s.flash, s.segment_size) != (flash, segment_size)) {
            let name = if stored.flash == flash { "segment_size" } else { "flash" };
            let of = |flash, segment_size| format!("{flash} B in segments of {segment_size} B");
            let reason = format!("{} given, the store has {}", of(flash, segment_size), of(stored.flash, stored.segment_size));
            return Err(Error::NeedsResize { name, reason });
        }
        let segments = flash / segment_size;
        if !(SEGMENTS_MIN..=SEGMENTS_MAX).contains(&segments) {
            let reason = format!("flash holds {segments} segments of {segment_size} B; {SEGMENTS_MIN} to {SEGMENTS_MAX} are possible");
            return invalid("segment_size", reason);
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&self.sync_interval) {
            return invalid("sync_interval", format!("{:?} given, 1 ms to 1 h is possible", self.sync_interval));
        }
        if !(64 << 10..=SYNC_BYTES_MAX).contains(&self.sync_bytes) {
            return invalid("sync_bytes", format!("{} B given, 64 KiB to 256 MiB are possible", self.sync_bytes));
        }
        if let Compression::Zstd(level) = self.compression
            && !(-7..=22).contains(&level)
        {
            return invalid("compression", format!("zstd level {level} given, -7 to 22 is possible"));
        }
        let power_below = |n: u64| 1u64 << n.max(1).ilog2();
        // Another size is another file, so a store keeps those that it has unless it is told how much memory there is.
        let kept = stored.filter(|_| self.memory.is_none());
        // A quarter of the flash is two segments at least, so the longest record is what a segment holds.
        let segment_ring = kept.map_or(power_below(memory.min(flash) / 4).clamp(2 * SEGMENT_SIZE_MIN, RING_MAX), |s| s.segment_ring);
        let wal_ring = match self.wal_values {
            WalValues::Always => segment_ring,
            WalValues::Never | WalValues::Host => segment_ring / 4,
        };
        let wal_ring = wal_ring.max(kept.map_or(0, |s| s.wal_ring));
        let index_bytes_max = memory.saturating_sub(segment_ring + wal_ring);
        let empty_index = empty_index(flash);
        // A store that exists says how much flash it has.
        let known = self.flash.is_some() || stored.is_some();
        if known && empty_index > index_bytes_max / 2 {
            let reason = format!("{memory} B given, {flash} B of flash need at least {}", (empty_index * 4).max(1 << 20));
            return invalid("memory", reason);
        }
        if let Some(stored) = stored.filter(|s| !self.resize && s.entries.saturating_mul(8) > index_bytes_max) {
            let reason =
                format!("{memory} B given, the index of the store's {} entries needs at least {}", stored.entries, stored.memory());
            return Err(Error::NeedsResize { name: "memory", reason });
        }
        Ok(Settings {
            segments: segments as u32,
            segment_size,
            segment_ring,
            wal_ring,
            wal_payload: wal_ring * 2,
            flash,
            memory,
            ack: self.ack,
            sync_interval: self.sync_interval,
            sync_bytes: self.sync_bytes,
            wal_values: self.wal_values,
            compression: self.compression,
            on_host_crash: self.on_host_crash,
            recovery: self.recovery,
            index_bytes_max,
            batch_len_max: self.batch_len_max,
        })
    }
}

/// Validated options with what was derived from them.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) segments: u32,
    pub(crate) segment_size: u64,
    pub(crate) segment_ring: u64,
    pub(crate) wal_ring: u64,
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
    /// What rings leave of the memory budget.
    pub(crate) index_bytes_max: u64,
    /// The most index changes that recovery merges at once. Unlimited, except in tests that need
    /// several merges in a small store.
    pub(crate) batch_len_max: usize,
}

/// Records up to this many bytes may be held by the WAL itself.
pub(crate) const INLINE_LEN_MAX: usize = 4096;

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
    fn a_512th_of_flash_is_memory_enough() {
        for flash in (20..43).flat_map(|bits| [1u64 << bits, (1 << bits) + (1 << (bits - 3)), (1 << bits) + (1 << (bits - 9))]) {
            for wal_values in [WalValues::Host, WalValues::Always] {
                let options = Options::new("x").flash(flash).memory((flash / 512).max(1 << 20)).wal_values(wal_values);
                assert!(options.validate(None).is_ok(), "{flash} {:?}", options.validate(None));
            }
        }
    }

    #[test]
    fn a_store_is_not_resized_where_that_is_not_wanted() {
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
        assert!(settings.index_bytes_max > 900_000_000, "unless it is given, memory is enough");
        assert_eq!((settings.segment_ring, settings.wal_ring), rings, "unless memory is given, rings are what they were");
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
