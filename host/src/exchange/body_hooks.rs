//! The content of messages on its way through the plugins of a chain that transform bodies.

use std::ops::Range;

use bytes::Bytes;
use http_body::Body;
use smallvec::SmallVec;

use crate::body::BodyError;
use crate::context::body_mode::{BodyMode, OverLimit};
use crate::context::edit_check::MessageSide;
use crate::context::{CacheOutcome, ExchangeContext};
use crate::error::{Error, FailureKind};
use crate::exchange::chain::{ChainFailure, ChainPosition, FailedHook, on_error};
use crate::exchange::filtered_body::{FilteredBody, UploadContent};
use crate::exchange::response_body::ResponseBody;
use crate::generation::ids::PluginId;
use crate::generation::{Route, WorkerState};
use crate::plugin::body_filter::{BodyFilter, BodyStart};
use crate::plugin::body_permit::BodyPermit;
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

/// Content that can pass plugins, and is content again behind them.
pub trait PassingContent: Body<Data = Bytes, Error = BodyError> + Unpin + Sized {
    /// Returns the content behind the plugins that transform it.
    fn filtered(passage: FilteredBody<Self>) -> Self;
}

impl PassingContent for UploadContent {
    fn filtered(passage: FilteredBody<Self>) -> Self {
        UploadContent::Filtered(Box::new(passage))
    }
}

impl PassingContent for ResponseBody {
    fn filtered(passage: FilteredBody<Self>) -> Self {
        ResponseBody::Filtered(Box::new(passage))
    }
}

/// The way of content through the body hooks that are due for its message.
pub struct BodyPassage<B> {
    side: MessageSide,
    /// The hooks, in the order in which the content passes them.
    hooks: DueHooks,
    /// The place in `hooks` of the next one that is to begin.
    next: usize,
    /// The hooks that have begun.
    stages: Vec<BodyFilter>,
    content: B,
}

/// Content with all its body hooks begun, or on its way to that.
pub enum Passage<B> {
    /// All body hooks have begun.
    Done(B),
    /// A body hook has to be waited for.
    Waits(Box<BodyPassage<B>>),
}

impl<B: PassingContent> BodyPassage<B> {
    fn new(side: MessageSide, hooks: DueHooks, content: B) -> Self {
        BodyPassage { side, hooks, next: 0, stages: Vec::new(), content }
    }

    /// Begins the hooks, if none of them has to be waited for.
    fn begin(mut self, worker: &WorkerState, context: &mut ExchangeContext) -> Result<Passage<B>, ChainFailure> {
        self.advance(worker, context)?;
        if self.next < self.hooks.len() {
            return Ok(Passage::Waits(Box::new(self)));
        }
        Ok(Passage::Done(self.finish(context)))
    }

    /// Begins the hooks in turn, and waits where that is needed.
    pub async fn run(mut self, worker: &WorkerState, context: &mut ExchangeContext) -> Result<B, ChainFailure> {
        loop {
            self.advance(worker, context)?;
            let Some(hook) = self.hooks.get(self.next).copied() else { return Ok(self.finish(context)) };
            let permit = BodyPermit::wait(&worker.generation.bindings[hook.plugin_id].supply).await;
            self.begin_hook(worker, hook, permit, context)?;
        }
    }

    /// Begins the hooks up to the first one that has to be waited for.
    fn advance(&mut self, worker: &WorkerState, context: &ExchangeContext) -> Result<(), ChainFailure> {
        while let Some(hook) = self.hooks.get(self.next).copied() {
            self.check_length(worker, hook)?;
            match BodyPermit::take(&worker.generation.bindings[hook.plugin_id].supply) {
                Err(PluginFailure::Bodies(_)) => return Ok(()),
                permit => self.begin_hook(worker, hook, permit, context)?,
            }
        }
        Ok(())
    }

    /// Rejects content that is known to be longer than the plugin takes.
    fn check_length(&self, worker: &WorkerState, hook: DueHook) -> Result<(), ChainFailure> {
        let BodyMode::Buffered(limit, OverLimit::Reject) = hook.mode else { return Ok(()) };
        let length = self.content.size_hint().exact().filter(|length| *length > limit && self.stages.is_empty());
        length.map_or(Ok(()), |length| {
            let name = &worker.generation.bindings[hook.plugin_id].name;
            Err(self.too_large(hook, format!("{length} bytes, and `{name}` takes {limit}")))
        })
    }

