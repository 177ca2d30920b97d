//! Upstreams whose endpoints fail in every way: the responses that clients get, and the endpoints that get requests.

use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::support::client::{Seen, ask, load};
use crate::support::origin::{Backend, Does};
use crate::support::{PATIENCE, Proxy, ok, origin, raw_origin, read_message, refusing, until, vanish};

const GET: &str = "GET / HTTP/1.1";

/// Returns a manifest for backends, with more in its upstream, and an admin listener.
fn manifest(backends: &[&Backend], more: &str) -> String {
    let endpoints: Vec<&str> = backends.iter().map(|backend| &*backend.address).collect();
    with_endpoints(&format!("{endpoints:?}"), more)
}

fn with_endpoints(endpoints: &str, more: &str) -> String {
    format!(
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[route]]\nupstream = \"app\"\n[upstream.app]\nendpoints = {endpoints}\n{more}"
    )
}

fn start(manifest: &str) -> Proxy {
    Proxy::start_after(manifest, "admin at ")
}

fn admin(proxy: &Proxy, request: &str) -> String {
    proxy.ask_admin(request).text()
}

fn upstream(proxy: &Proxy) -> serde_json::Value {
    let status: serde_json::Value = serde_json::from_str(&admin(proxy, "GET /status")).unwrap();
    status["upstreams"][0].clone()
}

/// Returns the state of each endpoint, in order.
fn states(proxy: &Proxy) -> Vec<String> {
    let upstream = upstream(proxy);
    let endpoints = upstream["endpoints"].as_array().unwrap().iter();
    endpoints.map(|endpoint| endpoint["state"].as_str().unwrap().into()).collect()
}

fn only_200(seen: &Seen) {
    assert_eq!(seen.status(200), seen.total(), "{seen:?}");
}

#[test]
fn a_backend_killed_under_load_costs_no_idempotent_request() {
    let (mut a, b, c) = (Backend::start("a"), Backend::start("b"), Backend::start("c"));
    let proxy = start(&manifest(&[&a, &b, &c], "outliers = { ejection = \"300ms\" }"));
    for _ in 0..3 {
        let seen = load(&proxy, 16, GET, || {
            let before = a.requests();
            until("all take part", || a.requests() > before + 200);
            a.kill();
            let before = b.requests();
            until("the others go on", || b.requests() > before + 500);
            a.revive();
        });
        only_200(&seen);
        // Until its ejection is over.
        until("a is back", || ask(&proxy, 6, GET).of("a") > 0);
    }
    assert!(admin(&proxy, "GET /metrics").contains("plugway_upstream_retries_denied_total{upstream=\"app\"} 0\n"));
}

#[test]
fn each_kind_of_failure_is_retried_as_the_manifest_says() {
    let good = Backend::start("good");
    let everything = "retry = { on = [\"connect\", \"reset\", \"timeout\", \"malformed\", \"5xx\"] }\n\
                      outliers = false\nresponse-timeout = \"300ms\"";
    let cases = [
        (Does::Reset, "", 200, 200),
        (Does::Reset, "retry = false", 200, 502),
        (Does::Reset, "retry = { on = [\"connect\"] }", 200, 502),
        (Does::Babble, "", 200, 502),
        (Does::Babble, everything, 200, 200),
        (Does::Hang, "response-timeout = \"300ms\"", 200, 504),
        (Does::Hang, everything, 200, 200),
        (Does::Status(503), "", 200, 503),
        (Does::Status(503), everything, 200, 200),
        (Does::Status(503), "retry = { on = [502] }", 200, 503),
    ];
    for (does, more, one, other) in cases {
        let bad = Backend::start("bad");
        bad.does(does.clone());
        let proxy = start(&manifest(&[&good, &bad], more).replace("workers = 2", "workers = 1"));
        let seen = ask(&proxy, 4, GET);
        let wanted = if one == other { 4 } else { 2 };
        assert_eq!((seen.status(one), seen.total()), (wanted, 4), "{does:?} with `{more}`: {seen:?}");
        assert!(wanted == 4 || seen.status(other) == 2, "{does:?} with `{more}`: {seen:?}");
    }
}

