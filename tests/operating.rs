//! The output for operators of the proxy: access log, metrics, status.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use plugway_test_guests::{API_KEY, MISBEHAVE};

use crate::http2::{ACK, END_STREAM, RST_STREAM, Raw, SETTINGS};
use crate::support::client::is_open_to;
use crate::support::{
    PATIENCE, Proxy, echo, manifest, ok, origin, output, raw_origin, read_message, sized, until, vanish,
};
use crate::tls::{Authority, SITE, secure};

const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\n";

/// Starts a proxy with an admin listener.
fn with_admin(text: &str) -> Proxy {
    Proxy::start_after(text, "admin at http://")
}

/// Returns the lines of a file, once there are `count`.
fn lines(path: &Path, count: usize) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.lines().count() >= count {
            return text.lines().map(String::from).collect();
        }
        assert!(Instant::now() < deadline, "{count} lines wanted, got\n{text}");
        std::thread::yield_now();
    }
}

/// Returns the line of the exchange with a target, from a log in JSON.
fn logged(lines: &[String], target: &str) -> serde_json::Value {
    let mut all = lines.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    all.find(|line| line["target"] == target).unwrap_or_else(|| panic!("no {target} in {lines:?}"))
}

#[test]
fn requests_that_go_nowhere_are_logged_too() {
    let log = "[access-log]\nformat = \"json\"\nfile = \"access.log\"\n";
    let text = manifest(&echo(), "", log).replace("[[route]]", "[[route]]\npath = \"/here\"");
    let proxy = Proxy::start(&text);
    proxy.get("/nowhere", "");
    proxy.get("/here", "");
    let lines = lines(&proxy.folder.path().join("access.log"), 2);
    let (lost, found) = (logged(&lines, "/nowhere"), logged(&lines, "/here"));
    assert_eq!((&lost["status"], &lost["route"], &lost["error"]), (&404.into(), &"-".into(), &"no_route".into()));
    assert!(lost["upstream_us"].is_null() && lost["duration_us"].is_u64(), "{lost}");
    assert!(found["upstream_us"].as_u64() <= found["duration_us"].as_u64() && found["endpoint"].is_string(), "{found}");
}

#[test]
fn an_exchange_that_the_client_left_is_logged() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let log = "[access-log]\nformat = \"json\"\nfile = \"access.log\"\n";
    let proxy = Proxy::start(&manifest(&silent.local_addr().unwrap().to_string(), "", log));
    let mut stream = proxy.connect();
    stream.write_all(b"GET /left HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let (mut upstream, _) = silent.accept().unwrap();
    assert!(Read::read(&mut upstream, &mut [0; 1]).unwrap() > 0);
    vanish(stream);
    let line = &lines(&proxy.folder.path().join("access.log"), 1)[0];
    assert!(line.contains("\"target\":\"/left\"") && line.contains("\"status\":499"), "{line}");
}

/// Starts an origin that answers on a signal, and reports when it has received a request.
fn held(body: usize) -> (String, Receiver<()>, Sender<()>) {
    let ((release, released), (tell, seen)) = (channel::<()>(), channel());
    let released = Arc::new(Mutex::new(released));
    let address = origin(move |_| {
        tell.send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
        ok(&"x".repeat(body))
    });
    (address, seen, release)
}

/// Starts a proxy with a log in JSON; returns the parsed lines of that, once there are as many.
fn with_log(origin: &str) -> (Proxy, impl Fn(usize) -> Vec<serde_json::Value> + use<>) {
    let log = "[access-log]\nformat = \"json\"\nfile = \"access.log\"\n";
    let proxy = Proxy::start(&manifest(origin, "", &format!("{log}{ADMIN}")));
    let path = proxy.folder.path().join("access.log");
    let parsed = |lines: Vec<String>| lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    (proxy, move |count| parsed(lines(&path, count)))
}

