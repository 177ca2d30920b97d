//! A worker's view of a generation: its instances of plugins, its view of each upstream, and the timers of plugins.
#![expect(
    clippy::disallowed_methods,
    reason = "an order of a new balancer instance is rare, and its pause begins when it fails"
)]

use crate::body::buffer_space::BufferSpace;
use crate::context::{CalloutCause, ExchangeContext};
use crate::generation::fetch_places::FetchPlaces;
use crate::generation::ids::{ById, PluginId, RouteId, UpstreamId};
use crate::generation::target::Target;
use crate::generation::{Generation, Route, UNROUTED, Upstream};
use crate::plugin::body_filter::IdleBodyInstances;
use crate::plugin::breaker::HookKind;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::caller::observed_end::{MAX_WAITING_BYTES, ObservedEnd};
use crate::plugin::caller::{InstanceSlot, PluginCaller};
use crate::plugin::configured::ConfiguredPlugin;
use crate::plugin::failure::ExchangeName;
use crate::plugin::instance::Instance;
use crate::plugin::instance_orders::OrderedInstance;
use crate::plugin::tenancy::OwnInstances;
use crate::plugin::time_share::Shares;
use crate::static_files::worker_site::WorkerSite;
use crate::system::descriptor_shares::WorkerDescriptors;
use crate::system::holder_counts::Holder;
use crate::system::local_limit::LocalHold;
use crate::telemetry::metrics::{CacheMetrics, RouteMetrics, WorkerMetrics};
use crate::upstream::ConnectionSettings;
use crate::upstream::endpoint_view::EndpointViews;
use crate::upstream::pool::Pools;
use crate::upstream::retry::RetryBudget;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A worker's view of a generation. An exchange holds on to the one that it began with.
pub struct WorkerState {
    pub generation: Arc<Generation>,
    /// The instance slot of each plugin. One instance is enough: a hook runs to its end before the worker does anything
    /// else.
    filters: ById<PluginId, InstanceSlot>,
    /// The calls of each binding.
    pub guards: ById<PluginId, Rc<PluginCaller>>,
    /// Instances for bodies that pass through each binding.
    pub bodies: ById<PluginId, Rc<IdleBodyInstances>>,
    pub upstreams: ById<UpstreamId, UpstreamState>,
    /// The metrics of each route on this worker.
    pub routes: ById<RouteId, Arc<RouteMetrics>>,
    /// The names of the routes. Each worker has its own copies, because counting references to shared ones would
    /// contend.
    pub route_names: ById<RouteId, Arc<str>>,
    /// The files of each route, by its index; `None` for routes with another target.
    pub sites: ById<RouteId, Option<WorkerSite>>,
    pub unrouted: Arc<RouteMetrics>,
    /// The name that logs show where a request has no upstream.
    no_upstream: Arc<str>,
    pub caches: ById<PluginId, Arc<CacheMetrics>>,
    /// The metrics of this worker.
    pub worker_metrics: WorkerMetrics,
    /// The room for bodies that wait for a slow peer.
    pub buffers: Rc<BufferSpace>,
    /// The channel by whose end the worker learns that nothing holds its states any more.
    pub alive: mpsc::WeakSender<()>,
    /// The queue of the worker's task that calls observers which may wait.
    ended: mpsc::Sender<EndedExchange>,
    pools: Rc<Pools>,
    timers: Vec<Timer>,
    /// The index of the timer that has the first turn at the next tick.
    first_timer: Cell<usize>,
    /// The places for background fetches of responses that are no upstream's.
    background: BackgroundPlaces,
    /// Exchanges whose response has not passed the plugins yet, and timers that are called.
    in_chains: Cell<usize>,
    /// The number of these exchanges and timers that may call each plugin.
    in_use: ById<PluginId, Cell<usize>>,
    /// Whether a later generation has replaced this one.
    is_retired: Cell<bool>,
    /// Whether the instances were dropped for good.
    is_released: Cell<bool>,
}

