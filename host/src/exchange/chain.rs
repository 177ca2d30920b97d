//! The plugin chain: request hooks down, response hooks up, and the effect of a failed plugin on the exchange.

use std::ops::Range;
use std::sync::Arc;

use http::Response;
use http_body::Body;
use smallvec::SmallVec;

use crate::context::edit_check::{self, EditError, MessageSide};
use crate::context::edits::{self, Edit};
use crate::context::{CacheOutcome, ExchangeContext, ValueName};
use crate::error::{Error, FailureKind};
use crate::exchange::filtered_body::FilteredBody;
use crate::exchange::response_body::ResponseBody;
use crate::generation::ids::{PluginId, UpstreamId};
use crate::generation::{Route, WorkerState};
use crate::plugin::body_filter::BodyFilter;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::failure::ExchangeName;
use crate::plugin::instance::FilterVerdict;
use crate::plugin::settings::{BodyMode, Hook, OnError, OverLimit};
use crate::protocol::transformed_content;

/// The result of running the request hooks of a chain.
pub enum RequestHooks {
    /// No plugin responded: the request goes to the upstream, and all response hooks will run.
    Forward,
    /// A plugin responded; the response hooks of the plugins above it will run.
    Answer(Response<Vec<u8>>, ChainPosition),
    /// The chain has reached a cache at this position.
    Cache(ChainPosition),
}

/// A position in a chain: the number of plugins, from the top, that see the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainPosition(usize);

/// A failure that is answered with an error: that of a plugin by its `on-error`, or one that the host has found.
pub struct ChainFailure {
    pub error: Error,
    pub status: http::StatusCode,
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

impl ChainPosition {
    /// The position above the first plugin.
    pub fn top() -> Self {
        ChainPosition(0)
    }

    /// Returns the position below all plugins.
    pub fn bottom(route: &Route) -> Self {
        ChainPosition(route.chain.len())
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
            Hook::Absent => Ok(None),
            Hook::Plan(plan) => worker.guards[*plugin_id]
                .admit_work()
                .and_then(|()| apply_plan(worker, *plugin_id, *plan as u32, MessageSide::Request, context))
                .map(|()| None),
            Hook::Call(needs) => match call(worker, *plugin_id, MessageSide::Request, needs, context) {
                Ok(FilterVerdict::Plan(plan)) => {
                    apply_plan(worker, *plugin_id, plan, MessageSide::Request, context).map(|()| None)
                }
                Ok(FilterVerdict::Proceed(edits)) => {
                    apply_edits(worker, *plugin_id, edits, context, upstream).map(|()| None)
                }
                Ok(FilterVerdict::Respond(response)) => Ok(Some(response)),
                Err(failure) => Err(failure),
            },
        };
        match hooked {
            Ok(None) => {}
            Ok(Some(response)) => return Ok(RequestHooks::Answer(response, ChainPosition(depth))),
            Err(failure) => on_error(
                worker,
                *plugin_id,
                failure,
                ChainPosition(depth),
                FailedHook { hook: "request-filter", context },
            )?,
        }
        if configured.response_body.is_some() {
            transformed_content::ask(&mut context.request.headers);
        }
        if configured.cache.is_some() {
            return Ok(RequestHooks::Cache(ChainPosition(depth)));
        }
    }
    Ok(RequestHooks::Forward)
}

