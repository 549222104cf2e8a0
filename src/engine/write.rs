//! Put and delete.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Engine;
use super::append::{Append, Placed};
use super::read::Value;
use crate::concurrent::lock;
use crate::config::{Ack, Compression, INLINE_LEN_MAX, KEY_LEN_MAX, WalValues};
use crate::error::{Error, Result};
use crate::id::{Key, KeyHash, Lsn, Position};
use crate::io::ring::Ring;
use crate::segment::format::{self, Content, Draft};
use crate::segment::writer::record_len_max;
use crate::tier::item::{Item, ItemMeta};

/// Shortest value that is worth compressing.
const COMPRESS_LEN_MIN: usize = 128;

/// When a mutation takes effect.
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
    /// Waits this long for room, then returns [`Error::TimedOut`]. A put that has found room at [`Ack::Host`] then waits for its sync.
    UpTo(Duration),
}

/// Where a value should be at first. Where it goes later depends on its use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hint {
    /// In the memory tier if the version before was there.
    #[default]
    Auto,
    /// In the memory tier.
    Memory,
    /// Not in the memory tier: it will not be read soon.
    Flash,
}

/// How one put differs from the defaults.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    ttl: Option<Duration>,
    pub(super) ack: Option<Ack>,
    condition: Condition,
    wait: Wait,
    hint: Hint,
}

impl PutOptions {
    /// Those of a put that gives what is there another expiry.
    pub(super) fn touch(value: &Value, ttl: Option<Duration>) -> Self {
        Self { ttl, condition: Condition::IfVersion(value.version()), ..Self::default() }
    }

    /// No expiry, the cache's acknowledgement level, unconditional, waiting for room, no hint.
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

    /// Where the value should be at first.
    #[must_use]
    pub fn hint(mut self, hint: Hint) -> Self {
        self.hint = hint;
        self
    }
}

/// How one delete differs from the defaults.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    ack: Option<Ack>,
    condition: Condition,
    wait: Wait,
}

impl DeleteOptions {
    /// The cache's acknowledgement level, unconditional, waiting for room.
    pub fn new() -> Self {
        Self::default()
    }

    /// The level at which this delete is acknowledged.
    #[must_use]
    pub fn ack(mut self, level: Ack) -> Self {
        self.ack = Some(level);
        self
    }

    /// When the delete takes effect.
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

/// One mutation on its way. Made once; tried until there is room.
pub(super) struct Request<'a> {
    pub(super) key: Key<'a>,
    hash: KeyHash,
    draft: Draft<'a>,
    /// Value and expiry of a put. None for a delete.
    put: Option<(&'a [u8], Option<u64>)>,
    hint: Hint,
    pub(super) ack: Ack,
    condition: Condition,
    wait: Wait,
}

impl Request<'_> {
    pub(super) fn is_conditional(&self) -> bool {
        self.condition != Condition::Always
    }
}

/// What came of one try.
pub(super) enum Tried {
    Done(Lsn),
    /// The condition does not hold.
    Refused,
    /// There is no room; the count of the room event before the try.
    NoRoom(u64),
    /// The key changed since the condition was looked at.
    Overtaken,
}

/// What a condition is decided on: where the key's record was, and its version.
pub(super) struct Observed {
    pub(super) at: Option<Position>,
    pub(super) version: Option<Lsn>,
}

impl Engine {
    /// Sets the value of `key`. Its version, or `None` if the condition did not hold.
    pub(crate) fn put(&self, key: Key<'_>, value: &[u8], options: &PutOptions) -> Result<Option<Lsn>> {
        let placed = self.put_unsynced(key, value, options)?;
        placed.map(|lsn| self.wait_for(options.ack.unwrap_or(self.settings.ack), lsn).map(|()| lsn)).transpose()
    }

    /// As [`Engine::put`], without waiting for a sync.
    fn put_unsynced(&self, key: Key<'_>, value: &[u8], options: &PutOptions) -> Result<Option<Lsn>> {
        let compressed = self.compress(value)?;
        let request = self.put_request(key, value, compressed.as_deref(), options)?;
        self.carry_out(&request, None)
    }