    fn too_large(&self, hook: DueHook, cause: String) -> ChainFailure {
        let kind = match self.side {
            MessageSide::Request => FailureKind::RequestBodySize,
            MessageSide::Response => FailureKind::ResponseBodySize,
        };
        ChainFailure::new(Error::new(kind, cause), ChainPosition::above(hook.place))
    }

    /// Begins a hook that has got a permit.
    fn begin_hook(
        &mut self,
        worker: &WorkerState,
        hook: DueHook,
        permit: Result<BodyPermit, PluginFailure>,
        context: &ExchangeContext,
    ) -> Result<(), ChainFailure> {
        let DueHook { place, plugin_id, mode } = hook;
        let side = self.side;
        self.next += 1;
        let needs = worker.generation.bindings[plugin_id].body(side).map_or(&[][..], |inputs| &inputs.values);
        let begun = permit.and_then(|permit| {
            let start = BodyStart { side, mode, needs, context };
            BodyFilter::begin(&worker.guards[plugin_id], &worker.bodies[plugin_id], permit, start)
        });
        match begun {
            Ok(stage) => self.stages.push(stage),
            Err(failure) => {
                let failing = FailedHook { hook: hook_name(side), context };
                on_error(worker, plugin_id, failure, ChainPosition::above(place), failing)?;
            }
        }
        Ok(())
    }

    /// Returns the content behind all hooks, and makes its head say nothing that they make untrue.
    fn finish(self, context: &mut ExchangeContext) -> B {
        if self.stages.is_empty() {
            return self.content;
        }
        match (self.side, &mut context.response) {
            (MessageSide::Request, _) => transformed_content::request(&mut context.request.headers),
            (MessageSide::Response, Some(response)) => transformed_content::response(&mut response.headers),
            (MessageSide::Response, None) => {}
        }
        B::filtered(FilteredBody::new(self.content, self.stages))
    }
}

/// Returns the name of a body hook for the log.
fn hook_name(side: MessageSide) -> &'static str {
    match side {
        MessageSide::Request => "request-body",
        MessageSide::Response => "response-body",
    }
}

/// Has the content of a request pass the plugins of a chain that take it; none if they can't, and the `on-error` of each
/// lets it pass.
pub fn filter_request(
    worker: &WorkerState,
    route: &Route,
    context: &mut ExchangeContext,
    content: UploadContent,
) -> Result<Passage<UploadContent>, ChainFailure> {
    let side = MessageSide::Request;
    let hooks = due(worker, route, ChainPosition::bottom(route).plugins(), side, context);
    if hooks.is_empty() {
        return Ok(Passage::Done(content));
    }
    let Some(obstacle) = transformed_content::request_obstacle(&context.request.headers) else {
        return BodyPassage::new(side, hooks, content).begin(worker, context);
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
    Ok(Passage::Done(content))
}

/// The content of a response, through those of some plugins that transform it. What plugins and the proxy made
/// themselves passes as it is; files are not made by the proxy.
pub fn filter_body(
    worker: &WorkerState,
    route: &Route,
    plugins: Range<usize>,
    context: &mut ExchangeContext,
    body: ResponseBody,
) -> Result<Passage<ResponseBody>, ChainFailure> {
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
        return Ok(Passage::Done(body));
    }
    let side = MessageSide::Response;
    let hooks = due(worker, route, plugins, side, context);
    let is_forbidden = || context.response.as_ref().is_some_and(transformed_content::is_forbidden);
    if hooks.is_empty() || is_forbidden() {
        return Ok(Passage::Done(body));
    }
    if let Some(obstacle) =
        context.response.as_ref().and_then(transformed_content::obstacle).filter(|_| !body.is_end_stream())
    {
        for DueHook { place, plugin_id, .. } in hooks {
            let failing = FailedHook { hook: hook_name(side), context };
            let failure = PluginFailure::Reported(obstacle.clone());
            on_error(worker, plugin_id, failure, ChainPosition::above(place), failing)?;
        }
        return Ok(Passage::Done(body));
    }
    if !body.is_end_stream() {
        return BodyPassage::new(side, hooks.into_iter().rev().collect(), body).begin(worker, context);
    }
    if let Some(response) = &mut context.response {
        transformed_content::response(&mut response.headers);
    }
    Ok(Passage::Done(body))
}
