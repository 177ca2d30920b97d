//! A running configuration: immutable and shared, and each worker's own view of it with live instances and pools.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::mpsc;

use crate::access_log::AccessLog;
use crate::cache::store::{Limits, Store};
use crate::head::Head;
use crate::listener::Listener;
use crate::metrics::{CacheFigures, Place, PluginFigures, RouteFigures};
use crate::plugin::binding::Binding;
use crate::plugin::instance::{Instance, Slot, Trap};
use crate::plugin::transform::Bodies;
use crate::respond::ErrorPages;
use crate::router::Router;
use crate::upstream::discovery::Plan;
use crate::upstream::live::Live;
use crate::upstream::retry::{self, Budget};
use crate::upstream::seats::Seats;
use crate::upstream::slots::Slots;
use crate::upstream::{Pools, Rules};

/// What stands for the route of requests that none matches.
pub const UNROUTED: &str = "-";

/// All that decides what happens to a request.
pub struct Generation {
    pub router: Router,
    /// In the order of the router's places.
    pub routes: Vec<Route>,
    pub upstreams: Vec<Upstream>,
    pub upstream_places: HashMap<Arc<str>, usize>,
    pub bindings: Vec<Binding>,
    /// By their addresses in the manifest.
    pub listeners: HashMap<Arc<str>, Arc<Listener>>,
    pub error_pages: ErrorPages,
    /// Who is asked about names; the system's where there are none.
    pub name_servers: Vec<SocketAddr>,
    /// Responses of all routes; outlives the generation.
    pub store: Arc<Store>,
    pub store_limits: Limits,
    /// None if it is off.
    pub access_log: Option<AccessLog>,
}

/// Where a matched request goes.
pub struct Route {
    pub name: Arc<str>,
    /// A place in `upstreams`.
    pub upstream: usize,
    /// Places in `bindings`, outermost first.
    pub chain: Vec<usize>,
    /// The longest content of a request, in bytes.
    pub max_body: u64,
    /// For a whole exchange.
    pub timeout: Option<Duration>,
}

/// A named set of endpoints.
pub struct Upstream {
    pub name: Arc<str>,
    /// Who is in the set at the moment; outlives the generation.
    pub live: Arc<Live>,
    /// Who is to be in it, and how they are looked after.
    pub plan: Plan,
    /// A place in `bindings`; nobody is asked about a single endpoint.
    pub balancer: Option<usize>,
    pub rules: Rules,
    pub retry: retry::Policy,
    pub slots: Slots,
    /// Requests at a time, over all workers.
    pub most_in_flight: u32,
}

/// A worker's view of a generation. An exchange holds on to the one that it began with.
pub struct Running {
    pub generation: Arc<Generation>,
    /// One instance per binding is enough: a hook runs to its end before the worker does anything else.
    pub filters: Vec<RefCell<Slot>>,
    /// Bodies that pass through each binding at the moment.
    pub bodies: Vec<Bodies>,
    pub upstreams: Vec<RunningUpstream>,
    /// This worker's figures, by the places of routes and bindings.
    pub routes: Vec<Arc<RouteFigures>>,
    /// By their places. Copies of this worker's own: each exchange counts its use of them, and workers would get in each
    /// other's way if they did that in one place.
    pub route_names: Vec<Arc<str>>,
    pub unrouted: Arc<RouteFigures>,
    pub plugins: Vec<Arc<PluginFigures>>,
    pub caches: Vec<Arc<CacheFigures>>,
    /// Where this worker's figures are kept.
    pub place: Place,
    /// The worker waits for all who hold what this gives.
    pub alive: mpsc::WeakSender<()>,
    pools: Rc<Pools>,
    timers: Vec<Timer>,
}

/// An instance whose timer is called.
struct Timer {
    whose: Timed,
    binding: usize,
    interval: Duration,
    last: Cell<Instant>,
}

#[derive(Clone, Copy)]
enum Timed {
    /// That of a binding in chains.
    Filter,
    /// That of the upstream at a place.
    Balancer(usize),
}

/// A worker's view of an upstream.
pub struct RunningUpstream {
    pub name: Arc<str>,
    pub budget: RefCell<Budget>,
    /// Those of the upstream, at hand for what outlives a borrow of it.
    pub rules: Rc<Rules>,
    seats: RefCell<Rc<Seats>>,
    /// None where nobody is asked.
    balancer: Option<RefCell<Slot>>,
}

