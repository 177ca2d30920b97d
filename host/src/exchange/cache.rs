//! The cache in a plugin chain: answers a request from the store, bypasses the cache, or fetches the response below the
//! cache, once for all requests that can share it.

mod cache_status;
mod fetch;
mod hit;
mod store_writer;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode, request};

use crate::context::{CacheOutcome, Head};
use crate::error::{Error, Kind};
use crate::exchange::chain::{self, BalancerEdits, Depth, Failed, Failing};
use crate::exchange::record;
use crate::exchange::response_body::ResponseBody;
use crate::generation::{Route, Running};
use crate::net::deadline::Clock;
use crate::plugin::cache_policy::{self, BypassReason, Lookup, Place, Reuse, StoredResponse};
use crate::plugin::configured::CacheNeeds;
use crate::plugin::instance::{Instance, Trap};
use crate::store::collapse::{Joined, Landing, landed};
use crate::store::disk::Filed;
use crate::store::index::Found;
use crate::store::purge_log::Moment;
use crate::store::stored_response::{Content, Object};
use crate::store::unix_time::now_ms;
use crate::system::supervise::{Task, spawn};
use crate::telemetry::metrics::CacheFigures;
use cache_status::{Forward, Report};
use fetch::Fetch;

/// The result of looking up a request in the cache.
pub enum Looked {
    /// The request is answered from the store.
    Served(Response<ResponseBody>),
    /// The cache is bypassed for the request and for its response.
    Past(Past),
    /// The store can't answer the request, or the response is on disk; the caller runs [`Asking::run`].
    Ask(Box<Asking>),
}

/// A request that bypasses the cache.
pub struct Past {
    at: Depth,
    why: Forward,
    detail: Option<String>,
    /// The request as the cache received it; `None` unless its response may invalidate stored responses.
    changes: Option<Box<request::Parts>>,
}

/// A request that no response in memory can answer.
#[derive(Clone)]
pub struct Asking {
    seat: Seat,
    place: Place,
    id: u128,
    scope: u64,
    /// The stored response on disk, with the purge-log position of the lookup; `None` if there is none.
    filed: Option<(Arc<Filed>, Moment)>,
    /// The stored response that can't be served as it is; `None` if there is none.
    stale: Option<Stale>,
    why: Forward,
    /// Whether responses to this request are not expected to be cacheable, so that the request doesn't wait for another
    /// one.
    passes: bool,
}

/// A stored response that matches the request but can't be served as it is.
#[derive(Clone)]
struct Stale {
    object: Arc<Object>,
    /// Whether the fetch may be conditional, to revalidate the stored response.
    validates: bool,
}

/// A response from the store or from below the cache, for the plugins above it.
pub struct Answered {
    pub response: Response<ResponseBody>,
    /// The edits of the balancer to the response for this client only; `None` if there are none.
    pub edits: Option<BalancerEdits>,
    /// The position of the cache; the plugins above it still see the response.
    pub depth: Depth,
}

/// The stage of the cache in a chain.
#[derive(Clone, Copy)]
struct Seat {
    /// The position of the cache in the chain.
    at: Depth,
    /// The index of the configured plugin in the generation.
    binding: usize,
}

