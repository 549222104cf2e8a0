//! The engine on the simulated disk, one thread, against a model.

mod crash;
mod damage;
mod exhaustive;
mod failing;
mod golden;
mod pressure;
mod renewed;
mod simulation;

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::Condition;
use super::background::INLINE;
use super::context::Mode;
use super::ops::write::{Observed, Tried};
use super::{DeleteOptions, Engine, PutOptions, Start, Wait};
use crate::clock::{Clock, SimClock};
use crate::config::{Ack, OnHostCrash, Options, WalValues};
use crate::engine::Scan;
use crate::engine::open::budget::fit_index;
use crate::id::{Key, Lsn, NamespaceGeneration};
use crate::io::Disk;
use crate::io::sim::{PowerCut, SimDisk};

/// Index changes that recovery merges at once here: so few that small stores need several merges.
const BATCH_LEN_MAX: usize = 200;

/// Opens a store whose recovery merges index changes in small batches.
fn open(options: &Options, disk: Option<Arc<dyn Disk>>, clock: Arc<dyn Clock>, driver: Mode) -> Result<Arc<Engine>, crate::Error> {
    let options = Options { batch_len_max: BATCH_LEN_MAX, ..options.clone() };
    super::open(&options, disk, clock, driver)
}

struct Store {
    disk: SimDisk,
    clock: Arc<SimClock>,
    options: Options,
    engine: Option<Arc<Engine>>,
}

impl Store {
    fn new(options: Options) -> Self {
        let mut store = Self { disk: SimDisk::new(1), clock: Arc::new(SimClock::new(2)), options, engine: None };
        store.open();
        store
    }

    fn open(&mut self) {
        self.try_open().unwrap_or_else(|e| panic!("open: {e}"));
    }

    fn try_open(&mut self) -> Result<(), crate::Error> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        self.engine = Some(open(&self.options, Some(disk), self.clock.clone(), INLINE)?);
        Ok(())
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn kill(&mut self) {
        let after = self.disk.after_kill();
        self.engine = None;
        self.disk = after;
        self.open();
    }

    fn power_cut(&mut self, seed: u64, damage: PowerCut) {
        let after = self.disk.after_power_cut(seed, damage);
        self.engine = None;
        self.disk = after;
        self.open();
    }

    fn close(&mut self) {
        let engine = self.engine.take().unwrap();
        engine.begin_close();
        engine.finish().unwrap();
        drop(engine);
        self.open();
    }

    fn put(&self, key: &[u8], value: &[u8]) {
        self.engine().put((key).into(), value, &PutOptions::new()).unwrap();
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.engine().get((key).into(), true).unwrap().map(|v| v.to_vec())
    }
}

fn small() -> Options {
    Options::new("sim").memory(1 << 20).flash(1 << 20).segment_size(64 << 10)
}

fn value(key: u64, version: u64, len: usize) -> Vec<u8> {
    let mut out = format!("{key}:{version}:").into_bytes();
    out.resize(out.len() + len, (key ^ version) as u8);
    out
}

/// Whether an engine has counted, reported or said that something is wrong with its disk, besides so many segments that were renewed.
fn has_noticed(engine: &Engine, renewed: u64) -> bool {
    let (report, stats) = (&engine.context.report, engine.stats());
    stats.disk_full > 0 || report.manifest_repaired || report.segments_renewed > renewed || has_lost(engine)
}

/// The same, if entries may be missing for it.
fn has_lost(engine: &Engine) -> bool {
    let (report, stats) = (&engine.context.report, engine.stats());
    let counted = stats.write_errors + stats.read_errors + stats.damaged > 0;
    counted || engine.health.has_failed() || !report.damaged.is_empty()
}

/// The seeds that `EVERWARM_<name>_FIRST` and `EVERWARM_<name>_SEEDS` (how many) say.
fn seeds(name: &str, first: u64, count: u64) -> Range<u64> {
    let from_env =
        |what: &str, default: u64| std::env::var(format!("EVERWARM_{name}_{what}")).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let first = from_env("FIRST", first);
    first..first + from_env("SEEDS", count)
}

/// Calls `work` for each of `seeds`, on all processors. A seed that panics is stated with the command that repeats it.
fn each_seed<T: Send>(seeds: Range<u64>, name: &str, test: &str, work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(seeds.start);
    let one = |seed: u64| {
        let done = catch_unwind(AssertUnwindSafe(|| work(seed)));
        done.unwrap_or_else(|_| {
            // The other threads begin no more.
            next.store(seeds.end, Ordering::Relaxed);
            panic!("repeat with: EVERWARM_{name}_FIRST={seed} EVERWARM_{name}_SEEDS=1 cargo test --release --lib {test}")
        })
    };
    let share = || {
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < seeds.end);
        std::iter::from_fn(take).map(one).collect::<Vec<T>>()
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(share)).collect();
        all.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