#[test]
fn endpoints_that_refuse_or_swallow_connections_are_passed_over() {
    let good = Backend::start("good");
    let refusing = refusing();
    // With its queue full, the system drops what asks for a connection: nothing ever comes back.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let hole = socket.local_addr().unwrap().as_socket().unwrap();
    let _queued: Vec<_> =
        (0..3).map(|_| std::net::TcpStream::connect_timeout(&hole, Duration::from_millis(200))).collect();
    for bad in [refusing, hole.to_string()] {
        let endpoints = format!("[{bad:?}, {:?}]", good.address);
        for method in ["GET / HTTP/1.1", "POST / HTTP/1.1\r\nContent-Length: 0"] {
            let proxy = start(&with_endpoints(&endpoints, "connect-timeout = \"200ms\""));
            only_200(&ask(&proxy, 8, method));
        }
        let proxy = start(&with_endpoints(&endpoints, "connect-timeout = \"200ms\"\nretry = false"));
        let seen = ask(&proxy, 8, GET);
        assert!(seen.of("good") >= 4 && seen.status(502) + seen.status(504) >= 2, "{seen:?}");
    }
}

#[test]
fn content_is_sent_again_whole_or_not_at_all() {
    let proxy = |more: &str, bad: &Backend, good: &Backend| {
        let text = manifest(&[bad, good], more).replace("workers = 2", "workers = 1");
        start(&text.replace("[[route]]", "[[route]]\nrequest-buffer = false"))
    };
    let request = |proxy: &Proxy, method: &str, length: usize| {
        let mut stream = proxy.connect();
        let content: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).collect();
        write!(stream, "{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
            .unwrap();
        stream.write_all(&content).unwrap();
        let status = read_message(&mut BufReader::new(stream)).map_or(0, |response| response.status());
        (status, content)
    };
    let cases = [
        ("PUT", 30_000, "", 200),
        ("PUT", 30_000, "retry = { buffer = \"20 KiB\" }", 502),
        ("POST", 10, "", 502),
        ("POST", 30_000, "retry = { methods = \"any\" }", 200),
        ("DELETE", 1, "", 200),
    ];
    for (method, length, more, wanted) in cases {
        let (bad, good) = (Backend::start("bad"), Backend::start("good"));
        bad.does(Does::Reset);
        let proxy = proxy(more, &bad, &good);
        let first = request(&proxy, method, length);
        // Whichever endpoint came first, the bad one has had its turn after two.
        let second = request(&proxy, method, length);
        let statuses = [first.0.min(second.0), first.0.max(second.0)];
        assert_eq!(statuses, if wanted == 200 { [200, 200] } else { [200, wanted] }, "{method} {length} `{more}`");
        assert!((1..=2).contains(&bad.requests()), "{method} {length} `{more}`: {}", bad.requests());
        assert!(good.seen().iter().all(|seen| seen.body == first.1), "{method} {length} `{more}`");
    }
}

#[test]
fn retries_are_a_share_of_the_traffic() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    a.does(Does::Status(503));
    b.does(Does::Status(503));
    let more = "retry = { on = [503], retries = 1, budget = 10 }\noutliers = false";
    let proxy = start(&manifest(&[&a, &b], more).replace("workers = 2", "workers = 1"));
    let seen = ask(&proxy, 3_000, GET);
    let retried = (a.requests() + b.requests()) as usize - 3_000;
    // A tenth, and the reserve of ten per second for the ten seconds of the window, and for each second since.
    assert!((100..=3_000 / 10 + 300).contains(&retried), "{retried} retries");
    assert_eq!(seen.status(503), 3_000, "the last response is passed on");
    let upstream = upstream(&proxy);
    assert_eq!(upstream["retries"], retried);
    assert!(upstream["retries_denied"].as_u64().unwrap() > 1_000, "{upstream}");
}

#[test]
fn a_retry_has_the_place_of_the_request_that_it_repeats() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    a.does(Does::Status(503));
    let more = "retry = { on = [503] }\noutliers = false\nlimits = { requests = 1 }";
    let proxy = start(&manifest(&[&a, &b], more));
    for _ in 0..4 {
        assert_eq!(proxy.get("/", "").status(), 200);
    }
    assert!(a.requests() > 0);
    assert_eq!(b.requests(), 4);
    let upstream = upstream(&proxy);
    assert_eq!([&upstream["retries"], &upstream["overflows"]], [a.requests(), 0]);
}

