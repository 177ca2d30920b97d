//! Calls of hooks that may wait: each has an instance to itself, which comes back when the call has returned. Their number
//! is limited over all workers; a call beyond the limit is queued for some time, and then not made.
//!
//! A call runs in turns, and other requests between them. Its turns count for `limits.cpu`. For
//! `limits.share`, the receipt of responses to its requests counts too.
#![expect(clippy::disallowed_methods, reason = "the share is charged after each turn, which may be long")]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use super::super::breaker::{CallOutcome, HookKind};
use super::super::call_error::PluginFailure;
use super::super::client_breakers::CallPermit;
use super::super::instance::Instance;
use super::super::instance_limit::ReservedInstances;
use super::super::settings::Isolation;
use super::super::version::{InstanceNeed, PluginVersion, SLOWNESS};
use super::super::waiting_limit::RESERVED_CALLS;
use super::share_pause::SharePause;
use super::{PluginCaller, is_whole};
use crate::net::boxed::boxed;
use crate::net::deadline::Deadline;
use crate::system::holder_counts::Holder;
use crate::system::supervise::{Task, caught};

/// The instances of a worker that no call has at the moment.
#[derive(Default)]
pub struct WaitingInstances {
    idle: RefCell<Vec<IdleInstance>>,
    /// The fewest idle instances since the last sweep: so many were not needed.
    fewest: Cell<usize>,
    swept: Cell<Option<Instant>>,
}

/// An instance that no call has at the moment.
struct IdleInstance {
    waiting: WaitingInstance,
    /// The count of the instance among the idle ones of its version; `None` if it was the worker's only one.
    _counted: Option<IdleCount>,
}

/// The count of an idle instance, until dropped.
struct IdleCount(Arc<PluginVersion>);

/// An instance for calls that may wait, with its place.
pub(in crate::plugin) struct WaitingInstance {
    pub(in crate::plugin) instance: Box<Instance>,
    /// The permission for the last call that was begun.
    pub(in crate::plugin) permit: CallPermit,
    place: WaitingPlace,
}

impl WaitingInstance {
    fn new(instance: Box<Instance>, place: WaitingPlace) -> Self {
        WaitingInstance { instance, permit: CallPermit::usual(Holder::UNKNOWN), place }
    }
}

/// The place of an instance for calls that may wait, until dropped.
enum WaitingPlace {
    /// The place that a generation has for the first instance of each worker.
    OfGeneration,
    /// The place of a further instance, which counts for its version.
    Further {
        version: Arc<PluginVersion>,
        /// The place and the stack of an instance beyond [`RESERVED_CALLS`], or of one that is made after its generation was
        /// replaced; `None` if a generation has reserved them.
        place: Option<ReservedInstances>,
    },
}

/// Idle instances that a worker keeps at most. All workers together keep as many as `limits.waiting-calls` says, and each
/// worker one besides.
const MAX_IDLE_INSTANCES: usize = 64;

/// Instances that were not needed for so long are dropped, except for the last one.
const SWEEP: Duration = Duration::from_secs(10);

impl WaitingPlace {
    fn further(version: &Arc<PluginVersion>) -> Result<Self, PluginFailure> {
        let mut reserved = None;
        let before = version.waiting.instances.fetch_add(1, Ordering::SeqCst);
        if before >= RESERVED_CALLS || !version.cover.is_there() {
            let places = &version.recipe.plugin.places;
            let lack = |_| {
                version.waiting.instances.fetch_sub(1, Ordering::SeqCst);
                PluginFailure::NoPlace
            };
            reserved = Some(places.reserve_waiting().map_err(lack)?);
        }
        Ok(WaitingPlace::Further { version: version.clone(), place: reserved })
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        if let WaitingPlace::Further { version, place } = self {
            version.waiting.instances.fetch_sub(1, Ordering::SeqCst);
            if place.is_none() {
                version.cover.end_use(1, 1);
            }
        }
    }
}

impl IdleCount {
    /// Counts one more idle instance; `None` if there are as many as the plugin may have calls at a time.
    fn new(version: &Arc<PluginVersion>) -> Option<Self> {
        version.waiting.keeps_idle(version.recipe.limits.waiting).then(|| IdleCount(version.clone()))
    }
}

