//! The threads that run the background steps.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Engine, warmth};
use crate::concurrent::Event;
use crate::error::Result;

/// How often a full disk is asked whether it has room again.
const SPACE_RETRY: Duration = Duration::from_millis(200);

/// All background work is done by callers that wait for it, on their own threads.
#[cfg(any(test, fuzzing))]
pub(crate) const INLINE: super::context::Mode = super::context::Mode::Inline(Engine::step_all);

/// What a background thread does when there is nothing to do.
enum Idle {
    UntilEvent,
    /// The same, and no longer than this.
    AtMost(Duration),
    /// Nothing for this long, whatever happens, unless the engine stops.
    Pause(Duration),
}

/// The background threads of an open store.
#[derive(Debug)]
pub(crate) struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    pub(crate) fn start(engine: &Arc<Engine>) -> std::io::Result<Self> {
        let mut threads = Self(Vec::new());
        let flush: fn(&Engine) = |e| e.run(&e.events.flush, Engine::step_flush, |_| Idle::UntilEvent);
        let prepare: fn(&Engine) = |e| {
            e.run(&e.events.prepare, Engine::step_prepare, Engine::idle_prepare);
            if e.health.has_failed() {
                e.state_failed_if_possible();
            }
        };
        let checkpoint: fn(&Engine) = |e| e.run(&e.events.checkpoint, Engine::step_checkpoint_thread, Engine::idle_checkpoint);
        let sync: fn(&Engine) = |e| e.run(&e.events.sync, Engine::step_sync_when_due, Engine::idle_sync);
        let warmth: fn(&Engine) = |e| e.run(&e.events.warmth, Engine::step_warmth, |_| Idle::AtMost(warmth::INTERVAL));
        let bodies = [("flush", flush), ("sync", sync), ("prepare", prepare), ("checkpoint", checkpoint), ("warmth", warmth)];
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

    /// Waits until all have ended, after the engine was told to close. Not if one of them asks, in which a task was woken that had the last handle: they end by themselves.
    pub(crate) fn join(self) {
        if self.0.iter().any(|thread| thread.thread().id() == thread::current().id()) {
            return;
        }
        for thread in self.0 {
            // A panic was reported by the thread itself; its step is not repeated.
            let _panicked = thread.join();
        }
    }
}

/// Fails the engine if its thread panics: nobody else would do the thread's work.
struct Unwound<'a>(&'a Engine);

impl Drop for Unwound<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _recorded = self.0.fail("a background thread", &std::io::Error::other("it panicked"));
        }
    }
}

impl Engine {
    /// One background thread: a step whenever there is something to do.
    fn run(&self, event: &Event, step: impl Fn(&Self) -> Result<bool>, rest: impl Fn(&Self) -> Idle) {
        let _guard = Unwound(self);
        loop {
            let (seen, stop_seen) = (event.count(), self.events.stop.count());
            if self.health.is_stopping() {
                return;
            }
            match step(self) {
                Ok(true) => {}
                Ok(false) => {
                    match rest(self) {
                        Idle::UntilEvent => event.wait(seen, None),
                        Idle::AtMost(time) => event.wait(seen, Some(time)),
                        Idle::Pause(time) => self.events.stop.wait(stop_seen, Some(time)),
                    };
                }
                Err(_recorded) => return,
            }
        }
    }

    /// What is of use to the next process, and what the last one left for this one.
    fn step_warmth(&self) -> Result<bool> {
        self.step_alive();
        Ok(self.step_refill()? || self.step_record_warmth()?)
    }

    /// What is full is sealed; a sync, if somebody waits for one, the oldest unsynced mutation is old enough, or there are too many bytes.
    fn step_sync_when_due(&self) -> Result<bool> {
        let sealed = self.step_seal()?;
        let due = self.durability.is_requested()
            || self.until_sync() == Some(Duration::ZERO)
            || self.log.marks().unsynced_bytes() > self.context.settings.sync_bytes;
        Ok((due && self.until_sync_retry().is_zero() && self.step_sync()?) || sealed)
    }

    /// Until a sync is due. While others sync, this looks once in an interval, and need not be woken for every mutation that is the first after a sync.
    fn idle_sync(&self) -> Idle {
        if self.durability.take_progress() {
            return Idle::AtMost(self.until_sync().unwrap_or(self.context.settings.sync_interval));
        }
        self.durability.set_idle();
        self.until_sync().map_or(Idle::UntilEvent, Idle::AtMost)
    }

    /// Time until the oldest unsynced mutation must be synced. `None` if there is none.
    fn until_sync(&self) -> Option<Duration> {
        let is_unsynced = self.durability.has_unsynced();
        is_unsynced.then(|| self.context.settings.sync_interval.saturating_sub(self.unsynced_age()).max(self.until_sync_retry()))
    }

    /// Time until a postponed sync is tried again.
    fn until_sync_retry(&self) -> Duration {
        self.durability.until_retry(self.context.time.monotonic())
    }

    /// What lets the manifest name more: a checkpoint that is due, and room for notes.
    fn step_checkpoint_thread(&self) -> Result<bool> {
        Ok(self.step_grow()? | self.step_checkpoint(false)?)
    }

    fn idle_checkpoint(&self) -> Idle {
        if self.manifest.is_space_denied() { Idle::Pause(SPACE_RETRY) } else { Idle::UntilEvent }
    }

    /// If the disk was full, everybody who waits for room would ask for it again and again.
    fn idle_prepare(&self) -> Idle {
        if self.occupancy.is_space_denied() { Idle::Pause(SPACE_RETRY) } else { Idle::UntilEvent }
    }

    /// All work there is, in a fixed order.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn step_all(&self) -> Result<()> {
        while self.step_flush()? || self.step_seal()? || self.step_sync()? || self.step_prepare()? || self.step_checkpoint_thread()? {}
        Ok(())
    }
}
