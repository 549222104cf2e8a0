//! The oracle of every test that lets a store live for a while: steps, the history of the mutations
//! among them, and the check that a store shows the outcome of a prefix of that history.
//!
//! A value states its key and the number of the mutation that put it. A resume token states the
//! number of the mutation that set it. So each answer says which prefixes of the history it fits:
//!
//! ```text
//! put a 0 | put b 1 | delete a 2 | put b 3 | put c 4
//!                               ^ floor 3
//! b is at 1   fits the prefix of 3 mutations
//! a misses    fits every prefix of 3 or more
//! c is at 4   fits the prefix of 5, which b does not fit: the check fails
//! ```
//!
//! - All answers together must fit one prefix that is not shorter than the floor. The floor is the
//!   number of mutations that the stop must not take away: all that returned after a process crash,
//!   all that are durable after a host crash.
//! - A miss fits every prefix, but it needs an excuse if the prefix up to the floor has an entry.
//!   There are four excuses: a later mutation of the key may have happened; the entry has expired;
//!   it may have been evicted; the engine noticed that the disk damaged it.
//! - A mutation that returned and that no prefix shows is lost. The recovery report must say so.
//! - While the engine lives the prefix is the whole history: an answer is the newest, or an excused
//!   miss.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::internals::{failure, named_checkpoint, now_ms, wall_ms};
use crate::config::Ack;
use crate::engine::{DeleteOptions, Engine, PutOptions, Start, Value, file_names};
use crate::error::Error;
use crate::id::Lsn;
use crate::io::sim::{PowerCut, SimDisk};

/// One step of a run. Generators draw steps; [`History::apply`] runs those on an open store, and
/// [`Machine::run`](super::store::Machine::run) the others too.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Put {
        key: u8,
        len: usize,
        ack: Ack,
        ttl_ms: Option<u64>,
    },
    Delete(u8, Ack),
    Clear(Ack),
    Token(Ack),
    /// Puts the one entry of another namespace, which is created if there is none.
    PutAside(Ack),
    /// Removes that namespace.
    RemoveAside(Ack),
    /// Makes the entry hot too, so that it is moved rather than evicted.
    Get(u8),
    GetMany([u8; 6]),
    Checkpoint,
    /// A checkpoint, and puts of these keys once the index has been copied and nothing is written
    /// yet.
    PutsDuringCheckpoint {
        keys: Vec<u8>,
        len: usize,
    },
    /// Waits until every mutation is durable.
    Persist,
    /// One kind of background work, before other kinds that would have come first.
    Flush,
    Prepare,
    Sync,
    /// All background work that there is.
    Work,
    /// Milliseconds pass.
    Pass(u64),
    /// The process ends, in order if `close`, and the next one opens the store with flash of
    /// another size. Nothing is checked meanwhile: reads would shift the operations of the disk.
    Reopen {
        close: bool,
        flash: u64,
        segment_size: u64,
    },
    /// The process is killed, and the next one is checked.
    Kill,
    Close,
    /// The machine stops at this operation of the background work, counted from here.
    StopDuringWork(u64),
    /// Power fails; unsynced bytes are lost by the seed.
    PowerCut(u64, PowerCut),
}

impl Step {
    /// A put without an expiry.
    pub(crate) fn put(key: u8, len: usize, ack: Ack) -> Self {
        Self::Put { key, len, ack, ttl_ms: None }
    }
}

/// The effect of a mutation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    Put { key: u8, expires_ms: Option<u64> },
    Delete(u8),
    Clear,
    Token,
    PutAside,
    RemoveAside,
}

#[derive(Clone, Copy, Debug)]
struct Mutation {
    /// Stated by the value or the token. Never used twice.
    number: u64,
    effect: Effect,
    /// Known once the mutation returned.
    lsn: Option<Lsn>,
    /// The wall clock when the mutation returned.
    returned_ms: u64,
}

impl Mutation {
    fn touches(&self, key: u8) -> bool {
        match self.effect {
            Effect::Put { key: k, .. } | Effect::Delete(k) => k == key,
            Effect::Clear => true,
            Effect::Token | Effect::PutAside | Effect::RemoveAside => false,
        }
    }

