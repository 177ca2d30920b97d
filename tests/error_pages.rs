//! The error pages of routes: for the proxy's own errors, for those of the upstream, and during maintenance.

use std::io::{BufReader, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use plugway_test_guests::API_KEY;

use crate::support::{Message, Proxy, echo, manifest, origin, output, plugway, raw_origin, read_message, until};

/// Starts a proxy in a folder with pages: `site.html`, `route.html` and `sorry.html`, each with its name and the status.
fn start(folder: &Path, manifest: &str) -> Proxy {
    for name in ["site", "route", "sorry"] {
        std::fs::write(folder.join(format!("{name}.html")), format!("<p>{name} {{status}} {{request-id}}")).unwrap();
    }
    Proxy::start_in(folder, manifest)
}

/// Returns the word that a page begins with.
fn page(response: &Message) -> String {
    let text = response.text();
    text.trim_start_matches("<p>").split_whitespace().next().unwrap_or_default().to_string()
}

/// Asks over HTTP/2, and returns head and content.
fn over_http2(proxy: &Proxy, path: &str, options: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--include", "--max-time", "30"]).args(options);
    output(curl.arg(format!("http://{}{path}", proxy.address)))
}

// === Errors of the proxy ===

#[test]
fn the_pages_of_a_route_precede_those_of_the_manifest() {
    let pages = "[error-page]\n404 = \"site.html\"\n\"5xx\" = \"site.html\"\n\
                 [[route]]\npath = \"/other\"\nupstream = \"app\"\n";
    let route = "[[route]]\npath = \"/own\"\nerror-page = { 502 = \"route.html\", \"4xx\" = \"route.html\" }\n\
                 max-body = \"10 B\"";
    let text = manifest("127.0.0.1:1", "", pages).replacen("[[route]]", route, 1);
    let folder = tempfile::tempdir().unwrap();
    let proxy = start(folder.path(), &text);
    let of = |path: &str, fields: &str| {
        let response = proxy.get(path, fields);
        (response.status(), page(&response))
    };
    assert_eq!(of("/own", ""), (502, "route".into()));
    assert_eq!(of("/other", ""), (502, "site".into()));
    assert_eq!(of("/own", "\r\nContent-Length: 11"), (413, "route".into()), "a class of the route");
    assert_eq!(of("/other/lost", "\r\nHost: b"), (400, "400".into()), "no page for it");
    assert_eq!(of("/", ""), (404, "site".into()), "no route, and so none of a route");
    assert!(over_http2(&proxy, "/own", &[]).contains("<p>route 502 "));
    let json = proxy.get("/own", "\r\nAccept: application/json");
    assert_eq!(json.field("content-type"), Some("application/json"));
    // The page is one of the files that the proxy watches.
    std::fs::write(folder.path().join("route.html"), "<p>changed").unwrap();
    until("the new page is sent", || of("/own", "").1 == "changed");
}

/// As nginx shows its own page, or that of `error_page`, for `return 404;`.
#[test]
fn a_fixed_response_without_content_gets_the_page_of_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let routes = "[error-page]\n410 = \"site.html\"\n\
                  [[route]]\npath = \"/gone\"\nrespond = { status = 410, fields = { X-A = \"b\" } }\n\
                  [[route]]\npath = \"/own\"\nerror-page = { 410 = \"route.html\" }\nrespond = { status = 410 }\n\
                  [[route]]\npath = \"/none\"\nrespond = { status = 404 }\n\
                  [[route]]\npath = \"/empty\"\nrespond = { status = 410, body = \"\" }\n\
                  [[route]]\npath = \"/typed\"\nrespond = { status = 410, fields = { Content-Type = \"text/css\" } }\n\
                  [[route]]\npath = \"/fine\"\nrespond = { status = 204 }\n";
    let proxy = start(folder.path(), &manifest("127.0.0.1:1", "", routes));
    for (path, wanted) in [("/gone", "site"), ("/own", "route"), ("/none", "404")] {
        let got = proxy.get(path, "");
        assert_eq!(page(&got), wanted, "{path}");
        assert_eq!(got.field("x-a"), (path == "/gone").then_some("b"));
    }
    for path in ["/empty", "/typed", "/fine"] {
        assert_eq!(proxy.get(path, "").text(), "", "{path}");
    }
    assert!(over_http2(&proxy, "/gone", &["--head"]).contains("x-a: b"));
}

