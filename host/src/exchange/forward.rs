//! Forwards a finished request, up to the head of its response: chooses an endpoint and makes an attempt, and further
//! attempts at other endpoints where the upstream's rules allow that.
#![expect(clippy::disallowed_methods, reason = "attempts are measured exactly: their latency decides about endpoints")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::upstream::connection::EndpointBody;
use http::{Method, Response, StatusCode, header};
use smallvec::SmallVec;

use crate::body::replay::ReplayBuffer;
use crate::body::upload::{RequestBody, UploadProgress};
use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::exchange::attempt::{Attempt, AttemptFailure, AttemptResponse};
use crate::exchange::balance::{self, EndpointChoice};
use crate::exchange::body_passage::BodyPassage;
use crate::exchange::chain::BalancerEdits;
use crate::exchange::collect::collect;
use crate::exchange::filtered_body::UploadContent;
use crate::exchange::response_body::{ResponseBody, SwitchedProtocol};
use crate::exchange::upstream_body::{ConnectionLease, UpstreamBody};
use crate::generation::ids::UpstreamId;
use crate::generation::worker_state::WorkerState;
use crate::generation::{RequestBuffer, Upstream};
use crate::net::boxed::boxed;
use crate::net::deadline::Deadline;
use crate::protocol::hop_by_hop::HopOptions;
use crate::system::descriptor_shares;
use crate::system::holder_counts::Holder;
use crate::telemetry::failure_log::{self, Topic};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::endpoint_set::Availability;
use crate::upstream::endpoint_view::{EndpointView, InFlightGuard};
use crate::upstream::health::EndpointFailure;
use crate::upstream::retry::{self, Delivery};

/// The content of a request, its progress and its hop-by-hop options.
pub struct OutgoingRequest {
    pub body: RequestBody,
    /// The way of the content through body hooks that have to be waited for, in place of `body`; `None` if there are none.
    pub passage: Option<Box<BodyPassage<UploadContent>>>,
    pub upload: UploadProgress,
    /// The rule by which the body is received before an endpoint is asked; `None` if it is sent as it arrives.
    pub collected: Option<RequestBuffer>,
    /// The hop-by-hop options for the endpoint.
    pub hop: HopOptions,
}

impl OutgoingRequest {
    /// Returns a request without content, whose upload is over.
    pub fn empty() -> Self {
        OutgoingRequest {
            body: RequestBody::Empty,
            passage: None,
            upload: UploadProgress::over(),
            collected: None,
            hop: HopOptions::default(),
        }
    }
}

/// A response, with the balancer's edits of it.
pub struct Received {
    pub response: Response<ResponseBody>,
    pub edits: Option<BalancerEdits>,
}

impl From<Response<ResponseBody>> for Received {
    /// A response that no balancer has to do with.
    fn from(response: Response<ResponseBody>) -> Self {
        Received { response, edits: None }
    }
}

/// An attempt to be made.
struct PlannedAttempt {
    endpoint_view: Rc<EndpointView>,
    edits: Option<BalancerEdits>,
    in_flight_guard: InFlightGuard,
}

/// The attempts of a request so far.
struct AttemptLoop<'a> {
    worker: &'a WorkerState,
    upstream_id: UpstreamId,
    upstream: &'a Upstream,
    /// The endpoints at which the request has failed.
    tried: Vec<Rc<EndpointView>>,
    /// The endpoints whose time to accept a connection is over, or ends at the given time.
    silent: Vec<(Rc<EndpointView>, Instant)>,
    /// The number of retries that count, of those that were made.
    counted: u32,
    /// Whether the budget had no room for another retry.
    is_denied: bool,
}

/// The cost of another attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RetryCost {
    /// The attempt failed before anything was sent, so that another at an endpoint not yet tried adds no load.
    Free,
    /// The connection is still being made: another attempt adds no load at the same endpoint either.
    FreeAnywhere,
    /// A retry that counts against the upstream's number of retries and against its budget.
    Counted,
}

/// The attempts of a request in all. Where this many endpoints can't be connected to, it is not the endpoints.
const MAX_ATTEMPTS: usize = 16;

