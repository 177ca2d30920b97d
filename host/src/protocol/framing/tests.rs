//! Unit tests of the framing scanner, with each message scanned whole and in pieces.

use super::*;

const LIMITS: HeadLimits = HeadLimits { head_bytes: 512, fields: 8, target_bytes: 64 };

/// Returns the state after bytes that arrive in pieces of a length.
fn scanned(bytes: &[u8], piece: usize) -> Result<(bool, bool), FramingError> {
    let mut scanner = Scanner::new(LIMITS);
    bytes.chunks(piece).try_for_each(|piece| scanner.take(piece))?;
    Ok((scanner.is_between(), scanner.is_in_head()))
}

/// Scans bytes in pieces of each length, and in two at each position, and returns the one result of all.
fn each_way(bytes: &[u8]) -> Result<(bool, bool), FramingError> {
    let whole = scanned(bytes, usize::MAX);
    for piece in 1..=bytes.len().min(64) {
        assert_eq!(scanned(bytes, piece), whole, "in pieces of {piece}: {:?}", String::from_utf8_lossy(bytes));
    }
    for cut in 0..=bytes.len() {
        let mut scanner = Scanner::new(LIMITS);
        let taken = scanner.take(&bytes[..cut]).and_then(|()| scanner.take(&bytes[cut..]));
        let outcome = taken.map(|()| (scanner.is_between(), scanner.is_in_head()));
        assert_eq!(outcome, whole, "cut at {cut}: {:?}", String::from_utf8_lossy(bytes));
    }
    whole
}

#[test]
fn messages_end_where_they_say() {
    let between = Ok((true, false));
    let cases = [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", between),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", between),
        ("GET / HTTP/1.0\r\n\r\n", between),
        ("GET http://a/ HTTP/1.1\r\nHost:\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", between),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nhost: a\r\n\r\n", between),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab", Ok((false, false))),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n003;a=b\r\n\r\nx\r\n0\r\nX: y\r\n\r\n",
            between,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", Ok((false, false))),
        ("GET / HTTP/1.1\r\nHo", Ok((false, true))),
        ("G", Ok((false, true))),
    ];
    for (bytes, wanted) in cases {
        assert_eq!(each_way(bytes.as_bytes()), wanted, "{bytes:?}");
    }
}

#[test]
fn whole_messages_are_counted() {
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let bytes = format!("{chunked}{plain}{chunked}GET");
    let ends = [chunked.len(), chunked.len() + plain.len(), 2 * chunked.len() + plain.len()];
    for cut in 0..=bytes.len() {
        let mut scanner = Scanner::new(LIMITS);
        scanner.take(&bytes.as_bytes()[..cut]).unwrap();
        assert_eq!(scanner.messages(), ends.iter().filter(|end| cut >= **end).count(), "{cut}");
    }
}

/// Fields of a request that are refused, without the rest of its head.
const REFUSED_FIELDS: [(&str, FramingError); 20] = [
    ("Content-Length: 1\r\nContent-Length: 1", FramingError::Length),
    ("Content-Length: 1, 1", FramingError::Length),
    ("Content-Length: -1", FramingError::Length),
    ("Content-Length:", FramingError::Length),
    ("Content-Length: 18446744073709551616", FramingError::Length),
    ("Content-Length: 1\r\nTransfer-Encoding: chunked", FramingError::LengthAndCoding),
    ("Transfer-Encoding: chunked\r\nContent-Length: 1", FramingError::LengthAndCoding),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", FramingError::Coding),
    ("Transfer-Encoding:", FramingError::Coding),
    ("Transfer-Encoding: chunked;q=1", FramingError::Coding),
    ("Transfer-Encoding: gzip, chunked", FramingError::UnknownCoding),
    ("Transfer-Encoding: identity", FramingError::UnknownCoding),
    ("Transfer-Encoding : chunked", FramingError::Field),
    (" Transfer-Encoding: chunked", FramingError::Fold),
    ("X: a\r\n\tb", FramingError::Fold),
    ("X: a\rb", FramingError::Line),
    ("X: a\nY: b", FramingError::Line),
    ("X: a\0", FramingError::Line),
    ("X: a\u{7f}", FramingError::Line),
    ("Host: b", FramingError::Host),
];