    fn touches_aside(&self) -> bool {
        matches!(self.effect, Effect::PutAside | Effect::RemoveAside)
    }

    fn has_expired(&self, now_ms: u64) -> bool {
        matches!(self.effect, Effect::Put { expires_ms: Some(at), .. } if at <= now_ms)
    }
}

/// The keys of a run: the first `count` numbers, each as `len` little-endian bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) count: u16,
    pub(crate) len: usize,
}

impl Keys {
    pub(super) fn all(self) -> impl Iterator<Item = u8> {
        (0..self.count).map(|key| key as u8)
    }

    pub(super) fn bytes(self, key: u8) -> Vec<u8> {
        u64::from(key).to_le_bytes()[..self.len].to_vec()
    }
}

/// Which entries may miss because they were evicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Evictions {
    /// None: the whole run evicts nothing, so no part of it may.
    Never,
    /// Every entry up to the reclaimed watermark. For images of processes that may have evicted:
    /// their counters are gone with them.
    Reclaimed,
    /// Every entry up to the reclaimed watermark of the lives that evicted. The LSN is that of
    /// lives that have ended. For runs in which the history sees each life end.
    Counted(Lsn),
}

/// Keys that a restart left open.
pub(crate) struct Settled {
    /// Keys that miss.
    pub(crate) missing: Vec<u8>,
    /// Keys of mutations that the shortest prefix leaves out. Some of them may have happened:
    /// another mutation of such a key must follow before an answer can be judged again.
    pub(super) doubted: Vec<u8>,
}

/// The mutations of a run in order, and every excuse for an answer that differs from their outcome.
#[derive(Clone)]
pub(crate) struct History {
    keys: Keys,
    /// Number of the next mutation.
    next: u64,
    /// In order. The last one may be in doubt.
    log: Vec<Mutation>,
    /// How many of them returned.
    pub(super) returned: usize,
    /// How many of them a power cut must not take away.
    pub(super) durable: usize,
    /// How many of them were durable before the last sync. The mark of that sync states so. If the
    /// write of its batch is lost, nothing on the medium tells of later mutations.
    pub(super) witnessed: usize,
    pub(super) evictions: Evictions,
    /// The latest time that an engine of this history knew, if images of it are opened with another
    /// clock, which may be behind: entries that had expired by then may miss.
    ///
    /// None if all lives share a clock. Then time that the engine knew and forgot is no excuse.
    known_ms: Option<u64>,
    /// Entries put before this place in the log may miss: the disk failed, or a restart showed that
    /// they are gone.
    excused: HashMap<u8, usize>,
    /// Tokens set before this place in the log may be forgotten, but not go back.
    tokens_excused: usize,
    /// Entries of the other namespace put before this place in the log may miss.
    aside_excused: usize,
    /// Entries put before this place in the log must miss: they did after a restart on a disk that
    /// works.
    ruled_out: HashMap<u8, usize>,
    /// Puts that were found to have expired, by number, and whether a power cut may take that away.
    seen_expired: HashMap<u64, bool>,
    /// Bytes of the disk have rotted, so an engine may notice damage although no fault was planned.
    pub(super) has_rot: bool,
    /// Prefix of the messages of failed checks.
    pub(super) context: String,
}

impl History {
    /// An empty history.
    ///
    /// `first` is the number of the first mutation. Numbers are part of the lengths of values, and
    /// so of the run that a seed stands for.
    pub(crate) fn new(keys: Keys, first: u64, evictions: Evictions) -> Self {
        Self {
            keys,
            next: first,
            log: Vec::new(),
            returned: 0,
            durable: 0,
            witnessed: 0,
            evictions,
            known_ms: None,
            excused: HashMap::new(),
            tokens_excused: 0,
            aside_excused: 0,
            ruled_out: HashMap::new(),
            seen_expired: HashMap::new(),
            has_rot: false,
            context: String::new(),
        }
    }

