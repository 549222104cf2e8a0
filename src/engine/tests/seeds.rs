//! Runs that follow from seeds.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// The seeds from `EVERWARM_<name>_FIRST` on, `EVERWARM_<name>_SEEDS` of them.
pub(super) fn seeds(name: &str, first: u64, count: u64) -> Range<u64> {
    let from_env =
        |end: &str, default: u64| std::env::var(format!("EVERWARM_{name}_{end}")).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let first = from_env("FIRST", first);
    first..first + from_env("SEEDS", count)
}

/// Calls `work` for each of `seeds`, on all processors. For a seed that panics it prints the
/// command that repeats it.
pub(super) fn each_seed<T: Send>(seeds: Range<u64>, name: &str, test: &str, work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(seeds.start);
    let one = |seed: u64| {
        let done = catch_unwind(AssertUnwindSafe(|| work(seed)));
        done.unwrap_or_else(|_| {
            // The other threads take no more seeds.
            next.store(seeds.end, Ordering::Relaxed);
            panic!("repeat with: EVERWARM_{name}_FIRST={seed} EVERWARM_{name}_SEEDS=1 cargo test --release --lib {test}")
        })
    };
    let share = || {
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < seeds.end);
        std::iter::from_fn(take).map(one).collect::<Vec<T>>()
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(share)).collect();
        all.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}
