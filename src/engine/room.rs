//! The callers that wait for room, in one queue for each cause.
//!
//! Whoever makes room signals that. The oldest waiter of each queue then has a *turn*: it wakes and
//! tries again. If it finds room, it passes the turn on to the next waiter of its queue. If it
//! finds none, its turn is spent, and it waits at its old place. So a signal wakes as many waiters
//! as find room, and one more, however many wait.
//!
//! # No waiter is forgotten
//! - A waiter reads the count of signals before it tries. It does not begin to wait if the count
//!   has moved since.
//! - Waiters of one queue wait for the same thing. While the oldest finds no room, the others do
//!   not need to look. Room comes with another signal.
//! - A turn ends in one of three ways: it is passed on, it is spent, or its [`Place`] is dropped,
//!   which passes it on.
//! - A task that is never polled again keeps its turn. So the timer thread signals now and then
//!   while anybody waits.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::concurrent::primitives::{AtomicU64, AtomicUsize, Mutex, Ordering, fence};
use crate::concurrent::{block_on, lock, wake};

/// The event that there may be room, and the queues of those who wait for it.
#[derive(Debug)]
pub(crate) struct Room<const CAUSES: usize> {
    /// Signals so far.
    count: AtomicU64,
    /// Waiters in all queues.
    waiting: AtomicUsize,
    queues: Mutex<Queues<CAUSES>>,
}

/// The waiters of each cause, by a number that grows with each new waiter.
#[derive(Debug)]
struct Queues<const CAUSES: usize> {
    next: u64,
    of: [BTreeMap<u64, Waker>; CAUSES],
}

impl<const CAUSES: usize> Default for Room<CAUSES> {
    fn default() -> Self {
        let queues = Queues { next: 0, of: std::array::from_fn(|_| BTreeMap::new()) };
        Self { count: AtomicU64::new(0), waiting: AtomicUsize::new(0), queues: Mutex::new(queues) }
    }
}

impl<const CAUSES: usize> Room<CAUSES> {
    /// Signals so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Whether anybody waits.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// There may be room: the oldest waiter of each queue has a turn.
    pub(crate) fn signal(&self) {
        self.signal_some(|queue| queue.pop_first().into_iter().map(|(_, waker)| waker).collect());
    }

    /// Wakes all waiters.
    pub(crate) fn signal_all(&self) {
        self.signal_some(|queue| std::mem::take(queue).into_values().collect());
    }

    fn signal_some(&self, take: impl Fn(&mut BTreeMap<u64, Waker>) -> Vec<Waker>) {
        self.count.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence in `Place::poll`: either the waiter sees the new count, or this sees
        // the waiter.
        fence(Ordering::SeqCst);
        if self.is_waited_for() {
            let woken: Vec<Waker> = lock(&self.queues).of.iter_mut().flat_map(take).collect();
            self.waiting.fetch_sub(woken.len(), Ordering::SeqCst);
            woken.into_iter().for_each(wake);
        }
    }

    /// The next waiter of a queue has a turn.
    fn pass_on(&self, cause: usize) {
        if self.is_waited_for() {
            let next = lock(&self.queues).of[cause].pop_first();
            if let Some((_, waker)) = next {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                wake(waker);
            }
        }
    }

    /// A place for one caller, who has not waited yet.
    pub(crate) fn place(&self) -> Place<'_, CAUSES> {
        Place { room: self, cause: 0, seen: 0, number: None, state: State::Free }
    }
}

/// The place of one caller. As a future it is ready when the caller should try again.
#[derive(Debug)]
pub(crate) struct Place<'a, const CAUSES: usize> {
    room: &'a Room<CAUSES>,
    /// The queue that the caller waits in.
    cause: usize,
    /// Count of signals before the caller tried.
    seen: u64,
    /// Number in the queue. Kept when a turn is spent.
    number: Option<u64>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Neither in a queue nor with a turn.
    Free,
    /// In the queue, or taken from it for a turn that the caller does not know of yet.
    Listed,
    /// The caller has a turn.
    Turn,
}

