//! The bounds of what a plugin declares, returns and asks for: what exceeds one is an error of the manifest, or costs its
//! own request and nothing else.

use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use plugway_test_guests::{GREEDY, POLICY};

use crate::http2::{END_HEADERS, END_STREAM, HEADERS, Raw, SETTINGS};
use crate::http2_endpoint::head;
use crate::support::{Message, PATIENCE, Proxy, echo, manifest, ok, origin, plugway, raw_origin, read_message, until};

/// Returns a manifest with the greedy plugin in its chain. The plugin's use of a worker's time is not the subject.
fn greedy(origin: &str, table: &str) -> String {
    manifest(origin, r#""greedy""#, &format!("[plugin.greedy]\nuse = {GREEDY:?}\nlimits.share = 100\n{table}\n"))
}

/// Returns the errors of a manifest.
fn check(folder: &Path, manifest: &str) -> String {
    std::fs::write(folder.join("plugway.toml"), manifest).unwrap();
    let output = plugway().args(["check", "plugway.toml"]).current_dir(folder).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("plugway.toml:"), "the place is named: {error}");
    error
}

#[test]
fn declarations_beyond_a_bound_are_errors_of_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    for (declared, why) in [
        ("plans", "the plugin declared 257 plans; at most 256 are allowed"),
        ("edits", "the plugin declared 257 edits of a plan; at most 256 are allowed"),
        ("fields", "the plugin declared 33000 edits of a plan; at most 256 are allowed"),
        ("parts", "65 parts of a template; at most 64 are allowed"),
        ("template-values", "300 values in the templates of a plan; at most 256 are allowed"),
        ("text", "80000 bytes of text in a template; at most 65536 are allowed"),
        ("name", "2000 bytes of a name; at most 1024 are allowed"),
        ("note", "2000 bytes of a name; at most 1024 are allowed"),
        ("declared", "bytes of plans, with 64 for each edit and part of a template; at most 1048576 are allowed"),
        ("response-limit", "a request's limit of content can't be changed here"),
        ("values", "129 values of a hook; at most 128 are allowed"),
        ("observer", "129 values of a hook; at most 128 are allowed"),
        ("body", "129 values of a hook; at most 128 are allowed"),
        ("cookie", "2000 bytes of a name; at most 1024 are allowed"),
        ("errors", "and 49950 more"),
        ("metrics", "TooMany"),
        ("metric-help", "BadName"),
    ] {
        let error = check(folder.path(), &greedy("127.0.0.1:1", &format!("config.declare = {declared:?}")));
        assert!(error.contains(why), "{declared}: {error}");
        assert!(error.len() < 100_000, "{declared}: {} bytes", error.len());
    }
}

#[test]
fn descriptions_beyond_a_bound_are_errors_of_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let component = std::fs::read(GREEDY).unwrap();
    for (mark, why) in [
        ("describe:summary", "2000 bytes of its summary; at most 1024 are allowed"),
        ("describe:schema!", "bytes of a configuration schema; at most 1048576 are allowed"),
        ("describe:nested!", "10000 levels of a configuration schema; at most 64 are allowed"),
        ("describe:values!", "40003 values of a configuration schema; at most 32768 are allowed"),
    ] {
        let modest = b"describe:modest!";
        let at = component.windows(16).position(|bytes| bytes == modest).expect("the mark is in the component");
        let mut other = component.clone();
        other[at..at + 16].copy_from_slice(mark.as_bytes());
        std::fs::write(folder.path().join("other.wasm"), other).unwrap();
        let text = manifest("127.0.0.1:1", r#"{ use = "other.wasm" }"#, "");
        let error = check(folder.path(), &text);
        assert!(error.contains(why), "{mark}: {error}");
    }
}

/// Returns the request that the origin got, or the reason why it got none.
fn ask(proxy: &Proxy, what: &str, fields: &str) -> Message {
    proxy.get("/", &format!("\r\nX-Greedy: {what}{fields}"))
}

