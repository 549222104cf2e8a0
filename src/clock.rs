//! Injected time and randomness. Only this module may ask the system for either.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The engine's source of time and entropy.
pub(crate) trait Clock: Send + Sync + Debug {
    /// Wall clock in milliseconds since 1970. May jump.
    fn wall_ms(&self) -> u64;
    /// Time since the host booted, including the time of a suspended machine. Never jumps.
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
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, whole_ms)
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

/// A duration in whole milliseconds. One that is too long for that is the longest.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Bits of a wall offset, with its sign.
pub(crate) const WALL_OFFSET_BITS: u32 = 48;
const WALL_OFFSET_MAX: i128 = (1 << (WALL_OFFSET_BITS - 1)) - 1;

/// A moment in the life of a store, on every clock that the store records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Store time, ms.
    pub(crate) store_ms: u64,
    /// The wall clock, in ms since 1970.
    pub(crate) wall_ms: u64,
    /// Time since the host booted, ms. `None` if it is unknown, or if the host booted since.
    pub(crate) boot_ms: Option<u64>,
}

impl Moment {
    /// The time by which the wall clock was ahead of store time, ms.
    pub(crate) fn wall_offset_ms(&self) -> i64 {
        let offset = i128::from(self.wall_ms) - i128::from(self.store_ms);
        offset.clamp(-WALL_OFFSET_MAX, WALL_OFFSET_MAX) as i64
    }

    /// Another moment of the same life, at which the wall clock was ahead of store time by
    /// `wall_offset_ms`. Store time and the time since the boot run together in one life.
    pub(crate) fn at(&self, store_ms: u64, wall_offset_ms: i64) -> Self {
        let boot_ms = match store_ms.checked_sub(self.store_ms) {
            Some(later) => self.boot_ms.map(|boot| boot.saturating_add(later)),
            None => self.boot_ms.and_then(|boot| boot.checked_sub(self.store_ms - store_ms)),
        };
        Self { store_ms, wall_ms: store_ms.saturating_add_signed(wall_offset_ms), boot_ms }
    }

    /// An earlier moment, if the wall clock has not jumped since.
    pub(crate) fn back_at(&self, store_ms: u64) -> Self {
        self.at(store_ms.min(self.store_ms), self.wall_offset_ms())
    }
}

/// The clocks of the host at an opening, to be compared with a recorded [`Moment`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostClocks {
    wall_ms: u64,
    boot_ms: u64,
}

impl HostClocks {
    pub(crate) fn read(clock: &dyn Clock) -> Self {
        // In this order: a pause in between makes a moment of the same boot seem earlier.
        let wall_ms = clock.wall_ms();
        Self { wall_ms, boot_ms: whole_ms(clock.monotonic()) }
    }

    /// Time since `past`, if the host did not boot since.
    fn in_one_boot_ms(&self, past: &Moment) -> Option<u64> {
        self.boot_ms.checked_sub(past.boot_ms?)
    }

    /// Time since `past`. Without a clock that ran through it is the difference of the wall clock,
    /// or zero if that clock went back.
    fn elapsed_ms(&self, past: &Moment) -> u64 {
        self.in_one_boot_ms(past).unwrap_or_else(|| self.wall_ms.saturating_sub(past.wall_ms))
    }

    /// Wall time of `past`, or an earlier time where it is not certain.
    ///
    /// In one boot it is measured from now, so it does not matter what the wall clock showed then.
    /// Otherwise it is what the wall clock showed. If the wall clock is behind that now, one of the
    /// two is wrong: then `before_ms` counts, a wall time before `past`.
    pub(crate) fn wall_of(&self, past: &Moment, before_ms: u64) -> u64 {
        match self.in_one_boot_ms(past) {
            // Both clocks are read in whole milliseconds, which may not begin together.
            Some(ago) => self.wall_ms.saturating_sub(ago.saturating_add(1)),
            None if past.wall_ms <= self.wall_ms => past.wall_ms,
            None => self.wall_ms.min(before_ms),
        }
    }

    /// How far the wall clock is behind what it showed at `past`.
    pub(crate) fn went_back_since(&self, past: &Moment) -> Duration {
        Duration::from_millis(past.wall_ms.saturating_sub(self.wall_ms))
    }
}

