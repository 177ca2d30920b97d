//! Informational responses (1xx) of endpoints: those that an honest one sends before its response, and those without end.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::http2::{END_HEADERS, HEADERS, Raw};
use crate::http2_endpoint::{endpoint, head};
use crate::support::{Message, Proxy, manifest, raw_origin, read_message, until};

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const EARLY_HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";

/// `:status` 103 as a block of fields.
const STATUS_103: &[u8] = &[8, 3, b'1', b'0', b'3'];
/// `:status` 100.
const STATUS_100: &[u8] = &[8, 3, b'1', b'0', b'0'];

/// A proxy that waits for responses for five seconds, and repeats nothing.
fn front(endpoint: &str, upstream: &str) -> Proxy {
    let keys = format!("retry = false\nresponse-timeout = \"5s\"\n{upstream}\nendpoints");
    Proxy::start(&manifest(endpoint, "", "").replacen("endpoints", &keys, 1))
}

/// An endpoint that sends `interim` over and over in place of a response, in pieces of so many bytes.
fn endless(interim: String, piece: usize) -> String {
    raw_origin(move |mut stream| {
        stream.set_nodelay(true).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        if reader.lines().map_while(Result::ok).any(|line| line.is_empty()) {
            while interim.as_bytes().chunks(piece).all(|piece| stream.write_all(piece).is_ok()) {}
        }
    })
}

/// An endpoint that answers each request of a connection with `before` and then a response, in pieces of so many bytes.
fn honest(before: String, content: usize, piece: usize) -> String {
    raw_origin(move |mut stream| {
        stream.set_nodelay(true).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        while lines.any(|line| line.is_empty()) {
            let response =
                format!("{before}HTTP/1.1 200 OK\r\nContent-Length: {content}\r\n\r\n{}", "x".repeat(content));
            response.as_bytes().chunks(piece).for_each(|piece| drop(stream.write_all(piece)));
        }
    })
}

/// Sends a request, and returns the response that follows the informational ones.
fn final_response(proxy: &Proxy) -> Message {
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    loop {
        let message = read_message(&mut reader).unwrap();
        if !(100..200).contains(&message.status()) {
            return message;
        }
    }
}

