//! Contents on their way: of requests to the upstream, of responses to the client.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::clock::Clock;
use crate::error::Kind;
use crate::passage::Passage;
use crate::plugin::transform::TransformError;
use crate::upstream::connection::Connection;
use crate::upstream::{Flight, KeepRules, Pool};

/// The content of a request: the client's, streamed, or none.
pub enum RequestBody {
    /// Streams; says when it has been sent.
    Incoming(Incoming, Upload),
    /// Streams through plugins.
    Filtered(Box<Passage>, Upload),
    Empty,
}

/// How far a request body is.
#[derive(Clone, Debug, Default)]
pub struct Upload(Rc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    over: Cell<bool>,
    failed: Cell<Option<Kind>>,
    bytes: Cell<u64>,
}

/// Why a body doesn't go on.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

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

impl Upload {
    /// Whether all has been sent, or given up.
    pub fn is_over(&self) -> bool {
        self.0.over.get()
    }

    /// The bytes that were sent.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.get()
    }

    fn count<E>(&self, frame: &Poll<Option<Result<Frame<Bytes>, E>>>) {
        if let Poll::Ready(Some(Ok(frame))) = frame {
            self.0.bytes.set(self.0.bytes.get() + frame.data_ref().map_or(0, |data| data.len() as u64));
        }
    }

    /// Why it was given up, if a plugin was the reason.
    pub fn failed(&self) -> Option<Kind> {
        self.0.failed.get()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let RequestBody::Incoming(_, upload) | RequestBody::Filtered(_, upload) = self {
            upload.0.over.set(true);
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
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            RequestBody::Incoming(body, upload) => {
                let frame = Pin::new(body).poll_frame(cx);
                upload.count(&frame);
                frame.map_err(Into::into)
            }
            RequestBody::Filtered(passage, upload) => {
                let frame = Pin::new(&mut **passage).poll_frame(cx);
                upload.count(&frame);
                if let Poll::Ready(Some(Err(error))) = &frame {
                    upload.0.failed.set(match error.downcast_ref() {
                        Some(TransformError::TooLarge(_)) => Some(Kind::RequestBodySize),
                        Some(TransformError::Trap(_)) => Some(Kind::PluginError),
                        None => None,
                    });
                }
                frame
            }
            RequestBody::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Incoming(body, _) => body.is_end_stream(),
            RequestBody::Filtered(..) => false,
            RequestBody::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Incoming(body, _) => body.size_hint(),
            RequestBody::Filtered(passage, _) => passage.size_hint(),
            RequestBody::Empty => SizeHint::with_exact(0),
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
