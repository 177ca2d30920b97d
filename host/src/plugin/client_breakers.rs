//! The circuit breakers of a plugin version: one for each client whose calls were late or have failed lately. The calls that are
//! made for other clients are not stopped. A plugin that is late for all is bounded by its share of each
//! worker's time.
//!
//! A call looks for its client without a lock. The lock is taken after a failed call of a client that is not listed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, BreakerPermit, BreakerState, CallOutcome, HookKind, LATE_WINDOW};
use crate::system::holder_counts::Holder;

/// The circuit breakers of a plugin version.
#[derive(Debug)]
pub struct ClientBreakers {
    plugin: Arc<str>,
    began: Instant,
    /// The bits of the listed clients: a client whose bit is not set is not listed.
    bits: AtomicU64,
    /// The number of listed clients, which never falls: a new client takes the place of another one.
    listed: AtomicUsize,
    /// The client of each place.
    clients: [AtomicU64; MAX_CLIENTS],
    /// The times of the last failures of the places' clients, in milliseconds since `began`.
    failed: [AtomicU64; MAX_CLIENTS],
    /// The breakers of the places, which are made for the first failure.
    breakers: OnceLock<Box<[Breaker]>>,
    listing: Mutex<()>,
}

/// The permission of a call for a client.
#[derive(Clone, Copy, Debug)]
pub struct CallPermit {
    pub(super) client: Holder,
    of_breaker: BreakerPermit,
}

/// The maximum number of clients that have breakers at a time.
const MAX_CLIENTS: usize = 64;

impl ClientBreakers {
    /// Returns breakers for no client yet.
    pub(super) fn new(plugin: Arc<str>, now: Instant) -> Self {
        ClientBreakers {
            plugin,
            began: now,
            bits: AtomicU64::new(0),
            listed: AtomicUsize::new(0),
            clients: [const { AtomicU64::new(0) }; MAX_CLIENTS],
            failed: [const { AtomicU64::new(0) }; MAX_CLIENTS],
            breakers: OnceLock::new(),
            listing: Mutex::default(),
        }
    }

    /// Whether calls for a client may be made without asking [`ClientBreakers::admit`].
    pub(super) fn are_closed(&self, client: Holder) -> bool {
        self.breaker(client).is_none_or(Breaker::is_closed)
    }

    /// Returns the permission for a call of a hook for a client; `None` if no call may be made.
    pub(super) fn admit(&self, hook: HookKind, client: Holder, now: Instant) -> Option<CallPermit> {
        let of_breaker = self.breaker(client).map_or(Some(BreakerPermit::Usual), |breaker| breaker.admit(hook, now))?;
        Some(CallPermit { client, of_breaker })
    }

    /// Returns the permission for the further calls of a body that has begun with a permission. A body that began as a trial
    /// of its hook is one until it has ended.
    pub(super) fn further(&self, begun: CallPermit) -> CallPermit {
        let of_breaker = match begun.of_breaker {
            BreakerPermit::HookTrial(_) => begun.of_breaker,
            _ => self.breaker(begun.client).map_or(BreakerPermit::Usual, Breaker::further),
        };
        CallPermit { of_breaker, ..begun }
    }

    /// Records the result of a hook's call, which may open or close the client's breaker.
    pub(super) fn settle(&self, permit: CallPermit, hook: HookKind, outcome: CallOutcome, now: Instant) {
        let breaker = match outcome {
            CallOutcome::Returned | CallOutcome::Continued => self.breaker(permit.client),
            CallOutcome::Failed => self.listed_breaker(permit.client, now, now),
            // As if it were made at the end of the time for which it counts: clients with cheap failures push out no client
            // whose late calls are being counted.
            CallOutcome::Late => self.listed_breaker(permit.client, now + LATE_WINDOW, now),
        };
        if let Some(breaker) = breaker {
            breaker.settle(permit.of_breaker, hook, outcome, now);
        }
    }

