//! The CPU time of a plugin's call, measured at ticks of the engine's clock: a call that no tick meets costs no clock
//! reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wasmtime::UpdateDeadline;

use crate::system::thread_time::thread_time;

/// The mean interval between two ticks of the clock of running plugins. A limit of CPU time is kept to within one tick.
pub const TICK: Duration = Duration::from_millis(5);

/// The shortest interval between two ticks; the longest is as much longer than [`TICK`] as this is shorter. A plugin that
/// notices a tick doesn't know when the next one comes, so calls in step with ticks don't pay.
const SHORTEST_TICK: Duration = Duration::from_millis(3);

/// The number of ticks of this process so far.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// Counts a tick. Called before the engine's clock ticks.
pub(super) fn count_tick() {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

/// Returns the time until the next tick, which is random.
pub(super) fn until_next_tick() -> Duration {
    let mut random = [0; 8];
    // Without random numbers, all intervals are the shortest one.
    let _ = getrandom::fill(&mut random);
    interval(u64::from_ne_bytes(random))
}

/// Returns the interval before the next tick for a random number.
fn interval(random: u64) -> Duration {
    let span = (TICK - SHORTEST_TICK) * 2;
    SHORTEST_TICK + Duration::from_micros(random % (span.as_micros() as u64 + 1))
}

/// The beginning of a call, which reveals work that no tick can interrupt. Plugins check for ticks at loops and at the
/// beginning of functions, but one instruction may fill all of a memory.
pub(super) struct CallStart {
    ticks: u64,
    /// The thread's CPU time; `None` if the call is not measured from its beginning.
    cpu: Option<Duration>,
}

impl CallStart {
    /// Begins a call, which is measured from now on if `is_watched`.
    pub(super) fn now(is_watched: bool) -> Self {
        CallStart { ticks: TICKS.load(Ordering::Relaxed), cpu: is_watched.then(thread_time) }
    }

    /// Whether ticks have passed that the call didn't notice. That may also be due to a thread that didn't run.
    pub(super) fn has_missed_ticks(&self, since_tick: Option<Duration>) -> bool {
        let passed = TICKS.load(Ordering::Relaxed).wrapping_sub(self.ticks);
        // Most calls are over before the next tick.
        passed > 0 && u128::from(passed) > since_tick.map_or(0, |time| 1 + time.as_nanos() / SHORTEST_TICK.as_nanos())
    }

    /// Returns the CPU time since the beginning; `None` if the call is not measured.
    pub(super) fn cpu(&self) -> Option<Duration> {
        self.cpu.map(|cpu| thread_time().saturating_sub(cpu))
    }
}

/// The CPU time of the call under way.
#[derive(Default)]
pub(super) struct CpuMeter {
    limit: Duration,
    /// The thread's CPU time at the first tick within the call; `None` before that tick.
    base: Option<Duration>,
    /// The time of a call that may wait; `None` for the other calls.
    turns: Option<Arc<TurnTime>>,
}

/// The CPU time of a call that may wait. Such a call runs in turns, between which the thread does other work, so each turn
/// is measured from its beginning to its end.
#[derive(Debug, Default)]
pub(super) struct TurnTime {
    /// The CPU time of the turns that have ended, in nanoseconds.
    ended: AtomicU64,
    /// The thread's CPU time at the beginning of the turn under way, in nanoseconds.
    began: AtomicU64,
}

impl TurnTime {
    /// Begins a turn.
    pub(super) fn begin_turn(&self) {
        self.began.store(nanoseconds(thread_time()), Ordering::Relaxed);
    }

    /// Ends a turn, and returns its CPU time.
    pub(super) fn end_turn(&self) -> Duration {
        let turn = self.since_beginning(thread_time());
        self.ended.fetch_add(turn, Ordering::Relaxed);
        Duration::from_nanos(turn)
    }

    /// Returns the CPU time of the call at a time of the thread, within a turn.
    fn used(&self, now: Duration) -> Duration {
        Duration::from_nanos(self.ended.load(Ordering::Relaxed).saturating_add(self.since_beginning(now)))
    }

    fn since_beginning(&self, now: Duration) -> u64 {
        nanoseconds(now).saturating_sub(self.began.load(Ordering::Relaxed))
    }
}

impl CpuMeter {
    /// Starts the measurement of a call that may use `limit`.
    pub(super) fn begin(&mut self, limit: Duration) {
        self.limit = limit;
        self.base = None;
        self.turns = None;
    }

    /// Starts the measurement of a call that may use `limit`, and may wait. The caller measures its turns.
    pub(super) fn begin_turns(&mut self, limit: Duration) -> Arc<TurnTime> {
        self.begin(limit);
        self.turns.insert(Arc::default()).clone()
    }

    /// Whether the call under way may wait.
    pub(super) fn has_turns(&self) -> bool {
        self.turns.is_some()
    }

    /// Handles a tick that was met within the call.
    ///
    /// The time before the first tick is not known, and not counted: a call always gets its limit, and at most two
    /// ticks more.
    pub(super) fn tick(&mut self) -> UpdateDeadline {
        let now = thread_time();
        let used = match &self.turns {
            Some(turns) => turns.used(now),
            None => now.saturating_sub(*self.base.get_or_insert(now)),
        };
        match used >= self.limit {
            true => UpdateDeadline::Interrupt,
            false => UpdateDeadline::Continue(1),
        }
    }

    /// Returns the CPU time since the call's first tick; `None` if no tick met the call.
    pub(super) fn since_tick(&self) -> Option<Duration> {
        self.base.map(|base| thread_time().saturating_sub(base))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses so much CPU time.
    fn work(time: Duration) {
        let until = thread_time() + time;
        while thread_time() < until {}
    }

    #[test]
    fn the_time_between_turns_is_not_that_of_the_call() {
        let (turn, other) = (Duration::from_millis(2), Duration::from_millis(20));
        let mut meter = CpuMeter::default();
        let turns = meter.begin_turns(3 * turn);
        turns.begin_turn();
        work(turn);
        assert!(turns.end_turn() >= turn);
        work(other);
        turns.begin_turn();
        assert!(matches!(meter.tick(), UpdateDeadline::Continue(1)));
        work(3 * turn);
        assert!(matches!(meter.tick(), UpdateDeadline::Interrupt));
        meter.begin(other);
        assert!(matches!(meter.tick(), UpdateDeadline::Continue(1)));
    }

    #[test]
    fn ticks_come_at_intervals_of_3_to_7_ms_and_5_on_average() {
        let intervals: Vec<u64> = (0..400_100).map(|random| interval(random * 7).as_micros() as u64).collect();
        assert_eq!((intervals.iter().min(), intervals.iter().max()), (Some(&3000), Some(&7000)));
        let mean = intervals.iter().sum::<u64>() / intervals.len() as u64;
        assert!((4950..5050).contains(&mean), "{mean}");
    }
}
