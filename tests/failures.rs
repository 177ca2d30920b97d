//! Log lines about failures at the default level: one line each, with the details to find the cause, limited in number.
//! Clients that merely disconnect are not logged.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::http2::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Raw};
use crate::http2_endpoint::{self, REFUSED_STREAM};
use crate::support::{
    Message, PATIENCE, Proxy, echo, limited, manifest, ok, origin, raw_origin, read_message, refusing, run, sized,
    until, vanish,
};
use crate::tls::{Authority, SITE, secure};

const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\n";

/// Starts an origin that reads requests and sends nothing.
fn silent() -> String {
    raw_origin(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())))
}

/// Returns an address at which connections are not accepted, with the connections that fill its queue.
fn unaccepting() -> (String, (Socket, Vec<TcpStream>)) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(300));
    let held = std::iter::from_fn(|| connect().ok()).collect();
    (address.to_string(), (listener, held))
}

/// Starts a proxy whose route is `front`, with more keys of its upstream and its route.
fn front(endpoint: &str, upstream: &str, route: &str) -> Proxy {
    let log = "[access-log]\nformat = \"json\"\nfile = \"access.log\"\n";
    let text = manifest(endpoint, "", &format!("{ADMIN}{log}"));
    let text = text.replace("[[route]]", &format!("{upstream}\n[[route]]\nname = \"front\"\n{route}"));
    Proxy::start(&text)
}

/// Returns the identifier of the request in an error page.
fn id(response: &Message) -> String {
    response.text().lines().last().unwrap().trim_start_matches("request ").to_string()
}

/// Waits for the line of a failure, which has all these parts and is a warning.
fn warned(proxy: &Proxy, message: &str, parts: &[&str]) -> String {
    let line = proxy.wait_log(message);
    for part in parts {
        assert!(line.contains(part), "`{part}` in {line}");
    }
    assert!(line.contains(" WARN "), "{line}");
    line
}

#[test]
fn a_failed_exchange_is_one_warning_that_names_its_request_and_cause() {
    let address = refusing();
    let proxy = front(&address, "", "");
    let failed = proxy.get("/", "");
    assert_eq!(failed.status(), 502);
    let request = format!("request_id={:?}", id(&failed));
    let endpoint = format!("endpoint={address:?}");
    warned(
        &proxy,
        "exchange failed",
        &[
            "kind=\"connection_refused\"",
            &request,
            "route=\"front\"",
            "upstream=\"app\"",
            &endpoint,
            "Connection refused",
        ],
    );
    assert!(!proxy.has_logged("failed"), "once");
}

