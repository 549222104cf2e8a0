//! Disks that fail or are full: nothing is acknowledged that did not happen, and service returns when it can.

use super::*;
use crate::engine::Wait;
use crate::error::Error;
use crate::io::sim::FaultOp;

fn put_now(engine: &Engine, key: u64, len: usize) -> Result<(), Error> {
    let options = PutOptions::new().wait(Wait::No);
    engine.put(&key.to_le_bytes(), &value(key, 0, len), &options).map(drop)
}

/// Puts until there is no room, doing all background work in between. How many were acknowledged.
fn fill(engine: &Engine, from: u64, most: u64) -> u64 {
    for n in from..from + most {
        loop {
            match put_now(engine, n, 2_000) {
                Ok(()) => break,
                Err(Error::WouldBlock) => {
                    let before = engine.stats();
                    engine.step_all().unwrap();
                    let after = engine.stats();
                    if after.disk_full > before.disk_full && put_now(engine, n, 2_000).is_err() {
                        return n - from;
                    }
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
    most
}

#[test]
fn a_full_disk_is_back_pressure_and_service_returns_with_space() {
    let mut store = Store::new(small());
    let used: u64 = store.disk.files().iter().map(|(_, len)| len).sum();
    store.disk.capacity(used + (200 << 10));
    let acked = fill(store.engine(), 0, 1_000);
    assert!((20..400).contains(&acked), "{acked} fit");
    for n in 0..acked {
        assert_eq!(store.get(&n.to_le_bytes()), Some(value(n, 0, 2_000)));
    }
    store.disk.capacity(1 << 30);
    assert_eq!(fill(store.engine(), acked, 100), 100, "service returned without a restart");
    store.kill();
    assert!(store.engine().report.damaged.is_empty());
    for n in 0..acked + 100 {
        assert_eq!(store.get(&n.to_le_bytes()), Some(value(n, 0, 2_000)), "{n} of {acked} and 100 more");
    }
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_acknowledged_and_reads_go_on() {
    for op in [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages] {
        let mut store = Store::new(small());
        store.put(b"before", b"1");
        store.engine().persist(Ack::Host).unwrap();
        store.disk.fail(op, 1, std::io::ErrorKind::Other, false);
        let host = PutOptions::new().ack(Ack::Host);
        let refused = store.engine().put(b"before", b"2", &host);
        assert!(matches!(refused, Err(Error::Failed { .. })), "{op:?}: {refused:?}");
        assert!(matches!(store.engine().put(b"other", b"x", &PutOptions::new()), Err(Error::Failed { .. })), "the failure is sticky");
        assert!(matches!(store.engine().persist(Ack::Host), Err(Error::Failed { .. })), "a sync is not retried");
        assert!(store.get(b"before").is_some(), "reads go on");
        store.power_cut(1, PowerCut::LoseAll);
        let found = store.get(b"before").unwrap();
        assert!(found == b"1" || found == b"2", "what was not acknowledged is in doubt, nothing else");
    }
}

#[test]
fn every_write_and_sync_of_a_scenario_may_fail_once_and_nothing_lies() {
    let scenario = |store: &Store| -> Vec<u64> {
        let mut acked = Vec::new();
        for n in 0..150u64 {
            let ack = if n % 7 == 0 { Ack::Host } else { Ack::Process };
            let options = PutOptions::new().ack(ack).wait(Wait::No);
            let put = store.engine().put(&(n % 20).to_le_bytes(), &value(n % 20, n, 3_000), &options);
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
            store.kill();
            for key in 0..20u64 {
                let newest = acked.iter().rev().find(|n| **n % 20 == key);
                let found = store.get(&key.to_le_bytes());
                let version = found.as_ref().map(|v| String::from_utf8_lossy(v).split(':').nth(1).unwrap().parse::<u64>().unwrap());
                // Acknowledged at least at Process, so a kill takes nothing away; one more may have happened without being acknowledged.
                assert!(version >= newest.copied(), "{op:?} {nth}: key {key} is at {version:?} after {newest:?}");
            }
        }
    }
}
