//! A worker's calls of a configured plugin: on which instance, whether a call is made at all, and what it costs.
//!
//! An instance leaves its slot for each call and returns to it when the call has returned, so a trap, a deadline or a
//! refused growth of memory costs that instance alone. A call that no tick meets is checked by two loads, and costs no
//! clock reading beyond the sample for metrics.
#![expect(
    clippy::disallowed_methods,
    reason = "calls are measured exactly: most are shorter than a tick of the worker's clock"
)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::{CallOutcome, HookKind};
use super::call_error::PluginFailure;
use super::client_breakers::CallPermit;
use super::configured::ConfiguredPlugin;
use super::cpu_time::{CallStart, TICK};
use super::failure::ExchangeName;
use super::instance::Instance;
use super::instance_orders::{MadeInstance, OrderedInstance, WantedInstance};
use super::settings::{Isolation, OnError};
use super::time_share::{Shares, TimeShare};
use super::version::{InstanceNeed, PluginVersion, SLOWNESS};
use crate::context::ExchangeContext;
use crate::net::boxed::boxed;
use crate::net::turn::{ComputationKind, TurnClaim, TurnOwner, is_contended, next_turn, spend};
use crate::system::client_places::ClientPlace;
use crate::system::holder_counts::Holder;
use crate::system::local_limit::LocalLimit;
use crate::system::supervise::{Task, caught};
use crate::telemetry::metrics::{PluginMetrics, SAMPLE_EVERY, WorkerMetrics};
use crate::upstream::endpoint_set::EndpointSnapshot;

use observed_end::MAX_WAITING_BYTES;
use waiting_calls::WaitingInstances;

pub mod observed_end;
pub mod share_pause;
pub(super) mod waiting_calls;

/// The minimum of work that is charged at once, in time. Plans of usual length take far less, and few of them cost a clock
/// reading.
const MIN_CHARGED_WORK: Duration = Duration::from_micros(20);

/// A worker's place for the instance of a configured plugin. Boxed, since the instance leaves it for every call.
#[derive(Default)]
pub struct InstanceSlot(RefCell<Option<Box<Instance>>>);

/// A worker's view of a configured plugin: its share of the worker's time, and its metrics.
pub struct PluginCaller {
    pub(super) configured: Arc<ConfiguredPlugin>,
    pub(super) share: Rc<TimeShare>,
    pub figures: Arc<PluginMetrics>,
    worker_metrics: WorkerMetrics,
    /// The instances of a plugin whose hooks may wait; none for other plugins.
    pub(super) waiting: WaitingInstances,
    /// The limit of the exchanges that have ended and wait for the plugin's observer, in bytes.
    pub ended: LocalLimit,
    /// Whether no new exchange uses the generation, so that a worker keeps one instance at most.
    is_retired: Cell<bool>,
    /// Whether no exchange uses the plugin in the generation any more, so that no instances are kept.
    is_released: Cell<bool>,
    /// The host's work that is not charged yet, because it was short.
    owed: Cell<Duration>,
}

/// The time that a lost instance is charged with: to replace it, off the worker or on it, and to tell of the failure. What
/// the calls take themselves is too short to be seen when they fail at once.
const LOSS: Duration = Duration::from_micros(500);

impl InstanceSlot {
    /// Puts the instance that was made for the first call into the slot.
    pub fn fill(&self, instance: Box<Instance>) {
        self.0.replace(Some(instance));
    }

    /// Drops the instance.
    pub fn clear(&self) {
        self.0.replace(None);
    }

    /// Whether the slot has an instance.
    pub fn is_filled(&self) -> bool {
        self.0.borrow().is_some()
    }
}

