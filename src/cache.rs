//! The handle that users hold.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::SystemClock;
use crate::config::{Ack, Options};
use crate::engine::driver::{Mode, Threads};
use crate::engine::{self, Engine, Entry, FillError, PutOptions, RecoveryReport, Scan, Stats, Value};
use crate::error::Result;
use crate::id::Lsn;
use crate::sync::lock;

/// An open cache. Cheap to clone; all clones are the same cache.
///
/// When the last clone is dropped without [`Cache::close`], the background ends where it is: no worse than a kill.
#[derive(Clone)]
pub struct Cache {
    running: Arc<Running>,
}

struct Running {
    engine: Arc<Engine>,
    threads: Mutex<Option<Threads>>,
}

impl Running {
    fn stop(&self) {
        self.engine.begin_close();
        if let Some(threads) = lock(&self.threads).take() {
            threads.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Cache {
    /// Opens the cache in the options' directory: creates it, or brings back what it held.
    ///
    /// # Errors
    /// Each cause has its own: [`crate::Error::InvalidOption`], [`crate::Error::Locked`], [`crate::Error::NotAStore`], [`crate::Error::NotFound`],
    /// [`crate::Error::NewerVersion`], [`crate::Error::Corrupt`], [`crate::Error::Io`]. None of them changes what is stored.
    pub fn open(options: Options) -> Result<Self> {
        let engine = engine::open(&options, None, Arc::new(SystemClock::new()), Mode::Threads)?;
        let threads = Threads::start(&engine).map_err(crate::Error::io("start threads for", options.dir))?;
        Ok(Self { running: Arc::new(Running { engine, threads: Mutex::new(Some(threads)) }) })
    }

    fn engine(&self) -> &Engine {
        &self.running.engine
    }

    /// The value of `key`, if it has one.
    ///
    /// # Errors
    /// [`crate::Error::Closed`]. A value that cannot be read or does not verify is a miss, and counted.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.engine().get(key.as_ref(), true)
    }

    /// The values of `keys`, in their order: the same answers as a get of each, but what must be read from flash is read together.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        self.engine().get_many(&keys)
    }

    /// The value of `key`, if it has one, without counting as a use.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub fn peek(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.engine().get(key.as_ref(), false)
    }

    /// Whether `key` has a value. Reads it.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.peek(key)?.is_some())
    }

    /// False if `key` certainly has no value. Asks only DRAM; wrong for a few keys in a million.
    pub fn may_contain(&self, key: impl AsRef<[u8]>) -> bool {
        self.engine().may_contain(key.as_ref())
    }

    /// Sets the value of `key`, at the cache's acknowledgement level. Its version.
    ///
    /// # Errors
    /// [`crate::Error::EmptyKey`], [`crate::Error::KeyTooLarge`], [`crate::Error::ValueTooLarge`], [`crate::Error::Failed`], [`crate::Error::Closed`].
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Lsn> {
        let version = self.put_with(key, value, &PutOptions::new())?;
        Ok(version.unwrap_or(Lsn::ZERO))
    }

    /// Sets the value of `key` as `options` say. Its version, or `None` if the condition did not hold.
    ///
    /// # Errors
    /// As [`Cache::put`], and [`crate::Error::WouldBlock`] or [`crate::Error::TimedOut`] if the options do not wait forever.
    pub fn put_with(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, options: &PutOptions) -> Result<Option<Lsn>> {
        self.engine().put(key.as_ref(), value.as_ref(), options)
    }

    /// The value of `key`, or what `load` gives. Of all who miss the key at once one runs its loader; the others wait and take what it stored. A put or delete of
    /// the key meanwhile wins: the loaded value is returned and not stored.
    ///
    /// # Errors
    /// [`crate::FillError`].
    pub fn get_or_fill<E>(
        &self,
        key: impl AsRef<[u8]>,
        options: &PutOptions,
        load: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, FillError<E>> {
        self.engine().get_or_fill(key.as_ref(), options, load)
    }

    /// Gives the entry of `key` another expiry, or none. Its new version, or `None` if there is no entry. Writes the entry again.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub fn touch(&self, key: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<Option<Lsn>> {
        self.engine().touch(key.as_ref(), ttl)
    }

    /// Removes the value of `key`, whether or not it has one, at the cache's acknowledgement level. The version of the removal.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<Lsn> {
        self.engine().delete(key.as_ref(), None)
    }

    /// Removes the value of `key` at this level.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub fn delete_with(&self, key: impl AsRef<[u8]>, level: Ack) -> Result<Lsn> {
        self.engine().delete(key.as_ref(), Some(level))
    }

    /// Everything that is live, in no order. What changes meanwhile may be seen or not.
    pub fn entries(&self) -> Entries<'_> {
        Entries { cache: self, scan: Scan::default() }
    }

    /// Makes everything acknowledged so far as durable as `level` says.
    ///
    /// # Errors
    /// [`crate::Error::Failed`] if a sync failed.
    pub fn persist(&self, level: Ack) -> Result<()> {
        self.engine().persist(level)
    }

    /// Takes a checkpoint of the index now, so that the next open has less to replay.
    ///
    /// # Errors
    /// [`crate::Error::Failed`] if it could not be written.
    pub fn checkpoint(&self) -> Result<()> {
        self.engine().step_checkpoint(true).map(drop)
    }

    /// What the cache holds and has done.
    pub fn stats(&self) -> Stats {
        self.engine().stats()
    }

    /// What was found when the cache was opened.
    pub fn recovery(&self) -> &RecoveryReport {
        self.engine().recovery()
    }

    /// Ends in order: everything durable and sealed, and a checkpoint, so that the next open reads little. Other clones get [`crate::Error::Closed`] from then on.
    ///
    /// # Errors
    /// [`crate::Error::Failed`]: the store is then as after a kill.
    pub fn close(self) -> Result<()> {
        self.running.stop();
        self.engine().finish()
    }
}

/// See [`Cache::entries`].
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
