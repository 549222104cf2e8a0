//! A landing ring: the newest bytes of an endless stream, in a mapping.
//!
//! A store lands in the page cache of the data directory, where it survives a process crash. Ring
//! space is reused only after its bytes were written to their place on disk.
//!
//! One appender at a time stores, and one thread at a time writes out. Readers copy bytes out and
//! then check whether they were overtaken: a seqlock over the whole ring (Lameter, 2005; Boehm,
//! 2012).
//!
//! ```text
//!  stale | readable     | readable, not yet written out | room       | kept     |
//!        low            written                         appended              written + size
//! ```
//!
//! A reader takes the bytes of one append in one piece, so they must be whole in the ring or whole
//! on disk. A write-out may end inside them. So the ring keeps as many bytes before `written` as
//! the longest append has that is not whole on disk, or was not a moment ago.
#![allow(unsafe_code, reason = "a range without concurrent stores is lent to the kernel as plain bytes")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex};

use super::aligned::AlignedBuf;
use super::{BLOCK, Mapping};
use crate::codec::{round_down, round_up};
use crate::concurrent::lock;

const WORD: usize = 8;
/// Longest single write of a write-out while more than [`MUCH`] bytes wait for it.
const PIECE: u64 = 1 << 20;
/// Longest single write of a write-out at other times: reads of the device wait for each write.
const SHORT_PIECE: u64 = 256 << 10;
/// A write-out with more waiting bytes than this uses writes of up to [`PIECE`].
const MUCH: u64 = 2 << 20;
/// The bounce buffer takes this share of the ring, at least one block and at most `BOUNCE_MAX`
/// bytes. A partial block is copied into it together with the bytes before it, since a second write
/// takes longer than the copy.
const BOUNCE_SHARE: u64 = 32;
/// Most bytes of the bounce buffer.
const BOUNCE_MAX: u64 = 128 << 10;

fn bounce_len(size: u64) -> u64 {
    (size / BOUNCE_SHARE).clamp(BLOCK as u64, BOUNCE_MAX)
}

/// A landing ring over a mapping. One appender, one thread that writes out, any number of readers.
#[derive(Debug)]
pub(crate) struct Ring {
    mapping: Arc<dyn Mapping>,
    /// Positions below this may have been overwritten.
    low: AtomicU64,
    /// Positions below this were written out. A multiple of [`BLOCK`]. Moves only under the lock
    /// `write_out`.
    written: AtomicU64,
    /// Positions from here on were never stored to. Moves only in [`Ring::append`].
    appended: AtomicU64,
    /// Length of the longest append from position `mark` on, in bytes.
    longest: AtomicU64,
    /// Length of the longest append between the mark before and `mark`. All older ones are whole on
    /// disk.
    longest_before: AtomicU64,
    /// Moves to the end of the last append once all bytes below it are on disk.
    mark: AtomicU64,
    /// Held while bytes are lent to the kernel. Holds the bounce buffer for a write-out that ends
    /// in a partial block.
    write_out: Mutex<AlignedBuf>,
}

impl Ring {
    /// A ring over `mapping`, whose length is a power of two. The stream continues at `start`, a
    /// multiple of [`BLOCK`], and the ring holds nothing before it.
    pub(crate) fn new(mapping: Arc<dyn Mapping>, start: u64) -> Self {
        let words = mapping.words();
        assert!(words.len().is_power_of_two(), "a ring's length is a power of two");
        assert!(words.as_ptr().addr().is_multiple_of(BLOCK), "a mapping starts at a page");
        assert!(start.is_multiple_of(BLOCK as u64), "a stream continues at a block");
        let bounce = bounce_len((words.len() * WORD) as u64) as usize;
        Self {
            mapping,
            low: AtomicU64::new(start),
            written: AtomicU64::new(start),
            appended: AtomicU64::new(start),
            longest: AtomicU64::new(0),
            longest_before: AtomicU64::new(0),
            mark: AtomicU64::new(start),
            write_out: Mutex::new(AlignedBuf::zeroed(bounce)),
        }
    }

    /// Whether every store reached the pages of the file. Otherwise appended bytes may be lost.
    pub(crate) fn is_whole(&self) -> bool {
        self.mapping.is_whole()
    }

    /// Releases the pages of the file.
    pub(crate) fn close(&self) {
        self.mapping.release();
    }

