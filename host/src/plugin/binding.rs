//! A plugin bound to a configuration: what it declared, checked once.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::contract::lifecycle::exports::plugway::plugin::lifecycle::{Description, LookupPlan as LookupPlanSettings};
use super::contract::types;
use super::engine::Plugin;
use super::host::value_name;
use super::instance::{Instance, PATIENCE, Trap};
use super::share::DEFAULT_SHARE;
use super::supply::Supply;
use crate::edit::{Part, Planned, Refused, Template, field_name, field_value};
use crate::head::{Head, ValueName};

/// A plugin with its configuration and limits; workers make instances of it.
pub struct Binding {
    /// How the manifest names it.
    pub name: Arc<str>,
    pub(super) plugin: Arc<Plugin>,
    pub(super) config: String,
    pub(super) limits: Limits,
    /// The part that all workers and generations share.
    pub supply: Arc<Supply>,
    /// What a failed call means for the exchange.
    pub on_error: OnError,
    /// Who gets a fresh instance.
    pub isolation: Isolation,
    /// What its hooks can have carried out.
    pub plans: Vec<Vec<Planned>>,
    /// How requests pass it.
    pub request: Hook,
    /// How responses pass it.
    pub response: Hook,
    /// Values for its balancer.
    pub balancer: Vec<ValueName>,
    /// The value of which its balancer gets the hash.
    pub balancer_key: Option<ValueName>,
    /// What its cache policy wants; none if it has none.
    pub cache: Option<CacheNeeds>,
    /// Values for its observer; none if it doesn't observe.
    pub observer: Option<Vec<ValueName>>,
    /// How often its timer is called; none if it has none.
    pub timer: Option<Duration>,
    /// How it takes request bodies; none if it doesn't.
    pub request_body: Option<BodyMode>,
    /// How it takes response bodies; none if it doesn't.
    pub response_body: Option<BodyMode>,
}

/// What a cache policy declared.
pub struct CacheNeeds {
    /// Values for the request side.
    pub request: Vec<ValueName>,
    /// Values for the response side.
    pub response: Vec<ValueName>,
    /// What most requests are looked up by, without a call.
    pub plan: Option<LookupPlan>,
    /// How `Cache-Status` names the cache; none for no such field.
    pub name: Option<String>,
    /// Whether the key is told there.
    pub tells_key: bool,
}

/// A piece of a key.
enum KeyPart {
    Text(Vec<u8>),
    /// Nothing where it is absent.
    Value(ValueName),
}

/// A lookup that needs no call.
pub struct LookupPlan {
    key: Vec<KeyPart>,
    /// Fields that a request may not have.
    fields: Vec<HeaderName>,
    /// Other values that there may not be.
    values: Vec<ValueName>,
}

impl LookupPlan {
    /// The key of a request; none if it is a matter for the plugin.
    pub fn key(&self, head: &Head) -> Option<Vec<u8>> {
        let fields = &head.request.headers;
        // Most requests have none of them, which one look at the names they do have nearly always tells.
        let present = fields.keys().fold(0, |present, name| present | trace(name));
        let has = |name: &HeaderName| present & trace(name) != 0 && fields.contains_key(name);
        if self.fields.iter().any(has) || self.values.iter().any(|name| head.value(name).is_some()) {
            return None;
        }
        let mut key = Vec::new();
        for part in &self.key {
            match part {
                KeyPart::Text(text) => key.extend_from_slice(text),
                KeyPart::Value(ValueName::Uri) => head.put_uri(&mut key),
                KeyPart::Value(name) => {
                    key.extend_from_slice(head.value(name).as_ref().map_or(b"", |value| value.bytes()))
                }
            }
        }
        Some(key)
    }
}

/// One of 64 bits, by the length and the end of a name.
fn trace(name: &HeaderName) -> u64 {
    let name = name.as_str().as_bytes();
    1 << ((name.len() * 7 + usize::from(name.last().copied().unwrap_or(0))) % 64)
}

/// How a plugin takes bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyMode {
    /// Chunk by chunk.
    Streamed,
    /// Whole, up to so many bytes.
    Buffered(u64, Beyond),
}

/// What happens to a body beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    Refuse,
    Pass,
}

/// Each body holds an instance, and slow clients of one plugin must not use up what others need.
const DEFAULT_BODIES: u32 = 256;

/// A shorter interval would be called no more often.
const SHORTEST_TIMER: Duration = crate::clock::TICK;

/// What a hook does.
pub enum Hook {
    /// It isn't there.
    Absent,
    /// The host carries out this plan.
    Plan(usize),
    /// It is called with these values.
    Call(Vec<ValueName>),
}

/// What an instance may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory, in bytes.
    pub memory: usize,
    /// CPU time per call.
    pub cpu: Duration,
    /// The share of a worker's time, in percent; 100 is no limit.
    pub share: u8,
    /// Bodies that pass through the plugin at a time, over all workers.
    pub bodies: u32,
}