    /// The history of a run whose images are opened with another clock.
    pub(super) fn with_other_clocks(self) -> Self {
        Self { known_ms: Some(0), ..self }
    }

    fn begin(&mut self, effect: Effect) -> u64 {
        let number = self.next;
        self.next += 1;
        self.log.push(Mutation { number, effect, lsn: None, returned_ms: 0 });
        number
    }

    fn acknowledged(&mut self, engine: &Engine, lsn: Lsn, ack: Ack) {
        let before = self.log.iter().rev().find_map(|m| m.lsn);
        assert!(before < Some(lsn), "{}version {lsn} follows {before:?}", self.context);
        let mutation = self.log.last_mut().expect("it has begun");
        (mutation.lsn, mutation.returned_ms) = (Some(lsn), wall_ms(engine));
        self.returned = self.log.len();
        if ack == Ack::Host {
            self.synced();
        }
    }

    /// Every mutation that returned is durable.
    pub(super) fn synced(&mut self) {
        if self.durable < self.returned {
            (self.witnessed, self.durable) = (self.durable, self.returned);
        }
    }

    /// Mutations up to this LSN are durable.
    pub(super) fn durable_until(&mut self, lsn: Lsn) {
        let reached = self.log.iter().take_while(|m| m.lsn.is_some_and(|at| at <= lsn)).count();
        self.durable = self.durable.max(reached);
    }

    /// Power failed. Mutations that are not durable are in doubt, and an entry that was found
    /// expired since the store was opened may come back.
    pub(super) fn power_failed(&mut self) {
        self.returned = self.durable;
        self.seen_expired.retain(|_, may_go| !*may_go);
    }

    /// The time that the store knew may have rotted: then a clock that goes back is believed.
    pub(super) fn forget_time(&mut self) {
        self.seen_expired.clear();
    }

    /// The history with the last mutation in doubt, as if it had not returned.
    pub(super) fn with_last_in_doubt(&self) -> Self {
        let mut before = self.clone();
        if let Some(last) = before.log.last_mut() {
            last.lsn = None;
        }
        before
    }

    /// The process of this engine ends.
    pub(super) fn life_ended(&mut self, engine: &Engine) {
        if let Evictions::Counted(before) = &mut self.evictions {
            *before = (*before).max(evicted_by(engine));
        }
    }

    /// Every entry and token so far may miss, because the engine noticed damage.
    pub(super) fn excuse_all(&mut self) {
        self.tokens_excused = self.log.len();
        self.aside_excused = self.log.len();
        self.excused = self.keys.all().map(|key| (key, self.log.len())).collect();
    }

    /// The entries of these keys so far do not come back.
    pub(super) fn rule_out(&mut self, missing: &[u8]) {
        self.ruled_out.extend(missing.iter().map(|key| (*key, self.log.len())));
    }