/// The use of a generation's instances by an exchange or a timer, until dropped: that is, until the exchange's response
/// has passed the plugins.
pub struct ChainCall {
    worker: Rc<WorkerState>,
    user: PluginUser,
}

/// The user of instances of plugins.
#[derive(Clone, Copy)]
enum PluginUser {
    /// An exchange of a route, which uses the route's plugins.
    Exchange(RouteId),
    /// The timer of a plugin.
    Timer(PluginId),
}

/// An exchange that has ended, for an observer that may wait or waits for its turn. The worker doesn't end before the
/// observer.
pub struct EndedExchange {
    pub worker: Rc<WorkerState>,
    pub plugin_id: PluginId,
    pub end: ObservedEnd,
    /// The name of the exchange for the log.
    pub name: ExchangeName,
    /// The exchange as the cause of requests; `None` if the plugin has no destination for one.
    pub cause: Option<CalloutCause>,
    pub client: Holder,
    pub held: LocalHold,
    pub alive: Option<mpsc::Sender<()>>,
}

/// Exchanges that have ended in one turn of a worker and are queued for observers. How many of them wait for a call of an
/// observer that may wait is limited by `limits.queued-calls`.
pub const ENDED_EXCHANGES: usize = 4096;

/// An instance whose timer is called.
struct Timer {
    whose: TimerOwner,
    binding: PluginId,
    interval: Duration,
    next: Cell<Instant>,
    /// Calls that failed in a row.
    failures: Cell<u32>,
    /// Whether a call that may wait is under way.
    is_under_way: Cell<bool>,
    /// Whether the last call of a timer that may wait has taken no more than [`TIMERS_TIME`]; `false` before the first.
    is_quick: Cell<bool>,
}

/// The pause before a call that no request causes is repeated, after a failure; each further failure doubles the pause.
const BACKOFF: Duration = Duration::from_secs(1);

const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The time that the timers of a worker take at a tick, up to the end of the call that exceeds it.
const TIMERS_TIME: Duration = Duration::from_millis(1);

/// A timer that may wait and is due, until its call has ended.
pub struct WaitingTimer {
    in_chain: ChainCall,
    index: usize,
}

#[derive(Clone, Copy)]
enum TimerOwner {
    /// The instance of a plugin in chains.
    Filter,
    /// The balancer of the upstream at an index.
    Balancer(UpstreamId),
}

/// The parts of a worker that the views of all its generations share.
#[derive(Clone)]
pub struct LastingState {
    pub pools: Rc<Pools>,
    pub shares: Rc<Shares>,
    /// The worker ends with the last holder.
    pub alive: mpsc::WeakSender<()>,
    /// The queue of observers that may wait.
    pub ended: mpsc::Sender<EndedExchange>,
}

/// The places for fetches in the background at an upstream.
#[derive(Default)]
struct BackgroundPlaces {
    revalidations: FetchPlaces,
    left: FetchPlaces,
}

/// A worker's view of an upstream.
pub struct UpstreamState {
    pub name: Arc<str>,
    pub budget: RefCell<RetryBudget>,
    /// The upstream's settings, for futures that outlive a borrow of it.
    pub rules: Rc<ConnectionSettings>,
    /// The places for background fetches.
    background: BackgroundPlaces,
    endpoint_views: RefCell<Rc<EndpointViews>>,
    balancer: InstanceSlot,
    replacement: RefCell<Option<BalancerReplacement>>,
    /// The number of replacements that failed in a row; the next one may be ordered at `retry_at`.
    failures: Cell<u32>,
    retry_at: Cell<Option<Instant>>,
}

/// A balancer's instance that the thread for instances is making.
struct BalancerReplacement {
    /// The endpoints that the instance knows.
    endpoint_views: Rc<EndpointViews>,
    instance: OrderedInstance,
}

