//! Shared state on a Redis server: the same calls, over several proxies, and what happens without the server.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use plugway_test_guests::{COUNTED, SHARED};
use socket2::{Domain, Socket, Type};

use crate::dead_endpoints::{Hole, start_with_hosts};
use crate::support::client::load;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, Proxy, echo, manifest, plugway, read_message, until};

/// Returns a manifest with the plugin that does what requests say, and with more keys of `[shared]`.
fn with(shared: &str) -> String {
    let plugin = format!("[plugin.it]\nuse = {SHARED:?}\ngrants.shared = true\nlimits.cpu = \"5s\"\n");
    manifest("127.0.0.1:9", r#""it""#, &format!("{plugin}[shared]\n{shared}\n"))
}

fn on(redis: &Redis, more: &str) -> String {
    with(&format!("redis = {:?}\n{more}", redis.url()))
}

/// Has the plugin do something; each request is on a connection of its own, so that all workers get some.
fn ask(proxy: &Proxy, what: &str) -> String {
    let answer = proxy.get("/", &format!("\r\nX-Shared: {what}"));
    assert_eq!(answer.status(), 200, "{what}: {answer:?}");
    answer.text()
}

/// Returns a head of requests that add to a counter, and fail if that fails.
const ADD: &str = "GET / HTTP/1.1\r\nX-Shared: try add n";

fn failures(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("plugway_shared_redis_failures_total{{plugin=\"it\",reason={reason:?}}}"))
}

fn fallbacks(proxy: &Proxy) -> f64 {
    proxy.metric("plugway_shared_redis_fallbacks_total{plugin=\"it\"}")
}

fn status(proxy: &Proxy) -> serde_json::Value {
    let document = proxy.ask_admin("GET /status").text();
    serde_json::from_str::<serde_json::Value>(&document).unwrap()["shared"]["redis"].clone()
}

#[test]
fn each_call_has_the_result_that_it_has_in_one_process() {
    let redis = Redis::start();
    let (fleet, local) = (Proxy::start(&on(&redis, "")), Proxy::start(&with("")));
    for what in [
        "get a",
        "set a 12",
        "text a",
        "add a",
        "add a 18446744073709551615",
        "text a",
        "get a",
        "delete a",
        "delete a",
        "add n 5 3600000",
        "add n 2 1",
        "text n",
        "set n x",
        "add n",
        "set n 007",
        "add n",
        "set n +1",
        "add n",
        "set n 9223372036854775807",
        "add n",
        "add n 18446744073709551615",
        "text n",
        "set gone 1 0",
        "get gone",
        "add zero 7 0",
        "get zero",
        "set k 1",
        "swap k 2 3",
        "swap k 1 3",
        "text k",
        "swap none 1 2",
        "get none",
        "take b 1 3600000 3",
        "take b 1 3600000 3",
        "take b 1 3600000 3",
        "take b 1 3600000 3",
        "get b",
        "add b",
        "swap b 1 2",
        "take k 1 1000 1",
        "take b 0 1000",
        "take b 1 0",
        "delete b",
        "take b 1 3600000 3",
        "take odd 3 1000000 7",
        "take most 4294967295 1 4294967295",
        "take rare 1 31622400000 4294967295",
        "set b 1",
        "text b",
        "long-key 1024",
        "long-key 1025",
        "long-value 65536",
        "get long",
        "long-value 65537",
        "fill many 20 10",
        "get many7",
        "buckets 10",
    ] {
        assert_eq!(ask(&fleet, what), ask(&local, what), "{what}");
    }
    // A counter expires by its first call, and keys have the name of the plugin.
    assert_eq!(redis.ask(&["get", "plugway:it:n"]), "9223372036854775806");
    assert_eq!(redis.ask(&["ttl", "plugway:it:n"]), "-1");
    assert_eq!(ask(&fleet, "add brief 1 3600000"), "Ok(1)");
    assert_eq!(ask(&fleet, "add brief 1 7200000"), "Ok(2)");
    let ttl: u64 = redis.ask(&["pttl", "plugway:it:brief"]).parse().unwrap();
    assert!((3_000_000..=3_600_000).contains(&ttl), "{ttl}");
    // What others have stored is no reason to fail, or to read any amount.
    redis.ask(&["setrange", "plugway:it:big", "65536", "x"]);
    redis.ask(&["lpush", "plugway:it:list", "x"]);
    redis.ask(&["hset", "plugway:it:hash", "x", "y"]);
    for key in ["big", "list", "hash"] {
        assert_eq!(ask(&fleet, &format!("get {key}")), "Err(OtherKind)");
    }
    assert_eq!(ask(&fleet, "take hash 1 1000 1"), "Err(OtherKind)");
    assert_eq!(failures(&fleet, "refused") + failures(&fleet, "timeout") + failures(&fleet, "away"), 0.0);
    assert!(fleet.metric("plugway_shared_redis_calls_total{plugin=\"it\"}") > 50.0);
    assert_eq!(fleet.metric("plugway_shared_redis_up"), 1.0);
    assert_eq!(fleet.metric("plugway_shared_entries{plugin=\"it\"}"), 0.0);
}

