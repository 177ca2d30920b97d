//! The socket of a client of either version: what was read ahead of it comes first, and who takes nothing of what is
//! sent is waited for only so long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Transport;
use crate::clock::Deadline;

/// A socket with some patience.
pub struct Patient<T> {
    pub socket: T,
    /// What was read already.
    pub ahead: Bytes,
    /// For the client to take something.
    pub send: Deadline,
    patience: Duration,
    /// Bytes that had departed when the client was last waited for.
    departed: u64,
}

impl<T: Transport> Patient<T> {
    pub fn new(socket: T, ahead: Bytes, send: Deadline, patience: Duration) -> Self {
        Patient { socket, ahead, send, patience, departed: 0 }
    }

    fn sent<R>(&mut self, cx: &Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_pending() && self.socket.departed() > self.departed {
            self.departed = self.socket.departed();
            self.send.clear();
        }
        match written {
            Poll::Pending if self.send.is_late(self.patience, cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
            Poll::Ready(written) => {
                self.send.clear();
                Poll::Ready(written)
            }
        }
    }
}

impl<T: Transport> AsyncRead for Patient<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buffer);
        }
        let length = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.sent(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.sent(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.sent(cx, flushed)
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
    use crate::clock::{Clock, TICK};

    /// TLS that has something in hand, of which so many bytes have departed.
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

        fn departed(&self) -> u64 {
            self.1
        }
    }

    #[test]
    fn a_client_that_takes_a_little_of_what_tls_has_in_hand_is_waited_for() {
        let (clock, cx) = (Clock::new(), &mut Context::from_waker(Waker::noop()));
        let [send] = clock.deadlines();
        let mut io = Patient::new(Slow(tokio::io::duplex(1).0, 0), Bytes::new(), send, TICK);
        let mut flush = |departed| {
            // Time is the subject.
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
}
