//! An HTTP/2 connection of a client: each stream is one exchange.

mod client_frames;
mod gated_stream;
mod half_closed;
mod reset_limit;
mod stalled_streams;
mod write_buffer;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::http2::client_frames::ClientFrames;
use super::http2::gated_stream::{GatedStream, SocketGate};
use super::http2::half_closed::HalfClosed;
use super::http2::reset_limit::ResetLimit;
use super::http2::stalled_streams::{StalledStream, StreamCheck, StreamTask};
use super::http2::write_buffer::WriteBuffer;
use super::write_timeout::WriteTimeout;
use super::{ClientConnection, LINGER, ResponseStream, Transport, is_settled, tunnel, wait_until};
use crate::body::BodyError;
use crate::body::backlog::{Backlog, Piece, StreamBacklog};
use crate::body::shared_window::SharedWindow;
use crate::body::upload::{ClientContent, UploadProgress};
use crate::context::ReceivedRequest;
use crate::error::{Error, FailureKind, causes};
use crate::exchange::made_response::{self, CountedLength};
use crate::exchange::record::ExchangeRecord;
use crate::exchange::respond::{self, Rejection};
use crate::exchange::response_body::ResponseBody;
use crate::exchange::{self, Timers};
use crate::generation::connection_counts::{CloseReason, SendLimit};
use crate::generation::listener::ClientLimits;
use crate::net::boxed::boxed;
use crate::net::counted_transport::CountedTransport;
use crate::net::deadline::Deadline;
use crate::net::hyper_io::LocalExecutor;
use crate::protocol::field_section::FieldSectionSize;
use crate::protocol::http2_frames::budget::FrameKind;
use crate::protocol::websocket;
use crate::system::supervise::{Task, spawn};
use crate::telemetry::failure_log::{self, Topic};
use crate::upstream::response_head_limits::ResponseHeadLimits;

/// The window of a stream, in bytes: the maximum that is buffered for an endpoint that reads slowly.
const STREAM_WINDOW: u32 = 256 << 10;
/// The number of bytes that h2 requests from a stream before the client has taken the previous ones; the backlog bounds
/// more.
const SEND_BUFFER: usize = 64 << 10;
/// The maximum time between two checks of the streams for slow readers.
const STREAM_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The multiple of `send-timeout` for which a client without streams may stay after GOAWAY.
const GOAWAY_TIMEOUT_FACTOR: u32 = 10;
/// The bytes that count as progress: more than the answers to some PINGs.
const MIN_PROGRESS: u64 = 1 << 10;
/// The maximum number of streams that are reset because the client broke a rule; beyond, the connection is closed
/// (CVE-2025-8671).
const LOCAL_RESETS: usize = 100;

/// The bytes that `:status` and `date` add to a list of fields.
const ADDED_BYTES: usize = 107;

/// A request of which only h2 has seen the head.
const UNKNOWN: ReceivedRequest = ReceivedRequest::Unparsed(Bytes::new());

/// Serves a client connection until either side ends it. `ahead` holds bytes that were read already.
pub async fn serve(stream: impl Transport, ahead: Bytes, client: ClientConnection) {
    let limits = client.arrival.listener.limits;
    let [idle, send, linger, look] = client.clock.deadlines();
    let now = client.clock.now();
    let io = WriteTimeout::new(stream, ahead, send, limits.send, client.arrival.listener.census.clone())
        .of(&client.arrival.peer);
    let io = Lingering { io, linger, allowance: None, max: limits.buffer };
    let max_section = Rc::<Cell<Option<u32>>>::default();
    let io = CountedTransport::new(io, ClientFrames::new(client.clock.clone(), max_section.clone()));
    let io = WriteBuffer::new(HalfClosed::new(io, look, Lingering::is_gone));
    let mut is_acknowledged = false;
    let streams = Rc::new(Streams::new(client, idle, now, max_section));
    let service = service_fn(|request| streams.clone().exchange(request));
    // Boxed, so that it can end before the socket does.
    let builder = builder(&limits, Tasks(streams.clone()));
    let mut connection = Box::pin(builder.serve_connection(TokioIo::new(io.clone()), service));
    streams.idle.set(limits.head_timeout);
    let served = poll_fn(|cx| {
        streams.idle.watch(cx);
        if streams.goaway_sent_at.get().is_none() && streams.is_over() {
            streams.goaway_sent_at.set(Some(streams.client.clock.now()));
            connection.as_mut().graceful_shutdown();
            // Wakes the connection, so that it sends GOAWAY to the client.
            streams.idle.set(streams.look_after());
        } else if streams.should_abort() {
            return Poll::Ready(Ok(()));
        }
        let served = connection.as_mut().poll(cx).map_err(io::Error::other);
        // Everything written in this turn is flushed. At its end the connection has flushed, or the client is gone.
        let mut sent = io.poll_send(cx);
        if !is_acknowledged && served.is_pending() && matches!(sent, Poll::Ready(Ok(()))) && io.socket().has_ended() {
            (is_acknowledged, sent) = acknowledge(&io, cx);
        }
        streams.note_sent(transport(&io.socket()).bytes_sent(), io.socket().has_ended());
        streams.was_full.set(streams.was_full.get() || sent.is_pending());
        streams.gate.set_full(sent.is_pending());
        streams.note_refused(&io.socket().counted.counter);
        if io.socket().counted.counter.flood().is_some() {
            return Poll::Ready(Ok(()));
        }
        match (served, sent) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (served, _) => served,
        }
    });
    let served = served.await;
    if let Err(error) = &served {
        streams.log(error);
    }
    // The drop ends the exchanges that are left, and the tunnels.
    drop(connection);
    streams.gate.set_full(false);
    if !streams.unconfirmed.borrow().is_empty() {
        streams.report(&io, served.is_err()).await;
    }
    if let Some(kind) = streams.flood(&io) {
        streams.report_flood(kind);
        let _ = streams.idle.limit(LINGER, window_settings(io)).await;
    }
}

