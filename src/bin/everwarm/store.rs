//! What the verbs that work on one store have in common.

use std::path::PathBuf;

use anyhow::Context;
use everwarm::{Cache, Options};

use crate::size;

#[derive(clap::Args)]
pub(crate) struct Store {
    /// The store's directory.
    dir: PathBuf,
    /// A file of options in TOML; `dir` in it gives way to DIR, and the options below go before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The namespace that keys belong to; made if there is none [default: the one without a name]
    #[arg(long, short, value_name = "NAME", default_value = "", hide_default_value = true)]
    namespace: String,
    /// Bytes of DRAM, such as 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    memory: Option<u64>,
    /// Bytes of flash. A store of another size is resized.
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    flash: Option<u64>,
}

impl Store {
    /// Opens the store that is there.
    pub(crate) fn open(&self) -> anyhow::Result<Cache> {
        self.enter(Cache::open(self.options()?.create(false))?)
    }

    /// Opens the store, new if there is none.
    pub(crate) fn open_or_create(&self) -> anyhow::Result<Cache> {
        self.enter(Cache::open(self.options()?)?)
    }

    fn enter(&self, cache: Cache) -> anyhow::Result<Cache> {
        Ok(cache.namespace(&self.namespace)?)
    }

    fn options(&self) -> anyhow::Result<Options> {
        let mut options = match &self.config {
            None => Options::new(&self.dir),
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                Options::from_toml(&text).with_context(|| file.display().to_string())?.dir(&self.dir)
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
