//! Seeded randomness.

use crate::clock::SPLITMIX_GAMMA;
use crate::id::mix;

/// A number that depends on every part of `of`.
pub(super) fn draw(of: &[u64]) -> u64 {
    of.iter().fold(0, |state, part| Random(state ^ part).next())
}

/// A generator: SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(SPLITMIX_GAMMA);
        mix(self.0)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}
