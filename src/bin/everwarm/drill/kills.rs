//! Chooses the moments at which the drilled process is killed, and kills it.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::subject::{Process, Subject, Watched};

/// The activity that a kill is meant to interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// A random moment.
    Anything,
    /// A moment at which the board shows this activity.
    Activity(&'static str),
    /// The recovery that follows the previous kill.
    Recovery,
}

/// The aims of successive kills, in turn. A recovery follows another kill, which gives it work to
/// do.
const AIMS: [Aim; 7] = [
    Aim::Anything,
    Aim::Activity("fill"),
    Aim::Activity("sync"),
    Aim::Activity("seal"),
    Aim::Activity("checkpoint"),
    Aim::Activity("reclaim"),
    Aim::Recovery,
];

/// How long to wait for the activity that a kill aims at, before killing at any moment.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest random delay in milliseconds before a kill or before the wait for an activity. Also the
/// assumed time to readiness until one was measured.
const DELAY_MS_MAX: f64 = 20.0;
/// Share of the requests over which kills are spread: the first kill finds entries to lose, and
/// requests remain to be measured after the last.
const SPREAD: std::ops::Range<f64> = 0.05..0.95;

/// One kill and the restart after it.
pub(crate) struct Kill {
    /// The activities that the kill interrupted.
    pub(crate) hit: Vec<&'static str>,
    /// The first request that some thread had not begun.
    pub(crate) request: usize,
    /// Milliseconds from the next process's spawn until its cache was open; none if that process
    /// was killed before.
    pub(crate) ready_ms: Option<f64>,
    /// Segments that the killed process had reclaimed, divided by the number of segments.
    pub(crate) reclaim_cycles: f64,
}

/// Lets the subject serve its requests and kills it `count` times meanwhile; fewer times if it
/// finishes before.
pub(crate) fn run(subject: &mut Subject<'_>, count: usize, seed: u64) -> anyhow::Result<Vec<Kill>> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x4B11);
    let mut kills: Vec<Kill> = Vec::with_capacity(count);
    let mut process = subject.spawn()?;
    for number in 0..count {
        // The random part is at most half a step, so that the life between two kills is long enough
        // to be measured.
        let share = (number as f64 + rng.random_range(0.0..0.5)) / count as f64;
        let share = SPREAD.start + share * (SPREAD.end - SPREAD.start);
        let point = (share * subject.board.shape().requests as f64) as usize;
        let ready_ms_usual = kills.iter().rev().find_map(|kill| kill.ready_ms).unwrap_or(DELAY_MS_MAX);
        let moment = wait(subject, &mut process, AIMS[number % AIMS.len()], point, ready_ms_usual, &mut rng)?;
        let killed = moment != Watched::Finished && process.kill()?;
        record_ready(subject, &mut kills);
        if !killed {
            return Ok(kills);
        }
        kills.push(Kill {
            hit: interrupted_activities(subject),
            request: subject.board.progress(),
            ready_ms: None,
            reclaim_cycles: subject.board.reclaim_cycles(),
        });
        process = subject.spawn()?;
    }
    subject.finish(process)?;
    record_ready(subject, &mut kills);
    Ok(kills)
}

/// Waits for the moment to kill. For [`Aim::Recovery`] that is a random moment of the recovery.
/// Otherwise every thread first passes request `point`, and then the board shows the activity.
fn wait(
    subject: &Subject<'_>,
    process: &mut Process,
    aim: Aim,
    point: usize,
    ready_ms_usual: f64,
    rng: &mut StdRng,
) -> anyhow::Result<Watched> {
    if aim == Aim::Recovery {
        let began = subject.watch(process, |board| board.ready_ms().is_some() || board.in_progress().contains(&"recovery"))?;
        nap(rng.random_range(0.0..=ready_ms_usual / 2.0));
        return Ok(began);
    }
    let arrived = subject.watch(process, |board| board.ready_ms().is_some() && board.progress() >= point)?;
    if arrived == Watched::Finished {
        return Ok(arrived);
    }
    nap(rng.random_range(0.0..DELAY_MS_MAX));
    match aim {
        Aim::Activity(name) => subject.catch(process, PATIENCE, |board| board.in_progress().contains(&name)),
        Aim::Anything | Aim::Recovery => Ok(arrived),
    }
}

fn nap(ms: f64) {
    std::thread::sleep(Duration::from_secs_f64(ms / 1_000.0));
}

/// The activities that the kill interrupted. A process whose cache is not open yet is recovering,
/// even if the board does not show a recovery yet.
fn interrupted_activities(subject: &Subject<'_>) -> Vec<&'static str> {
    let mut hit = subject.board.in_progress();
    if subject.board.ready_ms().is_none() && !hit.contains(&"recovery") {
        hit.push("recovery");
    }
    hit
}

/// Records the time to readiness of the process that just ended, which succeeded the last kill.
fn record_ready(subject: &Subject<'_>, kills: &mut [Kill]) {
    if let Some(kill) = kills.last_mut() {
        kill.ready_ms = subject.board.ready_ms();
    }
}
