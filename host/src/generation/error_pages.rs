//! The error pages of a manifest.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use http::StatusCode;

/// The pages that a manifest has for responses of the proxy's own, by status code.
#[derive(Debug, Default)]
pub struct ErrorPages(HashMap<u16, String>);

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
