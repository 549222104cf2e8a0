//! A store that is opened for reading only: on every image that another opening accepts, and beside
//! a process that writes to it at every moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::internals::open_inline;
use super::seeds::{each_seed, seeds};
use super::store::{Store, close, small};
use crate::clock::SimClock;
use crate::concurrent::lock;
use crate::config::{Ack, OnHostCrash, Options, WalValues};
use crate::engine::background::INLINE;
use crate::engine::{DeleteOptions, Engine, PutOptions, Scan, Start, open};
use crate::error::{Error, Result};
use crate::io::sim::{PowerCut, ReadOnly, SimDisk};

/// Numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Opens a disk for reading only. A change of the disk panics.
fn open_reader(options: &Options, disk: ReadOnly) -> Result<Arc<Engine>> {
    open(&options.clone().read_only(true), Some(Arc::new(disk)), Arc::new(SimClock::new(7)), INLINE)
}

type Contents = BTreeMap<(String, Vec<u8>), (u64, Vec<u8>)>;

/// All entries of all namespaces, with their versions.
fn contents(engine: &Engine) -> Contents {
    let mut scan = Scan::new(engine.namespaces().named_generations());
    let mut all = Contents::new();
    while let Some(entry) = engine.scan_next(&mut scan).unwrap() {
        all.insert((entry.namespace.to_string(), entry.key.to_vec()), (entry.version.0, entry.value.to_vec()));
    }
    all
}

/// Changes the store at random, with background work at random.
fn work(store: &Store, numbers: &mut Numbers, steps: u64) {
    let engine = store.engine();
    for _ in 0..steps {
        let key = (numbers.below(300) as u32).to_le_bytes();
        let ack = if numbers.below(8) == 0 { Ack::Host } else { Ack::Process };
        match numbers.below(40) {
            0 => assert!(engine.clear(&engine.namespace("tenant").unwrap(), None).is_ok()),
            1 => assert!(engine.set_resume_token("token", &key, None).is_ok()),
            2..6 => assert!(engine.delete(key[..].into(), &DeleteOptions::new()).is_ok()),
            6..10 => {
                let tenant = engine.namespace("tenant").unwrap();
                engine.put(tenant.key(&key), b"of a tenant", &PutOptions::new()).unwrap();
            }
            10..12 => engine.step_all().unwrap(),
            12 => assert!(engine.step_checkpoint(true).is_ok()),
            _ => {
                let value = vec![numbers.below(256) as u8; 20 + numbers.below(3_000) as usize];
                engine.put(key[..].into(), &value, &PutOptions::new().ack(ack)).unwrap();
            }
        }
    }
}

#[test]
fn a_reader_finds_what_any_opening_finds_and_changes_nothing() {
    each_seed(seeds("READ_ONLY", 1, 24), "READ_ONLY", "a_reader_finds_what_any_opening_finds", |seed| {
        let mut numbers = Numbers(seed);
        let values = [WalValues::Never, WalValues::Host, WalValues::Always][seed as usize % 3];
        let store = Store::new(small().wal_values(values));
        for round in 0..6 {
            work(&store, &mut numbers, 150);
            let image = match round {
                0..3 => store.disk.after_kill(),
                3 => store.disk.after_power_cut(seed, PowerCut::Random),
                4 => store.disk.after_power_cut(seed, PowerCut::LoseAll),
                _ => {
                    close(store.engine()).unwrap();
                    store.disk.after_kill()
                }
            };
            let before = image.image_hash();
            let reader = open_reader(&store.options, ReadOnly::new(image.clone())).unwrap();
            let (found, report) = (contents(&reader), reader.recovery().clone());
            let token = reader.namespaces().resume_token("token");
            close(&reader).unwrap();
            drop(reader);
            assert_eq!(image.image_hash(), before, "nothing is changed");
            let writer = open_inline(&store.options, &image, Arc::new(SimClock::new(7))).unwrap();
            let same = writer.recovery();
            assert_eq!(found, contents(&writer), "seed {seed}, round {round}");
            assert_eq!((token, report.entries), (writer.namespaces().resume_token("token"), same.entries));
            assert_eq!((report.kind, &report.damaged, report.wal_frames), (same.kind, &same.damaged, same.wal_frames));
        }
    });
}