#[test]
fn failing_endpoint_is_ejected_and_returns() {
    let (a, b, c) = (Backend::start("a"), Backend::start("b"), Backend::start("c"));
    let more = "outliers = { consecutive = 3, statuses = [\"5xx\"], ejection = \"1s\" }";
    let proxy = start(&manifest(&[&a, &b, &c], more));
    a.does(Does::Status(500));
    let seen = ask(&proxy, 30, GET);
    assert_eq!(seen.status(500), 3, "{seen:?}");
    assert_eq!(states(&proxy), ["ejected", "up", "up"]);
    let metrics = admin(&proxy, "GET /metrics");
    let line = format!("plugway_endpoint_state{{upstream=\"app\",endpoint=\"{}\",state=\"ejected\"}} 1\n", a.address);
    assert!(metrics.contains(&line), "{metrics}");
    a.does(Does::Answer);
    until("a is back", || states(&proxy) == ["up", "up", "up"]);
    assert_eq!(ask(&proxy, 30, GET).of("a"), 10);
    // At most half of three: the second is spared, unless it fails for so long that it must be dead.
    a.does(Does::Status(500));
    b.does(Does::Status(500));
    let sorted = || {
        let mut states = states(&proxy);
        states.sort();
        states
    };
    ask(&proxy, 18, GET);
    assert_eq!(sorted(), ["ejected", "up", "up"]);
    ask(&proxy, 18, GET);
    assert_eq!(sorted(), ["ejected", "ejected", "up"]);
}

#[test]
fn an_interval_of_errors_or_slowness_ejects() {
    let (a, b, c) = (Backend::start("a"), Backend::start("b"), Backend::start("c"));
    let more = "outliers = { consecutive = 0, statuses = [500], error-rate = 30, latency = 500, requests = 5, \
                interval = \"500ms\", ejection = \"1m\", most = 70 }\nretry = false";
    let proxy = start(&manifest(&[&a, &b, &c], more));
    a.does(Does::Status(500));
    b.does(Does::AnswerLate(Duration::from_millis(150)));
    load(&proxy, 8, GET, || until("both are out", || states(&proxy) == ["ejected", "ejected", "up"]));
    assert_eq!(ask(&proxy, 9, GET).of("c"), 9);
}

#[test]
fn health_checks_take_out_and_bring_back() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let more = "outliers = false\nretry = false\n[upstream.app.health]\npath = \"/healthz\"\nstatuses = [200]\n\
                content = \"all is well\"\ninterval = \"50ms\"\nhealthy = 2\nunhealthy = 2";
    let proxy = start(&manifest(&[&a, &b], more));
    only_200(&ask(&proxy, 10, GET));
    a.does(Does::Status(500));
    until("a is out", || states(&proxy) == ["failing", "up"]);
    assert_eq!(ask(&proxy, 10, GET).of("b"), 10);
    a.does(Does::Answer);
    until("a is back", || states(&proxy) == ["up", "up"]);
    assert_eq!(ask(&proxy, 10, GET).of("a"), 5);
    proxy.wait_log("endpoint is down: health checks fail");
    proxy.wait_log("endpoint is up: health checks pass");
}

#[test]
fn a_check_asks_for_a_host_and_looks_for_content() {
    let word = Arc::new(Mutex::new("all is well"));
    let said = word.clone();
    let origin = origin(move |request| match request.field("host") {
        Some("check.internal") => ok(*said.lock().unwrap()),
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    });
    let check = |host: &str| {
        let health = format!("path = \"/healthz\"\nhost = \"{host}\"\ncontent = \"well\"\ninterval = \"50ms\"");
        with_endpoints(&format!("[\"{origin}\"]"), &format!("[upstream.app.health]\n{health}"))
    };
    let proxy = start(&check("check.internal"));
    *word.lock().unwrap() = "ill";
    until("it is out", || states(&proxy) == ["failing"]);
    *word.lock().unwrap() = "well again";
    until("it is back", || states(&proxy) == ["up"]);
    proxy.reload(&check("other.internal"));
    until("it is out by another host", || states(&proxy) == ["failing"]);
}

