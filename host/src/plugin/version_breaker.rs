//! The circuit breaker of a plugin version: one breaker for the calls of all clients, and one for each client whose calls were
//! late or failed lately. A client's own failures stop the calls that are made for that client. The calls of all are stopped
//! only by what several clients have met.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::blamed_clients::BlamedClients;
use super::breaker::{Breaker, BreakerPermit, BreakerState, CallOutcome, HookKind};
use crate::system::holder_counts::Holder;

/// The circuit breaker of a plugin version.
#[derive(Debug)]
pub struct VersionBreaker {
    all: Breaker,
    blamed: BlamedClients,
}

/// The permission of a call for a client: of the breaker of all clients, and of the client's own breaker.
#[derive(Clone, Copy, Debug)]
pub struct CallPermit {
    pub(super) client: Holder,
    of_all: BreakerPermit,
    of_client: BreakerPermit,
}

/// The failures of a client that count for the breaker of all clients at most, as far as the client's successes do not
/// outweigh them. So the failures of ten clients are needed to stop a hook for all.
const MAX_COUNTED_FAILURES: u32 = 10;

impl VersionBreaker {
    /// Returns a closed breaker.
    pub(super) fn new(plugin: &Arc<str>, now: Instant) -> Self {
        VersionBreaker {
            all: Breaker::new(plugin.clone(), "all", now),
            blamed: BlamedClients::new(plugin.clone(), now),
        }
    }

    /// Whether calls for a client may be made without asking [`VersionBreaker::admit`].
    pub(super) fn is_closed(&self, client: Holder) -> bool {
        self.all.is_closed() && self.blamed.breaker_of(client).is_none_or(Breaker::is_closed)
    }

    /// Returns the permission for a call of a hook for a client; `None` if no call may be made.
    pub(super) fn admit(&self, hook: HookKind, client: Holder, now: Instant) -> Option<CallPermit> {
        // The client's own breaker gives no trial for a call that the other one rejects.
        if self.all.is_rejecting(hook, now) {
            return None;
        }
        let own = self.blamed.breaker_of(client);
        let of_client = own.map_or(Some(BreakerPermit::Usual), |own| own.admit(hook, now))?;
        Some(CallPermit { client, of_all: self.all.admit(hook, now)?, of_client })
    }

    /// Returns the permission for the further calls of a body that has begun with a permission. A body that began as a trial
    /// of its hook is one until it has ended.
    pub(super) fn further(&self, begun: CallPermit) -> CallPermit {
        let further = |begun: BreakerPermit, breaker: Option<&Breaker>| match begun {
            BreakerPermit::HookTrial(_) => begun,
            _ => breaker.map_or(BreakerPermit::Usual, Breaker::further),
        };
        CallPermit {
            of_all: further(begun.of_all, Some(&self.all)),
            of_client: further(begun.of_client, self.blamed.breaker_of(begun.client)),
            ..begun
        }
    }

    /// Records the result of a hook's call, which may open or close the breaker.
    pub(super) fn settle(&self, permit: CallPermit, hook: HookKind, outcome: CallOutcome, now: Instant) {
        let is_blamed = matches!(outcome, CallOutcome::Late | CallOutcome::Failed);
        let own = if is_blamed {
            self.blamed.blame(permit.client, outcome == CallOutcome::Late, now)
        } else {
            self.blamed.breaker_of(permit.client)
        };
        let is_blamed = own.is_some_and(|own| match outcome {
            CallOutcome::Late => !own.note_late(now),
            _ => own.has_failures(hook, if permit.of_all.is_trial() { 1 } else { MAX_COUNTED_FAILURES }),
        });
        self.settle_for_all(permit.of_all, hook, outcome, is_blamed, now);
        if let Some(own) = own {
            own.settle(permit.of_client, hook, outcome, now);
        }
    }

    /// Records that a call could not be made, for the breakers for which it was a trial.
    pub(super) fn settle_trial(&self, permit: CallPermit, hook: HookKind, outcome: CallOutcome, now: Instant) {
        let own = self.blamed.breaker_of(permit.client);
        if permit.of_all.is_trial() {
            self.settle_for_all(permit.of_all, hook, outcome, false, now);
        }
        if let Some(own) = own.filter(|_| permit.of_client.is_trial()) {
            own.settle(permit.of_client, hook, outcome, now);
        }
    }

