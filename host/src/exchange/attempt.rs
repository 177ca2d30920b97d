//! One attempt at one endpoint: get a connection, send the request, wait for the head of the response. A kept
//! connection that is found dead is no failed attempt, nor is a stream that the endpoint has not read: the request is
//! sent once more on another connection where that is safe.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, uri};
use http_body::Body;

use crate::body::replay::ReplayBuffer;
use crate::body::upload::{IdleTime, RequestBody, UploadProgress};
use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind, causes};
use crate::exchange::upstream_body::ConnectionLease;
use crate::net::boxed::boxed;
use crate::net::deadline::Deadline;
use crate::net::happy_eyeballs;
use crate::protocol::content_length;
use crate::protocol::conversation;
use crate::protocol::hop_by_hop::{self, HopOptions};
use crate::protocol::websocket;
use crate::tls::handshake_error::{self, TlsErrorClass, TlsPeer};
use crate::upstream::connect::ConnectStage;
use crate::upstream::connection::{Connection, EndpointBody, SendError, Unsent};
use crate::upstream::connection_limit::ConnectionLimit;
use crate::upstream::endpoint_view::{EndpointView, InFlightGuard};
use crate::upstream::http1::Http1Error;
use crate::upstream::http1::response_head::HeadError;
use crate::upstream::http1::upload::UploadError;
use crate::upstream::http2::informational;
use crate::upstream::pool::pending_connection::PendingConnection;
use crate::upstream::pool::{Acquired, ConnectionRequest, Pool};
use crate::upstream::request_head::{RequestHead, RequestHeadSize};
use crate::upstream::required_protocol::RequiredProtocol;
use crate::upstream::response_head_limits::ResponseHeadLimits;
use crate::upstream::retry::Delivery;
use crate::upstream::{ConnectionSettings, EndpointAddr, EndpointProtocol};

/// The request to send, and the rules for it.
pub struct Attempt<'a> {
    /// The exchange context, whose fields are sent.
    pub context: &'a mut ExchangeContext,
    /// The request's content, lent for each try.
    pub content: &'a RefCell<ReplayBuffer>,
    pub upload: &'a UploadProgress,
    /// The hop-by-hop options for the endpoint.
    pub hop: &'a HopOptions,
    pub rules: &'a Rc<ConnectionSettings>,
    pub connection_limit: &'a ConnectionLimit,
    /// The deadline of each single wait.
    pub step: &'a Deadline,
    /// Whether the request may be sent to another endpoint if this one has no connection for it.
    pub elsewhere: &'a dyn Fn() -> bool,
}

/// The outcome of sending a request in time.
#[expect(clippy::large_enum_variant, reason = "made once for each attempt, and taken apart at once")]
enum SendOutcome {
    Response(Response<EndpointBody>),
    /// The request got no response.
    Unsent(Box<Unsent>),
}

/// The head of a response, with the connection that the rest streams from.
pub struct AttemptResponse {
    pub response: Response<EndpointBody>,
    pub lease: ConnectionLease,
}

/// An attempt that brought no response.
pub struct AttemptFailure {
    pub error: Error,
    pub reached: Delivery,
}