    /// Notes that a call of a hook for a client has succeeded.
    pub(super) fn count_success(&self, hook: HookKind, client: Holder) {
        if let Some(breaker) = self.breaker(client) {
            breaker.count_success(hook);
        }
    }

    /// Returns the state that operators see: the one that rejects the most, of the clients that still make requests.
    pub fn state(&self, now: Instant) -> BreakerState {
        let breakers = self.breakers.get().map_or(&[][..], |breakers| breakers);
        let listed = breakers.iter().take(self.listed.load(Ordering::Acquire));
        BreakerState::worst(listed.filter(|breaker| !breaker.has_lapsed(now)).map(|breaker| breaker.state(now)))
    }

    /// Returns the breaker of a client; `None` if the client is not listed.
    fn breaker(&self, client: Holder) -> Option<&Breaker> {
        if self.bits.load(Ordering::Relaxed) & bit(client) == 0 {
            return None;
        }
        self.breakers.get()?.get(self.place(client)?)
    }

    /// Returns the breaker of a client whose call has failed, for which the client is listed. `None` if the calls of all listed
    /// clients are being rejected, so that none of them can give up its place.
    fn listed_breaker(&self, client: Holder, failed: Instant, now: Instant) -> Option<&Breaker> {
        let place = self.place(client).or_else(|| self.list(client, now))?;
        self.failed[place].fetch_max(self.ms(failed), Ordering::Relaxed);
        self.breakers.get()?.get(place)
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
        let new = |_| Breaker::new(self.plugin.clone(), self.began);
        let breakers = self.breakers.get_or_init(|| (0..MAX_CLIENTS).map(new).collect());
        let listed = self.listed.load(Ordering::Relaxed);
        let place = if listed < MAX_CLIENTS { listed } else { self.replaceable(breakers, now)? };
        breakers[place].reset(client);
        self.failed[place].store(0, Ordering::Relaxed);
        self.clients[place].store(client.number(), Ordering::Release);
        let listed = listed.max(place + 1);
        self.listed.store(listed, Ordering::Release);
        let with = |bits, client: &AtomicU64| bits | bit(Holder::numbered(client.load(Ordering::Relaxed)));
        self.bits.store(self.clients[..listed].iter().fold(0, with), Ordering::Release);
        Some(place)
    }

    /// Returns the place of the client whose last failure is the oldest, of those whose calls are made.
    fn replaceable(&self, breakers: &[Breaker], now: Instant) -> Option<usize> {
        let may_leave = |place: &usize| !breakers[*place].is_rejecting(now);
        (0..MAX_CLIENTS).filter(may_leave).min_by_key(|place| self.failed[*place].load(Ordering::Relaxed))
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }
}

impl CallPermit {
    /// Returns the permission of a call for a client while the client's breaker is closed.
    pub(super) fn usual(client: Holder) -> Self {
        CallPermit { client, of_breaker: BreakerPermit::Usual }
    }

    /// Whether the breaker was closed.
    pub(super) fn is_usual(self) -> bool {
        self.of_breaker == BreakerPermit::Usual
    }

    /// Whether the call's result decides about further calls.
    pub(super) fn is_trial(self) -> bool {
        self.of_breaker.is_trial()
    }

    /// Returns the CPU time of the call, if that is less than the plugin's limit.
    pub(super) fn budget(self) -> Option<Duration> {
        self.of_breaker.budget()
    }
}

