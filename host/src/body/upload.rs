//! The content of a request on its way to an endpoint.

use std::cell::{Cell, OnceCell, RefCell};
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use smallvec::SmallVec;

use crate::body::backlog::{Piece, StreamBacklog};
use crate::body::buffer_space::BufferSpace;
use crate::body::collected::CollectedBody;
use crate::body::content_end::ContentEnd;
use crate::body::early_content::{EarlyContent, ReadEarly};
use crate::body::shared_window::{EarlyShare, SharedWindow, UnreadUpload};
use crate::body::{BodyError, BoxBody, longer};
use crate::error::{Error, FailureKind};
use crate::net::deadline::Deadline;
use crate::protocol::client_address::ClientAddressRules;
use crate::protocol::hop_by_hop;

/// The content of a request: the client's, streamed, or none.
pub enum RequestBody {
    /// The client's content, streamed as it arrives.
    Incoming(Box<ClientBody>),
    /// Content of another source, streamed, such as the output of plugins. With the upload whose connection holds a
    /// copy for another attempt; `None` if the content is such a copy.
    Stream(BoxBody, Option<UploadProgress>),
    /// The whole content, in memory.
    Whole(Bytes),
    /// The content was received before an endpoint is asked.
    Collected(Box<CollectedBody>),
    Empty,
}

/// The content of a request as its connection receives it. The connection gets back the part that an exchange leaves
/// unread, by the [`UploadProgress`].
pub struct ClientContent {
    upload: UploadProgress,
}

/// The source of a client's content, which a reader and the task of the client's stream share.
#[derive(Default)]
struct ContentSource {
    /// The client's content; `None` once it was left.
    incoming: Option<Incoming>,
    /// The first frames, which were read to find out whether there is content, and whether all of it has arrived.
    first: SmallVec<[Result<Frame<Bytes>, hyper::Error>; 1]>,
    /// The content behind `first` that was read early, with its bytes; `None` if none was.
    early: Option<Box<(EarlyContent, EarlyShare)>>,
    /// The room for content that is read ahead of its reader, and its maximum length; `None` if none is.
    ahead: Option<(Rc<BufferSpace>, u64)>,
    /// Whether the reader waits for the client, and will be woken by what arrives.
    is_awaited: bool,
    /// The task of the client's stream.
    task: Option<Waker>,
    /// Set while there is no room to read ahead.
    unread: Option<UnreadUpload>,
}

/// The client's content, which fails if it is too long or too slow.
pub struct ClientBody {
    content: ClientContent,
    /// The room for content that is read early.
    space: Rc<BufferSpace>,
    upload: UploadProgress,
    limits: UploadLimits,
    pace: UploadRate,
}

/// The limits of a client's content, and the rules for its trailers.
#[derive(Clone, Debug)]
pub struct UploadLimits {
    /// The maximum length, in bytes.
    pub max: u64,
    /// The maximum pause between two pieces.
    pub pause: Duration,
    /// The minimum rate, in bytes per second.
    pub rate: u64,
    /// Whether the client marks the end of content, as END_STREAM does over HTTP/2. Content that ends without the mark
    /// was cut off.
    pub knows_end: bool,
    /// The rules for the names of trailers.
    pub names: Arc<ClientAddressRules>,
    /// The names of the fields of the head that plugins have edited.
    pub edited: Vec<HeaderName>,
}

/// The rate at which the client sends. Only time in which the endpoint waited for the client counts.
struct UploadRate {
    deadline: Deadline,
    /// The window that the client's uploads share; `None` if the client's connection has no other streams.
    window: Option<Rc<SharedWindow>>,
    /// The time since which the endpoint waits for the client, and the time for which other uploads had shut the window
    /// by then; `None` if the endpoint does not wait.
    since: Option<(Instant, Duration)>,
    waited: Duration,
    bytes: u64,
}

