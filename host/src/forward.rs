//! From a finished request to the head of a response: choose an endpoint, get a connection, send, and try once more
//! where that is safe.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use crate::body::{Lease, UpstreamBody};
use crate::chain;
use crate::clock::Deadline;
use crate::error::{Error, Kind};
use crate::generation::Running;
use crate::head::Head;
use crate::plugin::instance::Instance;
use crate::upload::{RequestBody, Upload};
use crate::upstream::KeepRules;
use crate::upstream::connection::Connection;

/// What is sent with a request, and how far that is.
pub struct Content {
    pub body: RequestBody,
    pub upload: Upload,
}

/// Sends the request of `head` with a body to an upstream, given by its place.
pub async fn forward(
    running: &Rc<Running>,
    place: usize,
    head: &mut Head,
    content: Content,
    deadline: &Deadline,
) -> Result<Response<UpstreamBody>, Error> {
    let upstream = &running.generation.upstreams[place];
    let (rules, clock) = (upstream.rules, deadline.clock());
    let chosen = choose(running, place, head)?;
    let (endpoint, pool) = (&upstream.endpoints[chosen], running.upstreams[place].pools[chosen].clone());
    head.endpoint = Some(endpoint.text.clone());
    let flight = endpoint.in_flight.begin();

    let Content { body, upload } = content;
    let empty = body.is_end_stream();
    let failed = |error: hyper::Error| match upload.failed() {
        Some(kind) => Error::new(kind, error),
        None => from_hyper(error),
    };
    let mut body = body;
    if let Some(connection) = pool.idle(rules, clock.now()) {
        let repeatable = empty && head.request.method.is_idempotent();
        match send(connection, outgoing(head, &endpoint.text, body), upload.clone(), rules, deadline).await? {
            Ok((response, connection)) => {
                let lease = Lease { connection, flight, pool, rules, clock: clock.clone() };
                return Ok(answered(response, lease, empty || upload.is_over()));
            }
            Err(mut unsent) => match unsent.take_message() {
                Some(request) => body = request.into_body(),
                None if repeatable && is_stale(unsent.error()) => body = RequestBody::Empty,
                None => return Err(failed(unsent.into_error())),
            },
        }
    }
    let late = |_| Error::new(Kind::ConnectionTimeout, format!("no connection after {:?}", rules.connect_timeout));
    // Boxed, so that the many exchanges that need no new connection don't carry room for it.
    let connection = deadline.limit(rules.connect_timeout, Box::pin(pool.fresh())).await.map_err(late)??;
    let sending = send(connection, outgoing(head, &endpoint.text, body), upload.clone(), rules, deadline).await?;
    let (response, connection) = sending.map_err(|unsent| failed(unsent.into_error()))?;
    let lease = Lease { connection, flight, pool, rules, clock: clock.clone() };
    Ok(answered(response, lease, empty || upload.is_over()))
}

type Sending = Result<(Response<Incoming>, Connection), TrySendError<Request<RequestBody>>>;

/// Sends a request and waits for the head of its response, driving the connection meanwhile. The request is handed
/// over before the future is made, which so has no need to hold it.
fn send(
    mut connection: Connection,
    request: Request<RequestBody>,
    upload: Upload,
    rules: KeepRules,
    deadline: &Deadline,
) -> impl Future<Output = Result<Sending, Error>> {
    let answer = connection.sender.try_send_request(request);
    async move {
        let driver = &mut connection.driver;
        let mut answer = pin!(answer);
        let mut sent = 0;
        let sending = poll_fn(|cx| {
            let polled = driver.poll(cx, |cx| answer.as_mut().poll(cx));
            // As long as the client's content goes on, the endpoint can't be expected to answer.
            if upload.bytes() > sent {
                sent = upload.bytes();
                deadline.set(rules.response_timeout);
            }
            polled
        });
        let late = |_| Error::new(Kind::ResponseTimeout, format!("no response after {:?}", rules.response_timeout));
        let answer = deadline.limit(rules.response_timeout, sending).await.map_err(late)?;
        Ok(answer.map(|response| (response, connection)))
    }
}

fn answered(response: Response<Incoming>, mut lease: Lease, all_sent: bool) -> Response<UpstreamBody> {
    if !all_sent {
        lease.connection.driver.detach();
    }
    response.map(|content| UpstreamBody::new(content, lease))
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

fn outgoing(head: &Head, endpoint: &str, body: RequestBody) -> Request<RequestBody> {
    let framed = body.is_end_stream() || head.request.headers.contains_key(http::header::CONTENT_LENGTH);
    let mut request = Request::new(body);
    *request.method_mut() = head.request.method.clone();
    // Origin-form (RFC 9112 §3.2.1): the authority goes into Host.
    let target =
        head.request.uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    *request.uri_mut() = http::Uri::from(target);
    *request.headers_mut() = head.request.headers.clone();
    if !framed {
        // hyper takes content of unknown length for none where the method rarely has any, as with GET.
        request.headers_mut().insert(http::header::TRANSFER_ENCODING, http::HeaderValue::from_static("chunked"));
    }
    let endpoint = if endpoint.starts_with("unix:") { "localhost" } else { endpoint };
    if !request.headers().contains_key(http::header::HOST)
        && let Ok(host) = http::HeaderValue::from_str(endpoint)
    {
        request.headers_mut().insert(http::header::HOST, host);
    }
    request
}

/// Whether an endpoint closed a connection that it had kept, before it said a byte of response.
fn is_stale(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || error_is_reset(error)
}

fn error_is_reset(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
    })
}

fn from_hyper(error: hyper::Error) -> Error {
    let kind = if error.is_parse() { Kind::ProtocolError } else { Kind::ConnectionTerminated };
    Error::new(kind, error)
}
