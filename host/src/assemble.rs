//! The assembly of a generation from a manifest: names become indices, texts become values, plugins are loaded and
//! configured. After this nothing is parsed, looked up by name or checked again. All errors are found before any is
//! reported.

pub mod addresses;
pub mod admin;
mod buffers;
mod cache_scope;
mod credentials;
mod doubtful;
mod endpoints;
mod error_pages;
mod fleet;
mod health;
mod http_grants;
mod idioms;
mod instances;
mod listeners;
mod maintenance;
mod once;
mod path_regex;
mod plugin_grants;
mod plugin_names;
mod plugin_values;
mod plugins;
mod preflights;
pub mod process;
mod reach;
mod redirect_loops;
mod route_conditions;
mod routes;
mod targets;
mod unguarded_paths;
mod units;
mod unused;
mod upstream_tls;
mod upstreams;
mod uri_rules;
mod zones;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;

use crate::assemble::addresses::{ListenerAddress, ManifestPlace};
use crate::assemble::admin::AdminSettings;
use crate::assemble::credentials::CredentialUse;
use crate::assemble::http_grants::HttpGrants;
use crate::assemble::path_regex::Paths;
use crate::assemble::plugin_names::UnmetFields;
use crate::assemble::reach::Reach;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Doubt, Source, Warning};
use crate::config::load::{Files, ManifestFile};
use crate::config::spanned::Spanned;
use crate::config::structure::LeftOut;
use crate::generation::Generation;
use crate::generation::connection_counts::ConnectionCounts;
use crate::generation::ids::{ById, PluginId};
use crate::generation::maintenance::MaintenanceSwitch;
use crate::loading::{Examination, Loader};
use crate::plugin::configured::ConfiguredPlugin;
use crate::plugin::engine::{Plugin, Runtime};
use crate::plugin::instance_limit::ReservedInstances;
use crate::plugin::tenancy::{OwnInstances, Tenancy};
use crate::plugin::version::PluginVersions;
use crate::shared_state::fleet::{FleetClient, FleetStates};
use crate::shared_state::{SharedLimits, SharedStates};
use crate::store::Store;
use crate::telemetry::access_log::{AccessLog, LogFormat, LogTarget};
use crate::tls::client::SystemRoots;
use crate::tls::server::Tickets;
use crate::tls::validity::DatedCertificate;
use crate::upstream::connection_limit::ConnectionLimit;
use crate::upstream::endpoint_set::EndpointSet;

/// The default of `drain`, the time that a stop waits for exchanges: as long as orchestrators usually give.
const DRAIN: Duration = Duration::from_secs(30);

/// The builder of generations, with the state that outlives them.
pub struct Assembler {
    runtime: Runtime,
    /// The folder of compiled plugins; `None` if they are not kept.
    compiled: Option<PathBuf>,
    loader: Loader,
    /// The endpoints of each upstream, by its name.
    live: HashMap<Arc<str>, Arc<EndpointSet>>,
    /// The connections that each upstream may have, by its name and the limits.
    connection_limits: HashMap<(Arc<str>, u32, u32), ConnectionLimit>,
    /// The files that switch maintenance on, by their paths.
    switches: HashMap<PathBuf, Arc<MaintenanceSwitch>>,
    /// The connections at each listener.
    census: HashMap<Arc<str>, Arc<ConnectionCounts>>,
    /// The TLS session tickets, which outlive a reload.
    tickets: Tickets,
    /// The TLS configurations to endpoints, by the digests of their settings.
    dialers: HashMap<blake3::Hash, Arc<ClientConfig>>,
    plugins: HashMap<blake3::Hash, LoadedPlugin>,
    /// The versions of configured plugins, which outlive generations.
    versions: PluginVersions,
    /// The states that plugins share, which outlive generations.
    shared_states: SharedStates,
    /// The states that plugins share with other processes.
    fleet_states: FleetStates,
    /// The stores of caches, by folder, each in one spelling.
    stores: HashMap<Option<PathBuf>, Weak<Store>>,
    /// The time of a check that builds nothing that is served; `None` if generations are built. A check opens nothing that
    /// another process may use.
    check_time: Option<SystemTime>,
    /// The number of workers, as the first manifest says.
    workers: Option<usize>,
    /// The log of the last generation: kept while the manifest asks for the same.
    log: Option<((LogFormat, LogTarget), AccessLog)>,
}

