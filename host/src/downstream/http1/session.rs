//! The state that an HTTP/1 connection shares with its exchanges.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use smallvec::SmallVec;

use crate::body::BodyError;
use crate::body::upload::{ClientContent, UploadProgress};
use crate::downstream::discard::Discard;
use crate::downstream::{ClientConnection, ResponseStream, Transport};
use crate::error::FailureKind;
use crate::exchange::Timers;
use crate::exchange::record::ExchangeRecord;
use crate::exchange::response_body::{ResponseBody, SwitchedProtocol};
use crate::exchange::upstream_body::ReadAhead;
use crate::net::deadline::Deadline;
use crate::protocol::framing::FramingError;

/// The idle time after which a connection frees its buffers. Recreating them costs about as much as parsing a request,
/// so that clients without a pause should keep them.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// The maximum number of bytes of a rejected request's first line that are kept: more than the access log shows.
const MAX_LINE_BYTES: usize = 10 << 10;

/// The state of an HTTP/1 connection that its exchanges and its socket use.
pub struct Session {
    pub client: ClientConnection,
    timers: Rc<Timers>,
    /// The timeout for the next head to begin, and then to be complete.
    pub head: Deadline,
    /// The deadline for the buffers to be freed; within an exchange, the time of the next check whether a client that sends
    /// content is still connected.
    pub rest: Deadline,
    /// The timeout for the client to accept data.
    pub send: Deadline,
    /// Whether an exchange is under way.
    pub busy: Cell<bool>,
    /// Whether a head has begun and isn't complete yet.
    pub in_head: Cell<bool>,
    /// The number of requests that have been read from the socket to their end.
    pub received: Cell<usize>,
    /// Whether the client has closed its sending side.
    pub heard_all: Cell<bool>,
    /// Whether the bytes that hyper writes belong to an exchange, and not to hyper's own error response.
    pub speaking: Cell<bool>,
    /// Whether all that was written has left hyper's buffers.
    pub flushed: Cell<bool>,
    /// The upload progress of the last request. The body may take longer than its response, and until it ends the
    /// client's bytes are no new request.
    pub upload: RefCell<UploadProgress>,
    /// Whether the client may leave out the content of the last request, because it waits for 100 (Continue).
    is_expecting: Cell<bool>,
    /// The rest of the last request's content while it is discarded behind the head of the response.
    discard: RefCell<Option<Discard>>,
    /// The reason why the connection can't have another request; `None` if it can.
    pub refused: Cell<Option<RejectedRequest>>,
    /// Whether the rejected bytes belong to the body of a request that has a response of its own.
    pub is_answered: Cell<bool>,
    /// The bytes of the rejected request's first line that were read, for the access log; empty if none are known.
    pub rejected_line: RefCell<Bytes>,
    /// The switched protocol of the connection, once the response head that says so is sent.
    pub switched: RefCell<Option<(SwitchedProtocol, Option<ExchangeRecord>)>>,
    /// Exchanges whose last bytes may still be in hyper's buffers: their records are reported once the client has its
    /// response.
    ended: RefCell<SmallVec<[ExchangeRecord; 1]>>,
    /// Exchanges whose response was sent after the client had closed its sending side. Their records are reported once
    /// it is known whether the client was still there.
    unconfirmed: RefCell<SmallVec<[ExchangeRecord; 1]>>,
    /// The progress of the last response.
    response: Cell<SentResponse>,
    /// Reads the last response ahead of a slow client.
    ahead: RefCell<ReadAhead>,
    /// The number of requests so far.
    served: Cell<usize>,
    /// Whether the last request is one of HTTP/1.0.
    is_http_10: Cell<bool>,
}

/// The reason why bytes never became a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectedRequest {
    /// The framing is ambiguous, or a part is too long.
    Framing(FramingError),
    /// The request didn't arrive in time.
    Late,
    /// hyper can't parse the request, and would answer with this status.
    Malformed(u16),
}

/// The progress of a response to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SentResponse {
    /// No response was sent yet, except interim ones.
    Nothing,
    /// hyper has the head, and no byte was sent since.
    Given,
    /// The response has begun.
    Begun {
        /// The number of bytes that were sent on the connection before.
        before: u64,
        /// Whether the client had closed its sending side when the response began.
        after_end: bool,
    },
}

pin_project! {
    /// An exchange, up to its response. Not an `async` block, which would reserve room for the future twice.
    struct ExchangeFuture<F> {
        #[pin]
        exchange: F,
        session: Rc<Session>,
    }
}

/// The body of a response that hyper writes.
pub struct Http1Body {
    outgoing: ResponseStream,
    /// The error of the body, kept until the client has all previous bytes: when a body fails, hyper drops all that it
    /// still holds, even the head.
    cut: Option<BodyError>,
    session: Rc<Session>,
}

