//! Exclusive opening of a store: races of openers, and an open right after a kill under load.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use everwarm::{Cache, Error, Options};

/// Set for the child process that is to be killed; the value is the store's directory.
const VICTIM: &str = "EVERWARM_VICTIM";
const VALUE_LEN: usize = 64 << 10;
const KEYS: u64 = 512;
/// Bytes of values that are acknowledged before a kill.
const LOAD: u64 = 64 << 20;

fn count(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn options(dir: &std::path::Path) -> Options {
    Options::new(dir).flash(192 << 20).memory(32 << 20)
}

fn value(key: u64, version: u64) -> Vec<u8> {
    let word = (key << 32 | version).to_le_bytes();
    word.repeat(VALUE_LEN / 8)
}

#[test]
fn of_many_concurrent_openers_exactly_one_succeeds() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    const OPENERS: usize = 6;
    for round in 0..count("EVERWARM_RACES", 50) {
        let (start, end) = (Barrier::new(OPENERS), Barrier::new(OPENERS));
        let opened = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..OPENERS {
                scope.spawn(|| {
                    start.wait();
                    let cache = Cache::open(options(dir.path()).lock_timeout(Duration::ZERO));
                    // The cache stays open until all have tried.
                    end.wait();
                    match cache {
                        Ok(cache) => {
                            *opened.lock().expect("no panic") += 1;
                            cache.put("round", round.to_string()).expect("room");
                        }
                        Err(Error::Locked { holder, .. }) => assert!(holder.contains(&std::process::id().to_string()), "{holder}"),
                        Err(other) => panic!("{other}"),
                    }
                });
            }
        });
        assert_eq!(opened.into_inner().expect("no panic"), 1, "round {round}");
    }
}

/// Entry of the child process that [`a_store_is_whole_right_after_a_kill_under_load`] kills; passes
/// at once in any other process.
#[test]
fn child_process_to_kill() {
    let Some(dir) = std::env::var_os(VICTIM) else { return };
    let cache = Cache::open(options(dir.as_ref())).expect("the previous process is dead");
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let cache = &cache;
            scope.spawn(move || {
                for n in 1u64.. {
                    let (key, version) = (n * 7919 % (KEYS / 4) * 4 + thread, n % (1 << 32));
                    let lsn = cache.put(key.to_le_bytes(), value(key, version)).expect("room");
                    let message = [key, version, lsn.0].map(u64::to_le_bytes).concat();
                    // A write of up to `PIPE_BUF` bytes to a pipe is atomic.
                    std::io::stderr().write_all(&message).expect("the parent reads the pipe");
                }
            });
        }
    });
}

#[test]
fn a_store_is_whole_right_after_a_kill_under_load() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut acked: HashMap<u64, (u64, u64)> = HashMap::new();
    let mut hits = 0;
    for kill in 0..count("EVERWARM_KILLS", 20) {
        let mut victim = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_process_to_kill", "--nocapture"])
            .env(VICTIM, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test runs");
        let mut messages = victim.stderr.take().expect("piped");
        let mut take = |acked: &mut HashMap<u64, (u64, u64)>| {
            let mut words = [0u8; 24];
            messages.read_exact(&mut words).ok()?;
            let word = |i: usize| u64::from_le_bytes(words[i * 8..][..8].try_into().expect("eight bytes"));
            acked.insert(word(0), (word(1), word(2)));
            Some(())
        };
        for _ in 0..LOAD / VALUE_LEN as u64 {
            take(&mut acked).expect("the child puts until it is killed");
        }
        victim.kill().expect("the child lives");
        let opened = Cache::open(options(dir.path()));
        // The acknowledgements that the child wrote before it died.
        while take(&mut acked).is_some() {}
        victim.wait().expect("the child was killed");
        let cache = opened.unwrap_or_else(|e| panic!("kill {kill}: {e}"));
        assert!(cache.recovery().damaged.is_empty(), "kill {kill}: {:?}", cache.recovery());
        let reclaimed = cache.stats().reclaimed.0;
        for (key, (version, lsn)) in &mut acked {
            let Some(found) = cache.get(key.to_le_bytes()).expect("open") else {
                assert!(*lsn <= reclaimed, "kill {kill}: key {key} is lost at version {version}");
                continue;
            };
            hits += 1;
            let word = u64::from_le_bytes(found[..8].try_into().expect("eight bytes"));
            let at = word & 0xffff_ffff;
            assert_eq!(found[..], value(*key, at), "kill {kill}: key {key} is torn");
            // One more mutation may have happened than was acknowledged to the parent.
            assert!(found.version().0 >= *lsn, "kill {kill}: key {key} is at {at} after {version}");
            (*version, *lsn) = (at, found.version().0);
        }
    }
    assert!(hits > 100, "{hits}");
}