#[test]
fn each_limit_of_an_exchange_is_named_by_its_key() {
    let late = |key: &str, upstream: &str, route: &str| {
        let proxy = front(&silent(), upstream, route);
        assert_eq!(proxy.get("/", "").status(), 504);
        warned(
            &proxy,
            "exchange failed",
            &["kind=\"http_response_timeout\"", &format!("limit={key:?}"), "route=\"front\""],
        );
    };
    late("response-timeout", "response-timeout = \"300ms\"", "");
    late("timeout", "", "timeout = \"300ms\"");
    let (full, _held) = unaccepting();
    let proxy = front(&full, "connect-timeout = \"300ms\"", "");
    assert_eq!(proxy.get("/", "").status(), 504);
    warned(&proxy, "exchange failed", &["kind=\"connection_timeout\"", "limit=\"connect-timeout\""]);
    let proxy = front(&silent(), "[upstream.app.limits]\nrequests = 1", "");
    let mut first = proxy.connect();
    first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    until("the upstream is full", || {
        let figures = proxy.ask_admin("GET /metrics").text();
        figures.lines().any(|line| line.starts_with("plugway_endpoint_in_flight") && line.ends_with(" 1"))
    });
    assert_eq!(proxy.get("/", "").status(), 503);
    warned(&proxy, "exchange failed", &["kind=\"connection_limit_reached\"", "limit=\"limits.requests\""]);

    let proxy = limited(
        &echo(),
        "body-timeout = \"300ms\", head-timeout = \"300ms\", target = \"100 B\"",
        "max-body = \"10 B\"",
    );
    let says = |request: &str| {
        let mut stream = proxy.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_message(&mut BufReader::new(stream)).unwrap().status()
    };
    assert_eq!(says("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n"), 413);
    warned(&proxy, "exchange failed", &["kind=\"http_request_body_size\"", "limit=\"max-body\""]);
    assert_eq!(
        says("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n12345678901\r\n0\r\n\r\n"),
        413
    );
    warned(&proxy, "exchange failed", &["kind=\"http_request_body_size\"", "limit=\"max-body\""]);
    assert_eq!(says("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx"), 408);
    warned(&proxy, "exchange failed", &["kind=\"http_request_timeout\"", "limit=\"limits.body-timeout\""]);
    assert_eq!(says("GET / HTTP/1.1\r\nHost: a\r\n"), 408);
    warned(&proxy, "exchange failed", &["kind=\"http_request_timeout\"", "limit=\"limits.head-timeout\""]);
    assert_eq!(says(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(200))), 414);
    warned(&proxy, "exchange failed", &["kind=\"http_request_error\"", "limit=\"limits.target\""]);
    assert_eq!(says("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400);
    warned(&proxy, "exchange failed", &["kind=\"http_request_error\"", "Content-Length is repeated"]);
}

/// The key of a route whose requests are forwarded as they arrive.
const STREAMED: &str = "request-buffer = false\n";

#[test]
fn an_upload_that_is_too_long_to_be_repeated_names_the_limit() {
    // The endpoint reads a part, and says that it has acted on nothing.
    let refusing = |is_go_away: bool| {
        http2_endpoint::endpoint(move |raw| {
            let mut bytes = 0;
            while let Some(frame) = raw.frame() {
                bytes += frame.content();
                if bytes >= 2_000 {
                    match is_go_away {
                        true => raw.go_away(0),
                        false => raw.reset(frame.stream, REFUSED_STREAM),
                    }
                    bytes = 0;
                }
            }
        })
    };
    for (is_go_away, buffer) in [(false, "1 KiB"), (true, "1 KiB"), (false, "0 B")] {
        let proxy = front(&refusing(is_go_away), &format!("retry = {{ buffer = {buffer:?} }}"), STREAMED);
        let mut stream = proxy.connect();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("{head}{}", "x".repeat(4000)).as_bytes()).unwrap();
        assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().status(), 502);
        let parts = ["kind=\"connection_terminated\"", "limit=\"retry.buffer\"", "request_id=\"", "route=\"front\""];
        warned(&proxy, "exchange failed", &parts);
    }
}

#[test]
fn retries_that_the_budget_denies_name_it() {
    let proxy = front(&refusing(), "retry = { budget = 0 }\noutliers = false", "");
    assert_eq!(proxy.get("/", "").status(), 502);
    warned(&proxy, "exchange failed", &["kind=\"connection_refused\"", "limit=\"retry.budget\""]);
}

#[test]
fn a_field_that_the_listener_rejects_names_the_key() {
    let text = manifest(&echo(), "", "").replacen("[[listener]]\n", "[[listener]]\nfield-aliases = \"reject\"\n", 1);
    let proxy = Proxy::start(&text);
    assert_eq!(proxy.get("/", "\r\nX_User: root").status(), 400);
    warned(&proxy, "exchange failed", &["kind=\"http_request_error\"", "limit=\"field-aliases\""]);
}

#[test]
fn a_head_that_is_too_long_over_http2_is_a_warning_too() {
    let text = format!("{}[access-log]\nformat = \"json\"\nfile = \"access.log\"\n", manifest(&echo(), "", ADMIN));
    let text =
        text.replacen("address = \"127.0.0.1:0\"\n", "address = \"127.0.0.1:0\"\nlimits = { head = \"1 KiB\" }\n", 1);
    let proxy = Proxy::start(&text);
    let mut client = Raw::connect(&proxy);
    let value = "a".repeat(120);
    let long = http2_endpoint::head(crate::http2::GET, &[("x-long", &*value)].repeat(10));
    client.request(1);
    client.send(HEADERS, END_HEADERS | END_STREAM, 3, &long);
    client.send(HEADERS, END_STREAM, 5, &long[..500]);
    client.send(CONTINUATION, END_HEADERS, 5, &long[500..]);
    client.request(7);
    for _ in 0..2 {
        let parts = ["kind=\"http_request_error\"", "limit=\"limits.head\"", "request_id=\""];
        warned(&proxy, "exchange failed", &parts);
    }
    let refused = "plugway_errors_total{route=\"-\",kind=\"http_request_error\"} 2";
    until("both count", || proxy.ask_admin("GET /metrics").text().lines().any(|line| line == refused));
    client.request(9);
    client.until(|frame| frame.stream == 9 && frame.flags & END_STREAM != 0);
    assert!(!proxy.has_logged("exchange failed"), "requests that are served leave none");
    let logged = || std::fs::read_to_string(proxy.folder.path().join("access.log")).unwrap_or_default();
    until("the access log has both", || logged().matches("\"status\":431").count() == 2);
}

