//! Stored responses: kept in memory for all workers, found by key and request fields, filled while others read them,
//! and answered from. Knows nothing of freshness but the figures that a policy gave (`cache-policy` in the WIT).

pub mod disk;
pub mod fill;
pub mod flight;
pub mod index;
pub mod label;
pub mod object;
pub mod purges;
pub mod room;
pub mod store;
pub mod stored;
pub mod vary;

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds of Unix time. Stored responses go by it, for they may outlive the process; a clock that is set back
/// makes them younger, never negative.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
