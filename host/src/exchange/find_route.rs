//! Finds the route of a request, or the response of a request that has none.

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode, Uri, Version};

use super::{ConnectionInfo, error_response};
use crate::error::{Error, FailureKind};
use crate::exchange::record::ExchangeRecord;
use crate::exchange::response_body::ResponseBody;
use crate::generation::ids::RouteId;
use crate::generation::listener::Listener;
use crate::generation::worker_state::WorkerState;
use crate::protocol::client_address::Settled;
use crate::protocol::client_net::ClientNet;
use crate::protocol::request_target::AcceptedPath;
use crate::protocol::{hop_by_hop, http2_request, path, request_target};

/// The reason for which a request has no route.
pub enum NoRoute {
    Failed {
        error: Error,
        status: StatusCode,
    },
    /// The proxy answers by itself: the listener redirects every client, or the request may not be forwarded.
    Answered(Box<Response<ResponseBody>>),
}

/// Checks that the client of a connection was verified by what its listener requires now: a reload may have changed that since
/// the handshake.
pub fn check_verified(began: &Listener, now: &Listener) -> Result<(), NoRoute> {
    if began.rules.verify_as(&now.rules) {
        return Ok(());
    }
    let cause = "a reload has changed the listener's `client-ca` or `client-certificate`, and the connection is older";
    let error = Error::new(FailureKind::RequestError, cause).with_limit("client-ca");
    Err(NoRoute::Failed { error, status: StatusCode::MISDIRECTED_REQUEST })
}

/// Counts a request of a trusted proxy for its client, if the number of requests per client is limited.
pub fn count_for_client(
    settled: &Settled,
    arrival: &ConnectionInfo,
    record: &mut ExchangeRecord,
) -> Result<(), NoRoute> {
    let Some(max) = arrival.listener.limits.connections_per_client.filter(|_| arrival.is_trusted) else {
        return Ok(());
    };
    let address = settled.client.as_ref().map(|client| client.socket.ip());
    let (Some(net), Some(address)) = (ClientNet::new(address), address) else { return Ok(()) };
    record.counted = arrival.listener.census.enter_request(net, max);
    if record.counted.is_some() {
        return Ok(());
    }
    let cause = format!("limits.connections-per-client of {max} is reached by the requests of the client {address}");
    let error = Error::new(FailureKind::LimitReached, cause).with_limit("limits.connections-per-client");
    Err(NoRoute::Failed { error, status: StatusCode::TOO_MANY_REQUESTS })
}

/// The route of a request.
pub struct FoundRoute {
    pub route_id: RouteId,
    /// The path that the client has sent, if the route forwards it and it differs from that of the request; `None`
    /// otherwise.
    pub sent: Option<Uri>,
}

/// Finds the index of a request's route.
pub fn find_route(
    worker: &WorkerState,
    request: &mut Parts,
    settled: &Settled,
    arrival: &ConnectionInfo,
) -> Result<FoundRoute, NoRoute> {
    let failed = |error: Error| NoRoute::Failed { status: error.client_status(), error };
    if settled.is_rejected {
        let cause = "an origin may take a field's name for another's, and field-aliases is \"reject\"";
        return Err(failed(Error::new(FailureKind::RequestError, cause).with_limit("field-aliases")));
    }
    if request.version == Version::HTTP_2
        && let Some(rule) = http2_request::violation(&request.headers)
    {
        return Err(failed(Error::new(FailureKind::RequestError, rule)));
    }
    let is_secure = arrival.peer.is_secure_for(settled.scheme);
    let way = request_target::Arrival { is_secure, is_trusted: arrival.is_trusted };
    let accepted = request_target::accept(request, way).map_err(failed)?;
    let (router, listener) = (&worker.generation.router, &arrival.listener);
    if let Some(port) = listener.redirect
        // Its client would follow the redirect to the same URI for ever.
        && !is_secure
        && router.route_of_listener(request, &listener.address).is_none()
    {
        return Err(redirect_to_https(request, &accepted, port));
    }
    if !hop_by_hop::count_forward(&request.method, &mut request.headers) {
        return Err(last_recipient(&request.method));
    }
    if hop_by_hop::is_looping(&request.headers) {
        let cause = "the request has passed 16 proxies like this one: an endpoint leads back to a listener";
        return Err(failed(Error::new(FailureKind::LoopDetected, cause)));
    }
    let none = || match accepted {
        AcceptedPath::Doubtful(_, why) => request_target::rejected_path(why),
        _ => Error::new(FailureKind::NoRoute, "no route of the manifest matches the request"),
    };
    let route_id = router.route(request, &listener.address).ok_or_else(|| failed(none()))?;
    if request.method == Method::TRACE && !worker.generation.routes[route_id].forwards_trace {
        let error = Error::new(FailureKind::RequestError, "a TRACE request for a route that does not name the method");
        return Err(NoRoute::Failed { error, status: StatusCode::METHOD_NOT_ALLOWED });
    }
    let sent = settle_sent_path(worker, request, accepted, route_id, &listener.address).map_err(failed)?;
    Ok(FoundRoute { route_id, sent })
}

fn redirect_to_https(request: &Parts, accepted: &AcceptedPath, port: u16) -> NoRoute {
    // Another spelling may be another resource; whether it is accepted is known once the request arrives with https.
    let target = match accepted {
        AcceptedPath::Normal => &request.uri,
        AcceptedPath::Spelt(sent) | AcceptedPath::Doubtful(sent, _) => sent,
    };
    match request_target::with_https(request, target, port) {
        // The client repeats its method and its body.
        Some(location) => {
            NoRoute::Answered(Box::new(error_response::redirect(StatusCode::PERMANENT_REDIRECT, location)))
        }
        None => {
            let error = Error::new(FailureKind::RequestError, "no Host says where to go with https");
            NoRoute::Failed { status: error.client_status(), error }
        }
    }
}

/// Returns the path as the client has sent it, if the route forwards it. An error if the path has no normal form and
/// the route needs one, or if recipients may read the path as that of another route.
fn settle_sent_path(
    worker: &WorkerState,
    request: &Parts,
    accepted: AcceptedPath,
    route_id: RouteId,
    listener: &str,
) -> Result<Option<Uri>, Error> {
    let is_as_sent = worker.generation.routes[route_id].uri.is_as_sent;
    let sent = match accepted {
        AcceptedPath::Normal => return Ok(None),
        AcceptedPath::Spelt(_) if !is_as_sent => return Ok(None),
        AcceptedPath::Doubtful(_, why) if !is_as_sent => return Err(request_target::rejected_path(why)),
        AcceptedPath::Spelt(sent) | AcceptedPath::Doubtful(sent, _) => sent,
    };
    let readings = path::readings(sent.path()).map_err(request_target::rejected_path)?;
    if worker.generation.router.route_of_path(request, &readings.whole, listener) != Some(route_id) {
        let cause = "the path has an escaped slash, without which it is a path of another route";
        return Err(Error::new(FailureKind::RequestError, cause));
    }
    Ok(Some(sent))
}

/// Returns the response to a request whose `Max-Forwards` makes this proxy its last recipient (RFC 9110 §7.6.2).
fn last_recipient(method: &Method) -> NoRoute {
    if *method == Method::OPTIONS {
        return NoRoute::Answered(Box::new(Response::new(ResponseBody::Full(Bytes::new()))));
    }
    // A reflected request would show its credentials to scripts.
    let error =
        Error::new(FailureKind::RequestError, "TRACE with Max-Forwards: 0 ends here, where nothing is reflected");
    NoRoute::Failed { error, status: StatusCode::NOT_IMPLEMENTED }
}
