//! Lists the records of a sealed segment: from its footer, or from the records themselves where the
//! footer is damaged.

use std::io;
use std::ops::Range;

use super::footer::{self, FooterEntry};
use super::format::{self, DATA_START};
use super::table::Row;
use crate::codec::{round_down, round_up};
use crate::id::StoreId;
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, SECTOR, is_loss};

/// Bytes per read of a [`SegmentView`] that is to be fast.
pub(crate) const WINDOW: usize = 1 << 20;
/// Bytes per read of a [`SegmentView`] in the background: other reads wait less for a short one.
pub(crate) const SMALL_WINDOW: usize = 64 << 10;

/// Most records that a [`Listing`] returns at once from damaged stretches of a footer.
const SCANNED_MAX: usize = 256;
/// No record is longer.
const RECORD_LEN_MAX: u32 = 16 << 20;

/// Lists the records of a sealed segment, in the order of their positions and a few at a time. A
/// block that cannot be read counts as one that does not verify.
pub(crate) struct Listing<'a> {
    store: StoreId,
    row: &'a Row,
    hash_seed: u64,
    file: &'a dyn File,
    /// Footer blocks, and the part of the file that they are.
    buf: AlignedBuf,
    held: Range<u64>,
    /// Offset of the first footer block.
    footer_at: u64,
    /// Offset of the next footer block.
    next_block: u64,
    trailer_at: u64,
    data_end: u32,
    /// Offset at which the last listed record ends.
    known_to: u32,
    /// Footer blocks are missing before the next one.
    gap: bool,
    /// A stretch whose records are read themselves.
    scan: Option<(Range<u32>, SegmentView<'a>)>,
    /// Entries of the last footer block that was read. They follow the scanned records.
    pending: Vec<FooterEntry>,
    lost: u64,
    lost_to: u32,
    /// The first error of a read that says nothing of the bytes.
    refusal: Option<io::Error>,
}

impl<'a> Listing<'a> {
    /// Begins with the first record. Reads up to `at_once` bytes of the footer at a time, and a
    /// block at least.
    pub(crate) fn new(store: StoreId, row: &'a Row, hash_seed: u64, file: &'a dyn File, at_once: usize) -> Self {
        let block = BLOCK as u64;
        let trailer_at = row.size - block;
        let mut trailer = AlignedBuf::zeroed(BLOCK);
        let mut refusal = None;
        read_or_zero(file, trailer_at, &mut trailer, &mut refusal);
        let stated = format::decode_trailer(store, &trailer).filter(|(life, _)| *life == row.life).map(|(_, t)| t);
        // A trailer that verifies and states nonsense is as good as none.
        let stated = stated.filter(|t| {
            let footer_at = trailer_at.checked_sub(u64::from(t.footer_blocks) * block);
            footer_at.is_some_and(|at| (DATA_START.into()..=at).contains(&t.data_end.into()))
        });
        let footer_at = match stated {
            Some(trailer) => trailer_at - u64::from(trailer.footer_blocks) * block,
            None => first_footer_block(store, row, file, &mut refusal),
        };
        let len = (at_once as u64 / block * block).min(trailer_at - footer_at).max(block);
        Self {
            store,
            row,
            hash_seed,
            file,
            buf: AlignedBuf::zeroed(len as usize),
            held: 0..0,
            footer_at,
            next_block: footer_at,
            trailer_at,
            data_end: stated.map_or(footer_at as u32, |t| t.data_end),
            known_to: DATA_START,
            // Without a trailer the number of footer blocks is unknown: blocks may be missing at
            // the front.
            gap: stated.is_none(),
            scan: None,
            pending: Vec::new(),
            lost: 0,
            lost_to: 0,
            refusal,
        }
    }

    /// Upper bound of the bytes of all records. It is exact if the trailer verifies and no record
    /// is missing.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.footer_at.min(self.data_end.into()).saturating_sub(DATA_START.into())
    }

    /// Number of stretches so far for which neither the footer block nor the records verify.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Offset at which the last lost stretch ends.
    pub(crate) fn lost_to(&self) -> u32 {
        self.lost_to
    }

    /// The first error of a read that says nothing of the bytes. Then stretches may count as lost
    /// that are not.
    pub(crate) fn take_refusal(&mut self) -> Option<io::Error> {
        self.refusal.take()
    }

    /// The entries of the next footer block, if it verifies.
    fn decode_next_block(&mut self) -> Option<Vec<FooterEntry>> {
        let at = self.next_block;
        self.next_block += BLOCK as u64;
        if !self.held.contains(&at) {
            let len = (self.buf.len() as u64).min(self.trailer_at - at);
            read_or_zero(self.file, at, &mut self.buf[..len as usize], &mut self.refusal);
            self.held = at..at + len;
        }
        let block = &self.buf[(at - self.held.start) as usize..][..BLOCK];
        let in_order = |entries: &Vec<FooterEntry>| {
            entries.first().is_none_or(|e| e.offset >= self.known_to) && entries.last().is_none_or(|e| e.offset + e.len <= self.data_end)
        };
        footer::decode_block(self.store, self.row.life.base.plus(at), block).filter(in_order)
    }

    /// From here on the records up to offset `to` are read themselves.
    fn begin_scan(&mut self, to: u32) {
        if self.known_to < to {
            self.scan = Some((self.known_to..to, SegmentView::new(self.file, self.row.size, SMALL_WINDOW.min(self.buf.len().max(BLOCK)))));
        }
    }

    /// The next records of the stretch that is scanned, one after the other. A record that does not
    /// verify ends the scan, and the rest of the stretch is lost.
    fn step_scan(&mut self) -> Option<Vec<FooterEntry>> {
        let (mut range, mut view) = self.scan.take()?;
        let mut entries = Vec::new();
        while !range.is_empty() {
            if entries.len() == SCANNED_MAX {
                self.scan = Some((range, view));
                break;
            }
            let Some(entry) = record_in(self.store, self.row, self.hash_seed, &mut view, range.clone()) else {
                self.lost += 1;
                self.lost_to = range.end;
                break;
            };
            range.start += entry.len;
            entries.push(entry);
        }
        Some(entries)
    }
}

