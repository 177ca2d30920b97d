//! Contents on their way: of requests to the upstream, of responses to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The content of a request: the client's, streamed, or none.
pub enum RequestBody {
    Incoming(Incoming),
    Empty,
}

/// The content of a response: the upstream's, streamed, or some that was made here.
pub enum ResponseBody {
    /// Streams; the lease is held until the end.
    Upstream(Incoming, Lease),
    /// Whole; empty once sent.
    Full(Bytes),
}

/// What is to be done with the upstream connection when the body has ended, or was given up.
pub struct Lease(Option<Box<dyn FnOnce(Ended)>>);

/// How the body of a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All of it was read.
    Whole,
    /// It was cut off on one side or the other.
    Early,
}

impl Lease {
    /// Calls `end` once, when the body is over.
    pub fn new(end: impl FnOnce(Ended) + 'static) -> Self {
        Lease(Some(Box::new(end)))
    }

    fn end(&mut self, how: Ended) {
        if let Some(end) = self.0.take() {
            end(how);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            RequestBody::Incoming(body) => Pin::new(body).poll_frame(cx),
            RequestBody::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Incoming(body) => body.is_end_stream(),
            RequestBody::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Incoming(body) => body.size_hint(),
            RequestBody::Empty => SizeHint::with_exact(0),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let ResponseBody::Upstream(body, lease) = self {
            lease.end(if body.is_end_stream() { Ended::Whole } else { Ended::Early });
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
            ResponseBody::Upstream(body, lease) => {
                let frame = Pin::new(&mut *body).poll_frame(cx);
                match &frame {
                    Poll::Ready(None) => lease.end(Ended::Whole),
                    Poll::Ready(Some(Err(_))) => lease.end(Ended::Early),
                    _ => {}
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Upstream(body, _) => body.is_end_stream(),
            ResponseBody::Full(content) => content.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Upstream(body, _) => body.size_hint(),
            ResponseBody::Full(content) => SizeHint::with_exact(content.len() as u64),
        }
    }
}
