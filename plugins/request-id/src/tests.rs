use std::time::{Duration, UNIX_EPOCH};

use plugway_sdk::testing::{Harness, Request, clock};
use plugway_sdk::{ConfigError, Response};
use serde_json::{Value, json};

use super::RequestId;

/// The identifier of each request in tests.
const HOST: &str = "0123456789abcdef0123456789abcdef";

fn plugin(config: Value) -> Harness<RequestId> {
    Harness::new(config).unwrap()
}

/// Returns the field and the note of a request, and the field of its response.
fn seen(config: Value, request: Request) -> (String, String, Option<String>) {
    let mut plugin = plugin(config);
    let passed = plugin.request(request).passed().unwrap();
    let response = plugin.response(&passed, Response::new(200).field("x-request-id", "theirs")).passed().unwrap();
    let lines: Vec<_> = response.fields.iter().filter(|(name, _)| name == "x-request-id").collect();
    assert!(lines.len() <= 1, "{lines:?}");
    let field = lines.first().map(|(_, value)| String::from_utf8(value.clone()).unwrap());
    let text = |text: Option<&str>| text.unwrap().to_string();
    (text(passed.text("x-request-id")), text(passed.noted("request-id")), field)
}

#[test]
fn without_a_choice_the_host_makes_all_edits() {
    let setup = plugin(json!({})).setup;
    assert!(setup.request_plan.is_some() && setup.response_plan.is_some());
    let all = (HOST.to_string(), HOST.to_string(), Some(HOST.to_string()));
    assert_eq!(seen(json!({}), Request::get("/").field("x-request-id", "spoofed")), all);
    // A call makes the same.
    assert_eq!(seen(json!({ "trust": true }), Request::get("/")), all);
    assert!(plugin(json!({ "trust": true })).setup.request_plan.is_none());
}

#[test]
fn a_valid_identifier_is_kept_if_it_is_trusted() {
    let trusting = || json!({ "trust": true, "max-length": 8 });
    let kept = seen(trusting(), Request::get("/").field("x-request-id", "a-1"));
    assert_eq!(kept, ("a-1".into(), "a-1".into(), Some("a-1".into())));
    for invalid in ["", "a b", "123456789", "\"x\""] {
        assert_eq!(seen(trusting(), Request::get("/").field("x-request-id", invalid)).0, HOST, "{invalid}");
    }
    let twice = Request::get("/").field("x-request-id", "a").field("x-request-id", "b");
    assert_eq!(seen(trusting(), twice).0, HOST);
}

#[test]
fn identifiers_begin_with_the_time() {
    clock::set(UNIX_EPOCH + Duration::from_millis(0x0123_4567_89ab));
    let uuid = || seen(json!({ "format": "uuid" }), Request::get("/")).0;
    assert!(uuid().starts_with("01234567-89ab-7"), "{}", uuid());
    clock::advance(Duration::from_millis(1));
    assert!(uuid().starts_with("01234567-89ac-7"), "{}", uuid());
}

#[test]
fn identifiers_have_the_form_that_is_configured() {
    let (uuid, noted, response) = seen(json!({ "format": "uuid" }), Request::get("/").field("x-request-id", "spoofed"));
    assert_eq!((uuid.len(), &uuid[14..15], uuid.matches('-').count()), (36, "7", 4));
    assert_eq!((&noted, response.as_ref()), (&uuid, Some(&uuid)));
    let (ulid, ..) = seen(json!({ "format": "ulid" }), Request::get("/"));
    assert!(ulid.len() == 26 && ulid.starts_with("01"), "{ulid}");
}

#[test]
fn names_and_the_response_are_configured() {
    let mut plugin = plugin(json!({ "field": "X-Trace", "note": "trace", "response": false }));
    let passed = plugin.request(Request::get("/")).passed().unwrap();
    assert_eq!((passed.text("x-trace"), passed.noted("trace")), (Some(HOST), Some(HOST)));
    let response = plugin.response(&passed, Response::new(200)).passed().unwrap();
    assert!(response.fields.is_empty(), "{response:?}");
}

#[test]
fn a_traceparent_is_made_or_passes() {
    let received = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let made = format!("00-{HOST}-{}-00", &HOST[16..]);
    let field = |config: Value, received: &str| {
        let request = Request::get("/").field("traceparent", received).field("tracestate", "a=1");
        let passed = plugin(config).request(request).passed().unwrap();
        (passed.text("traceparent").unwrap().to_string(), passed.text("tracestate").is_some())
    };
    assert_eq!(field(json!({}), received), (received.into(), true));
    assert_eq!(field(json!({ "format": "ulid" }), "x"), ("x".into(), true));
    assert_eq!(field(json!({ "traceparent": "create" }), received), (made.clone(), false));
    assert_eq!(field(json!({ "traceparent": "create", "trust": true }), received), (received.into(), true));
    assert_eq!(field(json!({ "traceparent": "create", "trust": true }), "x"), (made.clone(), false));
    let sampled = json!({ "traceparent": "create", "sampled": true });
    assert_eq!(field(sampled, "x").0, format!("00-{HOST}-{}-01", &HOST[16..]));
}

#[test]
fn mistakes_are_named() {
    let error = |config| Harness::<RequestId>::new(config).err().unwrap();
    for (config, path) in [
        (json!({ "max-length": 0 }), "/max-length"),
        (json!({ "max-length": 1025 }), "/max-length"),
        (json!({ "field": "a b" }), "/field"),
        (json!({ "field": "HOST" }), "/field"),
        (json!({ "note": "" }), "/note"),
    ] {
        let ConfigError { path: found, message } = error(config);
        assert!(found == path && message.contains("expected"), "{found}: {message}");
    }
}
