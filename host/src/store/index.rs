//! The index of stored responses by cache key, shared by all workers: sharded, and bounded by a budget of bytes.
//! Responses that are read once don't evict those that are read often.

use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use quick_cache::sync::{Cache, EntryAction, EntryResult};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::purge_log::{Purge, PurgeEpoch, PurgeLog};
use super::variant::{PurgeKind, VariantInfo};
use super::vary::{VaryRequest, VaryValue};

/// A stored response in an index: one of the variants under a cache key.
pub trait IndexedVariant: Send + Sync + 'static {
    fn variant_info(&self) -> &VariantInfo;

    /// Returns the share of the budget that the variant uses, in bytes.
    fn weight(&self) -> usize;

    /// Returns a number that is greater for newer variants, where the order is known.
    fn number(&self) -> u64;

    /// Reacts when the variant has left the index or was not inserted.
    fn on_removed(&self) {}

    /// Reacts when the variant was soft-purged.
    fn on_purged(&self) {}
}

/// An index of variants by the hash of the cache key.
pub struct Index<V: IndexedVariant> {
    resources: Cache<u128, Arc<CacheEntry<V>>, Weight, DefaultHashBuilder, Leaving>,
    /// Locked while the budget is set.
    resizing: Mutex<()>,
}

/// All variants under one cache key.
struct CacheEntry<V> {
    key: Box<[u8]>,
    /// The variants, newest first.
    variants: SmallVec<[Arc<V>; 1]>,
    /// The Unix time in milliseconds until which the key is hit-for-miss: its responses are expected not to be
    /// cacheable.
    passes_until_ms: u64,
}

/// The result of a lookup in the index.
pub enum Found<V> {
    Nothing,
    /// Other variants are stored under the key, but none matches the request.
    OtherVariants,
    /// A variant matches the request.
    Variant(Arc<V>),
    /// The key is hit-for-miss: the response will most likely not be cacheable.
    HitForMiss,
}

#[derive(Clone)]
struct Weight;

#[derive(Clone)]
struct Leaving;

/// The evicted entries, kept so that their variants are notified outside all locks.
struct Evicted<V: IndexedVariant>(Vec<Arc<CacheEntry<V>>>);

/// The number of parts of the budget, each with its own lock. Enough to avoid contention between workers, and few
/// enough for one part to hold a large response.
pub const PARTS: usize = 16;

/// The maximum number of variants of one scope under one key. The oldest is evicted first.
const MAX_VARIANTS: usize = 64;

/// The maximum number of variants of all scopes under one key. A lookup walks through them, and a client makes scopes: each
/// spelling of a path is one where paths are forwarded as they are.
const MAX_VARIANTS_OF_KEY: usize = 256;

/// The maximum number of fields that these variants depend on, together: eight for each. A lookup compares each field
/// with the request.
const MAX_SELECTORS: usize = 512;

/// The part of the budget that a key uses besides its variants, in bytes.
const OVERHEAD: usize = size_of::<CacheEntry<()>>() + 64;

/// Returns the hash of a cache key. The seed is secret, so that no client can construct keys that collide.
pub fn hash_key(key: &[u8], seed: u64) -> u128 {
    xxh3_128_with_seed(key, seed)
}

impl<V: IndexedVariant> Index<V> {
    /// Returns an empty index with a budget of `bytes`, for entries with a size of about `typical` bytes.
    pub fn new(bytes: u64, typical: u64) -> Self {
        let options = OptionsBuilder::new()
            .weight_capacity(bytes)
            .estimated_items_capacity((bytes / typical).max(64) as usize)
            .shards(PARTS)
            .build();
        let resources = match options {
            Ok(options) => Cache::with_options(options, Weight, DefaultHashBuilder::default(), Leaving),
            Err(_) => Cache::with(64, bytes, Weight, DefaultHashBuilder::default(), Leaving),
        };
        Index { resources, resizing: Mutex::default() }
    }

    /// Looks up the variant that matches a request; `now_ms` is Unix time in milliseconds.
    pub fn find(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap, now_ms: u64) -> Found<V> {
        let Some(resource) = self.resource(id, key) else { return Found::Nothing };
        match resource.select(scope, request) {
            Some(variant) => Found::Variant(variant),
            None if resource.passes_until_ms > now_ms => Found::HitForMiss,
            None if resource.variants.is_empty() => Found::Nothing,
            None => Found::OtherVariants,
        }
    }

    /// Returns the variant that matches a request, even if the key is hit-for-miss; `None` if there is none.
    pub fn variant(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap) -> Option<Arc<V>> {
        self.resource(id, key)?.select(scope, request)
    }

    fn resource(&self, id: u128, key: &[u8]) -> Option<Arc<CacheEntry<V>>> {
        self.resources.get(&id).filter(|resource| *resource.key == *key)
    }

