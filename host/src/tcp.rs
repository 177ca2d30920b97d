//! A socket of TCP, as cheap as tokio's can be used: who waits is noted once, a message that leaves in one piece does so by
//! the system call alone, and what lies in [`pages`] is not copied.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop;

use crate::pages;

/// A socket.
#[derive(Debug)]
pub struct Tcp {
    socket: TcpStream,
    /// Whether the reader is noted as who hears of the next bytes, and none have come since.
    is_awaited: bool,
    reader: Waker,
}

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // hyper asks anew after each step. To be noted once more as who waits would take tokio's lock.
        if this.is_awaited && this.reader.will_wake(cx.waker()) && !this.is_readable() {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut this.socket).poll_read(cx, buffer);
        // A task that has had its turn isn't noted: it is woken at once.
        this.is_awaited = polled.is_pending() && coop::has_budget_remaining();
        if this.is_awaited {
            this.reader.clone_from(cx.waker());
        }
        polled
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(place) = pages::place_of(bytes) {
            return self.poll_pages(cx, &[], (place, bytes.len()));
        }
        self.poll_send(cx, |socket| Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The head of a response may stand before its content.
        let in_pages = |(at, slice): (usize, &io::IoSlice<'_>)| Some((at, (pages::place_of(slice)?, slice.len())));
        match slices.iter().take(2).enumerate().find_map(in_pages) {
            Some((0, content)) => self.poll_pages(cx, &[], content),
            Some((_, content)) => self.poll_pages(cx, &slices[0], content),
            None => Pin::new(&mut self.socket).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl Tcp {
    pub fn new(socket: TcpStream) -> Self {
        Tcp { socket, is_awaited: false, reader: Waker::noop().clone() }
    }

    /// Waits for the socket to be readable.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx)
    }

    /// Whether something has come, as far as is known without a call of the system.
    fn is_readable(&self) -> bool {
        self.socket.try_io(Interest::READABLE, || Ok(())).is_ok()
    }

    /// Sends a head as it is, and content from its place in the pages; as much of that as the socket takes.
    fn poll_pages(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        (place, length): (u64, usize),
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |socket| {
            if head.is_empty() {
                return pages::send(socket, place, length);
            }
            // It waits for what follows it.
            let sent = rustix::net::send(socket, head, SendFlags::MORE | SendFlags::NOSIGNAL)?;
            if sent < head.len() {
                return Ok(sent);
            }
            // The head has left: what keeps the content from leaving is met again by the next write.
            Ok(sent + pages::send(socket, place, length).unwrap_or(0))
        })
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_io(Interest::WRITABLE, || send(&self.socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}
