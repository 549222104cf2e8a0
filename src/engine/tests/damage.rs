//! Bytes that rot: in the WAL, and anywhere.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::internals::{named_checkpoint, open_inline};
use super::model::{has_noticed, value};
use super::seeds::{each_seed, seeds};
use super::store::{Store, close, small};
use crate::clock::SimClock;
use crate::config::{Ack, RecoveryMode, WalValues};
use crate::engine::{DeleteOptions, Engine, PutOptions};
use crate::error::Error;
use crate::id::Lsn;
use crate::io::sim::{PowerCut, SimDisk};
use crate::io::{BLOCK, Disk};
use crate::wal::format::{FRAME_LEN, FRAME_LEN_MAX};

/// The WAL ring of a store with the options of these tests.
const WAL_RING: &str = "ring.wal.16";

fn reopen(disk: &SimDisk) -> Result<Arc<Engine>, Error> {
    let clock = Arc::new(SimClock::new(3));
    // Later than everything before. Damage may lose the time that the store knew, and a clock that
    // goes back as well would be a second failure.
    clock.advance(Duration::from_secs(1));
    open_inline(&small(), disk, clock)
}

fn get(engine: &Engine, key: &[u8]) -> Option<Vec<u8>> {
    engine.get((key).into(), true).unwrap().map(|v| v.to_vec())
}

#[test]
fn a_hole_in_the_wal_is_filled_from_the_records() {
    let store = Store::new(small());
    for (key, value) in [(b"a", b"1"), (b"a", b"2"), (b"b", b"3"), (b"c", b"4")] {
        store.put(key, value);
    }
    let image = store.disk.after_kill();
    // The frame that superseded a's first value.
    image.corrupt(WAL_RING, FRAME_LEN as u64 + 30, 1);
    let engine = reopen(&image).unwrap();
    assert_eq!(engine.recovery().damaged.len(), 1, "{:?}", engine.recovery());
    for (key, value) in [(b"a", b"2"), (b"b", b"3"), (b"c", b"4")] {
        assert_eq!(get(&engine, key).as_deref(), Some(&value[..]));
    }
    drop(engine);
    let again = reopen(&image.after_kill()).unwrap();
    assert_eq!(get(&again, b"a").as_deref(), Some(&b"2"[..]));
    assert!(again.recovery().damaged.is_empty());
}

/// Damages every copy of a value that `disk` holds.
fn damage_value(disk: &SimDisk, value: &[u8]) {
    let mut found = 0;
    for (name, len) in disk.files() {
        let bytes = disk.content(&name);
        for at in 0..len as usize - value.len().min(len as usize) {
            if bytes[at..].starts_with(value) {
                disk.corrupt(&name, at as u64, 1);
                found += 1;
            }
        }
    }
    assert!(found > 0);
}

#[test]
fn a_hole_in_the_wal_whose_records_are_damaged_too_serves_nothing_older() {
    let store = Store::new(small());
    for (key, value) in [(b"a", &b"1"[..]), (b"a", b"the second value"), (b"b", b"3"), (b"c", b"4")] {
        store.put(key, value);
    }
    let image = store.disk.after_kill();
    image.corrupt(WAL_RING, FRAME_LEN as u64 + 30, 1);
    damage_value(&image, b"the second value");
    let engine = reopen(&image).unwrap();
    assert_eq!(engine.recovery().damaged.len(), 1, "{:?}", engine.recovery());
    assert_eq!(get(&engine, b"a"), None, "neither the lost value nor the one it superseded");
    assert_eq!(get(&engine, b"b").as_deref(), Some(&b"3"[..]));
    assert_eq!(get(&engine, b"c").as_deref(), Some(&b"4"[..]));
    drop(engine);
    let again = reopen(&image.after_kill()).unwrap();
    assert_eq!(get(&again, b"a"), None, "nor after another restart");
    assert_eq!(get(&again, b"c").as_deref(), Some(&b"4"[..]));
}

/// A store after a power cut that left nothing but the WAL. It has three synced batches: two old
/// values, four newer ones, and one more.
fn only_in_the_wal() -> SimDisk {
    let store = Store::new(small().wal_values(WalValues::Always));
    let batch = |keys: &[&[u8]], value: &[u8]| {
        keys.iter().for_each(|key| store.put(key, value));
        store.engine().persist(Ack::Host).unwrap();
    };
    batch(&[b"a", b"c"], b"old");
    batch(&[b"a", b"b", b"c", b"d"], b"new");
    batch(&[b"e"], b"new");
    store.disk.after_power_cut(1, PowerCut::LoseAll)
}

