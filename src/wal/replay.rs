//! Replays the WAL of an earlier process and tells a torn end from corruption.
//!
//! Replay begins at the `WAL start` of the manifest and visits one frame after the other. It takes
//! each frame from a WAL file. If the file has no valid frame at that position, it takes the frame
//! from the ring. The checksum of a frame is seeded with its position, so a frame is valid at one
//! position only. A mutation must also have a higher LSN than the mutation before it. The record of
//! a frame must lie behind the record of the frame before it.
//!
//! A position without a valid frame begins a gap. Frames follow each other directly, so an intact
//! log has no gap before its end. Replay searches for the next valid frame in steps of 8 bytes, up
//! to the highest position that the earlier process can have used. Three facts then classify the
//! gap:
//!
//! - whether a valid frame follows;
//! - whether the host crashed: the page cache survives a process crash, so a process crash tears
//!   nothing;
//! - whether the first lost LSN is durable. The durable LSN is the highest one that the manifest or
//!   any mark states, before the gap or after it.
//!
//! | A frame follows | The host crashed | First lost LSN | Verdict |
//! |---|---|---|---|
//! | yes | yes | above the durable LSN | torn: the log ends at the gap |
//! | yes | yes | durable | corrupt: a hole |
//! | yes | no | any | corrupt: a hole |
//! | no | either | above the durable LSN | the end of the log |
//! | no | either | durable | corrupt: a hole without an end |
//!
//! A torn gap is ordinary: the power cut kept a later sector and lost an earlier one. A block that
//! cannot be read may hide a mark, and so a higher durable LSN. A gap with a later unreadable block
//! is therefore never torn, and an unreadable block in place of the next frame makes a hole without
//! an end. Lost contents of the ring, or of a header that would identify a file, count as
//! unreadable.
//!
//! A hole has a second copy: the records lie in the segment stream in the order of their frames.
//! The [`Visitor`] repairs the hole from them. If it cannot, every record below the `floor` of the
//! hole may be superseded and must not be served. At the end of the log the visitor looks for
//! further records in the same way, because the last frames may be lost without a trace in the WAL.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::format::{self, FRAME_LEN_MAX, FileHeader, Frame, Mark, Mutation};
use super::writer::FILE_PREFIX;
use crate::codec::{round_down, round_up};
use crate::id::{Lsn, Position, StoreId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, Disk, File, Mapping, SECTOR, numbered, read_twice};

/// Bytes per read of a WAL file.
const WINDOW: usize = 256 << 10;

/// The findings of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Number of frames visited.
    pub(crate) frames: u64,
    /// LSN of the newest mutation: visited, restored or known to be lost.
    pub(crate) last: Lsn,
    /// Position at which the last frame ends.
    pub(crate) end: u64,
    /// The highest durable LSN that the caller or a visited mark states.
    pub(crate) durable: Lsn,
    /// The visited mark with the newest store time.
    pub(crate) newest_mark: Mark,
    /// Whether a visited mark states that the report of the opening was heard.
    pub(crate) heard: bool,
    /// Length of the torn gap at which the log was cut, or of the frame whose record is nowhere, in
    /// bytes. 0 without either.
    pub(crate) torn_bytes: u64,
    /// Corrupt stretches, oldest first.
    pub(crate) holes: Vec<Hole>,
}

impl Summary {
    fn add_mark(&mut self, mark: Mark) {
        self.durable = self.durable.max(mark.durable);
        self.heard |= mark.heard;
        if mark.time_ms >= self.newest_mark.time_ms {
            self.newest_mark = mark;
        }
    }
}

/// Receives the contents of the WAL, and supplies lost contents from the records.
pub(crate) trait Visitor {
    /// A record was appended: with a new LSN, or with its old one if it was `moved`.
    ///
    /// `record` holds the bytes of the record if the WAL has them, and is empty otherwise. Returns
    /// false if the log ends before this frame, which only a host crash can cause.
    fn visit(&mut self, mutation: &Mutation, moved: bool, record: &[u8]) -> io::Result<bool>;

