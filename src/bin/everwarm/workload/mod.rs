//! Workloads: keys, and a stream of requests for them. A workload is a function of its source and
//! its seed.

pub(crate) mod generate;
pub(crate) mod payload;
pub(crate) mod random;
pub(crate) mod trace;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use payload::{KEY_LEN_MIN, VALUE_LEN_MIN};

/// Longest value in bytes. Longer values of a trace are truncated.
pub(crate) const VALUE_LEN_MAX: usize = (1 << 25) - 1;
/// Drops of namespaces in one workload.
const DROPS: usize = 8;
/// Longest TTL in seconds. An entry with a longer one would outlive the drill, so it is put without
/// an expiry.
const TTL_S_MAX: u64 = 15;

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A get, followed by a put if it misses.
    Get,
    Put,
    Delete,
    /// Drops the namespace of the worker that owns the key.
    Drop,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) key: u32,
    /// Bytes of the value, if the request puts one.
    pub(crate) value_len: usize,
    /// Seconds until the entry expires; 0 for never.
    pub(crate) ttl_s: u64,
}

impl Request {
    /// Packs the request into one word: `key: 32, value_len: 25, ttl_s: 4, op: 2` bits, lowest
    /// first. Clamps the value's length, and drops a TTL above [`TTL_S_MAX`].
    pub(crate) fn code(self) -> u64 {
        let ttl_s = if self.ttl_s > TTL_S_MAX { 0 } else { self.ttl_s };
        let value_len = self.value_len.clamp(VALUE_LEN_MIN, VALUE_LEN_MAX) as u64;
        let op = match self.op {
            Op::Get => 0,
            Op::Put => 1,
            Op::Delete => 2,
            Op::Drop => 3,
        };
        u64::from(self.key) | value_len << 32 | ttl_s << 57 | op << 61
    }

    pub(crate) fn from_code(code: u64) -> Self {
        let op = match code >> 61 {
            0 => Op::Get,
            1 => Op::Put,
            2 => Op::Delete,
            _ => Op::Drop,
        };
        Self { op, key: code as u32, value_len: (code >> 32) as usize & VALUE_LEN_MAX, ttl_s: code >> 57 & TTL_S_MAX }
    }
}

/// A stream of requests and the keys that it uses.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Workload {
    /// Bytes of each key.
    pub(crate) key_lens: Vec<u16>,
    pub(crate) requests: Vec<Request>,
}

impl Workload {
    /// Replaces some requests by kinds that many sources lack and that crash recovery must handle:
    ///
    /// - 10 % overwrites,
    /// - 5 % deletes,
    /// - 2 % puts that expire within 1 to 3 seconds,
    /// - [`DROPS`] drops of namespaces.
    pub(crate) fn enrich(&mut self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xE4A1);
        let count = self.requests.len().max(1);
        for drop in 1..=DROPS {
            let at = (count * drop / (DROPS + 1) + rng.random_range(0..count.div_ceil(16))) % count;
            if let Some(request) = self.requests.get_mut(at) {
                request.op = Op::Drop;
            }
        }
        for request in self.requests.iter_mut().filter(|request| request.op != Op::Drop) {
            match rng.random_range(0..100) {
                0..10 => {
                    request.op = Op::Put;
                    request.value_len = (request.value_len as f64 * rng.random_range(0.5..1.5)) as usize;
                }
                10..15 => request.op = Op::Delete,
                15..17 => {
                    request.op = Op::Put;
                    request.ttl_s = rng.random_range(1..=3);
                }
                _ => {}
            }
        }
    }

    /// Total bytes of all requested keys, each with its longest value.
    pub(crate) fn footprint(&self) -> u64 {
        let mut largest = vec![0; self.key_lens.len()];
        for request in &self.requests {
            let largest = &mut largest[request.key as usize];
            *largest = request.value_len.clamp(VALUE_LEN_MIN, VALUE_LEN_MAX).max(*largest);
        }
        let sizes = largest.iter().zip(&self.key_lens).filter(|(value_len, _)| **value_len > 0);
        sizes.map(|(value_len, key_len)| *value_len as u64 + u64::from(*key_len).max(KEY_LEN_MIN as u64)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gets(count: usize) -> Workload {
        let get = |key| Request { op: Op::Get, key, value_len: 100, ttl_s: 0 };
        Workload { key_lens: vec![20; count], requests: (0..count as u32).map(get).collect() }
    }

    #[test]
    fn a_request_round_trips_through_one_word() {
        for op in [Op::Get, Op::Put, Op::Delete, Op::Drop] {
            let request = Request { op, key: u32::MAX, value_len: VALUE_LEN_MAX, ttl_s: TTL_S_MAX };
            assert_eq!(Request::from_code(request.code()), request);
        }
        let long = Request { op: Op::Put, key: 1, value_len: usize::MAX, ttl_s: 86_400 };
        assert_eq!(Request::from_code(long.code()), Request { value_len: VALUE_LEN_MAX, ttl_s: 0, ..long });
    }

    #[test]
    fn enrichment_is_deterministic_and_has_the_stated_shares() {
        let (mut a, mut b, mut c) = (gets(20_000), gets(20_000), gets(20_000));
        a.enrich(1);
        b.enrich(1);
        c.enrich(2);
        assert_eq!(a, b);
        assert_ne!(a, c);
        let share = |matches: fn(&Request) -> bool| a.requests.iter().filter(|request| matches(request)).count() as f64 / 20_000.0;
        assert!((0.11..0.13).contains(&share(|request| request.op == Op::Put)));
        assert_eq!(a.requests.iter().filter(|request| request.op == Op::Drop).count(), DROPS);
        assert!((0.04..0.06).contains(&share(|request| request.op == Op::Delete)));
        assert!((0.015..0.025).contains(&share(|request| request.ttl_s > 0)));
    }

    #[test]
    fn the_footprint_counts_each_key_once_at_its_largest() {
        let mut workload = gets(2);
        workload.requests.push(Request { value_len: 500, ..workload.requests[0] });
        workload.key_lens.push(20);
        assert_eq!(workload.footprint(), 20 + 500 + 20 + 100);
    }
}
