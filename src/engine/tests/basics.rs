//! One store after another: puts, deletes, restarts, expiry, eviction and budgets.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::internals;
use super::model::{Evictions, History, Keys, Step, value};
use super::store::{Machine, Store, close, small};
use crate::config::{Ack, OnHostCrash, Options, WalValues};
use crate::engine::{Condition, DeleteOptions, PutOptions, Scan, Start, Wait};
use crate::id::{Key, Lsn, NamespaceGeneration};
use crate::io::Disk;
use crate::io::sim::PowerCut;

#[test]
fn puts_are_found_and_deletes_miss() {
    let store = Store::new(small());
    store.put(b"a", b"1");
    store.put(b"b", b"");
    assert_eq!(store.get(b"a").as_deref(), Some(&b"1"[..]));
    assert_eq!(store.get(b"b").as_deref(), Some(&b""[..]));
    assert_eq!(store.get(b"c"), None);
    store.put(b"a", b"2");
    store.engine().delete((b"b").into(), &DeleteOptions::new()).unwrap();
    assert_eq!(store.get(b"a").as_deref(), Some(&b"2"[..]));
    assert_eq!(store.get(b"b"), None);
}

#[test]
fn a_condition_on_an_entry_of_memory_alone_sees_a_delete_in_between() {
    let store = Store::new(small());
    let engine = store.engine();
    store.put(b"a", b"1");
    let version = engine.get(b"a".into(), true).unwrap().unwrap().version();
    // As when a segment cannot be read while it drains.
    internals::drop_from_index(engine, b"a".into());
    assert_eq!(store.get(b"a").as_deref(), Some(&b"1"[..]));
    let options = PutOptions::new().condition(Condition::IfVersion(version));
    let delete = || assert!(engine.delete(b"a".into(), &DeleteOptions::new()).is_ok());
    assert!(internals::put_is_overtaken(engine, b"a".into(), b"2", version, &options, delete));
    assert_eq!(engine.put(b"a".into(), b"2", &options).unwrap(), None);
    assert_eq!(store.get(b"a"), None);
}

#[test]
fn a_key_that_the_index_takes_for_another_misses() {
    let store = Store::new(small());
    store.put(b"a", b"1");
    let engine = store.engine();
    // As if both had the same fingerprint, in the write buffer and in the memory tier.
    internals::alias_in_index(engine, b"a".into(), b"b".into());
    for _ in 0..2 {
        assert_eq!(store.get(b"b"), None);
        assert_eq!(store.get(b"a").as_deref(), Some(&b"1"[..]));
    }
    let other = Key { namespace: NamespaceGeneration(7), bytes: b"a" };
    internals::alias_in_index(engine, b"a".into(), other);
    assert!(engine.get(other, true).unwrap().is_none(), "the same bytes in another namespace");
    assert_eq!(engine.get_many(&[b"b".into(), other, b"a".into()]).unwrap().iter().filter(|v| v.is_some()).count(), 1);
    assert!(engine.stats().collisions >= 4);
}

#[test]
fn a_manifest_states_a_catalog_change_once_all_before_it_is_durable() {
    let mut store = Store::new(small());
    store.put(b"a", b"1");
    store.engine().persist(Ack::Host).unwrap();
    store.engine().delete((b"a").into(), &DeleteOptions::new()).unwrap();
    store.engine().set_resume_token("stream", b"after the delete", None).unwrap();
    let space = store.engine().namespace("users").unwrap();
    store.engine().put(space.key(b"k"), b"v", &PutOptions::new()).unwrap();
    store.engine().clear(&space, None).unwrap();
    internals::write_manifest(store.engine());
    store.power_cut(1, PowerCut::LoseAll);
    assert_eq!(store.get(b"a").as_deref(), Some(&b"1"[..]));
    assert_eq!(store.engine().namespaces().resume_token("stream"), None, "the delete before it is lost as well");
    assert!(store.engine().namespaces().names().is_empty());
}

