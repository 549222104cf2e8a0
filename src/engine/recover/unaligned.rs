//! Writes bytes at any offset of a file, although a file takes whole blocks only.
//!
//! The writer collects adjacent bytes. It reads the blocks at both ends first, so that the bytes
//! around the new ones are kept. Bytes that cannot be read are replaced by a mark, since a record
//! there must not be taken for one that was never written.

use std::io;
use std::sync::Arc;

use crate::codec::{round_down, round_up};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, SECTOR, read_twice};
use crate::segment::format::UNREAD;

const _: () = assert!(BLOCK.is_multiple_of(SECTOR), "a block can be read");
/// A buffer of adjacent bytes that are not written yet.
pub(super) struct UnalignedWriter {
    file: Arc<dyn File>,
    buf: AlignedBuf,
    /// Offset in the file of the buffer's first byte. A multiple of [`BLOCK`].
    start: u64,
    /// Bytes of the buffer that are in use.
    len: usize,
    /// Number of blocks that could not be read. Their surrounding bytes are marked as unread.
    pub(super) unread: u64,
}

impl UnalignedWriter {
    /// A writer to `file` that collects up to `at_once` bytes, a multiple of [`BLOCK`].
    pub(super) fn new(file: Arc<dyn File>, at_once: usize) -> Self {
        let len = (at_once as u64).min(file.len()) as usize;
        Self { file, buf: AlignedBuf::zeroed(len), start: 0, len: 0, unread: 0 }
    }

    /// Writes bytes at `offset`. They are in the file after the next [`UnalignedWriter::flush`].
    pub(super) fn write(&mut self, offset: u32, mut bytes: &[u8]) -> io::Result<()> {
        let mut offset = u64::from(offset);
        while !bytes.is_empty() {
            if self.len == 0 || offset != self.start + self.len as u64 || self.len == self.buf.len() {
                self.flush()?;
                self.start = round_down(offset, BLOCK as u64);
                self.len = (offset - self.start) as usize;
                if self.len > 0 {
                    self.unread += u64::from(!read_or_mark(self.file.as_ref(), self.start, &mut self.buf[..BLOCK]));
                }
            }
            let n = bytes.len().min(self.buf.len() - self.len);
            self.buf[self.len..self.len + n].copy_from_slice(&bytes[..n]);
            self.len += n;
            offset += n as u64;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Writes the buffer into the file.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let end = round_up(self.len as u64, BLOCK as u64) as usize;
        if end > self.len {
            let mut last = AlignedBuf::zeroed(BLOCK);
            self.unread += u64::from(!read_or_mark(self.file.as_ref(), self.start + (end - BLOCK) as u64, &mut last));
            let within = self.len % BLOCK;
            self.buf[self.len..end].copy_from_slice(&last[within..]);
        }
        self.file.write_at(self.start, &self.buf[..end])?;
        self.len = 0;
        Ok(())
    }
}

/// Reads a block, and tries a second time after a failure. Fills a block that cannot be read with
/// marks and returns false.
fn read_or_mark(file: &dyn File, offset: u64, block: &mut [u8]) -> bool {
    let read = read_twice(|| file.read_at(offset, block));
    if read.is_err() {
        block.as_chunks_mut().0.fill(UNREAD);
    }
    read.is_ok()
}
