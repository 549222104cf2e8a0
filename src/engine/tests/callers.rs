//! What callers see of the cache's own trouble, and what a call costs that is going to be refused.

use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tracing::field::{Field, Visit};

use super::internals;
use super::model::value;
use super::store::{Store, small};
use crate::config::{Ack, Compression, Options, WalValues};
use crate::engine::{Condition, DeleteOptions, Engine, FillError, Hint, NotStored, PutOptions, Tier, Wait};
use crate::error::Error;
use crate::id::Lsn;
use crate::io::Disk;
use crate::io::sim::{FaultOp, SimDisk};

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
#[cfg_attr(not(feature = "zstd"), ignore = "needs the feature zstd")]
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

/// The log lines of a test: how many there were, and how many the last one says were left out.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<(AtomicU64, AtomicU64)>);

impl Lines {
    fn of(&self, work: impl FnOnce()) -> (u64, u64) {
        self.0.0.store(0, Ordering::Relaxed);
        tracing::subscriber::with_default(self.clone(), work);
        (self.0.0.load(Ordering::Relaxed), self.0.1.load(Ordering::Relaxed))
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct LeftOut<'a>(&'a AtomicU64);
        impl Visit for LeftOut<'_> {
            fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
            fn record_u64(&mut self, field: &Field, value: u64) {
                if field.name() == "left_out" {
                    self.0.store(value, Ordering::Relaxed);
                }
            }
        }
        self.0.0.fetch_add(1, Ordering::Relaxed);
        event.record(&mut LeftOut(&self.0.1));
    }

    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn reads_that_fail_write_one_log_line_a_segment_and_minute() {
    let mut store = Store::new(small());
    let keys: Vec<[u8; 8]> = (0..20u64).map(u64::to_le_bytes).collect();
    keys.iter().for_each(|key| store.put(key, &[1; 1_000]));
    store.close();
    store.disk.fail(FaultOp::Read, 1, std::io::ErrorKind::Other, true);
    let (engine, lines) = (store.engine(), Lines::default());
    let load = || Ok::<_, Infallible>(Bytes::from_static(b"loaded"));
    let read_all = || {
        for key in &keys {
            assert!(engine.get(key.into(), true).unwrap().is_none());
            assert!(pollster::block_on(engine.get_in_task(key.into(), true)).unwrap().is_none());
            assert!(engine.put(key.into(), b"x", &PutOptions::new().condition(Condition::IfAbsent)).is_err());
        }
        let keys: Vec<_> = keys.iter().map(Into::into).collect();
        assert!(engine.get_many(&keys).unwrap().iter().all(Option::is_none));
    };
    let before = engine.stats().read_errors;
    assert_eq!(lines.of(read_all).0, 1);
    let failed = engine.stats().read_errors - before;
    assert!(failed >= 80, "{failed}");
    store.clock.advance(Duration::from_secs(61));
    assert_eq!(lines.of(read_all), (1, failed - 1));
    let found = lines.of(|| assert_eq!(engine.get_or_fill((&keys[0]).into(), &PutOptions::new(), load).unwrap(), "loaded"));
    assert_eq!(found.0, 0);
}

type Loaded = Result<Bytes, Infallible>;

/// Fills a key on this thread and in a task, and checks that both return what was loaded. Returns
/// how many values were not stored.
fn fill_twice(engine: &Engine, key: &[u8], value: &Bytes, options: &PutOptions) -> NotStored {
    let (before, loads) = (engine.stats().not_stored, AtomicU64::new(0));
    let load = || -> Loaded {
        loads.fetch_add(1, Ordering::Relaxed);
        Ok(value.clone())
    };
    assert_eq!(engine.get_or_fill(key.into(), options, load).unwrap(), value);
    assert_eq!(pollster::block_on(engine.get_or_fill_in_task(key.into(), options, async { load() })).unwrap(), value);
    let after = engine.stats().not_stored;
    assert_eq!(after.total() - before.total(), loads.load(Ordering::Relaxed), "each load is counted, and nothing else");
    after
}

