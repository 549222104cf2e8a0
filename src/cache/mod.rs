//! The handles that users hold: [`Cache`] for threads, [`AsyncCache`] for tasks.

mod async_cache;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::SystemClock;
use crate::concurrent::lock;
#[cfg(doc)]
use crate::config::RecoveryMode;
use crate::config::{Ack, Options};
#[cfg(doc)]
use crate::engine::Wait;
use crate::engine::background::Threads;
use crate::engine::context::Mode;
use crate::engine::{self, DeleteOptions, Engine, Entry, FillError, Namespace, PutOptions, RecoveryReport, Scan, Stats, Value};
use crate::error::{Error, Result};
use crate::id::{Key, Lsn};
pub use async_cache::AsyncCache;

/// An open cache, for threads. Cheap to clone; all clones are the same cache.
///
/// Keys and values are byte strings. A get returns the bytes of the newest put of exactly that key,
/// or it misses. Every mutation returns its version, an [`Lsn`] that grows with each mutation of
/// the store.
///
/// Call [`Cache::close`] before the last clone is dropped, so that the next open reads little.
/// Without it, dropping the last clone stops the background threads at once: the store is then as
/// after a process crash. [`Cache::for_tasks`] gives the handle for async code.
///
/// # Examples
/// ```
/// use everwarm::{Cache, Options};
///
/// # fn main() -> everwarm::Result<()> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let dir = temporary.path().join("store");
/// let cache = Cache::open(Options::new(&dir).memory(1 << 20).flash(1 << 20))?;
/// let first = cache.put("user:17", "Ada")?;
/// let second = cache.put("user:17", "Ada L.")?;
/// assert!(second > first);
/// cache.delete("user:18")?;
/// cache.close()?;
///
/// // A store that exists keeps its size.
/// let cache = Cache::open(Options::new(&dir))?;
/// let value = cache.get("user:17")?.expect("it survives a close");
/// assert_eq!((&value[..], value.version()), (&b"Ada L."[..], second));
/// assert!(cache.get("user:18")?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Cache {
    running: Arc<Running>,
    /// The namespace of this handle's keys.
    space: Arc<Namespace>,
}

struct Running {
    engine: Arc<Engine>,
    threads: Mutex<Option<Threads>>,
}

impl Running {
    /// Closes the cache, unless that has happened. A second caller waits for the first.
    fn close(&self) -> Result<()> {
        self.engine.check_process()?;
        let mut threads = lock(&self.threads);
        self.engine.begin_close();
        let Some(threads) = threads.take() else { return Ok(()) };
        threads.join();
        let finished = self.engine.finish();
        self.engine.release();
        finished
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.engine.check_process().is_err() {
            // This is a child of `fork`: the parent uses the files, and the threads are its own.
            std::mem::forget((threads, Arc::clone(&self.engine)));
            return;
        }
        self.engine.begin_close();
        if let Some(threads) = threads {
            threads.join();
        }
    }
}

impl Cache {
    /// Opens the store in the directory of `options`. Creates it if there is none, else recovers
    /// its entries. The handle is for the default namespace.
    ///
    /// # Errors
    /// A refused opening loses nothing that is stored.
    ///
    /// - [`Error::InvalidOption`]: an option is out of its range, or this machine cannot give it.
    /// - [`Error::NeedsResize`]: the store has other sizes, and [`Options::resize`] is false.
    /// - [`Error::Locked`]: the directory is open, here or in another process.
    /// - [`Error::NotFound`]: there is no store, and [`Options::create`] is false.
    /// - [`Error::NotAStore`]: the directory holds files of something else.
    /// - [`Error::NewerVersion`]: a newer version of this crate wrote the store.
    /// - [`Error::Corrupt`]: both copies of the manifest are damaged, or the mode is
    ///   [`RecoveryMode::Refuse`] and something is damaged.
    /// - [`Error::Io`]: the operating system failed an operation, for example on a full disk.
    pub fn open(options: Options) -> Result<Self> {
        let engine = engine::open(&options, None, Arc::new(SystemClock), Mode::Threads)?;
        let threads = Threads::start(&engine).map_err(Error::io("start threads for", options.dir))?;
        let space = engine.namespace("")?;
        Ok(Self { running: Arc::new(Running { engine, threads: Mutex::new(Some(threads)) }), space })
    }

