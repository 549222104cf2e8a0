//! Gets from flash beside fio: the same device, read length and alignment, as many in flight.

use std::cell::RefCell;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use clap::ValueEnum;
use everwarm::{Ack, Cache, Tier};
use futures::StreamExt;
use futures::executor::block_on;
use futures::stream::FuturesUnordered;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::hits;
use crate::stores::{Size, everwarm_options};
use crate::work::{key, value};

/// What reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reader {
    /// fio with io_uring, O_DIRECT.
    Fio,
    /// A blocking thread for each read in flight.
    Threads,
    /// Tasks on one thread, and on two threads.
    OneThread,
    TwoThreads,
    /// Long lists of keys on one thread, and on two threads.
    OneList,
    TwoLists,
}

/// How its callers read.
#[derive(Clone, Copy)]
enum Way {
    Gets,
    Tasks(u64),
    /// So many reads of a list are in flight.
    Lists(u32),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Reads {
    pub per_s: f64,
    pub mean_us: f64,
    /// Microseconds of processor time for a read, with the caller's work.
    pub cpu_us: f64,
    /// Bytes that the process read from the device for each.
    pub device_bytes: f64,
}

/// Before the measurement, so that what a start brings with it is over.
const WARM_UP: Duration = Duration::from_secs(1);
/// Bytes that fio reads from.
const FIO_FILE: u64 = 4 << 30;
/// Keys of a list: so many that its last reads, when fewer are in flight, hardly count.
const LIST_LEN: usize = 8192;
/// What reads are multiples of.
pub const SECTOR: u64 = 512;

/// Opens what a child has filled, reads for `time` keys drawn by `seed` with `depth` in flight, and says what it found.
pub fn run(reader: Reader, dir: &Path, size: Size, depth: u64, seed: u64, time: Duration) -> Result<()> {
    let options = everwarm_options(dir, size, Ack::Process, false);
    let share = depth.div_ceil(2);
    let (threads, way, options) = match reader {
        Reader::Threads => (depth, Way::Gets, options),
        Reader::OneThread => (1, Way::Tasks(depth), options),
        Reader::TwoThreads => (2, Way::Tasks(share), options),
        Reader::OneList => (1, Way::Lists(depth as u32), options.depth(depth as u32)),
        Reader::TwoLists => (2, Way::Lists(share as u32), options.depth(share as u32)),
        Reader::Fio => unreachable!("it has a process of its own"),
    };
    let cache = Cache::open(options)?;
    all(&cache, size, threads, way, 2 * seed, WARM_UP)?;
    let (cpu, bytes, start) = (hits::cpu(), read_bytes()?, Instant::now());
    let (reads, busy) = all(&cache, size, threads, way, 2 * seed + 1, time)?;
    let took = start.elapsed().as_secs_f64();
    ensure!(reads > 0, "nothing was read from flash");
    let reads = Reads {
        per_s: reads as f64 / took,
        mean_us: busy.as_secs_f64() * 1e6 / reads as f64,
        cpu_us: (hits::cpu() - cpu).as_secs_f64() * 1e6 / reads as f64,
        device_bytes: (read_bytes()? - bytes) as f64 / reads as f64,
    };
    println!("{}", serde_json::to_string(&reads)?);
    std::io::stdout().flush()?;
    Ok(())
}

/// How many gets flash answered, and how long they took together.
fn all(cache: &Cache, size: Size, threads: u64, way: Way, seed: u64, time: Duration) -> Result<(u64, Duration)> {
    let end = Instant::now() + time;
    let parts: Vec<Result<Caller>> = std::thread::scope(|scope| {
        let one = |seed| {
            move || match way {
                Way::Gets => work(cache, size, seed, end),
                Way::Tasks(tasks) => work_in_tasks(cache, size, seed, tasks, end),
                Way::Lists(depth) => work_on_lists(cache, size, seed, depth, end),
            }
        };
        let callers: Vec<_> = (0..threads).map(|thread| scope.spawn(one(seed << 16 | thread))).collect();
        callers.into_iter().map(|caller| caller.join().expect("a caller panicked")).collect()
    });
    parts.into_iter().try_fold((0, Duration::ZERO), |(reads, busy), part| {
        let part = part?;
        Ok((reads + part.reads, busy + part.busy))
    })
}

/// Draws keys, checks what is found, and counts.
struct Caller {
    random: SmallRng,
    size: Size,
    buf: BytesMut,
    reads: u64,
    busy: Duration,
}

impl Caller {
    fn new(seed: u64, size: Size) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), size, buf: BytesMut::new(), reads: 0, busy: Duration::ZERO }
    }

    fn draw(&mut self) -> u64 {
        self.random.random_range(0..self.size.entries)
    }

    fn check(&mut self, n: u64, found: Option<everwarm::Value>, took: Duration) -> Result<()> {
        let Some(found) = found else { return Ok(()) };
        ensure!(found[..8] == n.to_le_bytes() && found.len() == self.size.value_len, "entry {n} has another's value");
        if found.tier() == Tier::Flash {
            self.reads += 1;
            self.busy += took;
            if self.reads.is_multiple_of(64) {
                ensure!(found[..] == value(&mut self.buf, n, 0, self.size.value_len)[..], "entry {n} has bytes that were never put");
            }
        }
        Ok(())
    }
}

