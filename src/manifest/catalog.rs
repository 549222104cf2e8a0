//! What governs more than one entry: namespaces and resume tokens. Small, so the manifest holds all of it, and notes in the log change it.
//!
#![doc = concat!("```text\n", include_str!("catalog.layout.txt"), "```")]

use std::collections::{BTreeMap, HashSet};

use crate::codec::{Put, Reader};
use crate::id::{Lsn, NamespaceGeneration};

/// The table above, as `inspect layout` prints it.
pub(crate) const LAYOUT: &str = include_str!("catalog.layout.txt");

/// Longest name of a namespace or a token, in bytes.
pub(crate) const NAME_LEN_MAX: usize = 255;
/// Longest resume token, in bytes.
pub(crate) const TOKEN_LEN_MAX: usize = 1024;
/// Most namespaces a store may have besides the default one.
pub(crate) const NAMESPACES_MAX: usize = 1024;
/// Most resume tokens a store may have.
pub(crate) const TOKENS_MAX: usize = 64;
/// Longest encoding.
pub(crate) const LEN_MAX: usize = 12 + (NAMESPACES_MAX + 1) * (2 + NAME_LEN_MAX + 8) + TOKENS_MAX * (4 + NAME_LEN_MAX + TOKEN_LEN_MAX);

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalog {
    /// The life that each namespace is in. The default one has no name, and is listed once it was dropped.
    pub(crate) namespaces: BTreeMap<String, NamespaceGeneration>,
    pub(crate) tokens: BTreeMap<String, Vec<u8>>,
    /// The newest note in it.
    pub(crate) lsn: Lsn,
}

/// A change of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CatalogChange<'a> {
    /// A namespace begins a life: it is new, or what it held is dropped.
    Namespace(&'a str),
    /// Every namespace begins another life.
    AllNamespaces,
    /// A resume token has this value; an empty one removes it.
    Token(&'a str, &'a [u8]),
}

impl<'a> CatalogChange<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, name, value): (u8, &str, &[u8]) = match self {
            Self::Namespace(name) => (1, name, &[]),
            Self::AllNamespaces => (2, "", &[]),
            Self::Token(name, value) => (3, name, value),
        };
        let mut out = Vec::with_capacity(4 + name.len() + value.len());
        out.put_u8(kind);
        out.put_varint(name.len() as u64);
        out.put(name.as_bytes());
        out.put(value);
        out
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let kind = r.u8()?;
        let name = name(&mut r)?;
        let value = r.bytes(r.remaining())?;
        match kind {
            1 => Some(Self::Namespace(name)),
            2 => Some(Self::AllNamespaces),
            3 => Some(Self::Token(name, value)),
            _ => None,
        }
    }
}

fn name<'a>(r: &mut Reader<'a>) -> Option<&'a str> {
    let len = usize::try_from(r.varint()?).ok().filter(|len| *len <= NAME_LEN_MAX)?;
    str::from_utf8(r.bytes(len)?).ok()
}

impl Catalog {
    /// Applies a note that has this LSN, unless it is in here already.
    pub(crate) fn apply(&mut self, lsn: Lsn, note: &CatalogChange<'_>) {
        if lsn <= self.lsn {
            return;
        }
        self.lsn = lsn;
        match *note {
            CatalogChange::Namespace(name) => drop(self.namespaces.insert(name.to_owned(), NamespaceGeneration(lsn.0))),
            CatalogChange::AllNamespaces => {
                self.namespaces.entry(String::new()).or_default();
                self.namespaces.values_mut().for_each(|generation| *generation = NamespaceGeneration(lsn.0));
            }
            CatalogChange::Token(name, []) => drop(self.tokens.remove(name)),
            CatalogChange::Token(name, value) => drop(self.tokens.insert(name.to_owned(), value.to_owned())),
        }
    }

    /// The life that the namespace with this name is in, if it exists. The default one always does.
    pub(crate) fn generation(&self, name: &str) -> Option<NamespaceGeneration> {
        self.namespaces.get(name).copied().or_else(|| name.is_empty().then_some(NamespaceGeneration::FIRST))
    }

    /// Every life that a namespace is in.
    pub(crate) fn generations(&self) -> HashSet<NamespaceGeneration> {
        self.namespaces.values().copied().chain(self.generation("")).collect()
    }

    /// At least as many bytes as the encoding has.
    pub(crate) fn len_at_most(&self) -> usize {
        // Lengths within their limits take two bytes.
        let namespaces: usize = self.namespaces.keys().map(|name| 2 + name.len() + 8).sum();
        let tokens: usize = self.tokens.iter().map(|(name, value)| 2 + name.len() + 2 + value.len()).sum();
        8 + 2 + namespaces + 2 + tokens
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64(self.lsn.0);
        out.put_varint(self.namespaces.len() as u64);
        for (name, generation) in &self.namespaces {
            out.put_varint(name.len() as u64);
            out.put(name.as_bytes());
            out.put_u64(generation.0);
        }
        out.put_varint(self.tokens.len() as u64);
        for (name, value) in &self.tokens {
            out.put_varint(name.len() as u64);
            out.put(name.as_bytes());
            out.put_varint(value.len() as u64);
            out.put(value);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let mut catalog = Self { lsn: Lsn(r.u64()?), ..Self::default() };
        for _ in 0..r.varint()? {
            let name = name(&mut r)?;
            catalog.namespaces.insert(name.to_owned(), NamespaceGeneration(r.u64()?));
        }
        for _ in 0..r.varint()? {
            let name = name(&mut r)?;
            let len = usize::try_from(r.varint()?).ok()?;
            catalog.tokens.insert(name.to_owned(), r.bytes(len)?.to_owned());
        }
        (r.remaining() == 0).then_some(catalog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn notes_and_catalog_round_trip() {
        let mut catalog = Catalog::default();
        for (lsn, note) in [
            CatalogChange::Namespace("users"),
            CatalogChange::Token("stream", b"17"),
            CatalogChange::AllNamespaces,
            CatalogChange::Namespace("feeds"),
        ]
        .iter()
        .enumerate()
        {
            let bytes = note.encode();
            assert_eq!(CatalogChange::decode(&bytes), Some(*note));
            catalog.apply(Lsn(lsn as u64 + 1), note);
        }
        assert_eq!(Catalog::decode(&catalog.encode()), Some(catalog.clone()));
        assert!(catalog.len_at_most() >= catalog.encode().len());
        assert_eq!(
            (catalog.generation(""), catalog.generation("users"), catalog.generation("feeds")),
            (Some(NamespaceGeneration(3)), Some(NamespaceGeneration(3)), Some(NamespaceGeneration(4)))
        );
        assert_eq!(catalog.generation("none"), None);
        catalog.apply(Lsn(9), &CatalogChange::Token("stream", b""));
        assert!(catalog.tokens.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _decoded = (CatalogChange::decode(&bytes), Catalog::decode(&bytes));
        }
    }
}
