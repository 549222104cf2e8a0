//! [`AsyncCache`]: the handle for tasks of an async runtime.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::Cache;
use crate::config::Ack;
use crate::engine::{DeleteOptions, FillError, PutOptions, Value};
use crate::error::Result;
use crate::id::{Key, Lsn};

/// A handle of a [`Cache`] for tasks. Where an operation would wait, its future returns to the
/// executor: for flash, for room in the write buffer, for a sync, for the load of another task.
///
/// It needs no particular runtime. It is cheap to clone, and it is the same cache as the handle
/// that it came from. [`Cache::for_tasks`] makes one.
///
/// # Cancellation
/// Every future may be dropped at any time.
///
/// - A dropped read has no effect.
/// - A dropped mutation is in doubt: it took effect completely, or not at all.
///
/// # Deadlines and wakers
/// - A limit of [`Wait::UpTo`](crate::Wait::UpTo) is kept by a background thread, with any runtime.
/// - Tasks are woken by background threads and by threads in a call of the same cache. So a waker
///   must not wait for a lock that is held across such a call.
///
/// # Examples
/// ```
/// use everwarm::{Ack, Cache, Options, PutOptions};
///
/// # fn main() -> everwarm::Result<()> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let dir = temporary.path().join("store");
/// # pollster::block_on(async {
/// let cache = Cache::open(Options::new(&dir).memory(1 << 20).flash(1 << 20))?.for_tasks();
/// cache.put("user:17", "Ada").await?;
/// let durable = PutOptions::new().ack(Ack::Host);
/// cache.put_with("user:18", "Grace", &durable).await?;
/// let values = cache.get_many(&["user:17", "user:18"]).await?;
/// assert_eq!(values[0].as_deref(), Some(&b"Ada"[..]));
/// assert_eq!(values[1].as_deref(), Some(&b"Grace"[..]));
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AsyncCache {
    cache: Cache,
}

impl Cache {
    /// A handle of this cache, and of the namespace of this handle, for tasks of any async runtime.
    pub fn for_tasks(&self) -> AsyncCache {
        AsyncCache { cache: self.clone() }
    }
}

impl AsyncCache {
    /// The handle for threads, for operations that never wait and for those without an async form:
    /// [`Cache::namespace`] of a new name, [`Cache::drop_namespace`], [`Cache::clear_all`],
    /// [`Cache::entries`], [`Cache::checkpoint`] and [`Cache::close`].
    pub fn blocking(&self) -> &Cache {
        &self.cache
    }

    fn key<'a>(&self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Key<'a> {
        self.cache.key(key)
    }

    /// A handle of the same cache for the namespace `name`; see [`Cache::namespace`]. Blocks the
    /// thread only if the namespace must be created.
    ///
    /// # Errors
    /// Those of [`Cache::namespace`].
    pub fn namespace(&self, name: &str) -> Result<Self> {
        Ok(self.cache.namespace(name)?.for_tasks())
    }

