//! The content of messages on its way through the plugins of a chain that transform bodies.

use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use smallvec::SmallVec;

use crate::body::BodyError;
use crate::body::early_content::{ReadEarly, read_while};
use crate::context::body_mode::{BodyMode, OverLimit};
use crate::context::edit_check::MessageSide;
use crate::context::{CacheOutcome, ExchangeContext};
use crate::error::{Error, FailureKind};
use crate::exchange::body_passage::{BodyPassage, DueHook, PassageHooks};
use crate::exchange::callouts::CalloutOrigin;
use crate::exchange::chain::{self, ChainFailure, ChainPosition, FailedHook, on_error};
use crate::exchange::decoded_body::DecodedBody;
use crate::exchange::filtered_body::{FilteredBody, UploadContent};
use crate::exchange::gathered_body::{GatheredBody, GatheredContent, WholeContent, gather};
use crate::exchange::record::content_error;
use crate::exchange::response_body::ResponseBody;
use crate::exchange::waiting_bodies::WaitingBodies;
use crate::generation::Route;
use crate::generation::ids::{PluginId, UpstreamId};
use crate::generation::worker_state::WorkerState;
use crate::net::deadline::Clock;
use crate::plugin::body_filter::{BodyFilter, BodyStart, WaitingBody};
use crate::plugin::body_permit::{BodyPermit, BodyResource};
use crate::plugin::breaker::HookKind;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::instance::{BodyVerdict, Instance, WholeBody};
use crate::plugin::outgoing_http::CalloutSender;
use crate::plugin::settings::OnError;
use crate::protocol::coded_content::{self, Coded};
use crate::protocol::content_decoder::{ContentDecoder, DecodingBounds};
use crate::protocol::transformed_content::{self, CodedContent, Obstacle};

/// Returns the body hooks of some plugins that are due for a message: by the decision of the plugin's head hook, or else as
/// the plugin declared. What the plugin doesn't take passes it.
fn due(
    worker: &WorkerState,
    route: &Route,
    plugins: Range<usize>,
    side: MessageSide,
    context: &ExchangeContext,
) -> SmallVec<[DueHook; 4]> {
    let hook = |(place, plugin_id): (usize, &PluginId)| {
        let inputs = worker.generation.bindings[*plugin_id].body(side)?;
        let mode = context.bodies.of(side, place).unwrap_or(inputs.mode);
        let gathered = match mode {
            BodyMode::Skipped => return None,
            BodyMode::Buffered(max, _) if inputs.ability.gathers => Some(max),
            BodyMode::Buffered(..) | BodyMode::Streamed => None,
        };
        let passes = match (side, &context.response) {
            (MessageSide::Request, _) => transformed_content::request_passes(&context.request.headers, inputs.rules),
            (MessageSide::Response, Some(response)) => transformed_content::response_passes(response, inputs.rules),
            (MessageSide::Response, None) => false,
        };
        let (plugin_id, rules) = (*plugin_id, inputs.rules);
        (!passes).then_some(DueHook { place, plugin_id, mode, gathered, rules, codings: None })
    };
    plugins.clone().zip(&route.chain[plugins]).filter_map(hook).collect()
}

/// Whether one of these plugins has taken the ranges from the request, because it may want the whole body of the response.
fn plugins_take_ranges(worker: &WorkerState, plugins: &[PluginId]) -> bool {
    let takes = |plugin_id: &PluginId| {
        let inputs = worker.generation.bindings[*plugin_id].response_body.as_ref();
        inputs.is_some_and(|inputs| !inputs.rules.skips_parts)
    };
    plugins.iter().any(takes)
}

/// Returns the coding of the content that the head describes.
fn coded(side: MessageSide, context: &ExchangeContext) -> Coded {
    match (side, &context.response) {
        (MessageSide::Request, _) => coded_content::coded(&context.request.headers),
        (MessageSide::Response, Some(response)) => coded_content::coded(&response.headers),
        (MessageSide::Response, None) => Coded::Uncoded,
    }
}

