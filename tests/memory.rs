#![allow(unsafe_code, reason = "an allocator that counts")]
//! The memory budget holds, whatever is put and asked for. A process of its own, so that what it takes can be measured.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use everwarm::{Cache, Error, Options};

/// Counts what is allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        ALLOCATED.fetch_add(len, Ordering::Relaxed);
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, len) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const MEMORY: u64 = 32 << 20;

/// Bytes of DRAM that this process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line for it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

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
    let (mut most_said, mut most_had, mut refused, mut found) = (0, 0, 0, 0);
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
            most_said = most_said.max(cache.stats().memory_bytes);
            most_allocated = most_allocated.max(ALLOCATED.load(Ordering::Relaxed));
            most_had = most_had.max(resident().saturating_sub(before));
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
    println!("said {} MiB, had {} MiB, refused {refused}, found {found}", most_said >> 20, most_had >> 20);
    assert_eq!(refused, puts / 500);
    assert!(found > puts / 20);
    let slack = (MEMORY / 50).max(4 << 20);
    assert!(most_said <= MEMORY + slack, "{most_said} B counted of {MEMORY}");
    // Rings and large values are mappings, which nobody counts but the kernel.
    assert!(most_allocated <= MEMORY - (10 << 20) + slack, "{most_allocated} B allocated of {MEMORY}, and rings besides");
    // Besides the values under way of two threads, and code, stacks, and what the allocator keeps in an arena for each thread: more of it in a slow build, which has more under way.
    let besides = 2 * (5 << 20) + if cfg!(debug_assertions) { 16 << 20 } else { 8 << 20 };
    assert!(most_had <= MEMORY + MEMORY / 10 + besides, "{most_had} B resident with a budget of {MEMORY}");
    let open_max = open_before + cache.stats().segments_total as usize + 64;
    assert!(most_open <= open_max, "{most_open} descriptors, {open_max} are the most");
}
