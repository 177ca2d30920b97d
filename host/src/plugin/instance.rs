//! A live copy of a plugin, and the rule for failures: a copy is spent when a call begins and whole again when the
//! call has returned, so a trap, a deadline or a refused growth costs exactly this copy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use wasmtime::Store;
use xxhash_rust::xxh3::xxh3_64;

use super::binding::{Binding, Limits};
use super::contract::balancer::exports::plugway::plugin::balancer;
use super::contract::lifecycle::exports::plugway::plugin::lifecycle::{Description, Settings};
use super::contract::{
    balancer as balancer_hook, cache_policy, lifecycle, observer, request_body, request_filter, response_body,
    response_filter, timer, types,
};
use super::engine::Plugin;
use super::host::HostState;
use super::lines::LONGEST;
use super::supply::Counted;
use crate::edit::{self, Edit, Refused, Side};
use crate::head::{Head, Value, ValueName};
use crate::metrics::{Place, Rejection};
use crate::upstream::live::{Member, Members, Offer};

pub use types::Summary;

/// A live copy.
pub struct Instance {
    pub(super) store: Store<HostState>,
    /// The CPU time of a call, `limits.cpu`.
    limit: Duration,
    /// The CPU time of the next calls: `limit`, or less while the plugin's breaker is half open.
    budget: Duration,
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
    response_plans: Vec<Arc<[Edit]>>,
    /// Counts the instance among those of its version.
    pub(super) counted: Option<Counted>,
}

