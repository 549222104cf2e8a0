//! Get or fill: read-through for a key whose value comes from a slower source.
//!
//! A hit returns the cached value. After a miss the caller boards the flight of the key, as
//! `single_flight` describes. The leader looks the key up once more, runs its loader, and stores
//! the value if no mutation superseded the flight. The check and the store are one step under the
//! key's stripe. The leader also leaves the value in the flight, for those who wait for it.
//!
//! # The cache's trouble is not the caller's
//! - Whoever has loaded a value returns it. If it cannot be stored, that is counted.
//! - A cache that cannot be read is a miss.
//! - Nobody waits for another's load without an end: see [`Engine::board`].

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::nesting::{self, NESTED_MAX};
use super::options::{PutOptions, Wait};
use super::single_flight::{Flight, Landing};
use crate::config::Ack;
use crate::engine::Engine;
use crate::engine::counters::NotStored;
use crate::error::{Error, Result};
use crate::id::{Key, KeyHash, Lsn, NamespaceGeneration};

/// A load that takes longer than this is no longer waited for. One of its waiters loads in its
/// place.
pub(in crate::engine) const LOAD_WAIT_MAX: Duration = Duration::from_secs(5);

/// Reason why [`crate::Cache::get_or_fill`] or [`crate::AsyncCache::get_or_fill`] returned no
/// value. Trouble of the cache is never a reason.
///
/// `E` is the error of the caller's loader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FillError<E> {
    /// The loader of this call failed. Nothing was stored. The next waiter for the key runs its own
    /// loader.
    #[error("the loader of get_or_fill failed, so nothing was stored")]
    Loader(#[source] E),
    /// The loader of a key fills the same key, whose loader fills it again, and so on, 8 times. The
    /// loader of this call was not run: it would go on until the stack overflows.
    #[error("the loader of get_or_fill fills its own key again and again; load the value from its source instead")]
    Recursive,
}

/// What a caller does after a miss.
pub(in crate::engine) enum Boarded {
    /// Leads the flight: runs its loader and stores the value.
    Leads(Landed),
    /// Waits until the flight lands, or until this time.
    Waits(Landed, Duration),
    /// Runs its loader and stores nothing: another load of the key is under way.
    LoadsAlone,
}

type Landed = std::sync::Arc<Flight<Loaded>>;

/// A loaded value and its key. Flights are found by the hash of a key, which two keys may share.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Loaded {
    namespace: NamespaceGeneration,
    key: Box<[u8]>,
    value: Bytes,
}

impl Loaded {
    pub(in crate::engine) fn of(key: Key<'_>, value: &Bytes) -> Self {
        Self { namespace: key.namespace, key: key.bytes.into(), value: value.clone() }
    }

    /// The value, if it is that of `key`.
    pub(in crate::engine) fn value_of(self, key: Key<'_>) -> Option<Bytes> {
        (self.namespace == key.namespace && *self.key == *key.bytes).then_some(self.value)
    }
}

