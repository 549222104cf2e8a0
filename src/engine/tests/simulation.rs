//! Many lives of one store, drawn from a seed: what an application does, what a disk and a clock do to it, and stops of every kind, also inside recovery; against a model
//! that keeps what was acknowledged, what is durable, and what is in doubt.

use std::sync::mpsc;

use super::*;
use crate::config::Compression;
use crate::engine::file_names;
use crate::error::Error;
use crate::id::Lsn;
use crate::io::sim::FaultOp;

const KEYS: u64 = 40;
/// Mutations that a life of the store may have at most.
const LIFE: u64 = 240;

/// Numbers that follow from a seed.
struct Draw(u64, u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.1 += 1;
        xxhash_rust::xxh3::xxh3_64_with_seed(&self.1.to_le_bytes(), self.0) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    Put { key: u64, expires_ms: Option<u64> },
    Delete { key: u64 },
    Clear,
    Token,
}

/// One mutation. Values state its number.
#[derive(Clone, Copy, Debug)]
struct Mutation {
    number: u64,
    effect: Effect,
    /// Its version, once it returned.
    lsn: Option<Lsn>,
}

impl Mutation {
    fn touches(&self, key: u64) -> bool {
        match self.effect {
            Effect::Put { key: k, .. } | Effect::Delete { key: k } => k == key,
            Effect::Clear => true,
            Effect::Token => false,
        }
    }
}

/// What may be true.
#[derive(Default)]
struct Model {
    next: u64,
    /// In order. The last one may be in doubt.
    log: Vec<Mutation>,
    returned: usize,
    durable: usize,
    /// Entries put before this place in the log may miss: the disk failed, or a restart showed that they were gone.
    excused: HashMap<u64, usize>,
    /// Puts that were found to have expired, and whether a power cut may take that away.
    seen_expired: HashMap<u64, bool>,
    /// Tokens set before this place in the log may be forgotten, but not go back.
    tokens_excused: usize,
    /// Entries up to this version may have been evicted: some were, in a life that has ended.
    evicted: Lsn,
}

impl Model {
    fn intend(&mut self, effect: Effect) -> u64 {
        self.next += 1;
        self.log.push(Mutation { number: self.next, effect, lsn: None });
        self.next
    }

    fn returned(&mut self, lsn: Lsn, ack: Ack) {
        self.log.last_mut().unwrap().lsn = Some(lsn);
        self.returned = self.log.len();
        if ack == Ack::Host {
            self.durable = self.returned;
        }
    }

    fn excuse_all(&mut self) {
        self.tokens_excused = self.log.len();
        self.excused = (0..KEYS).map(|key| (key, self.log.len())).collect();
    }

    /// Whether `key` may miss, if everything before `floor` has happened and what follows may have.
    fn may_miss(&self, engine: &Engine, key: u64, floor: usize) -> bool {
        let Some(at) = self.log[..floor].iter().rposition(|m| m.touches(key)) else { return true };
        let mutation = self.log[at];
        let superseded_later = self.log[floor..].iter().any(|m| m.touches(key));
        let Effect::Put { expires_ms, .. } = mutation.effect else { return true };
        superseded_later
            || expires_ms.is_some_and(|at| at <= engine.context.time.now_ms())
            || self.excused.get(&key).is_some_and(|before| at < *before)
            || mutation.lsn.is_none_or(|lsn| lsn <= self.evicted.max(Self::evicted_by(engine)))
    }

    /// The newest version that `engine` may have evicted. None as long as everything has found room.
    fn evicted_by(engine: &Engine) -> Lsn {
        let stats = engine.stats();
        if stats.evicted > 0 { stats.reclaimed } else { Lsn::ZERO }
    }

    /// Where in the log the value that `found` is was put.
    fn place_of(&self, engine: &Engine, key: u64, found: &[u8], what: &str) -> usize {
        let text = String::from_utf8_lossy(found);
        let number: u64 =
            text.split(':').nth(1).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{what}: key {key} is torn: {text:.40}"));
        let len = found.len() - format!("{key}:{number}:").len();
        assert_eq!(found, value(key, number, len), "{what}: key {key} is torn");
        let at = self.log.iter().position(|m| m.number == number);
        let at = at.unwrap_or_else(|| panic!("{what}: key {key} has version {number}, which never happened or was undone"));
        let Effect::Put { expires_ms, .. } = self.log[at].effect else { panic!("{what}: key {key} has a version that is no put") };
        assert!(expires_ms.is_none_or(|at| at > engine.context.time.now_ms()), "{what}: key {key} has expired");
        assert!(!self.seen_expired.contains_key(&number), "{what}: key {key} had been found expired");
        at
    }

