//! Gets and puts that DRAM answers: Zipf keys, nine gets to one put, and all entries fit into
//! memory.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::BytesMut;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};
use serde::{Deserialize, Serialize};

use crate::stores::{Engine, Size, Store};
use crate::work::{key, value};

/// Exponent of the Zipf distribution, as in YCSB.
const ALPHA: f64 = 0.99;
/// A prime; multiplying a rank by it scatters popular keys over all keys.
const SPREAD: u64 = 0x9E37_79B1;
/// Bytes of DRAM for each entry besides its value. Generous, so that no engine evicts.
const OVERHEAD: u64 = 512;
/// Flash capacity in multiples of the entries' bytes.
const FLASH_TIMES: u64 = 8;
/// Operations between two looks at the clock.
const STEP: u64 = 256;

/// Results of one measurement.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hits {
    /// Operations a second.
    pub per_s: f64,
    /// Microseconds of processor time for one operation.
    pub cpu_us: f64,
    /// Bytes of DRAM for one entry beyond its key and value, from the growth of the process during
    /// the fill.
    pub overhead: f64,
    /// Gets without a value.
    pub missed: u64,
}

/// Fills a store, measures for `time`, and prints the results.
pub fn run(engine: Engine, dir: &Path, size: Size, threads: u64, time: Duration) -> Result<()> {
    let before = resident()?;
    // For engines that write every entry to flash: as much flash as a cache has in which DRAM is
    // only a part of the capacity.
    let size = Size { memory: size.entries * (size.value_len as u64 + OVERHEAD) + (64 << 20), flash_times: FLASH_TIMES, ..size };
    let store = engine.open(dir, size)?;
    // Each entry is read twice after the fill, because some engines promote only on a repeated get.
    let mut buf = BytesMut::new();
    for n in 0..size.entries {
        store.put(key(n), value(&mut buf, n, 0, size.value_len))?;
    }
    for n in (0..size.entries).chain(0..size.entries) {
        store.get(key(n))?;
    }
    let overhead = (resident()?.saturating_sub(before)) as f64 / size.entries as f64 - (16 + size.value_len) as f64;
    let (start, cpu) = (Instant::now(), cpu());
    let all: Vec<Result<(u64, u64)>> = std::thread::scope(|scope| {
        let store = store.as_ref();
        let callers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || caller(store, size, thread, start + time))).collect();
        callers.into_iter().map(|caller| caller.join().expect("a caller panicked")).collect()
    });
    let took = start.elapsed().as_secs_f64();
    let (mut calls, mut missed) = (0, 0);
    for one in all {
        let (of_one, missed_by_one) = one?;
        calls += of_one;
        missed += missed_by_one;
    }
    let hits = Hits { per_s: calls as f64 / took, cpu_us: (self::cpu() - cpu).as_secs_f64() * 1e6 / calls as f64, overhead, missed };
    println!("{}", serde_json::to_string(&hits)?);
    std::io::stdout().flush()?;
    Ok(())
}

/// Calls the store until `end`. Returns the number of operations and of gets that missed.
fn caller(store: &dyn Store, size: Size, thread: u64, end: Instant) -> Result<(u64, u64)> {
    let mut rng = SmallRng::seed_from_u64(thread);
    let zipf = Zipf::new(size.entries as f64, ALPHA)?;
    let mut buf = BytesMut::new();
    let (mut calls, mut missed) = (0, 0);
    while Instant::now() < end {
        for _ in 0..STEP {
            let n = (zipf.sample(&mut rng) as u64 - 1) * SPREAD % size.entries;
            if rng.random_ratio(1, 10) {
                store.put(key(n), value(&mut buf, n, 1, size.value_len))?;
            } else {
                let mut right = true;
                let found = store.look(key(n), &mut |found| right = found[..8] == n.to_le_bytes() && found.len() == size.value_len)?;
                ensure!(right, "entry {n} has the value of another entry");
                missed += u64::from(!found);
            }
        }
        calls += STEP;
    }
    Ok((calls, missed))
}

/// Processor time of this process.
pub fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resident bytes of this process, mapped files included.
fn resident() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1).unwrap_or_default().parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}