/// What becomes of an exchange whose plugin failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The client gets 502.
    Fail,
    /// The exchange goes on as if the plugin weren't there.
    Skip,
    /// The client gets this status.
    Respond(http::StatusCode),
}

/// How long an instance lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// It serves one request of its worker after the other.
    Worker,
    /// It serves one call: nothing that it keeps can reach another request.
    Request,
}

/// A configuration that the plugin, or the host, can't take.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{}", .0.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>().join("; "))]
    Config(Vec<(String, String)>),
    #[error("the plugin failed while it was configured: {0}")]
    Trap(#[from] Trap),
    #[error("the plugin declared what can't be: {0}")]
    Refused(#[from] Refused),
}

impl Default for Limits {
    /// 16 MiB hold any filter that doesn't keep bodies; 50 ms is two and a half scheduler rounds of a busy machine.
    fn default() -> Self {
        Limits { memory: 16 << 20, cpu: Duration::from_millis(50), share: DEFAULT_SHARE, bodies: DEFAULT_BODIES }
    }
}

impl Limits {
    /// Returns the CPU time of a step in making an instance, off the workers: parsing a large configuration, or tables for
    /// a thousand endpoints, may take longer than a request should.
    pub fn making_time(self) -> Duration {
        self.cpu * PATIENCE
    }
}

/// What a plugin says of itself.
pub fn describe(plugin: &Arc<Plugin>) -> Result<Description, Trap> {
    let limits = Limits::default();
    Instance::bare(plugin, "describe".into(), limits, limits.cpu * PATIENCE)?.describe(limits.cpu * PATIENCE)
}

impl Binding {
    /// Configures a first instance, and so learns what the plugin needs.
    pub fn new(
        name: Arc<str>,
        plugin: Arc<Plugin>,
        config: String,
        limits: Limits,
        on_error: OnError,
        isolation: Isolation,
    ) -> Result<Self, BindError> {
        let supply = Supply::of(&plugin, &name, &config, limits, isolation);
        let (settings, first) = supply.measure(|| {
            let mut first = Instance::bare(&plugin, name.clone(), limits, limits.making_time())?;
            let settings = first.configure(&config, limits.making_time())?.map_err(BindError::Config)?;
            Ok::<_, BindError>((settings, Box::new(first)))
        })?;
        let names = |values: Vec<types::ValueName>| values.into_iter().map(value_name).collect::<Result<Vec<_>, _>>();
        let plan = |plan: Vec<types::PlannedEdit>| plan.into_iter().map(planned).collect::<Result<Vec<_>, _>>();
        let plans = settings.plans.into_iter().map(plan).collect::<Result<Vec<_>, _>>()?;
        let request = hook(&plans, plugin.request_filter.is_some(), settings.request_values, settings.request_plan)?;
        let response =
            hook(&plans, plugin.response_filter.is_some(), settings.response_values, settings.response_plan)?;
        let balancer = names(settings.balancer_values)?;
        let balancer_key = settings.balancer_key.map(value_name).transpose()?;
        let cache = match &plugin.cache_policy {
            Some(_) => {
                let (request, response) =
                    (names(settings.cache_request_values)?, names(settings.cache_response_values)?);
                let plan = settings.lookup_plan.map(lookup_plan).transpose()?;
                let tells_key = settings.cache_status.as_ref().is_some_and(|status| status.key);
                let name = settings.cache_status.map(|status| token(status.name)).transpose()?;
                Some(CacheNeeds { request, response, plan, name, tells_key })
            }
            None => None,
        };
        let observer = plugin.observer.as_ref().map(|_| names(settings.observer_values)).transpose()?;
        let interval = settings.timer_interval_ms.map(|ms| Duration::from_millis(ms).max(SHORTEST_TIMER));
        let timer = plugin.timer.as_ref().and(interval);
        let mode = |mode: Option<types::BodyMode>| body_mode(mode.unwrap_or(types::BodyMode::Streamed), limits);
        let request_body = plugin.request_body.as_ref().map(|_| mode(settings.request_body)).transpose()?;
        let response_body = plugin.response_body.as_ref().map(|_| mode(settings.response_body)).transpose()?;
        let binding = Binding {
            name,
            plugin,
            config,
            limits,
            supply,
            on_error,
            isolation,
            plans,
            request,
            response,
            balancer,
            balancer_key,
            cache,
            observer,
            timer,
            request_body,
            response_body,
        };
        if binding.is_called() || binding.balances() || binding.takes_bodies() {
            binding.supply.keep(first);
        }
        Ok(binding)
    }

    /// What each head hook, balancer and observer is called with, in words for people.
    pub fn needs(&self) -> Vec<(&'static str, String)> {
        let list = |names: &[ValueName]| match names {
            [] => "is called without values".into(),
            names => format!("needs {}", names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let head = |hook: &Hook| match hook {
            Hook::Absent => None,
            Hook::Plan(plan) => {
                Some(format!("is a plan of {} edits, carried out by the host", self.plans[*plan].len()))
            }
            Hook::Call(names) => Some(list(names)),
        };
        let request = head(&self.request).map(|needs| ("request-filter", needs));
        let response = head(&self.response).map(|needs| ("response-filter", needs));
        let hashed = |key: &ValueName| format!(", with the hash of {key}");
        let key = self.balancer_key.as_ref().map(hashed).unwrap_or_default();
        let balancer = self.balances().then(|| ("balancer", list(&self.balancer) + &key));
        let plan = |needs: &CacheNeeds| match needs.plan {
            Some(_) => "; most lookups are a plan, carried out by the host",
            None => "",
        };
        let cache = self.cache.as_ref().map(|needs| {
            ("cache-policy", format!("{}, of responses {}{}", list(&needs.request), list(&needs.response), plan(needs)))
        });
        let observer = self.observer.as_ref().map(|names| ("observer", list(names)));
        [request, response, balancer, cache, observer].into_iter().flatten().collect()
    }

    /// Whether requests need an instance of it in a chain: where the host carries out plans, nobody is called.
    pub fn is_called(&self) -> bool {
        let called = |hook: &Hook| matches!(hook, Hook::Call(_));
        let is_told = self.cache.is_some() || self.observer.is_some() || self.timer.is_some();
        called(&self.request) || called(&self.response) || is_told
    }

    /// Whether bodies pass through it.
    fn takes_bodies(&self) -> bool {
        self.request_body.is_some() || self.response_body.is_some()
    }

    /// Whether it can choose endpoints.
    pub fn balances(&self) -> bool {
        self.plugin.balancer.is_some()
    }
}

fn lookup_plan(plan: LookupPlanSettings) -> Result<LookupPlan, Refused> {
    let (mut fields, mut values) = (Vec::new(), Vec::new());
    for name in plan.unless {
        match value_name(name)? {
            ValueName::RequestField(name) => fields.push(name),
            name => values.push(name),
        }
    }
    let part = |part| match part {
        types::TemplatePart::Text(text) => Ok(KeyPart::Text(text)),
        types::TemplatePart::Value(name) => value_name(name).map(KeyPart::Value),
    };
    Ok(LookupPlan { key: plan.key.into_iter().map(part).collect::<Result<_, _>>()?, fields, values })
}

/// A name that is a token (RFC 9110 §5.6.2), as those of fields are.
fn token(name: String) -> Result<String, Refused> {
    field_name(&name).map(|_| name)
}

fn hook(
    plans: &[Vec<Planned>],
    exported: bool,
    values: Vec<types::ValueName>,
    plan: Option<u32>,
) -> Result<Hook, Refused> {
    match plan {
        _ if !exported => Ok(Hook::Absent),
        Some(place) => match plans.get(place as usize) {
            Some(plan) if plan.is_empty() => Ok(Hook::Absent),
            Some(_) => Ok(Hook::Plan(place as usize)),
            None => Err(Refused::Plan(place)),
        },
        None => values.into_iter().map(value_name).collect::<Result<_, _>>().map(Hook::Call),
    }
}

fn planned(edit: types::PlannedEdit) -> Result<Planned, Refused> {
    use types::PlannedEdit as Wit;
    Ok(match edit {
        Wit::SetField((name, value)) => Planned::Set(field_name(&name)?, template(&name, value)?),
        Wit::AppendField((name, value)) => Planned::Append(field_name(&name)?, template(&name, value)?),
        Wit::DefaultField((name, value)) => Planned::Default(field_name(&name)?, template(&name, value)?),
        Wit::RemoveField(name) => Planned::Remove(field_name(&name)?),
        Wit::RenameField((from, to)) => Planned::Rename(field_name(&from)?, field_name(&to)?),
        Wit::SetNote((name, value)) => Planned::Note(name.clone(), template(&name, value)?),
    })
}

fn template(name: &str, parts: Vec<types::TemplatePart>) -> Result<Template, Refused> {
    let part = |part| match part {
        types::TemplatePart::Text(text) => field_value(name, &text).map(Part::Text),
        types::TemplatePart::Value(name) => value_name(name).map(Part::Value),
    };
    parts.into_iter().map(part).collect::<Result<_, _>>().map(Template)
}

fn body_mode(mode: types::BodyMode, limits: Limits) -> Result<BodyMode, Refused> {
    Ok(match mode {
        types::BodyMode::Streamed => BodyMode::Streamed,
        // A body that its memory can't hold would only be gathered here for nothing.
        types::BodyMode::Buffered(types::BufferLimit { bytes, .. }) if bytes > limits.memory as u64 => {
            return Err(Refused::Buffer(bytes));
        }
        types::BodyMode::Buffered(types::BufferLimit { bytes, beyond }) => {
            let beyond = match beyond {
                types::BeyondLimit::Refuse => Beyond::Refuse,
                types::BeyondLimit::Pass => Beyond::Pass,
            };
            BodyMode::Buffered(bytes, beyond)
        }
    })
}
