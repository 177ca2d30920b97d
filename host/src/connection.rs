//! A client's connection: serves its exchanges, and costs little between them.
//!
//! A connection that rests a while gives its HTTP state and buffers back and keeps only its socket; the next byte
//! makes them anew.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::body::ResponseBody;
use crate::clock::{Clock, Deadline};
use crate::ending::Ending;
use crate::exchange::{self, Begun};
use crate::generation::Running;
use crate::head::Peer;
use crate::passage::BodyError;
use crate::upload::Upload;
use crate::wire::Wire;

/// A client that sends no whole head in this time is let go; as long as nginx keeps idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// A connection that rests this long gives its buffers back. Making them anew costs about as much as a request's
/// parsing, so clients that go on at once should keep them.
const REST: Duration = Duration::from_millis(100);

/// What carries a client's connection.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Transport for TcpStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        TcpStream::poll_read_ready(self, cx)
    }
}

impl Transport for UnixStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        UnixStream::poll_read_ready(self, cx)
    }
}

/// Serves a client's connection until either side ends it.
pub fn serve(
    stream: impl Transport,
    peer: Arc<Peer>,
    current: Rc<RefCell<Rc<Running>>>,
    clock: Rc<Clock>,
) -> impl Future<Output = ()> {
    let (exchange, head, rest) = (clock.deadline(), clock.deadline(), clock.deadline());
    let (busy, flushed) = (Cell::new(false), Cell::new(true));
    let upload = RefCell::new(Upload::over());
    let ended = RefCell::default();
    let session = Rc::new(Session { current, peer, exchange, head, rest, busy, upload, flushed, ended });
    session.head.set(HEAD_TIMEOUT);
    let io = ClientIo { wire: Wire::new(stream), ahead: Bytes::new(), session: session.clone() };
    // A closure, whose future hyper keeps in place: a boxed one would be an allocation for each request.
    let exchanges = |session: Rc<Session>| service_fn(move |request| session.clone().exchange(request));
    Connection { state: State::Resting(io), session, exchanges, graceful: false }
}

struct Connection<T: Transport, E, S: HttpService<Incoming>> {
    state: State<T, S>,
    session: Rc<Session>,
    /// Makes hyper's view of the session.
    exchanges: E,
    graceful: bool,
}

enum State<T: Transport, S: HttpService<Incoming>> {
    /// With hyper's state and buffers.
    Serving(Box<http1::Connection<ClientIo<T>, S>>),
    /// A socket and nothing else.
    Resting(ClientIo<T>),
    Ended,
}

/// What the exchanges of a connection share.
struct Session {
    current: Rc<RefCell<Rc<Running>>>,
    peer: Arc<Peer>,
    /// For what happens within an exchange.
    exchange: Rc<Deadline>,
    /// For the next head to be whole.
    head: Rc<Deadline>,
    /// For the buffers to be given back.
    rest: Rc<Deadline>,
    /// Whether an exchange is under way.
    busy: Cell<bool>,
    /// The content of the last request. It may take longer than its response, and until it is over what the client
    /// sends is no new request.
    upload: RefCell<Upload>,
    /// Whether all that was written has left hyper's buffers.
    flushed: Cell<bool>,
    /// Exchanges whose last bytes may still be in hyper's buffers: what is due at their end waits until the client has
    /// its response.
    ended: RefCell<SmallVec<[Ending; 1]>>,
}

/// The content of a response, and with its end that of the exchange.
struct Tracked {
    body: ResponseBody,
    /// What cut the body off, until the client has all that came before: hyper drops what it still holds when a body
    /// fails, be it the head.
    cut: Option<BodyError>,
    session: Rc<Session>,
    /// There until the body is dropped.
    ending: Option<Ending>,
}

/// The socket, and what was read ahead of it.
struct ClientIo<T> {
    wire: Wire<T>,
    ahead: Bytes,
    session: Rc<Session>,
}

