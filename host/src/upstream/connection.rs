//! A connection to an endpoint. One of HTTP/1 is polled by the exchange that uses it: no task of its own to wake and
//! switch to. One of HTTP/2 serves many exchanges, and has a task.

use std::cell::{Cell, OnceCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::TokioTimer;
use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::connection_limit::{ConnectionPermit, LimitHandle};
use super::deferred_end::DeferredEnd;
use super::endpoint_frames::{EndpointFrames, FrameReports};
use super::http1::response_body::ResponseBodyDecoder;
use super::http1::{Http1, Http1BodyError, Http1Error, Http1Failure, Stream};
use super::http2_response_body::{Http2ResponseBody, JoiningExecutor};
use super::request_head::RequestHead;
use super::response_head_limits::ResponseHeadLimits;
use super::socket::{EndpointTransport, ReadNow};
use crate::body::BodyError;
use crate::body::backlog::Piece;
use crate::body::upload::RequestBody;
use crate::context::informational::InformationalQueue;
use crate::error::{Error, FailureKind};
use crate::net::counted_transport::CountedTransport;
use crate::net::hyper_io::HyperIo;
use crate::system::supervise::{Panicked, Task, spawn};
use crate::tls::handshake_error::{self, TlsErrorClass, TlsPeer};

/// A connection to an endpoint, with HTTP/1 or HTTP/2.
pub struct Connection {
    sender: Sender,
    head: ResponseHeadLimits,
    limit_handle: LimitHandle,
    /// Whether the connection has HTTP/2, and serves one exchange at a time.
    is_unshared: bool,
    /// The last stream that was sent over HTTP/2 before the last request of this handle began.
    sent_before: u32,
    /// The number of frames that had arrived over HTTP/2 when the last request of this handle began.
    received_before: usize,
    /// The place of the exchange on a connection with HTTP/2; `None` with HTTP/1.
    _place: Option<StreamPlace>,
}

/// A place on a connection with HTTP/2. When it is dropped, a request that waits for one is woken.
struct StreamPlace(Rc<FrameReports>);

#[expect(clippy::large_enum_variant, reason = "connections are boxed")]
enum Sender {
    Http1 {
        http1: Http1,
        /// Makes the socket read at once.
        now: ReadNow,
    },
    Http2(SharedSender),
}

/// An end of a connection that serves many exchanges.
#[derive(Clone)]
pub struct SharedSender {
    sender: http2::SendRequest<Http2Content>,
    limit_handle: LimitHandle,
    head: ResponseHeadLimits,
    /// The task of the connection, held by all its senders.
    task: Rc<JoinHandle<Result<(), Panicked>>>,
    /// The alert of TLS that has ended the connection, in words; unset while there is none. Streams don't report it.
    alert: Rc<OnceCell<String>>,
    reports: Rc<FrameReports>,
    transport: TransportState,
}

/// The state of the transport of a connection with HTTP/2, which h2 doesn't report.
#[derive(Clone, Default)]
struct TransportState {
    /// Whether the endpoint has closed its side, or accepts no more bytes. h2 doesn't know at once.
    is_over: Rc<Cell<bool>>,
    /// Makes the socket read at once.
    now: ReadNow,
}

/// The content of a request over HTTP/2. Over a shared connection, trailers are dropped (RFC 9110 §6.5.1 allows it): there
/// are endpoints that end the connection for them, and with it the exchanges of others.
pub struct Http2Content {
    content: RequestBody,
    is_shared: bool,
}

/// A request that got no response, with its content if the endpoint can't have read any of it. Results have it boxed,
/// because they are passed through many functions, and a request is twice as large as a response.
pub struct Unsent {
    pub error: SendError,
    pub content: Option<RequestBody>,
}

/// The reason for which a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Http1(#[from] Http1Error),
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

/// The body of an endpoint's response, read by [`Connection::poll_frame`].
pub enum EndpointBody {
    Http1(ResponseBodyDecoder),
    Http2(Http2ResponseBody),
}

pin_project! {
    /// A request that is sent; [`Connection::poll_response`] waits for its response.
    pub struct PendingResponse<F> {
        // `None` over HTTP/1, where the connection has all of it.
        #[pin] http2: Option<F>,
    }
}

/// The window of a stream, in bytes: what waits here for a client that reads slowly.
const STREAM_WINDOW: u32 = 64 << 10;
/// The window of a connection, in bytes: the windows of streams bound what waits here, and those whose clients take nothing
/// must hold up no other. h2 ends a connection on which short pieces of content wait that take half as much beside their
/// content.
const CONNECTION_WINDOW: u32 = 256 << 20;
/// The maximum number of streams whose clients have vanished that are remembered, and the time for that: frames of the
/// endpoint on these streams are ignored.
const RESET_STREAMS: usize = 4_096;
const RESET_TIME: Duration = Duration::from_secs(5);
/// The maximum number of frames on forgotten streams over the life of a connection, which is closed beyond it.
const LATE_FRAMES: usize = 16_384;
/// The number of streams that are reset on a connection before new requests get another one: Envoy ends a connection that
/// has reset 500, nghttp2 one that has reset 1,000 (CVE-2023-44487). Clients that leave and plugins cause resets.
const MAX_RESETS: usize = 250;
/// The bytes of a request's content that wait here, per stream, for an endpoint that reads slowly.
const SEND_BUFFER: usize = 64 << 10;
/// The time of silence after which an endpoint with open streams gets a PING.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);
/// The multiple of the longest head up to which a list of fields over HTTP/2 is read, to name the limit for which it is
/// rejected. A longer list ends its stream in h2, as a malformed list does.
const HEADER_LIST: usize = 4;

impl Connection {
    fn new(sender: Sender, head: ResponseHeadLimits, limit_handle: LimitHandle, place: Option<StreamPlace>) -> Self {
        let (is_unshared, sent_before, received_before) = (false, 0, 0);
        Connection { sender, head, limit_handle, is_unshared, sent_before, received_before, _place: place }
    }

    /// Speaks HTTP/1.1 over a transport, whose socket obeys `now`.
    pub fn http1(
        transport: impl EndpointTransport,
        now: ReadNow,
        head: ResponseHeadLimits,
        permit: ConnectionPermit,
    ) -> Self {
        let limit_handle = permit.limit_handle();
        let sender = Sender::Http1 { http1: Http1::new(transport, head, permit), now };
        Connection::new(sender, head, limit_handle, None)
    }

    /// Speaks HTTP/2 over a transport, whose socket obeys `now`. Its task ends when the last sender is dropped, or the endpoint closes.
    pub async fn http2(
        transport: impl EndpointTransport,
        now: ReadNow,
        head: ResponseHeadLimits,
        permit: ConnectionPermit,
    ) -> Result<Self, Error> {
        let failed = |error| Error::new(FailureKind::ConnectionTerminated, error);
        let reports = Rc::<FrameReports>::default();
        let mut builder = http2::Builder::new(JoiningExecutor::new(reports.short_pieces.clone()));
        builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        let list = u32::try_from(head.bytes.saturating_mul(HEADER_LIST)).unwrap_or(u32::MAX);
        builder.max_header_list_size(list).max_send_buf_size(SEND_BUFFER);
        // Until the settings of the endpoint are read.
        builder.initial_max_send_streams(1);
        builder.max_concurrent_reset_streams(RESET_STREAMS).reset_stream_duration(RESET_TIME);
        builder.max_local_error_reset_streams(LATE_FRAMES);
        builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PONG);
        let state = TransportState { now, ..TransportState::default() };
        let counter = EndpointFrames::new(head.bytes, reports.clone());
        let transport = DeferredEnd::new(CountedTransport::new(transport, counter), state.is_over.clone());
        let (sender, connection) = builder.handshake(HyperIo::new(transport)).await.map_err(failed)?;
        let limit_handle = permit.limit_handle();
        let alert = Rc::<OnceCell<String>>::default();
        let (ended_by, ended) = (alert.clone(), reports.clone());
        let task = spawn(Task::UpstreamConnection, async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream connection");
                let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
                let is_alert = |error: &&io::Error| handshake_error::class(error) == Some(TlsErrorClass::Alert);
                let alert = cause.filter(is_alert);
                let words = alert.and_then(|error| handshake_error::in_words(error, TlsPeer::Endpoint));
                words.into_iter().for_each(|words| drop(ended_by.set(words)));
            }
            drop(permit);
            ended.settled.notify_one();
        });
        Ok(Connection::of_shared(SharedSender {
            sender,
            limit_handle,
            head,
            task: Rc::new(task),
            alert,
            reports,
            transport: state,
        }))
    }

    /// Returns another handle of a shared connection.
    pub fn of_shared(sender: SharedSender) -> Self {
        let (limit_handle, head) = (sender.limit_handle.clone(), sender.head);
        let place = Some(StreamPlace(sender.reports.clone()));
        let sender = Sender::Http2(sender);
        Connection::new(sender, head, limit_handle, place)
    }

    /// Makes a connection with HTTP/2 serve one exchange at a time.
    pub fn unshared(mut self) -> Self {
        self.is_unshared = matches!(self.sender, Sender::Http2(_));
        self
    }

    /// Returns the sender that other requests can use too, if the version of HTTP allows that.
    pub fn shared_sender(&self) -> Option<SharedSender> {
        match &self.sender {
            Sender::Http1 { .. } => None,
            Sender::Http2(sender) => Some(sender.clone()),
        }
    }

    /// Returns the sender of a connection with HTTP/2 that serves one exchange at a time.
    pub fn unshared_sender(&self) -> Option<SharedSender> {
        self.is_unshared.then(|| self.shared_sender()).flatten()
    }

    /// Returns the version of HTTP that the connection speaks.
    pub fn version(&self) -> http::Version {
        match &self.sender {
            Sender::Http1 { .. } => http::Version::HTTP_11,
            Sender::Http2(_) => http::Version::HTTP_2,
        }
    }

    /// Returns the text of the TLS alert with which the endpoint has ended the connection. `None` if there is none, or
    /// if the error of a request has it already.
    pub fn alert(&self) -> Option<&str> {
        match &self.sender {
            Sender::Http1 { .. } => None,
            Sender::Http2(sender) => sender.alert.get().map(String::as_str),
        }
    }

    /// Whether the connection can serve no request any more.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1 { http1, .. } => http1.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// Begins a request, whose response is polled for by [`Connection::poll_response`]. The informational responses before
    /// it go into `informational`; over HTTP/2 they are dropped.
    pub fn send(
        &mut self,
        head: RequestHead<'_>,
        content: RequestBody,
        informational: Option<Arc<InformationalQueue>>,
    ) -> PendingResponse<impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Http2Content>>>> + use<>>
    {
        let http2 = match &mut self.sender {
            Sender::Http1 { http1, .. } => {
                http1.begin(&head, content, informational);
                None
            }
            Sender::Http2(sender) => {
                self.sent_before = sender.reports.last_sent.get();
                self.received_before = sender.received();
                if !head.method.is_idempotent() {
                    // The task reads before it writes: the end of the connection may have arrived unnoticed.
                    sender.transport.now.once();
                }
                let is_shared = !self.is_unshared;
                Some(sender.sender.try_send_request(head.into_http2(Http2Content { content, is_shared })))
            }
        };
        PendingResponse { http2 }
    }

    /// Whether the endpoint can't know of the last request over HTTP/2: no request was sent since it began.
    pub fn has_sent_nothing(&self) -> bool {
        match &self.sender {
            Sender::Http1 { .. } => false,
            Sender::Http2(sender) => sender.reports.last_sent.get() == self.sent_before,
        }
    }

    /// Returns the sender of a connection with HTTP/2 whose endpoint has sent no frame since the last request began.
    pub fn silent_sender(&self) -> Option<&SharedSender> {
        match &self.sender {
            Sender::Http2(sender) if sender.received() == self.received_before => Some(sender),
            Sender::Http1 { .. } | Sender::Http2(_) => None,
        }
    }

    /// Waits for the head of the response to a request that was begun.
    pub fn poll_response<F>(
        &mut self,
        cx: &mut Context<'_>,
        pending: Pin<&mut PendingResponse<F>>,
    ) -> Poll<Result<Response<EndpointBody>, Box<Unsent>>>
    where
        F: Future<Output = Result<Response<Incoming>, TrySendError<Request<Http2Content>>>>,
    {
        match (&mut self.sender, pending.project().http2.as_pin_mut()) {
            (Sender::Http1 { http1, .. }, _) => {
                let polled = http1.poll_response(cx);
                polled.map_ok(|response| response.map(EndpointBody::Http1)).map_err(|failure| Box::new(failure.into()))
            }
            (Sender::Http2(sender), Some(response)) => {
                let polled = response.poll(cx);
                let pieces = &sender.reports.short_pieces;
                let body = |incoming| EndpointBody::Http2(Http2ResponseBody::new(incoming, pieces.clone()));
                polled.map_ok(|response| response.map(body)).map_err(|unsent| Box::new(unsent.into()))
            }
            (Sender::Http2(_), None) => Poll::Pending,
        }
    }

    /// Returns the next frame of the body of a response; `None` at its end.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut EndpointBody,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match (&mut self.sender, body) {
            (Sender::Http1 { http1, .. }, EndpointBody::Http1(body)) => {
                http1.poll_frame(cx, body).map_err(<Http1BodyError as Into<BodyError>>::into)
            }
            (_, EndpointBody::Http2(body)) => body.poll_frame(cx),
            (Sender::Http2(_), EndpointBody::Http1(_)) => Poll::Ready(None),
        }
    }

    /// Whether the connection can be kept for another exchange, after one that it has served. Shared connections are
    /// kept elsewhere.
    pub fn is_idle(&self) -> bool {
        match &self.sender {
            Sender::Http1 { http1, .. } => http1.is_idle(),
            Sender::Http2(sender) => self.is_unshared && !sender.is_closed() && !sender.has_many_resets(),
        }
    }

    /// Checks whether an idle connection has ended, as far as the reactor knows. Returns whether the connection may
    /// serve an exchange.
    pub fn is_reusable(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1 { http1, .. } => http1.is_reusable(),
            Sender::Http2(sender) => !sender.is_closed(),
        }
    }

    /// Whether an idle connection is still open, after a check of its socket. The task of an HTTP/2 connection reads
    /// its socket itself.
    pub fn is_open_now(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1 { http1, now } => now.during(|| http1.is_reusable()),
            Sender::Http2(_) => true,
        }
    }

    /// The limits of the heads of responses.
    pub fn head_limits(&self) -> ResponseHeadLimits {
        self.head
    }

    /// Limits the number of bytes that are read at once from now on; `None` for the limit with which new exchanges
    /// begin. HTTP/2 has windows instead.
    pub fn limit_reads(&self, bytes: Option<usize>) {
        if let Sender::Http1 { http1, .. } = &self.sender {
            http1.limit_reads(bytes);
        }
    }

    /// Releases the memory for reading, if no bytes are in it. The next read takes new memory.
    pub fn release_read_buffer(&self) {
        if let Sender::Http1 { http1, .. } = &self.sender {
            http1.release_read_buffer();
        }
    }

    /// Returns the limit that the connection is counted against.
    pub fn limit_handle(&self) -> &LimitHandle {
        &self.limit_handle
    }

    /// Makes a task send the rest of a request, if it isn't all sent. Once the response is over, the task ends when
    /// nothing was sent for `pause`. A connection with HTTP/2 has a task already.
    pub fn detach_upload(&mut self, pause: Duration) {
        if let Sender::Http1 { http1, .. } = &mut self.sender
            && http1.is_uploading()
        {
            http1.detach_upload(pause);
        }
    }

    /// The bytes of a connection whose endpoint has switched protocols.
    pub fn into_stream(self) -> Option<Stream> {
        let Sender::Http1 { http1, .. } = self.sender else { return None };
        http1.into_stream()
    }
}

