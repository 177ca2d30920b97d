//! The state that the host keeps for an instance: its limits, and the imports of `wit/`. Every import is bounded in size
//! and time, for the clock that ends calls stands still in the host.
#![expect(clippy::disallowed_methods, reason = "an initial value, which each pick replaces")]

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use smallvec::SmallVec;
use wasmtime::StoreLimitsBuilder;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::WasiCtx;

use super::access::GrantedAccess;
use super::bindings::{endpoints, exchange, log, metrics, types};
use super::cpu_time::CpuMeter;
use super::log_lines::{Level, PluginLog, Printed};
use super::memory_limit::MemoryLimit;
use super::metrics::InstanceMetrics;
use super::outgoing_http::HttpState;
use crate::context::bounds;
use crate::context::edit_check::{self, EditError};
use crate::context::{ExchangeContext, ValueName};
use crate::system::holder_counts::Holder;
use crate::telemetry::metrics::{PluginMetricDefinition, PluginMetricKind};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::endpoint_set::EndpointSnapshot;

/// The state of one instance.
pub struct HostState {
    pub(super) wasi: WasiCtx,
    /// The requests of the plugin's own.
    pub(super) http: HttpState,
    pub(super) table: ResourceTable,
    pub(super) limits: MemoryLimit,
    pub(super) cpu: CpuMeter,
    pub(super) lines: PluginLog,
    /// The exchange at hand, lent for the length of a call.
    pub(super) context: Option<Box<ExchangeContext>>,
    /// The exchange at hand of a call that may wait: its owner takes the exchange back even if the call is dropped.
    pub(super) lent: Option<LentContext>,
    /// The client for which the call under way is made, if the call may wait.
    pub(super) client: Holder,
    /// The endpoints of the upstream at hand.
    pub(super) members: Option<Arc<EndpointSnapshot>>,
    /// The endpoints at which the current request has failed.
    pub(super) tried: SmallVec<[u32; 4]>,
    /// The time at which the current call began.
    pub(super) now: Instant,
    /// The plugin's own metrics.
    pub(super) figures: InstanceMetrics,
    /// The access that the manifest grants.
    pub(super) access: GrantedAccess,
    /// Whether the call under way has asked a service or for a password, and may not wait.
    pub(super) has_asked: bool,
}

/// An exchange that is lent to a call that may wait.
#[derive(Clone, Default)]
// Locked by one thread at a time: a call and the exchange that waits for it are on the same worker.
pub(super) struct LentContext(Arc<Mutex<Option<Box<ExchangeContext>>>>);

/// An exchange whose context is lent to a call, until dropped.
pub(super) struct Lending<'a> {
    owner: &'a mut Box<ExchangeContext>,
    lent: LentContext,
}

impl LentContext {
    /// Lends a context; returns the lending and the access of the call.
    pub(super) fn lend(owner: &mut Box<ExchangeContext>) -> (Lending<'_>, LentContext) {
        let context = std::mem::replace(owner, Box::new(ExchangeContext::empty()));
        let lent = LentContext(Arc::new(Mutex::new(Some(context))));
        (Lending { owner, lent: lent.clone() }, lent)
    }

    fn with<R>(&self, read: impl FnOnce(&ExchangeContext) -> R) -> Option<R> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_deref().map(read)
    }
}

impl Drop for Lending<'_> {
    fn drop(&mut self) {
        if let Some(context) = self.lent.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            *self.owner = context;
        }
    }
}

/// Streams and the like that an instance may hold: standard input, output and error need three.
pub(super) const MAX_RESOURCES: usize = 256;

/// The maximum number of core instances of one component. Components of Python have one for each library, some 40 in
/// all.
pub(super) const MAX_CORE_INSTANCES: usize = 64;

/// The maximum number of tables of an instance, each of which has a place in the pool. Components of Rust and JavaScript
/// have two, and those of Python two for all their libraries: one for indirect calls, and one for the calls of the host.
/// Four of them may be composed.
pub(super) const MAX_TABLES: usize = 8;

/// Elements of all tables of an instance: functions that it may call indirectly; large guests have some thousands.
pub(super) const MAX_TABLE_ELEMENTS: usize = 100_000;

