//! The index of stored responses, in memory, for all workers: sharded, and within a budget of bytes. What is read once
//! doesn't drive out what is read again and again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use quick_cache::sync::{Cache, DefaultLifecycle, EntryAction, EntryResult};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::flight::Flights;
use super::object::Object;
use super::vary::Selectors;

/// Stored responses.
pub struct Store {
    index: Cache<u128, Arc<Resource>, Weight>,
    pub flights: Arc<Flights>,
    /// Nobody who doesn't know it can make two keys fall together.
    seed: u64,
    purges: Mutex<Purges>,
    /// Responses that were taken out or made stale by a purge or a change.
    pub purged: AtomicU64,
}

/// All that is stored under one key.
#[derive(Clone)]
struct Resource {
    key: Box<[u8]>,
    /// The newest first.
    variants: SmallVec<[Arc<Object>; 1]>,
    /// Until then its responses are taken for nobody else's, in milliseconds of Unix time.
    passes_until_ms: u64,
}

/// What a request finds.
pub enum Found {
    Nothing,
    /// Nothing that fits the request, but for others there is.
    Others,
    /// This.
    Object(Arc<Object>),
    /// That its response will most likely be nobody else's.
    Passes,
}

/// What is purged, and how.
#[derive(Clone, Debug)]
pub struct Purge {
    pub what: Purged,
    /// It stays, as stale.
    pub soft: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purged {
    All,
    /// A URI as it was asked for, such as `https://example.org/a?b`.
    Uri(String),
    /// All URIs that begin so.
    Prefix(String),
    Tag(String),
    Key(u128),
}

/// Purges of late, for responses that were asked for before and come after.
#[derive(Default)]
struct Purges {
    so_far: u64,
    late: VecDeque<Purge>,
}

/// A time, as the store sees it: purges before and after.
#[derive(Clone, Copy, Debug)]
pub struct Moment(u64);

/// What the store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the memory, in bytes.
    pub memory: u64,
    /// The longest content, in bytes.
    pub object: u64,
}

impl Default for Limits {
    /// What a small machine can spare, and a page with all that belongs to it.
    fn default() -> Self {
        Limits { memory: 256 << 20, object: 16 << 20 }
    }
}

#[derive(Clone)]
struct Weight;

/// Different responses under one key; the oldest gives way.
const MOST_VARIANTS: usize = 64;

/// For so long a response that couldn't be stored is a reason not to wait for another.
const PASSING: Duration = Duration::from_secs(10);

/// Purges that are remembered; a response that is on its way for longer isn't stored.
const LATE: usize = 1024;

/// What the index takes for a key, besides its objects.
const OVERHEAD: usize = size_of::<Resource>() + 64;

/// For the index to choose how finely it is sharded.
const TYPICAL: usize = 16 << 10;

impl Weighter<u128, Arc<Resource>> for Weight {
    fn weight(&self, _: &u128, resource: &Arc<Resource>) -> u64 {
        let variants: usize = resource.variants.iter().map(|object| object.weight()).sum();
        (variants + resource.key.len() + OVERHEAD) as u64
    }
}

impl Store {
    /// An empty store for so many bytes.
    pub fn new(bytes: u64) -> Arc<Self> {
        let mut seed = [0; 8];
        // Keys are compared whole, so without random numbers only the speed is at stake.
        let _ = getrandom::fill(&mut seed);
        let options = OptionsBuilder::new()
            .weight_capacity(bytes)
            .estimated_items_capacity((bytes as usize / TYPICAL).max(64))
            .shards(PARTS)
            .build();
        let index = match options {
            Ok(options) => {
                Cache::with_options(options, Weight, DefaultHashBuilder::default(), DefaultLifecycle::default())
            }
            Err(_) => Cache::with_weighter(64, bytes, Weight),
        };
        let (flights, purges, purged) = (Flights::new(), Mutex::default(), AtomicU64::new(0));
        Arc::new(Store { index, flights, seed: u64::from_ne_bytes(seed), purges, purged })
    }

