//! The content of a request on its way to an endpoint.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::error::Kind;
use crate::passage::{BodyError, Passage};
use crate::plugin::transform::TransformError;

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

impl Upload {
    /// One that has nothing to send.
    pub fn over() -> Self {
        let upload = Upload::default();
        upload.end();
        upload
    }

    /// Nothing more will be sent.
    pub fn end(&self) {
        self.0.over.set(true);
    }

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
            upload.end();
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