/// The time over which the rate is measured, so that short pauses don't count.
const WINDOW: Duration = Duration::from_secs(30);

/// The number of frames that are read of content before it is known where it goes.
const PEEKED_FRAMES: usize = 2;

/// The progress of a request body.
#[derive(Clone, Default)]
pub struct UploadProgress(Rc<ProgressState>);

#[derive(Default)]
struct ProgressState {
    over: Cell<bool>,
    /// Whether the client has sent the whole content, though some may still be on its way to the endpoint.
    received: Cell<bool>,
    unlimited_rate: Cell<bool>,
    fault: Cell<Option<UploadFault>>,
    abandoned: Cell<bool>,
    /// Whether the exchange dropped the content before its end.
    unread: Cell<bool>,
    bytes: Cell<u64>,
    /// The bytes of collected content that were passed on, over all attempts.
    forwarded: OnceCell<Rc<Cell<u64>>>,
    awaited: Cell<bool>,
    /// Bounds what waits for the endpoint; `None` where the client's own buffer does.
    backlog: Option<Arc<StreamBacklog>>,
    /// The window that the client's uploads share; `None` if the client's connection has no other streams.
    window: Option<Rc<SharedWindow>>,
    source: RefCell<ContentSource>,
    /// The part of the body that no exchange reads; `None` if the connection doesn't want it.
    rest: Option<Remainder>,
}

/// A failure that ends content on its way to the endpoint.
#[derive(Clone, Copy, Debug)]
pub struct UploadFault {
    pub kind: FailureKind,
    /// The cause; `None` if the error with which the content has ended says it. HTTP/2 replaces that error by its own.
    pub cause: Option<&'static str>,
    /// The key of the limit that was met.
    pub limit: Option<&'static str>,
    /// The status in the `on-error` of a failed plugin.
    pub status: Option<StatusCode>,
    pub is_logged: bool,
}

impl UploadFault {
    /// Returns a fault of this kind, which no limit caused.
    pub fn new(kind: FailureKind) -> Self {
        UploadFault { kind, cause: None, limit: None, status: None, is_logged: false }
    }

    /// The error of the exchange.
    pub fn error(self, cause: impl Into<BodyError>) -> Error {
        let UploadFault { kind, cause: known, limit, status, is_logged } = self;
        let cause = known.map_or_else(|| cause.into(), BodyError::from);
        Error { limit, status, is_logged, ..Error::new(kind, cause) }
    }
}

/// The rest of content that no exchange reads any more.
#[derive(Default)]
struct Remainder {
    is_left: Cell<bool>,
    content: Cell<Option<Incoming>>,
    task: Cell<Option<Waker>>,
}

/// The time for which an exchange rests that is open both ways: neither the client nor the endpoint has sent all of its
/// content, and neither sends.
pub struct IdleTime {
    /// The bytes of the request's content when the rest began.
    bytes: u64,
    rested: Duration,
    /// Whether the request's content went on when the endpoint was last waited for.
    was_open: bool,
}

impl UploadProgress {
    /// Returns the progress of a request without content.
    pub fn over() -> Self {
        let upload = UploadProgress::default();
        upload.end();
        upload
    }

    /// Returns the progress of content whose unread rest the connection gets back.
    pub fn returned() -> Self {
        UploadProgress(Rc::new(ProgressState { rest: Some(Remainder::default()), ..ProgressState::default() }))
    }

    /// Returns the progress of content of which `backlog` bounds the bytes that wait for the endpoint, which shares the
    /// window of its connection, and whose unread rest the connection gets back.
    pub fn bounded(backlog: Arc<StreamBacklog>, window: Rc<SharedWindow>) -> Self {
        UploadProgress(Rc::new(ProgressState {
            backlog: Some(backlog),
            window: Some(window),
            rest: Some(Remainder::default()),
            ..ProgressState::default()
        }))
    }

    /// Records that nothing more will be sent.
    pub fn end(&self) {
        self.0.over.set(true);
    }

