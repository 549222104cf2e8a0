//! `everwarm put`: stores a value under a key.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;
use std::time::Duration;

use everwarm::{Ack, PutOptions};

use crate::store::Keyed;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    keyed: Keyed,
    /// The value, or - for standard input.
    value: OsString,
    /// Seconds until the entry expires [default: never]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    ttl: Option<u64>,
    /// Return only after a sync, so that the entry survives a power cut.
    #[arg(long)]
    host: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let value = match args.value.as_bytes() {
        b"-" => {
            let mut input = Vec::new();
            std::io::stdin().lock().read_to_end(&mut input)?;
            input
        }
        _ => args.value.clone().into_vec(),
    };
    let mut options = PutOptions::new();
    if let Some(seconds) = args.ttl {
        options = options.ttl(Duration::from_secs(seconds));
    }
    if args.host {
        options = options.ack(Ack::Host);
    }
    let key = args.keyed.key()?;
    let cache = args.keyed.open_or_create()?;
    let done = cache.put_with(key, value, &options);
    cache.close()?;
    done?;
    Ok(ExitCode::SUCCESS)
}
