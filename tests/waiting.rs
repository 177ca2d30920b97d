//! Plugins whose hooks wait: the chain is suspended at such a hook, other requests are served meanwhile, and limits hold.

use std::io::Write;
use std::time::Duration;

use plugway_test_guests::WAITING;

use crate::support::{Message, Proxy, echo, manifest, ok, origin, read_message, until, vanish};

/// A hash of `password`, which takes some milliseconds to verify.
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuWG29KuyeAicPCJODk1zjyGvyQUU2awu";

/// A hash of `password`, which takes about a quarter of a second to verify.
const SLOW_HASH: &str = "$2y$12$abcdefghijklmnopqrstuutwZ1IOTtu3SsEBT5lI/LFncP31tIybm";

/// Returns a manifest with the plugin `waiting` in the route.
fn waiting(origin: &str, hash: &str, plugin: &str) -> String {
    let more = format!(
        "[admin]\naddress = \"127.0.0.1:0\"\n[plugin.waiting]\nuse = {WAITING:?}\nconfig.hash = {hash:?}\n{plugin}\n"
    );
    manifest(origin, "\"waiting\"", &more)
}

fn start(text: &str) -> Proxy {
    Proxy::start_after(text, "admin at ")
}

fn call(proxy: &Proxy, how: &str, password: &str) -> Message {
    proxy.get("/a%20b?c", &format!("\r\nX-Wait: {how}\r\nX-Password: {password}"))
}

/// Returns what the origin was told of the verification.
fn verified(response: &Message) -> Option<String> {
    response.text().lines().find_map(|line| line.strip_prefix("x-verified: ").map(String::from))
}

fn line(response: &Message, name: &str) -> Option<String> {
    response.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(String::from))
}

fn metric(proxy: &Proxy, line: &str) -> f64 {
    let text = proxy.ask_admin("GET /metrics").text();
    text.lines().find_map(|known| known.strip_prefix(line)?.trim().parse().ok()).unwrap()
}

/// Returns the number of the plugin's instances.
fn live(proxy: &Proxy) -> u64 {
    let status: serde_json::Value = serde_json::from_str(&proxy.ask_admin("GET /status").text()).unwrap();
    let mut plugins = status["plugins"].as_array().unwrap().iter();
    plugins.find(|plugin| plugin["name"] == "waiting").unwrap()["live"].as_u64().unwrap()
}

fn rejected(proxy: &Proxy) -> f64 {
    metric(proxy, "plugway_plugin_rejected_total{plugin=\"waiting\",reason=\"waiting\"}")
}

/// Sends a request, and returns the connection.
fn send(proxy: &Proxy, how: &str) -> std::net::TcpStream {
    send_over(proxy.connect(), how)
}

fn send_over(mut stream: std::net::TcpStream, how: &str) -> std::net::TcpStream {
    write!(stream, "GET / HTTP/1.1\r\nHost: example.org\r\nX-Wait: {how}\r\nX-Password: password\r\n\r\n").unwrap();
    stream
}

#[test]
fn a_request_waits_at_the_hook_and_goes_on_behind_it() {
    let proxy = start(&waiting(&echo(), HASH, ""));
    let response = call(&proxy, "verify", "password");
    assert_eq!((response.status(), verified(&response).as_deref()), (200, Some("Ok(true)")), "{}", response.text());
    assert_eq!(verified(&call(&proxy, "verify", "wrong")).as_deref(), Some("Ok(false)"));
    // A hook that has nothing to wait for.
    assert_eq!(call(&proxy, "", "").status(), 200);
    // The plugin answers by itself once it has waited.
    let answer = call(&proxy, "verify,answer", "password");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "Ok(true)"));
    assert_eq!(metric(&proxy, "plugway_plugin_failures_total{plugin=\"waiting\"}"), 0.0);
}

