//! Stops a scenario at each operation of the disk, with several kinds of damage. Then recovery, the
//! check, and stops inside recovery.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::internals::{move_entries, open_inline, seal_behind_the_manifest};
use super::model::{Evictions, History, Keys, Step, has_noticed, value};
use super::seeds::{each_seed, seeds};
use super::store::{Machine, Store, close, small};
use crate::clock::SimClock;
use crate::config::{Ack, OnHostCrash, Options, WalValues};
use crate::engine::{DeleteOptions, Engine, PutOptions, Start, Stats, Wait};
use crate::error::Error;
use crate::io::sim::{FaultOp, PowerCut, SimDisk};

pub(super) const KEYS: Keys = Keys { count: 24, len: 1 };

/// The history of a scenario. Its images are opened with another clock, by processes that do not
/// know whether another one evicted anything.
pub(super) fn history() -> History {
    History::new(KEYS, 0, Evictions::Reclaimed).with_other_clocks()
}

/// A machine that stops at operation `stop`.
fn machine(options: &Options, stop: u64) -> Machine {
    let disk = SimDisk::new(stop);
    disk.stop_at(stop);
    Machine::new(Store::closed(options.clone(), disk, 2), history())
}

/// Opens a store, runs all steps and closes it. An error if the machine stopped.
fn run_all(machine: &mut Machine, steps: &[Step]) -> Result<(), Error> {
    machine.store.try_open()?;
    steps.iter().try_for_each(|step| machine.run(step))?;
    machine.end(true)
}

pub(super) fn reopen(options: &Options, disk: &SimDisk) -> Result<Arc<Engine>, Error> {
    open_inline(options, disk, Arc::new(SimClock::new(3)))
}

/// Recovers the `number`th image, then stops recovery at some operations, other ones for each
/// image, and recovers again.
fn recover_and_check(options: &Options, (number, image): (usize, &SimDisk), history: &History, floor: usize, power: bool, what: &str) {
    // Each engine writes to its disk, so each check gets an image of its own.
    let first = image.after_kill();
    let engine = reopen(options, &first).unwrap_or_else(|e| panic!("{what}: {e}"));
    // Neither a kill nor a power cut damages anything.
    assert!(engine.recovery().damaged.is_empty(), "{what}: {:?}", engine.recovery());
    history.check(&engine, floor, what);
    drop(engine);
    let again = reopen(options, &first.after_kill()).unwrap_or_else(|e| panic!("{what}, again: {e}"));
    history.check(&again, floor, &format!("{what}, again"));
    drop(again);
    // Everything that an opening found is durable.
    let cut = reopen(options, &first.after_power_cut(1, PowerCut::LoseAll)).unwrap_or_else(|e| panic!("{what}, then a power cut: {e}"));
    history.check(&cut, floor, &format!("{what}, then a power cut"));
    drop(cut);
    if !power {
        // Without a new segment and with one.
        [1, 16].iter().for_each(|puts| go_on_and_lose_power(options, image, *puts, what));
    }
    for stop in (1 + number as u64 % 4..17).step_by(4) {
        let interrupted = image.after_kill();
        interrupted.stop_at(interrupted.operations() + stop);
        drop(reopen(options, &interrupted));
        let engine = reopen(options, &interrupted.after_kill()).unwrap_or_else(|e| panic!("{what}, recovery stopped at {stop}: {e}"));
        assert!(engine.recovery().damaged.is_empty(), "{what}, recovery stopped at {stop}: {:?}", engine.recovery());
        history.check(&engine, floor, &format!("{what}, recovery stopped at {stop}"));
        drop(engine);
        if power {
            let image = interrupted.after_power_cut(stop, PowerCut::Random);
            let engine = reopen(options, &image).unwrap_or_else(|e| panic!("{what}, recovery cut at {stop}: {e}"));
            history.check(&engine, floor, &format!("{what}, recovery cut at {stop}"));
        }
    }
}

