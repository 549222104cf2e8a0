//! Openings that meet an error which says nothing of the bytes: they are refused, nothing changes,
//! and a later opening finds everything.

use std::sync::Arc;

use rustix::io::Errno;

use super::internals::open_inline;
use super::model::value;
use super::store::{Store, small};
use crate::clock::SimClock;
use crate::config::WalValues;
use crate::engine::PutOptions;
use crate::error::Error;
use crate::io::sim::{Failure, FaultOp, PowerCut, SimDisk};

/// Errors that do not say that the medium lost bytes.
const NO_LOSS: [Errno; 11] = [
    Errno::ACCESS,
    Errno::PERM,
    Errno::STALE,
    Errno::NOMEM,
    Errno::MFILE,
    Errno::NFILE,
    Errno::AGAIN,
    Errno::LOOP,
    Errno::ISDIR,
    Errno::INVAL,
    Errno::TIMEDOUT,
];

/// Images of a store after each kind of stop, with sealed and unsealed segments.
fn images() -> Vec<SimDisk> {
    let store = Store::new(small().wal_values(WalValues::Host));
    for n in 0..90u64 {
        store.put(&n.to_le_bytes(), &value(n, 0, 2_000));
    }
    store.engine().persist(crate::config::Ack::Host).unwrap();
    store.engine().step_all().unwrap();
    store.engine().step_checkpoint(true).unwrap();
    for n in 90..120u64 {
        store.put(&n.to_le_bytes(), &value(n, 0, 2_000));
    }
    store.engine().persist(crate::config::Ack::Host).unwrap();
    let killed = store.disk.after_kill();
    let cut = store.disk.after_power_cut(1, PowerCut::LoseAll);
    super::store::close(store.engine()).unwrap();
    vec![killed, cut, store.disk.after_kill()]
}

/// Asserts that a store on `image` has all its entries and no damage.
fn check(image: &SimDisk, what: &str) {
    let engine = open_inline(&small(), image, Arc::new(SimClock::new(5))).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(engine.recovery().damaged.is_empty(), "{what}: {:?}", engine.recovery());
    for n in 0..120u64 {
        let found = engine.get((&n.to_le_bytes()).into(), true).unwrap();
        assert_eq!(found.as_deref(), Some(&value(n, 0, 2_000)[..]), "{what}: {n}");
    }
}

#[test]
fn every_error_at_every_call_of_an_opening_loses_nothing() {
    let mut refused = 0;
    for (stop, image) in images().into_iter().enumerate() {
        check(&image.after_kill(), "without a fault");
        for op in [FaultOp::Open, FaultOp::Read] {
            for nth in 1.. {
                // All errors at the first calls, and one of them at each of the others.
                let errors = if nth <= 4 { &NO_LOSS[..] } else { &NO_LOSS[nth as usize % NO_LOSS.len()..][..1] };
                let mut was_reached = true;
                for errno in errors {
                    let what = format!("stop {stop}, {op:?} {nth}, {errno:?}");
                    let disk = image.after_kill();
                    let faults = disk.faults_injected();
                    disk.fail(op, nth, Failure::Errno(*errno), false);
                    let opened = open_inline(&small(), &disk, Arc::new(SimClock::new(5)));
                    was_reached &= disk.faults_injected() > faults;
                    if let Err(error) = opened.map(drop) {
                        assert!(matches!(error, Error::Io { .. }), "{what}: {error}");
                        refused += 1;
                    }
                    disk.heal();
                    check(&disk.after_kill(), &what);
                }
                if !was_reached {
                    break;
                }
            }
        }
    }
    assert!(refused > 100, "{refused} openings were refused");
}

#[test]
fn a_read_that_is_refused_is_an_error_and_no_miss() {
    let mut store = Store::new(small());
    store.put(b"key", &value(1, 0, 2_000));
    store.close();
    let key = || b"key".into();
    for errno in [Errno::ACCESS, Errno::NOMEM, Errno::STALE] {
        store.disk.fail(FaultOp::Read, 1, Failure::Errno(errno), false);
        assert!(matches!(store.engine().get(key(), true), Err(Error::Io { .. })), "{errno:?}");
        store.disk.fail(FaultOp::Read, 1, Failure::Errno(errno), false);
        let condition = PutOptions::new().condition(crate::engine::Condition::IfAbsent);
        assert!(matches!(store.engine().put(key(), b"other", &condition), Err(Error::Io { .. })), "{errno:?}");
        store.disk.heal();
    }
    store.disk.fail(FaultOp::Read, 1, Failure::Errno(Errno::IO), false);
    assert_eq!(store.get(b"key"), None, "the medium cannot give it");
    assert_eq!(store.get(b"key"), Some(value(1, 0, 2_000)));
}

/// A segment that cannot be emptied for such a reason is not given up.
#[test]
fn a_segment_that_may_not_be_read_keeps_its_entries() {
    let mut store = Store::new(small());
    for n in 0..300u64 {
        store.put(&n.to_le_bytes(), &value(n, 0, 2_000));
    }
    store.engine().persist(crate::config::Ack::Host).unwrap();
    let there: Vec<u64> = (0..300).filter(|n: &u64| store.get(&n.to_le_bytes()).is_some()).collect();
    store.disk.fail(FaultOp::Read, 1, Failure::Errno(Errno::ACCESS), true);
    let refused = (300..900u64).find_map(|n| {
        let waits = PutOptions::new().wait(crate::engine::Wait::No);
        let put = store.engine().put((&n.to_le_bytes()).into(), &value(n, 0, 2_000), &waits);
        let _recorded = store.engine().step_all();
        put.err().filter(|error| !matches!(error, Error::WouldBlock))
    });
    assert!(matches!(refused, Some(Error::Failed { .. })), "{refused:?}");
    store.disk.heal();
    store.kill();
    assert!(store.engine().recovery().damaged.is_empty());
    assert!(there.iter().rev().take(100).all(|n| store.get(&n.to_le_bytes()) == Some(value(*n, 0, 2_000))));
}
