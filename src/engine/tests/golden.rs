//! Stores of every format version that a kill ended, opened on the host that wrote them and on
//! another.

use std::path::Path;
use std::sync::Arc;

use super::super::super::{Cache, inspect, manifest};
use crate::codec;
use crate::config::Backend;
use crate::error::Error;
use crate::id::StoreId;
use crate::io::Disk;
use crate::io::directory::Directory;
use crate::io::posix::PosixDisk;

#[path = "../../../tests/golden/answers.rs"]
mod answers;

/// Makes the manifest state the boot id of this host, so that the stop counts as a process crash,
/// or another one, so that it counts as a host crash.
fn set_boot_id(dir: &Path, is_this_host: bool) {
    let disk: Arc<dyn Disk> = Arc::new(PosixDisk::new(Directory::open(dir, true).unwrap(), Backend::Portable, 1, 1).unwrap());
    let (mut manifest, _) = manifest::load(disk.as_ref()).unwrap();
    manifest.boot_id = disk.boot_id() ^ u64::from(!is_this_host);
    manifest::ManifestStore::begin(disk, manifest).unwrap();
}

/// A store whose manifest has `field` at `at`, with a check that verifies.
fn with_field(at: usize, field: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    answers::unpack("clean", dir.path());
    for name in manifest::FILES {
        let path = dir.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at..at + field.len()].copy_from_slice(field);
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let len = number(12) as u32 as usize;
        let magic = manifest::format::MAGIC;
        let check = codec::checksum(StoreId(number(16)), magic, number(24), &[&bytes[..8], &bytes[12..len]]);
        bytes[8..12].copy_from_slice(&check.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
    }
    dir
}

#[test]
fn a_manifest_that_verifies_and_states_nonsense_is_refused_by_name() {
    let sound = with_field(48, &1u32.to_le_bytes());
    assert!(inspect::inspect(sound.path()).unwrap().problems.is_empty());
    // The sizes of all rows in turn, and the positions of both streams.
    let sizes = (0..16).map(|row| (184 + 32 * row + 24, 0u64));
    for (at, value) in sizes.chain([(88, u64::MAX - 5), (104, u64::MAX - 5), (56, u64::MAX), (144, 1)]) {
        let field = if at > 184 { value.to_le_bytes()[..4].to_vec() } else { value.to_le_bytes().to_vec() };
        let dir = with_field(at, &field);
        let is_corrupt = |error: Error| matches!(error, Error::Corrupt { .. });
        assert!(Cache::open(answers::options(dir.path())).is_err_and(is_corrupt), "open with {value} at {at}");
        assert!(inspect::verify(dir.path()).is_err_and(is_corrupt), "verify with {value} at {at}");
    }
}

#[test]
#[cfg_attr(not(feature = "zstd"), ignore = "needs the feature zstd")]
fn killed_stores_of_every_format_give_their_answers() {
    for name in answers::NAMES.into_iter().filter(|name| answers::is_killed(name)) {
        for stop in ["process", "host"] {
            let dir = tempfile::tempdir().unwrap();
            answers::unpack(name, dir.path());
            set_boot_id(dir.path(), stop == "process");
            let expected = answers::expected(name, stop);
            let keys = answers::keys_of(&expected);
            assert!(keys.len() > 700, "{name}: the answers name {} keys", keys.len());
            let cache = Cache::open(answers::options(dir.path())).unwrap();
            assert_eq!(answers::answers(&cache, &keys), expected, "{name} after the end of the {stop}");
        }
    }
}
