//! Contents on their way: of requests to the upstream, of responses to the client.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::clock::Clock;
use crate::upstream::connection::Connection;
use crate::upstream::{Flight, KeepRules, Pool};

/// The content of a request: the client's, streamed, or none.
pub enum RequestBody {
    /// Streams; says when it has been sent.
    Incoming(Incoming, Sent),
    Empty,
}

/// Turns true when a request body has been sent, or given up.
#[derive(Clone, Debug, Default)]
pub struct Sent(Rc<Cell<bool>>);

/// The content of a response: the upstream's, streamed, or some that was made here.
pub enum ResponseBody {
    /// Streams, and drives the connection that it comes from.
    Upstream(Box<UpstreamBody>),
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

impl Sent {
    /// Whether it is so.
    pub fn is_true(&self) -> bool {
        self.0.get()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let RequestBody::Incoming(_, sent) = self {
            sent.0.set(true);
        }
    }
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

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            RequestBody::Incoming(body, _) => Pin::new(body).poll_frame(cx),
            RequestBody::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Incoming(body, _) => body.is_end_stream(),
            RequestBody::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Incoming(body, _) => body.size_hint(),
            RequestBody::Empty => SizeHint::with_exact(0),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            ResponseBody::Full(content) if content.is_empty() => Poll::Ready(None),
            ResponseBody::Full(content) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(content))))),
            ResponseBody::Upstream(body) => {
                let UpstreamBody { content, lease } = &mut **body;
                let frame = match lease {
                    Some(lease) => lease.connection.driver.poll(cx, |cx| Pin::new(&mut *content).poll_frame(cx)),
                    None => Poll::Ready(None),
                };
                if let Poll::Ready(None) = frame {
                    body.end();
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Upstream(body) => body.content.is_end_stream(),
            ResponseBody::Full(content) => content.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Upstream(body) => body.content.size_hint(),
            ResponseBody::Full(content) => SizeHint::with_exact(content.len() as u64),
        }
    }
}
