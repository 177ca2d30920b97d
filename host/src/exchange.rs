//! One request, from its head to the head of its response.

pub mod attempt;
pub mod balance;
pub mod cache;
pub mod chain;
pub mod error_response;
pub mod filtered_body;
pub mod forward;
pub mod record;
pub mod response_body;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use hyper::ext::ReasonPhrase;

use crate::context::{ClientInfo, ExchangeContext, ReceivedRequest, RequestLine, Words};
use crate::error::{Error, FailureKind};
use crate::exchange::cache::{BypassedCache, CacheMiss, CacheResponse, Lookup};
use crate::exchange::chain::{ChainFailure, ChainPosition, RequestHooks};
use crate::exchange::filtered_body::{FilteredBody, FilteredUpload};
use crate::exchange::forward::{OutgoingRequest, Received, forward};
use crate::exchange::record::ExchangeRecord;
use crate::exchange::response_body::ResponseBody;
use crate::generation::connection_counts::ClientNet;
use crate::generation::listener::Listener;
use crate::generation::{Route, UNROUTED, WorkerState};
use crate::net::boxed::boxed;
use crate::net::deadline::Deadline;
use crate::protocol::client_address::{self, Settled};
use crate::protocol::hop_by_hop::{self, HopOptions};
use crate::protocol::http2_request;

use crate::body::upload::{ClientBody, ClientContent, RequestBody, UploadLimits, UploadProgress};
use crate::protocol::request_target;
use crate::protocol::transformed_content;

/// Why a request has no route.
enum NoRoute {
    Failed {
        error: Error,
        status: StatusCode,
    },
    /// The proxy answers by itself: the listener redirects every client, or the request may not be forwarded.
    Answered(Box<Response<ResponseBody>>),
}

/// The client connection that a request arrived on, and its listener.
pub struct ConnectionInfo {
    pub peer: Arc<ClientInfo>,
    pub listener: Arc<Listener>,
}

/// A request that its connection rejects before it is routed.
pub struct Rejection {
    pub error: Error,
    pub status: StatusCode,
    pub received: ReceivedRequest,
}

/// The deadlines of an exchange.
pub struct Timers {
    /// For each thing that is waited for.
    pub idle: Deadline,
    /// For the exchange as a whole.
    pub total: Deadline,
}

impl Timers {
    /// Returns the error for an exchange whose time is over. The response to it has no deadline.
    fn late(&self) -> Error {
        self.total.clear();
        Error::new(FailureKind::ResponseTimeout, "the route's timeout has passed").with_limit("timeout")
    }
}

/// The next step for a request after the request hooks.
pub enum Begun {
    /// The request is forwarded to its upstream.
    Onward(Onward),
    /// The response is there already.
    Answered(Response<ResponseBody>),
}

/// A request that has passed the plugins, or those above a cache.
pub struct Onward {
    /// The index of the route.
    route_index: usize,
    upstream: usize,
    way: Way,
}

enum Way {
    /// To the upstream, maybe past a cache.
    Straight(OutgoingRequest, Option<Box<BypassedCache>>),
    /// A cache asks for it.
    Fetch(Box<CacheMiss>),
}

/// The result of running the request hooks.
enum Passed {
    Onward(Way),
    Answer(Response<ResponseBody>, ChainPosition),
}

/// A response at the place in the chain where it was made, or the failure in place of one.
struct Reply {
    received: Result<Received, ChainFailure>,
    /// How many plugins, from the top of the chain, see the response: those whose request hooks have run.
    depth: ChainPosition,
    /// A cache that the request has bypassed; `None` if there is none.
    bypassed: Option<Box<BypassedCache>>,
}

impl Reply {
    fn new(received: Result<Received, ChainFailure>, depth: ChainPosition) -> Self {
        let depth = received.as_ref().err().map_or(depth, |failed| failed.depth);
        Reply { received, depth, bypassed: None }
    }
}