/// Returns the hooks that can take the content which the head describes, if need be decoded. The others have failed, and the
/// `on-error` of each lets the content pass.
fn able(
    worker: &WorkerState,
    hooks: SmallVec<[DueHook; 4]>,
    side: MessageSide,
    context: &ExchangeContext,
) -> Result<SmallVec<[DueHook; 4]>, ChainFailure> {
    let mut able = SmallVec::new();
    let mut coded = coded(side, context);
    for mut hook in hooks {
        let DueHook { place, plugin_id, rules, .. } = hook;
        let obstacle = match (side, &context.response) {
            (MessageSide::Request, _) => transformed_content::request_obstacle(&context.request.headers, rules, &coded),
            (MessageSide::Response, Some(response)) => transformed_content::response_obstacle(response, rules, &coded),
            (MessageSide::Response, None) => None,
        };
        let Some(Obstacle { cause, status }) = obstacle else {
            if let (CodedContent::Decode, Coded::Known(codings)) = (rules.coded, &coded) {
                // Once for all plugins behind this one.
                hook.codings = Some(*codings);
                coded = Coded::Uncoded;
            }
            able.push(hook);
            continue;
        };
        let failing = FailedHook { hook: hook.name(side), context };
        let failure = PluginFailure::Unfit(cause);
        on_error(worker, plugin_id, failure, ChainPosition::above(place), failing).map_err(|failed| {
            match worker.generation.bindings[plugin_id].on_error {
                // It is the client that can do otherwise.
                OnError::Fail => ChainFailure { status, ..failed },
                OnError::Skip | OnError::Respond(_) => failed,
            }
        })?;
    }
    Ok(able)
}

/// Content that can pass plugins, and is content again behind them.
pub trait PassingContent: Body<Data = Bytes, Error = BodyError> + ReadEarly + Unpin + Sized {
    /// Returns the content behind the plugins that transform it.
    fn filtered(passage: FilteredBody<Self>) -> Self;

    /// Returns the content once it is decoded.
    fn decoded(body: DecodedBody<Self>) -> Self;

    /// Returns the content behind a plugin that takes it whole.
    fn gathered(body: GatheredBody<Self>) -> Self;

    /// Returns the error of the exchange for an error of the content.
    fn failure(&self, error: BodyError) -> Error;
}

impl PassingContent for UploadContent {
    fn filtered(passage: FilteredBody<Self>) -> Self {
        UploadContent::Filtered(Box::new(passage))
    }

    fn decoded(body: DecodedBody<Self>) -> Self {
        UploadContent::Decoded(Box::new(body))
    }

    fn gathered(body: GatheredBody<Self>) -> Self {
        UploadContent::Gathered(Box::new(body))
    }

    fn failure(&self, error: BodyError) -> Error {
        UploadContent::failure(self, error)
    }
}

impl PassingContent for ResponseBody {
    fn filtered(passage: FilteredBody<Self>) -> Self {
        ResponseBody::Filtered(Box::new(passage))
    }

    fn decoded(body: DecodedBody<Self>) -> Self {
        ResponseBody::Decoded(Box::new(body))
    }

    fn gathered(body: GatheredBody<Self>) -> Self {
        ResponseBody::Gathered(Box::new(body))
    }

    fn failure(&self, error: BodyError) -> Error {
        let status = failed_status(self);
        match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => Error { status, ..content_error(&error) },
        }
    }
}

/// Returns the status that a plugin which has failed wants the client to get; `None` if it names none.
fn failed_status(body: &ResponseBody) -> Option<StatusCode> {
    match body {
        ResponseBody::Filtered(passage) => passage.status().or_else(|| failed_status(passage.source())),
        ResponseBody::Decoded(body) => body.status().or_else(|| failed_status(body.source())),
        _ => None,
    }
}

/// Content with all its body hooks begun, or on its way to that.
pub enum Passage<B> {
    /// All body hooks have begun.
    Done(B),
    /// A body hook has to be waited for, or takes the content whole.
    Waits(Box<BodyPassage<B>>),
}

/// The end of a passage that was waited for.
pub enum PassageEnd<B> {
    /// The content goes its way.
    Content(B),
    /// A plugin has responded.
    Respond {
        response: Response<Vec<u8>>,
        /// The position above the plugin.
        above: ChainPosition,
    },
}