/// The process after a kill uses everything that the kill left, and then power fails: all that it
/// relied on must have become durable.
fn go_on_and_lose_power(options: &Options, image: &SimDisk, puts: u8, what: &str) {
    let disk = image.after_kill();
    let engine = reopen(options, &disk).unwrap();
    let mut history = history();
    let first = [Step::Clear(Ack::Process), Step::Token(Ack::Process), Step::RemoveAside(Ack::Process)];
    let puts = (0..puts).map(|n| Step::put(n, 5_000, Ack::Process));
    for step in first.into_iter().chain(puts).chain([Step::Work, Step::Delete(3, Ack::Process), Step::Persist]) {
        history.apply(&engine, &step, &disk).unwrap();
    }
    for damage in [PowerCut::LoseAll, PowerCut::Random] {
        let what = format!("{what}, gone on, power cut {damage:?}");
        let engine = reopen(options, &disk.after_power_cut(1, damage)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(engine.recovery().damaged.is_empty(), "{what}: {:?}", engine.recovery());
        history.check(&engine, history.durable, &what);
    }
}

/// Stops an opening of `image` at each of its operations, `step` apart, by a kill and by power
/// cuts. Stops the openings of the images that are left in the same way, up to `depth` of them,
/// with longer steps. Every opening that is served must report what all stops took.
fn stop_openings(options: &Options, image: &SimDisk, clock: &Arc<SimClock>, history: &History, (depth, step): (u32, usize)) -> u32 {
    let mut served = 0;
    for stop in (1..).step_by(step) {
        let stopped = image.after_kill();
        stopped.stop_at(stop);
        clock.advance(Duration::from_millis(11));
        let opened = open_inline(options, &stopped, clock.clone());
        let is_over = opened.is_ok() && !stopped.has_stopped();
        drop(opened);
        let images = [stopped.after_kill(), stopped.after_loss(stop, PowerCut::LoseAll), stopped.after_loss(stop, PowerCut::Random)];
        for (kind, left) in images.into_iter().enumerate() {
            clock.advance(Duration::from_millis(11));
            let engine = open_inline(options, &left.after_kill(), clock.clone()).unwrap();
            history.check(&engine, history.durable, &format!("depth {depth}, stop {stop}, kind {kind}"));
            served += 1;
            if depth > 1 {
                served += stop_openings(options, &left, clock, history, (depth - 1, step * 3 + kind));
            }
        }
        if is_over {
            return served;
        }
    }
    unreachable!("an opening has an end")
}

#[test]
fn what_an_opening_found_lost_is_reported_until_a_served_store_syncs() {
    let mut machine = Machine::new(Store::new(small()), History::new(KEYS, 0, Evictions::Reclaimed));
    let put = |n: u8, ack| [Step::Pass(5), Step::put(n, 300, ack)];
    let steps = (0..6).flat_map(|n| put(n, Ack::Process)).chain(put(7, Ack::Host)).chain((8..14).flat_map(|n| put(n, Ack::Process)));
    steps.for_each(|step| machine.run(&step).unwrap());
    let Machine { store, mut history, .. } = machine;
    history.power_failed();
    let image = store.disk.after_power_cut(1, PowerCut::LoseAll);
    let served = stop_openings(&store.options, &image, &store.clock, &history, (3, 1));
    assert!(served > 1_000, "{served}");

    // Heard, it is not repeated: by a sync of a mutation, a persist, time that passes, or a close.
    let lost_after = open_inline(&store.options, &image.after_kill(), store.clock.clone()).unwrap().recovery().maybe_lost_after.unwrap();
    type Hear = fn(&Store);
    let hear: [(&str, Hear); 5] = [
        ("nothing", |_| ()),
        ("a put", |store| store.put(b"key", b"value")),
        ("a persist", |store| store.engine().persist(Ack::Host).unwrap()),
        ("an hour", |store| {
            store.clock.advance(Duration::from_secs(3_600));
            store.engine().step_alive();
        }),
        ("a sync", |store| {
            store.put(b"key", b"value");
            store.engine().step_sync().unwrap();
        }),
    ];
    for (number, (what, hear)) in hear.into_iter().enumerate() {
        let mut store = Store { disk: image.after_kill(), clock: store.clock.clone(), options: store.options.clone(), engine: None };
        store.open();
        let found = store.engine().recovery().alive_until_ms;
        hear(&store);
        store.kill();
        let report = store.engine().recovery().clone();
        if number < 2 {
            assert_eq!((report.kind, report.maybe_lost_after), (Start::Host, Some(lost_after)), "{what}");
            assert!((found - 1..=found).contains(&report.alive_until_ms), "{what}: {found}, {report:?}");
        } else {
            assert_eq!((report.kind, report.maybe_lost_after), (Start::Process, None), "{what}");
            assert!(report.alive_until_ms > found, "{what}: {report:?}");
        }
        store.close();
        assert_eq!((store.engine().recovery().kind, store.engine().recovery().maybe_lost_after), (Start::Clean, None), "{what}");
    }
}

#[test]
fn a_cold_start_goes_by_what_nobody_has_heard_of() {
    let store = Store::new(small());
    store.put(b"old", b"value");
    store.engine().persist(Ack::Host).unwrap();
    let image = store.disk.after_power_cut(1, PowerCut::KeepAll);
    let entries = |options: &Options, image: &SimDisk| {
        let engine = open_inline(options, image, store.clock.clone()).unwrap();
        (engine.recovery().kind, engine.recovery().entries)
    };
    let cold = small().on_host_crash(OnHostCrash::Cold);
    for stop in 1..40 {
        // Stopped by a kill, also before its first manifest is whole.
        let stopped = image.after_kill();
        stopped.stop_at(stop);
        drop(open_inline(&small(), &stopped, store.clock.clone()));
        assert_eq!(entries(&small(), &stopped.after_kill()), (Start::Host, 1), "stop {stop}");
        assert_eq!(entries(&cold, &stopped.after_kill()), (Start::Host, 0), "stop {stop}");
    }
    let mut store = Store { disk: image, clock: store.clock.clone(), options: small(), engine: None };
    store.open();
    store.put(b"new", b"value");
    store.engine().persist(Ack::Host).unwrap();
    assert_eq!(entries(&cold, &store.disk.after_kill()), (Start::Process, 2), "it was heard");
}

#[test]
fn a_catalog_change_in_a_segment_that_was_sealed_meanwhile_counts() {
    let mut store = Store::new(small());
    store.put(b"key", b"value");
    store.engine().persist(Ack::Host).unwrap();
    let engine = Arc::clone(store.engine());
    seal_behind_the_manifest(&engine, || {
        engine.clear(&engine.namespace("").unwrap(), Some(Ack::Process)).unwrap();
        engine.set_resume_token("stream", b"1", Some(Ack::Process)).unwrap();
    });
    drop(engine);
    store.kill();
    let space = store.engine().namespace("").unwrap();
    assert!(store.engine().get(space.key(b"key"), true).unwrap().is_none(), "it was cleared");
    assert_eq!(store.engine().namespaces().resume_token("stream").as_deref(), Some(&b"1"[..]));
}

/// Operations from one stop to the next: `EVERWARM_STOP_STEP`, 4 without it. The gate takes 1.
fn stop_step() -> u64 {
    std::env::var("EVERWARM_STOP_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(4).max(1)
}

/// The steps, with time that passes between them.
fn with_time(steps: &[Step]) -> Vec<Step> {
    let passes = |(n, step): (u64, &Step)| if n % 5 == 4 { vec![Step::Pass(7), step.clone()] } else { vec![step.clone()] };
    (0..).zip(steps).flat_map(passes).collect()
}

/// Stops `steps` at every [`stop_step`]-th operation. Returns how many distinct images were
/// recovered, and statistics of each process of the whole run.
fn explore(options: &Options, steps: &[Step]) -> (usize, Vec<Stats>) {
    let steps = &with_time(steps);
    let mut whole = machine(options, u64::MAX);
    run_all(&mut whole, steps).unwrap();
    let keeps_all = whole.ended.iter().all(|stats| stats.evicted == 0);
    let mut images = HashSet::new();
    let mut stop = 1;
    loop {
        let mut machine = machine(options, stop);
        let stopped = run_all(&mut machine, steps).is_err();
        let Machine { store: Store { options, disk, .. }, mut history, .. } = machine;
        if keeps_all {
            history.evictions = Evictions::Never;
        }
        let killed = disk.after_kill();
        if images.insert(killed.image_hash()) {
            recover_and_check(&options, (images.len(), &killed), &history, history.returned, false, &format!("stop {stop}, kill"));
        }
        history.power_failed();
        for (seed, damage) in [(0, PowerCut::LoseAll), (0, PowerCut::KeepAll), (1, PowerCut::Random), (2, PowerCut::Random)] {
            let cut = disk.after_loss(seed, damage);
            if images.insert(cut.image_hash()) {
                let what = format!("stop {stop}, power cut {damage:?} {seed}");
                recover_and_check(&options, (images.len(), &cut), &history, history.durable, true, &what);
            }
        }
        if !stopped {
            break;
        }
        stop += stop_step();
    }
    println!("{} stops, {} distinct images", stop / stop_step(), images.len());
    assert!(stop > 50, "the scenario is long enough to mean something");
    (images.len(), whole.ended)
}

/// Puts and deletes drawn from `seed`.
pub(super) fn mixed(seed: u64, count: u64, len_max: u64, host_every: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..count {
        let r = xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed);
        let key = (r >> 8) as u8 % KEYS.count as u8;
        let ack = if host_every > 0 && r.is_multiple_of(host_every) { Ack::Host } else { Ack::Process };
        steps.push(match (r >> 32) % 16 {
            0 | 1 => Step::Delete(key, ack),
            2 => Step::Work,
            3 if r & 3 == 0 => Step::Checkpoint,
            5 if r & 7 == 0 => Step::Clear(ack),
            6 if r & 1 == 0 => Step::Token(ack),
            11 if r & 3 == 0 => Step::PutAside(ack),
            11 if r & 7 == 1 => Step::RemoveAside(ack),
            7 => Step::Prepare,
            8 if r & 1 == 0 => Step::Flush,
            4 if r & 3 == 0 => Step::Persist,
            9 | 10 => Step::Get(key % 6),
            _ => Step::put(key, ((r >> 16) % len_max) as usize, ack),
        });
    }
    steps
}

/// Some entries are put once and stay while others are overwritten again and again, so that the
/// former move each time that their segment drains.
pub(super) fn with_moves(seed: u64, count: u64) -> Vec<Step> {
    let mut steps: Vec<Step> = (0..6).map(|key| Step::put(key, 4_000, Ack::Process)).collect();
    for n in 0..count {
        let r = xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed);
        let ack = if r.is_multiple_of(40) { Ack::Host } else { Ack::Process };
        steps.push(Step::put(6 + (r >> 8) as u8 % 6, 9_000 + (r >> 16) as usize % 9_000, ack));
        match (r >> 40) % 32 {
            0 => steps.push(Step::Work),
            1 => steps.push(Step::Persist),
            2 | 3 => steps.push(Step::Delete((r >> 48) as u8 % 6, ack)),
            4 | 5 => steps.push(Step::put((r >> 48) as u8 % 6, 4_000, ack)),
            6..12 => steps.push(Step::Flush),
            // Segments drain and are used again before anything is synced.
            12..28 => steps.extend([Step::Prepare, Step::Prepare]),
            _ => {}
        }
    }
    steps
}