#[test]
fn state_of_endpoints_survives_a_reload() {
    let (mut a, b) = (Backend::start("a"), Backend::start("b"));
    // An endpoint that is asked while it is down isn't replaced by another.
    let more = "retry = false\noutliers = false\n[upstream.app.health]\nkind = \"tcp\"\ninterval = \"50ms\"";
    let text = manifest(&[&a, &b], more);
    let proxy = start(&text);
    a.kill();
    until("a is out", || states(&proxy) == ["failing", "up"]);
    let before = b.requests();
    let other = text.replace("[[route]]", "[[route]]\nname = \"everything\"");
    proxy.reload(&other);
    proxy.wait_log("reloaded");
    only_200(&ask(&proxy, 10, "POST / HTTP/1.1\r\nContent-Length: 0"));
    assert_eq!(b.requests() - before, 10, "nobody has to find out anew");
    let connections = upstream(&proxy);
    assert_eq!(connections["endpoints"][1]["responses"], 10, "figures go on: {connections}");
    a.revive();
    until("a is back", || states(&proxy) == ["up", "up"]);
}

#[test]
fn all_endpoints_or_none_are_used_if_none_is_up() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    a.does(Does::Status(500));
    b.does(Does::Status(500));
    let checks = "[upstream.app.health]\npath = \"/healthz\"\ninterval = \"50ms\"";
    let proxy = start(&manifest(&[&a, &b], checks));
    until("both are out", || states(&proxy) == ["failing", "failing"]);
    assert_eq!(upstream(&proxy)["panicking"], true);
    assert_eq!(ask(&proxy, 4, GET).status(500), 4, "rather a chance than none");
    let proxy = start(&manifest(&[&a, &b], &format!("panic-threshold = 0\n{checks}")));
    until("both are out", || states(&proxy) == ["failing", "failing"]);
    let refused = proxy.get("/", "");
    assert_eq!(
        (refused.status(), refused.field("proxy-status")),
        (503, Some("plugway; error=destination_unavailable"))
    );
}

#[test]
fn returning_endpoint_gets_its_share_slowly() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let more = "slow-start = \"6s\"\n[upstream.app.health]\npath = \"/healthz\"\ninterval = \"50ms\"\nhealthy = 1";
    let proxy = start(&manifest(&[&a, &b], more));
    a.does(Does::Status(500));
    until("a is out", || states(&proxy) == ["failing", "up"]);
    a.does(Does::Answer);
    until("a is back", || states(&proxy) == ["up", "up"]);
    let seen = ask(&proxy, 60, GET);
    assert!((1..=20).contains(&seen.of("a")), "{seen:?}");
    let weight = |proxy: &Proxy| upstream(proxy)["endpoints"][0]["weight"].as_f64().unwrap();
    assert!(weight(&proxy) < 1.0);
    until("a has its share", || weight(&proxy) == 1.0);
    assert_eq!(ask(&proxy, 60, GET).of("a"), 30);
}

#[test]
fn a_full_upstream_says_so_at_once() {
    let a = Backend::start("a");
    a.does(Does::Hang);
    let proxy = start(&manifest(&[&a], "[upstream.app.limits]\nrequests = 2"));
    let mut waiting: Vec<_> = (0..2).map(|_| proxy.connect()).collect();
    waiting.iter_mut().for_each(|stream| stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap());
    until("both are there", || a.requests() == 2);
    let began = Instant::now();
    let refused = proxy.get("/", "");
    assert_eq!((refused.status(), refused.field("retry-after")), (503, Some("1")));
    assert_eq!(refused.field("proxy-status"), Some("plugway; error=connection_limit_reached"));
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(upstream(&proxy)["overflows"], 1);
    waiting.into_iter().for_each(vanish);
    a.does(Does::Answer);
    until("there is room again", || proxy.get("/", "").status() == 200);
}

#[test]
fn connections_are_limited_and_waited_for() {
    let a = Backend::start("a");
    a.does(Does::AnswerLate(Duration::from_millis(5)));
    let proxy = start(&manifest(&[&a], "[upstream.app.limits]\nconnections = 2\npending = 100"));
    let seen = load(&proxy, 12, GET, || until("some have passed", || a.requests() > 600));
    only_200(&seen);
    // Twelve clients on two workers, and never more than two connections: each hangs on to one while it is asked.
    a.does(Does::Hang);
    let mut waiting: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
    let before = a.requests();
    waiting.iter_mut().for_each(|stream| stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap());
    until("two are there", || a.requests() == before + 2);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(a.requests(), before + 2, "the others wait");
    drop(waiting);
    let proxy =
        start(&manifest(&[&a], "connect-timeout = \"300ms\"\n[upstream.app.limits]\nconnections = 1\npending = 1"));
    let mut first = proxy.connect();
    let before = a.requests();
    first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    until("one is there", || a.requests() == before + 1);
    let mut second = proxy.connect();
    second.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    // Whichever of the two comes first has the place in the queue; the other hears at once that it is taken.
    let third = proxy.get("/", "");
    assert_eq!((third.status(), third.field("retry-after")), (503, Some("1")));
    let answer = read_message(&mut BufReader::new(second)).unwrap();
    assert_eq!((answer.status(), answer.field("retry-after")), (503, Some("1")), "it waited as long as it may");
    assert_eq!(upstream(&proxy)["retries"], 0, "and no longer");
    assert_eq!(upstream(&proxy)["overflows"], 2);
    assert_eq!(states(&proxy), ["up"], "which isn't the endpoint's fault");
}

