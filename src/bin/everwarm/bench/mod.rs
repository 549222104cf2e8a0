//! `everwarm bench`: fills a new store, runs a workload against it, and checks every answer while
//! it measures.

mod background;
mod keys;
mod meter;
mod page;
mod phase;
mod report;
mod versions;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use everwarm::{Ack, Backend, Cache, Options, RecoveryMode, WalValues};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::level::AckLevel;
use crate::size::{self, Flash};
use crate::workload::{Workload, payload, trace};
use crate::workspace::Workspace;
use background::Background;
use keys::{Keys, Order};
use meter::Meter;
use phase::{Bench, Mix, Phase, Work};
use report::{Report, Restart, Row};
use versions::Versions;

/// Default bytes of DRAM besides the index.
const MEMORY: u64 = 64 << 20;
/// Upper bound of the index's bytes for one entry.
const INDEX: u64 = 10;
/// Upper bound of the bytes that a record takes beyond key and value, its footer entry included.
const RECORD: u64 = 40;
/// Smallest flash capacity that is derived from the workload's footprint.
const FLASH_MIN: u64 = 16 << 20;
/// Default memory is at least this many times the longest value.
const VALUES_IN_MEMORY_MIN: u64 = 32;
/// Segments for long values have at least this many times the length of the longest value.
const VALUES_IN_SEGMENT_MIN: u64 = 4;
/// Flash derived from the footprint has room for at least this many segments if values are long.
const SEGMENTS_MIN: u64 = 32;
/// Segments for long values are up to this many times the minimum, as far as flash still holds
/// [`SEGMENTS_MIN`] of them.
const SEGMENT_FACTOR_MAX: u64 = 8;
/// Longest value for which the default segment size is used.
const LONG: u64 = 128 << 10;
/// Bytes of a key.
const KEY_LEN: u16 = 16;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The workload to measure
    #[arg(value_enum)]
    workload: Kind,
    /// Entries that the fill puts [default: 1000000; small and multiget 5000000; large 2000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    entries: Option<u32>,
    /// Size of a value, 16B to 32MiB [default: 1KiB; small and multiget 84B; large 1MiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    value_size: Option<u64>,
    /// Threads that call the cache
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    callers: u16,
    /// Concurrent calls of each caller, in async tasks (for fill, read, small, large, restart); 0
    /// for one blocking call
    #[arg(long, default_value_t = 0, conflicts_with = "rate", value_parser = clap::value_parser!(u16).range(0..=4096))]
    tasks: u16,
    /// Seconds that a timed phase is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Seconds of warm-up before a timed phase, not counted; none after a restart
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    warm_up: u64,
    /// Calls a second of all callers together, timed from their intended start; 0 for no limit.
    /// Never limits the fill
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Distribution of the requested keys [default: uniform; mixed zipf, or latest for mix D]
    #[arg(long, value_enum)]
    keys: Option<KeyOrder>,
    /// Exponent of zipf and latest; 0 is uniform
    #[arg(long, default_value_t = 0.99)]
    alpha: f64,
    /// Draw keys and value sizes as NAME_PREFIX.pop.json and NAME_PREFIX.sizes.json describe
    #[arg(long, value_name = "NAME_PREFIX", conflicts_with_all = ["keys", "value_size"])]
    distribution: Option<PathBuf>,
    /// File that `trace` replays (gzip-compressed CSV)
    #[arg(long, value_name = "FILE", required_if_eq("workload", "trace"))]
    trace: Option<PathBuf>,
    /// Requests of the trace to replay [default: all]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=4_000_000_000))]
    requests: Option<u64>,
    /// YCSB workload that `mixed` runs
    #[arg(long, value_enum, default_value_t = Ycsb::A)]
    mix: Ycsb,
    /// Keys in one call of `multiget`
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// DRAM budget [default: 64MiB plus the index, or 32 values if that is more]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    memory: Option<u64>,
    /// Flash capacity, as a size or a multiple of the bytes that the fill puts
    #[arg(long, value_name = "SIZE", value_parser = Flash::parse, default_value = "1.5x")]
    flash: Flash,
    /// Level at which mutations are acknowledged
    #[arg(long, value_enum, default_value_t = AckLevel::Process)]
    ack: AckLevel,
    /// Values that the WAL holds as well
    #[arg(long, value_enum, default_value_t = InWal::Host)]
    wal_values: InWal,
    /// Most reads in flight of one `multiget`, or of all tasks together [default: that of the
    /// library]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: Option<u32>,
    /// Do not use io_uring
    #[arg(long)]
    portable: bool,
    /// After a restart, ignore the checkpoint and rebuild the index from the segments
    #[arg(long)]
    rebuild: bool,
    /// Seed of the keys and of their order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Work in this new or empty directory, and keep it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Write an HTML page with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    /// Fill a store in this directory, print a dot, and wait to be killed
    #[arg(long, value_name = "DIR", hide = true)]
    fill_until_killed: Option<PathBuf>,
}