#[test]
fn a_fill_returns_what_was_loaded_whatever_the_cache_says() {
    let (value, options) = (Bytes::from(vec![7; 1_000]), PutOptions::new());
    let full = Store::new(small());
    full.engine().step_all().unwrap();
    while full.engine().put(b"other".into(), &value, &PutOptions::new().wait(Wait::No)).is_ok() {}
    // By default a fill waits for nothing, so nobody makes room here.
    assert_eq!(fill_twice(full.engine(), b"key", &value, &options).no_room, 2);
    let limits = Store::new(small());
    assert_eq!(fill_twice(limits.engine(), b"", &value, &options).length, 2);
    assert_eq!(fill_twice(limits.engine(), b"key", &vec![7; 1 << 20].into(), &options).length, 4);
    assert_eq!(fill_twice(limits.engine(), b"absent", &value, &PutOptions::new().condition(Condition::IfPresent)).overtaken, 2);

    let failed = Store::new(small().wal_values(WalValues::Always));
    failed.put(b"old", b"1");
    failed.disk.fail(FaultOp::Sync, 1, std::io::ErrorKind::Other, true);
    assert!(failed.engine().persist(Ack::Host).is_err());
    for ack in [PutOptions::new(), PutOptions::new().ack(Ack::Host), PutOptions::new().wait(Wait::Forever)] {
        fill_twice(failed.engine(), b"key", &value, &ack);
    }
    assert_eq!(failed.engine().stats().not_stored.stopped, 6);
    assert_eq!(failed.engine().get_or_fill(b"old".into(), &options, || -> Loaded { unreachable!("a hit") }).unwrap(), "1");
    failed.engine().begin_close();
    assert_eq!(fill_twice(failed.engine(), b"old", &value, &options).stopped, 8);

    let mut unreadable = Store::new(small());
    unreadable.put(b"key", b"old");
    unreadable.close();
    unreadable.disk.fail(FaultOp::Read, 1, std::io::ErrorKind::Other, true);
    let if_absent = PutOptions::new().condition(Condition::IfAbsent);
    assert_eq!(fill_twice(unreadable.engine(), b"key", &value, &if_absent).io, 2);
}

#[test]
fn a_fill_waits_for_room_if_it_is_told_to() {
    let store = Store::new(small());
    let value = Bytes::from(vec![7; 1_000]);
    store.engine().get_or_fill(b"first".into(), &PutOptions::new(), || -> Loaded { Ok(value.clone()) }).unwrap();
    assert_eq!(store.get(b"first").as_deref(), Some(&value[..]), "the first segment is waited for");
    while store.engine().put(b"other".into(), &value, &PutOptions::new().wait(Wait::No)).is_ok() {}
    let load = || -> Loaded { Ok(value.clone()) };
    store.engine().get_or_fill(b"key".into(), &PutOptions::new().wait(Wait::Forever), load).unwrap();
    assert_eq!((store.get(b"key"), store.engine().stats().not_stored.total()), (Some(value.to_vec()), 0));
}

#[test]
fn a_fill_at_host_does_not_wait_for_a_sync_without_an_end() {
    let disk = SimDisk::new(1);
    let (engine, threads) = internals::open_with_threads(&small().wal_values(WalValues::Always), &disk);
    disk.fail(FaultOp::Create, 1, std::io::ErrorKind::StorageFull, true);
    let options = PutOptions::new().ack(Ack::Host).wait(Wait::UpTo(Duration::from_millis(20)));
    let load = || -> Loaded { Ok(Bytes::from_static(b"loaded")) };
    assert_eq!(engine.get_or_fill(b"a".into(), &options, load).unwrap(), "loaded");
    assert_eq!(pollster::block_on(engine.get_or_fill_in_task(b"b".into(), &options, async { load() })).unwrap(), "loaded");
    assert_eq!(engine.stats().not_stored.no_room, 2);
    engine.begin_close();
    threads.join();
}

