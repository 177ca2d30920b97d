//! The hooks of a plugin that imports something that waits. A call of such a hook runs on a stack of its own, and leaves
//! the worker while it waits.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wasmtime::Store;
use wasmtime::component::{ComponentNamedList, Lift, Lower, TypedFunc};

use super::super::bindings::lifecycle::exports::plugway::plugin::lifecycle::{ConfigError, Description, Settings};
use super::super::bindings::types::Verdict;
use super::super::breaker::HookKind;
use super::super::call_error::{PluginFailure, trapped};
use super::super::cpu_time::TurnTime;
use super::super::engine::Plugin;
use super::super::host::{HostState, LentContext};
use super::super::outgoing_http::CalloutSender;
use super::{FilterVerdict, Instance, checked};
use crate::context::edit_check::MessageSide;
use crate::context::{ExchangeContext, ValueName};

/// The exported functions of an instance whose calls may wait.
pub(super) struct WaitingHooks {
    describe: TypedFunc<(), (Description,)>,
    configure: TypedFunc<(String,), (Result<Settings, Vec<ConfigError>>,)>,
    on_request: Option<HeadHook>,
    on_response: Option<HeadHook>,
    on_timer: Option<TypedFunc<(), ()>>,
}

/// The function of a head hook, with the declared values as its only parameter.
struct HeadHook(TypedFunc<HeadParameters, (Verdict,)>);

/// The parameters of a head hook.
type HeadParameters = (Vec<Option<Vec<u8>>>,);

impl WaitingHooks {
    /// Looks up the functions of an instance.
    pub(super) fn load(
        plugin: &Plugin,
        store: &mut Store<HostState>,
        instance: &wasmtime::component::Instance,
    ) -> Result<Self, PluginFailure> {
        let mut exports = Exports { store, instance };
        let head = |exports: &mut Exports<'_>, interface, name| exports.function(interface, name).map(HeadHook);
        let on_request = plugin.request_filter.as_ref().map(|_| head(&mut exports, "request-filter", "on-request"));
        let on_response = plugin.response_filter.as_ref().map(|_| head(&mut exports, "response-filter", "on-response"));
        let on_timer = plugin.timer.as_ref().map(|_| exports.function("timer", "on-timer"));
        Ok(WaitingHooks {
            describe: exports.function("lifecycle", "describe")?,
            configure: exports.function("lifecycle", "configure")?,
            on_request: on_request.transpose()?,
            on_response: on_response.transpose()?,
            on_timer: on_timer.transpose()?,
        })
    }

    /// Calls `describe`, which may not wait.
    pub(super) fn describe(&self, store: &mut Store<HostState>) -> Result<Description, PluginFailure> {
        at_once(self.describe.call_async(store, ())).map(|(description,)| description)
    }

    /// Calls `configure`, which may not wait.
    pub(super) fn configure(
        &self,
        store: &mut Store<HostState>,
        config: &str,
    ) -> Result<Result<Settings, Vec<ConfigError>>, PluginFailure> {
        at_once(self.configure.call_async(store, (config.into(),))).map(|(settings,)| settings)
    }
}

/// The exports of an instance.
struct Exports<'a> {
    store: &'a mut Store<HostState>,
    instance: &'a wasmtime::component::Instance,
}

impl Exports<'_> {
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
    /// Begins the measurement of a call that may wait; the caller measures its turns.
    pub(in crate::plugin) fn begin_turns(&mut self) -> Arc<TurnTime> {
        self.begin_call(self.hook);
        let budget = self.budget();
        self.store.data_mut().cpu.begin_turns(budget)
    }

    /// Opens the way to the worker for the requests of the next call.
    pub fn allow_callouts(&mut self, sender: CalloutSender) {
        self.store.data_mut().http.set_sender(Some(sender));
    }

    /// Calls the filter's hook for one side with the declared values, and waits for what the hook waits for. If the future
    /// is dropped, the exchange has its context back, and the instance is spent.
    pub async fn filter_waiting(
        &mut self,
        side: MessageSide,
        needs: &[ValueName],
        context: &mut Box<ExchangeContext>,
    ) -> Result<FilterVerdict, PluginFailure> {
        let copy = |name| context.value(name).map(|value| value.bytes().to_vec());
        let values: Vec<Option<Vec<u8>>> = needs.iter().map(copy).collect();
        let lending = self.imports_exchange.then(|| LentContext::lend(context));
        self.store.data_mut().lent = lending.as_ref().map(|(_, lent)| lent.clone());
        self.hook = match side {
            MessageSide::Request => HookKind::RequestFilter,
            MessageSide::Response => HookKind::ResponseFilter,
        };
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

    /// Lets a timer's interval have passed, and waits for what the hook waits for.
    pub async fn timer_waiting(&mut self) -> Result<(), PluginFailure> {
        self.hook = HookKind::Timer;
        let hook = self.waiting.as_ref().and_then(|hooks| hooks.on_timer.as_ref()).ok_or(PluginFailure::NoHook)?;
        hook.call_async(&mut self.store, ()).await.map_err(trapped)
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
