//! Failed calls of a plugin in the log: the reason with the key of the limit that was met, the exchange, the plugin,
//! and sometimes the functions of the call.
#![expect(clippy::disallowed_methods, reason = "failures are rare, and met on all threads")]

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;
use wasmtime::WasmBacktrace;

use super::call_error::PluginFailure;
use super::log_lines::PluginLog;
use super::settings::PluginLimits;
use crate::context::ExchangeContext;
use crate::system::printable::{TRUNCATED, truncated};

/// Bytes of a reason in the log.
const MAX_REASON_BYTES: usize = 1 << 10;

/// The number of bytes of a failure's line besides its reason and its frames, approximately.
const OTHER_FIELDS: usize = 256;

/// Functions of a backtrace, innermost first, and bytes of the name of each. Deeper ones are those of the runtime.
const MAX_FRAMES: usize = 16;
const MAX_NAME_BYTES: usize = 120;

/// The minimum time between two backtraces of one kind: of one hook and one trap.
const BACKTRACE: Duration = Duration::from_secs(60);

/// Kinds that a plugin can have at most: eight hooks, some twenty traps.
const MAX_KINDS: usize = 160;

/// An exchange in which a plugin failed, as the log names it.
#[derive(Clone, Debug)]
pub struct ExchangeName {
    pub request_id: String,
    pub route: String,
}

/// The backtraces that were logged last, by their kinds.
#[derive(Default)]
// Locked once for a failure that is logged, of which a second has a bounded number.
pub struct Backtraces(Mutex<Vec<(FailureTopic, Instant)>>);

#[derive(Clone, Copy, PartialEq, Eq)]
struct FailureTopic {
    hook: &'static str,
    failure: Option<wasmtime::Trap>,
}

/// The source of a plugin's failures: what each of their lines has.
pub struct FailureReporter {
    pub(super) plugin: std::sync::Arc<str>,
    pub(super) version: String,
    pub(super) limits: PluginLimits,
    pub(super) lines: PluginLog,
    pub(super) backtraces: Backtraces,
}

impl ExchangeName {
    /// Names the exchange of a head.
    pub fn of(context: &ExchangeContext) -> Self {
        ExchangeName { request_id: context.request_id().into(), route: context.route.to_string() }
    }
}

impl FailureReporter {
    /// Logs a failed call of a hook.
    pub fn record_failure(&self, hook: &'static str, failure: &PluginFailure, exchange: Option<&ExchangeName>) {
        let reason = self.limits.reason(failure);
        let reason = shortened(&reason, MAX_REASON_BYTES);
        if !self.lines.admits(reason.len() + OTHER_FIELDS) {
            return;
        }
        let (request_id, route) = (exchange.map(|at| &*at.request_id), exchange.map(|at| &*at.route));
        let (plugin, version) = (&*self.plugin, &*self.version);
        let frames = self.frames(hook, failure);
        // A text as the value of a field is quoted, with its control characters escaped.
        warn!(reason = &*reason, request_id, route, plugin, version, hook, frames, "plugin failed");
    }

    /// Returns the functions in which a trap occurred, unless a trap of this kind was logged with them recently.
    fn frames(&self, hook: &'static str, failure: &PluginFailure) -> Option<String> {
        let error = failure.error()?;
        let backtrace: &WasmBacktrace = error.downcast_ref()?;
        let kind = FailureTopic { hook, failure: error.downcast_ref().copied() };
        self.backtraces.is_due(kind, Instant::now()).then(|| names(backtrace))
    }
}

impl Backtraces {
    fn is_due(&self, kind: FailureTopic, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, at)) = last.iter_mut().find(|(known, _)| *known == kind) {
            let is_due = now.saturating_duration_since(*at) >= BACKTRACE;
            *at = if is_due { now } else { *at };
            return is_due;
        }
        let has_room = last.len() < MAX_KINDS;
        if has_room {
            last.push((kind, now));
        }
        has_room
    }
}

impl PluginLimits {
    /// Returns a failure in words. The failure of a limit has the limit's key and value.
    pub fn reason(&self, failure: &PluginFailure) -> String {
        match failure {
            PluginFailure::Deadline(_) => format!("limits.cpu of {} ms exceeded", self.cpu.as_millis()),
            PluginFailure::Memory(_) => format!("limits.memory of {} exceeded", size(self.memory)),
            // The log escapes it; an escape of its own would be shown twice.
            PluginFailure::Reported(why) => format!("it gave up: {why}"),
            other => other.to_string(),
        }
    }
}

/// The names of functions, innermost first.
fn names(backtrace: &WasmBacktrace) -> String {
    let name = |frame: &wasmtime::FrameInfo| match frame.func_name() {
        Some(name) => {
            // Only a part is demangled: the name of a function may be as long as its component.
            let demangled = format!("{:#}", rustc_demangle::demangle(truncated(name, 4 * MAX_NAME_BYTES)));
            shortened(&demangled, MAX_NAME_BYTES).into_owned()
        }
        None => format!("function {}", frame.func_index()),
    };
    backtrace.frames().iter().take(MAX_FRAMES).map(name).collect::<Vec<_>>().join(" < ")
}

fn shortened(text: &str, max: usize) -> Cow<'_, str> {
    let beginning = truncated(text, max);
    if beginning.len() == text.len() { Cow::Borrowed(text) } else { Cow::Owned(format!("{beginning}{TRUNCATED}")) }
}

/// Returns a size as manifests write it.
fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_a_backtrace_a_minute() {
        let (backtraces, began) = (Backtraces::default(), Instant::now());
        let kind = |hook| FailureTopic { hook, failure: Some(wasmtime::Trap::UnreachableCodeReached) };
        let due = |hook, after| backtraces.is_due(kind(hook), began + Duration::from_secs(after));
        assert!(due("timer", 0) && !due("timer", 59) && due("observer", 59) && due("timer", 60) && !due("timer", 61));
    }

    #[test]
    fn reasons_name_keys_and_values() {
        let limits = PluginLimits { memory: 64 << 10, cpu: Duration::from_millis(50), ..PluginLimits::default() };
        let error = || wasmtime::Error::from(wasmtime::Trap::UnreachableCodeReached);
        assert_eq!(limits.reason(&PluginFailure::Deadline(error())), "limits.cpu of 50 ms exceeded");
        assert_eq!(limits.reason(&PluginFailure::Memory(error())), "limits.memory of 64 KiB exceeded");
        assert_eq!((size(16 << 20), size(3)), ("16 MiB".into(), "3 B".into()));
        assert!(
            limits.reason(&PluginFailure::Wasm(error())).starts_with("wasm trap: "),
            "{}",
            limits.reason(&PluginFailure::Wasm(error()))
        );
    }
}
