//! The hooks of a plugin that imports something that waits. A call of such a hook runs on a stack of its own, and leaves
//! the worker while it waits.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::{ComponentNamedList, Lift, Lower, ResourceAny, TypedFunc};

use super::super::bindings::lifecycle::exports::plugway::plugin::lifecycle::{ConfigError, Description, Settings};
use super::super::bindings::types::{self, Verdict};
use super::super::breaker::HookKind;
use super::super::call_error::{PluginFailure, reported_failure, trapped};
use super::super::cpu_time::TurnTime;
use super::super::early_answers::EarlyAnswers;
use super::super::engine::Plugin;
use super::super::host::{HostState, Lending, LentContext};
use super::super::outgoing_http::CalloutSender;
use super::{
    BodyVerdict, FilterVerdict, Instance, Summary, WholeBody, begin, checked, checked_body_verdict, config_errors,
};
use crate::context::bounds;
use crate::context::edit_check::MessageSide;
use crate::context::{ExchangeContext, ValueName};
use crate::system::holder_counts::Holder;

/// The turns that tasks of a call have to wake it, if it has all that it needs. They take some microseconds.
const IDLE_TURNS: u32 = 16;

/// The resources that an instance may have between its calls: standard streams, and some that a plugin keeps.
const KEPT_RESOURCES: usize = 16;

/// The exported functions of an instance whose calls may wait.
pub(super) struct WaitingHooks {
    describe: TypedFunc<(), (Description,)>,
    configure: TypedFunc<(String,), (Result<Settings, Vec<ConfigError>>,)>,
    on_request: Option<HeadHook>,
    on_response: Option<HeadHook>,
    on_request_body: Option<WholeBodyHook>,
    on_response_body: Option<WholeBodyHook>,
    request_transform: Option<Transform>,
    response_transform: Option<Transform>,
    on_end: Option<TypedFunc<(Vec<DeclaredValue>, Summary), ()>>,
    on_timer: Option<TypedFunc<(), ()>>,
}

/// A declared value; `None` if it is absent.
type DeclaredValue = Option<Vec<u8>>;

/// The function of a head hook, with the declared values as its only parameter.
struct HeadHook(TypedFunc<(Vec<DeclaredValue>,), (Verdict,)>);

/// The function of a hook for whole bodies, with the declared values and the content as its parameters.
struct WholeBodyHook(TypedFunc<(Vec<DeclaredValue>, Vec<u8>), (types::BodyVerdict,)>);

/// The functions of a hook that transforms bodies chunk by chunk.
#[derive(Clone, Copy)]
struct Transform {
    begin: TypedFunc<(Vec<DeclaredValue>,), (ResourceAny,)>,
    push: TypedFunc<(ResourceAny, Vec<u8>), TransformedData>,
    finish: TypedFunc<(ResourceAny,), TransformedData>,
    trailers: TypedFunc<(ResourceAny, Fields), (Transformed<Fields>,)>,
}

/// The result of a function of a transform that returns data.
type TransformedData = (Transformed<Vec<u8>>,);

/// The result of a function of a transform.
type Transformed<T> = Result<T, String>;

/// The trailers of a body.
type Fields = Vec<(String, Vec<u8>)>;

impl WaitingHooks {
    /// Looks up the functions of an instance.
    pub(super) fn load(
        plugin: &Plugin,
        store: &mut Store<HostState>,
        instance: &wasmtime::component::Instance,
    ) -> Result<Self, PluginFailure> {
        let mut exports = Exports { store, instance };
        let on_request = exports.of_hook(&plugin.request_filter, "request-filter", "on-request")?.map(HeadHook);
        let on_response = exports.of_hook(&plugin.response_filter, "response-filter", "on-response")?.map(HeadHook);
        let (whole, interface) = (&plugin.buffered_request_body, "buffered-request-body");
        let on_request_body = exports.of_hook(whole, interface, "on-body")?.map(WholeBodyHook);
        let (whole, interface) = (&plugin.buffered_response_body, "buffered-response-body");
        let on_response_body = exports.of_hook(whole, interface, "on-body")?.map(WholeBodyHook);
        let request_transform = plugin.request_body.as_ref().map(|_| exports.transform("request-body")).transpose()?;
        let response_transform =
            plugin.response_body.as_ref().map(|_| exports.transform("response-body")).transpose()?;
        Ok(WaitingHooks {
            describe: exports.function("lifecycle", "describe")?,
            configure: exports.function("lifecycle", "configure")?,
            on_request,
            on_response,
            on_request_body,
            on_response_body,
            request_transform,
            response_transform,
            on_end: exports.of_hook(&plugin.observer, "observer", "on-end")?,
            on_timer: exports.of_hook(&plugin.timer, "timer", "on-timer")?,
        })
    }