impl HostState {
    /// The state of a fresh instance that may use so much memory.
    pub fn new(memory: usize, lines: PluginLog, access: &GrantedAccess) -> Self {
        let limits = StoreLimitsBuilder::new().memory_size(memory).memories(1).tables(MAX_TABLES);
        let limits = limits.instances(MAX_CORE_INSTANCES).table_elements(MAX_TABLE_ELEMENTS);
        let limits = MemoryLimit::new(limits.build(), MAX_TABLE_ELEMENTS);
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        let mut wasi = WasiCtx::builder();
        wasi.stdout(Printed(lines.clone())).stderr(Printed(lines.clone())).max_random_size(bounds::RANDOM);
        wasi.envs(&access.env);
        let wasi = wasi.build();
        let (context, lent, members, figures) = (None, None, None, InstanceMetrics::default());
        let (tried, now, cpu) = (SmallVec::new(), Instant::now(), CpuMeter::default());
        let http = HttpState::new(access.http.clone());
        let access = access.clone();
        let has_asked = false;
        HostState {
            wasi,
            http,
            table,
            limits,
            cpu,
            lines,
            context,
            lent,
            client: Holder::UNKNOWN,
            members,
            tried,
            now,
            figures,
            access,
            has_asked,
        }
    }

    /// Reads the exchange at hand; returns `None` if there is none.
    fn with_context<R>(&self, read: impl FnOnce(&ExchangeContext) -> R) -> Option<R> {
        match (&self.context, &self.lent) {
            (Some(context), _) => Some(read(context)),
            (None, Some(lent)) => lent.with(read),
            (None, None) => None,
        }
    }
}

// === imports of wit/ ===

impl types::Host for HostState {}

impl exchange::Host for HostState {
    fn value(&mut self, name: types::ValueName) -> wasmtime::Result<Option<Vec<u8>>> {
        let Ok(name) = value_name(name) else { return Ok(None) };
        Ok(self.with_context(|context| context.value(&name).map(|value| value.bytes().to_vec())).flatten())
    }

    fn values(&mut self, name: types::ValueName) -> wasmtime::Result<Vec<Vec<u8>>> {
        let Ok(name) = value_name(name) else { return Ok(Vec::new()) };
        let max = bounds::REPEATED_VALUES;
        let copy = |context: &ExchangeContext| {
            context.values(&name).take(max + 1).map(|value| value.bytes().to_vec()).collect::<Vec<_>>()
        };
        let values = self.with_context(copy).unwrap_or_default();
        if values.len() > max {
            // A part of the values would hide the others from a filter that checks them.
            return Err(wasmtime::format_err!("it asked for all values of `{name}`, which are more than {max}"));
        }
        Ok(values)
    }

    fn request_fields(&mut self) -> wasmtime::Result<Vec<(String, Vec<u8>)>> {
        Ok(self.with_context(|context| lines(&context.request.headers)).unwrap_or_default())
    }

    fn response_fields(&mut self) -> wasmtime::Result<Vec<(String, Vec<u8>)>> {
        let of_response = |context: &ExchangeContext| Some(lines(&context.response.as_ref()?.headers));
        Ok(self.with_context(of_response).flatten().unwrap_or_default())
    }
}

impl log::Host for HostState {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warn,
            log::Level::Info => Level::Info,
            log::Level::Debug => Level::Debug,
            log::Level::Trace => Level::Trace,
        };
        self.lines.write(level, &message);
        Ok(())
    }
}

impl metrics::Host for HostState {
    fn define(
        &mut self,
        name: String,
        kind: metrics::Kind,
        help: String,
    ) -> wasmtime::Result<Result<u32, metrics::DefineError>> {
        let kind = match kind {
            metrics::Kind::Counter => PluginMetricKind::Counter,
            metrics::Kind::Gauge => PluginMetricKind::Gauge,
        };
        Ok(self.figures.define(PluginMetricDefinition { name, kind, help }))
    }

    fn add(&mut self, metric: u32, amount: f64) -> wasmtime::Result<()> {
        self.figures.add(metric, amount);
        Ok(())
    }
}

