//! [`Options`] and its builder. Opening a store validates the options once.

mod choices;
mod hooks;
mod settings;
#[cfg(feature = "toml")]
mod toml;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::choices::{Ack, Backend, Compression, OnHostCrash, RecoveryMode, WalValues};
pub use self::hooks::{Activity, Cause, Evicted};
pub(crate) use self::hooks::{Listener, Observer};
pub(crate) use self::settings::{
    FLASH_MAX, INLINE_LEN_MAX, RING_MAX, SEGMENT_SIZE_MAX, SEGMENT_SIZE_MIN, SEGMENTS_MAX, Settings, Stored, has_room_for_empty,
};
#[cfg(feature = "toml")]
pub use self::toml::parse_size;
#[cfg(doc)]
use crate::error::Error;

/// Longest key, in bytes.
pub const KEY_LEN_MAX: usize = 65_535;

/// How a cache is opened: sizes, durability, and how it reads.
///
/// Start with [`Options::new`] and set [`memory`](Options::memory) and [`flash`](Options::flash);
/// the other defaults fit most caches. [`Cache::open`](crate::Cache::open) checks the ranges and
/// names the first option that is out of its range in [`Error::InvalidOption`].
///
/// | option | default | range |
/// |---|---|---|
/// | [`memory`](Options::memory) | 256 MiB, or as much as the index of the store needs | 1 MiB to the memory of the container |
/// | [`flash`](Options::flash) | as stored; 4 GiB for a new store | 512 KiB to 8 TiB |
/// | [`segment_size`](Options::segment_size) | as stored; a 512th of `flash` for a new store | powers of two, 64 KiB to 2 GiB |
/// | [`ack`](Options::ack) | [`Ack::Process`] | |
/// | [`sync_interval`](Options::sync_interval) | 100 ms | 1 ms to 1 h |
/// | [`sync_bytes`](Options::sync_bytes) | 64 MiB | 64 KiB to 256 MiB |
/// | [`wal_values`](Options::wal_values) | [`WalValues::Host`] | |
/// | [`compression`](Options::compression) | [`Compression::None`] | zstd levels -7 to 22 |
/// | [`on_host_crash`](Options::on_host_crash) | [`OnHostCrash::Serve`] | |
/// | [`read_only`](Options::read_only) | false | |
/// | [`create`](Options::create) | true | |
/// | [`resize`](Options::resize) | true | |
/// | [`lock_timeout`](Options::lock_timeout) | 5 s | |
/// | [`backend`](Options::backend) | [`Backend::Auto`] | |
/// | [`depth`](Options::depth) | 128 reads | 1 to 4096 |
/// | [`read_threads`](Options::read_threads) | 8 threads | 1 to 256 |
/// | [`recovery`](Options::recovery) | [`RecoveryMode::Serve`] | |
///
/// # Examples
/// ```
/// use everwarm::{Ack, Cache, Compression, Error, Options};
///
/// # fn main() -> everwarm::Result<()> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let dir = temporary.path().join("store");
/// let options = Options::new(&dir)
///     .memory(1 << 20)
///     .flash(1 << 20)
///     .ack(Ack::Host)
///     .compression(Compression::Zstd(3));
/// Cache::open(options)?.close()?;
///
/// // The store keeps its size, and refuses another one if it must not be resized.
/// let other_size = Options::new(&dir).memory(1 << 20).flash(2 << 20).resize(false);
/// assert!(matches!(Cache::open(other_size), Err(Error::NeedsResize { name: "flash", .. })));
/// # Ok(())
/// # }
/// ```
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
    pub(crate) read_only: bool,
    pub(crate) create: bool,
    pub(crate) resize: bool,
    pub(crate) lock_timeout: Duration,
    pub(crate) backend: Backend,
    pub(crate) depth: u32,
    pub(crate) read_threads: u32,
    pub(crate) recovery: RecoveryMode,
    pub(crate) activity: Option<Observer>,
    pub(crate) listener: Option<Listener>,
    /// Bytes of DRAM that this process may use. Unlimited on a simulated disk.
    pub(crate) memory_max: u64,
    /// See [`Settings::batch_len_max`].
    pub(crate) batch_len_max: usize,
}

