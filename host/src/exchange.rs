//! One request, from its head to the head of its response.
//!
//! | step | where | may wait |
//! |---|---|---|
//! | 1 learn who the client is, before anything else reads the request | [`client_address`] | no |
//! | 2 validate and normalise the request target, and find the route | [`find_route`] | no |
//! | 3 remove hop-by-hop fields, add `Via` | [`hop_by_hop`] | no |
//! | 4 unless the route is under maintenance, run the request hooks, down the chain; a cache in it answers, is bypassed or misses | [`chain`], [`cache`] | no |
//! | 5 get the response of the route's target: run the hooks for whole request bodies, receive the body first if a slow client could hold the endpoint, forward the request to the upstream, or fetch through the cache | [`target`], [`body_hooks`], [`collect`](mod@collect), [`forward`](mod@forward), [`cache`] | yes |
//! | 6 remove hop-by-hop fields of the response | [`hop_by_hop`] | no |
//! | 7 replace an error of the upstream by an error page, if the route says so; give an error of a plugin without content a page | [`intercept`](mod@intercept) | no |
//! | 8 run the response hooks, up the chain | [`respond`](mod@respond), [`chain`] | no |
//! | 9 begin the hooks for response bodies; wait for room in a plugin, or for a body that a plugin takes whole | [`body_hooks`] | yes |
//! | 10 stream the body, and read ahead of a slow client; when it ends, write metrics, access log and observers | [`response_body`], [`upstream_body`], [`record`] | yes |
//!
//! Requests go down the chain and responses up. Steps 1 to 4 run before there is a future: a future would carry the request
//! about for nothing. A hook of a plugin that may wait ends this part: the way down or up is suspended there ([`Descent`],
//! [`Ascent`]), and the future takes it up again ([`waiting`]).

pub mod attempt;
pub mod balance;
mod body_hooks;
pub mod body_passage;
pub mod cache;
pub mod callouts;
pub mod chain;
mod collect;
pub mod decoded_body;
pub mod error_response;
pub mod filtered_body;
mod find_route;
pub mod forward;
pub mod gathered_body;
mod intercept;
pub mod made_response;
mod outgoing_body;
mod read_ahead;
pub mod record;
pub mod respond;
pub mod response_body;
mod serve_files;
pub mod target;
pub mod upstream_body;
pub mod waiting;
mod waiting_bodies;

use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, Method, Request, Response, Version};
use http_body::Body;
use hyper::ext::Protocol;

use crate::body::early_content::read_while;
use crate::body::upload::{ClientBody, ClientContent, RequestBody, UploadLimits, UploadProgress};
use crate::context::edit_check::MessageSide;
use crate::context::informational::InformationalQueue;
use crate::context::{ClientInfo, ContentLength, ExchangeContext, RequestLine, SentPath, Words};
use crate::error::{Error, FailureKind};
use crate::exchange::body_hooks::PassageEnd;
use crate::exchange::cache::{BypassedCache, CacheMiss, CacheRequest, CacheResponse, Lookup};
use crate::exchange::chain::{ChainFailure, ChainPosition, RequestHooks, RouteChain};
use crate::exchange::find_route::{FoundRoute, NoRoute, check_verified, count_for_client, find_route};
use crate::exchange::forward::{OutgoingRequest, Received, forward};
use crate::exchange::outgoing_body::{UnsentRequest, outgoing_body};
use crate::exchange::record::ExchangeRecord;
use crate::exchange::respond::{Ascent, LateResponse, Reply, Responding, fail, respond};
use crate::exchange::response_body::ResponseBody;
use crate::exchange::target::{apply_uri_rules, ask_target, respond_at_once};
use crate::exchange::waiting::WaitingHook;
use crate::generation::Generation;
use crate::generation::ids::{RouteId, UpstreamId};
use crate::generation::listener::Listener;
use crate::generation::worker_state::WorkerState;
use crate::generation::{Route, UNROUTED};
use crate::net::boxed::boxed;
use crate::net::deadline::Deadline;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::instance::FilterVerdict;
use crate::protocol::client_address::{self, FieldRemoval};
use crate::protocol::hop_by_hop;
use crate::telemetry::failure_log;