/// The log message for a failed attempt.
const ATTEMPT_FAILED: &str = "attempt failed, another follows";

/// Sends the request of `head` with a body to an upstream, given by its index. The body is taken out of `sending`.
/// `step` limits each single wait, up to the end of the response.
pub async fn forward(
    worker: &WorkerState,
    upstream_id: UpstreamId,
    context: &mut ExchangeContext,
    sending: &mut OutgoingRequest,
    step: &Deadline,
) -> Result<Received, Error> {
    let upstream = &worker.generation.upstreams[upstream_id];
    let OutgoingRequest { body, upload, collected, hop, .. } = sending;
    let mut body = std::mem::replace(body, RequestBody::Empty);
    if let Some(rule) = collected.take() {
        body = boxed(|| collect(body, upload, rule, &worker.buffers)).await?;
    }
    let content = RefCell::new(ReplayBuffer::new(body, upstream.replayed_bytes(&context.request.method)));
    let mut attempts = AttemptLoop::new(worker, upstream_id, step.clock().now());
    let refused = |error| count_overflow(upstream, error);
    balance::turn(worker, upstream_id, context.holder()).await;
    let mut next =
        attempts.next(context, step).and_then(|choice| attempts.begin(choice, context.holder(), 0)).map_err(refused)?;
    loop {
        let PlannedAttempt { endpoint_view, edits, in_flight_guard } = next;
        context.endpoint = Some(endpoint_view.name.clone());
        attempts.back_off(&endpoint_view).await;
        let (rules, connection_limit, began) =
            (&worker.upstreams[upstream_id].rules, &upstream.connection_limit, Instant::now());
        let elsewhere = || attempts.have_another(&endpoint_view);
        let elsewhere = &elsewhere;
        let kept = &content;
        let mut attempt = Attempt { context, content: kept, upload, hop, rules, connection_limit, step, elsewhere };
        let mut outcome = attempt.run(in_flight_guard).await;
        if outcome.is_err() {
            upload.lose_reader();
        }
        let now = Instant::now();
        attempts.record_outcome(&endpoint_view, &mut outcome, now - began, now);
        attempts.note_silence(&endpoint_view, &outcome, began);
        let cost = attempts.should_retry(&mut outcome, &context.request.method, &content.borrow());
        if let Some(cost) = cost {
            attempts.tried.push(endpoint_view.clone());
            // A response in hand still counts as in flight, and makes room for the one in its place.
            let in_hand = outcome.is_ok().into();
            // Without another endpoint, the client gets the outcome of this attempt.
            if let Some(another) = attempts.another(cost, context, step, in_hand) {
                attempts.log(&endpoint_view, &outcome, context);
                next = another;
                continue;
            }
            if let Err(failure) = &mut outcome
                && attempts.is_denied
            {
                failure.error.limit.get_or_insert("retry.budget");
            }
        }
        let AttemptResponse { response, lease } = outcome.map_err(|failure| refused(failure.error))?;
        // What is kept of it is of no use any more, and stands for content that isn't all sent.
        drop(content);
        return received(response, lease, upload).map(|response| Received { response, edits });
    }
}

/// Counts an error if it means that a limit of the upstream was reached.
fn count_overflow(upstream: &Upstream, error: Error) -> Error {
    if error.kind == FailureKind::LimitReached && error.limit != Some(descriptor_shares::LIMIT) {
        upstream.live.events.overflows.fetch_add(1, Ordering::Relaxed);
    }
    error
}

impl<'a> AttemptLoop<'a> {
    fn new(worker: &'a WorkerState, upstream_id: UpstreamId, now: Instant) -> Self {
        let upstream = &worker.generation.upstreams[upstream_id];
        if upstream.retry.retries > 0 {
            worker.upstreams[upstream_id].budget.borrow_mut().request(now);
        }
        AttemptLoop {
            worker,
            upstream_id,
            upstream,
            tried: Vec::new(),
            silent: Vec::new(),
            counted: 0,
            is_denied: false,
        }
    }

