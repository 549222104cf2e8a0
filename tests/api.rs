//! The documented behaviour of the API, on a real directory and across restarts.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwarm::{Ack, Activity, Cache, Cause, Compression, Condition, DeleteOptions, Error, Hint, Options, PutOptions, Tier, Wait};

fn open(dir: &tempfile::TempDir) -> Cache {
    Cache::open(Options::new(dir.path()).flash(8 << 20)).expect("a directory of this test")
}

fn get(cache: &Cache, key: &str) -> Option<String> {
    cache.get(key).expect("open").map(|value| String::from_utf8(value.to_vec()).expect("text"))
}

#[test]
fn namespaces_are_isolated_and_stay_dropped_after_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = open(&dir);
    let (users, feeds) = (cache.namespace("users").expect("room"), cache.namespace("feeds").expect("room"));
    for (cache, value) in [(&cache, "default"), (&users, "users"), (&feeds, "feeds")] {
        cache.put("key", value).expect("room");
        assert_eq!(cache.entries().count(), 1);
    }
    let mut all: Vec<(String, String)> = cache
        .entries_of_all_namespaces()
        .map(|entry| entry.expect("open"))
        .map(|entry| (entry.namespace.to_string(), String::from_utf8(entry.value.to_vec()).expect("text")))
        .collect();
    all.sort();
    assert_eq!(all, [("", "default"), ("feeds", "feeds"), ("users", "users")].map(|(name, value)| (name.to_owned(), value.to_owned())));
    users.clear().expect("room");
    assert_eq!(cache.entries_of_all_namespaces().count(), 2);
    let expected = [("", Some("default")), ("users", None), ("feeds", Some("feeds"))];
    let check = |cache: &Cache| {
        for (name, value) in expected {
            assert_eq!(get(&cache.namespace(name).expect("room"), "key").as_deref(), value, "namespace {name:?}");
        }
    };
    check(&cache);
    assert_eq!(users.entries().count(), 0);
    drop((users, feeds, cache));
    let cache = open(&dir);
    check(&cache);
    assert_eq!(cache.namespaces().expect("open"), ["feeds", "users"]);
    cache.namespace("users").expect("it exists").put("key", "again").expect("room");
    cache.close().expect("a clean close");
    let cache = open(&dir);
    assert_eq!(get(&cache.namespace("users").expect("it exists"), "key").as_deref(), Some("again"));
    cache.clear_all().expect("room");
    for name in ["", "users", "feeds"] {
        assert_eq!(get(&cache.namespace(name).expect("it exists"), "key"), None);
    }
    drop(cache);
    assert_eq!(open(&dir).entries().count(), 0);
    assert!(matches!(open(&dir).namespace(&"n".repeat(256)), Err(Error::InvalidName { .. })));
}

#[test]
fn a_small_store_opens_again_without_a_given_size_of_flash() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    Cache::open(Options::new(dir.path()).memory(1 << 20).flash(1 << 20)).expect("an empty directory").close().expect("a clean close");
    Cache::open(Options::new(dir.path()).memory(1 << 20)).expect("the store knows its size of flash").close().expect("a clean close");
    let new = tempfile::tempdir().expect("a temporary directory");
    let refused = Cache::open(Options::new(new.path()).memory(1 << 20));
    assert!(matches!(refused, Err(Error::InvalidOption { name: "memory", .. })), "4 GiB by default need more");
    Cache::open(Options::new(new.path())).expect("the refused open created no store");
}

#[test]
fn the_smallest_store_is_under_a_mebibyte() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = || Options::new(dir.path()).memory(1 << 20).flash(512 << 10).segment_size(64 << 10);
    let allocated = || -> u64 {
        let files = std::fs::read_dir(dir.path()).expect("a directory").map(|file| file.expect("a file").metadata());
        files.filter_map(|file| file.ok()).map(|file| file.blocks() * 512).sum()
    };
    let (mut largest, mut reclaimed) = (0, 0);
    for round in 0..4 {
        let cache = Cache::open(options()).expect("a directory of this test");
        for n in 0..20_000u32 {
            cache.put(format!("{}", n % 7000), [n as u8; 200]).expect("room");
            if n % 100 == 0 {
                cache.persist(Ack::Host).expect("a sync");
                largest = largest.max(allocated());
            }
        }
        reclaimed += cache.stats().segments_reclaimed;
        assert_eq!(cache.get("5999").expect("no error").as_deref(), Some(&[19_999u32 as u8; 200][..]), "{round}");
        cache.close().expect("a clean close");
        largest = largest.max(allocated());
    }
    assert!(reclaimed > 0, "the store is full");
    assert!(largest < 1 << 20, "{largest} B");
}

