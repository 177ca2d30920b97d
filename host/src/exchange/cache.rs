//! The cache in a plugin chain: answers a request from the store, bypasses the cache, or fetches the response below the
//! cache, once for all requests that can share it.

mod cache_status;
mod fetch;
mod hit;
mod reader_backlog;
mod store_writer;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Response, StatusCode, request};
use tokio::sync::watch;

use crate::context::{CacheOutcome, ExchangeContext};
use crate::error::Error;
use crate::exchange::chain::{self, BalancerEdits, ChainFailure, ChainPosition, FailedHook};
use crate::exchange::error_response::status_page;
use crate::exchange::record::{self, ClientState};
use crate::exchange::response_body::ResponseBody;
use crate::exchange::{Destination, late};
use crate::generation::Route;
use crate::generation::fetch_places::MAX_FETCHES;
use crate::generation::ids::{PluginId, RouteId};
use crate::generation::worker_state::WorkerState;
use crate::net::deadline::{Clock, Deadline};
use crate::plugin::breaker::HookKind;
use crate::plugin::cache_policy::{self, BypassReason, CacheKey, PolicyLookup, PolicyResponse, Reuse};
use crate::plugin::call_error::PluginFailure;
use crate::plugin::instance::Instance;
use crate::plugin::settings::CacheInputs;
use crate::store::DiskCandidate;
use crate::store::collapse::{FetchLeader, FetchOutcome, FetchRole, wait_for_outcome};
use crate::store::index::Found;
use crate::store::purge_log::PurgeEpoch;
use crate::store::stored_response::StoredResponse;
use crate::store::unix_time::now_ms;
use crate::store::vary::{VaryRequest, VaryValue};
use crate::system::supervise::{Task, spawn};
use crate::telemetry::failure_log::{self, Topic};
use crate::telemetry::metrics::CacheMetrics;
use cache_status::{CacheStatus, ForwardReason};
use fetch::{Fetch, FetchClient, needs_own_connection};

/// The result of looking up a request in the cache.
pub enum Lookup {
    /// The request is answered from the store.
    Hit(Response<ResponseBody>),
    /// The cache is bypassed for the request and for its response.
    Bypass(BypassedCache),
    /// The store can't answer the request, or the response is on disk; the caller runs [`CacheMiss::run`].
    Miss(Box<CacheMiss>),
}

/// A request that bypasses the cache.
pub struct BypassedCache {
    at: ChainPosition,
    why: ForwardReason,
    detail: Option<String>,
    /// Whether the response is that of the next hop, and not the proxy's own to a failure.
    is_answered: bool,
    /// The request as the cache received it; `None` unless its response may invalidate stored responses.
    changes: Option<Box<request::Parts>>,
}

/// A request that no response in memory can answer.
#[derive(Clone)]
pub struct CacheMiss {
    stage: CacheStage,
    cache_key: CacheKey,
    route: RouteId,
    id: u128,
    scope: u64,
    /// The stored response on disk, with the purge-log position of the lookup; `None` if there is none.
    disk_candidate: Option<DiskCandidate>,
    /// The stored response that can't be served as it is; `None` if there is none.
    stale: Option<Stale>,
    why: ForwardReason,
    /// The position of the chain up to which the request hooks have run.
    reached: Cell<ChainPosition>,
    /// Whether responses to this request are not expected to be cacheable, so that the request doesn't wait for another
    /// one.
    passes: bool,
    /// The request's values of the fields that a response to another request depends on; `None` before one has arrived.
    selectors: Option<VaryValue>,
}

/// The result of joining the other requests for the same response.
enum Joined {
    /// The request fetches the response: for others too if it leads them.
    Fetch(Option<FetchLeader>),
    /// The response of another request's fetch serves this request.
    Response(CacheResponse),
}

/// A stored response that matches the request but can't be served as it is.
#[derive(Clone)]
struct Stale {
    object: Arc<StoredResponse>,
    /// Whether the fetch may be conditional, to revalidate the stored response.
    validates: bool,
}

/// A response from the store or from below the cache, for the plugins above it.
pub struct CacheResponse {
    pub response: Response<ResponseBody>,
    /// The edits of the balancer to the response for this client only; `None` if there are none.
    pub edits: Option<BalancerEdits>,
    /// The position of the cache; the plugins above it still see the response.
    pub depth: ChainPosition,
}

