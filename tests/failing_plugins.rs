//! Plugins that take too long, fail repeatedly, or lose their instances: other plugins keep their time.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plugway_test_guests::{LATE, MISBEHAVE};

use crate::support::{Message, Proxy, echo, manifest, ok, origin, plugway, read_message, until};

/// Returns a manifest with the plugin `late` for the path `/late`, and no plugin for other paths.
fn late(origin: &str, workers: usize, plugin: &str) -> String {
    let more = format!(
        "[[route]]\npath = \"/late\"\nupstream = \"app\"\nplugins = [\"late\"]\n[admin]\naddress = \"127.0.0.1:0\"\n\
         [plugin.late]\nuse = {LATE:?}\n{plugin}\n"
    );
    manifest(origin, "", &more).replace("workers = 2", &format!("workers = {workers}"))
}

fn start(text: &str) -> Proxy {
    Proxy::start_after(text, "admin at ")
}

fn call(proxy: &Proxy, how: &str) -> Message {
    let field = if how.is_empty() { String::new() } else { format!("\r\nX-Late: {how}") };
    proxy.get("/late", &field)
}

/// Returns the plugin `late` in the status document.
fn plugin(proxy: &Proxy) -> serde_json::Value {
    let status: serde_json::Value = serde_json::from_slice(&proxy.ask_admin("GET /status").body).unwrap();
    let plugins = status["plugins"].as_array().unwrap();
    plugins.iter().find(|plugin| plugin["name"] == "late").cloned().unwrap()
}

fn metric(proxy: &Proxy, line: &str) -> Option<f64> {
    let text = proxy.ask_admin("GET /metrics").text();
    text.lines().find_map(|known| known.strip_prefix(line)?.trim().parse().ok())
}

fn rejected(proxy: &Proxy, reason: &str) -> f64 {
    let line = format!("plugway_plugin_rejected_total{{plugin=\"late\",reason=\"{reason}\"}}");
    metric(proxy, &line).unwrap()
}

/// Calls the plugin `late` for a client, on a connection of its own.
fn call_from(proxy: &Proxy, client: &str, how: &str) -> u16 {
    let mut stream = proxy.connect_from(client);
    let request = format!("GET /late HTTP/1.1\r\nHost: a\r\nX-Late: {how}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    read_message(&mut BufReader::new(stream)).unwrap().status()
}

fn ms_from_now(ms: u128) -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() + ms
}

/// Returns the number of calls of the instance that served a request.
fn calls(response: &Message) -> Option<u32> {
    response.text().lines().find_map(|line| line.strip_prefix("x-calls: ")?.parse().ok())
}

#[test]
fn late_calls_open_the_breaker_and_it_closes_by_a_trial() {
    let proxy = start(&late(&echo(), 2, "limits.cpu = \"20ms\""));
    assert_eq!(plugin(&proxy)["breaker"], "closed");
    let opened = proxy.log_until("plugin breaker opened", || assert_eq!(call(&proxy, "spin").status(), 502));
    assert!(opened.iter().filter(|line| line.contains("limit")).count() <= 3, "{opened:?}");
    // No request waits for the plugin now, whether it succeeds or not.
    assert_eq!(call(&proxy, "").status(), 502);
    assert!(rejected(&proxy, "breaker") >= 1.0);
    proxy.wait_log("breaker is open");
    assert_eq!(proxy.get("/", "").status(), 200);
    until("a trial succeeds", || call(&proxy, "").status() == 200);
    proxy.wait_log("plugin breaker closed");
    assert_eq!(call(&proxy, "").status(), 200);
}

#[test]
fn late_calls_of_a_client_stop_no_calls_of_others() {
    let proxy = start(&late(&echo(), 2, "limits.cpu = \"20ms\""));
    proxy.log_until("plugin breaker opened plugin=\"late\" client=\"127.0.0.2\"", || {
        assert_eq!(call_from(&proxy, "127.0.0.2", "spin"), 502);
    });
    assert_eq!(call_from(&proxy, "127.0.0.2", ""), 502);
    assert!(rejected(&proxy, "breaker") >= 1.0);
    for _ in 0..20 {
        assert_eq!(call_from(&proxy, "127.0.0.1", ""), 200);
    }
    until("a trial succeeds", || call_from(&proxy, "127.0.0.2", "") == 200);
    proxy.wait_log("plugin breaker closed plugin=\"late\" client=\"127.0.0.2\"");
}

