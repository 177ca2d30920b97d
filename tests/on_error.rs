//! The effect of `on-error` in hooks other than the filters of heads: bodies, trailers and balancers. Each failure is
//! counted, and logged once with the plugin's name.

use std::io::{BufReader, Read, Write};

use plugway_test_guests::{GREEDY, HOOKS};

use crate::support::{Message, Proxy, manifest, ok, origin, raw_origin, read_message};

const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\n";

/// Starts a proxy whose route has the plugin `hooks`, in front of an origin.
fn with_hooks(origin: &str, on_error: &str, config: &str) -> Proxy {
    let more = format!("{ADMIN}[plugin.hooks]\nuse = {HOOKS:?}\non-error = {on_error}\n{config}\n");
    Proxy::start(&manifest(origin, "\"hooks\"", &more).replace("[[route]]", "[[route]]\nname = \"front\""))
}

/// Waits for the line of the plugin's failure, and checks that it is counted, and the only line of it.
fn is_told(proxy: &Proxy, plugin: &str, hook: &str, reason: &str, failures: f64) {
    let line = proxy.wait_log("plugin failed");
    let (named, hooked) = (format!("plugin={plugin:?}"), format!("hook={hook:?}"));
    assert!(line.contains(&named) && line.contains(&hooked) && line.contains(reason), "{line}");
    assert!(line.contains("request_id=\"") && line.contains("route=\"front\""), "{line}");
    assert_eq!(proxy.metric(&format!("plugway_plugin_failures_total{{plugin={plugin:?}}}")), failures);
    assert!(!proxy.has_logged("failed"), "one line for one failure");
}

/// Starts an origin that echoes a body with `(sent)`, in chunks with a trailer.
fn mirror() -> String {
    origin(|request| {
        let body = request.text().to_lowercase();
        let length = format!("{:x}", body.len() + 6);
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length}\r\n{body}(sent)\r\n0\r\nX-Sum: 1\r\n\r\n"
        )
        .into()
    })
}

/// Posts a body in chunks, with a trailer.
fn post(proxy: &Proxy, content: &str) -> String {
    let mut stream = proxy.connect();
    let length = content.len();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = if length > 0 { format!("{length:x}\r\n{content}\r\n") } else { String::new() };
    write!(stream, "{head}{chunks}0\r\nX-Sent: 1\r\n\r\n").unwrap();
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    String::from_utf8(got).unwrap()
}

#[test]
fn a_failed_request_body_is_answered_with_the_status_of_on_error() {
    for (on_error, status) in [("\"fail\"", "502"), ("503", "503"), ("418", "418")] {
        let proxy = with_hooks(&origin(|request| ok(&request.text())), on_error, "");
        for (count, (content, reason)) in [
            ("a trap", "unreachable"),
            ("bad-end", "unreachable"),
            ("bad-trailers", "unreachable"),
            ("illegal", "`set-cookie` can't stand in trailers"),
        ]
        .into_iter()
        .enumerate()
        {
            let got = post(&proxy, content);
            assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{on_error}, {content}: {got}");
            assert!(got.contains("proxy-status: plugway; error=plugin_error"), "{got}");
            is_told(&proxy, "hooks", "request-body", reason, count as f64 + 1.0);
        }
    }
}

#[test]
fn a_skipped_body_plugin_leaves_what_it_has_not_touched() {
    let echo = || origin(|request: &Message| ok(&request.text()));
    let proxy = with_hooks(&echo(), "\"skip\"", "");
    // The response passes the plugin too: its first piece is what fails there.
    let got = post(&proxy, "a trap");
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("a trap"), "{got}");
    assert!(!got.contains("A TRAP") && !got.contains('!'), "{got}");
    // Taken whole, the body is there when its end fails.
    let whole = with_hooks(&echo(), "\"skip\"", "config.buffer = 1000");
    let got = post(&whole, "bad-end");
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("bad-end") && !got.contains('!'), "{got}");
    // Streamed, the plugin may hold a part of the body: what would be missing is not passed off as whole.
    let got = post(&proxy, "bad-end");
    assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
    // Trailers come after all content.
    let got = post(&proxy, "illegal");
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("ILLEGAL!") && !got.contains("set-cookie"), "{got}");
}

