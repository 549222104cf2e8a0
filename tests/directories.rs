//! What people do to the directory of an open store: rename it, replace it, remove it, link into
//! it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use everwarm::{Ack, Cache, Error, Options, PutOptions};
use proptest::prelude::*;

/// Set for a child process, which runs one scenario in a directory of its own.
const SCENARIO: &str = "EVERWARM_DIRECTORY_SCENARIO";

fn options(dir: impl AsRef<Path>) -> Options {
    Options::new(dir).memory(2 << 20).flash(8 << 20).segment_size(256 << 10).lock_timeout(Duration::ZERO)
}

fn open(dir: &Path) -> Cache {
    Cache::open(options(dir)).expect("a store")
}

fn value(key: u64, tag: u8) -> Vec<u8> {
    [&key.to_le_bytes()[..], &[tag; 2992]].concat()
}

fn put(cache: &Cache, keys: std::ops::Range<u64>, tag: u8) {
    let host = PutOptions::new().ack(Ack::Host);
    for key in keys {
        cache.put_with(key.to_le_bytes(), value(key, tag), &host).expect("room");
    }
}

fn check(cache: &Cache, keys: std::ops::Range<u64>, tag: u8) {
    keys.for_each(|key| assert_eq!(cache.get(key.to_le_bytes()).expect("open").as_deref(), Some(&value(key, tag)[..]), "key {key}"));
}

#[test]
fn a_renamed_directory_stays_the_same_store() {
    let root = tempfile::tempdir().unwrap();
    let (name, other) = (root.path().join("cache"), root.path().join("cache.old"));
    let first = open(&name);
    put(&first, 0..300, 1);
    fs::rename(&name, &other).unwrap();
    let second = open(&name);
    put(&second, 0..500, 2);
    put(&first, 300..900, 1);
    check(&first, 0..900, 1);
    check(&second, 0..500, 2);
    first.close().unwrap();
    second.close().unwrap();
    check(&open(&other), 0..900, 1);
    check(&open(&name), 0..500, 2);
}

/// Runs a scenario of [`scenario_in_a_child`] in a child process whose working directory is `dir`.
fn run_in_child(name: &str, dir: &Path) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scenario_in_a_child", "--nocapture"])
        .env(SCENARIO, name)
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

/// Entry of child processes, because a working directory belongs to a process. Passes at once in
/// any other process.
#[test]
fn scenario_in_a_child() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    let store = Path::new("store");
    match scenario.as_str() {
        // As a daemon does it, with another store of that name where it goes.
        "daemon" => {
            put(&open(store), 0..900, 1);
            let cache = open(store);
            std::env::set_current_dir("other").unwrap();
            let other = open(store);
            put(&other, 0..300, 2);
            check(&cache, 0..900, 1);
            put(&cache, 900..1500, 1);
            check(&other, 0..300, 2);
            cache.close().unwrap();
            other.close().unwrap();
            check(&open(store), 0..300, 2);
            check(&open(Path::new("../store")), 0..1500, 1);
        }
        other => panic!("no scenario {other}"),
    }
}

#[test]
fn a_relative_directory_outlives_a_change_of_the_working_directory() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("other")).unwrap();
    run_in_child("daemon", root.path());
}

/// Removes a directory in which files are being made.
fn remove_whole(dir: &Path) {
    while let Err(error) = fs::remove_dir_all(dir) {
        assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty);
    }
}

#[test]
fn a_removed_directory_fails_the_next_sync_and_the_close() {
    let root = tempfile::tempdir().unwrap();
    let name = root.path().join("store");
    let is_removed = |error: Error| matches!(&error, Error::Failed { reason } if reason.contains("directory was removed"));
    for call in [
        |cache: &Cache| cache.persist(Ack::Host),
        |cache: &Cache| cache.put_with("key", "value", &PutOptions::new().ack(Ack::Host)).map(drop),
    ] {
        let cache = open(&name);
        put(&cache, 0..10, 1);
        remove_whole(&name);
        assert!(is_removed(call(&cache).unwrap_err()));
        check(&cache, 0..10, 1);
        assert!(is_removed(cache.close().unwrap_err()));
    }
    let cache = open(&name);
    remove_whole(&name);
    assert!(is_removed(cache.close().unwrap_err()));
}

#[test]
fn a_removed_lock_file_lets_nobody_in_and_fails_its_owner() {
    let root = tempfile::tempdir().unwrap();
    for replace in [false, true] {
        let name = root.path().join(format!("store.{replace}"));
        let first = open(&name);
        put(&first, 0..300, 1);
        fs::remove_file(name.join("LOCK")).unwrap();
        if replace {
            fs::write(name.join("LOCK"), "").unwrap();
        }
        assert!(matches!(Cache::open(options(&name)), Err(Error::Locked { .. })));
        let failed = first.put_with("key", "value", &PutOptions::new().ack(Ack::Host)).unwrap_err();
        assert!(matches!(&failed, Error::Failed { reason } if reason.contains("LOCK")), "{failed}");
        check(&first, 0..300, 1);
        assert!(matches!(first.close(), Err(Error::Failed { .. })));
        check(&open(&name), 0..300, 1);
    }
}

