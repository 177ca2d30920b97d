//! A set of status codes.

use http::StatusCode;

/// As few ranges as the manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statuses(Vec<(u16, u16)>);

impl Statuses {
    /// Adds the codes between two, both included.
    pub fn add(&mut self, first: u16, last: u16) {
        self.0.push((first, last));
    }

    pub fn contains(&self, status: StatusCode) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&status.as_u16()))
    }
}
