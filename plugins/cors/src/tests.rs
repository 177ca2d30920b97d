//! Native tests of the plugin `cors`.

use plugway_sdk::Response;
use plugway_sdk::testing::{Harness, Request};
use serde_json::{Value, json};

use super::Cors;

const APP: &str = "https://app.example.org";

fn harness(config: Value) -> Harness<Cors> {
    Harness::new(config).unwrap()
}

fn preflight(origin: &str) -> Request {
    Request::new("OPTIONS", "/").field("origin", origin).field("access-control-request-method", "PUT")
}

/// Returns the lines of a field.
fn lines<'a>(response: &'a Response, name: &str) -> Vec<&'a str> {
    let lines = response.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    lines.map(|(_, value)| std::str::from_utf8(value).unwrap()).collect()
}

/// Runs both hooks, and returns the response to a request of an origin.
fn answered(cors: &mut Harness<Cors>, origin: Option<&str>, response: Response) -> Response {
    let request = origin.into_iter().fold(Request::get("/"), |request, origin| request.field("origin", origin));
    let request = cors.request(request).passed().unwrap();
    cors.response(&request, response).passed().unwrap()
}

#[test]
fn a_preflight_of_an_allowed_origin_is_answered_in_full() {
    let mut cors = harness(json!({
        "origins": [APP], "credentials": true, "methods": ["GET", "PUT"], "headers": ["X-A", "X-B"], "max-age": "1h",
        "expose": ["X-Total"],
    }));
    let answer = cors.request(preflight(APP)).answered().unwrap();
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(lines(&answer, "access-control-allow-origin"), [APP]);
    assert_eq!(lines(&answer, "access-control-allow-credentials"), ["true"]);
    assert_eq!(lines(&answer, "access-control-allow-methods"), ["GET, PUT"]);
    assert_eq!(lines(&answer, "access-control-allow-headers"), ["X-A, X-B"]);
    assert_eq!(lines(&answer, "access-control-max-age"), ["3600"]);
    assert_eq!(lines(&answer, "vary"), ["Origin, Access-Control-Request-Method"]);
    assert!(lines(&answer, "access-control-allow-private-network").is_empty());
}

#[test]
fn a_preflight_of_another_origin_is_answered_without_permission() {
    let mut cors = harness(json!({ "origins": [APP], "credentials": true }));
    for origin in ["https://evil.example", "null", "https://app.example.org, https://evil.example"] {
        let answer = cors.request(preflight(origin)).answered().unwrap();
        assert_eq!((answer.status, answer.fields.len()), (204, 1), "{origin}: {answer:?}");
        assert!(lines(&answer, "vary")[0].starts_with("Origin"), "{origin}");
    }
}

#[test]
fn only_a_complete_preflight_is_answered() {
    let mut cors = harness(json!({ "origins": [APP] }));
    let options = || Request::new("OPTIONS", "/");
    let wanted = |request: Request| request.field("access-control-request-method", "PUT");
    for request in
        [options(), options().field("origin", APP), wanted(options()), wanted(Request::get("/").field("origin", APP))]
    {
        assert!(cors.request(request.clone()).passed().is_some(), "{request:?}");
    }
}

#[test]
fn asked_fields_are_reflected_if_they_are_names() {
    let mut cors = harness(json!({ "origins": [APP], "headers": "reflect" }));
    let asked = |list| preflight(APP).field("access-control-request-headers", list);
    let answer = cors.request(asked("x-a,x-b, authorization")).answered().unwrap();
    assert_eq!(lines(&answer, "access-control-allow-headers"), ["x-a,x-b, authorization"]);
    assert!(lines(&answer, "vary")[0].contains("Access-Control-Request-Headers"));
    let answer = cors.request(asked("x-a; <script>")).answered().unwrap();
    assert!(lines(&answer, "access-control-allow-headers").is_empty());
}

#[test]
fn a_private_network_is_opened_only_by_its_key() {
    for (is_open, wanted) in [(true, &["true"][..]), (false, &[])] {
        let mut cors = harness(json!({ "origins": [APP], "private-network": is_open }));
        let asks = preflight(APP).field("access-control-request-private-network", "true");
        assert_eq!(lines(&cors.request(asks).answered().unwrap(), "access-control-allow-private-network"), wanted);
        let answer = cors.request(preflight(APP)).answered().unwrap();
        assert!(lines(&answer, "access-control-allow-private-network").is_empty());
    }
}