impl Attempt<'_> {
    /// Sends the request to the endpoint at which it is in flight.
    pub async fn run(&mut self, in_flight_guard: InFlightGuard) -> Result<AttemptResponse, AttemptFailure> {
        let wanted = self.required_protocol(in_flight_guard.endpoint_view())?;
        let mut pooled = self.pooled_connection(&in_flight_guard, wanted);
        for left in (0..TRIES).rev() {
            let (mut connection, origin) = match pooled.take() {
                Some(connection) => (connection, ConnectionOrigin::Kept),
                None => self.connect_or_share(&in_flight_guard, wanted).await?,
            };
            in_flight_guard.endpoint_view().pool.lend(&mut connection, self.context.holder());
            let sent = self.send(&mut connection, &in_flight_guard).await.inspect_err(|failure| {
                if failure.error.kind == FailureKind::ResponseTimeout && origin == ConnectionOrigin::Kept {
                    in_flight_guard.endpoint_view().pool.note_unanswered(&connection);
                }
            });
            match sent? {
                SendOutcome::Response(response) => return self.accept_response(response, connection, in_flight_guard),
                SendOutcome::Unsent(unsent) if left > 0 && self.may_resend(&unsent, &connection, origin) => {
                    drop(self.recover_body(*unsent))
                }
                SendOutcome::Unsent(unsent) => {
                    let failure = self.recover_unsent(*unsent, &connection);
                    if failure.reached == Delivery::Crowded {
                        in_flight_guard.endpoint_view().pool.note_crowd(self.step.clock().now());
                    }
                    return Err(failure);
                }
            }
        }
        Err(not_sent(Error::new(FailureKind::ConnectionTerminated, "several connections in a row were dead")))
    }

    /// Returns an idle or shared connection that seems alive. A request that can't be repeated is not sent on one whose
    /// end has come already.
    fn pooled_connection(&self, in_flight_guard: &InFlightGuard, wanted: RequiredProtocol) -> Option<Box<Connection>> {
        let pool = &in_flight_guard.endpoint_view().pool;
        loop {
            let (client, now) = (self.context.holder(), self.step.clock().now());
            let mut connection = pool.idle(wanted, self.rules, self.connection_limit, client, now)?;
            if self.context.request.method.is_idempotent() || connection.is_open_now() {
                return Some(connection);
            }
        }
    }

    fn required_protocol(&self, endpoint_view: &EndpointView) -> Result<RequiredProtocol, AttemptFailure> {
        if self.hop.upgrade.is_none() {
            return Ok(self.shareable_protocol(&endpoint_view.pool));
        }
        if endpoint_view.endpoint.address.protocol == EndpointProtocol::Http2 {
            let why = "the endpoint speaks HTTP/2 alone, in which nothing is upgraded";
            return Err(not_sent(Error::new(FailureKind::UpgradeFailed, why)));
        }
        Ok(RequiredProtocol::Http1)
    }

    /// Returns the requirement of a request without an upgrade. A long head keeps it from shared connections, and so do
    /// trailers that are announced: there are endpoints that end the connection for either. So does long content, which
    /// would shut the window of all if the endpoint left it unread, but for calls of gRPC, and a long response on the connection
    /// if the request can't be repeated. These are no reason to wait, nor to take the last connections: over a shared one
    /// trailers are dropped (RFC 9110 §6.5.1).
    fn shareable_protocol(&self, pool: &Pool) -> RequiredProtocol {
        if pool.is_exclusive() {
            return RequiredProtocol::Any;
        }
        let head = &self.context.request;
        let content = self.content.borrow();
        let has_trailers = head.headers.contains_key(header::TRAILER) && !content.is_empty();
        let is_long = content.may_be_longer_than(MAX_SHARED_CONTENT) && !conversation::is_grpc(&head.headers);
        // The endpoint may refuse another request of the connection.
        let now = self.step.clock().now();
        let may_be_refused = || {
            pool.is_calm_wanted(now) || !head.method.is_idempotent() && pool.has_long_response(self.connection_limit)
        };
        // Every call of gRPC is a POST, and its servers bound the streams of a connection.
        let is_risky = || may_be_refused() && !conversation::is_grpc(&head.headers);
        let should_share = !(has_trailers || is_long || is_risky()) || !pool.may_spare_one(self.connection_limit);
        let may_share = should_share && pool.may_share(self.head_size());
        if may_share { RequiredProtocol::Any } else { RequiredProtocol::Unshared }
    }

    fn head_size(&self) -> RequestHeadSize {
        let head = &self.context.request;
        let target = self.context.forwarded_target().map_or("/", uri::PathAndQuery::as_str);
        RequestHeadSize::of(&head.method, target, &head.headers)
    }

    /// Returns a new connection, or a shared one if the endpoint accepts no further connection for a request that could do
    /// without one of its own.
    async fn connect_or_share(
        &self,
        in_flight_guard: &InFlightGuard,
        wanted: RequiredProtocol,
    ) -> Result<(Box<Connection>, ConnectionOrigin), AttemptFailure> {
        let connected = boxed(|| self.connect(in_flight_guard, wanted)).await;
        let (pool, now) = (&in_flight_guard.endpoint_view().pool, self.step.clock().now());
        let may_share = || pool.may_serve(self.connection_limit, self.rules, now) && pool.may_share(self.head_size());
        match connected {
            Err(_) if wanted == RequiredProtocol::Unshared && may_share() => {
                boxed(|| self.connect(in_flight_guard, RequiredProtocol::Any)).await
            }
            connected => connected,
        }
    }

    /// Returns a new connection of the request's own, or one that has become free.
    async fn connect(
        &self,
        in_flight_guard: &InFlightGuard,
        wanted: RequiredProtocol,
    ) -> Result<(Box<Connection>, ConnectionOrigin), AttemptFailure> {
        let (rules, pool, clock) = (self.rules, &in_flight_guard.endpoint_view().pool, self.step.clock());
        let within = rules.connect_timeout;
        let address = &in_flight_guard.endpoint_view().endpoint.address;
        let late = |after, stage| not_sent(late_connection(address, after, stage));
        let waiting = |stage| AttemptFailure { reached: Delivery::Waiting, ..late(happy_eyeballs::DELAY, stage) };
        if pool.is_stuck() && (self.elsewhere)() {
            return Err(waiting(ConnectStage::Connecting));
        }
        let request = ConnectionRequest {
            limit: self.connection_limit.clone(),
            wanted,
            client: self.context.holder(),
            addresses: self.context.addresses(),
            settings: rules.clone(),
            stage: Rc::default(),
        };
        if wanted == RequiredProtocol::Any && pool.may_serve(self.connection_limit, rules, clock.now()) {
            let patience = if (self.elsewhere)() { happy_eyeballs::DELAY } else { rules.patience() };
            if let Some(connection) = pool.wait_for_stream(&request, patience, clock).await {
                return Ok((connection, ConnectionOrigin::Kept));
            }
        }
        let full = |_| {
            // Without a limit there is no wait. The time is a limit too, but a longer one makes no connection free.
            let why = format!("no connection became free in {within:?} (`connect-timeout`)");
            not_sent(Error::new(FailureKind::LimitReached, why).with_limit("limits.connections"))
        };
        let leave = self.step.limit(within, pool.acquire(&request, clock));
        let grant = match leave.await.map_err(full)?.map_err(not_sent)? {
            Acquired::Use(connection) => return Ok((connection, ConnectionOrigin::Kept)),
            Acquired::Connect(grant) => grant,
        };
        let mut connecting = PendingConnection::new(in_flight_guard.endpoint_view(), grant, request, clock);
        let mut left = within;
        if within > happy_eyeballs::DELAY && (self.elsewhere)() {
            match self.step.limit(happy_eyeballs::DELAY, connecting.attempt()).await {
                Ok(connected) => {
                    return connected.map(|connection| (connection, ConnectionOrigin::Fresh)).map_err(not_sent);
                }
                Err(_) if connecting.stage() != ConnectStage::Reached => {
                    let stage = connecting.stage();
                    connecting.go_on_alone(within - happy_eyeballs::DELAY);
                    return Err(waiting(stage));
                }
                Err(_) => left -= happy_eyeballs::DELAY,
            }
        }
        let connected = self.step.limit(left, connecting.attempt()).await;
        let connected = connected.map_err(|_| late(within, connecting.stage()))?;
        connected.map(|connection| (connection, ConnectionOrigin::Fresh)).map_err(not_sent)
    }

    /// Sends the request, and waits for the head of the response, while the connection is driven.
    async fn send(
        &mut self,
        connection: &mut Connection,
        in_flight_guard: &InFlightGuard,
    ) -> Result<SendOutcome, AttemptFailure> {
        let (rules, step, upload) = (self.rules, self.step, self.upload);
        let body = self.content.borrow_mut().take().ok_or_else(body_not_replayable)?;
        let address = &in_flight_guard.endpoint_view().endpoint.address;
        let mut pending = pin!({
            let version = connection.version();
            self.make_room_for_trailers(&body, version);
            let head = self.request_head(&body, address, version).map_err(not_sent)?;
            connection.send(head, body, self.context.informational.clone())
        });
        let mut sent = 0;
        let mut rest = IdleTime::new(upload);
        let sending = poll_fn(|cx| {
            let polled = connection.poll_response(cx, pending.as_mut());
            // While the client's content is sent, or the proxy waits for it, the endpoint can't be expected to respond.
            if upload.movement() > sent || upload.is_waiting_for_client() {
                sent = upload.movement();
                step.set(rules.response_timeout);
            }
            if step.is_met()
                && upload.has_no_rate_limit()
                && let Some(more) = rest.longer(upload, rules.response_timeout, rules.stream_timeout)
            {
                step.set(more);
            }
            polled
        });
        let late = |_| {
            let error =
                Error::new(FailureKind::ResponseTimeout, format!("no response after {:?}", rules.response_timeout));
            AttemptFailure { error: error.with_limit("response-timeout"), reached: Delivery::MaybeProcessed }
        };
        Ok(match step.limit(rules.response_timeout, sending).await.map_err(late)? {
            Ok(response) => SendOutcome::Response(response),
            Err(unsent) => SendOutcome::Unsent(unsent),
        })
    }

    /// Removes the length of content with announced trailers, if it is to be sent over HTTP/1: only chunked content has
    /// room for trailers (RFC 9112 §7.1.2). Those that are not announced may be dropped (RFC 9110 §6.5.1), and each
    /// endpoint understands a length.
    fn make_room_for_trailers(&mut self, content: &RequestBody, version: Version) {
        let head = &mut self.context.request;
        if version != Version::HTTP_2
            && head.version == Version::HTTP_2
            && !content.is_end_stream()
            && head.headers.contains_key(header::TRAILER)
        {
            head.headers.remove(header::CONTENT_LENGTH);
        }
    }

    /// Returns the head for an endpoint, in a version of HTTP.
    fn request_head(
        &self,
        content: &RequestBody,
        endpoint: &EndpointAddr,
        version: Version,
    ) -> Result<RequestHead<'_>, Error> {
        let target = self.context.forwarded_target().cloned();
        let target = target.unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
        let head = &self.context.request;
        let addressed = RequestHead::new(&head.method, target, &head.headers, endpoint, version);
        let mut addressed = addressed.map_err(|error| Error::new(FailureKind::RequestError, error))?;
        addressed.further.extend(hop_by_hop::ask(self.hop, version));
        if version != Version::HTTP_2 && !head.headers.contains_key(header::CONTENT_LENGTH) {
            addressed.further.extend(framing(&head.method, content));
        }
        Ok(addressed)
    }

    /// Returns a response that can be passed on, with the connection that it streams from.
    fn accept_response(
        &self,
        mut response: Response<EndpointBody>,
        mut connection: Box<Connection>,
        in_flight_guard: InFlightGuard,
    ) -> Result<AttemptResponse, AttemptFailure> {
        let malformed = |why| AttemptFailure {
            error: Error::new(FailureKind::ProtocolError, why),
            reached: Delivery::MaybeProcessed,
        };
        let version = response.version();
        if version == Version::HTTP_2 && !self.rules.head.allow(response.headers()) {
            return Err(AttemptFailure { error: too_large(self.rules.head), reached: Delivery::MaybeProcessed });
        }
        if version == Version::HTTP_2 && !content_length::settle_length(response.headers_mut()) {
            return Err(malformed("the response's Content-Length is not one number"));
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS && !self.has_asked_for(&response) {
            return Err(malformed("a switch to a protocol that nobody asked for"));
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS && !self.has_proof(&response) {
            return Err(malformed("the endpoint switched protocols without the proof that it speaks WebSocket"));
        }
        if self.upload.is_over() {
            let pool = &in_flight_guard.endpoint_view().pool;
            pool.share_if_full(&mut connection, self.connection_limit, self.step.clock().now());
        }
        let (rules, step, upload) = (self.rules.clone(), self.step.clone(), self.upload.clone());
        Ok(AttemptResponse {
            response,
            lease: ConnectionLease { connection, in_flight_guard, is_good: true, rules, step, upload },
        })
    }

    /// Whether the client has asked for the protocol that the endpoint switches to.
    fn has_asked_for(&self, response: &Response<EndpointBody>) -> bool {
        self.hop.upgrade.as_ref().is_some_and(|asked| hop_by_hop::is_switch_to(asked, response.headers()))
    }

    /// Whether the endpoint has proved its switch to WebSocket. A client with HTTP/1 checks that itself; for a client
    /// with HTTP/2 this proxy has made the handshake.
    fn has_proof(&self, response: &Response<EndpointBody>) -> bool {
        let is_websocket = self.hop.upgrade.as_ref().is_some_and(websocket::is_websocket);
        let request = &self.context.request;
        !is_websocket
            || request.version != Version::HTTP_2
            || websocket::is_accepted(&request.headers, response.headers())
    }

    /// Whether a request whose connection has failed may be sent on another connection.
    fn may_resend(&self, unsent: &Unsent, connection: &Connection, origin: ConnectionOrigin) -> bool {
        // Other requests may have made a shared connection, and used it up.
        let was_in_use = origin == ConnectionOrigin::Kept || connection.version() == Version::HTTP_2;
        let is_untouched = unsent.content.is_some() && was_in_use;
        let is_harmless =
            origin == ConnectionOrigin::Kept && is_stale(&unsent.error) && self.context.request.method.is_idempotent();
        let may_repeat = is_harmless || is_unread(&unsent.error, connection);
        self.upload.fault().is_none() && (is_untouched || may_repeat && self.content.borrow().is_whole())
    }

    /// Keeps the rest of a request for another attempt.
    fn recover_body(&self, unsent: Unsent) -> SendError {
        self.upload.lose_reader();
        if let Some(content) = unsent.content {
            self.content.borrow_mut().put_back(content);
        }
        unsent.error
    }

    fn recover_unsent(&self, unsent: Unsent, connection: &Connection) -> AttemptFailure {
        let is_untouched = unsent.content.is_some();
        let error = self.recover_body(unsent);
        match self.upload.fault() {
            Some(fault) => {
                // h2 replaces the error with which the content has ended.
                let cause = match &error {
                    SendError::Http2(error) if is_own_reset(error) => replaced_cause(fault.kind).into(),
                    error => causes(error),
                };
                AttemptFailure { error: fault.error(cause), reached: Delivery::MaybeProcessed }
            }
            None if is_untouched => not_sent(named(error, self.rules.head, connection)),
            None => {
                let reached = match &error {
                    error if is_unread(error, connection) => Delivery::Unread,
                    // An endpoint that has no room for the only exchange of a connection is overloaded itself.
                    SendError::Http2(error)
                        if was_reset_for(error, h2::Reason::ENHANCE_YOUR_CALM) && connection.is_shared_now() =>
                    {
                        Delivery::Crowded
                    }
                    _ => Delivery::MaybeProcessed,
                };
                AttemptFailure { error: named(error, self.rules.head, connection), reached }
            }
        }
    }
}

/// The origin of a request's connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ConnectionOrigin {
    Fresh,
    Kept,
}

