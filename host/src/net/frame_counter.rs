//! A socket whose frames are counted in both directions, since h2 doesn't report them. The socket is below h2 and above
//! TLS, so that it reads plain frames.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A counter of the frames of one connection.
pub trait FrameCounter {
    /// Counts the frames in bytes that were read.
    fn count_received(&mut self, bytes: &[u8]);

    /// Counts the frames in bytes that were written.
    fn count_sent(&mut self, bytes: &[u8]);

    /// Returns the result of further reads; `None` while all kinds of frames are within their allowances.
    fn end_of_reads(&self) -> Option<Poll<io::Result<()>>>;
}

/// A socket with a counter.
pub struct CountedFrames<T, C> {
    pub io: T,
    pub counter: C,
}

impl<T: AsyncRead + Unpin, C: FrameCounter + Unpin> AsyncRead for CountedFrames<T, C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = self.counter.end_of_reads() {
            return end;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        self.counter.count_received(&buffer.filled()[before..]);
        if let Some(end) = self.counter.end_of_reads() {
            buffer.set_filled(before);
            return end;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin, C: FrameCounter + Unpin> AsyncWrite for CountedFrames<T, C> {
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
