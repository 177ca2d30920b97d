//! An HTTP/1 connection of a client: serves its exchanges, uses little memory while idle, and closes without losing a
//! response. After some idle time the connection frees its HTTP state and buffers and keeps only its socket; the next
//! byte creates them again.

mod screened_io;
mod session;

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use http::header::{self, HeaderValue};
use http::{StatusCode, response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http1::screened_io::ScreenedIo;
use super::http1::session::{Http1Body, RejectedRequest, Session, first_line};
use super::write_timeout::WriteTimeout;
use super::{ClientConnection, DISCARD_BYTES, DISCARD_TIME, LINGER, Transport, is_settled, tunnel, wait_until};
use crate::context::ReceivedRequest;
use crate::error::{Error, FailureKind};
use crate::exchange::respond::Rejection;
use crate::exchange::response_body::ResponseBody;
use crate::net::boxed::boxed;
use crate::net::hyper_io::HyperIo;
use crate::net::turn;
use crate::protocol::framing::Scanner;
use crate::store::unix_time::http_date;
use crate::telemetry::failure_log::{self, Topic};

/// Serves a client connection until either side ends it. `ahead` holds bytes that were read already.
pub fn serve(stream: impl Transport, ahead: Bytes, client: ClientConnection) -> impl Future<Output = ()> {
    let scanner = Scanner::new(client.arrival.listener.limits.framing);
    let session = Session::new(client);
    let listener = &session.client.arrival.listener;
    let io = WriteTimeout::new(stream, ahead, session.send.clone(), listener.limits.send, listener.census.clone());
    let io = io.of(&session.client.arrival.peer);
    let io = ScreenedIo { io, scanner, session: session.clone(), refusal: None };
    // A closure, whose future hyper stores inline: a boxed one would cost an allocation per request.
    let exchanges = |session: Rc<Session>| service_fn(move |request| session.clone().exchange(request));
    Http1Connection {
        state: ConnectionState::Idle(Box::new(io)),
        session,
        exchanges,
        graceful: false,
        fresh: true,
        gives_way: false,
    }
}

struct Http1Connection<T: Transport, E, S: HttpService<Incoming>> {
    state: ConnectionState<T, S>,
    session: Rc<Session>,
    /// Creates hyper's service from the session.
    exchanges: E,
    graceful: bool,
    /// Whether nothing was read yet. The TLS session may have received bytes beyond its handshake.
    fresh: bool,
    /// Whether the last poll has served a pipeline of requests, so that others have their turn before the next one.
    gives_way: bool,
}

/// The requests in one poll of a connection from which on they are a pipeline that may be long. A connection with more of
/// them wakes itself, and is polled dozens of times before the worker polls its sockets.
const PIPELINED: usize = 8;

enum ConnectionState<T: Transport, S: HttpService<Incoming>> {
    /// The connection is active, with hyper's state and buffers.
    Active(Box<http1::Connection<HyperIo<ScreenedIo<T>>, S>>),
    /// The connection is idle: a socket and nothing else. Boxed, as the state is moved with each poll.
    Idle(Box<ScreenedIo<T>>),
    /// The connection has left HTTP: it is a tunnel, or it sends a last response and closes.
    Closing(Pin<Box<dyn Future<Output = ()>>>),
    Ended,
}

impl<T, E, S> Http1Connection<T, E, S>
where
    T: Transport,
    S: HttpService<Incoming, ResBody = Http1Body, Error = Infallible>,
{
    fn poll_serving(
        &mut self,
        mut connection: Box<http1::Connection<HyperIo<ScreenedIo<T>>, S>>,
        cx: &mut Context<'_>,
    ) -> ConnectionState<T, S> {
        if std::mem::take(&mut self.gives_way) {
            turn::give_way(cx);
            return ConnectionState::Active(connection);
        }
        let session = &self.session;
        let before = session.served();
        let mut polled = Pin::new(&mut *connection).poll(cx);
        self.gives_way = polled.is_pending() && session.served() - before >= PIPELINED;
        if polled.is_pending() {
            session.read_ahead(cx);
            session.discard_rest(cx);
        }
        // The rest of a head that has begun is waited for, until `limits.head-timeout`.
        let is_receiving = session.in_head.get() && !session.busy.get();
        if polled.is_pending() && session.ends_when_idle() && !self.graceful && !is_receiving {
            // Set only here: bytes that have been read already are still served.
            self.graceful = true;
            Pin::new(&mut *connection).graceful_shutdown();
            polled = Pin::new(&mut *connection).poll(cx);
        }
        if matches!(polled, Poll::Ready(Ok(()))) && !session.flushed.get() && session.switched.borrow().is_none() {
            // After a request for an upgrade hyper leaves its buffer to the next owner; there is none here.
            polled = Pin::new(&mut *connection).poll(cx);
        }
        if let Poll::Ready(served) = polled {
            if let Err(error) = served {
                tracing::debug!(%error, "client connection");
                return self.close(*connection, Some(Transport::is_gone));
            }
            session.finish_flushed();
            return self.close(*connection, None);
        }
        if session.busy.get() {
            return ConnectionState::Active(connection);
        }
        if session.refused.get().is_some() && session.flushed.get() {
            return self.close(*connection, None);
        }
        // A body that continues after its response has the time of the next head. A slow reader of the response keeps
        // that time from running as long as it accepts data.
        if session.head.is_met() && session.flushed.get() {
            if session.in_head.get() {
                session.refused.set(Some(RejectedRequest::Late));
            }
            return self.close(*connection, None);
        }
        // With a partial head, hyper would need its first bytes a second time.
        let is_between = session.upload.borrow().is_over() && !session.is_discarding() && !session.in_head.get();
        let may_rest = !self.graceful && is_between;
        if may_rest && session.rest.is_met() && session.flushed.get() {
            session.rest.clear();
            let parts = connection.into_parts();
            let mut io = parts.io.into_socket();
            // A copy, nearly always of nothing: hyper's own buffer would be held for as long as the connection rests.
            io.io.ahead = Bytes::copy_from_slice(&parts.read_buf);
            return ConnectionState::Idle(Box::new(io));
        }
        ConnectionState::Active(connection)
    }

    /// Returns the state after hyper is done: a tunnel, a last response, or a close. `is_gone` tells of a failed
    /// connection whether its client has reset it.
    fn close(
        &self,
        connection: http1::Connection<HyperIo<ScreenedIo<T>>, S>,
        is_gone: Option<fn(&T) -> bool>,
    ) -> ConnectionState<T, S> {
        let parts = connection.into_parts();
        let io = parts.io.into_socket().io;
        self.session.leave();
        if let Some(is_gone) = is_gone {
            self.session.report(&io.socket, is_gone);
        }
        let (refused, switched) = (self.session.refused.get(), self.session.switched.take());
        if let (None, Some((switched, record))) = (refused, switched) {
            let idle = self.session.client.arrival.listener.limits.tunnel_timeout;
            let ahead = if parts.read_buf.is_empty() { io.ahead } else { parts.read_buf };
            let deadline = self.session.spare_deadline();
            let client = tunnel::TunnelClient { socket: io.socket, ahead, idle, deadline };
            return ConnectionState::Closing(boxed(|| tunnel::run(client, switched, record)));
        }
        let has_head = self.session.in_head.get() || matches!(refused, Some(RejectedRequest::Malformed(_)));
        if has_head && self.session.rejected_line.borrow().is_empty() {
            // hyper keeps the beginning of a head that the last read didn't complete.
            self.session.rejected_line.replace(first_line(&parts.read_buf));
        }
        let unanswered = refused.filter(|_| !self.session.is_answered.get());
        let farewell = unanswered.map_or(Bytes::new(), |refused| error_response_bytes(&self.session, refused));
        ConnectionState::Closing(boxed(|| close_gracefully(io.socket, farewell, self.session.clone())))
    }

    fn make_idle(&mut self, io: Box<ScreenedIo<T>>, cx: &mut Context<'_>) -> ConnectionState<T, S>
    where
        E: Fn(Rc<Session>) -> S,
    {
        let is_fresh = std::mem::take(&mut self.fresh);
        if !is_fresh && io.io.ahead.is_empty() && io.io.socket.poll_read_ready(cx).is_pending() {
            let is_over = self.session.ends_when_idle() || self.session.head.is_met();
            // There may be a request of which the runtime will tell in its next turn.
            if !is_over || io.io.socket.has_bytes() {
                return ConnectionState::Idle(io);
            }
            self.session.leave();
            return ConnectionState::Closing(boxed(|| {
                close_gracefully(io.io.socket, Bytes::new(), self.session.clone())
            }));
        }
        let exchanges = (self.exchanges)(self.session.clone());
        let head = self.session.client.arrival.listener.limits.framing;
        let mut builder = http1::Builder::new();
        // The scanner has rejected longer heads: hyper's own limits only have to be no lower.
        builder.max_buf_size(head.head_bytes.saturating_add(HEAD_END).max(BUFFER));
        if head.fields > FIELDS {
            builder.max_headers(head.fields);
        }
        ConnectionState::Active(Box::new(builder.serve_connection(HyperIo::new(*io), exchanges)))
    }
}

/// The minimum bound of hyper's buffers, in bytes; bodies pass them in both directions. At most this many bytes and one
/// more piece wait to be written.
const BUFFER: usize = 32 << 10;
/// The maximum number of fields that hyper parses on its stack. With a larger number, it allocates for each request.
const FIELDS: usize = 100;
/// The spare room behind the head limit, in bytes.
const HEAD_END: usize = 1 << 10;

impl<T, E, S> Future for Http1Connection<T, E, S>
where
    T: Transport,
    E: Fn(Rc<Session>) -> S + Unpin,
    S: HttpService<Incoming, ResBody = Http1Body, Error = Infallible>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.session.head.watch(cx);
        loop {
            let was_resting = matches!(this.state, ConnectionState::Idle(_));
            this.state = match std::mem::replace(&mut this.state, ConnectionState::Ended) {
                ConnectionState::Ended => return Poll::Ready(()),
                ConnectionState::Idle(io) => this.make_idle(io, cx),
                ConnectionState::Active(connection) => this.poll_serving(connection, cx),
                ConnectionState::Closing(mut leaving) => match leaving.as_mut().poll(cx) {
                    Poll::Ready(()) => return Poll::Ready(()),
                    Poll::Pending => {
                        this.state = ConnectionState::Closing(leaving);
                        return Poll::Pending;
                    }
                },
            };
            match &this.state {
                ConnectionState::Active(_) if !was_resting => return Poll::Pending,
                ConnectionState::Idle(_) if was_resting => return Poll::Pending,
                _ => {}
            }
        }
    }
}

