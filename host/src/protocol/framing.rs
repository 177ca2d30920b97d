//! The framing scanner: scans the bytes of an HTTP/1 client before hyper parses them, and rejects every message that
//! another recipient could parse differently (RFC 9112). The scanner decides only where messages begin and end, and
//! whether that is unambiguous. Bodies are skipped by their length, so that they cost next to nothing.

#[cfg(test)]
mod tests;

/// The limits of a client's messages.
#[derive(Clone, Copy, Debug, Hash)]
pub struct HeadLimits {
    pub head_bytes: usize,
    pub fields: usize,
    pub target_bytes: usize,
}

/// The position of a connection in its stream of messages.
#[derive(Debug)]
pub struct Scanner {
    limits: HeadLimits,
    state: ScanState,
    /// The bytes of a partial line, if a read ended within one.
    line: Vec<u8>,
    context: ScannedHead,
    /// The number of bytes of the last read up to the end of the last whole message in it.
    complete_bytes: usize,
    /// The number of whole messages so far.
    messages: usize,
}

/// The reason why a message is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    /// A line doesn't end with CRLF, or contains a control byte (RFC 9112 §2.2).
    Line,
    /// The request line isn't `method target version` (§3).
    RequestLine,
    /// The target has none of the forms of §3.2.
    Target,
    /// The version is not supported (§2.3).
    Version,
    /// A field line continues the one before (§5.2).
    Fold,
    /// A field line isn't `name: value` (§5).
    Field,
    /// `Host` is missing, repeated or no authority (§3.2).
    Host,
    /// `Content-Length` is repeated or no number (RFC 9110 §8.6).
    Length,
    /// `Transfer-Encoding` is repeated, malformed, or used in HTTP/1.0 (RFC 9112 §6.1).
    Coding,
    /// The transfer coding isn't supported (§6.1).
    UnknownCoding,
    /// The message has both a length and a coding (§6.1).
    LengthAndCoding,
    /// A chunk isn't `size CRLF data CRLF` (§7.1).
    Chunk,
    /// A trailer would change the meaning of the message (RFC 9110 §6.5.1).
    Trailer,
    /// The target is too long.
    LongTarget,
    /// The head or the trailers are too long.
    LongHead,
    /// The message has too many fields.
    ManyFields,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScanState {
    /// The scanner is between two messages: the next byte begins a request line. Empty lines may precede it (§2.2).
    Between,
    Fields,
    /// The scanner is in a body; holds the number of bytes that are left.
    Content(u64),
    ChunkSize,
    /// The scanner is in the data of a chunk; holds the number of bytes that are left.
    ChunkData(u64),
    ChunkEnd,
    Trailers,
}

/// The facts of the message's head that were read so far.
#[derive(Clone, Copy, Debug, Default)]
struct ScannedHead {
    /// The length of the head, of the trailers, or of chunk extensions, in bytes.
    bytes: usize,
    fields: usize,
    empty_lines: u8,
    is_http_10: bool,
    hosts: u8,
    length: Option<u64>,
    is_chunked: bool,
    /// The length of the chunk extensions in the whole body, in bytes.
    extensions: usize,
}

/// The maximum number of empty lines that a client may send before a request.
const EMPTY_LINES: u8 = 4;
/// The maximum length of a line with a chunk's size, in bytes, including unused extensions.
const CHUNK_LINE: usize = 256;
/// The maximum number of digits of a chunk's size: 64 bits. More are zeros, which some parsers truncate or overflow on.
const CHUNK_DIGITS: usize = 16;
/// The maximum length of all extensions, in bytes: recipients have to parse them, and none is used (CVE-2023-39326).
const EXTENSIONS: usize = 16 << 10;

impl Scanner {
    /// Creates a scanner for a new connection.
    pub fn new(limits: HeadLimits) -> Self {
        Scanner {
            limits,
            state: ScanState::Between,
            line: Vec::new(),
            context: ScannedHead::default(),
            complete_bytes: 0,
            messages: 0,
        }
    }

