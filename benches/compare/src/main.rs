//! Compares Everwarm with other engines. A child process fills a new store and is killed once it
//! reports that flash holds all entries. Another child process opens the store and reads every
//! entry back. Rounds alternate between the engines.

mod hits;
mod reads;
mod restart;
mod stores;
mod work;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;

use hits::Hits;
use reads::{Reader, Reads};
use restart::{Curve, Plan};
use stores::{Engine, Size};
use work::{Filled, Verified};

#[derive(Parser)]
#[command(about = "Compares Everwarm with other engines: fills, hits, reads from flash, and restarts after a kill")]
struct Program {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Fill each engine, kill it, open it again, and read every entry back.
    Fill {
        #[command(flatten)]
        load: Load,
        /// Engines to compare, in this order in each round.
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Engine::Everwarm, Engine::EverwarmWal, Engine::FoyerUring, Engine::FoyerPsync, Engine::Fjall, Engine::RocksDb])]
        engines: Vec<Engine>,
        /// Number of rounds.
        #[arg(long, default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
        rounds: usize,
        /// Read the entries back in every round, not only in the first.
        #[arg(long)]
        read_back_always: bool,
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Measure gets and puts that DRAM answers, each engine in turn in each round.
    Hits {
        #[command(flatten)]
        load: Load,
        /// Engines to compare; ratios are relative to the first.
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Engine::EverwarmMemory, Engine::Everwarm, Engine::QuickCache, Engine::Moka, Engine::FoyerMemory])]
        engines: Vec<Engine>,
        /// Numbers of calling threads to measure.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 2], value_parser = clap::value_parser!(u64).range(1..))]
        callers: Vec<u64>,
        /// Number of rounds.
        #[arg(long, default_value_t = 5, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
        rounds: usize,
        /// Seconds for which each engine is measured in each round.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Measure gets from flash, by Everwarm in several ways and by fio, in turn in each round.
    Reads {
        #[command(flatten)]
        load: Load,
        /// Numbers of reads in flight; at 1, only fio and blocking threads are measured.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 32, 64, 128], value_parser = clap::value_parser!(u64).range(1..))]
        depths: Vec<u64>,
        /// Number of rounds.
        #[arg(long, default_value_t = 5, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
        rounds: usize,
        /// Seconds for which each reader is measured in each round.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Measure the hit ratio over time around a kill -9.
    Restart {
        #[command(flatten)]
        load: Load,
        /// Engines to compare.
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Engine::Everwarm, Engine::FoyerUring, Engine::FoyerPsync, Engine::Memcached, Engine::Redis, Engine::Fjall, Engine::RocksDb])]
        engines: Vec<Engine>,
        /// Gets a second.
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
        rate: u64,
        /// Puts a second while the store is filled; some engines drop puts that arrive faster than
        /// they can store them.
        #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..))]
        fill_rate: u64,
        /// Seconds of gets before the kill.
        #[arg(long, default_value_t = 5)]
        before: u64,
        /// Seconds of gets after the kill.
        #[arg(long, default_value_t = 20)]
        after: u64,
        /// Plot the curves of all engines into this file.
        #[arg(long, value_name = "FILE.svg")]
        picture: Option<PathBuf>,
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    #[command(hide = true)]
    ChildServe {
        engine: Engine,
        #[command(flatten)]
        load: Load,
        #[arg(long)]
        rate: u64,
        #[arg(long)]
        fill_rate: u64,
        #[arg(long)]
        first: bool,
    },
    #[command(hide = true)]
    ChildReads {
        engine: Engine,
        #[command(flatten)]
        load: Load,
        #[arg(long)]
        reader: Reader,
        /// Seed of the keys; each measurement has another.
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        seconds: u64,
    },
    #[command(hide = true)]
    ChildHits {
        engine: Engine,
        #[command(flatten)]
        load: Load,
        #[arg(long)]
        seconds: u64,
    },
    #[command(hide = true)]
    ChildFill {
        engine: Engine,
        #[command(flatten)]
        load: Load,
    },
    #[command(hide = true)]
    ChildVerify {
        engine: Engine,
        #[command(flatten)]
        load: Load,
    },
}

