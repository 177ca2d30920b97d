//! Discards the rest of a request body that the response did not wait for, within bounds. Over HTTP/2, frames that are
//! already under way are then no error of the client, and the reset that stops the upload (RFC 9113 §8.1) follows after
//! the client has read its response. Over HTTP/1, the connection is kept for the next request.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http_body::Body;
use hyper::body::Incoming;

use crate::downstream::{DISCARD_BYTES, DISCARD_TIME, LINGER};
use crate::net::deadline::{Clock, Deadline};

/// The rest of a request body that is read and discarded.
pub struct Discard {
    /// The body; `None` once enough was read: then h2 discards the rest of the stream's window, and a connection of HTTP/1
    /// is closed.
    content: Option<Incoming>,
    /// The number of bytes that may still be read.
    left: usize,
    /// The timeout for the next piece.
    pause: Deadline,
    /// The timeout for all of the body.
    total: Deadline,
}

impl Discard {
    pub fn new(content: Incoming, clock: &Rc<Clock>) -> Self {
        let [pause, total] = clock.deadlines();
        pause.set(LINGER);
        total.set(DISCARD_TIME);
        Discard { content: Some(content), left: DISCARD_BYTES, pause, total }
    }

    /// Reads and discards; ready once the body has ended or a bound is met.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(content) = &mut self.content {
            match Pin::new(content).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, |data| data.len());
                    self.pause.set(LINGER);
                    match self.left.checked_sub(length) {
                        Some(left) => self.left = left,
                        None => self.content = None,
                    }
                }
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        if self.pause.is_met() || self.total.is_met() {
            return Poll::Ready(());
        }
        self.pause.watch(cx);
        Poll::Pending
    }
}
