//! The stock plugins `cors`, `security-headers`, `log-fields` and `body-limit` in the running proxy.

use std::io::{BufReader, Write};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Message, Proxy, echo, manifest, ok, origin, output, plugway, read_message, refusing, until};
use crate::tls::{Authority, SITE};

const APP: &str = "https://app.example.org";

/// Returns the manifest of a route with one stock plugin, whose configuration is the text of a table.
fn with(origin: &str, plugin: &str, config: &str) -> String {
    manifest(
        origin,
        &format!("{plugin:?}"),
        &format!("[plugin.{plugin}]\nuse = {plugin:?}\n[plugin.{plugin}.config]\n{config}\n"),
    )
}

/// Returns all lines of a field.
fn lines<'a>(message: &'a Message, name: &str) -> Vec<&'a str> {
    let lines = message.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    lines.map(|(_, value)| value.as_str()).collect()
}

/// Sends bytes on a connection of their own, and returns the response.
fn send(proxy: &Proxy, bytes: &str) -> Message {
    let mut stream = proxy.connect();
    stream.write_all(bytes.as_bytes()).unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

/// Returns what `plugway check` says of a manifest that it rejects.
fn rejected(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, text).unwrap();
    let checked = plugway().arg("check").arg(path).output().unwrap();
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    String::from_utf8(checked.stderr).unwrap()
}

// === cors ===

#[test]
fn preflights_are_answered_and_responses_of_all_kinds_have_the_fields() {
    let own = origin(|request| {
        let status = if request.start.contains("/broken") { "500 Oh" } else { "200 OK" };
        let fields = "Access-Control-Allow-Origin: *\r\nVary: Accept-Encoding\r\nContent-Length: 0\r\n";
        format!("HTTP/1.1 {status}\r\n{fields}\r\n").into_bytes()
    });
    let config = format!("origins = [{APP:?}]\ncredentials = true\nmethods = [\"PUT\"]\nheaders = \"reflect\"");
    let proxy = Proxy::start(&with(&own, "cors", &config));
    let preflight = |origin: &str| {
        let asks = "Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-a";
        proxy.exchange(&format!("OPTIONS / HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\n{asks}"))
    };
    let answer = preflight(APP);
    assert_eq!((answer.status(), answer.body.len()), (204, 0), "{answer:?}");
    assert_eq!(answer.field("access-control-allow-origin"), Some(APP));
    assert_eq!(answer.field("access-control-allow-headers"), Some("x-a"));
    assert_eq!(answer.field("access-control-allow-credentials"), Some("true"));
    let answer = preflight("https://evil.example");
    assert_eq!((answer.status(), answer.field("access-control-allow-origin")), (204, None));
    for path in ["/", "/broken"] {
        for (origin, allowed) in [(APP, Some(APP)), ("https://evil.example", None), ("null", None)] {
            let response = proxy.get(path, &format!("\r\nOrigin: {origin}"));
            assert_eq!(lines(&response, "access-control-allow-origin"), Vec::from_iter(allowed), "{path} {origin}");
            assert_eq!(lines(&response, "vary"), ["Accept-Encoding", "Origin"], "{path} {origin}");
        }
        assert_eq!(lines(&proxy.get(path, ""), "vary"), ["Accept-Encoding", "Origin"], "without an origin");
    }
}

#[test]
fn an_error_of_the_proxy_can_be_read_by_an_allowed_page() {
    let refusing = refusing();
    let proxy = Proxy::start(&with(&refusing, "cors", &format!("origins = [{APP:?}]")));
    let response = proxy.get("/", &format!("\r\nOrigin: {APP}"));
    assert_eq!((response.status(), response.field("access-control-allow-origin")), (502, Some(APP)));
    let long = format!("POST / HTTP/1.1\r\nHost: a\r\nOrigin: {APP}\r\nContent-Length: {}\r\n\r\n", 2_u64 << 30);
    let response = send(&proxy, &long);
    assert_eq!((response.status(), response.field("access-control-allow-origin")), (413, Some(APP)));
}

#[test]
fn all_origins_with_credentials_are_an_error_of_the_manifest() {
    let error = rejected(&with("127.0.0.1:1", "cors", "origins = [\"*\"]\ncredentials = true"));
    assert!(error.contains("`*` with `credentials`: browsers reject it") && error.contains("plugway.toml:"), "{error}");
}

// === security-headers ===

