//! A running configuration: immutable and shared, and each worker's own view of it with live instances and pools.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access_log::AccessLog;
use crate::listener::Listener;
use crate::metrics::{Place, PluginFigures, RouteFigures};
use crate::plugin::binding::Binding;
use crate::plugin::instance::{Endpoint as BalancedEndpoint, EndpointState, Instance, Slot, Trap};
use crate::plugin::transform::Bodies;
use crate::respond::ErrorPages;
use crate::router::Router;
use crate::upstream::{EndpointAddr, InFlight, Pool, Pools, Rules};

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
    pub endpoints: Vec<Endpoint>,
    /// A place in `bindings`; nobody is asked about a single endpoint.
    pub balancer: Option<usize>,
    pub rules: Rules,
}

/// One address of an upstream.
pub struct Endpoint {
    pub address: EndpointAddr,
    pub weight: u32,
    pub in_flight: Arc<InFlight>,
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
    pub unrouted: Arc<RouteFigures>,
    pub plugins: Vec<Arc<PluginFigures>>,
    /// Where this worker's figures are kept.
    pub place: Place,
    /// Bindings with a timer, and when each was last called.
    timers: Vec<(usize, Duration, Cell<Instant>)>,
}

/// A worker's view of an upstream.
pub struct RunningUpstream {
    pub pools: Vec<Rc<Pool>>,
    /// None where nobody is asked.
    pub balancer: Option<RefCell<Slot>>,
}

impl Running {
    /// Makes the worker's view, with its instances warm.
    pub fn new(generation: Arc<Generation>, pools: &Pools, place: Place, now: Instant) -> Result<Self, Trap> {
        let pools_of =
            |upstream: &Upstream| upstream.endpoints.iter().map(|endpoint| pools.pool(&endpoint.address)).collect();
        let slot = |binding: &Binding| RefCell::new(Slot::new(binding.isolation));
        let balancer = |upstream: &Upstream| upstream.balancer.map(|binding| slot(&generation.bindings[binding]));
        let view = |upstream| RunningUpstream { pools: pools_of(upstream), balancer: balancer(upstream) };
        let upstreams = generation.upstreams.iter().map(view).collect();
        let filters = generation.bindings.iter().map(slot).collect();
        let bodies = generation.bindings.iter().map(|_| Bodies::default()).collect();
        let timers = generation.bindings.iter().enumerate();
        let timers = timers.filter_map(|(at, binding)| Some((at, binding.timer?, Cell::new(now)))).collect();
        let routes = generation.routes.iter().map(|route| place.registry.route(&route.name, place.worker)).collect();
        let plugins =
            generation.bindings.iter().map(|binding| place.registry.plugin(&binding.name, place.worker)).collect();
        let unrouted = place.registry.route(&UNROUTED.into(), place.worker);
        let running = Running { generation, filters, bodies, upstreams, routes, unrouted, plugins, place, timers };
        let generation = &running.generation;
        for binding in generation.routes.iter().flat_map(|route| &route.chain) {
            if !generation.bindings[*binding].is_called() {
                continue;
            }
            running.filters[*binding].borrow_mut().warm(|| running.instance(*binding))?;
        }
        for (upstream, view) in generation.upstreams.iter().zip(&running.upstreams) {
            if let (Some(binding), Some(slot)) = (upstream.balancer, &view.balancer) {
                slot.borrow_mut().warm(|| upstream.balancer_instance(&generation.bindings[binding], &running.place))?;
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
        for (binding, interval, last) in &self.timers {
            if now.saturating_duration_since(last.get()) < *interval {
                continue;
            }
            last.set(now);
            let called = self.filters[*binding].borrow_mut().call(|| self.instance(*binding), Instance::timer);
            if let Err(trap) = called {
                let plugin = &*self.generation.bindings[*binding].name;
                tracing::warn!(plugin, error = %trap, "timer failed");
                self.plugins[*binding].failures.add(1);
            }
        }
    }
}

impl Upstream {
    /// An instance of the balancer that knows the endpoints.
    pub fn balancer_instance(&self, binding: &Binding, place: &Place) -> Result<Instance, Trap> {
        let endpoint = |endpoint: &'_ Endpoint| (endpoint.address.text.clone(), endpoint.weight);
        let known: Vec<(Arc<str>, u32)> = self.endpoints.iter().map(endpoint).collect();
        let told = known.iter().map(|(address, weight)| BalancedEndpoint {
            address,
            weight: *weight,
            state: EndpointState::Up,
            tier: 0,
            zone: "",
        });
        let mut instance = Instance::new(binding, place)?;
        instance.endpoints_changed(&told.collect::<Vec<_>>())?;
        Ok(instance)
    }
}
