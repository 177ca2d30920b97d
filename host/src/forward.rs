//! From a finished request to the head of a response: choose an endpoint, get a connection, send, and try once more
//! where that is safe.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;

use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri};
use http_body::Body;
use hyper::body::Incoming;

use crate::body::{Lease, ResponseBody, Switched, UpstreamBody};
use crate::chain;
use crate::clock::Deadline;
use crate::error::{Error, Kind};
use crate::forwarding::{self, Hop};
use crate::generation::Running;
use crate::head::Head;
use crate::plugin::instance::Instance;
use crate::upload::{RequestBody, Upload};
use crate::upstream::connect::Wanted;
use crate::upstream::connection::{Answered, Connection};
use crate::upstream::{EndpointAddr, Flight, Rules, Speaks};

/// What is sent with a request, and how far that is.
pub struct Content {
    pub body: RequestBody,
    pub upload: Upload,
    /// What the endpoint is asked besides.
    pub hop: Hop,
}

/// Sends the request of `head` with a body to an upstream, given by its place. `step` limits each thing that is waited
/// for, up to the end of the response.
pub async fn forward(
    running: &Rc<Running>,
    place: usize,
    head: &mut Head,
    content: Content,
    step: &Deadline,
) -> Result<Response<ResponseBody>, Error> {
    let upstream = &running.generation.upstreams[place];
    let (rules, clock) = (upstream.rules, step.clock());
    let chosen = choose(running, place, head)?;
    let (endpoint, pool) = (&upstream.endpoints[chosen], running.upstreams[place].pools[chosen].clone());
    head.endpoint = Some(endpoint.address.text.clone());
    let flight = endpoint.in_flight.begin();

    let Content { mut body, upload, hop } = content;
    let (empty, asked) = (body.is_end_stream(), hop.upgrade.is_some());
    let wanted = if asked { Wanted::Http1 } else { Wanted::Any };
    if asked && endpoint.address.speaks == Speaks::Http2 {
        return Err(Error::new(Kind::ProtocolError, "the endpoint speaks HTTP/2 alone, in which nothing is upgraded"));
    }
    let failed = |error: hyper::Error| match upload.failed() {
        Some(kind) => Error::new(kind, error),
        None => from_hyper(error),
    };
    let lease = |connection, flight| Lease { connection, flight, pool: pool.clone(), rules, step: step.clone() };
    if let Some(mut connection) = pool.idle(wanted, rules, clock.now()) {
        let repeatable = empty && head.request.method.is_idempotent();
        let request = outgoing(head, &endpoint.address, connection.version(), &hop, body)?;
        let answer = connection.send(request);
        let answered = answered(&mut connection, answer, &upload, rules, step).await;
        match answered.inspect_err(|_| pool.give_up_shared())? {
            Ok(response) => return received(response, lease(connection, flight), empty, &upload, asked),
            Err(mut unsent) => match unsent.take_message() {
                Some(request) => body = request.into_body(),
                None if repeatable && is_stale(unsent.error()) => body = RequestBody::Empty,
                None => return Err(failed(unsent.into_error())),
            },
        }
    }
    let late = |_| Error::new(Kind::ConnectionTimeout, format!("no connection after {:?}", rules.connect_timeout));
    // Boxed, so that the many exchanges that need no new connection don't carry room for it.
    let connecting = Box::pin(pool.fresh(wanted, &head.peer, rules, clock.now()));
    let mut connection = step.limit(rules.connect_timeout, connecting).await.map_err(late)??;
    let request = outgoing(head, &endpoint.address, connection.version(), &hop, body)?;
    let answer = connection.send(request);
    let response = answered(&mut connection, answer, &upload, rules, step).await?;
    let response = response.map_err(|unsent| failed(unsent.into_error()))?;
    received(response, lease(connection, flight), empty, &upload, asked)
}

/// Waits for the head of a response, driving the connection meanwhile.
async fn answered(
    connection: &mut Connection,
    answer: impl Future<Output = Answered>,
    upload: &Upload,
    rules: Rules,
    step: &Deadline,
) -> Result<Answered, Error> {
    let mut answer = pin!(answer);
    let mut sent = 0;
    let sending = poll_fn(|cx| {
        let polled = connection.drive(cx, |cx| answer.as_mut().poll(cx));
        // As long as the client's content goes on, the endpoint can't be expected to answer.
        if upload.bytes() > sent {
            sent = upload.bytes();
            step.set(rules.response_timeout);
        }
        polled
    });
    let late = |_| Error::new(Kind::ResponseTimeout, format!("no response after {:?}", rules.response_timeout));
    step.limit(rules.response_timeout, sending).await.map_err(late)
}

/// What came back, with the connection that it streams from. `asked`: whether another protocol was asked for.
fn received(
    response: Response<Incoming>,
    mut lease: Lease,
    empty: bool,
    upload: &Upload,
    asked: bool,
) -> Result<Response<ResponseBody>, Error> {
    upload.take_time();
    let version = response.version();
    if version != Version::HTTP_2 && !forwarding::is_framed(version, response.headers()) {
        return Err(Error::new(Kind::ProtocolError, "the response's framing is ambiguous"));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if !asked {
            return Err(Error::new(Kind::ProtocolError, "a switch of protocols that nobody asked for"));
        }
        return switched(response, lease.connection, lease.flight);
    }
    if let (false, Some(driver)) = (empty || upload.is_over(), &mut lease.connection.driver) {
        driver.detach();
    }
    Ok(response.map(|content| ResponseBody::Upstream(Box::new(UpstreamBody::new(content, lease)))))
}

fn switched(
    response: Response<Incoming>,
    connection: Connection,
    flight: Flight,
) -> Result<Response<ResponseBody>, Error> {
    let protocol = response.headers().get(header::UPGRADE).cloned().unwrap_or(HeaderValue::from_static("unknown"));
    let lost = || Error::new(Kind::ConnectionTerminated, "the endpoint closed as it switched protocols");
    let stream = connection.into_stream().ok_or_else(lost)?;
    Ok(response.map(|_| ResponseBody::Switched(Box::new(Switched { protocol, stream, flight }))))
}

/// The place of the endpoint for a request.
fn choose(running: &Running, place: usize, head: &Head) -> Result<usize, Error> {
    let upstream = &running.generation.upstreams[place];
    let (Some(at), Some(slot)) = (upstream.balancer, &running.upstreams[place].balancer) else {
        let none = || Error::new(Kind::DestinationUnavailable, "the upstream has no endpoint");
        return if upstream.endpoints.is_empty() { Err(none()) } else { Ok(0) };
    };
    let binding = &running.generation.bindings[at];
    let loads = upstream.endpoints.iter().map(|endpoint| endpoint.in_flight.count());
    let picked = chain::counted(running, at, || {
        slot.borrow_mut().call(
            || upstream.balancer_instance(binding, &running.place),
            |instance: &mut Instance| instance.pick(&binding.balancer, head, loads),
        )
    });
    match picked {
        Ok(Some(index)) if (index as usize) < upstream.endpoints.len() => Ok(index as usize),
        Ok(Some(index)) => {
            Err(Error::new(Kind::PluginError, format!("the balancer chose endpoint {index}, which there isn't")))
        }
        Ok(None) => Err(Error::new(Kind::DestinationUnavailable, "the balancer found no endpoint")),
        Err(trap) => {
            running.plugins[at].failures.add(1);
            tracing::warn!(plugin = &*binding.name, error = %trap, "balancer failed");
            Err(Error::new(Kind::PluginError, trap))
        }
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
