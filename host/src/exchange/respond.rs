//! The way of a response up the chain. Every response to a request with a route takes it, whatever made the response.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use hyper::ext::ReasonPhrase;

use super::{ConnectionInfo, chain, error_response, made_response, read_ahead, record};
use crate::context::{ExchangeContext, ReceivedRequest};
use crate::error::{Error, FailureKind};
use crate::exchange::cache::BypassedCache;
use crate::exchange::chain::{ChainFailure, ChainPosition};
use crate::exchange::forward::Received;
use crate::exchange::intercept::{complete, intercept};
use crate::exchange::made_response::CountedLength;
use crate::exchange::record::ExchangeRecord;
use crate::exchange::response_body::ResponseBody;
use crate::generation::ids::RouteId;
use crate::generation::{Route, WorkerState};
use crate::protocol::hop_by_hop;

/// A request that its connection rejects before it is routed.
pub struct Rejection {
    pub error: Error,
    pub status: StatusCode,
    pub received: ReceivedRequest,
}

/// A response at its position in the chain, or a failure in place of a response.
pub struct Reply {
    pub received: Result<Received, ChainFailure>,
    /// The position of the chain up to which plugins see the response: those whose request hooks have run.
    pub depth: ChainPosition,
    /// A cache that the request has bypassed; `None` if there is none.
    pub bypassed: Option<Box<BypassedCache>>,
    /// The party that made the response.
    pub maker: Maker,
}

/// The party that made a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The proxy, as for a route with a redirect.
    Proxy,
    /// The request hook of a plugin above any cache.
    Plugin,
    /// The upstream, by way of a cache or not.
    Upstream,
}

impl Reply {
    /// Returns a response at a position, or a failure at its own.
    pub fn new(received: Result<Received, ChainFailure>, depth: ChainPosition) -> Self {
        let depth = received.as_ref().err().map_or(depth, |failed| failed.depth);
        Reply { received, depth, bypassed: None, maker: Maker::Proxy }
    }

    /// Marks the response as one of the upstream, which the route may intercept.
    pub fn of_upstream(self) -> Self {
        Reply { maker: Maker::Upstream, ..self }
    }

    /// Marks the response as one of a plugin, which gets an error page if it lacks content.
    pub fn of_plugin(self) -> Self {
        Reply { maker: Maker::Plugin, ..self }
    }
}

/// Takes a response through the response hooks of the plugins whose request hooks have run. Every response to a request
/// with a route passes here, whatever made the response. A failure of a plugin on the way is a response too, for the
/// plugins above.
pub fn respond(
    worker: &WorkerState,
    route_id: RouteId,
    mut context: Box<ExchangeContext>,
    reply: Reply,
    record: &mut ExchangeRecord,
) -> Response<ResponseBody> {
    let route = &worker.generation.routes[route_id];
    let Reply { mut received, mut depth, mut bypassed, maker } = reply;
    record.begin_response(route_id, depth);
    received = match maker {
        Maker::Upstream if !route.intercept.is_empty() => {
            received.map(|received| intercept(received, &context, route_id, worker))
        }
        Maker::Plugin => received.map(|received| complete(received, &context, route_id, worker)),
        Maker::Upstream | Maker::Proxy => received,
    };
    loop {
        let response = match received {
            Ok(response) => response,
            Err(ChainFailure { error, status, depth: above }) => {
                depth = above;
                fail(&error, status, worker, &context, record).into()
            }
        };
        match ascend(worker, route, response, depth, &mut bypassed, &mut context) {
            Ok(mut response) => {
                count_made(&mut response, worker, &context, record);
                record.status = response.status().as_u16();
                record.set_route(route_id, context);
                return response;
            }
            // The failed plugin was above the position, so that the loop ends. Only a balancer's edits fail at the
            // position itself, and a failure has none.
            Err(failed) => received = Err(failed),
        }
    }
}

/// Counts a response that is whole in memory against `buffers.memory`, or replaces it by an error.
fn count_made(
    response: &mut Response<ResponseBody>,
    worker: &WorkerState,
    context: &ExchangeContext,
    record: &mut ExchangeRecord,
) {
    let length = made_response::counted_length(response.headers(), response.body());
    if length == 0 {
        return;
    }
    let Some(share) = worker.buffers.count_made(length) else {
        let error = Error::new(FailureKind::LimitReached, "the responses that plugins made fill the memory for bodies");
        let error = error.with_limit("buffers.memory");
        *response = fail(&error, error.client_status(), worker, context, record);
        return;
    };
    let whole = std::mem::replace(response, Response::new(ResponseBody::Full(Bytes::new())));
    let (mut parts, mut body) = whole.into_parts();
    made_response::attach(share, &mut parts.headers, &mut body);
    parts.extensions.insert(CountedLength(length));
    *response = Response::from_parts(parts, body);
}

