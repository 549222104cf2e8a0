//! The catalog: namespaces and resume tokens, which concern more than one entry. It is small, so
//! the manifest holds all of it. Catalog changes are records in the log.
//!
#![doc = concat!("```text\n", include_str!("catalog.layout.txt"), "```")]

use std::collections::{BTreeMap, HashSet};

use crate::codec::{Put, Reader};
use crate::id::{Lsn, NamespaceGeneration};

/// The table above, which `inspect layout` prints.
pub(crate) const LAYOUT: &str = include_str!("catalog.layout.txt");

/// Longest name of a namespace or resume token, in bytes.
pub(crate) const NAME_LEN_MAX: usize = 255;
/// Longest resume token, in bytes.
pub(crate) const TOKEN_LEN_MAX: usize = 1024;
/// Maximum number of namespaces of a store, without the default one.
pub(crate) const NAMESPACES_MAX: usize = 1024;
/// Maximum number of resume tokens of a store.
pub(crate) const TOKENS_MAX: usize = 64;
/// Length of the longest encoded catalog, in bytes.
pub(crate) const LEN_MAX: usize = 12 + (NAMESPACES_MAX + 1) * (2 + NAME_LEN_MAX + 8) + TOKENS_MAX * (4 + NAME_LEN_MAX + TOKEN_LEN_MAX);

/// The namespaces and resume tokens of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalog {
    /// The generation of each namespace. The default namespace has the empty name, and is listed
    /// only after its first drop.
    pub(crate) namespaces: BTreeMap<String, NamespaceGeneration>,
    /// The value of each resume token.
    pub(crate) tokens: BTreeMap<String, Vec<u8>>,
    /// LSN of the newest applied change.
    pub(crate) lsn: Lsn,
}

/// A change of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CatalogChange<'a> {
    /// A namespace begins a generation: it is new, or its entries are dropped.
    Namespace(&'a str),
    /// Every namespace begins a new generation.
    AllNamespaces,
    /// A resume token gets this value. An empty value removes the token.
    Token(&'a str, &'a [u8]),
    /// A namespace ends, and its entries are dropped. Its name is free again.
    Removal(&'a str),
}

impl<'a> CatalogChange<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, name, value): (u8, &str, &[u8]) = match self {
            Self::Namespace(name) => (1, name, &[]),
            Self::AllNamespaces => (2, "", &[]),
            Self::Token(name, value) => (3, name, value),
            Self::Removal(name) => (4, name, &[]),
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
            4 => Some(Self::Removal(name)),
            _ => None,
        }
    }
}

fn name<'a>(r: &mut Reader<'a>) -> Option<&'a str> {
    let len = usize::try_from(r.varint()?).ok().filter(|len| *len <= NAME_LEN_MAX)?;
    str::from_utf8(r.bytes(len)?).ok()
}

impl Catalog {
    /// Applies the change with this LSN, unless the catalog includes it already.
    pub(crate) fn apply(&mut self, lsn: Lsn, change: &CatalogChange<'_>) {
        if lsn <= self.lsn {
            return;
        }
        self.lsn = lsn;
        match *change {
            CatalogChange::Namespace(name) => drop(self.namespaces.insert(name.to_owned(), NamespaceGeneration(lsn.0))),
            CatalogChange::AllNamespaces => {
                self.namespaces.entry(String::new()).or_default();
                self.namespaces.values_mut().for_each(|generation| *generation = NamespaceGeneration(lsn.0));
            }
            CatalogChange::Removal(name) => drop(self.namespaces.remove(name)),
            CatalogChange::Token(name, []) => drop(self.tokens.remove(name)),
            CatalogChange::Token(name, value) => drop(self.tokens.insert(name.to_owned(), value.to_owned())),
        }
    }

    /// The generation of the namespace with this name, if it exists. The default namespace always
    /// does.
    pub(crate) fn generation(&self, name: &str) -> Option<NamespaceGeneration> {
        self.namespaces.get(name).copied().or_else(|| name.is_empty().then_some(NamespaceGeneration::FIRST))
    }

    /// The generations of all namespaces.
    pub(crate) fn generations(&self) -> HashSet<NamespaceGeneration> {
        self.namespaces.values().copied().chain(self.generation("")).collect()
    }

    /// Upper bound of the encoded length, in bytes.
    pub(crate) fn len_at_most(&self) -> usize {
        // The varint of a length within its limit takes at most two bytes.
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
            let len = usize::try_from(r.varint()?).ok().filter(|len| *len <= TOKEN_LEN_MAX)?;
            catalog.tokens.insert(name.to_owned(), r.bytes(len)?.to_owned());
        }
        // The default namespace may be listed too.
        let fits = catalog.namespaces.len() <= NAMESPACES_MAX + 1 && catalog.tokens.len() <= TOKENS_MAX;
        (fits && r.remaining() == 0).then_some(catalog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn changes_and_catalog_round_trip() {
        let mut catalog = Catalog::default();
        for (lsn, change) in [
            CatalogChange::Namespace("users"),
            CatalogChange::Token("stream", b"17"),
            CatalogChange::AllNamespaces,
            CatalogChange::Namespace("feeds"),
            CatalogChange::Namespace("gone"),
            CatalogChange::Removal("gone"),
        ]
        .iter()
        .enumerate()
        {
            let bytes = change.encode();
            assert_eq!(CatalogChange::decode(&bytes), Some(*change));
            catalog.apply(Lsn(lsn as u64 + 1), change);
        }
        assert_eq!(Catalog::decode(&catalog.encode()), Some(catalog.clone()));
        assert!(catalog.len_at_most() >= catalog.encode().len());
        assert_eq!(
            (catalog.generation(""), catalog.generation("users"), catalog.generation("feeds")),
            (Some(NamespaceGeneration(3)), Some(NamespaceGeneration(3)), Some(NamespaceGeneration(4)))
        );
        assert_eq!((catalog.generation("none"), catalog.generation("gone")), (None, None));
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
