//! Logs that can't be written, logs that are flooded, and panics: none of them stops the running proxy.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use plugway_test_guests::{MISBEHAVE, NOISY};

use crate::support::{
    Message, PATIENCE, Proxy, echo, manifest, ok, origin, outcome, output, plugway, read_message, run, until,
};

/// Standard output can't be opened by a path if it is a socket, as under systemd.
#[test]
fn an_access_log_at_a_socket_is_an_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["/dev/stdout", "/proc/self/fd/1"] {
        let more = format!("[access-log]\nformat = \"combined\"\nfile = \"{path}\"\n");
        std::fs::write(folder.path().join("plugway.toml"), manifest(&says("a"), "", &more)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = plugway();
        command.args(["run", "plugway.toml"]).current_dir(folder.path()).stdout(std::os::fd::OwnedFd::from(theirs));
        let ended = command.stderr(Stdio::piped()).output().unwrap();
        drop(ours);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && said.contains("plugway.toml"), "{said}");
        assert!(said.contains("it is a socket here, as under systemd; leave `file` out"), "{said}");
    }
}

const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\n";

/// Returns a manifest with an admin listener whose clients have little time for a head.
fn hasty(origin: &str, plugins: &str, more: &str) -> String {
    let listener = "address = \"127.0.0.1:0\"\nlimits = { head-timeout = \"300ms\" }\n";
    let text = manifest(origin, plugins, &format!("{ADMIN}{more}"));
    // The listener's is the first address.
    text.replacen("address = \"127.0.0.1:0\"\n", listener, 1)
}

/// Starts an origin with one answer.
fn says(body: &'static str) -> String {
    origin(move |_| ok(body))
}

/// Checks that requests, timeouts and reloads by signal and by command work.
fn serves(proxy: &Proxy, text: &str) {
    until("a good response", || proxy.get("/", "").status() == 200);
    times_out(proxy);
    let (old, new) = (says("by signal"), says("by order"));
    let endpoint = text.lines().find(|line| line.starts_with("endpoints")).unwrap();
    let with = |origin: &str| text.replace(endpoint, &format!("endpoints = [{origin:?}]"));
    proxy.reload(&with(&old));
    until("the reload by signal", || proxy.get("/", "").text() == "by signal");
    std::fs::write(proxy.folder.path().join("plugway.toml"), with(&new)).unwrap();
    // The watch of files may have been earlier, which is as well.
    assert_eq!(proxy.ask_admin("POST /reload").status(), 200);
    until("the reload by order", || proxy.get("/", "").text() == "by order");
    times_out(proxy);
}

/// Checks that a client whose head doesn't arrive is disconnected.
fn times_out(proxy: &Proxy) {
    let mut slow = proxy.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
    let (began, mut answer) = (Instant::now(), String::new());
    let _ = slow.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 408 ") && began.elapsed() < PATIENCE, "{answer}");
}

/// Checks that the proxy ends in time and without a failure.
fn ends(proxy: &mut Proxy) {
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(), Some(0));
}

/// Fills the log queue of a proxy whose log has no reader, by long messages about a manifest.
fn fill_log(proxy: &Proxy, text: &str) {
    let routes: String =
        (0..300).map(|number| format!("[[route]]\npath = \"/{number}\"\nupstream = \"nowhere\"\n")).collect();
    std::fs::write(proxy.folder.path().join("plugway.toml"), format!("{text}{routes}")).unwrap();
    until("the log is full", || {
        assert_eq!(proxy.ask_admin("POST /reload").status(), 422);
        proxy.metric("plugway_log_dropped_total") > 2.0
    });
}

// === The process log ===

#[test]
fn a_log_whose_reader_is_gone_stops_nothing() {
    let text = hasty(&echo(), "", "");
    let (mut proxy, stderr) = Proxy::start_unread(plugway(), &text);
    drop(stderr);
    serves(&proxy, &text);
    assert!(proxy.metric("plugway_log_dropped_total") > 0.0);
    ends(&mut proxy);
}

