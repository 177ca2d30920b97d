//! Native tests of the plugin `headers`.

use plugway_sdk::testing::{Harness, Request};
use plugway_sdk::{ConfigError, Response};
use serde_json::{Value, json};

use super::Headers;

fn harness(config: Value) -> Harness<Headers> {
    Harness::new(config).unwrap()
}

fn both_ways(config: Value) -> [Harness<Headers>; 2] {
    let mut each = config.clone();
    each["evaluate-each"] = json!(true);
    [harness(config), harness(each)]
}

#[test]
fn a_plan_and_a_call_make_the_same_edits() {
    let config = json!({ "request": {
        "rename": { "x-old": "x-new" },
        "remove": ["x-debug"],
        "set": { "Host": "{host}", "X-Real-IP": "{client.ip}", "X-Absent": "{note.nobody}", "X-Text": "a{{b}}" },
        "append": { "x-list": "{method} {path}" },
        "default": { "x-default": "ours", "x-kept": "ours" },
    }});
    for mut headers in both_ways(config) {
        let request = Request::get("/p?q=1").field("x-old", "1").field("x-debug", "1").field("x-list", "first");
        let request = request.field("x-kept", "theirs").field("x-absent", "theirs");
        let passed = headers.request(request).passed().unwrap();
        assert_eq!(passed.text("host"), Some("example.org"));
        assert_eq!(passed.text("x-real-ip"), Some("192.0.2.1"));
        assert_eq!((passed.text("x-old"), passed.text("x-new")), (None, Some("1")));
        assert_eq!((passed.text("x-debug"), passed.text("x-absent")), (None, None));
        assert_eq!(passed.text("x-text"), Some("a{b}"));
        assert_eq!(passed.lines("x-list"), ["first", "GET /p"]);
        assert_eq!((passed.text("x-default"), passed.text("x-kept")), (Some("ours"), Some("theirs")));
    }
}

#[test]
fn edits_see_each_other_in_the_order_of_the_field_names() {
    let config = json!({ "request": { "set": {
        "X-B": "{request.header.x-a}", "X-A": "1", "X-C": "{request.header.x-d}", "X-D": "2",
        "x-lower": "{request.header.x-upper}", "X-Upper": "3",
    }}});
    for mut headers in both_ways(config) {
        let request = Request::get("/").field("x-d", "theirs");
        let passed = headers.request(request).passed().unwrap();
        assert_eq!((passed.text("x-a"), passed.text("x-b")), (Some("1"), Some("1")));
        assert_eq!((passed.text("x-c"), passed.text("x-d")), (Some("theirs"), Some("2")));
        assert_eq!(passed.text("x-lower"), Some("3"));
    }
}

#[test]
fn responses_are_edited_where_the_conditions_hold() {
    let mut headers = harness(json!({
        "when": { "methods": ["GET"], "paths": ["/api"], "statuses": [200] },
        "response": { "set": { "cache-control": "no-store" } },
    }));
    let edited = |headers: &mut Harness<Headers>, request: &Request, status| {
        let response = headers.response(request, Response::new(status)).passed().unwrap();
        response.fields.iter().any(|(name, _)| name == "cache-control")
    };
    assert!(edited(&mut headers, &Request::get("/api/x"), 200));
    assert!(!edited(&mut headers, &Request::get("/api/x"), 404));
    assert!(!edited(&mut headers, &Request::get("/"), 200));
    assert!(!edited(&mut headers, &Request::new("POST", "/api"), 200));
}

#[test]
fn the_upstream_is_told_of_the_client_and_of_the_way() {
    let told = |fields: &str, request: Request| {
        let config = json!({ "forwarded": { "fields": fields } });
        harness(config).request(request).passed().unwrap()
    };
    let direct = told("both", Request::get("/").from("198.51.100.1"));
    assert_eq!(direct.text("x-forwarded-for"), Some("198.51.100.1"));
    assert_eq!(direct.text("x-forwarded-proto"), Some("http"));
    assert_eq!(direct.text("x-forwarded-host"), Some("example.org"));
    assert_eq!(direct.text("x-real-ip"), Some("198.51.100.1"));
    assert_eq!(direct.text("forwarded"), Some("for=198.51.100.1;host=example.org;proto=http"));
    assert_eq!(direct.noted("client"), Some("198.51.100.1"));

    // The received fields that the host has kept are trusted.
    let request = Request::get("/").from("2001:db8::1").field("x-forwarded-for", "203.0.113.9, 10.0.0.7:80");
    let request = request.field("x-forwarded-proto", "https").field("x-forwarded-host", "a.example:8080");
    let behind = told("both", request.clone());
    assert_eq!(behind.text("x-forwarded-for"), Some("203.0.113.9, 10.0.0.7:80, 2001:db8::1"));
    assert_eq!(behind.text("x-forwarded-proto"), Some("https"));
    let forwarded = "for=203.0.113.9;host=\"a.example:8080\";proto=https, for=\"10.0.0.7:80\", \
                     for=\"[2001:db8::1]\";host=example.org;proto=http";
    assert_eq!(behind.text("forwarded"), Some(forwarded));
    let received = told("rfc7239", request.field("forwarded", "for=203.0.113.9;proto=https"));
    let forwarded = "for=203.0.113.9;proto=https, for=\"[2001:db8::1]\";host=example.org;proto=http";
    assert_eq!(received.text("forwarded"), Some(forwarded));

    let request = Request::get("/").from("10.0.0.1").field("forwarded", "for=_hidden;proto=https;host=a.example");
    let translated = told("x-forwarded", request);
    assert_eq!(translated.text("x-forwarded-proto"), Some("https"));
    assert_eq!(translated.text("x-forwarded-host"), Some("a.example"));
}