/// A generation, and the settings of the manifest besides it.
pub struct AssembledManifest {
    pub generation: Generation,
    /// The addresses to listen at.
    pub listeners: Vec<ListenerAddress>,
    pub workers: Option<usize>,
    /// The time that a stop waits for exchanges.
    pub drain: Duration,
    pub admin: AdminSettings,
    pub warnings: Vec<Warning>,
    /// The place of the admin listener's address; `None` if the manifest has none.
    pub admin_place: Option<ManifestPlace>,
    /// The plugins that are not configured yet, because they ask services meanwhile.
    pub asking: Vec<AskingPlugin>,
}

/// A plugin that asks services while it is configured.
pub struct AskingPlugin {
    pub plugin_id: PluginId,
    /// The place of the plugin in the manifest.
    pub place: ManifestPlace,
}

/// A component that was found good.
struct LoadedPlugin {
    plugin: Arc<Plugin>,
    /// The component with calls of the shared state that wait for a server; `None` before that is needed.
    waiting: Option<Arc<Plugin>>,
    /// The schema of the component's configuration.
    schema: Option<Arc<str>>,
    /// Whether the component says that it decides which clients get the responses behind it.
    is_guard: bool,
    /// The digests of the configurations that the component accepts, with their limits.
    accepted: HashSet<[u8; 32]>,
    /// Whether `accepted` has digests that are not on disk yet.
    has_new: bool,
}

/// The state of one assembly.
struct Assembly<'a> {
    assembly: &'a mut Assembler,
    problems: Diagnostics,
    left_out: LeftOut,
    bindings: ById<PluginId, Arc<ConfiguredPlugin>>,
    /// The plugins that ask services while they are configured.
    asking: Vec<AskingPlugin>,
    /// The named plugins; `None` if one has an error.
    named: BTreeMap<String, Option<PluginId>>,
    round_robin: Option<PluginId>,
    /// The system's authorities; `None` before an upstream needs them.
    system_roots: Option<Arc<SystemRoots>>,
    /// The plugins that decide which clients get the responses behind them.
    guards: HashSet<PluginId>,
    /// The plugins among them that may ask for credentials.
    credential_guards: HashSet<PluginId>,
    /// The use of credentials by each plugin.
    credentials: HashMap<PluginId, CredentialUse>,
    /// The plugins that answer preflights.
    cors: HashSet<PluginId>,
    /// The plugins that redirect from paths with a slash at the end to those without.
    slash_removers: HashSet<PluginId>,
    /// Components in child processes, the last used at the end.
    examinations: Vec<Examination>,
    /// Components whose loading ended at a limit, or in a crash, with the error: they are not tried again.
    broken: HashMap<blake3::Hash, String>,
    /// The number of regular expressions.
    regexes: usize,
    /// The paths that routes see; `None` before the first regular expression.
    paths: Option<Paths>,
    /// The error pages that were read, by their paths.
    pages: HashMap<PathBuf, Arc<str>>,
    /// The request fields that reach the routes.
    reach: Reach,
    /// The request fields that plugins read, and that listeners remove.
    unmet: Vec<UnmetFields>,
    /// The places of the instances; `None` if there are too few.
    reserved: Option<ReservedInstances>,
    /// The destinations that plugins are granted.
    http_grants: HttpGrants,
    /// The limits of the states that plugins share.
    shared: SharedLimits,
    /// The server that has the state of plugins; `None` if this process has it.
    fleet: Option<Arc<FleetClient>>,
    /// Digests of the components in use.
    used: HashSet<blake3::Hash>,
    /// The certificates that listeners and upstreams show; one for each use.
    certificates: Vec<DatedCertificate>,
}

