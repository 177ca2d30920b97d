//! What the proxy does with a request, from its head to the head of its response.

pub mod attempt;
pub mod balance;
pub mod cache;
pub mod chain;
pub mod error_response;
pub mod filtered_body;
pub mod forward;
pub mod record;
pub mod response_body;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body;
use hyper::ext::ReasonPhrase;

use crate::context::edit_check::Side;
use crate::context::{Head, Peer, Received, Words};
use crate::error::{Error, Kind};
use crate::exchange::cache::{Answered, Asking, Looked, Past};
use crate::exchange::chain::{Depth, Down, Failed};
use crate::exchange::filtered_body::{FilteredUpload, Passage};
use crate::exchange::forward::{Forwarded, Sending, forward};
use crate::exchange::record::Ending;
use crate::exchange::response_body::ResponseBody;
use crate::generation::connection_counts::ClientNet;
use crate::generation::listener::Listener;
use crate::generation::{Route, Running, UNROUTED};
use crate::net::boxed::apart;
use crate::net::deadline::Deadline;
use crate::protocol::client_address::{self, Settled};
use crate::protocol::hop_by_hop::{self, Hop};

use crate::body::upload::{ClientContent, Receiving, RequestBody, Upload, UploadLimits};
use crate::protocol::request_target;
use crate::protocol::transformed_content;

/// Why a request has no route.
enum Unrouted {
    Failed(Failed),
    /// Its listener sends everybody to another place.
    Elsewhere(HeaderValue),
}

/// Whence requests come.
pub struct Arrival {
    pub peer: Arc<Peer>,
    pub listener: Arc<Listener>,
}

/// What limits an exchange in time.
pub struct Timers {
    /// For each thing that is waited for.
    pub step: Deadline,
    /// For the exchange as a whole.
    pub total: Deadline,
}

impl Timers {
    /// What is said when the exchange's time is over, for which there is all the time it wants.
    fn late(&self) -> Error {
        self.total.clear();
        Error::new(Kind::ResponseTimeout, "the route's timeout has passed").met("timeout")
    }
}

/// What became of a request on its way down.
pub enum Begun {
    /// It goes on to its upstream.
    Onward(Onward),
    /// It is answered.
    Answered(Response<ResponseBody>),
}

/// A request that has passed the plugins, or those above a cache.
pub struct Onward {
    /// Of its route.
    place: usize,
    upstream: usize,
    way: Way,
}

enum Way {
    /// To the upstream, maybe past a cache.
    Straight(Sending, Option<Box<Past>>),
    /// A cache asks for it.
    Asking(Box<Asking>),
}

/// What came of the way down.
enum Passed {
    Onward(Way),
    Answer(Response<ResponseBody>, Option<Box<Past>>, Depth),
}

