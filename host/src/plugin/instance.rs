//! A live copy of a plugin, and the rule for failures: a copy is spent when a call begins and whole again when the
//! call has returned, so a trap, a deadline or a refused growth costs exactly this copy.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use wasmtime::Store;
use xxhash_rust::xxh3::xxh3_64;

use super::binding::{Binding, Isolation, Limits};
use super::contract::balancer::exports::plugway::plugin::balancer;
use super::contract::lifecycle::exports::plugway::plugin::lifecycle::{Description, Settings};
use super::contract::{
    balancer as balancer_hook, cache_policy, lifecycle, observer, request_body, request_filter, response_body,
    response_filter, timer, types,
};
use super::declared::shortened;
use super::engine::{Plugin, TICK};
use super::figures::Figures;
use super::host::HostState;
use crate::bounds;
use crate::edit::{self, Edit, Refused, Side, at_most};
use crate::head::{Head, Value, ValueName};
use crate::metrics::{Definition, Place};
use crate::upstream::live::{Member, Members, Offer};

pub use types::Summary;

/// A live copy.
pub struct Instance {
    pub(super) store: Store<HostState>,
    deadline: u64,
    looks_back: bool,
    lifecycle: lifecycle::LifecycleHook,
    request_filter: Option<request_filter::RequestFilterHook>,
    response_filter: Option<response_filter::ResponseFilterHook>,
    balancer: Option<balancer_hook::BalancerHook>,
    pub(super) cache_policy: Option<cache_policy::CachePolicyHook>,
    observer: Option<observer::ObserverHook>,
    timer: Option<timer::TimerHook>,
    pub(super) request_body: Option<request_body::RequestBodyHook>,
    pub(super) response_body: Option<response_body::ResponseBodyHook>,
    /// What its balancer may want done to responses.
    response_plans: Vec<Rc<[Edit]>>,
}

/// How many times a call's limit making and configuring an instance may take.
const PATIENCE: u64 = 20;

/// What a filter decided, checked.
pub enum Verdict {
    /// Go on, with these edits.
    Proceed(SmallVec<[Edit; 4]>),
    /// Go on, with the edits of the plan at this place.
    Plan(u32),
    /// Answer.
    Respond(http::Response<Vec<u8>>),
}

