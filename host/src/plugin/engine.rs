//! The engine: what it allows, and how components get into it.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::access::WantedAccess;
use super::bindings::{
    balancer, buffered_request_body, buffered_response_body, cache_policy, lifecycle, observer, request_body,
    request_filter, response_body, response_filter, timer,
};
use super::compiled_cache::{CompiledCache, Seal, Unusable};
use super::cpu_time;
use super::function_names;
use super::host::{HostState, MAX_CORE_INSTANCES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use super::http_linker;
use super::instance_limit::InstanceLimit;
use super::key_value;
use super::load_error::LoadError;
use super::proposals;
use super::settings::BodyAbility;
use super::shared;
use super::wasi;
use crate::context::edit_check::MessageSide;
use crate::system::printable;
use crate::system::supervise::{Task, guard};

/// The places for instances, over all workers and generations. Each costs 4 GiB of address space, a quarter of what a
/// process has in all, and 300 bytes of memory.
const INSTANCES: u32 = 8_000;

/// The least number of places, made where address space is short.
const MIN_INSTANCES: u32 = 2_000;

/// The divisor of the places and stacks that generations don't reserve: one in `MARGIN`, for bodies that outlive their
/// generation.
const MARGIN: u32 = 8;

/// The places of an engine that loads components and serves nothing.
const INSTANCES_FOR_LOADING: u32 = 4;

/// Stacks for instances whose calls may wait, over all workers and generations. Each has 2 MiB of address space, and
/// [`KEPT_STACK`] of memory once it was used. To prepare one takes 2 µs at the start.
const STACKS: u32 = 3_000;

/// The memory that a stack keeps for the next instance, in bytes: as much as most calls use.
const KEPT_STACK: usize = 64 << 10;

/// No plugin's limit of calls that wait can be higher: each of them holds an instance.
pub const MAX_WAITING_CALLS: u32 = 1_000;

/// No plugin's limit of bodies can be higher: each body holds an instance.
pub const MAX_BODIES: u32 = 4096;

/// The maximum of a plugin's memory limit.
pub const MAX_MEMORY_BYTES: usize = 256 << 20;

/// The number of digits of a digest that distinguish the builds of a plugin.
const DIGITS: usize = 12;

/// Bytes of a version in the log.
const MAX_VERSION_BYTES: usize = 32;

/// The engine, which loads components.
#[derive(Clone)]
pub struct Runtime {
    engine: Engine,
    linker: Arc<Linker<HostState>>,
    /// The linker of components that import something that waits.
    waiting_linker: Arc<Linker<HostState>>,
    artifacts: Arc<CompiledCache>,
    places: Arc<InstanceLimit>,
}

/// A loaded component, ready to be instantiated, with the hooks that it exports.
pub struct Plugin {
    pub(super) engine: Engine,
    pub(super) instance: wasmtime::component::InstancePre<HostState>,
    pub(super) lifecycle: lifecycle::LifecycleHookIndices,
    pub(super) request_filter: Option<request_filter::RequestFilterHookIndices>,
    pub(super) response_filter: Option<response_filter::ResponseFilterHookIndices>,
    pub(super) balancer: Option<balancer::BalancerHookIndices>,
    pub(super) cache_policy: Option<cache_policy::CachePolicyHookIndices>,
    pub(super) observer: Option<observer::ObserverHookIndices>,
    pub(super) timer: Option<timer::TimerHookIndices>,
    pub(super) request_body: Option<request_body::RequestBodyHookIndices>,
    pub(super) response_body: Option<response_body::ResponseBodyHookIndices>,
    pub(super) buffered_request_body: Option<buffered_request_body::BufferedRequestBodyHookIndices>,
    pub(super) buffered_response_body: Option<buffered_response_body::BufferedResponseBodyHookIndices>,
    pub(super) imports_exchange: bool,
    /// Whether it imports something that waits, so that each call has an instance to itself and runs on a stack of its own.
    pub(super) waits: bool,
    /// The places of its instances.
    pub(super) places: Arc<InstanceLimit>,
    imports: Vec<String>,
    /// The beginning of the component's digest.
    digest: String,
    /// The version in the component's description, once it is known.
    version: OnceLock<String>,
}

/// The way in which a plugin's calls of the shared state are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SharedCalls {
    /// The state is in this process.
    AtOnce,
    /// The state is on a server.
    Wait,
}

/// The error of an engine that doesn't start on this machine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the plugin engine doesn't start: {0:#}")]
    Engine(wasmtime::Error),
    #[error("there is no key for compiled plugins: {0}")]
    Key(std::io::Error),
}