/// Takes a request down to its upstream, on the generation that it begins with. What is due at the end of the exchange
/// goes into `ending`.
///
/// Not part of the future of [`Onward::run`], which would carry the request about for nothing.
pub fn begin(
    running: &Rc<Running>,
    request: Request<ClientContent>,
    arrival: &Arrival,
    timers: &Timers,
    ending: &mut Ending,
) -> Begun {
    let (mut parts, body) = request.into_parts();
    let words = if running.generation.access_log.is_some() { Words::Logged } else { Words::Unneeded };
    let received = Received::of(&parts, words);
    let Arrival { peer, listener } = arrival;
    // Before anything else reads the request.
    let settled = client_address::settle(&mut parts.headers, peer.ip(), peer.is_trusted, &listener.client);
    let counted = counted(&settled, arrival, ending);
    let routed = counted.and_then(|()| routed(running, &mut parts, &settled, arrival));
    let head = |parts, route, upstream| {
        let mut head = Box::new(Head::new(received, parts, peer.clone(), route, upstream));
        (head.client, head.has_aliases) = (settled.client, settled.has_aliases);
        head
    };
    let place = match routed {
        Ok(place) => place,
        Err(unrouted) => {
            ending.unrouted(head(parts, UNROUTED.into(), UNROUTED.into()));
            ending.upload.end();
            return Begun::Answered(match unrouted {
                Unrouted::Failed(failed) => fail(failed, running, ending),
                Unrouted::Elsewhere(location) => {
                    let response = error_response::redirect(location);
                    ending.status = response.status().as_u16();
                    response
                }
            });
        }
    };
    let route = &running.generation.routes[place];
    let version = parts.version;
    let hop = hop_by_hop::request(version, &mut parts.headers);
    let mut upstream = route.upstream;
    let mut head = head(parts, running.route_names[place].clone(), running.upstreams[upstream].name.clone());
    if let Some(timeout) = route.timeout {
        timers.total.set(timeout);
    }

    let receiving = |body, upload| {
        let limits = &listener.limits;
        let (most, pause, rate) = (route.max_body, limits.body_timeout, limits.body_rate);
        let limits = UploadLimits { most, pause, rate, knows_end: version == Version::HTTP_2 };
        // It may be read by another task than the client's.
        let [deadline] = timers.step.clock().deadlines();
        Receiving::new(body, upload, limits, deadline)
    };
    let is_plain = body.is_end_stream() && hop.upgrade.is_none();
    let cached = |at, head: &mut Box<Head>, upstream| {
        cache::look(running, place, at, (head, upstream), is_plain, timers.step.clock())
    };
    let passed = down(running, route, (&mut head, &mut upstream), cached, |head| {
        content(running, route, head, (body, hop), ending.upload.clone(), receiving)
    });
    let (response, past, depth) = match passed {
        Ok(Passed::Onward(way)) => {
            if let Way::Asking(_) = way {
                ending.upload.end();
            }
            // From here on the exchange may be dropped at any time, and still has to be told of.
            ending.routed(place, head);
            return Begun::Onward(Onward { place, upstream, way });
        }
        Ok(Passed::Answer(response, past, depth)) => (response, past, depth),
        Err(failed) => {
            let depth = failed.depth;
            ending.routed(place, head);
            let response = fail(failed, running, ending);
            head = ending.head.take().unwrap_or_else(|| Box::new(Head::empty()));
            (response, None, depth)
        }
    };
    ending.upload.end();
    Begun::Answered(finish(running, place, head, response.into(), (past, depth), ending))
}

/// Takes a request through the chain, to its end or to where it is answered.
fn down(
    running: &Running,
    route: &Route,
    (head, upstream): (&mut Box<Head>, &mut usize),
    cached: impl FnOnce(Depth, &mut Box<Head>, usize) -> Result<Looked, Failed>,
    content: impl FnOnce(&mut Box<Head>) -> Result<Sending, Failed>,
) -> Result<Passed, Failed> {
    let mut past = None;
    let mut down = chain::down(running, route, Depth::none(), head, upstream)?;
    if let Down::Cache(at) = down {
        match cached(at, head, *upstream)? {
            Looked::Served(response) => return Ok(Passed::Answer(response, None, at)),
            Looked::Ask(asking) => return Ok(Passed::Onward(Way::Asking(asking))),
            Looked::Past(over) => past = Some(Box::new(over)),
        }
        down = chain::down(running, route, at.next(), head, upstream)?;
    }
    Ok(match down {
        Down::Answer(response, depth) => {
            Passed::Answer(response.map(|content| ResponseBody::Full(content.into())), past, depth)
        }
        Down::Forward | Down::Cache(_) => Passed::Onward(Way::Straight(content(head)?, past)),
    })
}

impl Onward {
    /// Asks the upstream, and takes the response up to the client.
    ///
    /// What it works on stays where it is: a future has room for what it is given and for what it takes out of that.
    pub async fn run(&mut self, running: &Rc<Running>, timers: &Timers, ending: &mut Ending) -> Response<ResponseBody> {
        let Onward { place, upstream, way } = self;
        let (place, upstream) = (*place, *upstream);
        let head = ending.head.get_or_insert_with(|| Box::new(Head::empty()));
        let (sending, past) = match way {
            Way::Straight(sending, past) => (sending, past),
            Way::Asking(asking) => return apart(|| ask(asking, running, (place, upstream), timers, ending)).await,
        };
        let forwarded = timers.total.until_met(forward(running, upstream, head, sending, &timers.step)).await;
        let response = match forwarded.unwrap_or_else(|_| Err(timers.late())) {
            Ok(forwarded) => {
                ending.answered();
                forwarded
            }
            Err(error) => fail(error.into(), running, ending).into(),
        };
        let head = ending.head.take().unwrap_or_else(|| Box::new(Head::empty()));
        finish(running, place, head, response, (past.take(), Depth::whole(&running.generation.routes[place])), ending)
    }
}

