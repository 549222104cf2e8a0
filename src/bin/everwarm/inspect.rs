//! `everwarm inspect`: prints the decoded files of a store, or the byte layout of every file kind.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use everwarm::{Inspection, LAYOUT};
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The store's directory, or `layout` for the byte tables of every file kind.
    dir: PathBuf,
    /// Also verify every record, WAL frame and checkpoint entry; reads all of flash.
    #[arg(long)]
    verify: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    if args.dir.as_os_str() == "layout" {
        let tables: serde_json::Map<_, _> = LAYOUT.iter().map(|(kind, table)| ((*kind).to_owned(), (*table).into())).collect();
        match args.json {
            true => writeln!(out, "{}", serde_json::Value::Object(tables))?,
            false => LAYOUT.iter().try_for_each(|(kind, table)| writeln!(out, "# {kind}\n\n{table}"))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let found = if args.verify { everwarm::verify(&args.dir)? } else { everwarm::inspect(&args.dir)? };
    if args.json {
        writeln!(out, "{}", as_json(&found))?;
    } else {
        print(&found, &mut out)?;
    }
    Ok(if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(found: &Inspection, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "store {} in {}", found.store_id, found.dir.display())?;
    let stop = if found.clean { "closed cleanly" } else { "open, or not closed cleanly" };
    writeln!(out, "manifest {}, {stop}; durable {}, reclaimed {}", found.manifest_sequence, found.durable, found.reclaimed)?;
    writeln!(out, "flash {} B in segments of {} B, {} free", found.flash, found.segment_size, found.segments_free)?;
    match found.checkpoint {
        Some((sequence, entries)) => writeln!(out, "checkpoint {sequence}: {entries} entries")?,
        None => writeln!(out, "no checkpoint")?,
    }
    writeln!(out, "WAL files: {}", found.wal_files.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(" "))?;
    writeln!(
        out,
        "{:>8} {:<12} {:>16} {:>10} {:>10} {:>12} {:>5}",
        "segment", "state", "base", "puts", "tombstones", "data bytes", "lost"
    )?;
    for s in &found.segments {
        writeln!(out, "{:>8} {:<12} {:>16} {:>10} {:>10} {:>12} {:>5}", s.id, s.state, s.base, s.puts, s.tombstones, s.data_bytes, s.lost)?;
    }
    if let Some(v) = &found.verified {
        writeln!(out, "verified: {} records, {} entries of the checkpoint", v.records, v.checkpoint_entries)?;
        writeln!(out, "WAL: {} frames up to mutation {}, {} B torn", v.wal_frames, v.wal_last, v.torn_bytes)?;
    }
    for problem in &found.problems {
        writeln!(out, "problem: {problem}")?;
    }
    Ok(())
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
        "wall_ms": found.wall_ms,
        "report_pending": found.report_pending,
        "flash": found.flash,
        "segment_size": found.segment_size,
        "segments_free": found.segments_free,
        "segments": found.segments.iter().map(segment).collect::<Vec<_>>(),
        "wal_files": found.wal_files.iter().map(|(_, name)| name).collect::<Vec<_>>(),
        "checkpoint": found.checkpoint.map(|(sequence, entries)| json!({ "sequence": sequence, "entries": entries })),
        "verified": found.verified.map(|v| json!({
            "records": v.records, "checkpoint_entries": v.checkpoint_entries, "wal_frames": v.wal_frames, "wal_last": v.wal_last, "torn_bytes": v.torn_bytes,
        })),
        "problems": found.problems,
    })
}