    /// Calls `describe`, which may not wait.
    pub(super) fn describe(&self, store: &mut Store<HostState>) -> Result<Description, PluginFailure> {
        at_once(self.describe.call_async(store, ())).map(|(description,)| description)
    }

    /// Calls `configure` where it may not wait.
    pub(super) fn configure(
        &self,
        store: &mut Store<HostState>,
        config: &str,
    ) -> Result<Result<Settings, Vec<ConfigError>>, PluginFailure> {
        at_once(self.configure.call_async(store, (config.into(),))).map(|(settings,)| settings)
    }
}

/// Whether a call was woken since its last turn.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The exports of an instance.
struct Exports<'a> {
    store: &'a mut Store<HostState>,
    instance: &'a wasmtime::component::Instance,
}

impl Exports<'_> {
    /// Looks up the function of a hook; returns `None` if the plugin has no such hook.
    fn of_hook<H, P, R>(
        &mut self,
        hook: &Option<H>,
        interface: &str,
        name: &str,
    ) -> Result<Option<TypedFunc<P, R>>, PluginFailure>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        hook.as_ref().map(|_| self.function(interface, name)).transpose()
    }

    fn transform(&mut self, interface: &str) -> Result<Transform, PluginFailure> {
        Ok(Transform {
            begin: self.function(interface, "[constructor]transform")?,
            push: self.function(interface, "[method]transform.push")?,
            finish: self.function(interface, "[method]transform.finish")?,
            trailers: self.function(interface, "[method]transform.trailers")?,
        })
    }

    fn function<P, R>(&mut self, interface: &str, name: &str) -> Result<TypedFunc<P, R>, PluginFailure>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let interface = format!("plugway:plugin/{interface}@0.1.0");
        let interface = self.instance.get_export_index(&mut *self.store, None, &interface);
        let function = interface.and_then(|at| self.instance.get_export_index(&mut *self.store, Some(&at), name));
        let function = function.ok_or(PluginFailure::NoHook)?;
        self.instance.get_typed_func(&mut *self.store, function).map_err(trapped)
    }
}

impl Instance {
    /// Begins the measurement of a call that may wait, for a client; the caller measures its turns.
    pub(in crate::plugin) fn begin_turns(&mut self, client: Holder) -> Arc<TurnTime> {
        self.begin_call(self.hook);
        self.store.data_mut().client = client;
        let budget = self.budget();
        self.store.data_mut().cpu.begin_turns(budget)
    }

    /// Whether the plugin has left bytes of requests or responses in the host, or more than [`KEPT_RESOURCES`] resources.
    pub fn holds_much(&mut self) -> bool {
        let state = self.store.data_mut();
        state.http.holds_bytes() || state.table.iter_mut().count() > KEPT_RESOURCES
    }

    /// Opens the way to the worker for the requests of the next call.
    pub fn allow_callouts(&mut self, sender: CalloutSender) {
        self.store.data_mut().http.open(sender);
    }

    /// Opens the way to a worker for the requests of `configure`, and keeps their answers for other instances.
    pub(in crate::plugin) fn keep_answers(&mut self, sender: CalloutSender, answers: Arc<EarlyAnswers>) {
        self.store.data_mut().http.open_and_keep(sender, answers);
    }

    /// Gives the requests of `configure` the answers that another instance has got.
    pub(in crate::plugin) fn answer_by(&mut self, answers: Arc<EarlyAnswers>) {
        self.store.data_mut().http.answer_by(answers);
    }