    /// Runs a step on an open store, and checks every answer. After an error the mutation is in
    /// doubt; a machine that has stopped answers with one.
    pub(crate) fn apply(&mut self, engine: &Arc<Engine>, step: &Step, disk: &SimDisk) -> Result<(), Error> {
        let alive = || check_alive(disk);
        let space = engine.namespace("")?;
        let now_ms = now_ms(engine);
        self.known_ms = self.known_ms.map(|_| now_ms);
        match *step {
            Step::Put { key, len, ack, ttl_ms } => {
                let number = self.begin(Effect::Put { key, expires_ms: ttl_ms.map(|ms| now_ms + ms) });
                let options = ttl_ms.map_or_else(PutOptions::new, |ms| PutOptions::new().ttl(Duration::from_millis(ms))).ack(ack);
                let lsn = engine.put(space.key(&self.keys.bytes(key)), &value(key.into(), number, len), &options)?;
                alive()?;
                self.acknowledged(engine, lsn.expect("it has no condition"), ack);
            }
            Step::Delete(key, ack) => {
                self.begin(Effect::Delete(key));
                let lsn = engine.delete(space.key(&self.keys.bytes(key)), &DeleteOptions::new().ack(ack))?;
                alive()?;
                self.acknowledged(engine, lsn.expect("it has no condition"), ack);
            }
            Step::Clear(ack) => {
                self.begin(Effect::Clear);
                let lsn = engine.clear(&space, Some(ack))?;
                alive()?;
                self.acknowledged(engine, lsn, ack);
            }
            Step::Token(ack) => {
                let number = self.begin(Effect::Token);
                let lsn = engine.set_resume_token("stream", &number.to_le_bytes(), Some(ack))?;
                alive()?;
                self.acknowledged(engine, lsn, ack);
            }
            Step::PutAside(ack) => self.put_aside(engine, disk, ack)?,
            Step::RemoveAside(ack) => self.remove_aside(engine, disk, ack)?,
            Step::Get(key) => {
                let found = engine.get(space.key(&self.keys.bytes(key)), true)?;
                alive()?;
                self.check_answer(engine, disk, key, found.as_ref());
            }
            Step::GetMany(keys) => {
                let bytes = keys.map(|key| self.keys.bytes(key));
                let found = engine.get_many(&bytes.iter().map(|bytes| space.key(bytes)).collect::<Vec<_>>())?;
                alive()?;
                keys.iter().zip(&found).for_each(|(key, found)| self.check_answer(engine, disk, *key, found.as_ref()));
            }
            Step::Checkpoint => drop(engine.step_checkpoint(true)?),
            Step::PutsDuringCheckpoint { ref keys, len } => self.put_during_checkpoint(engine, disk, keys, len)?,
            Step::Persist => {
                engine.persist(Ack::Host)?;
                alive()?;
                self.synced();
            }
            Step::Flush => drop(engine.step_flush()?),
            Step::Prepare => drop(engine.step_prepare()?),
            Step::Sync => drop(engine.step_sync()?),
            Step::Work => engine.step_all()?,
            _ => unreachable!("{step:?} is a step of the machine"),
        }
        alive()
    }

    fn put_aside(&mut self, engine: &Arc<Engine>, disk: &SimDisk, ack: Ack) -> Result<(), Error> {
        let number = self.begin(Effect::PutAside);
        let space = engine.namespace(ASIDE)?;
        let lsn = engine.put(space.key(ASIDE.as_bytes()), &aside_value(number), &PutOptions::new().ack(ack))?;
        check_alive(disk)?;
        self.acknowledged(engine, lsn.expect("it has no condition"), ack);
        Ok(())
    }

    /// Removes the other namespace. Handles that were made before have no namespace from then on.
    fn remove_aside(&mut self, engine: &Arc<Engine>, disk: &SimDisk, ack: Ack) -> Result<(), Error> {
        let before = engine.namespaces().handle(ASIDE);
        self.begin(Effect::RemoveAside);
        let lsn = engine.drop_namespace(ASIDE, Some(ack))?;
        check_alive(disk)?;
        assert_eq!(lsn.is_some(), before.is_some(), "{}a namespace is removed if it exists", self.context);
        let (Some(lsn), Some(before)) = (lsn, before) else {
            // It changed nothing.
            self.log.pop();
            return Ok(());
        };
        self.acknowledged(engine, lsn, ack);
        let key = before.key(ASIDE.as_bytes());
        let put = engine.put(key, b"", &PutOptions::new());
        assert!(matches!(put, Err(Error::NamespaceRemoved)), "{}{put:?} in a removed namespace", self.context);
        assert!(engine.get(key, true)?.is_none(), "{}a removed namespace has an entry", self.context);
        Ok(())
    }