/// Entries that expire while time passes, also while the store is closed.
fn with_expiry(seed: u64, count: u64, len_max: u64) -> Vec<Step> {
    let drawn = |(n, step): (u64, Step)| {
        let r = xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed);
        match step {
            Step::Put { key, len, ack: ack @ Ack::Process, .. } if r.is_multiple_of(2) => {
                vec![Step::Put { key, len, ack, ttl_ms: Some(1 + (r >> 8) % 400) }]
            }
            step if r.is_multiple_of(3) => vec![Step::Pass((r >> 8) % 60), step],
            step => vec![step],
        }
    };
    (0..).zip(mixed(seed, count, len_max, 8)).flat_map(drawn).collect()
}

/// A store that is opened again and again, with more or less flash.
fn with_openings(seed: u64, count: u64, len_max: u64) -> Vec<Step> {
    let sizes = [(1 << 20, 64 << 10), (512 << 10, 64 << 10), (1 << 20, 128 << 10), (768 << 10, 64 << 10)];
    let drawn = |(n, step): (u64, Step)| {
        let r = xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed);
        let (flash, segment_size) = sizes[(r >> 8) as usize % sizes.len()];
        let reopen = Step::Reopen { close: r & 1 << 16 == 0, flash, segment_size };
        if n % 25 == 24 { vec![step, reopen] } else { vec![step] }
    };
    (0..).zip(mixed(seed, count, len_max, 8)).flat_map(drawn).collect()
}

