//! The plugin chain: request hooks down, response hooks up, and the effect of a failed plugin on the exchange.

use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;

use http::{Response, StatusCode};
use smallvec::SmallVec;

use crate::context::edit_check::{self, EditError, MessageSide};
use crate::context::edits::{self, Edit};
use crate::context::{ExchangeContext, ValueName};
use crate::error::{Error, FailureKind};
use crate::generation::Route;
use crate::generation::ids::{PluginId, RouteId, UpstreamId};
use crate::generation::worker_state::WorkerState;
use crate::plugin::breaker::HookKind;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::instance::FilterVerdict;
use crate::plugin::settings::{Hook, OnError};
use crate::protocol::transformed_content;

/// The result of running the request hooks of a chain.
pub enum RequestHooks {
    /// No plugin responded: the request goes to the upstream, and all response hooks will run.
    Forward,
    /// A plugin responded; the response hooks of the plugins above it will run.
    Answer(Response<Vec<u8>>, ChainPosition),
    /// The chain has reached a cache at this position.
    Cache(ChainPosition),
    /// The hook of the plugin just below this position may wait: [`accept_request_verdict`] takes its verdict.
    Wait(ChainPosition),
}

/// The result of running the response hooks of a chain.
pub enum ResponseHooks {
    /// All of them have run; one may have put another content in place.
    Done(Option<Vec<u8>>),
    /// The hooks below a plugin have run, and the hook of that plugin may wait: [`accept_response_verdict`] takes its verdict.
    Wait {
        /// The position just above the plugin.
        at: ChainPosition,
        /// The content that one of those below has put in place; `None` if none has.
        content: Option<Vec<u8>>,
    },
}

/// The chain of a route, on a worker.
#[derive(Clone, Copy)]
pub struct RouteChain<'a> {
    pub worker: &'a WorkerState,
    pub route_id: RouteId,
}

/// A position in a chain: the number of plugins, from the top, that see the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainPosition(usize);

/// A failure that is answered with an error: that of a plugin by its `on-error`, or one that the host has found.
pub struct ChainFailure {
    pub error: Error,
    pub status: StatusCode,
    /// The position from which the error goes up the chain.
    pub depth: ChainPosition,
}

/// The balancer's edits of the response.
#[derive(Clone)]
pub struct BalancerEdits {
    /// The index of the balancer in the generation.
    pub binding: PluginId,
    pub edits: Arc<[Edit]>,
}

impl ChainFailure {
    /// A failure of an exchange, whose response the plugins above a position see.
    pub fn new(error: Error, depth: ChainPosition) -> Self {
        ChainFailure { status: error.client_status(), error, depth }
    }
}

impl<'a> RouteChain<'a> {
    /// Returns the route.
    pub fn route(self) -> &'a Route {
        &self.worker.generation.routes[self.route_id]
    }
}

impl ChainPosition {
    /// The position above the first plugin.
    pub fn top() -> Self {
        ChainPosition(0)
    }

    /// Returns the position below all plugins.
    pub fn bottom(route: &Route) -> Self {
        ChainPosition(route.chain.len())
    }

    /// The position above the plugin at a place in the chain.
    pub fn above(place: usize) -> Self {
        ChainPosition(place)
    }

    /// The next position down the chain.
    pub fn next(self) -> Self {
        ChainPosition(self.0 + 1)
    }

    /// Returns the plugin just below this position.
    pub fn plugin(self, route: &Route) -> PluginId {
        route.chain[self.0]
    }

    /// Returns the range of the plugins above this position.
    pub fn plugins(self) -> Range<usize> {
        0..self.0
    }

    /// Returns the plugins from `top` down to this position.
    pub fn range_below(self, top: ChainPosition) -> Range<usize> {
        top.0..self.0.max(top.0)
    }
}