    /// Length in bytes.
    pub(crate) fn size(&self) -> u64 {
        (self.mapping.words().len() * WORD) as u64
    }

    /// Bytes of DRAM that a ring of `size` takes, its bounce buffer included.
    pub(crate) fn allocated(size: u64) -> u64 {
        size + bounce_len(size)
    }

    /// Positions below this were written out.
    pub(crate) fn written(&self) -> u64 {
        // Pairs with the release stores in `write_out` and `skip_to`: the appender reuses words
        // only after the write that read them has ended.
        self.written.load(Ordering::Acquire)
    }

    /// Whether bytes up to position `end` may be appended now.
    pub(crate) fn has_room(&self, end: u64) -> bool {
        let longest = self.longest.load(Ordering::Relaxed).max(self.longest_before.load(Ordering::Relaxed));
        end + longest <= self.written() + self.size()
    }

    /// Most bytes of one append to a ring of `size`. There is room for it once all whole blocks are
    /// written out.
    pub(crate) const fn append_max(size: u64) -> u64 {
        size / 2 - BLOCK as u64
    }

    fn word(&self, position: u64) -> usize {
        debug_assert!(position.is_multiple_of(WORD as u64), "ring positions are whole words");
        (position / WORD as u64) as usize & (self.mapping.words().len() - 1)
    }

