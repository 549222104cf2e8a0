//! Writing a checkpoint: partition by partition, while mutations go on.

use std::io;

use super::format::{CHUNK_LEN, Header, PAYLOAD_LEN, chunk_check};
use crate::codec::Put;
use crate::id::StoreId;
use crate::index::Index;
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File};

/// Chunks in one write. Fewer than in a read, since other reads wait for each write.
const WRITE_BATCH: usize = 4;

/// Bytes for the file of a checkpoint of `index`, with room for growth while it is written.
///
/// The room is a sixth: puts wait rather than let the index grow by more. A small index may still
/// outgrow it, and then the caller makes a new file.
pub(crate) fn file_len(index: &Index, bases: usize) -> u64 {
    let payload = index.entries() * 8 + (index.geometry().partitions() * 4 + bases * 8) as u64;
    let room = payload + payload / 6 + BLOCK as u64;
    BLOCK as u64 + room.div_ceil(PAYLOAD_LEN as u64) * CHUNK_LEN as u64
}

/// Writes a checkpoint of `index` into `file`, whose length is [`file_len`], and syncs it.
///
/// `bases` are the base positions of the segments when the checkpoint began. The header is written
/// after the chunks are durable. Returns the bytes written, or `None` if the index outgrew the
/// file.
pub(crate) fn write(store: StoreId, sequence: u64, index: &Index, bases: &[u64], file: &dyn File) -> io::Result<Option<u64>> {
    let mut out = Chunks { store, sequence, file, batch: AlignedBuf::zeroed(WRITE_BATCH * CHUNK_LEN), number: 0, used: 0, full: false };
    for base in bases {
        out.push(&base.to_le_bytes())?;
    }
    let (mut slots, mut bytes, mut entries) = (Vec::new(), Vec::new(), 0);
    for partition in 0..index.geometry().partitions() {
        index.copy_partition(partition, &mut slots);
        bytes.clear();
        bytes.put_u32(slots.len() as u32);
        slots.iter().for_each(|slot| bytes.put_u64(*slot));
        entries += slots.len() as u64;
        out.push(&bytes)?;
        if out.full {
            return Ok(None);
        }
    }
    let chunks = out.finish()?;
    if out.full {
        return Ok(None);
    }
    file.sync()?;
    let mut block = AlignedBuf::zeroed(BLOCK);
    let header = Header { sequence, geometry: index.geometry(), chunks, bases: bases.len() as u32, entries };
    header.encode(store, &mut block);
    file.write_at(0, &block)?;
    file.sync()?;
    Ok(Some(BLOCK as u64 + u64::from(chunks) * CHUNK_LEN as u64))
}

/// Cuts a payload into checked chunks.
struct Chunks<'a> {
    store: StoreId,
    sequence: u64,
    file: &'a dyn File,
    batch: AlignedBuf,
    /// The number of the current chunk.
    number: u32,
    /// Payload bytes in the current chunk.
    used: usize,
    /// Whether the file is too short for the chunks.
    full: bool,
}

impl Chunks<'_> {
    fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.full {
            let n = bytes.len().min(PAYLOAD_LEN - self.used);
            let start = self.number as usize % WRITE_BATCH * CHUNK_LEN + 8 + self.used;
            self.batch[start..start + n].copy_from_slice(&bytes[..n]);
            self.used += n;
            bytes = &bytes[n..];
            if self.used == PAYLOAD_LEN {
                self.close_chunk()?;
            }
        }
        Ok(())
    }

    fn close_chunk(&mut self) -> io::Result<()> {
        let slot = self.number as usize % WRITE_BATCH;
        let chunk = &mut self.batch[slot * CHUNK_LEN..(slot + 1) * CHUNK_LEN];
        chunk[8 + self.used..].fill(0);
        chunk[4..8].copy_from_slice(&(self.used as u32).to_le_bytes());
        let check = chunk_check(self.store, self.sequence, self.number, chunk);
        chunk[..4].copy_from_slice(&check.to_le_bytes());
        self.number += 1;
        self.used = 0;
        if slot + 1 == WRITE_BATCH {
            self.write_batch(WRITE_BATCH)?;
        }
        Ok(())
    }

    fn write_batch(&mut self, chunks: usize) -> io::Result<()> {
        let first = self.number as usize - chunks;
        let offset = (BLOCK + first * CHUNK_LEN) as u64;
        let len = chunks * CHUNK_LEN;
        if offset + len as u64 > self.file.len() {
            self.full = true;
            return Ok(());
        }
        self.file.write_at(offset, &self.batch[..len])
    }

    fn finish(&mut self) -> io::Result<u32> {
        if self.used > 0 {
            self.close_chunk()?;
        }
        match self.number as usize % WRITE_BATCH {
            0 => {}
            rest => self.write_batch(rest)?,
        }
        Ok(self.number)
    }
}