/// What stands there is sent as it stands.
#[test]
fn values_in_a_fixed_response_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("page.html"), "<p>{status} {request-id}").unwrap();
    std::fs::write(folder.path().join("plain.html"), "<script>const {status} = a</script>").unwrap();
    let check = |respond: &str| {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nrespond = {{ {respond} }}\n");
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        output(plugway().args(["check", "plugway.toml"]).current_dir(folder.path()))
    };
    for (respond, wanted) in [
        ("body = \"at {host}\"", "`{host}` stands for itself"),
        ("body = \"at $host\"", "`at $host` stands for itself"),
        ("fields = { X-A = \"{request-id}\" }", "`{request-id}` stands for itself"),
        ("file = \"page.html\"", "the file is an error page"),
    ] {
        let said = check(respond);
        assert!(said.contains("warning: ") && said.contains(wanted), "{respond}: {said}");
    }
    for plain in ["body = \"{\\\"ok\\\": {}}\"", "file = \"plain.html\"", "body = \"5 US$\""] {
        assert!(!check(plain).contains("warning"), "{plain}");
    }
}

// === Errors of the upstream ===

/// The content of an origin's own error page.
const TRACE: &str = "a trace of the stack";

/// Starts an origin that answers `/N` with the status N, and fields of all sorts.
fn failing() -> String {
    origin(|request| {
        let (status, head) = (request.number(), request.start.starts_with("HEAD "));
        let grpc = request.field("x-grpc").is_some();
        let media = if grpc { "application/grpc+proto" } else { "text/x-trace" };
        let content = if head { "" } else { TRACE };
        let length = TRACE.len();
        format!(
            "HTTP/1.1 {status} As It Says\r\nContent-Length: {length}\r\nContent-Type: {media}\r\nETag: \"x\"\r\n\
             Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nAccept-Ranges: bytes\r\nContent-Language: en\r\n\
             Cache-Control: private, max-age=9\r\nCDN-Cache-Control: max-age=600\r\n\
             Surrogate-Control: max-age=600\r\nContent-Security-Policy: a\r\nExpires: 0\r\nSet-Cookie: a=1\r\nWWW-Authenticate: Basic\r\n\
             Retry-After: 7\r\nLocation: /there\r\nX-Own: yes\r\n\r\n{content}"
        )
        .into_bytes()
    })
}

/// Returns a manifest whose route intercepts statuses, with more keys.
fn intercepting(origin: &str, statuses: &str, plugins: &str) -> String {
    let pages = "[error-page]\n404 = \"site.html\"\n502 = \"site.html\"\n503 = \"site.html\"\n";
    let route = format!("[[route]]\nerror-page = {{ 404 = \"route.html\" }}\nintercept = {statuses}");
    manifest(origin, plugins, pages).replacen("[[route]]", &route, 1)
}

#[test]
fn errors_of_the_upstream_get_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let marked = "{ use = \"headers\", config.response.append = { X-Seen = \"yes\" } }";
    let proxy = start(folder.path(), &intercepting(&failing(), "[404, \"5xx\", 401]", marked));
    for (path, wanted) in [("/404", "route"), ("/503", "site"), ("/500", "500"), ("/401", "401")] {
        let got = proxy.get(path, "");
        assert_eq!((got.status(), page(&got)), (path[1..].parse().unwrap(), wanted.into()), "{got:?}");
        assert!(!got.text().contains(TRACE) && got.field("content-length") == Some(&*got.body.len().to_string()));
        for name in [
            "etag",
            "last-modified",
            "accept-ranges",
            "content-language",
            "expires",
            "cdn-cache-control",
            "surrogate-control",
        ] {
            assert_eq!(got.field(name), None, "{name} of {path}");
        }
        for (name, value) in [
            ("set-cookie", "a=1"),
            ("www-authenticate", "Basic"),
            ("retry-after", "7"),
            ("location", "/there"),
            ("x-own", "yes"),
            ("content-security-policy", "a"),
            ("cache-control", "no-store"),
            ("x-seen", "yes"),
            ("proxy-status", &*format!("plugway; received-status={}", &path[1..])),
        ] {
            assert_eq!(got.field(name), Some(value), "{path}");
        }
    }
    let json = proxy.get("/503", "\r\nAccept: application/json");
    let told: serde_json::Value = serde_json::from_slice(&json.body).unwrap();
    assert_eq!((&told["status"], told.get("error")), (&503.into(), None));
    for (path, fields) in
        [("/403", ""), ("/200", ""), ("/503", "\r\nX-Grpc: yes"), ("/503", "\r\nContent-Type: Application/gRPC")]
    {
        let passed = proxy.get(path, fields);
        assert_eq!((passed.text(), passed.field("etag")), (TRACE.into(), Some("\"x\"")), "{path} {fields}");
    }
}

