//! Judges the answer to a get, given the mutations of the key that were begun and acknowledged.
//! Pure: the state of the keys is kept by the board.

/// One mutation of a key, numbered by its request: a later mutation of the same key has a higher
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mutation(u64);

impl Mutation {
    /// No mutation yet.
    pub(crate) const NEVER: Self = Self(0);

    pub(crate) const fn put(request: usize) -> Self {
        Self((request as u64 + 1) << 1)
    }

    pub(crate) const fn delete(request: usize) -> Self {
        Self(((request as u64 + 1) << 1) | 1)
    }

    pub(crate) const fn code(self) -> u64 {
        self.0
    }

    pub(crate) const fn from_code(code: u64) -> Self {
        Self(code)
    }

    pub(crate) fn is_put(self) -> bool {
        self != Self::NEVER && self.0 & 1 == 0
    }

    pub(crate) fn is_delete(self) -> bool {
        self.0 & 1 == 1
    }
}

impl std::fmt::Display for Mutation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::NEVER => f.write_str("nothing"),
            mutation if mutation.is_delete() => write!(f, "the delete of request {}", (mutation.0 >> 1) - 1),
            mutation => write!(f, "the put of request {}", (mutation.0 >> 1) - 1),
        }
    }
}

/// When an entry expires, in milliseconds of the wall clock. It is a range, because the store reads
/// its clock at some moment during the put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline(u64);

impl Deadline {
    pub(crate) const NONE: Self = Self(0);

    const SPREAD_BITS: u32 = 20;
    /// How long a put that did not return may have waited for room before it read the clock.
    const UNRETURNED_MS: u64 = 60_000;
    /// Largest difference between the store's clock and the wall clock. The store's clock follows
    /// the wall clock, but never jumps.
    const SLACK_MS: u64 = 250;

    /// The deadline of an entry with the TTL `ttl_ms`, 0 for none. Its put began at `began_ms` and
    /// returned at `returned_ms`, if it returned.
    pub(crate) fn of_put(ttl_ms: u64, began_ms: u64, returned_ms: Option<u64>) -> Self {
        if ttl_ms == 0 {
            return Self::NONE;
        }
        let took = returned_ms.map_or(Self::UNRETURNED_MS, |at| at.saturating_sub(began_ms));
        let spread = took.min((1 << Self::SPREAD_BITS) - 1);
        Self(((began_ms + ttl_ms) << Self::SPREAD_BITS) | spread)
    }

    pub(crate) const fn code(self) -> u64 {
        self.0
    }

    pub(crate) const fn from_code(code: u64) -> Self {
        Self(code)
    }

    /// Whether the entry was alive during a get that began at `began_ms` and returned at
    /// `returned_ms`.
    pub(crate) fn life(self, began_ms: u64, returned_ms: u64) -> Life {
        if self == Self::NONE {
            return Life::Alive;
        }
        let earliest = self.0 >> Self::SPREAD_BITS;
        let latest = earliest + (self.0 & ((1 << Self::SPREAD_BITS) - 1));
        if returned_ms + Self::SLACK_MS < earliest {
            Life::Alive
        } else if began_ms > latest + Self::SLACK_MS {
            Life::Expired
        } else {
            Life::Expiring
        }
    }
}

/// Whether an entry has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Alive,
    /// So close to its deadline that a hit and a miss are both right.
    Expiring,
    Expired,
}

/// The known state of a key before a get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// The last mutation that returned, or that was found to have happened.
    pub(crate) acked: Mutation,
    pub(crate) acked_life: Life,
    /// The LSN that the cache returned for `acked`; 0 if unknown.
    pub(crate) acked_lsn: u64,
    /// Whether a segment that may have held the entry of `acked` was reclaimed.
    pub(crate) reclaimed: bool,
    /// The last mutation that was begun. It is in doubt unless it equals `acked`.
    pub(crate) intent: Mutation,
    pub(crate) intent_life: Life,
}

/// The answer to a get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Miss,
    Value {
        mutation: Mutation,
        lsn: u64,
    },
    /// Bytes that no put of this key wrote.
    Garbage,
}

