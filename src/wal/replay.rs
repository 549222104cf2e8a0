//! Frames in order, from what the files and the ring of a dead process hold. Tells torn from rot.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::format::{self, FRAME_LEN_MAX, FileHeader, Frame, Mutation};
use super::writer::FILE_PREFIX;
use crate::codec::{round_down, round_up};
use crate::id::{Lsn, Position, StoreId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, Disk, File, Mapping, SECTOR, numbered, read_twice};

const WINDOW: usize = 256 << 10;

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) frames: u64,
    pub(crate) last: Lsn,
    /// Where the last frame ends.
    pub(crate) end: u64,
    /// The newest statement of what was synced.
    pub(crate) durable: Lsn,
    /// The newest store time that was recorded.
    pub(crate) time_ms: u64,
    /// Bytes above the durable watermark that were cut.
    pub(crate) torn_bytes: u64,
    /// Holes below it.
    pub(crate) holes: Vec<Hole>,
}

/// Who is told what the WAL says.
pub(crate) trait Visitor {
    /// A record was appended, with a new version or, if it was `moved`, with its old one. `record` are its bytes if the WAL holds them.
    fn visit(&mut self, mutation: &Mutation, moved: bool, record: &[u8]) -> io::Result<()>;

    /// Brings from elsewhere what a hole held, as far as that can be. Says whether it is known that no mutation is missing.
    fn repair(&mut self, hole: &Hole) -> io::Result<bool>;

    /// Brings from elsewhere what comes after `last`, the newest mutation of a log of which nothing more is to be found.
    fn resume_past_end(&mut self, last: Lsn) -> io::Result<PastEnd>;
}

/// What was found elsewhere beyond the end of the log.
pub(crate) struct PastEnd {
    /// The newest mutation then.
    pub(crate) last: Lsn,
    /// How many records were taken for what their frames said.
    pub(crate) records: u64,
    /// There is a newer record behind others that are lost.
    pub(crate) is_torn: bool,
}

/// A process may die between a record and its frame: so many records may have none without anything being damaged.
const RECORDS_AHEAD: u64 = 1;

/// Whoever wants to know the end only.
pub(crate) struct IgnoreAll;

impl Visitor for IgnoreAll {
    fn visit(&mut self, _mutation: &Mutation, _moved: bool, _record: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn repair(&mut self, _hole: &Hole) -> io::Result<bool> {
        Ok(false)
    }

    fn resume_past_end(&mut self, last: Lsn) -> io::Result<PastEnd> {
        Ok(PastEnd { last, records: 0, is_torn: false })
    }
}

/// A damaged stretch of the WAL with frames after it. Whoever has the records in their order has a second copy of what it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Mutations after `after` and before `before` are lost.
    pub(crate) after: Lsn,
    pub(crate) before: Lsn,
    /// Whether it is known that it held nothing newer than `before`.
    pub(crate) bounded: bool,
    /// Every record below this position may have been superseded by what the hole held.
    pub(crate) floor: Position,
    /// Whether what it held was brought from elsewhere, or was nothing.
    pub(crate) repaired: bool,
}

/// Reads the WAL that begins at `start`.
#[derive(Debug)]
pub(crate) struct Replay {
    store: StoreId,
    files: BTreeMap<u64, Arc<dyn File>>,
    /// Files that do not say which part of the WAL they hold, since their header does not verify or cannot be read: their frames may.
    headless: Vec<Arc<dyn File>>,
    /// Whether the header of one cannot be read.
    headers_unread: bool,
    /// Whether the ring has lost what no file held.
    end_lost: bool,
    /// Parts of the WAL that no file holds.
    absent: BTreeSet<u64>,
    /// File number and offset of every block that could not be read.
    unread: BTreeSet<(u64, u64)>,
    /// The highest durable LSN that a mark after the first gap states, once that was looked for.
    stated: Option<Lsn>,
    payload: u64,
    ring: Arc<dyn Mapping>,
    window: AlignedBuf,
    /// File number, offset and length of what `window` holds.
    held: Option<(u64, u64, usize)>,
    /// No frame begins here or later, whatever the files and the ring hold: with this a replay of any bytes ends.
    bound: u64,
}