    /// Restores the mutations of a hole from their records, as far as possible. Returns whether it
    /// is certain that no mutation is missing.
    fn repair(&mut self, hole: &Hole) -> io::Result<bool>;

    /// Restores the mutations after `last`, the newest one that the log has, from their records.
    fn resume_past_end(&mut self, last: Lsn) -> io::Result<PastEnd>;
}

/// Records found past the end of the log.
pub(crate) struct PastEnd {
    /// LSN of the newest mutation, these records included.
    pub(crate) last: Lsn,
    /// Number of records that stood in for their frames.
    pub(crate) records: u64,
    /// Whether a newer record lies behind lost ones.
    pub(crate) is_torn: bool,
}

/// Records without a frame that an intact log may have: a process may die between the store of a
/// record and the store of its frame.
const RECORDS_AHEAD: u64 = 1;

/// A [`Visitor`] that does nothing, for a caller that needs only the [`Summary`].
pub(crate) struct IgnoreAll;

impl Visitor for IgnoreAll {
    fn visit(&mut self, _mutation: &Mutation, _moved: bool, _record: &[u8]) -> io::Result<bool> {
        Ok(true)
    }

    fn repair(&mut self, _hole: &Hole) -> io::Result<bool> {
        Ok(false)
    }

    fn resume_past_end(&mut self, last: Lsn) -> io::Result<PastEnd> {
        Ok(PastEnd { last, records: 0, is_torn: false })
    }
}

/// A corrupt stretch of the WAL. The records of its mutations are a second copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    /// Position of its first byte in the WAL stream.
    pub(crate) from: u64,
    /// Position of the next frame, or a bound of the stream if no frame follows.
    pub(crate) to: u64,
    /// LSN of the last mutation before the hole. Mutations between `after` and `before` are lost.
    pub(crate) after: Lsn,
    /// A mutation with this LSN or a higher one is not known to be lost.
    pub(crate) before: Lsn,
    /// Whether it is certain that no mutation at or above `before` is lost.
    pub(crate) bounded: bool,
    /// A mutation in the hole may have superseded any record below this position.
    pub(crate) floor: Position,
    /// Whether every mutation in the hole was restored, or it held none.
    pub(crate) repaired: bool,
}

/// One replay of the WAL of an earlier process. It keeps one file open at a time.
#[derive(Debug)]
pub(crate) struct Replay<'d> {
    disk: &'d dyn Disk,
    store: StoreId,
    /// Names of files, by their numbers.
    files: BTreeMap<u64, String>,
    /// Files whose header does not verify or cannot be read. Their frames may identify them.
    headless: Vec<String>,
    /// The file that was read last, and its number.
    open: Option<(u64, Arc<dyn File>)>,
    /// Whether the header of a `headless` file cannot be read.
    headers_unread: bool,
    /// Whether the ring lost bytes that no file holds.
    end_lost: bool,
    /// Numbers of files that were looked for among `headless`.
    absent: BTreeSet<u64>,
    /// File number and offset of every block that could not be read.
    unread: BTreeSet<(u64, u64)>,
    /// The highest durable LSN of a mark after the first gap. `None` before the search for it.
    stated: Option<Lsn>,
    /// Bytes of stream in each file.
    payload: u64,
    ring: Arc<dyn Mapping>,
    window: AlignedBuf,
    /// File number, offset and length of the bytes in `window`.
    held: Option<(u64, u64, usize)>,
    /// Replay accepts no frame from this position on. The bound ends a replay of arbitrary bytes.
    bound: u64,
    /// Position at which the record of the last visited frame ends.
    records_end: Position,
    /// Nor from this one on, where a caller ended the log.
    cut: u64,
}

