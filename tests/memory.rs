#![allow(unsafe_code, reason = "an allocator that counts")]
//! Memory and descriptors stay within their bounds, while a store is filled and while it is
//! recovered. These tests have processes of their own, so that the memory of a process can be
//! measured.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use everwarm::{Cache, Error, Options};

/// The system allocator, with a count of the allocated bytes.
struct Counting;

/// Bytes that are allocated now.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
/// The most bytes that were ever allocated.
static MOST_ALLOCATED: AtomicUsize = AtomicUsize::new(0);

fn count(len: usize) {
    let now = ALLOCATED.fetch_add(len, Ordering::Relaxed) + len;
    MOST_ALLOCATED.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: Every call is passed unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: The caller upholds the contract of the same method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: The caller upholds the contract of the same method.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count(len);
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: The caller upholds the contract of the same method.
        unsafe { System.realloc(at, layout, len) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: The caller upholds the contract of the same method.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const MEMORY: u64 = 32 << 20;

/// A figure in bytes of `/proc/self/status`.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("procfs has this line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

/// Resident bytes of this process.
fn resident() -> u64 {
    status("VmRSS:")
}

/// Number of file descriptors that this process has open.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

#[test]
fn memory_and_descriptors_stay_within_their_bounds() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let puts: u64 = std::env::var("EVERWARM_MEMORY_PUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let before = resident();
    let cache = Cache::open(Options::new(dir.path()).flash(256 << 20).memory(MEMORY)).expect("room");
    let mut most_allocated = 0;
    let (mut most_counted, mut most_resident, mut refused, mut found) = (0, 0, 0, 0);
    let (open_before, mut most_open) = (descriptors(), 0);
    std::thread::scope(|scope| {
        let halves = (0..2).map(|half| {
            let cache = &cache;
            scope.spawn(move || {
                let (mut refused, mut found) = (0u64, 0u64);
                let tiny = vec![7u8; 24];
                let mut large = vec![9u8; 400 << 10];
                for n in (half..puts).step_by(2) {
                    let key = (((n * 0x9e37_79b9) >> 13) % 200_000).to_le_bytes();
                    match n % 1_000 {
                        // Too large for this store.
                        0 | 1 => refused += u64::from(matches!(cache.put(key, vec![1; 5 << 20]), Err(Error::ValueTooLarge { .. }))),
                        2 | 3 => {
                            large[..8].copy_from_slice(&key);
                            cache.put(key, &large).expect("room");
                        }
                        4..500 => drop(cache.put(key, &tiny).expect("room")),
                        _ => found += u64::from(cache.get(key).expect("open").is_some()),
                    }
                }
                (refused, found)
            })
        });
        let halves: Vec<_> = halves.collect();
        while halves.iter().any(|half| !half.is_finished()) {
            most_counted = most_counted.max(cache.stats().memory_bytes);
            most_allocated = most_allocated.max(ALLOCATED.load(Ordering::Relaxed));
            most_resident = most_resident.max(resident().saturating_sub(before));
            most_open = most_open.max(descriptors());
            std::thread::yield_now();
        }
        for half in halves {
            let (some_refused, some_found) = half.join().expect("no panic");
            refused += some_refused;
            found += some_found;
        }
    });
    let most_allocated = most_allocated as u64;
    println!("allocated {} MiB", most_allocated >> 20);
    println!("counted {} MiB, resident {} MiB, refused {refused}, found {found}", most_counted >> 20, most_resident >> 20);
    assert_eq!(refused, puts / 500);
    assert!(found > puts / 20);
    let slack = (MEMORY / 50).max(4 << 20);
    assert!(most_counted <= MEMORY + slack, "{most_counted} B counted of a budget of {MEMORY}");
    // Rings and large values are mappings, which this allocator does not count.
    assert!(most_allocated <= MEMORY - (10 << 20) + slack, "{most_allocated} B allocated of a budget of {MEMORY}, without rings");
    // Memory outside the budget:
    // - the values that two threads are putting or getting,
    // - code and stacks,
    // - free memory in the allocator's arena of each thread; more in a slow build, where more calls
    //   are in progress at once.
    let outside = 2 * (5 << 20) + if cfg!(debug_assertions) { 16 << 20 } else { 8 << 20 };
    assert!(most_resident <= MEMORY + MEMORY / 10 + outside, "{most_resident} B resident with a budget of {MEMORY}");
    let open_max = open_before + cache.stats().segments_total as usize + 64;
    assert!(most_open <= open_max, "{most_open} descriptors, at most {open_max} are expected");
}

/// What a child process does to a store.
const CHILD: &str = "EVERWARM_MEMORY_CHILD";

/// A store, and the records that fill it.
#[derive(Clone, Copy, Debug)]
struct Case {
    memory: u64,
    flash: u64,
    segment: u64,
    records: u64,
    /// Bytes of a value. Without one the records are tombstones.
    value: Option<usize>,
}

impl Case {
    /// The case of the child's arguments.
    fn parse(words: &[&str]) -> Self {
        let number = |i: usize| words[i].parse::<u64>().expect("a number");
        let value = (words[4] != "-").then(|| number(4) as usize);
        Self { memory: number(0), flash: number(1), segment: number(2), records: number(3), value }
    }

    fn words(&self) -> String {
        let value = self.value.map_or("-".to_owned(), |len| len.to_string());
        format!("{} {} {} {} {value}", self.memory, self.flash, self.segment, self.records)
    }

    fn open(&self, dir: &Path) -> Cache {
        Cache::open(Options::new(dir).memory(self.memory).flash(self.flash).segment_size(self.segment)).expect("open")
    }

    /// Bytes of both rings.
    fn rings(&self) -> u64 {
        let segment = 1u64 << (self.memory.min(self.flash) / 4).ilog2();
        let segment = segment.clamp(128 << 10, 32 << 20);
        segment + segment / 4
    }
}

/// The most memory that a child had.
#[derive(Clone, Copy, Debug)]
struct Most {
    /// As `Stats::memory_bytes` says.
    counted: u64,
    /// From the allocator. Mappings are not in it.
    allocated: u64,
    /// Resident, without what the process had before it opened the store.
    resident: u64,
    /// Open descriptors.
    open: u64,
    /// WAL frames that the opening replayed.
    frames: u64,
    /// Bytes of WAL files at the end.
    wal: u64,
}

/// Runs a child process that does `verb` to the store in `dir`.
fn run_child(verb: &str, dir: &Path, case: &Case) -> Most {
    let words = format!("{verb} {} {}", dir.display(), case.words());
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_child_fills_or_recovers_a_store", "--nocapture", "--test-threads=1"])
        .env(CHILD, words)
        .output()
        .expect("a child");
    let out = String::from_utf8_lossy(&child.stdout).into_owned();
    let line = out.lines().find_map(|line| line.split_once("most ")).unwrap_or_else(|| panic!("{case:?}: {child:?}")).1;
    let mut numbers = line.split(' ').map(|n| n.parse::<u64>().expect("a number"));
    let mut next = || numbers.next().expect("six numbers");
    Most { counted: next(), allocated: next(), resident: next(), open: next(), frames: next(), wal: next() }
}

#[test]
fn a_child_fills_or_recovers_a_store() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = words.split(' ').collect();
    let (verb, dir, case) = (words[0], Path::new(words[1]), Case::parse(&words[2..]));
    let (before, allocated_before) = (resident(), ALLOCATED.load(Ordering::Relaxed));
    MOST_ALLOCATED.store(allocated_before, Ordering::Relaxed);
    let cache = case.open(dir);
    let (mut counted, mut open) = (cache.stats().memory_bytes, descriptors());
    if verb == "fill" {
        let value = case.value.map(|len| vec![5u8; len]);
        for n in 0..case.records {
            let key = n.to_le_bytes();
            match &value {
                Some(value) => drop(cache.put(key, value).expect("room")),
                None => drop(cache.delete(key).expect("room")),
            }
            if n % 4096 == 0 {
                counted = counted.max(cache.stats().memory_bytes);
                open = open.max(descriptors());
            }
        }
    }
    let wal_files =
        std::fs::read_dir(dir).expect("the directory").flatten().filter(|f| f.file_name().to_string_lossy().starts_with("wal."));
    let wal: u64 = wal_files.map(|f| f.metadata().map_or(0, |m| m.len())).sum();
    let allocated = MOST_ALLOCATED.load(Ordering::Relaxed) - allocated_before;
    let resident = status("VmHWM:").saturating_sub(before);
    println!("most {counted} {allocated} {resident} {open} {} {wal}", cache.recovery().wal_frames);
    // Nothing is sealed or closed.
    std::process::abort();
}

/// Memory of a process beside its caches: pages of code, stacks of eight threads, and free memory
/// in the arenas of the allocator.
const OUTSIDE: u64 = 6 << 20;

/// Fills a store, kills the process, and opens the store again. Checks each bound.
fn check(case: &Case) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for verb in ["fill", "recover"] {
        let most = run_child(verb, dir.path(), case);
        println!("{verb} {case:?}: {most:?}");
        let max = case.memory + case.memory / 10;
        assert!(most.counted <= max, "{verb} {case:?}: {most:?}");
        assert!(most.allocated + case.rings() <= max + (1 << 20), "{verb} {case:?}: {most:?}");
        assert!(most.resident <= max + OUTSIDE, "{verb} {case:?}: {most:?}");
        // Frames of 40 B, for footer entries of 10 B or more in a 16th of the budget.
        assert!(most.wal <= case.memory && most.frames * 40 <= case.memory, "{verb} {case:?}: {most:?}");
        assert!(most.open <= case.flash / case.segment + 64, "{verb} {case:?}: {most:?}");
    }
}

