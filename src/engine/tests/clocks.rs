//! Clocks that jump, hosts that boot with a wrong clock, closes, kills and waits, drawn from seeds,
//! against the true time.

use std::sync::Arc;
use std::time::Duration;

use super::internals::{now_ms, wall_ms, write_manifest};
use super::seeds::{each_seed, seeds};
use super::store::{Store, close, small};
use crate::clock::Clock;
use crate::config::Ack;
use crate::engine::PutOptions;
use crate::io::sim::{PowerCut, SimDisk};

/// An entry with an expiry, which the sync after its put made durable.
struct Entry {
    key: u64,
    /// Store time at which it expires.
    expires_ms: u64,
    was_missed: bool,
}

struct Run {
    store: Store,
    seed: u64,
    draws: u64,
    /// True time, ms.
    now: u64,
    /// Store time minus true time, as the open store has it.
    drift: i128,
    /// The latest wall time that this life can have recorded.
    wall_max: u64,
    /// Whether the wall clock jumped since this life began.
    has_jumped: bool,
    /// The report of this life's opening.
    alive_until: u64,
    /// True time of the last mark, of the last sync, and of the sync before it, whose mark is
    /// durable.
    marked: u64,
    synced: u64,
    witnessed: u64,
    entries: Vec<Entry>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let store = Store::closed(small(), SimDisk::new(seed), seed);
        store.clock.reboot(Duration::from_secs(1));
        let mut run = Self {
            store,
            seed,
            draws: 0,
            now: 0,
            drift: 0,
            wall_max: 0,
            has_jumped: false,
            alive_until: 0,
            marked: 0,
            synced: 0,
            witnessed: 0,
            entries: Vec::new(),
        };
        run.store.open();
        run.began();
        run
    }

    fn below(&mut self, n: u64) -> u64 {
        self.draws += 1;
        xxhash_rust::xxh3::xxh3_64_with_seed(&self.draws.to_le_bytes(), self.seed) % n
    }

    fn wait(&mut self, ms: u64) {
        self.store.clock.advance(Duration::from_millis(ms));
        self.now += ms;
    }

    /// From a second to a year, back or forth.
    fn jump(&mut self) {
        let size = [1_000, 60_000, 86_400_000, 31_536_000_000][self.below(4) as usize];
        let ms = 1 + self.below(size) as i64;
        let is_back = self.below(2) == 0;
        self.store.clock.jump_wall(if is_back { -ms } else { ms });
        self.has_jumped = true;
    }

    fn began(&mut self) {
        let engine = self.store.engine();
        self.drift = i128::from(now_ms(engine)) - i128::from(self.now);
        self.wall_max = wall_ms(engine);
        self.alive_until = engine.recovery().alive_until_ms;
        self.has_jumped = false;
        (self.marked, self.synced, self.witnessed) = (self.now, self.now, self.now);
    }

    fn sync(&mut self) {
        (self.marked, self.synced, self.witnessed) = (self.now, self.now, self.synced);
    }

    fn live(&mut self) {
        for _ in 0..1 + self.below(8) {
            match self.below(6) {
                0 | 1 => {
                    let (key, ttl) = (self.draws, 1 + self.below(200_000));
                    let options = PutOptions::new().ttl(Duration::from_millis(ttl)).ack(Ack::Host);
                    let engine = self.store.engine();
                    engine.put((&key.to_le_bytes()).into(), b"value", &options).unwrap();
                    self.entries.push(Entry { key, expires_ms: now_ms(engine) + ttl, was_missed: false });
                    self.sync();
                }
                2 => {
                    let ms = self.below(100_000);
                    self.wait(ms);
                }
                3 => self.jump(),
                4 => {
                    self.store.engine().step_alive();
                    if self.now - self.marked >= 50_000 {
                        self.marked = self.now;
                    }
                }
                _ => self.check_entries(),
            }
            self.wall_max = self.wall_max.max(self.store.clock.wall_ms());
        }
    }

    /// An entry is there until its expiry in store time, and never again afterwards.
    fn check_entries(&mut self) {
        let engine = Arc::clone(self.store.engine());
        let now = now_ms(&engine);
        assert_eq!(i128::from(now) - i128::from(self.now), self.drift, "seed {}: an open store counts true time", self.seed);
        for entry in &mut self.entries {
            let found = engine.get((&entry.key.to_le_bytes()).into(), true).unwrap().is_some();
            assert_eq!(found, now < entry.expires_ms, "seed {}: expires at {} of {now}", self.seed, entry.expires_ms);
            assert!(!(found && entry.was_missed), "seed {}: an expired entry came back", self.seed);
            entry.was_missed |= !found;
        }
        // Makes it durable that they have expired.
        engine.put((&[0]).into(), b"", &PutOptions::new().ack(Ack::Host)).unwrap();
        self.sync();
    }

    /// The store stops, time passes, and another process opens it, perhaps after a reboot.
    fn restart(&mut self) {
        if self.below(3) == 0 {
            close(self.store.engine()).unwrap();
            (self.marked, self.witnessed) = (self.now, self.now);
        }
        self.store.engine = None;
        let (ended, closed_ms, is_reboot) = (self.now, self.below(200_000), self.below(2) == 0);
        self.wait(closed_ms);
        self.store.disk = match is_reboot {
            false => self.store.disk.after_kill(),
            true => {
                let up = self.below(100_000);
                self.store.clock.reboot(Duration::from_millis(1 + up));
                let damage = [PowerCut::LoseAll, PowerCut::KeepAll][self.below(2) as usize];
                self.store.disk.after_power_cut(self.seed, damage)
            }
        };
        if self.below(2) == 0 {
            self.jump();
        }
        let (drift, marked, witnessed) = (self.drift, self.marked, self.witnessed);
        let (wall_max, has_jumped, before) = (self.wall_max, self.has_jumped, self.alive_until);
        self.store.open();
        self.began();
        let (engine, wall) = (self.store.engine(), self.store.clock.wall_ms());
        let report = engine.recovery();
        let what = format!("seed {}, draw {}: {report:?}", self.seed, self.draws);
        assert!(report.damaged.is_empty(), "{what}");
        // What the present wall clock would have shown.
        let wall_at = |then: u64| wall.saturating_sub(self.now - then);
        if !is_reboot || !has_jumped {
            assert_eq!(self.drift, drift, "{what}: the time for which it was closed is known");
            let known_from = if is_reboot { witnessed } else { marked };
            let known = wall_at(known_from).saturating_sub(2)..=wall_at(ended);
            assert!(known.contains(&report.alive_until_ms), "{what}: in {known:?}");
        }
        let least = i128::from(witnessed) + drift;
        assert!(i128::from(now_ms(engine)) >= least, "{what}: store time went back below {least}");
        assert!(report.alive_until_ms <= wall, "{what}: in the future");
        assert!(!is_reboot || report.alive_until_ms <= wall_max.max(before), "{what}: later than any clock of that life");
    }
}

