//! Work on a thread of its own, for a thread that must not be blocked.

use std::io;

use tokio::sync::oneshot;

use crate::system::supervise::{Task, guard};

/// Runs work on a new thread, and returns its result. A panic is an error. If the future is dropped, the work still
/// runs to its end, and its result is dropped.
pub async fn run<T: Send + 'static>(task: Task, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name(task.name().into());
    thread.spawn(move || drop(done.send(guard(task, work))))?;
    match result.await {
        Ok(result) => result.map_err(io::Error::other),
        Err(_) => Err(io::Error::other("its thread has ended")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error() {
        assert_eq!(run(Task::Other, || 1).await.unwrap(), 1);
        run(Task::Other, || panic!("of a test")).await.unwrap_err();
    }
}
