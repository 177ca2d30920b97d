//! Native tests of the plugin `log-fields`.

use plugway_sdk::Response;
use plugway_sdk::testing::{Harness, Request};
use serde_json::{Value, json};

use super::LogFields;

fn harness(config: Value) -> Harness<LogFields> {
    Harness::new(config).unwrap()
}

/// Returns the paths and messages of all errors.
fn errors(config: Value) -> Vec<(String, String)> {
    Harness::<LogFields>::errors(config).into_iter().map(|error| (error.path, error.message)).collect()
}

#[test]
fn values_of_requests_become_notes_without_a_call() {
    let mut plugin = harness(json!({ "log": {
        "tenant": "request.header.x-tenant", "page": "query.page", "theme": "cookie.theme", "absent": "query.nothing",
    }}));
    assert!(plugin.setup.request_plan.is_some() && plugin.setup.response_plan.is_some());
    let request = Request::get("/?page=2").field("x-tenant", "acme").field("cookie", "a=1; theme=dark");
    let request = plugin.request(request).passed().unwrap();
    assert_eq!(
        ["tenant", "page", "theme", "absent"].map(|note| request.noted(note)),
        [Some("acme"), Some("2"), Some("dark"), None]
    );
}

#[test]
fn redacted_values_are_never_noted_whole() {
    let mut plugin = harness(json!({ "hash-key": "0123456789abcdef", "log": {
        "user": { "value": "request.header.authorization", "redact": "hash" },
        "session": { "value": "cookie.session", "redact": "first 4" },
        "card": { "value": "query.card", "redact": "last 4" },
        "key": { "value": "request.header.x-api-key", "redact": "present" },
        "agent": "request.header.user-agent",
        "none": { "value": "query.none", "redact": "hash" },
    }}));
    let request = Request::get("/?card=4111111111111234&none=").field("authorization", "Bearer abcdefghijkl");
    let request =
        request.field("cookie", "session=0123456789abcdef").field("x-api-key", "k").field("user-agent", "curl");
    let request = plugin.request(request).passed().unwrap();
    let user = request.noted("user").unwrap();
    assert!(user.len() == 16 && user.bytes().all(|digit| digit.is_ascii_hexdigit()), "{user}");
    assert_eq!(request.noted("session"), Some("0123..."));
    assert_eq!(request.noted("card"), Some("...1234"));
    assert_eq!((request.noted("key"), request.noted("agent")), (Some("present"), Some("curl")));
    assert_eq!(request.noted("none"), None);
}

#[test]
fn credentials_are_logged_whole_only_if_that_is_said() {
    for name in ["request.header.authorization", "request.header.Cookie", "response.header.set-cookie"] {
        let found = errors(json!({ "log": { "secret": name } }));
        assert!(
            found.len() == 1 && found[0].0 == "/log/secret" && found[0].1.contains("holds credentials"),
            "{found:?}"
        );
        harness(json!({ "log": { "secret": { "value": name, "redact": "none" } } }));
    }
}

#[test]
fn values_of_responses_are_read_with_the_response() {
    let mut plugin =
        harness(json!({ "log": { "kind": { "value": "response.header.content-type", "redact": "first 4" } } }));
    assert!(plugin.setup.request_plan.is_some() && plugin.setup.response_plan.is_none());
    let response = Response::new(200).field("content-type", "text/html");
    assert!(plugin.response(&Request::get("/"), response).passed().is_some());
}

#[test]
fn configurations_that_log_nothing_are_errors() {
    for (config, path, part) in [
        (json!({}), "", "no value is logged"),
        (json!({ "log": { "a": "header.x" } }), "/log/a", "there is no value `{header.x}`"),
        (json!({ "log": { "a": { "value": "path", "redact": "md5" } } }), "/log/a/redact", "unknown redaction: `md5`"),
        (json!({ "log": { "a": { "value": "pfad", "redact": "hash" } } }), "/log/a/value", "there is no value"),
        (json!({ "log": { "a": "note.user" } }), "/log/a", "shows the note of `note.user` already"),
        (json!({ "log": { "a": "path" }, "hash-key": " " }), "/hash-key", "the secret is empty"),
    ] {
        let found = errors(config.clone());
        assert!(found.len() == 1 && found[0].0 == path && found[0].1.contains(part), "{config}: {found:?}");
    }
}