    fn put_during_checkpoint(&mut self, engine: &Arc<Engine>, disk: &SimDisk, keys: &[u8], len: usize) -> Result<(), Error> {
        let (answer, answers) = mpsc::sync_channel(keys.len());
        let (writer, machine, first) = (Arc::clone(engine), disk.clone(), self.next);
        let entries: Vec<_> = keys.iter().map(|key| (*key, self.keys.bytes(*key))).collect();
        let puts = move || {
            for ((key, bytes), number) in entries.into_iter().zip(first..) {
                let put = || writer.put(writer.namespace("")?.key(&bytes), &value(key.into(), number, len), &PutOptions::new());
                let put = put();
                let put = if machine.has_stopped() { Err(Error::Closed) } else { put };
                let failed = put.is_err();
                let _received = answer.send(put);
                if failed {
                    return;
                }
            }
        };
        let file = file_names::checkpoint(named_checkpoint(engine).unwrap_or(0) + 1);
        let taken = disk.meanwhile(&file, puts, || engine.step_checkpoint(true));
        for (put, key) in answers.into_iter().zip(keys) {
            self.begin(Effect::Put { key: *key, expires_ms: None });
            self.acknowledged(engine, put?.expect("it has no condition"), Ack::Process);
        }
        taken.map(drop)
    }

    /// Checks an answer of an engine that lives: the newest value, or an excused miss.
    fn check_answer(&mut self, engine: &Engine, disk: &SimDisk, key: u8, found: Option<&Value>) {
        let newest = self.log.iter().rposition(|m| m.touches(key));
        let context = format!("{}mutation {}: ", self.context, self.log.len());
        match found {
            Some(found) => assert_eq!(Some(self.place_of(engine, key, found, &context)), newest, "{context}key {key} is stale"),
            None => {
                let noticed = self.may_notice(disk) && has_lost(engine);
                assert!(noticed || self.may_miss(engine, key, self.log.len()), "{context}key {key} is lost: {newest:?}");
                if let Some(newest) = newest.map(|at| self.log[at]).filter(|m| m.has_expired(now_ms(engine))) {
                    self.seen_expired.entry(newest.number).or_insert(true);
                }
            }
        }
    }

    /// Whether a fault or rot has given the engine something to notice.
    pub(super) fn may_notice(&self, disk: &SimDisk) -> bool {
        self.has_rot || disk.faults_injected() > 0
    }

    /// Checks that `engine` shows the outcome of a prefix of the history that is at least `floor`
    /// long.
    pub(super) fn check(&self, engine: &Engine, floor: usize, context: &str) {
        self.prefix(engine, floor, |_| false, context);
    }

    /// Checks that a restart shows a prefix with every mutation that returned, and cuts the history
    /// to the shortest prefix that fits. Everything that a restart has shown is durable.
    pub(super) fn settle(&mut self, engine: &Engine, context: &str) -> Settled {
        let (len, missing) = self.prefix(engine, self.returned, |key| key % 2 == 0, context);
        let doubted = self.keys.all().filter(|key| self.log[len..].iter().any(|m| m.touches(*key))).collect();
        self.log.truncate(len);
        // Mutations that follow take these places.
        self.excused.values_mut().for_each(|before| *before = (*before).min(len));
        self.tokens_excused = self.tokens_excused.min(len);
        self.aside_excused = if self.aside(engine, "").is_none() { len } else { self.aside_excused.min(len) };
        (self.returned, self.durable) = (len, len);
        self.seen_expired.values_mut().for_each(|may_go| *may_go = false);
        self.excused.extend(missing.iter().map(|key| (*key, len)));
        Settled { missing, doubted }
    }

