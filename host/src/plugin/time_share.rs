//! The share of a worker's time that a configured plugin may take: token buckets, charged at ticks of the engine's clock.
//!
//! A tick meets a call of `t` with the probability `t / TICK`, at a time that is spread evenly over the call. A charge
//! of `TICK * weight(time left in the call)` at each tick is therefore, on average, the integral of `weight` over the
//! call, though no clock is read for calls that no tick meets.
//!
//! All calls take from a bucket that holds the share of a minute. Two kinds of calls take from a bucket of their kind too:
//!
//! - Long calls take from a bucket that holds the share of twenty seconds, or one call that takes all of its limit: what may
//!   be used at once is used within a second by a plugin that is called all the time, and then it makes few calls.
//! - Calls that are longer than a request takes without plugins take from a bucket that holds a tenth of a second of
//!   calls: in a queue, they delay others more than as many requests without plugins. Faster calls don't take from it, so
//!   that a busy worker is no reason to reject the calls of a fast plugin.
//!
//! The refill of a bucket of a kind is divided between the plugins of a worker whose bucket is not full: requests that
//! wait behind calls don't care how many plugins those belong to. For the same reason all calls of a kind on a worker take
//! from one more bucket. While that is empty, only plugins that have used little of their own make calls, so that the
//! bursts of many plugins don't add up.
//!
//! Clients can make calls expensive, by long requests for instance. So each bucket has a reserve, from which calls take while
//! the bucket is empty, and which is refilled half as fast. Calls for the clients that have taken most of the bucket lately
//! get nothing from the reserve. As the calls of a kind have a bucket of their own, a client whose calls are slow is to blame
//! for an empty one, and others with any number of fast calls are not.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::cpu_time::TICK;
use super::heavy_clients::HeavyClients;
use super::load_meter::LoadMeter;
use crate::system::holder_counts::Holder;

/// The share of a configured plugin on one worker.
pub struct TimeShare {
    /// The address of the shared part of the plugin's version: a reload that doesn't change the version keeps the
    /// share.
    version: usize,
    /// Percent of the worker's time.
    percent: u8,
    /// The bucket of all calls.
    all: Bucket,
    /// The reserve of that bucket.
    reserve: Reserve,
    /// The buckets of each [`CallKind`].
    of_kinds: [KindBudget; KINDS.len()],
    worker: Rc<Shares>,
    is_spent: Cell<bool>,
    /// The number of calls that are still measured from beginning to end, since one has missed ticks, or calls take much
    /// of the worker's time.
    watched_calls: Cell<u32>,
    /// The time until which all calls are measured, because one of the measured calls was long; `None` if none was.
    watched_until: Cell<Option<Instant>>,
}

/// The shares of all plugins of a worker.
pub struct Shares {
    of_plugins: RefCell<Vec<Weak<TimeShare>>>,
    /// The buckets of all plugins for each [`CallKind`], which hold as much as the largest of theirs.
    of_kinds: [Bucket; KINDS.len()],
    /// The time of calls that are no shorter than [`BRIEF`].
    load: LoadMeter,
}

/// A kind of calls that have a budget of their own.
#[derive(Clone, Copy)]
enum CallKind {
    /// A call that is longer than [`SHORT`].
    Long,
    /// A call that is longer than [`FAST`]; a long call is one too.
    Slow,
}

/// The budget of a plugin for the calls of a kind.
struct KindBudget {
    bucket: Bucket,
    reserve: Reserve,
    /// The number of calls that were charged since the bucket was full.
    calls: Cell<u32>,
    /// The time at which the bucket is full again, as the plugins of the worker know it.
    full_at: Cell<Instant>,
}

/// The time that calls may take while a bucket is empty, unless their client has emptied it.
struct Reserve {
    bucket: Bucket,
    /// The clients that have taken most of the bucket that was emptied.
    heavy: HeavyClients,
}

/// The cost of calls for the buckets, in microseconds.
#[derive(Clone, Copy, Default)]
struct Cost {
    time: i64,
    of_kinds: [i64; KINDS.len()],
}

const KINDS: [CallKind; 2] = [CallKind::Long, CallKind::Slow];

/// A token bucket that is refilled by time. Its tokens are microseconds of the worker's time of which the share is what
/// calls may take.
struct Bucket {
    /// Negative while the share is used up.
    level: Cell<i64>,
    /// The time at which `level` was last refilled.
    refilled: Cell<Instant>,
    /// The highest level.
    most: Cell<i64>,
}

/// The default of `limits.share`. Calls of 20 µs may come 25,000 times a second; a call of 45 ms once in twelve seconds.
pub const DEFAULT_SHARE: u8 = 50;

