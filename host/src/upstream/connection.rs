//! A connection to an endpoint. One of HTTP/1 is polled by the exchange that uses it: no task of its own to wake and
//! switch to. One of HTTP/2 serves many exchanges, and has a task.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use pin_project_lite::pin_project;

use super::client_hold::ClientHold;
use super::connection_limit::{ConnectionPermit, LimitHandle};
use super::http1::response_body::ResponseBodyDecoder;
use super::http1::{Http1, Http1BodyError, Http1Error, Http1Failure, Stream};
use super::http2::endpoint_frames::Beginning;
use super::http2::response_body::Http2ResponseBody;
use super::http2::{Http2, Http2Content, OwnPlace, SharedSender};
use super::request_head::RequestHead;
use super::response_head_limits::ResponseHeadLimits;
use super::socket::{EndpointTransport, ReadNow};
use crate::body::BodyError;
use crate::body::upload::RequestBody;
use crate::context::informational::InformationalQueue;

/// A connection to an endpoint, with HTTP/1 or HTTP/2.
pub struct Connection {
    protocol: Protocol,
    head: ResponseHeadLimits,
    limit_handle: LimitHandle,
    /// The parts of the client that uses a connection with HTTP/2; `None` while it is idle or shared.
    held: Option<ClientHold>,
}

enum Protocol {
    Http1 {
        http1: Http1,
        /// Makes the socket read at once.
        now: ReadNow,
    },
    Http2(Http2),
}

/// A request that got no response, with its content if the endpoint can't have read any of it. Results have it boxed,
/// because they are passed through many functions, and a request is twice as large as a response.
pub struct Unsent {
    pub error: SendError,
    pub content: Option<RequestBody>,
}

/// The reason for which a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Http1(#[from] Http1Error),
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

/// The body of an endpoint's response, read by [`Connection::poll_frame`].
pub enum EndpointBody {
    Http1(ResponseBodyDecoder),
    Http2(Http2ResponseBody),
}

pin_project! {
    /// A request that is sent; [`Connection::poll_response`] waits for its response.
    pub struct PendingResponse<F> {
        // `None` over HTTP/1, where the connection has all of it.
        #[pin] http2: Option<F>,
    }
}

impl Connection {
    /// Speaks HTTP/1.1 over a transport, whose socket obeys `now`.
    pub fn http1(
        transport: impl EndpointTransport,
        now: ReadNow,
        head: ResponseHeadLimits,
        permit: ConnectionPermit,
    ) -> Self {
        let limit_handle = permit.limit_handle();
        let protocol = Protocol::Http1 { http1: Http1::new(transport, head, permit), now };
        Connection { protocol, head, limit_handle, held: None }
    }

    /// Returns another handle of a connection with HTTP/2.
    pub fn http2(sender: SharedSender) -> Self {
        let (limit_handle, head) = (sender.limit_handle().clone(), sender.head_limits());
        Connection { protocol: Protocol::Http2(Http2::new(sender)), head, limit_handle, held: None }
    }

    /// Makes a connection with HTTP/2 serve one exchange at a time, in a place among those that do.
    pub fn make_unshared(&mut self, place: OwnPlace) {
        if let Protocol::Http2(http2) = &mut self.protocol {
            http2.make_unshared(place);
        }
    }

    /// Counts the connection for a client, unless it is counted or shared.
    pub fn hold(&mut self, count: impl FnOnce(&LimitHandle) -> ClientHold) {
        let count = || count(&self.limit_handle);
        match &self.protocol {
            Protocol::Http1 { http1, .. } => http1.hold(count),
            Protocol::Http2(http2) if http2.is_unshared() => drop(self.held.get_or_insert_with(count)),
            Protocol::Http2(_) => self.held = None,
        }
    }

    /// Counts the connection for no client any more, unless the rest of a request is still sent.
    pub fn release(&mut self) {
        self.held = None;
        if let Protocol::Http1 { http1, .. } = &self.protocol {
            http1.release();
        }
    }

    /// Returns the sender that other requests can use too, if the version of HTTP allows that.
    pub fn shared_sender(&self) -> Option<SharedSender> {
        self.as_http2().map(|http2| http2.sender().clone())
    }

    /// Returns the sender of a connection with HTTP/2 that serves one exchange at a time.
    pub fn unshared_sender(&self) -> Option<SharedSender> {
        self.as_http2().filter(|http2| http2.is_unshared()).map(|http2| http2.sender().clone())
    }

