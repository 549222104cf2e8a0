//! Why mutations wait for room, as the statistics count it.

use super::internals;
use super::store::Store;
use crate::config::{Ack, Options, RecoveryMode, WalValues};
use crate::engine::{DeleteOptions, PutOptions, Wait};
use crate::error::Error;
use crate::io::sim::PowerCut;

/// Puts without waiting until one is refused. Returns how many were refused.
fn put_until_refused(store: &Store) -> u64 {
    let options = PutOptions::new().wait(Wait::No);
    let refused = |n: u64| match store.engine().put((&n.to_le_bytes()).into(), &[7; 1_000], &options) {
        Ok(_) => false,
        Err(Error::WouldBlock) => true,
        Err(other) => panic!("{other}"),
    };
    let puts = (0..10_000).find(|n| refused(*n));
    u64::from(puts.is_some())
}

#[test]
fn refusals_and_waits_are_counted_by_their_cause() {
    let store = Store::new(Options::new("x").memory(1 << 20).flash(1 << 20).segment_size(64 << 10));
    assert_eq!((store.engine().stats().refusals.total(), store.engine().stats().waits.total()), (0, 0));
    // Nobody flushes meanwhile, so the segment ring or the ready segments run out.
    assert_eq!(put_until_refused(&store), 1);
    let stats = store.engine().stats();
    assert_eq!((stats.refusals.total(), stats.waits.total()), (1, 0));
    assert_eq!(stats.refusals.segment + stats.refusals.segment_ring, 1, "{:?}", stats.refusals);
    // One that may wait does so once, for the same cause.
    store.put(b"waits", &[7; 1_000]);
    let stats = store.engine().stats();
    assert_eq!(stats.refusals.total(), 1);
    assert!(stats.waits.segment + stats.waits.segment_ring >= 1, "{:?}", stats.waits);
    assert_eq!(stats.waits.total(), stats.waits.segment + stats.waits.segment_ring);
}

#[test]
fn a_full_wal_ring_is_told_from_a_full_segment_ring() {
    let store = Store::new(Options::new("x").memory(1 << 20).flash(1 << 20).wal_values(WalValues::Always));
    let tombstones = DeleteOptions::new().wait(Wait::No);
    let refused = (0u64..20_000).find(|n| {
        store.engine().step_flush().unwrap();
        store.engine().step_prepare().unwrap();
        store.engine().delete((&n.to_le_bytes()).into(), &tombstones).is_err()
    });
    let refusals = store.engine().stats().refusals;
    assert!(refused.is_some());
    assert_eq!((refusals.wal_ring, refusals.total()), (1, 1), "{refusals:?}");
}

/// A store whose segments have room for many more records than its footers have DRAM.
fn tiny_records(memory: u64) -> Options {
    Options::new("x").memory(memory).flash(16 << 20).segment_size(1 << 20)
}

#[test]
fn a_segment_of_tiny_records_is_sealed_before_its_file_is_full() {
    let store = Store::new(tiny_records(1 << 20));
    let footers_max = internals::settings(store.engine()).footers_bytes_max;
    assert_eq!(footers_max, 64 << 10);
    for n in 0u64..20_000 {
        store.engine().delete((&n.to_le_bytes()).into(), &DeleteOptions::new()).unwrap();
        let held = internals::footer_bytes(store.engine());
        assert!(held <= footers_max, "{held} B after {n} deletes");
    }
    store.engine().step_all().unwrap();
    let stats = store.engine().stats();
    // One fifth of the first segment's bytes are tombstones.
    assert!(stats.segments_sealed + stats.segments_reclaimed >= 5, "{stats:?}");
    assert!(stats.memory_bytes <= 1 << 20, "{stats:?}");
}

#[test]
fn writers_wait_for_seals_while_footers_take_their_share() {
    let store = Store::new(tiny_records(1 << 20));
    let no_wait = DeleteOptions::new().wait(Wait::No);
    let refused = (0u64..20_000).find(|n| {
        // Everything but a seal.
        store.engine().step_flush().unwrap();
        store.engine().step_sync().unwrap();
        store.engine().step_prepare().unwrap();
        // A new segment waits for a flush first.
        let _refused_or_not = store.engine().delete((&n.to_le_bytes()).into(), &no_wait);
        store.engine().stats().refusals.footers > 0
    });
    assert!(refused.is_some_and(|n| n > 5_000), "{refused:?}, {:?}", store.engine().stats().refusals);
    store.engine().step_all().unwrap();
    store.engine().delete(b"x".as_slice().into(), &no_wait).unwrap();
}

#[test]
fn marks_alone_do_not_make_the_wal_longer_without_end() {
    let mut store = Store::new(tiny_records(1 << 20));
    store.put(b"key", b"value");
    let marks_max = internals::settings(store.engine()).marks_max;
    for _ in 0..300 {
        (0..100).for_each(|_| internals::record_time_passed(store.engine(), u64::MAX));
        store.engine().step_all().unwrap();
    }
    store.kill();
    let frames = store.engine().recovery().wal_frames;
    assert!((1..marks_max + 1_000).contains(&frames), "{frames} frames, {marks_max} marks are allowed");
    assert_eq!(store.get(b"key").as_deref(), Some(&b"value"[..]));
}

/// An opening with less memory has to seal segments whose footers exceed their share by far.
#[test]
fn footers_above_their_share_are_recovered_whole() {
    const KEYS: u64 = 22_000;
    let mut store = Store::new(tiny_records(64 << 20));
    for n in 0..KEYS {
        store.put(&n.to_le_bytes(), &[]);
    }
    store.engine().persist(Ack::Host).unwrap();
    for n in (0..KEYS).step_by(3) {
        store.engine().delete((&n.to_le_bytes()).into(), &DeleteOptions::new()).unwrap();
    }
    store.options = tiny_records(1 << 20);
    let durable = store.disk.after_power_cut(1, PowerCut::LoseAll);
    let images = [(store.disk.after_kill(), true), (durable, false)];
    for (image, deletes) in images {
        for stop in [10, 20, 30, 45, 60, u64::MAX] {
            store.engine = None;
            store.disk = image.after_kill();
            store.disk.stop_at(stop);
            let _stopped_or_not = store.try_open();
            store.disk = store.disk.after_kill();
            // Twice: from the WAL, and from the footers that the first opening wrote.
            for recovery in [RecoveryMode::Serve, RecoveryMode::Rebuild] {
                store.engine = None;
                store.options = store.options.clone().recovery(recovery);
                store.open();
                let report = store.engine().recovery();
                assert!(report.damaged.is_empty(), "stop {stop}: {report:?}");
                for n in 0..KEYS {
                    let is_there = !(deletes && n.is_multiple_of(3));
                    assert_eq!(store.get(&n.to_le_bytes()).is_some(), is_there, "stop {stop}, {recovery:?}: key {n}");
                }
                store.disk = store.disk.after_kill();
            }
        }
    }
}
