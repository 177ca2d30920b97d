//! A worker's calls of a configured plugin: on which instance, whether a call is made at all, and what it costs.
//!
//! An instance leaves its slot for each call and returns to it when the call has returned, so a trap, a deadline or a
//! refused growth of memory costs that instance alone. A call that no tick meets is checked by two loads, and costs no
//! clock reading beyond the sample for metrics.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::{Outcome, Permit};
use super::configured::{Binding, Isolation};
use super::engine::TICK;
use super::failure::Exchange;
use super::instance::{Instance, Trap};
use super::instance_maker::Ordered;
use super::time_share::{Share, Shares};
use super::version::{Need, SLOWNESS, Supply};
use crate::telemetry::metrics::{Place, PluginFigures, SAMPLE};
use crate::upstream::endpoint_set::Members;

/// A worker's place for the instance of a configured plugin. Boxed, since the instance leaves it for every call.
#[derive(Default)]
pub struct Slot(RefCell<Option<Box<Instance>>>);

/// A worker's view of a configured plugin: its share of the worker's time, and its metrics.
pub struct Guard {
    pub(super) binding: Arc<Binding>,
    pub(super) share: Rc<Share>,
    pub figures: Arc<PluginFigures>,
    place: Place,
    /// Whether no new exchange uses the generation, so that no instances are kept.
    is_released: Cell<bool>,
}

impl Slot {
    /// Puts an instance in, made for the slot's first call.
    pub fn fill(&self, instance: Box<Instance>) {
        self.0.replace(Some(instance));
    }

    /// Drops the instance.
    pub fn clear(&self) {
        self.0.replace(None);
    }

    /// Whether an instance is there.
    pub fn is_filled(&self) -> bool {
        self.0.borrow().is_some()
    }
}

impl Guard {
    pub fn new(binding: Arc<Binding>, place: Place, shares: &Rc<Shares>, now: Instant) -> Self {
        let figures = place.registry.plugin(&binding.name, place.worker);
        let (version, limits) = (Arc::as_ptr(&binding.supply).addr(), binding.limits);
        let share = Share::of(version, limits.share, limits.cpu.saturating_mul(SLOWNESS), shares, now);
        Guard { binding, share, figures, place, is_released: Cell::new(false) }
    }

    /// Calls a hook on the slot's instance, or on a fresh one.
    pub fn call<R>(&self, slot: &Slot, call: impl FnOnce(&mut Instance) -> Result<R, Trap>) -> Result<R, Trap> {
        self.call_prepared(slot, |_| Ok(()), call)
    }

    /// Calls a hook on the slot's instance, or on a fresh one that was prepared. The instance returns to its slot only if
    /// the call returned, and if other calls may have the instance.
    pub fn call_prepared<R>(
        &self,
        slot: &Slot,
        prepare: impl FnOnce(&mut Instance) -> Result<(), Trap>,
        call: impl FnOnce(&mut Instance) -> Result<R, Trap>,
    ) -> Result<R, Trap> {
        let permit = self.admit()?;
        let kept = slot.0.borrow_mut().take();
        let fresh = || {
            let mut instance = self.fresh(Need::Loss)?;
            prepare(&mut instance).map(|()| instance)
        };
        let found = kept.map_or_else(fresh, Ok);
        let mut instance = found.inspect_err(|trap| self.settle_without_call(permit, trap))?;
        let result = self.run(&mut instance, permit, call);
        if is_whole(&result) && self.binding.isolation == Isolation::Worker && !self.is_released.get() {
            slot.fill(instance);
        } else if self.binding.isolation == Isolation::Worker && !self.is_released.get() {
            // The next call finds an instance that was made meanwhile.
            drop(instance);
            self.supply().order(&self.binding);
        }
        result
    }

    /// Keeps no instances from now on.
    pub fn release(&self) {
        self.is_released.set(true);
    }

    /// Whether no instances are kept.
    pub(super) fn is_released(&self) -> bool {
        self.is_released.get()
    }

    /// Decides whether a call is made; the error is the reason if none is.
    pub(super) fn admit(&self) -> Result<Permit, Trap> {
        if !self.share.is_spent() && self.supply().breaker.is_closed() {
            return Ok(Permit::Usual);
        }
        self.admit_slowly(Instant::now())
    }

    /// Decides about the further calls of a body that has begun: late calls were counted against the plugin, but the body
    /// is not broken off for the failures of others.
    pub(super) fn admit_further(&self) -> Permit {
        if self.supply().breaker.is_closed() { Permit::Usual } else { self.supply().breaker.further() }
    }

