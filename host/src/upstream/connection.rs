//! A connection to an endpoint. One of HTTP/1 is driven by the exchange that uses it: no task of its own to wake and
//! switch to. One of HTTP/2 serves many exchanges, and has a task.
//!
//! hyper's connection is a future that has to be polled for anything to happen. While an exchange uses it, the
//! exchange polls it; while it is idle, no task does. Only where the response has begun before the request is all
//! sent does it get a task, since the client may read nothing before it has sent everything.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioTimer;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use super::ResponseHeadLimits;
use super::connection_limit::{ConnectionPermit, LimitHandle};
use super::endpoint_frames::EndpointFrames;
use super::read_limit::{BoundedReads, ReadLimit};
use super::socket::ReadNow;
use crate::body::upload::RequestBody;
use crate::error::{Error, FailureKind};
use crate::net::frame_counter::CountedFrames;
use crate::net::hyper_io::{HyperIo, LocalExecutor};
use crate::system::supervise::{Panicked, Task, spawn};

/// The transport of a connection.
pub trait EndpointTransport: AsyncRead + AsyncWrite + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> EndpointTransport for T {}

/// A connection to an endpoint, with HTTP/1 or HTTP/2.
pub struct Connection {
    sender: Sender,
    /// The driver; `None` if the connection has a task.
    pub driver: Option<ConnectionDriver>,
    /// The bound of each read; `None` over HTTP/2, which has windows.
    reads: Option<ReadLimit>,
    /// Has the socket read at once; `None` over HTTP/2, which is read by a task.
    now: Option<ReadNow>,
    head: ResponseHeadLimits,
    /// The permit of the connection; with its task, if it has one.
    slot: ConnectionPermit,
    counted: LimitHandle,
}

enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(SharedSender),
}

/// An end of a connection that serves many exchanges.
#[derive(Clone)]
pub struct SharedSender {
    sender: http2::SendRequest<RequestBody>,
    counted: LimitHandle,
    head: ResponseHeadLimits,
    /// The task of the connection, held by all its senders.
    task: Rc<JoinHandle<Result<(), Panicked>>>,
}

/// A connection whose endpoint has switched protocols: a stream of bytes.
pub struct Stream {
    /// The permit of the connection.
    pub slot: ConnectionPermit,
    pub transport: Box<dyn EndpointTransport>,
    /// The bytes behind the head of the response.
    pub ahead: Bytes,
}

/// The driver of a connection, which must be polled for progress.
pub struct ConnectionDriver {
    /// The connection; `None` once it is over, or has a task.
    connection: Option<Box<dyn PollConnection>>,
    /// The connection that ended with the very response: it may have become something else than HTTP.
    ended: Option<Box<dyn PollConnection>>,
    relay: Arc<WakeRelay>,
    /// The relay as a waker, made once.
    waker: Waker,
    /// The waker that the relay has, compared without its lock.
    task: Waker,
}

/// hyper's connection over whatever transport.
trait PollConnection {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>>;
    fn into_stream(self: Box<Self>, slot: ConnectionPermit) -> Stream;
}

/// Stands between the connection and the task of the exchange: what the two ends of the connection's channels wake
/// while they are being polled together is polled again at once, in place of a turn of the scheduler.
struct WakeRelay {
    polling: AtomicBool,
    again: AtomicBool,
    // Locked by this worker only, so never contended; a lock because wakers may be sent anywhere.
    task: Mutex<Waker>,
}

/// The result of a request. It is passed through many functions, and a request is twice as large as a response.
pub type SendResult = Result<Response<Incoming>, Box<Unsent>>;

/// A request that got no response, if it came back.
pub type Unsent = TrySendError<Request<RequestBody>>;

