//! Put and delete.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::options::{Condition, DeleteOptions, Hint, PutOptions, Wait};
use crate::config::{Ack, Compression, INLINE_LEN_MAX, KEY_LEN_MAX, WalValues};
use crate::engine::Engine;
use crate::engine::log::append::{Append, Appending, Placed};
use crate::engine::refused::Refused;
use crate::error::{Error, Result};
use crate::id::{Key, KeyHash, Lsn, Position};
use crate::io::ring::Ring;
use crate::segment::format::{self, Content, Draft};
use crate::segment::writer::record_len_max;
use crate::tier::item::{Item, ItemMeta};

/// Shortest value that is worth compressing.
const COMPRESS_LEN_MIN: usize = 128;

/// One mutation, encoded once and attempted until there is room.
pub(in crate::engine) struct Request<'a> {
    pub(in crate::engine) key: Key<'a>,
    hash: KeyHash,
    draft: Draft<'a>,
    /// Value and expiry of a put. None for a delete.
    put: Option<(&'a [u8], Option<u64>)>,
    hint: Hint,
    pub(in crate::engine) ack: Ack,
    condition: Condition,
    wait: Wait,
}

impl Request<'_> {
    pub(in crate::engine) fn is_conditional(&self) -> bool {
        self.condition != Condition::Always
    }
}

/// The outcome of one attempt.
pub(in crate::engine) enum Tried {
    Done(Lsn),
    /// The condition does not hold.
    Unmet,
    /// There is no room.
    NoRoom(NoRoom),
    /// The key changed after its condition was decided.
    Overtaken,
}

/// An attempt that found no room.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct NoRoom {
    pub(in crate::engine) cause: Refused,
    /// Count of the room event before the attempt.
    pub(in crate::engine) seen: u64,
}

/// The facts on which a condition is decided: where the key's record was, and its version.
pub(in crate::engine) struct Observed {
    pub(in crate::engine) at: Option<Position>,
    pub(in crate::engine) version: Option<Lsn>,
}

impl Engine {
    /// Sets the value of `key`. Its version, or `None` if the condition did not hold.
    pub(crate) fn put(&self, key: Key<'_>, value: &[u8], options: &PutOptions) -> Result<Option<Lsn>> {
        let placed = self.put_unsynced(key, value, options)?;
        placed.map(|lsn| self.wait_for(options.ack.unwrap_or(self.context.settings.ack), lsn).map(|()| lsn)).transpose()
    }

    /// As [`Engine::put`], without waiting for a sync.
    fn put_unsynced(&self, key: Key<'_>, value: &[u8], options: &PutOptions) -> Result<Option<Lsn>> {
        let compressed = self.compress(value)?;
        let request = self.put_request(key, value, compressed.as_deref(), options)?;
        self.carry_out(&request, None)
    }

    /// Sets the value of `key` if `allowed` returns true under the key's stripe lock.
    pub(in crate::engine) fn put_if(
        &self,
        key: Key<'_>,
        value: &[u8],
        options: &PutOptions,
        allowed: &dyn Fn() -> bool,
    ) -> Result<Option<Lsn>> {
        let compressed = self.compress(value)?;
        let request = self.put_request(key, value, compressed.as_deref(), options)?;
        let placed = self.carry_out(&request, Some(allowed))?;
        placed.map(|lsn| self.wait_for(request.ack, lsn).map(|()| lsn)).transpose()
    }

