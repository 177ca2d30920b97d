//! Everything that workers and generations share about one version of a configured plugin: instances made ahead, the
//! breaker, and counts. A version is a component with a name, a configuration, limits, an isolation and grants; a reload
//! that changes none of them keeps all of this.
//!
//! Locks here are taken when an instance is lost or made, not by calls that find their worker's instance in its slot.
#![expect(
    clippy::disallowed_methods,
    reason = "instances are made rarely, also on threads without a clock of a worker"
)]

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::call_error::PluginFailure;
use super::client_breakers::ClientBreakers;
use super::cover::Cover;
use super::engine::Plugin;
use super::instance::{Instance, InstanceRecipe};
use super::instance_limit::ReservedInstances;
use super::instance_orders::{InstanceOrders, OrderedInstance, WantedInstance};
use super::log_lines::PluginLog;
use super::plugin_config::PluginConfig;
use super::settings::Isolation;
use super::waiting_limit::{RESERVED_CALLS, WaitingLimit};
use crate::system::client_places::{ClientPlaces, FEW};
use crate::system::thread_time::timed;
use crate::telemetry::metrics::CallRejection;

/// The versions that are in use.
#[derive(Clone)]
pub struct PluginVersions {
    known: Arc<Mutex<Vec<Weak<PluginVersion>>>>,
    orders: InstanceOrders<PluginVersion>,
}

/// The shared part of a configured plugin.
pub struct PluginVersion {
    pub(super) name: Arc<str>,
    pub(super) recipe: InstanceRecipe,
    pub(super) isolation: Isolation,
    pub breakers: ClientBreakers,
    orders: InstanceOrders<PluginVersion>,
    #[allow(clippy::vec_box, reason = "instances move between slots without being copied")]
    spares: Mutex<Vec<Box<Instance>>>,
    /// Whether the maker has an order for a spare instance.
    is_ordered: AtomicBool,
    /// Whether the last attempt to make an instance failed.
    is_failing: AtomicBool,
    /// The CPU time that the last instance took, in microseconds.
    making: AtomicU32,
    /// The CPU time that `endpoints-changed` took the last time, in microseconds.
    telling: AtomicU32,
    /// The places of the bodies that pass through the plugin.
    pub(super) bodies: Arc<ClientPlaces>,
    /// The bytes that the decoders of bodies hold.
    pub(super) decoders: AtomicU64,
    /// The limit of calls that may wait.
    pub(super) waiting: WaitingLimit,
    /// The places for bodies and calls.
    pub(super) cover: Cover,
    began: Instant,
    /// The time at which each kind of rejection was last logged, in milliseconds since `began`, plus one; 0 before the
    /// first.
    logged: [AtomicU64; CallRejection::ALL.len()],
}

/// The reason why a worker needs an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InstanceNeed {
    /// The worker has lost its instance.
    Loss,
    /// The plugin filters one more body at a time.
    Body,
    /// The generation has no instance, since no new exchange uses it.
    Last,
}

/// The maximum time of work that a worker does itself. Longer work is left to the maker's thread, because it would
/// delay other exchanges.
const CHEAP: Duration = Duration::from_millis(if cfg!(debug_assertions) { 8 } else { 2 });

/// The CPU time that a worker may take to make an instance. In builds without optimisation, the host's part of that takes
/// several times as long.
const MAKING: Duration = Duration::from_millis(if cfg!(debug_assertions) { 20 } else { 5 });

/// The factor by which the host's part in plugins takes longer in builds without optimisation.
pub(super) const SLOWNESS: u32 = if cfg!(debug_assertions) { 4 } else { 1 };

/// The number of bodies for which each plugin has reserved places. Further bodies use free places.
pub const RESERVED_BODIES: u32 = 32;

/// The number of spare instances: one covers a trap until the next one is made.
pub const SPARES: usize = 1;

/// The number of spare instances of plugins that get a fresh one for each call and take longer than [`CHEAP`] to make.
pub const SPARES_PER_CALL: usize = 16;

/// The pause between two log lines about rejected calls, for each kind and version.
const LOG_PAUSE: Duration = Duration::from_secs(60);

impl PluginVersions {
    /// Returns an empty set of versions, whose orders for instances go to a thread.
    pub(super) fn new(orders: InstanceOrders<PluginVersion>) -> Self {
        PluginVersions { known: Arc::default(), orders }
    }