#[test]
fn a_loader_may_fill_its_own_key() {
    let store = Store::new(small());
    let (engine, options) = (store.engine(), PutOptions::new());
    let inner = || -> Loaded { Ok(Bytes::from_static(b"inner")) };
    let outer = || engine.get_or_fill(b"a".into(), &options, inner);
    assert_eq!(engine.get_or_fill(b"a".into(), &options, outer).unwrap(), "inner");
    let outer = engine.get_or_fill_in_task(b"b".into(), &options, async { inner() });
    let both = async { tokio::join!(outer, engine.get_or_fill_in_task(b"c".into(), &options, async { inner() })).0 };
    assert_eq!(pollster::block_on(engine.get_or_fill_in_task(b"b".into(), &options, both)).unwrap(), "inner");
    // A blocking fill in a task's load.
    let outer = async { engine.get_or_fill(b"d".into(), &options, inner) };
    assert_eq!(pollster::block_on(engine.get_or_fill_in_task(b"d".into(), &options, outer)).unwrap(), "inner");
    assert_eq!(engine.stats().not_stored.alone, 3);
    assert_eq!(store.get(b"d").as_deref(), Some(&b"inner"[..]), "the outer fill stored it");
}

#[test]
fn a_recursion_without_an_end_is_an_error() {
    fn load(engine: &Engine, loads: &AtomicU64) -> Result<Bytes, FillError<String>> {
        engine.get_or_fill(b"key".into(), &PutOptions::new(), || {
            loads.fetch_add(1, Ordering::Relaxed);
            load(engine, loads).map_err(|error| error.to_string())
        })
    }
    let (store, loads) = (Store::new(small()), AtomicU64::new(0));
    let Err(FillError::Loader(error)) = load(store.engine(), &loads) else { panic!("no value can be loaded") };
    assert_eq!(error, FillError::<String>::Loader(String::new()).to_string());
    assert_eq!(loads.load(Ordering::Relaxed), 8);
    let innermost = store.engine().get_or_fill(b"key".into(), &PutOptions::new(), || -> Loaded { Ok(Bytes::from_static(b"1")) });
    assert_eq!(innermost.unwrap(), "1", "nothing is left behind");
}

/// Ready once the flag is set.
async fn set(flag: &AtomicBool) {
    std::future::poll_fn(|_| if flag.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }).await;
}

#[test]
fn a_fill_that_is_never_polled_again_is_replaced() {
    let store = Store::new(small());
    let (engine, options, may_go_on) = (store.engine(), PutOptions::new(), AtomicBool::new(false));
    let mut context = Context::from_waker(Waker::noop());
    let load = async {
        set(&may_go_on).await;
        Loaded::Ok(Bytes::from_static(b"slow"))
    };
    let mut slow = pin!(engine.get_or_fill_in_task(b"key".into(), &options, load));
    assert!(slow.as_mut().poll(&mut context).is_pending());
    let other = async { Loaded::Ok(Bytes::from_static(b"other")) };
    let mut waiting = pin!(engine.get_or_fill_in_task(b"key".into(), &options, other));
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    store.clock.advance(Duration::from_secs(5));
    engine.step_all().unwrap();
    let fast = || -> Loaded { Ok(Bytes::from_static(b"fast")) };
    assert_eq!(engine.get_or_fill(b"key".into(), &options, fast).unwrap(), "fast");
    assert!(matches!(waiting.as_mut().poll(&mut context), Poll::Ready(Ok(value)) if value == "fast"));
    may_go_on.store(true, Ordering::Relaxed);
    assert!(matches!(slow.as_mut().poll(&mut context), Poll::Ready(Ok(value)) if value == "slow"));
    assert_eq!(store.get(b"key").as_deref(), Some(&b"fast"[..]), "the load that was replaced stores nothing");
    assert_eq!(engine.stats().not_stored.overtaken, 1);
}