/// The longest content that is sent over a shared connection beside another choice, in bytes: a quarter of the window that
/// an endpoint has by default.
const MAX_SHARED_CONTENT: u64 = 16 << 10;

/// The number of times that a request is sent within an attempt. An endpoint that properly closes connections does so to many
/// requests at once, so that the second connection may be used up as well; one that has closed three is not well.
const TRIES: u32 = 3;

/// A failure that the endpoint can't know of.
fn not_sent(error: Error) -> AttemptFailure {
    AttemptFailure { error, reached: Delivery::NotSent }
}

fn body_not_replayable() -> AttemptFailure {
    AttemptFailure {
        error: Error::new(FailureKind::ConnectionTerminated, "the content can't be sent again"),
        reached: Delivery::MaybeProcessed,
    }
}

/// Returns the field that frames content over HTTP/1; `None` if there is no content to frame.
fn framing(method: &Method, content: &RequestBody) -> Option<(HeaderName, HeaderValue)> {
    if content.is_end_stream() {
        return wants_length(method).then_some((header::CONTENT_LENGTH, HeaderValue::from_static("0")));
    }
    let is_collected = matches!(content, RequestBody::Collected(_));
    Some(match content.size_hint().exact().filter(|_| is_collected) {
        Some(length) => (header::CONTENT_LENGTH, length.into()),
        None => (header::TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
    })
}

/// Whether a request without content needs `Content-Length: 0`, because its method gives content a meaning (RFC 9110
/// §8.6): some servers reject it otherwise.
fn wants_length(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH) || method.as_str() == "QUERY"
}

