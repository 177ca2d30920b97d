//! HTTP/1.1 to an endpoint: a socket, the bytes that were read from it, and those that are to be written. The exchange
//! that uses the connection polls it: there is no task and no channel. If the response has begun before the request is
//! all sent, a task sends the rest of the request, since the client may read nothing before it has sent everything.

pub mod body_length;
pub mod head_search;
pub mod request_head;
pub mod response_body;
pub mod response_head;
pub mod upload;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Response, StatusCode};
use http_body::Frame;
use tokio::io::ReadBuf;
use tokio::task::JoinHandle;
use tokio_util::io::poll_read_buf;

use super::client_hold::ClientHold;
use super::connection_limit::ConnectionPermit;
use super::request_head::RequestHead;
use super::response_head_limits::ResponseHeadLimits;
use super::socket::EndpointTransport;
use crate::body::backlog::SHORT;
use crate::body::upload::RequestBody;
use crate::context::informational::InformationalQueue;
use crate::system::supervise::{Panicked, Task, spawn};
use head_search::HeadSearch;
use response_body::{DecodeError, ResponseBodyDecoder};
use response_head::{HeadError, ResponseHead};
use upload::{Upload, UploadError};

/// A connection to an endpoint.
pub struct Http1 {
    /// The socket and its buffers, shared with the task that sends the rest of a request.
    wire: Rc<RefCell<Wire>>,
    limits: ResponseHeadLimits,
    /// The bound of a single read, in bytes.
    piece: Cell<usize>,
    phase: Phase,
    /// The task that sends the rest of the request; `None` while the exchange sends.
    sending: Option<SendingTask>,
}

/// The task that sends the rest of a request, until dropped.
struct SendingTask {
    task: JoinHandle<Result<(), Panicked>>,
    /// The longest time in which nothing is sent, once the response is over.
    pause: Duration,
}

/// A connection whose endpoint has switched protocols: a stream of bytes.
pub struct Stream {
    /// The permit of the connection.
    pub permit: ConnectionPermit,
    /// The parts of the client that the connection counts for.
    pub held: Option<ClientHold>,
    pub transport: Box<dyn EndpointTransport>,
    /// The bytes behind the head of the response.
    pub ahead: Bytes,
}

/// The state of a connection between requests, and within an exchange.
enum Phase {
    /// No request is under way. `was_used` is whether there was one before.
    Idle { was_used: bool },
    /// A request is sent, and the response has not begun.
    Waiting(Waiting),
    /// The body of a response is read. Whether the connection may serve another request afterwards.
    Body { is_persistent: bool },
    /// The connection can serve no request any more.
    Over,
}

/// A request whose response has not begun.
struct Waiting {
    method: Method,
    search: HeadSearch,
    /// The bytes that informational responses may still have.
    informational_bytes: usize,
    /// The queue for the informational responses; `None` if they are dropped.
    informational: Option<Arc<InformationalQueue>>,
    /// Whether the connection has served another request, and so may have been closed since.
    was_used: bool,
    /// The content while no byte of the request is sent; `None` afterwards.
    content: Option<RequestBody>,
}

/// A socket with its buffers.
struct Wire {
    transport: Box<dyn EndpointTransport>,
    /// The permit of the connection.
    permit: ConnectionPermit,
    /// The parts of the client that the connection counts for; `None` while it is idle.
    held: Option<ClientHold>,
    /// The bytes that were read and are not parsed yet.
    read: BytesMut,
    /// The room that is made for the next reads, in bytes.
    room: usize,
    upload: Upload,
    /// The waker of the response's reader, for an upload that fails in its own task.
    reader: Waker,
    /// The failure of an upload that has its own task.
    failed: Option<UploadError>,
}

/// The reason why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum Http1Error {
    /// The endpoint closed the connection before a byte of the response.
    #[error("the endpoint closed the connection before it responded")]
    Closed(#[source] Option<io::Error>),
    #[error("the endpoint closed the connection within the head of its response")]
    Incomplete,
    #[error(transparent)]
    Io(io::Error),
    #[error(transparent)]
    Head(HeadError),
    #[error("more than {0} bytes of informational responses before a response")]
    Informational(usize),
    /// The request's content failed.
    #[error(transparent)]
    Upload(UploadError),
}

