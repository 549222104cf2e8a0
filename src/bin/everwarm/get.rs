//! `everwarm get`: writes the value of a key to standard output, and exits with 1 on a miss.

use std::io::Write;
use std::process::ExitCode;

use crate::store::Keyed;

pub(crate) fn run(args: &Keyed) -> anyhow::Result<ExitCode> {
    let key = args.key()?;
    let cache = args.open()?;
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
