//! Small real file systems that fill up.
//!
//! Mounting takes a privilege. Without it these tests print that they are skipped and pass; if
//! `EVERWARM_MOUNTS` is set they fail instead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use everwarm::{Ack, Cache, Error, Options, PutOptions, Wait};

const AT: &str = "mounted";

/// A mounted file system of 12 MiB; unmounted when this is dropped.
struct Mounted {
    root: tempfile::TempDir,
}

impl Mounted {
    fn new(kind: &str) -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let (image, at) = (root.path().join("image"), root.path().join(AT));
        std::fs::create_dir(&at).unwrap();
        let run = |program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]| {
            Command::new(program)
                .args(arguments.iter().map(|argument| argument.as_ref()))
                .output()
                .is_ok_and(|output| output.status.success())
        };
        let is_mounted = match kind {
            "tmpfs" => run("mount", &[&"-t", &"tmpfs", &"-o", &"size=12m", &"none", &at]),
            _ => {
                std::fs::File::create(&image).unwrap().set_len(12 << 20).unwrap();
                run("mkfs.ext4", &[&"-q", &"-J", &"size=1", &image]) && run("mount", &[&"-o", &"loop", &image, &at])
            }
        };
        if !is_mounted {
            assert!(std::env::var_os("EVERWARM_MOUNTS").is_none(), "{kind} cannot be mounted");
            println!("skipped: {kind} cannot be mounted here");
            return None;
        }
        Some(Self { root })
    }

    fn at(&self) -> PathBuf {
        self.root.path().join(AT)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let umounted = Command::new("umount").arg(self.at()).status();
        assert!(umounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn value(n: u64) -> Vec<u8> {
    format!("{n}:").into_bytes().into_iter().chain((0..3_000).map(|at| (at ^ n) as u8)).collect()
}

fn open(dir: &Path) -> Cache {
    Cache::open(Options::new(dir).memory(2 << 20).flash(64 << 20).segment_size(256 << 10)).unwrap()
}

/// Puts the values of `numbers` until one is refused. Returns the first refused number, or the end
/// of the range.
fn fill(cache: &Cache, numbers: std::ops::Range<u64>) -> u64 {
    let patient = PutOptions::new().wait(Wait::UpTo(Duration::from_millis(500)));
    numbers
        .clone()
        .find(|n| match cache.put_with(n.to_le_bytes(), value(*n), &patient) {
            Ok(_) => false,
            Err(Error::TimedOut) => true,
            Err(error) => panic!("{n}: {error}"),
        })
        .unwrap_or(numbers.end)
}

/// Asserts that the cache has the values of `numbers`.
fn check(cache: &Cache, numbers: std::ops::Range<u64>) {
    for n in numbers {
        assert_eq!(cache.get(n.to_le_bytes()).unwrap().as_deref(), Some(&value(n)[..]), "{n}");
    }
}

fn full_file_system_is_back_pressure(kind: &str) {
    let Some(mounted) = Mounted::new(kind) else { return };
    let ballast = mounted.at().join("ballast");
    std::fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let dir = mounted.at().join("store");
    let mut put = 0;
    let mut cache = open(&dir);
    for round in 0..3 {
        let end = fill(&cache, put..put + 10_000);
        println!("{kind}, round {round}: {} puts, {} refusals by the file system", end - put, cache.stats().disk_full);
        assert!(end < put + 10_000 && cache.stats().disk_full > 0, "the file system is full");
        put = end;
        check(&cache, 0..put);
        if round == 1 {
            // The close fails if the write buffer finds no segment; the next open recovers the
            // buffer.
            assert!(matches!(cache.close(), Ok(()) | Err(Error::Failed { .. })));
        } else {
            drop(cache);
        }
        cache = open(&dir);
        assert!(cache.recovery().damaged.is_empty(), "{:?}", cache.recovery());
        check(&cache, 0..put);
        let left = (4 << 20) - (round + 1) * (1 << 20);
        std::fs::File::options().write(true).open(&ballast).unwrap().set_len(left).unwrap();
        let end = fill(&cache, put..put + 100);
        assert_eq!(end, put + 100, "puts succeed again once there is room, without a restart");
        put = end;
    }
    put = fill(&cache, put..put + 10_000);
    // `persist` waits for room if the write buffer finds no segment.
    std::thread::scope(|scope| {
        let refusals = cache.stats().disk_full;
        let persist = scope.spawn(|| cache.persist(Ack::Host));
        while cache.stats().disk_full < refusals + 2 && !persist.is_finished() {
            std::thread::yield_now();
        }
        std::fs::remove_file(&ballast).unwrap();
        persist.join().unwrap().unwrap();
    });
    cache.close().unwrap();
    check(&open(&dir), 0..put);
}

#[test]
fn a_full_tmpfs_is_back_pressure_and_service_returns_with_room() {
    full_file_system_is_back_pressure("tmpfs");
}

#[test]
fn a_full_ext4_is_back_pressure_and_service_returns_with_room() {
    full_file_system_is_back_pressure("ext4");
}
