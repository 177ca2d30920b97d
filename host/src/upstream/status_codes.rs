//! A set of status codes.

use std::ops::RangeInclusive;

use http::StatusCode;

/// The ranges of status codes, as the manifest names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusCodes(Vec<RangeInclusive<u16>>);

impl StatusCodes {
    pub fn add(&mut self, codes: RangeInclusive<u16>) {
        self.0.push(codes);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, status: StatusCode) -> bool {
        self.0.iter().any(|codes| codes.contains(&status.as_u16()))
    }
}
