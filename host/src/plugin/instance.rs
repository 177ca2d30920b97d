//! A live copy of a plugin, and the rule for failures. An instance is spent when a call begins and whole again when the
//! call has returned, so that a trap, a deadline or a refused growth costs exactly this instance.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;
use wasmtime::Store;
use xxhash_rust::xxh3::xxh3_64;

use super::access::GrantedAccess;
use super::bindings::balancer::exports::plugway::plugin::balancer;
use super::bindings::lifecycle::exports::plugway::plugin::lifecycle::{ConfigError, Description, Settings};
use super::bindings::{
    balancer as balancer_hook, buffered_request_body, buffered_response_body, cache_policy, lifecycle, observer,
    request_body, request_filter, response_body, response_filter, timer, types,
};
use super::breaker::{CallOutcome, HookKind};
use super::call_error::{PluginFailure, reported_failure, trapped};
use super::early_answers::EarlyAnswers;
use super::engine::Plugin;
use super::host::HostState;
use super::log_lines::{MAX_LINE_BYTES, PluginLog};
use super::metrics::InstanceMetrics;
use super::settings::{BodyAbility, PluginLimits, body_mode};
use crate::context::bounds;
use crate::context::edit_check::{self, EditError, MessageSide, check_count};
use crate::context::edits::Edit;
use crate::context::{ExchangeContext, Value, ValueName};
use crate::system::printable::one_line;
use crate::telemetry::metrics::{PluginMetric, PluginMetricDefinition};
use crate::upstream::endpoint_set::{Availability, EndpointSnapshot, EndpointState};

pub use types::Summary;

use waiting_hooks::{WaitingHooks, at_once, without_waiting};

pub mod waiting_hooks;

/// Everything that an instance is made from.
pub struct InstanceRecipe {
    pub(super) plugin: Arc<Plugin>,
    pub(super) config: String,
    pub(super) limits: PluginLimits,
    /// The log of the plugin's lines.
    pub(super) lines: PluginLog,
    /// The access that the manifest grants.
    pub(super) access: GrantedAccess,
    /// The metrics that the first instance has defined. No other instance may define more.
    pub(super) metrics: OnceLock<Vec<PluginMetricDefinition>>,
    /// The number of live instances, over all workers and generations.
    pub(super) live: Arc<AtomicU32>,
}

/// The count of a live instance, until dropped.
pub(super) struct InstanceCount(Arc<AtomicU32>);

/// A live copy of a plugin.
pub struct Instance {
    pub(super) store: Store<HostState>,
    /// The CPU time of a call, `limits.cpu`.
    limit: Duration,
    /// The CPU time of the next calls: `limit`, or less while the plugin's breaker is half open.
    budget: Duration,
    /// The hook of the last call.
    hook: HookKind,
    /// Whether the calls from now on are of a body that has not ended.
    is_in_body: bool,
    pub(super) imports_exchange: bool,
    /// The modes in which the plugin can take bodies; `None` if it takes none.
    request_bodies: Option<BodyAbility>,
    response_bodies: Option<BodyAbility>,
    /// The hooks of a plugin that imports something that waits, by which alone it is called; `None` for other plugins.
    waiting: Option<Box<WaitingHooks>>,
    lifecycle: lifecycle::LifecycleHook,
    request_filter: Option<request_filter::RequestFilterHook>,
    response_filter: Option<response_filter::ResponseFilterHook>,
    balancer: Option<balancer_hook::BalancerHook>,
    pub(super) cache_policy: Option<cache_policy::CachePolicyHook>,
    observer: Option<observer::ObserverHook>,
    timer: Option<timer::TimerHook>,
    pub(super) request_body: Option<request_body::RequestBodyHook>,
    pub(super) response_body: Option<response_body::ResponseBodyHook>,
    buffered_request_body: Option<buffered_request_body::BufferedRequestBodyHook>,
    buffered_response_body: Option<buffered_response_body::BufferedResponseBodyHook>,
    /// The edits for responses that its balancer has declared.
    response_edits: Vec<Arc<[Edit]>>,
    /// The count of the instance among those of its version.
    pub(super) counted: Option<InstanceCount>,
}