/// A request without a response.
pub struct Http1Failure {
    pub error: Http1Error,
    /// The content, if no byte of the request was written.
    pub content: Option<RequestBody>,
}

/// The reason for which a body ends early.
#[derive(Debug, thiserror::Error)]
pub enum Http1BodyError {
    #[error(transparent)]
    Decode(DecodeError),
    #[error("the connection to the endpoint failed within its response")]
    Io(#[source] io::Error),
    #[error(transparent)]
    Upload(UploadError),
}

/// The bound of a read before anything is known of the client.
const FIRST_PIECE: usize = SHORT - 1;

/// The room that is worth a read, in bytes.
const MIN_ROOM: usize = 1 << 10;

impl Http1 {
    /// Returns a connection over a transport.
    pub fn new(transport: impl EndpointTransport, limits: ResponseHeadLimits, permit: ConnectionPermit) -> Self {
        let wire = Wire {
            transport: Box::new(transport),
            permit,
            held: None,
            read: BytesMut::new(),
            room: FIRST_PIECE,
            upload: Upload::default(),
            reader: Waker::noop().clone(),
            failed: None,
        };
        let (wire, piece) = (Rc::new(RefCell::new(wire)), Cell::new(FIRST_PIECE));
        Http1 { wire, limits, piece, phase: Phase::Idle { was_used: false }, sending: None }
    }

    /// Begins a request; the response is polled for by [`Http1::poll_response`].
    pub fn begin(
        &mut self,
        head: &RequestHead<'_>,
        content: RequestBody,
        informational: Option<Arc<InformationalQueue>>,
    ) {
        self.wire.borrow_mut().upload.write_head(head);
        let was_used = matches!(self.phase, Phase::Idle { was_used: true });
        self.phase = Phase::Waiting(Waiting {
            method: head.method.clone(),
            search: HeadSearch::default(),
            informational_bytes: self.limits.bytes,
            informational,
            was_used,
            content: Some(content),
        });
    }

    /// Sends the request, and waits for the head of its response.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResponseBodyDecoder>, Http1Failure>> {
        let Phase::Waiting(waiting) = &mut self.phase else {
            return Poll::Ready(Err(Http1Error::Closed(None).into()));
        };
        let polled = ready!(waiting.poll(&mut self.wire.borrow_mut(), self.limits, self.piece.get(), cx));
        let head = match polled {
            Ok(head) => head,
            Err(error) => {
                let content = waiting.content.take();
                self.phase = Phase::Over;
                return Poll::Ready(Err(Http1Failure { error, content }));
            }
        };
        let is_persistent = head.is_persistent && head.response.status() != StatusCode::SWITCHING_PROTOCOLS;
        let body = ResponseBodyDecoder::new(head.length, self.limits);
        self.phase = Phase::Body { is_persistent };
        if body.is_over() {
            self.end();
        }
        Poll::Ready(Ok(head.response.map(|()| body)))
    }

