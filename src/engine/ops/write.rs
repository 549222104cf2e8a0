//! Put, delete and touch: one step in the order of the key's mutations.
//!
//! A put is prepared without a lock. What may refuse it is looked at first: the state of the cache,
//! the lengths, and the condition. Then its value is compressed and the record is encoded. The
//! steps of [`Engine::attempt`] then follow under the stripe of the key:
//!
//! 1. The condition is checked. It is decided on a version that was read before, since that may
//!    take a device read. If the key changed since, the attempt is `Overtaken` and starts again.
//! 2. The record is appended to the segment ring and its frame to the WAL ring. Without room the
//!    attempt ends, and the mutation waits for the `room` event or fails, as its [`Wait`] says.
//! 3. The index names the new record, and the memory tier drops the previous version. Both happen
//!    under one shard lock of the tier, so a reader finds the old version or the new one.
//! 4. A running [`super::single_flight`] load of the key is marked as superseded.
//!
//! After the stripe is released, a mutation at [`Ack::Host`] waits for the sync that covers its
//! LSN. A mutation at a lower level returns at once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::options::{Condition, DeleteOptions, Hint, PutOptions, Wait};
use crate::clock::whole_ms;
use crate::compress;
use crate::config::{Ack, Compression, INLINE_LEN_MAX, KEY_LEN_MAX, WalValues};
use crate::engine::Engine;
use crate::engine::log::append::{Append, Appending, Placed};
use crate::engine::refused::Refused;
use crate::error::{Error, Result};
use crate::id::{Key, KeyHash, Lsn, NamespaceGeneration, Position};
use crate::io::ring::Ring;
use crate::segment::format::{self, Content, Draft};
use crate::segment::writer::record_len_max;
use crate::tier::item::{Item, ItemMeta};

/// Shortest value that is compressed, in bytes.
const COMPRESS_LEN_MIN: usize = 128;

/// A mutation. It is encoded once and attempted until there is room.
pub(in crate::engine) struct Request<'a> {
    pub(in crate::engine) key: Key<'a>,
    hash: KeyHash,
    draft: Draft<'a>,
    /// Value of a put, and store time in ms at which it expires. `None` for a delete.
    put: Option<(&'a [u8], Option<u64>)>,
    hint: Hint,
    pub(in crate::engine) ack: Ack,
    condition: Condition,
    wait: Wait,
}

impl Request<'_> {
    /// Whether the current version of the key must be read first.
    pub(in crate::engine) fn is_conditional(&self) -> bool {
        self.condition != Condition::Always
    }
}

/// The outcome of one attempt.
pub(in crate::engine) enum Tried {
    /// The mutation took effect and has this LSN.
    Done(Lsn),
    /// The condition does not hold, or the caller's check forbids the mutation.
    Unmet,
    /// There is no room for the record.
    NoRoom(NoRoom),
    /// The key changed after its version was read for the condition.
    Overtaken,
}

/// An attempt that found no room.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct NoRoom {
    pub(in crate::engine) cause: Refused,
    /// Count of the `room` event before the attempt.
    pub(in crate::engine) seen: u64,
}

/// The facts on which a condition is decided: position and version of the key's record.
pub(in crate::engine) struct Observed {
    pub(in crate::engine) at: Option<Position>,
    pub(in crate::engine) version: Option<Lsn>,
}

impl Engine {
    /// Sets the value of `key`. Returns its version, or `None` if the condition does not hold.
    pub(crate) fn put(&self, key: Key<'_>, value: &[u8], options: &PutOptions) -> Result<Option<Lsn>> {
        let placed = self.put_unsynced(key, value, options)?;
        placed.map(|lsn| self.wait_for(options.ack.unwrap_or(self.context.settings.ack), lsn).map(|()| lsn)).transpose()
    }

    /// Sets the value of `key`, as [`Engine::put`] does, but does not wait for a sync.
    fn put_unsynced(&self, key: Key<'_>, value: &[u8], options: &PutOptions) -> Result<Option<Lsn>> {
        self.put_if(key, value, options, None)
    }

