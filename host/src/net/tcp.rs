//! A TCP socket. Bodies in [`memfd_arena`] are sent without copying, and single pieces by the system call alone: glibc's
//! `send` also checks, twice, whether its thread is to end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};
#[cfg(target_os = "linux")]
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use crate::net::memfd_arena;

/// A TCP socket, of a client or to an endpoint.
#[derive(Debug)]
pub struct Tcp(pub TcpStream);

impl AsFd for Tcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

/// A part of the arena's file, in bytes.
#[derive(Clone, Copy)]
struct FilePart {
    offset: u64,
    length: usize,
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(offset) = memfd_arena::offset_of(bytes) {
            return self.poll_pages(cx, &[], FilePart { offset, length: bytes.len() });
        }
        self.poll_send(cx, |socket| Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The head of a response may precede its body.
        let in_pages =
            |slice: &io::IoSlice<'_>| Some(FilePart { offset: memfd_arena::offset_of(slice)?, length: slice.len() });
        let parts = slices.iter().take(2).enumerate();
        match parts.into_iter().find_map(|(at, slice)| Some((at, in_pages(slice)?))) {
            Some((0, content)) => self.poll_pages(cx, &[], content),
            Some((_, content)) => self.poll_pages(cx, &slices[0], content),
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

impl Tcp {
    /// Returns how many bytes wait in the kernel for the peer; 0 if the system doesn't report it.
    pub fn waiting(&self) -> u64 {
        waiting(&self.0)
    }

    /// Makes the kernel drop unsent bytes, up to some MiB, once the socket is closed.
    pub fn forget_unsent(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(&self.0, Some(Duration::ZERO));
    }

    /// Sends a head by a copy, and as much of a body as the socket accepts from its offset in the pages.
    fn poll_pages(&mut self, cx: &mut Context<'_>, head: &[u8], part: FilePart) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |socket| {
            if head.is_empty() {
                return memfd_arena::send(socket, part.offset, part.length);
            }
            // The head waits in the kernel for the body.
            let sent = rustix::net::send(socket, head, SendFlags::MORE | SendFlags::NOSIGNAL)?;
            if sent < head.len() {
                return Ok(sent);
            }
            // The head was sent: an error of the body recurs at the next write.
            Ok(sent + memfd_arena::send(socket, part.offset, part.length).unwrap_or(0))
        })
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_io(Interest::WRITABLE, || send(&self.0)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

/// Returns the next byte of a socket without consuming it; `None` if the peer has closed its sending side.
pub fn peek(socket: &impl AsFd) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let (_, length) = rustix::net::recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok((length > 0).then_some(byte[0]))
}

/// Whether bytes have arrived that were not read.
pub fn has_bytes(socket: &impl AsFd) -> bool {
    peek(socket).is_ok_and(|next| next.is_some())
}

/// Whether the peer has reset the connection, or has closed both directions of a unix socket. A closed sending side
/// alone does not count.
pub fn is_gone(socket: &impl AsFd) -> bool {
    reports(socket, PollFlags::HUP | PollFlags::ERR)
}

/// Whether the peer has reset the connection, which no read and no write has reported yet.
pub fn is_reset(socket: &impl AsFd) -> bool {
    reports(socket, PollFlags::ERR)
}

/// Whether the peer has closed its sending side or reset the connection, even if bytes from before were not read.
#[cfg(target_os = "linux")]
pub fn has_ended(socket: &impl AsFd) -> bool {
    reports(socket, PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

#[cfg(not(target_os = "linux"))]
pub fn has_ended(socket: &impl AsFd) -> bool {
    peek(socket).is_ok_and(|next| next.is_none()) || is_reset(socket)
}

/// Whether the system reports one of these conditions of a socket.
fn reports(socket: &impl AsFd, conditions: PollFlags) -> bool {
    let mut sockets = [PollFd::new(socket, conditions)];
    let polled = poll(&mut sockets, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && sockets[0].revents().intersects(conditions)
}

/// Returns how many bytes a socket has accepted that the peer hasn't received; 0 if the system doesn't report it.
#[cfg(target_os = "linux")]
pub fn waiting(socket: &impl AsRawFd) -> u64 {
    let mut bytes: libc::c_int = 0;
    #[expect(unsafe_code, reason = "the request is not among those that rustix knows")]
    // SAFETY: TIOCOUTQ writes one integer, to a location that outlives the call.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if outcome == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

#[cfg(not(target_os = "linux"))]
pub fn waiting(_: &impl AsRawFd) -> u64 {
    0
}

/// Makes the system ignore new clients of a listening socket: they repeat their SYN a second later, and reach the socket
/// that then has the address.
#[cfg(target_os = "linux")]
pub fn ignore_new_clients(listener: &TcpListener) -> io::Result<()> {
    // A program for the filter of a socket: it drops the segments of TCP that have SYN but not ACK among their flags.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let program = [
        SockFilter::new((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 0, 0, FLAGS),
        SockFilter::new((libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16, 0, 0, SYN | ACK),
        SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, SYN),
        SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0),
        SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, u32::MAX),
    ];
    SockRef::from(listener).attach_filter(&program)
}

#[cfg(not(target_os = "linux"))]
pub fn ignore_new_clients(_: &TcpListener) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
