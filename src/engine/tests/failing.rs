//! Disks that fail or are full: no operation is acknowledged that did not happen, and service
//! returns when it can.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::internals::{failure, open_inline, open_with_threads, write_manifest};
use super::model::value;
use super::store::{Store, small};
use crate::clock::SystemClock;
use crate::concurrent::Event;
use crate::config::{Ack, Options, WalValues};
use crate::engine::{Condition, DeleteOptions, Engine, PutOptions, Wait};
use crate::error::Error;
use crate::io::sim::{FaultOp, PowerCut, SimDisk};

fn put_now(engine: &Engine, key: u64, len: usize) -> Result<(), Error> {
    let options = PutOptions::new().wait(Wait::No);
    engine.put((&key.to_le_bytes()).into(), &value(key, 0, len), &options).map(drop)
}

/// Puts until there is no room, with all background work in between. Returns how many puts were
/// acknowledged.
fn fill_with(engine: &Engine, from: u64, max: u64, len: usize) -> u64 {
    for n in from..from + max {
        loop {
            match put_now(engine, n, len) {
                Ok(()) => break,
                Err(Error::WouldBlock) => {
                    let before = engine.stats();
                    engine.step_all().unwrap();
                    let after = engine.stats();
                    if after.disk_full > before.disk_full && put_now(engine, n, len).is_err() {
                        return n - from;
                    }
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
    max
}

#[test]
fn a_name_whose_sync_failed_is_durable_before_its_segment_is_used() {
    // The last creation matters: the next one would sync the directory again.
    for (nth, count) in (1..20).flat_map(|nth| (100..800).step_by(50).map(move |count| (nth, count))) {
        let mut store = Store::new(small());
        store.disk.fail(FaultOp::SyncDir, nth, std::io::ErrorKind::StorageFull, false);
        for n in 0..count {
            while put_now(store.engine(), n % 100, 2_000).is_err() {
                assert!(failure(store.engine()).is_none(), "{nth}");
                store.engine().step_all().unwrap();
            }
        }
        store.engine().persist(Ack::Host).unwrap();
        store.power_cut(nth, PowerCut::LoseAll);
        assert!(store.engine().recovery().damaged.is_empty(), "{nth}: {:?}", store.engine().recovery());
        for n in 0..count.min(100) {
            assert_eq!(store.get(&n.to_le_bytes()), Some(value(n, 0, 2_000)), "{nth}: {n}");
        }
    }
}

#[test]
fn a_store_on_a_full_disk_is_opened_again_with_all_its_entries() {
    let mut store = Store::new(small());
    let used: u64 = store.disk.files().iter().map(|(_, len)| len).sum();
    store.disk.capacity(used + (500 << 10));
    put_all(store.engine(), 0..300).unwrap();
    let there: Vec<u64> = (0..300).filter(|n: &u64| store.get(&n.to_le_bytes()).is_some()).collect();
    assert!((20..299).contains(&there.len()), "{} fit", there.len());
    let used: u64 = store.disk.files().iter().map(|(_, len)| len).sum();
    store.disk.capacity(used);
    store.kill();
    assert!(store.engine().recovery().damaged.is_empty());
    assert!(there.iter().all(|n| store.get(&n.to_le_bytes()) == Some(value(*n, 0, 2_000))));
    put_all(store.engine(), 300..400).unwrap();
    store.disk.capacity(1 << 30);
    put_all(store.engine(), 400..600).unwrap();
    assert!((400..600u64).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))));
}

/// Puts `numbers`, each with all background work that it waits for.
fn put_all(engine: &Engine, numbers: std::ops::Range<u64>) -> Result<(), Error> {
    let key = |n: u64| n.to_le_bytes();
    numbers.into_iter().try_for_each(|n| engine.put((&key(n)).into(), &value(n, 0, 2_000), &PutOptions::new()).map(drop))
}

#[test]
fn a_disk_smaller_than_flash_evicts_as_if_flash_were_smaller() {
    let mut store = Store::new(small());
    let used: u64 = store.disk.files().iter().map(|(_, len)| len).sum();
    for segments in [1, 2, 5] {
        store.disk.capacity(used + segments * (64 << 10) + (200 << 10));
        put_all(store.engine(), 0..600).unwrap();
        let stats = store.engine().stats();
        assert!(stats.evicted > 0 && stats.disk_limits_flash, "{segments}: {stats:?}");
        // The newest entries are there, as far as there is room for them.
        let newest = 600 - 10 * segments;
        assert!((newest..600).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))), "{segments}");
        store.engine().persist(Ack::Host).unwrap();
        store.kill();
        assert!(store.engine().recovery().damaged.is_empty());
        assert!((newest..600).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))), "{segments}, after a kill");
    }
    // With room on the disk, all of flash is used.
    store.disk.capacity(1 << 30);
    put_all(store.engine(), 0..300).unwrap();
    assert!(!store.engine().stats().disk_limits_flash);
    assert!((0..300u64).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))));
}