#[test]
fn values_expire_and_buckets_fill_by_the_clock_of_the_server() {
    let redis = Redis::start();
    let proxy = Proxy::start(&on(&redis, ""));
    assert_eq!(ask(&proxy, "set a 1 50"), "Ok(())");
    until("a value expires", || ask(&proxy, "get a") == "Ok(None)");
    assert!(ask(&proxy, "take b 1 200 1").starts_with("Ok((true"));
    assert_eq!(redis.ask(&["type", "plugway:it:b"]), "hash");
    until("a bucket that is full is none", || redis.ask(&["type", "plugway:it:b"]) == "none");
    assert_eq!(ask(&proxy, "take b 1 200 1"), "Ok((true, 0))");
    until("a bucket fills", || ask(&proxy, "take b 1 200 1") == "Ok((true, 0))");
}

#[test]
fn two_proxies_count_as_one_under_load() {
    let redis = Redis::start();
    let (one, other) = (Proxy::start(&on(&redis, "commands = 2")), Proxy::start(&on(&redis, "")));
    assert_eq!((ask(&one, "add first"), ask(&other, "add first")), ("Ok(1)".into(), "Ok(2)".into()));
    let mut seen = None;
    let of_one = load(&one, 4, ADD, || {
        seen = Some(load(&other, 4, ADD, || until("both count", || ask(&one, "text n").len() > 18)));
    });
    let total = of_one.total() + seen.as_ref().unwrap().total();
    assert_eq!(of_one.status(200) + seen.unwrap().status(200), total);
    assert_eq!(ask(&other, "text n"), format!("Ok(Some(Ok(\"{total}\")))"));
    // Five tokens for both.
    let allowed = (0..20).filter(|turn| {
        let proxy = if turn % 2 == 0 { &one } else { &other };
        ask(proxy, "take b 1 3600000 5").starts_with("Ok((true")
    });
    assert_eq!(allowed.count(), 5);
    // Another beginning of the keys is another state.
    let apart = Proxy::start(&on(&redis, "prefix = \"staging:\""));
    assert_eq!((ask(&apart, "add first"), redis.ask(&["get", "staging:it:first"])), ("Ok(1)".into(), "1".into()));
}

#[test]
fn a_server_that_dies_and_returns_under_load_costs_errors_and_nothing_else() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&on(&redis, "timeout = \"2s\""));
    assert_eq!(ask(&proxy, "add n"), "Ok(1)");
    let seen = load(&proxy, 8, ADD, || {
        until("calls succeed", || ask(&proxy, "text n").len() > 18);
        redis.kill();
        assert!(proxy.wait_log("Redis is not available").contains("calls of plugins fail"));
        until("calls fail", || failures(&proxy, "away") > 100.0);
        assert_eq!(
            (status(&proxy)["state"].as_str(), status(&proxy)["answers"].as_str()),
            (Some("down"), Some("none"))
        );
        assert_eq!(proxy.metric("plugway_shared_redis_up"), 0.0);
        let began = Instant::now();
        assert_eq!(ask(&proxy, "get n"), "Err(Unavailable)");
        assert!(began.elapsed() < Duration::from_secs(1), "the server is not waited for");
        redis.revive();
        proxy.wait_log("Redis is available again");
        until("calls succeed again", || ask(&proxy, "get n").starts_with("Ok("));
    });
    assert_eq!(seen.status(200) + seen.status(503), seen.total(), "{seen:?}");
    assert!(seen.status(200) > 0 && seen.status(503) > 0, "{seen:?}");
    assert_eq!(status(&proxy)["state"], "up");
    // The server began anew.
    let count: usize = redis.ask(&["get", "plugway:it:n"]).parse().unwrap();
    assert!(count < seen.status(200), "{count} {seen:?}");
}