impl Running {
    /// Makes the worker's view, with its instances warm.
    pub fn new(
        generation: Arc<Generation>,
        pools: &Rc<Pools>,
        place: Place,
        alive: mpsc::WeakSender<()>,
        now: Instant,
    ) -> Result<Self, Trap> {
        let slot = |binding: &Binding| RefCell::new(Slot::new(binding.isolation));
        let balancer = |upstream: &Upstream| upstream.balancer.map(|binding| slot(&generation.bindings[binding]));
        let view = |upstream: &Upstream| RunningUpstream {
            name: Arc::from(&*upstream.name),
            budget: RefCell::new(Budget::new(now)),
            rules: Rc::new(upstream.rules),
            seats: RefCell::new(Rc::new(Seats::new(&upstream.live, pools, place.worker))),
            balancer: balancer(upstream),
        };
        let upstreams = generation.upstreams.iter().map(view).collect();
        let filters = generation.bindings.iter().map(slot).collect();
        let bodies = generation.bindings.iter().map(|_| Bodies::default()).collect();
        let timers = timers(&generation, now);
        let routes = generation.routes.iter().map(|route| place.registry.route(&route.name, place.worker)).collect();
        let route_names = generation.routes.iter().map(|route| Arc::from(&*route.name)).collect();
        let plugins =
            generation.bindings.iter().map(|binding| place.registry.plugin(&binding.name, place.worker)).collect();
        let cache = |binding: &Binding| match &binding.cache {
            Some(_) => place.registry.cache(&binding.name, place.worker),
            None => Arc::default(),
        };
        let caches = generation.bindings.iter().map(cache).collect();
        let unrouted = place.registry.route(&UNROUTED.into(), place.worker);
        let pools = pools.clone();
        let running = Running {
            generation,
            filters,
            bodies,
            upstreams,
            routes,
            route_names,
            unrouted,
            plugins,
            caches,
            place,
            alive,
            pools,
            timers,
        };
        let generation = &running.generation;
        for binding in generation.routes.iter().flat_map(|route| &route.chain) {
            if !generation.bindings[*binding].is_called() {
                continue;
            }
            running.filters[*binding].borrow_mut().warm(|| running.instance(*binding))?;
        }
        for (upstream, view) in running.upstreams.iter().enumerate() {
            if let Some(slot) = &view.balancer {
                slot.borrow_mut().warm(|| running.balancer(upstream))?;
            }
        }
        Ok(running)
    }
}

impl Running {
    /// A fresh instance of a binding.
    pub fn instance(&self, binding: usize) -> Result<Instance, Trap> {
        Instance::new(&self.generation.bindings[binding], &self.place)
    }

    /// Calls the timers whose interval has passed.
    pub fn tick(&self, now: Instant) {
        self.generation.bindings.iter().for_each(Binding::report_lines);
        for Timer { whose, binding, interval, last } in &self.timers {
            if now.saturating_duration_since(last.get()) < *interval {
                continue;
            }
            last.set(now);
            let called = match whose {
                Timed::Filter => self.filters[*binding].borrow_mut().call(|| self.instance(*binding), Instance::timer),
                Timed::Balancer(upstream) => self.balance(*upstream, Instance::timer),
            };
            if let Err(trap) = called {
                self.plugin_failed(*binding, "timer", &trap, None);
            }
        }
    }

    /// Logs and counts a failed call of a binding's hook, in an exchange if there is one.
    pub fn plugin_failed(&self, binding: usize, hook: &'static str, trap: &Trap, head: Option<&Head>) {
        self.generation.bindings[binding].failed(hook, trap, head);
        self.plugins[binding].failures.add(1);
    }
}

/// The timers of all instances: a plugin in chains has one, and each upstream that it balances another.
fn timers(generation: &Generation, now: Instant) -> Vec<Timer> {
    let timer = |whose, binding: usize| {
        let interval = generation.bindings[binding].timer?;
        Some(Timer { whose, binding, interval, last: Cell::new(now) })
    };
    let in_chains = |binding: &usize| generation.routes.iter().any(|route| route.chain.contains(binding));
    let filters = (0..generation.bindings.len()).filter(in_chains);
    let filters = filters.filter_map(|binding| timer(Timed::Filter, binding));
    let upstreams = generation.upstreams.iter().enumerate();
    let balancers = upstreams.filter_map(|(place, upstream)| timer(Timed::Balancer(place), upstream.balancer?));
    filters.chain(balancers).collect()
}

/// Of upstreams, by their places.
impl Running {
    /// The endpoints as they are now. Where they have changed, the balancer is told.
    pub fn seats(&self, place: usize) -> Rc<Seats> {
        let (upstream, view) = (&self.generation.upstreams[place], &self.upstreams[place]);
        let seats = view.seats.borrow().clone();
        if seats.members.version == upstream.live.version() {
            return seats;
        }
        let seats = Rc::new(Seats::new(&upstream.live, &self.pools, self.place.worker));
        view.seats.replace(seats.clone());
        let told = self.balance(place, |instance| instance.endpoints_changed(&seats.members));
        if let (Err(trap), Some(binding)) = (told, upstream.balancer) {
            // The next pick makes another instance, and tells that.
            self.plugin_failed(binding, "balancer", &trap, None);
        }
        seats
    }

    /// Calls the balancer.
    pub fn balance<R>(&self, place: usize, call: impl FnOnce(&mut Instance) -> Result<R, Trap>) -> Result<R, Trap> {
        let slot = self.upstreams[place].balancer.as_ref().ok_or(Trap::NoHook)?;
        slot.borrow_mut().call(|| self.balancer(place), call)
    }

    /// An instance of the balancer that knows the endpoints.
    fn balancer(&self, place: usize) -> Result<Instance, Trap> {
        let binding = self.generation.upstreams[place].balancer.ok_or(Trap::NoHook)?;
        let mut instance = Instance::new(&self.generation.bindings[binding], &self.place)?;
        instance.endpoints_changed(&self.upstreams[place].seats.borrow().members)?;
        Ok(instance)
    }
}

impl Generation {
    /// Gives the store what it may take from now on.
    pub fn resize_store(&self) {
        self.store.resize(&self.store_limits);
    }
}

impl Upstream {
    /// Whether a response with this status speaks for its endpoint, once it has come to its end.
    pub fn is_good(&self, status: StatusCode) -> bool {
        let outliers = self.plan.health.outliers.as_ref();
        !outliers.is_some_and(|outliers| outliers.statuses.contains(status))
    }
}
