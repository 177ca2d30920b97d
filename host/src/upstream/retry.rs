//! The rules for retries: which failed requests are sent again, and how many. Without sockets or a clock of its own.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::status_codes::StatusCodes;
use crate::error::FailureKind;

/// The retry policy of an upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The maximum number of attempts beyond the first.
    pub retries: u32,
    /// The failures and statuses that cause a retry.
    pub on: Triggers,
    pub methods: Methods,
    /// The maximum number of retries per hundred requests.
    pub budget: u32,
    /// The longest content that is kept to be sent again, in bytes.
    pub buffer: usize,
}

/// The failures that are retried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Triggers {
    /// Whether a failed connect, or a request that the endpoint did not read, is retried.
    pub connect: bool,
    /// Whether a request is retried if the endpoint closed before it answered.
    pub reset: bool,
    /// Whether a request is retried if the endpoint didn't answer in time.
    pub timeout: bool,
    /// Whether a request is retried if the endpoint's response is malformed.
    pub malformed: bool,
    /// The status codes of responses that cause a retry.
    pub statuses: StatusCodes,
}

/// The methods of requests that are sent again although the endpoint may have acted on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    /// The idempotent methods (RFC 9110 §9.2.2).
    Idempotent,
    Any,
}

/// The progress of a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No connection was made, or no byte of the request was sent on it.
    NotSent,
    /// The connection is still being made; another endpoint may be quicker.
    Waiting,
    /// The endpoint said that it has not acted on the request (RFC 9113 §6.8, §8.7), or the request waited for a stream.
    Unread,
    /// The endpoint may have acted on the request.
    MaybeProcessed,
    /// The endpoint has asked for calm, because the exchanges of a shared connection take too much of its resources (RFC 9113
    /// §7). It may have acted on the request.
    Crowded,
}

/// The bytes of a request's content that are kept to be sent again, if the manifest doesn't say.
pub const BUFFER: usize = 64 << 10;

/// A budget that keeps retries to a share of the requests, so that they don't make an outage worse. Each worker has its
/// own.
#[derive(Debug)]
pub struct RetryBudget {
    born: Instant,
    /// The counts of the last seconds, by the second modulo the length.
    seconds: [Second; WINDOW],
    /// The second of the last call.
    current: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    requests: u32,
    retries: u32,
}

/// The number of seconds in the window: long enough that a burst of failures can use the allowance of quiet seconds,
/// short enough that the allowance doesn't last.
const WINDOW: usize = 10;

/// The number of retries per second that are allowed whatever the traffic: a share of little traffic would be none.
const RESERVE: u32 = 10;

impl RetryPolicy {
    /// A policy without retries.
    pub fn never() -> Self {
        RetryPolicy { retries: 0, on: Triggers::default(), methods: Methods::Idempotent, budget: 0, buffer: BUFFER }
    }

    /// Whether a request that failed so may be sent once more.
    pub fn covers(&self, kind: FailureKind, reached: Delivery, method: &Method) -> bool {
        // What isn't the endpoint's fault would fail at another, too.
        kind.blames_endpoint()
            && match reached {
                Delivery::NotSent | Delivery::Waiting | Delivery::Unread => self.on.connect,
                Delivery::MaybeProcessed | Delivery::Crowded => self.may_repeat(method) && self.on.covers(kind),
            }
    }

    /// Whether a response with this status causes a retry.
    pub fn covers_status(&self, status: StatusCode, method: &Method) -> bool {
        self.on.statuses.contains(status) && self.may_repeat(method)
    }

    /// Whether a request may be sent again although the endpoint may have acted on it.
    pub fn may_repeat(&self, method: &Method) -> bool {
        self.retries > 0 && (self.methods == Methods::Any || method.is_idempotent())
    }
}

impl Triggers {
    /// Whether a failure of a request that the endpoint may have acted on causes a retry.
    fn covers(&self, kind: FailureKind) -> bool {
        match kind {
            FailureKind::ConnectionTerminated => self.reset,
            FailureKind::ResponseTimeout => self.timeout,
            FailureKind::ProtocolError => self.malformed,
            _ => false,
        }
    }
}

impl RetryBudget {
    pub fn new(now: Instant) -> Self {
        RetryBudget { born: now, seconds: Default::default(), current: 0 }
    }

    /// Records that a request has arrived.
    pub fn request(&mut self, now: Instant) {
        let second = self.second(now);
        second.requests = second.requests.saturating_add(1);
    }

