//! The properties that distinguish the variants under a cache key, and by which a purge finds a stored response.

use std::sync::atomic::{AtomicU8, Ordering};

use super::vary::Selectors;

/// The scope, `Vary` values, URI and tags of a stored response. Only the purge mark changes, and all readers share it.
#[derive(Debug, Default)]
pub struct Label {
    /// The hash of the route and the upstream. Responses of another scope are never used, even under the same cache
    /// key.
    pub scope: u64,
    pub selectors: Selectors,
    /// The request URI; `None` if the cache key is the URI.
    pub uri: Option<Box<str>>,
    pub tags: Box<[Box<str>]>,
    /// The strongest purge that has hit the response; zero if none has.
    purged: AtomicU8,
}

/// The kind of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// The response stays in the store, but is stale.
    Soft = 1,
    Hard = 2,
}

const TAG: usize = size_of::<Box<str>>();

impl Label {
    pub fn new(scope: u64, selectors: Selectors, uri: Option<Box<str>>, tags: Box<[Box<str>]>) -> Self {
        Label { scope, selectors, uri, tags, purged: AtomicU8::new(0) }
    }

    /// Returns whether this response replaces the other one: both have the same scope and `Vary` values.
    pub fn is_for_the_same(&self, other: &Label) -> bool {
        self.scope == other.scope && self.selectors == other.selectors
    }

    /// Marks the response as purged. Returns `true` if no purge of this or a stronger kind has marked it before.
    pub fn purge(&self, strength: Strength) -> bool {
        self.purged.fetch_max(strength as u8, Ordering::Relaxed) < strength as u8
    }

    pub fn is_purged(&self) -> bool {
        self.purged.load(Ordering::Relaxed) > 0
    }

    /// Returns whether the response was hard-purged.
    pub fn is_gone(&self) -> bool {
        self.purged.load(Ordering::Relaxed) == Strength::Hard as u8
    }

    /// Returns the memory that the label occupies, in bytes.
    pub fn weight(&self) -> usize {
        let tags: usize = self.tags.iter().map(|tag| tag.len() + TAG).sum();
        size_of::<Label>() + tags + self.uri.as_ref().map_or(0, |uri| uri.len()) + self.selectors.weight()
    }
}
