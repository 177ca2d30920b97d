//! The log of the process. Threads append lines to a bounded queue in memory; a thread of its own writes them to
//! standard error. No other thread ever waits for the reader of the log, or notices that it is gone.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::system::printable;
use crate::system::supervise::{Task, guard};
use crate::telemetry::output::{self, Output};

/// The maximum size of queued lines, in bytes: some thousand lines, which are little memory.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// The maximum length of one record, in bytes. An error message about a whole manifest fits.
const MAX_RECORD_BYTES: usize = 64 << 10;

/// The capacity that the buffers keep after a burst, in bytes.
const KEPT: usize = 16 << 10;

/// The queue of the process, which has one standard error.
static LOG: Log = Log {
    queue: Mutex::new(LogQueue { lines: Vec::new(), writing: 0, unreported: 0, has_reserve: false }),
    is_filled: Condvar::new(),
    is_written: Condvar::new(),
    dropped: AtomicU64::new(0),
};

struct Log {
    // Locked to copy one line or to swap two buffers, never during a write or a format; and log lines are rare.
    queue: Mutex<LogQueue>,
    is_filled: Condvar,
    is_written: Condvar,
    /// The number of lines that were dropped since the start.
    dropped: AtomicU64,
}

struct LogQueue {
    lines: Vec<u8>,
    /// The number of bytes that the thread is writing.
    writing: usize,
    /// The number of dropped lines that the log has not reported yet.
    unreported: u64,
    /// Whether one more line may exceed the limit: the report of dropped lines.
    has_reserve: bool,
}

/// A writer for one record of the log.
pub struct LogRecord;

/// The reason why there is no thread that writes; unset if there is one.
static NO_THREAD: OnceLock<String> = OnceLock::new();

/// Starts the thread that writes to standard error. Without the thread, [`flush`] and [`print`] write.
pub fn start() {
    let writing = |output| std::thread::Builder::new().name("log".into()).spawn(move || write_all(output));
    if let Err(error) = stderr().and_then(writing) {
        let _ = NO_THREAD.set(format!(
            "no thread can be started: {error}; raise TasksMax= of the systemd unit, pids.max of the container, or \
             `ulimit -u`"
        ));
    }
}

fn stderr() -> io::Result<Output> {
    Ok(Output::new(File::from(io::stderr().as_fd().try_clone_to_owned()?)))
}

fn write_all(mut output: Output) {
    loop {
        // A panic loses the current lines, but not the log.
        let _ = guard(Task::Log, || LOG.write_next(&mut output));
    }
}

/// Waits until all lines are written, for at most `within`.
pub fn flush(within: Duration) {
    if NO_THREAD.get().is_some() {
        return LOG.write_here(within);
    }
    let is_waiting = |queue: &mut LogQueue| queue.writing > 0 || !queue.lines.is_empty();
    drop(LOG.is_written.wait_timeout_while(LOG.lock(), within, is_waiting));
}

/// Writes a text unchanged after all queued lines: the error that a command ends with. Waits for a reader for a limited
/// time, as [`flush`] does.
pub fn print(text: &str, within: Duration) {
    LOG.append(&mut LOG.lock(), text, "");
    if let Some(reason) = NO_THREAD.get() {
        LOG.append(&mut LOG.lock(), reason, "");
    }
    LOG.is_filled.notify_one();
    flush(within);
}

/// Returns the number of lines that were dropped since the start.
pub fn dropped() -> u64 {
    LOG.dropped.load(Ordering::Relaxed)
}

impl io::Write for LogRecord {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.push(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, record: &str) {
        let text = record.strip_suffix('\n').unwrap_or(record);
        let beginning = printable::truncated(text, MAX_RECORD_BYTES);
        let mark = if beginning.len() < text.len() { printable::TRUNCATED } else { "" };
        let beginning = printable::record(beginning);
        let mut queue = self.lock();
        let has_room = queue.lines.len() + queue.writing + beginning.len() + mark.len() < MAX_QUEUED_BYTES;
        if !has_room && !std::mem::take(&mut queue.has_reserve) {
            queue.unreported += 1;
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.append(&mut queue, &beginning, mark);
        drop(queue);
        self.is_filled.notify_one();
    }

    fn append(&self, queue: &mut LogQueue, text: &str, mark: &str) {
        for part in [text, mark, "\n"] {
            queue.lines.extend_from_slice(part.as_bytes());
        }
    }

    /// Writes the queued lines on this thread, and waits for their reader for about `within`.
    fn write_here(&self, within: Duration) {
        let lines = std::mem::take(&mut self.lock().lines);
        let rounds = Cell::new(within.div_duration_f32(output::LOOK_TIME) as u32);
        let may_wait = || rounds.replace(rounds.get().saturating_sub(1)) > 0;
        if let Ok(mut output) = stderr() {
            let _ = output.write(&lines, may_wait);
        }
    }

    /// Waits for lines and writes them.
    fn write_next(&self, output: &mut Output) {
        let lines = self.take();
        let outcome = output.write(&lines, || true);
        let lost = outcome.as_ref().err().map_or(0, |(written, _)| count_lines(&lines[*written..]));
        self.dropped.fetch_add(lost, Ordering::Relaxed);
        let mut queue = self.lock();
        (queue.writing, queue.unreported) = (0, queue.unreported + lost);
        // A log that can't be written gets the report of dropped lines once it can.
        let unreported = if outcome.is_ok() { std::mem::take(&mut queue.unreported) } else { 0 };
        queue.has_reserve = unreported > 0;
        drop(queue);
        if unreported > 0 {
            tracing::warn!(lines = unreported, "log lines dropped");
        }
        self.is_written.notify_all();
    }

    fn take(&self) -> Vec<u8> {
        let queue = self.is_filled.wait_while(self.lock(), |queue| {
            // A panic may have left a number here.
            queue.writing = 0;
            queue.lines.is_empty()
        });
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::replace(&mut queue.lines, Vec::with_capacity(KEPT));
        queue.writing = lines.len();
        lines
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}