    /// Sets the values of many keys, in order, with one wait at the end. What came before an error is stored.
    pub(crate) fn put_many(&self, entries: &[(Key<'_>, &[u8])], options: &PutOptions) -> Result<Vec<Option<Lsn>>> {
        let placed: Vec<Option<Lsn>> = entries.iter().map(|(key, value)| self.put_unsynced(*key, value, options)).collect::<Result<_>>()?;
        let last = placed.iter().flatten().max().copied().unwrap_or(Lsn::ZERO);
        self.wait_for(options.ack.unwrap_or(self.context.settings.ack), last)?;
        Ok(placed)
    }

    /// Removes the value of `key`, whether or not it has one. The version of the removal, or `None` if the condition did not hold.
    pub(crate) fn delete(&self, key: Key<'_>, options: &DeleteOptions) -> Result<Option<Lsn>> {
        let request = self.delete_request(key, options)?;
        let placed = self.carry_out(&request, None)?;
        placed.map(|lsn| self.wait_for(request.ack, lsn).map(|()| lsn)).transpose()
    }

    /// Gives the entry of `key` another expiry, or none. Its new version, or `None` if there is no entry. Writes the record again.
    pub(crate) fn touch(&self, key: Key<'_>, ttl: Option<Duration>) -> Result<Option<Lsn>> {
        while let Some(value) = self.get(key, false)? {
            if let Some(touched) = self.put(key, &value, &PutOptions::touch(&value, ttl))? {
                return Ok(Some(touched));
            }
        }
        Ok(None)
    }

    pub(in crate::engine) fn put_request<'a>(
        &self,
        key: Key<'a>,
        value: &'a [u8],
        compressed: Option<&'a [u8]>,
        options: &PutOptions,
    ) -> Result<Request<'a>> {
        check_key(key)?;
        let max = record_len_max(self.context.settings.segment_size).min(Ring::append_max(self.context.settings.segment_ring) as usize);
        let overhead = format::record_len_max(key.bytes.len(), 0) + 16;
        if overhead > max {
            return Err(Error::KeyTooLarge { len: key.bytes.len(), max: max - (overhead - key.bytes.len()) });
        }
        if value.len() + overhead > max {
            return Err(Error::ValueTooLarge { len: value.len(), max: max - overhead });
        }
        let hash = self.context.hash(key);
        self.index.prefetch(hash);
        let expires_ms = options.ttl.map(|ttl| self.context.time.now_ms().saturating_add(ttl.as_millis() as u64));
        let content = compressed.map_or(Content::Plain(value), |bytes| Content::Zstd(bytes, value.len()));
        Ok(Request {
            key,
            hash,
            draft: Draft::put(key, content, expires_ms),
            put: Some((value, expires_ms)),
            hint: options.hint,
            ack: options.ack.unwrap_or(self.context.settings.ack),
            condition: options.condition,
            wait: options.wait,
        })
    }