/// The decision of a plugin that has received a whole body.
enum Decision {
    Keep,
    Replace(Bytes),
    Respond(Response<Vec<u8>>),
}

/// The worker of body hooks, some of which may wait.
struct WaitingCalls<'a> {
    worker: &'a Rc<WorkerState>,
    clock: &'a Rc<Clock>,
}

impl<'a> WaitingCalls<'a> {
    /// Returns the origin of the requests that a plugin makes for an exchange.
    fn origin(&self, plugin_id: PluginId, context: &ExchangeContext) -> CalloutOrigin<'a> {
        let WaitingCalls { worker, clock } = *self;
        let (cause, client) = (worker.callout_cause(plugin_id, context), context.holder());
        CalloutOrigin { worker, plugin_id, cause, client, clock: clock.clone() }
    }
}

impl<B: PassingContent> BodyPassage<B> {
    fn new(side: MessageSide, due: SmallVec<[DueHook; 4]>, content: B) -> Self {
        BodyPassage { hooks: PassageHooks { side, due, next: 0, stages: Vec::new(), begun: Vec::new() }, content }
    }

    /// Begins the hooks, if none of them has to be waited for.
    fn begin(mut self, worker: &WorkerState, context: &mut ExchangeContext) -> Result<Passage<B>, ChainFailure> {
        self.content = self.hooks.advance(worker, self.content, context, None)?;
        if self.hooks.next().is_some() {
            return Ok(Passage::Waits(Box::new(self)));
        }
        Ok(Passage::Done(self.hooks.close(self.content, context, None)))
    }

    /// Begins the hooks in turn, and waits where that is needed. A plugin that takes a request whole may choose another
    /// upstream.
    pub async fn run(
        self,
        worker: &Rc<WorkerState>,
        context: &mut Box<ExchangeContext>,
        upstream: &mut Option<UpstreamId>,
        clock: &Rc<Clock>,
    ) -> Result<PassageEnd<B>, ChainFailure> {
        let BodyPassage { mut hooks, mut content } = self;
        let calls = WaitingCalls { worker, clock };
        loop {
            content = hooks.advance(worker, content, context, Some(&calls))?;
            let Some(hook) = hooks.next() else {
                return Ok(PassageEnd::Content(hooks.close(content, context, Some(&calls))));
            };
            let configured = &worker.generation.bindings[hook.plugin_id];
            let permit = BodyPermit::wait(&configured.supply, hook.resource(configured.waits()), context.holder());
            let permit = read_while(permit, |cx| content.read_early(cx)).await;
            let Some(max) = hook.gathered else {
                match configured.waits() {
                    true => {
                        let beginning = hooks.begin_waiting(&calls, hook, permit, context);
                        read_while(beginning, |cx| content.read_early(cx)).await?;
                    }
                    false => {
                        read_while(worker.guards[hook.plugin_id].turn(context.holder()), |cx| content.read_early(cx))
                            .await;
                        hooks.begin_hook(worker, hook, permit, context)?;
                    }
                }
                continue;
            };
            hooks.next += 1;
            let permit = match permit {
                Ok(permit) => permit,
                Err(failure) => {
                    hooks.fail(worker, hook, failure, context)?;
                    continue;
                }
            };
            content = hooks.close(content, context, Some(&calls));
            let failed =
                |error, content: &B| ChainFailure::new(content.failure(error), ChainPosition::above(hook.place));
            let gathered = gather(&mut content, max).await.map_err(|error| failed(error, &content))?;
            if !gathered.is_whole {
                hooks.check_length(worker, hook, gathered.content.len() as u64)?;
                content = B::gathered(GatheredBody::begun(gathered.content, content, permit));
                continue;
            }
            let GatheredContent { content: received, trailers, .. } = gathered;
            let (sent, trailers) = match hooks.decide(&calls, hook, &received, context, upstream).await? {
                Decision::Keep => (received, trailers),
                Decision::Replace(content) => (content, trailers.map(transformed_content::trailers)),
                Decision::Respond(response) => {
                    return Ok(PassageEnd::Respond { response, above: ChainPosition::above(hook.place) });
                }
            };
            content = B::gathered(WholeContent { content: sent, trailers, permit }.into());
        }
    }
}

