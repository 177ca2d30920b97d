//! The state that the host keeps for an instance: its limits, and the imports of `wit/`. Every import is bounded in size
//! and time, for the clock that ends calls stands still in the host.
#![expect(clippy::disallowed_methods, reason = "an initial value, which each pick replaces")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
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
use crate::context::bounds;
use crate::context::edit_check::{self, EditError};
use crate::context::{ExchangeContext, ValueName};
use crate::telemetry::metrics::{PluginMetricDefinition, PluginMetricKind};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::endpoint_set::EndpointSnapshot;

/// The state of one instance.
pub struct HostState {
    pub(super) wasi: WasiCtx,
    pub(super) table: ResourceTable,
    pub(super) limits: MemoryLimit,
    pub(super) cpu: CpuMeter,
    lines: PluginLog,
    /// The exchange at hand, lent for the length of a call.
    pub(super) context: Option<Box<ExchangeContext>>,
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
}

/// Streams and the like that an instance may hold: standard input, output and error need three.
const MAX_RESOURCES: usize = 256;

/// The maximum number of core instances of one component. Components of Python have one for each library, some 40 in
/// all.
pub(super) const MAX_CORE_INSTANCES: usize = 64;

/// Elements of all tables of an instance: functions that it may call indirectly; large guests have some thousands.
pub(super) const MAX_TABLE_ELEMENTS: usize = 100_000;

impl HostState {
    /// The state of a fresh instance that may use so much memory.
    pub fn new(memory: usize, lines: PluginLog, access: &GrantedAccess) -> Self {
        let limits = StoreLimitsBuilder::new().memory_size(memory).memories(1).tables(16);
        let limits = limits.instances(MAX_CORE_INSTANCES).table_elements(MAX_TABLE_ELEMENTS);
        let limits = MemoryLimit::new(limits.build(), MAX_TABLE_ELEMENTS);
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        let mut wasi = WasiCtx::builder();
        wasi.stdout(Printed(lines.clone())).stderr(Printed(lines.clone())).max_random_size(bounds::RANDOM);
        wasi.envs(&access.env);
        let wasi = wasi.build();
        let (context, members, figures) = (None, None, InstanceMetrics::default());
        let (tried, now, cpu) = (SmallVec::new(), Instant::now(), CpuMeter::default());
        let access = access.clone();
        HostState { wasi, table, limits, cpu, lines, context, members, tried, now, figures, access }
    }
}

// === imports of wit/ ===

impl types::Host for HostState {}

impl exchange::Host for HostState {
    fn value(&mut self, name: types::ValueName) -> wasmtime::Result<Option<Vec<u8>>> {
        let (Some(context), Ok(name)) = (&self.context, value_name(name)) else { return Ok(None) };
        Ok(context.value(&name).map(|value| value.bytes().to_vec()))
    }

    fn values(&mut self, name: types::ValueName) -> wasmtime::Result<Vec<Vec<u8>>> {
        let (Some(context), Ok(name)) = (&self.context, value_name(name)) else { return Ok(Vec::new()) };
        let max = bounds::REPEATED_VALUES;
        let values: Vec<_> = context.values(&name).take(max + 1).map(|value| value.bytes().to_vec()).collect();
        if values.len() > max {
            // A part of the values would hide the others from a filter that checks them.
            return Err(wasmtime::format_err!("it asked for all values of `{name}`, which are more than {max}"));
        }
        Ok(values)
    }

    fn request_fields(&mut self) -> wasmtime::Result<Vec<(String, Vec<u8>)>> {
        Ok(self.context.as_ref().map(|context| lines(&context.request.headers)).unwrap_or_default())
    }

    fn response_fields(&mut self) -> wasmtime::Result<Vec<(String, Vec<u8>)>> {
        let response = self.context.as_ref().and_then(|context| context.response.as_ref());
        Ok(response.map(|response| lines(&response.headers)).unwrap_or_default())
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