/// Each of many clients opens its own breaker: no number of them switches the plugin off for another.
#[test]
fn late_calls_of_many_clients_stop_no_calls_of_others() {
    let proxy = start(&late(&echo(), 2, "limits.cpu = \"10ms\"\nlimits.share = 100"));
    for client in (2..12).flat_map(|client| [client; 3]) {
        assert_eq!(call_from(&proxy, &format!("127.0.0.{client}"), "spin"), 502);
    }
    assert!((2..12).all(|client| call_from(&proxy, &format!("127.0.0.{client}"), "spin") == 502));
    assert!(rejected(&proxy, "breaker") >= 5.0);
    for _ in 0..20 {
        assert_eq!(call_from(&proxy, "127.0.0.1", ""), 200);
    }
}

#[test]
fn a_storm_of_traps_of_a_client_stops_no_calls_of_others() {
    let proxy = start(&late(&echo(), 2, "limits.share = 100"));
    proxy.log_until("plugin breaker opened", || {
        (0..20).for_each(|_| assert_eq!(call_from(&proxy, "127.0.0.2", "trap"), 502));
    });
    for _ in 0..20 {
        assert_eq!(call_from(&proxy, "127.0.0.1", ""), 200);
        assert_eq!(call_from(&proxy, "127.0.0.2", "trap"), 502);
    }
    assert!(rejected(&proxy, "breaker") >= 1.0);
    until("a trial succeeds", || call_from(&proxy, "127.0.0.2", "") == 200);
}

#[test]
fn the_breaker_is_that_of_all_workers_and_survives_a_reload() {
    let text = late(&echo(), 2, "limits.cpu = \"20ms\"\non-error = 503");
    let proxy = start(&text);
    proxy.log_until("plugin breaker opened", || assert_eq!(call(&proxy, "spin").status(), 503));
    // Opened again and again, so that it stays open for long enough.
    for _ in 0..2 {
        proxy.log_until("plugin breaker opened", || assert_eq!(call(&proxy, "spin").status(), 503));
    }
    let before = plugin(&proxy)["breaker"].clone();
    assert_ne!(before, "closed");
    proxy.reload(&text.replace("[plugin.late]", "# the same\n[plugin.late]"));
    proxy.wait_log("reloaded: generation 2");
    assert_ne!(plugin(&proxy)["breaker"], "closed");
    // Another configuration is another version.
    proxy.reload(&text.replace("on-error", "config.configure-busy = 1\non-error"));
    proxy.wait_log("reloaded: generation 3");
    assert_eq!(plugin(&proxy)["breaker"], "closed");
    assert_eq!(call(&proxy, "").status(), 200);
}

#[test]
fn a_plugin_of_several_configurations_shows_the_worst_of_their_states() {
    let route = |path: &str, busy: u32| {
        format!(
            "[[route]]\npath = \"{path}\"\nupstream = \"app\"\nplugins = [{{ use = {LATE:?}, \
             config.configure-busy = {busy}, limits.cpu = \"20ms\" }}]\n"
        )
    };
    let text = manifest(&echo(), "", &[route("/late", 0), route("/other", 1)].concat());
    let proxy = Proxy::start(&text.replace("workers = 2", "workers = 1"));
    let breaker = format!("plugway_plugin_breaker_state{{plugin={LATE:?}}}");
    assert_eq!(proxy.metric(&breaker), 0.0);
    let shown = || {
        let status: serde_json::Value = serde_json::from_slice(&proxy.ask_admin("GET /status").body).unwrap();
        let plugins = status["plugins"].as_array().unwrap();
        plugins.iter().find(|plugin| plugin["name"] == LATE).cloned().unwrap()
    };
    let live = shown()["live"].as_u64().unwrap();
    assert!(live >= 2, "each configuration has an instance: {live}");
    proxy.log_until("plugin breaker opened", || assert_eq!(call(&proxy, "spin").status(), 502));
    assert_ne!(proxy.metric(&breaker), 0.0);
    assert_ne!(shown()["breaker"], "closed");
    assert_eq!(proxy.get("/other", "").status(), 200);
}