    /// Sets the value of `key` if `allowed` returns true under the key's stripe lock. Does not wait
    /// for a sync.
    pub(in crate::engine) fn put_if(
        &self,
        key: Key<'_>,
        value: &[u8],
        options: &PutOptions,
        allowed: Option<&dyn Fn() -> bool>,
    ) -> Result<Option<Lsn>> {
        self.check_put(key, value)?;
        let observed = options.is_conditional().then(|| self.observed_version(key)).transpose()?;
        if is_unmet(options.condition, observed.as_ref(), allowed) {
            return Ok(None);
        }
        let compressed = self.compress(value)?;
        let request = self.put_request(key, value, compressed.as_deref(), options);
        self.carry_out(&request, observed, allowed)
    }

    /// Sets the values of many keys, in order, and waits for a sync once at the end. The entries
    /// before an error are stored.
    pub(crate) fn put_many(&self, entries: &[(Key<'_>, &[u8])], options: &PutOptions) -> Result<Vec<Option<Lsn>>> {
        let placed: Vec<Option<Lsn>> = entries.iter().map(|(key, value)| self.put_unsynced(*key, value, options)).collect::<Result<_>>()?;
        let last = placed.iter().flatten().max().copied().unwrap_or(Lsn::ZERO);
        self.wait_for(options.ack.unwrap_or(self.context.settings.ack), last)?;
        Ok(placed)
    }

    /// Removes the value of `key`, whether or not it has one. Returns the version of the removal,
    /// or `None` if the condition does not hold.
    pub(crate) fn delete(&self, key: Key<'_>, options: &DeleteOptions) -> Result<Option<Lsn>> {
        let request = self.delete_request(key, options)?;
        let placed = self.carry_out(&request, None, None)?;
        placed.map(|lsn| self.wait_for(request.ack, lsn).map(|()| lsn)).transpose()
    }

    /// Gives the entry of `key` a new expiry, or none, by appending the record again. Returns the
    /// new version, or `None` without an entry.
    pub(crate) fn touch(&self, key: Key<'_>, ttl: Option<Duration>) -> Result<Option<Lsn>> {
        self.health.check_writable()?;
        while let Some(value) = self.get(key, false)? {
            if let Some(touched) = self.put(key, &value, &PutOptions::touch(&value, ttl))? {
                return Ok(Some(touched));
            }
        }
        Ok(None)
    }

    /// Checks what refuses a put whatever its condition: the state of the cache, and the lengths.
    ///
    /// # Errors
    /// [`Error::Failed`], [`Error::Closed`], [`Error::EmptyKey`], [`Error::KeyTooLarge`],
    /// [`Error::ValueTooLarge`].
    pub(in crate::engine) fn check_put(&self, key: Key<'_>, value: &[u8]) -> Result<()> {
        self.health.check_mutable()?;
        check_key(key)?;
        let max = record_len_max(self.context.settings.segment_size).min(Ring::append_max(self.context.settings.segment_ring) as usize);
        let overhead = format::record_len_max(key.bytes.len(), 0) + 16;
        if overhead > max {
            return Err(Error::KeyTooLarge { len: key.bytes.len(), max: max - (overhead - key.bytes.len()) });
        }
        if value.len() + overhead > max {
            return Err(Error::ValueTooLarge { len: value.len(), max: max - overhead });
        }
        Ok(())
    }

    /// Prepares a put that [`Engine::check_put`] allows. `compressed` is the value in compressed
    /// form, if it is stored like that.
    pub(in crate::engine) fn put_request<'a>(
        &self,
        key: Key<'a>,
        value: &'a [u8],
        compressed: Option<&'a [u8]>,
        options: &PutOptions,
    ) -> Request<'a> {
        let hash = self.context.hash(key);
        self.index.prefetch(hash);
        let expires_ms = options.ttl.map(|ttl| self.context.time.now_ms().saturating_add(whole_ms(ttl)));
        let content = compressed.map_or(Content::Plain(value), |bytes| Content::Zstd(bytes, value.len()));
        Request {
            key,
            hash,
            draft: Draft::put(key, content, expires_ms),
            put: Some((value, expires_ms)),
            hint: options.hint,
            ack: options.ack.unwrap_or(self.context.settings.ack),
            condition: options.condition,
            wait: options.wait.unwrap_or(Wait::Forever),
        }
    }

