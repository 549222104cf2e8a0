//! Races between writers, readers and background threads, with real threads on a real directory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use everwarm::{Backend, Cache, FillError, Options, PutOptions};

const KEYS_PER_WRITER: u64 = 500;
const WRITERS: u64 = 4;

fn key(writer: u64, k: u64) -> Vec<u8> {
    format!("key-{writer}-{k}").into_bytes()
}

/// A value that names its key and version, of a length that varies with both.
fn value(writer: u64, k: u64, version: u64) -> Vec<u8> {
    let mut out = format!("{writer}:{k}:{version}:").into_bytes();
    let len = (k * 37 + version * 101) % 1500;
    out.resize(out.len() + len as usize, (writer ^ k ^ version) as u8);
    out
}

fn version_of(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    text.split(':').nth(2).and_then(|v| v.parse().ok()).expect("a version")
}

fn options(dir: &tempfile::TempDir) -> Options {
    Options::new(dir.path().join("store"))
}

#[test]
fn what_does_not_change_is_seen_by_every_iteration() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(options(&dir).memory(1 << 20).flash(4 << 20).segment_size(64 << 10)).unwrap();
    for k in 0..500 {
        cache.put(key(0, k), value(0, k, 1)).unwrap();
    }
    let done = AtomicU64::new(0);
    std::thread::scope(|s| {
        s.spawn(|| {
            for version in (1..).take_while(|_| done.load(Ordering::Relaxed) == 0) {
                cache.put(key(1, version % 200), value(1, version % 200, version)).unwrap();
            }
        });
        let reclaimed = || cache.stats().segments_reclaimed;
        while reclaimed() < 200 {
            let seen = cache.entries().map(|entry| entry.unwrap()).filter(|entry| entry.key.starts_with(b"key-0-")).count();
            if seen != 500 || cache.stats().evicted > 0 {
                done.store(1, Ordering::Relaxed);
            }
            assert_eq!((seen, cache.stats().evicted), (500, 0), "after {} segments were reclaimed", reclaimed());
        }
        done.store(1, Ordering::Relaxed);
    });
}

