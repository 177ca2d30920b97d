//! The engine for plugins that can't wait: what it allows, and how components get into it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::artifact::Artifacts;
use super::contract::{
    balancer, cache_policy, lifecycle, observer, request_body, request_filter, response_body, response_filter, timer,
};
use super::host::HostState;
use super::wasi;

/// How often the clock of running plugins ticks; a limit of CPU time is kept to within one tick.
pub const TICK: Duration = Duration::from_millis(5);

/// Instances that can live at once, over all workers and generations. Each costs 4 GiB of address space, no memory.
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
    pub(super) cache_policy: Option<cache_policy::CachePolicyHookIndices>,
    pub(super) observer: Option<observer::ObserverHookIndices>,
    pub(super) timer: Option<timer::TimerHookIndices>,
    pub(super) request_body: Option<request_body::RequestBodyHookIndices>,
    pub(super) response_body: Option<response_body::ResponseBodyHookIndices>,
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
    #[error("this is no WebAssembly component; build it for wasm32-wasip2 ({})", one_line(.0))]
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
        let engine = engine()?;
        let mut linker = Linker::new(&engine);
        wasi::add_to_linker(&mut linker)?;
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
        let lifecycle = lifecycle::LifecycleHookIndices::new(&instance).map_err(LoadError::Lifecycle)?;
        let request_filter =
            hook(&component, "request-filter", || request_filter::RequestFilterHookIndices::new(&instance))?;
        let response_filter =
            hook(&component, "response-filter", || response_filter::ResponseFilterHookIndices::new(&instance))?;
        let balancer = hook(&component, "balancer", || balancer::BalancerHookIndices::new(&instance))?;
        let cache_policy = hook(&component, "cache-policy", || cache_policy::CachePolicyHookIndices::new(&instance))?;
        let observer = hook(&component, "observer", || observer::ObserverHookIndices::new(&instance))?;
        let timer = hook(&component, "timer", || timer::TimerHookIndices::new(&instance))?;
        let request_body = hook(&component, "request-body", || request_body::RequestBodyHookIndices::new(&instance))?;
        let response_body =
            hook(&component, "response-body", || response_body::ResponseBodyHookIndices::new(&instance))?;
        let component_type = component.component_type();
        let imports: Vec<String> = component_type.imports(&self.engine).map(|(name, _)| name.to_string()).collect();
        let looks_back = imports.iter().any(|name| name.contains("/exchange@"));
        let engine = self.engine.clone();
        Ok(Plugin {
            engine,
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
            looks_back,
            imports,
        })
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
            ("request-body", self.request_body.is_some()),
            ("response-body", self.response_body.is_some()),
            ("balancer", self.balancer.is_some()),
            ("cache-policy", self.cache_policy.is_some()),
            ("observer", self.observer.is_some()),
            ("timer", self.timer.is_some()),
        ];
        hooks.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
    }

    /// The interfaces that it imports.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }
}

/// An engine with room for many instances set aside or, where address space is short (a container, `ulimit -v`), one
/// that asks the system for each instance.
fn engine() -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config.concurrency_support(false).epoch_interruption(true);
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(INSTANCES).total_core_instances(INSTANCES * 4);
    pool.total_memories(INSTANCES).total_tables(INSTANCES * 4).max_memory_size(MOST_MEMORY);
    pool.max_unused_warm_slots(16);
    let pooling = config.clone().allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).to_owned();
    Engine::new(&pooling).or_else(|error| {
        tracing::info!("instances are not pooled: {error:#}");
        Engine::new(config.allocation_strategy(InstanceAllocationStrategy::OnDemand))
    })
}

/// A cause as it fits into a message; the rest of what a parser has to say helps nobody.
fn one_line(error: &wasmtime::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().trim_end_matches(" - expected=[").into()
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
