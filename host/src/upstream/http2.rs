//! HTTP/2 to an endpoint. A connection has a task of its own, and each exchange has a handle of it.

pub mod deferred_end;
pub mod endpoint_frames;
pub mod informational;
pub mod response_body;

use std::cell::{Cell, OnceCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Buf;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::connection_limit::{ConnectionPermit, LimitHandle};
use super::request_head::RequestHead;
use super::response_head_limits::ResponseHeadLimits;
use super::socket::{EndpointTransport, ReadNow};
use crate::body::BodyError;
use crate::body::backlog::{Backlog, Piece, SHORT, StreamBacklog};
use crate::body::upload::RequestBody;
use crate::error::{Error, FailureKind};
use crate::net::counted_transport::CountedTransport;
use crate::net::hyper_io::HyperIo;
use crate::protocol::http2_frames::SHORT_DATA;
use crate::system::supervise::{Panicked, Task, spawn};
use crate::tls::handshake_error::{self, TlsErrorClass, TlsPeer};
use deferred_end::DeferredEnd;
use endpoint_frames::{Beginning, EndpointFrames, FrameReports};
use response_body::{Http2ResponseBody, JoiningExecutor};

/// The handle of an exchange.
pub struct Http2 {
    sender: SharedSender,
    /// The place among the connections that serve one exchange at a time; `None` if others share it.
    own: Option<OwnPlace>,
    /// The last stream that was sent before the last request of this handle began.
    sent_before: u32,
    /// The number of frames that had arrived when the last request of this handle began.
    received_before: usize,
    _place: StreamPlace,
}

/// Counts a connection that serves one exchange at a time, until dropped.
pub struct OwnPlace(Rc<Cell<usize>>);

/// A place on a connection. When it is dropped, a request that waits for one is woken.
struct StreamPlace(Rc<FrameReports>);

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
    /// Bounds the short pieces that wait for the endpoint, as h2 counts their content alone; `None` before the first.
    short: Option<Arc<StreamBacklog>>,
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
/// The multiple of the longest head up to which a list of fields over HTTP/2 is read, to name the limit for which it is
/// rejected. A longer list ends its stream in h2, as a malformed list does.
const HEADER_LIST: usize = 4;

impl Http2 {
    /// Returns another handle of a connection.
    pub fn new(sender: SharedSender) -> Self {
        let place = StreamPlace(sender.reports.clone());
        Http2 { sender, own: None, sent_before: 0, received_before: 0, _place: place }
    }

    /// Makes the connection serve one exchange at a time.
    pub fn make_unshared(&mut self, place: OwnPlace) {
        self.own = Some(place);
    }

    /// Whether the connection serves one exchange at a time.
    pub fn is_unshared(&self) -> bool {
        self.own.is_some()
    }

    /// The sender that other requests can use too.
    pub fn sender(&self) -> &SharedSender {
        &self.sender
    }

    /// Returns the text of the TLS alert with which the endpoint has ended the connection. `None` if there is none, or
    /// if the error of a request has it already.
    pub fn alert(&self) -> Option<&str> {
        self.sender.alert.get().map(String::as_str)
    }

    /// Returns the protocol in which the endpoint has begun.
    pub fn beginning(&self) -> Beginning {
        self.sender.reports.beginning.get()
    }

    /// Returns the cause for which the connection was ended here, because the endpoint has sent too many frames; `None` if it
    /// was not.
    pub fn flood(&self) -> Option<String> {
        self.sender.reports.flood.get().map(endpoint_frames::too_many)
    }

    /// Sends a request; the future ends with the head of its response.
    pub fn send(
        &mut self,
        head: RequestHead<'_>,
        content: RequestBody,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Http2Content>>>> + use<> {
        let is_shared = !self.is_unshared();
        let sender = &mut self.sender;
        self.sent_before = sender.reports.last_sent.get();
        self.received_before = sender.received();
        if !head.method.is_idempotent() {
            // The task reads before it writes: the end of the connection may have arrived unnoticed.
            sender.transport.now.once();
        }
        sender.sender.try_send_request(head.into_http2(Http2Content { content, is_shared, short: None }))
    }

    /// Returns the body of a response.
    pub fn response_body(&self, incoming: Incoming) -> Http2ResponseBody {
        Http2ResponseBody::new(incoming, self.sender.reports.short_pieces.clone())
    }

    /// Whether the endpoint can't know of the last request: no request was sent since it began.
    pub fn has_sent_nothing(&self) -> bool {
        self.sender.reports.last_sent.get() == self.sent_before
    }

    /// Whether the endpoint has sent no frame since the last request began.
    pub fn is_silent(&self) -> bool {
        self.sender.received() == self.received_before
    }

    /// Whether the connection can be kept for another exchange, after one that it has served. Shared connections are
    /// kept elsewhere.
    pub fn is_idle(&self) -> bool {
        self.is_unshared() && !self.sender.is_closed() && !self.sender.has_many_resets()
    }
}

impl Http2Content {
    /// Returns the content for another connection.
    pub fn into_content(self) -> RequestBody {
        self.content
    }

    /// Counts a short piece that the client's connection doesn't count.
    fn hold_short(&mut self, piece: Piece) -> Piece {
        if piece.is_counted() || piece.remaining() >= SHORT_DATA {
            return piece;
        }
        self.short.get_or_insert_with(|| StreamBacklog::new(&Backlog::new(SHORT))).hold(piece.into())
    }
}

impl Body for Http2Content {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        if let Some(short) = &self.short {
            ready!(short.poll_room(cx));
        }
        let frame = ready!(Pin::new(&mut self.content).poll_frame(cx));
        let is_dropped = |frame: &Frame<Piece>| self.is_shared && frame.is_trailers();
        let frame = frame.filter(|frame| !frame.as_ref().is_ok_and(is_dropped));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|piece| self.hold_short(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

impl OwnPlace {
    /// Counts another connection.
    pub fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        OwnPlace(count.clone())
    }
}

impl Drop for OwnPlace {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        // The exchange leaves the connection before the request that is woken runs.
        self.0.freed.get().into_iter().for_each(|freed| freed.notify_one());
    }
}

impl SharedSender {
    /// Speaks HTTP/2 over a transport, whose socket obeys `now`. The task of the connection ends when the last sender is
    /// dropped, or the endpoint closes.
    pub async fn connect(
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
        // No PINGs: endpoints of gRPC take more than two of them in five minutes without content for an attack, and end the
        // connection. The kernel looks whether the endpoint is there.
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
        Ok(SharedSender { sender, limit_handle, head, task: Rc::new(task), alert, reports, transport: state })
    }

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

    /// Whether a long response arrives on the connection.
    pub fn has_long_response(&self) -> bool {
        self.reports.short_pieces.have_long_body()
    }

    /// Whether the endpoint accepts content on the connection at this moment.
    pub fn has_window(&self) -> bool {
        self.reports.has_window()
    }

    /// Whether the endpoint accepts no more content on the connection for the time being.
    pub fn is_shut(&self, now: Instant) -> bool {
        self.reports.is_shut(now)
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
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use http::{HeaderMap, Method, Uri};
    use tokio::net::TcpStream;
    use tokio::task::{LocalSet, yield_now};

    use super::super::connection_limit::ConnectionLimit;
    use super::super::socket::EndpointSocket;
    use smallvec::SmallVec;

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
        let mut connection = Http2::new(SharedSender::connect(socket, now, head, permit).await.unwrap());
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
        let (uri, fields, further) = (Uri::from_static("http://a/"), HeaderMap::new(), SmallVec::new());
        let head = RequestHead { method: &method, uri, fields: &fields, further };
        let sent = connection.send(head, RequestBody::Empty).await;
        assert!(sent.is_err() && connection.sender().is_closed());
        connection.has_sent_nothing()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_request_that_can_not_be_repeated_is_not_sent_behind_the_end_of_its_connection() {
        assert!(LocalSet::new().run_until(sent_after_the_end(Method::POST)).await);
    }
}