#[test]
fn what_was_put_is_there_and_what_was_deleted_is_not() {
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
fn a_condition_on_what_only_the_memory_tier_has_sees_a_delete_that_comes_in_between() {
    let store = Store::new(small());
    let engine = store.engine();
    store.put(b"a", b"1");
    let version = engine.get(b"a".into(), true).unwrap().unwrap().version();
    // As when a segment cannot be read while it is emptied.
    assert!(engine.index.remove(engine.context.hash(b"a".into())).is_some());
    assert_eq!(store.get(b"a").as_deref(), Some(&b"1"[..]));
    let options = PutOptions::new().condition(Condition::IfVersion(version));
    let request = engine.put_request(b"a".into(), b"2", None, &options).unwrap();
    let seen = Observed { at: None, version: Some(version) };
    engine.delete(b"a".into(), &DeleteOptions::new()).unwrap();
    assert!(matches!(engine.attempt(&request, Some(&seen), None), Ok(Tried::Overtaken)));
    assert_eq!(engine.put(b"a".into(), b"2", &options).unwrap(), None);
    assert_eq!(store.get(b"a"), None);
}

#[test]
fn a_key_that_the_index_takes_for_another_misses() {
    let store = Store::new(small());
    store.put(b"a", b"1");
    let engine = store.engine();
    let (a, b) = (engine.context.hash(b"a".into()), engine.context.hash(b"b".into()));
    // As if both had the same fingerprint, in the write buffer and in the memory tier.
    engine.index.insert(b, &engine.index.get(a).unwrap());
    for _ in 0..2 {
        assert_eq!(store.get(b"b"), None);
        assert_eq!(store.get(b"a").as_deref(), Some(&b"1"[..]));
    }
    let other = Key { namespace: NamespaceGeneration(7), bytes: b"a" };
    engine.index.insert(engine.context.hash(other), &engine.index.get(a).unwrap());
    assert!(engine.get(other, true).unwrap().is_none(), "the same bytes in another namespace");
    assert_eq!(engine.get_many(&[b"b".into(), other, b"a".into()]).unwrap().iter().filter(|v| v.is_some()).count(), 1);
    assert!(engine.stats().collisions >= 4);
}

#[test]
fn a_note_is_stated_by_a_manifest_only_when_everything_before_it_is_durable() {
    let mut store = Store::new(small());
    store.put(b"a", b"1");
    store.engine().persist(Ack::Host).unwrap();
    store.engine().delete((b"a").into(), &DeleteOptions::new()).unwrap();
    store.engine().set_resume_token("stream", b"after the delete", None).unwrap();
    let space = store.engine().namespace("users").unwrap();
    store.engine().put(space.key(b"k"), b"v", &PutOptions::new()).unwrap();
    store.engine().clear(&space, None).unwrap();
    let mut manifest = store.engine().manifest.lock();
    store.engine().write_manifest(&mut manifest).unwrap();
    drop(manifest);
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
        assert_eq!(store.engine().context.report.kind, Start::Process);
        assert!(store.engine().context.report.damaged.is_empty(), "{:?}", store.engine().context.report);
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
    let report = &store.engine().context.report;
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
    assert_eq!(store.engine().context.report.checkpoint_entries, 0);
    assert_eq!(store.engine().context.report.entries, 999);
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
        // A segment that was emptied and not yet reused is read again: its entries are as true as they were.
        assert!(after >= kept, "{after} of {kept} in round {round}: {:?}", store.engine().context.report);
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
            assert_eq!(store.engine().context.report.kind, Start::Host);
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
    assert_eq!((store.engine().context.report.entries, store.engine().namespaces().resume_tokens().len()), (100, 1), "the host went on");
    store.power_cut(1, PowerCut::Random);
    let empty = |store: &Store, what: &str| {
        assert_eq!(
            store.engine().namespaces().resume_tokens(),
            Vec::<String>::new(),
            "{what}: what was invalidated meanwhile is not known"
        );
        assert!((0..100u64).all(|k| store.get(&k.to_le_bytes()).is_none()), "{what}");
    };
    empty(&store, "after the power cut");
    assert_eq!(store.engine().context.report.maybe_lost_after, Some(Lsn::ZERO));
    assert!(store.engine().appended() >= version, "versions are not used twice");
    store.kill();
    empty(&store, "after a kill");
    store.put(b"key", b"value");
    store.close();
    assert_eq!(store.get(b"key").as_deref(), Some(&b"value"[..]));
    empty(&store, "after a close");
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
fn what_was_seen_to_have_expired_stays_so_after_a_kill_and_a_clock_that_goes_back() {
    let mut store = Store::new(small());
    store.engine().put(b"k".into(), b"v", &PutOptions::new().ttl(Duration::from_secs(10))).unwrap();
    store.engine().persist(Ack::Host).unwrap();
    store.clock.advance(Duration::from_secs(3_600));
    // Nothing is written meanwhile but by those who look.
    assert!(store.get(b"k").is_none());
    store.clock.jump_wall(-3_600_000);
    store.kill();
    assert!(store.get(b"k").is_none());
}

#[test]
fn a_store_that_nobody_changes_records_that_it_is_alive() {
    let mut store = Store::new(small());
    store.put(b"k", b"v");
    store.engine().persist(Ack::Host).unwrap();
    let syncs = store.engine().stats().syncs;
    // Long enough to fill the ring with nothing else.
    for _ in 0..4_000 {
        store.clock.advance(Duration::from_secs(61));
        store.engine().step_alive();
        store.engine().step_all().unwrap();
    }
    assert!(store.engine().stats().syncs - syncs < 10);
    let now = store.engine().context.time.now_ms();
    store.kill();
    assert!((now - 1_000..=now).contains(&store.engine().context.report.alive_until_ms), "{now} {:?}", store.engine().context.report);
    store.put(b"k", b"w");
    assert_eq!(store.get(b"k").as_deref(), Some(&b"w"[..]));
}

#[test]
fn an_entry_that_is_very_much_older_than_the_newest_is_kept() {
    let mut store = Store::new(small());
    store.put(b"old", &value(1, 0, 300));
    store.engine().persist(Ack::Host).unwrap();
    for round in 1..4u64 {
        // As if so many mutations had come and gone before this life.
        if round % 2 == 0 {
            store.kill()
        } else {
            store.power_cut(round, PowerCut::KeepAll)
        }
        assert_eq!(store.get(b"old"), Some(value(1, 0, 300)), "before round {round}");
        store.engine().log.lock().skip_to_lsn(Lsn(round << 40));
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
    // The index of so much flash takes most of this memory while it is empty.
    let store = Store::new(Options::new("sim").memory(1350 << 10).flash(2 << 30).segment_size(1 << 20));
    let engine = store.engine();
    let mut most = 0;
    for n in 0..300_000u64 {
        let options = PutOptions::new().wait(Wait::No);
        let mut tries = 0;
        while engine.put((&n.to_le_bytes()).into(), b"", &options).is_err() {
            engine.step_all().unwrap();
            tries += 1;
            assert!(tries < 100, "put {n} of {} entries: {:?}", engine.index.entries(), engine.stats());
        }
        most = most.max(engine.index.allocated());
    }
    let stats = engine.stats();
    assert!(stats.evicted > 0 && stats.entries > 10_000, "{stats:?}");
    assert!(most <= engine.context.settings.index_bytes_max + engine.context.settings.memory / 64 + 64, "{most}");
}

#[test]
fn an_iteration_sees_each_entry_that_stays_once_however_late_it_comes_to_it() {
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
        // Every other entry of the same length is replaced until all segments had another life.
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
fn memory_that_is_not_given_is_enough_for_the_index_also_without_a_checkpoint() {
    let mut store = Store::new(Options::new("sim").flash(256 << 20).segment_size(4 << 20));
    let settings = |store: &Store| (store.engine().context.settings.memory, store.engine().context.settings.index_bytes_max);
    let given = settings(&store);
    assert!(store.engine().index.allocated() < given.1);
    let engine = store.engine.take().unwrap();
    // As if the index had grown beyond what the default gives.
    let mut small = engine.context.settings.clone();
    small.index_bytes_max = engine.index.allocated() / 2;
    assert!(fit_index(small.clone(), &store.options.clone().memory(given.0).resize(false), engine.index.allocated()).is_err());
    let before = small.index_bytes_max;
    small = fit_index(small, &store.options.clone().memory(given.0), engine.index.allocated()).unwrap();
    assert_eq!(small.index_bytes_max, before, "what is given is what is taken");
    small = fit_index(small, &store.options, engine.index.allocated()).unwrap();
    assert!(small.index_bytes_max > engine.index.allocated());
    assert_eq!(small.memory - small.index_bytes_max, given.0 - before);
}

#[test]
fn another_geometry_keeps_the_entries() {
    let mut store = Store::new(small());
    for k in 0..800u64 {
        store.put(&k.to_le_bytes(), &value(k, 0, 100));
    }
    for options in [small().flash(8 << 20), small().flash(8 << 20).segment_size(256 << 10), small().memory(8 << 20), small()] {
        let engine = store.engine.take().unwrap();
        engine.begin_close();
        engine.finish().unwrap();
        drop(engine);
        store.options = options;
        store.open();
        for k in 0..800u64 {
            assert_eq!(store.get(&k.to_le_bytes()), Some(value(k, 0, 100)));
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8, usize),
    PutHost(u8, usize),
    Delete(u8),
    Get(u8),
    Step,
    Sync,
    Checkpoint,
    Kill,
    Close,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (any::<u8>(), 0usize..6000).prop_map(|(k, n)| Op::Put(k, n)),
        2 => (any::<u8>(), 0usize..5000).prop_map(|(k, n)| Op::PutHost(k, n)),
        3 => any::<u8>().prop_map(Op::Delete),
        6 => any::<u8>().prop_map(Op::Get),
        2 => Just(Op::Step),
        1 => Just(Op::Sync),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Kill),
        1 => Just(Op::Close),
    ];
    prop::collection::vec(op, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_engine_agrees_with_a_model_across_restarts(ops in ops()) {
        let mut store = Store::new(small());
        let mut model: HashMap<u8, Vec<u8>> = HashMap::new();
        let mut versions: HashMap<u8, u64> = HashMap::new();
        for (n, op) in ops.into_iter().enumerate() {
            match op {
                Op::Put(k, len) | Op::PutHost(k, len) => {
                    let ack = if matches!(op, Op::PutHost(..)) { Ack::Host } else { Ack::Process };
                    let bytes = value(k.into(), n as u64, len);
                    let version = store.engine().put((&[k]).into(), &bytes, &PutOptions::new().ack(ack)).unwrap().unwrap();
                    prop_assert!(versions.insert(k, version.0).is_none_or(|old| old < version.0));
                    model.insert(k, bytes);
                }
                Op::Delete(k) => {
                    store.engine().delete((&[k]).into(), &DeleteOptions::new()).unwrap();
                    model.remove(&k);
                }
                Op::Get(k) => check(&store, &model, k)?,
                Op::Step => store.engine().step_all().unwrap(),
                Op::Sync => drop(store.engine().step_sync().unwrap()),
                Op::Checkpoint => drop(store.engine().step_checkpoint(true).unwrap()),
                Op::Kill => {
                    store.kill();
                    prop_assert!(store.engine().context.report.damaged.is_empty(), "{:?}", store.engine().context.report);
                }
                Op::Close => store.close(),
            }
        }
        for k in 0..=255 {
            check(&store, &model, k)?;
        }
        prop_assert_eq!(store.engine().stats().damaged, 0);
    }
}

fn check(store: &Store, model: &HashMap<u8, Vec<u8>>, k: u8) -> Result<(), TestCaseError> {
    let found = store.engine().get((&[k]).into(), true).unwrap();
    match (found, model.get(&k)) {
        (Some(found), Some(expected)) => prop_assert_eq!(&found[..], &expected[..]),
        (Some(found), None) => return Err(TestCaseError::fail(format!("key {k} came back: {found:?}"))),
        // Flash holds less than was put: only what was evicted may miss.
        (None, Some(_)) => prop_assert!(store.engine().stats().reclaimed.0 > 0, "key {} is lost", k),
        (None, None) => {}
    }
    Ok(())
}

#[test]
fn marks_that_fill_the_wal_keep_nobody_waiting() {
    let store = Store::new(small().flash(512 << 10));
    let engine = store.engine();
    let (long, mut passed) = (value(1, 0, 3_900), engine.context.time.now_ms());
    let put = || engine.put((b"long").into(), &long, &PutOptions::new().wait(Wait::No).ack(Ack::Host));
    // Wherever the last block of what is written begins: nothing but marks comes after it.
    for marks in (400..820).step_by(20) {
        engine.step_all().unwrap();
        assert!(put().is_ok());
        engine.persist(Ack::Host).unwrap();
        for _ in 0..marks {
            passed += 1;
            engine.record_time_passed(passed);
        }
        if put().is_err() {
            engine.step_all().unwrap();
            assert!(put().is_ok(), "after {marks} marks");
        }
    }
}