impl endpoints::Host for HostState {
    fn in_flight(&mut self, index: u32) -> wasmtime::Result<u32> {
        Ok(self.endpoint(index).map_or(0, |endpoint| endpoint.in_flight.count()))
    }

    fn in_flight_counts(&mut self, indices: Vec<u32>) -> wasmtime::Result<Vec<u32>> {
        let max = self.members.as_ref().map_or(0, |members| members.list.len()).max(bounds::IN_FLIGHT_COUNTS);
        if indices.len() > max {
            let count = indices.len();
            return Err(wasmtime::format_err!(
                "it asked for {count} in-flight counts at a time; at most {max} are allowed"
            ));
        }
        let load = |index| self.endpoint(index).map_or(0, |endpoint| endpoint.in_flight.count());
        Ok(indices.into_iter().map(load).collect())
    }

    fn total_in_flight(&mut self) -> wasmtime::Result<u32> {
        Ok(self.members.as_ref().map_or(0, |members| members.in_flight.count()))
    }

    fn latency_us(&mut self, index: u32) -> wasmtime::Result<u32> {
        Ok(self.endpoint(index).map_or(0, |endpoint| endpoint.latency.micros(self.now)))
    }

    fn tried(&mut self) -> wasmtime::Result<Vec<u32>> {
        Ok(self.tried.to_vec())
    }

    fn consecutive_failures(&mut self, index: u32) -> wasmtime::Result<u32> {
        Ok(self.endpoint(index).map_or(0, |endpoint| endpoint.failures.load(Ordering::Relaxed)))
    }
}

impl HostState {
    fn endpoint(&self, index: u32) -> Option<&Endpoint> {
        self.members.as_ref()?.list.get(index as usize).map(|member| &*member.endpoint)
    }
}

/// Converts a declared value. The error is a malformed field name, or a name that is too long.
pub fn value_name(name: types::ValueName) -> Result<ValueName, EditError> {
    use types::ValueName as Wit;
    let field = |name: String| edit_check::any_field_name(&name);
    let bounded = |name: String| edit_check::name(&name).map(|()| name);
    Ok(match name {
        Wit::Method => ValueName::Method,
        Wit::Scheme => ValueName::Scheme,
        Wit::Authority => ValueName::Authority,
        Wit::Host => ValueName::Host,
        Wit::Path => ValueName::Path,
        Wit::Query => ValueName::Query,
        Wit::Uri => ValueName::Uri,
        Wit::Protocol => ValueName::Protocol,
        Wit::ClientAddress => ValueName::ClientAddress,
        Wit::ClientPort => ValueName::ClientPort,
        Wit::ListenerAddress => ValueName::ListenerAddress,
        Wit::Route => ValueName::Route,
        Wit::Upstream => ValueName::Upstream,
        Wit::Endpoint => ValueName::Endpoint,
        Wit::RequestId => ValueName::RequestId,
        Wit::ForwardedFor => ValueName::ForwardedFor,
        Wit::Status => ValueName::Status,
        Wit::RequestField(name) => ValueName::RequestField(field(name)?),
        Wit::ResponseField(name) => ValueName::ResponseField(field(name)?),
        Wit::Cookie(name) => ValueName::Cookie(bounded(name)?),
        Wit::QueryParameter(name) => ValueName::QueryParameter(bounded(name)?),
        Wit::Note(name) => ValueName::Note(bounded(name)?),
        Wit::TlsVersion => ValueName::TlsVersion,
        Wit::TlsServerName => ValueName::TlsServerName,
        Wit::TlsCipher => ValueName::TlsCipher,
        Wit::ClientCertificateSubject => ValueName::ClientCertificateSubject,
        Wit::ClientCertificateIssuer => ValueName::ClientCertificateIssuer,
        Wit::ClientCertificateSerial => ValueName::ClientCertificateSerial,
        Wit::ClientCertificateNames => ValueName::ClientCertificateNames,
        Wit::ClientCertificateFingerprint => ValueName::ClientCertificateFingerprint,
        Wit::ContentLength => ValueName::ContentLength,
    })
}

fn lines(fields: &http::HeaderMap) -> Vec<(String, Vec<u8>)> {
    fields.iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().to_vec())).collect()
}
