//! Sockets and tasks as hyper wants them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use rustix::net::SendFlags;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::pages;

/// A socket, on which a short message leaves by one plain `send`: for the kernel that is less work than `writev`, by
/// more than it costs to put head and content together here.
pub struct Wire<T>(TokioIo<T>);

/// Longer messages leave from where they lie. A head and a small page fit; chosen by measuring 1 KiB responses.
const SHORT: usize = 2 << 10;

impl<T> Wire<T> {
    pub fn new(socket: T) -> Self {
        Wire(TokioIo::new(socket))
    }

    pub fn into_socket(self) -> T {
        self.0.into_inner()
    }
}

/// Has hyper's tasks run on the worker that they begin on.
#[derive(Clone, Copy, Debug)]
pub struct OnThisWorker;

impl<F: Future + 'static> Executor<F> for OnThisWorker
where
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

impl<T: AsyncRead + Unpin> Read for Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> Write for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = slices {
            return self.poll_write(cx, one);
        }
        if slices.iter().map(|slice| slice.len()).sum::<usize>() > SHORT {
            return Pin::new(&mut self.0).poll_write_vectored(cx, slices);
        }
        let mut short = SmallVec::<[u8; SHORT]>::new();
        slices.iter().for_each(|slice| short.extend_from_slice(slice));
        self.poll_write(cx, &short)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A client's socket without TLS, on which what lies in [`pages`] leaves without being copied.
#[derive(Debug)]
pub struct Plain(pub TcpStream);

impl AsyncRead for Plain {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(place) = pages::place_of(bytes) {
            return self.poll_send(cx, &[], (place, bytes.len()));
        }
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The head of a response may stand before its content.
        let in_pages = |(at, slice): (usize, &io::IoSlice<'_>)| Some((at, (pages::place_of(slice)?, slice.len())));
        match slices.iter().take(2).enumerate().find_map(in_pages) {
            Some((0, content)) => self.poll_send(cx, &[], content),
            Some((_, content)) => self.poll_send(cx, &slices[0], content),
            None => Pin::new(&mut self.0).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Plain {
    /// Sends a head as it is, and content from its place in the pages; as much of that as the socket takes.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        (place, length): (u64, usize),
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            let sent = self.0.try_io(Interest::WRITABLE, || {
                if head.is_empty() {
                    return pages::send(&self.0, place, length);
                }
                // It waits for what follows it.
                let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
                let sent = rustix::net::send(&self.0, head, flags)?;
                if sent < head.len() {
                    return Ok(sent);
                }
                // The head has left: what keeps the content from leaving is met again by the next write.
                Ok(sent + pages::send(&self.0, place, length).unwrap_or(0))
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}
