//! `everwarm compact`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use everwarm::{Cache, Options, PutOptions};

use crate::size;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The new store's directory, which is empty or does not exist.
    #[arg(short, long, value_name = "NEW_DIR")]
    output: PathBuf,
    /// The store's directory. It keeps everything.
    dir: PathBuf,
    /// Bytes of flash of the new store [default: as many as the old one has]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    flash: Option<u64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let flash = args.flash.unwrap_or(everwarm::inspect(&args.dir)?.flash);
    let from = Cache::open(Options::new(&args.dir).create(false))?;
    if args.output.exists() && std::fs::read_dir(&args.output)?.next().is_some() {
        anyhow::bail!("{} is not empty; give a new directory", args.output.display());
    }
    let to = Cache::open(Options::new(&args.output).flash(flash))?;
    let total = from.stats().entries;
    let progress = indicatif::ProgressBar::new(total).with_message("entries");
    let mut copied = 0u64;
    for name in from.namespaces().into_iter().chain([String::new()]) {
        let to = to.namespace(&name)?;
        for entry in from.namespace(&name)?.entries() {
            let entry = entry?;
            let mut options = PutOptions::new();
            if let Some(ms) = entry.expires_in_ms {
                options = options.ttl(Duration::from_millis(ms));
            }
            to.put_with(&entry.key, &entry.value, &options).with_context(|| format!("after {copied} entries"))?;
            copied += 1;
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    for name in from.resume_tokens() {
        to.set_resume_token(&name, from.resume_token(&name).unwrap_or_default())?;
    }
    to.close()?;
    from.close()?;
    println!("{copied} entries copied to {}", args.output.display());
    Ok(ExitCode::SUCCESS)
}