/// The checked verdict of a filter.
pub enum FilterVerdict {
    /// The exchange continues with these edits.
    Proceed(SmallVec<[Edit; 4]>),
    /// The exchange continues with the edits of the plan with this index.
    Plan(u32),
    /// The filter responds itself.
    Respond(http::Response<Vec<u8>>),
}

/// The checked verdict of a hook that has received a whole body.
pub enum BodyVerdict {
    /// The content stays, and the head gets these edits.
    Proceed(SmallVec<[Edit; 4]>),
    /// The content is replaced, and the head gets these edits.
    Replace(Bytes, SmallVec<[Edit; 4]>),
    /// The plugin responds itself.
    Respond(http::Response<Vec<u8>>),
}

/// A whole body for the hook of one side.
#[derive(Clone, Copy)]
pub struct WholeBody<'a> {
    pub side: MessageSide,
    pub content: &'a [u8],
    /// The memory that the plugin may have, in bytes: it may hand over as much.
    pub memory: usize,
}

/// The choice of a balancer, checked except for whether the endpoint exists.
pub struct Picked {
    /// The index of the endpoint.
    pub endpoint: u32,
    /// The edits of the response; `None` if there are none.
    pub edits: Option<Arc<[Edit]>>,
}

// === Recipe ===

impl InstanceRecipe {
    /// Returns the plugin's own metrics, for an instance that belongs to no worker yet.
    fn loose_figures(&self) -> Arc<[Arc<PluginMetric>]> {
        self.metrics().iter().map(|definition| Arc::new(PluginMetric::new(definition.clone()))).collect()
    }