#[test]
fn two_damaged_frames_of_a_synced_batch_are_not_the_end_of_the_log() {
    let image = only_in_the_wal();
    let frames = frames(&image);
    let is_put = |(name, at): &(String, u64)| image.content(name)[*at as usize + 8..][..2].iter().all(|byte| byte % 2 == 1);
    let puts: Vec<_> = frames.iter().filter(|places| is_put(&places[0])).collect();
    assert_eq!(puts.len(), 7, "{frames:?}");
    for number in [2, 4] {
        puts[number].iter().for_each(|(name, at)| image.corrupt(name, at + 20, 1));
    }
    let engine = reopen(&image).unwrap();
    assert_eq!((get(&engine, b"a"), get(&engine, b"c")), (None, None), "neither the lost values nor those before: {:?}", engine.recovery());
    assert_eq!(get(&engine, b"d").as_deref(), Some(&b"new"[..]), "{:?}", engine.recovery());
    assert_eq!(get(&engine, b"e").as_deref(), Some(&b"new"[..]), "{:?}", engine.recovery());
    assert_eq!(engine.recovery().damaged.len(), 2, "{:?}", engine.recovery());
}

#[test]
fn a_segment_that_is_lost_with_the_checkpoint_brings_nothing_older_back() {
    let store = Store::new(small());
    let engine = store.engine();
    (0..400u64).for_each(|key| store.put(&key.to_le_bytes(), &value(key, 0, 200)));
    engine.step_checkpoint(true).unwrap();
    for key in 0..400u64 {
        match key % 2 {
            0 => store.put(&key.to_le_bytes(), &value(key, 1, 200)),
            _ => drop(engine.delete((&key.to_le_bytes()).into(), &DeleteOptions::new()).unwrap()),
        }
    }
    // The mutations after the checkpoint are in sealed segments, and the manifest says so.
    (400..1_000u64).for_each(|key| store.put(&key.to_le_bytes(), &value(key, 0, 200)));
    let disk = store.disk.after_kill();
    let covered = reopen(&disk.after_kill()).unwrap().recovery().footer_entries;
    assert!(covered > 400, "{covered}");
    let checkpoint = |image: &SimDisk| (0..2).for_each(|n| drop(image.remove(&format!("checkpoint.{n}"))));
    let (mut lost, mut newest_lost, clock) = (0, 0, Arc::new(SimClock::new(3)));
    for (name, _) in disk.files().into_iter().filter(|(name, _)| name.starts_with("segment.")) {
        // The checkpoint is gone, or cannot be used because the geometry is another one.
        for options in [small(), small().flash(8 << 20)] {
            let image = disk.after_kill();
            image.remove(&name).unwrap();
            if options.flash == small().flash {
                checkpoint(&image);
            }
            let engine = open_inline(&options, &image, clock.clone()).unwrap();
            let newest = |key: u64| key.is_multiple_of(2).then(|| value(key, 1, 200));
            for key in 0..400u64 {
                let found = get(&engine, &key.to_le_bytes());
                assert!(found.is_none() || found == newest(key), "{name}: key {key} is stale: {:?}", engine.recovery());
            }
            lost += usize::from((0..400u64).any(|key| get(&engine, &key.to_le_bytes()) != newest(key)));
            newest_lost += usize::from(get(&engine, &999u64.to_le_bytes()).is_none());
            assert!(engine.recovery().rebuilt, "{:?}", engine.recovery());
            assert!(engine.recovery().footer_entries <= 1_400, "each is counted once: {:?}", engine.recovery());
            let prefix = name.replace('.', " ") + ":";
            let is_reported = engine.recovery().damaged.iter().any(|line| line.starts_with(&prefix));
            assert!(
                is_reported || (400..1_000).all(|key| get(&engine, &u64::to_le_bytes(key)).is_some()),
                "{name}: {:?}",
                engine.recovery()
            );
        }
    }
    assert!(lost > 3, "{lost}");
    assert!(newest_lost <= 2, "only with the segment that holds it: {newest_lost}");
}

