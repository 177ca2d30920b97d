//! Fetches a response from below the cache, and stores it if the policy says so.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request, response};
use http_body::Body;

use super::cache_status::CacheStatus;
use super::hit;
use super::reader_backlog::ReaderBacklog;
use super::store_writer::{FetchName, StoreWriter, WriteTarget};
use super::{CONFIRMED_CONTENT_GONE, CacheMiss, CacheResponse, FETCHED_CONTENT_GONE, POLICY_FAILED, Stale};
use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::exchange::body_hooks::{self, Passage, PassageEnd};
use crate::exchange::chain::{
    self, BalancerEdits, ChainFailure, ChainPosition, RequestHooks, ResponseHooks, RouteChain,
};
use crate::exchange::forward::OutgoingRequest;
use crate::exchange::response_body::ResponseBody;
use crate::exchange::target::ask_target;
use crate::exchange::{Destination, ROUTE_TIMEOUT, late, waiting};
use crate::generation::fetch_places::FetchPlace;
use crate::generation::ids::UpstreamId;
use crate::generation::worker_state::WorkerState;
use crate::net::boxed::boxed;
use crate::net::deadline::Deadline;
use crate::plugin::cache_policy::{FetchTimes, Refusal, Storage, StoreDecision};
use crate::protocol::conditions;
use crate::protocol::hop_by_hop;
use crate::store::collapse::{FetchLeader, FetchOutcome};
use crate::store::purge_log::PurgeEpoch;
use crate::store::shared_body::SharedBody;
use crate::store::stored_response::{Content, StoredResponse, freshen};
use crate::store::unix_time::{http_date, now_ms};
use crate::store::variant::VariantInfo;
use crate::store::vary::VaryValue;
use crate::system::descriptor_shares;
use crate::system::holder_counts::Holder;
use crate::system::supervise::{Task, spawn};
use crate::telemetry::metrics::REFUSALS;
use crate::upstream::request_head::RequestHeadSize;

/// A fetch on behalf of a request.
pub struct Fetch<'a> {
    pub miss: &'a CacheMiss,
    pub worker: &'a Rc<WorkerState>,
    pub destination: Destination,
    /// The deadline of the exchange until its response begins.
    pub total: &'a Deadline,
    pub client: FetchClient,
    /// The place of a fetch in the background, until the task that stores the response takes it; `None` for others.
    pub place: Cell<Option<FetchPlace>>,
}

/// Whether the client of the request has its response already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FetchClient {
    /// The client waits for the result of the fetch.
    Waiting,
    /// The client was served from the store, and the fetch validates that response in the background.
    Served,
}

/// A response from below the cache; its head is in the exchange context.
struct FetchedResponse {
    body: ResponseBody,
    edits: Option<BalancerEdits>,
    /// Whether the response is from the upstream that the stored responses belong to.
    is_ours: bool,
}

/// A fetched response that the policy wants to be stored; its head is in the exchange context.
struct StorableResponse {
    body: ResponseBody,
    storage: Storage,
    /// The moment of the request.
    epoch: PurgeEpoch,
    times: FetchTimes,
}

