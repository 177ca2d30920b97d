//! Native tests of the plugin `body-limit`.

use plugway_sdk::Response;
use plugway_sdk::testing::{Harness, Outcome, Request};
use serde_json::{Value, json};

use super::BodyLimit;

fn harness(config: Value) -> Harness<BodyLimit> {
    Harness::new(config).unwrap()
}

/// Returns the limit that a request gets.
fn limit(plugin: &mut Harness<BodyLimit>, request: Request) -> Option<u64> {
    plugin.request(request).passed().unwrap().max_body()
}

fn refused(plugin: &mut Harness<BodyLimit>, request: Request) -> Response {
    match plugin.request(request) {
        Outcome::Answered(response) => response,
        other => panic!("{other:?}"),
    }
}

fn post(path: &str) -> Request {
    Request::new("POST", path).content(9)
}

#[test]
fn a_limit_without_conditions_needs_no_call() {
    let mut plugin = harness(json!({ "max": "1 MiB" }));
    assert!(plugin.setup.request_plan.is_some());
    assert_eq!(limit(&mut plugin, post("/")), Some(1 << 20));
}

#[test]
fn the_first_rule_whose_conditions_hold_applies() {
    let mut plugin = harness(json!({ "max": "1 KiB", "rules": [
        { "methods": ["PUT"], "paths": ["/upload/"], "hosts": ["files.example.org"], "max": "1 GiB" },
        { "types": ["image/*"], "max": "10 MiB" },
        { "hosts": ["*.example.net"], "max": "2 KiB" },
        { "paths": ["/upload/\n# and\n/files/"], "max": "3 KiB" },
    ]}));
    let put = |path: &str, host: &str| Request::new("PUT", path).authority(host).content(9);
    for (request, wanted) in [
        (put("/upload/a", "files.example.org"), 1 << 30),
        (put("/upload/a", "files.example.org:8443"), 1 << 30),
        (put("/;x/upload/a", "files.example.org"), 1 << 30),
        (put("/upload/a", "example.org"), 3 << 10),
        (post("/upload/a").authority("files.example.org"), 3 << 10),
        (post("/files/a"), 3 << 10),
        (post("/upload/a").field("content-type", "image/png"), 10 << 20),
        (post("/").authority("a.b.example.net"), 2 << 10),
        (post("/").authority("example.net"), 1 << 10),
        (post("/").authority("evilexample.net"), 1 << 10),
        (post("/").chunked_content(), 1 << 10),
    ] {
        assert_eq!(limit(&mut plugin, request.clone()), Some(wanted), "{request:?}");
    }
    assert_eq!(limit(&mut plugin, Request::get("/")), None, "there is nothing to limit");
}

#[test]
fn other_media_types_are_refused_with_those_that_are_accepted() {
    let mut plugin = harness(json!({ "accept": ["application/json", "image/*"] }));
    let typed = |media_type: &str| post("/").field("content-type", media_type);
    for accepted in ["application/json", "Application/Json; charset=utf-8", "image/png"] {
        assert!(plugin.request(typed(accepted)).passed().is_some(), "{accepted}");
    }
    for request in
        [typed("text/plain"), typed("application/json-seq"), post("/"), Request::new("POST", "/").chunked_content()]
    {
        let response = refused(&mut plugin, request.clone());
        let accepted = ("accept".to_string(), b"application/json, image/*".to_vec());
        assert!(response.status == 415 && response.fields.contains(&accepted), "{request:?}: {response:?}");
    }
    assert!(plugin.request(Request::get("/").field("content-type", "text/plain")).passed().is_some(), "no content");
}

#[test]
fn a_length_has_to_be_announced_where_that_is_demanded() {
    let mut plugin = harness(json!({ "require-length": true, "max": "1 KiB", "rules": [
        { "paths": ["/stream"], "require-length": false },
    ]}));
    let chunked = |path: &str| Request::new("POST", path).chunked_content();
    assert_eq!(refused(&mut plugin, chunked("/")).status, 411);
    assert_eq!(limit(&mut plugin, chunked("/stream")), Some(1 << 10), "the limit above");
    assert_eq!(limit(&mut plugin, post("/")), Some(1 << 10));
    assert_eq!(limit(&mut plugin, post("/").content(0)), Some(1 << 10));
}

#[test]
fn conditions_that_no_request_meets_are_errors() {
    let error = |list: &str, condition: &str| {
        let config = json!({ "rules": [{ list: [condition], "max": "1 KiB" }] });
        let mut found = Harness::<BodyLimit>::errors(config);
        assert_eq!(found.len(), 1, "{condition}: {found:?}");
        assert_eq!(found[0].path, format!("/rules/0/{list}/0"), "{condition}");
        found.swap_remove(0).message
    };
    for (path, part) in [
        ("/gr\u{f6}\u{df}e/", "write `/gr%C3%B6%C3%9Fe/`"),
        ("/a b", "write `/a%20b`"),
        ("/%7Euser/", "letters as they are"),
        ("/%c3%a9/", "upper-case digits"),
        ("//upload/", "empty segment"),
        ("/a/../upload/", "dot segment"),
        ("/a;b", "parameters"),
        ("/a?b", "ends before `?`"),
    ] {
        let message = error("paths", path);
        assert!(message.contains(part), "{path}: {message}");
    }
    for (host, part) in [
        ("files.example.org.", "write `files.example.org`"),
        ("files..example.org", "invalid host"),
        ("[0:0::1]", "write `[::1]`"),
        ("*.Example.org", "write `*.example.org`"),
    ] {
        let message = error("hosts", host);
        assert!(message.contains(part), "{host}: {message}");
    }
    harness(json!({ "rules": [{ "paths": ["/a/.", "/%C3%9F"], "hosts": ["[::1]", "*.a.example"], "max": "1 KiB" }] }));
}

#[test]
fn configurations_that_limit_nothing_are_errors() {
    for (config, path, part) in [
        (json!({}), "", "nothing is limited"),
        (json!({ "max": "1 MB" }), "/max", "invalid size"),
        (json!({ "accept": ["json"] }), "/accept/0", "invalid media type"),
        (json!({ "max": "1 B", "rules": [{ "paths": ["/a"] }] }), "/rules/0", "limits nothing"),
        (json!({ "max": "1 B", "rules": [{ "max": "2 B" }] }), "/rules/0", "has no condition"),
        (json!({ "rules": [{ "methods": ["post"], "max": "2 B" }] }), "/rules/0/methods/0", "write `POST`"),
        (
            json!({ "rules": [{ "methods": ["*"], "paths": ["/a"], "max": "2 B" }] }),
            "/rules/0/methods/0",
            "`*` is no method; remove `methods` for any method",
        ),
        (json!({ "rules": [{ "paths": ["a"], "max": "2 B" }] }), "/rules/0/paths/0", "invalid path"),
        (
            json!({ "rules": [{ "hosts": ["a\nA:1"], "max": "2 B" }] }),
            "/rules/0/hosts/0",
            "line 2: invalid host: `A:1`",
        ),
        (json!({ "rules": [{ "types": ["image"], "max": "2 B" }] }), "/rules/0/types/0", "invalid media type"),
    ] {
        let found = Harness::<BodyLimit>::errors(config.clone());
        assert!(found.len() == 1 && found[0].path == path && found[0].message.contains(part), "{config}: {found:?}");
    }
}
