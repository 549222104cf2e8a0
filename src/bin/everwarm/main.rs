//! The `everwarm` program: one module for each verb, built on the public API of the crate.
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
#[command(version, after_help = "Exit codes: 0 success; 1 as stated for the command; 2 error, with a message on standard error.")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure throughput, latency, hit ratio, device traffic and memory; exit 1 if an answer is
    /// wrong.
    Bench(bench::Args),
    /// Kill a working cache repeatedly and check every entry that comes back; exit 1 if a promise
    /// is broken.
    Drill(drill::Args),
    /// Write the value of a key to standard output; exit 1 if there is none. Only reads the store.
    Get(get::Args),
    /// Store a value under a key.
    Put(put::Args),
    /// Remove a key; succeeds if the key is absent.
    Delete(store::Keyed),
    /// Show the sizes and watermarks of a store, without changing it; beside a live owner, those of
    /// a snapshot. Counters are those of this opening.
    Stats(stats::Args),
    /// Decode a store's files without changing them; exit 1 if a file or record fails to verify.
    Inspect(inspect::Args),
    /// Copy the live entries into a new store; exit 1 if a record could not be read. Only reads the
    /// old store; beside a live owner it copies a snapshot.
    Compact(compact::Args),
    /// Run the process that `drill` kills.
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
        // The reader of the output has closed its end of the pipe: not worth a message.
        let is_pipe = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
        };
        if !error.chain().any(is_pipe) {
            // Standard error may be closed too, and there is no third place to report to.
            let _closed = writeln!(std::io::stderr(), "everwarm: {error:#}");
        }
        ExitCode::from(2)
    })
}
