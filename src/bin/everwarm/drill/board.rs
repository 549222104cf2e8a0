//! Shared memory between parent and child: the state of every key and the outcome of every request.
//! It survives a kill of the child.
//!
//! ```text
//! header | violations | workers | keys | requests
//! ```
//!
//! A key has five words: intent, its deadline, acknowledged mutation, its deadline, its LSN. A
//! request has one word: its outcome.
//!
//! Every access is sequentially consistent, for two reasons:
//!
//! - The successor of a killed process and its parent see the stores in the order in which the
//!   process made them.
//! - No store moves across the call to the cache that it announces or acknowledges.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::ensure;
use everwarm::Activity;
use rustix::time::{ClockId, clock_gettime};

use super::oracle::{Deadline, Fault, Mutation};
use super::outcome::Outcome;
use super::words::Words;

const LIFE: usize = 0;
const SPAWNED_NS: usize = 1;
const READY_NS: usize = 2;
const VERIFIED: usize = 3;
const COUNTS: usize = 4;
const ACTIVITIES: usize = 16;
const FAULTS_SEEN: usize = 24;
const RECLAIMED: usize = 25;
const SEGMENTS: usize = 26;
const FAULTS: usize = 32;
const FAULTS_KEPT: usize = 32;
const FAULT_WORDS: usize = 6;
const WORKERS: usize = FAULTS + FAULTS_KEPT * FAULT_WORDS;
/// A cache line, so that workers do not share one.
const WORKER_WORDS: usize = 8;
const KEY_WORDS: usize = 5;

/// Number of workers, keys and requests that the board has room for.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Shape {
    pub(crate) workers: usize,
    pub(crate) keys: usize,
    pub(crate) requests: usize,
}

impl Shape {
    fn keys_at(&self) -> usize {
        WORKERS + self.workers * WORKER_WORDS
    }

    fn requests_at(&self) -> usize {
        self.keys_at() + self.keys * KEY_WORDS
    }

    fn words(&self) -> usize {
        self.requests_at() + self.requests
    }
}

/// Counters over all lives of a child, besides faults. A value is the counter's place on the board.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    /// Misses that a reclaimed segment explains.
    Evicted = 4,
    /// Mutations in doubt that had happened.
    Landed = 5,
    /// Mutations in doubt that had not happened.
    Dropped = 6,
    /// Puts of values that are too large for the store.
    Refused = 7,
}

/// The operation that a worker is performing, as far as kills aim at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Other = 0,
    /// Putting the value after a get that missed.
    Fill = 1,
}

/// Names of the activities, in the order of their gauges on the board.
const ACTIVITY_NAMES: [&str; 5] = ["sync", "seal", "checkpoint", "reclaim", "recovery"];

fn gauge(activity: Activity) -> usize {
    match activity {
        Activity::Sync => 0,
        Activity::Seal => 1,
        Activity::Checkpoint => 2,
        Activity::Reclaim => 3,
        Activity::Recovery => 4,
    }
}

/// One broken promise.
pub(crate) struct Violation {
    pub(crate) fault: Fault,
    pub(crate) request: usize,
    pub(crate) key: u32,
    pub(crate) acked: Mutation,
    pub(crate) intent: Mutation,
    /// The mutation whose value was returned; `NEVER` for a miss, or for bytes that no put wrote.
    pub(crate) found: Mutation,
}

/// The shared memory of one drilled cache, mapped by the parent and by the child.
pub(crate) struct Board {
    words: Words,
    shape: Shape,
}

impl Board {
    pub(crate) fn create(path: &Path, shape: Shape) -> anyhow::Result<Self> {
        Ok(Self { words: Words::create(path, shape.words())?, shape })
    }

    pub(crate) fn open(path: &Path, shape: Shape) -> anyhow::Result<Self> {
        let words = Words::open(path)?;
        ensure!(words.all().len() == shape.words(), "{} belongs to another drill", path.display());
        Ok(Self { words, shape })
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.words.all()[at]
    }