pin_project! {
    /// The response of either version.
    #[project = AnswerProjection]
    enum ResponseFuture<A, B> {
        Http1 { #[pin] answer: A, reads: Option<ReadLimit> },
        Http2 { #[pin] answer: B },
    }
}

/// The least bound of hyper's buffers over HTTP/1, in bytes: of what is read at once.
const BUFFER: usize = 128 << 10;
/// The bytes by which hyper's buffer is longer than the longest head, so that one read fits in behind it.
const BEHIND_HEAD: usize = 4 << 10;
/// The window of a stream, in bytes: what waits here for a client that reads slowly.
const STREAM_WINDOW: u32 = 64 << 10;
/// The window of a connection, in bytes: 256 streams whose clients take nothing hold up no other.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The bytes of a request's content that wait here, per stream, for an endpoint that reads slowly.
const SEND_BUFFER: usize = 64 << 10;
/// An endpoint that is silent while something is asked of it is asked whether it is there.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);
/// The multiple of the longest head up to which a list of fields over HTTP/2 is read, to say by which limit it is refused.
/// A longer list ends its stream in h2, as one that is malformed does.
const HEADER_LIST: usize = 4;

impl Connection {
    /// Speaks HTTP/1.1 over a transport, whose socket obeys `now`.
    pub async fn http1(
        transport: impl EndpointTransport,
        now: ReadNow,
        head: ResponseHeadLimits,
        slot: ConnectionPermit,
    ) -> Result<Self, Error> {
        let failed = |error| Error::new(FailureKind::ConnectionTerminated, error);
        let mut builder = http1::Builder::new();
        builder.max_buf_size(head.bytes.saturating_add(BEHIND_HEAD).max(BUFFER));
        builder.max_header_size(head.bytes).max_headers(head.fields);
        let reads = ReadLimit::default();
        let transport = BoundedReads::new(transport, reads.clone());
        let (sender, connection) = builder.handshake(HyperIo::new(transport)).await.map_err(failed)?;
        let task = Mutex::new(Waker::noop().clone());
        let relay = Arc::new(WakeRelay { polling: AtomicBool::new(false), again: AtomicBool::new(false), task });
        let (connection, waker) = (Some(Box::new(connection) as Box<dyn PollConnection>), relay.clone().into());
        let driver = ConnectionDriver { connection, ended: None, waker, relay, task: Waker::noop().clone() };
        let counted = slot.counted();
        let (sender, driver, reads) = (Sender::Http1(sender), Some(driver), Some(reads));
        Ok(Connection { sender, driver, reads, now: Some(now), head, slot, counted })
    }

    /// Speaks HTTP/2 over a transport. Its task ends when the last sender is dropped, or the endpoint closes.
    pub async fn http2(
        transport: impl EndpointTransport,
        head: ResponseHeadLimits,
        slot: ConnectionPermit,
    ) -> Result<Self, Error> {
        let failed = |error| Error::new(FailureKind::ConnectionTerminated, error);
        let mut builder = http2::Builder::new(LocalExecutor);
        builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        let list = u32::try_from(head.bytes.saturating_mul(HEADER_LIST)).unwrap_or(u32::MAX);
        builder.max_header_list_size(list).max_send_buf_size(SEND_BUFFER);
        builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PONG);
        let transport = CountedFrames { io: transport, counter: EndpointFrames::new(head.bytes) };
        let (sender, connection) = builder.handshake(HyperIo::new(transport)).await.map_err(failed)?;
        let counted = slot.counted();
        let task = spawn(Task::UpstreamConnection, async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream connection");
            }
            drop(slot);
        });
        Ok(Connection::of_shared(SharedSender { sender, counted, head, task: Rc::new(task) }))
    }

    /// Returns another handle of a shared connection.
    pub fn of_shared(sender: SharedSender) -> Self {
        let (counted, head) = (sender.counted.clone(), sender.head);
        let sender = Sender::Http2(sender);
        Connection { sender, driver: None, reads: None, now: None, head, slot: ConnectionPermit::default(), counted }
    }

    /// The end that others can use too, if this version has such.
    pub fn shared(&self) -> Option<SharedSender> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2(sender) => Some(sender.clone()),
        }
    }

    /// The version of HTTP that it speaks.
    pub fn version(&self) -> http::Version {
        match &self.sender {
            Sender::Http1(_) => http::Version::HTTP_11,
            Sender::Http2(_) => http::Version::HTTP_2,
        }
    }

    /// Whether the connection can serve no request any more.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// Hands a request over. What comes of it is known as the connection is driven.
    pub fn send(&mut self, request: Request<RequestBody>) -> impl Future<Output = SendResult> + use<> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                let reads = self.reads.clone();
                reads.iter().for_each(|reads| reads.before_response().begin(self.head.bytes));
                ResponseFuture::Http1 { answer: sender.try_send_request(request), reads }
            }
            Sender::Http2(sender) => ResponseFuture::Http2 { answer: sender.sender.try_send_request(request) },
        }
    }

    /// Polls a future that waits for the connection, and drives the connection if it has no task.
    pub fn drive<T>(&mut self, cx: &mut Context<'_>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        match &mut self.driver {
            Some(driver) => driver.poll(cx, poll),
            None => poll(cx),
        }
    }

    /// Polls a future that the last read may have completed already. Only if it is pending, the connection is driven, which
    /// would read in vain otherwise.
    pub fn drive_if_needed<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        match &mut self.driver {
            Some(driver) => match driver.poll_without_connection(cx, &mut poll) {
                Poll::Pending => driver.poll(cx, poll),
                ready => ready,
            },
            None => poll(cx),
        }
    }

    /// Leaves the exchange behind, which has just driven it; says whether the connection is to be kept for another. A
    /// shared one is kept elsewhere.
    pub fn rest(&mut self) -> bool {
        match (&self.sender, &self.driver) {
            // All was said and heard as it was driven last.
            (Sender::Http1(sender), Some(ConnectionDriver { connection: Some(_), .. })) if sender.is_ready() => true,
            _ => self.is_reusable(),
        }
    }

    /// Drives a connection without a task, so that it learns of its end; returns whether it may serve an exchange.
    pub fn is_reusable(&mut self) -> bool {
        let (Sender::Http1(sender), Some(driver)) = (&mut self.sender, &mut self.driver) else { return false };
        if driver.connection.is_none() {
            // Over, or with a task of its own, which couldn't be driven by another exchange.
            return false;
        }
        let mut idle = Context::from_waker(Waker::noop());
        let ready = driver.poll(&mut idle, |cx| sender.poll_ready(cx).map(|ready| ready.is_ok()));
        // The connection may have ended just now, without its sender knowing.
        ready == Poll::Ready(true) && driver.connection.is_some() && !sender.is_closed()
    }

    /// Whether an idle connection is still open, after a look at its socket. One of HTTP/2 is read by its task.
    pub fn is_open_now(&mut self) -> bool {
        self.now.clone().is_none_or(|now| now.during(|| self.is_reusable()))
    }

    /// The limits of the heads of responses.
    pub fn head_limits(&self) -> ResponseHeadLimits {
        self.head
    }

    /// Bounds what is read at once from now on, in bytes; `None` for the bound that new exchanges begin with.
    pub fn limit_reads(&self, bytes: Option<usize>) {
        if let Some(reads) = &self.reads {
            reads.set(bytes);
        }
    }

    /// Among which it was counted.
    pub fn counted(&self) -> &LimitHandle {
        &self.counted
    }

    /// Gives a connection of HTTP/1 a task of its own.
    pub fn detach(&mut self) {
        if let Some(driver) = &mut self.driver {
            driver.detach(std::mem::take(&mut self.slot));
        }
    }

    /// The bytes of a connection whose endpoint has switched protocols.
    pub fn into_stream(self) -> Option<Stream> {
        Some(self.driver?.ended?.into_stream(self.slot))
    }
}