/// The stage of the cache in a chain.
#[derive(Clone, Copy)]
struct CacheStage {
    /// The position of the cache in the chain.
    at: ChainPosition,
    /// The index of the configured plugin in the generation.
    binding: PluginId,
}

/// A request at a cache of its chain.
pub struct CacheRequest<'a> {
    pub destination: Destination,
    /// The position of the cache.
    pub at: ChainPosition,
    /// The property for which no stored response can answer the request, such as its content; `None` if one can.
    pub unfit: Option<&'a str>,
}

/// Looks up a request in the store.
///
/// Never inlined into the caller, through which all exchanges pass, because it takes twice as much stack as the rest.
#[inline(never)]
pub fn look_up(
    worker: &Rc<WorkerState>,
    request: CacheRequest<'_>,
    context: &mut Box<ExchangeContext>,
    clock: &Rc<Clock>,
) -> Result<Lookup, ChainFailure> {
    let CacheRequest { destination, at, unfit } = request;
    let route = &worker.generation.routes[destination.route];
    let stage = CacheStage { at, binding: at.plugin(route) };
    let cache_key = match stage.decide_lookup(worker, context)? {
        PolicyLookup::UseCache(mut cache_key) if unfit.is_none() && is_read(&context.request) => {
            stage.needs(worker).own(&mut cache_key.key);
            cache_key
        }
        lookup => {
            stage.count(worker, context, CacheOutcome::Bypass);
            return Ok(Lookup::Bypass(BypassedCache::of(at, lookup, &context.request, unfit)));
        }
    };
    let (store, now) = (&worker.generation.store, now_ms());
    let id = store.id(&cache_key.key);
    let scope = store.scope(&route.cache_scope, &context.upstream);
    // Two spellings of a path are two resources where they are forwarded.
    let scope = context.sent_path.as_ref().map_or(scope, |sent| scope ^ store.scope(sent.target.path(), ""));
    let why = ForwardReason::UriMiss;
    let reached = Cell::new(at);
    let mut miss = CacheMiss {
        stage,
        cache_key,
        route: destination.route,
        id,
        scope,
        disk_candidate: None,
        stale: None,
        why,
        reached,
        passes: false,
        selectors: None,
    };
    let (key, fields) = (&miss.cache_key.key, &context.request.headers);
    let found = store.find(id, key, scope, fields, now);
    let Found::Variant(object) = found else {
        miss.disk_candidate = store.find_on_disk(id, key, scope, fields);
        miss.passes = matches!(found, Found::HitForMiss);
        if let Found::OtherVariants = found {
            miss.why = ForwardReason::VaryMiss;
        }
        return Ok(Lookup::Miss(Box::new(miss)));
    };
    Ok(match miss.evaluate_stored(worker, destination, context, object, clock)? {
        Some(response) => Lookup::Hit(response),
        None => Lookup::Miss(Box::new(miss)),
    })
}

impl BypassedCache {
    fn of(at: ChainPosition, lookup: PolicyLookup, request: &request::Parts, unfit: Option<&str>) -> Self {
        let is_read = is_read(request);
        let (why, detail, changes) = match lookup {
            PolicyLookup::Invalidates => (ForwardReason::Method, None, !is_read),
            PolicyLookup::Bypass(BypassReason::Method) => (ForwardReason::Method, None, false),
            PolicyLookup::Bypass(BypassReason::Request) => (ForwardReason::Bypass, Some("request".into()), false),
            PolicyLookup::Bypass(BypassReason::Configured) => (ForwardReason::Bypass, Some("configured".into()), false),
            PolicyLookup::Bypass(BypassReason::Other(why)) => (ForwardReason::Bypass, Some(why), false),
            PolicyLookup::UseCache(_) if !is_read => (ForwardReason::Method, None, false),
            PolicyLookup::UseCache(_) => (ForwardReason::Bypass, unfit.map(Into::into), false),
        };
        BypassedCache { at, why, detail, is_answered: true, changes: changes.then(|| Box::new(request.clone())) }
    }

    /// Returns the position of the cache in the chain.
    pub fn depth(&self) -> ChainPosition {
        self.at
    }

    /// Records that the response is the proxy's own to a failure.
    pub fn record_failure(&mut self) {
        self.is_answered = false;
    }

