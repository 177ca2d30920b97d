//! The log of recent purges and invalidations, for responses that were requested before a purge and arrive after it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// A position in the log of purges and invalidations.
#[derive(Clone, Copy, Debug)]
pub struct PurgeEpoch(u64);

/// The log of recent purges and invalidations.
#[derive(Debug, Default)]
pub struct PurgeLog(Mutex<RecentPurges>);

#[derive(Debug, Default)]
struct RecentPurges {
    so_far: u64,
    purges: VecDeque<(u64, Purge)>,
    /// The number of the last purge that was dropped from the log.
    purges_forgotten: u64,
    /// The invalidations by plugin: by the last line of the keys. There are as many as manifests have had caches.
    changes: HashMap<Box<[u8]>, Invalidations>,
}

/// The recent invalidations of one plugin's keys, by the hash of the key, because there may be many per second. When the
/// newer half is full, the older one is forgotten.
#[derive(Debug, Default)]
struct Invalidations {
    newer: HashMap<u128, u64>,
    older: HashMap<u128, u64>,
    /// The position of the log at which the newer half began.
    newer_since: u64,
    /// The position of the log up to which invalidations are forgotten.
    forgotten: u64,
}

/// The maximum number of purges in the log. A response that was requested before the oldest of them isn't stored.
const MAX_PURGES: usize = 1024;

/// The maximum number of invalidations of a plugin in half of the log. A plugin's response that was requested before the
/// oldest one isn't stored.
const MAX_INVALIDATIONS: usize = 32 << 10;

impl PurgeLog {
    /// Returns the current position in the log.
    pub fn moment(&self) -> PurgeEpoch {
        PurgeEpoch(self.late().so_far)
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
            late.purges_forgotten = first;
        }
    }

    /// Records the invalidation of a cache key.
    pub fn change(&self, id: u128, key: &[u8]) {
        let mut late = self.late();
        late.so_far += 1;
        let (number, owner) = (late.so_far, owner(key));
        match late.changes.get_mut(owner) {
            Some(changes) => changes.add(id, number),
            None => late.changes.entry(owner.into()).or_default().add(id, number),
        }
    }

    /// Returns the strongest purge that hit a response after `epoch`; an invalidation counts as a hard purge. `None` if
    /// there was none.
    pub fn since(&self, epoch: PurgeEpoch, id: u128, key: &[u8], variant_info: &VariantInfo) -> Option<PurgeKind> {
        let late = self.late();
        let PurgeEpoch(epoch) = epoch;
        let is_changed = || late.changes.get(owner(key)).is_some_and(|changes| changes.may_have(id, epoch));
        if epoch < late.purges_forgotten || is_changed() {
            return Some(PurgeKind::Hard);
        }
        let since = late.purges.iter().rev().take_while(|(number, _)| *number > epoch);
        since.filter(|(_, purge)| purge.what.is(key, variant_info)).map(|(_, purge)| purge.strength).max()
    }

    fn late(&self) -> MutexGuard<'_, RecentPurges> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Invalidations {
    fn add(&mut self, id: u128, number: u64) {
        if self.newer.len() == MAX_INVALIDATIONS {
            self.older = std::mem::take(&mut self.newer);
            self.forgotten = self.newer_since;
            self.newer_since = number - 1;
        }
        self.newer.insert(id, number);
    }

    /// Whether a key was invalidated after `epoch`, or may have been, because so much is forgotten.
    fn may_have(&self, id: u128, epoch: u64) -> bool {
        let last = self.newer.get(&id).or_else(|| self.older.get(&id));
        epoch < self.forgotten || last.is_some_and(|number| *number > epoch)
    }
}

/// Returns the part of a cache key that says whose it is: the last line.
fn owner(key: &[u8]) -> &[u8] {
    key.rsplit(|byte| *byte == b'\n').next().unwrap_or_default()
}

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

    fn tagged(tag: &str) -> VariantInfo {
        VariantInfo::new(1, Default::default(), Some("http://a/x?utm=1&b=2".into()), [tag.into()].into())
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
        let key = b"http://a/x\nplugin:cache";
        let since = |epoch| purges.since(epoch, 7, key, &variant_info);
        let before = purges.moment();
        assert_eq!(since(before), None);
        purges.purge(&Purge { what: PurgeTarget::Tag("red".into()), strength: PurgeKind::Soft });
        assert_eq!((since(before), since(purges.moment())), (Some(PurgeKind::Soft), None));
        let between = purges.moment();
        purges.change(7, key);
        assert_eq!(
            (since(before), since(between), since(purges.moment())),
            (Some(PurgeKind::Hard), Some(PurgeKind::Hard), None)
        );
        let after = purges.moment();
        for id in 0..MAX_PURGES as u128 * 2 {
            purges.change(id + 100, key);
        }
        assert_eq!(since(after), None, "changes of others push out nothing");
        for _ in 0..=MAX_PURGES {
            purges.purge(&Purge { what: PurgeTarget::Tag("none".into()), strength: PurgeKind::Hard });
        }
        assert_eq!(since(after), Some(PurgeKind::Hard));
    }

    #[test]
    fn invalidations_are_forgotten_by_halves_and_for_their_plugin_alone() {
        let (purges, variant_info) = (PurgeLog::default(), VariantInfo::default());
        let since = |epoch, id, key: &[u8]| purges.since(epoch, id, key, &variant_info);
        let (key, others): (&[u8], &[u8]) = (b"http://a/x\nplugin:cache", b"http://a/x\nplugin:evil");
        purges.change(7, key);
        let begun = purges.moment();
        for id in 0..4 * MAX_INVALIDATIONS as u128 {
            purges.change(id + 100, others);
        }
        assert_eq!(since(begun, 8, key), None, "invalidations of another plugin are no reason to forget");
        assert_eq!(since(begun, 8, others), Some(PurgeKind::Hard));
        // The first one fills the newer half with those of the loop; the last one begins another half.
        for id in 1..MAX_INVALIDATIONS as u128 {
            purges.change(id + 100, key);
        }
        let (middle, last) = (purges.moment(), 100 + MAX_INVALIDATIONS as u128);
        purges.change(last, key);
        assert_eq!((since(begun, 8, key), since(middle, 8, key)), (None, None), "all are known");
        assert_eq!((since(middle, last, key), since(begun, 101, key)), (Some(PurgeKind::Hard), Some(PurgeKind::Hard)));
        for id in 1..=MAX_INVALIDATIONS as u128 {
            purges.change(id + last, key);
        }
        assert_eq!(since(begun, 8, key), Some(PurgeKind::Hard), "the older half is forgotten");
        assert_eq!((since(middle, 8, key), since(middle, last, key)), (None, Some(PurgeKind::Hard)));
    }
}
