//! Turns of tasks that compute for long.

use std::pin::pin;
use std::task::Context;

/// Has the task woken once others have had a turn, and once the worker has looked for new events of its sockets: a task that
/// wakes itself is polled dozens of times before that.
pub fn give_way(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}