/// The client connection that a request arrived on, and its listener.
#[derive(Clone)]
pub struct ConnectionInfo {
    pub peer: Arc<ClientInfo>,
    pub listener: Arc<Listener>,
    /// Whether the listener trusts the peer's fields about its clients.
    pub is_trusted: bool,
    /// The queue for informational responses to the client; `None` over HTTP/2, whose server can't send any.
    pub informational: Option<Arc<InformationalQueue>>,
}

impl ConnectionInfo {
    /// Returns the connection under the listener's rules in a generation; `None` if it began under these rules, or if the
    /// generation doesn't have the listener.
    fn under(&self, generation: &Generation) -> Option<ConnectionInfo> {
        if !self.listener.is_superseded() {
            return None;
        }
        let listener = generation.listeners.get(&self.listener.address)?.clone();
        let is_trusted = listener.client.trusted.has(self.peer.ip());
        Some(ConnectionInfo { listener, is_trusted, ..self.clone() })
    }
}

/// The route of a request, and the upstream that it goes to: plugins may choose another one than the route's.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    pub route: RouteId,
    /// The upstream; `None` if the route's target is another one.
    pub upstream: Option<UpstreamId>,
}

/// The deadlines of an exchange.
pub struct Timers {
    /// The deadline of the current wait.
    pub idle: Deadline,
    /// The deadline of the whole exchange.
    pub total: Deadline,
}

impl Timers {
    /// Returns the error for an exchange whose time is over. The response to it has no deadline.
    fn late(&self) -> Error {
        late(&self.total)
    }
}

/// The key of a route's limit on the time of an exchange.
const ROUTE_TIMEOUT: &str = "timeout";

/// Returns the error for an exchange that has met the deadline of the whole. The response to it has none.
fn late(total: &Deadline) -> Error {
    total.clear();
    Error::new(FailureKind::ResponseTimeout, "the route's timeout has passed").with_limit(ROUTE_TIMEOUT)
}

/// The next step for a request after the request hooks.
pub enum Next {
    /// The request is forwarded to its upstream.
    Forward(Forwarding),
    /// The response is there already.
    Respond(Response<ResponseBody>),
}

impl Next {
    /// Returns the route of a request that is forwarded; `None` if the response is there.
    pub fn route(&self) -> Option<RouteId> {
        match self {
            Next::Forward(forwarding) => Some(forwarding.destination.route),
            Next::Respond(_) => None,
        }
    }
}

/// A request that has passed the plugins, or the plugins above a cache.
pub struct Forwarding {
    destination: Destination,
    source: ResponseSource,
}

/// The source of a response, or a hook on the way to it that may wait.
enum ResponseSource {
    /// The rest of the way down the chain, from a request hook that may wait.
    Descent(Box<Descent>),
    /// A response hook that may wait has the response before the client.
    Ascent(Box<Ascent>),
    /// A response that was there at once, and whose content has to wait for body hooks.
    Late(Box<LateResponse>),
    /// The upstream; a cache may be bypassed.
    Upstream(UpstreamId, OutgoingRequest, Option<Box<BypassedCache>>),
    /// The files of the route; a cache may be bypassed.
    Files(Option<Box<BypassedCache>>),
    /// A cache, which fetches the response.
    Cache(Box<CacheMiss>),
}

impl ResponseSource {
    /// Whether an endpoint gets the client's own request, with its content.
    fn is_upstream(&self) -> bool {
        matches!(self, ResponseSource::Upstream(..))
    }
}

/// The result of running the request hooks.
enum Passed {
    /// The request goes to the source of its response.
    Forward(ResponseSource),
    /// A plugin or a cache has responded.
    Respond(Reply),
    /// The hook of the plugin just below a position may wait.
    Wait(ChainPosition, UnsentRequest),
}

/// A request on its way down the chain.
struct Descending<'a> {
    worker: &'a Rc<WorkerState>,
    route_id: RouteId,
    arrival: &'a ConnectionInfo,
    timers: &'a Timers,
    upload: UploadProgress,
}

/// A request above a plugin whose request hook may wait.
struct Descent {
    /// The position just above the plugin.
    at: ChainPosition,
    request: UnsentRequest,
    arrival: ConnectionInfo,
    bypassed: Option<Box<BypassedCache>>,
}