#[test]
fn a_wait_for_a_connection_names_the_limit_of_connections() {
    let a = Backend::start("a");
    a.does(Does::Hang);
    let proxy = start(&manifest(&[&a], "connect-timeout = \"300ms\"\n[upstream.app.limits]\nconnections = 1"));
    let mut first = proxy.connect();
    first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    until("one is there", || a.requests() == 1);
    assert_eq!(proxy.get("/", "").status(), 503);
    let line = proxy.wait_log("no connection became free in 300ms (`connect-timeout`)");
    assert!(line.contains("limit=\"limits.connections\""), "{line}");
}

#[test]
fn a_draining_endpoint_keeps_what_it_has_and_gets_nothing_new() {
    let (go_on, waits) = mpsc::channel();
    let waits = Arc::new(Mutex::new(waits));
    let slow = raw_origin(move |mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").unwrap();
        waits.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        stream.write_all(b"half").unwrap();
    });
    let b = Backend::start("b");
    let text = with_endpoints(&format!("[{slow:?}]"), "");
    let proxy = start(&text);
    let mut stream = proxy.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut begun = [0; 40];
    reader.read_exact(&mut begun).unwrap();
    let draining = format!("[{{ address = {slow:?}, draining = true }}, {:?}]", b.address);
    proxy.reload(&with_endpoints(&draining, ""));
    proxy.wait_log("reloaded");
    assert_eq!(states(&proxy), ["draining", "up"]);
    assert_eq!(upstream(&proxy)["endpoints"][0]["in_flight"], 1);
    assert_eq!(ask(&proxy, 10, GET).of("b"), 10);
    proxy.reload(&with_endpoints(&format!("[{:?}]", b.address), ""));
    proxy.wait_log("reloaded");
    go_on.send(()).unwrap();
    let mut rest = begun.to_vec();
    let mut piece = [0; 256];
    while !rest.ends_with(b"halfhalf") {
        let length = reader.read(&mut piece).unwrap();
        assert!(length > 0, "cut off: {}", String::from_utf8_lossy(&rest));
        rest.extend(&piece[..length]);
    }
}

#[test]
fn an_operator_can_drain_an_endpoint() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let text = manifest(&[&a, &b], "");
    let proxy = start(&text);
    let order = |order: &str, endpoint: &str| admin(&proxy, &format!("POST /{order}?upstream=app&endpoint={endpoint}"));
    assert_eq!(order("drain", &a.address), "draining\n");
    assert_eq!(ask(&proxy, 10, GET).of("b"), 10);
    proxy.reload(&text.replace("[[route]]", "[[route]]\nname = \"x\""));
    proxy.wait_log("reloaded");
    assert_eq!(states(&proxy), ["draining", "up"], "also after a reload");
    assert_eq!(order("undrain", &a.address), "in use\n");
    assert_eq!(ask(&proxy, 10, GET).of("a"), 5);
    assert!(order("drain", "127.0.0.1:1").contains("no such endpoint"));
    assert!(admin(&proxy, "POST /drain?upstream=x&endpoint=y").contains("no such upstream"));
}

#[test]
fn a_response_cut_off_again_and_again_ejects_its_endpoint() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    a.does(Does::Half);
    let proxy = start(&manifest(&[&a, &b], ""));
    let seen = ask(&proxy, 40, GET);
    assert!(seen.of("b") >= 30, "{seen:?}");
    assert_eq!(states(&proxy), ["ejected", "up"]);
}