fn work(cache: &Cache, size: Size, seed: u64, end: Instant) -> Result<Caller> {
    let mut caller = Caller::new(seed, size);
    loop {
        let (n, began) = (caller.draw(), Instant::now());
        if began >= end {
            return Ok(caller);
        }
        let found = cache.get(key(n))?;
        caller.check(n, found, began.elapsed())?;
    }
}

fn work_in_tasks(cache: &Cache, size: Size, seed: u64, tasks: u64, end: Instant) -> Result<Caller> {
    let (cache, caller) = (cache.for_tasks(), RefCell::new(Caller::new(seed, size)));
    let one = || async {
        loop {
            let (n, began) = (caller.borrow_mut().draw(), Instant::now());
            if began >= end {
                return anyhow::Ok(());
            }
            let found = cache.get(key(n)).await?;
            caller.borrow_mut().check(n, found, began.elapsed())?;
        }
    };
    let mut all: FuturesUnordered<_> = (0..tasks).map(|_| one()).collect();
    block_on(async {
        while let Some(done) = all.next().await {
            done?;
        }
        anyhow::Ok(())
    })?;
    drop(all);
    Ok(caller.into_inner())
}

/// A list ends when all its reads have: how long a read took follows from how many are in flight (Little, 1961).
fn work_on_lists(cache: &Cache, size: Size, seed: u64, depth: u32, end: Instant) -> Result<Caller> {
    let mut caller = Caller::new(seed, size);
    while Instant::now() < end {
        let list: Vec<u64> = (0..LIST_LEN).map(|_| caller.draw()).collect();
        let keys: Vec<_> = list.iter().map(|n| key(*n)).collect();
        let began = Instant::now();
        let found = cache.get_many(&keys)?;
        let took = began.elapsed();
        for (n, found) in list.into_iter().zip(found) {
            caller.check(n, found, Duration::ZERO)?;
        }
        caller.busy += took * depth;
    }
    Ok(caller)
}

/// Bytes that this process had read from devices.
fn read_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes: ")).context("/proc/self/io does not say what was read")?;
    Ok(line.parse()?)
}

/// fio's reads of `len` bytes, whole sectors, at any sector, or nothing if there is no fio. Its file stays in `dir`.
pub fn fio(dir: &Path, len: u64, depth: u64, time: Duration) -> Result<Option<Reads>> {
    let file = dir.join("fio");
    let file = file.to_str().context("a directory that is not UTF-8")?;
    let write = ["--rw=write", "--bs=1m", "--iodepth=8"].map(str::to_owned);
    if !Path::new(file).exists() && run_fio(file, &write)?.is_none() {
        return Ok(None);
    }
    let read = [
        "--rw=randread".to_owned(),
        format!("--bs={len}"),
        format!("--blockalign={SECTOR}"),
        format!("--iodepth={depth}"),
        format!("--runtime={}", time.as_secs()),
        "--time_based".to_owned(),
        format!("--ramp_time={}", WARM_UP.as_secs()),
        "--norandommap".to_owned(),
        "--randrepeat=0".to_owned(),
    ];
    let Some(said) = run_fio(file, &read)? else { return Ok(None) };
    let job = &said["jobs"][0];
    let number = |of: &Value| of.as_f64().context("fio left out a number");
    let per_s = number(&job["read"]["iops"])?;
    let cpu = number(&job["usr_cpu"])? + number(&job["sys_cpu"])?;
    let mean_us = number(&job["read"]["lat_ns"]["mean"])? / 1e3;
    Ok(Some(Reads { per_s, mean_us, cpu_us: cpu / 100.0 * 1e6 / per_s, device_bytes: len as f64 }))
}

fn run_fio(file: &str, more: &[String]) -> Result<Option<Value>> {
    let common = ["--name=reads", "--direct=1", "--ioengine=io_uring", "--output-format=json"];
    let mut command = Command::new("fio");
    command.args(common).arg(format!("--filename={file}")).arg(format!("--size={FIO_FILE}")).args(more);
    let done = match command.stderr(Stdio::inherit()).output() {
        Ok(done) => done,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    ensure!(done.status.success(), "fio failed: {}", String::from_utf8_lossy(&done.stdout));
    // Warnings may come before the object.
    let start = done.stdout.iter().position(|byte| *byte == b'{').context("fio said nothing")?;
    Ok(Some(serde_json::from_slice(&done.stdout[start..])?))
}
