//! Which sectors of a segment file hold a record.

use std::ops::Range;

use crate::codec::{round_down, round_up};
use crate::io::SECTOR;

/// A range of whole sectors of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    start: u64,
    end: u64,
}

impl Extent {
    /// The sectors of a file of `size` bytes that hold `len` bytes at `offset`. Empty if the file
    /// ends before them.
    pub(crate) fn of(offset: u32, len: usize, size: u64) -> Self {
        let start = round_down(offset.into(), SECTOR as u64);
        let end = round_up(u64::from(offset) + len as u64, SECTOR as u64).min(size);
        Self { start, end: end.max(start) }
    }

    /// The `count` sectors from the one that holds `offset` on.
    pub(crate) fn of_sectors(offset: u32, count: u64, size: u64) -> Self {
        let start = round_down(offset.into(), SECTOR as u64);
        let end = (start + count * SECTOR as u64).min(size);
        Self { start, end: end.max(start) }
    }

    /// The sectors from the start of this extent to `end`, as far as a file of `size` bytes has
    /// them.
    pub(crate) fn up_to(self, end: u64, size: u64) -> Self {
        Self { start: self.start, end: end.min(size).max(self.start) }
    }

    /// Offset of the first sector in the file.
    pub(crate) fn start(self) -> u64 {
        self.start
    }

    /// Offset in the file of the end of the last sector.
    pub(crate) fn end(self) -> u64 {
        self.end
    }

    /// Bytes to read.
    pub(crate) fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Where `offset` lies in a buffer that holds this extent.
    pub(crate) fn index_of(self, offset: u32) -> usize {
        (u64::from(offset) - self.start) as usize
    }

    /// Where `len` bytes at `offset` lie in a buffer that holds this extent, as far as it does.
    pub(crate) fn range_of(self, offset: u32, len: usize) -> Range<usize> {
        let start = self.index_of(offset);
        start.min(self.len())..(start + len).min(self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_is_whole_sectors_within_the_file() {
        let extent = Extent::of(1_000, 100, 65_536);
        assert_eq!((extent.start(), extent.end(), extent.len()), (512, 1_536, 1_024));
        assert_eq!((extent.index_of(1_000), extent.range_of(1_000, 100)), (488, 488..588));
        assert_eq!(Extent::of(65_000, 10_000, 65_536).end(), 65_536);
        assert_eq!(Extent::of_sectors(1_000, 2, 65_536), Extent::of(1_000, 536, 65_536));
        assert!(Extent::of(70_000, 10, 65_536).is_empty());
    }
}