#[test]
fn a_reader_refuses_every_mutation_and_loads_without_storing() {
    let store = Store::new(small());
    store.put(b"key", b"value");
    let image = store.disk.after_kill();
    let options = small().flash(64 << 20).segment_size(1 << 20);
    let reader = open_reader(&options, ReadOnly::new(image.clone())).unwrap();
    let key = || b"key"[..].into();
    let refused = |result: Result<()>| assert!(matches!(result, Err(Error::ReadOnly)), "{result:?}");
    refused(reader.put(key(), b"other", &PutOptions::new()).map(drop));
    refused(reader.put_many(&[(key(), b"other")], &PutOptions::new()).map(drop));
    refused(reader.delete(key(), &DeleteOptions::new()).map(drop));
    refused(reader.touch(key(), None).map(drop));
    refused(reader.touch(b"absent"[..].into(), None).map(drop));
    refused(reader.namespace("new").map(drop));
    refused(reader.clear(&reader.namespace("").unwrap(), None).map(drop));
    refused(reader.clear_all(None).map(drop));
    refused(reader.drop_namespace("absent", None).map(drop));
    refused(reader.set_resume_token("token", b"1", None).map(drop));
    refused(reader.persist(Ack::Host));
    refused(reader.check_mutable());
    refused(pollster::block_on(reader.persist_in_task(Ack::Memory)));
    refused(pollster::block_on(reader.put_in_task(key(), b"other", &PutOptions::new())).map(drop));
    refused(pollster::block_on(reader.touch_in_task(b"absent"[..].into(), None)).map(drop));
    let load = || Ok::<_, std::convert::Infallible>(bytes::Bytes::from_static(b"loaded"));
    assert_eq!(&reader.get_or_fill(b"absent"[..].into(), &PutOptions::new(), load).unwrap()[..], b"loaded");
    assert_eq!((reader.get(b"absent"[..].into(), true).unwrap().is_none(), reader.stats().not_stored.stopped), (true, 1));
    assert_eq!(reader.get(key(), true).unwrap().as_deref(), Some(&b"value"[..]));
    assert_eq!((reader.stats().puts, reader.stats().segments_total), (0, 16), "the store keeps its size");
    close(&reader).unwrap();
    assert!(matches!(open_reader(&options, ReadOnly::new(SimDisk::new(1))), Err(Error::NotFound { .. })));
}

#[test]
fn a_cold_reader_serves_nothing_and_writes_nothing() {
    let store = Store::new(small());
    store.put(b"key", b"value");
    let image = store.disk.after_power_cut(1, PowerCut::KeepAll);
    let reader = open_reader(&small().on_host_crash(OnHostCrash::Cold), ReadOnly::new(image.clone())).unwrap();
    assert_eq!((reader.recovery().kind, contents(&reader).len()), (Start::Host, 0));
    let reader = open_reader(&small(), ReadOnly::new(image)).unwrap();
    assert_eq!((reader.recovery().kind, contents(&reader).len()), (Start::Host, 1), "a later opening decides anew");
}

#[test]
fn what_recovery_would_write_takes_little_memory() {
    for values in [WalValues::Never, WalValues::Always] {
        let store = Store::new(small().wal_values(values));
        for key in 0..2_000u32 {
            store.put(&key.to_le_bytes(), &[7; 900]);
        }
        let reader = open_reader(&small(), ReadOnly::new(store.disk.after_kill())).unwrap();
        let (ring, kept) = (small().validate(None).unwrap().segment_ring, reader.context.disk.bytes_in_memory());
        assert!(kept <= ring + (64 << 10), "{kept} B beside a ring of {ring} B");
    }
}

/// A writer that does a part of its work before each operation of a reader.
struct Writer {
    store: Store,
    numbers: Numbers,
    /// Most puts at a time.
    burst: u64,
    /// Does no background work before it must.
    is_lazy: bool,
    next: u64,
}