impl Fetch<'_> {
    /// Fetches the response and publishes the result to the followers.
    pub async fn run(
        self,
        context: &mut Box<ExchangeContext>,
        mut lead: Option<FetchLeader>,
    ) -> Result<CacheResponse, ChainFailure> {
        let (miss, worker) = (self.miss, self.worker);
        let epoch = worker.generation.store.purge_epoch(miss.id);
        // If the response is not expected to be cacheable, the client's own conditions and ranges are forwarded.
        let is_own =
            miss.passes && (hit::is_conditional(&context.request.headers) || context.request.method == Method::HEAD);
        let received = context.request.clone();
        let validating = if is_own { None } else { self.make_unconditional(context) };
        let sent_ms = now_ms();
        // What is stored may stand for a response that is late.
        let below = self.total.until_met(self.forward_below(context, (!is_own).then_some(&received), &mut lead)).await;
        let below = below.unwrap_or_else(|_| Err(ChainFailure::new(late(self.total), miss.depth())));
        let times = times_since(sent_ms);
        let sent = std::mem::replace(&mut context.request, received);
        let FetchedResponse { body, edits, is_ours } = match below {
            Ok(below) => below,
            Err(failed) => return self.on_failure(context, &sent, failed, lead),
        };
        let status = context.response.as_ref().map_or(StatusCode::BAD_GATEWAY, |response| response.status);
        if let (StatusCode::NOT_MODIFIED, Some(stale)) = (status, validating.filter(|_| is_ours)) {
            let response = self.on_not_modified(context, &stale, epoch, times, lead)?;
            return Ok(CacheResponse { edits, ..miss.cache_response(response) });
        }
        if status.is_server_error()
            && let Some(response) = miss.serve_stale_on_error(worker, context, Some(status))
        {
            // For the followers the fetch has failed too; each one serves its own stale response.
            end(lead, FetchOutcome::Failed(FailureKind::DestinationUnavailable));
            return Ok(CacheResponse { edits, ..miss.cache_response(response) });
        }
        let response = if is_own {
            self.pass_through(context, body, None)
        } else if !is_ours {
            self.pass_through(context, body, Some(Refusal::Other(OTHER_UPSTREAM.into())))
        } else {
            self.worker.guards[self.miss.stage.binding].turn(context.holder()).await;
            match self.decide_storage(context, &body, times)? {
                StoreDecision::Store(storage) => {
                    let fetched = StorableResponse { body, storage, epoch, times };
                    self.store(context, fetched, lead)
                }
                StoreDecision::Refuse(refusal) => {
                    self.mark_uncacheable(status, &refusal);
                    end(lead, FetchOutcome::Pass);
                    if hit::asks_for_part(context) {
                        drop(body);
                        return self.again(context, refusal).await;
                    }
                    self.pass_through(context, body, Some(refusal))
                }
            }
        };
        Ok(CacheResponse { edits, ..miss.cache_response(response) })
    }

    /// Serves the stale response if that is allowed, or returns the failure.
    fn on_failure(
        &self,
        context: &mut Box<ExchangeContext>,
        sent: &request::Parts,
        failed: ChainFailure,
        lead: Option<FetchLeader>,
    ) -> Result<CacheResponse, ChainFailure> {
        let kind = failed.error.kind;
        // Followers have come later, and have time left. Other clients have parts of their own.
        let is_own = matches!(failed.error.limit, Some(ROUTE_TIMEOUT | descriptor_shares::LIMIT))
            || kind == FailureKind::LimitReached && is_held_back(self.worker, self.destination, context.holder());
        // A plugin below the cache may have made the head so long that it waited for a connection of its own.
        let waited_alone = kind == FailureKind::LimitReached
            && needs_own_connection(self.worker, self.destination.upstream, sent)
            && !needs_own_connection(self.worker, self.destination.upstream, &context.request);
        let answered = match self.client {
            FetchClient::Waiting => self.miss.stale_or_failure(self.worker, context, None, failed),
            FetchClient::Served => Err(failed),
        };
        // Errors that only this request may have caused are not published: a follower takes the lead over and tries itself.
        if is_shared_failure(kind) && !waited_alone && !is_own {
            end(lead, FetchOutcome::Failed(kind));
        }
        answered
    }

    /// Fetches again with the client's range, because the whole response can't be stored and may be long.
    async fn again(&self, context: &mut Box<ExchangeContext>, refusal: Refusal) -> Result<CacheResponse, ChainFailure> {
        let received = context.request.clone();
        context.response = None;
        let below = self.forward_below(context, None, &mut None).await;
        context.request = received;
        match below {
            Ok(FetchedResponse { body, edits, .. }) => {
                let response = self.pass_through(context, body, Some(refusal));
                Ok(CacheResponse { edits, ..self.miss.cache_response(response) })
            }
            Err(failed) => self.miss.stale_or_failure(self.worker, context, None, failed),
        }
    }

    /// Rewrites the request to ask for the whole response or for revalidation. Returns the stored response to be
    /// revalidated; `None` if there is none.
    fn make_unconditional(&self, context: &mut ExchangeContext) -> Option<Arc<StoredResponse>> {
        let fields = &mut context.request.headers;
        hit::ask_for_all(fields);
        context.request.method = Method::GET;
        let stale = self.miss.stale.as_ref().filter(|stale| stale.validates)?;
        let (tag, modified) = (stale.object.field(&header::ETAG), stale.object.field(&header::LAST_MODIFIED));
        if let Some(tag) = tag {
            fields.insert(header::IF_NONE_MATCH, tag.clone());
        }
        if let Some(modified) = modified {
            fields.insert(header::IF_MODIFIED_SINCE, modified.clone());
        }
        tag.or(modified).map(|_| stale.object.clone())
    }

    /// Runs the request through the plugins below the cache to the route's target, and the response back up to the cache.
    ///
    /// Gives up the lead if a plugin chooses another upstream, whose response and whose failure concern no follower. That
    /// upstream gets the conditions and ranges of `received`, the request before it was made unconditional, if there is one.
    async fn forward_below(
        &self,
        context: &mut Box<ExchangeContext>,
        received: Option<&request::Parts>,
        lead: &mut Option<FetchLeader>,
    ) -> Result<FetchedResponse, ChainFailure> {
        let (worker, route) = (self.worker, &self.worker.generation.routes[self.destination.route]);
        let (top, mut upstream) = (self.miss.stage.at.next(), self.destination.upstream);
        let is_ours = |upstream| upstream == self.destination.upstream;
        let [step] = self.total.clock().deadlines();
        let mut hooks = chain::down(worker, route, top, context, &mut upstream)?;
        if let RequestHooks::Wait(_) = hooks {
            hooks = boxed(|| waiting::down(self.chain(), hooks, context, &mut upstream, &step)).await?;
        }
        if !is_ours(upstream) {
            drop(lead.take());
            if self.client == FetchClient::Served {
                let error = Error::new(FailureKind::RequestError, OTHER_UPSTREAM).mark_logged();
                return Err(ChainFailure::new(error, self.miss.stage.at));
            }
            received.into_iter().for_each(|received| hit::ask_as(received, &mut context.request));
        }
        let (response, edits, depth) = match hooks {
            RequestHooks::Answer(response, depth) => {
                (response.map(|content| ResponseBody::Full(content.into())), None, depth)
            }
            RequestHooks::Forward | RequestHooks::Cache(_) | RequestHooks::Wait(_) => {
                let mut sending = OutgoingRequest::empty();
                let bottom = ChainPosition::bottom(route);
                self.miss.reached.set(bottom);
                lead.iter().for_each(FetchLeader::ask);
                let destination = Destination { upstream, ..self.destination };
                let forwarded = ask_target(worker, destination, context, &mut sending, &step).await;
                let forwarded = forwarded.map_err(|error| ChainFailure::new(error, bottom))?;
                (forwarded.response, forwarded.edits, bottom)
            }
        };
        let (mut parts, body) = response.into_parts();
        hop_by_hop::response(&mut parts);
        context.response = Some(parts);
        let body = self.pass_up(depth.range_below(top), context, body, &step).await?;
        Ok(FetchedResponse { body, edits, is_ours: is_ours(upstream) })
    }

    /// Passes a response up through plugins below the cache; returns its content.
    async fn pass_up(
        &self,
        plugins: Range<usize>,
        context: &mut Box<ExchangeContext>,
        body: ResponseBody,
        step: &Deadline,
    ) -> Result<ResponseBody, ChainFailure> {
        let (worker, route) = (self.worker, &self.worker.generation.routes[self.destination.route]);
        let replaced = self.take_up(plugins.clone(), context, step).await?;
        let body = match replaced {
            Some(content) => ResponseBody::Full(content.into()),
            None => body,
        };
        let passage = match body_hooks::filter_body(worker, route, plugins, context, body)? {
            Passage::Done(body) => return Ok(body),
            Passage::Waits(passage) => passage,
        };
        let mut chosen = None;
        match boxed(|| passage.run(worker, context, &mut chosen, self.total.clock())).await? {
            PassageEnd::Content(body) => Ok(body),
            PassageEnd::Respond { response, above } => {
                let (parts, content) = response.into_parts();
                context.response = Some(parts);
                let above = above.range_below(self.miss.stage.at.next());
                let replaced = self.take_up(above, context, step).await?;
                Ok(ResponseBody::Full(replaced.unwrap_or(content).into()))
            }
        }
    }

    /// Returns the chain that the cache is in.
    fn chain(&self) -> RouteChain<'_> {
        RouteChain { worker: self.worker, route_id: self.destination.route }
    }

    /// Runs the response hooks of plugins below the cache; returns the content that they put in place of the response's.
    async fn take_up(
        &self,
        plugins: Range<usize>,
        context: &mut Box<ExchangeContext>,
        step: &Deadline,
    ) -> Result<Option<Vec<u8>>, ChainFailure> {
        let (worker, route) = (self.worker, &self.worker.generation.routes[self.destination.route]);
        match chain::up(worker, route, plugins.clone(), context)? {
            ResponseHooks::Done(content) => Ok(content),
            hooks => boxed(|| waiting::up(self.chain(), plugins, hooks, context, step)).await,
        }
    }
}

