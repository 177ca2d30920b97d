//! What tells one stored response from others under the same key, and finds it for a purge.

use std::sync::atomic::{AtomicU8, Ordering};

use super::vary::Selectors;

/// Immutable but for the mark of a purge, which all who have the response see.
#[derive(Debug, Default)]
pub struct Label {
    /// What belongs to another route or upstream is another's, whatever its key.
    pub scope: u64,
    pub selectors: Selectors,
    /// The URI that was asked for, where that isn't the key.
    pub uri: Option<Box<str>>,
    pub tags: Box<[Box<str>]>,
    /// By the strongest purge; zero for none.
    purged: AtomicU8,
}

/// How a purge takes a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// It stays, as stale.
    Soft = 1,
    Hard = 2,
}

const TAG: usize = size_of::<Box<str>>();

impl Label {
    pub fn new(scope: u64, selectors: Selectors, uri: Option<Box<str>>, tags: Box<[Box<str>]>) -> Self {
        Label { scope, selectors, uri, tags, purged: AtomicU8::new(0) }
    }

    /// Whether it takes the place of another.
    pub fn is_for_the_same(&self, other: &Label) -> bool {
        self.scope == other.scope && self.selectors == other.selectors
    }

    /// Makes it stale; says whether nobody has done as much before.
    pub fn purge(&self, strength: Strength) -> bool {
        self.purged.fetch_max(strength as u8, Ordering::Relaxed) < strength as u8
    }

    pub fn is_purged(&self) -> bool {
        self.purged.load(Ordering::Relaxed) > 0
    }

    /// Whether it was purged and is not to stay.
    pub fn is_gone(&self) -> bool {
        self.purged.load(Ordering::Relaxed) == Strength::Hard as u8
    }

    /// What it takes of the memory, in bytes.
    pub fn weight(&self) -> usize {
        let tags: usize = self.tags.iter().map(|tag| tag.len() + TAG).sum();
        size_of::<Label>() + tags + self.uri.as_ref().map_or(0, |uri| uri.len()) + self.selectors.weight()
    }
}
