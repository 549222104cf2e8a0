//! Every place where a machine can stop in a scenario, several damages each; then recovery, the oracle, and stops inside recovery.

use std::collections::HashSet;

use super::*;
use crate::engine::Stats;
use crate::error::Error;
use crate::id::Location;
use crate::index::geometry::IndexEntry;
use crate::io::sim::FaultOp;
use crate::segment::reader;
use crate::segment::table::Stage;

/// One step of a scenario.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Put(u8, usize, Ack),
    /// Expires after so many milliseconds.
    PutFor(u8, usize, u64),
    Delete(u8, Ack),
    Clear(Ack),
    Token(Ack),
    /// What makes an entry hot, so that it is moved rather than evicted.
    Get(u8),
    Checkpoint,
    Sync,
    /// One kind of background work, before others that would have come first.
    Flush,
    Prepare,
    Work,
    /// Milliseconds pass.
    Pass(u64),
    /// The process ends, in order if `close` says so, and the next one opens the store with flash of another size.
    Reopen {
        close: bool,
        flash: u64,
        segment_size: u64,
    },
}

/// What happened, in order. Its number is its version.
#[derive(Clone, Copy, Debug)]
enum Mutation {
    Put { key: u8, expires_ms: Option<u64> },
    Delete(u8),
    Clear,
    Token,
}

impl Mutation {
    /// What it does to a key, if anything: sets it (true) or removes it.
    fn of_key(self, key: u8) -> Option<bool> {
        match self {
            Self::Put { key: k, .. } if k == key => Some(true),
            Self::Delete(k) if k == key => Some(false),
            Self::Clear => Some(false),
            _ => None,
        }
    }

    fn has_expired(self, now_ms: u64) -> bool {
        matches!(self, Self::Put { expires_ms: Some(at), .. } if at <= now_ms)
    }
}

/// What a run had done when its machine stopped.
#[derive(Clone, Default)]
pub(super) struct History {
    /// The disk failed now and then, so entries may miss.
    pub(super) may_miss: bool,
    /// The whole scenario evicts nothing, so no part of it may.
    keeps_all: bool,
    /// The latest time that the engine knew.
    now_ms: u64,
    /// In order; the last one may be in doubt.
    mutations: Vec<Mutation>,
    /// Of those that returned.
    lsns: Vec<Lsn>,
    /// Which of them were found to have expired.
    seen_expired: HashSet<usize>,
    /// How many of them returned.
    pub(super) returned: usize,
    /// How many of them a power cut must not take away.
    pub(super) durable: usize,
    /// How many of them had been synced when the last sync began: that they were is written down by now.
    pub(super) witnessed: usize,
}

