//! Stores that earlier versions wrote, and the answers that each of them must give for ever.
//!
//! An archive `NAME.tar.zst` holds the files of one store. Beside it, `NAME.STOP.txt` holds the
//! answers, where `STOP` is the kind of stop that the opening takes for given. The names in the
//! answers are those of the workload that wrote the store.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use everwarm::{Cache, Options, Start};

/// The archived stores.
pub(crate) const NAMES: [&str; 5] = ["clean", "killed", "torn", "mixed", "removed"];

/// The directory of the archives.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Every archive but that of a closed store ends with a kill.
pub(crate) fn is_killed(name: &str) -> bool {
    name != "clean"
}

/// Options that leave every choice to the store.
pub(crate) fn options(dir: &Path) -> Options {
    Options::new(dir).create(false)
}

/// Writes the archived files into `dir`.
pub(crate) fn unpack(name: &str, dir: &Path) {
    let file = fs::File::open(directory().join(format!("{name}.tar.zst"))).expect("an archive");
    let plain = zstd::Decoder::new(file).expect("a zstd stream");
    tar::Archive::new(plain).unpack(dir).expect("a tar archive");
}

/// The answers of an open store, one line each: the kind of stop, what recovery found, and every
/// key that `keys` yields with its version and a checksum of its value.
pub(crate) fn answers(cache: &Cache, keys: &[(String, String)]) -> String {
    let report = cache.recovery();
    let mut text = String::new();
    let stop = match report.kind {
        Start::Created => "created",
        Start::Clean => "clean",
        Start::Process => "process",
        Start::Host => "host",
    };
    writeln!(text, "stop {stop}").unwrap();
    writeln!(text, "entries {}", report.entries).unwrap();
    writeln!(text, "frames {}", report.wal_frames).unwrap();
    writeln!(text, "torn {}", report.torn_bytes).unwrap();
    writeln!(text, "rebuilt {}", report.rebuilt).unwrap();
    for line in &report.damaged {
        writeln!(text, "damaged {line}").unwrap();
    }
    if let Some(lsn) = report.maybe_lost_after {
        writeln!(text, "maybe lost after {lsn}").unwrap();
    }
    for name in cache.namespaces().expect("open") {
        writeln!(text, "namespace {name}").unwrap();
    }
    for name in cache.resume_tokens().expect("open") {
        let token = cache.resume_token(&name).expect("open").expect("a token that is listed");
        writeln!(text, "token {name} {}", String::from_utf8_lossy(&token)).unwrap();
    }
    for (namespace, key) in keys {
        let space = match namespace.as_str() {
            "-" => Some(cache.clone()),
            name => cache.existing_namespace(name).expect("open"),
        };
        match space.and_then(|space| space.get(key).expect("a store that answers")) {
            Some(value) => {
                let (version, len) = (value.version(), value.len());
                writeln!(text, "key {namespace} {key} {version} {len} {:08x}", crc32fast::hash(&value)).unwrap();
            }
            None => writeln!(text, "key {namespace} {key} miss").unwrap(),
        }
    }
    text
}

/// The answers that the store called `name` must give after this kind of stop.
pub(crate) fn expected(name: &str, stop: &str) -> String {
    fs::read_to_string(directory().join(format!("{name}.{stop}.txt"))).expect("a file of answers")
}

/// Namespace and name of every key in a text of answers.
pub(crate) fn keys_of(answers: &str) -> Vec<(String, String)> {
    let keys = answers.lines().filter_map(|line| line.strip_prefix("key ")?.split_once(' '));
    keys.map(|(namespace, rest)| (namespace.to_owned(), rest.split(' ').next().unwrap_or_default().to_owned())).collect()
}
