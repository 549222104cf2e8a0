//! Put and delete.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::append::{Append, Placed};
use super::{Engine, Value};
use crate::config::{Ack, Compression, INLINE_LEN_MAX, KEY_LEN_MAX, WalValues};
use crate::error::{Error, Result};
use crate::id::{KeyHash, Lsn};
use crate::segment::format::{self, Content, Draft};
use crate::segment::writer::record_len_max;
use crate::sync::lock;
use crate::tier::memory::Item;

/// Shortest value that is worth compressing.
const COMPRESS_LEN_MIN: usize = 128;

/// When a put takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    #[default]
    Always,
    /// If the key has no value.
    IfAbsent,
    /// If the key has a value.
    IfPresent,
    /// If the key has the value of this version.
    IfVersion(Lsn),
}

/// What a mutation does when the write buffer is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Waits until there is room.
    #[default]
    Forever,
    /// Returns [`Error::WouldBlock`].
    No,
    /// Waits this long, then returns [`Error::TimedOut`].
    UpTo(Duration),
}

/// How one put differs from the defaults.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    ttl: Option<Duration>,
    ack: Option<Ack>,
    condition: Condition,
    wait: Wait,
}

impl PutOptions {
    /// No expiry, the cache's acknowledgement level, unconditional, waiting for room.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entry expires after this time. Millisecond steps.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The level at which this put is acknowledged.
    #[must_use]
    pub fn ack(mut self, level: Ack) -> Self {
        self.ack = Some(level);
        self
    }

    /// When the put takes effect.
    #[must_use]
    pub fn condition(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// What happens when the write buffer is full.
    #[must_use]
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }
}

/// One mutation on its way.
struct Request<'a> {
    hash: KeyHash,
    draft: &'a Draft<'a>,
    /// Key, value and expiry of a put. None for a delete.
    put: Option<(&'a [u8], &'a [u8], Option<u64>)>,
    ack: Ack,
    wait: Wait,
}

impl Engine {
    /// Sets the value of `key`. Its version, or `None` if the condition did not hold.
    pub(crate) fn put(&self, key: &[u8], value: &[u8], options: &PutOptions) -> Result<Option<Lsn>> {
        self.put_if(key, value, options, || self.holds(key, options.condition))
    }

    /// Sets the value of `key` if `holds` says so under the key's stripe.
    pub(super) fn put_if(&self, key: &[u8], value: &[u8], options: &PutOptions, holds: impl Fn() -> Result<bool>) -> Result<Option<Lsn>> {
        self.check_key(key)?;
        let max = record_len_max(self.settings.segment_size).min(self.settings.segment_ring as usize / 2);
        let overhead = format::record_len_max(key.len(), 0) + 16;
        if value.len() + overhead > max {
            return Err(Error::ValueTooLarge { len: value.len(), max: max.saturating_sub(overhead) });
        }
        let expires_ms = options.ttl.map(|ttl| self.time.now_ms().saturating_add(ttl.as_millis() as u64));
        let compressed = self.compress(value)?;
        let content = compressed.as_deref().map_or(Content::Plain(value), |bytes| Content::Zstd(bytes, value.len()));
        let hash = self.hash(key);
        let draft = Draft::put(key, content, expires_ms);
        let ack = options.ack.unwrap_or(self.settings.ack);
        let request = Request { hash, draft: &draft, put: Some((key, value, expires_ms)), ack, wait: options.wait };
        let placed = self.mutate(&request, holds)?;
        self.counters.puts.fetch_add(1, Ordering::Relaxed);
        placed.map(|p| self.wait_for(ack, p.lsn).map(|()| p.lsn)).transpose()
    }

    /// Removes the value of `key`, if it has one. The version of the removal.
    pub(crate) fn delete(&self, key: &[u8], ack: Option<Ack>) -> Result<Lsn> {
        self.check_key(key)?;
        let ack = ack.unwrap_or(self.settings.ack);
        let hash = self.hash(key);
        let draft = Draft::tombstone(hash);
        let request = Request { hash, draft: &draft, put: None, ack, wait: Wait::Forever };
        let placed = self.mutate(&request, || Ok(true))?;
        self.counters.deletes.fetch_add(1, Ordering::Relaxed);
        let lsn = placed.map_or(Lsn::ZERO, |p| p.lsn);
        self.wait_for(ack, lsn)?;
        Ok(lsn)
    }