    /// Returns the definitions of the plugin's own metrics; none before the first instance was configured.
    pub(super) fn metrics(&self) -> &[PluginMetricDefinition] {
        self.metrics.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// Counts an instance.
    pub(super) fn count(&self) -> InstanceCount {
        self.live.fetch_add(1, Ordering::Relaxed);
        InstanceCount(self.live.clone())
    }
}

impl Drop for InstanceCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === Instance ===

impl Instance {
    /// Returns an instance that is not configured yet. Each step of making the instance may take `time`.
    pub fn unconfigured(
        plugin: &Arc<Plugin>,
        limits: PluginLimits,
        lines: PluginLog,
        access: &GrantedAccess,
        time: Duration,
    ) -> Result<Self, PluginFailure> {
        let mut store = Store::new(&plugin.engine, HostState::new(limits.memory, lines, access));
        store.limiter(|state| &mut state.limits);
        // What a call may hand over, in bytes as the host keeps it: no more than the plugin may have itself.
        store.set_hostcall_fuel(limits.memory.min(bounds::HANDED_OVER));
        store.set_max_component_handles(bounds::HANDLES);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().cpu.tick()));
        begin(&mut store, time);
        let made = match plugin.waits {
            true => at_once(plugin.instance.instantiate_async(&mut store)),
            false => plugin.instance.instantiate(&mut store).map_err(trapped),
        };
        let instance = made.map_err(|failure| failure.explained(&store.data().limits))?;
        let waiting =
            plugin.waits.then(|| WaitingHooks::load(plugin, &mut store, &instance).map(Box::new)).transpose()?;
        let lifecycle = plugin.lifecycle.load(&mut store, &instance).map_err(trapped)?;
        // A hook that is there loads, for its type was checked when the component was.
        macro_rules! load {
            ($hook:ident) => {
                plugin.$hook.as_ref().map(|hook| hook.load(&mut store, &instance)).transpose().map_err(trapped)?
            };
        }
        let (request_filter, response_filter) = (load!(request_filter), load!(response_filter));
        let (balancer, cache_policy) = (load!(balancer), load!(cache_policy));
        let (observer, timer) = (load!(observer), load!(timer));
        let (request_body, response_body) = (load!(request_body), load!(response_body));
        let (buffered_request_body, buffered_response_body) =
            (load!(buffered_request_body), load!(buffered_response_body));
        Ok(Instance {
            store,
            limit: limits.cpu,
            budget: limits.cpu,
            hook: HookKind::RequestFilter,
            is_in_body: false,
            imports_exchange: plugin.imports_exchange,
            request_bodies: plugin.body_ability(MessageSide::Request, limits.memory),
            response_bodies: plugin.body_ability(MessageSide::Response, limits.memory),
            waiting,
            lifecycle,
            request_filter,
            response_filter,
            balancer,
            cache_policy,
            observer,
            timer,
            request_body,
            response_body,
            buffered_request_body,
            buffered_response_body,
            response_edits: Vec::new(),
            counted: None,
        })
    }

    /// Returns an instance that is ready for hooks, and belongs to no worker yet. Each step may take `time`. `answers` are
    /// those that the first instance got while it was configured, if it has asked.
    pub(super) fn new(
        recipe: &InstanceRecipe,
        answers: Option<Arc<EarlyAnswers>>,
        time: Duration,
    ) -> Result<Self, PluginFailure> {
        let InstanceRecipe { plugin, limits, lines, access, .. } = recipe;
        let mut instance = Instance::unconfigured(plugin, *limits, lines.clone(), access, time)?;
        instance.store.data_mut().figures = InstanceMetrics::known(recipe.loose_figures());
        let configured = match answers {
            Some(answers) => instance.configure_by(answers, &recipe.config, time)?,
            None => instance.configure(&recipe.config, time)?,
        };
        match configured {
            Ok(_) => {
                instance.counted = Some(recipe.count());
                Ok(instance)
            }
            Err(_) => Err(PluginFailure::Reported("it refused a configuration that it took before".into())),
        }
    }

    /// Hands the instance to a worker, with the plugin's own metrics on that worker.
    pub fn adopt(&mut self, figures: Arc<[Arc<PluginMetric>]>) {
        self.store.data_mut().figures.adopt(figures);
    }

    /// Calls `describe`, which may take `time`.
    pub fn describe(&mut self, time: Duration) -> Result<Description, PluginFailure> {
        begin(&mut self.store, time);
        match &self.waiting {
            Some(hooks) => hooks.describe(&mut self.store),
            None => self.lifecycle.plugway_plugin_lifecycle().call_describe(&mut self.store).map_err(trapped),
        }
    }

    /// Gives the plugin its configuration; the inner error has JSON pointers and messages.
    pub fn configure(
        &mut self,
        config: &str,
        time: Duration,
    ) -> Result<Result<Settings, Vec<(String, String)>>, PluginFailure> {
        begin(&mut self.store, time);
        self.store.data_mut().figures.is_configuring = true;
        let answer = match &self.waiting {
            Some(hooks) => hooks.configure(&mut self.store, config),
            None => self.lifecycle.plugway_plugin_lifecycle().call_configure(&mut self.store, config).map_err(trapped),
        };
        self.store.data_mut().figures.is_configuring = false;
        let has_asked = std::mem::take(&mut self.store.data_mut().has_asked);
        match answer {
            Err(_) if has_asked => Err(PluginFailure::Asks),
            answer => Ok(answer.map_err(|failure| self.explained(failure))?.map_err(config_errors)),
        }
    }

    /// Gives the plugin its configuration with the answers that another instance has got. Nothing else is waited for: one
    /// thread makes the instances of all plugins.
    fn configure_by(
        &mut self,
        answers: Arc<EarlyAnswers>,
        config: &str,
        time: Duration,
    ) -> Result<Result<Settings, Vec<(String, String)>>, PluginFailure> {
        let failed = |_| PluginFailure::NoInstance("the system has no descriptor for making one");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        self.answer_by(answers);
        let configured = without_waiting(self.configure_waiting(config, time));
        runtime.block_on(configured).unwrap_or(Err(PluginFailure::WaitsAgain))
    }

    /// Returns the metrics that the instance has defined, if it is the first of its version.
    pub(super) fn defined_metrics(&mut self) -> Vec<PluginMetricDefinition> {
        self.store.data_mut().figures.first()
    }

    /// Calls the filter's hook for one side with the declared values.
    pub fn filter(
        &mut self,
        side: MessageSide,
        needs: &[ValueName],
        context: &mut Box<ExchangeContext>,
    ) -> Result<FilterVerdict, PluginFailure> {
        let hook = HookKind::filter(side);
        let verdict = self.with_values(hook, needs, context, |instance, values| instance.call_filter(side, values))?;
        checked(side, self.body_ability(side), verdict)
    }

    /// Calls the plugin's hook for whole bodies with the declared values.
    pub fn take_body(
        &mut self,
        body: WholeBody<'_>,
        needs: &[ValueName],
        context: &mut Box<ExchangeContext>,
    ) -> Result<BodyVerdict, PluginFailure> {
        self.store.set_hostcall_fuel(body.memory);
        let call = |instance: &mut Self, values: &[Option<&[u8]>]| instance.call_body_hook(body, values);
        let verdict = self.with_values(HookKind::Body, needs, context, call);
        self.store.set_hostcall_fuel(body.memory.min(bounds::HANDED_OVER));
        checked_body_verdict(body.side, verdict?)
    }

    /// Makes a call with the values of an exchange, which the plugin may ask about meanwhile.
    fn with_values<R>(
        &mut self,
        hook: HookKind,
        needs: &[ValueName],
        context: &mut Box<ExchangeContext>,
        call: impl FnOnce(&mut Self, &[Option<&[u8]>]) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        self.begin_call(hook);
        let owned_values: SmallVec<[Option<Value>; 8]> = needs.iter().map(|name| context.value(name)).collect();
        let values: SmallVec<[Option<&[u8]>; 8]> =
            owned_values.iter().map(|value| value.as_ref().map(|value| value.bytes())).collect();
        if !self.imports_exchange {
            return call(self, &values);
        }
        // The head is lent to the store for the call, so what was borrowed from it has to be copied.
        let copies: Vec<Option<Vec<u8>>> = values.iter().map(|value| value.map(<[u8]>::to_vec)).collect();
        drop(values);
        drop(owned_values);
        let values: Vec<Option<&[u8]>> = copies.iter().map(Option::as_deref).collect();
        let lent = std::mem::replace(context, Box::new(ExchangeContext::empty()));
        self.store.data_mut().context = Some(lent);
        let result = call(self, &values);
        if let Some(lent) = self.store.data_mut().context.take() {
            *context = lent;
        }
        result
    }

    fn body_ability(&self, side: MessageSide) -> Option<BodyAbility> {
        if side == MessageSide::Request { self.request_bodies } else { self.response_bodies }
    }

    /// Passes an upstream's endpoints to a balancer, which may take `time`. From then on, the plugin can ask for the
    /// load of these endpoints.
    pub fn endpoints_changed(&mut self, members: &Arc<EndpointSnapshot>, time: Duration) -> Result<(), PluginFailure> {
        begin(&mut self.store, time);
        self.hook = HookKind::Balancer;
        let endpoints: Vec<balancer::Endpoint<'_>> = members.list.iter().map(wit_endpoint).collect();
        self.store.data_mut().members = Some(members.clone());
        let hook = self.balancer.as_ref().ok_or(PluginFailure::NoHook)?;
        let plans =
            hook.plugway_plugin_balancer().call_endpoints_changed(&mut self.store, &endpoints).map_err(trapped)?;
        self.response_edits = checked_plans(plans, members.list.len())?;
        Ok(())
    }

    /// Asks a balancer for an endpoint, with the values and the key that it declared.
    pub fn pick(
        &mut self,
        needs: &[ValueName],
        key: Option<&ValueName>,
        context: &ExchangeContext,
        tried: SmallVec<[u32; 4]>,
        now: Instant,
    ) -> Result<Option<Picked>, PluginFailure> {
        self.begin_call(HookKind::Balancer);
        let owned_values: SmallVec<[Option<Value>; 4]> = needs.iter().map(|name| context.value(name)).collect();
        let values: SmallVec<[Option<&[u8]>; 4]> =
            owned_values.iter().map(|value| value.as_ref().map(|value| value.bytes())).collect();
        let key = key.and_then(|name| Some(xxh3_64(context.value(name)?.bytes())));
        let attempt = tried.len() as u32;
        let state = self.store.data_mut();
        (state.now, state.tried) = (now, tried);
        let hook = self.balancer.as_ref().ok_or(PluginFailure::NoHook)?;
        let choice =
            hook.plugway_plugin_balancer().call_pick(&mut self.store, &values, key, attempt).map_err(trapped)?;
        let Some(balancer::Choice { endpoint, response_edits }) = choice else { return Ok(None) };
        let prepared = |index: u32| self.response_edits.get(index as usize).cloned().ok_or(EditError::Plan(index));
        let edits = response_edits.map(prepared).transpose()?;
        Ok(Some(Picked { endpoint, edits }))
    }

    /// Passes an exchange that has ended to an observer.
    pub fn observe(&mut self, values: &[Option<Vec<u8>>], summary: &Summary) -> Result<(), PluginFailure> {
        self.begin_call(HookKind::Observer);
        let hook = self.observer.as_ref().ok_or(PluginFailure::NoHook)?;
        hook.plugway_plugin_observer().call_on_end(&mut self.store, values, summary).map_err(trapped)
    }

    /// Lets a timer's interval have passed.
    pub fn timer(&mut self) -> Result<(), PluginFailure> {
        self.begin_call(HookKind::Timer);
        let hook = self.timer.as_ref().ok_or(PluginFailure::NoHook)?;
        hook.plugway_plugin_timer().call_on_timer(&mut self.store).map_err(trapped)
    }

    /// Starts the measurement of a hook's call.
    pub(super) fn begin_call(&mut self, hook: HookKind) {
        self.hook = hook;
        begin(&mut self.store, self.budget);
    }

    /// Returns the CPU time of the next call.
    pub(super) fn budget(&self) -> Duration {
        self.budget
    }

    /// Returns the hook of the last call.
    pub(super) fn hook(&self) -> HookKind {
        self.hook
    }

    /// Sets whether the next calls are of a body that has not ended.
    pub(super) fn set_in_body(&mut self, is_in_body: bool) {
        self.is_in_body = is_in_body;
    }

    /// Returns the outcome of a call from which the plugin has returned in time.
    pub(super) fn returned(&self) -> CallOutcome {
        if self.is_in_body { CallOutcome::Continued } else { CallOutcome::Returned }
    }

    /// Limits the CPU time of the next calls, at most to `limits.cpu`.
    pub(super) fn set_budget(&mut self, budget: Duration) {
        self.budget = self.limit.min(budget);
    }

    /// Returns the CPU time of the last call since its first tick; `None` if no tick met the call.
    pub(super) fn cpu_since_tick(&self) -> Option<Duration> {
        self.store.data().cpu.since_tick()
    }

    /// Returns the failure of a call, with the limit of memory as its reason if the host has refused memory.
    pub(super) fn explained(&self, failure: PluginFailure) -> PluginFailure {
        failure.explained(&self.store.data().limits)
    }

    fn call_body_hook(
        &mut self,
        body: WholeBody<'_>,
        values: &[Option<&[u8]>],
    ) -> Result<types::BodyVerdict, PluginFailure> {
        match body.side {
            MessageSide::Request => {
                let hook = self.buffered_request_body.as_ref().ok_or(PluginFailure::NoHook)?;
                let hook = hook.plugway_plugin_buffered_request_body();
                hook.call_on_body(&mut self.store, values, body.content).map_err(trapped)
            }
            MessageSide::Response => {
                let hook = self.buffered_response_body.as_ref().ok_or(PluginFailure::NoHook)?;
                let hook = hook.plugway_plugin_buffered_response_body();
                hook.call_on_body(&mut self.store, values, body.content).map_err(trapped)
            }
        }
    }

    fn call_filter(&mut self, side: MessageSide, values: &[Option<&[u8]>]) -> Result<types::Verdict, PluginFailure> {
        match side {
            MessageSide::Request => {
                let hook = self.request_filter.as_ref().ok_or(PluginFailure::NoHook)?;
                hook.plugway_plugin_request_filter().call_on_request(&mut self.store, values).map_err(trapped)
            }
            MessageSide::Response => {
                let hook = self.response_filter.as_ref().ok_or(PluginFailure::NoHook)?;
                hook.plugway_plugin_response_filter().call_on_response(&mut self.store, values).map_err(trapped)
            }
        }
    }
}

