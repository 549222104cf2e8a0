//! Estimates how full flash is, and whether it has room for every live entry.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::concurrent::lock;

/// While live entries take at most this share of the usable space, in percent, all of them are
/// kept. The rest is garbage, and emptying segments still gains room.
const KEEP_ALL_PERCENT: u64 = 75;
/// Segments besides the ready ones that hold no sealed records: free, open and full ones.
const SEGMENTS_IN_FLIGHT: u64 = 4;
/// Target number of ready segments, in stores of few and of many segments. Puts leave one of them
/// to moves.
const READY: [usize; 2] = [2, 4];
/// Smallest number of segments that counts as many.
const MANY: u32 = 64;
/// The average of segment occupancy follows this share of the segments, and at least
/// [`WINDOW_MIN`].
const WINDOW_SHARE: u64 = 8;
const WINDOW_MIN: u64 = 8;

/// The occupancy of segments that were emptied recently, and whether the disk refused a segment.
#[derive(Debug)]
pub(in crate::engine) struct Occupancy {
    recent: Mutex<Recent>,
    /// The disk had no room for the next segment, or the oldest segment could not be emptied.
    is_space_denied: AtomicBool,
}

/// A decaying sum over emptied segments: bytes of their records, and of the segments. Only
/// experience shows which share of a segment records can take, since footers and unused ends vary.
#[derive(Clone, Copy, Debug)]
struct Recent {
    data_bytes: u64,
    segment_bytes: u64,
}

/// The properties of a store that decide how much it can keep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    pub(super) flash: u64,
    pub(super) segments: u32,
    pub(super) segment_size: u64,
    /// Target number of ready segments.
    pub(super) ready: usize,
    /// Bytes of segments that are out of use.
    pub(super) failed_bytes: u64,
}

/// Target number of ready segments in a store of `segments`.
pub(super) fn ready_wanted(segments: u32) -> usize {
    READY[usize::from(segments >= MANY)]
}

impl Occupancy {
    /// Begins as if all segments of `flash` bytes had been full of records.
    pub(in crate::engine) fn new(flash: u64) -> Self {
        let recent = Recent { data_bytes: flash, segment_bytes: flash };
        Self { recent: Mutex::new(recent), is_space_denied: AtomicBool::new(false) }
    }

    /// Records that a segment of `size` bytes with `data_bytes` of records is being emptied.
    /// Returns whether flash has room for all live records, which take `live_bytes`.
    pub(super) fn has_room_for_all(&self, data_bytes: u64, size: u64, live_bytes: u64, capacity: &Capacity) -> bool {
        let recent = {
            let (mut recent, window) = (lock(&self.recent), (u64::from(capacity.segments) / WINDOW_SHARE).max(WINDOW_MIN));
            let decay = |sum: u64, now: u64| sum - sum / window + now;
            recent.data_bytes = decay(recent.data_bytes, data_bytes);
            recent.segment_bytes = decay(recent.segment_bytes, size);
            *recent
        };
        keeps_all(recent, live_bytes, capacity)
    }

    /// States that the disk had no room, or that a segment can be neither emptied nor rescued now.
    /// The prepare thread pauses before it tries again.
    pub(super) fn deny_space(&self) {
        self.is_space_denied.store(true, Ordering::Release);
    }

    /// Whether the disk had no room at the last attempt.
    pub(in crate::engine) fn is_space_denied(&self) -> bool {
        self.is_space_denied.load(Ordering::Acquire)
    }

    /// Whether the disk had no room at the last attempt. Resets the answer to false.
    pub(super) fn take_space_denied(&self) -> bool {
        self.is_space_denied.swap(false, Ordering::AcqRel)
    }
}

/// Whether `live_bytes` of records are at most [`KEEP_ALL_PERCENT`] of the space that records can
/// take.
fn keeps_all(recent: Recent, live_bytes: u64, capacity: &Capacity) -> bool {
    let in_flight = (SEGMENTS_IN_FLIGHT + capacity.ready as u64) * capacity.segment_size;
    let usable = u128::from(capacity.flash.saturating_sub(in_flight + capacity.failed_bytes));
    let [data_bytes, segment_bytes] = [recent.data_bytes, recent.segment_bytes].map(u128::from);
    u128::from(live_bytes) * 100 * segment_bytes <= usable * data_bytes * u128::from(KEEP_ALL_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity { flash: 160 << 20, segments: 160, segment_size: 1 << 20, ready: 4, failed_bytes: 0 };

    #[test]
    fn live_entries_are_kept_up_to_their_share_of_usable_flash() {
        // 152 MiB are usable, of which records take 90 %.
        let recent = Recent { data_bytes: 9 << 20, segment_bytes: 10 << 20 };
        let limit = (152 << 20) * 9 / 10 * 3 / 4;
        assert!(keeps_all(recent, limit, &CAPACITY));
        assert!(!keeps_all(recent, limit + 1, &CAPACITY));
        let failed = Capacity { failed_bytes: 16 << 20, ..CAPACITY };
        assert!(!keeps_all(recent, limit, &failed));
        let tiny = Capacity { flash: 1 << 20, ..CAPACITY };
        assert!(!keeps_all(recent, 1, &tiny) && keeps_all(recent, 0, &tiny));
    }

    #[test]
    fn occupancy_follows_the_segments_that_were_emptied_recently() {
        let occupancy = Occupancy::new(CAPACITY.flash);
        let live = 100 << 20;
        assert!(occupancy.has_room_for_all(1 << 20, 1 << 20, live, &CAPACITY));
        // Segments with half as many records win half as much room.
        let kept = (0..200).map(|_| occupancy.has_room_for_all(1 << 19, 1 << 20, live, &CAPACITY)).collect::<Vec<_>>();
        assert!(kept[0] && !kept[199]);
    }
}