impl PluginCaller {
    pub fn new(
        configured: Arc<ConfiguredPlugin>,
        worker_metrics: WorkerMetrics,
        shares: &Rc<Shares>,
        now: Instant,
    ) -> Self {
        let figures = worker_metrics.registry.plugin(&configured.name, worker_metrics.worker);
        let (version, limits) = (Arc::as_ptr(&configured.supply).addr(), configured.limits);
        let share = TimeShare::of(version, limits.share, limits.cpu.saturating_mul(SLOWNESS), shares, now);
        let waiting = WaitingInstances::default();
        let (ended, owed) = (LocalLimit::new(MAX_WAITING_BYTES), Cell::new(Duration::ZERO));
        let (is_retired, is_released) = (Cell::new(false), Cell::new(false));
        PluginCaller { configured, share, figures, worker_metrics, waiting, ended, is_retired, is_released, owed }
    }

    /// Calls a hook for a client on the slot's instance, or on a fresh one.
    pub fn call<R>(
        &self,
        slot: &InstanceSlot,
        hook: HookKind,
        client: Holder,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        self.call_prepared(slot, hook, client, |_| Ok(()), call)
    }

    /// Calls a hook for a client on the slot's instance, or on a fresh one that was prepared. The instance returns to its slot
    /// only if the call returned, and if other calls may have the instance.
    pub fn call_prepared<R>(
        &self,
        slot: &InstanceSlot,
        hook: HookKind,
        client: Holder,
        prepare: impl FnOnce(&mut Instance) -> Result<(), PluginFailure>,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        let permit = self.admit(hook, client)?;
        let idle = slot.0.borrow_mut().take();
        let fresh = || {
            let mut instance = self.fresh(InstanceNeed::Loss, client)?;
            prepare(&mut instance).map(|()| instance)
        };
        let instance = idle.map_or_else(fresh, Ok);
        let mut instance = instance.inspect_err(|failure| self.settle_without_call(permit, hook, failure))?;
        let result = self.run(&mut instance, permit, call);
        let is_kept = self.configured.isolation == Isolation::Worker && !self.is_released.get();
        if is_whole(&result) && is_kept {
            slot.fill(instance);
            return result;
        }
        if is_whole(&result) {
            self.discard(instance, client);
        } else {
            self.lose(instance, client);
        }
        if is_kept {
            // The next call finds an instance that was made meanwhile.
            self.supply().order();
        }
        result
    }

    /// Rejects the host's work for the plugin outside of calls while the share is used up for the client of an exchange.
    pub fn admit_work(&self, context: &ExchangeContext) -> Result<(), PluginFailure> {
        if self.wait(context.holder()).is_some() { Err(self.share_error()) } else { Ok(()) }
    }

    /// Charges the host's work for the plugin in an exchange, outside of calls.
    pub fn charge_work(&self, context: &ExchangeContext) {
        let work = context.work.take();
        if !work.is_zero() {
            self.charge_owed(work, context.holder());
        }
    }

    /// Charges time together with the short times before it, which may have been spent for other clients.
    fn charge_owed(&self, time: Duration, client: Holder) {
        let owed = self.owed.take() + time;
        if owed >= MIN_CHARGED_WORK {
            self.share.charge_time(owed, client, Instant::now());
        } else {
            self.owed.set(owed);
        }
    }

    /// Returns the handling of failures that the manifest asks for.
    pub fn on_error(&self) -> OnError {
        self.configured.on_error
    }

    /// Whether the next call of a hook for a client has to wait for its turn: recent calls of the plugin were long, or not
    /// brief while calls took much of the worker's time, and computations use up the worker's time.
    pub fn waits_for_turn(&self, client: Holder) -> bool {
        // A call that the share rejects computes nothing.
        self.takes_turns() && is_contended() && self.wait(client).is_none()
    }

    /// Waits until the plugin may have one more request of its own under way for a client, by `limits.callouts`.
    pub async fn callout_place(&self, client: Holder) -> Option<ClientPlace> {
        self.supply().waiting.callout(client).await
    }

    /// Waits until the next call of a hook may be made for a client, if it has to wait.
    pub async fn turn(&self, client: Holder) {
        if self.waits_for_turn(client) {
            boxed(|| next_turn(self.turn_owner(client))).await;
        }
    }