    /// Picks the endpoint of the next attempt.
    fn next(&self, context: &ExchangeContext, step: &Deadline) -> Result<EndpointChoice, Error> {
        balance::choose(self.worker, self.upstream_id, context, &self.tried, step.clock().now())
    }

    /// Reserves a place in flight for an attempt. `own` is the number of places that this request holds already.
    fn begin(
        &self,
        EndpointChoice { endpoint_view, edits }: EndpointChoice,
        client: Holder,
        own: u32,
    ) -> Result<PlannedAttempt, Error> {
        let full = || {
            Error::new(FailureKind::LimitReached, "as many requests are in flight as may be, or as the client's part")
                .with_limit("limits.requests")
        };
        let limit = &self.upstream.request_limit;
        let in_flight_guard = InFlightGuard::begin(&endpoint_view, limit, client, own).ok_or_else(full)?;
        Ok(PlannedAttempt { endpoint_view, edits, in_flight_guard })
    }

    /// Prepares another attempt; `None` if there is no endpoint for it, or no retry left.
    fn another(
        &mut self,
        cost: RetryCost,
        context: &ExchangeContext,
        step: &Deadline,
        own: u32,
    ) -> Option<PlannedAttempt> {
        let now = step.clock().now();
        if cost == RetryCost::Counted && !self.within_budget(now) {
            return None;
        }
        let picked = self.next(context, step).ok();
        if cost != RetryCost::Counted {
            let is_free =
                |choice: &EndpointChoice| cost == RetryCost::FreeAnywhere || !self.has_tried(&choice.endpoint_view);
            let elsewhere = picked.filter(is_free).or_else(|| self.last_resort(context, step));
            if let Some(next) = elsewhere.and_then(|choice| self.begin(choice, context.holder(), own).ok()) {
                self.upstream.live.events.retries.fetch_add(1, Ordering::Relaxed);
                return Some(next);
            }
            // All have been tried: to ask one of them again is a retry as any other.
            return self.another(RetryCost::Counted, context, step, own);
        }
        let next = self.begin(self.unless_silent(picked?, context, step)?, context.holder(), own).ok()?;
        self.record_retry(now);
        Some(next)
    }

    /// Excludes endpoints that have not accepted a connection in their whole time: another wait for one of them would
    /// cost the client a multiple of `connect-timeout`.
    fn unless_silent(
        &self,
        picked: EndpointChoice,
        context: &ExchangeContext,
        step: &Deadline,
    ) -> Option<EndpointChoice> {
        let now = Instant::now();
        let is_silent = |endpoint_view: &Rc<EndpointView>| {
            let is_it =
                |(silent, _): &&(Rc<EndpointView>, Instant)| Arc::ptr_eq(&silent.endpoint, &endpoint_view.endpoint);
            self.silent.iter().find(is_it).is_some_and(|(_, over)| *over <= now)
        };
        if !is_silent(&picked.endpoint_view) {
            return Some(picked);
        }
        let silent: Vec<Rc<EndpointView>> =
            self.silent.iter().map(|(endpoint_view, _)| endpoint_view.clone()).collect();
        let other = balance::choose(self.worker, self.upstream_id, context, &silent, step.clock().now()).ok()?;
        (!is_silent(&other.endpoint_view)).then_some(other)
    }

    /// Whether a request that has no connection to an endpoint may go to another that is up.
    fn have_another(&self, endpoint_view: &Rc<EndpointView>) -> bool {
        let retry = &self.upstream.retry;
        let is_other = |other: &Rc<EndpointView>| {
            other.offer == Availability::Up
                && !Arc::ptr_eq(&other.endpoint, &endpoint_view.endpoint)
                && !self.has_tried(other)
        };
        let may_go_on = retry.retries > 0 && retry.on.connect && self.tried.len() + 1 < MAX_ATTEMPTS;
        may_go_on
            && !self.has_tried(endpoint_view)
            && self.worker.endpoint_views(self.upstream_id).list.iter().any(is_other)
    }

