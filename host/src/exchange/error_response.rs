//! Responses that the proxy makes itself. The client learns the kind of an error, never the cause.

use std::num::NonZero;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::exchange::response_body::ResponseBody;
use crate::protocol::conversation::is_grpc;
use crate::protocol::weighted::weighted;

pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The value of `Retry-After`, in seconds (RFC 9110 §10.2.3): the smallest one, and longer than most requests take.
const RETRY_AFTER: NonZero<u32> = NonZero::<u32>::MIN;

/// An error page as it is sent.
pub struct ErrorPage {
    pub content: Bytes,
    /// The value of `Content-Type`.
    pub media: &'static str,
}

/// The key of the manifest that limits the content of a request.
const MAX_BODY: &str = "max-body";

/// The usual methods, except for the one that shows a client what proxies have added to its request.
const ALL_BUT_TRACE: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// The format of an error page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageFormat {
    Html,
    Json,
    Text,
}

/// Returns the response for a failed exchange, with the kind in `Proxy-Status` (RFC 9209). `page` is the manifest's page
/// for the status; `None` if it has none.
pub fn error_response(
    error: &Error,
    status: StatusCode,
    context: &ExchangeContext,
    page: Option<&str>,
) -> Response<ResponseBody> {
    let mut response = match is_grpc(&context.request.headers) {
        true => grpc_response(status, Some(error.kind), context),
        false => page_response(status, error_page(Some(error), status, context, page)),
    };
    let fields = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&format!("plugway; error={}", error.kind.token())) {
        fields.insert(PROXY_STATUS, value);
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        // Only TRACE is answered so, and a response with this status has the field (RFC 9110 §15.5.6).
        fields.insert(header::ALLOW, HeaderValue::from_static(ALL_BUT_TRACE));
    }
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        // A plugin could not take coded content: the client learns that it may send the content without a coding (RFC 9110
        // §12.5.3).
        fields.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    let of_kind = (error.kind == FailureKind::LimitReached).then_some(RETRY_AFTER);
    if let Some(seconds) = error.retry_after.or(of_kind) {
        fields.insert(header::RETRY_AFTER, seconds.get().into());
    }
    response
}

/// Returns the response with a status that is no failure of the exchange, such as 404 for a file that does not exist. `page`
/// is the manifest's page for the status; `None` if it has none.
pub fn status_page(status: StatusCode, context: &ExchangeContext, page: Option<&str>) -> Response<ResponseBody> {
    if is_grpc(&context.request.headers) {
        return grpc_response(status, None, context);
    }
    page_response(status, error_page(None, status, context, page))
}

/// Returns the response to a gRPC request that has failed: without content, with the status in the fields, which are the
/// trailers too. Clients ignore the content of other responses.
fn grpc_response(status: StatusCode, kind: Option<FailureKind>, context: &ExchangeContext) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(Bytes::new()));
    make_grpc(&mut response, status, kind, context);
    response
}

/// Makes a response one of gRPC without content, for an HTTP status.
pub fn make_grpc(
    response: &mut Response<ResponseBody>,
    status: StatusCode,
    kind: Option<FailureKind>,
    context: &ExchangeContext,
) {
    let kind = kind.map_or(String::new(), |kind| format!(": {}", kind.token()));
    let message = format!("{status}{kind} (request {})", context.request_id());
    *response.status_mut() = StatusCode::OK;
    let fields = response.headers_mut();
    let media = context.request.headers.get(header::CONTENT_TYPE).cloned();
    fields.insert(header::CONTENT_TYPE, media.unwrap_or(HeaderValue::from_static("application/grpc")));
    fields.insert(GRPC_STATUS, grpc_code(status).into());
    // A message is escaped as a URI is; request IDs are of letters and digits, but plugins may set them.
    let is_plain = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b'%';
    let message: Vec<u8> = message.bytes().filter(is_plain).collect();
    if let Ok(message) = HeaderValue::from_bytes(&message) {
        fields.insert(GRPC_MESSAGE, message);
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Returns the status of gRPC for an HTTP status, as clients map it (gRPC, "HTTP to gRPC Status Code Mapping").
fn grpc_code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

fn page_response(status: StatusCode, ErrorPage { content, media }: ErrorPage) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(content));
    *response.status_mut() = status;
    describe_page(response.headers_mut(), media);
    response
}

/// Writes the fields that describe an error page. A cache that stores it must not give one client's format to another
/// (RFC 9110 §12.5.5).
pub fn describe_page(fields: &mut HeaderMap, media: &'static str) {
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    fields.append(header::VARY, HeaderValue::from_static("Accept"));
}

