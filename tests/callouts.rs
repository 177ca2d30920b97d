//! Requests of plugins: to granted destinations alone, through upstreams, with typed errors, and no longer than the call.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, mpsc};

use plugway_test_guests::{CALLER, FORWARD_AUTH};

use crate::support::client::load;
use crate::support::{
    Message, PATIENCE, Proxy, echo, manifest, ok, origin, raw_origin, read_message, refusing, run, until, vanish,
};

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

#[test]
fn a_request_of_a_plugin_is_sent_for_the_client_of_its_exchange() {
    let auth = raw_origin(|stream| {
        let (mut reader, mut line) = (BufReader::new(stream.try_clone().unwrap()), String::new());
        reader.read_line(&mut line).unwrap();
        read_message(&mut reader);
        let _ = (&stream).write_all(&ok(line.trim()));
    });
    let text = calling(&auth, AUTH, "").replace("[upstream.auth]", "[upstream.auth]\nproxy-protocol = \"v1\"");
    let proxy = start(&text.replacen("[upstream", "trusted-proxies = [\"127.0.0.1\"]\n[upstream", 1));
    let said = outcome(&proxy, "http://auth/", "\r\nX-Forwarded-For: 203.0.113.9");
    assert!(said.starts_with("200 PROXY TCP4 203.0.113.9 "), "{said}");
}

#[test]
fn the_log_of_a_failed_request_of_a_plugin_names_its_exchange() {
    let text = calling(&refusing(), AUTH, "").replace("[upstream.auth]", "[upstream.auth]\nretry = false");
    let proxy = start(&text.replace("[[route]]", "[[route]]\nname = \"site\""));
    assert_eq!(outcome(&proxy, "http://auth/", ""), "Refused");
    let line = proxy.wait_log("request of a plugin failed");
    assert!(line.contains("route=\"site\"") && line.contains("plugin=\"caller\""), "{line}");
}

#[test]
fn a_response_that_arrives_steadily_is_waited_for() {
    let steady = raw_origin(|mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..8 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            let _ = stream.write_all(b"1\r\nx\r\n");
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    });
    let proxy = start(&calling(&steady, AUTH, ""));
    assert_eq!(outcome(&proxy, "http://auth/", "\r\nX-Timeout: 600"), "200 xxxxxxxx");
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
fn a_plugin_sends_no_request_that_no_client_could_send() {
    let auth = origin(|request: &Message| ok(&format!("{} {:?}", request.start, request.field("te"))));
    let proxy = start(&calling(&auth, AUTH, ""));
    for (url, fields) in [
        ("http://auth/x", "X-Method: CONNECT"),
        ("http://auth/x", "X-Method: TRACE\r\nX-Length: 3"),
        ("http://auth/x/../y", "X-Method: GET"),
        ("http://auth/x%zz", "X-Method: GET"),
    ] {
        let outcome = outcome(&proxy, url, &format!("\r\n{fields}"));
        assert!(outcome.starts_with("Invalid"), "{url} {fields}: {outcome}");
    }
    assert_eq!(outcome(&proxy, "http://auth/x", "\r\nX-Method: TRACE"), "200 TRACE /x HTTP/1.1 None");
}