#[test]
fn content_passes_a_hook_that_waits() {
    let proxy = start(&waiting(&origin(|request| ok(&request.text())), HASH, ""));
    let content = "x".repeat(3 << 20);
    let mut stream = proxy.connect();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: example.org\r\nX-Wait: verify\r\nX-Password: password\r\nContent-Length: {}\r\n\r\n",
        content.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let writer = std::thread::spawn({
        let (mut stream, content) = (stream.try_clone().unwrap(), content.clone());
        move || stream.write_all(content.as_bytes()).unwrap()
    });
    let response = read_message(&mut std::io::BufReader::new(stream)).unwrap();
    writer.join().unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.text() == content);
}

#[test]
fn the_exchange_can_be_read_after_the_hook_has_waited() {
    let proxy = start(&waiting(&echo(), HASH, ""));
    let response = call(&proxy, "verify,value", "password");
    assert_eq!(line(&response, "x-path").as_deref(), Some("/a%20b"), "{}", response.text());
}

#[test]
fn a_response_waits_at_the_hook_too() {
    let origin = origin(|request| {
        let how = request.field("x-response").unwrap_or_default();
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Wait: {how}\r\n\r\nhi").into_bytes()
    });
    let proxy = start(&waiting(&origin, HASH, "on-error = 503"));
    let ask = |how: &str| proxy.get("/path", &format!("\r\nX-Response: {how}\r\nX-Password: password"));
    let response = ask("verify,value");
    assert_eq!((response.status(), response.text().as_str()), (200, "hi"));
    assert_eq!((response.field("x-verified"), response.field("x-path")), (Some("Ok(true)"), Some("/path")));
    let replaced = ask("verify,answer");
    assert_eq!((replaced.status(), replaced.text().as_str()), (203, "Ok(true)"));
    assert_eq!(ask("verify,trap").status(), 503);
}

#[test]
fn other_requests_are_served_while_a_hook_waits() {
    let more = "[[route]]\npath = \"/free\"\nupstream = \"app\"\n";
    let text = waiting(&echo(), SLOW_HASH, "").replace("workers = 2", "workers = 1") + more;
    let proxy = start(&text);
    let slow: Vec<_> = (0..8).map(|_| send(&proxy, "forever")).collect();
    until("the calls wait", || metric(&proxy, "plugway_plugin_calls_total{plugin=\"waiting\"}") >= 8.0);
    // The worker serves a request without the plugin, and one with the plugin that has nothing to wait for.
    assert_eq!(proxy.get("/free", "").status(), 200);
    assert_eq!(call(&proxy, "", "").status(), 200);
    drop(slow);
}

#[test]
fn a_client_that_leaves_ends_the_call() {
    let proxy = start(&waiting(&echo(), HASH, "limits.waiting-calls = 1\nlimits.call-time = \"1h\""));
    let stream = send(&proxy, "forever");
    until("the call waits", || metric(&proxy, "plugway_plugin_calls_total{plugin=\"waiting\"}") >= 1.0);
    vanish(stream);
    // The only place for a call is free again.
    until("another call is made", || call(&proxy, "verify", "password").status() == 200);
}

#[test]
fn calls_beyond_the_queue_fail_at_once_by_the_name_of_the_key() {
    let limits =
        "limits = { waiting-calls = 1, queued-calls = 1, queue-time = \"1h\", call-time = \"1h\" }\non-error = 503";
    let proxy = start(&waiting(&echo(), HASH, limits));
    let first = send(&proxy, "forever");
    until("the call waits", || metric(&proxy, "plugway_plugin_calls_total{plugin=\"waiting\"}") >= 1.0);
    // One of two calls is queued, and there is no room for the other.
    let (sender, responses) = std::sync::mpsc::channel();
    for stream in [send(&proxy, "verify"), send(&proxy, "verify")] {
        let sender = sender.clone();
        std::thread::spawn(move || sender.send(read_message(&mut std::io::BufReader::new(stream)).unwrap()));
    }
    let wait = Duration::from_secs(30);
    assert_eq!(responses.recv_timeout(wait).unwrap().status(), 503);
    proxy.wait_log("limits.waiting-calls of 1 is reached, and limits.queued-calls of 1 too");
    assert_eq!(rejected(&proxy), 1.0);
    // The queued call is made when the first one has ended.
    vanish(first);
    let response = responses.recv_timeout(wait).unwrap();
    assert_eq!((response.status(), verified(&response).as_deref()), (200, Some("Ok(true)")));
}