    /// Gives the plugin its configuration, and waits for what the plugin waits for. The call may use `time` of the CPU.
    pub(in crate::plugin) async fn configure_waiting(
        &mut self,
        config: &str,
        time: Duration,
    ) -> Result<Result<Settings, Vec<(String, String)>>, PluginFailure> {
        begin(&mut self.store, time);
        let turns = self.store.data_mut().cpu.begin_turns(time);
        self.store.data_mut().figures.is_configuring = true;
        let hooks = self.waiting.as_ref().ok_or(PluginFailure::NoHook)?;
        let answer = {
            let mut call = pin!(hooks.configure.call_async(&mut self.store, (config.into(),)));
            let turn = |cx: &mut Context<'_>| {
                turns.begin_turn();
                let polled = call.as_mut().poll(cx);
                turns.end_turn();
                polled
            };
            poll_fn(turn).await
        };
        self.store.data_mut().figures.is_configuring = false;
        self.store.data_mut().http.close();
        let (answer,) = answer.map_err(trapped).map_err(|failure| self.explained(failure))?;
        Ok(answer.map_err(config_errors))
    }

    /// Calls the filter's hook for one side with the declared values, and waits for what the hook waits for. If the future
    /// is dropped, the exchange has its context back, and the instance is spent.
    pub async fn filter_waiting(
        &mut self,
        side: MessageSide,
        needs: &[ValueName],
        context: &mut Box<ExchangeContext>,
    ) -> Result<FilterVerdict, PluginFailure> {
        let values = declared(needs, context)?;
        let _lending = self.lend(context);
        self.hook = HookKind::filter(side);
        let hooks = self.waiting.as_ref().ok_or(PluginFailure::NoHook)?;
        let hook = match side {
            MessageSide::Request => &hooks.on_request,
            MessageSide::Response => &hooks.on_response,
        };
        let hook = hook.as_ref().ok_or(PluginFailure::NoHook)?;
        let verdict = hook.0.call_async(&mut self.store, (values,)).await;
        self.store.data_mut().lent = None;
        let (verdict,) = verdict.map_err(trapped)?;
        checked(side, self.body_ability(side), verdict)
    }

    /// Calls the hook for whole bodies, and waits for what the hook waits for. If the future is dropped, the exchange has its
    /// context back, and the instance is spent.
    pub async fn take_body_waiting(
        &mut self,
        body: WholeBody<'_>,
        needs: &[ValueName],
        context: &mut Box<ExchangeContext>,
    ) -> Result<BodyVerdict, PluginFailure> {
        let values = declared(needs, context)?;
        let _lending = self.lend(context);
        self.hook = HookKind::Body;
        let hooks = self.waiting.as_ref().ok_or(PluginFailure::NoHook)?;
        let hook = match body.side {
            MessageSide::Request => &hooks.on_request_body,
            MessageSide::Response => &hooks.on_response_body,
        };
        let hook = hook.as_ref().ok_or(PluginFailure::NoHook)?;
        self.store.set_hostcall_fuel(body.memory);
        let verdict = hook.0.call_async(&mut self.store, (values, body.content.to_vec())).await;
        self.store.set_hostcall_fuel(body.memory.min(bounds::HANDED_OVER));
        self.store.data_mut().lent = None;
        let (verdict,) = verdict.map_err(trapped)?;
        checked_body_verdict(body.side, verdict)
    }

    /// Begins the transformation of a body, and waits for what the plugin waits for.
    pub(in crate::plugin) async fn begin_body_waiting(
        &mut self,
        side: MessageSide,
        values: Vec<Option<Vec<u8>>>,
    ) -> Result<ResourceAny, PluginFailure> {
        self.hook = HookKind::Body;
        let begin = self.transform(side)?.begin;
        Ok(begin.call_async(&mut self.store, (values,)).await.map_err(trapped)?.0)
    }

    /// Passes a chunk of a body to the plugin, and waits for the output.
    pub(in crate::plugin) async fn push_waiting(
        &mut self,
        side: MessageSide,
        body: ResourceAny,
        chunk: &[u8],
    ) -> Result<Vec<u8>, PluginFailure> {
        let push = self.transform(side)?.push;
        let (pushed,) = push.call_async(&mut self.store, (body, chunk.to_vec())).await.map_err(trapped)?;
        pushed.map_err(reported_failure)
    }

    /// Tells the plugin of the end of a body, and waits for the output.
    pub(in crate::plugin) async fn finish_waiting(
        &mut self,
        side: MessageSide,
        body: ResourceAny,
    ) -> Result<Vec<u8>, PluginFailure> {
        let finish = self.transform(side)?.finish;
        let (finished,) = finish.call_async(&mut self.store, (body,)).await.map_err(trapped)?;
        finished.map_err(reported_failure)
    }

    /// Passes the trailers of a body to the plugin, and waits for those that it sends.
    pub(in crate::plugin) async fn trailers_waiting(
        &mut self,
        side: MessageSide,
        body: ResourceAny,
        received: Vec<(String, Vec<u8>)>,
    ) -> Result<Vec<(String, Vec<u8>)>, PluginFailure> {
        let trailers = self.transform(side)?.trailers;
        let (sent,) = trailers.call_async(&mut self.store, (body, received)).await.map_err(trapped)?;
        sent.map_err(reported_failure)
    }

    /// Has the plugin drop the state of a body.
    pub(in crate::plugin) async fn drop_body_waiting(&mut self, body: ResourceAny) -> Result<(), PluginFailure> {
        body.resource_drop_async(&mut self.store).await.map_err(trapped)
    }

    /// Passes an exchange that has ended to an observer, and waits for what the observer waits for.
    pub async fn observe_waiting(
        &mut self,
        values: Vec<Option<Vec<u8>>>,
        summary: Summary,
    ) -> Result<(), PluginFailure> {
        self.hook = HookKind::Observer;
        let hook = self.waiting.as_ref().and_then(|hooks| hooks.on_end.as_ref()).ok_or(PluginFailure::NoHook)?;
        hook.call_async(&mut self.store, (values, summary)).await.map_err(trapped)
    }

    /// Lends the context of an exchange to the next call, if the plugin may ask for it.
    fn lend<'a>(&mut self, context: &'a mut Box<ExchangeContext>) -> Option<Lending<'a>> {
        let (lending, lent) = self.imports_exchange.then(|| LentContext::lend(context)).unzip();
        self.store.data_mut().lent = lent;
        lending
    }

    fn transform(&self, side: MessageSide) -> Result<Transform, PluginFailure> {
        let hooks = self.waiting.as_ref().ok_or(PluginFailure::NoHook)?;
        let transform = match side {
            MessageSide::Request => &hooks.request_transform,
            MessageSide::Response => &hooks.response_transform,
        };
        transform.as_ref().copied().ok_or(PluginFailure::NoHook)
    }

    /// Lets a timer's interval have passed, and waits for what the hook waits for.
    pub async fn timer_waiting(&mut self) -> Result<(), PluginFailure> {
        self.hook = HookKind::Timer;
        let hook = self.waiting.as_ref().and_then(|hooks| hooks.on_timer.as_ref()).ok_or(PluginFailure::NoHook)?;
        hook.call_async(&mut self.store, ()).await.map_err(trapped)
    }
}

