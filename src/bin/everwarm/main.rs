//! The `everwarm` program: one file for each verb, on the public API of the crate.
#![allow(clippy::disallowed_methods, reason = "a program outside the engine measures real time")]

mod bench;
mod compact;
mod delete;
mod drill;
mod get;
mod html;
mod inspect;
mod level;
mod put;
mod size;
mod stats;
mod store;
mod workload;
mod workspace;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A persistent tiered cache that comes back warm after a crash, and never comes back wrong.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure a cache at work: throughput, latency, hit ratio, device traffic, memory.
    Bench(bench::Args),
    /// Kill a cache at work again and again, and check what comes back.
    Drill(drill::Args),
    /// Write the value of a key to standard output; exit 1 if there is none.
    Get(store::Keyed),
    /// Store a value under a key.
    Put(put::Args),
    /// Remove a key, if it is there.
    Delete(store::Keyed),
    /// Show the counters and sizes of a store.
    Stats(stats::Args),
    /// Decode a store's files without changing them; exit 1 if something does not verify.
    Inspect(inspect::Args),
    /// Copy what is live into a new store.
    Compact(compact::Args),
    /// The process that `drill` kills.
    #[command(hide = true)]
    DrillChild { config: PathBuf },
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Bench(args) => bench::run(&args),
        Verb::Drill(args) => drill::run(&args),
        Verb::Get(args) => get::run(&args),
        Verb::Put(args) => put::run(&args),
        Verb::Delete(args) => delete::run(&args),
        Verb::Stats(args) => stats::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Compact(args) => compact::run(&args),
        Verb::DrillChild { config } => drill::run_child(&config),
    };
    result.unwrap_or_else(|error| {
        // Whoever read the output has seen enough.
        let is_pipe = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
        };
        if !error.chain().any(is_pipe) {
            // Nobody may be listening there either.
            let _unheard = writeln!(std::io::stderr(), "everwarm: {error:#}");
        }
        ExitCode::from(2)
    })
}
