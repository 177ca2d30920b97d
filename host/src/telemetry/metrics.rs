//! Metrics: each is written by one worker alone, and summed when it is read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::body::buffer_space::BufferUse;
use crate::context::CacheOutcome;
use crate::error::FailureKind;

/// All metrics of the process. Each metric is kept as long as a generation has its owner, so that it continues over
/// reloads.
#[derive(Default)]
pub struct Registry {
    routes: PerOwner<Owner, RouteMetrics>,
    plugins: PerOwner<Owner, PluginMetrics>,
    caches: PerOwner<Owner, CacheMetrics>,
    custom: PerOwner<PluginMetricOwner, PluginMetric>,
    /// The bodies that wait for a slow peer.
    pub buffers: Arc<BufferUse>,
    /// The number of times that the control thread was blocked; written by the watchdog.
    pub control_holds: Counter,
    /// The key of the limit for which exchanges are cut off as the process stops; unset before, and `None` without a
    /// limit.
    pub cut_off: OnceLock<Option<&'static str>>,
}

/// A worker's metrics in a registry.
#[derive(Clone)]
pub struct WorkerMetrics {
    pub registry: Arc<Registry>,
    pub worker: usize,
}

/// A metric that a plugin defined, with its values on one worker.
#[derive(Debug)]
pub struct PluginMetric {
    pub definition: PluginMetricDefinition,
    /// The bits of a floating-point number.
    value: AtomicU64,
}

/// The definition of a plugin's own metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginMetricDefinition {
    pub name: String,
    pub kind: PluginMetricKind,
    pub help: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PluginMetricKind {
    Counter,
    Gauge,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct PluginMetricOwner {
    plugin: Arc<str>,
    name: String,
    kind: PluginMetricKind,
    worker: usize,
}

/// Metrics by their owners, kept as long as a generation holds them. The lock is acquired at a swap and when the admin
/// listener reads, never by a request.
struct PerOwner<O, T>(Mutex<Owned<O, T>>);

struct Owned<O, T> {
    figures: BTreeMap<O, Weak<T>>,
    /// The number of entries at which the unused ones are removed.
    sweep_at: usize,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    name: Arc<str>,
    worker: usize,
}

/// A counter that one thread writes: no bus lock, unlike an addition that several threads could make.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A worker's metrics of a route.
#[derive(Debug, Default)]
pub struct RouteMetrics {
    /// The number of responses, by the first digit of the status.
    pub responses: [Counter; 6],
    /// The number of failures, in the order of [`FailureKind::ALL`].
    pub errors: [Counter; FailureKind::ALL.len()],
    pub request_bytes: Counter,
    pub response_bytes: Counter,
    /// The number of exchanges by duration, with the upper bounds of [`BOUNDS`]; the last element counts all longer
    /// ones.
    pub durations: [Counter; BOUNDS.len() + 1],
    pub duration_us: Counter,
}

/// A worker's metrics of a plugin.
#[derive(Debug, Default)]
pub struct PluginMetrics {
    pub calls: Counter,
    pub failures: Counter,
    /// The number of rejected calls, in the order of [`CallRejection::ALL`].
    pub rejected: [Counter; CallRejection::ALL.len()],
    /// The estimated time of all calls, in nanoseconds: the time of every [`SAMPLE_EVERY`]th call, times [`SAMPLE_EVERY`].
    pub nanoseconds: Counter,
}

/// The reason why a plugin is not called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallRejection {
    /// The plugin has used its share of the worker's time.
    Share,
    /// The plugin's breaker is open.
    Breaker,
    /// The plugin has lost its instance, and no other is ready.
    Instance,
    /// The plugin has reached `limits.bodies`.
    Bodies,
    /// The plugin has reached `limits.waiting-calls`, and its queue is full or too slow.
    Waiting,
    /// The body is none that the plugin takes.
    Content,
}

/// A worker's metrics of a cache, by the outcome of requests.
#[derive(Debug, Default)]
pub struct CacheMetrics {
    requests: [Counter; CacheOutcome::ALL.len()],
    /// The number of responses that were stored or validated.
    pub stored: Counter,
    /// The number of responses that weren't stored, in the order of [`REFUSALS`].
    pub refused: [Counter; REFUSALS.len()],
}

impl CacheMetrics {
    /// Returns the counter of requests with an outcome.
    pub fn requests(&self, outcome: CacheOutcome) -> &Counter {
        &self.requests[outcome as usize]
    }
}

/// The reasons why responses are not stored.
pub const REFUSALS: [&str; 10] = [
    "no-store",
    "private",
    "authorization",
    "status",
    "no-lifetime",
    "set-cookie",
    "vary",
    "too-large",
    "other",
    "disk-failed",
];

/// The upper bounds of the duration histogram, in microseconds.
pub const BOUNDS: [u64; 12] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];

/// The interval of timed calls, one in `SAMPLE`: reading the clock twice costs a tenth of a small filter.
pub const SAMPLE_EVERY: u64 = 16;

impl Registry {
    /// Returns a worker's metrics of a route, by name.
    pub fn route(&self, name: &Arc<str>, worker: usize) -> Arc<RouteMetrics> {
        self.routes.of_worker(name, worker)
    }

    /// Returns a worker's metrics of a plugin, by name.
    pub fn plugin(&self, name: &Arc<str>, worker: usize) -> Arc<PluginMetrics> {
        self.plugins.of_worker(name, worker)
    }

    /// Returns a worker's metrics of a cache, by the name of its plugin.
    pub fn cache(&self, name: &Arc<str>, worker: usize) -> Arc<CacheMetrics> {
        self.caches.of_worker(name, worker)
    }

