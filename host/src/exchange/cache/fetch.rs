//! Fetching a response from below the cache, and storing it if the policy decides so.

use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, response};
use http_body::Body;

use super::cache_status::Report;
use super::hit;
use super::store_writer::{Destination, Filling};
use super::{Answered, Asking, POLICY_FAILED, Stale};
use crate::body::upload::{RequestBody, Upload};
use crate::context::Head;
use crate::error::Kind;
use crate::exchange::chain::{self, BalancerEdits, Depth, Down, Failed};
use crate::exchange::forward::{Sending, forward};
use crate::exchange::response_body::ResponseBody;
use crate::generation::Running;
use crate::net::deadline::Clock;
use crate::plugin::cache_policy::{Keep, Refusal, Storage, Times};
use crate::protocol::hop_by_hop::{self, Hop};
use crate::store::collapse::{Landing, Lead};
use crate::store::purge_log::Moment;
use crate::store::shared_body::Fill;
use crate::store::stored_response::{Content, Object, freshen};
use crate::store::unix_time::now_ms;
use crate::store::variant::Label;
use crate::store::vary::Selectors;
use crate::system::supervise::{Task, spawn};
use crate::telemetry::metrics::REFUSALS;

/// A fetch on behalf of a request.
pub struct Fetch<'a> {
    pub asking: &'a Asking,
    pub running: &'a Rc<Running>,
    pub route: usize,
    pub upstream: usize,
    pub clock: &'a Rc<Clock>,
}

/// A response from below the cache; its head is in the exchange context.
struct Below {
    body: ResponseBody,
    edits: Option<BalancerEdits>,
    /// Whether the response is from the upstream that the stored responses belong to.
    is_ours: bool,
}

