//! Who calls the background steps: threads, or whoever waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Engine, heat};
use crate::concurrent::{Event, lock};
use crate::error::Result;

/// How often a full disk is asked whether it has room again.
const SPACE_RETRY: Duration = Duration::from_millis(200);

/// How old the newest record of the time becomes in a store that nobody changes. The thread that looks has other things to do, so that a minute is kept.
const ALIVE_INTERVAL: Duration = Duration::from_secs(50);

/// How background work gets done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// By a thread for each kind of step.
    Threads,
    /// By whoever must wait for it, on its own thread: deterministic.
    #[cfg(any(test, fuzzing))]
    Inline,
}

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
            if e.failure.get().is_some() {
                let _stated_if_it_can = e.state_failed(&mut lock(&e.manifest));
            }
        };
        let checkpoint: fn(&Engine) = |e| e.run(&e.events.checkpoint, Engine::step_checkpoint_thread, Engine::idle_checkpoint);
        let sync: fn(&Engine) = |e| e.run(&e.events.sync, Engine::step_sync_when_due, Engine::idle_sync);
        let heat: fn(&Engine) = |e| e.run(&e.events.heat, Engine::step_warmth, |_| Idle::AtMost(heat::INTERVAL));
        let bodies = [("flush", flush), ("sync", sync), ("prepare", prepare), ("checkpoint", checkpoint), ("heat", heat)];
        for (name, body) in bodies {
            let shared = Arc::clone(engine);
            match thread::Builder::new().name(format!("everwarm-{name}")).spawn(move || body(&shared)) {
                Ok(thread) => threads.0.push(thread),
                Err(error) => {
                    engine.stop();
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
            if self.closing.load(Ordering::Acquire) || self.failure.get().is_some() {
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

    /// Tells the threads to end.
    pub(super) fn stop(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Wakes the threads, and everybody who waits for them.
    pub(super) fn wake_all(&self) {
        let events = &self.events;
        for event in [&events.flush, &events.sync, &events.prepare, &events.checkpoint, &events.heat] {
            event.signal();
        }
        self.events.room.signal();
        self.events.durable.signal_all();
        self.events.stop.signal();
    }

    /// Records that the store is alive, if nothing else did for a while.
    pub(crate) fn step_alive(&self) {
        let recent = self.time.now_ms().saturating_sub(ALIVE_INTERVAL.as_millis() as u64);
        self.record_time_passed(recent);
    }

    /// What is of use to the next process, and what the last one left for this one.
    fn step_warmth(&self) -> Result<bool> {
        self.step_alive();
        Ok(self.step_refill()? || self.step_heat()?)
    }

    /// What is full is sealed; a sync, if somebody waits for one, the oldest unsynced mutation is old enough, or there are too many bytes.
    fn step_sync_when_due(&self) -> Result<bool> {
        let sealed = self.step_seal()?;
        let due = self.sync_now.load(Ordering::Acquire)
            || self.until_sync() == Some(Duration::ZERO)
            || self.unsynced_bytes() > self.settings.sync_bytes;
        Ok((due && self.until_sync_retry().is_zero() && self.step_sync()?) || sealed)
    }

    /// Until a sync is due. While others sync, this looks once in an interval, and need not be woken for every mutation that is the first after a sync.
    fn idle_sync(&self) -> Idle {
        let syncs = self.counters.syncs.load(Ordering::Relaxed);
        if self.marks.syncs_seen.swap(syncs, Ordering::Relaxed) != syncs {
            return Idle::AtMost(self.until_sync().unwrap_or(self.settings.sync_interval));
        }
        self.sync_rests.store(true, Ordering::SeqCst);
        self.until_sync().map_or(Idle::UntilEvent, Idle::AtMost)
    }

    /// Time until the oldest unsynced mutation must be synced. `None` if there is none.
    fn until_sync(&self) -> Option<Duration> {
        let since = self.marks.unsynced_since_ms.load(Ordering::SeqCst);
        (since > 0).then(|| self.settings.sync_interval.saturating_sub(self.unsynced_age()).max(self.until_sync_retry()))
    }

    /// Time until a sync that could not be done is tried again.
    pub(super) fn until_sync_retry(&self) -> Duration {
        Duration::from_millis(self.marks.sync_retry_ms.load(Ordering::Acquire)).saturating_sub(self.time.monotonic())
    }

    /// What lets the manifest name more: a checkpoint that is due, and room for notes.
    fn step_checkpoint_thread(&self) -> Result<bool> {
        Ok(self.step_grow()? | self.step_checkpoint(false)?)
    }

    fn idle_checkpoint(&self) -> Idle {
        if self.manifest_space_denied.load(Ordering::Acquire) { Idle::Pause(SPACE_RETRY) } else { Idle::UntilEvent }
    }

    /// If the disk was full, everybody who waits for room would ask for it again and again.
    fn idle_prepare(&self) -> Idle {
        if self.segment_space_denied.load(Ordering::Acquire) { Idle::Pause(SPACE_RETRY) } else { Idle::UntilEvent }
    }

    /// Waits for `event`, or does the work that will bring it about.
    pub(super) fn wait(&self, event: &Event, seen: u64, timeout: Option<Duration>) {
        match self.driver {
            Mode::Threads => {
                event.wait(seen, timeout);
            }
            #[cfg(any(test, fuzzing))]
            Mode::Inline => {
                // A failure is recorded in the engine, where the caller looks next.
                let _recorded = self.step_all();
            }
        }
    }

    /// All work there is, in a fixed order.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn step_all(&self) -> Result<()> {
        while self.step_flush()? || self.step_seal()? || self.step_sync()? || self.step_prepare()? || self.step_checkpoint_thread()? {}
        Ok(())
    }
}