impl Replay {
    pub(crate) fn open(disk: &dyn Disk, store: StoreId, ring: Arc<dyn Mapping>, payload: u64) -> io::Result<Self> {
        let (mut files, mut headless, mut headers_unread) = (BTreeMap::new(), Vec::new(), false);
        let mut block = AlignedBuf::zeroed(BLOCK);
        for (name, len) in disk.list()? {
            if numbered(&name, FILE_PREFIX).is_none() || len != payload + BLOCK as u64 {
                continue;
            }
            let file = disk.open(&name)?;
            if read_twice(|| file.read_at(0, &mut block)).is_err() {
                // Spare or not: replay finds out whether its frames are missed.
                headers_unread = true;
                headless.push(file);
                continue;
            }
            match FileHeader::decode(store, &block) {
                Some(header) if header.payload == payload => drop(files.insert(header.number, file)),
                _ => headless.push(file),
            }
        }
        let absent = BTreeSet::new();
        Ok(Self {
            store,
            files,
            headless,
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
        })
    }

    /// The ring does not hold what it held: nobody knows where the log ended.
    pub(crate) fn mark_end_unknown(&mut self) {
        self.end_lost = true;
    }

    /// A position above every one that may have been used, given that replay went as far as `end`.
    pub(crate) fn limit(&self, end: u64) -> u64 {
        let in_files = self.files.last_key_value().map_or(0, |(number, _)| (number + 1) * self.payload);
        in_files.max(round_up(end, BLOCK as u64) + self.ring_size())
    }

    /// Visits every mutation from `start` on, where the first one has LSN `first` or a later one. `page_cache_whole` says that nothing above the durable watermark can
    /// be missing either, since the host did not crash; `durable` is what is known of it elsewhere.
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
        // The writer is at most a ring ahead of its files, one of which may be lost.
        self.bound = self.limit(start) + (self.headless.len() as u64 + 1) * self.payload + self.ring_size();
        loop {
            if !self.frame_at(summary.end, summary.last, &mut bytes)? {
                let Some(next) = self.frame_after(summary.end, summary.last, &mut bytes)? else {
                    self.end_at(&mut summary, page_cache_whole, visitor)?;
                    break;
                };
                let lost = summary.last.next();
                // In this order: what is looked for may be what cannot be read.
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
            match frame {
                Frame::Mutation(mutation) => {
                    visitor.visit(&mutation, false, record)?;
                    summary.last = mutation.lsn;
                }
                Frame::Move(mutation) => visitor.visit(&mutation, true, record)?,
                Frame::Mark { durable, time_ms, .. } => {
                    summary.durable = summary.durable.max(durable);
                    summary.time_ms = summary.time_ms.max(time_ms);
                }
            }
            summary.frames += 1;
            summary.end += bytes.len() as u64;
        }
        Ok(summary)
    }

    /// Whether something at `at` or later could not be read: nobody knows what it said, nor what it said was durable.
    fn is_unread_from(&self, at: u64) -> bool {
        let unread = self.unread.last().is_some_and(|last| *last >= self.block(at));
        self.end_lost || unread || self.is_headless(at)
    }

    /// Whether a frame at `at` could not be read. Frames follow each other, so if none is there, none follows, whatever else cannot be read.
    fn is_unread_at(&mut self, at: u64) -> io::Result<bool> {
        let mut head = [0; 8];
        let len = if self.copy(false, at, &mut head)? { format::frame_len(&head).unwrap_or(head.len()) } else { head.len() };
        let end = at + len as u64 - 1;
        let unread = self.unread.range(self.block(at)..=self.block(end)).next().is_some();
        Ok(self.end_lost || unread || self.is_headless(at) || self.is_headless(end))
    }

    /// The block that holds a place: its file's number, and its offset there.
    fn block(&self, at: u64) -> (u64, u64) {
        (at / self.payload, round_down(BLOCK as u64 + at % self.payload, BLOCK as u64))
    }

    /// Whether the file that holds a place may be one whose header cannot be read.
    fn is_headless(&self, at: u64) -> bool {
        self.headers_unread && !self.files.contains_key(&(at / self.payload))
    }

    /// Nothing follows `summary.end`. Either nothing ever did, or what did and was synced is lost: a hole without an end.
    fn end_at(&mut self, summary: &mut Summary, page_cache_whole: bool, visitor: &mut impl Visitor) -> io::Result<()> {
        let unread = self.is_unread_at(summary.end)?;
        if summary.last >= summary.durable && !unread {
            return self.look_beyond(summary, page_cache_whole, visitor);
        }
        // What could not be read may have said that more was synced.
        let before = summary.last.max(summary.durable).next();
        let (from, to) = (summary.end, self.limit(summary.end));
        let mut hole = Hole { from, to, after: summary.last, before, bounded: !unread, floor: Position(u64::MAX), repaired: false };
        hole.repaired = visitor.repair(&hole)?;
        summary.last = Lsn(before.0 - 1);
        summary.holes.push(hole);
        if hole.repaired { self.look_beyond(summary, page_cache_whole, visitor) } else { Ok(()) }
    }

