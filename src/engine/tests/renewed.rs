//! Segments for which a write or a sync failed, in a process that ends before their entries are
//! elsewhere. Their files are never written again, and nothing is undone.

use std::io::ErrorKind;
use std::sync::Arc;

use super::internals::{location_of, rescue_failed, write_manifest};
use super::model::value;
use super::store::{Store, close, small};
use crate::config::{Ack, OnHostCrash, Options, RecoveryMode, WalValues};
use crate::engine::{PutOptions, Wait};
use crate::error::Error;
use crate::io::sim::{FaultOp, PowerCut, SimDisk};

const OPS: [FaultOp; 3] = [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages];

/// Segment files that were written again after a write or sync of them had failed.
pub(super) fn reused(disk: &SimDisk) -> Vec<String> {
    disk.reused().into_iter().filter(|name| name.starts_with("segment.")).collect()
}

/// A store whose values are in segments alone.
fn by_reference(options: Options) -> Store {
    Store::new(options.wal_values(WalValues::Never))
}

/// Lets the sync of the open segment fail, and writes a manifest that states the failure.
fn fail_open(store: &Store, op: FaultOp) {
    store.disk.fail(op, 1, ErrorKind::Other, false);
    let before = store.disk.faults_injected();
    drop(store.engine().step_sync());
    assert_eq!(store.disk.faults_injected(), before + 1, "{op:?}");
    write_manifest(store.engine());
}

/// Goes on with an image of the disk.
fn open_image(store: &mut Store, image: SimDisk) -> Result<(), Error> {
    store.engine = None;
    store.disk = image;
    store.try_open()
}

#[test]
fn a_segment_that_failed_is_not_written_by_the_next_process_either() {
    let mut renewed = 0;
    for (op, n) in OPS.into_iter().flat_map(|op| (0..40u64).map(move |n| (op, n))) {
        let mut store = Store::new(small().wal_values(WalValues::Never));
        let newest = |k: u64| (k..40 + n).rev().find(|v| v % 20 == k).map(|v| value(k, v, 2_000));
        for k in 0..40 + n {
            store.put(&(k % 20).to_le_bytes(), &newest(k % 20).filter(|_| k >= 20 + n).unwrap_or_else(|| value(0, k, 100)));
        }
        store.disk.fail(op, 1, ErrorKind::Other, false);
        store.engine().step_flush().unwrap();
        store.engine().step_sync().unwrap();
        assert_eq!(store.disk.faults_injected(), 1, "{op:?} {n}");
        // First a manifest states the failure: two copies, each written and synced. The kill comes
        // at one of the operations after that.
        store.disk.stop_at(store.disk.operations() + 5 + n % 8);
        drop(store.engine().step_all());
        store.kill();
        let report = store.engine().recovery().clone();
        renewed += report.segments_renewed;
        let check = |store: &Store, what: &str| {
            let missing = (0..20u64).filter(|k| store.get(&k.to_le_bytes()).is_none()).count();
            let is_newest = (0..20u64).all(|k| store.get(&k.to_le_bytes()).is_none_or(|found| Some(found) == newest(k)));
            assert!(is_newest && (missing == 0 || !report.damaged.is_empty()), "{op:?} {n}: {missing} missing {what}: {report:?}");
            // Only bytes that had not left the write buffer are lost with the process.
            assert!(op == FaultOp::Write || report.damaged.is_empty(), "{op:?} {n} {what}: {report:?}");
        };
        check(&store, "after the kill");
        store.engine().persist(Ack::Host).unwrap();
        assert!(reused(&store.disk).is_empty(), "{op:?} {n}: {:?}", reused(&store.disk));
        store.power_cut(n, PowerCut::LoseAll);
        check(&store, "after a power cut");
        assert!(store.engine().recovery().damaged.is_empty(), "{op:?} {n}: {:?}", store.engine().recovery());
        assert!(!store.disk.files().iter().any(|(name, _)| name.starts_with("renewed.")), "{op:?} {n}: {:?}", store.disk.files());
    }
    assert!(renewed > 40, "{renewed} segments got new files");
}

