//! Counts the streams that an HTTP/2 client resets while they are served (rapid reset); h2 doesn't count them.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A count of reset streams that decreases over time.
pub struct ResetLimit {
    count: Cell<u64>,
    /// The time up to which the count has been decreased.
    forgiven: Cell<Instant>,
}

/// The count above which GOAWAY is sent; above twice this count the connection is closed. Browsers that leave a page
/// reset tens of streams.
const MAX_RESETS: u64 = 200;

/// The number of resets per second that is subtracted from the count: no attack is that slow.
const FORGIVEN: u64 = 10;

impl ResetLimit {
    pub fn new(now: Instant) -> Self {
        ResetLimit { count: Cell::new(0), forgiven: Cell::new(now) }
    }

    /// Counts a reset stream.
    pub fn record(&self, now: Instant) {
        let passed = now.saturating_duration_since(self.forgiven.get()).as_secs();
        self.forgiven.set(self.forgiven.get() + Duration::from_secs(passed));
        self.count.set(self.count.get().saturating_sub(FORGIVEN.saturating_mul(passed)) + 1);
    }

    pub fn should_goaway(&self) -> bool {
        self.count.get() > MAX_RESETS
    }

    pub fn should_close(&self) -> bool {
        self.count.get() > 2 * MAX_RESETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_in_a_second_are_forgiven() {
        let begin = Instant::now();
        let aborted = ResetLimit::new(begin);
        let note = |at: u64, times: u64| (0..times).for_each(|_| aborted.record(begin + Duration::from_secs(at)));
        (1..=100).for_each(|second| note(second, 10));
        // One burst a minute stays below the limit.
        (1..=10).for_each(|minute| note(100 + 60 * minute, 150));
        assert!(!aborted.should_goaway());
        note(700, 51);
        assert!(aborted.should_goaway() && !aborted.should_close());
        note(701, 210);
        assert!(aborted.should_close());
    }
}