/// Takes a request down to its upstream, on the generation that it begins with. What is due at the end of the exchange
/// goes into `ending`.
///
/// Not part of the future of [`Onward::run`], which would carry the request about for nothing.
pub fn receive(
    worker: &Rc<WorkerState>,
    request: Request<ClientContent>,
    arrival: &ConnectionInfo,
    timers: &Timers,
    record: &mut ExchangeRecord,
) -> Begun {
    let (mut parts, body) = request.into_parts();
    let received = request_line(worker, &parts);
    let ConnectionInfo { peer, listener } = arrival;
    // Before anything else reads the request.
    let settled = client_address::settle(&mut parts.headers, peer.ip(), peer.is_trusted, &listener.client);
    let counted = call_counted(&settled, arrival, record);
    let routed = counted.and_then(|()| find_route(worker, &mut parts, &settled, arrival));
    let context = |parts, route, upstream| {
        let mut context = Box::new(ExchangeContext::new(received, parts, peer.clone(), route, upstream));
        (context.client, context.has_aliases) = (settled.client, settled.has_aliases);
        context
    };
    let route_index = match routed {
        Ok(route_index) => route_index,
        Err(unrouted) => {
            let context = context(parts, UNROUTED.into(), UNROUTED.into());
            record.upload.end();
            let response = match unrouted {
                NoRoute::Failed { error, status } => fail(&error, status, worker, &context, record),
                NoRoute::Answered(response) => *response,
            };
            record.status = response.status().as_u16();
            record.set_no_route(context);
            return Begun::Answered(response);
        }
    };
    let route = &worker.generation.routes[route_index];
    let version = parts.version;
    let hop = hop_by_hop::request(version, &mut parts.headers);
    let mut upstream = route.upstream;
    let mut context = context(parts, worker.route_names[route_index].clone(), worker.upstreams[upstream].name.clone());
    if let Some(timeout) = route.timeout {
        timers.total.set(timeout);
    }

    let receiving = |body, upload| {
        let limits = &listener.limits;
        let (max, pause, rate) = (route.max_body, limits.body_timeout, limits.body_rate);
        let limits = UploadLimits { max, pause, rate, knows_end: version == Version::HTTP_2 };
        // It may be read by another task than the client's.
        let [deadline] = timers.idle.clock().deadlines();
        ClientBody::new(body, upload, limits, deadline)
    };
    let is_plain = body.is_end_stream() && hop.upgrade.is_none();
    let cached = |at, context: &mut Box<ExchangeContext>, upstream| {
        cache::look_up(worker, route_index, at, (context, upstream), is_plain, timers.idle.clock())
    };
    let mut bypassed = None;
    let passed = down(worker, route, (&mut context, &mut upstream), &mut bypassed, cached, |context| {
        outgoing_body(worker, route, context, (body, hop), record.upload.clone(), receiving)
    });
    let reply = match passed {
        Ok(Passed::Onward(mut way)) => {
            match &mut way {
                Way::Straight(_, bypassed_cache) => *bypassed_cache = bypassed,
                Way::Fetch(_) => record.upload.end(),
            }
            // From here on the exchange may be dropped at any time, and still has to be told of.
            record.set_route(route_index, context);
            return Begun::Onward(Onward { route_index, upstream, way });
        }
        Ok(Passed::Answer(response, depth)) => Reply::new(Ok(response.into()), depth),
        Err(failed) => Reply::new(Err(failed), ChainPosition::top()),
    };
    record.upload.end();
    Begun::Answered(respond(worker, route_index, context, Reply { bypassed, ..reply }, record))
}

/// Returns what the access log shows of a request that nothing has changed yet.
pub fn request_line(worker: &WorkerState, request: &Parts) -> RequestLine {
    let words = if worker.generation.access_log.is_some() { Words::Logged } else { Words::Unneeded };
    RequestLine::of(request, words)
}

/// Takes a request through the chain, to its end or to where it is answered.
fn down(
    worker: &WorkerState,
    route: &Route,
    (context, upstream): (&mut Box<ExchangeContext>, &mut usize),
    bypassed: &mut Option<Box<BypassedCache>>,
    cached: impl FnOnce(ChainPosition, &mut Box<ExchangeContext>, usize) -> Result<Lookup, ChainFailure>,
    content: impl FnOnce(&mut Box<ExchangeContext>) -> Result<OutgoingRequest, ChainFailure>,
) -> Result<Passed, ChainFailure> {
    let mut down = chain::down(worker, route, ChainPosition::top(), context, upstream)?;
    if let RequestHooks::Cache(at) = down {
        match cached(at, context, *upstream)? {
            Lookup::Hit(response) => return Ok(Passed::Answer(response, at)),
            Lookup::Miss(miss) => return Ok(Passed::Onward(Way::Fetch(miss))),
            Lookup::Bypass(bypassed_cache) => *bypassed = Some(Box::new(bypassed_cache)),
        }
        down = chain::down(worker, route, at.next(), context, upstream)?;
    }
    Ok(match down {
        RequestHooks::Answer(response, depth) => {
            Passed::Answer(response.map(|content| ResponseBody::Full(content.into())), depth)
        }
        RequestHooks::Forward | RequestHooks::Cache(_) => Passed::Onward(Way::Straight(content(context)?, None)),
    })
}