#[test]
fn a_wal_without_room_on_the_disk_gets_that_of_the_oldest_segment() {
    let store = Store::new(small().wal_values(WalValues::Always));
    put_all(store.engine(), 0..150).unwrap();
    store.engine().persist(Ack::Host).unwrap();
    let used: u64 = store.disk.files().iter().map(|(_, len)| len).sum();
    store.disk.capacity(used);
    // Small records fill no segment, and the WAL grows for each.
    let key = |n: u64| n.to_le_bytes();
    for n in 0..40_000u64 {
        store.engine().delete((&key(1_000 + n)).into(), &DeleteOptions::new()).unwrap();
    }
    store.engine().persist(Ack::Host).unwrap();
    let stats = store.engine().stats();
    assert!(stats.disk_full > 0, "{stats:?}");
}

#[test]
fn a_disk_without_room_for_any_segment_is_a_typed_error() {
    let store = Store::new(small());
    let used: u64 = store.disk.files().iter().map(|(_, len)| len).sum();
    store.disk.capacity(used);
    let refused = put_all(store.engine(), 0..100).unwrap_err();
    assert!(matches!(refused, Error::DiskFull), "{refused}");
    store.disk.capacity(1 << 30);
    store.engine().step_all().unwrap();
    put_all(store.engine(), 0..100).unwrap();
    assert!((0..100u64).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))), "service returned with room");
}

#[test]
fn a_rescued_segment_holds_no_later_sync_back() {
    let mut store = Store::new(small().wal_values(WalValues::Never).sync_interval(Duration::from_secs(3_600)));
    put_all(store.engine(), 0..5).unwrap();
    store.engine().persist(Ack::Host).unwrap();
    put_all(store.engine(), 5..10).unwrap();
    store.disk.fail(FaultOp::Sync, 1, std::io::ErrorKind::Other, false);
    store.engine().persist(Ack::Host).unwrap();
    assert_eq!(store.engine().stats().segments_quarantined, 1);
    assert!(super::internals::until_sync_retry(store.engine()).is_zero(), "the next sync may begin at once");
    store.power_cut(1, PowerCut::LoseAll);
    assert!((0..10u64).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))));
}

/// The frames of records that could not be synced are not written before those of their rescue.
#[test]
fn no_frame_is_written_for_a_record_that_is_in_no_file() {
    let mut store = Store::new(small().wal_values(WalValues::Never));
    put_all(store.engine(), 0..5).unwrap();
    store.engine().persist(Ack::Host).unwrap();
    put_all(store.engine(), 0..5).unwrap();
    store.engine().step_flush().unwrap();
    store.disk.fail(FaultOp::SyncDroppingPages, 1, std::io::ErrorKind::Other, false);
    assert!(!store.engine().step_sync().unwrap());
    // The rescue does not come about.
    store.power_cut(1, PowerCut::KeepAll);
    assert!((0..5u64).all(|n| store.get(&n.to_le_bytes()).is_some()), "the durable versions are there");
}

