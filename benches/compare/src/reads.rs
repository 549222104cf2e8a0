//! Gets from flash compared with fio: the same device, read length, alignment and queue depth.

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

/// The program and the API that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reader {
    /// fio with io_uring, O_DIRECT.
    Fio,
    /// Everwarm with a blocking thread for each read in flight.
    Threads,
    /// Everwarm with tasks on one thread.
    OneThread,
    /// Everwarm with tasks on two threads.
    TwoThreads,
    /// Everwarm with long lists of keys on one thread.
    OneList,
    /// Everwarm with long lists of keys on two threads.
    TwoLists,
}

/// The calls of one thread.
#[derive(Clone, Copy)]
enum Way {
    /// Blocking gets, one at a time.
    Gets,
    /// Gets in this many concurrent tasks.
    Tasks(u64),
    /// Lists of keys, with this many reads of a list in flight.
    Lists(u32),
}

/// Results of one measurement.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reads {
    /// Reads a second.
    pub per_s: f64,
    /// Mean duration of a read in microseconds.
    pub mean_us: f64,
    /// Microseconds of processor time for one read, the caller's work included.
    pub cpu_us: f64,
    /// Bytes that the process read from the device, for one read.
    pub device_bytes: f64,
}

/// Time before the measurement, for the work that follows an open.
const WARM_UP: Duration = Duration::from_secs(1);
/// Bytes of the file that fio reads.
const FIO_FILE: u64 = 4 << 30;
/// Keys of a list. Large enough that the end of a list, with fewer reads in flight, hardly counts.
const LIST_LEN: usize = 8192;
/// Reads have a multiple of this length, in bytes.
pub const SECTOR: u64 = 512;

/// Opens the store that a child has filled, and reads keys drawn from `seed` for `time`, with
/// `depth` reads in flight. Prints the results.
pub fn run(reader: Reader, dir: &Path, size: Size, depth: u64, seed: u64, time: Duration) -> Result<()> {
    let options = everwarm_options(dir, size, Ack::Process, false);
    let share = depth.div_ceil(2);
    let (threads, way, options) = match reader {
        Reader::Threads => (depth, Way::Gets, options),
        Reader::OneThread => (1, Way::Tasks(depth), options),
        Reader::TwoThreads => (2, Way::Tasks(share), options),
        Reader::OneList => (1, Way::Lists(depth as u32), options.depth(depth as u32)),
        Reader::TwoLists => (2, Way::Lists(share as u32), options.depth(share as u32)),
        Reader::Fio => unreachable!("the parent runs fio itself"),
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

/// Runs the callers for `time`. Returns the number of gets that flash answered, and their total
/// duration.
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

/// Draws keys, checks the values, and counts the reads of one thread.
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
        ensure!(found[..8] == n.to_le_bytes() && found.len() == self.size.value_len, "entry {n} has the value of another entry");
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

/// Gets lists of keys. A list returns when all its reads have ended, so the duration of one read is
/// derived from the number of reads in flight (Little, 1961).
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

/// Bytes that this process has read from devices.
fn read_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes: ")).context("/proc/self/io has no line `read_bytes`")?;
    Ok(line.parse()?)
}

/// Measures fio's random reads of `len` bytes, a multiple of a sector, at sector boundaries.
/// Returns none if fio is not installed. Its file stays in `dir`.
pub fn fio(dir: &Path, len: u64, depth: u64, time: Duration) -> Result<Option<Reads>> {
    let file = dir.join("fio");
    let file = file.to_str().context("the path of --dir is not UTF-8")?;
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
    let Some(output) = run_fio(file, &read)? else { return Ok(None) };
    let job = &output["jobs"][0];
    let number = |of: &Value| of.as_f64().context("a number is missing in fio's output");
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
    // fio may print warnings before the JSON object.
    let start = done.stdout.iter().position(|byte| *byte == b'{').context("fio printed no JSON object")?;
    Ok(Some(serde_json::from_slice(&done.stdout[start..])?))
}
