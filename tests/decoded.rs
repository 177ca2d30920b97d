//! Content with a coding, which the host decodes for plugins that want plain content.

use std::io::{BufReader, Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use plugway_test_guests::{BODIES, HOOKS};

use crate::support::{Message, Proxy, manifest, ok, origin, output, raw_origin, read_message};

/// Content that tells the plugin to sign what it gets whole.
const CONTENT: &str = "q:sign r:sign the cat sat on the mat";

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Returns content with a coding, by the name of a path.
fn coded(coding: &str, content: &[u8]) -> (&'static str, Vec<u8>) {
    match coding {
        "/gzip" => ("GZip", gzip(content)),
        "/deflate" => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(content).unwrap();
            ("deflate", encoder.finish().unwrap())
        }
        "/raw" => {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(content).unwrap();
            ("deflate", encoder.finish().unwrap())
        }
        "/br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(content).unwrap();
            ("identity\r\nContent-Encoding: br", encoder.into_inner())
        }
        "/zstd" => {
            let mut coded = vec![0; zstd_safe::compress_bound(content.len())];
            let length = zstd_safe::compress(&mut coded[..], content, 3).unwrap();
            coded.truncate(length);
            ("zstd", coded)
        }
        "/both" => ("x-gzip, zstd", coded("/zstd", &gzip(content)).1),
        _ => ("foo", content.to_vec()),
    }
}

const CODINGS: [&str; 6] = ["/gzip", "/deflate", "/raw", "/br", "/zstd", "/both"];

/// The fields with which the origin describes its content.
const FIELDS: &str = "ETag: \"strong\"\r\nAccept-Ranges: bytes\r\nRepr-Digest: sha-256=:AAAA=:\r\nContent-Digest: a=:AA=:\r\n\
                      Vary: Accept-Encoding";

/// Serves coded content by the path, as the query says, and says in `X-Asked` what it was asked for.
fn coding_origin() -> String {
    origin(|request| {
        let asked = request.field("accept-encoding").unwrap_or("-");
        let target = request.start.split(' ').nth(1).unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (coding, content) = coded(path, CONTENT.as_bytes());
        let (status, more) = match query {
            "part" => ("206 Partial Content", "\r\nContent-Range: bytes 0-9/99"),
            "fixed" => ("200 OK", "\r\nCache-Control: no-transform"),
            _ if request.field("if-none-match").is_some() => ("304 Not Modified", ""),
            _ => ("200 OK", ""),
        };
        let head = format!("HTTP/1.1 {status}\r\n{FIELDS}\r\nContent-Encoding: {coding}\r\nX-Asked: {asked}{more}");
        let content = if query == "empty" { Vec::new() } else { content };
        let length =
            if status.starts_with("304") { String::new() } else { format!("\r\nContent-Length: {}", content.len()) };
        let has_content = !request.start.starts_with("HEAD") && !length.is_empty();
        [format!("{head}{length}\r\n\r\n").as_bytes(), if has_content { &content } else { &[] }].concat()
    })
}

/// A plugin that wants plain content, with more of its configuration and more keys.
fn plain(config: &str, more: &str) -> String {
    format!("{{ use = {BODIES:?}, config = {{ coded = \"decode\"{config} }}{more} }}")
}

const WHOLE: &str = ", bodies = \"whole:100000\"";

fn decoding(config: &str, more: &str) -> Proxy {
    Proxy::start(&manifest(&coding_origin(), &plain(config, more), ""))
}

/// Asserts that the head of a response describes plain content.
fn assert_plain(message: &Message, what: &str) {
    assert_eq!(message.field("etag"), Some("W/\"strong\""), "{what}");
    for name in ["content-encoding", "accept-ranges", "repr-digest", "content-digest"] {
        assert_eq!(message.field(name), None, "{name} of {what}");
    }
    assert_eq!(message.field("vary"), Some("Accept-Encoding"), "{what}");
}