/// Sends bytes, and returns all that the client receives.
fn received(proxy: &Proxy, sent: &str) -> String {
    let mut stream = proxy.connect();
    stream.write_all(sent.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn informational_responses_reach_clients_of_http_11() {
    let processing = "HTTP/1.1 102 Processing\r\n\r\n";
    let before = format!("{CONTINUE}{EARLY_HINTS}{processing}");
    for piece in [1, 7, 1000] {
        let proxy = front(&honest(before.clone(), 5, piece), "");
        let text = received(&proxy, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let (informational, response) = text.split_once("HTTP/1.1 200 OK").unwrap();
        assert_eq!(
            informational,
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        );
        assert!(response.ends_with("xxxxx"), "{text}");
        // A client of HTTP/1.0 would take them for the response.
        let text = received(&proxy, "GET / HTTP/1.0\r\nHost: a\r\n\r\n");
        assert!(text.starts_with("HTTP/1.") && text[8..].starts_with(" 200 OK"), "{text}");
    }
}

#[test]
fn informational_responses_arrive_before_the_response_is_made() {
    let (asked, release) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (seen, may) = (asked.clone(), release.clone());
    let endpoint = raw_origin(move |mut stream| {
        let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        if lines.into_iter().any(|line| line.is_empty()) {
            stream.write_all(EARLY_HINTS.as_bytes()).unwrap();
            seen.store(true, Ordering::Relaxed);
            until("the client has the hints", || may.load(Ordering::Relaxed));
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        }
    });
    let proxy = front(&endpoint, "");
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    assert_eq!(read_message(&mut reader).unwrap().status(), 103);
    release.store(true, Ordering::Relaxed);
    assert_eq!(read_message(&mut reader).unwrap().status(), 204);
    assert!(asked.load(Ordering::Relaxed));
}

#[test]
fn pipelined_requests_get_informational_responses_in_their_place() {
    let proxy = front(&honest(EARLY_HINTS.into(), 300_000, 1 << 20), "");
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let last = request.replace("Host", "Connection: close\r\nHost");
    let mut stream = proxy.connect();
    stream.write_all(format!("{}{last}", request.repeat(9)).as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut statuses = Vec::new();
    while let Some(message) = read_message(&mut reader) {
        statuses.push(message.status());
        assert!(message.status() == 103 || message.body.iter().all(|byte| *byte == b'x'), "a whole body");
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 10, "{statuses:?}");
    assert!(statuses.windows(2).all(|pair| pair != [103, 103]), "{statuses:?}");
}

/// The client gets 502, and the log names the limit.
fn is_refused(proxy: &Proxy, what: &str) {
    let response = final_response(proxy);
    assert_eq!(response.status(), 502, "{what}: {response:?}");
    assert_eq!(response.field("proxy-status"), Some("plugway; error=http_response_header_section_size"), "{what}");
    let line = proxy.wait_log("exchange failed");
    let parts = [" WARN ", "limit=\"limits.response-head\"", "informational responses"];
    assert!(parts.iter().all(|part| line.contains(part)), "{what}: {line}");
}

#[test]
fn informational_responses_without_end_are_refused_at_once() {
    let hints: String = (0..90).map(|n| format!("Link: </{n}.css>; rel=preload\r\n")).collect();
    let kinds = [
        (CONTINUE.to_string(), 64 << 10, ""),
        ("HTTP/1.1 102 Processing\r\n\r\n".into(), 64 << 10, ""),
        (EARLY_HINTS.into(), 7, ""),
        (CONTINUE.into(), 1, "limits.response-head = \"1 KiB\""),
        (CONTINUE.repeat(1000), usize::MAX, ""),
        (format!("HTTP/1.1 103 Early Hints\r\n{hints}\r\n"), 64 << 10, ""),
        (format!("HTTP/1.1 199 {}\r\n\r\n", "x".repeat(30_000)), 64 << 10, ""),
        (CONTINUE.into(), 64 << 10, "limits.response-head = \"1 MiB\""),
    ];
    for (interim, piece, upstream) in kinds {
        let what = interim.chars().take(40).collect::<String>();
        is_refused(&front(&endless(interim, piece), upstream), &format!("{what:?} {piece} {upstream}"));
    }
}

#[test]
fn informational_responses_before_a_response_are_read_past() {
    let hints = EARLY_HINTS.repeat(1000);
    let kinds = [
        (CONTINUE.repeat(2), 2, usize::MAX),
        (EARLY_HINTS.into(), 2, usize::MAX),
        (EARLY_HINTS.to_string() + CONTINUE + "HTTP/1.1 102 Processing\r\n\r\n", 2, 1),
        // Nearly as much as is allowed, and then content that doesn't count.
        (hints[..32_000 / EARLY_HINTS.len() * EARLY_HINTS.len()].into(), 1 << 20, usize::MAX),
        (EARLY_HINTS.repeat(300), 1 << 20, 1000),
    ];
    for (before, content, piece) in kinds {
        let proxy = front(&honest(before.clone(), content, piece), "");
        // Each counts anew, on the same connection to the endpoint or not.
        for _ in 0..4 {
            let response = final_response(&proxy);
            assert_eq!((response.status(), response.body.len()), (200, content), "{} {piece}", before.len());
        }
    }
}

#[test]
fn a_health_check_reads_no_informational_responses_without_end() {
    let health = "health = { path = \"/\", interval = \"100ms\", timeout = \"60s\" }";
    let proxy = front(&endless(CONTINUE.into(), 64 << 10), health);
    proxy.wait_log("informational responses");
}

/// An endpoint over HTTP/2 that sends heads of informational responses before each response, or in its place.
fn over_http2(block: Vec<u8>, count: Option<usize>) -> String {
    endpoint(move |raw: &mut Raw| {
        while let Some(request) = raw.next_request() {
            let mut sent = 0;
            while count.is_none_or(|count| sent < count) && raw.send(HEADERS, END_HEADERS, request.stream, &block) {
                sent += 1;
            }
            raw.respond(request.stream, &[], b"ok");
        }
    })
}

#[test]
fn informational_responses_without_end_are_refused_over_http2() {
    let many: Vec<(&str, &str)> = vec![("link", "</a.css>; rel=preload"); 90];
    for block in [STATUS_103.to_vec(), STATUS_100.to_vec(), head(STATUS_103, &many)] {
        is_refused(&front(&over_http2(block, None), ""), "over HTTP/2");
    }
}

#[test]
fn informational_responses_before_a_response_are_read_past_over_http2() {
    for (block, count) in [(STATUS_103, 1), (STATUS_100, 2), (STATUS_103, 20)] {
        let block = head(block, &[("link", "</a.css>; rel=preload")]);
        let proxy = front(&over_http2(block, Some(count)), "");
        let good = |response: &Message| response.status() == 200 && response.text() == "ok";
        assert!((0..100).all(|_| good(&proxy.get("/", ""))), "{count}");
    }
}
