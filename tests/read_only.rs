//! Readers of a store (`Options::read_only`): beside a live writer in another process, on a
//! read-only mount, and without a trace in the directory.
#![allow(clippy::disallowed_methods, reason = "a writer works for a while of real time")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use everwarm::{Ack, Cache, Error, Options, RecoveryMode, WalValues};

/// Set for the process that writes; the value is the store's directory.
const WRITER: &str = "EVERWARM_LIVE_WRITER";
/// Set with it: which of [`SHAPES`] the store has.
const SHAPE: &str = "EVERWARM_LIVE_SHAPE";
const KEYS: u64 = 64;

/// Bytes of flash and of values, puts between two pauses of 1 ms, and what the WAL holds. 0 puts
/// are without a pause.
const SHAPES: [(u64, usize, u64, WalValues); 4] = [
    (16 << 20, 100, 0, WalValues::Host),
    (64 << 20, 2_000, 0, WalValues::Never),
    (16 << 20, 1_000, 20, WalValues::Always),
    (1 << 20, 300, 1, WalValues::Host),
];

fn options(dir: &Path, shape: usize) -> Options {
    let (flash, _, _, values) = SHAPES[shape];
    Options::new(dir).memory(8 << 20).flash(flash).wal_values(values)
}

fn reader(dir: &Path) -> everwarm::Result<Cache> {
    Cache::open(Options::new(dir).read_only(true))
}

/// A reader beside a writer. `None` if the writer was too fast for it, which is for the scheduler
/// to decide.
fn reader_beside(dir: &Path) -> Option<Cache> {
    match reader(dir) {
        Ok(cache) => Some(cache),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::ResourceBusy => None,
        Err(error) => panic!("{error:?}"),
    }
}

/// Entry of the process that writes; passes at once in any other process. It puts growing numbers
/// under keys that take turns, and says on its output how far it came.
#[test]
fn child_process_that_writes() {
    let (Some(dir), Ok(shape)) = (std::env::var_os(WRITER), std::env::var(SHAPE)) else { return };
    let shape = shape.parse().unwrap();
    let (_, len, burst, _) = SHAPES[shape];
    let cache = Cache::open(options(dir.as_ref(), shape)).unwrap();
    let mut out = std::io::stdout().lock();
    for number in 0u64.. {
        let mut value = vec![number as u8; len];
        value[..8].copy_from_slice(&number.to_le_bytes());
        cache.put((number % KEYS).to_le_bytes(), value).unwrap();
        // Also as a catalog change, which must be as new as the entries.
        if number % 1_000 == 0 {
            cache.set_resume_token("number", number.to_le_bytes()).unwrap();
        }
        if burst > 0 && number % burst == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        writeln!(out, "acknowledged {number}").unwrap();
    }
}

/// A process that writes to a store until this is dropped, and the newest number that it has
/// acknowledged.
struct Writer {
    child: Child,
    newest: &'static AtomicU64,
}

impl Writer {
    fn start(dir: &Path, shape: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process_that_writes", "--nocapture"])
            .env(WRITER, dir)
            .env(SHAPE, shape.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let newest: &AtomicU64 = Box::leak(Box::default());
        let follow = |out: ChildStdout| {
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok()).for_each(|n| newest.store(n, Ordering::SeqCst));
        };
        let out = child.stdout.take().unwrap();
        std::thread::spawn(move || follow(out));
        let writer = Self { child, newest };
        while writer.newest() < 2 * KEYS {
            std::thread::sleep(Duration::from_millis(1));
        }
        writer
    }

    fn newest(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Checks that a reader shows one of the latest numbers for each key, none older than those that
/// were acknowledged up to `newest`.
fn check(cache: &Cache, newest: u64) {
    assert_eq!(cache.recovery().damaged, Vec::<String>::new());
    assert!(!cache.recovery().manifest_repaired);
    let mut misses = 0;
    for key in 0..KEYS {
        let acknowledged = newest - (newest + KEYS - key) % KEYS;
        match cache.get(key.to_le_bytes()).unwrap() {
            Some(value) => {
                let number = u64::from_le_bytes(value[..8].try_into().unwrap());
                assert!(value[8..].iter().all(|byte| *byte == number as u8), "key {key} has a value that nobody put");
                assert!(number % KEYS == key && number >= acknowledged, "key {key}: {number} is older than {acknowledged}");
            }
            None => misses += 1,
        }
    }
    let token = cache.resume_token("number").unwrap().map_or(0, |token| u64::from_le_bytes(token.try_into().unwrap()));
    assert!(token + 1_000 > newest, "the token {token} is older than {newest}");
    // Only what the writer has reused since misses, and that counts.
    assert_eq!(misses, cache.stats().damaged);
}

#[test]
fn readers_beside_a_writer_under_load_see_what_was_acknowledged() {
    for shape in 0..SHAPES.len() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::start(dir.path(), shape);
        let (until, mut opened, mut busy, mut longest) = (Instant::now() + Duration::from_secs(4), 0, 0, Duration::ZERO);
        while Instant::now() < until {
            let (newest, started) = (writer.newest(), Instant::now());
            let Some(cache) = reader_beside(dir.path()) else {
                busy += 1;
                continue;
            };
            longest = longest.max(started.elapsed());
            check(&cache, newest);
            cache.close().unwrap();
            opened += 1;
        }
        assert!(opened > busy, "shape {shape}: the writer was too fast for {busy} of {} openings", opened + busy);
        println!("shape {shape}: {opened} openings up to {longest:?} beside {} puts", writer.newest());
        let newest = writer.newest();
        drop(writer);
        // The killed writer left what a kill leaves. Readers and the next writer agree on it.
        let cache = reader(dir.path()).unwrap();
        check(&cache, newest);
        let found =
            |cache: &Cache| cache.entries().map(|e| e.map(|e| (e.key.to_vec(), e.version))).collect::<Result<HashMap<_, _>, _>>().unwrap();
        assert_eq!(found(&cache), found(&Cache::open(options(dir.path(), shape)).unwrap()));
    }
}

#[test]
fn readers_beside_openings_and_closes_see_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (newest, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let round = |first: u64| {
        let cache = Cache::open(options(dir.path(), 3)).unwrap();
        for number in first..first + 150 {
            let mut value = vec![number as u8; 300];
            value[..8].copy_from_slice(&number.to_le_bytes());
            cache.put((number % KEYS).to_le_bytes(), value).unwrap();
            newest.store(number, Ordering::SeqCst);
        }
        cache.set_resume_token("number", (first + 149).to_le_bytes()).unwrap();
        if first % 4 < 2 {
            cache.close().unwrap();
        }
    };
    round(0);
    let (mut opened, mut busy) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let until = Instant::now() + Duration::from_secs(4);
            (1..).take_while(|_| Instant::now() < until).for_each(|n| round(n * 150));
            is_over.store(true, Ordering::SeqCst);
        });
        while !is_over.load(Ordering::SeqCst) {
            let newest = newest.load(Ordering::SeqCst);
            match reader_beside(dir.path()) {
                Some(cache) => {
                    check(&cache, newest);
                    opened += 1;
                }
                None => busy += 1,
            }
        }
    });
    println!("{opened} openings, too slow for {busy} others");
    assert!(opened > 0);
}

