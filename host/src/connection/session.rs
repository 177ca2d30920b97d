//! What the exchanges of a connection with HTTP/1 share, and what passes between them and the connection.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use smallvec::SmallVec;

use super::{Client, Outgoing};
use crate::body::{ResponseBody, Switched};
use crate::clock::Deadline;
use crate::ending::Ending;
use crate::error::Kind;
use crate::exchange::Timers;
use crate::framing::Refusal;
use crate::passage::BodyError;
use crate::upload::{ClientContent, Upload};

/// A connection that rests this long gives its buffers back. Making them anew costs about as much as a request's
/// parsing, so clients that go on at once should keep them.
const REST: Duration = Duration::from_millis(100);

/// The state of a connection, as far as its exchanges and its socket have a part in it.
pub struct Session {
    pub client: Client,
    timers: Rc<Timers>,
    /// For the next head to begin, and then to be whole.
    pub head: Deadline,
    /// For the buffers to be given back.
    pub rest: Deadline,
    /// For the client to take something of what is sent.
    pub send: Deadline,
    /// Whether an exchange is under way.
    pub busy: Cell<bool>,
    /// Whether a head has begun and isn't whole yet.
    pub in_head: Cell<bool>,
    /// Whether all of the last request has been read from the socket.
    pub has_whole: Cell<bool>,
    /// Whether the client has said its last word.
    pub heard_all: Cell<bool>,
    /// Whether what hyper writes is of an exchange, and not its own word.
    pub speaking: Cell<bool>,
    /// Whether all that was written has left hyper's buffers.
    pub flushed: Cell<bool>,
    /// The content of the last request. It may take longer than its response, and until it is over what the client
    /// sends is no new request.
    pub upload: RefCell<Upload>,
    /// What makes the connection unfit for another request.
    pub refused: Cell<Option<Refused>>,
    /// What the connection has become, once the head that says so is sent.
    pub switched: RefCell<Option<(Switched, Option<Ending>)>>,
    /// Exchanges whose last bytes may still be in hyper's buffers: what is due at their end waits until the client has
    /// its response.
    ended: RefCell<SmallVec<[Ending; 1]>>,
    /// Requests so far.
    served: Cell<usize>,
}

/// Why a request never became an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its framing is ambiguous, or it is too long.
    Framing(Refusal),
    /// It didn't come in time.
    Late,
    /// hyper can't parse it, and would answer with this status.
    Malformed(u16),
}

pin_project! {
    /// An exchange, up to its response. Not an `async` block: that would have room for what it runs twice.
    struct Exchanging<F> {
        #[pin]
        exchange: F,
        session: Rc<Session>,
    }
}

/// The content of a response on its way into hyper.
pub struct Tracked {
    outgoing: Outgoing,
    /// What cut the body off, until the client has all that came before: hyper drops what it still holds when a body
    /// fails, be it the head.
    cut: Option<BodyError>,
    session: Rc<Session>,
}

impl Session {
    pub fn new(client: Client) -> Rc<Self> {
        let [step, total, head, rest, send] = client.clock.deadlines();
        head.set(client.arrival.listener.limits.head_timeout);
        rest.set(REST);
        Rc::new(Session {
            client,
            timers: Rc::new(Timers { step, total }),
            head,
            rest,
            send,
            busy: Cell::new(false),
            in_head: Cell::new(false),
            has_whole: Cell::new(false),
            heard_all: Cell::new(false),
            speaking: Cell::new(false),
            flushed: Cell::new(true),
            upload: RefCell::new(Upload::over()),
            refused: Cell::new(None),
            switched: RefCell::default(),
            ended: RefCell::default(),
            served: Cell::new(0),
        })
    }

    /// Takes a request on its way.
    pub fn exchange(
        self: Rc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Tracked>, Infallible>> {
        self.busy.set(true);
        self.client.presence.serve();
        self.speaking.set(true);
        self.served.set(self.served.get() + 1);
        self.rest.clear();
        self.head.clear();
        let upload = Upload::default();
        self.upload.replace(upload.clone());
        let request = request.map(|content| ClientContent::new(content, upload.clone()));
        let exchange = self.client.exchange(request, upload, self.timers.clone());
        Exchanging { exchange, session: self }
    }

    /// Has a response tell of its end, and of the connection's where it is the last.
    fn track(self: &Rc<Self>, mut response: Response<Outgoing>) -> Response<Tracked> {
        let is_last = self.served.get() >= self.client.arrival.listener.limits.requests;
        // Whoever sends what has two meanings may have meant the rest otherwise too.
        let is_doubtful = |kind| matches!(kind, Kind::RequestError | Kind::RequestTimeout | Kind::RequestBodySize);
        // What is still to come of its content is discarded, and so would be a request behind it.
        let is_cut_short = self.upload.borrow().is_unread() && !self.has_whole.get();
        if is_last
            || is_cut_short
            || response.body().ending.as_ref().and_then(|ending| ending.error).is_some_and(is_doubtful)
        {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|outgoing| Tracked { outgoing, cut: None, session: self.clone() })
    }

    /// A deadline that is free once HTTP is over.
    pub fn spare(&self) -> Deadline {
        self.timers.step.clone()
    }

    /// Whether a response isn't sent to its last byte, or not even begun.
    pub fn owes_response(&self) -> bool {
        self.busy.get() || !self.flushed.get() || !self.ended.borrow().is_empty()
    }

    /// All that was written has been sent: exchanges whose body is over have ended, and the next request is waited for.
    pub fn settle(&self) {
        if !self.busy.get() {
            self.speaking.set(false);
        }
        // Not before: while the client takes its time for a response, no other request can be expected of it.
        if !self.ended.take().is_empty() && !self.busy.get() {
            let limits = &self.client.arrival.listener.limits;
            self.head.set(if self.in_head.get() { limits.head_timeout } else { limits.keep_alive });
            self.client.presence.wait(self.client.clock.now());
        }
    }

    /// The next request may come.
    pub fn end(&self) {
        self.busy.set(false);
        self.timers.step.clear();
        self.timers.total.clear();
        self.rest.set(REST);
    }

    /// HTTP is over: its deadlines would wake whatever comes after it.
    pub fn leave(&self) {
        for deadline in [&self.head, &self.rest, &self.send, &self.timers.step, &self.timers.total] {
            deadline.clear();
        }
    }
}

impl<F: Future<Output = Response<Outgoing>>> Future for Exchanging<F> {
    type Output = Result<Response<Tracked>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.exchange.poll(cx).map(|response| Ok(this.session.track(response)))
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.session.end();
        let ending = self.outgoing.ending.take();
        match std::mem::replace(&mut self.outgoing.body, ResponseBody::Full(Bytes::new())) {
            ResponseBody::Switched(switched) => drop(self.session.switched.replace(Some((*switched, ending)))),
            _ => self.session.ended.borrow_mut().extend(ending),
        }
    }
}

impl Body for Tracked {
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