#[derive(Args, Clone)]
struct Load {
    /// Parent directory of the stores, which are removed afterwards.
    #[arg(long)]
    dir: PathBuf,
    /// Number of entries.
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
    /// Bytes of a value, at least 16.
    #[arg(long, default_value_t = 1024)]
    value_len: usize,
    /// Threads that call the engine.
    #[arg(long, default_value_t = 8)]
    threads: u64,
    /// MiB of DRAM besides the index.
    #[arg(long, default_value_t = 64)]
    memory_mib: u64,
}

impl Load {
    fn size(&self) -> Size {
        Size { entries: self.entries, value_len: self.value_len, memory: self.memory_mib << 20, flash_times: 1 }
    }
}

#[derive(Debug, Serialize)]
struct Round {
    filled: Filled,
    verified: Option<Verified>,
    /// Entries a second that were accepted.
    accepted_per_s: f64,
    /// Entries that could be read back after the kill, for each second of the fill.
    stored_per_s: Option<f64>,
}

fn main() -> Result<()> {
    match Program::parse().verb {
        Verb::ChildFill { engine, load } => work::fill(engine, &load.dir, load.size(), load.threads),
        Verb::ChildVerify { engine, load } => work::verify(engine, &load.dir, load.size(), load.threads),
        Verb::ChildServe { engine, load, rate, fill_rate, first } => {
            restart::serve(engine, &load.dir, load.size(), load.threads, (fill_rate, rate), first)
        }
        Verb::Restart { load, engines, rate, fill_rate, before, after, picture, json } => {
            let plan = Plan { fill_rate, rate, before: Duration::from_secs(before), after: Duration::from_secs(after) };
            compare_restarts(&load, &engines, plan, picture.as_ref(), json)
        }
        Verb::ChildReads { load, reader, seed, seconds, .. } => {
            reads::run(reader, &load.dir, load.size(), load.threads, seed, Duration::from_secs(seconds))
        }
        Verb::Reads { load, depths, rounds, seconds, json } => compare_reads(&load, &depths, rounds, seconds, json),
        Verb::ChildHits { engine, load, seconds } => hits::run(engine, &load.dir, load.size(), load.threads, Duration::from_secs(seconds)),
        Verb::Hits { load, engines, callers, rounds, seconds, json } => compare_hits(&load, &engines, &callers, rounds, seconds, json),
        Verb::Fill { load, engines, rounds, read_back_always, json } => {
            let mut results: BTreeMap<String, Vec<Round>> = BTreeMap::new();
            for round in 0..rounds {
                for &engine in &engines {
                    eprintln!("round {} of {rounds}: {}", round + 1, engine.name());
                    let done = one_round(engine, &load, round == 0 || read_back_always)?;
                    eprintln!("  {}", serde_json::to_string(&done)?);
                    results.entry(engine.name()).or_default().push(done);
                }
            }
            report(&results, &engines, json)
        }
    }
}