#[test]
fn a_failed_response_body_is_cut_off_once() {
    for (content, reason) in [("trap", "unreachable"), ("bad-end", "unreachable")] {
        let text = content.to_string();
        let source = origin(move |_| ok(&text));
        let proxy = with_hooks(&source, "503", "");
        let mut stream = proxy.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        assert!(!got.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&got));
        is_told(&proxy, "hooks", "response-body", reason, 1.0);
        assert_eq!(proxy.metric("plugway_errors_total{route=\"front\",kind=\"plugin_error\"}"), 1.0);
    }
}

#[test]
fn trailers_of_a_response_that_may_not_be_are_refused() {
    let proxy = with_hooks(&mirror(), "\"fail\"", "");
    // The request's content has no trailers for the plugin to spoil: it is sent with a length.
    let ask = |content: &str| {
        let mut stream = proxy.connect();
        let length = content.len();
        write!(stream, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{content}")
            .unwrap();
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        String::from_utf8(got).unwrap()
    };
    assert!(ask("hello").ends_with("0\r\n\r\n"));
    let got = ask("illegal");
    assert!(got.contains("ILLEGAL") && !got.ends_with("0\r\n\r\n") && !got.contains("set-cookie"), "{got}");
    is_told(&proxy, "hooks", "response-body", "`set-cookie` can't stand in trailers", 1.0);
}

/// Starts a proxy whose upstream has the plugin `picks` as its balancer.
fn with_balancer(on_error: &str) -> Proxy {
    let endpoints = ["a", "b"].map(|name| format!("{:?}", origin(move |_| ok(name)))).join(", ");
    let plugin = format!("[plugin.picks]\nuse = {GREEDY:?}\non-error = {on_error}\nconfig.declare = \"\"\n");
    Proxy::start(&format!(
        "workers = 1\n{ADMIN}[[listener]]\naddress = \"127.0.0.1:0\"\n{plugin}[upstream.app]\nendpoints = [{endpoints}]\n\
         balancer = \"picks\"\n[[route]]\nname = \"front\"\nupstream = \"app\"\n"
    ))
}

#[test]
fn a_balancer_that_fails_is_told_and_on_error_holds() {
    let wrong = [
        ("beyond", "it picked endpoint 99, and there are 2"),
        ("plan", "it declared no plan 7"),
        ("trap", "unreachable"),
    ];
    for (on_error, status) in [("\"fail\"", 502), ("503", 503), ("\"skip\"", 200)] {
        let proxy = with_balancer(on_error);
        assert_eq!(proxy.get("/", "").text(), "a");
        for (count, (what, reason)) in wrong.iter().enumerate() {
            let got = proxy.get("/", &format!("\r\nX-Greedy: {what}"));
            assert_eq!(got.status(), status, "{on_error}, {what}");
            is_told(&proxy, "picks", "balancer", reason, count as f64 + 1.0);
        }
    }
}

#[test]
fn a_skipped_balancer_is_stood_in_for_by_the_least_loaded_endpoint() {
    let holding = raw_origin(|stream| {
        let mut reader = BufReader::new(stream);
        read_message(&mut reader);
        let _ = reader.read(&mut [0]);
    });
    let free = origin(|_| ok("free"));
    let proxy = Proxy::start(&format!(
        "workers = 1\n{ADMIN}[[listener]]\naddress = \"127.0.0.1:0\"\n[plugin.picks]\nuse = {GREEDY:?}\non-error = \"skip\"\n\
         [upstream.app]\nendpoints = [{holding:?}, {free:?}]\nbalancer = \"picks\"\n[[route]]\nupstream = \"app\"\n"
    ));
    let mut busy = proxy.connect();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    crate::support::until("the first is busy", || {
        proxy.ask_admin("GET /metrics").text().lines().any(|line| line.contains("in_flight") && line.ends_with(" 1"))
    });
    assert_eq!(proxy.get("/", "\r\nX-Greedy: beyond").text(), "free");
}
