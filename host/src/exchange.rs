//! What the proxy does with a request, from its head to the head of its response.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, Version, header};
use http_body::Body;
use hyper::body::Incoming;

use crate::body::ResponseBody;
use crate::chain::{self, Depth, Down, Failed};
use crate::clock::Deadline;
use crate::edit::Side;
use crate::ending::Ending;
use crate::error::{Error, Kind};
use crate::forward::{Content, forward};
use crate::forwarding;
use crate::generation::{Route, Running, UNROUTED};
use crate::head::{Head, Peer};
use crate::passage::Passage;
use crate::respond;
use crate::upload::{RequestBody, Upload};

/// What became of a request on its way down.
pub enum Begun {
    /// It goes on to its upstream.
    Onward(Onward),
    /// It is answered.
    Answered(Response<ResponseBody>),
}

/// A request that has passed the plugins.
pub struct Onward {
    /// Of its route.
    place: usize,
    upstream: usize,
    content: Content,
}

/// Takes a request down to its upstream, on the generation that it begins with. What is due at the end of the exchange
/// goes into `ending`.
///
/// Not part of the future of [`Onward::run`], which would carry the request about for nothing.
pub fn begin(running: &Rc<Running>, request: Request<Incoming>, peer: Arc<Peer>, ending: &mut Ending) -> Begun {
    let (mut parts, body) = request.into_parts();
    let routed = accept(&mut parts).and_then(|()| {
        let none = || Error::new(Kind::NoRoute, "no route of the manifest matches the request");
        running.generation.router.route(&parts).ok_or_else(none)
    });
    let place = match routed {
        Ok(place) => place,
        Err(error) => {
            ending.unrouted(Box::new(Head::new(parts, peer, UNROUTED.into(), UNROUTED.into())));
            ending.upload.end();
            return Begun::Answered(refuse(error, ending));
        }
    };
    let route = &running.generation.routes[place];
    forwarding::request(parts.version, &mut parts.headers);
    let mut upstream = route.upstream;
    let name = running.generation.upstreams[upstream].name.clone();
    let mut head = Box::new(Head::new(parts, peer, route.name.clone(), name));

    let passed = chain::down(running, route, &mut head, &mut upstream).and_then(|down| match down {
        Down::Forward => content(running, route, &mut head, body, ending.upload.clone()).map(Ok),
        Down::Answer(response, depth) => Ok(Err((response, depth))),
    });
    let (response, depth) = match passed {
        Ok(Ok(content)) => {
            // From here on the exchange may be dropped at any time, and still has to be told of.
            ending.routed(place, head);
            return Begun::Onward(Onward { place, upstream, content });
        }
        Ok(Err((response, depth))) => (response.map(|content| ResponseBody::Full(content.into())), depth),
        Err(failed) => {
            let depth = failed.depth;
            (fail(failed, ending), depth)
        }
    };
    ending.upload.end();
    Begun::Answered(finish(running, place, head, response, depth, ending))
}

impl Onward {
    /// Asks the upstream, and takes the response up to the client.
    pub async fn run(self, running: &Rc<Running>, deadline: &Deadline, ending: &mut Ending) -> Response<ResponseBody> {
        let Onward { place, upstream, content } = self;
        let head = ending.head.get_or_insert_with(|| Box::new(Head::empty()));
        let response = match forward(running, upstream, head, content, deadline).await {
            Ok(response) => {
                ending.answered();
                response.map(|body| ResponseBody::Upstream(Box::new(body)))
            }
            Err(error) => refuse(error, ending),
        };
        let head = ending.head.take().unwrap_or_else(|| Box::new(Head::empty()));
        finish(running, place, head, response, Depth::whole(&running.generation.routes[place]), ending)
    }
}