    /// Handles the response in `head`: invalidates stored responses if necessary, and adds `Cache-Status`.
    pub fn on_response(self, worker: &WorkerState, route: &Route, context: &mut ExchangeContext) {
        let stage = CacheStage { at: self.at, binding: self.at.plugin(route) };
        let needs = stage.needs(worker);
        let Some(status) = context.response.as_ref().map(|response| response.status) else { return };
        if let Some(request) = self.changes.filter(|_| status.is_success() || status.is_redirection()) {
            // The policy receives the request as the cache received it, so that keys are the same as in lookups.
            let sent = std::mem::replace(&mut context.request, *request);
            let keys = stage.notify(worker, context, |policy| policy.invalidated_keys(&needs.response, context));
            context.request = sent;
            stage.invalidate(worker, context, keys.unwrap_or_default());
        }
        let report = CacheStatus::forwarded(self.why).detail(self.detail.as_deref());
        let report = if self.is_answered { report.status(status) } else { report };
        if let Some(response) = &mut context.response {
            report.append_to(needs, None, &mut response.headers);
        }
    }
}

impl CacheMiss {
    /// Answers the request: from disk, by collapsing with another request's fetch, or by a fetch of its own.
    pub async fn run(
        &mut self,
        worker: &Rc<WorkerState>,
        destination: Destination,
        context: &mut Box<ExchangeContext>,
        total: &Deadline,
    ) -> Result<CacheResponse, ChainFailure> {
        if let Some(candidate) = self.disk_candidate.take()
            && let Some(object) = self.recall(worker, &candidate, context).await
            && let Some(response) = self.evaluate_stored(worker, destination, context, object, total.clock())?
        {
            return Ok(self.cache_response(response));
        }
        if self.cache_key.only_if_cached {
            self.stage.count(worker, context, CacheOutcome::Miss);
            let report = CacheStatus::missed().detail(Some(ONLY_IF_CACHED));
            return Ok(self.cache_response(self.gateway_timeout(worker, context, report)));
        }
        let lead = match total.until_met(self.join(worker, destination, context, total.clock())).await {
            Ok(joined) => match joined? {
                Joined::Fetch(lead) => lead,
                Joined::Response(response) => return Ok(response),
            },
            // What is stored may stand for a response that another request waits for too long.
            Err(_) => {
                let failed = ChainFailure::new(late(total), self.depth());
                self.stage.count(worker, context, CacheOutcome::Collapsed);
                return self.stale_or_failure(worker, context, None, failed);
            }
        };
        let outcome = match self.why {
            ForwardReason::Stale | ForwardReason::Request => CacheOutcome::Validated,
            _ => CacheOutcome::Miss,
        };
        self.stage.count(worker, context, outcome);
        let client = FetchClient::Waiting;
        Fetch { miss: self, worker, destination, total, client, place: Cell::default() }.run(context, lead).await
    }

    /// Returns the position of the chain up to which the request hooks have run.
    pub fn depth(&self) -> ChainPosition {
        self.reached.get()
    }

    /// Joins the other requests for the same response: the first of them fetches the response, the others wait for it.
    async fn join(
        &mut self,
        worker: &Rc<WorkerState>,
        destination: Destination,
        context: &mut Box<ExchangeContext>,
        clock: &Rc<Clock>,
    ) -> Result<Joined, ChainFailure> {
        let (mut turns, until) = (0, clock.now() + MAX_FOLLOWING);
        loop {
            // If the policy doesn't accept a fresh response without a check, the request fetches on its own.
            if self.passes || !self.cache_key.allow_fresh || turns == MAX_TURNS {
                return Ok(Joined::Fetch(None));
            }
            turns += 1;
            let name = self.fetch_id(worker, destination, context);
            match worker.generation.store.fetches.join(name) {
                FetchRole::Lead(lead) => {
                    let newer = self.stored_meanwhile(worker, context);
                    if let Some(response) = newer.and_then(|it| self.serve(worker, context, &it, CacheStatus::hit())) {
                        self.stage.count(worker, context, CacheOutcome::Hit);
                        return Ok(Joined::Response(self.cache_response(response)));
                    }
                    // Others don't wait for a connection that this client can't have.
                    let is_held_back = fetch::is_held_back(worker, destination, context.holder());
                    return Ok(Joined::Fetch((!is_held_back).then_some(lead)));
                }
                FetchRole::Follow(mut outcome) => match follow(&mut outcome, until, clock).await {
                    FetchOutcome::Asked => return Ok(Joined::Fetch(None)),
                    // A plugin keeps the other request waiting: one of those that wait leads in its place.
                    FetchOutcome::Pending => worker.generation.store.fetches.detach(name, &outcome),
                    FetchOutcome::Object(object, epoch) if self.was_purged(worker, &object, &epoch) => {
                        worker.generation.store.fetches.detach(name, &outcome);
                    }
                    FetchOutcome::Object(object, _) => {
                        if let Some(response) = self.serve_collapsed(worker, context, &object) {
                            self.stage.count(worker, context, CacheOutcome::Collapsed);
                            return Ok(Joined::Response(self.cache_response(response)));
                        }
                    }
                    FetchOutcome::Failed(kind) => {
                        let cause = "the request that it waited for failed";
                        let failed = ChainFailure::new(Error::new(kind, cause), self.stage.at);
                        self.stage.count(worker, context, CacheOutcome::Collapsed);
                        return self.stale_or_failure(worker, context, None, failed).map(Joined::Response);
                    }
                    FetchOutcome::Pass => self.passes = true,
                    FetchOutcome::Left => {}
                },
            }
        }
    }