/// Takes a request down to its upstream, on the generation that it begins with. What is due at the end of the exchange
/// goes into `record`.
///
/// Not part of the future of [`Forwarding::run`], which would carry the request about for nothing.
pub fn receive(
    worker: &Rc<WorkerState>,
    request: Request<ClientContent>,
    arrival: &ConnectionInfo,
    timers: &Timers,
    record: &mut ExchangeRecord,
) -> Next {
    let (mut parts, body) = request.into_parts();
    let received = request_line(worker, &parts);
    let changed = arrival.under(&worker.generation);
    let (began, arrival) = (arrival, changed.as_ref().unwrap_or(arrival));
    let ConnectionInfo { peer, listener, is_trusted, .. } = arrival;
    let report = |name: &HeaderName, reason: FieldRemoval| report_removal(name, reason, listener, peer);
    let settled = client_address::settle(&mut parts.headers, peer.ip(), *is_trusted, &listener.client, report);
    let verified = changed.as_ref().map_or(Ok(()), |changed| check_verified(&began.listener, &changed.listener));
    let counted = verified.and_then(|()| count_for_client(&settled, arrival, record));
    let routed = counted.and_then(|()| find_route(worker, &mut parts, &settled, arrival));
    let context = |parts, route, upstream| {
        let mut context = Box::new(ExchangeContext::new(received, parts, peer.clone(), route, upstream));
        (context.client, context.has_aliases) = (settled.client, settled.has_aliases);
        context.named_scheme = settled.scheme;
        context
    };
    let FoundRoute { route_id, sent } = match routed {
        Ok(found) => found,
        Err(no_route) => {
            let context = context(parts, UNROUTED.into(), UNROUTED.into());
            return Next::Respond(respond_without_route(worker, no_route, context, record));
        }
    };
    let route = &worker.generation.routes[route_id];
    let version = parts.version;
    let hop = hop_by_hop::request(version, &mut parts.headers);
    let mut way = Way { upstream: route.target.upstream(), bypassed: None };
    let mut context = context(parts, worker.route_names[route_id].clone(), worker.upstream_name(way.upstream));
    context.sent_path = sent.map(|target| Box::new(SentPath { target, normal: context.request.uri.path().into() }));
    if let Some(timeout) = route.timeout {
        timers.total.set(timeout);
    }
    (context.content, context.passages) = (content_length(&body), hop.passages);
    let descending = Descending { worker, route_id, arrival, timers, upload: record.upload.clone() };
    let passed = descending.run(UnsentRequest { body, hop }, &mut context, &mut way);
    descending.settle(passed, context, way, record)
}

/// The upstream that a request goes to, and the cache that it has bypassed.
struct Way {
    /// The upstream; `None` if the route's target is another one.
    upstream: Option<UpstreamId>,
    bypassed: Option<Box<BypassedCache>>,
}

