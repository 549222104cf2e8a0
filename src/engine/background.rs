//! The threads that run the background steps.
//!
//! Each thread repeats one step while the step has work. Then it waits for an event that signals
//! new work, or for a time. The steps themselves are methods of [`Engine`], so that tests can run
//! them inline.
//!
//! | thread | its step |
//! |---|---|
//! | `flush` | writes the segment ring into segment files |
//! | `sync` | seals full segments, and syncs when a sync is due |
//! | `prepare` | keeps segments ready, reclaims and rescues |
//! | `checkpoint` | grows the manifest, and takes checkpoints |
//! | `warmth` | marks that the store is alive, refills the memory tier, and records hot keys |
//! | `timer` | wakes tasks whose time to wait is over, and goes on after a failure |

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Engine, warmth};
use crate::concurrent::Event;
use crate::error::Result;

/// Pause before a disk that was full is asked for room again.
const SPACE_RETRY: Duration = Duration::from_millis(200);

/// How often the timer thread signals that there may be room, while anybody waits for it. A task
/// that is never polled again may have taken the turn that another one needs.
const ROOM_RETRY: Duration = Duration::from_millis(100);

/// Callers that wait do all background work on their own threads.
#[cfg(any(test, fuzzing))]
pub(crate) const INLINE: super::context::Mode = super::context::Mode::Inline(Engine::step_all);

/// How a background thread idles when its step has no work.
enum Idle {
    /// Until its event is signalled.
    UntilEvent,
    /// Until its event is signalled, and no longer than this.
    AtMost(Duration),
    /// For this long, even if its event is signalled. Only a stop of the engine ends the pause
    /// early.
    Pause(Duration),
}

/// The background threads of an open store.
#[derive(Debug)]
pub(crate) struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Starts all threads, or none if one cannot be started. A store that was opened for reading
    /// only has the timer alone.
    pub(crate) fn start(engine: &Arc<Engine>) -> std::io::Result<Self> {
        let mut threads = Self(Vec::new());
        let flush: fn(&Engine) = |e| e.run(&e.events.flush, Engine::step_flush, |_| Idle::UntilEvent);
        let prepare: fn(&Engine) = |e| {
            e.run(&e.events.prepare, Engine::step_prepare_thread, Engine::idle_prepare);
            if e.health.has_failed() {
                e.state_failed_if_possible();
            }
        };
        let checkpoint: fn(&Engine) = |e| e.run(&e.events.checkpoint, Engine::step_checkpoint_thread, Engine::idle_checkpoint);
        let sync: fn(&Engine) = |e| e.run(&e.events.sync, Engine::step_sync_when_due, Engine::idle_sync);
        let warmth: fn(&Engine) = |e| e.run(&e.events.warmth, Engine::step_warmth, |_| Idle::AtMost(warmth::INTERVAL));
        let bodies = [
            ("flush", flush),
            ("sync", sync),
            ("prepare", prepare),
            ("checkpoint", checkpoint),
            ("warmth", warmth),
            ("timer", Engine::run_timer),
        ];
        // Without mutations there is nothing to do but to wake tasks.
        let reader = ("timer", Engine::run_timer as fn(&Engine));
        let bodies = if engine.health.is_read_only() { vec![reader] } else { bodies.to_vec() };
        for (name, body) in bodies {
            let shared = Arc::clone(engine);
            match thread::Builder::new().name(format!("everwarm-{name}")).spawn(move || body(&shared)) {
                Ok(thread) => threads.0.push(thread),
                Err(error) => {
                    engine.begin_close();
                    threads.join();
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }

    /// Waits until all threads have ended. The engine must have been told to close. Does nothing if
    /// it is called on one of these threads, which happens if a task that was woken there drops the
    /// last handle. The threads then end by themselves.
    pub(crate) fn join(self) {
        if self.0.iter().any(|thread| thread.thread().id() == thread::current().id()) {
            return;
        }
        for thread in self.0 {
            // The thread has recorded its panic as a failure of the engine.
            let _panicked = thread.join();
        }
    }
}

/// Fails the engine if its thread panics, since no other thread would do the work.
struct Unwound<'a>(&'a Engine);

impl Drop for Unwound<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _recorded = self.0.fail("a background thread", &std::io::Error::other("it panicked"));
        }
    }
}