/// What a balancer chose, checked but for whether the endpoint is there.
pub struct Picked {
    /// Its index.
    pub endpoint: u32,
    /// For the response.
    pub edits: Option<Rc<[Edit]>>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Trap {
    #[error("{0:#}")]
    Wasm(wasmtime::Error),
    #[error("it ran longer than its limit")]
    Deadline,
    #[error("it handed over more data in one call than 5 MiB, or its `limits.memory`, allow")]
    HandedOver,
    #[error("it asked for an edit that is refused: {0}")]
    Refused(#[from] Refused),
    #[error("it gave up: {0}")]
    Failed(String),
    #[error("it doesn't export this hook")]
    NoHook,
}

/// One worker's place for an instance of a binding: makes one where there is none, and drops one that failed. Boxed,
/// since it leaves its place for every call.
pub struct Slot {
    instance: Option<Box<Instance>>,
    isolation: Isolation,
}

// === Instance ===

impl Instance {
    /// A copy that isn't configured yet.
    pub fn bare(plugin: &Arc<Plugin>, name: Arc<str>, limits: Limits) -> Result<Self, Trap> {
        let mut store = Store::new(&plugin.engine, HostState::new(name, limits.memory));
        store.limiter(|state| &mut state.limits);
        // What a call may hand over, in bytes as the host keeps it: no more than the plugin may have itself.
        store.set_hostcall_fuel(limits.memory.min(bounds::HANDED_OVER));
        store.set_max_component_handles(bounds::HANDLES);
        // A deadline is met at the first tick after its time has passed.
        let deadline = (limits.cpu.as_micros().div_ceil(TICK.as_micros()) + 1) as u64;
        // On a busy machine a thread that has just been started may wait longer than a request's call should take.
        store.set_epoch_deadline(deadline * PATIENCE);
        let instance = plugin.instance.instantiate(&mut store).map_err(trapped)?;
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
        Ok(Instance {
            store,
            deadline,
            looks_back: plugin.looks_back,
            lifecycle,
            request_filter,
            response_filter,
            balancer,
            cache_policy,
            observer,
            timer,
            request_body,
            response_body,
            response_plans: Vec::new(),
        })
    }

    /// A copy ready for hooks, whose own figures go to a worker's place in the registry.
    pub fn new(binding: &Binding, figures: &Place) -> Result<Self, Trap> {
        let mut instance = Instance::bare(&binding.plugin, binding.name.clone(), binding.limits)?;
        instance.store.data_mut().figures = Figures::known(binding.figures(figures));
        match instance.configure(&binding.config)? {
            Ok(_) => Ok(instance),
            Err(_) => Err(Trap::Failed("it refused a configuration that it took before".into())),
        }
    }

    pub fn describe(&mut self) -> Result<Description, Trap> {
        self.store.set_epoch_deadline(self.deadline * PATIENCE);
        self.lifecycle.plugway_plugin_lifecycle().call_describe(&mut self.store).map_err(trapped)
    }

    /// Gives the plugin its configuration; the inner error has JSON pointers and messages.
    pub fn configure(&mut self, config: &str) -> Result<Result<Settings, Vec<(String, String)>>, Trap> {
        // Parsing a large configuration may take longer than a request should.
        self.store.set_epoch_deadline(self.deadline * PATIENCE);
        self.store.data_mut().figures.is_configuring = true;
        let answer = self.lifecycle.plugway_plugin_lifecycle().call_configure(&mut self.store, config);
        self.store.data_mut().figures.is_configuring = false;
        let errors = |errors: Vec<lifecycle::exports::plugway::plugin::lifecycle::ConfigError>| {
            errors.into_iter().map(|error| (error.path, error.message)).collect()
        };
        Ok(answer.map_err(trapped)?.map_err(errors))
    }

    /// The metrics that the instance has defined, if it is the first of its binding.
    pub(super) fn defined(&mut self) -> Vec<Definition> {
        self.store.data_mut().figures.first()
    }

    /// Calls the filter's hook for one side with the declared values.
    pub fn filter(&mut self, side: Side, needs: &[ValueName], head: &mut Box<Head>) -> Result<Verdict, Trap> {
        self.begin_call();
        let found: SmallVec<[Option<Value>; 8]> = needs.iter().map(|name| head.value(name)).collect();
        let values: SmallVec<[Option<&[u8]>; 8]> =
            found.iter().map(|value| value.as_ref().map(|value| value.bytes())).collect();
        if !self.looks_back {
            return checked(side, self.call_filter(side, &values)?);
        }
        // The head is lent to the store for the call, so what was borrowed from it has to be copied.
        let copies: Vec<Option<Vec<u8>>> = values.iter().map(|value| value.map(<[u8]>::to_vec)).collect();
        drop(values);
        drop(found);
        let values: Vec<Option<&[u8]>> = copies.iter().map(Option::as_deref).collect();
        let lent = std::mem::replace(head, Box::new(Head::empty()));
        self.store.data_mut().head = Some(lent);
        let verdict = self.call_filter(side, &values);
        if let Some(lent) = self.store.data_mut().head.take() {
            *head = lent;
        }
        checked(side, verdict?)
    }

    /// Tells a balancer its endpoints, which are also what it can ask about from now on.
    pub fn endpoints_changed(&mut self, members: &Arc<Members>) -> Result<(), Trap> {
        // Tables for a thousand endpoints take longer than a request's call should.
        self.store.set_epoch_deadline(self.deadline * PATIENCE);
        let told: Vec<balancer::Endpoint<'_>> = members.list.iter().map(told).collect();
        self.store.data_mut().members = Some(members.clone());
        let hook = self.balancer.as_ref().ok_or(Trap::NoHook)?;
        let plans = hook.plugway_plugin_balancer().call_endpoints_changed(&mut self.store, &told).map_err(trapped)?;
        self.response_plans = checked_plans(plans, members.list.len())?;
        Ok(())
    }

    /// Asks a balancer for an endpoint, with the values and the key that it declared.
    pub fn pick(
        &mut self,
        (needs, key): (&[ValueName], Option<&ValueName>),
        head: &Head,
        tried: SmallVec<[u32; 4]>,
        now: Instant,
    ) -> Result<Option<Picked>, Trap> {
        self.begin_call();
        let found: SmallVec<[Option<Value>; 4]> = needs.iter().map(|name| head.value(name)).collect();
        let values: SmallVec<[Option<&[u8]>; 4]> =
            found.iter().map(|value| value.as_ref().map(|value| value.bytes())).collect();
        let key = key.and_then(|name| Some(xxh3_64(head.value(name)?.bytes())));
        let attempt = tried.len() as u32;
        let state = self.store.data_mut();
        (state.now, state.tried) = (now, tried);
        let hook = self.balancer.as_ref().ok_or(Trap::NoHook)?;
        let choice =
            hook.plugway_plugin_balancer().call_pick(&mut self.store, &values, key, attempt).map_err(trapped)?;
        let Some(balancer::Choice { endpoint, response_plan }) = choice else { return Ok(None) };
        let planned = |place: u32| self.response_plans.get(place as usize).cloned().ok_or(Refused::Plan(place));
        let edits = response_plan.map(planned).transpose()?;
        Ok(Some(Picked { endpoint, edits }))
    }

    /// Tells an observer of an exchange that is over.
    pub fn observe(&mut self, needs: &[ValueName], head: &Head, summary: &Summary) -> Result<(), Trap> {
        self.begin_call();
        let copy = |name| head.value(name).map(|value| value.bytes().to_vec());
        let values: Vec<Option<Vec<u8>>> = needs.iter().map(copy).collect();
        let hook = self.observer.as_ref().ok_or(Trap::NoHook)?;
        hook.plugway_plugin_observer().call_on_end(&mut self.store, &values, summary).map_err(trapped)
    }

    /// Lets a timer's interval have passed.
    pub fn timer(&mut self) -> Result<(), Trap> {
        self.begin_call();
        let hook = self.timer.as_ref().ok_or(Trap::NoHook)?;
        hook.plugway_plugin_timer().call_on_timer(&mut self.store).map_err(trapped)
    }

    /// Gives the next call its time.
    pub(super) fn begin_call(&mut self) {
        self.store.set_epoch_deadline(self.deadline);
    }

    fn call_filter(&mut self, side: Side, values: &[Option<&[u8]>]) -> Result<types::Verdict, Trap> {
        match side {
            Side::Request => {
                let hook = self.request_filter.as_ref().ok_or(Trap::NoHook)?;
                hook.plugway_plugin_request_filter().call_on_request(&mut self.store, values).map_err(trapped)
            }
            Side::Response => {
                let hook = self.response_filter.as_ref().ok_or(Trap::NoHook)?;
                hook.plugway_plugin_response_filter().call_on_response(&mut self.store, values).map_err(trapped)
            }
        }
    }
}

// === Slot ===

impl Slot {
    /// An empty place.
    pub fn new(isolation: Isolation) -> Self {
        Slot { instance: None, isolation }
    }

    /// Makes the instance ahead of its first call.
    pub fn warm(&mut self, prepare: impl FnOnce() -> Result<Instance, Trap>) -> Result<(), Trap> {
        if self.instance.is_none() {
            self.instance = Some(Box::new(prepare()?));
        }
        Ok(())
    }

    /// Runs a call; the instance goes back to its place only if the call returned, and if others may have it.
    pub fn call<R>(
        &mut self,
        prepare: impl FnOnce() -> Result<Instance, Trap>,
        call: impl FnOnce(&mut Instance) -> Result<R, Trap>,
    ) -> Result<R, Trap> {
        let mut instance = self.instance.take().map_or_else(|| prepare().map(Box::new), Ok)?;
        let result = call(&mut instance);
        let returned = matches!(result, Ok(_) | Err(Trap::Failed(_) | Trap::Refused(_) | Trap::NoHook));
        if returned && self.isolation == Isolation::Worker {
            self.instance = Some(instance);
        }
        result
    }
}

/// What a balancer is told of an endpoint.
fn told(member: &Member) -> balancer::Endpoint<'_> {
    balancer::Endpoint {
        address: &member.endpoint.address.text,
        weight: member.weight,
        state: match member.offer {
            Offer::Up => balancer::EndpointState::Up,
            Offer::Down => balancer::EndpointState::Down,
            Offer::Draining => balancer::EndpointState::Draining,
        },
        tier: member.tier,
        zone: &member.zone,
    }
}

/// What a plugin says of its failure, cut to what a log line holds.
pub(super) fn gave_up(reason: String) -> Trap {
    Trap::Failed(shortened(reason, bounds::REASON))
}

pub(super) fn trapped(error: wasmtime::Error) -> Trap {
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => Trap::Deadline,
        // wasmtime has no type for this error that others can name.
        _ if error.root_cause().to_string().contains("fuel allocated for hostcalls") => Trap::HandedOver,
        _ => Trap::Wasm(error),
    }
}

