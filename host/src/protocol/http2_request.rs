//! The rules of RFC 9113 for the head of a request that h2 leaves to its users.

use http::header::{self, HeaderMap, HeaderValue};

/// Returns the rule that the fields of a request break; `None` if they keep all.
pub fn violation(fields: &HeaderMap) -> Option<&'static str> {
    if fields.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        // h2 has compared the values. An endpoint may all the same read one line, the other, or none.
        return Some("Content-Length is repeated");
    }
    let is_padded = |value: &HeaderValue| {
        let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
    };
    // HTTP/1 has no such values: another side would read them without the spaces (RFC 9113 §8.2.1).
    fields.values().any(is_padded).then_some("a field value begins or ends with a space")
}