impl Descending<'_> {
    /// Takes a request through the chain, to its end or to where it is answered or may wait.
    fn run(
        &self,
        request: UnsentRequest,
        context: &mut Box<ExchangeContext>,
        way: &mut Way,
    ) -> Result<Passed, ChainFailure> {
        let (worker, route) = (self.worker, &self.worker.generation.routes[self.route_id]);
        if let Some(error) = route.maintenance.as_ref().and_then(|maintenance| maintenance.refusal(context.client_ip()))
        {
            return Err(ChainFailure::new(error, ChainPosition::top()));
        }
        let hooks = chain::down(worker, route, ChainPosition::top(), context, &mut way.upstream)?;
        self.proceed(hooks, request, context, way)
    }

    /// Takes the verdict of a request hook that could wait, and takes the request further.
    fn resume(
        &self,
        at: ChainPosition,
        verdict: Result<FilterVerdict, PluginFailure>,
        request: UnsentRequest,
        context: &mut Box<ExchangeContext>,
        way: &mut Way,
    ) -> Result<Passed, ChainFailure> {
        let chain = RouteChain { worker: self.worker, route_id: self.route_id };
        let hooks = chain::accept_request_verdict(chain, at, verdict, context, &mut way.upstream)?;
        self.proceed(hooks, request, context, way)
    }

    /// Takes a request further from where the request hooks have ended.
    fn proceed(
        &self,
        mut hooks: RequestHooks,
        request: UnsentRequest,
        context: &mut Box<ExchangeContext>,
        way: &mut Way,
    ) -> Result<Passed, ChainFailure> {
        let (worker, route) = (self.worker, &self.worker.generation.routes[self.route_id]);
        let Way { upstream, bypassed } = way;
        if let RequestHooks::Cache(at) = hooks {
            let destination = Destination { route: self.route_id, upstream: *upstream };
            let unfit = match &request.hop.upgrade {
                Some(_) => Some("upgrade"),
                None => (!request.body.is_end_stream()).then_some("content"),
            };
            match cache::look_up(worker, CacheRequest { destination, at, unfit }, context, self.timers.idle.clock())? {
                Lookup::Hit(response) => {
                    return Ok(Passed::Respond(Reply::new(Ok(response.into()), at).of_target(destination)));
                }
                Lookup::Miss(miss) => return Ok(Passed::Forward(ResponseSource::Cache(miss))),
                Lookup::Bypass(bypassed_cache) => *bypassed = Some(Box::new(bypassed_cache)),
            }
            hooks = chain::down(worker, route, at.next(), context, upstream)?;
        }
        Ok(match hooks {
            RequestHooks::Wait(at) => Passed::Wait(at, request),
            RequestHooks::Answer(response, depth) => {
                let response = response.map(|content| ResponseBody::Full(content.into()));
                Passed::Respond(Reply::new(Ok(response.into()), depth).of_plugin())
            }
            RequestHooks::Forward | RequestHooks::Cache(_) => match *upstream {
                Some(upstream_id) => {
                    let failed = |error| ChainFailure::new(error, ChainPosition::bottom(route));
                    apply_uri_rules(route, context).map_err(failed)?;
                    let sending = self.outgoing(request, context)?;
                    Passed::Forward(ResponseSource::Upstream(upstream_id, sending, bypassed.take()))
                }
                None => match respond_at_once(worker, self.route_id, context) {
                    Some(response) => {
                        let bottom = ChainPosition::bottom(route);
                        let response = response.map_err(|error| ChainFailure::new(error, bottom))?;
                        Passed::Respond(Reply::new(Ok(response.into()), bottom))
                    }
                    None => Passed::Forward(ResponseSource::Files(bypassed.take())),
                },
            },
        })
    }

    /// Returns the request's content and options for the upstream.
    fn outgoing(
        &self,
        request: UnsentRequest,
        context: &mut Box<ExchangeContext>,
    ) -> Result<OutgoingRequest, ChainFailure> {
        let (listener, version) = (&self.arrival.listener, context.request.version);
        let edited = std::mem::take(&mut context.edited_fields);
        let receiving = |body, max| {
            let limits = UploadLimits { edited, ..upload_limits(max, listener, version) };
            client_body(body, limits, self.worker, self.timers)
        };
        let chain = RouteChain { worker: self.worker, route_id: self.route_id };
        outgoing_body(chain, context, request, self.upload.clone(), receiving)
    }

    /// Returns the next step for a request that has passed the plugins, or has ended at one.
    fn settle(
        &self,
        passed: Result<Passed, ChainFailure>,
        mut context: Box<ExchangeContext>,
        way: Way,
        record: &mut ExchangeRecord,
    ) -> Next {
        let Way { upstream, bypassed } = way;
        let route_id = self.route_id;
        let destination = Destination { route: route_id, upstream };
        let reply = match passed {
            Ok(Passed::Forward(source)) => {
                if source.is_upstream() {
                    // RFC 9110 §15.2: a client of HTTP/1.0 doesn't know them.
                    let knows_them = context.request.version == Version::HTTP_11;
                    context.informational = self.arrival.informational.clone().filter(|_| knows_them);
                } else {
                    record.upload.end();
                }
                // From here on the exchange may be dropped at any time, and still has to be told of.
                record.set_route(route_id, context);
                return Next::Forward(Forwarding { destination, source });
            }
            Ok(Passed::Wait(at, request)) => {
                record.set_route(route_id, context);
                let descent = Descent { at, request, arrival: self.arrival.clone(), bypassed };
                let source = ResponseSource::Descent(Box::new(descent));
                return Next::Forward(Forwarding { destination, source });
            }
            Ok(Passed::Respond(reply)) => reply,
            Err(failed) => Reply::new(Err(failed), ChainPosition::top()),
        };
        record.upload.end();
        match respond(self.worker, route_id, context, Reply { bypassed, ..reply }, record) {
            Responding::Ready(response) => Next::Respond(response),
            Responding::Waiting(ascent) => {
                Next::Forward(Forwarding { destination, source: ResponseSource::Ascent(ascent) })
            }
            Responding::Late(late) => Next::Forward(Forwarding { destination, source: ResponseSource::Late(late) }),
        }
    }
}