#[test]
fn a_plugin_that_wants_plain_content_gets_it_of_each_coding() {
    let (streaming, whole) = (decoding("", ""), decoding(WHOLE, ""));
    for coding in CODINGS {
        let answer = streaming.get(coding, "");
        assert_eq!(answer.text(), format!("[200 -]{CONTENT}"), "{coding}");
        assert_plain(&answer, coding);
        let answer = whole.get(coding, "");
        assert_eq!(answer.field("x-signature"), Some(format!("r [200 -] {}", CONTENT.len()).as_str()), "{coding}");
        assert_eq!((answer.text().as_str(), answer.field("content-length")), (CONTENT, Some("36")), "{coding}");
        assert_plain(&answer, coding);
    }
}

/// Sends a request with coded content, in chunks of some bytes.
fn put(proxy: &Proxy, coding: &str, content: &[u8], chunk: usize) -> Message {
    let mut stream = proxy.connect();
    let head =
        "PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Digest: a=:AA=:\r\nTransfer-Encoding: chunked";
    let mut message = format!("{head}\r\nContent-Encoding: {coding}\r\n\r\n").into_bytes();
    for chunk in content.chunks(chunk) {
        message.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        message.extend_from_slice(chunk);
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b"0\r\n\r\n");
    // An early answer ends the reading.
    let _ = stream.write_all(&message);
    read_message(&mut BufReader::new(stream)).unwrap()
}

/// An origin that tells how the content that it got was described, and the content.
fn mirror() -> String {
    origin(|request| {
        let told = ["content-encoding", "content-digest", "content-length", "x-signature"];
        ok(&format!("{} {}", told.map(|name| request.field(name).unwrap_or("-")).join("|"), request.text()))
    })
}

#[test]
fn content_of_a_request_is_decoded_wherever_it_is_split() {
    let streaming = Proxy::start(&manifest(&mirror(), &plain("", ""), ""));
    let whole = Proxy::start(&manifest(&mirror(), &plain(WHOLE, ""), ""));
    for path in CODINGS {
        let (coding, content) = coded(path, CONTENT.as_bytes());
        let coding = coding.rsplit(": ").next().unwrap();
        for chunk in [1, 7, 1000] {
            let got = put(&streaming, coding, &content, chunk).text();
            assert_eq!(got, format!("[200 -]-|-|-|- [PUT -]{CONTENT}"), "{path} by {chunk}");
            let got = put(&whole, coding, &content, chunk).text();
            assert_eq!(got, format!("-|-|36|q [PUT -] 36 {CONTENT}"), "{path} by {chunk}");
        }
    }
    assert_eq!(put(&whole, "gzip", &gzip(b"q:deny"), 4).status(), 403);
    assert_eq!(put(&whole, "identity", b"q:deny", 4).status(), 403);
}

#[test]
fn heads_without_content_describe_what_get_would_have() {
    let proxy = decoding("", "");
    for path in ["/gzip", "/both"] {
        let head = proxy.exchange(&format!("HEAD {path} HTTP/1.1\r\nHost: a"));
        assert_plain(&head, path);
        assert_eq!((head.status(), head.field("content-length")), (200, None));
        let fresh = proxy.get(path, "\r\nIf-None-Match: W/\"strong\"");
        assert_plain(&fresh, path);
        assert_eq!(fresh.status(), 304);
        let empty = proxy.get(&format!("{path}?empty"), "");
        assert_plain(&empty, path);
        assert_eq!((empty.status(), empty.text().as_str()), (200, ""));
    }
}

#[test]
fn content_that_does_not_reach_the_plugin_is_not_decoded() {
    let proxy = decoding("", "");
    let fixed = proxy.get("/gzip?fixed", "");
    assert_eq!((&fixed.body, fixed.field("content-encoding")), (&gzip(CONTENT.as_bytes()), Some("GZip")));
    assert_eq!(proxy.get("/gzip?part", "").status(), 502);
    let skipped = decoding(", bodies = \"skip\"", "").get("/gzip", "");
    assert_eq!((&skipped.body, skipped.field("content-encoding")), (&gzip(CONTENT.as_bytes()), Some("GZip")));
    assert_eq!(skipped.field("etag"), Some("\"strong\""));
    let parts = decoding(", skip_parts = true", "").get("/gzip?part", "");
    assert_eq!((parts.status(), parts.field("content-encoding")), (206, Some("GZip")));
}