impl<'d> Replay<'d> {
    pub(crate) fn open(disk: &'d dyn Disk, store: StoreId, ring: Arc<dyn Mapping>, payload: u64) -> io::Result<Self> {
        let (mut files, mut headless, mut headers_unread) = (BTreeMap::new(), Vec::new(), false);
        let mut block = AlignedBuf::zeroed(BLOCK);
        for (name, len) in disk.list()? {
            if numbered(&name, FILE_PREFIX).is_none() || len != payload + BLOCK as u64 {
                continue;
            }
            let file = disk.open(&name)?;
            if read_twice(|| file.read_at(0, &mut block)).is_err() {
                // It may be a spare file: replay finds out whether frames are missing.
                headers_unread = true;
                headless.push(name);
                continue;
            }
            match FileHeader::decode(store, &block) {
                Some(header) if header.payload == payload => drop(files.insert(header.number, name)),
                _ => headless.push(name),
            }
        }
        let absent = BTreeSet::new();
        Ok(Self {
            disk,
            store,
            files,
            headless,
            open: None,
            headers_unread,
            end_lost: false,
            absent,
            unread: BTreeSet::new(),
            stated: None,
            payload,
            ring,
            window: AlignedBuf::zeroed(WINDOW),
            held: None,
            bound: 0,
            records_end: Position(0),
            cut: u64::MAX,
        })
    }

    /// States that the ring lost its contents, so that the end of the log is unknown.
    pub(crate) fn mark_end_unknown(&mut self) {
        self.end_lost = true;
    }

    /// Ends the log at `position`. Frames and records beyond it belong to no mutation of the log.
    pub(crate) fn cut_at(&mut self, position: u64) {
        self.cut = position;
    }

    /// The end of the frames that follow each other without a gap from `start` on, or the first
    /// frame of a record that is not in a segment which the caller knows. The first mutation has
    /// LSN `first` or a higher one. Also returns the LSN of the last mutation.
    pub(crate) fn end_of_run(&mut self, (start, first): (u64, Lsn), is_known: impl Fn(Position) -> bool) -> io::Result<(u64, Lsn)> {
        let (mut end, mut last, mut bytes) = (start, Lsn(first.0.saturating_sub(1)), Vec::new());
        self.bound = u64::MAX;
        while self.frame_at(end, last, &mut bytes)? {
            match format::decode_frame(self.store, end, &bytes) {
                Some((Frame::Mutation(m) | Frame::Move(m), _)) if !is_known(m.record) => break,
                Some((Frame::Mutation(m), _)) => last = m.lsn,
                Some((Frame::Move(_) | Frame::Mark(_), _)) => {}
                None => break,
            }
            end += bytes.len() as u64;
        }
        Ok((end, last))
    }

    /// A position above every one that the earlier process can have used, if replay reached `end`.
    pub(crate) fn limit(&self, end: u64) -> u64 {
        let in_files = self.files.last_key_value().map_or(0, |(number, _)| (number + 1) * self.payload);
        in_files.max(round_up(end, BLOCK as u64) + self.ring_size())
    }

    /// Visits every mutation from position `start` on. The first one has LSN `first` or a higher
    /// one.
    ///
    /// `durable` is the durable LSN that the manifest states. `page_cache_whole` says that the host
    /// did not crash, so that unsynced bytes cannot be missing either.
    pub(crate) fn run(
        &mut self,
        (start, first): (u64, Lsn),
        durable: Lsn,
        page_cache_whole: bool,
        visitor: &mut impl Visitor,
    ) -> io::Result<Summary> {
        let last = Lsn(first.0.saturating_sub(1));
        let mut summary = Summary { end: start, durable, last, ..Summary::default() };
        let mut bytes = Vec::with_capacity(FRAME_LEN_MAX);
        (self.stated, self.records_end) = (None, Position(0));
        // The writer is at most a ring ahead of its files, one of which may be lost.
        self.bound = self.limit(start) + (self.headless.len() as u64 + 1) * self.payload + self.ring_size();
        self.bound = self.bound.min(self.cut);
        loop {
            if !self.frame_at(summary.end, summary.last, &mut bytes)? {
                let Some(next) = self.frame_after(summary.end, summary.last, &mut bytes)? else {
                    self.end_at(&mut summary, page_cache_whole, visitor)?;
                    break;
                };
                let lost = summary.last.next();
                // `stated_after` comes before `is_unread_from`: its reads find unreadable blocks.
                if !page_cache_whole
                    && lost > summary.durable.max(self.stated_after(next, summary.last)?)
                    && !self.is_unread_from(summary.end)
                {
                    summary.torn_bytes += next - summary.end;
                    self.look_beyond(&mut summary, page_cache_whole, visitor)?;
                    break;
                }
                if !self.frame_at(next, summary.last, &mut bytes)? {
                    break;
                }
                let mut hole = self.describe_hole(&summary, next)?;
                hole.repaired = visitor.repair(&hole)?;
                summary.last = summary.last.max(Lsn(hole.before.0 - 1));
                summary.holes.push(hole);
                summary.end = next;
                continue;
            }
            let Some((frame, record)) = format::decode_frame(self.store, summary.end, &bytes) else { break };
            let goes_on = match &frame {
                Frame::Mutation(mutation) | Frame::Move(mutation) => visitor.visit(mutation, matches!(frame, Frame::Move(_)), record)?,
                Frame::Mark(mark) => {
                    summary.add_mark(*mark);
                    true
                }
            };
            if !goes_on {
                summary.torn_bytes += bytes.len() as u64;
                self.look_beyond(&mut summary, page_cache_whole, visitor)?;
                break;
            }
            if let Frame::Mutation(m) | Frame::Move(m) = frame {
                self.records_end = Position(m.record.0.saturating_add(m.record_len.into()));
                summary.last = if matches!(frame, Frame::Mutation(_)) { m.lsn } else { summary.last };
            }
            summary.frames += 1;
            summary.end += bytes.len() as u64;
        }
        Ok(summary)
    }

