//! The log of recent purges, and the invalidations of the keys of responses on their way: for responses that were requested
//! before and arrive after.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::variant::{PurgeKind, VariantInfo};

/// A purge: its target and its kind.
#[derive(Clone, Debug)]
pub struct Purge {
    pub what: PurgeTarget,
    pub strength: PurgeKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurgeTarget {
    All,
    /// The URI as requested or as in the cache key, such as `https://example.org/a?b`.
    Uri(String),
    /// All URIs that begin with a prefix.
    Prefix(String),
    Tag(String),
}

/// The moment at which the response of a cache key was requested. Invalidations of the key are recorded as long as such a
/// moment exists, and those of no other key: requests that invalidate ever other keys take no memory, and no invalidation
/// is forgotten.
#[derive(Clone, Debug)]
pub struct PurgeEpoch {
    /// The number of purges before.
    purges: u64,
    /// The number of recorded invalidations of the key before; `None` if the key was invalidated after the moment.
    invalidations: Option<u64>,
    key: Arc<WatchedKey>,
}

/// The log of recent purges, with the keys that are watched for invalidations.
#[derive(Debug, Default)]
pub struct PurgeLog {
    purges: Mutex<RecentPurges>,
    watched: Arc<WatchedKeys>,
    /// The invalidations since the scan of the disk has begun; `None` while no scan is under way.
    scanned: Mutex<Option<KeyFilter>>,
}

#[derive(Debug, Default)]
struct RecentPurges {
    so_far: u64,
    purges: VecDeque<(u64, Purge)>,
    /// The number of the last purge that was dropped from the log.
    forgotten: u64,
}

/// The keys whose invalidations are recorded, by their hash.
#[derive(Debug, Default)]
struct WatchedKeys([Mutex<HashMap<u128, Weak<WatchedKey>>>; SHARDS]);

/// A key whose invalidations are recorded.
#[derive(Debug)]
struct WatchedKey {
    id: u128,
    invalidations: AtomicU64,
    watched: Arc<WatchedKeys>,
}

/// A scan for stored responses of earlier processes. Their keys are not known before, so that all invalidations meanwhile
/// are recorded.
#[derive(Debug)]
pub struct PurgeScan {
    log: Arc<PurgeLog>,
    /// The number of purges before.
    purges: u64,
}

/// A set of keys by their hash that may have some keys which were not added (a Bloom filter).
#[derive(Debug)]
struct KeyFilter(Vec<u64>);

/// The maximum number of purges in the log. A response that was requested before the oldest of them isn't stored.
const MAX_PURGES: usize = 1024;

/// The number of locks of [`WatchedKeys`], as of the fetches in progress.
const SHARDS: usize = 16;

/// The binary logarithm of the bits of a [`KeyFilter`], which takes 4 MiB: two million invalidations during a scan cost one
/// stored response in a hundred.
const FILTER_BITS_LOG2: u32 = 25;

// === PurgeLog ===

impl PurgeLog {
    /// Returns the current moment for a response under a key.
    pub fn moment(&self, id: u128) -> PurgeEpoch {
        let key = self.watched.watch(id);
        PurgeEpoch { purges: self.late().so_far, invalidations: Some(key.invalidations.load(Ordering::SeqCst)), key }
    }

    /// Begins a scan for stored responses, which ends once the result is dropped.
    pub fn begin_scan(self: &Arc<Self>) -> PurgeScan {
        *self.scanned() = Some(KeyFilter::default());
        PurgeScan { log: self.clone(), purges: self.late().so_far }
    }

    /// Records a purge.
    pub fn purge(&self, purge: &Purge) {
        let mut late = self.late();
        late.so_far += 1;
        let number = late.so_far;
        late.purges.push_back((number, purge.clone()));
        if late.purges.len() > MAX_PURGES
            && let Some((first, _)) = late.purges.pop_front()
        {
            late.forgotten = first;
        }
    }

