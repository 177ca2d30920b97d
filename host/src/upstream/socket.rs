//! A socket to an endpoint, which can be read at once. tokio reads a socket only after its reactor has reported it as
//! readable, so the end of an idle connection may have arrived unnoticed.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The transport of a connection.
pub trait EndpointTransport: AsyncRead + AsyncWrite + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> EndpointTransport for T {}

/// An order to read a socket whether or not the socket is reported as readable, shared with the owner of the
/// connection.
#[derive(Clone, Default)]
pub struct ReadNow(Rc<Cell<ReadOrder>>);

/// The reads that ask the kernel although the reactor has reported nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ReadOrder {
    #[default]
    None,
    /// The next read that finds nothing.
    Next,
    All,
}

/// A socket that obeys a [`ReadNow`].
pub struct EndpointSocket<S> {
    socket: S,
    now: ReadNow,
}

impl ReadNow {
    /// Runs a function in which each read asks the kernel.
    pub fn during<T>(&self, run: impl FnOnce() -> T) -> T {
        self.0.set(ReadOrder::All);
        let outcome = run();
        self.0.set(ReadOrder::None);
        outcome
    }

    /// Makes the next read that finds nothing ask the kernel.
    pub fn once(&self) {
        self.0.set(ReadOrder::Next);
    }

    /// Whether a read that has found nothing asks the kernel.
    fn is_ordered(&self) -> bool {
        match self.0.get() {
            ReadOrder::None => false,
            ReadOrder::Next => {
                self.0.set(ReadOrder::None);
                true
            }
            ReadOrder::All => true,
        }
    }
}

impl<S> EndpointSocket<S> {
    /// Wraps a connected socket.
    pub fn new(socket: S, now: ReadNow) -> Self {
        EndpointSocket { socket, now }
    }
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for EndpointSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if polled.is_ready() || !self.now.is_ordered() {
            return polled;
        }
        match rustix::net::recv(&self.socket, buffer.initialize_unfilled(), RecvFlags::DONTWAIT) {
            Ok((read, _)) => {
                buffer.advance(read);
                Poll::Ready(Ok(()))
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for EndpointSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::task::Waker;

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn bytes_that_the_reactor_has_not_reported_are_read_when_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let now = ReadNow::default();
        let mut socket = EndpointSocket::new(stream, now.clone());
        let mut room = [0; 8];
        let mut read = |room: &mut [u8]| {
            let mut buffer = ReadBuf::new(room);
            let polled = Pin::new(&mut socket).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
            polled.is_ready().then_some(buffer.filled().len())
        };
        assert_eq!(read(&mut room), None);
        peer.write_all(b"bye").unwrap();
        drop(peer);
        // The runtime's reactor runs in this thread, and so not in between.
        assert_eq!(read(&mut room), None);
        now.once();
        assert_eq!((read(&mut room), read(&mut room)), (Some(3), None));
        assert_eq!(&room[..3], b"bye");
        assert_eq!(now.during(|| (read(&mut room), read(&mut room))), (Some(0), Some(0)));
    }
}