    /// While the engine lives and nothing is in doubt, what is found is the newest.
    fn check_live(&mut self, engine: &Engine, key: u64, found: Option<&[u8]>, what: &str) {
        let newest = self.log.iter().rposition(|m| m.touches(key));
        match found {
            Some(found) => assert_eq!(Some(self.place_of(engine, key, found, what)), newest, "{what}: key {key} is stale"),
            None => {
                assert!(self.may_miss(engine, key, self.log.len()), "{what}: key {key} is lost: {newest:?} of {:?}", self.log.len());
                if let Some(Mutation { number, effect: Effect::Put { expires_ms: Some(at), .. }, .. }) = newest.map(|at| self.log[at])
                    && at <= engine.context.time.now_ms()
                {
                    self.seen_expired.entry(number).or_insert(true);
                }
            }
        }
    }

    /// What a restart shows is the outcome of a prefix of the log, at least `floor` long. The keys that this leaves in doubt.
    fn settle(&mut self, engine: &Engine, floor: usize, what: &str) -> Vec<u64> {
        let (mut low, mut high) = (floor, self.log.len());
        let is_token = |m: &Mutation| m.effect == Effect::Token;
        let token = engine.namespaces().resume_token("stream").map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        let at =
            token.map(|number| self.log.iter().position(|m| m.number == number).unwrap_or_else(|| panic!("{what}: a token of nobody")));
        low = low.max(at.map_or(0, |at| at + 1));
        high = high.min((at.map_or(self.tokens_excused, |at| at + 1)..high).find(|i| is_token(&self.log[*i])).unwrap_or(high));
        assert!(low <= high, "{what}: the token {at:?} fits no prefix, floor {floor} of {}", self.log.len());
        let space = engine.namespace("").unwrap();
        let mut missing = Vec::new();
        for key in 0..KEYS {
            let found = engine.get(space.key(&key.to_le_bytes()), key % 2 == 0).unwrap();
            let Some(found) = found else {
                assert!(self.may_miss(engine, key, floor), "{what}: key {key} is lost, floor {floor}: {:?}", engine.context.report);
                missing.push(key);
                continue;
            };
            let at = self.place_of(engine, key, &found, what);
            low = low.max(at + 1);
            high = high.min((at + 1..self.log.len()).find(|i| self.log[*i].touches(key)).unwrap_or(high));
            assert!(low <= high, "{what}: key {key} at {at} fits no prefix, floor {floor} of {}", self.log.len());
        }
        let in_doubt = |key: &u64| self.log[low..].iter().any(|m| m.touches(*key));
        let doubted = (0..KEYS).filter(in_doubt).collect();
        self.log.truncate(low);
        // What is served once is durable.
        (self.returned, self.durable) = (low, low);
        self.seen_expired.values_mut().for_each(|may_go| *may_go = false);
        self.excused.extend(missing.into_iter().map(|key| (key, low)));
        doubted
    }
}

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Close,
    Kill,
    PowerCut(PowerCut),
}

#[derive(Debug, Default)]
struct StripedCounter {
    operations: u64,
    faults: u64,
    lives: u64,
    clock_jumps: u64,
    /// Bytes that rotted, and openings or gets that noticed one.
    rotten: u64,
    noticed: u64,
}

