//! The fields that describe a body which a plugin transforms (RFC 9110 §7.7).

use std::io::{BufReader, Read, Write};

use plugway_test_guests::{BODIES, HOOKS};

use crate::support::{Message, Proxy, manifest, ok, origin, read_message};

/// The fields with which the origin describes its body.
const FIELDS: &str = "ETag: \"strong\"\r\nAccept-Ranges: bytes\r\nRepr-Digest: sha-256=:AAAA=:\r\n\
                      Content-Digest: sha-256=:AAAA=:\r\nDigest: sha-256=AAAA\r\nContent-MD5: AAAA\r\n\
                      Last-Modified: Sat, 01 Jan 2000 00:00:00 GMT\r\n";

const CONTENT: &str = "the cat sat on the mat";

/// Serves parts and codings, and says in `X-Asked` which of them it was asked for.
fn files() -> String {
    origin(|request| {
        let asked = |name: &str| {
            let lines = request.fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
            let lines: Vec<&str> = lines.collect();
            if lines.is_empty() { "-".to_string() } else { lines.join("+") }
        };
        let seen = ["range", "if-range", "accept-encoding"].map(asked).join("|");
        let path = request.start.split(' ').nth(1).unwrap_or("/");
        let more = match path {
            "/fixed" => "Cache-Control: max-age=60, No-Transform\r\n",
            "/quoted" => "Cache-Control: x=\"\u{e9}\", no-transform\r\n",
            "/coded" => "Content-Encoding: gzip\r\n",
            "/skipped" => "X-Body: skip\r\n",
            "/tags" => "ETag: \"another\"\r\n",
            "/odd" => "Content-Encoding: \u{e9}zip\r\n",
            "/identity" => "Content-Encoding: identity\r\n",
            _ => "",
        };
        let (status, content) = match (request.field("range"), request.field("if-none-match"), path) {
            (_, Some(_), _) => {
                return format!("HTTP/1.1 304 Not Modified\r\n{FIELDS}X-Asked: {seen}\r\n\r\n").into_bytes();
            }
            (Some(_), ..) | (_, _, "/part") => ("206 Partial Content\r\nContent-Range: bytes 0-2/22", &CONTENT[..3]),
            _ => ("200 OK", CONTENT),
        };
        let length = content.len();
        let content = if request.start.starts_with("HEAD") { "" } else { content };
        format!("HTTP/1.1 {status}\r\n{FIELDS}{more}X-Asked: {seen}\r\nContent-Length: {length}\r\n\r\n{content}")
            .into_bytes()
    })
}

fn capitals(on_error: &str) -> Proxy {
    capitals_of(&files(), on_error)
}

fn capitals_of(origin: &str, on_error: &str) -> Proxy {
    Proxy::start(&manifest(origin, &format!("{{ use = {HOOKS:?}{on_error} }}"), ""))
}

fn assert_says_nothing_false(message: &Message) {
    assert_eq!(message.field("etag"), Some("W/\"strong\""));
    for name in ["accept-ranges", "repr-digest", "content-digest", "digest", "content-md5", "content-range"] {
        assert_eq!(message.field(name), None, "{name}");
    }
    assert!(message.field("last-modified").is_some());
}

#[test]
fn transformed_content_keeps_nothing_that_was_true_of_the_old() {
    let proxy = capitals("");
    let whole = proxy.get("/", "");
    assert_eq!(whole.text(), format!("{}!", CONTENT.to_uppercase()));
    assert_says_nothing_false(&whole);
    assert_says_nothing_false(&proxy.exchange("HEAD / HTTP/1.1\r\nHost: a"));
    let fresh = proxy.get("/", "\r\nIf-None-Match: W/\"strong\"");
    assert_eq!(fresh.status(), 304);
    assert_says_nothing_false(&fresh);
    assert_eq!(proxy.get("/tags", "").field("etag"), None, "two tags are none");
}

#[test]
fn content_that_is_to_be_transformed_is_asked_for_whole_and_uncoded() {
    let proxy = capitals("");
    let resumed =
        "\r\nRange: bytes=3-\r\nIf-Range: \"strong\"\r\nAccept-Encoding: deflate\r\nAccept-Encoding: gzip, br";
    let whole = proxy.get("/", resumed);
    assert_eq!((whole.status(), whole.field("x-asked")), (200, Some("-|-|identity")));
    assert_eq!(whole.text(), format!("{}!", CONTENT.to_uppercase()));
    assert_says_nothing_false(&whole);
    // Without the field, each coding is acceptable (RFC 9110 §12.5.3).
    assert_eq!(proxy.get("/", "").field("x-asked"), Some("-|-|identity"));
}