impl History {
    /// An error if the machine stopped meanwhile: what a stopped machine answers, nobody hears.
    pub(super) fn apply(&mut self, engine: &Engine, step: Step, disk: &SimDisk) -> Result<(), Error> {
        let heard = || if disk.has_stopped() { Err(Error::Closed) } else { Ok(()) };
        let n = self.mutations.len() as u64;
        self.now_ms = engine.context.time.now_ms();
        match step {
            Step::Put(key, len, ..) | Step::PutFor(key, len, _) => {
                let ms = if let Step::PutFor(.., ms) = step { Some(ms) } else { None };
                let ack = if let Step::Put(.., ack) = step { ack } else { Ack::Process };
                self.mutations.push(Mutation::Put { key, expires_ms: ms.map(|ms| self.now_ms + ms) });
                let space = engine.namespace("")?;
                let options = ms.map_or_else(PutOptions::new, |ms| PutOptions::new().ttl(Duration::from_millis(ms))).ack(ack);
                let lsn = engine.put(space.key(&[key]), &value(key.into(), n, len), &options)?.unwrap();
                heard()?;
                self.mutation_returned(lsn, ack);
            }
            Step::Delete(key, ack) => {
                self.mutations.push(Mutation::Delete(key));
                let space = engine.namespace("")?;
                let lsn = engine.delete(space.key(&[key]), &DeleteOptions::new().ack(ack))?.unwrap();
                heard()?;
                self.mutation_returned(lsn, ack);
            }
            Step::Clear(ack) => {
                self.mutations.push(Mutation::Clear);
                let space = engine.namespace("")?;
                let lsn = engine.clear(&space, Some(ack))?;
                heard()?;
                self.mutation_returned(lsn, ack);
            }
            Step::Token(ack) => {
                self.mutations.push(Mutation::Token);
                let lsn = engine.set_resume_token("stream", &n.to_le_bytes(), Some(ack))?;
                heard()?;
                self.mutation_returned(lsn, ack);
            }
            Step::Get(key) => {
                let space = engine.namespace("")?;
                let found = engine.get(space.key(&[key]), true)?;
                let newest = self.mutations.iter().rposition(|m| m.of_key(key).is_some());
                if found.is_none() && heard().is_ok() {
                    self.seen_expired.extend(newest.filter(|i| self.mutations[*i].has_expired(self.now_ms)));
                }
            }
            Step::Checkpoint => drop(engine.step_checkpoint(true)?),
            Step::Sync => {
                engine.persist(Ack::Host)?;
                heard()?;
                self.synced();
            }
            Step::Flush => drop(engine.step_flush()?),
            Step::Prepare => drop(engine.step_prepare()?),
            Step::Work => engine.step_all()?,
            Step::Pass(_) | Step::Reopen { .. } => unreachable!("the whole machine takes part in {step:?}"),
        }
        heard()
    }

    fn mutation_returned(&mut self, lsn: Lsn, ack: Ack) {
        self.lsns.push(lsn);
        self.returned = self.mutations.len();
        if ack == Ack::Host {
            self.synced();
        }
    }

    pub(super) fn synced(&mut self) {
        if self.durable < self.returned {
            (self.witnessed, self.durable) = (self.durable, self.returned);
        }
    }

    /// Checks that what `engine` serves is the outcome of some prefix of the history that is at least `floor` long. Nothing may miss that had to survive, unless it was evicted.
    pub(super) fn check(&self, engine: &Engine, floor: usize, what: &str) {
        let reclaimed = engine.stats().reclaimed;
        let may_be_evicted = |i: u64| !self.keeps_all && self.lsns[i as usize] <= reclaimed;
        let now_ms = engine.context.time.now_ms();
        let (mut low, mut high) = (floor, self.mutations.len());
        let tokens = || self.mutations.iter().enumerate().filter(|(_, m)| matches!(m, Mutation::Token)).map(|(i, _)| i);
        let token = engine.namespaces().resume_token("stream").map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()) as usize);
        // What could not be read may have held a newer one: then there is none.
        let forgotten = self.may_miss && token.is_none();
        assert!(forgotten || token >= tokens().take_while(|i| *i < floor).last(), "{what}: the token is {token:?}, floor {floor}");
        if !forgotten {
            low = low.max(token.map_or(0, |i| i + 1));
            high = high.min(tokens().find(|i| token.is_none_or(|token| *i > token)).unwrap_or(high));
        }
        assert!(low <= high, "{what}: the token {token:?} fits no prefix, floor {floor}");
        let space = engine.namespace("").unwrap();
        for key in 0..KEYS {
            let found = engine.get(space.key(&[key]), false).unwrap();
            let numbered = self.mutations.iter().enumerate();
            let of_key: Vec<(usize, Option<u64>)> = numbered.filter_map(|(i, m)| Some((i, m.of_key(key)?.then_some(i as u64)))).collect();
            let Some(found) = found else {
                let must = of_key.iter().rev().find(|(i, _)| *i < floor).and_then(|(_, version)| *version);
                let superseded_later = of_key.iter().any(|(i, _)| *i >= floor);
                let has_expired = must.is_some_and(|i| self.mutations[i as usize].has_expired(now_ms.max(self.now_ms)));
                assert!(
                    must.is_none() || superseded_later || has_expired || must.is_some_and(may_be_evicted) || self.may_miss,
                    "{what}: key {key} is lost: {of_key:?}, floor {floor}, {:?}",
                    engine.context.report
                );
                continue;
            };
            let text = String::from_utf8_lossy(&found);
            let version: u64 = text.split(':').nth(1).unwrap().parse().unwrap();
            let len = found.len() - format!("{key}:{version}:").len();
            assert_eq!(&found[..], value(key.into(), version, len), "{what}: key {key} is torn");
            let at = of_key.iter().position(|(_, v)| *v == Some(version));
            let at = at.unwrap_or_else(|| panic!("{what}: key {key} has version {version} of nobody"));
            assert!(!self.seen_expired.contains(&(version as usize)), "{what}: key {key} at version {version} had been found expired");
            assert!(!self.mutations[version as usize].has_expired(now_ms), "{what}: key {key} at version {version} has expired");
            low = low.max(of_key[at].0 + 1);
            high = high.min(of_key.get(at + 1).map_or(self.mutations.len(), |(next, _)| *next));
            assert!(low <= high, "{what}: key {key} at version {version} fits no prefix: {of_key:?}, floor {floor}");
        }
    }
}

