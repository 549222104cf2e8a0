//! Single flight, as in Go's `golang.org/x/sync/singleflight`: of all callers that miss a key at
//! the same time, one loads its value and the others wait for the result.
//!
//! The load of a key is a [`Flight`]. [`Fills::board`] starts one, or finds the one that is under
//! way. The caller that started it is the leader: it runs its loader, stores the value and leaves
//! it in the flight. Every other caller waits for `over`, and takes the value. If the load failed,
//! one of the waiters becomes the next leader.
//!
//! A flight that takes too long is replaced: it counts as superseded, and another caller leads the
//! next one. A load that hangs, or a future that is never polled, so holds nobody for ever.
//!
//! A put or delete during the flight wins over the loaded value. It marks the flight as superseded
//! with [`Fills::supersede`] while it holds the stripe of the key. The leader checks the mark under
//! the same stripe before it stores, so a loaded value never replaces a newer one. A waiter checks
//! it too: it may have come after the mutation, and then must not see the older value.
//!
//! Mutations are frequent and flights are rare. A mutation reads the number of flights, and takes
//! the lock only if there are any. It may miss a flight that starts at this moment. But the index
//! names the new record already, and the leader looks the key up once more after boarding.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::concurrent::primitives::{AtomicBool, AtomicUsize, Mutex, Ordering};
use crate::concurrent::{Event, lock};
use crate::id::KeyHash;

/// The loads under way, one for each key hash.
#[derive(Debug)]
pub(crate) struct Fills<T> {
    /// Number of flights. Without any, a mutation does not take the lock of `flights`.
    count: AtomicUsize,
    flights: Mutex<HashMap<KeyHash, Arc<Flight<T>>>>,
}

/// The load of one key.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    /// Time of the monotonic clock at which the load began.
    pub(crate) began: Duration,
    /// A put or delete of the key took effect during the load, or another flight replaced this one.
    /// The loaded value is not stored.
    pub(crate) superseded: AtomicBool,
    /// The load has ended. Set before `over` is signalled.
    pub(crate) landed: AtomicBool,
    /// Signalled once, when the load has ended or is replaced.
    pub(crate) over: Event,
    /// The loaded value.
    loaded: Mutex<Option<T>>,
}

impl<T: Clone> Flight<T> {
    fn new(began: Duration) -> Arc<Self> {
        Arc::new(Self {
            began,
            superseded: AtomicBool::new(false),
            landed: AtomicBool::new(false),
            over: Event::default(),
            loaded: Mutex::new(None),
        })
    }

    /// Leaves the loaded value for those who wait.
    pub(crate) fn leave(&self, loaded: T) {
        *lock(&self.loaded) = Some(loaded);
    }

    /// The loaded value, if there is one and no mutation superseded it.
    pub(crate) fn left(&self) -> Option<T> {
        let loaded = lock(&self.loaded).clone();
        // A mutation that ended before the caller boarded this flight set it before.
        loaded.filter(|_| !self.superseded.load(Ordering::SeqCst))
    }
}

impl<T> Default for Fills<T> {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), flights: Mutex::new(HashMap::new()) }
    }
}

impl<T: Clone> Fills<T> {
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

    /// Starts a flight at time `now`, or finds the one under way. One that is older than `age_max`
    /// is replaced. True if the caller started the flight: it leads it, and makes a [`Landing`] to
    /// end it.
    pub(crate) fn board(&self, hash: KeyHash, now: Duration, age_max: Duration) -> (Arc<Flight<T>>, bool) {
        let (flight, replaced) = {
            let mut flights = lock(&self.flights);
            if let Some(flight) = flights.get(&hash).filter(|flight| now < flight.began.saturating_add(age_max)) {
                return (Arc::clone(flight), false);
            }
            let flight = Flight::new(now);
            let replaced = flights.insert(hash, Arc::clone(&flight));
            match &replaced {
                None => drop(self.count.fetch_add(1, Ordering::SeqCst)),
                // From now on mutations mark the new flight alone.
                Some(replaced) => replaced.superseded.store(true, Ordering::SeqCst),
            }
            (flight, replaced)
        };
        if let Some(replaced) = replaced {
            // Its waiters board the new flight.
            replaced.over.signal();
        }
        (flight, true)
    }
}

/// Ends a flight when it is dropped, so also when the loader panics or its future is dropped.
pub(crate) struct Landing<'a, T> {
    pub(crate) fills: &'a Fills<T>,
    pub(crate) hash: KeyHash,
    pub(crate) flight: &'a Arc<Flight<T>>,
}

impl<T> Drop for Landing<'_, T> {
    fn drop(&mut self) {
        // The flight leaves the map first: a waiter that wakes must not find it again.
        {
            let mut flights = lock(&self.fills.flights);
            if flights.get(&self.hash).is_some_and(|flight| Arc::ptr_eq(flight, self.flight)) {
                flights.remove(&self.hash);
                self.fills.count.fetch_sub(1, Ordering::SeqCst);
            }
        }
        // Pairs with the load of `landed` before a wait: a waiter sees it, or the event after it.
        self.flight.landed.store(true, Ordering::SeqCst);
        self.flight.over.signal();
    }
}
