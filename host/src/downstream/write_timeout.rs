//! The socket of a client with either HTTP version: returns the bytes that were read ahead, and fails writes to a
//! client that accepts data too slowly.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Transport;
use crate::context::ClientInfo;
use crate::generation::connection_counts::{ConnectionCounts, SendLimit};
use crate::generation::listener::SendLimits;
use crate::net::deadline::Deadline;

/// A socket with a write timeout.
pub struct WriteTimeout<T> {
    pub socket: T,
    /// The bytes that were read already, and are returned first.
    pub ahead: Bytes,
    /// The timeout for the client to accept data.
    pub send: Deadline,
    pace: SendPace,
    census: Arc<ConnectionCounts>,
    peer: Option<Arc<ClientInfo>>,
}

/// The rate at which a client accepts data. Only time in which the socket was full counts.
struct SendPace {
    limits: SendLimits,
    /// The time since when the socket has been full; `None` if it isn't.
    since: Option<Instant>,
    /// The time for which the socket was full before, in this window.
    waited: Duration,
    /// The number of bytes that the client had accepted when this window began.
    before: u64,
    /// The number of bytes that the client had accepted at the last check.
    taken: u64,
    /// The number of windows in which the client accepted data, but too little.
    slow: Cell<u8>,
    /// The time when the client was last seen to accept data, or when the socket became full.
    progress: Option<Instant>,
}

/// The number of checks within `send-timeout` of a client that is waited for: each costs a system call.
const LOOKS: u32 = 4;

impl<T: Transport> WriteTimeout<T> {
    pub fn new(socket: T, ahead: Bytes, send: Deadline, limits: SendLimits, census: Arc<ConnectionCounts>) -> Self {
        let pace = SendPace {
            limits,
            since: None,
            waited: Duration::ZERO,
            before: 0,
            taken: 0,
            slow: Cell::new(0),
            progress: None,
        };
        WriteTimeout { socket, ahead, send, pace, census, peer: None }
    }

    /// Sets the client's address for the log.
    pub fn of(mut self, peer: &Arc<ClientInfo>) -> Self {
        self.peer = Some(peer.clone());
        self
    }

    fn track_write<R>(&mut self, cx: &Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.pace.go_on(&self.send);
            return written;
        }
        let Some(met) = self.pace.exceeded_limit(&self.socket, &self.send, cx) else { return Poll::Pending };
        let address = self.peer.as_ref().and_then(|peer| peer.address.as_ref());
        self.census.cut_off(met, address.and_then(|address| address.to_str().ok()));
        self.socket.forget_unsent();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl SendPace {
    /// Records that the socket accepts data again.
    fn go_on(&mut self, deadline: &Deadline) {
        if let Some(since) = self.since.take() {
            self.waited += deadline.clock().now().saturating_duration_since(since);
            deadline.clear();
        }
    }

    /// Returns the limit that the client of a full socket has reached; `None` if it has reached none.
    fn exceeded_limit(&mut self, socket: &impl Transport, deadline: &Deadline, cx: &Context<'_>) -> Option<SendLimit> {
        let now = deadline.clock().now();
        deadline.watch(cx);
        let Some(since) = self.since else {
            (self.since, self.progress) = (Some(now), Some(now));
            deadline.set(self.limits.timeout / LOOKS);
            return None;
        };
        if !deadline.is_met() {
            return None;
        }
        deadline.set(self.limits.timeout / LOOKS);
        let taken = socket.bytes_taken();
        if taken > self.taken {
            (self.taken, self.progress) = (taken, Some(now));
        }
        let idle = now.saturating_duration_since(self.progress.unwrap_or(since));
        if idle >= self.limits.timeout {
            return Some(SendLimit::Timeout);
        }
        if self.waited + now.saturating_duration_since(since) < self.limits.window() {
            return None;
        }
        let in_window = self.taken - self.before;
        (self.since, self.waited, self.before) = (Some(now), Duration::ZERO, self.taken);
        self.limits.is_too_slow(in_window, &self.slow).then_some(SendLimit::Rate)
    }
}

impl<T: Transport> AsyncRead for WriteTimeout<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buffer);
        }
        let length = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> AsyncWrite for WriteTimeout<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.track_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.track_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.track_write(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::DuplexStream;

    use super::*;
    use crate::net::deadline::{Clock, TICK};

    /// A TLS-like stream with unsent bytes; the number counts the bytes that were sent.
    struct Slow(DuplexStream, u64);

    impl AsyncRead for Slow {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Slow {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl Transport for Slow {
        fn poll_read_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_peek(&self, _: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
            Poll::Pending
        }

        fn bytes_sent(&self) -> u64 {
            self.1
        }

        fn bytes_taken(&self) -> u64 {
            self.1
        }

        fn has_bytes(&self) -> bool {
            false
        }

        fn forget_unsent(&self) {}

        fn is_gone(&self) -> bool {
            false
        }

        fn is_reset(&self) -> bool {
            false
        }

        fn has_ended(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_client_that_takes_a_little_of_what_tls_has_in_hand_is_waited_for() {
        let (clock, cx) = (Clock::new(), &mut Context::from_waker(Waker::noop()));
        let [send] = clock.deadlines();
        let limits = SendLimits { timeout: TICK, rate: 0 };
        let mut io = WriteTimeout::new(Slow(tokio::io::duplex(1).0, 0), Bytes::new(), send, limits, Arc::default());
        let mut flush = |departed| {
            // Time is the subject of this test.
            std::thread::sleep(3 * TICK);
            clock.tick();
            io.socket.1 = departed;
            Pin::new(&mut io).poll_flush(cx)
        };
        assert!(flush(1).is_pending());
        assert!(flush(2).is_pending());
        assert!(flush(3).is_pending());
        let Poll::Ready(Err(error)) = flush(3) else { panic!("it took nothing") };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// Whether a client that accepts `bytes` between two checks is cut off within twenty checks.
    fn is_cut_off(timeout: Duration, rate: u64, bytes: u64) -> bool {
        let (clock, cx) = (Clock::new(), &mut Context::from_waker(Waker::noop()));
        let [send] = clock.deadlines();
        let limits = SendLimits { timeout, rate };
        let mut io = WriteTimeout::new(Slow(tokio::io::duplex(1).0, 0), Bytes::new(), send, limits, Arc::default());
        (0..20).any(|look| {
            // Time is the subject of this test.
            std::thread::sleep(2 * TICK);
            clock.tick();
            io.socket.1 = look * bytes;
            Pin::new(&mut io).poll_flush(cx).is_ready()
        })
    }

    #[test]
    fn a_client_that_takes_less_than_the_rate_is_cut_off() {
        let timeout = 10 * TICK;
        // Checks are at least 100 ms apart, and at most as far as a busy machine makes them.
        assert!(is_cut_off(timeout, 1_000_000, 100));
        assert!(!is_cut_off(timeout, 1, 100));
        assert!(!is_cut_off(60 * timeout, 1_000_000, 0), "nothing at all is a matter of the timeout");
    }
}
