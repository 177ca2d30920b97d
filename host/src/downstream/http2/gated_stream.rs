//! The client's side of a tunnel over HTTP/2, which writes nothing while the client's socket is full. h2 keeps each write as
//! a frame, with some 300 bytes beside its content, and bounds the content alone.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Whether a client's socket accepts bytes, for the tunnels of its connection.
#[derive(Default)]
pub struct SocketGate {
    is_full: Cell<bool>,
    /// The wakers of the tunnels that wait until it accepts some.
    waiting: RefCell<Vec<Waker>>,
}

/// A stream whose writes wait for the socket of its connection.
pub struct GatedStream<T> {
    stream: T,
    gate: Rc<SocketGate>,
}

impl SocketGate {
    /// Records whether the socket is full.
    pub fn set_full(&self, is_full: bool) {
        self.is_full.set(is_full);
        if !is_full {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_full.get() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl<T> GatedStream<T> {
    /// Makes the writes of a stream wait for the socket of its connection.
    pub fn new(stream: T, gate: Rc<SocketGate>) -> Self {
        GatedStream { stream, gate }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for GatedStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for GatedStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.gate.poll_open(cx));
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_stream_writes_nothing_while_the_socket_is_full() {
        let gate = Rc::new(SocketGate::default());
        let mut stream = GatedStream::new(Vec::new(), gate.clone());
        gate.set_full(true);
        let mut polls = 0;
        let written = poll_fn(|cx| {
            polls += 1;
            let written = Pin::new(&mut stream).poll_write(cx, b"late");
            gate.set_full(false);
            written
        });
        assert_eq!((written.await.unwrap(), polls), (4, 2));
        assert_eq!(stream.stream, b"late");
    }
}
