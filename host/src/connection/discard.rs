//! Content of a stream with HTTP/2 that its response did not wait for: read and discarded within bounds, so that what was on
//! its way is no mistake of the client, and the reset that asks for no more (RFC 9113 §8.1) comes after the client has read
//! its response.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http_body::Body;
use hyper::body::Incoming;

use super::{DISCARD_BYTES, DISCARD_TIME, LINGER};
use crate::clock::{Clock, Deadline};

/// The rest of a request's content.
pub struct Discard {
    /// `None` once enough of it was read: then h2 discards what the window of the stream still lets through.
    content: Option<Incoming>,
    /// The bytes that may still be read.
    left: usize,
    /// For the next piece.
    pause: Deadline,
    /// For all of it.
    total: Deadline,
}

impl Discard {
    pub fn new(content: Incoming, clock: &Rc<Clock>) -> Self {
        let [pause, total] = clock.deadlines();
        pause.set(LINGER);
        total.set(DISCARD_TIME);
        Discard { content: Some(content), left: DISCARD_BYTES, pause, total }
    }

    /// Reads on; ready once the content is over or a bound is met.
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