    /// The value of `key`, or `None` if it has none; see [`Cache::get`].
    ///
    /// # Errors
    /// Those of [`Cache::get`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.cache.engine().get_in_task(self.key(&key), true).await
    }

    /// The values of `keys`, in the order of `keys`; see [`Cache::get_many`].
    ///
    /// # Errors
    /// Those of [`Cache::get_many`].
    pub async fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        let keys: Vec<Key<'_>> = keys.iter().map(|key| self.key(key)).collect();
        self.cache.engine().get_many_in_task(&keys).await
    }

    /// The value of `key` without counting as a use; see [`Cache::peek`].
    ///
    /// # Errors
    /// Those of [`Cache::peek`].
    pub async fn peek(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.cache.engine().get_in_task(self.key(&key), false).await
    }

    /// Whether `key` has a value; see [`Cache::contains`].
    ///
    /// # Errors
    /// Those of [`Cache::contains`].
    pub async fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.peek(key).await?.is_some())
    }

    /// Sets the value of `key` and returns the version; see [`Cache::put`].
    ///
    /// # Errors
    /// Those of [`Cache::put`].
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Lsn> {
        let version = self.put_with(key, value, &PutOptions::new()).await?;
        Ok(version.unwrap_or(Lsn::ZERO))
    }

    /// Sets the value of `key` as `options` say and returns the version, or `None` if the condition
    /// did not hold; see [`Cache::put_with`].
    ///
    /// # Errors
    /// Those of [`Cache::put_with`].
    pub async fn put_with(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, options: &PutOptions) -> Result<Option<Lsn>> {
        self.cache.engine().put_in_task(self.key(&key), value.as_ref(), options).await
    }

    /// The value of `key`. On a miss, `load` makes the value, and it is stored; see
    /// [`Cache::get_or_fill`]. If the future that runs its `load` is dropped, one of the waiters
    /// runs its own. If it is kept and no longer polled, one of them does so after 5 s.
    ///
    /// A fill of the same key by its `load` is recognized if it happens while `load` is polled. If
    /// `load` waits for another task that fills the key, that task waits as any other caller, so
    /// for 5 s.
    ///
    /// # Errors
    /// Those of [`Cache::get_or_fill`].
    pub async fn get_or_fill<E>(
        &self,
        key: impl AsRef<[u8]>,
        options: &PutOptions,
        load: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<Bytes, FillError<E>> {
        self.cache.engine().get_or_fill_in_task(self.key(&key), options, load).await
    }

    /// Removes the value of `key` and returns the version; see [`Cache::delete`].
    ///
    /// # Errors
    /// Those of [`Cache::delete`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Lsn> {
        let version = self.delete_with(key, &DeleteOptions::new()).await?;
        Ok(version.unwrap_or(Lsn::ZERO))
    }

    /// Removes the value of `key` as `options` say and returns the version, or `None` if the
    /// condition did not hold; see [`Cache::delete_with`].
    ///
    /// # Errors
    /// Those of [`Cache::delete_with`].
    pub async fn delete_with(&self, key: impl AsRef<[u8]>, options: &DeleteOptions) -> Result<Option<Lsn>> {
        self.cache.engine().delete_in_task(self.key(&key), options).await
    }

    /// The bytes `range` of the value of `key`; see [`Cache::get_range`].
    ///
    /// # Errors
    /// Those of [`Cache::get_range`].
    pub async fn get_range(&self, key: impl AsRef<[u8]>, range: Range<usize>) -> Result<Option<Bytes>> {
        Ok(self.get(key).await?.map(|value| value.into_range(range)))
    }

    /// Sets the values of many keys and waits for their acknowledgement once at the end; see
    /// [`Cache::put_many`]. If the future is dropped, some of the first entries may be stored.
    ///
    /// # Errors
    /// Those of [`Cache::put_many`].
    pub async fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(&self, entries: &[(K, V)], options: &PutOptions) -> Result<Vec<Option<Lsn>>> {
        let entries: Vec<(Key<'_>, &[u8])> = entries.iter().map(|(key, value)| (self.key(key), value.as_ref())).collect();
        self.cache.engine().put_many_in_task(&entries, options).await
    }

    /// Sets or removes the expiry of the entry of `key`; see [`Cache::touch`].
    ///
    /// # Errors
    /// Those of [`Cache::touch`].
    pub async fn touch(&self, key: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<Option<Lsn>> {
        self.cache.engine().touch_in_task(self.key(&key), ttl).await
    }

    /// Drops every entry in the namespace of this handle; see [`Cache::clear`].
    ///
    /// # Errors
    /// Those of [`Cache::clear`].
    pub async fn clear(&self) -> Result<Lsn> {
        self.cache.engine().clear_in_task(&self.cache.space).await
    }

    /// Sets a resume token, acknowledged at `level`; see [`Cache::set_resume_token_with`].
    ///
    /// # Errors
    /// Those of [`Cache::set_resume_token_with`].
    pub async fn set_resume_token_with(&self, name: &str, value: impl AsRef<[u8]>, level: Ack) -> Result<Lsn> {
        self.cache.engine().set_resume_token_in_task(name, value.as_ref(), level).await
    }

    /// Makes every mutation that was acknowledged before the first poll as durable as `level`
    /// promises; see [`Cache::persist`].
    ///
    /// # Errors
    /// Those of [`Cache::persist`].
    pub async fn persist(&self, level: Ack) -> Result<()> {
        self.cache.engine().persist_in_task(level).await
    }
}
