//! The properties that distinguish the variants under a cache key, and by which a purge finds a stored response.

use std::sync::atomic::{AtomicU8, Ordering};

use super::vary::VaryValue;

/// The scope, `Vary` values, URI and tags of a stored response. Only the purge mark changes, and all readers share it.
#[derive(Debug, Default)]
pub struct VariantInfo {
    /// The hash of the route and the upstream. Responses of another scope are never used, even under the same cache
    /// key.
    pub scope: u64,
    pub selectors: VaryValue,
    /// The request URI; `None` if the cache key is the URI.
    pub uri: Option<Box<str>>,
    pub tags: Box<[Box<str>]>,
    /// The strongest purge that has hit the response; zero if none has.
    purged: AtomicU8,
}

/// The kind of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PurgeKind {
    /// The response stays in the store, but is stale.
    Soft = 1,
    Hard = 2,
}

const TAG: usize = size_of::<Box<str>>();

impl VariantInfo {
    pub fn new(scope: u64, selectors: VaryValue, uri: Option<Box<str>>, tags: Box<[Box<str>]>) -> Self {
        VariantInfo { scope, selectors, uri, tags, purged: AtomicU8::new(0) }
    }

    /// Returns whether this response replaces the other one: both have the same scope and `Vary` values.
    pub fn replaces(&self, other: &VariantInfo) -> bool {
        self.scope == other.scope && self.selectors == other.selectors
    }

    /// Marks the response as purged. Returns `true` if no purge of this or a stronger kind has marked it before.
    pub fn purge(&self, strength: PurgeKind) -> bool {
        self.purged.fetch_max(strength as u8, Ordering::Relaxed) < strength as u8
    }

    pub fn is_purged(&self) -> bool {
        self.purged.load(Ordering::Relaxed) > 0
    }

    /// Returns whether the response was hard-purged.
    pub fn is_gone(&self) -> bool {
        self.purged.load(Ordering::Relaxed) == PurgeKind::Hard as u8
    }

    /// Returns the memory that the label occupies, in bytes.
    pub fn weight(&self) -> usize {
        let tags: usize = self.tags.iter().map(|tag| tag.len() + TAG).sum();
        size_of::<VariantInfo>() + tags + self.uri.as_ref().map_or(0, |uri| uri.len()) + self.selectors.weight()
    }
}
