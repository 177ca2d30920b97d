//! The content of an endpoint's response, with the connection that it is read from.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use tokio::task::coop::poll_proceed;

use crate::body::BodyError;
use crate::body::buffer_space::BufferSpace;
use crate::body::content_end::ContentEnd;
use crate::body::spool::{Overflow, Room, Spool};
use crate::body::upload::{IdleTime, UploadProgress};
use crate::error::{Error, FailureKind};
use crate::net::deadline::Deadline;
use crate::net::waiting_bytes::WaitingBytes;
use crate::protocol::hop_by_hop;
use crate::system::supervise::{Task, spawn};
use crate::upstream::ConnectionSettings;
use crate::upstream::connection::{Connection, EndpointBody};
use crate::upstream::endpoint_view::InFlightGuard;
use crate::upstream::health::EndpointFailure;

/// The body of an endpoint's response, as the client reads it.
pub struct UpstreamBody(Rc<RefCell<UpstreamReading>>);

/// A handle by which the task of a client connection reads an endpoint's response ahead of a slow client. It does nothing
/// once the body is dropped.
#[derive(Clone, Default)]
pub struct ReadAhead(Weak<RefCell<UpstreamReading>>);

/// The rules for reading a response ahead of its client.
pub struct ReadAheadRules {
    pub space: Rc<BufferSpace>,
    /// The bytes that wait in memory for the client, in all its responses.
    pub client: Arc<WaitingBytes>,
    /// The maximum number of bytes that wait for the client.
    pub max: u64,
}

/// The reading of a response: directly to the client while it takes all that arrives, otherwise ahead of it.
struct UpstreamReading {
    content: EndpointBody,
    /// The lease; `None` once the body is over, or has failed.
    lease: Option<ConnectionLease>,
    rest: IdleTime,
    /// The length of the client's next pieces, in bytes.
    piece: usize,
    /// Whether the client waits for more.
    is_awaited: bool,
    /// Whether the client has read a piece since the last check.
    is_taking: bool,
    /// The rules; `None` if the endpoint waits for the client.
    rules: Option<ReadAheadRules>,
    /// The content that was read and waits for the client; `None` if nothing waits.
    ahead: Option<Box<ReadContent>>,
}

/// Content that was read and waits for the client.
struct ReadContent {
    spool: Spool,
    /// The end behind the content that waits; `None` while the endpoint has not sent all.
    end: Option<ContentEnd>,
}

/// The use of a connection until the body of a response is over.
pub struct ConnectionLease {
    pub connection: Box<Connection>,
    /// The guard that counts the exchange as in flight at its endpoint.
    pub in_flight_guard: InFlightGuard,
    /// Whether a complete response counts as a success of the endpoint; some statuses count as failures.
    pub is_good: bool,
    pub rules: Rc<ConnectionSettings>,
    /// The deadline for the next piece.
    pub step: Deadline,
    /// The progress of the request's content, which may be unfinished.
    pub upload: UploadProgress,
}

/// The bytes that are read from an endpoint at once, unless the client's connection bounds them otherwise. Each client
/// with HTTP/1 that reads nothing holds two or three pieces of this size, while pieces of a quarter took twice the CPU
/// time for content of 1 MiB.
const READ: usize = 128 << 10;

/// The length of pieces up to which they are copied for a client whose content is read ahead.
const SHORT_PIECE: usize = 16 << 10;

/// The maximum number of bytes that are read of a body that no client gets, so that its connection can be used again.
/// The bodies of error pages fit; a longer body costs more than a new connection.
const DISCARD_BYTES: u64 = 64 << 10;
/// The maximum time for reading a body that no client gets.
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// The number of reads ahead of a client before other tasks get their turn.
const READS_AT_ONCE: usize = 2;

impl ConnectionLease {
    /// Whether the endpoint has paused too long. While the client's content is unfinished too, both sides may rest.
    fn is_late(&self, rest: &mut IdleTime, cx: &Context<'_>) -> bool {
        let ConnectionSettings { read_timeout, stream_timeout, .. } = *self.rules;
        if !self.step.is_late(read_timeout, cx) {
            return false;
        }
        let more = rest.longer(&self.upload, read_timeout, stream_timeout);
        more.inspect(|more| self.step.set(*more)).is_none()
    }

    /// Records a failure of the endpoint, because it did not send the whole response.
    fn broken(&self) {
        self.in_flight_guard.endpoint_view().record_failure(
            EndpointFailure::Exchange,
            Duration::ZERO,
            self.step.clock().now(),
        );
    }
}

