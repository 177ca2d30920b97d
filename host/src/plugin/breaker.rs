//! The circuit breaker of a configured plugin, shared by all workers. A late call costs every request that waits behind
//! it on its worker, so a few of them stop all calls for a while. Failures that cost others little stop calls only when
//! nearly all calls of a hook have failed for seconds, or any client could switch a plugin off.
//!
//! Workers read `mode` before a call. The lock is taken after late calls alone.
#![expect(clippy::disallowed_methods, reason = "the state is shown to operators, off the workers")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
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
    /// The failures of each hook: calls of one that succeed say nothing about another.
    rows: [FailureRow; HookKind::COUNT],
    /// The hook whose failures have opened the breaker; [`HookKind::COUNT`] if late calls have.
    opened_by: AtomicUsize,
    /// The times at which the last late calls ended.
    late: Mutex<VecDeque<Instant>>,
}

/// The failures of a hook that outweigh its successes.
#[derive(Debug, Default)]
struct FailureRow {
    /// The number of failed calls, less [`SUCCESS_WEIGHT`] for each that succeeded.
    weight: AtomicU32,
    /// The time of the first of these failures, in milliseconds since the breaker's `began`.
    began: AtomicU64,
}

/// The kind of a hook, as far as failures are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    RequestFilter,
    ResponseFilter,
    Body,
    Balancer,
    CachePolicy,
    Observer,
    Timer,
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

/// The weight of failures that opens a breaker once it has lasted for [`ROW_TIME`].
const MAX_FAILURES: u32 = 100;