    /// Returns the next frame of a body; `None` at its end.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut ResponseBodyDecoder,
    ) -> Poll<Option<Result<Frame<Bytes>, Http1BodyError>>> {
        let polled = ready!(self.wire.borrow_mut().poll_frame(cx, body, self.piece.get()));
        match &polled {
            Some(Ok(_)) if !body.is_over() => {}
            Some(Ok(_)) | None => self.end(),
            Some(Err(_)) => self.phase = Phase::Over,
        }
        Poll::Ready(polled)
    }

    /// Whether the request is not all sent.
    pub fn is_uploading(&self) -> bool {
        !self.wire.borrow().upload.is_over()
    }

    /// Counts the connection for a client, unless it is counted.
    pub fn hold(&self, count: impl FnOnce() -> ClientHold) {
        self.wire.borrow_mut().held.get_or_insert_with(count);
    }

    /// Counts the connection for no client any more, unless a task sends the rest of a request.
    pub fn release(&self) {
        let mut wire = self.wire.borrow_mut();
        if wire.upload.is_over() {
            wire.held = None;
        }
    }

    /// Makes a task send the rest of the request. Once the response is over, the task ends when it has sent nothing for
    /// `pause`.
    pub fn detach_upload(&mut self, pause: Duration) {
        let wire = self.wire.clone();
        let sent = poll_fn(move |cx| wire.borrow_mut().poll_upload_alone(cx));
        self.sending = Some(SendingTask { task: spawn(Task::UpstreamConnection, sent), pause });
    }

    /// Whether the connection can serve no further request, as far as is known without a check of its socket.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Whether the last exchange left the connection ready for another one.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle { .. })
    }

    /// Whether the connection is ready for a request: idle and, as far as the reactor knows, open and silent.
    pub fn is_reusable(&mut self) -> bool {
        if self.is_idle() && self.wire.borrow_mut().is_silent() {
            return true;
        }
        self.phase = Phase::Over;
        false
    }

    /// Limits the number of bytes that are read at once from now on; `None` for the limit with which new exchanges
    /// begin.
    pub fn limit_reads(&self, bytes: Option<usize>) {
        self.piece.set(bytes.unwrap_or(FIRST_PIECE));
    }

    /// Releases the memory for reading, if no bytes are in it. Its pieces then live no longer than they are used.
    pub fn release_read_buffer(&self) {
        let wire = &mut *self.wire.borrow_mut();
        if wire.read.is_empty() {
            wire.read = BytesMut::new();
        }
    }

    /// Returns the bytes of a connection whose endpoint has switched protocols; `None` while a task sends the rest of a
    /// request.
    pub fn into_stream(self) -> Option<Stream> {
        let Http1 { wire, sending, .. } = self;
        drop(sending);
        let Wire { transport, permit, held, read, .. } = Rc::into_inner(wire)?.into_inner();
        Some(Stream { permit, held, transport, ahead: read.freeze() })
    }

    /// Ends the response. The connection waits for another request if both sides are done and silent.
    fn end(&mut self) {
        let Phase::Body { is_persistent } = self.phase else { return };
        let mut wire = self.wire.borrow_mut();
        let is_done = is_persistent && wire.upload.is_over() && wire.upload.is_open() && wire.read.is_empty();
        if wire.read.is_empty() && wire.read.capacity() > SHORT {
            wire.read = BytesMut::new();
        }
        wire.room = FIRST_PIECE;
        drop(wire);
        if let Some(sending) = self.sending.take() {
            sending.finish(self.wire.clone());
        }
        self.phase = if is_done { Phase::Idle { was_used: true } } else { Phase::Over };
    }
}

impl SendingTask {
    /// Makes a task send the request to its end, because the bytes that follow an early response are still its content.
    /// No exchange waits for the task, so an endpoint or a client that pauses too long would hold the connection for
    /// ever.
    fn finish(self, wire: Rc<RefCell<Wire>>) {
        let pause = self.pause;
        if wire.borrow().upload.is_over() {
            return;
        }
        spawn(Task::UpstreamConnection, async move {
            loop {
                let before = wire.borrow().upload.sent();
                let sent = poll_fn(|cx| wire.borrow_mut().poll_upload_alone(cx));
                if tokio::time::timeout(pause, sent).await.is_ok() {
                    return;
                }
                let upload = &mut wire.borrow_mut().upload;
                if upload.sent() == before {
                    return upload.give_up();
                }
            }
        });
    }
}

impl Drop for SendingTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl From<Http1Error> for Http1Failure {
    fn from(error: Http1Error) -> Self {
        Http1Failure { error, content: None }
    }
}

