//! The circuit breaker of a configured plugin, shared by all workers. A late call costs every request that waits behind
//! it on its worker, so a few of them stop all calls for a while; failures that cost others nothing stop calls only when
//! nothing else has come from the plugin for seconds, or any client could switch a plugin off.
//!
//! Workers read `mode` before a call. The lock is taken after late calls alone.
#![expect(clippy::disallowed_methods, reason = "the state is shown to operators, off the workers")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::cpu_time::TICK;

/// The circuit breaker of a configured plugin.
#[derive(Debug)]
pub struct Breaker {
    plugin: Arc<str>,
    began: Instant,
    mode: AtomicU8,
    /// The number of openings in a row for late calls; decides the backoff and the CPU time of trial calls.
    level: AtomicU32,
    /// The end of the mode, in milliseconds since `began`.
    until: AtomicU64,
    /// The number of failed calls since the last one that succeeded; the first of them ended at `row_began`, in
    /// milliseconds since `began`.
    in_a_row: AtomicU32,
    row_began: AtomicU64,
    /// The times at which the last late calls ended.
    late: Mutex<VecDeque<Instant>>,
}

/// The state of a breaker, as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// The breaker is closed, and calls are made.
    Closed,
    /// The breaker is open, and no calls are made.
    Open,
    /// A trial call is due or under way, or a trial has succeeded and calls get little CPU time.
    HalfOpen,
}

/// The permission to make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallPermit {
    /// The call may use the plugin's limits.
    Usual,
    /// The call may use this CPU time, because earlier calls were late.
    Short(Duration),
    /// The call is a trial, and its result decides whether further calls are made.
    Trial(Duration),
}

/// The result of a call, as far as a breaker is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// The plugin returned.
    Returned,
    /// The call failed early, at little cost for others.
    Failed,
    /// The call met its limit of CPU time.
    Late,
}

const CLOSED: u8 = 0;
const CAUTIOUS: u8 = 1;
const OPEN: u8 = 2;
const TRIAL: u8 = 3;

/// Late calls within [`LATE_WINDOW`] that open a closed breaker. One alone may be an accident.
const MAX_LATE_CALLS: usize = 3;
const LATE_WINDOW: Duration = Duration::from_secs(10);

/// Failures in a row that open a breaker if no call has succeeded for [`ROW_TIME`]. A client that wants to switch a
/// plugin off has to send so many requests between any two successful ones of all others.
const MAX_FAILURES_IN_A_ROW: u32 = 100;
const ROW_TIME: Duration = Duration::from_secs(3);

/// The first backoff. Each further opening for late calls doubles the backoff, up to [`MAX_BACKOFF`].
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The maximum number of times that a backoff doubles.
const MAX_DOUBLINGS: u32 = 6;

impl Breaker {
    /// Returns a closed breaker.
    pub fn new(plugin: Arc<str>, now: Instant) -> Self {
        Breaker {
            plugin,
            began: now,
            mode: AtomicU8::new(CLOSED),
            level: AtomicU32::new(0),
            until: AtomicU64::new(0),
            in_a_row: AtomicU32::new(0),
            row_began: AtomicU64::new(0),
            late: Mutex::default(),
        }
    }

    /// Whether calls may be made without asking [`Breaker::admit`].
    pub fn is_closed(&self) -> bool {
        self.mode.load(Ordering::Relaxed) == CLOSED
    }

    /// Returns the permission for a call; `None` if no call may be made.
    pub fn admit(&self, now: Instant) -> Option<CallPermit> {
        let (mode, is_over) = (self.mode.load(Ordering::Acquire), self.ms(now) >= self.until.load(Ordering::Acquire));
        match mode {
            CAUTIOUS if !is_over => Some(CallPermit::Short(self.short_limit())),
            CAUTIOUS => {
                if self.change(CAUTIOUS, CLOSED) {
                    self.level.store(0, Ordering::Relaxed);
                }
                Some(CallPermit::Usual)
            }
            // A trial that never ended, because its worker panicked, is repeated.
            OPEN | TRIAL if is_over => {
                let until = self.ms(now + self.backoff());
                let old = self.until.load(Ordering::Acquire);
                // Whichever worker moves the end of the mode has the trial.
                if old > self.ms(now)
                    || self.until.compare_exchange(old, until, Ordering::AcqRel, Ordering::Relaxed).is_err()
                {
                    return None;
                }
                self.mode.store(TRIAL, Ordering::Release);
                Some(CallPermit::Trial(self.short_limit()))
            }
            OPEN | TRIAL => None,
            _ => Some(CallPermit::Usual),
        }
    }