/// Returns the response to a request without a route.
fn respond_without_route(
    worker: &WorkerState,
    no_route: NoRoute,
    context: Box<ExchangeContext>,
    record: &mut ExchangeRecord,
) -> Response<ResponseBody> {
    record.upload.end();
    let response = match no_route {
        NoRoute::Failed { error, status } => fail(&error, status, worker, &context, record),
        NoRoute::Answered(response) => *response,
    };
    record.status = response.status().as_u16();
    record.set_no_route(context);
    response
}

/// Counts and logs a field that the listener's rules remove from a request.
fn report_removal(name: &HeaderName, reason: FieldRemoval, listener: &Listener, peer: &ClientInfo) {
    listener.census.remove_field(reason);
    let (field, key, address, peer) = (name.as_str(), reason.key(), &*listener.address, peer.ip());
    tracing::debug!(
        field,
        key,
        listener = address,
        peer = peer.map(tracing::field::display),
        "field of a request removed"
    );
    // A proxy of the operator's own that isn't trusted looks like a client that lies: redirects to HTTPS never end then, and
    // all clients have one address.
    let is_of_proxies = matches!(field, "x-forwarded-for" | "x-forwarded-proto" | "forwarded");
    if reason == FieldRemoval::Untrusted && is_of_proxies && listener.census.may_log_untrusted(failure_log::hour()) {
        let remedy = "if the peer is a proxy of yours, name it in `trusted-proxies` of the listener";
        let peer = peer.map(tracing::field::display);
        tracing::info!(field, listener = address, peer, remedy, "field of a peer that is no trusted proxy removed");
    }
}

/// Returns the client's content within its limits.
fn client_body(body: ClientContent, limits: UploadLimits, worker: &WorkerState, timers: &Timers) -> ClientBody {
    // It may be read by another task than the client's.
    let [deadline] = timers.idle.clock().deadlines();
    ClientBody::new(body, limits, worker.buffers.clone(), deadline)
}

/// Returns the length of a client's content, as far as it is known.
fn content_length(body: &ClientContent) -> ContentLength {
    match body.size_hint().exact() {
        _ if body.is_end_stream() => ContentLength::Absent,
        Some(length) => ContentLength::Known(length),
        None => ContentLength::Unknown,
    }
}

/// Returns the limits of a request's content, of at most `max` bytes.
fn upload_limits(max: u64, listener: &Listener, version: Version) -> UploadLimits {
    let limits = &listener.limits;
    let (pause, rate) = (limits.body_timeout, limits.body_rate);
    UploadLimits {
        max,
        pause,
        rate,
        knows_end: version == Version::HTTP_2,
        names: listener.client.clone(),
        edited: Vec::new(),
    }
}

/// Returns the request line for the access log, of a request that nothing has changed yet.
pub fn request_line(worker: &WorkerState, request: &Parts) -> RequestLine {
    let words = if worker.generation.access_log.is_some() { Words::Logged } else { Words::Unneeded };
    let line = RequestLine::of(request, words);
    // An extended CONNECT (RFC 8441) is forwarded as the GET of an upgrade.
    let is_connect = request.version == Version::HTTP_2 && request.extensions.get::<Protocol>().is_some();
    if is_connect { RequestLine { method: Method::CONNECT, ..line } } else { line }
}

