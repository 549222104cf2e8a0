//! The keys of a benchmark and the order in which operations draw them.

use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};

use crate::workload::generate::{self, Popularity};
use crate::workload::random::mix;
use crate::workload::{VALUE_LEN_MAX, Workload, payload};

/// A prime: it has no common factor with a number of entries below it, so that multiplying a rank
/// by it scatters neighbouring ranks over all keys.
const SPREAD: u64 = 0x9E37_79B1;

/// How often each key is requested.
pub(crate) enum Order {
    /// Every key equally often.
    Uniform,
    /// The k-th most popular key in proportion to `k^-alpha`; popular keys are scattered over the
    /// key space (as in YCSB; Cooper et al., SoCC'10). The number is that of the keys.
    Zipf(Zipf<f64>, u32),
    /// The k-th newest key in proportion to `k^-alpha` (YCSB's `latest`).
    Latest(Zipf<f64>),
    /// The recorded popularity of a production cache.
    Recorded(Popularity),
}

/// The keys of a benchmark, with the lengths of keys and values.
pub(crate) struct Keys {
    pub(crate) entries: u32,
    key_lens: Lens<u16>,
    value_lens: Lens<u32>,
}

enum Lens<N> {
    All(N),
    Each(Vec<N>),
}

impl<N: Copy> Lens<N> {
    fn of(&self, key: u32) -> N {
        match self {
            Self::All(len) => *len,
            Self::Each(lens) => lens[key as usize % lens.len()],
        }
    }
}

impl Keys {
    pub(crate) fn new(entries: u32, key_len: u16, value_len: u32) -> Self {
        Self { entries, key_lens: Lens::All(key_len), value_lens: Lens::All(value_len) }
    }

    /// The keys and the order given by `PREFIX.pop.json` and `PREFIX.sizes.json`.
    pub(crate) fn recorded(prefix: &Path, entries: u32, key_len: u16, seed: u64) -> anyhow::Result<(Self, Order)> {
        let (popularity, lens) = generate::of_distribution(prefix, entries, seed)?;
        let lens: Vec<u32> = lens.into_iter().map(|len| len.clamp(payload::VALUE_LEN_MIN, VALUE_LEN_MAX) as u32).collect();
        let keys = Self { entries: lens.len() as u32, key_lens: Lens::All(key_len), value_lens: Lens::Each(lens) };
        Ok((keys, Order::Recorded(popularity)))
    }

    /// The keys of a workload, each with the length of its longest value.
    pub(crate) fn of(workload: &Workload) -> Self {
        let mut lens = vec![payload::VALUE_LEN_MIN as u32; workload.key_lens.len()];
        for request in &workload.requests {
            let len = &mut lens[request.key as usize];
            *len = (request.value_len.min(VALUE_LEN_MAX) as u32).max(*len);
        }
        Self { entries: lens.len() as u32, key_lens: Lens::Each(workload.key_lens.clone()), value_lens: Lens::Each(lens) }
    }

    pub(crate) fn key_len(&self, key: u32) -> usize {
        usize::from(self.key_lens.of(key)).max(payload::KEY_LEN_MIN)
    }

    pub(crate) fn value_len(&self, key: u32) -> usize {
        self.value_lens.of(key) as usize
    }

    /// Total bytes of all keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        (0..self.entries).map(|key| (self.key_len(key) + self.value_len(key)) as u64).sum()
    }

    pub(crate) fn longest(&self) -> usize {
        (0..self.entries).map(|key| self.value_len(key)).max().unwrap_or(0)
    }
}

impl Order {
    pub(crate) fn zipf(entries: u32, alpha: f64) -> anyhow::Result<Self> {
        Ok(Self::Zipf(Zipf::new(f64::from(entries), alpha)?, entries))
    }

    pub(crate) fn latest(entries: u32, alpha: f64) -> anyhow::Result<Self> {
        Ok(Self::Latest(Zipf::new(f64::from(entries), alpha)?))
    }

    /// Draws a key below `entries`.
    pub(crate) fn draw(&self, rng: &mut SmallRng, entries: u32) -> u32 {
        let rank = |zipf: &Zipf<f64>, rng: &mut SmallRng, of: u32| (zipf.sample(rng) as u64 - 1) % u64::from(of);
        match self {
            Self::Uniform => rng.random_range(0..entries),
            // Over the initial keys, so that popular keys stay the same when keys are added.
            Self::Zipf(zipf, of) => (rank(zipf, rng, *of) * SPREAD % u64::from(*of)) as u32,
            Self::Latest(zipf) => entries - 1 - rank(zipf, rng, entries) as u32,
            Self::Recorded(popularity) => popularity.draw(rng),
        }
    }
}

/// The random generator of one caller in one phase.
pub(crate) fn random(seed: u64, phase: u64, caller: usize) -> SmallRng {
    SmallRng::seed_from_u64(mix(mix(mix(seed) ^ phase) ^ caller as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn popular_keys_are_scattered_and_every_key_is_drawn() {
        const ENTRIES: u32 = 1_000;
        let order = Order::zipf(ENTRIES, 0.99).unwrap();
        let mut rng = random(1, 0, 0);
        let mut drawn = vec![0; ENTRIES as usize];
        (0..200_000).for_each(|_| drawn[order.draw(&mut rng, ENTRIES) as usize] += 1);
        assert!(drawn.iter().all(|count| *count > 0));
        assert!(drawn[0] > 20_000, "the most popular key is drawn in 13 % of the cases: {}", drawn[0]);
        let next = (SPREAD % u64::from(ENTRIES)) as usize;
        assert!(drawn[next] * 3 > drawn[0], "the second most popular key half as often: {}", drawn[next]);
    }

    #[test]
    fn the_latest_keys_are_the_last() {
        let order = Order::latest(1_000, 0.99).unwrap();
        let mut rng = random(1, 0, 0);
        let drawn: Vec<u32> = (0..10_000).map(|_| order.draw(&mut rng, 2_000)).collect();
        assert!(drawn.iter().filter(|key| **key >= 1_990).count() > 3_000);
        assert!(drawn.iter().all(|key| *key >= 1_000));
    }
}