#[test]
fn a_refused_upload_that_ends_short_over_http2_is_no_warning() {
    let proxy = front(&echo(), "", "path = \"/front\"");
    let mut client = Raw::connect(&proxy);
    // curl ends its stream with less than its Content-Length once it has the whole response.
    let upload = |path: &[u8], length: &str| {
        let length_field = [&[0x0f, 0x0d, length.len() as u8], length.as_bytes()].concat();
        [&[0x83, 0x86, 0x04, path.len() as u8], path, &[0x41, 1, b'a'], &length_field].concat()
    };
    client.send(HEADERS, END_HEADERS, 1, &upload(b"/nowhere", "100000"));
    client.send(DATA, 0, 1, b"some");
    client.until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0 && frame.kind != RST_STREAM);
    client.send(DATA, END_STREAM, 1, b"");
    client.until(|frame| frame.stream == 1 && frame.kind == RST_STREAM);
    // A stream that ends short before its response is a mistake.
    client.send(HEADERS, END_HEADERS, 3, &upload(b"/front", "100000"));
    client.send(DATA, END_STREAM, 3, b"some");
    let lines = proxy.log_until("HTTP/2 streams reset", || ());
    assert_eq!(count(&lines, "exchange failed"), 1, "{lines:?}");
    client.until(|frame| frame.stream == 3 && (frame.kind == RST_STREAM || frame.flags & END_STREAM != 0));
    assert!(!proxy.has_logged("HTTP/2 streams reset"), "one of them");
}

#[test]
fn a_malformed_request_over_http2_is_a_warning_too() {
    let proxy = front(&echo(), "", "");
    let mut client = Raw::connect(&proxy);
    client.send(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &http2_endpoint::head(crate::http2::GET, &[("connection", "close")]),
    );
    let line = warned(&proxy, "HTTP/2 streams reset", &["client=\"127.0.0.1\"", "streams=1", "cause=\""]);
    assert!(line.contains("malformed"), "{line}");
    client.request(3);
    client.until(|frame| frame.stream == 3 && frame.flags & END_STREAM != 0);
    assert!(!proxy.has_logged("HTTP/2 streams reset"), "requests that are served leave none");
    assert!(!proxy.has_logged("exchange failed"), "one warning is enough");
    let logged = || std::fs::read_to_string(proxy.folder.path().join("access.log")).unwrap_or_default();
    until("the access log has both", || logged().lines().count() == 2);
    let log = logged();
    let refused = log.lines().find(|line| line.contains("\"status\":400")).expect(&log);
    assert!(refused.contains("\"error\":\"http_request_error\"") && refused.contains("\"127.0.0.1\""), "{refused}");
    let counted = "plugway_errors_total{route=\"-\",kind=\"http_request_error\"} 1";
    assert!(proxy.ask_admin("GET /metrics").text().lines().any(|line| line == counted));
}

#[test]
fn a_stream_that_is_reset_within_its_content_has_one_line_in_the_access_log() {
    let proxy = front(&silent(), "", "request-buffer = false");
    let mut client = Raw::connect(&proxy);
    let head = http2_endpoint::head(&[0x83, 0x86, 0x84, 0x41, 1, b'a'], &[("content-length", "5")]);
    client.send(HEADERS, END_HEADERS, 1, &head);
    client.send(DATA, 0, 1, b"abc");
    until("it is at the endpoint", || {
        let figures = proxy.ask_admin("GET /metrics").text();
        figures.lines().any(|line| line.starts_with("plugway_endpoint_in_flight") && line.ends_with(" 1"))
    });
    client.send(DATA, END_STREAM, 1, b"more than it has");
    warned(&proxy, "HTTP/2 streams reset", &["streams=1"]);
    // Behind it, one that has no exchange.
    client.send(HEADERS, END_HEADERS | END_STREAM, 3, &http2_endpoint::head(crate::http2::GET, &[("te", "gzip")]));
    client.send(HEADERS, END_HEADERS | END_STREAM, 5, &http2_endpoint::head(crate::http2::GET, &[("upgrade", "a")]));
    let logged = || std::fs::read_to_string(proxy.folder.path().join("access.log")).unwrap_or_default();
    until("the access log has those", || logged().lines().count() >= 2);
    client.send(HEADERS, END_HEADERS | END_STREAM, 7, &http2_endpoint::head(crate::http2::GET, &[("upgrade", "a")]));
    until("the access log has another", || logged().matches("\"target\":null").count() >= 2);
    assert_eq!(logged().matches("\"POST\"").count(), 1, "{}", logged());
}

