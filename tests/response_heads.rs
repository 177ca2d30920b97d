//! Heads of requests and responses at an endpoint: their size, their length, their words.

use std::io::{BufReader, Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::http2_endpoint::endpoint;
use crate::support::{Message, Proxy, echo, manifest, origin, output, read_message, until};

const TOO_LARGE: Option<&str> = Some("plugway; error=http_response_header_section_size");

/// Starts an origin whose response has the fields and the bytes that the path of the request names.
fn heads() -> String {
    origin(|request| {
        let (fields, bytes) = wanted(&request.start);
        let mut text = String::from("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n");
        (1..fields).for_each(|n| text += &format!("x-{n}: 1\r\n"));
        let left = bytes.saturating_sub(text.len() + 10);
        if left > 0 {
            text += &format!("x-pad: {}\r\n", "y".repeat(left));
        }
        (text + "\r\n").into_bytes()
    })
}

fn wanted(start: &str) -> (usize, usize) {
    let mut numbers = start.split(' ').nth(1).unwrap().split('/').skip(1).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn with_limits(origin: &str, limits: &str) -> Proxy {
    Proxy::start(&manifest(origin, "", &format!("[upstream.app.limits]\n{limits}\n")))
}

#[test]
fn the_head_of_a_response_has_limits_that_the_manifest_sets() {
    let origin = heads();
    let cases = [
        ("", 101, 0, 200),
        ("", 500, 0, 200),
        ("", 501, 0, 502),
        ("", 2, 30 << 10, 200),
        ("", 2, 33 << 10, 502),
        ("", 2, 120 << 10, 502),
        ("response-fields = 120", 120, 0, 200),
        ("response-fields = 120", 121, 0, 502),
        ("response-fields = 10", 11, 0, 502),
        ("response-head = \"200 KiB\"", 2, 190 << 10, 200),
        ("response-head = \"200 KiB\"", 2, 210 << 10, 502),
        ("response-head = \"1 KiB\"", 2, 1000, 200),
        ("response-head = \"1 KiB\"", 2, 1100, 502),
    ];
    for (limits, fields, bytes, status) in cases {
        let proxy = with_limits(&origin, limits);
        // The second on the same connection to the origin, if that is kept.
        for _ in 0..2 {
            let response = proxy.get(&format!("/{fields}/{bytes}"), "");
            assert_eq!(response.status(), status, "{limits} {fields} {bytes}");
            assert!(status == 200 || response.field("proxy-status") == TOO_LARGE, "{:?}", response.fields);
            assert!(
                status != 200
                    || response.fields.iter().filter(|(name, _)| name.starts_with("x-")).count() >= fields - 1
            );
        }
    }
}

#[test]
fn the_limits_of_the_upstream_hold_for_its_health_checks() {
    let checks = Arc::new(AtomicUsize::new(0));
    let counted = checks.clone();
    let origin = origin(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Pad: {}\r\n\r\n", "y".repeat(40 << 10)).into_bytes()
    });
    let checked = |limits: &str| {
        let health = "[upstream.app.health]\ninterval = \"50ms\"\nhealthy = 1\nunhealthy = 1\n";
        with_limits(&origin, &format!("{limits}\n{health}"))
    };
    let proxy = checked("");
    let line = proxy.wait_log("endpoint is down: health checks fail");
    assert!(line.contains("limits.response-head"), "{line}");
    drop(proxy);
    let before = checks.load(Ordering::SeqCst);
    let proxy = checked("response-head = \"64 KiB\"");
    until("a check is over", || checks.load(Ordering::SeqCst) > before + 2);
    let state = format!("plugway_endpoint_state{{upstream=\"app\",endpoint={origin:?},state=\"up\"}}");
    assert_eq!(proxy.metric(&state), 1.0);
}

#[test]
fn the_limits_hold_for_http2_too_and_are_named() {
    let address = endpoint(|raw| {
        let mut sent = 0;
        while let Some(request) = raw.next_request() {
            sent += 1;
            let names: Vec<String> = (0..if sent % 2 == 0 { 99 } else { 101 }).map(|n| format!("x-{n}")).collect();
            let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
            raw.respond(request.stream, &fields, b"ok");
        }
    });
    let mut command = crate::support::plugway();
    command.env("PLUGWAY_LOG", "debug");
    let folder = tempfile::tempdir().unwrap();
    let text = manifest(&address, "", "[upstream.app.limits]\nresponse-fields = 100\n");
    let proxy = Proxy::start_by(command, folder.path(), &text.replace("workers = 2", "workers = 1"));
    for status in [502, 200, 502, 200] {
        let response = proxy.get("/", "");
        assert_eq!(response.status(), status);
        assert!(status == 200 || response.field("proxy-status") == TOO_LARGE, "{:?}", response.fields);
    }
    let line = proxy.wait_log("exchange failed");
    assert!(line.contains("limits.response-head") && line.contains("limits.response-fields"), "{line}");

    let long = endpoint(|raw| {
        while let Some(request) = raw.next_request() {
            let value = "y".repeat(100);
            raw.respond(request.stream, &[("x-a", value.as_str()); 12], b"ok");
        }
    });
    let proxy = with_limits(&long, "response-head = \"1 KiB\"");
    assert_eq!(proxy.get("/", "").field("proxy-status"), TOO_LARGE);
    // What is far beyond the limit isn't even read, so that h2 can't be told by which rule it is refused.
    let proxy = with_limits(&long, "response-head = \"2 KiB\"");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn a_head_beyond_the_limit_is_not_the_endpoints_failure() {
    let proxy = with_limits(&heads(), "response-fields = 10");
    (0..8).for_each(|_| assert_eq!(proxy.get("/11/0", "").status(), 502));
    let metrics = || proxy.ask_admin("GET /metrics").text();
    until("the last exchange is counted", || metrics().contains("kind=\"http_response_header_section_size\"} 8"));
    let metrics = metrics();
    let failures = metrics.lines().find(|line| line.starts_with("plugway_endpoint_failures_total")).unwrap();
    assert!(failures.ends_with(" 0"), "{failures}");
}

#[test]
fn a_reload_changes_the_limits_of_connections_that_are_kept() {
    let origin = heads();
    let text = manifest(&origin, "", "").replace("workers = 2", "workers = 1");
    let proxy = Proxy::start(&text);
    assert_eq!(proxy.get("/200/0", "").status(), 200);
    proxy.reload(&format!("{text}[upstream.app.limits]\nresponse-fields = 100\n"));
    proxy.wait_log("reloaded");
    assert_eq!(proxy.get("/200/0", "").status(), 502);
    proxy.reload(&text);
    proxy.wait_log("reloaded");
    assert_eq!(proxy.get("/200/0", "").status(), 200);
}

#[test]
fn a_request_without_content_says_so_where_its_method_gives_content_a_meaning() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let ask = |method: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--max-time", "30", "--request", method]).args(more);
        output(curl.arg(format!("http://{}/", proxy.address))).to_lowercase()
    };
    for version in ["--http2-prior-knowledge", "--http1.1"] {
        for method in ["POST", "PUT", "PATCH", "QUERY"] {
            let got = ask(method, &[version]);
            assert!(got.contains("content-length: 0\n") && !got.contains("transfer-encoding"), "{version} {got}");
        }
        for method in ["GET", "DELETE", "OPTIONS"] {
            let got = ask(method, &[version]);
            assert!(!got.contains("content-length") && !got.contains("transfer-encoding"), "{version} {got}");
        }
        let got = ask("POST", &[version, "--data", "abc"]);
        assert!(got.contains("content-length: 3\n"), "{version} {got}");
    }
}