/// Returns the errors of a configuration: JSON pointers and messages.
fn config_errors(errors: Vec<ConfigError>) -> Vec<(String, String)> {
    let message = |error: &ConfigError| one_line(&error.message, MAX_LINE_BYTES).into_owned();
    errors.into_iter().map(|error| (error.path.clone(), message(&error))).collect()
}

/// Starts the measurement of a call that may take `time`: the next tick is the first that the call notices.
fn begin(store: &mut Store<HostState>, time: Duration) {
    store.set_epoch_deadline(1);
    store.data_mut().limits.forget();
    store.data_mut().cpu.begin(time);
}

/// Returns an endpoint as a balancer sees it.
fn wit_endpoint(member: &EndpointState) -> balancer::Endpoint<'_> {
    balancer::Endpoint {
        address: &member.endpoint.address.text,
        weight: member.weight,
        state: match member.offer {
            Availability::Up => balancer::EndpointState::Up,
            Availability::Down => balancer::EndpointState::Down,
            Availability::Draining => balancer::EndpointState::Draining,
        },
        tier: member.tier,
        zone: &member.zone,
    }
}

pub(super) fn checked(
    side: MessageSide,
    bodies: Option<BodyAbility>,
    verdict: types::Verdict,
) -> Result<FilterVerdict, PluginFailure> {
    match verdict {
        types::Verdict::Proceed(edits) => Ok(FilterVerdict::Proceed(checked_edits(side, bodies, edits)?)),
        types::Verdict::Plan(plan_index) => Ok(FilterVerdict::Plan(plan_index)),
        types::Verdict::Respond(response) => Ok(FilterVerdict::Respond(checked_response(response)?)),
        types::Verdict::Fail(reason) => Err(reported_failure(reason)),
    }
}

