//! Options from TOML.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::{Ack, Backend, Compression, OnHostCrash, Options, RecoveryMode, WalValues};
use crate::error::{Error, Result};

/// Parses a size in bytes: `4096`, `64MiB`, `2G` or `512 k`. The units are B, k, M, G and T, powers
/// of 1024, in upper or lower case, with or without `B` or `iB`.
///
/// # Errors
/// A message for a person that names the bad number or unit, or says that the size exceeds 64 bits.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a size such as 64MiB, 2G or 4096"))?;
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("`{unit}` is not a unit of size; use k, M, G or T")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` does not fit 64 bits"))
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected bytes as a number, or a size such as \"64MiB\"")]
enum Size {
    Bytes(u64),
    Text(String),
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    match Size::deserialize(from)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => parse_size(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

fn compression<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Compression>, D::Error> {
    let text = String::deserialize(from)?;
    let level = text.strip_prefix("zstd:").and_then(|level| level.parse().ok());
    match (text.as_str(), level) {
        ("none", _) => Ok(Some(Compression::None)),
        ("zstd", _) => Ok(Some(Compression::Zstd(3))),
        (_, Some(level)) => Ok(Some(Compression::Zstd(level))),
        _ => Err(serde::de::Error::custom(format!("`{text}` is not a compression; use \"none\", \"zstd\" or \"zstd:LEVEL\""))),
    }
}

/// Names and types of the options in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    dir: Option<PathBuf>,
    #[serde(default, deserialize_with = "size")]
    memory: Option<u64>,
    #[serde(default, deserialize_with = "size")]
    flash: Option<u64>,
    #[serde(default, deserialize_with = "size")]
    segment_size: Option<u64>,
    ack: Option<Ack>,
    sync_interval_ms: Option<u64>,
    #[serde(default, deserialize_with = "size")]
    sync_bytes: Option<u64>,
    wal_values: Option<WalValues>,
    #[serde(default, deserialize_with = "compression")]
    compression: Option<Compression>,
    on_host_crash: Option<OnHostCrash>,
    read_only: Option<bool>,
    create: Option<bool>,
    resize: Option<bool>,
    lock_timeout_ms: Option<u64>,
    backend: Option<Backend>,
    depth: Option<u32>,
    read_threads: Option<u32>,
    recovery: Option<RecoveryMode>,
}

impl Options {
    /// Options from TOML. Each key is the name of a method of [`Options`], with `_ms` appended for
    /// times. A key that is absent leaves the default.
    ///
    /// | keys | value |
    /// |---|---|
    /// | `dir` | text; may be absent if [`Options::dir`] is called afterwards |
    /// | `memory`, `flash`, `segment_size`, `sync_bytes` | bytes as a number, or text such as `"64MiB"` (see [`parse_size`]) |
    /// | `sync_interval_ms`, `lock_timeout_ms` | milliseconds, a number |
    /// | `ack`, `wal_values`, `on_host_crash`, `backend`, `recovery` | name of the choice in lower case, `_` between words: `"io_uring"` |
    /// | `compression` | `"none"`, `"zstd"` (level 3) or `"zstd:LEVEL"` |
    /// | `read_only`, `create`, `resize` | `true` or `false` |
    /// | `depth`, `read_threads` | number |
    ///
    /// # Examples
    /// ```
    /// # fn main() -> everwarm::Result<()> {
    /// let options = everwarm::Options::from_toml(r#"
    ///     dir = "/var/cache/example"
    ///     memory = "256MiB"
    ///     flash = "4GiB"
    ///     compression = "zstd:3"
    /// "#)?;
    /// # let _ = options;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidToml`] names the line and the mistake: a syntax error, an unknown key, or a
    /// value of the wrong type. Ranges are checked when the cache is opened.
    pub fn from_toml(text: &str) -> Result<Self> {
        Self::new("").with_toml(text)
    }

    /// Replaces the options that a TOML text gives, and keeps the others. The keys are those of
    /// [`Options::from_toml`].
    ///
    /// # Errors
    /// [`Error::InvalidToml`], as for [`Options::from_toml`].
    pub fn with_toml(mut self, text: &str) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|e| Error::InvalidToml { reason: e.to_string() })?;
        let or = |given: Option<u64>, before: Duration| given.map_or(before, Duration::from_millis);
        self.dir = file.dir.unwrap_or(self.dir);
        self.memory = file.memory.or(self.memory);
        self.flash = file.flash.or(self.flash);
        self.segment_size = file.segment_size.or(self.segment_size);
        self.ack = file.ack.unwrap_or(self.ack);
        self.sync_interval = or(file.sync_interval_ms, self.sync_interval);
        self.sync_bytes = file.sync_bytes.unwrap_or(self.sync_bytes);
        self.wal_values = file.wal_values.unwrap_or(self.wal_values);
        self.compression = file.compression.unwrap_or(self.compression);
        self.on_host_crash = file.on_host_crash.unwrap_or(self.on_host_crash);
        self.read_only = file.read_only.unwrap_or(self.read_only);
        self.create = file.create.unwrap_or(self.create);
        self.resize = file.resize.unwrap_or(self.resize);
        self.lock_timeout = or(file.lock_timeout_ms, self.lock_timeout);
        self.backend = file.backend.unwrap_or(self.backend);
        self.depth = file.depth.unwrap_or(self.depth);
        self.read_threads = file.read_threads.unwrap_or(self.read_threads);
        self.recovery = file.recovery.unwrap_or(self.recovery);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_a_key() {
        let options = Options::from_toml(
            "dir = 'x'\nmemory = 2097152\nflash = '1GiB'\nsegment_size = '1 MiB'\nack = 'host'\nsync_interval_ms = 7\nsync_bytes = '1M'\nwal_values = 'always'\n\
             compression = 'zstd:5'\non_host_crash = 'cold'\nread_only = true\ncreate = false\nresize = false\nlock_timeout_ms = 9\nbackend = 'io_uring'\ndepth = 3\nread_threads = 2\nrecovery = 'refuse'\n",
        )
        .unwrap();
        assert_eq!(
            (options.memory, options.flash, options.segment_size, options.sync_bytes),
            (Some(2 << 20), Some(1 << 30), Some(1 << 20), 1 << 20)
        );
        assert_eq!((options.ack, options.wal_values, options.compression), (Ack::Host, WalValues::Always, Compression::Zstd(5)));
        assert_eq!((options.depth, options.read_threads), (3, 2));
        assert_eq!((options.on_host_crash, options.backend, options.recovery), (OnHostCrash::Cold, Backend::IoUring, RecoveryMode::Refuse));
        assert_eq!(
            (options.sync_interval.as_millis(), options.lock_timeout.as_millis(), options.read_only, options.create, options.resize),
            (7, 9, true, false, false)
        );
    }

    #[test]
    fn an_absent_key_keeps_the_option() {
        let options = Options::new("x").memory(1 << 20).resize(false).with_toml("flash = '1GiB'").unwrap();
        assert_eq!((options.dir.to_str(), options.memory, options.flash, options.resize), (Some("x"), Some(1 << 20), Some(1 << 30), false));
        assert!(options.with_toml("resize = true").unwrap().resize);
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, named) in [
            ("dir = 'x'\nmemry = 1", "memry"),
            ("dir = 'x'\nmemory = '3 parsecs'", "parsecs"),
            ("dir = 'x'\nack = 'never'", "never"),
            ("dir = 'x'\ncompression = 'lz4'", "lz4"),
            ("dir = ", "line 1"),
        ] {
            let error = Options::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size(" 64MiB "), Ok(64 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        assert!(
            parse_size("").is_err()
                && parse_size("1x").is_err()
                && parse_size("99999999999999999999").is_err()
                && parse_size("18446744073709551615T").is_err()
        );
    }
}