impl Writer {
    const KEYS: u64 = 40;

    /// Puts the next numbers under keys that take turns. So the value of a key is one of every
    /// [`Writer::KEYS`] numbers.
    fn put(&mut self, count: u64) {
        for _ in 0..count {
            let mut value = vec![3; 200 + self.numbers.below(1_500) as usize];
            value[..8].copy_from_slice(&self.next.to_le_bytes());
            self.store.put(&(self.next % Self::KEYS).to_le_bytes(), &value);
            self.next += 1;
        }
    }

    /// Works on, mostly a little.
    fn act(&mut self) {
        let count = match self.numbers.below(10) {
            0 => self.burst,
            1..5 => 1,
            _ => 0,
        };
        self.put(count);
        let engine = self.store.engine();
        match self.numbers.below(if self.is_lazy { u64::MAX >> 40 } else { 30 }) {
            0 => engine.step_all().unwrap(),
            1 => assert!(engine.step_checkpoint(true).is_ok()),
            2..6 => assert!(engine.step_flush().is_ok()),
            6..9 => assert!(engine.step_sync().is_ok()),
            _ => {}
        }
    }
}

/// Opens a reader beside a writer with such bursts, and checks what it shows. Returns whether the
/// opening succeeded.
fn read_beside_a_writer(seed: u64, burst: u64) -> bool {
    let values = [WalValues::Never, WalValues::Host, WalValues::Always][seed as usize % 3];
    let store = Store::new(small().wal_values(values));
    let mut writer = Writer { store, numbers: Numbers(seed), burst, is_lazy: seed.is_multiple_of(2), next: 0 };
    let first = writer.numbers.below(3_000);
    writer.put(first);
    let disk = writer.store.disk.clone();
    let acknowledged = writer.next;
    let writer = Arc::new(Mutex::new(writer));
    let acts = Arc::new(AtomicU64::new(0));
    let (worker, counter) = (Arc::clone(&writer), Arc::clone(&acts));
    let below = ReadOnly::beside(disk, move || {
        counter.fetch_add(1, Ordering::Relaxed);
        lock(&worker).act();
    });
    let reader = match open_reader(&small(), below) {
        Ok(reader) => reader,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::ResourceBusy => return false,
        Err(error) => panic!("seed {seed}: {error}"),
    };
    let until = lock(&writer).next;
    assert!(reader.recovery().damaged.is_empty() && !reader.recovery().manifest_repaired, "seed {seed}: {:?}", reader.recovery());
    // The newest number that the reader knows decides which number each key must have.
    let appended = reader.appended().0;
    assert!((acknowledged..=until).contains(&appended), "seed {seed}: {acknowledged} <= {appended} <= {until}");
    for key in 0..Writer::KEYS {
        let expected = (0..appended).rev().find(|number| number % Writer::KEYS == key);
        let found = reader.get(key.to_le_bytes()[..].into(), true).unwrap();
        let found = found.map(|value| u64::from_le_bytes(value[..8].try_into().unwrap()));
        // The space of the newest entries is reused only after much more was written.
        let is_reused = found.is_none() && lock(&writer).next > appended + 300;
        assert!(found == expected || is_reused, "seed {seed}: key {key} is {found:?} instead of {expected:?}");
    }
    close(&reader).unwrap();
    true
}

#[test]
fn a_reader_beside_a_writer_shows_a_whole_prefix_of_its_mutations() {
    let opened = each_seed(seeds("READ_ONLY", 1, 150), "READ_ONLY", "a_reader_beside_a_writer", |seed| {
        (read_beside_a_writer(seed, 5), read_beside_a_writer(seed, 100))
    });
    let (calm, busy) = (opened.iter().filter(|(calm, _)| *calm).count(), opened.iter().filter(|(_, busy)| *busy).count());
    assert!(calm == opened.len() && 2 * busy >= opened.len(), "{calm} and {busy} of {} openings", opened.len());
}
