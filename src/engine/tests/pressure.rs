//! Why mutations wait for room, as the statistics count it.

use super::store::Store;
use crate::config::{Options, WalValues};
use crate::engine::{DeleteOptions, PutOptions, Wait};
use crate::error::Error;

/// Puts without waiting until one is refused. Returns how many were refused.
fn put_until_refused(store: &Store) -> u64 {
    let options = PutOptions::new().wait(Wait::No);
    let refused = |n: u64| match store.engine().put((&n.to_le_bytes()).into(), &[7; 1_000], &options) {
        Ok(_) => false,
        Err(Error::WouldBlock) => true,
        Err(other) => panic!("{other}"),
    };
    let puts = (0..10_000).find(|n| refused(*n));
    u64::from(puts.is_some())
}

#[test]
fn refusals_and_waits_are_counted_by_their_cause() {
    let store = Store::new(Options::new("x").memory(1 << 20).flash(1 << 20).segment_size(64 << 10));
    assert_eq!((store.engine().stats().refusals.total(), store.engine().stats().waits.total()), (0, 0));
    // Nobody flushes meanwhile, so the segment ring or the ready segments run out.
    assert_eq!(put_until_refused(&store), 1);
    let stats = store.engine().stats();
    assert_eq!((stats.refusals.total(), stats.waits.total()), (1, 0));
    assert_eq!(stats.refusals.segment + stats.refusals.segment_ring, 1, "{:?}", stats.refusals);
    // One that may wait does so once, for the same cause.
    store.put(b"waits", &[7; 1_000]);
    let stats = store.engine().stats();
    assert_eq!(stats.refusals.total(), 1);
    assert!(stats.waits.segment + stats.waits.segment_ring >= 1, "{:?}", stats.waits);
    assert_eq!(stats.waits.total(), stats.waits.segment + stats.waits.segment_ring);
}

#[test]
fn a_full_wal_ring_is_told_from_a_full_segment_ring() {
    let store = Store::new(Options::new("x").memory(1 << 20).flash(1 << 20).wal_values(WalValues::Always));
    let tombstones = DeleteOptions::new().wait(Wait::No);
    let refused = (0u64..20_000).find(|n| {
        store.engine().step_flush().unwrap();
        store.engine().step_prepare().unwrap();
        store.engine().delete((&n.to_le_bytes()).into(), &tombstones).is_err()
    });
    let refusals = store.engine().stats().refusals;
    assert!(refused.is_some());
    assert_eq!((refusals.wal_ring, refusals.total()), (1, 1), "{refusals:?}");
}
