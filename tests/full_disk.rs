//! Small real file systems that fill up.

mod mounted;

use std::path::Path;
use std::time::Duration;

use everwarm::{Ack, Cache, Error, Options, PutOptions, Wait};
use mounted::Mounted;

fn value(n: u64) -> Vec<u8> {
    format!("{n}:").into_bytes().into_iter().chain((0..3_000).map(|at| (at ^ n) as u8)).collect()
}

fn open(dir: &Path) -> Cache {
    Cache::open(Options::new(dir).memory(2 << 20).flash(64 << 20).segment_size(256 << 10)).unwrap()
}

/// Puts the values of `numbers`.
fn fill(cache: &Cache, numbers: std::ops::Range<u64>) {
    let patient = PutOptions::new().wait(Wait::UpTo(Duration::from_secs(120)));
    for n in numbers {
        cache.put_with(n.to_le_bytes(), value(n), &patient).unwrap_or_else(|error| panic!("{n}: {error}"));
    }
}

/// Asserts that the cache has the values of `numbers`.
fn check(cache: &Cache, numbers: std::ops::Range<u64>) {
    for n in numbers {
        assert_eq!(cache.get(n.to_le_bytes()).unwrap().as_deref(), Some(&value(n)[..]), "{n}");
    }
}

/// A store whose `flash` is larger than the file system keeps the newest entries that fit, and
/// takes more room as soon as there is some.
fn small_file_system_evicts(kind: &str) {
    let Some(mounted) = Mounted::new(kind, 12) else { return };
    let ballast = mounted.at().join("ballast");
    std::fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let dir = mounted.at().join("store");
    let mut cache = open(&dir);
    let mut put = 0;
    for round in 0..4u64 {
        fill(&cache, put..put + 3_000);
        put += 3_000;
        let stats = cache.stats();
        assert!(stats.disk_limits_flash && stats.evicted > 0 && stats.damaged == 0, "{stats:?}");
        check(&cache, put - 400..put);
        cache.persist(Ack::Host).unwrap();
        if round % 2 == 0 {
            cache.close().unwrap();
        } else {
            drop(cache);
        }
        cache = open(&dir);
        assert!(cache.recovery().damaged.is_empty(), "{:?}", cache.recovery());
        check(&cache, put - 400..put);
    }
    let before = cache.stats().entries;
    std::fs::remove_file(&ballast).unwrap();
    fill(&cache, put..put + 3_000);
    assert!(cache.stats().entries > before + 500, "{} after {before}", cache.stats().entries);
    check(&cache, put + 2_000..put + 3_000);
    cache.close().unwrap();
}

#[test]
fn a_tmpfs_smaller_than_flash_evicts() {
    small_file_system_evicts("tmpfs");
}

#[test]
fn an_ext4_smaller_than_flash_evicts() {
    small_file_system_evicts("ext4");
}

#[test]
fn an_xfs_that_is_full_evicts() {
    let Some(mounted) = Mounted::new("xfs", 320) else { return };
    let ballast = std::fs::File::create(mounted.at().join("ballast")).unwrap();
    let free = rustix::fs::statvfs(mounted.at()).unwrap();
    let len = (free.f_bavail * free.f_frsize).saturating_sub(12 << 20);
    rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, len).unwrap();
    let cache = open(&mounted.at().join("store"));
    fill(&cache, 0..8_000);
    assert!(cache.stats().disk_limits_flash && cache.stats().evicted > 0, "{:?}", cache.stats());
    check(&cache, 7_600..8_000);
    cache.close().unwrap();
}

#[test]
fn a_file_system_without_room_for_a_segment_is_a_typed_error() {
    let Some(mounted) = Mounted::new("ext4", 12) else { return };
    let dir = mounted.at().join("store");
    open(&dir).close().unwrap();
    // No segment has a file.
    for id in 0..256 {
        let _absent = std::fs::remove_file(dir.join(format!("segment.{id}")));
    }
    let mut ballast = std::fs::File::create(mounted.at().join("ballast")).unwrap();
    while std::io::Write::write(&mut ballast, &[1; 4096]).is_ok() {}
    let cache = open(&dir);
    let refused = (0..400u64).find_map(|n| cache.put(n.to_le_bytes(), value(n)).err());
    assert!(matches!(refused, Some(Error::DiskFull)), "{refused:?}");
    ballast.set_len(0).unwrap();
    // The disk is asked again a few times a second.
    while matches!(cache.put("key", "value"), Err(Error::DiskFull)) {}
    fill(&cache, 0..100);
    check(&cache, 0..100);
    cache.close().unwrap();
}