    pub(in crate::engine) fn delete_request<'a>(&self, key: Key<'a>, options: &DeleteOptions) -> Result<Request<'a>> {
        check_key(key)?;
        let (hash, ack) = (self.context.hash(key), options.ack.unwrap_or(self.context.settings.ack));
        let draft = Draft::tombstone(hash);
        Ok(Request { key, hash, draft, put: None, hint: Hint::Auto, ack, condition: options.condition, wait: options.wait })
    }

    /// Attempts the mutation until it is done, its condition does not hold, or its time is over.
    fn carry_out(&self, request: &Request<'_>, allowed: Option<&dyn Fn() -> bool>) -> Result<Option<Lsn>> {
        let deadline = self.deadline(request);
        loop {
            let observed = if request.is_conditional() { Some(self.observed_version(request.key)?) } else { None };
            match self.attempt(request, observed.as_ref(), allowed)? {
                Tried::Done(lsn) => return Ok(Some(lsn)),
                Tried::Unmet => return Ok(None),
                Tried::Overtaken => {}
                Tried::NoRoom(NoRoom { cause, seen }) => {
                    let left = self.time_to_wait(request, deadline, cause)?;
                    self.wait(&self.events.room, seen, left);
                }
            }
        }
    }

    pub(in crate::engine) fn deadline(&self, request: &Request<'_>) -> Option<Duration> {
        match request.wait {
            Wait::UpTo(time) => self.context.time.monotonic().checked_add(time),
            Wait::Forever | Wait::No => None,
        }
    }

    /// How long a mutation may wait for room, if there is a limit. Counts the wait or the refusal.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] if it must not wait, [`Error::TimedOut`] if its time is over.
    pub(in crate::engine) fn time_to_wait(
        &self,
        request: &Request<'_>,
        deadline: Option<Duration>,
        cause: Refused,
    ) -> Result<Option<Duration>> {
        let left = deadline.map(|at| at.saturating_sub(self.context.time.monotonic()));
        let error = match (request.wait, left) {
            (Wait::No, _) => Error::WouldBlock,
            (_, Some(Duration::ZERO)) => Error::TimedOut,
            _ => {
                self.counters.waits.add(cause);
                return Ok(left);
            }
        };
        self.counters.refusals.add(cause);
        Err(error)
    }

    /// Where the record is that the index names for `key`.
    pub(in crate::engine) fn place_of(&self, key: Key<'_>) -> Option<Position> {
        self.index.get(self.context.hash(key)).and_then(|entry| self.position(&entry))
    }

    /// What a condition is decided on.
    fn observed_version(&self, key: Key<'_>) -> Result<Observed> {
        loop {
            let at = self.place_of(key);
            let version = self.version(key)?;
            // A read removes what it finds expired or damaged, and may be overtaken.
            if self.place_of(key) == at {
                return Ok(Observed { at, version });
            }
        }
    }

    /// Appends a record and points the index at it, as one step in the order of the key's mutations. Waits for nothing, and does no I/O.
    pub(in crate::engine) fn attempt(
        &self,
        request: &Request<'_>,
        observed: Option<&Observed>,
        allowed: Option<&dyn Fn() -> bool>,
    ) -> Result<Tried> {
        self.health.check_mutable()?;
        let (hash, tombstone) = (request.hash, request.put.is_none());
        let inline = request.draft.len() <= INLINE_LEN_MAX
            && match self.context.settings.wal_values {
                WalValues::Never => false,
                WalValues::Host => request.ack == Ack::Host,
                WalValues::Always => true,
            };
        self.index.prefetch_slots(hash);
        let seen = self.events.room.count();
        let _in_order = self.log.stripe(hash);
        if allowed.is_some_and(|allowed| !allowed()) {
            return Ok(Tried::Unmet);
        }
        let current = self.index.get(hash);
        if let Some(observed) = observed {
            if current.as_ref().and_then(|entry| self.position(entry)) != observed.at {
                return Ok(Tried::Overtaken);
            }
            // What the index has forgotten may be in the memory tier, where no position tells versions apart.
            if current.is_none() && self.reads.memory().get(hash, request.key).map(|item| item.lsn()) != observed.version {
                return Ok(Tried::Overtaken);
            }
            if !request.condition.holds(observed.version) {
                return Ok(Tried::Unmet);
            }
        }
        let supersedes = tombstone || current.is_some();
        let kind = Appending::Mutation { tombstone, supersedes, inline };
        let placed = match self.append(&Append { hash, draft: &request.draft, kind }) {
            Ok(placed) => placed,
            // A closed cache is refused by the check at the top of the next attempt.
            Err(cause) => return Ok(Tried::NoRoom(NoRoom { cause, seen })),
        };
        self.point_at(request, &placed);
        // After the index names it: a fill that boards later finds it there.
        self.fills.supersede(hash);
        let counter = if tombstone { &self.counters.deletes } else { &self.counters.puts };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(Tried::Done(placed.lsn))
    }

    /// Makes the index name the new record, and the memory tier forget the one before: if it was there, its successor takes its place.
    fn point_at(&self, request: &Request<'_>, placed: &Placed) {
        let Request { key, hash, put, hint, .. } = request;
        let belongs_there = match hint {
            Hint::Auto => self.reads.memory().holds(*hash),
            Hint::Memory => true,
            Hint::Flash => false,
        };
        let successor = put.filter(|_| belongs_there).map(|(value, expires_ms)| {
            let meta = ItemMeta { hash: *hash, namespace: key.namespace, lsn: placed.lsn, expires_ms };
            Item::copied(meta, key.bytes, value, self.reads.values())
        });
        self.reads.memory().supersede(*hash, successor, || match put {
            Some(_) => self.index.insert(*hash, &placed.entry),
            None => self.index.remove(*hash),
        });
    }

    /// The value compressed, if that is asked for and makes it smaller.
    pub(in crate::engine) fn compress(&self, value: &[u8]) -> Result<Option<Vec<u8>>> {
        let Compression::Zstd(level) = self.context.settings.compression else { return Ok(None) };
        if value.len() < COMPRESS_LEN_MIN {
            return Ok(None);
        }
        let packed = zstd::bulk::compress(value, level).map_err(Error::io("compress a value for", &self.context.dir))?;
        Ok((packed.len() < value.len()).then_some(packed))
    }
}

fn check_key(key: Key<'_>) -> Result<()> {
    match key.bytes.len() {
        0 => Err(Error::EmptyKey),
        len if len > KEY_LEN_MAX => Err(Error::KeyTooLarge { len, max: KEY_LEN_MAX }),
        _ => Ok(()),
    }
}
