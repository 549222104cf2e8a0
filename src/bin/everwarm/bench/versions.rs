//! The versions of each key that a get may show: none older than the newest acknowledged version,
//! and none that was never put.

use std::sync::atomic::{AtomicU32, Ordering};

/// The versions of every key. Each key has one writer.
pub(crate) struct Versions(Vec<Key>);

#[derive(Default)]
struct Key {
    /// The newest version whose mutation began: twice its number, plus one for a delete.
    begun: AtomicU32,
    /// The newest version whose mutation returned, in the form of `begun`.
    returned: AtomicU32,
}

impl Versions {
    /// No key has a version yet.
    pub(crate) fn new(entries: u32) -> Self {
        Self((0..entries).map(|_| Key::default()).collect())
    }

    /// Versions of `of` keys, of which those below `entries` were put once.
    pub(crate) fn filled(entries: u32, of: u32) -> Self {
        let versions = Self::new(of);
        for key in 0..entries {
            let version = versions.begin(key, false);
            versions.returned(key, version);
        }
        versions
    }

    /// Begins a put or a delete and returns its version. Only the key's writer calls this.
    pub(crate) fn begin(&self, key: u32, is_delete: bool) -> u32 {
        let begun = &self.0[key as usize].begun;
        let version = ((begun.load(Ordering::Relaxed) >> 1) + 1) << 1 | u32::from(is_delete);
        begun.store(version, Ordering::Release);
        version
    }

    /// Records that the mutation with this version returned. Only the key's writer calls this.
    pub(crate) fn returned(&self, key: u32, version: u32) {
        self.0[key as usize].returned.store(version, Ordering::Release);
    }

    /// The oldest version that a get that begins now may show.
    pub(crate) fn oldest(&self, key: u32) -> u32 {
        self.0[key as usize].returned.load(Ordering::Acquire)
    }

    /// Whether a get may show `version`, where `oldest` was read before the get began. The version
    /// of a delete is never shown.
    pub(crate) fn may_show(&self, key: u32, oldest: u32, version: u64) -> bool {
        let newest = self.0[key as usize].begun.load(Ordering::Acquire);
        version.is_multiple_of(2) && (u64::from(oldest)..=u64::from(newest)).contains(&version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_older_than_acknowledged_or_never_put_may_not_be_shown() {
        let versions = Versions::filled(1, 1);
        let first = versions.oldest(0);
        assert!(versions.may_show(0, first, first.into()) && !versions.may_show(0, first, u64::from(first) + 2));
        let second = versions.begin(0, false);
        assert!(versions.may_show(0, versions.oldest(0), first.into()) && versions.may_show(0, first, second.into()));
        versions.returned(0, second);
        assert!(!versions.may_show(0, versions.oldest(0), first.into()));
        let deleted = versions.begin(0, true);
        versions.returned(0, deleted);
        assert!(!versions.may_show(0, versions.oldest(0), second.into()) && !versions.may_show(0, second, deleted.into()));
    }
}
