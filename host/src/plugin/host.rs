//! What the host gives to an instance: its limits, the imports of `wit/`, and of WASI what a sandbox without rights
//! may have (clocks, random numbers, an output that goes to the log).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use smallvec::SmallVec;
use wasmtime::component::{Linker, Resource, ResourceTable, ResourceType};
use wasmtime::{StoreContextMut, StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::p2::bindings::sync::io::streams::StreamError;
use wasmtime_wasi::p2::bindings::{cli, filesystem, random};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::contract::{endpoints, exchange, log, metrics, types};
use super::cpu::CpuMeter;
use super::lines::{Level, Lines, Printed};
use crate::head::{Head, ValueName};
use crate::metrics::{Custom, CustomKind, Place};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::live::Members;

/// The state of one instance.
pub struct HostState {
    wasi: WasiCtx,
    table: ResourceTable,
    pub(super) limits: StoreLimits,
    pub(super) cpu: CpuMeter,
    name: Arc<str>,
    lines: Lines,
    /// The exchange at hand, lent for the length of a call.
    pub(super) head: Option<Box<Head>>,
    /// The endpoints of the upstream at hand.
    pub(super) members: Option<Arc<Members>>,
    /// Those that the request at hand has failed on.
    pub(super) tried: SmallVec<[u32; 4]>,
    /// When the call at hand began.
    pub(super) now: Instant,
    /// The place of the plugin's own metrics; `None` while the instance belongs to no worker.
    figures: Option<Place>,
    defined: Vec<Arc<Custom>>,
}

type Written = wasmtime::Result<(Result<(), StreamError>,)>;
type Counted = wasmtime::Result<(Result<u64, StreamError>,)>;
type Read = wasmtime::Result<(Result<Vec<u8>, StreamError>,)>;

/// Streams and the like that an instance may hold: standard input, output and error need three.
const MOST_RESOURCES: usize = 256;

/// Functions that an instance may call indirectly; large guests have some thousands.
const MOST_TABLE_ELEMENTS: usize = 100_000;

/// As the WIT says.
const LONGEST_METRIC: usize = 64;
const MOST_METRICS: usize = 64;

impl HostState {
    /// The state of a fresh instance that may use so much memory.
    pub fn new(name: Arc<str>, memory: usize) -> Self {
        let limits = StoreLimitsBuilder::new().memory_size(memory).memories(1).instances(16).tables(16);
        let limits = limits.table_elements(MOST_TABLE_ELEMENTS).build();
        let (lines, mut table) = (Lines::new(name.clone()), ResourceTable::new());
        table.set_max_capacity(MOST_RESOURCES);
        let wasi = WasiCtx::builder().stdout(Printed(lines.clone())).stderr(Printed(lines.clone())).build();
        let (head, members, figures, defined) = (None, None, None, Vec::new());
        let (tried, now, cpu) = (SmallVec::new(), Instant::now(), CpuMeter::default());
        HostState { wasi, table, limits, cpu, name, lines, head, members, tried, now, figures, defined }
    }

    /// Counts the plugin's own metrics for a worker from now on: those that `configure` defined too.
    pub(super) fn adopt(&mut self, place: &Place) {
        for custom in &mut self.defined {
            let own = place.custom(&self.name, Custom::new(custom.name.clone(), custom.kind, custom.help.clone()));
            own.add(custom.value());
            *custom = own;
        }
        self.figures = Some(place.clone());
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Adds WASI, but replaces what could wait: a plugin that waits would hold up its worker.
pub fn add_wasi(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    use wasmtime_wasi::cli::WasiCliView as _;
    use wasmtime_wasi::filesystem::WasiFilesystemView as _;
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_sync(linker)?;
    random::insecure::add_to_linker::<_, wasmtime_wasi::random::WasiRandom>(linker, |state| state.wasi.random())?;
    random::insecure_seed::add_to_linker::<_, wasmtime_wasi::random::WasiRandom>(linker, |state| state.wasi.random())?;
    cli::exit::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::environment::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_input::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_output::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdin::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdout::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_stderr::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    filesystem::preopens::add_to_linker::<_, wasmtime_wasi::filesystem::WasiFilesystem>(linker, HostState::filesystem)?;
    wasmtime_wasi::p2::bindings::sync::filesystem::types::add_to_linker::<_, wasmtime_wasi::filesystem::WasiFilesystem>(
        linker,
        HostState::filesystem,
    )?;

    linker.allow_shadowing(true);
    let mut poll = linker.instance("wasi:io/poll@0.2.12")?;
    let waits = || wasmtime::format_err!("a plugin of this kind may not wait");
    poll.func_wrap(
        "[method]pollable.block",
        move |_, (_,): (Resource<wasmtime_wasi::p2::DynPollable>,)| -> wasmtime::Result<()> { Err(waits()) },
    )?;
    poll.func_wrap(
        "poll",
        move |_, (_,): (Vec<Resource<wasmtime_wasi::p2::DynPollable>>,)| -> wasmtime::Result<(Vec<u32>,)> {
            Err(waits())
        },
    )?;
    poll.func_wrap(
        "[method]pollable.ready",
        |_, (_,): (Resource<wasmtime_wasi::p2::DynPollable>,)| -> wasmtime::Result<(bool,)> { Ok((true,)) },
    )?;
    let mut streams = linker.instance("wasi:io/streams@0.2.12")?;
    // WASI's own destructors enter a runtime, which a thread that has one already can't.
    streams.resource("output-stream", ResourceType::host::<DynOutputStream>(), |mut store, place| {
        store.data_mut().table.delete(Resource::<DynOutputStream>::new_own(place))?;
        Ok(())
    })?;
    streams.resource("input-stream", ResourceType::host::<DynInputStream>(), |mut store, place| {
        store.data_mut().table.delete(Resource::<DynInputStream>::new_own(place))?;
        Ok(())
    })?;
    streams.func_wrap(
        "[method]output-stream.blocking-write-and-flush",
        |mut store: StoreContextMut<'_, HostState>, (stream, text): (Resource<DynOutputStream>, Vec<u8>)| -> Written {
            // There is nothing to write to but the log, which takes everything at once.
            Ok((store.data_mut().table.get_mut(&stream)?.write(text.into()).map_err(|_| StreamError::Closed),))
        },
    )?;
    streams.func_wrap("[method]output-stream.blocking-flush", |_, (_,): (Resource<DynOutputStream>,)| -> Written {
        Ok((Ok(()),))
    })?;
    streams.func_wrap(
        "[method]output-stream.blocking-write-zeroes-and-flush",
        move |_, (_, _): (Resource<DynOutputStream>, u64)| -> Written { Err(waits()) },
    )?;
    streams.func_wrap(
        "[method]output-stream.blocking-splice",
        move |_, (_, _, _): (Resource<DynOutputStream>, Resource<DynInputStream>, u64)| -> Counted { Err(waits()) },
    )?;
    streams
        .func_wrap("[method]input-stream.blocking-read", move |_, (_, _): (Resource<DynInputStream>, u64)| -> Read {
            Err(waits())
        })?;
    streams.func_wrap(
        "[method]input-stream.blocking-skip",
        move |_, (_, _): (Resource<DynInputStream>, u64)| -> Counted { Err(waits()) },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

// === imports of wit/ ===

impl types::Host for HostState {}

impl exchange::Host for HostState {
    fn value(&mut self, name: types::ValueName) -> wasmtime::Result<Option<Vec<u8>>> {
        let (Some(head), Ok(name)) = (&self.head, value_name(name)) else { return Ok(None) };
        Ok(head.value(&name).map(|value| value.bytes().to_vec()))
    }

    fn request_fields(&mut self) -> wasmtime::Result<Vec<(String, Vec<u8>)>> {
        Ok(self.head.as_ref().map(|head| lines(&head.request.headers)).unwrap_or_default())
    }

    fn response_fields(&mut self) -> wasmtime::Result<Vec<(String, Vec<u8>)>> {
        let response = self.head.as_ref().and_then(|head| head.response.as_ref());
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
        let first = |byte: &u8| byte.is_ascii_lowercase();
        let later = |byte: &u8| first(byte) || byte.is_ascii_digit() || *byte == b'_';
        if name.len() > LONGEST_METRIC
            || !name.bytes().next().is_some_and(|byte| first(&byte))
            || !name.bytes().all(|byte| later(&byte))
        {
            return Ok(Err(metrics::DefineError::BadName));
        }
        let kind = match kind {
            metrics::Kind::Counter => CustomKind::Counter,
            metrics::Kind::Gauge => CustomKind::Gauge,
        };
        if let Some(handle) = self.defined.iter().position(|known| known.name == name) {
            let same = self.defined[handle].kind == kind;
            return Ok(if same { Ok(handle as u32) } else { Err(metrics::DefineError::OtherKind) });
        }
        if self.defined.len() == MOST_METRICS {
            return Ok(Err(metrics::DefineError::TooMany));
        }
        let custom = Custom::new(name, kind, help);
        let custom = match &self.figures {
            Some(place) => place.custom(&self.name, custom),
            None => Arc::new(custom),
        };
        self.defined.push(custom);
        Ok(Ok(self.defined.len() as u32 - 1))
    }

    fn add(&mut self, metric: u32, amount: f64) -> wasmtime::Result<()> {
        if let Some(custom) = self.defined.get(metric as usize) {
            custom.add(amount);
        }
        Ok(())
    }
}

impl endpoints::Host for HostState {
    fn in_flight(&mut self, index: u32) -> wasmtime::Result<u32> {
        Ok(self.endpoint(index).map_or(0, |endpoint| endpoint.in_flight.count()))
    }

    fn loads(&mut self, indices: Vec<u32>) -> wasmtime::Result<Vec<u32>> {
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

    fn failures(&mut self, index: u32) -> wasmtime::Result<u32> {
        Ok(self.endpoint(index).map_or(0, |endpoint| endpoint.failures.load(Ordering::Relaxed)))
    }
}

impl HostState {
    fn endpoint(&self, index: u32) -> Option<&Endpoint> {
        self.members.as_ref()?.list.get(index as usize).map(|member| &*member.endpoint)
    }
}

/// A declared value; the error is a malformed field name.
pub fn value_name(name: types::ValueName) -> Result<ValueName, crate::edit::Refused> {
    use types::ValueName as Wit;
    let field =
        |name: String| http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| crate::edit::Refused::Name(name));
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
        Wit::Cookie(name) => ValueName::Cookie(name),
        Wit::QueryParameter(name) => ValueName::QueryParameter(name),
        Wit::Note(name) => ValueName::Note(name),
        Wit::TlsVersion => ValueName::TlsVersion,
        Wit::TlsServerName => ValueName::TlsServerName,
        Wit::TlsCipher => ValueName::TlsCipher,
        Wit::ClientCertificateSubject => ValueName::ClientCertificateSubject,
        Wit::ClientCertificateIssuer => ValueName::ClientCertificateIssuer,
        Wit::ClientCertificateSerial => ValueName::ClientCertificateSerial,
        Wit::ClientCertificateNames => ValueName::ClientCertificateNames,
        Wit::ClientCertificateFingerprint => ValueName::ClientCertificateFingerprint,
    })
}

fn lines(fields: &http::HeaderMap) -> Vec<(String, Vec<u8>)> {
    fields.iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().to_vec())).collect()
}