#[test]
fn an_opening_waits_for_a_holder_of_its_own_process() {
    let root = tempfile::tempdir().unwrap();
    let first = open(root.path());
    put(&first, 0..100, 1);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| Cache::open(options(root.path()).lock_timeout(Duration::from_secs(600))));
        // The other thread waits from some moment on; the answer is the same before it.
        first.close().unwrap();
        check(&second.join().unwrap().unwrap(), 0..100, 1);
    });
}

#[test]
fn links_in_the_directory_are_refused_and_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let victim = root.path().join("victim");
    let text = "root:x:0:0:root:/root:/bin/bash\n";
    for name in ["LOCK", "ring.segments.20", "ring.wal.16", "manifest.0", "segment.0", "wal.0", "checkpoint.1", "heat.1"] {
        let dir = root.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(&victim, text).unwrap();
        symlink(&victim, dir.join(name)).unwrap();
        let opened = Cache::open(options(&dir)).map(|cache| {
            put(&cache, 0..300, 1);
            cache.close()
        });
        assert_eq!(fs::read_to_string(&victim).unwrap(), text, "{name}: {opened:?}");
    }
    // In a store that exists.
    let store = root.path().join("store");
    open(&store).close().unwrap();
    for name in ["LOCK", "manifest.1"] {
        let (file, kept) = (store.join(name), store.join("../kept"));
        fs::rename(&file, &kept).unwrap();
        symlink(&kept, &file).unwrap();
        let refused = Cache::open(options(&store)).map(drop);
        fs::remove_file(&file).unwrap();
        fs::rename(&kept, &file).unwrap();
        let refused = refused.expect_err(name);
        assert!(std::error::Error::source(&refused).is_some_and(|e| e.to_string().contains("symbolic link")), "{name}: {refused:?}");
    }
}

#[test]
fn files_with_other_names_are_refused_with_the_way_out() {
    let root = tempfile::tempdir().unwrap();
    let (store, copy) = (root.path().join("store"), root.path().join("copy"));
    let cache = open(&store);
    put(&cache, 0..300, 1);
    cache.close().unwrap();
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(&store).unwrap() {
        let file = file.unwrap();
        fs::hard_link(file.path(), copy.join(file.file_name())).unwrap();
    }
    for dir in [&store, &copy] {
        let refused = Cache::open(options(dir)).map(drop).unwrap_err();
        let source = std::error::Error::source(&refused).expect("a source").to_string();
        assert!(source.contains("hard links") && source.contains("cp -a"), "{source}");
    }
    fs::remove_dir_all(&copy).unwrap();
    check(&open(&store), 0..300, 1);
}

#[test]
fn a_lock_file_of_another_program_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("LOCK"), "held by somebody\n").unwrap();
    assert!(matches!(Cache::open(options(root.path())), Err(Error::NotAStore { found, .. }) if found == "LOCK"));
    assert_eq!(fs::read_to_string(root.path().join("LOCK")).unwrap(), "held by somebody\n");
}

/// Files of another store, moved here, are neither used nor overwritten nor removed.
#[test]
fn a_file_of_another_store_stays_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let (here, there) = (root.path().join("here"), root.path().join("there"));
    let cache = open(&there);
    put(&cache, 0..900, 2);
    let wal = fs::read_dir(&there).unwrap().map(|file| file.unwrap().path()).find(|path| path.to_string_lossy().contains("/wal."));
    fs::copy(wal.expect("a WAL file"), there.join("kept")).unwrap();
    cache.close().unwrap();
    let cache = open(&here);
    put(&cache, 0..100, 1);
    cache.close().unwrap();
    let foreign: Vec<(PathBuf, Vec<u8>)> = ["segment.9", "segment.30", "wal.7", "renewed.3"]
        .iter()
        .zip(["segment.1", "segment.2", "kept", "segment.3"])
        .map(|(to, from)| {
            fs::copy(there.join(from), here.join(to)).unwrap();
            (here.join(to), fs::read(here.join(to)).unwrap())
        })
        .collect();
    for _ in 0..2 {
        let cache = open(&here);
        put(&cache, 0..6000, 1);
        cache.close().unwrap();
        for (path, content) in &foreign {
            assert!(fs::read(path).is_ok_and(|now| now == *content), "{}", path.display());
        }
    }
    check(&open(&here), 5900..6000, 1);
}