/// Looks up a request in the store. `is_plain` is `true` if the request has no content and doesn't switch protocols.
///
/// Never inlined into the caller, through which all exchanges pass, because it takes twice as much stack as the rest.
#[inline(never)]
pub fn look(
    running: &Rc<Running>,
    route_place: usize,
    at: Depth,
    (head, upstream): (&mut Box<Head>, usize),
    is_plain: bool,
    clock: &Rc<Clock>,
) -> Result<Looked, Failed> {
    let route = &running.generation.routes[route_place];
    let seat = Seat { at, binding: at.plugin(route) };
    let needs = seat.needs(running);
    let is_read = is_read(&head.request);
    let planned = needs.plan.as_ref().filter(|_| is_read).and_then(|plan| plan.key(head));
    let lookup = match planned {
        Some(key) => cache_policy::under(Place { key, fresh_will_do: true, only_if_cached: false }),
        None => seat
            .ask(running, head, |policy| policy.lookup(&needs.request, head))?
            .unwrap_or_else(|| Lookup::Bypass(BypassReason::Other(POLICY_FAILED.into()))),
    };
    let place = match lookup {
        Lookup::Under(place) if is_plain && is_read => place,
        lookup => {
            seat.count(running, head, CacheOutcome::Bypass);
            return Ok(Looked::Past(Past::of(at, lookup, &head.request)));
        }
    };
    let (store, now) = (&running.generation.store, now_ms());
    let id = store.id(&place.key);
    let scope = store.scope(&head.route, &running.generation.upstreams[upstream].name);
    let why = Forward::UriMiss;
    let mut asking = Asking { seat, place, id, scope, filed: None, stale: None, why, passes: false };
    let (key, fields) = (&asking.place.key, &head.request.headers);
    let found = store.find(id, key, scope, fields, now);
    let Found::Variant(object) = found else {
        asking.filed = store.filed(id, key, scope, fields);
        asking.passes = matches!(found, Found::Passes);
        if let Found::Others = found {
            asking.why = Forward::VaryMiss;
        }
        return Ok(Looked::Ask(Box::new(asking)));
    };
    Ok(match asking.weigh(running, (route_place, upstream), head, object, clock)? {
        Some(response) => Looked::Served(response),
        None => Looked::Ask(Box::new(asking)),
    })
}

impl Past {
    fn of(at: Depth, lookup: Lookup, request: &request::Parts) -> Self {
        let is_read = is_read(request);
        let (why, detail, changes) = match lookup {
            Lookup::Changes => (Forward::Method, None, !is_read),
            Lookup::Bypass(BypassReason::Method) => (Forward::Method, None, false),
            Lookup::Bypass(BypassReason::Request) => (Forward::Bypass, Some("request".into()), false),
            Lookup::Bypass(BypassReason::Configured) => (Forward::Bypass, Some("configured".into()), false),
            Lookup::Bypass(BypassReason::Other(why)) => (Forward::Bypass, Some(why), false),
            Lookup::Under(_) if !is_read => (Forward::Method, None, false),
            Lookup::Under(_) => (Forward::Bypass, Some("content".into()), false),
        };
        Past { at, why, detail, changes: changes.then(|| Box::new(request.clone())) }
    }

    /// Returns the position of the cache in the chain.
    pub fn depth(&self) -> Depth {
        self.at
    }

    /// Handles the response in `head`: invalidates stored responses if necessary, and adds `Cache-Status`.
    pub fn come_back(self, running: &Running, route: &Route, head: &mut Head) {
        let seat = Seat { at: self.at, binding: self.at.plugin(route) };
        let needs = seat.needs(running);
        let Some(status) = head.response.as_ref().map(|response| response.status) else { return };
        if let Some(request) = self.changes.filter(|_| status.is_success() || status.is_redirection()) {
            // The policy receives the request as the cache received it, so that keys are the same as in lookups.
            let sent = std::mem::replace(&mut head.request, *request);
            let keys = seat.tell(running, head, |policy| policy.changed(&needs.response, head));
            head.request = sent;
            let store = &running.generation.store;
            keys.unwrap_or_default().iter().for_each(|key| store.change(store.id(key)));
        }
        let report = Report::forwarded(self.why).status(status).detail(self.detail.as_deref());
        if let Some(response) = &mut head.response {
            report.tell(needs, None, &mut response.headers);
        }
    }
}

