//! `everwarm stats`: prints the counters and sizes of a store.

use std::io::Write;
use std::process::ExitCode;

use everwarm::Stats;

use crate::store::Source;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cache = args.source.open()?;
    let rows = rows(&cache.stats());
    cache.close()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let object: serde_json::Map<_, _> = rows.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        writeln!(out, "{}", serde_json::Value::Object(object))?;
    } else {
        for (name, value) in rows {
            writeln!(out, "{name:<24} {value:>20}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Name and value of each statistic. Counters start at zero when the store is opened; sizes and
/// watermarks describe the store itself.
fn rows(stats: &Stats) -> Vec<(&'static str, u64)> {
    vec![
        ("entries", stats.entries),
        ("index_bytes", stats.index_bytes),
        ("memory_tier_entries", stats.memory_tier_entries),
        ("memory_tier_bytes", stats.memory_tier_bytes),
        ("memory_bytes", stats.memory_bytes),
        ("kept_value_bytes", stats.kept_value_bytes),
        ("hits_memory", stats.hits_memory),
        ("hits_buffer", stats.hits_buffer),
        ("hits_flash", stats.hits_flash),
        ("misses", stats.misses),
        ("puts", stats.puts),
        ("deletes", stats.deletes),
        ("expired", stats.expired),
        ("collisions", stats.collisions),
        ("damaged", stats.damaged),
        ("read_errors", stats.read_errors),
        ("write_errors", stats.write_errors),
        ("disk_full", stats.disk_full),
        ("segments_free", stats.segments_free),
        ("segments_sealed", stats.segments_sealed),
        ("segments_quarantined", stats.segments_quarantined),
        ("segments_total", stats.segments_total),
        ("segments_reclaimed", stats.segments_reclaimed),
        ("reinserted", stats.reinserted),
        ("evicted", stats.evicted),
        ("appended", stats.appended.0),
        ("written", stats.written.0),
        ("durable", stats.durable.0),
        ("reclaimed", stats.reclaimed.0),
        ("flash_bytes_written", stats.flash_bytes_written),
        ("wal_bytes_written", stats.wal_bytes_written),
        ("manifest_bytes_written", stats.manifest_bytes_written),
        ("checkpoint_bytes_written", stats.checkpoint_bytes_written),
        ("checkpoints", stats.checkpoints),
        ("syncs", stats.syncs),
        ("io_uring", stats.io_uring.into()),
        ("waits", stats.waits.total()),
        ("refusals", stats.refusals.total()),
        ("unsynced_age_ms", stats.unsynced_age.as_millis().try_into().unwrap_or(u64::MAX)),
    ]
}
