//! Native tests of the plugin `auth-key`.

use plugway_sdk::testing::{Harness, Outcome, Request};
use serde_json::{Value, json};

use super::AuthKey;

/// The hashes of `alpha` and `beta`.
const ALPHA: &str = "sha256:8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";
const BETA: &str = "sha256:f44e64e75f3948e9f73f8dfa94721c4ce8cbb4f265c4790c702b2d41cfbf2753";

fn config(more: Value) -> Value {
    let mut config = json!({ "keys": [{ "name": "shop", "hash": ALPHA }, format!("# partners\n\nbank:{BETA}\n")] });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn filter(more: Value) -> Harness<AuthKey> {
    Harness::new(config(more)).unwrap()
}

fn status(outcome: Outcome<Request>) -> u16 {
    match outcome {
        Outcome::Passed(_) => 200,
        Outcome::Answered(response) => response.status,
        Outcome::Failed(reason) => panic!("{reason}"),
    }
}

#[test]
fn a_known_key_passes_and_names_its_owner() {
    let mut filter = filter(json!({}));
    for (key, owner) in [("alpha", "shop"), ("beta", "bank")] {
        let request = Request::get("/").field("X-API-Key", key).field("x_api_key", "spy").field("x-key-owner", "root");
        let passed = filter.request(request.field("X_Key_Owner", "root")).passed().unwrap();
        assert_eq!(passed.lines("x-key-owner"), [owner]);
        assert_eq!(passed.noted("key-owner"), Some(owner));
        assert_eq!(passed.noted("plugway.credentials"), Some("api-key"), "a cache must not share the response");
        for name in ["x-api-key", "x_api_key", "x_key_owner"] {
            assert_eq!(passed.text(name), None, "{name}");
        }
    }
    for key in ["", "gamma", "alpha x", "ALPHA", "alpha, beta", ALPHA, &"a".repeat(513)] {
        let answer = filter.request(Request::get("/").field("x-api-key", key)).answered().unwrap();
        assert_eq!(answer.status, 401, "{key}");
        assert!(answer.fields.contains(&("www-authenticate".into(), b"ApiKey realm=\"api\"".to_vec())));
        assert!(answer.fields.contains(&("cache-control".into(), b"no-store".to_vec())));
    }
    assert_eq!(status(filter.request(Request::get("/"))), 401);
    let twice = Request::get("/").field("x-api-key", "alpha").field("x-api-key", "alpha");
    assert_eq!(status(filter.request(twice)), 401);
}

#[test]
fn a_key_may_follow_a_scheme() {
    let mut filter = filter(json!({ "field": "Authorization", "scheme": "Bearer", "realm": "the shop" }));
    for (value, wanted) in [
        ("Bearer alpha", 200),
        ("bearer  alpha", 200),
        ("Beareralpha", 401),
        ("alpha", 401),
        ("Basic alpha", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
    ] {
        assert_eq!(status(filter.request(Request::get("/").field("authorization", value))), wanted, "{value}");
    }
    let answer = filter.request(Request::get("/")).answered().unwrap();
    assert!(answer.fields.contains(&("www-authenticate".into(), b"Bearer realm=\"the shop\"".to_vec())));
}

#[test]
fn the_key_is_removed_from_query_and_cookies() {
    let places = json!({ "query": "api_key", "cookie": "key" });
    let passed = |request: Request| {
        let passed = filter(places.clone()).request(request).passed().unwrap();
        (passed.query().map(String::from), passed.text("cookie").map(String::from))
    };
    let text = |text: &str| Some(text.to_string());
    assert_eq!(passed(Request::get("/?api_key=alpha")), (None, None));
    assert_eq!(passed(Request::get("/?a=1&api_key=%61lpha&b&api%5fkey=alpha")), (text("a=1&b"), None));
    let cookies = "a=1; key=alpha; b=2";
    assert_eq!(passed(Request::get("/?a=1").field("cookie", cookies)), (text("a=1"), text("a=1; b=2")));
    assert_eq!(passed(Request::get("/").field("cookie", "key=alpha")), (None, None));
    let lines = Request::get("/").field("cookie", "key=alpha; a=1, 2").field("cookie", "key=alpha; b=2");
    assert_eq!(passed(lines), (None, text("a=1, 2; b=2")));
    // The query decides, but the cookie is removed too.
    assert_eq!(passed(Request::get("/?api_key=alpha").field("cookie", "key=beta")), (None, None));
    assert_eq!(status(filter(places.clone()).request(Request::get("/").field("x-api-key", "alpha"))), 401);
}

#[test]
fn the_key_stays_if_the_configuration_says_so() {
    let mut filter = filter(json!({ "field": "X-Key", "query": "key", "keep": true }));
    let passed = filter.request(Request::get("/?key=alpha")).passed().unwrap();
    assert_eq!((passed.query(), passed.text("x-key-owner")), (Some("key=alpha"), Some("shop")));
    let passed = filter.request(Request::get("/").field("x-key", "beta")).passed().unwrap();
    assert_eq!((passed.text("x-key"), passed.text("x-key-owner")), (Some("beta"), Some("bank")));
}

#[test]
fn only_the_named_owners_are_allowed() {
    let mut filter = filter(json!({ "owners": ["bank"], "owner-field": "X-Partner", "owner-note": "partner" }));
    let passed = filter.request(Request::get("/").field("x-api-key", "beta")).passed().unwrap();
    assert_eq!((passed.text("x-partner"), passed.noted("partner")), (Some("bank"), Some("bank")));
    assert_eq!(status(filter.request(Request::get("/").field("x-api-key", "alpha"))), 403);
    assert_eq!(status(filter.request(Request::get("/").field("x-api-key", "gamma"))), 401);
}

#[test]
fn mistakes_are_named_without_what_may_be_a_secret() {
    let errors = |config: Value| -> Vec<(String, String)> {
        let errors = Harness::<AuthKey>::errors(config.clone());
        assert!(errors.iter().all(|error| !error.message.contains("hunter2")), "{errors:?}");
        assert!(!errors.is_empty(), "{config}");
        errors.into_iter().map(|error| (error.path, error.message)).collect()
    };
    let bad = errors(json!({ "keys": [
        { "name": "shop", "hash": "hunter2" },
        { "name": "s h", "hash": ALPHA },
        format!("shop:{ALPHA}\n\nhunter2\nhunter2:sha256:00\nbank:{ALPHA}"),
    ]}));
    let places: Vec<&str> = bad.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(places, ["/keys/0/hash", "/keys/1/name", "/keys/2", "/keys/2", "/keys/2"]);
    assert!(bad[2].1.starts_with("line 3: invalid hash") && bad[4].1.starts_with("line 5: a key that is"), "{bad:?}");

    let unknown = errors(json!({ "keys": [{ "name": "shop", "hsh": "hunter2" }] })).swap_remove(0);
    assert_eq!(unknown, ("/keys/0".into(), "unknown keys: `hsh`; expected `name` and `hash`".into()));
    assert_eq!(errors(json!({ "keys": [{ "name": "shop" }] }))[0].0, "/keys/0/hash");
    assert!(Harness::<AuthKey>::new(json!({ "keys": format!("shop:{ALPHA}") })).is_ok());
    for empty in [json!([]), json!(["# none yet\n"]), json!("")] {
        assert_eq!(errors(json!({ "keys": empty }))[0].0, "/keys");
    }
    assert!(Harness::<AuthKey>::new(json!({})).is_err());
    for (more, path) in [
        (json!({ "owners": ["nobody"] }), "/owners/0"),
        (json!({ "owners": [] }), "/owners"),
        (json!({ "scheme": "Bearer" }), "/scheme"),
        (json!({ "field": "a b" }), "/field"),
        (json!({ "query": "" }), "/query"),
        (json!({ "realm": "a\"b" }), "/realm"),
        (json!({ "owner-field": "" }), "/owner-field"),
    ] {
        assert_eq!(errors(config(more))[0].0, path);
    }
}

#[test]
fn thousands_of_keys_are_found() {
    let lines: String = (0..9_999_u32).map(|index| format!("k{index}:sha256:{index:064x}\n")).collect();
    let mut filter = Harness::<AuthKey>::new(json!({ "keys": [lines, format!("last:{BETA}")] })).unwrap();
    let passed = filter.request(Request::get("/").field("x-api-key", "beta")).passed().unwrap();
    assert_eq!(passed.text("x-key-owner"), Some("last"));
}