    /// A handle of the same cache for the namespace `name`. Equal keys in different namespaces are
    /// different entries.
    ///
    /// A namespace that does not exist is created, at the acknowledgement level of the cache. The
    /// empty name is the default namespace. A store has up to 1024 namespaces besides the default
    /// one, with names of up to 255 bytes.
    ///
    /// # Errors
    /// - [`Error::InvalidName`]: the name is too long, or there are 1024 namespaces already.
    /// - [`Error::Failed`], [`Error::Closed`]: a namespace cannot be created any more.
    /// - [`Error::ReadOnly`]: there is no such namespace, and none can be created.
    ///
    /// # Examples
    /// ```
    /// # use everwarm::{Cache, Options};
    /// # fn main() -> everwarm::Result<()> {
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let dir = temporary.path().join("store");
    /// let cache = Cache::open(Options::new(&dir).memory(1 << 20).flash(1 << 20))?;
    /// let users = cache.namespace("users")?;
    /// let feeds = cache.namespace("feeds")?;
    /// users.put("17", "Ada")?;
    /// feeds.put("17", "a feed")?;
    ///
    /// // Drops every entry of one namespace in constant time.
    /// users.clear()?;
    /// assert!(users.get("17")?.is_none());
    /// assert_eq!(feeds.get("17")?.as_deref(), Some(&b"a feed"[..]));
    /// assert_eq!(cache.namespaces()?, ["feeds", "users"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn namespace(&self, name: &str) -> Result<Self> {
        Ok(Self { running: Arc::clone(&self.running), space: self.engine().namespace(name)? })
    }

    /// A handle of the same cache for the namespace `name`, or `None` if it does not exist. Changes
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn existing_namespace(&self, name: &str) -> Result<Option<Self>> {
        self.engine().check_readable()?;
        let space = self.engine().namespaces().handle(name);
        Ok(space.map(|space| Self { running: Arc::clone(&self.running), space }))
    }

    /// Names of all namespaces but the default one, sorted.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn namespaces(&self) -> Result<Vec<String>> {
        self.engine().check_readable()?;
        Ok(self.engine().namespaces().names())
    }

    /// Removes the namespace `name` with its entries, at the acknowledgement level of the cache.
    /// Its name is free again. Returns the version of the removal, or `None` if there is no such
    /// namespace.
    ///
    /// Writes one record, so it takes constant time, like [`Cache::clear`]. From then on every
    /// handle of this namespace is without one: its reads miss, and its mutations return
    /// [`Error::NamespaceRemoved`]. That stays so if a namespace of the same name is created, which
    /// begins empty.
    ///
    /// # Errors
    /// - [`Error::InvalidName`]: the default namespace cannot be removed, and no name has more than
    ///   255 bytes.
    /// - [`Error::Failed`], [`Error::Closed`].
    ///
    /// # Examples
    /// ```
    /// # use everwarm::{Cache, Error, Options};
    /// # fn main() -> everwarm::Result<()> {
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let dir = temporary.path().join("store");
    /// let cache = Cache::open(Options::new(&dir).memory(1 << 20).flash(1 << 20))?;
    /// let tenant = cache.namespace("tenant-17")?;
    /// tenant.put("plan", "small")?;
    /// assert!(cache.drop_namespace("tenant-17")?.is_some());
    /// assert!(cache.namespaces()?.is_empty() && tenant.get("plan")?.is_none());
    /// assert!(matches!(tenant.put("plan", "large"), Err(Error::NamespaceRemoved)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn drop_namespace(&self, name: &str) -> Result<Option<Lsn>> {
        self.engine().drop_namespace(name, None)
    }

    /// Name of the namespace of this handle. Empty for the default one.
    pub fn name(&self) -> &str {
        self.space.name()
    }

    /// Drops every entry in the namespace of this handle, at the acknowledgement level of the
    /// cache. Returns the version of the drop.
    ///
    /// Writes one record, so it takes constant time. The space on flash is freed as segments are
    /// reclaimed.
    ///
    /// # Errors
    /// [`Error::Failed`], [`Error::Closed`], [`Error::NamespaceRemoved`].
    pub fn clear(&self) -> Result<Lsn> {
        self.engine().clear(&self.space, None)
    }

    /// Drops every entry in every namespace, at the acknowledgement level of the cache. Returns the
    /// version of the drop. Writes one record, so it takes constant time.
    ///
    /// # Errors
    /// [`Error::Failed`], [`Error::Closed`].
    pub fn clear_all(&self) -> Result<Lsn> {
        self.engine().clear_all(None)
    }

    /// Sets a resume token, a small value that belongs to the store instead of a key. Returns the
    /// version of the change.
    ///
    /// A token states for example the position in a change stream up to which invalidations were
    /// applied. A token is never more durable than a mutation that returned before it was set: if
    /// the token is there after a crash, no such mutation was lost.
    ///
    /// The token is set at the acknowledgement level of the cache. An empty value removes it. A
    /// store has up to 64 tokens of up to 1024 bytes, with names of up to 255 bytes.
    ///
    /// # Errors
    /// - [`Error::InvalidName`]: the name is too long, or there are 64 tokens already.
    /// - [`Error::ValueTooLarge`]: the value is longer than 1024 bytes.
    /// - [`Error::Failed`], [`Error::Closed`].
    ///
    /// # Examples
    /// ```
    /// # use everwarm::{Cache, Options};
    /// # fn main() -> everwarm::Result<()> {
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let dir = temporary.path().join("store");
    /// # let options = || Options::new(&dir).memory(1 << 20).flash(1 << 20);
    /// let cache = Cache::open(options())?;
    /// // The change at offset 4711 says that user 17 changed: first invalidate, then advance.
    /// cache.delete("user:17")?;
    /// cache.set_resume_token("changes", 4711_u64.to_le_bytes())?;
    /// drop(cache);
    ///
    /// // After a restart, read the change stream from here on.
    /// let cache = Cache::open(options())?;
    /// assert_eq!(cache.resume_token("changes")?.as_deref(), Some(&4711_u64.to_le_bytes()[..]));
    /// assert!(cache.resume_token("others")?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_resume_token(&self, name: &str, value: impl AsRef<[u8]>) -> Result<Lsn> {
        self.engine().set_resume_token(name, value.as_ref(), None)
    }

    /// Sets a resume token like [`Cache::set_resume_token`], but acknowledged at `level`.
    ///
    /// # Errors
    /// Those of [`Cache::set_resume_token`].
    pub fn set_resume_token_with(&self, name: &str, value: impl AsRef<[u8]>, level: Ack) -> Result<Lsn> {
        self.engine().set_resume_token(name, value.as_ref(), Some(level))
    }

    /// Value of the resume token `name`, or `None` if it is not set.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn resume_token(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.engine().check_readable()?;
        Ok(self.engine().namespaces().resume_token(name))
    }

    /// Names of all resume tokens, sorted.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn resume_tokens(&self) -> Result<Vec<String>> {
        self.engine().check_readable()?;
        Ok(self.engine().namespaces().resume_tokens())
    }

    fn engine(&self) -> &Engine {
        &self.running.engine
    }

    fn key<'a>(&self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Key<'a> {
        self.space.key(key.as_ref())
    }

    /// The value of `key`, or `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Closed`]. A value that cannot be read or does not verify is a miss; [`Stats`]
    /// counts it in `read_errors` or `damaged`. [`Error::NeedsZstd`] in a build without the feature
    /// `zstd`, if the value was stored compressed by another build.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.engine().get(self.key(&key), true)
    }

    /// The values of `keys`, in the order of `keys`. The result is that of a [`Cache::get`] of each
    /// key, but reads from flash are in flight together, up to [`Options::depth`] at once.
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::NeedsZstd`] as [`Cache::get`].
    ///
    /// # Examples
    /// ```
    /// # use everwarm::{Cache, Options};
    /// # fn main() -> everwarm::Result<()> {
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let dir = temporary.path().join("store");
    /// let cache = Cache::open(Options::new(&dir).memory(1 << 20).flash(1 << 20))?;
    /// cache.put("a", "1")?;
    /// cache.put("c", "3")?;
    /// let values = cache.get_many(&["a", "b", "c"])?;
    /// let values: Vec<Option<&[u8]>> = values.iter().map(|value| value.as_deref()).collect();
    /// assert_eq!(values, [Some(&b"1"[..]), None, Some(&b"3"[..])]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        let keys: Vec<Key<'_>> = keys.iter().map(|key| self.key(key)).collect();
        self.engine().get_many(&keys)
    }

    /// The bytes `range` of the value of `key`, cut at the end of the value. `None` if the key has
    /// no value.
    ///
    /// The checksum covers the whole value, so the whole value is read. The returned handle keeps
    /// all of it in DRAM.
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::NeedsZstd`] as [`Cache::get`].
    pub fn get_range(&self, key: impl AsRef<[u8]>, range: Range<usize>) -> Result<Option<Bytes>> {
        Ok(self.get(key)?.map(|value| value.into_range(range)))
    }

    /// The value of `key`, or `None` if it has none, without counting as a use.
    ///
    /// Unlike [`Cache::get`], it is not counted as a hit or a miss, and does not mark the entry as
    /// hot on flash or as used in the memory tier. It brings nothing into the memory tier. The same
    /// holds for [`Cache::contains`], for [`Cache::touch`], and for the look of a
    /// [`Condition`](crate::Condition).
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::NeedsZstd`] as [`Cache::get`].
    pub fn peek(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.engine().get(self.key(&key), false)
    }

    /// Whether `key` has a value. Reads the value like [`Cache::peek`].
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::NeedsZstd`] as [`Cache::get`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.peek(key)?.is_some())
    }

    /// Whether `key` may have a value, from DRAM alone. `false` is certain. `true` is wrong for a
    /// few absent keys in a million, and for entries that have expired but were not removed yet.
    pub fn may_contain(&self, key: impl AsRef<[u8]>) -> bool {
        self.engine().may_contain(self.key(&key))
    }

    /// Sets the value of `key`, at the acknowledgement level of the cache and without an expiry.
    /// Returns the version of the put.
    ///
    /// Waits while the write buffer is full, and as long as the disk is full.
    ///
    /// # Errors
    /// - [`Error::EmptyKey`], [`Error::KeyTooLarge`], [`Error::ValueTooLarge`],
    ///   [`Error::NamespaceRemoved`]: nothing was stored.
    /// - [`Error::Failed`]: the store refuses mutations until it is opened again. The put may have
    ///   been stored or not.
    /// - [`Error::Closed`].
    /// - [`Error::Io`]: compressing the value failed.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Lsn> {
        let version = self.put_with(key, value, &PutOptions::new())?;
        Ok(version.unwrap_or(Lsn::ZERO))
    }

    /// Sets the value of `key` with an expiry, level, condition, limit of waiting or hint of its
    /// own. Returns the version of the put, or `None` if the condition did not hold.
    ///
    /// # Errors
    /// Those of [`Cache::put`], and:
    ///
    /// - [`Error::WouldBlock`], [`Error::TimedOut`]: there was no room within [`PutOptions::wait`].
    /// - [`Error::Io`]: the condition needs the current version, and its record cannot be read.
    pub fn put_with(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, options: &PutOptions) -> Result<Option<Lsn>> {
        self.engine().put(self.key(&key), value.as_ref(), options)
    }

    /// Sets the values of many keys, in order, and waits for their acknowledgement once at the end.
    /// Returns the version of each put, `None` where the condition did not hold.
    ///
    /// # Errors
    /// Those of [`Cache::put_with`]. The entries before the one that failed are stored.
    pub fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(&self, entries: &[(K, V)], options: &PutOptions) -> Result<Vec<Option<Lsn>>> {
        let entries: Vec<(Key<'_>, &[u8])> = entries.iter().map(|(key, value)| (self.key(key), value.as_ref())).collect();
        self.engine().put_many(&entries, options)
    }

    /// The value of `key`. On a miss, `load` makes the value, and it is stored with `options`.
    ///
    /// - Of all callers that miss a key at once, one runs its `load`. The others wait for its
    ///   value; if it fails, they try themselves.
    /// - A put or delete of the key during the load wins: the loaded value is returned but not
    ///   stored.
    /// - A load that takes longer than 5 s is no longer waited for: one of the waiters runs its own
    ///   `load`, and the others wait for that one. With [`Wait::UpTo`] a caller waits only so long,
    ///   and then runs its own `load` without storing the value.
    /// - `load` runs under no lock. If it fills the same key itself, that call runs its own `load`
    ///   at once.
    ///
    /// # Trouble of the cache
    /// A value that was loaded is returned, whatever happens to the cache. Values that were not
    /// stored are counted in [`Stats::not_stored`].
    ///
    /// - If the cache is failed or closed, or the entry cannot be read, `load` runs as after any
    ///   miss.
    /// - If there is no room, the value is not stored. Unlike a put, a fill does not wait for room
    ///   by default; see [`Wait`].
    /// - By default it does not wait for a sync either, even if the cache acknowledges at
    ///   [`Ack::Host`]. With [`PutOptions::ack`] it waits for its sync as long as its [`Wait`]
    ///   says, and for 5 s without one.
    /// - A value that is too large is returned and not stored.
    ///
    /// # Errors
    /// - [`FillError::Loader`]: `load` failed.
    /// - [`FillError::Recursive`]: `load` fills the same key, whose `load` fills it again, and so
    ///   on, 8 times.
    ///
    /// # Examples
    /// ```
    /// # use everwarm::{Cache, Options};
    /// use everwarm::PutOptions;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temporary = tempfile::tempdir()?;
    /// # let dir = temporary.path().join("store");
    /// let cache = Cache::open(Options::new(&dir).memory(1 << 20).flash(1 << 20))?;
    /// let load = || Ok::<_, std::io::Error>("Ada".into());
    /// assert_eq!(cache.get_or_fill("user:17", &PutOptions::new(), load)?, "Ada");
    ///
    /// // It is a hit from now on, so this loader does not run.
    /// let fail = || Err(std::io::Error::other("the database is down"));
    /// assert_eq!(cache.get_or_fill("user:17", &PutOptions::new(), fail)?, "Ada");
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_or_fill<E>(
        &self,
        key: impl AsRef<[u8]>,
        options: &PutOptions,
        load: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, FillError<E>> {
        self.engine().get_or_fill(self.key(&key), options, load)
    }

    /// Sets the expiry of the entry of `key` to `ttl` from now (millisecond steps), or removes it
    /// (`None`). Writes the whole record again. Returns its new version, or `None` if there is no
    /// entry.
    ///
    /// # Errors
    /// Those of [`Cache::put`], and [`Error::Io`] if the record cannot be read.
    pub fn touch(&self, key: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<Option<Lsn>> {
        self.engine().touch(self.key(&key), ttl)
    }

    /// Removes the value of `key`, at the acknowledgement level of the cache. Writes a tombstone
    /// even if the key has no value. Returns the version of the tombstone.
    ///
    /// # Errors
    /// - [`Error::EmptyKey`], [`Error::KeyTooLarge`], [`Error::NamespaceRemoved`]: no key like this
    ///   can have a value.
    /// - [`Error::Failed`]: the store refuses mutations until it is opened again. The delete may
    ///   have been stored or not.
    /// - [`Error::Closed`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<Lsn> {
        let version = self.engine().delete(self.key(&key), &DeleteOptions::new())?;
        Ok(version.unwrap_or(Lsn::ZERO))
    }

    /// Removes the value of `key` with a level, condition or limit of waiting of its own. Returns
    /// the version of the tombstone, or `None` if the condition did not hold.
    ///
    /// # Errors
    /// Those of [`Cache::delete`], and:
    ///
    /// - [`Error::WouldBlock`], [`Error::TimedOut`]: there was no room within
    ///   [`DeleteOptions::wait`].
    /// - [`Error::Io`]: the condition needs the current version, and its record cannot be read.
    pub fn delete_with(&self, key: impl AsRef<[u8]>, options: &DeleteOptions) -> Result<Option<Lsn>> {
        self.engine().delete(self.key(&key), options)
    }

    /// Iterates over the live entries in the namespace of this handle, in no order. An entry that
    /// is put, replaced or deleted meanwhile may be seen or not. An entry that cannot be read is
    /// skipped.
    /// [`Error::NeedsZstd`] stands in the place of an entry that needs it. The iteration goes on.
    pub fn entries(&self) -> Entries<'_> {
        Entries { cache: self, scan: Scan::new([(self.space.generation(), self.space.name().into())]) }
    }

    /// Iterates over the live entries of every namespace, in no order. An entry that is put,
    /// replaced or deleted meanwhile may be seen or not. An entry that cannot be read is skipped.
    /// [`Error::NeedsZstd`] stands in the place of an entry that needs it. The iteration goes on.
    pub fn entries_of_all_namespaces(&self) -> Entries<'_> {
        let readable = self.engine().check_readable();
        // A cache that cannot be read says so at the first entry.
        let generations = readable.map_or_else(|_said_later| Vec::new(), |()| self.engine().namespaces().named_generations());
        Entries { cache: self, scan: Scan::new(generations) }
    }

    /// Makes every mutation that was acknowledged before the call as durable as `level` promises.
    /// At [`Ack::Host`] it waits for a sync, and as long as the disk is full. At the other levels
    /// it returns at once.
    ///
    /// # Errors
    /// - [`Error::Failed`]: a write or a sync failed.
    /// - [`Error::ReadOnly`]: the cache was opened for reading, and promises nothing.
    pub fn persist(&self, level: Ack) -> Result<()> {
        self.engine().persist(level)
    }

    /// Writes a checkpoint of the index now, so that the next open has less to replay. Returns
    /// whether it was written.
    ///
    /// `false` means one of these, and the previous checkpoint stays valid:
    /// - The disk is full, and [`Stats::disk_full`] has grown.
    /// - A write failed, and [`Stats::write_errors`] has grown.
    /// - Records of a failed segment are still being moved, so nothing can be synced now.
    ///
    /// # Errors
    /// [`Error::Failed`], [`Error::Closed`], [`Error::ReadOnly`].
    pub fn checkpoint(&self) -> Result<bool> {
        self.engine().check_mutable()?;
        self.engine().step_checkpoint(true)
    }

    /// Sizes, watermarks, and the counters since the cache was opened. After a close they are those
    /// of the close. In a child of `fork` all are zero.
    pub fn stats(&self) -> Stats {
        self.engine().check_process().map_or_else(|_forked| Stats::default(), |()| self.engine().stats())
    }

    /// The findings of the opening: the kind of stop before it, damage, and the time it took.
    ///
    /// # Examples
    /// ```
    /// # use everwarm::{Cache, Options};
    /// use everwarm::Start;
    ///
    /// # fn main() -> everwarm::Result<()> {
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let dir = temporary.path().join("store");
    /// # let options = || Options::new(&dir).memory(1 << 20).flash(1 << 20);
    /// let cache = Cache::open(options())?;
    /// assert_eq!(cache.recovery().kind, Start::Created);
    /// cache.put("key", "value")?;
    /// drop(cache); // No close: for the store this is a process crash.
    ///
    /// let cache = Cache::open(options())?;
    /// let report = cache.recovery();
    /// assert_eq!((report.kind, report.entries), (Start::Process, 1));
    /// assert!(report.damaged.is_empty());
    /// if let Some(version) = report.maybe_lost_after {
    ///     println!("the host crashed: mutations after {version} may be missing");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn recovery(&self) -> &RecoveryReport {
        self.engine().recovery()
    }

    /// Closes the cache: syncs and seals everything, and writes a checkpoint, so that the next open
    /// reads little. A cache that was opened for reading writes nothing.
    ///
    /// Then releases the lock of the directory, every descriptor, mapping and thread, whatever
    /// other clones live. Operations of other clones return [`Error::Closed`] from then on. A cache
    /// that is closed already stays so, without an error.
    ///
    /// # Errors
    /// - [`Error::Failed`] if a write or a sync failed, now or earlier, if the disk is full, or if
    ///   the directory was removed. The store is then as after a process crash.
    /// - [`Error::Forked`] in a child of `fork`.
    pub fn close(self) -> Result<()> {
        self.running.close()
    }
}

/// Iterator over live entries, in no order. Made by [`Cache::entries`] and
/// [`Cache::entries_of_all_namespaces`].
#[derive(Debug)]
pub struct Entries<'a> {
    cache: &'a Cache,
    scan: Scan,
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.cache.engine().scan_next(&mut self.scan).transpose()
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
