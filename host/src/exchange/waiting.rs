//! Head hooks of plugins that may wait. The way through a chain is suspended at such a hook, and taken up again behind it.

use std::ops::Range;

use super::chain::{self, ChainFailure, RequestHooks, ResponseHooks};
use crate::context::ExchangeContext;
use crate::context::edit_check::MessageSide;
use crate::generation::ids::{PluginId, UpstreamId};
use crate::generation::{Route, WorkerState};
use crate::net::deadline::Deadline;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::instance::{FilterVerdict, Instance};
use crate::plugin::settings::Hook;

/// The head hook of a plugin that may wait.
pub struct WaitingHook<'a> {
    pub worker: &'a WorkerState,
    pub plugin_id: PluginId,
    pub side: MessageSide,
}

impl WaitingHook<'_> {
    /// Calls the hook, and waits for its verdict. `step` limits each thing that is waited for.
    ///
    /// The context is lent to the plugin, and comes back even if the future is dropped.
    pub async fn call(
        self,
        context: &mut Box<ExchangeContext>,
        step: &Deadline,
    ) -> Result<FilterVerdict, PluginFailure> {
        let WaitingHook { worker, plugin_id, side } = self;
        let configured = &worker.generation.bindings[plugin_id];
        let hook = if side == MessageSide::Request { &configured.request } else { &configured.response };
        let Hook::Call(needs) = hook else { return Err(PluginFailure::NoHook) };
        let call = async |instance: &mut Instance| instance.filter_waiting(side, needs, context).await;
        worker.guards[plugin_id].call_waiting(step, call).await
    }
}

/// Finishes the way down a chain, past hooks that may wait.
pub async fn down(
    worker: &WorkerState,
    route: &Route,
    mut hooks: RequestHooks,
    context: &mut Box<ExchangeContext>,
    upstream: &mut Option<UpstreamId>,
    step: &Deadline,
) -> Result<RequestHooks, ChainFailure> {
    while let RequestHooks::Wait(at) = hooks {
        let hook = WaitingHook { worker, plugin_id: at.plugin(route), side: MessageSide::Request };
        let verdict = hook.call(context, step).await;
        hooks = chain::accept_request_verdict(worker, route, at, verdict, context, upstream)?;
    }
    Ok(hooks)
}

/// Finishes the way up through some plugins, past hooks that may wait; returns the content that a plugin has put in place.
pub async fn up(
    worker: &WorkerState,
    route: &Route,
    plugins: Range<usize>,
    mut hooks: ResponseHooks,
    context: &mut Box<ExchangeContext>,
    step: &Deadline,
) -> Result<Option<Vec<u8>>, ChainFailure> {
    let mut replaced = None;
    loop {
        let (at, content) = match hooks {
            ResponseHooks::Done(content) => return Ok(content.or(replaced)),
            ResponseHooks::Wait { at, content } => (at, content),
        };
        let hook = WaitingHook { worker, plugin_id: at.plugin(route), side: MessageSide::Response };
        let verdict = hook.call(context, step).await;
        let own = chain::accept_response_verdict(worker, route, at, verdict, context)?;
        replaced = own.or(content).or(replaced);
        hooks = chain::up(worker, route, plugins.start..at.plugins().end, context)?;
    }
}
