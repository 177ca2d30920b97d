//! Figures: each written by one worker alone, and added up when somebody asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Kind;
use crate::head::CacheOutcome;

/// All figures of the process; they outlive generations.
#[derive(Default)]
pub struct Registry {
    routes: PerWorker<RouteFigures>,
    plugins: PerWorker<PluginFigures>,
    caches: PerWorker<CacheFigures>,
    custom: Mutex<BTreeMap<CustomOwner, Arc<Custom>>>,
    /// Times that the control thread was held up; written by the watchdog.
    pub control_holds: Count,
}

/// A worker's place in a registry.
#[derive(Clone)]
pub struct Place {
    pub registry: Arc<Registry>,
    pub worker: usize,
}

/// A figure that a plugin defined, as one worker sees it.
#[derive(Debug)]
pub struct Custom {
    pub name: String,
    pub kind: CustomKind,
    pub help: String,
    /// The bits of a number.
    value: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CustomKind {
    Counter,
    Gauge,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct CustomOwner {
    plugin: Arc<str>,
    name: String,
    kind: CustomKind,
    worker: usize,
}

/// Figures of things with names, each worker's apart; locked at a swap and when somebody asks, never by a request.
struct PerWorker<T>(Mutex<BTreeMap<Owner, Arc<T>>>);

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    name: Arc<str>,
    worker: usize,
}

/// A number that one thread writes: no bus lock, unlike an addition that several could make.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

/// A worker's figures of a route.
#[derive(Debug, Default)]
pub struct RouteFigures {
    /// By the first digit of the status.
    pub responses: [Count; 6],
    /// By the kind of failure, in the order of [`Kind::ALL`].
    pub errors: [Count; Kind::ALL.len()],
    pub request_bytes: Count,
    pub response_bytes: Count,
    /// Exchanges that took no longer than [`BOUNDS`], and in the last place all longer ones.
    pub durations: [Count; BOUNDS.len() + 1],
    pub duration_us: Count,
}

/// A worker's figures of a plugin.
#[derive(Debug, Default)]
pub struct PluginFigures {
    pub calls: Count,
    pub failures: Count,
    /// Of every [`SAMPLE`]th call, times [`SAMPLE`].
    pub nanoseconds: Count,
}

/// A worker's figures of a cache, by what became of requests.
#[derive(Debug, Default)]
pub struct CacheFigures {
    requests: [Count; CacheOutcome::ALL.len()],
    /// Responses that were stored, and validated ones.
    pub stored: Count,
    /// Responses that weren't, in the order of [`REFUSALS`].
    pub refused: [Count; REFUSALS.len()],
}

impl CacheFigures {
    /// Requests of which that became.
    pub fn requests(&self, outcome: CacheOutcome) -> &Count {
        &self.requests[outcome as usize]
    }
}

/// Why responses are not stored.
pub const REFUSALS: [&str; 9] =
    ["no-store", "private", "authorization", "status", "no-lifetime", "set-cookie", "vary", "too-large", "other"];

/// Upper bounds of the duration histogram, in microseconds.
pub const BOUNDS: [u64; 12] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];

/// Reading the clock twice costs a tenth of a small filter, so only one call in so many is timed.
pub const SAMPLE: u64 = 16;

impl Registry {
    /// A worker's figures of a route, by name.
    pub fn route(&self, name: &Arc<str>, worker: usize) -> Arc<RouteFigures> {
        self.routes.of(name, worker)
    }

    /// A worker's figures of a plugin, by name.
    pub fn plugin(&self, name: &Arc<str>, worker: usize) -> Arc<PluginFigures> {
        self.plugins.of(name, worker)
    }

    /// A worker's figures of a cache, by the name of its plugin.
    pub fn cache(&self, name: &Arc<str>, worker: usize) -> Arc<CacheFigures> {
        self.caches.of(name, worker)
    }

    /// The figures of all caches, each cache's workers together.
    pub fn caches(&self) -> BTreeMap<Arc<str>, Vec<Arc<CacheFigures>>> {
        self.caches.by_name()
    }

    /// The figures of all routes, each route's workers together.
    pub fn routes(&self) -> BTreeMap<Arc<str>, Vec<Arc<RouteFigures>>> {
        self.routes.by_name()
    }

    /// The figures of all plugins, each plugin's workers together.
    pub fn plugins(&self) -> BTreeMap<Arc<str>, Vec<Arc<PluginFigures>>> {
        self.plugins.by_name()
    }
}

impl<T: Default> PerWorker<T> {
    fn of(&self, name: &Arc<str>, worker: usize) -> Arc<T> {
        let mut figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        figures.entry(Owner { name: name.clone(), worker }).or_default().clone()
    }

    fn by_name(&self) -> BTreeMap<Arc<str>, Vec<Arc<T>>> {
        let mut together: BTreeMap<Arc<str>, Vec<Arc<T>>> = BTreeMap::new();
        for (owner, figures) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            together.entry(owner.name.clone()).or_default().push(figures.clone());
        }
        together
    }
}

impl<T> Default for PerWorker<T> {
    fn default() -> Self {
        PerWorker(Mutex::default())
    }
}

impl Registry {
    /// The plugins' own figures: plugin, figure, and the sum over all workers.
    pub fn custom(&self) -> Vec<(Arc<str>, Arc<Custom>, f64)> {
        let mut sums: Vec<(Arc<str>, Arc<Custom>, f64)> = Vec::new();
        for (owner, custom) in self.custom.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            match sums.last_mut() {
                Some((plugin, known, sum))
                    if *plugin == owner.plugin && known.name == owner.name && known.kind == owner.kind =>
                {
                    *sum += custom.value();
                }
                _ => sums.push((owner.plugin.clone(), custom.clone(), custom.value())),
            }
        }
        sums
    }
}

impl Place {
    /// The worker's figure of that name and kind: this one, if there is none yet.
    pub fn custom(&self, plugin: &Arc<str>, new: Custom) -> Arc<Custom> {
        let owner = CustomOwner { plugin: plugin.clone(), name: new.name.clone(), kind: new.kind, worker: self.worker };
        let mut all = self.registry.custom.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(owner).or_insert_with(|| Arc::new(new)).clone()
    }
}

impl Custom {
    pub fn new(name: String, kind: CustomKind, help: String) -> Self {
        Custom { name, kind, help, value: AtomicU64::new(0f64.to_bits()) }
    }

    /// Adds; a counter ignores what would lower it, and neither takes what is no number.
    pub fn add(&self, amount: f64) {
        if amount.is_finite() && (self.kind == CustomKind::Gauge || amount >= 0.0) {
            self.value.store((self.value() + amount).to_bits(), Ordering::Relaxed);
        }
    }

    pub fn value(&self) -> f64 {
        f64::from_bits(self.value.load(Ordering::Relaxed))
    }
}

impl Count {
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl RouteFigures {
    /// Counts an exchange that is over.
    pub fn ended(&self, status: u16, error: Option<Kind>, bytes: u64, took: Duration) {
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