#[test]
fn a_call_beyond_a_bound_costs_its_request_only() {
    let proxy = Proxy::start(&greedy(&echo(), "limits.cpu = \"5s\""));
    assert_eq!(proxy.get("/", "").status(), 200);
    let before = proxy.memory_kib();
    let long = format!("\r\nX-Long: {}", "l".repeat(20_000));
    let many = "\r\nX-0: 1".repeat(90);
    for (what, fields, why) in [
        ("expand", "", "51200 edits of a call, with those of its plans; at most 256 are allowed"),
        ("plan-bytes", "", "bytes that plugins add to the head of a request; at most 131072 are allowed"),
        ("template", &*long, "bytes of a filled template; at most 65536 are allowed"),
        ("mixed", &*long, "bytes of a filled template; at most 65536 are allowed"),
        ("chained", "\r\nX-C: double", "are allowed"),
        ("plan-notes", "", "bytes of notes; at most 131072 are allowed"),
        ("renames", &*many, "field lines that the renames of a call may move; at most 16384 are allowed"),
        ("value", "", "70000 bytes of a value; at most 65536 are allowed"),
        ("name", "", "2000 bytes of a name; at most 1024 are allowed"),
        ("path", "", "70001 bytes of a path or query; at most 65536 are allowed"),
        ("authority", "", "2000 bytes of a name; at most 1024 are allowed"),
        ("upstream", "", "1000000 bytes of a name; at most 1024 are allowed"),
        ("method", "", "2000 bytes of a name; at most 1024 are allowed"),
        ("note", "", "2000 bytes of a name; at most 1024 are allowed"),
        ("bytes", "", "bytes that plugins add to the head of a request; at most 131072 are allowed"),
        ("respond-body", "", "4194305 bytes of a response's body; at most 4194304 are allowed"),
        ("respond-fields", "", "257 fields; at most 256 are allowed"),
        ("respond-bytes", "", "bytes of fields; at most 262144 are allowed"),
        ("reason", "", "x..."),
    ] {
        let refused = ask(&proxy, what, fields);
        let answer = (refused.status(), refused.field("proxy-status"));
        assert_eq!(answer, (502, Some("plugway; error=plugin_error")), "{what}");
        let line = proxy.wait_log("plugin failed");
        assert!(line.contains(why) && line.len() < 6_000, "{what}: {line}");
        assert_eq!(proxy.get("/", "").status(), 200, "after {what}");
    }
    assert!(proxy.memory_kib() < before + 64 * 1024, "{} KiB before, {} after", before, proxy.memory_kib());
    // What is within the bounds is carried out.
    assert_eq!(ask(&proxy, "renames", "\r\nX-0: 1").status(), 200);
    assert!(ask(&proxy, "template", "\r\nX-Long: ab").text().contains(&format!("x-b: {}\n", "ab".repeat(64))));
}

#[test]
fn edits_that_exceed_a_bound_change_nothing() {
    let proxy = Proxy::start(&greedy(&echo(), "on-error = \"skip\"\nlimits.cpu = \"5s\""));
    let long = format!("\r\nX-Long: {}", "l".repeat(20_000));
    for (what, fields) in [("template", &*long), ("mixed", &*long), ("chained", "\r\nX-C: double"), ("plan-bytes", "")]
    {
        let passed = ask(&proxy, what, fields);
        assert_eq!(passed.status(), 200, "{what}");
        let got = passed.text();
        for added in ["x-a: ", "x-b: ", "x-mixed: "] {
            assert!(!got.contains(added), "{what} left {added}");
        }
        assert!(what != "chained" || got.contains("x-c: double\n"), "{got}");
    }
}

