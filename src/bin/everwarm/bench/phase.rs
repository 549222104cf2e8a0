//! One phase of a benchmark: callers, each on its own thread, that call the cache until the work is
//! done or the time is up.

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use everwarm::{Ack, Cache, Tier, Value};
use futures::StreamExt;
use futures::executor::block_on;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use rand::Rng;
use rand::rngs::SmallRng;
use serde::Serialize;

use super::background::{Background, Done, KINDS};
use super::keys::{self, Keys, Order};
use super::meter::{self, Cost, Meter};
use super::versions::Versions;
use crate::workload::{Op, VALUE_LEN_MAX, Workload, payload};

/// Most keys of one scan.
const SCAN: u32 = 100;
/// Every byte is verified in one of this many answers. In the others only the front is, which
/// states key, length and version.
const VERIFIED: u64 = 16;
/// Timer slack of callers in nanoseconds: how much longer than asked the kernel may let a sleep
/// last. The kernel's default is 50,000.
const SLACK: NonZeroU64 = NonZeroU64::MIN;
/// Interval between samples of the number of calls.
const SAMPLE: Duration = Duration::from_millis(100);
/// Number of samples of memory and descriptors in a phase of given duration.
const GAUGES: u32 = 20;

/// Shares of the operations, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mix {
    pub(crate) get: u32,
    pub(crate) put: u32,
    /// Puts of new keys.
    pub(crate) insert: u32,
    /// A get followed by a put of the same key.
    pub(crate) modify: u32,
    /// A multi-key get of up to [`SCAN`] adjacent keys.
    pub(crate) scan: u32,
}

/// The calls that the callers make.
#[derive(Clone, Copy)]
pub(crate) enum Work<'a> {
    /// One put of each key.
    PutEach,
    /// One delete of each key.
    DeleteEach,
    /// One get of each key.
    GetEach,
    /// Operations drawn from the mix, on keys drawn from the order.
    Drawn(Mix, &'a Order),
    /// Multi-key gets of this many keys.
    Batches(u32, &'a Order),
    /// The requests of a workload in sequence; a get that misses is followed by a put.
    Served(&'a Workload),
    /// No calls.
    Nothing,
}

/// One phase: the work to do and when it ends.
#[derive(Clone, Copy)]
pub(crate) struct Phase<'a> {
    pub(crate) name: &'static str,
    /// Distinguishes the phases of a benchmark, so that each draws other keys.
    pub(crate) number: u64,
    pub(crate) work: Work<'a>,
    /// Duration of the phase; none for a phase that ends when its work is done.
    pub(crate) time: Option<Duration>,
    /// Whether the phase ends only when flash holds all entries.
    pub(crate) persist: bool,
}

/// The cache, the keys and the settings that all phases of a benchmark share.
pub(crate) struct Bench<'a> {
    pub(crate) cache: &'a Cache,
    pub(crate) keys: &'a Keys,
    pub(crate) versions: &'a Versions,
    /// Number of keys in use: those of the fill and those that mixes have added.
    pub(crate) entries: &'a AtomicU32,
    /// Upper bound of `entries`.
    pub(crate) capacity: u32,
    pub(crate) callers: usize,
    /// Concurrent calls of each caller, in async tasks; 0 for one blocking call at a time.
    pub(crate) tasks: usize,
    /// Calls a second of all callers together; 0 for no limit.
    pub(crate) rate: u64,
    pub(crate) seed: u64,
    pub(crate) meter: &'a Meter,
    pub(crate) background: &'a Background,
    pub(crate) bar: &'a ProgressBar,
}

/// The measurements of a phase.
pub(crate) struct Outcome {
    pub(crate) calls: CallStats,
    /// Cost from the beginning of the phase until its end, including the wait for flash if the
    /// phase persists.
    pub(crate) cost: Cost,
    /// Time until the last call returned, without the wait for flash.
    pub(crate) accepted: Duration,
    /// Samples: seconds since the beginning, and calls that had returned by then.
    pub(crate) series: Vec<(f64, u64)>,
    pub(crate) gauges: Vec<Gauge>,
    /// Syncs of the log during the phase.
    pub(crate) syncs: u64,
    /// Checkpoints and reclaims that ended during the phase.
    pub(crate) background: [Done; 2],
}

