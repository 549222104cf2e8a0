//! One thread of the child. It owns the keys whose number modulo the number of workers is its
//! index: it alone gets, mutates and judges them, so that the order of their mutations is known.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use everwarm::{Cache, Error, PutOptions, Tier};

use super::board::{Board, Count, Doing, Violation};
use super::oracle::{Deadline, Fault, Known, Mutation, Seen, Verdict, judge};
use super::outcome::{Answer, Outcome};
use super::plan::Plan;
use crate::workload::{Op, Request, payload};

/// The schedule of the requests. It lets victim and twin see the same expiries, and keeps the
/// threads at about the same request.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) started: Instant,
    /// The request that was due at `started`.
    pub(crate) first: usize,
    /// Requests a second; 0 for no limit.
    pub(crate) rate: u64,
}

impl Pace {
    /// Requests between two looks at the clock.
    const BATCH: usize = 64;
    /// Shortest sleep; a request that is less early is not delayed.
    const NAP_MIN: Duration = Duration::from_millis(1);

    fn wait_for(&self, request: usize) {
        if self.rate == 0 || !request.is_multiple_of(Self::BATCH) {
            return;
        }
        let due = Duration::from_secs_f64(request.saturating_sub(self.first) as f64 / self.rate as f64);
        let ahead = due.saturating_sub(self.started.elapsed());
        if ahead >= Self::NAP_MIN {
            std::thread::sleep(ahead);
        }
    }
}

