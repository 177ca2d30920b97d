use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plugway_sdk::passwords::VerifyError;
use plugway_sdk::testing::{Harness, Outcome, Request, passwords};
use serde_json::{Value, json};

use super::AuthBasic;
use crate::hashes;

/// The text after the last `$` of a hash by bcrypt, which is its password in native tests.
fn password(letter: &str) -> String {
    letter.repeat(53)
}

fn hash(letter: &str) -> String {
    format!("$2y$10${}", password(letter))
}

fn config(more: Value) -> Value {
    let lines = format!("# staff\nbob:{}\n\nchloé:{}\n", hash("b"), hash("c"));
    let mut config = json!({ "users": [{ "name": "alice", "hash": hash("a") }, lines] });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn filter(more: Value) -> Harness<AuthBasic> {
    Harness::new(config(more)).unwrap()
}

fn with(name: &str, password: &str) -> Request {
    let credentials = STANDARD.encode(format!("{name}:{password}"));
    Request::get("/").field("authorization", &format!("Basic {credentials}"))
}

fn status(outcome: Outcome<Request>) -> u16 {
    match outcome {
        Outcome::Passed(_) => 200,
        Outcome::Answered(response) => response.status,
        Outcome::Failed(reason) => panic!("{reason}"),
    }
}

#[test]
fn a_known_user_passes_and_is_named() {
    let mut filter = filter(json!({}));
    for (name, letter) in [("alice", "a"), ("bob", "b"), ("chloé", "c")] {
        let request = with(name, &password(letter)).field("X-Remote-User", "root").field("x_remote_user", "root");
        let passed = filter.request(request).passed().unwrap();
        assert_eq!(passed.lines("x-remote-user"), [name]);
        assert_eq!((passed.text("authorization"), passed.text("x_remote_user")), (None, None));
        assert_eq!(passed.noted("user"), Some(name));
    }
}

#[test]
fn a_comment_may_follow_a_hash_in_a_line() {
    let lines = format!("bob:{}:left in 2020\ncarol:{}:", hash("b"), hash("c"));
    let mut filter = filter(json!({ "users": lines }));
    for (name, letter) in [("bob", "b"), ("carol", "c")] {
        assert_eq!(status(filter.request(with(name, &password(letter)))), 200, "{name}");
    }
}

#[test]
fn all_others_are_asked_for_a_password() {
    let mut filter = filter(json!({ "realm": "the shop" }));
    let right = password("a");
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    for value in [
        basic("alice:wrong"),
        basic("alice:"),
        basic("alice"),
        basic(&format!("mallory:{right}")),
        basic(&format!("bob:{right}")),
        basic(&format!("Alice:{right}")),
        format!("Bearer {}", STANDARD.encode(format!("alice:{right}"))),
        format!("Basic{}", STANDARD.encode(format!("alice:{right}"))),
        "Basic".into(),
        "Basic ".into(),
        "Basic ###".into(),
        "é".into(),
        basic(&format!("alice:{}", "a".repeat(9000))),
        String::new(),
    ] {
        let answer = filter.request(Request::get("/").field("authorization", value.as_str())).answered().unwrap();
        let challenge = b"Basic realm=\"the shop\", charset=\"UTF-8\"".to_vec();
        assert_eq!(answer.status, 401, "{value}");
        assert!(answer.fields.contains(&("www-authenticate".into(), challenge)));
        assert!(answer.fields.contains(&("cache-control".into(), b"no-store".to_vec())));
    }
    assert_eq!(status(filter.request(Request::get("/"))), 401);
    let twice = with("alice", &right).field("authorization", "Basic x");
    assert_eq!(status(filter.request(twice)), 401);
    assert_eq!(status(filter.request(with("alice", &right))), 200);
}

#[test]
fn a_scheme_is_known_in_any_case() {
    let mut filter = filter(json!({}));
    let credentials = STANDARD.encode(format!("alice:{}", password("a")));
    for scheme in ["basic", "BASIC", "Basic  "] {
        let request = Request::get("/").field("authorization", &format!("{scheme} {credentials}"));
        assert_eq!(status(filter.request(request)), 200, "{scheme}");
    }
}

#[test]
fn the_host_remembers_passwords_of_users_for_a_time() {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let remembered = |config: Value, request| {
        let before = passwords::calls();
        filter(config).request(request);
        (passwords::calls() - before, passwords::remembered_for())
    };
    assert_eq!(remembered(json!({}), with("alice", &password("a"))), (1, minutes(5)));
    assert_eq!(remembered(json!({ "remember": "1h" }), with("alice", "wrong")), (1, minutes(60)));
    assert_eq!(remembered(json!({ "remember": "0s" }), with("alice", &password("a"))), (1, minutes(0)));
    // An unknown name costs a hash each time, whatever its password is.
    assert_eq!(remembered(json!({}), with("mallory", &password("a"))), (1, minutes(0)));
}

#[test]
fn a_password_that_is_not_verified_lets_no_request_pass() {
    let mut filter = filter(json!({}));
    passwords::fail(Some(VerifyError::Busy));
    let answer = filter.request(with("alice", &password("a"))).answered().unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.fields.contains(&("retry-after".into(), b"1".to_vec())));
    for error in [VerifyError::BadHash, VerifyError::TooCostly] {
        passwords::fail(Some(error));
        assert!(matches!(filter.request(with("alice", &password("a"))), Outcome::Failed(_)));
    }
    passwords::fail(None);
    assert_eq!(status(filter.request(with("alice", &password("a")))), 200);
}