/// Returns the bit of a client, by the upper bits of a product, which depend on all bits of the client's number.
fn bit(client: Holder) -> u64 {
    let mixed = (client.number() ^ (client.number() >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    1 << (mixed >> (u64::BITS - 6))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: HookKind = HookKind::RequestFilter;

    fn breakers() -> (ClientBreakers, Instant) {
        let now = Instant::now();
        (ClientBreakers::new("p".into(), now), now)
    }

    fn at(began: Instant, ms: u64) -> Instant {
        began + Duration::from_millis(ms)
    }

    /// Makes a call for a client, if that is permitted. Returns whether it was.
    fn call(breakers: &ClientBreakers, number: u64, outcome: CallOutcome, now: Instant) -> bool {
        let permit = breakers.admit(REQUEST, Holder::numbered(number), now);
        permit.inspect(|permit| breakers.settle(*permit, REQUEST, outcome, now)).is_some()
    }

    fn is_served(breakers: &ClientBreakers, number: u64, now: Instant) -> bool {
        call(breakers, number, CallOutcome::Returned, now)
    }

    fn is_listed(breakers: &ClientBreakers, number: u64) -> bool {
        breakers.breaker(Holder::numbered(number)).is_some()
    }

    #[test]
    fn late_calls_of_clients_stop_the_calls_of_these_clients() {
        let (breakers, began) = breakers();
        for ms in (0..60_000).step_by(100) {
            let now = at(began, ms);
            for number in 0..60 {
                let is_made = call(&breakers, number, CallOutcome::Late, now);
                assert!(ms > 200 || is_made);
            }
            assert!(is_served(&breakers, 99, now), "at {ms} ms");
        }
        assert!((0..60).all(|number| !is_served(&breakers, number, at(began, 60_000))));
        assert_eq!(breakers.state(at(began, 60_000)), BreakerState::Open);
        assert!(breakers.are_closed(Holder::numbered(99)) && !breakers.are_closed(Holder::numbered(0)));
        // They make no more requests.
        assert_eq!(breakers.state(at(began, 300_000)), BreakerState::Closed);
    }

    #[test]
    fn failures_of_a_client_stop_a_hook_for_that_client() {
        let (breakers, began) = breakers();
        let mut made = 0;
        for ms in (0..60_000).step_by(5) {
            made += u32::from(call(&breakers, 1, CallOutcome::Failed, at(began, ms)));
            assert!(is_served(&breakers, 2, at(began, ms)), "at {ms} ms");
        }
        // The calls of three seconds, and a trial in each one after them.
        assert!((600..670).contains(&made), "{made}");
    }

    #[test]
    fn good_calls_list_no_client() {
        let (breakers, began) = breakers();
        assert!((0..99).all(|number| is_served(&breakers, number, began) && !is_listed(&breakers, number)));
        assert_eq!(breakers.state(began), BreakerState::Closed);
    }

    #[test]
    fn the_client_with_the_oldest_failure_leaves_for_another_one() {
        let (breakers, began) = breakers();
        for number in 0..MAX_CLIENTS as u64 {
            call(&breakers, number, CallOutcome::Failed, at(began, number));
        }
        call(&breakers, 0, CallOutcome::Failed, at(began, 1000));
        call(&breakers, 100, CallOutcome::Failed, at(began, 2000));
        assert!(is_listed(&breakers, 0) && !is_listed(&breakers, 1) && is_listed(&breakers, 100));
    }

    #[test]
    fn cheap_failures_of_others_push_out_no_client_with_late_calls() {
        let (breakers, began) = breakers();
        for ms in 0..9000 {
            call(&breakers, 1000 + ms, CallOutcome::Failed, at(began, ms));
            if ms % 4000 == 0 {
                call(&breakers, 1, CallOutcome::Late, at(began, ms));
            }
        }
        assert!(!breakers.are_closed(Holder::numbered(1)));
    }

    #[test]
    fn a_client_whose_calls_are_rejected_keeps_its_place() {
        let (breakers, began) = breakers();
        for number in (0..=MAX_CLIENTS as u64).flat_map(|number| [number; 3]) {
            call(&breakers, number, CallOutcome::Late, began);
        }
        assert!((0..MAX_CLIENTS as u64).all(|number| is_listed(&breakers, number)));
        assert!(is_served(&breakers, MAX_CLIENTS as u64, began));
        call(&breakers, 100, CallOutcome::Late, at(began, 2000));
        assert!(is_listed(&breakers, 100) && is_served(&breakers, 100, at(began, 2000)));
    }
}