/// Request lines that are refused.
const REFUSED_REQUEST_LINES: [(&str, FramingError); 14] = [
    ("GET http://:80/ HTTP/1.1", FramingError::Target),
    ("GET /a#b HTTP/1.1", FramingError::Target),
    ("CONNECT / HTTP/1.1", FramingError::Target),
    ("GET / HTTP/1.2", FramingError::Version),
    ("PRI * HTTP/2.0", FramingError::Version),
    ("GET / HTTP/1.1 ", FramingError::RequestLine),
    ("GET\t/ HTTP/1.1", FramingError::RequestLine),
    ("GET /", FramingError::RequestLine),
    (" GET / HTTP/1.1", FramingError::RequestLine),
    ("GET  HTTP/1.1", FramingError::Target),
    ("GET http:///x HTTP/1.1", FramingError::Target),
    ("GET http://u@a/ HTTP/1.1", FramingError::Target),
    ("GET * HTTP/1.1", FramingError::Target),
    ("GET a:80 HTTP/1.1", FramingError::Target),
];

/// Chunked content that is refused.
const REFUSED_CHUNKS: [(&str, FramingError); 10] = [
    ("00000000000000001\r\n", FramingError::Chunk),
    ("1;\u{1}\r\n", FramingError::Line),
    ("g\r\n", FramingError::Chunk),
    ("\r\n", FramingError::Chunk),
    ("8000000000000000\r\n", FramingError::Chunk),
    ("1 x\r\n", FramingError::Chunk),
    ("1\r\nab\r\n", FramingError::Chunk),
    ("1\r\na\n", FramingError::Line),
    ("0\r\nContent-Length: 1\r\n\r\n", FramingError::Trailer),
    ("0\r\nx y: 1\r\n\r\n", FramingError::Field),
];

/// Whole heads that are refused.
const REFUSED_HEADS: [(&str, FramingError); 12] = [
    ("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", FramingError::Host),
    ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", FramingError::Host),
    ("GET / HTTP/1.1\r\nHost: a:1]\r\n\r\n", FramingError::Host),
    ("GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", FramingError::Host),
    ("GET / HTTP/1.1\r\nHost: \u{e9}\r\n\r\n", FramingError::Host),
    ("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", FramingError::Host),
    ("POST / HTTP/1.0\r\nTransfer-Encoding: gzip\r\n\r\n", FramingError::Coding),
    ("GET / HTTP/1.1\r\n\r\n", FramingError::Host),
    ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", FramingError::Host),
    ("GET / HTTP/1.1\r\nHost: [::1]x:y\r\n\r\n", FramingError::Host),
    ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", FramingError::Coding),
    ("\r\n\r\n\r\n\r\n\r\n", FramingError::RequestLine),
];

