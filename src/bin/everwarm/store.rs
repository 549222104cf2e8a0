//! What the verbs that work on one store have in common.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use everwarm::{Cache, Options};

use crate::size;

#[derive(clap::Args)]
pub(crate) struct Store {
    /// The store's directory.
    dir: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// Bring a store of another size to the size given; a smaller one keeps what fits.
    #[arg(long)]
    resize: bool,
}

/// How a store is opened.
#[derive(clap::Args)]
pub(crate) struct Settings {
    /// A file of options in TOML. DIR and the options below go before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Bytes of DRAM, such as 64MiB [default: what the store needs, at least 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    memory: Option<u64>,
    /// Bytes of flash of a new store [default: 4GiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    flash: Option<u64>,
}

/// A key of a store.
#[derive(clap::Args)]
pub(crate) struct Keyed {
    #[command(flatten)]
    pub(crate) store: Store,
    /// The namespace that the key belongs to [default: the one without a name]
    #[arg(long, short, value_name = "NAME", default_value = "", hide_default_value = true)]
    namespace: String,
    /// The key; any bytes.
    key: OsString,
}

impl Settings {
    /// `base`, but for what is given here.
    pub(crate) fn options(&self, base: Options) -> anyhow::Result<Options> {
        let mut options = match &self.config {
            None => base,
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                base.with_toml(&text).with_context(|| file.display().to_string())?
            }
        };
        if let Some(bytes) = self.memory {
            options = options.memory(bytes);
        }
        if let Some(bytes) = self.flash {
            options = options.flash(bytes);
        }
        Ok(options)
    }
}

impl Store {
    /// Opens the store that is there.
    pub(crate) fn open(&self) -> anyhow::Result<Cache> {
        self.start(self.options()?.create(false))
    }

    /// It keeps its sizes unless it is said here that it shall not.
    fn options(&self) -> anyhow::Result<Options> {
        let options = self.settings.options(Options::new(&self.dir).resize(false))?.dir(&self.dir);
        Ok(if self.resize { options.resize(true) } else { options })
    }

    fn start(&self, options: Options) -> anyhow::Result<Cache> {
        Cache::open(options).map_err(|error| match error {
            everwarm::Error::NeedsResize { .. } => {
                anyhow::Error::new(error).context(format!("cannot open {} as it is (--resize would change it)", self.dir.display()))
            }
            other => other.into(),
        })
    }
}

impl Keyed {
    /// Opens the store that is there, seen through the key's namespace, which must be there too.
    pub(crate) fn open(&self) -> anyhow::Result<Cache> {
        let cache = self.store.open()?;
        let name = &self.namespace;
        match cache.existing_namespace(name) {
            Some(cache) => Ok(cache),
            None => {
                cache.close()?;
                bail!("{} has no namespace `{name}`", self.store.dir.display())
            }
        }
    }

    /// Opens the store, seen through the key's namespace. Either is made if there is none.
    pub(crate) fn open_or_create(&self) -> anyhow::Result<Cache> {
        let cache = self.store.start(self.store.options()?)?;
        Ok(cache.namespace(&self.namespace)?)
    }

    /// The key, if it can be one.
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