#[test]
fn a_chain_of_plugins_adds_so_many_fields_and_no_more() {
    let more = format!("[plugin.greedy]\nuse = {GREEDY:?}\nlimits.share = 100\n");
    for (plugins, status) in [(5, 200), (6, 502)] {
        let chain = vec![r#""greedy""#; plugins].join(", ");
        let proxy = Proxy::start(&manifest(&echo(), &chain, &more));
        assert_eq!(ask(&proxy, "fill-up", "").status(), status, "{plugins} plugins with 200 fields each");
    }
}

#[test]
fn calls_of_the_host_are_bounded() {
    let proxy = Proxy::start(&greedy(&echo(), "limits.cpu = \"5s\""));
    assert_eq!(proxy.get("/", "").status(), 200);
    let before = proxy.memory_kib();
    for what in ["random", "insecure", "zeroes", "write", "blocking-write", "log", "pollables", "streams", "poll"] {
        assert_eq!(ask(&proxy, what, "").status(), 502, "{what}");
        assert_eq!(proxy.get("/", "").status(), 200, "after {what}");
    }
    assert_eq!(ask(&proxy, "hoard", "").status(), 502);
    proxy.wait_log("it handed over more data in one call than 5 MiB, or its `limits.memory`, allow");
    for what in ["some-pollables", "read"] {
        assert_eq!(ask(&proxy, what, "").status(), 200, "{what}");
    }
    for (what, answer) in [("splice", "false"), ("long-value", "false"), ("define", "TooMany")] {
        let got = ask(&proxy, what, "").text();
        assert!(got.lines().any(|line| line.starts_with("x-answer: ") && line.contains(answer)), "{what}: {got}");
    }
    assert!(proxy.memory_kib() < before + 64 * 1024, "{} KiB before, {} after", before, proxy.memory_kib());
}

#[test]
fn a_loop_of_host_calls_ends_at_its_limit() {
    for what in ["fields-loop", "random-loop", "write-loop", "log-loop"] {
        // One each: three late calls open the plugin's breaker.
        let proxy = Proxy::start(&greedy(&echo(), ""));
        let began = Instant::now();
        assert_eq!(ask(&proxy, what, "").status(), 502, "{what}");
        // The limit is 50 ms; a busy machine may take long to give the thread its time.
        assert!(began.elapsed() < Duration::from_secs(10), "{what}: {:?}", began.elapsed());
        assert_eq!(proxy.get("/", "").status(), 200, "after {what}");
    }
}

#[test]
fn a_balancer_declares_and_asks_for_so_much() {
    let with = |table: &str| {
        let more = format!("[plugin.greedy]\nuse = {GREEDY:?}\n{table}\n");
        let origins = format!("{:?}, {:?}", echo(), echo());
        let text = manifest("ORIGIN", "", &more).replace("\"ORIGIN\"", &origins);
        text.replace("[[route]]", "balancer = \"greedy\"\n[[route]]")
    };
    let proxy = Proxy::start(&with("config.response_edits = 258"));
    assert_eq!(proxy.get("/", "").status(), 200, "256 plans, and one for each endpoint");
    assert_eq!(ask(&proxy, "in-flight-counts", "").status(), 502);
    assert_eq!(proxy.get("/", "").status(), 200);
    let (code, error) = crate::support::run(&["run", &{
        let path = proxy.folder.path().join("greedy.toml");
        std::fs::write(&path, with("config.response_edits = 259")).unwrap();
        path.display().to_string()
    }]);
    assert!(code == Some(1) && error.contains("259 plans for responses"), "{error}");
}

/// Returns the lines of the metrics that contain a name.
fn metrics(proxy: &Proxy, name: &str) -> Vec<String> {
    let text = proxy.ask_admin("GET /metrics").text();
    text.lines().filter(|line| line.contains(name)).map(String::from).collect()
}

#[test]
fn metrics_are_those_of_the_first_instance_and_gone_with_the_plugin() {
    let address = "[admin]\naddress = \"127.0.0.1:0\"\n";
    let table = format!("isolation = \"request\"\nconfig.declare = \"metric-names\"\n{address}");
    let proxy = Proxy::start_after(&greedy(&echo(), &table), "admin at");
    for _ in 0..50 {
        assert_eq!(proxy.get("/", "").status(), 200);
    }
    let custom = metrics(&proxy, "plugway_plugin_counter{");
    assert_eq!(custom.len(), 1, "{custom:?}");
    assert!(!metrics(&proxy, "plugin=\"greedy\"").is_empty());
    let route = "route=\"named-route\"";
    assert!(metrics(&proxy, route).is_empty());
    let named = manifest(&echo(), "", address).replace("[[route]]", "[[route]]\nname = \"named-route\"");
    proxy.reload(&named);
    until("the plugin's metrics are gone", || metrics(&proxy, "plugin=\"greedy\"").is_empty());
    assert!(!metrics(&proxy, route).is_empty());
    proxy.reload(&manifest(&echo(), "", address));
    until("the route's metrics are gone", || metrics(&proxy, route).is_empty());
}

#[test]
fn a_body_that_a_plugin_makes_longer_waits_for_its_client() {
    const PUSHED: usize = 8 << 20;
    let drip = raw_origin(|mut stream| {
        let _ = read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..200 {
            let _ = stream.write_all(b"1\r\nx\r\n");
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    });
    let table = format!("config.amplify = {PUSHED}\nlimits.cpu = \"5s\"");
    let proxy = Proxy::start(&greedy(&drip, &table));
    let before = proxy.memory_kib();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    // The subject: a client that takes nothing for a while. All 200 pieces would be 1.6 GB.
    std::thread::sleep(Duration::from_secs(1));
    let growth = proxy.memory_kib().saturating_sub(before);
    assert!(growth < 96 * 1024, "{growth} KiB");
}

#[test]
fn trailers_are_bounded() {
    let trailing = raw_origin(|mut stream| {
        let _ = read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
        let _ = stream.write_all(&[&head[..], b"1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n"].concat());
    });
    let proxy = Proxy::start(&greedy(&trailing, ""));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close\r\n\r\n").unwrap();
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    let got = String::from_utf8_lossy(&got);
    assert!(got.starts_with("HTTP/1.1 200") && !got.contains("x-256") && !got.ends_with("0\r\n\r\n"), "{got}");
    proxy.wait_log("257 fields; at most 256 are allowed");
}

#[test]
fn results_of_a_cache_policy_are_bounded() {
    let stored = origin(|_| b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 1\r\n\r\n1".to_vec());
    let proxy = Proxy::start(&manifest(&stored, &format!("{{ use = {POLICY:?} }}"), ""));
    for (path, how, why) in [
        ("/a", "many-tags", "300 tags of a stored response; at most 256 are allowed"),
        ("/b", "long-tag", "2000 bytes of a name; at most 1024 are allowed"),
        ("/c", "many-vary", "300 names of `vary`; at most 256 are allowed"),
        ("/d", "many-names", "10000 fields to drop; at most 256 are allowed"),
        ("/e", "long-refusal", "200 bytes of a cache policy's reason; at most 128 are allowed"),
        ("/f", "long-bypass", "200 bytes of a cache policy's reason; at most 128 are allowed"),
    ] {
        assert_eq!(proxy.get(path, &format!("\r\nX-Misbehave: {how}")).status(), 502, "{how}");
        proxy.wait_log(why);
    }
    for (how, why) in [("many-keys", "300 keys that a change concerns"), ("long-keys", "9216 bytes of a key")] {
        let post = format!("POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\nX-Misbehave: {how}");
        assert_eq!(proxy.exchange(&post).status(), 200, "{how}: what it changed is done already");
        proxy.wait_log(why);
    }
}

/// The names of fields that a policy lists count against the memory of the cache, like everything that is stored.
#[test]
fn long_names_that_a_cache_policy_lists_take_no_more_than_the_memory_of_the_cache() {
    let stored = origin(|_| b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 1\r\n\r\n1".to_vec());
    let text = manifest(&stored, &format!("{{ use = {POLICY:?} }}"), "[cache]\nmemory = \"16 MiB\"\n");
    let proxy = Proxy::start(&text);
    let fill = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            let got = proxy.get(&format!("/{number}"), "\r\nX-Misbehave: long-names");
            assert!(got.field("cache-status").is_some_and(|report| report.contains("stored")), "{}", got.start);
        }
    };
    fill(0..50);
    let before = proxy.memory_kib();
    // Each response has 256 KiB of names.
    fill(50..600);
    assert!(proxy.memory_kib() < before + 48 * 1024, "{} KiB before, {} after", before, proxy.memory_kib());
}

#[test]
fn the_sdk_repeats_the_bounds_of_the_host() {
    let constants = |text: &'static str| -> Vec<&'static str> {
        text.lines().filter(|line| line.starts_with("pub const ")).collect()
    };
    let host = constants(include_str!("../host/src/context/bounds.rs"));
    let sdk = constants(include_str!("../sdk/src/bounds.rs"));
    assert!(sdk.len() > 20);
    for constant in sdk {
        assert!(host.contains(&constant), "the host doesn't have `{constant}`");
    }
}

/// Many streams of one connection with HTTP/2 or HTTP/1: a panic would take them all along.
#[test]
fn the_connection_survives_what_one_request_is_refused_for() {
    let proxy = Proxy::start(&greedy(&origin(|_| ok("served")), ""));
    let mut stream = proxy.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for what in ["expand", "nothing", "respond-fields", "nothing", "plan-bytes", "nothing"] {
        write!(stream, "GET / HTTP/1.1\r\nHost: a\r\nX-Greedy: {what}\r\n\r\n").unwrap();
        let status = read_message(&mut reader).unwrap().status();
        assert_eq!(status, if what == "nothing" { 200 } else { 502 }, "{what}");
    }
}

#[test]
fn responses_of_plugins_that_no_client_reads_are_bounded_for_each_connection() {
    const STREAMS: u32 = 64;
    let proxy = Proxy::start(&greedy(&echo(), "").replace("workers = 2", "workers = 1"));
    assert_eq!(ask(&proxy, "respond-long", "").status(), 200);
    let before = proxy.memory_kib();
    let request = head(&[0x82, 0x86, 0x84, 0x41, 1, b'a'], &[("x-greedy", "respond-long")]);
    let mut client = Raw::connect(&proxy);
    // No stream has a window.
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for number in 0..STREAMS {
        client.send(HEADERS, END_STREAM | END_HEADERS, 1 + 2 * number, &request);
    }
    let mut heads = Vec::new();
    while heads.len() < STREAMS as usize {
        heads.push(client.until(|frame| frame.kind == HEADERS).payload[0]);
    }
    // Two of 600 kB are more than 1 MiB.
    assert_eq!(heads.iter().filter(|first| **first == 0x88).count(), 1);
    proxy.wait_log("limits.buffer");
    let grown = proxy.memory_kib().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB");
    assert_eq!(ask(&proxy, "respond-long", "").status(), 200, "another connection is served");
}

/// One client took all memory for responses that the plugins of a route had made.
#[test]
fn made_responses_that_one_client_reads_not_leave_room_for_those_of_others() {
    let proxy = Proxy::start(&greedy(&echo(), "[buffers]\nmemory = \"16 MiB\""));
    let request = head(&[0x82, 0x86, 0x84, 0x41, 1, b'a'], &[("x-greedy", "respond-long")]);
    let begin = |_| {
        let mut client = Raw::connect(&proxy);
        client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, &request);
        client
    };
    let mut clients: Vec<Raw> = (0..40).map(begin).collect();
    let heads = clients.iter_mut().map(|client| client.until(|frame| frame.kind == HEADERS).payload[0]);
    let served = heads.filter(|first| *first == 0x88).count();
    assert!((8..30).contains(&served), "{served}");
    assert!(proxy.wait_log("exchange failed").contains("limit=\"buffers.memory\""));
    for from in ["127.0.0.2", "127.0.0.3"] {
        let mut other = proxy.connect_from(from);
        other.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Greedy: respond-long\r\n\r\n").unwrap();
        assert_eq!(read_message(&mut BufReader::new(other)).unwrap().status(), 200, "{from}");
    }
}