impl Assembler {
    /// Returns an assembler without a generation; new components are loaded by a loader.
    pub fn new(runtime: Runtime, loader: Loader) -> anyhow::Result<Self> {
        let (tickets, versions) = (Tickets::new()?, PluginVersions::start()?);
        let (live, connection_limits, census) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (dialers, plugins) = (HashMap::new(), HashMap::new());
        let (stores, switches) = (HashMap::new(), HashMap::new());
        let (shared_states, fleet_states) = (SharedStates::default(), FleetStates::default());
        let (log, check_time, workers) = (None, None, None);
        let compiled = runtime.artifacts().folder().map(Path::to_path_buf);
        Ok(Assembler {
            runtime,
            compiled,
            loader,
            live,
            connection_limits,
            switches,
            census,
            tickets,
            dialers,
            plugins,
            versions,
            shared_states,
            fleet_states,
            stores,
            check_time,
            workers,
            log,
        })
    }

    /// Returns an assembler that only finds errors, and builds nothing that is served. Certificates that are not valid now
    /// are warned of. `compiled` is the folder of compiled plugins, which the runtime need not use.
    pub fn for_check(
        runtime: Runtime,
        loader: Loader,
        compiled: Option<&Path>,
        now: SystemTime,
    ) -> anyhow::Result<Self> {
        let compiled = compiled.map(Path::to_path_buf);
        Ok(Assembler { check_time: Some(now), compiled, ..Assembler::new(runtime, loader)? })
    }

    /// Makes a generation of a manifest's files.
    pub fn assemble(&mut self, files: Files) -> Result<AssembledManifest, Diagnostics> {
        let Files { list: files, problems, left_out, .. } = files;
        let files = files.as_slice();
        // The switches of a rejected manifest belong to no generation.
        self.switches.retain(|_, switch| Arc::strong_count(switch) > 1);
        let mut draft = Assembly::new(self, files, problems, left_out);
        draft.bind_plugins(files);
        let (shared_limits, fleet) = (draft.shared, draft.fleet.clone());
        let (mut upstreams, upstream_ids) = draft.upstreams(files);
        let (routes, router) = draft.routes(files, &upstream_ids);
        let callout_targets = draft.callout_targets(&mut upstreams, &upstream_ids);
        let (listeners, workers) = (draft.listeners(files), draft.workers(files));
        let drain = draft.drain(files);
        let (admin, admin_place) = (draft.admin(files), admin::place(files));
        let access_log = draft.access_log(files);
        let error_pages = draft.error_pages(files);
        let name_servers = draft.name_servers(files);
        let store_limits = draft.store_limits(files);
        let store = draft.store(files, &store_limits);
        let buffer_limits = draft.buffer_limits(files);
        draft.once(files);
        draft.warn_of_unused(files);
        draft.warn_of_unmet_fields(files);
        draft.warn_of_doubtful(files);
        let certificates = draft.take_certificates();
        let Assembly { problems, bindings, asking, used, reserved, .. } = draft;
        self.keep_accepted();
        let (router, reserved) = match (router, reserved) {
            (Some(router), Some(reserved)) if problems.count() == 0 => (router, reserved),
            _ => return Err(problems),
        };
        let each = OwnInstances {
            places: (bindings.ids().count() + upstreams.ids().count()) as u32,
            stacks: bindings.iter().filter(|configured| configured.waits()).count() as u32,
        };
        let covered = bindings.iter().map(|configured| configured.supply.clone()).collect();
        let tenancy = Tenancy::new(reserved, covered, self.workers(files) as u32, each);
        self.forget_unused(&used);
        let addresses = listeners::addresses(files, &listeners);
        let generation = Generation {
            router,
            maintenance: maintenance::switches(routes.iter()),
            routes: routes.into(),
            upstreams,
            upstream_ids,
            bindings,
            callout_targets,
            listeners,
            error_pages,
            name_servers,
            store,
            store_limits,
            shared_limits,
            fleet,
            buffer_limits,
            access_log,
            tenancy,
            certificates,
        };
        let warnings = problems.into_warnings();
        let listeners = addresses;
        Ok(AssembledManifest { generation, warnings, admin, admin_place, asking, listeners, workers, drain })
    }

