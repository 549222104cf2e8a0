//! The medium: files without names, their durable content, and their unsynced changes.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::io::{BLOCK, Mapping, SECTOR};

/// One change of a file since its last sync.
#[derive(Clone)]
enum Change {
    Sector { index: usize, bytes: Arc<[u8; SECTOR]> },
    Length(usize),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Length(len) => image.resize(*len, 0),
            Self::Sector { index, bytes } => {
                // The sector is past the end if the length that made room for it was lost.
                if let Some(sector) = image.as_chunks_mut().0.get_mut(*index) {
                    *sector = **bytes;
                }
            }
        }
    }

    /// The page of a sector, or a number of its own for a length. Pages survive a power cut
    /// independently.
    fn page(&self) -> u64 {
        match self {
            Self::Length(_) => u64::MAX,
            Self::Sector { index, .. } => (index * SECTOR / BLOCK) as u64,
        }
    }

    fn is_sector_below(&self, len: usize) -> bool {
        matches!(self, Self::Sector { index, .. } if (index + 1) * SECTOR <= len)
    }
}

/// A file without its name. Images share contents until one of them writes.
#[derive(Clone, Default)]
pub(super) struct Inode {
    /// Content that a read returns. If `pages` is set: the content of the mapping when it was last
    /// looked at.
    pub(super) live: Arc<Vec<u8>>,
    pub(super) durable: Arc<Vec<u8>>,
    /// Changes from `durable` to `live`, in order, without those that a failed sync forgot.
    unsynced: Vec<Change>,
    /// The page cache of a mapped file.
    pub(super) pages: Option<Arc<Pages>>,
    /// Set by `Disk::mark_cached`, and lost with the page cache.
    pub(super) is_marked: bool,
}

impl Inode {
    pub(super) fn len(&self) -> u64 {
        self.live.len() as u64
    }

    fn change(&mut self, change: Change) {
        change.apply(Arc::make_mut(&mut self.live));
        self.unsynced.push(change);
    }

    /// Writes the sectors of `bytes` for which `lands` is true.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], mut lands: impl FnMut(usize) -> bool) {
        assert!(self.pages.is_none(), "a mapped file is not written behind its mapping");
        let first = offset as usize / SECTOR;
        for (index, sector) in bytes.as_chunks().0.iter().enumerate() {
            if lands(index) {
                self.change(Change::Sector { index: first + index, bytes: Arc::new(*sector) });
            }
        }
    }

    pub(super) fn resize(&mut self, len: usize) {
        if self.live.len() != len {
            assert!(self.pages.is_none(), "a mapped file is not resized behind its mapping");
            self.change(Change::Length(len));
        }
    }

    /// Takes over the stores into the mapping.
    pub(super) fn settle(&mut self) {
        let Some(pages) = &self.pages else { return };
        let now = pages.bytes();
        let sectors = now.as_chunks().0.iter().zip(self.live.as_chunks().0).enumerate();
        let dirty = sectors.filter(|(_, (now, before))| now != before);
        self.unsynced.extend(dirty.map(|(index, (now, _))| Change::Sector { index, bytes: Arc::new(*now) }));
        self.live = Arc::new(now);
    }

    pub(super) fn sync(&mut self) {
        self.settle();
        let durable = Arc::make_mut(&mut self.durable);
        self.unsynced.drain(..).for_each(|change| change.apply(durable));
    }

    pub(super) fn sync_length(&mut self) {
        for change in mem::take(&mut self.unsynced) {
            if let Change::Length(len) = change {
                change.apply(Arc::make_mut(&mut self.durable));
                self.unsynced.retain(|earlier| earlier.is_sector_below(len));
            } else {
                self.unsynced.push(change);
            }
        }
    }

    /// Marks pages clean although they were not written.
    pub(super) fn forget_sectors(&mut self) {
        self.settle();
        self.unsynced.retain(|change| matches!(change, Change::Length(_)));
    }

    /// Keeps the changes for which `keeps(page, change)` is true, on the medium and so in the
    /// cache.
    pub(super) fn lose_power(&mut self, keeps: impl Fn(u64, u64) -> bool) {
        for (index, change) in mem::take(&mut self.unsynced).into_iter().enumerate() {
            if keeps(change.page(), index as u64) {
                change.apply(Arc::make_mut(&mut self.durable));
            }
        }
        self.live = Arc::clone(&self.durable);
    }

    pub(super) fn corrupt(&mut self, offset: usize, xor: u8) {
        self.settle();
        Arc::make_mut(&mut self.live)[offset] ^= xor;
        if let Some(byte) = Arc::make_mut(&mut self.durable).get_mut(offset) {
            *byte ^= xor;
        }
        for change in &mut self.unsynced {
            if let Change::Sector { index, bytes } = change
                && *index == offset / SECTOR
            {
                Arc::make_mut(bytes)[offset % SECTOR] ^= xor;
            }
        }
        if let Some(pages) = &self.pages {
            let shift = 8 * (offset % 8);
            pages.words()[offset / 8].fetch_xor(u64::from(xor) << shift, Ordering::Relaxed);
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.settle();
        self.pages = None;
        Arc::make_mut(&mut self.live).truncate(len);
        Arc::make_mut(&mut self.durable).resize(self.live.len(), 0);
        self.unsynced.retain(|change| change.is_sector_below(len));
    }
}

/// Memory of a mapping: little-endian words, from a page boundary on.
#[derive(Debug)]
pub(super) struct Pages {
    /// One page longer than the mapping, so that a page boundary lies in it.
    allocated: Vec<AtomicU64>,
    first: usize,
    len: usize,
}

impl Pages {
    pub(super) fn holding(content: &[u8]) -> Self {
        let len = content.len() / 8;
        let mut allocated = Vec::new();
        allocated.resize_with(len + BLOCK / 8, AtomicU64::default);
        let first = allocated.as_ptr().align_offset(BLOCK);
        let pages = Self { allocated, first, len };
        for (word, bytes) in pages.words().iter().zip(content.as_chunks().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        pages
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut content = vec![0; self.len * 8];
        for (bytes, word) in content.as_chunks_mut().0.iter_mut().zip(self.words()) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        content
    }
}

impl Mapping for Pages {
    fn words(&self) -> &[AtomicU64] {
        &self.allocated[self.first..self.first + self.len]
    }
}
