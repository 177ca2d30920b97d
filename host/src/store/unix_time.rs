//! Unix time, as stored responses and `Date` fields hold it. The only place of the store that reads the clock.
#![expect(clippy::disallowed_methods, reason = "the one place that dates responses")]

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the current Unix time in milliseconds. Stored responses use wall-clock time, because they may outlive the
/// process. A clock that is set back makes a response younger, but its age is never negative.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Returns the current time as the value of a `Date` field (RFC 9110 §6.6.1).
pub fn http_date() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}