impl DueHook {
    /// The resource that a body in the plugin holds. The instances of a plugin that may wait are counted as those of its
    /// other calls.
    fn resource(&self, waits: bool) -> BodyResource {
        if self.gathered.is_some() || waits { BodyResource::Memory } else { BodyResource::Instance }
    }

    /// Returns the name of the hook for the log.
    fn name(&self, side: MessageSide) -> &'static str {
        match (side, self.gathered) {
            (MessageSide::Request, None) => "request-body",
            (MessageSide::Response, None) => "response-body",
            (MessageSide::Request, Some(_)) => "buffered-request-body",
            (MessageSide::Response, Some(_)) => "buffered-response-body",
        }
    }
}

impl PassageHooks {
    /// Returns the next hook that is to begin.
    fn next(&self) -> Option<DueHook> {
        self.due.get(self.next).copied()
    }

    /// Begins the hooks up to the first one that has to be waited for. Returns the content, which is plain where hooks want
    /// that. `calls` is `None` if no hook that may wait has begun.
    fn advance<B: PassingContent>(
        &mut self,
        worker: &WorkerState,
        mut content: B,
        context: &mut ExchangeContext,
        calls: Option<&WaitingCalls<'_>>,
    ) -> Result<B, ChainFailure> {
        while let Some(hook) = self.next() {
            content = self.decode(worker, hook, content, context, calls);
            if let Some(length) = content.size_hint().exact().filter(|_| self.stages.is_empty())
                && let BodyMode::Buffered(max, _) = hook.mode
                && length > max
            {
                self.check_length(worker, hook, length)?;
                self.next += 1;
                continue;
            }
            let configured = &worker.generation.bindings[hook.plugin_id];
            if hook.gathered.is_some()
                || configured.waits()
                || worker.guards[hook.plugin_id].waits_for_turn(context.holder())
            {
                return Ok(content);
            }
            match BodyPermit::take(&configured.supply, hook.resource(false), context.holder()) {
                Err(PluginFailure::Bodies(_)) => return Ok(content),
                permit => self.begin_hook(worker, hook, permit, context)?,
            }
        }
        Ok(content)
    }

    /// Returns the content decoded for a hook and for those behind it, within the lowest bounds of their plugins; or as it is,
    /// if the hook takes it so.
    fn decode<B: PassingContent>(
        &mut self,
        worker: &WorkerState,
        hook: DueHook,
        content: B,
        context: &mut ExchangeContext,
        calls: Option<&WaitingCalls<'_>>,
    ) -> B {
        let Some(codings) = hook.codings else { return content };
        if let Some(due) = self.due.get_mut(self.next) {
            due.codings = None;
        }
        let content = self.close(content, context, calls);
        self.forget_content(context);
        let fields = match (self.side, &mut context.response) {
            (MessageSide::Response, Some(response)) => &mut response.headers,
            _ => &mut context.request.headers,
        };
        transformed_content::decoded(fields);
        let bindings = &worker.generation.bindings;
        let bounds_of = |due: &DueHook| bindings[due.plugin_id].decoding_bounds();
        let behind = self.due.iter().skip(self.next).filter(|due| due.rules.coded == CodedContent::Decode);
        let bounds = behind.map(bounds_of).fold(bounds_of(&hook), DecodingBounds::lowest);
        let (guard, client) = (worker.guards[hook.plugin_id].clone(), context.holder());
        B::decoded(DecodedBody::new(content, ContentDecoder::new(codings, bounds), guard, client))
    }

    /// Rejects content that is longer than the plugin takes, if the plugin wants that.
    fn check_length(&self, worker: &WorkerState, hook: DueHook, length: u64) -> Result<(), ChainFailure> {
        let BodyMode::Buffered(max, OverLimit::Reject) = hook.mode else { return Ok(()) };
        if length <= max {
            return Ok(());
        }
        let kind = match self.side {
            MessageSide::Request => FailureKind::RequestBodySize,
            MessageSide::Response => FailureKind::ResponseBodySize,
        };
        let name = &worker.generation.bindings[hook.plugin_id].name;
        let error = Error::new(kind, format!("{length} bytes or more, and `{name}` takes {max}"));
        Err(ChainFailure::new(error, ChainPosition::above(hook.place)))
    }