/// The judgement of an answer. Every verdict but `Broken` settles a doubt: later answers must agree
/// with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The acknowledged state holds; a mutation in doubt did not happen.
    Acked,
    /// The mutation in doubt happened.
    Landed,
    /// The entry was evicted with a reclaimed segment.
    Evicted,
    /// The answer breaks a promise.
    Broken(Fault),
}

/// The promises that an answer can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A value older than the acknowledged one.
    Stale,
    /// A value that was deleted or had expired.
    Resurrected,
    /// Damaged bytes, the value of another key, the LSN of another version, or a mutation that was
    /// found not to have happened.
    Wrong,
    /// An acknowledged entry is gone, and no reclaimed segment explains it.
    Lost,
}

impl Fault {
    pub(crate) const ALL: [Self; 4] = [Self::Stale, Self::Resurrected, Self::Wrong, Self::Lost];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Resurrected => "resurrected",
            Self::Wrong => "wrong",
            Self::Lost => "lost",
        }
    }
}

/// Judges the answer to one get.
pub(crate) fn judge(known: &Known, seen: Seen) -> Verdict {
    match seen {
        Seen::Garbage => Verdict::Broken(Fault::Wrong),
        Seen::Value { mutation, lsn } => judge_value(known, mutation, lsn),
        Seen::Miss => judge_miss(known),
    }
}

fn judge_value(known: &Known, mutation: Mutation, lsn: u64) -> Verdict {
    if mutation == known.acked {
        return match known.acked_life {
            Life::Expired => Verdict::Broken(Fault::Resurrected),
            _ if known.acked_lsn != 0 && known.acked_lsn != lsn => Verdict::Broken(Fault::Wrong),
            _ => Verdict::Acked,
        };
    }
    if mutation == known.intent {
        return match known.intent_life {
            Life::Expired => Verdict::Broken(Fault::Resurrected),
            _ => Verdict::Landed,
        };
    }
    Verdict::Broken(match mutation {
        newer if newer > known.acked => Fault::Wrong,
        _ if known.acked.is_delete() => Fault::Resurrected,
        _ => Fault::Stale,
    })
}