#[test]
fn a_wait_for_another_load_ends_as_the_options_say() {
    let (engine, threads) = internals::open_with_threads(&small(), &SimDisk::new(1));
    let options = PutOptions::new();
    let mut never = pin!(engine.get_or_fill_in_task(b"key".into(), &options, std::future::pending::<Loaded>()));
    assert!(never.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let soon = PutOptions::new().wait(Wait::UpTo(Duration::from_millis(10)));
    assert_eq!(fill_twice(&engine, b"key", &Bytes::from_static(b"own"), &soon).alone, 2);
    engine.begin_close();
    threads.join();
}

#[test]
fn waiters_share_one_load_even_if_it_cannot_be_stored() {
    let store = Store::new(small());
    let (engine, may_go_on, loads) = (store.engine(), AtomicBool::new(false), AtomicU64::new(0));
    let if_present = PutOptions::new().condition(Condition::IfPresent);
    let fill = || {
        let load = async {
            let load = loads.fetch_add(1, Ordering::Relaxed);
            set(&may_go_on).await;
            Loaded::Ok(Bytes::from(vec![load as u8]))
        };
        Box::pin(engine.get_or_fill_in_task(b"key".into(), &if_present, load))
    };
    let mut context = Context::from_waker(Waker::noop());
    let mut fills: Vec<_> = (0..4).map(|_| fill()).collect();
    fills.iter_mut().for_each(|fill| assert!(fill.as_mut().poll(&mut context).is_pending()));
    may_go_on.store(true, Ordering::Relaxed);
    for fill in &mut fills {
        assert!(matches!(fill.as_mut().poll(&mut context), Poll::Ready(Ok(value)) if *value == [0]));
    }
    // A caller that comes after a delete does not get what was loaded before it.
    may_go_on.store(false, Ordering::Relaxed);
    let mut before = fill();
    assert!(before.as_mut().poll(&mut context).is_pending());
    engine.delete(b"key".into(), &DeleteOptions::new()).unwrap();
    let mut after = fill();
    assert!(after.as_mut().poll(&mut context).is_pending());
    may_go_on.store(true, Ordering::Relaxed);
    assert!(matches!(before.as_mut().poll(&mut context), Poll::Ready(Ok(value)) if *value == [1]));
    assert!(matches!(after.as_mut().poll(&mut context), Poll::Ready(Ok(value)) if *value == [2]));
}

#[test]
fn a_task_stops_waiting_for_room_when_its_time_is_over() {
    let disk = SimDisk::new(1);
    let (engine, threads) = internals::open_with_threads(&small().memory(2 << 20), &disk);
    disk.hold(FaultOp::Write);
    let options = PutOptions::new().wait(Wait::UpTo(Duration::from_millis(10)));
    let put = |n: u64| pollster::block_on(engine.put_in_task((&n.to_le_bytes()).into(), &[7; 2_000], &options));
    // No write ends, so there is no signal that there may be room.
    let refused = (0..1_000).find_map(|n| put(n).err());
    assert!(matches!(refused, Some(Error::TimedOut)), "{refused:?}");
    disk.release();
    engine.begin_close();
    threads.join();
}

#[test]
fn tasks_that_are_never_polled_again_keep_no_room_from_others() {
    let disk = SimDisk::new(1);
    let (engine, threads) = internals::open_with_threads(&small().memory(2 << 20), &disk);
    disk.hold(FaultOp::Write);
    let soon = PutOptions::new().wait(Wait::UpTo(Duration::from_millis(10)));
    let put = |n: u64, options: &PutOptions| engine.put((&n.to_le_bytes()).into(), &[7; 2_000], options);
    assert!((0..1_000).any(|n| put(n, &soon).is_err()), "the store is full");
    let (forever, mut context) = (PutOptions::new(), Context::from_waker(Waker::noop()));
    let mut kept: Vec<_> = (0..15).map(|_| Box::pin(engine.put_in_task(b"kept".into(), &[7; 2_000], &forever))).collect();
    kept.iter_mut().for_each(|put| assert!(put.as_mut().poll(&mut context).is_pending()));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| put(1_001, &forever));
        disk.release();
        assert!(waiting.join().unwrap().is_ok());
    });
    engine.begin_close();
    threads.join();
}
