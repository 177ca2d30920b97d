//! A running configuration: immutable and shared, and each worker's own view of it with live instances and pools.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::access_log::AccessLog;
use crate::metrics::{PluginFigures, Registry, RouteFigures};
use crate::plugin::binding::Binding;
use crate::plugin::instance::{Endpoint as BalancedEndpoint, EndpointState, Instance, Slot, Trap};
use crate::router::Router;
use crate::upstream::{EndpointAddr, InFlight, KeepRules, Pool, Pools};

/// What requests that no route matches are counted under.
const UNROUTED: &str = "-";

/// All that decides what happens to a request.
pub struct Generation {
    pub router: Router,
    /// In the order of the router's places.
    pub routes: Vec<Route>,
    pub upstreams: Vec<Upstream>,
    pub upstream_places: HashMap<Arc<str>, usize>,
    pub bindings: Vec<Binding>,
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
}

/// A named set of endpoints.
pub struct Upstream {
    pub name: Arc<str>,
    pub endpoints: Vec<Endpoint>,
    /// A place in `bindings`; nobody is asked about a single endpoint.
    pub balancer: Option<usize>,
    pub rules: KeepRules,
}

/// One address of an upstream.
pub struct Endpoint {
    pub address: EndpointAddr,
    pub text: Arc<str>,
    pub weight: u32,
    pub in_flight: Arc<InFlight>,
}

/// A worker's view of a generation. An exchange holds on to the one that it began with.
pub struct Running {
    pub generation: Arc<Generation>,
    /// One instance per binding is enough: a hook runs to its end before the worker does anything else.
    pub filters: Vec<RefCell<Slot>>,
    pub upstreams: Vec<RunningUpstream>,
    /// This worker's figures, by the places of routes and bindings.
    pub routes: Vec<Arc<RouteFigures>>,
    pub unrouted: Arc<RouteFigures>,
    pub plugins: Vec<Arc<PluginFigures>>,
}

/// A worker's view of an upstream.
pub struct RunningUpstream {
    pub pools: Vec<Rc<Pool>>,
    pub balancer: RefCell<Slot>,
}

impl Running {
    /// Makes the worker's view, with its instances warm.
    pub fn new(generation: Arc<Generation>, pools: &Pools, registry: &Registry, worker: usize) -> Result<Self, Trap> {
        let pools_of =
            |upstream: &Upstream| upstream.endpoints.iter().map(|endpoint| pools.pool(&endpoint.address)).collect();
        let view = |upstream| RunningUpstream { pools: pools_of(upstream), balancer: RefCell::default() };
        let upstreams = generation.upstreams.iter().map(view).collect();
        let filters = generation.bindings.iter().map(|_| RefCell::default()).collect();
        let routes = generation.routes.iter().map(|route| registry.route(&route.name, worker)).collect();
        let plugins = generation.bindings.iter().map(|binding| registry.plugin(&binding.name, worker)).collect();
        let unrouted = registry.route(&UNROUTED.into(), worker);
        let running = Running { generation, filters, upstreams, routes, unrouted, plugins };
        let generation = &running.generation;
        for binding in generation.routes.iter().flat_map(|route| &route.chain) {
            running.filters[*binding].borrow_mut().warm(|| Instance::new(&generation.bindings[*binding]))?;
        }
        for (upstream, view) in generation.upstreams.iter().zip(&running.upstreams) {
            if let Some(binding) = upstream.balancer {
                view.balancer.borrow_mut().warm(|| upstream.balancer_instance(&generation.bindings[binding]))?;
            }
        }
        Ok(running)
    }
}

impl Upstream {
    /// An instance of the balancer that knows the endpoints.
    pub fn balancer_instance(&self, binding: &Binding) -> Result<Instance, Trap> {
        let endpoint = |endpoint: &'_ Endpoint| (endpoint.text.clone(), endpoint.weight);
        let known: Vec<(Arc<str>, u32)> = self.endpoints.iter().map(endpoint).collect();
        let told = known.iter().map(|(address, weight)| BalancedEndpoint {
            address,
            weight: *weight,
            state: EndpointState::Up,
            tier: 0,
            zone: "",
        });
        let mut instance = Instance::new(binding)?;
        instance.endpoints_changed(&told.collect::<Vec<_>>())?;
        Ok(instance)
    }
}