    /// Runs a call on an instance, counts and charges it.
    pub(super) fn run<R>(
        &self,
        instance: &mut Instance,
        permit: Permit,
        call: impl FnOnce(&mut Instance) -> Result<R, Trap>,
    ) -> Result<R, Trap> {
        let figures = &self.figures;
        figures.calls.add(1);
        if let Permit::Short(time) | Permit::Trial(time) = permit {
            instance.set_budget(time);
        }
        let began = figures.calls.value().is_multiple_of(SAMPLE).then(Instant::now);
        let result = call(instance).map_err(|trap| instance.explained(trap));
        if let Some(began) = began {
            figures.nanoseconds.add(began.elapsed().as_nanos() as u64 * SAMPLE);
        }
        self.settle(instance, permit, &result);
        result
    }

    /// Returns a fresh instance for this worker.
    pub(super) fn fresh(&self, need: Need) -> Result<Box<Instance>, Trap> {
        let need = if self.is_released.get() { Need::Last } else { need };
        self.supply().obtain(&self.binding, &self.share, need).map(|instance| self.adopt(instance))
    }

    /// Hands an instance of the maker's to this worker.
    pub fn adopt(&self, mut instance: Box<Instance>) -> Box<Instance> {
        instance.adopt(&self.binding, &self.place);
        instance
    }

    /// Orders an instance from the thread that makes them; a balancer's knows the endpoints `members`.
    pub fn order(&self, members: Option<Arc<Members>>) -> Ordered {
        self.supply().maker().order(&self.binding, members)
    }

    /// Has an instance made by the thread for that, and waits for it.
    pub async fn made(&self, members: Option<Arc<Members>>) -> Result<Box<Instance>, Trap> {
        Ok(self.adopt(self.order(members).wait().await?))
    }

    /// Whether endpoints are passed to a balancer quickly enough to do so on the worker.
    pub fn tells_quickly(&self) -> bool {
        self.supply().is_telling_cheap()
    }

    /// Passes endpoints to the balancer in a slot.
    pub fn tell(&self, slot: &Slot, members: &Arc<Members>) -> Result<(), Trap> {
        self.call(slot, |instance| self.telling(instance, members))
    }

    /// Passes endpoints to an instance of a balancer, on a worker.
    pub fn telling(&self, instance: &mut Instance, members: &Arc<Members>) -> Result<(), Trap> {
        let time = self.binding.limits.cpu.min(TICK);
        self.supply().measure_telling(|| instance.endpoints_changed(members, time))
    }

    /// Logs and counts a failed call of a hook, in an exchange if there is one. Of calls that were not made, the first one
    /// in a minute is logged.
    pub fn failed(&self, hook: &'static str, trap: &Trap, exchange: Option<&Exchange>) {
        let Some(rejection) = trap.rejection() else {
            self.figures.failures.add(1);
            return self.binding.reporter.failed(hook, trap, exchange);
        };
        self.figures.rejected[rejection as usize].add(1);
        if self.supply().is_log_due(rejection, Instant::now()) {
            tracing::warn!(plugin = &*self.binding.name, reason = %trap, hook, "plugin not called");
        }
    }

    pub(super) fn supply(&self) -> &Supply {
        &self.binding.supply
    }

    /// Returns the time until the share admits calls again; `None` if it does now.
    pub(super) fn wait(&self) -> Option<Duration> {
        if self.share.is_spent() { self.share.wait(Instant::now()) } else { None }
    }

    /// The error of a call that the share does not admit.
    pub(super) fn spent(&self) -> Trap {
        Trap::Share(self.binding.limits.share)
    }

    #[cold]
    fn admit_slowly(&self, now: Instant) -> Result<Permit, Trap> {
        if self.share.is_spent() && self.share.wait(now).is_some() {
            return Err(self.spent());
        }
        self.supply().breaker.admit(now).ok_or(Trap::Open)
    }

    fn settle<R>(&self, instance: &mut Instance, permit: Permit, result: &Result<R, Trap>) {
        let breaker = &self.supply().breaker;
        let since_tick = instance.cpu_since_tick();
        let outcome = match result {
            Err(Trap::Deadline(_)) => Outcome::Late,
            result if is_whole(result) => Outcome::Returned,
            _ => Outcome::Failed,
        };
        if permit == Permit::Usual && outcome == Outcome::Returned && since_tick.is_none() {
            return breaker.end_row();
        }
        let now = Instant::now();
        if let Some(since_tick) = since_tick {
            self.share.charge_ticks(since_tick, now);
        }
        breaker.settle(permit, outcome, now);
        instance.set_budget(Duration::MAX);
    }

    pub(super) fn settle_without_call(&self, permit: Permit, trap: &Trap) {
        let outcome = if matches!(trap, Trap::Deadline(_)) { Outcome::Late } else { Outcome::Failed };
        if matches!(permit, Permit::Trial(_)) {
            self.supply().breaker.settle(permit, outcome, Instant::now());
        }
    }
}

/// Whether an instance may serve further calls after one with this result.
pub(super) fn is_whole<R>(result: &Result<R, Trap>) -> bool {
    matches!(result, Ok(_) | Err(Trap::Failed(_) | Trap::Senseless(_) | Trap::Refused(_) | Trap::NoHook))
}