    /// Whether bytes at `at` or later could not be read. They may have held frames, and a mark with
    /// a higher durable LSN.
    fn is_unread_from(&self, at: u64) -> bool {
        let unread = self.unread.last().is_some_and(|last| *last >= self.block(at));
        self.end_lost || unread || self.is_headless(at)
    }

    /// Whether the bytes of a frame at `at` could not be read.
    ///
    /// Unreadable bytes further on do not matter here. Frames follow each other directly, so
    /// without a frame at `at` none follows.
    fn is_unread_at(&mut self, at: u64) -> io::Result<bool> {
        let mut head = [0; 8];
        let len = if self.copy(false, at, &mut head)? { format::frame_len(&head).unwrap_or(head.len()) } else { head.len() };
        let end = at + len as u64 - 1;
        let unread = self.unread.range(self.block(at)..=self.block(end)).next().is_some();
        Ok(self.end_lost || unread || self.is_headless(at) || self.is_headless(end))
    }

    /// The block that holds position `at`: the number of its file, and its offset there.
    fn block(&self, at: u64) -> (u64, u64) {
        (at / self.payload, round_down(BLOCK as u64 + at % self.payload, BLOCK as u64))
    }

    /// Whether position `at` may lie in a file whose header cannot be read.
    fn is_headless(&self, at: u64) -> bool {
        self.headers_unread && !self.files.contains_key(&(at / self.payload))
    }

    /// No frame follows `summary.end`. This is the end of the log, unless a later mutation is
    /// durable or the bytes here cannot be read: then it is a hole without an end.
    fn end_at(&mut self, summary: &mut Summary, page_cache_whole: bool, visitor: &mut impl Visitor) -> io::Result<()> {
        let unread = self.is_unread_at(summary.end)?;
        if summary.last >= summary.durable && !unread {
            return self.look_beyond(summary, page_cache_whole, visitor);
        }
        // An unreadable mark may have stated a higher durable LSN.
        let before = summary.last.max(summary.durable).next();
        let (from, to) = (summary.end, self.limit(summary.end));
        let mut hole = Hole { from, to, after: summary.last, before, bounded: !unread, floor: Position(u64::MAX), repaired: false };
        hole.repaired = visitor.repair(&hole)?;
        summary.last = Lsn(before.0 - 1);
        summary.holes.push(hole);
        if hole.repaired { self.look_beyond(summary, page_cache_whole, visitor) } else { Ok(()) }
    }