    /// Records the result of a call for the breaker of all clients. The failure of a client that is to blame for others before
    /// says nothing about other clients.
    fn settle_for_all(
        &self,
        permit: BreakerPermit,
        hook: HookKind,
        outcome: CallOutcome,
        is_blamed: bool,
        now: Instant,
    ) {
        match (permit, outcome) {
            // The next trial is that of another client, or of this one as soon as its own breaker admits a call.
            (BreakerPermit::Trial(_), CallOutcome::Late | CallOutcome::Failed) if is_blamed => {
                self.all.reopen_until(now);
            }
            (BreakerPermit::Trial(_), _) => self.all.settle(permit, hook, outcome, now),
            // Late calls of three clients are needed to open the breaker again too, or one could keep it open.
            (_, CallOutcome::Late) if !is_blamed => self.all.count_late(now),
            (_, CallOutcome::Late) => {}
            (BreakerPermit::Usual | BreakerPermit::Short(_), CallOutcome::Failed) if is_blamed => {
                self.all.count_failure(hook, 0, now);
            }
            _ => self.all.settle(permit, hook, outcome, now),
        }
    }

    /// Notes that a call of a hook for a client has succeeded.
    pub(super) fn count_success(&self, hook: HookKind, client: Holder) {
        self.all.count_success(hook);
        if let Some(own) = self.blamed.breaker_of(client) {
            own.count_success(hook);
        }
    }

    /// Returns the state that operators see: the one that rejects the most, of the breaker of all clients and of those of
    /// clients that still make requests.
    pub fn state(&self, now: Instant) -> BreakerState {
        let own = self.blamed.breakers().iter().filter(|breaker| !breaker.has_lapsed(now));
        let states = own.chain([&self.all]).map(|breaker| breaker.state(now));
        BreakerState::worst(states)
    }
}

impl CallPermit {
    /// Returns the permission of a call for a client while the breakers are closed.
    pub(super) fn usual(client: Holder) -> Self {
        CallPermit { client, of_all: BreakerPermit::Usual, of_client: BreakerPermit::Usual }
    }

    /// Whether the breakers were closed.
    pub(super) fn is_usual(self) -> bool {
        self.of_all == BreakerPermit::Usual && self.of_client == BreakerPermit::Usual
    }

