//! Every operation of a scenario fails in turn, once, and from then on: nothing that was acknowledged is undone, and nothing lies. Each scenario begins with a store that was
//! killed in the middle of it.

use super::crash::{History, Step, mixed, reopen};
use super::*;
use crate::io::sim::FaultOp;

const OPS: [FaultOp; 8] = [
    FaultOp::Open,
    FaultOp::Read,
    FaultOp::Write,
    FaultOp::Sync,
    FaultOp::SyncDroppingPages,
    FaultOp::Create,
    FaultOp::Remove,
    FaultOp::SyncDir,
];

/// The scenarios, each with what it is for.
fn scenarios() -> Vec<(&'static str, Options, Vec<Step>)> {
    let full = || small().flash(512 << 10);
    vec![
        ("small entries", small(), mixed(11, 90, 300, 6)),
        ("large entries that are reclaimed", full(), mixed(12, 120, 12_000, 9)),
        ("values in the WAL", small().wal_values(WalValues::Always), mixed(13, 90, 3_000, 5)),
        ("everything at host", small().ack(Ack::Host).wal_values(WalValues::Never), mixed(14, 60, 3_000, 1)),
        ("small entries that are reclaimed", full().wal_values(WalValues::Always), mixed(15, 150, 6_000, 20)),
        ("checkpoints", small(), mixed(16, 60, 900, 4).into_iter().flat_map(|step| [step, Step::Checkpoint]).collect()),
    ]
}

/// What the runs of one kind of operation found.
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
    history: History,
    image: SimDisk,
}

impl Begun {
    fn new((name, options, mut steps): (&'static str, Options, Vec<Step>)) -> Self {
        let disk = SimDisk::new(1);
        let mut history = History::default();
        let rest = steps.split_off(steps.len() / 2);
        let engine = reopen(&options, &disk).unwrap();
        steps.iter().for_each(|step| history.apply(&engine, *step, &disk).unwrap());
        drop(engine);
        Self { name, options, rest, history, image: disk.after_kill() }
    }
}

/// Lets the `nth` operation of this kind fail, from the opening on. False if there are not so many.
fn fail_one(begun: &Begun, op: FaultOp, nth: u64, repeat: bool, found: &mut Found) -> bool {
    let Begun { name, options, rest, history, image } = begun;
    let what = format!("{name}: {op:?} {nth} fails{}", if repeat { " from then on" } else { "" });
    let (disk, mut history) = (image.after_kill(), history.clone());
    disk.fail(op, nth, std::io::ErrorKind::Other, repeat);
    let opened = reopen(options, &disk);
    let mut heard_of = opened.is_err();
    if let Ok(engine) = &opened {
        heard_of |=
            !(0u8..).zip(rest).all(|(n, step)| engine.get((&[n % 24]).into(), true).is_ok() && history.apply(engine, *step, &disk).is_ok());
        let stats = engine.stats();
        heard_of |= stats.write_errors + stats.read_errors + stats.disk_full + stats.damaged > 0;
        heard_of |= engine.failure.get().is_some() || !engine.report.damaged.is_empty() || engine.report.manifest_repaired;
    }
    let injected = disk.faults_injected();
    if injected == 0 {
        return false;
    }
    found.runs += 1;
    found.injected += injected;
    found.refused += u64::from(opened.is_err());
    disk.heal();
    history.may_miss = true;
    if let Ok(engine) = opened {
        // Reads go on also in a store that takes no more mutations.
        history.check(&engine, history.returned, &format!("{what}, at once"));
        if engine.failure.get().is_none() && engine.persist(Ack::Host).is_ok() {
            history.durable = history.returned;
        }
    }
    // A read is tried twice where much hangs on it, and names that could not be removed or synced are seen to later.
    let may_pass = matches!(op, FaultOp::Read | FaultOp::Open | FaultOp::Remove | FaultOp::SyncDir);
    assert!(heard_of || may_pass, "{what}: nobody heard of it");
    for (image, floor) in [
        (disk.after_kill(), history.returned),
        (disk.after_power_cut(nth, PowerCut::LoseAll), history.durable),
        (disk.after_power_cut(nth, PowerCut::Random), history.durable),
    ] {
        let engine = reopen(options, &image).unwrap_or_else(|e| panic!("{what}, then: {e}"));
        history.check(&engine, floor, &format!("{what}, then"));
        assert!(engine.put(b"another".into(), b"value", &PutOptions::new().ack(Ack::Host)).is_ok(), "{what}: service returns");
    }
    true
}

#[test]
fn every_operation_fails_once_and_from_then_on() {
    let scenarios: Vec<Begun> = scenarios().into_iter().map(Begun::new).collect();
    let kinds = 2 * OPS.len();
    // In a plain run the first scenario; all of them if `EVERWARM_EXHAUSTIVE_SEEDS` says so.
    let tasks = seeds("EXHAUSTIVE", 0, kinds as u64);
    let tasks = tasks.start..tasks.end.min((scenarios.len() * kinds) as u64);
    let found = each_seed(tasks, "EXHAUSTIVE", "every_operation_fails", |task| {
        let (scenario, kind) = (task as usize / kinds, task as usize % kinds);
        let (op, repeat) = (OPS[kind / 2], kind % 2 == 1);
        let mut found = Found::default();
        for nth in 1.. {
            if !fail_one(&scenarios[scenario], op, nth, repeat, &mut found) {
                break;
            }
        }
        (op, found)
    });
    let sum = |of: fn(&Found) -> u64| found.iter().map(|(_, found)| of(found)).sum::<u64>();
    println!("{} runs, {} faults, {} openings refused", sum(|f| f.runs), sum(|f| f.injected), sum(|f| f.refused));
    for op in OPS {
        // Nothing is removed in a store that keeps its size.
        let runs: u64 = found.iter().filter(|(kind, _)| *kind == op).map(|(_, found)| found.runs).sum();
        assert!(runs > 0 || op == FaultOp::Remove, "{op:?} never happened");
    }
}