impl Iterator for Listing<'_> {
    type Item = Vec<FooterEntry>;

    /// The next records, about as many as a footer block lists.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entries) = self.step_scan() {
                return Some(entries);
            }
            if !self.pending.is_empty() {
                return Some(std::mem::take(&mut self.pending));
            }
            if self.next_block >= self.trailer_at {
                if !std::mem::take(&mut self.gap) {
                    return None;
                }
                self.begin_scan(self.data_end);
                continue;
            }
            let Some(entries) = self.decode_next_block() else {
                self.gap = true;
                continue;
            };
            if let (true, Some(first)) = (self.gap, entries.first()) {
                self.gap = false;
                self.begin_scan(first.offset);
            }
            self.known_to = entries.last().map_or(self.known_to, |e| e.offset + e.len);
            self.pending = entries;
        }
    }
}

/// The record at the front of a stretch, if it verifies.
fn record_in(store: StoreId, row: &Row, hash_seed: u64, view: &mut SegmentView<'_>, stretch: Range<u32>) -> Option<FooterEntry> {
    let (offset, room) = (stretch.start, (stretch.end - stretch.start).min(RECORD_LEN_MAX));
    // The head of a record is shorter than a sector. Its length is not verified yet.
    let head = view.bytes(offset, room.min(SECTOR as u32)).ok()?;
    let len = u32::try_from(format::stated_len(head)?).ok().filter(|len| *len <= room)?;
    let bytes = view.bytes(offset, len).ok()?;
    let record = format::decode_record(store, row.life.base.plus(offset.into()), row.life.base_lsn, bytes)?;
    let (hash, tombstone) = record.effect(hash_seed, bytes);
    Some(FooterEntry { hash, offset, len: record.len as u32, lsn: record.lsn, tombstone })
}

/// Fills `buf`, block by block if one read of it all fails. A block that cannot be read becomes
/// zeros. An error that says nothing of the bytes goes to `refusal`.
fn read_or_zero(file: &dyn File, offset: u64, buf: &mut [u8], refusal: &mut Option<io::Error>) {
    if file.read_at(offset, buf).is_err() {
        for (i, block) in buf.chunks_mut(BLOCK).enumerate() {
            let read: io::Result<()> = file.read_at(offset + (i * BLOCK) as u64, block);
            if let Err(error) = read {
                block.fill(0);
                refusal.get_or_insert(error);
            }
        }
        refusal.take_if(|error| is_loss(error));
    }
}

/// Offset of the first footer block, found without a trailer. Steps back from the trailer block as
/// long as blocks verify.
fn first_footer_block(store: StoreId, row: &Row, file: &dyn File, refusal: &mut Option<io::Error>) -> u64 {
    let mut at = row.size - BLOCK as u64;
    let mut block = AlignedBuf::zeroed(BLOCK);
    while at > u64::from(DATA_START) + BLOCK as u64 {
        read_or_zero(file, at - BLOCK as u64, &mut block, refusal);
        if footer::decode_block(store, row.life.base.plus(at - BLOCK as u64), &block).is_none() {
            break;
        }
        at -= BLOCK as u64;
    }
    at
}

/// A sliding view of a segment file for reading it from front to back.
pub(crate) struct SegmentView<'a> {
    file: &'a dyn File,
    size: u64,
    buf: AlignedBuf,
    /// Range of the file that `buf` holds.
    held: Range<u64>,
}

impl<'a> SegmentView<'a> {
    /// A view of a file of `size` bytes that reads `at_once` bytes at a time.
    pub(crate) fn new(file: &'a dyn File, size: u64, at_once: usize) -> Self {
        Self { file, size, buf: AlignedBuf::zeroed(at_once.min(size as usize)), held: 0..0 }
    }