/// Returns the times of a response that has just arrived to a request that was sent at `sent_ms`.
fn times_since(sent_ms: u64) -> FetchTimes {
    let received_ms = now_ms();
    FetchTimes { received_ms, delay_ms: received_ms.saturating_sub(sent_ms) }
}

/// Decisions about a response.
impl Fetch<'_> {
    /// Decides whether the response is stored: the policy decides, if the host can store such a response at all.
    fn decide_storage(
        &self,
        context: &mut Box<ExchangeContext>,
        body: &ResponseBody,
        times: FetchTimes,
    ) -> Result<StoreDecision, ChainFailure> {
        let (worker, stage) = (self.worker, self.miss.stage);
        let Some(response) = &context.response else { return Ok(StoreDecision::Refuse(Refusal::Status)) };
        let is_whole = response.status != StatusCode::PARTIAL_CONTENT && response.status != StatusCode::NOT_MODIFIED;
        if !is_whole || response.status.is_informational() || matches!(body, ResponseBody::Switched(_)) {
            return Ok(StoreDecision::Refuse(Refusal::Status));
        }
        let needs = stage.needs(worker);
        let decision =
            stage.decide(worker, context, |policy| policy.decide_storage(&needs.response, context, times))?;
        let length = body.size_hint().exact();
        let is_too_long = length.is_some_and(|length| length > longest(worker));
        let store = &worker.generation.store;
        let needs_disk = length.is_some_and(|length| length > max_in_memory(worker));
        let refusal = match decision.unwrap_or_else(|| StoreDecision::Refuse(Refusal::Other(POLICY_FAILED.into()))) {
            StoreDecision::Store(_) if is_too_long => Refusal::TooLarge,
            StoreDecision::Store(_) if needs_disk && store.disk().is_some_and(|disk| disk.rests()) => {
                Refusal::Other(DISK_FAILED.into())
            }
            StoreDecision::Store(storage) => return Ok(StoreDecision::Store(storage)),
            StoreDecision::Refuse(refusal) => refusal,
        };
        stage.figures(worker).refused[refusal_index(&refusal)].add(1);
        Ok(StoreDecision::Refuse(refusal))
    }

    /// Handles a 304 for the stored response (RFC 9111 §4.3.4).
    fn on_not_modified(
        &self,
        context: &mut Box<ExchangeContext>,
        stale: &Arc<StoredResponse>,
        epoch: PurgeEpoch,
        times: FetchTimes,
        lead: Option<FetchLeader>,
    ) -> Result<Response<ResponseBody>, ChainFailure> {
        let (miss, worker) = (self.miss, self.worker);
        let (mut stored, came) = (stale.head(), take_response(context));
        let refused = freshen_or_refuse(&mut stored.headers, &came.headers);
        if refused.is_some() {
            worker.generation.store.remove(miss.id, stale);
            end(lead, FetchOutcome::Pass);
            let report = CacheStatus::forwarded(miss.why).status(StatusCode::NOT_MODIFIED).detail(refused);
            let gone = || miss.gateway_timeout(worker, context, report.detail(Some(CONFIRMED_CONTENT_GONE)));
            return Ok(miss.serve(worker, context, stale, report).unwrap_or_else(gone));
        }
        stored.headers.entry(header::DATE).or_insert_with(date_header);
        context.response = Some(stored);
        let body = ResponseBody::Full(Default::default());
        let storage = self.decide_storage(context, &body, times)?;
        let mut stored = take_response(context);
        let mut own = HeaderMap::new();
        let (store, key) = (&worker.generation.store, &miss.cache_key.key);
        let report = CacheStatus::forwarded(miss.why).status(StatusCode::NOT_MODIFIED);
        let (object, report, outcome) = match storage {
            StoreDecision::Store(mut storage) => {
                // Hidden tags are not in the stored head, so the old ones stay valid unless the 304 brings new ones.
                if storage.tags.is_empty() {
                    storage.tags.clone_from(&stale.variant.tags);
                }
                own = extract_fields(&storage.dropped, &mut stored.headers);
                let object = self.object(context, stored, stale.content.clone(), storage, times);
                let object = Arc::new(object.with_sequence(stale.sequence));
                // A response that is still arriving is inserted by its `Filling`.
                if !matches!(object.content, Content::Filling(_)) {
                    store.insert(miss.id, key, object.clone(), &epoch);
                }
                miss.stage.figures(worker).stored.add(1);
                (object.clone(), report.stored(), FetchOutcome::Object(object, epoch))
            }
            StoreDecision::Refuse(refusal) => {
                self.mark_uncacheable(StatusCode::NOT_MODIFIED, &refusal);
                let (content, rules) = (stale.content.clone(), Default::default());
                let object = StoredResponse::new(VariantInfo::default(), &stored, content, rules, times.received_ms);
                (Arc::new(object), report, FetchOutcome::Pass)
            }
        };
        end(lead, outcome);
        let gone = || miss.gateway_timeout(worker, context, report.detail(Some(CONFIRMED_CONTENT_GONE)));
        let mut response = miss.serve(worker, context, &object, report).unwrap_or_else(gone);
        response.headers_mut().extend(own);
        Ok(response)
    }

    /// Starts to store the response while it arrives. The client of the fetch reads it from the store, as all other
    /// clients do.
    fn store(
        &self,
        context: &mut Box<ExchangeContext>,
        fetched: StorableResponse,
        lead: Option<FetchLeader>,
    ) -> Response<ResponseBody> {
        let StorableResponse { body, storage, epoch, times } = fetched;
        let (miss, worker) = (self.miss, self.worker);
        let mut came = take_response(context);
        if !came.headers.contains_key(header::DATE) {
            came.headers.insert(header::DATE, date_header());
        }
        let own = extract_fields(&storage.dropped, &mut came.headers);
        let status = came.status;
        let fill = SharedBody::new(body.size_hint().exact());
        let object = self.object(context, came, Content::Filling(fill.clone()), storage, times);
        let object = Arc::new(object.with_sequence(worker.generation.store.number()));
        let report = CacheStatus::forwarded(miss.why).status(status).stored();
        // The client's reader has to exist before the response may turn out to be too long.
        let response = miss.serve(worker, context, &object, report);
        if let Some(lead) = &lead {
            lead.bring(object.clone(), epoch.clone());
        }
        let route = &worker.generation.routes[self.destination.route];
        let filling = StoreWriter {
            fill,
            object,
            lead,
            room: worker.generation.store.reserve(&route.arriving.memory),
            arriving_on_disk: route.arriving.disk.clone(),
            store: worker.generation.store.clone(),
            id: miss.id,
            key: miss.cache_key.key.clone(),
            epoch,
            max: max_in_memory(worker),
            longest: longest(worker),
            into: WriteTarget::Memory,
            backlog: ReaderBacklog::new(worker.buffers.clone(), route.response_buffer, context.peer.waiting.clone()),
            exchange: FetchName::of(context),
            places: worker.left_fetches(self.destination.upstream).clone(),
            route: self.destination.route,
            place: self.place.take(),
            figures: miss.stage.figures(worker).clone(),
        };
        // Requests on other workers may read the response, and those workers may outlive this one.
        let alive = worker.alive.upgrade();
        spawn(Task::CacheFill, async move {
            filling.run(body).await;
            drop(alive);
        });
        let gone = || miss.gateway_timeout(worker, context, report.detail(Some(FETCHED_CONTENT_GONE)));
        let mut response = response.unwrap_or_else(gone);
        response.headers_mut().extend(own);
        response
    }

    fn object(
        &self,
        context: &ExchangeContext,
        came: response::Parts,
        content: Content,
        storage: Storage,
        times: FetchTimes,
    ) -> StoredResponse {
        let mut uri = Vec::new();
        context.put_uri(&mut uri);
        let key = self.miss.stage.needs(self.worker).policy_key(&self.miss.cache_key.key);
        let uri = String::from_utf8(uri).ok().filter(|uri| uri.as_bytes() != key);
        let selectors = VaryValue::from_request(storage.vary.into_iter(), &context.request.headers);
        let variant_info = VariantInfo::new(self.miss.scope, selectors, uri.map(Into::into), storage.tags);
        StoredResponse::new(variant_info, &came, content, storage.rules, times.received_ms)
    }

    /// Returns the response to this client only, without storing it.
    fn pass_through(
        &self,
        context: &mut ExchangeContext,
        body: ResponseBody,
        refusal: Option<Refusal>,
    ) -> Response<ResponseBody> {
        let mut came = take_response(context);
        let status = came.status;
        let detail = refusal.map(|refusal| match refusal {
            Refusal::Other(why) => why,
            refusal => REFUSALS[refusal_index(&refusal)].into(),
        });
        let report = CacheStatus::forwarded(self.miss.why).status(status).detail(detail.as_deref());
        report.append_to(self.miss.stage.needs(self.worker), Some(&self.miss.cache_key.key), &mut came.headers);
        // The request to the upstream was unconditional, so the client's conditions are evaluated here.
        if conditions::client_has_it(&came, came.headers.get(header::LAST_MODIFIED), &context.request.headers) {
            return hit::not_modified(came);
        }
        let is_head = context.request.method == Method::HEAD;
        Response::from_parts(came, if is_head { ResponseBody::Full(Default::default()) } else { body })
    }

    /// Marks the cache key as hit-for-miss, and removes the stored response that is not valid any more.
    fn mark_uncacheable(&self, status: StatusCode, refusal: &Refusal) {
        let (store, miss, now) = (&self.worker.generation.store, self.miss, now_ms());
        // A client's own error must not remove what other clients get.
        let is_gone = status == StatusCode::NOT_FOUND || status == StatusCode::GONE;
        let is_own = status.is_client_error() && !is_gone || matches!(refusal, Refusal::Authorization);
        if status.is_server_error() || is_own {
            return;
        }
        if let Some(Stale { object, .. }) = &miss.stale
            && !object.is_fresh(now)
            && !matches!(refusal, Refusal::SetCookie)
        {
            store.remove(miss.id, object);
        }
        store.mark_hit_for_miss(miss.id, &miss.cache_key.key, now);
    }
}

