//! Stores of every format version open with the answers that they were archived with.
//!
//! Archives are added, never made anew. To add one, give it a workload in [`write_store`], and run
//! `EVERWARM_GOLDEN=write:NAME:DIR cargo test --test golden writes_a_store` and then
//! `EVERWARM_GOLDEN=answer:NAME:DIR ...` on a copy of DIR, which prints the answers.

#[path = "golden/answers.rs"]
mod answers;

use std::path::Path;
use std::time::Duration;

use answers::{NAMES, expected, is_killed, keys_of, options, unpack};
use everwarm::{Ack, Cache, Compression, Options, PutOptions, Start, WalValues};

/// A value that compresses well, and tells its key and version.
fn value(key: u64, version: u64, len: usize) -> Vec<u8> {
    let mut state = key << 32 | version | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = format!("key {key} version {version} ").into_bytes();
    while bytes.len() < len {
        let word = next();
        bytes.extend_from_slice(&word.to_le_bytes()[..4]);
        bytes.extend_from_slice(b" comes back warm, never wrong. ");
    }
    bytes.truncate(len);
    bytes
}

fn key(n: u64) -> String {
    format!("key-{n}")
}

/// A small store whose syncs happen only when they are asked for.
fn small(dir: &Path) -> Options {
    Options::new(dir).memory(1 << 20).flash(1 << 20).segment_size(64 << 10).sync_interval(Duration::from_secs(3600))
}

/// Writes the store called `name` into `dir`. Ends with a kill of this process where that is part
/// of it.
fn write_store(name: &str, dir: &Path) {
    let is_mixed = name == "mixed";
    let options = match is_mixed {
        true => small(dir).compression(Compression::Zstd(3)).wal_values(WalValues::Always),
        false => small(dir),
    };
    let cache = Cache::open(options).expect("a new store");
    if is_mixed {
        write_mixed(&cache);
    } else if name == "removed" {
        write_removed(&cache);
    } else {
        // More than flash holds, so that segments are reused; then overwrites and deletes.
        for n in 0..700 {
            cache.put(key(n), value(n, 1, 200 + (n as usize * 37) % 3_000)).expect("room");
        }
        cache.put(key(9_000), value(9_000, 1, 40_000)).expect("room");
        for n in (500..700).step_by(3) {
            cache.put(key(n), value(n, 2, 300)).expect("room");
        }
        for n in (501..700).step_by(7) {
            cache.delete(key(n)).expect("room");
        }
    }
    cache.persist(Ack::Host).expect("a sync");
    // What follows is synced by a close alone.
    for n in 600..640 {
        cache.put(key(n), value(n, 3, 500)).expect("room");
    }
    for n in 640..650 {
        cache.delete(key(n)).expect("room");
    }
    cache.put(key(7_000), value(7_000, 1, 900)).expect("room");
    if !is_killed(name) {
        return cache.close().expect("a clean close");
    }
    let this = rustix::process::getpid();
    rustix::process::kill_process(this, rustix::process::Signal::KILL).expect("a signal");
    unreachable!("the process is gone");
}

fn write_mixed(cache: &Cache) {
    let (users, dropped) = (cache.namespace("users").expect("room"), cache.namespace("dropped").expect("room"));
    for n in 0..150 {
        cache.put(key(n), value(n, 1, 900)).expect("room");
        users.put(key(n), value(n, 101, 400)).expect("room");
        dropped.put(key(n), value(n, 201, 100)).expect("room");
    }
    // Far beyond the time at which anybody reads this store, and at once.
    let century = PutOptions::new().ttl(Duration::from_secs(100 * 365 * 86_400));
    let moment = PutOptions::new().ttl(Duration::from_millis(1));
    for n in 150..200 {
        cache.put_with(key(n), value(n, 1, 300), &century).expect("room");
        users.put_with(key(n), value(n, 101, 300), &moment).expect("room");
    }
    dropped.clear().expect("room");
    dropped.put(key(3), value(3, 202, 100)).expect("room");
    cache.set_resume_token("stream", "position 41").expect("room");
    cache.set_resume_token("stream", "position 42").expect("room");
    cache.set_resume_token("gone", "soon").expect("room");
    cache.set_resume_token("gone", "").expect("room");
    cache.put(key(8_000), vec![0; 30_000]).expect("room");
}

