//! The results of a benchmark: tables for people, one JSON object for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use everwarm::Stats;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::background::{Done, KINDS};
use super::phase::{CallStats, Gauge, Outcome};
use crate::size::show_bytes;

/// Least number of entries for which the index's bytes for one entry are reported.
const MANY: u64 = 100_000;

/// The object that `--json` prints.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) workload: String,
    /// Whether no answer was wrong.
    pub(crate) ok: bool,
    pub(crate) seed: u64,
    pub(crate) entries: u32,
    /// Directory of the store.
    pub(crate) directory: PathBuf,
    /// Total bytes of all keys and values.
    pub(crate) footprint: u64,
    pub(crate) callers: usize,
    /// Concurrent calls of each caller; 0 for one blocking call at a time.
    pub(crate) tasks: u16,
    /// Calls a second of all callers together; 0 for no limit.
    pub(crate) rate: u64,
    /// Budget of DRAM in bytes.
    pub(crate) memory: u64,
    /// Flash capacity in bytes.
    pub(crate) flash: u64,
    pub(crate) io_uring: bool,
    pub(crate) phases: Vec<Row>,
    pub(crate) restart: Option<Restart>,
}

/// Recovery after a kill: its duration and its work. The counts are those of
/// [`everwarm::RecoveryReport`].
#[derive(Serialize)]
pub(crate) struct Restart {
    /// Milliseconds that opening the store took.
    pub(crate) open_ms: f64,
    /// Milliseconds of `open_ms` for loading the checkpoint and the footers.
    pub(crate) load_ms: f64,
    /// Milliseconds of `open_ms` for replaying the WAL.
    pub(crate) replay_ms: f64,
    pub(crate) checkpoint_entries: u64,
    pub(crate) footer_entries: u64,
    pub(crate) wal_frames: u64,
    /// Milliseconds from the call to open until a first get returned its value; none after a miss.
    pub(crate) first_hit_ms: Option<f64>,
    /// Entries of the index after the first get.
    pub(crate) entries: u64,
}

/// The results of one phase.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    calls: u64,
    /// Seconds until the last call returned.
    seconds: f64,
    /// Seconds until flash held all entries, if the phase waited for that; otherwise as `seconds`.
    settled_seconds: f64,
    calls_per_s: f64,
    reads: Option<Latency>,
    writes: Option<Latency>,
    /// Latency of calls at a given rate, by the background work that overlapped them.
    beside: BTreeMap<&'static str, Latency>,
    hits_memory: u64,
    hits_buffer: u64,
    hits_flash: u64,
    misses: u64,
    wrong: u64,
    bytes_put: u64,
    syncs: u64,
    /// Checkpoints and reclaims that ended.
    background: BTreeMap<&'static str, Done>,
    /// Bytes that all processes together read from the device.
    device_bytes_read: Option<u64>,
    /// Bytes that all processes together wrote to the device.
    device_bytes_written: Option<u64>,
    cpu_ms: f64,
    cpu_us_per_call: Option<f64>,
    pub(crate) gauges: Vec<Gauge>,
    memory_bytes: u64,
    resident_bytes: Option<u64>,
    index_bytes_per_entry: Option<f64>,
    #[serde(skip)]
    pub(crate) series: Vec<(f64, u64)>,
    #[serde(skip)]
    pub(crate) histograms: [Histogram<u64>; 2],
}

/// Latency in microseconds from the intended start.
#[derive(Serialize)]
pub(crate) struct Latency {
    calls: u64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    p9999: f64,
    max: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let at = |quantile| us(histogram.value_at_quantile(quantile));
        (!histogram.is_empty()).then(|| Self {
            calls: histogram.len(),
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: us(histogram.max()),
        })
    }
}

impl Row {
    pub(crate) fn new(name: &'static str, outcome: Outcome, stats: &Stats, resident_bytes: Option<u64>) -> Self {
        let Outcome { calls: stats_of_calls, cost, accepted, series, gauges, syncs, background } = outcome;
        let calls = stats_of_calls.calls();
        let CallStats { reads, writes, beside, hits: [hits_memory, hits_buffer, hits_flash], misses, wrong, bytes_put } = stats_of_calls;
        Self {
            name,
            calls,
            seconds: accepted.as_secs_f64(),
            settled_seconds: cost.took.as_secs_f64(),
            calls_per_s: calls as f64 / accepted.as_secs_f64(),
            reads: Latency::of(&reads),
            writes: Latency::of(&writes),
            beside: KINDS.into_iter().zip(&beside).filter_map(|(kind, histogram)| Some((kind, Latency::of(histogram)?))).collect(),
            hits_memory,
            hits_buffer,
            hits_flash,
            misses,
            wrong,
            bytes_put,
            syncs,
            background: KINDS[2..].iter().copied().zip(background).collect(),
            device_bytes_read: cost.device_read,
            device_bytes_written: cost.device_written,
            cpu_ms: cost.cpu.as_secs_f64() * 1e3,
            gauges,
            cpu_us_per_call: (calls > 0).then(|| cost.cpu.as_secs_f64() * 1e6 / calls as f64),
            memory_bytes: stats.memory_bytes,
            resident_bytes,
            index_bytes_per_entry: (stats.entries >= MANY).then(|| stats.index_bytes as f64 / stats.entries as f64),
            series,
            histograms: [reads, writes],
        }
    }