/// Returns the page for an error in the format that the client prefers. `error` is `None` if the proxy has not failed, and
/// `page` if the manifest has none for the status.
pub fn error_page(
    error: Option<&Error>,
    status: StatusCode,
    context: &ExchangeContext,
    page: Option<&str>,
) -> ErrorPage {
    let (kind, id) = (error.map(|error| error.kind), context.request_id());
    let max_body = context.max_body.filter(|_| error.is_some_and(|error| error.limit == Some(MAX_BODY)));
    let advice = max_body.map(|max| format!("at most {} of content", size(max)));
    let format = context.request.headers.get(header::ACCEPT).map_or(PageFormat::Text, preferred_format);
    let (text, media) = match (page, format) {
        (Some(page), PageFormat::Html | PageFormat::Text) => {
            (fill_template(page, status, id), "text/html; charset=utf-8")
        }
        (_, PageFormat::Html) => {
            let advice = advice.map_or(String::new(), |advice| format!("<p>{advice}</p>"));
            (fill_template(&PAGE.replace("{advice}", &advice), status, id), "text/html; charset=utf-8")
        }
        (_, PageFormat::Json) => (json(kind, status, max_body, id), "application/json"),
        (_, PageFormat::Text) => {
            let kind = kind.map_or(String::new(), |kind| format!("{}\n", kind.token()));
            let advice = advice.map_or(String::new(), |advice| format!("{advice}\n"));
            (format!("{status}\n{kind}{advice}request {id}\n"), "text/plain; charset=utf-8")
        }
    };
    ErrorPage { content: text.into(), media }
}

/// Returns the response without content that redirects a client.
pub fn redirect(status: StatusCode, location: HeaderValue) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(Bytes::new()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location);
    response
}

const PAGE: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{status} {reason}</title>\
    <h1>{status} {reason}</h1>{advice}<p><small>Request {request-id}</small></p></html>\n";

fn fill_template(page: &str, status: StatusCode, id: &str) -> String {
    let reason = status.canonical_reason().unwrap_or_default();
    page.replace("{status}", status.as_str()).replace("{reason}", reason).replace("{request-id}", id)
}

/// Returns an error as JSON, with the limit of the content if it was met. The texts have no character that JSON would
/// escape.
fn json(kind: Option<FailureKind>, status: StatusCode, max_body: Option<u64>, id: &str) -> String {
    let (code, reason) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
    let kind = kind.map_or(String::new(), |kind| format!("\"error\":\"{}\",", kind.token()));
    let limit = max_body.map_or(String::new(), |max| format!("\"max-body\":{max},"));
    format!("{{\"status\":{code},\"reason\":\"{reason}\",{kind}{limit}\"request-id\":\"{id}\"}}\n")
}

/// Returns a size in words, in the largest unit that fits exactly.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} bytes"),
    }
}

/// Returns the format that the client prefers (RFC 9110 §12.5.1): of equally welcome ones, the one it names first. A client
/// that accepts anything is a tool and gets text.
fn preferred_format(accept: &HeaderValue) -> PageFormat {
    let known = |name: &str| match name {
        "text/html" | "application/xhtml+xml" => Some(PageFormat::Html),
        "application/json" => Some(PageFormat::Json),
        name if name.ends_with("+json") => Some(PageFormat::Json),
        "text/plain" => Some(PageFormat::Text),
        _ => None,
    };
    let mut preferred = (PageFormat::Text, 0);
    for (name, weight) in accept.to_str().unwrap_or_default().split(',').filter_map(weighted) {
        if let Some(format) = known(&name.to_ascii_lowercase()).filter(|_| weight > preferred.1) {
            preferred = (format, weight);
        }
    }
    preferred.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_the_largest_unit_that_fits() {
        let cases = [(0, "0 bytes"), (10, "10 bytes"), (1 << 10, "1 KiB"), (1025, "1025 bytes"), (3 << 20, "3 MiB")];
        cases.into_iter().for_each(|(bytes, wanted)| assert_eq!(size(bytes), wanted));
    }

    #[test]
    fn the_format_that_a_client_prefers_is_sent() {
        let cases = [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", PageFormat::Html),
            ("application/json, text/html", PageFormat::Json),
            ("application/problem+json;q=0.5", PageFormat::Json),
            ("*/*", PageFormat::Text),
            ("image/png", PageFormat::Text),
            ("application/json;q=0.1, text/html", PageFormat::Html),
            ("text/html;q=0.5, Application/JSON;q=0.6", PageFormat::Json),
            ("text/html;q=0, */*", PageFormat::Text),
            ("text/plain, text/html;q=0.9", PageFormat::Text),
        ];
        for (accept, wanted) in cases {
            assert_eq!(preferred_format(&HeaderValue::from_static(accept)), wanted, "{accept}");
        }
    }
}
