//! The content of an endpoint's response, with the connection that it is read from.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};

use crate::body::BodyError;
use crate::body::upload::{IdleTime, UploadProgress};
use crate::error::{Error, FailureKind};
use crate::net::deadline::Deadline;
use crate::protocol::hop_by_hop;
use crate::upstream::ConnectionSettings;
use crate::upstream::connection::{Connection, EndpointBody};
use crate::upstream::endpoint_view::InFlightGuard;
use crate::upstream::health::EndpointFailure;

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

    pub fn limit_reads(&self, bytes: usize) {
        if let Some(lease) = &self.lease {
            lease.connection.limit_reads(Some(bytes));
        }
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
