//! The share of a worker's time that a configured plugin may take: token buckets, charged at ticks of the engine's clock.
//!
//! A tick meets a call of `t` with the probability `t / TICK`, at a time that is spread evenly over the call. A charge
//! of `TICK * weight(time left in the call)` at each tick is therefore, on average, the integral of `weight` over the
//! call, though no clock is read for calls that no tick meets.
//!
//! All calls take from a bucket that holds the share of a minute. Long calls take from another one too, which holds the
//! share of twenty seconds, or one call that takes all of its limit: what may be used at once is used within a second by
//! a plugin that is called all the time, and then it makes few calls. The refill of that bucket is divided between the
//! plugins of a worker that have made long calls lately: requests that wait behind calls don't care how many plugins
//! those belong to. For the same reason all long calls of a worker take from one more bucket. While that is empty, only
//! plugins that have used little of their own make long calls, so that the bursts of many plugins don't add up.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::cpu_time::TICK;

/// The share of a configured plugin on one worker.
pub struct TimeShare {
    /// The address of the shared part of the plugin's version: a reload that doesn't change the version keeps the
    /// share.
    version: usize,
    /// Percent of the worker's time.
    percent: u8,
    /// The bucket of all calls.
    all: Bucket,
    /// The bucket of calls that are longer than [`SHORT`].
    long: Bucket,
    /// The number of calls that were charged to `long` since the bucket was full.
    long_calls: Cell<u32>,
    /// The time at which `long` is full again, as the plugins of the worker know it.
    full_at: Cell<Instant>,
    worker: Rc<Shares>,
    is_spent: Cell<bool>,
    /// The number of calls that are still measured from beginning to end, since one has missed ticks.
    watched_calls: Cell<u32>,
    /// The time until which all calls are measured, because one of the measured calls was long; `None` if none was.
    watched_until: Cell<Option<Instant>>,
}

/// The shares of all plugins of a worker.
pub struct Shares {
    of_plugins: RefCell<Vec<Weak<TimeShare>>>,
    /// The bucket of the long calls of all plugins, which holds as much as the largest of theirs.
    long: Bucket,
}

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

/// The number of calls that are measured after a call that missed a tick, which any call may do by chance. Two readings
/// of the clock cost as much as a short call, so they are few beside the calls that no tick meets.
const WATCHED_CALLS: u32 = 16;

/// The time in which all calls are measured after a long call. A plugin whose calls miss ticks over and over gets one
/// call free of charge in this time.
const WATCH: Duration = Duration::from_secs(60);

/// The length beyond which a call delays requests that wait behind it, as many as arrive in the meantime, each for the
/// rest of the call. The cost of a call therefore grows with the square of the time beyond this length.
const SHORT: Duration = Duration::from_millis(1);

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
        // One call that takes all of its limit is forgiven: the calls after it are not to blame.
        let one = cost(limit + TICK).saturating_mul(100) / i64::from(percent.max(1));
        let long = Bucket::new(one.clamp(micros(LONG_WINDOW), micros(WINDOW)), now);
        worker.long.widen(long.most.get());
        let all = Bucket::new(micros(WINDOW), now);
        let (full_at, worker, is_spent) = (Cell::new(now), worker.clone(), Cell::new(false));
        TimeShare {
            version,
            percent,
            all,
            long,
            long_calls: Cell::new(0),
            full_at,
            worker,
            is_spent,
            watched_calls: Cell::new(0),
            watched_until: Cell::new(None),
        }
    }

    /// Whether the share was used up at the last charge.
    pub fn is_spent(&self) -> bool {
        self.is_spent.get()
    }

    /// Returns `None` if a call may be made, or the time until one may be made.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let others = self.others(now);
        self.all.refill(now, 1);
        self.long.refill(now, others + 1);
        let mut missing = (-self.all.level.get()).max((-self.long.level.get()).saturating_mul(others + 1));
        if !self.has_used_little() {
            self.worker.long.refill(now, 1);
            let until_little_is_used = self.least_used_level() - self.long.level.get();
            missing = missing.max((-self.worker.long.level.get()).min(until_little_is_used.saturating_mul(others + 1)));
        }
        self.is_spent.set(missing > 0);
        (missing > 0).then(|| Duration::from_micros(missing.unsigned_abs()))
    }

    /// Whether the next call is measured from its beginning to its end.
    pub fn is_watched(&self) -> bool {
        self.watched_calls.get() > 0 || self.watched_until.get().is_some()
    }

    /// Measures the next calls, after one that missed ticks.
    pub fn watch(&self) {
        self.watched_calls.set(WATCHED_CALLS);
    }

    /// Charges a call that was measured from its beginning to its end.
    pub fn charge_measured(&self, time: Duration, now: Instant) {
        self.charge_time(time, now);
        self.watched_calls.set(self.watched_calls.get().saturating_sub(1));
        if time > SHORT {
            self.watched_until.set(Some(now + WATCH));
        } else if self.watched_until.get().is_some_and(|until| until <= now) {
            self.watched_until.set(None);
        }
    }

    /// Charges a call that a tick has met, and that used more CPU time after the tick.
    pub fn charge_ticks(&self, since_first_tick: Duration, now: Instant) {
        let mut left = since_first_tick;
        let (mut time, mut cost) = (micros(TICK), tick_cost(left));
        while let Some(later) = left.checked_sub(TICK)
            && cost < 2 * micros(WINDOW)
        {
            left = later;
            time += micros(TICK);
            cost += tick_cost(left);
        }
        self.charge(time, if since_first_tick > SHORT { cost } else { 0 }, now);
    }

    /// Charges work whose CPU time is known.
    pub fn charge_time(&self, time: Duration, now: Instant) {
        self.charge(micros(time), if time > SHORT { cost(time) } else { 0 }, now);
    }

    /// Charges the time of a call, and its cost as a long one.
    fn charge(&self, time: i64, long: i64, now: Instant) {
        if self.percent >= WHOLE {
            return;
        }
        self.all.refill(now, 1);
        self.all.charge(time, self.percent);
        if long > 0 {
            let others = self.others(now);
            self.long.refill(now, others + 1);
            let is_first = self.long.is_full();
            self.long_calls.set(if is_first { 1 } else { self.long_calls.get().saturating_add(1) });
            self.long.charge(long, self.percent);
            let missing = (self.long.most.get() - self.long.level.get()).saturating_mul(others + 1);
            self.full_at.set(now + Duration::from_micros(missing.unsigned_abs()));
            self.worker.charge_long_call(long, self.percent, now);
        }
        if self.all.level.get() < 0 || self.long.level.get() < 0 {
            self.is_spent.set(true);
        }
    }

    /// Whether so little of the bucket of long calls is used that the bursts of other plugins don't matter.
    fn has_used_little(&self) -> bool {
        self.long.level.get() >= self.least_used_level()
    }

    /// A token bucket of time, in nanoseconds; below zero if calls took more than there was.
    fn least_used_level(&self) -> i64 {
        let most = self.long.most.get();
        if self.long_calls.get() <= 1 { most / 2 } else { most / 4 * 3 }
    }

    /// The number of other plugins of the worker that have made long calls lately.
    fn others(&self, now: Instant) -> i64 {
        let shares = self.worker.of_plugins.borrow();
        let is_other = |share: &Rc<TimeShare>| share.full_at.get() > now && !std::ptr::eq(&**share, self);
        i64::try_from(shares.iter().filter_map(Weak::upgrade).filter(is_other).count()).unwrap_or(i64::MAX - 1)
    }
}