    /// Stops enforcing the minimum upload rate, because the endpoint has begun to respond.
    pub fn stop_rate_limit(&self) {
        self.0.unlimited_rate.set(true);
    }

    /// Whether no minimum upload rate is enforced.
    pub fn has_no_rate_limit(&self) -> bool {
        self.0.unlimited_rate.get()
    }

    /// Whether all has been sent, or given up.
    pub fn is_over(&self) -> bool {
        self.0.over.get()
    }

    /// Whether no more content will arrive from the client.
    pub fn is_received(&self) -> bool {
        self.0.received.get() || self.is_over()
    }

    /// The bytes that were sent.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.get()
    }

    /// Returns the count of the bytes of collected content that are passed on.
    pub fn forwarded(&self) -> Rc<Cell<u64>> {
        self.0.forwarded.get_or_init(Rc::default).clone()
    }

    /// Returns a number that grows while content comes from the client or, once collected, goes to the endpoint.
    pub fn movement(&self) -> u64 {
        self.bytes() + self.0.forwarded.get().map_or(0, |forwarded| forwarded.get())
    }

    /// Whether the upload waits for a client whose rate is enforced. If the rate is not enforced, it is unknown which
    /// side waits.
    pub fn is_waiting_for_client(&self) -> bool {
        self.0.awaited.get() && !self.is_over() && !self.0.unlimited_rate.get()
    }

    /// Returns the kind of the failure that ended the upload; `None` if the endpoint or the end of the connection ended
    /// it.
    pub fn failure_kind(&self) -> Option<FailureKind> {
        self.0.fault.get().map(|fault| fault.kind)
    }

    /// Returns the failure that ended the upload, with the limit that was met and the status for the client; `None` if
    /// there was none.
    pub fn fault(&self) -> Option<UploadFault> {
        self.0.fault.get()
    }

    /// Whether no exchange reads the rest of the content. Content in chunks may be complete nevertheless.
    pub fn is_unread(&self) -> bool {
        self.0.unread.get()
    }

    /// Whether the client disconnected before the end of the content.
    pub fn is_abandoned(&self) -> bool {
        self.0.abandoned.get()
    }

    /// Waits until no exchange reads the content any more; `None` if nothing is left of it.
    pub fn poll_rest(&self, cx: &Context<'_>) -> Poll<Option<Incoming>> {
        let Some(rest) = &self.0.rest else { return Poll::Ready(None) };
        if !rest.is_left.get() {
            rest.task.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        Poll::Ready(rest.content.take())
    }

    /// Returns the content that no exchange reads any more; `None` if nothing is left of it, or an exchange still reads.
    pub fn take_rest(&self) -> Option<Incoming> {
        self.0.rest.as_ref()?.content.take()
    }

    /// Reads what has arrived while the reader of the content takes nothing, if there is room: content that nothing reads
    /// fills the window of the connection, and all its streams stand still (RFC 9113 §5.2). Only the task of the
    /// client's stream may call it.
    pub fn read_ahead(&self, cx: &mut Context<'_>) {
        if let Some(window) = &self.0.window {
            self.0.source.borrow_mut().read_ahead(window, cx);
        }
    }

    /// Records that an attempt has failed, whose endpoint reads the content no longer.
    pub fn lose_reader(&self) {
        self.0.source.borrow_mut().is_awaited = false;
    }

    fn leave(&self, content: Incoming) {
        self.0.unread.set(!content.is_end_stream());
        let Some(rest) = &self.0.rest else { return };
        rest.is_left.set(true);
        rest.content.set(Some(content).filter(|content| !content.is_end_stream()));
        if let Some(task) = rest.task.take() {
            task.wake();
        }
    }

    /// Waits until the endpoint has read the earlier content.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.backlog.as_ref().map_or(Poll::Ready(()), |backlog| backlog.poll_room(cx))
    }

    /// Counts the data of a frame as held until the endpoint has read it.
    pub fn hold_frame(
        &self,
        frame: Poll<Option<Result<Frame<Bytes>, BodyError>>>,
    ) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(|content| self.hold(content)))))
    }

    /// Records why the content ends.
    pub fn set_fault(&self, fault: UploadFault) {
        self.0.fault.set(Some(fault));
    }

    fn hold(&self, content: Bytes) -> Piece {
        match &self.0.backlog {
            Some(backlog) => backlog.hold(content),
            None => content.into(),
        }
    }

    fn fail(&self, kind: FailureKind, limit: Option<&'static str>, why: &'static str) -> BodyError {
        self.0.fault.set(Some(UploadFault { cause: Some(why), limit, ..UploadFault::new(kind) }));
        why.into()
    }
}