#[test]
fn resume_tokens_come_back_with_the_data() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = open(&dir);
    cache.set_resume_token("stream", "17").expect("room");
    cache.set_resume_token_with("other", "1", Ack::Host).expect("a sync");
    cache.set_resume_token("stream", "18").expect("room");
    drop(cache);
    let cache = open(&dir);
    assert_eq!(cache.resume_token("stream").expect("open").as_deref(), Some(&b"18"[..]));
    cache.set_resume_token("other", "").expect("room");
    cache.close().expect("a clean close");
    let cache = open(&dir);
    assert_eq!(cache.resume_tokens().expect("open"), ["stream"]);
    assert!(matches!(cache.set_resume_token("t", vec![0; 1025]), Err(Error::ValueTooLarge { max: 1024, .. })));
    for n in 1..64 {
        cache.set_resume_token(&format!("{n}"), "x").expect("64 are possible");
    }
    assert!(matches!(cache.set_resume_token("one more", "x"), Err(Error::InvalidName { .. })));
}

#[test]
fn put_many_get_range_and_conditional_deletes_answer_as_documented() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = open(&dir);
    cache.put("b", "old").expect("room");
    let absent = PutOptions::new().condition(Condition::IfAbsent).ack(Ack::Host);
    let versions = cache.put_many(&[("a", "0123456789"), ("b", "new"), ("c", "3")], &absent).expect("room");
    assert!(versions[0].is_some() && versions[1].is_none() && versions[2].is_some());
    assert!(cache.stats().durable >= versions[2].expect("it was absent"), "put_many returns after the sync of its last mutation");
    assert_eq!(get(&cache, "b").as_deref(), Some("old"));
    let range = |range| cache.get_range("a", range).expect("open").map(|bytes| String::from_utf8(bytes.to_vec()).expect("text"));
    assert_eq!(range(2..5).as_deref(), Some("234"));
    assert_eq!((range(8..99).as_deref(), range(50..99).as_deref()), (Some("89"), Some("")));
    assert_eq!(cache.get_range("none", 0..1).expect("open"), None);
    let wrong = DeleteOptions::new().condition(Condition::IfVersion(versions[0].expect("it was absent")));
    assert_eq!(cache.delete_with("c", &wrong).expect("room"), None);
    assert_eq!(get(&cache, "c").as_deref(), Some("3"));
    assert!(cache.delete_with("a", &wrong).expect("room").is_some());
    assert_eq!(get(&cache, "a"), None);
}

#[test]
fn a_hint_decides_the_first_tier_of_a_value() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = open(&dir);
    let tier = |key: &str| cache.peek(key).expect("open").map(|value| value.tier());
    for (key, hint, expected) in
        [("hot", Hint::Memory, Tier::Memory), ("cold", Hint::Flash, Tier::Buffer), ("any", Hint::Auto, Tier::Buffer)]
    {
        cache.put_with(key, "value", &PutOptions::new().hint(hint)).expect("room");
        assert_eq!(tier(key), Some(expected), "{key}");
    }
    cache.put("hot", "next").expect("room");
    assert_eq!(tier("hot"), Some(Tier::Memory), "a new version replaces the old one in the memory tier");
    cache.put_with("hot", "last", &PutOptions::new().hint(Hint::Flash)).expect("room");
    assert_eq!(tier("hot"), Some(Tier::Buffer));
}

