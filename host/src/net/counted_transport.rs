//! A transport whose bytes are counted in both directions, since the libraries above it, h2 and redis, don't report what they
//! receive. The transport is above TLS, so that plain bytes are counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::read_pace::ReadPace;

/// A counter of the bytes of one connection, or of the frames in them.
pub trait TransportCounter {
    /// Counts bytes that were read.
    fn count_received(&mut self, bytes: &[u8]);

    /// Counts bytes that were written.
    fn count_sent(&mut self, bytes: &[u8]);

    /// Returns the number of heads in what was read last; `None` if no long parse is to be expected.
    fn heads(&self) -> Option<usize> {
        None
    }

    /// Returns the maximum number of bytes of the next read; `None` for no limit.
    fn read_limit(&self) -> Option<usize> {
        None
    }

    /// Whether other tasks are to run before the next read. Asked once for each read.
    fn end_turn(&mut self) -> bool {
        false
    }

    /// Returns the result of further reads; `None` while all that was read is within its bounds.
    fn end_of_reads(&self) -> Option<Poll<io::Result<()>>>;
}

/// A transport with a counter.
pub struct CountedTransport<T, C> {
    pub io: T,
    pub counter: C,
    pace: ReadPace,
}

impl<T, C> CountedTransport<T, C> {
    pub fn new(io: T, counter: C) -> Self {
        CountedTransport { io, counter, pace: ReadPace::default() }
    }
}

impl<T: AsyncRead + Unpin, C: TransportCounter + Unpin> AsyncRead for CountedTransport<T, C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = self.counter.end_of_reads() {
            return end;
        }
        ready!(self.pace.poll_turn(cx));
        if self.counter.end_turn() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        match self.counter.read_limit().filter(|limit| *limit < buffer.remaining()) {
            None => ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?,
            Some(limit) => {
                let mut part = ReadBuf::new(buffer.initialize_unfilled_to(limit));
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
                let length = part.filled().len();
                buffer.advance(length);
            }
        }
        self.counter.count_received(&buffer.filled()[before..]);
        if let Some(heads) = self.counter.heads() {
            self.pace.begin(heads);
        }
        if let Some(end) = self.counter.end_of_reads() {
            buffer.set_filled(before);
            return end;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin, C: TransportCounter + Unpin> AsyncWrite for CountedTransport<T, C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.counter.count_sent(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let length = slice.len().min(left);
            self.counter.count_sent(&slice[..length]);
            left -= length;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
