//! The warmth list, file `heat.N`: hashes of keys in the memory tier, hottest first.
//!
//! A restarted store refills its memory tier in this order. `docs/FORMAT.md` explains the bytes.
//!
#![doc = concat!("```text\n", include_str!("warmth_list.layout.txt"), "```")]
//! A lost list costs warmth only, and a hash without an entry is skipped.

use std::io;

use crate::codec::{Checksum, Put, Reader, round_up};
use crate::id::{KeyHash, StoreId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File};

/// The table above, as `inspect layout` prints it.
pub(crate) const LAYOUT: &str = include_str!("warmth_list.layout.txt");
const MAGIC: u32 = u32::from_le_bytes(*b"EWHT");
pub(crate) const VERSION: u32 = 1;
const HEAD_LEN: usize = 40;
/// Offset of the first byte that the checksum covers.
const CHECKED: usize = 12;
/// Bytes in one read or write, a multiple of a block.
const PIECE: usize = 64 << 10;
/// A longer file is refused.
const FILE_LEN_MAX: u64 = 256 << 20;
/// The most keys that a file can list.
pub(crate) const KEYS_MAX: usize = (FILE_LEN_MAX as usize - HEAD_LEN) / 8;

/// The content of a warmth list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WarmthList {
    /// The number of the list. Of two lists the one with the larger number counts.
    pub(crate) sequence: u64,
    /// Hottest first.
    pub(crate) hashes: Vec<KeyHash>,
    /// How many of the first hashes were in the main queue.
    pub(crate) proved: usize,
}

impl WarmthList {
    /// Bytes of the file, a multiple of a block.
    pub(crate) fn file_len(&self) -> u64 {
        round_up((HEAD_LEN + self.hashes.len() * 8) as u64, BLOCK as u64)
    }

    fn head(&self, store: StoreId, check: u32) -> [u8; HEAD_LEN] {
        let mut out = Vec::with_capacity(HEAD_LEN);
        out.put_u32(MAGIC);
        out.put_u32(VERSION);
        out.put_u32(check);
        out.put_u32(self.hashes.len() as u32);
        out.put_u64(store.0);
        out.put_u64(self.sequence);
        out.put_u32(self.proved as u32);
        out.put_u32(0);
        out.try_into().expect("the table at the top states this length")
    }

    /// Calls `with` for each piece of the file, with its offset and its bytes.
    fn pieces(&self, head: &[u8; HEAD_LEN], mut with: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut piece = AlignedBuf::zeroed(PIECE);
        let (mut start, mut used) = (0, HEAD_LEN);
        piece[..HEAD_LEN].copy_from_slice(head);
        for hash in &self.hashes {
            if used == PIECE {
                with(start, &piece)?;
                (start, used) = (start + PIECE as u64, 0);
            }
            piece[used..used + 8].copy_from_slice(&hash.0.to_le_bytes());
            used += 8;
        }
        let end = round_up(used as u64, BLOCK as u64) as usize;
        piece[used..end].fill(0);
        with(start, &piece[..end])
    }

    /// Writes the list to the front of `file`.
    pub(crate) fn write(&self, store: StoreId, file: &dyn File) -> io::Result<()> {
        let mut checksum = Checksum::new(store, MAGIC, self.sequence);
        self.pieces(&self.head(store, 0), |at, piece| {
            checksum.update(&piece[if at == 0 { CHECKED } else { 0 }..]);
            Ok(())
        })?;
        self.pieces(&self.head(store, checksum.finish()), |at, piece| file.write_at(at, piece))
    }

