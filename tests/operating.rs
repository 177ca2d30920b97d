//! The output for operators of the proxy: access log, metrics, status.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use plugway_test_guests::{API_KEY, MISBEHAVE};

use crate::support::{PATIENCE, Proxy, echo, manifest, origin, output, until, vanish};

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
    assert!(std::io::Read::read(&mut upstream, &mut [0; 1]).unwrap() > 0);
    vanish(stream);
    let line = &lines(&proxy.folder.path().join("access.log"), 1)[0];
    assert!(line.contains("\"target\":\"/left\"") && line.contains("\"status\":0"), "{line}");
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

#[test]
fn the_request_line_of_http2_is_logged_as_that_of_http1() {
    for (format, wanted) in
        [("json", "\"target\":\"/a/b?c=d\""), ("combined", "] \"GET /a/b?c=d HTTP/2.0\" 200 ")]
    {
        let log = format!("[access-log]\nformat = \"{format}\"\nfile = \"access.log\"\n");
        let proxy = Proxy::start(&manifest(&echo(), "", &log));
        let url = format!("http://{}/a/b?c=d", proxy.address);
        let got = output(Command::new("curl").args(["--silent", "--http2-prior-knowledge", &url]));
        assert!(got.starts_with("GET /a/b?c=d "), "{got}");
        let line = &lines(&proxy.folder.path().join("access.log"), 1)[0];
        assert!(line.contains(wanted), "{line}");
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