#[test]
fn calls_of_one_client_that_wait_leave_places_to_others() {
    let limits = "limits = { waiting-calls = 8, queued-calls = 8, queue-time = \"1h\", call-time = \"1h\" }";
    let proxy = start(&waiting(&echo(), HASH, limits));
    let _heavy: Vec<_> = (0..20).map(|_| send_over(proxy.connect_from("127.0.0.2"), "forever")).collect();
    until("calls beyond its part are rejected", || rejected(&proxy) >= 4.0);
    for _ in 0..4 {
        assert_eq!(call(&proxy, "verify", "password").status(), 200);
    }
}

#[test]
fn a_call_is_not_queued_for_longer_than_its_time() {
    let limits = "limits = { waiting-calls = 1, queue-time = \"100ms\", call-time = \"1h\" }";
    let proxy = start(&waiting(&echo(), HASH, limits));
    let first = send(&proxy, "forever");
    until("the call waits", || metric(&proxy, "plugway_plugin_calls_total{plugin=\"waiting\"}") >= 1.0);
    let rejected = call(&proxy, "verify", "password");
    assert_eq!((rejected.status(), rejected.field("retry-after")), (503, Some("1")));
    proxy.wait_log("no call ended within limits.queue-time of 100ms");
    drop(first);
}

#[test]
fn a_call_takes_no_longer_than_its_time() {
    let proxy = start(&waiting(&echo(), HASH, "limits.call-time = \"200ms\"\non-error = 504"));
    assert_eq!(call(&proxy, "forever", "password").status(), 504);
    proxy.wait_log("limits.call-time of 200ms exceeded");
    assert_eq!(call(&proxy, "verify", "password").status(), 200);
}

#[test]
fn the_time_of_the_route_ends_a_hook_that_waits() {
    let text = waiting(&echo(), HASH, "").replace("[[route]]", "[[route]]\ntimeout = \"200ms\"");
    let proxy = start(&text);
    assert_eq!(call(&proxy, "forever", "password").status(), 504);
    assert_eq!(call(&proxy, "verify", "password").status(), 200);
}

#[test]
fn cpu_time_is_limited_and_waiting_does_not_count() {
    let proxy = start(&waiting(&echo(), HASH, "limits.cpu = \"50ms\""));
    // Hundreds of passwords take seconds, but not the plugin's.
    let waited = "verify,".repeat(200);
    assert_eq!(call(&proxy, &waited, "password").status(), 200);
    assert_eq!(call(&proxy, "verify,spin", "password").status(), 502);
    proxy.wait_log("limits.cpu of 50 ms exceeded");
    proxy.log_until("plugin breaker opened", || drop(call(&proxy, "verify,spin", "password")));
}

#[test]
fn a_trap_costs_the_instance_of_its_call_alone() {
    let proxy = start(&waiting(&echo(), HASH, "").replace("workers = 2", "workers = 1"));
    let calls = |how: &str| line(&call(&proxy, how, "password"), "x-calls");
    assert_eq!((calls("verify").as_deref(), calls("verify").as_deref()), (Some("1"), Some("2")));
    assert_eq!(call(&proxy, "verify,trap", "password").status(), 502);
    assert_eq!(calls("verify").as_deref(), Some("1"));
}

/// The pages of a stack stayed with the process once a call had used them: half a MiB for each call at a time.
#[test]
fn the_stack_of_a_deep_call_is_given_back() {
    let proxy = start(&waiting(&echo(), HASH, "limits = { share = 100, call-time = \"1h\" }"));
    let calls = || metric(&proxy, "plugway_plugin_calls_total{plugin=\"waiting\"}");
    assert_eq!(call(&proxy, "dive", "").status(), 200);
    let (before, made) = (proxy.memory_kib(), calls());
    let deep: Vec<_> = (0..150).map(|_| send(&proxy, "dive,nap")).collect();
    until("the calls wait", || calls() >= made + 150.0);
    let used = proxy.memory_kib();
    deep.into_iter().for_each(vanish);
    until("the calls have ended", || live(&proxy) < 20);
    let kept = proxy.memory_kib();
    assert!(kept < before + (40 << 10), "{before} KiB, {used} KiB meanwhile, then {kept} KiB");
}

