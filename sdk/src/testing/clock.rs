//! The time of native tests: it stands still until the test moves it.
//!
//! Each test has one clock, as each runs on a thread of its own. [`clock`](crate::clock) reads it, entries of
//! [`shared`](crate::shared) expire and token buckets fill by it, timers run by it, and a scripted
//! [callout](super::http::Callouts) takes its time from it.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//!
//! use plugway_sdk::shared::{self, Rate};
//! use plugway_sdk::{clock, testing};
//!
//! let (date, begin) = (clock::now(), clock::monotonic());
//! shared::set("answer", "42", Some(Duration::from_secs(60))).unwrap();
//! let is_allowed = || shared::take("client", Rate::per_minute(1), 1).unwrap().allowed;
//! assert!(is_allowed() && !is_allowed());
//!
//! testing::clock::advance(Duration::from_secs(60));
//! assert_eq!(clock::now().duration_since(date).unwrap(), Duration::from_secs(60));
//! assert_eq!(clock::monotonic() - begin, Duration::from_secs(60));
//! assert_eq!(shared::get("answer"), Ok(None));
//! assert!(is_allowed());
//!
//! // An administrator of the machine sets the date: nothing else changes.
//! testing::clock::set(SystemTime::UNIX_EPOCH);
//! assert_eq!(clock::monotonic() - begin, Duration::from_secs(60));
//! ```
#![cfg_attr(target_family = "wasm", expect(dead_code, reason = "in the proxy, the host knows the time"))]

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use super::Harness;
use crate::Timer;

/// The date at which a test begins, in seconds since 1970: 2026-01-01 00:00:00 UTC.
const BEGIN: u64 = 1_767_225_600;

/// The monotonic time at which a test begins: not zero, so that a plugin can't take it for the absence of a time.
const BEGIN_MONOTONIC: Duration = Duration::from_secs(1000);

/// The time of a test.
#[derive(Clone, Copy)]
struct Time {
    now: SystemTime,
    monotonic: Duration,
}

thread_local! {
    static TIME: Cell<Time> =
        Cell::new(Time { now: SystemTime::UNIX_EPOCH + Duration::from_secs(BEGIN), monotonic: BEGIN_MONOTONIC });
}

/// Lets time pass.
pub fn advance(by: Duration) {
    let Time { now, monotonic } = TIME.get();
    TIME.set(Time { now: now + by, monotonic: monotonic + by });
}

/// Sets the date and time, as an administrator of the machine might. The monotonic time doesn't change, nor does what
/// depends on it: times to live, token buckets, timers.
pub fn set(now: SystemTime) {
    TIME.set(Time { now, ..TIME.get() });
}

/// Methods that run the timer of a plugin:
///
/// ```
/// use std::time::Duration;
///
/// use plugway_sdk::testing::Harness;
/// use plugway_sdk::{ConfigError, Plugin, Setup, Timer};
///
/// /// A plugin that counts seconds.
/// struct Seconds(u32);
///
/// impl Plugin for Seconds {
///     type Config = ();
///
///     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
///         setup.timer_interval = Some(Duration::from_secs(1));
///         Ok(Seconds(0))
///     }
/// }
///
/// impl Timer for Seconds {
///     fn on_timer(&mut self) {
///         self.0 += 1;
///     }
/// }
///
/// let mut seconds = Harness::<Seconds>::new(serde_json::json!({})).unwrap();
/// seconds.advance(Duration::from_millis(2500));
/// assert_eq!(seconds.plugin.0, 2);
/// ```
impl<P: Timer> Harness<P> {
    /// Lets time pass, and runs the timer hook each time the interval has passed since the call.
    pub fn advance(&mut self, by: Duration) {
        let interval = self.setup.timer_interval.filter(|interval| !interval.is_zero());
        let mut left = by;
        while let Some(interval) = interval.filter(|interval| *interval <= left) {
            advance(interval);
            self.plugin.on_timer();
            left -= interval;
        }
        advance(left);
    }
}

/// Returns the date and time that a plugin reads.
pub(crate) fn now() -> SystemTime {
    TIME.get().now
}

/// Returns the monotonic time that a plugin reads.
pub(crate) fn monotonic() -> Duration {
    TIME.get().monotonic
}

/// Returns the monotonic time in nanoseconds.
pub(super) fn nanoseconds() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn time_stands_still_until_a_test_moves_it() {
        let (now, monotonic) = (clock::now(), clock::monotonic());
        std::thread::yield_now();
        assert_eq!((clock::now(), clock::monotonic()), (now, monotonic));
        advance(Duration::from_secs(5));
        let passed = clock::now().duration_since(now).unwrap();
        assert_eq!((passed, clock::monotonic() - monotonic), (Duration::from_secs(5), Duration::from_secs(5)));
        set(SystemTime::UNIX_EPOCH);
        assert_eq!((clock::now(), clock::monotonic() - monotonic), (SystemTime::UNIX_EPOCH, Duration::from_secs(5)));
    }

    #[test]
    fn each_thread_has_a_clock_of_its_own() {
        let begin = clock::monotonic();
        advance(Duration::from_secs(5));
        let other = std::thread::spawn(clock::monotonic).join().unwrap();
        assert_eq!((clock::monotonic() - begin, other), (Duration::from_secs(5), begin));
    }
}