    /// Returns the permission for the further calls of a body that has begun.
    pub fn further(&self) -> CallPermit {
        match self.mode.load(Ordering::Relaxed) {
            CLOSED => CallPermit::Usual,
            _ => CallPermit::Short(self.short_limit()),
        }
    }

    /// Records the result of a call, which may open or close the breaker.
    pub fn settle(&self, permit: CallPermit, outcome: CallOutcome, now: Instant) {
        match (permit, outcome) {
            (CallPermit::Trial(_), CallOutcome::Returned) => self.succeed(now),
            (CallPermit::Trial(_), CallOutcome::Late) => self.open(now, "limits.cpu"),
            (CallPermit::Trial(_), CallOutcome::Failed) => self.reopen(now),
            (_, CallOutcome::Returned) => self.end_row(),
            (_, CallOutcome::Failed) => self.count_failure(now),
            (CallPermit::Short(_), CallOutcome::Late) => self.open(now, "limits.cpu"),
            (CallPermit::Usual, CallOutcome::Late) => self.count_late(now),
        }
    }

    /// Returns the state that operators see.
    pub fn state(&self) -> BreakerState {
        match self.mode.load(Ordering::Relaxed) {
            CLOSED => BreakerState::Closed,
            OPEN if self.ms(Instant::now()) < self.until.load(Ordering::Relaxed) => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    fn count_late(&self, now: Instant) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.retain(|ended| now.saturating_duration_since(*ended) < LATE_WINDOW);
        late.push_back(now);
        if late.len() >= MAX_LATE_CALLS {
            late.clear();
            drop(late);
            self.open(now, "limits.cpu");
        }
    }

    fn count_failure(&self, now: Instant) {
        let count = self.in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if count == 1 {
            self.row_began.store(self.ms(now), Ordering::Relaxed);
        }
        let lasted = self.ms(now).saturating_sub(self.row_began.load(Ordering::Relaxed));
        if count >= MAX_FAILURES_IN_A_ROW && u128::from(lasted) >= ROW_TIME.as_millis() {
            self.end_row();
            // Workers that still fail while the breaker is open change nothing.
            if self.change(CLOSED, OPEN) || self.change(CAUTIOUS, OPEN) {
                self.until.store(self.ms(now + BACKOFF), Ordering::Release);
                warn!(plugin = &*self.plugin, failures = count, retry_in = ?BACKOFF, "plugin breaker opened");
            }
        }
    }

    /// Notes that a call has succeeded.
    pub(super) fn end_row(&self) {
        if self.in_a_row.load(Ordering::Relaxed) > 0 {
            self.in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// Opens the breaker for twice as long as the last time.
    fn open(&self, now: Instant, limit: &str) {
        if self.mode.swap(OPEN, Ordering::AcqRel) == OPEN {
            return;
        }
        let level = self.level.load(Ordering::Relaxed);
        self.level.store((level + 1).min(MAX_DOUBLINGS + 1), Ordering::Relaxed);
        let backoff = self.backoff();
        self.until.store(self.ms(now + backoff), Ordering::Release);
        warn!(plugin = &*self.plugin, limit, retry_in = ?backoff, "plugin breaker opened");
    }

    /// Opens the breaker again after a trial that failed without cost.
    fn reopen(&self, now: Instant) {
        self.until.store(self.ms(now + self.backoff()), Ordering::Release);
        self.mode.store(OPEN, Ordering::Release);
    }

    /// Closes the breaker after a trial. For twice the backoff, calls get as little CPU time as the trial had, and a
    /// late one opens the breaker at once.
    fn succeed(&self, now: Instant) {
        self.end_row();
        let is_late_before = self.level.load(Ordering::Relaxed) > 0;
        self.until.store(self.ms(now + 2 * self.backoff()), Ordering::Release);
        self.mode.store(if is_late_before { CAUTIOUS } else { CLOSED }, Ordering::Release);
        info!(plugin = &*self.plugin, "plugin breaker closed");
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.mode.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn backoff(&self) -> Duration {
        let doublings = self.level.load(Ordering::Relaxed).saturating_sub(1).min(MAX_DOUBLINGS);
        (BACKOFF * (1 << doublings)).min(MAX_BACKOFF)
    }

    /// Returns the maximum CPU time of calls after late ones. It grows with the backoff, so that trials never cost a
    /// worker more than a hundredth of its time, and a plugin that needs all of its limit still passes one.
    fn short_limit(&self) -> Duration {
        match self.level.load(Ordering::Relaxed) {
            0 => Duration::MAX,
            level => TICK * (1 << (level - 1).min(MAX_DOUBLINGS)),
        }
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }
}

impl BreakerState {
    /// All states, in the order of their numbers in metrics.
    pub const ALL: [BreakerState; 3] = [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen];

    /// Returns the word for the state.
    pub fn word(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half-open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> (Breaker, Instant) {
        let now = Instant::now();
        (Breaker::new("p".into(), now), now)
    }

    fn at(began: Instant, ms: u64) -> Instant {
        began + Duration::from_millis(ms)
    }

    fn late(breaker: &Breaker, now: Instant) {
        let permit = breaker.admit(now).unwrap();
        breaker.settle(permit, CallOutcome::Late, now);
    }

    #[test]
    fn late_calls_open_it_and_a_trial_closes_it() {
        let (breaker, began) = breaker();
        (0..2).for_each(|n| late(&breaker, at(began, n)));
        assert_eq!(breaker.admit(at(began, 2)), Some(CallPermit::Usual));
        late(&breaker, at(began, 2));
        assert!(!breaker.is_closed());
        assert_eq!(breaker.admit(at(began, 900)), None);
        let trial = breaker.admit(at(began, 1003)).unwrap();
        assert_eq!(trial, CallPermit::Trial(TICK));
        assert_eq!(breaker.admit(at(began, 1004)), None, "one trial at a time");
        breaker.settle(trial, CallOutcome::Returned, at(began, 1005));
        assert_eq!(breaker.admit(at(began, 1006)), Some(CallPermit::Short(TICK)));
        assert_eq!(breaker.admit(at(began, 3100)), Some(CallPermit::Usual));
        assert!(breaker.is_closed());
    }

    #[test]
    fn the_backoff_doubles_up_to_a_minute_and_trials_get_more_time_with_it() {
        let (breaker, began) = breaker();
        (0..3).for_each(|_| late(&breaker, began));
        let mut now = began;
        for (seconds, ticks) in [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (32, 32), (60, 64), (60, 64)] {
            assert_eq!(breaker.admit(now + Duration::from_millis(seconds * 1000 - 1)), None);
            now += Duration::from_secs(seconds);
            let trial = breaker.admit(now).unwrap();
            assert_eq!(trial, CallPermit::Trial(TICK * ticks));
            breaker.settle(trial, CallOutcome::Late, now);
        }
    }

    #[test]
    fn a_late_call_soon_after_a_trial_opens_it_at_once() {
        let (breaker, began) = breaker();
        (0..3).for_each(|_| late(&breaker, began));
        let trial = breaker.admit(at(began, 1000)).unwrap();
        breaker.settle(trial, CallOutcome::Returned, at(began, 1000));
        late(&breaker, at(began, 1500));
        assert_eq!(breaker.admit(at(began, 3400)), None);
        assert_eq!(breaker.admit(at(began, 3500)), Some(CallPermit::Trial(2 * TICK)));
    }

    #[test]
    fn cheap_failures_open_it_only_while_nothing_succeeds() {
        let (breaker, began) = breaker();
        for n in 0..10_000 {
            breaker.settle(CallPermit::Usual, CallOutcome::Failed, at(began, n));
            if n % 1000 == 0 {
                breaker.settle(CallPermit::Usual, CallOutcome::Returned, at(began, n));
            }
        }
        assert!(breaker.is_closed());
        (0..2100).for_each(|n| breaker.settle(CallPermit::Usual, CallOutcome::Failed, at(began, 10_000 + n)));
        assert_eq!(breaker.admit(at(began, 12_900)), None);
        // As often as one call a second may find out that the plugin works again.
        for second in 0..5 {
            let now = at(began, 15_000 + second * 1000);
            let trial = breaker.admit(now).unwrap();
            assert_eq!(trial, CallPermit::Trial(Duration::MAX));
            breaker.settle(trial, CallOutcome::Failed, now);
        }
        let trial = breaker.admit(at(began, 20_000)).unwrap();
        breaker.settle(trial, CallOutcome::Returned, at(began, 20_000));
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_trial_that_never_ended_is_repeated() {
        let (breaker, began) = breaker();
        (0..3).for_each(|_| late(&breaker, began));
        breaker.admit(at(began, 1000)).unwrap();
        assert_eq!(breaker.admit(at(began, 1900)), None);
        assert!(matches!(breaker.admit(at(began, 2000)), Some(CallPermit::Trial(_))));
    }
}