    /// The length of the shortest prefix that `engine` shows, and the keys that miss. Reads of some
    /// keys promote their entries into the memory tier.
    fn prefix(&self, engine: &Engine, floor: usize, promotes: impl Fn(u8) -> bool, context: &str) -> (usize, Vec<u8>) {
        let context = format!("{}{context}: ", self.context);
        let end = self.log.len();
        let (mut low, mut high) = (floor, end);
        let token = engine.namespaces().resume_token("stream").map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
        let at = token.map(|number| {
            let at = self.log.iter().position(|m| m.number == number && m.effect == Effect::Token);
            at.unwrap_or_else(|| panic!("{context}the token {number} was never set, or was undone"))
        });
        low = low.max(at.map_or(0, |at| at + 1));
        let later = at.map_or(self.tokens_excused, |at| at + 1);
        high = high.min((later..end).find(|at| self.log[*at].effect == Effect::Token).unwrap_or(end));
        assert!(low <= high, "{context}the token of place {at:?} fits no prefix, floor {floor} of {end}");
        match self.aside(engine, &context) {
            Some(at) => {
                low = low.max(at + 1);
                high = high.min((at + 1..end).find(|at| self.log[*at].touches_aside()).unwrap_or(end));
                assert!(low <= high, "{context}the entry aside of place {at} fits no prefix, floor {floor} of {end}");
            }
            None => assert!(self.aside_may_miss(engine, floor), "{context}the entry aside is lost, floor {floor} of {end}"),
        }
        let space = engine.namespace("").expect("the engine serves reads");
        let mut missing = Vec::new();
        for key in self.keys.all() {
            let found = engine.get(space.key(&self.keys.bytes(key)), promotes(key)).expect("the engine serves reads");
            let Some(found) = found else {
                let report = engine.recovery();
                assert!(self.may_miss(engine, key, floor), "{context}key {key} is lost, floor {floor} of {end}: {report:?}");
                missing.push(key);
                continue;
            };
            let at = self.place_of(engine, key, &found, &context);
            low = low.max(at + 1);
            high = high.min((at + 1..end).find(|at| self.log[*at].touches(key)).unwrap_or(end));
            assert!(low <= high, "{context}key {key} of place {at} fits no prefix, floor {floor} of {end}");
        }
        self.check_report(engine, high, &context);
        (low, missing)
    }

    /// Checks that the recovery report states the mutations after the longest prefix that fits:
    /// they returned and are lost.
    fn check_report(&self, engine: &Engine, longest: usize, context: &str) {
        let report = engine.recovery();
        let lost = self.log[longest..].iter().find_map(|m| Some((m.lsn?, m.returned_ms)));
        // Damage is reported line by line, and what it takes away may be older.
        let Some((lsn, returned_ms)) = lost.filter(|_| report.damaged.is_empty() && !self.has_rot) else { return };
        assert_eq!(report.kind, Start::Host, "{context}version {lsn} is lost: {report:?}");
        assert!(report.maybe_lost_after.is_some_and(|after| after < lsn), "{context}version {lsn} is lost: {report:?}");
        assert!(report.alive_until_ms <= returned_ms, "{context}version {lsn} returned at {returned_ms} and is lost: {report:?}");
    }

    /// The place in the log of the put that the entry of the other namespace states.
    fn aside(&self, engine: &Engine, context: &str) -> Option<usize> {
        let space = engine.namespaces().handle(ASIDE)?;
        let found = engine.get(space.key(ASIDE.as_bytes()), false).expect("the engine serves reads")?;
        let at = self.log.iter().position(|m| m.effect == Effect::PutAside && aside_value(m.number)[..] == found[..]);
        Some(at.unwrap_or_else(|| panic!("{context}{:.30} was never put aside, or was undone", String::from_utf8_lossy(&found))))
    }

    /// Whether the entry of the other namespace may miss, like [`History::may_miss`].
    fn aside_may_miss(&self, engine: &Engine, floor: usize) -> bool {
        let Some(at) = self.log[..floor].iter().rposition(Mutation::touches_aside) else { return true };
        let is_put = self.log[at].effect == Effect::PutAside;
        let is_superseded = self.log[floor..].iter().any(Mutation::touches_aside);
        !is_put || is_superseded || at < self.aside_excused || self.may_be_evicted(engine, self.log[at].lsn)
    }

    /// The place in the log of the put that a found value states.
    fn place_of(&self, engine: &Engine, key: u8, found: &[u8], context: &str) -> usize {
        let text = String::from_utf8_lossy(found);
        let number = text.split(':').nth(1).and_then(|n| n.parse().ok());
        let number: u64 = number.unwrap_or_else(|| panic!("{context}key {key} is torn: {text:.40}"));
        let len = found.len().saturating_sub(format!("{key}:{number}:").len());
        assert_eq!(found, value(key.into(), number, len), "{context}key {key} is torn");
        let is_put = |m: &Mutation| m.number == number && matches!(m.effect, Effect::Put { key: k, .. } if k == key);
        let at = self.log.iter().position(is_put);
        let at = at.unwrap_or_else(|| panic!("{context}key {key} has version {number}, which was never put, or was undone"));
        assert!(!self.log[at].has_expired(now_ms(engine)), "{context}key {key} at version {number} has expired");
        assert!(!self.seen_expired.contains_key(&number), "{context}key {key} at version {number} had been found expired");
        let ruled_out = self.ruled_out.get(&key).is_some_and(|before| at < *before);
        assert!(!ruled_out, "{context}key {key} at version {number} missed after a restart, and came back");
        at
    }