    /// Returns the shared part of a version, which may be in use already.
    pub(super) fn of(&self, wanted: &PluginConfig) -> Arc<PluginVersion> {
        let PluginConfig { name, plugin, config, limits, isolation, access, .. } = wanted;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|version| version.strong_count() > 0);
        let is_it = |version: &Arc<PluginVersion>| {
            let recipe = &version.recipe;
            let is_alike = Arc::ptr_eq(&recipe.plugin, plugin) && recipe.limits == *limits && recipe.config == *config;
            is_alike && recipe.access.is_same(access) && version.isolation == *isolation && version.name == *name
        };
        if let Some(version) = known.iter().filter_map(Weak::upgrade).find(is_it) {
            return version;
        }
        let recipe = InstanceRecipe {
            plugin: plugin.clone(),
            config: config.clone(),
            limits: *limits,
            lines: PluginLog::new(name.clone()),
            access: access.clone(),
            metrics: OnceLock::new(),
            live: Arc::default(),
        };
        let version = Arc::new(PluginVersion::new(name.clone(), recipe, *isolation, self.orders.clone()));
        known.push(Arc::downgrade(&version));
        version
    }
}

impl PluginVersions {
    /// Returns the component of the newest version of a plugin that is in use; `None` if none is.
    pub fn in_use(&self, name: &str) -> Option<Arc<Plugin>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = known.iter().rev().filter_map(Weak::upgrade);
        versions.into_iter().find(|version| *version.name == *name).map(|version| version.recipe.plugin.clone())
    }
}

impl PluginVersion {
    fn new(
        name: Arc<str>,
        recipe: InstanceRecipe,
        isolation: Isolation,
        orders: InstanceOrders<PluginVersion>,
    ) -> Self {
        let now = Instant::now();
        PluginVersion {
            breakers: ClientBreakers::new(name.clone(), now),
            waiting: WaitingLimit::new(recipe.limits.waiting),
            // As many bodies wait as may pass.
            bodies: ClientPlaces::new(recipe.limits.bodies, recipe.limits.bodies, FEW),
            name,
            recipe,
            isolation,
            orders,
            spares: Mutex::default(),
            is_ordered: AtomicBool::new(false),
            is_failing: AtomicBool::new(false),
            making: AtomicU32::new(0),
            telling: AtomicU32::new(0),
            decoders: AtomicU64::new(0),
            cover: Cover::default(),
            began: now,
            logged: Default::default(),
        }
    }

