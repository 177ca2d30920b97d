//! Requests of plugins: to granted destinations alone, through upstreams, with typed errors, and no longer than the call.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use plugway_test_guests::{CALLER, FORWARD_AUTH};

use crate::support::{Message, Proxy, echo, manifest, ok, origin, raw_origin, read_message, run, until, vanish};

/// Returns a manifest with the plugin `caller` in the route, and the upstream `auth` at an address.
fn calling(auth: &str, grants: &str, more: &str) -> String {
    let more = format!(
        "[upstream.auth]\nendpoints = [{auth:?}]\n[admin]\naddress = \"127.0.0.1:0\"\n\
         [plugin.caller]\nuse = {CALLER:?}\ngrants.http = [{grants}]\n{more}\n"
    );
    manifest(&echo(), "\"caller\"", &more)
}

const AUTH: &str = "{ upstream = \"auth\" }";

fn start(text: &str) -> Proxy {
    Proxy::start_after(text, "admin at ")
}

/// Returns the outcome of the calls of a request.
fn outcome(proxy: &Proxy, urls: &str, fields: &str) -> String {
    let response = proxy.get("/", &format!("\r\nX-Call: {urls}{fields}"));
    assert_eq!(response.status(), 200, "{response:?}");
    let line = response.text().lines().find_map(|line| line.strip_prefix("x-outcome: ").map(String::from));
    line.unwrap_or_else(|| panic!("{}", response.text()))
}

/// An address at which nothing listens.
fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_plugin_asks_an_upstream_that_it_is_granted() {
    let auth = origin(|request: &Message| {
        let body = String::from_utf8_lossy(&request.body).len();
        ok(&format!("{} {:?} {:?} {body}", request.start, request.field("host"), request.field("x-from")))
    });
    let proxy = start(&calling(&auth, AUTH, ""));
    let asked = outcome(&proxy, "http://auth/verify?a=b", "");
    assert_eq!(asked, "200 GET /verify?a=b HTTP/1.1 Some(\"auth\") Some(\"caller\") 0");
    let posted = outcome(&proxy, "http://auth/x", "\r\nX-Method: POST\r\nX-Length: 200000");
    assert_eq!(posted, "200 POST /x HTTP/1.1 Some(\"auth\") Some(\"caller\") 200000");
    // One after the other, in one call.
    assert_eq!(outcome(&proxy, "http://auth/1 http://auth/2", "").matches("200 GET").count(), 2);
}

#[test]
fn a_server_is_granted_by_scheme_host_and_port() {
    let server = origin(|request: &Message| ok(request.field("host").unwrap_or_default()));
    let proxy = start(&calling("127.0.0.1:1", &format!("\"http://{server}\""), ""));
    assert_eq!(outcome(&proxy, &format!("http://{server}/"), ""), format!("200 {server}"));
    let other = echo();
    for url in [
        format!("https://{server}/"),
        format!("http://{other}/"),
        format!("http://{server}@{other}/"),
        format!("http://{other}/?http://{server}"),
        "http://auth/".into(),
        "http://app/".into(),
    ] {
        assert_eq!(outcome(&proxy, &url, ""), "NotGranted", "{url}");
    }
}

#[test]
fn a_destination_that_is_not_granted_is_an_error_of_the_manifest() {
    let check = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plugway.toml");
        std::fs::write(&file, text).unwrap();
        let (code, errors) = run(&["check", file.to_str().unwrap()]);
        assert_eq!(code, Some(1), "{errors}");
        errors
    };
    let errors = check(&calling("127.0.0.1:1", "", ""));
    assert!(errors.contains("grants.http"), "{errors}");
    let errors = check(&calling("127.0.0.1:1", "{ upstream = \"ath\" }", ""));
    assert!(errors.contains("unknown upstream `ath`"), "{errors}");
    for url in
        ["auth.example", "ftp://auth.example", "https://auth.example/path", "https://a:b@auth.example", "http://"]
    {
        let errors = check(&calling("127.0.0.1:1", &format!("{url:?}"), ""));
        assert!(errors.contains("invalid destination"), "{url}: {errors}");
    }
    let errors = check(&calling("127.0.0.1:1", AUTH, "config.early = true"));
    assert!(errors.contains("it waits, which this call may not"), "{errors}");
}

