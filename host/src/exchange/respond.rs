//! The way of a response up the chain. Every response to a request with a route takes it, whatever made the response.

use std::rc::Rc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use hyper::ext::ReasonPhrase;

use super::Destination;
use super::body_hooks::{self, Passage, PassageEnd};
use super::body_passage::BodyPassage;
use super::waiting::WaitingHook;
use super::{ConnectionInfo, Timers, chain, error_response, made_response, read_ahead, record};
use crate::context::edit_check::MessageSide;
use crate::context::{ExchangeContext, ReceivedRequest};
use crate::error::{Error, FailureKind};
use crate::exchange::cache::BypassedCache;
use crate::exchange::chain::{ChainFailure, ChainPosition, ResponseHooks, RouteChain};
use crate::exchange::forward::Received;
use crate::exchange::intercept::{complete, intercept};
use crate::exchange::made_response::CountedLength;
use crate::exchange::record::ExchangeRecord;
use crate::exchange::response_body::ResponseBody;
use crate::generation::Route;
use crate::generation::ids::RouteId;
use crate::generation::worker_state::WorkerState;
use crate::net::boxed::boxed;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::instance::FilterVerdict;
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

    /// Marks the response as one of the destination: the route may intercept that of an upstream.
    pub fn of_target(self, destination: Destination) -> Self {
        let maker = if destination.upstream.is_some() { Maker::Upstream } else { Maker::Proxy };
        Reply { maker, ..self }
    }

    /// Marks the response as one of a plugin, which gets an error page if it lacks content.
    pub fn of_plugin(self) -> Self {
        Reply { maker: Maker::Plugin, ..self }
    }
}

/// The result of taking a response up the chain.
pub enum Responding {
    /// The response is ready for the client.
    Ready(Response<ResponseBody>),
    /// A plugin's response hook may wait: [`Ascent::finish`] takes the response further. The record has the context.
    Waiting(Box<Ascent>),
    /// The content has to pass body hooks that have to be waited for. The record has the context.
    Late(Box<LateResponse>),
}

/// A response whose head is in the record of the exchange, and whose content is to pass body hooks.
pub struct LateResponse {
    route_id: RouteId,
    passage: BodyPassage<ResponseBody>,
    depth: ChainPosition,
    /// The status that the response came with.
    came: StatusCode,
}

/// A response on its way up the chain, below a plugin whose response hook may wait.
pub struct Ascent {
    route_id: RouteId,
    /// The position just above the plugin.
    at: ChainPosition,
    body: ResponseBody,
    /// The content that a plugin has put in place of the body; `None` if none has.
    content: Option<Vec<u8>>,
    /// The status that the response came with.
    came: StatusCode,
    /// The position that the response goes up from.
    depth: ChainPosition,
    bypassed: Option<Box<BypassedCache>>,
}

/// Takes a response through the response hooks of the plugins whose request hooks have run. Every response to a request
/// with a route passes here, whatever made the response. A failure of a plugin on the way is a response too, for the
/// plugins above.
pub fn respond(
    worker: &WorkerState,
    route_id: RouteId,
    context: Box<ExchangeContext>,
    reply: Reply,
    record: &mut ExchangeRecord,
) -> Responding {
    let route = &worker.generation.routes[route_id];
    let Reply { mut received, depth, bypassed, maker } = reply;
    record.begin_response(route_id, depth);
    received = match maker {
        Maker::Upstream if !route.intercept.is_empty() => {
            received.map(|received| intercept(received, &context, route_id, worker))
        }
        Maker::Plugin => received.map(|received| complete(received, &context, route_id, worker)),
        Maker::Upstream | Maker::Proxy => received,
    };
    respond_from(worker, route_id, context, Reply { received, depth, bypassed, maker }, record)
}

