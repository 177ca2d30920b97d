//! Checks of what plugins name, declare and return: field names and values, methods, targets, status codes, trailers.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::context::bounds;
use crate::protocol::authority;
use crate::protocol::field_alias;
use crate::protocol::framing::is_forbidden_trailer;

/// The message that an edit of a field concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageSide {
    Request,
    Response,
}

/// The error of an edit, or of a declaration of edits, that is rejected.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("`{0}` is no field name (RFC 9110 §5.1)")]
    Name(String),
    #[error("the value of `{0}` has bytes that no field may have (RFC 9110 §5.5)")]
    Value(String),
    #[error("`{0}` belongs to the framing of the connection and is the proxy's own (RFC 9110 §7.6.1)")]
    Framing(HeaderName),
    #[error("`{0}` is no authority, as Host has to be (RFC 9110 §7.2)")]
    Host(String),
    #[error(
        "`host` can be set and removed, but not appended to, nor be what a rename makes: a request has one (RFC 9112 §3.2)"
    )]
    OneHost,
    #[error("`{0}` can't stand in trailers (RFC 9110 §6.5.1)")]
    Trailer(HeaderName),
    #[error("`{0}` is no method, or none that is served here")]
    Method(String),
    #[error("the path or query can't stand in a request target: {0}")]
    Target(&'static str),
    #[error("{0} is no status between 200 and 599")]
    Status(u16),
    #[error("a {0} can't be changed here")]
    Side(&'static str),
    #[error("it declared no plan {0}")]
    Plan(u32),
    /// A bound of [`bounds`] was exceeded.
    #[error("{found} {what}; at most {max} are allowed")]
    Many { what: &'static str, found: usize, max: usize },
    #[error("it wants bodies whole up to {0} bytes, which its memory limit doesn't hold")]
    Buffer(u64),
    #[error("it decided about a body, and exports no body hook for this message")]
    NoBodyHook,
    #[error(
        "it exports no hook for bodies chunk by chunk, as the mode `streamed` needs; declare `buffered` with a limit, or `skipped`"
    )]
    OnlyWhole,
    #[error("it decided about a body that it has received already")]
    BodyPassed,
}

/// Returns an error if there are more items than allowed.
pub fn check_count(max: usize, found: usize, what: &'static str) -> Result<(), EditError> {
    if found > max { Err(EditError::Many { what, found, max }) } else { Ok(()) }
}

const FRAMING: [HeaderName; 10] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A field name that plugins may edit.
pub fn field_name(name: &str) -> Result<HeaderName, EditError> {
    let name = any_field_name(name)?;
    if is_framing(&name) { Err(EditError::Framing(name)) } else { Ok(name) }
}

/// Whether a field belongs to the framing of a message or to one hop, or an origin may take it for such a field.
pub fn is_framing(name: &HeaderName) -> bool {
    let is_alias = |framing: &HeaderName| field_alias::are_alike(framing.as_str(), name.as_str());
    FRAMING.contains(name) || (!field_alias::is_plain(name.as_str()) && FRAMING.iter().any(is_alias))
}

/// A field name that plugins may append to, or give to other fields.
pub fn repeatable_name(name: &str) -> Result<HeaderName, EditError> {
    let name = field_name(name)?;
    if name == header::HOST { Err(EditError::OneHost) } else { Ok(name) }
}

/// A field name that plugins may read or name.
pub fn any_field_name(name: &str) -> Result<HeaderName, EditError> {
    self::name(name)?;
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| EditError::Name(shown(name)))
}

/// Rejects names that are too long.
pub fn name(name: &str) -> Result<(), EditError> {
    check_count(bounds::NAME, name.len(), "bytes of a name")
}

/// Truncates a name for a message.
pub fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// Returns a field value, or an error if it is malformed. Spaces around it are no part of it (RFC 9110 §5.5).
pub fn field_value(name: &str, value: &[u8]) -> Result<HeaderValue, EditError> {
    let value = field_text(name, trimmed(value))?;
    if name.eq_ignore_ascii_case("host") { host(value) } else { Ok(value) }
}

