//! HTTP/2 streams whose client reads slowly: how long each has waited, and how much was accepted meanwhile. A stream
//! whose window opens by a few bytes now and then is reset.

use std::cell::{Cell, OnceCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;

use crate::body::backlog::{Backlog, StreamBacklog};
use crate::body::upload::UploadProgress;
use crate::downstream::discard::Discard;
use crate::exchange::upstream_body::ReadAhead;
use crate::generation::listener::SendLimits;
use crate::net::deadline::Clock;

/// The state of a stream from its request to the last byte of its response.
pub struct StalledStream<H> {
    pub backlog: Arc<StreamBacklog>,
    /// The time since when the stream has data for the client; `None` while the endpoint is waited for.
    since: Cell<Option<Instant>>,
    /// The time for which the client was waited for, in this window.
    waited: Cell<Duration>,
    /// The number of bytes that the client had accepted when this window began.
    before: Cell<u64>,
    /// The number of windows in which the client accepted data, but too little.
    slow: Cell<u8>,
    is_cut_off: Cell<bool>,
    task: Cell<Option<Waker>>,
    /// The upload progress of the request; unset if there is no body.
    upload: OnceCell<UploadProgress>,
    /// Reads the response ahead of a slow client.
    ahead: OnceCell<ReadAhead>,
    /// The parts of the exchange that end once h2 has the response to its last byte.
    held: Cell<Option<H>>,
}

pin_project! {
    /// The task of a stream, which ends when the stream is cut off. After the response it discards the rest of the
    /// request body: h2 resets the stream as soon as the task is dropped.
    pub struct StreamTask<F, H> {
        #[pin]
        task: F,
        stream: Rc<StalledStream<H>>,
        clock: Rc<Clock>,
        is_over: bool,
        discard: Option<Discard>,
    }
}

/// A check of all streams of a connection.
#[derive(Clone, Copy)]
pub struct StreamCheck {
    pub now: Instant,
    /// The time of the previous check.
    pub last: Instant,
    /// Whether the socket was full since the previous check: then each stream may have waited for the others.
    pub was_full: bool,
}

impl<H> StalledStream<H> {
    pub fn new(backlog: &Arc<Backlog>) -> Rc<Self> {
        Rc::new(StalledStream {
            backlog: StreamBacklog::new(backlog),
            since: Cell::new(None),
            waited: Cell::new(Duration::ZERO),
            before: Cell::new(0),
            slow: Cell::new(0),
            is_cut_off: Cell::new(false),
            task: Cell::new(None),
            upload: OnceCell::new(),
            ahead: OnceCell::new(),
            held: Cell::new(None),
        })
    }

    /// Sets the upload progress of the stream's request.
    pub fn receives(&self, upload: &UploadProgress) {
        let _ = self.upload.set(upload.clone());
    }

    /// Sets the reading of the stream's response.
    pub fn reads_ahead(&self, ahead: ReadAhead) {
        let _ = self.ahead.set(ahead);
    }

    /// Keeps the parts that end with the response, of which h2 requests no more bytes.
    pub fn hold(&self, held: H) {
        self.held.set(Some(held));
    }

    /// Records when data for the client became available; `None` if there is none.
    pub fn set_stalled_since(&self, since: Option<Instant>) {
        self.since.set(since);
    }

    /// Whether the client has accepted none of its available data for `patience`.
    pub fn is_stuck(&self, now: Instant, patience: Duration) -> bool {
        self.since.get().is_some_and(|since| now.saturating_duration_since(since) >= patience)
    }

    /// Whether the client opens the window of the stream too slowly.
    pub fn is_too_slow(&self, look: StreamCheck, limits: SendLimits) -> bool {
        let Some(since) = self.since.get().filter(|_| !look.was_full && !self.backlog.is_empty()) else { return false };
        self.waited.set(self.waited.get() + look.now.saturating_duration_since(since.max(look.last)));
        if self.waited.get() < limits.window() {
            return false;
        }
        let taken = self.backlog.bytes_taken();
        let in_window = taken - self.before.replace(taken);
        self.waited.set(Duration::ZERO);
        limits.is_too_slow(in_window, &self.slow)
    }

    /// Ends the stream's task, upon which h2 resets the stream.
    pub fn cut_off(&self) {
        self.is_cut_off.set(true);
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }

    fn watch(&self, cx: &Context<'_>) {
        let waker = self.task.take().filter(|waker| waker.will_wake(cx.waker()));
        self.task.set(Some(waker.unwrap_or_else(|| cx.waker().clone())));
    }
}

impl<F, H> StreamTask<F, H> {
    pub fn new(task: F, stream: Rc<StalledStream<H>>, clock: &Rc<Clock>) -> Self {
        StreamTask { task, stream, clock: clock.clone(), is_over: false, discard: None }
    }
}

impl<F: Future, H> Future for StreamTask<F, H> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.is_cut_off.get() {
            return Poll::Ready(());
        }
        this.stream.watch(cx);
        if !*this.is_over {
            if this.task.poll(cx).is_pending() {
                if let Some(ahead) = this.stream.ahead.get() {
                    ahead.drive(cx);
                }
                if let Some(upload) = this.stream.upload.get() {
                    upload.read_ahead(cx);
                }
                return Poll::Pending;
            }
            *this.is_over = true;
            this.stream.set_stalled_since(None);
            // A stream that failed, or that the client has reset, is dropped at once, and its exchange with it.
            if this.stream.held.take().is_none() {
                return Poll::Ready(());
            }
        }
        let Some(upload) = this.stream.upload.get() else { return Poll::Ready(()) };
        if this.discard.is_none() {
            // While the body is sent to the endpoint, its own limits apply.
            let Poll::Ready(rest) = upload.poll_rest(cx) else {
                upload.read_ahead(cx);
                return Poll::Pending;
            };
            let Some(rest) = rest else { return Poll::Ready(()) };
            *this.discard = Some(Discard::new(rest, this.clock));
        }
        this.discard.as_mut().map_or(Poll::Ready(()), |discard| discard.poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, Bytes};

    use super::*;

    const LIMITS: SendLimits = SendLimits { timeout: Duration::from_secs(60), rate: 128 };

    /// Whether a stream is found too slow within two minutes, if `bytes` are accepted in every five seconds.
    fn is_found(bytes: usize, was_full: bool) -> bool {
        let stream = StalledStream::<()>::new(&Backlog::new(1 << 20));
        let mut piece = stream.backlog.hold(Bytes::from(vec![0; 1 << 20]));
        let mut last = Instant::now();
        stream.set_stalled_since(Some(last));
        (0..24).any(|_| {
            piece.advance(bytes);
            let now = last + Duration::from_secs(5);
            let look = StreamCheck { now, last, was_full };
            last = now;
            stream.is_too_slow(look, LIMITS)
        })
    }

    #[test]
    fn a_drip_is_too_slow_and_nothing_at_all_is_not() {
        assert!(is_found(1, false));
        assert!(is_found(5 * 127, false));
        assert!(!is_found(5 * 128, false));
        assert!(!is_found(0, false), "that is a matter of the timeout");
        assert!(!is_found(1, true), "the socket was full: the stream waited for others");
    }

    #[test]
    fn a_stream_that_is_quiet_waits_for_no_client() {
        let stream = StalledStream::<()>::new(&Backlog::new(1 << 20));
        let begin = Instant::now();
        let look = StreamCheck { now: begin + Duration::from_secs(600), last: begin, was_full: false };
        assert!(!stream.is_too_slow(look, LIMITS));
        let mut piece = stream.backlog.hold(Bytes::from_static(b"event"));
        piece.advance(5);
        drop(piece);
        stream.set_stalled_since(Some(begin));
        assert!(!stream.is_too_slow(look, LIMITS), "all of it was taken");
    }
}