/// Runs the request hooks from a depth on, to the end or to a cache. Plugins may choose another upstream; `upstream` is
/// `None` if the route's target is no upstream.
pub fn down(
    worker: &WorkerState,
    route: &Route,
    from: ChainPosition,
    context: &mut Box<ExchangeContext>,
    upstream: &mut Option<UpstreamId>,
) -> Result<RequestHooks, ChainFailure> {
    for (depth, plugin_id) in route.chain.iter().enumerate().skip(from.0) {
        let configured = &worker.generation.bindings[*plugin_id];
        let hooked = match &configured.request {
            // A lookup by a plan makes no call.
            Hook::Absent
                if configured.cache.as_ref().is_some_and(|inputs| inputs.plan.is_none())
                    && worker.guards[*plugin_id].waits_for_turn(context.holder()) =>
            {
                return Ok(RequestHooks::Wait(ChainPosition(depth)));
            }
            Hook::Absent => Ok(None),
            Hook::Plan(plan) => worker.guards[*plugin_id]
                .admit_work(context)
                .and_then(|()| apply_plan(worker, *plugin_id, *plan as u32, MessageSide::Request, context))
                .map(|()| None),
            Hook::Call(_) if configured.waits() || worker.guards[*plugin_id].waits_for_turn(context.holder()) => {
                return Ok(RequestHooks::Wait(ChainPosition(depth)));
            }
            Hook::Call(needs) => {
                let verdict = call(worker, *plugin_id, MessageSide::Request, needs, context);
                apply_request_verdict(worker, *plugin_id, verdict, context, upstream)
            }
        };
        if let Some(stop) = settle_request_hook(worker, route, ChainPosition(depth), hooked, context)? {
            return Ok(stop);
        }
    }
    Ok(RequestHooks::Forward)
}

/// Takes the verdict of a request hook that could wait, just below a position, and runs the hooks below.
pub fn accept_request_verdict(
    chain: RouteChain<'_>,
    at: ChainPosition,
    verdict: Result<FilterVerdict, PluginFailure>,
    context: &mut Box<ExchangeContext>,
    upstream: &mut Option<UpstreamId>,
) -> Result<RequestHooks, ChainFailure> {
    let (worker, route) = (chain.worker, chain.route());
    let hooked = apply_request_verdict(worker, at.plugin(route), verdict, context, upstream);
    match settle_request_hook(worker, route, at, hooked, context)? {
        Some(stop) => Ok(stop),
        None => down(worker, route, at.next(), context, upstream),
    }
}

/// Applies the verdict of a request hook; returns its response, if it has made one.
fn apply_request_verdict(
    worker: &WorkerState,
    plugin_id: PluginId,
    verdict: Result<FilterVerdict, PluginFailure>,
    context: &mut ExchangeContext,
    upstream: &mut Option<UpstreamId>,
) -> Result<Option<Response<Vec<u8>>>, PluginFailure> {
    match verdict? {
        FilterVerdict::Plan(plan) => apply_plan(worker, plugin_id, plan, MessageSide::Request, context).map(|()| None),
        FilterVerdict::Proceed(edits) => apply_edits(worker, plugin_id, edits, context, upstream).map(|()| None),
        FilterVerdict::Respond(response) => Ok(Some(response)),
    }
}

/// Ends the request hook of the plugin just below a position; returns where the way down ends, if it does.
fn settle_request_hook(
    worker: &WorkerState,
    route: &Route,
    at: ChainPosition,
    hooked: Result<Option<Response<Vec<u8>>>, PluginFailure>,
    context: &mut Box<ExchangeContext>,
) -> Result<Option<RequestHooks>, ChainFailure> {
    let plugin_id = at.plugin(route);
    let configured = &worker.generation.bindings[plugin_id];
    let decision = context.bodies.take_asked();
    match hooked {
        Ok(None) => decision.into_iter().for_each(|mode| context.bodies.make(MessageSide::Request, at.0, mode)),
        Ok(Some(response)) => return Ok(Some(RequestHooks::Answer(response, at))),
        Err(failure) => on_error(worker, plugin_id, failure, at, FailedHook { hook: "request-filter", context })?,
    }
    if let Some(inputs) = &configured.response_body {
        transformed_content::ask(&mut context.request.headers, inputs.rules);
    }
    Ok(configured.cache.is_some().then_some(RequestHooks::Cache(at)))
}