#[test]
fn requests_ask_for_the_codings_of_the_client_that_can_be_decoded() {
    let proxy = decoding("", "");
    let asked = |accept: &str| proxy.get("/gzip", accept).field("x-asked").unwrap().to_string();
    assert_eq!(asked(""), "-");
    assert_eq!(asked("\r\nAccept-Encoding: gzip, br;q=0.5"), "gzip, br;q=0.5");
    assert_eq!(asked("\r\nAccept-Encoding: gzip, dcb, br\r\nAccept-Encoding: dcz"), "gzip, br");
    assert_eq!(asked("\r\nAccept-Encoding: *"), "identity");
}

#[test]
fn a_coding_that_is_not_known_is_a_matter_of_on_error() {
    let proxy = decoding("", "");
    assert_eq!(proxy.get("/foo", "").status(), 502);
    let line = proxy.wait_log("the content is coded with `foo`, and gzip, deflate, br, zstd are decoded");
    assert!(line.contains("response-body"), "{line}");
    let proxy = Proxy::start(&manifest(&mirror(), &plain("", ""), ""));
    let unknown = put(&proxy, "foo", b"q:deny", 9);
    assert_eq!((unknown.status(), unknown.field("accept-encoding")), (415, Some("identity")));
    assert_eq!(put(&proxy, "gzip, foo", b"q:deny", 9).status(), 415);
    assert_eq!(put(&proxy, "gzip, gzip, gzip, gzip", b"q:deny", 9).status(), 415);
    proxy.wait_log("more codings one over the other than the 3");
    let proxy = Proxy::start(&manifest(&mirror(), &plain("", ", on-error = 503"), ""));
    assert_eq!(put(&proxy, "foo", b"q:deny", 9).status(), 503);
    let skip = ", on-error = \"skip\"";
    let proxy = Proxy::start(&manifest(&mirror(), &plain("", skip), ""));
    let passed = put(&proxy, "foo", b"q:deny", 9);
    assert_eq!(passed.text(), "[200 -]foo|a=:AA=:|-|- q:deny");
}

#[test]
fn wrong_content_of_a_request_is_told_by_its_fault() {
    let good = gzip(CONTENT.as_bytes());
    let cases = [
        (b"<html>".to_vec(), "the content is no valid `gzip`"),
        (good[..good.len() - 1].to_vec(), "the content ends within its `gzip`"),
        ([&good[..], b"GET"].concat(), "bytes follow the end of the `gzip` content"),
    ];
    for config in ["", WHOLE] {
        let proxy = Proxy::start(&manifest(&mirror(), &plain(config, ""), ""));
        for (content, cause) in &cases {
            let answer = put(&proxy, "gzip", content, 8);
            assert_eq!(
                (answer.status(), answer.field("proxy-status")),
                (400, Some("plugway; error=http_request_error"))
            );
            proxy.wait_log(cause);
        }
        assert_eq!(put(&proxy, "gzip", &good, 8).status(), 200, "the next one");
        let proxy = Proxy::start(&manifest(&mirror(), &plain(config, ", on-error = 503"), ""));
        assert_eq!(put(&proxy, "gzip", &cases[0].0, 8).status(), 503);
    }
}

