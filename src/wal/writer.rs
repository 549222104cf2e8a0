//! Appends frames to the ring, and writes the ring out to a few recycled files.
//!
//! Frames go to the ring first, where they survive a process crash. [`Wal::write_out`] copies whole
//! blocks of the ring to files, and [`Wal::sync`] makes them durable. Each file holds an equal part
//! of the stream. Once the durable manifest no longer needs a file, it becomes a spare and gets a
//! new number.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use super::format::{self, FRAME_LEN, FileHeader, Frame};
use crate::codec::round_up;
use crate::concurrent::lock;
use crate::id::StoreId;
use crate::io::aligned::AlignedBuf;
use crate::io::ring::Ring;
use crate::io::{BLOCK, Disk, File, create_or_resize, is_shortage, numbered, open_own, remove_own};

/// Prefix of the names of WAL files. The number after it says nothing about their order.
pub(crate) const FILE_PREFIX: &str = "wal.";
/// Files kept for reuse. Their blocks are allocated and written, which makes syncs cheaper.
const SPARE_MAX: usize = 2;

/// The WAL of an open store.
#[derive(Debug)]
pub(crate) struct Wal {
    disk: Arc<dyn Disk>,
    store: StoreId,
    ring: Ring,
    payload: u64,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    /// Files that hold a part of the stream, in the order of their numbers.
    active: VecDeque<Active>,
    /// Names of files for reuse.
    spare: Vec<String>,
    /// Names of files that could not be removed, and must not be used again.
    taken: Vec<String>,
}

impl Files {
    fn unused_name(&self) -> String {
        let is_unused = |name: &String| {
            let active = self.active.iter().map(|file| &file.name);
            active.chain(&self.spare).chain(&self.taken).all(|other| other != name)
        };
        (0u32..).map(|number| format!("{FILE_PREFIX}{number}")).find(is_unused).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Active {
    number: u64,
    name: String,
    /// Open until all of it is written and synced, so that few descriptors are in use however long
    /// the WAL is.
    file: Option<Arc<dyn File>>,
    /// Written to since the last sync began.
    dirty: bool,
}

impl Wal {
    /// A WAL whose stream continues at the start of `ring`.
    ///
    /// The contents of existing files are no longer needed. Files of the right length are kept as
    /// spares, up to a limit, and the others are removed.
    pub(crate) fn new(disk: Arc<dyn Disk>, store: StoreId, ring: Ring, payload: u64) -> io::Result<Self> {
        let mut files = Files::default();
        for (name, len) in disk.list()? {
            if numbered(&name, FILE_PREFIX).is_none() {
                continue;
            }
            let given_up = match len == payload + BLOCK as u64 && files.spare.len() < SPARE_MAX {
                true => open_own(disk.as_ref(), &name, store).map(|_| files.spare.push(name.clone())),
                false => remove_own(disk.as_ref(), &name, store),
            };
            if let Err(error) = given_up {
                tracing::warn!(name, %error, "cannot use or remove a WAL file that is no longer needed");
                files.taken.push(name);
            }
        }
        Ok(Self { disk, store, ring, payload, files: Mutex::new(files) })
    }

    /// The end of a frame at position `at` that holds `record_len` bytes of record.
    pub(crate) fn end_of(at: u64, record_len: usize) -> u64 {
        round_up(at + (FRAME_LEN + record_len) as u64, 8)
    }

    /// Whether every frame that was appended reached the ring's file.
    pub(crate) fn is_whole(&self) -> bool {
        self.ring.is_whole()
    }

    /// Closes the files and releases the ring.
    pub(crate) fn close(&self) {
        *lock(&self.files) = Files::default();
        self.ring.close();
    }

    /// Whole blocks below this position are in the files.
    pub(crate) fn written(&self) -> u64 {
        self.ring.written()
    }

    /// Whether the ring has room for frames up to position `end`.
    pub(crate) fn has_room(&self, end: u64) -> bool {
        self.ring.has_room(end)
    }

    /// Appends a frame at `at`, the end of the frame before it, and returns its end. Only one
    /// caller at a time.
    pub(crate) fn append(&self, at: u64, frame: &Frame, record: &[&[u8]]) -> u64 {
        let head = format::encode_frame(self.store, at, frame, record);
        match record {
            [] => self.ring.append(at, &[&head]),
            [a, b, c, d] => self.ring.append(at, &[&head, a, b, c, d]),
            other => unreachable!("a record has four parts, not {}", other.len()),
        }
        Self::end_of(at, record.iter().map(|p| p.len()).sum())
    }

    /// Writes everything below `to` to the files. Returns the number of bytes written.
    pub(crate) fn write_out(&self, to: u64) -> io::Result<u64> {
        let mut bytes_written = 0;
        self.ring.write_out(to, |mut at, mut bytes| {
            while !bytes.is_empty() {
                let (number, offset) = (at / self.payload, at % self.payload);
                let len = bytes.len().min((self.payload - offset) as usize);
                self.file(number)?.write_at(BLOCK as u64 + offset, &bytes[..len])?;
                bytes_written += len as u64;
                at += len as u64;
                bytes = &bytes[len..];
            }
            Ok(())
        })?;
        Ok(bytes_written)
    }

    /// Syncs every file that was written to since the last call. Closes those that are full.
    ///
    /// Not while [`Wal::write_out`] runs.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let dirty: Vec<_> = {
            let mut files = lock(&self.files);
            let dirty = files.active.iter_mut().filter_map(|f| std::mem::take(&mut f.dirty).then(|| f.file.clone()));
            dirty.flatten().collect()
        };
        dirty.iter().try_for_each(|file| file.sync())?;
        let full_to = self.written() / self.payload;
        lock(&self.files).active.iter_mut().filter(|f| f.number < full_to).for_each(|f| f.file = None);
        Ok(())
    }