#[test]
fn backends_that_flap_lose_nothing() {
    let (mut a, mut b, c) = (Backend::start("a"), Backend::start("b"), Backend::start("c"));
    let more = "outliers = { consecutive = 3, ejection = \"200ms\", longest-ejection = \"400ms\" }";
    let proxy = start(&manifest(&[&a, &b, &c], more));
    let seen = load(&proxy, 8, GET, || {
        for _ in 0..6 {
            let before = c.requests();
            a.kill();
            until("traffic goes on", || c.requests() > before + 100);
            a.revive();
            b.kill();
            until("traffic goes on", || c.requests() > before + 200);
            b.revive();
            let (before_a, before_b) = (a.requests(), b.requests());
            until("both are back", || a.requests() > before_a + 20 && b.requests() > before_b + 20);
        }
    });
    only_200(&seen);
}

#[test]
fn an_upstream_that_a_refused_reload_took_away_comes_back() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let other = format!("[[route]]\npath = \"/b\"\nupstream = \"b\"\n[upstream.b]\nendpoints = [{:?}]\n", b.address);
    let (without, with) = (manifest(&[&a], ""), manifest(&[&a], &other));
    let proxy = start(&with);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    proxy.reload(&format!("{without}[[listener]]\naddress = \"{address}\"\n"));
    proxy.wait_log("not reloaded");
    proxy.reload(&with.replace("[upstream.b]", "[upstream.b]\nconnect-timeout = \"4s\""));
    proxy.wait_log("reloaded: generation 2");
    assert_eq!(ask(&proxy, 4, "GET /b HTTP/1.1").of("b"), 4);
}

#[test]
fn endpoints_are_well_again_when_nobody_checks_them_any_more() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let checks = "[upstream.app.health]\npath = \"/healthz\"\nstatuses = [204]\ninterval = \"50ms\"";
    let proxy = start(&manifest(&[&a, &b], checks));
    until("both are out", || states(&proxy) == ["failing", "failing"]);
    proxy.reload(&manifest(&[&a, &b], ""));
    proxy.wait_log("reloaded");
    assert_eq!(states(&proxy), ["up", "up"]);
}

#[test]
fn errors_of_clients_and_limits_do_not_count_against_endpoints() {
    let a = Backend::start("a");
    let more = "response-timeout = \"300ms\"\noutliers = { consecutive = 1, ejection = \"1m\" }";
    // A second endpoint, since the only one is never ejected.
    let b = Backend::start("b");
    let proxy = start(&manifest(&[&a, &b], more));
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nx").unwrap();
    // Longer than the endpoint may take: this silence is the subject.
    std::thread::sleep(Duration::from_millis(800));
    stream.write_all(b"y").unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().status(), 200);
    assert_eq!(states(&proxy), ["up", "up"]);

    let endpoints = format!("[\"h2c://{}\", \"h2c://{}\"]", a.address, b.address);
    let proxy = start(&with_endpoints(&endpoints, more));
    for _ in 0..4 {
        let refused = proxy.get("/", "\r\nConnection: upgrade\r\nUpgrade: other");
        assert_eq!(
            (refused.status(), refused.field("proxy-status")),
            (502, Some("plugway; error=http_upgrade_failed"))
        );
    }
    assert_eq!(states(&proxy), ["up", "up"]);
    assert_eq!(upstream(&proxy)["retries"], 0);
}

#[test]
fn limits_hold_for_connections_that_were_there_before_them() {
    let a = Backend::start("a");
    a.does(Does::AnswerLate(Duration::from_millis(20)));
    let text = manifest(&[&a], "");
    let proxy = start(&text);
    only_200(&load(&proxy, 8, GET, || until("some have passed", || a.requests() > 40)));
    proxy.reload(&format!("{text}[upstream.app.limits]\nconnections = 1\n"));
    proxy.wait_log("reloaded");
    a.does(Does::Hang);
    let before = a.requests();
    let mut waiting: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
    waiting.iter_mut().for_each(|stream| stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap());
    until("one is there", || a.requests() > before);
    // Whether another comes is the subject.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(a.requests(), before + 1);
}

#[test]
fn workers_share_few_connections_of_http2() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Backend::start("origin");
    // What speaks HTTP/2 without TLS here is another of these proxies.
    let inner = Proxy::start_in(folder.path(), &manifest(&[&origin], ""));
    let endpoints = format!("[\"h2c://{}\"]", inner.address);
    let proxy = start(&with_endpoints(&endpoints, "[upstream.app.limits]\nconnections = 1"));
    let seen = load(&proxy, 8, GET, || until("enough have passed", || origin.requests() > 500));
    only_200(&seen);
}

