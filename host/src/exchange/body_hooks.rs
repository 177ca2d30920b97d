//! The content of messages on its way through the plugins of a chain that transform bodies.

use std::ops::Range;

use http_body::Body;
use smallvec::SmallVec;

use crate::context::body_mode::{BodyMode, OverLimit};
use crate::context::edit_check::MessageSide;
use crate::context::{CacheOutcome, ExchangeContext};
use crate::error::{Error, FailureKind};
use crate::exchange::chain::{ChainFailure, ChainPosition, FailedHook, on_error};
use crate::exchange::filtered_body::FilteredBody;
use crate::exchange::response_body::ResponseBody;
use crate::generation::ids::PluginId;
use crate::generation::{Route, WorkerState};
use crate::plugin::body_filter::{BodyFilter, BodyStart};
use crate::plugin::call_error::PluginFailure;
use crate::plugin::settings::OnError;
use crate::protocol::transformed_content;

/// A body hook that is due for a message.
#[derive(Clone, Copy)]
struct DueHook {
    /// The place of the plugin in the chain.
    place: usize,
    plugin_id: PluginId,
    mode: BodyMode,
}

/// The body hooks that are due for a message, in the order of the chain.
type DueHooks = SmallVec<[DueHook; 4]>;

/// Returns the body hooks of some plugins that are due for a message: by the decision of the plugin's head hook, or else as
/// the plugin declared.
fn due(
    worker: &WorkerState,
    route: &Route,
    plugins: Range<usize>,
    side: MessageSide,
    context: &ExchangeContext,
) -> DueHooks {
    let hook = |(place, plugin_id): (usize, &PluginId)| {
        let declared = worker.generation.bindings[*plugin_id].body(side)?.mode;
        let mode = context.bodies.of(side, place).unwrap_or(declared);
        (mode != BodyMode::Skipped).then_some(DueHook { place, plugin_id: *plugin_id, mode })
    };
    plugins.clone().zip(&route.chain[plugins]).filter_map(hook).collect()
}

/// Returns the plugins that a body of a known or unknown length passes on its way.
fn begin_body_filters(
    worker: &WorkerState,
    hooks: impl Iterator<Item = DueHook>,
    side: MessageSide,
    length: Option<u64>,
    context: &ExchangeContext,
) -> Result<Vec<BodyFilter>, ChainFailure> {
    let mut stages = Vec::new();
    for DueHook { place, plugin_id, mode } in hooks {
        let configured = &worker.generation.bindings[plugin_id];
        let Some(inputs) = configured.body(side) else { continue };
        if let (BodyMode::Buffered(limit, OverLimit::Reject), Some(length)) = (mode, length)
            && length > limit
        {
            let kind =
                if side == MessageSide::Request { FailureKind::RequestBodySize } else { FailureKind::ResponseBodySize };
            let error = Error::new(kind, format!("{length} bytes, and `{}` takes {limit}", configured.name));
            return Err(ChainFailure { error, status: kind.status(), depth: ChainPosition::above(place) });
        }
        let start = BodyStart { side, mode, needs: &inputs.values, context };
        match BodyFilter::begin(&worker.guards[plugin_id], &worker.bodies[plugin_id], start) {
            Ok(stage) => stages.push(stage),
            Err(failure) => {
                let failing = FailedHook { hook: hook_name(side), context };
                on_error(worker, plugin_id, failure, ChainPosition::above(place), failing)?;
            }
        }
    }
    Ok(stages)
}

/// Returns the name of a body hook for the log.
fn hook_name(side: MessageSide) -> &'static str {
    match side {
        MessageSide::Request => "request-body",
        MessageSide::Response => "response-body",
    }
}

/// The plugins of a chain that the body of a request passes; none if they can't transform it, and the `on-error` of each
/// lets it pass.
pub fn begin_request_filters(
    worker: &WorkerState,
    route: &Route,
    length: Option<u64>,
    context: &ExchangeContext,
) -> Result<Vec<BodyFilter>, ChainFailure> {
    let side = MessageSide::Request;
    let hooks = due(worker, route, ChainPosition::bottom(route).plugins(), side, context);
    if hooks.is_empty() {
        return Ok(Vec::new());
    }
    let Some(obstacle) = transformed_content::request_obstacle(&context.request.headers) else {
        return begin_body_filters(worker, hooks.into_iter(), side, length, context);
    };
    for DueHook { place, plugin_id, .. } in hooks {
        let failing = FailedHook { hook: hook_name(side), context };
        let failure = PluginFailure::Reported(obstacle.cause.clone());
        on_error(worker, plugin_id, failure, ChainPosition::above(place), failing).map_err(|failed| {
            match worker.generation.bindings[plugin_id].on_error {
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
    if !comes_from_target && !is_of_cache() {
        return Ok(body);
    }
    let side = MessageSide::Response;
    let hooks = due(worker, route, plugins, side, context);
    let is_forbidden = || context.response.as_ref().is_some_and(transformed_content::is_forbidden);
    if hooks.is_empty() || is_forbidden() {
        return Ok(body);
    }
    if let Some(obstacle) =
        context.response.as_ref().and_then(transformed_content::obstacle).filter(|_| !body.is_end_stream())
    {
        for DueHook { place, plugin_id, .. } in hooks {
            let failing = FailedHook { hook: hook_name(side), context };
            let failure = PluginFailure::Reported(obstacle.clone());
            on_error(worker, plugin_id, failure, ChainPosition::above(place), failing)?;
        }
        return Ok(body);
    }
    let stages = if body.is_end_stream() {
        Vec::new()
    } else {
        begin_body_filters(worker, hooks.into_iter().rev(), side, body.size_hint().exact(), context)?
    };
    if let Some(response) = context.response.as_mut().filter(|_| body.is_end_stream() || !stages.is_empty()) {
        transformed_content::response(&mut response.headers);
    }
    if stages.is_empty() {
        return Ok(body);
    }
    Ok(ResponseBody::Filtered(Box::new(FilteredBody::new(body, stages))))
}
