//! The features `io-uring` and `zstd`. A build without them refuses the options that need them, and
//! opens every store. The tests hold in each build.

#[path = "golden/answers.rs"]
mod answers;

use std::collections::HashSet;

use bytes::Bytes;
use everwarm::{Backend, Cache, Compression, Condition, Error, Options, PutOptions};

use answers::{NAMES, answers, expected, is_killed, keys_of, options, unpack};

const HAS_ZSTD: bool = cfg!(feature = "zstd");
const HAS_RINGS: bool = cfg!(feature = "io-uring");

/// The archived store whose values were compressed.
const COMPRESSED: &str = "mixed";

fn small(dir: &std::path::Path) -> Options {
    Options::new(dir).memory(1 << 20).flash(1 << 20)
}

#[test]
fn options_are_refused_where_their_feature_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |options: Options| match Cache::open(options) {
        Ok(cache) => cache.close().map(|()| None).expect("room"),
        Err(Error::InvalidOption { name, reason }) => Some((name, reason)),
        Err(error) => panic!("{error}"),
    };
    let zstd = refusal(small(&dir.path().join("zstd")).compression(Compression::Zstd(3)));
    match HAS_ZSTD {
        true => assert_eq!(zstd, None),
        false => assert_eq!(zstd, Some(("compression", "everwarm was built without the feature `zstd`".to_owned()))),
    }
    // A build with the feature may still run where the kernel refuses.
    let ring = refusal(small(&dir.path().join("ring")).backend(Backend::IoUring));
    assert!(ring.as_ref().is_none_or(|(name, _)| *name == "backend"));
    assert!(HAS_RINGS || ring.is_some_and(|(_, reason)| reason.contains("without the feature `io-uring`")));
    let cache = Cache::open(small(&dir.path().join("auto"))).unwrap();
    assert!(HAS_RINGS || !cache.stats().io_uring);
}

/// Values that were compressed by another build are errors here if this build cannot decompress.
/// They are neither misses nor damage, and their entries stay.
#[test]
fn compressed_values_are_never_lost_by_a_build_without_zstd() {
    assert!(NAMES.contains(&COMPRESSED) && is_killed(COMPRESSED));
    let dir = tempfile::tempdir().unwrap();
    unpack(COMPRESSED, dir.path());
    let text = expected(COMPRESSED, "host");
    let keys = keys_of(&text);
    for _opening in 0..2 {
        let cache = Cache::open(options(dir.path())).unwrap();
        let before = cache.stats().entries;
        if HAS_ZSTD {
            assert!(answers(&cache, &keys).lines().filter(|line| line.starts_with("key ")).all(|line| text.contains(line)));
        } else {
            check_refused(&cache, &text, &keys);
        }
        let stats = cache.stats();
        assert_eq!(stats.damaged, 0);
        // Without zstd no get looks at an entry closely enough to find it expired and remove it.
        assert!(HAS_ZSTD || stats.entries == before);
        cache.close().unwrap();
    }
}

/// Checks that each key gives the bytes in `text`, or an error if it has a value that is long
/// enough to be compressed.
fn check_refused(cache: &Cache, text: &str, keys: &[(String, String)]) {
    let (mut refused, mut given) = (HashSet::new(), HashSet::new());
    for (namespace, key) in keys {
        let Some(space) = (if namespace == "-" { Some(cache.clone()) } else { cache.existing_namespace(namespace).unwrap() }) else {
            continue;
        };
        let line = text.lines().find(|line| line.starts_with(&format!("key {namespace} {key} "))).expect("a line for each key");
        let words: Vec<&str> = line.split(' ').skip(3).collect();
        match space.get(key) {
            Ok(Some(value)) => {
                assert_eq!(words[2], format!("{:08x}", crc32fast::hash(&value)), "{line}");
                given.insert((space.name().to_owned(), key.clone()));
            }
            Ok(None) => assert_eq!(words, ["miss"], "{line}"),
            Err(Error::NeedsZstd) => {
                assert!(words.len() == 3 && words[1].parse::<usize>().unwrap() >= 128, "{line}");
                assert!(matches!(space.get_many(&[key]), Err(Error::NeedsZstd)));
                assert!(matches!(pollster::block_on(space.for_tasks().get(key)), Err(Error::NeedsZstd)));
                let absent = PutOptions::new().condition(Condition::IfAbsent);
                assert!(matches!(space.put_with(key, "new", &absent), Err(Error::NeedsZstd)));
                refused.insert((space.name().to_owned(), key.clone()));
            }
            Err(error) => panic!("{line}: {error}"),
        }
    }
    assert!(refused.len() > 100 && !given.is_empty(), "{} refused, {} given", refused.len(), given.len());
    let entries: Vec<_> = cache.entries_of_all_namespaces().collect();
    assert_eq!(entries.iter().filter(|entry| matches!(entry, Err(Error::NeedsZstd))).count(), refused.len());
    let listed = entries.iter().flatten().map(|entry| (entry.namespace.to_string(), String::from_utf8_lossy(&entry.key).into_owned()));
    assert_eq!(listed.collect::<HashSet<_>>(), given);
}

/// A fill puts a value that this build can read in the place of one that it cannot.
#[test]
fn a_fill_replaces_a_value_that_cannot_be_decompressed() {
    let dir = tempfile::tempdir().unwrap();
    unpack(COMPRESSED, dir.path());
    let cache = Cache::open(options(dir.path())).unwrap();
    let keys = [0, 1].map(|n| format!("key-{n}"));
    let load = || Ok::<_, std::convert::Infallible>(Bytes::from_static(b"loaded"));
    let tasks = cache.for_tasks();
    let filled = [
        cache.get_or_fill(&keys[0], &PutOptions::new(), load).unwrap(),
        pollster::block_on(tasks.get_or_fill(&keys[1], &PutOptions::new(), async { load() })).unwrap(),
    ];
    for (key, filled) in keys.iter().zip(filled) {
        assert_eq!(filled == "loaded", !HAS_ZSTD);
        assert_eq!(cache.get(key).unwrap().as_deref(), Some(&filled[..]));
    }
}