fn compare_restarts(load: &Load, engines: &[Engine], plan: Plan, picture: Option<&PathBuf>, json: bool) -> Result<()> {
    let mut curves = Vec::new();
    for &engine in engines {
        eprintln!("{}", engine.name());
        let dir = fresh(&load.dir, engine)?;
        let rate = ["--rate".to_owned(), plan.rate.to_string(), "--fill-rate".to_owned(), plan.fill_rate.to_string()];
        let spawn = |is_first: bool| {
            let first = is_first.then(|| "--first".to_owned());
            spawn("child-serve", engine, &dir, load, &rate.iter().cloned().chain(first).collect::<Vec<_>>())
        };
        curves.push((engine.name(), restart::measure(plan, spawn).with_context(|| engine.name())?));
        std::fs::remove_dir_all(&dir)?;
    }
    let borrowed: Vec<(String, &Curve)> = curves.iter().map(|(name, curve)| (name.clone(), curve)).collect();
    if let Some(path) = picture {
        restart::draw(path, &borrowed, plan)?;
    }
    if json {
        println!("{}", serde_json::to_string(&curves)?);
        return Ok(());
    }
    println!("{:<14} {:>10} {:>12} {:>16} {:>8}", "engine", "before %", "answers, s", "first second %", "wrong");
    for (name, curve) in curves {
        let answers = curve.answers_after_s.map_or_else(|| "-".into(), |s| format!("{s:.2}"));
        println!("{name:<14} {:>10.1} {answers:>12} {:>16.1} {:>8}", 100.0 * curve.before, 100.0 * curve.first_second, curve.wrong);
    }
    Ok(())
}

/// Results of the rounds, by engine and number of callers.
type HitsOf = BTreeMap<String, BTreeMap<u64, Vec<Hits>>>;

fn compare_hits(load: &Load, engines: &[Engine], callers: &[u64], rounds: usize, seconds: u64, json: bool) -> Result<()> {
    ensure!(load.value_len >= 16, "--value-len must be at least 16: values state their entry and version");
    let servers = [Engine::Memcached, Engine::Redis];
    ensure!(
        engines.iter().all(|engine| !servers.contains(engine)),
        "memcached and redis cannot be compared here: their servers are other processes"
    );
    let mut results = HitsOf::new();
    for round in 0..rounds {
        for (threads, engine) in callers.iter().flat_map(|threads| engines.iter().map(move |engine| (*threads, *engine))) {
            let load = Load { threads, ..load.clone() };
            let dir = fresh(&load.dir, engine)?;
            let mut child = spawn("child-hits", engine, &dir, &load, &["--seconds".into(), seconds.to_string()])?;
            let hits: Result<Hits> = answer(&mut child).with_context(|| format!("measuring hits of {}", engine.name()));
            restart::end(&mut child)?;
            let hits = hits?;
            std::fs::remove_dir_all(&dir)?;
            eprintln!("round {} of {rounds}: {}, {threads} callers: {}", round + 1, engine.name(), serde_json::to_string(&hits)?);
            results.entry(engine.name()).or_default().entry(threads).or_default().push(hits);
        }
    }
    if json {
        println!("{}", serde_json::to_string(&results)?);
        return Ok(());
    }
    println!(
        "{:<16} {:>8} {:>9} {:>24} {:>8} {:>10} {:>8}",
        "engine", "callers", "M ops/s", "ratio to first (range)", "cpu us", "B an entry", "missed"
    );
    for (threads, engine) in callers.iter().flat_map(|threads| engines.iter().map(move |engine| (*threads, engine.name()))) {
        let of = |engine: &str| &results[engine][&threads];
        let (own, first) = (of(&engine), of(&engines[0].name()));
        let mut ratios: Vec<f64> = own.iter().zip(first).map(|(own, first)| own.per_s / first.per_s).collect();
        ratios.sort_by(f64::total_cmp);
        let middle = |value: fn(&Hits) -> f64| median(own.iter().map(value)).unwrap_or(f64::NAN);
        println!(
            "{engine:<16} {threads:>8} {:>9.2} {:>9.2} ({:.2} to {:.2}) {:>8.3} {:>10.0} {:>8}",
            middle(|hits| hits.per_s) / 1e6,
            ratios[ratios.len() / 2],
            ratios[0],
            ratios[ratios.len() - 1],
            middle(|hits| hits.cpu_us),
            middle(|hits| hits.overhead),
            own.iter().map(|hits| hits.missed).sum::<u64>()
        );
    }
    Ok(())
}

/// Results of the rounds, by depth and reader.
type ReadsOf = BTreeMap<u64, BTreeMap<String, Vec<Reads>>>;