#[test]
fn the_listener_is_called_for_every_entry_that_leaves() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let left = Arc::new(Mutex::new(HashMap::<Vec<u8>, (u64, Cause)>::new()));
    let of_listener = Arc::clone(&left);
    let options = Options::new(dir.path()).memory(1 << 20).flash(1 << 20).on_evict(move |evicted| {
        let before = of_listener.lock().expect("no panic").insert(evicted.key.to_vec(), (evicted.version.0, evicted.cause));
        assert!(before.is_none_or(|(version, _)| version < evicted.version.0), "each version leaves once");
    });
    let cache = Cache::open(options).expect("an empty directory");
    let dropped = cache.namespace("dropped").expect("room");
    let mut versions = HashMap::new();
    for n in 0..4000u32 {
        let key = format!("key-{n}").into_bytes();
        let value = vec![n as u8; 900];
        let version = match n {
            0..50 => dropped.put(&key, &value).expect("room"),
            50..100 => {
                let options = PutOptions::new().ttl(Duration::from_millis(1));
                cache.put_with(&key, &value, &options).expect("room").expect("without a condition")
            }
            _ => cache.put(&key, &value).expect("room"),
        };
        versions.insert(key, version.0);
        if n == 100 {
            dropped.clear().expect("room");
        }
    }
    let closed = cache.clone();
    cache.close().expect("a clean close");
    let left = left.lock().expect("no panic");
    let of_cause = |cause| left.values().filter(|(_, c)| *c == cause).count();
    assert_eq!((of_cause(Cause::Dropped), of_cause(Cause::Expired)), (50, 50));
    assert_eq!(of_cause(Cause::Capacity) as u64, closed.stats().evicted);
    drop((closed, dropped));
    let cache = Cache::open(Options::new(dir.path()).memory(1 << 20)).expect("a directory of this test");
    for (key, (version, _)) in left.iter() {
        assert_eq!(versions[key], *version);
        assert!(cache.get(key).expect("open").is_none(), "an entry that left is a miss");
    }
    let hits = versions.keys().filter(|key| cache.get(key).expect("open").is_some()).count();
    let missing = versions.len() - left.len() - hits;
    assert!(missing as u64 <= cache.stats().evicted, "the others are hits, except for entries that were evicted after the restart");
}

#[test]
fn memory_bounds_the_index_even_if_flash_has_room() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let memory = 2 << 20;
    let open = |memory| Cache::open(Options::new(dir.path()).memory(memory).flash(64 << 20)).expect("a directory of this test");
    let cache = open(memory);
    let count = 400_000u32;
    for n in 0..count {
        cache.put(n.to_le_bytes(), n.to_le_bytes()).expect("room");
        if n % 10_000 == 0 {
            let stats = cache.stats();
            assert!(stats.memory_bytes <= memory + (memory / 50).max(4 << 20), "{} B at {n}", stats.memory_bytes);
            assert!(stats.index_bytes <= memory, "{} B of index at {n}", stats.index_bytes);
        }
    }
    let stats = cache.stats();
    assert!(stats.evicted > 100_000 && stats.entries > 50_000, "{stats:?}");
    for n in count - 10_000..count {
        assert_eq!(&cache.get(n.to_le_bytes()).expect("open").expect("the newest are there")[..], n.to_le_bytes());
    }
    drop(cache);
    // A store opened with less memory shrinks its index to that, and keeps working.
    let cache = open(memory / 2);
    for n in 0..1_000u32 {
        cache.put(n.to_le_bytes(), b"again").expect("room");
    }
    assert!(cache.stats().index_bytes <= memory / 2, "{:?}", cache.stats());
}

#[test]
fn a_panic_of_a_background_thread_is_an_error_and_no_hang() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options::new(dir.path()).flash(8 << 20).activity(|activity, begins| {
        assert!(activity != Activity::Sync || !begins, "on purpose");
    });
    let cache = Cache::open(options).expect("an empty directory");
    let forever = PutOptions::new().ack(Ack::Host).wait(Wait::UpTo(Duration::MAX));
    assert!(matches!(cache.put_with("key", "value", &forever), Err(Error::Failed { .. })));
    assert_eq!(get(&cache, "key").as_deref(), Some("value"), "reads still work");
}

#[test]
fn sync_bytes_triggers_a_sync_long_before_sync_interval() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options::new(dir.path()).flash(64 << 20).sync_bytes(64 << 10).sync_interval(Duration::from_secs(3600));
    let cache = Cache::open(options).expect("an empty directory");
    for n in 0..8u8 {
        cache.put([n], vec![n; 100_000]).expect("room");
        let soon = (0..10_000_000).any(|_| {
            std::thread::yield_now();
            cache.stats().durable == cache.stats().appended
        });
        assert!(soon, "{n}: {:?}", cache.stats());
    }
}

#[test]
fn values_kept_by_users_are_counted_until_they_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(Options::new(dir.path().join("s")).memory(8 << 20).flash(64 << 20)).unwrap();
    let keys: Vec<String> = (0..2_000).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        cache.put(key, vec![key.len() as u8; 10_000]).unwrap();
    }
    cache.persist(Ack::Host).unwrap();
    // More values than the memory tier holds, and more than one batch of reads.
    let kept = cache.get_many(&keys).unwrap();
    assert!(kept.iter().zip(&keys).all(|(value, key)| value.as_ref().is_some_and(|v| v[..] == vec![key.len() as u8; 10_000][..])));
    let stats = cache.stats();
    assert!(stats.memory_bytes <= 8 << 20, "{stats:?}");
    let at_least = 2_000 * 10_000 - stats.memory_tier_bytes;
    assert!((at_least..21 << 20).contains(&stats.kept_value_bytes), "{stats:?}");
    drop(kept);
    // Values that the tier evicted are freed when no reader can hold a reference to them.
    let freed = (0..1_000_000).any(|_| {
        cache.get(&keys[0]).expect("open");
        cache.stats().kept_value_bytes < 1 << 20
    });
    assert!(freed, "{:?}", cache.stats());
}

