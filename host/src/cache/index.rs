//! What is stored, by key, for all workers: sharded, and within a budget of bytes. What is read once doesn't drive out
//! what is read again and again.

use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use quick_cache::sync::{Cache, EntryAction, EntryResult};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::label::{Label, Strength};
use super::purges::{Moment, Purge, Purges};
use super::vary::Selectors;

/// One of the responses under a key.
pub trait Variant: Send + Sync + 'static {
    fn label(&self) -> &Label;

    /// What it takes of the budget, in bytes.
    fn weight(&self) -> usize;

    /// The greater, the newer, where that is known.
    fn number(&self) -> u64;

    /// It stands in the index no more.
    fn left(&self) {}

    /// It was purged softly.
    fn purged(&self) {}
}

/// Variants by the names of keys.
pub struct Index<V: Variant> {
    resources: Cache<u128, Arc<Resource<V>>, Weight, DefaultHashBuilder, Leaving>,
    /// Held by whoever sets the budget.
    resizing: Mutex<()>,
}

/// All under one key.
struct Resource<V> {
    key: Box<[u8]>,
    /// The newest first.
    variants: SmallVec<[Arc<V>; 1]>,
    /// Until then its responses are taken for nobody else's, in milliseconds of Unix time.
    passes_until_ms: u64,
}

/// What a request finds.
pub enum Found<V> {
    Nothing,
    /// Nothing that fits the request, but for others there is.
    Others,
    /// This.
    Variant(Arc<V>),
    /// That its response will most likely be nobody else's.
    Passes,
}

#[derive(Clone)]
struct Weight;

#[derive(Clone)]
struct Leaving;

/// What had to give way, to be told of that outside all locks.
struct Evicted<V: Variant>(Vec<Arc<Resource<V>>>);

/// The budget is divided into so many parts with a lock each: enough to keep workers apart, and few enough for a part to
/// hold a large object.
pub const PARTS: usize = 16;

/// Different responses under one key; the oldest gives way.
const MOST_VARIANTS: usize = 64;

/// What the index takes for a key, besides its variants.
const OVERHEAD: usize = size_of::<Resource<()>>() + 64;

/// The name of a key. The seed is told to nobody, so that nobody can make two keys fall together.
pub fn name_of(key: &[u8], seed: u64) -> u128 {
    xxh3_128_with_seed(key, seed)
}

impl<V: Variant> Index<V> {
    /// An empty one for so many bytes, in entries of such a size.
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

    /// What fits a request; `now_ms` is Unix time in milliseconds.
    pub fn find(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap, now_ms: u64) -> Found<V> {
        let Some(resource) = self.resource(id, key) else { return Found::Nothing };
        match resource.select(scope, request) {
            Some(variant) => Found::Variant(variant),
            None if resource.passes_until_ms > now_ms => Found::Passes,
            None if resource.variants.is_empty() => Found::Nothing,
            None => Found::Others,
        }
    }

    /// What fits a request, whatever is known of responses to come.
    pub fn variant(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap) -> Option<Arc<V>> {
        self.resource(id, key)?.select(scope, request)
    }

    fn resource(&self, id: u128, key: &[u8]) -> Option<Arc<Resource<V>>> {
        self.resources.get(&id).filter(|resource| *resource.key == *key)
    }

    /// The request fields that responses under a key depended on so far, with a request's values.
    pub fn selectors(&self, id: u128, scope: u64, request: &HeaderMap) -> Option<Selectors> {
        let resource = self.resources.peek(&id)?;
        let latest = resource.variants.iter().find(|variant| variant.label().scope == scope)?;
        Some(Selectors::of(latest.label().selectors.names(), request))
    }

    /// Puts a variant in, in place of the one for the same requests, unless that is newer.
    fn insert(&self, id: u128, key: &[u8], variant: Arc<V>) {
        let mut is_late = false;
        self.update(id, Some(key), |resource| {
            let is_for_the_same = |known: &Arc<V>| known.label().is_for_the_same(variant.label());
            is_late = resource.variants.iter().any(|known| is_for_the_same(known) && known.number() > variant.number());
            if is_late {
                return;
            }
            resource.passes_until_ms = 0;
            resource.variants.retain(|known| !is_for_the_same(known));
            resource.variants.truncate(MOST_VARIANTS - 1);
            resource.variants.insert(0, variant.clone());
        });
        if is_late {
            variant.left();
        }
    }

    /// Puts in what was asked for at a moment, in place of what is older, unless it was purged since.
    pub fn offer(&self, id: u128, key: &[u8], variant: Arc<V>, purges: &Purges, asked: Moment) {
        let is_gone = || {
            let purged = purges.since(asked, id, key, variant.label());
            if purged == Some(Strength::Soft) {
                variant.label().purge(Strength::Soft);
                variant.purged();
            }
            // Such as where a purge has met it on disk, while it was being read.
            purged == Some(Strength::Hard) || variant.label().is_gone()
        };
        if is_gone() {
            return variant.left();
        }
        self.insert(id, key, variant.clone());
        // A purge that came meanwhile may have looked before it was there.
        if is_gone() {
            self.remove_if(id, |known| std::ptr::eq(known, &*variant));
        }
    }

    /// What is there of such a number.
    pub fn numbered(&self, id: u128, number: u64) -> Option<Arc<V>> {
        let resource = self.resources.peek(&id)?;
        resource.variants.iter().find(|known| known.number() == number).cloned()
    }

