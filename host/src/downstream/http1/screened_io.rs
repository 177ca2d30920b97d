//! The socket of an HTTP/1 client: the framing scanner screens every byte before hyper parses it, and the responses are
//! observed.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::{RejectedRequest, Session, first_line};
use crate::downstream::Transport;
use crate::downstream::write_timeout::WriteTimeout;
use crate::protocol::framing::{FramingError, Scanner};

/// The time between two checks whether a client is gone that sends nothing and waits for its response: no received byte
/// would show that. Each check costs a system call.
const LOOK: Duration = Duration::from_secs(1);

/// A socket whose received bytes are screened.
pub struct ScreenedIo<T> {
    pub io: WriteTimeout<T>,
    pub scanner: Scanner,
    pub session: Rc<Session>,
    /// The rejection of bytes behind whole messages in one read; applied once these messages are served.
    pub refusal: Option<FramingError>,
}

impl<T> ScreenedIo<T> {
    /// Scans received bytes, and returns how many of them are passed to hyper; `None` if the bytes are rejected.
    fn scan(&mut self, bytes: &[u8]) -> Option<usize> {
        let (was_between, was_in_head) = (self.scanner.is_between(), self.scanner.is_in_head());
        let scanned = self.scanner.take(bytes);
        self.session.received.set(self.scanner.messages());
        if let Err(refusal) = scanned {
            let complete_bytes = self.scanner.complete_bytes();
            if was_between || complete_bytes > 0 {
                self.session.rejected_line.replace(first_line(&bytes[complete_bytes..]));
            }
            if complete_bytes == 0 {
                // Within a body, the exchange that reads it is answered with the error.
                self.session.is_answered.set(!was_between && !was_in_head);
                self.session.refused.set(Some(RejectedRequest::Framing(refusal)));
                return None;
            }
            self.refusal = Some(refusal);
            self.session.in_head.set(false);
            return Some(complete_bytes);
        }
        let in_head = self.scanner.is_in_head();
        if in_head && !self.session.in_head.get() && !self.session.busy.get() {
            self.session.head.set(self.session.client.arrival.listener.limits.head_timeout);
        }
        self.session.in_head.set(in_head);
        Some(bytes.len())
    }

    /// Ends reads after a rejection: a body fails, and a wait for a request stays pending.
    fn fail_after_rejection(&self) -> Poll<io::Result<()>> {
        if self.session.upload.borrow().is_over() {
            return Poll::Pending;
        }
        let reason = match self.session.refused.get() {
            Some(RejectedRequest::Framing(refusal)) => refusal.reason(),
            _ => "the body is malformed",
        };
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason)))
    }

    /// Whether the client has closed its sending side after a whole request (RFC 9112 §9.6) whose response is not
    /// complete. hyper would treat that end as an aborted connection.
    fn is_owed_a_response(&self) -> bool {
        self.session.heard_all.get() && self.scanner.is_between() && self.session.owes_response()
    }

    /// Whether informational responses wait.
    fn has_informational(&self) -> bool {
        self.session.client.arrival.informational.as_ref().is_some_and(|queue| queue.has_any())
    }

    /// Records the first bytes of a response, if the written bytes are the first.
    fn note_response(&self, written: &Poll<io::Result<usize>>, before: u64) {
        if matches!(written, Poll::Ready(Ok(1..))) && self.session.is_response_due() {
            self.session.begin_response(before);
        }
    }

    /// Intercepts hyper's own response to bytes that it can't parse, so that the proxy's error response is sent
    /// instead.
    fn intercept_hyper_error(&self, bytes: &[u8]) -> bool {
        if self.session.speaking.get() {
            return false;
        }
        if self.session.refused.get().is_none() {
            let status = bytes.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
            self.session.refused.set(Some(RejectedRequest::Malformed(status.unwrap_or(400))));
        }
        true
    }
}

impl<T: Transport> ScreenedIo<T> {
    /// Writes the informational responses that wait.
    fn poll_informational(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ScreenedIo { io, session, .. } = self;
        match &session.client.arrival.informational {
            Some(queue) if queue.has_any() => queue.poll_write(|bytes| Pin::new(&mut *io).poll_write(cx, bytes)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Writes the informational responses that wait, before anything of the response behind them.
    fn poll_before_response(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What hyper writes until then belongs to an earlier response.
        if self.session.is_response_due() { self.poll_informational(cx) } else { Poll::Ready(Ok(())) }
    }

    /// Waits until a client that still gets a response is gone; pending until then.
    fn poll_gone(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let look = &self.session.head;
        if look.is_set() && !look.is_met() {
            look.watch(cx);
            return Poll::Pending;
        }
        if self.io.socket.is_gone() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        look.set(LOOK);
        look.watch(cx);
        Poll::Pending
    }

    /// Fails if a client has disconnected while its content is not being read, for example because it waits for the
    /// endpoint: no read would detect that.
    fn fail_if_gone(&self) -> io::Result<()> {
        let (look, session) = (&self.session.rest, &self.session);
        if !session.busy.get() || session.upload.borrow().is_over() || look.is_set() && !look.is_met() {
            return Ok(());
        }
        let is_due = look.is_met();
        look.set(LOOK);
        if is_due && self.io.socket.is_gone() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl<T: Transport> AsyncRead for ScreenedIo<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(refusal) = self.refusal.take() {
            self.session.refused.set(Some(RejectedRequest::Framing(refusal)));
        }
        if self.session.refused.get().is_some() {
            return self.fail_after_rejection();
        }
        let before = buffer.filled().len();
        if !self.session.heard_all.get() {
            ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
            self.session.heard_all.set(buffer.filled().len() == before);
        }
        if self.is_owed_a_response() {
            return self.poll_gone(cx);
        }
        let admitted = self.scan(&buffer.filled()[before..]);
        buffer.set_filled(before + admitted.unwrap_or(0));
        if admitted.is_some() { Poll::Ready(Ok(())) } else { self.fail_after_rejection() }
    }
}

impl<T: Transport> AsyncWrite for ScreenedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.intercept_hyper_error(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_before_response(cx))?;
        self.session.flushed.set(false);
        let before = self.io.socket.bytes_sent();
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note_response(&written, before);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.intercept_hyper_error(slices.first().map_or(&[], |slice| slice)) {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        ready!(self.poll_before_response(cx))?;
        self.session.flushed.set(false);
        let before = self.io.socket.bytes_sent();
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.note_response(&written, before);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// Flushes the socket and finishes the exchanges that are completely written. hyper flushes once all its bytes are
    /// written, before it allocates memory for the next request. That request then reuses the memory of the finished
    /// exchange.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes in each of its turns.
        self.fail_if_gone()?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        let owed = self.session.owes_response();
        self.session.flushed.set(true);
        self.session.finish_flushed();
        if self.session.heard_all.get() && owed && !self.session.owes_response() {
            // hyper polls for the next request only if it is woken: it has not seen the end yet.
            cx.waker().wake_by_ref();
        }
        if self.has_informational() {
            // hyper has nothing to write: these are not within an earlier response.
            ready!(self.poll_informational(cx))?;
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Does nothing: after hyper's end, an error response or a tunnel may follow.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