/// A share that is not limited.
pub const WHOLE: u8 = 100;

/// The time whose share calls may use at once, and that a single call can use up at most. No call blocks a plugin that
/// is the only one with long calls for longer than a minute.
const WINDOW: Duration = Duration::from_secs(60);

/// The time whose share long calls may use at once: two calls of 45 ms by default. With four, so many would be left for
/// a worker after a second of ten late requests, spread over two workers, that they show in the others' 99th percentile.
const LONG_WINDOW: Duration = Duration::from_secs(20);

/// The time of slow calls that may be made at once. In twice that time, a plugin that is called all the time is down to
/// its share. A plugin with a third of the time never uses it up by chance, which ticks have a part in.
const SLOW_BURST: Duration = Duration::from_millis(100);

/// The most that one call costs as a slow one. Calls of many times this length are kept to much less by the bucket of long
/// calls, and one of them is to leave the rest of the burst to others.
const MAX_SLOW_COST: Duration = Duration::from_millis(10);

/// The number of calls that are measured after a call that missed a tick, which any call may do by chance, and after one
/// that a tick has met while calls take much of the worker's time. Two readings of the clock cost as much as a short
/// call, so they are few beside the calls that no tick meets.
const WATCHED_CALLS: u32 = 16;

/// The time in which all calls are measured after a long call. A plugin whose calls miss ticks over and over gets one
/// call free of charge in this time.
const WATCH: Duration = Duration::from_secs(60);

/// The length beyond which a call delays requests that wait behind it, as many as arrive in the meantime, each for the
/// rest of the call. The cost of a call therefore grows with the square of the time beyond this length.
const SHORT: Duration = Duration::from_millis(1);

/// The least cost of a turn of a call that waits: the worker's own work for it.
const MIN_TURN: Duration = Duration::from_micros(20);

/// The length below which a call is never measured for the load of the worker: it delays others no more than a request
/// without plugins does, and to queue it would cost more.
const BRIEF: Duration = Duration::from_micros(50);

/// The length up to which a call delays others no more than a request without plugins does.
const FAST: Duration = Duration::from_micros(100);

/// The length beyond which the time of a slow call counts twice. A request without plugins takes a small part of it.
const VERY_SLOW: Duration = Duration::from_micros(400);

/// The part of a bucket that its reserve holds, and of its refill that the reserve gets, as a divisor. Calls take no more than
/// one and a half times the share, whatever their clients are.
const RESERVE_PART: i64 = 2;

/// The factor of the square. With it, calls of 45 ms take at most 0.4 % of a worker's time with the default share, so
/// that the 99th percentile of other requests does not change.
const STEEPNESS: i64 = 3;

impl TimeShare {
    /// Returns the share of a plugin's version, or a new share if there is none; calls take `limit` at most.
    pub fn of(version: usize, percent: u8, limit: Duration, worker: &Rc<Shares>, now: Instant) -> Rc<Self> {
        let known = worker.of_plugins.borrow().iter().filter_map(Weak::upgrade).find(|share| share.version == version);
        known.unwrap_or_else(|| {
            let share = Rc::new(TimeShare::new(version, percent, limit, worker, now));
            worker.of_plugins.borrow_mut().push(Rc::downgrade(&share));
            share
        })
    }

    fn new(version: usize, percent: u8, limit: Duration, worker: &Rc<Shares>, now: Instant) -> Self {
        let of_kinds = KINDS.map(|kind| {
            let most = kind.most(percent, limit);
            worker.of_kinds[kind as usize].widen(most);
            let (bucket, reserve) = (Bucket::new(most, now), Reserve::new(most, now));
            KindBudget { bucket, reserve, calls: Cell::new(0), full_at: Cell::new(now) }
        });
        TimeShare {
            version,
            percent,
            all: Bucket::new(micros(WINDOW), now),
            reserve: Reserve::new(micros(WINDOW), now),
            of_kinds,
            worker: worker.clone(),
            is_spent: Cell::new(false),
            watched_calls: Cell::new(0),
            watched_until: Cell::new(None),
        }
    }

    /// Returns the plugin's version, by which shares are told apart.
    pub fn version(&self) -> usize {
        self.version
    }

    /// Whether the share was used up at the last charge, so that calls take from the reserve or are rejected.
    pub fn is_spent(&self) -> bool {
        self.is_spent.get()
    }