impl Session {
    pub fn new(client: ClientConnection) -> Rc<Self> {
        let [step, total, head, rest, send] = client.clock.deadlines();
        head.set(client.arrival.listener.limits.head_timeout);
        rest.set(IDLE_AFTER);
        Rc::new(Session {
            client,
            timers: Rc::new(Timers { idle: step, total }),
            head,
            rest,
            send,
            busy: Cell::new(false),
            in_head: Cell::new(false),
            received: Cell::new(0),
            heard_all: Cell::new(false),
            speaking: Cell::new(false),
            flushed: Cell::new(true),
            upload: RefCell::new(UploadProgress::over()),
            is_expecting: Cell::new(false),
            discard: RefCell::default(),
            refused: Cell::new(None),
            is_answered: Cell::new(false),
            rejected_line: RefCell::default(),
            switched: RefCell::default(),
            ended: RefCell::default(),
            unconfirmed: RefCell::default(),
            response: Cell::new(SentResponse::Nothing),
            ahead: RefCell::default(),
            served: Cell::new(0),
            is_http_10: Cell::new(false),
        })
    }

    /// Begins an exchange for a request.
    pub fn exchange(
        self: Rc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Http1Body>, Infallible>> {
        self.busy.set(true);
        self.client.presence.serve();
        self.speaking.set(true);
        self.response.set(SentResponse::Nothing);
        self.served.set(self.served.get() + 1);
        self.rest.clear();
        self.head.clear();
        self.is_http_10.set(request.version() == Version::HTTP_10);
        let upload = UploadProgress::returned();
        self.upload.replace(upload.clone());
        self.discard.take();
        self.is_expecting.set(!request.body().is_end_stream() && request.headers().contains_key(header::EXPECT));
        let request = request.map(|content| ClientContent::new(content, upload.clone()));
        let exchange = self.client.exchange(request, upload, self.timers.clone(), &|response| response);
        ExchangeFuture { exchange, session: self }
    }

    /// Returns the number of requests that were begun.
    pub fn served(&self) -> usize {
        self.served.get()
    }

    /// Makes a response report its end, and announce the connection's end if it is the last one.
    fn track(self: &Rc<Self>, mut response: Response<ResponseStream>) -> Response<Http1Body> {
        self.response.set(SentResponse::Given);
        if !self.ended.borrow().is_empty()
            && let Some(queue) = &self.client.arrival.informational
        {
            // They can't be written any more: hyper appends this response to an earlier one, which is not sent yet.
            drop(queue.take());
        }
        let listener = &self.client.arrival.listener;
        let is_stopping = self.head.clock().is_stopping();
        let is_last = is_stopping || self.served.get() >= listener.limits.requests || listener.is_superseded();
        // Its connection leaves HTTP, and a `Connection` without `upgrade` would fail a WebSocket (RFC 6455 §4.1).
        let is_switch = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        // A client that sends ambiguous bytes may have meant the following ones differently too.
        let is_doubtful = |kind| {
            matches!(kind, FailureKind::RequestError | FailureKind::RequestTimeout | FailureKind::RequestBodySize)
        };
        // The rest of the request body is discarded, and a request behind it would be discarded too.
        let is_cut_short = self.upload.borrow().is_unread() && self.received.get() < self.served.get();
        if is_cut_short {
            // The content of a closed connection is read and discarded without hyper.
            drop(self.upload.borrow().take_rest());
        }
        // The end of the connection is that of the content: such a client knows no chunks (RFC 9112 §6.3).
        let is_unframed = self.is_http_10.get()
            && !response.body().is_end_stream()
            && response.body().size_hint().exact().is_none()
            && !response.headers().contains_key(header::CONTENT_LENGTH);
        if is_last && !is_switch
            || is_cut_short
            || is_unframed
            || response.body().record.as_ref().and_then(|record| record.error).is_some_and(is_doubtful)
        {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            if self.is_http_10.get() {
                // To a response in its own version, hyper doesn't add that the connection is kept.
                *response.version_mut() = Version::HTTP_10;
            }
        }
        self.ahead.replace(response.body().body.read_ahead());
        response.map(|outgoing| Http1Body { outgoing, cut: None, session: self.clone() })
    }

    /// Reads ahead from the endpoint while the client accepts nothing of the response.
    pub fn read_ahead(&self, cx: &mut Context<'_>) {
        if self.busy.get() && !self.flushed.get() {
            self.ahead.borrow().drive(cx);
        }
    }

    /// Reads and discards the content that the exchange has left behind the head of its response. That head has not said that
    /// the connection closes, and the next request may be on its way (RFC 9112 §9.6).
    pub fn discard_rest(&self, cx: &mut Context<'_>) {
        if self.response.get() == SentResponse::Nothing {
            return;
        }
        let mut discard = self.discard.borrow_mut();
        if discard.is_none() {
            *discard = self.poll_rest(cx).map(|rest| Discard::new(rest, self.head.clock()));
        }
        if discard.as_mut().is_some_and(|discard| discard.poll(cx).is_ready()) {
            *discard = None;
            // hyper reads the next request, or closes if there is more than is discarded.
            cx.waker().wake_by_ref();
        }
    }

    /// Whether content is discarded, which comes before the next request.
    pub fn is_discarding(&self) -> bool {
        self.discard.borrow().is_some()
    }

    /// Returns the content that the exchange has left; `None` if it has left none, or none yet.
    fn poll_rest(&self, cx: &Context<'_>) -> Option<Incoming> {
        let upload = self.upload.borrow();
        if upload.is_over() && !upload.is_unread() {
            return None;
        }
        let Poll::Ready(rest) = upload.poll_rest(cx) else { return None };
        // The bytes behind a final response may be those of the next request (RFC 9110 §10.1.1), unless the client has sent all
        // of its content without waiting for the response.
        let has_all = || self.received.get() >= self.served.get();
        rest.filter(|_| !self.is_expecting.get() || upload.bytes() > 0 || has_all())
    }

    /// Whether the connection closes as soon as it is idle: the process stops, or the client was not verified as it has to be
    /// now. A client that waits for its first response is told so by it.
    pub fn ends_when_idle(&self) -> bool {
        let rules = &self.client.arrival.listener.rules;
        self.head.clock().is_stopping() || self.served.get() > 0 && rules.is_unverified()
    }

    /// Returns a deadline that is unused once HTTP is over.
    pub fn spare_deadline(&self) -> Deadline {
        self.timers.idle.clone()
    }

    /// Whether a response is not sent to its last byte, or has not begun.
    pub fn owes_response(&self) -> bool {
        self.busy.get() || !self.flushed.get() || !self.ended.borrow().is_empty()
    }

    /// Records that all written bytes were sent: finishes the exchanges whose body has ended, and waits for the next
    /// request.
    pub fn finish_flushed(&self) {
        if !self.busy.get() {
            self.speaking.set(false);
        }
        let mut ended = self.ended.take();
        let has_ended = !ended.is_empty();
        ended.iter_mut().for_each(ExchangeRecord::sent);
        if self.heard_all.get() {
            self.unconfirmed.borrow_mut().extend(ended);
        }
        // Not before: while the client reads a response slowly, it can't be expected to send another request.
        if has_ended && !self.busy.get() {
            let limits = &self.client.arrival.listener.limits;
            self.head.set(if self.in_head.get() { limits.head_timeout } else { limits.keep_alive });
            self.client.presence.wait(self.client.clock.now());
        }
    }

    /// Whether a response was given to hyper and no byte was sent since.
    pub fn is_response_due(&self) -> bool {
        self.response.get() == SentResponse::Given
    }

    /// Records that the first bytes of a response were sent, on a connection that had sent `before` bytes.
    pub fn begin_response(&self, before: u64) {
        self.response.set(SentResponse::Begun { before, after_end: self.heard_all.get() });
    }

    /// Whether it is not known yet if the client was there to receive a response.
    pub fn has_unconfirmed(&self) -> bool {
        !self.unconfirmed.borrow().is_empty()
    }

    /// Reports the exchanges that are left when the connection ends. `is_gone` tells whether the client has reset the
    /// connection.
    pub fn report<T: Transport>(&self, socket: &T, is_gone: fn(&T) -> bool) {
        let records = self.ended.take().into_iter().chain(self.unconfirmed.take());
        for mut record in records.filter(|_| is_gone(socket)) {
            record.client_left(match self.response.get() {
                SentResponse::Nothing | SentResponse::Given => true,
                SentResponse::Begun { before, after_end } => after_end && socket.bytes_taken() <= before,
            });
        }
    }

    /// Records the end of an exchange, so that the next request may arrive.
    pub fn end(&self) {
        self.busy.set(false);
        self.timers.idle.clear();
        self.timers.total.clear();
        self.rest.set(IDLE_AFTER);
    }

    /// Clears the deadlines after HTTP, since they would wake the tunnel or the lingering close.
    pub fn leave(&self) {
        self.discard.take();
        for deadline in [&self.head, &self.rest, &self.send, &self.timers.idle, &self.timers.total] {
            deadline.clear();
        }
    }
}

/// Returns the first line of bytes that begin with a head, as far as it is there. Empty lines before it are skipped.
pub fn first_line(bytes: &[u8]) -> Bytes {
    let begin = bytes.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(bytes.len());
    let rest = &bytes[begin..];
    let line = &rest[..memchr::memchr(b'\n', rest).unwrap_or(rest.len())];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Bytes::copy_from_slice(&line[..line.len().min(MAX_LINE_BYTES)])
}

impl<F: Future<Output = Response<ResponseStream>>> Future for ExchangeFuture<F> {
    type Output = Result<Response<Http1Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.exchange.poll(cx).map(|response| Ok(this.session.track(response)))
    }
}

impl Drop for Http1Body {
    fn drop(&mut self) {
        self.session.end();
        let record = self.outgoing.record.take();
        match std::mem::replace(&mut self.outgoing.body, ResponseBody::Full(Bytes::new())) {
            ResponseBody::Switched(switched) => drop(self.session.switched.replace(Some((*switched, record)))),
            _ => self.session.ended.borrow_mut().extend(record),
        }
    }
}

impl Body for Http1Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.cut.is_some() {
            return if this.session.flushed.get() { Poll::Ready(this.cut.take().map(Err)) } else { Poll::Pending };
        }
        match Pin::new(&mut this.outgoing).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                this.cut = Some(error);
                this.session.flushed.set(false);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            frame => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.outgoing.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.outgoing.size_hint()
    }
}