#[test]
fn a_wal_block_that_cannot_be_read_brings_nothing_older_back() {
    // Each key twice, so that values before the block may not be served if the block superseded
    // them.
    let store = Store::new(small().wal_values(WalValues::Always));
    for round in 0..2 {
        for key in 0..40u64 {
            store.put(&key.to_le_bytes(), &value(key, round, 300));
        }
        store.engine().persist(Ack::Host).unwrap();
    }
    store.put(b"the last", b"value");
    store.engine().persist(Ack::Host).unwrap();
    let disk = store.disk.after_power_cut(1, PowerCut::LoseAll);
    let wal: Vec<(String, u64)> = disk.files().into_iter().filter(|(name, _)| name.starts_with("wal.")).collect();
    let (mut costs, end) =
        (0, frames(&disk).iter().flatten().filter(|(name, _)| name.starts_with("wal.")).map(|(_, at)| *at).max().unwrap());
    for (name, len) in &wal {
        for block in (BLOCK as u64..*len).step_by(BLOCK) {
            let image = disk.after_kill();
            image.fail_reads_of(name, block);
            let engine = reopen(&image).unwrap();
            let found = |key: u64| get(&engine, &key.to_le_bytes());
            (0..40)
                .for_each(|key| assert!(found(key).is_none_or(|found| found == value(key, 1, 300)), "{name}, {block}: key {key} is stale"));
            let missing = (0..40).filter(|key| found(*key).is_none()).count();
            assert!(
                missing == 0 || !engine.recovery().damaged.is_empty(),
                "{name}, {block}: {missing} are missing, and nothing is reported"
            );
            costs += usize::from(missing > 0);
            assert!(missing == 0 || block <= end, "{name}, {block}: {missing} are missing, and nothing was there");
            assert!(
                get(&engine, b"the last").is_some() || block + BLOCK as u64 > end,
                "{name}, {block}: the frames that follow are lost too"
            );
        }
    }
    assert!(costs > 3, "{costs}");
}

#[test]
fn damage_at_the_end_of_the_wal_costs_nothing_while_its_records_are_whole() {
    for damaged in 1..4 {
        let store = Store::new(small());
        for key in [b"a", b"b", b"c"] {
            store.put(key, b"old");
        }
        for key in [b"a", b"b", b"c"] {
            store.put(key, b"new");
        }
        let image = store.disk.after_kill();
        for frame in 6 - damaged..6 {
            image.corrupt(WAL_RING, frame * FRAME_LEN as u64 + 9, 0xff);
        }
        let engine = reopen(&image).unwrap();
        for key in [b"a", b"b", b"c"] {
            assert_eq!(get(&engine, key).as_deref(), Some(&b"new"[..]), "{damaged} frames damaged");
        }
        // A process that dies between the two stores leaves a record ahead of its frame.
        assert_eq!(engine.recovery().damaged.len(), usize::from(damaged > 1), "{:?}", engine.recovery());
        assert!(engine.appended() >= Lsn(6));
    }
}

#[test]
fn damage_at_the_end_of_the_wal_and_of_a_record_leaves_nothing_older() {
    // The damaged record is followed by a whole one, or follows a whole one. The frames of both are
    // damaged.
    for damaged in [b"delete 1", b"the last"] {
        let store = Store::new(small());
        for key in [b"a", b"b"] {
            store.put(key, b"old");
        }
        store.engine().persist(Ack::Host).unwrap();
        store.put(b"a", b"delete 1");
        store.put(b"b", b"the last");
        store.engine().delete((b"a").into(), &DeleteOptions::new()).unwrap();
        let image = store.disk.after_kill();
        let ring = image.content(WAL_RING);
        // The frames since the sync.
        let frames =
            (0..ring.len()).step_by(8).filter(|at| u32::from_le_bytes(ring[at + 4..at + 8].try_into().unwrap()) == FRAME_LEN as u32);
        frames.skip(2).for_each(|at| image.corrupt(WAL_RING, at as u64 + 9, 0xff));
        damage_value(&image, damaged);
        let engine = reopen(&image).unwrap();
        for key in [b"a", b"b"] {
            assert_eq!(get(&engine, key), None, "{damaged:?}");
        }
        assert_eq!(engine.recovery().damaged.len(), 1, "{:?}", engine.recovery());
    }
}

#[test]
fn a_block_of_an_open_segment_that_cannot_be_read_costs_its_entries() {
    let store = Store::new(small().wal_values(WalValues::Never));
    let put = |keys: Range<u64>| keys.for_each(|key| store.put(&key.to_le_bytes(), &value(key, 0, 800)));
    put(0..120);
    store.engine().persist(Ack::Host).unwrap();
    put(120..140);
    while store.engine().step_flush().unwrap() {}
    let mut missed = 0;
    for seed in 0..20 {
        for (image, synced) in [(store.disk.after_power_cut(seed, PowerCut::Random), 120), (store.disk.after_kill(), 140)] {
            let open = image.files().into_iter().map(|(name, _)| name).filter(|name| name.starts_with("segment."));
            // One of them has the newest records, which recovery reads.
            for name in open.collect::<Vec<_>>() {
                let image = image.after_kill();
                image.fail_reads_of(&name, 4096 * (1 + seed % 14));
                let engine = reopen(&image).unwrap();
                let found = (0..synced).filter(|key: &u64| get(&engine, &key.to_le_bytes()).is_some()).count() as u64;
                // A block of 4 KiB holds parts of six records.
                assert!(found + 6 >= synced, "seed {seed}, {name}: {found} of {synced}: {:?}", engine.recovery());
                let noticed = engine.recovery().damaged.len() as u64 + engine.stats().damaged + engine.stats().read_errors;
                assert!(found == synced || noticed > 0, "seed {seed}, {name}: {found} of {synced}, and nothing was noticed");
                missed += synced - found;
            }
        }
    }
    assert!(missed > 0);
}