impl EndpointBody {
    /// Whether all of the body has been returned.
    pub fn is_end_stream(&self) -> bool {
        match self {
            EndpointBody::Http1(body) => body.is_over(),
            EndpointBody::Http2(body) => body.is_end_stream(),
        }
    }

    /// Returns the length of the rest of the body, as far as it is known.
    pub fn size_hint(&self) -> SizeHint {
        match self {
            EndpointBody::Http1(body) => body.size_hint(),
            EndpointBody::Http2(body) => body.size_hint(),
        }
    }
}

impl Body for Http2Content {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.content).poll_frame(cx));
        let is_dropped = |frame: &Frame<Piece>| self.is_shared && frame.is_trailers();
        Poll::Ready(frame.filter(|frame| !frame.as_ref().is_ok_and(is_dropped)))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

impl From<Http1Failure> for Unsent {
    fn from(Http1Failure { error, content }: Http1Failure) -> Self {
        Unsent { error: error.into(), content }
    }
}

impl From<TrySendError<Request<Http2Content>>> for Unsent {
    fn from(mut unsent: TrySendError<Request<Http2Content>>) -> Self {
        let content = unsent.take_message().map(|request| request.into_body().content);
        Unsent { error: unsent.into_error().into(), content }
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        // The exchange leaves the connection before the request that is woken runs.
        self.0.freed.get().into_iter().for_each(|freed| freed.notify_one());
    }
}