fn checked_response(response: types::Response) -> Result<http::Response<Vec<u8>>, EditError> {
    let types::Response { status, fields, body } = response;
    check_count(bounds::RESPONSE_BODY, body.len(), "bytes of a response's body")?;
    let mut response = http::Response::new(body);
    *response.status_mut() = edit_check::status(status)?;
    *response.headers_mut() = edit_check::checked_fields(&fields)?;
    Ok(response)
}

fn checked_body_verdict(side: MessageSide, verdict: types::BodyVerdict) -> Result<BodyVerdict, PluginFailure> {
    let checked_edits = |edits: Vec<types::Edit>| {
        if edits.iter().any(|edit| matches!(edit, types::Edit::Body(_))) {
            return Err(EditError::BodyPassed);
        }
        checked_edits(side, None, edits)
    };
    match verdict {
        types::BodyVerdict::Proceed(edits) => Ok(BodyVerdict::Proceed(checked_edits(edits)?)),
        types::BodyVerdict::Replace(types::Replacement { content, edits }) => {
            Ok(BodyVerdict::Replace(content.into(), checked_edits(edits)?))
        }
        types::BodyVerdict::Respond(response) => Ok(BodyVerdict::Respond(checked_response(response)?)),
        types::BodyVerdict::Fail(reason) => Err(reported_failure(reason)),
    }
}