#[test]
fn memory_is_bounded_whatever_the_sizes_are() {
    const MIB: u64 = 1 << 20;
    let case =
        |memory, flash, segment, records, value| Case { memory: memory * MIB, flash: flash * MIB, segment: segment * MIB, records, value };
    check(&case(2, 512, 64, 300_000, None));
    check(&case(2, 512, 64, 200_000, Some(0)));
    check(&case(8, 1024, 128, 600_000, None));
    check(&case(16, 256, 1, 300_000, Some(40)));
    check(&case(32, 1024, 128, 600_000, Some(0)));
    check(&case(64, 512, 64, 100_000, Some(4_000)));
}

/// A control group of this test with a memory limit, removed when it is dropped.
struct Group(PathBuf);

impl Group {
    /// `None` where this process may make none.
    fn with_limit(bytes: u64) -> Option<Self> {
        let name = format!("everwarm-test-{}", std::process::id());
        [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")].iter().find_map(|(top, file)| {
            let group = Path::new(top).join(&name);
            std::fs::create_dir(&group).ok()?;
            let group = Self(group);
            let limit = group.0.join(file);
            (limit.exists() && std::fs::write(limit, bytes.to_string()).is_ok()).then_some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _gone_or_not = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn the_budget_is_compared_with_the_memory_of_the_container() {
    const GROUP: &str = "EVERWARM_MEMORY_GROUP";
    const LIMIT: u64 = 256 << 20;
    if let Ok(group) = std::env::var(GROUP) {
        std::fs::write(Path::new(&group).join("cgroup.procs"), std::process::id().to_string()).expect("the group takes this process");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = |options: Options| Cache::open(options.flash(64 << 20));
        let refused = open(Options::new(dir.path()).memory(LIMIT + (1 << 20)));
        assert!(matches!(refused, Err(Error::InvalidOption { name: "memory", .. })), "{refused:?}");
        open(Options::new(dir.path()).memory(LIMIT / 2)).expect("less than the limit").close().expect("close");
        open(Options::new(dir.path())).expect("the default is less than the limit").close().expect("close");
        return;
    }
    let Some(group) = Group::with_limit(LIMIT) else {
        println!("skipped: this process may not make a control group with a memory limit");
        return;
    };
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_budget_is_compared_with_the_memory_of_the_container", "--nocapture"])
        .env(GROUP, &group.0)
        .output()
        .expect("a child");
    assert!(child.status.success(), "{child:?}");
}

/// Stores of the largest sizes: several minutes, and up to 50 GB of disk.
#[test]
fn memory_is_bounded_in_large_stores() {
    const MIB: u64 = 1 << 20;
    if std::env::var_os("EVERWARM_MEMORY_LARGE").is_none() {
        return;
    }
    let case =
        |memory, flash, segment, records, value| Case { memory: memory * MIB, flash: flash * MIB, segment: segment * MIB, records, value };
    check(&case(2, 2048, 256, 6_600_000, None));
    check(&case(32, 16 << 10, 32, 6_000_000, Some(0)));
    check(&case(64, 32 << 10, 64, 5_300_000, None));
    check(&case(512, 256 << 10, 1024, 31_000_000, None));
}