/// The kernel writes the ring of the WAL back while a segment is being rescued, and power fails. A
/// record that is nowhere then takes no durable version away.
#[test]
fn a_rescue_that_a_power_cut_interrupts_buries_no_durable_version() {
    for stop in 1.. {
        let mut store = Store::new(small().wal_values(WalValues::Never));
        put_all(store.engine(), 0..5).unwrap();
        store.engine().persist(Ack::Host).unwrap();
        (0..5u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 1, 2_000)));
        store.engine().step_flush().unwrap();
        store.disk.fail(FaultOp::SyncDroppingPages, 1, std::io::ErrorKind::Other, false);
        assert!(!store.engine().step_sync().unwrap());
        store.disk.stop_at(store.disk.operations() + stop);
        let _stopped_or_not = store.engine().step_all();
        let has_stopped = store.disk.has_stopped();
        let image = store.disk.after_power_cut(stop, PowerCut::KeepAll);
        for (name, len) in image.files().into_iter().filter(|(name, _)| name.starts_with("ring.segments")) {
            image.overwrite(&name, 0, &vec![0; len as usize]);
        }
        store.engine = None;
        store.disk = image;
        store.open();
        assert!(store.engine().recovery().damaged.is_empty(), "stop {stop}: {:?}", store.engine().recovery());
        for n in 0..5u64 {
            let found = store.get(&n.to_le_bytes());
            assert!([0, 1].into_iter().any(|version| found == Some(value(n, version, 2_000))), "stop {stop}: {n} is gone");
        }
        if !has_stopped {
            break;
        }
    }
}

/// A rescue leaves out records that newer ones supersede. Such a record is nowhere after a power
/// cut, and the log does not end at its frame: what came later was acknowledged.
#[test]
fn a_superseded_record_of_a_failed_segment_does_not_end_the_log() {
    let mut store = Store::new(small().wal_values(WalValues::Never));
    put_all(store.engine(), 0..5).unwrap();
    store.engine().persist(Ack::Host).unwrap();
    for version in 1..3 {
        (0..5u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, version, 2_000)));
    }
    store.engine().step_flush().unwrap();
    store.disk.fail(FaultOp::SyncDroppingPages, 1, std::io::ErrorKind::Other, false);
    store.engine().persist(Ack::Host).unwrap();
    assert_eq!(store.engine().stats().segments_quarantined, 1);
    store.power_cut(1, PowerCut::LoseAll);
    assert!((0..5u64).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 2, 2_000))));
}

/// Catalog changes and syncs ask for room each for itself: a sync that succeeds takes nothing from
/// a change that waits.
#[test]
fn a_manifest_without_room_gets_it_while_syncs_succeed() {
    let store = Store::new(small());
    put_all(store.engine(), 0..200).unwrap();
    store.engine().persist(Ack::Host).unwrap();
    let used: u64 = store.disk.files().iter().map(|(_, len)| len).sum();
    store.disk.capacity(used);
    let value = [7; 1000];
    for n in 0..60u64 {
        store.engine().set_resume_token(&format!("token {n}"), &value, None).unwrap();
        store.put(&n.to_le_bytes(), b"value");
        store.engine().persist(Ack::Host).unwrap();
    }
    assert_eq!(store.engine().namespaces().resume_tokens().len(), 60);
}

#[test]
fn writers_that_wait_for_room_do_not_make_the_background_spin() {
    let disk = SimDisk::new(1);
    let options = small().memory(2 << 20);
    let (engine, threads) = open_with_threads(&options, &disk);
    let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
    disk.capacity(used + (400 << 10));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|writer| {
                let engine = &engine;
                scope.spawn(move || {
                    (0u64..400).try_for_each(|n| {
                        engine.put((&(n * 3 + writer).to_le_bytes()).into(), &value(n, 0, 2_000), &PutOptions::new()).map(drop)
                    })
                })
            })
            .collect();
        let never = Event::default();
        let pause = |ms| {
            never.wait(never.count(), Some(Duration::from_millis(ms)));
        };
        while engine.stats().disk_full < 2 {
            assert!(failure(&engine).is_none(), "a full disk is no failure");
            pause(5);
        }
        let before = engine.stats();
        pause(1_000);
        // One try each 200 ms and for each segment that was emptied, and a few more for the
        // manifest and the WAL. Thousands if each refusal woke the next try.
        let after = engine.stats();
        let (tries, emptied) = (after.disk_full - before.disk_full, after.segments_reclaimed - before.segments_reclaimed);
        assert!(tries < 60 + 3 * emptied, "{tries} tries in a second, {emptied} segments emptied");
        disk.capacity(1 << 30);
        for writer in writers {
            assert!(writer.join().unwrap().is_ok(), "they go on when there is room");
        }
    });
    engine.begin_close();
    threads.join();
    engine.finish().unwrap();
}

