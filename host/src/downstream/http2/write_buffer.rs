//! The socket of an HTTP/2 client. Coalesces the writes of all streams within one poll of their connection: each piece
//! alone would cost a system call, and over TLS a record, for every response.

use std::cell::{Ref, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A buffered socket, shared by the connection, which writes, and by the task that polls the connection and then
/// [sends](Self::poll_send).
pub struct WriteBuffer<T>(Rc<RefCell<SharedBuffer<T>>>);

struct SharedBuffer<T> {
    socket: T,
    /// The buffered bytes. Allocated only while bytes wait to be sent, so that all connections of a worker reuse the
    /// same memory.
    unsent: Vec<u8>,
    /// The number of buffered bytes that were sent.
    sent: usize,
    /// Whether the socket's own buffers are empty.
    is_flushed: bool,
}

/// The way in which a piece is written.
#[derive(PartialEq, Eq)]
enum WriteMode {
    Buffered,
    /// The piece is written directly, without copying.
    Direct,
}

/// The size at which the buffer is sent in any case, in bytes; longer pieces are never buffered. It is the size of a
/// TLS record.
const MAX_BUFFERED_BYTES: usize = 16 << 10;

impl<T> WriteBuffer<T> {
    pub fn new(socket: T) -> Self {
        WriteBuffer(Rc::new(RefCell::new(SharedBuffer { socket, unsent: Vec::new(), sent: 0, is_flushed: true })))
    }

    pub fn socket(&self) -> Ref<'_, T> {
        Ref::map(self.0.borrow(), |shared| &shared.socket)
    }
}

impl<T: AsyncWrite + Unpin> WriteBuffer<T> {
    /// Sends all that was written, through the socket's own buffers too.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(cx)
    }
}

impl<T> Clone for WriteBuffer<T> {
    fn clone(&self) -> Self {
        WriteBuffer(self.0.clone())
    }
}

impl<T: AsyncWrite + Unpin> SharedBuffer<T> {
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.unsent.len() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.unsent[self.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
            self.is_flushed = false;
        }
        (self.unsent, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        if !self.is_flushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room for `length` more bytes; returns how to write them.
    fn poll_room(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<WriteMode>> {
        if self.unsent.len() + length > MAX_BUFFERED_BYTES {
            ready!(self.poll_empty(cx))?;
        }
        if length > MAX_BUFFERED_BYTES {
            self.is_flushed = false;
            return Poll::Ready(Ok(WriteMode::Direct));
        }
        if self.unsent.capacity() == 0 {
            self.unsent.reserve_exact(MAX_BUFFERED_BYTES);
        }
        Poll::Ready(Ok(WriteMode::Buffered))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WriteBuffer<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().socket).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WriteBuffer<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self.0.borrow_mut();
        if ready!(this.poll_room(cx, bytes.len()))? == WriteMode::Direct {
            return Pin::new(&mut this.socket).poll_write(cx, bytes);
        }
        this.unsent.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self.0.borrow_mut();
        let length = slices.iter().map(|slice| slice.len()).sum();
        if ready!(this.poll_room(cx, length))? == WriteMode::Direct {
            return Pin::new(&mut this.socket).poll_write_vectored(cx, slices);
        }
        slices.iter().for_each(|slice| this.unsent.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: a connection flushes after each piece, and only the task that polls the connection knows when the
    /// poll is over. Bytes that TLS itself produces, such as an alert, are sent with the next piece.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self.0.borrow_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::IoSlice;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A socket that records each call, and accepts a number of bytes before it is full.
    #[derive(Default)]
    struct BufferedSocket {
        writes: Vec<Vec<u8>>,
        flushes: usize,
        room: usize,
    }

    impl AsyncWrite for BufferedSocket {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            if self.room == 0 {
                return Poll::Pending;
            }
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gathered(room: usize) -> WriteBuffer<BufferedSocket> {
        WriteBuffer::new(BufferedSocket { room, ..BufferedSocket::default() })
    }

    fn lengths(socket: &WriteBuffer<BufferedSocket>) -> Vec<usize> {
        socket.0.borrow().socket.writes.iter().map(Vec::len).collect()
    }

    #[test]
    fn writes_of_one_turn_are_sent_together() {
        let (mut socket, cx) = (gathered(usize::MAX), &mut Context::from_waker(Waker::noop()));
        for piece in [&b"one, "[..], b"two, "] {
            assert!(matches!(Pin::new(&mut socket).poll_write(cx, piece), Poll::Ready(Ok(5))));
            assert!(Pin::new(&mut socket).poll_flush(cx).is_ready());
        }
        let slices = [IoSlice::new(b"thr"), IoSlice::new(b"ee")];
        assert!(matches!(Pin::new(&mut socket).poll_write_vectored(cx, &slices), Poll::Ready(Ok(5))));
        assert!(lengths(&socket).is_empty());
        assert!(socket.poll_send(cx).is_ready());
        assert_eq!(socket.0.borrow().socket.writes, [b"one, two, three"]);
        // Without buffered bytes, the socket is not called.
        assert!(socket.poll_send(cx).is_ready());
        assert_eq!((lengths(&socket).len(), socket.0.borrow().socket.flushes), (1, 1));
    }

    #[test]
    fn long_writes_are_sent_uncopied_and_in_order() {
        let (mut socket, cx) = (gathered(usize::MAX), &mut Context::from_waker(Waker::noop()));
        for length in [10, MAX_BUFFERED_BYTES, MAX_BUFFERED_BYTES + 1, 10] {
            let written = Pin::new(&mut socket).poll_write(cx, &vec![0; length]);
            assert!(matches!(written, Poll::Ready(Ok(written)) if written == length));
        }
        assert_eq!(lengths(&socket), [10, MAX_BUFFERED_BYTES, MAX_BUFFERED_BYTES + 1]);
        assert!(socket.poll_send(cx).is_ready());
        assert_eq!(lengths(&socket), [10, MAX_BUFFERED_BYTES, MAX_BUFFERED_BYTES + 1, 10]);
    }

    #[test]
    fn a_full_socket_is_waited_for_and_nothing_is_said_twice() {
        let (mut socket, cx) = (gathered(4), &mut Context::from_waker(Waker::noop()));
        assert!(Pin::new(&mut socket).poll_write(cx, b"0123456789").is_ready());
        assert!(socket.poll_send(cx).is_pending());
        assert!(Pin::new(&mut socket).poll_write(cx, &[b'x'; MAX_BUFFERED_BYTES]).is_pending());
        assert!(Pin::new(&mut socket).poll_write(cx, b"ab").is_ready());
        assert!(Pin::new(&mut socket).poll_shutdown(cx).is_pending());
        socket.0.borrow_mut().socket.room = usize::MAX;
        assert!(Pin::new(&mut socket).poll_shutdown(cx).is_ready());
        assert_eq!(socket.0.borrow().socket.writes.concat(), b"0123456789ab");
    }

    #[tokio::test]
    async fn a_real_socket_gets_it_all() {
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let mut socket = WriteBuffer::new(near);
        let said: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        let hear = tokio::spawn(async move {
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).await.map(|_| heard)
        });
        for piece in said.chunks(3_000) {
            socket.write_all(piece).await.unwrap();
        }
        poll_fn(|cx| socket.poll_send(cx)).await.unwrap();
        drop(socket);
        assert!(hear.await.unwrap().unwrap() == said);
    }
}