/// Starts an origin that sends a head unchanged, and closes.
fn said(head: &'static str) -> String {
    crate::support::raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while read_message(&mut reader).is_some() {
            stream.write_all(head.as_bytes()).unwrap();
        }
    })
}

/// Returns the response to a request, without a body if the method is HEAD.
fn head(proxy: &Proxy, method: &str) -> Message {
    let mut stream = proxy.connect();
    write!(stream, "{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let start = lines.next().unwrap().into();
    let fields = lines.map(|line| line.split_once(": ").unwrap()).map(|(name, value)| (name.into(), value.into()));
    Message { start, fields: fields.collect(), body: body.into() }
}

#[test]
fn the_length_of_a_response_is_one_number_or_it_is_refused() {
    let cases = [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", Some("2")),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", Some("2")),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 02\r\n\r\nok", Some("2")),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7,7\r\n\r\n", Some("7")),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", Some("7")),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nok", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2,\r\n\r\nok", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok", None),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n", None),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n", None),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: abc\r\n\r\n", None),
    ];
    for (method, response, wanted) in cases {
        let proxy = Proxy::start(&manifest(&said(response), "", ""));
        let got = head(&proxy, method);
        let lengths: Vec<&str> =
            got.fields.iter().filter(|(name, _)| name == "content-length").map(|(_, value)| value.as_str()).collect();
        match wanted {
            Some(length) => assert_eq!(lengths, [length], "{method} {response}"),
            None => {
                let outcome = (got.status(), got.field("proxy-status"));
                assert_eq!(outcome, (502, Some("plugway; error=http_protocol_error")), "{method} {response}");
            }
        }
        // A client of HTTP/2 is told the same.
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--http2-prior-knowledge", "--max-time", "30", "--output", "/dev/null"]);
        curl.args(["--write-out", "%{http_code}"]).args(if method == "HEAD" { &["--head"][..] } else { &[] });
        let status = output(curl.arg(format!("http://{}/", proxy.address)));
        assert_eq!(status, got.status().to_string(), "{method} {response}");
    }
    // Over HTTP/2 a field may come twice as well.
    let twice = endpoint(|raw| {
        while let Some(request) = raw.next_request() {
            raw.respond(request.stream, &[("content-length", "2"), ("content-length", "2")], b"ok");
        }
    });
    let got = head(&Proxy::start(&manifest(&twice, "", "")), "GET");
    assert_eq!((got.status(), got.fields.iter().filter(|(name, _)| name == "content-length").count()), (200, 1));
    for length in ["+2", "two", "2, 3", "18446744073709551616"] {
        let wrong = endpoint(move |raw| {
            while let Some(request) = raw.next_request() {
                raw.respond(request.stream, &[("content-length", length)], b"ok");
            }
        });
        let got = head(&Proxy::start(&manifest(&wrong, "", "")), "GET");
        let outcome = (got.status(), got.field("proxy-status"));
        assert_eq!(outcome, (502, Some("plugway; error=http_protocol_error")), "{length}");
    }
}