#[test]
fn the_path_of_a_request_of_a_plugin_is_sent_in_its_normal_form_with_escaped_slashes() {
    let auth = origin(|request: &Message| ok(&request.start));
    let proxy = start(&calling(&auth, AUTH, ""));
    for (written, sent) in [
        ("/a%2Fb", "/a%2Fb"),
        ("/a%2fb/%7e", "/a%2Fb/~"),
        ("//x", "/x"),
        ("/a//b?c=//%7e", "/a/b?c=//%7e"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/%7Ejoe", "/~joe"),
        ("/ok%20b", "/ok%20b"),
        ("?a=b", "/?a=b"),
    ] {
        assert_eq!(outcome(&proxy, &format!("http://auth{written}"), ""), format!("200 GET {sent} HTTP/1.1"));
    }
    for path in [
        "/./y",
        "/x/..",
        "/%2e%2e/y",
        "/..;a/y",
        "/..%2Fadmin",
        "/x%2f..%2f..%2fadmin",
        "/x%2F.;a",
        "/x%00",
        "/x%5Cy",
        "/x%252Fy",
        "/x%25%32Fy",
        "/x%%2F",
    ] {
        assert_eq!(outcome(&proxy, &format!("http://auth{path}"), ""), "Invalid", "{path}");
    }
}

#[test]
fn a_request_of_a_plugin_names_the_proxies_that_its_cause_has_passed() {
    let auth = origin(|request: &Message| ok(request.field("via").unwrap_or_default()));
    let proxy = start(&calling(&auth, AUTH, ""));
    assert_eq!(outcome(&proxy, "http://auth/", ""), "200 1.1 plugway");
    assert_eq!(outcome(&proxy, "http://auth/", "\r\nVia: 1.0 other, 1.1 plugway"), "200 1.1 plugway, 1.1 plugway");
}

#[test]
fn what_a_plugin_never_sends_is_bounded_in_the_host() {
    let auth = origin(|_: &Message| ok(""));
    let proxy =
        start(&calling(&auth, AUTH, "limits = { share = 100, cpu = \"5s\" }").replace("workers = 2", "workers = 1"));
    outcome(&proxy, "http://auth/", "");
    let before = proxy.memory_kib();
    for what in ["authority", "method", "target", "content", "bodies"] {
        for _ in 0..3 {
            let made: usize = outcome(&proxy, &format!("hoard {what}"), "").parse().unwrap();
            assert!(made < 60, "{what}: {made}");
        }
        let grown = proxy.memory_kib().saturating_sub(before);
        assert!(grown < 24 << 10, "{what}: {grown} KiB");
    }
    // Seen before: 240 heads, of which the host kept more than the plugin may have of memory.
    assert_eq!(proxy.get("/", "\r\nX-Call: hoard fields").status(), 502);
    let line = proxy.wait_log("plugin failed");
    assert!(line.contains("at most 64 are allowed"), "{line}");
    assert_eq!(outcome(&proxy, "http://auth/", ""), "200");
}

/// The library that runs plugins panics if a call waits for a request that was begun while the plugin was configured. The
/// panic was none of the plugin's failures, and wrote a line each time.
#[test]
fn a_call_in_which_the_host_panics_is_a_failed_call() {
    let silent = raw_origin(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let text = calling(&silent, AUTH, "config.begin = \"/\"").replace("workers = 2", "workers = 1");
    let proxy = start(&text);
    assert_eq!(proxy.get("/", "").status(), 200);
    let failed = proxy.get("/", "\r\nX-Call: hoard early");
    assert_eq!((failed.status(), failed.text().contains("plugin_error")), (502, true), "{}", failed.text());
    let line = proxy.wait_log("plugin failed");
    assert!(line.contains("the host can't serve the call") && line.contains("request_id="), "{line}");
    let statuses: Vec<u16> = (0..30).map(|_| proxy.get("/", "\r\nX-Call: hoard early").status()).collect();
    assert!(statuses.iter().all(|status| [502, 503].contains(status)), "{statuses:?}");
    assert!(proxy.metric("plugway_plugin_failures_total{plugin=\"caller\"}") >= 5.0);
    assert!(!proxy.has_logged("supervise: panic"));
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
        (refusing(), "Refused"),
        (silent, "Timeout"),
        (rude, "Terminated"),
        (foreign, "Protocol"),
        (short, "Terminated"),
        (long, "TooLarge"),
        (nearly, "200 1048576 bytes"),
    ] {
        let text = calling(&address, AUTH, "").replace("[upstream.auth]", "[upstream.auth]\nretry = false");
        let proxy = start(&text);
        assert_eq!(outcome(&proxy, "http://auth/", "\r\nX-Timeout: 1000"), wanted);
    }
}

#[test]
fn the_limits_of_the_upstream_hold() {
    let (release, held) = mpsc::channel::<()>();
    let (arrive, arrived) = mpsc::channel::<()>();
    let gate = Arc::new(std::sync::Mutex::new((arrive, held)));
    let auth = origin(move |_| {
        let gate = gate.lock().unwrap();
        let _ = gate.0.send(());
        let _ = gate.1.recv();
        ok("late")
    });
    let text = calling(&auth, AUTH, "") + "[upstream.auth.limits]\nrequests = 1\n";
    let proxy = start(&text);
    let mut first = proxy.connect();
    write!(first, "GET / HTTP/1.1\r\nHost: a\r\nX-Call: http://auth/\r\n\r\n").unwrap();
    arrived.recv_timeout(PATIENCE).unwrap();
    assert_eq!(outcome(&proxy, "http://auth/", "\r\nX-Timeout: 100"), "Busy");
    release.send(()).unwrap();
    let response = read_message(&mut BufReader::new(first)).unwrap();
    assert!(response.text().contains("x-outcome: 200 late"), "{}", response.text());
}

#[test]
fn requests_of_a_plugin_beyond_its_limit_wait_for_others() {
    let (arrived, released) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (seen, gate) = (arrived.clone(), released.clone());
    let auth = origin(move |_| {
        let number = seen.fetch_add(1, Ordering::Relaxed) + 1;
        until("the request is released", || gate.load(Ordering::Relaxed) >= number);
        ok("late")
    });
    let proxy = start(&calling(&auth, AUTH, "limits.callouts = 2"));
    let call = |_| {
        let mut client = proxy.connect();
        write!(client, "GET / HTTP/1.1\r\nHost: a\r\nX-Call: http://auth/\r\nX-Timeout: 60000\r\n\r\n").unwrap();
        client
    };
    let clients: Vec<TcpStream> = (0..6).map(call).collect();
    until("all calls are under way", || proxy.metric("plugway_plugin_calls_total{plugin=\"caller\"}") == 6.0);
    until("two requests are under way", || arrived.load(Ordering::Relaxed) >= 2);
    assert_eq!(outcome(&proxy, "http://auth/", "\r\nX-Timeout: 100"), "Busy");
    let line = proxy.wait_log("request of a plugin failed");
    assert!(line.contains("limits.callouts"), "{line}");
    // Seen before: all of them.
    assert_eq!(arrived.load(Ordering::Relaxed), 2);
    for number in 1..=6 {
        released.store(number, Ordering::Relaxed);
        until("the next one is sent", || arrived.load(Ordering::Relaxed) == (number + 2).min(6));
    }
    for client in clients {
        let response = read_message(&mut BufReader::new(client)).unwrap();
        assert!(response.text().contains("x-outcome: 200 late"), "{}", response.text());
    }
}

#[test]
fn a_client_that_leaves_ends_the_calls_of_its_plugin() {
    let (seen, heard) = mpsc::channel();
    let auth = raw_origin(move |mut stream: TcpStream| {
        let request = read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        let _ = seen.send(request.map(|request| request.start));
        // The end of the connection, which the proxy closes.
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = seen.send(None);
    });
    let proxy = start(&calling(&auth, AUTH, "limits.call-time = \"1h\""));
    let mut client = proxy.connect();
    write!(client, "GET / HTTP/1.1\r\nHost: a\r\nX-Call: http://auth/wait\r\nX-Timeout: 3600000\r\n\r\n").unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap().as_deref(), Some("GET /wait HTTP/1.1"));
    vanish(client);
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), None);
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
    let closed = Proxy::start(&text.replace("127.0.0.1:8001", &refusing()));
    assert_eq!(closed.get("/a", "\r\nCookie: session=1").status(), 503);
}

