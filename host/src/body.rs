//! The content of a response on its way to the client.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::clock::Clock;
use crate::passage::{BodyError, Passage};
use crate::upstream::connection::Connection;
use crate::upstream::{Flight, KeepRules, Pool};

/// The content of a response: the upstream's, streamed, or some that was made here.
pub enum ResponseBody {
    /// Streams, and drives the connection that it comes from.
    Upstream(Box<UpstreamBody>),
    /// As that, but through plugins.
    Filtered(Box<Passage<UpstreamBody>>),
    /// Whole; empty once sent.
    Full(Bytes),
}

/// A body that comes from an endpoint.
pub struct UpstreamBody {
    content: Incoming,
    /// None once the body is over.
    lease: Option<Lease>,
}

/// The use of a connection until the body of a response is over.
pub struct Lease {
    pub connection: Connection,
    /// Counts the exchange as in flight at its endpoint.
    pub flight: Flight,
    pub pool: Rc<Pool>,
    pub rules: KeepRules,
    pub clock: Rc<Clock>,
}

impl UpstreamBody {
    pub fn new(content: Incoming, lease: Lease) -> Self {
        UpstreamBody { content, lease: Some(lease) }
    }

    /// The body has been read to its end: the connection may serve others.
    fn end(&mut self) {
        if let Some(Lease { connection, flight, pool, rules, clock }) = self.lease.take() {
            drop(flight);
            pool.put_back(connection, rules, clock.now());
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
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let UpstreamBody { content, lease } = &mut *self;
        let frame = match lease {
            Some(lease) => lease.connection.driver.poll(cx, |cx| Pin::new(&mut *content).poll_frame(cx)),
            None => Poll::Ready(None),
        };
        if let Poll::Ready(None) = frame {
            self.end();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            ResponseBody::Full(content) if content.is_empty() => Poll::Ready(None),
            ResponseBody::Full(content) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(content))))),
            ResponseBody::Upstream(body) => Pin::new(&mut **body).poll_frame(cx).map_err(Into::into),
            ResponseBody::Filtered(passage) => Pin::new(&mut **passage).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Upstream(body) => body.is_end_stream(),
            ResponseBody::Filtered(_) => false,
            ResponseBody::Full(content) => content.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Upstream(body) => body.size_hint(),
            ResponseBody::Filtered(passage) => passage.size_hint(),
            ResponseBody::Full(content) => SizeHint::with_exact(content.len() as u64),
        }
    }
}