    /// Reads a response from disk. Concurrent reads of one file are collapsed. `None` if the file can't be read, or the client
    /// has no part of the descriptors left.
    async fn recall(
        &self,
        worker: &WorkerState,
        candidate: &DiskCandidate,
        context: &ExchangeContext,
    ) -> Option<Arc<StoredResponse>> {
        let (store, most) = (&worker.generation.store, fetch::max_in_memory(worker));
        loop {
            match store.fetches.join(candidate.entry.fetch_id()) {
                FetchRole::Lead(lead) => {
                    let descriptor = worker.descriptors().take(context.holder())?;
                    let recalled = store.load(self.id, &self.cache_key.key, candidate, most, descriptor).await;
                    let loaded = |object| FetchOutcome::Object(object, candidate.epoch.clone());
                    let outcome = recalled.clone().map_or(FetchOutcome::Pass, loaded);
                    lead.end(outcome);
                    return recalled;
                }
                FetchRole::Follow(mut outcome) => match wait_for_outcome(&mut outcome).await {
                    FetchOutcome::Object(object, _) => return Some(object),
                    FetchOutcome::Left | FetchOutcome::Pending | FetchOutcome::Asked => {}
                    FetchOutcome::Pass | FetchOutcome::Failed(_) => return None,
                },
            }
        }
    }

    /// Evaluates a stored response that matches the request. Returns it if it may be served; otherwise keeps it for
    /// validation.
    fn evaluate_stored(
        &mut self,
        worker: &Rc<WorkerState>,
        destination: Destination,
        context: &mut ExchangeContext,
        object: Arc<StoredResponse>,
        clock: &Rc<Clock>,
    ) -> Result<Option<Response<ResponseBody>>, ChainFailure> {
        let (needs, now) = (self.stage.needs(worker), now_ms());
        let is_fresh = object.is_fresh(now);
        let reuse = if is_fresh && self.cache_key.allow_fresh {
            Reuse::Serve
        } else {
            let described = described(&object, now);
            let reuse =
                self.stage.decide(worker, context, |policy| policy.decide_reuse(&needs.request, context, described))?;
            reuse.unwrap_or(Reuse::Validate)
        };
        if let Reuse::Serve | Reuse::ServeAndRevalidate = reuse
            && let Some(response) = self.serve(worker, context, &object, CacheStatus::hit())
        {
            let outcome = if is_fresh { CacheOutcome::Hit } else { CacheOutcome::Stale };
            self.stage.count(worker, context, outcome);
            if reuse == Reuse::ServeAndRevalidate {
                self.stale = Some(Stale { object, validates: true });
                self.clone().revalidate(worker, destination, context, clock);
            }
            return Ok(Some(response));
        }
        self.why = if is_fresh { ForwardReason::Request } else { ForwardReason::Stale };
        self.stale = Some(Stale { object, validates: reuse != Reuse::Ignore });
        Ok(None)
    }