impl Asking {
    /// Answers the request: from disk, by collapsing with another request's fetch, or by a fetch of its own.
    pub async fn run(
        &mut self,
        running: &Rc<Running>,
        (route, upstream): (usize, usize),
        head: &mut Box<Head>,
        clock: &Rc<Clock>,
    ) -> Result<Answered, Failed> {
        if let Some((filed, asked)) = self.filed.take()
            && let Some(object) = self.recall(running, &filed, asked).await
            && let Some(response) = self.weigh(running, (route, upstream), head, object, clock)?
        {
            return Ok(self.answered(response));
        }
        if self.place.only_if_cached {
            self.seat.count(running, head, CacheOutcome::Miss);
            return Ok(self.answered(self.timeout(running)));
        }
        let mut turns = 0;
        let lead = loop {
            // If the policy doesn't accept a fresh response without a check, the request fetches on its own.
            if self.passes || !self.place.fresh_will_do || turns == MOST_TURNS {
                break None;
            }
            turns += 1;
            let name = self.flight(running, head);
            match running.generation.store.flights.join(name) {
                Joined::Lead(lead) => {
                    let newer = self.newer(running, head);
                    if let Some(response) = newer.and_then(|it| self.serve(running, head, &it, Report::hit())) {
                        self.seat.count(running, head, CacheOutcome::Hit);
                        return Ok(self.answered(response));
                    }
                    break Some(lead);
                }
                Joined::Follow(mut flight) => match landed(&mut flight).await {
                    Landing::Object(object, asked) if self.is_outdated(running, &object, asked) => {
                        running.generation.store.flights.outdate(name, &flight);
                    }
                    Landing::Object(object, _) => {
                        if let Some(response) = self.shared(running, head, &object) {
                            self.seat.count(running, head, CacheOutcome::Collapsed);
                            return Ok(self.answered(response));
                        }
                    }
                    Landing::Failed(kind) => {
                        let cause = "the request that it waited for failed";
                        let failed = Failed::from(Error::new(kind, cause));
                        self.seat.count(running, head, CacheOutcome::Collapsed);
                        return self.instead(running, head, None, failed);
                    }
                    Landing::Pass => self.passes = true,
                    Landing::Left | Landing::Pending => {}
                },
            }
        };
        let outcome = match self.why {
            Forward::Stale | Forward::Request => CacheOutcome::Validated,
            _ => CacheOutcome::Miss,
        };
        self.seat.count(running, head, outcome);
        Fetch { asking: self, running, route, upstream, clock }.run(head, lead).await
    }

    /// Reads a response from disk. Concurrent reads of one file are collapsed. `None` if the file can't be read.
    async fn recall(&self, running: &Running, filed: &Arc<Filed>, asked: Moment) -> Option<Arc<Object>> {
        let (store, most) = (&running.generation.store, fetch::most_in_memory(running));
        loop {
            match store.flights.join(filed.flight()) {
                Joined::Lead(lead) => {
                    let recalled = store.recall(self.id, &self.place.key, (filed, asked), most).await;
                    let landing = recalled.clone().map_or(Landing::Pass, |object| Landing::Object(object, asked));
                    lead.end(landing);
                    return recalled;
                }
                Joined::Follow(mut flight) => match landed(&mut flight).await {
                    Landing::Object(object, _) => return Some(object),
                    Landing::Left | Landing::Pending => {}
                    Landing::Pass | Landing::Failed(_) => return None,
                },
            }
        }
    }

    /// Evaluates a stored response that matches the request. Returns it if it may be served; otherwise keeps it for
    /// validation.
    fn weigh(
        &mut self,
        running: &Rc<Running>,
        places: (usize, usize),
        head: &mut Head,
        object: Arc<Object>,
        clock: &Rc<Clock>,
    ) -> Result<Option<Response<ResponseBody>>, Failed> {
        let (needs, now) = (self.seat.needs(running), now_ms());
        let is_fresh = object.is_fresh(now);
        let reuse = if is_fresh && self.place.fresh_will_do {
            Reuse::Serve
        } else {
            let described = described(&object, now);
            let reuse = self.seat.ask(running, head, |policy| policy.stored(&needs.request, head, described))?;
            reuse.unwrap_or(Reuse::Validate)
        };
        if let Reuse::Serve | Reuse::ServeAndRevalidate = reuse
            && let Some(response) = self.serve(running, head, &object, Report::hit())
        {
            let outcome = if is_fresh { CacheOutcome::Hit } else { CacheOutcome::Stale };
            self.seat.count(running, head, outcome);
            if reuse == Reuse::ServeAndRevalidate {
                self.stale = Some(Stale { object, validates: true });
                self.clone().revalidate(running, places, head, clock);
            }
            return Ok(Some(response));
        }
        self.why = if is_fresh { Forward::Request } else { Forward::Stale };
        self.stale = Some(Stale { object, validates: reuse != Reuse::Ignore });
        Ok(None)
    }