    /// The `len` bytes at `offset`.
    pub(crate) fn bytes(&mut self, offset: u32, len: u32) -> io::Result<&[u8]> {
        let (start, end) = (u64::from(offset), u64::from(offset) + u64::from(len));
        if start < self.held.start || end > self.held.end {
            let from = round_down(start, SECTOR as u64);
            let need = (round_up(end, SECTOR as u64) - from) as usize;
            if need > self.buf.len() {
                self.buf = AlignedBuf::zeroed(need);
                self.held = 0..0;
            }
            let to = (from + self.buf.len() as u64).min(self.size);
            let held = std::mem::replace(&mut self.held, 0..0);
            let mut kept = 0;
            if held.contains(&from) && held.end < to {
                kept = (held.end - from) as usize;
                self.buf.copy_within((from - held.start) as usize..(held.end - held.start) as usize, 0);
            }
            let whole = self.file.read_at(from + kept as u64, &mut self.buf[kept..(to - from) as usize]);
            self.held = match whole {
                Ok(()) => from..to,
                // Part of the window cannot be read. These bytes may still be readable on their
                // own.
                Err(_) => {
                    self.file.read_at(from, &mut self.buf[..need])?;
                    from..from + need as u64
                }
            };
        }
        let at = (start - self.held.start) as usize;
        Ok(&self.buf[at..at + len as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{KeyHash, Lsn, Position, SegmentId};
    use crate::io::sim::SimDisk;
    use crate::segment::table::{Stage, WalStart};

    /// The listing of a segment without records whose footer lists `entry`, and whose trailer is
    /// `trailer`: its entries, and the number of lost stretches.
    fn contents(entry: &FooterEntry, trailer: format::Trailer) -> (Vec<FooterEntry>, u64) {
        const SIZE: usize = 16 * BLOCK;
        let (store, disk) = (StoreId(3), SimDisk::new(1));
        let life = format::Life { id: SegmentId(0), base: Position(SIZE as u64), base_lsn: Lsn(1) };
        let row = Row { stage: Stage::Sealed, size: SIZE as u64, life, last_lsn: Lsn(1), wal_start: WalStart::default(), moved_until: 0 };
        let mut bytes = AlignedBuf::zeroed(SIZE);
        let mut footer = footer::Builder::default();
        footer.push(entry);
        let at = SIZE - 2 * BLOCK;
        let block = footer.block_mut(0);
        footer::finish_block(store, life.base.plus(at as u64), block);
        bytes[at..at + BLOCK].copy_from_slice(block);
        format::encode_trailer(store, &life, &trailer, &mut bytes[SIZE - BLOCK..]);
        let file = disk.create("segment.0", SIZE as u64).unwrap();
        file.write_at(0, &bytes).unwrap();
        let mut listing = Listing::new(store, &row, 7, file.as_ref(), BLOCK);
        let entries = listing.by_ref().flatten().collect();
        (entries, listing.lost())
    }

    #[test]
    fn a_footer_that_verifies_and_states_nonsense_counts_as_damaged() {
        let entry = FooterEntry { hash: KeyHash(9), offset: DATA_START, len: 64, lsn: Lsn(1), tombstone: false };
        let trailer = format::Trailer { footer_blocks: 1, data_end: DATA_START + 64, entries: 1 };
        assert_eq!(contents(&entry, trailer).0, [entry]);
        // Beyond the segment, beyond the data, before the data, and longer than the data.
        for (offset, len) in [(u32::MAX - 63, 56), (17 * BLOCK as u32, 64), (8 * BLOCK as u32, 64), (8, 64), (DATA_START, 1 << 30)] {
            let (found, lost) = contents(&FooterEntry { offset, len, ..entry }, trailer);
            assert_eq!((found.len(), lost), (0, 1), "{offset} + {len}");
        }
        for (footer_blocks, data_end) in [(16, DATA_START), (u32::MAX, DATA_START), (1, u32::MAX), (1, 15 * BLOCK as u32), (1, 0)] {
            let (found, _) = contents(&entry, format::Trailer { footer_blocks, data_end, entries: 1 });
            assert_eq!(found, [entry], "the footer block is found without the trailer");
        }
    }

    #[test]
    fn a_view_shows_the_contents_of_the_file_wherever_it_moves() {
        const SIZE: usize = 64 * BLOCK;
        let disk = SimDisk::new(1);
        let file = disk.create("file", SIZE as u64).unwrap();
        let mut bytes = AlignedBuf::zeroed(SIZE);
        bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 251 + i) as u8);
        file.write_at(0, &bytes).unwrap();
        for (at_once, step, back) in
            [(BLOCK, 1_000, 0), (2 * BLOCK, 3_000, 0), (BLOCK, 9_000, 0), (4 * BLOCK, 700, 5_000), (1 << 20, 6_000, 90)]
        {
            let mut window = SegmentView::new(file.as_ref(), SIZE as u64, at_once);
            let mut at = 8;
            while at + step <= SIZE {
                assert_eq!(window.bytes(at as u32, step as u32).unwrap(), &bytes[at..at + step], "{at_once}, {step}, {at}");
                if back > 0 && at > back {
                    assert_eq!(window.bytes((at - back) as u32, 64).unwrap(), &bytes[at - back..at - back + 64]);
                }
                at += step + step / 7;
            }
        }
    }
}