impl Fetch<'_> {
    /// Fetches the response and publishes the result to the followers.
    pub async fn run(self, head: &mut Box<Head>, lead: Option<Lead>) -> Result<Answered, Failed> {
        let (asking, running) = (self.asking, self.running);
        let asked = running.generation.store.moment();
        // If the response is not expected to be cacheable, the client's own conditions and ranges are forwarded.
        let is_own =
            asking.passes && (hit::is_conditional(&head.request.headers) || head.request.method == Method::HEAD);
        let received = head.request.clone();
        let validating = if is_own { None } else { self.generalise(head) };
        let sent_ms = now_ms();
        let below = self.below(head).await;
        let received_ms = now_ms();
        let times = Times { received_ms, delay_ms: received_ms.saturating_sub(sent_ms) };
        head.request = received;
        let Below { body, edits, is_ours } = match below {
            Ok(below) => below,
            Err(failed) => {
                let kind = failed.error.kind;
                let answered = asking.instead(running, head, None, failed);
                // Errors that only this request may have caused are not published: a follower takes the lead over and
                // tries itself.
                if is_anybodys(kind) {
                    end(lead, Landing::Failed(kind));
                }
                return answered;
            }
        };
        let status = head.response.as_ref().map_or(StatusCode::BAD_GATEWAY, |response| response.status);
        if let (StatusCode::NOT_MODIFIED, Some(stale)) = (status, validating) {
            let response = self.validated(head, &stale, asked, times, lead)?;
            return Ok(Answered { edits, ..asking.answered(response) });
        }
        if status.is_server_error()
            && let Some(response) = asking.covered(running, head, Some(status))
        {
            // For the followers the fetch has failed too; each one serves its own stale response.
            end(lead, Landing::Failed(Kind::DestinationUnavailable));
            return Ok(Answered { edits, ..asking.answered(response) });
        }
        let response = if is_own {
            self.passed(head, body, None)
        } else {
            let keep = if is_ours { self.keep(head, &body, times)? } else { Err(Refusal::Other(ANOTHERS.into())) };
            match keep {
                Ok(storage) => self.stored(head, body, storage, asked, times, lead),
                Err(refusal) => {
                    self.refused(status, &refusal);
                    end(lead, Landing::Pass);
                    if hit::asks_for_part(head) {
                        drop(body);
                        return self.again(head, refusal).await;
                    }
                    self.passed(head, body, Some(refusal))
                }
            }
        };
        Ok(Answered { edits, ..asking.answered(response) })
    }

    /// Fetches again with the client's range, because the whole response can't be stored and may be long.
    async fn again(&self, head: &mut Box<Head>, refusal: Refusal) -> Result<Answered, Failed> {
        let received = head.request.clone();
        head.response = None;
        let below = self.below(head).await;
        head.request = received;
        match below {
            Ok(Below { body, edits, .. }) => {
                let response = self.passed(head, body, Some(refusal));
                Ok(Answered { edits, ..self.asking.answered(response) })
            }
            Err(failed) => self.asking.instead(self.running, head, None, failed),
        }
    }

    /// Rewrites the request to ask for the whole response or for revalidation. Returns the stored response to be
    /// revalidated; `None` if there is none.
    fn generalise(&self, head: &mut Head) -> Option<Arc<Object>> {
        let fields = &mut head.request.headers;
        hit::ask_for_all(fields);
        head.request.method = Method::GET;
        let stale = self.asking.stale.as_ref().filter(|stale| stale.validates)?;
        let (tag, modified) = (stale.object.field(&header::ETAG), stale.object.field(&header::LAST_MODIFIED));
        if let Some(tag) = tag {
            fields.insert(header::IF_NONE_MATCH, tag.clone());
        }
        if let Some(modified) = modified {
            fields.insert(header::IF_MODIFIED_SINCE, modified.clone());
        }
        tag.or(modified).map(|_| stale.object.clone())
    }

    /// Runs the request through the plugins below the cache to the upstream, and the response back up to the cache.
    async fn below(&self, head: &mut Box<Head>) -> Result<Below, Failed> {
        let (running, route) = (self.running, &self.running.generation.routes[self.route]);
        let (top, mut upstream) = (self.asking.seat.at.next(), self.upstream);
        let is_ours = |upstream| upstream == self.upstream;
        let (response, edits, depth) = match chain::down(running, route, top, head, &mut upstream)? {
            Down::Answer(response, depth) => (response.map(|content| ResponseBody::Full(content.into())), None, depth),
            Down::Forward | Down::Cache(_) => {
                // The validators of our stored response mean nothing to another upstream.
                if !is_ours(upstream) {
                    hit::ask_for_all(&mut head.request.headers);
                }
                let mut sending = Sending { body: RequestBody::Empty, upload: Upload::over(), hop: Hop::default() };
                let [step] = self.clock.deadlines();
                let forwarded = forward(running, upstream, head, &mut sending, &step).await?;
                (forwarded.response, forwarded.edits, Depth::whole(route))
            }
        };
        let (mut parts, body) = response.into_parts();
        hop_by_hop::response(&mut parts.headers);
        head.response = Some(parts);
        let plugins = depth.beyond(top);
        let body = match chain::up(running, route, plugins.clone(), head)? {
            Some(content) => ResponseBody::Full(content.into()),
            None => body,
        };
        let body = chain::filtered(running, route, plugins, head, body)?;
        Ok(Below { body, edits, is_ours: is_ours(upstream) })
    }
}