impl Onward {
    /// Asks the upstream, and takes the response up to the client.
    ///
    /// What it works on stays where it is: a future has room for what it is given and for what it takes out of that.
    pub async fn run(
        &mut self,
        worker: &Rc<WorkerState>,
        timers: &Timers,
        record: &mut ExchangeRecord,
    ) -> Response<ResponseBody> {
        let Onward { route_index, upstream, way } = self;
        let (route_index, upstream) = (*route_index, *upstream);
        let context = record.context.get_or_insert_with(|| Box::new(ExchangeContext::empty()));
        let (sending, bypassed) = match way {
            Way::Straight(sending, bypassed) => (sending, bypassed),
            Way::Fetch(miss) => return boxed(|| fetch(miss, worker, (route_index, upstream), timers, record)).await,
        };
        let forwarded = timers.total.until_met(forward(worker, upstream, context, sending, &timers.idle)).await;
        if let Ok(Ok(_)) = forwarded {
            record.response_started();
        }
        let bottom = ChainPosition::bottom(&worker.generation.routes[route_index]);
        let received = forwarded.unwrap_or_else(|_| Err(timers.late()));
        let received = received.map_err(|error| ChainFailure::new(error, bottom));
        let context = record.context.take().unwrap_or_else(|| Box::new(ExchangeContext::empty()));
        respond(
            worker,
            route_index,
            context,
            Reply { bypassed: bypassed.take(), ..Reply::new(received, bottom) },
            record,
        )
    }
}

/// Has a cache ask for a response, and takes that up to the client.
async fn fetch(
    miss: &mut CacheMiss,
    worker: &Rc<WorkerState>,
    (route_index, upstream): (usize, usize),
    timers: &Timers,
    record: &mut ExchangeRecord,
) -> Response<ResponseBody> {
    let context = record.context.get_or_insert_with(|| Box::new(ExchangeContext::empty()));
    let answered =
        timers.total.until_met(miss.run(worker, (route_index, upstream), context, timers.idle.clock())).await;
    let reply = match answered.unwrap_or_else(|_| Err(ChainFailure::new(timers.late(), miss.depth()))) {
        Ok(CacheResponse { response, edits, depth }) => {
            record.response_started();
            Reply::new(Ok(Received { response, edits }), depth)
        }
        Err(failed) => Reply::new(Err(failed), ChainPosition::top()),
    };
    let context = record.context.take().unwrap_or_else(|| Box::new(ExchangeContext::empty()));
    respond(worker, route_index, context, reply, record)
}