#[test]
fn a_client_that_gave_up_and_is_told_so_finds_its_request_in_the_log() {
    let proxy = front(&silent(), "", "");
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let told = read_message(&mut BufReader::new(stream)).unwrap();
    assert_eq!(told.status(), 400);
    let line = proxy.wait_log("its client gave up");
    assert!(line.contains(" INFO ") && line.contains(&format!("request_id={:?}", id(&told))), "{line}");
}

#[test]
fn exchange_cut_off_at_the_stop_is_a_warning() {
    let half = raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_message(&mut reader);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
        let _ = reader.read_until(0, &mut Vec::new());
    });
    let text = |endpoint: &str| {
        format!(
            "drain-timeout = \"300ms\"\n{}",
            manifest(endpoint, "", "").replace("[[route]]", "[[route]]\nname = \"front\"")
        )
    };
    for (endpoint, is_begun) in [(&silent(), false), (&half, true)] {
        let mut proxy = Proxy::start(&text(endpoint));
        let mut one = proxy.connect();
        one.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut two = Raw::connect(&proxy);
        two.request(1);
        if is_begun {
            one.read_exact(&mut [0; 15]).unwrap();
            two.until(|frame| frame.kind == HEADERS);
        } else {
            until("both are under way", || {
                let figures = proxy.ask_admin("GET /metrics").text();
                figures.lines().any(|line| line.starts_with("plugway_endpoint_in_flight") && line.ends_with(" 2"))
            });
        }
        proxy.signal("TERM");
        for _ in 0..2 {
            let kind = if is_begun { "kind=\"connection_terminated\"" } else { "kind=\"http_response_timeout\"" };
            let parts = [
                kind,
                "limit=\"drain-timeout\"",
                "request_id=\"",
                "route=\"front\"",
                "upstream=\"app\"",
                "endpoint=\"",
            ];
            warned(&proxy, "exchange cut off", &parts);
        }
        assert_eq!(proxy.wait_exit(), Some(0));
    }
}

#[test]
fn a_response_that_is_cut_off_is_a_warning_and_stands_in_the_access_log() {
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
    let closing = raw_origin(|mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(half).unwrap();
    });
    let pausing = raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_message(&mut reader);
        stream.write_all(half).unwrap();
        let _ = reader.read_until(0, &mut Vec::new());
    });
    for (origin, keys, parts) in [
        (&closing, ("", ""), ["kind=\"connection_terminated\"", "route=\"front\""]),
        (&pausing, ("read-timeout = \"300ms\"", ""), ["kind=\"http_response_timeout\"", "limit=\"read-timeout\""]),
        (&pausing, ("", "timeout = \"300ms\""), ["kind=\"http_response_timeout\"", "limit=\"timeout\""]),
    ] {
        let proxy = front(origin, keys.0, keys.1);
        let mut stream = proxy.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        assert!(got.ends_with(b"half"));
        let line = warned(&proxy, "response cut off", &parts);
        assert!(line.contains("request_id=\"") && line.contains(&format!("endpoint={origin:?}")), "{line}");
        let kind = parts[0].trim_start_matches("kind=");
        let log = proxy.folder.path().join("access.log");
        let logged = || std::fs::read_to_string(&log).unwrap_or_default();
        until("the access log has its line", || logged().ends_with('\n'));
        assert!(logged().contains(&format!("\"error\":{kind}")) && logged().contains("\"status\":200"), "{}", logged());
        assert_eq!(proxy.metric(&format!("plugway_errors_total{{route=\"front\",kind={kind}}}")), 1.0);
    }
}

#[test]
fn an_endpoint_that_only_ever_refuses_is_seen_behind_retries() {
    let (bad, good) = (refusing(), origin(|_| ok("good")));
    let text = manifest("ENDPOINTS", "", ADMIN).replace("\"ENDPOINTS\"", &format!("{bad:?}, {good:?}"));
    let proxy = Proxy::start(&text);
    (0..4).for_each(|_| assert_eq!(proxy.get("/", "").text(), "good"));
    let endpoint = format!("endpoint={bad:?}");
    warned(
        &proxy,
        "attempt failed",
        &["kind=\"connection_refused\"", &endpoint, "request_id=\"", "route=\"", "upstream=\"app\""],
    );
}

