//! Responses over HTTP/2 that have no content, whatever made them: no DATA, and no length that is untrue.

use plugway_test_guests::{HOOKS, OVERRIDES};

use crate::http2::{END_HEADERS, END_STREAM, GET, HEADERS, Raw};
use crate::support::{Proxy, manifest, ok, origin};

/// `HEAD http://a/`, by the static table of HPACK and two literals.
const HEAD: &[u8] = &[0x02, 4, b'H', b'E', b'A', b'D', 0x86, 0x84, 0x41, 1, b'a'];

/// Whether the head of the response to a request is all of the response.
fn ends_with_its_head(proxy: &Proxy, request: &[u8]) -> bool {
    let mut client = Raw::connect(proxy);
    client.send(HEADERS, END_STREAM | END_HEADERS, 1, request);
    client.until(|frame| frame.kind == HEADERS).flags & END_STREAM != 0
}

/// Returns the head of a response as curl prints it. curl fails for a response that is malformed.
fn head(proxy: &Proxy, args: &[&str]) -> String {
    let mut curl = std::process::Command::new("curl");
    curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "30", "--dump-header", "-"]);
    curl.args(["--output", "/dev/null"]).args(args).arg(format!("http://{}/", proxy.address));
    let output = curl.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_response_to_head_is_its_head_whatever_made_it() {
    let fixed = |plugins: &str| {
        Proxy::start(&format!(
            "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nplugins = [{plugins}]\n\
             respond = {{ body = \"User-agent: *\\n\" }}\n"
        ))
    };
    let plain = fixed("");
    assert!(ends_with_its_head(&plain, HEAD), "a fixed response");
    let got = head(&plain, &["--head"]);
    assert!(got.contains("content-length: 14\r\n"), "{got}");
    assert!(!ends_with_its_head(&plain, GET));
    let transformed = fixed(&format!("{{ use = {HOOKS:?} }}"));
    assert!(ends_with_its_head(&transformed, HEAD), "a fixed response that a plugin transforms");
    let got = head(&transformed, &["--head"]);
    assert!(got.starts_with("HTTP/2 200") && !got.contains("content-length"), "{got}");
    let asked = format!("{{ use = {OVERRIDES:?}, config.method = \"GET\" }}");
    let asked = Proxy::start(&manifest(&origin(|_| ok("hello")), &asked, ""));
    assert!(ends_with_its_head(&asked, HEAD), "the response of an endpoint that was asked by GET");
    let got = head(&asked, &["--head"]);
    assert!(got.contains("content-length: 5\r\n"), "{got}");
}

#[test]
fn a_response_that_an_edit_left_without_content_has_no_length() {
    let start = |config: &str, answer: &'static str| {
        let plugin = format!("{{ use = {OVERRIDES:?}, config = {{ {config} }} }}");
        Proxy::start(&manifest(&origin(move |_| answer.into()), &plugin, ""))
    };
    let asked_by_head = start("method = \"HEAD\"", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let not_modified = start("status = 200", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n");
    for (what, proxy) in [("a method", &asked_by_head), ("a status", &not_modified)] {
        let got = head(proxy, &[]);
        assert!(got.starts_with("HTTP/2 200") && !got.contains("content-length: 5"), "{what}: {got}");
        assert!(ends_with_its_head(proxy, GET), "{what}");
        let http1 = proxy.get("/", "");
        assert_eq!((http1.status(), http1.field("content-length")), (200, Some("0")), "{what}");
    }
    // The length of the response to GET is a fact about HEAD and 304.
    let kept = start("", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n");
    assert!(head(&kept, &[]).contains("content-length: 5\r\n"));
}