pub(crate) struct Worker<'a> {
    index: usize,
    cache: &'a Cache,
    /// A namespace that only this worker uses, for some of its keys.
    namespace: Cache,
    plan: &'a Plan,
    board: &'a Board,
    pace: Pace,
    /// The cache's `reclaimed` watermark when it was last read; it only grows.
    reclaimed: u64,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(index: usize, cache: &'a Cache, plan: &'a Plan, board: &'a Board, pace: Pace) -> anyhow::Result<Self> {
        let namespace = cache.namespace(&format!("worker-{index}"))?;
        Ok(Self { index, cache, namespace, plan, board, pace, reclaimed: 0, key: Vec::new(), value: Vec::new() })
    }

    /// Serves the requests that no earlier life began, then verifies every key that this worker
    /// owns.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        let life = self.board.life();
        for at in self.board.cursor(self.index)..self.plan.requests() {
            self.pace.wait_for(at);
            let request = self.plan.request(at);
            if self.owns(request.key) {
                self.board.set_cursor(self.index, at + 1);
                let answer = self.serve(at, request)?;
                self.board.set_outcome(at, Outcome { answer, life, age_us: self.board.age_ns() / 1_000 });
            }
        }
        self.board.set_cursor(self.index, self.plan.requests());
        self.verify()
    }

    fn owns(&self, key: u32) -> bool {
        key as usize % self.board.shape().workers == self.index
    }

    /// About one key in this many is in the namespace of its worker.
    const NAMESPACED_SHARE: u32 = 61;

    fn is_namespaced(key: u32) -> bool {
        (key / 7).is_multiple_of(Self::NAMESPACED_SHARE)
    }

    /// The namespace of the key.
    fn cache_of(&self, key: u32) -> &Cache {
        if Self::is_namespaced(key) { &self.namespace } else { self.cache }
    }

    fn verify(&mut self) -> anyhow::Result<()> {
        for key in 0..self.plan.keys() as u32 {
            if self.owns(key) {
                self.look(self.plan.requests(), key)?;
                self.board.add_verified();
            }
        }
        Ok(())
    }

    fn serve(&mut self, at: usize, request: Request) -> anyhow::Result<Answer> {
        match request.op {
            Op::Get => {
                let found = self.look(at, request.key)?;
                if found.is_none() {
                    self.put(at, request, Doing::Fill)?;
                }
                return Ok(found.map_or(Answer::Missed, Answer::Hit));
            }
            Op::Put => self.put(at, request, Doing::Other)?,
            Op::Delete => self.delete(at, request.key)?,
            Op::Drop => self.drop_namespace(at)?,
        }
        Ok(Answer::Mutated)
    }

    fn put(&mut self, at: usize, request: Request, doing: Doing) -> anyhow::Result<()> {
        self.settle_doubt(at, request.key)?;
        let mutation = Mutation::put(at);
        payload::write_key(&mut self.key, request.key, self.plan.key_len(request.key));
        payload::write_value(&mut self.value, request.key, mutation.code(), request.value_len);
        let mut options = PutOptions::new();
        if request.ttl_s > 0 {
            options = options.ttl(Duration::from_secs(request.ttl_s));
        }
        let state = self.board.key(request.key);
        let began_ms = wall_ms();
        let deadline = |returned_ms| Deadline::of_put(request.ttl_s * 1_000, began_ms, returned_ms);
        state.intend(mutation, deadline(None));
        self.board.set_doing(self.index, doing);
        let put = self.cache_of(request.key).put_with(&self.key, &self.value, &options);
        self.board.set_doing(self.index, Doing::Other);
        match put {
            Ok(Some(lsn)) => state.acknowledge(deadline(Some(wall_ms())), lsn.0),
            Ok(None) => bail!("a put without a condition reported that its condition did not hold"),
            Err(Error::ValueTooLarge { .. }) => {
                state.withdraw();
                self.board.count(Count::Refused);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn delete(&mut self, at: usize, key: u32) -> anyhow::Result<()> {
        self.settle_doubt(at, key)?;
        payload::write_key(&mut self.key, key, self.plan.key_len(key));
        let state = self.board.key(key);
        state.intend(Mutation::delete(at), Deadline::NONE);
        let lsn = self.cache_of(key).delete(&self.key)?;
        state.acknowledge(Deadline::NONE, lsn.0);
        Ok(())
    }

    /// Deletes every key of this worker's namespace with one call.
    fn drop_namespace(&mut self, at: usize) -> anyhow::Result<()> {
        let keys: Vec<u32> = (0..self.plan.keys() as u32).filter(|key| self.owns(*key) && Self::is_namespaced(*key)).collect();
        for key in &keys {
            self.settle_doubt(at, *key)?;
            self.board.key(*key).intend(Mutation::delete(at), Deadline::NONE);
        }
        let lsn = self.namespace.clear()?;
        for key in &keys {
            self.board.key(*key).acknowledge(Deadline::NONE, lsn.0);
        }
        Ok(())
    }

    /// Settles a mutation that a kill left in doubt, by a get. The board has room for one doubt of
    /// each key, so this precedes the next mutation.
    fn settle_doubt(&mut self, at: usize, key: u32) -> anyhow::Result<()> {
        let state = self.board.key(key);
        if state.intent() != state.acked() {
            self.look(at, key)?;
        }
        Ok(())
    }

    /// Gets a key and judges the answer. Returns the tier of a hit.
    fn look(&mut self, at: usize, key: u32) -> anyhow::Result<Option<Tier>> {
        payload::write_key(&mut self.key, key, self.plan.key_len(key));
        let began_ms = wall_ms();
        let found = self.cache_of(key).get(&self.key)?;
        let returned_ms = wall_ms();
        let seen = match &found {
            None => Seen::Miss,
            Some(value) => match payload::verify_value(value, key).map(Mutation::from_code) {
                Some(mutation) if mutation.is_put() => Seen::Value { mutation, lsn: value.version().0 },
                _ => Seen::Garbage,
            },
        };
        let state = self.board.key(key);
        let mut known = Known {
            acked: state.acked(),
            acked_life: state.acked_deadline().life(began_ms, returned_ms),
            acked_lsn: state.acked_lsn(),
            reclaimed: state.acked_lsn() <= self.reclaimed,
            intent: state.intent(),
            intent_life: state.intent_deadline().life(began_ms, returned_ms),
        };
        let mut verdict = judge(&known, seen);
        if verdict == Verdict::Broken(Fault::Lost) {
            self.reclaimed = self.cache.stats().reclaimed.0;
            known.reclaimed = known.acked_lsn <= self.reclaimed;
            verdict = judge(&known, seen);
        }
        self.conclude(at, key, &known, seen, verdict);
        Ok(found.map(|value| value.tier()))
    }

    /// Records a verdict on the board, and settles the doubt about the key.
    fn conclude(&self, request: usize, key: u32, known: &Known, seen: Seen, verdict: Verdict) {
        let state = self.board.key(key);
        let (found, lsn) = match seen {
            Seen::Value { mutation, lsn } => (mutation, lsn),
            Seen::Miss | Seen::Garbage => (Mutation::NEVER, 0),
        };
        if verdict == Verdict::Evicted {
            self.board.count(Count::Evicted);
        }
        match verdict {
            Verdict::Landed => {
                state.acknowledge(state.intent_deadline(), lsn);
                self.board.count(Count::Landed);
            }
            Verdict::Acked | Verdict::Evicted if known.intent != known.acked => {
                state.withdraw();
                self.board.count(Count::Dropped);
            }
            Verdict::Acked | Verdict::Evicted => {}
            Verdict::Broken(fault) => {
                let Known { acked, intent, .. } = *known;
                self.board.report(&Violation { fault, request, key, acked, intent, found });
            }
        }
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
