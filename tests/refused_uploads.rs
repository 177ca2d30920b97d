//! Uploads that are answered before they are over: by the proxy, a plugin or the endpoint, over both versions of HTTP.

use std::io::{BufReader, Read, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::http2::{DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, RST_STREAM, Raw, WINDOW_UPDATE};
use crate::http2_endpoint;
use crate::support::client::is_open_to;
use crate::support::{PATIENCE, Proxy, echo, manifest, output, raw_origin, read_message, until};

/// `POST http://a/`, by the static table of HPACK and one literal.
const POST: &[u8] = &[0x83, 0x86, 0x84, 0x41, 1, b'a'];
/// The maximum length of a frame without negotiation.
const PIECE: [u8; 16 << 10] = [b'x'; 16 << 10];
/// The maximum number of bytes of a rejected body that are read, and the window of a stream.
const MAX_READ_BYTES: usize = (16 << 20) + (256 << 10);

/// Starts a proxy that has a route for `/ok` alone.
fn refusing(more: &str) -> Proxy {
    Proxy::start(&manifest(&echo(), "", "").replace("[[route]]", &format!("[[route]]\n{more}")))
}

fn is_answer(frame: &Frame, stream: u32) -> bool {
    frame.kind == HEADERS && frame.stream == stream
}

fn error_code(frame: &Frame) -> u32 {
    u32::from_be_bytes(frame.payload[..4].try_into().unwrap())
}

#[test]
fn a_malformed_chunk_is_answered_and_logged_once() {
    let more = "[access-log]\nformat = \"combined\"\nfile = \"access.log\"\n";
    let reading = raw_origin(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let text = manifest(&reading, "", more).replace("[[route]]", "[[route]]\npath = \"/up\"");
    let proxy = Proxy::start(&text);
    let mut stream = proxy.connect();
    stream.write_all(b"POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").unwrap();
    // The head has passed the framing scanner by the time that the endpoint has a part of the body.
    until("the body is under way", || {
        let figures = proxy.ask_admin("GET /metrics").text();
        figures.lines().any(|line| line.starts_with("plugway_endpoint_in_flight") && line.ends_with(" 1"))
    });
    stream.write_all(b"nonsense\r\n").unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert!(got.starts_with("HTTP/1.1 400 ") && got.matches("HTTP/1.1 ").count() == 1, "{got}");
    // The log is written in order: a second line would come before that of the next request.
    proxy.get("/next", "");
    let path = proxy.folder.path().join("access.log");
    let logged = || std::fs::read_to_string(&path).unwrap_or_default();
    until("both are logged", || logged().contains("POST /up") && logged().contains("GET /next"));
    assert_eq!(logged().lines().count(), 2, "{}", logged());
}

#[test]
fn content_that_was_on_its_way_is_no_mistake_of_the_client() {
    let proxy = refusing("path = \"/ok\"");
    let mut client = Raw::connect(&proxy);
    // More than the streams that a client may have reset by its mistakes.
    for stream in (1..600).step_by(2) {
        assert!(client.send(HEADERS, END_HEADERS, stream, POST));
        assert!(client.send(DATA, 0, stream, &PIECE));
        client.until(|frame| {
            assert!(!matches!(frame.kind, RST_STREAM | GOAWAY), "kind {}", frame.kind);
            is_answer(frame, stream)
        });
        // The client has not read the answer yet.
        assert!(client.send(DATA, 0, stream, &PIECE) && client.send(DATA, END_STREAM, stream, &PIECE));
    }
    assert!(client.request(601), "others are served");
    client.until(|frame| {
        assert!(!matches!(frame.kind, RST_STREAM | GOAWAY), "kind {} on {}", frame.kind, frame.stream);
        is_answer(frame, 601)
    });
}

#[test]
fn a_refused_upload_that_goes_on_is_reset_without_an_error() {
    let proxy = refusing("path = \"/ok\"");
    let mut client = Raw::connect(&proxy);
    client.send(HEADERS, END_HEADERS, 1, POST);
    let (mut connection, mut window, mut sent) = (65_535_usize, 65_535_usize, 0_usize);
    let (mut answered, began) = (None, Instant::now());
    client.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let reset = loop {
        assert!(began.elapsed() < PATIENCE, "no reset after {sent} bytes");
        while connection >= PIECE.len() && window >= PIECE.len() {
            assert!(client.send(DATA, 0, 1, &PIECE));
            (connection, window, sent) = (connection - PIECE.len(), window - PIECE.len(), sent + PIECE.len());
        }
        let mut first = [0];
        if client.0.peek(&mut first).is_err() {
            continue;
        }
        client.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let frame = client.frame().expect("the connection ended");
        client.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        match frame.kind {
            HEADERS => answered = Some(Instant::now()),
            WINDOW_UPDATE if frame.stream == 0 => connection += error_code(&frame) as usize,
            WINDOW_UPDATE => window += error_code(&frame) as usize,
            RST_STREAM => break frame,
            GOAWAY => panic!("the connection ends"),
            _ => {}
        }
    };
    assert_eq!((reset.stream, error_code(&reset)), (1, 0), "NO_ERROR");
    let waited = answered.expect("an answer before the reset").elapsed();
    assert!(waited >= Duration::from_secs(1), "the client has {waited:?} to read its answer");
    assert!(sent <= MAX_READ_BYTES, "{sent} bytes were read");
    client.0.set_read_timeout(Some(PATIENCE)).unwrap();
    client.request(3);
    client.until(|frame| is_answer(frame, 3));
}

#[test]
fn a_refused_upload_that_stands_still_is_reset_without_an_error() {
    let proxy = refusing("path = \"/ok\"");
    let mut client = Raw::connect(&proxy);
    client.send(HEADERS, END_HEADERS, 1, POST);
    client.until(|frame| is_answer(frame, 1));
    let began = Instant::now();
    let reset = client.until(|frame| frame.kind == RST_STREAM);
    assert_eq!((reset.stream, error_code(&reset)), (1, 0), "NO_ERROR");
    assert!(began.elapsed() >= Duration::from_secs(1), "after {:?}", began.elapsed());
}

/// Uploads by curl in so many bytes; returns what it says of each.
fn uploads(proxy: &Proxy, options: &[&str], bytes: usize, times: usize) -> Vec<String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![b'x'; bytes]).unwrap();
    let upload = || {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "60", "--output", "/dev/null"]).args(options);
        curl.args(["--write-out", "%{http_code}", "--header", "Expect:", "--data-binary"]);
        output(curl.arg(format!("@{}", file.path().display())).arg(format!("http://{}/up", proxy.address)))
    };
    (0..times).map(|_| upload()).collect()
}