#[test]
fn content_that_must_not_be_transformed_passes_as_it_is() {
    let proxy = capitals("");
    // A byte beyond ASCII hides no neighbour in the list.
    for path in ["/fixed", "/quoted"] {
        let fixed = proxy.get(path, "");
        assert_eq!((fixed.text().as_str(), fixed.field("etag")), (CONTENT, Some("\"strong\"")), "{path}");
        // The request has lost its Range, and others to this path will.
        assert_eq!((fixed.field("accept-ranges"), fixed.field("content-length")), (None, Some("22")));
    }
    assert_eq!(proxy.get("/identity", "").text(), format!("{}!", CONTENT.to_uppercase()));
}

#[test]
fn a_response_that_a_plugin_skips_promises_no_ranges_that_no_request_gets() {
    let origin = files();
    let with = |config: &str| {
        Proxy::start(&manifest(&origin, &format!("{{ use = {BODIES:?}, config = {{ {config} }} }}"), ""))
    };
    let part = "\r\nRange: bytes=0-2";
    let proxy = with("");
    for fields in ["", part] {
        let whole = proxy.get("/skipped", fields);
        assert_eq!((whole.status(), whole.field("accept-ranges")), (200, None), "{fields}");
        assert_eq!(whole.field("etag"), Some("\"strong\""), "nothing else changes");
    }
    let (mut stream, mut head) = (proxy.connect(), String::new());
    stream.write_all(b"HEAD /skipped HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut head).unwrap();
    assert!(head.contains("content-length: 22\r\n") && !head.contains("accept-ranges"), "{head}");
    // A plugin that lets parts pass leaves the request its Range.
    let proxy = with("skip_parts = true");
    let parted = proxy.get("/skipped", part);
    assert_eq!((parted.status(), parted.field("accept-ranges"), parted.text().as_str()), (206, Some("bytes"), "the"));
    assert_eq!(proxy.get("/skipped", "").field("accept-ranges"), Some("bytes"));
}

#[test]
fn content_that_can_not_be_transformed_is_a_matter_of_on_error() {
    let proxy = capitals("");
    let obstacles = [
        ("/coded", "the content is coded with `gzip`"),
        ("/odd", "the content is coded with"),
        ("/part", "the content is a part"),
    ];
    for (path, cause) in obstacles {
        assert_eq!(proxy.get(path, "").status(), 502);
        let line = proxy.wait_log(cause);
        assert!(line.contains("it can't take the body"), "{line}");
    }
    let proxy = capitals(", on-error = \"skip\"");
    let coded = proxy.get("/coded", "");
    assert_eq!((coded.text().as_str(), coded.field("etag")), (CONTENT, Some("\"strong\"")));
}

#[test]
fn content_of_a_request_that_is_transformed_loses_its_digests() {
    let origin = origin(|request| {
        let told = ["content-digest", "repr-digest", "digest", "content-md5"].map(|name| request.field(name).is_some());
        ok(&format!("{told:?} {}", request.text()))
    });
    let proxy = Proxy::start(&manifest(&origin, &format!("{{ use = {HOOKS:?} }}"), ""));
    let mut stream = proxy.connect();
    stream
        .write_all(
            b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Digest: a=:AA=:\r\nRepr-Digest: a=:AA=:\r\n\
              Digest: a=AA\r\nContent-MD5: AA\r\nContent-Length: 3\r\n\r\nabc",
        )
        .unwrap();
    let answer = read_message(&mut BufReader::new(stream)).unwrap();
    assert_eq!(answer.text(), "[FALSE, FALSE, FALSE, FALSE] ABC!!");
}

#[test]
fn content_of_a_request_that_can_not_be_transformed_is_a_matter_of_on_error() {
    let origin = origin(|request| ok(&format!("{:?} {}", request.field("content-encoding"), request.text())));
    let send = |proxy: &Proxy, field: &str| {
        let mut stream = proxy.connect();
        let head = "PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3";
        write!(stream, "{head}\r\n{field}\r\n\r\nabc").unwrap();
        read_message(&mut BufReader::new(stream)).unwrap()
    };
    let proxy = capitals_of(&origin, "");
    for (field, status, cause) in [
        ("Content-Encoding: gzip", 415, "the content is coded with `gzip`"),
        ("Content-Range: bytes 0-2/7", 400, "the content is a part"),
    ] {
        assert_eq!(send(&proxy, field).status(), status, "{field}");
        let line = proxy.wait_log(cause);
        assert!(line.contains("it can't take the body"), "{line}");
    }
    assert_eq!(send(&proxy, "Content-Encoding: identity").text(), "SOME(\"IDENTITY\") ABC!!");
    let proxy = capitals_of(&origin, ", on-error = 503");
    assert_eq!(send(&proxy, "Content-Encoding: gzip").status(), 503);
    let proxy = capitals_of(&origin, ", on-error = \"skip\"");
    assert_eq!(send(&proxy, "Content-Encoding: gzip").text(), "SOME(\"GZIP\") ABC!");
}

#[test]
fn trailers_of_transformed_content_lose_its_digests() {
    let origin = origin(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Repr-Digest, ETag\r\nTrailer: X-Kept\r\n\r\n\
          3\r\nabc\r\n0\r\nRepr-Digest: sha-256=:AAAA=:\r\nETag: \"strong\"\r\nX-Kept: 1\r\n\r\n"
            .to_vec()
    });
    let proxy = Proxy::start(&manifest(&origin, &format!("{{ use = {HOOKS:?} }}"), ""));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, trailers) = answer.split_once("\r\n0\r\n").unwrap();
    assert!(answer.contains("ABC") && trailers.contains("x-kept: 1") && answer.contains("\r\ntrailer: X-Kept\r\n"));
    assert!(!answer.contains("igest") && !answer.to_lowercase().contains("etag"), "{answer}");
}

