//! Loads under way: who loads, who waits, and which mutations came in between.

use std::collections::HashMap;
use std::sync::Arc;

use crate::concurrent::primitives::{AtomicBool, AtomicUsize, Mutex, Ordering};
use crate::concurrent::{Event, lock};
use crate::id::KeyHash;

/// Loads under way.
#[derive(Debug, Default)]
pub(crate) struct Fills {
    /// How many: mutations look at the map only if there are any.
    count: AtomicUsize,
    flights: Mutex<HashMap<KeyHash, Arc<Flight>>>,
}

/// One load.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    /// A put or a delete of the key came in between, and wins.
    pub(crate) superseded: AtomicBool,
    pub(crate) landed: AtomicBool,
    pub(crate) over: Event,
}

impl Fills {
    /// A key is being mutated. Called under its stripe.
    pub(crate) fn supersede(&self, hash: KeyHash) {
        if self.count.load(Ordering::SeqCst) > 0
            && let Some(flight) = lock(&self.flights).get(&hash)
        {
            flight.superseded.store(true, Ordering::SeqCst);
        }
    }

    /// Starts a load, or finds the one under way (`false`).
    pub(crate) fn board(&self, hash: KeyHash) -> (Arc<Flight>, bool) {
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
pub(crate) struct Landing<'a> {
    pub(crate) fills: &'a Fills,
    pub(crate) hash: KeyHash,
    pub(crate) flight: &'a Flight,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        lock(&self.fills.flights).remove(&self.hash);
        self.fills.count.fetch_sub(1, Ordering::SeqCst);
        self.flight.landed.store(true, Ordering::SeqCst);
        self.flight.over.signal();
    }
}