    /// Stores the concatenation of `parts` at `position`, at or after the end of the last append.
    /// The last word is filled up with zeros.
    ///
    /// One appender at a time. The caller has asked [`Ring::has_room`].
    pub(crate) fn append(&self, position: u64, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let end = round_up(position + len as u64, WORD as u64);
        assert!(position >= self.appended.load(Ordering::Relaxed), "appended bytes never change");
        assert!(self.has_room(end), "bytes that are not written out are not overwritten");
        let appended = self.appended.load(Ordering::Relaxed);
        if self.mark.load(Ordering::Relaxed) <= self.written() {
            self.longest_before.store(self.longest.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            self.mark.store(appended, Ordering::Relaxed);
        }
        self.longest.fetch_max(end - position, Ordering::Relaxed);
        let low = end.saturating_sub(self.size());
        if low > self.low.load(Ordering::Relaxed) {
            self.low.store(low, Ordering::Relaxed);
            // Pairs with the acquire fence in `load`: a reader that copied a word stored after this
            // fence also sees the new `low`.
            fence(Ordering::Release);
        }
        self.store(position, parts);
        // Pairs with the acquire load in `write_out`.
        self.appended.store(end, Ordering::Release);
    }

    fn store(&self, position: u64, parts: &[&[u8]]) {
        let words = self.mapping.words();
        let mask = words.len() - 1;
        let mut at = self.word(position);
        let mut partial = [0u8; WORD];
        let mut filled = 0;
        for part in parts {
            let mut part = *part;
            if filled > 0 {
                let take = part.len().min(WORD - filled);
                partial[filled..filled + take].copy_from_slice(&part[..take]);
                filled += take;
                part = &part[take..];
                if filled < WORD {
                    continue;
                }
                words[at].store(u64::from_le_bytes(partial), Ordering::Relaxed);
                at = (at + 1) & mask;
            }
            let (whole, tail) = part.as_chunks::<WORD>();
            for chunk in whole {
                words[at].store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
                at = (at + 1) & mask;
            }
            filled = tail.len();
            partial = [0; WORD];
            partial[..filled].copy_from_slice(tail);
        }
        if filled > 0 {
            words[at].store(u64::from_le_bytes(partial), Ordering::Relaxed);
        }
    }

    /// Whether a load from `position` may succeed.
    pub(crate) fn may_hold(&self, position: u64) -> bool {
        position >= self.low.load(Ordering::Relaxed)
    }

    /// Copies from `position` into `buf`. False if the bytes may have been overwritten, before the
    /// call or during it.
    #[must_use]
    pub(crate) fn load(&self, position: u64, buf: &mut [u8]) -> bool {
        if position < self.low.load(Ordering::Relaxed) || buf.len() as u64 > self.size() {
            return false;
        }
        self.copy(position, buf);
        // Pairs with the release fence in `append`: if a copied word belongs to a later append, the
        // load below sees the `low` of that append.
        fence(Ordering::Acquire);
        position >= self.low.load(Ordering::Relaxed)
    }

    fn copy(&self, position: u64, buf: &mut [u8]) {
        copy(self.mapping.words(), position, buf);
    }

    /// Passes the blocks that hold `[written, to)` to `sink`, in order, in pieces, each with its
    /// position. Whole blocks count as written once `sink` returned.
    ///
    /// If `to` is inside a block, that block is passed as well, its rest zero. The next write-out
    /// passes it again, with its beginning unchanged.
    pub(crate) fn write_out(&self, to: u64, mut sink: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut bounce = lock(&self.write_out);
        // Pairs with the release store in `append`: the bytes below `to` are in the ring.
        assert!(to <= self.appended.load(Ordering::Acquire), "only appended bytes are written out");
        let mut from = self.written();
        let whole = round_down(to, BLOCK as u64);
        let is_partial = to > from.max(whole);
        let copied = |from| round_up(to - from, BLOCK as u64) as usize;
        while from < whole && !(is_partial && copied(from) <= bounce.len()) {
            let to_wrap = self.size() - (from & (self.size() - 1));
            // Bytes of a later segment count too.
            let waiting = self.appended.load(Ordering::Relaxed) - from;
            let piece = if waiting > MUCH { PIECE } else { SHORT_PIECE };
            let len = (whole - from).min(to_wrap).min(piece);
            // SAFETY: no thread stores to `[from, from + len)` while the slice lives. The range
            // lies in `[written, appended)`. `append` refuses positions below `appended`, and
            // positions from `written + size` on. Every other position that shares these words is
            // among those. `written` moves only under the lock `write_out`, which is held here.
            let piece = unsafe { self.lend(from, len) };
            sink(from, piece)?;
            // A load of another thread may have faulted meanwhile, so that the kernel read zeros.
            self.check_whole()?;
            from += len;
            self.written.store(from, Ordering::Release);
        }
        if is_partial {
            let bounce = &mut bounce[..copied(from)];
            let (bytes, rest) = bounce.split_at_mut((to - from) as usize);
            self.copy(from, bytes);
            rest.fill(0);
            // A copy that faulted is zeros.
            self.check_whole()?;
            sink(from, bounce)?;
            self.written.store(from.max(whole), Ordering::Release);
        }
        Ok(())
    }

    /// Fails if bytes that are to be written may have been lost.
    fn check_whole(&self) -> io::Result<()> {
        if self.is_whole() { Ok(()) } else { Err(rustix::io::Errno::IO.into()) }
    }

    /// Counts everything below `to`, rounded down to a block, as written out. The caller knows that
    /// all appended bytes below it were written, and that the rest is a gap without appends. Says
    /// whether that made room.
    pub(crate) fn skip_to(&self, to: u64) -> bool {
        let _exclusive = lock(&self.write_out);
        let (to, written) = (round_down(to, BLOCK as u64), self.written());
        self.written.store(to.max(written), Ordering::Release);
        to > written
    }

    /// Lends `len` bytes from `position`, which do not wrap.
    ///
    /// # Safety
    /// No thread stores to these bytes while the slice lives.
    unsafe fn lend(&self, position: u64, len: u64) -> &[u8] {
        let start = self.word(position);
        let range = &self.mapping.words()[start..start + len as usize / WORD];
        // SAFETY: the words are initialised and contiguous, and the caller promises that no thread
        // stores to them.
        unsafe { std::slice::from_raw_parts(range.as_ptr().cast::<u8>(), len as usize) }
    }
}

/// Copies the bytes at `position` of a stream out of a ring over `words`, unchecked. Recovery
/// searches them for the records of a dead process.
pub(crate) fn copy(words: &[AtomicU64], position: u64, buf: &mut [u8]) {
    let mask = words.len() - 1;
    let mut at = (position / WORD as u64) as usize & mask;
    let (whole, tail) = buf.as_chunks_mut::<WORD>();
    for chunk in whole {
        *chunk = words[at].load(Ordering::Relaxed).to_le_bytes();
        at = (at + 1) & mask;
    }
    if !tail.is_empty() {
        let last = words[at].load(Ordering::Relaxed).to_le_bytes();
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[repr(align(4096))]
    struct Heap<const WORDS: usize>([AtomicU64; WORDS]);
    impl<const WORDS: usize> Mapping for Heap<WORDS> {
        fn words(&self) -> &[AtomicU64] {
            &self.0
        }
    }

    fn ring_of<const WORDS: usize>() -> Ring {
        Ring::new(Arc::new(Heap([const { AtomicU64::new(0) }; WORDS])), 0)
    }

    fn ring() -> Ring {
        ring_of::<1024>()
    }

    #[test]
    fn parts_of_any_length_are_joined_and_wrap() {
        let ring = ring();
        ring.skip_to(8192);
        ring.append(8176, &[b"abc", b"", b"defghijklmnop", b"q", b"rstuv"]);
        let mut out = [0u8; 24];
        assert!(ring.load(8176, &mut out));
        assert_eq!(&out, b"abcdefghijklmnopqrstuv\0\0");
    }

    #[test]
    fn an_overtaken_reader_is_told() {
        let ring = ring();
        ring.append(0, &[b"12345678", b"next"]);
        let mut out = [0u8; 8];
        assert!(ring.load(0, &mut out));
        ring.skip_to(4096);
        ring.append(8192, &[b"overtaken"[..8].as_ref()]);
        assert!(!ring.load(0, &mut out));
        assert!(ring.load(8, &mut out), "the next word is still whole");
        assert_eq!(&out, b"next\0\0\0\0");
    }

    #[test]
    fn a_piece_that_is_written_in_part_stays_whole() {
        let ring = ring();
        ring.append(0, &[&[1; 5000]]);
        ring.write_out(4096, |_, _| Ok(())).unwrap();
        assert_eq!(ring.written(), 4096);
        // An append must not wrap round to the beginning of the piece.
        assert!(ring.has_room(7288) && !ring.has_room(7296));
        ring.append(5000, &[&[2; 2288]]);
        assert!(ring.load(0, &mut [0; 5000]));
        ring.write_out(7288, |_, _| Ok(())).unwrap();
        assert!(!ring.has_room(7296), "the last block is written in part, and so is what lies in it");
    }

    #[test]
    fn a_long_append_takes_room_only_until_it_is_on_disk() {
        let ring = ring();
        ring.append(0, &[&[1; 4080]]);
        ring.skip_to(4096);
        let takes_all = || ring.has_room(4096 + 8184);
        ring.append(4096, &[&[2; 8]]);
        assert!(!takes_all(), "it is of the time before the last append");
        ring.append(4104, &[&[3; 8]]);
        assert!(takes_all());
    }

    #[test]
    fn a_partial_block_is_written_again_with_the_same_beginning() {
        let ring = ring();
        ring.append(0, &[&[1; 2048]]);
        ring.append(2048, &[&[1; 2048]]);
        ring.append(4096, &[&[2; 8]]);
        let mut seen = Vec::new();
        let mut note = |at, b: &[u8]| {
            seen.push((at, b.to_vec()));
            Ok(())
        };
        ring.write_out(4104, &mut note).unwrap();
        assert_eq!(ring.written(), 4096);
        ring.append(4104, &[&[3; 4080]]);
        ring.append(8184, &[&[4; 8]]);
        ring.write_out(8192, &mut note).unwrap();
        assert_eq!(ring.written(), 8192);
        assert_eq!(seen.iter().map(|(at, b)| (*at, b.len())).collect::<Vec<_>>(), [(0, 4096), (4096, 4096), (4096, 4096)]);
        let (first, second) = (&seen[1].1, &seen[2].1);
        assert_eq!(first[..8], second[..8]);
        assert_eq!((first[8], second[8]), (0, 3));
    }

    #[test]
    fn a_write_out_that_ends_in_a_partial_block_is_one_write() {
        let ring = ring_of::<{ BOUNCE_SHARE as usize * 2 * BLOCK / WORD }>();
        ring.append(0, &[&[7; 5000]]);
        let mut seen = Vec::new();
        ring.write_out(5000, |at, bytes| {
            seen.push((at, bytes.to_vec()));
            Ok(())
        })
        .unwrap();
        assert_eq!((seen.len(), seen[0].0, seen[0].1.len(), ring.written()), (1, 0, 8192, 4096));
        assert_eq!(seen[0].1, [[7; 5000].as_slice(), &[0; 3192]].concat());
    }

    #[test]
    fn a_failed_write_does_not_move_written() {
        let ring = ring();
        ring.append(0, &[&[1; 4096]]);
        ring.write_out(4096, |_, _| Err(io::ErrorKind::Other.into())).unwrap_err();
        assert_eq!(ring.written(), 0);
        assert!(!ring.has_room(8193));
    }
}