/// 40 runs, or as many as `EVERWARM_CLOCK_SEEDS` says, from `EVERWARM_CLOCK_FIRST` on.
#[test]
fn a_clock_that_was_wrong_once_costs_nothing_later() {
    let entries = each_seed(seeds("CLOCK", 1, 40), "CLOCK", "a_clock_that_was_wrong_once", |seed| {
        let mut run = Run::new(seed);
        for _ in 0..40 {
            run.live();
            run.check_entries();
            run.restart();
            run.check_entries();
        }
        run.entries.len()
    });
    assert!(entries.iter().sum::<usize>() > entries.len() * 10);
}

/// A life under a clock that is a day ahead, between two lives under one that is right.
#[test]
fn a_day_ahead_in_an_earlier_life_neither_keeps_entries_nor_hides_a_stop() {
    const DAY: i64 = 86_400_000;
    for is_reboot in [false, true] {
        let mut store = Store::closed(small(), SimDisk::new(1), 1);
        store.clock.reboot(Duration::from_secs(1));
        store.open();
        store.clock.jump_wall(DAY);
        store.close();
        close(store.engine()).unwrap();
        store.engine = None;
        store.clock.jump_wall(-DAY);
        store.open();
        assert!(is_near(store.engine().recovery().clock_went_back, DAY));
        let options = PutOptions::new().ttl(Duration::from_secs(3)).ack(Ack::Host);
        store.engine().put((&[1]).into(), b"session", &options).unwrap();
        close(store.engine()).unwrap();
        store.engine = None;
        let closed_at = store.clock.wall_ms();
        store.clock.advance(Duration::from_secs(5));
        if is_reboot {
            store.clock.reboot(Duration::from_secs(2));
            store.disk = store.disk.after_power_cut(1, PowerCut::KeepAll);
        }
        store.open();
        assert!(store.get(&[1]).is_none(), "it expired while the store was closed");
        let alive_until = store.engine().recovery().alive_until_ms;
        assert!((closed_at - 2..=closed_at).contains(&alive_until), "{alive_until}, closed at {closed_at}");
        assert_eq!(store.engine().recovery().clock_went_back, Duration::ZERO);
    }
}

fn is_near(duration: Duration, ms: i64) -> bool {
    duration.as_millis().abs_diff(ms as u128) < 10
}

#[test]
fn mutations_after_the_last_sync_are_later_than_the_time_that_is_reported() {
    let mut store = Store::new(small());
    store.engine().put((&[1]).into(), b"old", &PutOptions::new().ack(Ack::Host)).unwrap();
    store.clock.advance(Duration::from_secs(10));
    let deleted_at = store.clock.wall_ms();
    store.put(&[2], b"lost");
    store.clock.advance(Duration::from_secs(10));
    // A manifest is durable at once, and says nothing about the mutations that are not synced.
    write_manifest(store.engine());
    store.power_cut(1, PowerCut::LoseAll);
    let report = store.engine().recovery();
    assert!(store.get(&[2]).is_none() && report.alive_until_ms <= deleted_at, "{report:?}");
}

#[test]
fn a_time_to_live_of_any_length_is_no_short_one() {
    let store = Store::new(small());
    let longest = [Duration::MAX, Duration::from_secs(u64::MAX / 1000 + 1), Duration::from_millis(u64::MAX) + Duration::from_millis(5)];
    for (key, ttl) in (0u8..).zip(longest) {
        store.engine().put((&[key]).into(), b"value", &PutOptions::new().ttl(ttl)).unwrap();
        store.clock.advance(Duration::from_secs(3_600));
        assert!(store.get(&[key]).is_some(), "{ttl:?}");
        assert!(store.engine().touch((&[key]).into(), Some(ttl)).unwrap().is_some());
        store.clock.advance(Duration::from_secs(3_600));
        assert!(store.get(&[key]).is_some(), "{ttl:?} after a touch");
    }
}