    /// The file with this number, marked as dirty. A new one is a spare or is created, and gets a
    /// header.
    fn file(&self, number: u64) -> io::Result<Arc<dyn File>> {
        let mut files = lock(&self.files);
        if let Some(active) = files.active.iter_mut().rev().find(|f| f.number == number)
            && let Some(file) = &active.file
        {
            active.dirty = true;
            return Ok(Arc::clone(file));
        }
        let (name, file) = match self.open_spare(&mut files)? {
            Some(spare) => spare,
            None => {
                let name = files.unused_name();
                let file = create_or_resize(self.disk.as_ref(), &name, BLOCK as u64 + self.payload, self.store)?;
                self.disk.sync_dir()?;
                (name, file)
            }
        };
        let mut header = AlignedBuf::zeroed(BLOCK);
        FileHeader { number, payload: self.payload }.encode(self.store, &mut header);
        file.write_at(0, &header)?;
        files.active.push_back(Active { number, name, file: Some(Arc::clone(&file)), dirty: true });
        Ok(file)
    }

    /// Takes and opens a file for reuse. One that cannot be opened is given up.
    fn open_spare(&self, files: &mut Files) -> io::Result<Option<(String, Arc<dyn File>)>> {
        while let Some(name) = files.spare.pop() {
            match self.disk.open(&name) {
                Ok(file) => return Ok(Some((name, file))),
                Err(error) if is_shortage(&error) => {
                    files.spare.push(name);
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(name, %error, "a WAL file cannot be used again");
                    files.taken.push(name);
                }
            }
        }
        Ok(None)
    }

    /// Gives up the files that lie below `start`, the `WAL start` of the durable manifest.
    pub(crate) fn trim(&self, start: u64) {
        let mut files = lock(&self.files);
        let is_there =
            |name: &String| remove_own(self.disk.as_ref(), name, self.store).is_err_and(|error| error.kind() != io::ErrorKind::NotFound);
        files.taken.retain(is_there);
        while files.active.front().is_some_and(|f| (f.number + 1) * self.payload <= start) {
            let Some(old) = files.active.pop_front() else { break };
            if files.spare.len() < SPARE_MAX {
                files.spare.push(old.name);
            } else if let Err(error) = self.disk.remove(&old.name) {
                tracing::warn!(old.name, %error, "cannot remove a WAL file that is no longer needed");
                files.taken.push(old.name);
            }
        }
    }
}
