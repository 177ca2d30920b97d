//! A transport to an endpoint that reads at most so many bytes at once, and at most so many before a response. hyper sizes its buffer by what it reads, so this
//! bounds what an HTTP/1 connection holds for a client that is slow to take it.
//!
//! An endpoint may answer before it has read all of a request's content, and close: the reset that follows fails the next
//! write, though the response can still be read. hyper gives up at a failed write, so that is left for the read to tell.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

use super::informational::{BeforeResponse, Permission};
use crate::body::backlog::SHORT;

/// The bounds of reads, shared by a transport and the exchange that uses it.
#[derive(Clone)]
pub struct ReadLimit(Rc<Bounds>);

struct Bounds {
    /// The bound of a single read, in bytes.
    piece: Cell<usize>,
    before_response: BeforeResponse,
}

/// A transport whose reads are bounded.
pub struct BoundedReads<T> {
    transport: Take<T>,
    limit: ReadLimit,
    /// Whether the endpoint takes nothing any more.
    is_reset: bool,
}

impl Default for ReadLimit {
    /// Returns the bound that holds for the head of a response, before anything is known of its client.
    fn default() -> Self {
        ReadLimit(Rc::new(Bounds { piece: Cell::new(SHORT - 1), before_response: BeforeResponse::default() }))
    }
}

impl ReadLimit {
    /// Sets the bound of each read from now on; `None` for that of a new exchange.
    pub fn set(&self, bytes: Option<usize>) {
        self.0.piece.set(bytes.unwrap_or(SHORT - 1));
    }

    /// Returns what bounds the bytes before a response.
    pub fn before_response(&self) -> &BeforeResponse {
        &self.0.before_response
    }
}

impl<T: AsyncRead> BoundedReads<T> {
    pub fn new(transport: T, limit: ReadLimit) -> Self {
        BoundedReads { transport: transport.take(0), limit, is_reset: false }
    }

    /// Takes a failed write for one of so many bytes, where the endpoint has closed the connection.
    fn written(&mut self, written: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        let Poll::Ready(Err(error)) = &written else { return written };
        self.is_reset = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        if self.is_reset { Poll::Ready(Ok(length)) } else { written }
    }

    /// Returns the transport itself, whose reads are no longer bounded.
    pub fn into_inner(self) -> T {
        self.transport.into_inner()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for BoundedReads<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let BoundedReads { transport, limit, .. } = &mut *self;
        match limit.before_response().permission() {
            Permission::Read => {}
            Permission::Wait => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Permission::Refused(error) => return Poll::Ready(Err(error)),
        }
        transport.set_limit(limit.0.piece.get() as u64);
        let before = buffer.filled().len();
        ready!(Pin::new(transport).poll_read(cx, buffer))?;
        limit.before_response().read(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for BoundedReads<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_reset {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(self.transport.get_mut()).poll_write(cx, bytes);
        self.written(written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.is_reset {
            return Poll::Ready(Ok(length));
        }
        let written = Pin::new(self.transport.get_mut()).poll_write_vectored(cx, slices);
        self.written(written, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_reset {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(self.transport.get_mut()).poll_flush(cx);
        self.written(flushed.map_ok(|()| 0), 0).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.transport.get_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn each_read_is_bounded_and_none_is_the_end() {
        let limit = ReadLimit::default();
        let mut transport = BoundedReads::new(&[7_u8; 30_000][..], limit.clone());
        let mut read = || {
            let mut room = vec![0; 64 << 10];
            let mut buffer = ReadBuf::new(&mut room);
            let polled = Pin::new(&mut transport).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
            assert!(polled.is_ready());
            buffer.filled().len()
        };
        let short = [read(), read()];
        limit.set(Some(16_000));
        assert_eq!((short, read(), read()), ([SHORT - 1; 2], 30_000 - 2 * (SHORT - 1), 0));
    }
}