#[test]
fn an_intercepted_response_has_the_length_of_the_page_over_all_versions() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = start(folder.path(), &intercepting(&failing(), "[404]", ""));
    let length = format!("content-length: {}", "<p>route 404 ".len() + 32);
    let got = over_http2(&proxy, "/404", &[]);
    assert!(got.starts_with("HTTP/2 404") && got.contains(&length) && got.contains("<p>route 404 "), "{got}");
    let head = over_http2(&proxy, "/404", &["--head"]);
    assert!(head.starts_with("HTTP/2 404") && head.contains(&length) && head.contains("text/html"), "{head}");
    let one = output(Command::new("curl").args(["--silent", "--head", &format!("http://{}/404", proxy.address)]));
    assert!(one.contains(" 404 As It Says\r\n") && one.contains(&length) && !one.contains("<p>"), "{one}");
}

/// Starts an origin that answers each request of a connection with 503 and content of the length that the path names.
fn counting() -> (String, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let address = raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut is_first = true;
        while let Some(request) = read_message(&mut reader) {
            counted.fetch_add(usize::from(std::mem::take(&mut is_first)), Ordering::SeqCst);
            let content = "x".repeat(request.number());
            let head = format!("HTTP/1.1 503 No\r\nContent-Length: {}\r\n\r\n", content.len());
            if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(content.as_bytes())).is_err() {
                break;
            }
        }
    });
    (address, connections)
}

#[test]
fn a_connection_with_little_left_of_an_intercepted_response_serves_on() {
    for (length, wanted) in [(0, 1), (20_000, 1), (10_000_000, 5)] {
        let folder = tempfile::tempdir().unwrap();
        let (origin, connections) = counting();
        let text = intercepting(&origin, "[503]", "").replace("workers = 2", "workers = 1");
        let proxy = start(folder.path(), &text);
        for number in 0..5 {
            assert_eq!(page(&proxy.get(&format!("/{length}"), "")), "site");
            let idle = || {
                let figures = proxy.ask_admin("GET /metrics").text();
                figures.lines().any(|line| line.starts_with("plugway_endpoint_in_flight") && line.ends_with(" 0"))
            };
            until(&format!("request {number} has ended"), idle);
        }
        assert_eq!(connections.load(Ordering::SeqCst), wanted, "{length} bytes");
    }
}

