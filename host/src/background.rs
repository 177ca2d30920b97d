//! Work on a thread of its own, for a thread that must not be held up.

use std::io;

use tokio::sync::oneshot;

/// Runs something on a new thread; a panic is an error. Dropped, the work goes on to its end, but nobody gets the result.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name(name.into()).spawn(move || drop(done.send(work())))?;
    result.await.map_err(|_| io::Error::other("it panicked; the lines above say where"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error() {
        assert_eq!(run("test", || 1).await.unwrap(), 1);
        run("test", || panic!("of a test")).await.map(|()| ()).unwrap_err();
    }
}
