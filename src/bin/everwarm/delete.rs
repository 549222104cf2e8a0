//! `everwarm delete`

use std::process::ExitCode;

use crate::store::Keyed;

pub(crate) fn run(args: &Keyed) -> anyhow::Result<ExitCode> {
    let cache = args.open()?;
    cache.delete(args.key())?;
    cache.close()?;
    Ok(ExitCode::SUCCESS)
}
