//! What a store is: identity, geometry, segment table, watermarks. In two copies.

pub(crate) mod catalog;
pub(crate) mod format;

use std::collections::BTreeSet;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::codec::round_up;
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, Disk, File};
use format::Damage;
pub(crate) use format::{Checkpoint, Manifest, Segment, SegmentState};

/// Names of the two copies.
pub(crate) const FILES: [&str; 2] = ["manifest.0", "manifest.1"];
/// A third copy, which counts only while an opening writes the other two, and is zeros otherwise. What it read of them may not be durable: their last sync may have failed.
const SPARE: &str = "manifest.2";

/// What is wrong if the copies are of different stores.
pub(crate) const TWO_STORES: &str = "its copies are of two stores; remove the one that does not belong here";

/// Whether a file with this name is a copy.
pub(crate) fn is_manifest_file(name: &str) -> bool {
    name == SPARE || FILES.contains(&name)
}

/// Why no manifest could be loaded.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// There is none: the directory holds no store.
    Missing,
    /// The newest copy is of a newer format.
    Newer { found: u32 },
    /// Neither copy is whole.
    Corrupt,
    /// The copies are of different stores.
    TwoStores,
    /// A copy could not be read.
    Io(io::Error),
}

/// Loads the newer of the copies that are whole, and says whether the other one was not.
pub(crate) fn load(disk: &dyn Disk) -> Result<(Manifest, bool), LoadError> {
    let (mut best, mut newer, mut missing, mut broken, mut failure) = (None::<Manifest>, None, 0, 0, None);
    let mut stores = BTreeSet::new();
    for name in FILES.into_iter().chain([SPARE]) {
        let found = read(disk, name);
        stores.extend(found.iter().flatten().map(|manifest| manifest.store.0));
        match found {
            Ok(Ok(found)) if best.as_ref().is_none_or(|b| found.sequence > b.sequence) => best = Some(found),
            Ok(Ok(_)) => {}
            Ok(Err(Damage::Newer(version))) => newer = Some(version),
            Ok(Err(Damage::Broken)) => broken += usize::from(name != SPARE),
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing += usize::from(name != SPARE),
            Err(e) => failure = Some(e),
        }
    }
    if let Some(found) = newer {
        return Err(LoadError::Newer { found });
    }
    if stores.len() > 1 {
        return Err(LoadError::TwoStores);
    }
    let damaged = broken > 0 || failure.is_some();
    match (best, failure) {
        (Some(manifest), _) => Ok((manifest, damaged || missing > 0)),
        (None, Some(e)) => Err(LoadError::Io(e)),
        (None, None) if broken > 0 => Err(LoadError::Corrupt),
        (None, None) => Err(LoadError::Missing),
    }
}