/// Whether a request needs a connection to an endpoint of its own, although its upstream has connections that other
/// requests share.
pub fn needs_own_connection(worker: &WorkerState, upstream: Option<UpstreamId>, request: &request::Parts) -> bool {
    let Some(upstream_id) = upstream else { return false };
    let endpoints = worker.endpoint_views(upstream_id);
    let mut shared = endpoints.list.iter().filter(|view| !view.pool.is_exclusive()).peekable();
    if shared.peek().is_none() {
        // No field of the request has to be looked at.
        return false;
    }
    let target = request.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let size = RequestHeadSize::of(&request.method, target, &request.headers);
    shared.any(|view| !view.pool.may_share(size))
}

/// Whether a client's request waits or is rejected by a limit of its upstream under which others have room.
pub fn is_held_back(worker: &WorkerState, destination: Destination, client: Holder) -> bool {
    destination.upstream.is_some_and(|upstream| worker.generation.upstreams[upstream].holds_back(client))
}

/// Returns whether a failure would also occur for other requests.
fn is_shared_failure(kind: FailureKind) -> bool {
    !matches!(
        kind,
        FailureKind::PluginError
            | FailureKind::RequestError
            | FailureKind::RequestTimeout
            | FailureKind::ResponseHeadSize
            | FailureKind::LoopDetected
            | FailureKind::ProtocolError
            | FailureKind::ConnectionTerminated
    )
}