impl Runtime {
    /// Starts the engine, and the thread that ticks its clock. Compiled code is kept in `cache`, if a folder is given.
    pub fn start(cache: Option<&Path>) -> Result<Self, StartError> {
        let opened = cache.map(CompiledCache::open).transpose().inspect_err(|error| {
            let folder = cache.map(|folder| folder.display().to_string()).unwrap_or_default();
            let remedy = "let the user that runs plugway write there, or name another folder by XDG_CACHE_HOME";
            tracing::warn!(folder, %error, remedy, "plugins are compiled at each start: no folder for compiled code");
        });
        let artifacts = opened.ok().flatten().map_or_else(CompiledCache::unkept, Ok).map_err(StartError::Key)?;
        let (engine, places) = pooling_engine(INSTANCES, MIN_INSTANCES).map_err(StartError::Engine)?;
        let (stacks, reserved) = (stacks(places), |all: u32| all - all / MARGIN);
        let limit = InstanceLimit::new(reserved(places), reserved(stacks));
        Runtime::new(engine, artifacts, limit).map_err(StartError::Engine)
    }

    /// Starts an engine that compiles for the one of [`Runtime::start`], and that rejects whatever that engine would
    /// reject.
    pub fn start_for_loading() -> Result<Self, StartError> {
        let engine = pooling_engine(INSTANCES_FOR_LOADING, INSTANCES_FOR_LOADING).map_err(StartError::Engine)?.0;
        let artifacts = CompiledCache::unkept().map_err(StartError::Key)?;
        Runtime::new(engine, artifacts, InstanceLimit::new(u32::MAX, u32::MAX)).map_err(StartError::Engine)
    }

    fn new(engine: Engine, artifacts: CompiledCache, places: Arc<InstanceLimit>) -> wasmtime::Result<Self> {
        let (mut linker, mut waiting_linker) = (Linker::new(&engine), Linker::new(&engine));
        wasi::add_to_linker(&mut linker)?;
        super::bindings::Imports::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        key_value::add_to_linker(&mut linker)?;
        wasi::add_waiting_to_linker(&mut waiting_linker)?;
        http_linker::add_to_linker(&mut waiting_linker)?;
        super::bindings::Imports::add_to_linker::<_, HasSelf<_>>(&mut waiting_linker, |state| state)?;
        shared::add_waiting_to_linker(&mut waiting_linker)?;
        key_value::add_waiting_to_linker(&mut waiting_linker)?;
        let clock = engine.weak();
        std::thread::Builder::new().name("plugin-clock".into()).spawn(move || {
            while let Some(engine) = clock.upgrade() {
                let _ = guard(Task::PluginClock, || {
                    cpu_time::count_tick();
                    engine.increment_epoch();
                });
                drop(engine);
                std::thread::sleep(cpu_time::until_next_tick());
            }
        })?;
        let (linker, waiting_linker) = (Arc::new(linker), Arc::new(waiting_linker));
        Ok(Runtime { engine, linker, waiting_linker, artifacts: Arc::new(artifacts), places })
    }

    /// The places for instances.
    pub fn places(&self) -> &Arc<InstanceLimit> {
        &self.places
    }

    /// The compiled components that are kept.
    pub fn artifacts(&self) -> &CompiledCache {
        &self.artifacts
    }

    /// The seal of a component's artifact, by the component's digest.
    pub fn seal(&self, component: &blake3::Hash) -> Seal {
        self.artifacts.seal(&self.engine, component)
    }

    /// Returns a component that was compiled before, with its description; `None` if it wasn't.
    pub fn load_compiled(&self, seal: &Seal) -> Option<(Vec<u8>, Plugin)> {
        let (about, component) = self.artifacts.load(&self.engine, seal)?;
        Some((about, self.prepare(&component, &seal.name, SharedCalls::AtOnce).ok()?))
    }

    /// Opens a sealed artifact.
    pub fn unseal(&self, seal: &Seal, sealed: &[u8]) -> Result<(Vec<u8>, Plugin), Unusable> {
        let (about, component) = seal.component(&self.engine, sealed)?;
        Ok((about, self.prepare(&component, &seal.name, SharedCalls::AtOnce)?))
    }