#[test]
fn a_log_that_nobody_reads_stops_nothing_and_tells_what_it_lost() {
    let text = hasty(&echo(), "", "");
    let (mut proxy, stderr) = Proxy::start_unread(plugway(), &text);
    let before = proxy.memory_kib();
    fill_log(&proxy, &text);
    serves(&proxy, &text);
    assert!(proxy.memory_kib() < before + 32 * 1024, "{} KiB after {before}", proxy.memory_kib());
    let mut lines = stderr.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("log lines dropped lines=")));
    let reading = std::thread::spawn(move || lines.filter(|line| line.contains("plugway::server: stopping")).count());
    ends(&mut proxy);
    assert_eq!(reading.join().unwrap(), 1);
}

#[test]
fn a_log_that_stays_full_does_not_hold_the_end_up() {
    let text = hasty(&echo(), "", "");
    let (mut proxy, _stderr) = Proxy::start_unread(plugway(), &text);
    fill_log(&proxy, &text);
    ends(&mut proxy);
}

#[test]
fn a_full_disk_under_the_log_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let text = manifest(&says("first"), "", "").replace("127.0.0.1:0", &format!("unix:{}", socket.display()));
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, &text).unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut child = plugway().arg("run").arg(&path).stderr(full).spawn().unwrap();
    until("it listens", || UnixStream::connect(&socket).is_ok());
    let get = || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        read_message(&mut BufReader::new(stream)).unwrap().text()
    };
    assert_eq!(get(), "first");
    let endpoint = text.lines().find(|line| line.starts_with("endpoints")).unwrap();
    std::fs::write(&path, text.replace(endpoint, &format!("endpoints = [{:?}]", says("second")))).unwrap();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
    };
    signal("HUP");
    until("the reload", || get() == "second");
    signal("TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn commands_fail_without_a_panic_where_their_output_goes_nowhere() {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for args in [&["inspect", "headers"][..], &["completions", "bash"], &["demo", "--listen", "127.0.0.1:0"]] {
        let ended = plugway().args(args).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        let error = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.code() == Some(1) && !error.contains("panic"), "{args:?}: {:?} {error}", ended.status);
    }
    let ended = plugway().args(["check", "/nowhere.toml"]).stderr(full()).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
}

#[test]
fn an_unreadable_filter_is_told_of_and_the_default_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, manifest("127.0.0.1:9", "", "")).unwrap();
    let checked = |filter: &str| {
        let (code, error) = outcome(plugway().arg("check").arg(&path).env("PLUGWAY_LOG", filter));
        assert_eq!(code, Some(0), "{error}");
        error
    };
    for (filter, wanted) in [
        ("info,plugway=debgu", "expected a level such as `debug`"),
        ("debgu", "did you mean `debug`?"),
        ("INFO,wran", "did you mean `warn`?"),
        ("warning", "unknown level `warning`"),
        ("info;debug", "unknown level `info;debug`"),
        ("verbose", "unknown level `verbose`"),
    ] {
        let error = checked(filter);
        let is_told = error.contains("invalid PLUGWAY_LOG; the default is used") && error.contains(wanted);
        assert!(is_told && error.contains(filter), "{filter}: {error}");
    }
    let valid =
        ["", "debug", " WARN ", "3", "info,plugway=debug", "off", "plugway", "warn,h2=trace,plugway::upstream=info"];
    for filter in valid {
        assert!(!checked(filter).contains("PLUGWAY_LOG"), "{filter}");
    }
}