    /// Begins a hook that transforms the content and has got a permit.
    fn begin_hook(
        &mut self,
        worker: &WorkerState,
        hook: DueHook,
        permit: Result<BodyPermit, PluginFailure>,
        context: &ExchangeContext,
    ) -> Result<(), ChainFailure> {
        let DueHook { plugin_id, mode, .. } = hook;
        let side = self.side;
        self.next += 1;
        let needs = worker.generation.bindings[plugin_id].body(side).map_or(&[][..], |inputs| &inputs.values);
        let begun = permit.and_then(|permit| {
            let start = BodyStart { side, mode, needs, context };
            BodyFilter::begin(&worker.guards[plugin_id], &worker.bodies[plugin_id], permit, start)
        });
        self.take_begun(worker, hook, begun, context)
    }

    /// Begins a hook that transforms the content and may wait, and waits for its first call.
    async fn begin_waiting(
        &mut self,
        calls: &WaitingCalls<'_>,
        hook: DueHook,
        permit: Result<BodyPermit, PluginFailure>,
        context: &ExchangeContext,
    ) -> Result<(), ChainFailure> {
        let DueHook { plugin_id, mode, .. } = hook;
        let (side, worker) = (self.side, calls.worker);
        self.next += 1;
        let needs = worker.generation.bindings[plugin_id].body(side).map_or(&[][..], |inputs| &inputs.values);
        let begun = match permit {
            Ok(permit) => {
                let start = BodyStart { side, mode, needs, context };
                let ((sender, callouts), [step]) = (CalloutSender::channel(), calls.clock.deadlines());
                let (guard, bodies) = (&worker.guards[plugin_id], &worker.bodies[plugin_id]);
                let begin = BodyFilter::begin_waiting(guard, bodies, permit, start, WaitingBody { sender, step });
                calls.origin(plugin_id, context).drive(begin, callouts).await
            }
            Err(failure) => Err(failure),
        };
        self.take_begun(worker, hook, begun, context)
    }

    /// Takes a hook that has begun, or applies the `on-error` of its plugin.
    fn take_begun(
        &mut self,
        worker: &WorkerState,
        hook: DueHook,
        begun: Result<BodyFilter, PluginFailure>,
        context: &ExchangeContext,
    ) -> Result<(), ChainFailure> {
        match begun {
            Ok(stage) => {
                self.stages.push(stage);
                self.begun.push(hook.plugin_id);
                Ok(())
            }
            Err(failure) => self.fail(worker, hook, failure, context),
        }
    }

    /// Applies the `on-error` of a plugin whose hook has failed.
    fn fail(
        &self,
        worker: &WorkerState,
        hook: DueHook,
        failure: PluginFailure,
        context: &ExchangeContext,
    ) -> Result<(), ChainFailure> {
        let failing = FailedHook { hook: hook.name(self.side), context };
        on_error(worker, hook.plugin_id, failure, ChainPosition::above(hook.place), failing)
    }

    /// Has a plugin decide about content that it has received whole, and makes the edits that it wants.
    async fn decide(
        &self,
        calls: &WaitingCalls<'_>,
        hook: DueHook,
        content: &[u8],
        context: &mut Box<ExchangeContext>,
        upstream: &mut Option<UpstreamId>,
    ) -> Result<Decision, ChainFailure> {
        let (side, worker) = (self.side, calls.worker);
        let configured = &worker.generation.bindings[hook.plugin_id];
        let needs = configured.body(side).map_or(&[][..], |inputs| &inputs.values);
        let body = WholeBody { side, content, memory: configured.memory() };
        let called = match configured.waits() {
            true => {
                let (origin, [step]) = (calls.origin(hook.plugin_id, context), calls.clock.deadlines());
                let call = async |instance: &mut Instance| instance.take_body_waiting(body, needs, context).await;
                origin.call(&step, HookKind::Body, call).await
            }
            false => {
                let client = context.holder();
                worker.guards[hook.plugin_id].turn(client).await;
                worker.call(hook.plugin_id, HookKind::Body, client, |instance| instance.take_body(body, needs, context))
            }
        };
        let decided = called.and_then(|verdict| {
            let (decision, edits) = match verdict {
                BodyVerdict::Proceed(edits) => (Decision::Keep, edits),
                BodyVerdict::Replace(content, edits) => (Decision::Replace(content), edits),
                BodyVerdict::Respond(response) => return Ok(Decision::Respond(response)),
            };
            if matches!(decision, Decision::Replace(_)) {
                // First, for the plugin may describe its own content.
                self.forget_content(context);
            }
            match side {
                MessageSide::Request => chain::apply_edits(worker, hook.plugin_id, edits, context, upstream)?,
                MessageSide::Response => chain::apply_response_edits(worker, hook.plugin_id, edits, context)?,
            }
            Ok(decision)
        });
        // A plan of the plugin may have the edit for another message.
        context.bodies.take_asked();
        decided.or_else(|failure| self.fail(worker, hook, failure, context).map(|()| Decision::Keep))
    }