#[test]
fn a_disk_that_hangs_holds_back_what_needs_it_and_nothing_else() {
    for op in [FaultOp::Write, FaultOp::Sync, FaultOp::Read] {
        let disk = SimDisk::new(1);
        let options = small().flash(16 << 20).memory(2 << 20).sync_bytes(64 << 10);
        let (engine, threads) = open_with_threads(&options, &disk);
        let key = |n: u64| n.to_le_bytes();
        let get = |engine: &Engine, n: u64| engine.get((&key(n)).into(), true).unwrap().map(|v| v.to_vec());
        let patient = |ms| PutOptions::new().wait(Wait::UpTo(Duration::from_millis(ms)));
        for n in 0..600u64 {
            engine.put((&key(n)).into(), &value(n, 0, 2_000), &PutOptions::new()).unwrap();
        }
        disk.hold(op);
        let mut acknowledged = 600;
        let refused = loop {
            match engine.put((&key(acknowledged)).into(), &value(acknowledged, 0, 2_000), &patient(50)) {
                Ok(_) if acknowledged < 1_200 => acknowledged += 1,
                Ok(_) => break None,
                Err(refused) => break Some(refused),
            }
        };
        match op {
            FaultOp::Read => assert!(refused.is_none(), "a put reads nothing: {refused:?}"),
            _ => assert!(matches!(refused, Some(Error::TimedOut)), "{op:?}: {refused:?} after {acknowledged}"),
        }
        let image = std::thread::scope(|scope| {
            // This entry is on flash alone.
            let reader = (op == FaultOp::Read).then(|| scope.spawn(|| get(&engine, 0)));
            // The newest entry is in DRAM.
            assert_eq!(get(&engine, acknowledged - 1), Some(value(acknowledged - 1, 0, 2_000)), "{op:?}");
            // A kill at this moment loses no entry.
            let image = disk.after_kill();
            assert!(reader.as_ref().is_none_or(|reader| !reader.is_finished()));
            disk.release();
            assert!(reader.is_none_or(|reader| reader.join().unwrap() == Some(value(0, 0, 2_000))));
            image
        });
        let survivor = open_inline(&options, &image, Arc::new(SystemClock)).unwrap();
        assert!(survivor.recovery().damaged.is_empty(), "{op:?}: {:?}", survivor.recovery());
        for engine in [&survivor, &engine] {
            engine.put(b"more".into(), b"value", &PutOptions::new().ack(Ack::Host)).unwrap();
            for n in 0..acknowledged {
                assert_eq!(get(engine, n), Some(value(n, 0, 2_000)), "{op:?}: {n} of {acknowledged}");
            }
        }
        engine.begin_close();
        threads.join();
        engine.finish().unwrap();
    }
}

#[test]
fn a_manifest_without_room_to_grow_holds_back_catalog_changes() {
    let mut store = Store::new(small());
    store.put(b"key", b"value");
    store.engine().step_all().unwrap();
    let used: u64 = store.disk.files().iter().map(|(_, len)| len).sum();
    store.disk.capacity(used);
    let mut context = Context::from_waker(Waker::noop());
    let mut set = 0;
    {
        let engine = store.engine();
        let value = [7; 1000];
        let names: Vec<String> = (0..60).map(|n| format!("token {n}")).collect();
        let mut names = names.iter().peekable();
        let mut held_back = loop {
            let name = names.next().unwrap();
            let mut change = Box::pin(engine.set_resume_token_in_task(name, &value, Ack::Process));
            if change.as_mut().poll(&mut context).is_pending() {
                break change;
            }
            set += 1;
        };
        assert!((5..30).contains(&set), "{set} tokens fit");
        engine.step_all().unwrap();
        assert!(engine.stats().disk_full > 0);
        engine.put(b"key".into(), b"other", &PutOptions::new().ack(Ack::Host)).unwrap();
        assert!(held_back.as_mut().poll(&mut context).is_pending(), "others are served meanwhile");
        store.disk.capacity(1 << 30);
        engine.step_all().unwrap();
        assert!(matches!(held_back.as_mut().poll(&mut context), Poll::Ready(Ok(_))), "there is room again");
        drop(held_back);
        for name in names.by_ref().take(20) {
            engine.set_resume_token(name, &value, None).unwrap();
        }
        engine.persist(Ack::Host).unwrap();
        write_manifest(engine);
    }
    // The store is opened again on a disk without a free byte.
    let used: u64 = store.disk.files().iter().map(|(_, len)| len).sum();
    store.disk.capacity(used);
    store.power_cut(1, PowerCut::LoseAll);
    assert_eq!(store.engine().namespaces().resume_tokens().len(), set + 21);
    assert_eq!(store.get(b"key").as_deref(), Some(&b"other"[..]));
}