    /// Sets the value of `key` if `may` says so under the key's stripe, given what the index has.
    pub(super) fn put_if(&self, key: Key<'_>, value: &[u8], options: &PutOptions, may: &dyn Fn() -> bool) -> Result<Option<Lsn>> {
        let compressed = self.compress(value)?;
        let request = self.put_request(key, value, compressed.as_deref(), options)?;
        let placed = self.carry_out(&request, Some(may))?;
        placed.map(|lsn| self.wait_for(request.ack, lsn).map(|()| lsn)).transpose()
    }

    /// Sets the values of many keys, in order, with one wait at the end. What came before an error is stored.
    pub(crate) fn put_many(&self, entries: &[(Key<'_>, &[u8])], options: &PutOptions) -> Result<Vec<Option<Lsn>>> {
        let placed: Vec<Option<Lsn>> = entries.iter().map(|(key, value)| self.put_unsynced(*key, value, options)).collect::<Result<_>>()?;
        let last = placed.iter().flatten().max().copied().unwrap_or(Lsn::ZERO);
        self.wait_for(options.ack.unwrap_or(self.settings.ack), last)?;
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

    pub(super) fn put_request<'a>(
        &self,
        key: Key<'a>,
        value: &'a [u8],
        compressed: Option<&'a [u8]>,
        options: &PutOptions,
    ) -> Result<Request<'a>> {
        check_key(key)?;
        let max = record_len_max(self.settings.segment_size).min(Ring::append_max(self.settings.segment_ring) as usize);
        let overhead = format::record_len_max(key.bytes.len(), 0) + 16;
        if overhead > max {
            return Err(Error::KeyTooLarge { len: key.bytes.len(), max: max - (overhead - key.bytes.len()) });
        }
        if value.len() + overhead > max {
            return Err(Error::ValueTooLarge { len: value.len(), max: max - overhead });
        }
        let hash = self.hash(key);
        self.index.prefetch(hash);
        let expires_ms = options.ttl.map(|ttl| self.time.now_ms().saturating_add(ttl.as_millis() as u64));
        let content = compressed.map_or(Content::Plain(value), |bytes| Content::Zstd(bytes, value.len()));
        Ok(Request {
            key,
            hash,
            draft: Draft::put(key, content, expires_ms),
            put: Some((value, expires_ms)),
            hint: options.hint,
            ack: options.ack.unwrap_or(self.settings.ack),
            condition: options.condition,
            wait: options.wait,
        })
    }

    pub(super) fn delete_request<'a>(&self, key: Key<'a>, options: &DeleteOptions) -> Result<Request<'a>> {
        check_key(key)?;
        let (hash, ack) = (self.hash(key), options.ack.unwrap_or(self.settings.ack));
        let draft = Draft::tombstone(hash);
        Ok(Request { key, hash, draft, put: None, hint: Hint::Auto, ack, condition: options.condition, wait: options.wait })
    }

    /// Tries until the mutation is done, refused, or its patience ends.
    fn carry_out(&self, request: &Request<'_>, may: Option<&dyn Fn() -> bool>) -> Result<Option<Lsn>> {
        let deadline = self.deadline(request);
        loop {
            let observed = if request.is_conditional() { Some(self.observed_version(request.key)?) } else { None };
            match self.attempt(request, observed.as_ref(), may)? {
                Tried::Done(lsn) => return Ok(Some(lsn)),
                Tried::Refused => return Ok(None),
                Tried::Overtaken => {}
                Tried::NoRoom(seen) => {
                    let left = self.patience(request, deadline)?;
                    self.wait(&self.events.room, seen, left);
                }
            }
        }
    }

    pub(super) fn deadline(&self, request: &Request<'_>) -> Option<Duration> {
        match request.wait {
            Wait::UpTo(time) => self.time.monotonic().checked_add(time),
            Wait::Forever | Wait::No => None,
        }
    }

    /// How long to wait for room, if there is a limit. An error if it is over.
    pub(super) fn patience(&self, request: &Request<'_>, deadline: Option<Duration>) -> Result<Option<Duration>> {
        let left = deadline.map(|at| at.saturating_sub(self.time.monotonic()));
        match (request.wait, left) {
            (Wait::No, _) => Err(Error::WouldBlock),
            (_, Some(Duration::ZERO)) => Err(Error::TimedOut),
            _ => Ok(left),
        }
    }

    /// Where the record is that the index names for `key`.
    pub(super) fn place_of(&self, key: Key<'_>) -> Option<Position> {
        self.index.get(self.hash(key)).and_then(|entry| self.position(&entry))
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
    pub(super) fn attempt(&self, request: &Request<'_>, observed: Option<&Observed>, may: Option<&dyn Fn() -> bool>) -> Result<Tried> {
        self.check_open()?;
        let (hash, tombstone) = (request.hash, request.put.is_none());
        let inline = request.draft.len() <= INLINE_LEN_MAX
            && match self.settings.wal_values {
                WalValues::Never => false,
                WalValues::Host => request.ack == Ack::Host,
                WalValues::Always => true,
            };
        self.index.prefetch_slots(hash);
        let seen = self.events.room.count();
        let _in_order = lock(self.stripe(hash));
        if may.is_some_and(|may| !may()) {
            return Ok(Tried::Refused);
        }
        let current = self.index.get(hash);
        if let Some(observed) = observed {
            if current.as_ref().and_then(|entry| self.position(entry)) != observed.at {
                return Ok(Tried::Overtaken);
            }
            // What the index has forgotten may be in the memory tier, where no position tells versions apart.
            if current.is_none() && self.memory.get(hash, request.key).map(|item| item.lsn()) != observed.version {
                return Ok(Tried::Overtaken);
            }
            if !request.condition.holds(observed.version) {
                return Ok(Tried::Refused);
            }
        }
        let supersedes = tombstone || current.is_some();
        let what = Append { hash, draft: &request.draft, tombstone, supersedes, inline, version: None, urgent: false };
        // Refused for want of room, or because the cache has closed: the next look tells.
        let Ok(placed) = self.append(&what) else { return Ok(Tried::NoRoom(seen)) };
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
            Hint::Auto => self.memory.holds(*hash),
            Hint::Memory => true,
            Hint::Flash => false,
        };
        let successor = put.filter(|_| belongs_there).map(|(value, expires_ms)| {
            let about = ItemMeta { hash: *hash, namespace: key.namespace, lsn: placed.lsn, expires_ms };
            Item::copied(about, key.bytes, value, &self.values)
        });
        self.memory.supersede(*hash, successor, || match put {
            Some(_) => self.index.insert(*hash, &placed.entry),
            None => self.index.remove(*hash),
        });
    }

    /// The value compressed, if that is asked for and makes it smaller.
    pub(super) fn compress(&self, value: &[u8]) -> Result<Option<Vec<u8>>> {
        let Compression::Zstd(level) = self.settings.compression else { return Ok(None) };
        if value.len() < COMPRESS_LEN_MIN {
            return Ok(None);
        }
        let packed = zstd::bulk::compress(value, level).map_err(Error::io("compress a value for", &self.dir))?;
        Ok((packed.len() < value.len()).then_some(packed))
    }
}

impl Condition {
    /// Whether it holds for a key whose value has this version.
    fn holds(self, version: Option<Lsn>) -> bool {
        match self {
            Self::Always => true,
            Self::IfAbsent => version.is_none(),
            Self::IfPresent => version.is_some(),
            Self::IfVersion(wanted) => version == Some(wanted),
        }
    }
}

fn check_key(key: Key<'_>) -> Result<()> {
    match key.bytes.len() {
        0 => Err(Error::EmptyKey),
        len if len > KEY_LEN_MAX => Err(Error::KeyTooLarge { len, max: KEY_LEN_MAX }),
        _ => Ok(()),
    }
}