// === Rest ===

impl IdleTime {
    /// A rest that begins now.
    pub fn new(upload: &UploadProgress) -> Self {
        IdleTime { bytes: upload.bytes(), rested: Duration::ZERO, was_open: !upload.is_received() }
    }

    /// Returns the remaining time for which an endpoint that has sent nothing for `pause` may stay idle, at most `max`
    /// in all; `None` if it has none. After the end of the request's content, it has one more pause.
    pub fn longer(&mut self, upload: &UploadProgress, pause: Duration, max: Duration) -> Option<Duration> {
        let is_open = !upload.is_received();
        let was_open = std::mem::replace(&mut self.was_open, is_open);
        if upload.bytes() != self.bytes {
            (self.bytes, self.rested) = (upload.bytes(), Duration::ZERO);
        }
        self.rested += pause;
        let left = max.saturating_sub(self.rested).min(pause);
        ((is_open || was_open) && !left.is_zero()).then_some(left)
    }
}

// === ClientContent ===

impl ClientContent {
    pub fn new(incoming: Incoming, upload: UploadProgress) -> Self {
        upload.0.source.borrow_mut().incoming = Some(incoming);
        ClientContent { upload }
    }

    /// Reads the first frames if they have arrived, so that the end of empty and of short content is known. Content may end
    /// with an empty frame. An HTTP/1 endpoint learns in no other way that there is no content, and the method may
    /// define no content.
    pub fn peek(&mut self) {
        self.source().borrow_mut().peek();
    }

    /// Reads what has arrived before the exchange wants it, up to `max` bytes, if the connection has other streams: content
    /// that nothing reads fills the window of the connection, and all its streams stand still (RFC 9113 §5.2).
    pub fn read_early(&mut self, space: &Rc<BufferSpace>, max: u64, cx: &mut Context<'_>) {
        if let Some(window) = &self.upload.0.window {
            self.source().borrow_mut().read_early(space, max, window, cx);
        }
    }

    fn source(&self) -> &RefCell<ContentSource> {
        &self.upload.0.source
    }
}

impl Drop for ClientContent {
    fn drop(&mut self) {
        let source = self.source().take();
        if let Some(incoming) = source.incoming {
            self.upload.leave(incoming);
        }
    }
}

impl Body for ClientContent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut source = self.source().borrow_mut();
        let polled = source.poll_frame(cx);
        // The reader may wait for something else from now on. If it is another task, the stream's has to read ahead.
        if !source.is_awaited
            && let Some(task) = source.task.take_if(|task| !task.will_wake(cx.waker()))
        {
            task.wake();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source().borrow();
        source.first.is_empty()
            && source.early.as_ref().is_none_or(|early| early.0.is_taken())
            && source.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.source().borrow();
        if let Some(left) = source.bytes_left() {
            return SizeHint::with_exact(left);
        }
        let rest = source.incoming.as_ref().map(Incoming::size_hint).unwrap_or_default();
        source.early.as_ref().map_or(rest, |early| longer(rest, early.0.bytes()))
    }
}

