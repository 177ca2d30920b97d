//! A plugin with its configuration: its declarations, checked once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::access::GrantedAccess;
use super::bindings::lifecycle::exports::plugway::plugin::lifecycle::{Description, Settings};
use super::bindings::types;
use super::call_error::PluginFailure;
use super::early_answers::EarlyAnswers;
use super::engine::Plugin;
use super::failure::{Backtraces, FailureReporter};
use super::host::value_name;
use super::instance::Instance;
use super::log_lines::PluginLog;
use super::outgoing_http::{CalloutSender, HttpDestination};
use super::plugin_config::PluginConfig;
use super::settings::{
    self, BodyInputs, CacheInputs, ConfigErrors, Hook, Isolation, OnError, PluginLimits, SETUP_TIME_FACTOR, names,
};
use super::version::{PluginVersion, PluginVersions};
use crate::context::ValueName;
use crate::context::edit_check::{EditError, MessageSide};
use crate::context::edit_plan::EditPlan;
use crate::protocol::content_decoder::DecodingBounds;
use crate::shared_state::PluginState;
use crate::telemetry::metrics::{PluginMetric, WorkerMetrics};

/// A plugin with its configuration and limits; workers make instances of it.
pub struct ConfiguredPlugin {
    /// The name of the plugin in the manifest.
    pub name: Arc<str>,
    pub(super) limits: PluginLimits,
    /// The log of the plugin's failures and lines.
    pub(super) reporter: Arc<FailureReporter>,
    /// The part that all workers and generations share.
    pub supply: Arc<PluginVersion>,
    /// The effect of a failed call on the exchange.
    pub on_error: OnError,
    /// The lifetime of an instance.
    pub isolation: Isolation,
    /// The edit plans that the plugin's hooks can name.
    pub plans: Vec<EditPlan>,
    /// The handling of requests by the plugin.
    pub request: Hook,
    /// The handling of responses by the plugin.
    pub response: Hook,
    /// The values that the plugin's balancer gets.
    pub balancer: Vec<ValueName>,
    /// The value whose hash the plugin's balancer gets.
    pub balancer_key: Option<ValueName>,
    /// The inputs of the plugin's cache policy; `None` if the plugin is no cache.
    pub cache: Option<CacheInputs>,
    /// The values that the plugin's observer gets; `None` if the plugin has no observer.
    pub observer: Option<Vec<ValueName>>,
    /// The interval of the plugin's timer; `None` if the plugin has no timer.
    pub timer: Option<Duration>,
    /// How the plugin receives request bodies; `None` if it has no hook for them.
    pub request_body: Option<BodyInputs>,
    /// How the plugin receives response bodies; `None` if it has no hook for them.
    pub response_body: Option<BodyInputs>,
    /// Whether the plugin asks something while it is configured, and is not configured yet: it has no settings.
    pub asks: bool,
    /// The answers that the first instance got while it was configured, with which the others are; `None` if it has asked
    /// nothing. The settings are those of these answers, whatever another generation of the same version was told.
    pub(super) answers: Option<Arc<EarlyAnswers>>,
    /// The plugin's own metrics on each worker, which last as long as the configured plugin; locked when an instance is
    /// made.
    figures: Mutex<BTreeMap<usize, Arc<[Arc<PluginMetric>]>>>,
}

/// A shorter interval would be called no more often.
const MIN_TIMER_INTERVAL: Duration = crate::net::deadline::TICK;

/// A configuration that the plugin or the host rejects.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    #[error("{0}")]
    Config(ConfigErrors),
    #[error("the plugin failed while it was configured: {0}")]
    Failed(String),
    #[error("{}", PluginFailure::Asks)]
    Asks,
    #[error("the plugin declared {}", what(.0))]
    Refused(#[from] EditError),
}

/// Returns the name of a declaration that was rejected.
fn what(refused: &EditError) -> String {
    match refused {
        EditError::Many { .. } => refused.to_string(),
        _ => format!("what can't be: {refused}"),
    }
}