    /// Returns `None` if a call may be made for a client, or the time until one may be made.
    pub fn wait(&self, client: Holder, now: Instant) -> Option<Duration> {
        self.all.refill(now, 1);
        let of_all = -self.all.level.get();
        let mut missing = self.reserve.missing(of_all, client, 0, now);
        let mut is_spent = of_all > 0;
        for kind in KINDS {
            let others = self.others(kind, now);
            let of_kind = self.missing(kind, others, now);
            is_spent |= of_kind > 0;
            missing = missing.max(self.of_kinds[kind as usize].reserve.missing(of_kind, client, others, now));
        }
        self.is_spent.set(is_spent);
        (missing > 0).then(|| Duration::from_micros(missing.unsigned_abs()))
    }

    /// Returns the microseconds until calls of a kind may be made without the reserve, beside those of `others`; none are
    /// missing if it is not positive.
    fn missing(&self, kind: CallKind, others: i64, now: Instant) -> i64 {
        let budget = &self.of_kinds[kind as usize];
        budget.bucket.refill(now, others + 1);
        let missing = (-budget.bucket.level.get()).saturating_mul(others + 1);
        if budget.has_used_little() {
            return missing;
        }
        let of_worker = &self.worker.of_kinds[kind as usize];
        of_worker.refill(now, 1);
        let until_little_is_used = budget.least_used_level() - budget.bucket.level.get();
        missing.max((-of_worker.level.get()).min(until_little_is_used.saturating_mul(others + 1)))
    }

    /// Whether the next call is measured from its beginning to its end.
    pub fn is_watched(&self) -> bool {
        self.watched_calls.get() > 0 || self.watched_until.get().is_some()
    }

    /// Measures the next calls.
    pub fn watch(&self) {
        self.watched_calls.set(WATCHED_CALLS);
    }

    /// Charges a call that was measured from its beginning to its end.
    pub fn charge_measured(&self, time: Duration, client: Holder, now: Instant) {
        self.charge_time(time, client, now);
        self.count_watched(time, now);
    }

    /// Counts a call or a turn that was measured; the next ones are measured too after a long one, and while calls take much
    /// of the worker's time.
    fn count_watched(&self, time: Duration, now: Instant) {
        self.watched_calls.set(self.watched_calls.get().saturating_sub(1));
        self.note_load(time, time, now);
        if time > SHORT {
            self.watched_until.set(Some(now + WATCH));
        } else if self.watched_until.get().is_some_and(|until| until <= now) {
            self.watched_until.set(None);
        }
    }

    /// Notes the time of a call for the load of the worker. `known` is the length that the call has at least.
    fn note_load(&self, known: Duration, time: Duration, now: Instant) {
        if known >= BRIEF && self.worker.load.note(time, now) {
            self.watch();
        }
    }

    /// Charges a call that a tick has met, and that used more CPU time after the tick.
    pub fn charge_ticks(&self, since_first_tick: Duration, client: Holder, now: Instant) {
        let mut left = since_first_tick;
        let mut cost = tick_cost(left);
        while let Some(later) = left.checked_sub(TICK)
            && cost.of_kinds[CallKind::Long as usize] < 2 * micros(WINDOW)
        {
            left = later;
            cost = cost.plus(tick_cost(left));
        }
        if since_first_tick <= SHORT {
            cost.of_kinds[CallKind::Long as usize] = 0;
        }
        self.note_load(since_first_tick, since_first_tick.max(TICK), now);
        self.charge(cost, client, now);
    }

    /// Charges work whose CPU time is known.
    pub fn charge_time(&self, time: Duration, client: Holder, now: Instant) {
        self.charge_part(Duration::ZERO, time, client, now);
    }

    /// Charges a turn of a call that waits between its turns, of which earlier turns took `before`. The turns of a call are
    /// slow together, and hold others up one by one.
    pub fn charge_turn(&self, before: Duration, turn: Duration, client: Holder, now: Instant) {
        self.charge_part(before, turn.max(MIN_TURN), client, now);
        self.count_watched(turn, now);
    }

    /// Charges an uninterrupted part of a call, of which earlier parts took `before`.
    fn charge_part(&self, before: Duration, part: Duration, client: Holder, now: Instant) {
        let long = if part > SHORT { cost(part) } else { 0 };
        let slow = slow_cost(before + part) - slow_cost(before);
        self.charge(Cost { time: micros(part), of_kinds: [long, slow] }, client, now);
    }

    /// Charges the cost of calls to all buckets.
    fn charge(&self, cost: Cost, client: Holder, now: Instant) {
        if self.percent >= WHOLE {
            return;
        }
        self.all.refill(now, 1);
        let is_reserved = self.reserve.covers(-self.all.level.get(), client, 0, now);
        let bucket = if is_reserved { &self.reserve.bucket } else { &self.all };
        bucket.charge(cost.time, self.percent);
        self.reserve.heavy.add(client, cost.time, now);
        let mut is_spent = self.all.level.get() < 0;
        for kind in KINDS {
            let cost = kind.limited(cost.of_kinds[kind as usize]);
            if cost > 0 {
                self.charge_kind(kind, cost, client, now);
            }
            is_spent |= self.of_kinds[kind as usize].bucket.level.get() < 0;
        }
        if is_spent {
            self.is_spent.set(true);
        }
    }