    /// Gives the entry of `key` another expiry, or none. Its new version, or `None` if there is no entry. Writes the record again.
    pub(crate) fn touch(&self, key: &[u8], ttl: Option<Duration>) -> Result<Option<Lsn>> {
        while let Some(value) = self.get(key, false)? {
            let version = value.version();
            let options = PutOptions { ttl, condition: Condition::IfVersion(version), ..PutOptions::default() };
            if let Some(touched) = self.put(key, &value, &options)? {
                return Ok(Some(touched));
            }
        }
        Ok(None)
    }

    fn check_key(&self, key: &[u8]) -> Result<()> {
        match key.len() {
            0 => Err(Error::EmptyKey),
            len if len > KEY_LEN_MAX => Err(Error::KeyTooLarge { len, max: KEY_LEN_MAX }),
            _ => Ok(()),
        }
    }

    /// Appends a record and points the index at it, as one step in the order of the key's mutations. `None` if `holds` says no.
    fn mutate(&self, request: &Request<'_>, holds: impl Fn() -> Result<bool>) -> Result<Option<Placed>> {
        let (hash, draft, tombstone) = (request.hash, request.draft, request.put.is_none());
        let inline = draft.len() <= INLINE_LEN_MAX
            && match self.settings.wal_values {
                WalValues::Never => false,
                WalValues::Host => request.ack == Ack::Host,
                WalValues::Always => true,
            };
        let deadline = match request.wait {
            Wait::UpTo(time) => Some(self.time.monotonic() + time),
            Wait::Forever | Wait::No => None,
        };
        loop {
            self.check_open()?;
            let seen = self.events.room.count();
            {
                let _in_order = lock(self.stripe(hash));
                if !holds()? {
                    return Ok(None);
                }
                let supersedes = tombstone || self.index.get(hash).is_some();
                let what = Append { hash, draft, tombstone, supersedes, inline, version: None };
                if let Ok(placed) = self.append(&what) {
                    self.fills.supersede(hash);
                    self.point_at(request, &placed);
                    return Ok(Some(placed));
                }
            }
            // Refused for want of room, or because the cache has closed: the next look tells.
            let left = deadline.map(|at| at.saturating_sub(self.time.monotonic()));
            match (request.wait, left) {
                (Wait::No, _) => return Err(Error::WouldBlock),
                (_, Some(Duration::ZERO)) => return Err(Error::TimedOut),
                _ => self.wait(&self.events.room, seen, left),
            }
        }
    }

    /// Makes the index name the new record, and the memory tier forget the one before: if it was there, its successor takes its place.
    fn point_at(&self, request: &Request<'_>, placed: &Placed) {
        let hash = request.hash;
        let old = match request.put {
            Some(_) => self.index.insert(hash, &placed.entry),
            None => self.index.remove(hash),
        };
        let was_in_memory = old.and_then(|old| self.position(&old)).is_some_and(|at| self.memory.remove(at));
        if let (true, Some((key, value, expires_ms)), Some(at)) = (was_in_memory, request.put, self.position(&placed.entry)) {
            let bytes: Bytes = [key, value].concat().into();
            let held = bytes.len();
            self.memory.insert(at, Item { hash, lsn: placed.lsn, expires_ms, key_len: key.len(), bytes, held });
        }
    }

    /// Whether the condition holds. The caller has the key's stripe.
    fn holds(&self, key: &[u8], condition: Condition) -> Result<bool> {
        if condition == Condition::Always {
            return Ok(true);
        }
        let version = self.get(key, false)?.map(|value: Value| value.version());
        Ok(match condition {
            Condition::Always => true,
            Condition::IfAbsent => version.is_none(),
            Condition::IfPresent => version.is_some(),
            Condition::IfVersion(wanted) => version == Some(wanted),
        })
    }

    /// The value compressed, if that is asked for and makes it smaller.
    fn compress(&self, value: &[u8]) -> Result<Option<Vec<u8>>> {
        let Compression::Zstd(level) = self.settings.compression else { return Ok(None) };
        if value.len() < COMPRESS_LEN_MIN {
            return Ok(None);
        }
        let packed = zstd::bulk::compress(value, level).map_err(Error::io("compress a value for", &self.dir))?;
        Ok((packed.len() < value.len()).then_some(packed))
    }
}