/// Returns a configured instance, with the settings that the plugin declared.
fn first_instance(config: &PluginConfig, lines: PluginLog) -> Result<(Settings, Box<Instance>), ConfigureError> {
    let failed = |failure| match failure {
        PluginFailure::Asks => ConfigureError::Asks,
        failure => ConfigureError::Failed(config.limits.reason(&failure)),
    };
    let refused = |errors| ConfigureError::Config(settings::config_errors(errors));
    let time = config.limits.making_time();
    let first = Instance::unconfigured(&config.plugin, config.limits, lines, &config.access, time);
    let mut first = first.map_err(failed)?;
    let settings = first.configure(&config.config, time).map_err(failed)?.map_err(refused)?;
    Ok((settings, Box::new(first)))
}

/// Returns the inputs of a plugin's cache policy, which are taken out of the settings.
fn cache_inputs(name: &str, settings: &mut Settings) -> Result<CacheInputs, EditError> {
    let status = settings.cache_status.take();
    Ok(CacheInputs {
        request: names(std::mem::take(&mut settings.cache_request_values))?,
        response: names(std::mem::take(&mut settings.cache_response_values))?,
        plan: settings.lookup_plan.take().map(settings::lookup_plan).transpose()?,
        tells_key: status.as_ref().is_some_and(|status| status.key),
        name: status.map(|status| settings::token(status.name)).transpose()?,
        owner: CacheInputs::owner_of(name),
    })
}

/// Returns settings in place of those that a plugin declares once it is answered.
fn unknown_settings(plugin: &Plugin) -> Settings {
    let takes = |side| plugin.body_ability(side, 0).map(|_| types::BodyMode::Skipped);
    Settings {
        request_values: Vec::new(),
        response_values: Vec::new(),
        request_body_values: Vec::new(),
        response_body_values: Vec::new(),
        balancer_values: Vec::new(),
        balancer_key: None,
        observer_values: Vec::new(),
        cache_request_values: Vec::new(),
        cache_response_values: Vec::new(),
        lookup_plan: None,
        cache_status: None,
        edit_plans: Vec::new(),
        request_plan: None,
        response_plan: None,
        request_body: takes(MessageSide::Request),
        response_body: takes(MessageSide::Response),
        request_content: None,
        response_content: None,
        timer_interval_ms: None,
    }
}

/// Calls a plugin's `describe`, and returns the description.
pub fn describe(plugin: &Arc<Plugin>) -> Result<Description, ConfigureError> {
    let (limits, lines) = (PluginLimits::default(), PluginLog::new("describe".into()));
    let time = limits.cpu * SETUP_TIME_FACTOR;
    let instance = Instance::unconfigured(plugin, limits, lines, &GrantedAccess::default(), time);
    let described = instance.and_then(|mut instance| instance.describe(time));
    let description =
        settings::description(described.map_err(|failure| ConfigureError::Failed(limits.reason(&failure)))?)?;
    plugin.note_version(&description.version);
    Ok(description)
}

impl ConfiguredPlugin {
    /// Configures a first instance, and records the declarations of the plugin. A plugin that asks a service meanwhile is not
    /// answered: [`ConfiguredPlugin::ask`] configures it.
    pub fn new(versions: &PluginVersions, config: PluginConfig) -> Result<Self, ConfigureError> {
        let supply = versions.of(&config);
        let lines = supply.recipe.lines.clone();
        let first = supply.measure(|| match first_instance(&config, lines) {
            Err(ConfigureError::Asks) => Ok(None),
            first => first.map(Some),
        });
        let Some((settings, mut first)) = first? else {
            let settings = unknown_settings(&config.plugin);
            return Ok(ConfiguredPlugin { asks: true, ..ConfiguredPlugin::from_settings(config, supply, settings)? });
        };
        let configured = ConfiguredPlugin::from_settings(config, supply, settings)?;
        let _ = configured.supply.recipe.metrics.set(first.defined_metrics());
        if configured.needs_instance() || configured.is_balancer() || configured.transforms_bodies() {
            configured.supply.keep(first);
        }
        Ok(configured)
    }

