//! Arguments and helpers shared by the verbs that open one store.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use everwarm::{Cache, Options};

use crate::size;

/// An existing store that is only read.
#[derive(clap::Args)]
pub(crate) struct Source {
    /// The store's directory; nothing in it changes.
    dir: PathBuf,
    /// TOML file with options; DIR and the options below override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// DRAM budget, such as 64MiB [default: as the store needs, at least 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    memory: Option<u64>,
}

/// An existing or new store, and how to open it.
#[derive(clap::Args)]
pub(crate) struct Store {
    /// The store's directory.
    dir: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// Resize an existing store to the flash capacity given; shrinking evicts the entries that no
    /// longer fit.
    #[arg(long)]
    resize: bool,
}

/// The options with which a store is opened.
#[derive(clap::Args)]
pub(crate) struct Settings {
    /// TOML file with options; DIR and the options below override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// DRAM budget, such as 64MiB [default: as the store needs, at least 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    memory: Option<u64>,
    /// Flash capacity of a new store, such as 64GiB [default: 4GiB; compact: as the old store]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    flash: Option<u64>,
}

/// A key of a store that is changed.
#[derive(clap::Args)]
pub(crate) struct Keyed {
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    name: Name,
}

/// A key in a namespace.
#[derive(clap::Args)]
pub(crate) struct Name {
    /// Namespace of the key [default: the unnamed one]
    #[arg(long, short, value_name = "NAME", default_value = "", hide_default_value = true)]
    namespace: String,
    /// The key; any bytes.
    key: OsString,
}

/// `base`, overridden by the TOML file if there is one.
fn with_file(base: Options, file: Option<&PathBuf>) -> anyhow::Result<Options> {
    let Some(file) = file else { return Ok(base) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    base.with_toml(&text).with_context(|| file.display().to_string())
}

impl Settings {
    /// `base`, overridden by the file given with `--config`, then by the other arguments.
    pub(crate) fn options(&self, base: Options) -> anyhow::Result<Options> {
        let mut options = with_file(base, self.config.as_ref())?;
        if let Some(bytes) = self.memory {
            options = options.memory(bytes);
        }
        if let Some(bytes) = self.flash {
            options = options.flash(bytes);
        }
        Ok(options)
    }
}

impl Source {
    /// Opens the store for reading only.
    pub(crate) fn open(&self) -> anyhow::Result<Cache> {
        let mut options = with_file(Options::new(&self.dir), self.config.as_ref())?.dir(&self.dir);
        if let Some(bytes) = self.memory {
            options = options.memory(bytes);
        }
        Ok(Cache::open(options.read_only(true))?)
    }

    /// Opens the store for reading only, and returns a namespace, which must exist.
    pub(crate) fn open_namespace(&self, name: &Name) -> anyhow::Result<Cache> {
        existing(self.open()?, name, &self.dir)
    }
}

/// The handle of a namespace, which must exist.
fn existing(cache: Cache, name: &Name, dir: &Path) -> anyhow::Result<Cache> {
    match cache.existing_namespace(&name.namespace)? {
        Some(cache) => Ok(cache),
        None => {
            cache.close()?;
            bail!("{} has no namespace `{}`", dir.display(), name.namespace)
        }
    }
}

impl Store {
    /// The options for this store. It keeps its size unless `--resize` or the TOML file allows a
    /// change.
    fn options(&self) -> anyhow::Result<Options> {
        let options = self.settings.options(Options::new(&self.dir).resize(false))?.dir(&self.dir);
        Ok(if self.resize { options.resize(true) } else { options })
    }

    fn start(&self, options: Options) -> anyhow::Result<Cache> {
        Cache::open(options).map_err(|error| match error {
            everwarm::Error::NeedsResize { .. } => {
                anyhow::Error::new(error).context(format!("cannot open {} at its present size (--resize changes it)", self.dir.display()))
            }
            other => other.into(),
        })
    }
}

impl Keyed {
    /// Opens an existing store and returns the key's namespace, which must exist too.
    pub(crate) fn open(&self) -> anyhow::Result<Cache> {
        let store = &self.store;
        existing(store.start(store.options()?.create(false))?, &self.name, &store.dir)
    }

    /// Opens the store and returns the key's namespace; creates either if it does not exist.
    pub(crate) fn open_or_create(&self) -> anyhow::Result<Cache> {
        let cache = self.store.start(self.store.options()?)?;
        Ok(cache.namespace(&self.name.namespace)?)
    }

    /// The key's bytes, or an error if the length is out of range.
    pub(crate) fn key(&self) -> anyhow::Result<&[u8]> {
        self.name.key()
    }
}

impl Name {
    /// The key's bytes, or an error if the length is out of range.
    pub(crate) fn key(&self) -> anyhow::Result<&[u8]> {
        let key = self.key.as_bytes();
        ensure!(
            (1..=everwarm::KEY_LEN_MAX).contains(&key.len()),
            "a key has 1 to {} bytes, this one has {}",
            everwarm::KEY_LEN_MAX,
            key.len()
        );
        Ok(key)
    }
}