#[test]
fn a_site_without_a_configuration_has_safe_fields() {
    let talking =
        origin(|_| b"HTTP/1.1 200 OK\r\nServer: a/1\r\nX-Powered-By: b/2\r\nContent-Length: 0\r\n\r\n".to_vec());
    let proxy = Proxy::start(&manifest(&talking, "\"security-headers\"", ""));
    let response = proxy.get("/", "");
    assert_eq!(response.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(response.field("x-frame-options"), Some("SAMEORIGIN"));
    assert_eq!(response.field("referrer-policy"), Some("strict-origin-when-cross-origin"));
    assert_eq!((response.field("server"), response.field("x-powered-by")), (None, None));
    assert_eq!(response.field("strict-transport-security"), None, "there is no TLS");
}

#[test]
fn hsts_is_sent_at_a_listener_with_tls() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    let listener = format!("address = \"127.0.0.1:0\"\n[listener.tls]\n{SITE}\n");
    let text = manifest(&echo(), "\"security-headers\"", "").replace("address = \"127.0.0.1:0\"\n", &listener);
    let proxy = Proxy::start_in(folder.path(), &text);
    let got = head_over_tls(&proxy, folder.path());
    assert!(got.to_lowercase().contains("strict-transport-security: max-age=31536000\r\n"), "{got}");
}

#[test]
fn hsts_is_decided_by_the_scheme_of_the_client() {
    let app = |field: &'static str| {
        origin(move |_| format!("HTTP/1.1 200 OK\r\n{field}Content-Length: 0\r\n\r\n").into_bytes())
    };
    let trusting = "address = \"127.0.0.1:0\"\ntrusted-proxies = [\"127.0.0.1\"]\n";
    let start = |field, listener: &str| {
        let text = manifest(&app(field), "\"security-headers\"", "");
        Proxy::start(&text.replace("address = \"127.0.0.1:0\"\n", listener))
    };
    let hsts =
        |proxy: &Proxy, fields: &str| proxy.get("/", fields).field("strict-transport-security").map(String::from);
    let (year, own) = (Some("max-age=31536000".to_string()), Some("max-age=99".to_string()));
    let (secure, plain) = ("\r\nX-Forwarded-Proto: https", "\r\nX-Forwarded-Proto: http");
    let proxy = start("", trusting);
    assert_eq!((hsts(&proxy, secure), hsts(&proxy, plain), hsts(&proxy, "")), (year, None, None));
    let wary = start("", "address = \"127.0.0.1:0\"\n");
    assert_eq!(hsts(&wary, secure), None, "the client's own claim");
    let proxy = start("Strict-Transport-Security: max-age=99\r\n", trusting);
    assert_eq!((hsts(&proxy, secure), hsts(&proxy, "")), (own.clone(), own), "the application's is kept");
}

/// Returns the head of a response over TLS.
fn head_over_tls(proxy: &Proxy, folder: &Path) -> String {
    let port = proxy.address.rsplit(':').next().unwrap();
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--max-time",
        "30",
        "--output",
        "/dev/null",
        "--dump-header",
        "-",
        "--cacert",
    ])
    .arg(folder.join("ca.pem"));
    curl.args(["--resolve", &format!("site.example:{port}:127.0.0.1")]);
    output(curl.arg(format!("https://site.example:{port}/")))
}

#[test]
fn the_upstream_gets_the_nonce_of_the_policy_and_not_that_of_a_client() {
    let config = "content-security-policy = \"script-src 'self' 'nonce-{nonce}'\"";
    let proxy = Proxy::start(&with(&echo(), "security-headers", config));
    let mut seen = Vec::new();
    for _ in 0..3 {
        let response = proxy.get("/", "\r\nX-CSP-Nonce: forged\r\nX_CSP_Nonce: forged");
        let text = response.text();
        let nonce = text.lines().find_map(|line| line.strip_prefix("x-csp-nonce: ")).unwrap().to_string();
        assert!(!text.contains("forged") && nonce.len() == 32, "{text}");
        let policy = format!("script-src 'self' 'nonce-{nonce}'");
        assert_eq!(response.field("content-security-policy"), Some(policy.as_str()));
        assert!(!seen.contains(&nonce), "each response has its own");
        seen.push(nonce);
    }
}

#[test]
fn a_preload_that_browsers_refuse_is_an_error_of_the_manifest() {
    let error = rejected(&with("127.0.0.1:1", "security-headers", "hsts = { preload = true }"));
    assert!(error.contains("`preload` needs `include-subdomains = true`"), "{error}");
}

// === log-fields ===

/// Returns the lines of the access log, once there are so many.
fn logged(proxy: &Proxy, count: usize) -> Vec<String> {
    let path = proxy.folder.path().join("access.log");
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    until("the lines are written", || read().lines().count() >= count);
    read().lines().map(String::from).collect()
}