/// Runs the response hooks of some plugins, given by their places in the chain, upwards; one may put another content in
/// place.
pub fn up(
    worker: &WorkerState,
    route: &Route,
    plugins: Range<usize>,
    context: &mut Box<ExchangeContext>,
) -> Result<Option<Vec<u8>>, ChainFailure> {
    let mut content = None;
    for (depth, plugin_id) in plugins.clone().zip(&route.chain[plugins]).rev() {
        let configured = &worker.generation.bindings[*plugin_id];
        if configured.cache.is_some() {
            // A cache has a place of its own on the way up.
            continue;
        }
        let hooked = match &configured.response {
            Hook::Absent => continue,
            Hook::Plan(plan) => worker.guards[*plugin_id]
                .admit_work()
                .and_then(|()| apply_plan(worker, *plugin_id, *plan as u32, MessageSide::Response, context)),
            Hook::Call(needs) => match call(worker, *plugin_id, MessageSide::Response, needs, context) {
                Ok(FilterVerdict::Plan(plan)) => apply_plan(worker, *plugin_id, plan, MessageSide::Response, context),
                Ok(FilterVerdict::Proceed(edits)) => {
                    let applied = edits::apply(edits, &configured.plans, MessageSide::Response, context);
                    worker.guards[*plugin_id].charge_work(context.work.take());
                    applied.map_err(PluginFailure::from)
                }
                Ok(FilterVerdict::Respond(response)) => {
                    let (parts, body) = response.into_parts();
                    context.response = Some(parts);
                    content = Some(body);
                    Ok(())
                }
                Err(failure) => Err(failure),
            },
        };
        if let Err(failure) = hooked {
            on_error(
                worker,
                *plugin_id,
                failure,
                ChainPosition(depth),
                FailedHook { hook: "response-filter", context },
            )?;
        }
    }
    Ok(content)
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
    worker.guards[*binding].charge_work(context.work.take());
    match applied {
        Ok(()) => Ok(()),
        Err(refused) => on_error(worker, *binding, refused.into(), depth, FailedHook { hook: "balancer", context }),
    }
}

/// Calls a head hook.
fn call(
    worker: &WorkerState,
    plugin_id: PluginId,
    side: MessageSide,
    needs: &[ValueName],
    context: &mut Box<ExchangeContext>,
) -> Result<FilterVerdict, PluginFailure> {
    worker.call(plugin_id, |instance| instance.filter(side, needs, context))
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
    worker.guards[plugin_id].charge_work(context.work.take());
    Ok(applied?)
}

/// Makes the edits to a request, all or none.
fn apply_edits(
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
    worker.guards[plugin_id].charge_work(context.work.take());
    applied?;
    if let Some(upstream_id) = upstream_id {
        *upstream = Some(upstream_id);
        context.upstream = worker.upstreams[upstream_id].name.clone();
    }
    Ok(())
}

/// The plugins that a body of a known or unknown length passes on its way: down the chain for a request, up for the
/// response.
fn begin_body_filters(
    worker: &WorkerState,
    route: &Route,
    plugins: Range<usize>,
    side: MessageSide,
    length: Option<u64>,
    context: &ExchangeContext,
) -> Result<Vec<BodyFilter>, ChainFailure> {
    let mut stages = Vec::new();
    for (depth, plugin_id) in plugins.clone().zip(&route.chain[plugins]) {
        let configured = &worker.generation.bindings[*plugin_id];
        let mode = if side == MessageSide::Request { configured.request_body } else { configured.response_body };
        let Some(mode) = mode else { continue };
        if let (BodyMode::Buffered(limit, OverLimit::Reject), Some(length)) = (mode, length)
            && length > limit
        {
            let kind =
                if side == MessageSide::Request { FailureKind::RequestBodySize } else { FailureKind::ResponseBodySize };
            let error = Error::new(kind, format!("{length} bytes, and `{}` takes {limit}", configured.name));
            return Err(ChainFailure { error, status: kind.status(), depth: ChainPosition(depth) });
        }
        match BodyFilter::begin(&worker.guards[*plugin_id], &worker.bodies[*plugin_id], side, mode) {
            Ok(mut stage) => {
                stage.belongs_to(ExchangeName::of(context));
                stages.push(stage);
            }
            Err(failure) => {
                let hook = if side == MessageSide::Request { "request-body" } else { "response-body" };
                on_error(worker, *plugin_id, failure, ChainPosition(depth), FailedHook { hook, context })?;
            }
        }
    }
    if side == MessageSide::Response {
        stages.reverse();
    }
    Ok(stages)
}

