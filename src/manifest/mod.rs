//! What a store is: identity, geometry, segment table, watermarks. Two copies, written alternately.

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

/// Loads the newer of the copies that are whole, and says whether the other one was damaged.
pub(crate) fn load(disk: &dyn Disk) -> Result<(Manifest, bool), LoadError> {
    let mut best: Option<Manifest> = None;
    let (mut missing, mut newer) = (0, None);
    for name in FILES {
        let file = match disk.open(name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                missing += 1;
                continue;
            }
            Err(e) => return Err(LoadError::Io(e)),
        };
        if file.len() == 0 || !file.len().is_multiple_of(BLOCK as u64) || file.len() > format::LEN_MAX {
            continue;
        }
        let mut bytes = AlignedBuf::zeroed(file.len() as usize);
        file.read_at(0, &mut bytes).map_err(LoadError::Io)?;
        match Manifest::decode(&bytes) {
            Ok(found) if best.as_ref().is_none_or(|b| found.sequence > b.sequence) => best = Some(found),
            Ok(_) | Err(Damage::Broken) => {}
            Err(Damage::Newer(version)) => newer = Some(version),
        }
    }
    if let Some(found) = newer {
        return Err(LoadError::Newer { found });
    }
    match best {
        // The very first write makes one copy only.
        Some(manifest) => Ok((manifest, false)).map(|(m, _)| {
            let single = m.sequence == 1;
            let damaged = missing > 0 && !single;
            (m, damaged)
        }),
        None if missing == FILES.len() => Err(LoadError::Missing),
        None => Err(LoadError::Corrupt),
    }
}

/// Writes the next manifest over the older copy, durably. The other copy stands until this one is synced.
pub(crate) fn store(disk: &Arc<dyn Disk>, manifest: &mut Manifest) -> io::Result<u64> {
    manifest.sequence += 1;
    let encoded = manifest.encode();
    let len = round_up(encoded.len() as u64, BLOCK as u64);
    let mut bytes = AlignedBuf::zeroed(len as usize);
    bytes[..encoded.len()].copy_from_slice(&encoded);
    let name = FILES[(manifest.sequence % 2) as usize];
    let new_name = manifest.sequence <= 2;
    let file = disk.create(name, len)?;
    file.write_at(0, &bytes)?;
    file.sync()?;
    if new_name {
        disk.sync_dir()?;
    }
    Ok(len)
}