    pub(crate) fn is_right(&self) -> bool {
        self.wrong == 0
    }

    /// Number of keys that gets asked for.
    fn lookups(&self) -> u64 {
        self.hits_memory + self.hits_buffer + self.hits_flash + self.misses
    }
}

impl Report {
    /// Tables of the phases: first calls, hits and costs, then latencies.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |cells: std::fmt::Arguments<'_>| {
            let _ = text.write_fmt(cells);
            text.push('\n');
        };
        let cell = |value: Option<f64>, decimals: usize| value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"));
        line(format_args!(
            "{:<10} {:>11} {:>8} {:>9} {:>10} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8} {:>9}",
            "phase", "calls", "s", "settled s", "calls/s", "memory%", "buffer%", "flash%", "miss%", "read B", "written", "cpu us", "memory"
        ));
        for row in &self.phases {
            let share = |of: u64| cell((row.lookups() > 0).then(|| 100.0 * of as f64 / row.lookups() as f64), 2);
            let read = row.device_bytes_read.filter(|_| row.hits_flash > 0).map(|bytes| bytes as f64 / row.hits_flash as f64);
            let written = row.device_bytes_written.filter(|_| row.bytes_put > 0).map(|bytes| bytes as f64 / row.bytes_put as f64);
            line(format_args!(
                "{:<10} {:>11} {:>8.2} {:>9.2} {:>10.0} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8} {:>9}",
                row.name,
                row.calls,
                row.seconds,
                row.settled_seconds,
                row.calls_per_s,
                share(row.hits_memory),
                share(row.hits_buffer),
                share(row.hits_flash),
                share(row.misses),
                cell(read, 0),
                cell(written, 3),
                cell(row.cpu_us_per_call, 2),
                show_bytes(row.memory_bytes)
            ));
        }
        line(format_args!(""));
        line(format_args!(
            "{:<10} {:<10} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10}",
            "us a call", "", "calls", "mean", "p50", "p90", "p99", "p99.9", "max"
        ));
        for row in &self.phases {
            let of_kind =
                [("reads", &row.reads), ("writes", &row.writes)].into_iter().filter_map(|(kind, latency)| Some((kind, latency.as_ref()?)));
            for (kind, l) in of_kind.chain(row.beside.iter().map(|(kind, latency)| (*kind, latency))) {
                line(format_args!(
                    "{:<10} {kind:<10} {:>11} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>10.0}",
                    row.name, l.calls, l.mean, l.p50, l.p90, l.p99, l.p999, l.max
                ));
            }
        }
        line(format_args!(""));
        if let Some(restart) = &self.restart {
            line(format_args!(
                "after a kill: open {:.1} ms (load {:.1} ms: {} checkpoint entries, {} footer entries; replay {:.1} ms: {} WAL frames), first hit {} ms, {} entries",
                restart.open_ms,
                restart.load_ms,
                restart.checkpoint_entries,
                restart.footer_entries,
                restart.replay_ms,
                restart.wal_frames,
                cell(restart.first_hit_ms, 1),
                restart.entries
            ));
        }
        if let Some(index) = self.phases.last().and_then(|row| row.index_bytes_per_entry) {
            line(format_args!("index: {index:.2} B an entry"));
        }
        let wrong: u64 = self.phases.iter().map(|row| row.wrong).sum();
        line(format_args!("wrong answers {wrong}: {}", if wrong == 0 { "ok" } else { "NOT OK" }));
        text
    }

    /// The settings of the benchmark in one line.
    pub(crate) fn describe(&self) -> String {
        let rate = if self.rate == 0 { "no rate limit".to_owned() } else { format!("{} calls/s", self.rate) };
        let tasks = if self.tasks == 0 { String::new() } else { format!(" with {} tasks each", self.tasks) };
        format!(
            "{}: {} entries, {} of keys and values, {} callers{tasks}, {rate}, memory {}, flash {}, seed {}, directory {}",
            self.workload,
            self.entries,
            show_bytes(self.footprint),
            self.callers,
            show_bytes(self.memory),
            show_bytes(self.flash),
            self.seed,
            self.directory.display()
        )
    }
}