#[test]
fn readers_never_see_an_older_version_than_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    // All keys are rewritten many times on a small flash, so that segments are reused while readers
    // read them.
    let cache = Cache::open(options(&dir).memory(1 << 20).flash(8 << 20).segment_size(64 << 10)).unwrap();
    let acked: Vec<AtomicU64> = (0..WRITERS * KEYS_PER_WRITER).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|s| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let (cache, acked) = (&cache, &acked);
                s.spawn(move || {
                    for version in 1..=60 {
                        for k in 0..KEYS_PER_WRITER {
                            cache.put(key(w, k), value(w, k, version)).unwrap();
                            acked[(w * KEYS_PER_WRITER + k) as usize].store(version, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        let mut n = 0u64;
        while !writers.iter().all(|w| w.is_finished()) {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (w, k) = ((n >> 33) % WRITERS, (n >> 40) % KEYS_PER_WRITER);
            let at_least = acked[(w * KEYS_PER_WRITER + k) as usize].load(Ordering::SeqCst);
            if let Some(found) = cache.get(key(w, k)).unwrap() {
                let version = version_of(&found);
                assert!(version >= at_least, "key {w}-{k}: {version} after {at_least} was acknowledged");
                assert_eq!(&found[..], value(w, k, version));
            }
        }
    });
    let stats = cache.stats();
    assert!(stats.segments_reclaimed > 100, "{stats:?}");
    assert_eq!(stats.damaged, 0, "{stats:?}");
}

#[test]
fn nothing_is_lost_between_the_write_buffer_and_flash() {
    let dir = tempfile::tempdir().unwrap();
    let count = 40_000;
    let cache = Cache::open(options(&dir).memory(1 << 20).flash(128 << 20).segment_size(64 << 10)).unwrap();
    std::thread::scope(|s| {
        for w in 0..WRITERS {
            let cache = &cache;
            s.spawn(move || (0..count / WRITERS).for_each(|k| assert!(cache.put(key(w, k), value(w, k, 7)).is_ok())));
        }
    });
    let check = |cache: &Cache| {
        for w in 0..WRITERS {
            for k in 0..count / WRITERS {
                let found = cache.get(key(w, k)).unwrap();
                assert_eq!(found.as_deref(), Some(&value(w, k, 7)[..]), "key {w}-{k}");
            }
        }
    };
    check(&cache);
    cache.close().unwrap();
    let cache = Cache::open(options(&dir)).unwrap();
    check(&cache);
    assert_eq!(cache.stats().damaged, 0);
}

#[test]
fn get_many_answers_like_single_gets_with_either_backend() {
    let dir = tempfile::tempdir().unwrap();
    let count = 4_000;
    let small = |backend| options(&dir).memory(1 << 20).flash(64 << 20).segment_size(64 << 10).backend(backend);
    let cache = Cache::open(small(Backend::Auto)).unwrap();
    (0..count).for_each(|k| assert!(cache.put(key(0, k), value(0, k, 1)).is_ok()));
    cache.delete(key(0, 17)).unwrap();
    cache.close().unwrap();
    for backend in [Backend::Auto, Backend::Portable] {
        let cache = Cache::open(small(backend)).unwrap();
        assert!(backend == Backend::Auto || !cache.stats().io_uring);
        // More keys than one ring has room for, with absent keys and a duplicate.
        for first in (0..count).step_by(300) {
            let keys: Vec<_> = (first..first + 310).chain([first]).map(|k| key(0, k)).collect();
            let found = cache.get_many(&keys).unwrap();
            for (k, found) in (first..first + 310).chain([first]).zip(found) {
                let expected = (k < count && k != 17).then(|| value(0, k, 1));
                assert_eq!(found.as_deref(), expected.as_deref(), "key {k} with {backend:?}");
            }
        }
        assert_eq!(cache.stats().damaged, 0);
        cache.close().unwrap();
    }
}

#[test]
fn concurrent_misses_load_once_and_a_mutation_meanwhile_wins() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(options(&dir).memory(1 << 20).flash(1 << 20)).unwrap();
    let loads = AtomicU64::new(0);
    let load = || {
        loads.fetch_add(1, Ordering::SeqCst);
        Ok::<_, std::io::Error>("loaded".into())
    };
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| assert_eq!(cache.get_or_fill("key", &PutOptions::new(), load).unwrap(), "loaded"));
        }
    });
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    let deleted_meanwhile = || {
        cache.delete("other").unwrap();
        load()
    };
    assert_eq!(cache.get_or_fill("other", &PutOptions::new(), deleted_meanwhile).unwrap(), "loaded");
    assert!(cache.get("other").unwrap().is_none(), "a delete after the miss wins over the load");
    let put_meanwhile = || {
        cache.put("third", "newer").unwrap();
        load()
    };
    assert_eq!(cache.get_or_fill("third", &PutOptions::new(), put_meanwhile).unwrap(), "loaded");
    assert_eq!(&cache.get("third").unwrap().unwrap()[..], b"newer");
    let failing = || Err(std::io::Error::other("the database is down"));
    assert!(matches!(cache.get_or_fill("fourth", &PutOptions::new(), failing), Err(FillError::Loader(_))));
    assert_eq!(cache.get_or_fill("fourth", &PutOptions::new(), load).unwrap(), "loaded");
}

#[test]
fn touch_changes_the_expiry_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(options(&dir).memory(1 << 20).flash(1 << 20)).unwrap();
    assert!(cache.touch("key", None).unwrap().is_none());
    let version = cache.put("key", "value").unwrap();
    let touched = cache.touch("key", Some(Duration::ZERO)).unwrap().unwrap();
    assert!(touched > version);
    assert!(cache.get("key").unwrap().is_none(), "the entry expired at once");
    cache.put("key", "value").unwrap();
    cache.touch("key", Some(Duration::from_secs(3600))).unwrap().unwrap();
    assert_eq!(&cache.get("key").unwrap().unwrap()[..], b"value");
}