    /// Whether `key` may miss, if all mutations before `floor` have happened and each later one may
    /// have.
    fn may_miss(&self, engine: &Engine, key: u8, floor: usize) -> bool {
        let Some(at) = self.log[..floor].iter().rposition(|m| m.touches(key)) else { return true };
        let mutation = self.log[at];
        let is_put = matches!(mutation.effect, Effect::Put { .. });
        let is_superseded = || self.log[floor..].iter().any(|m| m.touches(key));
        let is_excused = || self.excused.get(&key).is_some_and(|before| at < *before);
        let has_expired = || mutation.has_expired(now_ms(engine).max(self.known_ms.unwrap_or(0)));
        !is_put || is_superseded() || has_expired() || is_excused() || self.may_be_evicted(engine, mutation.lsn)
    }

    /// Whether an entry of this LSN may have been evicted. The LSN of a put that never returned is
    /// not known.
    fn may_be_evicted(&self, engine: &Engine, lsn: Option<Lsn>) -> bool {
        let until = match self.evictions {
            Evictions::Never => return false,
            Evictions::Reclaimed => engine.stats().reclaimed,
            Evictions::Counted(before) => before.max(evicted_by(engine)),
        };
        lsn.is_none_or(|lsn| lsn <= until)
    }
}

/// An error if the machine has stopped.
fn check_alive(disk: &SimDisk) -> Result<(), Error> {
    if disk.has_stopped() { Err(Error::Closed) } else { Ok(()) }
}

/// Name of the other namespace, and its one key.
const ASIDE: &str = "aside";

/// The value of the key of the other namespace.
fn aside_value(number: u64) -> Vec<u8> {
    format!("aside:{number}:").into_bytes()
}

/// A value that states its key and its version, and is `len` bytes longer than that.
pub(super) fn value(key: u64, version: u64, len: usize) -> Vec<u8> {
    let mut out = format!("{key}:{version}:").into_bytes();
    out.resize(out.len() + len, (key ^ version) as u8);
    out
}

/// The newest version that `engine` may have evicted. Zero as long as everything has found room.
fn evicted_by(engine: &Engine) -> Lsn {
    let stats = engine.stats();
    if stats.evicted > 0 { stats.reclaimed } else { Lsn::ZERO }
}

/// Whether an engine has counted or reported damage for which entries may miss.
pub(super) fn has_lost(engine: &Engine) -> bool {
    let stats = engine.stats();
    let counted = stats.write_errors + stats.read_errors + stats.damaged > 0;
    counted || failure(engine).is_some() || !engine.recovery().damaged.is_empty()
}

