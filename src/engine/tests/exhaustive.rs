//! Each operation of a scenario fails in turn, once, and from then on. Nothing that was
//! acknowledged is undone, and no answer is wrong. Each scenario but one begins with a store that
//! was killed in the middle of it.

use std::io::ErrorKind;

use rustix::io::Errno;

use super::crash::{history, mixed, reopen, with_moves};
use super::internals::{failure, write_manifest};
use super::model::{History, Step, has_lost, has_noticed};
use super::renewed::reused;
use super::seeds::{each_seed, seeds};
use super::store::{close, small};
use crate::config::{Ack, Options, WalValues};
use crate::engine::PutOptions;
use crate::io::sim::{Failure, FaultOp, PowerCut, SimDisk};

const OTHER: Failure = Failure::Kind(ErrorKind::Other);
const STORAGE_FULL: Failure = Failure::Kind(ErrorKind::StorageFull);

const FAULTS: [(FaultOp, Failure); 15] = [
    (FaultOp::Open, OTHER),
    (FaultOp::Open, Failure::Errno(Errno::MFILE)),
    (FaultOp::Read, OTHER),
    (FaultOp::Write, OTHER),
    (FaultOp::Write, STORAGE_FULL),
    (FaultOp::WriteLost, OTHER),
    (FaultOp::WriteMisdirected, OTHER),
    (FaultOp::Sync, OTHER),
    (FaultOp::SyncDroppingPages, STORAGE_FULL),
    (FaultOp::SyncDroppingPages, OTHER),
    (FaultOp::Create, OTHER),
    (FaultOp::Create, STORAGE_FULL),
    (FaultOp::Remove, OTHER),
    (FaultOp::Rename, OTHER),
    (FaultOp::SyncDir, OTHER),
];

/// The scenario whose store is opened with less flash, and more memory, after the kill: segments
/// and rings are removed.
const SHRINKS: &str = "a store that becomes smaller";

/// The scenario that begins with an empty directory.
const CREATES: &str = "a new store";
const MOVES: &str = "what stays is moved";
/// The scenario whose kill comes after a segment failed and before its entries are elsewhere.
const RENEWS: &str = "a segment that failed";

/// Whether the engine gets no error from such a fault.
fn is_silent(op: FaultOp) -> bool {
    matches!(op, FaultOp::WriteLost | FaultOp::WriteMisdirected)
}

/// The scenarios: a name, the options until the kill in its middle, and the steps.
fn scenarios() -> Vec<(&'static str, Options, Vec<Step>)> {
    let full = || small().flash(512 << 10);
    vec![
        ("small entries", small(), mixed(11, 90, 300, 6)),
        ("large entries that are reclaimed", full(), mixed(12, 120, 12_000, 9)),
        ("values in the WAL", small().wal_values(WalValues::Always), mixed(13, 90, 3_000, 5)),
        ("everything at host", small().ack(Ack::Host).wal_values(WalValues::Never), mixed(14, 60, 3_000, 1)),
        (SHRINKS, small().wal_values(WalValues::Always), mixed(15, 150, 6_000, 20)),
        (CREATES, small(), mixed(18, 40, 900, 5)),
        (MOVES, small().flash(768 << 10), with_moves(17, 70)),
        (RENEWS, small().wal_values(WalValues::Never), mixed(19, 80, 2_000, 30)),
        ("checkpoints", small(), mixed(16, 60, 900, 4).into_iter().flat_map(|step| [step, Step::Checkpoint]).collect()),
    ]
}

/// Totals of the runs of one kind of operation.
#[derive(Default)]
struct Found {
    runs: u64,
    injected: u64,
    /// Openings that were refused.
    refused: u64,
}

/// A scenario up to the kill in its middle.
struct Begun {
    name: &'static str,
    options: Options,
    rest: Vec<Step>,
    /// The run closes the store, or tries to.
    closes: bool,
    history: History,
    image: SimDisk,
}