/// A piece of a field value.
pub fn field_text(name: &str, text: &[u8]) -> Result<HeaderValue, EditError> {
    check_count(bounds::VALUE, text.len(), "bytes of a value")?;
    HeaderValue::from_bytes(text).map_err(|_| EditError::Value(shown(name)))
}

/// Returns a value without the spaces around it.
pub fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Returns a value of `Host` in its normal form; an error if no client could have sent it.
pub fn host(value: HeaderValue) -> Result<HeaderValue, EditError> {
    let normal = match authority::normal(value.as_bytes(), None) {
        Ok(Cow::Borrowed(_)) => return Ok(value),
        Ok(Cow::Owned(normal)) => HeaderValue::try_from(normal).ok(),
        Err(_) => None,
    };
    normal.ok_or_else(|| EditError::Host(shown(&String::from_utf8_lossy(value.as_bytes()))))
}

/// Returns a method; an error if it is malformed, too long or not served.
pub fn method(method: &str) -> Result<Method, EditError> {
    name(method)?;
    // PRI begins a connection of HTTP/2 (RFC 9113 §11.7).
    let is_served = |method: &Method| *method != Method::CONNECT && method.as_str() != "PRI";
    Method::from_bytes(method.as_bytes()).ok().filter(is_served).ok_or_else(|| EditError::Method(shown(method)))
}

/// Returns a path or query, checked as far as possible without the message.
pub fn target_part(bytes: Vec<u8>) -> Result<Vec<u8>, EditError> {
    check_count(bounds::VALUE, bytes.len(), "bytes of a path or query").map(|()| bytes)
}

/// A status that a plugin may give.
pub fn status(code: u16) -> Result<StatusCode, EditError> {
    StatusCode::from_u16(code)
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()))
        .ok_or(EditError::Status(code))
}

/// The fields of a response or of trailers that a plugin made.
pub fn checked_fields(given: &[(String, Vec<u8>)]) -> Result<HeaderMap, EditError> {
    checked_within(bounds::FIELD_BYTES, given)
}

fn checked_within(max_bytes: usize, given: &[(String, Vec<u8>)]) -> Result<HeaderMap, EditError> {
    check_count(bounds::FIELDS, given.len(), "fields")?;
    let bytes = given.iter().map(|(name, value)| name.len() + value.len() + bounds::FIELD_OVERHEAD).sum();
    check_count(max_bytes, bytes, "bytes of fields")?;
    let mut fields = HeaderMap::new();
    for (name, value) in given {
        fields.try_append(field_name(name)?, field_value(name, value)?).map_err(full)?;
    }
    Ok(fields)
}

/// Checks the trailers that a plugin has returned.
pub fn checked_trailers(given: &[(String, Vec<u8>)]) -> Result<HeaderMap, EditError> {
    let fields = checked_within(bounds::TRAILER_BYTES, given)?;
    match fields.keys().find(|name| is_forbidden_trailer(name.as_str().as_bytes())) {
        Some(name) => Err(EditError::Trailer(name.clone())),
        None => Ok(fields),
    }
}

/// Returns a text that can be in a path or query; an error if it can't.
pub fn uri_text(text: &[u8]) -> Result<&str, EditError> {
    let is_fit = text.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
    std::str::from_utf8(text).ok().filter(|_| is_fit).ok_or(EditError::Target("it has bytes that must be escaped"))
}

/// The error about a map that has no room for another field.
pub fn full(_: impl std::fmt::Debug) -> EditError {
    EditError::Many { what: "fields of a message", found: bounds::MESSAGE_FIELDS + 1, max: bounds::MESSAGE_FIELDS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_have_a_lower_bound_than_heads() {
        let fields = |count| vec![("x-a".to_string(), vec![b'a'; 1000]); count];
        assert_eq!(checked_fields(&fields(200)).map(|fields| fields.len()).ok(), Some(200));
        assert_eq!(checked_trailers(&fields(15)).map(|fields| fields.len()).ok(), Some(15));
        let error = checked_trailers(&fields(16)).unwrap_err().to_string();
        assert!(error.contains("16384"), "{error}");
    }
}
