//! The filter of one body in a plugin, on an instance of its own. The state of the body dies with the instance if a
//! call fails. An instance serves the next body if the last one has passed without failure.
//!
//! The calls of a plugin that may wait are futures: [`BodyFilter::waits`] says which kind of method to call.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use smallvec::SmallVec;
use wasmtime::component::ResourceAny;

use super::body_permit::BodyPermit;
use super::breaker::HookKind;
use super::call_error::{PluginFailure, reported_failure, trapped};
use super::caller::PluginCaller;
use super::caller::waiting_calls::WaitingInstance;
use super::client_breakers::CallPermit;
use super::failure::ExchangeName;
use super::instance::Instance;
use super::instance::waiting_hooks::declared;
use super::outgoing_http::CalloutSender;
use super::settings::{Isolation, OnError};
use super::version::InstanceNeed;
use crate::context::body_mode::{BodyMode, OverLimit};
use crate::context::bounds;
use crate::context::edit_check::{self, MessageSide};
use crate::context::{ExchangeContext, Value, ValueName};
use crate::net::deadline::Deadline;
use crate::net::turn::TurnClaim;
use crate::protocol::transformed_content;
use crate::system::holder_counts::Holder;

/// The instances of a worker that wait for the next body in a plugin.
#[allow(clippy::vec_box, reason = "instances move between bodies without being copied")]
#[derive(Default)]
pub struct IdleBodyInstances(RefCell<Vec<Box<Instance>>>);

/// Instances that are kept for later bodies: as many as most routes have at a time.
pub const MAX_IDLE_INSTANCES: usize = 4;

impl IdleBodyInstances {
    /// Drops the instances that wait.
    pub fn clear(&self) {
        self.0.take();
    }

    fn keep(&self, instance: Box<Instance>) {
        let mut idle = self.0.borrow_mut();
        if idle.len() < MAX_IDLE_INSTANCES {
            idle.push(instance);
        }
    }
}

/// The filter of one body in one plugin.
pub struct BodyFilter {
    /// The permit of the body; `None` once its output holds it.
    permit: Option<BodyPermit>,
    guard: Rc<PluginCaller>,
    bodies: Rc<IdleBodyInstances>,
    /// The instance; `None` after a failed call.
    instance: Option<BodyInstance>,
    /// The permission with which the body began, until it has ended.
    admitted: CallPermit,
    side: MessageSide,
    body: ResourceAny,
    state: BodyState,
    /// Whether the plugin has received a part of the body, so that the body can't pass without it.
    has_taken: bool,
    /// Whether the body has ended.
    is_over: bool,
    /// The exchange of the body, for the log.
    exchange: ExchangeName,
}

/// A body whose first call has returned.
struct BegunBody {
    instance: BodyInstance,
    admitted: CallPermit,
    body: ResourceAny,
}

/// The place of a call in the calls of a body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyCall {
    /// The body has not ended, or had ended before.
    Part,
    /// The call ends the body.
    End,
}

/// The instance of a body.
enum BodyInstance {
    /// The instance of a plugin whose calls run to their end on the worker.
    AtOnce(Box<Instance>),
    /// The instance of a plugin whose calls may wait, with the limit of each thing that is waited for.
    Waiting(WaitingInstance, Deadline),
}

enum BodyState {
    Streaming,
    /// The bytes so far of a body that the plugin gets as a whole.
    Buffering(BytesMut, u64, OverLimit),
    /// The body was longer than the plugin's limit for whole bodies, and passes unchanged.
    Passing,
}

/// A chunk on its way to the plugin.
enum Received {
    /// The plugin is not called, and these bytes pass on.
    Past(Bytes),
    /// The plugin gets these bytes.
    Due(Bytes),
}