    /// Takes out what is there and such.
    pub fn remove_if(&self, id: u128, is_meant: impl Fn(&V) -> bool) {
        if self.resources.peek(&id).is_some_and(|resource| resource.variants.iter().any(|known| is_meant(known))) {
            self.update(id, None, |resource| resource.variants.retain(|known| !is_meant(known)));
        }
    }

    /// Takes out all under a key; gives how many of those nobody has counted.
    pub fn remove_all(&self, id: u128) -> usize {
        let Some((_, resource)) = self.resources.remove(&id) else { return 0 };
        resource.leave();
        resource.variants.iter().filter(|variant| variant.label().purge(Strength::Hard)).count()
    }

    /// Remembers up to a time that a response couldn't be stored.
    pub fn pass(&self, id: u128, key: &[u8], until_ms: u64) {
        self.update(id, Some(key), |resource| resource.passes_until_ms = until_ms);
    }

    /// Changes what is under a key. What is there is made anew where it isn't, unless no key is given.
    fn update(&self, id: u128, key: Option<&[u8]>, change: impl FnOnce(&mut Resource<V>)) {
        let most = self.most() as usize;
        let mut change = Some(change);
        let mut left: SmallVec<[Arc<V>; 2]> = SmallVec::new();
        let mut changed = |old: Option<&Resource<V>>| {
            let mut resource = match old {
                Some(old) if key.is_none_or(|key| *old.key == *key) => {
                    let variants = old.variants.clone();
                    Resource { key: old.key.clone(), variants, passes_until_ms: old.passes_until_ms }
                }
                // Another key that falls on the same place gives way.
                _ => Resource { key: key.unwrap_or_default().into(), variants: SmallVec::new(), passes_until_ms: 0 },
            };
            if let Some(change) = change.take() {
                change(&mut resource);
            }
            while resource.weight() > most
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
        if let EntryResult::Vacant(place) = entry
            && key.is_some()
        {
            let resource = changed(None);
            if resource.is_of_use() && place.insert(resource.clone()).is_err() {
                resource.leave();
            }
        }
        // Whoever has grown in place has driven nobody out.
        if self.bytes() > self.capacity() {
            let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
            self.resources.set_capacity(self.capacity());
        }
        left.iter().for_each(|variant| variant.left());
    }

    /// Purges what is meant; gives how many variants of those nobody has counted. Looks through all, shard by shard.
    pub fn purge(&self, purge: &Purge) -> usize {
        let is_meant = |key: &[u8], variant: &V| purge.what.is(key, variant.label());
        let concerned: Vec<(u128, Arc<Resource<V>>)> = self
            .resources
            .iter()
            .filter(|(_, resource)| resource.variants.iter().any(|variant| is_meant(&resource.key, variant)))
            .collect();
        let mut purged = 0;
        for (id, resource) in concerned {
            for variant in resource.variants.iter().filter(|variant| is_meant(&resource.key, variant)) {
                purged += usize::from(variant.label().purge(purge.strength));
                if purge.strength == Strength::Soft {
                    variant.purged();
                } else {
                    self.remove_if(id, |known| std::ptr::eq(known, &**variant));
                }
            }
        }
        purged
    }

    /// Another budget; what is beyond it goes.
    pub fn resize(&self, bytes: u64) {
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.resources.capacity() != bytes {
            self.resources.set_capacity(bytes);
        }
    }

    /// The budget, in bytes.
    pub fn capacity(&self) -> u64 {
        self.resources.capacity()
    }

    /// The heaviest that is let in, in bytes.
    pub fn most(&self) -> u64 {
        self.resources.shard_capacity() / 100 * 97
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.resources.len()
    }

    /// What they take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.resources.weight()
    }
}

impl<V: Variant> Resource<V> {
    fn weight(&self) -> usize {
        self.variants.iter().map(|variant| variant.weight()).sum::<usize>() + self.key.len() + OVERHEAD
    }

    fn select(&self, scope: u64, request: &HeaderMap) -> Option<Arc<V>> {
        let fits = |variant: &&Arc<V>| variant.label().scope == scope && variant.label().selectors.select(request);
        self.variants.iter().find(fits).cloned()
    }

    fn has(&self, variant: &Arc<V>) -> bool {
        self.variants.iter().any(|known| Arc::ptr_eq(known, variant))
    }

    fn is_of_use(&self) -> bool {
        !self.variants.is_empty() || self.passes_until_ms > 0
    }

    fn leave(&self) {
        self.variants.iter().for_each(|variant| variant.left());
    }
}

impl<V: Variant> Weighter<u128, Arc<Resource<V>>> for Weight {
    fn weight(&self, _: &u128, resource: &Arc<Resource<V>>) -> u64 {
        resource.weight() as u64
    }
}

impl<V: Variant> Lifecycle<u128, Arc<Resource<V>>> for Leaving {
    type RequestState = Evicted<V>;

    fn on_evict(&self, evicted: &mut Evicted<V>, _: u128, resource: Arc<Resource<V>>) {
        evicted.0.push(resource);
    }
}

impl<V: Variant> Default for Evicted<V> {
    fn default() -> Self {
        Evicted(Vec::new())
    }
}

impl<V: Variant> Drop for Evicted<V> {
    fn drop(&mut self) {
        self.0.iter().for_each(|resource| resource.leave());
    }
}
