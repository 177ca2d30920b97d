//! Error pages for error responses of others: of the upstream, where the route's `intercept` says so, and of plugins,
//! if they have no content. The status and fields about the exchange stay; the content and the fields that describe it
//! are replaced.
//!
//! It happens before the response goes up the chain: the plugins see the page, as they see that of an error of the
//! proxy itself. A cache is below, and sees and stores what the upstream has sent.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::error_response;
use crate::context::ExchangeContext;
use crate::exchange::forward::Received;
use crate::exchange::response_body::ResponseBody;
use crate::generation::ids::RouteId;
use crate::generation::worker_state::WorkerState;
use crate::protocol::conversation::is_grpc;
use crate::protocol::hop_by_hop;

/// Returns a response of the upstream, or the page that replaces it.
pub fn intercept(received: Received, context: &ExchangeContext, route_id: RouteId, worker: &WorkerState) -> Received {
    let Received { response, edits } = received;
    let status = response.status();
    let is_intercepted = worker.generation.routes[route_id].intercept.contains(status);
    if !is_intercepted || is_grpc(response.headers()) || is_grpc(&context.request.headers) {
        return Received { response, edits };
    }
    let page = error_response::error_page(None, status, context, worker.generation.error_page(Some(route_id), status));
    let (mut parts, content) = response.into_parts();
    content.discard();
    replace_fields(&mut parts.headers, status, page.media);
    Received { response: Response::from_parts(parts, ResponseBody::Full(page.content)), edits }
}

/// Adds the error page of its status to an error response that a plugin has made without content, or makes the response
/// one of gRPC if the request is. The fields stay.
pub fn complete(received: Received, context: &ExchangeContext, route_id: RouteId, worker: &WorkerState) -> Received {
    let Received { mut response, edits } = received;
    let status = response.status();
    let is_empty = matches!(response.body(), ResponseBody::Full(content) if content.is_empty());
    let is_error = status.is_client_error() || status.is_server_error();
    let has_type = response.headers().contains_key(header::CONTENT_TYPE);
    if is_error && is_empty && !has_type && is_grpc(&context.request.headers) {
        response.headers_mut().remove(header::CONTENT_LENGTH);
        error_response::make_grpc(&mut response, status, None, context);
    } else if is_error && is_empty && !has_type {
        let page = worker.generation.error_page(Some(route_id), status);
        let page = error_response::error_page(None, status, context, page);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        error_response::describe_page(response.headers_mut(), page.media);
        *response.body_mut() = ResponseBody::Full(page.content);
    }
    Received { response, edits }
}

/// Replaces the fields of the content by those of a page. The page has no rules of its own for caches, like the pages
/// of the proxy's own errors, so a cache must not keep it for longer than the response that it replaces.
fn replace_fields(fields: &mut HeaderMap, status: StatusCode, media: &'static str) {
    let targeted: Vec<HeaderName> = fields.keys().filter(|name| is_for_caches(name)).cloned().collect();
    let mut rules = targeted.iter().chain([&header::CACHE_CONTROL]);
    let is_private = rules.any(|name| hop_by_hop::members(fields, name.clone()).any(forbids_sharing));
    OF_CONTENT.iter().chain(&targeted).for_each(|name| drop(fields.remove(name)));
    error_response::describe_page(fields, media);
    // The response may have cookies, which stay.
    if is_private {
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if let Ok(value) = HeaderValue::from_str(&format!("plugway; received-status={}", status.as_str())) {
        fields.append(error_response::PROXY_STATUS, value);
    }
}

/// Whether a field is `Cache-Control` for some caches, such as those of a CDN (RFC 9213). They prefer it to `Cache-Control`.
fn is_for_caches(name: &HeaderName) -> bool {
    name.as_str().ends_with("-cache-control") || name == "surrogate-control"
}

/// Whether a directive of `Cache-Control` keeps a response from being used for others, or without a check.
fn forbids_sharing(directive: &[u8]) -> bool {
    let name = directive.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
    [&b"no-store"[..], b"private", b"no-cache"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The fields that describe the content of a response, or the time for which the content is valid.
static OF_CONTENT: [HeaderName; 19] = [
    header::ACCEPT_RANGES,
    header::AGE,
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::PRAGMA,
    header::TRAILER,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_for_some_caches_keeps_the_page_out_of_all() {
        for (name, value, wanted) in [
            ("cdn-cache-control", "no-store", Some("no-store")),
            ("surrogate-control", "max-age=0, No-Store", Some("no-store")),
            ("cloudflare-cdn-cache-control", "max-age=600", None),
            ("cache-control", "private", Some("no-store")),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            replace_fields(&mut fields, StatusCode::NOT_FOUND, "text/html");
            let kept = fields.get(header::CACHE_CONTROL).map(|value| value.to_str().unwrap());
            assert_eq!(kept, wanted, "{name}: {value}");
            assert!(name == "cache-control" || !fields.contains_key(name), "{name}");
        }
    }
}