impl ContentSource {
    fn peek(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while let Some(incoming) = &mut self.incoming
            && !incoming.is_end_stream()
            && self.first.len() < PEEKED_FRAMES
            && let Poll::Ready(Some(frame)) = Pin::new(incoming).poll_frame(&mut cx)
        {
            let is_empty = frame.as_ref().is_ok_and(|frame| frame.data_ref().is_some_and(Bytes::is_empty));
            if !is_empty {
                self.first.push(frame);
            }
        }
    }

    /// Returns the number of bytes that are left of content of which all has arrived; `None` if more may come, or if
    /// trailers or an error do.
    fn bytes_left(&self) -> Option<u64> {
        let has_ended = match self.early.as_ref().and_then(|early| early.0.end()) {
            Some(end) => matches!(end, ContentEnd::Whole),
            None => self.incoming.as_ref().is_some_and(Incoming::is_end_stream),
        };
        if !has_ended {
            return None;
        }
        let data = |frame: &Result<Frame<Bytes>, hyper::Error>| Some(frame.as_ref().ok()?.data_ref()?.len() as u64);
        let first = self.first.iter().map(data).sum::<Option<u64>>()?;
        Some(first + self.early.as_ref().map_or(0, |early| early.0.bytes()))
    }

    fn read_ahead(&mut self, window: &Rc<SharedWindow>, cx: &mut Context<'_>) {
        if self.incoming.is_none() {
            return;
        }
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
        if let Some((space, max)) = self.ahead.clone().filter(|_| !self.is_awaited) {
            self.read_early(&space, max, window, cx);
        }
    }

    fn read_early(&mut self, space: &Rc<BufferSpace>, max: u64, window: &Rc<SharedWindow>, cx: &mut Context<'_>) {
        let Some(incoming) = &mut self.incoming else { return };
        if self.early.is_none() && incoming.is_end_stream() {
            return;
        }
        self.is_awaited = false;
        let begin = || Box::new((EarlyContent::new(space, max, &window.waiting), EarlyShare::new(window)));
        let (early, share) = &mut **self.early.get_or_insert_with(begin);
        let has_room = share.has_room(space.connection_share()) && early.read(incoming, cx);
        share.set(early.bytes());
        self.unread = if has_room { None } else { self.unread.take().or_else(|| Some(window.leave_unread())) };
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.is_awaited = false;
        if !self.first.is_empty() {
            return Poll::Ready(Some(self.first.remove(0).map_err(Into::into)));
        }
        if let Some(early) = &mut self.early {
            let (early, share) = &mut **early;
            let frame = ready!(early.poll_frame(cx));
            share.set(early.bytes());
            if frame.is_some() || early.end().is_some() {
                return Poll::Ready(frame);
            }
        }
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let polled = Pin::new(incoming).poll_frame(cx).map_err(Into::into);
        self.is_awaited = polled.is_pending();
        if self.is_awaited {
            self.unread = None;
        }
        polled
    }
}

// === Receiving ===

impl ClientBody {
    pub fn new(content: ClientContent, limits: UploadLimits, space: Rc<BufferSpace>, deadline: Deadline) -> Self {
        let upload = content.upload.clone();
        let window = upload.0.window.clone();
        // One byte more shows that the content is too long.
        content.source().borrow_mut().ahead = window.as_ref().map(|_| (space.clone(), limits.max.saturating_add(1)));
        let pace = UploadRate { deadline, window, since: None, waited: Duration::ZERO, bytes: 0 };
        ClientBody { content, space, upload, limits, pace }
    }

    /// Returns the error of the exchange for an error of the content.
    pub fn failure(&self, cause: String) -> Error {
        match self.upload.fault() {
            Some(fault) => fault.error(cause),
            None => Error::new(FailureKind::RequestError, cause),
        }
    }
}

