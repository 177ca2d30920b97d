//! Counts of things in use, of which each client may have a part, so that none can take those that others need.

use std::sync::atomic::{AtomicU32, Ordering};

use super::holder_counts::{Holder, HolderCounts};

/// The things of one kind that are in use, by client. No lock is taken to count one.
#[derive(Debug)]
pub struct ClientParts {
    all: AtomicU32,
    by_client: HolderCounts,
    /// The number of things up to which a client has few: it has them whatever its part is.
    few: u64,
}

impl ClientParts {
    /// Returns counts of which none is in use. A client has `few` whatever its part is.
    pub fn new(few: u32) -> Self {
        ClientParts { all: AtomicU32::new(0), by_client: HolderCounts::default(), few: few.into() }
    }

    /// Counts one more for a client. Returns `false`, and counts none, if `max` are in use or the client has its part.
    pub fn take(&self, client: Holder, max: u32) -> bool {
        let more = |count: u32| (count < max).then_some(count + 1);
        let Ok(before) = self.all.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more) else { return false };
        let own = self.by_client.add(client, 1);
        let is_within = self.is_within(own, before + 1, max);
        if !is_within {
            self.give_back(client);
        }
        is_within
    }

    /// Counts one more for a client, even if the client has its part.
    pub fn count(&self, client: Holder) {
        self.all.fetch_add(1, Ordering::SeqCst);
        self.by_client.add(client, 1);
    }

    /// Uncounts one that [`ClientParts::take`] or [`ClientParts::count`] has counted for a client.
    pub fn give_back(&self, client: Holder) {
        self.by_client.remove(client, 1);
        self.all.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether one of `max` is left to a client.
    pub fn leave_one(&self, client: Holder, max: u32) -> bool {
        let all = self.all();
        all < max && self.is_within(self.of(client) + 1, all + 1, max)
    }

    /// Whether a client has its part of `max`, while others have room.
    pub fn hold_back(&self, client: Holder, max: u32) -> bool {
        self.all() < max && !self.leave_one(client, max)
    }

    /// Returns the number of all that are in use.
    pub fn all(&self) -> u32 {
        self.all.load(Ordering::SeqCst)
    }

    /// Returns the number of those that a client has.
    pub fn of(&self, client: Holder) -> u64 {
        self.by_client.of(client)
    }

    /// Whether a client with `own` of `all` keeps within its part: three quarters of what the others leave of `max`.
    fn is_within(&self, own: u64, all: u32, max: u32) -> bool {
        let left = u64::from(max).saturating_sub(u64::from(all).saturating_sub(own));
        own <= self.few || own <= left - left / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_leaves_a_quarter_to_others() {
        let parts = ClientParts::new(4);
        let heavy = Holder::numbered(1);
        assert_eq!((0..64).filter(|_| parts.take(heavy, 64)).count(), 48);
        assert!(!parts.leave_one(heavy, 64));
        // Another may be counted with the heavy one.
        let light: Vec<Holder> = (2..).map(Holder::numbered).filter(|client| parts.of(*client) == 0).take(4).collect();
        assert!(light.iter().all(|client| parts.leave_one(*client, 64) && parts.take(*client, 64)));
        (0..48).for_each(|_| parts.give_back(heavy));
        light.into_iter().for_each(|client| parts.give_back(client));
        assert_eq!((parts.all(), parts.of(heavy)), (0, 0));
    }

    #[test]
    fn few_are_for_one_client_too() {
        let taken = |parts: ClientParts| (0..6).filter(|_| parts.take(Holder::UNKNOWN, 4)).count();
        assert_eq!((taken(ClientParts::new(4)), taken(ClientParts::new(0))), (4, 3));
        assert!(ClientParts::new(0).take(Holder::UNKNOWN, 1));
    }
}