#[test]
fn a_segment_file_that_fails_in_recovery_is_replaced_and_loses_nothing() {
    let mut renewed = 0;
    for (op, nth) in OPS.into_iter().flat_map(|op| (1..12).map(move |nth| (op, nth))) {
        let mut store = Store::new(small().wal_values([WalValues::Never, WalValues::Always][nth as usize % 2]));
        for k in 0..60u64 {
            store.put(&(k % 40).to_le_bytes(), &value(k % 40, k, 2_000));
        }
        store.engine().step_flush().unwrap();
        let image = store.disk.after_kill();
        image.fail(op, nth, ErrorKind::Other, false);
        store.engine = None;
        store.disk = image;
        // An opening fails where a manifest is written: then nothing has changed.
        if store.try_open().is_err() {
            store.disk.heal();
            store.open();
        }
        renewed += store.engine().recovery().segments_renewed;
        assert!(store.engine().recovery().damaged.is_empty(), "{op:?} {nth}: {:?}", store.engine().recovery());
        assert!(reused(&store.disk).is_empty(), "{op:?} {nth}: {:?}", reused(&store.disk));
        store.power_cut(nth, PowerCut::LoseAll);
        for k in 0..40u64 {
            let newest = if k < 20 { k + 40 } else { k };
            assert_eq!(store.get(&k.to_le_bytes()), Some(value(k, newest, 2_000)), "{op:?} {nth}: {k}");
        }
    }
    assert!(renewed > 3, "{renewed} segments got new files");
}

#[test]
fn what_was_moved_into_a_segment_that_fails_is_still_durable() {
    let put = |store: &Store, key: u64, version: u64, len: usize| {
        let options = PutOptions::new().wait(Wait::No);
        for _ in 0..20 {
            match store.engine().put((&key.to_le_bytes()).into(), &value(key, version, len), &options) {
                Err(Error::WouldBlock) if store.engine().step_all().is_ok() => {}
                done => return done.is_ok(),
            }
        }
        false
    };
    let (mut runs, mut failed) = (0, 0);
    for (op, nth, more) in OPS.into_iter().flat_map(|op| (1..30).step_by(3).flat_map(move |nth| (1..26).map(move |more| (op, nth, more)))) {
        let mut store = by_reference(small().flash(512 << 10));
        for key in 0..10 {
            assert!(put(&store, key, 0, 2_000));
        }
        store.engine().persist(Ack::Host).unwrap();
        // These entries stay, and so move from segment to segment as later puts fill the store.
        assert!((0..150).all(|n| put(&store, 10 + n % 10, n, 5_000)));
        assert!(store.engine().stats().reinserted > 0 && store.engine().stats().evicted == 0, "{:?}", store.engine().stats());
        store.disk.fail(op, nth, ErrorKind::Other, false);
        store.disk.stop_after_fault(more);
        let _until_it_stops = (150..250).all(|n| !store.disk.has_stopped() && put(&store, 10 + n % 10, n, 5_000));
        runs += u64::from(store.disk.faults_injected() > 0);
        failed += store.engine().stats().segments_quarantined;
        let evicted = store.engine().stats().evicted > 0;
        store.power_cut(nth, PowerCut::LoseAll);
        let missing = (0..10).filter(|key: &u64| store.get(&key.to_le_bytes()) != Some(value(*key, 0, 2_000))).count();
        let report = store.engine().recovery();
        assert!(missing == 0 || evicted || !report.damaged.is_empty(), "{op:?} {nth}, and {more} more: {missing} are missing: {report:?}");
    }
    assert!(runs > 500 && failed > 100, "{runs} runs, {failed} segments failed");
}