/// Runs the response hooks of some plugins, given by their places in the chain, upwards; one may put another content in
/// place.
pub fn up(
    worker: &WorkerState,
    route: &Route,
    plugins: Range<usize>,
    context: &mut Box<ExchangeContext>,
) -> Result<ResponseHooks, ChainFailure> {
    let mut content = None;
    // They may see a second response, in place of the first.
    context.bodies.forget(MessageSide::Response, &plugins);
    for (depth, plugin_id) in plugins.clone().zip(&route.chain[plugins]).rev() {
        let configured = &worker.generation.bindings[*plugin_id];
        if configured.cache.is_some() {
            // A cache has a place of its own on the way up.
            continue;
        }
        let hooked = match &configured.response {
            Hook::Absent => continue,
            Hook::Plan(plan) => worker.guards[*plugin_id]
                .admit_work(context)
                .and_then(|()| apply_plan(worker, *plugin_id, *plan as u32, MessageSide::Response, context))
                .map(|()| None),
            Hook::Call(_) if configured.waits() || worker.guards[*plugin_id].waits_for_turn(context.holder()) => {
                return Ok(ResponseHooks::Wait { at: ChainPosition(depth), content });
            }
            Hook::Call(needs) => {
                let verdict = call(worker, *plugin_id, MessageSide::Response, needs, context);
                apply_response_verdict(worker, *plugin_id, verdict, context)
            }
        };
        let replaced = settle_response_hook(worker, route, ChainPosition(depth), hooked, context)?;
        content = replaced.or(content);
    }
    Ok(ResponseHooks::Done(content))
}

/// Takes the verdict of a response hook that could wait, just below a position; returns the content that it has put in
/// place.
pub fn accept_response_verdict(
    worker: &WorkerState,
    route: &Route,
    at: ChainPosition,
    verdict: Result<FilterVerdict, PluginFailure>,
    context: &mut Box<ExchangeContext>,
) -> Result<Option<Vec<u8>>, ChainFailure> {
    let hooked = apply_response_verdict(worker, at.plugin(route), verdict, context);
    settle_response_hook(worker, route, at, hooked, context)
}

/// Applies the verdict of a response hook; returns the content that it puts in place, if any.
fn apply_response_verdict(
    worker: &WorkerState,
    plugin_id: PluginId,
    verdict: Result<FilterVerdict, PluginFailure>,
    context: &mut ExchangeContext,
) -> Result<Option<Vec<u8>>, PluginFailure> {
    match verdict? {
        FilterVerdict::Plan(plan) => apply_plan(worker, plugin_id, plan, MessageSide::Response, context)?,
        FilterVerdict::Proceed(edits) => apply_response_edits(worker, plugin_id, edits, context)?,
        FilterVerdict::Respond(response) => {
            let (parts, body) = response.into_parts();
            context.response = Some(parts);
            return Ok(Some(body));
        }
    }
    Ok(None)
}

/// Ends the response hook of the plugin just below a position; returns the content that it has put in place.
fn settle_response_hook(
    worker: &WorkerState,
    route: &Route,
    at: ChainPosition,
    hooked: Result<Option<Vec<u8>>, PluginFailure>,
    context: &mut ExchangeContext,
) -> Result<Option<Vec<u8>>, ChainFailure> {
    let decision = context.bodies.take_asked();
    if hooked.is_ok() {
        decision.into_iter().for_each(|mode| context.bodies.make(MessageSide::Response, at.0, mode));
    }
    let failing = FailedHook { hook: "response-filter", context };
    hooked.or_else(|failure| on_error(worker, at.plugin(route), failure, at, failing).map(|()| None))
}

/// Makes the balancer's edits of the response.
pub fn apply_balancer_edits(
    worker: &WorkerState,
    wanted: Option<&BalancerEdits>,
    depth: ChainPosition,
    context: &mut ExchangeContext,
) -> Result<(), ChainFailure> {
    let Some(BalancerEdits { binding, edits }) = wanted else { return Ok(()) };
    let applied = edits::apply(edits.iter().cloned().collect(), &[], MessageSide::Response, context);
    worker.guards[*binding].charge_work(context);
    match applied {
        Ok(()) => Ok(()),
        Err(refused) => on_error(worker, *binding, refused.into(), depth, FailedHook { hook: "balancer", context }),
    }
}

