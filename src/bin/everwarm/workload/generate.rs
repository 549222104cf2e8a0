//! Generated workloads, drawn from built-in distributions or from those of a production cache.

use std::path::Path;

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Op, Request, Workload};

/// Exponent of the popularity: the k-th most popular key is requested in proportion to
/// `k^-ZIPF_ALPHA`, as in web and key-value caches (Breslau et al., 1999).
const ZIPF_ALPHA: f64 = 0.9;
/// Median of the value lengths in bytes. Lengths are log-normal: mostly a few hundred bytes, with a
/// tail (compare Atikoglu et al., SIGMETRICS'12).
const VALUE_LEN_MEDIAN: f64 = 300.0;
/// Standard deviation of the natural logarithm of the value lengths.
const VALUE_LEN_SIGMA: f64 = 1.0;
/// Largest value length in bytes that is drawn.
const VALUE_LEN_LIMIT: f64 = 65_536.0;

/// Draws indices in proportion to weights.
struct Weighted {
    cumulative: Vec<f64>,
}

impl Weighted {
    fn new(weights: impl IntoIterator<Item = f64>) -> Self {
        let add = |sum: &mut f64, weight: f64| {
            *sum += weight;
            Some(*sum)
        };
        Self { cumulative: weights.into_iter().scan(0.0, add).collect() }
    }

    fn draw(&self, rng: &mut impl Rng) -> usize {
        let total = self.cumulative.last().copied().unwrap_or(0.0);
        let point = rng.random::<f64>() * total;
        self.cumulative.partition_point(|sum| *sum <= point).min(self.cumulative.len().saturating_sub(1))
    }
}

/// A range of keys of equal popularity.
struct Bucket {
    first: u32,
    keys: u32,
}

/// The distribution of requested keys.
pub(crate) struct Popularity {
    weights: Weighted,
    buckets: Vec<Bucket>,
}

impl Popularity {
    fn zipf(keys: u32) -> Self {
        let weights = Weighted::new((1..=keys).map(|rank| f64::from(rank).powf(-ZIPF_ALPHA)));
        Self { weights, buckets: (0..keys).map(|first| Bucket { first, keys: 1 }).collect() }
    }

    /// Scales every bucket by one factor, so that the shape stays and about `keys` keys remain.
    /// Each bucket keeps at least one key.
    fn scaled(file: &PopularityFile, keys: u32) -> Self {
        let total: f64 = file.buckets.iter().sum();
        let mut first = 0;
        let mut bucket = |size: &f64| {
            let keys = ((size / total * f64::from(keys)).round() as u32).max(1);
            let bucket = Bucket { first, keys };
            first += keys;
            bucket
        };
        let buckets = file.buckets.iter().map(&mut bucket).collect();
        Self { weights: Weighted::new(file.weights.iter().copied()), buckets }
    }

    fn keys(&self) -> usize {
        self.buckets.last().map_or(0, |bucket| (bucket.first + bucket.keys) as usize)
    }

    pub(crate) fn draw(&self, rng: &mut impl Rng) -> u32 {
        let bucket = &self.buckets[self.weights.draw(rng)];
        bucket.first + rng.random_range(0..bucket.keys)
    }
}

/// The distribution of value lengths.
enum Lengths {
    LogNormal,
    Listed { weights: Weighted, lens: Vec<usize> },
}

impl Lengths {
    fn draw(&self, rng: &mut StdRng) -> usize {
        match self {
            Self::LogNormal => {
                // Box and Muller, 1958. `1 - u` is never 0, so that the logarithm is finite.
                let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * rng.random::<f64>()).cos();
                (VALUE_LEN_MEDIAN * (VALUE_LEN_SIGMA * normal).exp()).min(VALUE_LEN_LIMIT) as usize
            }
            Self::Listed { weights, lens } => lens[weights.draw(rng)],
        }
    }
}

#[derive(Deserialize)]
struct PopularityFile {
    #[serde(rename = "popularityBuckets")]
    buckets: Vec<f64>,
    #[serde(rename = "popularityWeights")]
    weights: Vec<f64>,
}

#[derive(Deserialize)]
struct SizesFile {
    #[serde(rename = "valSizeRange")]
    lens: Vec<f64>,
    #[serde(rename = "valSizeRangeProbability")]
    weights: Vec<f64>,
}

/// The built-in workload: Zipf popularity and log-normal value lengths.
pub(crate) fn builtin(keys: u32, requests: usize, seed: u64) -> Workload {
    draw(&Popularity::zipf(keys), &Lengths::LogNormal, requests, seed)
}

/// A workload with the distributions of `PREFIX.pop.json` and `PREFIX.sizes.json`, scaled to
/// `keys`.
pub(crate) fn distribution(prefix: &Path, keys: u32, requests: usize, seed: u64) -> anyhow::Result<Workload> {
    let (popularity, lengths) = read_both(prefix, keys)?;
    Ok(draw(&popularity, &lengths, requests, seed))
}