#[test]
fn bombs_are_told_by_the_limit_that_they_meet() {
    let bomb = gzip(&vec![0; 16 << 20]);
    let cases = [
        ("", "limits.decoded-ratio"),
        (", limits.decoded-ratio = 2000, limits.decoded-size = \"8 MiB\"", "limits.decoded-size"),
        (", limits.decoded-ratio = 2000, limits.decoded-memory = \"4 KiB\"", "limits.decoded-memory"),
    ];
    for (limits, key) in cases {
        let (status, kind) = match key {
            "limits.decoded-memory" => (503, "connection_limit_reached"),
            _ => (413, "http_request_body_size"),
        };
        let proxy = Proxy::start(&manifest(&mirror(), &plain("", limits), ""));
        let answer = put(&proxy, "gzip", &bomb, 4000);
        let error = format!("plugway; error={kind}");
        assert_eq!((answer.status(), answer.field("proxy-status")), (status, Some(error.as_str())), "{key}");
        let line = proxy.wait_log(&format!("limit=\"{key}\""));
        assert!(line.contains("exchange failed"), "{line}");
    }
}

/// An origin whose responses have this coding and content.
fn fixed(coding: &'static str, content: Vec<u8>) -> String {
    let content = Arc::new(content);
    origin(move |_| {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n", content.len());
        [head.as_bytes(), &content].concat()
    })
}

#[test]
fn wrong_content_of_a_response_is_an_error_of_the_upstream() {
    let good = gzip(CONTENT.as_bytes());
    let cut = fixed("gzip", good[..good.len() - 1].to_vec());
    let whole = Proxy::start(&manifest(&cut, &plain(WHOLE, ""), ""));
    let answer = whole.get("/", "");
    assert_eq!(
        (answer.status(), answer.field("proxy-status")),
        (502, Some("plugway; error=http_response_content_coding"))
    );
    whole.wait_log("the content ends within its `gzip`");
    let whole = Proxy::start(&manifest(&cut, &plain(WHOLE, ", on-error = 503"), ""));
    assert_eq!(whole.get("/", "").status(), 503);
    let bomb = fixed("gzip", gzip(&vec![0; 16 << 20]));
    let whole = Proxy::start(&manifest(&bomb, &plain(", bodies = \"whole-or-pass:2000000\"", ""), ""));
    let answer = whole.get("/", "");
    assert_eq!((answer.status(), answer.field("proxy-status")), (502, Some("plugway; error=http_response_body_size")));
    // The head of a streamed response has been sent: the response has no end.
    let streaming = Proxy::start(&manifest(&cut, &plain("", ""), ""));
    let mut stream = streaming.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 200") && !answer.ends_with(b"0\r\n\r\n"), "{answer:?}");
    streaming.wait_log("the content ends within its `gzip`");
}

#[test]
fn content_is_decoded_once_and_is_plain_for_all_plugins_behind() {
    let told = format!("{{ use = {BODIES:?}, config = {{ coded = \"as-is\" }} }}");
    let strict = format!("{{ use = {HOOKS:?} }}");
    let start = |plugins: &[&str]| Proxy::start(&manifest(&coding_origin(), &plugins.join(", "), ""));
    let plain = plain("", "");
    assert_eq!(start(&[&plain, &plain]).get("/both", "").text(), format!("[200 -][200 -]{CONTENT}"));
    // Responses come from below.
    assert_eq!(start(&[&told, &plain]).get("/gzip", "").text(), format!("[200 -][200 -]{CONTENT}"));
    assert_eq!(start(&[&strict, &plain]).get("/gzip", "").text(), format!("[200 -]{CONTENT}!").to_uppercase());
    let proxy = start(&[&plain, &strict]);
    assert_eq!(proxy.get("/gzip", "").status(), 502, "a plugin below takes no codings");
}