    fn charge_kind(&self, kind: CallKind, cost: i64, client: Holder, now: Instant) {
        let (others, budget) = (self.others(kind, now), &self.of_kinds[kind as usize]);
        let is_reserved = budget.reserve.covers(self.missing(kind, others, now), client, others, now);
        budget.reserve.heavy.add(client, cost, now);
        if is_reserved {
            return budget.reserve.bucket.charge(cost, self.percent);
        }
        let is_first = budget.bucket.is_full();
        budget.calls.set(if is_first { 1 } else { budget.calls.get().saturating_add(1) });
        budget.bucket.charge(cost, self.percent);
        let missing = (budget.bucket.most.get() - budget.bucket.level.get()).saturating_mul(others + 1);
        budget.full_at.set(now + Duration::from_micros(missing.unsigned_abs()));
        self.worker.charge_kind(kind, cost, self.percent, now);
    }

    /// The number of other plugins of the worker that have made calls of a kind lately.
    fn others(&self, kind: CallKind, now: Instant) -> i64 {
        let shares = self.worker.of_plugins.borrow();
        let is_other =
            |share: &Rc<TimeShare>| share.of_kinds[kind as usize].full_at.get() > now && !std::ptr::eq(&**share, self);
        i64::try_from(shares.iter().filter_map(Weak::upgrade).filter(is_other).count()).unwrap_or(i64::MAX - 1)
    }
}

impl Reserve {
    /// Returns the reserve of a bucket whose highest level is `most`.
    fn new(most: i64, now: Instant) -> Self {
        Reserve { bucket: Bucket::new(most / RESERVE_PART, now), heavy: HeavyClients::new(now) }
    }

    /// Returns the microseconds until calls may be made for a client, of the `missing` ones without the reserve. `others` of
    /// the plugins share the refill.
    fn missing(&self, missing: i64, client: Holder, others: i64, now: Instant) -> i64 {
        if !self.covers(missing, client, others, now) {
            return missing;
        }
        missing.min((-self.bucket.level.get()).saturating_mul((others + 1).saturating_mul(RESERVE_PART)))
    }

    /// Whether a call for a client takes from the reserve, since `missing` is positive, which is the time until the bucket
    /// admits calls.
    fn covers(&self, missing: i64, client: Holder, others: i64, now: Instant) -> bool {
        self.bucket.refill(now, (others + 1).saturating_mul(RESERVE_PART));
        missing > 0 && !self.heavy.is_heavy(client)
    }
}

impl KindBudget {
    /// Whether so little of the bucket is used that the bursts of other plugins don't matter.
    fn has_used_little(&self) -> bool {
        self.bucket.level.get() >= self.least_used_level()
    }

    /// The level down to which little of the bucket is used.
    fn least_used_level(&self) -> i64 {
        let most = self.bucket.most.get();
        if self.calls.get() <= 1 { most / 2 } else { most / 4 * 3 }
    }
}

impl CallKind {
    /// Returns the highest level of a plugin's bucket.
    fn most(self, percent: u8, limit: Duration) -> i64 {
        match self {
            // One call that takes all of its limit is forgiven: the calls after it are not to blame.
            CallKind::Long => tokens(cost(limit + TICK), percent).clamp(micros(LONG_WINDOW), micros(WINDOW)),
            CallKind::Slow => tokens(micros(SLOW_BURST), percent),
        }
    }

    /// Returns the cost of a call, or the most that a call costs.
    fn limited(self, cost: i64) -> i64 {
        match self {
            CallKind::Long => cost,
            CallKind::Slow => cost.min(micros(MAX_SLOW_COST)),
        }
    }
}

impl Cost {
    fn plus(self, other: Cost) -> Cost {
        let of_kinds = KINDS.map(|kind| self.of_kinds[kind as usize].saturating_add(other.of_kinds[kind as usize]));
        Cost { time: self.time + other.time, of_kinds }
    }
}

impl Shares {
    pub fn new(now: Instant) -> Rc<Self> {
        let of_kinds = [Bucket::new(micros(LONG_WINDOW), now), Bucket::new(micros(SLOW_BURST), now)];
        Rc::new(Shares { of_plugins: RefCell::default(), of_kinds, load: LoadMeter::new(now) })
    }