/// Whether an engine has counted or reported anything wrong with its disk, apart from `replaced`
/// segments that got new files.
pub(super) fn has_noticed(engine: &Engine, replaced: u64) -> bool {
    let (report, stats) = (engine.recovery(), engine.stats());
    stats.disk_full > 0 || report.manifest_repaired || report.segments_renewed > replaced || has_lost(engine)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::engine::tests::store::{Store, small};

    /// Puts key 1 twice and key 2 once, between two tokens. Then `change` changes the store without
    /// the history, or the history without the store.
    ///
    /// Returns the messages with which the check of a restart and the check of a get of key 1 fail.
    fn failures(change: impl Fn(&Engine, &mut History)) -> [Option<String>; 2] {
        let store = Store::new(small());
        let mut history = History::new(Keys { count: 3, len: 1 }, 0, Evictions::Counted(Lsn::ZERO));
        let put = |key| Step::put(key, 10, Ack::Process);
        for step in [Step::Token(Ack::Process), put(1), put(2), put(1), Step::Token(Ack::Process)] {
            history.apply(store.engine(), &step, &store.disk).unwrap();
        }
        change(store.engine(), &mut history);
        let message = |check: &mut dyn FnMut()| {
            let failed = catch_unwind(AssertUnwindSafe(check)).err()?;
            Some(failed.downcast_ref::<String>().expect("a message with values").clone())
        };
        [
            message(&mut || history.check(store.engine(), history.returned, "restart")),
            message(&mut || history.clone().apply(store.engine(), &Step::Get(1), &store.disk).unwrap()),
        ]
    }

    fn put(engine: &Engine, bytes: &[u8]) {
        engine.put((&[1]).into(), bytes, &PutOptions::new()).unwrap();
    }

    #[test]
    fn an_undisturbed_store_passes() {
        assert_eq!(failures(|_, _| {}), [None, None]);
    }

    #[test]
    fn each_kind_of_wrong_answer_fails() {
        type Change = fn(&Engine, &mut History);
        let both: [(&str, Change); 5] = [
            ("is lost", |engine, _| assert!(engine.delete((&[1]).into(), &DeleteOptions::new()).is_ok())),
            ("is torn", |engine, _| put(engine, b"1:3:tornbytes!")),
            ("which was never put", |engine, _| put(engine, &value(1, 7, 10))),
            ("which was never put", |engine, _| put(engine, &value(1, 2, 10))),
            ("came back", |_, history| history.rule_out(&[1])),
        ];
        for (expected, change) in both {
            let messages = failures(change);
            assert!(messages.iter().all(|message| message.as_ref().is_some_and(|m| m.contains(expected))), "{expected}: {messages:?}");
        }
        let [restart, get] = failures(|engine, _| put(engine, &value(1, 1, 10)));
        assert!(restart.is_some_and(|m| m.contains("fits no prefix")) && get.is_some_and(|m| m.contains("is stale")));
        let tokens: [(&str, Change); 3] = [
            ("fits no prefix", |engine, _| drop(engine.set_resume_token("stream", &0u64.to_le_bytes(), None))),
            ("was never set", |engine, _| drop(engine.set_resume_token("stream", &1u64.to_le_bytes(), None))),
            ("fits no prefix", |engine, history| {
                // An excuse lets a token be forgotten, but not go back.
                history.excuse_all();
                drop(engine.set_resume_token("stream", &0u64.to_le_bytes(), None));
            }),
        ];
        for (expected, change) in tokens {
            let [restart, get] = failures(change);
            assert!(restart.clone().is_some_and(|m| m.contains(expected)) && get.is_none(), "{expected}: {restart:?}, {get:?}");
        }
    }

    #[test]
    fn an_excuse_allows_a_miss_and_no_older_value() {
        let lose = |engine: &Engine, history: &mut History| {
            history.excuse_all();
            engine.delete((&[1]).into(), &DeleteOptions::new()).unwrap();
        };
        assert_eq!(failures(lose), [None, None]);
        let go_back = |engine: &Engine, history: &mut History| {
            history.excuse_all();
            put(engine, &value(1, 1, 10));
        };
        assert!(failures(go_back).iter().all(Option::is_some));
    }

    #[test]
    fn excuses_end_where_the_history_is_cut() {
        let store = Store::new(small());
        let mut history = History::new(Keys { count: 3, len: 1 }, 0, Evictions::Never);
        // A put that never reached the store, and a fault.
        history.begin(Effect::Put { key: 1, expires_ms: None });
        history.excuse_all();
        assert_eq!(history.settle(store.engine(), "restart").doubted, [1]);
        history.apply(store.engine(), &Step::put(1, 10, Ack::Process), &store.disk).unwrap();
        store.engine().delete((&[1]).into(), &DeleteOptions::new()).unwrap();
        let lost = catch_unwind(AssertUnwindSafe(|| history.check(store.engine(), 1, "lost")));
        assert!(lost.is_err(), "the put took the place of the excused one");
    }
}
