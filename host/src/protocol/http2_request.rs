//! The rules of RFC 9113 for the head of a request that h2 leaves to its users.

use http::header::{self, HeaderMap};

/// Returns the rule that the fields of a request break; `None` if they keep all.
pub fn violation(fields: &HeaderMap) -> Option<&'static str> {
    if fields.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        // h2 has compared the values. An endpoint may all the same read one line, the other, or none.
        return Some("Content-Length is repeated");
    }
    None
}
