//! The async API on third-party runtimes: the same answers as the blocking API, with many reads in
//! flight and futures dropped at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use everwarm::{Ack, AsyncCache, Backend, Cache, Condition, FillError, Options, PutOptions};

const KEYS: u64 = 20_000;

fn value(key: u64, version: u64) -> Vec<u8> {
    let mut value = format!("{key}:{version}:").into_bytes();
    value.resize(600 + (key % 900) as usize, key as u8);
    value
}

fn version_of(key: u64, found: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(found);
    let version = text.split(':').nth(1).expect("a value of this test").parse().expect("a version");
    assert_eq!(found, value(key, version), "key {key}");
    version
}

/// A cache with nearly all values on flash only.
fn filled(dir: &tempfile::TempDir, backend: Backend) -> AsyncCache {
    let options = Options::new(dir.path()).memory(2 << 20).flash(64 << 20).backend(backend).depth(32);
    let cache = Cache::open(options).expect("an empty directory");
    for key in 0..KEYS {
        cache.put(key.to_le_bytes(), value(key, 0)).expect("room");
    }
    cache.for_tasks()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_read_and_write_while_futures_are_dropped() {
    for backend in [Backend::Auto, Backend::Portable] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = filled(&dir, backend);
        let (mut tasks, dropped) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
        for task in 0..64u64 {
            let (cache, dropped) = (cache.clone(), Arc::clone(&dropped));
            tasks.push(tokio::spawn(async move {
                for n in 0..150u64 {
                    let key = (task * 7919 + n * 104_729) % KEYS;
                    let get = cache.get(key.to_le_bytes());
                    if n % 3 == 0 {
                        // Polled once, and dropped if it is not ready.
                        tokio::select! {
                            biased;
                            found = get => version_of(key, &found.expect("open").expect("a value")),
                            () = std::future::ready(()) => dropped.fetch_add(1, Ordering::Relaxed) as u64,
                        };
                    } else {
                        version_of(key, &get.await.expect("open").expect("a value"));
                    }
                    if key % 64 == task {
                        // Only this task writes this key, so it reads its own write.
                        cache.put(key.to_le_bytes(), value(key, n)).await.expect("room");
                        let found = cache.get(key.to_le_bytes()).await.expect("open").expect("a value");
                        assert_eq!(version_of(key, &found), n);
                    }
                }
            }));
        }
        for task in tasks {
            task.await.expect("no task panics");
        }
        assert!(dropped.load(Ordering::Relaxed) > 100, "reads of flash were dropped in flight");
        let keys: Vec<[u8; 8]> = (0..500u64).map(|n| (n * 37 % KEYS).to_le_bytes()).collect();
        for (key, found) in keys.iter().zip(cache.get_many(&keys).await.expect("open")) {
            version_of(u64::from_le_bytes(*key), &found.expect("a value"));
        }
        assert!(cache.blocking().stats().hits_flash > 1_000);
        assert_eq!(cache.blocking().stats().damaged, 0);
        cache.blocking().clone().close().expect("a clean close");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_task_loads_for_all_and_another_replaces_a_dropped_loader() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = Cache::open(Options::new(dir.path()).flash(8 << 20)).expect("an empty directory").for_tasks();
    let loads = Arc::new(AtomicUsize::new(0));
    let never = {
        let cache = cache.clone();
        tokio::spawn(async move {
            let load = std::future::pending::<Result<Bytes, std::convert::Infallible>>();
            cache.get_or_fill("key", &PutOptions::new(), load).await.map(drop)
        })
    };
    while !never.is_finished() && cache.blocking().stats().misses == 0 {
        tokio::task::yield_now().await;
    }
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let (cache, loads) = (cache.clone(), Arc::clone(&loads));
        waiting.push(tokio::spawn(async move {
            let load = async {
                loads.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok::<_, std::convert::Infallible>(Bytes::from_static(b"loaded"))
            };
            cache.get_or_fill("key", &PutOptions::new(), load).await.expect("a loader that works")
        }));
    }
    never.abort();
    for task in waiting {
        assert_eq!(&task.await.expect("no task panics")[..], b"loaded");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    let failing = cache.get_or_fill("other", &PutOptions::new(), async { Err("no database") }).await;
    assert!(matches!(failing, Err(FillError::Loader("no database"))));
}

#[test]
fn conditions_and_syncs_work_on_another_runtime() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = Cache::open(Options::new(dir.path()).flash(8 << 20)).expect("an empty directory").for_tasks();
    pollster::block_on(async {
        let absent = PutOptions::new().condition(Condition::IfAbsent).ack(Ack::Host);
        let version = cache.put_with("key", "1", &absent).await.expect("room").expect("it was absent");
        assert!(cache.blocking().stats().durable >= version);
        assert_eq!(cache.put_with("key", "2", &absent).await.expect("room"), None);
        let same = PutOptions::new().condition(Condition::IfVersion(version));
        assert!(cache.put_with("key", "3", &same).await.expect("room").is_some());
        cache.persist(Ack::Host).await.expect("a sync");
        cache.delete("key").await.expect("room");
        assert!(!cache.contains("key").await.expect("open"));
    });
    let cache = cache.blocking().clone();
    cache.close().expect("a clean close");
}

#[tokio::test]
async fn every_mutation_has_an_async_form() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = Cache::open(Options::new(dir.path()).memory(1 << 20).flash(1 << 20)).expect("an empty directory");
    let tasks = cache.namespace("n").expect("room").for_tasks();
    let placed = tasks.put_many(&[("a", "first"), ("b", "second")], &PutOptions::new().ack(Ack::Host)).await.expect("room");
    assert!(placed[0] < placed[1] && cache.stats().durable >= placed[1].expect("unconditional"));
    assert_eq!(tasks.get_range("b", 2..40).await.expect("open").expect("a value"), "cond");
    assert_eq!(tasks.get_range("b", 9..12).await.expect("open").expect("a value"), "");
    assert!(tasks.touch("a", Some(std::time::Duration::ZERO)).await.expect("room") > placed[1]);
    assert_eq!(tasks.touch("c", None).await.expect("room"), None);
    assert!(!tasks.contains("a").await.expect("open") && tasks.contains("b").await.expect("open"));
    let version = tasks.set_resume_token_with("stream", "17", Ack::Host).await.expect("room");
    assert!(cache.stats().durable >= version && cache.resume_token("stream").expect("open").as_deref() == Some(b"17"));
    tasks.clear().await.expect("room");
    assert!(!tasks.contains("b").await.expect("open"));
}
