//! Plugins in the running proxy: the examples at work, and what a bad one can't do.

use std::io::{BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use plugway_test_guests::{API_KEY, HTML_LINKS, MISBEHAVE, RETITLE, SPLIT};

use crate::decoded::gzip;
use crate::support::{Proxy, echo, manifest, ok, origin, read_message, run};

/// Returns the manifest of an example, unchanged except for addresses and the path of the built plugin.
fn example(name: &str, component: &str, app: &str) -> String {
    let path = format!("{}/../examples/{name}/plugway.toml", env!("CARGO_MANIFEST_DIR"));
    let built = format!("../../target/wasm32-wasip2/release/example_{}.wasm", name.replace('-', "_"));
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(&built), "{text}");
    text.replace(&built, component).replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8000", app)
}

#[test]
fn the_api_key_example_guards_and_names_the_user() {
    let proxy = Proxy::start(&example("api-key", API_KEY, &echo()));
    let refused = proxy.get("/", "");
    assert_eq!((refused.status(), refused.text().as_str()), (401, r#"{"error":"unauthorized"}"#));
    assert!(proxy.get("/", "\r\nX-API-Key: key-alpha\r\nX-User: mallory").text().contains("x-user: alice\n"));
}

#[test]
fn the_split_example_chooses_the_upstream_and_leaves_a_note() {
    let (a, b) = (origin(|_| ok("a")), origin(|_| ok("b")));
    let proxy = Proxy::start(&example("split", SPLIT, &a).replace("127.0.0.1:8001", &b));
    for (cookie, variant) in [("", "a"), ("\r\nCookie: variant=b", "b")] {
        let response = proxy.get("/", cookie);
        assert_eq!((response.text().as_str(), response.field("x-variant")), (variant, Some(variant)));
    }
}

#[test]
fn the_retitle_example_rewrites_responses() {
    let moved = origin(|_| b"HTTP/1.1 302 Found\r\nLocation: http://a/b\r\nContent-Length: 0\r\n\r\n".to_vec());
    let proxy = Proxy::start(&example("retitle", RETITLE, &moved));
    assert_eq!(proxy.get("/", "").field("location"), Some("https://a/b"));
}

#[test]
fn the_html_links_example_rewrites_pages_and_nothing_else() {
    let link = "<a href=\"http://app.internal/cart\">";
    let app = origin(move |request| match request.start.contains("/page") {
        true if request.field("accept-encoding") == Some("gzip") => {
            let content = gzip(link.as_bytes());
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\nContent-Length";
            [format!("{head}: {}\r\n\r\n", content.len()).as_bytes(), &content].concat()
        }
        // The link is split over two chunks.
        true => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"1\"\r\nTransfer-Encoding: chunked";
            let (begin, end) = link.split_at(20);
            format!("{head}\r\n\r\n{:x}\r\n{begin}\r\n{:x}\r\n{end}\r\n0\r\n\r\n", begin.len(), end.len()).into_bytes()
        }
        false => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}", link.len() + 5);
            format!("{head}\r\n\r\nlink {link}").into_bytes()
        }
    });
    let proxy = Proxy::start(&example("html-links", HTML_LINKS, &app));
    let page = proxy.get("/page", "");
    assert_eq!((page.text().as_str(), page.field("etag")), ("<a href=\"https://shop.example/cart\">", Some("W/\"1\"")));
    let page = proxy.get("/page", "\r\nAccept-Encoding: gzip");
    assert_eq!(page.text(), "<a href=\"https://shop.example/cart\">");
    assert_eq!(page.field("content-encoding"), None);
    assert_eq!(proxy.get("/text", "").text(), format!("link {link}"));
}