impl Waiting {
    fn poll(
        &mut self,
        wire: &mut Wire,
        limits: ResponseHeadLimits,
        piece: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Http1Error>> {
        // A kept connection may have ended since, and a request that is not sent can go elsewhere.
        if self.content.is_some()
            && self.was_used
            && let Poll::Ready(read) = wire.poll_read(cx, piece)
        {
            return Poll::Ready(Err(Http1Error::Closed(read.err())));
        }
        if let Some(content) = self.content.take() {
            wire.upload.begin(content);
        }
        let Wire { upload, transport, .. } = wire;
        // What is left to be sent doesn't keep the response waiting.
        if let Poll::Ready(Err(error)) = upload.poll(cx, Pin::new(&mut **transport)) {
            return Poll::Ready(Err(Http1Error::Upload(error)));
        }
        loop {
            let before = wire.read.len();
            let taken = response_head::take(&mut wire.read, &mut self.search, limits, &self.method);
            match taken.map_err(Http1Error::Head)? {
                Some(head) if is_final(head.response.status()) => return Poll::Ready(Ok(head)),
                Some(head) => {
                    let length = before - wire.read.len();
                    let left = self.informational_bytes.checked_sub(length);
                    self.informational_bytes = left.ok_or(Http1Error::Informational(limits.bytes))?;
                    let (head, ()) = head.response.into_parts();
                    if let Some(queue) = &self.informational {
                        queue.push(head);
                    }
                }
                None => {
                    let is_silent = wire.read.is_empty();
                    match ready!(wire.poll_read(cx, piece)) {
                        Ok(0) if is_silent => return Poll::Ready(Err(Http1Error::Closed(None))),
                        Ok(0) => return Poll::Ready(Err(Http1Error::Incomplete)),
                        Ok(_) => {}
                        Err(error) if is_silent => return Poll::Ready(Err(Http1Error::Closed(Some(error)))),
                        Err(error) => return Poll::Ready(Err(Http1Error::Io(error))),
                    }
                }
            }
        }
    }
}

/// Whether a response is not followed by another one: a switch of protocols is the last of HTTP.
fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

impl Wire {
    /// Reads at most `most` bytes; returns 0 at the end. Pieces share the buffer that they were read into, so its room
    /// grows only where reads fill it: many small pieces that are kept hold no more than that.
    fn poll_read(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        let spare = |read: &BytesMut| read.capacity() - read.len();
        if spare(&self.read) < most.min(MIN_ROOM) {
            self.read.reserve(most.min(self.room));
        }
        let limit = spare(&self.read).min(most);
        let read = ready!(poll_read_buf(Pin::new(&mut *self.transport), cx, &mut (&mut self.read).limit(limit)))?;
        if read == limit {
            self.room = self.room.saturating_mul(4);
        }
        Poll::Ready(Ok(read))
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut ResponseBodyDecoder,
        piece: usize,
    ) -> Poll<Option<Result<Frame<Bytes>, Http1BodyError>>> {
        loop {
            match body.decode(&mut self.read) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if body.is_over() => return Poll::Ready(None),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(Http1BodyError::Decode(error)))),
            }
            if let Some(failed) = self.failed.take() {
                return Poll::Ready(Some(Err(Http1BodyError::Upload(failed))));
            }
            match self.poll_read(cx, body.wanted(piece)) {
                Poll::Ready(Ok(0)) => {
                    if let Err(error) = body.close() {
                        return Poll::Ready(Some(Err(Http1BodyError::Decode(error))));
                    }
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(Http1BodyError::Io(error)))),
                Poll::Pending => {
                    if !self.upload.is_over() && !self.reader.will_wake(cx.waker()) {
                        self.reader.clone_from(cx.waker());
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Sends the rest of a request, for a task that does nothing else.
    fn poll_upload_alone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Wire { upload, transport, .. } = self;
        if let Err(error) = ready!(upload.poll(cx, Pin::new(&mut **transport))) {
            self.failed = Some(error);
            self.reader.wake_by_ref();
        }
        Poll::Ready(())
    }

    /// Whether the endpoint has sent nothing and is still there.
    fn is_silent(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        let mut byte = [0];
        let mut room = ReadBuf::new(&mut byte);
        self.read.is_empty() && Pin::new(&mut *self.transport).poll_read(&mut nobody, &mut room).is_pending()
    }
}
