//! Microbenchmarks of the parts of an operation (records, index, WAL, checkpoint), and of gets and
//! puts of a whole cache. Each benchmark checks its results.
#![allow(clippy::disallowed_methods, reason = "real time is measured")]
#![allow(missing_docs, reason = "criterion's macros generate undocumented items")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use everwarm::internals::{Dir, Index, Record, checksum};
use everwarm::{Ack, Cache, Options, PutOptions, Tier};

const ENTRIES: u64 = 1_000_000;

fn value(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9E37_79B9) >> 7) as u8).collect()
}

/// An endless stream of pseudo-random numbers less than `below`.
fn numbers(below: u64) -> impl FnMut() -> u64 {
    let mut n = 0u64;
    move || {
        n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
        n % below
    }
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    for len in [84, 1 << 10, 64 << 10] {
        let value = value(len);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::new("checksum", len), &value, |b, value| b.iter(|| checksum(black_box(value))));
        group.bench_with_input(BenchmarkId::new("encode", len), &value, |b, value| {
            b.iter(|| Record::new(b"a key of 16 byte", black_box(value)))
        });
        let record = Record::new(b"a key of 16 byte", &value);
        group.bench_with_input(BenchmarkId::new("decode", len), &record, |b, record| b.iter(|| assert!(record.is_whole())));
    }
    group.finish();
}

fn index(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    for entries in [ENTRIES, 10 * ENTRIES, 100 * ENTRIES] {
        let index = Index::new(entries);
        let mut next = numbers(entries);
        group.bench_function(BenchmarkId::new("lookup", entries), |b| b.iter(|| assert!(index.contains(next()))));
        // About one in 10^5 absent keys matches by chance, so the result is not asserted.
        group
            .bench_function(BenchmarkId::new("lookup of nothing", entries), |b| b.iter(|| black_box(index.contains(entries + 1 + next()))));
        group.bench_function(BenchmarkId::new("overwrite", entries), |b| b.iter(|| index.insert(next())));
    }
    group.throughput(Throughput::Elements(ENTRIES));
    group.sample_size(10);
    group.bench_function("growth to 10^6", |b| {
        b.iter(|| {
            let index = Index::new(ENTRIES);
            assert!(index.contains(ENTRIES - 1) && index.allocated() < 16 * ENTRIES);
        });
    });
    group.finish();
}

fn recovery(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = Dir::new(dir.path()).expect("the directory exists");
    let index = Index::new(ENTRIES);
    let mut group = c.benchmark_group("recovery");
    group.sample_size(10);
    group.throughput(Throughput::Elements(ENTRIES));
    group.bench_function("write a checkpoint", |b| b.iter(|| dir.write_checkpoint(&index).expect("room")));
    let checkpoint = dir.write_checkpoint(&index).expect("room");
    group
        .bench_function("load a checkpoint", |b| b.iter(|| assert!(checkpoint.load().expect("the checkpoint is valid") > ENTRIES - 1_000)));
    let log = dir.write_wal(ENTRIES).expect("room");
    group.bench_function("replay the WAL", |b| b.iter(|| assert_eq!(log.replay().expect("the WAL is valid"), ENTRIES)));
    group.finish();
}

fn cache(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(Options::new(dir.path()).memory(256 << 20).flash(4 << 30)).expect("room");
    let mut group = c.benchmark_group("cache");
    for len in [256, 1 << 10] {
        let value = value(len);
        let next = AtomicU64::new(0);
        // A million keys, so that most puts are overwrites.
        let key = || (next.fetch_add(1, Relaxed).wrapping_mul(0x9E37_79B1) % ENTRIES).to_le_bytes();
        group.throughput(Throughput::Elements(1));
        for (name, ack) in [("put, Process", Ack::Process), ("put, Host", Ack::Host)] {
            let options = PutOptions::new().ack(ack);
            group.bench_function(BenchmarkId::new(name, len), |b| {
                b.iter_batched(key, |key| cache.put_with(key, &value, &options).expect("room"), BatchSize::SmallInput);
            });
        }
        // Group commit: eight callers share syncs.
        group.bench_function(BenchmarkId::new("put, Host, 8 callers", len), |b| {
            b.iter_custom(|iterations| {
                let (cache, value, key) = (&cache, &value, &key);
                let start = Instant::now();
                std::thread::scope(|scope| {
                    for caller in 0..8 {
                        // Eight threads share the iterations; the first also takes the remainder.
                        let share = iterations / 8 + if caller == 0 { iterations % 8 } else { 0 };
                        scope.spawn(move || {
                            let options = PutOptions::new().ack(Ack::Host);
                            (0..share).for_each(|_| assert!(cache.put_with(key(), value, &options).expect("room").is_some()));
                        });
                    }
                });
                start.elapsed()
            });
        });
        let hot: Vec<[u8; 2]> = (0..1_000u16).map(u16::to_le_bytes).collect();
        for key in &hot {
            cache.put(key, &value).expect("room");
        }
        cache.persist(Ack::Host).expect("room");
        // Other puts push the hot entries out of the write buffer; repeated gets then bring them
        // into the memory tier.
        for n in 0..200_000u64 {
            cache.put((n % 50_000).to_be_bytes(), &value).expect("room");
        }
        (0..3).for_each(|_| hot.iter().for_each(|key| drop(cache.get(key).expect("open"))));
        let mut number = numbers(hot.len() as u64);
        group.bench_function(BenchmarkId::new("get, memory tier", len), |b| {
            b.iter(|| assert_eq!(cache.get(hot[number() as usize]).expect("open").map(|value| value.tier()), Some(Tier::Memory)));
        });
        group.bench_function(BenchmarkId::new("get of nothing", len), |b| b.iter(|| black_box(cache.get(b"no such key").expect("open"))));
    }
    group.finish();
}

criterion_group!(benches, records, index, recovery, cache);
criterion_main!(benches);
