//! The error pages of a manifest.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use http::StatusCode;

use crate::error::FailureKind;
use crate::protocol::framing::FramingError;

/// The error pages of a manifest or of a route, by status code.
#[derive(Debug, Default)]
pub struct ErrorPages(HashMap<u16, Arc<str>>);

/// The statuses of errors that differ from those of their kind: a request for another scheme, content that can't be
/// transformed, a client with too many requests, TRACE that ends here, and TRACE for routes that don't name it.
const OF_SINGLE_ERRORS: [StatusCode; 5] = [
    StatusCode::MISDIRECTED_REQUEST,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::NOT_IMPLEMENTED,
    StatusCode::METHOD_NOT_ALLOWED,
];

/// The statuses of routes with `files` alone: of a file that may not be read, and of conditions that are not met.
const OF_FILES: [StatusCode; 2] = [StatusCode::FORBIDDEN, StatusCode::PRECONDITION_FAILED];

/// Whether the proxy itself ever responds with a status code for a route with `files`.
pub fn occurs_with_files(code: u16) -> bool {
    OF_FILES.iter().any(|status| status.as_u16() == code)
}

/// Whether the proxy itself ever responds with a status code, other than by `on-error` of a plugin.
pub fn occurs(code: u16) -> bool {
    let is_of_kind = FailureKind::ALL.iter().any(|kind| kind.status().as_u16() == code);
    is_of_kind
        || FramingError::STATUSES.contains(&code)
        || OF_SINGLE_ERRORS.iter().any(|status| status.as_u16() == code)
}

impl ErrorPages {
    /// Adds a page for a range of status codes. A page that a code has already stays.
    pub fn add(&mut self, codes: RangeInclusive<u16>, page: &Arc<str>) {
        for code in codes {
            self.0.entry(code).or_insert_with(|| page.clone());
        }
    }

    /// Returns the page for a status, with its placeholders as they are in the manifest's file.
    pub fn get(&self, status: StatusCode) -> Option<&str> {
        self.0.get(&status.as_u16()).map(|page| &**page)
    }
}