/// Takes a response through the plugins above a depth.
fn finish(
    running: &Running,
    place: usize,
    mut head: Box<Head>,
    response: Response<ResponseBody>,
    depth: Depth,
    ending: &mut Ending,
) -> Response<ResponseBody> {
    let route = &running.generation.routes[place];
    let (mut parts, body) = response.into_parts();
    forwarding::response(&mut parts.headers);
    head.response = Some(parts);
    let up = chain::up(running, route, depth, &mut head).and_then(|content| {
        let body = match content {
            Some(content) => ResponseBody::Full(Bytes::from(content)),
            None => body,
        };
        filtered(running, route, depth, &mut head, body)
    });
    let response = match up {
        Ok(body) => {
            let mut response = Response::new(body);
            if let Some(parts) = head.response.take() {
                *response.status_mut() = parts.status;
                *response.headers_mut() = parts.headers;
                if parts.status == http::StatusCode::NO_CONTENT {
                    response.headers_mut().remove(header::CONTENT_LENGTH);
                }
            }
            response
        }
        Err(failed) => fail(failed, ending),
    };
    ending.status = response.status().as_u16();
    ending.routed(place, head);
    response
}

/// The content of the request, through the plugins that transform it.
fn content(
    running: &Running,
    route: &Route,
    head: &mut Head,
    body: Incoming,
    upload: Upload,
) -> Result<Content, Failed> {
    if body.is_end_stream() {
        upload.end();
        return Ok(Content { body: RequestBody::Empty, upload });
    }
    let stages = chain::stages(running, route, Depth::whole(route), Side::Request, body.size_hint().exact())?;
    if stages.is_empty() {
        return Ok(Content { body: RequestBody::Incoming(body, upload.clone()), upload });
    }
    head.request.headers.remove(header::CONTENT_LENGTH);
    let passage = Box::new(Passage::new(body, stages));
    Ok(Content { body: RequestBody::Filtered(passage, upload.clone()), upload })
}

/// The content of the response, through the plugins that transform it. What plugins and the proxy made themselves
/// passes as it is.
fn filtered(
    running: &Running,
    route: &Route,
    depth: Depth,
    head: &mut Head,
    body: ResponseBody,
) -> Result<ResponseBody, Failed> {
    let ResponseBody::Upstream(body) = body else { return Ok(body) };
    if body.is_end_stream() {
        // Under HEAD and 304 the length is that of a content which plugins would have changed (RFC 9110 §8.6).
        if let Some(response) = head.response.as_mut().filter(|_| chain::transforms(running, route, depth)) {
            response.headers.remove(header::CONTENT_LENGTH);
        }
        return Ok(ResponseBody::Upstream(body));
    }
    let stages = chain::stages(running, route, depth, Side::Response, body.size_hint().exact())?;
    if stages.is_empty() {
        return Ok(ResponseBody::Upstream(body));
    }
    if let Some(response) = &mut head.response {
        response.headers.remove(header::CONTENT_LENGTH);
    }
    Ok(ResponseBody::Filtered(Box::new(Passage::new(*body, stages))))
}

/// Refuses what can't be forwarded, and brings the rest into one form.
fn accept(request: &mut http::request::Parts) -> Result<(), Error> {
    let refused = |why: &'static str| Err(Error::new(Kind::RequestError, why));
    if request.method == http::Method::CONNECT {
        return refused("this is no forward proxy: CONNECT is not served");
    }
    // In absolute-form the target's authority stands for Host (RFC 9112 §3.2.2).
    if let Some(authority) = request.uri.authority() {
        match http::HeaderValue::from_str(authority.as_str()) {
            Ok(host) => drop(request.headers.insert(header::HOST, host)),
            Err(_) => return refused("the authority can't stand in Host"),
        }
    }
    let hosts = request.headers.get_all(header::HOST).iter().count();
    if hosts > 1 || hosts == 0 && request.version == Version::HTTP_11 {
        return refused("a request has one Host (RFC 9112 §3.2)");
    }
    Ok(())
}

fn refuse(error: Error, ending: &mut Ending) -> Response<ResponseBody> {
    let status = error.kind.status();
    fail(Failed { error, status, depth: Depth::none() }, ending)
}

fn fail(failed: Failed, ending: &mut Ending) -> Response<ResponseBody> {
    let Failed { error, status, .. } = failed;
    tracing::debug!(kind = error.kind.token(), cause = %error.cause, "exchange failed");
    (ending.status, ending.error) = (status.as_u16(), Some(error.kind));
    respond::error(error.kind, status)
}