/// The workload to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Put every entry once
    Fill,
    /// Fill, then get single keys
    Read,
    /// Fill, then run a YCSB core workload
    Mixed,
    /// Fill, then overwrite entries
    Overwrite,
    /// Fill, then delete every entry, then get every key
    Delete,
    /// Like read, with values of 1 MiB
    Large,
    /// Like read, with values of 84 B under keys of 16 B
    Small,
    /// Fill, then get many keys in each call
    Multiget,
    /// Replay a recorded workload; a get that misses is followed by a put
    Trace,
    /// Fill in a process, kill it, open the store, and get single keys
    Restart,
    /// Fill, then make no calls
    Idle,
}

/// The distribution of the requested keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum KeyOrder {
    Uniform,
    Zipf,
    Latest,
}

/// The core workloads of YCSB (Cooper et al., SoCC'10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "verbatim")]
enum Ycsb {
    /// 50 % gets, 50 % puts
    A,
    /// 95 % gets, 5 % puts
    B,
    /// Gets
    C,
    /// 95 % gets of recent entries, 5 % puts of new entries
    D,
    /// 95 % multi-key gets of up to 100 adjacent keys, 5 % puts of new entries
    E,
    /// 50 % gets, 50 % a get followed by a put of the same key
    F,
}

/// [`WalValues`] as a command-line argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum InWal {
    /// No values
    Never,
    /// Values of records up to 4 KiB that are put at the level host
    Host,
    /// Values of all records up to 4 KiB
    Always,
}

impl Ycsb {
    fn mix(self) -> (&'static str, Mix) {
        match self {
            Self::A => ("mixed A", Mix { get: 50, put: 50, ..Mix::default() }),
            Self::B => ("mixed B", Mix { get: 95, put: 5, ..Mix::default() }),
            Self::C => ("mixed C", Mix { get: 100, ..Mix::default() }),
            Self::D => ("mixed D", Mix { get: 95, insert: 5, ..Mix::default() }),
            Self::E => ("mixed E", Mix { scan: 95, insert: 5, ..Mix::default() }),
            Self::F => ("mixed F", Mix { get: 50, modify: 50, ..Mix::default() }),
        }
    }
}

/// The settings of a run, derived from the arguments.
struct Setup {
    keys: Keys,
    order: Order,
    recorded: Option<Workload>,
    memory: u64,
    flash: u64,
    options: Options,
}