impl UpstreamState {
    /// Returns the view of a worker, which has no balancer yet.
    fn new(upstream: &Upstream, pools: &Rc<Pools>, worker: usize, now: Instant) -> Self {
        UpstreamState {
            name: Arc::from(&*upstream.name),
            budget: RefCell::new(RetryBudget::new(now)),
            rules: Rc::new(upstream.rules),
            background: BackgroundPlaces::default(),
            endpoint_views: RefCell::new(Rc::new(EndpointViews::new(&upstream.live, pools, worker))),
            balancer: InstanceSlot::default(),
            replacement: RefCell::default(),
            failures: Cell::new(0),
            retry_at: Cell::new(None),
        }
    }
}

impl WorkerState {
    /// Makes the worker's view, which has no instances yet.
    pub fn new(
        generation: Arc<Generation>,
        lasting: LastingState,
        worker_metrics: WorkerMetrics,
        now: Instant,
    ) -> Self {
        let LastingState { pools, shares, alive, ended } = lasting;
        let view = |upstream: &Upstream| UpstreamState::new(upstream, &pools, worker_metrics.worker, now);
        let upstreams = generation.upstreams.iter().map(view).collect();
        let filters = generation.bindings.iter().map(|_| InstanceSlot::default()).collect();
        let guard = |configured: &Arc<ConfiguredPlugin>| {
            Rc::new(PluginCaller::new(configured.clone(), worker_metrics.clone(), &shares, now))
        };
        let guards: ById<PluginId, Rc<PluginCaller>> = generation.bindings.iter().map(guard).collect();
        let bodies = generation.bindings.iter().map(|_| Rc::default()).collect();
        let timers = timers(&generation, now);
        let routes = generation
            .routes
            .iter()
            .map(|route| worker_metrics.registry.route(&route.name, worker_metrics.worker))
            .collect();
        let sites = sites(&generation, pools.descriptors());
        let route_names = generation.routes.iter().map(|route| Arc::from(&*route.name)).collect();
        let caches = generation.bindings.iter().map(|configured| cache_metrics(configured, &worker_metrics)).collect();
        let unrouted = worker_metrics.registry.route(&UNROUTED.into(), worker_metrics.worker);
        let buffers = {
            let usage = worker_metrics.registry.buffers.clone();
            BufferSpace::new(usage, generation.buffer_limits.clone(), pools.descriptors().clone())
        };
        let in_use = generation.bindings.iter().map(|_| Cell::default()).collect();
        let (in_chains, is_retired, is_released) = (Cell::new(0), Cell::new(false), Cell::new(false));
        WorkerState {
            generation,
            filters,
            guards,
            bodies,
            upstreams,
            routes,
            route_names,
            sites,
            unrouted,
            no_upstream: UNROUTED.into(),
            caches,
            worker_metrics,
            buffers,
            alive,
            ended,
            pools,
            timers,
            first_timer: Cell::new(0),
            background: BackgroundPlaces::default(),
            in_chains,
            in_use,
            is_retired,
            is_released,
        }
    }

    /// Returns the descriptors that the worker's exchanges use.
    pub fn descriptors(&self) -> &WorkerDescriptors {
        self.pools.descriptors()
    }

    /// Has the instances of all plugins made, one after the other, by the thread for instances, while the worker
    /// serves.
    pub async fn warm(&self) -> Result<(), PluginFailure> {
        let generation = &self.generation;
        let mut filters: Vec<PluginId> =
            generation.routes.iter().flat_map(|route| route.chain.iter().copied()).collect();
        filters.sort_unstable();
        filters.dedup();
        filters.retain(|binding| generation.bindings[*binding].needs_instance());
        for binding in filters {
            let (guard, instance) = (&self.guards[binding], self.guards[binding].make_instance(None).await?);
            match generation.bindings[binding].waits() {
                true => guard.keep_waiting(instance),
                false => self.filters[binding].fill(instance),
            }
        }
        for (upstream, view) in generation.upstreams.iter().zip(self.upstreams.iter()) {
            let Some(binding) = upstream.balancer else { continue };
            let members = view.endpoint_views.borrow().members.clone();
            view.balancer.fill(self.guards[binding].make_instance(Some(members)).await?);
        }
        Ok(())
    }
}

