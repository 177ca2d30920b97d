//! What the proxy does with a request, from its head to the head of its response.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, Version, header};
use hyper::body::Incoming;

use crate::body::ResponseBody;
use crate::chain::{self, Depth, Down, Failed};
use crate::clock::Deadline;
use crate::ending::Ending;
use crate::error::{Error, Kind};
use crate::forward::forward;
use crate::forwarding;
use crate::generation::Running;
use crate::head::{Head, Peer};
use crate::respond;

/// Serves one request on the generation that it began with; what is due at its end goes into `ending`.
pub async fn run(
    running: Rc<Running>,
    request: Request<Incoming>,
    peer: Arc<Peer>,
    deadline: &Deadline,
    ending: &mut Ending,
) -> Response<ResponseBody> {
    let (mut parts, body) = request.into_parts();
    if let Err(error) = accept(&mut parts) {
        return refuse(error, ending);
    }
    let Some(place) = running.generation.router.route(&parts) else {
        let error = Error::new(Kind::NoRoute, "no route of the manifest matches the request");
        return refuse(error, ending);
    };
    let route = &running.generation.routes[place];
    forwarding::request(&mut parts.headers);
    let mut upstream = route.upstream;
    let name = running.generation.upstreams[upstream].name.clone();
    let mut head = Box::new(Head::new(parts, peer, route.name.clone(), name));

    let (response, depth) = match chain::down(&running, route, &mut head, &mut upstream) {
        Ok(Down::Forward) => {
            let response = forward(&running, upstream, &mut head, body, deadline).await;
            (response.unwrap_or_else(|error| refuse(error, ending)), Depth::whole(route))
        }
        Ok(Down::Answer(response, depth)) => (response.map(|content| ResponseBody::Full(content.into())), depth),
        Err(failed) => {
            let depth = failed.depth;
            (fail(failed, ending), depth)
        }
    };

    let (mut parts, mut body) = response.into_parts();
    forwarding::response(&mut parts.headers);
    head.response = Some(parts);
    match chain::up(&running, route, depth, &mut head) {
        Ok(None) => {}
        Ok(Some(content)) => body = ResponseBody::Full(Bytes::from(content)),
        Err(failed) => {
            let response = fail(failed, ending);
            ending.status = response.status().as_u16();
            ending.routed(place, head);
            return response;
        }
    }
    let mut response = Response::new(body);
    if let Some(parts) = head.response.take() {
        ending.status = parts.status.as_u16();
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers;
    }
    ending.routed(place, head);
    response
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