/// The error that ends a body in a plugin.
#[derive(Debug, thiserror::Error)]
pub enum BodyFilterError {
    #[error("the plugin failed: {0}")]
    Trap(#[from] PluginFailure),
    #[error("the body is longer than the {limit} bytes that the plugin `{plugin}` takes")]
    TooLarge { plugin: Arc<str>, limit: u64 },
}

/// Calls a method of the body on either side's interface.
macro_rules! call {
    ($transform:expr, $part:expr, $method:ident $(, $argument:expr)*) => {{
        let (side, body) = ($transform.side, $transform.body);
        $transform.call($part, |instance| {
            let Instance { store, request_body, response_body, .. } = instance;
            let result = match side {
                MessageSide::Request => {
                    let hook = request_body.as_ref().ok_or(PluginFailure::NoHook)?;
                    hook.plugway_plugin_request_body().transform().$method(store, body $(, $argument)*)
                }
                MessageSide::Response => {
                    let hook = response_body.as_ref().ok_or(PluginFailure::NoHook)?;
                    hook.plugway_plugin_response_body().transform().$method(store, body $(, $argument)*)
                }
            };
            result.map_err(trapped)?.map_err(reported_failure)
        })?
    }};
}

/// The message whose body begins.
#[derive(Clone, Copy)]
pub struct BodyStart<'a> {
    pub side: MessageSide,
    pub mode: BodyMode,
    /// The values that the plugin declared.
    pub needs: &'a [ValueName],
    pub context: &'a ExchangeContext,
}

/// The means of a body in a plugin that may wait.
pub struct WaitingBody {
    /// The way for the requests that the first call makes.
    pub sender: CalloutSender,
    /// The limit of each thing that the body's calls wait for.
    pub step: Deadline,
}

impl BodyFilter {
    /// Removes the permit of a body that has ended, for the time that its output waits.
    pub fn take_permit(&mut self) -> Option<BodyPermit> {
        self.permit.take()
    }

