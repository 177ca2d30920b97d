//! The access log: one line per exchange, written by a dedicated thread. A worker never waits for a disk or a reader:
//! if the queue is full, lines are dropped and counted.
#![expect(clippy::disallowed_methods, reason = "the writer is a thread of its own")]

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use http::Version;
use serde_json::json;

use crate::context::{CacheOutcome, ExchangeContext, ReceivedFields, ReceivedRequest, RequestLine};
use crate::error::FailureKind;
use crate::system::files;
use crate::system::printable::{TRUNCATED, is_hostile};
use crate::system::supervise::{Task, guard};
use crate::telemetry::output::Output;

/// The format of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// The format `combined` of Apache and nginx.
    Combined,
    /// The format with one JSON object per line.
    Json,
}

/// The destination of the log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Stdout,
    /// A file, opened for appending, and reopened on SIGUSR1.
    File(PathBuf),
}

/// A worker's handle to the log.
#[derive(Clone)]
pub struct AccessLog {
    format: LogFormat,
    queue: SyncSender<Vec<u8>>,
    shared: Arc<LogShared>,
    _end: Arc<LogEnd>,
}

/// Informs the writer thread, when dropped, that no worker uses the log any more.
struct LogEnd(Arc<LogShared>);

/// The state that the workers and the writer thread share.
#[derive(Default)]
struct LogShared {
    /// The size of the lines that are not written yet, in bytes of memory.
    queued: AtomicUsize,
    dropped: AtomicU64,
    /// Whether the writer has to reopen the file. A flag, so that the order needs no room in the queue.
    reopens: AtomicBool,
    /// Whether the writer stops waiting for a reader that does not read.
    is_leaving: AtomicBool,
}

/// The result of an exchange, besides its head.
pub struct ExchangeOutcome {
    pub status: u16,
    pub error: Option<FailureKind>,
    pub response_bytes: u64,
    /// Whether all of the response was sent.
    pub is_whole: bool,
    /// The time until the endpoint's response began; `None` if there was none.
    pub answered: Option<Duration>,
    /// The time until the last byte.
    pub took: Duration,
}

/// The maximum number of queued lines.
const MAX_QUEUED_LINES: usize = 8192;

/// The maximum size of the queued lines, in bytes of memory. A usual line has 200 to 500.
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// The number of bytes that are written at once.
const BATCH: usize = 64 << 10;

/// The minimum time between two log lines about an access log that can't be written.
const REPORT: Duration = Duration::from_secs(60);

/// The maximum length of a request target in a line, in bytes: the longest that most servers accept.
const MAX_TARGET_BYTES: usize = 8 << 10;

/// The note that names the user in the format `combined`; the plugin `auth-basic` sets it.
const USER_NOTE: &str = "user";

/// The maximum length of any other text in a line, and of all notes together, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 10;
const MAX_NOTES_BYTES: usize = 8 << 10;

