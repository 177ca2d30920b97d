//! The socket of an HTTP/2 client that may close its sending side before it has its responses, which no RFC forbids.
//!
//! h2 takes the end of what it reads for the end of the connection, and drops all streams. So h2 is told in frames: streams
//! without END_STREAM are cancelled, and a GOAWAY says that no others follow. After that, h2 serves the streams that are
//! open, and closes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client_frames::ClientFrames;
use crate::net::counted_transport::CountedTransport;
use crate::net::deadline::Deadline;

/// The time between two checks whether a client is gone that sends nothing more and waits for its responses.
const LOOK: Duration = Duration::from_secs(1);

/// A socket whose end is turned into frames.
pub struct HalfClosed<T> {
    pub counted: CountedTransport<T, ClientFrames>,
    is_gone: fn(&T) -> bool,
    look: Deadline,
    /// The frames that stand for the end, except those that h2 has read; `None` before the end.
    end: Option<Bytes>,
}

impl<T> HalfClosed<T> {
    /// Wraps a socket. `is_gone` returns whether the client has reset the connection.
    pub fn new(counted: CountedTransport<T, ClientFrames>, look: Deadline, is_gone: fn(&T) -> bool) -> Self {
        HalfClosed { counted, is_gone, look, end: None }
    }

    /// Whether the client has closed its sending side.
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Waits until the client is gone.
    fn poll_gone(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.look.is_met() && (self.is_gone)(&self.counted.io) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !self.look.is_set() || self.look.is_met() {
            self.look.set(LOOK);
        }
        self.look.watch(cx);
        Poll::Pending
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for HalfClosed<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.is_none() {
            let before = buffer.remaining();
            ready!(Pin::new(&mut self.counted).poll_read(cx, buffer))?;
            if buffer.remaining() < before || before == 0 {
                return Poll::Ready(Ok(()));
            }
            // Within a frame, the client was cut off.
            self.end = self.counted.counter.frames_at_end();
        }
        match &mut self.end {
            Some(frames) if frames.is_empty() => self.poll_gone(cx),
            Some(frames) => {
                let length = frames.len().min(buffer.remaining());
                buffer.put_slice(&frames[..length]);
                frames.advance(length);
                Poll::Ready(Ok(()))
            }
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for HalfClosed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.counted).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.counted).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.counted.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.counted).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look.clear();
        Pin::new(&mut self.counted).poll_shutdown(cx)
    }
}
