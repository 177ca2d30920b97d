//! Ambiguous messages: none of them is forwarded, in either direction, and every forwarded message has one meaning.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use crate::support::{Proxy, echo, manifest, raw_origin, read_message};

/// An origin that records all received bytes, and answers each connection after the end of a head.
struct Recorder {
    address: String,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    fn start() -> Recorder {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let kept = bytes.clone();
        Recorder { address: raw_origin(move |stream| record(stream, &kept)), bytes }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }
}

fn record(mut stream: TcpStream, kept: &Mutex<Vec<u8>>) {
    let (mut piece, mut seen) = ([0; 4096], Vec::new());
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        kept.lock().unwrap().extend(&piece[..length]);
        seen.extend_from_slice(&piece[..length]);
        let chunked = seen.windows(26).any(|part| part.eq_ignore_ascii_case(b"transfer-encoding: chunked"));
        let end: &[u8] = if chunked { b"0\r\n\r\n" } else { b"\r\n\r\n" };
        if seen.ends_with(end) {
            seen.clear();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    }
}

/// Sends bytes to the proxy; returns all received bytes until the proxy closes.
fn answers(proxy: &Proxy, bytes: &[u8]) -> String {
    let mut stream = proxy.connect();
    stream.write_all(bytes).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    String::from_utf8_lossy(&got).into_owned()
}