impl AccessLog {
    /// Starts the writer thread.
    pub fn start(format: LogFormat, target: LogTarget) -> io::Result<Self> {
        let output = Output::new(open(&target)?);
        let (queue, lines) = sync_channel(MAX_QUEUED_LINES);
        let shared = Arc::<LogShared>::default();
        let writer = Writer { output, target, shared: shared.clone(), reported: None };
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&lines))?;
        let end = Arc::new(LogEnd(shared.clone()));
        Ok(AccessLog { format, queue, shared, _end: end })
    }

    /// Checks whether the log could be opened; creates nothing.
    pub fn check(target: &LogTarget) -> io::Result<()> {
        let LogTarget::File(path) = target else { return Ok(()) };
        match appending(path).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && std::fs::symlink_metadata(path).is_err() => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                files::check_writable(folder)
            }
            opened => opened.map(drop),
        }
    }

    /// Logs an exchange that began at `began`.
    pub fn write(&self, context: &ExchangeContext, outcome: &ExchangeOutcome, began: SystemTime) {
        let line = match self.format {
            LogFormat::Combined => combined(context, outcome, began),
            LogFormat::Json => json(context, outcome, began),
        };
        let size = line.capacity();
        let is_full = self.shared.queued.fetch_add(size, Ordering::Relaxed) + size > MAX_QUEUED_BYTES;
        if is_full || self.queue.try_send(line).is_err() {
            self.shared.queued.fetch_sub(size, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reopens the file, after it was moved away.
    pub fn reopen(&self) {
        self.shared.reopens.store(true, Ordering::Release);
        // Wakes the writer; with a full queue it is awake.
        let _ = self.queue.try_send(Vec::new());
    }

    /// Waits until all lines are written, for at most `within`; afterwards the writer does not wait for a reader any
    /// more.
    pub fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        while self.shared.queued.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.shared.is_leaving.store(true, Ordering::Relaxed);
    }

    /// Returns the number of dropped lines.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for LogEnd {
    fn drop(&mut self) {
        self.0.is_leaving.store(true, Ordering::Relaxed);
    }
}

/// The writer thread's side of the log.
struct Writer {
    output: Output,
    target: LogTarget,
    shared: Arc<LogShared>,
    /// The time of the last log line about a failure.
    reported: Option<Instant>,
}

impl Writer {
    /// Writes until no worker has the log.
    fn run(mut self, lines: &Receiver<Vec<u8>>) {
        while let Ok(first) = lines.recv() {
            // A panic loses the current lines, but not the log.
            let _ = guard(Task::AccessLog, || self.write_batch(first, lines));
        }
    }

    fn write_batch(&mut self, first: Vec<u8>, lines: &Receiver<Vec<u8>>) {
        let mut batch = Batch { shared: self.shared.clone(), text: Vec::with_capacity(BATCH), lines: 0, size: 0 };
        batch.add(&first);
        while let Some(next) = (batch.text.len() < BATCH).then(|| lines.try_recv().ok()).flatten() {
            batch.add(&next);
        }
        if self.shared.reopens.swap(false, Ordering::Acquire) {
            match open(&self.target) {
                Ok(file) => self.output = Output::new(file),
                Err(error) => self.report(&error, "access log can't be opened again"),
            }
        }
        let shared = self.shared.clone();
        // A reader that does not read must delay neither the end of the log nor a reopening of the file.
        let may_wait = || !shared.is_leaving.load(Ordering::Relaxed) && !shared.reopens.load(Ordering::Relaxed);
        if let Err((_, error)) = self.output.write(&batch.text, may_wait) {
            self.shared.dropped.fetch_add(batch.lines, Ordering::Relaxed);
            self.report(&error, "access log can't be written");
        }
    }

    /// Logs a failure, at a limited rate.
    fn report(&mut self, error: &io::Error, what: &'static str) {
        if self.reported.is_none_or(|last| last.elapsed() >= REPORT) {
            self.reported = Some(Instant::now());
            tracing::error!(%error, dropped = self.shared.dropped.load(Ordering::Relaxed), "{what}");
        }
    }
}

/// A batch of lines that are written together. The lines count as queued until the batch is dropped.
struct Batch {
    shared: Arc<LogShared>,
    text: Vec<u8>,
    lines: u64,
    size: usize,
}

impl Batch {
    fn add(&mut self, line: &Vec<u8>) {
        self.text.extend_from_slice(line);
        self.lines += u64::from(!line.is_empty());
        self.size += line.capacity();
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.shared.queued.fetch_sub(self.size, Ordering::Relaxed);
    }
}

fn open(target: &LogTarget) -> io::Result<File> {
    match target {
        LogTarget::Stdout => Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
        LogTarget::File(path) => open_file(path),
    }
}

/// Opens a file for appending, and creates it if there is none.
fn open_file(path: &Path) -> io::Result<File> {
    appending(path).create(true).open(path)
}

/// Returns options that open a file for appending. A FIFO is opened for reading too: the open then needs no reader, and
/// if a reader restarts, only the lines of the meantime are lost.
fn appending(path: &Path) -> OpenOptions {
    let is_fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    let mut options = OpenOptions::new();
    // The open must not wait, whatever kind of file the path names.
    options.append(true).read(is_fifo).custom_flags(libc::O_NONBLOCK);
    options
}

fn combined(context: &ExchangeContext, outcome: &ExchangeOutcome, began: SystemTime) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    quoted(&mut line, context.client_address().map_or(b"-", |address| address.as_bytes()), MAX_TEXT_BYTES);
    line.extend_from_slice(b" - ");
    let user = context.note(USER_NOTE).map_or(&b"-"[..], |user| user.as_bytes());
    word(&mut line, user);
    line.extend_from_slice(b" [");
    line.extend_from_slice(common_date(began).as_bytes());
    line.extend_from_slice(b"] \"");
    match &context.received {
        ReceivedRequest::Parsed(received) => {
            quoted(&mut line, received.method.as_str().as_bytes(), MAX_TEXT_BYTES);
            line.push(b' ');
            quoted(&mut line, target(received).as_bytes(), MAX_TARGET_BYTES);
            line.extend_from_slice(format!(" {:?}", received.version).as_bytes());
        }
        ReceivedRequest::Unparsed(begun) if begun.is_empty() => line.push(b'-'),
        ReceivedRequest::Unparsed(begun) => quoted(&mut line, begun, MAX_TARGET_BYTES),
    }
    line.extend_from_slice(format!("\" {} {} \"", outcome.status, outcome.response_bytes).as_bytes());
    let words = received_fields(context);
    let (referer, agent) =
        (words.and_then(|words| words.referer.as_ref()), words.and_then(|words| words.user_agent.as_ref()));
    for (value, end) in [(referer, &b"\" \""[..]), (agent, b"\"\n")] {
        quoted(&mut line, value.map_or(b"-", |value| value.as_bytes()), MAX_TEXT_BYTES);
        line.extend_from_slice(end);
    }
    line
}

