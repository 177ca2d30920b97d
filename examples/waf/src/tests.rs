use plugway_sdk::Response;
use plugway_sdk::testing::{Harness, Request};
use serde_json::json;

use super::Waf;

fn waf() -> Harness<Waf> {
    let rules = json!([
        { "id": "methods", "in": "method", "only": ["GET", "POST"] },
        { "id": "dot-files", "in": "path", "contains": ["/."] },
        { "id": "sql", "in": "query", "contains": ["union select", "' or '"] },
        { "id": "page", "in": "query", "names": ["page"], "only": ["1", "2", "3"] },
        { "id": "session", "in": "cookies", "names": ["session"], "max-length": 8 },
        { "id": "cookie-markup", "in": "cookies", "contains": ["<"] },
        { "id": "agents", "in": "fields", "names": ["user-agent"], "contains": ["sqlmap"] },
        { "id": "templates", "in": "fields", "contains": ["${jndi:"] },
        { "id": "markup", "in": "body", "contains": ["<script"] },
        { "id": "role", "in": "body", "names": ["role"], "only": ["user"] },
    ]);
    Harness::new(json!({ "max-body": "64 B", "rules": rules })).unwrap()
}

/// Returns the rule that a response names.
fn rule(response: &Response) -> &str {
    assert_eq!(response.status, 403);
    response.text("x-waf-rule").unwrap()
}

#[test]
fn each_part_of_a_head_has_its_rules() {
    let get = || Request::get("/");
    let mut waf = waf();
    for (id, request) in [
        ("methods", Request::new("TRACE", "/")),
        ("dot-files", Request::get("/a/.git/config")),
        ("sql", Request::get("/?q=1%20UNION%20SELECT%202")),
        ("sql", Request::get("/?q=1%2527+or+%2527")),
        ("sql", Request::get("/?'%20or%20'=1")),
        ("page", Request::get("/?page=4")),
        ("session", get().field("cookie", "session=123456789")),
        ("cookie-markup", get().field("cookie", "a=1; b=<b>")),
        ("agents", get().field("user-agent", "SQLMap/1.7")),
        ("templates", get().field("x-anything", "${JNDI:ldap://a}")),
    ] {
        assert_eq!(rule(&waf.request(request.clone()).expect_answered()), id, "{request:?}");
    }
    let good = get().field("cookie", "session=12345678").field("user-agent", "curl").field("referer", "/?page=4");
    for request in [good, Request::new("POST", "/a?page=1&q=union+of+selections")] {
        waf.request(request).expect_passed();
    }
}

#[test]
fn a_repeated_value_hides_none() {
    let get = || Request::get("/");
    let mut waf = waf();
    for (id, request) in [
        ("page", Request::get("/?page=1&page=4")),
        ("page", Request::get("/?page=4&page=1")),
        ("page", Request::get("/?page=1&p%61ge=4")),
        ("page", Request::get("/?page=1&page")),
        ("session", get().field("cookie", "session=1; session=123456789")),
        ("session", get().field("cookie", "session=1").field("cookie", "session=123456789")),
        ("agents", get().field("user-agent", "curl").field("User-Agent", "sqlmap")),
    ] {
        assert_eq!(rule(&waf.request(request.clone()).expect_answered()), id, "{request:?}");
    }
}

#[test]
fn bodies_are_read_as_forms_and_as_text_whatever_their_type_is() {
    let mut waf = waf();
    for (id, body) in [
        ("markup", "comment=%3Cscript%3E"),
        ("markup", "comment=<SCRIPT>"),
        ("markup", r#"{ "comment": "\u003cscript>" }"#),
        ("markup", r#"{ "a": "<script>", "a": "" }"#),
        ("role", "role=user&role=admin"),
        ("role", "r%6fle=admin"),
        ("role", "role"),
    ] {
        for content_type in ["application/x-www-form-urlencoded", "application/json", "text/plain"] {
            let request = Request::new("POST", "/").field("content-type", content_type);
            assert_eq!(rule(&waf.buffered_request_body(request, body).expect_answered()), id, "{body}");
        }
    }
    let (_, content) = waf.buffered_request_body(Request::new("POST", "/"), "role=user&script=1").expect_passed();
    assert_eq!(content, b"role=user&script=1");
}

#[test]
fn a_body_that_no_rule_can_see_does_not_pass() {
    let long = waf().buffered_request_body(Request::new("POST", "/"), [b'a'; 65]).expect_answered();
    assert_eq!((long.status, long.text("x-waf-rule")), (413, None));
    // Without a rule for bodies, none is received.
    let heads = json!({ "rules": [{ "id": "a", "in": "path", "contains": ["/a"] }] });
    assert_eq!(Harness::<Waf>::new(heads).unwrap().setup.request_body.mode, plugway_sdk::BodyMode::Skipped);
}

#[test]
fn wrong_rules_are_errors_at_their_places() {
    for (rule, place) in [
        (json!({ "id": "a b", "in": "path", "contains": ["x"] }), "/rules/1/id"),
        (json!({ "id": "a", "in": "path" }), "/rules/1"),
        (json!({ "id": "a", "in": "query", "contains": ["x", " "] }), "/rules/1/contains/1"),
        (json!({ "id": "a", "in": "method", "names": ["x"], "only": ["GET"] }), "/rules/1/names"),
    ] {
        let good = json!({ "id": "good", "in": "path", "contains": ["x"] });
        let errors = Harness::<Waf>::errors(json!({ "rules": [good, rule] }));
        assert_eq!((errors.len(), errors[0].path.as_str()), (1, place));
    }
    assert_eq!(Harness::<Waf>::errors(json!({ "max-body": "64", "rules": [] }))[0].path, "/max-body");
}
