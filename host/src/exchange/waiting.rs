//! Head hooks, timers and observers of plugins that may wait, and calls that wait for their turn on a busy worker. The way
//! through a chain is suspended at such a head hook or cache, and taken up again behind it.

use std::ops::Range;
use std::rc::Rc;

use smallvec::SmallVec;

use super::callouts::CalloutOrigin;
use super::chain::{self, ChainFailure, RequestHooks, ResponseHooks, RouteChain};
use crate::context::edit_check::MessageSide;
use crate::context::{CalloutCause, ExchangeContext};
use crate::generation::ids::{PluginId, UpstreamId};
use crate::generation::worker_state::{EndedExchange, WaitingTimer, WorkerState};
use crate::net::deadline::{Clock, Deadline};
use crate::net::turn::next_turn;
use crate::plugin::breaker::HookKind;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::instance::{FilterVerdict, Instance};
use crate::plugin::settings::Hook;
use crate::system::holder_counts::Holder;

/// The head hook of a plugin that may wait, or whose call waits for its turn.
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
        let needs = match hook {
            Hook::Call(needs) => needs,
            // A cache has its call behind the verdict.
            _ => {
                next_turn(worker.guards[plugin_id].turn_owner(context.holder())).await;
                return Ok(FilterVerdict::Proceed(SmallVec::new()));
            }
        };
        if !configured.waits() {
            next_turn(worker.guards[plugin_id].turn_owner(context.holder())).await;
            return chain::call(worker, plugin_id, side, needs, context);
        }
        let cause = worker.callout_cause(plugin_id, context);
        let origin = CalloutOrigin { worker, plugin_id, cause, client: context.holder(), clock: step.clock().clone() };
        let call = async |instance: &mut Instance| instance.filter_waiting(side, needs, context).await;
        origin.call(step, HookKind::filter(side), call).await
    }
}

/// Calls a timer that may wait.
pub async fn call_timer(timer: WaitingTimer, clock: Rc<Clock>) {
    let worker = timer.worker().clone();
    let ([step], plugin_id) = (clock.deadlines(), timer.plugin());
    let guard = &worker.guards[plugin_id];
    // The timers of many plugins may be due in one turn of the worker.
    next_turn(guard.turn_owner(Holder::UNKNOWN)).await;
    let before = guard.time_in_calls();
    let cause = Some(CalloutCause::without_exchange("timer"));
    let origin = CalloutOrigin { worker: &worker, plugin_id, cause, client: Holder::UNKNOWN, clock: clock.clone() };
    let called =
        origin.call(&step, HookKind::Timer, async |instance: &mut Instance| instance.timer_waiting().await).await;
    timer.settle(called, guard.time_in_calls().saturating_sub(before), clock.now());
}

/// Passes an exchange that has ended to an observer: to one that may wait within the limits of such calls, which bound how
/// many are under way and queued, and to another one at its turn.
pub async fn observe(ended: EndedExchange, clock: Rc<Clock>) {
    let EndedExchange { worker, plugin_id, end, name, cause, client, held: _held, alive: _alive } = ended;
    let guard = &worker.guards[plugin_id];
    let called = if worker.generation.bindings[plugin_id].waits() {
        let ([step], worker) = (clock.deadlines(), &*worker);
        let origin = CalloutOrigin { worker, plugin_id, cause, client, clock };
        let observe = async |instance: &mut Instance| instance.observe_waiting(end.values, end.summary).await;
        origin.call(&step, HookKind::Observer, observe).await
    } else {
        guard.turn(client).await;
        worker.call(plugin_id, HookKind::Observer, client, |instance| instance.observe(&end.values, &end.summary))
    };
    if let Err(failure) = called {
        guard.record_failure("observer", &failure, Some(&name));
    }
}

/// Finishes the way down a chain, past hooks that may wait.
pub async fn down(
    chain: RouteChain<'_>,
    mut hooks: RequestHooks,
    context: &mut Box<ExchangeContext>,
    upstream: &mut Option<UpstreamId>,
    step: &Deadline,
) -> Result<RequestHooks, ChainFailure> {
    while let RequestHooks::Wait(at) = hooks {
        let plugin_id = at.plugin(chain.route());
        let hook = WaitingHook { worker: chain.worker, plugin_id, side: MessageSide::Request };
        let verdict = hook.call(context, step).await;
        hooks = chain::accept_request_verdict(chain, at, verdict, context, upstream)?;
    }
    Ok(hooks)
}

/// Finishes the way up through some plugins, past hooks that may wait; returns the content that a plugin has put in place.
pub async fn up(
    chain: RouteChain<'_>,
    plugins: Range<usize>,
    mut hooks: ResponseHooks,
    context: &mut Box<ExchangeContext>,
    step: &Deadline,
) -> Result<Option<Vec<u8>>, ChainFailure> {
    let (worker, route, mut replaced) = (chain.worker, chain.route(), None);
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