#[test]
fn a_moved_version_that_cannot_be_read_brings_nothing_older_back() {
    for (states_it, cuts) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut store = by_reference(small());
        let key = 7u64.to_le_bytes();
        store.put(&key, &value(7, 0, 2_000));
        (100..140u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 2_000)));
        store.engine().persist(Ack::Host).unwrap();
        store.put(&key, &value(7, 1, 2_000));
        store.disk.fail(FaultOp::Sync, 1, ErrorKind::Other, false);
        store.engine().step_sync().unwrap();
        store.engine().step_all().unwrap();
        store.engine().persist(Ack::Host).unwrap();
        assert_eq!(store.engine().stats().segments_quarantined, 1, "the second version has been moved by the rescue, and is durable");
        (300..304u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 2_000)));
        if states_it {
            fail_open(&store, FaultOp::Sync);
        }
        let at = location_of(store.engine(), (&key).into());
        let mut image = store.disk.after_power_cut(3, PowerCut::LoseAll);
        for block in 0..2 {
            image.fail_reads_of(&format!("segment.{}", at.segment), (u64::from(at.offset) / 4096 + block) * 4096);
        }
        // The disk as a next process finds it.
        let next = |image: &SimDisk| {
            let next = image.after_kill();
            if !states_it {
                next.fail(FaultOp::Sync, 1, ErrorKind::Other, false);
            }
            next
        };
        if cuts {
            // Two openings are cut off, each at any operation. The third one is not.
            let begun = next(&image);
            open_image(&mut store, begun.clone()).unwrap();
            let end = begun.operations();
            for (stop, second) in (1..end).flat_map(|stop| (1..end).map(move |second| (stop, second))) {
                let interrupted = next(&image);
                interrupted.stop_at(stop);
                drop(open_image(&mut store, interrupted.clone()));
                let interrupted =
                    if second % 2 == 0 { interrupted.after_kill() } else { interrupted.after_power_cut(stop, PowerCut::KeepAll) };
                interrupted.stop_at(second);
                drop(open_image(&mut store, interrupted.clone()));
                open_image(&mut store, interrupted.after_kill()).unwrap();
                assert_eq!(store.get(&key), None, "{states_it} {stop} {second}: {:?}", store.engine().recovery());
            }
            continue;
        }
        store.options = store.options.recovery(RecoveryMode::Refuse);
        for _ in 0..3 {
            assert!(matches!(open_image(&mut store, next(&image)), Err(Error::Corrupt { .. })), "{states_it}: each opening is refused");
            image = store.disk.after_kill();
        }
        store.options = store.options.recovery(RecoveryMode::Serve);
        open_image(&mut store, next(&image)).unwrap();
        assert_eq!(store.get(&key), None, "{states_it}");
        let report = store.engine().recovery();
        // A sync that fails in each opening has failed for the second time by now, and costs
        // everything older.
        assert!((report.segments_renewed == 1 || !states_it) && !report.damaged.is_empty(), "{states_it}: {report:?}");
        store.kill();
        assert_eq!(store.get(&key), None, "{states_it}, opened again");
    }
}

#[test]
fn what_a_rescue_appends_during_a_sync_is_not_durable_by_it() {
    let mut store = by_reference(small());
    store.put(b"first", b"value");
    store.engine().persist(Ack::Host).unwrap();
    (0..20u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 2_000)));
    let before = store.engine().stats().durable;
    let wal = store.disk.files().into_iter().find(|(name, _)| name.starts_with("wal.")).unwrap().0;
    store.disk.fail(FaultOp::Sync, 1, ErrorKind::Other, false);
    let engine = Arc::clone(store.engine.as_ref().unwrap());
    let rescue = move || rescue_failed(&engine);
    let synced = store.disk.meanwhile(&wal, rescue, || store.engine().step_sync().unwrap());
    assert_eq!((synced, store.engine().stats().durable), (false, before));
    store.engine().step_all().unwrap();
    store.engine().persist(Ack::Host).unwrap();
    store.power_cut(1, PowerCut::LoseAll);
    assert!((0..20u64).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))));
}

#[test]
fn a_segment_that_cannot_begin_is_stated_when_the_next_has_no_room() {
    let mut store = by_reference(small());
    // No segment is ready yet. The first of two cannot be written, and then there is no room for
    // the second.
    store.disk.fail(FaultOp::Write, 1, ErrorKind::Other, false);
    store.disk.fail(FaultOp::Create, 2, ErrorKind::StorageFull, false);
    store.engine().step_prepare().unwrap();
    let stats = store.engine().stats();
    assert_eq!((stats.segments_quarantined, stats.disk_full), (1, 1));
    let image = store.disk.after_kill();
    open_image(&mut store, image).unwrap();
    (0..100u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 9_000)));
    assert_eq!(reused(&store.disk), Vec::<String>::new());
}