    fn has_tried(&self, endpoint_view: &Rc<EndpointView>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(&tried.endpoint, &endpoint_view.endpoint))
    }

    /// Picks among the ejected endpoints too, if no endpoint that is up can be connected to: an ejected one may work
    /// again.
    fn last_resort(&self, context: &ExchangeContext, step: &Deadline) -> Option<EndpointChoice> {
        let tried: SmallVec<[&Endpoint; 4]> = self.tried.iter().map(|endpoint_view| &*endpoint_view.endpoint).collect();
        if !self.upstream.live.is_exhausted_by(&tried, step.clock().now()) {
            return None;
        }
        self.next(context, step).ok().filter(|choice| !self.has_tried(&choice.endpoint_view))
    }

    /// Records what an attempt shows about its endpoint.
    fn record_outcome(
        &self,
        endpoint_view: &EndpointView,
        outcome: &mut Result<AttemptResponse, AttemptFailure>,
        took: Duration,
        now: Instant,
    ) {
        match outcome {
            Ok(AttemptResponse { response, lease }) => {
                let status = response.status();
                lease.is_good = self.upstream.is_good(status);
                if lease.is_good {
                    endpoint_view.record_answer(status, took, now);
                } else {
                    endpoint_view.record_bad_answer(status, took, now);
                }
            }
            // An endpoint may shut down a connection, or have no room for more requests on it: that is no failure. The
            // outcome of a connection that is still being made is noted when it is known.
            Err(AttemptFailure { reached: Delivery::Unread | Delivery::Crowded | Delivery::Waiting, .. }) => {}
            Err(failure) if failure.error.kind.blames_endpoint() => {
                let failed = if failure.reached == Delivery::NotSent {
                    EndpointFailure::Connect
                } else {
                    EndpointFailure::Exchange
                };
                endpoint_view.record_failure(failed, took, now);
            }
            Err(_) => {}
        }
    }

    /// Records that an endpoint has not accepted a connection, and when its time for that is over.
    fn note_silence(
        &mut self,
        endpoint_view: &Rc<EndpointView>,
        outcome: &Result<AttemptResponse, AttemptFailure>,
        began: Instant,
    ) {
        let Err(AttemptFailure { error, reached }) = outcome else { return };
        if !matches!(error.kind, FailureKind::ConnectionTimeout | FailureKind::DnsTimeout) {
            return;
        }
        let over = match reached {
            // The connection is still being made.
            Delivery::Waiting => began + self.worker.upstreams[self.upstream_id].rules.connect_timeout,
            _ => Instant::now(),
        };
        match self.silent.iter_mut().find(|(silent, _)| Arc::ptr_eq(&silent.endpoint, &endpoint_view.endpoint)) {
            Some((_, known)) => *known = over.min(*known),
            None => self.silent.push((endpoint_view.clone(), over)),
        }
    }

    /// Logs a failed attempt that another one will follow: the client gets no error for it. The first failure of each kind in a row
    /// of an endpoint is a warning; further ones are logged at the level DEBUG.
    fn log(
        &self,
        endpoint_view: &EndpointView,
        outcome: &Result<AttemptResponse, AttemptFailure>,
        context: &ExchangeContext,
    ) {
        let error = outcome.as_ref().err().map(|failure| &failure.error);
        let status = outcome.as_ref().ok().map(|answer| answer.response.status().as_u16());
        let failed = error.map_or(FailureKind::ProtocolError, |error| error.kind);
        // A connection that an endpoint shuts down in an orderly way is no failure of the endpoint.
        let is_failure = !matches!(outcome, Err(AttemptFailure { reached: Delivery::Unread, .. }));
        let admits = || failure_log::admits(Topic::Attempt(failed), &endpoint_view.name);
        let is_news = is_failure && endpoint_view.endpoint.notice.fail(failed, Instant::now(), admits);
        if !is_news && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (kind, cause) = (error.map(|error| error.kind.token()), error.map(Error::causes));
        let limit = error.and_then(|error| error.limit);
        let (request_id, route, upstream) = (context.request_id(), &*context.route, &*self.upstream.name);
        let endpoint = &*endpoint_view.name;
        if is_news {
            tracing::warn!(kind, status, request_id, route, upstream, endpoint, cause, limit, "{ATTEMPT_FAILED}");
        } else {
            tracing::debug!(kind, status, request_id, route, upstream, endpoint, cause, limit, "{ATTEMPT_FAILED}");
        }
    }

    /// Returns the cost of another attempt of a request; `None` if none is made. Names the limit for which the content
    /// can't be sent again.
    fn should_retry(
        &self,
        outcome: &mut Result<AttemptResponse, AttemptFailure>,
        method: &Method,
        content: &ReplayBuffer,
    ) -> Option<RetryCost> {
        let retry = &self.upstream.retry;
        let (is_covered, cost) = match &outcome {
            Ok(answer) => (retry.covers_status(answer.response.status(), method), RetryCost::Counted),
            Err(failure) => {
                let cost = match failure.reached {
                    Delivery::NotSent => RetryCost::Free,
                    Delivery::Waiting => RetryCost::FreeAnywhere,
                    Delivery::Unread | Delivery::Crowded | Delivery::MaybeProcessed => RetryCost::Counted,
                };
                (retry.covers(failure.error.kind, failure.reached, method), cost)
            }
        };
        let may_go_on = retry.retries > 0 && self.tried.len() + 1 < MAX_ATTEMPTS;
        if !is_covered || !may_go_on {
            return None;
        }
        if let (Err(failure), Some(limit)) = (outcome, content.limit()) {
            failure.error.limit.get_or_insert(limit);
        }
        content.is_whole().then_some(cost)
    }

    fn within_budget(&mut self, now: Instant) -> bool {
        let retry = &self.upstream.retry;
        if self.counted >= retry.retries {
            return false;
        }
        let allowed = self.worker.upstreams[self.upstream_id].budget.borrow_mut().allows(retry.budget, now);
        if !allowed {
            self.upstream.live.events.retries_denied.fetch_add(1, Ordering::Relaxed);
            self.is_denied = true;
        }
        allowed
    }

    /// Records a retry.
    fn record_retry(&mut self, now: Instant) {
        self.counted += 1;
        self.worker.upstreams[self.upstream_id].budget.borrow_mut().retry(now);
        self.upstream.live.events.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits before an attempt at an endpoint that has just failed.
    async fn back_off(&self, next: &Rc<EndpointView>) {
        let is_next = |endpoint_view: &&Rc<EndpointView>| Arc::ptr_eq(&endpoint_view.endpoint, &next.endpoint);
        let before = self.tried.iter().filter(is_next).count() as u32;
        if before > 0 {
            // Boxed, so that the many exchanges that never wait don't carry room for it.
            Box::pin(tokio::time::sleep(retry::pause(before - 1))).await;
        }
    }
}