const KEYS: u8 = 24;

/// A machine that runs a scenario.
struct Machine {
    options: Options,
    disk: SimDisk,
    clock: Arc<SimClock>,
    history: History,
    engine: Option<Arc<Engine>>,
    /// What the processes that have ended did.
    ended: Vec<Stats>,
}

impl Machine {
    /// One that stops at operation `stop`.
    fn new(options: &Options, stop: u64) -> Self {
        let disk = SimDisk::new(stop);
        disk.stop_at(stop);
        Self {
            options: options.clone(),
            disk,
            clock: Arc::new(SimClock::new(2)),
            history: History::default(),
            engine: None,
            ended: Vec::new(),
        }
    }

    /// Everything, and a close. An error if the machine stopped.
    fn run(&mut self, steps: &[Step]) -> Result<(), Error> {
        self.open()?;
        for step in steps {
            match *step {
                Step::Pass(ms) => self.clock.advance(Duration::from_millis(ms)),
                Step::Reopen { close, flash, segment_size } => {
                    self.end(close)?;
                    self.options = self.options.clone().flash(flash).segment_size(segment_size);
                    self.open()?;
                }
                _ => self.history.apply(self.engine.as_deref().expect("it is open"), *step, &self.disk)?,
            }
        }
        self.end(true)
    }

    fn open(&mut self) -> Result<(), Error> {
        self.engine = Some(open(&self.options, Some(Arc::new(self.disk.clone())), self.clock.clone(), INLINE)?);
        Ok(())
    }

    fn end(&mut self, close: bool) -> Result<(), Error> {
        let engine = self.engine.take().expect("it is open");
        if close {
            engine.begin_close();
            engine.finish()?;
        }
        self.ended.push(engine.stats());
        if self.disk.has_stopped() { Err(Error::Closed) } else { Ok(()) }
    }
}

pub(super) fn reopen(options: &Options, disk: &SimDisk) -> Result<Arc<Engine>, Error> {
    open(options, Some(Arc::new(disk.clone())), Arc::new(SimClock::new(3)), INLINE)
}