impl WorkerState {
    /// Calls a hook of a binding in chains, for a client.
    pub fn call<R>(
        &self,
        binding: PluginId,
        hook: HookKind,
        client: Holder,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        self.guards[binding].call(&self.filters[binding], hook, client, call)
    }

    /// Returns the name of an upstream for logs; [`UNROUTED`] if a route's target is no upstream.
    pub fn upstream_name(&self, upstream: Option<UpstreamId>) -> Arc<str> {
        upstream.map_or(&self.no_upstream, |upstream_id| &self.upstreams[upstream_id].name).clone()
    }

    /// Returns the places for background revalidations at an upstream; of responses of no upstream if `None`.
    pub fn revalidations(&self, upstream: Option<UpstreamId>) -> &FetchPlaces {
        &self.background(upstream).revalidations
    }

    /// Returns the places for fetches at an upstream that their clients have left. They are others than those of
    /// revalidations, which a client could keep from the stored responses of all.
    pub fn left_fetches(&self, upstream: Option<UpstreamId>) -> &FetchPlaces {
        &self.background(upstream).left
    }

    fn background(&self, upstream: Option<UpstreamId>) -> &BackgroundPlaces {
        upstream.map_or(&self.background, |upstream_id| &self.upstreams[upstream_id].background)
    }

    /// Returns an exchange as the cause of requests that a plugin sends; `None` if it has no destination for one.
    pub fn callout_cause(&self, plugin_id: PluginId, context: &ExchangeContext) -> Option<CalloutCause> {
        let has_none = self.generation.bindings[plugin_id].http_destinations().is_empty();
        (!has_none).then(|| context.callout_cause())
    }

    /// Passes an exchange that has ended to an observer, at once or by a queue: an observer may wait, or waits for its turn.
    pub fn observe(
        self: &Rc<Self>,
        plugin_id: PluginId,
        end: ObservedEnd,
        context: &ExchangeContext,
    ) -> Result<(), PluginFailure> {
        let (guard, waits) = (&self.guards[plugin_id], self.generation.bindings[plugin_id].waits());
        let client = context.holder();
        let is_later = waits || guard.waits_for_turn(client);
        let held = is_later.then(|| guard.ended.hold(end.bytes()));
        match held {
            Some(Some(held)) => {
                let (worker, name, cause) =
                    (self.clone(), ExchangeName::of(context), self.callout_cause(plugin_id, context));
                let alive = self.alive.upgrade();
                let ended = EndedExchange { worker, plugin_id, end, name, cause, client, held, alive };
                self.ended.try_send(ended).map_err(|_| PluginFailure::EndQueue(ENDED_EXCHANGES))
            }
            Some(None) if waits => Err(PluginFailure::EndedExchanges(MAX_WAITING_BYTES)),
            _ => {
                self.call(plugin_id, HookKind::Observer, client, |instance| instance.observe(&end.values, &end.summary))
            }
        }
    }

    /// Calls the timers whose interval has passed. Those that are left after [`TIMERS_TIME`] have the first turn at the next
    /// tick. Of timers that may wait, one begins at a tick whose last call took longer than that, or isn't known.
    ///
    /// Returns those that may wait, for the caller to call.
    pub fn tick(self: &Rc<Self>, now: Instant) -> Vec<WaitingTimer> {
        let (mut waiting, mut has_slow) = (Vec::new(), false);
        self.generation.bindings.iter().for_each(|configured| configured.report_lines());
        self.guards.iter().for_each(|guard| guard.sweep_waiting(now));
        let began = Instant::now();
        let (first, count, mut left) = (self.first_timer.get(), self.timers.len(), None);
        for index in (0..count).map(|turn| (first + turn) % count) {
            let timer = &self.timers[index];
            if timer.next.get() > now {
                continue;
            }
            if began.elapsed() >= TIMERS_TIME {
                left.get_or_insert(index);
                break;
            }
            let called = match timer.whose {
                TimerOwner::Filter if self.generation.bindings[timer.binding].waits() => {
                    if has_slow && !timer.is_quick.get() {
                        // The first one that is left begins at the next tick.
                        left.get_or_insert(index);
                        continue;
                    }
                    let begun = self.begin_timer(index);
                    has_slow |= begun.is_some() && !timer.is_quick.get();
                    waiting.extend(begun);
                    continue;
                }
                TimerOwner::Filter => self.call(timer.binding, HookKind::Timer, Holder::PLUGIN, Instance::timer),
                TimerOwner::Balancer(upstream) => {
                    self.call_balancer(upstream, HookKind::Timer, Holder::PLUGIN, Instance::timer)
                }
            };
            self.settle_timer(timer, called, now);
        }
        left.into_iter().for_each(|index| self.first_timer.set(index));
        waiting
    }