fn builder(limits: &ClientLimits, tasks: Tasks) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(tasks);
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.framing.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(u32::try_from(limits.buffer).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        // A page that is left before this worker has come to its requests is no attack (CVE-2023-44487): all of them are counted
        // once they are begun.
        .max_pending_accept_reset_streams(limits.streams as usize)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .enable_connect_protocol();
    builder
}

/// Replies to a client that has closed its sending side, and returns whether that was possible in this turn. h2 wouldn't: its
/// farewell has a PING, which such a client can't answer.
fn acknowledge<T: Transport>(
    io: &WriteBuffer<HalfClosed<Lingering<T>>>,
    cx: &mut Context<'_>,
) -> (bool, Poll<io::Result<()>>) {
    let Some(frame) = io.socket().counted.counter.acknowledgement() else { return (false, Poll::Ready(Ok(()))) };
    match Pin::new(&mut io.clone()).poll_write(cx, &frame) {
        Poll::Ready(Ok(_)) => (true, io.poll_send(cx)),
        Poll::Ready(Err(error)) => (true, Poll::Ready(Err(error))),
        Poll::Pending => (false, Poll::Pending),
    }
}

fn transport<T>(socket: &HalfClosed<Lingering<T>>) -> &T {
    &socket.counted.io.io.socket
}

/// Tells the client to calm down, and closes the connection.
async fn window_settings<T: Transport>(mut io: WriteBuffer<HalfClosed<Lingering<T>>>) -> io::Result<()> {
    poll_fn(|cx| io.poll_send(cx)).await?;
    let farewell = io.socket().counted.counter.farewell();
    if let Some(farewell) = farewell {
        io.write_all(&farewell).await?;
    }
    io.shutdown().await
}

/// The exchanges of a connection.
struct Streams {
    client: ClientConnection,
    /// The deadline of the idle timeout, and of the next check of the open streams.
    idle: Deadline,
    open: Cell<usize>,
    served: Cell<usize>,
    /// The time of GOAWAY, or of the end of the last stream after that; `None` before GOAWAY.
    goaway_sent_at: Cell<Option<Instant>>,
    /// The recent number of streams that the client reset before their end.
    aborted: ResetLimit,
    /// The time when the client last accepted data.
    taken: Cell<Instant>,
    /// The number of bytes that were sent by then.
    departed: Cell<u64>,
    /// The bytes of responses that wait for the client.
    backlog: Arc<Backlog>,
    /// The bytes of requests that wait for endpoints, in addition to those that wait in h2 within its window.
    uploads: Arc<Backlog>,
    /// The window that the uploads share.
    window: Rc<SharedWindow>,
    /// The streams that are open.
    all: RefCell<Vec<Weak<StalledStream<HeldStream>>>>,
    /// The stream whose task hyper spawns next.
    starting: Cell<Option<Rc<StalledStream<HeldStream>>>>,
    /// The time when the streams were last checked.
    looked: Cell<Instant>,
    /// Whether the socket was full since the last check.
    was_full: Cell<bool>,
    /// Whether the socket is full now.
    gate: Rc<SocketGate>,
    /// The number of bytes that were sent on the connection.
    sent: Cell<u64>,
    /// The number of bytes that were sent by the time that the client closed its sending side; `None` before.
    sent_at_end: Cell<Option<u64>>,
    /// Exchanges whose response ended after that. Their records are reported once it is known whether the
    /// client was still there.
    unconfirmed: RefCell<Vec<ExchangeRecord>>,
    /// Heads and trailers with the end of their stream that were sent, or that h2 was given to send.
    last_heads: Cell<u64>,
    /// The streams reset for malformed requests that the log has been told of.
    malformed: Cell<usize>,
    /// The requests that h2 has refused without beginning an exchange, and that were recorded.
    unserved: Cell<usize>,
    /// The longest list of fields that the client says it accepts, in bytes; `None` if it hasn't said so.
    max_section: Rc<Cell<Option<u32>>>,
}

