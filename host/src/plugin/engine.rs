//! The engine for plugins that can't wait: what it allows, and how components get into it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::artifact::Artifacts;
use super::contract::{balancer, lifecycle, request_filter, response_filter};
use super::host::{self, HostState};

/// How often the clock of running plugins ticks; a limit of CPU time is kept to within one tick.
pub const TICK: Duration = Duration::from_millis(5);

/// Instances that can live at once, over all workers and generations. Each costs address space, no memory.
const INSTANCES: u32 = 2_000;

/// No plugin's memory limit can be higher.
pub const MOST_MEMORY: usize = 256 << 20;

/// Loads components.
#[derive(Clone)]
pub struct Runtime {
    engine: Engine,
    linker: Arc<Linker<HostState>>,
    artifacts: Option<Arc<Artifacts>>,
}

/// A loaded component, ready to be instantiated, with the hooks that it exports.
pub struct Plugin {
    pub(super) engine: Engine,
    pub(super) instance: wasmtime::component::InstancePre<HostState>,
    pub(super) lifecycle: lifecycle::LifecycleHookIndices,
    pub(super) request_filter: Option<request_filter::RequestFilterHookIndices>,
    pub(super) response_filter: Option<response_filter::ResponseFilterHookIndices>,
    pub(super) balancer: Option<balancer::BalancerHookIndices>,
    pub(super) looks_back: bool,
    imports: Vec<String>,
}

/// The engine doesn't start on this machine.
#[derive(Debug, thiserror::Error)]
#[error("the plugin engine doesn't start: {0:#}")]
pub struct StartError(wasmtime::Error);

/// A component that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("this is no WebAssembly component: {0:#}")]
    NotAComponent(wasmtime::Error),
    #[error("it imports what plugins don't get: {0:#}")]
    Imports(wasmtime::Error),
    #[error("it doesn't export `plugway:plugin/lifecycle@0.1.0` as this version knows it: {0:#}")]
    Lifecycle(wasmtime::Error),
    #[error("it exports `{0}`, but not as this version knows it: {1:#}")]
    Hook(&'static str, wasmtime::Error),
}

impl Runtime {
    /// Starts the engine, and the thread that ticks its clock. Compiled code is kept in a folder, if one is given.
    pub fn start(cache: Option<&Path>) -> Result<Self, StartError> {
        let open = |folder: &Path| Artifacts::open(folder);
        let opened = cache.map(open).transpose().inspect_err(|error| {
            tracing::warn!(%error, "plugins are compiled at each start");
        });
        Runtime::new(opened.ok().flatten().map(Arc::new)).map_err(StartError)
    }

    fn new(artifacts: Option<Arc<Artifacts>>) -> wasmtime::Result<Self> {
        let mut pool = PoolingAllocationConfig::default();
        pool.total_component_instances(INSTANCES).total_core_instances(INSTANCES * 4);
        pool.total_memories(INSTANCES).total_tables(INSTANCES * 4).max_memory_size(MOST_MEMORY);
        pool.max_unused_warm_slots(16);
        let mut config = Config::new();
        config.concurrency_support(false).epoch_interruption(true);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        host::add_wasi(&mut linker)?;
        super::contract::Imports::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        let clock = engine.weak();
        std::thread::Builder::new().name("plugin-clock".into()).spawn(move || {
            while let Some(engine) = clock.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(TICK);
            }
        })?;
        Ok(Runtime { engine, linker: Arc::new(linker), artifacts })
    }

    /// Compiles a component and looks at its exports.
    pub fn load(&self, bytes: &[u8]) -> Result<Plugin, LoadError> {
        let component = self.compiled(bytes).map_err(LoadError::NotAComponent)?;
        let instance = self.linker.instantiate_pre(&component).map_err(LoadError::Imports)?;
        let exports = |name: &str| component.get_export_index(None, name).is_some();
        let hook = |name, indices: wasmtime::Result<_>| indices.map_err(|error| LoadError::Hook(name, error));
        let lifecycle = lifecycle::LifecycleHookIndices::new(&instance).map_err(LoadError::Lifecycle)?;
        let request_filter = match exports("plugway:plugin/request-filter@0.1.0") {
            true => Some(hook("request-filter", request_filter::RequestFilterHookIndices::new(&instance))?),
            false => None,
        };
        let hook = |name, indices: wasmtime::Result<_>| indices.map_err(|error| LoadError::Hook(name, error));
        let response_filter = match exports("plugway:plugin/response-filter@0.1.0") {
            true => Some(hook("response-filter", response_filter::ResponseFilterHookIndices::new(&instance))?),
            false => None,
        };
        let hook = |name, indices: wasmtime::Result<_>| indices.map_err(|error| LoadError::Hook(name, error));
        let balancer = match exports("plugway:plugin/balancer@0.1.0") {
            true => Some(hook("balancer", balancer::BalancerHookIndices::new(&instance))?),
            false => None,
        };
        let component_type = component.component_type();
        let imports: Vec<String> = component_type.imports(&self.engine).map(|(name, _)| name.to_string()).collect();
        let looks_back = imports.iter().any(|name| name.contains("/exchange@"));
        let engine = self.engine.clone();
        Ok(Plugin { engine, instance, lifecycle, request_filter, response_filter, balancer, looks_back, imports })
    }
}

impl Runtime {
    fn compiled(&self, bytes: &[u8]) -> wasmtime::Result<Component> {
        let Some(artifacts) = &self.artifacts else { return Component::from_binary(&self.engine, bytes) };
        if let Some(component) = artifacts.load(&self.engine, bytes) {
            return Ok(component);
        }
        let component = Component::from_binary(&self.engine, bytes)?;
        artifacts.store(&self.engine, bytes, &component);
        Ok(component)
    }
}

impl Plugin {
    /// The hooks that it has.
    pub fn hooks(&self) -> Vec<&'static str> {
        let hooks = [
            ("request-filter", self.request_filter.is_some()),
            ("response-filter", self.response_filter.is_some()),
            ("balancer", self.balancer.is_some()),
        ];
        hooks.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
    }

    /// The interfaces that it imports.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }
}
