//! Bytes that rot: in the WAL, and anywhere.

use super::*;
use crate::config::RecoveryMode;
use crate::error::Error;
use crate::wal::format::FRAME_LEN;

/// Of a store with the options of these tests.
const WAL_RING: &str = "ring.wal.16";

fn reopen(disk: &SimDisk) -> Result<Arc<Engine>, Error> {
    open(&small(), Some(Arc::new(disk.clone())), Arc::new(SimClock::new(3)), Mode::Inline)
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
    assert_eq!(engine.report.damaged.len(), 1, "{:?}", engine.report);
    for (key, value) in [(b"a", b"2"), (b"b", b"3"), (b"c", b"4")] {
        assert_eq!(get(&engine, key).as_deref(), Some(&value[..]));
    }
    drop(engine);
    let again = reopen(&image.after_kill()).unwrap();
    assert_eq!(get(&again, b"a").as_deref(), Some(&b"2"[..]));
    assert!(again.report.damaged.is_empty());
}

/// Damages the record of the last put of `key` that `disk` holds, wherever it lies.
fn damage_record(disk: &SimDisk, value: &[u8]) {
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
fn a_hole_in_the_wal_whose_records_are_damaged_too_is_reported_and_nothing_older_is_served() {
    let store = Store::new(small());
    for (key, value) in [(b"a", &b"1"[..]), (b"a", b"the second value"), (b"b", b"3"), (b"c", b"4")] {
        store.put(key, value);
    }
    let image = store.disk.after_kill();
    image.corrupt(WAL_RING, FRAME_LEN as u64 + 30, 1);
    damage_record(&image, b"the second value");
    let engine = reopen(&image).unwrap();
    assert_eq!(engine.report.damaged.len(), 1, "{:?}", engine.report);
    assert_eq!(get(&engine, b"a"), None, "neither the lost value nor the one it superseded");
    assert_eq!(get(&engine, b"b").as_deref(), Some(&b"3"[..]));
    assert_eq!(get(&engine, b"c").as_deref(), Some(&b"4"[..]));
    drop(engine);
    let again = reopen(&image.after_kill()).unwrap();
    assert_eq!(get(&again, b"a"), None, "nor after another restart");
    assert_eq!(get(&again, b"c").as_deref(), Some(&b"4"[..]));
}

#[test]
fn damage_at_the_end_of_the_wal_of_a_dead_process_costs_the_last_entry_only() {
    let store = Store::new(small());
    for key in [b"a", b"b", b"c"] {
        store.put(key, b"value");
    }
    let image = store.disk.after_kill();
    image.corrupt(WAL_RING, 2 * FRAME_LEN as u64 + 9, 0xff);
    let engine = reopen(&image).unwrap();
    assert_eq!((get(&engine, b"a").is_some(), get(&engine, b"b").is_some(), get(&engine, b"c")), (true, true, None));
}

#[test]
fn what_is_put_after_damage_survives_the_next_stop() {
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
    engine.begin_close();
    engine.finish().unwrap();
    drop(engine);
    let engine = reopen(&image).unwrap();
    assert_eq!(get(&engine, b"a").as_deref(), Some(&b"2"[..]));
    assert_eq!(get(&engine, b"b").as_deref(), Some(&b"3"[..]));
}

/// Opens `image` and checks that whatever it serves is the newest value. What it says instead if it does not open.
fn never_lies(image: &SimDisk, what: &str) -> Option<Error> {
    let engine = match reopen(image) {
        Ok(engine) => engine,
        Err(e) => return Some(e),
    };
    for k in 0..120u64 {
        if let Some(found) = get(&engine, &k.to_le_bytes()) {
            assert_eq!(found, value(k, 2, 300), "{what}: key {k}");
            assert_ne!(k % 10, 3, "{what}: key {k} was deleted");
        }
    }
    None
}

/// A store in which every key was put three times and every tenth one deleted; stopped in order, or killed.
fn worn(clean: bool) -> SimDisk {
    let mut store = Store::new(small());
    for round in 0..3 {
        for k in 0..120u64 {
            store.put(&k.to_le_bytes(), &value(k, round, 300));
        }
    }
    (0..120u64)
        .filter(|k| k % 10 == 3)
        .for_each(|k| assert!(store.engine().delete((&k.to_le_bytes()).into(), &DeleteOptions::new()).is_ok()));
    if clean {
        let engine = store.engine.take().unwrap();
        engine.begin_close();
        engine.finish().unwrap();
    }
    store.disk.after_kill()
}

#[test]
fn the_recovery_mode_decides_what_a_damaged_checkpoint_does() {
    let image = worn(true);
    let open_with = |image: &SimDisk, mode| {
        let options = small().recovery(mode);
        open(&options, Some(Arc::new(image.after_kill())), Arc::new(SimClock::new(3)), Mode::Inline)
    };
    assert!(!open_with(&image, RecoveryMode::Refuse).unwrap().report.rebuilt);
    let rebuilt = open_with(&image, RecoveryMode::Rebuild).unwrap();
    assert!(rebuilt.report.rebuilt && rebuilt.report.damaged.is_empty());
    let named = crate::sync::lock(&rebuilt.manifest).checkpoint;
    assert_eq!(named, None, "the checkpoint that was left aside is not trusted later");
    for (name, len) in image.files().iter().filter(|(name, len)| name.starts_with("checkpoint") && *len > 0) {
        for offset in [100, len / 2] {
            image.corrupt(name, offset, 1);
        }
    }
    assert!(matches!(open_with(&image, RecoveryMode::Refuse), Err(Error::Corrupt { .. })));
    let served = open_with(&image, RecoveryMode::Serve).unwrap();
    assert!(served.report.rebuilt && served.report.damaged.len() == 1, "{:?}", served.report);
}

#[test]
fn a_flipped_bit_anywhere_never_brings_back_an_older_value() {
    for clean in [true, false] {
        let disk = worn(clean);
        let files = disk.files();
        let mut opened = 0;
        for n in 0..400u64 {
            let r = xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), 5);
            let (name, len) = &files[(r % files.len() as u64) as usize];
            if *len == 0 {
                continue;
            }
            // Half of the flips near the front, where headers and first records are.
            let span = if r & 1 == 0 { (*len).min(12_000) } else { *len };
            let (offset, bit) = ((r >> 8) % span, (r >> 40) % 8);
            let image = disk.after_kill();
            image.corrupt(name, offset, 1 << bit);
            let refused = never_lies(&image, &format!("{name} byte {offset} bit {bit}, clean {clean}"));
            assert!(refused.is_none(), "{name} byte {offset} bit {bit}: {refused:?}");
            opened += 1;
        }
        assert!(opened > 300);
    }
}

