//! From a finished request to the head of a response: choose an endpoint, get a connection, send, and try once more
//! where that is safe.

use std::rc::Rc;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::body::{Ended, Lease, RequestBody, ResponseBody};
use crate::error::{Error, Kind};
use crate::generation::Running;
use crate::head::Head;
use crate::plugin::instance::Instance;
use crate::upstream::Connection;

/// Sends the request of `head` with a body to an upstream, given by its place.
pub async fn forward(
    running: &Rc<Running>,
    place: usize,
    head: &mut Head,
    body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    let upstream = &running.generation.upstreams[place];
    let chosen = choose(running, place)?;
    let (endpoint, pool) = (&upstream.endpoints[chosen], running.upstreams[place].pools[chosen].clone());
    head.endpoint = Some(endpoint.text.clone());
    let flight = endpoint.in_flight.begin();
    let mut connection = pool.connection(upstream.rules).await?;

    // A request that may be repeated is worth a copy only on a connection that may have gone stale.
    let repeatable = connection.reused && body.is_end_stream() && head.request.method.is_idempotent();
    let request = outgoing(head, &endpoint.text, body);
    let copy = repeatable.then(|| (request.method().clone(), request.uri().clone(), request.headers().clone()));
    let sending = async {
        match connection.sender.try_send_request(request).await {
            Ok(response) => Ok((response, connection)),
            Err(mut failed) => match (failed.take_message(), copy) {
                (Some(request), _) => resend(pool.fresh(upstream.rules).await?, request).await,
                (None, Some((method, uri, fields))) if is_stale(failed.error()) => {
                    let mut request = Request::new(RequestBody::Empty);
                    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, fields);
                    resend(pool.fresh(upstream.rules).await?, request).await
                }
                (None, _) => Err(from_hyper(failed.into_error())),
            },
        }
    };
    let late =
        |_| Error::new(Kind::ResponseTimeout, format!("no response after {:?}", upstream.rules.response_timeout));
    let (response, connection) = timeout(upstream.rules.response_timeout, sending).await.map_err(late)??;

    let rules = upstream.rules;
    let lease = Lease::new(move |ended| {
        drop(flight);
        if ended == Ended::Whole {
            pool.put_back(connection.sender, rules);
        }
    });
    Ok(response.map(|body| ResponseBody::Upstream(body, lease)))
}

/// The place of the endpoint for a request.
fn choose(running: &Running, place: usize) -> Result<usize, Error> {
    let upstream = &running.generation.upstreams[place];
    let Some(binding) = upstream.balancer else {
        let none = || Error::new(Kind::DestinationUnavailable, "the upstream has no endpoint");
        return if upstream.endpoints.is_empty() { Err(none()) } else { Ok(0) };
    };
    let binding = &running.generation.bindings[binding];
    let loads = upstream.endpoints.iter().map(|endpoint| endpoint.in_flight.count());
    let mut slot = running.upstreams[place].balancer.borrow_mut();
    let picked = slot.call(|| upstream.balancer_instance(binding), |instance: &mut Instance| instance.pick(loads, &[]));
    match picked {
        Ok(Some(index)) if (index as usize) < upstream.endpoints.len() => Ok(index as usize),
        Ok(Some(index)) => {
            Err(Error::new(Kind::PluginError, format!("the balancer chose endpoint {index}, which there isn't")))
        }
        Ok(None) => Err(Error::new(Kind::DestinationUnavailable, "the balancer found no endpoint")),
        Err(trap) => Err(Error::new(Kind::PluginError, trap)),
    }
}

fn outgoing(head: &Head, endpoint: &str, body: Incoming) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::Incoming(body));
    *request.method_mut() = head.request.method.clone();
    // Origin-form (RFC 9112 §3.2.1): the authority goes into Host.
    let target =
        head.request.uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    *request.uri_mut() = http::Uri::from(target);
    *request.headers_mut() = head.request.headers.clone();
    if !request.headers().contains_key(http::header::HOST)
        && let Ok(host) = http::HeaderValue::from_str(endpoint)
    {
        request.headers_mut().insert(http::header::HOST, host);
    }
    request
}

async fn resend(
    mut connection: Connection,
    request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Connection), Error> {
    let response = connection.sender.send_request(request).await.map_err(from_hyper)?;
    Ok((response, connection))
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
