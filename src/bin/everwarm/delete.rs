//! `everwarm delete`: removes a key.

use std::process::ExitCode;

use crate::store::Keyed;

pub(crate) fn run(args: &Keyed) -> anyhow::Result<ExitCode> {
    let key = args.key()?;
    let cache = args.open()?;
    let done = cache.delete(key);
    cache.close()?;
    done?;
    Ok(ExitCode::SUCCESS)
}
