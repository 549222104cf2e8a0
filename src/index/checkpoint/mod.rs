//! The bytes of a checkpoint: every slot of the index, in order, so that loading is reading. `docs/FORMAT.md` explains them.

pub(crate) mod format;
mod load;
mod write;

pub(crate) use format::{Header, LAYOUT};
pub(crate) use load::{Keep, Loaded, load};
pub(crate) use write::{file_len, write};
