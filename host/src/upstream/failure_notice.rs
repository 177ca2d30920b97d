//! The decision which failures of an endpoint the log says at its default level: the first of those in a row, and the next
//! success. Pure rules without a clock; callers pass `now`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::FailureKind;

/// The state of an endpoint as the log has said it.
#[derive(Debug)]
pub struct FailureNotice {
    born: Instant,
    /// A [`NoticeState`] in one word, which all workers change.
    state: AtomicU64,
}

/// The parts of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct NoticeState {
    /// The kind of the failure that was said last, counted from one; 0 after a success.
    kind: u8,
    /// The number of failures that were said and still count.
    said: u8,
    /// The time of the last change of `said`, in steps of [`PAUSE`].
    step: u32,
}

/// The number of failures that are said at once: an endpoint that is restarted a few times says each of them.
const AT_ONCE: u8 = 5;

/// The time after which another failure may be said: an endpoint that fails now and then fills no log.
const PAUSE: Duration = Duration::from_secs(60);

impl FailureNotice {
    pub fn new(now: Instant) -> Self {
        FailureNotice { born: now, state: AtomicU64::new(0) }
    }

    /// Records a failure. Returns whether the log should say it: no failure of this kind was said since the last success.
    pub fn fail(&self, kind: FailureKind, now: Instant) -> bool {
        let step = (now.saturating_duration_since(self.born).as_secs() / PAUSE.as_secs()) as u32;
        let change = |state| NoticeState::of(state).fail(kind, step).map(NoticeState::word);
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }

    /// Records a success. Returns whether the log should say it: it has said a failure before.
    pub fn succeed(&self) -> bool {
        let change = |state| NoticeState::of(state).succeed().map(NoticeState::word);
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

impl NoticeState {
    fn of(word: u64) -> Self {
        let [kind, said, _, _, step @ ..] = word.to_be_bytes();
        NoticeState { kind, said, step: u32::from_be_bytes(step) }
    }

    fn word(self) -> u64 {
        let [a, b, c, d] = self.step.to_be_bytes();
        u64::from_be_bytes([self.kind, self.said, 0, 0, a, b, c, d])
    }

    /// Returns the state once a failure is said; `None` if it is not said.
    fn fail(self, kind: FailureKind, step: u32) -> Option<Self> {
        let kind = kind as u8 + 1;
        let passed = u8::try_from(step.saturating_sub(self.step)).unwrap_or(u8::MAX);
        let said = self.said.saturating_sub(passed);
        (self.kind != kind && said < AT_ONCE).then_some(NoticeState { kind, said: said + 1, step })
    }

    /// Returns the state once a success is said; `None` if no failure was said.
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
        assert!(!notice.succeed(), "nothing was said");
        assert_eq!([REFUSED, REFUSED, LATE, LATE].map(|kind| notice.fail(kind, now)), [true, false, true, false]);
        assert!(!notice.fail(LATE, now + 100 * PAUSE), "it is still the same");
        assert_eq!([notice.succeed(), notice.succeed()], [true, false]);
        assert!(notice.fail(LATE, now));
    }

    #[test]
    fn an_endpoint_that_fails_now_and_then_is_said_once_in_a_while() {
        let now = Instant::now();
        let notice = FailureNotice::new(now);
        let said = |count: usize, now| {
            let flaps = (0..count).map(|_| (notice.fail(REFUSED, now), notice.succeed()));
            flaps.filter(|(failed, succeeded)| *failed && *succeeded).count()
        };
        assert_eq!(said(1000, now), usize::from(AT_ONCE));
        assert_eq!(said(1000, now + PAUSE), 1);
        assert_eq!(said(1000, now + 300 * PAUSE), usize::from(AT_ONCE));
        let hours: usize = (1..=300).map(|minute| said(100, now + (300 + minute) * PAUSE)).sum();
        assert_eq!(hours, 300);
    }
}