#[test]
fn conditions_on_paths_hold_without_their_parameters() {
    let mut headers = harness(json!({ "when": { "paths": ["/api"] }, "request": { "set": { "x-api": "1" } } }));
    let mut is_edited = |path: &str| headers.request(Request::get(path)).passed().unwrap().text("x-api").is_some();
    for path in ["/api", "/api/x", "/;/api", "/%3Ba/api;b"] {
        assert!(is_edited(path), "{path}");
    }
    assert!(!is_edited("/x;/api"));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let error = |config| Harness::<Headers>::new(config).err().unwrap();
    let at = |ConfigError { path, message }: ConfigError, pointer: &str, part: &str| {
        assert_eq!(path, pointer);
        assert!(message.contains(part), "{message}");
    };
    at(error(json!({ "request": { "set": { "a~b": "{hots}" } } })), "/request/set/a~0b", "no value `{hots}`");
    at(error(json!({ "response": { "append": { "a": "{" } } })), "/response/append/a", "not closed");
    at(error(json!({ "response": { "default": { "a": "}" } } })), "/response/default/a", "closes nothing");
    at(
        error(json!({ "request": { "set": { "X-A": "1", "x-a": "2" } } })),
        "/request/set/x-a",
        "`x-a` and `X-A` are one",
    );
    let statuses = json!({ "request": { "set": { "a": "1" } }, "when": { "statuses": [200] } });
    at(error(statuses), "/when/statuses", "no edits of responses");
}

#[test]
fn all_mistakes_of_templates_are_named() {
    let errors = Harness::<Headers>::errors(json!({
        "request": { "set": { "a": "{hots}", "b": "{host}", "c": "{" }, "append": { "d": "}" } },
        "response": { "default": { "e": "{stauts}" } },
    }));
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, ["/request/set/a", "/request/set/c", "/request/append/d", "/response/default/e"]);
}

#[test]
fn names_that_no_field_has_are_errors_at_their_places() {
    let edits = json!({
        "rename": { "a b": "c", "d": "" },
        "remove": ["e", "f:"],
        "set": { "g/h": "1" },
        "append": { "\u{fc}": "1" },
        "default": { " i": "1" },
    });
    for message in ["request", "response"] {
        let errors = Harness::<Headers>::errors(json!({ message: edits.clone() }));
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        let wanted = ["rename/a b", "rename/d", "remove/1", "set/g~1h", "append/\u{fc}", "default/ i"];
        assert_eq!(paths, wanted.map(|wanted| format!("/{message}/{wanted}")));
        assert_eq!(errors[0].message, "invalid name of a field: `a b`; expected one such as `X-Request-ID`");
    }
}

#[test]
fn values_that_no_request_has_are_errors_in_edits_of_requests() {
    let edits = json!({
        "set": { "a": "{status}", "b": "{note.b} {endpoint}" },
        "append": { "c": "{response.header.x}" },
        "default": { "d": "{upstream}" },
    });
    let errors = Harness::<Headers>::errors(json!({ "request": edits.clone() }));
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, ["/request/set/a", "/request/set/b", "/request/append/c"]);
    for (error, why) in errors.iter().zip([
        "no request has `{status}`, which is known with the response only; remove it, or set the field in `response`",
        "no request has `{endpoint}`",
        "no request has `{response.header.x}`",
    ]) {
        assert!(error.message.contains(why), "{error:?}");
    }
    harness(json!({ "response": edits }));
}

#[test]
fn conditions_that_no_message_meets_are_errors() {
    for (when, pointer, why) in [
        (json!({ "paths": ["/a", "api"] }), "/when/paths/1", "write `/api`"),
        (json!({ "paths": ["/a?b"] }), "/when/paths/0", "ends before `?`"),
        (json!({ "paths": ["/gr\u{f6}\u{df}e/"] }), "/when/paths/0", "write `/gr%C3%B6%C3%9Fe/`"),
        (json!({ "paths": ["/%7Euser/"] }), "/when/paths/0", "letters as they are"),
        (json!({ "paths": ["/a;b"] }), "/when/paths/0", "parameters"),
        (json!({ "methods": ["get"] }), "/when/methods/0", "write `GET`"),
        (json!({ "methods": ["A B"] }), "/when/methods/0", "invalid method"),
        (json!({ "methods": ["GET", "*"] }), "/when/methods/1", "`*` is no method; remove `methods` for any method"),
        (json!({ "statuses": [200, 20] }), "/when/statuses/1", "invalid status: 20"),
    ] {
        let error = Harness::<Headers>::new(json!({ "when": when })).err().unwrap();
        assert!(format!("{error:?}").contains(pointer) && format!("{error:?}").contains(why), "{error:?}");
    }
    harness(json!({ "when": { "methods": ["PURGE", "GET"], "paths": ["/"], "statuses": [100, 999] } }));
}
