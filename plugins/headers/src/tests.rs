use plugway_sdk::test::{Harness, Request};
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
fn only_trusted_proxies_are_believed() {
    let config = json!({ "forwarded": { "trusted-proxies": ["10.0.0.0/8", "2001:db8::1"], "fields": "both" } });
    let told = |client: &str| {
        let request = Request::get("/").from(client).field("x-forwarded-for", "203.0.113.9, 10.0.0.7");
        let request = request.field("x-forwarded-proto", "https").field("forwarded", "for=203.0.113.9");
        harness(config.clone()).request(request).passed().unwrap()
    };

    let stranger = told("198.51.100.1");
    assert_eq!(stranger.text("x-forwarded-for"), Some("198.51.100.1"));
    assert_eq!(stranger.text("x-forwarded-proto"), Some("http"));
    assert_eq!(stranger.text("x-real-ip"), Some("198.51.100.1"));
    assert_eq!(stranger.text("forwarded"), Some("for=198.51.100.1;host=example.org;proto=http"));

    let friend = told("10.1.2.3");
    assert_eq!(friend.text("x-forwarded-for"), Some("203.0.113.9, 10.0.0.7, 10.1.2.3"));
    assert_eq!(friend.text("x-forwarded-proto"), Some("https"));
    assert_eq!(friend.text("x-real-ip"), Some("203.0.113.9"));
    assert_eq!(friend.noted("client"), Some("203.0.113.9"));

    let v6 = told("2001:db8::1");
    let forwarded = "for=203.0.113.9, for=\"[2001:db8::1]\";host=example.org;proto=http";
    assert_eq!(v6.text("forwarded"), Some(forwarded));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let error = |config| Harness::<Headers>::new(config).err().unwrap();
    let at = |ConfigError { path, message }: ConfigError, pointer: &str, part: &str| {
        assert_eq!(path, pointer);
        assert!(message.contains(part), "{message}");
    };
    at(error(json!({ "request": { "set": { "a/b": "{hots}" } } })), "/request/set/a~1b", "no value `{hots}`");
    at(error(json!({ "response": { "append": { "a": "{" } } })), "/response/append/a", "not closed");
    at(error(json!({ "response": { "default": { "a": "}" } } })), "/response/default/a", "closes nothing");
    at(error(json!({ "forwarded": { "trusted-proxies": ["10/8"] } })), "/forwarded/trusted-proxies/0", "no network");
}

#[test]
fn a_hop_that_names_no_address_ends_the_search() {
    let config = json!({ "forwarded": { "trusted-proxies": ["10.0.0.0/8"] } });
    let client = |chain: &str| {
        let request = Request::get("/").from("10.0.0.1").field("x-forwarded-for", chain);
        harness(config.clone()).request(request).passed().unwrap().noted("client").map(String::from)
    };
    assert_eq!(client("6.6.6.6, 203.0.113.9:51234").as_deref(), Some("203.0.113.9"));
    assert_eq!(client("6.6.6.6, [2001:db8::9]:51234").as_deref(), Some("2001:db8::9"));
    assert_eq!(client("6.6.6.6, unknown").as_deref(), Some("10.0.0.1"));
    assert_eq!(client("6.6.6.6, unknown, 10.0.0.7").as_deref(), Some("10.0.0.7"));
}