    /// Drops the state that neither this generation nor one in service uses.
    fn forget_unused(&mut self, used: &HashSet<blake3::Hash>) {
        self.plugins.retain(|digest, _| used.contains(digest));
        // Connections of a listener that is gone may outlive it, and those of one in service a manifest that is rejected.
        self.census.retain(|_, census| Arc::strong_count(census) > 1);
        self.dialers.retain(|_, config| Arc::strong_count(config) > 1);
        // What only a generation that was refused wanted is still here; what one in service has, too.
        self.live.retain(|_, live| Arc::strong_count(live) > 1);
        self.connection_limits.retain(|_, connection_limits| connection_limits.are_in_use());
    }
}

impl Assembler {
    /// The living set of an upstream.
    fn live(&mut self, name: &Arc<str>) -> Arc<EndpointSet> {
        self.live.entry(name.clone()).or_insert_with(|| Arc::new(EndpointSet::new(name.clone()))).clone()
    }

    /// The connections of an upstream: those of before, where the limits are the same.
    fn connection_limit(&mut self, name: &Arc<str>, connections: u32, pending: u32) -> ConnectionLimit {
        let new = || ConnectionLimit::limited(connections, pending);
        self.connection_limits.entry((name.clone(), connections, pending)).or_insert_with(new).clone()
    }
}

impl Assembler {
    /// Returns the number of workers of a generation. A reload doesn't change it.
    fn workers(&mut self, files: &[ManifestFile]) -> usize {
        *self.workers.get_or_insert_with(|| instances::workers(files))
    }
}

impl<'a> Assembly<'a> {
    fn new(assembly: &'a mut Assembler, files: &[ManifestFile], problems: Diagnostics, left_out: LeftOut) -> Self {
        let reach = Reach::of(files, &left_out);
        Assembly {
            assembly,
            problems,
            left_out,
            bindings: ById::default(),
            asking: Vec::new(),
            named: BTreeMap::new(),
            round_robin: None,
            system_roots: None,
            guards: HashSet::new(),
            credential_guards: HashSet::new(),
            credentials: HashMap::new(),
            cors: HashSet::new(),
            slash_removers: HashSet::new(),
            examinations: Vec::new(),
            broken: HashMap::new(),
            regexes: 0,
            paths: None,
            pages: HashMap::new(),
            reach,
            unmet: Vec::new(),
            reserved: None,
            http_grants: HttpGrants::of(files),
            shared: SharedLimits::default(),
            fleet: None,
            used: HashSet::new(),
            certificates: Vec::new(),
        }
    }
}