#[test]
fn moves_that_a_power_cut_takes_back_among_puts_leave_room_for_the_footer() {
    let store = Store::new(small().wal_values(WalValues::Never));
    let engine = store.engine();
    for key in 0..70u64 {
        store.put(&key.to_le_bytes(), &value(key, 0, 800));
    }
    engine.step_all().unwrap();
    engine.persist(Ack::Host).unwrap();
    // Nothing of the moves is synced.
    let mut keys = 1_000u64..;
    let options = PutOptions::new().wait(Wait::No);
    move_entries(engine, || {
        let n = keys.next().unwrap();
        engine.put((&n.to_le_bytes()).into(), &value(n, 0, 60), &options).unwrap();
    });
    let mut replayed = 0;
    for seed in 0..300 {
        let back = reopen(&store.options, &store.disk.after_power_cut(seed, PowerCut::Random)).unwrap();
        assert!(back.recovery().damaged.is_empty(), "seed {seed}: {:?}", back.recovery());
        replayed += u64::from(back.recovery().wal_frames > 90);
        for key in 0..70u64 {
            let found = back.get((&key.to_le_bytes()).into(), false).unwrap();
            assert_eq!(found.as_deref(), Some(&value(key, 0, 800)[..]), "seed {seed}: key {key}");
        }
    }
    assert!(replayed > 10, "the frames were there in {replayed} images");
}

