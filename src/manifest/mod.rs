//! The manifest states the identity, geometry, segment table and watermarks of a store, in two
//! copies.
//!
//! A new manifest is written to one copy and synced, then to the other and synced. So one copy is
//! always whole, and [`load`] takes the newest whole copy.

pub(crate) mod catalog;
pub(crate) mod format;

use std::collections::BTreeSet;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::codec::round_up;
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, Disk, File, resize};
use format::Damage;
pub(crate) use format::{Checkpoint, Manifest, OpeningReport, Segment, SegmentState, Stop};

/// Names of the two copies.
pub(crate) const FILES: [&str; 2] = ["manifest.0", "manifest.1"];
/// A third copy, for the time in which an opening writes the other two. Otherwise it begins with
/// zeros.
///
/// The copies that the opening read may not be durable, because their last sync may have failed. So
/// it must not overwrite either of them before another copy is durable.
const SPARE: &str = "manifest.2";

/// Error text for copies that belong to different stores.
pub(crate) const TWO_STORES: &str = "the copies of the manifest belong to two stores; remove the copies of the other store";

/// Whether a file with this name is a copy of the manifest.
pub(crate) fn is_manifest_file(name: &str) -> bool {
    name == SPARE || FILES.contains(&name)
}

/// The reason why no manifest could be loaded.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// No copy exists: the directory holds no store.
    Missing,
    /// A copy has a newer format version.
    Newer { found: u32 },
    /// No copy is whole.
    Corrupt,
    /// The copies belong to different stores.
    TwoStores,
    /// A copy could not be read.
    Io(io::Error),
}

/// Loads the newest whole copy. Also returns whether `manifest.0` or `manifest.1` is missing,
/// damaged or unreadable.
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

/// Whether copies of which none is whole may be the remains of an interrupted creation. These are
/// empty files, zeros, or the beginning of a manifest.
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

/// The manifest of an open store, and its open files. While these are long enough, a write takes
/// neither disk space nor a descriptor.
#[derive(Debug)]
pub(crate) struct ManifestStore {
    manifest: Manifest,
    disk: Arc<dyn Disk>,
    /// Empty once the store was closed.
    files: Vec<Arc<dyn File>>,
    /// Length of the shortest copy, in bytes.
    len: u64,
    /// A write or sync of a copy failed, so neither copy is written again.
    has_failed: bool,
}

impl ManifestStore {
    /// Writes the first manifest of an opening. The third copy comes first, because the other two
    /// may not be durable.
    pub(crate) fn begin(disk: Arc<dyn Disk>, mut manifest: Manifest) -> io::Result<Self> {
        manifest.sequence += 1;
        let bytes = blocks(&manifest);
        let find = |name: &str| match disk.open(name) {
            Ok(file) if file.len() >= bytes.len() as u64 => Ok(file),
            Ok(_) => create(disk.as_ref(), name, bytes.len() as u64),
            Err(e) if e.kind() == io::ErrorKind::NotFound => create(disk.as_ref(), name, bytes.len() as u64),
            Err(e) => Err(e),
        };
        // Creates all files before the first write: a full disk then changes no copy.
        let (spare, files) = (find(SPARE)?, vec![find(FILES[0])?, find(FILES[1])?]);
        for file in [&spare].into_iter().chain(&files) {
            write(file.as_ref(), &bytes)?;
        }
        write(spare.as_ref(), &AlignedBuf::zeroed(BLOCK))?;
        let len = files.iter().chain([&spare]).map(|file| file.len()).min().unwrap_or(0);
        Ok(Self { manifest, disk, files, len, has_failed: false })
    }

    /// Writes and syncs the next manifest over one copy and then the other. Returns the number of
    /// bytes written.
    ///
    /// A crash in between leaves a whole copy: the new manifest, or the earlier one, beyond which
    /// nothing has happened yet. Afterwards either copy alone is enough.
    pub(crate) fn store(&mut self) -> io::Result<u64> {
        if self.has_failed {
            return Err(io::Error::other("an earlier write of the manifest failed; open the store again"));
        }
        self.manifest.sequence += 1;
        let bytes = blocks(&self.manifest);
        self.has_failed = true;
        self.files.iter().try_for_each(|file| write(file.as_ref(), &bytes))?;
        self.has_failed = false;
        Ok((bytes.len() * self.files.len()) as u64)
    }

    /// Closes the files. No manifest is written any more.
    pub(crate) fn close(&mut self) {
        self.has_failed = true;
        self.files.clear();
    }

    /// Length of the longest manifest that fits every copy, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Makes every copy long enough for a manifest of `len` bytes, durably. Contents stay. After an
    /// error that is a shortage the store can go on.
    pub(crate) fn grow(&mut self, len: u64) -> io::Result<()> {
        let grow = |name: &str| -> io::Result<Arc<dyn File>> {
            let file = create(self.disk.as_ref(), name, len)?;
            // The state after a failed sync is unknown, so no sync error counts as a shortage.
            file.sync().map_err(io::Error::other)?;
            Ok(file)
        };
        let shortest = grow(SPARE)?.len();
        let files = vec![grow(FILES[0])?, grow(FILES[1])?];
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

/// Creates the file of a copy at twice the needed length or more, so that a manifest that has grown
/// can be written to a full disk.
fn create(disk: &dyn Disk, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
    let len = (2 * len).next_power_of_two().min(format::LEN_MAX);
    // A manifest of another store was refused when the copies were loaded.
    let file = match resize(disk, name, len) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => crate::io::create(disk, name, len)?,
        resized => resized?,
    };
    disk.sync_dir()?;
    Ok(file)
}

/// The encoded manifest, padded to whole blocks.
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