    /// Returns the time that the worker has spent in calls of the plugin.
    pub fn time_in_calls(&self) -> Duration {
        Duration::from_nanos(self.figures.nanoseconds.value())
    }

    /// Returns the claim of a call or a body of the plugin to the worker's time.
    pub fn claim(&self, client: Holder) -> TurnClaim {
        TurnClaim::new(self.turn_owner(client), self.takes_turns())
    }

    /// Returns the owner of the plugin's computations for a client, in whichever binding of a version.
    pub fn turn_owner(&self, client: Holder) -> TurnOwner {
        TurnOwner { kind: ComputationKind::Plugin(self.share.version()), client }
    }

    /// Whether calls and bodies of the plugin wait for their turn from the beginning.
    pub(super) fn takes_turns(&self) -> bool {
        self.share.is_watched()
    }

    /// Charges the CPU time that the host has received or decoded content in, for a call or a body that is under way. Short
    /// times are charged together.
    pub fn charge_received(&self, claim: &mut TurnClaim, time: Duration, client: Holder) {
        claim.spend(time);
        self.charge_owed(time / SLOWNESS, client);
    }

    /// Keeps one instance at most from now on.
    pub fn retire(&self) {
        self.is_retired.set(true);
        self.waiting.clear_spare();
    }

    /// Whether the worker's own instance of a plugin whose hooks may wait is idle.
    pub fn has_own_stack(&self) -> bool {
        self.waiting.has_own()
    }

    /// Keeps no instances from now on.
    pub fn release(&self) {
        self.is_released.set(true);
        self.waiting.clear();
    }

    /// Whether no instances are kept.
    pub fn is_released(&self) -> bool {
        self.is_released.get()
    }

    /// Whether instances are kept for bodies and calls at the same time.
    pub(super) fn keeps_spares(&self) -> bool {
        !self.is_retired.get() && !self.is_released.get()
    }

    /// Decides whether a call of a hook is made for a client; the error is the reason if none is.
    pub(super) fn admit(&self, hook: HookKind, client: Holder) -> Result<CallPermit, PluginFailure> {
        if !self.share.is_spent() && self.supply().breakers.are_closed(client) {
            return Ok(CallPermit::usual(client));
        }
        self.admit_slowly(hook, client, Instant::now())
    }

    /// Decides about the further calls of a body that has begun with a permission. Late calls were counted against the
    /// plugin, but the body is not cut off for the failures of others.
    pub(super) fn admit_further(&self, begun: CallPermit) -> CallPermit {
        let breakers = &self.supply().breakers;
        if begun.is_usual() && breakers.are_closed(begun.client) { begun } else { breakers.further(begun) }
    }

    /// Runs a call on an instance, counts and charges it.
    pub(super) fn run<R>(
        &self,
        instance: &mut Instance,
        permit: CallPermit,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        let figures = &self.figures;
        figures.calls.add(1);
        if let Some(time) = permit.budget() {
            instance.set_budget(time);
        }
        let began = figures.calls.value().is_multiple_of(SAMPLE_EVERY).then(Instant::now);
        let start = CallStart::now(self.share.is_watched());
        let called = caught(Task::PluginCall, || call(&mut *instance));
        let called = called.unwrap_or_else(|panic| Err(PluginFailure::Panicked(panic)));
        let result = called.map_err(|failure| instance.explained(failure));
        if let Some(began) = began {
            figures.nanoseconds.add(began.elapsed().as_nanos() as u64 * SAMPLE_EVERY);
        }
        self.settle(instance, permit, &start, &result);
        result
    }

    /// Drops an instance, whose memory is given back to the system at the expense of a plugin that is watched.
    pub(super) fn discard(&self, instance: Box<Instance>, client: Holder) {
        let start = CallStart::now(self.share.is_watched());
        drop(instance);
        if let Some(time) = start.cpu() {
            spend(time);
            self.share.charge_time(time / SLOWNESS, client, Instant::now());
        }
    }