/// A sample of the memory and the descriptors of the process.
#[derive(Serialize)]
pub(crate) struct Gauge {
    pub(crate) seconds: f64,
    pub(crate) memory_bytes: u64,
    pub(crate) resident_bytes: Option<u64>,
    descriptors: Option<usize>,
}

/// Latencies and counts of calls: of one caller, or of all.
pub(crate) struct CallStats {
    /// Nanoseconds of each reading call, from its intended start.
    pub(crate) reads: Histogram<u64>,
    /// Nanoseconds of each writing call, from its intended start.
    pub(crate) writes: Histogram<u64>,
    /// Nanoseconds of each call, by the background work that overlapped it (see [`KINDS`]). Empty
    /// unless a rate is given.
    pub(crate) beside: [Histogram<u64>; KINDS.len()],
    /// Keys that were found, by tier: memory, buffer, flash.
    pub(crate) hits: [u64; 3],
    pub(crate) misses: u64,
    /// Answers that the cache must not give.
    pub(crate) wrong: u64,
    /// Bytes of keys and values that were put.
    pub(crate) bytes_put: u64,
}

impl CallStats {
    fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("the bounds are in order");
        let beside = [(); KINDS.len()].map(|()| histogram());
        Self { reads: histogram(), writes: histogram(), beside, hits: [0; 3], misses: 0, wrong: 0, bytes_put: 0 }
    }

    fn add(mut self, other: &Self) -> Self {
        self.reads.add(&other.reads).expect("the same bounds");
        self.writes.add(&other.writes).expect("the same bounds");
        self.beside.iter_mut().zip(&other.beside).for_each(|(sum, other)| sum.add(other).expect("the same bounds"));
        self.hits.iter_mut().zip(other.hits).for_each(|(sum, hits)| *sum += hits);
        self.misses += other.misses;
        self.wrong += other.wrong;
        self.bytes_put += other.bytes_put;
        self
    }

    /// Number of calls, reading and writing.
    pub(crate) fn calls(&self) -> u64 {
        self.reads.len() + self.writes.len()
    }
}

impl Bench<'_> {
    pub(crate) fn run(&self, phase: &Phase<'_>) -> anyhow::Result<Outcome> {
        self.bar.set_message(phase.name);
        self.bar.set_length(self.length(phase));
        self.bar.set_position(0);
        let done: Vec<AtomicU64> = (0..self.callers).map(|_| AtomicU64::new(0)).collect();
        let (over, syncs, background, begun) =
            (AtomicBool::new(false), self.cache.stats().syncs, self.background.done(), self.meter.read());
        let start = Instant::now();
        let (results, (series, gauges)) = std::thread::scope(|scope| {
            let callers: Vec<_> = done
                .iter()
                .enumerate()
                .map(|(number, done)| scope.spawn(move || Caller::new(self, phase, number, start, done).work(phase.work)))
                .collect();
            let watch = scope.spawn(|| self.watch(start, phase, &done, &over));
            let results: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
            // Before a panic of a caller is resumed: the scope waits for the watching thread.
            over.store(true, Relaxed);
            watch.thread().unpark();
            let results = results.into_iter().map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (results.collect::<Vec<anyhow::Result<CallStats>>>(), watch.join().unwrap_or_default())
        });
        let accepted = start.elapsed();
        if phase.persist {
            self.cache.persist(Ack::Host)?;
        }
        let cost = begun.cost(&self.meter.read());
        let syncs = self.cache.stats().syncs - syncs;
        let [checkpoint, reclaim] = self.background.done();
        let background = [checkpoint.since(background[0]), reclaim.since(background[1])];
        let calls = results.into_iter().try_fold(CallStats::new(), |sum, stats| anyhow::Ok(sum.add(&stats?)))?;
        Ok(Outcome { calls, cost, accepted, series, gauges, syncs, background })
    }

    /// Length of the progress bar: milliseconds of a timed phase, calls of any other.
    fn length(&self, phase: &Phase<'_>) -> u64 {
        match (phase.time, phase.work) {
            (Some(time), _) => time.as_millis() as u64,
            (None, Work::Served(workload)) => workload.requests.len() as u64,
            (None, _) => self.keys.entries.into(),
        }
    }

    /// Samples the phase until `over` is set.
    fn watch(&self, start: Instant, phase: &Phase<'_>, done: &[AtomicU64], over: &AtomicBool) -> (Vec<(f64, u64)>, Vec<Gauge>) {
        let (mut series, mut gauges, time) = (vec![(0.0, 0)], Vec::new(), phase.time);
        // In an idle phase this thread wakes only to sample memory, so that the process stays idle.
        let sample = time.filter(|_| matches!(phase.work, Work::Nothing)).map_or(SAMPLE, |time| time / GAUGES);
        while !over.load(Relaxed) {
            std::thread::park_timeout(sample);
            let (passed, calls) = (start.elapsed(), done.iter().map(|calls| calls.load(Relaxed)).sum());
            series.push((passed.as_secs_f64(), calls));
            self.bar.set_position(if time.is_some() { passed.as_millis() as u64 } else { calls });
            if time.is_some_and(|time| passed >= time / GAUGES * (gauges.len() as u32 + 1)) {
                let (memory_bytes, resident_bytes) = (self.cache.stats().memory_bytes, meter::resident());
                gauges.push(Gauge { seconds: passed.as_secs_f64(), memory_bytes, resident_bytes, descriptors: meter::descriptors() });
            }
        }
        (series, gauges)
    }
}

