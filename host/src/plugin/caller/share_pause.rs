//! Pauses work that is under way while its plugin has used up its share of the worker's time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::PluginCaller;

/// The wait of work that is under way for its plugin's share of the worker's time.
#[derive(Default)]
pub struct SharePause(Option<Pin<Box<Sleep>>>);

/// The least pause, which is what timers can measure.
const MIN_PAUSE: Duration = Duration::from_millis(1);

impl SharePause {
    /// Waits until the plugin may use the worker's time again.
    pub fn poll(&mut self, guard: &PluginCaller, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(sleep) = &mut self.0 {
                ready!(sleep.as_mut().poll(cx));
                self.0 = None;
            }
            let Some(wait) = guard.wait() else { return Poll::Ready(()) };
            self.0 = Some(Box::pin(sleep(wait.max(MIN_PAUSE))));
        }
    }
}