fn judge_miss(known: &Known) -> Verdict {
    let in_doubt = known.intent != known.acked;
    if in_doubt && (known.intent.is_delete() || known.intent_life != Life::Alive) {
        // Holds also if the acknowledged entry was evicted or expired instead. Then neither
        // mutation can come back, and "the mutation in doubt happened" is the stricter claim.
        return Verdict::Landed;
    }
    if !known.acked.is_put() || known.acked_life != Life::Alive {
        return Verdict::Acked;
    }
    // This covers a put in doubt that happened and was reclaimed: the acknowledged entry is older,
    // so its segment was reclaimed before.
    if known.reclaimed { Verdict::Evicted } else { Verdict::Broken(Fault::Lost) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Mutation = Mutation::put(1);
    const ACKED: Mutation = Mutation::put(3);
    const BETWEEN: Mutation = Mutation::put(4);
    const DOUBT: Mutation = Mutation::put(5);
    const FUTURE: Mutation = Mutation::put(7);

    fn settled(acked: Mutation) -> Known {
        let alive = Life::Alive;
        Known { acked, acked_life: alive, acked_lsn: 30, reclaimed: false, intent: acked, intent_life: alive }
    }

    fn doubtful(acked: Mutation, intent: Mutation) -> Known {
        Known { intent, ..settled(acked) }
    }

    fn value(mutation: Mutation) -> Seen {
        Seen::Value { mutation, lsn: 30 }
    }

    #[test]
    fn every_case_has_its_verdict() {
        use Fault::{Lost, Resurrected, Stale, Wrong};
        use Verdict::{Acked, Broken, Evicted, Landed};
        let deleted = Mutation::delete(3);
        let delete = Mutation::delete(5);
        let table = [
            (settled(Mutation::NEVER), Seen::Miss, Acked),
            (settled(Mutation::NEVER), value(OLD), Broken(Wrong)),
            (settled(ACKED), value(ACKED), Acked),
            (settled(ACKED), Seen::Value { mutation: ACKED, lsn: 31 }, Broken(Wrong)),
            (Known { acked_lsn: 0, ..settled(ACKED) }, value(ACKED), Acked),
            (settled(ACKED), value(OLD), Broken(Stale)),
            (settled(ACKED), value(FUTURE), Broken(Wrong)),
            (settled(ACKED), Seen::Garbage, Broken(Wrong)),
            (settled(ACKED), Seen::Miss, Broken(Lost)),
            (Known { reclaimed: true, ..settled(ACKED) }, Seen::Miss, Evicted),
            (Known { acked_life: Life::Expiring, ..settled(ACKED) }, Seen::Miss, Acked),
            (Known { acked_life: Life::Expiring, ..settled(ACKED) }, value(ACKED), Acked),
            (Known { acked_life: Life::Expired, ..settled(ACKED) }, Seen::Miss, Acked),
            (Known { acked_life: Life::Expired, ..settled(ACKED) }, value(ACKED), Broken(Resurrected)),
            (settled(deleted), Seen::Miss, Acked),
            (settled(deleted), value(OLD), Broken(Resurrected)),
            (settled(deleted), value(FUTURE), Broken(Wrong)),
            (doubtful(Mutation::NEVER, DOUBT), Seen::Miss, Acked),
            (doubtful(Mutation::NEVER, DOUBT), value(DOUBT), Landed),
            (doubtful(ACKED, DOUBT), value(ACKED), Acked),
            (doubtful(ACKED, DOUBT), value(DOUBT), Landed),
            (doubtful(ACKED, DOUBT), Seen::Value { mutation: DOUBT, lsn: 31 }, Landed),
            (doubtful(ACKED, DOUBT), value(BETWEEN), Broken(Wrong)),
            (doubtful(ACKED, DOUBT), value(OLD), Broken(Stale)),
            (doubtful(ACKED, DOUBT), value(FUTURE), Broken(Wrong)),
            (doubtful(ACKED, DOUBT), Seen::Miss, Broken(Lost)),
            (Known { reclaimed: true, ..doubtful(ACKED, DOUBT) }, Seen::Miss, Evicted),
            (Known { intent_life: Life::Expiring, ..doubtful(ACKED, DOUBT) }, Seen::Miss, Landed),
            (Known { intent_life: Life::Expired, ..doubtful(ACKED, DOUBT) }, value(DOUBT), Broken(Resurrected)),
            (doubtful(ACKED, delete), value(ACKED), Acked),
            (doubtful(ACKED, delete), Seen::Miss, Landed),
            (doubtful(ACKED, delete), value(OLD), Broken(Stale)),
            (doubtful(deleted, DOUBT), Seen::Miss, Acked),
            (doubtful(deleted, DOUBT), value(DOUBT), Landed),
            (doubtful(deleted, DOUBT), value(OLD), Broken(Resurrected)),
        ];
        for (known, seen, verdict) in table {
            assert_eq!(judge(&known, seen), verdict, "{known:?} {seen:?}");
        }
    }

    #[test]
    fn both_answers_are_right_near_a_deadline() {
        let deadline = Deadline::of_put(1_000, 50_000, Some(50_100));
        assert_eq!(deadline.life(50_500, 50_700), Life::Alive);
        assert_eq!(deadline.life(50_700, 50_900), Life::Expiring);
        assert_eq!(deadline.life(51_300, 51_300), Life::Expiring);
        assert_eq!(deadline.life(51_351, 60_000), Life::Expired);
        assert_eq!(Deadline::of_put(0, 50_000, None).life(u64::MAX, u64::MAX), Life::Alive);
    }

    #[test]
    fn mutations_are_ordered_by_request_and_print_its_number() {
        assert!(Mutation::NEVER < Mutation::put(0));
        assert!(Mutation::put(1) < Mutation::delete(2));
        assert!(Mutation::delete(1) < Mutation::put(2));
        assert!(!Mutation::NEVER.is_put() && !Mutation::NEVER.is_delete());
        assert_eq!(Mutation::delete(9).to_string(), "the delete of request 9");
    }
}