    /// Continues with records past the last frame: the frames at the end of the log may be lost.
    ///
    /// After a process crash more than [`RECORDS_AHEAD`] such records are damage, and so is a lost
    /// record before a newer one. After a host crash neither is: records may have been written out
    /// before their frames were.
    fn look_beyond(&mut self, summary: &mut Summary, page_cache_whole: bool, visitor: &mut impl Visitor) -> io::Result<()> {
        if self.cut < u64::MAX {
            // Later records are beyond the end that the caller chose.
            return Ok(());
        }
        let after = summary.last;
        let PastEnd { last, records, is_torn } = visitor.resume_past_end(after)?;
        summary.last = last;
        if page_cache_whole && (records > RECORDS_AHEAD || is_torn) {
            let (from, to) = (summary.end, self.limit(summary.end));
            let floor = Position(u64::MAX);
            summary.holes.push(Hole { from, to, after, before: last.next(), bounded: !is_torn, floor, repaired: !is_torn });
        }
        Ok(())
    }

    /// The hole between `summary.end` and the frame at `next`.
    fn describe_hole(&mut self, summary: &Summary, next: u64) -> io::Result<Hole> {
        let mut bytes = Vec::new();
        let mut at = next;
        // The lost mutations end before the first mutation after the hole, or with the newest
        // mutation that a mark after the hole states. A move states neither: if only moves follow,
        // further mutations may be lost.
        let floor_of_all = Position(u64::MAX);
        let (mut before, mut floor, mut bounded) = (summary.last.next(), floor_of_all, false);
        while self.frame_at(at, summary.last, &mut bytes)? {
            match format::decode_frame(self.store, at, &bytes) {
                Some((Frame::Mutation(m), _)) => {
                    (before, floor, bounded) = (m.lsn, m.record, true);
                    break;
                }
                Some((Frame::Mark(mark), _)) => (before, bounded) = (before.max(mark.appended.next()), true),
                Some((Frame::Move(_), _)) | None => {}
            }
            at += bytes.len() as u64;
        }
        Ok(Hole { from: summary.end, to: next, after: summary.last, before, bounded, floor, repaired: false })
    }

