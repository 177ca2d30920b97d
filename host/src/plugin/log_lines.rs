//! The log lines of a plugin, by the log's interface, by printing or about its failures: truncated, escaped, and limited
//! for all instances of the plugin together.
#![expect(clippy::disallowed_methods, reason = "read once: the origin of the seconds in which lines are counted")]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::AsyncWrite;
use tracing::{debug, enabled, error, info, trace, warn};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::system::printable::one_line;

/// A longer line is cut, as the WIT says.
pub(super) const MAX_LINE_BYTES: usize = 4 << 10;

/// Lines that one plugin may log in a second: enough to follow a fault, too few to fill a disk.
const LINES_A_SECOND: u64 = 100;

/// The maximum bytes of these lines in a second: half a day at this rate fills 2.6 GiB, and 100 usual lines fit.
const BYTES_A_SECOND: u64 = 64 << 10;

/// A log level.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The lines of one plugin, over all its instances and workers.
#[derive(Clone)]
pub struct PluginLog(Arc<LineBudget>);

/// Counters rather than a lock: workers that log at the same moment may let a line too many through, and never wait.
struct LineBudget {
    plugin: Arc<str>,
    began: Instant,
    /// The second that `lines` and `bytes` count, since `began`.
    second: AtomicU64,
    lines: AtomicU64,
    bytes: AtomicU64,
    /// Lines that were left out and not reported yet.
    left_out: AtomicU64,
    /// Lines that were left out in all.
    dropped: AtomicU64,
}

impl PluginLog {
    /// Returns the name of the plugin.
    pub fn plugin(&self) -> &Arc<str> {
        &self.0.plugin
    }

    /// Returns the counters of a plugin, by its name in the manifest.
    pub fn new(plugin: Arc<str>) -> Self {
        let [second, lines, bytes, left_out, dropped] = [const { AtomicU64::new(0) }; 5];
        PluginLog(Arc::new(LineBudget { plugin, began: Instant::now(), second, lines, bytes, left_out, dropped }))
    }

    /// Logs a line, unless the limit of the current second is reached.
    pub fn write(&self, level: Level, line: &str) {
        let is_shown = match level {
            Level::Error => enabled!(tracing::Level::ERROR),
            Level::Warn => enabled!(tracing::Level::WARN),
            Level::Info => enabled!(tracing::Level::INFO),
            Level::Debug => enabled!(tracing::Level::DEBUG),
            Level::Trace => enabled!(tracing::Level::TRACE),
        };
        if !is_shown {
            return;
        }
        let (plugin, line) = (&*self.0.plugin, one_line(line, MAX_LINE_BYTES));
        if !self.admits(line.len()) {
            return;
        }
        match level {
            Level::Error => error!(plugin, "{line}"),
            Level::Warn => warn!(plugin, "{line}"),
            Level::Info => info!(plugin, "{line}"),
            Level::Debug => debug!(plugin, "{line}"),
            Level::Trace => trace!(plugin, "{line}"),
        }
    }

    /// Counts a line of `bytes` bytes. Returns whether the current second has room for the line.
    pub(super) fn admits(&self, bytes: usize) -> bool {
        self.report();
        let lines = self.0.lines.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.0.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let has_room = lines <= LINES_A_SECOND && bytes <= BYTES_A_SECOND;
        if !has_room {
            self.0.left_out.fetch_add(1, Ordering::Relaxed);
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Begins a new second if the last one is over, and logs how many lines were left out. Called at each line and at
    /// the ticks of workers, so that the end of a burst is reported too.
    pub fn report(&self) {
        let counted = &*self.0;
        let (now, second) = (counted.began.elapsed().as_secs(), counted.second.load(Ordering::Relaxed));
        let begins = || counted.second.compare_exchange(second, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if now == second || !begins() {
            return;
        }
        counted.lines.store(0, Ordering::Relaxed);
        counted.bytes.store(0, Ordering::Relaxed);
        let left_out = counted.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            let plugin = &*counted.plugin;
            warn!(plugin, left_out, "plugin lines left out: at most {LINES_A_SECOND} and 64 KiB a second");
        }
    }

    /// The number of lines that were left out in all.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

// === What is printed ===

/// Standard output or error of an instance.
pub struct Printed(pub PluginLog);

/// The output that a plugin prints, which is split into lines.
struct Printing {
    lines: PluginLog,
    begun: Vec<u8>,
}

impl Printing {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ if self.begun.len() < MAX_LINE_BYTES => self.begun.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        if !self.begun.is_empty() {
            self.lines.write(Level::Info, &String::from_utf8_lossy(&self.begun));
            self.begun.clear();
        }
    }
}

impl Drop for Printing {
    fn drop(&mut self) {
        self.end_line();
    }
}

impl Printed {
    fn stream(&self) -> Printing {
        Printing { lines: self.0.clone(), begun: Vec::new() }
    }
}

impl IsTerminal for Printed {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Printed {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.stream())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.stream())
    }
}

#[async_trait]
impl Pollable for Printing {
    async fn ready(&mut self) {}
}

impl OutputStream for Printing {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_LINE_BYTES)
    }
}

impl AsyncWrite for Printing {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_room_for_so_many_lines_of_all_instances() {
        let lines = PluginLog::new("plugin".into());
        let admitted = |bytes: usize| (0..1000).filter(|_| lines.clone().admits(bytes)).count() as u64;
        // The clock may begin a new second meanwhile.
        assert!((LINES_A_SECOND..=2 * LINES_A_SECOND).contains(&admitted(10)));
        assert!(admitted(MAX_LINE_BYTES) <= 2 * BYTES_A_SECOND / MAX_LINE_BYTES as u64);
        assert!(lines.dropped() >= 2000 - 2 * LINES_A_SECOND - 32);
    }
}
