//! What callers see of the cache's own trouble, and what a call costs that is going to be refused.

use super::internals;
use super::model::value;
use super::store::{Store, small};
use crate::config::{Ack, Compression, Options, WalValues};
use crate::engine::{Condition, Engine, Hint, PutOptions, Tier};
use crate::error::Error;
use crate::id::Lsn;
use crate::io::Disk;
use crate::io::sim::FaultOp;

#[test]
fn only_a_get_counts_as_a_use_in_the_memory_tier() {
    type Look = fn(&Engine, &[u8]);
    let looks: [(&str, Look, bool); 5] = [
        ("nothing", |_, _| (), false),
        ("peek", |e, key| drop(e.get(key.into(), false).unwrap().unwrap()), false),
        (
            "condition",
            |e, key| assert_eq!(e.put(key.into(), b"x", &PutOptions::new().condition(Condition::IfAbsent)).unwrap(), None),
            false,
        ),
        ("touch", |e, key| assert!(e.touch(key.into(), None).unwrap().is_some()), false),
        ("get", |e, key| drop(e.get(key.into(), true).unwrap().unwrap()), true),
    ];
    for (name, look, counts) in looks {
        let store = Store::new(Options::new("sim").memory(2 << 20).flash(32 << 20));
        let (engine, memory) = (store.engine(), PutOptions::new().hint(Hint::Memory));
        let key = |n: u64| n.to_le_bytes();
        (0..100).for_each(|n| assert!(engine.put((&key(n)).into(), &[1; 500], &memory).is_ok()));
        for n in (0..50).chain(0..50) {
            look(engine, &key(n));
        }
        (1_000..9_000).for_each(|n| assert!(engine.put((&key(n)).into(), &[2; 500], &memory).is_ok()));
        let kept = |n: u64| engine.get((&key(n)).into(), false).unwrap().is_some_and(|found| found.tier() == Tier::Memory);
        let (looked_at, others) = ((0..50).filter(|n| kept(*n)).count(), (50..100).filter(|n| kept(*n)).count());
        assert_eq!((looked_at, others), (if counts { 50 } else { 0 }, 0), "after {name}");
    }
}

#[test]
fn a_rescue_hides_the_older_version_of_a_key_that_lost_its_slot() {
    // The other key's newest record lies in the segment that fails, or in a later one.
    for between in [0, 40] {
        let mut store = Store::new(small().memory(4 << 20).flash(4 << 20).wal_values(WalValues::Never));
        store.put(b"a", b"old");
        store.close();
        store.put(b"a", b"new");
        let failing = internals::location_of(store.engine(), b"a".into()).segment;
        (0..between).for_each(|n| store.put(&[n], &value(u64::from(n), 0, 2_000)));
        store.put(b"b", b"other");
        let in_same = internals::location_of(store.engine(), b"b".into()).segment == failing;
        assert_eq!(in_same, between == 0);
        // As if both had the same fingerprint: the later put has the slot.
        internals::alias_in_index(store.engine(), b"b".into(), b"a".into());
        store.disk.fail(FaultOp::Sync, 1, std::io::ErrorKind::Other, false);
        let _failed = store.engine().step_flush().and_then(|_| store.engine().step_sync());
        store.engine().step_all().unwrap();
        assert_eq!(internals::quarantined(store.engine()), [failing], "{between}");
        store.engine().persist(Ack::Host).unwrap();
        // The log alone decides: an index of other widths tells the two keys apart.
        for n in 0..2 {
            let _one_of_them_exists = store.disk.remove(&format!("checkpoint.{n}"));
        }
        store.kill();
        let found = store.get(b"a");
        assert!(found.is_none() || found.as_deref() == Some(b"new"), "{between}: {found:?}");
        assert!(between == 0 || store.get(b"b").as_deref() == Some(b"other"));
    }
}

#[test]
fn a_put_that_is_refused_compresses_nothing() {
    let store = Store::new(small().compression(Compression::Zstd(19)));
    let engine = store.engine();
    let (value, too_large) = (vec![7; 2_000], vec![7; 200 << 10]);
    let put = |key: &[u8], value: &[u8], options: &PutOptions| {
        let blocking = engine.put(key.into(), value, options);
        let task = pollster::block_on(engine.put_in_task(key.into(), value, options));
        assert_eq!(format!("{blocking:?}"), format!("{task:?}"));
        blocking
    };
    let version = engine.put(b"present".into(), &value, &PutOptions::new()).unwrap().unwrap();
    assert_eq!(engine.stats().compressions, 1);
    for condition in [Condition::IfAbsent, Condition::IfVersion(Lsn(version.0 + 1))] {
        assert_eq!(put(b"present", &value, &PutOptions::new().condition(condition)).unwrap(), None);
    }
    assert_eq!(put(b"absent", &value, &PutOptions::new().condition(Condition::IfPresent)).unwrap(), None);
    assert!(matches!(put(b"", &value, &PutOptions::new()), Err(Error::EmptyKey)));
    assert!(matches!(put(b"key", &too_large, &PutOptions::new()), Err(Error::ValueTooLarge { .. })));
    assert_eq!(engine.put_many(&[(b"present".into(), &value)], &PutOptions::new().condition(Condition::IfAbsent)).unwrap(), [None]);
    engine.begin_close();
    assert!(matches!(put(b"key", &value, &PutOptions::new()), Err(Error::Closed)));
    assert_eq!(engine.stats().compressions, 1, "refused puts compressed their values");
}
