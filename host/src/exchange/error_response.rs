//! Responses that the proxy makes itself. The client learns the kind of an error, never the cause.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::context::ExchangeContext;
use crate::error::FailureKind;
use crate::exchange::response_body::ResponseBody;
use crate::generation::error_pages::ErrorPages;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// In seconds (RFC 9110 §10.2.3): the least that can be said, and longer than most requests take.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The format of an error page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageFormat {
    Html,
    Json,
    Text,
}

/// The response for a failed exchange, with the kind in `Proxy-Status` (RFC 9209).
pub fn error_response(
    kind: FailureKind,
    status: StatusCode,
    context: Option<&ExchangeContext>,
    pages: &ErrorPages,
) -> Response<ResponseBody> {
    let unknown = context.is_none().then(ExchangeContext::empty);
    let mut response = page_response(Some(kind), status, context.or(unknown.as_ref()), pages);
    let fields = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&format!("plugway; error={}", kind.token())) {
        fields.insert(PROXY_STATUS, value);
    }
    if kind == FailureKind::LimitReached {
        fields.insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

/// Returns the response with a status that is no failure of the exchange, such as 404 for a file that does not exist.
pub fn status_page(status: StatusCode, context: &ExchangeContext, pages: &ErrorPages) -> Response<ResponseBody> {
    page_response(None, status, Some(context), pages)
}

/// Returns a page that names a status, in the format that the client prefers, and the kind of the failure if there is one.
fn page_response(
    kind: Option<FailureKind>,
    status: StatusCode,
    context: Option<&ExchangeContext>,
    pages: &ErrorPages,
) -> Response<ResponseBody> {
    let id = context.map_or("", |context| context.request_id());
    let language = context
        .and_then(|context| context.request.headers.get(header::ACCEPT))
        .map_or(PageFormat::Text, preferred_format);
    let (text, media) = match (pages.get(status), language) {
        (Some(page), PageFormat::Html | PageFormat::Text) => {
            (fill_template(page, status, id), "text/html; charset=utf-8")
        }
        (_, PageFormat::Html) => (fill_template(PAGE, status, id), "text/html; charset=utf-8"),
        (_, PageFormat::Json) => (json(kind, status, id), "application/json"),
        (_, PageFormat::Text) => (text(kind, status, id), "text/plain; charset=utf-8"),
    };
    let mut response = Response::new(ResponseBody::Full(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// Returns the response that redirects a client, with the same method and body.
pub fn redirect(location: HeaderValue) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(Bytes::new()));
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(header::LOCATION, location);
    response
}

const PAGE: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{status} {reason}</title>\
    <h1>{status} {reason}</h1><p><small>Request {request-id}</small></p></html>\n";

fn fill_template(page: &str, status: StatusCode, id: &str) -> String {
    let reason = status.canonical_reason().unwrap_or_default();
    page.replace("{status}", status.as_str()).replace("{reason}", reason).replace("{request-id}", id)
}

fn text(kind: Option<FailureKind>, status: StatusCode, id: &str) -> String {
    let kind = kind.map_or(String::new(), |kind| format!("{}\n", kind.token()));
    format!("{status}\n{kind}request {id}\n")
}

/// Returns a status as JSON. The texts have no character that JSON would escape.
fn json(kind: Option<FailureKind>, status: StatusCode, id: &str) -> String {
    let (code, reason) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
    let kind = kind.map_or(String::new(), |kind| format!("\"error\":\"{}\",", kind.token()));
    format!("{{\"status\":{code},\"reason\":\"{reason}\",{kind}\"request-id\":\"{id}\"}}\n")
}

/// Returns the format that the client prefers: the one it names first. A client that accepts anything is a tool and
/// gets text.
fn preferred_format(accept: &HeaderValue) -> PageFormat {
    let names = accept.to_str().unwrap_or_default().split(',').map(|name| name.split(';').next().unwrap_or("").trim());
    let known = |name: &str| match name {
        "text/html" | "application/xhtml+xml" => Some(PageFormat::Html),
        "application/json" => Some(PageFormat::Json),
        name if name.ends_with("+json") => Some(PageFormat::Json),
        _ => None,
    };
    names.filter_map(known).next().unwrap_or(PageFormat::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_language_that_a_client_names_is_spoken() {
        let cases = [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", PageFormat::Html),
            ("application/json, text/html", PageFormat::Json),
            ("application/problem+json;q=0.5", PageFormat::Json),
            ("*/*", PageFormat::Text),
            ("image/png", PageFormat::Text),
        ];
        for (accept, wanted) in cases {
            assert_eq!(preferred_format(&HeaderValue::from_static(accept)), wanted, "{accept}");
        }
    }
}