    /// Begins the call of a timer that may wait; the call and its end are up to the caller.
    fn begin_timer(self: &Rc<Self>, index: usize) -> Option<WaitingTimer> {
        let timer = &self.timers[index];
        // Until the call has ended, the generation keeps its instances.
        let in_chain = || self.use_plugins(PluginUser::Timer(timer.binding));
        (!timer.is_under_way.replace(true)).then(|| WaitingTimer { in_chain: in_chain(), index })
    }

    fn settle_timer(&self, timer: &Timer, called: Result<(), PluginFailure>, now: Instant) {
        let failures = if called.is_err() { timer.failures.get().saturating_add(1) } else { 0 };
        timer.failures.set(failures);
        timer.next.set(now + timer.interval.max(backoff(failures)));
        if let Err(failure) = called {
            self.record_plugin_failure(timer.binding, "timer", &failure, None);
        }
    }

    /// Logs and counts a failed call of a binding's hook, in an exchange if there is one.
    pub fn record_plugin_failure(
        &self,
        binding: PluginId,
        hook: &'static str,
        failure: &PluginFailure,
        context: Option<&ExchangeContext>,
    ) {
        self.guards[binding].record_failure(hook, failure, context.map(ExchangeName::of).as_ref());
    }
}

/// The life of the instances of a generation that another one has replaced.
impl WorkerState {
    /// Notes that an exchange may call the plugins of its route until the result is dropped.
    pub fn enter_chain(self: &Rc<Self>, route_id: RouteId) -> ChainCall {
        self.use_plugins(PluginUser::Exchange(route_id))
    }

    fn use_plugins(self: &Rc<Self>, user: PluginUser) -> ChainCall {
        self.in_chains.set(self.in_chains.get() + 1);
        self.plugins_of(&user).iter().for_each(|plugin_id| add(&self.in_use[*plugin_id], 1));
        ChainCall { worker: self.clone(), user }
    }

    fn plugins_of<'a>(&'a self, user: &'a PluginUser) -> &'a [PluginId] {
        match user {
            PluginUser::Exchange(route_id) => &self.generation.routes[*route_id].chain,
            PluginUser::Timer(plugin_id) => std::slice::from_ref(plugin_id),
        }
    }

    /// Records that no exchange will begin with this generation any more.
    pub fn retire(&self) {
        self.is_retired.set(true);
        self.guards.iter().for_each(|guard| guard.retire());
        self.bodies.iter().for_each(|bodies| bodies.clear());
        self.release_unused();
        self.generation.tenancy.retire();
    }

    /// Drops the instances that nothing can use. Tunnels, and bodies on their way, hold a generation for hours, but then
    /// call its observers at most, for which an instance is made at the end. A client that is not answered can hold it as
    /// long, and then the instances of its route's plugins.
    fn release_unused(&self) {
        if !self.is_retired.get() {
            return;
        }
        let is_over = self.in_chains.get() == 0;
        // An exchange that has yet to choose an endpoint may use the balancer of any upstream.
        let is_balancer = |plugin_id| self.generation.upstreams.iter().any(|it| it.balancer == Some(plugin_id));
        let may_go = |plugin_id| is_over || !is_balancer(plugin_id);
        let unused = self.in_use.with_ids().filter(|(plugin_id, users)| users.get() == 0 && may_go(*plugin_id));
        unused.for_each(|(plugin_id, _)| self.release(plugin_id));
        if !is_over {
            return;
        }
        let was_released = self.is_released.replace(true);
        for upstream in self.upstreams.iter() {
            upstream.balancer.clear();
            upstream.replacement.take();
        }
        if !was_released {
            let balancers = self.upstreams.ids().count() as u32;
            self.generation.tenancy.release(OwnInstances { places: balancers, stacks: 0 });
            self.generation.tenancy.leave();
        }
    }