/// Whether an endpoint closed a kept connection before it sent a byte of the response.
fn is_stale(error: &SendError) -> bool {
    match error {
        SendError::Http1(error) => matches!(error, Http1Error::Closed(_)),
        SendError::Http2(error) => {
            error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_reset(error)
        }
    }
}

/// Whether an endpoint has not acted on a request: it said so (RFC 9113 §6.8, §8.7), the connection ended before any of
/// the request was sent, or the request was still waiting for a stream. hyper then drops the request with its task.
fn is_unread(error: &SendError, connection: &Connection) -> bool {
    let SendError::Http2(error) = error else { return false };
    if connection.has_sent_nothing() {
        return true;
    }
    let has_gone_away = cause::<h2::Error>(error).is_some_and(|error| error.is_remote() && error.is_go_away());
    has_gone_away
        || was_reset_for(error, h2::Reason::REFUSED_STREAM)
        || error.is_user() && connection.version() == Version::HTTP_2
}

/// Whether an endpoint has reset the stream for a reason.
fn was_reset_for(error: &hyper::Error, reason: h2::Reason) -> bool {
    cause::<h2::Error>(error)
        .is_some_and(|error| error.is_remote() && !error.is_go_away() && error.reason() == Some(reason))
}

fn is_reset(error: &hyper::Error) -> bool {
    cause::<std::io::Error>(error).is_some_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
    })
}

