//! The share of a worker's time that a configured plugin may take: a token bucket, charged at ticks of the engine's
//! clock.
//!
//! A tick meets a call of `t` with the probability `t / TICK`, at a time that is spread evenly over the call. A charge
//! of `TICK * weight(time left in the call)` at each tick is therefore, on average, the integral of `weight` over the
//! call, though no clock is read for calls that no tick meets.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::engine::TICK;

/// The share of a configured plugin on one worker.
pub struct Share {
    /// Percent of the worker's time.
    percent: u8,
    /// Microseconds that may still be charged; negative while the share is used up.
    level: Cell<i64>,
    /// When `level` was last refilled.
    refilled: Cell<Instant>,
    is_spent: Cell<bool>,
}

/// The default of `limits.share`. Calls of 20 µs may come 25,000 times a second; a call of 45 ms once in twelve seconds.
pub const DEFAULT_SHARE: u8 = 50;

/// A share that is not limited.
pub const WHOLE: u8 = 100;

/// The time whose share may be used at once, and that a single call can use up at most. Some four calls of 50 ms: a few
/// late calls are forgiven, and no call blocks a plugin for longer than a minute.
const WINDOW: Duration = Duration::from_secs(60);

/// A call that lasts longer delays requests that wait behind it, as many as come meanwhile, each for as long as the call
/// still takes. Its cost therefore grows with the square of the time beyond this.
const SHORT: Duration = Duration::from_millis(1);

/// The factor of the square, so that calls of 45 ms take at most 0.4 % of a worker's time with the default share: the
/// 99th percentile of other requests is not changed by them.
const STEEPNESS: i64 = 3;

impl Share {
    /// A share that has not been used yet.
    pub fn new(percent: u8, now: Instant) -> Self {
        let share = Share { percent, level: Cell::new(0), refilled: Cell::new(now), is_spent: Cell::new(false) };
        share.level.set(share.most());
        share
    }

    /// Whether the share was used up at the last charge.
    pub fn is_spent(&self) -> bool {
        self.is_spent.get()
    }

    /// Returns `None` if a call may be made, or the time until one may be made.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.refill(now);
        if self.level.get() >= 0 {
            self.is_spent.set(false);
            return None;
        }
        Some(Duration::from_micros(self.level.get().unsigned_abs() * 100 / u64::from(self.percent.max(1))))
    }

    /// Charges a call that was met by a tick, and then took so much more CPU time.
    pub fn charge_ticks(&self, since_first_tick: Duration, now: Instant) {
        let mut left = since_first_tick;
        let mut cost = tick_cost(left);
        while let Some(later) = left.checked_sub(TICK)
            && cost < 2 * self.most()
        {
            left = later;
            cost += tick_cost(left);
        }
        self.charge(cost, now);
    }

    /// Charges work whose CPU time is known.
    pub fn charge_time(&self, time: Duration, now: Instant) {
        let beyond = micros(time.saturating_sub(SHORT));
        let square = beyond.saturating_mul(beyond) / micros(SHORT);
        self.charge(micros(time).saturating_add(square.saturating_mul(STEEPNESS)), now);
    }

    fn charge(&self, cost: i64, now: Instant) {
        if self.percent >= WHOLE {
            return;
        }
        self.refill(now);
        self.level.set(self.level.get().saturating_sub(cost).max(-self.most()));
        self.is_spent.set(self.level.get() < 0);
    }

    fn refill(&self, now: Instant) {
        let passed = micros(now.saturating_duration_since(self.refilled.replace(now)).min(2 * WINDOW));
        let refilled = self.level.get() + passed * i64::from(self.percent) / 100;
        self.level.set(refilled.min(self.most()));
    }

    /// The highest level, in microseconds.
    fn most(&self) -> i64 {
        micros(WINDOW) * i64::from(self.percent) / 100
    }
}

/// The cost of a tick that met a call with so much time left: [`TICK`] times the derivative of the cost of a call.
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

    /// The calls of a length that a share admits in ten minutes, when calls come as fast as they can. Ticks meet them at
    /// random, as on a machine that does other things too: a caller in step with ticks would be charged by chance.
    fn admitted(length: Duration, percent: u8) -> u64 {
        let began = Instant::now();
        let (share, mut now, mut calls) = (Share::new(percent, began), began, 0);
        let (mut next_tick, mut random) = (began + TICK, 1_u64);
        while now < began + Duration::from_secs(600) {
            if let Some(wait) = share.wait(now) {
                now += wait + Duration::from_micros(1);
                continue;
            }
            while next_tick <= now {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                next_tick += TICK + Duration::from_micros((random >> 33) % 500);
            }
            let end = now + length;
            if next_tick < end {
                share.charge_ticks(end - next_tick, end);
            }
            (now, calls) = (end + Duration::from_micros(7), calls + 1);
        }
        calls
    }

    fn portion(length: Duration, percent: u8) -> f64 {
        length.as_secs_f64() * admitted(length, percent) as f64 / 600.0
    }

    #[test]
    fn short_calls_get_the_share_and_long_calls_hardly_any() {
        // Less than half: after each wait, calls are made until the next tick, which is half a tick away on average.
        let short = portion(Duration::from_micros(200), 50);
        assert!((0.3..0.60).contains(&short), "{short}");
        let long = portion(Duration::from_millis(45), 50);
        assert!(long < 0.006, "{long}");
        let between = portion(Duration::from_millis(3), 50);
        assert!((0.02..0.2).contains(&between), "{between}");
    }

    #[test]
    fn a_single_late_call_is_forgiven_and_no_call_blocks_for_longer_than_the_window() {
        let now = Instant::now();
        let share = Share::new(DEFAULT_SHARE, now);
        share.charge_ticks(Duration::from_millis(55), now);
        assert!(!share.is_spent());
        share.charge_ticks(Duration::from_secs(3600), now);
        assert!(share.is_spent());
        let wait = share.wait(now).unwrap();
        assert!(wait <= WINDOW, "{wait:?}");
        assert_eq!(share.wait(now + wait + Duration::from_millis(1)), None);
    }

    #[test]
    fn the_whole_share_is_not_limited() {
        let now = Instant::now();
        let share = Share::new(WHOLE, now);
        (0..100).for_each(|_| share.charge_time(Duration::from_secs(1), now));
        assert!(!share.is_spent());
    }
}