#[test]
fn a_log_ends_at_a_frame_whose_record_no_power_cut_left() {
    let store = Store::new(small().wal_values(WalValues::Never));
    let engine = store.engine();
    store.put(b"changed", b"old");
    store.put(b"deleted", b"old");
    engine.persist(Ack::Host).unwrap();
    let durable = engine.stats().durable;
    store.put(b"changed", b"new");
    engine.delete(b"deleted".as_slice().into(), &DeleteOptions::new()).unwrap();
    // The WAL holds this change itself.
    engine.set_resume_token("stream", b"7", Some(Ack::Process)).unwrap();
    // The kernel has written the ring of the WAL back by itself, and not the ring of the records.
    let image = store.disk.after_power_cut(0, PowerCut::KeepAll);
    let (ring, len) = image.files().into_iter().find(|(name, _)| name.starts_with("ring.segments.")).unwrap();
    image.overwrite(&ring, 0, &vec![0; len as usize]);
    for stop in (1..30).chain([u64::MAX]) {
        let interrupted = image.after_kill();
        interrupted.stop_at(stop);
        drop(reopen(&store.options, &interrupted));
        let again = reopen(&store.options, &interrupted.after_kill()).unwrap();
        let report = again.recovery();
        assert!(report.damaged.is_empty(), "stop {stop}: {report:?}");
        for key in ["changed", "deleted"] {
            let found = again.get(key.as_bytes().into(), true).unwrap();
            assert_eq!(found.as_deref(), Some(&b"old"[..]), "stop {stop}: {key} is durable, and what came later is lost");
        }
        assert_eq!(again.namespaces().resume_token("stream"), None, "stop {stop}: nothing behind a lost mutation counts");
        if stop == 1 {
            assert_eq!((report.maybe_lost_after, report.torn_bytes), (Some(durable), 40));
        }
    }
}

#[test]
fn stops_while_small_entries_are_put_and_deleted() {
    explore(&small(), &mixed(1, 120, 300, 6));
}

#[test]
fn stops_while_segments_fill_and_are_reused() {
    explore(&small().flash(512 << 10), &mixed(2, 260, 12_000, 9));
}

#[test]
fn stops_with_values_in_the_wal() {
    explore(&small().wal_values(WalValues::Always), &mixed(3, 120, 3_000, 5));
    explore(&small().wal_values(WalValues::Never), &mixed(4, 60, 3_000, 3));
}

#[test]
fn stops_while_what_stays_is_moved() {
    let (_, stats) = explore(&small().flash(768 << 10), &with_moves(1, 110));
    assert!(stats[0].reinserted > 10 && stats[0].evicted == 0, "{stats:?}");
}

#[test]
fn stops_while_the_write_buffer_is_full_and_a_record_is_written_in_part() {
    explore(&small().flash(768 << 10).wal_values(WalValues::Never), &with_moves(147, 90));
}

#[test]
fn stops_while_entries_expire() {
    let (_, stats) = explore(&small().flash(512 << 10), &with_expiry(1, 150, 9_000));
    assert!(stats[0].expired > 0, "{stats:?}");
}

