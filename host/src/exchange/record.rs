//! The record of an exchange: reports to metrics, access log and observers when the exchange is over.
#![expect(clippy::disallowed_methods, reason = "an exchange is measured exactly, and logged with its date")]

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use crate::body::BodyError;
use crate::body::upload::UploadProgress;
use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind, causes};
use crate::exchange::chain::ChainPosition;
use crate::exchange::decoded_body::DecodedBodyError;
use crate::generation::UNROUTED;
use crate::generation::connection_counts::CountedRequest;
use crate::generation::ids::RouteId;
use crate::generation::worker_state::WorkerState;
use crate::plugin::body_filter::BodyFilterError;
use crate::plugin::caller::observed_end::ObservedEnd;
use crate::plugin::instance::Summary;
use crate::plugin::instance::waiting_hooks::declared;
use crate::system::supervise::{Task, guard};
use crate::telemetry::access_log::ExchangeOutcome;
use crate::telemetry::failure_log::{self, Topic};

const CUT: &str = "response cut off";

/// The status in the access log if the client disconnected before it got any of the response, as in nginx. No client
/// gets this status.
const CLIENT_LEFT: u16 = 499;

/// The record of an exchange, which is kept with the response until its last byte.
pub struct ExchangeRecord {
    worker: Rc<WorkerState>,
    /// The index of the route; `None` if no route matched.
    route_id: Option<RouteId>,
    /// The position of the chain up to which plugins have seen the response.
    pub depth: ChainPosition,
    /// The context; `None` while a plugin has it, or if nothing is known.
    pub context: Option<Box<ExchangeContext>>,
    began: Instant,
    /// The time until the endpoint began its response; `None` if no log or plugin reads it.
    answered: Option<Duration>,
    pub status: u16,
    pub error: Option<FailureKind>,
    pub response_bytes: u64,
    /// Whether all of the response was sent.
    is_whole: bool,
    /// Whether the response was cut off within its content.
    is_cut: bool,
    /// Whether the client disconnected before it got any of the response.
    has_left: bool,
    /// The progress of the request's content.
    pub upload: UploadProgress,
    /// The count of the request for its client; `None` if the connection is counted instead, or nothing is limited.
    pub counted: Option<CountedRequest>,
}

impl ExchangeRecord {
    /// Returns the record of an exchange that begins now.
    pub fn new(worker: Rc<WorkerState>, upload: UploadProgress) -> Self {
        let began = Instant::now();
        ExchangeRecord {
            worker,
            route_id: None,
            depth: ChainPosition::top(),
            context: None,
            began,
            answered: None,
            status: 0,
            error: None,
            response_bytes: 0,
            is_whole: false,
            is_cut: false,
            has_left: false,
            upload,
            counted: None,
        }
    }

    /// The generation that the exchange began with.
    pub fn running(&self) -> &Rc<WorkerState> {
        &self.worker
    }

    /// Records that a response of a route goes up the chain from a position.
    pub fn begin_response(&mut self, route_id: RouteId, depth: ChainPosition) {
        (self.route_id, self.depth) = (Some(route_id), depth);
    }

    /// Records the route of the request, with its context.
    pub fn set_route(&mut self, route_id: RouteId, context: Box<ExchangeContext>) {
        (self.route_id, self.context) = (Some(route_id), Some(context));
    }

    /// Takes the context out of the record; returns an empty one if the record has none.
    pub fn take_context(&mut self) -> Box<ExchangeContext> {
        self.context.take().unwrap_or_else(|| Box::new(ExchangeContext::empty()))
    }

    /// Returns the index of the route; `None` if no route matched.
    pub fn route(&self) -> Option<RouteId> {
        self.route_id
    }

    /// Records that the request has no route.
    pub fn set_no_route(&mut self, context: Box<ExchangeContext>) {
        self.context = Some(context);
    }

    /// Logs why the exchange has failed, unless that is done already, or the client has merely disconnected.
    pub fn log(&self, error: &Error, what: &'static str) {
        log(error, self.context.as_deref(), what, self.client_state());
    }

    /// Returns whether the client gave up within its content.
    pub fn client_state(&self) -> ClientState {
        if self.upload.is_abandoned() { ClientState::GaveUp } else { ClientState::Present }
    }

    /// Records that the response was cut off within its content.
    pub fn record_cut(&mut self, error: &BodyError) {
        let kind = match error.downcast_ref::<Error>() {
            Some(error) => {
                self.log(error, CUT);
                error.kind
            }
            None => {
                let error = content_error(error);
                self.log(&error, CUT);
                error.kind
            }
        };
        self.fail(kind);
    }

    /// Records that the exchange has failed after the head of the response.
    pub fn fail(&mut self, kind: FailureKind) {
        self.is_cut = true;
        self.error.get_or_insert(kind);
    }

    /// Records that the response was sent to its end, unless the response was cut off before.
    pub fn sent(&mut self) {
        self.is_whole = !self.is_cut;
    }

    /// Records that the client was gone by the end of the response. `took_nothing`: whether it got none of the response.
    pub fn client_left(&mut self, took_nothing: bool) {
        self.is_whole = false;
        // A response that was cut off has ended for another reason.
        self.has_left |= took_nothing && !self.is_cut;
    }