    /// Resets the state of the previous process and sets time zero of the next one to now. Called
    /// by the parent while no child lives.
    pub(crate) fn begin_life(&self, life: usize) {
        for at in ACTIVITIES..ACTIVITIES + ACTIVITY_NAMES.len() {
            self.word(at).store(0, SeqCst);
        }
        for worker in 0..self.shape.workers {
            self.set_doing(worker, Doing::Other);
        }
        self.word(RECLAIMED).store(0, SeqCst);
        self.word(READY_NS).store(0, SeqCst);
        self.word(VERIFIED).store(0, SeqCst);
        self.word(LIFE).store(life as u64, SeqCst);
        self.word(SPAWNED_NS).store(monotonic_ns(), SeqCst);
    }

    pub(crate) fn life(&self) -> usize {
        self.word(LIFE).load(SeqCst) as usize
    }

    /// Nanoseconds since the current process was spawned.
    pub(crate) fn age_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.word(SPAWNED_NS).load(SeqCst))
    }

    /// Records that the cache is open and has `segments` segments.
    pub(crate) fn set_ready(&self, segments: u64) {
        self.word(SEGMENTS).store(segments, SeqCst);
        self.word(READY_NS).store(self.age_ns().max(1), SeqCst);
    }

    /// Milliseconds from the spawn of the current process until its cache was open; none before.
    pub(crate) fn ready_ms(&self) -> Option<f64> {
        match self.word(READY_NS).load(SeqCst) {
            0 => None,
            ns => Some(ns as f64 / 1e6),
        }
    }

    pub(crate) fn count(&self, counter: Count) {
        self.word(COUNTS + counter as usize).fetch_add(1, SeqCst);
    }

    pub(crate) fn counted(&self, counter: Count) -> u64 {
        self.word(COUNTS + counter as usize).load(SeqCst)
    }

    pub(crate) fn faults(&self, fault: Fault) -> u64 {
        self.word(COUNTS + fault as usize).load(SeqCst)
    }

    /// Counts a violation, and keeps its details if it is among the first [`FAULTS_KEPT`].
    pub(crate) fn report(&self, violation: &Violation) {
        self.word(COUNTS + violation.fault as usize).fetch_add(1, SeqCst);
        let slot = self.word(FAULTS_SEEN).fetch_add(1, SeqCst) as usize;
        if slot < FAULTS_KEPT {
            let Violation { fault, request, key, acked, intent, found } = violation;
            let fields = [*fault as u64, *request as u64, u64::from(*key), acked.code(), intent.code(), found.code()];
            for (at, field) in fields.into_iter().enumerate() {
                self.word(FAULTS + slot * FAULT_WORDS + at).store(field, SeqCst);
            }
        }
    }

    /// The details of the first violations, at most [`FAULTS_KEPT`].
    pub(crate) fn violations(&self) -> Vec<Violation> {
        let kept = (self.word(FAULTS_SEEN).load(SeqCst) as usize).min(FAULTS_KEPT);
        let decode = |slot: usize| {
            let field = |at: usize| self.word(FAULTS + slot * FAULT_WORDS + at).load(SeqCst);
            let mutation = |at: usize| Mutation::from_code(field(at));
            Violation {
                fault: Fault::ALL[field(0) as usize % Fault::ALL.len()],
                request: field(1) as usize,
                key: field(2) as u32,
                acked: mutation(3),
                intent: mutation(4),
                found: mutation(5),
            }
        };
        (0..kept).map(decode).collect()
    }

    /// Records that an activity of the cache begins or ends.
    pub(crate) fn observe(&self, activity: Activity, begins: bool) {
        let gauge = self.word(ACTIVITIES + gauge(activity));
        if begins {
            if activity == Activity::Reclaim {
                self.word(RECLAIMED).fetch_add(1, SeqCst);
            }
            gauge.fetch_add(1, SeqCst);
        } else {
            gauge.fetch_sub(1, SeqCst);
        }
    }

    /// Segments that the current process has reclaimed, divided by the number of segments.
    pub(crate) fn reclaim_cycles(&self) -> f64 {
        self.word(RECLAIMED).load(SeqCst) as f64 / self.word(SEGMENTS).load(SeqCst).max(1) as f64
    }

    /// Names of the activities that the child is performing, or was performing when it was killed.
    pub(crate) fn in_progress(&self) -> Vec<&'static str> {
        let filling = (0..self.shape.workers).any(|worker| self.worker(worker, 1).load(SeqCst) == Doing::Fill as u64);
        let live = |(at, name): (usize, &'static str)| (self.word(ACTIVITIES + at).load(SeqCst) > 0).then_some(name);
        filling.then_some("fill").into_iter().chain(ACTIVITY_NAMES.into_iter().enumerate().filter_map(live)).collect()
    }

    fn worker(&self, worker: usize, at: usize) -> &AtomicU64 {
        self.word(WORKERS + worker * WORKER_WORDS + at)
    }

    /// The first request that the worker has not begun.
    pub(crate) fn cursor(&self, worker: usize) -> usize {
        self.worker(worker, 0).load(SeqCst) as usize
    }

    pub(crate) fn set_cursor(&self, worker: usize, request: usize) {
        self.worker(worker, 0).store(request as u64, SeqCst);
    }

    pub(crate) fn set_doing(&self, worker: usize, doing: Doing) {
        self.worker(worker, 1).store(doing as u64, SeqCst);
    }

    /// The first request that some worker has not begun.
    pub(crate) fn progress(&self) -> usize {
        (0..self.shape.workers).map(|worker| self.cursor(worker)).min().unwrap_or(0)
    }

    pub(crate) fn add_verified(&self) {
        self.word(VERIFIED).fetch_add(1, SeqCst);
    }

    pub(crate) fn verified(&self) -> usize {
        self.word(VERIFIED).load(SeqCst) as usize
    }

    pub(crate) fn key(&self, key: u32) -> KeyState<'_> {
        let start = self.shape.keys_at() + key as usize * KEY_WORDS;
        KeyState(&self.words.all()[start..start + KEY_WORDS])
    }

    pub(crate) fn set_outcome(&self, request: usize, outcome: Outcome) {
        self.word(self.shape.requests_at() + request).store(outcome.code(), SeqCst);
    }

    /// The outcome of a request; none if the request has not ended.
    pub(crate) fn outcome(&self, request: usize) -> Option<Outcome> {
        Outcome::from_code(self.word(self.shape.requests_at() + request).load(SeqCst))
    }
}