    /// Makes the head say nothing that is true of the received content alone.
    fn forget_content(&self, context: &mut ExchangeContext) {
        match (self.side, &mut context.response) {
            (MessageSide::Request, _) => transformed_content::request(&mut context.request.headers),
            (MessageSide::Response, Some(response)) => transformed_content::response(&mut response.headers),
            (MessageSide::Response, None) => {}
        }
    }

    /// Returns the content behind the hooks that have begun. `calls` is `None` if none of them may wait.
    fn close<B: PassingContent>(
        &mut self,
        content: B,
        context: &mut ExchangeContext,
        calls: Option<&WaitingCalls<'_>>,
    ) -> B {
        let (stages, plugins) = (std::mem::take(&mut self.stages), std::mem::take(&mut self.begun));
        if stages.is_empty() {
            return content;
        }
        self.forget_content(context);
        let calls = calls.filter(|_| stages.iter().any(BodyFilter::waits));
        let pass = calls.map(|calls| {
            let (worker, clock) = (calls.worker.clone(), calls.clock.clone());
            let cause = plugins.iter().find_map(|plugin_id| worker.callout_cause(*plugin_id, context));
            WaitingBodies { worker, plugins, cause, clock }.pass()
        });
        B::filtered(FilteredBody::new(content, stages, pass))
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
    let hooks = able(worker, hooks, side, context)?;
    BodyPassage::new(side, hooks, content).begin(worker, context)
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
            | ResponseBody::Decoded(_)
            | ResponseBody::Gathered(_)
    );
    // A cache below has answered HEAD, or that its content is what the client has.
    let is_of_cache = || context.cache.is_some_and(|outcome| outcome != CacheOutcome::Bypass) && body.is_end_stream();
    if !comes_from_target && !is_of_cache() {
        return Ok(Passage::Done(body));
    }
    if let Some(response) = &mut context.response
        && plugins_take_ranges(worker, &route.chain[plugins.clone()])
    {
        // The range was removed from the request even if the body hook is not due for this response.
        transformed_content::withdraw_ranges(&mut response.headers);
    }
    let side = MessageSide::Response;
    let hooks = due(worker, route, plugins, side, context);
    if hooks.is_empty() {
        return Ok(Passage::Done(body));
    }
    if !body.is_end_stream() {
        // The lowest plugin is the first on the way.
        let hooks = able(worker, hooks.into_iter().rev().collect(), side, context)?;
        return BodyPassage::new(side, hooks, body).begin(worker, context);
    }
    let is_decoded = hooks.iter().any(|hook| hook.rules.coded == CodedContent::Decode)
        && matches!(coded(side, context), Coded::Known(_));
    let is_transformed = is_decoded || hooks.iter().any(|hook| hook.gathered.is_none());
    if let Some(response) = &mut context.response {
        // As the response to GET would. A plugin that decides about whole bodies may keep this one.
        match is_transformed {
            true => transformed_content::response(&mut response.headers),
            false => transformed_content::undecided_response(&mut response.headers),
        }
        if is_decoded {
            transformed_content::decoded(&mut response.headers);
        }
    }
    Ok(Passage::Done(body))
}