#[test]
fn chosen_values_are_in_the_json_log_and_secrets_are_redacted() {
    let config = "hash-key = \"0123456789abcdef\"\n[plugin.log-fields.config.log]\n\
                  tenant = \"request.header.x-tenant\"\npage = \"query.page\"\ntheme = \"cookie.theme\"\n\
                  kind = \"response.header.x-origin\"\n\
                  session = { value = \"cookie.session\", redact = \"first 4\" }\n\
                  user = { value = \"request.header.authorization\", redact = \"hash\" }\n\
                  [access-log]\nformat = \"json\"\nfile = \"access.log\"";
    let proxy = Proxy::start(&with(&origin(|_| ok("hello")), "log-fields", config));
    let secrets = "\r\nCookie: theme=dark; session=0123456789abcdef\r\nAuthorization: Bearer hush";
    proxy.get("/?page=2", &format!("\r\nX-Tenant: \"acme\\{secrets}"));
    let line = logged(&proxy, 1).remove(0);
    let notes = serde_json::from_str::<Value>(&line).unwrap()["notes"].clone();
    for (note, wanted) in
        [("tenant", "\"acme\\"), ("page", "2"), ("theme", "dark"), ("kind", "yes"), ("session", "0123...")]
    {
        assert_eq!(notes[note], wanted, "{line}");
    }
    assert_eq!(notes["user"].as_str().map(str::len), Some(16), "{line}");
    assert!(!line.contains("hush") && !line.contains("456789abcdef"), "{line}");
}

#[test]
fn notes_are_escaped_and_bounded_in_the_json_log_and_absent_from_the_combined() {
    let log = "[plugin.log-fields]\nuse = \"log-fields\"\n[plugin.log-fields.config.log]\nlong = \"request.header.x-long\"\nodd = \"request.header.x-odd\"\n\
               [access-log]\nformat = \"FORMAT\"\nfile = \"access.log\"\n";
    let fields = format!("\r\nX-Long: {}\r\nX-Odd: a\"}}\u{202e}b", "x".repeat(3000));
    for format in ["json", "combined"] {
        let proxy = Proxy::start(&manifest(&echo(), "\"log-fields\"", &log.replace("FORMAT", format)));
        assert_eq!(proxy.get("/", &fields).status(), 200);
        let line = logged(&proxy, 1).remove(0);
        match format {
            "json" => {
                let notes = serde_json::from_str::<Value>(&line).unwrap()["notes"].clone();
                assert_eq!(notes["long"], format!("{}...", "x".repeat(1024)));
                assert_eq!(notes["odd"], "a\"}\u{202e}b");
                assert!(line.contains("a\\\"}\\u202eb"), "{line}");
            }
            _ => assert!(!line.contains("xxx") && !line.contains("long"), "{line}"),
        }
    }
}

#[test]
fn credentials_in_the_log_need_a_word() {
    let error = rejected(&with("127.0.0.1:1", "log-fields", "log = { who = \"request.header.authorization\" }"));
    assert!(error.contains("`request.header.authorization` holds credentials"), "{error}");
}

// === body-limit ===

#[test]
fn bodies_are_limited_by_path_method_and_media_type_however_they_are_framed() {
    let config = "max = \"10 B\"\nrules = [\n\
                  { paths = [\"/upload\"], methods = [\"PUT\"], max = \"20 B\" },\n\
                  { paths = [\"/json\"], accept = [\"application/json\"] },\n\
                  { paths = [\"/known\"], require-length = true },\n]";
    let proxy = Proxy::start(&with(&echo(), "body-limit", config));
    let send = |head: &str, body: &str, is_chunked: bool| {
        let framed = match is_chunked {
            true => format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            false => format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        };
        let (start, fields) = head.split_once('\n').unwrap_or((head, ""));
        send(&proxy, &format!("{start} HTTP/1.1\r\nHost: a\r\n{fields}{framed}"))
    };
    let (short, long) = ("0123456789", "0123456789a");
    for is_chunked in [false, true] {
        for (head, body, status) in [
            ("POST /", short, 200),
            ("POST /", long, 413),
            ("POST /upload", long, 413),
            ("PUT /upload", long, 200),
            ("PUT /;a/upload;b", long, 200),
            ("POST /json\nContent-Type: application/json\r\n", short, 200),
            ("POST /json\nContent-Type: application/json\r\n", long, 413),
            ("POST /json\nContent-Type: text/plain\r\n", short, 415),
            ("POST /json", short, 415),
            ("POST /known", short, if is_chunked { 411 } else { 200 }),
        ] {
            let response = send(head, body, is_chunked);
            assert_eq!(response.status(), status, "{head:?}, chunked: {is_chunked}: {response:?}");
            match status {
                413 => assert!(response.text().contains("at most 10 bytes of content\n"), "{response:?}"),
                415 => assert_eq!(response.field("accept"), Some("application/json")),
                _ => {}
            }
        }
    }
    assert_eq!(proxy.get("/json", "\r\nContent-Type: text/plain").status(), 200, "a request without a body");
}

#[test]
fn the_route_may_allow_less_than_the_plugin() {
    let text = with(&echo(), "body-limit", "max = \"1 KiB\"").replace("[[route]]", "[[route]]\nmax-body = \"5 B\"");
    let proxy = Proxy::start(&text);
    for (length, status) in [(5, 200), (6, 413)] {
        let body = "x".repeat(length);
        let response = send(&proxy, &format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"));
        assert_eq!(response.status(), status, "{response:?}");
    }
}