/// Whether a call reads or writes.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Write,
}

/// One of the callers. It alone writes the keys whose number modulo the number of callers is its
/// own number.
struct Caller<'a> {
    bench: &'a Bench<'a>,
    number: usize,
    start: Instant,
    end: Option<Instant>,
    done: &'a AtomicU64,
    random: SmallRng,
    key: Vec<u8>,
    value: Vec<u8>,
    stats: CallStats,
}

impl<'a> Caller<'a> {
    fn new(bench: &'a Bench<'a>, phase: &Phase<'_>, number: usize, start: Instant, done: &'a AtomicU64) -> Self {
        // Each phase draws other keys: those of its warm-up would already be in DRAM.
        let random = keys::random(bench.seed, phase.number, number);
        Self {
            bench,
            number,
            start,
            end: phase.time.map(|time| start + time),
            done,
            random,
            key: Vec::new(),
            value: Vec::new(),
            stats: CallStats::new(),
        }
    }

    fn work(mut self, work: Work<'_>) -> anyhow::Result<CallStats> {
        if self.bench.rate > 0 {
            rustix::thread::set_current_timer_slack(Some(SLACK))?;
        }
        match work {
            Work::PutEach if self.bench.tasks > 0 => return self.put_in_tasks(),
            Work::PutEach => self.each_own(|caller, key| caller.put(key))?,
            Work::DeleteEach => self.each_own(|caller, key| caller.delete(key))?,
            Work::GetEach => self.each_own(|caller, key| caller.get(key).map(drop))?,
            Work::Drawn(_, order) if self.bench.tasks > 0 => return self.get_in_tasks(order),
            Work::Drawn(mix, order) => {
                while self.goes_on() {
                    self.draw(mix, order)?;
                }
            }
            Work::Batches(len, order) => {
                while self.goes_on() {
                    let entries = self.entries();
                    let keys: Vec<u32> = (0..len).map(|_| order.draw(&mut self.random, entries)).collect();
                    self.get_many(&keys)?;
                }
            }
            Work::Nothing => self.end.into_iter().for_each(|end| std::thread::sleep(end.saturating_duration_since(Instant::now()))),
            Work::Served(workload) => {
                let (callers, number) = (self.bench.callers, self.number);
                for request in workload.requests.iter().filter(|request| request.key as usize % callers == number) {
                    match request.op {
                        Op::Get if self.get(request.key)? => {}
                        Op::Get | Op::Put => self.put_len(request.key, request.value_len.min(VALUE_LEN_MAX))?,
                        Op::Delete | Op::Drop => self.delete(request.key)?,
                    }
                }
            }
        }
        Ok(self.stats)
    }

    /// Whether the next call is due before the phase ends.
    fn goes_on(&self) -> bool {
        self.end.is_none_or(|end| self.intended().unwrap_or_else(Instant::now) < end)
    }

    /// When the next call is due; none if there is no rate.
    fn intended(&self) -> Option<Instant> {
        let callers = self.bench.callers as u64;
        let between = (callers * 1_000_000_000).checked_div(self.bench.rate)?;
        Some(self.start + Duration::from_nanos(self.stats.calls() * between + self.number as u64 * between / callers))
    }