    /// Whether another retry is within `percent` of the requests.
    pub fn allows(&mut self, percent: u32, now: Instant) -> bool {
        self.second(now);
        let sum = |one: fn(&Second) -> u32| self.seconds.iter().map(|second| u64::from(one(second))).sum::<u64>();
        let (requests, retries) = (sum(|second| second.requests), sum(|second| second.retries));
        let allowed = requests * u64::from(percent) / 100 + u64::from(RESERVE) * WINDOW as u64;
        percent > 0 && retries < allowed
    }

    /// A request is sent once more.
    pub fn retry(&mut self, now: Instant) {
        let second = self.second(now);
        second.retries = second.retries.saturating_add(1);
    }

    /// Returns the current second. The seconds that have passed since the last call are emptied.
    fn second(&mut self, now: Instant) -> &mut Second {
        let age = now.saturating_duration_since(self.born).as_secs().max(self.current);
        let passed = (age - self.current).min(WINDOW as u64);
        for step in 0..passed {
            self.seconds[((age - step) % WINDOW as u64) as usize] = Second::default();
        }
        self.current = age;
        &mut self.seconds[(age % WINDOW as u64) as usize]
    }
}

/// Returns the pause before an endpoint that has just failed is tried again, because others may have overloaded it. The
/// pause doubles with each attempt.
pub fn pause(attempt: u32) -> Duration {
    Duration::from_millis(25) * (1 << attempt.min(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_requests_may_always_be_sent_again() {
        let mut on = Triggers { connect: true, reset: true, ..Triggers::default() };
        on.statuses.add(502..=503);
        let policy = RetryPolicy { retries: 1, on, methods: Methods::Idempotent, budget: 20, buffer: 0 };
        let cases = [
            (FailureKind::ConnectionRefused, Delivery::NotSent, Method::POST, true),
            (FailureKind::ConnectionTerminated, Delivery::NotSent, Method::POST, true),
            (FailureKind::ConnectionTerminated, Delivery::Unread, Method::PATCH, true),
            (FailureKind::LimitReached, Delivery::NotSent, Method::GET, false),
            (FailureKind::InternalError, Delivery::NotSent, Method::GET, false),
            (FailureKind::ConnectionTerminated, Delivery::MaybeProcessed, Method::POST, false),
            (FailureKind::ConnectionTerminated, Delivery::Crowded, Method::POST, false),
            (FailureKind::ConnectionTerminated, Delivery::Crowded, Method::GET, true),
            (FailureKind::ConnectionTerminated, Delivery::MaybeProcessed, Method::PUT, true),
            (FailureKind::ResponseTimeout, Delivery::MaybeProcessed, Method::GET, false),
            (FailureKind::ProtocolError, Delivery::MaybeProcessed, Method::GET, false),
        ];
        for (kind, reached, method, wanted) in cases {
            assert_eq!(policy.covers(kind, reached, &method), wanted, "{kind:?} {reached:?} {method}");
        }
        assert!(policy.covers_status(StatusCode::BAD_GATEWAY, &Method::GET));
        assert!(!policy.covers_status(StatusCode::BAD_GATEWAY, &Method::POST));
        assert!(RetryPolicy { methods: Methods::Any, ..policy }.covers_status(StatusCode::BAD_GATEWAY, &Method::POST));
        assert!(!RetryPolicy::never().covers(FailureKind::ConnectionRefused, Delivery::NotSent, &Method::GET));
    }

    #[test]
    fn retries_are_a_share_of_the_requests_and_a_reserve() {
        let born = Instant::now();
        let at = |millis| born + Duration::from_millis(millis);
        let mut budget = RetryBudget::new(born);
        let spend = |budget: &mut RetryBudget, now| {
            let allowed = |_: &u32| budget.allows(20, now).then(|| budget.retry(now)).is_some();
            (0..10_000).take_while(allowed).count()
        };
        assert_eq!(spend(&mut budget, at(0)), 100, "the reserve");
        (0..1_000).for_each(|_| budget.request(at(500)));
        assert_eq!(spend(&mut budget, at(900)), 200, "a fifth");
        assert_eq!(spend(&mut budget, at(9_900)), 0, "all spent within the window");
        assert_eq!(spend(&mut budget, at(10_000)), 100, "the first second is forgotten");
        assert_eq!(spend(&mut budget, at(90_000)), 100, "nothing is saved up");
        assert!(!budget.allows(0, at(200_000)), "no budget, no retry");
    }
}