/// Closes a client connection, and waits until the system of the proxy has noticed.
fn close(stream: TcpStream) {
    let port = stream.local_addr().unwrap().port();
    drop(stream);
    until("the close has arrived", || !is_open_to(port));
}

#[test]
fn a_client_that_closes_before_its_response_is_logged_as_one_that_left() {
    let (address, seen, release) = held(4);
    let (proxy, logged) = with_log(&address);
    let mut http1 = proxy.connect();
    http1.write_all(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    seen.recv_timeout(PATIENCE).unwrap();
    close(http1);
    release.send(()).unwrap();
    assert_eq!((&logged(1)[0]["status"], &logged(1)[0]["complete"]), (&499.into(), &false.into()));

    let mut http2 = Raw::connect(&proxy);
    // With unread bytes, the close would be a reset.
    http2.until(|frame| frame.kind == SETTINGS && frame.flags & ACK != 0);
    http2.request(1);
    seen.recv_timeout(PATIENCE).unwrap();
    close(http2.0);
    release.send(()).unwrap();
    assert_eq!((&logged(2)[1]["status"], &logged(2)[1]["complete"]), (&499.into(), &false.into()));

    let mut reset = Raw::connect(&proxy);
    reset.request(1);
    seen.recv_timeout(PATIENCE).unwrap();
    reset.send(RST_STREAM, 0, 1, &8u32.to_be_bytes());
    assert_eq!((&logged(3)[2]["status"], &logged(3)[2]["complete"]), (&499.into(), &false.into()));
    release.send(()).unwrap();
    until("all count as aborted", || {
        let figures = proxy.ask_admin("GET /metrics").text();
        figures.lines().any(|line| line == "plugway_responses_total{route=\"*\",class=\"aborted\"} 3")
    });
}

#[test]
fn a_client_that_reads_on_after_its_request_is_logged_with_its_response() {
    let (address, seen, release) = held(4);
    let (proxy, logged) = with_log(&address);
    let mut http1 = proxy.connect();
    http1.write_all(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    http1.shutdown(Shutdown::Write).unwrap();
    seen.recv_timeout(PATIENCE).unwrap();
    release.send(()).unwrap();
    http1.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!((&logged(1)[0]["status"], &logged(1)[0]["complete"]), (&200.into(), &true.into()));

    let mut http2 = Raw::connect(&proxy);
    http2.request(1);
    http2.0.shutdown(Shutdown::Write).unwrap();
    seen.recv_timeout(PATIENCE).unwrap();
    release.send(()).unwrap();
    http2.until(|frame| frame.flags & END_STREAM != 0);
    http2.0.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!((&logged(2)[1]["status"], &logged(2)[1]["complete"]), (&200.into(), &true.into()));
}

#[test]
fn a_client_that_leaves_within_a_response_is_logged_with_its_status() {
    let (proxy, logged) = with_log(&sized());
    let mut http1 = proxy.connect();
    http1.write_all(b"GET /50000000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    http1.read_exact(&mut [0; 1000]).unwrap();
    vanish(http1);
    let line = &logged(1)[0];
    assert_eq!((&line["status"], &line["complete"]), (&200.into(), &false.into()));
    assert!(line["bytes"].as_u64().unwrap() < 50_000_000, "{line}");

    proxy.get("/10", "");
    assert_eq!((&logged(2)[1]["status"], &logged(2)[1]["complete"]), (&200.into(), &true.into()));

    let half = raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_message(&mut reader);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
        let _ = reader.read(&mut [0]);
    });
    let (proxy, logged) = with_log(&half);
    let mut http2 = Raw::connect(&proxy);
    http2.request(1);
    http2.until(|frame| frame.content() > 0);
    http2.send(RST_STREAM, 0, 1, &8u32.to_be_bytes());
    assert_eq!((&logged(1)[0]["status"], &logged(1)[0]["complete"]), (&200.into(), &false.into()));
}

#[test]
fn the_combined_log_has_a_line_for_each_exchange_and_is_opened_anew() {
    let log = "[access-log]\nformat = \"combined\"\nfile = \"access.log\"\n";
    let proxy = Proxy::start(&manifest(&echo(), "", log));
    let path = proxy.folder.path().join("access.log");
    proxy.get("/a?b=c", "\r\nReferer: http://x/\r\nUser-Agent: one \"two\"");
    let line = &lines(&path, 1)[0];
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.contains("] \"GET /a?b=c HTTP/1.1\" 200 "), "{line}");
    assert!(line.ends_with(r#""http://x/" "one \x22two\x22""#), "{line}");

    std::fs::rename(&path, proxy.folder.path().join("moved.log")).unwrap();
    proxy.signal("USR1");
    until("the log is opened anew", || path.exists());
    proxy.get("/after", "");
    assert!(lines(&path, 1)[0].contains("GET /after"));
}

/// As nginx logs the user of `auth_basic`: in one word, which can't be mistaken for others.
#[test]
fn the_combined_log_has_the_user() {
    let log = "[access-log]\nformat = \"combined\"\nfile = \"access.log\"\n";
    let plugin = "{ use = \"log-fields\", config.log.user = \"request.header.x-user\" }";
    let proxy = Proxy::start(&manifest(&echo(), plugin, log));
    let path = proxy.folder.path().join("access.log");
    for (count, (user, wanted)) in
        [("bob", "bob"), ("Bob \"the\" Builder", "Bob\\x20\\x22the\\x22\\x20Builder"), ("", "-")]
            .into_iter()
            .enumerate()
    {
        let field = if user.is_empty() { String::new() } else { format!("\r\nX-User: {user}") };
        proxy.get("/", &field);
        let line = &lines(&path, count + 1)[count];
        assert!(line.starts_with(&format!("127.0.0.1 - {wanted} [")), "{line}");
    }
}

#[test]
fn the_request_line_of_http2_is_logged_as_that_of_http1() {
    for (format, wanted) in [("json", "\"target\":\"/a/b?c=d\""), ("combined", "] \"GET /a/b?c=d HTTP/2.0\" 200 ")] {
        let log = format!("[access-log]\nformat = \"{format}\"\nfile = \"access.log\"\n");
        let proxy = Proxy::start(&manifest(&echo(), "", &log));
        let url = format!("http://{}/a/b?c=d", proxy.address);
        let got = output(Command::new("curl").args(["--silent", "--http2-prior-knowledge", &url]));
        assert!(got.starts_with("GET /a/b?c=d "), "{got}");
        let line = &lines(&proxy.folder.path().join("access.log"), 1)[0];
        assert!(line.contains(wanted), "{line}");
    }
}

/// Sends bytes on a connection of their own, and waits until the proxy closes it.
fn send_raw(proxy: &Proxy, bytes: &[u8]) {
    let mut stream = proxy.connect();
    stream.write_all(bytes).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn a_rejected_request_is_logged_with_its_own_line() {
    let limits = "limits = { head-timeout = \"500ms\", target = \"100 B\", head = \"1 KiB\" }\n[upstream";
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(200));
    let head = format!("GET /head HTTP/1.1\r\nX-Long: {}\r\n\r\n", "x".repeat(2000));
    let cases: [(&[u8], &str, u16); 8] = [
        (b"GET /a HTTP/1.1\r\n\r\n", "GET /a HTTP/1.1", 400),
        (b"\r\nGET /b HTTP/1.1\r\nHost: a b\r\n\r\n", "GET /b HTTP/1.1", 400),
        (b"GET /old HTTP/3.0\r\nHost: a\r\n\r\n", "GET /old HTTP/3.0", 505),
        (b"HELO \"there\"\r\n", "HELO \\x22there\\x22", 400),
        (b"GET /late HTTP/1.1\r\nHo", "GET /late HTTP/1.1", 408),
        (long.as_bytes(), long.lines().next().unwrap(), 414),
        (head.as_bytes(), "GET /head HTTP/1.1", 431),
        (b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /second HTTP/1.1\r\n\r\n", "GET /second HTTP/1.1", 400),
    ];
    let log = "[access-log]\nformat = \"combined\"\nfile = \"access.log\"\n";
    let proxy = Proxy::start(&manifest(&echo(), "", log).replacen("[upstream", limits, 1));
    let path = proxy.folder.path().join("access.log");
    for (bytes, line, status) in cases {
        send_raw(&proxy, bytes);
        let wanted = format!("] \"{line}\" {status} ");
        until(&wanted, || std::fs::read_to_string(&path).unwrap_or_default().contains(&wanted));
    }
}

#[test]
fn the_line_of_a_rejected_request_is_logged_though_it_came_before_the_rest() {
    let log = "[access-log]\nformat = \"combined\"\nfile = \"access.log\"\n";
    let proxy = Proxy::start(&manifest(&echo(), "", log));
    let path = proxy.folder.path().join("access.log");
    let mut slow = proxy.connect();
    slow.write_all(b"GET /two-reads HTTP/1.1\r\n").unwrap();
    // The proxy has read the beginning by the time that it has served another client on each worker.
    (0..20).for_each(|_| assert_eq!(proxy.get("/", "").status(), 200));
    slow.write_all(b"Host: a\r\nHost: b\r\n\r\n").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    let content = answer.split_once("\r\n\r\n").unwrap().1;
    let wanted = format!("] \"GET /two-reads HTTP/1.1\" 400 {} ", content.len());
    until("the line is logged", || std::fs::read_to_string(&path).unwrap().contains(&wanted));
}

#[test]
fn a_request_that_exceeds_a_limit_over_http2_is_logged_with_its_own_line() {
    let limits = "limits = { target = \"100 B\" }\n[upstream";
    let log = "[access-log]\nformat = \"combined\"\nfile = \"access.log\"\n";
    let proxy = Proxy::start(&manifest(&echo(), "", log).replacen("[upstream", limits, 1));
    let target = format!("/{}", "x".repeat(200));
    let url = format!("http://{}{target}", proxy.address);
    output(Command::new("curl").args(["--silent", "--http2-prior-knowledge", "--user-agent", "own", &url]));
    let line = &lines(&proxy.folder.path().join("access.log"), 1)[0];
    assert!(line.contains(&format!("] \"GET {target} HTTP/2.0\" 414 ")) && line.ends_with("\"own\""), "{line}");
}

#[test]
fn http_at_a_port_of_tls_is_logged_with_its_own_line() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    for (format, wanted) in [
        ("combined", ["] \"GET /a?b HTTP/1.1\" 400 82 ", "] \"PRI * HTTP/2.0\" 400 82 "]),
        ("json", ["\"target\":\"/a?b\"", "\"protocol\":\"HTTP/2.0\""]),
    ] {
        let log = format!("[access-log]\nformat = \"{format}\"\nfile = \"{format}.log\"\n");
        let proxy = Proxy::start_in(folder.path(), &secure(&echo(), SITE, &log));
        send_raw(&proxy, b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n");
        send_raw(&proxy, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let lines = lines(&folder.path().join(format!("{format}.log")), 2);
        for part in wanted {
            assert!(lines.iter().any(|line| line.contains(part)), "{part} in {lines:?}");
        }
    }
}

#[test]
fn a_target_in_absolute_form_is_logged_as_it_was_sent() {
    let log = "[access-log]\nformat = \"combined\"\nfile = \"access.log\"\n";
    let proxy = Proxy::start(&manifest(&echo(), "", log));
    assert_eq!(proxy.exchange("GET http://a.example/b?c HTTP/1.1\r\nHost: a.example").status(), 200);
    let line = &lines(&proxy.folder.path().join("access.log"), 1)[0];
    assert!(line.contains("] \"GET http://a.example/b?c HTTP/1.1\" 200 "), "{line}");
}

#[test]
fn the_json_log_tells_route_endpoint_failure_and_notes() {
    let log = format!(
        "[access-log]\nformat = \"json\"\nfile = \"access.log\"\n[plugin.key]\nuse = {API_KEY:?}\nconfig.keys.k = \"carol\"\n"
    );
    let origin = echo();
    let proxy = Proxy::start(&manifest(&origin, r#""key""#, &log));
    proxy.get("/in", "\r\nX-API-Key: k");
    proxy.get("/out", "");
    let lines = lines(&proxy.folder.path().join("access.log"), 2);
    // A line is due when the client has its response, so two connections' lines may come in either order.
    let (inside, outside) = (logged(&lines, "/in"), logged(&lines, "/out"));
    assert_eq!((&inside["status"], &inside["notes"]["user"]), (&200.into(), &"carol".into()));
    assert_eq!(inside["endpoint"], origin);
    assert!(outside["status"] == 401 && outside["endpoint"].is_null(), "{outside}");
}

#[test]
fn the_json_log_tells_what_a_cache_did() {
    let log = "[access-log]\nformat = \"json\"\nfile = \"access.log\"\n";
    let stored = origin(|_| b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 0\r\n\r\n".to_vec());
    let proxy = Proxy::start(&manifest(&stored, r#""cache""#, log));
    for (path, fields) in [("/a?1", ""), ("/a?2", "\r\nCache-Control: no-store")] {
        proxy.get(path, fields);
    }
    let lines = lines(&proxy.folder.path().join("access.log"), 2);
    assert_eq!(
        (&logged(&lines, "/a?1")["cache"], &logged(&lines, "/a?2")["cache"]),
        (&"miss".into(), &"bypass".into())
    );
    proxy.get("/a?1", "");
    let lines = self::lines(&proxy.folder.path().join("access.log"), 3);
    assert!(lines.iter().any(|line| line.contains("\"cache\":\"hit\"")), "{lines:?}");
}

#[test]
fn figures_count_the_bytes_of_bodies_both_ways() {
    let proxy = with_admin(&manifest(&origin(|_| ok("hello")), "", ADMIN));
    let mut stream = proxy.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 7\r\n\r\n";
    stream.write_all(format!("{head}content").as_bytes()).unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    for line in ["plugway_request_bytes_total{route=\"*\"} 7", "plugway_response_bytes_total{route=\"*\"} 5"] {
        until(line, || proxy.ask_admin("GET /metrics").text().lines().any(|known| known == line));
    }
}

#[test]
fn figures_count_responses_errors_and_plugin_failures() {
    let more = format!("{ADMIN}[plugin.bad]\nuse = {MISBEHAVE:?}\n");
    let proxy = with_admin(&manifest(&echo(), r#""bad""#, &more));
    (0..5).for_each(|_| assert_eq!(proxy.get("/", "").status(), 200));
    assert_eq!(proxy.get("/", "\r\nX-Misbehave: trap").status(), 502);
    let wanted = [
        "plugway_responses_total{route=\"*\",class=\"2xx\"} 5",
        "plugway_responses_total{route=\"*\",class=\"5xx\"} 1",
        "plugway_errors_total{route=\"*\",kind=\"plugin_error\"} 1",
        "plugway_exchange_duration_seconds_count{route=\"*\"} 6",
        "plugway_plugin_calls_total{plugin=\"bad\"} 6",
        "plugway_plugin_failures_total{plugin=\"bad\"} 1",
        "plugway_generation 1",
    ];
    // An exchange is counted when its last byte has gone to the socket, which the client may see first.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = proxy.ask_admin("GET /metrics").text();
        let missing: Vec<_> = wanted.iter().filter(|line| !metrics.lines().any(|known| known == **line)).collect();
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "no {missing:?} in\n{metrics}");
    }
    let status = proxy.ask_admin("GET /status").text();
    assert!(status.contains("\"plugins\": [\n        \"bad\"") && status.contains("\"failures\": 1"), "{status}");
}