#[test]
fn a_failing_plugin_harms_its_own_request_only() {
    let kinds = [
        "trap",
        "spin",
        "eat",
        "malformed-name",
        "malformed-value",
        "framing",
        "framing-alias",
        "wrong-side",
        "hoard",
        "unknown-plan",
        "crowd",
        "notes",
        "half",
        "give-up",
        "wait",
    ];
    let modes = [("", 502), ("on-error = \"skip\"", 200), ("on-error = 503", 503)];
    for (mode, status) in modes {
        // On a busy machine some of these take the default limit, and three late calls open the breaker.
        let more = format!("[plugin.bad]\nuse = {MISBEHAVE:?}\nlimits = {{ cpu = \"150ms\", share = 100 }}\n{mode}\n");
        let proxy = Proxy::start(&manifest(&echo(), r#""bad""#, &more));
        for kind in kinds {
            let harmed = proxy.get("/", &format!("\r\nX-Misbehave: {kind}"));
            assert_eq!(harmed.status(), status, "{kind} with `{mode}`: {harmed:?}");
            assert!(!harmed.text().contains("x-injected"), "{kind}");
            if status != 200 {
                assert_eq!(harmed.field("proxy-status"), Some("plugway; error=plugin_error"));
            }
            let next = proxy.get("/", "");
            assert!(next.status() == 200 && next.text().contains("x-calls: "), "after {kind}: {next:?}");
        }
    }
}

#[test]
fn nothing_is_changed_by_a_call_that_fails() {
    let more = format!("[plugin.bad]\nuse = {MISBEHAVE:?}\non-error = \"skip\"\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""bad""#, &more));
    let got = proxy.get("/", "\r\nX-Misbehave: half");
    assert!(got.status() == 200 && !got.text().contains("x-half"), "{got:?}");
}

#[test]
fn the_lowest_limit_of_content_applies_however_its_length_is_told() {
    let text = manifest(&echo(), r#""bad""#, &format!("[plugin.bad]\nuse = {MISBEHAVE:?}\n"));
    let proxy = Proxy::start(&text.replace("[[route]]", "[[route]]\nmax-body = \"1 KiB\""));
    let (short, long) = ("x".repeat(1024), "x".repeat(1025));
    let known = |body: &str| format!("Content-Length: {}\r\n\r\n{body}", body.len());
    let chunks = |body: &str| format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let cases = [
        ("edit max-body 1024", short.as_str(), 200, ""),
        ("edit max-body 10", "0123456789", 200, ""),
        ("edit max-body 10", "0123456789a", 413, "at most 10 bytes of content\n"),
        ("edit max-body 0", "0", 413, "at most 0 bytes of content\n"),
        ("edit max-body 9000", long.as_str(), 413, "at most 1 KiB of content\n"),
        ("nothing", long.as_str(), 413, "at most 1 KiB of content\n"),
    ];
    for (edit, body, status, words) in cases {
        for framed in [known(body), chunks(body)] {
            let mut stream = proxy.connect();
            write!(stream, "POST / HTTP/1.1\r\nHost: a\r\nX-Misbehave: {edit}\r\n{framed}").unwrap();
            let answer = read_message(&mut BufReader::new(stream)).unwrap();
            assert_eq!(answer.status(), status, "{edit}: {answer:?}");
            assert!(answer.text().contains(words), "{edit}: {answer:?}");
        }
    }
    let mut stream = proxy.connect();
    let asks = "X-Misbehave: edit max-body 2048\r\nAccept: application/json";
    write!(stream, "POST / HTTP/1.1\r\nHost: a\r\n{asks}\r\n{}", known(&long)).unwrap();
    assert!(read_message(&mut BufReader::new(stream)).unwrap().text().contains("\"max-body\":1024,"));
}

#[test]
fn a_limit_of_content_holds_over_http2_without_a_length() {
    let proxy = Proxy::start(&manifest(&echo(), r#""bad""#, &format!("[plugin.bad]\nuse = {MISBEHAVE:?}\n")));
    for (limit, status) in [(5, "413"), (6, "200")] {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--http2-prior-knowledge", "--max-time", "30", "--output", "/dev/null"]);
        curl.args(["--write-out", "%{http_code}", "--request", "POST", "--upload-file", "-"]);
        curl.args(["--header", &format!("X-Misbehave: edit max-body {limit}"), &format!("http://{}/", proxy.address)]);
        let mut curl = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        curl.stdin.take().unwrap().write_all(b"abcdef").unwrap();
        let seen = curl.wait_with_output().unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&seen), status, "a limit of {limit}");
    }
}

#[test]
fn an_edit_makes_no_message_that_a_client_could_not_send() {
    let more = format!("[plugin.bad]\nuse = {MISBEHAVE:?}\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""bad""#, &more));
    for edit in include_str!("guests/misbehave/refused.txt").lines() {
        let fields = if edit.starts_with("default") { "" } else { "Host: example.org\r\n" };
        let version = if edit.starts_with("default") { "1.0" } else { "1.1" };
        let answer = proxy.exchange(&format!("GET / HTTP/{version}\r\n{fields}X-Misbehave: edit {edit}"));
        assert_eq!(answer.status(), 502, "{edit}: {answer:?}");
    }
    let made = |edit: &str| proxy.get("/", &format!("\r\nX-Misbehave: edit {edit}")).text();
    assert!(made("authority other.example:81").contains("host: other.example:81\n"));
    // The port of the scheme is no part of a host, whichever edit sets the host.
    for edit in ["authority Other.example:80", "set-host Other.example:80"] {
        assert!(made(edit).contains("host: other.example\n"), "{edit}: {}", made(edit));
    }
    let default = proxy.exchange("GET / HTTP/1.0\r\nX-Misbehave: edit default-host Other.example:80");
    assert!(default.text().contains("host: other.example\n"), "{}", default.text());
    let planned = "{ use = \"headers\", config.request.default = { Host = \"other.example:80\" } }";
    let planned = Proxy::start(&manifest(&echo(), planned, "")).exchange("GET / HTTP/1.0");
    assert!(planned.text().contains("host: other.example\n"), "{}", planned.text());
    assert!(made("path /a/./%7eb/../c//d").starts_with("GET /a/c/d HTTP"), "{}", made("path /a/./%7eb/../c//d"));
    // Spaces around a value are no part of it, and HTTP/2 forbids them (RFC 9113 §8.2.1).
    assert!(made("value _a_b_").contains("x-value: a b\n"));
    let options = proxy.exchange("OPTIONS * HTTP/1.1\r\nHost: a\r\nX-Misbehave: edit method GET");
    assert_eq!(options.status(), 502, "{options:?}");
}

#[test]
fn a_method_that_a_plugin_changes_leaves_no_false_length() {
    let origin = origin(|request| {
        let content = if request.start.starts_with("HEAD") { "" } else { "content" };
        format!("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{content}").into_bytes()
    });
    let more = format!("[plugin.bad]\nuse = {MISBEHAVE:?}\n");
    let proxy = Proxy::start(&manifest(&origin, r#""bad""#, &more));
    let got = proxy.get("/", "\r\nX-Misbehave: edit method HEAD");
    assert_eq!((got.status(), got.text().as_str()), (200, ""));
    assert_ne!(got.field("content-length"), Some("7"));
    let mut stream = proxy.connect();
    write!(stream, "HEAD / HTTP/1.1\r\nHost: a\r\nX-Misbehave: edit method GET\r\nConnection: close\r\n\r\n").unwrap();
    let mut head = String::new();
    stream.read_to_string(&mut head).unwrap();
    assert!(head.ends_with("\r\n\r\n") && head.contains("content-length: 7"), "{head}");
}

#[test]
fn a_constant_edit_that_no_message_can_have_is_a_mistake_of_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugway.toml");
    let cases = [
        ("request.set = { host = \"a b\" }", "Host"),
        ("request.set = { host = \"a/${path}\", x-a = \"1\" }", ""),
        ("request.append = { host = \"a\" }", "host"),
        ("request.rename = { x-host = \"host\" }", "host"),
        ("request.set = { expect = \"100-continue\" }", "expect"),
    ];
    for (config, part) in cases {
        let more = format!("[plugin.headers]\nuse = \"headers\"\nconfig.{}\n", config);
        std::fs::write(&file, manifest("127.0.0.1:9", r#""headers""#, &more)).unwrap();
        let (code, output) = run(&["check", file.to_str().unwrap()]);
        if part.is_empty() {
            assert_eq!(code, Some(0), "a value that is known only later: {output}");
        } else {
            assert!(code == Some(1) && output.contains(part), "{config}: {output}");
        }
    }
}

#[test]
fn a_template_makes_no_host_that_a_client_could_not_send() {
    let more = "[plugin.headers]\nuse = \"headers\"\nconfig.request.set = { host = \"{request.header.x-site}\" }\n";
    let proxy = Proxy::start(&manifest(&echo(), r#""headers""#, more));
    for site in ["b.example", "B.example."] {
        let text = proxy.get("/", &format!("\r\nX-Site: {site}")).text();
        assert!(text.contains("\nhost: b.example\n"), "{site}: {text}");
    }
    for site in ["b.example/x", "b..example", "b%2Eexample", "b.example:65536"] {
        assert_eq!(proxy.get("/", &format!("\r\nX-Site: {site}")).status(), 502, "{site}");
    }
}

#[test]
fn a_trap_makes_a_fresh_instance_and_the_message_reaches_the_log() {
    let more = format!("[plugin.bad]\nuse = {MISBEHAVE:?}\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""bad""#, &more).replace("workers = 2", "workers = 1"));
    let calls = |proxy: &Proxy| {
        proxy.get("/", "").text().lines().find_map(|line| line.strip_prefix("x-calls: ").map(String::from))
    };
    assert_eq!((calls(&proxy), calls(&proxy)), (Some("1".into()), Some("2".into())));
    proxy.get("/", "\r\nX-Misbehave: trap");
    proxy.wait_log("told to trap");
    assert_eq!(calls(&proxy), Some("1".into()));
}

#[test]
fn plugin_output_is_logged_and_limited() {
    let more = format!("[plugin.bad]\nuse = {MISBEHAVE:?}\nlimits.cpu = \"5s\"\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""bad""#, &more).replace("workers = 2", "workers = 1"));
    assert_eq!(proxy.get("/", "\r\nX-Misbehave: print").status(), 200);
    proxy.wait_log("printed by a plugin");
    assert_eq!(proxy.get("/", "\r\nX-Misbehave: chatter").status(), 200);
    // The line before counts too: a hundred in all.
    proxy.wait_log("chatter 98");
    let told = proxy.log_until("plugin lines left out", || drop(proxy.get("/", "\r\nX-Misbehave: print")));
    assert!(!told.iter().any(|line| line.contains("chatter")), "{told:?}");
}

#[test]
fn a_plugin_that_drops_its_streams_harms_nobody() {
    let more = format!("[plugin.bad]\nuse = {MISBEHAVE:?}\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""bad""#, &more));
    assert_eq!(proxy.get("/", "\r\nX-Misbehave: drop-streams").status(), 200);
    proxy.wait_log("dropped");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn isolation_gives_each_request_a_fresh_instance() {
    let more = format!("[plugin.alone]\nuse = {MISBEHAVE:?}\nisolation = \"request\"\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""alone""#, &more));
    for _ in 0..5 {
        assert!(proxy.get("/", "").text().contains("x-calls: 1\n"));
    }
}

#[test]
fn a_loop_ends_at_its_limit() {
    let more = format!("[plugin.bad]\nuse = {MISBEHAVE:?}\nlimits = {{ cpu = \"100ms\" }}\n");
    let proxy = Proxy::start(&manifest(&echo(), r#""bad""#, &more));
    let start = Instant::now();
    assert_eq!(proxy.get("/", "\r\nX-Misbehave: spin").status(), 502);
    assert!(start.elapsed().as_millis() >= 100, "{:?}", start.elapsed());
    proxy.wait_log("limits.cpu of 100 ms exceeded");
}
