//! The access log: a line for each exchange, written by a thread of its own. A worker never waits for a disk: lines
//! that find the queue full are dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::error::Kind;
use crate::head::{CacheOutcome, Head, ValueName};

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Apache's and nginx's `combined`.
    Combined,
    /// One JSON object a line.
    Json,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Stdout,
    /// Opened for appending, and anew on SIGUSR1.
    File(PathBuf),
}

/// A worker's end of the log.
#[derive(Clone)]
pub struct AccessLog {
    format: Format,
    queue: SyncSender<Order>,
    dropped: Arc<AtomicU64>,
}

/// What an exchange came to, besides its head.
pub struct Outcome {
    pub status: u16,
    pub error: Option<Kind>,
    pub response_bytes: u64,
    /// Until the endpoint's response began; none if it didn't.
    pub answered: Option<Duration>,
    /// Until the last byte.
    pub took: Duration,
}

enum Order {
    Line(Vec<u8>),
    Reopen,
}

/// Lines that may wait for the disk; about 2 MiB.
const QUEUE: usize = 8192;

impl AccessLog {
    /// Starts the thread that writes.
    pub fn start(format: Format, target: Target) -> io::Result<Self> {
        let output = open(&target)?;
        let (queue, orders) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write(output, &target, &orders))?;
        Ok(AccessLog { format, queue, dropped: Arc::default() })
    }

    /// Logs an exchange that began at a time.
    pub fn write(&self, head: &Head, outcome: &Outcome, began: SystemTime) {
        let line = match self.format {
            Format::Combined => combined(head, outcome, began),
            Format::Json => json(head, outcome, began),
        };
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Order::Line(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file anew, after it was moved away.
    pub fn reopen(&self) {
        let _ = self.queue.try_send(Order::Reopen);
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write(mut output: Box<dyn Write>, target: &Target, orders: &Receiver<Order>) {
    while let Ok(order) = orders.recv() {
        let mut next = Some(order);
        while let Some(order) = next {
            let done = match order {
                Order::Line(line) => output.write_all(&line),
                Order::Reopen => output.flush().and_then(|()| open(target)).map(|opened| output = opened),
            };
            if let Err(error) = done {
                tracing::error!(%error, "access log");
            }
            next = orders.try_recv().ok();
        }
        // Nothing waits: what was written so far should be seen.
        if let Err(error) = output.flush() {
            tracing::error!(%error, "access log");
        }
    }
}

fn open(target: &Target) -> io::Result<Box<dyn Write + Send>> {
    let buffered = |file: File| Box::new(io::BufWriter::with_capacity(64 << 10, file)) as Box<dyn Write + Send>;
    match target {
        Target::Stdout => Ok(Box::new(io::BufWriter::with_capacity(64 << 10, io::stdout()))),
        Target::File(path) => OpenOptions::new().append(true).create(true).open(path).map(buffered),
    }
}

fn combined(head: &Head, outcome: &Outcome, began: SystemTime) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    quoted(&mut line, head.value(&ValueName::ClientAddress).as_ref().map_or(b"-", |value| value.bytes()));
    line.extend_from_slice(b" - - [");
    line.extend_from_slice(common_date(began).as_bytes());
    line.extend_from_slice(b"] \"");
    let received = &head.received;
    quoted(&mut line, format!("{} {} {:?}", received.method, received.target, received.version).as_bytes());
    line.extend_from_slice(format!("\" {} {} \"", outcome.status, outcome.response_bytes).as_bytes());
    for (name, end) in [(http::header::REFERER, &b"\" \""[..]), (http::header::USER_AGENT, b"\"\n")] {
        quoted(&mut line, head.request.headers.get(name).map_or(b"-", |value| value.as_bytes()));
        line.extend_from_slice(end);
    }
    line
}

/// Bytes that would end a quotation or a line are escaped as nginx does.
fn quoted(line: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'"' | b'\\' | 0..0x20 | 0x7f.. => line.extend_from_slice(format!("\\x{byte:02X}").as_bytes()),
            _ => line.push(*byte),
        }
    }
}

fn json(head: &Head, outcome: &Outcome, began: SystemTime) -> Vec<u8> {
    let text = |name: &ValueName| head.value(name).map(|value| String::from_utf8_lossy(value.bytes()).into_owned());
    let field = |name| {
        head.request.headers.get(name).map(|value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()))
    };
    let notes = head.notes.iter().map(|(name, value)| (name.clone(), String::from_utf8_lossy(value.as_bytes()).into()));
    let received = &head.received;
    let line = json!({
        "time": rfc3339(began),
        "client": text(&ValueName::ClientAddress),
        "method": received.method.as_str(),
        "target": received.target.to_string(),
        "protocol": format!("{:?}", received.version),
        "host": text(&ValueName::Authority),
        "status": outcome.status,
        "bytes": outcome.response_bytes,
        "duration_us": outcome.took.as_micros() as u64,
        "upstream_us": outcome.answered.map(|answered| answered.as_micros() as u64),
        "route": &*head.route,
        "upstream": &*head.upstream,
        "endpoint": head.endpoint.as_deref(),
        "cache": head.cache.map(CacheOutcome::word),
        "error": outcome.error.map(Kind::token),
        "request_id": head.request_id(),
        "user_agent": field(http::header::USER_AGENT),
        "notes": notes.collect::<serde_json::Map<_, _>>(),
    });
    let mut line = line.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Year, month, day, hour, minute, second of a time, in UTC (days to civil date after Hinnant).
fn civil(time: SystemTime) -> (i64, usize, u64, u64, u64, u64) {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = (year_of_era + era * 400) as i64 + i64::from(month <= 2);
    (year, month as usize, day, second / 3600, second / 60 % 60, second % 60)
}

fn common_date(time: SystemTime) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day, hour, minute, second) = civil(time);
    format!("{day:02}/{}/{year}:{hour:02}:{minute:02}:{second:02} +0000", MONTHS[(month - 1) % 12])
}

fn rfc3339(time: SystemTime) -> String {
    let (year, month, day, hour, minute, second) = civil(time);
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_millis());
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(common_date(at(0)), "01/Jan/1970:00:00:00 +0000");
        assert_eq!(common_date(at(951_827_696)), "29/Feb/2000:12:34:56 +0000");
        assert_eq!(rfc3339(at(1_795_501_496)), "2026-11-24T06:24:56.000Z");
    }

    #[test]
    fn no_byte_of_a_request_ends_the_quotation_or_the_line() {
        let mut line = Vec::new();
        quoted(&mut line, b"a\"b\\c\nd\xff");
        assert_eq!(line, br"a\x22b\x5Cc\x0Ad\xFF");
    }
}