/// Recovers the `number`th image, then stops recovery at some operations, other ones for each image, and recovers again.
fn recover_and_check(options: &Options, (number, image): (usize, &SimDisk), history: &History, floor: usize, power: bool, what: &str) {
    // Each engine writes to its disk, so each look gets an image of its own.
    let first = image.after_kill();
    let engine = reopen(options, &first).unwrap_or_else(|e| panic!("{what}: {e}"));
    // Neither a kill nor a power cut damages anything.
    assert!(engine.context.report.damaged.is_empty(), "{what}: {:?}", engine.context.report);
    history.check(&engine, floor, what);
    drop(engine);
    let again = reopen(options, &first.after_kill()).unwrap_or_else(|e| panic!("{what}, again: {e}"));
    history.check(&again, floor, &format!("{what}, again"));
    drop(again);
    // What an opening found is durable.
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
        assert!(engine.context.report.damaged.is_empty(), "{what}, recovery stopped at {stop}: {:?}", engine.context.report);
        history.check(&engine, floor, &format!("{what}, recovery stopped at {stop}"));
        drop(engine);
        if power {
            let image = interrupted.after_power_cut(stop, PowerCut::Random);
            let engine = reopen(options, &image).unwrap_or_else(|e| panic!("{what}, recovery cut at {stop}: {e}"));
            history.check(&engine, floor, &format!("{what}, recovery cut at {stop}"));
        }
    }
}

/// Whoever comes after a killed process uses what that left, and then power fails: everything it relied on must have been made durable.
fn go_on_and_lose_power(options: &Options, image: &SimDisk, puts: u8, what: &str) {
    let disk = image.after_kill();
    let engine = reopen(options, &disk).unwrap();
    let mut history = History::default();
    let first = [Step::Clear(Ack::Process), Step::Token(Ack::Process)];
    let puts = (0..puts).map(|n| Step::Put(n, 5_000, Ack::Process));
    for step in first.into_iter().chain(puts).chain([Step::Work, Step::Delete(3, Ack::Process), Step::Sync]) {
        history.apply(&engine, step, &disk).unwrap();
    }
    for damage in [PowerCut::LoseAll, PowerCut::Random] {
        let what = format!("{what}, gone on, power cut {damage:?}");
        let engine = reopen(options, &disk.after_power_cut(1, damage)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(engine.context.report.damaged.is_empty(), "{what}: {:?}", engine.context.report);
        history.check(&engine, history.durable, &what);
    }
}

/// Stops `steps` everywhere. How many distinct images were recovered, and what each process of the whole run did.
fn explore(options: &Options, steps: &[Step]) -> (usize, Vec<Stats>) {
    let mut whole = Machine::new(options, u64::MAX);
    whole.run(steps).unwrap();
    let keeps_all = whole.ended.iter().all(|stats| stats.evicted == 0);
    let mut images = HashSet::new();
    let mut stop = 1;
    loop {
        let mut machine = Machine::new(options, stop);
        let stopped = machine.run(steps).is_err();
        let Machine { options, disk, mut history, .. } = machine;
        history.keeps_all = keeps_all;
        let killed = disk.after_kill();
        if images.insert(killed.image_hash()) {
            recover_and_check(&options, (images.len(), &killed), &history, history.returned, false, &format!("stop {stop}, kill"));
        }
        // That something was seen to have expired is nothing that a caller was told is durable.
        history.seen_expired.clear();
        for (seed, damage) in [(0, PowerCut::LoseAll), (0, PowerCut::KeepAll), (1, PowerCut::Random), (2, PowerCut::Random)] {
            let cut = disk.after_power_cut(seed, damage);
            if images.insert(cut.image_hash()) {
                let what = format!("stop {stop}, power cut {damage:?} {seed}");
                recover_and_check(&options, (images.len(), &cut), &history, history.durable, true, &what);
            }
        }
        if !stopped {
            break;
        }
        stop += 1;
    }
    println!("{stop} stops, {} distinct images", images.len());
    assert!(stop > 50, "the scenario is long enough to mean something");
    (images.len(), whole.ended)
}

/// Puts and deletes drawn from `seed`.
pub(super) fn mixed(seed: u64, count: u64, len_max: u64, host_every: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..count {
        let r = xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed);
        let key = (r >> 8) as u8 % KEYS;
        let ack = if host_every > 0 && r.is_multiple_of(host_every) { Ack::Host } else { Ack::Process };
        steps.push(match (r >> 32) % 16 {
            0 | 1 => Step::Delete(key, ack),
            2 => Step::Work,
            3 if r & 3 == 0 => Step::Checkpoint,
            5 if r & 7 == 0 => Step::Clear(ack),
            6 if r & 1 == 0 => Step::Token(ack),
            7 => Step::Prepare,
            8 if r & 1 == 0 => Step::Flush,
            4 if r & 3 == 0 => Step::Sync,
            9 | 10 => Step::Get(key % 6),
            _ => Step::Put(key, ((r >> 16) % len_max) as usize, ack),
        });
    }
    steps
}