/// One thing that happens to two directories with stores in them.
#[derive(Clone, Debug)]
enum Deed {
    /// Opens the store that a name means now.
    Open(usize),
    /// Puts keys into an open store.
    Put(usize, u64),
    Close(usize),
    /// Drops the handle without a close.
    Drop(usize),
    /// Gives a directory another name. A directory that has the name gets the first one's.
    Rename(usize, usize),
    RemoveLock(usize),
    ReplaceLock(usize),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        3 => (0..3usize).prop_map(Deed::Open),
        4 => (0..3usize, 1..40u64).prop_map(|(owner, count)| Deed::Put(owner, count)),
        1 => (0..3usize).prop_map(Deed::Close),
        1 => (0..3usize).prop_map(Deed::Drop),
        2 => (0..3usize, 0..3usize).prop_map(|(from, to)| Deed::Rename(from, to)),
        1 => (0..3usize).prop_map(Deed::RemoveLock),
        1 => (0..3usize).prop_map(Deed::ReplaceLock),
    ];
    prop::collection::vec(deed, 1..30)
}

/// A store by what it holds, whatever its directory is called.
#[derive(Default)]
struct Known {
    acked: BTreeMap<u64, u8>,
    owner: Option<Cache>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("EVERWARM_DEEDS").map_or(24, |n| n.parse().unwrap()), ..ProptestConfig::default() })]

    /// Whatever happens to names and lock files, each store has one owner and its own entries.
    #[test]
    fn each_directory_has_one_owner_and_its_own_entries(deeds in deeds()) {
        let root = tempfile::tempdir().unwrap();
        let path = |name: usize| root.path().join(format!("name{name}"));
        let mut stores: Vec<Known> = Vec::new();
        // The store that each name means.
        let mut names: [Option<usize>; 3] = [None; 3];
        for (step, deed) in deeds.into_iter().enumerate() {
            match deed {
                Deed::Open(name) => {
                    let store = *names[name].get_or_insert_with(|| {
                        stores.push(Known::default());
                        stores.len() - 1
                    });
                    match Cache::open(options(path(name))) {
                        Ok(cache) => {
                            prop_assert!(stores[store].owner.is_none(), "two owners");
                            stores[store].owner = Some(cache);
                        }
                        Err(Error::Locked { .. }) => prop_assert!(stores[store].owner.is_some()),
                        Err(error) => prop_assert!(false, "{error:?}"),
                    }
                }
                Deed::Put(store, count) => {
                    let Some(Known { acked, owner: Some(cache) }) = stores.get_mut(store) else { continue };
                    for key in (0..count).map(|n| (step as u64 * 7 + n) % 200) {
                        let tag = (store * 50 + step) as u8;
                        match cache.put_with(key.to_le_bytes(), value(key, tag), &PutOptions::new().ack(Ack::Host)) {
                            Ok(_) => drop(acked.insert(key, tag)),
                            Err(Error::Failed { .. }) => drop(acked.remove(&key)),
                            Err(error) => prop_assert!(false, "{error:?}"),
                        }
                    }
                }
                Deed::Close(store) => {
                    let Some(cache) = stores.get_mut(store).and_then(|known| known.owner.take()) else { continue };
                    let _failed_if_its_lock_is_gone = cache.close();
                }
                Deed::Drop(store) => drop(stores.get_mut(store).and_then(|known| known.owner.take())),
                Deed::Rename(from, to) => {
                    let aside = root.path().join("aside");
                    let _absent = fs::rename(path(to), &aside);
                    let _absent = fs::rename(path(from), path(to));
                    let _absent = fs::rename(&aside, path(from));
                    names.swap(from, to);
                }
                Deed::RemoveLock(name) => drop(fs::remove_file(path(name).join("LOCK"))),
                Deed::ReplaceLock(name) if path(name).exists() => {
                    let _absent = fs::remove_file(path(name).join("LOCK"));
                    fs::write(path(name).join("LOCK"), "").unwrap();
                }
                Deed::ReplaceLock(_) => {}
            }
            for Known { acked, owner } in &stores {
                let Some(cache) = owner else { continue };
                for (key, tag) in acked {
                    let found = cache.get(key.to_le_bytes()).unwrap();
                    prop_assert_eq!(found.as_deref(), Some(&value(*key, *tag)[..]));
                }
            }
        }
        stores.iter_mut().for_each(|known| drop(known.owner.take()));
        for (name, store) in names.into_iter().enumerate().filter_map(|(name, store)| Some((name, store?))) {
            let cache = open(&path(name));
            for (key, tag) in &stores[store].acked {
                let found = cache.get(key.to_le_bytes()).unwrap();
                    prop_assert_eq!(found.as_deref(), Some(&value(*key, *tag)[..]));
            }
        }
    }
}
