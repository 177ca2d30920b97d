//! Body hooks: the values that they get, how a head hook decides about them, and what they may do with a message.

use std::io::{BufReader, Write};

use plugway_test_guests::BODIES;

use crate::support::{Message, Proxy, manifest, ok, origin, read_message};

/// A proxy in front of an origin that answers with what it got.
fn mirror(plugins: &str) -> Proxy {
    let origin = origin(|request| ok(&request.text()));
    Proxy::start(&manifest(&origin, plugins, ""))
}

fn bodies() -> String {
    format!("{{ use = {BODIES:?} }}")
}

/// Sends a request with content and more fields.
fn post(proxy: &Proxy, fields: &str, content: &str) -> Message {
    let mut stream = proxy.connect();
    let length = content.len();
    let head = "POST /in HTTP/1.1\r\nHost: a\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {length}{fields}\r\n\r\n{content}").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

#[test]
fn a_body_hook_gets_the_values_that_it_declared() {
    let proxy = mirror(&bodies());
    let answer = post(&proxy, "\r\nContent-Type: text/x", "abc");
    assert_eq!(answer.text(), "[200 -][POST text/x]abc");
}

#[test]
fn values_of_a_body_hook_are_those_after_the_edits_of_all_plugins() {
    let edits = "{ use = \"headers\", config = { request.set = { Content-Type = \"b\" }, response.set = { Content-Type = \"c\" } } }";
    // Above and below: edits of either are seen.
    for plugins in [format!("{edits}, {}", bodies()), format!("{}, {edits}", bodies())] {
        assert_eq!(post(&mirror(&plugins), "", "abc").text(), "[200 c][POST b]abc", "{plugins}");
    }
}

/// The metric of the calls of the plugin `bodies`.
const CALLS: &str = "plugway_plugin_calls_total{plugin=\"bodies\"}";

/// A proxy whose plugin takes bodies as `declared` says, in front of an origin that answers with what it got and with
/// the field `X-Body` that the request's field `X-Answer` names.
fn deciding(declared: &str) -> Proxy {
    let origin = origin(|request| {
        let (text, decision) = (request.text(), request.field("x-answer").unwrap_or("skip"));
        let head = format!("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nX-Body: {decision}\r\nContent-Length: {}", text.len());
        format!("{head}\r\n\r\n{text}").into_bytes()
    });
    let plugin = format!("[plugin.bodies]\nuse = {BODIES:?}\nconfig = {{ bodies = {declared:?} }}\n");
    Proxy::start(&manifest(&origin, "\"bodies\"", &plugin))
}

#[test]
fn a_head_hook_decides_about_the_body_of_its_message() {
    let proxy = deciding("skip");
    let text = |fields: &str, content: &str| post(&proxy, fields, content).text();
    assert_eq!(text("", "abc"), "abc", "as it declared");
    assert_eq!(text("\r\nX-Body: stream", "abc"), "[POST -]abc");
    assert_eq!(text("\r\nX-Body: plan", "abc"), "[POST -]abc");
    assert_eq!(text("\r\nX-Answer: stream", "abc"), "[200 -]abc");
    assert_eq!(text("\r\nX-Answer: whole-or-pass:2", "abc"), "abc");
    assert_eq!(post(&proxy, "\r\nX-Body: whole:2", "abc").status(), 413);
    assert_eq!(post(&proxy, "\r\nX-Answer: whole:2", "abc").status(), 502);
    let proxy = deciding("stream");
    assert_eq!(post(&proxy, "\r\nX-Body: skip", "abc").text(), "abc");
}

#[test]
fn a_skipped_body_costs_no_call_and_changes_nothing_of_its_message() {
    let proxy = deciding("skip");
    let answer = post(&proxy, "", "abc");
    assert_eq!((answer.text().as_str(), answer.field("etag")), ("abc", Some("\"a\"")));
    assert_eq!(answer.field("content-length"), Some("3"));
    let calls = proxy.metric(CALLS);
    post(&proxy, "", "abc");
    assert_eq!(proxy.metric(CALLS) - calls, 2.0, "one for each head");
}

#[test]
fn a_decision_about_a_body_that_can_not_be_is_a_failure_of_the_head_hook() {
    let proxy = deciding("skip");
    let refused = post(&proxy, "\r\nX-Body: whole:99999999999", "abc");
    assert_eq!((refused.status(), refused.field("proxy-status")), (502, Some("plugway; error=plugin_error")));
    let line = proxy.wait_log("its memory limit doesn't hold");
    assert!(line.contains("hook=\"request-filter\""), "{line}");
}
