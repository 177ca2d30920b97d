//! The metrics and the logs of the process.

pub mod access_log;
pub(crate) mod failure_log;
pub mod library_lines;
pub mod metrics;
pub mod output;
pub mod process_log;