impl Engine {
    /// The cached value of `key`, or the value that `load` returns. Stores a loaded value, unless
    /// the key was put or deleted since the load began.
    pub(crate) fn get_or_fill<E>(
        &self,
        key: Key<'_>,
        options: &PutOptions,
        load: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, FillError<E>> {
        let hash = self.context.hash(key);
        let run = || nesting::run(&self.fills, hash, load).map_err(FillError::Loader);
        let give_up = self.gives_up_at(options);
        loop {
            match self.get(key, true) {
                Ok(Some(value)) => return Ok(value.into_bytes()),
                // Another value may take the place of one that this build cannot decompress.
                Ok(None) | Err(Error::NeedsZstd) => {}
                Err(error) => return run().inspect(|_| self.count_not_stored(&error)),
            }
            match self.board(hash, give_up)? {
                Boarded::Leads(flight) => {
                    let _landing = Landing { fills: &self.fills, hash, flight: &flight };
                    // Another flight may have landed between the miss and the boarding.
                    if let Ok(Some(value)) = self.get(key, false) {
                        return Ok(value.into_bytes());
                    }
                    let loaded = run()?;
                    self.store(key, options, &loaded, &flight);
                    flight.leave(Loaded::of(key, &loaded));
                    return Ok(loaded);
                }
                Boarded::LoadsAlone => return run().inspect(|_| self.counters.not_stored.add(NotStored::Alone)),
                Boarded::Waits(flight, until) => {
                    let seen = flight.over.count();
                    if !flight.landed.load(Ordering::SeqCst) {
                        self.wait(&flight.over, seen, Some(self.time_left(until)));
                    }
                    if let Some(value) = flight.left().and_then(|loaded| loaded.value_of(key)) {
                        return Ok(value);
                    }
                }
            }
        }
    }

    /// The time at which a caller no longer waits for the load of another, whichever load that is.
    pub(in crate::engine) fn gives_up_at(&self, options: &PutOptions) -> Option<Duration> {
        match options.wait {
            Some(Wait::UpTo(time)) => self.context.time.monotonic().checked_add(time),
            _ => None,
        }
    }

    /// Boards the flight of a key after a miss.
    ///
    /// A load that waits for this call itself is not waited for, nor one beyond `give_up`. If a
    /// load takes longer than [`LOAD_WAIT_MAX`], one caller leads another flight, and the others
    /// wait for that one. So a load that hangs is followed by another, and a slow one is not
    /// repeated by everybody.
    ///
    /// # Errors
    /// [`FillError::Recursive`].
    pub(in crate::engine) fn board<E>(&self, hash: KeyHash, give_up: Option<Duration>) -> Result<Boarded, FillError<E>> {
        match nesting::depth(&self.fills, hash) {
            0 => {}
            NESTED_MAX.. => return Err(FillError::Recursive),
            _ => return Ok(Boarded::LoadsAlone),
        }
        let now = self.context.time.monotonic();
        let (flight, is_leader) = self.fills.board(hash, now, LOAD_WAIT_MAX);
        let stale_at = flight.began + LOAD_WAIT_MAX;
        Ok(match give_up {
            _ if is_leader => Boarded::Leads(flight),
            Some(at) if at <= now => Boarded::LoadsAlone,
            _ => Boarded::Waits(flight, give_up.map_or(stale_at, |at| at.min(stale_at))),
        })
    }

    /// Time from now until a time of the monotonic clock.
    pub(in crate::engine) fn time_left(&self, until: Duration) -> Duration {
        until.saturating_sub(self.context.time.monotonic())
    }

    /// Stores a loaded value, unless the flight was superseded. Counts it if the value is not
    /// stored.
    fn store(&self, key: Key<'_>, options: &PutOptions, loaded: &[u8], flight: &Flight<Loaded>) {
        let options = self.options_of_fill(options);
        let is_current = || !flight.superseded.load(Ordering::SeqCst);
        let stored = self.put_if(key, loaded, &options, Some(&is_current));
        let acknowledged = match stored {
            Ok(Some(lsn)) => self.wait_for_fill(&options, lsn),
            Ok(None) => return self.counters.not_stored.add(NotStored::Overtaken),
            Err(error) => Err(error),
        };
        if let Err(error) = acknowledged {
            self.count_not_stored(&error);
        }
    }

    /// The options of the put of a loaded value: those of the call, with the defaults of a fill.
    /// The first fills after an opening wait for the first segment.
    pub(in crate::engine) fn options_of_fill(&self, options: &PutOptions) -> PutOptions {
        let wait = options.wait.unwrap_or(if self.events.is_prepared() { Wait::No } else { Wait::UpTo(LOAD_WAIT_MAX) });
        // The value can be loaded again, so nobody needs to wait for a sync.
        let ack = options.ack.unwrap_or(self.context.settings.ack.min(Ack::Process));
        PutOptions { wait: Some(wait), ack: Some(ack), ..options.clone() }
    }

    /// The time beyond which a fill does not wait for its sync.
    pub(in crate::engine) fn sync_deadline(&self, options: &PutOptions) -> Option<Duration> {
        let time = match options.wait {
            Some(Wait::Forever) => return None,
            Some(Wait::UpTo(time)) => time,
            Some(Wait::No) | None => LOAD_WAIT_MAX,
        };
        self.context.time.monotonic().checked_add(time)
    }

    /// Waits until a stored value is as durable as its options say, or its time is over.
    fn wait_for_fill(&self, options: &PutOptions, lsn: Lsn) -> Result<()> {
        let deadline = self.sync_deadline(options).filter(|_| options.ack == Some(Ack::Host));
        let Some(deadline) = deadline else { return self.wait_for(options.ack.unwrap_or(Ack::Memory), lsn) };
        loop {
            let seen = self.events.durable.seen();
            if self.is_durable(lsn)? {
                return Ok(());
            }
            let generation = self.sync_generation_of(lsn);
            // The generation may be that of a sync after the one that made `lsn` durable.
            if self.is_durable(lsn)? {
                return Ok(());
            }
            let left = self.time_left(deadline);
            if left.is_zero() {
                return Err(Error::TimedOut);
            }
            self.wait(self.events.durable.event(generation), seen[generation], Some(left));
        }
    }

    /// Counts a loaded value that was not stored, by the error of its put.
    pub(in crate::engine) fn count_not_stored(&self, error: &Error) {
        self.counters.not_stored.add(match error {
            Error::WouldBlock | Error::TimedOut => NotStored::NoRoom,
            Error::EmptyKey | Error::KeyTooLarge { .. } | Error::ValueTooLarge { .. } => NotStored::Length,
            Error::Io { .. } => NotStored::Io,
            _ => NotStored::Stopped,
        });
    }
}
