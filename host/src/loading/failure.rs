//! The reasons why a component could not be loaded, in words for a manifest's author.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::LoadLimits;

/// The reason why a component could not be loaded, or its configuration not be checked.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailure {
    /// The component is no good, as the child says.
    #[error("{0}")]
    Refused(String),
    #[error("loading it takes more than `[load] time` of {} s; it is a danger, or too large for this limit", .0.time.as_secs())]
    Time(LoadLimits),
    #[error("loading it takes more than `[load] memory` of {} MiB; it is a danger, or too large for this limit", .0.memory >> 20)]
    Memory(LoadLimits),
    #[error("loading it overflows a stack: it nests too deeply")]
    Stack,
    #[error("loading it crashes ({0})")]
    Crash(String),
    #[error("loading it crashes (signal {0}), perhaps for lack of memory: `[load] memory` is {mib} MiB", mib = .1.memory >> 20)]
    Signal(i32, LoadLimits),
    #[error("it is not loaded, for the process ends")]
    Stopped,
    #[error("it can't be loaded: {0}")]
    Io(#[from] io::Error),
}

impl LoadFailure {
    /// Returns the reason of a child's end, by its exit status and the end of its standard error.
    pub(super) fn of(status: ExitStatus, last_words: &str, limits: LoadLimits) -> Self {
        let signal = status.signal();
        if signal == Some(libc::SIGXCPU) {
            return LoadFailure::Time(limits);
        }
        if last_words.contains("memory allocation of") || last_words.contains("os error 12") {
            return LoadFailure::Memory(limits);
        }
        if last_words.contains("overflowed its stack") || last_words.contains("stack overflow") {
            return LoadFailure::Stack;
        }
        match signal {
            // The proxy ends its children otherwise.
            Some(libc::SIGKILL) => LoadFailure::Crash("killed; was the system short of memory?".into()),
            Some(signal) => LoadFailure::Signal(signal, limits),
            None => LoadFailure::Crash(format!("exit code {}", status.code().unwrap_or_default())),
        }
    }
}