#[test]
fn everything_acknowledged_survives_a_kill() {
    let mut store = Store::new(small());
    for round in 0..3 {
        for k in 0..300u64 {
            store.put(&k.to_le_bytes(), &value(k, round, 200));
        }
        store.engine().delete((&7u64.to_le_bytes()).into(), &DeleteOptions::new()).unwrap();
        store.kill();
        assert_eq!(store.engine().recovery().kind, Start::Process);
        assert!(store.engine().recovery().damaged.is_empty(), "{:?}", store.engine().recovery());
        for k in (0..300u64).filter(|k| *k != 7) {
            assert_eq!(store.get(&k.to_le_bytes()), Some(value(k, round, 200)), "key {k} round {round}");
        }
        assert_eq!(store.get(&7u64.to_le_bytes()), None);
    }
}

#[test]
fn a_clean_stop_reads_no_wal_and_keeps_everything() {
    let mut store = Store::new(small());
    for k in 0..1000u64 {
        store.put(&k.to_le_bytes(), &value(k, 0, 100));
    }
    store.close();
    let report = store.engine().recovery();
    assert_eq!((report.kind, report.wal_frames, report.checkpoint_entries), (Start::Clean, 0, 1000), "{report:?}");
    for k in 0..1000u64 {
        assert_eq!(store.get(&k.to_le_bytes()), Some(value(k, 0, 100)));
    }
}

#[test]
fn a_lost_checkpoint_costs_time_only() {
    let mut store = Store::new(small());
    for k in 0..1000u64 {
        store.put(&k.to_le_bytes(), &value(k, 0, 100));
    }
    store.engine().delete((&5u64.to_le_bytes()).into(), &DeleteOptions::new()).unwrap();
    let engine = store.engine.take().unwrap();
    engine.begin_close();
    engine.finish().unwrap();
    drop(engine);
    for n in 0..2 {
        let _one_of_them_exists = store.disk.remove(&format!("checkpoint.{n}"));
    }
    store.open();
    assert_eq!(store.engine().recovery().checkpoint_entries, 0);
    assert_eq!(store.engine().recovery().entries, 999);
    assert_eq!(store.get(&5u64.to_le_bytes()), None);
    assert_eq!(store.get(&6u64.to_le_bytes()), Some(value(6, 0, 100)));
}

#[test]
fn flash_smaller_than_the_data_evicts_the_oldest_and_never_lies() {
    let mut store = Store::new(small());
    for round in 0..4u64 {
        for k in 0..3000u64 {
            store.put(&k.to_le_bytes(), &value(k, round, 500));
        }
        let stats = store.engine().stats();
        assert!(stats.reclaimed.0 > 0 && stats.evicted > 0, "{stats:?}");
        let mut kept = 0;
        for k in 0..3000u64 {
            if let Some(found) = store.get(&k.to_le_bytes()) {
                assert_eq!(found, value(k, round, 500));
                kept += 1;
            }
        }
        assert!(kept > 1000, "{kept}");
        store.kill();
        let after = (0..3000u64).filter(|k| store.get(&k.to_le_bytes()) == Some(value(*k, round, 500))).count();
        // A segment that was drained and not yet reused is read again, and its entries are still
        // true.
        assert!(after >= kept, "{after} of {kept} in round {round}: {:?}", store.engine().recovery());
    }
}

#[test]
fn hot_entries_outlive_their_segment() {
    let store = Store::new(small());
    for k in 0..20u64 {
        store.put(&k.to_le_bytes(), &value(k, 0, 100));
    }
    for k in 1000..20_000u64 {
        store.put(&k.to_le_bytes(), &value(k, 0, 500));
        if k % 200 == 0 {
            (0..20u64).for_each(|h| assert!(store.get(&h.to_le_bytes()).is_some(), "hot key {h} at {k}"));
        }
    }
    assert!(store.engine().stats().reinserted >= 20);
}

