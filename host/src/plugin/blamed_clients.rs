//! The clients whose calls of a plugin have been late or have failed lately, each with a breaker of its own.
//!
//! A call looks for its client without a lock. The lock is taken after a failed call of a client that is not listed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, LATE_WINDOW};
use crate::system::holder_counts::Holder;

/// The clients whose calls of a plugin have been late or have failed lately.
#[derive(Debug)]
pub(super) struct BlamedClients {
    plugin: Arc<str>,
    began: Instant,
    /// The bits of the listed clients: a client whose bit is not set is not listed.
    bits: AtomicU64,
    /// The number of listed clients, which never falls: a new client takes the place of another one.
    listed: AtomicUsize,
    /// The client of each place.
    clients: [AtomicU64; MAX_CLIENTS],
    /// The times of the last failures of the places' clients, in milliseconds since `began`.
    blamed: [AtomicU64; MAX_CLIENTS],
    /// The breakers of the places, which are made for the first failure.
    breakers: OnceLock<Box<[Breaker]>>,
    listing: Mutex<()>,
}

/// The maximum number of clients that have breakers of their own at a time.
pub(super) const MAX_CLIENTS: usize = 64;

impl BlamedClients {
    /// Returns an empty list.
    pub(super) fn new(plugin: Arc<str>, now: Instant) -> Self {
        BlamedClients {
            plugin,
            began: now,
            bits: AtomicU64::new(0),
            listed: AtomicUsize::new(0),
            clients: [const { AtomicU64::new(0) }; MAX_CLIENTS],
            blamed: [const { AtomicU64::new(0) }; MAX_CLIENTS],
            breakers: OnceLock::new(),
            listing: Mutex::default(),
        }
    }

    /// Returns the breaker of a client; `None` if the client is not listed.
    pub(super) fn breaker_of(&self, client: Holder) -> Option<&Breaker> {
        if self.bits.load(Ordering::Relaxed) & bit(client) == 0 {
            return None;
        }
        self.breakers.get()?.get(self.place(client)?)
    }

    /// Lists a client for a failed call, and returns the client's breaker. `None` if the calls of all listed clients are being
    /// rejected, so that none of them can give up its place.
    ///
    /// A late call counts as if it were made at the end of [`LATE_WINDOW`]: clients with cheap failures push out no client
    /// whose next late call is to be told from a first one.
    pub(super) fn blame(&self, client: Holder, is_late: bool, now: Instant) -> Option<&Breaker> {
        let place = self.place(client).or_else(|| self.list(client, now))?;
        let ends = now + if is_late { LATE_WINDOW } else { Duration::ZERO };
        self.blamed[place].fetch_max(self.ms(ends), Ordering::Relaxed);
        self.breakers.get()?.get(place)
    }

    /// Returns the breakers of the listed clients.
    pub(super) fn breakers(&self) -> &[Breaker] {
        let breakers = self.breakers.get().map_or(&[][..], |breakers| breakers);
        &breakers[..self.listed.load(Ordering::Acquire).min(breakers.len())]
    }

    fn place(&self, client: Holder) -> Option<usize> {
        let listed = self.listed.load(Ordering::Acquire);
        self.clients[..listed].iter().position(|other| other.load(Ordering::Acquire) == client.number())
    }

    /// Gives a place to a client that is not listed. A worker that looks for the old client of the place meanwhile may count
    /// one call of it for the new one.
    fn list(&self, client: Holder, now: Instant) -> Option<usize> {
        let _listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = self.place(client) {
            return Some(place);
        }
        let one = |_| Breaker::new(self.plugin.clone(), "one", self.began);
        let breakers = self.breakers.get_or_init(|| (0..MAX_CLIENTS).map(one).collect());
        let listed = self.listed.load(Ordering::Relaxed);
        let place = if listed < MAX_CLIENTS { listed } else { self.replaceable(breakers, now)? };
        breakers[place].reset();
        self.blamed[place].store(0, Ordering::Relaxed);
        self.clients[place].store(client.number(), Ordering::Release);
        self.listed.store(listed.max(place + 1), Ordering::Release);
        let bits = |bits, client: &AtomicU64| bits | bit(Holder::numbered(client.load(Ordering::Relaxed)));
        self.bits.store(self.clients[..listed.max(place + 1)].iter().fold(0, bits), Ordering::Release);
        Some(place)
    }

    /// Returns the place of the client whose last failure is the oldest, of those whose calls are made.
    fn replaceable(&self, breakers: &[Breaker], now: Instant) -> Option<usize> {
        let may_leave = |place: &usize| !breakers[*place].is_rejecting_any(now);
        (0..MAX_CLIENTS).filter(may_leave).min_by_key(|place| self.blamed[*place].load(Ordering::Relaxed))
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }
}

/// Returns the bit of a client, by the upper bits of a product, which depend on all bits of the client's number.
fn bit(client: Holder) -> u64 {
    let mixed = (client.number() ^ (client.number() >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    1 << (mixed >> (u64::BITS - 6))
}

#[cfg(test)]
mod tests {
    use super::super::breaker::{BreakerPermit, CallOutcome, HookKind};
    use super::*;

    fn clients() -> (BlamedClients, Instant) {
        let now = Instant::now();
        (BlamedClients::new("p".into(), now), now)
    }

    fn is_listed(clients: &BlamedClients, number: u64) -> bool {
        clients.breaker_of(Holder::numbered(number)).is_some()
    }

    #[test]
    fn a_client_is_listed_once_its_call_has_failed() {
        let (clients, now) = clients();
        assert!(!is_listed(&clients, 0) && !is_listed(&clients, 7));
        assert!(clients.breakers().is_empty());
        clients.blame(Holder::numbered(7), false, now);
        clients.blame(Holder::numbered(7), false, now);
        assert!(is_listed(&clients, 7) && !is_listed(&clients, 0));
        assert_eq!(clients.breakers().len(), 1);
    }

    #[test]
    fn the_client_with_the_oldest_failure_leaves_for_another_one() {
        let (clients, now) = clients();
        for number in 0..MAX_CLIENTS as u64 {
            clients.blame(Holder::numbered(number), false, now + Duration::from_millis(number));
        }
        clients.blame(Holder::numbered(0), false, now + Duration::from_secs(1));
        clients.blame(Holder::numbered(100), false, now + Duration::from_secs(2));
        assert!(is_listed(&clients, 0) && !is_listed(&clients, 1) && is_listed(&clients, 100));
        assert_eq!(clients.breakers().len(), MAX_CLIENTS);
    }

    #[test]
    fn cheap_failures_of_others_push_out_no_client_with_late_calls() {
        let (clients, now) = clients();
        clients.blame(Holder::numbered(0), true, now);
        for number in 1..=500 {
            clients.blame(Holder::numbered(number), false, now + Duration::from_millis(10 * number));
        }
        assert!(is_listed(&clients, 0) && !is_listed(&clients, 1));
    }

    #[test]
    fn a_client_whose_calls_are_rejected_keeps_its_place() {
        let (clients, now) = clients();
        let spin = |number: u64| {
            let breaker = clients.blame(Holder::numbered(number), true, now).unwrap();
            (0..3).for_each(|_| {
                breaker.settle(BreakerPermit::Usual, HookKind::RequestFilter, CallOutcome::Late, now);
            });
        };
        (0..MAX_CLIENTS as u64).for_each(spin);
        assert!(clients.blame(Holder::numbered(100), true, now).is_none());
        let later = now + Duration::from_secs(2);
        assert!(clients.blame(Holder::numbered(100), true, later).unwrap().is_closed());
    }
}