fn checked_edits(
    side: MessageSide,
    bodies: Option<BodyAbility>,
    edits: Vec<types::Edit>,
) -> Result<SmallVec<[Edit; 4]>, EditError> {
    check_count(bounds::EDITS, edits.len(), "edits of a call")?;
    edits.into_iter().map(|edit| checked_edit(side, bodies, edit)).collect()
}

/// The plans of a balancer that knows so many endpoints.
fn checked_plans(plans: Vec<Vec<types::Edit>>, endpoints: usize) -> Result<Vec<Arc<[Edit]>>, EditError> {
    check_count(bounds::RESPONSE_PLANS + endpoints, plans.len(), "plans for responses, with one for each endpoint")?;
    let max = bounds::DECLARED + bounds::DECLARED_PER_ENDPOINT * endpoints;
    let mut declared = 0;
    let plan = |edits| {
        let edits = checked_edits(MessageSide::Response, None, edits)?.into_vec();
        declared += edits.iter().map(Edit::declared_bytes).sum::<usize>();
        check_count(max, declared, "bytes of plans for responses, with 64 for each edit")?;
        Ok(edits.into())
    };
    plans.into_iter().map(plan).collect()
}

fn checked_edit(side: MessageSide, bodies: Option<BodyAbility>, edit: types::Edit) -> Result<Edit, EditError> {
    use types::Edit as Wit;
    let only = |wanted, what| if side == wanted { Ok(()) } else { Err(EditError::Side(what)) };
    Ok(match edit {
        Wit::SetField((name, value)) => {
            Edit::Set(edit_check::field_name(&name)?, edit_check::field_value(&name, &value)?)
        }
        Wit::AppendField((name, value)) => {
            Edit::Append(edit_check::repeatable_name(&name)?, edit_check::field_value(&name, &value)?)
        }
        Wit::DefaultField((name, value)) => {
            Edit::Default(edit_check::field_name(&name)?, edit_check::field_value(&name, &value)?)
        }
        Wit::RemoveField(name) => Edit::Remove(edit_check::field_name(&name)?),
        Wit::RenameField((from, to)) => Edit::Rename(edit_check::field_name(&from)?, edit_check::repeatable_name(&to)?),
        Wit::SetMethod(method) => {
            only(MessageSide::Request, "request's method")?;
            Edit::Method(edit_check::method(&method)?)
        }
        Wit::SetPath(path) => {
            only(MessageSide::Request, "request's path")?;
            Edit::Path(edit_check::target_part(path)?)
        }
        Wit::SetQuery(query) => {
            only(MessageSide::Request, "request's query")?;
            Edit::Query(query.map(edit_check::target_part).transpose()?)
        }
        Wit::SetAuthority(authority) => {
            only(MessageSide::Request, "request's authority")?;
            edit_check::name(&authority)?;
            Edit::Authority(edit_check::field_value("host", authority.as_bytes())?)
        }
        Wit::SetUpstream(name) => {
            only(MessageSide::Request, "request's upstream")?;
            edit_check::name(&name)?;
            Edit::Upstream(name)
        }
        Wit::SetStatus(status) => {
            only(MessageSide::Response, "response's status")?;
            Edit::Status(edit_check::status(status)?)
        }
        Wit::SetNote((name, value)) => {
            edit_check::name(&name)?;
            let value = edit_check::field_value(&name, &value)?;
            Edit::Note(name, value)
        }
        Wit::Plan(plan_index) => Edit::Plan(plan_index),
        Wit::MaxBody(max) => {
            only(MessageSide::Request, "request's limit of content")?;
            Edit::MaxBody(max)
        }
        Wit::Body(mode) => Edit::Body(body_mode(mode, bodies)?),
    })
}