impl<const CAUSES: usize> Place<'_, CAUSES> {
    /// The caller found no room, for a cause with this number. Spends its turn, if it has one, and
    /// prepares another wait. `seen` is the count before it tried.
    pub(crate) fn found_none(&mut self, cause: usize, seen: u64) {
        if self.cause != cause || self.state == State::Listed {
            self.leave();
            self.number = None;
        }
        (self.cause, self.seen, self.state) = (cause, seen, State::Free);
    }

    /// Blocks the thread until the caller should try again, for at most `timeout` if there is one.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) {
        let _in_time = block_on(self, timeout);
    }

    /// Leaves the queue. Passes the turn on, if there is one.
    fn leave(&mut self) {
        let has_turn = match (self.state, self.number) {
            (State::Listed, Some(number)) => !self.unlist(number),
            (state, _) => state == State::Turn,
        };
        self.state = State::Free;
        if has_turn {
            self.room.pass_on(self.cause);
        }
    }

    /// Takes the place out of its queue. False if it was taken for a turn before.
    fn unlist(&self, number: u64) -> bool {
        let was_listed = lock(&self.room.queues).of[self.cause].remove(&number).is_some();
        self.room.waiting.fetch_sub(usize::from(was_listed), Ordering::SeqCst);
        was_listed
    }
}

impl<const CAUSES: usize> Future for Place<'_, CAUSES> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let room = self.room;
        if self.state == State::Listed {
            let mut queues = lock(&room.queues);
            let listed = self.number.and_then(|number| queues.of[self.cause].get_mut(&number));
            if let Some(waker) = listed {
                waker.clone_from(context.waker());
                return Poll::Pending;
            }
            drop(queues);
            self.state = State::Turn;
        }
        if self.state == State::Turn || room.count() != self.seen {
            return Poll::Ready(());
        }
        let number = {
            let mut queues = lock(&room.queues);
            let number = self.number.unwrap_or(queues.next);
            queues.next = queues.next.max(number + 1);
            queues.of[self.cause].insert(number, context.waker().clone());
            room.waiting.fetch_add(1, Ordering::SeqCst);
            number
        };
        (self.number, self.state) = (Some(number), State::Listed);
        // Pairs with the fence in `Room::signal_some`.
        fence(Ordering::SeqCst);
        if room.count() == self.seen {
            return Poll::Pending;
        }
        self.state = if self.unlist(number) { State::Free } else { State::Turn };
        Poll::Ready(())
    }
}

impl<const CAUSES: usize> Drop for Place<'_, CAUSES> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize as StdUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(StdUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Places that wait for these causes, with the wakes of each.
    fn waiting<'a>(room: &'a Room<2>, causes: &[usize]) -> Vec<(Place<'a, 2>, Arc<Wakes>)> {
        let each = causes.iter().map(|cause| {
            let (mut place, wakes) = (room.place(), Arc::new(Wakes::default()));
            place.found_none(*cause, room.count());
            assert!(poll(&mut place, &wakes).is_pending());
            (place, wakes)
        });
        each.collect()
    }

    fn poll(place: &mut Place<'_, 2>, wakes: &Arc<Wakes>) -> Poll<()> {
        Pin::new(place).poll(&mut Context::from_waker(&Waker::from(Arc::clone(wakes))))
    }

    fn woken(places: &[(Place<'_, 2>, Arc<Wakes>)]) -> Vec<usize> {
        places.iter().map(|(_, wakes)| wakes.0.load(Ordering::SeqCst)).collect()
    }

    #[test]
    fn a_signal_wakes_one_of_each_cause_and_each_success_the_next() {
        let room = Room::default();
        let mut places = waiting(&room, &[0, 0, 1, 0]);
        room.signal();
        assert_eq!(woken(&places), [1, 0, 1, 0]);
        // The first one finds room.
        assert!(
            {
                let (place, wakes) = &mut places[0];
                poll(place, wakes)
            }
            .is_ready()
        );
        drop(places.remove(0));
        assert_eq!(woken(&places), [1, 1, 0]);
        // The next one does not, and is the first to have another turn.
        let (place, wakes) = &mut places[0];
        assert!(poll(place, wakes).is_ready());
        place.found_none(0, room.count());
        assert!(poll(place, wakes).is_pending());
        assert_eq!(woken(&places), [1, 1, 0]);
        room.signal();
        assert_eq!(woken(&places), [2, 1, 0]);
        drop(places);
        assert!(!room.is_waited_for());
    }

    #[test]
    fn a_turn_that_is_not_used_is_passed_on() {
        let room = Room::default();
        let mut places = waiting(&room, &[0, 0, 0]);
        room.signal();
        // Dropped before it was polled again.
        drop(places.remove(0));
        assert_eq!(woken(&places), [1, 0]);
        // Refused for another cause.
        let (place, wakes) = &mut places[0];
        assert!(poll(place, wakes).is_ready());
        place.found_none(1, room.count());
        assert!(poll(place, wakes).is_pending());
        assert_eq!(woken(&places), [1, 1]);
        room.signal_all();
        assert_eq!(woken(&places), [2, 1], "the other one has its turn already");
    }
}