    /// Drops the instances of a plugin.
    fn release(&self, plugin_id: PluginId) {
        let guard = &self.guards[plugin_id];
        self.filters[plugin_id].clear();
        self.bodies[plugin_id].clear();
        if !guard.is_released() {
            // A body may have the instance of a plugin that waits, and its stack.
            let stacks = u32::from(guard.has_own_stack());
            self.generation.tenancy.release(OwnInstances { places: 1, stacks });
        }
        guard.release();
    }
}

/// Adds a number to a count.
fn add(count: &Cell<usize>, more: isize) {
    count.set(count.get().saturating_add_signed(more));
}

impl WaitingTimer {
    /// Returns the state of the worker that the timer belongs to.
    pub fn worker(&self) -> &Rc<WorkerState> {
        &self.in_chain.worker
    }

    /// Returns the plugin of the timer.
    pub fn plugin(&self) -> PluginId {
        self.worker().timers[self.index].binding
    }

    /// Notes the result of the call, and the time that it has taken of the worker. The next call is due an interval after
    /// this.
    pub fn settle(self, called: Result<(), PluginFailure>, time: Duration, now: Instant) {
        let timer = &self.worker().timers[self.index];
        timer.is_quick.set(time <= TIMERS_TIME);
        self.worker().settle_timer(timer, called, now);
    }
}

impl Drop for WaitingTimer {
    fn drop(&mut self) {
        self.worker().timers[self.index].is_under_way.set(false);
    }
}

impl Drop for ChainCall {
    fn drop(&mut self) {
        let ChainCall { worker, user } = self;
        worker.in_chains.set(worker.in_chains.get() - 1);
        worker.plugins_of(user).iter().for_each(|plugin_id| add(&worker.in_use[*plugin_id], -1));
        worker.release_unused();
    }
}

/// Returns the sites of the routes.
fn sites(generation: &Generation, descriptors: &WorkerDescriptors) -> ById<RouteId, Option<WorkerSite>> {
    let site = |route: &Route| match &route.target {
        Target::Files(site) => Some(WorkerSite::new(site.clone(), descriptors.clone())),
        Target::Upstream(_) | Target::Redirect(_) | Target::Respond(_) => None,
    };
    generation.routes.iter().map(site).collect()
}

/// Returns a worker's metrics of a plugin as a cache; empty ones if it is none.
fn cache_metrics(configured: &ConfiguredPlugin, worker_metrics: &WorkerMetrics) -> Arc<CacheMetrics> {
    match &configured.cache {
        Some(_) => worker_metrics.registry.cache(&configured.name, worker_metrics.worker),
        None => Arc::default(),
    }
}

/// Returns the backoff after this number of failures in a row.
fn backoff(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        failures => (BACKOFF * (1 << (failures - 1).min(6))).min(MAX_BACKOFF),
    }
}

/// The timers of all instances: a plugin in chains has one, and each upstream that it balances another.
fn timers(generation: &Generation, now: Instant) -> Vec<Timer> {
    let timer = |whose, binding: PluginId| {
        let interval = generation.bindings[binding].timer?;
        let (next, failures, is_under_way) = (Cell::new(now + interval), Cell::new(0), Cell::new(false));
        Some(Timer { whose, binding, interval, next, failures, is_under_way, is_quick: Cell::new(false) })
    };
    let in_chains = |binding: &PluginId| generation.routes.iter().any(|route| route.chain.contains(binding));
    let filters = generation.bindings.ids().filter(in_chains);
    let filters = filters.filter_map(|binding| timer(TimerOwner::Filter, binding));
    let upstreams = generation.upstreams.with_ids();
    let balancers =
        upstreams.filter_map(|(upstream_id, upstream)| timer(TimerOwner::Balancer(upstream_id), upstream.balancer?));
    filters.chain(balancers).collect()
}