/// Returns the values that a hook has declared.
pub fn declared(needs: &[ValueName], context: &ExchangeContext) -> Result<Vec<Option<Vec<u8>>>, PluginFailure> {
    let mut bytes = 0;
    let copy = |name| {
        let value = context.value(name);
        bytes += value.as_ref().map_or(0, |value| value.bytes().len());
        if bytes > MAX_DECLARED_BYTES {
            return Err(PluginFailure::Values(MAX_DECLARED_BYTES));
        }
        Ok(value.map(|value| value.bytes().to_vec()))
    };
    let values = needs.iter().map(copy).collect();
    context.work.add_copy(bytes);
    values
}

/// The maximum size in bytes of the values that a call receives, where they are copied before it: more than a message and
/// its notes have.
const MAX_DECLARED_BYTES: usize = 1 << 20;

/// Runs a call that waits for its own tasks alone, within a runtime; `None` if it waits for anything else.
pub(super) async fn without_waiting<R>(call: impl Future<Output = R>) -> Option<R> {
    let (mut call, woken) = (pin!(call), Arc::new(Woken::default()));
    let waker = Waker::from(woken.clone());
    loop {
        if let Poll::Ready(returned) = call.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(returned);
        }
        let mut turns = 0;
        while !woken.0.swap(false, Ordering::Relaxed) {
            if turns == IDLE_TURNS {
                return None;
            }
            turns += 1;
            tokio::task::yield_now().await;
        }
    }
}

/// Runs a call that may not wait: it is over with its first turn, or it has failed.
pub(super) fn at_once<R>(call: impl Future<Output = wasmtime::Result<R>>) -> Result<R, PluginFailure> {
    let mut call = pin!(call);
    match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(returned) => returned.map_err(trapped),
        Poll::Pending => Err(PluginFailure::MayNotWait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_call_waits_for_its_own_tasks_and_for_nothing_else() {
        let asked = async {
            let inner = tokio::spawn(async { tokio::spawn(async { 1 }).await });
            inner.await.ok()?.ok()
        };
        assert_eq!(without_waiting(asked).await, Some(Some(1)));
        assert_eq!(without_waiting(tokio::time::sleep(Duration::from_secs(3600))).await, None);
        let (_sender, answer) = tokio::sync::oneshot::channel::<()>();
        assert!(without_waiting(answer).await.is_none());
    }
}