    /// Charges the bucket of all plugins. If it is empty then, plugins that have used more than a little of their own
    /// bucket make no calls until one of the two is refilled.
    fn charge_kind(&self, kind: CallKind, cost: i64, percent: u8, now: Instant) {
        let bucket = &self.of_kinds[kind as usize];
        bucket.refill(now, 1);
        bucket.charge(cost, percent);
        if bucket.level.get() < 0 {
            let shares = self.of_plugins.borrow();
            let has_used_its_own = |share: &Rc<TimeShare>| {
                let budget = &share.of_kinds[kind as usize];
                budget.full_at.get() > now && !budget.has_used_little()
            };
            shares.iter().filter_map(Weak::upgrade).filter(has_used_its_own).for_each(|share| share.is_spent.set(true));
        }
    }
}

impl Drop for TimeShare {
    fn drop(&mut self) {
        self.worker.of_plugins.borrow_mut().retain(|share| share.strong_count() > 0);
    }
}

impl Bucket {
    fn new(most: i64, now: Instant) -> Self {
        Bucket { level: Cell::new(most), refilled: Cell::new(now), most: Cell::new(most) }
    }

    /// Raises the highest level, and the current level by the same amount.
    fn widen(&self, most: i64) {
        let more = (most - self.most.get()).max(0);
        self.most.set(self.most.get() + more);
        self.level.set(self.level.get() + more);
    }

    fn is_full(&self) -> bool {
        self.level.get() >= self.most.get()
    }

    /// Adds the part of the time that has passed, divided by `parts`.
    fn refill(&self, now: Instant, parts: i64) {
        let passed = micros(now.saturating_duration_since(self.refilled.replace(now)));
        self.level.set(self.level.get().saturating_add(passed / parts).min(self.most.get()));
    }

    /// Removes the [`tokens`] of a time.
    fn charge(&self, time: i64, percent: u8) {
        self.level.set(self.level.get().saturating_sub(tokens(time, percent)).max(-micros(WINDOW)));
    }
}

/// The cost of a call in microseconds.
fn cost(time: Duration) -> i64 {
    let beyond = micros(time.saturating_sub(SHORT));
    let square = beyond.saturating_mul(beyond) / micros(SHORT);
    micros(time).saturating_add(square.saturating_mul(STEEPNESS))
}

/// Returns the cost of a slow call in microseconds.
fn slow_cost(time: Duration) -> i64 {
    micros(time.saturating_sub(FAST)) + micros(time.saturating_sub(VERY_SLOW))
}

/// Returns the derivative of [`slow_cost`].
fn slow_weight(time: Duration) -> i64 {
    i64::from(time > FAST) + i64::from(time > VERY_SLOW)
}

/// Returns the cost of a tick that met a call with this time left: [`TICK`] times the derivative of the cost of a call.
fn tick_cost(left: Duration) -> Cost {
    let beyond = micros(left.saturating_sub(SHORT));
    let weight_per_mille = 1000 + beyond.saturating_mul(2 * STEEPNESS * 1000) / micros(SHORT);
    let long = micros(TICK).saturating_mul(weight_per_mille) / 1000;
    Cost { time: micros(TICK), of_kinds: [long, micros(TICK) * slow_weight(left)] }
}

