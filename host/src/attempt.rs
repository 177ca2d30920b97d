//! One attempt at one endpoint: get a connection, send the request, wait for the head of the response. A connection that
//! had been kept and turns out dead is no failed attempt: the request goes out once more on a fresh one where that is
//! safe.

use std::future::poll_fn;
use std::pin::pin;

use http::{HeaderValue, Request, Response, Uri, Version, header, uri};
use http_body::Body;
use hyper::body::Incoming;

use crate::body::Lease;
use crate::clock::Deadline;
use crate::error::{Error, Kind};
use crate::forwarding::{self, Hop};
use crate::head::Head;
use crate::resend::Content;
use crate::upload::{RequestBody, Upload};
use crate::upstream::connect::Wanted;
use crate::upstream::connection::{Answered, Connection};
use crate::upstream::retry::Reached;
use crate::upstream::seats::Flight;
use crate::upstream::slots::Slots;
use crate::upstream::{EndpointAddr, Leave, Rules, Speaks};

/// What is sent, and under which rules.
pub struct Attempt<'a> {
    pub head: &'a Head,
    pub content: &'a mut Content,
    pub upload: &'a Upload,
    /// What the endpoint is asked besides.
    pub hop: &'a Hop,
    pub rules: Rules,
    pub slots: &'a Slots,
    /// Limits each thing that is waited for.
    pub step: &'a Deadline,
}

/// An attempt that brought no response.
pub struct Failure {
    pub error: Error,
    pub reached: Reached,
}

impl Attempt<'_> {
    /// Sends the request to the endpoint of a flight.
    pub async fn run(self, flight: Flight) -> Result<(Response<Incoming>, Lease), Failure> {
        let pool = flight.seat().pool.clone();
        let wanted = self.wanted(&flight.seat().endpoint.address)?;
        if let Some(mut connection) = pool.idle(wanted, self.rules, self.step.clock().now()) {
            let body = self.content.take().ok_or_else(spent)?;
            let sent = self.send(&mut connection, &flight, body).await;
            match sent.inspect_err(|_| pool.give_up_shared())? {
                Ok(response) => return Ok((response, self.lease(connection, flight))),
                Err(mut unsent) => match unsent.take_message() {
                    Some(request) => self.content.put_back(request.into_body()),
                    None if self.repeats(unsent.error()) => {}
                    None => return Err(self.failed(unsent.into_error())),
                },
            }
        }
        let mut connection = self.connect(&flight, wanted).await?;
        let body = self.content.take().ok_or_else(spent)?;
        match self.send(&mut connection, &flight, body).await? {
            Ok(response) => Ok((response, self.lease(connection, flight))),
            Err(mut unsent) => match unsent.take_message() {
                Some(request) => {
                    self.content.put_back(request.into_body());
                    Err(Failure { error: from_hyper(unsent.into_error()), reached: Reached::Nobody })
                }
                None => Err(self.failed(unsent.into_error())),
            },
        }
    }

    fn wanted(&self, address: &EndpointAddr) -> Result<Wanted, Failure> {
        if self.hop.upgrade.is_none() {
            return Ok(Wanted::Any);
        }
        if address.speaks == Speaks::Http2 {
            let why = "the endpoint speaks HTTP/2 alone, in which nothing is upgraded";
            return Err(nobody(Error::new(Kind::ProtocolError, why)));
        }
        Ok(Wanted::Http1)
    }

    /// A connection of the request's own, or one that has become free.
    async fn connect(&self, flight: &Flight, wanted: Wanted) -> Result<Connection, Failure> {
        let (rules, pool, clock) = (self.rules, &flight.seat().pool, self.step.clock());
        let full = |_| {
            nobody(Error::new(Kind::LimitReached, format!("no connection became free in {:?}", rules.connect_timeout)))
        };
        let leave = self.step.limit(rules.connect_timeout, pool.leave(self.slots, wanted, rules, clock));
        let slot = match leave.await.map_err(full)?.map_err(nobody)? {
            Leave::Use(connection) => return Ok(connection),
            Leave::Connect(slot) => slot,
        };
        let late =
            |_| nobody(Error::new(Kind::ConnectionTimeout, format!("no connection after {:?}", rules.connect_timeout)));
        // Boxed, so that the many exchanges that need no new connection don't carry room for it.
        let connecting = Box::pin(pool.fresh(slot, wanted, &self.head.peer, rules, clock));
        self.step.limit(rules.connect_timeout, connecting).await.map_err(late)?.map_err(nobody)
    }

    /// Sends, and waits for the head of the response, driving the connection meanwhile.
    async fn send(&self, connection: &mut Connection, flight: &Flight, body: RequestBody) -> Result<Answered, Failure> {
        let (rules, step) = (self.rules, self.step);
        let address = &flight.seat().endpoint.address;
        let request = outgoing(self.head, address, connection.version(), self.hop, body).map_err(nobody)?;
        let mut answer = pin!(connection.send(request));
        let mut sent = 0;
        let sending = poll_fn(|cx| {
            let polled = connection.drive(cx, |cx| answer.as_mut().poll(cx));
            // As long as the client's content goes on, the endpoint can't be expected to answer.
            if self.upload.bytes() > sent {
                sent = self.upload.bytes();
                step.set(rules.response_timeout);
            }
            polled
        });
        let late = |_| {
            let error = Error::new(Kind::ResponseTimeout, format!("no response after {:?}", rules.response_timeout));
            Failure { error, reached: Reached::Endpoint }
        };
        step.limit(rules.response_timeout, sending).await.map_err(late)
    }

    fn lease(&self, connection: Connection, flight: Flight) -> Lease {
        Lease { connection, flight, is_good: true, rules: self.rules, step: self.step.clone() }
    }

    /// Whether a request that died with a kept connection may go out on a fresh one.
    fn repeats(&self, error: &hyper::Error) -> bool {
        is_stale(error)
            && self.upload.failed().is_none()
            && self.head.request.method.is_idempotent()
            && self.content.is_whole()
    }

    fn failed(&self, error: hyper::Error) -> Failure {
        match self.upload.failed() {
            Some(kind) => Failure { error: Error::new(kind, error), reached: Reached::Endpoint },
            None if is_unread(&error) => nobody(from_hyper(error)),
            None => Failure { error: from_hyper(error), reached: Reached::Endpoint },
        }
    }
}

