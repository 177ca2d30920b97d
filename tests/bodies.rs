//! Body hooks: the values that they get, how a head hook decides about them, and what they may do with a message.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use plugway_test_guests::BODIES;

use crate::support::{Message, Proxy, manifest, ok, origin, raw_origin, read_message, until};

/// A proxy in front of an origin that answers with what it got.
fn mirror(plugins: &str) -> Proxy {
    let origin = origin(|request| ok(&request.text()));
    Proxy::start(&manifest(&origin, plugins, ""))
}

fn bodies() -> String {
    format!("{{ use = {BODIES:?} }}")
}

/// Sends a request with content and more fields.
fn post(proxy: &Proxy, fields: &str, content: &str) -> Message {
    let mut stream = proxy.connect();
    let length = content.len();
    let head = "POST /in HTTP/1.1\r\nHost: a\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {length}{fields}\r\n\r\n{content}").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

#[test]
fn a_body_hook_gets_the_values_that_it_declared() {
    let proxy = mirror(&bodies());
    let answer = post(&proxy, "\r\nContent-Type: text/x", "abc");
    assert_eq!(answer.text(), "[200 -][POST text/x]abc");
}

#[test]
fn isolation_gives_each_body_a_fresh_instance() {
    for (isolation, last) in [("worker", "5"), ("request", "1")] {
        let plugin = format!("{{ use = {BODIES:?}, isolation = {isolation:?}, config.bodies = \"skip\" }}");
        let text = manifest(&origin(|request| ok(&request.text())), &plugin, "");
        let proxy = Proxy::start(&text.replace("workers = 2", "workers = 1"));
        let count = || post(&proxy, "\r\nX-Body: stream", "count").text();
        let counts: Vec<String> = (0..5).map(|_| count()).collect();
        assert_eq!(counts[4], format!("[POST -]{last}"), "{isolation}: {counts:?}");
    }
}

#[test]
fn values_of_a_body_hook_are_those_after_the_edits_of_all_plugins() {
    let edits = "{ use = \"headers\", config = { request.set = { Content-Type = \"b\" }, response.set = { Content-Type = \"c\" } } }";
    // Above and below: edits of either are seen.
    for plugins in [format!("{edits}, {}", bodies()), format!("{}, {edits}", bodies())] {
        assert_eq!(post(&mirror(&plugins), "", "abc").text(), "[200 c][POST b]abc", "{plugins}");
    }
}

/// The metric of the calls of the plugin `bodies`.
const CALLS: &str = "plugway_plugin_calls_total{plugin=\"bodies\"}";

/// A proxy whose plugin takes bodies as `declared` says, in front of an origin that answers with what it got and with
/// the field `X-Body` that the request's field `X-Answer` names.
fn deciding(declared: &str) -> Proxy {
    let origin = origin(|request| {
        let (text, decision) = (request.text(), request.field("x-answer").unwrap_or("skip"));
        let head = format!("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nX-Body: {decision}\r\nContent-Length: {}", text.len());
        format!("{head}\r\n\r\n{text}").into_bytes()
    });
    let plugin = format!("[plugin.bodies]\nuse = {BODIES:?}\nconfig = {{ bodies = {declared:?} }}\n");
    Proxy::start(&manifest(&origin, "\"bodies\"", &plugin))
}

#[test]
fn a_head_hook_decides_about_the_body_of_its_message() {
    let proxy = deciding("skip");
    let text = |fields: &str, content: &str| post(&proxy, fields, content).text();
    assert_eq!(text("", "abc"), "abc", "as it declared");
    assert_eq!(text("\r\nX-Body: stream", "abc"), "[POST -]abc");
    assert_eq!(text("\r\nX-Body: plan", "abc"), "[POST -]abc");
    assert_eq!(text("\r\nX-Answer: stream", "abc"), "[200 -]abc");
    assert_eq!(text("\r\nX-Answer: whole-or-pass:2", "abc"), "abc");
    assert_eq!(post(&proxy, "\r\nX-Body: whole:2", "abc").status(), 413);
    assert_eq!(post(&proxy, "\r\nX-Answer: whole:2", "abc").status(), 502);
    let proxy = deciding("stream");
    assert_eq!(post(&proxy, "\r\nX-Body: skip", "abc").text(), "abc");
}

#[test]
fn a_skipped_body_costs_no_call_and_changes_nothing_of_its_message() {
    let proxy = deciding("skip");
    let answer = post(&proxy, "", "abc");
    assert_eq!((answer.text().as_str(), answer.field("etag")), ("abc", Some("\"a\"")));
    assert_eq!(answer.field("content-length"), Some("3"));
    let calls = proxy.metric(CALLS);
    post(&proxy, "", "abc");
    assert_eq!(proxy.metric(CALLS) - calls, 2.0, "one for each head");
}