/// The acknowledged and the intended mutation of a key. Only the worker that owns the key stores
/// here.
pub(crate) struct KeyState<'a>(&'a [AtomicU64]);

impl KeyState<'_> {
    pub(crate) fn intent(&self) -> Mutation {
        Mutation::from_code(self.0[0].load(SeqCst))
    }

    pub(crate) fn intent_deadline(&self) -> Deadline {
        Deadline::from_code(self.0[1].load(SeqCst))
    }

    pub(crate) fn acked(&self) -> Mutation {
        Mutation::from_code(self.0[2].load(SeqCst))
    }

    pub(crate) fn acked_deadline(&self) -> Deadline {
        Deadline::from_code(self.0[3].load(SeqCst))
    }

    pub(crate) fn acked_lsn(&self) -> u64 {
        self.0[4].load(SeqCst)
    }

    /// Announces a mutation; called before it begins. The deadline is stored first, because it is
    /// valid only once the intent names its mutation.
    pub(crate) fn intend(&self, mutation: Mutation, deadline: Deadline) {
        self.0[1].store(deadline.code(), SeqCst);
        self.0[0].store(mutation.code(), SeqCst);
    }

    /// Acknowledges the intended mutation; called after it returned or was found to have happened.
    ///
    /// The mutation is stored last. A kill before that store leaves the older acknowledged mutation
    /// with the deadline and the LSN of its successor. This does no harm: the older mutation can no
    /// longer be seen, so they are not compared.
    pub(crate) fn acknowledge(&self, deadline: Deadline, lsn: u64) {
        self.0[3].store(deadline.code(), SeqCst);
        self.0[4].store(lsn, SeqCst);
        self.0[2].store(self.intent().code(), SeqCst);
    }

    /// Withdraws the intended mutation; called after it was refused or was found not to have
    /// happened.
    pub(crate) fn withdraw(&self) {
        self.0[0].store(self.acked().code(), SeqCst);
    }
}

/// Nanoseconds of the monotonic clock, which all processes of the host share.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