/// Has a cache ask for a response, and takes that up to the client.
async fn ask(
    asking: &mut Asking,
    running: &Rc<Running>,
    (place, upstream): (usize, usize),
    timers: &Timers,
    ending: &mut Ending,
) -> Response<ResponseBody> {
    let head = ending.head.get_or_insert_with(|| Box::new(Head::empty()));
    let answered = timers.total.until_met(asking.run(running, (place, upstream), head, timers.step.clock())).await;
    let (forwarded, depth) = match answered.unwrap_or_else(|_| Err(timers.late().into())) {
        Ok(Answered { response, edits, depth }) => {
            ending.answered();
            (Forwarded { response, edits }, depth)
        }
        Err(failed) => {
            let depth = failed.depth;
            (fail(failed, running, ending).into(), depth)
        }
    };
    let head = ending.head.take().unwrap_or_else(|| Box::new(Head::empty()));
    finish(running, place, head, forwarded, (None, depth), ending)
}

/// Counts a request that came by a trusted proxy as its client's, where that is limited.
fn counted(settled: &Settled, arrival: &Arrival, ending: &mut Ending) -> Result<(), Unrouted> {
    let Some(most) = arrival.listener.limits.connections_per_client.filter(|_| arrival.peer.is_trusted) else {
        return Ok(());
    };
    let address = settled.client.as_ref().map(|client| client.socket.ip());
    let Some(client) = ClientNet::new(address) else { return Ok(()) };
    ending.counted = arrival.listener.census.enter_request(client, most);
    if ending.counted.is_some() {
        return Ok(());
    }
    let cause = format!("limits.connections-per-client of {most} is reached by the requests of a client");
    let error = Error::new(Kind::LimitReached, cause).met("limits.connections-per-client");
    let status = StatusCode::TOO_MANY_REQUESTS;
    Err(Unrouted::Failed(Failed { error, status, depth: Depth::none() }))
}

/// The place of a request's route.
fn routed(running: &Running, request: &mut Parts, settled: &Settled, arrival: &Arrival) -> Result<usize, Unrouted> {
    let failed = |error: Error| Unrouted::Failed(error.into());
    if settled.is_rejected {
        let cause = "an origin may take a field's name for another's, and field-aliases is \"reject\"";
        return Err(failed(Error::new(Kind::RequestError, cause).met("field-aliases")));
    }
    request_target::accept(request, arrival.peer.is_secure()).map_err(failed)?;
    if let Some(port) = arrival.listener.redirect {
        let unnamed = || failed(Error::new(Kind::RequestError, "no Host says where to go with https"));
        return Err(Unrouted::Elsewhere(request_target::with_https(request, port).ok_or_else(unnamed)?));
    }
    let none = || failed(Error::new(Kind::NoRoute, "no route of the manifest matches the request"));
    running.generation.router.route(request).ok_or_else(none)
}

