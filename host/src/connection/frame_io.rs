//! The socket of a client that speaks HTTP/2, which counts the frames that pass: h2 doesn't tell of them.
//!
//! It stands below h2 and above TLS, so it sees plain frames. Once a kind of frame is beyond its allowance, nothing more
//! is read, and the connection is to say farewell and end.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::Clock;
use crate::frames::budget::{FrameBudget, FrameKind};
use crate::frames::{FrameScanner, HEADERS, PREFACE};

/// A socket whose frames are counted.
pub struct FrameIo<T> {
    pub io: T,
    clock: Rc<Clock>,
    incoming: FrameScanner,
    outgoing: FrameScanner,
    budget: FrameBudget,
    /// The last stream that the client has opened.
    last_stream: u32,
    flood: Option<FrameKind>,
}

/// GOAWAY on the connection, with eight bytes.
const GOAWAY: [u8; 9] = [0, 0, 8, 7, 0, 0, 0, 0, 0];
/// RFC 9113 §7.
const ENHANCE_YOUR_CALM: u32 = 11;

impl<T> FrameIo<T> {
    /// Creates the counter of a connection whose preface hasn't been read yet.
    pub fn new(io: T, clock: Rc<Clock>) -> Self {
        let budget = FrameBudget::new(clock.now());
        let (incoming, outgoing) = (FrameScanner::after(PREFACE.len()), FrameScanner::after(0));
        FrameIo { io, clock, incoming, outgoing, budget, last_stream: 0, flood: None }
    }

    /// The kind of frame that is beyond its allowance; `None` if all are within.
    pub fn flood(&self) -> Option<FrameKind> {
        self.flood
    }

    /// Returns the GOAWAY frame that tells the client to calm down, or `None` if a frame has been sent only in part.
    pub fn farewell(&self) -> Option<Vec<u8>> {
        let payload = [self.last_stream.to_be_bytes(), ENHANCE_YOUR_CALM.to_be_bytes()].concat();
        self.outgoing.is_between().then(|| [&GOAWAY[..], &payload].concat())
    }

    fn count_received(&mut self, bytes: &[u8]) {
        let (budget, flood, last_stream) = (&mut self.budget, &mut self.flood, &mut self.last_stream);
        budget.pass(self.clock.now());
        self.incoming.scan(bytes, |head| {
            if head.kind == HEADERS {
                *last_stream = head.stream.max(*last_stream);
            }
            if let Err(kind) = budget.received(head) {
                flood.get_or_insert(kind);
            }
        });
    }

    fn count_sent(&mut self, bytes: &[u8]) {
        self.outgoing.scan(bytes, |head| self.budget.sent(head));
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for FrameIo<T> {
    /// Reads nothing more after a flood, which `serve` looks for after each poll of the connection.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.flood.is_some() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        self.count_received(&buffer.filled()[before..]);
        if self.flood.is_some() {
            buffer.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FrameIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.count_sent(bytes.get(..written).unwrap_or_default());
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
            self.count_sent(&slice[..length]);
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
