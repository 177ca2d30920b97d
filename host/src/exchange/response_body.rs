//! The content of a response on its way to the client.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::task::coop::poll_proceed;

use crate::body::BodyError;
use crate::body::upload::{IdleTime, UploadProgress};
use crate::error::{Error, FailureKind};
use crate::exchange::filtered_body::FilteredBody;
use crate::net::deadline::Deadline;
use crate::protocol::hop_by_hop;
use crate::static_files::file_body::FileBody;
use crate::store::stored_body::StoredBody;
use crate::system::supervise::{Task, spawn};
use crate::upstream::ConnectionSettings;
use crate::upstream::connection::{Connection, EndpointBody};
use crate::upstream::endpoint_view::InFlightGuard;
use crate::upstream::health::EndpointFailure;
use crate::upstream::http1::Stream;

/// The content of a response: the upstream's, streamed, or some that was made here.
pub enum ResponseBody {
    /// Streams, and drives the connection that it comes from.
    Upstream(Box<UpstreamBody>),
    /// Is stored, or on its way into the store.
    Stored(StoredBody),
    /// Several parts of that, with what stands between them.
    Parts(VecDeque<StoredBody>),
    /// Is read from a file.
    File(Box<FileBody>),
    /// One of these, but through plugins.
    Filtered(Box<FilteredBody<ResponseBody>>),
    /// Whole, made by the proxy or a plugin; empty once sent.
    Full(Bytes),
    /// Whole, the fixed response of a route, which plugins may transform; empty once sent.
    Fixed(Bytes),
    /// No body: after this head the connection speaks another protocol.
    Switched(Box<SwitchedProtocol>),
}

/// The far end of a tunnel.
pub struct SwitchedProtocol {
    /// The protocol, as the endpoint named it.
    pub protocol: HeaderValue,
    pub stream: Stream,
    /// Counts the tunnel as in flight at its endpoint.
    pub in_flight_guard: InFlightGuard,
}

/// A body that comes from an endpoint.
pub struct UpstreamBody {
    content: EndpointBody,
    /// The lease; `None` once the body is over.
    lease: Option<ConnectionLease>,
    rest: IdleTime,
}

/// The use of a connection until the body of a response is over.
pub struct ConnectionLease {
    pub connection: Box<Connection>,
    /// Counts the exchange as in flight at its endpoint.
    pub in_flight_guard: InFlightGuard,
    /// Whether a response that comes to its end speaks for the endpoint: some statuses speak against it.
    pub is_good: bool,
    pub rules: Rc<ConnectionSettings>,
    /// For the next piece.
    pub step: Deadline,
    /// The progress of the request's content, which may be unfinished.
    pub upload: UploadProgress,
}

/// The bytes that are read of an endpoint at once, unless the client's connection bounds them otherwise. Each client with
/// HTTP/1 that takes nothing holds two or three such pieces, while pieces of a quarter took twice the CPU time for content
/// of 1 MiB.
const READ: usize = 128 << 10;

