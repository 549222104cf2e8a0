//! The work of the child processes that fill a store and that verify it, and the results they
//! print.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::stores::{Engine, Key, Size};

/// Results of a fill.
#[derive(Debug, Serialize, Deserialize)]
pub struct Filled {
    /// Seconds until the last put returned.
    pub accepted_s: f64,
    /// Seconds until flash held all entries.
    pub settled_s: f64,
}

/// Results of reading every entry back.
#[derive(Debug, Serialize, Deserialize)]
pub struct Verified {
    /// Seconds from the call to open until the first get returned.
    pub open_s: f64,
    pub found: u64,
    /// Entries with bytes that were never put under their key.
    pub wrong: u64,
    pub lost: u64,
    /// Seconds that all gets took.
    pub read_s: f64,
}

/// The key of entry `n`. Keys are distinct, and their order is unrelated to `n`.
pub fn key(n: u64) -> Key {
    let mixed = (n ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mixed.to_be_bytes());
    key[8..].copy_from_slice(&n.to_le_bytes());
    key
}

/// The value of entry `n`: incompressible bytes that begin with `n` and `version`.
pub fn value(buf: &mut BytesMut, n: u64, version: u64, len: usize) -> Bytes {
    // SplitMix64 (Steele, Lea, Flood, 2014). Words do not depend on each other, so that making
    // values costs little beside the engine's work.
    let mut state = mix(n) ^ version;
    buf.resize(len, 0);
    let (whole, rest) = buf.as_chunks_mut::<8>();
    whole[0] = n.to_le_bytes();
    whole[1] = version.to_le_bytes();
    for word in &mut whole[2..] {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        *word = mix(state).to_le_bytes();
    }
    rest.copy_from_slice(&mix(state ^ 1).to_le_bytes()[..rest.len()]);
    buf.split().freeze()
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Fills a new store, prints the results, and waits to be killed.
pub fn fill(engine: Engine, dir: &Path, size: Size, threads: u64) -> Result<()> {
    ensure!(size.value_len >= 16, "--value-len must be at least 16: values state their entry and version");
    let store = engine.open(dir, size)?;
    let start = Instant::now();
    each_of(size.entries, threads, |n, buf| store.put(key(n), value(buf, n, 0, size.value_len)))?;
    let accepted_s = start.elapsed().as_secs_f64();
    store.settle()?;
    let filled = Filled { accepted_s, settled_s: start.elapsed().as_secs_f64() };
    println!("{}", serde_json::to_string(&filled)?);
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Opens the store of a killed child, reads every entry back, and prints the results.
pub fn verify(engine: Engine, dir: &Path, size: Size, threads: u64) -> Result<()> {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    let start = Instant::now();
    let store = engine.open(dir, size)?;
    store.get(key(size.entries / 2))?;
    let open_s = start.elapsed().as_secs_f64();
    let (found, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    each_of(size.entries, threads, |n, buf| {
        if let Some(got) = store.get(key(n))? {
            found.fetch_add(1, Relaxed);
            wrong.fetch_add(u64::from(got != value(buf, n, 0, size.value_len)), Relaxed);
        }
        Ok(())
    })?;
    let (found, wrong) = (found.into_inner(), wrong.into_inner());
    let verified = Verified { open_s, found, wrong, lost: size.entries - found, read_s: start.elapsed().as_secs_f64() };
    println!("{}", serde_json::to_string(&verified)?);
    Ok(())
}

/// Calls `work` once for every entry; the threads share the entries.
pub fn each_of(entries: u64, threads: u64, work: impl Fn(u64, &mut BytesMut) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let share = |t| {
            move || {
                let mut buf = BytesMut::new();
                (t..entries).step_by(threads as usize).try_for_each(|n| work(n, &mut buf))
            }
        };
        let running: Vec<_> = (0..threads).map(|t| scope.spawn(share(t))).collect();
        running.into_iter().try_for_each(|t| t.join().expect("a worker panicked"))
    })
}
