//! Compares the hit ratio of a killed cache with that of a twin that was not killed, over the same
//! requests.

use serde::Serialize;

use everwarm::Tier;

use super::outcome::{Answer, Outcome};

/// Requests in the window before a kill, and in the window after it.
pub(crate) const WINDOW: usize = 100_000;
/// Number of seconds after a spawn that are counted separately.
pub(crate) const SECONDS: usize = 11;
const SECOND_US: u64 = 1_000_000;

/// Number of gets, and of hits by tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct HitCounts {
    pub(crate) gets: u64,
    pub(crate) memory: u64,
    pub(crate) buffer: u64,
    pub(crate) flash: u64,
}

impl HitCounts {
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

    /// `hits` divided by the number of gets; none if there were no gets.
    pub(crate) fn share(&self, hits: u64) -> Option<f64> {
        (self.gets > 0).then(|| hits as f64 / self.gets as f64)
    }

    pub(crate) fn hit_ratio(&self) -> Option<f64> {
        self.share(self.memory + self.buffer + self.flash)
    }
}

/// The counts of victim and twin over the same requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Pair {
    pub(crate) victim: HitCounts,
    pub(crate) twin: HitCounts,
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

/// Hit counts around one kill, or the sums over several kills.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Warmth {
    /// The [`WINDOW`] requests before the kill.
    pub(crate) before: Pair,
    /// The first [`WINDOW`] requests after the kill.
    pub(crate) first_100k: Pair,
    /// Requests by the second after the spawn in which the restarted cache answered them.
    pub(crate) seconds: [Pair; SECONDS],
}

impl Warmth {
    pub(crate) fn first_second(&self) -> &Pair {
        &self.seconds[0]
    }

    /// The eleventh second: the memory tier has had ten seconds to fill.
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

/// Hit counts of successive groups of `step` requests.
pub(crate) fn curve(requests: usize, step: usize, outcome: impl Fn(usize) -> Option<Outcome>) -> Vec<HitCounts> {
    let mut points = vec![HitCounts::default(); requests.div_ceil(step)];
    (0..requests).for_each(|at| points[at / step].add(outcome(at)));
    points
}

/// Hit counts around the kills at the requests `kills`. Kill `k` ended life `k` of the victim.
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
    // At the boundary of two lives their requests are interleaved, because threads are at different
    // requests. So each request is assigned to a kill by its life.
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
    fn requests_are_counted_by_kill_and_by_second_after_the_spawn() {
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
        let hit = HitCounts { gets: 1, memory: 1, ..HitCounts::default() };
        assert_eq!(all[0].before.victim, hit);
        assert_eq!(all[0].first_second().victim, HitCounts { gets: 1, ..HitCounts::default() });
        assert_eq!(all[0].first_second().twin, hit);
        assert_eq!(all[0].seconds[1].victim, HitCounts { gets: 1, flash: 1, ..HitCounts::default() });
        assert_eq!(all[0].first_100k.victim, HitCounts { gets: 3, flash: 1, buffer: 1, ..HitCounts::default() });
        assert_eq!(all[0].first_100k.victim.hit_ratio(), Some(2.0 / 3.0));
    }

    #[test]
    fn sums_are_over_gets_not_over_ratios() {
        let mut a = Warmth::default();
        a.before.victim = HitCounts { gets: 1, memory: 1, ..HitCounts::default() };
        let mut b = Warmth::default();
        b.before.victim = HitCounts { gets: 3, ..HitCounts::default() };
        assert_eq!(Warmth::sum([&a, &b]).before.victim.hit_ratio(), Some(0.25));
        assert_eq!(Warmth::default().before.victim.hit_ratio(), None);
    }
}