#[test]
fn stops_of_stores_that_are_opened_with_another_size() {
    let (_, stats) = explore(&small(), &with_openings(1, 120, 3_000));
    assert!(stats.len() > 3, "{stats:?}");
}

/// Scenarios drawn from seeds: two, or as many as `EVERWARM_CRASH_SEEDS` says, from
/// `EVERWARM_CRASH_FIRST` on.
#[test]
fn stops_of_drawn_scenarios() {
    let seeds = seeds("CRASH", 100, 2);
    let count = seeds.end - seeds.start;
    let explored = each_seed(seeds, "CRASH", "stops_of_drawn_scenarios", |seed| {
        let wal_values = [WalValues::Never, WalValues::Host, WalValues::Always][seed as usize % 3];
        let flash = [512 << 10, 768 << 10, 1 << 20][seed as usize / 3 % 3];
        let len_max = [300, 3_000, 9_000][seed as usize / 9 % 3];
        let steps = match seed % 7 {
            0 => with_moves(seed, 90),
            1 => with_expiry(seed, 150, len_max),
            2 => with_openings(seed, 120, len_max),
            host_every => mixed(seed, 150, len_max, host_every),
        };
        explore(&small().flash(flash).wal_values(wal_values), &steps)
    });
    let sum = |of: fn(&Stats) -> u64| explored.iter().flat_map(|(_, processes)| processes).map(of).sum::<u64>();
    let images: usize = explored.iter().map(|(images, _)| images).sum();
    let reached = [
        ("puts", sum(|s| s.puts)),
        ("deletes", sum(|s| s.deletes)),
        ("checkpoints", sum(|s| s.checkpoints)),
        ("segments reclaimed", sum(|s| s.segments_reclaimed)),
        ("entries reinserted", sum(|s| s.reinserted)),
        ("expired", sum(|s| s.expired)),
        ("syncs", sum(|s| s.syncs)),
        ("openings of what was there", explored.iter().map(|(_, processes)| processes.len() as u64 - 1).sum()),
    ];
    println!("{count} scenarios: {images} distinct images; reached {reached:?}");
    assert!(count < 18 || reached.iter().all(|(_, times)| *times > 0), "{reached:?}");
}

/// Images of kills between two of the words that a mutation stores: first the words of its record,
/// in order, then the words of its frame.
fn stored_in_part(before: &SimDisk, after: &SimDisk) -> Vec<SimDisk> {
    let mut words = Vec::new();
    for ring in ["ring.segments.", "ring.wal."] {
        let (name, _) = after.files().into_iter().find(|(name, _)| name.starts_with(ring)).unwrap();
        let (old, new) = (before.content(&name), after.content(&name));
        let changed = |(_, (old, new)): &(u64, (&[u8], &[u8]))| old != new;
        let pairs = (0..).step_by(8).zip(old.chunks(8).zip(new.chunks(8)));
        words.push(pairs.filter(changed).map(|(at, (_, new))| (name.clone(), at, new.to_vec())).collect::<Vec<_>>());
    }
    let (record, all) = (words[0].len(), words.concat());
    let cuts = [1, record / 2, record.saturating_sub(1), record, record + 1, (record + all.len()) / 2, all.len().saturating_sub(1)];
    let up_to = |cut: usize| {
        let image = before.after_kill();
        all[..cut.min(all.len())].iter().for_each(|(name, at, word)| image.overwrite(name, *at, word));
        image
    };
    cuts.into_iter().map(up_to).collect()
}

#[test]
fn kills_between_the_stores_of_a_mutation() {
    let mut images = 0;
    for (seed, wal_values) in [(21, WalValues::Never), (22, WalValues::Host), (23, WalValues::Always)] {
        let (options, disk, mut history) = (small().wal_values(wal_values), SimDisk::new(seed), history());
        let engine = reopen(&options, &disk).unwrap();
        for step in mixed(seed, 160, 900, 4) {
            let (before, operations, floor) = (disk.after_kill(), disk.operations(), history.returned);
            history.apply(&engine, &step, &disk).unwrap();
            if history.returned == floor || disk.operations() > operations {
                // Nothing was stored, or the rings were written out meanwhile.
                continue;
            }
            let in_doubt = history.with_last_in_doubt();
            for (number, image) in stored_in_part(&before, &disk.after_kill()).into_iter().enumerate() {
                let what = format!("{wal_values:?}, mutation {floor}, cut {number}");
                let engine = reopen(&options, &image).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(engine.recovery().damaged.is_empty(), "{what}: {:?}", engine.recovery());
                in_doubt.check(&engine, floor, &what);
                drop(engine);
                go_on_and_lose_power(&options, &image, 1, &what);
                images += 1;
            }
        }
    }
    assert!(images > 1_000, "{images}");
}

