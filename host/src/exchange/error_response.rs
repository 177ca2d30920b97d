//! Responses that the proxy makes itself. The client learns the kind of an error, never the cause.

use std::num::NonZero;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::exchange::response_body::ResponseBody;

pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// In seconds (RFC 9110 §10.2.3): the least that can be said, and longer than most requests take.
const RETRY_AFTER: NonZero<u32> = NonZero::<u32>::MIN;

/// An error page as it is sent.
pub struct ErrorPage {
    pub content: Bytes,
    /// The value of `Content-Type`.
    pub media: &'static str,
}

/// The format of an error page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageFormat {
    Html,
    Json,
    Text,
}

/// The response for a failed exchange, with the kind in `Proxy-Status` (RFC 9209). `page` is the manifest's page for the
/// status; `None` if it has none.
pub fn error_response(
    error: &Error,
    status: StatusCode,
    context: &ExchangeContext,
    page: Option<&str>,
) -> Response<ResponseBody> {
    let mut response = page_response(status, error_page(Some(error.kind), status, context, page));
    let fields = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&format!("plugway; error={}", error.kind.token())) {
        fields.insert(PROXY_STATUS, value);
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
    page_response(status, error_page(None, status, context, page))
}

fn page_response(status: StatusCode, ErrorPage { content, media }: ErrorPage) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(content));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// Returns the page for an error in the format that the client prefers. `kind` is `None` for an error of the upstream, and
/// `page` if the manifest has none for the status.
pub fn error_page(
    kind: Option<FailureKind>,
    status: StatusCode,
    context: &ExchangeContext,
    page: Option<&str>,
) -> ErrorPage {
    let id = context.request_id();
    let format = context.request.headers.get(header::ACCEPT).map_or(PageFormat::Text, preferred_format);
    let (text, media) = match (page, format) {
        (Some(page), PageFormat::Html | PageFormat::Text) => {
            (fill_template(page, status, id), "text/html; charset=utf-8")
        }
        (_, PageFormat::Html) => (fill_template(PAGE, status, id), "text/html; charset=utf-8"),
        (_, PageFormat::Json) => (json(kind, status, id), "application/json"),
        (_, PageFormat::Text) => {
            let kind = kind.map_or(String::new(), |kind| format!("{}\n", kind.token()));
            (format!("{status}\n{kind}request {id}\n"), "text/plain; charset=utf-8")
        }
    };
    ErrorPage { content: text.into(), media }
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

/// Returns an error as JSON. The texts have no character that JSON would escape.
fn json(kind: Option<FailureKind>, status: StatusCode, id: &str) -> String {
    let reason = status.canonical_reason().unwrap_or_default();
    let code = status.as_u16();
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