impl ReadEarly for ClientBody {
    fn read_early(&mut self, cx: &mut Context<'_>) {
        // One byte more shows that the content is too long.
        let left = self.limits.max.saturating_sub(self.upload.bytes());
        self.content.read_early(&self.space, left.saturating_add(1), cx);
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        self.upload.end();
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let ClientBody { content, upload, limits, pace, .. } = &mut *self;
        let polled = Pin::new(&mut *content).poll_frame(cx);
        // What was read early may still be in a file.
        let is_awaited = content.source().borrow().is_awaited;
        upload.0.awaited.set(is_awaited);
        let frame = match polled {
            Poll::Pending if !is_awaited => return Poll::Pending,
            Poll::Pending => {
                let met = if upload.0.unlimited_rate.get() { None } else { pace.exceeded_limit(limits, cx) };
                let Some(limit) = met else { return Poll::Pending };
                let why = "the client's content is too slow";
                return Poll::Ready(Some(Err(upload.fail(FailureKind::RequestTimeout, Some(limit), why))));
            }
            Poll::Ready(frame) => frame,
        };
        upload.0.received.set(frame.is_none() || content.is_end_stream());
        let length = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len) as u64;
        pace.took(length);
        upload.0.bytes.set(upload.0.bytes.get() + length);
        if upload.bytes() > limits.max {
            let why = "the content is longer than its limit";
            return Poll::Ready(Some(Err(upload.fail(FailureKind::RequestBodySize, Some("max-body"), why))));
        }
        if frame.is_none() && limits.knows_end && !content.is_end_stream() {
            upload.0.abandoned.set(true);
            return Poll::Ready(Some(Err(upload.fail(
                FailureKind::RequestError,
                None,
                "the client gave up within its content",
            ))));
        }
        if let Some(Err(error)) = &frame
            && let Some(error) = error.downcast_ref::<hyper::Error>()
            && !error.is_incomplete_message()
            && !error.is_closed()
        {
            upload
                .0
                .fault
                .set(Some(UploadFault { cause: met_limit(error), ..UploadFault::new(FailureKind::RequestError) }));
            upload.0.abandoned.set(is_departure(error));
        }
        let forwarded = |frame| hop_by_hop::request_frame(frame, &limits.names, &limits.edited);
        Poll::Ready(frame.map(|frame| frame.map(forwarded)))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

/// Returns the cause of an error of content that met a limit of hyper; `None` for other errors.
fn met_limit(error: &hyper::Error) -> Option<&'static str> {
    match cause::<std::io::Error>(error)?.to_string().as_str() {
        "chunk trailers bytes over limit" => Some("the trailers of the request are longer than 16 KiB"),
        "chunk trailers count overflow" => Some("the request has more trailers than fields are accepted"),
        "chunk extensions over limit" => Some("the chunk extensions of the request are longer than 16 KiB"),
        _ => None,
    }
}

/// Whether an error of content means that the client has disconnected or has reset its stream, rather than that it
/// broke a rule.
fn is_departure(error: &hyper::Error) -> bool {
    let io = || cause::<std::io::Error>(error).map(std::io::Error::kind);
    let reset = || cause::<h2::Error>(error).is_some_and(|error| error.is_remote() || error.is_io());
    matches!(
        io(),
        Some(
            ErrorKind::UnexpectedEof
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
        )
    ) || reset()
}

/// Returns the source of an error, if it is of this type.
fn cause<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    std::error::Error::source(error)?.downcast_ref()
}

// === Pace ===

impl UploadRate {
    fn took(&mut self, bytes: u64) {
        if self.since.is_some() {
            let pause = self.pause();
            self.waited += pause;
        }
        self.since = None;
        self.bytes += bytes;
        self.deadline.clear();
    }

    /// Returns the time for which the endpoint has waited for the client. In time in which uploads that are not read shut the
    /// window, the client may send nothing.
    fn pause(&mut self) -> Duration {
        let now = self.deadline.clock().now();
        let shut = self.window.as_ref().map_or(Duration::ZERO, |window| window.time_shut());
        let (since, before) = *self.since.get_or_insert((now, shut));
        now.saturating_duration_since(since).saturating_sub(shut.saturating_sub(before))
    }