#[test]
fn stops_between_many_checkpoints() {
    let with_checkpoints =
        |step| if matches!(step, Step::Put { .. } | Step::Delete(..)) { vec![step, Step::Checkpoint] } else { vec![step] };
    let steps: Vec<_> = mixed(7, 50, 300, 12).into_iter().flat_map(with_checkpoints).collect();
    explore(&small().wal_values(WalValues::Always), &steps);
}

#[test]
fn stops_while_everything_is_acknowledged_at_host() {
    explore(&small().ack(Ack::Host), &mixed(5, 60, 6_000, 1));
}

/// Runs `steps` on a disk that fails now and then, and stops at `stop` or closes in order.
/// Everything that it acknowledged must be there afterwards.
fn run_with_faults(options: &Options, steps: &[Step], seed: u64, stop: u64) -> u64 {
    let disk = SimDisk::new(seed);
    let mut history = history();
    let engine = open_inline(options, &disk, Arc::new(SimClock::new(2))).unwrap();
    let drawn = |n: u64| xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed);
    for n in 0..1 + drawn(0) % 4 {
        let op = [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages, FaultOp::Read, FaultOp::Write][drawn(n + 1) as usize % 5];
        disk.fail(op, 1 + drawn(n + 9) % 60, std::io::ErrorKind::Other, false);
    }
    disk.stop_at(disk.operations() + stop);
    let all = steps.iter().all(|step| history.apply(&engine, step, &disk).is_ok());
    if drawn(30).is_multiple_of(2) {
        let op = [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages][drawn(31) as usize % 3];
        disk.fail(op, 1 + drawn(32) % 4, std::io::ErrorKind::Other, false);
    }
    let finished = close(&engine).is_ok();
    let is_durable = || engine.stats().durable == engine.appended();
    assert!(finished || engine.persist(Ack::Host).is_err() || is_durable(), "a caller that waits gets the error");
    let closed = finished && !disk.has_stopped();
    let faults = disk.faults_injected();
    // Nothing may miss for a fault that the engine did not notice.
    if faults > 0 && (!finished || !all || has_noticed(&engine, 0)) {
        history.excuse_all();
    }
    let what = format!("seed {seed}, stop {stop}, all {all}, closed {closed}, faults {faults}");
    let floor = if closed { history.returned } else { history.durable };
    drop(engine);

    for (image, floor) in [
        (disk.after_kill(), history.returned),
        (disk.after_loss(seed, PowerCut::LoseAll), floor),
        (disk.after_loss(seed, PowerCut::Random), floor),
    ] {
        let engine = reopen(options, &image).unwrap_or_else(|e| panic!("{what}: {e}"));
        history.check(&engine, floor, &what);
        drop(engine);
        let again = reopen(options, &image.after_kill()).unwrap_or_else(|e| panic!("{what}, again: {e}"));
        history.check(&again, floor, &format!("{what}, again"));
    }
    faults
}

/// Faults and stops together, drawn from seeds: 100, or as many as `EVERWARM_FAULT_SEEDS` says,
/// from `EVERWARM_FAULT_FIRST` on.
#[test]
fn what_was_acknowledged_outlives_faults_stops_and_closes() {
    let faults = each_seed(seeds("FAULT", 1, 100), "FAULT", "what_was_acknowledged_outlives", |seed| {
        let wal_values = [WalValues::Never, WalValues::Host, WalValues::Always][seed as usize % 3];
        let flash = [512 << 10, 1 << 20][seed as usize / 3 % 2];
        let steps = mixed(seed, 200, [300, 3_000, 9_000][seed as usize / 6 % 3], 3 + seed % 7);
        let stop = [u64::MAX / 2, 20 + seed % 150][seed as usize / 18 % 2];
        run_with_faults(&small().flash(flash).wal_values(wal_values), &steps, seed, stop)
    });
    let injected: u64 = faults.iter().sum();
    println!("{} seeds: {injected} faults", faults.len());
    assert!(injected > 0);
}