/// Decisions about a response.
impl Fetch<'_> {
    /// Decides whether the response is stored: the policy decides, if the host can store such a response at all.
    fn keep(
        &self,
        head: &mut Box<Head>,
        body: &ResponseBody,
        times: Times,
    ) -> Result<Result<Storage, Refusal>, Failed> {
        let (running, seat) = (self.running, self.asking.seat);
        let Some(response) = &head.response else { return Ok(Err(Refusal::Status)) };
        let is_whole = response.status != StatusCode::PARTIAL_CONTENT && response.status != StatusCode::NOT_MODIFIED;
        if !is_whole || response.status.is_informational() || matches!(body, ResponseBody::Switched(_)) {
            return Ok(Err(Refusal::Status));
        }
        let needs = seat.needs(running);
        let keep = seat.ask(running, head, |policy| policy.fetched(&needs.response, head, times))?;
        let is_too_long = body.size_hint().exact().is_some_and(|length| length > longest(running));
        let refusal = match keep.unwrap_or_else(|| Keep::Refuse(Refusal::Other(POLICY_FAILED.into()))) {
            Keep::Store(_) if is_too_long => Refusal::TooLarge,
            Keep::Store(storage) => return Ok(Ok(storage)),
            Keep::Refuse(refusal) => refusal,
        };
        seat.figures(running).refused[place(&refusal)].add(1);
        Ok(Err(refusal))
    }

    /// Handles a 304 for the stored response (RFC 9111 §4.3.4).
    fn validated(
        &self,
        head: &mut Box<Head>,
        stale: &Arc<Object>,
        asked: Moment,
        times: Times,
        lead: Option<Lead>,
    ) -> Result<Response<ResponseBody>, Failed> {
        let (asking, running) = (self.asking, self.running);
        let (mut stored, came) = (stale.head(), taken(head));
        let refused = if is_of_another(&stored.headers, &came.headers) {
            // The 304 refers to a response that the store doesn't have (RFC 9111 §4.3.4).
            Some("other-etag")
        } else {
            (!freshen(&mut stored.headers, &came.headers)).then_some("too-many-fields")
        };
        if refused.is_some() {
            running.generation.store.remove(asking.id, stale);
            end(lead, Landing::Pass);
            let report = Report::forwarded(asking.why).status(StatusCode::NOT_MODIFIED).detail(refused);
            return Ok(asking.serve(running, head, stale, report).unwrap_or_else(|| asking.timeout(running)));
        }
        stored.headers.entry(header::DATE).or_insert_with(today);
        head.response = Some(stored);
        let body = ResponseBody::Full(Default::default());
        let storage = self.keep(head, &body, times)?;
        let mut stored = taken(head);
        let mut own = HeaderMap::new();
        let (store, key) = (&running.generation.store, &asking.place.key);
        let report = Report::forwarded(asking.why).status(StatusCode::NOT_MODIFIED);
        let (object, report, landing) = match storage {
            Ok(mut storage) => {
                // Hidden tags are not in the stored head, so the old ones stay valid unless the 304 brings new ones.
                if storage.tags.is_empty() {
                    storage.tags.clone_from(&stale.label.tags);
                }
                own = take_out(&storage.dropped, &mut stored.headers);
                let object = self.object(head, stored, stale.content.clone(), storage, times);
                let object = Arc::new(object.numbered(stale.number));
                // A response that is still arriving is inserted by its `Filling`.
                if !matches!(object.content, Content::Filling(_)) {
                    store.insert(asking.id, key, object.clone(), asked);
                }
                asking.seat.figures(running).stored.add(1);
                (object.clone(), report.stored(), Landing::Object(object, asked))
            }
            Err(refusal) => {
                self.refused(StatusCode::NOT_MODIFIED, &refusal);
                let (content, rules) = (stale.content.clone(), Default::default());
                let object = Object::new(Label::default(), &stored, content, rules, times.received_ms);
                (Arc::new(object), report, Landing::Pass)
            }
        };
        end(lead, landing);
        let mut response = asking.serve(running, head, &object, report).unwrap_or_else(|| asking.timeout(running));
        response.headers_mut().extend(own);
        Ok(response)
    }

    /// Starts to store the response while it arrives; the client reads it from the store like all others.
    fn stored(
        &self,
        head: &mut Box<Head>,
        body: ResponseBody,
        storage: Storage,
        asked: Moment,
        times: Times,
        lead: Option<Lead>,
    ) -> Response<ResponseBody> {
        let (asking, running) = (self.asking, self.running);
        let mut came = taken(head);
        if !came.headers.contains_key(header::DATE) {
            came.headers.insert(header::DATE, today());
        }
        let own = take_out(&storage.dropped, &mut came.headers);
        let status = came.status;
        let fill = Fill::new(body.size_hint().exact());
        let object = self.object(head, came, Content::Filling(fill.clone()), storage, times);
        let object = Arc::new(object.numbered(running.generation.store.number()));
        let report = Report::forwarded(asking.why).status(status).stored();
        // The client's reader has to exist before the response may turn out to be too long.
        let response = asking.serve(running, head, &object, report);
        if let Some(lead) = &lead {
            lead.bring(object.clone(), asked);
        }
        let filling = Filling {
            fill,
            object,
            lead,
            room: running.generation.store.room(),
            store: running.generation.store.clone(),
            id: asking.id,
            key: asking.place.key.clone(),
            asked,
            most: most_in_memory(running),
            longest: longest(running),
            into: Destination::Memory,
        };
        asking.seat.figures(running).stored.add(1);
        // Requests on other workers may read the response, and those workers may outlive this one.
        let alive = running.alive.upgrade();
        spawn(Task::CacheFill, async move {
            filling.run(body).await;
            drop(alive);
        });
        let mut response = response.unwrap_or_else(|| asking.timeout(running));
        response.headers_mut().extend(own);
        response
    }

    fn object(&self, head: &Head, came: response::Parts, content: Content, storage: Storage, times: Times) -> Object {
        let mut uri = Vec::new();
        head.put_uri(&mut uri);
        let uri = String::from_utf8(uri).ok().filter(|uri| uri.as_bytes() != self.asking.place.key);
        let selectors = Selectors::of(storage.vary.into_iter(), &head.request.headers);
        let label = Label::new(self.asking.scope, selectors, uri.map(Into::into), storage.tags);
        Object::new(label, &came, content, storage.rules, times.received_ms)
    }

    /// Returns the response to this client only, without storing it.
    fn passed(&self, head: &mut Head, body: ResponseBody, refusal: Option<Refusal>) -> Response<ResponseBody> {
        let mut came = taken(head);
        let status = came.status;
        let detail = refusal.map(|refusal| match refusal {
            Refusal::Other(why) => why,
            refusal => REFUSALS[place(&refusal)].into(),
        });
        let report = Report::forwarded(self.asking.why).status(status).detail(detail.as_deref());
        report.tell(self.asking.seat.needs(self.running), Some(&self.asking.place.key), &mut came.headers);
        // The request to the upstream was unconditional, so the client's conditions are evaluated here.
        if hit::is_known(&came, came.headers.get(header::LAST_MODIFIED), &head.request.headers) {
            return hit::not_modified(came);
        }
        let is_head = head.request.method == Method::HEAD;
        Response::from_parts(came, if is_head { ResponseBody::Full(Default::default()) } else { body })
    }

    /// Marks the cache key as hit-for-miss, and removes the stored response that is not valid any more.
    fn refused(&self, status: StatusCode, refusal: &Refusal) {
        let (store, asking, now) = (&self.running.generation.store, self.asking, now_ms());
        // A client's own error must not remove what other clients get.
        let is_gone = status == StatusCode::NOT_FOUND || status == StatusCode::GONE;
        let is_own = status.is_client_error() && !is_gone || matches!(refusal, Refusal::Authorization);
        if status.is_server_error() || is_own {
            return;
        }
        if let Some(Stale { object, .. }) = &asking.stale
            && !object.is_fresh(now)
            && !matches!(refusal, Refusal::SetCookie)
        {
            store.remove(asking.id, object);
        }
        store.pass(asking.id, &asking.place.key, now);
    }
}