/// Spawns hyper's tasks on the worker that they begin on, each bound to its stream.
#[derive(Clone)]
struct Tasks(Rc<Streams>);

/// An open stream, until dropped.
struct OpenStream {
    streams: Rc<Streams>,
    /// Whether the response was sent whole, or has become a tunnel.
    is_whole: Cell<bool>,
}

/// The parts of an exchange that end once h2 has the whole response.
struct HeldStream {
    record: Option<ExchangeRecord>,
    open: Option<OpenStream>,
}

/// The body of a response that is written to a stream.
struct Http2Body {
    outgoing: ResponseStream,
    stream: Rc<StalledStream<HeldStream>>,
    open: Option<OpenStream>,
    /// The number of bytes that were sent on the connection before the head was given to h2.
    before: u64,
}

impl<F: Future + 'static> Executor<F> for Tasks
where
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        match self.0.starting.take() {
            Some(stream) => drop(spawn(Task::Stream, StreamTask::new(task, stream, &self.0.client.clock))),
            // The task of a tunnel.
            None => LocalExecutor.execute(task),
        }
    }
}

/// Marks a response in place of one that can't be sent to the client.
#[derive(Clone, Copy)]
enum Unsendable {
    /// There is no room for it in `limits.buffer`.
    Overflowing,
    /// The client may end the connection for its head, and with it all other streams.
    LongHead,
}

impl Streams {
    fn new(client: ClientConnection, idle: Deadline, now: Instant, max_section: Rc<Cell<Option<u32>>>) -> Self {
        let buffer = client.arrival.listener.limits.buffer;
        let window = SharedWindow::new(buffer, STREAM_WINDOW as usize, client.clock.clone());
        Streams {
            client,
            idle,
            open: Cell::new(0),
            served: Cell::new(0),
            goaway_sent_at: Cell::new(None),
            aborted: ResetLimit::new(now),
            taken: Cell::new(now),
            departed: Cell::new(0),
            backlog: Backlog::new(buffer),
            uploads: Backlog::new(buffer),
            window,
            all: RefCell::default(),
            starting: Cell::new(None),
            looked: Cell::new(now),
            was_full: Cell::new(false),
            gate: Rc::default(),
            sent: Cell::new(0),
            sent_at_end: Cell::new(None),
            unconfirmed: RefCell::default(),
            last_heads: Cell::new(0),
            malformed: Cell::new(0),
            unserved: Cell::new(0),
            max_section,
        }
    }