/// Returns how many of these lines of the log have `part` in them.
fn count(lines: &[String], part: &str) -> usize {
    lines.iter().filter(|line| line.contains(part)).count()
}

/// Returns the lines of the log up to now, once a request without a route has left its own.
fn log_up_to_now(proxy: &Proxy) -> Vec<String> {
    proxy.exchange("NONE");
    let mut lines = proxy.log_until("kind=\"http_request_error\"", || ());
    lines.retain(|line| !line.contains("left out"));
    lines
}

#[test]
fn a_dead_endpoint_behind_retries_is_one_warning_until_it_is_up_again() {
    let (bad, good) = (refusing(), origin(|_| ok("good")));
    let text = manifest("ENDPOINTS", "", ADMIN);
    let text =
        text.replace("endpoints = [\"ENDPOINTS\"]", &format!("endpoints = [{bad:?}, {good:?}]\noutliers = false"));
    let proxy = Proxy::start(&text);
    let endpoint = format!("endpoint={bad:?}");
    let failed = || proxy.metric(&format!("plugway_endpoint_failures_total{{upstream=\"app\",{endpoint}}}"));
    let ask = |failures: f64| {
        let before = failed();
        until("the endpoint has failed", || {
            assert_eq!(proxy.get("/", "").text(), "good");
            failed() >= before + failures
        });
    };
    ask(40.0);
    let lines = log_up_to_now(&proxy);
    assert_eq!((count(&lines, "attempt failed"), count(&lines, &endpoint)), (1, 1), "{lines:?}");
    // It returns, and dies again.
    let listener = TcpListener::bind(&bad).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ngood").unwrap();
    });
    until("it has served", || {
        assert_eq!(proxy.get("/", "").text(), "good");
        serving.is_finished()
    });
    let line = proxy.wait_log("endpoint answers again");
    assert!(line.contains(&endpoint) && line.contains("INFO"), "{line}");
    ask(20.0);
    let lines = log_up_to_now(&proxy);
    assert_eq!((count(&lines, "attempt failed"), count(&lines, &endpoint)), (1, 1), "{lines:?}");
}

#[test]
fn an_endpoint_that_stays_dead_is_said_to_be_ejected_once() {
    let (bad, good) = (refusing(), origin(|_| ok("good")));
    let rules = "outliers = { consecutive = 2, ejection = \"100ms\", longest-ejection = \"100ms\" }";
    let text = manifest("ENDPOINTS", "", ADMIN);
    let text = text.replace("endpoints = [\"ENDPOINTS\"]", &format!("endpoints = [{bad:?}, {good:?}]\n{rules}"));
    let proxy = Proxy::start(&text);
    let endpoint = format!("endpoint={bad:?}");
    until("it is ejected again and again", || {
        assert_eq!(proxy.get("/", "").text(), "good");
        proxy.metric(&format!("plugway_endpoint_ejections_total{{upstream=\"app\",{endpoint}}}")) >= 3.0
    });
    let lines = log_up_to_now(&proxy);
    assert_eq!((count(&lines, "ejected"), count(&lines, &endpoint)), (1, 2), "{lines:?}");
}

#[test]
fn warnings_are_limited_and_those_left_out_are_counted() {
    let proxy = front(&echo(), "", "path = \"/here\"");
    const FAILURES: usize = 200;
    (0..FAILURES).for_each(|_| assert_eq!(proxy.get("/nowhere", "").status(), 404));
    // Another kind has its own room.
    let mut bad = proxy.connect();
    bad.write_all(b"BAD\r\n\r\n").unwrap();
    let _ = bad.read_to_end(&mut Vec::new());
    let (mut lines, mut left_out, mut others, mut seconds) = (0, 0, 0, 0);
    let deadline = Instant::now() + PATIENCE;
    while lines + left_out < FAILURES || others == 0 {
        assert!(Instant::now() < deadline, "{lines} lines, {left_out} left out, {others} others");
        let line = proxy.wait_log("WARN");
        if line.contains("kind=\"no_route\"") && line.contains("exchange failed") {
            lines += 1;
        } else if line.contains("failures left out") && line.contains("kind=\"no_route\"") {
            seconds += 1;
            let count = line.split("left_out=").nth(1).unwrap().split(' ').next().unwrap();
            left_out += count.parse::<usize>().unwrap();
        } else if line.contains("kind=\"http_request_error\"") {
            others += 1;
        }
    }
    assert!(lines <= 10 + 2 * (seconds + 1), "{lines} lines in {seconds} seconds");
    assert!(left_out > 0);
    let dropped = proxy.metric("plugway_log_failures_left_out_total{topic=\"exchange\",kind=\"no_route\"}");
    assert_eq!(dropped, left_out as f64);
}

