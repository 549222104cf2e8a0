//! The engine's small concurrent state machines, model-checked in the interleavings that the memory
//! model allows, with up to three preemptions:
//!
//! - events, and group commit built on them,
//! - the queues for room,
//! - single flight,
//! - the seqlock of the index.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release --manifest-path tests/loom/Cargo.toml`.
#![cfg(loom)]
#![allow(dead_code, reason = "only parts of the sources are used here")]

#[path = "../../../src/engine/ops/single_flight.rs"]
mod single_flight;
#[path = "../../../src/id.rs"]
mod id;
#[path = "../../../src/concurrent.rs"]
mod concurrent;
#[path = "../../../src/engine/room.rs"]
mod room;
#[path = "../../../src/engine/sync_waiters.rs"]
mod sync_waiters;
#[path = "../../../src/index/version.rs"]
mod version;

#[cfg(test)]
mod models {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use loom::thread;

    use super::single_flight::{Fills, Landing};
    use super::id::{KeyHash, Lsn};
    use super::concurrent::primitives::{AtomicBool, AtomicU64, Mutex, Ordering};
    use super::concurrent::{Event, lock};
    use super::room::Room;
    use super::sync_waiters::SyncWaiters;
    use super::version::Version;

    fn check(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.max_branches = 20_000;
        builder.check(model);
    }