/// The number of failures that one success outweighs. A client that wants to switch a plugin off has to send more than so
/// many requests for each successful one of all others.
const SUCCESS_WEIGHT: u32 = 9;

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
            rows: Default::default(),
            opened_by: AtomicUsize::new(HookKind::COUNT),
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

    /// Records the result of a hook's call, which may open or close the breaker.
    pub fn settle(&self, permit: CallPermit, hook: HookKind, outcome: CallOutcome, now: Instant) {
        match (permit, outcome) {
            (CallPermit::Trial(_), CallOutcome::Returned) if self.is_open_for_another(hook) => self.repeat_trial(),
            (CallPermit::Trial(_), CallOutcome::Returned) => self.succeed(hook, now),
            (CallPermit::Trial(_), CallOutcome::Late) => self.open(now, "limits.cpu"),
            (CallPermit::Trial(_), CallOutcome::Failed) => self.reopen(now),
            (_, CallOutcome::Returned) => self.count_success(hook),
            (_, CallOutcome::Failed) => self.count_failure(hook, now),
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

    fn count_failure(&self, hook: HookKind, now: Instant) {
        let row = &self.rows[hook as usize];
        let more = |weight: u32| Some((weight + 1).min(MAX_FAILURES));
        let before = row.weight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).unwrap_or_default();
        if before == 0 {
            row.began.store(self.ms(now), Ordering::Relaxed);
        }
        let lasted = self.ms(now).saturating_sub(row.began.load(Ordering::Relaxed));
        if before + 1 >= MAX_FAILURES && u128::from(lasted) >= ROW_TIME.as_millis() {
            row.weight.store(0, Ordering::Relaxed);
            // Workers that still fail while the breaker is open change nothing.
            if self.change(CLOSED, OPEN) || self.change(CAUTIOUS, OPEN) {
                self.opened_by.store(hook as usize, Ordering::Relaxed);
                self.until.store(self.ms(now + BACKOFF), Ordering::Release);
                warn!(plugin = &*self.plugin, failures_of = hook.word(), retry_in = ?BACKOFF, "plugin breaker opened");
            }
        }
    }

    /// Notes that a call of a hook has succeeded.
    pub(super) fn count_success(&self, hook: HookKind) {
        let weight = &self.rows[hook as usize].weight;
        if weight.load(Ordering::Relaxed) > 0 {
            let less = |weight: u32| Some(weight.saturating_sub(SUCCESS_WEIGHT));
            let _ = weight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// Whether the failures of another hook have opened the breaker, so that a success of this one says nothing.
    fn is_open_for_another(&self, hook: HookKind) -> bool {
        let opened_by = self.opened_by.load(Ordering::Relaxed);
        opened_by != HookKind::COUNT && opened_by != hook as usize
    }

    /// Makes the next call another trial.
    fn repeat_trial(&self) {
        self.until.store(0, Ordering::Release);
        self.mode.store(OPEN, Ordering::Release);
    }

    /// Opens the breaker for twice as long as the last time.
    fn open(&self, now: Instant, limit: &str) {
        if self.mode.swap(OPEN, Ordering::AcqRel) == OPEN {
            return;
        }
        self.opened_by.store(HookKind::COUNT, Ordering::Relaxed);
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
    fn succeed(&self, hook: HookKind, now: Instant) {
        self.rows[hook as usize].weight.store(0, Ordering::Relaxed);
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

impl HookKind {
    /// The number of kinds.
    const COUNT: usize = HookKind::Timer as usize + 1;

    /// Returns the word for the hook in logs.
    fn word(self) -> &'static str {
        match self {
            HookKind::RequestFilter => "request-filter",
            HookKind::ResponseFilter => "response-filter",
            HookKind::Body => "body",
            HookKind::Balancer => "balancer",
            HookKind::CachePolicy => "cache-policy",
            HookKind::Observer => "observer",
            HookKind::Timer => "timer",
        }
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
    use std::ops::Range;

    use super::*;

    const REQUEST: HookKind = HookKind::RequestFilter;

    fn breaker() -> (Breaker, Instant) {
        let now = Instant::now();
        (Breaker::new("p".into(), now), now)
    }

    fn at(began: Instant, ms: u64) -> Instant {
        began + Duration::from_millis(ms)
    }

    fn late(breaker: &Breaker, now: Instant) {
        let permit = breaker.admit(now).unwrap();
        breaker.settle(permit, REQUEST, CallOutcome::Late, now);
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
        breaker.settle(trial, REQUEST, CallOutcome::Returned, at(began, 1005));
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
            breaker.settle(trial, REQUEST, CallOutcome::Late, now);
        }
    }

    #[test]
    fn a_late_call_soon_after_a_trial_opens_it_at_once() {
        let (breaker, began) = breaker();
        (0..3).for_each(|_| late(&breaker, began));
        let trial = breaker.admit(at(began, 1000)).unwrap();
        breaker.settle(trial, REQUEST, CallOutcome::Returned, at(began, 1000));
        late(&breaker, at(began, 1500));
        assert_eq!(breaker.admit(at(began, 3400)), None);
        assert_eq!(breaker.admit(at(began, 3500)), Some(CallPermit::Trial(2 * TICK)));
    }

    /// Makes a call each millisecond, of which every one of these numbers succeeds.
    fn failing(breaker: &Breaker, began: Instant, times: Range<u64>, success_every: u64) {
        for ms in times {
            let is_success = ms % success_every == 0;
            let outcome = if is_success { CallOutcome::Returned } else { CallOutcome::Failed };
            breaker.settle(CallPermit::Usual, REQUEST, outcome, at(began, ms));
        }
    }

    #[test]
    fn cheap_failures_open_it_only_if_nearly_all_calls_fail() {
        let (breaker, began) = breaker();
        failing(&breaker, began, 1..10_000, 9);
        assert!(breaker.is_closed());
        failing(&breaker, began, 10_000..12_900, 50);
        assert!(breaker.is_closed(), "not for three seconds");
        failing(&breaker, began, 12_900..13_101, 50);
        assert_eq!(breaker.admit(at(began, 13_900)), None);
        // As often as one call a second may find out that the plugin works again.
        for second in 0..5 {
            let now = at(began, 15_000 + second * 1000);
            let trial = breaker.admit(now).unwrap();
            assert_eq!(trial, CallPermit::Trial(Duration::MAX));
            breaker.settle(trial, REQUEST, CallOutcome::Failed, now);
        }
        let trial = breaker.admit(at(began, 20_000)).unwrap();
        breaker.settle(trial, REQUEST, CallOutcome::Returned, at(began, 20_000));
        assert!(breaker.is_closed());
    }

    #[test]
    fn successes_of_another_hook_hide_no_failures_and_end_no_trial() {
        let (breaker, began) = breaker();
        for ms in 1..3200 {
            breaker.settle(CallPermit::Usual, REQUEST, CallOutcome::Failed, at(began, ms));
            breaker.settle(CallPermit::Usual, HookKind::Observer, CallOutcome::Returned, at(began, ms));
        }
        let now = at(began, 5000);
        for _ in 0..10 {
            let trial = breaker.admit(now).unwrap();
            breaker.settle(trial, HookKind::Observer, CallOutcome::Returned, now);
            assert!(!breaker.is_closed());
        }
        let trial = breaker.admit(now).unwrap();
        assert_eq!(trial, CallPermit::Trial(Duration::MAX));
        assert_eq!(breaker.admit(now), None);
        breaker.settle(trial, REQUEST, CallOutcome::Returned, now);
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