fn compare_reads(load: &Load, depths: &[u64], rounds: usize, seconds: u64, json: bool) -> Result<()> {
    ensure!(load.value_len >= 16, "--value-len must be at least 16: values state their entry and version");
    let dir = fresh(&load.dir, Engine::Everwarm)?;
    let mut child = spawn("child-fill", Engine::Everwarm, &dir, load, &[])?;
    let filled: Result<Filled> = answer(&mut child).context("filling everwarm");
    restart::end(&mut child)?;
    filled?;
    let mut seed = 0;
    let mut ask = |reader: Reader, depth: u64| -> Result<Reads> {
        seed += 1;
        let load = Load { threads: depth, ..load.clone() };
        let name = reader.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let more = ["--reader".into(), name, "--seed".into(), seed.to_string(), "--seconds".into(), seconds.to_string()];
        let mut child = spawn("child-reads", Engine::Everwarm, &dir, &load, &more)?;
        let reads = answer(&mut child).with_context(|| format!("measuring reads by {reader:?}"));
        restart::end(&mut child)?;
        reads
    };
    let mut results = ReadsOf::new();
    // fio reads as many bytes at a time as Everwarm does on average, rounded to whole sectors.
    // Records have one length, so most reads have this length; the last column of the table shows
    // the mean.
    let len = ask(Reader::Threads, 1)?.device_bytes;
    let len = (len / reads::SECTOR as f64).round() as u64 * reads::SECTOR;
    for (round, depth) in (0..rounds).flat_map(|round| depths.iter().map(move |depth| (round, *depth))) {
        for reader in [Reader::Fio, Reader::Threads, Reader::OneThread, Reader::TwoThreads, Reader::OneList, Reader::TwoLists] {
            if depth == 1 && !matches!(reader, Reader::Fio | Reader::Threads) {
                continue;
            }
            let reads = match reader {
                Reader::Fio => match reads::fio(&load.dir, len, depth, Duration::from_secs(seconds))? {
                    Some(reads) => reads,
                    None => {
                        eprintln!("fio is not installed: the table has no ratios to the device's limit");
                        continue;
                    }
                },
                _ => ask(reader, depth)?,
            };
            eprintln!("round {} of {rounds}: {reader:?}, {depth} in flight: {}", round + 1, serde_json::to_string(&reads)?);
            results.entry(depth).or_default().entry(format!("{reader:?}")).or_default().push(reads);
        }
    }
    std::fs::remove_dir_all(&dir)?;
    if let Err(error) = std::fs::remove_file(load.dir.join("fio")) {
        ensure!(error.kind() == std::io::ErrorKind::NotFound, "cannot remove fio's file: {error}");
    }
    if json {
        println!("{}", serde_json::to_string(&results)?);
        return Ok(());
    }
    println!(
        "{:>9} {:<12} {:>8} {:>24} {:>9} {:>24} {:>8} {:>9} {:>7}",
        "in flight", "", "reads/s", "ratio to fio (range)", "mean us", "ratio to fio (range)", "cpu us", "to fio's", "read B"
    );
    for (depth, of_depth) in &results {
        for (reader, own) in of_depth {
            let ratios = |value: fn(&Reads) -> f64| {
                let fio = of_depth.get("Fio").map_or(&[][..], Vec::as_slice);
                let mut ratios: Vec<f64> = own.iter().zip(fio).map(|(own, fio)| value(own) / value(fio)).collect();
                ratios.sort_by(f64::total_cmp);
                ratios
            };
            let spread = |ratios: Vec<f64>| match &ratios[..] {
                [] => "-".to_owned(),
                all => format!("{:.2} ({:.2} to {:.2})", all[all.len() / 2], all[0], all[all.len() - 1]),
            };
            let middle = |value: fn(&Reads) -> f64| median(own.iter().map(value)).unwrap_or(f64::NAN);
            println!(
                "{depth:>9} {reader:<12} {:>8.0} {:>24} {:>9.1} {:>24} {:>8.2} {:>9} {:>7.0}",
                middle(|reads| reads.per_s),
                spread(ratios(|reads| reads.per_s)),
                middle(|reads| reads.mean_us),
                spread(ratios(|reads| reads.mean_us)),
                middle(|reads| reads.cpu_us),
                median(ratios(|reads| reads.cpu_us).into_iter()).map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
                middle(|reads| reads.device_bytes)
            );
        }
    }
    Ok(())
}