    /// Checks that a waiter that reads the count, then the state, and then waits with `wait` misses
    /// no signal in between.
    fn check_that_a_signal_wakes(wait: impl Fn(&Event, u64) + Copy + Send + Sync + 'static) {
        check(move || {
            let shared = Arc::new((Event::default(), AtomicBool::new(false)));
            let waiter = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (event, happened) = &*shared;
                    let seen = event.count();
                    if !happened.load(Ordering::SeqCst) {
                        wait(event, seen);
                    }
                    assert!(happened.load(Ordering::SeqCst));
                })
            };
            shared.1.store(true, Ordering::SeqCst);
            shared.0.signal();
            waiter.join().unwrap();
        });
    }

    #[test]
    fn a_signal_wakes_a_waiting_thread() {
        check_that_a_signal_wakes(|event, seen| assert!(event.wait(seen, None)));
    }

    #[test]
    fn a_signal_wakes_a_waiting_task() {
        check_that_a_signal_wakes(|event, seen| loom::future::block_on(event.after(seen)));
    }

    /// Room for some records, and the callers that wait for it.
    #[derive(Default)]
    struct Space {
        free: AtomicU64,
        room: Room<1>,
    }

    impl Space {
        fn take(&self) -> bool {
            self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(1)).is_ok()
        }

        /// Takes room for one record, in the order of `Engine::carry_out`.
        fn put(&self) {
            let mut place = self.room.place();
            loop {
                let seen = self.room.count();
                if self.take() {
                    return;
                }
                place.found_none(0, seen);
                place.wait(None);
            }
        }
    }

    #[test]
    fn one_signal_lets_as_many_waiters_pass_as_find_room() {
        check(|| {
            let space = Arc::new(Space::default());
            let waiters: Vec<_> = (0..2)
                .map(|_| {
                    let space = Arc::clone(&space);
                    thread::spawn(move || space.put())
                })
                .collect();
            space.free.store(2, Ordering::SeqCst);
            space.room.signal();
            waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
            assert!(!space.room.is_waited_for());
        });
    }

    #[test]
    fn a_waiter_that_is_dropped_keeps_nobody_from_room() {
        check(|| {
            let space = Arc::new(Space::default());
            let dropped = {
                let space = Arc::clone(&space);
                thread::spawn(move || {
                    let mut place = space.room.place();
                    place.found_none(0, space.room.count());
                    let _ready_or_not = Pin::new(&mut place).poll(&mut Context::from_waker(Waker::noop()));
                })
            };
            let waiter = {
                let space = Arc::clone(&space);
                thread::spawn(move || space.put())
            };
            space.free.store(1, Ordering::SeqCst);
            space.room.signal();
            dropped.join().unwrap();
            waiter.join().unwrap();
            assert!(!space.room.is_waited_for());
        });
    }

    #[test]
    fn a_waiter_performs_the_sync_or_is_woken_by_it() {
        check_group_commit(false);
    }

    #[test]
    fn a_waiter_looks_again_after_a_sync_that_advances_nothing() {
        check_group_commit(true);
    }

    /// Two puts and the sync thread, in the order of `Engine::wait_for` and of the engine's sync
    /// thread. If `first_fails`, the first sync does not advance `durable`.
    fn check_group_commit(first_fails: bool) {
        #[derive(Default)]
        struct Log {
            appended: Mutex<u64>,
            syncing: Mutex<()>,
            durable: AtomicU64,
            wanted: AtomicBool,
            closing: AtomicBool,
            fails: AtomicBool,
            sync: Event,
            waiters: SyncWaiters,
        }
        impl Log {
            fn sync(&self) {
                let appended = {
                    let appended = lock(&self.appended);
                    self.wanted.store(false, Ordering::Release);
                    *appended
                };
                if appended > self.durable.load(Ordering::Acquire) {
                    self.waiters.begin(Lsn(appended));
                    if self.fails.swap(false, Ordering::AcqRel) {
                        return self.waiters.give_up(Lsn(self.durable.load(Ordering::Acquire)));
                    }
                    self.durable.store(appended, Ordering::Release);
                    self.waiters.end();
                }
            }

            fn put(&self) {
                let lsn = {
                    let mut appended = lock(&self.appended);
                    *appended += 1;
                    Lsn(*appended)
                };
                loop {
                    let seen = self.waiters.seen();
                    if self.durable.load(Ordering::Acquire) >= lsn.0 {
                        return;
                    }
                    if !self.wanted.load(Ordering::Acquire)
                        && let Ok(_alone) = self.syncing.try_lock()
                    {
                        self.sync();
                        continue;
                    }
                    let (turn, has_begun) = self.waiters.generation_of(lsn);
                    if !has_begun {
                        self.wanted.store(true, Ordering::Release);
                        self.sync.signal();
                    }
                    self.waiters.event(turn).wait(seen[turn], None);
                }
            }
        }
        check(move || {
            let log = Arc::new(Log { fails: AtomicBool::new(first_fails), ..Log::default() });
            let sync_thread = {
                let log = Arc::clone(&log);
                thread::spawn(move || {
                    loop {
                        let seen = log.sync.count();
                        if log.wanted.load(Ordering::Acquire) {
                            let _alone = lock(&log.syncing);
                            log.sync();
                        } else if log.closing.load(Ordering::Acquire) {
                            return;
                        } else {
                            log.sync.wait(seen, None);
                        }
                    }
                })
            };
            let other = {
                let log = Arc::clone(&log);
                thread::spawn(move || log.put())
            };
            log.put();
            other.join().unwrap();
            log.closing.store(true, Ordering::Release);
            log.sync.signal();
            sync_thread.join().unwrap();
        });
    }

    /// A source that changes, followed by a delete in the cache: the order of `Engine::get_or_fill`
    /// and of a delete.
    #[test]
    fn a_delete_wins_over_a_load_that_began_before_it() {
        const KEY: KeyHash = KeyHash(7);
        struct Both {
            source: Mutex<u64>,
            cached: Mutex<Option<u64>>,
            fills: Fills<u64>,
        }
        check(|| {
            let both = Arc::new(Both { source: Mutex::new(1), cached: Mutex::new(None), fills: Fills::default() });
            let loads = {
                let both = Arc::clone(&both);
                thread::spawn(move || {
                    let (flight, mine) = both.fills.board(KEY, Duration::ZERO, Duration::MAX);
                    assert!(mine);
                    let _landing = Landing { fills: &both.fills, hash: KEY, flight: &flight };
                    let loaded = *lock(&both.source);
                    let mut cached = lock(&both.cached);
                    if !flight.superseded.load(Ordering::SeqCst) {
                        *cached = Some(loaded);
                    }
                })
            };
            *lock(&both.source) = 2;
            {
                let mut cached = lock(&both.cached);
                both.fills.supersede(KEY);
                *cached = None;
            }
            loads.join().unwrap();
            let cached = *lock(&both.cached);
            assert_ne!(cached, Some(1), "the deleted value is cached");
        });
    }

    #[test]
    fn a_caller_that_comes_after_a_delete_takes_no_older_load() {
        const KEY: KeyHash = KeyHash(7);
        check(|| {
            let shared = Arc::new((Mutex::new(1u64), Fills::<u64>::default()));
            let loads = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (flight, mine) = shared.1.board(KEY, Duration::ZERO, Duration::MAX);
                    if mine {
                        let _landing = Landing { fills: &shared.1, hash: KEY, flight: &flight };
                        let loaded = *lock(&shared.0);
                        flight.leave(loaded);
                    }
                })
            };
            *lock(&shared.0) = 2;
            shared.1.supersede(KEY);
            let (flight, mine) = shared.1.board(KEY, Duration::ZERO, Duration::MAX);
            if mine {
                drop(Landing { fills: &shared.1, hash: KEY, flight: &flight });
            } else {
                let seen = flight.over.count();
                if !flight.landed.load(Ordering::SeqCst) {
                    flight.over.wait(seen, None);
                }
                assert_ne!(flight.left(), Some(1), "the value from before the delete");
            }
            loads.join().unwrap();
        });
    }

    #[test]
    fn of_two_misses_one_waits_until_the_other_has_loaded() {
        const KEY: KeyHash = KeyHash(7);
        check(|| {
            let shared = Arc::new((Fills::<u64>::default(), AtomicU64::new(0)));
            let one = |shared: Arc<(Fills<u64>, AtomicU64)>| {
                move || {
                    let (flight, mine) = shared.0.board(KEY, Duration::ZERO, Duration::MAX);
                    if mine {
                        let _landing = Landing { fills: &shared.0, hash: KEY, flight: &flight };
                        shared.1.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    let seen = flight.over.count();
                    if !flight.landed.load(Ordering::SeqCst) {
                        flight.over.wait(seen, None);
                    }
                    assert!(shared.1.load(Ordering::SeqCst) > 0, "the other thread has loaded");
                }
            };
            let other = thread::spawn(one(Arc::clone(&shared)));
            one(Arc::clone(&shared))();
            other.join().unwrap();
        });
    }

    /// Two words behind a seqlock; they are equal unless a writer is between its two stores.
    #[derive(Default)]
    struct Guarded {
        version: Version,
        words: [AtomicU64; 2],
    }

    impl Guarded {
        fn set(&self, value: u64) {
            self.version.write(|| self.words.iter().for_each(|word| word.store(value, Ordering::Relaxed)));
        }

        fn get(&self) -> [u64; 2] {
            self.version.read(|| [self.words[0].load(Ordering::Relaxed), self.words[1].load(Ordering::Relaxed)])
        }
    }

    #[test]
    fn readers_of_a_seqlock_see_consistent_states() {
        const WRITERS: u64 = 1;
        check(|| {
            let guarded = Arc::new(Guarded::default());
            let writers: Vec<_> = (1..WRITERS + 1)
                .map(|value| {
                    let guarded = Arc::clone(&guarded);
                    thread::spawn(move || guarded.set(value))
                })
                .collect();
            let [a, b] = guarded.get();
            assert_eq!(a, b);
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            let [a, b] = guarded.get();
            assert!(a == b && a > 0);
        });
    }
}