#[test]
fn one_trap_in_many_calls_never_opens_the_breaker() {
    let proxy = start(&late(&echo(), 2, ""));
    for n in 0..400 {
        let (how, status) = if n % 4 == 0 { ("trap", 502) } else { ("", 200) };
        assert_eq!(call(&proxy, how).status(), status, "call {n}");
    }
    assert_eq!((plugin(&proxy)["breaker"].as_str(), rejected(&proxy, "breaker")), (Some("closed"), 0.0));
    assert_eq!(plugin(&proxy)["failures"], 100);
}

#[test]
fn a_plugin_that_always_traps_is_not_called_all_the_time() {
    let proxy = start(&late(&echo(), 2, "").replace(LATE, MISBEHAVE));
    proxy.log_until("plugin breaker opened", || {
        (0..50).for_each(|_| assert_eq!(proxy.get("/late", "\r\nX-Misbehave: trap").status(), 502));
    });
    until("a trial succeeds", || call(&proxy, "").status() == 200);
    assert_eq!(plugin(&proxy)["breaker"], "closed");
}

#[test]
fn good_calls_of_other_hooks_and_some_good_requests_hide_no_storm_of_traps() {
    let proxy = start(&late(&echo(), 1, ""));
    let mut n = 0;
    // An observer of the same plugin returns after each of them.
    proxy.log_until("plugin breaker opened", || {
        n += 1;
        drop(call(&proxy, if n % 50 == 0 { "" } else { "trap" }));
    });
    assert_ne!(plugin(&proxy)["breaker"], "closed");
    assert_eq!(proxy.get("/", "").status(), 200);
    until("a trial succeeds", || call(&proxy, "").status() == 200);
    assert_eq!(plugin(&proxy)["breaker"], "closed");
}

#[test]
fn lost_instances_are_charged_to_the_share() {
    let proxy = start(&late(&echo(), 1, "limits.share = 1"));
    let began = Instant::now();
    let mut traps = 0;
    proxy.log_until("limits.share of 1 %", || {
        // In a fifth of a second, the plugin regains the time of four losses.
        (0..10).for_each(|_| drop(call(&proxy, "trap")));
        drop(call(&proxy, ""));
        traps += 10;
    });
    // The share of ten seconds is a tenth of a second: 250 losses, each of half a millisecond.
    assert!(traps < 100 + 250 + 50 * began.elapsed().as_secs(), "{traps}");
}

#[test]
fn timers_that_are_slow_take_turns() {
    let names: Vec<String> = (0..10).map(|n| format!("\"t{n}\"")).collect();
    let config = "timer-interval = 50\nconfig.timer = \"busy:2\"";
    let tables: String = (0..10).map(|n| format!("[plugin.t{n}]\nuse = {LATE:?}\nconfig.{config}\n")).collect();
    let more = format!("[admin]\naddress = \"127.0.0.1:0\"\n{tables}");
    let text = manifest(&echo(), &names.join(", "), &more).replace("workers = 2", "workers = 1");
    let proxy = start(&text);
    let calls = || -> f64 {
        let one = |n| metric(&proxy, &format!("plugway_plugin_calls_total{{plugin=\"t{n}\"}}"));
        (0..10).filter_map(one).sum()
    };
    let (began, before) = (Instant::now(), calls());
    until("the timers were called", || calls() >= before + 20.0);
    // One is called every 50 ms: each takes more than its worker has for all timers.
    assert!(began.elapsed() > Duration::from_millis(800), "{:?}", began.elapsed());
    until("each has its turn", || {
        (0..10).all(|n| metric(&proxy, &format!("plugway_plugin_calls_total{{plugin=\"t{n}\"}}")) >= Some(2.0))
    });
}

#[test]
fn calls_within_their_limit_take_no_more_than_the_share() {
    let proxy = start(&late(&echo(), 1, "limits.share = 5"));
    proxy.log_until("limits.share of 5 %", || {
        call(&proxy, "busy:40");
    });
    let refused = call(&proxy, "");
    assert_eq!((refused.status(), refused.field("retry-after")), (503, Some("1")));
    assert!(rejected(&proxy, "share") >= 1.0);
    assert_eq!(plugin(&proxy)["breaker"], "closed", "the calls were not late");
    assert_eq!(proxy.get("/", "").status(), 200);
}