#[test]
fn a_cache_sees_what_the_upstream_has_sent() {
    let fails = Arc::new(AtomicBool::new(false));
    let failing = fails.clone();
    let endpoint = origin(move |request| match request.start.split(' ').nth(1).unwrap() {
        "/lost" => b"HTTP/1.1 404 Lost\r\nContent-Length: 4\r\nCache-Control: max-age=60\r\n\r\nlost".to_vec(),
        _ if failing.load(Ordering::SeqCst) => b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\ntrace".to_vec(),
        _ => {
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nCache-Control: max-age=0, stale-if-error=60\r\n\r\ngood".to_vec()
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let proxy = start(folder.path(), &intercepting(&endpoint, "[404, 503]", "\"cache\""));
    assert_eq!(proxy.get("/", "").text(), "good");
    fails.store(true, Ordering::SeqCst);
    let stale = proxy.get("/", "");
    assert_eq!((stale.status(), stale.text()), (200, "good".into()));
    let none = proxy.get("/other", "");
    assert_eq!((none.status(), page(&none)), (503, "site".into()));
    let first = proxy.get("/lost", "");
    // The page needs none of the content, which may still be on its way into the store.
    let mut second = None;
    until("the response is stored", || {
        let again = proxy.get("/lost", "");
        let is_stored = !again.field("cache-status").unwrap().contains("collapsed");
        second = is_stored.then_some(again);
        is_stored
    });
    let lost = [first, second.unwrap()];
    for (lost, reported) in lost.iter().zip(["stored", "hit"]) {
        assert_eq!((lost.status(), page(lost)), (404, "route".into()));
        assert!(lost.field("cache-status").unwrap().contains(reported), "{lost:?}");
    }
    assert_ne!(lost[0].text(), lost[1].text(), "each page names its own request");
}

#[test]
fn the_response_of_a_plugin_is_not_intercepted() {
    let folder = tempfile::tempdir().unwrap();
    let keyed = format!("{{ use = {API_KEY:?}, config.keys = {{ secret = \"alice\" }} }}");
    let proxy = start(folder.path(), &intercepting(&failing(), "[401]", &keyed));
    let refused = proxy.get("/401", "");
    assert!(refused.status() == 401 && refused.field("proxy-status").is_none(), "{refused:?}");
    let intercepted = proxy.get("/401", "\r\nX-Api-Key: secret");
    assert_eq!(intercepted.field("proxy-status"), Some("plugway; received-status=401"));
}

#[test]
fn an_error_of_a_plugin_without_content_gets_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let filter = "{ use = \"ip-filter\", config = { deny = [\"127.0.0.1\"] } }";
    let marked = "{ use = \"headers\", config.response.append = { X-Seen = \"yes\" } }";
    let text = manifest(&failing(), &format!("{marked}, {filter}"), "[error-page]\n403 = \"site.html\"\n");
    let proxy = start(folder.path(), &text);
    let denied = proxy.get("/200", "");
    assert_eq!((denied.status(), page(&denied)), (403, "site".into()), "{denied:?}");
    assert_eq!((denied.field("content-type"), denied.field("x-seen")), (Some("text/html; charset=utf-8"), Some("yes")));
    assert_eq!((denied.field("cache-control"), denied.field("proxy-status")), (Some("no-store"), None));
    let two = over_http2(&proxy, "/200", &[]);
    assert!(two.starts_with("HTTP/2 403") && two.contains("<p>site 403 "), "{two}");
    let call = proxy.get("/200", "\r\nContent-Type: Application/gRPC");
    let media = call.field("content-type");
    assert_eq!((call.status(), media, call.field("grpc-status")), (200, Some("Application/gRPC"), Some("7")));
    assert_eq!(call.text(), "");
    let json = proxy.get("/200", "\r\nAccept: application/json");
    assert!(json.text().starts_with("{\"status\":403,\"reason\":\"Forbidden\","), "{json:?}");
    assert_eq!((json.field("vary"), denied.field("vary")), (Some("Accept"), Some("Accept")));
    let html = proxy.get("/200", "\r\nAccept: application/json;q=0.1, text/html");
    assert_eq!(page(&html), "site");
    // A page of the route, and the content of a plugin.
    let keyed = format!("{{ use = {API_KEY:?}, config.keys = {{ secret = \"alice\" }} }}");
    let pages = "error-page = { 401 = \"route.html\" }";
    let own = manifest(&failing(), &keyed, "").replacen("[[route]]", &format!("[[route]]\n{pages}"), 1);
    let own = start(folder.path(), &own);
    assert_eq!(own.get("/200", "").text(), r#"{"error":"unauthorized"}"#);
    let stock = "{ use = \"auth-key\", config = { keys = [\"a:sha256:8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8\"] } }";
    let stock = manifest(&failing(), stock, "").replacen("[[route]]", &format!("[[route]]\n{pages}"), 1);
    let refused = start(folder.path(), &stock).get("/200", "");
    assert_eq!((refused.status(), page(&refused)), (401, "route".into()));
    assert!(refused.field("www-authenticate").is_some());
}

// === Maintenance ===

/// Starts a proxy with a route `/shop` that a file `down` switches off, and one for all else.
fn maintained(folder: &Path, table: &str) -> Proxy {
    let marked = "{ use = \"headers\", config.response.append = { X-Seen = \"yes\" } }";
    let more = "[[route]]\nname = \"rest\"\nupstream = \"app\"\n[admin]\naddress = \"127.0.0.1:0\"\n";
    let text = manifest(&echo(), marked, more);
    let route = format!("[[route]]\npath = \"/shop\"\nmaintenance = {table}\nerror-page = {{ 503 = \"sorry.html\" }}");
    let text = text.replacen("[[route]]", &route, 1);
    let trusting = "address = \"127.0.0.1:0\"\ntrusted-proxies = [\"127.0.0.1\"]\n";
    start(folder, &text.replacen("address = \"127.0.0.1:0\"\n", trusting, 1))
}

/// Returns what the status document says of the maintenance of its first route.
fn shown(proxy: &Proxy) -> serde_json::Value {
    let status: serde_json::Value = serde_json::from_slice(&proxy.ask_admin("GET /status").body).unwrap();
    assert!(status["routes"][1].get("maintenance").is_none(), "{status}");
    status["routes"][0]["maintenance"].clone()
}

#[test]
fn a_route_is_under_maintenance_while_its_file_exists() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = maintained(folder.path(), "\"down\"");
    assert_eq!((proxy.get("/shop", "").status(), shown(&proxy)), (200, false.into()));
    let down = folder.path().join("down");
    for _ in 0..2 {
        std::fs::write(&down, "").unwrap();
        let began = Instant::now();
        until("the route is down", || proxy.get("/shop/cart", "").status() == 503);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        proxy.wait_log("maintenance began");
        let sorry = proxy.get("/shop", "");
        assert_eq!((page(&sorry), sorry.field("retry-after")), ("sorry".into(), Some("60")));
        assert_eq!(sorry.field("proxy-status"), Some("plugway; error=destination_unavailable"));
        assert_eq!((sorry.field("x-seen"), shown(&proxy)), (None, true.into()), "no plugin sees the request");
        let post = proxy.get("/shop", "\r\nContent-Length: 100000");
        assert_eq!(post.status(), 503);
        let two = over_http2(&proxy, "/shop", &["--data", "hello"]);
        assert!(
            two.starts_with("HTTP/2 503") && two.contains("retry-after: 60") && two.contains("<p>sorry 503"),
            "{two}"
        );
        assert_eq!(proxy.get("/", "").status(), 200, "another route");
        std::fs::remove_file(&down).unwrap();
        until("the route is up", || proxy.get("/shop", "").status() == 200);
        proxy.wait_log("maintenance ended");
    }
    assert!(!proxy.has_logged("exchange failed"), "it is no failure");
}

#[test]
fn the_maintenance_of_the_manifest_is_that_of_all_routes_without_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let routes = "[[route]]\npath = \"/own\"\nupstream = \"app\"\nmaintenance = \"other\"\n\
                  [[route]]\nhosts = [\"more.example\"]\nupstream = \"app\"\n[admin]\naddress = \"127.0.0.1:0\"\n";
    let table = "maintenance = { file = \"down\", retry-after = \"2m\" }\n";
    let proxy = start(folder.path(), &format!("{table}{}", manifest(&echo(), "", routes)));
    let status = |path: &str, fields: &str| proxy.get(path, fields).status();
    assert_eq!((status("/", ""), status("/own", "")), (200, 200));
    std::fs::write(folder.path().join("down"), "").unwrap();
    until("the site is down", || status("/", "") == 503);
    assert_eq!(proxy.get("/", "").field("retry-after"), Some("120"));
    assert_eq!(status("/own", ""), 200, "it has its own");
    let told: serde_json::Value = serde_json::from_slice(&proxy.ask_admin("GET /status").body).unwrap();
    let states: Vec<&serde_json::Value> =
        told["routes"].as_array().unwrap().iter().map(|route| &route["maintenance"]).collect();
    assert_eq!(states.iter().filter(|state| ***state == true).count(), 2, "also that of more.example: {told}");
    std::fs::remove_file(folder.path().join("down")).unwrap();
    until("the site is up", || status("/", "") == 200);
}

#[test]
fn maintenance_names_its_end_and_excepts_clients() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("down"), "").unwrap();
    let table = "{ file = \"down\", retry-after = \"1500ms\", except = [\"10.0.0.0/8\"] }";
    let proxy = maintained(folder.path(), table);
    let sorry = proxy.get("/shop", "");
    assert_eq!((sorry.status(), sorry.field("retry-after")), (503, Some("2")), "from the start, rounded up");
    assert_eq!(proxy.get("/shop", "\r\nX-Forwarded-For: 10.1.2.3").status(), 200);
    assert_eq!(proxy.get("/shop", "\r\nX-Forwarded-For: 192.0.2.1").status(), 503);
}

#[test]
fn a_reload_keeps_and_changes_the_file_of_maintenance() {
    let folder = tempfile::tempdir().unwrap();
    let text = |key: &str| manifest(&echo(), "", "").replace("[[route]]", &format!("[[route]]\n{key}"));
    let proxy = start(folder.path(), &text("name = \"a\""));
    std::fs::write(folder.path().join("down"), "").unwrap();
    let reload = |text: &str| {
        std::fs::write(folder.path().join("new"), text).unwrap();
        std::fs::rename(folder.path().join("new"), folder.path().join("plugway.toml")).unwrap();
        proxy.wait_log("reloaded: generation");
    };
    reload(&text("maintenance = \"down\""));
    assert_eq!(proxy.get("/", "").status(), 503);
    reload(&text("maintenance = \"other\""));
    assert_eq!(proxy.get("/", "").status(), 200);
    std::fs::write(folder.path().join("other"), "").unwrap();
    until("the new file counts", || proxy.get("/", "").status() == 503);
}