    /// Starts a background revalidation, unless a fetch of the response is already in progress.
    fn revalidate(mut self, running: &Rc<Running>, (route, upstream): (usize, usize), head: &Head, clock: &Rc<Clock>) {
        let Joined::Lead(lead) = running.generation.store.flights.join(self.flight(running, head)) else { return };
        // Another request may have just finished the revalidation.
        if self.newer(running, head).is_some() {
            return;
        }
        self.why = Forward::Stale;
        let (running, in_chain) = (running.clone(), running.enter_chain());
        let (clock, mut head) = (clock.clone(), Box::new(head.copy()));
        self.seat.count(&running, &mut head, CacheOutcome::Validated);
        spawn(Task::Revalidate, async move {
            let [total] = clock.deadlines();
            total.set(running.generation.routes[route].timeout.unwrap_or(LONGEST));
            let fetch = Fetch { asking: &self, running: &running, route, upstream, clock: &clock };
            let validated = total.until_met(fetch.run(&mut head, Some(lead))).await;
            let late = |_| Error::new(Kind::ResponseTimeout, "the route's timeout has passed").met("timeout").into();
            if let Err(Failed { error, .. }) = validated.unwrap_or_else(|met| Err(late(met))) {
                record::log(&error, Some(&head), "stored response not validated", false);
            }
            drop(in_chain);
        });
    }

    /// Returns the name of the fetch that answers the request.
    fn flight(&self, running: &Running, head: &Head) -> u128 {
        running.generation.store.flight(self.id, self.scope, &head.request.headers)
    }

    /// Returns whether another request's response was purged after that request had begun its fetch.
    fn is_outdated(&self, running: &Running, object: &Object, asked: Moment) -> bool {
        let store = &running.generation.store;
        store.was_purged(asked, self.id, &self.place.key, &object.label)
    }

    /// Returns a fresh response that was stored after the lookup; `None` if there is none.
    fn newer(&self, running: &Running, head: &Head) -> Option<Arc<Object>> {
        let (store, now) = (&running.generation.store, now_ms());
        match store.find(self.id, &self.place.key, self.scope, &head.request.headers, now) {
            Found::Variant(object) if object.is_fresh(now) => Some(object),
            _ => None,
        }
    }

    /// Returns another request's response if it may be served to this request; otherwise `None`.
    fn shared(&mut self, running: &Running, head: &Head, object: &Arc<Object>) -> Option<Response<ResponseBody>> {
        if object.label.scope != self.scope || !object.label.selectors.select(&head.request.headers) {
            // The stored response shows by now which fields it depends on. If it is still arriving, the request doesn't
            // wait again.
            self.passes |= matches!(object.content, Content::Filling(_));
            return None;
        }
        if !object.is_fresh(now_ms()) {
            self.passes = true;
            return None;
        }
        let report = Report::forwarded(self.why).collapsed();
        let response = self.serve(running, head, object, report);
        self.passes |= response.is_none();
        response
    }

    /// Returns a stale response instead of the failure if the policy allows that; otherwise returns the failure.
    fn instead(
        &self,
        running: &Running,
        head: &mut Head,
        status: Option<StatusCode>,
        failed: Failed,
    ) -> Result<Answered, Failed> {
        let Some(response) = self.covered(running, head, status) else { return Err(failed) };
        record::log(&failed.error, Some(head), "exchange failed, a stored response stands for it", false);
        Ok(self.answered(response))
    }

    fn covered(
        &self,
        running: &Running,
        head: &mut Head,
        status: Option<StatusCode>,
    ) -> Option<Response<ResponseBody>> {
        let object = &self.stale.as_ref()?.object;
        let (needs, now) = (self.seat.needs(running), now_ms());
        let code = status.map(|status| status.as_u16());
        let allowed = self
            .seat
            .tell(running, head, |policy| policy.upstream_error(&needs.request, head, described(object, now), code));
        if allowed != Some(true) {
            return None;
        }
        self.seat.count(running, head, CacheOutcome::ErrorCovered);
        let mut report = Report::forwarded(Forward::Stale).detail(Some("stale-if-error"));
        if let Some(status) = status {
            report = report.status(status);
        }
        self.serve(running, head, object, report)
    }

