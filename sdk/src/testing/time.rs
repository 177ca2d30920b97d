//! A clock that tests control.
#![cfg_attr(target_family = "wasm", expect(dead_code, reason = "in the proxy, the host knows the time"))]

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use super::Harness;
use crate::Timer;
use crate::clock::real;

/// The time of a stopped clock.
#[derive(Clone, Copy)]
struct Time {
    now: SystemTime,
    monotonic: Duration,
}

thread_local! {
    /// The time on this thread; `None` if it is that of the machine.
    static STOPPED: Cell<Option<Time>> = const { Cell::new(None) };
}

/// A clock that stands still until the test moves it. While the value lives, [`clock`](crate::clock) reads this time on the
/// thread of the test.
#[derive(Debug)]
pub struct Clock {
    /// The clock belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl Clock {
    /// Stops the clock at 2026-01-01 00:00:00 UTC.
    pub fn stopped() -> Self {
        Clock::stopped_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600))
    }

    /// Stops the clock at a date and time.
    pub fn stopped_at(now: SystemTime) -> Self {
        STOPPED.set(Some(Time { now, monotonic: Duration::from_secs(1000) }));
        Clock { thread: PhantomData }
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        STOPPED.set(STOPPED.get().map(|time| Time { now: time.now + by, monotonic: time.monotonic + by }));
    }

    /// Sets the date and time, as an administrator of the machine might. The monotonic time doesn't change.
    pub fn set(&self, now: SystemTime) {
        STOPPED.set(STOPPED.get().map(|time| Time { now, ..time }));
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        STOPPED.set(None);
    }
}

/// Methods that run the timer of a plugin:
///
/// ```
/// use std::time::Duration;
///
/// use plugway_sdk::testing::{Clock, Harness};
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
/// let clock = Clock::stopped();
/// let mut seconds = Harness::<Seconds>::new(serde_json::json!({})).unwrap();
/// seconds.advance(&clock, Duration::from_millis(2500));
/// assert_eq!(seconds.plugin.0, 2);
/// ```
impl<P: Timer> Harness<P> {
    /// Moves the clock forward, and runs the timer hook each time the interval has passed since the call.
    pub fn advance(&mut self, clock: &Clock, by: Duration) {
        let interval = self.setup.timer_interval.filter(|interval| !interval.is_zero());
        let mut left = by;
        while let Some(interval) = interval.filter(|interval| *interval <= left) {
            clock.advance(interval);
            self.plugin.on_timer();
            left -= interval;
        }
        clock.advance(left);
    }
}

/// Returns the date and time that a plugin reads.
pub fn now() -> SystemTime {
    STOPPED.get().map_or_else(real::now, |time| time.now)
}

/// Returns the monotonic time that a plugin reads.
pub fn monotonic() -> Duration {
    STOPPED.get().map_or_else(real::monotonic, |time| time.monotonic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_stopped_clock_moves_only_when_it_is_told() {
        let stopped = Clock::stopped();
        let (now, monotonic) = (clock::now(), clock::monotonic());
        assert_eq!((clock::now(), clock::monotonic()), (now, monotonic));
        stopped.advance(Duration::from_secs(5));
        let passed = clock::now().duration_since(now).unwrap();
        assert_eq!((passed, clock::monotonic() - monotonic), (Duration::from_secs(5), Duration::from_secs(5)));
        stopped.set(SystemTime::UNIX_EPOCH);
        assert_eq!((clock::now(), clock::monotonic() - monotonic), (SystemTime::UNIX_EPOCH, Duration::from_secs(5)));
        drop(stopped);
        assert!(clock::now() > now, "the clock of the machine");
    }
}
