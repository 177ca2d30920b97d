//! What a plugin tells the log, by the log's interface or by printing: cut where it is long, dropped where it is much.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;
use tracing::{debug, error, info, trace, warn};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// A longer line is cut, as the WIT says.
pub(super) const LONGEST: usize = 4 << 10;

/// Lines that one instance may log in a second: enough to follow a fault, too few to fill a disk.
const A_SECOND: u32 = 100;

/// How loud a line is.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The lines of one instance.
#[derive(Clone)]
pub struct Lines {
    plugin: Arc<str>,
    // Locked by the one thread that runs the instance, and only to log.
    second: Arc<Mutex<Second>>,
}

struct Second {
    began: Instant,
    lines: u32,
}

impl Lines {
    /// For an instance of a plugin.
    pub fn new(plugin: Arc<str>) -> Self {
        Lines { plugin, second: Arc::new(Mutex::new(Second { began: Instant::now(), lines: 0 })) }
    }

    /// Logs a line, unless there were too many in this second.
    pub fn write(&self, level: Level, line: &str) {
        let plugin = &*self.plugin;
        let dropped = {
            let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
            let mut dropped = 0;
            if second.began.elapsed() > Duration::from_secs(1) {
                dropped = second.lines.saturating_sub(A_SECOND);
                *second = Second { began: Instant::now(), lines: 0 };
            }
            second.lines = second.lines.saturating_add(1);
            if second.lines > A_SECOND {
                return;
            }
            dropped
        };
        if dropped > 0 {
            warn!(plugin, dropped, "the plugin logged more than {A_SECOND} lines in a second");
        }
        let line = &line[..line.floor_char_boundary(LONGEST)];
        match level {
            Level::Error => error!(plugin, "{line}"),
            Level::Warn => warn!(plugin, "{line}"),
            Level::Info => info!(plugin, "{line}"),
            Level::Debug => debug!(plugin, "{line}"),
            Level::Trace => trace!(plugin, "{line}"),
        }
    }
}

// === What is printed ===

/// Standard output or error of an instance.
pub struct Printed(pub Lines);

/// Gathers what is printed to lines.
struct Printing {
    lines: Lines,
    begun: Vec<u8>,
}

impl Printing {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ if self.begun.len() < LONGEST => self.begun.push(*byte),
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
        Ok(LONGEST)
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