    /// Returns a stored response with `Cache-Status`; `None` if the beginning of its content is gone.
    fn serve(&self, running: &Running, head: &Head, object: &Object, report: Report) -> Option<Response<ResponseBody>> {
        let now = now_ms();
        let mut response = hit::reply(object, &head.request, now)?;
        let ttl = object.rules.lifetime_ms as i64 - object.age_ms(now) as i64;
        report.ttl(ttl.div_euclid(1000)).tell(self.seat.needs(running), Some(&self.place.key), response.headers_mut());
        Some(response)
    }

    /// Returns 504 for a request that can't be answered from the store.
    fn timeout(&self, running: &Running) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::Full(Default::default()));
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        let report = Report::missed().detail(Some("only-if-cached"));
        report.tell(self.seat.needs(running), Some(&self.place.key), response.headers_mut());
        response
    }

    fn answered(&self, response: Response<ResponseBody>) -> Answered {
        Answered { response, edits: None, depth: self.seat.at }
    }
}

/// The reason in `Cache-Status` if the cache is bypassed because its policy failed.
const POLICY_FAILED: &str = "policy-failed";

/// The maximum number of fetches of other requests that a request waits for.
const MOST_TURNS: usize = 3;

/// The timeout of a background revalidation if the route has none.
const LONGEST: Duration = Duration::from_secs(600);

impl Seat {
    fn needs(self, running: &Running) -> &CacheNeeds {
        static NONE: CacheNeeds =
            CacheNeeds { request: Vec::new(), response: Vec::new(), plan: None, name: None, tells_key: false };
        running.generation.bindings[self.binding].cache.as_ref().unwrap_or(&NONE)
    }

    fn figures(self, running: &Running) -> &CacheFigures {
        &running.caches[self.binding]
    }

    /// Records the cache outcome of the request for metrics and the access log.
    fn count(self, running: &Running, head: &mut Head, outcome: CacheOutcome) {
        head.cache = Some(outcome);
        self.figures(running).requests(outcome).add(1);
    }

    /// Calls the policy for a decision. `None` if the call failed and the plugin's `on-error` lets the exchange
    /// continue.
    fn ask<R>(
        self,
        running: &Running,
        head: &Head,
        call: impl FnOnce(&mut Instance) -> Result<R, Trap>,
    ) -> Result<Option<R>, Failed> {
        match self.call(running, call) {
            Ok(answer) => Ok(Some(answer)),
            Err(trap) => {
                let failing = Failing { hook: "cache-policy", head };
                chain::on_error(running, self.binding, trap, self.at, failing).map(|()| None)
            }
        }
    }

    /// Calls the policy when its failure can't change the exchange any more; `None` if the call failed.
    fn tell<R>(self, running: &Running, head: &Head, call: impl FnOnce(&mut Instance) -> Result<R, Trap>) -> Option<R> {
        let answer = self.call(running, call);
        answer.inspect_err(|trap| running.plugin_failed(self.binding, "cache-policy", trap, Some(head))).ok()
    }

    fn call<R>(self, running: &Running, call: impl FnOnce(&mut Instance) -> Result<R, Trap>) -> Result<R, Trap> {
        running.call(self.binding, call)
    }
}

fn is_read(request: &request::Parts) -> bool {
    request.method == Method::GET || request.method == Method::HEAD
}

/// Returns the description of a stored response that a policy receives.
fn described(object: &Object, now_ms: u64) -> StoredResponse {
    let rules = &object.rules;
    StoredResponse {
        age_ms: object.age_ms(now_ms),
        lifetime_ms: rules.lifetime_ms,
        stale_while_revalidate_ms: rules.stale_while_revalidate_ms,
        stale_if_error_ms: rules.stale_if_error_ms,
        must_revalidate: rules.must_revalidate,
        purged: object.label.is_purged(),
    }
}