/// Returns the time of which `time` is this percentage.
fn tokens(time: i64, percent: u8) -> i64 {
    time.saturating_mul(100) / i64::from(percent.max(1))
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Holder = Holder::UNKNOWN;
    const CPU: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_millis(45);

    /// A worker whose plugins are called over and over, by a clock of its own. Ticks meet calls at random, as on a machine
    /// that does other things too: a caller in step with ticks would be charged by chance.
    struct Worker {
        began: Instant,
        now: Instant,
        next_tick: Instant,
        random: u64,
        shares: Rc<Shares>,
    }

    impl Worker {
        fn new(random: u64) -> Self {
            let now = Instant::now();
            Worker { began: now, now, next_tick: now + TICK, random, shares: Shares::new(now) }
        }

        /// The share of a new version.
        fn share(&self, percent: u8) -> Rc<TimeShare> {
            let version = self.shares.of_plugins.borrow().len();
            TimeShare::of(version, percent, CPU, &self.shares, self.now)
        }

        /// Makes a call for [`CLIENT`] if the share admits it.
        fn call(&mut self, share: &TimeShare, length: Duration) -> Result<(), Duration> {
            self.call_for(CLIENT, share, length)
        }

        /// Makes a call for a client if the share admits it.
        fn call_for(&mut self, client: Holder, share: &TimeShare, length: Duration) -> Result<(), Duration> {
            if share.is_spent()
                && let Some(wait) = share.wait(client, self.now)
            {
                return Err(wait);
            }
            while self.next_tick <= self.now {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                self.next_tick += TICK + Duration::from_micros((self.random >> 33) % 500);
            }
            self.now += length;
            if self.next_tick < self.now {
                share.charge_ticks(self.now - self.next_tick, client, self.now);
            }
            Ok(())
        }

        fn passed(&self) -> Duration {
            self.now - self.began
        }
    }

    #[test]
    fn turns_of_a_call_are_slow_together() {
        let (turn, begin) = (FAST * 9 / 10, Instant::now());
        let spent_after = |turns_of_a_call: u32| {
            let share = TimeShare::of(0, 50, CPU, &Shares::new(begin), begin);
            let mut now = begin;
            (0..100_000_u32).find(|number| {
                now += turn;
                share.charge_turn(turn * (number % turns_of_a_call), turn, CLIENT, now);
                share.is_spent()
            })
        };
        let (one, many) = (spent_after(1), spent_after(100));
        assert!(many.is_some_and(|many| one.is_none_or(|one| one > 2 * many)), "{one:?} {many:?}");
    }

    /// Calls that may wait never queued for a turn, however long their turns were, unless the share was nearly spent.
    #[test]
    fn a_long_turn_of_a_call_makes_the_next_calls_queue() {
        let begin = Instant::now();
        let share = TimeShare::of(0, 50, CPU, &Shares::new(begin), begin);
        share.charge_turn(Duration::ZERO, SHORT / 2, CLIENT, begin);
        assert!(!share.is_watched());
        share.charge_turn(Duration::ZERO, SHORT * 5, CLIENT, begin);
        assert!(share.is_watched());
        share.charge_turn(Duration::ZERO, SHORT / 2, CLIENT, begin + WATCH);
        assert!(!share.is_watched());
    }

    /// The calls of a length that a share admits in a time, when calls come as fast as they can.
    fn admitted(length: Duration, percent: u8, time: Duration, random: u64) -> u64 {
        let (mut worker, mut calls) = (Worker::new(random), 0);
        let share = worker.share(percent);
        while worker.passed() < time {
            match worker.call(&share, length) {
                Ok(()) => (worker.now, calls) = (worker.now + Duration::from_micros(7), calls + 1),
                Err(wait) => worker.now += wait + Duration::from_micros(1),
            }
        }
        calls
    }

    fn portion(length: Duration, percent: u8) -> f64 {
        length.as_secs_f64() * admitted(length, percent, Duration::from_secs(600), 1) as f64 / 600.0
    }

    #[test]
    fn calls_are_measured_for_a_while_after_one_that_missed_ticks() {
        let worker = Worker::new(1);
        let (share, began) = (worker.share(50), worker.now);
        let time = |tenths| Duration::from_micros(tenths * 100);
        let measured = |tenths: u64, after| share.charge_measured(time(tenths), CLIENT, began + after);
        assert!(!share.is_watched());
        share.watch();
        (1..WATCHED_CALLS).for_each(|_| measured(1, Duration::ZERO));
        assert!(share.is_watched());
        measured(1, Duration::ZERO);
        assert!(!share.is_watched(), "no call was long");
        share.watch();
        measured(20, Duration::ZERO);
        (0..100).for_each(|_| measured(1, WATCH / 2));
        assert!(share.is_watched());
        measured(1, WATCH);
        assert!(!share.is_watched(), "no call was long for a minute");
    }

    /// Whether calls of a length are measured, after a second in which they take a part of the worker's time.
    fn are_watched(length: Duration, percent: u32, plugins: usize) -> bool {
        let mut worker = Worker::new(1);
        let shares: Vec<Rc<TimeShare>> = (0..plugins).map(|_| worker.share(WHOLE)).collect();
        while worker.passed() < Duration::from_secs(1) {
            for share in &shares {
                let _ = worker.call(share, length);
                worker.now += length * (100 - percent) / percent;
            }
        }
        shares.iter().all(|share| share.is_watched())
    }

    #[test]
    fn calls_are_measured_while_they_take_much_of_the_workers_time() {
        for length in [100, 200, 350, 900] {
            for plugins in [1, 8] {
                assert!(are_watched(Duration::from_micros(length), 80, plugins), "{length} {plugins}");
                assert!(!are_watched(Duration::from_micros(length), 10, plugins), "{length} {plugins}");
            }
        }
        assert!(!are_watched(Duration::from_micros(20), 80, 1), "brief calls are never measured");
    }

    #[test]
    fn short_calls_get_the_share_and_long_calls_hardly_any() {
        // Less than half: after each wait, calls are made until the next tick, which is half a tick away on average.
        let short = portion(Duration::from_micros(200), 50);
        assert!((0.3..0.60).contains(&short), "{short}");
        let long = portion(LONG, 50);
        assert!(long < 0.006, "{long}");
        let between = portion(Duration::from_millis(3), 50);
        assert!((0.02..0.2).contains(&between), "{between}");
    }

    #[test]
    fn two_long_calls_may_follow_each_other_and_one_more_in_twelve_seconds() {
        for random in 1..50 {
            let at_once = admitted(LONG, 50, Duration::from_secs(1), random);
            let calls = admitted(LONG, 50, Duration::from_secs(12), random);
            assert!((2..=3).contains(&at_once) && (3..=4).contains(&calls), "{at_once} {calls}");
        }
    }

    #[test]
    fn many_plugins_with_long_calls_have_one_refill_between_them() {
        for plugins in [3, 10] {
            let mut worker = Worker::new(1);
            let shares: Vec<Rc<TimeShare>> = (0..plugins).map(|_| worker.share(50)).collect();
            let mut late = 0;
            while worker.passed() < Duration::from_secs(600) {
                let after_burst = worker.passed() > Duration::from_secs(10);
                for share in &shares {
                    late += u32::from(worker.call(share, LONG).is_ok() && after_burst);
                }
                worker.now += Duration::from_millis(10);
            }
            // One plugin makes 50; the first refill of each comes a little sooner, as it doesn't know of the others yet.
            assert!((30..80).contains(&late), "{plugins}: {late}");
        }
    }

    #[test]
    fn bursts_of_many_plugins_do_not_add_up() {
        for (length, most) in [(LONG, 0.8), (Duration::from_millis(12), 1.2)] {
            let mut worker = Worker::new(1);
            let shares: Vec<Rc<TimeShare>> = (0..10).map(|_| worker.share(50)).collect();
            let mut late = Duration::ZERO;
            while worker.passed() < Duration::from_secs(12) {
                for share in &shares {
                    late += if worker.call(share, length).is_ok() { length } else { Duration::ZERO };
                }
                worker.now += Duration::from_millis(2);
            }
            // In 12 s, one plugin alone takes 0.14 s by calls of 45 ms, and 0.5 s by calls of 12 ms.
            assert!(late.as_secs_f64() < most, "{length:?}: {late:?}");
        }
    }

    #[test]
    fn slow_calls_of_many_plugins_take_one_share_between_them_after_a_tenth_of_a_second() {
        for plugins in [1, 4, 10] {
            let mut worker = Worker::new(1);
            let shares: Vec<Rc<TimeShare>> = (0..plugins).map(|_| worker.share(50)).collect();
            let (mut at_once, mut later, length) = (Duration::ZERO, Duration::ZERO, Duration::from_micros(900));
            while worker.passed() < Duration::from_secs(21) {
                for share in &shares {
                    let took = if worker.call(share, length).is_ok() { length } else { Duration::ZERO };
                    let phase = if worker.passed() < Duration::from_secs(1) { &mut at_once } else { &mut later };
                    *phase += took;
                    worker.now += Duration::from_micros(20);
                }
            }
            // Calls of 0.9 ms count as 1.3 ms. Each plugin may use a quarter of its own burst, of 25 ms, beside the others.
            let most_at_once = 0.7 + 0.025 * plugins as f64;
            let (at_once, later) = (at_once.as_secs_f64(), later.as_secs_f64() / 20.0);
            assert!((0.25..most_at_once).contains(&at_once), "{plugins}: {at_once}");
            assert!((0.2..0.45).contains(&later), "{plugins}: {later}");
        }
    }

    #[test]
    fn fast_calls_on_a_worker_that_others_keep_busy_are_never_refused() {
        for length in [20, 90, 300] {
            let mut worker = Worker::new(1);
            let bad: Vec<Rc<TimeShare>> = (0..4).map(|_| worker.share(50)).collect();
            let chain: Vec<Rc<TimeShare>> = (0..5).map(|_| worker.share(50)).collect();
            let mut due = worker.now;
            while worker.passed() < Duration::from_secs(30) {
                for share in &bad {
                    let _ = worker.call(share, Duration::from_micros(900));
                }
                worker.now += Duration::from_micros(100);
                // Each plugin of the chain takes 2 % of the worker's time.
                while due <= worker.now {
                    for share in &chain {
                        let called = worker.call(share, Duration::from_micros(length));
                        assert_eq!(called, Ok(()), "{length}: {:?}", worker.passed());
                    }
                    due += Duration::from_micros(50 * length);
                }
            }
        }
    }

    #[test]
    fn fast_calls_at_full_load_are_never_refused() {
        let mut worker = Worker::new(1);
        let chain: Vec<Rc<TimeShare>> = (0..10).map(|_| worker.share(50)).collect();
        while worker.passed() < Duration::from_secs(100) {
            for share in &chain {
                assert_eq!(worker.call(share, Duration::from_micros(40)), Ok(()), "{:?}", worker.passed());
            }
            worker.now += Duration::from_micros(50);
        }
    }

    #[test]
    fn a_long_call_a_minute_is_never_refused_nor_are_short_ones_between() {
        let mut worker = Worker::new(1);
        let (share, bad) = (worker.share(50), [worker.share(50), worker.share(50)]);
        for call in 0..20_000 {
            for bad in &bad {
                let _ = worker.call(bad, LONG);
            }
            let length = if call % 1000 == 0 { Duration::from_millis(30) } else { Duration::from_micros(300) };
            assert_eq!(worker.call(&share, length), Ok(()), "{call}");
            worker.now += Duration::from_millis(60);
        }
    }

    #[test]
    fn the_longest_call_is_forgiven_and_no_call_blocks_for_longer_than_the_window() {
        for cpu in [5, 50, 80, 130] {
            let (now, cpu) = (Instant::now(), Duration::from_millis(cpu));
            let share = TimeShare::of(0, DEFAULT_SHARE, cpu, &Shares::new(now), now);
            share.charge_ticks(cpu.min(Duration::from_millis(95)), CLIENT, now);
            assert!(!share.is_spent(), "{cpu:?}");
            share.charge_ticks(Duration::from_secs(3600), CLIENT, now);
            assert!(share.is_spent());
            let wait = share.wait(CLIENT, now).unwrap();
            assert!(wait <= WINDOW, "{wait:?}");
            assert_eq!(share.wait(CLIENT, now + wait + Duration::from_millis(1)), None);
        }
    }

    #[test]
    fn a_client_whose_calls_use_up_the_share_leaves_calls_to_others() {
        for length in [300, 900, 3_000, 45_000] {
            let mut worker = Worker::new(1);
            let share = worker.share(50);
            let (mut rejected, mut calls) = (0, 0);
            while worker.passed() < Duration::from_secs(10) {
                for _ in 0..20 {
                    rejected += u32::from(worker.call(&share, Duration::from_micros(length)).is_err());
                    calls += 1;
                }
                for other in 1..=10 {
                    let called = worker.call_for(Holder::numbered(other), &share, Duration::from_micros(15));
                    assert_eq!(called, Ok(()), "{length}: {:?}", worker.passed());
                }
                worker.now += Duration::from_millis(1);
            }
            assert!(rejected > calls / 10, "{length}: {rejected} of {calls}");
        }
    }

    /// An attacker with many addresses gets half of the share more.
    #[test]
    fn calls_for_very_many_clients_take_one_and_a_half_times_the_share() {
        // The share of the time that calls of this length get by their cost: of 1.3 ms, and of 1,103 ms.
        for (length, share_of_time) in [(900, 0.35), (20_000, 0.0091)] {
            let mut worker = Worker::new(1);
            let share = worker.share(50);
            let (mut taken, length) = (Duration::ZERO, Duration::from_micros(length));
            for client in 1.. {
                let called = worker.call_for(Holder::numbered(client), &share, length);
                if worker.passed() > Duration::from_secs(60) {
                    taken += if called.is_ok() { length } else { Duration::ZERO };
                }
                worker.now += Duration::from_micros(200);
                if worker.passed() > Duration::from_secs(160) {
                    break;
                }
            }
            let (times, alone) = (taken.as_secs_f64() / 100.0 / share_of_time, portion(length, 50) / share_of_time);
            assert!(times < 1.6 && times > alone * 1.2, "{length:?}: {times}, {alone}");
        }
    }

    #[test]
    fn a_version_has_one_share_until_nothing_uses_it() {
        let now = Instant::now();
        let shares = Shares::new(now);
        let share = |version| TimeShare::of(version, 50, CPU, &shares, now);
        let first = share(7);
        first.charge_time(Duration::from_millis(500), CLIENT, now);
        assert!(share(7).is_spent() && !share(8).is_spent());
        drop(first);
        assert!(!share(7).is_spent());
        assert!(shares.of_plugins.borrow().is_empty());
    }

    #[test]
    fn the_whole_share_is_not_limited() {
        let now = Instant::now();
        let (shares, second) = (Shares::new(now), Duration::from_secs(1));
        let share = TimeShare::of(0, WHOLE, second, &shares, now);
        (0..100).for_each(|_| share.charge_time(second, CLIENT, now));
        assert!(!share.is_spent());
        // Nor does it take anything from others.
        assert_eq!(TimeShare::of(1, 50, second, &shares, now).others(CallKind::Long, now), 0);
    }
}