#[test]
fn puts_after_damage_survive_the_next_stop() {
    let store = Store::new(small());
    store.put(b"a", b"1");
    store.put(b"a", b"2");
    store.engine().persist(Ack::Host).unwrap();
    store.engine().persist(Ack::Host).unwrap();
    let image = store.disk.after_kill();
    for file in [WAL_RING, "wal.0"] {
        let header = if file == "wal.0" { 4096 } else { 0 };
        image.corrupt(file, header + FRAME_LEN as u64 + 30, 1);
    }
    let engine = reopen(&image).unwrap();
    engine.put((b"b").into(), b"3", &PutOptions::new()).unwrap();
    close(&engine).unwrap();
    drop(engine);
    let engine = reopen(&image).unwrap();
    assert_eq!(get(&engine, b"a").as_deref(), Some(&b"2"[..]));
    assert_eq!(get(&engine, b"b").as_deref(), Some(&b"3"[..]));
}

/// Opens an image of `worn` and checks each entry: it has the newest value, or misses and the
/// engine noticed damage. Checks again after more puts and a kill.
///
/// Returns whether the engine noticed anything, or the error if it refused to open.
fn is_newest_or_noticed(worn: &Worn, image: &SimDisk, what: &str) -> Result<bool, Error> {
    let engine = reopen(image)?;
    let missing = worn.missing(&engine, 0..KEYS, what);
    let noticed = has_noticed(&engine, 0) || engine.recovery().torn_bytes > 0;
    assert!(missing.is_empty() || noticed, "{what}: {missing:?} are missing, and nothing was noticed");
    // Some keys are put again, some deleted. The others stay as they were.
    for k in 0..8u64 {
        engine.put((&k.to_le_bytes()).into(), b"put again", &PutOptions::new()).unwrap_or_else(|e| panic!("{what}: {e}"));
        engine.delete((&(8 + k).to_le_bytes()).into(), &DeleteOptions::new()).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let next = image.after_kill();
    drop(engine);
    let (what, engine) = (format!("{what}, then a kill"), reopen(&next)?);
    for k in 0..8u64 {
        assert_eq!(get(&engine, &k.to_le_bytes()).as_deref(), Some(&b"put again"[..]), "{what}: key {k}: {:?}", engine.recovery());
        assert_eq!(get(&engine, &(8 + k).to_le_bytes()), None, "{what}: key {} was deleted", 8 + k);
    }
    let still = worn.missing(&engine, 16..KEYS, &what);
    assert!(
        still.iter().all(|k| missing.contains(k)) || noticed || has_noticed(&engine, 0),
        "{what}: {still:?} are missing, not {missing:?}"
    );
    Ok(noticed || has_noticed(&engine, 0))
}

/// Prints how many damages there were, and how many of them an engine noticed.
fn print_damages(name: &str, damages: &[bool]) {
    let noticed = damages.iter().filter(|noticed| **noticed).count();
    println!("{} {name}, {noticed} noticed", damages.len());
    assert!(damages.len() < 100 || noticed * 20 > damages.len(), "most of the damaged bytes are never read");
}

/// How a store was stopped before its bytes are damaged.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    Close,
    Kill,
    /// After everything was synced.
    PowerCut,
}

const KEYS: u64 = 120;
/// Rounds of puts: enough that segments drained and were used again, and that entries moved.
const ROUNDS: u64 = 44;

/// A store in which every kind of change has happened, after a stop. Every key was put in each
/// round, but for a few that stay from the first one. Every tenth key was deleted, every tenth one
/// has expired, and a namespace was dropped.
struct Worn {
    stop: &'static str,
    disk: SimDisk,
    /// Keys that an opening finds if nothing is damaged.
    keys: Vec<u64>,
}