    /// Returns a request's values of the fields that the latest response under the key depended on; `None` if none is
    /// stored.
    pub fn selectors(&self, id: u128, scope: u64, request: &HeaderMap) -> Option<VaryValue> {
        let resource = self.resources.peek(&id)?;
        let latest = resource.variants.iter().find(|variant| variant.variant_info().scope == scope)?;
        Some(VaryValue::from_request(latest.variant_info().selectors.names(), request))
    }

    /// Inserts a variant. It replaces the variant for the same requests, unless that one is newer. Returns whether it was
    /// inserted.
    fn insert(&self, id: u128, key: &[u8], variant: Arc<V>) -> bool {
        let mut is_late = false;
        self.update(id, Some(key), |resource| {
            let is_for_the_same = |known: &Arc<V>| known.variant_info().replaces(variant.variant_info());
            is_late = resource.variants.iter().any(|known| is_for_the_same(known) && known.number() > variant.number());
            if is_late {
                return;
            }
            resource.passes_until_ms = 0;
            resource.variants.retain(|known| !is_for_the_same(known));
            resource.make_room(variant.variant_info());
            resource.variants.insert(0, variant.clone());
        });
        if is_late {
            variant.on_removed();
        }
        !is_late
    }

    /// Inserts a variant that was requested at `epoch`, unless the response was purged since. It replaces an older one.
    /// Returns whether it was inserted.
    pub fn insert_unless_purged(
        &self,
        id: u128,
        key: &[u8],
        variant: Arc<V>,
        purges: &PurgeLog,
        epoch: &PurgeEpoch,
    ) -> bool {
        let is_gone = || {
            let purged = purges.since(epoch, key, variant.variant_info());
            if purged == Some(PurgeKind::Soft) {
                variant.variant_info().purge(PurgeKind::Soft);
                variant.on_purged();
            }
            // For example, a purge found the response on disk while it was being read.
            purged == Some(PurgeKind::Hard) || variant.variant_info().is_gone()
        };
        if is_gone() {
            variant.on_removed();
            return false;
        }
        let is_inserted = self.insert(id, key, variant.clone());
        // A purge may have searched the index before the variant was inserted.
        if is_gone() {
            self.remove_if(id, |known| std::ptr::eq(known, &*variant));
            return false;
        }
        is_inserted
    }

    /// Returns the variant with this number; `None` if there is none.
    pub fn find_numbered(&self, id: u128, number: u64) -> Option<Arc<V>> {
        let resource = self.resources.peek(&id)?;
        resource.variants.iter().find(|known| known.number() == number).cloned()
    }

    /// Removes the variants under a key that satisfy a condition.
    pub fn remove_if(&self, id: u128, is_meant: impl Fn(&V) -> bool) {
        if self.resources.peek(&id).is_some_and(|resource| resource.variants.iter().any(|known| is_meant(known))) {
            self.update(id, None, |resource| resource.variants.retain(|known| !is_meant(known)));
        }
    }

    /// Removes all variants under a key. Returns how many of them were not counted as purged before.
    pub fn remove_all(&self, id: u128) -> usize {
        let Some((_, resource)) = self.resources.remove(&id) else { return 0 };
        resource.leave();
        resource.variants.iter().filter(|variant| variant.variant_info().purge(PurgeKind::Hard)).count()
    }

    /// Marks a key as hit-for-miss until `until_ms`, in milliseconds of Unix time.
    pub fn pass(&self, id: u128, key: &[u8], until_ms: u64) {
        self.update(id, Some(key), |resource| resource.passes_until_ms = until_ms);
    }

    /// Changes the entry of a cache key. A missing entry is created if `key` is given.
    fn update(&self, id: u128, key: Option<&[u8]>, change: impl FnOnce(&mut CacheEntry<V>)) {
        let max = self.max_entry_bytes() as usize;
        let mut change = Some(change);
        let mut left: SmallVec<[Arc<V>; 2]> = SmallVec::new();
        let mut changed = |old: Option<&CacheEntry<V>>| {
            let mut resource = match old {
                Some(old) if key.is_none_or(|key| *old.key == *key) => {
                    let variants = old.variants.clone();
                    CacheEntry { key: old.key.clone(), variants, passes_until_ms: old.passes_until_ms }
                }
                // The entry of another key with the same hash is replaced.
                _ => CacheEntry { key: key.unwrap_or_default().into(), variants: SmallVec::new(), passes_until_ms: 0 },
            };
            if let Some(change) = change.take() {
                change(&mut resource);
            }
            while resource.weight() > max
                && let Some(oldest) = resource.variants.pop()
            {
                left.push(oldest);
            }
            let before = old.map_or(&[][..], |old| &old.variants);
            left.extend(before.iter().filter(|variant| !resource.has(variant)).cloned());
            Arc::new(resource)
        };
        let entry = self.resources.entry(&id, None, |_, resource| {
            *resource = changed(Some(resource));
            if resource.is_of_use() { EntryAction::Retain(()) } else { EntryAction::Remove }
        });
        if let EntryResult::Vacant(vacant) = entry
            && key.is_some()
        {
            let resource = changed(None);
            if resource.is_of_use() && vacant.insert(resource.clone()).is_err() {
                resource.leave();
            }
        }
        // `quick_cache` doesn't evict others when an entry is updated and grows.
        if self.bytes() > self.capacity() {
            let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
            self.resources.set_capacity(self.capacity());
        }
        left.iter().for_each(|variant| variant.on_removed());
    }