/// Takes a response through the plugins above a depth, and past a cache among them.
fn finish(
    running: &Running,
    place: usize,
    mut head: Box<Head>,
    forwarded: Forwarded,
    (past, depth): (Option<Box<Past>>, Depth),
    ending: &mut Ending,
) -> Response<ResponseBody> {
    let route = &running.generation.routes[place];
    let (mut parts, body) = forwarded.response.into_parts();
    hop_by_hop::response(&mut parts.headers);
    let came = parts.status;
    head.response = Some(parts);
    let edited = chain::balanced(running, forwarded.edits.as_ref(), &mut head);
    let up = edited.and_then(|()| up(running, route, (past, depth), &mut head)).and_then(|content| {
        let body = match content {
            Some(content) => ResponseBody::Full(Bytes::from(content)),
            None => body,
        };
        chain::filtered(running, route, depth.plugins(), &mut head, body)
    });
    match up {
        Ok(body) => {
            let mut response = Response::new(body);
            if let Some(mut parts) = head.response.take() {
                if let ResponseBody::Switched(switched) = response.body() {
                    hop_by_hop::switch(&switched.protocol, &mut parts.headers);
                }
                // HTTP/1 has words for the status; those of another status would be wrong.
                if parts.status == came
                    && let Some(reason) = parts.extensions.remove::<ReasonPhrase>()
                {
                    response.extensions_mut().insert(reason);
                }
                *response.status_mut() = parts.status;
                *response.headers_mut() = parts.headers;
                if parts.status == StatusCode::NO_CONTENT {
                    response.headers_mut().remove(header::CONTENT_LENGTH);
                }
            }
            ending.status = response.status().as_u16();
            ending.routed(place, head);
            response
        }
        Err(failed) => {
            ending.routed(place, head);
            fail(failed, running, ending)
        }
    }
}

/// Takes a response up the chain; a plugin may put another content in place.
fn up(
    running: &Running,
    route: &Route,
    (past, depth): (Option<Box<Past>>, Depth),
    head: &mut Box<Head>,
) -> Result<Option<Vec<u8>>, Failed> {
    let Some(past) = past.filter(|past| past.depth() != depth) else {
        return chain::up(running, route, depth.plugins(), head);
    };
    let at = past.depth();
    let below = chain::up(running, route, depth.beyond(at.next()), head)?;
    past.come_back(running, route, head);
    let above = chain::up(running, route, at.plugins(), head)?;
    Ok(above.or(below))
}

/// The content of the request, through the plugins that transform it.
fn content(
    running: &Running,
    route: &Route,
    head: &mut Head,
    (body, mut hop): (ClientContent, Hop),
    upload: Upload,
    receiving: impl FnOnce(ClientContent, Upload) -> Receiving,
) -> Result<Sending, Failed> {
    if body.is_end_stream() {
        upload.end();
        return Ok(Sending { body: RequestBody::Empty, upload, hop });
    }
    // Where the next protocol begins, must not depend on who understands the content's end (RFC 9110 §7.8).
    hop.upgrade = None;
    // With gRPC either side may be silent for as long as it likes.
    let media = head.request.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if head.request.version == Version::HTTP_2 && media.starts_with(b"application/grpc") {
        upload.take_time();
    }
    if let Some(length) = body.size_hint().exact().filter(|length| *length > route.max_body) {
        let cause = format!("{length} bytes, and the route takes {}", route.max_body);
        return Err(Error::new(Kind::RequestBodySize, cause).met("max-body").into());
    }
    let plugins = Depth::whole(route).plugins();
    let stages = chain::stages(running, route, plugins, Side::Request, body.size_hint().exact(), head)?;
    let body = receiving(body, upload.clone());
    if stages.is_empty() {
        return Ok(Sending { body: RequestBody::Incoming(Box::new(body)), upload, hop });
    }
    transformed_content::request(&mut head.request.headers);
    Ok(Sending { body: FilteredUpload::body(Passage::new(body, stages), upload.clone()), upload, hop })
}

/// The response to what never became a request.
pub fn refuse(
    running: &Running,
    error: Error,
    status: StatusCode,
    arrival: &Arrival,
    ending: &mut Ending,
) -> Response<ResponseBody> {
    ending.unrouted(Box::new(Head::unread(arrival.peer.clone())));
    fail(Failed { error, status, depth: Depth::none() }, running, ending)
}

/// The response in place of one that can't be sent as it is.
pub fn instead(error: Error, ending: &mut Ending) -> Response<ResponseBody> {
    let running = ending.running().clone();
    fail(error.into(), &running, ending)
}

fn fail(failed: Failed, running: &Running, ending: &mut Ending) -> Response<ResponseBody> {
    let Failed { error, status, .. } = failed;
    ending.log(&error, "exchange failed");
    (ending.status, ending.error) = (status.as_u16(), Some(error.kind));
    error_response::error(error.kind, status, ending.head.as_deref(), &running.generation.error_pages)
}