/// An instruction may fill all of a memory: no tick interrupts it, but its time counts.
#[test]
fn work_that_no_tick_interrupts_takes_no_more_than_the_share() {
    let limits = "limits.memory = \"256 MiB\"\nlimits.cpu = \"200ms\"\nlimits.share = 5";
    let proxy = start(&late(&echo(), 1, limits));
    let mut calls = 0;
    proxy.log_until("limits.share of 5 %", || {
        call(&proxy, "fill:200");
        calls += 1;
    });
    assert!(calls < 100, "{calls} calls, of some 20 ms each");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn the_whole_share_is_no_limit() {
    let proxy = start(&late(&echo(), 1, "limits.share = 100"));
    for _ in 0..50 {
        assert_eq!(call(&proxy, "busy:30").status(), 200);
    }
}

#[test]
fn a_slow_body_plugin_slows_the_body_down() {
    let sized = origin(|request| ok(&request.body.len().to_string()));
    let text = late(&sized, 1, "config.push = \"busy:10\"\nlimits.share = 20");
    let proxy = start(&text);
    let mut stream = proxy.connect();
    stream.write_all(b"POST /late HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    // Each chunk is a push of 10 ms, which costs 253 ms of the share: some more than a minute's 12 s.
    for _ in 0..52 {
        stream.write_all(b"1\r\nx\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(15));
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(200) {
        assert_eq!(proxy.get("/", "").status(), 200);
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let response = read_message(&mut BufReader::new(stream)).unwrap();
    assert_eq!((response.status(), response.text().as_str()), (200, "54"));
}

#[test]
fn an_instance_that_cannot_be_made_again_is_retried_off_the_worker() {
    // Once before, so that the component is compiled.
    drop(start(&late(&echo(), 1, "")));
    let after = ms_from_now(5000);
    let config = format!("config.configure-busy = 5\nconfig.configure-spins-after = {after}");
    let proxy = start(&late(&echo(), 1, &config));
    assert_eq!(call(&proxy, "").status(), 200);
    until("configure spins", || ms_from_now(0) > after);
    let failing = proxy.log_until("plugin instance not made", || drop(call(&proxy, "trap")));
    assert!(failing.len() < 100, "{failing:?}");
    // The worker had nothing to do with it.
    let began = Instant::now();
    let answered =
        std::iter::repeat_with(|| call(&proxy, "")).take_while(|_| began.elapsed().as_millis() < 500).count();
    assert!(answered > 20, "{answered}");
    let last = call(&proxy, "");
    assert_eq!((last.status(), last.field("proxy-status")), (502, Some("plugway; error=plugin_error")));
    assert!(rejected(&proxy, "instance") >= 1.0);
    assert_eq!(plugin(&proxy)["instances"], "failing");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn a_plugin_that_is_slow_to_configure_has_a_spare_instance() {
    let proxy = start(&late(&echo(), 1, "config.configure-busy = 30"));
    assert_eq!((calls(&call(&proxy, "")), calls(&call(&proxy, ""))), (Some(1), Some(2)));
    assert_eq!(call(&proxy, "trap").status(), 502);
    assert_eq!(calls(&call(&proxy, "")), Some(1), "the spare one serves at once");
    assert_eq!(call(&proxy, "trap").status(), 502);
    until("another one is made", || calls(&call(&proxy, "")) == Some(1));
}

#[test]
fn a_reload_holds_no_worker_up() {
    let text = late(&echo(), 1, "config.configure-busy = 1");
    let proxy = start(&text);
    proxy.reload(&text.replace("configure-busy = 1", "configure-busy = 900"));
    // The worker's instance takes 900 ms, and so does the first one.
    let mut longest = Duration::ZERO;
    proxy.log_until("reloaded: generation 2", || {
        let began = Instant::now();
        assert_eq!(proxy.get("/", "").status(), 200);
        longest = longest.max(began.elapsed());
    });
    assert!(longest < Duration::from_millis(700), "{longest:?}");
    assert_eq!(call(&proxy, "").status(), 200);
}

#[test]
fn a_trapping_timer_is_called_less_and_less() {
    let proxy = start(&late(&echo(), 1, "config.timer-interval = 50\nconfig.timer = \"trap\""));
    proxy.wait_log("hook=\"timer\"");
    let began = Instant::now();
    (0..2).for_each(|_| drop(proxy.wait_log("hook=\"timer\"")));
    // After one second, and after two more; without the backoff, every 50 ms.
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(call(&proxy, "").status(), 200);
}

#[test]
fn an_instance_serves_one_body_after_the_other() {
    let mirror = origin(|request| ok(&String::from_utf8_lossy(&request.body)));
    let proxy = start(&late(&mirror, 1, ""));
    let body = |text: &str| {
        let mut stream = proxy.connect();
        let head =
            format!("POST /late HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", text.len());
        stream.write_all((head + text).as_bytes()).unwrap();
        read_message(&mut BufReader::new(stream)).unwrap()
    };
    assert_eq!((body("a").text(), body("b").text(), body("c").text()), ("a#1".into(), "b#2".into(), "c#3".into()));
    assert_ne!(body("trap").status(), 200);
    assert_eq!(body("d").text(), "d#1", "never after a trap");
}

#[test]
fn bodies_beyond_their_limit_are_told_by_its_name() {
    let mirror = origin(|request| ok(&String::from_utf8_lossy(&request.body)));
    let proxy = start(&late(&mirror, 2, "limits.bodies = 3\nlimits.body-wait = \"1ms\""));
    let begin = || -> TcpStream {
        let mut stream = proxy.connect();
        stream.write_all(b"POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx").unwrap();
        stream
    };
    let mut held = Vec::new();
    proxy.log_until("limits.bodies of 3", || held.push(begin()));
    let refused = || read_message(&mut BufReader::new(begin())).map(|response| response.status());
    assert_eq!(refused(), Some(503));
    assert!(rejected(&proxy, "bodies") >= 1.0);
    held[0].write_all(b"y").unwrap();
    let mut first = BufReader::new(held.remove(0));
    assert_eq!(read_message(&mut first).unwrap().text(), "xy#1");
    let mut again = begin();
    again.write_all(b"z").unwrap();
    assert!(read_message(&mut BufReader::new(again)).unwrap().text().starts_with("xz#"));
}

#[test]
fn a_balancer_that_is_slow_to_learn_endpoints_holds_no_worker_up() {
    let text = format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[upstream.app]\n\
         endpoints = [{:?}, {:?}]\nbalancer = {{ use = {LATE:?}, config = {{ endpoints-busy = 400 }} }}\n\
         [upstream.plain]\nendpoints = [{:?}]\n[[route]]\nupstream = \"app\"\n[[route]]\npath = \"/plain\"\n\
         upstream = \"plain\"\n",
        origin(|_| ok("a")),
        origin(|_| ok("b")),
        echo()
    );
    let proxy = start(&text);
    let served = |texts: &[&str]| texts.contains(&proxy.get("/", "").text().as_str());
    assert!(served(&["a", "b"]) && served(&["a", "b"]));
    let status: serde_json::Value = serde_json::from_slice(&proxy.ask_admin("GET /status").body).unwrap();
    let upstreams = status["upstreams"].as_array().unwrap();
    let app = upstreams.iter().find(|upstream| upstream["name"] == "app").unwrap();
    let endpoint = app["endpoints"][0]["address"].as_str().unwrap().to_string();
    assert_eq!(proxy.ask_admin(&format!("POST /drain?upstream=app&endpoint={endpoint}")).status(), 200);
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < Duration::from_millis(1500) {
        let began = Instant::now();
        assert!(served(&["a", "b"]));
        assert_eq!(proxy.get("/plain", "").status(), 200);
        longest = longest.max(began.elapsed());
    }
    assert!(longest < Duration::from_millis(350), "{longest:?}");
}

#[test]
fn the_manifest_decides_how_many_instances_there_is_room_for() {
    // More than 2,000, and once more for the reload.
    let plugins: Vec<String> = (0..33).map(|n| format!("\"p{n}\"")).collect();
    let tables: String = (0..33).map(|n| format!("[plugin.p{n}]\nuse = {MISBEHAVE:?}\n")).collect();
    let text = manifest(&echo(), &plugins.join(", "), &tables).replace("workers = 2", "workers = 64");
    let proxy = Proxy::start(&text);
    assert_eq!(proxy.get("/", "").status(), 200);
    proxy.reload(&format!("# again\n{text}"));
    proxy.wait_log("reloaded: generation 2");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn generations_that_tunnels_pin_hold_no_instances() {
    let switching =
        origin(|_| b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".to_vec());
    let text = late(&switching, 1, "");
    let proxy = start(&text);
    let mut tunnels = Vec::new();
    for generation in 2..12 {
        let mut stream = proxy.connect();
        stream.write_all(b"GET /late HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").unwrap();
        let response = read_message(&mut BufReader::new(stream.try_clone().unwrap())).unwrap();
        assert!(response.start.contains(" 101 "), "{response:?}");
        tunnels.push(stream);
        proxy.reload(&format!("# {generation}\n{text}"));
        proxy.wait_log(&format!("reloaded: generation {generation}"));
    }
    // The worker's, and spare ones; ten more without the rule.
    let live = plugin(&proxy)["live"].as_u64().unwrap();
    assert!(live <= 3, "{live}");
    // The observer is told at the end all the same.
    drop(tunnels);
    until("all tunnels are observed", || {
        metric(&proxy, "plugway_plugin_counter{plugin=\"late\",name=\"ended\"}") == Some(10.0)
    });
}

/// A process that computes on one processor, until dropped.
struct Burner(Child);

impl Drop for Burner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_worker_without_a_processor_fails_no_call() {
    if !Command::new("taskset").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(plugway().get_program()).stdin(Stdio::null()).stdout(Stdio::null());
    for (name, value) in plugway().get_envs() {
        command.env(name, value.unwrap());
    }
    let proxy =
        Proxy::start_by(command, folder.path(), &late(&echo(), 1, "limits.cpu = \"200ms\"\nlimits.share = 100"));
    // Rounds that take a third of the limit, measured as the shortest of several.
    let mut rounds = 1_000_000_u64;
    let time = |rounds: u64| {
        let once = || {
            let began = Instant::now();
            call(&proxy, &format!("work:{rounds}"));
            began.elapsed()
        };
        (0..3).map(|_| once()).min().unwrap()
    };
    while time(rounds) < Duration::from_millis(60) {
        rounds += rounds / 2;
    }
    let burn = || Command::new("taskset").args(["-c", "0", "sh", "-c", "while :; do :; done"]).spawn().unwrap();
    let burners: Vec<Burner> = (0..10).map(|_| Burner(burn())).collect();
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(call(&proxy, &format!("work:{rounds}")).status(), 200);
    }
    // Else the test shows nothing.
    let took = began.elapsed();
    assert!(took > Duration::from_millis(600), "{took:?}");
    drop(burners);
    assert_eq!(call(&proxy, "spin").status(), 502);
}

/// One client whose requests were expensive used up the share, and the calls of all others failed.
#[test]
fn a_client_that_uses_up_the_share_leaves_calls_to_others() {
    let proxy = start(&late(&echo(), 1, "on-error = 503"));
    let is_over = Arc::new(AtomicBool::new(false));
    let heavy = |_| {
        let (mut stream, is_over) = (BufReader::new(proxy.connect_from("127.0.0.2")), is_over.clone());
        std::thread::spawn(move || {
            let mut rejected = 0;
            while !is_over.load(Ordering::Relaxed) {
                rejected += usize::from(call_on(&mut stream, "busy:3") == 503);
            }
            rejected
        })
    };
    let heavy: Vec<_> = (0..4).map(heavy).collect();
    until("the share is used up", || rejected(&proxy, "share") > 0.0);
    let from = |number| BufReader::new(proxy.connect_from(&format!("127.0.0.{number}")));
    let mut others: Vec<_> = (3..9).map(from).collect();
    let mut statuses = Vec::new();
    (0..200).for_each(|_| statuses.extend(others.iter_mut().map(|other| call_on(other, ""))));
    is_over.store(true, Ordering::Relaxed);
    let failed = statuses.iter().filter(|status| **status != 200).count();
    assert_eq!(failed, 0, "of {}", statuses.len());
    let rejected: usize = heavy.into_iter().map(|heavy| heavy.join().unwrap()).sum();
    assert!(rejected > 100, "{rejected}");
}

/// Calls the plugin on a connection, and returns the status.
fn call_on(stream: &mut BufReader<TcpStream>, how: &str) -> u16 {
    let head = format!("GET /late HTTP/1.1\r\nHost: a\r\nX-Late: {how}\r\n\r\n");
    stream.get_mut().write_all(head.as_bytes()).unwrap();
    read_message(stream).unwrap().status()
}