#[test]
fn a_read_that_fails_once_forgets_nothing() {
    let mut store = Store::new(small());
    store.put(b"key", &value(1, 0, 2_000));
    store.close();
    store.disk.fail(FaultOp::Read, 1, std::io::ErrorKind::Other, false);
    assert_eq!(store.get(b"key"), None);
    assert_eq!(store.engine().stats().read_errors, 1);
    assert_eq!(store.get(b"key"), Some(value(1, 0, 2_000)));
}

#[test]
fn a_sync_that_finds_no_room_is_acknowledged_once_there_is_room() {
    let store = Store::new(small().wal_values(WalValues::Always).sync_interval(Duration::from_millis(1)));
    let engine = Arc::clone(store.engine.as_ref().unwrap());
    store.put(b"first", &value(1, 0, 2_000));
    assert!(!store.disk.files().iter().any(|(name, _)| name.starts_with("wal.")));
    // The first file of the WAL does not fit.
    store.disk.fail(FaultOp::Create, 1, std::io::ErrorKind::StorageFull, true);
    let mut context = Context::from_waker(Waker::noop());
    let host = PutOptions::new().ack(Ack::Host);
    let mut waiting = Box::pin(engine.put_in_task(b"last".into(), b"value", &host));
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    engine.step_sync().unwrap();
    assert_eq!(engine.stats().disk_full, 1);
    assert!(waiting.as_mut().poll(&mut context).is_pending(), "it is not acknowledged as durable");
    assert!(failure(&engine).is_none(), "nor has the store failed");
    store.disk.heal();
    engine.step_all().unwrap();
    assert!(matches!(waiting.as_mut().poll(&mut context), Poll::Ready(Ok(Some(_)))));
}

#[test]
fn a_condition_that_cannot_be_read_is_an_error_and_changes_nothing() {
    let mut store = Store::new(small());
    store.put(b"key", &value(1, 0, 2_000));
    store.close();
    for condition in [Condition::IfAbsent, Condition::IfPresent] {
        store.disk.fail(FaultOp::Read, 1, std::io::ErrorKind::Other, false);
        let put = store.engine().put(b"key".into(), b"other", &PutOptions::new().condition(condition));
        assert!(matches!(put, Err(Error::Io { action: "read a segment in", .. })), "{put:?}");
    }
    assert_eq!(store.engine().put(b"key".into(), b"other", &PutOptions::new().condition(Condition::IfAbsent)).unwrap(), None);
    assert_eq!(store.get(b"key"), Some(value(1, 0, 2_000)));
}

#[test]
fn a_default_budget_fits_the_segments_of_a_larger_store() {
    let mut store = Store::new(Options::new("sim").memory(256 << 20).flash(64 << 30).segment_size(16 << 20));
    store.put(b"key", b"value");
    store.options = Options::new("sim").flash(1 << 30).segment_size(2 << 20);
    store.kill();
    assert_eq!(store.get(b"key").as_deref(), Some(&b"value"[..]));
}