/// Appends a text that is one word of a line: readers of the format split lines at spaces.
fn word(line: &mut Vec<u8>, bytes: &[u8]) {
    escape(line, bytes, MAX_TEXT_BYTES, |byte| byte == b' ' || ends_text(byte));
}

/// Returns the request target as a request line of HTTP/1 has it.
fn target(received: &RequestLine) -> Cow<'_, str> {
    match received.target.path_and_query() {
        // hyper has made one URI of what the client sent in four fields.
        Some(target) if received.version == Version::HTTP_2 => target.as_str().into(),
        _ => received.target.to_string().into(),
    }
}

/// Appends a text of at max `max` bytes. Bytes that would end a quotation or a line are escaped as nginx does.
fn quoted(line: &mut Vec<u8>, bytes: &[u8], max: usize) {
    escape(line, bytes, max, ends_text);
}

/// Whether a byte would end a quotation or a line, or is not ASCII.
fn ends_text(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\' | 0..0x20 | 0x7f..)
}

/// Appends a text of at most `max` bytes, in which some bytes are escaped.
fn escape(line: &mut Vec<u8>, bytes: &[u8], max: usize, is_escaped: impl Fn(u8) -> bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes.iter().copied().take(max) {
        if is_escaped(byte) {
            let (high, low) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
            line.extend_from_slice(&[b'\\', b'x', high, low]);
        } else {
            line.push(byte);
        }
    }
    if bytes.len() > max {
        line.extend_from_slice(TRUNCATED.as_bytes());
    }
}

fn json(context: &ExchangeContext, outcome: &ExchangeOutcome, began: SystemTime) -> Vec<u8> {
    let shown =
        |value: Option<&http::HeaderValue>| value.map(|value| text(value.as_bytes(), MAX_TEXT_BYTES).into_owned());
    let ShownLine { method, target, protocol } = ShownLine::of(&context.received);
    let words = received_fields(context);
    let line = json!({
        "time": rfc3339(began),
        "client": shown(context.client_address()),
        "method": method,
        "target": target,
        "protocol": protocol,
        "host": shown(words.and_then(|words| words.host.as_ref())),
        "status": outcome.status,
        "bytes": outcome.response_bytes,
        "complete": outcome.is_whole,
        "duration_us": outcome.took.as_micros() as u64,
        "upstream_us": outcome.answered.map(|answered| answered.as_micros() as u64),
        "route": &*context.route,
        "upstream": &*context.upstream,
        "endpoint": context.endpoint.as_deref(),
        "cache": context.cache.map(CacheOutcome::word),
        "error": outcome.error.map(FailureKind::token),
        "request_id": context.request_id(),
        "user_agent": shown(words.and_then(|words| words.user_agent.as_ref())),
        "referer": shown(words.and_then(|words| words.referer.as_ref())),
        "notes": notes(context),
    });
    let mut line = escaped(line.to_string()).into_bytes();
    line.push(b'\n');
    line
}

