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
    /// Invalidations by the hash of the cache key, because there may be many per second.
    changes: HashMap<u128, u64>,
    changes_forgotten: u64,
}

/// The maximum number of purges in the log. A response that was requested before the oldest of them isn't stored.
const MAX_PURGES: usize = 1024;
const MAX_INVALIDATIONS: usize = 64 << 10;

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
    pub fn change(&self, id: u128) {
        let mut late = self.late();
        if late.changes.len() == MAX_INVALIDATIONS {
            late.changes.clear();
            late.changes_forgotten = late.so_far;
        }
        late.so_far += 1;
        let number = late.so_far;
        late.changes.insert(id, number);
    }

    /// Returns the strongest purge that hit a response after `epoch`; an invalidation counts as a hard purge. `None` if
    /// there was none.
    pub fn since(&self, epoch: PurgeEpoch, id: u128, key: &[u8], variant_info: &VariantInfo) -> Option<PurgeKind> {
        let late = self.late();
        let PurgeEpoch(epoch) = epoch;
        let is_forgotten = epoch < late.purges_forgotten || epoch < late.changes_forgotten;
        if is_forgotten || late.changes.get(&id).is_some_and(|number| *number > epoch) {
            return Some(PurgeKind::Hard);
        }
        let since = late.purges.iter().rev().take_while(|(number, _)| *number > epoch);
        since.filter(|(_, purge)| purge.what.is(key, variant_info)).map(|(_, purge)| purge.strength).max()
    }

    fn late(&self) -> MutexGuard<'_, RecentPurges> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let since = |epoch| purges.since(epoch, 7, b"http://a/x", &variant_info);
        let before = purges.moment();
        assert_eq!(since(before), None);
        purges.purge(&Purge { what: PurgeTarget::Tag("red".into()), strength: PurgeKind::Soft });
        assert_eq!((since(before), since(purges.moment())), (Some(PurgeKind::Soft), None));
        let between = purges.moment();
        purges.change(7);
        assert_eq!(
            (since(before), since(between), since(purges.moment())),
            (Some(PurgeKind::Hard), Some(PurgeKind::Hard), None)
        );
        let after = purges.moment();
        for id in 0..MAX_PURGES as u128 * 2 {
            purges.change(id + 100);
        }
        assert_eq!(since(after), None, "changes of others push out nothing");
        for _ in 0..=MAX_PURGES {
            purges.purge(&Purge { what: PurgeTarget::Tag("none".into()), strength: PurgeKind::Hard });
        }
        assert_eq!(since(after), Some(PurgeKind::Hard));
        let after = purges.moment();
        for id in 0..=MAX_INVALIDATIONS as u128 {
            purges.change(id + 100);
        }
        assert_eq!(since(after), Some(PurgeKind::Hard));
    }
}
