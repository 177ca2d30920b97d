//! Hooks beside the head filters: bodies, observer, timer, a plugin's own figures.

use std::io::{BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use plugway_test_guests::{API_KEY, HOOKS};

use crate::support::{Message, PATIENCE, Proxy, manifest, ok, origin, read_message, run, until};

fn post(proxy: &Proxy, body: &str) -> Message {
    let mut stream = proxy.connect();
    let length = body.len();
    write!(stream, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
        .unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

/// Answers with what it got.
fn mirror() -> String {
    origin(|request| ok(&request.text()))
}

#[test]
fn bodies_are_transformed_both_ways_as_they_come() {
    let proxy = Proxy::start(&manifest(&mirror(), &format!("{{ use = {HOOKS:?} }}"), ""));
    assert_eq!(post(&proxy, "hello").text(), "HELLO!!");
    let long = "x".repeat(1 << 20);
    assert_eq!(post(&proxy, &long).text(), format!("{}!!", long.to_uppercase()));
    assert_eq!(proxy.get("/", "").text(), "", "a body that isn't there isn't transformed");
}

#[test]
fn a_streamed_response_is_not_held_back() {
    let release = Arc::new(AtomicBool::new(false));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let wait = release.clone();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").unwrap();
        while !wait.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").unwrap();
    });
    let proxy = Proxy::start(&manifest(&address, &format!("{{ use = {HOOKS:?} }}"), ""));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut seen = Vec::new();
    while !seen.windows(5).any(|part| part == b"FIRST") {
        let mut some = [0; 1024];
        let length = stream.read(&mut some).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend(&some[..length]);
    }
    release.store(true, Ordering::Relaxed);
    stream.read_to_end(&mut seen).unwrap();
    let text = String::from_utf8(seen).unwrap();
    assert!(text.contains("SECOND") && text.ends_with("1\r\n!\r\n0\r\n\r\n"), "{text}");
}

#[test]
fn a_body_beyond_the_buffer_is_refused_or_passes() {
    let refusing = format!("{{ use = {HOOKS:?}, config = {{ buffer = 8 }} }}");
    let proxy = Proxy::start(&manifest(&mirror(), &refusing, ""));
    assert_eq!(post(&proxy, "hello").text(), "HELLO!!");
    let known = post(&proxy, "much too long");
    assert_eq!((known.status(), known.field("proxy-status")), (413, Some("plugway; error=http_request_body_size")));
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nlonger\r\n6\r\nlonger\r\n0\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().status(), 413);

    let greedy = refusing.replace("buffer = 8", "buffer = 99999999999");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plugway.toml"), manifest("127.0.0.1:1", &greedy, "")).unwrap();
    let (code, error) = run(&["check", folder.path().join("plugway.toml").to_str().unwrap()]);
    assert!(code == Some(1) && error.contains("its memory limit doesn't hold"), "{error}");

    let passing = refusing.replace("buffer = 8", "buffer = 8, pass = true");
    let proxy = Proxy::start(&manifest(&mirror(), &passing, ""));
    assert_eq!(post(&proxy, "much too long").text(), "much too long");
}

#[test]
fn a_trap_in_a_body_ends_its_own_exchange_only() {
    let proxy = Proxy::start(&manifest(&mirror(), &format!("{{ use = {HOOKS:?} }}"), ""));
    let harmed = post(&proxy, "trap");
    assert_eq!((harmed.status(), harmed.field("proxy-status")), (502, Some("plugway; error=plugin_error")));
    proxy.wait_log("told to trap in a body");
    assert_eq!(post(&proxy, "next").text(), "NEXT!!");
}