    /// Returns the CPU time of the call, if that is less than the plugin's limit.
    pub fn budget(self) -> Option<Duration> {
        [self.of_all, self.of_client].into_iter().filter_map(BreakerPermit::budget).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: HookKind = HookKind::RequestFilter;

    fn breaker() -> (VersionBreaker, Instant) {
        let now = Instant::now();
        (VersionBreaker::new(&"p".into(), now), now)
    }

    fn at(began: Instant, ms: u64) -> Instant {
        began + Duration::from_millis(ms)
    }

    fn client(number: u64) -> Holder {
        Holder::numbered(number)
    }

    /// Makes a call for a client, if that is permitted. Returns whether it was.
    fn call(breaker: &VersionBreaker, number: u64, outcome: CallOutcome, now: Instant) -> bool {
        let permit = breaker.admit(REQUEST, client(number), now);
        permit.inspect(|permit| breaker.settle(*permit, REQUEST, outcome, now)).is_some()
    }

    fn is_served(breaker: &VersionBreaker, number: u64, now: Instant) -> bool {
        call(breaker, number, CallOutcome::Returned, now)
    }

    #[test]
    fn late_calls_of_a_client_stop_the_calls_of_that_client() {
        let (breaker, began) = breaker();
        for ms in 0..600 {
            let now = at(began, ms * 100);
            let is_made = call(&breaker, 1, CallOutcome::Late, now);
            assert!(ms > 2 || is_made);
            assert!(is_served(&breaker, 2, now), "at {ms} ms");
        }
        assert!(!is_served(&breaker, 1, at(began, 60_000)));
        assert_eq!(breaker.state(at(began, 60_000)), BreakerState::Open);
        assert!(breaker.is_closed(client(2)) && !breaker.is_closed(client(1)));
        // The client makes no more requests.
        assert_eq!(breaker.state(at(began, 300_000)), BreakerState::Closed);
    }

    #[test]
    fn late_calls_of_three_clients_stop_the_calls_of_all() {
        let (breaker, began) = breaker();
        (0..2).for_each(|number| assert!(call(&breaker, number, CallOutcome::Late, began)));
        assert!(is_served(&breaker, 9, began));
        assert!(call(&breaker, 2, CallOutcome::Late, began));
        assert!(!is_served(&breaker, 9, at(began, 900)));
        // A trial of any client tells that the plugin works again.
        assert!(is_served(&breaker, 9, at(began, 1000)));
        assert!(is_served(&breaker, 8, at(began, 1001)));
    }

    /// After an accident that opened the breaker for all, one client sends nothing but requests that are late or fail.
    #[test]
    fn a_client_cannot_keep_the_breaker_of_all_open() {
        for outcome in [CallOutcome::Late, CallOutcome::Failed] {
            let (breaker, began) = breaker();
            (2..5).for_each(|number| assert!(call(&breaker, number, CallOutcome::Late, began)));
            let mut rejected = Vec::new();
            for ms in (1000..120_000).step_by(10) {
                call(&breaker, 1, outcome, at(began, ms));
                if !is_served(&breaker, 9, at(began, ms)) {
                    rejected.push(ms);
                }
            }
            assert!(rejected.iter().all(|ms| *ms < 4000), "until {:?}", rejected.last());
        }
    }

    /// The client's own breaker closes between the late calls: its trials succeed, and all calls with little time.
    #[test]
    fn a_client_that_is_late_whenever_it_may_be_opens_its_own_breaker_alone() {
        let (breaker, began) = breaker();
        for ms in (0..120_000).step_by(10) {
            if let Some(permit) = breaker.admit(REQUEST, client(1), at(began, ms)) {
                let outcome = if permit.is_usual() { CallOutcome::Late } else { CallOutcome::Returned };
                breaker.settle(permit, REQUEST, outcome, at(began, ms));
            }
            assert!(is_served(&breaker, 9, at(began, ms)), "at {ms} ms");
        }
    }

    #[test]
    fn trials_of_blamed_clients_close_the_breaker_of_all() {
        let (breaker, began) = breaker();
        for ms in 0..100 {
            for number in 0..3 {
                call(&breaker, number, CallOutcome::Late, at(began, ms * 100));
            }
        }
        let served = (10..200).find(|second| (0..3).any(|n| is_served(&breaker, n, at(began, second * 1000))));
        assert!(served.is_some_and(|second| second < 80), "{served:?}");
        let served = (0..3).map(|number| is_served(&breaker, number, at(began, 300_000)));
        assert_eq!(served.collect::<Vec<_>>(), [true; 3]);
    }

    #[test]
    fn failures_of_a_client_stop_a_hook_for_that_client() {
        let (breaker, began) = breaker();
        let mut made = 0;
        for ms in (0..60_000).step_by(5) {
            made += u32::from(call(&breaker, 1, CallOutcome::Failed, at(began, ms)));
            assert!(is_served(&breaker, 2, at(began, ms)), "at {ms} ms");
        }
        // The calls of three seconds, and a trial in each one after them.
        assert!((600..670).contains(&made), "{made}");
    }

    /// Two clients say little about all: each has a breaker.
    #[test]
    fn failures_of_two_clients_stop_a_hook_for_no_other() {
        let (breaker, began) = breaker();
        for ms in (0..30_000).step_by(5) {
            for number in 0..2 {
                call(&breaker, number, CallOutcome::Failed, at(began, ms));
            }
        }
        assert!(is_served(&breaker, 9, at(began, 30_000)));
    }

    #[test]
    fn failures_of_many_clients_stop_a_hook_for_all() {
        let (breaker, began) = breaker();
        for ms in (0..3200).step_by(5) {
            call(&breaker, ms / 5 % 20, CallOutcome::Failed, at(began, ms));
        }
        assert!(!is_served(&breaker, 99, at(began, 3200)));
        assert!(is_served(&breaker, 99, at(began, 4300)));
        assert!(is_served(&breaker, 98, at(began, 4301)));
    }

    /// More clients fail than the list has places.
    #[test]
    fn one_failure_of_each_of_many_clients_hides_no_late_calls() {
        let (breaker, began) = breaker();
        for ms in 0..30_000 {
            let now = at(began, ms);
            call(&breaker, 1000 + ms, CallOutcome::Failed, now);
            if ms % 500 == 0 {
                call(&breaker, 1, CallOutcome::Late, now);
            }
            assert!((0..2).all(|n| is_served(&breaker, 2 + n, now)), "at {ms} ms");
        }
        assert!(!breaker.is_closed(client(1)));
    }
}
