//! The metadata of the store on disk: the manifest, the catalog in it, and checkpoints of the
//! index.

pub(in crate::engine) mod checkpoint;
pub(in crate::engine) mod manifest;
pub(in crate::engine) mod namespaces;