/// Whether the copies that are there, none of them whole, may be what an interrupted creation left: nothing yet, zeros, or the beginning of a manifest.
pub(crate) fn may_be_interrupted_creation(disk: &dyn Disk) -> io::Result<bool> {
    for name in FILES.into_iter().chain([SPARE]) {
        let file = match disk.open(name) {
            Ok(file) if file.len() > 0 => file,
            Ok(_) => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if !file.len().is_multiple_of(BLOCK as u64) {
            return Ok(false);
        }
        let mut block = AlignedBuf::zeroed(BLOCK);
        file.read_at(0, &mut block)?;
        if block[..4] != [0; 4] && block[..4] != format::MAGIC.to_le_bytes() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read(disk: &dyn Disk, name: &str) -> io::Result<Result<Manifest, Damage>> {
    let file = disk.open(name)?;
    if file.len() == 0 || !file.len().is_multiple_of(BLOCK as u64) || file.len() > format::LEN_MAX {
        return Ok(Err(Damage::Broken));
    }
    let mut bytes = AlignedBuf::zeroed(file.len() as usize);
    file.read_at(0, &mut bytes)?;
    Ok(Manifest::decode(&bytes))
}

/// The manifest of an open store and its files, which stay open: as long as they are long enough, writing it takes neither room on the disk nor a descriptor.
#[derive(Debug)]
pub(crate) struct ManifestStore {
    manifest: Manifest,
    disk: Arc<dyn Disk>,
    files: [Arc<dyn File>; 2],
    /// Bytes that every copy can take.
    len: u64,
    /// A copy could not be written: neither is written again.
    has_failed: bool,
}

impl ManifestStore {
    /// Writes the first manifest of an opening, when neither copy can be relied on to be durable before a third one is.
    pub(crate) fn begin(disk: Arc<dyn Disk>, mut manifest: Manifest) -> io::Result<Self> {
        manifest.sequence += 1;
        let bytes = blocks(&manifest);
        let find = |name: &str| match disk.open(name) {
            Ok(file) if file.len() >= bytes.len() as u64 => Ok(file),
            _ => create(disk.as_ref(), name, bytes.len() as u64),
        };
        // All of them before the first is written: there may be no room.
        let (spare, files) = (find(SPARE)?, [find(FILES[0])?, find(FILES[1])?]);
        for file in [&spare].into_iter().chain(&files) {
            write(file.as_ref(), &bytes)?;
        }
        write(spare.as_ref(), &AlignedBuf::zeroed(BLOCK))?;
        let len = files.iter().chain([&spare]).map(|file| file.len()).min().unwrap_or(0);
        Ok(Self { manifest, disk, files, len, has_failed: false })
    }

    /// Writes the next manifest, durably, over both copies, one after the other. A crash between them leaves the newer one whole, or the older one that nobody has gone
    /// beyond yet; afterwards either copy alone says everything. Bytes written.
    pub(crate) fn store(&mut self) -> io::Result<u64> {
        if self.has_failed {
            return Err(io::Error::other("it could not be written before"));
        }
        self.manifest.sequence += 1;
        let bytes = blocks(&self.manifest);
        self.has_failed = true;
        self.files.iter().try_for_each(|file| write(file.as_ref(), &bytes))?;
        self.has_failed = false;
        Ok((bytes.len() * self.files.len()) as u64)
    }

    /// Bytes that every copy can take.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Makes every copy long enough for a manifest of `len` bytes, durably, and leaves what it says. An error that is a shortage did no harm.
    pub(crate) fn grow(&mut self, len: u64) -> io::Result<()> {
        let grow = |name: &str| -> io::Result<Arc<dyn File>> {
            let file = create(self.disk.as_ref(), name, len)?;
            // Whatever the reason, what a failed sync left behind is not known.
            file.sync().map_err(io::Error::other)?;
            Ok(file)
        };
        let shortest = grow(SPARE)?.len();
        let files = [grow(FILES[0])?, grow(FILES[1])?];
        self.len = files.iter().map(|file| file.len()).min().unwrap_or(0).min(shortest);
        self.files = files;
        Ok(())
    }
}

impl Deref for ManifestStore {
    type Target = Manifest;
    fn deref(&self) -> &Manifest {
        &self.manifest
    }
}

impl DerefMut for ManifestStore {
    fn deref_mut(&mut self) -> &mut Manifest {
        &mut self.manifest
    }
}

/// A copy's file, at least twice as long as needed, so that a full disk is no reason not to write a manifest that has grown.
fn create(disk: &dyn Disk, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
    let file = disk.create(name, (2 * len).next_power_of_two().min(format::LEN_MAX))?;
    disk.sync_dir()?;
    Ok(file)
}

/// What a copy begins with.
fn blocks(manifest: &Manifest) -> AlignedBuf {
    let encoded = manifest.encode();
    let mut bytes = AlignedBuf::zeroed(round_up(encoded.len() as u64, BLOCK as u64) as usize);
    bytes[..encoded.len()].copy_from_slice(&encoded);
    bytes
}

fn write(file: &dyn File, bytes: &[u8]) -> io::Result<()> {
    file.write_at(0, bytes)?;
    file.sync()
}