impl Options {
    /// Options with their defaults for the store in `dir`. Opening creates the directory and its
    /// parents if they do not exist (see [`Options::create`]).
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
            read_only: false,
            create: true,
            resize: true,
            lock_timeout: Duration::from_secs(5),
            backend: Backend::Auto,
            depth: 128,
            read_threads: 8,
            recovery: RecoveryMode::Serve,
            activity: None,
            listener: None,
            memory_max: u64::MAX,
            batch_len_max: usize::MAX,
        }
    }

    /// Replaces the directory of the store. It must not be the empty path.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = dir.as_ref().to_owned();
        self
    }

    /// Bytes of DRAM for everything: index, rings, buffers and memory tier.
    ///
    /// - Default: 256 MiB, and at most a quarter of the maximum. More if the index of an existing
    ///   store needs more.
    /// - Minimum: 1 MiB. Large flash needs more; a 512th of `flash` is always enough.
    /// - Maximum: the memory that this process may use. It is the least of the physical memory, the
    ///   limit of the address space (`RLIMIT_AS`), and the memory limits of the process's control
    ///   group (version 1 or 2) and its ancestors.
    ///
    /// If the index outgrows the budget, the oldest entries are evicted. The [crate
    /// page](crate#memory) states the parts of the budget.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Bytes of flash for segments. WAL files, rings and checkpoints need space beyond it.
    ///
    /// - Default: the size of the existing store, 4 GiB for a new one.
    /// - Range: 512 KiB to 8 TiB.
    ///
    /// Opening a store of another size resizes it (see [`Options::resize`]). A smaller store keeps
    /// the newest and the hot entries that fit. It may keep none if not even one new segment fits
    /// beside the old ones.
    #[must_use]
    pub fn flash(mut self, bytes: u64) -> Self {
        self.flash = Some(bytes);
        self
    }

    /// Bytes of one segment, the unit of reclaim. The longest record is bounded by it (see
    /// [`Error::ValueTooLarge`]).
    ///
    /// - Range: a power of two from 64 KiB to 2 GiB, such that `flash` holds 8 to 4096 segments.
    /// - Default for a store that exists with the same `flash`: its segment size.
    /// - Default otherwise: a 512th of `flash`, rounded up to a power of two, at least 256 KiB and
    ///   at most 1 GiB. It is 2 GiB if `flash` exceeds 4 TiB, and 64 KiB if `flash` is below 4 MiB.
    #[must_use]
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.segment_size = Some(bytes);
        self
    }

    /// Level at which mutations are acknowledged unless a call gives its own. Default
    /// [`Ack::Process`].
    #[must_use]
    pub fn ack(mut self, level: Ack) -> Self {
        self.ack = level;
        self
    }

    /// Age of the oldest unsynced mutation at which a sync begins. Default 100 ms, from 1 ms to 1
    /// h. Writers wait while the oldest unsynced mutation is older than three times this.
    #[must_use]
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.sync_interval = interval;
        self
    }

    /// Unsynced bytes at which a sync begins. Default 64 MiB, range 64 KiB to 256 MiB. Writers wait
    /// while more than twice this many bytes are unsynced.
    #[must_use]
    pub fn sync_bytes(mut self, bytes: u64) -> Self {
        self.sync_bytes = bytes;
        self
    }

    /// Which values the WAL holds besides the segments. Default [`WalValues::Host`].
    #[must_use]
    pub fn wal_values(mut self, which: WalValues) -> Self {
        self.wal_values = which;
        self
    }

    /// How values are compressed from now on. Values that are already stored stay readable. Default
    /// [`Compression::None`].
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// How an opening treats the data after a host crash. Default [`OnHostCrash::Serve`].
    #[must_use]
    pub fn on_host_crash(mut self, what: OnHostCrash) -> Self {
        self.on_host_crash = what;
        self
    }

    /// Whether the store is opened for reading only. Default false.
    ///
    /// Such an opening changes nothing in the directory and takes no lock. So it works without the
    /// permission to write, on a read-only mount, beside other readers, and beside a live writer.
    /// What recovery would write is kept in DRAM.
    ///
    /// - The cache is a snapshot: it shows every mutation that was acknowledged at [`Ack::Process`]
    ///   or higher before the opening began, and none after the opening.
    /// - If a writer reuses the space of an entry after the opening, a get of the entry misses. The
    ///   miss counts in [`Stats::damaged`](crate::Stats::damaged). A get never returns another
    ///   value.
    /// - Every mutation, and `persist` and `checkpoint`, return [`Error::ReadOnly`].
    ///   [`Cache::get_or_fill`](crate::Cache::get_or_fill) loads a value and does not store it.
    /// - A missing store is [`Error::NotFound`]. The store keeps its sizes. `create`, `resize`,
    ///   `flash`, `segment_size`, `lock_timeout` and the options of writes have no effect.
    /// - A `memory` that is too small for the index is [`Error::NeedsResize`].
    /// - A writer may change the store faster than it can be read. After 20 attempts the opening
    ///   fails with [`Error::Io`] of the kind `ResourceBusy`.
    ///
    /// Beyond `memory`, the cache takes DRAM for records that are in no segment file yet, at most
    /// the length of the segment ring (32 MiB or less), and for the footers of segments that have
    /// none. [`Stats::memory_bytes`](crate::Stats::memory_bytes) counts both. During the opening it
    /// takes the length of both rings too, and the WAL if a writer is at work. A segment whose file
    /// failed is copied into DRAM.
    ///
    /// # Examples
    /// ```
    /// use everwarm::{Cache, Error, Options};
    ///
    /// # fn main() -> everwarm::Result<()> {
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let dir = temporary.path().join("store");
    /// let writer = Cache::open(Options::new(&dir).memory(1 << 20).flash(1 << 20))?;
    /// writer.put("key", "before")?;
    ///
    /// let reader = Cache::open(Options::new(&dir).read_only(true))?;
    /// writer.put("key", "after")?;
    /// assert_eq!(reader.get("key")?.as_deref(), Some(&b"before"[..]));
    /// assert!(matches!(reader.put("key", "refused"), Err(Error::ReadOnly)));
    /// # reader.close()?;
    /// # writer.close()
    /// # }
    /// ```
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Whether a store is created if the directory holds none. Default true. If false, opening
    /// fails with [`Error::NotFound`] instead.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Whether an opening may change the size of the store. Default true.
    ///
    /// - If true, a store of another `flash` or `segment_size` is brought to the given sizes. A
    ///   store whose index exceeds the given `memory` loses its oldest entries.
    /// - If false, opening fails with [`Error::NeedsResize`] in these cases.
    #[must_use]
    pub fn resize(mut self, resize: bool) -> Self {
        self.resize = resize;
        self
    }

    /// Time to wait for the lock of the directory, whoever holds it: a process that is about to
    /// close the store, another cache of this process, or a dying process whose last writes are
    /// still landing. Default 5 s. Then opening fails with [`Error::Locked`].
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

    /// Reads that are in flight at once, for one `get_many` and for all tasks together. Default
    /// 128, range 1 to 4096.
    #[must_use]
    pub fn depth(mut self, reads: u32) -> Self {
        self.depth = reads;
        self
    }

    /// Threads that read for tasks where `io_uring` is not used. They are started on demand.
    /// Default 8, range 1 to 256.
    #[must_use]
    pub fn read_threads(mut self, threads: u32) -> Self {
        self.read_threads = threads;
        self
    }

    /// How an opening treats damage. Default [`RecoveryMode::Serve`].
    #[must_use]
    pub fn recovery(mut self, mode: RecoveryMode) -> Self {
        self.recovery = mode;
        self
    }

    /// Calls `observer` when an activity begins (`true`) and ends (`false`). Default: no observer.
    /// Meant for tools that want to interrupt an activity.
    ///
    /// The thread that does the activity makes the call. It is one of these:
    ///
    /// - a background thread;
    /// - a caller that opens, checkpoints or closes the cache;
    /// - a caller that waits for a sync ([`Activity::Sync`]).
    ///
    /// If `observer` panics on a background thread or during a sync for a caller, the engine fails:
    /// mutations return [`Error::Failed`] from then on.
    #[must_use]
    pub fn activity(mut self, observer: impl Fn(Activity, bool) + Send + Sync + 'static) -> Self {
        self.activity = Some(Observer::new(observer));
        self
    }

    /// Calls `listener` for each entry that leaves flash while the oldest segment is emptied.
    /// Default: no listener.
    ///
    /// - The thread that empties the segment makes the call and waits for its return. So `listener`
    ///   must not call mutations, `checkpoint` or `close` of the same cache: they may wait for work
    ///   of that thread.
    /// - Entries that are replaced, deleted or found expired by a get do not count as evicted.
    /// - An entry whose record cannot be read or does not verify leaves without a call.
    /// - A panic in `listener` is logged and otherwise ignored.
    /// - With a listener, emptying a segment reads the record of every live entry. Without one, it
    ///   reads only the records that are kept.
    #[must_use]
    pub fn on_evict(mut self, listener: impl Fn(&Evicted<'_>) + Send + Sync + 'static) -> Self {
        self.listener = Some(Listener::new(listener));
        self
    }

    /// The value given to [`Options::memory`], in bytes. `None` if it was not called.
    pub fn memory_given(&self) -> Option<u64> {
        self.memory
    }

    /// The value given to [`Options::flash`], in bytes. `None` if it was not called.
    pub fn flash_given(&self) -> Option<u64> {
        self.flash
    }

    /// The value given to [`Options::segment_size`], in bytes. `None` if it was not called.
    pub fn segment_size_given(&self) -> Option<u64> {
        self.segment_size
    }
}