#[test]
fn an_observer_hears_of_the_end_and_a_timer_ticks() {
    let key = format!("{{ use = {API_KEY:?}, config = {{ keys = {{ k = \"carol\" }} }} }}");
    let more = format!("[admin]\naddress = \"127.0.0.1:0\"\n[plugin.hooks]\nuse = {HOOKS:?}\n");
    let proxy = Proxy::start_after(&manifest(&mirror(), &format!("\"hooks\", {key}"), &more), "admin at http://");
    proxy.get("/seen", "\r\nX-API-Key: k");
    proxy.wait_log(r#"ended Some("/seen") Some("carol") 200 None"#);
    proxy.get("/refused", "");
    proxy.wait_log(r#"ended Some("/refused") None 401 None"#);

    let deadline = Instant::now() + PATIENCE;
    loop {
        let figures = proxy.ask_admin("GET /metrics").text();
        let value = |name: &str| {
            let line = figures.lines().find(|line| line.contains(&format!("plugin=\"hooks\",name=\"{name}\"")));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        let ticked = value("ticks").is_some_and(|ticks| ticks >= 3.0);
        if value("ended") == Some(2.0) && value("bytes") == Some(24.0) && ticked {
            break;
        }
        assert!(Instant::now() < deadline, "{figures}");
    }
}

#[test]
fn a_head_has_no_length_of_a_content_that_plugins_would_change() {
    let length = origin(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec());
    let proxy = Proxy::start(&manifest(&length, &format!("{{ use = {HOOKS:?} }}"), ""));
    let mut stream = proxy.connect();
    stream.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && !text.contains("content-length"), "{text}");
}

#[test]
fn slow_bodies_in_one_plugin_leave_instances_for_others() {
    let more = format!(
        "[[route]]\npath = \"/other\"\nupstream = \"app\"\nplugins = [{{ use = {HOOKS:?}, isolation = \"request\" }}]\n"
    );
    let text = manifest(&mirror(), &format!("{{ use = {HOOKS:?} }}"), &more).replace("workers = 2", "workers = 1");
    let proxy = Proxy::start(&text);
    let begin = || {
        let mut stream = proxy.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nslow").unwrap();
        stream
    };
    let mut slow: Vec<_> = (0..256).map(|_| begin()).collect();
    // All are on their way once the next is refused.
    let mut reader = BufReader::new(begin());
    let refused = read_message(&mut reader).unwrap();
    assert_eq!((refused.status(), refused.field("proxy-status")), (503, Some("plugway; error=plugin_error")));
    let mut stream = proxy.connect();
    stream
        .write_all(b"POST /other HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nother")
        .unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().text(), "OTHER!!");
    let mut first = slow.remove(0);
    first.write_all(b"!").unwrap();
    assert_eq!(read_message(&mut BufReader::new(first)).unwrap().text(), "SLOW!!!");
}

#[test]
fn an_observer_keeps_no_client_waiting() {
    let more = format!("[plugin.hooks]\nuse = {HOOKS:?}\nlimits.cpu = \"2s\"\n");
    let proxy = Proxy::start(&manifest(&mirror(), r#""hooks""#, &more).replace("workers = 2", "workers = 1"));
    let mut stream = proxy.connect();
    stream.write_all(b"GET /spin HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().status(), 200);
    assert!(!proxy.has_logged("hook=\"observer\""), "the response came after the observer");
    proxy.wait_log("hook=\"observer\"");
}

#[test]
fn a_trap_at_the_end_of_a_body_is_logged_and_counted() {
    let more = format!("[plugin.hooks]\nuse = {HOOKS:?}\n");
    let proxy = Proxy::start(&manifest(&mirror(), r#""hooks""#, &more));
    assert_eq!(post(&proxy, "drop").text(), "DROP!!");
    let line = proxy.wait_log("plugin failed");
    assert!(line.contains("request-body"), "{line}");
    until("the failure is counted", || proxy.metric("plugway_plugin_failures_total{plugin=\"hooks\"}") > 0.0);
    assert_eq!(post(&proxy, "next").text(), "NEXT!!");
}

/// Each body has calls that return before the one that traps: the breaker never opened.
#[test]
fn bodies_that_trap_stop_the_hook_until_one_is_whole() {
    for config in ["", ", config = { buffer = 1024 }"] {
        let plugin = format!("{{ use = {HOOKS:?}, limits.share = 100{config} }}");
        let proxy = Proxy::start(&manifest(&mirror(), &plugin, ""));
        let traps = || (0..20).for_each(|_| assert_eq!(post(&proxy, "trap").status(), 502));
        proxy.log_until("failures_of=\"body\"", traps);
        until("a trial has ended", || post(&proxy, "good").status() == 200);
        proxy.wait_log("plugin breaker closed");
        assert_eq!(post(&proxy, "good").status(), 200);
    }
}