#[test]
fn a_process_killed_under_load_costs_no_idempotent_request() {
    let origin = Backend::start("origin");
    let process = || start(&manifest(&[&origin], ""));
    let mut processes = vec![process(), process(), process()];
    let addresses: Vec<&str> = processes.iter().map(|process| &*process.address).collect();
    let proxy = start(&with_endpoints(&format!("{addresses:?}"), ""));
    let seen = load(&proxy, 16, GET, || {
        until("all take part", || origin.requests() > 500);
        // Killed with SIGKILL, as it is dropped.
        drop(processes.pop());
        let before = origin.requests();
        until("the others go on", || origin.requests() > before + 1_000);
    });
    only_200(&seen);
    assert_eq!(states(&proxy), ["up", "up", "ejected"]);
}

#[test]
fn of_backends_that_are_ill_in_every_way_clients_see_little_under_load() {
    let [slow, broken, mute, good] = ["slow", "broken", "mute", "good"].map(Backend::start);
    slow.does(Does::AnswerLate(Duration::from_millis(50)));
    broken.does(Does::Half);
    mute.does(Does::Hang);
    let refusing = refusing();
    let addresses = [&slow.address, &broken.address, &mute.address, &good.address, &refusing];
    let more = "response-timeout = \"300ms\"\nretry = { on = [\"connect\", \"reset\", \"timeout\"] }\n\
                outliers = { consecutive = 3, most = 80, ejection = \"1m\" }";
    let proxy = start(&with_endpoints(&format!("{addresses:?}"), more));
    let seen = load(&proxy, 12, GET, || until("enough have passed", || good.requests() > 2_000));
    // What is cut off within a response can't be taken back: each of the clients may have met it at a time, over and
    // over until the endpoint was out.
    let lost = seen.total() - seen.status(200);
    assert!(lost <= 12 * 3 && seen.0.keys().all(|outcome| outcome == "lost" || outcome.starts_with("200")), "{seen:?}");
    assert_eq!(states(&proxy), ["up", "ejected", "ejected", "up", "ejected"]);
    let again = load(&proxy, 12, GET, || {
        let before = good.requests();
        until("more have passed", || good.requests() > before + 500);
    });
    only_200(&again);
}

/// Returns the address of an endpoint that answers the preface of HTTP/2 with these bytes.
fn answering_preface(answer: &'static [u8]) -> String {
    raw_origin(move |mut stream| {
        let mut preface = [0; 24];
        if stream.read_exact(&mut preface).is_ok() {
            let _ = stream.write_all(answer);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            // A connection that is closed before all was read is reset, and the response with it.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    })
}

#[test]
fn another_protocol_in_place_of_http2_is_named_with_the_remedy() {
    let remedy =
        "the endpoint doesn't speak HTTP/2 without TLS; remove `h2c://` before its address, or write `https://`";
    for answer in
        [&b"<!DOCTYPE HTML>\n<p>Bad request</p>\n"[..], b"-ERR unknown command\r\n", b"\x15\x03\x01\0\x02\x02\x46"]
    {
        let endpoints = format!("[\"h2c://{}\"]", answering_preface(answer));
        let proxy = start(&with_endpoints(&endpoints, ""));
        assert_eq!(proxy.get("/", "").status(), 502);
        let line = proxy.wait_log("exchange failed");
        assert!(line.contains(remedy) && line.contains("kind=\"http_protocol_error\""), "{line}");
        let checked = with_endpoints(&endpoints, "health = { path = \"/\", interval = \"1s\" }\n");
        let line = Proxy::start(&checked).wait_log("health checks fail");
        assert!(line.contains(remedy), "{line}");
    }
}

#[test]
fn http1_in_place_of_http2_is_named_with_the_remedy() {
    let address = answering_preface(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let endpoints = format!("[\"h2c://{address}\"]");
    let remedy = "the endpoint speaks HTTP/1.1, not HTTP/2; remove `h2c://` before its address";
    let proxy = start(&with_endpoints(&endpoints, ""));
    assert_eq!(proxy.get("/", "").status(), 502);
    let line = proxy.wait_log("exchange failed");
    assert!(line.contains(remedy) && line.contains("kind=\"http_protocol_error\""), "{line}");
    // The first check is over before the admin listener is there.
    let checked = with_endpoints(&endpoints, "health = { path = \"/\", interval = \"1s\" }\n");
    let line = Proxy::start(&checked).wait_log("health checks fail");
    assert!(line.contains(remedy), "{line}");
}