/// Posts content to a route whose body hook calls a URL.
fn post(proxy: &Proxy, url: &str, content: &str) -> Message {
    let mut stream = proxy.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close";
    write!(stream, "{head}\r\nX-Body-Call: {url}\r\nContent-Length: {}\r\n\r\n{content}", content.len()).unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

/// An origin that answers with the content that it got, and passes the fields about body hooks on.
fn mirror() -> String {
    origin(|request: &Message| {
        let judged = request.field("x-judged").unwrap_or("-");
        let call = request.field("x-response-call").map(|url| format!("X-Body-Call: {url}\r\n")).unwrap_or_default();
        let length = request.body.len();
        let head = format!("HTTP/1.1 200 OK\r\nX-Got: {judged}\r\n{call}Content-Length: {length}\r\n\r\n");
        [head.as_bytes(), &request.body].concat()
    })
}

/// Returns a manifest whose plugin takes bodies, in front of an origin that sends them back.
fn with_bodies(auth: &str, how: &str, more: &str) -> String {
    let more = format!("config.bodies = {how:?}\n{more}");
    let text = calling(auth, AUTH, &more).replace("[upstream.auth]", "[upstream.auth]\nretry = false");
    let at = text.find("endpoints = [").unwrap();
    let end = at + text[at..].find(']').unwrap();
    format!("{}endpoints = [{:?}{}", &text[..at], mirror(), &text[end..])
}

/// A service that denies content with `bad` in it.
fn judge() -> String {
    origin(|request: &Message| match request.text().contains("bad") {
        true => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\ndenied".to_vec(),
        false => ok("fine"),
    })
}

#[test]
fn a_whole_body_waits_for_the_judgement_of_a_service() {
    let proxy = start(&with_bodies(&judge(), "whole", ""));
    let passed = post(&proxy, "http://auth/", "good");
    assert_eq!((passed.status(), passed.field("x-got"), passed.text().as_str()), (200, Some("200"), "good"));
    let denied = post(&proxy, "http://auth/", "bad");
    assert_eq!((denied.status(), denied.text().as_str()), (403, "denied"));
    // The response, too.
    let mut stream = proxy.connect();
    let fields = "Connection: close\r\nX-Response-Call: http://auth/\r\nContent-Length: 3";
    write!(stream, "POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nbad").unwrap();
    let denied = read_message(&mut BufReader::new(stream)).unwrap();
    assert_eq!((denied.status(), denied.text().as_str()), (403, "denied"));
}

#[test]
fn failed_calls_of_a_whole_body_have_names() {
    let silent = raw_origin(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let rude = raw_origin(|mut stream| drop(stream.read(&mut [0; 100])));
    for (address, wanted) in [(refusing(), "Refused"), (silent, "Timeout"), (rude, "Terminated")] {
        let proxy = start(&with_bodies(&address, "whole", "on-error = 503"));
        assert_eq!(post(&proxy, "http://auth/", "good").status(), 503, "{wanted}");
        proxy.wait_log(&format!("it gave up: {wanted}"));
        assert_eq!(post(&proxy, "", "good").status(), 503, "a malformed URL");
    }
}

#[test]
fn a_streamed_body_waits_at_each_chunk_and_at_its_end() {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = count.clone();
    let auth = origin(move |_| ok(&asked.fetch_add(1, Ordering::Relaxed).to_string()));
    let proxy = start(&with_bodies(&auth, "stream", ""));
    let passed = post(&proxy, "http://auth/", "some");
    assert_eq!((passed.status(), passed.text().as_str()), (200, "[200 0]some[end 200 1]"));
    let mut stream = proxy.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Body-Call: http://auth/\r\n";
    write!(stream, "{head}Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n").unwrap();
    until("the first chunk is asked about", || count.load(Ordering::Relaxed) == 3);
    write!(stream, "3\r\ntwo\r\n0\r\n\r\n").unwrap();
    let passed = read_message(&mut BufReader::new(stream)).unwrap();
    assert_eq!(passed.text(), "[200 2]one[200 3]two[end 200 4]");
}

/// Such a request was neither sent nor refused: each body waited for `limits.call-time`.
#[test]
fn a_request_that_is_made_as_the_state_of_a_body_is_dropped_is_sent() {
    let (told, asked) = mpsc::channel();
    let auth = origin(move |request| {
        if request.start.contains("farewell") {
            let _ = told.send(());
        }
        ok("")
    });
    let proxy = start(&with_bodies(&auth, "stream", "config.farewell = \"http://auth/farewell\""));
    assert_eq!(post(&proxy, "http://auth/", "some").status(), 200);
    // The body of the request, and that of the response.
    assert_eq!(asked.try_iter().count(), 2);
}

#[test]
fn a_long_body_passes_a_hook_that_may_wait_unchanged() {
    let proxy = start(&with_bodies(&judge(), "stream", "limits.share = 100"));
    let content = "x".repeat(3 << 20);
    let stream = proxy.connect();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", content.len());
    let writer = std::thread::spawn({
        let (mut stream, content) = (stream.try_clone().unwrap(), content.clone());
        move || stream.write_all((head + &content).as_bytes()).unwrap()
    });
    let passed = read_message(&mut BufReader::new(stream)).unwrap();
    writer.join().unwrap();
    assert!(passed.status() == 200 && passed.text() == content, "{}", passed.text().len());
}

#[test]
fn a_client_that_leaves_ends_the_call_of_its_body() {
    for how in ["whole", "stream"] {
        let (seen, closed) = mpsc::channel();
        let auth = raw_origin(move |mut stream: TcpStream| {
            let mut request = [0; 1000];
            let length = stream.read(&mut request).unwrap();
            let _ = seen.send(request[..length].to_vec());
            // The end of the connection, which the proxy closes.
            let _ = stream.read_to_end(&mut Vec::new());
            let _ = seen.send(Vec::new());
        });
        let limits = "config.body-timeout = 3600000\nlimits = { bodies = 1, call-time = \"1h\" }";
        let proxy = start(&with_bodies(&auth, how, limits));
        let mut client = proxy.connect();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nX-Body-Call: http://auth/wait\r\nContent-Length: 4";
        write!(client, "{head}\r\n\r\nsome").unwrap();
        let request = closed.recv_timeout(PATIENCE).unwrap();
        assert!(request.windows(5).any(|bytes| bytes == b"/wait"), "{how}: {request:?}");
        vanish(client);
        assert_eq!(closed.recv_timeout(PATIENCE).unwrap(), b"", "{how}");
        // The only place for a body is free again.
        until("another body passes", || post(&proxy, "ftp://", "some").status() != 503);
    }
}

#[test]
fn bodies_beyond_the_limit_fail_by_the_name_of_the_key_while_one_waits() {
    let silent = raw_origin(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let limits = "config.body-timeout = 3600000\nlimits = { bodies = 1, body-wait = \"100ms\", call-time = \"1h\" }";
    for how in ["whole", "stream"] {
        let proxy = start(&with_bodies(&silent, how, limits));
        let mut client = proxy.connect();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nX-Body-Call: http://auth/wait\r\nContent-Length: 4";
        write!(client, "{head}\r\n\r\nsome").unwrap();
        until("the call is made", || proxy.metric("plugway_plugin_calls_total{plugin=\"caller\"}") >= 2.0);
        let refused = post(&proxy, "http://auth/", "some");
        assert_eq!(refused.status(), 503, "{how}");
        proxy.wait_log("limits.bodies of 1 is reached");
        vanish(client);
    }
}

#[test]
fn an_observer_may_make_requests_in_the_background() {
    let (told, heard) = mpsc::channel();
    let told = Arc::new(std::sync::Mutex::new(told));
    let service = origin(move |request: &Message| {
        let _ = told.lock().unwrap().send(request.text());
        ok("")
    });
    let proxy = start(&calling(&service, AUTH, "config.observe = \"http://auth/\""));
    assert_eq!(proxy.get("/seen", "").status(), 200);
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "/seen 200");
    // An observer that fails or waits holds up no exchange.
    let silent = raw_origin(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let limits = "limits = { waiting-calls = 4, queued-calls = 1, queue-time = \"50ms\" }\non-error = \"skip\"";
    let limits = format!("config.observe = \"http://auth/\"\n{limits}");
    let proxy = start(&calling(&silent, AUTH, &limits));
    (0..20).for_each(|_| assert_eq!(proxy.get("/", "").status(), 200));
    proxy.wait_log("limits.waiting-calls of 4 is reached");
}

/// A service that answers once it can have this lock.
fn hesitant() -> (String, Arc<RwLock<()>>) {
    let gate = Arc::new(RwLock::new(()));
    let passed = gate.clone();
    let address = origin(move |_| {
        drop(passed.read());
        ok("fine")
    });
    (address, gate)
}

/// Sends so many requests at once, and returns the answers. `rest` is what follows the first fields.
fn at_once(proxy: &Proxy, count: usize, method: &str, rest: &str) -> Vec<Message> {
    let mut streams: Vec<_> = (0..count).map(|_| proxy.connect()).collect();
    for stream in &mut streams {
        write!(stream, "{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{rest}").unwrap();
    }
    streams.into_iter().map(|stream| read_message(&mut BufReader::new(stream)).unwrap()).collect()
}

/// All hooks of the plugin were refused until one of its body hooks had returned, which hardly ever was a trial.
#[test]
fn a_body_hook_that_fails_stops_no_head_hook() {
    // A body that streams has a call that returns, its beginning, before the one that fails.
    ["whole", "stream"].into_iter().for_each(body_hook_fails);
}

fn body_hook_fails(mode: &str) {
    let (service, gate) = hesitant();
    let closed = gate.write().unwrap();
    let limits = "config.body-timeout = 5000\nlimits.call-time = \"500ms\"";
    let proxy = start(&with_bodies(&service, mode, limits));
    let fail = |count| at_once(&proxy, count, "POST", "X-Body-Call: http://auth/\r\nContent-Length: 4\r\n\r\nsome");
    proxy.log_until("failures_of=\"body\"", || assert!(fail(32).iter().all(|answer| answer.status() == 502)));
    drop(closed);
    for _ in 0..5 {
        let answers = at_once(&proxy, 10, "GET", "X-Call: http://auth/\r\n\r\n");
        assert_eq!(answers.iter().filter(|answer| answer.status() == 200).count(), 10);
    }
    until("bodies pass again", || post(&proxy, "http://auth/", "some").status() == 200);
    proxy.wait_log("plugin breaker closed");
}

#[test]
fn an_observer_that_fails_stops_no_head_hook() {
    let (service, gate) = hesitant();
    let _closed = gate.write().unwrap();
    let limits = "config.observe = \"http://auth/\"\nlimits.call-time = \"50ms\"";
    let proxy = start(&calling(&service, AUTH, limits));
    let passes = || (0..20).for_each(|_| assert_eq!(proxy.get("/", "").status(), 200));
    proxy.log_until("failures_of=\"observer\"", passes);
    (0..10).for_each(|_| passes());
}

#[test]
fn exchanges_that_wait_for_an_observer_are_bounded_in_bytes() {
    let silent = raw_origin(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let limits = "limits = { waiting-calls = 1, queued-calls = 65536, queue-time = \"60s\" }\n\
                  [plugin.none]\nuse = \"ip-filter\"\nconfig.deny = [\"0.0.0.0/0\"]";
    let text = calling(&silent, AUTH, &format!("config.observe = \"http://auth/\"\n{limits}"));
    // A plugin above answers, so that only the observer is called. It declares the path.
    let proxy = start(&text.replace("[\"caller\"]", "[\"none\", \"caller\"]"));
    let path = format!("/{}", "a".repeat(6 << 10));
    (0..2000).for_each(|_| assert_eq!(proxy.get(&path, "").status(), 403));
    proxy.wait_log("4194304 bytes of exchanges that have ended wait for it");
}

/// An origin that counts its requests, and answers with keys.
fn issuer() -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = count.clone();
    let address = origin(move |_| {
        asked.fetch_add(1, Ordering::Relaxed);
        ok("keys")
    });
    (address, count)
}

const EARLY: &str = "config.early = \"http://auth/keys\"";

fn early(proxy: &Proxy) -> Option<String> {
    let text = proxy.get("/", "").text();
    text.lines().find_map(|line| line.strip_prefix("x-early: ").map(String::from))
}

#[test]
fn a_plugin_asks_once_while_it_is_configured() {
    let (issuer, count) = issuer();
    let asked = || count.load(Ordering::Relaxed);
    let text = calling(&issuer, AUTH, EARLY);
    let proxy = start(&text);
    assert_eq!(asked(), 1);
    (0..20).for_each(|_| assert_eq!(early(&proxy).as_deref(), Some("keys")));
    assert_eq!(asked(), 1, "other instances get the same answer");
    // More calls at a time than there are instances.
    let slow = raw_origin(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let grants = format!("{AUTH}, \"http://{slow}\"");
    let busy = start(&calling(&issuer, &grants, EARLY));
    let held: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = busy.connect();
            write!(stream, "GET / HTTP/1.1\r\nHost: a\r\nX-Call: http://{slow}/\r\nX-Timeout: 3600000\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    until("the calls wait", || busy.metric("plugway_plugin_calls_total{plugin=\"caller\"}") >= 8.0);
    assert_eq!(early(&busy).as_deref(), Some("keys"));
    held.into_iter().for_each(vanish);
    assert_eq!(asked(), 2);
    // A reload asks again.
    proxy.reload(&format!("{text}# changed\n"));
    proxy.wait_log("reloaded: generation 2");
    assert_eq!((early(&proxy).as_deref(), asked()), (Some("keys"), 3));
}

/// Its instances took a third of a core for ever, at no expense of the plugin.
#[test]
fn instances_of_a_plugin_that_asks_are_charged_to_its_share() {
    let (issuer, _) = issuer();
    let spinning = "isolation = \"request\"\nconfig = { early = \"http://auth/keys\", spin = 200 }";
    let proxy = start(&calling(&issuer, AUTH, spinning).replace("workers = 2", "workers = 1"));
    assert_eq!(early(&proxy).as_deref(), Some("keys"));
    let rejected = || proxy.metric("plugway_plugin_rejected_total{plugin=\"caller\",reason=\"share\"}");
    until("the share is used up", || {
        proxy.get("/", "");
        rejected() > 0.0
    });
    proxy.wait_log("limits.share of 50 % of a worker's time is used up");
}

/// A reload that was rejected gave its answers to the instances of the manifest that went on.
#[test]
fn answers_to_a_manifest_that_is_rejected_reach_no_instance() {
    let count = Arc::new(AtomicUsize::new(1));
    let issuer = origin(move |_| ok(&format!("keys {}", count.fetch_add(1, Ordering::Relaxed))));
    let silent = raw_origin(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let text = calling(&issuer, &format!("{AUTH}, \"http://{silent}\""), EARLY);
    let proxy = start(&text);
    let strict = format!(
        "[upstream.gone]\nendpoints = [{:?}]\nretry = false\n\
         [[route]]\npath = \"/strict\"\nupstream = \"app\"\nplugins = [\"strict\"]\n\
         [plugin.strict]\nuse = {CALLER:?}\ngrants.http = [{{ upstream = \"gone\" }}]\n\
         config = {{ early = \"http://gone/\", strict = true }}\n",
        refusing()
    );
    proxy.reload(&(text + &strict));
    proxy.wait_log("another service refused the connection");
    // More calls at a time than there are instances.
    let calls: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = proxy.connect();
            let fields = format!("X-Call: http://{silent}/\r\nX-Timeout: 500\r\nConnection: close");
            write!(stream, "GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for call in calls {
        let response = read_message(&mut BufReader::new(call)).unwrap().text();
        assert!(response.contains("x-early: keys 1\n"), "{response}");
    }
}

#[test]
fn a_check_asks_no_service() {
    let (issuer, count) = issuer();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugway.toml");
    std::fs::write(&file, calling(&issuer, AUTH, "config = { early = \"http://auth/\", strict = true }")).unwrap();
    let (code, output) = run(&["check", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("which a check doesn't"), "{output}");
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[test]
fn a_service_that_fails_while_a_plugin_is_configured_is_a_typed_error() {
    let nowhere = refusing();
    let lenient = calling(&nowhere, AUTH, EARLY).replace("[upstream.auth]", "[upstream.auth]\nretry = false");
    assert_eq!(early(&start(&lenient)).as_deref(), Some("Refused"));
    // A plugin that insists is not served, and what serves goes on.
    let proxy = start(&calling(&nowhere, AUTH, ""));
    proxy.reload(&lenient.replace(EARLY, "config = { early = \"http://auth/\", strict = true }"));
    proxy.wait_log("another service refused the connection");
    assert_eq!(outcome(&proxy, "ftp://", ""), "Invalid");
}

/// Each instance of such a plugin held up the instances of all plugins for `limits.call-time`.
#[test]
fn a_plugin_that_sleeps_while_it_is_configured_holds_up_no_other_instances() {
    let (issuer, _) = issuer();
    let plain = calling(&issuer, AUTH, EARLY);
    let proxy = start(&plain);
    proxy.reload(&plain.replace(EARLY, "config = { early = \"http://auth/keys\", nap = 300 }"));
    let error = proxy.wait_log("not reloaded, the old manifest goes on serving");
    proxy.wait_log("it waits while it is configured, where its first instance got answers");
    assert_eq!(early(&proxy).as_deref(), Some("keys"), "{error}");
}

#[test]
fn a_service_that_hangs_while_a_plugin_is_configured_holds_up_nothing() {
    let silent = raw_origin(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let plain = calling(&silent, AUTH, "");
    let proxy = start(&plain);
    let hanging = calling(&silent, AUTH, &format!("{EARLY}\nlimits.call-time = \"1s\""));
    proxy.reload(&hanging);
    for _ in 0..20 {
        assert_eq!(proxy.get("/", "").status(), 200);
    }
    proxy.wait_log("not reloaded, the old manifest goes on serving");
    proxy.wait_log("limits.call-time of 1s exceeded");
    proxy.reload(&format!("{plain}# changed\n"));
    proxy.wait_log("reloaded: generation 2");
    // A signal ends the process while a plugin asks.
    let mut proxy = start(&plain);
    let asked = format!("{EARLY}\nlimits.call-time = \"1h\"");
    proxy.reload(&calling(&silent, AUTH, &asked));
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(), Some(0));
}

/// The receipt of responses was charged by the clock: a pause of 50 ms cost the share of half a minute.
#[test]
fn a_process_that_does_not_run_for_some_time_fails_no_call() {
    let auth = origin(|_| ok(&"k".repeat(20_000)));
    let proxy = start(&calling(&auth, AUTH, "limits.share = 90").replace("workers = 2", "workers = 1"));
    let pause = std::time::Duration::from_millis(400);
    let seen = load(&proxy, 6, "GET / HTTP/1.1\r\nX-Call: http://auth/\r\nX-Timeout: 20000", || {
        for _ in 0..12 {
            proxy.signal("STOP");
            std::thread::sleep(pause);
            proxy.signal("CONT");
            std::thread::sleep(pause / 4);
        }
    });
    assert!(seen.total() > 100 && seen.status(200) == seen.total(), "{seen:?}");
}