impl Setup {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let (entries, value_len) = match args.workload {
            Kind::Small | Kind::Multiget => (5_000_000, 84),
            Kind::Large => (2_000, 1 << 20),
            _ => (1_000_000, 1 << 10),
        };
        let (entries, value_len) = (args.entries.unwrap_or(entries), args.value_size.unwrap_or(value_len));
        let range = payload::VALUE_LEN_MIN as u64..=32 << 20;
        ensure!(range.contains(&value_len), "--value-size is {value_len} B; it must be 16B to 32MiB");
        ensure!(!args.rebuild || args.workload == Kind::Restart, "--rebuild is for the workload `restart` only");
        let in_tasks = matches!(args.workload, Kind::Fill | Kind::Read | Kind::Small | Kind::Large | Kind::Restart);
        ensure!(args.tasks == 0 || in_tasks, "--tasks is only for the workloads fill, read, small, large and restart");
        ensure!(args.alpha.is_finite() && args.alpha >= 0.0, "--alpha is {}; it must be a number of at least 0", args.alpha);
        let mut recorded = None;
        let (keys, order) = if let (Kind::Trace, Some(file)) = (args.workload, &args.trace) {
            let workload = recorded.insert(trace::read(file, args.requests.map(|n| n as usize))?);
            (Keys::of(workload), Order::Uniform)
        } else if let Some(prefix) = &args.distribution {
            Keys::recorded(prefix, entries, KEY_LEN, args.seed)?
        } else {
            let usual = match (args.workload, args.mix) {
                (Kind::Mixed, Ycsb::D) => KeyOrder::Latest,
                (Kind::Mixed, _) => KeyOrder::Zipf,
                _ => KeyOrder::Uniform,
            };
            let order = match args.keys.unwrap_or(usual) {
                KeyOrder::Uniform => Order::Uniform,
                KeyOrder::Zipf => Order::zipf(entries, args.alpha)?,
                KeyOrder::Latest => Order::latest(entries, args.alpha)?,
            };
            (Keys::new(entries, KEY_LEN, value_len as u32), order)
        };
        let longest = keys.longest() as u64;
        let shortest = (longest > LONG).then(|| (VALUES_IN_SEGMENT_MIN * longest).next_power_of_two());
        let memory = args.memory.unwrap_or_else(|| (MEMORY + INDEX * u64::from(keys.entries)).max(VALUES_IN_MEMORY_MIN * longest));
        let footprint = keys.bytes() + RECORD * u64::from(keys.entries);
        let flash = match args.flash {
            Flash::Bytes(bytes) => bytes,
            multiple @ Flash::Footprints(_) => multiple.bytes(footprint).max(FLASH_MIN).max(SEGMENTS_MIN * shortest.unwrap_or(0)),
        };
        let enlarged = |shortest: u64| (1 << (flash / SEGMENTS_MIN).max(1).ilog2()).clamp(shortest, SEGMENT_FACTOR_MAX * shortest);
        let wal_values = match args.wal_values {
            InWal::Never => WalValues::Never,
            InWal::Host => WalValues::Host,
            InWal::Always => WalValues::Always,
        };
        let backend = if args.portable { Backend::Portable } else { Backend::Auto };
        let options = Options::new("").memory(memory).flash(flash).ack(args.ack.into()).wal_values(wal_values).backend(backend);
        let options = shortest.map(enlarged).into_iter().fold(options, Options::segment_size);
        let options = args.depth.into_iter().fold(options, Options::depth);
        let options = if args.rebuild { options.recovery(RecoveryMode::Rebuild) } else { options };
        Ok(Self { keys, order, recorded, memory, flash, options })
    }

    /// Upper bound of the number of keys: twice the entries of the fill if the mix adds keys.
    fn capacity(&self, args: &Args) -> u32 {
        let adds = args.workload == Kind::Mixed && matches!(args.mix, Ycsb::D | Ycsb::E);
        if adds { self.keys.entries.saturating_mul(2) } else { self.keys.entries }
    }

    /// Number of callers: at most one for each entry, because each caller writes its own keys.
    fn callers(&self, args: &Args) -> usize {
        usize::from(args.callers).min(self.keys.entries as usize)
    }
}