/// The store's own time, in which expiries are measured. It runs through all lives of the store and
/// never goes back.
///
/// It begins as the wall clock at the creation. While the store is open it runs with a clock that
/// does not jump. An opening adds the time for which the store was closed, as far as the host knows
/// it. So a wall clock that was wrong once does not matter later, and an expired entry stays
/// expired.
#[derive(Debug, Clone)]
pub(crate) struct StoreTime {
    clock: Arc<dyn Clock>,
    base_ms: u64,
    started_ms: u64,
}

impl StoreTime {
    /// Continues the time of a store whose last recorded moment is `past`.
    pub(crate) fn resume(clock: Arc<dyn Clock>, past: &Moment) -> Self {
        let now = HostClocks::read(clock.as_ref());
        Self { base_ms: past.store_ms.saturating_add(now.elapsed_ms(past)), started_ms: now.boot_ms, clock }
    }

    /// Store time in milliseconds. Never less than an earlier result or a recorded time.
    pub(crate) fn now_ms(&self) -> u64 {
        self.at_boot_ms(whole_ms(self.monotonic()))
    }

    /// The current moment.
    pub(crate) fn now(&self) -> Moment {
        let HostClocks { wall_ms, boot_ms } = HostClocks::read(self.clock.as_ref());
        Moment { store_ms: self.at_boot_ms(boot_ms), wall_ms, boot_ms: Some(boot_ms) }
    }

    /// Whole milliseconds on both sides: so the difference of the two clocks never changes.
    fn at_boot_ms(&self, boot_ms: u64) -> u64 {
        self.base_ms.saturating_add(boot_ms.saturating_sub(self.started_ms))
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

        /// The host booted `ago`.
        pub(crate) fn reboot(&self, ago: Duration) {
            self.monotonic_ns.store(ago.as_nanos() as u64, Ordering::Relaxed);
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

    const LAST: Moment = Moment { store_ms: 5_000, wall_ms: 9_000, boot_ms: Some(700) };

    #[test]
    fn a_moment_of_one_boot_is_measured_by_the_time_since_the_boot() {
        let now = HostClocks { wall_ms: 100, boot_ms: 1_000 };
        assert_eq!(now.elapsed_ms(&LAST), 300);
        // The wall clock went back by far more, and by how much does not matter.
        assert_eq!(HostClocks { wall_ms: 20_000, ..now }.wall_of(&LAST, 0), 20_000 - 300 - 1);
        assert_eq!(now.wall_of(&LAST, 0), 0);
        let mark = LAST.at(5_200, -1_000);
        assert_eq!(mark, Moment { store_ms: 5_200, wall_ms: 4_200, boot_ms: Some(900) });
        assert_eq!(now.elapsed_ms(&mark), 100);
        assert_eq!(LAST.back_at(4_000).boot_ms, None, "before the boot");
    }

    #[test]
    fn without_one_boot_a_wall_clock_that_went_back_is_not_believed() {
        let last = Moment { boot_ms: None, ..LAST };
        let later = HostClocks { wall_ms: 9_400, boot_ms: 1_000 };
        assert_eq!((later.elapsed_ms(&last), later.wall_of(&last, 7)), (400, 9_000));
        let back = HostClocks { wall_ms: 8_000, boot_ms: 1_000 };
        assert_eq!((back.elapsed_ms(&last), back.wall_of(&last, 7_500)), (0, 7_500));
        assert_eq!(back.wall_of(&last, 8_500), 8_000);
        assert_eq!(back.went_back_since(&last), Duration::from_secs(1));
        // A boot id that is known, and a clock that is not that of the same boot.
        assert_eq!(HostClocks { wall_ms: 9_400, boot_ms: 3 }.elapsed_ms(&LAST), 400);
    }

    #[test]
    fn clocks_of_any_value_are_compared_without_overflow() {
        let values = [0, 1, 1 << 47, u64::MAX / 2, u64::MAX - 1, u64::MAX];
        for (store_ms, wall_ms) in values.iter().flat_map(|a| values.map(|b| (*a, b))) {
            let moment = Moment { store_ms, wall_ms, boot_ms: Some(wall_ms) };
            for (other, boot_ms) in values.iter().flat_map(|a| values.map(|b| (*a, b))) {
                let moved = moment.at(other, moment.wall_offset_ms());
                let now = HostClocks { wall_ms: other, boot_ms };
                assert!(now.wall_of(&moved, 0) <= other && moment.back_at(other).store_ms <= store_ms);
                let clock = SimClock::new(1);
                clock.jump_wall(i64::MAX);
                assert!(StoreTime::resume(Arc::new(clock), &moved).now_ms() >= moved.store_ms);
            }
        }
    }

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
