//! The assembly of configured plugins: load the component, check the configuration, configure the plugin. Steps that
//! could harm the process are tried in a child process first ([`crate::loading`]).

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::addresses::ManifestPlace;
use super::credentials::CredentialUse;
use super::plugin_values::{MessageOrigin, complaint_message, failure_message, with_step};
use super::units::bytes;
use super::{AskingPlugin, Assembler, Assembly, LoadedPlugin, beside, instances, named_table, some_of};
use crate::config::diagnostic::{Doubt, Source};
use crate::config::foreign_keys;
use crate::config::load::ManifestFile;
use crate::config::manifest::{self, PluginRef};
use crate::config::serde_messages::hint;
use crate::config::spanned::Spanned;
use crate::config::spans::ValueSpans;
use crate::generation::ids::PluginId;
use crate::loading::{self, Component, ConfigComplaint, ConfigVerdict, Examination, LoadFailure, schema_at};
use crate::plugin::access::WantedAccess;
use crate::plugin::configured::{ConfigureError, ConfiguredPlugin};
use crate::plugin::engine::{MAX_BODIES, MAX_MEMORY_BYTES, MAX_WAITING_CALLS, Plugin};
use crate::plugin::outgoing_http::MAX_CALLOUTS;
use crate::plugin::plugin_config::PluginConfig;
use crate::plugin::settings::ConfigErrors;
use crate::plugin::settings::{DecodingLimits, Isolation, OnError, PluginLimits, WaitingLimits};
use crate::protocol::content_decoder::DecodingBounds;
use crate::system::files;

/// Children that are kept while a manifest is assembled: routes often use a few components in turns, each with many
/// configurations.
const MAX_CHILDREN: usize = 4;

/// Calls that a plugin may have queued: each holds a request, as a connection to an endpoint would.
const MAX_QUEUED_CALLS: usize = 65_536;

/// The maximum of `limits.callouts`: that of `limits.waiting-calls`, each of which has four requests at a time.
const MAX_PLUGIN_CALLOUTS: usize = MAX_WAITING_CALLS as usize * MAX_CALLOUTS;

/// The maximum of `limits.decoded-ratio`: codings reach more only with content that is all alike.
const MAX_RATIO: usize = 100_000;

/// Components that may break their limits before the rest is not tried any more: each takes its time.
const MAX_BROKEN_COMPONENTS: usize = 4;

/// The reason why a plugin can't be used with a configuration.
enum PluginRejection {
    /// The component is no good.
    Component(String),
    /// The loading of the component ended at a limit, or in a crash.
    Broken(String),
    Config {
        complaints: Vec<ConfigComplaint>,
        more: u64,
    },
}

/// The use of a plugin that a rejection is about.
struct Concerned<'a> {
    source: &'a Arc<Source>,
    use_span: &'a Range<usize>,
    config: &'a serde_json::Value,
    /// The name of the plugin in the manifest: that of a stock plugin, or a file.
    name: &'a str,
    env: &'a [(String, String)],
}

/// A component that accepts a configuration.
struct AcceptedPlugin {
    plugin: Arc<Plugin>,
    /// The configuration in JSON.
    config: String,
    /// Whether the plugin decides which clients get the responses behind it.
    is_guard: bool,
}

impl From<LoadFailure> for PluginRejection {
    fn from(failure: LoadFailure) -> Self {
        match failure {
            LoadFailure::Refused(message) => PluginRejection::Component(message),
            failure => PluginRejection::Broken(failure.to_string()),
        }
    }
}

impl LoadedPlugin {
    /// Returns a component with its description, and the digests of configurations that it accepts.
    fn new(plugin: Plugin, about: &[u8], accepted: HashSet<[u8; 32]>) -> Self {
        let schema: Option<Arc<str>> = loading::config_schema(about).map(Arc::from);
        let is_guard = schema.as_deref().is_some_and(schema_at::is_guard);
        LoadedPlugin { plugin: Arc::new(plugin), waiting: None, schema, is_guard, accepted, has_new: false }
    }
}