/// Takes a response up the chain from a position.
fn ascend(
    worker: &WorkerState,
    route: &Route,
    received: Received,
    depth: ChainPosition,
    bypassed: &mut Option<Box<BypassedCache>>,
    context: &mut Box<ExchangeContext>,
) -> Result<Response<ResponseBody>, ChainFailure> {
    let (mut parts, body) = received.response.into_parts();
    hop_by_hop::response(&mut parts);
    let came = parts.status;
    read_ahead::allow(worker, route, context, &parts.headers, &body);
    context.response = Some(parts);
    chain::apply_balancer_edits(worker, received.edits.as_ref(), depth, context)?;
    let body = match run_response_hooks(worker, route, depth, bypassed, context)? {
        Some(content) => ResponseBody::Full(Bytes::from(content)),
        None => body,
    };
    let body = chain::filter_body(worker, route, depth.plugins(), context, body)?;
    let status = context.response.as_ref().map_or(came, |parts| parts.status);
    // A plugin that changes the status of a switch denies the tunnel.
    let is_denied = matches!(body, ResponseBody::Switched(_)) && status != StatusCode::SWITCHING_PROTOCOLS;
    let has_none = is_denied || hop_by_hop::has_no_content(status);
    // What is dropped resets its stream.
    let mut response = Response::new(if has_none { ResponseBody::Full(Bytes::new()) } else { body });
    let Some(mut parts) = context.response.take() else { return Ok(response) };
    hop_by_hop::demand_upgrade(context.request.version, &mut parts);
    if let ResponseBody::Switched(switched) = response.body() {
        hop_by_hop::switch(&switched.protocol, &mut parts.headers);
    }
    // HTTP/1 has words for the status; those of another status would be wrong.
    if parts.status == came
        && let Some(reason) = parts.extensions.remove::<ReasonPhrase>()
    {
        response.extensions_mut().insert(reason);
    }
    // A plugin may have changed the method or the status to one whose responses have content.
    let is_empty = response.body().is_end_stream() && !context.received.is_head();
    hop_by_hop::settle_length_without_content(&mut parts, is_empty);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    Ok(response)
}

/// Runs response hooks upwards from a position, past a bypassed cache; a plugin may put another content in place.
fn run_response_hooks(
    worker: &WorkerState,
    route: &Route,
    depth: ChainPosition,
    bypassed: &mut Option<Box<BypassedCache>>,
    context: &mut Box<ExchangeContext>,
) -> Result<Option<Vec<u8>>, ChainFailure> {
    let Some(cache) = bypassed.take_if(|cache| cache.depth() < depth) else {
        return chain::up(worker, route, depth.plugins(), context);
    };
    let at = cache.depth();
    let below = chain::up(worker, route, depth.range_below(at.next()), context);
    let Ok(below) = below else {
        *bypassed = Some(cache);
        return below;
    };
    cache.on_response(worker, route, context);
    let above = chain::up(worker, route, at.plugins(), context)?;
    Ok(above.or(below))
}

/// Returns the response to a request that is rejected before it is routed.
pub fn reject(
    worker: &WorkerState,
    rejection: Rejection,
    arrival: &ConnectionInfo,
    record: &mut ExchangeRecord,
) -> Response<ResponseBody> {
    let Rejection { error, status, received } = rejection;
    let context = Box::new(ExchangeContext::rejected(received, arrival.peer.clone()));
    let response = fail(&error, status, worker, &context, record);
    record.set_no_route(context);
    response
}

/// Returns the response in place of one that has passed the chain and can't be sent.
pub fn replace_with_error(error: Error, record: &mut ExchangeRecord) -> Response<ResponseBody> {
    let worker = record.running().clone();
    let context = record.take_context();
    match record.route() {
        Some(route_id) => {
            let failed = ChainFailure::new(error, record.depth);
            respond(&worker, route_id, context, Reply::new(Err(failed), record.depth), record)
        }
        None => {
            let response = fail(&error, error.client_status(), &worker, &context, record);
            record.set_no_route(context);
            response
        }
    }
}

/// Returns the response for an error, which is recorded and logged.
pub fn fail(
    error: &Error,
    status: StatusCode,
    worker: &WorkerState,
    context: &ExchangeContext,
    record: &mut ExchangeRecord,
) -> Response<ResponseBody> {
    record::log(error, Some(context), "exchange failed", record.client_state());
    (record.status, record.error) = (status.as_u16(), Some(error.kind));
    let page = worker.generation.error_page(record.route(), status);
    error_response::error_response(error, status, context, page)
}