/// Runs the benchmark and prints the report. The exit code is 1 if an answer was wrong.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let setup = Setup::new(args)?;
    if let Some(dir) = &args.fill_until_killed {
        return fill_until_killed(args, &setup, dir);
    }
    if let Some(path) = &args.report {
        std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let workspace = Workspace::create("bench", args.keep.as_deref())?;
    workspace.remove_when_interrupted()?;
    let report = measure(args, &setup, &workspace.path().join("store"))?;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{}\n\n{}", report.describe(), report.table())?;
    }
    if let Some(path) = &args.report {
        page::write(path, &report)?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(args: &Args, setup: &Setup, dir: &Path) -> anyhow::Result<Report> {
    let keys = &setup.keys;
    let bar = progress_bar(args)?;
    let is_filled = args.workload == Kind::Restart;
    if is_filled {
        bar.set_message("fill, kill");
        fill_and_kill(dir)?;
    }
    let capacity = setup.capacity(args);
    let versions = if is_filled { Versions::filled(keys.entries, capacity) } else { Versions::new(capacity) };
    let begun = Instant::now();
    let background = Arc::new(Background::new());
    let observed = Arc::clone(&background);
    let options = setup.options.clone().dir(dir).activity(move |activity, begins| observed.observe(activity, begins));
    let cache = Cache::open(options)?;
    let open = begun.elapsed();
    let entries = AtomicU32::new(keys.entries);
    let restart = is_filled.then(|| first_hit(&cache, keys, begun, open)).transpose()?;
    let meter = Meter::new(dir)?;
    let bench = Bench {
        cache: &cache,
        keys,
        versions: &versions,
        entries: &entries,
        capacity,
        callers: setup.callers(args),
        tasks: args.tasks.into(),
        rate: 0,
        seed: args.seed,
        meter: &meter,
        background: &background,
        bar: &bar,
    };
    let mut phases = Vec::new();
    for (phase, is_counted) in phases_of(args, setup) {
        // --rate never limits a fill, and --tasks applies to a fill only if it is the workload.
        let is_filled = matches!(phase.work, Work::PutEach);
        let rate = if is_filled { 0 } else { args.rate };
        let tasks = if is_filled && args.workload != Kind::Fill { 0 } else { bench.tasks };
        let outcome = Bench { rate, tasks, ..bench }.run(&phase)?;
        if is_counted {
            phases.push(Row::new(phase.name, outcome, &cache.stats(), meter::resident()));
        }
    }
    bar.finish_and_clear();
    let stats = cache.stats();
    cache.close()?;
    Ok(Report {
        workload: format!("{:?}", args.workload).to_lowercase(),
        ok: phases.iter().all(Row::is_right),
        seed: args.seed,
        entries: keys.entries,
        directory: dir.to_owned(),
        footprint: keys.bytes(),
        callers: setup.callers(args),
        tasks: args.tasks,
        rate: args.rate,
        memory: setup.memory,
        flash: setup.flash,
        io_uring: stats.io_uring,
        phases,
        restart,
    })
}

/// The phases, and whether each is counted; a warm-up is not.
fn phases_of<'a>(args: &Args, setup: &'a Setup) -> Vec<(Phase<'a>, bool)> {
    let whole = |name, work, persist| (Phase { name, number: 0, work, time: None, persist }, true);
    let fill = whole("fill", Work::PutEach, true);
    let timed = |name, work, persist| {
        let lasting = |number, seconds| Phase { name, number, work, time: Some(Duration::from_secs(seconds)), persist };
        // After a restart the first seconds are the measurement, so there is no warm-up.
        let warms_up = args.warm_up > 0 && args.workload != Kind::Restart;
        warms_up.then(|| (lasting(1, args.warm_up), false)).into_iter().chain([(lasting(2, args.seconds), true)])
    };
    let order = &setup.order;
    let read = || timed("read", Work::Drawn(Mix { get: 100, ..Mix::default() }, order), false);
    let mut phases = Vec::new();
    match args.workload {
        Kind::Fill => phases.push(fill),
        Kind::Read | Kind::Small | Kind::Large => {
            phases.push(fill);
            phases.extend(read());
        }
        Kind::Mixed => {
            let (name, mix) = args.mix.mix();
            phases.push(fill);
            phases.extend(timed(name, Work::Drawn(mix, order), true));
        }
        Kind::Overwrite => {
            phases.push(fill);
            phases.extend(timed("overwrite", Work::Drawn(Mix { put: 100, ..Mix::default() }, order), true));
        }
        Kind::Delete => phases.extend([fill, whole("delete", Work::DeleteEach, true), whole("look", Work::GetEach, false)]),
        Kind::Multiget => {
            phases.push(fill);
            phases.extend(timed("multiget", Work::Batches(args.batch, order), false));
        }
        Kind::Trace => phases.extend(setup.recorded.as_ref().map(|recorded| whole("trace", Work::Served(recorded), true))),
        Kind::Restart => phases.extend(read()),
        Kind::Idle => {
            phases.push(fill);
            phases.extend(timed("idle", Work::Nothing, false));
        }
    }
    phases
}