impl SharedSender {
    /// Notifies requests that wait for a stream when an exchange leaves the connection.
    pub fn tell_when_freed(&self, freed: &Rc<Notify>) {
        let _ = self.reports.freed.set(freed.clone());
    }

    /// Returns the limit that the body's connection is counted against.
    pub fn limit_handle(&self) -> &LimitHandle {
        &self.limit_handle
    }

    /// The limits of the heads of responses.
    pub fn head_limits(&self) -> ResponseHeadLimits {
        self.head
    }

    /// Whether the connection can serve no request any more.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.transport.is_over.get()
    }

    /// Returns the number of exchanges that have a sender of the connection, besides the pool.
    pub fn exchanges(&self) -> usize {
        Rc::strong_count(&self.task) - 1
    }

    /// Returns a future that ends once the endpoint's settings are read, or the connection has ended. It returns whether
    /// they are read. One task may wait.
    pub fn settled(&self) -> impl Future<Output = bool> + use<> {
        let reports = self.reports.clone();
        async move {
            reports.settled.notified().await;
            reports.is_settled()
        }
    }

    /// Whether both are ends of the same connection.
    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.task, &other.task)
    }

    /// Returns the number of frames that the endpoint has sent.
    pub fn received(&self) -> usize {
        self.reports.received.get()
    }

    /// Whether another request may begin at once: the endpoint accepts another stream, and doesn't soon end the connection.
    pub fn accepts_more(&self) -> bool {
        self.exchanges() < self.reports.max_streams() && !self.is_worn()
    }

    /// Whether no more requests should begin: the endpoint may soon end the connection, or has asked for calm.
    pub fn is_worn(&self) -> bool {
        self.has_many_resets() || self.reports.is_overloaded.get()
    }

    /// Whether so many streams were reset that the endpoint may soon end the connection for it.
    fn has_many_resets(&self) -> bool {
        self.reports.resets.get() >= MAX_RESETS
    }

    /// Returns the longest list of fields that the endpoint says it accepts, in bytes.
    pub fn max_request_head(&self) -> u32 {
        self.reports.max_request_head.get()
    }

    /// Whether no exchange has a sender of the connection.
    pub fn is_unused(&self) -> bool {
        self.exchanges() == 0
    }

    /// Closes the connection, and waits until its socket is closed. Exchanges that have a sender of it fail.
    pub async fn close(self) {
        self.task.abort();
        if let Ok(task) = Rc::try_unwrap(self.task) {
            let _ = task.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::pin::pin;

    use http::{HeaderMap, Method, Uri};
    use tokio::net::TcpStream;
    use tokio::task::{LocalSet, yield_now};

    use super::super::connection_limit::ConnectionLimit;
    use super::super::request_head::FurtherFields;
    use super::super::socket::EndpointSocket;
    use super::*;

    /// Sends a request on a connection whose endpoint has closed it, before the reactor has reported that. Returns whether
    /// the endpoint can't know of the request.
    async fn sent_after_the_end(method: Method) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut endpoint, _) = listener.accept().unwrap();
        let (now, head) = (ReadNow::default(), ResponseHeadLimits::default());
        let permit = ConnectionLimit::limited(1, 1).try_take().unwrap();
        let socket = EndpointSocket::new(stream, now.clone());
        let mut connection = Connection::http2(socket, now, head, permit).await.unwrap();
        // SETTINGS, and the reply to those of the client.
        endpoint.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0]).unwrap();
        let mut received = Vec::new();
        while !received.ends_with(&[0, 0, 0, 4, 1, 0, 0, 0, 0]) {
            yield_now().await;
            endpoint.set_nonblocking(true).unwrap();
            let mut piece = [0; 1024];
            if let Ok(length) = endpoint.read(&mut piece) {
                received.extend_from_slice(&piece[..length]);
            }
        }
        drop(endpoint);
        let (uri, fields, further) = (Uri::from_static("http://a/"), HeaderMap::new(), FurtherFields::new());
        let head = RequestHead { method: &method, uri, fields: &fields, further };
        let mut pending = pin!(connection.send(head, RequestBody::Empty, None));
        let sent = poll_fn(|cx| connection.poll_response(cx, pending.as_mut())).await;
        assert!(sent.is_err() && connection.is_closed());
        connection.has_sent_nothing()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_request_that_can_not_be_repeated_is_not_sent_behind_the_end_of_its_connection() {
        assert!(LocalSet::new().run_until(sent_after_the_end(Method::POST)).await);
    }
}
