//! `everwarm compact`: copies the live entries, namespaces and resume tokens into a new store.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use everwarm::{Cache, Options, PutOptions};

use crate::store::Settings;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the new store; must be empty or absent.
    #[arg(short, long, value_name = "NEW_DIR")]
    output: PathBuf,
    /// Directory of the store to copy; nothing in it changes.
    dir: PathBuf,
    /// Settings of the new store. Flash and segment size default to those of the old store, memory
    /// to the size that the index needs, and compression to none.
    #[command(flatten)]
    settings: Settings,
}

/// Default bytes of DRAM for the new store; more if the index needs more.
const MEMORY_MIN: u64 = 256 << 20;

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let found = everwarm::inspect(&args.dir)?;
    let output = &args.output;
    prepare_output(output)?;
    // The new store is built under another name, and renamed when it is complete.
    let mut name =
        output.file_name().with_context(|| format!("{} does not name a directory; give a new directory", output.display()))?.to_owned();
    name.push(".partial");
    let partial = output.with_file_name(name);
    ensure!(!partial.exists(), "{} is left over from an interrupted run; remove it", partial.display());
    let mut options = args.settings.options(Options::new(&partial))?.dir(&partial).create(true);
    // From here on every path closes `from`, also after an error.
    let from = Cache::open(Options::new(&args.dir).read_only(true))?;
    if options.flash_given().is_none() {
        let segment_size = options.segment_size_given().unwrap_or(found.segment_size);
        options = options.flash(found.flash).segment_size(segment_size);
    }
    if options.memory_given().is_none() {
        options = options.memory(MEMORY_MIN.max(MEMORY_MIN / 2 + 2 * from.stats().index_bytes));
    }
    let done = Cache::open(options).map_err(anyhow::Error::from).and_then(|to| {
        let copied = copy(&from, &to)?;
        let counts = to.clone();
        to.close()?;
        let evicted = counts.stats().evicted;
        ensure!(evicted == 0, "{evicted} of {copied} entries do not fit; give more --flash or --memory");
        drop(counts);
        std::fs::rename(&partial, output).with_context(|| format!("cannot rename {}", partial.display()))?;
        sync_parent(output)?;
        Ok(copied)
    });
    let done = done.inspect_err(|_| drop(std::fs::remove_dir_all(&partial)));
    let stats = from.stats();
    from.close()?;
    let copied = done?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{copied} entries copied to {}", output.display())?;
    let unread = stats.damaged + stats.read_errors;
    if unread > 0 {
        writeln!(out, "{unread} records of {} could not be read or did not verify", args.dir.display())?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks that a new directory can take this name: the name is free, or names an empty directory
/// that can be replaced.
fn prepare_output(output: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot use {} as the new store's directory", output.display());
    match std::fs::symlink_metadata(output) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(context),
        Ok(found) => ensure!(found.is_dir(), "{} is a file or a symbolic link; give a new directory", output.display()),
    }
    ensure!(std::fs::read_dir(output).with_context(context)?.next().is_none(), "{} is not empty; give a new directory", output.display());
    // A mount point cannot be removed, hence cannot be replaced by a rename later.
    std::fs::remove_dir(output).and_then(|()| std::fs::create_dir(output)).with_context(context)
}

/// Copies the live entries and the resume tokens, and returns the number of entries.
fn copy(from: &Cache, to: &Cache) -> anyhow::Result<u64> {
    let progress = indicatif::ProgressBar::new(from.stats().entries).with_message("entries");
    let mut copied = 0u64;
    let named = |name: String| -> anyhow::Result<(String, Cache)> { Ok((name.clone(), to.namespace(&name)?)) };
    let spaces: HashMap<String, Cache> = from.namespaces()?.into_iter().chain([String::new()]).map(named).collect::<Result<_, _>>()?;
    for entry in from.entries_of_all_namespaces() {
        let entry = entry?;
        // Always found: this is a snapshot, so no namespace appears meanwhile.
        let Some(to) = spaces.get(&*entry.namespace) else { continue };
        let mut options = PutOptions::new();
        if let Some(ms) = entry.expires_in_ms {
            options = options.ttl(Duration::from_millis(ms));
        }
        to.put_with(&entry.key, &entry.value, &options).with_context(|| format!("after {copied} entries"))?;
        copied += 1;
        progress.inc(1);
    }
    progress.finish_and_clear();
    for name in from.resume_tokens()? {
        to.set_resume_token(&name, from.resume_token(&name)?.unwrap_or_default())?;
    }
    Ok(copied)
}

/// Syncs the parent directory of `path`, which makes the new name durable.
fn sync_parent(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent)?.sync_all().with_context(|| format!("cannot sync {}", parent.display()))
}