#[test]
fn the_state_of_the_process_answers_in_place_of_a_server_that_is_away() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&on(&redis, "fallback = \"local\""));
    assert_eq!(ask(&proxy, "add n"), "Ok(1)");
    let seen = load(&proxy, 4, ADD, || {
        until("calls succeed", || ask(&proxy, "get n").starts_with("Ok(Some("));
        redis.kill();
        assert!(proxy.wait_log("Redis is not available").contains("the state of this process answers"));
        until("the process answers", || fallbacks(&proxy) > 100.0);
        assert_eq!(
            (status(&proxy)["state"].as_str(), status(&proxy)["answers"].as_str()),
            (Some("down"), Some("local"))
        );
        assert!(!proxy.has_logged("Redis is not available"), "the log says it once");
        redis.revive();
        proxy.wait_log("Redis is available again");
        until("the server answers", || redis.ask(&["exists", "plugway:it:n"]) == "1");
    });
    assert_eq!(seen.status(200), seen.total(), "{seen:?}");
    assert_eq!(status(&proxy)["answers"], "redis");
    assert!(proxy.metric("plugway_shared_entries{plugin=\"it\"}") > 0.0);
}

/// Starts a server that accepts connections, answers so many pings, and says nothing more.
fn silent(pings: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut left = pings;
        let mut kept: Vec<TcpStream> = Vec::new();
        for stream in listener.incoming().map_while(Result::ok) {
            if left > 0 {
                left -= 1;
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                assert!(lines.any(|line| line == "PING"));
                (&stream).write_all(b"+PONG\r\n").unwrap();
            }
            kept.push(stream);
        }
    });
    format!("redis://{address}")
}

#[test]
fn a_server_that_says_nothing_is_waited_for_no_longer_than_the_timeout() {
    for (pings, reason) in [(0, "away"), (1, "timeout")] {
        let text = with(&format!("redis = {:?}\ntimeout = \"300ms\"", silent(pings)));
        let proxy = Proxy::start(&text);
        let began = Instant::now();
        assert_eq!(ask(&proxy, "add n"), "Err(Unavailable)");
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
        // The worker serves others meanwhile, and the next calls don't wait once the server is known to be silent.
        assert!(failures(&proxy, reason) >= 1.0, "{reason}");
        proxy.wait_log("Redis is not available");
        let began = Instant::now();
        (0..10).for_each(|_| assert_eq!(ask(&proxy, "add n"), "Err(Unavailable)"));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

/// Starts a server that answers a first ping and nothing else. Returns its URL, and the keys of the commands that arrive.
fn mute() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let (seen, keys) = mpsc::channel();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "PING"));
        (&stream).write_all(b"+PONG\r\n").unwrap();
        lines.filter(|line| line.starts_with("plugway:")).for_each(|key| drop(seen.send(key)));
    });
    (url, keys)
}

/// Starts a server that answers a ping, and each other command by a value without end. Returns its URL, and the number of
/// bytes that each connection has taken of the value.
fn endless() -> (String, mpsc::Receiver<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let (taken, each) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            assert!(lines.any(|line| line == "PING"));
            stream.write_all(b"+PONG\r\n").unwrap();
            if !lines.any(|line| line.starts_with("plugway:")) || stream.write_all(b"$9000000000\r\n").is_err() {
                continue;
            }
            let piece = [b'x'; 64 << 10];
            let sent = (0..MOST).step_by(piece.len()).take_while(|_| stream.write_all(&piece).is_ok()).count();
            let _ = taken.send((sent * piece.len()) as u64);
        }
    });
    (url, each)
}

/// The maximum number of bytes that the endless value has all the same.
const MOST: usize = 256 << 20;

#[test]
fn an_answer_without_end_ends_the_connection_and_the_log_says_so() {
    let (url, each) = endless();
    let proxy = Proxy::start(&with(&format!("redis = {url:?}\ntimeout = \"20s\"")));
    let began = Instant::now();
    assert_eq!(ask(&proxy, "get n"), "Err(Unavailable)");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // Seen before: all of it.
    let taken = each.recv_timeout(PATIENCE).unwrap();
    // The system buffers some on the way.
    assert!(taken < 32 << 20, "{taken}");
    let line = proxy.wait_log("Redis is not available");
    assert!(line.contains("longer than the state of plugins has"), "{line}");
}