impl Drop for IdleCount {
    fn drop(&mut self) {
        self.0.waiting.end_idle();
    }
}

impl WaitingInstances {
    /// Drops the instances.
    pub fn clear(&self) {
        self.idle.take();
    }

    /// Drops the instances but one.
    pub fn clear_spare(&self) {
        self.idle.borrow_mut().truncate(1);
    }

    /// Whether the instance is idle that has the place of the generation.
    pub fn has_own(&self) -> bool {
        let is_own = |idle: &IdleInstance| matches!(idle.waiting.place, WaitingPlace::OfGeneration);
        self.idle.borrow().iter().any(is_own)
    }

    fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty()
    }

    fn take(&self) -> Option<WaitingInstance> {
        let mut idle = self.idle.borrow_mut();
        let taken = idle.pop();
        self.fewest.set(self.fewest.get().min(idle.len()));
        Some(taken?.waiting)
    }

    /// Keeps an instance for later calls, or returns it if there are enough.
    fn keep(&self, version: &Arc<PluginVersion>, waiting: WaitingInstance) -> Option<WaitingInstance> {
        let mut idle = self.idle.borrow_mut();
        let counted = if idle.is_empty() { None } else { IdleCount::new(version) };
        if idle.is_empty() || idle.len() < MAX_IDLE_INSTANCES && counted.is_some() {
            idle.push(IdleInstance { waiting, _counted: counted });
            return None;
        }
        Some(waiting)
    }

    /// Drops those that were not needed for a while.
    fn sweep(&self, now: Instant) {
        let swept = self.swept.get().unwrap_or(now);
        if self.swept.get().is_some() && now.saturating_duration_since(swept) < SWEEP {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let unneeded = if self.swept.get().is_some() { self.fewest.get() } else { 0 };
        // Those at the beginning were idle the longest. The first one is not counted, and stays.
        let dropped = unneeded.min(idle.len().saturating_sub(1));
        if dropped > 0 {
            idle.drain(1..=dropped);
        }
        self.fewest.set(idle.len());
        self.swept.set(Some(now));
    }
}

impl PluginCaller {
    /// Calls a hook that may wait for a client, on an instance of its own. `step` limits each thing that is waited for.
    ///
    /// If the future is dropped, the call ends where it waits, and its instance is dropped.
    pub async fn call_waiting<R>(
        &self,
        step: &Deadline,
        hook: HookKind,
        client: Holder,
        call: impl AsyncFnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        let (taken, result) = self.begin_waiting(step, hook, client, call).await?;
        if is_whole(&result) {
            self.return_waiting(taken, client);
        } else {
            self.lose(taken.instance, client);
        }
        result
    }