impl SharedSender {
    /// Among which its connection was counted.
    pub fn counted(&self) -> &LimitHandle {
        &self.counted
    }

    /// The limits of the heads of responses.
    pub fn head_limits(&self) -> ResponseHeadLimits {
        self.head
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether no exchange has a sender of the connection.
    pub fn is_unused(&self) -> bool {
        Rc::strong_count(&self.task) == 1
    }

    /// Closes the connection, and waits until its socket is closed. Exchanges that have a sender of it fail.
    pub async fn close(self) {
        self.task.abort();
        if let Ok(task) = Rc::try_unwrap(self.task) {
            let _ = task.await;
        }
    }
}

impl<A, B> Future for ResponseFuture<A, B>
where
    A: Future<Output = Result<Response<Incoming>, Unsent>>,
    B: Future<Output = Result<Response<Incoming>, Unsent>>,
{
    type Output = SendResult;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SendResult> {
        let polled = match self.project() {
            AnswerProjection::Http1 { answer, reads } => {
                let polled = answer.poll(cx);
                match reads.as_ref().map(ReadLimit::before_response) {
                    Some(before) if polled.is_pending() => before.still_missing(),
                    Some(before) => before.end(),
                    None => {}
                }
                polled
            }
            AnswerProjection::Http2 { answer } => answer.poll(cx),
        };
        polled.map_err(Box::new)
    }
}

impl<T: EndpointTransport> PollConnection for http1::Connection<HyperIo<BoundedReads<T>>, RequestBody> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.poll_without_shutdown(cx)
    }

    fn into_stream(self: Box<Self>, slot: ConnectionPermit) -> Stream {
        let parts = self.into_parts();
        Stream { slot, transport: Box::new(parts.io.into_socket().into_inner()), ahead: parts.read_buf }
    }
}

