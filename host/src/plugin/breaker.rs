//! The circuit breaker for the calls of a plugin for one client, shared by all workers. A late call costs every request
//! that waits behind it on its worker, so a few of them stop all calls for the client for a while. Failures that cost others
//! little stop the calls of their hook alone, and only when nearly all of them have failed for seconds.
//!
//! Workers read `mode` and `stopped` before a call. The lock is taken after late calls alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::cpu_time::TICK;
use crate::context::edit_check::MessageSide;
use crate::protocol::client_net::ClientNet;
use crate::system::holder_counts::Holder;

/// The circuit breaker for the calls of a plugin for a client.
#[derive(Debug)]
pub struct Breaker {
    plugin: Arc<str>,
    /// The number of the client, for the log.
    client: AtomicU64,
    began: Instant,
    mode: AtomicU8,
    /// The number of openings in a row for late calls; decides the backoff and the CPU time of trial calls.
    level: AtomicU32,
    /// The end of the mode, in milliseconds since `began`.
    until: AtomicU64,
    /// The failures of each hook: calls of one that succeed say nothing about another.
    rows: [FailureRow; HookKind::COUNT],
    /// The hooks that their failures have stopped, one bit for each.
    stopped: AtomicU8,
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
    /// The time of the next trial while the hook is stopped, in milliseconds since the breaker's `began`.
    trial_at: AtomicU64,
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
    /// The breaker is open, and no calls are made: of any hook, or of one that fails.
    Open,
    /// A trial call is due or under way, or a trial has succeeded and calls get little CPU time.
    HalfOpen,
}

/// The permission of a breaker to make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerPermit {
    /// The call may use the plugin's limits.
    Usual,
    /// The call may use this CPU time, because earlier calls were late.
    Short(Duration),
    /// The call is a trial, and its result decides whether further calls are made.
    Trial(Duration),
    /// The call is a trial of a hook that its failures have stopped, and its result decides about calls of that hook.
    HookTrial(Duration),
}

/// The result of a call, as far as a breaker is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// The plugin returned.
    Returned,
    /// The plugin returned from a call of a body that has not ended. A body counts once it has.
    Continued,
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
pub(super) const LATE_WINDOW: Duration = Duration::from_secs(10);

/// The weight of failures that opens a breaker once it has lasted for [`ROW_TIME`].
const MAX_FAILURES: u32 = 100;