#[test]
fn a_decision_about_a_body_that_can_not_be_is_a_failure_of_the_head_hook() {
    let proxy = deciding("skip");
    let refused = post(&proxy, "\r\nX-Body: whole:99999999999", "abc");
    assert_eq!((refused.status(), refused.field("proxy-status")), (502, Some("plugway; error=plugin_error")));
    let line = proxy.wait_log("its memory limit doesn't hold");
    assert!(line.contains("hook=\"request-filter\""), "{line}");
}

/// A proxy in front of a mirror whose plugin has room for so many bodies.
fn crowded(bodies: usize, wait: &str, more: &str) -> Proxy {
    let limits = format!("limits = {{ bodies = {bodies}, body-wait = {wait:?} }}");
    let plugin = format!("[plugin.bodies]\nuse = {BODIES:?}\nconfig = {{ bodies = \"skip\" }}\n{limits}\n{more}");
    let origin = origin(|request| ok(&request.text()));
    Proxy::start(&manifest(&origin, "\"bodies\"", &plugin))
}

/// Begins a request whose content lacks its last byte; its response is not
/// transformed.
fn begin(proxy: &Proxy) -> TcpStream {
    begin_over(proxy.connect())
}

fn begin_over(mut stream: TcpStream) -> TcpStream {
    let fields = "Connection: close\r\nX-Body: stream\r\nContent-Length: 3";
    write!(stream, "POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nab").unwrap();
    stream
}

/// Sends the last byte, and returns the response.
fn end(mut stream: TcpStream) -> Message {
    stream.write_all(b"c").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

/// The metric of the bodies that got no permit.
const REJECTED: &str = "plugway_plugin_rejected_total{plugin=\"bodies\",reason=\"bodies\"}";

#[test]
fn a_body_beyond_the_limit_waits_for_one_that_ends() {
    let proxy = crowded(1, "30s", "");
    let first = begin(&proxy);
    until("the first body passes", || proxy.metric(CALLS) > 1.0);
    let calls = proxy.metric(CALLS);
    let second = begin(&proxy);
    until("the second body waits", || proxy.metric(CALLS) > calls);
    assert_eq!(end(first).text(), "[POST -]abc");
    assert_eq!(end(second).text(), "[POST -]abc");
    assert_eq!(proxy.metric(REJECTED), 0.0);
}

#[test]
fn a_body_that_has_waited_too_long_is_answered_by_503_that_names_the_limit() {
    let proxy = crowded(1, "100ms", "");
    let first = begin(&proxy);
    until("the first body passes", || proxy.metric(CALLS) > 1.0);
    let refused = end(begin(&proxy));
    assert_eq!((refused.status(), refused.field("proxy-status")), (503, Some("plugway; error=plugin_error")));
    assert_eq!(refused.field("retry-after"), Some("1"));
    let line = proxy.wait_log("exchange failed");
    assert!(line.contains("limit=\"limits.bodies\"") && line.contains("limits.body-wait"), "{line}");
    assert_eq!(proxy.metric(REJECTED), 1.0);
    assert_eq!(end(first).text(), "[POST -]abc");
}

/// Output at the end of a body held no permit, and took megabytes for each client that read nothing.
#[test]
fn long_output_holds_its_permit_until_it_is_taken() {
    const PEEKED: usize = 64 << 10;
    let unread = Arc::new(Mutex::new(Vec::new()));
    let connections = unread.clone();
    // The first connection gets a request that the origin doesn't read.
    let origin = raw_origin(move |mut stream| {
        let mut connections = connections.lock().unwrap();
        if connections.is_empty() {
            return connections.push(stream);
        }
        drop(connections);
        let _ = read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        let _ = stream.write_all(&ok("read"));
    });
    let limits = "limits = { bodies = 1, body-wait = \"100ms\" }";
    let plugin = format!("[plugin.bodies]\nuse = {BODIES:?}\nconfig = {{ bodies = \"skip\" }}\n{limits}");
    let proxy = Proxy::start(&manifest(&origin, "\"bodies\"", &plugin));
    let mut upload = proxy.connect();
    upload.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nX-Body: stream\r\nContent-Length: 4\r\n\r\nlong").unwrap();
    let has_output = |stream: &TcpStream| stream.peek(&mut [0; PEEKED]).unwrap() == PEEKED;
    until("the output waits", || unread.lock().unwrap().first().is_some_and(has_output));
    let ask = || post(&proxy, "\r\nX-Body: stream", "abc").status();
    assert_eq!(ask(), 503);
    drop(upload);
    until("the permit is free", || ask() == 200);
}

#[test]
fn no_more_bodies_wait_than_may_pass() {
    let proxy = crowded(1, "1h", "");
    let mut held = vec![begin(&proxy)];
    until("one more than waits is answered", || {
        held.push(begin(&proxy));
        proxy.metric(REJECTED) > 0.0
    });
    proxy.wait_log("and as many bodies wait");
}

#[test]
fn slow_bodies_of_one_client_leave_places_to_others() {
    let proxy = crowded(16, "10ms", "");
    let mut held = Vec::new();
    until("one beyond its part is rejected", || {
        held.push(begin_over(proxy.connect_from("127.0.0.2")));
        proxy.metric(REJECTED) > 0.0
    });
    for _ in 0..4 {
        assert_eq!(end(begin(&proxy)).status(), 200);
    }
}

#[test]
fn on_error_decides_about_a_body_that_gets_no_permit() {
    for (on_error, status) in [("\"skip\"", 200), ("418", 418)] {
        let proxy = crowded(1, "10ms", &format!("on-error = {on_error}\n"));
        let _first = begin(&proxy);
        until("the first body passes", || proxy.metric(CALLS) > 1.0);
        let answer = end(begin(&proxy));
        assert_eq!(answer.status(), status);
        assert!(status != 200 || answer.text() == "abc", "{}", answer.text());
    }
}

#[test]
fn a_response_waits_for_room_in_a_body_hook_before_its_head_is_sent() {
    let release = Arc::new(AtomicBool::new(false));
    let wait = release.clone();
    // The content of the first response ends when the second one has come.
    let origin = raw_origin(move |mut stream| {
        let Some(request) = read_message(&mut BufReader::new(stream.try_clone().unwrap())) else { return };
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\na").unwrap();
        while request.start.contains("/slow") && !wait.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        stream.write_all(b"b").unwrap();
    });
    let get = |proxy: &Proxy, path: &str| {
        let mut stream = proxy.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        stream
    };
    let plugin =
        |wait: &str| format!("[plugin.bodies]\nuse = {BODIES:?}\nlimits = {{ bodies = 1, body-wait = {wait:?} }}\n");
    let slow_first = |wait: &str| {
        release.store(false, Ordering::Relaxed);
        let proxy = Proxy::start(&manifest(&origin, "\"bodies\"", &plugin(wait)));
        let slow = get(&proxy, "/slow");
        let mut begun = [0; 12];
        (&slow).read_exact(&mut begun).unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200");
        (proxy, slow)
    };
    let (proxy, _slow) = slow_first("50ms");
    assert_eq!(read_message(&mut BufReader::new(get(&proxy, "/"))).unwrap().status(), 503);
    let (proxy, _slow) = slow_first("1h");
    let calls = proxy.metric(CALLS);
    let waiting = get(&proxy, "/");
    until("the second response waits", || proxy.metric(CALLS) >= calls + 2.0);
    release.store(true, Ordering::Relaxed);
    let answer = read_message(&mut BufReader::new(waiting)).unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "[200 -]ab"));
}