impl Assembler {
    /// Notes on disk what was found accepted, for the next start.
    pub(super) fn keep_accepted(&mut self) {
        for (digest, loaded) in self.plugins.iter_mut().filter(|(_, loaded)| loaded.has_new) {
            self.runtime.artifacts().accept(&self.runtime.seal(digest), &loaded.accepted);
            loaded.has_new = false;
        }
    }

    /// A component that is loaded, or was compiled before.
    fn find_loaded(&mut self, digest: &blake3::Hash) -> Option<&mut LoadedPlugin> {
        if !self.plugins.contains_key(digest) {
            let seal = self.runtime.seal(digest);
            let (about, plugin) = self.runtime.load_compiled(&seal)?;
            loading::version(&about).iter().for_each(|version| plugin.note_version(version));
            let accepted = self.runtime.artifacts().accepted_configs(&seal);
            self.plugins.insert(*digest, LoadedPlugin::new(plugin, &about, accepted));
        }
        self.plugins.get_mut(digest)
    }

    /// Takes the compiled component from a child that has accepted it.
    fn take(&mut self, examination: &mut Examination) -> Result<(), LoadFailure> {
        let seal = self.runtime.seal(&examination.digest);
        let sealed = examination.sealed()?;
        let unsealed = self.runtime.unseal(&seal, &sealed);
        let (about, plugin) =
            unsealed.map_err(|error| LoadFailure::Refused(format!("its compiled code can't be used here: {error}")))?;
        loading::version(&about).iter().for_each(|version| plugin.note_version(version));
        self.runtime.artifacts().store(&seal, &sealed);
        self.plugins.insert(examination.digest, LoadedPlugin::new(plugin, &about, HashSet::new()));
        Ok(())
    }
}

