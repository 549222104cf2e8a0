//! Single flight, as in Go's `golang.org/x/sync/singleflight`: of all callers that miss a key at
//! the same time, one loads its value and the others wait for the result.
//!
//! The load of a key is a [`Flight`]. [`Fills::board`] starts one, or finds the one that is under
//! way. The caller that started it is the leader: it runs its loader and stores the value. Every
//! other caller waits for `over`, then looks the key up again. If the load failed, one of the
//! waiters becomes the next leader.
//!
//! A put or delete during the flight wins over the loaded value. It marks the flight as superseded
//! with [`Fills::supersede`] while it holds the stripe of the key. The leader checks the mark under
//! the same stripe before it stores, so a loaded value never replaces a newer one.
//!
//! Mutations are frequent and flights are rare. A mutation reads the number of flights, and takes
//! the lock only if there are any. It may miss a flight that starts at this moment. But the index
//! names the new record already, and the leader looks the key up once more after boarding.

use std::collections::HashMap;
use std::sync::Arc;

use crate::concurrent::primitives::{AtomicBool, AtomicUsize, Mutex, Ordering};
use crate::concurrent::{Event, lock};
use crate::id::KeyHash;

/// The loads under way, one for each key hash.
#[derive(Debug, Default)]
pub(crate) struct Fills {
    /// Number of flights. Without any, a mutation does not take the lock of `flights`.
    count: AtomicUsize,
    flights: Mutex<HashMap<KeyHash, Arc<Flight>>>,
}

/// The load of one key.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    /// A put or delete of the key took effect during the load. The loaded value is not stored.
    pub(crate) superseded: AtomicBool,
    /// The load has ended. Set before `over` is signalled.
    pub(crate) landed: AtomicBool,
    /// Signalled once, when the load has ended.
    pub(crate) over: Event,
}

impl Fills {
    /// Marks the flight of a key as superseded, if there is one. The caller has mutated the key and
    /// still holds its stripe.
    pub(crate) fn supersede(&self, hash: KeyHash) {
        // Pairs with the increment in `board`: a mutation that reads 0 here came before the flight,
        // whose leader then finds the mutation in the index.
        if self.count.load(Ordering::SeqCst) > 0
            && let Some(flight) = lock(&self.flights).get(&hash)
        {
            // Pairs with the load under the stripe in `get_or_fill` and `get_or_fill_in_task`.
            flight.superseded.store(true, Ordering::SeqCst);
        }
    }

    /// Starts a flight, or finds the one under way. True if the caller started it: it leads the
    /// flight, and makes a [`Landing`] to end it.
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

/// Ends a flight when it is dropped, so also when the loader panics or its future is dropped.
pub(crate) struct Landing<'a> {
    pub(crate) fills: &'a Fills,
    pub(crate) hash: KeyHash,
    pub(crate) flight: &'a Flight,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        // The flight leaves the map first: a waiter that wakes must not find it again.
        lock(&self.fills.flights).remove(&self.hash);
        self.fills.count.fetch_sub(1, Ordering::SeqCst);
        // Pairs with the load of `landed` before a wait: a waiter sees it, or the event after it.
        self.flight.landed.store(true, Ordering::SeqCst);
        self.flight.over.signal();
    }
}
