//! How warm a killed cache came back, against a twin that was not killed, over the very same requests.

use serde::Serialize;

use everwarm::Tier;

use super::outcome::{Answer, Outcome};

/// Requests of the windows before a kill and after it.
pub(crate) const WINDOW: usize = 100_000;
/// Seconds after an exec that are told apart.
pub(crate) const SECONDS: usize = 11;
const SECOND_US: u64 = 1_000_000;

/// Gets and where they were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tally {
    pub(crate) gets: u64,
    pub(crate) memory: u64,
    pub(crate) buffer: u64,
    pub(crate) flash: u64,
}

impl Tally {
    fn add(&mut self, outcome: Option<Outcome>) {
        let hits = match outcome.map(|outcome| outcome.answer) {
            None | Some(Answer::Mutated) => return,
            Some(Answer::Missed) => None,
            Some(Answer::Hit(Tier::Memory)) => Some(&mut self.memory),
            Some(Answer::Hit(Tier::Buffer)) => Some(&mut self.buffer),
            Some(Answer::Hit(Tier::Flash)) => Some(&mut self.flash),
        };
        self.gets += 1;
        if let Some(hits) = hits {
            *hits += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.gets += other.gets;
        self.memory += other.memory;
        self.buffer += other.buffer;
        self.flash += other.flash;
    }

    /// Part of the gets that `hits` are; none if there were no gets.
    pub(crate) fn share(&self, hits: u64) -> Option<f64> {
        (self.gets > 0).then(|| hits as f64 / self.gets as f64)
    }

    pub(crate) fn hit_ratio(&self) -> Option<f64> {
        self.share(self.memory + self.buffer + self.flash)
    }
}

/// The same requests in both lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Pair {
    pub(crate) victim: Tally,
    pub(crate) twin: Tally,
}

impl Pair {
    fn add(&mut self, victim: Option<Outcome>, twin: Option<Outcome>) {
        self.victim.add(victim);
        self.twin.add(twin);
    }

    fn merge(&mut self, other: &Self) {
        self.victim.merge(&other.victim);
        self.twin.merge(&other.twin);
    }
}

/// What one kill, or all of them together, did to the hit ratio.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Warmth {
    /// The [`WINDOW`] requests before the kill.
    pub(crate) before: Pair,
    /// The first [`WINDOW`] requests after it.
    pub(crate) first_100k: Pair,
    /// Requests by the second after the exec in which the restarted cache answered them.
    pub(crate) seconds: [Pair; SECONDS],
}

impl Warmth {
    pub(crate) fn first_second(&self) -> &Pair {
        &self.seconds[0]
    }

    /// The eleventh second, in which the memory tier has had ten to fill.
    pub(crate) fn after_ten_seconds(&self) -> &Pair {
        &self.seconds[SECONDS - 1]
    }

    pub(crate) fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for one in all {
            sum.before.merge(&one.before);
            sum.first_100k.merge(&one.first_100k);
            for (second, other) in sum.seconds.iter_mut().zip(&one.seconds) {
                second.merge(other);
            }
        }
        sum
    }
}

/// What came of the requests, `step` by `step`.
pub(crate) fn curve(requests: usize, step: usize, outcome: impl Fn(usize) -> Option<Outcome>) -> Vec<Tally> {
    let mut points = vec![Tally::default(); requests.div_ceil(step)];
    (0..requests).for_each(|at| points[at / step].add(outcome(at)));
    points
}

/// Measures the kills that came at the requests `kills`: kill `k` ended life `k` of the victim.
pub(crate) fn measure<V, T>(requests: usize, kills: &[usize], victim: V, twin: T) -> Vec<Warmth>
where
    V: Fn(usize) -> Option<Outcome>,
    T: Fn(usize) -> Option<Outcome>,
{
    let mut all = vec![Warmth::default(); kills.len()];
    for (warmth, kill) in all.iter_mut().zip(kills) {
        for at in kill.saturating_sub(WINDOW)..*kill {
            warmth.before.add(victim(at), twin(at));
        }
    }
    // Where one life ends and the next begins, requests of both are interleaved, because threads are not at the same request.
    let mut served = vec![0; kills.len()];
    for at in 0..requests {
        let Some(outcome) = victim(at) else { continue };
        let Some(kill) = outcome.life.checked_sub(1).filter(|kill| *kill < kills.len()) else { continue };
        served[kill] += 1;
        if served[kill] <= WINDOW {
            all[kill].first_100k.add(Some(outcome), twin(at));
        }
        if let Some(second) = all[kill].seconds.get_mut((outcome.age_us / SECOND_US) as usize) {
            second.add(Some(outcome), twin(at));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(answer: Answer, life: usize, age_us: u64) -> Option<Outcome> {
        Some(Outcome { answer, life, age_us })
    }

    #[test]
    fn requests_count_for_the_kill_and_the_second_they_follow() {
        let victim = [
            outcome(Answer::Hit(Tier::Memory), 0, 500),
            outcome(Answer::Mutated, 0, 600),
            None,
            outcome(Answer::Missed, 1, 999_999),
            outcome(Answer::Hit(Tier::Flash), 1, 1_000_000),
            outcome(Answer::Hit(Tier::Buffer), 1, 9_000_000),
        ];
        let twin = outcome(Answer::Hit(Tier::Memory), 0, 1);
        let all = measure(victim.len(), &[2], |at| victim[at], |_| twin);
        let hit = Tally { gets: 1, memory: 1, ..Tally::default() };
        assert_eq!(all[0].before.victim, hit);
        assert_eq!(all[0].first_second().victim, Tally { gets: 1, ..Tally::default() });
        assert_eq!(all[0].first_second().twin, hit);
        assert_eq!(all[0].seconds[1].victim, Tally { gets: 1, flash: 1, ..Tally::default() });
        assert_eq!(all[0].first_100k.victim, Tally { gets: 3, flash: 1, buffer: 1, ..Tally::default() });
        assert_eq!(all[0].first_100k.victim.hit_ratio(), Some(2.0 / 3.0));
    }

    #[test]
    fn sums_are_over_gets_not_over_ratios() {
        let mut a = Warmth::default();
        a.before.victim = Tally { gets: 1, memory: 1, ..Tally::default() };
        let mut b = Warmth::default();
        b.before.victim = Tally { gets: 3, ..Tally::default() };
        assert_eq!(Warmth::sum([&a, &b]).before.victim.hit_ratio(), Some(0.25));
        assert_eq!(Warmth::default().before.victim.hit_ratio(), None);
    }
}