/// Of three namespaces, one is removed, and one is removed and made again. The last removal is not
/// synced.
fn write_removed(cache: &Cache) {
    for name in ["users", "gone", "again", "late"] {
        let space = cache.namespace(name).expect("room");
        for n in 0..150 {
            space.put(key(n), value(n, 1, 700)).expect("room");
        }
    }
    for n in 0..200 {
        cache.put(key(n), value(n, 1, 900)).expect("room");
    }
    cache.set_resume_token("stream", "position 1").expect("room");
    assert!(cache.drop_namespace("gone").expect("room").is_some() && cache.drop_namespace("again").expect("room").is_some());
    let again = cache.namespace("again").expect("room");
    for n in 0..40 {
        again.put(key(n), value(n, 2, 500)).expect("room");
    }
    let century = PutOptions::new().ttl(Duration::from_secs(100 * 365 * 86_400));
    for n in 40..60 {
        again.put_with(key(n), value(n, 2, 500), &century).expect("room");
    }
    cache.persist(Ack::Host).expect("a sync");
    cache.drop_namespace("late").expect("room");
}

/// Every key that a workload names.
fn keys_of_workload(name: &str) -> Vec<(String, String)> {
    let mut keys: Vec<_> = (0..700).chain([7_000, 8_000, 9_000]).map(|n| ("-".to_owned(), key(n))).collect();
    let namespaces: &[&str] = match name {
        "mixed" => &["users", "dropped"],
        "removed" => &["users", "gone", "again", "late"],
        _ => &[],
    };
    for namespace in namespaces {
        keys.extend((0..200).map(|n| ((*namespace).to_owned(), key(n))));
    }
    keys
}

#[test]
#[cfg_attr(not(feature = "zstd"), ignore = "needs the feature zstd")]
fn stores_of_every_format_give_their_answers() {
    for name in NAMES {
        let dir = tempfile::tempdir().expect("a temporary directory");
        unpack(name, dir.path());
        let cache = Cache::open(options(dir.path())).unwrap_or_else(|e| panic!("{name}: {e}"));
        // The host that wrote them sees that it did not stop since.
        let stop = match cache.recovery().kind {
            Start::Clean if !is_killed(name) => "clean",
            Start::Process if is_killed(name) => "process",
            Start::Host if is_killed(name) => "host",
            other => panic!("{name}: {other:?}"),
        };
        let expected = expected(name, stop);
        let keys = keys_of(&expected);
        assert!(keys.len() > 700, "{name}: the answers name {} keys", keys.len());
        // A store opens any number of times with the same answers, but for how it was stopped.
        let values = |text: &str| text.split_once("key ").map(|(_, keys)| keys.to_owned());
        assert_eq!(answers::answers(&cache, &keys), expected, "{name}");
        cache.close().expect("a clean close");
        let manifest = std::fs::read(dir.path().join("manifest.0")).expect("a manifest");
        assert_eq!(manifest[4..8], 2u32.to_le_bytes(), "{name}: an opening writes the newest version");
        let cache = Cache::open(options(dir.path())).unwrap_or_else(|e| panic!("{name}, again: {e}"));
        assert_eq!(values(&answers::answers(&cache, &keys)), values(&expected), "{name}, again");
        cache.close().expect("a clean close");
    }
}

/// Not a test of its own: the process that writes an archive, or prints the answers of a store.
#[test]
fn writes_a_store() {
    let Ok(order) = std::env::var("EVERWARM_GOLDEN") else { return };
    match order.splitn(3, ':').collect::<Vec<_>>()[..] {
        ["write", name, dir] => write_store(name, Path::new(dir)),
        ["answer", name, dir] => {
            let cache = Cache::open(options(Path::new(dir))).expect("the store");
            println!("{}", answers::answers(&cache, &keys_of_workload(name)));
        }
        _ => panic!("EVERWARM_GOLDEN={order}: write:NAME:DIR or answer:NAME:DIR is expected"),
    }
}