#[test]
fn contentless_response_of_a_cache_below_has_no_untrue_fields() {
    let origin = origin(|_| {
        let (fields, length) = (FIELDS, CONTENT.len());
        format!("HTTP/1.1 200 OK\r\n{fields}Cache-Control: max-age=60\r\nContent-Length: {length}\r\n\r\n{CONTENT}")
            .into_bytes()
    });
    let proxy = Proxy::start(&manifest(&origin, &format!("{{ use = {HOOKS:?} }}, \"cache\""), ""));
    assert_eq!(proxy.get("/", "").text(), format!("{}!", CONTENT.to_uppercase()));
    let head = proxy.exchange("HEAD / HTTP/1.1\r\nHost: example.org");
    assert!(head.field("cache-status").is_some_and(|status| status.contains("hit")), "{head:?}");
    assert_says_nothing_false(&head);
    assert_eq!(head.field("content-length"), None);
    let fresh = proxy.get("/", "\r\nIf-None-Match: W/\"strong\"");
    assert_eq!(fresh.status(), 304);
    assert_says_nothing_false(&fresh);
}

/// A proxy whose plugin tells that it got a body, with some rules for content.
fn with_rules(origin: &str, rules: &str) -> Proxy {
    Proxy::start(&manifest(origin, &format!("{{ use = {BODIES:?}, config = {{ {rules} }} }}"), ""))
}

const TOLD: &str = "[200 -]";

#[test]
fn a_plugin_may_take_content_that_must_not_be_transformed() {
    let proxy = with_rules(&files(), "ignore_no_transform = true");
    assert_eq!(proxy.get("/fixed", "").text(), format!("{TOLD}{CONTENT}"));
    assert_eq!(with_rules(&files(), "").get("/fixed", "").text(), CONTENT);
}

#[test]
fn a_plugin_may_leave_parts_to_their_clients() {
    let proxy = with_rules(&files(), "skip_parts = true");
    let part = proxy.get("/", "\r\nRange: bytes=0-2\r\nIf-Range: \"strong\"");
    assert_eq!((part.status(), part.text().as_str()), (206, &CONTENT[..3]));
    assert_eq!(
        (part.field("x-asked"), part.field("etag")),
        (Some("bytes=0-2|\"strong\"|identity"), Some("\"strong\""))
    );
    assert_eq!(proxy.get("/", "").text(), format!("{TOLD}{CONTENT}"));
}

#[test]
fn a_plugin_may_take_coded_content_as_it_is() {
    let proxy = with_rules(&files(), "coded = \"as-is\"");
    let coded = proxy.get("/coded", "\r\nAccept-Encoding: gzip");
    assert_eq!((coded.text(), coded.field("content-encoding")), (format!("{TOLD}{CONTENT}"), Some("gzip")));
    assert_eq!(coded.field("x-asked"), Some("-|-|gzip"));
    let origin = origin(|request| ok(&format!("{:?} {}", request.field("content-encoding"), request.text())));
    let proxy = with_rules(&origin, "coded = \"as-is\"");
    let mut stream = proxy.connect();
    let head = "PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: 3";
    write!(stream, "{head}\r\n\r\nabc").unwrap();
    let answer = read_message(&mut BufReader::new(stream)).unwrap();
    assert_eq!(answer.text(), "[200 -]Some(\"gzip\") [PUT -]abc");
}