/// Names, contents, owners and times of all files.
fn image(dir: &Path) -> Vec<(PathBuf, Vec<u8>, u64, i64, i64, u32)> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let of = |path: PathBuf| {
        let found = std::fs::metadata(&path).unwrap();
        (std::fs::read(&path).unwrap(), found.ino(), found.mtime(), found.mtime_nsec(), found.mode())
    };
    files.into_iter().map(|path| (path.clone(), of(path))).map(|(path, (a, b, c, d, e))| (path, a, b, c, d, e)).collect()
}

/// A store of 500 entries, as a kill leaves it, or closed.
fn store(dir: &Path, close: bool) {
    let cache = Cache::open(options(dir, 3)).unwrap();
    for key in 0..500u32 {
        cache.put(key.to_le_bytes(), [7; 500]).unwrap();
    }
    if close {
        cache.close().unwrap();
    }
}

#[test]
fn a_reader_leaves_no_trace() {
    for close in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), close);
        std::fs::remove_file(dir.path().join("LOCK")).unwrap();
        let before = (image(dir.path()), std::fs::metadata(dir.path()).unwrap().mtime_nsec());
        for mode in [RecoveryMode::Serve, RecoveryMode::Refuse, RecoveryMode::Rebuild] {
            let cache = Cache::open(Options::new(dir.path()).read_only(true).recovery(mode)).unwrap();
            let second = reader(dir.path()).unwrap();
            for cache in [&cache, &second] {
                assert!((0..500u32).all(|key| cache.get(key.to_le_bytes()).unwrap().is_some()));
                assert!(matches!(cache.put("key", "value"), Err(Error::ReadOnly)));
                assert!(matches!(cache.persist(Ack::Host), Err(Error::ReadOnly)));
                assert!(matches!(cache.checkpoint(), Err(Error::ReadOnly)));
            }
            cache.close().unwrap();
            drop(second);
        }
        assert!(before == (image(dir.path()), std::fs::metadata(dir.path()).unwrap().mtime_nsec()));
    }
}

#[test]
fn a_reader_needs_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    for path in [dir.path(), &missing] {
        assert!(matches!(reader(path), Err(Error::NotFound { .. })));
    }
    assert!(!missing.exists() && std::fs::read_dir(dir.path()).unwrap().count() == 0);
}

#[test]
fn a_reader_takes_hard_links_and_waits_for_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
    store(dir.path(), false);
    for (path, ..) in image(dir.path()) {
        std::fs::hard_link(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    assert_eq!(reader(copy.path()).unwrap().stats().entries, 500);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    assert_eq!(reader(dir.path()).unwrap().stats().entries, 500);
}

/// A read-only mount of a directory; unmounted when this is dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(of: &Path, at: &'a Path) -> Option<Self> {
        let done = Command::new("mount").args(["--bind", "-o", "ro"]).args([of, at]).output();
        done.is_ok_and(|done| done.status.success()).then_some(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let umounted = Command::new("umount").arg(self.0).status();
        assert!(umounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_store_on_a_read_only_mount_is_read() {
    for close in [true, false] {
        let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        store(dir.path(), close);
        let Some(mounted) = Mounted::new(dir.path(), at.path()) else {
            println!("skipped: nothing can be mounted here");
            return;
        };
        assert!(Cache::open(Options::new(at.path())).is_err());
        let cache = reader(at.path()).unwrap();
        assert!((0..500u32).all(|key| cache.get(key.to_le_bytes()).unwrap().is_some()));
        cache.close().unwrap();
        drop(mounted);
    }
}