/// Calls a head hook that does not wait.
pub fn call(
    worker: &WorkerState,
    plugin_id: PluginId,
    side: MessageSide,
    needs: &[ValueName],
    context: &mut Box<ExchangeContext>,
) -> Result<FilterVerdict, PluginFailure> {
    worker.call(plugin_id, HookKind::filter(side), context.holder(), |instance| instance.filter(side, needs, context))
}

fn apply_plan(
    worker: &WorkerState,
    plugin_id: PluginId,
    plan: u32,
    side: MessageSide,
    context: &mut ExchangeContext,
) -> Result<(), PluginFailure> {
    let plans = &worker.generation.bindings[plugin_id].plans;
    let plan = plans.get(plan as usize).ok_or(EditError::Plan(plan))?;
    let applied = edits::apply_plan(plan, side, context);
    worker.guards[plugin_id].charge_work(context);
    Ok(applied?)
}

/// Makes the edits to a response, all or none.
pub fn apply_response_edits(
    worker: &WorkerState,
    plugin_id: PluginId,
    edits: SmallVec<[Edit; 4]>,
    context: &mut ExchangeContext,
) -> Result<(), PluginFailure> {
    let plans = &worker.generation.bindings[plugin_id].plans;
    let applied = edits::apply(edits, plans, MessageSide::Response, context);
    worker.guards[plugin_id].charge_work(context);
    Ok(applied?)
}

/// Makes the edits to a request, all or none.
pub fn apply_edits(
    worker: &WorkerState,
    plugin_id: PluginId,
    edits: SmallVec<[Edit; 4]>,
    context: &mut ExchangeContext,
    upstream: &mut Option<UpstreamId>,
) -> Result<(), PluginFailure> {
    // Looked up before anything is changed.
    let named = edits.iter().rev().find_map(|edit| match edit {
        Edit::Upstream(name) if upstream.is_some() => Some(resolve_upstream(worker, name)),
        Edit::Upstream(name) => Some(Err(PluginFailure::Senseless(format!(
            "it chose the upstream `{}`, and the route leads to no upstream",
            edit_check::shown(name)
        )))),
        _ => None,
    });
    let upstream_id = named.transpose()?;
    let applied = edits::apply(edits, &worker.generation.bindings[plugin_id].plans, MessageSide::Request, context);
    worker.guards[plugin_id].charge_work(context);
    applied?;
    if let Some(upstream_id) = upstream_id {
        *upstream = Some(upstream_id);
        context.upstream = worker.upstreams[upstream_id].name.clone();
    }
    Ok(())
}

fn resolve_upstream(worker: &WorkerState, name: &str) -> Result<UpstreamId, PluginFailure> {
    let upstream_id = worker.generation.upstream_ids.get(name).copied();
    upstream_id.ok_or_else(|| {
        PluginFailure::Senseless(format!(
            "it chose the upstream `{}`, which the manifest doesn't have",
            edit_check::shown(name)
        ))
    })
}

/// A failed hook, with the exchange that it failed in.
pub struct FailedHook<'a> {
    pub hook: &'static str,
    pub context: &'a ExchangeContext,
}

/// Applies a failed plugin's `on-error`; returns `Ok` if the exchange continues without the plugin.
pub fn on_error(
    worker: &WorkerState,
    plugin_id: PluginId,
    failure: PluginFailure,
    depth: ChainPosition,
    failing: FailedHook<'_>,
) -> Result<(), ChainFailure> {
    worker.record_plugin_failure(plugin_id, failing.hook, &failure, Some(failing.context));
    let busy_limit = failure.busy_limit();
    let status = match worker.generation.bindings[plugin_id].on_error {
        OnError::Skip => return Ok(()),
        OnError::Fail if busy_limit.is_some() => StatusCode::SERVICE_UNAVAILABLE,
        OnError::Fail => FailureKind::PluginError.status(),
        OnError::Respond(status) => status,
    };
    // Of calls that were not made, the log has one line a minute, which names no exchange.
    let is_logged = failure.rejection().is_none();
    let mut error = Error { is_logged, ..Error::new(FailureKind::PluginError, failure) };
    if busy_limit.is_some() {
        (error.limit, error.retry_after) = (busy_limit, Some(NonZero::<u32>::MIN));
    }
    Err(ChainFailure { error, status, depth })
}