struct Simulation {
    seed: u64,
    draw: Draw,
    clock: Arc<SimClock>,
    options: Options,
    model: Model,
    tally: StripedCounter,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut draw = Draw(seed, 0);
        let wal_values = draw.of(&[WalValues::Never, WalValues::Host, WalValues::Always]);
        let flash = draw.of(&[512 << 10, 768 << 10, 1 << 20, 4 << 20]);
        // Values of these tests become much smaller, so not in every life.
        let compression = if seed % 8 == 5 { Compression::Zstd(1) } else { Compression::None };
        let options = small().flash(flash).wal_values(wal_values).compression(compression);
        Self { seed, draw, clock: Arc::new(SimClock::new(seed)), options, model: Model::default(), tally: StripedCounter::default() }
    }

    fn run(mut self, operations: u64, faults: u64) -> StripedCounter {
        let mut disk = SimDisk::new(self.seed);
        let mut end = End::Close;
        while self.tally.operations < operations || self.tally.faults < faults {
            let (engine, after) = self.come_back(disk, end);
            disk = after;
            end = self.live(&engine, &disk);
            self.tally.faults += disk.faults_injected();
            self.tally.lives += 1;
            self.model.evicted = self.model.evicted.max(Model::evicted_by(&engine));
            let (floor, image) = match end {
                End::Close => (self.model.returned, disk.after_kill()),
                End::Kill => (self.model.returned, disk.after_kill()),
                End::PowerCut(damage) => {
                    self.model.seen_expired.retain(|_, may_go| !*may_go);
                    (self.model.durable, disk.after_power_cut(self.draw.below(1 << 20), damage))
                }
            };
            drop(engine);
            self.model.returned = floor;
            disk = image;
            if self.draw.one_in(4) {
                let ms = [-3_600_000, -50, 50, 2_000][self.draw.below(4) as usize];
                self.clock.jump_wall(ms);
                self.tally.clock_jumps += 1;
            }
        }
        self.tally
    }

    fn open(&self, disk: &SimDisk) -> Result<Arc<Engine>, Error> {
        open(&self.options, Some(Arc::new(disk.clone())), self.clock.clone(), INLINE)
    }

    /// Opens the store, perhaps after openings that were stopped or met a failing disk, and resolves what is in doubt.
    fn come_back(&mut self, mut disk: SimDisk, end: End) -> (Arc<Engine>, SimDisk) {
        let mut page_cache_whole = !matches!(end, End::PowerCut(_));
        while self.tally.lives > 0 && self.draw.one_in(3) {
            if self.draw.one_in(2) {
                disk.stop_at(1 + self.draw.below(20));
            } else {
                let op = self.draw.of(&[
                    FaultOp::Write,
                    FaultOp::Sync,
                    FaultOp::SyncDroppingPages,
                    FaultOp::Read,
                    FaultOp::Open,
                    FaultOp::SyncDir,
                ]);
                // What is read and fails may fail again.
                let repeat = op == FaultOp::Read && self.draw.one_in(2);
                disk.fail(op, 1 + self.draw.below(8), std::io::ErrorKind::Other, repeat);
            }
            // Whatever comes of it, it is another life that ends at once.
            let noticed = self.open(&disk).map_or(true, |engine| has_lost(&engine));
            self.tally.faults += disk.faults_injected();
            if disk.faults_injected() > 0 && noticed {
                self.model.excuse_all();
            }
            disk = match self.draw.below(3) {
                // What only the rings held is now where a power cut leaves it, or it is not and counts as before.
                0 if self.model.returned == self.model.durable => {
                    page_cache_whole = false;
                    self.model.seen_expired.retain(|_, may_go| !*may_go);
                    disk.after_power_cut(self.draw.below(1 << 20), self.draw_damage())
                }
                _ => disk.after_kill(),
            };
        }
        if self.draw.one_in(6) {
            let (flash, segment_size) =
                self.draw.of(&[(512 << 10, 64 << 10), (768 << 10, 64 << 10), (1 << 20, 128 << 10), (4 << 20, 64 << 10)]);
            self.options = self.options.clone().flash(flash).segment_size(segment_size);
        }
        let what = format!("seed {}, life {}", self.seed, self.tally.lives);
        // A power cut's last batch may be torn or rotten, which nobody can tell.
        let rots = page_cache_whole && self.tally.lives > 0 && self.draw.one_in(4);
        if rots {
            self.rot(&disk);
        }
        let engine = self.open(&disk).unwrap_or_else(|e| panic!("{what}: {e}"));
        if self.tally.rotten > 0 {
            let space = engine.namespace("").unwrap();
            (0..KEYS).for_each(|key| drop(engine.get(space.key(&key.to_le_bytes()), false).unwrap()));
            // A copy of the manifest that was not whole costs nothing, unless it had been.
            if has_lost(&engine) || (rots && engine.context.report.manifest_repaired) {
                self.tally.noticed += 1;
                self.model.excuse_all();
                // What was known of the time may have rotted too, and then a clock that goes back is believed.
                self.model.seen_expired.clear();
            }
        }
        let doubted = self.model.settle(&engine, self.model.returned, &what);
        let space = engine.namespace("").unwrap();
        for key in doubted {
            self.model.intend(Effect::Delete { key });
            let lsn = engine.delete(space.key(&key.to_le_bytes()), &DeleteOptions::new().ack(Ack::Host)).unwrap().unwrap();
            self.model.returned(lsn, Ack::Host);
        }
        (engine, disk)
    }

    /// Flips a bit of some file. Not of a manifest, whose other copy may be the one that a stop interrupted.
    fn rot(&mut self, disk: &SimDisk) {
        let files: Vec<_> = disk.files().into_iter().filter(|(name, len)| *len > 0 && !name.starts_with("manifest.")).collect();
        let (name, len) = &files[self.draw.below(files.len() as u64) as usize];
        disk.corrupt(name, self.draw.below(*len), 1 << self.draw.below(8));
        self.tally.rotten += 1;
    }

    fn draw_damage(&mut self) -> PowerCut {
        self.draw.of(&[PowerCut::LoseAll, PowerCut::KeepAll, PowerCut::Random, PowerCut::Random])
    }

    /// One life, until its end.
    fn live(&mut self, engine: &Arc<Engine>, disk: &SimDisk) -> End {
        for _ in 0..self.draw.below(3) {
            let op = self.draw.of(&[
                FaultOp::Write,
                FaultOp::Sync,
                FaultOp::SyncDroppingPages,
                FaultOp::Read,
                FaultOp::Create,
                FaultOp::SyncDir,
            ]);
            let kind =
                if op == FaultOp::Create && self.draw.one_in(2) { std::io::ErrorKind::StorageFull } else { std::io::ErrorKind::Other };
            disk.fail(op, 1 + self.draw.below(if op == FaultOp::Create { 4 } else { 60 }), kind, false);
        }
        if self.draw.one_in(3) {
            disk.stop_at(disk.operations() + 1 + self.draw.below(100));
        }
        let mut failed = false;
        for _ in 0..self.draw.below(LIFE) {
            self.tally.operations += 1;
            let done = self.operate(engine, disk);
            if (disk.faults_injected() > 0 && done.is_err()) || self.may_notice(disk) && has_lost(engine) {
                self.model.excuse_all();
            }
            if disk.has_stopped() || done.is_err() {
                failed = true;
                break;
            }
        }
        if !failed && self.draw.one_in(4) {
            engine.begin_close();
            if engine.finish().is_ok() && !disk.has_stopped() {
                self.model.durable = self.model.returned;
                return match self.draw.one_in(2) {
                    true => End::Close,
                    false => End::PowerCut(self.draw_damage()),
                };
            }
        }
        match self.draw.one_in(2) {
            true => End::Kill,
            false => End::PowerCut(self.draw_damage()),
        }
    }

    /// Whether something is wrong that the engine may have counted.
    fn may_notice(&self, disk: &SimDisk) -> bool {
        disk.faults_injected() + self.tally.rotten > 0
    }

    /// One operation. An error if it failed: the mutation is in doubt.
    fn operate(&mut self, engine: &Arc<Engine>, disk: &SimDisk) -> Result<(), Error> {
        let what = format!("seed {}, life {}, operation {}", self.seed, self.tally.lives, self.tally.operations);
        // What a stopped machine answers, nobody hears.
        let heard = |result: Result<(), Error>| if disk.has_stopped() { Err(Error::Closed) } else { result };
        let space = engine.namespace("")?;
        let key = self.draw.below(KEYS);
        let bytes = key.to_le_bytes();
        let ack = if self.draw.one_in(7) { Ack::Host } else { Ack::Process };
        match self.draw.below(32) {
            0..12 => {
                let ttl = self.draw.one_in(6).then(|| Duration::from_millis(1 + self.draw.below(500)));
                let expires_ms = ttl.map(|ttl| engine.context.time.now_ms() + ttl.as_millis() as u64);
                let len = self.draw.of(&[20, 300, 3_000, 9_000]);
                let len = self.draw.below(len) as usize;
                let number = self.model.intend(Effect::Put { key, expires_ms });
                let options = ttl.map_or_else(PutOptions::new, |ttl| PutOptions::new().ttl(ttl)).ack(ack);
                let lsn = engine.put(space.key(&bytes), &value(key, number, len), &options)?;
                heard(Ok(()))?;
                self.model.returned(lsn.unwrap(), ack);
            }
            12..15 => {
                self.model.intend(Effect::Delete { key });
                let lsn = engine.delete(space.key(&bytes), &DeleteOptions::new().ack(ack))?;
                heard(Ok(()))?;
                self.model.returned(lsn.unwrap(), ack);
            }
            15 if self.draw.one_in(8) => {
                self.model.intend(Effect::Clear);
                let lsn = engine.clear(&space, Some(ack))?;
                heard(Ok(()))?;
                self.model.returned(lsn, ack);
            }
            16 => {
                let number = self.model.intend(Effect::Token);
                let lsn = engine.set_resume_token("stream", &number.to_le_bytes(), Some(ack))?;
                heard(Ok(()))?;
                self.model.returned(lsn, ack);
            }
            17..24 => {
                let found = engine.get(space.key(&bytes), true)?;
                heard(Ok(()))?;
                if self.may_notice(disk) && has_lost(engine) {
                    self.model.excuse_all();
                }
                self.model.check_live(engine, key, found.as_deref(), &what);
            }
            24 => {
                let keys: Vec<[u8; 8]> = (0..6).map(|_| self.draw.below(KEYS).to_le_bytes()).collect();
                let found = engine.get_many(&keys.iter().map(|key| space.key(key)).collect::<Vec<_>>())?;
                heard(Ok(()))?;
                if self.may_notice(disk) && has_lost(engine) {
                    self.model.excuse_all();
                }
                for (key, found) in keys.iter().zip(&found) {
                    self.model.check_live(engine, u64::from_le_bytes(*key), found.as_deref(), &what);
                }
            }
            25 => drop(engine.step_flush()?),
            26 => drop(engine.step_prepare()?),
            27 if self.draw.one_in(3) => match self.draw.one_in(2) {
                true => drop(engine.step_checkpoint(true)?),
                false => self.put_during_checkpoint(engine, disk)?,
            },
            28 => {
                engine.persist(Ack::Host)?;
                heard(Ok(()))?;
                self.model.durable = self.model.returned;
            }
            29 => self.clock.advance(Duration::from_millis(self.draw.below(300))),
            _ => engine.step_all()?,
        }
        heard(Ok(()))
    }

    /// A checkpoint, and puts when the index has been copied and nothing is written yet.
    fn put_during_checkpoint(&mut self, engine: &Arc<Engine>, disk: &SimDisk) -> Result<(), Error> {
        let keys: Vec<u64> = (0..1 + self.draw.below(20)).map(|_| self.draw.below(KEYS)).collect();
        let (len, number) = (self.draw.below(9_000) as usize, self.model.next + 1);
        let (answer, answered) = mpsc::sync_channel(keys.len());
        let (writer, alive, those) = (Arc::clone(engine), disk.clone(), keys.clone());
        let puts = move || {
            for (key, number) in those.into_iter().zip(number..) {
                let put =
                    writer.namespace("").and_then(|s| writer.put(s.key(&key.to_le_bytes()), &value(key, number, len), &PutOptions::new()));
                let put = if alive.has_stopped() { Err(Error::Closed) } else { put };
                let failed = put.is_err();
                let _heard = answer.send(put);
                if failed {
                    return;
                }
            }
        };
        let sequence = engine.manifest.lock().checkpoint.map_or(0, |c| c.sequence) + 1;
        let taken = disk.meanwhile(&file_names::checkpoint(sequence), puts, || engine.step_checkpoint(true));
        for (put, key) in answered.into_iter().zip(keys) {
            self.model.intend(Effect::Put { key, expires_ms: None });
            self.model.returned(put?.unwrap(), Ack::Process);
        }
        taken.map(drop)
    }
}