    /// Configures a first instance of a plugin that asks services meanwhile, by way of `sender`, and keeps the answers for
    /// the other instances. Waits for `limits.call-time` at most.
    pub async fn ask(&self, sender: CalloutSender) -> Result<Self, ConfigureError> {
        let (recipe, limits) = (&self.supply.recipe, self.limits);
        let failed = |failure: PluginFailure| ConfigureError::Failed(limits.reason(&failure));
        let refused = |errors| ConfigureError::Config(settings::config_errors(errors));
        let (time, lines) = (limits.making_time(), recipe.lines.clone());
        let first = Instance::unconfigured(&recipe.plugin, limits, lines, &recipe.access, time);
        let (mut first, answers) = (first.map_err(failed)?, Arc::new(EarlyAnswers::default()));
        first.keep_answers(sender, answers.clone());
        let call_time = limits.waiting.call_time;
        let asked = tokio::time::timeout(call_time, first.configure_waiting(&recipe.config, time)).await;
        let asked = asked.unwrap_or(Err(PluginFailure::CallTime(call_time)));
        let settings = asked.map_err(failed)?.map_err(refused)?;
        let config = PluginConfig {
            name: self.name.clone(),
            plugin: recipe.plugin.clone(),
            config: recipe.config.clone(),
            limits,
            on_error: self.on_error,
            isolation: self.isolation,
            access: recipe.access.clone(),
        };
        let configured = ConfiguredPlugin::from_settings(config, self.supply.clone(), settings)?;
        let _ = recipe.metrics.set(first.defined_metrics());
        Ok(ConfiguredPlugin { answers: Some(answers), ..configured })
    }

    /// Checks the settings that a plugin declared, and returns the configured plugin.
    fn from_settings(
        config: PluginConfig,
        supply: Arc<PluginVersion>,
        mut settings: Settings,
    ) -> Result<Self, ConfigureError> {
        let PluginConfig { name, plugin, limits, on_error, isolation, .. } = config;
        let request_ability = plugin.body_ability(MessageSide::Request, limits.memory);
        let response_ability = plugin.body_ability(MessageSide::Response, limits.memory);
        let cache = plugin.cache_policy.as_ref().map(|_| cache_inputs(&name, &mut settings)).transpose()?;
        let plans = settings::plans(settings.edit_plans, request_ability.or(response_ability))?;
        let hook = |exported, values, plan| settings::hook(&plans, exported, values, plan);
        let request = hook(plugin.request_filter.is_some(), settings.request_values, settings.request_plan)?;
        let response = hook(plugin.response_filter.is_some(), settings.response_values, settings.response_plan)?;
        settings::check_response_plan(&plans, settings.response_plan)?;
        let balancer = names(settings.balancer_values)?;
        let balancer_key = settings.balancer_key.map(value_name).transpose()?;
        let observer = plugin.observer.as_ref().map(|_| names(settings.observer_values)).transpose()?;
        let interval = settings.timer_interval_ms.map(|ms| Duration::from_millis(ms).max(MIN_TIMER_INTERVAL));
        let timer = plugin.timer.as_ref().and(interval);
        let request_body = request_ability.map(|ability| {
            let (mode, values) = (settings.request_body, settings.request_body_values);
            settings::body_inputs(mode, values, settings.request_content, ability)
        });
        let response_body = response_ability.map(|ability| {
            let (mode, values) = (settings.response_body, settings.response_body_values);
            settings::body_inputs(mode, values, settings.response_content, ability)
        });
        let (request_body, response_body) = (request_body.transpose()?, response_body.transpose()?);
        let (lines, version) = (supply.recipe.lines.clone(), plugin.version());
        let reporter =
            FailureReporter { plugin: name.clone(), version, limits, lines, backtraces: Backtraces::default() };
        Ok(ConfiguredPlugin {
            name,
            limits,
            reporter: Arc::new(reporter),
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
            asks: false,
            answers: None,
            figures: Mutex::default(),
        })
    }

