//! Adapters of sockets and tasks to the traits of hyper.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::system::supervise::{Task, spawn};

/// A socket that sends a short message by one plain `send`. That costs the kernel less than `writev`, by more than
/// joining head and body costs here.
pub struct HyperIo<T>(TokioIo<T>);

/// The maximum length of a joined message, in bytes; longer ones are sent without copying. A head and a small page fit;
/// chosen by measuring 1 KiB responses.
const SHORT: usize = 2 << 10;

impl<T> HyperIo<T> {
    pub fn new(socket: T) -> Self {
        HyperIo(TokioIo::new(socket))
    }

    pub fn into_socket(self) -> T {
        self.0.into_inner()
    }
}

/// Spawns hyper's tasks on the worker that they begin on.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future + 'static> Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        // Boxed, as a new task is moved several times, and these are large.
        spawn(Task::Stream, Box::pin(task));
    }
}

impl<T: AsyncRead + Unpin> Read for HyperIo<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> Write for HyperIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = slices {
            return self.poll_write(cx, one);
        }
        if slices.iter().map(|slice| slice.len()).sum::<usize>() > SHORT {
            return Pin::new(&mut self.0).poll_write_vectored(cx, slices);
        }
        let mut short = SmallVec::<[u8; SHORT]>::new();
        slices.iter().for_each(|slice| short.extend_from_slice(slice));
        self.poll_write(cx, &short)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