impl Worn {
    /// The keys among these that should be found and are not. Checks that found entries are the
    /// newest.
    fn missing(&self, engine: &Engine, keys: Range<u64>, what: &str) -> Vec<u64> {
        let dropped = engine.namespace("dropped").unwrap();
        let mut missing = Vec::new();
        for k in keys {
            let bytes = k.to_le_bytes();
            match get(engine, &bytes) {
                Some(found) => {
                    let text = String::from_utf8_lossy(&found[..found.len().min(20)]);
                    assert!(k % 10 != 3 && k % 10 != 4, "{what}: key {k} was deleted or has expired: {text}");
                    assert_eq!(found, value(k, if stays(k) { 0 } else { ROUNDS - 1 }, 300), "{what}: key {k}");
                }
                None if self.keys.contains(&k) => missing.push(k),
                None => {}
            }
            assert!(engine.get(dropped.key(&bytes), false).unwrap().is_none(), "{what}: key {k} of a namespace that was dropped");
        }
        let token = engine.namespaces().resume_token("stream").map(|token| u64::from_le_bytes(token.try_into().unwrap()));
        assert!(token.is_none_or(|token| token == ROUNDS - 1), "{what}: the token of round {token:?}");
        missing
    }
}

/// Whether a key is put in the first round only.
fn stays(key: u64) -> bool {
    key % 10 == 5
}

fn worn(stop: Stop) -> SimDisk {
    let wal_values = if stop == Stop::Close { WalValues::Host } else { WalValues::Always };
    let mut store = Store::new(small().wal_values(wal_values));
    wear(&store, 0..ROUNDS);
    assert!(store.engine().stats().segments_reclaimed > 4 && store.engine().stats().reinserted > 10);
    let dropped = store.engine().namespace("dropped").unwrap();
    (0..KEYS).for_each(|k| assert!(store.engine().put(dropped.key(&k.to_le_bytes()), b"gone", &PutOptions::new()).is_ok()));
    store.engine().clear(&dropped, None).unwrap();
    for k in 0..KEYS {
        let bytes = k.to_le_bytes();
        let ack = if k % 4 == 0 { Ack::Host } else { Ack::Process };
        match k % 10 {
            3 => drop(store.engine().delete((&bytes).into(), &DeleteOptions::new().ack(ack)).unwrap()),
            4 => drop(store.engine().put((&bytes).into(), b"short", &PutOptions::new().ttl(Duration::from_millis(1)).ack(ack)).unwrap()),
            _ => {}
        }
    }
    store.clock.advance(Duration::from_millis(50));
    (0..KEYS).for_each(|k| assert!(k % 10 != 4 || store.get(&k.to_le_bytes()).is_none()));
    match stop {
        Stop::Kill => store.disk.after_kill(),
        Stop::PowerCut => {
            store.engine().persist(Ack::Host).unwrap();
            store.disk.after_power_cut(7, PowerCut::Random)
        }
        Stop::Close => {
            close(&store.engine.take().unwrap()).unwrap();
            store.disk.after_kill()
        }
    }
}

fn wear(store: &Store, rounds: Range<u64>) {
    for round in rounds {
        for k in (0..KEYS).filter(|k| round == 0 || !stays(*k)) {
            store.put(&k.to_le_bytes(), &value(k, round, 300));
        }
        store.engine().set_resume_token("stream", &round.to_le_bytes(), None).unwrap();
        store.engine().persist(Ack::Host).unwrap();
        // Makes keys hot, and checkpoints that later mutations add to.
        (0..20u64).for_each(|k| drop(store.get(&k.to_le_bytes())));
        store.engine().step_record_warmth().unwrap();
        if round % 3 == 1 {
            store.engine().step_checkpoint(true).unwrap();
        }
        store.engine().step_all().unwrap();
    }
}

/// The store of [`worn`] at an earlier moment.
fn half_worn() -> SimDisk {
    let store = Store::new(small());
    wear(&store, 0..ROUNDS - 1);
    store.disk.after_kill()
}

/// Another store with the same keys.
fn foreign() -> SimDisk {
    let mut store = Store::closed(small(), SimDisk::new(1), 77);
    store.open();
    wear(&store, 0..ROUNDS + 1);
    store.disk.after_kill()
}