impl Assembly<'_> {
    /// Sets the limits that all plugins share, and configures each plugin.
    fn bind_plugins(&mut self, files: &[ManifestFile]) {
        self.assembly.loader.limits = self.load_limits(files);
        self.reserve(files);
        self.shared = self.shared_limits(files);
        self.fleet = self.fleet(files);
        self.bind_all(files);
    }

    /// Returns each certificate of the manifest once, in the order of their files.
    fn take_certificates(&mut self) -> Vec<DatedCertificate> {
        let mut certificates = std::mem::take(&mut self.certificates);
        certificates.sort_by(|one, other| one.chain.cmp(&other.chain));
        certificates.dedup_by(|one, other| one.chain == other.chain);
        certificates
    }

    /// Notes the dates of a certificate in a file that a place of the manifest names.
    fn note_certificate(&mut self, source: &Arc<Source>, span: &Range<usize>, chain: &Path) {
        let Some(dated) = DatedCertificate::read(chain, source.location(span)) else { return };
        // A proxy that serves warns of it when the generation is in service.
        if let Some(doubt) = self.assembly.check_time.and_then(|now| dated.doubt(now)) {
            self.problems.warn(Doubt::Meaning, source, span.clone(), &doubt);
        }
        self.certificates.push(dated);
    }

    /// Returns how long a stop waits for exchanges.
    fn drain(&mut self, files: &[ManifestFile]) -> Duration {
        let named = files.iter().find_map(|file| Some((&file.source, file.manifest.drain_timeout.as_ref()?)));
        named.map_or(DRAIN, |(source, text)| self.duration(source, Some(text), DRAIN))
    }

    /// Reserves the places for instances, except those for bodies.
    fn reserve(&mut self, files: &[ManifestFile]) {
        let wanted = instances::places(files, self.assembly.workers(files));
        match (self.assembly.runtime.places().reserve_for_generation(wanted), files.first()) {
            (Ok(reserved), _) => self.reserved = Some(reserved),
            (Err(shortage), Some(file)) => self.problems.of_file(&file.source, shortage.to_string()),
            (Err(_), None) => {}
        }
    }

    fn bytes(&mut self, source: &Arc<Source>, text: Option<&Spanned<String>>, default: usize) -> usize {
        let Some(text) = text else { return default };
        units::bytes(text.get_ref()).unwrap_or_else(|| {
            let message = format!(
                "invalid size: {}; expected one such as `64 KiB`, `16 MiB` or `1 GiB`",
                units::found_size(text.get_ref())
            );
            self.problems.at(source, text.span(), message);
            default
        })
    }

    fn count(&mut self, source: &Arc<Source>, number: Option<&Spanned<usize>>, default: usize, max: usize) -> usize {
        self.up_to(source, number, default, 1..=max)
    }

    fn up_to(
        &mut self,
        source: &Arc<Source>,
        number: Option<&Spanned<usize>>,
        default: usize,
        allowed: RangeInclusive<usize>,
    ) -> usize {
        let Some(number) = number else { return default };
        if !allowed.contains(number.get_ref()) {
            let message =
                format!("number out of range: {}; expected {} to {}", number.get_ref(), allowed.start(), allowed.end());
            self.problems.at(source, number.span(), message);
        }
        *number.get_ref()
    }

    fn duration(&mut self, source: &Arc<Source>, text: Option<&Spanned<String>>, default: Duration) -> Duration {
        let Some(text) = text else { return default };
        units::duration(text.get_ref()).unwrap_or_else(|| {
            let message = format!(
                "invalid duration: {}; expected one such as `50ms`, `10s`, `5m` or `1h`",
                units::found_duration(text.get_ref())
            );
            self.problems.at(source, text.span(), message);
            default
        })
    }
}

/// Writes warnings to the log.
pub fn log(warnings: &[Warning]) {
    for Warning { doubt, diagnostic: Diagnostic { source, span, message } } in warnings {
        let place = span.as_ref().map_or_else(|| source.path.display().to_string(), |span| source.location(span));
        tracing::warn!(%place, why = message, "{}", doubt.phrase());
    }
}

/// Returns the path of a file that a manifest names, relative to the manifest.
fn beside(source: &Source, file: &str) -> PathBuf {
    source.path.parent().unwrap_or(Path::new(".")).join(file)
}

/// Returns the header of a named table, in quotes where TOML demands them.
fn named_table(kind: &str, name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(is_bare) {
        format!("[{kind}.{name}]")
    } else {
        format!("[{kind}.{name:?}]")
    }
}

/// Returns names for a message: all of them, or the first of many.
fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 20;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() <= SHOWN { shown } else { format!("{shown} and {} more", names.len() - SHOWN) }
}

/// Returns the position of the beginning of a table.
fn head_of(span: &Range<usize>) -> Range<usize> {
    span.start..span.start + 1
}
