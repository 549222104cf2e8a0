//! Stands in for `uring` and `reactor` in a build without the feature `io-uring`: no ring can be
//! made, so threads perform all reads.

use std::io;
use std::sync::Arc;

use super::ReadStream;
use super::async_read::Operation;

/// Has no values.
#[derive(Debug)]
pub(super) enum Rings {}

/// Has no values.
#[derive(Debug)]
pub(super) enum Reactor {}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "everwarm was built without the feature `io-uring`")
}

impl Rings {
    pub(super) fn probe(_depth: u32) -> io::Result<Self> {
        Err(refused())
    }

    pub(super) fn are_refused(&self) -> bool {
        match *self {}
    }

    pub(super) fn read(&self, _stream: &mut dyn ReadStream) -> bool {
        match *self {}
    }

    pub(super) fn close(&self) {
        match *self {}
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        match *self {}
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        match *self {}
    }
}

impl Reactor {
    pub(super) fn new(_depth: u32) -> io::Result<Self> {
        Err(refused())
    }

    pub(super) fn is_refused(&self) -> bool {
        match *self {}
    }

    pub(super) fn start(&self, _operation: Arc<Operation>) {
        match *self {}
    }
}