#[test]
fn the_recovery_mode_decides_what_a_damaged_checkpoint_does() {
    let image = worn(Stop::Close);
    let open_with = |image: &SimDisk, mode| {
        let options = small().recovery(mode);
        open_inline(&options, &image.after_kill(), Arc::new(SimClock::new(3)))
    };
    assert!(!open_with(&image, RecoveryMode::Refuse).unwrap().recovery().rebuilt);
    let rebuilt = open_with(&image, RecoveryMode::Rebuild).unwrap();
    assert!(rebuilt.recovery().rebuilt && rebuilt.recovery().damaged.is_empty());
    assert_eq!(named_checkpoint(&rebuilt), None, "the checkpoint that was left aside is not trusted later");
    for (name, len) in image.files().iter().filter(|(name, len)| name.starts_with("checkpoint") && *len > 0) {
        for offset in [100, len / 2] {
            image.corrupt(name, offset, 1);
        }
    }
    assert!(matches!(open_with(&image, RecoveryMode::Refuse), Err(Error::Corrupt { .. })));
    let served = open_with(&image, RecoveryMode::Serve).unwrap();
    assert!(served.recovery().rebuilt && served.recovery().damaged.len() == 1, "{:?}", served.recovery());
}

/// Stores that were stopped in each of three ways, after the life of [`worn`].
fn all_worn() -> [Worn; 3] {
    [("closed", Stop::Close), ("killed", Stop::Kill), ("cut off", Stop::PowerCut)].map(|(name, stop)| {
        let disk = worn(stop);
        let engine = reopen(&disk.after_kill()).unwrap();
        let keys: Vec<u64> = (0..KEYS).filter(|k| get(&engine, &k.to_le_bytes()).is_some()).collect();
        let (report, stats) = (engine.recovery(), engine.stats());
        assert_eq!(keys.len() as u64, KEYS * 8 / 10, "{name}: {keys:?}");
        let noticed = report.damaged.len() as u64 + report.torn_bytes + stats.damaged + stats.read_errors;
        assert!(noticed == 0 && !report.manifest_repaired, "{name}, undamaged: {report:?}");
        Worn { stop: name, disk, keys }
    })
}

/// Draws numbers below its argument from a seed.
fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut n = 0u64;
    move |below| {
        n += 1;
        xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed) % below
    }
}

/// The places in files and rings of every frame of a store's WAL. Frames are in the order of their
/// LSNs; the LSN of a mark is the one that it states.
fn frames(disk: &SimDisk) -> Vec<Vec<(String, u64)>> {
    type Places = Vec<(String, u64)>;
    let mut places: HashMap<(u64, [u8; 8]), Places> = HashMap::new();
    for (name, _) in disk.files().into_iter().filter(|(name, _)| name.starts_with("wal.") || name == WAL_RING) {
        let bytes = disk.content(&name);
        for at in (0..bytes.len().saturating_sub(8)).step_by(8) {
            let head: [u8; 8] = bytes[at..at + 8].try_into().unwrap();
            let len = u32::from_le_bytes(head[4..].try_into().unwrap()) as usize;
            let is_frame = (FRAME_LEN..=FRAME_LEN_MAX).contains(&len) && at + len <= bytes.len() && (1..=4).contains(&bytes[at + 8]);
            if is_frame && head[..4] != [0; 4] {
                let lsn = u64::from_le_bytes(bytes[at + 16..at + 24].try_into().unwrap());
                places.entry((lsn, head)).or_default().push((name.clone(), at as u64));
            }
        }
    }
    let mut frames: Vec<_> = places.into_iter().map(|((lsn, _), places)| (lsn, places)).collect();
    frames.sort();
    frames.into_iter().map(|(_, places)| places).collect()
}

/// Damages frames: 100, or `EVERWARM_FRAME_SEEDS`. A frame is damaged in one of its places, in all
/// of them, with the frames behind it, or with a block of a segment, where its second copy may be.
#[test]
fn a_damaged_frame_of_the_wal_never_brings_back_an_older_value() {
    // Frames of the newest mutations, which an opening replays.
    let newest = |mut frames: Vec<_>| frames.split_off(frames.len() - 400);
    let stores = all_worn().map(|worn| (newest(frames(&worn.disk)), worn));
    let found = each_seed(seeds("FRAME", 0, 100), "FRAME", "a_damaged_frame", |seed| {
        let mut draw = numbers(seed);
        let (way, turn) = (seed as usize % 5, seed as usize / 5);
        let (frames, worn) = &stores[turn % stores.len()];
        let number = (turn / stores.len()) % frames.len();
        let image = worn.disk.after_kill();
        let harm = |(name, at): &(String, u64)| image.corrupt(name, at + 8 + seed % 24, 0x55);
        match way {
            0 => harm(&frames[number][0]),
            1 => frames[number].iter().for_each(harm),
            2 => frames[number..].iter().flatten().for_each(harm),
            3 => frames[number..].iter().take(3).flatten().for_each(harm),
            _ => {
                frames[number].iter().for_each(harm);
                let segments: Vec<_> = worn.disk.files().into_iter().filter(|(name, _)| name.contains("segment")).collect();
                let (name, len) = &segments[draw(segments.len() as u64) as usize];
                let block = draw(len / BLOCK as u64) * BLOCK as u64;
                (0..64).for_each(|n| image.corrupt(name, block + n * 64, 0xaa));
            }
        }
        is_newest_or_noticed(worn, &image, &format!("{}, frame {number} of {}", worn.stop, frames.len())).unwrap()
    });
    print_damages("frames", &found);
}

