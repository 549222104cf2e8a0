//! The results of a drill: text for people, one JSON object for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::Setup;
use super::board::{Board, Count, Violation};
use super::kills::Kill;
use super::oracle::{Fault, Mutation};
use super::warmth::{HitCounts, Pair, Warmth, measure};
use crate::level::AckLevel;
use crate::size::show_bytes;

/// Most violations that are printed.
const SHOWN: usize = 5;

/// Milliseconds from the spawn of a process until its cache was open.
#[derive(Serialize)]
struct Ready {
    /// Median of the restarts after kills.
    p50: Option<f64>,
    /// Maximum of the restarts after kills.
    max: Option<f64>,
    /// The restart after a clean stop.
    clean: Option<f64>,
}

/// Hits by all gets, over all kills.
#[derive(Serialize)]
struct HitRatio {
    before: Option<f64>,
    first_second: Option<f64>,
    first_100k: Option<f64>,
    twin_before: Option<f64>,
    twin_first_second: Option<f64>,
    twin_first_100k: Option<f64>,
    /// Hit ratio of the memory tier alone, in the eleventh second after the spawn; none if no
    /// process lived that long.
    memory_after_10_s: Option<f64>,
    twin_memory_after_10_s: Option<f64>,
}

#[derive(Serialize)]
struct KillRow {
    hit: Vec<&'static str>,
    request: usize,
    ready_ms: Option<f64>,
    reclaim_cycles: f64,
    warmth: Warmth,
}

/// The object that `--json` prints.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    seed: u64,
    keys: usize,
    requests: usize,
    footprint: u64,
    memory: u64,
    flash: u64,
    kills: usize,
    stale: u64,
    resurrected: u64,
    wrong: u64,
    lost_acked: u64,
    /// Misses that a reclaimed segment explains.
    evicted: u64,
    /// Mutations that a kill left in doubt and that had happened.
    doubts_landed: u64,
    /// Mutations that a kill left in doubt and that had not happened.
    doubts_dropped: u64,
    /// Puts of values that are too large for the store.
    refused: u64,
    ready_ms: Ready,
    hit_ratio: HitRatio,
    /// Number of kills that interrupted each activity.
    hit: BTreeMap<&'static str, usize>,
    total: Warmth,
    each: Vec<KillRow>,
    violations: Vec<String>,
}

impl Report {
    pub(crate) fn new(setup: &Setup, kills: &[Kill], victim: &Board, twin: &Board) -> Self {
        let moments: Vec<usize> = kills.iter().map(|kill| kill.request).collect();
        let warmths = measure(setup.shape.requests, &moments, |at| victim.outcome(at), |at| twin.outcome(at));
        let total = Warmth::sum(&warmths);
        let faults = |fault: Fault| victim.faults(fault) + twin.faults(fault);
        let counted = |count: Count| victim.counted(count) + twin.counted(count);
        let (stale, resurrected, wrong, lost_acked) =
            (faults(Fault::Stale), faults(Fault::Resurrected), faults(Fault::Wrong), faults(Fault::Lost));
        let lost_is_broken = setup.ack != AckLevel::Memory;
        let violations = [("victim", victim), ("twin", twin)].into_iter();
        Self {
            ok: stale + resurrected + wrong == 0 && (lost_acked == 0 || !lost_is_broken),
            seed: setup.seed,
            keys: setup.shape.keys,
            requests: setup.shape.requests,
            footprint: setup.footprint,
            memory: setup.memory,
            flash: setup.flash,
            kills: kills.len(),
            stale,
            resurrected,
            wrong,
            lost_acked,
            evicted: counted(Count::Evicted),
            doubts_landed: counted(Count::Landed),
            doubts_dropped: counted(Count::Dropped),
            refused: counted(Count::Refused),
            ready_ms: ready(kills, victim),
            hit_ratio: hit_ratio(&total),
            hit: histogram(kills),
            total,
            each: kills.iter().zip(warmths).map(|(kill, warmth)| row(kill, warmth)).collect(),
            violations: violations.flat_map(|(whose, board)| board.violations().into_iter().map(move |v| explain(whose, &v))).collect(),
        }
    }

