//! What a cache in the chain does with a request: answers it from what is stored, lets it past, or asks below, once for
//! all who want the same.

mod fetch;
mod filling;
mod reply;
mod report;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode, request};

use crate::body::ResponseBody;
use crate::cache::disk::Filed;
use crate::cache::flight::{Joined, Landing, landed};
use crate::cache::index::Found;
use crate::cache::now_ms;
use crate::cache::object::{Content, Object};
use crate::cache::purges::Moment;
use crate::chain::{self, BalancerEdits, Depth, Failed, Failing};
use crate::clock::Clock;
use crate::ending;
use crate::error::{Error, Kind};
use crate::generation::{Route, Running};
use crate::head::{CacheOutcome, Head};
use crate::metrics::CacheFigures;
use crate::plugin::binding::CacheNeeds;
use crate::plugin::instance::{Instance, Trap};
use crate::plugin::policy::{self, BypassReason, Lookup, Place, Reuse, StoredResponse};
use crate::supervise::{Task, spawn};
use fetch::Fetch;
use report::{Forward, Report};

/// What becomes of a request at a cache.
pub enum Looked {
    /// It is answered.
    Served(Response<ResponseBody>),
    /// It goes past, and its response comes past.
    Past(Past),
    /// The upstream is to be asked.
    Ask(Box<Asking>),
}

/// A request that went past a cache.
pub struct Past {
    at: Depth,
    why: Forward,
    detail: Option<String>,
    /// The request as it came to the cache, if its response may have changed what is stored.
    changes: Option<Box<request::Parts>>,
}

/// A request that nothing answers which is in memory.
#[derive(Clone)]
pub struct Asking {
    seat: Seat,
    place: Place,
    id: u128,
    scope: u64,
    /// What is stored on disk.
    filed: Option<(Arc<Filed>, Moment)>,
    /// What is stored and can't be served as it is.
    stale: Option<Stale>,
    why: Forward,
    /// Responses there are most likely nobody else's.
    passes: bool,
}

/// Something stored that fits the request.
#[derive(Clone)]
struct Stale {
    object: Arc<Object>,
    /// Whether the upstream may be asked just whether it still holds.
    validates: bool,
}

/// A response from below or from the store, for those above.
pub struct Answered {
    pub response: Response<ResponseBody>,
    /// What the balancer wants done for this client alone.
    pub edits: Option<BalancerEdits>,
    /// Those above the cache.
    pub depth: Depth,
}

/// A cache in a chain.
#[derive(Clone, Copy)]
struct Seat {
    /// Those above it.
    at: Depth,
    /// Its place in the generation.
    binding: usize,
}

/// Looks for a stored response. `is_plain` says that the request has no content and wants no other protocol.
///
/// Never a part of its caller, through which all exchanges pass: it takes twice as much of the stack as all else there.
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
        Some(key) => policy::under(Place { key, fresh_will_do: true, only_if_cached: false }),
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

    /// Those above the cache.
    pub fn depth(&self) -> Depth {
        self.at
    }

    /// Takes note of the response in `head`, as it comes past.
    pub fn come_back(self, running: &Running, route: &Route, head: &mut Head) {
        let seat = Seat { at: self.at, binding: self.at.plugin(route) };
        let needs = seat.needs(running);
        let Some(status) = head.response.as_ref().map(|response| response.status) else { return };
        if let Some(request) = self.changes.filter(|_| status.is_success() || status.is_redirection()) {
            // The policy sees what it would see of a request that looks for what is stored.
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
    /// Asks the upstream, or waits for what another asks.
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
            // Whoever wants to be sure that it is of now asks by itself.
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

    /// What is in a file, read once for all who want it now.
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

    /// The response from something stored that fits the request, where it may be served; if not, it is kept in mind.
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

    /// Validates behind the client's back, unless somebody does already.
    fn revalidate(mut self, running: &Rc<Running>, (route, upstream): (usize, usize), head: &Head, clock: &Rc<Clock>) {
        let Joined::Lead(lead) = running.generation.store.flights.join(self.flight(running, head)) else { return };
        // Another may have just done so.
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
                ending::log(&error, Some(&head), "stored response not validated");
            }
            drop(in_chain);
        });
    }

    /// The name of the fetch that answers the request.
    fn flight(&self, running: &Running, head: &Head) -> u128 {
        running.generation.store.flight(self.id, self.scope, &head.request.headers)
    }

    /// Whether what another has fetched was purged since that was begun.
    fn is_outdated(&self, running: &Running, object: &Object, asked: Moment) -> bool {
        let store = &running.generation.store;
        store.was_purged(asked, self.id, &self.place.key, &object.label)
    }

    /// What has been stored since it was looked for.
    fn newer(&self, running: &Running, head: &Head) -> Option<Arc<Object>> {
        let (store, now) = (&running.generation.store, now_ms());
        match store.find(self.id, &self.place.key, self.scope, &head.request.headers, now) {
            Found::Variant(object) if object.is_fresh(now) => Some(object),
            _ => None,
        }
    }

    /// What another has fetched, where it may be served.
    fn shared(&mut self, running: &Running, head: &Head, object: &Arc<Object>) -> Option<Response<ResponseBody>> {
        if object.label.scope != self.scope || !object.label.selectors.select(&head.request.headers) {
            // By now it is known on which fields it depends, if it is stored; where it isn't yet, nobody waits again.
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

    /// What is stored in place of what failed, where the policy allows that.
    fn instead(
        &self,
        running: &Running,
        head: &mut Head,
        status: Option<StatusCode>,
        failed: Failed,
    ) -> Result<Answered, Failed> {
        let Some(response) = self.covered(running, head, status) else { return Err(failed) };
        ending::log(&failed.error, Some(head), "exchange failed, a stored response stands for it");
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

    /// The response from something stored; none if its beginning is gone.
    fn serve(&self, running: &Running, head: &Head, object: &Object, report: Report) -> Option<Response<ResponseBody>> {
        let now = now_ms();
        let mut response = reply::reply(object, &head.request, now)?;
        let ttl = object.rules.lifetime_ms as i64 - object.age_ms(now) as i64;
        report.ttl(ttl.div_euclid(1000)).tell(self.seat.needs(running), Some(&self.place.key), response.headers_mut());
        Some(response)
    }

    /// The response where nothing stored will do and nobody may be asked.
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

/// Why the cache is left out where its policy failed.
const POLICY_FAILED: &str = "policy-failed";

/// A request waits for others' fetches so often at most.
const MOST_TURNS: usize = 3;

/// How long a validation behind a client's back may take where its route says nothing.
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

    /// Tells figures and logs what became of a request.
    fn count(self, running: &Running, head: &mut Head, outcome: CacheOutcome) {
        head.cache = Some(outcome);
        self.figures(running).requests(outcome).add(1);
    }

    /// Asks the policy what decides the exchange; none where it failed, and the exchange goes on all the same.
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

    /// Asks the policy when the exchange is decided: none where it failed.
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

/// A stored response, as a policy is told of it.
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