// === Connection ===

impl<T, E, S> Connection<T, E, S>
where
    T: Transport,
    S: HttpService<Incoming, ResBody = Tracked, Error = Infallible>,
{
    fn poll_serving(
        &mut self,
        mut connection: Box<http1::Connection<ClientIo<T>, S>>,
        cx: &mut Context<'_>,
    ) -> State<T, S> {
        let session = &self.session;
        if session.head.clock().is_stopping() && !self.graceful {
            self.graceful = true;
            Pin::new(&mut *connection).graceful_shutdown();
        }
        let polled = Pin::new(&mut *connection).poll(cx);
        if session.flushed.get() || polled.is_ready() {
            session.ended.take();
        }
        if let Poll::Ready(served) = polled {
            if let Err(error) = served {
                tracing::debug!(%error, "client connection");
            }
            return State::Ended;
        }
        if session.busy.get() || self.graceful {
            return State::Serving(connection);
        }
        if !session.upload.borrow().is_over() {
            session.end();
            return State::Serving(connection);
        }
        if session.head.is_met() {
            return State::Ended;
        }
        if session.rest.is_met() && session.flushed.get() {
            session.rest.clear();
            let parts = connection.into_parts();
            return State::Resting(ClientIo { ahead: parts.read_buf, ..parts.io });
        }
        State::Serving(connection)
    }
}

impl<T, E, S> Future for Connection<T, E, S>
where
    T: Transport,
    E: Fn(Rc<Session>) -> S + Unpin,
    S: HttpService<Incoming, ResBody = Tracked, Error = Infallible>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.session.head.watch(cx);
        this.session.rest.watch(cx);
        loop {
            match std::mem::replace(&mut this.state, State::Ended) {
                State::Ended => return Poll::Ready(()),
                State::Resting(io) => {
                    if this.session.head.clock().is_stopping() || this.session.head.is_met() {
                        return Poll::Ready(());
                    }
                    if io.ahead.is_empty() && io.wire.socket().poll_read_ready(cx).is_pending() {
                        this.state = State::Resting(io);
                        return Poll::Pending;
                    }
                    let exchanges = (this.exchanges)(this.session.clone());
                    this.state = State::Serving(Box::new(http1::Builder::new().serve_connection(io, exchanges)));
                }
                State::Serving(connection) => {
                    this.state = this.poll_serving(connection, cx);
                    if matches!(this.state, State::Serving(_)) {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

// === Session ===

impl Session {
    fn begin(&self) {
        self.busy.set(true);
        self.rest.clear();
        self.head.clear();
    }

    fn exchange(
        self: Rc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Tracked>, Infallible>> {
        self.begin();
        let running = self.current.borrow().clone();
        let mut ending = Ending::new(running.clone());
        self.upload.replace(ending.upload.clone());
        let begun = exchange::begin(&running, request, self.peer.clone(), &mut ending);
        async move {
            let response = match begun {
                Begun::Onward(onward) => onward.run(&running, &self.exchange, &mut ending).await,
                Begun::Answered(response) => response,
            };
            Ok(response.map(|body| Tracked { body, cut: None, session: self, ending: Some(ending) }))
        }
    }

    fn end(&self) {
        self.busy.set(false);
        self.rest.set(REST);
        self.head.set(HEAD_TIMEOUT);
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.session.end();
        self.session.ended.borrow_mut().extend(self.ending.take());
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
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(ending) = &mut this.ending {
                    ending.response_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.cut = Some(error);
                this.session.flushed.set(false);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            over => over,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === ClientIo ===

impl<T: Transport> Read for ClientIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.wire).poll_read(cx, buffer);
        }
        let length = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> Write for ClientIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.session.flushed.set(false);
        Pin::new(&mut self.wire).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.session.flushed.set(false);
        Pin::new(&mut self.wire).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    /// hyper flushes the socket once all that it had is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.flushed.set(true);
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