impl ConnectionDriver {
    /// Polls something that waits for the connection, together with the connection, until neither moves the other.
    pub fn poll<T>(&mut self, cx: &mut Context<'_>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.begin(cx);
        let ConnectionDriver { connection, ended, relay, waker, .. } = self;
        let mut own = Context::from_waker(waker);
        let polled = loop {
            let mut over = None;
            if let Some(driven) = connection
                && let Poll::Ready(outcome) = driven.poll(&mut own)
            {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "upstream connection");
                }
                over = connection.take();
            }
            let polled = poll(&mut own);
            if polled.is_ready() {
                *ended = over;
                break polled;
            }
            // Dropping it fails the request that still waits.
            if over.is_none() && !relay.again() {
                break polled;
            }
        };
        relay.end();
        polled
    }

    /// Polls something that waits for the connection, and not the connection. That its other end is woken by this, which
    /// then has room for more, is of no use before the next turn.
    fn poll_without_connection<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.begin(cx);
        let polled = poll(&mut Context::from_waker(&self.waker));
        self.relay.end();
        polled
    }

    fn begin(&mut self, cx: &Context<'_>) {
        if !self.task.will_wake(cx.waker()) {
            self.task.clone_from(cx.waker());
            self.relay.is_for(cx.waker());
        }
        self.relay.begin();
    }

    fn detach(&mut self, slot: ConnectionPermit) {
        if let Some(mut connection) = self.connection.take() {
            spawn(Task::UpstreamConnection, async move {
                if let Err(error) = std::future::poll_fn(|cx| connection.poll(cx)).await {
                    tracing::debug!(%error, "upstream connection");
                }
                drop(slot);
            });
        }
    }
}

impl WakeRelay {
    fn is_for(&self, task: &Waker) {
        self.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(task);
    }

    fn begin(&self) {
        self.polling.store(true, Ordering::Relaxed);
        self.again.store(false, Ordering::Relaxed);
    }

    fn again(&self) -> bool {
        self.again.swap(false, Ordering::Relaxed)
    }

    fn end(&self) {
        self.polling.store(false, Ordering::Relaxed);
    }
}

impl Wake for WakeRelay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.polling.load(Ordering::Relaxed) {
            self.again.store(true, Ordering::Relaxed);
        } else {
            self.task.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
        }
    }
}
