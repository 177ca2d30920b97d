//! Heads of requests and responses where an endpoint is concerned: their size, their length, their words.

use std::io::{BufReader, Read, Write};
use std::process::Command;

use crate::http2_endpoint::endpoint;
use crate::support::{Message, Proxy, echo, manifest, output, read_message};

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

/// An origin that sends a head as it is, and closes.
fn said(head: &'static str) -> String {
    crate::support::raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while read_message(&mut reader).is_some() {
            stream.write_all(head.as_bytes()).unwrap();
        }
    })
}

/// The response to a request, without content if the method is HEAD.
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