#[test]
fn long_bodies_pass_both_ways_with_flat_memory() {
    const BYTES: usize = 100 << 20;
    let origin = raw_origin(|stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0);
        }
        let (mut out, mut piece) = (stream, vec![0; 64 << 10]);
        out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        // What comes goes back as it comes, until the last chunk of the request.
        loop {
            let length = reader.read(&mut piece).unwrap();
            out.write_all(&piece[..length]).unwrap();
            if length == 0 || piece[..length].ends_with(b"0\r\n\r\n") {
                return;
            }
        }
    });
    let plugin = format!("[plugin.bodies]\nuse = {BODIES:?}\nlimits.share = 100\n");
    let text = manifest(&origin, "\"bodies\"", &plugin).replace("[[route]]", "[[route]]\nresponse-buffer = false");
    let proxy = Proxy::start(&text);
    let before = proxy.memory_kib();
    let stream = proxy.connect();
    let mut writer = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let fields = "Connection: close\r\nTransfer-Encoding: chunked";
        write!(writer, "POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").unwrap();
        let piece = [&b"10000\r\n"[..], &vec![b'x'; 64 << 10], b"\r\n"].concat();
        (0..BYTES / (64 << 10)).for_each(|_| writer.write_all(&piece).unwrap());
        writer.write_all(b"0\r\n\r\n").unwrap();
    });
    let (mut received, mut most, mut piece) = (0, 0, vec![0; 1 << 20]);
    let mut stream = stream;
    loop {
        let length = stream.read(&mut piece).unwrap();
        if length == 0 {
            break;
        }
        received += piece[..length].iter().filter(|byte| **byte == b'x').count();
        most = most.max(proxy.memory_kib());
    }
    sending.join().unwrap();
    assert_eq!(received, BYTES);
    assert!(most - before < 48 << 10, "{} KiB more than {before}", most - before);
}