/// Returns the cause of content that has failed with an error which h2 has replaced.
fn replaced_cause(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::PluginError => "a plugin has failed in the content of the request",
        FailureKind::RequestBodySize => "the content is longer than a plugin takes",
        FailureKind::ContentCoding => "the content of the request can't be decoded",
        _ => "the content of the request is malformed",
    }
}

/// Whether hyper has reset the stream, because the content of the request has failed.
fn is_own_reset(error: &hyper::Error) -> bool {
    cause::<h2::Error>(error).is_some_and(|error| error.is_reset() && !error.is_remote() && !error.is_library())
}

/// Returns the cause of an error that has a type; `None` if no cause has it.
fn cause<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    std::error::Error::source(error)?.downcast_ref()
}

/// Returns the error of the socket, or of TLS, that a request failed for; `None` if there is none.
fn io_cause(error: &SendError) -> Option<&std::io::Error> {
    match error {
        SendError::Http1(Http1Error::Closed(error)) => error.as_ref(),
        SendError::Http1(Http1Error::Io(error) | Http1Error::Upload(UploadError::Io(error))) => Some(error),
        SendError::Http1(_) => None,
        SendError::Http2(error) => cause(error),
    }
}

/// Returns the error of the exchange for a request that got no response.
fn named(error: SendError, limits: ResponseHeadLimits, connection: &Connection) -> Error {
    if let Some(remedy) = connection.protocol_remedy() {
        return Error::new(FailureKind::ProtocolError, remedy);
    }
    if let Some(cause) = connection.flood() {
        return Error::new(FailureKind::ConnectionTerminated, cause);
    }
    let kind = match &error {
        SendError::Http1(Http1Error::Head(HeadError::TooLarge)) => return too_large(limits),
        SendError::Http1(Http1Error::Informational(_)) => {
            return Error::new(FailureKind::ResponseHeadSize, error).with_limit("limits.response-head");
        }
        SendError::Http1(Http1Error::Head(_)) => FailureKind::ProtocolError,
        SendError::Http1(_) => FailureKind::ConnectionTerminated,
        SendError::Http2(error) => {
            if let Some(refusal) = informational::refusal(error) {
                return Error::new(FailureKind::ResponseHeadSize, refusal).with_limit("limits.response-head");
            }
            let is_malformed = cause::<h2::Error>(error)
                .is_some_and(|error| error.is_library() && error.reason() == Some(h2::Reason::PROTOCOL_ERROR));
            if error.is_parse() || is_malformed {
                FailureKind::ProtocolError
            } else {
                FailureKind::ConnectionTerminated
            }
        }
    };
    // In TLS 1.3 an endpoint rejects a client certificate after the handshake.
    let io_error = io_cause(&error);
    let is_alert = io_error.and_then(handshake_error::class) == Some(TlsErrorClass::Alert);
    match io_error.and_then(|error| handshake_error::in_words(error, TlsPeer::Endpoint)) {
        Some(words) if is_alert => Error::new(FailureKind::TlsAlert, words),
        Some(words) => Error::new(kind, words),
        None => match connection.alert() {
            Some(words) => Error::new(FailureKind::TlsAlert, words),
            None => Error::new(kind, error),
        },
    }
}

fn too_large(limits: ResponseHeadLimits) -> Error {
    Error::new(FailureKind::ResponseHeadSize, limits.exceeded())
}

/// Returns the error of a connection that was not established in time.
fn late_connection(address: &EndpointAddr, after: Duration, stage: ConnectStage) -> Error {
    let is_tls = matches!(address.protocol, EndpointProtocol::Tls(_));
    let (kind, cause) = match stage {
        ConnectStage::Resolving => {
            (FailureKind::DnsTimeout, format!("the name of the endpoint was not resolved within {after:?}"))
        }
        ConnectStage::Reached if is_tls => {
            let cause =
                format!("connected, but no TLS handshake within {after:?}; it may not speak TLS at this address");
            (FailureKind::ConnectionTimeout, cause)
        }
        ConnectStage::Reached => {
            (FailureKind::ConnectionTimeout, format!("connected, but not ready for requests within {after:?}"))
        }
        ConnectStage::Waiting | ConnectStage::Connecting => {
            (FailureKind::ConnectionTimeout, format!("no connection after {after:?}"))
        }
    };
    Error::new(kind, cause).with_limit("connect-timeout")
}
