//! Injected time and randomness. Only this module may ask the system for either.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The engine's source of time and entropy.
pub(crate) trait Clock: Send + Sync + Debug {
    /// Wall clock in milliseconds since 1970. May jump.
    fn wall_ms(&self) -> u64;
    /// Time since a fixed moment, including the time of a suspended machine. Never jumps.
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
        // `Instant` stands still while the machine is suspended, so entries would outlive their
        // expiry.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    fn entropy(&self) -> u64 {
        RandomState::new().hash_one((std::process::id(), self.wall_ms()))
    }
}

/// The store's own time. It starts at the wall clock at open, or at the latest time that the store
/// has recorded if that is later. From then on it is monotonic.
///
/// So an expired entry stays expired when the wall clock goes back. A relative expiry does not
/// depend on the wall clock's earlier values.
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

    /// Store time in milliseconds. Never less than an earlier result or a recorded time.
    pub(crate) fn now_ms(&self) -> u64 {
        self.base_ms + self.monotonic().saturating_sub(self.started).as_millis() as u64
    }

    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) use sim::{SPLITMIX_GAMMA, SimClock};

#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), allow(dead_code, reason = "the tests use more of it"))]
mod sim {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::Clock;
    use crate::id::mix;

    /// Step of the state of SplitMix64 (Steele, Lea and Flood, 2014).
    pub(crate) const SPLITMIX_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Time that moves only when a test moves it, and seeded entropy.
    #[derive(Debug)]
    pub(crate) struct SimClock {
        wall_ms: AtomicU64,
        monotonic_ns: AtomicU64,
        entropy: AtomicU64,
    }

    impl SimClock {
        /// Both clocks start at fixed times, the wall clock in November 2023. `seed` determines the
        /// entropy.
        pub(crate) fn new(seed: u64) -> Self {
            Self { wall_ms: AtomicU64::new(1_700_000_000_000), monotonic_ns: AtomicU64::new(0), entropy: AtomicU64::new(seed) }
        }

        /// Advances both clocks. The wall clock advances by the whole milliseconds of the sum.
        pub(crate) fn advance(&self, by: Duration) {
            let by = by.as_nanos() as u64;
            let before = self.monotonic_ns.fetch_add(by, Ordering::Relaxed);
            let whole_ms = (before + by) / 1_000_000 - before / 1_000_000;
            self.wall_ms.fetch_add(whole_ms, Ordering::Relaxed);
        }

        /// Sets the wall clock forward or back by `ms`.
        pub(crate) fn jump_wall(&self, ms: i64) {
            let jump = |wall: u64| Some(wall.saturating_add_signed(ms));
            let _always_jumps = self.wall_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, jump);
        }
    }

    impl Clock for SimClock {
        fn wall_ms(&self) -> u64 {
            self.wall_ms.load(Ordering::Relaxed)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_nanos(self.monotonic_ns.load(Ordering::Relaxed))
        }

        fn entropy(&self) -> u64 {
            let before = self.entropy.fetch_add(SPLITMIX_GAMMA, Ordering::Relaxed);
            mix(before.wrapping_add(SPLITMIX_GAMMA))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_moves_only_when_told() {
        let clock = SimClock::new(1);
        let start = clock.wall_ms();
        clock.advance(Duration::from_micros(1500));
        clock.advance(Duration::from_micros(1500));
        assert_eq!(clock.monotonic(), Duration::from_millis(3));
        assert_eq!(clock.wall_ms(), start + 3);
        clock.jump_wall(-1000);
        assert_eq!(clock.wall_ms(), start - 997);
        assert_eq!(clock.monotonic(), Duration::from_millis(3));
        assert_ne!(clock.entropy(), clock.entropy());
        assert_eq!(SimClock::new(2).entropy(), SimClock::new(2).entropy());
    }
}