    /// Scans the next bytes. After an error no more bytes of the connection can be scanned.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), FramingError> {
        let length = bytes.len();
        self.complete_bytes = 0;
        while !bytes.is_empty() {
            let taken = match self.state {
                ScanState::Content(left) => {
                    let (taken, left) = skip(left, bytes);
                    self.state = if left == 0 { self.next_message() } else { ScanState::Content(left) };
                    taken
                }
                ScanState::ChunkData(left) => {
                    let (taken, left) = skip(left, bytes);
                    self.state = if left == 0 { ScanState::ChunkEnd } else { ScanState::ChunkData(left) };
                    taken
                }
                _ => self.take_line(bytes)?,
            };
            bytes = &bytes[taken..];
            if self.is_between() {
                self.complete_bytes = length - bytes.len();
            }
        }
        Ok(())
    }

    /// Returns how many of the last bytes belong to whole messages, which are valid whatever follows.
    pub fn complete_bytes(&self) -> usize {
        self.complete_bytes
    }

    /// Returns the number of messages that were scanned to their end.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Whether the next byte begins a message.
    pub fn is_between(&self) -> bool {
        self.state == ScanState::Between && self.line.is_empty()
    }

    /// Whether a head has begun and isn't complete yet.
    pub fn is_in_head(&self) -> bool {
        self.state == ScanState::Fields || self.state == ScanState::Between && !self.line.is_empty()
    }

    fn next_message(&mut self) -> ScanState {
        self.messages += 1;
        self.context = ScannedHead::default();
        ScanState::Between
    }

    /// Scans bytes up to the end of a line; returns how many.
    fn take_line(&mut self, bytes: &[u8]) -> Result<usize, FramingError> {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.line.extend_from_slice(bytes);
            return self.check_begun().map(|()| bytes.len());
        };
        if self.line.is_empty() {
            self.whole_line(&bytes[..end])?;
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&bytes[..end]);
            self.whole_line(&line)?;
            line.clear();
            self.line = line;
        }
        if self.state == ScanState::Between {
            // The memory of a long head is freed.
            self.line = Vec::new();
        }
        Ok(end + 1)
    }

    /// Checks a partial line: an invalid line is rejected at once, so that no peer waits for its end.
    fn check_begun(&self) -> Result<(), FramingError> {
        self.check_length(self.line.strip_suffix(b"\r").unwrap_or(&self.line))
    }

    /// Rejects a line, given without CRLF, that is or has become too long. Longer lines are never accepted either, so
    /// that the result doesn't depend on where reads split the line.
    fn check_length(&self, line: &[u8]) -> Result<(), FramingError> {
        if matches!(self.state, ScanState::ChunkSize | ScanState::ChunkEnd) {
            return if line.len() > CHUNK_LINE { Err(FramingError::Chunk) } else { Ok(()) };
        }
        let room = self.limits.head_bytes.saturating_sub(self.context.bytes + b"\r\n".len());
        // The limit that comes first in the line is the one that the line exceeds.
        let (within, max) = (&line[..line.len().min(room)], self.limits.target_bytes);
        if self.state == ScanState::Between && within.len() > max && target_of(within).len() > max {
            return Err(FramingError::LongTarget);
        }
        if line.len() > room { Err(FramingError::LongHead) } else { Ok(()) }
    }

    /// Scans a line, given without its LF.
    fn whole_line(&mut self, line: &[u8]) -> Result<(), FramingError> {
        let text = line.strip_suffix(b"\r");
        // Checked first, as a line that arrives in pieces is rejected for its length before its end is read.
        self.check_length(text.unwrap_or(line))?;
        let line = text.filter(|text| is_text(text)).ok_or(FramingError::Line)?;
        self.state = match self.state {
            ScanState::Between if line.is_empty() => self.empty_line()?,
            ScanState::Between => self.request_line(line)?,
            ScanState::Fields if line.is_empty() => self.end_of_head()?,
            ScanState::Fields => self.field(line, ScannedHead::understand)?,
            ScanState::ChunkSize => self.chunk_size(line)?,
            ScanState::ChunkEnd if line.is_empty() => ScanState::ChunkSize,
            ScanState::ChunkEnd => return Err(FramingError::Chunk),
            ScanState::Trailers if line.is_empty() => self.next_message(),
            ScanState::Trailers => self.field(line, |_, name, _| trailer(name))?,
            // A body has no lines.
            content @ (ScanState::Content(_) | ScanState::ChunkData(_)) => content,
        };
        Ok(())
    }

    fn empty_line(&mut self) -> Result<ScanState, FramingError> {
        self.context.empty_lines += 1;
        if self.context.empty_lines > EMPTY_LINES { Err(FramingError::RequestLine) } else { Ok(ScanState::Between) }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<ScanState, FramingError> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(FramingError::RequestLine);
        };
        if !is_token(method) {
            return Err(FramingError::RequestLine);
        }
        self.context.is_http_10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => return Err(FramingError::Version),
            _ => return Err(FramingError::RequestLine),
        };
        if !is_target(method, target) {
            return Err(FramingError::Target);
        }
        self.context.bytes += line.len() + b"\r\n".len();
        Ok(ScanState::Fields)
    }

    fn field(
        &mut self,
        line: &[u8],
        understand: impl Fn(&mut ScannedHead, &[u8], &[u8]) -> Result<(), FramingError>,
    ) -> Result<ScanState, FramingError> {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(FramingError::Fold);
        }
        let end = line.iter().position(|byte| !IN_TOKENS[usize::from(*byte)]);
        let (name, rest) = line.split_at(end.filter(|end| *end > 0).ok_or(FramingError::Field)?);
        let value = rest.strip_prefix(b":").ok_or(FramingError::Field)?.trim_ascii();
        self.context.bytes += line.len() + b"\r\n".len();
        self.context.fields += 1;
        if self.context.fields > self.limits.fields {
            return Err(FramingError::ManyFields);
        }
        understand(&mut self.context, name, value)?;
        Ok(self.state)
    }

    fn end_of_head(&mut self) -> Result<ScanState, FramingError> {
        if self.context.hosts == 0 && !self.context.is_http_10 {
            return Err(FramingError::Host);
        }
        (self.context.bytes, self.context.fields) = (0, 0);
        match (self.context.length, self.context.is_chunked) {
            (Some(_), true) => Err(FramingError::LengthAndCoding),
            (None, true) => Ok(ScanState::ChunkSize),
            (Some(length @ 1..), false) => Ok(ScanState::Content(length)),
            (Some(0) | None, false) => Ok(self.next_message()),
        }
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<ScanState, FramingError> {
        let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let extension = &line[digits..];
        self.context.extensions += extension.len();
        let is_extension = extension.is_empty() || extension.trim_ascii_start().starts_with(b";");
        if !is_extension || digits > CHUNK_DIGITS || self.context.extensions > EXTENSIONS {
            return Err(FramingError::Chunk);
        }
        let size = std::str::from_utf8(&line[..digits]).ok().and_then(|size| i64::from_str_radix(size, 16).ok());
        match size.and_then(|size| u64::try_from(size).ok()) {
            None => Err(FramingError::Chunk),
            Some(0) => Ok(ScanState::Trailers),
            Some(size) => Ok(ScanState::ChunkData(size)),
        }
    }
}

