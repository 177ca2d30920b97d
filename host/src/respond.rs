//! Responses that the proxy makes itself, out of errors. The client learns the kind, never the cause.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};

use crate::body::ResponseBody;
use crate::error::Kind;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The response for a failed exchange, with the kind in `Proxy-Status` (RFC 9209).
pub fn error(kind: Kind, status: http::StatusCode) -> http::Response<ResponseBody> {
    let text = format!("{status}\n{}\n", kind.token());
    let mut response = http::Response::new(ResponseBody::Full(Bytes::from(text)));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Ok(value) = HeaderValue::from_str(&format!("plugway; error={}", kind.token())) {
        fields.insert(PROXY_STATUS, value);
    }
    response
}