    /// Drops an instance after a failed call, at the expense of the plugin.
    pub(super) fn lose(&self, instance: Box<Instance>, client: Holder) {
        self.share.charge_time(LOSS, client, Instant::now());
        self.discard(instance, client);
    }

    /// Returns a fresh instance for this worker.
    pub(super) fn fresh(&self, need: InstanceNeed, client: Holder) -> Result<Box<Instance>, PluginFailure> {
        if self.configured.answers.is_some() {
            return Err(PluginFailure::NoInstance("the plugin asks while it is configured, and a worker may not wait"));
        }
        let need = if self.is_released.get() { InstanceNeed::Last } else { need };
        self.supply().obtain(need, |took| self.charge_made(took, client)).map(|instance| self.adopt(instance))
    }

    /// Charges the time in which an instance was made on this worker. For others, it is as if the call were so much longer.
    fn charge_made(&self, took: Duration, client: Holder) {
        spend(took);
        self.share.charge_measured(took / SLOWNESS, client, Instant::now());
    }

    /// Prepares an instance that the maker's thread has made for this worker.
    pub fn adopt(&self, mut instance: Box<Instance>) -> Box<Instance> {
        instance.adopt(self.configured.figures(&self.worker_metrics));
        instance
    }

    /// Orders an instance from the thread that makes them. A balancer's instance gets the endpoints `members`.
    pub fn order(&self, members: Option<Arc<EndpointSnapshot>>) -> OrderedInstance {
        self.order_wanted(WantedInstance { members, ..WantedInstance::default() })
    }

    fn order_wanted(&self, wanted: WantedInstance) -> OrderedInstance {
        self.supply().order_for_worker(WantedInstance { answers: self.configured.answers.clone(), ..wanted })
    }

    /// Orders an instance from the thread that makes them, and waits for it.
    pub async fn make_instance(&self, members: Option<Arc<EndpointSnapshot>>) -> Result<Box<Instance>, PluginFailure> {
        Ok(self.adopt(self.order(members).wait().await.made?))
    }

    /// Orders an instance that a call waits for, and waits for it. The plugin is charged as if the worker had made it.
    pub(super) async fn make_for_call(&self, client: Holder) -> Result<Box<Instance>, PluginFailure> {
        let ordered = self.order_wanted(WantedInstance { is_for_call: true, ..WantedInstance::default() });
        let MadeInstance { made, took } = ordered.wait().await;
        self.share.charge_time(took / SLOWNESS, client, Instant::now());
        Ok(self.adopt(made?))
    }

    /// Whether endpoints are passed to a balancer quickly enough to do so on the worker.
    pub fn tells_quickly(&self) -> bool {
        self.supply().is_telling_cheap()
    }

    /// Passes endpoints to the balancer in a slot.
    pub fn tell(&self, slot: &InstanceSlot, members: &Arc<EndpointSnapshot>) -> Result<(), PluginFailure> {
        self.call(slot, HookKind::Balancer, Holder::PLUGIN, |instance| self.telling(instance, members))
    }

    /// Passes endpoints to an instance of a balancer, on a worker.
    pub fn telling(&self, instance: &mut Instance, members: &Arc<EndpointSnapshot>) -> Result<(), PluginFailure> {
        let time = self.configured.limits.cpu.min(TICK);
        self.supply().measure_telling(|| instance.endpoints_changed(members, time))
    }

    /// Logs and counts a failed call of a hook, in an exchange if there is one. Of calls that were not made, the first one
    /// in a minute is logged.
    pub fn record_failure(&self, hook: &'static str, failure: &PluginFailure, exchange: Option<&ExchangeName>) {
        let Some(rejection) = failure.rejection() else {
            self.figures.failures.add(1);
            return self.configured.reporter.record_failure(hook, failure, exchange);
        };
        self.figures.rejected[rejection as usize].add(1);
        if self.supply().is_log_due(rejection, Instant::now()) {
            tracing::warn!(plugin = &*self.configured.name, reason = %failure, hook, "plugin not called");
        }
    }

