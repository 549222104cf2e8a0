//! Log lines that calls of users can cause at will: at most one a minute for each message and
//! segment, with the number of those that were left out.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::concurrent::lock;
use crate::id::SegmentId;

/// Time between two lines of one message about one segment.
const INTERVAL: Duration = Duration::from_secs(60);
/// Lines that are told apart. Beyond that, the segments share one line for each message.
const LINES_MAX: usize = 256;

/// Decides which lines are written.
#[derive(Debug, Default)]
pub(in crate::engine) struct LogLimit(Mutex<HashMap<(&'static str, Option<SegmentId>), Line>>);

#[derive(Debug)]
struct Line {
    /// Time of the engine's monotonic clock at which the line may be written again.
    next: Duration,
    left_out: u64,
}

impl LogLimit {
    /// Whether a line may be written at time `now`: the number of such lines that were left out
    /// since the last one, or `None` if this one is left out too. `message` names the line.
    pub(in crate::engine) fn left_out(&self, now: Duration, message: &'static str, segment: Option<SegmentId>) -> Option<u64> {
        let mut lines = lock(&self.0);
        let is_known = lines.contains_key(&(message, segment)) || lines.len() < LINES_MAX;
        let line = lines.entry((message, segment.filter(|_| is_known))).or_insert(Line { next: now, left_out: 0 });
        if now < line.next {
            line.left_out += 1;
            return None;
        }
        line.next = now + INTERVAL;
        Some(std::mem::take(&mut line.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_for_each_segment_counts_the_others() {
        let limit = LogLimit::default();
        let at = |s, segment| limit.left_out(Duration::from_secs(s), "a read failed", Some(SegmentId(segment)));
        assert_eq!([at(5, 1), at(5, 1), at(64, 1), at(64, 2), at(65, 1), at(66, 1)], [Some(0), None, None, Some(0), Some(2), None]);
        assert_eq!(limit.left_out(Duration::from_secs(66), "another message", Some(SegmentId(1))), Some(0));
        // However many segments fail, few lines are remembered.
        let lines = (0..2_000).filter(|n| at(70, *n).is_some()).count();
        assert!(lines <= LINES_MAX && lock(&limit.0).len() <= LINES_MAX + 2, "{lines}");
    }
}