/// Flips bits: 150, or `EVERWARM_DAMAGE_SEEDS`. Half of them lie near the front of a file or of its
/// last block, where headers are.
#[test]
fn a_flipped_bit_anywhere_never_brings_back_an_older_value() {
    let stores = all_worn();
    let found = each_seed(seeds("DAMAGE", 0, 150), "DAMAGE", "a_flipped_bit", |seed| {
        let mut draw = numbers(seed);
        let worn @ Worn { stop, disk, .. } = &stores[draw(3) as usize];
        let files: Vec<_> = disk.files().into_iter().filter(|(_, len)| *len > 0).collect();
        let (name, len) = &files[draw(files.len() as u64) as usize];
        let offset = match draw(4) {
            0 => draw(256.min(*len)),
            1 => len - BLOCK as u64 + draw(64),
            _ => draw(*len),
        };
        let image = disk.after_kill();
        image.corrupt(name, offset, 1 << draw(8));
        let what = format!("{stop}: {name}, byte {offset}");
        is_newest_or_noticed(worn, &image, &what).unwrap_or_else(|refused| panic!("{what}: {refused}"))
    });
    print_damages("flips", &found);
}

/// Damages bytes of headers: 500, or `EVERWARM_HEADER_SEEDS`, at most all of them.
#[test]
fn no_byte_of_a_header_is_trusted() {
    let stores = all_worn();
    let places = |worn: &'static Worn| {
        let fronts = worn.disk.files().into_iter().filter(|(_, len)| *len > 0).flat_map(|(name, len)| {
            let ends = if name.starts_with("segment.") { len - BLOCK as u64..len - BLOCK as u64 + 56 } else { 0..0 };
            let front = if name.starts_with("manifest.") { 0..len.min(1_100) } else { 0..72.min(len) };
            front.chain(ends).map(move |offset| (name.clone(), offset)).collect::<Vec<_>>()
        });
        fronts.map(move |(name, offset)| (worn, name, offset)).collect::<Vec<_>>()
    };
    let stores: &'static [Worn; 3] = Box::leak(Box::new(stores));
    let places: Vec<_> = stores.iter().flat_map(places).collect();
    assert!(places.len() > 3_000, "{} bytes", places.len());
    let numbers = seeds("HEADER", 0, 500);
    let found = each_seed(numbers.start..numbers.end.min(places.len() as u64), "HEADER", "no_byte_of_a_header", |n| {
        // A prime stride spreads few damages over all files.
        let (worn, name, offset) = &places[n as usize * 7_919 % places.len()];
        let image = worn.disk.after_kill();
        image.corrupt(name, *offset, 1 << (n % 8));
        let what = format!("{}: {name}, byte {offset}", worn.stop);
        is_newest_or_noticed(worn, &image, &what).unwrap_or_else(|refused| panic!("{what}: {refused}"))
    });
    print_damages("header bytes", &found);
}

/// Damages blocks: 100, or `EVERWARM_BLOCK_SEEDS`. A block is zeroed, filled with noise, exchanged
/// with another one, or overwritten by another one or by an older state of itself.
#[test]
fn a_block_that_holds_something_else_never_brings_back_an_older_value() {
    let (stores, before) = (all_worn(), half_worn());
    let found = each_seed(seeds("BLOCK", 0, 100), "BLOCK", "a_block_that_holds", |seed| {
        let mut draw = numbers(seed);
        let worn @ Worn { stop, disk, .. } = &stores[draw(3) as usize];
        let files: Vec<_> = disk.files().into_iter().filter(|(_, len)| *len >= BLOCK as u64).collect();
        let mut place = || {
            let (name, len) = &files[draw(files.len() as u64) as usize];
            (name.as_str(), draw(len / BLOCK as u64) * BLOCK as u64)
        };
        let (to, from) = (place(), place());
        let block = |disk: &SimDisk, (name, at): (&str, u64)| {
            let there = disk.files().iter().any(|(n, len)| n == name && at + BLOCK as u64 <= *len);
            there.then(|| disk.content(name)[at as usize..][..BLOCK].to_vec())
        };
        let image = disk.after_kill();
        let kind = draw(5);
        match kind {
            0 => image.overwrite(to.0, to.1, &[0; BLOCK]),
            1 => image.overwrite(to.0, to.1, &(0..BLOCK).map(|_| draw(256) as u8).collect::<Vec<_>>()),
            2 => {
                let (a, b) = (block(&image, to).unwrap(), block(&image, from).unwrap());
                image.overwrite(to.0, to.1, &b);
                image.overwrite(from.0, from.1, &a);
            }
            3 => image.overwrite(to.0, to.1, &block(&image, from).unwrap()),
            // The same block of the same store at an earlier moment.
            _ => image.overwrite(to.0, to.1, &block(&before, to).unwrap_or(vec![0; BLOCK])),
        }
        let what = format!("{stop}: damage {kind} of {to:?}, {from:?}");
        is_newest_or_noticed(worn, &image, &what).unwrap_or_else(|refused| panic!("{what}: {refused}"))
    });
    print_damages("blocks", &found);
}