    /// Starts a background revalidation, unless a fetch of the response is already in progress, or too many others are: a
    /// later hit tries again then.
    fn revalidate(
        mut self,
        worker: &Rc<WorkerState>,
        destination: Destination,
        context: &ExchangeContext,
        clock: &Rc<Clock>,
    ) {
        let name = self.fetch_id(worker, destination, context);
        let FetchRole::Lead(lead) = worker.generation.store.fetches.join(name) else { return };
        // Another request may have just finished the revalidation.
        if self.stored_meanwhile(worker, context).is_some() {
            return;
        }
        let Some(place) = worker.revalidations(destination.upstream).take(destination.route) else {
            return self.log_unvalidated(context);
        };
        self.why = ForwardReason::Stale;
        let (worker, in_chain) = (worker.clone(), worker.enter_chain(destination.route));
        let (clock, mut context) = (clock.clone(), Box::new(context.copy()));
        self.stage.count(&worker, &mut context, CacheOutcome::Validated);
        spawn(Task::Revalidate, async move {
            let [total] = clock.deadlines();
            total.set(worker.generation.routes[destination.route].timeout.unwrap_or(MAX_REVALIDATION_TIME));
            let client = FetchClient::Served;
            let place = Cell::new(Some(place));
            let fetch = Fetch { miss: &self, worker: &worker, destination, total: &total, client, place };
            if let Err(ChainFailure { error, .. }) = fetch.run(&mut context, Some(lead)).await {
                record::log(&error, Some(&context), "stored response not validated", ClientState::Present);
            }
            drop(in_chain);
        });
    }

    /// Logs that there is no place for the revalidation of a stored response, if that is stale for longer than it was fresh.
    fn log_unvalidated(&self, context: &ExchangeContext) {
        let Some(Stale { object, .. }) = &self.stale else { return };
        let age_ms = object.age_ms(now_ms());
        if age_ms < object.freshness.lifetime_ms.saturating_mul(2) || !failure_log::admits(Topic::Cache, &context.route)
        {
            return;
        }
        let (request_id, route, upstream) = (context.request_id(), &*context.route, &*context.upstream);
        let (places, age) = (MAX_FETCHES, age_ms / 1000);
        let cause = "as many background revalidations of the route are in progress as the upstream has places for";
        tracing::warn!(request_id, route, upstream, age, cause, places, "stored response not validated");
    }

    /// Returns the name of the fetch that answers the request. Requests that need a connection of their own have another
    /// one, since others don't have to wait for such a connection.
    fn fetch_id(&self, worker: &WorkerState, destination: Destination, context: &ExchangeContext) -> u128 {
        let store = &worker.generation.store;
        let id = match &self.selectors {
            Some(selectors) => store.fetch_id_of(self.id, self.scope, Some(selectors)),
            None => store.fetch_id(self.id, self.scope, &context.request.headers),
        };
        id ^ u128::from(needs_own_connection(worker, destination.upstream, &context.request))
    }

    /// Returns whether another request's response was purged after that request had begun its fetch.
    fn was_purged(&self, worker: &WorkerState, object: &StoredResponse, epoch: &PurgeEpoch) -> bool {
        let store = &worker.generation.store;
        store.was_purged(epoch, &self.cache_key.key, &object.variant)
    }

    /// Returns a fresh response that was stored after the lookup; `None` if there is none.
    fn stored_meanwhile(&self, worker: &WorkerState, context: &ExchangeContext) -> Option<Arc<StoredResponse>> {
        let (store, now) = (&worker.generation.store, now_ms());
        match store.find(self.id, &self.cache_key.key, self.scope, &context.request.headers, now) {
            Found::Variant(object) if object.is_fresh(now) => Some(object),
            _ => None,
        }
    }

    /// Returns another request's response if it may be served to this request; otherwise `None`.
    fn serve_collapsed(
        &mut self,
        worker: &WorkerState,
        context: &ExchangeContext,
        object: &Arc<StoredResponse>,
    ) -> Option<Response<ResponseBody>> {
        let mut request = VaryRequest::new(&context.request.headers);
        if object.variant.scope != self.scope || !object.variant.selectors.select(&mut request) {
            // The response shows which fields it depends on: the request waits for one with its own values.
            let names = object.variant.selectors.names();
            let selectors = VaryValue::from_request(names, &context.request.headers);
            self.passes |= object.variant.scope != self.scope || self.selectors.as_ref() == Some(&selectors);
            self.selectors = Some(selectors);
            return None;
        }
        if !object.is_fresh(now_ms()) {
            self.passes = true;
            return None;
        }
        let report = CacheStatus::forwarded(self.why).collapsed();
        let response = self.serve(worker, context, object, report);
        self.passes |= response.is_none();
        response
    }

