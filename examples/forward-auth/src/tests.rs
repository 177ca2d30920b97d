use std::time::Duration;

use plugway_sdk::http::{self, Error};
use plugway_sdk::testing::http::Callouts;
use plugway_sdk::testing::{self, Harness, Request, clock};
use plugway_sdk::{Response, shared};
use serde_json::json;

use super::ForwardAuth;

fn filter() -> Harness<ForwardAuth> {
    Harness::new(json!({ "url": "http://auth/verify", "ask": ["cookie"], "copy": ["x-user"] })).unwrap()
}

fn remembering(per_uri: bool) -> Harness<ForwardAuth> {
    let cache = json!({ "ttl": "30s", "per-uri": per_uri });
    let config = json!({ "url": "http://auth/verify", "ask": ["cookie"], "copy": ["x-user"], "cache": cache });
    Harness::new(config).unwrap()
}

fn question() -> http::Request {
    http::get("http://auth/verify")
}

/// Returns a request with a cookie and a claim to be root.
fn request(target: &str, cookie: &str) -> Request {
    Request::get(target).field("cookie", cookie).field("x-user", "root")
}

fn alice() -> Response {
    Response::new(204).field("x-user", "alice")
}

#[test]
fn the_service_sees_the_request_and_names_the_user() {
    let asked = question().header("cookie", "session=1").header("x-forwarded-method", "GET");
    let _callouts = Callouts::new()
        .answer(asked.header("x-forwarded-uri", "http://example.org/a"), alice())
        .answer(question(), Response::new(204));
    let passed = filter().request(request("/a", "session=1")).expect_passed();
    assert_eq!(passed.lines("x-user"), ["alice"]);
    let passed = filter().request(request("/a", "session=1")).expect_passed();
    assert_eq!(passed.text("x-user"), None);
}

#[test]
fn any_other_answer_is_that_of_the_client() {
    let redirect = Response::new(302).field("location", "/login").field("server", "auth");
    let _callouts = Callouts::new().answer(question(), redirect);
    let refused = filter().request(Request::get("/a")).expect_answered();
    assert_eq!((refused.status, refused.text("location")), (302, Some("/login")));
    assert_eq!((refused.text("server"), refused.text("cache-control")), (None, Some("no-store")));
}

#[test]
fn without_an_answer_no_request_passes() {
    let errors = [Error::Timeout, Error::Refused, Error::Terminated, Error::Busy, Error::NotGranted];
    let _callouts = errors.into_iter().fold(Callouts::new(), |script, error| script.fail(question(), error));
    for _ in errors {
        filter().request(Request::get("/a")).expect_failed();
    }
}

#[test]
fn an_answer_is_remembered_by_all_workers_for_a_time() {
    let callouts = Callouts::new().answer(question(), alice()).times(2);
    let (mut one, mut other) = (remembering(false), remembering(false));
    for filter in [&mut one, &mut other] {
        let passed = filter.request(request("/a", "session=1")).expect_passed();
        assert_eq!(passed.lines("x-user"), ["alice"], "the client's own field is replaced");
    }
    one.request(request("/b", "session=1")).expect_passed();
    clock::advance(Duration::from_secs(29));
    one.request(request("/a", "session=1")).expect_passed();
    assert_eq!(callouts.sent().len(), 1);
    clock::advance(Duration::from_secs(1));
    one.request(request("/a", "session=1")).expect_passed();
    assert_eq!(callouts.sent().len(), 2);
}

#[test]
fn other_credentials_and_other_targets_are_other_questions() {
    let callouts = Callouts::new().answer(question(), alice()).times(5);
    let mut filter = remembering(true);
    let both = Request::get("/a").field("cookie", "session=1").field("cookie", "a=2");
    let requests =
        [request("/a", "session=1"), request("/b", "session=1"), request("/a", "session=2"), Request::get("/a"), both];
    for request in requests.iter().chain(&requests) {
        filter.request(request.clone()).expect_passed();
    }
    assert_eq!(callouts.sent().len(), 5);
    assert!(testing::shared::keys().iter().all(|key| key.len() == 32), "hashes only");
}

#[test]
fn refusals_and_errors_are_not_remembered() {
    let _callouts = Callouts::new()
        .answer(question(), Response::new(401))
        .fail(question(), Error::Timeout)
        .answer(question(), Response::new(500))
        .answer(question(), alice());
    let mut filter = remembering(false);
    let mut ask = || filter.request(request("/a", "session=1"));
    assert_eq!(ask().expect_answered().status, 401);
    ask().expect_failed();
    assert_eq!(ask().expect_answered().status, 500);
    ask().expect_passed();
    ask().expect_passed();
}

#[test]
fn without_shared_state_the_service_is_asked() {
    let _callouts = Callouts::new().answer(question(), alice()).times(2);
    testing::shared::fail(Some(shared::Error::OtherKind));
    let mut filter = remembering(false);
    for _ in 0..2 {
        filter.request(request("/a", "session=1")).expect_passed();
    }
}

#[test]
fn a_wrong_time_is_an_error_at_its_place() {
    let config = json!({ "url": "http://auth/", "ask": [], "copy": [], "cache": { "ttl": "soon" } });
    assert_eq!(Harness::<ForwardAuth>::errors(config)[0].path, "/cache/ttl");
}