    /// Begins a body.
    pub fn begin(
        guard: &Rc<PluginCaller>,
        bodies: &Rc<IdleBodyInstances>,
        permit: BodyPermit,
        start: BodyStart<'_>,
    ) -> Result<Self, PluginFailure> {
        let BodyStart { side, needs, context, .. } = start;
        let client = context.holder();
        let admitted = guard.admit(HookKind::Body, client)?;
        let idle = bodies.0.borrow_mut().pop();
        let fresh = || {
            guard
                .fresh(InstanceNeed::Body, client)
                .inspect_err(|failure| guard.settle_without_call(admitted, HookKind::Body, failure))
        };
        let mut instance = idle.map_or_else(fresh, Ok)?;
        // A body that a plugin wants whole, or has gathered by itself, is handed over whole.
        instance.store.set_hostcall_fuel(guard.configured.limits.memory);
        let owned_values: SmallVec<[Option<Value<'_>>; 8]> = needs.iter().map(|name| context.value(name)).collect();
        let values: SmallVec<[Option<&[u8]>; 8]> =
            owned_values.iter().map(|value| value.as_ref().map(Value::bytes)).collect();
        instance.set_in_body(true);
        let body = guard.run(&mut instance, admitted, |instance| construct(instance, side, &values))?;
        let begun = BegunBody { instance: BodyInstance::AtOnce(instance), admitted, body };
        Ok(BodyFilter::begun(guard, bodies, permit, start, begun))
    }

    /// Begins a body in a plugin that may wait, as soon as the limits of such calls allow.
    pub async fn begin_waiting(
        guard: &Rc<PluginCaller>,
        bodies: &Rc<IdleBodyInstances>,
        permit: BodyPermit,
        start: BodyStart<'_>,
        waiting: WaitingBody,
    ) -> Result<Self, PluginFailure> {
        let BodyStart { side, needs, context, .. } = start;
        let WaitingBody { sender, step } = waiting;
        let memory = guard.configured.limits.memory;
        let begin = async |instance: &mut Instance| {
            instance.store.set_hostcall_fuel(memory);
            instance.set_in_body(true);
            instance.allow_callouts(sender);
            // Copied here: bodies that wait for a call hold no values.
            let values = declared(needs, context)?;
            guard.charge_work(context);
            instance.begin_body_waiting(side, values).await
        };
        let (taken, body) = guard.begin_waiting(&step, HookKind::Body, context.holder(), begin).await?;
        let body = match body {
            Ok(body) => body,
            Err(failure) => {
                guard.lose(taken.instance, context.holder());
                return Err(failure);
            }
        };
        let begun = BegunBody { admitted: taken.permit, instance: BodyInstance::Waiting(taken, step), body };
        Ok(BodyFilter::begun(guard, bodies, permit, start, begun))
    }

    fn begun(
        guard: &Rc<PluginCaller>,
        bodies: &Rc<IdleBodyInstances>,
        permit: BodyPermit,
        start: BodyStart<'_>,
        begun: BegunBody,
    ) -> Self {
        let BegunBody { instance, admitted, body } = begun;
        BodyFilter {
            permit: Some(permit),
            guard: guard.clone(),
            bodies: bodies.clone(),
            instance: Some(instance),
            admitted,
            side: start.side,
            body,
            state: BodyState::of(start.mode),
            has_taken: false,
            is_over: false,
            exchange: ExchangeName::of(start.context),
        }
    }

    /// Whether the calls of the plugin may wait, so that only the methods that are futures call it.
    pub fn waits(&self) -> bool {
        self.guard.configured.waits()
    }

    /// Logs and counts a failure of this plugin. A body that is too long is none.
    pub fn record_failure(&self, error: &BodyFilterError) {
        let hook = if self.side == MessageSide::Request { "request-body" } else { "response-body" };
        match error {
            BodyFilterError::Trap(failure) => self.guard.record_failure(hook, failure, Some(&self.exchange)),
            BodyFilterError::TooLarge { .. } => {
                tracing::debug!(plugin = &*self.guard.configured.name, hook, %error, "body refused");
            }
        }
    }

    /// The status that `on-error` names for a message that has not begun; `None` if it names none.
    pub fn status(&self) -> Option<StatusCode> {
        match self.guard.configured.on_error {
            OnError::Respond(status) => Some(status),
            OnError::Fail | OnError::Skip => None,
        }
    }

    /// Passes the rest of the body through unchanged after a failed call, if `on-error` is `skip` and the plugin holds
    /// no part of the body. Returns the error otherwise.
    pub fn skip(&mut self, error: BodyFilterError) -> Result<(), BodyFilterError> {
        let is_trap = matches!(error, BodyFilterError::Trap(_));
        if !is_trap || self.has_taken || self.guard.configured.on_error != OnError::Skip {
            return Err(error);
        }
        self.record_failure(&error);
        self.state = BodyState::Passing;
        Ok(())
    }

    /// Returns the time until the plugin's share admits the next call; `None` if it does now.
    pub fn wait(&self) -> Option<Duration> {
        if matches!(self.state, BodyState::Passing) { None } else { self.guard.wait(self.admitted.client) }
    }

    /// Returns the client of the exchange.
    pub fn client(&self) -> Holder {
        self.admitted.client
    }

    /// Returns the claim of the body to the worker's time.
    pub fn claim(&self) -> TurnClaim {
        self.guard.claim(self.admitted.client)
    }

    /// Whether the body waits for its turn from the beginning, because calls of the plugin are measured.
    pub fn takes_turns(&self) -> bool {
        self.guard.takes_turns()
    }

    /// Returns the error of a body that has waited for too long.
    pub fn share_error(&self) -> BodyFilterError {
        BodyFilterError::Trap(self.guard.share_error())
    }

    /// Calls the body's instance, which is dropped if the call fails.
    fn call<R>(
        &mut self,
        part: BodyCall,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        let mut instance = match self.take_instance()? {
            BodyInstance::AtOnce(instance) => instance,
            BodyInstance::Waiting(..) => return Err(PluginFailure::MayNotWait),
        };
        instance.set_in_body(part == BodyCall::Part);
        let result = self.guard.run(&mut instance, self.guard.admit_further(self.admitted), |instance| {
            instance.begin_call(HookKind::Body);
            call(instance)
        });
        if result.is_ok() {
            self.instance = Some(BodyInstance::AtOnce(instance));
        } else {
            self.guard.lose(instance, self.admitted.client);
        }
        result
    }

    /// Calls the body's instance, and waits for what the plugin waits for. The instance is dropped if the call fails or the
    /// future is dropped.
    async fn call_waiting<R>(
        &mut self,
        sender: &CalloutSender,
        part: BodyCall,
        call: impl AsyncFnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        let (mut taken, step) = match self.take_instance()? {
            BodyInstance::Waiting(taken, step) => (taken, step),
            BodyInstance::AtOnce(_) => return Err(PluginFailure::NoHook),
        };
        taken.instance.allow_callouts(sender.clone());
        // Not queued: a body that has begun holds an instance, and `limits.bodies` bounds those.
        taken.instance.set_in_body(part == BodyCall::Part);
        let admitted = self.guard.admit_further(self.admitted);
        let result = self.guard.run_waiting(&step, admitted, &mut taken.instance, call).await;
        if result.is_ok() {
            self.instance = Some(BodyInstance::Waiting(taken, step));
        } else {
            self.guard.lose(taken.instance, self.admitted.client);
        }
        result
    }

    fn take_instance(&mut self) -> Result<BodyInstance, PluginFailure> {
        self.instance.take().ok_or(PluginFailure::NoInstance("an earlier call for the body failed"))
    }

    /// Passes a chunk to the plugin, and returns the output so far, which may be empty.
    pub fn push(&mut self, chunk: Bytes) -> Result<Bytes, BodyFilterError> {
        match self.receive(chunk)? {
            Received::Past(bytes) => Ok(bytes),
            Received::Due(chunk) => {
                let out = self.transformed(&chunk);
                self.pushed(chunk, out)
            }
        }
    }

    /// Passes a chunk to a plugin that may wait, and returns the output so far, which may be empty.
    pub async fn push_waiting(&mut self, sender: &CalloutSender, chunk: Bytes) -> Result<Bytes, BodyFilterError> {
        match self.receive(chunk)? {
            Received::Past(bytes) => Ok(bytes),
            Received::Due(chunk) => {
                let out = self.transformed_waiting(sender, &chunk).await;
                self.pushed(chunk, out)
            }
        }
    }

    /// Receives a chunk, which the plugin gets unless the body passes or is gathered.
    fn receive(&mut self, chunk: Bytes) -> Result<Received, BodyFilterError> {
        match &mut self.state {
            BodyState::Passing => Ok(Received::Past(chunk)),
            BodyState::Streaming if chunk.is_empty() => Ok(Received::Past(chunk)),
            BodyState::Streaming => Ok(Received::Due(chunk)),
            BodyState::Buffering(gathered, limit, over_limit) => {
                if (gathered.len() + chunk.len()) as u64 <= *limit {
                    gathered.extend_from_slice(&chunk);
                    return Ok(Received::Past(Bytes::new()));
                }
                if *over_limit == OverLimit::Reject {
                    let plugin = self.guard.configured.name.clone();
                    return Err(BodyFilterError::TooLarge { plugin, limit: *limit });
                }
                gathered.extend_from_slice(&chunk);
                let all = gathered.split().freeze();
                self.state = BodyState::Passing;
                Ok(Received::Past(all))
            }
        }
    }

    /// Takes the output for a chunk, or lets the chunk pass if the call has failed and `on-error` allows it.
    fn pushed(&mut self, chunk: Bytes, out: Result<Bytes, BodyFilterError>) -> Result<Bytes, BodyFilterError> {
        match out {
            Ok(out) => {
                self.has_taken = true;
                Ok(out)
            }
            Err(error) => self.skip(error).map(|()| chunk),
        }
    }

    async fn transformed_waiting(&mut self, sender: &CalloutSender, chunk: &[u8]) -> Result<Bytes, BodyFilterError> {
        let (side, body) = (self.side, self.body);
        let call = async |instance: &mut Instance| instance.push_waiting(side, body, chunk).await;
        Ok(self.call_waiting(sender, BodyCall::Part, call).await?.into())
    }

    fn transformed(&mut self, chunk: &[u8]) -> Result<Bytes, BodyFilterError> {
        Ok(Bytes::from(call!(self, BodyCall::Part, call_push, chunk)))
    }

    /// Ends the body. Returns the bytes that the plugin has held back.
    pub fn finish(&mut self) -> Result<Bytes, BodyFilterError> {
        if matches!(self.state, BodyState::Passing) {
            self.is_over = true;
            return Ok(Bytes::new());
        }
        let body = self.take_gathered();
        let out = self.rest(body.as_deref());
        self.finished(body, out)
    }

    /// Ends the body in a plugin that may wait. Returns the bytes that the plugin has held back.
    pub async fn finish_waiting(&mut self, sender: &CalloutSender) -> Result<Bytes, BodyFilterError> {
        if matches!(self.state, BodyState::Passing) {
            self.is_over = true;
            return Ok(Bytes::new());
        }
        let body = self.take_gathered();
        let out = self.rest_waiting(sender, body.as_deref()).await;
        self.finished(body, out)
    }

    /// Returns the whole body if it was gathered.
    fn take_gathered(&mut self) -> Option<Bytes> {
        match &mut self.state {
            BodyState::Buffering(gathered, ..) => Some(gathered.split().freeze()),
            BodyState::Passing | BodyState::Streaming => None,
        }
    }

    /// Takes the last output, or lets a gathered body pass if the call has failed and `on-error` allows it.
    fn finished(&mut self, body: Option<Bytes>, out: Result<Bytes, BodyFilterError>) -> Result<Bytes, BodyFilterError> {
        let out = match out {
            Ok(out) => out,
            Err(error) => self.skip(error).map(|()| body.unwrap_or_default())?,
        };
        // From here on only the trailers are left.
        self.admitted = CallPermit::usual(self.admitted.client);
        self.has_taken = false;
        self.is_over = true;
        Ok(out)
    }

    async fn rest_waiting(&mut self, sender: &CalloutSender, body: Option<&[u8]>) -> Result<Bytes, BodyFilterError> {
        let out = match body {
            Some(content) => self.transformed_waiting(sender, content).await?,
            None => Bytes::new(),
        };
        let (side, body) = (self.side, self.body);
        let finish = async |instance: &mut Instance| instance.finish_waiting(side, body).await;
        Ok(joined(out, self.call_waiting(sender, BodyCall::End, finish).await?.into()))
    }

    /// Passes a whole body to the plugin, if one is given, and ends the body. Returns the plugin's output.
    fn rest(&mut self, body: Option<&[u8]>) -> Result<Bytes, BodyFilterError> {
        let out = body.map_or_else(|| Ok(Bytes::new()), |body| self.transformed(body))?;
        Ok(joined(out, Bytes::from(call!(self, BodyCall::End, call_finish))))
    }

    /// Passes trailers to the plugin, and returns those that it sends.
    pub fn trailers(&mut self, received: &HeaderMap) -> Result<HeaderMap, BodyFilterError> {
        if matches!(self.state, BodyState::Passing) {
            return Ok(received.clone());
        }
        match self.edited(received) {
            Ok(trailers) => Ok(trailers),
            Err(error) => self.skip(error).map(|()| received.clone()),
        }
    }

    /// Passes trailers to a plugin that may wait, and returns those that it sends.
    pub async fn trailers_waiting(
        &mut self,
        sender: &CalloutSender,
        received: &HeaderMap,
    ) -> Result<HeaderMap, BodyFilterError> {
        if matches!(self.state, BodyState::Passing) {
            return Ok(received.clone());
        }
        let (side, body, fields) = (self.side, self.body, true_trailers(received));
        let call = async |instance: &mut Instance| instance.trailers_waiting(side, body, fields).await;
        let sent = self.call_waiting(sender, BodyCall::Part, call).await;
        let edited = sent.and_then(|sent| Ok(edit_check::checked_trailers(&sent)?));
        match edited {
            Ok(trailers) => Ok(trailers),
            Err(failure) => self.skip(failure.into()).map(|()| received.clone()),
        }
    }

    /// Keeps the instance of a body that has ended in a plugin that may wait, once the plugin has dropped the body's state.
    pub async fn close_waiting(&mut self, sender: &CalloutSender) {
        if !self.is_over || self.instance.is_none() || self.guard.is_released() {
            return;
        }
        let body = self.body;
        let close = async |instance: &mut Instance| instance.drop_body_waiting(body).await;
        if let Err(failure) = self.call_waiting(sender, BodyCall::Part, close).await {
            self.record_failure(&BodyFilterError::Trap(failure));
        }
        if let Some(BodyInstance::Waiting(mut taken, _)) = self.instance.take() {
            taken.instance.set_in_body(false);
            taken.instance.store.set_hostcall_fuel(self.guard.configured.limits.memory.min(bounds::HANDED_OVER));
            self.guard.return_waiting(taken, self.admitted.client);
        }
    }

    fn edited(&mut self, received: &HeaderMap) -> Result<HeaderMap, BodyFilterError> {
        let fields = true_trailers(received);
        let sent = call!(self, BodyCall::Part, call_trailers, &fields);
        Ok(edit_check::checked_trailers(&sent).map_err(PluginFailure::from)?)
    }
}

impl BodyState {
    /// Returns the state of a body that begins.
    fn of(mode: BodyMode) -> Self {
        match mode {
            BodyMode::Streamed => BodyState::Streaming,
            BodyMode::Skipped => BodyState::Passing,
            BodyMode::Buffered(limit, over_limit) => BodyState::Buffering(BytesMut::new(), limit, over_limit),
        }
    }
}

/// Joins two outputs of a plugin. Copies them only if both have bytes: they may be long, and no turn is taken for a copy.
pub fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second,
        (_, true) => first,
        _ => [first, second].concat().into(),
    }
}