/// Takes a response, or the one to a failure, up the chain.
fn respond_from(
    worker: &WorkerState,
    route_id: RouteId,
    mut context: Box<ExchangeContext>,
    reply: Reply,
    record: &mut ExchangeRecord,
) -> Responding {
    let Reply { mut received, mut depth, mut bypassed, .. } = reply;
    loop {
        let response = match received {
            Ok(response) => response,
            Err(ChainFailure { error, status, depth: above }) => {
                depth = above;
                bypassed.iter_mut().for_each(|cache| cache.record_failure());
                fail(&error, status, worker, &context, record).into()
            }
        };
        match ascend(RouteChain { worker, route_id }, response, depth, &mut bypassed, &mut context) {
            Ok(responding) => return responding.recorded(worker, route_id, context, record),
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
    route_id: RouteId,
    context: &ExchangeContext,
    record: &mut ExchangeRecord,
) {
    let length = made_response::counted_length(response.headers(), response.body());
    if length == 0 {
        return;
    }
    let client = context.holder();
    let Some(share) = worker.buffers.count_made(length, &worker.generation.routes[route_id].made, client) else {
        let cause = "made responses fill the part of the memory for bodies that the route, or the client, may have";
        let error = Error::new(FailureKind::LimitReached, cause).with_limit("buffers.memory");
        *response = fail(&error, error.client_status(), worker, context, record);
        return;
    };
    let whole = std::mem::replace(response, Response::new(ResponseBody::Full(Bytes::new())));
    let (mut parts, mut body) = whole.into_parts();
    made_response::attach(share, &mut parts.headers, &mut body);
    parts.extensions.insert(CountedLength(length));
    *response = Response::from_parts(parts, body);
}

impl Responding {
    /// Puts the context into the record: the exchange may be dropped while it waits, and is logged all the same. A response
    /// that is ready is counted.
    fn recorded(
        mut self,
        worker: &WorkerState,
        route_id: RouteId,
        context: Box<ExchangeContext>,
        record: &mut ExchangeRecord,
    ) -> Self {
        if let Responding::Ready(response) = &mut self {
            count_made(response, worker, route_id, &context, record);
            record.status = response.status().as_u16();
        }
        record.set_route(route_id, context);
        self
    }

    /// Returns the response once all hooks have run.
    pub async fn finish(
        self,
        worker: &Rc<WorkerState>,
        timers: &Timers,
        record: &mut ExchangeRecord,
    ) -> Response<ResponseBody> {
        match self {
            Responding::Ready(response) => response,
            // Boxed, as exchanges that wait here are few.
            Responding::Waiting(ascent) => boxed(|| ascent.finish(worker, timers, record)).await,
            Responding::Late(late) => boxed(|| late.run(worker, timers, record)).await,
        }
    }
}

impl LateResponse {
    /// Waits for the body hooks, and returns the response. The response to an error passes no body hook.
    pub async fn run(
        self: Box<Self>,
        worker: &Rc<WorkerState>,
        timers: &Timers,
        record: &mut ExchangeRecord,
    ) -> Response<ResponseBody> {
        let LateResponse { route_id, passage, depth, came } = *self;
        let context = record.context.get_or_insert_with(|| Box::new(ExchangeContext::empty()));
        let passed = timers.total.until_met(passage.run(worker, context, &mut None, timers.idle.clock())).await;
        let passed = passed.unwrap_or_else(|_| Err(ChainFailure::new(timers.late(), depth)));
        let mut context = record.take_context();
        let responding = match passed {
            Ok(PassageEnd::Content(body)) => {
                let response = complete_head(&mut context, body, came);
                Responding::Ready(response).recorded(worker, route_id, context, record)
            }
            // The plugins above see it as any response of a plugin, and run again for it.
            Ok(PassageEnd::Respond { response, above }) => {
                let response = response.map(|content| ResponseBody::Full(content.into()));
                let reply = Reply::new(Ok(response.into()), above).of_plugin();
                respond(worker, route_id, context, reply, record)
            }
            Err(failed) => respond(worker, route_id, context, Reply::new(Err(failed), depth), record),
        };
        match responding {
            Responding::Ready(response) => response,
            Responding::Waiting(ascent) => boxed(|| ascent.finish(worker, timers, record)).await,
            Responding::Late(late) => {
                let mut response = Response::new(ResponseBody::Full(Bytes::new()));
                *response.status_mut() = late.came;
                response
            }
        }
    }
}

impl Ascent {
    /// Waits for the hook of the plugin, and takes the response up to the client.
    pub async fn finish(
        self: Box<Self>,
        worker: &Rc<WorkerState>,
        timers: &Timers,
        record: &mut ExchangeRecord,
    ) -> Response<ResponseBody> {
        let (route_id, mut ascent) = (self.route_id, self);
        let route = &worker.generation.routes[route_id];
        loop {
            let at = ascent.at;
            let context = record.context.get_or_insert_with(|| Box::new(ExchangeContext::empty()));
            let hook = WaitingHook { worker, plugin_id: at.plugin(route), side: MessageSide::Response };
            let verdict = timers.total.until_met(hook.call(context, &timers.idle)).await;
            let mut context = record.take_context();
            let ascended = match verdict {
                Ok(verdict) => ascent.resume(worker, route, verdict, &mut context),
                Err(_) => Err((ChainFailure::new(timers.late(), at), ascent.bypassed.take())),
            };
            let responding = match ascended {
                Ok(responding) => responding.recorded(worker, route_id, context, record),
                Err((failed, bypassed)) => {
                    let reply = Reply { bypassed, ..Reply::new(Err(failed), at) };
                    respond_from(worker, route_id, context, reply, record)
                }
            };
            match responding {
                Responding::Ready(response) => return response,
                Responding::Waiting(next) => ascent = next,
                Responding::Late(late) => return boxed(|| late.run(worker, timers, record)).await,
            }
        }
    }

    /// Takes the verdict of the plugin, and takes the response up from there. An error has the bypassed cache, if that is
    /// above.
    fn resume(
        mut self: Box<Self>,
        worker: &WorkerState,
        route: &Route,
        verdict: Result<FilterVerdict, PluginFailure>,
        context: &mut Box<ExchangeContext>,
    ) -> Result<Responding, (ChainFailure, Option<Box<BypassedCache>>)> {
        let mut bypassed = self.bypassed.take();
        let replaced = chain::accept_response_verdict(worker, route, self.at, verdict, context);
        let hooks = replaced.and_then(|replaced| {
            self.content = replaced.or(self.content.take());
            run_response_hooks(worker, route, self.at, &mut bypassed, context)
        });
        match hooks {
            Ok(hooks) => self.settle(worker, route, hooks, &mut bypassed, context).map_err(|failed| (failed, bypassed)),
            Err(failed) => Err((failed, bypassed)),
        }
    }

    /// Finishes the response once all response hooks have run.
    fn settle(
        mut self: Box<Self>,
        worker: &WorkerState,
        route: &Route,
        hooks: ResponseHooks,
        bypassed: &mut Option<Box<BypassedCache>>,
        context: &mut Box<ExchangeContext>,
    ) -> Result<Responding, ChainFailure> {
        match hooks {
            ResponseHooks::Wait { at, content } => {
                self.content = content.or(self.content.take());
                (self.at, self.bypassed) = (at, bypassed.take());
                Ok(Responding::Waiting(self))
            }
            ResponseHooks::Done(content) => {
                let content = content.or(self.content.take());
                self.content = content;
                finish_response(worker, route, *self, context)
            }
        }
    }
}

/// Takes a response up the chain from a position.
fn ascend(
    chain: RouteChain<'_>,
    received: Received,
    depth: ChainPosition,
    bypassed: &mut Option<Box<BypassedCache>>,
    context: &mut Box<ExchangeContext>,
) -> Result<Responding, ChainFailure> {
    let (RouteChain { worker, route_id }, route) = (chain, chain.route());
    let (mut parts, body) = received.response.into_parts();
    hop_by_hop::response(&mut parts);
    let came = parts.status;
    read_ahead::allow(worker, route, context, &parts.headers, &body);
    context.response = Some(parts);
    chain::apply_balancer_edits(worker, received.edits.as_ref(), depth, context)?;
    let hooks = run_response_hooks(worker, route, depth, bypassed, context)?;
    match hooks {
        ResponseHooks::Done(content) => {
            let ascent = Ascent { route_id, at: depth, body, content, came, depth, bypassed: None };
            finish_response(worker, route, ascent, context)
        }
        ResponseHooks::Wait { at, content } => {
            let bypassed = bypassed.take();
            Ok(Responding::Waiting(Box::new(Ascent { route_id, at, body, content, came, depth, bypassed })))
        }
    }
}

/// Makes the response to the client, once all response hooks have run: the body, or the content that a plugin has put in
/// its place.
fn finish_response(
    worker: &WorkerState,
    route: &Route,
    ascent: Ascent,
    context: &mut Box<ExchangeContext>,
) -> Result<Responding, ChainFailure> {
    let Ascent { route_id, body, content, came, depth, .. } = ascent;
    let body = content.map_or(body, |content| ResponseBody::Full(Bytes::from(content)));
    Ok(match body_hooks::filter_body(worker, route, depth.plugins(), context, body)? {
        Passage::Done(body) => Responding::Ready(complete_head(context, body, came)),
        Passage::Waits(passage) => {
            Responding::Late(Box::new(LateResponse { route_id, passage: *passage, depth, came }))
        }
    })
}

/// Returns the response whose head is in the context, as the client gets it. `came`: the status as the response came.
fn complete_head(context: &mut ExchangeContext, body: ResponseBody, came: StatusCode) -> Response<ResponseBody> {
    let status = context.response.as_ref().map_or(came, |parts| parts.status);
    // A plugin that changes the status of a switch denies the tunnel.
    let is_denied = matches!(body, ResponseBody::Switched(_)) && status != StatusCode::SWITCHING_PROTOCOLS;
    let has_none = is_denied || hop_by_hop::has_no_content(status);
    // What is dropped resets its stream.
    let mut response = Response::new(if has_none { ResponseBody::Full(Bytes::new()) } else { body });
    let Some(mut parts) = context.response.take() else { return response };
    hop_by_hop::demand_upgrade(context.request.version, &mut parts);
    if let ResponseBody::Switched(switched) = response.body() {
        let confirmed = hop_by_hop::switch(&switched.protocol);
        confirmed.into_iter().for_each(|(name, value)| drop(parts.headers.insert(name, value)));
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
    response
}

/// Runs response hooks upwards from a position, past a bypassed cache; a plugin may put another content in place.
fn run_response_hooks(
    worker: &WorkerState,
    route: &Route,
    depth: ChainPosition,
    bypassed: &mut Option<Box<BypassedCache>>,
    context: &mut Box<ExchangeContext>,
) -> Result<ResponseHooks, ChainFailure> {
    let Some(cache) = bypassed.take_if(|cache| cache.depth() < depth) else {
        return chain::up(worker, route, depth.plugins(), context);
    };
    let at = cache.depth();
    let below = match chain::up(worker, route, depth.range_below(at.next()), context) {
        Ok(ResponseHooks::Done(content)) => content,
        ended => {
            *bypassed = Some(cache);
            return ended;
        }
    };
    cache.on_response(worker, route, context);
    Ok(match chain::up(worker, route, at.plugins(), context)? {
        ResponseHooks::Done(above) => ResponseHooks::Done(above.or(below)),
        ResponseHooks::Wait { at, content } => ResponseHooks::Wait { at, content: content.or(below) },
    })
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

/// Returns the response in place of one that has passed the chain and can't be sent. The error goes up the chain.
pub async fn replace_with_error(error: Error, timers: &Timers, record: &mut ExchangeRecord) -> Response<ResponseBody> {
    let worker = record.running().clone();
    let context = record.take_context();
    match record.route() {
        Some(route_id) => {
            let depth = record.depth;
            let reply = Reply::new(Err(ChainFailure::new(error, depth)), depth);
            respond(&worker, route_id, context, reply, record).finish(&worker, timers, record).await
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
    let page = worker.generation.error_page(record.route(), status);
    let response = error_response::error_response(error, status, context, page);
    (record.status, record.error) = (response.status().as_u16(), Some(error.kind));
    response
}