/// Sends a last response and closes the connection so that the client can read it.
async fn close_gracefully(mut socket: impl Transport, farewell: Bytes, session: Rc<Session>) {
    let limit = session.spare_deadline();
    let last_word = async {
        socket.write_all(&farewell).await?;
        socket.shutdown().await
    };
    // A client that does not accept the response in time loses the rest of it.
    let is_closed = matches!(limit.limit(LINGER, last_word).await, Ok(Ok(())));
    if session.has_unconfirmed() {
        wait_until(|| is_settled(&socket), &limit).await;
        session.report(&socket, Transport::is_reset);
    }
    if !is_closed {
        return;
    }
    let (until, mut left, mut unread) = (limit.clock().now() + DISCARD_TIME, DISCARD_BYTES, [0; 4 << 10]);
    while !session.heard_all.get() && limit.clock().now() < until {
        match limit.limit(LINGER, socket.read(&mut unread)).await {
            Ok(Ok(length)) if (1..=left).contains(&length) => left -= length,
            // Closing now would reset the socket while the client still sends.
            Ok(Ok(1..)) => return drop(limit.limit(LINGER, std::future::pending::<()>()).await),
            _ => return,
        }
    }
}

/// Returns the response to bytes that never became a request.
fn error_response_bytes(session: &Session, refused: RejectedRequest) -> Bytes {
    let (kind, status, cause, limit) = match refused {
        RejectedRequest::Framing(refusal) => {
            (FailureKind::RequestError, refusal.status(), refusal.reason(), refusal.limit())
        }
        RejectedRequest::Late => {
            (FailureKind::RequestTimeout, 408, "the head took too long", Some("limits.head-timeout"))
        }
        RejectedRequest::Malformed(status) => {
            (FailureKind::RequestError, status, "no request that can be parsed", None)
        }
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let error = Error { limit, ..Error::new(kind, cause) };
    let received = ReceivedRequest::Unparsed(session.rejected_line.take());
    let response = session.client.refuse(Rejection { error, status, received });
    let (parts, mut outgoing) = response.into_parts();
    let content = match &outgoing.body {
        ResponseBody::Full(content) => content.clone(),
        _ => Bytes::new(),
    };
    outgoing.count(content.len());
    written(&parts, &content)
}

/// Serialises a response that is the last of its connection.
fn written(parts: &response::Parts, content: &[u8]) -> Bytes {
    let status = parts.status;
    let mut text =
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", content.len()).into_bytes();
    text.extend(format!("date: {}\r\n", http_date()).bytes());
    for (name, value) in &parts.headers {
        text.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    [&text[..], b"\r\n", content].concat().into()
}

// === Plain HTTP at a TLS port ===

/// Responds in plain HTTP to a client that uses it at a listener with TLS. A client that does not send a request line
/// is closed without a response.
pub async fn misplaced(mut stream: impl Transport, client: ClientConnection) {
    let session = Session::new(client);
    let limit = session.spare_deadline();
    let mut line = Vec::new();
    let reading = async {
        while !line.contains(&b'\n') && line.len() < MAX_LINE_BYTES {
            if stream.read_buf(&mut (&mut line).limit(MAX_LINE_BYTES)).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    let read = limit.limit(session.client.arrival.listener.limits.head_timeout, reading).await;
    if !matches!(read, Ok(Ok(()))) || !is_request_line(&line) {
        let client = session.client.arrival.peer.address.as_ref().and_then(|address| address.to_str().ok());
        // Without a whole line the client has merely disconnected.
        if line.contains(&b'\n') && failure_log::admits(Topic::Handshake, client.unwrap_or_default()) {
            tracing::warn!(client, cause = "the first bytes are neither TLS nor HTTP", "handshake failed");
        }
        return;
    }
    let error = Error::new(FailureKind::RequestError, "HTTP was spoken without TLS to a listener with `tls`");
    let (status, received) = (StatusCode::BAD_REQUEST, ReceivedRequest::Unparsed(first_line(&line)));
    let (mut parts, mut outgoing) = session.client.refuse(Rejection { error, status, received }).into_parts();
    outgoing.count(MISPLACED.len());
    drop(outgoing);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let farewell = written(&parts, MISPLACED.as_bytes());
    session.leave();
    close_gracefully(stream, farewell, session.clone()).await;
}

const MISPLACED: &str = "400 Bad Request\nThis port speaks TLS, and the request came without it: use https.\n";

/// The maximum number of bytes of a line that are examined.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Whether bytes begin with an HTTP request line, or with a target so long that the version hasn't arrived yet.
fn is_request_line(bytes: &[u8]) -> bool {
    let mut parts = bytes.split(|byte| *byte == b' ');
    let method = parts.next().unwrap_or_default();
    let is_method = !method.is_empty() && method.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-');
    let (target, version) = (parts.next().unwrap_or_default(), parts.next());
    let is_cut = bytes.len() >= MAX_LINE_BYTES && version.is_none();
    is_method && !target.is_empty() && (is_cut || version.is_some_and(|version| version.starts_with(b"HTTP/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_are_told_from_other_protocols() {
        let long = format!("GET /{}", "x".repeat(MAX_LINE_BYTES));
        for line in ["GET / HTTP/1.1\r\nHost: a", "PRI * HTTP/2.0\r\n", "M-SEARCH * HTTP/1.1\r\n", &long] {
            assert!(is_request_line(line.as_bytes()), "{line}");
        }
        for line in ["SSH-2.0-OpenSSH_9.2\r\n", "EHLO example.org\r\n", "GET /\r\n", "GET  HTTP/1.1", "", "\0\0"] {
            assert!(!is_request_line(line.as_bytes()), "{line}");
        }
    }
}