#[test]
fn curl_sees_the_status_of_a_refused_upload() {
    let unrouted = refusing("path = \"/ok\"");
    let too_long = refusing("max-body = \"1 KiB\"");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (proxy, status) in [(&unrouted, "404"), (&too_long, "413")] {
            for (bytes, times) in [(100_000, 20), (3_000_000, 10), (60_000_000, 2)] {
                let seen = uploads(proxy, &[version], bytes, times);
                assert!(seen.iter().all(|seen| seen == status), "{version}, {bytes} bytes: {seen:?}");
            }
            // Of unknown length, so that the limit is met on the way.
            let seen = uploads(proxy, &[version, "--header", "Transfer-Encoding: chunked"], 3_000_000, 5);
            assert!(seen.iter().all(|seen| seen == status), "{version}, chunked: {seen:?}");
        }
    }
}

#[test]
fn an_endpoints_early_answer_reaches_curl() {
    let origin = raw_origin(|mut stream| {
        let mut head = [0; 1024];
        if stream.read(&mut head).is_ok_and(|length| length > 0) {
            let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let seen = uploads(&proxy, &[version], 3_000_000, 10);
        assert!(seen.iter().all(|seen| seen == "401"), "{version}: {seen:?}");
    }
}

#[test]
fn a_connection_that_is_to_end_after_a_refusal_says_so() {
    let proxy = refusing("path = \"/ok\"");
    let ask = |stream: &mut std::net::TcpStream, request: &str| {
        stream.write_all(request.as_bytes()).unwrap();
        read_message(&mut BufReader::new(stream)).unwrap()
    };
    let mut stream = proxy.connect();
    let cut = ask(&mut stream, "POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc");
    assert_eq!((cut.status(), cut.field("connection")), (404, Some("close")));
    // Content that is there already costs no connection.
    let mut stream = proxy.connect();
    for _ in 0..3 {
        let whole = ask(&mut stream, "POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!((whole.status(), whole.field("connection")), (404, None));
    }
    assert_eq!(ask(&mut stream, "GET /ok HTTP/1.1\r\nHost: a\r\n\r\n").status(), 200);
}

/// The head of a response that is passed on says nothing of a close, and the next request is on its way when the endpoint
/// stops the upload.
#[test]
fn a_connection_is_kept_whose_upload_an_endpoint_stops_behind_its_answer() {
    let endpoint = http2_endpoint::endpoint(|raw| {
        let (mut answered, mut stopped) = (0, 0);
        while let Some(frame) = raw.frame() {
            match frame.kind {
                DATA if frame.stream > answered => {
                    answered = frame.stream;
                    raw.respond(frame.stream, &[], b"refused");
                }
                DATA if frame.stream > stopped => {
                    stopped = frame.stream;
                    raw.reset(frame.stream, 0);
                }
                _ => {}
            }
        }
    });
    let text = manifest(&endpoint, "", "").replace("[[route]]", "[[route]]\nrequest-buffer = false");
    let proxy = Proxy::start(&text.replace("workers = 2", "workers = 1"));
    let chunk = [b"4000\r\n", &PIECE[..], b"\r\n"].concat();
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let sized = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 147457\r\n\r\n";
    let mut stream = proxy.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let requests = [(chunked, "1\r\nx\r\n", &chunk[..], "0\r\n\r\n"), (sized, "x", &PIECE[..], "")];
    for (head, first, piece, end) in requests.repeat(3) {
        stream.write_all(format!("{head}{first}").as_bytes()).unwrap();
        let response = read_message(&mut reader).expect("a response");
        assert_eq!((response.text().as_str(), response.field("connection")), ("refused", None));
        stream.write_all(&[&piece.repeat(9)[..], end.as_bytes()].concat()).unwrap();
    }
    // What is discarded has an end.
    stream.write_all(format!("{chunked}1\r\nx\r\n").as_bytes()).unwrap();
    assert_eq!(read_message(&mut reader).unwrap().text(), "refused");
    let mut bytes = 0;
    while stream.write_all(&chunk).is_ok() {
        bytes += chunk.len();
        assert!(bytes < 4 * MAX_READ_BYTES, "{bytes} bytes");
    }
    assert!(bytes > 16 << 20, "{bytes} bytes");
}

#[test]
fn an_endpoint_that_closes_with_content_unread_is_heard_out() {
    let origin = raw_origin(|mut stream| {
        let mut some = [0; 20_000];
        if stream.read(&mut some).is_ok_and(|length| length > 0) {
            // The socket is closed with bytes unread, by which the system resets the connection.
            let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
        }
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let seen = uploads(&proxy, &[version], 3_000_000, 40);
        let failed = seen.iter().filter(|seen| *seen != "413").count();
        assert_eq!(failed, 0, "{version}: {seen:?}");
    }
}

#[test]
fn an_endpoint_of_http2_that_closes_with_content_unread_is_heard_out() {
    let origin = http2_endpoint::endpoint(|raw| {
        let mut began = None;
        while let (None | Some(0..20_000), Some(frame)) = (began, raw.frame()) {
            match frame.kind {
                HEADERS => began = Some(0),
                DATA => began = began.map(|bytes| bytes + frame.payload.len()),
                _ => {}
            }
        }
        // The socket is closed with bytes unread. `:status: 413`, by the static table of HPACK and one literal.
        raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &[0x08, 3, b'4', b'1', b'3']);
    });
    let port: u16 = origin.rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for number in 0..40 {
            let seen = uploads(&proxy, &[version], 3_000_000, 1);
            assert_eq!(seen, ["413"], "{version}, upload {number}");
            // Until the endpoint has closed, the connection serves others, and what it does with them is its secret.
            until("the endpoint has closed", || !is_open_to(port));
        }
    }
}

#[test]
fn a_client_that_reads_nothing_before_it_has_sent_all_gets_its_response() {
    let proxy = refusing("path = \"/ok\"");
    for (head, status) in [
        ("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n", 404),
        ("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ] {
        let mut stream = proxy.connect();
        stream.write_all(head.as_bytes()).unwrap();
        (0..500).for_each(|piece| {
            stream.write_all(&PIECE[..16_000]).unwrap_or_else(|error| panic!("piece {piece} of {head}: {error}"));
        });
        assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().status(), status);
    }
}

/// Starts an endpoint that responds to a head at once, and keeps connections open without reading on.
fn unread() -> String {
    let kept = Arc::new(Mutex::new(Vec::new()));
    raw_origin(move |mut stream| {
        let mut some = [0; 100];
        if stream.read(&mut some).is_ok_and(|length| length > 0) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        kept.lock().unwrap().push(stream);
    })
}

#[test]
fn a_body_that_rests_behind_its_response_gives_its_connection_back() {
    let limits = "read-timeout = \"300ms\"\nlimits = { connections = 1 }\n[[route]]";
    // The endpoint takes nothing more, or the client sends nothing more.
    for pieces in [600, 1] {
        let proxy = Proxy::start(&manifest(&unread(), "", "").replace("[[route]]", limits));
        let mut stream = proxy.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 80000000\r\n\r\n").unwrap();
        let mut sending = stream.try_clone().unwrap();
        std::thread::spawn(move || (0..pieces).all(|_| sending.write_all(&PIECE).is_ok()));
        assert_eq!(read_message(&mut BufReader::new(stream.try_clone().unwrap())).unwrap().status(), 200);
        assert_eq!(proxy.get("/", "").status(), 200, "{pieces} pieces");
    }
    let proxy = Proxy::start(&manifest(&unread(), "", "").replace("[[route]]", limits));
    let mut client = Raw::connect(&proxy);
    assert!(client.send(HEADERS, END_HEADERS, 1, POST) && client.send(DATA, 0, 1, &PIECE));
    client.until(|frame| is_answer(frame, 1));
    assert_eq!(proxy.get("/", "").status(), 200, "HTTP/2");
}