#[test]
fn failures_have_names() {
    let silent = raw_origin(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let rude = raw_origin(|mut stream| drop(stream.read(&mut [0; 100])));
    let foreign = raw_origin(|mut stream| {
        let _ = stream.read(&mut [0; 100]);
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
    });
    let short = raw_origin(|mut stream| {
        let _ = stream.read(&mut [0; 100]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort");
    });
    let long = origin(|_| ok(&"x".repeat((1 << 20) + 1)));
    let nearly = origin(|_| ok(&"x".repeat(1 << 20)));
    for (address, wanted) in [
        (nowhere(), "Refused"),
        (silent, "Timeout"),
        (rude, "Terminated"),
        (foreign, "Protocol"),
        (short, "Terminated"),
        (long, "TooLarge"),
        (nearly, "200 1048576 bytes"),
    ] {
        let text = calling(&address, AUTH, "").replace("[upstream.auth]", "[upstream.auth]\nretry = false");
        let proxy = start(&text);
        assert_eq!(outcome(&proxy, "http://auth/", "\r\nX-Timeout: 300"), wanted);
    }
}

#[test]
fn the_limits_of_the_upstream_hold() {
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    let auth = origin(move |_| {
        let _ = held.lock().unwrap().recv();
        ok("late")
    });
    let text = calling(&auth, AUTH, "") + "[upstream.auth.limits]\nrequests = 1\n";
    let proxy = start(&text);
    let mut first = proxy.connect();
    write!(first, "GET / HTTP/1.1\r\nHost: a\r\nX-Call: http://auth/\r\n\r\n").unwrap();
    until("the first call is in flight", || outcome(&proxy, "http://auth/", "\r\nX-Timeout: 100") == "Busy");
    release.send(()).unwrap();
    let response = read_message(&mut BufReader::new(first)).unwrap();
    assert!(response.text().contains("x-outcome: 200 late"), "{}", response.text());
}

#[test]
fn a_client_that_leaves_ends_the_calls_of_its_plugin() {
    let (seen, closed) = mpsc::channel();
    let auth = raw_origin(move |mut stream: TcpStream| {
        let mut all = Vec::new();
        // The end of the connection, which the proxy closes.
        let _ = stream.read_to_end(&mut all);
        let _ = seen.send(all);
    });
    let proxy = start(&calling(&auth, AUTH, "limits.call-time = \"1h\""));
    let mut client = proxy.connect();
    write!(client, "GET / HTTP/1.1\r\nHost: a\r\nX-Call: http://auth/wait\r\nX-Timeout: 3600000\r\n\r\n").unwrap();
    until("the call is made", || {
        let metrics = proxy.ask_admin("GET /metrics").text();
        metrics.contains("plugway_plugin_calls_total{plugin=\"caller\"} 1")
    });
    vanish(client);
    let request = closed.recv_timeout(crate::support::PATIENCE).unwrap();
    assert!(request.starts_with(b"GET /wait"), "{request:?}");
}

#[test]
fn a_timer_may_make_requests() {
    let proxy = start(&calling(&echo(), AUTH, "config.timer = \"http://auth/keys\""));
    until("the timer has had answers", || {
        let metrics = proxy.ask_admin("GET /metrics").text();
        let ticks = "plugway_plugin_counter{plugin=\"caller\",name=\"ticks\"}";
        metrics
            .lines()
            .any(|line| line.strip_prefix(ticks).is_some_and(|ticks| ticks.trim().parse::<f64>().unwrap() > 1.0))
    });
}

#[test]
fn forward_auth_decides_by_the_answer_of_the_service() {
    let auth = origin(|request: &Message| match request.field("cookie") {
        Some("session=1") => b"HTTP/1.1 204 No Content\r\nX-User: alice\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 302 Found\r\nLocation: /login\r\nServer: auth\r\nContent-Length: 0\r\n\r\n".to_vec(),
    });
    let example = include_str!("../examples/forward-auth/plugway.toml");
    let text = example.replace("../../target/wasm32-wasip2/release/example_forward_auth.wasm", FORWARD_AUTH);
    let text = text.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8000", &echo());
    let proxy = Proxy::start(&text.replace("127.0.0.1:8001", &auth));
    let passed = proxy.get("/a", "\r\nCookie: session=1\r\nX-User: root");
    assert_eq!(passed.status(), 200);
    assert!(passed.text().contains("x-user: alice") && !passed.text().contains("root"), "{}", passed.text());
    let refused = proxy.get("/a", "\r\nX-User: root");
    assert_eq!((refused.status(), refused.field("location"), refused.field("server")), (302, Some("/login"), None));
    let closed = Proxy::start(&text.replace("127.0.0.1:8001", &nowhere()));
    assert_eq!(closed.get("/a", "\r\nCookie: session=1").status(), 503);
}
