//! A checkpoint: every slot of the index in a file, in order, so that loading needs no sorting.
//!
//! `format` has the bytes, which `docs/FORMAT.md` explains; `write` writes them beside mutations;
//! `load` fills an empty index.

pub(crate) mod format;
mod load;
mod write;

pub(crate) use format::{Header, LAYOUT};
pub(crate) use load::{Keep, Loaded, load};
pub(crate) use write::{file_len, write};