    fn as_http2(&self) -> Option<&Http2> {
        match &self.protocol {
            Protocol::Http1 { .. } => None,
            Protocol::Http2(http2) => Some(http2),
        }
    }

    /// Returns the version of HTTP that the connection speaks.
    pub fn version(&self) -> http::Version {
        if self.as_http2().is_some() { http::Version::HTTP_2 } else { http::Version::HTTP_11 }
    }

    /// Returns the text of the TLS alert with which the endpoint has ended the connection. `None` if there is none, or
    /// if the error of a request has it already.
    pub fn alert(&self) -> Option<&str> {
        self.as_http2()?.alert()
    }

    /// Returns the remedy for an endpoint that speaks another protocol where HTTP/2 is expected without a negotiation. `None`
    /// if the endpoint doesn't, as far as is known.
    pub fn protocol_remedy(&self) -> Option<&'static str> {
        match self.as_http2()?.beginning() {
            Beginning::Http2 => None,
            Beginning::Http1 => Some("the endpoint speaks HTTP/1.1, not HTTP/2; remove `h2c://` before its address"),
            Beginning::Other => Some(
                "the endpoint doesn't speak HTTP/2 without TLS; remove `h2c://` before its address, or write `https://`",
            ),
        }
    }

    /// Returns the cause for which the connection was ended here, because the endpoint has sent too many frames; `None` if it
    /// was not. The error of a request that was not sent yet doesn't have it.
    pub fn flood(&self) -> Option<String> {
        self.as_http2()?.flood()
    }

    /// Whether the connection can serve no request any more.
    pub fn is_closed(&self) -> bool {
        match &self.protocol {
            Protocol::Http1 { http1, .. } => http1.is_closed(),
            Protocol::Http2(http2) => http2.sender().is_closed(),
        }
    }

    /// Whether the endpoint accepts content. Over HTTP/2, what it has left unread of an earlier request may be in the way.
    pub fn has_window(&self) -> bool {
        self.as_http2().is_none_or(|http2| http2.sender().has_window())
    }

    /// Begins a request, whose response is polled for by [`Connection::poll_response`]. The informational responses before
    /// it go into `informational`; over HTTP/2 they are dropped.
    pub fn send(
        &mut self,
        head: RequestHead<'_>,
        content: RequestBody,
        informational: Option<Arc<InformationalQueue>>,
    ) -> PendingResponse<impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Http2Content>>>> + use<>>
    {
        let http2 = match &mut self.protocol {
            Protocol::Http1 { http1, .. } => {
                http1.begin(&head, content, informational);
                None
            }
            Protocol::Http2(http2) => Some(http2.send(head, content)),
        };
        PendingResponse { http2 }
    }

    /// Whether the endpoint can't know of the last request over HTTP/2: no request was sent since it began.
    pub fn has_sent_nothing(&self) -> bool {
        self.as_http2().is_some_and(Http2::has_sent_nothing)
    }

    /// Returns the sender of a connection with HTTP/2 whose endpoint has sent no frame since the last request began.
    pub fn silent_sender(&self) -> Option<&SharedSender> {
        self.as_http2().filter(|http2| http2.is_silent()).map(Http2::sender)
    }

    /// Whether other exchanges are under way on the connection.
    pub fn is_shared_now(&self) -> bool {
        self.as_http2().is_some_and(|http2| !http2.is_unshared() && http2.sender().exchanges() > 1)
    }

    /// Waits for the head of the response to a request that was begun.
    pub fn poll_response<F>(
        &mut self,
        cx: &mut Context<'_>,
        pending: Pin<&mut PendingResponse<F>>,
    ) -> Poll<Result<Response<EndpointBody>, Box<Unsent>>>
    where
        F: Future<Output = Result<Response<Incoming>, TrySendError<Request<Http2Content>>>>,
    {
        match (&mut self.protocol, pending.project().http2.as_pin_mut()) {
            (Protocol::Http1 { http1, .. }, _) => {
                let polled = http1.poll_response(cx);
                polled.map_ok(|response| response.map(EndpointBody::Http1)).map_err(|failure| Box::new(failure.into()))
            }
            (Protocol::Http2(http2), Some(response)) => {
                let polled = response.poll(cx);
                let body = |incoming| EndpointBody::Http2(http2.response_body(incoming));
                polled.map_ok(|response| response.map(body)).map_err(|unsent| Box::new(unsent.into()))
            }
            (Protocol::Http2(_), None) => Poll::Pending,
        }
    }

    /// Returns the next frame of the body of a response; `None` at its end.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut EndpointBody,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match (&mut self.protocol, body) {
            (Protocol::Http1 { http1, .. }, EndpointBody::Http1(body)) => {
                http1.poll_frame(cx, body).map_err(<Http1BodyError as Into<BodyError>>::into)
            }
            (_, EndpointBody::Http2(body)) => body.poll_frame(cx),
            (Protocol::Http2(_), EndpointBody::Http1(_)) => Poll::Ready(None),
        }
    }

    /// Whether the connection can be kept for another exchange, after one that it has served. Shared connections are
    /// kept elsewhere.
    pub fn is_idle(&self) -> bool {
        match &self.protocol {
            Protocol::Http1 { http1, .. } => http1.is_idle(),
            Protocol::Http2(http2) => http2.is_idle(),
        }
    }

    /// Checks whether an idle connection has ended, as far as the reactor knows. Returns whether the connection may
    /// serve an exchange.
    pub fn is_reusable(&mut self) -> bool {
        match &mut self.protocol {
            Protocol::Http1 { http1, .. } => http1.is_reusable(),
            Protocol::Http2(http2) => !http2.sender().is_closed(),
        }
    }

    /// Whether an idle connection is still open, after a check of its socket. The task of an HTTP/2 connection reads
    /// its socket itself.
    pub fn is_open_now(&mut self) -> bool {
        match &mut self.protocol {
            Protocol::Http1 { http1, now } => now.during(|| http1.is_reusable()),
            Protocol::Http2(_) => true,
        }
    }

    /// The limits of the heads of responses.
    pub fn head_limits(&self) -> ResponseHeadLimits {
        self.head
    }

    /// Limits the number of bytes that are read at once from now on; `None` for the limit with which new exchanges
    /// begin. HTTP/2 has windows instead.
    pub fn limit_reads(&self, bytes: Option<usize>) {
        if let Protocol::Http1 { http1, .. } = &self.protocol {
            http1.limit_reads(bytes);
        }
    }

    /// Releases the memory for reading, if no bytes are in it. The next read takes new memory.
    pub fn release_read_buffer(&self) {
        if let Protocol::Http1 { http1, .. } = &self.protocol {
            http1.release_read_buffer();
        }
    }

    /// Returns the limit that the connection is counted against.
    pub fn limit_handle(&self) -> &LimitHandle {
        &self.limit_handle
    }

    /// Whether a request over HTTP/1 is not all sent.
    pub fn is_uploading(&self) -> bool {
        matches!(&self.protocol, Protocol::Http1 { http1, .. } if http1.is_uploading())
    }

    /// Makes a task send the rest of a request, if it isn't all sent. Once the response is over, the task ends when
    /// nothing was sent for `pause`. A connection with HTTP/2 has a task already.
    pub fn detach_upload(&mut self, pause: Duration) {
        if let Protocol::Http1 { http1, .. } = &mut self.protocol
            && http1.is_uploading()
        {
            http1.detach_upload(pause);
        }
    }

    /// The bytes of a connection whose endpoint has switched protocols.
    pub fn into_stream(self) -> Option<Stream> {
        let Protocol::Http1 { http1, .. } = self.protocol else { return None };
        http1.into_stream()
    }
}

impl EndpointBody {
    /// Whether all of the body has been returned.
    pub fn is_end_stream(&self) -> bool {
        match self {
            EndpointBody::Http1(body) => body.is_over(),
            EndpointBody::Http2(body) => body.is_end_stream(),
        }
    }

    /// Returns the length of the rest of the body, as far as it is known.
    pub fn size_hint(&self) -> SizeHint {
        match self {
            EndpointBody::Http1(body) => body.size_hint(),
            EndpointBody::Http2(body) => body.size_hint(),
        }
    }
}

impl From<Http1Failure> for Unsent {
    fn from(Http1Failure { error, content }: Http1Failure) -> Self {
        Unsent { error: error.into(), content }
    }
}

impl From<TrySendError<Request<Http2Content>>> for Unsent {
    fn from(mut unsent: TrySendError<Request<Http2Content>>) -> Self {
        let content = unsent.take_message().map(|request| request.into_body().into_content());
        Unsent { error: unsent.into_error().into(), content }
    }
}