    /// Returns a stale response instead of the failure if the policy allows that; otherwise returns the failure.
    fn stale_or_failure(
        &self,
        worker: &WorkerState,
        context: &mut ExchangeContext,
        status: Option<StatusCode>,
        failed: ChainFailure,
    ) -> Result<CacheResponse, ChainFailure> {
        let Some(response) = self.serve_stale_on_error(worker, context, status) else { return Err(failed) };
        let what = "exchange failed, a stored response stands for it";
        record::log(&failed.error, Some(context), what, ClientState::Present);
        Ok(self.cache_response(response))
    }

    fn serve_stale_on_error(
        &self,
        worker: &WorkerState,
        context: &mut ExchangeContext,
        status: Option<StatusCode>,
    ) -> Option<Response<ResponseBody>> {
        let object = &self.stale.as_ref()?.object;
        let (needs, now) = (self.stage.needs(worker), now_ms());
        let code = status.map(|status| status.as_u16());
        let allowed = self.stage.notify(worker, context, |policy| {
            policy.upstream_error(&needs.request, context, described(object, now), code)
        });
        if allowed != Some(true) {
            return None;
        }
        self.stage.count(worker, context, CacheOutcome::ErrorCovered);
        let mut report = CacheStatus::forwarded(ForwardReason::Stale).detail(Some("stale-if-error"));
        if let Some(status) = status {
            report = report.status(status);
        }
        self.serve(worker, context, object, report)
    }

    /// Returns a stored response with `Cache-Status`; `None` if the beginning of its content is gone.
    fn serve(
        &self,
        worker: &WorkerState,
        context: &ExchangeContext,
        object: &StoredResponse,
        report: CacheStatus,
    ) -> Option<Response<ResponseBody>> {
        let now = now_ms();
        let mut response = hit::hit_response(object, context, report.is_fetched(), now)?;
        let ttl = object.freshness.lifetime_ms as i64 - object.age_ms(now) as i64;
        report.ttl(ttl.div_euclid(1000)).append_to(
            self.stage.needs(worker),
            Some(&self.cache_key.key),
            response.headers_mut(),
        );
        Some(response)
    }

    /// Returns 504 for a request that can't be answered from the store.
    fn gateway_timeout(
        &self,
        worker: &WorkerState,
        context: &ExchangeContext,
        report: CacheStatus,
    ) -> Response<ResponseBody> {
        let page = worker.generation.error_page(Some(self.route), StatusCode::GATEWAY_TIMEOUT);
        let mut response = status_page(StatusCode::GATEWAY_TIMEOUT, context, page);
        report.append_to(self.stage.needs(worker), Some(&self.cache_key.key), response.headers_mut());
        response
    }

    fn cache_response(&self, response: Response<ResponseBody>) -> CacheResponse {
        CacheResponse { response, edits: None, depth: self.stage.at }
    }
}

/// The detail of a 504 because the request accepts only a stored response, and there is none.
const ONLY_IF_CACHED: &str = "only-if-cached";

/// The detail of a 504 because the upstream has confirmed a stored response whose beginning is no longer in memory.
const CONFIRMED_CONTENT_GONE: &str = "confirmed-content-gone";

/// The detail of a 504 because the beginning of a response that was just fetched is no longer in memory.
const FETCHED_CONTENT_GONE: &str = "fetched-content-gone";

/// The reason in `Cache-Status` if the cache is bypassed because its policy failed.
const POLICY_FAILED: &str = "policy-failed";

/// The maximum number of fetches of other requests that a request waits for.
const MAX_TURNS: usize = 3;

/// The time for which a request waits for the fetches of others, as in nginx (`proxy_cache_lock_timeout`). Most endpoints
/// begin a response sooner, and a long poll of one client keeps others no longer.
const MAX_FOLLOWING: Duration = Duration::from_secs(5);

/// The time for which a request waits for another one that plugins below the cache have: most take less than a
/// millisecond, or a round trip to a service.
const MAX_UNSENT: Duration = Duration::from_secs(1);

/// Waits for the result of another request's fetch, but not beyond `until`, nor for long before the fetch has asked its
/// endpoint. Returns the last state of the fetch, which has no result if the time is over.
async fn follow(outcome: &mut watch::Receiver<FetchOutcome>, until: Instant, clock: &Rc<Clock>) -> FetchOutcome {
    let [wait] = clock.deadlines();
    let left = || until.saturating_duration_since(clock.now());
    if let Ok(result) = wait.limit(left().min(MAX_UNSENT), wait_for_outcome(outcome)).await {
        return result;
    }
    let is_asked = matches!(*outcome.borrow(), FetchOutcome::Asked);
    if is_asked && let Ok(result) = wait.limit(left(), wait_for_outcome(outcome)).await {
        return result;
    }
    outcome.borrow().clone()
}

