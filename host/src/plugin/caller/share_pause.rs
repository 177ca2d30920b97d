//! Pauses work that is under way while its plugin has used up its share of the worker's time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::PluginCaller;
use crate::system::holder_counts::Holder;

/// The wait of work that is under way for its plugin's share of the worker's time.
#[derive(Default)]
pub struct SharePause {
    /// The step of the wait; `None` if the work does not wait.
    sleep: Option<Pin<Box<Sleep>>>,
    /// The beginning of the wait; `None` if the work does not wait.
    began: Option<Instant>,
}

/// The maximum time that a body waits for a plugin's share of time, and then fails: as long as an idle client may wait.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The shortest step of a wait, which is what timers can measure.
const MIN_STEP: Duration = Duration::from_millis(1);

impl SharePause {
    /// Waits until the plugin may use the worker's time for a client again.
    pub fn poll(&mut self, guard: &PluginCaller, client: Holder, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_until_none(|| guard.wait(client), cx)
    }

    /// Waits, in steps, as long as `wait` returns a time.
    pub fn poll_until_none(&mut self, wait: impl Fn() -> Option<Duration>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            let Some(wait) = wait() else {
                self.began = None;
                return Poll::Ready(());
            };
            let left = MAX_PAUSE.saturating_sub(self.began.get_or_insert_with(Instant::now).elapsed());
            // A step ends with the maximum, unless the work waits for longer anyway.
            let step = if left.is_zero() { wait } else { wait.min(left) };
            self.sleep = Some(Box::pin(sleep(step.max(MIN_STEP))));
        }
    }

    /// Whether the work waits for [`MAX_PAUSE`].
    pub fn is_too_long(&self) -> bool {
        self.began.is_some_and(|began| began.elapsed() >= MAX_PAUSE)
    }
}