/// How many times a call's limit making and configuring an instance may take where no request waits: off the workers.
pub(super) const PATIENCE: u32 = 20;

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
    pub edits: Option<Arc<[Edit]>>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Trap {
    #[error("{0:#}")]
    Wasm(wasmtime::Error),
    #[error("it ran longer than its limit")]
    Deadline,
    #[error("it asked for an edit that is refused: {0}")]
    Refused(#[from] Refused),
    #[error("it gave up: {0}")]
    Failed(String),
    #[error("it doesn't export this hook")]
    NoHook,
    #[error("limits.share of {0} % of a worker's time is used up")]
    Share(u8),
    #[error("its breaker is open after late or failed calls")]
    Open,
    #[error("no instance is ready: {0}")]
    NoInstance(&'static str),
    #[error("limits.bodies of {0} is reached")]
    Bodies(u32),
}

// === Instance ===

impl Instance {
    /// Returns an instance that is not configured yet. Each step of making the instance may take `time`.
    pub fn bare(plugin: &Arc<Plugin>, name: Arc<str>, limits: Limits, time: Duration) -> Result<Self, Trap> {
        let mut store = Store::new(&plugin.engine, HostState::new(name, limits.memory));
        store.limiter(|state| &mut state.limits);
        // What a call may hand over, in bytes as the host keeps it: no more than the plugin may have itself.
        store.set_hostcall_fuel(limits.memory);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().cpu.tick()));
        begin(&mut store, time);
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
            limit: limits.cpu,
            budget: limits.cpu,
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
            counted: None,
        })
    }

    /// Returns an instance that is ready for hooks, and belongs to no worker yet. Each step may take `time`.
    pub fn new(binding: &Binding, time: Duration) -> Result<Self, Trap> {
        let mut instance = Instance::bare(&binding.plugin, binding.name.clone(), binding.limits, time)?;
        match instance.configure(&binding.config, time)? {
            Ok(_) => {
                instance.counted = Some(binding.supply.count());
                Ok(instance)
            }
            Err(_) => Err(Trap::Failed("it refused a configuration that it took before".into())),
        }
    }

    /// Hands the instance to a worker, whose metrics the plugin's own metrics are from then on.
    pub fn adopt(&mut self, place: &Place) {
        self.store.data_mut().adopt(place);
    }

    /// Calls `describe`, which may take `time`.
    pub fn describe(&mut self, time: Duration) -> Result<Description, Trap> {
        begin(&mut self.store, time);
        self.lifecycle.plugway_plugin_lifecycle().call_describe(&mut self.store).map_err(trapped)
    }

    /// Gives the plugin its configuration; the inner error has JSON pointers and messages.
    pub fn configure(&mut self, config: &str, time: Duration) -> Result<Result<Settings, Vec<(String, String)>>, Trap> {
        begin(&mut self.store, time);
        let answer = self.lifecycle.plugway_plugin_lifecycle().call_configure(&mut self.store, config);
        let errors = |errors: Vec<lifecycle::exports::plugway::plugin::lifecycle::ConfigError>| {
            errors.into_iter().map(|error| (error.path, error.message)).collect()
        };
        Ok(answer.map_err(trapped)?.map_err(errors))
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

    /// Passes its endpoints to a balancer, which may take `time`. From then on, the plugin can ask about these.
    pub fn endpoints_changed(&mut self, members: &Arc<Members>, time: Duration) -> Result<(), Trap> {
        begin(&mut self.store, time);
        let told: Vec<balancer::Endpoint<'_>> = members.list.iter().map(told).collect();
        self.store.data_mut().members = Some(members.clone());
        let hook = self.balancer.as_ref().ok_or(Trap::NoHook)?;
        let plans = hook.plugway_plugin_balancer().call_endpoints_changed(&mut self.store, &told).map_err(trapped)?;
        let checked = plans.into_iter().map(|edits| Ok(checked_edits(Side::Response, edits)?.into_vec().into()));
        self.response_plans = checked.collect::<Result<_, Refused>>()?;
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

    /// Starts the measurement of a call.
    pub(super) fn begin_call(&mut self) {
        begin(&mut self.store, self.budget);
    }

    /// Limits the CPU time of the next calls, at most to `limits.cpu`.
    pub(super) fn set_budget(&mut self, budget: Duration) {
        self.budget = self.limit.min(budget);
    }

    /// Returns the CPU time of the last call since its first tick; `None` if no tick met the call.
    pub(super) fn cpu_since_tick(&self) -> Option<Duration> {
        self.store.data().cpu.since_tick()
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

impl Trap {
    /// Returns the reason if no call was made.
    pub fn rejection(&self) -> Option<Rejection> {
        match self {
            Trap::Share(_) => Some(Rejection::Share),
            Trap::Open => Some(Rejection::Breaker),
            Trap::NoInstance(_) => Some(Rejection::Instance),
            Trap::Bodies(_) => Some(Rejection::Bodies),
            Trap::Wasm(_) | Trap::Deadline | Trap::Refused(_) | Trap::Failed(_) | Trap::NoHook => None,
        }
    }
}

/// Starts the measurement of a call that may take `time`: the next tick is the first that the call notices.
fn begin(store: &mut Store<HostState>, time: Duration) {
    store.set_epoch_deadline(1);
    store.data_mut().cpu.begin(time);
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
pub(super) fn gave_up(mut reason: String) -> Trap {
    reason.truncate(reason.floor_char_boundary(LONGEST));
    Trap::Failed(reason)
}

pub(super) fn trapped(error: wasmtime::Error) -> Trap {
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return Trap::NoInstance("the pool of instances, sized at start from the manifest, is used up");
    }
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => Trap::Deadline,
        _ => Trap::Wasm(error),
    }
}

fn checked(side: Side, verdict: types::Verdict) -> Result<Verdict, Trap> {
    match verdict {
        types::Verdict::Proceed(edits) => Ok(Verdict::Proceed(checked_edits(side, edits)?)),
        types::Verdict::Plan(place) => Ok(Verdict::Plan(place)),
        types::Verdict::Respond(types::Response { status, fields, body }) => {
            let mut response = http::Response::new(body);
            *response.status_mut() = edit::status(status)?;
            edit::count(fields.len())?;
            for (name, value) in fields {
                response.headers_mut().append(edit::field_name(&name)?, edit::field_value(&name, &value)?);
            }
            Ok(Verdict::Respond(response))
        }
        types::Verdict::Fail(reason) => Err(gave_up(reason)),
    }
}

fn checked_edits(side: Side, edits: Vec<types::Edit>) -> Result<SmallVec<[Edit; 4]>, Refused> {
    edit::count(edits.len())?;
    edits.into_iter().map(|edit| checked_edit(side, edit)).collect()
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
            Edit::Method(http::Method::from_bytes(method.as_bytes()).map_err(|_| Refused::Method(method))?)
        }
        Wit::SetPath(path) => {
            only(Side::Request, "request's path")?;
            Edit::Path(path)
        }
        Wit::SetQuery(query) => {
            only(Side::Request, "request's query")?;
            Edit::Query(query)
        }
        Wit::SetAuthority(authority) => {
            only(Side::Request, "request's authority")?;
            Edit::Authority(edit::field_value("host", authority.as_bytes())?)
        }
        Wit::SetUpstream(name) => {
            only(Side::Request, "request's upstream")?;
            Edit::Upstream(name)
        }
        Wit::SetStatus(status) => {
            only(Side::Response, "response's status")?;
            Edit::Status(edit::status(status)?)
        }
        Wit::SetNote((name, value)) => Edit::Note(name.clone(), edit::field_value(&name, &value)?),
        Wit::Plan(place) => Edit::Plan(place),
    })
}