fn checked(side: Side, verdict: types::Verdict) -> Result<Verdict, Trap> {
    match verdict {
        types::Verdict::Proceed(edits) => Ok(Verdict::Proceed(checked_edits(side, edits)?)),
        types::Verdict::Plan(place) => Ok(Verdict::Plan(place)),
        types::Verdict::Respond(types::Response { status, fields, body }) => {
            at_most(bounds::RESPONSE_BODY, body.len(), "bytes of a response's body")?;
            let mut response = http::Response::new(body);
            *response.status_mut() = edit::status(status)?;
            *response.headers_mut() = edit::checked_fields(&fields)?;
            Ok(Verdict::Respond(response))
        }
        types::Verdict::Fail(reason) => Err(gave_up(reason)),
    }
}

fn checked_edits(side: Side, edits: Vec<types::Edit>) -> Result<SmallVec<[Edit; 4]>, Refused> {
    at_most(bounds::EDITS, edits.len(), "edits of a call")?;
    edits.into_iter().map(|edit| checked_edit(side, edit)).collect()
}

/// The plans of a balancer that knows so many endpoints.
fn checked_plans(plans: Vec<Vec<types::Edit>>, endpoints: usize) -> Result<Vec<Rc<[Edit]>>, Refused> {
    at_most(bounds::RESPONSE_PLANS + endpoints, plans.len(), "plans for responses, with one for each endpoint")?;
    let most = bounds::DECLARED + bounds::DECLARED_PER_ENDPOINT * endpoints;
    let mut declared = 0;
    let plan = |edits| {
        let edits = checked_edits(Side::Response, edits)?.into_vec();
        declared += edits.iter().map(Edit::declared).sum::<usize>();
        at_most(most, declared, "bytes of plans for responses, with 64 for each edit")?;
        Ok(edits.into())
    };
    plans.into_iter().map(plan).collect()
}