#[test]
fn host_acknowledgements_survive_a_power_cut() {
    for wal_values in [WalValues::Never, WalValues::Host, WalValues::Always] {
        for (seed, damage) in [(1, PowerCut::LoseAll), (2, PowerCut::KeepAll), (3, PowerCut::Random), (4, PowerCut::Random)] {
            let mut store = Store::new(small().ack(Ack::Host).wal_values(wal_values));
            for k in 0..100u64 {
                store.put(&k.to_le_bytes(), &value(k, 0, 300));
                store.put(&k.to_le_bytes(), &value(k, 1, 300));
            }
            store.engine().delete((&3u64.to_le_bytes()).into(), &DeleteOptions::new()).unwrap();
            store.power_cut(seed, damage);
            assert_eq!(store.engine().recovery().kind, Start::Host);
            for k in (0..100u64).filter(|k| *k != 3) {
                assert_eq!(store.get(&k.to_le_bytes()), Some(value(k, 1, 300)), "key {k}, {wal_values:?} {damage:?}");
            }
            assert_eq!(store.get(&3u64.to_le_bytes()), None);
        }
    }
}

#[test]
fn after_a_host_crash_a_store_starts_empty_if_told_to() {
    let options = || small().on_host_crash(OnHostCrash::Cold);
    let mut store = Store::new(options());
    for k in 0..100u64 {
        store.put(&k.to_le_bytes(), &value(k, 0, 1_000));
    }
    store.engine().set_resume_token("stream", b"here", Some(Ack::Host)).unwrap();
    let version = store.engine().appended();
    store.kill();
    assert_eq!((store.engine().recovery().entries, store.engine().namespaces().resume_tokens().len()), (100, 1), "the host went on");
    store.power_cut(1, PowerCut::Random);
    let assert_empty = |store: &Store, when: &str| {
        assert_eq!(store.engine().namespaces().resume_tokens(), Vec::<String>::new(), "{when}: invalidations may have been lost");
        assert!((0..100u64).all(|k| store.get(&k.to_le_bytes()).is_none()), "{when}");
    };
    assert_empty(&store, "after the power cut");
    assert_eq!(store.engine().recovery().maybe_lost_after, Some(Lsn::ZERO));
    assert!(store.engine().appended() >= version, "versions are not used twice");
    store.kill();
    assert_empty(&store, "after a kill");
    store.put(b"key", b"value");
    store.close();
    assert_eq!(store.get(b"key").as_deref(), Some(&b"value"[..]));
    assert_empty(&store, "after a close");
}

#[test]
fn an_expired_entry_stays_expired_when_the_clock_goes_back() {
    let mut store = Store::new(small());
    let ttl = PutOptions::new().ttl(Duration::from_secs(10));
    store.engine().put((b"k").into(), b"v", &ttl).unwrap();
    store.clock.advance(Duration::from_secs(9));
    assert!(store.get(b"k").is_some());
    store.clock.advance(Duration::from_secs(2));
    assert!(store.get(b"k").is_none());
    store.engine().persist(Ack::Host).unwrap();
    store.close();
    store.clock.jump_wall(-3_600_000);
    store.close();
    assert!(store.get(b"k").is_none());
    store.engine().put((b"l").into(), b"v", &ttl).unwrap();
    assert!(store.get(b"l").is_some());
    store.clock.advance(Duration::from_secs(11));
    assert!(store.get(b"l").is_none());
}

#[test]
fn an_expired_read_lasts_after_a_kill_and_a_clock_that_goes_back() {
    let mut store = Store::new(small());
    store.engine().put(b"k".into(), b"v", &PutOptions::new().ttl(Duration::from_secs(10))).unwrap();
    store.engine().persist(Ack::Host).unwrap();
    store.clock.advance(Duration::from_secs(3_600));
    // Only the read below writes anything: a mark of the time.
    assert!(store.get(b"k").is_none());
    store.clock.jump_wall(-3_600_000);
    store.kill();
    assert!(store.get(b"k").is_none());
}