/// The rejected requests: the request, the status, and the rule that it breaks.
const REFUSED: &[(&str, u16, &str)] = &[
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", 400, "two lengths"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "a repeated length"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc", 400, "a list of lengths"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", 400, "a signed length"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc", 400, "a length in hexadecimal"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nabc", 400, "an empty length"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400, "a length beyond 64 bits"),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "length and coding",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        400,
        "coding and length",
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "an unknown coding"),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        501,
        "chunked not at the end",
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, "nearly chunked"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501, "chunked twice"),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400,
        "two codings in two lines",
    ),
    ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "a coding in HTTP/1.0"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400, "space before the colon"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n", 400, "a vertical tab"),
    ("GET / HTTP/1.1\nHost: a\n\n", 400, "bare LF"),
    ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400, "bare LF in the middle"),
    ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400, "bare CR"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400, "obs-fold"),
    ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "a fold at once"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", 400, "NUL"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: b\u{7}c\r\n\r\n", 400, "a control byte"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX y: b\r\n\r\n", 400, "space in a name"),
    ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400, "no name"),
    ("GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n", 400, "no colon"),
    ("GET / HTTP/1.1\r\n\r\n", 400, "no Host"),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "two hosts"),
    ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400, "the same host twice"),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "space in Host"),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "a path in Host"),
    ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, "user information in Host"),
    ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400, "a port that is none"),
    ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "user information in the target"),
    ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "space in the target"),
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "two spaces"),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "space after the version"),
    ("G\u{e9}T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "a method that is no token"),
    ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", 400, "a target beyond ASCII"),
    ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "a fragment"),
    ("GET /<a> HTTP/1.1\r\nHost: a\r\n\r\n", 400, "angle brackets in a path"),
    ("GET /`a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "a grave accent in a path"),
    ("GET /?a={\"b\":1} HTTP/1.1\r\nHost: a\r\n\r\n", 400, "quotes in a query"),
    ("GET /?a=<b> HTTP/1.1\r\nHost: a\r\n\r\n", 400, "angle brackets in a query"),
    ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "a target without a slash"),
    ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "an asterisk for GET"),
    ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "a scheme that is not HTTP's"),
    ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 400, "CONNECT"),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "another version"),
    ("GET / HTTP/1.1x\r\nHost: a\r\n\r\n", 400, "no version"),
    ("GET / http/1.1\r\nHost: a\r\n\r\n", 400, "a version in lower case"),
    ("GET /\r\n\r\n", 400, "HTTP/0.9"),
    ("GET /../etc HTTP/1.1\r\nHost: a\r\n\r\n", 400, "above the root"),
    ("GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n", 400, "an encoded slash"),
    ("GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "an encoded NUL"),
    ("GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "an escape that is none"),
    ("GET /%252e%252e/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "encoded twice"),
    ("GET /a/..;/b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "dots with a parameter"),
];

#[test]
fn ambiguous_requests_are_rejected() {
    let origin = Recorder::start();
    let proxy = Proxy::start(&manifest(&origin.address, "", ""));
    let mut wrong = Vec::new();
    for (request, status, what) in REFUSED {
        // These bytes are a second request for a recipient that parses the first differently.
        let bytes = format!("{request}GET /second HTTP/1.1\r\nHost: a\r\n\r\n");
        let got = answers(&proxy, bytes.as_bytes());
        let count = got.matches("HTTP/1.1 ").count();
        if count != 1 || !got.starts_with(&format!("HTTP/1.1 {status} ")) || !got.contains("connection: close") {
            wrong.push(format!("{what}: {status} wanted, got {count} answers: {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(origin.text(), "", "nothing has reached the origin");
}

/// Requests that become invalid within their body: the head may be forwarded, but never the bytes behind the error.
const BROKEN_OFF: &[(&str, &str)] = &[
    ("x\r\nabc\r\n0\r\n\r\n", "a size that is no number"),
    ("\r\nabc\r\n0\r\n\r\n", "no size"),
    ("-3\r\nabc\r\n0\r\n\r\n", "a negative size"),
    ("0x3\r\nabc\r\n0\r\n\r\n", "a prefixed size"),
    ("3 \u{b}\r\nabc\r\n0\r\n\r\n", "a control byte after the size"),
    ("ffffffffffffffffff\r\nabc\r\n0\r\n\r\n", "a size beyond 64 bits"),
    ("3\nabc\r\n0\r\n\r\n", "bare LF after the size"),
    ("3\r\nabcd\r\n0\r\n\r\n", "data longer than the size"),
    ("3;a=\nb\r\nabc\r\n0\r\n\r\n", "bare LF in an extension"),
    ("0\r\nContent-Length: 5\r\n\r\n", "a length in the trailers"),
    ("0\r\nTransfer-Encoding: chunked\r\n\r\n", "a coding in the trailers"),
    ("0\r\nHost: b\r\n\r\n", "a host in the trailers"),
    ("0\r\nX : b\r\n\r\n", "space before the colon in the trailers"),
    ("0\r\nX: b\n\r\n", "bare LF in the trailers"),
];

#[test]
fn malformed_chunks_end_the_connection() {
    let origin = Recorder::start();
    let proxy = Proxy::start(&manifest(&origin.address, "", ""));
    let mut wrong = Vec::new();
    for (content, what) in BROKEN_OFF {
        let request = format!(
            "POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{content}GET /second HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let got = answers(&proxy, request.as_bytes());
        if got.matches("HTTP/1.1 ").count() != 1 || !got.starts_with("HTTP/1.1 400 ") {
            wrong.push(format!("{what}: {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!origin.text().contains("/second"), "{}", origin.text());
}

#[test]
fn accepted_requests_have_one_form() {
    let origin = Recorder::start();
    let proxy = Proxy::start(&manifest(&origin.address, "", ""));
    let cases = [
        ("GET /a/./b//c/../%7Ed%2a?x=/../ HTTP/1.1\r\nHost: a\r\n", "GET /a/b/~d%2A?x=/../ HTTP/1.1\r\n"),
        ("GET http://B.example/c HTTP/1.1\r\nHost: a\r\n", "GET /c HTTP/1.1\r\n"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n", "OPTIONS * HTTP/1.1\r\n"),
        ("\r\nGET /after-empty-lines HTTP/1.1\r\nHost: a\r\n", "GET /after-empty-lines HTTP/1.1\r\n"),
        ("GET /value HTTP/1.1\r\nHost: a\r\nX:\t b\u{e9} \r\n", "x: b\u{e9}\r\n"),
    ];
    for (request, wanted) in cases {
        let got = answers(&proxy, format!("{request}Connection: close\r\n\r\n").as_bytes());
        assert!(got.starts_with("HTTP/1.1 200 OK"), "{request:?}: {got}");
        assert!(origin.text().contains(wanted), "{request:?}: {}", origin.text());
    }
    assert!(origin.text().contains("host: b.example\r\n"), "absolute-form stands for Host: {}", origin.text());
    let chunked = "POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n\
                   3;a=\"b\"\r\nabc\r\n002\r\nde\r\n0\r\n\r\n";
    assert!(answers(&proxy, chunked.as_bytes()).starts_with("HTTP/1.1 200 OK"));
    let text = origin.text();
    let sent = &text[text.find("POST /chunked").unwrap()..];
    assert!(!sent.contains(";a=") && sent.ends_with("0\r\n\r\n"), "extensions go no further: {sent}");
}

#[test]
fn a_path_cannot_slip_past_a_route() {
    let origin = Recorder::start();
    let text = manifest(&origin.address, "", "").replace("[[route]]", "[[route]]\npath = \"/public\"");
    let proxy = Proxy::start(&text);
    for path in ["/public/../admin", "/public/%2e%2e/admin", "/public/.%2E/admin", "//admin", "/./admin"] {
        let got = answers(&proxy, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(got.starts_with("HTTP/1.1 404 "), "{path}: {got}");
    }
    let got = answers(&proxy, b"GET /x/../public//y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    assert!(origin.text().starts_with("GET /public/y HTTP/1.1\r\n"), "{}", origin.text());
}

/// Responses with more than one meaning.
const AMBIGUOUS: &[(&str, &str)] = &[
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", "two lengths"),
    ("HTTP/1.1 200 OK\r\nContent-Length: 3, 5\r\n\r\nabcde", "a list of lengths"),
    ("HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc", "a signed length"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc", "an unknown coding"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "an unknown coding before chunked"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "chunked twice"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", "coding and length"),
    ("HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n", "NUL in a field"),
    ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", "obs-fold"),
    ("HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", "a status of two digits"),
    ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "a switch that nobody asked for"),
    ("hello\r\n\r\n", "no HTTP"),
];

#[test]
fn ambiguous_responses_are_bad_gateways() {
    let (connections, requests) = (Arc::<Mutex<usize>>::default(), Arc::<Mutex<usize>>::default());
    let (connected, requested) = (connections.clone(), requests.clone());
    let address = raw_origin(move |mut stream| {
        *connected.lock().unwrap() += 1;
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_message(&mut reader) {
            *requested.lock().unwrap() += 1;
            let place = request.number();
            let (response, _) = AMBIGUOUS[place];
            let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
            let _ = stream.write_all(format!("{response}{smuggled}").as_bytes());
        }
    });
    let proxy = Proxy::start(&manifest(&address, "", "").replace("workers = 2", "workers = 1"));
    let mut wrong = Vec::new();
    for (place, (_, what)) in AMBIGUOUS.iter().enumerate() {
        let got = proxy.get(&format!("/{place}"), "");
        if got.status() != 502 || got.text().contains("smuggled") {
            wrong.push(format!("{what}: {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(*connections.lock().unwrap(), AMBIGUOUS.len(), "no connection is used again");
    assert_eq!(*requests.lock().unwrap(), AMBIGUOUS.len(), "no request is sent again");
}

#[test]
fn whole_requests_before_a_refused_one_are_served() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let good = "GET /one HTTP/1.1\r\nHost: a\r\n\r\n";
    let posted = "POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let bad = [
        ("GET /bad HTTP/1.1\r\n\r\n", 400),
        ("GET /bad HTTP/2.5\r\nHost: a\r\n\r\n", 505),
        ("POST /bad HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET /bad HTTP/1.1\r\nHost: a\r\nbad line\r\n\r\n", 400),
    ];
    for (refused, status) in bad {
        for (before, count) in [(good.to_string(), 1), (format!("{good}{posted}{good}"), 3)] {
            let mut stream = proxy.connect();
            stream.write_all(format!("{before}{refused}").as_bytes()).unwrap();
            let mut reader = BufReader::new(stream);
            for _ in 0..count {
                assert_eq!(read_message(&mut reader).unwrap().status(), 200, "{refused}");
            }
            assert_eq!(read_message(&mut reader).unwrap().status(), status, "{refused}");
            assert!(read_message(&mut reader).is_none(), "the connection ends");
        }
    }
}
