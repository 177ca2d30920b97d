//! The content of messages on its way through the plugins of a chain that transform bodies.

use std::ops::Range;

use http_body::Body;

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
use crate::plugin::settings::{BodyMode, OnError, OverLimit};
use crate::protocol::transformed_content;

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
        let Some(inputs) = configured.body(side) else { continue };
        let mode = inputs.mode;
        if let (BodyMode::Buffered(limit, OverLimit::Reject), Some(length)) = (mode, length)
            && length > limit
        {
            let kind =
                if side == MessageSide::Request { FailureKind::RequestBodySize } else { FailureKind::ResponseBodySize };
            let error = Error::new(kind, format!("{length} bytes, and `{}` takes {limit}", configured.name));
            return Err(ChainFailure { error, status: kind.status(), depth: ChainPosition::above(depth) });
        }
        let start = BodyStart { side, mode, needs: &inputs.values, context };
        match BodyFilter::begin(&worker.guards[*plugin_id], &worker.bodies[*plugin_id], start) {
            Ok(stage) => stages.push(stage),
            Err(failure) => {
                let hook = if side == MessageSide::Request { "request-body" } else { "response-body" };
                on_error(worker, *plugin_id, failure, ChainPosition::above(depth), FailedHook { hook, context })?;
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
        on_error(worker, *place, failure, ChainPosition::above(depth), failing).map_err(|failed| {
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
            on_error(
                worker,
                *plugin_id,
                PluginFailure::Reported(obstacle.clone()),
                ChainPosition::above(depth),
                failing,
            )?;
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