#[test]
fn handshakes_that_fail_are_warnings() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    let text =
        secure(&echo(), SITE, "").replace("[listener.tls]", "limits = { head-timeout = \"500ms\" }\n[listener.tls]");
    let proxy = Proxy::start_in(folder.path(), &text);
    let send = |bytes: &[u8]| {
        let mut stream = proxy.connect();
        stream.write_all(bytes).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    };
    // A record of a handshake that is none.
    send(b"\x16\x03\x01\x00\x05hello");
    let listener = format!("listener={:?}", proxy.address);
    warned(&proxy, "handshake failed", &["client=\"127.0.0.1\"", &listener, "cause=\""]);
    send(b"\x16\x03\x01\x02\x00begun");
    warned(&proxy, "handshake failed", &["TLS handshake took too long", "limit=\"limits.head-timeout\""]);
    send(b"SSH-2.0-OpenSSH_9.2\r\n");
    warned(&proxy, "handshake failed", &["neither TLS nor HTTP"]);
    let distrusting = Command::new("curl").args(["--silent", &format!("https://{}/", proxy.address)]).output();
    assert!(!distrusting.unwrap().status.success());
    let parts = ["the client ended TLS with the alert `unknown_ca`: it does not trust", "`tls.certificates`"];
    warned(&proxy, "handshake failed", &parts);
    send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    warned(&proxy, "exchange failed", &["kind=\"http_request_error\"", "without TLS"]);

    let told = manifest(&echo(), "", "").replace("[upstream", "proxy-protocol-from = [\"127.0.0.1\"]\n[upstream");
    let proxy = Proxy::start(&told);
    let mut untold = proxy.connect();
    untold.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let _ = untold.read_to_end(&mut Vec::new());
    let listener = format!("listener={:?}", proxy.address);
    warned(&proxy, "without the PROXY protocol refused", &["client=\"127.0.0.1\"", &listener]);
}

/// Starts `openssl s_server` with a certificate in a folder, and waits until it accepts; returns its port.
fn openssl_server(folder: &Path, name: &str) -> (Child, u16) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (chain, key) = (format!("{name}.pem"), format!("{name}.key"));
    let mut server = Command::new("openssl");
    server.args(["s_server", "-quiet", "-www", "-accept", &port.to_string(), "-cert", &chain, "-key", &key]);
    let server = server.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("openssl listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    (server, port)
}

/// Writes a self-signed certificate of X.509 version 1, which openssl makes where there are no extensions.
fn version_1(folder: &Path) {
    let script = "openssl req -new -newkey rsa:2048 -nodes -keyout old.key -subj /CN=site.example -out old.csr && \
                  openssl x509 -req -in old.csr -signkey old.key -out old.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn tls_that_fails_with_an_endpoint_names_the_key_that_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["site.example", "other.example"]);
    version_1(folder.path());
    let site = Proxy::start_in(folder.path(), &secure(&echo(), SITE, ""));
    let (mut old, port) = openssl_server(folder.path(), "old");
    let old_address = format!("127.0.0.1:{port}");
    let clear = raw_origin(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    let named = "ca = \"ca.pem\"\nserver-name = \"site.example\"";
    let cases: [(&str, &str, &[&str]); 4] = [
        (&site.address, "server-name = \"site.example\"", &["is signed by no trusted authority", "`tls.ca`"]),
        (
            &site.address,
            "ca = \"ca.pem\"\nserver-name = \"wrong.example\"",
            &["is not for the name `wrong.example`, but for site.example, other.example", "`tls.server-name`"],
        ),
        (&old_address, named, &["is of X.509 version 1", "issue it anew"]),
        (&clear, named, &["doesn't speak TLS", "`https://`"]),
    ];
    for (endpoint, tls, parts) in cases {
        let own = tempfile::tempdir().unwrap();
        std::fs::copy(folder.path().join("ca.pem"), own.path().join("ca.pem")).unwrap();
        let text = manifest(&format!("https://{endpoint}"), "", &format!("[upstream.app.tls]\n{tls}\n"));
        let proxy = Proxy::start_in(own.path(), &text);
        assert_eq!(proxy.get("/", "").status(), 502);
        warned(&proxy, "exchange failed", parts);
    }
    old.kill().unwrap();
    old.wait().unwrap();
}

#[test]
fn a_certificate_of_version_1_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    version_1(folder.path());
    let text = secure(&echo(), "certificates = [{ chain = \"old.pem\", key = \"old.key\" }]", "");
    std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
    let (code, error) = run(&["check", folder.path().join("plugway.toml").to_str().unwrap()]);
    assert!(code == Some(1) && error.contains("old.pem` is of X.509 version 1"), "{error}");
    assert!(!error.contains("OtherError"), "{error}");
}