/// Creates an empty directory for an engine; removes an older one.
fn fresh(parent: &Path, engine: Engine) -> Result<PathBuf> {
    let dir = std::path::absolute(parent)?.join(engine.name());
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn one_round(engine: Engine, load: &Load, read_back: bool) -> Result<Round> {
    let dir = fresh(&load.dir, engine)?;
    let mut child = spawn("child-fill", engine, &dir, load, &[])?;
    let filled: Result<Filled> = answer(&mut child).with_context(|| format!("filling {}", engine.name()));
    restart::end(&mut child)?;
    let filled = filled?;
    let verified: Option<Verified> = if read_back {
        let mut child = spawn("child-verify", engine, &dir, load, &[])?;
        let verified = answer(&mut child).with_context(|| format!("reading {} back after the kill", engine.name()));
        restart::end(&mut child)?;
        Some(verified?)
    } else {
        None
    };
    std::fs::remove_dir_all(&dir)?;
    if let Some(verified) = &verified {
        ensure!(verified.wrong == 0, "{} returned {} wrong values", engine.name(), verified.wrong);
    }
    let accepted_per_s = load.entries as f64 / filled.accepted_s;
    let stored_per_s = verified.as_ref().map(|v| v.found as f64 / filled.settled_s);
    Ok(Round { filled, verified, accepted_per_s, stored_per_s })
}

fn spawn(verb: &str, engine: Engine, dir: &Path, load: &Load, more: &[String]) -> Result<Child> {
    let arguments = [
        ("--entries", load.entries.to_string()),
        ("--value-len", load.value_len.to_string()),
        ("--threads", load.threads.to_string()),
        ("--memory-mib", load.memory_mib.to_string()),
    ];
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(verb).arg(engine.name()).arg("--dir").arg(dir);
    for (name, value) in arguments {
        command.arg(name).arg(value);
    }
    Ok(restart::leads_a_group(&mut command).args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
}

/// Parses the one line that a child prints.
fn answer<T: DeserializeOwned>(child: &mut Child) -> Result<T> {
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("the child has no standard output")?).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("the child printed {line:?}"))
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn report(results: &BTreeMap<String, Vec<Round>>, engines: &[Engine], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(results)?);
        return Ok(());
    }
    println!("{:<14} {:>12} {:>12} {:>10} {:>8} {:>9}", "engine", "accepted k/s", "stored k/s", "kept %", "open s", "read k/s");
    for engine in engines {
        let rounds = &results[&engine.name()];
        let verified = || rounds.iter().filter_map(|r| r.verified.as_ref());
        let cell = |value: Option<f64>, scale: f64| value.map_or_else(|| "-".into(), |v| format!("{:.1}", v / scale));
        println!(
            "{:<14} {:>12} {:>12} {:>10} {:>8} {:>9}",
            engine.name(),
            cell(median(rounds.iter().map(|r| r.accepted_per_s)), 1e3),
            cell(median(rounds.iter().filter_map(|r| r.stored_per_s)), 1e3),
            cell(median(verified().map(|v| v.found as f64 / (v.found + v.lost) as f64)), 0.01),
            median(verified().map(|v| v.open_s)).map_or_else(|| "-".into(), |s| format!("{s:.3}")),
            cell(median(verified().map(|v| (v.found + v.lost) as f64 / v.read_s)), 1e3),
        );
    }
    Ok(())
}
