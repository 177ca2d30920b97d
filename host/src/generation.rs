//! A running configuration: immutable and shared, and each worker's own view of it with live instances and pools.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::plugin::binding::Binding;
use crate::plugin::instance::{Endpoint as BalancedEndpoint, EndpointState, Instance, Slot, Trap};
use crate::router::Router;
use crate::upstream::{EndpointAddr, InFlight, KeepRules, Pool, Pools};

/// All that decides what happens to a request.
pub struct Generation {
    pub router: Router,
    /// In the order of the router's places.
    pub routes: Vec<Route>,
    pub upstreams: Vec<Upstream>,
    pub upstream_places: HashMap<Arc<str>, usize>,
    pub bindings: Vec<Binding>,
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
}

/// A worker's view of an upstream.
pub struct RunningUpstream {
    pub pools: Vec<Rc<Pool>>,
    pub balancer: RefCell<Slot>,
}

impl Running {
    /// Makes the worker's view, with its instances warm.
    pub fn new(generation: Arc<Generation>, pools: &Pools) -> Result<Self, Trap> {
        let pools_of =
            |upstream: &Upstream| upstream.endpoints.iter().map(|endpoint| pools.pool(&endpoint.address)).collect();
        let view = |upstream| RunningUpstream { pools: pools_of(upstream), balancer: RefCell::default() };
        let upstreams = generation.upstreams.iter().map(view).collect();
        let filters = generation.bindings.iter().map(|_| RefCell::default()).collect();
        let running = Running { generation, filters, upstreams };
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
