//! Get or fill: of all who miss a key at once, one loads its value and the others wait for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::{Engine, PutOptions};
use crate::error::{Error, Result};
use crate::id::{Key, KeyHash};
use crate::sync::{Event, lock};

/// Why [`crate::Cache::get_or_fill`] has no value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FillError<E> {
    /// The caller's loader failed. Those who waited for it try themselves.
    #[error("the loader failed")]
    Loader(#[source] E),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] Error),
}

/// Loads under way.
#[derive(Debug, Default)]
pub(super) struct Fills {
    /// How many: mutations look at the map only if there are any.
    count: AtomicUsize,
    flights: Mutex<HashMap<KeyHash, Arc<Flight>>>,
}

/// One load.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// A put or a delete of the key came in between, and wins.
    pub(super) superseded: AtomicBool,
    pub(super) landed: AtomicBool,
    pub(super) over: Event,
}

impl Fills {
    /// A key is being mutated. Called under its stripe.
    pub(super) fn supersede(&self, hash: KeyHash) {
        if self.count.load(Ordering::SeqCst) > 0
            && let Some(flight) = lock(&self.flights).get(&hash)
        {
            flight.superseded.store(true, Ordering::SeqCst);
        }
    }

    /// Starts a load, or finds the one under way (`false`).
    pub(super) fn board(&self, hash: KeyHash) -> (Arc<Flight>, bool) {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&hash) {
            return (Arc::clone(flight), false);
        }
        let flight = Arc::new(Flight::default());
        flights.insert(hash, Arc::clone(&flight));
        self.count.fetch_add(1, Ordering::SeqCst);
        (flight, true)
    }
}

/// Ends a load, also when the loader panics.
pub(super) struct Landing<'a> {
    pub(super) fills: &'a Fills,
    pub(super) hash: KeyHash,
    pub(super) flight: &'a Flight,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        lock(&self.fills.flights).remove(&self.hash);
        self.fills.count.fetch_sub(1, Ordering::SeqCst);
        self.flight.landed.store(true, Ordering::SeqCst);
        self.flight.over.signal();
    }
}

impl Engine {
    /// The value of `key`: what the cache has, else what `load` gives, which is stored unless the key was put or deleted meanwhile.
    pub(crate) fn get_or_fill<E>(
        &self,
        key: Key<'_>,
        options: &PutOptions,
        load: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, FillError<E>> {
        let hash = self.hash(key);
        loop {
            if let Some(value) = self.get(key, true)? {
                return Ok(value.into_bytes());
            }
            let (flight, mine) = self.fills.board(hash);
            if mine {
                let _landing = Landing { fills: &self.fills, hash, flight: &flight };
                // Somebody else's load may have landed between the miss and the boarding.
                if let Some(value) = self.get(key, false)? {
                    return Ok(value.into_bytes());
                }
                let loaded = load().map_err(FillError::Loader)?;
                let stored = self.put_if(key, &loaded, options, &|| !flight.superseded.load(Ordering::SeqCst));
                return match stored {
                    // A value that cannot be kept can still be used.
                    Ok(_) | Err(Error::ValueTooLarge { .. } | Error::KeyTooLarge { .. }) => Ok(loaded),
                    Err(e) => Err(e.into()),
                };
            }
            let seen = flight.over.count();
            if !flight.landed.load(Ordering::SeqCst) {
                flight.over.wait(seen, None);
            }
        }
    }
}