#[test]
fn a_new_file_that_cannot_be_made_or_named_refuses_the_opening() {
    let faults = [
        (FaultOp::Rename, ErrorKind::StorageFull),
        (FaultOp::Rename, ErrorKind::Other),
        (FaultOp::Create, ErrorKind::PermissionDenied),
        (FaultOp::Create, ErrorKind::StorageFull),
    ];
    for (op, how) in faults {
        let mut store = by_reference(small());
        (0..80u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 2_000)));
        store.engine().step_all().unwrap();
        (80..84u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 2_000)));
        fail_open(&store, FaultOp::Sync);
        let image = store.disk.after_kill();
        image.fail(op, 1, how, true);
        let refused = open_image(&mut store, image);
        assert!(matches!(refused, Err(Error::Io { .. })), "{op:?} {how:?}: {refused:?}");
        store.disk.heal();
        store.open();
        assert!(store.engine().recovery().damaged.is_empty(), "{op:?} {how:?}: {:?}", store.engine().recovery());
        assert!((0..84u64).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))), "{op:?} {how:?}");
    }
}

#[test]
fn a_new_file_takes_the_room_of_one_that_is_of_no_use() {
    let mut store = by_reference(small().flash(512 << 10));
    for n in 0..200u64 {
        store.put(&(n % 20).to_le_bytes(), &value(n % 20, n, 4_000));
    }
    store.close();
    (0..3u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 4_000)));
    fail_open(&store, FaultOp::Sync);
    let image = store.disk.after_kill();
    image.capacity(image.files().iter().map(|(_, len)| len).sum());
    open_image(&mut store, image).unwrap();
    assert!(
        store.engine().recovery().segments_renewed == 1 && store.engine().recovery().damaged.is_empty(),
        "{:?}",
        store.engine().recovery()
    );
    for n in 0..20u64 {
        let newest = if n < 3 { 0 } else { 180 + n };
        assert_eq!(store.get(&n.to_le_bytes()), Some(value(n, newest, 4_000)), "{n}");
    }
}

#[test]
fn a_store_that_failed_as_a_whole_still_states_its_failed_segments() {
    let mut store = by_reference(small());
    (0..20u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 2_000)));
    store.disk.fail(FaultOp::SyncDroppingPages, 1, ErrorKind::Other, true);
    store.engine().step_flush().unwrap();
    assert!(store.engine().step_all().is_err(), "no segment can be synced, and not the WAL either");
    store.disk.heal();
    let engine = store.engine.take().unwrap();
    assert!(close(&engine).is_err());
    drop(engine);
    let image = store.disk.after_kill();
    open_image(&mut store, image).unwrap();
    assert!(reused(&store.disk).is_empty() && store.engine().recovery().segments_renewed > 0);
    store.power_cut(1, PowerCut::LoseAll);
    assert!((0..20u64).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))));
}

#[test]
fn a_new_file_that_failed_is_not_written_again_either() {
    let mut interrupted = 0;
    for stop in 1..40 {
        let mut store = by_reference(small());
        (0..20u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 2_000)));
        store.engine().step_flush().unwrap();
        fail_open(&store, FaultOp::Sync);
        let image = store.disk.after_kill();
        image.fail(FaultOp::Sync, 1, ErrorKind::Other, false);
        image.stop_at(stop);
        drop(open_image(&mut store, image));
        store.engine = None;
        interrupted += u64::from(store.disk.has_stopped() && store.disk.faults_injected() > 0);
        let image = store.disk.after_kill();
        open_image(&mut store, image).unwrap();
        assert_eq!(reused(&store.disk), Vec::<String>::new(), "{stop}");
    }
    assert!(interrupted > 5, "{interrupted}");
}

#[test]
fn a_cold_opening_that_is_refused_keeps_the_failed_segments_stated() {
    let mut store = by_reference(small().on_host_crash(OnHostCrash::Cold));
    (0..20u64).for_each(|n| store.put(&n.to_le_bytes(), &value(n, 0, 2_000)));
    fail_open(&store, FaultOp::Sync);
    let image = store.disk.after_power_cut(1, PowerCut::KeepAll);
    // The manifest cannot be written.
    image.fail(FaultOp::Write, 1, ErrorKind::Other, true);
    assert!(open_image(&mut store, image).is_err());
    store.disk.heal();
    store.options = small().wal_values(WalValues::Never);
    store.open();
    assert!(store.engine().recovery().damaged.is_empty(), "{:?}", store.engine().recovery());
    assert!((0..20u64).all(|n| store.get(&n.to_le_bytes()) == Some(value(n, 0, 2_000))));
}
