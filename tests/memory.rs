#![allow(unsafe_code, reason = "an allocator that counts")]
//! Memory and descriptors stay within their bounds under a mixed load. This test has a process of
//! its own, so that the process's memory can be measured.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use everwarm::{Cache, Error, Options};

/// The system allocator, with a count of the allocated bytes.
struct Counting;

/// Bytes that are allocated now.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: Every call is passed unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: The caller upholds the contract of the same method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: The caller upholds the contract of the same method.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        ALLOCATED.fetch_add(len, Ordering::Relaxed);
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

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("procfs has this line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
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
