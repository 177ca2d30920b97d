//! Upstreams with more endpoints than one proxy should be given: by files, by DNS, and their health checks.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::name_server::NameServer;
use crate::support::{PATIENCE, Proxy, ok, origin, until};

/// Returns a manifest with one upstream.
fn manifest(endpoints: &str, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"app\"\n\
         [upstream.app]\nendpoints = {endpoints}\n{more}"
    )
}

/// Returns so many addresses of loopback.
fn addresses(count: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..count).map(|number| Ipv4Addr::from(0x7f01_0001 + number))
}

fn endpoints(count: u32, port: u16) -> String {
    format!("{:?}", addresses(count).map(|address| format!("{address}:{port}")).collect::<Vec<_>>())
}

#[test]
fn file_with_more_endpoints_than_an_upstream_may_have_is_an_error_with_the_number() {
    let folder = tempfile::tempdir().unwrap();
    let write = |endpoints: &str| {
        std::fs::write(folder.path().join("new"), format!("endpoints = {endpoints}")).unwrap();
        std::fs::rename(folder.path().join("new"), folder.path().join("app.toml")).unwrap();
    };
    let served = origin(|_| ok("served"));
    write(&format!("[{served:?}]"));
    let proxy = Proxy::start_in(folder.path(), &manifest("[{ file = \"app.toml\" }]", ""));
    assert_eq!(proxy.get("/", "").text(), "served");
    write(&endpoints(2000, 9));
    // Seen before: the reload took them all.
    proxy.wait_log("too many endpoints: 2000 up to here; expected 1024 at most");
    assert_eq!(proxy.get("/", "").text(), "served", "what was in service is kept");
}

#[test]
fn addresses_of_names_beyond_the_maximum_are_left_out_and_counted_in_the_log() {
    let server = NameServer::start();
    let many: Vec<IpAddr> = addresses(1500).map(IpAddr::from).collect();
    server.set("many.test", &many, 60);
    server.set("more.test", &[IpAddr::from([127, 0, 0, 9])], 60);
    let text = manifest(
        "[{ dns = \"many.test:9\" }, { dns = \"more.test:9\" }]",
        &format!("[resolver]\nservers = [{:?}]\n", server.address),
    );
    let proxy = Proxy::start(&text);
    // 476 of the one name, and all of the other.
    let line = proxy.wait_log("too many endpoints: some get no requests");
    assert!(line.contains("upstream=\"app\"") && line.contains("limit=1024"), "{line}");
    let count = || {
        let status: serde_json::Value = serde_json::from_str(&proxy.ask_admin("GET /status").text()).unwrap();
        status["upstreams"][0]["endpoints"].as_array().unwrap().len()
    };
    until("all that may be are used", || count() == 1024);
}

/// Health checks as a server sees them.
#[derive(Default)]
struct SeenChecks {
    under_way: usize,
    most: usize,
    checked: HashSet<IpAddr>,
}

/// Answers a check after a while.
fn answer(mut stream: TcpStream, checks: &Mutex<SeenChecks>) {
    let mut seen = checks.lock().unwrap();
    seen.under_way += 1;
    seen.most = seen.most.max(seen.under_way);
    drop(seen);
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let _ = lines.find(|line| line.is_empty());
    std::thread::sleep(Duration::from_millis(200));
    // The next check begins once this one is answered.
    let mut seen = checks.lock().unwrap();
    seen.under_way -= 1;
    seen.checked.insert(stream.local_addr().unwrap().ip());
    drop(seen);
    let _ = stream.write_all(&ok("well"));
}

#[test]
fn health_checks_that_wait_for_their_turn_have_not_failed() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let checks = Arc::new(Mutex::new(SeenChecks::default()));
    let of_server = checks.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let checks = of_server.clone();
            std::thread::spawn(move || answer(stream, &checks));
        }
    });
    let health = "health = { path = \"/\", interval = \"10s\", timeout = \"1s\", unhealthy = 1 }";
    let proxy = Proxy::start(&manifest(&endpoints(300, port), health));
    // Ten rounds of 32 take two seconds, longer than a check may.
    until("all are checked", || checks.lock().unwrap().checked.len() == 300);
    let most = checks.lock().unwrap().most;
    // Seen before: 300 at a time.
    assert!((2..=32).contains(&most), "{most}");
    assert!(!proxy.has_logged("endpoint is down"));
}

#[test]
fn lines_about_endpoints_that_fail_together_are_limited_and_counted() {
    let health = "health = { interval = \"60s\", unhealthy = 1 }";
    let proxy = Proxy::start(&manifest(&endpoints(1000, 9), health));
    let (mut lines, mut left_out) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
    while lines + left_out < 1000 {
        assert!(Instant::now() < deadline, "{lines} lines, {left_out} left out");
        let line = proxy.wait_log("WARN");
        if line.contains("endpoint is down") {
            lines += 1;
        } else if line.contains("failures left out") && line.contains("topic=\"endpoint\"") {
            let count = line.split("left_out=").nth(1).unwrap().split(' ').next().unwrap();
            left_out += count.parse::<usize>().unwrap();
        }
    }
    // Seen before: a line for each.
    assert!((100..200).contains(&lines), "{lines}");
}