/// Some entries are put once and stay while others are overwritten again and again, so that they are moved each time that their segment is emptied.
pub(super) fn with_moves(seed: u64, count: u64) -> Vec<Step> {
    let mut steps: Vec<Step> = (0..6).map(|key| Step::Put(key, 4_000, Ack::Process)).collect();
    for n in 0..count {
        let r = xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed);
        let ack = if r.is_multiple_of(40) { Ack::Host } else { Ack::Process };
        steps.push(Step::Put(6 + (r >> 8) as u8 % 6, 9_000 + (r >> 16) as usize % 9_000, ack));
        match (r >> 40) % 32 {
            0 => steps.push(Step::Work),
            1 => steps.push(Step::Sync),
            2 | 3 => steps.push(Step::Delete((r >> 48) as u8 % 6, ack)),
            4 | 5 => steps.push(Step::Put((r >> 48) as u8 % 6, 4_000, ack)),
            6..12 => steps.push(Step::Flush),
            // Segments are emptied and used again before anything is synced.
            12..28 => steps.extend([Step::Prepare; 2]),
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
            Step::Put(key, len, Ack::Process) if r.is_multiple_of(2) => vec![Step::PutFor(key, len, 1 + (r >> 8) % 400)],
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
    // What reclaiming does while others put: nothing of it is synced.
    let row = engine.table.select(|r| r.stage == Stage::Sealed)[0];
    engine.table.drain(row.life.id);
    let file = engine.table.file(row.life.id).unwrap();
    let contents = reader::entries(engine.context.store, &row, engine.context.hash_seed, file.as_ref());
    assert!(contents.entries.len() > 50);
    for (n, entry) in (1_000u64..).zip(&contents.entries) {
        let place = IndexEntry::new(Location { segment: row.life.id, offset: entry.offset }, entry.len as usize);
        let found = engine.read(&place, &row.life).unwrap().unwrap();
        if engine.reinsert(&row, entry, &found.record, found.bytes()).is_err() {
            break;
        }
        engine.put((&n.to_le_bytes()).into(), &value(n, 0, 60), &PutOptions::new().wait(Wait::No)).unwrap();
    }
    let mut replayed = 0;
    for seed in 0..300 {
        let back = reopen(&store.options, &store.disk.after_power_cut(seed, PowerCut::Random)).unwrap();
        assert!(back.context.report.damaged.is_empty(), "seed {seed}: {:?}", back.context.report);
        replayed += u64::from(back.context.report.wal_frames > 90);
        for key in 0..70u64 {
            let found = back.get((&key.to_le_bytes()).into(), false).unwrap();
            assert_eq!(found.as_deref(), Some(&value(key, 0, 800)[..]), "seed {seed}: key {key}");
        }
    }
    assert!(replayed > 10, "the frames were there in {replayed} images");
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

/// Scenarios drawn from seeds: two, or as many as `EVERWARM_CRASH_SEEDS` says, from `EVERWARM_CRASH_FIRST` on.
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

/// What kills leave between two of the words that a mutation stores: those of its record in order, then those of its frame.
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
        let (options, disk, mut history) = (small().wal_values(wal_values), SimDisk::new(seed), History::default());
        let engine = reopen(&options, &disk).unwrap();
        for step in mixed(seed, 160, 900, 4) {
            let (before, operations, floor) = (disk.after_kill(), disk.operations(), history.returned);
            history.apply(&engine, step, &disk).unwrap();
            if history.returned == floor || disk.operations() > operations {
                // Nothing stored, or the rings were written out meanwhile.
                continue;
            }
            for (number, image) in stored_in_part(&before, &disk.after_kill()).into_iter().enumerate() {
                let what = format!("{wal_values:?}, mutation {floor}, cut {number}");
                let engine = reopen(&options, &image).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(engine.context.report.damaged.is_empty(), "{what}: {:?}", engine.context.report);
                history.check(&engine, floor, &what);
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
    let with_checkpoints = |step| if matches!(step, Step::Put(..) | Step::Delete(..)) { vec![step, Step::Checkpoint] } else { vec![step] };
    let steps: Vec<_> = mixed(7, 50, 300, 12).into_iter().flat_map(with_checkpoints).collect();
    explore(&small().wal_values(WalValues::Always), &steps);
}

#[test]
fn stops_while_everything_is_acknowledged_at_host() {
    explore(&small().ack(Ack::Host), &mixed(5, 60, 6_000, 1));
}

/// Runs `steps` on a disk that fails now and then, and stops at `stop` or closes in order. What it acknowledged must be there afterwards.
fn run_with_faults(options: &Options, steps: &[Step], seed: u64, stop: u64) -> u64 {
    let disk = SimDisk::new(seed);
    let mut history = History::default();
    let engine = open(options, Some(Arc::new(disk.clone())), Arc::new(SimClock::new(2)), INLINE).unwrap();
    let drawn = |n: u64| xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed);
    for n in 0..1 + drawn(0) % 4 {
        let op = [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages, FaultOp::Read, FaultOp::Write][drawn(n + 1) as usize % 5];
        disk.fail(op, 1 + drawn(n + 9) % 60, std::io::ErrorKind::Other, false);
    }
    disk.stop_at(disk.operations() + stop);
    let all = steps.iter().all(|step| history.apply(&engine, *step, &disk).is_ok());
    if drawn(30).is_multiple_of(2) {
        let op = [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDroppingPages][drawn(31) as usize % 3];
        disk.fail(op, 1 + drawn(32) % 4, std::io::ErrorKind::Other, false);
    }
    engine.begin_close();
    let finished = engine.finish().is_ok();
    assert!(finished || engine.persist(Ack::Host).is_err() || engine.log.marks().durable() == engine.appended(), "whoever waits is told");
    let closed = finished && !disk.has_stopped();
    let faults = disk.faults_injected();
    // What nobody heard of takes nothing away.
    let heard_of = !finished || !all || has_noticed(&engine, 0);
    history.may_miss = faults > 0 && heard_of;
    let what = format!("seed {seed}, stop {stop}, all {all}, closed {closed}, faults {faults}");
    let floor = if closed { history.returned } else { history.durable };
    drop(engine);

    for (image, floor) in [
        (disk.after_kill(), history.returned),
        (disk.after_power_cut(seed, PowerCut::LoseAll), floor),
        (disk.after_power_cut(seed, PowerCut::Random), floor),
    ] {
        let engine = reopen(options, &image).unwrap_or_else(|e| panic!("{what}: {e}"));
        history.check(&engine, floor, &what);
        drop(engine);
        let again = reopen(options, &image.after_kill()).unwrap_or_else(|e| panic!("{what}, again: {e}"));
        history.check(&again, floor, &format!("{what}, again"));
    }
    faults
}

/// Faults and stops together, drawn from seeds: 300, or as many as `EVERWARM_FAULT_SEEDS` says, from `EVERWARM_FAULT_FIRST` on.
#[test]
fn what_was_acknowledged_outlives_faults_stops_and_closes() {
    let faults = each_seed(seeds("FAULT", 1, 300), "FAULT", "what_was_acknowledged_outlives", |seed| {
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
