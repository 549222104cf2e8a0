//! When to kill.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::subject::{Process, Subject, Watched};

/// What a kill is meant to hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Anything,
    Activity(&'static str),
    /// The kill follows the one before, while its successor comes back.
    Recovery,
}

/// Taken in turn. A recovery is aimed at only after another kill gave it something to do.
const AIMS: [Aim; 7] = [
    Aim::Anything,
    Aim::Activity("fill"),
    Aim::Activity("sync"),
    Aim::Activity("seal"),
    Aim::Activity("checkpoint"),
    Aim::Activity("reclaim"),
    Aim::Recovery,
];

/// How long an activity is waited for before anything will do.
const PATIENCE: Duration = Duration::from_secs(1);
const DELAY_MS_MAX: f64 = 20.0;
/// Part of the requests in which kills are spread, so that the first finds something to lose and the last something to show.
const SPREAD: std::ops::Range<f64> = 0.05..0.95;

/// One kill and what came after it.
pub(crate) struct Kill {
    /// What the process was in the middle of.
    pub(crate) hit: Vec<&'static str>,
    /// The first request that was not begun by every thread.
    pub(crate) request: usize,
    /// From the next process's exec until its cache was open, unless it was killed before.
    pub(crate) ready_ms: Option<f64>,
    /// How often the life that it ended had emptied as many segments as there are.
    pub(crate) reclaim_cycles: f64,
}

/// Lets the subject serve its requests, and kills it `count` times meanwhile (less often if it is done before).
pub(crate) fn run(subject: &mut Subject<'_>, count: usize, seed: u64) -> anyhow::Result<Vec<Kill>> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x4B11);
    let mut kills: Vec<Kill> = Vec::with_capacity(count);
    let mut process = subject.spawn()?;
    for number in 0..count {
        // Half a step of chance, so that the life between two kills is long enough to be measured.
        let share = (number as f64 + rng.random_range(0.0..0.5)) / count as f64;
        let share = SPREAD.start + share * (SPREAD.end - SPREAD.start);
        let point = (share * subject.board.shape().requests as f64) as usize;
        let ready_ms_usual = kills.iter().rev().find_map(|kill| kill.ready_ms).unwrap_or(DELAY_MS_MAX);
        let moment = wait(subject, &mut process, AIMS[number % AIMS.len()], point, ready_ms_usual, &mut rng)?;
        let killed = moment != Watched::Finished && process.kill()?;
        note_ready(subject, &mut kills);
        if !killed {
            return Ok(kills);
        }
        kills.push(Kill {
            hit: what_was_hit(subject),
            request: subject.board.progress(),
            ready_ms: None,
            reclaim_cycles: subject.board.reclaim_cycles(),
        });
        process = subject.spawn()?;
    }
    subject.finish(process)?;
    note_ready(subject, &mut kills);
    Ok(kills)
}

/// Waits for the moment to kill.
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

/// A process that is not ready recovers, whether or not its cache has said so yet.
fn what_was_hit(subject: &Subject<'_>) -> Vec<&'static str> {
    let mut hit = subject.board.in_progress();
    if subject.board.ready_ms().is_none() && !hit.contains(&"recovery") {
        hit.push("recovery");
    }
    hit
}

/// The life that just ended was the successor of the last kill.
fn note_ready(subject: &Subject<'_>, kills: &mut [Kill]) {
    if let Some(kill) = kills.last_mut() {
        kill.ready_ms = subject.board.ready_ms();
    }
}
