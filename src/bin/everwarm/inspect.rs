//! `everwarm inspect`

use std::path::PathBuf;
use std::process::ExitCode;

use everwarm::{Inspection, LAYOUT};
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The store's directory, or `layout` for the byte tables of every file kind.
    dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.dir.as_os_str() == "layout" {
        for (kind, table) in LAYOUT {
            println!("# {kind}\n\n{table}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let found = everwarm::inspect(&args.dir)?;
    if args.json {
        println!("{}", as_json(&found));
    } else {
        print(&found);
    }
    Ok(if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(found: &Inspection) {
    println!("store {} in {}", found.store_id, found.dir.display());
    let stop = if found.clean { "closed in order" } else { "open, or not closed in order" };
    println!("manifest {}, {stop}; durable {}, reclaimed {}", found.manifest_sequence, found.durable, found.reclaimed);
    println!("flash {} B in segments of {} B, {} free", found.flash, found.segment_size, found.segments_free);
    match found.checkpoint {
        Some((sequence, entries)) => println!("checkpoint {sequence}: {entries} entries"),
        None => println!("no checkpoint"),
    }
    println!("WAL files: {}", found.wal_files.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(" "));
    println!("{:>8} {:<12} {:>16} {:>10} {:>10} {:>12} {:>5}", "segment", "state", "base", "puts", "tombstones", "data bytes", "lost");
    for s in &found.segments {
        println!("{:>8} {:<12} {:>16} {:>10} {:>10} {:>12} {:>5}", s.id, s.state, s.base, s.puts, s.tombstones, s.data_bytes, s.lost);
    }
    for problem in &found.problems {
        println!("problem: {problem}");
    }
}

fn as_json(found: &Inspection) -> serde_json::Value {
    let segment = |s: &everwarm::SegmentInspection| {
        json!({
            "id": s.id, "state": s.state, "base": s.base, "size": s.size, "puts": s.puts, "tombstones": s.tombstones,
            "data_bytes": s.data_bytes, "lost": s.lost,
        })
    };
    json!({
        "store_id": found.store_id,
        "manifest_sequence": found.manifest_sequence,
        "manifest_whole": found.manifest_whole,
        "clean": found.clean,
        "durable": found.durable,
        "reclaimed": found.reclaimed,
        "time_ms": found.time_ms,
        "flash": found.flash,
        "segment_size": found.segment_size,
        "segments_free": found.segments_free,
        "segments": found.segments.iter().map(segment).collect::<Vec<_>>(),
        "wal_files": found.wal_files.iter().map(|(_, name)| name).collect::<Vec<_>>(),
        "checkpoint": found.checkpoint.map(|(sequence, entries)| json!({ "sequence": sequence, "entries": entries })),
        "problems": found.problems,
    })
}
