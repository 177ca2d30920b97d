use std::time::Duration;

use plugway_sdk::testing::{Harness, Request, clock};
use serde_json::{Value, json};

use super::Signing;

/// The signature of [`order`] at the beginning of a test, made by Python's `hmac`.
const OF_ORDER: &str = "t=1767225600,v1=4ed272ddd81d4071279dd4d37aa3f5e56bdf912ff1d284d21e6bd0f8aaecad5f";

/// The signature of `GET /` without the fields, made in the same way.
const OF_ROOT: &str = "t=1767225600,v1=d1bf07a52952f35bde3f1cf34c2e28680485efae82f2d566196175399cdb6be3";

const BODY: &str = r#"{"id":1}"#;

fn config(role: &str) -> Value {
    let key = "0123456789abcdef0123456789abcdef";
    json!({ "role": role, "key": key, "fields": ["content-type", "x-tenant"], "max-body": "16 B" })
}

fn plugin(role: &str) -> Harness<Signing> {
    Harness::new(config(role)).unwrap()
}

fn order() -> Request {
    let tenants = Request::new("POST", "/orders?a=1").field("x-tenant", "shop").field("x-tenant", "bank");
    tenants.field("content-type", "application/json").content(BODY.len() as u64)
}

#[test]
fn a_request_with_a_body_is_signed_by_the_body_hook() {
    let mut sign = plugin("sign");
    let request = sign.request(order().field("x-signature", "forged")).expect_passed();
    assert_eq!(request.text("x-signature"), Some("forged"), "the head hook leaves the request to the body hook");
    let (request, content) = sign.buffered_request_body(request, BODY).expect_passed();
    assert_eq!((request.lines("x-signature"), &content[..]), (vec![OF_ORDER.into()], BODY.as_bytes()));
    let long = sign.buffered_request_body(order(), [b'x'; 17]).expect_answered();
    assert_eq!(long.status, 413);
}

#[test]
fn a_request_without_a_body_is_signed_by_the_head_hook() {
    let mut sign = plugin("sign");
    assert_eq!(sign.request(Request::get("/")).expect_passed().text("x-signature"), Some(OF_ROOT));
    // The length of chunks is unknown.
    let chunked = sign.request(Request::new("POST", "/").chunked_content()).expect_passed();
    assert_eq!(chunked.text("x-signature"), None);
}

#[test]
fn a_valid_signature_passes_and_is_noted() {
    let mut verify = plugin("verify");
    let (passed, _) = verify.buffered_request_body(order().field("x-signature", OF_ORDER), BODY).expect_passed();
    assert_eq!(passed.noted("signed"), Some("1767225600"));
    verify.request(Request::get("/").field("x-signature", OF_ROOT)).expect_passed();
}

#[test]
fn a_request_that_differs_from_the_signed_one_is_refused() {
    let mut verify = plugin("verify");
    let other_path = Request::new("POST", "/orders?a=2").field("x-tenant", "shop").field("x-tenant", "bank");
    for (request, body) in [
        (order(), r#"{"id":2}"#),
        (order(), ""),
        (order().field("x-tenant", "third"), BODY),
        (order().field("content-type", "text/plain"), BODY),
        (other_path.field("content-type", "application/json"), BODY),
    ] {
        let refused = verify.buffered_request_body(request.field("x-signature", OF_ORDER), body).expect_answered();
        assert_eq!((refused.status, &refused.body[..]), (401, &b"the signature is wrong\n"[..]));
    }
    let get = Request::get("/x").field("x-signature", OF_ROOT);
    assert_eq!(verify.request(get).expect_answered().status, 401);
}

#[test]
fn a_signature_that_is_absent_malformed_or_given_twice_is_refused() {
    let mut verify = plugin("verify");
    let mut refused = |request: Request| {
        let answer = verify.request(request).expect_answered();
        assert_eq!(answer.status, 401);
        String::from_utf8(answer.body).unwrap()
    };
    assert_eq!(refused(Request::get("/")), "the request has no signature\n");
    let twice = Request::get("/").field("x-signature", OF_ROOT).field("x-signature", OF_ROOT);
    assert_eq!(refused(twice), "the signature is malformed\n");
    for malformed in
        ["", "t=,v1=", "t=1", &OF_ROOT[1..], &OF_ROOT[..70], &OF_ROOT.replace('3', "x"), &OF_ROOT.replace("t=", "t=+")]
    {
        assert_eq!(refused(Request::get("/").field("x-signature", malformed)), "the signature is malformed\n");
    }
}

#[test]
fn a_signature_is_valid_for_a_time() {
    let mut verify = plugin("verify");
    let mut status = || match verify.request(Request::get("/").field("x-signature", OF_ROOT)).answered() {
        Some(answer) => answer.status,
        None => 200,
    };
    clock::advance(Duration::from_secs(300));
    assert_eq!(status(), 200);
    clock::advance(Duration::from_secs(1));
    assert_eq!(status(), 401);
    clock::set(std::time::UNIX_EPOCH + Duration::from_secs(1_767_225_600 - 301));
    assert_eq!(status(), 401, "the clock of the signer is ahead too far");
}

#[test]
fn wrong_configurations_are_errors_at_their_places() {
    for (key, value, place) in
        [("key", "short", "/key"), ("max-body", "1 MB", "/max-body"), ("max-age", "5 parsecs", "/max-age")]
    {
        let mut config = config("sign");
        config[key] = value.into();
        assert_eq!(Harness::<Signing>::errors(config)[0].path, place);
    }
}