/// The number of failures that one success outweighs: clients behind one address are stopped for one of them only if it sends
/// so many times as many requests as the others.
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
            client: AtomicU64::new(0),
            began: now,
            mode: AtomicU8::new(CLOSED),
            level: AtomicU32::new(0),
            until: AtomicU64::new(0),
            rows: Default::default(),
            stopped: AtomicU8::new(0),
            late: Mutex::default(),
        }
    }

    /// Whether calls may be made without asking [`Breaker::admit`].
    pub fn is_closed(&self) -> bool {
        self.mode.load(Ordering::Relaxed) == CLOSED && self.stopped.load(Ordering::Relaxed) == 0
    }

    /// Closes the breaker, and uses it for the calls for another client.
    pub(super) fn reset(&self, client: Holder) {
        self.client.store(client.number(), Ordering::Relaxed);
        self.late.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for row in &self.rows {
            row.weight.store(0, Ordering::Relaxed);
        }
        self.level.store(0, Ordering::Relaxed);
        self.stopped.store(0, Ordering::Release);
        self.mode.store(CLOSED, Ordering::Release);
    }

    /// Whether calls are rejected at a time, at least those of a hook.
    pub(super) fn is_rejecting(&self, now: Instant) -> bool {
        self.is_before_trial(self.ms(now))
    }

    /// Whether a trial has been due for a minute, and none was made: the client makes no more requests.
    pub(super) fn has_lapsed(&self, now: Instant) -> bool {
        !self.is_before_trial(self.ms(now).saturating_sub(MAX_BACKOFF.as_millis() as u64))
    }

    /// Whether a time is before the next trial: of the plugin, or of a hook that is stopped.
    fn is_before_trial(&self, ms: u64) -> bool {
        let stopped = self.stopped.load(Ordering::Acquire);
        let waits = |hook: usize| stopped & (1 << hook) != 0 && ms < self.rows[hook].trial_at.load(Ordering::Acquire);
        let is_open = self.mode.load(Ordering::Acquire) != CLOSED && ms < self.until.load(Ordering::Acquire);
        is_open || (0..HookKind::COUNT).any(waits)
    }

    /// Returns the permission for a call of a hook; `None` if no call may be made.
    pub fn admit(&self, hook: HookKind, now: Instant) -> Option<BreakerPermit> {
        if !self.is_stopped(hook) {
            return self.admit_any(now);
        }
        let (trial_at, ms) = (&self.rows[hook as usize].trial_at, self.ms(now));
        let due = trial_at.load(Ordering::Acquire);
        if ms < due {
            return None;
        }
        let permit = self.admit_any(now)?;
        // A trial of the plugin tries the hook too. Otherwise, the worker that moves the time has the trial; one that never
        // ended is repeated.
        match permit {
            BreakerPermit::Trial(_) => {
                // Until the next one, the hooks that work have the trials.
                trial_at.store(self.ms(now + self.backoff()), Ordering::Release);
                Some(permit)
            }
            _ => {
                let next = self.ms(now + BACKOFF);
                trial_at.compare_exchange(due, next, Ordering::AcqRel, Ordering::Relaxed).ok()?;
                Some(BreakerPermit::HookTrial(if permit == BreakerPermit::Usual {
                    Duration::MAX
                } else {
                    self.short_limit()
                }))
            }
        }
    }

    /// Returns the permission for a call of any hook, as far as late calls decide.
    fn admit_any(&self, now: Instant) -> Option<BreakerPermit> {
        let (mode, is_over) = (self.mode.load(Ordering::Acquire), self.ms(now) >= self.until.load(Ordering::Acquire));
        match mode {
            CAUTIOUS if !is_over => Some(BreakerPermit::Short(self.short_limit())),
            CAUTIOUS => {
                if self.change(CAUTIOUS, CLOSED) {
                    self.level.store(0, Ordering::Relaxed);
                }
                Some(BreakerPermit::Usual)
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
                Some(BreakerPermit::Trial(self.short_limit()))
            }
            OPEN | TRIAL => None,
            _ => Some(BreakerPermit::Usual),
        }
    }

    /// Returns the permission for the further calls of a body that has begun.
    pub fn further(&self) -> BreakerPermit {
        match self.mode.load(Ordering::Relaxed) {
            CLOSED => BreakerPermit::Usual,
            _ => BreakerPermit::Short(self.short_limit()),
        }
    }

    /// Records the result of a hook's call, which may open or close the breaker.
    pub fn settle(&self, permit: BreakerPermit, hook: HookKind, outcome: CallOutcome, now: Instant) {
        match (permit, outcome) {
            (BreakerPermit::Trial(_), CallOutcome::Returned) => self.succeed(hook, now),
            // The plugin was not late. Whether the hook fails is known once the body has ended.
            (BreakerPermit::Trial(_), CallOutcome::Continued) => self.close(now),
            (_, CallOutcome::Continued) => {}
            (BreakerPermit::Trial(_), CallOutcome::Late) => self.open(now, "limits.cpu"),
            // It says no more about the plugin than the failures that have stopped the hook.
            (BreakerPermit::Trial(_), CallOutcome::Failed) if self.is_stopped(hook) => self.reopen_until(now),
            (BreakerPermit::Trial(_), CallOutcome::Failed) => self.reopen_until(now + self.backoff()),
            (BreakerPermit::HookTrial(_), CallOutcome::Returned) => self.resume(hook),
            // The next trial has its time already.
            (BreakerPermit::HookTrial(_), CallOutcome::Failed) => {}
            (BreakerPermit::HookTrial(Duration::MAX), CallOutcome::Late) => self.count_late(now),
            (BreakerPermit::HookTrial(_), CallOutcome::Late) => self.open(now, "limits.cpu"),
            (_, CallOutcome::Returned) => self.count_success(hook),
            (_, CallOutcome::Failed) => self.count_failure(hook, now),
            (BreakerPermit::Short(_), CallOutcome::Late) => self.open(now, "limits.cpu"),
            (BreakerPermit::Usual, CallOutcome::Late) => self.count_late(now),
        }
    }

    /// Returns the state that operators see.
    pub fn state(&self, now: Instant) -> BreakerState {
        let ms = self.ms(now);
        let waits = |hook: usize| ms < self.rows[hook].trial_at.load(Ordering::Relaxed);
        let stopped = self.stopped.load(Ordering::Relaxed);
        let is_stopped = |hook: &usize| stopped & (1 << hook) != 0;
        match self.mode.load(Ordering::Relaxed) {
            CLOSED if stopped == 0 => BreakerState::Closed,
            OPEN if ms < self.until.load(Ordering::Relaxed) => BreakerState::Open,
            _ if (0..HookKind::COUNT).filter(is_stopped).any(waits) => BreakerState::Open,
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
            // Calls that still fail while the hook is stopped change nothing.
            if !self.is_stopped(hook) {
                row.trial_at.store(self.ms(now + BACKOFF), Ordering::Release);
                self.stopped.fetch_or(hook.bit(), Ordering::Release);
                let (plugin, client, failures_of) = (&*self.plugin, self.client(), hook.word());
                warn!(plugin, client, failures_of, retry_in = ?BACKOFF, "plugin breaker opened");
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

    /// Whether its failures have stopped a hook.
    fn is_stopped(&self, hook: HookKind) -> bool {
        self.stopped.load(Ordering::Acquire) & hook.bit() != 0
    }

    /// Makes calls of a hook again, after a trial.
    fn resume(&self, hook: HookKind) {
        self.rows[hook as usize].weight.store(0, Ordering::Relaxed);
        if self.stopped.fetch_and(!hook.bit(), Ordering::AcqRel) & hook.bit() != 0 {
            info!(plugin = &*self.plugin, client = self.client(), calls_of = hook.word(), "plugin breaker closed");
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
        warn!(plugin = &*self.plugin, client = self.client(), limit, retry_in = ?backoff, "plugin breaker opened");
    }

    /// Opens the breaker again after a trial that failed without cost, until the next trial.
    fn reopen_until(&self, next: Instant) {
        self.until.store(self.ms(next), Ordering::Release);
        self.mode.store(OPEN, Ordering::Release);
    }

    /// Closes the breaker after a trial. For twice the backoff, calls get as little CPU time as the trial had, and a
    /// late one opens the breaker at once.
    fn succeed(&self, hook: HookKind, now: Instant) {
        self.resume(hook);
        self.close(now);
    }

    /// Closes the breaker after a trial that was not late.
    fn close(&self, now: Instant) {
        let is_late_before = self.level.load(Ordering::Relaxed) > 0;
        self.until.store(self.ms(now + 2 * self.backoff()), Ordering::Release);
        self.mode.store(if is_late_before { CAUTIOUS } else { CLOSED }, Ordering::Release);
        info!(plugin = &*self.plugin, client = self.client(), "plugin breaker closed");
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

    /// Returns the client for the log; `None` if no client asked for the calls, or if it has no address.
    fn client(&self) -> Option<String> {
        ClientNet::of_holder(Holder::numbered(self.client.load(Ordering::Relaxed))).map(|net| net.to_string())
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }
}

impl BreakerPermit {
    /// Returns the CPU time of the call, if that is less than the plugin's limit.
    pub fn budget(self) -> Option<Duration> {
        match self {
            BreakerPermit::Usual => None,
            BreakerPermit::Short(time) | BreakerPermit::Trial(time) | BreakerPermit::HookTrial(time) => Some(time),
        }
    }

    /// Whether the call's result decides about further calls.
    pub fn is_trial(self) -> bool {
        matches!(self, BreakerPermit::Trial(_) | BreakerPermit::HookTrial(_))
    }
}

impl HookKind {
    /// The number of kinds.
    const COUNT: usize = HookKind::Timer as usize + 1;

    /// Returns the kind of the filter on a side.
    pub fn filter(side: MessageSide) -> Self {
        match side {
            MessageSide::Request => HookKind::RequestFilter,
            MessageSide::Response => HookKind::ResponseFilter,
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }

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

    /// Returns the state that rejects the most calls.
    pub fn worst(states: impl Iterator<Item = BreakerState>) -> Self {
        let rank = |state: &BreakerState| match state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        };
        states.max_by_key(rank).unwrap_or(BreakerState::Closed)
    }

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
        let permit = breaker.admit(REQUEST, now).unwrap();
        breaker.settle(permit, REQUEST, CallOutcome::Late, now);
    }

    #[test]
    fn late_calls_open_it_and_a_trial_closes_it() {
        let (breaker, began) = breaker();
        (0..2).for_each(|n| late(&breaker, at(began, n)));
        assert_eq!(breaker.admit(REQUEST, at(began, 2)), Some(BreakerPermit::Usual));
        late(&breaker, at(began, 2));
        assert!(!breaker.is_closed());
        assert_eq!(breaker.admit(REQUEST, at(began, 900)), None);
        let trial = breaker.admit(REQUEST, at(began, 1003)).unwrap();
        assert_eq!(trial, BreakerPermit::Trial(TICK));
        assert_eq!(breaker.admit(REQUEST, at(began, 1004)), None, "one trial at a time");
        breaker.settle(trial, REQUEST, CallOutcome::Returned, at(began, 1005));
        assert_eq!(breaker.admit(REQUEST, at(began, 1006)), Some(BreakerPermit::Short(TICK)));
        assert_eq!(breaker.admit(REQUEST, at(began, 3100)), Some(BreakerPermit::Usual));
        assert!(breaker.is_closed());
    }

    #[test]
    fn the_backoff_doubles_up_to_a_minute_and_trials_get_more_time_with_it() {
        let (breaker, began) = breaker();
        (0..3).for_each(|_| late(&breaker, began));
        let mut now = began;
        for (seconds, ticks) in [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (32, 32), (60, 64), (60, 64)] {
            assert_eq!(breaker.admit(REQUEST, now + Duration::from_millis(seconds * 1000 - 1)), None);
            now += Duration::from_secs(seconds);
            let trial = breaker.admit(REQUEST, now).unwrap();
            assert_eq!(trial, BreakerPermit::Trial(TICK * ticks));
            breaker.settle(trial, REQUEST, CallOutcome::Late, now);
        }
    }

    #[test]
    fn a_late_call_soon_after_a_trial_opens_it_at_once() {
        let (breaker, began) = breaker();
        (0..3).for_each(|_| late(&breaker, began));
        let trial = breaker.admit(REQUEST, at(began, 1000)).unwrap();
        breaker.settle(trial, REQUEST, CallOutcome::Returned, at(began, 1000));
        late(&breaker, at(began, 1500));
        assert_eq!(breaker.admit(REQUEST, at(began, 3400)), None);
        assert_eq!(breaker.admit(REQUEST, at(began, 3500)), Some(BreakerPermit::Trial(2 * TICK)));
    }

    /// Makes a call each millisecond, of which every one of these numbers succeeds.
    fn failing(breaker: &Breaker, began: Instant, times: Range<u64>, success_every: u64) {
        for ms in times {
            let is_success = ms % success_every == 0;
            let outcome = if is_success { CallOutcome::Returned } else { CallOutcome::Failed };
            breaker.settle(BreakerPermit::Usual, REQUEST, outcome, at(began, ms));
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
        assert_eq!(breaker.admit(REQUEST, at(began, 13_900)), None);
        // As often as one call a second may find out that the plugin works again.
        for second in 0..5 {
            let now = at(began, 15_000 + second * 1000);
            let trial = breaker.admit(REQUEST, now).unwrap();
            assert_eq!(trial, BreakerPermit::HookTrial(Duration::MAX));
            breaker.settle(trial, REQUEST, CallOutcome::Failed, now);
        }
        let trial = breaker.admit(REQUEST, at(began, 20_000)).unwrap();
        breaker.settle(trial, REQUEST, CallOutcome::Returned, at(began, 20_000));
        assert!(breaker.is_closed());
    }

    fn fail(breaker: &Breaker, began: Instant, hook: HookKind) {
        (1..3200).for_each(|ms| breaker.settle(BreakerPermit::Usual, hook, CallOutcome::Failed, at(began, ms)));
    }

    #[test]
    fn failures_of_a_hook_stop_the_calls_of_that_hook_alone() {
        let (breaker, began) = breaker();
        for ms in 1..3200 {
            breaker.settle(BreakerPermit::Usual, HookKind::Body, CallOutcome::Failed, at(began, ms));
            breaker.settle(BreakerPermit::Usual, REQUEST, CallOutcome::Returned, at(began, ms));
        }
        let now = at(began, 5000);
        assert!(!breaker.is_closed());
        let trial = breaker.admit(HookKind::Body, now);
        assert_eq!(trial, Some(BreakerPermit::HookTrial(Duration::MAX)));
        assert_eq!(breaker.admit(HookKind::Body, now), None, "one trial at a time");
        assert_eq!(breaker.admit(REQUEST, now), Some(BreakerPermit::Usual));
        breaker.settle(BreakerPermit::Usual, REQUEST, CallOutcome::Returned, now);
        assert_eq!(breaker.admit(HookKind::Body, now), None, "a success of another hook ends no trial");
        // A trial that fails, or that never ended, is repeated.
        breaker.settle(trial.unwrap(), HookKind::Body, CallOutcome::Failed, now);
        let trial = breaker.admit(HookKind::Body, at(began, 6000)).unwrap();
        breaker.settle(trial, HookKind::Body, CallOutcome::Returned, at(began, 6000));
        assert!(breaker.is_closed());
    }

    #[test]
    fn late_calls_stop_all_hooks_while_one_is_stopped() {
        let (breaker, began) = breaker();
        fail(&breaker, began, HookKind::Body);
        (0..3).for_each(|ms| late(&breaker, at(began, 3200 + ms)));
        assert_eq!(breaker.admit(REQUEST, at(began, 4100)), None);
        assert_eq!(breaker.admit(HookKind::Body, at(began, 4100)), None);
        // Its trial decides about the plugin, and not about the other hook.
        let trial = breaker.admit(REQUEST, at(began, 4300)).unwrap();
        breaker.settle(trial, REQUEST, CallOutcome::Returned, at(began, 4300));
        assert_eq!(breaker.admit(REQUEST, at(began, 4301)), Some(BreakerPermit::Short(TICK)));
        let trial = breaker.admit(HookKind::Body, at(began, 4301)).unwrap();
        assert_eq!(trial, BreakerPermit::HookTrial(TICK));
        breaker.settle(trial, HookKind::Body, CallOutcome::Late, at(began, 4302));
        assert_eq!(breaker.admit(REQUEST, at(began, 4303)), None);
        assert_eq!(breaker.state(at(began, 4303)), BreakerState::Open);
        // A trial of the plugin by the hook that is stopped decides about both.
        let trial = breaker.admit(HookKind::Body, at(began, 6400)).unwrap();
        assert_eq!(trial, BreakerPermit::Trial(2 * TICK));
        breaker.settle(trial, HookKind::Body, CallOutcome::Returned, at(began, 6400));
        assert_eq!(breaker.admit(HookKind::Body, at(began, 6401)), Some(BreakerPermit::Short(2 * TICK)));
    }

    #[test]
    fn a_stopped_hook_takes_the_trial_of_the_plugin_from_no_other() {
        let (breaker, began) = breaker();
        fail(&breaker, began, HookKind::Observer);
        (0..3).for_each(|_| late(&breaker, at(began, 3200)));
        let trial = breaker.admit(HookKind::Observer, at(began, 4200)).unwrap();
        assert_eq!(trial, BreakerPermit::Trial(TICK));
        assert_eq!(breaker.admit(REQUEST, at(began, 4200)), None, "one trial at a time");
        breaker.settle(trial, HookKind::Observer, CallOutcome::Failed, at(began, 4201));
        assert_eq!(breaker.admit(HookKind::Observer, at(began, 4201)), None);
        let trial = breaker.admit(REQUEST, at(began, 4201)).unwrap();
        assert_eq!(trial, BreakerPermit::Trial(TICK));
        breaker.settle(trial, REQUEST, CallOutcome::Returned, at(began, 4201));
        assert_eq!(breaker.admit(REQUEST, at(began, 4202)), Some(BreakerPermit::Short(TICK)));
        // The failures of a hook that is not stopped keep the breaker open for the backoff.
        late(&breaker, at(began, 4202));
        let trial = breaker.admit(REQUEST, at(began, 6202)).unwrap();
        breaker.settle(trial, REQUEST, CallOutcome::Failed, at(began, 6202));
        assert_eq!(breaker.admit(REQUEST, at(began, 8201)), None);
        // A plugin whose only hook is stopped is tried once in a backoff.
        let trial = breaker.admit(HookKind::Observer, at(began, 8202)).unwrap();
        assert_eq!(trial, BreakerPermit::Trial(2 * TICK));
        breaker.settle(trial, HookKind::Observer, CallOutcome::Failed, at(began, 8202));
        assert_eq!(breaker.admit(HookKind::Observer, at(began, 10_201)), None);
        let trial = breaker.admit(HookKind::Observer, at(began, 10_202)).unwrap();
        breaker.settle(trial, HookKind::Observer, CallOutcome::Returned, at(began, 10_202));
        assert_eq!(breaker.admit(HookKind::Observer, at(began, 10_203)), Some(BreakerPermit::Short(2 * TICK)));
    }

    /// Each body has calls that return before the one that fails.
    #[test]
    fn bodies_count_once_they_have_ended() {
        let began = Instant::now();
        let breaker = Breaker::new("a".into(), began);
        for ms in 0..3200 {
            breaker.settle(BreakerPermit::Usual, HookKind::Body, CallOutcome::Continued, at(began, ms));
            breaker.settle(BreakerPermit::Usual, HookKind::Body, CallOutcome::Failed, at(began, ms));
        }
        assert_eq!(breaker.admit(HookKind::Body, at(began, 3201)), None);
        let trial = breaker.admit(HookKind::Body, at(began, 4300)).unwrap();
        breaker.settle(trial, HookKind::Body, CallOutcome::Continued, at(began, 4300));
        assert_eq!(breaker.admit(HookKind::Body, at(began, 4301)), None, "the trial has not ended");
        breaker.settle(trial, HookKind::Body, CallOutcome::Returned, at(began, 4302));
        assert_eq!(breaker.admit(HookKind::Body, at(began, 4303)), Some(BreakerPermit::Usual));
    }

    #[test]
    fn a_trial_that_never_ended_is_repeated() {
        let (breaker, began) = breaker();
        (0..3).for_each(|_| late(&breaker, began));
        breaker.admit(REQUEST, at(began, 1000)).unwrap();
        assert_eq!(breaker.admit(REQUEST, at(began, 1900)), None);
        assert!(matches!(breaker.admit(REQUEST, at(began, 2000)), Some(BreakerPermit::Trial(_))));
    }
}