#[test]
fn names_and_credentials_go_where_the_configuration_says() {
    let more = json!({ "user-field": "X-Person", "user-note": "person", "keep": true });
    let passed = filter(more).request(with("bob", &password("b"))).passed().unwrap();
    assert_eq!((passed.text("x-person"), passed.noted("person")), (Some("bob"), Some("bob")));
    assert!(passed.text("authorization").is_some());
}

#[test]
fn hashes_are_checked_before_they_are_used() {
    let digits = |count: usize| "x".repeat(count);
    let argon2 = |parameters: &str| format!("$argon2id$v=19${parameters}$c29tZXNhbHQ$nf65EOgLrQMR");
    for good in [
        hash("a"),
        format!("$2b$04${}", digits(53)),
        format!("$5$salt${}", digits(43)),
        format!("$6$rounds=656000$saltsalt${}", digits(86)),
        argon2("m=19456,t=2,p=1"),
        "$argon2i$m=4096,t=3,p=1$c29tZXNhbHQ$nf65".into(),
    ] {
        assert_eq!(hashes::check(&good), Ok(()), "{good}");
    }
    for bad in [
        "".into(),
        "hunter2".into(),
        "$apr1$salt$x".into(),
        "{SHA}x".into(),
        format!("$2y$15${}", digits(53)),
        format!("$2y$10${}", digits(52)),
        format!("$2y$1x${}", digits(53)),
        format!("$5$salt${}", digits(86)),
        format!("$6$rounds=1000001$salt${}", digits(86)),
        format!("$6$rounds=x$salt${}", digits(86)),
        "$6$salt".into(),
        argon2("m=262144,t=1,p=1"),
        argon2("m=131072,t=9,p=1"),
        argon2("m=4096,t=3"),
        "$argon2id$v=19$m=4096,t=3,p=1$c29tZXNhbHQ".into(),
    ] {
        assert!(hashes::check(&bad).is_err(), "{bad}");
    }
}

#[test]
fn mistakes_are_named_without_what_may_be_a_secret() {
    let errors = |config: Value| -> Vec<(String, String)> {
        let errors = Harness::<AuthBasic>::errors(config.clone());
        assert!(errors.iter().all(|error| !error.message.contains("hunter2")), "{errors:?}");
        assert!(!errors.is_empty(), "{config}");
        errors.into_iter().map(|error| (error.path, error.message)).collect()
    };
    let bad = errors(json!({ "users": [
        { "name": "alice", "hash": "hunter2" },
        { "name": "a:b", "hash": hash("a") },
        format!("bob:{}\n\nhunter2\ncarol:hunter2\nbob:{}", hash("b"), hash("b")),
        { "name": "dave", "password": "hunter2" },
    ]}));
    let places: Vec<&str> = bad.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(places, ["/users/0/hash", "/users/1/name", "/users/2", "/users/2", "/users/2", "/users/3"]);
    assert!(bad[2].1.starts_with("line 3: invalid hash") && bad[4].1.starts_with("line 5: a user who is"), "{bad:?}");
    assert!(Harness::<AuthBasic>::new(json!({ "users": format!("alice:{}", hash("a")) })).is_ok());
    for empty in [json!([]), json!(["# none yet\n"]), json!("")] {
        assert_eq!(errors(json!({ "users": empty }))[0].0, "/users");
    }
    for (more, path) in [
        (json!({ "realm": "a\"b" }), "/realm"),
        (json!({ "user-field": "" }), "/user-field"),
        (json!({ "user-note": "" }), "/user-note"),
        (json!({ "remember": "5" }), "/remember"),
        (json!({ "remember": "61m" }), "/remember"),
    ] {
        assert_eq!(errors(config(more))[0].0, path);
    }
}