impl Forwarding {
    /// Gets the response of the route's target, and passes it up the chain.
    ///
    /// What it works on stays where it is: a future has room for what it is given and for what it takes out of that.
    pub async fn run(
        &mut self,
        worker: &Rc<WorkerState>,
        timers: &Timers,
        record: &mut ExchangeRecord,
    ) -> Response<ResponseBody> {
        let Forwarding { destination, source } = self;
        let destination = *destination;
        let context = record.context.get_or_insert_with(|| Box::new(ExchangeContext::empty()));
        let (upstream_id, sending, bypassed) = match source {
            ResponseSource::Upstream(upstream_id, sending, bypassed) => (*upstream_id, sending, bypassed),
            ResponseSource::Descent(_) | ResponseSource::Ascent(_) | ResponseSource::Late(_) => {
                return boxed(|| self.wait(worker, timers, record)).await;
            }
            ResponseSource::Files(bypassed) => {
                return boxed(|| read_files(bypassed, worker, destination, timers, record)).await;
            }
            ResponseSource::Cache(miss) => return boxed(|| fetch(miss, worker, destination, timers, record)).await,
        };
        let route_id = destination.route;
        let responding = 'responding: {
            let mut upstream_id = upstream_id;
            if sending.passage.is_some() {
                let here = Destination { upstream: Some(upstream_id), ..destination };
                match boxed(|| pass_body_hooks(sending, worker, here, timers, context)).await {
                    Ok(chosen) => upstream_id = chosen.unwrap_or(upstream_id),
                    Err(reply) => {
                        record.upload.end();
                        let (context, reply) = (record.take_context(), Reply { bypassed: bypassed.take(), ..*reply });
                        break 'responding respond(worker, route_id, context, reply, record);
                    }
                }
            }
            let forwarded = timers.total.until_met(forward(worker, upstream_id, context, sending, &timers.idle)).await;
            if let Ok(Ok(_)) = forwarded {
                record.response_started();
            }
            let received = forwarded.unwrap_or_else(|_| Err(timers.late()));
            let reply = reply_of_target(&worker.generation.routes[route_id], received, bypassed);
            let context = record.take_context();
            respond(worker, route_id, context, reply.of_target(destination), record)
        };
        responding.finish(worker, timers, record).await
    }

    /// Waits for the hooks of plugins that may wait, and takes the request or the response further.
    async fn wait(
        &mut self,
        worker: &Rc<WorkerState>,
        timers: &Timers,
        record: &mut ExchangeRecord,
    ) -> Response<ResponseBody> {
        let source = std::mem::replace(&mut self.source, ResponseSource::Files(None));
        let descent = match source {
            ResponseSource::Descent(descent) => *descent,
            ResponseSource::Ascent(ascent) => return ascent.finish(worker, timers, record).await,
            ResponseSource::Late(late) => return late.run(worker, timers, record).await,
            source => {
                self.source = source;
                return self.run(worker, timers, record).await;
            }
        };
        match descent.resume(worker, self.destination, timers, record).await {
            Next::Respond(response) => response,
            Next::Forward(mut next) => next.run(worker, timers, record).await,
        }
    }
}

impl Descent {
    /// Waits for the hook of the plugin, and takes the request further by its verdict.
    async fn resume(
        self,
        worker: &Rc<WorkerState>,
        destination: Destination,
        timers: &Timers,
        record: &mut ExchangeRecord,
    ) -> Next {
        let Descent { at, mut request, arrival, bypassed } = self;
        let (route_id, mut way) = (destination.route, Way { upstream: destination.upstream, bypassed });
        let route = &worker.generation.routes[route_id];
        let hook = WaitingHook { worker, plugin_id: at.plugin(route), side: MessageSide::Request };
        let context = record.context.get_or_insert_with(|| Box::new(ExchangeContext::empty()));
        // One byte more shows that the content is too long.
        let max = route.max_body.saturating_add(1);
        let called =
            read_while(hook.call(context, &timers.idle), |cx| request.body.read_early(&worker.buffers, max, cx));
        let verdict = timers.total.until_met(called).await;
        let mut context = record.take_context();
        let descending = Descending { worker, route_id, arrival: &arrival, timers, upload: record.upload.clone() };
        let passed = match verdict {
            Ok(verdict) => descending.resume(at, verdict, request, &mut context, &mut way),
            Err(_) => Err(ChainFailure::new(timers.late(), at)),
        };
        descending.settle(passed, context, way, record)
    }
}