#[test]
fn an_idle_store_records_that_it_is_alive() {
    let mut store = Store::new(small());
    store.put(b"k", b"v");
    store.engine().persist(Ack::Host).unwrap();
    let syncs = store.engine().stats().syncs;
    // Enough marks to fill the ring with nothing else.
    for _ in 0..4_000 {
        store.clock.advance(Duration::from_secs(61));
        store.engine().step_alive();
        store.engine().step_all().unwrap();
    }
    assert!(store.engine().stats().syncs - syncs < 10);
    let now = internals::now_ms(store.engine());
    store.kill();
    assert!((now - 1_000..=now).contains(&store.engine().recovery().alive_until_ms), "{now} {:?}", store.engine().recovery());
    store.put(b"k", b"w");
    assert_eq!(store.get(b"k").as_deref(), Some(&b"w"[..]));
}

#[test]
fn an_entry_of_a_very_old_lsn_is_kept() {
    let mut store = Store::new(small());
    store.put(b"old", &value(1, 0, 300));
    store.engine().persist(Ack::Host).unwrap();
    for round in 1..4u64 {
        // As if 2^40 mutations had come and gone in the life before.
        if round % 2 == 0 {
            store.kill()
        } else {
            store.power_cut(round, PowerCut::KeepAll)
        }
        assert_eq!(store.get(b"old"), Some(value(1, 0, 300)), "before round {round}");
        internals::skip_to_lsn(store.engine(), Lsn(round << 40));
        for n in 0..1_500u64 {
            store.put(&(n % 50).to_le_bytes(), &value(n % 50, n, 2_000));
        }
        let stats = store.engine().stats();
        assert!(stats.segments_reclaimed > 0 && stats.evicted == 0, "{stats:?}");
        assert_eq!(store.get(b"old"), Some(value(1, 0, 300)), "in round {round}");
    }
    store.kill();
    assert_eq!(store.get(b"old"), Some(value(1, 0, 300)));
}

#[test]
fn an_index_that_fills_the_budget_goes_on_taking_entries() {
    // An empty index for 2 GiB of flash takes most of this memory.
    let store = Store::new(Options::new("sim").memory(1350 << 10).flash(2 << 30).segment_size(1 << 20));
    let engine = store.engine();
    let mut max = 0;
    for n in 0..300_000u64 {
        let options = PutOptions::new().wait(Wait::No);
        let mut tries = 0;
        while engine.put((&n.to_le_bytes()).into(), b"", &options).is_err() {
            engine.step_all().unwrap();
            tries += 1;
            assert!(tries < 100, "put {n} of {} entries: {:?}", internals::index_entries(engine), engine.stats());
        }
        max = max.max(internals::index_bytes(engine));
    }
    let stats = engine.stats();
    assert!(stats.evicted > 0 && stats.entries > 10_000, "{stats:?}");
    let settings = internals::settings(engine);
    assert!(max <= settings.index_bytes_max + settings.memory / 64 + 64, "{max}");
}

#[test]
fn a_slow_scan_sees_each_entry_that_stays_once() {
    let store = Store::new(small());
    for k in 0..200u64 {
        store.put(&k.to_le_bytes(), &value(k, 0, 500));
    }
    let mut scan = Scan::new([(NamespaceGeneration::FIRST, "".into())]);
    let mut seen = HashMap::new();
    let mut round = 0;
    while let Some(entry) = store.engine().scan_next(&mut scan).unwrap() {
        let key = u64::from_le_bytes(entry.key[..].try_into().unwrap());
        if key < 200 {
            assert_eq!(entry.value, value(key, 0, 500));
            *seen.entry(key).or_insert(0) += 1;
        }
        // Entries of the same length are replaced until every segment has had another life.
        let reclaimed = store.engine().stats().segments_reclaimed;
        while round % 8 == 0 && store.engine().stats().segments_reclaimed < reclaimed + 40 {
            for k in 200..400u64 {
                store.put(&k.to_le_bytes(), &value(k, 0, 500));
            }
            store.engine().step_all().unwrap();
        }
        round += 1;
    }
    assert_eq!(store.engine().stats().evicted, 0, "the scenario is about moves");
    assert_eq!(store.engine().stats().damaged, 0);
    let missing: Vec<u64> = (0..200).filter(|k| seen.get(k) != Some(&1)).collect();
    assert!(missing.is_empty(), "not seen once: {missing:?}");
}