    /// Returns the metrics of all caches, with all workers of each cache.
    pub fn caches(&self) -> BTreeMap<Arc<str>, Vec<Arc<CacheMetrics>>> {
        self.caches.by_name()
    }

    /// Returns the metrics of all routes, with all workers of each route.
    pub fn routes(&self) -> BTreeMap<Arc<str>, Vec<Arc<RouteMetrics>>> {
        self.routes.by_name()
    }

    /// Returns the metrics of all plugins, with all workers of each plugin.
    pub fn plugins(&self) -> BTreeMap<Arc<str>, Vec<Arc<PluginMetrics>>> {
        self.plugins.by_name()
    }
}

impl CallRejection {
    /// All reasons, in the order of their declaration.
    pub const ALL: [CallRejection; 6] = [
        CallRejection::Share,
        CallRejection::Breaker,
        CallRejection::Instance,
        CallRejection::Bodies,
        CallRejection::Waiting,
        CallRejection::Content,
    ];

    /// Returns the word for the reason.
    pub fn word(self) -> &'static str {
        match self {
            CallRejection::Share => "share",
            CallRejection::Breaker => "breaker",
            CallRejection::Instance => "instance",
            CallRejection::Bodies => "bodies",
            CallRejection::Waiting => "waiting",
            CallRejection::Content => "content",
        }
    }
}

impl<O: Ord, T> PerOwner<O, T> {
    /// Returns the metrics of an owner: new ones, if no generation holds any.
    fn of(&self, owner: O, new: impl FnOnce() -> T) -> Arc<T> {
        let mut owned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if owned.figures.len() >= owned.sweep_at {
            owned.sweep();
        }
        if let Some(known) = owned.figures.get(&owner).and_then(Weak::upgrade) {
            return known;
        }
        let figures = Arc::new(new());
        owned.figures.insert(owner, Arc::downgrade(&figures));
        figures
    }

    /// Calls a function with all metrics that a generation holds, in the order of their owners.
    fn each(&self, mut call: impl FnMut(&O, Arc<T>)) {
        let mut owned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        owned.sweep();
        owned
            .figures
            .iter()
            .filter_map(|(owner, figures)| Some((owner, figures.upgrade()?)))
            .for_each(|(owner, figures)| call(owner, figures));
    }
}

impl<O: Ord, T> Owned<O, T> {
    fn sweep(&mut self) {
        self.figures.retain(|_, figures| figures.strong_count() > 0);
        self.sweep_at = (self.figures.len() * 2).max(SWEEP_AT);
    }
}

/// The minimum number of entries for a sweep.
const SWEEP_AT: usize = 64;

impl<T: Default> PerOwner<Owner, T> {
    fn of_worker(&self, name: &Arc<str>, worker: usize) -> Arc<T> {
        self.of(Owner { name: name.clone(), worker }, T::default)
    }

    fn by_name(&self) -> BTreeMap<Arc<str>, Vec<Arc<T>>> {
        let mut together: BTreeMap<Arc<str>, Vec<Arc<T>>> = BTreeMap::new();
        self.each(|owner, figures| together.entry(owner.name.clone()).or_default().push(figures));
        together
    }
}

impl<O: Ord, T> Default for PerOwner<O, T> {
    fn default() -> Self {
        PerOwner(Mutex::new(Owned { figures: BTreeMap::new(), sweep_at: SWEEP_AT }))
    }
}

impl Registry {
    /// Returns the plugins' own metrics: plugin, metric, and the sum over all workers.
    pub fn custom(&self) -> Vec<(Arc<str>, Arc<PluginMetric>, f64)> {
        let mut sums: Vec<(Arc<str>, Arc<PluginMetric>, f64)> = Vec::new();
        self.custom.each(|owner, custom| match sums.last_mut() {
            Some((plugin, known, sum))
                if *plugin == owner.plugin
                    && known.definition.name == owner.name
                    && known.definition.kind == owner.kind =>
            {
                *sum += custom.value();
            }
            _ => sums.push((owner.plugin.clone(), custom.clone(), custom.value())),
        });
        sums
    }
}

impl WorkerMetrics {
    /// Returns the worker's metric of a plugin by its definition.
    pub fn custom(&self, plugin: &Arc<str>, definition: &PluginMetricDefinition) -> Arc<PluginMetric> {
        let PluginMetricDefinition { name, kind, .. } = definition;
        let owner = PluginMetricOwner { plugin: plugin.clone(), name: name.clone(), kind: *kind, worker: self.worker };
        self.registry.custom.of(owner, || PluginMetric::new(definition.clone()))
    }
}

impl PluginMetric {
    pub fn new(definition: PluginMetricDefinition) -> Self {
        PluginMetric { definition, value: AtomicU64::new(0f64.to_bits()) }
    }

    /// Adds an amount. A counter ignores negative amounts, and all metrics ignore amounts that are not a number.
    pub fn add(&self, amount: f64) {
        if amount.is_finite() && (self.definition.kind == PluginMetricKind::Gauge || amount >= 0.0) {
            self.value.store((self.value() + amount).to_bits(), Ordering::Relaxed);
        }
    }

    pub fn value(&self) -> f64 {
        f64::from_bits(self.value.load(Ordering::Relaxed))
    }
}

impl Counter {
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl RouteMetrics {
    /// Counts an exchange that has ended.
    pub fn record_end(&self, status: u16, error: Option<FailureKind>, bytes: u64, took: Duration) {
        let took = took.as_micros() as u64;
        self.responses[usize::from(status / 100).min(5)].add(1);
        if let Some(kind) = error {
            self.errors[kind as usize].add(1);
        }
        self.response_bytes.add(bytes);
        self.duration_us.add(took);
        self.durations[BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len())].add(1);
    }
}