#[test]
fn the_words_of_a_status_are_kept_between_http1_and_http1() {
    let origin = said("HTTP/1.1 404 No Such Parcel\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    assert_eq!(proxy.get("/", "").start, "HTTP/1.1 404 No Such Parcel");
    let proxy = Proxy::start(&manifest(&said("HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok"), "", ""));
    assert_eq!(head(&proxy, "GET").start, "HTTP/1.1 200 ");
    let proxy = Proxy::start(&manifest(&said("HTTP/1.1 299 Nearly\r\nContent-Length: 2\r\n\r\nok"), "", ""));
    assert_eq!(proxy.get("/", "").start, "HTTP/1.1 299 Nearly");
}

#[test]
fn readable_responses_are_normalised_and_ambiguous_ones_rejected() {
    let good = [
        "HTTP/1.1 200 OK\nX-A: 1\nX-B: 2\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nX-A: 1\nX-B: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\nX-A: 1\r\nX-B: 2\nContent-Length: 2\r\n\nok",
        "HTTP/1.1 200 OK\r\nX-A : 1\r\nX-B\t : 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.2 200 OK\r\nX-A: 1\r\nX-B: 2\r\nContent-Length: 2\r\n\r\nok",
    ];
    for response in good {
        let proxy = Proxy::start(&manifest(&said(response), "", ""));
        for _ in 0..2 {
            let got = head(&proxy, "GET");
            assert_eq!((got.status(), got.field("x-a"), got.field("x-b")), (200, Some("1"), Some("2")), "{response:?}");
            assert_eq!(got.text(), "ok", "{response:?}");
        }
    }
    let lines = [
        "X-A: 1\rX-B: 2\r\n",
        "X-A: 1\r\r\n",
        "X-A: \r\r\n",
        "\rX-A: 1\r\n",
        "X-A: 1\r\n 2\r\n",
        "X-A: 1\n 2\n",
        "X-A: 1\n\t2\r\n",
        "X-A:\r\n 2\r\n",
        "X-A: 1\0\r\n",
        "X-A\0: 1\r\n",
        "X-A: 1\0\n",
        " X-A: 1\r\n",
        "X-A: \x7f\r\n",
        "X-A\r\n",
        ": 1\r\n",
    ];
    for line in lines {
        let response: &'static str = format!("HTTP/1.1 200 OK\r\n{line}Content-Length: 2\r\n\r\nok").leak();
        let got = head(&Proxy::start(&manifest(&said(response), "", "")), "GET");
        let outcome = (got.status(), got.field("proxy-status"));
        assert_eq!(outcome, (502, Some("plugway; error=http_protocol_error")), "{line:?}");
    }
    for start in ["HTTP/1.1 200 O\rK\r\n", "HTTP/1.1 200 O\0K\r\n", "HTTP/1.1 2\r00 OK\r\n", "HTTP/1.1 200\r OK\r\n"] {
        let response: &'static str = format!("{start}Content-Length: 2\r\n\r\nok").leak();
        let got = head(&Proxy::start(&manifest(&said(response), "", "")), "GET");
        assert_eq!(got.status(), 502, "{start:?}");
    }
}