    /// A table with a line for each kill, and a table of the hit ratios by second after the
    /// restarts.
    pub(crate) fn details(&self) -> String {
        let mut text = String::new();
        let mut line = |cells: std::fmt::Arguments<'_>| {
            let _ = text.write_fmt(cells);
            text.push('\n');
        };
        line(format_args!(
            "hit ratio in % of the gets; in brackets, the twin's over the same requests. cycles: reclaimed segments / all segments, since the previous kill"
        ));
        line(format_args!(
            "   # {:<24} {:>10} {:>7} {:>9} {:>15} {:>15} {:>15}",
            "hit", "request", "cycles", "ready ms", "before", "first second", "first 100k"
        ));
        for (number, row) in self.each.iter().enumerate() {
            let hit = if row.hit.is_empty() { "-".to_owned() } else { row.hit.join(" ") };
            let ready = row.ready_ms.map_or("killed".to_owned(), |ms| format!("{ms:.1}"));
            let warmth = [&row.warmth.before, row.warmth.first_second(), &row.warmth.first_100k].map(beside_twin);
            let [before, second, window] = warmth;
            let (request, cycles) = (row.request, row.reclaim_cycles);
            line(format_args!("{:>4} {hit:<24} {request:>10} {cycles:>7.2} {ready:>9} {before:>15} {second:>15} {window:>15}", number + 1));
        }
        line(format_args!(""));
        line(format_args!("{:<16} {:>8} {:>8} {:>8} {:>15}", "all kills", "memory", "buffer", "flash", "together"));
        line(format_args!("{}", by_tier("100k before", &self.total.before)));
        for (second, pair) in self.total.seconds.iter().enumerate().filter(|(_, pair)| pair.victim.gets > 0) {
            line(format_args!("{}", by_tier(&format!("second {}", second + 1), pair)));
        }
        line(format_args!(""));
        text
    }

    /// The totals in a few lines.
    pub(crate) fn totals(&self) -> String {
        let hit: Vec<String> = self.hit.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let ratio = &self.hit_ratio;
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        [
            format!("{} kills hit: {}", self.kills, if hit.is_empty() { "-".to_owned() } else { hit.join(", ") }),
            format!(
                "ready after ms: p50 {}, max {}; after a clean stop {}",
                ms(self.ready_ms.p50),
                ms(self.ready_ms.max),
                ms(self.ready_ms.clean)
            ),
            format!(
                "hit ratio %: before {}, first second {} (twin {}), first 100k {} (twin {})",
                percent(ratio.before),
                percent(ratio.first_second),
                percent(ratio.twin_first_second),
                percent(ratio.first_100k),
                percent(ratio.twin_first_100k)
            ),
            format!(
                "memory tier after 10 s, hit ratio %: {} (twin {})",
                percent(ratio.memory_after_10_s),
                percent(ratio.twin_memory_after_10_s)
            ),
            format!(
                "mutations in doubt: {} had happened, {} had not; misses by eviction: {}; values too large: {}",
                self.doubts_landed, self.doubts_dropped, self.evicted, self.refused
            ),
            format!(
                "stale {}, resurrected {}, wrong {}, lost {}: {}",
                self.stale,
                self.resurrected,
                self.wrong,
                self.lost_acked,
                if self.ok { "ok" } else { "BROKEN" }
            ),
            String::new(),
        ]
        .join("\n")
    }

    /// The requests at which the kills fell.
    pub(crate) fn kill_requests(&self) -> impl Iterator<Item = usize> {
        self.each.iter().map(|row| row.request)
    }

    /// The first violations, a line each.
    pub(crate) fn violations(&self) -> String {
        self.violations.iter().take(SHOWN).map(|violation| format!("  {violation}\n")).collect()
    }
}

/// The settings of the drill in one line.
pub(crate) fn describe(setup: &Setup) -> String {
    let rate = if setup.rate == 0 { "no rate limit".to_owned() } else { format!("{} a second", setup.rate) };
    format!(
        "drill with seed {}: {} requests, {rate}, over {} keys of {}, in {} of memory and {} of flash",
        setup.seed,
        setup.shape.requests,
        setup.shape.keys,
        show_bytes(setup.footprint),
        show_bytes(setup.memory),
        show_bytes(setup.flash)
    )
}

fn ready(kills: &[Kill], victim: &Board) -> Ready {
    let mut ready: Vec<f64> = kills.iter().filter_map(|kill| kill.ready_ms).collect();
    ready.sort_by(f64::total_cmp);
    Ready { p50: ready.get(ready.len() / 2).copied(), max: ready.last().copied(), clean: victim.ready_ms() }
}

fn hit_ratio(total: &Warmth) -> HitRatio {
    let memory = |counts: &HitCounts| counts.share(counts.memory);
    HitRatio {
        before: total.before.victim.hit_ratio(),
        first_second: total.first_second().victim.hit_ratio(),
        first_100k: total.first_100k.victim.hit_ratio(),
        twin_before: total.before.twin.hit_ratio(),
        twin_first_second: total.first_second().twin.hit_ratio(),
        twin_first_100k: total.first_100k.twin.hit_ratio(),
        memory_after_10_s: memory(&total.after_ten_seconds().victim),
        twin_memory_after_10_s: memory(&total.after_ten_seconds().twin),
    }
}

fn histogram(kills: &[Kill]) -> BTreeMap<&'static str, usize> {
    let mut histogram = BTreeMap::new();
    for kill in kills {
        if kill.hit.is_empty() {
            *histogram.entry("nothing").or_default() += 1;
        }
        for activity in &kill.hit {
            *histogram.entry(*activity).or_default() += 1;
        }
    }
    histogram
}

fn row(kill: &Kill, warmth: Warmth) -> KillRow {
    KillRow { hit: kill.hit.clone(), request: kill.request, ready_ms: kill.ready_ms, reclaim_cycles: kill.reclaim_cycles, warmth }
}

fn explain(whose: &str, violation: &Violation) -> String {
    let Violation { fault, request, key, acked, intent, found } = violation;
    let seen = match (fault, *found) {
        (Fault::Lost, _) => "a miss".to_owned(),
        (_, Mutation::NEVER) => "bytes that no put wrote".to_owned(),
        (_, mutation) => mutation.to_string(),
    };
    let doubt = if intent == acked { String::new() } else { format!(", with {intent} in doubt") };
    format!("{}: {whose}, request {request}, key {key}: found {seen} after {acked}{doubt}", fault.name())
}

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{:.1}", 100.0 * ratio))
}

fn beside_twin(pair: &Pair) -> String {
    format!("{} ({})", percent(pair.victim.hit_ratio()), percent(pair.twin.hit_ratio()))
}

fn by_tier(name: &str, pair: &Pair) -> String {
    let HitCounts { memory, buffer, flash, .. } = pair.victim;
    let [memory, buffer, flash] = [memory, buffer, flash].map(|hits| percent(pair.victim.share(hits)));
    format!("{name:<16} {memory:>8} {buffer:>8} {flash:>8} {:>15}", beside_twin(pair))
}