    /// Reads the `most` hottest keys from `file`. `None` if the file does not verify.
    pub(crate) fn read(store: StoreId, file: &dyn File, most: usize) -> io::Result<Option<Self>> {
        let len = file.len();
        if !(BLOCK as u64..=FILE_LEN_MAX).contains(&len) {
            return Ok(None);
        }
        let mut piece = AlignedBuf::zeroed(PIECE.min(len as usize));
        let mut found = None;
        let mut at = 0;
        while at < len {
            let part = (PIECE as u64).min(len - at) as usize;
            file.read_at(at, &mut piece[..part])?;
            if at == 0 {
                found = Begun::decode(store, &piece[..part], len);
            }
            let Some(Begun { list, checksum, count, .. }) = &mut found else { return Ok(None) };
            // The file may be longer than its content: it is reused, and an earlier list was
            // longer.
            let end = round_up((HEAD_LEN + *count * 8) as u64, BLOCK as u64).saturating_sub(at).min(part as u64) as usize;
            let (checked, listed) = if at == 0 { (CHECKED, HEAD_LEN) } else { (0, 0) };
            checksum.update(&piece[checked.min(end)..end]);
            let hashes = piece[listed.min(end)..end].as_chunks::<8>().0;
            let wanted = most.min(*count) - list.hashes.len();
            list.hashes.extend(hashes.iter().take(wanted).map(|hash| KeyHash(u64::from_le_bytes(*hash))));
            at += part as u64;
        }
        let Some(Begun { mut list, checksum, stated, .. }) = found else { return Ok(None) };
        list.proved = list.proved.min(list.hashes.len());
        Ok((stated == checksum.finish()).then_some(list))
    }
}

/// A list that is being read.
struct Begun {
    list: WarmthList,
    checksum: Checksum,
    /// The checksum that the file states.
    stated: u32,
    /// Keys that the file lists.
    count: usize,
}

impl Begun {
    fn decode(store: StoreId, bytes: &[u8], len: u64) -> Option<Self> {
        let mut r = Reader::new(bytes);
        if r.u32()? != MAGIC || r.u32()? != VERSION {
            return None;
        }
        let (stated, count) = (r.u32()?, r.u32()? as usize);
        let (owner, sequence, proved) = (StoreId(r.u64()?), r.u64()?, r.u32()? as usize);
        let fits = round_up((HEAD_LEN + count * 8) as u64, BLOCK as u64) <= len;
        let list = WarmthList { sequence, hashes: Vec::new(), proved };
        (owner == store && fits).then(|| Self { list, checksum: Checksum::new(store, MAGIC, sequence), stated, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Disk;
    use crate::io::sim::SimDisk;

    fn read(disk: &SimDisk, store: StoreId, most: usize) -> Option<WarmthList> {
        WarmthList::read(store, disk.open("heat").unwrap().as_ref(), most).unwrap()
    }

    #[test]
    fn a_warmth_list_round_trips_and_any_flipped_bit_is_noticed() {
        for count in [0, 1, 700, (PIECE - HEAD_LEN) / 8, 20_000] {
            let list = WarmthList { sequence: 3, hashes: (0..count as u64).map(|n| KeyHash(n * 77)).collect(), proved: count.min(30) };
            let disk = SimDisk::new(1);
            // The file is longer than the list needs.
            let file = disk.create("heat", list.file_len() + 3 * BLOCK as u64).unwrap();
            list.write(StoreId(4), file.as_ref()).unwrap();
            assert_eq!(read(&disk, StoreId(4), usize::MAX), Some(list.clone()), "{count}");
            assert_eq!(read(&disk, StoreId(5), usize::MAX), None);
            let few = WarmthList { hashes: list.hashes[..count.min(20)].to_vec(), proved: count.min(20), ..list };
            assert_eq!(read(&disk, StoreId(4), 20), Some(few), "{count}");
            for at in (0..few_bytes(count)).step_by(13) {
                disk.corrupt("heat", at, 1 << (at % 8));
                assert_eq!(read(&disk, StoreId(4), 20), None, "byte {at}");
                disk.corrupt("heat", at, 1 << (at % 8));
            }
            disk.truncate("heat", 512);
            assert_eq!(read(&disk, StoreId(4), 20), None);
        }
    }

    fn few_bytes(count: usize) -> u64 {
        (HEAD_LEN + count * 8).min(3_000) as u64
    }
}