    /// Purges the matching variants, shard by shard. Returns how many of them were not counted as purged before.
    pub fn purge(&self, purge: &Purge) -> usize {
        let is_meant = |key: &[u8], variant: &V| purge.what.is(key, variant.variant_info());
        let concerned: Vec<(u128, Arc<CacheEntry<V>>)> = self
            .resources
            .iter()
            .filter(|(_, resource)| resource.variants.iter().any(|variant| is_meant(&resource.key, variant)))
            .collect();
        let mut purged = 0;
        for (id, resource) in concerned {
            for variant in resource.variants.iter().filter(|variant| is_meant(&resource.key, variant)) {
                purged += usize::from(variant.variant_info().purge(purge.strength));
                if purge.strength == PurgeKind::Soft {
                    variant.on_purged();
                } else {
                    self.remove_if(id, |known| std::ptr::eq(known, &**variant));
                }
            }
        }
        purged
    }

    /// Sets the budget and evicts what exceeds it.
    pub fn resize(&self, bytes: u64) {
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.resources.capacity() != bytes {
            self.resources.set_capacity(bytes);
        }
    }

    /// Returns the budget, in bytes.
    pub fn capacity(&self) -> u64 {
        self.resources.capacity()
    }

    /// Returns the maximum size of an entry, in bytes.
    pub fn max_entry_bytes(&self) -> u64 {
        self.resources.shard_capacity() / 100 * 97
    }

    /// Returns the number of cache keys.
    pub fn keys(&self) -> usize {
        self.resources.len()
    }

    /// Returns the size of all entries, in bytes.
    pub fn bytes(&self) -> u64 {
        self.resources.weight()
    }
}

impl<V: IndexedVariant> CacheEntry<V> {
    fn weight(&self) -> usize {
        self.variants.iter().map(|variant| variant.weight()).sum::<usize>() + self.key.len() + OVERHEAD
    }

    fn select(&self, scope: u64, request: &HeaderMap) -> Option<Arc<V>> {
        let mut request = VaryRequest::new(request);
        let fits = |variant: &&Arc<V>| {
            variant.variant_info().scope == scope && variant.variant_info().selectors.select(&mut request)
        };
        self.variants.iter().find(fits).cloned()
    }

    /// Removes the oldest variants of a scope that are too many beside a new one. Variants of other scopes stay, because
    /// they belong to other routes, unless the key has too many in all.
    fn make_room(&mut self, new: &VariantInfo) {
        let (mut variants, mut selectors, mut kept) = (1, new.selectors.count(), 1);
        self.variants.retain(|known| {
            let variant_info = known.variant_info();
            if variant_info.scope == new.scope {
                variants += 1;
                selectors += variant_info.selectors.count();
                if variants > MAX_VARIANTS || selectors > MAX_SELECTORS {
                    return false;
                }
            }
            kept += 1;
            kept <= MAX_VARIANTS_OF_KEY
        });
    }

    fn has(&self, variant: &Arc<V>) -> bool {
        self.variants.iter().any(|known| Arc::ptr_eq(known, variant))
    }

    fn is_of_use(&self) -> bool {
        !self.variants.is_empty() || self.passes_until_ms > 0
    }

    fn leave(&self) {
        self.variants.iter().for_each(|variant| variant.on_removed());
    }
}

impl<V: IndexedVariant> Weighter<u128, Arc<CacheEntry<V>>> for Weight {
    fn weight(&self, _: &u128, resource: &Arc<CacheEntry<V>>) -> u64 {
        resource.weight() as u64
    }
}

impl<V: IndexedVariant> Lifecycle<u128, Arc<CacheEntry<V>>> for Leaving {
    type RequestState = Evicted<V>;

    fn on_evict(&self, evicted: &mut Evicted<V>, _: u128, resource: Arc<CacheEntry<V>>) {
        evicted.0.push(resource);
    }
}

impl<V: IndexedVariant> Default for Evicted<V> {
    fn default() -> Self {
        Evicted(Vec::new())
    }
}

impl<V: IndexedVariant> Drop for Evicted<V> {
    fn drop(&mut self) {
        self.0.iter().for_each(|resource| resource.leave());
    }
}