    /// Makes a call that may wait as soon as the limits allow one more. Returns the instance, for further calls, with the
    /// result; an error if no call was made.
    pub(in crate::plugin) async fn begin_waiting<R>(
        &self,
        step: &Deadline,
        hook: HookKind,
        client: Holder,
        call: impl AsyncFnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<(WaitingInstance, Result<R, PluginFailure>), PluginFailure> {
        // Nothing is queued for a plugin that is not called.
        if self.wait(client).is_some() {
            return Err(self.share_error());
        }
        let _under_way = self.supply().waiting.admit(self.configured.limits.waiting, client, step).await?;
        let permit = self.admit(hook, client)?;
        let idle = self.waiting.take();
        let taken = match idle {
            Some(idle) => Ok(idle),
            None => self.fresh_waiting(step, client).await,
        };
        let mut taken = taken.inspect_err(|failure| self.settle_without_call(permit, hook, failure))?;
        taken.permit = permit;
        let result = self.run_waiting(step, permit, &mut taken.instance, call).await;
        Ok((taken, result))
    }

    /// Makes a call that may wait on an instance, for `limits.call-time` at most.
    pub(in crate::plugin) async fn run_waiting<R>(
        &self,
        step: &Deadline,
        permit: CallPermit,
        instance: &mut Instance,
        call: impl AsyncFnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        let (call_time, is_queued) = (self.configured.limits.waiting.call_time, Cell::new(false));
        let result = step.limit(call_time, self.run_turns(instance, permit, &is_queued, call)).await;
        result.unwrap_or_else(|_| {
            // The plugin is not to blame for computations of others.
            if permit.is_trial() || !is_queued.get() {
                self.settle_waiting(permit, instance.hook(), CallOutcome::Failed);
            }
            Err(PluginFailure::CallTime(call_time))
        })
    }

    /// Keeps an instance whose last call has returned, if other calls may have it.
    pub(in crate::plugin) fn return_waiting(&self, mut taken: WaitingInstance, client: Holder) {
        let is_wanted = self.keeps_spares() || !self.is_released() && self.waiting.is_empty();
        let may_serve = self.configured.isolation == Isolation::Worker && is_wanted;
        let left = if may_serve && !taken.instance.holds_much() {
            self.waiting.keep(self.supply(), taken)
        } else {
            Some(taken)
        };
        if let Some(left) = left {
            self.discard(left.instance, client);
        }
    }

    /// Keeps the first instance for the calls of this worker.
    pub fn keep_waiting(&self, instance: Box<Instance>) {
        self.waiting.keep(self.supply(), WaitingInstance::new(instance, WaitingPlace::OfGeneration));
    }

    /// Drops idle instances that were not needed for a while.
    pub fn sweep_waiting(&self, now: Instant) {
        self.waiting.sweep(now);
    }

    async fn fresh_waiting(&self, step: &Deadline, client: Holder) -> Result<WaitingInstance, PluginFailure> {
        let place = WaitingPlace::further(self.supply())?;
        let instance = if self.configured.answers.is_some() {
            let limit = self.configured.limits.waiting.call_time;
            let made = step.limit(limit, boxed(|| self.make_for_call(client))).await;
            made.unwrap_or_else(|_| Err(PluginFailure::CallTime(limit)))?
        } else {
            self.fresh(InstanceNeed::Body, client)?
        };
        Ok(WaitingInstance::new(instance, place))
    }

    /// Runs a call turn by turn, counts and charges it. `is_queued` tells whether the call waits for a turn of the worker.
    async fn run_turns<R>(
        &self,
        instance: &mut Instance,
        permit: CallPermit,
        is_queued: &Cell<bool>,
        call: impl AsyncFnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        let client = permit.client;
        self.figures.calls.add(1);
        if let Some(time) = permit.budget() {
            instance.set_budget(time);
        }
        let turns = instance.begin_turns(client);
        let (mut longest, mut total) = (Duration::ZERO, Duration::ZERO);
        let (mut pause, mut claim) = (SharePause::default(), self.claim(client));
        let result = {
            let mut call = pin!(call(&mut *instance));
            poll_fn(|cx| {
                // A call that is under way goes no faster than its plugin's share.
                if !total.is_zero() {
                    ready!(pause.poll(self, client, cx));
                }
                is_queued.set(true);
                ready!(claim.poll(cx));
                is_queued.set(false);
                turns.begin_turn();
                let polled = caught(Task::PluginCall, || call.as_mut().poll(cx));
                let polled = polled.unwrap_or_else(|panic| Poll::Ready(Err(PluginFailure::Panicked(panic))));
                let turn = turns.end_turn();
                claim.spend(turn);
                self.figures.nanoseconds.add(turn.as_nanos() as u64);
                self.share.charge_turn(total / SLOWNESS, turn / SLOWNESS, client, Instant::now());
                (longest, total) = (longest.max(turn), total + turn);
                polled
            })
            .await
        };
        let result = result.map_err(|failure| instance.explained(failure));
        let outcome = match &result {
            Err(PluginFailure::Deadline(_)) => CallOutcome::Late,
            _ if longest > self.longest_call() => CallOutcome::Late,
            result if is_whole(result) => instance.returned(),
            _ => CallOutcome::Failed,
        };
        instance.set_budget(Duration::MAX);
        self.settle_waiting(permit, instance.hook(), outcome);
        result
    }

    fn settle_waiting(&self, permit: CallPermit, hook: HookKind, outcome: CallOutcome) {
        let breakers = &self.supply().breakers;
        if permit.is_usual() && outcome == CallOutcome::Returned {
            return breakers.count_success(hook, permit.client);
        }
        breakers.settle(permit, hook, outcome, Instant::now());
    }
}
