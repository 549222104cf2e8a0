//! `everwarm delete`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use crate::store::Store;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: Store,
    /// The key; any bytes. It is no error if there is no such entry.
    key: OsString,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cache = args.store.open()?;
    cache.delete(args.key.as_bytes())?;
    cache.close()?;
    Ok(ExitCode::SUCCESS)
}