/// The views of an upstream's endpoints, by the upstream's index.
impl WorkerState {
    /// Returns the endpoints, as far as the balancer knows them. Where they have changed, they are passed to the balancer
    /// here if that is quick, and else to another instance off the worker, until which the old endpoints are used.
    pub fn endpoint_views(&self, upstream_id: UpstreamId) -> Rc<EndpointViews> {
        let (upstream, view) = (&self.generation.upstreams[upstream_id], &self.upstreams[upstream_id]);
        if let Some(binding) = upstream.balancer {
            self.receive_replacement(upstream_id, binding);
        }
        let endpoint_views = view.endpoint_views.borrow().clone();
        if endpoint_views.members.version == upstream.live.version() {
            return endpoint_views;
        }
        let next = Rc::new(EndpointViews::new(&upstream.live, &self.pools, self.worker_metrics.worker));
        let Some(binding) = upstream.balancer else {
            view.endpoint_views.replace(next.clone());
            return next;
        };
        if !view.balancer.is_filled() || self.guards[binding].tells_quickly() {
            view.endpoint_views.replace(next.clone());
            if view.balancer.is_filled()
                && let Err(failure) = self.guards[binding].tell(&view.balancer, &next.members)
            {
                // The next pick has another instance made, which knows the endpoints.
                view.balancer.clear();
                self.record_plugin_failure(binding, "balancer", &failure, None);
            }
            return next;
        }
        self.order_replacement(upstream_id, binding, next);
        endpoint_views
    }

    /// Calls the balancer for a client.
    pub fn call_balancer<R>(
        &self,
        upstream_id: UpstreamId,
        hook: HookKind,
        client: Holder,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        let (binding, view) = (
            self.generation.upstreams[upstream_id].balancer.ok_or(PluginFailure::NoHook)?,
            &self.upstreams[upstream_id],
        );
        let guard = &self.guards[binding];
        if !view.balancer.is_filled() && !guard.tells_quickly() {
            self.order_replacement(upstream_id, binding, view.endpoint_views.borrow().clone());
            return Err(PluginFailure::NoInstance("one that knows the endpoints is being made"));
        }
        let tell = |instance: &mut Instance| {
            let members = view.endpoint_views.borrow().members.clone();
            guard.telling(instance, &members)
        };
        guard.call_prepared(&view.balancer, hook, client, tell, call)
    }

    /// Puts a balancer's instance that the maker has sent into its slot.
    fn receive_replacement(&self, upstream_id: UpstreamId, binding: PluginId) {
        let view = &self.upstreams[upstream_id];
        let mut waited = view.replacement.borrow_mut();
        let Some(replacement) = &mut *waited else { return };
        match replacement.instance.poll() {
            None => {}
            Some(Ok(instance)) => {
                view.balancer.fill(self.guards[binding].adopt(instance));
                view.endpoint_views.replace(replacement.endpoint_views.clone());
                view.failures.set(0);
                *waited = None;
            }
            Some(Err(failure)) => {
                *waited = None;
                drop(waited);
                view.failures.set(view.failures.get().saturating_add(1));
                view.retry_at.set(Some(Instant::now() + backoff(view.failures.get())));
                self.record_plugin_failure(binding, "balancer", &failure, None);
            }
        }
    }

    fn order_replacement(&self, upstream_id: UpstreamId, binding: PluginId, endpoint_views: Rc<EndpointViews>) {
        let view = &self.upstreams[upstream_id];
        let is_resting = view.retry_at.get().is_some_and(|retry_at| Instant::now() < retry_at);
        let mut waited = view.replacement.borrow_mut();
        if waited.is_none() && !is_resting {
            let instance = self.guards[binding].order(Some(endpoint_views.members.clone()));
            *waited = Some(BalancerReplacement { endpoint_views, instance });
        }
    }
}