/// Seeds that found something. 14941: bytes beyond the end of the log verified as a record by chance, and everything was dropped.
const FOUND: [u64; 1] = [14941];

#[test]
fn every_life_that_found_something_once() {
    FOUND.into_iter().for_each(|seed| assert!(Simulation::new(seed).run(2_000, 3).lives > 1));
}

/// Seeds of 2,000 operations and 3 faults at least: 40, or as many as `EVERWARM_SIM_SEEDS` says, from `EVERWARM_SIM_FIRST` on, on all processors.
#[test]
fn every_life_shows_what_was_acknowledged_and_nothing_older() {
    let tally = each_seed(seeds("SIM", 1, 40), "SIM", "every_life_shows", |seed| Simulation::new(seed).run(2_000, 3));
    let sum = |of: fn(&StripedCounter) -> u64| tally.iter().map(of).sum::<u64>();
    println!(
        "{} seeds: {} operations, {} faults, {} lives, {} jumps of the clock, {} rotten bytes, noticed {} times",
        tally.len(),
        sum(|t| t.operations),
        sum(|t| t.faults),
        sum(|t| t.lives),
        sum(|t| t.clock_jumps),
        sum(|t| t.rotten),
        sum(|t| t.noticed),
    );
    assert!(tally.len() < 40 || sum(|t| t.noticed) > 0, "what rots is noticed now and then");
}