    pub fn supply(&self) -> &Arc<PluginVersion> {
        &self.configured.supply
    }

    /// Returns the time until the share admits calls for a client again; `None` if it does now.
    pub(super) fn wait(&self, client: Holder) -> Option<Duration> {
        if self.share.is_spent() { self.share.wait(client, Instant::now()) } else { None }
    }

    /// The error of a call that the share does not admit.
    pub fn share_error(&self) -> PluginFailure {
        PluginFailure::Share(self.configured.limits.share)
    }

    #[cold]
    fn admit_slowly(&self, hook: HookKind, client: Holder, now: Instant) -> Result<CallPermit, PluginFailure> {
        if self.share.is_spent() && self.share.wait(client, now).is_some() {
            return Err(self.share_error());
        }
        self.supply().breakers.admit(hook, client, now).ok_or(PluginFailure::Open)
    }

    fn settle<R>(
        &self,
        instance: &mut Instance,
        permit: CallPermit,
        start: &CallStart,
        result: &Result<R, PluginFailure>,
    ) {
        let (breakers, client) = (&self.supply().breakers, permit.client);
        let since_tick = instance.cpu_since_tick();
        let (measured, has_missed_ticks) = (start.cpu(), start.has_missed_ticks(since_tick));
        let is_late = measured.is_some_and(|time| time > self.longest_call());
        let outcome = match result {
            Err(PluginFailure::Deadline(_)) => CallOutcome::Late,
            _ if is_late => CallOutcome::Late,
            result if is_whole(result) => instance.returned(),
            _ => CallOutcome::Failed,
        };
        let is_short = since_tick.is_none() && measured.is_none() && !has_missed_ticks;
        if permit.is_usual() && is_short {
            match outcome {
                CallOutcome::Returned => return breakers.count_success(instance.hook(), client),
                CallOutcome::Continued => return,
                CallOutcome::Failed | CallOutcome::Late => {}
            }
        }
        let now = Instant::now();
        if has_missed_ticks {
            self.share.watch();
        }
        match (measured, since_tick) {
            (Some(time), _) => {
                spend(time);
                self.share.charge_measured(time, client, now);
            }
            (None, Some(since_tick)) => self.share.charge_ticks(since_tick, client, now),
            // A tick that the call didn't notice is as likely as any other.
            (None, None) if has_missed_ticks => self.share.charge_ticks(Duration::ZERO, client, now),
            (None, None) => {}
        }
        breakers.settle(permit, instance.hook(), outcome, now);
        instance.set_budget(Duration::MAX);
    }

    /// Returns the CPU time beyond which a call is late though it has returned: its limit, the ticks by which the limit is
    /// kept, and the host's part where that is slow.
    pub(super) fn longest_call(&self) -> Duration {
        (self.configured.limits.cpu + TICK * 2).saturating_mul(SLOWNESS)
    }

    /// Settles a trial whose call could not be made for want of an instance, which the next trial may have. A lack of places
    /// says nothing about the plugin: the trial is repeated, as one that never ended is.
    pub(super) fn settle_without_call(&self, permit: CallPermit, hook: HookKind, failure: &PluginFailure) {
        if matches!(failure, PluginFailure::NoPlace) {
            return;
        }
        let outcome =
            if matches!(failure, PluginFailure::Deadline(_)) { CallOutcome::Late } else { CallOutcome::Failed };
        if permit.is_trial() {
            self.supply().breakers.settle(permit, hook, outcome, Instant::now());
        }
    }
}

/// Whether an instance may serve further calls after one with this result.
pub(super) fn is_whole<R>(result: &Result<R, PluginFailure>) -> bool {
    matches!(
        result,
        Ok(_)
            | Err(PluginFailure::Reported(_)
                | PluginFailure::Senseless(_)
                | PluginFailure::Refused(_)
                | PluginFailure::Values(_)
                | PluginFailure::NoHook)
    )
}