    fn exchange(
        self: Rc<Self>,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Http2Body>, Infallible>> {
        let open = self.open();
        let stream = self.begin();
        let [step, total] = self.client.clock.deadlines();
        let timers = Rc::new(Timers { idle: step, total });
        // Before fields are added that the client has not sent.
        let violation = self.limit_violation(&request);
        let tunnel = extended_connect(&mut request);
        let upload = self.upload(request.body());
        let is_head = *request.method() == Method::HEAD;
        let has_length = request.headers().get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        let mut request = request.map(|content| ClientContent::new(content, upload.clone()));
        if !has_length {
            request.body_mut().peek();
        }
        if !request.body().is_end_stream() {
            stream.receives(&upload);
        }
        let exchange = match violation {
            None => Ok(self.client.exchange(request, upload, timers.clone(), &|response| self.count_made(response))),
            Some((status, limit, why)) => {
                let (error, worker) =
                    (Error::new(FailureKind::RequestError, why).with_limit(limit), self.client.worker());
                let received = ReceivedRequest::Parsed(exchange::request_line(&worker, &request.into_parts().0));
                Err(self.client.refuse(Rejection { error, status, received }))
            }
        };
        // Boxed, so that its memory is freed while the response is sent.
        Box::pin(async move {
            let response = match exchange {
                Ok(exchange) => exchange.await,
                Err(refused) => refused,
            };
            let response = match open.streams.is_settled(&response) {
                true => response,
                false => boxed(|| open.streams.count_received(response, &timers)).await,
            };
            let (response, open) = match tunnel {
                Some(client) => boxed(|| connect(response, client, open, &timers)).await,
                None => (response, Some(open)),
            };
            let has_none = is_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            let response = if has_none { without_content(response, is_head) } else { response };
            Ok(response.map(|outgoing| {
                outgoing.body.limit_reads(stream.backlog.read_limit());
                stream.reads_ahead(outgoing.body.read_ahead());
                if let Some(open) = open.as_ref().filter(|_| outgoing.is_end_stream()) {
                    open.streams.give_last_head();
                }
                let before = open.as_ref().map_or(0, |open| open.streams.sent.get());
                Http2Body { outgoing, stream, open, before }
            }))
        })
    }

    /// Returns status, key and cause of a limit that h2 doesn't know and the request exceeds; `None` if there is none.
    fn limit_violation<B>(&self, request: &Request<B>) -> Option<(StatusCode, &'static str, &'static str)> {
        let limits = &self.client.arrival.listener.limits.framing;
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        if target > limits.target_bytes {
            return Some((StatusCode::URI_TOO_LONG, "limits.target", "the target is too long"));
        }
        // A client may send each cookie in a line of its own: together they are one field (RFC 9113 §8.2.3).
        let cookies = request.headers().get_all(header::COOKIE).iter().count();
        let many = request.headers().len() - cookies.saturating_sub(1) > limits.fields;
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        many.then_some((status, "limits.fields", "there are too many fields"))
    }

    /// Counts a response that is whole in memory, or has a long head, against `limits.buffer`. One that can't be sent is
    /// dropped at once, and marked as [`Unsendable`] for [`Streams::count_received`].
    fn count_made(&self, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
        let counted = response.extensions_mut().remove::<CountedLength>();
        if counted.is_none() && !self.has_to_be_measured(response.headers()) {
            return response;
        }
        let CountedLength(length) = counted.unwrap_or(CountedLength(0));
        let accepted = match self.accepts(response.headers()) {
            true => self.backlog.count_made(length).ok_or(Unsendable::Overflowing),
            false => Err(Unsendable::LongHead),
        };
        match accepted {
            Ok(share) => {
                let (mut parts, mut body) = response.into_parts();
                made_response::attach(share, &mut parts.headers, &mut body);
                Response::from_parts(parts, body)
            }
            Err(unsendable) => {
                let mut empty = Response::new(ResponseBody::Full(Bytes::new()));
                empty.extensions_mut().insert(unsendable);
                empty
            }
        }
    }

    /// Whether the client accepts a head or trailers, as far as is known.
    fn accepts(&self, fields: &HeaderMap) -> bool {
        let FieldSectionSize { list, encoded } = FieldSectionSize::of(fields);
        let (list, encoded) = (list + ADDED_BYTES, encoded + ADDED_BYTES);
        let announced = self.max_section.get().map(|max| max as usize);
        announced.is_none_or(|max| list <= max)
            && encoded <= announced.unwrap_or(0).max(self.head_limits().bytes)
            && !self.has_many_fields(fields)
    }

    /// Whether a response can be sent as it is, and has been counted.
    fn is_settled<B>(&self, response: &Response<B>) -> bool {
        let extensions = response.extensions();
        extensions.get::<CountedLength>().is_none()
            && extensions.get::<Unsendable>().is_none()
            && !self.has_to_be_measured(response.headers())
    }

    /// Whether a head that is not long may still be too long for the client.
    fn has_to_be_measured(&self, fields: &HeaderMap) -> bool {
        let max = self.max_section.get().map_or(self.head_limits().bytes, |max| max as usize);
        max < made_response::SHORT || self.has_many_fields(fields)
    }

    /// Whether a head or trailers have more fields than the client may accept.
    fn has_many_fields(&self, fields: &HeaderMap) -> bool {
        fields.len() > self.head_limits().fields
    }

    fn head_limits(&self) -> ResponseHeadLimits {
        self.client.arrival.listener.limits.response_head
    }

    /// Counts a response as [`Streams::count_made`] does, or replaces it by an error, which goes up the chain.
    async fn count_received(&self, response: Response<ResponseStream>, timers: &Timers) -> Response<ResponseStream> {
        let (parts, ResponseStream { body, total, record }) = response.into_parts();
        let response = Response::from_parts(parts, body);
        let Some(mut record) = record else { return response.map(|body| ResponseStream { body, total, record: None }) };
        let mut response = self.count_made(response);
        if let Some(unsendable) = response.extensions_mut().remove::<Unsendable>() {
            let error = unsendable.error(self.head_limits());
            let status = error.client_status();
            response = respond::replace_with_error(error, timers, &mut record).await;
            if response.extensions().get::<CountedLength>().is_some() || self.has_many_fields(response.headers()) {
                // The plugins above have made it as long.
                response = Response::new(ResponseBody::Full(Bytes::new()));
                *response.status_mut() = status;
                record.status = status.as_u16();
            }
        }
        response.map(|body| ResponseStream { body, total, record: Some(record) })
    }

    fn open(self: &Rc<Self>) -> OpenStream {
        self.open.set(self.open.get() + 1);
        self.served.set(self.served.get() + 1);
        if self.open.get() == 1 {
            // Later streams don't delay the check, or a client that opens one each second would never be checked.
            self.idle.set(self.look_after());
        }
        self.client.presence.serve();
        OpenStream { streams: self.clone(), is_whole: Cell::new(false) }
    }

    fn begin(&self) -> Rc<StalledStream<HeldStream>> {
        let stream = StalledStream::new(&self.backlog);
        self.starting.set(Some(stream.clone()));
        let mut all = self.all.borrow_mut();
        all.retain(|stream| stream.strong_count() > 0);
        all.push(Rc::downgrade(&stream));
        stream
    }

    /// Returns the upload progress of a request body, which is bounded if there is a body.
    fn upload(&self, content: &Incoming) -> UploadProgress {
        match content.is_end_stream() {
            true => UploadProgress::default(),
            false => UploadProgress::bounded(StreamBacklog::new(&self.uploads), self.window.clone()),
        }
    }

    /// Returns the time to the next check of the streams.
    fn look_after(&self) -> Duration {
        STREAM_CHECK_INTERVAL.min(self.client.arrival.listener.limits.send.timeout / 2)
    }

    /// Checks all streams, and resets those whose window the client opens too slowly.
    fn look(&self, now: Instant) {
        let listener = &self.client.arrival.listener;
        let look = StreamCheck { now, last: self.looked.replace(now), was_full: self.was_full.replace(false) };
        let all = self.all.borrow();
        for stream in all.iter().filter_map(Weak::upgrade).filter(|one| one.is_too_slow(look, listener.limits.send)) {
            listener.census.cut_off(SendLimit::Rate, self.client_address());
            stream.cut_off();
        }
    }

    /// Returns the client's address for the log; `None` behind a unix socket.
    fn client_address(&self) -> Option<&str> {
        self.client.arrival.peer.address.as_ref()?.to_str().ok()
    }

    /// Logs why a connection has failed, unless its client has merely disconnected.
    fn log(&self, error: &io::Error) {
        let cause = error.get_ref().and_then(|error| error.downcast_ref::<hyper::Error>());
        let cause = cause.and_then(std::error::Error::source).and_then(|error| error.downcast_ref::<h2::Error>());
        let client = self.client_address();
        // A protocol error that this side has detected.
        let is_mistake = cause.is_some_and(|cause| !cause.is_io() && !cause.is_remote());
        if is_mistake && failure_log::admits(Topic::Client, client.unwrap_or_default()) {
            let cause = causes(error);
            tracing::warn!(client, cause, "HTTP/2 connection ended for what its client sent");
        } else {
            tracing::debug!(%error, "client connection");
        }
    }

    /// Notes that h2 is given a head or trailers to send with the end of the stream.
    fn give_last_head(&self) {
        self.last_heads.set(self.last_heads.get() + 1);
    }

    /// Logs and counts the requests that h2 rejects by itself, which no exchange reports: h2 resets streams of
    /// malformed requests, and answers 431 to heads beyond `limits.head`. The latter are the heads with an end of
    /// stream that h2 received beyond those that it passed on.
    fn note_refused(&self, frames: &ClientFrames) {
        while frames.last_heads() > self.last_heads.get() {
            self.give_last_head();
            let error = Error::new(FailureKind::RequestError, "the head is too long").with_limit("limits.head");
            self.record_unserved(error, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        self.note_malformed(frames);
    }

    /// Logs and counts the streams that h2 has reset by itself for a malformed request (RFC 9113 §8.1.1). It doesn't report
    /// which rule was broken. A stream that was reset within its content has an exchange, which ends with a record of its
    /// own.
    fn note_malformed(&self, frames: &ClientFrames) {
        let streams = frames.malformed() - self.malformed.replace(frames.malformed());
        if streams == 0 {
            return;
        }
        let (client, cause) = (self.client_address(), "a request is malformed (RFC 9113 §8)");
        if failure_log::admits(Topic::Client, client.unwrap_or_default()) {
            tracing::warn!(client, streams, cause, "HTTP/2 streams reset for what their client sent");
        }
        let without_exchange = frames.accepted().saturating_sub(self.served.get() + self.unserved.get());
        for _ in 0..streams.min(without_exchange) {
            let error = Error::new(FailureKind::RequestError, cause).mark_logged();
            self.record_unserved(error, StatusCode::BAD_REQUEST);
        }
    }

    /// Records a request that never became an exchange.
    fn record_unserved(&self, error: Error, status: StatusCode) {
        self.unserved.set(self.unserved.get() + 1);
        drop(self.client.refuse(Rejection { error, status, received: UNKNOWN }));
    }

    /// Reports the exchanges whose client may have been gone, once that is known.
    async fn report<T: Transport>(&self, io: &WriteBuffer<HalfClosed<Lingering<T>>>, has_failed: bool) {
        if !has_failed {
            wait_until(|| is_settled(transport(&io.socket())), &self.idle).await;
        }
        let io = io.socket();
        let socket = transport(&io);
        let is_gone = if has_failed { socket.is_gone() } else { socket.is_reset() };
        let took_nothing = self.sent_at_end.get().is_some_and(|sent| socket.bytes_taken() <= sent);
        for mut record in self.unconfirmed.take().into_iter().filter(|_| is_gone) {
            record.client_left(took_nothing);
        }
    }

    /// Records how many bytes were sent, and whether the client has closed its sending side.
    fn note_sent(&self, departed: u64, has_ended: bool) {
        self.sent.set(departed);
        if has_ended && self.sent_at_end.get().is_none() {
            self.sent_at_end.set(Some(departed));
        }
        if departed - self.departed.get() > MIN_PROGRESS {
            self.departed.set(departed);
            self.taken.set(self.client.clock.now());
        }
    }

    /// The kind of frame that the client sends far more often than its requests explain; `None` if there is none.
    fn flood<T>(&self, io: &WriteBuffer<HalfClosed<T>>) -> Option<FrameKind> {
        let resets = || self.aborted.should_close().then_some(FrameKind::Reset);
        io.socket().counted.counter.flood().or_else(resets)
    }

    /// Counts and logs that the connection is closed for a flood of frames.
    fn report_flood(&self, kind: FrameKind) {
        self.client.arrival.listener.census.count(CloseReason::Flood);
        let client = self.client_address();
        if failure_log::admits(Topic::Client, client.unwrap_or_default()) {
            tracing::warn!(client, frames = kind.name(), "too many HTTP/2 frames");
        }
    }

    /// Whether no more streams should begin.
    fn is_over(&self) -> bool {
        let limits = &self.client.arrival.listener.limits;
        let is_idle = self.open.get() == 0 && self.idle.is_met();
        is_idle
            || self.aborted.should_goaway()
            || self.served.get() >= limits.requests
            || self.idle.clock().is_stopping()
            || self.client.arrival.listener.is_superseded()
    }

    /// Whether the connection has to close: the client accepts no data, resets too many streams, begins too many, or
    /// stays too long after GOAWAY.
    fn should_abort(&self) -> bool {
        let limits = &self.client.arrival.listener.limits;
        // The second term covers streams under way at GOAWAY, and those that begin until the client receives it.
        let max = limits.requests.saturating_add(2 * limits.streams as usize);
        if self.aborted.should_close() || self.served.get() > max {
            return true;
        }
        if !self.idle.is_met() {
            return false;
        }
        self.idle.set(self.look_after());
        let now = self.client.clock.now();
        self.look(now);
        let patience = limits.send.timeout;
        let is_stuck = |stream: &Weak<StalledStream<HeldStream>>| {
            stream.upgrade().is_some_and(|stream| stream.is_stuck(now, patience))
        };
        let takes_nothing = now.saturating_duration_since(self.taken.get()) >= patience;
        let open = self.open.get();
        let Some(goaway_sent_at) = self.goaway_sent_at.get().filter(|_| open == 0) else {
            // A single stream may be left unread for a while, as when a film is paused; other streams then make
            // progress.
            let stuck = self.all.borrow().iter().filter(|stream| is_stuck(stream)).count();
            let is_met = stuck > 0 && stuck >= open && takes_nothing;
            if is_met {
                self.client.arrival.listener.census.cut_off(SendLimit::Timeout, self.client_address());
            }
            return is_met;
        };
        // A stream ends here once h2 has the last of its bytes, and h2 doesn't report when these are sent. A client
        // that sends PINGs accepts data as often as it likes.
        self.served.get() == 0
            || takes_nothing
            || now.saturating_duration_since(goaway_sent_at) >= GOAWAY_TIMEOUT_FACTOR * patience
    }
}

impl Unsendable {
    fn error(self, limits: ResponseHeadLimits) -> Error {
        match self {
            Unsendable::Overflowing => {
                let cause = "the client leaves too many bytes of responses unread that plugins made";
                Error::new(FailureKind::LimitReached, cause).with_limit("limits.buffer")
            }
            Unsendable::LongHead => long_section("head", limits),
        }
    }
}

/// Returns the error about a head or trailers that the client may end its connection for.
fn long_section(section: &str, limits: ResponseHeadLimits) -> Error {
    let ResponseHeadLimits { bytes, fields } = limits;
    let limits =
        format!("`limits.response-head` ({bytes} bytes) and `limits.response-fields` ({fields}) of the listener");
    let cause = format!(
        "the response's {section} is longer than the client accepts over HTTP/2 (SETTINGS_MAX_HEADER_LIST_SIZE), or than {limits}"
    );
    Error::new(FailureKind::ResponseHeadSize, cause).with_limit("limits.response-head")
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let streams = &self.streams;
        if !self.is_whole.get() {
            streams.aborted.record(streams.client.clock.now());
        }
        streams.open.set(streams.open.get() - 1);
        if streams.open.get() > 0 {
            return;
        }
        streams.client.presence.wait(streams.client.clock.now());
        // None of them is open: an idle connection holds no memory of streams that it had.
        drop(streams.all.take());
        if streams.goaway_sent_at.get().is_some() {
            streams.goaway_sent_at.set(Some(streams.client.clock.now()));
            streams.idle.set(streams.look_after());
        } else {
            streams.idle.set(streams.client.arrival.listener.limits.keep_alive);
        }
    }
}

impl Http2Body {
    fn hold(&self, frame: Frame<Bytes>) -> Frame<Piece> {
        let frame = frame.map_data(|content| self.stream.backlog.hold(content));
        self.outgoing.body.limit_reads(self.stream.backlog.read_limit());
        frame
    }

    /// Ends the exchange once h2 has the last of the response, though the stream may still receive its request body.
    fn end(&mut self) {
        if let Some(open) = &self.open {
            open.is_whole.set(true);
        }
        let mut record = self.outgoing.record.take();
        record.iter_mut().for_each(ExchangeRecord::sent);
        if let Some(open) = self.open.as_ref().filter(|open| open.streams.sent_at_end.get().is_some()) {
            open.streams.unconfirmed.borrow_mut().extend(record.take());
        }
        let held = HeldStream { record, open: self.open.take() };
        if held.record.is_some() || held.open.is_some() {
            self.stream.hold(held);
        }
    }
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        if self.outgoing.is_end_stream() {
            self.end();
        }
        let (Some(mut record), Some(open)) = (self.outgoing.record.take(), &self.open) else { return };
        if open.streams.sent_at_end.get().is_some() {
            open.streams.unconfirmed.borrow_mut().push(record);
        } else if open.streams.sent.get() == self.before {
            // Not even the head was sent.
            record.client_left(true);
        }
    }
}

impl Body for Http2Body {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        if self.stream.backlog.poll_room(cx).is_pending() && !self.outgoing.total.is_met() {
            self.outgoing.total.watch(cx);
            return Poll::Pending;
        }
        let mut frame = Pin::new(&mut self.outgoing).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(trailers))), Some(open)) = (&frame, &self.open)
            && trailers.trailers_ref().is_some_and(|fields| !open.streams.accepts(fields))
        {
            let limits = open.streams.head_limits();
            frame = Poll::Ready(Some(Err(self.outgoing.cut(long_section("trailer section", limits)))));
        }
        // A body that fails here is not the client's doing.
        if let (Poll::Ready(Some(Err(_))), Some(open)) = (&frame, &self.open) {
            open.is_whole.set(true);
        }
        let is_last = match &frame {
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || self.outgoing.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
            Poll::Ready(None) => true,
        };
        // The next piece is requested once this one has been taken.
        self.stream.set_stalled_since(frame.is_ready().then(|| self.outgoing.total.clock().now()));
        if let (Poll::Ready(Some(Ok(frame))), Some(open)) = (&frame, &self.open)
            && frame.is_trailers()
        {
            open.streams.give_last_head();
        }
        if is_last {
            self.end();
        }
        frame.map(|frame| frame.map(|frame| frame.map(|frame| self.hold(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.outgoing.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.outgoing.size_hint()
    }
}

/// Removes the body from a response that has none, whatever made the body, and keeps its length in a response to HEAD
/// (RFC 9110 §6.4.1, §9.3.2). Over HTTP/1 hyper does that; over HTTP/2 it sends what it gets.
fn without_content(mut response: Response<ResponseStream>, is_head: bool) -> Response<ResponseStream> {
    let body = &mut response.body_mut().body;
    if matches!(body, ResponseBody::Switched(_)) {
        return response;
    }
    let length = body.size_hint().exact().filter(|length| is_head && *length > 0);
    std::mem::replace(body, ResponseBody::Full(Bytes::new())).discard();
    if let Some(length) = length {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    response
}

// === Extended CONNECT (RFC 8441) ===

/// Turns an extended CONNECT request into the equivalent HTTP/1.1 upgrade, as it is sent to the endpoint. Returns the
/// client's end of the future tunnel; `None` for other requests.
fn extended_connect(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    let protocol = request.extensions().get::<Protocol>().filter(|_| request.method() == Method::CONNECT)?;
    let protocol = HeaderValue::from_str(protocol.as_str()).ok()?;
    let client = hyper::upgrade::on(&mut *request);
    *request.method_mut() = Method::GET;
    let fields = request.headers_mut();
    if websocket::is_websocket(&protocol) {
        // HTTP/1.1 requires a key, which HTTP/2 doesn't have.
        fields.insert(header::SEC_WEBSOCKET_KEY, websocket::key());
    }
    fields.insert(header::UPGRADE, protocol);
    fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    Some(client)
}

/// Returns the response to a request for a tunnel, as HTTP/2 requires it. Any success means a tunnel, so other
/// responses must not have such a status.
async fn connect(
    mut response: Response<ResponseStream>,
    client: OnUpgrade,
    open: OpenStream,
    timers: &Timers,
) -> (Response<ResponseStream>, Option<OpenStream>) {
    let outgoing = response.body_mut();
    let switched = match std::mem::replace(&mut outgoing.body, ResponseBody::Full(Bytes::new())) {
        ResponseBody::Switched(switched) => switched,
        other => {
            outgoing.body = other;
            if response.status().is_success() {
                let ResponseStream { total, record, .. } = response.into_body();
                response = match record {
                    Some(mut record) => {
                        let mut replaced = respond::replace_with_error(not_switched(), timers, &mut record).await;
                        if replaced.status().is_success() {
                            // A plugin made the error a success.
                            *replaced.status_mut() = StatusCode::BAD_GATEWAY;
                            record.status = StatusCode::BAD_GATEWAY.as_u16();
                        }
                        replaced.map(|body| ResponseStream { body, total, record: Some(record) })
                    }
                    None => {
                        let (error, status, received) = (not_switched(), StatusCode::BAD_GATEWAY, UNKNOWN);
                        open.streams.client.refuse(Rejection { error, status, received })
                    }
                };
            }
            return (response, Some(open));
        }
    };
    *response.status_mut() = StatusCode::OK;
    response.body().total.clear();
    let record = response.body_mut().record.take();
    for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT, header::CONTENT_LENGTH] {
        response.headers_mut().remove(name);
    }
    let (idle, deadline) = (open.streams.client.arrival.listener.limits.tunnel_timeout, timers.idle.clone());
    let gate = open.streams.gate.clone();
    open.is_whole.set(true);
    spawn(Task::Tunnel, async move {
        match client.await {
            Ok(client) => {
                let (socket, ahead) = (GatedStream::new(TokioIo::new(client), gate), Bytes::new());
                tunnel::run(tunnel::TunnelClient { socket, ahead, idle, deadline }, *switched, record).await;
            }
            Err(error) => tracing::debug!(%error, "tunnel"),
        }
        drop(open);
    });
    (response, None)
}

fn not_switched() -> Error {
    Error::new(FailureKind::ProtocolError, "the endpoint didn't switch protocols")
}

// === Lingering close ===

/// A socket that leaves its client some time to close its sending side.
struct Lingering<T> {
    io: WriteTimeout<T>,
    linger: Deadline,
    /// The number of bytes that may still arrive after this side is closed; `None` before.
    allowance: Option<usize>,
    /// The maximum that a well-behaved client has on its way, in bytes: the window of the connection.
    max: usize,
}

impl<T: Transport> Lingering<T> {
    fn is_gone(&self) -> bool {
        self.io.socket.is_gone()
    }
}

impl<T: Transport> AsyncRead for Lingering<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: Transport> AsyncWrite for Lingering<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Closes the sending side, and reads the client's data for a while. A socket that is closed with unread data, or
    /// that gets more, is reset, and the client loses the unread rest of its last responses.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.allowance.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let allowance = this.allowance.get_or_insert(this.max);
        let mut unread = [0; 2 << 10];
        loop {
            let mut unread = ReadBuf::new(&mut unread);
            match Pin::new(&mut this.io).poll_read(cx, &mut unread) {
                Poll::Pending if !this.linger.is_late(LINGER, cx) => return Poll::Pending,
                Poll::Ready(Ok(())) if !unread.filled().is_empty() && *allowance >= unread.filled().len() => {
                    *allowance -= unread.filled().len();
                }
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
