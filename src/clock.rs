//! Injected time and randomness. The only module that may ask the system for either.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the engine gets time and entropy from.
pub(crate) trait Clock: Send + Sync + Debug {
    /// Wall clock, milliseconds since 1970. May jump.
    fn wall_ms(&self) -> u64;
    /// Time since some fixed moment, that of a suspended machine included. Never jumps.
    fn monotonic(&self) -> Duration;
    /// 64 bits that differ from call to call and from process to process.
    fn entropy(&self) -> u64;
}

/// The operating system's clocks.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one module that reads the clock")]
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }

    fn monotonic(&self) -> Duration {
        // Not `Instant`, which stands still while the machine is suspended: entries would outlive their time.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    fn entropy(&self) -> u64 {
        RandomState::new().hash_one((std::process::id(), self.wall_ms()))
    }
}

/// The store's own time: the wall clock at open, never before the latest time the store has recorded, then monotonic.
///
/// So an expired entry stays expired when the wall clock goes back, and a relative expiry is right whatever the wall clock said before.
#[derive(Debug, Clone)]
pub(crate) struct StoreTime {
    clock: Arc<dyn Clock>,
    base_ms: u64,
    started: Duration,
}

impl StoreTime {
    pub(crate) fn new(clock: Arc<dyn Clock>, recorded_ms: u64) -> Self {
        let base_ms = clock.wall_ms().max(recorded_ms);
        let started = clock.monotonic();
        Self { clock, base_ms, started }
    }

    /// Milliseconds; never less than any value it gave, or recorded, before.
    pub(crate) fn now_ms(&self) -> u64 {
        self.base_ms + self.monotonic().saturating_sub(self.started).as_millis() as u64
    }

    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
}