    /// Puts the frame at `at` into `bytes`. Returns false if neither a file nor the ring has a
    /// valid frame there that can follow mutation `last`.
    fn frame_at(&mut self, at: u64, last: Lsn, bytes: &mut Vec<u8>) -> io::Result<bool> {
        if at >= self.bound {
            return Ok(false);
        }
        // Records lie in the order of their frames.
        let records_end = self.records_end;
        let plausible = |frame: Option<(Frame, &[u8])>| match frame {
            Some((Frame::Mutation(m), _)) => m.lsn > last && m.record >= records_end,
            Some((Frame::Move(m), _)) => m.record >= records_end,
            Some((Frame::Mark(_), _)) => true,
            None => false,
        };
        for from_ring in [false, true] {
            bytes.resize(8, 0);
            if !self.copy(from_ring, at, bytes)? {
                continue;
            }
            let Some(len) = format::frame_len(bytes) else { continue };
            bytes.resize(len, 0);
            if self.copy(from_ring, at, bytes)? && plausible(format::decode_frame(self.store, at, bytes)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Position of the first frame after `at`, where no frame is.
    fn frame_after(&mut self, at: u64, last: Lsn, bytes: &mut Vec<u8>) -> io::Result<Option<u64>> {
        let limit = self.limit(at);
        let mut at = at + 8;
        while at < limit {
            if self.frame_at(at, last, bytes)? {
                return Ok(Some(at));
            }
            at += 8;
        }
        Ok(None)
    }

    /// The highest durable LSN of all marks at `at` or later, where `at` is the end of the first
    /// gap. Such a mark may state that the lost bytes were synced.
    ///
    /// The first call determines the answer of later ones.
    fn stated_after(&mut self, at: u64, last: Lsn) -> io::Result<Lsn> {
        if let Some(stated) = self.stated {
            return Ok(stated);
        }
        let (mut next, mut durable, mut bytes) = (Some(at), Lsn::ZERO, Vec::new());
        while let Some(mut at) = next {
            while self.frame_at(at, last, &mut bytes)? {
                if let Some((Frame::Mark(mark), _)) = format::decode_frame(self.store, at, &bytes) {
                    durable = durable.max(mark.durable);
                }
                at += bytes.len() as u64;
            }
            // The next frame may lie behind further gaps.
            next = self.frame_after(at, last, &mut bytes)?;
        }
        self.stated = Some(durable);
        Ok(durable)
    }

    fn ring_size(&self) -> u64 {
        self.ring.words().len() as u64 * 8
    }

    /// Fills `buf` with the bytes at `at`, from the ring or the files. Returns false if a file is
    /// missing.
    fn copy(&mut self, from_ring: bool, at: u64, buf: &mut [u8]) -> io::Result<bool> {
        if from_ring {
            crate::io::ring::copy(self.ring.words(), at, buf);
            return Ok(true);
        }
        let (mut at, mut rest) = (at, buf);
        while !rest.is_empty() {
            let (number, offset) = (at / self.payload, at % self.payload);
            let Some(held) = self.load(number, offset)? else { return Ok(false) };
            let n = held.len().min(rest.len());
            rest[..n].copy_from_slice(&held[..n]);
            at += n as u64;
            rest = &mut rest[n..];
        }
        Ok(true)
    }

    /// Finds file `number` among those without a usable header. A frame near its front verifies at
    /// the position that it has in file `number`, and would verify at no other.
    fn adopt(&mut self, number: u64) -> io::Result<bool> {
        if self.headless.is_empty() || !self.absent.insert(number) {
            return Ok(false);
        }
        let mut front = AlignedBuf::zeroed(round_up(2 * FRAME_LEN_MAX as u64, SECTOR as u64) as usize);
        for i in 0..self.headless.len() {
            let file = self.disk.open(&self.headless[i])?;
            let holds_it = read_twice(|| file.read_at(BLOCK as u64, &mut front)).is_ok()
                && (0..FRAME_LEN_MAX).step_by(8).any(|offset| {
                    let at = number * self.payload + offset as u64;
                    let frame = format::frame_len(&front[offset..]).and_then(|len| front.get(offset..offset + len));
                    frame.is_some_and(|frame| format::decode_frame(self.store, at, frame).is_some())
                });
            if holds_it {
                let name = self.headless.swap_remove(i);
                self.files.insert(number, name);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// File `number`, if it is there.
    fn file(&mut self, number: u64) -> io::Result<Option<Arc<dyn File>>> {
        if let Some((open, file)) = &self.open
            && *open == number
        {
            return Ok(Some(Arc::clone(file)));
        }
        if !self.files.contains_key(&number) && !self.adopt(number)? {
            return Ok(None);
        }
        // The file before it is closed first.
        self.open = None;
        let file = self.disk.open(&self.files[&number])?;
        self.open = Some((number, Arc::clone(&file)));
        Ok(Some(file))
    }

    /// Bytes of file `number` from `offset` of its payload on, at least one. `None` without such a
    /// file.
    fn load(&mut self, number: u64, offset: u64) -> io::Result<Option<&[u8]>> {
        let offset = BLOCK as u64 + offset;
        let holds = |(n, start, len): (u64, u64, usize)| n == number && (start..start + len as u64).contains(&offset);
        if !self.held.is_some_and(holds) {
            let Some(file) = self.file(number)? else { return Ok(None) };
            let start = round_down(offset, BLOCK as u64);
            let end = round_up((start + WINDOW as u64).min(file.len()), BLOCK as u64);
            let len = (end - start) as usize;
            self.held = None;
            if read_twice(|| file.read_at(start, &mut self.window[..len])).is_err() {
                // Unreadable frames are like corrupt ones: the ring may have them, or they are a
                // hole.
                for (block, buf) in self.window[..len].chunks_mut(BLOCK).enumerate() {
                    let at = start + (block * BLOCK) as u64;
                    if read_twice(|| file.read_at(at, buf)).is_err() {
                        buf.fill(0);
                        self.unread.insert((number, at));
                    }
                }
            }
            self.held = Some((number, start, len));
        }
        let Some((_, start, len)) = self.held else { return Ok(None) };
        Ok(Some(&self.window[(offset - start) as usize..len]))
    }
}