    /// Compiles a component and examines its exports. Call this only where nothing else is served: compiling may take
    /// any time and memory.
    pub fn load(&self, bytes: &[u8]) -> Result<Plugin, LoadError> {
        // The format's version, and that a file is a module rather than a component.
        const MODULE: &[u8] = b"\0asm\x01\0\0\0";
        if bytes.starts_with(MODULE) {
            return Err(LoadError::CoreModule);
        }
        if !bytes.starts_with(&MODULE[..4]) {
            return Err(LoadError::NotWebAssembly);
        }
        let name = function_names::longest(bytes);
        if name > function_names::MAX_NAME_BYTES {
            return Err(LoadError::FunctionName(name));
        }
        let component = Component::from_binary(&self.engine, bytes).map_err(LoadError::NotAComponent)?;
        self.prepare(&component, &blake3::hash(bytes).to_hex(), SharedCalls::AtOnce)
    }

    /// Returns a plugin whose calls of the shared state wait for a server.
    pub fn waiting_for_shared(&self, plugin: &Plugin) -> Result<Plugin, LoadError> {
        let waiting = self.prepare(plugin.instance.component(), &plugin.digest, SharedCalls::Wait)?;
        plugin.version.get().iter().for_each(|version| waiting.note_version(version));
        Ok(waiting)
    }

    /// Examines the exports of a component, which is named by its digest.
    fn prepare(&self, component: &Component, digest: &str, calls: SharedCalls) -> Result<Plugin, LoadError> {
        if let Some(name) = self.other_version(component) {
            return Err(LoadError::OtherVersion(name));
        }
        let component_type = component.component_type();
        let imports: Vec<String> = component_type.imports(&self.engine).map(|(name, _)| name.to_string()).collect();
        let waits_anyway = imports.iter().any(|name| is_waited_for(name));
        let waits = waits_anyway || calls == SharedCalls::Wait && WantedAccess::Shared.import(&imports).is_some();
        let linker = if waits { &self.waiting_linker } else { &self.linker };
        let instance = linker.instantiate_pre(component).map_err(LoadError::Imports)?;
        if component.get_export_index(None, format!("{PACKAGE}lifecycle{VERSION}")).is_none() {
            return Err(LoadError::NotAPlugin);
        }
        let lifecycle = lifecycle::LifecycleHookIndices::new(&instance).map_err(LoadError::Lifecycle)?;
        let request_filter =
            hook(component, "request-filter", || request_filter::RequestFilterHookIndices::new(&instance))?;
        let response_filter =
            hook(component, "response-filter", || response_filter::ResponseFilterHookIndices::new(&instance))?;
        let balancer = hook(component, "balancer", || balancer::BalancerHookIndices::new(&instance))?;
        let cache_policy = hook(component, "cache-policy", || cache_policy::CachePolicyHookIndices::new(&instance))?;
        let observer = hook(component, "observer", || observer::ObserverHookIndices::new(&instance))?;
        let timer = hook(component, "timer", || timer::TimerHookIndices::new(&instance))?;
        let request_body = hook(component, "request-body", || request_body::RequestBodyHookIndices::new(&instance))?;
        let response_body =
            hook(component, "response-body", || response_body::ResponseBodyHookIndices::new(&instance))?;
        let buffered_request_body = hook(component, "buffered-request-body", || {
            buffered_request_body::BufferedRequestBodyHookIndices::new(&instance)
        })?;
        let buffered_response_body = hook(component, "buffered-response-body", || {
            buffered_response_body::BufferedResponseBodyHookIndices::new(&instance)
        })?;
        let looks_back = imports.iter().any(|name| name.contains("/exchange@"));
        let plugin = Plugin {
            engine: self.engine.clone(),
            instance,
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
            imports_exchange: looks_back,
            waits,
            places: self.places.clone(),
            imports,
            digest: digest.get(..DIGITS).unwrap_or(digest).into(),
            version: OnceLock::new(),
        };
        match plugin.hook_that_may_not_wait().filter(|_| waits) {
            None => Ok(plugin),
            Some(hook) if waits_anyway => Err(LoadError::WaitingHook(hook)),
            Some(hook) => Err(LoadError::SharedHook(hook)),
        }
    }
}

impl Runtime {
    /// Returns an import or export of another version of the plugin interface; `None` if there is none.
    fn other_version(&self, component: &Component) -> Option<String> {
        let kind = component.component_type();
        let imports = kind.imports(&self.engine).map(|(name, _)| name.to_string());
        let names: Vec<String> = imports.chain(kind.exports(&self.engine).map(|(name, _)| name.to_string())).collect();
        names.into_iter().find(|name| name.starts_with(PACKAGE) && !name.ends_with(VERSION))
    }
}

/// The beginning and the end of the names of the plugin interface.
const PACKAGE: &str = "plugway:plugin/";
const VERSION: &str = "@0.1.0";

/// The interfaces whose functions wait, without their versions.
const WAITED_FOR: [&str; 2] = ["plugway:plugin/passwords", "wasi:http/outgoing-handler"];