#[test]
fn a_cache_stores_what_is_below_it() {
    let asked = Arc::new(AtomicBool::new(false));
    let origin = |asked: Arc<AtomicBool>| {
        origin(move |_| {
            assert!(!asked.swap(true, Ordering::Relaxed), "the cache has it");
            let content = gzip(CONTENT.as_bytes());
            let fields =
                "Cache-Control: max-age=60\r\nContent-Encoding: gzip\r\nETag: \"strong\"\r\nVary: Accept-Encoding";
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: {}\r\n\r\n", content.len());
            [head.as_bytes(), &content].concat()
        })
    };
    for plugins in [format!("{}, \"cache\"", plain("", "")), format!("\"cache\", {}", plain("", ""))] {
        asked.store(false, Ordering::Relaxed);
        let proxy = Proxy::start(&manifest(&origin(asked.clone()), &plugins, ""));
        for _ in 0..3 {
            let answer = proxy.get("/", "\r\nAccept-Encoding: gzip");
            assert_eq!(answer.text(), format!("[200 -]{CONTENT}"), "{plugins}");
            assert_plain(&answer, &plugins);
        }
        // A cache above the plugin has plain content, and serves its own head.
        if plugins.ends_with("\"cache\"") {
            let head = proxy.exchange("HEAD / HTTP/1.1\r\nHost: example.org\r\nAccept-Encoding: gzip");
            assert_plain(&head, &plugins);
        }
    }
}

#[test]
fn content_over_http2_is_decoded_too() {
    let proxy = Proxy::start(&manifest(&mirror(), &plain("", ""), ""));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("coded");
    std::fs::write(&file, gzip(CONTENT.as_bytes())).unwrap();
    let curl = |proxy: &Proxy, args: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "30"]);
        output(curl.args(args).arg(format!("http://{}/gzip", proxy.address)))
    };
    let data = format!("@{}", file.display());
    let send = ["--request", "PUT", "--header", "Content-Encoding: gzip", "--data-binary", &data];
    // The content was received first, as that of a request with a length is.
    assert_eq!(curl(&proxy, &send), format!("[200 -]-|-|75|- [PUT application/x-www-form-urlencoded]{CONTENT}"));
    let status = ["--write-out", "%{http_code}", "--output", "/dev/null"];
    std::fs::write(&file, b"<html>").unwrap();
    assert_eq!(curl(&proxy, &[&send[..], &status].concat()), "400");
    let proxy = decoding("", "");
    assert_eq!(curl(&proxy, &[]), format!("[200 -]{CONTENT}"));
}

/// Returns a gigabyte of zeros, coded to a megabyte.
fn gigabyte() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let zeros = vec![0; 1 << 20];
    (0..1024).for_each(|_| encoder.write_all(&zeros).unwrap());
    encoder.finish().unwrap()
}

#[test]
fn a_gigabyte_within_the_limits_takes_no_memory_and_leaves_others_their_turns() {
    let bomb = gigabyte();
    let origin = raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_message(&mut reader) {
            let answer = if request.start.contains("/bomb") {
                let head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length";
                [format!("{head}: {}\r\n\r\n", bomb.len()).as_bytes(), &bomb].concat()
            } else {
                ok("small")
            };
            stream.write_all(&answer).unwrap();
        }
    });
    let limits = ", limits = { decoded-ratio = 2000, decoded-size = \"2 GiB\", share = 100 }";
    let text = manifest(&origin, &plain(", bodies = \"whole-or-pass:1000\"", limits), "");
    let proxy = Proxy::start(&text.replace("workers = 2", "workers = 1"));
    proxy.get("/", "");
    let before = proxy.memory_kib();
    let mut stream = proxy.connect();
    stream.write_all(b"GET /bomb HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let is_over = is_over.clone();
        move || {
            let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0_u64);
            loop {
                match stream.read(&mut buffer).unwrap() {
                    0 => break,
                    read => bytes += read as u64,
                }
            }
            is_over.store(true, Ordering::Relaxed);
            bytes
        }
    });
    let (mut served, mut most) = (0, before);
    while !is_over.load(Ordering::Relaxed) {
        assert_eq!(proxy.get("/", "").text(), "small");
        most = most.max(proxy.memory_kib());
        served += 1;
    }
    assert!(reader.join().unwrap() > 1 << 30);
    assert!(served > 20, "{served} others were served meanwhile");
    assert!(most - before < 16 << 10, "{} KiB more", most - before);
}
