//! `everwarm get`

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use crate::store::Store;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: Store,
    /// The key; any bytes.
    key: OsString,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cache = args.store.open()?;
    let found = cache.get(args.key.as_bytes())?;
    cache.close()?;
    let Some(value) = found else {
        return Ok(ExitCode::FAILURE);
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&value)?;
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}