    /// The name of a key in the index.
    pub fn id(&self, key: &[u8]) -> u128 {
        xxh3_128_with_seed(key, self.seed)
    }

    /// The name of a fetch: of all for the same response, as far as can be told before it.
    pub fn flight(&self, id: u128, scope: u64, selectors: &Selectors) -> u128 {
        let mut name = selectors.bytes();
        name.extend(id.to_ne_bytes());
        name.extend(scope.to_ne_bytes());
        xxh3_128_with_seed(&name, self.seed)
    }

    /// The name of a route's responses from an upstream.
    pub fn scope(&self, route: &str, upstream: &str) -> u64 {
        xxh3_64_with_seed(route.as_bytes(), xxh3_64_with_seed(upstream.as_bytes(), self.seed))
    }

    /// What fits a request; `now_ms` is Unix time in milliseconds.
    pub fn find(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap, now_ms: u64) -> Found {
        let Some(resource) = self.index.get(&id).filter(|resource| *resource.key == *key) else {
            return Found::Nothing;
        };
        let fits = |object: &&Arc<Object>| object.scope == scope && object.selectors.select(request);
        match resource.variants.iter().find(fits) {
            Some(object) => Found::Object(object.clone()),
            None if resource.passes_until_ms > now_ms => Found::Passes,
            None if resource.variants.is_empty() => Found::Nothing,
            None => Found::Others,
        }
    }

    /// The request fields that responses under a key depended on so far, with a request's values.
    pub fn selectors(&self, id: u128, scope: u64, request: &HeaderMap) -> Selectors {
        let resource = self.index.peek(&id);
        let latest = resource.as_ref().and_then(|known| known.variants.iter().find(|object| object.scope == scope));
        latest.map_or_else(Selectors::default, |object| Selectors::of(object.selectors.names(), request))
    }

    /// Stores a response that was asked for at a moment, in place of the one that it takes the place of.
    pub fn insert(&self, id: u128, key: &[u8], object: Arc<Object>, asked: Moment) {
        match self.purged_since(asked, id, key, &object) {
            Some(false) => return,
            Some(true) => object.purge(),
            None => {}
        }
        self.update(id, key, |resource| {
            resource.passes_until_ms = 0;
            let same = |old: &Arc<Object>| old.scope == object.scope && old.selectors == object.selectors;
            resource.variants.retain(|old| !same(old));
            resource.variants.truncate(MOST_VARIANTS - 1);
            resource.variants.insert(0, object);
        });
    }

    /// Takes a response out.
    pub fn remove(&self, id: u128, key: &[u8], object: &Arc<Object>) {
        self.update(id, key, |resource| resource.variants.retain(|known| !Arc::ptr_eq(known, object)));
    }

    /// Remembers for a while that a response couldn't be stored.
    pub fn pass(&self, id: u128, key: &[u8], now_ms: u64) {
        self.update(id, key, |resource| resource.passes_until_ms = now_ms + PASSING.as_millis() as u64);
    }

    fn update(&self, id: u128, key: &[u8], change: impl FnOnce(&mut Resource)) {
        let mut change = Some(change);
        let mut changed = |old: Option<&Resource>| {
            let mut resource = match old {
                Some(old) if *old.key == *key => old.clone(),
                // Another key that falls on the same place gives way.
                _ => Resource { key: key.into(), variants: SmallVec::new(), passes_until_ms: 0 },
            };
            if let Some(change) = change.take() {
                change(&mut resource);
            }
            Arc::new(resource)
        };
        let entry = self.index.entry(&id, None, |_, resource| {
            *resource = changed(Some(resource));
            let is_of_use = !resource.variants.is_empty() || resource.passes_until_ms > 0;
            if is_of_use { EntryAction::Retain(()) } else { EntryAction::Remove }
        });
        if let EntryResult::Vacant(place) = entry {
            let _ = place.insert(changed(None));
        }
    }
}