impl UpstreamBody {
    pub fn new(content: EndpointBody, lease: ConnectionLease) -> Self {
        let rest = IdleTime::new(&lease.upload);
        UpstreamBody(Rc::new(RefCell::new(UpstreamReading {
            content,
            lease: Some(lease),
            rest,
            piece: READ,
            // A client whose window is shut asks for nothing.
            is_awaited: false,
            is_taking: true,
            rules: None,
            ahead: None,
        })))
    }

    /// Limits the length of the next pieces, in bytes.
    pub fn limit_reads(&self, bytes: usize) {
        self.0.borrow_mut().piece = bytes;
    }

    /// Allows the response to be read ahead of a slow client.
    pub fn allow_read_ahead(&self, rules: ReadAheadRules) {
        let reading = &mut *self.0.borrow_mut();
        if !reading.content.is_end_stream() {
            reading.rules = Some(rules);
        }
    }

    /// Reads the rest of a body that no client gets, on a task of its own: an HTTP/1 connection can then serve other
    /// requests. A long or slow body is not worth that, and closes its connection.
    pub fn discard(mut self) {
        if self.is_end_stream() || self.size_hint().lower() > DISCARD_BYTES {
            return;
        }
        let mut reading = self.0.borrow_mut();
        let Some(lease) = reading.lease.as_mut().filter(|lease| lease.connection.version() != Version::HTTP_2) else {
            return;
        };
        // The exchange ends before, and takes its deadlines with it.
        let [step, total] = lease.step.clock().deadlines();
        (lease.step, lease.upload) = (step, UploadProgress::over());
        drop(reading);
        let mut left = DISCARD_BYTES;
        let reading = poll_fn(move |cx| {
            while let Some(Ok(frame)) = ready!(Pin::new(&mut self).poll_frame(cx)) {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                match left.checked_sub(length) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
            Poll::Ready(())
        });
        spawn(Task::UpstreamConnection, async move { drop(total.limit(DISCARD_TIME, reading).await) });
    }

    /// Returns the handle by which the response is read ahead.
    pub fn read_ahead(&self) -> ReadAhead {
        ReadAhead(Rc::downgrade(&self.0))
    }
}

impl ReadAhead {
    /// Reads ahead from the endpoint if the client does not read the bytes that wait. The task of the client's
    /// connection calls this each time that it has nothing else to do.
    pub fn drive(&self, cx: &mut Context<'_>) {
        if let Some(reading) = self.0.upgrade() {
            reading.borrow_mut().read_ahead(cx);
        }
    }
}

impl UpstreamReading {
    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        let Some(rules) = self.rules.as_ref().filter(|_| !self.is_awaited) else { return };
        if self.lease.is_none() && self.ahead.is_none() {
            return;
        }
        // The client's own task may not have had its turn yet.
        if std::mem::take(&mut self.is_taking) && self.ahead.is_none() {
            return cx.waker().wake_by_ref();
        }
        let mut ahead = self.ahead.take().unwrap_or_else(|| {
            let spool = Spool::new(&rules.space, rules.max, Overflow::File).for_client(&rules.client);
            Box::new(ReadContent { spool, end: None })
        });
        let mut reads = 0;
        while ahead.end.is_none() {
            if ahead.spool.room(READ, cx) != Room::Free {
                // The endpoint waits for the client from now on, perhaps for long.
                self.lease.iter().for_each(|lease| lease.connection.release_read_buffer());
                break;
            }
            if reads == READS_AT_ONCE {
                // Others get their turn, and above all the client.
                cx.waker().wake_by_ref();
                break;
            }
            reads += 1;
            match self.poll_endpoint(READ, cx) {
                Poll::Pending => break,
                Poll::Ready(frame) => ahead.put(frame),
            }
            if ahead.end.is_none() && self.content.is_end_stream() {
                ahead.end = Some(ContentEnd::Whole);
            }
        }
        if let Some(end) = &ahead.end {
            ahead.spool.finish();
            match end {
                ContentEnd::Failed(_) => drop(self.lease.take()),
                ContentEnd::Whole | ContentEnd::Trailers(_) => self.end(),
            }
        }
        // A write to a file may be under way.
        let _ = ahead.spool.poll_settled(cx);
        self.ahead = Some(ahead);
    }