impl ScannedHead {
    /// Evaluates a field of a request that concerns framing or authority.
    fn understand(&mut self, name: &[u8], value: &[u8]) -> Result<(), FramingError> {
        // Most names differ in length from these three.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.hosts += 1;
                if self.hosts > 1 || !is_authority(value) { Err(FramingError::Host) } else { Ok(()) }
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let digits = value.iter().all(u8::is_ascii_digit).then_some(value);
                let length = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
                if self.length.is_some() || length.is_none() {
                    return Err(FramingError::Length);
                }
                self.length = length;
                Ok(())
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                // An HTTP/1.0 sender may have forwarded a coding that it doesn't know, whatever the coding is.
                if self.is_http_10
                    || self.is_chunked
                    || !value.split(|byte| *byte == b',').all(|coding| is_token(coding.trim_ascii()))
                {
                    return Err(FramingError::Coding);
                }
                self.is_chunked = value.eq_ignore_ascii_case(b"chunked");
                if self.is_chunked { Ok(()) } else { Err(FramingError::UnknownCoding) }
            }
            _ => Ok(()),
        }
    }
}

impl FramingError {
    /// The status codes of all error responses.
    pub const STATUSES: [u16; 5] = [400, 414, 431, 501, 505];

    /// Returns the status code of the error response, one of [`FramingError::STATUSES`].
    pub fn status(self) -> u16 {
        match self {
            FramingError::LongTarget => 414,
            FramingError::LongHead | FramingError::ManyFields => 431,
            FramingError::UnknownCoding => 501,
            FramingError::Version => 505,
            _ => 400,
        }
    }