impl Shares {
    pub fn new(now: Instant) -> Rc<Self> {
        Rc::new(Shares { of_plugins: RefCell::default(), long: Bucket::new(micros(LONG_WINDOW), now) })
    }

    /// Charges the bucket of all plugins. If it is empty then, plugins that have used more than a little of their own
    /// bucket make no calls until one of the two is refilled.
    fn charge_long_call(&self, cost: i64, percent: u8, now: Instant) {
        self.long.refill(now, 1);
        self.long.charge(cost, percent);
        if self.long.level.get() < 0 {
            let shares = self.of_plugins.borrow();
            let has_used_its_own = |share: &Rc<TimeShare>| share.full_at.get() > now && !share.has_used_little();
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

    /// Removes the time of which `time` is this percentage.
    fn charge(&self, time: i64, percent: u8) {
        let taken = time.saturating_mul(100) / i64::from(percent.max(1));
        self.level.set(self.level.get().saturating_sub(taken).max(-micros(WINDOW)));
    }
}

/// The cost of a call in microseconds.
fn cost(time: Duration) -> i64 {
    let beyond = micros(time.saturating_sub(SHORT));
    let square = beyond.saturating_mul(beyond) / micros(SHORT);
    micros(time).saturating_add(square.saturating_mul(STEEPNESS))
}

/// Returns the cost of a tick that met a call with this time left: [`TICK`] times the derivative of the cost of a call.
fn tick_cost(left: Duration) -> i64 {
    let beyond = micros(left.saturating_sub(SHORT));
    let weight_per_mille = 1000 + beyond.saturating_mul(2 * STEEPNESS * 1000) / micros(SHORT);
    micros(TICK).saturating_mul(weight_per_mille) / 1000
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

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

        /// Makes a call if the share admits it.
        fn call(&mut self, share: &TimeShare, length: Duration) -> Result<(), Duration> {
            if share.is_spent()
                && let Some(wait) = share.wait(self.now)
            {
                return Err(wait);
            }
            while self.next_tick <= self.now {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                self.next_tick += TICK + Duration::from_micros((self.random >> 33) % 500);
            }
            self.now += length;
            if self.next_tick < self.now {
                share.charge_ticks(self.now - self.next_tick, self.now);
            }
            Ok(())
        }

        fn passed(&self) -> Duration {
            self.now - self.began
        }
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
        let measured = |tenths: u64, after| share.charge_measured(Duration::from_micros(tenths * 100), began + after);
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
            share.charge_ticks(cpu.min(Duration::from_millis(95)), now);
            assert!(!share.is_spent(), "{cpu:?}");
            share.charge_ticks(Duration::from_secs(3600), now);
            assert!(share.is_spent());
            let wait = share.wait(now).unwrap();
            assert!(wait <= WINDOW, "{wait:?}");
            assert_eq!(share.wait(now + wait + Duration::from_millis(1)), None);
        }
    }

    #[test]
    fn a_version_has_one_share_until_nothing_uses_it() {
        let now = Instant::now();
        let shares = Shares::new(now);
        let share = |version| TimeShare::of(version, 50, CPU, &shares, now);
        let first = share(7);
        first.charge_time(Duration::from_millis(500), now);
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
        (0..100).for_each(|_| share.charge_time(second, now));
        assert!(!share.is_spent());
        // Nor does it take anything from others.
        assert_eq!(TimeShare::of(1, 50, second, &shares, now).others(now), 0);
    }
}
