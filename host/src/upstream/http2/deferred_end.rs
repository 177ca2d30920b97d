//! A transport that defers the end of its connection until the bytes that were read before have been used. An endpoint
//! may respond before it has read all of a request, and close. h2 ends the connection at the first failed write, and at
//! the end of its input it forgets the ends of streams that no task has read yet: the response that had arrived would
//! be lost.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A transport whose reads alone report the end of the connection.
pub struct DeferredEnd<T> {
    io: T,
    /// Whether a write has failed, or the input has ended. All bytes that follow are discarded: the endpoint would answer
    /// none of them. Shared with the owner of the connection, which begins no more requests.
    is_over: Rc<Cell<bool>>,
    /// The result of the read that was the last; `None` before.
    end: Option<io::Result<()>>,
    /// The turns for which the end is deferred.
    turns: u32,
}

/// The number of turns of all tasks of the worker between the last bytes of a response and the end of its connection. A
/// response passes three tasks on its way to the client. A response that is too long for its client to read at once may
/// lose its rest.
const TURNS: u32 = 8;

impl<T> DeferredEnd<T> {
    /// Wraps a transport, and sets `is_over` once the endpoint is known to accept or to send no more bytes.
    pub fn new(io: T, is_over: Rc<Cell<bool>>) -> Self {
        DeferredEnd { io, is_over, end: None, turns: 0 }
    }

    /// Returns the result of an operation; `otherwise` for the operation that fails, and for those behind the end.
    fn unless_over<R>(
        &mut self,
        otherwise: R,
        operation: impl FnOnce(&mut T) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if !self.is_over.get() {
            match ready!(operation(&mut self.io)) {
                Ok(done) => return Poll::Ready(Ok(done)),
                Err(error) => tracing::debug!(%error, "endpoint accepts no more bytes"),
            }
            self.is_over.set(true);
        }
        Poll::Ready(Ok(otherwise))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for DeferredEnd<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.end.is_none() {
            let before = buffer.filled().len();
            let read = ready!(Pin::new(&mut this.io).poll_read(cx, buffer));
            if read.is_ok() && buffer.filled().len() > before {
                this.turns = TURNS;
                return Poll::Ready(Ok(()));
            }
            this.end = Some(read);
            this.is_over.set(true);
        }
        if this.turns > 0 {
            this.turns -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // A further read finds the end too.
        Poll::Ready(this.end.replace(Ok(())).unwrap_or(Ok(())))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for DeferredEnd<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.unless_over(bytes.len(), |io| Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.unless_over(length, |io| Pin::new(io).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_over((), |io| Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_over((), |io| Pin::new(io).poll_shutdown(cx))
    }
}