    /// Records the invalidation of a cache key.
    pub fn change(&self, id: u128) {
        // First: a scan watches a key before it looks here.
        if let Some(filter) = &mut *self.scanned() {
            filter.add(id);
        }
        if let Some(key) = self.watched.find(id) {
            key.invalidations.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Returns the strongest purge that hit a response under the key of `epoch` since then; an invalidation counts as a hard
    /// purge. `None` if there was none.
    pub fn since(&self, epoch: &PurgeEpoch, key: &[u8], variant_info: &VariantInfo) -> Option<PurgeKind> {
        if epoch.invalidations != Some(epoch.key.invalidations.load(Ordering::SeqCst)) {
            return Some(PurgeKind::Hard);
        }
        let late = self.late();
        if epoch.purges < late.forgotten {
            return Some(PurgeKind::Hard);
        }
        let since = late.purges.iter().rev().take_while(|(number, _)| *number > epoch.purges);
        since.filter(|(_, purge)| purge.what.is(key, variant_info)).map(|(_, purge)| purge.strength).max()
    }

    fn late(&self) -> MutexGuard<'_, RecentPurges> {
        self.purges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scanned(&self) -> MutexGuard<'_, Option<KeyFilter>> {
        self.scanned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === WatchedKeys ===

impl WatchedKeys {
    fn watch(self: &Arc<Self>, id: u128) -> Arc<WatchedKey> {
        let mut shard = self.shard(id);
        if let Some(key) = shard.get(&id).and_then(Weak::upgrade) {
            return key;
        }
        let key = Arc::new(WatchedKey { id, invalidations: AtomicU64::new(0), watched: self.clone() });
        shard.insert(id, Arc::downgrade(&key));
        key
    }

    /// Returns a key that is watched. The lock is free by then: the result may be the last owner of the key, whose drop
    /// takes the lock.
    fn find(&self, id: u128) -> Option<Arc<WatchedKey>> {
        self.shard(id).get(&id).and_then(Weak::upgrade)
    }

    fn shard(&self, id: u128) -> MutexGuard<'_, HashMap<u128, Weak<WatchedKey>>> {
        self.0[id as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WatchedKey {
    fn drop(&mut self) {
        let mut shard = self.watched.shard(self.id);
        // The key may be watched anew.
        if shard.get(&self.id).is_some_and(|known| std::ptr::eq(known.as_ptr(), self)) {
            shard.remove(&self.id);
        }
    }
}

// === PurgeScan ===

impl PurgeScan {
    /// Returns the moment at which the scan has begun, for a stored response that it has found.
    pub fn moment(&self, id: u128) -> PurgeEpoch {
        let now = self.log.moment(id);
        let is_invalidated = self.log.scanned().as_ref().is_some_and(|filter| filter.may_have(id));
        let invalidations = now.invalidations.filter(|_| !is_invalidated);
        PurgeEpoch { purges: self.purges, invalidations, ..now }
    }
}

impl Drop for PurgeScan {
    fn drop(&mut self) {
        *self.log.scanned() = None;
    }
}

// === KeyFilter ===

impl Default for KeyFilter {
    fn default() -> Self {
        KeyFilter(vec![0; 1 << (FILTER_BITS_LOG2 - u64::BITS.ilog2())])
    }
}

impl KeyFilter {
    fn add(&mut self, id: u128) {
        for (word, bit) in KeyFilter::bits(id) {
            self.0[word] |= bit;
        }
    }

    fn may_have(&self, id: u128) -> bool {
        KeyFilter::bits(id).into_iter().all(|(word, bit)| self.0[word] & bit != 0)
    }

    /// Returns the bits of a key, each by the index of its word. The hash of a key has a secret seed, so that no client can
    /// choose keys that share bits.
    fn bits(id: u128) -> [(usize, u64); 2] {
        [id as u64, (id >> 64) as u64].map(|half| {
            let bit = half % (1 << FILTER_BITS_LOG2);
            ((bit / u64::from(u64::BITS)) as usize, 1 << (bit % u64::from(u64::BITS)))
        })
    }
}

// === PurgeTarget ===

impl PurgeTarget {
    /// Returns whether a response is a target of the purge. The first line of a cache key is also a URI: that of all
    /// requests which differ only in ignored query parameters.
    pub fn is(&self, key: &[u8], variant_info: &VariantInfo) -> bool {
        let of_key = || key.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let of_either = |is: &dyn Fn(&[u8]) -> bool| {
            variant_info.uri.as_deref().is_some_and(|uri| is(uri.as_bytes())) || is(of_key())
        };
        match self {
            PurgeTarget::All => true,
            PurgeTarget::Uri(wanted) => of_either(&|uri| uri == wanted.as_bytes()),
            PurgeTarget::Prefix(wanted) => of_either(&|uri| uri.starts_with(wanted.as_bytes())),
            PurgeTarget::Tag(wanted) => variant_info.tags.iter().any(|tag| **tag == **wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"http://a/x\nplugin:cache";

    fn tagged(tag: &str) -> VariantInfo {
        VariantInfo::new(1, Default::default(), Some("http://a/x?utm=1&b=2".into()), [tag.into()].into())
    }

    fn watched(purges: &PurgeLog) -> usize {
        purges.watched.0.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }

    #[test]
    fn a_uri_is_that_of_the_request_or_of_the_key() {
        let (key, variant_info) = (b"http://a/x?b=2\nlang:de", tagged("red"));
        for uri in ["http://a/x?utm=1&b=2", "http://a/x?b=2"] {
            assert!(PurgeTarget::Uri(uri.into()).is(key, &variant_info), "{uri}");
        }
        assert!(!PurgeTarget::Uri("http://a/x".into()).is(key, &variant_info));
        assert!(PurgeTarget::Prefix("http://a/x?b".into()).is(key, &variant_info));
        assert!(!PurgeTarget::Prefix("http://b/".into()).is(key, &variant_info));
    }

    #[test]
    fn later_purges_are_known_and_forgotten_ones_count_as_purges() {
        let (purges, variant_info) = (PurgeLog::default(), tagged("red"));
        let since = |epoch: &PurgeEpoch| purges.since(epoch, KEY, &variant_info);
        let before = purges.moment(7);
        assert_eq!(since(&before), None);
        purges.purge(&Purge { what: PurgeTarget::Tag("red".into()), strength: PurgeKind::Soft });
        assert_eq!((since(&before), since(&purges.moment(7))), (Some(PurgeKind::Soft), None));
        let between = purges.moment(7);
        purges.change(7);
        let hard = Some(PurgeKind::Hard);
        assert_eq!((since(&before), since(&between), since(&purges.moment(7))), (hard, hard, None));
        let after = purges.moment(7);
        for _ in 0..MAX_PURGES {
            purges.purge(&Purge { what: PurgeTarget::Tag("none".into()), strength: PurgeKind::Hard });
        }
        assert_eq!(since(&after), None);
        purges.purge(&Purge { what: PurgeTarget::Tag("none".into()), strength: PurgeKind::Hard });
        purges.purge(&Purge { what: PurgeTarget::Tag("none".into()), strength: PurgeKind::Hard });
        assert_eq!(since(&after), hard);
    }

    #[test]
    fn invalidations_of_other_keys_are_neither_recorded_nor_a_reason_to_forget() {
        let (purges, variant_info) = (PurgeLog::default(), VariantInfo::default());
        let since = |epoch: &PurgeEpoch| purges.since(epoch, KEY, &variant_info);
        let (changed, untouched) = (purges.moment(7), purges.moment(8));
        purges.change(7);
        (100..200_000).for_each(|id| purges.change(id));
        assert_eq!((since(&changed), since(&untouched)), (Some(PurgeKind::Hard), None));
        assert_eq!(watched(&purges), 2);
        let again = purges.moment(7);
        drop(changed);
        assert_eq!(since(&again), None, "the key is watched as long as one of its moments exists");
        purges.change(7);
        assert_eq!(since(&again.clone()), Some(PurgeKind::Hard));
        drop((again, untouched));
        assert_eq!(watched(&purges), 0);
    }

    #[test]
    fn a_scan_finds_what_was_invalidated_or_purged_since_it_began() {
        let (purges, variant_info) = (Arc::new(PurgeLog::default()), tagged("red"));
        let since = |epoch: &PurgeEpoch| purges.since(epoch, KEY, &variant_info);
        // As even as the hashes of keys.
        let id = |number: u128| number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        purges.change(id(1));
        let scan = purges.begin_scan();
        purges.change(id(2));
        (100..100_000).for_each(|number| purges.change(id(number)));
        assert_eq!([1, 2].map(|number| since(&scan.moment(id(number)))), [None, Some(PurgeKind::Hard)]);
        let found = scan.moment(id(3));
        purges.change(id(3));
        assert_eq!(since(&found), Some(PurgeKind::Hard));
        purges.purge(&Purge { what: PurgeTarget::Tag("red".into()), strength: PurgeKind::Soft });
        assert_eq!(since(&scan.moment(id(4))), Some(PurgeKind::Soft));
        drop(scan);
        assert!(purges.scanned().is_none());
    }
}