#[test]
fn a_plugin_whose_commands_are_not_answered_leaves_places_to_others() {
    let (url, keys) = mute();
    let plugin = |name: &str| format!("[plugin.{name}]\nuse = {SHARED:?}\ngrants.shared = true\n");
    let more = format!(
        "path = \"/evil\"\n[[route]]\nupstream = \"app\"\nplugins = [\"honest\"]\n{}{}\
         [shared]\nredis = {url:?}\ncommands = 8\ntimeout = \"60s\"\n",
        plugin("evil"),
        plugin("honest"),
    );
    let proxy = Proxy::start(&manifest("127.0.0.1:9", r#""evil""#, &more));
    let asking = |path: &str| {
        let mut stream = proxy.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a.test\r\nX-Shared: get n\r\n\r\n").unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = (0..20).map(|_| asking("/evil")).collect();
    until("all calls have begun", || proxy.metric("plugway_shared_redis_calls_total{plugin=\"evil\"}") == 20.0);
    streams.push(asking("/"));
    // Seen before: eight commands of `evil`, and none of others.
    let next = || keys.recv_timeout(PATIENCE).expect("one more command arrives");
    assert_eq!([next(), next(), next()], ["plugway:evil:n", "plugway:evil:n", "plugway:honest:n"]);
}

#[test]
fn a_late_command_leaves_the_connection_to_others() {
    let redis = Redis::start();
    let proxy = Proxy::start(&on(&redis, "timeout = \"1s\""));
    assert_eq!(ask(&proxy, "add n"), "Ok(1)");
    let connection = || {
        let clients = redis.ask(&["client", "list"]);
        let ours = clients.lines().find(|line| !line.contains("cmd=client"));
        ours.and_then(|line| line.split(' ').next()).map(String::from)
    };
    let before = connection();
    // The command is late, and the ping after it is answered in time.
    redis.ask(&["client", "pause", "1500", "all"]);
    assert_eq!(ask(&proxy, "get n"), "Err(Unavailable)");
    until("the server answers again", || ask(&proxy, "get n") == "Ok(Some(1))");
    assert!(before.is_some() && connection() == before, "{before:?} {:?}", connection());
    assert!(failures(&proxy, "timeout") >= 1.0 && failures(&proxy, "lost") + failures(&proxy, "away") == 0.0);
    assert!(!proxy.has_logged("Redis is not available"));
}

#[test]
fn a_wrong_password_is_an_error_until_a_reload_has_the_right_one() {
    let redis = Redis::start_with(&["--requirepass", "right-pass-word"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "wrong-pass-word\n").unwrap();
    let text = on(&redis, "password = \"${file:password}\"");
    let proxy = Proxy::start_in(folder.path(), &text);
    let line = proxy.wait_log("Redis is not available");
    assert!(!line.contains("pass-word"), "{line}");
    assert_eq!(ask(&proxy, "add n"), "Err(Unavailable)");
    let error = status(&proxy)["error"].as_str().unwrap().to_string();
    assert!(error.to_lowercase().contains("password"), "{error}");
    std::fs::write(folder.path().join("password"), "right-pass-word\n").unwrap();
    proxy.signal("HUP");
    proxy.wait_log("reloaded");
    until("the server knows us", || ask(&proxy, "add n") == "Ok(1)");
}

#[test]
fn each_new_reason_of_an_absence_is_logged() {
    let mut redis = Redis::start_with(&["--requirepass", "right"]);
    redis.kill();
    let proxy = Proxy::start(&on(&redis, "password = \"wrong\""));
    let line = proxy.wait_log("Redis is not available");
    assert!(!line.to_lowercase().contains("password"), "{line}");
    redis.revive();
    // Seen before: the log said for ever that the server refuses connections.
    let line = proxy.wait_log("Redis is not available");
    assert!(line.to_lowercase().contains("password"), "{line}");
    redis.kill();
}

#[test]
fn a_name_whose_first_address_is_dead_is_reached_at_the_next() {
    let (dead, alive) = (Ipv4Addr::new(127, 0, 0, 4), Ipv4Addr::new(127, 0, 0, 5));
    // Nothing else takes the port between now and the server's start, or the test fails.
    let port = TcpListener::bind((alive, 0)).unwrap().local_addr().unwrap().port();
    let redis = Redis::start_with(&["--port", &port.to_string(), "--bind", &alive.to_string()]);
    let _hole = Hole::at(dead, port);
    let text = with(&format!("redis = \"redis://two.test:{port}/0\""));
    for hosts in [format!("{dead} two.test\n{alive} two.test\n"), format!("{alive} two.test\n{dead} two.test\n")] {
        let (proxy, _folder) = start_with_hosts(&hosts, &text);
        // Seen before: `no answer within 2s` for ever.
        until("the server is reached", || ask(&proxy, "add n").starts_with("Ok("));
    }
    drop(redis);
}

#[test]
fn a_reload_with_another_server_takes_effect() {
    let (one, other) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&on(&one, ""));
    assert_eq!((ask(&proxy, "add n"), ask(&proxy, "add n")), ("Ok(1)".into(), "Ok(2)".into()));
    proxy.reload(&on(&other, ""));
    proxy.wait_log("reloaded: generation 2");
    assert_eq!(ask(&proxy, "add n"), "Ok(1)");
    // A reload that changes nothing of it keeps the connection.
    let connection = || {
        let clients = other.ask(&["client", "list"]);
        let ours = clients.lines().find(|line| line.contains("cmd=evalsha"));
        ours.and_then(|line| line.split(' ').next()).map(String::from)
    };
    let before = connection();
    proxy.reload(&format!("{}\n[cache]\nmemory = \"32 MiB\"\n", on(&other, "")));
    proxy.wait_log("reloaded: generation 3");
    assert_eq!(ask(&proxy, "add n"), "Ok(2)");
    assert!(before.is_some() && connection() == before, "{before:?}");
    // Without a server, the process has the state again.
    proxy.reload(&with(""));
    proxy.wait_log("reloaded: generation 4");
    assert_eq!(ask(&proxy, "get n"), "Ok(None)");
    until("the connection is closed", || connection().is_none());
    assert_eq!((one.ask(&["get", "plugway:it:n"]), other.ask(&["get", "plugway:it:n"])), ("2".into(), "2".into()));
}

#[test]
fn a_server_with_tls_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let made = plugway().args(["cert", "--self-signed", "localhost"]).current_dir(folder.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    // Bound and not listening, so that nothing else has the port, and the server may bind it too.
    let reserved = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    reserved.set_reuse_address(true).unwrap();
    reserved.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = reserved.local_addr().unwrap().as_socket().unwrap().port().to_string();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key) = (file("cert.pem"), file("key.pem"));
    let redis = Redis::start_with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &cert,
        "--tls-auth-clients",
        "no",
    ]);
    let url = format!("redis = \"rediss://localhost:{port}/3\"");
    let proxy = Proxy::start(&with(&format!("{url}\nca = {cert:?}")));
    assert_eq!((ask(&proxy, "add n"), redis.ask(&["-n", "3", "get", "plugway:it:n"])), ("Ok(1)".into(), "1".into()));
    let untrusting = Proxy::start(&with(&url));
    let line = untrusting.wait_log("Redis is not available");
    assert!(line.contains("certificate"), "{line}");
    assert_eq!(ask(&untrusting, "add n"), "Err(Unavailable)");
}

#[test]
fn a_hook_for_bodies_counts_on_a_server_too() {
    let text = manifest(
        &echo(),
        r#""it""#,
        &format!("[plugin.it]\nuse = {COUNTED:?}\ngrants.shared = true\n[shared]\nentries = 2000\n"),
    );
    let redis = Redis::start();
    let post = |proxy: &Proxy| {
        let mut stream = proxy.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 1\r\n\r\nx").unwrap();
        read_message(&mut BufReader::new(stream)).unwrap().status()
    };
    let on_server = text.replace("entries = 2000", &format!("redis = {:?}", redis.url()));
    for (manifest, entries) in [(&text, 1.0), (&on_server, 0.0)] {
        let proxy = Proxy::start(manifest);
        assert_eq!([post(&proxy), post(&proxy), post(&proxy)], [200; 3]);
        assert_eq!(proxy.metric("plugway_shared_entries{plugin=\"it\"}"), entries);
    }
    drop(redis);
}
