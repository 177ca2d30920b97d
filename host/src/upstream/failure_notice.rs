//! Decides which failures of an endpoint are warnings: the first of each kind in a row. The next success is logged too. Pure
//! rules without a clock; callers pass `now`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::FailureKind;

/// The failures of an endpoint that were logged.
#[derive(Debug)]
pub struct FailureNotice {
    born: Instant,
    /// A [`NoticeState`] in one word, which all workers change.
    state: AtomicU64,
}

/// The parts of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct NoticeState {
    /// The kind of the failure that was logged last, counted from one; 0 after a success.
    kind: u8,
    /// The number of failures that were logged and still count.
    logged: u8,
    /// The time of the last change of `logged`, in steps of [`PAUSE`].
    step: u32,
}

/// The number of failures that are logged at once, so that each of a few restarts is logged.
const AT_ONCE: u8 = 5;

/// The time after which another failure may be logged, so that an endpoint that fails now and then fills no log.
const PAUSE: Duration = Duration::from_secs(60);

impl FailureNotice {
    pub fn new(now: Instant) -> Self {
        FailureNotice { born: now, state: AtomicU64::new(0) }
    }

    /// Records a failure, and returns whether it is to be logged: no failure of this kind was logged since the last success,
    /// and `admits` allows a line now. A failure that is not logged for lack of room is news again the next time.
    pub fn fail(&self, kind: FailureKind, now: Instant, admits: impl FnOnce() -> bool) -> bool {
        let step = (now.saturating_duration_since(self.born).as_secs() / PAUSE.as_secs()) as u32;
        let change = |state| NoticeState::of(state).fail(kind, step).map(NoticeState::word);
        let is_news = change(self.state.load(Ordering::Relaxed)).is_some();
        is_news && admits() && self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }

    /// Records a success. Returns whether it is to be logged: a failure was logged before.
    pub fn succeed(&self) -> bool {
        let change = |state| NoticeState::of(state).succeed().map(NoticeState::word);
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

impl NoticeState {
    fn of(word: u64) -> Self {
        let [kind, logged, _, _, step @ ..] = word.to_be_bytes();
        NoticeState { kind, logged, step: u32::from_be_bytes(step) }
    }

    fn word(self) -> u64 {
        let [a, b, c, d] = self.step.to_be_bytes();
        u64::from_be_bytes([self.kind, self.logged, 0, 0, a, b, c, d])
    }

    /// Returns the state once a failure is logged; `None` if it is not logged.
    fn fail(self, kind: FailureKind, step: u32) -> Option<Self> {
        let kind = kind as u8 + 1;
        let passed = u8::try_from(step.saturating_sub(self.step)).unwrap_or(u8::MAX);
        let logged = self.logged.saturating_sub(passed);
        (self.kind != kind && logged < AT_ONCE).then_some(NoticeState { kind, logged: logged + 1, step })
    }

    /// Returns the state once a success is logged; `None` if no failure was logged.
    fn succeed(self) -> Option<Self> {
        (self.kind != 0).then_some(NoticeState { kind: 0, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: FailureKind = FailureKind::ConnectionRefused;
    const LATE: FailureKind = FailureKind::ConnectionTimeout;

    #[test]
    fn failures_in_a_row_are_said_once_and_so_is_the_success_behind_them() {
        let now = Instant::now();
        let notice = FailureNotice::new(now);
        assert!(!notice.succeed(), "nothing was logged");
        assert_eq!(
            [REFUSED, REFUSED, LATE, LATE].map(|kind| notice.fail(kind, now, || true)),
            [true, false, true, false]
        );
        assert!(!notice.fail(LATE, now + 100 * PAUSE, || true), "it is still the same");
        assert_eq!([notice.succeed(), notice.succeed()], [true, false]);
        assert!(!notice.fail(LATE, now, || false), "there is no room in the log");
        assert!(!notice.succeed(), "nothing was logged");
        assert!(notice.fail(LATE, now, || true));
    }

    #[test]
    fn an_endpoint_that_fails_now_and_then_is_said_once_in_a_while() {
        let now = Instant::now();
        let notice = FailureNotice::new(now);
        let logged = |count: usize, now| {
            let flaps = (0..count).map(|_| (notice.fail(REFUSED, now, || true), notice.succeed()));
            flaps.filter(|(failed, succeeded)| *failed && *succeeded).count()
        };
        assert_eq!(logged(1000, now), usize::from(AT_ONCE));
        assert_eq!(logged(1000, now + PAUSE), 1);
        assert_eq!(logged(1000, now + 300 * PAUSE), usize::from(AT_ONCE));
        let hours: usize = (1..=300).map(|minute| logged(100, now + (300 + minute) * PAUSE)).sum();
        assert_eq!(hours, 300);
    }
}
