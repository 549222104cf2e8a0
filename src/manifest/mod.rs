//! What a store is: identity, geometry, segment table, watermarks. In two copies.

pub(crate) mod catalog;
pub(crate) mod format;

use std::io;
use std::sync::Arc;

use crate::codec::round_up;
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, Disk};
use format::Damage;
pub(crate) use format::{Checkpoint, Manifest, Segment, SegmentState};

/// Names of the two copies.
pub(crate) const FILES: [&str; 2] = ["manifest.0", "manifest.1"];
/// A third copy, which counts only while an opening writes the other two, and is zeros otherwise. What it read of them may not be durable: their last sync may have failed.
const SPARE: &str = "manifest.2";

/// Whether a file with this name is a copy.
pub(crate) fn is_one(name: &str) -> bool {
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
    /// A copy could not be read.
    Io(io::Error),
}

/// Loads the newer of the copies that are whole, and says whether the other one was not.
pub(crate) fn load(disk: &dyn Disk) -> Result<(Manifest, bool), LoadError> {
    let (mut best, mut newer, mut missing, mut broken, mut failure) = (None::<Manifest>, None, 0, 0, None);
    for name in FILES.into_iter().chain([SPARE]) {
        match read(disk, name) {
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
    let damaged = broken > 0 || failure.is_some();
    match (best, failure) {
        (Some(manifest), _) => Ok((manifest, damaged || missing > 0)),
        (None, Some(e)) => Err(LoadError::Io(e)),
        (None, None) if broken > 0 => Err(LoadError::Corrupt),
        (None, None) => Err(LoadError::Missing),
    }
}

/// Whether the copies that are there, none of them whole, may be what an interrupted creation left: nothing yet, zeros, or the beginning of a manifest.
pub(crate) fn may_be_begun(disk: &dyn Disk) -> io::Result<bool> {
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

/// Writes the next manifest, durably, over both copies, one after the other. A crash between them leaves the newer one whole, or the older one that nobody has gone
/// beyond yet; afterwards either copy alone says everything.
pub(crate) fn store(disk: &Arc<dyn Disk>, manifest: &mut Manifest) -> io::Result<u64> {
    manifest.sequence += 1;
    write(disk, manifest, &FILES)
}

/// The same for the first manifest of an opening, when neither copy can be relied on to be durable before a third one is.
pub(crate) fn store_first(disk: &Arc<dyn Disk>, manifest: &mut Manifest) -> io::Result<()> {
    manifest.sequence += 1;
    write(disk, manifest, &[SPARE])?;
    write(disk, manifest, &FILES)?;
    let spare = disk.open(SPARE)?;
    spare.write_at(0, &AlignedBuf::zeroed(BLOCK))?;
    spare.sync()
}

fn write(disk: &Arc<dyn Disk>, manifest: &Manifest, names: &[&str]) -> io::Result<u64> {
    let encoded = manifest.encode();
    let len = round_up(encoded.len() as u64, BLOCK as u64);
    let mut bytes = AlignedBuf::zeroed(len as usize);
    bytes[..encoded.len()].copy_from_slice(&encoded);
    for name in names {
        let file = match disk.open(name) {
            Ok(file) if file.len() >= len => file,
            _ => {
                // A few times the length that is needed, so that a full disk is no reason not to write it.
                let file = disk.create(name, (4 * len).next_power_of_two())?;
                disk.sync_dir()?;
                file
            }
        };
        file.write_at(0, &bytes)?;
        file.sync()?;
    }
    Ok(len * names.len() as u64)
}
