//! Tells whether the calls of plugins take much of a worker's time at the moment.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The time that calls have taken lately, beyond [`PORTION`] of the time that has passed.
#[derive(Debug)]
pub(super) struct LoadMeter {
    level: Cell<Duration>,
    noted: Cell<Instant>,
}

/// The portion of the time, as a divisor, that calls may take without being much.
const PORTION: u32 = 5;

/// The level beyond which calls take much of the time: four calls that ticks have met, more than chance brings together.
const HIGH: Duration = Duration::from_millis(20);

/// The highest level, which calls leave in a tenth of a second.
const MOST: Duration = Duration::from_millis(40);

impl LoadMeter {
    pub(super) fn new(now: Instant) -> Self {
        LoadMeter { level: Cell::new(Duration::ZERO), noted: Cell::new(now) }
    }

    /// Adds the time of a call, and returns whether calls take much of the worker's time.
    pub(super) fn note(&self, time: Duration, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.noted.replace(now));
        let level = (self.level.get().saturating_sub(passed / PORTION) + time).min(MOST);
        self.level.set(level);
        level > HIGH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes calls for a second, one each ten milliseconds; returns whether the last one has found much.
    fn after_a_second(time: Duration) -> bool {
        let began = Instant::now();
        let meter = LoadMeter::new(began);
        (1..=100).fold(false, |_, call| meter.note(time, began + Duration::from_millis(10) * call))
    }

    #[test]
    fn more_than_a_fifth_of_the_time_is_much() {
        assert!(!after_a_second(Duration::from_millis(1)));
        assert!(!after_a_second(Duration::from_micros(1900)));
        assert!(after_a_second(Duration::from_micros(2500)));
        assert!(after_a_second(Duration::from_millis(10)));
    }

    #[test]
    fn a_quiet_fifth_of_a_second_is_enough_to_forget_much() {
        let began = Instant::now();
        let meter = LoadMeter::new(began);
        assert!((0..1000).fold(false, |_, _| meter.note(Duration::from_millis(5), began)));
        assert!(!meter.note(Duration::ZERO, began + Duration::from_millis(200)));
    }
}