/// The timeout of a background revalidation if the route has none.
const MAX_REVALIDATION_TIME: Duration = Duration::from_secs(600);

impl CacheStage {
    /// Decides how a request is looked up: by the plan of the policy, or else by the policy.
    fn decide_lookup(
        self,
        worker: &WorkerState,
        context: &mut Box<ExchangeContext>,
    ) -> Result<PolicyLookup, ChainFailure> {
        let (needs, guard) = (self.needs(worker), &worker.guards[self.binding]);
        let may_be_planned = is_read(&context.request) && needs.plan.is_some() && guard.admit_work(context).is_ok();
        let plan = needs.plan.as_ref().filter(|_| may_be_planned);
        let planned = plan.and_then(|plan| plan.key(context));
        guard.charge_work(context);
        if let Some(key) = planned {
            return Ok(cache_policy::use_cache(CacheKey { key, allow_fresh: true, only_if_cached: false }));
        }
        let decided = self.decide(worker, context, |policy| policy.lookup(&needs.request, context))?;
        Ok(decided.unwrap_or_else(|| PolicyLookup::Bypass(BypassReason::Other(POLICY_FAILED.into()))))
    }

    fn needs(self, worker: &WorkerState) -> &CacheInputs {
        static NONE: CacheInputs = CacheInputs {
            request: Vec::new(),
            response: Vec::new(),
            plan: None,
            name: None,
            tells_key: false,
            owner: Vec::new(),
        };
        worker.generation.bindings[self.binding].cache.as_ref().unwrap_or(&NONE)
    }

    /// Invalidates the responses under keys of the policy, at the expense of the plugin.
    fn invalidate(self, worker: &WorkerState, context: &ExchangeContext, keys: Vec<Vec<u8>>) {
        let (store, needs) = (&worker.generation.store, self.needs(worker));
        for mut key in keys {
            context.work.add_invalidation(key.len());
            needs.own(&mut key);
            store.invalidate(store.id(&key));
        }
        worker.guards[self.binding].charge_work(context);
    }

    fn figures(self, worker: &WorkerState) -> &Arc<CacheMetrics> {
        &worker.caches[self.binding]
    }

    /// Records the cache outcome of the request for metrics and the access log.
    fn count(self, worker: &WorkerState, context: &mut ExchangeContext, outcome: CacheOutcome) {
        context.cache = Some(outcome);
        self.figures(worker).requests(outcome).add(1);
    }

    /// Calls the policy for a decision. `None` if the call failed and the plugin's `on-error` lets the exchange
    /// continue.
    fn decide<R>(
        self,
        worker: &WorkerState,
        context: &ExchangeContext,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<Option<R>, ChainFailure> {
        match self.call(worker, context, call) {
            Ok(answer) => Ok(Some(answer)),
            Err(failure) => {
                let failing = FailedHook { hook: "cache-policy", context };
                chain::on_error(worker, self.binding, failure, self.at, failing).map(|()| None)
            }
        }
    }

    /// Calls the policy when its failure can't change the exchange any more. Returns `None` if the call failed.
    fn notify<R>(
        self,
        worker: &WorkerState,
        context: &ExchangeContext,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Option<R> {
        let answer = self.call(worker, context, call);
        answer
            .inspect_err(|failure| worker.record_plugin_failure(self.binding, "cache-policy", failure, Some(context)))
            .ok()
    }

    fn call<R>(
        self,
        worker: &WorkerState,
        context: &ExchangeContext,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        worker.call(self.binding, HookKind::CachePolicy, context.holder(), call)
    }
}

fn is_read(request: &request::Parts) -> bool {
    request.method == Method::GET || request.method == Method::HEAD
}

/// Returns the description of a stored response that a policy receives.
fn described(object: &StoredResponse, now_ms: u64) -> PolicyResponse {
    let rules = &object.freshness;
    PolicyResponse {
        age_ms: object.age_ms(now_ms),
        lifetime_ms: rules.lifetime_ms,
        stale_while_revalidate_ms: rules.stale_while_revalidate_ms,
        stale_if_error_ms: rules.stale_if_error_ms,
        must_revalidate: rules.must_revalidate,
        purged: object.variant.is_purged(),
    }
}