    /// For content that is pending: the limit that the client has met.
    fn exceeded_limit(&mut self, limits: &UploadLimits, cx: &Context<'_>) -> Option<&'static str> {
        let pause = self.pause();
        if self.waited + pause >= WINDOW {
            if self.bytes < limits.rate.saturating_mul(WINDOW.as_secs()) {
                return Some("limits.body-rate");
            }
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        let left = limits.pause.saturating_sub(pause);
        self.deadline.set(left.min(WINDOW.saturating_sub(self.waited + pause)));
        self.deadline.watch(cx);
        left.is_zero().then_some("limits.body-timeout")
    }
}

// === RequestBody ===

impl RequestBody {
    /// Grants `bytes` bytes to be kept for another attempt. Returns `false` if the client's connection holds too many.
    pub fn grant_copy(&self, bytes: usize) -> bool {
        let upload = match self {
            RequestBody::Incoming(body) => &body.upload,
            RequestBody::Stream(_, Some(upload)) => upload,
            RequestBody::Stream(_, None) | RequestBody::Whole(_) | RequestBody::Collected(_) | RequestBody::Empty => {
                return true;
            }
        };
        upload.0.backlog.as_ref().is_none_or(|backlog| backlog.grant_copy(bytes))
    }

    /// Gives back all bytes that were granted for copies.
    pub fn release_copies(&self) {
        let upload = match self {
            RequestBody::Incoming(body) => &body.upload,
            RequestBody::Stream(_, Some(upload)) => upload,
            _ => return,
        };
        upload.0.backlog.iter().for_each(|backlog| backlog.release_copies());
    }
}

impl Body for RequestBody {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        match &mut *self {
            RequestBody::Incoming(body) => {
                ready!(body.upload.poll_room(cx));
                let frame = Pin::new(&mut **body).poll_frame(cx);
                body.upload.hold_frame(frame)
            }
            RequestBody::Stream(body, _) => body.as_mut().poll_frame(cx),
            RequestBody::Whole(content) if content.is_empty() => Poll::Ready(None),
            RequestBody::Whole(content) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(content).into())))),
            RequestBody::Collected(body) => Pin::new(&mut **body).poll_frame(cx),
            RequestBody::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Incoming(body) => body.is_end_stream(),
            RequestBody::Stream(body, _) => body.is_end_stream(),
            RequestBody::Whole(content) => content.is_empty(),
            RequestBody::Collected(body) => body.is_end_stream(),
            RequestBody::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Incoming(body) => body.size_hint(),
            RequestBody::Stream(body, _) => body.size_hint(),
            RequestBody::Whole(content) => SizeHint::with_exact(content.len() as u64),
            RequestBody::Collected(body) => body.size_hint(),
            RequestBody::Empty => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_rests_while_it_is_open_both_ways_and_one_pause_longer() {
        let (second, max) = (Duration::from_secs(1), Duration::from_millis(2500));
        let upload = UploadProgress::default();
        let mut rest = IdleTime::new(&upload);
        let mut longer = |upload: &UploadProgress| rest.longer(upload, second, max);
        assert_eq!((longer(&upload), longer(&upload)), (Some(second), Some(second / 2)));
        upload.0.bytes.set(9);
        assert_eq!(longer(&upload), Some(second), "the client has sent something");
        upload.end();
        assert_eq!((longer(&upload), longer(&upload)), (Some(second / 2), None));
        assert_eq!(IdleTime::new(&UploadProgress::over()).longer(&UploadProgress::over(), second, max), None);
        let mut short = IdleTime::new(&UploadProgress::default());
        assert_eq!(short.longer(&UploadProgress::default(), second, second / 2), None, "never shorter than a pause");
    }
}