#[test]
fn no_line_of_the_log_can_be_forged() {
    let more = format!("[plugin.noisy]\nuse = {NOISY:?}\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""noisy""#, &more));
    for noise in ["log", "print", "fail", "trap"] {
        proxy.get("/", &format!("\r\nX-Noise: {noise}"));
    }
    proxy.reload(&manifest(&echo(), r#""noisy""#, &format!("{more}config.refuse = true\n")));
    let mut lines = vec![proxy.wait_log("begin")];
    lines.extend(proxy.log_until("not reloaded", || ()));
    lines.push(proxy.wait_log("forged"));
    let text = lines.join("\n");
    for line in &lines {
        assert!(!line.starts_with("2026-01-01T00:00:00Z ERROR forged"), "{text}");
        assert!(line.chars().all(|one| !one.is_control() && !"\u{202e}\u{2066}\u{2028}".contains(one)), "{line:?}");
    }
    assert!(text.matches("forged").count() >= 5, "{text}");
}

// === Plugins ===

/// Returns all lines of the log from now on, until none arrives for a second, with the seconds that took.
fn read_lines(stderr: BufReader<std::process::ChildStderr>, mut proxy: Proxy) -> Vec<String> {
    let reading = std::thread::spawn(move || stderr.lines().map_while(Result::ok).collect::<Vec<_>>());
    ends(&mut proxy);
    reading.join().unwrap()
}

/// Bytes and lines that a plugin may log in this time, with some for a second that had begun.
fn allowed(began: Instant) -> (usize, usize) {
    let seconds = began.elapsed().as_secs() as usize + 2;
    (seconds * (64 << 10) * 2, seconds * 100)
}

#[test]
fn lines_are_limited_for_all_instances_of_a_plugin_together() {
    let more = format!("{ADMIN}[plugin.noisy]\nuse = {NOISY:?}\nisolation = \"request\"\n");
    for (noise, requests) in [("lines", 300), ("long", 30)] {
        let (proxy, stderr) = Proxy::start_unread(plugway(), &manifest(&echo(), r#""noisy""#, &more));
        let began = Instant::now();
        (0..requests).for_each(|_| drop(proxy.get("/", &format!("\r\nX-Noise: {noise}"))));
        let (bytes, max) = allowed(began);
        assert!(
            proxy.metric("plugway_plugin_log_dropped_total{plugin=\"noisy\"}")
                >= (requests * 10usize).saturating_sub(max) as f64
        );
        let lines: Vec<String> = read_lines(stderr, proxy).into_iter().filter(|line| line.contains("noise")).collect();
        assert!(lines.len() <= max && lines.iter().map(String::len).sum::<usize>() <= bytes, "{}", lines.len());
        assert!(lines.iter().all(|line| line.len() < 5000));
    }
}

#[test]
fn lines_left_out_are_counted_once_for_all_routes_of_a_plugin() {
    let plugin = format!("{{ use = {NOISY:?} }}");
    let more = format!("{ADMIN}[[route]]\npath = \"/b\"\nupstream = \"app\"\nplugins = [{plugin}]\n");
    let (proxy, stderr) = Proxy::start_unread(plugway(), &manifest(&echo(), &plugin, &more));
    (0..30).for_each(|_| drop(proxy.get("/", "\r\nX-Noise: lines")));
    let dropped = proxy.metric(&format!("plugway_plugin_log_dropped_total{{plugin={NOISY:?}}}"));
    let lines = read_lines(stderr, proxy).into_iter().filter(|line| line.contains("noise")).count();
    assert_eq!(dropped as usize + lines, 300, "{dropped} dropped");
}

#[test]
fn lines_left_out_are_counted_though_no_more_come() {
    let more = format!("{ADMIN}[plugin.noisy]\nuse = {NOISY:?}\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""noisy""#, &more));
    (0..30).for_each(|_| drop(proxy.get("/", "\r\nX-Noise: lines")));
    assert!(proxy.wait_log("plugin lines left out").contains("plugin=\"noisy\" left_out="));
}

#[test]
fn traps_are_one_line_each_and_under_the_same_limit() {
    let more = format!("{ADMIN}[plugin.noisy]\nuse = {NOISY:?}\n");
    let (proxy, stderr) = Proxy::start_unread(plugway(), &manifest(&echo(), r#""noisy""#, &more));
    let began = Instant::now();
    (0..500).for_each(|_| assert_eq!(proxy.get("/", "\r\nX-Noise: silent-trap").status(), 502));
    let (bytes, max) = allowed(began);
    let lines = read_lines(stderr, proxy);
    assert!(lines.iter().map(String::len).sum::<usize>() <= bytes + 4096);
    let failed: Vec<&String> = lines.iter().filter(|line| line.contains("plugin failed")).collect();
    assert!((100..=max).contains(&failed.len()), "{}", failed.len());
    let with_frames = failed.iter().filter(|line| line.contains("frames="));
    assert_eq!(with_frames.count(), 1 + began.elapsed().as_secs() as usize / 60);
    let first = failed[0];
    assert!(first.contains("plugin failed reason=\"wasm trap: wasm `unreachable` instruction executed\""), "{first}");
}

#[test]
fn a_failure_names_limit_exchange_plugin_and_hook() {
    let more =
        format!("[plugin.bad]\nuse = {MISBEHAVE:?}\nlimits = {{ cpu = \"100ms\", memory = \"4 MiB\", share = 100 }}\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""bad""#, &more).replace("[[route]]", "[[route]]\nname = \"front\""));
    for (how, reason) in [
        ("spin", "limits.cpu of 100 ms exceeded"),
        ("eat", "limits.memory of 4 MiB exceeded"),
        ("give-up", "it gave up: told to give up"),
        ("malformed-name", "it asked for an edit that is refused"),
    ] {
        let harmed = proxy.get("/", &format!("\r\nX-Misbehave: {how}"));
        let id = harmed.text().lines().last().unwrap().trim_start_matches("request ").to_string();
        let line = proxy.wait_log("plugin failed");
        assert!(line.contains(&format!("plugin failed reason=\"{reason}")), "{line}");
        assert!(line.contains(&format!("request_id={id:?} route=\"front\" plugin=\"bad\" version=\"0.1.0 ")), "{line}");
        assert!(line.contains("hook=\"request-filter\""), "{line}");
    }
}

// === The access log ===

#[test]
fn an_access_log_that_nobody_reads_costs_nothing_but_lines() {
    let mut command = plugway();
    command.stdout(Stdio::piped());
    let more = "[access-log]\nformat = \"json\"\n";
    let (mut proxy, _stderr) = Proxy::start_unread(command, &hasty(&echo(), "", more));
    let stdout = proxy.take_stdout();
    let before = proxy.memory_kib();
    let long = format!("\r\nUser-Agent: {}\r\nReferer: {}", "u".repeat(8_000), "r".repeat(8_000));
    until("the queue is full", || {
        (0..100).for_each(|_| assert_eq!(proxy.get(&format!("/{}", "t".repeat(6_000)), &long).status(), 200));
        proxy.metric("plugway_access_log_dropped_total") > 1000.0
    });
    times_out(&proxy);
    assert!(proxy.memory_kib() < before + 32 * 1024, "{} KiB after {before}", proxy.memory_kib());
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.len() < 12_000 && line.contains("u...\""), "{}", line.len());
    ends(&mut proxy);
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_fifo_as_access_log_waits_for_no_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    fifo(&path);
    let more = format!("[access-log]\nformat = \"json\"\nfile = {path:?}\n");
    let text = hasty(&echo(), "", &more);
    let (mut proxy, stderr) = Proxy::start_unread(plugway(), &text);
    // A reader that comes late gets what the pipe holds.
    proxy.get("/early", "");
    let mut reader = BufReader::new(File::open(&path).unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains("/early"), "{line}");
    drop(reader);
    let fill = |proxy: &Proxy| {
        let before = proxy.metric("plugway_access_log_dropped_total");
        until("the pipe and the queue are full", || {
            (0..100).for_each(|_| drop(proxy.get(&format!("/{}", "t".repeat(6_000)), "")));
            proxy.metric("plugway_access_log_dropped_total") > before
        });
    };
    fill(&proxy);
    // The order to open another file is not lost with the queue full, and doesn't wait for a reader.
    std::fs::rename(&path, folder.path().join("moved")).unwrap();
    proxy.signal("USR1");
    until("the file is opened again", || path.exists());
    until("lines come again", || {
        proxy.get("/after", "");
        std::fs::read_to_string(&path).unwrap().contains("/after")
    });
    std::fs::remove_file(&path).unwrap();
    fifo(&path);
    proxy.signal("USR1");
    fill(&proxy);
    ends(&mut proxy);
    let told = stderr.lines().map_while(Result::ok).filter(|line| line.contains("access log can't be"));
    assert!(told.count() <= 2);
}

#[test]
fn the_last_lines_of_the_access_log_are_written_at_the_end() {
    let more = "[access-log]\nformat = \"combined\"\nfile = \"access.log\"\n";
    let mut proxy = Proxy::start(&manifest(&echo(), "", more));
    (0..200).for_each(|number| drop(proxy.get(&format!("/{number}"), "")));
    ends(&mut proxy);
    let lines = std::fs::read_to_string(proxy.folder.path().join("access.log")).unwrap();
    assert_eq!(lines.lines().count(), 200);
}

#[test]
fn an_access_log_on_a_full_disk_is_reported_once() {
    let more = "[access-log]\nformat = \"combined\"\nfile = \"/dev/full\"\n";
    let (mut proxy, stderr) = Proxy::start_unread(plugway(), &hasty(&echo(), "", more));
    (0..200).for_each(|_| assert_eq!(proxy.get("/", "").status(), 200));
    until("the lines are counted", || proxy.metric("plugway_access_log_dropped_total") >= 200.0);
    ends(&mut proxy);
    let told = stderr.lines().map_while(Result::ok).filter(|line| line.contains("access log can't be written"));
    assert!((1..=2).contains(&told.count()));
}

// === Panics ===

/// Starts a proxy in which a task panics once, in a turn.
fn panicking(task: &str, text: &str) -> Proxy {
    let mut command = plugway();
    command.env("PLUGWAY_TEST_PANIC", task);
    let (proxy, mut stderr) = Proxy::start_unread(command, text);
    // The log has a reader from here on.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    proxy
}

fn panicked(proxy: &Proxy, task: &str) -> bool {
    proxy.metric(&format!("plugway_panics_total{{task=\"{task}\"}}")) >= 1.0
}

/// Waits for the panic, which requests may have to trigger; then checks that all works.
fn survives(task: &str, turn: u32, text: &str) {
    let mut proxy = panicking(&format!("{task}:{turn}"), text);
    until(&format!("a panic in {task}"), || {
        let mut stream = proxy.connect();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let _: Option<Message> = read_message(&mut BufReader::new(stream));
        panicked(&proxy, task)
    });
    serves(&proxy, text);
    ends(&mut proxy);
}

#[test]
fn a_panic_in_a_task_of_a_worker_ends_one_turn() {
    for (task, turn) in
        [("tick", 5), ("timer", 5), ("accept", 1), ("connection", 1), ("plugin-clock", 5), ("log", 1), ("turns", 1)]
    {
        survives(task, turn, &hasty(&echo(), "", ""));
    }
}

#[test]
fn a_panic_in_the_sweep_ends_one_turn() {
    survives("sweep", 1, &hasty(&echo(), "", ""));
}

#[test]
fn a_panic_in_a_task_of_an_upstream_ends_one_turn() {
    let checked = "[upstream.app.health]\npath = \"/\"\ninterval = \"100ms\"\n";
    survives("health-check", 2, &hasty(&echo(), "", checked));
    survives("upstream-tick", 3, &hasty(&echo(), "", ""));
    let origin = echo();
    let by_name = format!("[{{ dns = \"{}\" }}]", origin.replace("127.0.0.1", "localhost"));
    survives("lookup", 1, &hasty(&origin, "", "").replace(&format!("[{origin:?}]"), &by_name));
}

#[test]
fn a_panic_in_the_access_log_loses_its_lines_only() {
    survives("access-log", 1, &hasty(&echo(), "", "[access-log]\nformat = \"json\"\n"));
}

#[test]
fn a_panic_of_the_cache_ends_one_job() {
    let stored = origin(|_| b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok".to_vec());
    for (task, turn) in [("cache-scan", 1), ("cache-writer", 1), ("cache-fill", 1)] {
        let folder = tempfile::tempdir().unwrap();
        let disk = format!("[cache]\ndisk = {{ path = {:?}, size = \"64 MiB\" }}\n", folder.path());
        let text = hasty(&stored, r#""cache""#, &disk);
        let mut proxy = panicking(&format!("{task}:{turn}"), &text);
        let mut number = 0;
        until(&format!("a panic in {task}"), || {
            number += 1;
            let mut stream = proxy.connect();
            write!(stream, "GET /{number} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            let _: Option<Message> = read_message(&mut BufReader::new(stream));
            panicked(&proxy, task)
        });
        assert_eq!(proxy.get("/after", "").text(), "ok");
        assert_eq!(proxy.ask_admin("POST /purge?all").status(), 200, "purges wait for the search");
        ends(&mut proxy);
    }
}

#[test]
fn a_panic_in_a_reload_leaves_the_old_manifest_in_service() {
    for (task, turn) in [("reload", 1), ("manifest", 3), ("assemble", 2), ("swap", 3)] {
        let text = hasty(&says("old"), "", "");
        let proxy = panicking(&format!("{task}:{turn}"), &text);
        let refused = proxy.ask_admin("POST /reload");
        assert!(refused.status() == 422 && refused.text().contains("panic"), "{task}: {refused:?}");
        assert_eq!(proxy.get("/", "").text(), "old");
        assert!(panicked(&proxy, task));
        serves(&proxy, &text);
    }
}

#[test]
fn a_panic_in_an_order_of_the_admin_listener_is_answered() {
    let text = hasty(&echo(), "", "");
    let proxy = panicking("admin:1", &text);
    assert_eq!(proxy.ask_admin("GET /status").status(), 500);
    assert!(panicked(&proxy, "admin"));
    serves(&proxy, &text);
}

#[test]
fn a_panic_in_a_stream_ends_that_stream() {
    let text = hasty(&says("over http/2"), "", "");
    let proxy = panicking("stream:1", &text);
    let url = format!("http://{}/", proxy.address);
    let curl = || output(Command::new("curl").args(["-sS", "--http2-prior-knowledge", &url]));
    assert!(!curl().contains("over http/2"));
    assert!(panicked(&proxy, "stream"));
    assert_eq!(curl(), "over http/2");
}

#[test]
fn a_panic_of_the_control_thread_ends_one_turn() {
    // At once, and after the first order: the first look at certificates is a turn too.
    for turn in [1, 3] {
        let text = hasty(&slow(), "", "");
        let mut proxy = panicking(&format!("control:{turn}"), &text);
        until("a panic in control", || {
            let _ = proxy.ask_admin("POST /reload");
            panicked(&proxy, "control")
        });
        serves(&proxy, &text);
        proxy.reload(&text);
        until("the slow origin again", || proxy.get("/", "").text() == "whole");
        let clients = asking(&proxy);
        proxy.signal("TERM");
        assert_eq!(clients.filter(|answer| answer.text() == "whole").count(), 16, "{turn}");
        assert_eq!(proxy.wait_exit(), Some(0), "{turn}");
    }
}

#[test]
fn a_panic_at_the_stop_cuts_nothing_off() {
    // As listeners are closed, and as exchanges are waited for.
    for turn in [1, 2] {
        let mut proxy = panicking(&format!("drain:{turn}"), &hasty(&slow(), "", ""));
        let clients = asking(&proxy);
        proxy.signal("TERM");
        assert_eq!(clients.filter(|answer| answer.text() == "whole").count(), 16, "{turn}");
        assert_eq!(proxy.wait_exit(), Some(0), "{turn}");
    }
}

/// The answers to 16 clients, whose requests were sent when this returns.
fn asking(proxy: &Proxy) -> impl Iterator<Item = Message> + use<> {
    let mut under_way: Vec<_> = (0..16).map(|_| proxy.connect()).collect();
    for stream in &mut under_way {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    }
    under_way.into_iter().filter_map(|stream| read_message(&mut BufReader::new(stream)))
}

/// An origin that takes its time.
fn slow() -> String {
    origin(|_| {
        // The subject: an exchange that is under way.
        std::thread::sleep(Duration::from_millis(700));
        ok("whole")
    })
}

#[test]
fn a_worker_that_ends_ends_the_process_in_order() {
    let text = hasty(&slow(), "", "");
    // Two workers begin and have a turn for each listener; the fifth turn is the first for a second listener.
    let mut proxy = panicking("worker:5", &text);
    let under_way = asking(&proxy);
    let socket = proxy.folder.path().join("socket");
    proxy.reload(&format!("{text}[[listener]]\naddress = \"unix:{}\"\n", socket.display()));
    let whole = under_way.filter(|answer| answer.text() == "whole").count();
    assert_eq!(proxy.wait_exit(), Some(1));
    assert!(whole > 0, "those of the other worker end well");
}

/// Writes to a pipe until it accepts no more.
fn fill(mut pipe: &std::io::PipeWriter) {
    rustix::fs::fcntl_setfl(pipe, rustix::fs::OFlags::NONBLOCK).unwrap();
    while pipe.write(&[b'x'; 1024]).is_ok() {}
    rustix::fs::fcntl_setfl(pipe, rustix::fs::OFlags::empty()).unwrap();
}

#[test]
fn an_error_at_the_end_waits_for_no_reader() {
    let (code, error) = run(&["run", "/nowhere/plugway.toml"]);
    assert!(code == Some(1) && error.contains("/nowhere/plugway.toml"), "{error}");
    // As much as a pipe takes, so that nothing more fits.
    let (_reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    let mut child = plugway().args(["run", "/nowhere/plugway.toml"]).stderr(writer).spawn().unwrap();
    let mut ended = None;
    until("it ends", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(1));
}