/// The plugins of a chain that the body of a request passes; none if they can't transform it, and the `on-error` of each
/// lets it pass.
pub fn begin_request_filters(
    worker: &WorkerState,
    route: &Route,
    length: Option<u64>,
    context: &ExchangeContext,
) -> Result<Vec<BodyFilter>, ChainFailure> {
    let plugins = ChainPosition::bottom(route).plugins();
    let Some(obstacle) = transformed_content::request_obstacle(&context.request.headers) else {
        return begin_body_filters(worker, route, plugins, MessageSide::Request, length, context);
    };
    for (depth, place) in route.chain.iter().enumerate() {
        let configured = &worker.generation.bindings[*place];
        if configured.request_body.is_none() {
            continue;
        }
        let failing = FailedHook { hook: "request-body", context };
        let failure = PluginFailure::Reported(obstacle.cause.clone());
        on_error(worker, *place, failure, ChainPosition(depth), failing).map_err(|failed| {
            match configured.on_error {
                // It is the client that can do otherwise.
                OnError::Fail => ChainFailure { status: obstacle.status, ..failed },
                OnError::Skip | OnError::Respond(_) => failed,
            }
        })?;
    }
    Ok(Vec::new())
}

/// The content of a response, through those of some plugins that transform it. What plugins and the proxy made
/// themselves passes as it is; files are not made by the proxy.
pub fn filter_body(
    worker: &WorkerState,
    route: &Route,
    plugins: Range<usize>,
    context: &mut ExchangeContext,
    body: ResponseBody,
) -> Result<ResponseBody, ChainFailure> {
    let comes_from_target = matches!(
        body,
        ResponseBody::Upstream(_)
            | ResponseBody::Fixed(_)
            | ResponseBody::Stored(_)
            | ResponseBody::Parts(_)
            | ResponseBody::File(_)
            | ResponseBody::Filtered(_)
    );
    // A cache below has answered HEAD, or that its content is what the client has.
    let is_of_cache = || context.cache.is_some_and(|outcome| outcome != CacheOutcome::Bypass) && body.is_end_stream();
    let comes_from_target = comes_from_target || is_of_cache();
    let transforms = |plugin_id: &PluginId| worker.generation.bindings[*plugin_id].response_body.is_some();
    let is_forbidden =
        |context: &ExchangeContext| context.response.as_ref().is_some_and(transformed_content::is_forbidden);
    if !comes_from_target || !route.chain[plugins.clone()].iter().any(transforms) || is_forbidden(context) {
        return Ok(body);
    }
    if let Some(obstacle) =
        context.response.as_ref().and_then(transformed_content::obstacle).filter(|_| !body.is_end_stream())
    {
        for (depth, plugin_id) in
            plugins.clone().zip(&route.chain[plugins]).filter(|(_, plugin_id)| transforms(plugin_id))
        {
            let failing = FailedHook { hook: "response-body", context };
            on_error(worker, *plugin_id, PluginFailure::Reported(obstacle.clone()), ChainPosition(depth), failing)?;
        }
        return Ok(body);
    }
    let stages = if body.is_end_stream() {
        Vec::new()
    } else {
        begin_body_filters(worker, route, plugins, MessageSide::Response, body.size_hint().exact(), context)?
    };
    if let Some(response) = context.response.as_mut().filter(|_| body.is_end_stream() || !stages.is_empty()) {
        transformed_content::response(&mut response.headers);
    }
    if stages.is_empty() {
        return Ok(body);
    }
    Ok(ResponseBody::Filtered(Box::new(FilteredBody::new(body, stages))))
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
    let status = match worker.generation.bindings[plugin_id].on_error {
        OnError::Skip => return Ok(()),
        OnError::Fail => FailureKind::PluginError.status(),
        OnError::Respond(status) => status,
    };
    // Of calls that were not made, the log has one line a minute, which names no exchange.
    let is_logged = failure.rejection().is_none();
    let error = Error { is_logged, ..Error::new(FailureKind::PluginError, failure) };
    Err(ChainFailure { error, status, depth })
}
