//! The responses of routes by their targets, for requests that have passed the request hooks.

use bytes::Bytes;
use http::Response;
use http::header::{self, HeaderValue};

use super::forward::{OutgoingRequest, Received, forward};
use super::response_body::ResponseBody;
use super::serve_files::serve_files;
use super::{Destination, error_response};
use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::generation::Route;
use crate::generation::ids::RouteId;
use crate::generation::target::{FixedResponse, Redirect, Target};
use crate::generation::worker_state::WorkerState;
use crate::net::boxed::boxed;
use crate::net::deadline::Deadline;

/// Returns the response of a target that needs neither an endpoint nor a file; `None` for the other targets.
pub fn respond_at_once(
    worker: &WorkerState,
    route_id: RouteId,
    context: &ExchangeContext,
) -> Option<Result<Response<ResponseBody>, Error>> {
    match &worker.generation.routes[route_id].target {
        Target::Redirect(to) => Some(redirect(to, context)),
        Target::Respond(fixed) if fixed.has_page => Some(Ok(fixed_page(fixed, worker, route_id, context))),
        Target::Respond(fixed) => Some(Ok(fixed_response(fixed))),
        Target::Upstream(_) | Target::Files(_) => None,
    }
}

/// Applies the rules of a route for the request target that is forwarded.
pub fn apply_uri_rules(route: &Route, context: &mut ExchangeContext) -> Result<(), Error> {
    let target = route.uri.apply(&context.request.uri, context.unchanged_sent_path());
    context.forwarded = target.map_err(|reason| Error::new(FailureKind::RequestError, reason))?;
    Ok(())
}

/// Gets the response of a target of any kind. `step` limits each single wait.
pub async fn ask_target(
    worker: &WorkerState,
    destination: Destination,
    context: &mut ExchangeContext,
    sending: &mut OutgoingRequest,
    step: &Deadline,
) -> Result<Received, Error> {
    let route = &worker.generation.routes[destination.route];
    apply_uri_rules(route, context)?;
    if let Some(upstream_id) = destination.upstream {
        return forward(worker, upstream_id, context, sending, step).await;
    }
    let response = match respond_at_once(worker, destination.route, context) {
        Some(response) => response,
        None => boxed(|| serve_files(worker, destination.route, context, step)).await,
    };
    response.map(Received::from)
}

/// Returns the redirect for a request; an error of the client if the template makes no valid location of its request.
fn redirect(to: &Redirect, context: &ExchangeContext) -> Result<Response<ResponseBody>, Error> {
    let location = to.location.fill(context).map_err(|reason| {
        Error::new(FailureKind::RequestError, format!("the redirect has no valid location: {reason}"))
    })?;
    // For clients that don't follow it.
    let text = format!("{}\n{}\n", to.status, location.to_str().unwrap_or_default());
    let mut response = error_response::redirect(to.status, location);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    *response.body_mut() = ResponseBody::Full(Bytes::from(text));
    Ok(response)
}

/// Returns the response of a route with the error page of its status.
fn fixed_page(
    fixed: &FixedResponse,
    worker: &WorkerState,
    route_id: RouteId,
    context: &ExchangeContext,
) -> Response<ResponseBody> {
    let page = worker.generation.error_page(Some(route_id), fixed.status);
    let mut response = error_response::status_page(fixed.status, context, page);
    response.headers_mut().extend(fixed.fields.clone());
    response
}

fn fixed_response(fixed: &FixedResponse) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Fixed(fixed.body.clone()));
    *response.status_mut() = fixed.status;
    response.headers_mut().clone_from(&fixed.fields);
    response
}
