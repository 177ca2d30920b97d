//! The content of a response on its way to the client.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};

use crate::body::BodyError;
use crate::body::early_content::ReadEarly;
use crate::exchange::decoded_body::DecodedBody;
use crate::exchange::filtered_body::FilteredBody;
use crate::exchange::gathered_body::GatheredBody;
use crate::exchange::upstream_body::{ReadAhead, UpstreamBody};
use crate::static_files::file_body::FileBody;
use crate::store::stored_body::StoredBody;
use crate::upstream::endpoint_view::InFlightGuard;
use crate::upstream::http1::Stream;

/// The content of a response: the upstream's, streamed, or some that was made here.
pub enum ResponseBody {
    /// The body of an endpoint's response, which is streamed and drives its connection.
    Upstream(UpstreamBody),
    /// A stored body, complete or still arriving.
    Stored(StoredBody),
    /// Several parts of a stored body, with the separators of the parts.
    Parts(VecDeque<StoredBody>),
    /// The body is read from a file.
    File(Box<FileBody>),
    /// Another body, transformed by plugins.
    Filtered(Box<FilteredBody<ResponseBody>>),
    /// Another body, decoded for plugins.
    Decoded(Box<DecodedBody<ResponseBody>>),
    /// One of these, gathered for a plugin that takes it whole, or what that plugin put in its place.
    Gathered(Box<GatheredBody<ResponseBody>>),
    /// A whole body, made by the proxy or a plugin; empty once sent.
    Full(Bytes),
    /// A whole body, of the fixed response of a route, which plugins may transform; empty once sent.
    Fixed(Bytes),
    /// No body: after this head the connection speaks another protocol.
    Switched(Box<SwitchedProtocol>),
}

/// The far end of a tunnel.
pub struct SwitchedProtocol {
    /// The protocol, as the endpoint named it.
    pub protocol: HeaderValue,
    pub stream: Stream,
    /// The guard that counts the tunnel as in flight at its endpoint.
    pub in_flight_guard: InFlightGuard,
}

impl ReadEarly for ResponseBody {
    /// Reads nothing: the connection of an endpoint holds up no other response.
    fn read_early(&mut self, _: &mut Context<'_>) {}
}

impl ResponseBody {
    /// Returns the body of an endpoint's response, before plugins transform it; `None` if the content has another source.
    pub fn of_endpoint(&self) -> Option<&UpstreamBody> {
        match self {
            ResponseBody::Upstream(body) => Some(body),
            ResponseBody::Filtered(passage) => passage.source().of_endpoint(),
            ResponseBody::Decoded(body) => body.source().of_endpoint(),
            ResponseBody::Gathered(body) => body.rest()?.of_endpoint(),
            ResponseBody::Stored(_)
            | ResponseBody::Parts(_)
            | ResponseBody::File(_)
            | ResponseBody::Full(_)
            | ResponseBody::Fixed(_)
            | ResponseBody::Switched(_) => None,
        }
    }

    /// Returns the handle by which the content is read ahead of a slow client.
    pub fn read_ahead(&self) -> ReadAhead {
        self.of_endpoint().map(UpstreamBody::read_ahead).unwrap_or_default()
    }

    /// Drops a body that no client gets, so that its connection can serve other requests if little of it is left.
    pub fn discard(self) {
        if let ResponseBody::Upstream(body) = self {
            body.discard();
        }
    }

    /// Limits the bytes that are read at once from the endpoint, the store or a file: the length of the next pieces.
    pub fn limit_reads(&self, bytes: usize) {
        match self {
            ResponseBody::Upstream(body) => body.limit_reads(bytes),
            ResponseBody::File(body) => body.limit_reads(bytes),
            ResponseBody::Filtered(passage) => passage.source().limit_reads(bytes),
            ResponseBody::Decoded(body) => body.source().limit_reads(bytes),
            ResponseBody::Gathered(body) => body.rest().into_iter().for_each(|rest| rest.limit_reads(bytes)),
            ResponseBody::Stored(body) => body.limit_reads(bytes),
            ResponseBody::Parts(parts) => parts.iter().for_each(|part| part.limit_reads(bytes)),
            ResponseBody::Full(_) | ResponseBody::Fixed(_) | ResponseBody::Switched(_) => {}
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
            ResponseBody::Upstream(body) => Pin::new(body).poll_frame(cx),
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
            ResponseBody::Decoded(body) => Pin::new(&mut **body).poll_frame(cx),
            ResponseBody::Gathered(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Upstream(body) => body.is_end_stream(),
            ResponseBody::Stored(stored) => stored.is_end_stream(),
            ResponseBody::File(body) => body.is_end_stream(),
            ResponseBody::Parts(parts) => parts.is_empty(),
            ResponseBody::Filtered(_) | ResponseBody::Decoded(_) => false,
            ResponseBody::Gathered(body) => body.is_end_stream(),
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
            ResponseBody::Decoded(body) => body.size_hint(),
            ResponseBody::Gathered(body) => body.size_hint(),
            ResponseBody::Full(content) | ResponseBody::Fixed(content) => SizeHint::with_exact(content.len() as u64),
            ResponseBody::Switched(_) => SizeHint::with_exact(0),
        }
    }
}