    /// Prepares a delete.
    ///
    /// # Errors
    /// [`Error::EmptyKey`], [`Error::KeyTooLarge`].
    pub(in crate::engine) fn delete_request<'a>(&self, key: Key<'a>, options: &DeleteOptions) -> Result<Request<'a>> {
        check_key(key)?;
        self.health.check_writable()?;
        let (hash, ack) = (self.context.hash(key), options.ack.unwrap_or(self.context.settings.ack));
        let draft = Draft::tombstone(hash);
        Ok(Request {
            key,
            hash,
            draft,
            put: None,
            hint: Hint::Auto,
            ack,
            condition: options.condition,
            wait: options.wait.unwrap_or(Wait::Forever),
        })
    }

    /// Attempts a mutation until it takes effect, its condition does not hold, or its deadline has
    /// passed. `None` if its condition does not hold. Does not wait for a sync.
    ///
    /// `observed` is the version that was read for the condition, if it was read already.
    fn carry_out(&self, request: &Request<'_>, mut observed: Option<Observed>, allowed: Option<&dyn Fn() -> bool>) -> Result<Option<Lsn>> {
        let deadline = self.deadline(request);
        let mut place = self.events.room.place();
        loop {
            if request.is_conditional() && observed.is_none() {
                observed = Some(self.observed_version(request.key)?);
            }
            match self.attempt(request, observed.as_ref(), allowed)? {
                Tried::Done(lsn) => return Ok(Some(lsn)),
                Tried::Unmet => return Ok(None),
                Tried::Overtaken => observed = None,
                Tried::NoRoom(NoRoom { cause, seen }) => {
                    let left = self.time_to_wait(request, deadline, cause)?;
                    self.wait_for_room(&mut place, cause, seen, left);
                    // The entry may have expired during the wait.
                    observed = None;
                }
            }
        }
    }

    /// The monotonic time at which a mutation stops waiting for room. `None` without a limit.
    pub(in crate::engine) fn deadline(&self, request: &Request<'_>) -> Option<Duration> {
        match request.wait {
            Wait::UpTo(time) => self.context.time.monotonic().checked_add(time),
            Wait::Forever | Wait::No => None,
        }
    }

    /// How long a mutation may still wait for room. `None` without a limit. Counts the wait or the
    /// refusal.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] if it must not wait, [`Error::TimedOut`] if its deadline has passed,
    /// [`Error::DiskFull`] and [`Error::NoDescriptors`] if no room can be made.
    pub(in crate::engine) fn time_to_wait(
        &self,
        request: &Request<'_>,
        deadline: Option<Duration>,
        cause: Refused,
    ) -> Result<Option<Duration>> {
        self.health.disk_room().check()?;
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

    /// The position of the record that the index names for `key`.
    pub(in crate::engine) fn position_of(&self, key: Key<'_>) -> Option<Position> {
        self.index.get(self.context.hash(key)).and_then(|entry| self.position(&entry))
    }

    /// Reads the version of `key`, with the position of its record, for a condition.
    fn observed_version(&self, key: Key<'_>) -> Result<Observed> {
        loop {
            let at = self.position_of(key);
            let version = self.version(key)?;
            // The read may have been overtaken, or have removed an expired or damaged entry.
            if self.position_of(key) == at {
                return Ok(Observed { at, version });
            }
        }
    }

    /// Appends the record of a mutation and makes the index name it, under the stripe of the key.
    /// Waits for no event and does no I/O.
    ///
    /// `observed` is needed for a conditional mutation. `allowed` is the caller's own check under
    /// the stripe.
    pub(in crate::engine) fn attempt(
        &self,
        request: &Request<'_>,
        observed: Option<&Observed>,
        allowed: Option<&dyn Fn() -> bool>,
    ) -> Result<Tried> {
        // Before the check: a close that begins after it signals the event again, so that a
        // mutation that is refused for it does not wait for ever.
        let seen = self.events.room.count();
        self.health.check_mutable()?;
        let (hash, tombstone) = (request.hash, request.put.is_none());
        let inline = request.draft.len() <= INLINE_LEN_MAX
            && match self.context.settings.wal_values {
                WalValues::Never => false,
                WalValues::Host => request.ack == Ack::Host,
                WalValues::Always => true,
            };
        self.index.prefetch_slots(hash);
        let _in_order = self.log.stripe(hash);
        if allowed.is_some_and(|allowed| !allowed()) {
            return Ok(Tried::Unmet);
        }
        let current = self.index.get(hash);
        if let Some(observed) = observed {
            if current.as_ref().and_then(|entry| self.position(entry)) != observed.at {
                return Ok(Tried::Overtaken);
            }
            // The memory tier may hold a version whose index entry is gone. It has no position, so
            // the versions are compared.
            if current.is_none() && self.reads.memory().peek(hash, request.key).map(|item| item.lsn()) != observed.version {
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
            Err(Refused::Closing) => {
                self.health.check_mutable()?;
                return Err(Error::Closed);
            }
            Err(cause) => return Ok(Tried::NoRoom(NoRoom { cause, seen })),
        };
        self.update_index(request, &placed);
        // After the index names the record: a flight that is not seen here starts later, and its
        // leader finds the record in the index.
        self.fills.supersede(hash);
        let counter = if tombstone { &self.counters.deletes } else { &self.counters.puts };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(Tried::Done(placed.lsn))
    }

    /// Makes the index name the new record and the memory tier drop the previous version, under one
    /// shard lock of the tier. The new value enters the tier as the hint says.
    fn update_index(&self, request: &Request<'_>, placed: &Placed) {
        let Request { key, hash, put, hint, .. } = request;
        let enters_tier = match hint {
            Hint::Auto => self.reads.memory().holds(*hash),
            Hint::Memory => true,
            Hint::Flash => false,
        };
        let successor = put.filter(|_| enters_tier).map(|(value, expires_ms)| {
            let meta = ItemMeta { hash: *hash, namespace: key.namespace, lsn: placed.lsn, expires_ms };
            Item::copied(meta, key.bytes, value, self.reads.values())
        });
        self.reads.memory().supersede(*hash, successor, || match put {
            Some(_) => self.index.insert(*hash, &placed.entry),
            None => self.index.remove(*hash),
        });
    }

    /// Compresses a value. `None` if the settings do not ask for it, or if it saves no bytes.
    pub(in crate::engine) fn compress(&self, value: &[u8]) -> Result<Option<Vec<u8>>> {
        let Compression::Zstd(level) = self.context.settings.compression else { return Ok(None) };
        if value.len() < COMPRESS_LEN_MIN {
            return Ok(None);
        }
        self.counters.compressions.fetch_add(1, Ordering::Relaxed);
        let compressed = compress::compress(value, level).map_err(Error::io("compress a value for", &self.context.dir))?;
        Ok((compressed.len() < value.len()).then_some(compressed))
    }
}

/// Whether a put would change nothing, as far as that is known before its attempt. The attempt
/// decides again under the stripe of the key.
pub(in crate::engine) fn is_unmet(condition: Condition, observed: Option<&Observed>, allowed: Option<&dyn Fn() -> bool>) -> bool {
    observed.is_some_and(|observed| !condition.holds(observed.version)) || allowed.is_some_and(|allowed| !allowed())
}

/// Checks that a key has 1 to [`KEY_LEN_MAX`] bytes, in a namespace that its handle still has.
fn check_key(key: Key<'_>) -> Result<()> {
    match key.bytes.len() {
        _ if key.namespace == NamespaceGeneration::REMOVED => Err(Error::NamespaceRemoved),
        0 => Err(Error::EmptyKey),
        len if len > KEY_LEN_MAX => Err(Error::KeyTooLarge { len, max: KEY_LEN_MAX }),
        _ => Ok(()),
    }
}