    /// Returns the next frame for the client.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(ahead) = &mut self.ahead {
            match ready!(ahead.spool.poll_next(cx)) {
                Some(Ok(mut piece)) => {
                    if piece.len() > self.piece {
                        ahead.spool.put_back(piece.split_off(self.piece));
                        if self.piece <= SHORT_PIECE {
                            // A slow client would hold all of the memory that a short piece is a part of.
                            piece = Bytes::copy_from_slice(&piece);
                        }
                    }
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Some(Err(error)) => {
                    let lost = Error::new(FailureKind::InternalError, error).with_limit("buffers.folder");
                    return Poll::Ready(Some(Err(lost.into())));
                }
                None => {}
            }
            if let Some(end) = self.ahead.take().and_then(|ahead| ahead.end) {
                return Poll::Ready(end.into_frame());
            }
        }
        self.poll_endpoint(self.piece, cx)
    }

    /// Reads the next frame of the endpoint.
    fn poll_endpoint(&mut self, piece: usize, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let UpstreamReading { content, lease, rest, .. } = self;
        let Some(lease) = lease else { return Poll::Ready(None) };
        lease.connection.limit_reads(Some(piece));
        // A read may bring thousands of frames. Each counts as something that the task did, so that its worker comes to others.
        let turn = ready!(poll_proceed(cx));
        let frame = match lease.connection.poll_frame(cx, content) {
            Poll::Pending if lease.is_late(rest, cx) => {
                lease.broken();
                let paused =
                    Error::new(FailureKind::ResponseTimeout, "the endpoint paused too long").with_limit("read-timeout");
                return Poll::Ready(Some(Err(paused.into())));
            }
            Poll::Pending => return Poll::Pending,
            Poll::Ready(frame) => frame,
        };
        turn.made_progress();
        lease.step.clear();
        *rest = IdleTime::new(&lease.upload);
        match &frame {
            // No reader polls again after trailers.
            Some(Ok(last)) if last.is_trailers() => self.end(),
            Some(Ok(_)) => {}
            Some(Err(_)) => lease.broken(),
            // A stream of HTTP/2 that was reset without an error just ends for hyper: that is also how an endpoint waves
            // off the rest of a request (RFC 9113 §8.1), but then its response has ended before.
            None if lease.connection.version() == Version::HTTP_2 && !content.is_end_stream() => {
                lease.broken();
                let short = Error::new(FailureKind::ConnectionTerminated, "the endpoint gave up within its response");
                return Poll::Ready(Some(Err(short.into())));
            }
            None => self.end(),
        }
        Poll::Ready(frame.map(|frame| frame.map(hop_by_hop::frame)))
    }

    /// Releases the connection for other exchanges, because the body was read to its end.
    fn end(&mut self) {
        if let Some(ConnectionLease { connection, in_flight_guard, is_good, rules, step, upload }) = self.lease.take() {
            let now = step.clock().now();
            if is_good {
                in_flight_guard.endpoint_view().record_success(now);
            }
            connection.limit_reads(None);
            // The rest of an upload over HTTP/2 would share its window with the next one.
            if connection.version() != Version::HTTP_2 || upload.is_received() {
                in_flight_guard.endpoint_view().pool.put_back(connection, &rules, now);
            }
        }
    }
}

impl ReadContent {
    /// Appends a frame of the endpoint to the frames that wait.
    fn put(&mut self, frame: Option<Result<Frame<Bytes>, BodyError>>) {
        self.end = match frame {
            None => Some(ContentEnd::Whole),
            Some(Err(error)) => Some(ContentEnd::Failed(error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(piece) => {
                    self.spool.push(piece);
                    None
                }
                Err(frame) => frame.into_trailers().ok().map(ContentEnd::Trailers),
            },
        };
    }
}

impl Drop for UpstreamReading {
    fn drop(&mut self) {
        if self.content.is_end_stream() {
            self.end();
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let reading = &mut *self.0.borrow_mut();
        let frame = reading.poll_next(cx);
        reading.is_awaited = frame.is_pending();
        reading.is_taking = frame.is_ready();
        frame
    }

    fn is_end_stream(&self) -> bool {
        let reading = self.0.borrow();
        match &reading.ahead {
            Some(ahead) => ahead.spool.bytes() == 0 && matches!(ahead.end, Some(ContentEnd::Whole)),
            None => reading.content.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let reading = self.0.borrow();
        let (mut hint, ahead) =
            (reading.content.size_hint(), reading.ahead.as_ref().map_or(0, |ahead| ahead.spool.bytes()));
        if let (Some(upper), true) = (hint.upper(), ahead > 0) {
            hint.set_upper(upper.saturating_add(ahead));
            hint.set_lower(hint.lower().saturating_add(ahead));
        }
        hint
    }
}
