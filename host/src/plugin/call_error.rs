//! The ways in which a call of a plugin fails.

use std::time::Duration;

use super::log_lines::MAX_LINE_BYTES;
use super::memory_limit::MemoryLimit;
use crate::context::bounds;
use crate::context::edit_check::EditError;
use crate::system::printable::one_line;
use crate::telemetry::metrics::CallRejection;

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginFailure {
    #[error("{}", cause(.0))]
    Wasm(wasmtime::Error),
    #[error("limits.cpu exceeded")]
    Deadline(wasmtime::Error),
    /// The guest failed after it was refused more memory.
    #[error("limits.memory exceeded")]
    Memory(wasmtime::Error),
    #[error("it handed over more data in one call than 5 MiB, or its `limits.memory`, allow")]
    HandedOver,
    #[error("it asked for an edit that is refused: {0}")]
    Refused(#[from] EditError),
    #[error("it gave up: {}", one_line(.0, MAX_LINE_BYTES))]
    Reported(String),
    /// The body is none that the plugin takes; the plugin was not called.
    #[error("it can't take the body: {}", one_line(.0, MAX_LINE_BYTES))]
    Unfit(String),
    /// The call returned an invalid result.
    #[error("it returned what can't be done: {0}")]
    Senseless(String),
    #[error("it doesn't export this hook")]
    NoHook,
    #[error("limits.share of {0} % of a worker's time is used up")]
    Share(u8),
    #[error("its breaker is open after late or failed calls")]
    Open,
    #[error("no instance is ready: {0}")]
    NoInstance(&'static str),
    #[error("the places for instances are used up, by bodies and waiting calls of all plugins")]
    NoPlace,
    #[error(
        "limits.bodies of {0} is reached, or the client's part of it, and none of them ended within limits.body-wait"
    )]
    Bodies(u32),
    #[error("limits.bodies of {0} is reached, or the client's part of it, and as many bodies wait")]
    BodyQueue(u32),
    #[error("limits.waiting-calls of {calls} is reached, and limits.queued-calls of {queued} too")]
    Queue { calls: u32, queued: u32 },
    #[error("limits.waiting-calls of {calls} is reached, and no call ended within limits.queue-time of {time:?}")]
    QueueTime { calls: u32, time: Duration },
    #[error("{0} bytes of exchanges that have ended wait for it")]
    EndedExchanges(usize),
    #[error("{0} exchanges that have ended wait for observers of this worker")]
    EndQueue(usize),
    #[error("the values that it declares have more than {0} bytes")]
    Values(usize),
    #[error("limits.call-time of {0:?} exceeded")]
    CallTime(Duration),
    #[error("it asks a service, or for a password, while it is configured")]
    Asks,
    #[error("it waits in a call that may not wait")]
    MayNotWait,
    #[error("it waits while it is configured, where its first instance got answers")]
    WaitsAgain,
    /// The library that runs the plugin has panicked.
    #[error("the host can't serve the call: {0}")]
    Panicked(String),
}

impl PluginFailure {
    /// Returns the reason if no call was made.
    pub fn rejection(&self) -> Option<CallRejection> {
        match self {
            PluginFailure::Share(_) => Some(CallRejection::Share),
            PluginFailure::Open => Some(CallRejection::Breaker),
            PluginFailure::NoInstance(_) | PluginFailure::NoPlace => Some(CallRejection::Instance),
            PluginFailure::Bodies(_) | PluginFailure::BodyQueue(_) => Some(CallRejection::Bodies),
            PluginFailure::Queue { .. }
            | PluginFailure::QueueTime { .. }
            | PluginFailure::EndedExchanges(_)
            | PluginFailure::EndQueue(_) => Some(CallRejection::Waiting),
            PluginFailure::Unfit(_) => Some(CallRejection::Content),
            _ => None,
        }
    }

    /// Returns the limit of calls, bodies or instances at a time, or of the worker's time, that was met: a later call may be
    /// made. `None` if none was.
    pub fn busy_limit(&self) -> Option<&'static str> {
        match self {
            PluginFailure::Bodies(_) | PluginFailure::BodyQueue(_) => Some("limits.bodies"),
            PluginFailure::Queue { .. } | PluginFailure::QueueTime { .. } => Some("limits.waiting-calls"),
            PluginFailure::NoPlace => Some("places for instances"),
            PluginFailure::Share(_) => Some("limits.share"),
            _ => None,
        }
    }

    /// The error of wasm, where the guest has met one.
    pub fn error(&self) -> Option<&wasmtime::Error> {
        match self {
            PluginFailure::Wasm(error) | PluginFailure::Deadline(error) | PluginFailure::Memory(error) => Some(error),
            _ => None,
        }
    }

    /// Names the limit of memory as the reason if a growth was refused.
    pub(super) fn explained(self, room: &MemoryLimit) -> Self {
        match self {
            PluginFailure::Wasm(error) if room.is_refused => PluginFailure::Memory(error),
            other => other,
        }
    }
}

/// Returns a failure that a plugin reports, truncated to what a log line holds.
pub(super) fn reported_failure(reason: String) -> PluginFailure {
    PluginFailure::Reported(shortened(reason, bounds::REASON))
}

pub(super) fn trapped(error: wasmtime::Error) -> PluginFailure {
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return PluginFailure::NoPlace;
    }
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => PluginFailure::Deadline(error),
        // wasmtime has no type for this error that others can name.
        _ if error.root_cause().to_string().contains("fuel allocated for hostcalls") => PluginFailure::HandedOver,
        _ => PluginFailure::Wasm(error),
    }
}

/// Returns the cause of a trap without its backtrace, which is a context of the error.
fn cause(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(failure) => failure.to_string(),
        None => error.root_cause().to_string(),
    }
}

/// Cuts a text for people to a length, and marks the cut.
pub fn shortened(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
    text
}