#[test]
fn a_lost_or_exchanged_file_is_noticed_and_brings_nothing_older_back() {
    let (before, foreign) = (half_worn(), foreign());
    for worn @ Worn { stop, disk, .. } in &all_worn() {
        for (name, len) in disk.files() {
            let kind = name.rsplit_once('.').map_or(name.as_str(), |(kind, _)| kind).to_owned();
            let other = disk.files().into_iter().map(|(name, _)| name).find(|other| *other != name && other.starts_with(&kind));
            let put = |image: &SimDisk, name: &str, bytes: &[u8]| {
                image.truncate(name, 0);
                image.overwrite(name, 0, bytes);
            };
            type Damage<'a> = (&'a str, Box<dyn Fn(&SimDisk) + 'a>);
            let damages: [Damage<'_>; 7] = [
                ("lost", Box::new(|image| image.lose(&name))),
                ("emptied", Box::new(|image| image.truncate(&name, 0))),
                ("cut", Box::new(|image| image.truncate(&name, crate::codec::round_down(len / 2, BLOCK as u64)))),
                ("longer", Box::new(|image| image.overwrite(&name, len, &[0; BLOCK]))),
                ("another", Box::new(|image| other.iter().for_each(|other| put(image, &name, &disk.content(other))))),
                (
                    "foreign",
                    Box::new(|image| {
                        foreign.files().iter().filter(|(n, _)| *n == name).for_each(|_| put(image, &name, &foreign.content(&name)))
                    }),
                ),
                // Not the rings: nothing tells that a ring as a whole is of an earlier moment.
                (
                    "older",
                    Box::new(|image| {
                        before
                            .files()
                            .iter()
                            .filter(|(n, _)| *n == name && !n.starts_with("ring."))
                            .for_each(|_| put(image, &name, &before.content(&name)))
                    }),
                ),
            ];
            for (damage, apply) in &damages {
                let image = disk.after_kill();
                apply(&image);
                let what = format!("{stop}: {name} {damage}");
                if let Err(refused) = is_newest_or_noticed(worn, &image, &what) {
                    assert!(
                        matches!(refused, Error::Corrupt { .. }) && name.starts_with("manifest.") && *damage == "foreign",
                        "{what}: {refused}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_wal_file_with_a_damaged_or_unreadable_header_keeps_its_deletes() {
    for (unread, cut) in [(false, true), (false, false), (true, true)] {
        let mut store = Store::new(small());
        for key in [b"a", b"b"] {
            store.put(key, b"the old value");
        }
        store.close();
        // Only the WAL has these mutations, and after a power cut only its file.
        store.engine().delete(b"a".into(), &DeleteOptions::new().ack(Ack::Host)).unwrap();
        store.engine().put(b"b".into(), b"the new value", &PutOptions::new().ack(Ack::Host)).unwrap();
        let image = if cut { store.disk.after_power_cut(1, PowerCut::LoseAll) } else { store.disk.after_kill() };
        let named = |(name, _): (String, u64)| (name.starts_with("wal.") && image.content(&name).starts_with(b"EWWH")).then_some(name);
        let files: Vec<String> = image.files().into_iter().filter_map(named).collect();
        for name in &files {
            if unread {
                image.fail_reads_of(name, 0);
            } else {
                image.corrupt(name, 25, 1);
            }
        }
        assert!(!files.is_empty());
        let engine = reopen(&image).unwrap();
        assert_eq!(get(&engine, b"a"), None, "{unread} {cut}");
        assert_eq!(get(&engine, b"b").as_deref(), Some(&b"the new value"[..]), "{unread} {cut}");
        assert!(engine.recovery().damaged.is_empty(), "{:?}", engine.recovery());
    }
}