    /// The endpoint's response has begun.
    pub fn response_started(&mut self) {
        if self.worker.generation.access_log.is_some() {
            self.answered = Some(self.began.elapsed());
        }
    }
}

/// Returns the error of an exchange whose response has content with an error that is of no kind yet.
pub fn content_error(error: &BodyError) -> Error {
    if let Some(undecoded) = error.downcast_ref::<DecodedBodyError>() {
        return Error { limit: undecoded.limit(), ..Error::new(undecoded.kind_in_response(), causes(&**error)) };
    }
    let (kind, is_logged) = match error.downcast_ref() {
        Some(BodyFilterError::Trap(failure)) => (FailureKind::PluginError, failure.rejection().is_none()),
        Some(BodyFilterError::TooLarge { .. }) => (FailureKind::ResponseBodySize, false),
        None => (FailureKind::ConnectionTerminated, false),
    };
    Error { is_logged, ..Error::new(kind, causes(&**error)) }
}

/// Whether the client of an exchange gave up within its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    Present,
    GaveUp,
}

/// Logs a failure of an exchange, unless that is done already. A client that gave up within its content may read on, and
/// get the ID of its request: such a failure is logged, but is no warning.
pub fn log(error: &Error, context: Option<&ExchangeContext>, what: &'static str, client: ClientState) {
    let (route, kind) = (context.map_or(UNROUTED, |context| &*context.route), error.kind.token());
    if error.is_logged || !failure_log::admits(Topic::Exchange(error.kind), route) {
        return;
    }
    let request_id = context.map(ExchangeContext::request_id);
    let upstream = context.map(|context| &*context.upstream).filter(|upstream| *upstream != UNROUTED);
    let endpoint = context.and_then(|context| context.endpoint.as_deref());
    let (cause, limit) = (error.causes(), error.limit);
    if client == ClientState::GaveUp {
        tracing::info!(kind, request_id, route, upstream, endpoint, cause, "{what}: its client gave up");
    } else {
        tracing::warn!(kind, request_id, route, upstream, endpoint, cause, limit, "{what}");
    }
}

impl ExchangeRecord {
    /// Calls the observers of the route.
    fn observe(&self, took: Duration) {
        let (Some(route_id), Some(context)) = (self.route_id, &self.context) else { return };
        for binding in &self.worker.generation.routes[route_id].chain {
            let Some(needs) = &self.worker.generation.bindings[*binding].observer else { continue };
            let summary = Summary {
                status: self.status,
                request_bytes: self.upload.bytes(),
                response_bytes: self.response_bytes,
                duration_us: took.as_micros() as u64,
                error: self.error.map(|kind| kind.token().into()),
            };
            let guard = &self.worker.guards[*binding];
            let values = guard.admit_work(context).and_then(|()| declared(needs, context));
            guard.charge_work(context);
            let called =
                values.and_then(|values| self.worker.observe(*binding, ObservedEnd { values, summary }, context));
            if let Err(failure) = called {
                self.worker.record_plugin_failure(*binding, "observer", &failure, Some(context));
            }
        }
    }
}

impl Drop for ExchangeRecord {
    fn drop(&mut self) {
        // A panic may have ended the exchange, and one more while that unwinds would end the process.
        let _ = guard(Task::Connection, || self.end());
    }
}

impl ExchangeRecord {
    fn end(&mut self) {
        if let (None, Some(limit)) = (self.error, self.worker.worker_metrics.registry.cut_off.get()) {
            let kind = if self.status == 0 { FailureKind::ResponseTimeout } else { FailureKind::ConnectionTerminated };
            let error = Error { limit: *limit, ..Error::new(kind, "the proxy stops, and the exchange was not over") };
            self.log(&error, "exchange cut off");
            (self.error, self.has_left) = (Some(error.kind), false);
        }
        // After the head of the response, there is no other word of what the client sent on.
        if let (None, Some(fault)) = (self.error, self.upload.fault()) {
            self.log(&fault.error("the content failed after its response had begun"), "content failed");
        }
        // An exchange ends without a response and without an error if its client is gone, or by a panic.
        self.has_left |= self.status == 0 && self.error.is_none() && !std::thread::panicking();
        if self.has_left {
            (self.status, self.is_whole) = (0, false);
        }
        let took = self.began.elapsed();
        let figures = self.route_id.map_or(&self.worker.unrouted, |route_id| &self.worker.routes[route_id]);
        figures.record_end(self.status, self.error, self.response_bytes, took);
        figures.request_bytes.add(self.upload.bytes());
        self.observe(took);
        if let (Some(log), Some(context)) = (&self.worker.generation.access_log, &self.context) {
            let ExchangeRecord { error, response_bytes, is_whole, answered, .. } = *self;
            let status = if self.has_left { CLIENT_LEFT } else { self.status };
            let outcome = ExchangeOutcome { status, error, response_bytes, is_whole, answered, took };
            log.write(context, &outcome, SystemTime::now() - took);
        }
    }
}