/// The popularity of the keys, and the value length of each key, that `PREFIX.pop.json` and
/// `PREFIX.sizes.json` describe, scaled to `keys`.
pub(crate) fn of_distribution(prefix: &Path, keys: u32, seed: u64) -> anyhow::Result<(Popularity, Vec<usize>)> {
    let (popularity, lengths) = read_both(prefix, keys)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let lens = (0..popularity.keys()).map(|_| lengths.draw(&mut rng)).collect();
    Ok((popularity, lens))
}

fn read_both(prefix: &Path, keys: u32) -> anyhow::Result<(Popularity, Lengths)> {
    let popularity: PopularityFile = read(prefix, ".pop.json")?;
    ensure!(
        !popularity.buckets.is_empty() && popularity.buckets.len() == popularity.weights.len(),
        "{}.pop.json: has {} buckets and {} weights; the same number of each is required, at least one",
        prefix.display(),
        popularity.buckets.len(),
        popularity.weights.len()
    );
    let sizes: SizesFile = read(prefix, ".sizes.json")?;
    ensure!(
        !sizes.lens.is_empty() && sizes.lens.len() == sizes.weights.len(),
        "{}.sizes.json: has {} sizes and {} weights; the same number of each is required, and ranges are not supported",
        prefix.display(),
        sizes.lens.len(),
        sizes.weights.len()
    );
    let is_sound = |numbers: &[f64]| numbers.iter().all(|n| n.is_finite() && *n >= 0.0) && numbers.iter().sum::<f64>() > 0.0;
    for (suffix, numbers) in [(".pop.json", &popularity.buckets), (".pop.json", &popularity.weights), (".sizes.json", &sizes.weights)] {
        ensure!(is_sound(numbers), "{}{suffix}: a bucket or weight is negative, or all are 0", prefix.display());
    }
    ensure!(sizes.lens.iter().all(|len| len.is_finite() && *len >= 0.0), "{}.sizes.json: a size is negative", prefix.display());
    let lens = sizes.lens.iter().map(|len| *len as usize).collect();
    let lengths = Lengths::Listed { weights: Weighted::new(sizes.weights), lens };
    Ok((Popularity::scaled(&popularity, keys), lengths))
}

fn read<T: DeserializeOwned>(prefix: &Path, suffix: &str) -> anyhow::Result<T> {
    let mut path = prefix.as_os_str().to_owned();
    path.push(suffix);
    let context = || format!("cannot read {}", Path::new(&path).display());
    let text = std::fs::read_to_string(&path).with_context(context)?;
    serde_json::from_str(&text).with_context(context)
}

fn draw(popularity: &Popularity, lengths: &Lengths, requests: usize, seed: u64) -> Workload {
    let mut rng = StdRng::seed_from_u64(seed);
    let keys = popularity.keys();
    let key_lens = (0..keys).map(|_| rng.random_range(16..=40)).collect();
    let value_lens: Vec<usize> = (0..keys).map(|_| lengths.draw(&mut rng)).collect();
    let get = |rng: &mut StdRng| {
        let key = popularity.draw(rng);
        Request { op: Op::Get, key, value_len: value_lens[key as usize], ttl_s: 0 }
    };
    Workload { key_lens, requests: (0..requests).map(|_| get(&mut rng)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_determined_by_its_seed() {
        assert_eq!(builtin(500, 5_000, 3), builtin(500, 5_000, 3));
        assert_ne!(builtin(500, 5_000, 3), builtin(500, 5_000, 4));
    }

    #[test]
    fn popular_keys_are_requested_more_often() {
        let workload = builtin(1_000, 20_000, 1);
        let asked = |from: u32, to: u32| workload.requests.iter().filter(|request| (from..to).contains(&request.key)).count();
        assert!(asked(0, 10) > 4 * asked(500, 510));
        assert!(asked(990, 1_000) > 0);
        assert!(workload.requests.iter().all(|request| request.key < 1_000));
    }

    #[test]
    fn weights_are_proportions_and_zero_is_never_drawn() {
        let weighted = Weighted::new([0.0, 3.0, 0.0, 1.0]);
        let mut rng = StdRng::seed_from_u64(1);
        let mut drawn = [0; 4];
        for _ in 0..4_000 {
            drawn[weighted.draw(&mut rng)] += 1;
        }
        assert_eq!((drawn[0], drawn[2]), (0, 0));
        assert!((2_800..3_200).contains(&drawn[1]), "{drawn:?}");
    }

    #[test]
    fn scaling_keeps_at_least_one_key_in_every_bucket() {
        let file = PopularityFile { buckets: vec![1.0, 99.0, 900.0], weights: vec![5.0, 3.0, 2.0] };
        let popularity = Popularity::scaled(&file, 100);
        let sizes: Vec<u32> = popularity.buckets.iter().map(|bucket| bucket.keys).collect();
        assert_eq!(sizes, [1, 10, 90]);
        assert_eq!(popularity.keys(), 101);
    }
}