/// The memory is divided into so many parts with a lock each: enough to keep workers apart, and few enough for a part to
/// hold a large object.
pub const PARTS: usize = 16;

/// Of purges.
impl Store {
    /// This moment.
    pub fn moment(&self) -> Moment {
        Moment(self.purges.lock().unwrap_or_else(PoisonError::into_inner).so_far)
    }

    /// Purges; gives how many responses that were. Looks through all that is stored, shard by shard, unless a key is
    /// given.
    pub fn purge(&self, purge: &Purge) -> usize {
        {
            let mut purges = self.purges.lock().unwrap_or_else(PoisonError::into_inner);
            purges.so_far += 1;
            purges.late.push_back(purge.clone());
            if purges.late.len() > LATE {
                purges.late.pop_front();
            }
        }
        let purged = match purge.what {
            Purged::Key(id) => self.purge_one(id, purge),
            Purged::All if !purge.soft => {
                let purged = self.index.iter().map(|(_, resource)| resource.variants.len()).sum();
                self.index.clear();
                purged
            }
            _ => self.purge_many(purge),
        };
        self.purged.fetch_add(purged as u64, Ordering::Relaxed);
        purged
    }

    fn purge_one(&self, id: u128, purge: &Purge) -> usize {
        let Some(resource) = self.index.peek(&id) else { return 0 };
        if purge.soft {
            resource.variants.iter().for_each(|object| object.purge());
        } else {
            self.index.remove(&id);
        }
        resource.variants.len()
    }

    fn purge_many(&self, purge: &Purge) -> usize {
        let concerned: Vec<(u128, Arc<Resource>)> = self
            .index
            .iter()
            .filter(|(id, resource)| resource.variants.iter().any(|object| purge.what.is(*id, &resource.key, object)))
            .collect();
        let mut purged = 0;
        for (id, resource) in concerned {
            for object in resource.variants.iter().filter(|object| purge.what.is(id, &resource.key, object)) {
                purged += 1;
                if purge.soft {
                    object.purge();
                } else {
                    self.remove(id, &resource.key, object);
                }
            }
        }
        purged
    }

    /// Whether a response was purged while it was on its way, and if so whether softly.
    fn purged_since(&self, asked: Moment, id: u128, key: &[u8], object: &Object) -> Option<bool> {
        let purges = self.purges.lock().unwrap_or_else(PoisonError::into_inner);
        let since = purges.so_far - asked.0;
        if since > purges.late.len() as u64 {
            return Some(false);
        }
        let mut soft = None;
        for purge in purges.late.iter().rev().take(since as usize).filter(|purge| purge.what.is(id, key, object)) {
            soft = Some(soft.unwrap_or(true) && purge.soft);
        }
        soft
    }
}

/// For people.
impl Store {
    /// Another budget; what is beyond it goes.
    pub fn resize(&self, bytes: u64) {
        if self.index.capacity() != bytes {
            self.index.set_capacity(bytes);
        }
    }

    /// The budget, in bytes.
    pub fn capacity(&self) -> u64 {
        self.index.capacity()
    }

    /// The longest that fits at all.
    pub fn most(&self) -> u64 {
        self.index.shard_capacity()
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.index.len()
    }

    /// What they take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.index.weight()
    }
}

impl Purged {
    fn is(&self, id: u128, key: &[u8], object: &Object) -> bool {
        let uri = || object.uri.as_deref().map_or(key, str::as_bytes);
        match self {
            Purged::All => true,
            Purged::Uri(wanted) => uri() == wanted.as_bytes(),
            Purged::Prefix(wanted) => uri().starts_with(wanted.as_bytes()),
            Purged::Tag(wanted) => object.rules.tags.iter().any(|tag| **tag == **wanted),
            Purged::Key(wanted) => id == *wanted,
        }
    }
}

#[cfg(test)]
mod tests;
