//! `everwarm drill`: a child process runs a workload and is killed at random moments. Each
//! successor checks the entries that it finds against the oracle's state, which shared memory keeps
//! across kills.
//!
//! First a twin serves all requests and is not killed. Then the victim serves the same requests at
//! the same pace and is killed. The two do not run at the same time, because they would compete for
//! the processor and the disk.

mod board;
mod child;
mod kills;
mod oracle;
mod outcome;
mod page;
mod plan;
mod report;
mod subject;
mod warmth;
mod words;
mod worker;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::level::AckLevel;
use crate::size::{self, Flash};
use crate::workload::{Workload, generate, trace};
use crate::workspace::Workspace;
use board::{Board, Shape};
use page::Curves;
use plan::Plan;
use report::Report;
use subject::Subject;

const REQUESTS: usize = 2_500_000;
const MEMORY_MIN: u64 = 8 << 20;
const FLASH_MIN: u64 = 1 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Replay a recorded workload (gzip-compressed CSV).
    #[arg(long, value_name = "FILE", conflicts_with = "distribution")]
    trace: Option<PathBuf>,
    /// Draw the workload from NAME_PREFIX.pop.json and NAME_PREFIX.sizes.json.
    #[arg(long, value_name = "NAME_PREFIX")]
    distribution: Option<PathBuf>,
    /// Number of keys of a drawn workload.
    #[arg(long, default_value_t = 200_000, conflicts_with = "trace", value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,
    /// Requests to serve; a trace with fewer is repeated [default: the whole trace, or 2500000].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=4_000_000_000))]
    requests: Option<u64>,
    /// Requests a second of all threads together; 0 for no limit.
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    /// DRAM budget, at least 8MiB [default: a quarter of the workload's footprint].
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    memory: Option<u64>,
    /// Flash capacity, as a size or a multiple of the workload's footprint; at least 1MiB.
    #[arg(long, value_name = "SIZE", value_parser = Flash::parse, default_value = "2x")]
    flash: Flash,
    /// Number of kills.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..10_000))]
    kills: u16,
    /// Seed of the workload and of the moments of the kills [default: drawn and printed].
    #[arg(long)]
    seed: Option<u64>,
    /// Threads that call the cache.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Level at which mutations are acknowledged.
    #[arg(long, value_enum, default_value_t = AckLevel::Process)]
    ack: AckLevel,
    /// Work in this new or empty directory, and keep it.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print only the totals.
    #[arg(long)]
    quiet: bool,
    /// Write an HTML page with a plot of the hit ratio around the kills.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print one JSON object as the last line.
    #[arg(long)]
    json: bool,
}

/// The settings that twin and victim share.
pub(crate) struct Setup {
    plan: PathBuf,
    shape: Shape,
    memory: u64,
    flash: u64,
    ack: AckLevel,
    rate: u64,
    seed: u64,
    footprint: u64,
}

/// Runs as the process that is killed.
pub(crate) fn run_child(config: &Path) -> anyhow::Result<ExitCode> {
    child::run(config)
}

/// Runs the drill and prints the report. The exit code is 1 if a promise was broken.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.memory.is_none_or(|bytes| bytes >= MEMORY_MIN), "--memory is less than 8MiB");
    ensure!(!matches!(args.flash, Flash::Bytes(..FLASH_MIN)), "--flash is less than 1MiB");
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let workload = workload(args, seed)?;
    if let Some(path) = &args.report {
        std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let workspace = Workspace::create("drill", args.keep.as_deref())?;
    workspace.remove_when_interrupted()?;
    let setup = prepare(args, seed, &workload, workspace.path())?;
    drop(workload);
    let mut out = std::io::stdout();
    if !args.quiet {
        writeln!(out, "{}, in {}", report::describe(&setup), workspace.path().display())?;
    }
    let (report, curves) = drill(args, &setup, workspace.path()).map_err(|error| {
        workspace.keep();
        let repeat = reproduction(setup.seed);
        error.context(format!("the drill ({repeat}) stopped; its files are in {}", workspace.path().display()))
    })?;
    if !report.ok {
        // Before printing, which may fail and return.
        workspace.keep();
    }
    if !args.quiet {
        write!(out, "{}", report.details())?;
    }
    write!(out, "{}", report.totals())?;
    if !report.ok {
        writeln!(out, "{}the store, its twin and the oracle's state are in {}", report.violations(), workspace.path().display())?;
        writeln!(out, "to reproduce: {}", reproduction(setup.seed))?;
    }
    if let Some(path) = &args.report {
        page::write(path, &report::describe(&setup), &report, &curves)?;
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the plan, and derives the settings that the arguments do not give.
fn prepare(args: &Args, seed: u64, workload: &Workload, root: &Path) -> anyhow::Result<Setup> {
    let footprint = workload.footprint();
    let plan = root.join("plan");
    Plan::write(&plan, workload)?;
    Ok(Setup {
        plan,
        shape: Shape { workers: args.workers.into(), keys: workload.key_lens.len(), requests: workload.requests.len() },
        memory: args.memory.unwrap_or(footprint / 4).max(MEMORY_MIN),
        flash: args.flash.bytes(footprint).max(FLASH_MIN),
        ack: args.ack,
        rate: args.rate,
        seed,
        footprint,
    })
}

fn workload(args: &Args, seed: u64) -> anyhow::Result<Workload> {
    let wanted = args.requests.map(|n| n as usize);
    let requests = wanted.unwrap_or(REQUESTS);
    let mut workload = match (&args.trace, &args.distribution) {
        (Some(file), _) => trace::read(file, wanted)?,
        (None, Some(prefix)) => generate::distribution(prefix, args.keys, requests, seed)?,
        (None, None) => generate::builtin(args.keys, requests, seed),
    };
    workload.enrich(seed);
    Ok(workload)
}

fn drill(args: &Args, setup: &Setup, root: &Path) -> anyhow::Result<(Report, Curves)> {
    let bar = progress_bar(args, setup)?;
    bar.set_message("twin, not killed");
    let mut twin = Subject::create(root, "twin", setup, &bar)?;
    let process = twin.spawn()?;
    twin.finish(process)?;

    bar.set_position(setup.shape.requests as u64);
    bar.set_message("victim");
    let mut victim = Subject::create(root, "victim", setup, &bar)?;
    let kills = kills::run(&mut victim, args.kills.into(), setup.seed)?;

    // The victim has closed cleanly and served everything, so the next life only verifies every
    // key.
    bar.set_message("victim after a clean stop");
    let process = victim.spawn()?;
    victim.finish(process)?;
    bar.finish_and_clear();
    let step = Curves::step(setup.shape.requests);
    let curve = |board: &Board| warmth::curve(setup.shape.requests, step, |at| board.outcome(at));
    let curves = Curves { step, victim: curve(&victim.board), twin: curve(&twin.board) };
    Ok((Report::new(setup, &kills, &victim.board, &twin.board), curves))
}

fn progress_bar(args: &Args, setup: &Setup) -> anyhow::Result<ProgressBar> {
    if args.quiet {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{msg:28} {wide_bar} {percent:>3} %, {eta} left")?;
    Ok(ProgressBar::new(2 * setup.shape.requests as u64).with_style(style))
}

/// The given command line, with the drawn seed if it has none.
fn reproduction(seed: u64) -> String {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if !words.iter().any(|word| word == "--seed" || word.starts_with("--seed=")) {
        words.push(format!("--seed {seed}"));
    }
    format!("everwarm {}", words.join(" "))
}
