//! The CPU time of a thread.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Returns the CPU time that the current thread has used.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Does work, and returns its result with the CPU time that the current thread has used for it.
pub fn timed<R>(work: impl FnOnce() -> R) -> (R, Duration) {
    let began = thread_time();
    let result = work();
    (result, thread_time().saturating_sub(began))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_in_which_the_thread_does_not_run_is_not_counted() {
        let pause = Duration::from_millis(200);
        let ((), slept) = timed(|| std::thread::sleep(pause));
        assert!(slept < pause / 2, "{slept:?}");
        let until = thread_time() + pause;
        let (_, worked) = timed(|| while thread_time() < until {});
        assert!(worked >= pause / 2, "{worked:?}");
    }
}
