//! Caches that run as servers. Opening one starts its server in the process group of the caller, so
//! that both are killed together.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use super::{Key, Size, Store};

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(5);

/// A pool of connections to a server.
struct Pool<C> {
    idle: Mutex<Vec<C>>,
    connect: Box<dyn Fn() -> Result<C> + Send + Sync>,
}

impl<C> Pool<C> {
    /// Waits until the server answers, at most [`PATIENCE`].
    fn new(connect: impl Fn() -> Result<C> + Send + Sync + 'static) -> Result<Self> {
        let start = Instant::now();
        let first = loop {
            match connect() {
                Ok(connection) => break connection,
                Err(error) if start.elapsed() > PATIENCE => return Err(error.context("the server does not answer")),
                Err(_) => std::thread::sleep(PAUSE),
            }
        };
        Ok(Self { idle: Mutex::new(vec![first]), connect: Box::new(connect) })
    }

    /// Calls `work` with an idle connection, or with a new one.
    fn with<R>(&self, work: impl FnOnce(&mut C) -> Result<R>) -> Result<R> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let mut connection = taken.map_or_else(|| (self.connect)(), Ok)?;
        let done = work(&mut connection)?;
        idle().push(connection);
        Ok(done)
    }
}

fn start(program: &str, arguments: &[String]) -> Result<()> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    Ok(())
}

/// memcached with extstore: keys and recent values in DRAM, other values in a file.
pub fn memcached(dir: &Path, size: Size) -> Result<impl Store + use<>> {
    // A port that is free at this moment.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let file = dir.join("extstore").display().to_string();
    let bytes = size.entries * (size.value_len as u64 + 128);
    // memcached's hash table and items in DRAM take more for an entry than Everwarm's index.
    let memory = (size.memory + size.entries * 128) >> 20;
    let file_mib = ((bytes * 2) >> 20).max(256);
    start(
        "memcached",
        &[
            "-u",
            "root",
            "-l",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-m",
            &memory.to_string(),
            "-o",
            &format!("ext_path={file}:{file_mib}m"),
        ]
        .map(str::to_owned),
    )?;
    Ok(Memcached(Pool::new(move || {
        let client = memcache::Client::connect(format!("memcache://127.0.0.1:{port}?timeout=10&tcp_nodelay=true&protocol=ascii"))?;
        client.version()?;
        Ok(client)
    })?))
}

struct Memcached(Pool<memcache::Client>);

impl Store for Memcached {
    fn put(&self, key: Key, value: Bytes) -> Result<()> {
        self.0.with(|client| Ok(client.set(&name(key), value.as_ref(), 0)?))
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>> {
        self.0.with(|client| Ok(client.get::<Vec<u8>>(&name(key))?.map(Bytes::from)))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

/// The key as text, which memcached requires.
fn name(key: Key) -> String {
    format!("{:032x}", u128::from_be_bytes(key))
}

/// Redis with an append-only file that is synced every second: everything in DRAM.
pub fn redis(dir: &Path) -> Result<impl Store + use<>> {
    let socket = dir.join("socket").display().to_string();
    let dir = dir.display().to_string();
    let arguments =
        ["--port", "0", "--unixsocket", &socket, "--dir", &dir, "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""];
    start("redis-server", &arguments.map(str::to_owned))?;
    let client = redis::Client::open(format!("redis+unix://{socket}"))?;
    Ok(Redis(Pool::new(move || {
        let mut connection = client.get_connection()?;
        let pong: String = redis::cmd("PING").query(&mut connection)?;
        if pong != "PONG" {
            bail!("redis answered {pong:?} to PING");
        }
        Ok(connection)
    })?))
}

struct Redis(Pool<redis::Connection>);

impl Store for Redis {
    fn put(&self, key: Key, value: Bytes) -> Result<()> {
        self.0.with(|connection| Ok(redis::cmd("SET").arg(&key).arg(value.as_ref()).query(connection)?))
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>> {
        self.0.with(|connection| Ok(redis::cmd("GET").arg(&key).query::<Option<Vec<u8>>>(connection)?.map(Bytes::from)))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}
