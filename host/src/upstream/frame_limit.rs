//! The connection to an endpoint that speaks HTTP/2, which ends if the endpoint sends far more frames than its responses
//! explain: h2 handles PINGs, SETTINGS and the like without end, on a worker that has others to serve.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frames::budget::FrameBudget;
use crate::frames::{FrameHead, FrameScanner, HEADERS, PREFACE};

/// A transport whose frames are counted. Reads fail once a kind of frame is beyond its allowance.
pub struct FrameLimit<T> {
    transport: T,
    incoming: FrameScanner,
    outgoing: FrameScanner,
    budget: FrameBudget,
    /// Heads and trailers that the endpoint may send.
    heads_left: u64,
    flood: Option<&'static str>,
}

/// Heads that an endpoint may send for each request: interim ones, the final one, and trailers.
const HEADS_PER_REQUEST: u64 = 32;

impl<T> FrameLimit<T> {
    pub fn new(transport: T) -> Self {
        let (incoming, outgoing) = (FrameScanner::after(0), FrameScanner::after(PREFACE.len()));
        let budget = FrameBudget::new(Instant::now());
        FrameLimit { transport, incoming, outgoing, budget, heads_left: 0, flood: None }
    }

    fn count_received(&mut self, bytes: &[u8]) {
        self.budget.pass(Instant::now());
        let FrameLimit { incoming, budget, heads_left, flood, .. } = self;
        incoming.scan(bytes, |head| {
            if let Err(name) = received(budget, heads_left, head) {
                flood.get_or_insert(name);
            }
        });
    }

    fn count_sent(&mut self, bytes: &[u8]) {
        let FrameLimit { outgoing, budget, heads_left, .. } = self;
        outgoing.scan(bytes, |head| {
            if head.kind == HEADERS {
                *heads_left += HEADS_PER_REQUEST;
            }
            budget.sent(head);
        });
    }
}

fn received(budget: &mut FrameBudget, heads_left: &mut u64, head: FrameHead) -> Result<(), &'static str> {
    if head.kind == HEADERS {
        *heads_left = heads_left.checked_sub(1).ok_or("HEADERS")?;
    }
    budget.received(head).map_err(|kind| kind.name())
}

impl<T: AsyncRead + Unpin> AsyncRead for FrameLimit<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.transport).poll_read(cx, buffer))?;
        self.count_received(&buffer.filled()[before..]);
        match self.flood {
            Some(kind) => Poll::Ready(Err(io::Error::other(format!("the endpoint sends too many frames ({kind})")))),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FrameLimit<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.transport).poll_write(cx, bytes))?;
        self.count_sent(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.transport).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let length = slice.len().min(left);
            self.count_sent(&slice[..length]);
            left -= length;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