impl Engine {
    /// The loop of one background thread: runs `step` while it has work, then idles as `idle` says.
    fn run(&self, event: &Event, step: impl Fn(&Self) -> Result<bool>, idle: impl Fn(&Self) -> Idle) {
        let _guard = Unwound(self);
        loop {
            let (seen, stop_seen) = (event.count(), self.events.stop.count());
            if self.health.is_stopping() {
                return;
            }
            match step(self) {
                Ok(true) => {}
                Ok(false) => {
                    match idle(self) {
                        Idle::UntilEvent => event.wait(seen, None),
                        Idle::AtMost(time) => event.wait(seen, Some(time)),
                        Idle::Pause(time) => self.events.stop.wait(stop_seen, Some(time)),
                    };
                }
                Err(_recorded) => return,
            }
        }
    }

    /// The loop of the timer thread. It does no I/O, and ends with the close alone: a failed engine
    /// still serves reads.
    fn run_timer(&self) {
        let _guard = Unwound(self);
        let timer = &self.events.timer;
        let mut retry_at = None;
        loop {
            let seen = timer.changed.count();
            if self.health.is_closing() {
                return timer.close();
            }
            let now = self.context.time.monotonic();
            if retry_at.is_some_and(|at| at <= now) {
                self.events.room.signal();
                retry_at = None;
            }
            retry_at = self.events.is_room_waited_for().then(|| retry_at.unwrap_or(now + ROOM_RETRY));
            let next = timer.wake_due(now).into_iter().chain(retry_at).min();
            timer.changed.wait(seen, next.map(|at| at.saturating_sub(now)));
        }
    }

    /// Marks that the store is alive, then refills the memory tier from the recorded keys, or
    /// records its hot keys.
    fn step_warmth(&self) -> Result<bool> {
        self.step_alive();
        Ok(self.step_refill()? || self.step_record_warmth()?)
    }

    /// Seals full segments. Then syncs, if one of these is true:
    /// - a sync was requested;
    /// - the oldest unsynced mutation is older than the sync interval;
    /// - more than `sync_bytes` are unsynced.
    ///
    /// A postponed sync waits for its retry time in any case.
    fn step_sync_when_due(&self) -> Result<bool> {
        let sealed = self.step_seal()?;
        let due = self.durability.is_requested()
            || self.until_sync() == Some(Duration::ZERO)
            || self.log.marks().unsynced_bytes() > self.context.settings.sync_bytes;
        Ok((due && self.until_sync_retry().is_zero() && self.step_sync()?) || sealed)
    }

    /// Idles until a sync is due. While callers sync on their own threads, the sync thread wakes
    /// once an interval. So callers need not wake it for the first mutation after each sync.
    fn idle_sync(&self) -> Idle {
        if self.durability.take_progress() {
            return Idle::AtMost(self.until_sync().unwrap_or(self.context.settings.sync_interval));
        }
        self.durability.set_idle();
        self.until_sync().map_or(Idle::UntilEvent, Idle::AtMost)
    }

    /// Time until the oldest unsynced mutation must be synced. `None` without one.
    fn until_sync(&self) -> Option<Duration> {
        let is_unsynced = self.durability.has_unsynced();
        is_unsynced.then(|| self.context.settings.sync_interval.saturating_sub(self.unsynced_age()).max(self.until_sync_retry()))
    }

    /// Time until a postponed sync is tried again.
    fn until_sync_retry(&self) -> Duration {
        self.durability.until_retry(self.context.time.monotonic())
    }

    /// Prepares segments, reclaims and rescues.
    fn step_prepare_thread(&self) -> Result<bool> {
        self.step_prepare().inspect(|_| self.events.set_prepared())
    }

    /// Makes the manifest longer for waiting catalog changes, and takes a checkpoint if one is due.
    fn step_checkpoint_thread(&self) -> Result<bool> {
        Ok(self.step_grow()? | self.step_checkpoint(false)?)
    }

    /// Pauses after the disk was full, else idles until an event.
    fn idle_checkpoint(&self) -> Idle {
        if self.manifest.is_space_denied() { Idle::Pause(SPACE_RETRY) } else { Idle::UntilEvent }
    }

    /// Pauses after the disk was full: otherwise every waiter would make this thread ask the disk
    /// again at once.
    fn idle_prepare(&self) -> Idle {
        if self.occupancy.is_space_denied() { Idle::Pause(SPACE_RETRY) } else { Idle::UntilEvent }
    }

    /// Runs all pending steps in a fixed order.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn step_all(&self) -> Result<()> {
        self.events.timer.wake_due(self.context.time.monotonic());
        while self.step_flush()?
            || self.step_seal()?
            || self.step_sync()?
            || self.step_prepare_thread()?
            || self.step_checkpoint_thread()?
        {}
        Ok(())
    }
}