#[test]
fn responses_vary_by_origin_whether_or_not_there_is_one() {
    let mut cors = harness(json!({ "origins": [APP, "https://*.example.net"], "expose": ["X-Total", "X-Page"] }));
    for (origin, allowed) in [
        (Some(APP), Some(APP)),
        (Some("https://a.example.net"), Some("https://a.example.net")),
        (Some("https://evil.example"), None),
        (Some("null"), None),
        (None, None),
    ] {
        let response = Response::new(404).field("vary", "Accept");
        let response = answered(&mut cors, origin, response);
        assert_eq!(lines(&response, "access-control-allow-origin"), Vec::from_iter(allowed), "{origin:?}");
        assert_eq!(lines(&response, "vary"), ["Accept", "Origin"], "{origin:?}");
        let exposed = if allowed.is_some() { &["X-Total, X-Page"][..] } else { &[] };
        assert_eq!(lines(&response, "access-control-expose-headers"), exposed, "{origin:?}");
        assert!(lines(&response, "access-control-allow-credentials").is_empty());
    }
}

#[test]
fn a_star_is_sent_as_it_is_and_needs_no_call_and_no_vary() {
    let mut cors = harness(json!({ "origins": ["*"] }));
    assert!(cors.setup.response_plan.is_some());
    for origin in [None, Some("https://any.example"), Some("null")] {
        let response = answered(&mut cors, origin, Response::new(200));
        assert_eq!(lines(&response, "access-control-allow-origin"), ["*"]);
        assert!(lines(&response, "vary").is_empty());
    }
    assert_eq!(lines(&cors.request(preflight(APP)).answered().unwrap(), "access-control-allow-origin"), ["*"]);
}

#[test]
fn fields_of_the_upstream_are_replaced_or_kept() {
    let own = || {
        let own = Response::new(200).field("Access-Control-Allow-Origin", "*");
        own.field("access-control-allow-credentials", "true").field("access-control-max-age", "9")
    };
    let mut replacing = harness(json!({ "origins": [APP] }));
    for (origin, allowed) in [(Some(APP), &[APP][..]), (Some("https://evil.example"), &[]), (None, &[])] {
        let response = answered(&mut replacing, origin, own());
        assert_eq!(lines(&response, "access-control-allow-origin"), allowed, "{origin:?}");
        assert!(lines(&response, "access-control-allow-credentials").is_empty());
        assert!(lines(&response, "access-control-max-age").is_empty());
    }
    for origins in [json!([APP]), json!(["*"])] {
        let mut keeping = harness(json!({ "origins": origins, "upstream-fields": "keep" }));
        let response = answered(&mut keeping, Some(APP), own());
        assert_eq!(lines(&response, "access-control-allow-origin"), ["*"]);
        assert_eq!(lines(&response, "access-control-allow-credentials"), ["true"]);
        let response = answered(&mut keeping, Some(APP), Response::new(200));
        assert_eq!(lines(&response, "access-control-allow-origin").len(), 1, "none of its own");
    }
}

#[test]
fn many_lines_of_origins_are_entries() {
    let mut cors = harness(json!({ "origins": ["# ours\nhttps://a.example\n\n; and\nhttps://b.example"] }));
    let response = answered(&mut cors, Some("https://b.example"), Response::new(200));
    assert_eq!(lines(&response, "access-control-allow-origin"), ["https://b.example"]);
}

#[test]
fn configurations_that_browsers_reject_are_errors() {
    let errors = |config: Value| -> Vec<(String, String)> {
        Harness::<Cors>::errors(config).into_iter().map(|error| (error.path, error.message)).collect()
    };
    let with_stars = errors(json!({
        "origins": ["*"], "credentials": true, "methods": ["*"], "headers": ["*"], "expose": ["*"],
    }));
    let paths: Vec<&str> = with_stars.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/origins/0", "/methods/0", "/headers/0", "/expose/0"]);
    assert!(with_stars.iter().all(|(_, message)| message.starts_with("`*` with `credentials`: ")));
    for (config, path, part) in [
        (json!({}), "", "no origin is allowed"),
        (json!({ "origins": ["https://a.example\nhttps://b.example/"] }), "/origins/0", "line 2: "),
        (json!({ "origins": [APP], "methods": ["put"] }), "/methods/0", "write `PUT`"),
        (json!({ "origins": [APP], "methods": ["A B"] }), "/methods/0", "invalid method"),
        (json!({ "origins": [APP], "headers": ["X A"] }), "/headers/0", "invalid name of a field"),
        (json!({ "origins": [APP], "max-age": "1" }), "/max-age", "invalid duration"),
    ] {
        let found = errors(config.clone());
        assert!(found.len() == 1 && found[0].0 == path && found[0].1.contains(part), "{config}: {found:?}");
    }
}