impl Assembly<'_> {
    /// Configures the plugins that the manifest names.
    pub(super) fn bind_all(&mut self, files: &[ManifestFile]) {
        for ManifestFile { source, manifest } in files {
            for (name, plugin) in &manifest.plugin {
                let binding = self.bind(source, name.get_ref(), plugin);
                if self.named.insert(name.get_ref().clone(), binding).is_some() {
                    let message = format!(
                        "plugin name used twice: `{}` stands in another file too; choose another",
                        name.get_ref()
                    );
                    self.problems.at(source, name.span(), message);
                }
            }
        }
    }

    pub(super) fn bind(
        &mut self,
        source: &Arc<Source>,
        name: &str,
        plugin: &manifest::PluginTable,
    ) -> Option<PluginId> {
        // Too few places: that is the mistake, and nothing is made of this manifest.
        self.reserved.as_ref()?;
        let before = self.problems.count();
        let limits = self.limits(source, &plugin.limits);
        let on_error_place = plugin.on_error.as_ref().map(Spanned::span);
        let on_error = self.on_error(source, plugin.on_error.as_ref());
        let isolation = self.isolation(source, plugin.isolation.as_ref());
        let access = self.access(source, name, plugin);
        let use_span = plugin.r#use.span();
        let before_config = self.problems.count();
        let config = self.config(source, &use_span, plugin.config.as_ref());
        if self.problems.count() > before_config {
            return None;
        }
        if plugin.r#use.get_ref() == "headers" && config.pointer(MOVED).is_some() {
            self.warn_of_moved(source, &use_span);
        }
        let is_cors = plugin.r#use.get_ref() == CORS;
        let credentials = CredentialUse::of(plugin.r#use.get_ref(), &config);
        let removes_slashes = removes_slashes(plugin.r#use.get_ref(), &config);
        // Preflights have the address of their client, and no credentials.
        let is_ip_filter = plugin.r#use.get_ref() == IP_FILTER;
        let env = access.env.clone();
        let about = Concerned { source, use_span: &use_span, config: &config, name: plugin.r#use.get_ref(), env: &env };
        let examined = self.accepted(&about, limits);
        let AcceptedPlugin { plugin, config, is_guard } = match examined {
            Ok(examined) => examined,
            Err(rejection) => {
                self.reject(&about, rejection);
                return None;
            }
        };
        self.check_access(source, &use_span, name, &plugin, &access);
        if self.problems.count() > before {
            return None;
        }
        let config = PluginConfig { name: name.into(), plugin, config, limits, on_error, isolation, access };
        match ConfiguredPlugin::new(&self.assembly.versions, config) {
            Ok(configured) => {
                self.warn_of_unmet_names(source, &use_span, about.config, &configured);
                let plugin_id = self.add_binding(&about, configured, limits)?;
                if is_cors {
                    self.cors.insert(plugin_id);
                }
                self.credentials.insert(plugin_id, credentials);
                if removes_slashes {
                    self.slash_removers.insert(plugin_id);
                }
                if is_guard {
                    self.guards.insert(plugin_id);
                    if !is_ip_filter {
                        self.credential_guards.insert(plugin_id);
                    }
                    self.warn_of_skipped_guard(source, on_error, on_error_place);
                }
                Some(plugin_id)
            }
            Err(error) => {
                self.reject(&about, rejection(error));
                None
            }
        }
    }

    /// Adds a configured plugin, for whose instances there must be room.
    fn add_binding(
        &mut self,
        about: &Concerned<'_>,
        configured: ConfiguredPlugin,
        limits: PluginLimits,
    ) -> Option<PluginId> {
        let workers = self.assembly.workers.unwrap_or(1);
        let wanted = match (configured.waits(), configured.transforms_bodies()) {
            (true, _) => instances::of_waiting_calls(limits),
            (false, true) => instances::of_bodies(limits, workers),
            (false, false) => 0,
        };
        let stacks = if configured.waits() { instances::stacks(limits, configured.isolation, workers) } else { 0 };
        let extended = self.reserved.as_mut().map(|reserved| reserved.extend(wanted, stacks));
        if let Some(Err(shortage)) = extended {
            self.problems.at(about.source, about.use_span.clone(), shortage.to_string());
            return None;
        }
        let asks = configured.asks;
        let plugin_id = self.bindings.push(Arc::new(configured));
        if asks {
            self.note_asking(plugin_id, about.source, about.use_span.clone());
        }
        Some(plugin_id)
    }

    /// Notes a plugin that asks services while it is configured: who serves the generation lets it ask, and a check doesn't.
    fn note_asking(&mut self, plugin_id: PluginId, source: &Arc<Source>, use_span: Range<usize>) {
        if self.assembly.check_time.is_some() {
            let message = "the plugin asks a service while it is configured, which a check doesn't: its answer to this \
                           configuration is not known before the start";
            self.problems.warn(Doubt::Unchecked, source, use_span.clone(), message);
        }
        self.asking.push(AskingPlugin { plugin_id, place: ManifestPlace { source: source.clone(), span: use_span } });
    }

    /// The configuration of a plugin in JSON, which has neither dates nor numbers that aren't finite: a manifest with such a
    /// value is refused, since the plugin would get another one.
    fn config(
        &mut self,
        source: &Arc<Source>,
        use_span: &Range<usize>,
        config: Option<&toml::Table>,
    ) -> serde_json::Value {
        let mut bad = Vec::new();
        let table = config.map(|table| object(table, &mut String::new(), &mut bad));
        let places = (!bad.is_empty()).then(|| ValueSpans::new(&source.text, use_span));
        for UnfitValue { pointer, message } in bad {
            let span = places.as_ref().map_or(use_span.clone(), |places| places.value(&pointer));
            self.problems.at(source, span, format!("config{}: {message}", pointed(&pointer)));
        }
        table.unwrap_or_else(|| serde_json::json!({}))
    }

    /// Returns the component of a name with its configuration as the component gets and accepts it.
    fn accepted(&mut self, about: &Concerned<'_>, limits: PluginLimits) -> Result<AcceptedPlugin, PluginRejection> {
        let mut component = component(about.source, about.name).map_err(PluginRejection::Component)?;
        let mut config = about.config.clone();
        self.take_literally(about.source, about.use_span, &mut component, &mut config)?;
        let (config, digest) = (config.to_string(), component.digest);
        let plugin = self.examine(component, &config, limits, about.env)?;
        let is_guard = self.assembly.plugins.get(&digest).is_some_and(|loaded| loaded.is_guard);
        Ok(AcceptedPlugin { plugin, config, is_guard })
    }

    /// A component that is good, and accepts a configuration.
    fn examine(
        &mut self,
        mut component: Component,
        config: &str,
        limits: PluginLimits,
        env: &[(String, String)],
    ) -> Result<Arc<Plugin>, PluginRejection> {
        let digest = component.digest;
        self.used.insert(digest);
        let wanted = acceptance(config, limits, env);
        if let Some(known) = self.assembly.find_loaded(&digest)
            && known.accepted.contains(&wanted)
        {
            return self.with_shared_calls(&digest);
        }
        if let Some(error) = self.broken.get(&digest) {
            return Err(PluginRejection::Component(error.clone()));
        }
        if self.broken.len() >= MAX_BROKEN_COMPONENTS {
            return Err(PluginRejection::Component("it was not tried, as too many others could not be loaded".into()));
        }
        let tried = self.try_apart(&mut component, config, limits, env);
        if let Err(PluginRejection::Broken(error)) = &tried {
            self.broken.insert(digest, error.clone());
        }
        tried?;
        if let Some(loaded) = self.assembly.plugins.get_mut(&digest) {
            loaded.has_new |= loaded.accepted.insert(wanted);
        }
        self.with_shared_calls(&digest)
    }

    /// Returns a loaded component; its calls of the shared state wait if a server has the state.
    fn with_shared_calls(&mut self, digest: &blake3::Hash) -> Result<Arc<Plugin>, PluginRejection> {
        let Assembler { plugins, runtime, .. } = &mut *self.assembly;
        let loaded = plugins.get_mut(digest);
        let loaded = loaded.ok_or_else(|| PluginRejection::Component("it was dropped meanwhile".into()))?;
        if self.fleet.is_none() || WantedAccess::Shared.import(loaded.plugin.imports()).is_none() {
            return Ok(loaded.plugin.clone());
        }
        if let Some(waiting) = &loaded.waiting {
            return Ok(waiting.clone());
        }
        let waiting = runtime.waiting_for_shared(&loaded.plugin);
        let waiting = Arc::new(waiting.map_err(|error| PluginRejection::Component(error.to_string()))?);
        Ok(loaded.waiting.insert(waiting).clone())
    }

    /// Returns the schema of a component's configuration; `None` if it has none, or if [`Self::examine`] is to say why it
    /// can't be loaded.
    pub(super) fn schema(&mut self, component: &mut Component) -> Result<Option<Arc<str>>, LoadFailure> {
        let digest = component.digest;
        if let Some(known) = self.assembly.find_loaded(&digest) {
            return Ok(known.schema.clone());
        }
        if self.broken.contains_key(&digest) || self.broken.len() >= MAX_BROKEN_COMPONENTS {
            return Ok(None);
        }
        let begun = self.examination(component);
        if let Err(failure) = &begun
            && !matches!(failure, LoadFailure::Refused(_))
        {
            self.broken.insert(digest, failure.to_string());
        }
        let examination = begun?;
        let schema = examination.about.schema.as_deref().map(Arc::from);
        self.examinations.push(examination);
        Ok(schema)
    }

    /// Loads a component and checks a configuration in a child process, and takes the component over if both succeed.
    fn try_apart(
        &mut self,
        component: &mut Component,
        config: &str,
        limits: PluginLimits,
        env: &[(String, String)],
    ) -> Result<(), PluginRejection> {
        let mut examination = self.examination(component)?;
        let verdict = examination.check(config, limits, env)?;
        let is_known = self.assembly.plugins.contains_key(&component.digest);
        if verdict == ConfigVerdict::Accepted && !is_known {
            self.assembly.take(&mut examination)?;
        }
        self.examinations.push(examination);
        match verdict {
            ConfigVerdict::Accepted => Ok(()),
            ConfigVerdict::Refused { complaints, more } => Err(PluginRejection::Config { complaints, more }),
            ConfigVerdict::Failed(message) => Err(PluginRejection::Component(message)),
        }
    }

    /// The examination of a component: one that has begun, or a new one.
    fn examination(&mut self, component: &mut Component) -> Result<Examination, LoadFailure> {
        if let Some(at) = self.examinations.iter().position(|known| known.digest == component.digest) {
            return Ok(self.examinations.remove(at));
        }
        if self.examinations.len() >= MAX_CHILDREN {
            self.examinations.remove(0);
        }
        let seal = self.assembly.runtime.seal(&component.digest);
        // Only one that has been found whole: a child would have nothing to say of another.
        let is_known = self.assembly.plugins.contains_key(&component.digest);
        let artifact = is_known.then(|| self.assembly.runtime.artifacts().file(&seal)).flatten();
        match self.assembly.loader.start(component, artifact, seal.clone()) {
            // Something has happened to the file since it was loaded.
            Err(LoadFailure::Refused(_)) if is_known => self.assembly.loader.start(component, None, seal),
            begun => begun,
        }
    }

    fn reject(&mut self, about: &Concerned<'_>, rejection: PluginRejection) {
        let Concerned { source, use_span, config, .. } = *about;
        let schema = self.schema_for_messages(about);
        let stock = plugway_plugins::STOCK.iter().find(|(name, _)| *name == about.name).map(|(_, bytes)| *bytes);
        let origin =
            MessageOrigin { source, config, stock, schema: &schema, parsed_schema: OnceCell::new(), env: about.env };
        let (complaints, more) = match rejection {
            PluginRejection::Component(message) | PluginRejection::Broken(message) => {
                let message = failure_message(&self.problems, &origin, &message);
                return self.problems.at(source, use_span.clone(), message);
            }
            PluginRejection::Config { complaints, more } => (complaints, more),
        };
        let mut places = None;
        for complaint in complaints {
            if !self.problems.has_room() {
                self.problems.and_more(1);
                continue;
            }
            let places = places.get_or_insert_with(|| ValueSpans::new(&source.text, use_span));
            let (message, public) = complaint_message(&self.problems, &origin, &complaint);
            let ConfigComplaint { pointer, key, .. } = complaint;
            let span = key.map_or_else(|| places.value(&pointer), |key| places.key(&pointer, &key));
            let message = format!("config{}: {message}", pointed(&pointer));
            self.problems.at_redacted(source, span, &message, &public);
        }
        self.problems.and_more(more as usize);
    }

    /// Returns the schema of a plugin's configuration if a message about the configuration may have the value of a
    /// reference.
    fn schema_for_messages(&mut self, about: &Concerned<'_>) -> String {
        if self.problems.replaced(about.source).next().is_none() {
            return String::new();
        }
        let component = component(about.source, about.name).ok();
        let schema = component.and_then(|mut component| self.schema(&mut component).ok().flatten());
        schema.as_deref().unwrap_or_default().into()
    }

    pub(super) fn reference(&mut self, source: &Arc<Source>, reference: &Spanned<PluginRef>) -> Option<PluginId> {
        match reference.get_ref() {
            PluginRef::Inline(plugin) => self.bind(source, plugin.r#use.get_ref(), plugin),
            PluginRef::Name(name) => {
                if let Some(known) = self.named.get(name) {
                    return *known;
                }
                let stock = plugway_plugins::STOCK.iter().map(|(name, _)| *name);
                if stock.clone().any(|stock| stock == name) {
                    let plain = manifest::PluginTable {
                        r#use: Spanned::new(reference.span(), name.clone()),
                        config: None,
                        limits: Default::default(),
                        grants: Default::default(),
                        on_error: None,
                        isolation: None,
                    };
                    return self.bind(source, name, &plain);
                }
                if self.left_out.has("plugin", name) {
                    return None;
                }
                if !self.problems.has_room() {
                    self.problems.and_more(1);
                    return None;
                }
                if let Some(remedy) = foreign_keys::missing_plugin(name) {
                    let message = format!("unknown plugin `{name}`; {remedy}");
                    self.problems.at(source, reference.span(), message);
                    return None;
                }
                if name.ends_with(".wasm") {
                    let file = if name.contains('/') { name.clone() } else { format!("./{name}") };
                    let message =
                        format!("unknown plugin `{name}`: a file is named in a table; write `{{ use = \"{file}\" }}`");
                    self.problems.at(source, reference.span(), message);
                    return None;
                }
                let known: Vec<&str> = self.named.keys().map(String::as_str).chain(stock).collect();
                let hint = hint(name, &known);
                let (known, table) = (some_of(&known), named_table("plugin", name));
                let message = format!("unknown plugin `{name}`; {hint}known here: {known}; or add it as `{table}`");
                self.problems.at(source, reference.span(), message);
                None
            }
        }
    }

    pub(super) fn round_robin(&mut self, source: &Arc<Source>, span: Range<usize>) -> Option<PluginId> {
        if self.round_robin.is_none() {
            self.round_robin = self.reference(source, &Spanned::new(span, PluginRef::Name("balance".into())));
        }
        self.round_robin
    }

    fn limits(&mut self, source: &Arc<Source>, limits: &manifest::PluginLimitsTable) -> PluginLimits {
        let defaults = PluginLimits::default();
        let memory = limits.memory.as_ref().map(|text| match bytes(text.get_ref()) {
            Some(bytes) if (64 << 10..=MAX_MEMORY_BYTES).contains(&bytes) => bytes,
            _ => {
                let message = format!(
                    "`memory` out of range: `{}`; expected `64 KiB` to `256 MiB`, such as `16 MiB`",
                    text.get_ref()
                );
                self.problems.at(source, text.span(), message);
                defaults.memory
            }
        });
        let cpu = self.duration(source, limits.cpu.as_ref(), defaults.cpu);
        let share = self.count(source, limits.share.as_ref(), defaults.share.into(), 100) as u8;
        let bodies = self.count(source, limits.bodies.as_ref(), defaults.bodies as usize, MAX_BODIES as usize) as u32;
        let body_wait = self.duration(source, limits.body_wait.as_ref(), defaults.body_wait);
        let waiting = self.waiting_limits(source, limits);
        let decoding = self.decoding_limits(source, limits);
        PluginLimits { memory: memory.unwrap_or(defaults.memory), cpu, share, bodies, body_wait, waiting, decoding }
    }

    fn decoding_limits(&mut self, source: &Arc<Source>, limits: &manifest::PluginLimitsTable) -> DecodingLimits {
        let DecodingLimits { bounds, memory } = DecodingLimits::default();
        let ratio = self.count(source, limits.decoded_ratio.as_ref(), bounds.ratio as usize, MAX_RATIO);
        let bytes = self.bytes(source, limits.decoded_size.as_ref(), bounds.bytes as usize);
        let memory = self.bytes(source, limits.decoded_memory.as_ref(), memory as usize);
        let bounds = DecodingBounds { ratio: ratio as u64, bytes: bytes as u64 };
        DecodingLimits { bounds, memory: memory as u64 }
    }

    fn waiting_limits(&mut self, source: &Arc<Source>, limits: &manifest::PluginLimitsTable) -> WaitingLimits {
        let defaults = WaitingLimits::default();
        let (calls, queued) = (defaults.calls as usize, defaults.queued as usize);
        WaitingLimits {
            calls: self.count(source, limits.waiting_calls.as_ref(), calls, MAX_WAITING_CALLS as usize) as u32,
            queued: self.count(source, limits.queued_calls.as_ref(), queued, MAX_QUEUED_CALLS) as u32,
            queue_time: self.duration(source, limits.queue_time.as_ref(), defaults.queue_time),
            call_time: self.duration(source, limits.call_time.as_ref(), defaults.call_time),
            callouts: self.count(source, limits.callouts.as_ref(), defaults.callouts as usize, MAX_PLUGIN_CALLOUTS)
                as u32,
        }
    }

    fn on_error(&mut self, source: &Arc<Source>, on_error: Option<&Spanned<manifest::OnErrorValue>>) -> OnError {
        let Some(on_error) = on_error else { return OnError::Fail };
        match on_error.get_ref() {
            manifest::OnErrorValue::Word(word) if word == "fail" => OnError::Fail,
            manifest::OnErrorValue::Word(word) if word == "skip" => OnError::Skip,
            manifest::OnErrorValue::Status(code) if (200..600).contains(code) => {
                http::StatusCode::from_u16(*code).map_or(OnError::Fail, OnError::Respond)
            }
            _ => {
                let found = source.text.get(on_error.span()).unwrap_or_default();
                let message = format!(
                    "invalid `on-error`: found `{found}`; expected \"fail\", \"skip\" or a status from 200 to 599, such as 503"
                );
                self.problems.at(source, on_error.span(), message);
                OnError::Fail
            }
        }
    }

    fn isolation(&mut self, source: &Arc<Source>, isolation: Option<&Spanned<String>>) -> Isolation {
        match isolation.map(|word| (word.get_ref().as_str(), word.span())) {
            None | Some(("worker", _)) => Isolation::Worker,
            Some(("request", _)) => Isolation::Request,
            Some((word, span)) => {
                let message = format!("unknown value: `{word}`; expected \"worker\" or \"request\"");
                self.problems.at(source, span, message);
                Isolation::Worker
            }
        }
    }
}

/// Whether a plugin redirects from paths with a slash at the end to those without.
fn removes_slashes(name: &str, config: &serde_json::Value) -> bool {
    let canonical = |key: &str| config.get("canonical").and_then(|canonical| canonical.get(key));
    let redirects = canonical("redirect").is_none_or(|redirect| *redirect != false);
    name == "rewrite" && redirects && canonical("trailing-slash").is_some_and(|slash| slash == "remove")
}

/// The stock plugin that answers preflights.
const CORS: &str = "cors";

/// The stock plugin that decides by the address of a client.
const IP_FILTER: &str = "ip-filter";

/// The key of the plugin `headers` that a key of listeners has replaced.
const MOVED: &str = "/forwarded/trusted-proxies";

impl Assembly<'_> {
    /// Warns of a key that has no effect any more, and names the key to write instead.
    fn warn_of_moved(&mut self, source: &Arc<Source>, plugin: &Range<usize>) {
        let span = ValueSpans::new(&source.text, plugin).key("/forwarded", "trusted-proxies");
        let message = "key without effect: a listener says for the whole proxy which proxies name the client; write \
                       `trusted-proxies = [...]` in the [[listener]] that these proxies connect to";
        self.problems.warn(Doubt::NoEffect, source, span, message);
    }
}

/// A configuration with the limits and the environment of the plugin that is to accept it, as a digest.
fn acceptance(config: &str, limits: PluginLimits, env: &[(String, String)]) -> [u8; 32] {
    let limits = [limits.memory as u64, limits.cpu.as_micros() as u64].map(u64::to_le_bytes);
    let mut digest = blake3::Hasher::new();
    digest.update(limits.as_flattened()).update(config.as_bytes());
    for text in env.iter().flat_map(|(name, value)| [name, value]) {
        // No configuration and no variable has this byte in it.
        digest.update(&[0]).update(text.as_bytes());
    }
    *digest.finalize().as_bytes()
}

/// A value of a configuration that JSON doesn't have.
struct UnfitValue {
    /// The JSON pointer to the value.
    pointer: String,
    /// The message, which says what was found and what to write instead.
    message: String,
}

/// Converts a table to JSON, and notes the values that JSON doesn't have.
fn object(table: &toml::Table, pointer: &mut String, bad: &mut Vec<UnfitValue>) -> serde_json::Value {
    let value =
        |(key, value): (&String, _)| (key.clone(), with_step(pointer, key, |pointer| json(value, pointer, bad)));
    table.iter().map(value).collect::<serde_json::Map<_, _>>().into()
}

fn json(value: &toml::Value, pointer: &mut String, bad: &mut Vec<UnfitValue>) -> serde_json::Value {
    let mut unfit = |message: String| {
        bad.push(UnfitValue { pointer: pointer.clone(), message });
        serde_json::Value::Null
    };
    match value {
        toml::Value::Table(table) => object(table, pointer, bad),
        toml::Value::Array(list) => {
            let item = |(at, item): (usize, _)| with_step(pointer, &at.to_string(), |pointer| json(item, pointer, bad));
            list.iter().enumerate().map(item).collect::<Vec<_>>().into()
        }
        toml::Value::Datetime(date) => unfit(format!(
            "date without quotes: found {date}; plugins get no dates, so write a string, such as \"{date}\""
        )),
        toml::Value::Float(number) if !number.is_finite() => {
            unfit(format!("number without a value: found {number}; expected a finite number"))
        }
        toml::Value::Float(number) => (*number).into(),
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Boolean(is_true) => (*is_true).into(),
    }
}

/// A JSON pointer as people write keys.
fn pointed(pointer: &str) -> String {
    pointer.replace('/', ".").replace("~1", "/").replace("~0", "~")
}

/// Returns the reason why a plugin is not configured now, although its configuration was accepted before.
fn rejection(error: ConfigureError) -> PluginRejection {
    let ConfigureError::Config(ConfigErrors { shown, more }) = error else {
        return PluginRejection::Component(error.to_string());
    };
    let complaint = |(pointer, message)| ConfigComplaint { pointer, key: None, message, by_schema: false };
    PluginRejection::Config { complaints: shown.into_iter().map(complaint).collect(), more: more as u64 }
}

/// The component that `use` names.
fn component(source: &Source, name: &str) -> Result<Component, String> {
    if let Some((_, bytes)) = plugway_plugins::STOCK.iter().find(|(stock, _)| *stock == name) {
        return Ok(Component::stock(bytes));
    }
    let stock: Vec<&str> = plugway_plugins::STOCK.iter().map(|(name, _)| *name).collect();
    if let Some(remedy) = foreign_keys::missing_plugin(name) {
        return Err(format!("unknown plugin `{name}`; {remedy}"));
    }
    if !name.ends_with(".wasm") {
        let hint = hint(name, &stock);
        return Err(format!(
            "unknown plugin `{name}`; {hint}expected a stock plugin ({}) or a file such as `./plugin.wasm`",
            stock.join(", ")
        ));
    }
    let file = beside(source, name);
    Component::open(&file).map_err(|error| {
        let path = file.display();
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                format!(
                    "no such plugin file: `{path}`; build it, or correct the path, which is relative to the file that names it"
                )
            }
            std::io::ErrorKind::PermissionDenied => files::no_permission(&file),
            _ => format!("cannot read the plugin `{path}`: {error}; expected a component, built for wasm32-wasip2"),
        }
    })
}