/// Returns the fields that the client sent; `None` if the request was not parsed.
fn received_fields(context: &ExchangeContext) -> Option<&ReceivedFields> {
    match &context.received {
        ReceivedRequest::Parsed(received) => received.words.as_deref(),
        ReceivedRequest::Unparsed(_) => None,
    }
}

/// The parts of a request line, each `None` if it is not known.
struct ShownLine<'a> {
    method: Option<Cow<'a, str>>,
    target: Option<Cow<'a, str>>,
    protocol: Option<Cow<'a, str>>,
}

impl<'a> ShownLine<'a> {
    /// Splits a line that was not parsed if it has the form of a request line. Otherwise the target is all of the line.
    fn of(received: &'a ReceivedRequest) -> Self {
        let line = match received {
            ReceivedRequest::Parsed(received) => {
                return ShownLine {
                    method: Some(text(received.method.as_str().as_bytes(), MAX_TEXT_BYTES)),
                    target: Some(Cow::Owned(text(target(received).as_bytes(), MAX_TARGET_BYTES).into_owned())),
                    protocol: Some(format!("{:?}", received.version).into()),
                };
            }
            ReceivedRequest::Unparsed(line) => line,
        };
        let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let shown = |part: &'a [u8], max| Some(text(part, max)).filter(|text| !text.is_empty());
        match parts[..] {
            [method, target, protocol] if protocol.starts_with(b"HTTP/") => ShownLine {
                method: shown(method, MAX_TEXT_BYTES),
                target: shown(target, MAX_TARGET_BYTES),
                protocol: shown(protocol, MAX_TEXT_BYTES),
            },
            _ => ShownLine { method: None, target: shown(line, MAX_TARGET_BYTES), protocol: None },
        }
    }
}

/// Returns at max `max` bytes of a text, with a mark if the text was longer.
fn text(bytes: &[u8], max: usize) -> Cow<'_, str> {
    if bytes.len() <= max {
        return String::from_utf8_lossy(bytes);
    }
    let mut beginning = String::from_utf8_lossy(&bytes[..max]).into_owned();
    beginning.push_str(TRUNCATED);
    Cow::Owned(beginning)
}

/// Returns the notes of an exchange, as many as fit into a line.
fn notes(context: &ExchangeContext) -> serde_json::Map<String, serde_json::Value> {
    let (mut notes, mut size) = (serde_json::Map::new(), 0);
    for (name, value) in &context.notes {
        size += name.len() + value.len();
        if size > MAX_NOTES_BYTES {
            notes.insert(TRUNCATED.into(), format!("{} notes in all", context.notes.len()).into());
            break;
        }
        notes.insert(name.clone(), text(value.as_bytes(), MAX_TEXT_BYTES).into());
    }
    notes
}

/// Returns JSON without characters that control a terminal; those of ASCII are escaped already.
fn escaped(json: String) -> String {
    if json.is_ascii() {
        return json;
    }
    let mut line = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_hostile(character) {
            line.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            line.push(character);
        }
    }
    line
}

/// Returns year, month, day, hour, minute and second of a time, in UTC (days to civil date after Hinnant).
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
        quoted(&mut line, b"a\"b\\c\nd\xff", 100);
        assert_eq!(line, br"a\x22b\x5Cc\x0Ad\xFF");
        assert_eq!(escaped(json!("\u{9b}\u{202e}\n\u{7f}ä").to_string()), r#""\u009b\u202e\n\u007fä""#);
    }

    #[test]
    fn a_word_has_no_spaces_and_is_truncated_as_a_whole() {
        for bytes in [&b" "[..], b"a ", b"\x80 "] {
            let mut line = Vec::new();
            word(&mut line, &bytes.repeat(65536));
            assert!(line.len() <= 4 * MAX_TEXT_BYTES + TRUNCATED.len(), "{}", line.len());
            assert!(!line.contains(&b' '), "{line:?}");
        }
    }

    #[test]
    fn long_texts_are_truncated_with_a_mark() {
        let mut line = Vec::new();
        quoted(&mut line, b"abcdef", 3);
        assert_eq!(line, b"abc...");
        assert_eq!((text(b"abc", 3), text(b"abcd", 3)), ("abc".into(), "abc...".into()));
    }
}