/// Returns a head with a host and these fields.
fn head(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

/// Returns a request with this chunked content.
fn chunks(content: &str) -> String {
    head("Transfer-Encoding: chunked") + content
}

/// Returns a head with this request line.
fn start(line: &str) -> String {
    format!("{line}\r\nHost: a\r\n\r\n")
}

#[test]
fn doubt_is_refused() {
    let fields = REFUSED_FIELDS.map(|(fields, error)| (head(fields), error));
    let request_lines = REFUSED_REQUEST_LINES.map(|(line, error)| (start(line), error));
    let contents = REFUSED_CHUNKS.map(|(content, error)| (chunks(content), error));
    let heads = REFUSED_HEADS.map(|(head, error)| (head.to_string(), error));
    for (bytes, wanted) in fields.into_iter().chain(request_lines).chain(contents).chain(heads) {
        assert_eq!(each_way(bytes.as_bytes()), Err(wanted), "{bytes:?}");
    }
}

#[test]
fn too_long_messages_are_rejected() {
    let cases = [
        (chunks(&format!("1;{}\u{1}", "a".repeat(300))), FramingError::Chunk),
        (format!("{}\r\n", "G".repeat(600)), FramingError::LongHead),
        (format!("{} /{}", "G".repeat(600), "a".repeat(70)), FramingError::LongHead),
        (format!("GET /{}\r\n", "a".repeat(63)), FramingError::RequestLine),
        (head(&format!("X: {}\u{1}", "a".repeat(600))), FramingError::LongHead),
        (chunks(&format!("1;{}", "a".repeat(300))), FramingError::Chunk),
        (start(&format!("GET /{} HTTP/1.1", "a".repeat(64))), FramingError::LongTarget),
        (format!("GET /{}", "a".repeat(70)), FramingError::LongTarget),
        (head(&format!("X: {}", "a".repeat(512))), FramingError::LongHead),
        (head(&"X: a\r\n".repeat(8)), FramingError::ManyFields),
    ];
    for (bytes, wanted) in cases {
        assert_eq!(each_way(bytes.as_bytes()), Err(wanted), "{bytes:?}");
    }
}

#[test]
fn messages_of_the_maximum_length_pass() {
    let begun = "POST / HTTP/1.1\r\nHost: a\r\n";
    let field = |length: usize| format!("X: {}\r\n", "a".repeat(length - "X: \r\n".len()));
    let chunk = format!("1;{}\r\na\r\n", "a".repeat(CHUNK_LINE - "1;".len()));
    let chunked = format!("{begun}Transfer-Encoding: chunked\r\n\r\n");
    let cases = [
        format!("{begun}{}\r\n", field(LIMITS.head_bytes - begun.len())),
        format!("{begun}{}\r\n", "X: a\r\n".repeat(LIMITS.fields - 1)),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(LIMITS.target_bytes - 1)),
        format!("{chunked}{chunk}0\r\n\r\n"),
        format!("{chunked}0000000000000001\r\na\r\n0\r\n{}\r\n", field(LIMITS.head_bytes)),
    ];
    for bytes in cases {
        assert_eq!(each_way(bytes.as_bytes()), Ok((true, false)), "{bytes:?}");
    }
}

#[test]
fn extensions_are_bounded_over_the_whole_content() {
    let chunk = format!("1;{}\r\na\r\n", "x".repeat(200));
    let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(100));
    assert_eq!(scanned(bytes.as_bytes(), usize::MAX), Err(FramingError::Chunk));
}

#[test]
fn each_byte_is_of_names_and_hosts_or_is_not() {
    for byte in 0..=u8::MAX {
        // RFC 9110 §5.6.2.
        let is_tchar = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let field = [b"GET / HTTP/1.1\r\nHost: a\r\nx", &[byte][..], b"y: z\r\n\r\n"].concat();
        // In a field name, a colon ends the name.
        assert_eq!(scanned(&field, usize::MAX).is_ok(), is_tchar || byte == b':', "in a name: {byte:#04x}");
        let method = [b"G", &[byte][..], b"T / HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        assert_eq!(scanned(&method, usize::MAX).is_ok(), is_tchar, "in a method: {byte:#04x}");
        // RFC 3986 §3.2.2; behind a colon there may be only digits.
        let is_in_hosts = byte.is_ascii_graphic() && !b"/@,\\?#\"<>{}|^`[]:".contains(&byte);
        let host = [b"GET / HTTP/1.1\r\nHost: a", &[byte][..], b"b\r\n\r\n"].concat();
        assert_eq!(scanned(&host, usize::MAX).is_ok(), is_in_hosts, "in a host: {byte:#04x}");
    }
}