    /// Returns the key of the limit that was met; `None` if the message is malformed.
    pub fn limit(self) -> Option<&'static str> {
        match self {
            FramingError::LongTarget => Some("limits.target"),
            FramingError::LongHead => Some("limits.head"),
            FramingError::ManyFields => Some("limits.fields"),
            _ => None,
        }
    }

    /// Returns the reason as a text for the log.
    pub fn reason(self) -> &'static str {
        match self {
            FramingError::Line => "a line doesn't end with CRLF, or has a control byte in it",
            FramingError::RequestLine => "the request line isn't `method target version`",
            FramingError::Target => "the target is neither a path nor a URI",
            FramingError::Version => "a version of HTTP that isn't spoken here",
            FramingError::Fold => "a field line continues the one before",
            FramingError::Field => "a field line isn't `name: value`",
            FramingError::Host => "Host is missing, repeated or no authority",
            FramingError::Length => "Content-Length is repeated or no number",
            FramingError::Coding => "Transfer-Encoding is repeated or malformed, or stands in HTTP/1.0",
            FramingError::UnknownCoding => "a transfer coding other than `chunked`",
            FramingError::LengthAndCoding => "both Content-Length and Transfer-Encoding",
            FramingError::Chunk => "a malformed chunk",
            FramingError::Trailer => "a trailer that changes the meaning of the message",
            FramingError::LongTarget => "the target is too long",
            FramingError::LongHead => "the head is too long",
            FramingError::ManyFields => "there are too many fields",
        }
    }
}

/// Returns how many of the bytes belong to a body with `left` bytes, and how many bytes of the body are left after
/// them.
fn skip(left: u64, bytes: &[u8]) -> (usize, u64) {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (taken, left - taken as u64)
}

/// Returns the text between the first space and the second.
fn target_of(line: &[u8]) -> &[u8] {
    line.split(|byte| *byte == b' ').nth(1).unwrap_or_default()
}

/// Whether a line has no control bytes but tabs. All bytes are tested, whatever is found, so that many are tested at
/// once.
fn is_text(line: &[u8]) -> bool {
    line.iter().fold(true, |fit, byte| fit & ((*byte >= b' ') & (*byte != 0x7f) | (*byte == b'\t')))
}

/// Returns a table of the visible bytes except `others`. Searching a list of bytes instead took a fortieth of the time
/// of a request.
const fn visible_but(others: &[u8]) -> [bool; 256] {
    let (mut are, mut byte) = ([false; 256], 0x21);
    while byte < 0x7f {
        are[byte] = true;
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        are[others[at] as usize] = false;
        at += 1;
    }
    are
}

/// The bytes of tokens: all except the delimiters (RFC 9110 §5.6.2).
const IN_TOKENS: [bool; 256] = visible_but(b"\"(),/:;<=>?@[\\]{}");

/// The bytes of hosts, except the brackets around an address.
const IN_HOSTS: [bool; 256] = visible_but(b"/@,\\?#\"<>{}|^`[]");

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| IN_TOKENS[usize::from(*byte)])
}

/// Whether a target has a valid form (RFC 9112 §3.2).
fn is_target(method: &[u8], target: &[u8]) -> bool {
    let is_uri = target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
    let scheme = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let authority = |from: usize| {
        let rest = &target[from..];
        let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
        // An HTTP URI without a host is invalid (RFC 9110 §4.2.1).
        end > 0 && rest[0] != b':' && is_authority(&rest[..end])
    };
    is_uri
        && match (method, target) {
            (b"CONNECT", target) => !target.is_empty() && is_authority(target),
            (b"OPTIONS", b"*") => true,
            (_, [b'/', ..]) => true,
            _ if scheme(b"http://") => authority(b"http://".len()),
            _ if scheme(b"https://") => authority(b"https://".len()),
            _ => false,
        }
}

/// Whether a text is a host with an optional port (RFC 9110 §7.2), which may be empty, and nothing else.
pub fn is_authority(text: &[u8]) -> bool {
    let is_fit = |byte: &u8| IN_HOSTS[usize::from(*byte)];
    let (host, port) = match text.strip_prefix(b"[") {
        // Colons within brackets belong to the address.
        Some(rest) => rest.split_at(rest.iter().position(|byte| *byte == b']').unwrap_or(rest.len())),
        None => text.split_at(text.iter().position(|byte| *byte == b':').unwrap_or(text.len())),
    };
    let port = if text.starts_with(b"[") { port.strip_prefix(b"]") } else { Some(port) };
    let is_port = |port: &[u8]| port.is_empty() || port[0] == b':' && port[1..].iter().all(u8::is_ascii_digit);
    host.iter().all(is_fit) && port.is_some_and(is_port)
}

fn trailer(name: &[u8]) -> Result<(), FramingError> {
    if is_forbidden_trailer(name) { Err(FramingError::Trailer) } else { Ok(()) }
}

/// Whether a name is forbidden in trailers: a recipient that merges trailers into the head would be misled.
pub fn is_forbidden_trailer(name: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 18] = [
        b"authorization",
        b"cache-control",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"host",
        b"max-forwards",
        b"proxy-authorization",
        b"range",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ];
    FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}
