//! The handle that users hold.

mod tasks;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::SystemClock;
use crate::concurrent::lock;
use crate::config::{Ack, Options};
use crate::engine::background::Threads;
use crate::engine::context::Mode;
use crate::engine::{self, DeleteOptions, Engine, Entry, FillError, Namespace, PutOptions, RecoveryReport, Scan, Stats, Value};
use crate::error::Result;
use crate::id::{Key, Lsn};
pub use tasks::AsyncCache;

/// An open cache. Cheap to clone; all clones are the same cache.
///
/// When the last clone is dropped without [`Cache::close`], the background ends where it is: no worse than a kill.
#[derive(Clone)]
pub struct Cache {
    running: Arc<Running>,
    /// The namespace that keys belong to.
    space: Arc<Namespace>,
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
        let engine = engine::open(&options, None, Arc::new(SystemClock), Mode::Threads)?;
        let threads = Threads::start(&engine).map_err(crate::Error::io("start threads for", options.dir))?;
        let space = engine.namespace("")?;
        Ok(Self { running: Arc::new(Running { engine, threads: Mutex::new(Some(threads)) }), space })
    }

    /// The same cache, seen through another namespace: keys of different namespaces are different keys. Made if there is none with this name; the empty name is the
    /// default one's. A store has up to 1024, with names of up to 255 bytes.
    ///
    /// # Errors
    /// [`crate::Error::InvalidName`], and as [`Cache::put`].
    pub fn namespace(&self, name: &str) -> Result<Self> {
        Ok(Self { running: Arc::clone(&self.running), space: self.engine().namespace(name)? })
    }

    /// As [`Cache::namespace`], if there is one with this name. Changes nothing.
    pub fn existing_namespace(&self, name: &str) -> Option<Self> {
        Some(Self { running: Arc::clone(&self.running), space: self.engine().namespaces().handle(name)? })
    }

    /// Names of all namespaces but the default one.
    pub fn namespaces(&self) -> Vec<String> {
        self.engine().namespaces().names()
    }

    /// The name of this handle's namespace, empty for the default one.
    pub fn name(&self) -> &str {
        self.space.name()
    }

    /// Drops everything in this handle's namespace, in constant time: one record. Its place on flash is won back as segments are reclaimed. The version of the drop.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub fn clear(&self) -> Result<Lsn> {
        self.engine().clear(&self.space, None)
    }

    /// Drops everything in every namespace, in constant time.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub fn clear_all(&self) -> Result<Lsn> {
        self.engine().clear_all(None)
    }

    /// Sets a resume token at the cache's acknowledgement level: for example the position in a change stream up to which invalidations were applied. It is never more
    /// durable than a mutation that returned before. An empty value removes it. Up to 64 tokens of up to 1 KiB, with names of up to 255 bytes.
    ///
    /// # Errors
    /// [`crate::Error::InvalidName`], [`crate::Error::ValueTooLarge`], and as [`Cache::put`].
    pub fn set_resume_token(&self, name: &str, value: impl AsRef<[u8]>) -> Result<Lsn> {
        self.engine().set_resume_token(name, value.as_ref(), None)
    }

    /// As [`Cache::set_resume_token`], at this level.
    ///
    /// # Errors
    /// As [`Cache::set_resume_token`].
    pub fn set_resume_token_with(&self, name: &str, value: impl AsRef<[u8]>, level: Ack) -> Result<Lsn> {
        self.engine().set_resume_token(name, value.as_ref(), Some(level))
    }

    /// The resume token with this name, if there is one.
    pub fn resume_token(&self, name: &str) -> Option<Vec<u8>> {
        self.engine().namespaces().resume_token(name)
    }

    /// Names of all resume tokens.
    pub fn resume_tokens(&self) -> Vec<String> {
        self.engine().namespaces().resume_tokens()
    }

    fn engine(&self) -> &Engine {
        &self.running.engine
    }

    fn key<'a>(&self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Key<'a> {
        self.space.key(key.as_ref())
    }

    /// The value of `key`, if it has one.
    ///
    /// # Errors
    /// [`crate::Error::Closed`]. A value that cannot be read or does not verify is a miss, and counted.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.engine().get(self.key(&key), true)
    }

    /// The values of `keys`, in their order: the same answers as a get of each, but what must be read from flash is read together.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        let keys: Vec<Key<'_>> = keys.iter().map(|key| self.key(key)).collect();
        self.engine().get_many(&keys)
    }

    /// A range of the value of `key`, cut to its length. A checksum covers the whole value, so all of it is read; the handle returned shares it.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub fn get_range(&self, key: impl AsRef<[u8]>, range: Range<usize>) -> Result<Option<Bytes>> {
        Ok(self.get(key)?.map(|value| value.into_range(range)))
    }

    /// The value of `key`, if it has one, without counting as a use.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub fn peek(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.engine().get(self.key(&key), false)
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
        self.engine().may_contain(self.key(&key))
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
        self.engine().put(self.key(&key), value.as_ref(), options)
    }

    /// Sets the values of many keys, in order, as `options` say, and waits once at the end. The versions, `None` where the condition did not hold.
    ///
    /// # Errors
    /// As [`Cache::put_with`]; the entries before the one that failed are stored.
    pub fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(&self, entries: &[(K, V)], options: &PutOptions) -> Result<Vec<Option<Lsn>>> {
        let entries: Vec<(Key<'_>, &[u8])> = entries.iter().map(|(key, value)| (self.key(key), value.as_ref())).collect();
        self.engine().put_many(&entries, options)
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
        self.engine().get_or_fill(self.key(&key), options, load)
    }

    /// Gives the entry of `key` another expiry, or none. Its new version, or `None` if there is no entry. Writes the entry again.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub fn touch(&self, key: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<Option<Lsn>> {
        self.engine().touch(self.key(&key), ttl)
    }

    /// Removes the value of `key`, whether or not it has one, at the cache's acknowledgement level. The version of the removal.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<Lsn> {
        let version = self.engine().delete(self.key(&key), &DeleteOptions::new())?;
        Ok(version.unwrap_or(Lsn::ZERO))
    }

    /// Removes the value of `key` as `options` say. The version of the removal, or `None` if the condition did not hold.
    ///
    /// # Errors
    /// As [`Cache::put_with`].
    pub fn delete_with(&self, key: impl AsRef<[u8]>, options: &DeleteOptions) -> Result<Option<Lsn>> {
        self.engine().delete(self.key(&key), options)
    }

    /// Everything that is live in this handle's namespace, in no order. What changes meanwhile may be seen or not.
    pub fn entries(&self) -> Entries<'_> {
        Entries { cache: self, scan: Scan::new([(self.space.generation(), self.space.name().into())]) }
    }

    /// Everything that is live in any namespace, in no order. As [`Cache::entries`].
    pub fn entries_of_all_namespaces(&self) -> Entries<'_> {
        Entries { cache: self, scan: Scan::new(self.engine().namespaces().named_generations()) }
    }

    /// Makes everything acknowledged so far as durable as `level` says. Waits as long as that takes: while the disk is full, until there is room.
    ///
    /// # Errors
    /// [`crate::Error::Failed`] if a sync failed.
    pub fn persist(&self, level: Ack) -> Result<()> {
        self.engine().persist(level)
    }

    /// Takes a checkpoint of the index now, so that the next open has less to replay. Says whether there is one: without room on the disk, or after a failed write, the last
    /// one counts on, and [`crate::Stats::disk_full`] or [`crate::Stats::write_errors`] has grown.
    ///
    /// # Errors
    /// [`crate::Error::Failed`], [`crate::Error::Closed`].
    pub fn checkpoint(&self) -> Result<bool> {
        self.engine().check_mutable()?;
        self.engine().step_checkpoint(true)
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
    /// [`crate::Error::Failed`], also if the disk is full: the store is then as after a kill.
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