    /// Records that a generation has no places for the version's bodies and calls any more. Those that are under way keep
    /// theirs.
    pub(super) fn end_cover(&self, reserved: Option<&mut ReservedInstances>) {
        self.cover.end(reserved, || {
            let bodies = self.bodies.taken().min(RESERVED_BODIES);
            let calls = self.waiting.instances.load(Ordering::SeqCst).min(RESERVED_CALLS);
            (bodies + calls, calls)
        });
        if self.cover.has_ended() {
            self.spares.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Whether an instance could not be made the last time.
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// Returns the number of spare instances.
    pub fn spares(&self) -> usize {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns the number of live instances, over all workers and generations.
    pub fn live(&self) -> u32 {
        self.recipe.live.load(Ordering::Relaxed)
    }

    /// Whether a rejection of this kind is to be logged: once a minute.
    pub fn is_log_due(&self, rejection: CallRejection, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.began).as_millis() as u64 + 1;
        let last = &self.logged[rejection as usize];
        let before = last.load(Ordering::Relaxed);
        let is_due = before == 0 || now.saturating_sub(before) >= LOG_PAUSE.as_millis() as u64;
        is_due && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Notes that the last instance was not made for a reason that is no failure of the plugin.
    pub(super) fn lacked_place(&self) {
        self.is_failing.store(false, Ordering::Relaxed);
    }

    /// Makes an instance, and notes the CPU time that was used.
    pub(super) fn measure<R, E>(&self, make: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        let (made, time) = timed(make);
        store_micros(&self.making, time);
        self.is_failing.store(made.is_err(), Ordering::Relaxed);
        made
    }

    /// Passes endpoints to a balancer, and notes the CPU time that was used.
    pub(super) fn measure_telling<R>(&self, tell: impl FnOnce() -> R) -> R {
        let (outcome, time) = timed(tell);
        store_micros(&self.telling, time);
        outcome
    }

    /// Keeps an instance as a spare one, unless there are enough.
    pub(super) fn keep(&self, mut instance: Box<Instance>) {
        instance.counted.get_or_insert_with(|| self.recipe.count());
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        if spares.len() < self.wanted() {
            spares.push(instance);
        }
    }

    /// Whether more spare instances are wanted.
    pub(super) fn is_short(&self) -> bool {
        self.spares() < self.wanted()
    }

    /// The order for a spare instance has been handled.
    pub(super) fn order_done(&self) {
        self.is_ordered.store(false, Ordering::Release);
    }

    fn wanted(&self) -> usize {
        match self.isolation {
            // Their places are those of the generations.
            _ if self.cover.has_ended() => 0,
            Isolation::Request if !self.is_cheap() => SPARES_PER_CALL,
            _ => SPARES,
        }
    }

    /// Whether workers may make instances themselves.
    fn is_cheap(&self) -> bool {
        !self.is_failing() && u128::from(self.making.load(Ordering::Relaxed)) <= CHEAP.as_micros()
    }

    /// Whether an instance is made in the CPU time of a call.
    fn fits_a_call(&self) -> bool {
        u128::from(self.making.load(Ordering::Relaxed)) <= self.recipe.limits.cpu.as_micros()
    }

    /// Whether workers may pass endpoints to a balancer themselves.
    pub(super) fn is_telling_cheap(&self) -> bool {
        u128::from(self.telling.load(Ordering::Relaxed)) <= CHEAP.as_micros()
    }

    /// Returns an instance at once, for a call on a worker that has none. The instance is a spare one, or a new one if
    /// making it is cheap, if it fits into the CPU time of a call, or if the need is no loss. `charge` gets the time in which
    /// a new one was made.
    pub(super) fn obtain(
        self: &Arc<Self>,
        need: InstanceNeed,
        charge: impl FnOnce(Duration),
    ) -> Result<Box<Instance>, PluginFailure> {
        if self.isolation == Isolation::Request && self.is_cheap() {
            // Waking the maker's thread for each call would cost more than it saves.
            return self.make(self.recipe.limits.cpu, charge);
        }
        let spare = self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if need != InstanceNeed::Last {
            self.order();
        }
        let is_loss = need == InstanceNeed::Loss && self.isolation == Isolation::Worker;
        match spare {
            Some(spare) => Ok(spare),
            None if self.is_cheap() => self.make(self.recipe.limits.cpu.min(MAKING), charge),
            None if need == InstanceNeed::Last => self.make(self.recipe.limits.cpu, charge),
            // More exchanges at a time than ever before are no fault of the plugin's; and a loss is to harm no other request
            // as long as the share pays for a new instance that takes no longer than a call.
            None if !self.is_failing() && (!is_loss || self.fits_a_call()) => self.make(self.recipe.limits.cpu, charge),
            None if self.is_failing() => {
                Err(PluginFailure::NoInstance("the last one could not be made, it is tried again later"))
            }
            None => Err(PluginFailure::NoInstance("instances are lost faster than they are made")),
        }
    }

    /// Orders a spare instance, unless one is ordered already.
    pub(super) fn order(self: &Arc<Self>) {
        if !self.is_ordered.swap(true, Ordering::AcqRel) && !self.orders.order_spare(self) {
            self.order_done();
        }
    }

    /// Orders an instance for a worker.
    pub(super) fn order_for_worker(self: &Arc<Self>, wanted: WantedInstance) -> OrderedInstance {
        self.orders.order(self, wanted)
    }

    /// Makes an instance on a worker.
    fn make(self: &Arc<Self>, time: Duration, charge: impl FnOnce(Duration)) -> Result<Box<Instance>, PluginFailure> {
        let (made, took) = timed(|| Instance::new(&self.recipe, None, time));
        charge(took);
        if let Err(failure) = &made {
            // The maker finds out if it is only that this took longer than usual.
            self.is_failing.store(!matches!(failure, PluginFailure::NoPlace), Ordering::Relaxed);
            self.order();
        }
        made.map(Box::new)
    }
}

fn store_micros(cell: &AtomicU32, time: Duration) {
    cell.store(u32::try_from(time.as_micros()).unwrap_or(u32::MAX), Ordering::Relaxed);
}