    fn entries(&self) -> u32 {
        self.bench.entries.load(Relaxed)
    }

    /// Makes one call for each key that this caller writes.
    fn each_own(&mut self, mut call: impl FnMut(&mut Self, u32) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for key in (self.number as u32..self.bench.keys.entries).step_by(self.bench.callers) {
            if !self.goes_on() {
                break;
            }
            call(self, key)?;
        }
        Ok(())
    }

    /// Draws one operation from the mix and performs it.
    fn draw(&mut self, mix: Mix, order: &Order) -> anyhow::Result<()> {
        let entries = self.entries();
        let key = order.draw(&mut self.random, entries);
        let mut share = self.random.random_range(0..mix.get + mix.put + mix.insert + mix.modify + mix.scan);
        let mut is = |part: u32| {
            let is = share < part;
            share = share.wrapping_sub(part);
            is
        };
        if is(mix.get) {
            self.get(key).map(drop)
        } else if is(mix.put) {
            self.put(self.own(key, entries))
        } else if is(mix.insert) {
            let next = self.bench.entries.fetch_update(Relaxed, Relaxed, |n| (n < self.bench.capacity).then_some(n + 1));
            // At the capacity this overwrites a key of the fill, since only those have one writer.
            let filled = self.bench.keys.entries;
            self.put(next.unwrap_or_else(|_| self.own(key % filled, filled)))
        } else if is(mix.modify) {
            let key = self.own(key, entries);
            self.get(key)?;
            self.put(key)
        } else {
            let len = self.random.random_range(1..=SCAN);
            let keys: Vec<u32> = (key..entries.min(key + len)).collect();
            self.get_many(&keys)
        }
    }

    /// A key near `key` that this caller writes.
    fn own(&self, key: u32, entries: u32) -> u32 {
        let callers = self.bench.callers as u32;
        let own = key - key % callers + self.number as u32;
        if own < entries { own } else { own.saturating_sub(callers) }
    }

    /// Waits until the next call is due. Returns its intended start; without a rate, now.
    fn begin(&self) -> Instant {
        let Some(intended) = self.intended() else { return Instant::now() };
        std::thread::sleep(intended.saturating_duration_since(Instant::now()));
        intended
    }

    /// Records the latency of a call that was due at `began` and returns now.
    fn end(&mut self, kind: Kind, began: Instant) {
        let took = began.elapsed().as_nanos() as u64;
        let histogram = if kind == Kind::Read { &mut self.stats.reads } else { &mut self.stats.writes };
        histogram.saturating_record(took);
        if self.bench.rate > 0 {
            let beside = self.bench.background.beside(began);
            self.stats.beside.iter_mut().zip(beside).filter(|(_, is)| *is).for_each(|(histogram, _)| histogram.saturating_record(took));
        }
        self.done.store(self.stats.calls(), Relaxed);
    }

    fn put(&mut self, key: u32) -> anyhow::Result<()> {
        self.put_len(key, self.bench.keys.value_len(key))
    }

    fn put_len(&mut self, key: u32, len: usize) -> anyhow::Result<()> {
        let Bench { cache, keys, versions, .. } = self.bench;
        let version = versions.begin(key, false);
        payload::write_key(&mut self.key, key, keys.key_len(key));
        payload::write_value(&mut self.value, key, version.into(), len);
        let began = self.begin();
        cache.put(&self.key, &self.value)?;
        self.end(Kind::Write, began);
        versions.returned(key, version);
        self.stats.bytes_put += (self.key.len() + self.value.len()) as u64;
        Ok(())
    }

    fn delete(&mut self, key: u32) -> anyhow::Result<()> {
        let Bench { cache, keys, versions, .. } = self.bench;
        let version = versions.begin(key, true);
        payload::write_key(&mut self.key, key, keys.key_len(key));
        let began = self.begin();
        cache.delete(&self.key)?;
        self.end(Kind::Write, began);
        versions.returned(key, version);
        Ok(())
    }

    /// Gets a key and checks the answer. Returns whether there is a value.
    fn get(&mut self, key: u32) -> anyhow::Result<bool> {
        let Bench { cache, keys, versions, .. } = self.bench;
        payload::write_key(&mut self.key, key, keys.key_len(key));
        let began = self.begin();
        let oldest = versions.oldest(key);
        let found = cache.get(&self.key)?;
        self.end(Kind::Read, began);
        self.check(key, oldest, found.as_ref());
        Ok(found.is_some())
    }