fn checked_edit(side: Side, edit: types::Edit) -> Result<Edit, Refused> {
    use types::Edit as Wit;
    let only = |wanted, what| if side == wanted { Ok(()) } else { Err(Refused::Side(what)) };
    Ok(match edit {
        Wit::SetField((name, value)) => Edit::Set(edit::field_name(&name)?, edit::field_value(&name, &value)?),
        Wit::AppendField((name, value)) => Edit::Append(edit::field_name(&name)?, edit::field_value(&name, &value)?),
        Wit::DefaultField((name, value)) => Edit::Default(edit::field_name(&name)?, edit::field_value(&name, &value)?),
        Wit::RemoveField(name) => Edit::Remove(edit::field_name(&name)?),
        Wit::RenameField((from, to)) => Edit::Rename(edit::field_name(&from)?, edit::field_name(&to)?),
        Wit::SetMethod(method) => {
            only(Side::Request, "request's method")?;
            Edit::Method(edit::method(&method)?)
        }
        Wit::SetPath(path) => {
            only(Side::Request, "request's path")?;
            Edit::Path(edit::target_part(path)?)
        }
        Wit::SetQuery(query) => {
            only(Side::Request, "request's query")?;
            Edit::Query(query.map(edit::target_part).transpose()?)
        }
        Wit::SetAuthority(authority) => {
            only(Side::Request, "request's authority")?;
            edit::name(&authority)?;
            Edit::Authority(edit::field_value("host", authority.as_bytes())?)
        }
        Wit::SetUpstream(name) => {
            only(Side::Request, "request's upstream")?;
            edit::name(&name)?;
            Edit::Upstream(name)
        }
        Wit::SetStatus(status) => {
            only(Side::Response, "response's status")?;
            Edit::Status(edit::status(status)?)
        }
        Wit::SetNote((name, value)) => {
            edit::name(&name)?;
            let value = edit::field_value(&name, &value)?;
            Edit::Note(name, value)
        }
        Wit::Plan(place) => Edit::Plan(place),
    })
}