/// Each worker kept as many idle instances as it had ever had calls at a time, up to 64.
#[test]
fn all_workers_keep_no_more_idle_instances_than_calls_are_allowed() {
    let text =
        waiting(&echo(), HASH, "limits = { waiting-calls = 8, share = 100 }").replace("workers = 2", "workers = 4");
    let proxy = start(&text);
    for _ in 0..100 {
        let calls: Vec<_> = (0..8).map(|_| send(&proxy, "verify")).collect();
        for call in calls {
            assert_eq!(read_message(&mut std::io::BufReader::new(call)).unwrap().status(), 200);
        }
        // Those that may be idle, the only ones of four workers, and a spare one.
        let live = live(&proxy);
        assert!(live <= 8 + 4 + 1, "{live}");
    }
}

#[test]
fn each_call_has_a_fresh_instance_if_the_manifest_says_so() {
    let proxy = start(&waiting(&echo(), HASH, "isolation = \"request\""));
    for _ in 0..20 {
        assert_eq!(line(&call(&proxy, "verify", "password"), "x-calls").as_deref(), Some("1"));
    }
}

#[test]
fn a_timer_may_wait() {
    let proxy = start(&waiting(&echo(), HASH, "config.timer = 50"));
    until("the timer has verified passwords", || {
        let metrics = proxy.ask_admin("GET /metrics").text();
        let ticks = "plugway_plugin_counter{plugin=\"waiting\",name=\"ticks\"}";
        metrics
            .lines()
            .any(|line| line.strip_prefix(ticks).is_some_and(|ticks| ticks.trim().parse::<f64>().unwrap() > 2.0))
    });
}

#[test]
fn a_hook_that_waits_may_stand_behind_a_cache() {
    let text = waiting(
        &origin(|_| b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nhi".to_vec()),
        HASH,
        "",
    );
    let proxy = start(&text.replace("plugins = [\"waiting\"]", "plugins = [\"cache\", \"waiting\"]"));
    let calls = || metric(&proxy, "plugway_plugin_calls_total{plugin=\"waiting\"}");
    assert_eq!(call(&proxy, "verify", "password").text(), "hi");
    let before = calls();
    assert_eq!(call(&proxy, "verify", "password").text(), "hi");
    assert_eq!(calls(), before, "the second response is that of the cache");
    // Above a cache, the hook is called for each request.
    let proxy = start(&text.replace("plugins = [\"waiting\"]", "plugins = [\"waiting\", \"cache\"]"));
    let calls = || metric(&proxy, "plugway_plugin_calls_total{plugin=\"waiting\"}");
    (0..3).for_each(|_| assert_eq!(call(&proxy, "verify", "password").text(), "hi"));
    assert_eq!(calls(), 6.0);
}

#[test]
fn passwords_may_be_verified_while_a_plugin_is_configured() {
    let text = waiting(&echo(), HASH, "config.early = true");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugway.toml");
    std::fs::write(&file, &text).unwrap();
    let (code, output) = crate::support::run(&["check", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{output}");
    let proxy = start(&text);
    assert_eq!(verified(&call(&proxy, "verify", "password")).as_deref(), Some("Ok(true)"));
}

#[test]
fn a_reload_lets_calls_end_with_their_generation() {
    let text = waiting(&echo(), HASH, "");
    let proxy = start(&text);
    let begun: Vec<_> =
        (0..4).map(|_| send(&proxy, "verify,verify,verify,verify,verify,verify,verify,verify")).collect();
    proxy.reload(&text.replace("[plugin.waiting]", "# the same\n[plugin.waiting]"));
    proxy.wait_log("reloaded: generation 2");
    for stream in begun {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert_eq!(read_message(&mut std::io::BufReader::new(stream)).unwrap().status(), 200);
    }
}
