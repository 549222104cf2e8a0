//! The handle for tasks.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::Cache;
use crate::config::Ack;
use crate::engine::{DeleteOptions, FillError, PutOptions, Value};
use crate::error::Result;
use crate::id::{Key, Lsn};

/// A [`Cache`] whose operations return to the executor where they would wait: for flash, for room in the write buffer, for a sync, for another task's load. It needs no
/// particular runtime. Cheap to clone; the same cache as the handle that it came from.
///
/// Every future may be dropped at any time. A read that is dropped has no effect. A mutation that is dropped is in doubt: it happened or it did not, and nothing else. A
/// limit of [`crate::Wait::UpTo`] is looked at when there may be room; for a strict one, use the runtime's.
///
/// Tasks are woken by the cache's threads and by threads that wait in a call of the same cache, so a waker must not wait for anything that is held across such a call.
///
/// ```
/// # fn main() -> everwarm::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # pollster::block_on(async {
/// let cache = everwarm::Cache::open(everwarm::Options::new(dir.path().join("store")))?.for_tasks();
/// cache.put("user:17", "Ada").await?;
/// assert_eq!(&cache.get("user:17").await?.unwrap()[..], b"Ada");
/// # Ok(()) })
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AsyncCache {
    cache: Cache,
}

impl Cache {
    /// This cache for tasks of any async runtime.
    pub fn for_tasks(&self) -> AsyncCache {
        AsyncCache { cache: self.clone() }
    }
}

impl AsyncCache {
    /// The handle for threads: for what never waits, and for what has no form for tasks: [`Cache::namespace`] of a new name, [`Cache::clear_all`], [`Cache::entries`],
    /// [`Cache::checkpoint`], [`Cache::close`].
    pub fn blocking(&self) -> &Cache {
        &self.cache
    }

    fn key<'a>(&self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Key<'a> {
        self.cache.key(key)
    }

    /// See [`Cache::namespace`]. Does not wait if the namespace exists.
    ///
    /// # Errors
    /// As [`Cache::namespace`].
    pub fn namespace(&self, name: &str) -> Result<Self> {
        Ok(self.cache.namespace(name)?.for_tasks())
    }

    /// See [`Cache::get`].
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.cache.engine().get_in_task(self.key(&key), true).await
    }

    /// See [`Cache::get_many`].
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        let keys: Vec<Key<'_>> = keys.iter().map(|key| self.key(key)).collect();
        self.cache.engine().get_many_in_task(&keys).await
    }

    /// See [`Cache::peek`].
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn peek(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.cache.engine().get_in_task(self.key(&key), false).await
    }

    /// See [`Cache::contains`].
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.peek(key).await?.is_some())
    }

    /// See [`Cache::put`].
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Lsn> {
        let version = self.put_with(key, value, &PutOptions::new()).await?;
        Ok(version.unwrap_or(Lsn::ZERO))
    }

    /// See [`Cache::put_with`].
    ///
    /// # Errors
    /// As [`Cache::put_with`].
    pub async fn put_with(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, options: &PutOptions) -> Result<Option<Lsn>> {
        self.cache.engine().put_in_task(self.key(&key), value.as_ref(), options).await
    }

    /// See [`Cache::get_or_fill`]. If the future whose loader runs is dropped, one of those who wait runs its own.
    ///
    /// # Errors
    /// [`crate::FillError`].
    pub async fn get_or_fill<E>(
        &self,
        key: impl AsRef<[u8]>,
        options: &PutOptions,
        load: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<Bytes, FillError<E>> {
        self.cache.engine().get_or_fill_in_task(self.key(&key), options, load).await
    }

    /// See [`Cache::delete`].
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Lsn> {
        let version = self.delete_with(key, &DeleteOptions::new()).await?;
        Ok(version.unwrap_or(Lsn::ZERO))
    }

    /// See [`Cache::delete_with`].
    ///
    /// # Errors
    /// As [`Cache::put_with`].
    pub async fn delete_with(&self, key: impl AsRef<[u8]>, options: &DeleteOptions) -> Result<Option<Lsn>> {
        self.cache.engine().delete_in_task(self.key(&key), options).await
    }

    /// See [`Cache::get_range`].
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn get_range(&self, key: impl AsRef<[u8]>, range: Range<usize>) -> Result<Option<Bytes>> {
        Ok(self.get(key).await?.map(|value| value.into_range(range)))
    }

    /// See [`Cache::put_many`].
    ///
    /// # Errors
    /// As [`Cache::put_many`].
    pub async fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(&self, entries: &[(K, V)], options: &PutOptions) -> Result<Vec<Option<Lsn>>> {
        let entries: Vec<(Key<'_>, &[u8])> = entries.iter().map(|(key, value)| (self.key(key), value.as_ref())).collect();
        self.cache.engine().put_many_in_task(&entries, options).await
    }

    /// See [`Cache::touch`].
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub async fn touch(&self, key: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<Option<Lsn>> {
        self.cache.engine().touch_in_task(self.key(&key), ttl).await
    }

    /// See [`Cache::clear`].
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub async fn clear(&self) -> Result<Lsn> {
        self.cache.engine().clear_in_task(&self.cache.space).await
    }

    /// See [`Cache::set_resume_token_with`].
    ///
    /// # Errors
    /// As [`Cache::set_resume_token`].
    pub async fn set_resume_token_with(&self, name: &str, value: impl AsRef<[u8]>, level: Ack) -> Result<Lsn> {
        self.cache.engine().set_resume_token_in_task(name, value.as_ref(), level).await
    }

    /// See [`Cache::persist`].
    ///
    /// # Errors
    /// As [`Cache::persist`].
    pub async fn persist(&self, level: Ack) -> Result<()> {
        let engine = self.cache.engine();
        engine.wait_in_task(level, engine.appended()).await
    }
}