/// Runs this program again to fill the store at `dir`, and kills it when the store is filled.
fn fill_and_kill(dir: &Path) -> anyhow::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--fill-until-killed")
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut dot = [0];
    let filled = child.stdout.take().context("the child has no standard output")?.read_exact(&mut dot);
    child.kill()?;
    child.wait()?;
    filled.context("the process that fills the store ended too early; see its message above")
}

/// The process that [`fill_and_kill`] starts: fills the store, prints a dot, and waits to be
/// killed.
fn fill_until_killed(args: &Args, setup: &Setup, dir: &Path) -> anyhow::Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let cache = Cache::open(setup.options.clone().dir(dir))?;
    let (versions, entries) = (Versions::new(setup.keys.entries), AtomicU32::new(setup.keys.entries));
    let bench = Bench {
        cache: &cache,
        keys: &setup.keys,
        versions: &versions,
        entries: &entries,
        capacity: setup.keys.entries,
        callers: setup.callers(args),
        tasks: 0,
        rate: 0,
        seed: args.seed,
        meter: &Meter::new(dir)?,
        background: &Background::new(),
        bar: &ProgressBar::hidden(),
    };
    bench.run(&Phase { name: "fill", number: 0, work: Work::PutEach, time: None, persist: true })?;
    cache.persist(Ack::Host)?;
    std::io::stdout().write_all(b".")?;
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(ExitCode::SUCCESS)
}

/// Gets one key and reports how long opening and the first hit took, measured from `begun`.
fn first_hit(cache: &Cache, keys: &Keys, begun: Instant, open: Duration) -> anyhow::Result<Restart> {
    let mut key = Vec::new();
    let number = keys.entries / 2;
    payload::write_key(&mut key, number, keys.key_len(number));
    let found = cache.get(&key)?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let first_hit_ms = found.as_ref().map(|_| ms(begun.elapsed()));
    ensure!(found.is_none_or(|value| payload::verify_value(&value, number).is_some()), "the first value after the kill is wrong");
    let report = cache.recovery();
    Ok(Restart {
        open_ms: ms(open),
        load_ms: ms(report.load_took),
        replay_ms: ms(report.replay_took),
        checkpoint_entries: report.checkpoint_entries,
        footer_entries: report.footer_entries,
        wal_frames: report.wal_frames,
        first_hit_ms,
        entries: cache.stats().entries,
    })
}

fn progress_bar(args: &Args) -> anyhow::Result<ProgressBar> {
    if args.quiet || args.json {
        return Ok(ProgressBar::hidden());
    }
    Ok(ProgressBar::new(1).with_style(ProgressStyle::with_template("{msg:12} {wide_bar} {percent:>3} %")?))
}