    /// Returns the plugin's own metrics on a worker.
    pub(super) fn figures(&self, worker_metrics: &WorkerMetrics) -> Arc<[Arc<PluginMetric>]> {
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            self.supply
                .recipe
                .metrics()
                .iter()
                .map(|definition| worker_metrics.custom(&self.name, definition))
                .collect()
        };
        figures.entry(worker_metrics.worker).or_insert_with(new).clone()
    }

    /// Returns the inputs of each hook as text for `plugway inspect`.
    pub fn describe_inputs(&self) -> Vec<(&'static str, String)> {
        let list = |names: &[ValueName]| match names {
            [] => "is called without values".into(),
            names => format!("needs {}", names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let head = |hook: &Hook| match hook {
            Hook::Absent => None,
            Hook::Plan(plan) => {
                Some(format!("is a plan of {} edits, carried out by the host", self.plans[*plan].edits.len()))
            }
            Hook::Call(names) => Some(list(names)),
        };
        let request = head(&self.request).map(|needs| ("request-filter", needs));
        let response = head(&self.response).map(|needs| ("response-filter", needs));
        let hashed = |key: &ValueName| format!(", with the hash of {key}");
        let key = self.balancer_key.as_ref().map(hashed).unwrap_or_default();
        let balancer = self.is_balancer().then(|| ("balancer", list(&self.balancer) + &key));
        let plan = |needs: &CacheInputs| match needs.plan {
            Some(_) => "; most lookups are a plan, carried out by the host",
            None => "",
        };
        let cache = self.cache.as_ref().map(|needs| {
            ("cache-policy", format!("{}, of responses {}{}", list(&needs.request), list(&needs.response), plan(needs)))
        });
        let observer = self.observer.as_ref().map(|names| ("observer", list(names)));
        let body = |inputs: &BodyInputs| format!("{}, {}", list(&inputs.values), inputs.mode);
        let request_body = self.request_body.as_ref().map(|inputs| ("request-body", body(inputs)));
        let response_body = self.response_body.as_ref().map(|inputs| ("response-body", body(inputs)));
        let hooks = [request, response, request_body, response_body, balancer, cache, observer];
        hooks.into_iter().flatten().collect()
    }

    /// Whether requests need an instance in a chain: edit plans that the host applies need none.
    pub fn needs_instance(&self) -> bool {
        let called = |hook: &Hook| matches!(hook, Hook::Call(_));
        let is_told = self.cache.is_some() || self.observer.is_some() || self.timer.is_some();
        let gathers = self.bodies().any(|inputs| inputs.ability.gathers);
        called(&self.request) || called(&self.response) || gathers || is_told
    }

    /// Returns the memory that an instance may have, in bytes.
    pub fn memory(&self) -> usize {
        self.limits.memory
    }

    /// Returns the bounds of content that is decoded for the plugin.
    pub fn decoding_bounds(&self) -> DecodingBounds {
        self.limits.decoding.bounds
    }

    /// Returns how it takes the bodies of one side; `None` if it doesn't.
    pub fn body(&self, side: MessageSide) -> Option<&BodyInputs> {
        match side {
            MessageSide::Request => self.request_body.as_ref(),
            MessageSide::Response => self.response_body.as_ref(),
        }
    }

    fn bodies(&self) -> impl Iterator<Item = &BodyInputs> {
        self.request_body.iter().chain(&self.response_body)
    }

    /// Whether its hooks may wait, so that each call has an instance to itself.
    pub fn waits(&self) -> bool {
        self.supply.recipe.plugin.waits
    }

    /// The destinations of its own requests.
    pub fn http_destinations(&self) -> &Arc<[HttpDestination]> {
        &self.supply.recipe.access.http
    }

    /// Whether bodies pass through the plugin.
    fn takes_bodies(&self) -> bool {
        self.bodies().next().is_some()
    }

    /// Whether bodies pass through the plugin chunk by chunk, each of which holds an instance.
    pub fn transforms_bodies(&self) -> bool {
        self.bodies().any(|inputs| inputs.ability.streams)
    }

    /// Whether the plugin can act in a chain, though with this configuration it may do nothing.
    pub fn is_in_chains(&self) -> bool {
        let has = |hook: &Hook| !matches!(hook, Hook::Absent);
        let is_told = self.cache.is_some() || self.observer.is_some() || self.timer.is_some();
        has(&self.request) || has(&self.response) || self.takes_bodies() || is_told
    }

    /// Returns the state that the instances share; `None` if it is not granted.
    pub fn shared(&self) -> Option<&PluginState> {
        self.supply.recipe.access.shared.as_ref()
    }

    /// Whether the plugin can choose endpoints.
    pub fn is_balancer(&self) -> bool {
        self.supply.recipe.plugin.balancer.is_some()
    }
}

impl ConfiguredPlugin {
    /// Logs how many of the plugin's lines were left out, once their second is over.
    pub fn report_lines(&self) {
        self.reporter.lines.report();
    }

    /// The number of the plugin's lines that were left out.
    pub fn dropped_lines(&self) -> u64 {
        self.reporter.lines.dropped()
    }
}