/// A failure that the endpoint can't know of.
fn nobody(error: Error) -> Failure {
    Failure { error, reached: Reached::Nobody }
}

fn spent() -> Failure {
    Failure {
        error: Error::new(Kind::ConnectionTerminated, "the content can't be sent again"),
        reached: Reached::Endpoint,
    }
}

fn outgoing(
    head: &Head,
    endpoint: &EndpointAddr,
    version: Version,
    hop: &Hop,
    body: RequestBody,
) -> Result<Request<RequestBody>, Error> {
    let framed = body.is_end_stream() || head.request.headers.contains_key(header::CONTENT_LENGTH);
    let mut request = Request::new(body);
    *request.method_mut() = head.request.method.clone();
    let target = head.request.uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    let fields = request.headers_mut();
    *fields = head.request.headers.clone();
    forwarding::ask(hop, version, fields);
    if !fields.contains_key(header::HOST)
        && let Ok(host) = HeaderValue::from_str(endpoint.place.authority())
    {
        fields.insert(header::HOST, host);
    }
    if version == Version::HTTP_2 {
        *request.uri_mut() = absolute(request.headers_mut().remove(header::HOST), endpoint, target)?;
        *request.version_mut() = version;
        return Ok(request);
    }
    if !framed {
        // hyper takes content of unknown length for none where the method rarely has any, as with GET.
        fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // Origin-form (RFC 9112 §3.2.1): the authority goes into Host.
    *request.uri_mut() = Uri::from(target);
    Ok(request)
}

/// The target of a request in HTTP/2, whose authority stands for `Host` (RFC 9113 §8.3.1).
fn absolute(host: Option<HeaderValue>, endpoint: &EndpointAddr, target: uri::PathAndQuery) -> Result<Uri, Error> {
    let authority = host.as_ref().map_or(endpoint.place.authority().as_bytes(), HeaderValue::as_bytes);
    let scheme = if endpoint.speaks == Speaks::Http2 { uri::Scheme::HTTP } else { uri::Scheme::HTTPS };
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build();
    uri.map_err(|error| Error::new(Kind::RequestError, error))
}

/// Whether an endpoint closed a connection that it had kept, before it said a byte of response.
fn is_stale(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_reset(error) || is_unread(error)
}

/// Whether an endpoint said that it has done nothing about a request (RFC 9113 §6.8, §8.7).
fn is_unread(error: &hyper::Error) -> bool {
    cause::<h2::Error>(error).is_some_and(|error| {
        error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

fn is_reset(error: &hyper::Error) -> bool {
    cause::<std::io::Error>(error).is_some_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
    })
}

/// What is behind an error, if it is of this kind.
fn cause<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    std::error::Error::source(error)?.downcast_ref()
}

fn from_hyper(error: hyper::Error) -> Error {
    let kind = if error.is_parse() { Kind::ProtocolError } else { Kind::ConnectionTerminated };
    Error::new(kind, error)
}