/// Returns whether a failure would also occur for other requests.
fn is_anybodys(kind: Kind) -> bool {
    !matches!(kind, Kind::PluginError | Kind::RequestError | Kind::ProtocolError | Kind::ConnectionTerminated)
}

/// Returns whether a 304 refers to another response than the stored one, by strong entity tags.
fn is_of_another(stored: &HeaderMap, came: &HeaderMap) -> bool {
    let strong = |fields: &HeaderMap| fields.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")).cloned();
    matches!((strong(stored), strong(came)), (Some(stored), Some(came)) if stored != came)
}

/// Returns the current time as a `Date` value.
fn today() -> HeaderValue {
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    HeaderValue::from_str(&date).unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

/// The reason for not storing a response that came from another upstream.
const ANOTHERS: &str = "another-upstream";

/// Removes the fields from a head that only this client may get, and returns them.
fn take_out(names: &[HeaderName], fields: &mut HeaderMap) -> HeaderMap {
    let mut own = HeaderMap::new();
    for name in names {
        own.extend(fields.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        fields.remove(name);
    }
    own
}

/// Returns the maximum length of content that is stored in memory, in bytes.
pub fn most_in_memory(running: &Running) -> u64 {
    running.generation.store_limits.object.min(running.generation.store.most())
}

/// Returns the maximum length of content that is stored at all, in bytes.
fn longest(running: &Running) -> u64 {
    let (store, limits) = (&running.generation.store, &running.generation.store_limits);
    let on_disk = store.disk().zip(limits.disk.as_ref()).map_or(0, |(disk, limits)| limits.object.min(disk.most()));
    on_disk.max(most_in_memory(running))
}

fn end(lead: Option<Lead>, landing: Landing) {
    if let Some(lead) = lead {
        lead.end(landing);
    }
}

fn taken(head: &mut Head) -> response::Parts {
    head.response.take().unwrap_or_else(|| Response::new(()).into_parts().0)
}

/// Returns the index of a refusal in [`REFUSALS`].
fn place(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::NoStore => 0,
        Refusal::Private => 1,
        Refusal::Authorization => 2,
        Refusal::Status => 3,
        Refusal::NoLifetime => 4,
        Refusal::SetCookie => 5,
        Refusal::Vary => 6,
        Refusal::TooLarge => 7,
        Refusal::Other(_) => 8,
    }
}