/// The bytes of a body without a client that are read for its connection's sake: an error page, at the price of a new
/// connection.
const DISCARD_BYTES: u64 = 64 << 10;
/// The time for these.
const DISCARD_TIME: Duration = Duration::from_secs(1);

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

    /// The endpoint didn't send the whole response, which speaks against it.
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
        lease.connection.limit_reads(Some(READ));
        let rest = IdleTime::new(&lease.upload);
        UpstreamBody { content, lease: Some(lease), rest }
    }

    fn limit_reads(&self, bytes: usize) {
        if let Some(lease) = &self.lease {
            lease.connection.limit_reads(Some(bytes));
        }
    }

    /// Reads the rest of a body that no client gets, on a task of its own: an HTTP/1 connection can then serve other
    /// requests. A long or slow one isn't worth that, and closes its connection.
    fn discard(mut self: Box<Self>) {
        let Some(lease) = self.lease.as_mut().filter(|lease| lease.connection.version() != Version::HTTP_2) else {
            return;
        };
        if self.content.is_end_stream() || self.content.size_hint().lower() > DISCARD_BYTES {
            return;
        }
        // The exchange ends before, and takes its deadlines with it.
        let [step, total] = lease.step.clock().deadlines();
        (lease.step, lease.upload) = (step, UploadProgress::over());
        let mut left = DISCARD_BYTES;
        let reading = poll_fn(move |cx| {
            while let Some(Ok(frame)) = ready!(Pin::new(&mut *self).poll_frame(cx)) {
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

    /// The body has been read to its end: the connection may serve others.
    fn end(&mut self) {
        if let Some(ConnectionLease { connection, in_flight_guard, is_good, rules, step, .. }) = self.lease.take() {
            let now = step.clock().now();
            if is_good {
                in_flight_guard.endpoint_view().record_success(now);
            }
            connection.limit_reads(None);
            in_flight_guard.endpoint_view().pool.put_back(connection, &rules, now);
        }
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        if self.content.is_end_stream() {
            self.end();
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let UpstreamBody { content, lease, rest } = &mut *self;
        let Some(lease) = lease else { return Poll::Ready(None) };
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
            // A stream of HTTP/2 that was reset without an error just ends: that is also how an endpoint waves off the
            // rest of a request (RFC 9113 §8.1), so only a length can tell.
            None if lease.connection.version() == Version::HTTP_2 && content.size_hint().lower() > 0 => {
                lease.broken();
                let short = Error::new(FailureKind::ConnectionTerminated, "the endpoint gave up within its response");
                return Poll::Ready(Some(Err(short.into())));
            }
            None => self.end(),
        }
        Poll::Ready(frame.map(|frame| frame.map(hop_by_hop::frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

impl ResponseBody {
    /// Drops a body that no client gets, so that its connection can serve other requests if little of it is left.
    pub fn discard(self) {
        if let ResponseBody::Upstream(body) = self {
            body.discard();
        }
    }

    /// Bounds what is read of the endpoint or of a file at once, in bytes: the length of the next pieces.
    pub fn limit_reads(&self, bytes: usize) {
        match self {
            ResponseBody::Upstream(body) => body.limit_reads(bytes),
            ResponseBody::File(body) => body.limit_reads(bytes),
            ResponseBody::Filtered(passage) => passage.source().limit_reads(bytes),
            ResponseBody::Stored(_)
            | ResponseBody::Parts(_)
            | ResponseBody::Full(_)
            | ResponseBody::Fixed(_)
            | ResponseBody::Switched(_) => {}
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            ResponseBody::Switched(_) => Poll::Ready(None),
            ResponseBody::Full(content) | ResponseBody::Fixed(content) if content.is_empty() => Poll::Ready(None),
            ResponseBody::Full(content) | ResponseBody::Fixed(content) => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(content)))))
            }
            ResponseBody::Upstream(body) => Pin::new(&mut **body).poll_frame(cx),
            ResponseBody::Stored(stored) => Pin::new(stored).poll_frame(cx),
            ResponseBody::File(body) => Pin::new(&mut **body).poll_frame(cx),
            ResponseBody::Parts(parts) => {
                while let Some(part) = parts.front_mut() {
                    match Pin::new(part).poll_frame(cx) {
                        Poll::Ready(None) => drop(parts.pop_front()),
                        frame => return frame,
                    }
                }
                Poll::Ready(None)
            }
            ResponseBody::Filtered(passage) => Pin::new(&mut **passage).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Upstream(body) => body.is_end_stream(),
            ResponseBody::Stored(stored) => stored.is_end_stream(),
            ResponseBody::File(body) => body.is_end_stream(),
            ResponseBody::Parts(parts) => parts.is_empty(),
            ResponseBody::Filtered(_) => false,
            ResponseBody::Full(content) | ResponseBody::Fixed(content) => content.is_empty(),
            ResponseBody::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Upstream(body) => body.size_hint(),
            ResponseBody::Stored(stored) => stored.size_hint(),
            ResponseBody::File(body) => body.size_hint(),
            ResponseBody::Parts(parts) => SizeHint::with_exact(parts.iter().filter_map(StoredBody::remaining).sum()),
            ResponseBody::Filtered(passage) => passage.size_hint(),
            ResponseBody::Full(content) | ResponseBody::Fixed(content) => SizeHint::with_exact(content.len() as u64),
            ResponseBody::Switched(_) => SizeHint::with_exact(0),
        }
    }
}
