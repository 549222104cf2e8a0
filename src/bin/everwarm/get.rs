//! `everwarm get`: writes the value of a key to standard output, and exits with 1 on a miss.

use std::io::Write;
use std::process::ExitCode;

use crate::store::{Name, Source};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    name: Name,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let key = args.name.key()?;
    let cache = args.source.open_namespace(&args.name)?;
    let found = cache.get(key)?;
    cache.close()?;
    let Some(value) = found else {
        return Ok(ExitCode::FAILURE);
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&value)?;
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}