/// Returns the trailers that stay true of transformed content.
fn true_trailers(received: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let is_true = |(name, _): &(&http::HeaderName, &http::HeaderValue)| !transformed_content::is_untrue_trailer(name);
    let owned = |(name, value): (&http::HeaderName, &http::HeaderValue)| (name.to_string(), value.as_bytes().to_vec());
    received.iter().filter(is_true).map(owned).collect()
}

impl Drop for BodyFilter {
    /// Keeps the instance of a body that has ended, once the plugin has dropped the body's state. The instance of a plugin
    /// that may wait was kept by [`BodyFilter::close_waiting`], or is lost.
    fn drop(&mut self) {
        // What has failed before was logged, and its instance is gone.
        if !self.is_over || !matches!(self.instance, Some(BodyInstance::AtOnce(_))) || self.guard.is_released() {
            return;
        }
        let body = self.body;
        match self.call(BodyCall::Part, |instance| body.resource_drop(&mut instance.store).map_err(trapped)) {
            Ok(()) => {
                let Some(BodyInstance::AtOnce(instance)) = self.instance.take() else { return };
                match self.guard.configured.isolation {
                    Isolation::Worker if self.guard.keeps_spares() => self.bodies.keep(instance),
                    Isolation::Worker | Isolation::Request => self.guard.discard(instance, self.admitted.client),
                }
            }
            // The content has left by then, and nothing is lost but the instance.
            Err(failure) => self.record_failure(&BodyFilterError::Trap(failure)),
        }
    }
}

fn construct(
    instance: &mut Instance,
    side: MessageSide,
    values: &[Option<&[u8]>],
) -> Result<ResourceAny, PluginFailure> {
    instance.begin_call(HookKind::Body);
    let Instance { store, request_body, response_body, .. } = instance;
    let body = match side {
        MessageSide::Request => {
            let hook = request_body.as_ref().ok_or(PluginFailure::NoHook)?;
            hook.plugway_plugin_request_body().transform().call_constructor(store, values)
        }
        MessageSide::Response => {
            let hook = response_body.as_ref().ok_or(PluginFailure::NoHook)?;
            hook.plugway_plugin_response_body().transform().call_constructor(store, values)
        }
    };
    body.map_err(trapped)
}