#[test]
fn a_lost_or_emptied_file_costs_entries_and_never_brings_back_older_ones() {
    for clean in [true, false] {
        let disk = worn(clean);
        for (name, len) in disk.files() {
            if name.starts_with("ring.") {
                // Without the rings a killed store has lost what only the page cache held, and cannot know it: rings are not files that may be tampered with.
                continue;
            }
            for to in [0, round_down_to_block(len / 2)] {
                let image = disk.after_kill();
                image.truncate(&name, to);
                let refused = never_lies(&image, &format!("{name} cut to {to}, clean {clean}"));
                assert!(refused.is_none(), "{name} cut to {to}, clean {clean}: {refused:?}");
            }
        }
    }
}

fn round_down_to_block(n: u64) -> u64 {
    crate::codec::round_down(n, crate::io::BLOCK as u64)
}

#[test]
fn a_wal_file_whose_header_is_damaged_or_cannot_be_read_still_says_what_was_deleted() {
    for (unread, cut) in [(false, true), (false, false), (true, true)] {
        let mut store = Store::new(small());
        for key in [b"a", b"b"] {
            store.put(key, b"the old value");
        }
        store.close();
        // Only the WAL knows of these, and only its file after a power cut.
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
        assert!(engine.report.damaged.is_empty(), "{:?}", engine.report);
    }
}
