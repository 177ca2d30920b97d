//! The error pages of a manifest.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use http::StatusCode;

use crate::error::FailureKind;
use crate::protocol::framing::FramingError;

/// The pages that a manifest has for responses of the proxy's own, by status code.
#[derive(Debug, Default)]
pub struct ErrorPages(HashMap<u16, String>);

/// The status code of a client that reaches `limits.connections-per-client` by requests through a trusted proxy.
const TOO_MANY_REQUESTS: u16 = StatusCode::TOO_MANY_REQUESTS.as_u16();

/// Whether the proxy itself ever responds with a status code, other than by `on-error` of a plugin.
pub fn occurs(code: u16) -> bool {
    let is_of_kind = FailureKind::ALL.iter().any(|kind| kind.status().as_u16() == code);
    is_of_kind || FramingError::STATUSES.contains(&code) || code == TOO_MANY_REQUESTS
}

impl ErrorPages {
    /// Adds a page for a range of status codes. A page that a code has already stays.
    pub fn add(&mut self, codes: RangeInclusive<u16>, page: &str) {
        for code in codes {
            self.0.entry(code).or_insert_with(|| page.into());
        }
    }

    /// Returns the page for a status, with its placeholders as they are in the manifest's file.
    pub fn get(&self, status: StatusCode) -> Option<&str> {
        self.0.get(&status.as_u16()).map(String::as_str)
    }
}