#[test]
fn no_cause_is_a_phrase_of_a_library() {
    let phrases = ["Body stream", "http2 error", "operation was canceled", "OtherError", "dispatch task"];
    let proxy = limited(&echo(), "body-timeout = \"300ms\"", "max-body = \"10 B\"");
    let upload = |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    for (request, cause) in [
        (upload("b\r\n12345678901\r\n0\r\n\r\n"), "cause=\"the content is longer than its limit\""),
        (upload("3\r\nabc\r\n"), "cause=\"the client's content is too slow\""),
        (upload("3\r\nabc\r\nnonsense\r\n"), "a malformed chunk"),
    ] {
        let mut stream = proxy.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        let line = proxy.wait_log("exchange failed");
        assert!(line.contains(cause), "{cause} in {line}");
        assert!(!phrases.iter().any(|phrase| line.contains(phrase)), "{line}");
    }
    let answers: [(&'static [u8], &str); 4] = [
        (b"", "the endpoint closed the connection before it responded"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "needs `https://`"),
        (b"HTTP/1.1 twenty OK\r\n\r\n", "the status code is malformed"),
        (b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", "a field of the head is malformed"),
    ];
    for (answer, cause) in answers {
        let broken = raw_origin(move |mut stream| {
            read_message(&mut BufReader::new(stream.try_clone().unwrap()));
            let _ = stream.write_all(answer);
        });
        let proxy = front(&broken, "retry = false", "");
        assert_eq!(proxy.get("/", "").status(), 502);
        let line = warned(&proxy, "exchange failed", &[cause]);
        assert!(!phrases.iter().any(|phrase| line.contains(phrase)), "{line}");
    }
    // Over HTTP/2 to the endpoint.
    let resetting = http2_endpoint::endpoint(|raw| {
        while let Some(frame) = raw.frame() {
            if frame.kind == HEADERS {
                raw.reset(frame.stream, 2);
            }
        }
    });
    let proxy = front(&resetting, "retry = false", "");
    assert_eq!(proxy.get("/", "").status(), 502);
    let line = warned(&proxy, "exchange failed", &["stream error received"]);
    assert!(!phrases.iter().any(|phrase| line.contains(phrase)), "{line}");
}

#[test]
fn a_client_that_merely_goes_away_is_no_warning() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    let clear = "[[listener]]\naddress = \"127.0.0.1:0\"\nlimits = { head-timeout = \"300ms\" }\n[[listener]]\n";
    let text = secure(&silent(), SITE, "[admin]\naddress = \"off\"\n").replacen("[[listener]]\n", clear, 1);
    // Both would listen at the same address of the manifest.
    let text = text.replacen("127.0.0.1:0", "127.0.0.2:0", 1);
    let proxy = Proxy::start_in(folder.path(), &text);
    let addresses = [proxy.address.clone(), proxy.next_listener()];
    for address in &addresses {
        let connect = || TcpStream::connect(address).unwrap();
        drop(connect());
        vanish(connect());
        let is_clear = address.starts_with("127.0.0.2");
        let second = if is_clear { &b"GET / HTTP/1.1\r\nHo"[..] } else { b"\x16\x03\x01" };
        for begun in [b"G", second] {
            for end in [drop, vanish] {
                let mut stream = connect();
                stream.write_all(begun).unwrap();
                end(stream);
            }
        }
    }
    let clear = addresses.iter().find(|address| address.starts_with("127.0.0.2")).unwrap();
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        for end in [drop, vanish] {
            let mut stream = TcpStream::connect(clear).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            end(stream);
        }
    }
    // A browser's connection ahead of need.
    let mut idle = TcpStream::connect(clear).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
    // HTTP/2: a stream that is reset within its content, and one that waits for its response.
    let mut raw = Raw(TcpStream::connect(clear).unwrap());
    raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    raw.send(4, 0, 0, &[]);
    raw.send(HEADERS, END_HEADERS, 1, &[0x83, 0x86, 0x84, 0x41, 1, b'a']);
    raw.send(0, 0, 1, b"some");
    raw.send(RST_STREAM, 0, 1, &8u32.to_be_bytes());
    raw.request(3);
    raw.send(RST_STREAM, 0, 3, &8u32.to_be_bytes());
    raw.send(6, 0, 0, &[0; 8]);
    raw.until(|frame| frame.kind == 6);
    drop(raw);
    proxy.signal("HUP");
    let lines = proxy.log_until("reloaded", || ());
    let warned = lines.iter().filter(|line| line.contains(" WARN ") && !line.contains("too few descriptors"));
    assert_eq!(warned.count(), 0, "{}", lines.join("\n"));
}