    /// Gets drawn keys in concurrent tasks on this thread until the phase ends.
    fn get_in_tasks(self, order: &Order) -> anyhow::Result<CallStats> {
        let Bench { cache, keys, versions, .. } = *self.bench;
        let cache = cache.for_tasks();
        self.in_tasks(async |caller| {
            let mut bytes = Vec::new();
            while caller.borrow().goes_on() {
                let entries = caller.borrow().entries();
                let key = order.draw(&mut caller.borrow_mut().random, entries);
                let oldest = versions.oldest(key);
                payload::write_key(&mut bytes, key, keys.key_len(key));
                let began = Instant::now();
                let found = cache.get(&bytes).await?;
                let mut caller = caller.borrow_mut();
                caller.end(Kind::Read, began);
                caller.check(key, oldest, found.as_ref());
            }
            Ok(())
        })
    }

    /// Puts each of this caller's keys once, in concurrent tasks on this thread.
    fn put_in_tasks(self) -> anyhow::Result<CallStats> {
        let Bench { cache, keys, versions, callers, .. } = *self.bench;
        let (cache, own) = (cache.for_tasks(), RefCell::new((self.number as u32..keys.entries).step_by(callers)));
        let next_own = || own.borrow_mut().next();
        self.in_tasks(async |caller| {
            let (mut bytes, mut value) = (Vec::new(), Vec::new());
            while let Some(key) = next_own() {
                let version = versions.begin(key, false);
                payload::write_key(&mut bytes, key, keys.key_len(key));
                payload::write_value(&mut value, key, version.into(), keys.value_len(key));
                let began = Instant::now();
                cache.put(&bytes, &value).await?;
                versions.returned(key, version);
                let mut caller = caller.borrow_mut();
                caller.end(Kind::Write, began);
                caller.stats.bytes_put += (bytes.len() + value.len()) as u64;
            }
            Ok(())
        })
    }

    /// Runs [`Bench::tasks`] instances of `task` concurrently on this thread, until all have ended.
    fn in_tasks(self, task: impl AsyncFn(&RefCell<Self>) -> anyhow::Result<()>) -> anyhow::Result<CallStats> {
        let (tasks, caller) = (self.bench.tasks, RefCell::new(self));
        let mut all: FuturesUnordered<_> = (0..tasks).map(|_| task(&caller)).collect();
        block_on(async {
            while let Some(done) = all.next().await {
                done?;
            }
            anyhow::Ok(())
        })?;
        drop(all);
        Ok(caller.into_inner().stats)
    }

    fn get_many(&mut self, keys: &[u32]) -> anyhow::Result<()> {
        let Bench { cache, keys: all, versions, .. } = self.bench;
        let bytes: Vec<Vec<u8>> = keys
            .iter()
            .map(|key| {
                payload::write_key(&mut self.key, *key, all.key_len(*key));
                self.key.clone()
            })
            .collect();
        let began = self.begin();
        let oldest: Vec<u32> = keys.iter().map(|key| versions.oldest(*key)).collect();
        let found = cache.get_many(&bytes)?;
        self.end(Kind::Read, began);
        keys.iter().zip(oldest).zip(&found).for_each(|((key, oldest), found)| self.check(*key, oldest, found.as_ref()));
        Ok(())
    }

    /// Counts an answer, and checks that it shows a version that may be seen. `oldest` is the
    /// oldest such version, read before the call.
    fn check(&mut self, key: u32, oldest: u32, found: Option<&Value>) {
        let Some(value) = found else {
            self.stats.misses += 1;
            return;
        };
        let looked = self.stats.hits.iter().sum::<u64>();
        let version = if looked.is_multiple_of(VERIFIED) { payload::verify_value(value, key) } else { payload::stated_version(value, key) };
        let is_right = version.is_some_and(|version| self.bench.versions.may_show(key, oldest, version));
        self.stats.wrong += u64::from(!is_right);
        let tier = match value.tier() {
            Tier::Memory => 0,
            Tier::Buffer => 1,
            Tier::Flash => 2,
        };
        self.stats.hits[tier] += 1;
    }
}