/// Returns the response with the connection that its body streams from.
fn received(
    response: Response<EndpointBody>,
    mut lease: ConnectionLease,
    upload: &UploadProgress,
) -> Result<Response<ResponseBody>, Error> {
    upload.stop_rate_limit();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switched(response, lease);
    }
    lease.connection.detach_upload(lease.rules.read_timeout);
    Ok(response.map(|content| ResponseBody::Upstream(UpstreamBody::new(content, lease))))
}

fn switched(response: Response<EndpointBody>, lease: ConnectionLease) -> Result<Response<ResponseBody>, Error> {
    let ConnectionLease { connection, in_flight_guard, .. } = lease;
    let unnamed = || Error::new(FailureKind::ProtocolError, "the endpoint switched to a protocol without a name");
    let protocol = response.headers().get(header::UPGRADE).cloned().ok_or_else(unnamed)?;
    let lost = || Error::new(FailureKind::ConnectionTerminated, "the endpoint closed as it switched protocols");
    if connection.is_uploading() {
        let cause = "the endpoint switched protocols before it had the content of the request";
        return Err(Error::new(FailureKind::ProtocolError, cause));
    }
    let stream = connection.into_stream().ok_or_else(lost)?;
    in_flight_guard.endpoint_view().record_success(Instant::now());
    Ok(response.map(|_| ResponseBody::Switched(Box::new(SwitchedProtocol { protocol, stream, in_flight_guard }))))
}