#[test]
fn a_client_that_takes_too_little_is_a_warning_with_the_limit() {
    let proxy = limited(&sized(), "send-timeout = \"1s\"", "");
    let mut stream = proxy.connect();
    stream.write_all(b"GET /50000000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    warned(&proxy, "client took too little", &["client=\"127.0.0.1\"", "limit=\"limits.send-timeout\""]);
}

#[test]
fn a_tunnel_that_its_endpoint_breaks_is_a_warning_and_one_that_its_client_leaves_is_not() {
    let (breaks, broken) = channel::<()>();
    let broken = std::sync::Arc::new(std::sync::Mutex::new(broken));
    let address = raw_origin(move |mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
        let _ = broken.lock().unwrap().recv();
        vanish(stream);
    });
    let proxy = limited(&address, "tunnel-timeout = \"2s\"", "name = \"front\"");
    let open = || {
        let mut stream = proxy.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!(read_message(&mut reader).unwrap().status(), 101);
        reader
    };
    vanish(open().into_inner());
    breaks.send(()).unwrap();
    let held = open();
    breaks.send(()).unwrap();
    warned(&proxy, "tunnel ended", &["route=\"front\"", &format!("endpoint={address:?}"), "reset by peer"]);
    drop(held);
    let _idle = open();
    warned(&proxy, "tunnel ended", &["limit=\"limits.tunnel-timeout\"", "nothing passed for 2s"]);
}

#[test]
fn a_response_that_is_not_stored_for_its_endpoint_is_a_warning() {
    let broken = raw_origin(|mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
    });
    let proxy = Proxy::start(&manifest(&broken, "{ use = \"cache\" }", ""));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    let (endpoint, route) = (format!("endpoint=\"{broken}\""), "route=\"*\"");
    let parts = ["kind=\"connection_terminated\"", "request_id=\"", route, "upstream=\"app\"", &endpoint, "cause=\""];
    warned(&proxy, "response not stored", &parts);
}

#[test]
fn a_failing_reload_and_a_name_that_is_unknown_are_said() {
    let proxy = front(&echo(), "", "");
    proxy.reload("no manifest");
    assert!(proxy.wait_log("not reloaded").contains("ERROR"));
    let unknown = Proxy::start(
        &manifest("nowhere.invalid:80", "", ADMIN)
            .replace("[\"nowhere.invalid:80\"]", "[{ dns = \"nowhere.invalid:80\" }]"),
    );
    let line = unknown.wait_log("can't be looked up");
    assert!(line.contains("ERROR") && line.contains("nowhere.invalid"), "{line}");
    assert!(line.contains("upstream=\"app\"") && line.contains("correct the name in `endpoints`"), "{line}");
    assert_eq!(unknown.get("/", "").status(), 503);
    warned(&unknown, "exchange failed", &["kind=\"destination_unavailable\""]);
}

/// h2 replaces the error of a request's content by an error of its own, which names no cause.
#[test]
fn the_cause_of_failed_content_is_logged_over_http2_too() {
    for endpoint in [http2_endpoint::answering(|_, _, _| false), echo()] {
        let proxy = Proxy::start(&manifest(&endpoint, "", "").replace("plugins", "max-body = \"1 KiB\"\nplugins"));
        let (trailer, long) = ("t".repeat(20_000), "y".repeat(2_000));
        let ask = |content: &str| {
            let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked";
            let mut stream = proxy.connect();
            stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n{content}").as_bytes()).unwrap();
            read_message(&mut BufReader::new(stream)).unwrap().status()
        };
        assert_eq!(ask(&format!("1\r\na\r\n0\r\nX-Long: {trailer}\r\n\r\n")), 400);
        proxy.wait_log("cause=\"the trailers of the request are longer than 16 KiB\"");
        assert_eq!(ask(&format!("7d0\r\n{long}\r\n0\r\n\r\n")), 413);
        proxy.wait_log("cause=\"the content is longer than its limit\"");
        assert_eq!(ask("1\r\nab\r\n0\r\n\r\n"), 400);
        proxy.wait_log("request_error");
    }
}