/// Has the content of a request pass the body hooks that have to be waited for. Returns the upstream that the request goes
/// to, which a plugin may have chosen; the error is the response in place of forwarding.
async fn pass_body_hooks(
    sending: &mut OutgoingRequest,
    worker: &Rc<WorkerState>,
    destination: Destination,
    timers: &Timers,
    context: &mut Box<ExchangeContext>,
) -> Result<Option<UpstreamId>, Box<Reply>> {
    let route = &worker.generation.routes[destination.route];
    // All request hooks have run, those of the plugins below a failed one too.
    let bottom = ChainPosition::bottom(route);
    let failed = |failed: ChainFailure| Box::new(Reply::new(Err(ChainFailure { depth: bottom, ..failed }), bottom));
    let mut upstream = destination.upstream;
    if let Some(passage) = sending.passage.take() {
        let passed = timers.total.until_met(passage.run(worker, context, &mut upstream, timers.idle.clock())).await;
        match passed.unwrap_or_else(|_| Err(ChainFailure::new(timers.late(), bottom))).map_err(failed)? {
            PassageEnd::Content(content) => sending.body = content.into_body(sending.upload.clone(), &worker.buffers),
            PassageEnd::Respond { response, .. } => {
                let response = response.map(|content| ResponseBody::Full(content.into()));
                return Err(Box::new(Reply::new(Ok(response.into()), bottom).of_plugin()));
            }
        }
        if matches!(sending.body, RequestBody::Collected(_)) {
            // All of it was received.
            sending.collected = None;
        }
        apply_uri_rules(route, context).map_err(|error| failed(ChainFailure::new(error, bottom)))?;
    }
    Ok(upstream)
}

/// Returns the reply of a route's target, which is below the whole chain.
fn reply_of_target(
    route: &Route,
    received: Result<Received, Error>,
    bypassed: &mut Option<Box<BypassedCache>>,
) -> Reply {
    let bottom = ChainPosition::bottom(route);
    let received = received.map_err(|error| ChainFailure::new(error, bottom));
    Reply { bypassed: bypassed.take(), ..Reply::new(received, bottom) }
}

/// Reads the files of a route, and passes the response up the chain.
async fn read_files(
    bypassed: &mut Option<Box<BypassedCache>>,
    worker: &Rc<WorkerState>,
    destination: Destination,
    timers: &Timers,
    record: &mut ExchangeRecord,
) -> Response<ResponseBody> {
    let context = record.context.get_or_insert_with(|| Box::new(ExchangeContext::empty()));
    let mut nothing = OutgoingRequest::empty();
    let asked = ask_target(worker, destination, context, &mut nothing, &timers.idle);
    let received = timers.total.until_met(asked).await.unwrap_or_else(|_| Err(timers.late()));
    let reply = reply_of_target(&worker.generation.routes[destination.route], received, bypassed);
    let context = record.take_context();
    respond(worker, destination.route, context, reply, record).finish(worker, timers, record).await
}

/// Fetches a response through the cache, and passes it up the chain.
async fn fetch(
    miss: &mut CacheMiss,
    worker: &Rc<WorkerState>,
    destination: Destination,
    timers: &Timers,
    record: &mut ExchangeRecord,
) -> Response<ResponseBody> {
    let context = record.context.get_or_insert_with(|| Box::new(ExchangeContext::empty()));
    let answered = timers.total.until_met(miss.run(worker, destination, context, &timers.total)).await;
    let reply = match answered.unwrap_or_else(|_| Err(ChainFailure::new(timers.late(), miss.depth()))) {
        Ok(CacheResponse { response, edits, depth }) => {
            record.response_started();
            Reply::new(Ok(Received { response, edits }), depth).of_target(destination)
        }
        Err(failed) => Reply::new(Err(failed), ChainPosition::top()),
    };
    let context = record.take_context();
    respond(worker, destination.route, context, reply, record).finish(worker, timers, record).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::boxed::size_of_future;

    /// The future of a forwarded exchange is allocated for each request.
    #[test]
    fn forwarded_exchange_has_a_small_future() {
        struct Arguments {
            forwarding: &'static mut Forwarding,
            worker: &'static Rc<WorkerState>,
            timers: &'static Timers,
            record: &'static mut ExchangeRecord,
        }
        let size = size_of_future(|arguments: Arguments| {
            arguments.forwarding.run(arguments.worker, arguments.timers, arguments.record)
        });
        assert!(size <= 1264, "{size} bytes");
    }
}