#[test]
fn a_default_memory_budget_fits_the_index_without_a_checkpoint() {
    let mut store = Store::new(Options::new("sim").flash(256 << 20).segment_size(4 << 20));
    let engine = store.engine.take().unwrap();
    let (given, allocated) = (internals::settings(&engine).clone(), internals::index_bytes(&engine));
    assert!(allocated < given.index_bytes_max);
    // As if the index had grown beyond its share of the default.
    let mut small = given.clone();
    small.index_bytes_max = allocated / 2;
    let with_memory = store.options.clone().memory(given.memory);
    assert!(internals::fit(small.clone(), &with_memory.clone().resize(false), allocated).is_err());
    let same = internals::fit(small.clone(), &with_memory, allocated).unwrap();
    assert_eq!(same.index_bytes_max, small.index_bytes_max, "a given budget stays as it is");
    let larger = internals::fit(small.clone(), &store.options, allocated).unwrap();
    assert!(larger.index_bytes_max > allocated);
    assert_eq!(larger.memory - larger.index_bytes_max, given.memory - small.index_bytes_max);
}

#[test]
fn another_geometry_keeps_the_entries() {
    let mut store = Store::new(small());
    for k in 0..800u64 {
        store.put(&k.to_le_bytes(), &value(k, 0, 100));
    }
    for options in [small().flash(8 << 20), small().flash(8 << 20).segment_size(256 << 10), small().memory(8 << 20), small()] {
        close(&store.engine.take().unwrap()).unwrap();
        store.options = options;
        store.open();
        for k in 0..800u64 {
            assert_eq!(store.get(&k.to_le_bytes()), Some(value(k, 0, 100)));
        }
    }
}

const PROPTEST_KEYS: Keys = Keys { count: 256, len: 1 };

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (any::<u8>(), 0usize..6000).prop_map(|(key, len)| Step::put(key, len, Ack::Process)),
        2 => (any::<u8>(), 0usize..5000).prop_map(|(key, len)| Step::put(key, len, Ack::Host)),
        3 => any::<u8>().prop_map(|key| Step::Delete(key, Ack::Process)),
        6 => any::<u8>().prop_map(Step::Get),
        2 => Just(Step::Work),
        1 => Just(Step::Sync),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_engine_agrees_with_a_model_across_restarts(steps in steps()) {
        let history = History::new(PROPTEST_KEYS, 0, Evictions::Counted(Lsn::ZERO));
        let mut machine = Machine::new(Store::new(small()), history);
        for step in steps.into_iter().chain(PROPTEST_KEYS.all().map(Step::Get)) {
            machine.run(&step).unwrap();
        }
        prop_assert_eq!(machine.store.engine().stats().damaged, 0);
    }
}

#[test]
fn marks_that_fill_the_wal_hold_back_no_put() {
    let store = Store::new(small().flash(512 << 10));
    let engine = store.engine();
    let (long, mut passed) = (value(1, 0, 3_900), internals::now_ms(engine));
    let put = || engine.put((b"long").into(), &long, &PutOptions::new().wait(Wait::No).ack(Ack::Host));
    // The last written block begins at another place each time, and only marks follow it.
    for marks in (400..820).step_by(20) {
        engine.step_all().unwrap();
        assert!(put().is_ok());
        engine.persist(Ack::Host).unwrap();
        for _ in 0..marks {
            passed += 1;
            internals::record_time_passed(engine, passed);
        }
        if put().is_err() {
            engine.step_all().unwrap();
            assert!(put().is_ok(), "after {marks} marks");
        }
    }
}

#[test]
fn a_catalog_change_counts_although_its_segment_is_sealed() {
    let mut store = Store::new(small());
    store.put(b"key", b"value");
    store.engine().set_resume_token("stream", b"7", Some(Ack::Process)).unwrap();
    internals::seal_behind_the_manifest(store.engine());
    store.kill();
    assert!(store.engine().recovery().damaged.is_empty());
    assert_eq!(store.engine().namespaces().resume_token("stream").as_deref(), Some(&b"7"[..]));
    assert_eq!(store.get(b"key").as_deref(), Some(&b"value"[..]));
}