/// Counts a request that came by a trusted proxy as its client's, where that is limited.
fn call_counted(settled: &Settled, arrival: &ConnectionInfo, record: &mut ExchangeRecord) -> Result<(), NoRoute> {
    let Some(max) = arrival.listener.limits.connections_per_client.filter(|_| arrival.peer.is_trusted) else {
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

/// Finds the index of a request's route.
fn find_route(
    worker: &WorkerState,
    request: &mut Parts,
    settled: &Settled,
    arrival: &ConnectionInfo,
) -> Result<usize, NoRoute> {
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
    let way = request_target::Arrival { is_secure: arrival.peer.is_secure(), is_trusted: arrival.peer.is_trusted };
    request_target::accept(request, way).map_err(failed)?;
    if let Some(port) = arrival.listener.redirect {
        let unnamed = || failed(Error::new(FailureKind::RequestError, "no Host says where to go with https"));
        let location = request_target::with_https(request, port).ok_or_else(unnamed)?;
        return Err(NoRoute::Answered(Box::new(error_response::redirect(location))));
    }
    if !hop_by_hop::count_forward(&request.method, &mut request.headers) {
        return Err(last_recipient(&request.method));
    }
    if hop_by_hop::is_looping(&request.headers) {
        let cause = "the request has passed 16 proxies like this one: an endpoint leads back to a listener";
        return Err(failed(Error::new(FailureKind::LoopDetected, cause)));
    }
    let none = || failed(Error::new(FailureKind::NoRoute, "no route of the manifest matches the request"));
    worker.generation.router.route(request).ok_or_else(none)
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

/// Takes a response through the response hooks of the plugins whose request hooks have run. Every response to a request
/// with a route passes here, whatever made the response. A failure of a plugin on the way is a response too, for the
/// plugins above.
fn respond(
    worker: &WorkerState,
    route_index: usize,
    mut context: Box<ExchangeContext>,
    reply: Reply,
    record: &mut ExchangeRecord,
) -> Response<ResponseBody> {
    let route = &worker.generation.routes[route_index];
    let Reply { mut received, mut depth, mut bypassed } = reply;
    record.depth = depth;
    loop {
        let response = match received {
            Ok(response) => response,
            Err(ChainFailure { error, status, depth: above }) => {
                depth = above;
                fail(&error, status, worker, &context, record).into()
            }
        };
        match ascend(worker, route, response, depth, &mut bypassed, &mut context) {
            Ok(response) => {
                record.status = response.status().as_u16();
                record.set_route(route_index, context);
                return response;
            }
            // The failed plugin was above the position, so that the loop ends. Only a balancer's edits fail at the
            // position itself, and a failure has none.
            Err(failed) => received = Err(failed),
        }
    }
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
    context.response = Some(parts);
    chain::apply_balancer_edits(worker, received.edits.as_ref(), depth, context)?;
    let body = match run_response_hooks(worker, route, depth, bypassed, context)? {
        Some(content) => ResponseBody::Full(Bytes::from(content)),
        None => body,
    };
    let body = chain::filter_body(worker, route, depth.plugins(), context, body)?;
    let has_none = context.response.as_ref().is_some_and(|parts| hop_by_hop::has_no_content(parts.status));
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
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    // Under 304 the length is that of another response (RFC 9110 §8.6).
    if has_none && came != StatusCode::NOT_MODIFIED {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
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

/// The content of the request, through the plugins that transform it.
fn outgoing_body(
    worker: &WorkerState,
    route: &Route,
    context: &mut ExchangeContext,
    (body, mut hop): (ClientContent, HopOptions),
    upload: UploadProgress,
    receiving: impl FnOnce(ClientContent, UploadProgress) -> ClientBody,
) -> Result<OutgoingRequest, ChainFailure> {
    if body.is_end_stream() {
        upload.end();
        return Ok(OutgoingRequest { body: RequestBody::Empty, upload, hop });
    }
    // Where the next protocol begins, must not depend on who understands the content's end (RFC 9110 §7.8).
    hop.upgrade = None;
    // With gRPC either side may be silent for as long as it likes.
    let media = context.request.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if context.request.version == Version::HTTP_2 && media.starts_with(b"application/grpc") {
        upload.stop_rate_limit();
    }
    let bottom = ChainPosition::bottom(route);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > route.max_body) {
        let cause = format!("{length} bytes, and the route takes {}", route.max_body);
        let error = Error::new(FailureKind::RequestBodySize, cause).with_limit("max-body");
        return Err(ChainFailure::new(error, bottom));
    }
    let stages = chain::begin_request_filters(worker, route, body.size_hint().exact(), context)
        // All request hooks have run, those of the plugins below the failed one too.
        .map_err(|failed| ChainFailure { depth: bottom, ..failed })?;
    let body = receiving(body, upload.clone());
    if stages.is_empty() {
        return Ok(OutgoingRequest { body: RequestBody::Incoming(Box::new(body)), upload, hop });
    }
    transformed_content::request(&mut context.request.headers);
    Ok(OutgoingRequest { body: FilteredUpload::body(FilteredBody::new(body, stages), upload.clone()), upload, hop })
}

/// The response to a request that is rejected before it is routed.
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

/// The response in place of one that has passed the chain, and can't be sent as it is.
pub fn replace_with_error(error: Error, record: &mut ExchangeRecord) -> Response<ResponseBody> {
    let worker = record.running().clone();
    let context = record.context.take().unwrap_or_else(|| Box::new(ExchangeContext::empty()));
    match record.route() {
        Some(route_index) => {
            let failed = ChainFailure::new(error, record.depth);
            respond(&worker, route_index, context, Reply::new(Err(failed), record.depth), record)
        }
        None => {
            let response = fail(&error, error.client_status(), &worker, &context, record);
            record.set_no_route(context);
            response
        }
    }
}

/// Returns the response for an error, which is recorded and logged.
fn fail(
    error: &Error,
    status: StatusCode,
    worker: &WorkerState,
    context: &ExchangeContext,
    record: &mut ExchangeRecord,
) -> Response<ResponseBody> {
    record::log(error, Some(context), "exchange failed", record.upload.is_abandoned());
    (record.status, record.error) = (status.as_u16(), Some(error.kind));
    error_response::error_response(error.kind, status, Some(context), &worker.generation.error_pages)
}