#[test]
fn a_store_that_became_smaller_gives_its_files_back() {
    let large = Options::new("sim").memory(64 << 20).flash(64 << 20).segment_size(8 << 20);
    let mut store = Store::new(large);
    for n in 0..6_000u64 {
        store.put(&n.to_le_bytes(), &value(n, 0, 4_000));
    }
    let options = |memory| Options::new("sim").memory(memory).flash(1 << 20).segment_size(64 << 10);
    store.options = options(4 << 20);
    store.kill();
    let segments = |store: &Store| store.disk.files().iter().filter(|(name, len)| name.starts_with("segment.") && *len > 0).count();
    for n in 0..2_000u64 {
        store.put(&n.to_le_bytes(), &value(n, 1, 1_000));
        assert_eq!(store.get(&n.to_le_bytes()), Some(value(n, 1, 1_000)));
    }
    store.close();
    store.options = options(1 << 20);
    store.kill();
    assert!(segments(&store) <= 16, "{} segments", segments(&store));
    store.put(b"key", b"value");
    assert_eq!(store.get(b"key").as_deref(), Some(&b"value"[..]));
}

#[test]
fn an_index_that_outgrows_memory_while_it_is_empty_is_refused() {
    let mut store = Store::new(Options::new("sim").memory(256 << 20).flash(64 << 30).segment_size(16 << 20));
    store.put(b"key", b"value");
    store.options = Options::new("sim").memory(4 << 20).flash(1 << 30).segment_size(2 << 20);
    let after = store.disk.after_kill();
    store.engine = None;
    let refused = open_inline(&store.options, &after, store.clock.clone());
    assert!(matches!(refused, Err(Error::InvalidOption { name: "memory", .. })), "{refused:?}");
    store.options = store.options.memory(256 << 20);
    store.disk = after;
    store.open();
    assert_eq!(store.get(b"key").as_deref(), Some(&b"value"[..]));
}

#[test]
fn a_wal_that_failed_acknowledges_nothing_and_reads_go_on() {
    for op in [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages] {
        // Values in the WAL, so that a sync touches nothing else.
        let mut store = Store::new(small().wal_values(WalValues::Always));
        store.put(b"before", b"1");
        store.engine().persist(Ack::Host).unwrap();
        store.disk.fail(op, 1, std::io::ErrorKind::Other, false);
        let host = PutOptions::new().ack(Ack::Host);
        let refused = store.engine().put((b"before").into(), b"2", &host);
        assert!(matches!(refused, Err(Error::Failed { .. })), "{op:?}: {refused:?}");
        assert!(
            matches!(store.engine().put((b"other").into(), b"x", &PutOptions::new()), Err(Error::Failed { .. })),
            "the failure is sticky"
        );
        assert!(matches!(store.engine().persist(Ack::Host), Err(Error::Failed { .. })), "a sync is not retried");
        assert!(store.get(b"before").is_some(), "reads go on");
        store.power_cut(1, PowerCut::LoseAll);
        let found = store.get(b"before").unwrap();
        assert!(found == b"1" || found == b"2", "what was not acknowledged is in doubt, nothing else");
    }
}

#[test]
fn a_segment_that_cannot_be_written_is_given_up_and_loses_nothing() {
    for op in [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages] {
        for n in 0..30u64 {
            let mut store = Store::new(small().wal_values(WalValues::Never));
            let put = |store: &Store, n: u64, ack| {
                let options = PutOptions::new().ack(ack);
                store.engine().put((&(n % 20).to_le_bytes()).into(), &value(n % 20, n, 2_000), &options).unwrap();
            };
            for k in 0..40 + n {
                put(&store, k, Ack::Process);
            }
            store.engine().delete((&3u64.to_le_bytes()).into(), &DeleteOptions::new()).unwrap();
            // A flush, or the sync of a segment, is the next thing that happens.
            store.disk.fail(op, 1, std::io::ErrorKind::Other, false);
            store.engine().step_flush().unwrap();
            if op != FaultOp::Write {
                store.engine().step_sync().unwrap();
            }
            assert_eq!(store.disk.faults_injected(), 1, "{op:?} {n}");
            store.engine().step_all().unwrap();
            assert_eq!(store.engine().stats().segments_quarantined, 1, "{op:?} {n}: {:?}", store.engine().stats());
            let newest = |k: u64| (k..40 + n).rev().find(|v| v % 20 == k).map(|v| value(k, v, 2_000)).filter(|_| k != 3);
            let check = |store: &Store, what: &str| {
                for k in 0..20u64 {
                    assert_eq!(store.get(&k.to_le_bytes()), newest(k), "{op:?} {n}: key {k} {what}");
                }
            };
            check(&store, "at once");
            store.engine().persist(Ack::Host).unwrap();
            check(&store, "later");
            store.power_cut(n, if n % 2 == 0 { PowerCut::LoseAll } else { PowerCut::Random });
            check(&store, "after a power cut");
            assert_eq!(store.engine().stats().segments_quarantined, 0, "it gets a new file");
            put(&store, 7, Ack::Host);
            store.kill();
            assert_eq!(store.get(&7u64.to_le_bytes()), Some(value(7, 7, 2_000)));
        }
    }
}