    /// What was damaged, or is missing, may be the end of the log: then there are records whose frames are lost. After a power cut records may also simply have come further.
    fn look_beyond(&mut self, summary: &mut Summary, page_cache_whole: bool, visitor: &mut impl Visitor) -> io::Result<()> {
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
        // What the hole held ends before the first mutation after it, or with the newest one that a mark after it knows. Moves say nothing of it: if nothing else
        // follows, a mutation may be lost.
        let floor_of_all = Position(u64::MAX);
        let (mut before, mut floor, mut bounded) = (summary.last.next(), floor_of_all, false);
        while self.frame_at(at, summary.last, &mut bytes)? {
            match format::decode_frame(self.store, at, &bytes) {
                Some((Frame::Mutation(m), _)) => {
                    (before, floor, bounded) = (m.lsn, m.record, true);
                    break;
                }
                Some((Frame::Mark { appended, .. }, _)) => (before, bounded) = (before.max(appended.next()), true),
                Some((Frame::Move(_), _)) | None => {}
            }
            at += bytes.len() as u64;
        }
        Ok(Hole { from: summary.end, to: next, after: summary.last, before, bounded, floor, repaired: false })
    }

    /// Puts the frame at `at` into `bytes`. False if none is there, neither in a file nor in the ring, that could follow `last`.
    fn frame_at(&mut self, at: u64, last: Lsn, bytes: &mut Vec<u8>) -> io::Result<bool> {
        if at >= self.bound {
            return Ok(false);
        }
        let plausible = |frame: Option<(Frame, &[u8])>| match frame {
            Some((Frame::Mutation(m), _)) => m.lsn > last,
            Some((Frame::Move(_) | Frame::Mark { .. }, _)) => true,
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

    /// The first frame after a place where none is.
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

    /// The highest durable LSN that a mark states at `at` or anywhere after it, which is the end of the first gap or follows it: the lost bytes may have been synced.
    fn stated_after(&mut self, at: u64, last: Lsn) -> io::Result<Lsn> {
        if let Some(stated) = self.stated {
            return Ok(stated);
        }
        let (mut next, mut durable, mut bytes) = (Some(at), Lsn::ZERO, Vec::new());
        while let Some(mut at) = next {
            while self.frame_at(at, last, &mut bytes)? {
                if let Some((Frame::Mark { durable: stated, .. }, _)) = format::decode_frame(self.store, at, &bytes) {
                    durable = durable.max(stated);
                }
                at += bytes.len() as u64;
            }
            // Other gaps may lie before it.
            next = self.frame_after(at, last, &mut bytes)?;
        }
        self.stated = Some(durable);
        Ok(durable)
    }

    fn ring_size(&self) -> u64 {
        self.ring.words().len() as u64 * 8
    }

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

    /// The file that holds this part of the WAL although it does not say so: a frame near its front verifies there, which it would do nowhere else.
    fn adopt(&mut self, number: u64) -> Option<Arc<dyn File>> {
        if self.headless.is_empty() || !self.absent.insert(number) {
            return None;
        }
        let mut front = AlignedBuf::zeroed(round_up(2 * FRAME_LEN_MAX as u64, SECTOR as u64) as usize);
        let holds_it = |file: &Arc<dyn File>| {
            read_twice(|| file.read_at(BLOCK as u64, &mut front)).is_ok()
                && (0..FRAME_LEN_MAX).step_by(8).any(|offset| {
                    let at = number * self.payload + offset as u64;
                    let frame = format::frame_len(&front[offset..]).and_then(|len| front.get(offset..offset + len));
                    frame.is_some_and(|frame| format::decode_frame(self.store, at, frame).is_some())
                })
        };
        let found = self.headless.iter().position(holds_it)?;
        let file = self.headless.swap_remove(found);
        self.files.insert(number, Arc::clone(&file));
        Some(file)
    }

    /// Bytes of file `number` from `offset` of its payload on, at least one. `None` if there is no such file.
    fn load(&mut self, number: u64, offset: u64) -> io::Result<Option<&[u8]>> {
        let offset = BLOCK as u64 + offset;
        let holds = |(n, start, len): (u64, u64, usize)| n == number && (start..start + len as u64).contains(&offset);
        if !self.held.is_some_and(holds) {
            let Some(file) = self.files.get(&number).cloned().or_else(|| self.adopt(number)) else { return Ok(None) };
            let start = round_down(offset, BLOCK as u64);
            let end = round_up((start + WINDOW as u64).min(file.len()), BLOCK as u64);
            let len = (end - start) as usize;
            self.held = None;
            if read_twice(|| file.read_at(start, &mut self.window[..len])).is_err() {
                // What cannot be read is as if the frames were damaged: the ring may have them, or they are a hole.
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