impl Begun {
    fn new((name, options, mut steps): (&'static str, Options, Vec<Step>)) -> Self {
        let disk = SimDisk::new(1);
        let mut history = history();
        if name == CREATES {
            return Self { name, options, rest: steps, closes: true, history, image: disk };
        }
        let rest = steps.split_off(steps.len() / 2);
        let engine = reopen(&options, &disk).unwrap();
        steps.iter().for_each(|step| history.apply(&engine, step, &disk).unwrap());
        if name == RENEWS {
            disk.fail(FaultOp::Sync, 1, OTHER, false);
            assert!(!engine.step_sync().unwrap(), "the segment that is open cannot be synced");
            write_manifest(&engine);
        }
        drop(engine);
        let options = if name == SHRINKS { options.flash(512 << 10).memory(2 << 20) } else { options };
        let closes = name == MOVES;
        Self { name, options, rest, closes, history, image: disk.after_kill() }
    }
}

/// Lets the `nth` operation of this kind fail, counted from the opening on. False if there are
/// fewer.
fn fail_one(begun: &Begun, (op, kind): (FaultOp, Failure), nth: u64, repeat: bool, found: &mut Found) -> bool {
    let Begun { name, options, rest, closes, history, image } = begun;
    let what = format!("{name}: {op:?} {nth} fails{} ({kind:?})", if repeat { " from then on" } else { "" });
    let (disk, mut history) = (image.after_kill(), history.clone());
    // In that scenario one segment gets a new file in any case.
    let replaced = u64::from(*name == RENEWS);
    disk.fail(op, nth, kind, repeat);
    let opened = reopen(options, &disk);
    let mut is_noticed = opened.is_err();
    let mut lost = is_noticed;
    let mut closed = false;
    if let Ok(engine) = &opened {
        is_noticed |=
            !(0u8..).zip(rest).all(|(n, step)| engine.get((&[n % 24]).into(), true).is_ok() && history.apply(engine, step, &disk).is_ok());
        if *closes {
            closed = close(engine).is_ok();
            is_noticed |= !closed;
        }
        lost |= is_noticed || has_lost(engine);
        is_noticed = lost || has_noticed(engine, replaced);
    }
    let injected = disk.faults_injected();
    if injected == 0 {
        return false;
    }
    found.runs += 1;
    found.injected += injected;
    found.refused += u64::from(opened.is_err());
    disk.heal();
    assert!(reused(&disk).is_empty(), "{what}: {:?} had failed, and were written again", reused(&disk));
    // Nothing may miss for a shortage, nor for a fault that the engine did not notice, unless it
    // got no error.
    let strict = history.clone();
    if is_silent(op) || (lost && (kind == OTHER || !matches!(op, FaultOp::Open | FaultOp::Create))) {
        history.excuse_all();
    }
    match opened {
        Ok(engine) if !closes => {
            // A store that refuses mutations still serves reads.
            history.check(&engine, history.returned, &format!("{what}, at once"));
            if failure(&engine).is_none() && engine.persist(Ack::Host).is_ok() {
                history.synced();
            }
        }
        Ok(_) if closed => history.synced(),
        _ => {}
    }
    // Important reads are tried twice, and names that could not be removed or synced are tried
    // again later.
    let may_pass = is_silent(op) || matches!(op, FaultOp::Open | FaultOp::Remove | FaultOp::SyncDir) || (op == FaultOp::Read && !repeat);
    assert!(is_noticed || may_pass, "{what}: the engine did not notice");
    // If the write of the last synced batch was lost, nothing on the medium may tell of that batch.
    let durable = if is_silent(op) { history.witnessed } else { history.durable };
    let mut images = vec![
        (disk.after_kill(), history.returned),
        (disk.after_loss(nth, PowerCut::LoseAll), durable),
        (disk.after_loss(nth, PowerCut::Random), durable),
    ];
    // Power cuts off the next opening: at one of its first 16 operations, or at each second one, in
    // turns, if the opening may rely on bytes that a failed sync left behind.
    let step = if matches!(op, FaultOp::Sync | FaultOp::SyncDroppingPages) { 2 } else { 16 };
    for stop in (1 + nth % step..17).step_by(step as usize) {
        let interrupted = disk.after_kill();
        interrupted.stop_at(stop);
        drop(reopen(options, &interrupted));
        images.push((interrupted.after_loss(nth, PowerCut::LoseAll), durable));
        images.push((interrupted.after_loss(nth, PowerCut::Random), durable));
    }
    for (number, (image, floor)) in images.into_iter().enumerate() {
        let engine = reopen(options, &image).unwrap_or_else(|e| panic!("{what}, then: {e}"));
        history.check(&engine, floor, &format!("{what}, then"));
        if number == 0 && is_silent(op) && !is_noticed && !has_noticed(&engine, replaced) {
            // Then nothing misses after a kill.
            strict.check(&engine, floor, &format!("{what}, then, and the engine did not notice"));
        }
        assert!(engine.put(b"another".into(), b"value", &PutOptions::new().ack(Ack::Host)).is_ok(), "{what}: service returns");
        let fails = matches!(op, FaultOp::Write | FaultOp::Sync | FaultOp::SyncDroppingPages);
        assert!(fails || reused(&image).is_empty(), "{what}, then: {:?} had failed before, and were written again", reused(&image));
    }
    true
}

#[test]
fn every_operation_fails_once_and_from_then_on() {
    let scenarios: Vec<Begun> = scenarios().into_iter().map(Begun::new).collect();
    let kinds = 2 * FAULTS.len();
    // A plain run has the first scenario. `EVERWARM_EXHAUSTIVE_SEEDS=270` runs all of them.
    let tasks = seeds("EXHAUSTIVE", 0, kinds as u64);
    let tasks = tasks.start..tasks.end.min((scenarios.len() * kinds) as u64);
    let plain = tasks == (0..kinds as u64);
    let all = tasks == (0..(scenarios.len() * kinds) as u64);
    let found = each_seed(tasks, "EXHAUSTIVE", "every_operation_fails", |task| {
        let (scenario, kind) = (task as usize / kinds, task as usize % kinds);
        let (fault, repeat) = (FAULTS[kind / 2], kind % 2 == 1);
        let mut found = Found::default();
        // A disk that stays full holds writers back for ever, and `failing.rs` has that. A disk
        // that loses every write is the disk as it was.
        let is_hopeless = repeat && (fault.1 != OTHER || is_silent(fault.0));
        for nth in 1.. {
            if is_hopeless || !fail_one(&scenarios[scenario], fault, nth, repeat, &mut found) {
                break;
            }
        }
        (fault.0, found)
    });
    let sum = |of: fn(&Found) -> u64| found.iter().map(|(_, found)| of(found)).sum::<u64>();
    println!("{} runs, {} faults, {} openings refused", sum(|f| f.runs), sum(|f| f.injected), sum(|f| f.refused));
    for (op, _) in FAULTS.into_iter().filter(|_| plain || all) {
        // In a plain run nothing is removed or renamed: the store keeps its size, and no segment
        // gets a new file.
        let runs: u64 = found.iter().filter(|(kind, _)| *kind == op).map(|(_, found)| found.runs).sum();
        assert!(runs > 0 || (matches!(op, FaultOp::Remove | FaultOp::Rename) && !all), "{op:?} never happened");
    }
}