#[test]
fn a_full_store_goes_on_or_returns_the_error_when_a_segment_fails() {
    let mut quarantined = 0;
    for op in [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages] {
        for nth in 1..90 {
            let store = Store::new(small().flash(512 << 10).wal_values([WalValues::Never, WalValues::Always][nth as usize % 2]));
            // Replaced entries free room when their segment drains, and hot entries move.
            let len = [1_000, 2_000, 5_000, 9_000][nth as usize / 2 % 4];
            for n in 0..400 {
                assert_eq!(fill_with(store.engine(), if n % 4 == 0 { n } else { n % 10 }, 1, len), 1);
                drop(store.get(&(n / 8 * 4).to_le_bytes()));
            }
            let full = store.engine().stats();
            assert!(full.segments_reclaimed > 0 && full.reinserted > 0, "it is full: {full:?}");
            store.disk.fail(op, nth, std::io::ErrorKind::Other, false);
            for n in 400..550 {
                let mut tries = 0;
                while let Err(e) = put_now(store.engine(), n % 10, len) {
                    tries += 1;
                    match e {
                        Error::WouldBlock if tries < 50 => drop(store.engine().step_all()),
                        Error::Failed { .. } => break,
                        e => panic!("{op:?} {nth}: put {n} after {tries} tries: {e}, {:?}", store.engine().stats()),
                    }
                }
            }
            // The fault may come only now, in the WAL: then the call returns the error.
            if store.engine().persist(Ack::Host).is_ok() {
                quarantined += store.engine().stats().segments_quarantined;
            }
        }
    }
    assert!(quarantined > 20, "{quarantined} segments failed and service went on");
}

#[test]
fn every_write_and_sync_of_a_scenario_may_fail_once_and_nothing_lies() {
    let scenario = |store: &Store| -> Vec<u64> {
        let mut acked = Vec::new();
        for n in 0..150u64 {
            let ack = if n % 7 == 0 { Ack::Host } else { Ack::Process };
            let options = PutOptions::new().ack(ack).wait(Wait::No);
            let put = store.engine().put((&(n % 20).to_le_bytes()).into(), &value(n % 20, n, 3_000), &options);
            match put {
                Ok(_) => acked.push(n),
                Err(Error::WouldBlock) => drop(store.engine().step_all()),
                Err(_) => break,
            }
        }
        acked
    };
    for op in [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages, FaultOp::Create, FaultOp::SyncDir] {
        for nth in 1..60 {
            let mut store = Store::new(small());
            store.disk.fail(op, nth, std::io::ErrorKind::Other, false);
            let acked = scenario(&store);
            if store.disk.faults_injected() == 0 {
                break;
            }
            if failure(store.engine()).is_none() {
                store.engine().persist(Ack::Host).ok();
                for key in 0..20u64 {
                    let newest = acked.iter().rev().find(|n| **n % 20 == key);
                    assert_eq!(store.get(&key.to_le_bytes()), newest.map(|n| value(key, *n, 3_000)), "{op:?} {nth}: key {key} at once");
                }
            }
            store.kill();
            for key in 0..20u64 {
                let newest = acked.iter().rev().find(|n| **n % 20 == key);
                let found = store.get(&key.to_le_bytes());
                let version = found.as_ref().map(|v| String::from_utf8_lossy(v).split(':').nth(1).unwrap().parse::<u64>().unwrap());
                // Every put was acknowledged at `Process` or higher, so a kill takes nothing away.
                // One more put may have happened without an acknowledgement.
                assert!(version >= newest.copied(), "{op:?} {nth}: key {key} is at {version:?} after {newest:?}");
            }
        }
    }
}