/// Values of four kinds: zstd makes them much smaller, a little smaller or not smaller, or does not
/// try because they are too short.
fn mixed_value(n: u64, version: u64) -> Vec<u8> {
    let text = format!("{n}:{version}:");
    let mut random = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ version;
    let noise = std::iter::repeat_with(move || {
        random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        (random >> 56) as u8
    });
    match n % 4 {
        0 => text.repeat(300).into_bytes(),
        1 => text.bytes().chain(noise).take(900).collect(),
        2 => text.into_bytes(),
        _ => text.repeat(20).bytes().chain(noise.take(500)).chain(std::iter::repeat_n(b'x', 3_000)).collect(),
    }
}

#[test]
#[cfg_attr(not(feature = "zstd"), ignore = "needs the feature zstd")]
fn compressed_values_come_back_unchanged_and_take_less_flash() {
    const KEYS: u64 = 4_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = || Options::new(dir.path()).memory(2 << 20).flash(16 << 20).segment_size(256 << 10);
    let compressed = || options().compression(Compression::Zstd(3));
    let check = |cache: &Cache, version: u64| {
        let keys: Vec<[u8; 8]> = (0..KEYS).map(u64::to_le_bytes).collect();
        let batch = cache.get_many(&keys).expect("open");
        let mut tiers = HashMap::new();
        for (n, many) in (0..KEYS).zip(batch) {
            let (expected, key) = (mixed_value(n, version), n.to_le_bytes());
            let value = cache.get(key).expect("open").expect("it was put");
            *tiers.entry(value.tier()).or_insert(0) += 1;
            assert_eq!(value.as_ref(), expected, "{n}");
            assert_eq!(many.as_deref(), Some(&expected[..]), "{n}, with others");
            let part = expected.len() / 3..expected.len() / 2;
            assert_eq!(cache.get_range(key, part.clone()).expect("open").as_deref(), Some(&expected[part]), "{n}, in part");
            assert!(cache.may_contain(key), "{n}");
        }
        assert!(tiers.contains_key(&Tier::Flash), "{tiers:?}");
        let live: HashMap<Vec<u8>, Vec<u8>> =
            cache.entries().map(|entry| entry.expect("open")).map(|entry| (entry.key.to_vec(), entry.value.to_vec())).collect();
        assert_eq!(live.len() as u64, KEYS);
        assert!((0..KEYS).all(|n| live[&n.to_le_bytes()[..]] == mixed_value(n, version)));
    };
    let cache = Cache::open(compressed()).expect("an empty directory");
    let mut plain_bytes = 0;
    // Three versions, so that segments are reclaimed and live records are moved without
    // recompression.
    for (version, n) in (0..3).flat_map(|version| (0..KEYS).map(move |n| (version, n))) {
        let value = mixed_value(n, version);
        plain_bytes += value.len() as u64;
        cache.put(n.to_le_bytes(), value).expect("room");
    }
    check(&cache, 2);
    cache.persist(Ack::Host).expect("room");
    let written = cache.stats().flash_bytes_written;
    assert!(written < plain_bytes * 6 / 10, "{written} bytes for {plain_bytes}");
    // First a stop as by a kill, then a clean one; reopened with compression, then without.
    drop(cache);
    let cache = Cache::open(compressed()).expect("the store is not open");
    check(&cache, 2);
    cache.close().expect("room");
    let cache = Cache::open(options()).expect("the store is not open");
    check(&cache, 2);
    for n in 0..KEYS {
        cache.put(n.to_le_bytes(), mixed_value(n, 3)).expect("room");
    }
    check(&cache, 3);
}

#[test]
fn may_contain_is_true_for_every_entry_and_rarely_for_absent_keys() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = open(&dir);
    for n in 0..20_000u32 {
        cache.put(n.to_le_bytes(), b"").expect("room");
    }
    assert!((0..20_000u32).all(|n| cache.may_contain(n.to_le_bytes())));
    let wrong = (20_000..120_000u32).filter(|n| cache.may_contain(n.to_le_bytes())).count();
    assert!(wrong < 10, "may_contain is true for {wrong} of 100000 absent keys");
}
