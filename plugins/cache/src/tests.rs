//! Tests of the configuration. The rules of the policy are tested in the SDK.

use plugway_sdk::testing::{Harness, Request};
use plugway_sdk::{BypassReason, FetchTimes, Lookup, Refusal, Response, Reuse, StoreDecision, StoredResponse};
use serde_json::{Value, json};

use super::*;

const NOW: FetchTimes = FetchTimes { received_ms: 1_700_000_000_000, delay_ms: 0 };

fn cache(config: Value) -> Harness<Cache> {
    Harness::new(config).unwrap()
}

fn key(config: Value, request: &Request) -> String {
    match cache(config).lookup(request) {
        Lookup::UseCache(cache_key) => String::from_utf8(cache_key.key).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn decision(config: Value, response: &Response) -> StoreDecision {
    cache(config).fetched(&Request::get("/"), response, &NOW)
}

fn lifetime(config: Value, response: &Response) -> Option<u64> {
    match decision(config, response) {
        StoreDecision::Store(storage) => Some(storage.lifetime_ms),
        StoreDecision::Refuse(_) => None,
    }
}

#[test]
fn the_key_is_the_uri_and_what_the_manifest_adds() {
    let request = Request::get("/a?b=2&utm_source=x&a=1").field("cookie", "lang=de");
    assert_eq!(key(json!({}), &request), "http://example.org/a?b=2&utm_source=x&a=1");
    let config = json!({ "key": { "ignore-query": ["utm_*"], "sort-query": true, "values": ["cookie.lang"] } });
    assert_eq!(key(config, &request), "http://example.org/a?a=1&b=2\ncookie lang:de");
    assert_eq!(key(json!({ "key": { "only-query": ["b"] } }), &request), "http://example.org/a?b=2");
    assert_eq!(key(json!({ "key": { "only-query": [] } }), &request), "http://example.org/a");
}

#[test]
fn the_plan_agrees_with_the_hook() {
    let requests = [
        Request::get("/a?b=1&c"),
        Request::get("/").authority("EXAMPLE.org:80"),
        Request::get("/?").secure().authority("example.org:443"),
        Request::get("/").authority("[::1]:8080"),
        Request::new("HEAD", "/").field("cookie", "lang=de"),
        Request::get("/").field("cookie", "lang="),
        Request::get("/").field("cookie", "session=1"),
        Request::get("/").field("x-forwarded-host", "evil.example"),
        Request::get("/").field("cache-control", "no-cache"),
        Request::get("/").field("pragma", "no-cache"),
        Request::get("/").field("if-match", "*"),
        Request::new("POST", "/"),
    ];
    let key = json!({ "values": ["cookie.lang", "request.header.x-device"] });
    for config in [
        json!({}),
        json!({ "key": key, "bypass": ["cookie.session"] }),
        json!({ "bypass": ["cookie.sess*"] }),
        json!({ "ignore-requests": true }),
    ] {
        let mut cache = cache(config.clone());
        assert!(cache.setup.lookup_plan.is_some());
        for request in &requests {
            assert_eq!(cache.lookup(request), cache.called_lookup(request), "{config} {request:?}");
        }
    }
    assert!(cache(json!({ "key": { "sort-query": true } })).setup.lookup_plan.is_none());
}

#[test]
fn a_change_concerns_what_it_refers_to_under_the_whole_key() {
    let request = Request::new("POST", "/a").field("cookie", "lang=de");
    let response = Response::new(201).field("location", "/b");
    let keys = cache(json!({ "key": { "values": ["cookie.lang"] } })).invalidated_keys(&request, &response);
    assert_eq!(keys, [&b"http://example.org/a\ncookie lang:de"[..], b"http://example.org/b\ncookie lang:de"]);
}

#[test]
fn some_requests_go_past() {
    let config = json!({ "bypass": ["cookie.session", "request.header.x-preview"] });
    let signed_in = Request::get("/").field("cookie", "session=1");
    assert_eq!(cache(config.clone()).lookup(&signed_in), Lookup::Bypass(BypassReason::Configured));
    assert!(matches!(cache(config).lookup(&Request::get("/")), Lookup::UseCache(_)));
}

#[test]
fn cookies_are_bypassed_by_the_beginning_of_their_names() {
    let config = json!({ "bypass": ["cookie.wordpress_logged_in_*", "cookie.session"] });
    for (cookies, wanted) in [
        ("wordpress_logged_in_ab12=admin", true),
        ("a=1; wordpress_logged_in_=x", true),
        ("session=1", true),
        ("wordpress_logged_in_ab12=", false),
        ("wordpress_logged=1; a=wordpress_logged_in_x", false),
    ] {
        let request = Request::get("/").field("cookie", cookies);
        let looked_up = cache(config.clone()).lookup(&request);
        assert_eq!(looked_up == Lookup::Bypass(BypassReason::Configured), wanted, "{cookies}: {looked_up:?}");
    }
    // A client may send several lines of the field.
    let lines = Request::get("/").field("cookie", "a=1").field("cookie", "wordpress_logged_in_ab12=admin");
    assert_eq!(cache(config).lookup(&lines), Lookup::Bypass(BypassReason::Configured));
}

#[test]
fn other_patterns_in_names_are_errors() {
    for (config, place) in [
        (json!({ "bypass": ["cookie.a", "cookie.*_in_*"] }), "/bypass/1"),
        (json!({ "bypass": ["request.header.x-*"] }), "/bypass/0"),
        (json!({ "bypass": ["query.*"] }), "/bypass/0"),
        (json!({ "bypass": ["cookie.session=1"] }), "/bypass/0"),
        (json!({ "key": { "values": ["cookie.lang_*"] } }), "/key/values/0"),
    ] {
        let errors = Harness::<Cache>::errors(config);
        assert_eq!(errors.iter().map(|error| error.path.as_str()).collect::<Vec<_>>(), [place], "{errors:?}");
    }
}

#[test]
fn lifetimes_are_for_what_does_not_say() {
    let config = json!({ "lifetimes": { "status": { "2xx": "1m", "404": "10s", "5xx": "1s" }, "most": "1h" } });
    assert_eq!(lifetime(config.clone(), &Response::new(200)), Some(60_000));
    assert_eq!(lifetime(config.clone(), &Response::new(404)), Some(10_000));
    assert_eq!(lifetime(config.clone(), &Response::new(503)), Some(1000));
    assert_eq!(lifetime(config.clone(), &Response::new(302)), None);
    let told = Response::new(200).field("cache-control", "max-age=5");
    assert_eq!(lifetime(config.clone(), &told), Some(5000));
    let long = Response::new(200).field("cache-control", "max-age=7200");
    assert_eq!(lifetime(config, &long), Some(3_600_000));
}

#[test]
fn cookies_are_refused_stripped_or_kept() {
    let response = Response::new(200).field("cache-control", "max-age=5").field("set-cookie", "a=1");
    assert_eq!(decision(json!({}), &response), StoreDecision::Refuse(Refusal::SetCookie));
    let StoreDecision::Store(stripped) = decision(json!({ "cookies": "strip" }), &response) else { panic!("refused") };
    assert_eq!(stripped.drop_fields, ["set-cookie"]);
    let StoreDecision::Store(kept) = decision(json!({ "cookies": "keep" }), &response) else { panic!("refused") };
    assert!(kept.drop_fields.is_empty());
}

#[test]
fn requests_can_be_kept_from_deciding() {
    let stored = StoredResponse {
        age_ms: 0,
        lifetime_ms: 1000,
        stale_while_revalidate_ms: 0,
        stale_if_error_ms: 0,
        must_revalidate: false,
        purged: false,
    };
    let request = Request::get("/").field("cache-control", "no-cache");
    assert_eq!(cache(json!({})).stored(&request, &stored), Reuse::Validate);
    assert_eq!(cache(json!({ "ignore-requests": true })).stored(&request, &stored), Reuse::Serve);
}

#[test]
fn cache_status_has_a_name_or_is_not_there() {
    let name = |config: Value| cache(config).setup.cache_status;
    assert_eq!(name(json!({})).name.as_deref(), Some("plugway"));
    assert_eq!(name(json!({ "report": "edge-1", "report-key": true })).name.as_deref(), Some("edge-1"));
    assert_eq!(name(json!({ "report": false })).name, None);
}

#[test]
fn mistakes_are_told_with_their_place() {
    let cases = [
        (json!({ "stale-if-error": "1 week" }), "/stale-if-error"),
        (json!({ "lifetimes": { "status": { "6xx": "1s" } } }), "/lifetimes/status/6xx"),
        (json!({ "lifetimes": { "status": { "206": "1s" } } }), "/lifetimes/status/206"),
        (json!({ "lifetimes": { "status": { "2/x": "1s" } } }), "/lifetimes/status/2~1x"),
        (json!({ "lifetimes": { "heuristic-percent": 101 } }), "/lifetimes/heuristic-percent"),
        (json!({ "key": { "values": ["cookie.a", "colour"] } }), "/key/values/1"),
        (json!({ "key": { "values": ["status"] } }), "/key/values/0"),
        (json!({ "key": { "only-query": ["a"], "ignore-query": ["b"] } }), "/key/only-query"),
        (json!({ "report": "an edge" }), "/report"),
        (json!({ "tags": ["Cache-Tag", "Cache Tag"] }), "/tags/1"),
        (json!({ "targeted": [""] }), "/targeted/0"),
    ];
    for (config, path) in cases {
        let error = Harness::<Cache>::new(config.clone()).err().unwrap_or_else(|| panic!("{config} is taken"));
        assert_eq!(error.path, path, "{config}: {}", error.message);
    }
}