/// Whether a 304 is about another response than the stored one, by strong entity tags.
fn is_other_etag(stored: &HeaderMap, came: &HeaderMap) -> bool {
    let strong = |fields: &HeaderMap| fields.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")).cloned();
    matches!((strong(stored), strong(came)), (Some(stored), Some(came)) if stored != came)
}

/// Returns the current time as a `Date` value.
fn date_header() -> HeaderValue {
    HeaderValue::from_str(&http_date()).unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

/// The reason for not storing a response that only the disk has room for, after a write has failed.
const DISK_FAILED: &str = REFUSALS[9];

/// The reason for not storing a response that came from another upstream.
const OTHER_UPSTREAM: &str = "another-upstream";

/// Removes from a head the fields that only this client may get, and returns them.
fn extract_fields(names: &[HeaderName], fields: &mut HeaderMap) -> HeaderMap {
    let mut own = HeaderMap::new();
    for name in names {
        own.extend(fields.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        fields.remove(name);
    }
    own
}

/// Returns the maximum length of content that is stored in memory, in bytes.
pub fn max_in_memory(worker: &WorkerState) -> u64 {
    worker.generation.store_limits.object.min(worker.generation.store.max_entry_bytes())
}

/// Returns the maximum length of content that is stored at all, in bytes.
fn longest(worker: &WorkerState) -> u64 {
    let (store, limits) = (&worker.generation.store, &worker.generation.store_limits);
    let on_disk =
        store.disk().zip(limits.disk.as_ref()).map_or(0, |(disk, limits)| limits.object.min(disk.max_entry_bytes()));
    on_disk.max(max_in_memory(worker))
}

/// Updates stored fields by those of a 304. Returns the `detail` of `Cache-Status` if the 304 can't be used.
fn freshen_or_refuse(stored: &mut HeaderMap, not_modified: &HeaderMap) -> Option<&'static str> {
    if is_other_etag(stored, not_modified) {
        // The 304 refers to a response that the store doesn't have (RFC 9111 §4.3.4).
        return Some("other-etag");
    }
    (!freshen(stored, not_modified)).then_some("too-many-fields")
}

fn end(lead: Option<FetchLeader>, outcome: FetchOutcome) {
    if let Some(lead) = lead {
        lead.end(outcome);
    }
}

fn take_response(context: &mut ExchangeContext) -> response::Parts {
    context.response.take().unwrap_or_else(|| Response::new(()).into_parts().0)
}

/// Returns the index of a refusal in [`REFUSALS`].
fn refusal_index(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::NoStore => 0,
        Refusal::Private => 1,
        Refusal::Authorization => 2,
        Refusal::Status => 3,
        Refusal::NoLifetime => 4,
        Refusal::SetCookie => 5,
        Refusal::Vary => 6,
        Refusal::TooLarge => 7,
        Refusal::Other(why) if &**why == DISK_FAILED => 9,
        Refusal::Other(_) => 8,
    }
}