/// The hooks that may not wait: they decide at once.
const DECIDING_HOOKS: [&str; 2] = ["balancer", "cache-policy"];

/// Whether an import of this name waits.
fn is_waited_for(import: &str) -> bool {
    WAITED_FOR.contains(&import.split('@').next().unwrap_or(import))
}

impl Plugin {
    /// Notes the version of the component's own description.
    pub fn note_version(&self, version: &str) {
        let _ = self.version.set(printable::one_line(version, MAX_VERSION_BYTES).into_owned());
    }

    /// Returns the version of the component and the beginning of its digest, because two builds may have one version.
    pub fn version(&self) -> String {
        let described = self.version.get().map(String::as_str).unwrap_or_default();
        format!("{described} {}", self.digest).trim_start().into()
    }

    /// Returns the modes in which the plugin can take the bodies of one side with some memory; `None` if it takes none.
    pub(super) fn body_ability(&self, side: MessageSide, memory: usize) -> Option<BodyAbility> {
        let (streams, gathers) = match side {
            MessageSide::Request => (self.request_body.is_some(), self.buffered_request_body.is_some()),
            MessageSide::Response => (self.response_body.is_some(), self.buffered_response_body.is_some()),
        };
        (streams || gathers).then_some(BodyAbility { memory: memory as u64, streams, gathers })
    }

    /// Returns a hook that may not wait; `None` if it has none.
    fn hook_that_may_not_wait(&self) -> Option<&'static str> {
        self.hooks().into_iter().find(|hook| DECIDING_HOOKS.contains(hook))
    }

    /// The hooks that it has.
    pub fn hooks(&self) -> Vec<&'static str> {
        let hooks = [
            ("request-filter", self.request_filter.is_some()),
            ("response-filter", self.response_filter.is_some()),
            ("request-body", self.request_body.is_some()),
            ("response-body", self.response_body.is_some()),
            ("buffered-request-body", self.buffered_request_body.is_some()),
            ("buffered-response-body", self.buffered_response_body.is_some()),
            ("balancer", self.balancer.is_some()),
            ("cache-policy", self.cache_policy.is_some()),
            ("observer", self.observer.is_some()),
            ("timer", self.timer.is_some()),
        ];
        hooks.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
    }

    /// Returns the compiled code, to be sealed.
    pub fn code(&self) -> Option<Vec<u8>> {
        self.instance.component().serialize().ok()
    }

    /// Whether its hooks may wait.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// The interfaces that it imports.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }
}

/// Returns the settings that code is compiled for, which are the same on every machine.
fn settings() -> Config {
    let mut config = Config::new();
    config.concurrency_support(false).epoch_interruption(true).async_stack_zeroing(true);
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    proposals::choose(&mut config);
    config
}

/// Returns an engine with places for many instances, and their number. If address space is short (a container, `ulimit
/// -v`), the engine asks the system for each instance.
fn pooling_engine(wanted: u32, least: u32) -> wasmtime::Result<(Engine, u32)> {
    let mut instances = wanted;
    loop {
        let mut pooling = settings();
        pooling.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances)));
        match Engine::new(&pooling) {
            Ok(engine) => return Ok((engine, instances)),
            Err(error) if instances <= least => {
                tracing::info!("instances are not pooled: {error:#}");
                return Ok((Engine::new(&settings())?, wanted));
            }
            Err(_) => {
                instances = (instances / 2).max(least);
                tracing::info!(wanted, instances, "address space (`ulimit -v`) limits the pool of plugin instances");
            }
        }
    }
}

/// Returns the number of stacks beside so many instances.
fn stacks(instances: u32) -> u32 {
    instances.min(STACKS)
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    // Only counted, so that a component with many takes none from others.
    pool.total_component_instances(instances).total_core_instances(instances * MAX_CORE_INSTANCES as u32);
    pool.total_memories(instances).total_tables(instances * MAX_TABLES as u32).max_memory_size(MAX_MEMORY_BYTES);
    pool.table_elements(MAX_TABLE_ELEMENTS).max_unused_warm_slots(16);
    pool.total_stacks(stacks(instances)).async_stack_keep_resident(KEPT_STACK);
    pool
}

/// A hook, if the component exports it.
fn hook<I>(
    component: &Component,
    name: &'static str,
    indices: impl FnOnce() -> wasmtime::Result<I>,
) -> Result<Option<I>, LoadError> {
    if component.get_export_index(None, format!("plugway:plugin/{name}@0.1.0")).is_none() {
        return Ok(None);
    }
    indices().map(Some).map_err(|error| LoadError::Hook(name, error))
}
