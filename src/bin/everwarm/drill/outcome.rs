//! The outcome of one request, packed into one word.

use everwarm::Tier;

/// Where a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The request was a mutation, not a get.
    Mutated,
    /// The get missed.
    Missed,
    /// The get found a value in this tier.
    Hit(Tier),
}

/// The outcome of one request: the answer, and when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) answer: Answer,
    /// Number of the process that answered, counted from 0.
    pub(crate) life: usize,
    /// Microseconds since the spawn of that process.
    pub(crate) age_us: u64,
}

const ANSWER_BITS: u32 = 3;
const LIFE_BITS: u32 = 16;

impl Outcome {
    pub(crate) fn code(self) -> u64 {
        let answer = match self.answer {
            Answer::Mutated => 1,
            Answer::Missed => 2,
            Answer::Hit(Tier::Memory) => 3,
            Answer::Hit(Tier::Buffer) => 4,
            Answer::Hit(Tier::Flash) => 5,
        };
        answer | ((self.life as u64) << ANSWER_BITS) | (self.age_us << (ANSWER_BITS + LIFE_BITS))
    }

    /// Decodes a word; none for 0, the word of a request that has not ended.
    pub(crate) fn from_code(code: u64) -> Option<Self> {
        let answer = match code & ((1 << ANSWER_BITS) - 1) {
            1 => Answer::Mutated,
            2 => Answer::Missed,
            3 => Answer::Hit(Tier::Memory),
            4 => Answer::Hit(Tier::Buffer),
            5 => Answer::Hit(Tier::Flash),
            _ => return None,
        };
        let life = (code >> ANSWER_BITS & ((1 << LIFE_BITS) - 1)) as usize;
        Some(Self { answer, life, age_us: code >> (ANSWER_BITS + LIFE_BITS) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_round_trips_through_one_word() {
        let answers = [Answer::Mutated, Answer::Missed, Answer::Hit(Tier::Memory), Answer::Hit(Tier::Buffer), Answer::Hit(Tier::Flash)];
        for answer in answers {
            let outcome = Outcome { answer, life: 65_535, age_us: 3_600_000_000 };
            assert_eq!(Outcome::from_code(outcome.code()), Some(outcome));
        }
        assert_eq!(Outcome::from_code(0), None);
    }
}
