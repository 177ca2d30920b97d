//! Native tests of the plugin `security-headers`.

use plugway_sdk::Response;
use plugway_sdk::testing::{Harness, Request};
use serde_json::{Value, json};

use super::SecurityHeaders;

fn harness(config: Value) -> Harness<SecurityHeaders> {
    Harness::new(config).unwrap()
}

/// Runs both hooks on a response to a request over TLS, and returns the fields of the response.
fn sent(config: Value, response: Response) -> Vec<(String, String)> {
    fields(&mut harness(config), Request::get("/").secure(), response)
}

fn fields(plugin: &mut Harness<SecurityHeaders>, request: Request, response: Response) -> Vec<(String, String)> {
    let request = plugin.request(request).passed().unwrap();
    let response = plugin.response(&request, response).passed().unwrap();
    let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
    let mut fields: Vec<_> = response.fields.into_iter().map(|(name, value)| (name, text(value))).collect();
    fields.sort();
    fields
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
}

/// Returns the paths and messages of all errors.
fn errors(config: Value) -> Vec<(String, String)> {
    Harness::<SecurityHeaders>::errors(config).into_iter().map(|error| (error.path, error.message)).collect()
}

#[test]
fn defaults_are_safe_and_fill_only_gaps() {
    let all = sent(json!({}), Response::new(200).field("server", "a/1").field("x-powered-by", "b/2"));
    let wanted = [
        ("referrer-policy", "strict-origin-when-cross-origin"),
        ("strict-transport-security", "max-age=31536000"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "SAMEORIGIN"),
    ];
    assert_eq!(all, wanted.map(|(name, value)| (name.to_string(), value.to_string())));
    let own = Response::new(200).field("x-frame-options", "DENY").field("referrer-policy", "no-referrer");
    let kept = sent(json!({}), own);
    assert_eq!((field(&kept, "x-frame-options"), field(&kept, "referrer-policy")), (vec!["DENY"], vec!["no-referrer"]));
}

#[test]
fn hsts_is_sent_over_tls_only() {
    let config = json!({ "hsts": { "max-age": "730d", "include-subdomains": true, "preload": true } });
    let secure = sent(config.clone(), Response::new(200));
    assert_eq!(field(&secure, "strict-transport-security"), ["max-age=63072000; includeSubDomains; preload"]);
    let own = Response::new(200).field("strict-transport-security", "max-age=9");
    let plain = fields(&mut harness(config), Request::get("/"), own);
    assert_eq!(field(&plain, "strict-transport-security"), ["max-age=9"], "TLS may have ended at another proxy");
    let plain = fields(&mut harness(json!({})), Request::get("/"), Response::new(200));
    assert!(field(&plain, "strict-transport-security").is_empty());
    let mut none = harness(json!({ "hsts": false }));
    assert!(none.setup.response_plan.is_some() && none.setup.request_plan.is_some(), "it needs no call");
    assert!(
        field(&fields(&mut none, Request::get("/").secure(), Response::new(200)), "strict-transport-security")
            .is_empty()
    );
}

#[test]
fn configured_fields_replace_the_applications_unless_forbidden() {
    let own = || Response::new(200).field("content-security-policy", "default-src *").field("x-frame-options", "DENY");
    let config = |overrides| json!({ "content-security-policy": "default-src 'self'", "frames": "same-origin", "override": overrides });
    let replaced = sent(config(true), own());
    assert_eq!(field(&replaced, "content-security-policy"), ["default-src 'self'"]);
    assert_eq!(field(&replaced, "x-frame-options"), ["SAMEORIGIN"]);
    let kept = sent(config(false), own());
    assert_eq!(field(&kept, "content-security-policy"), ["default-src *"]);
    assert_eq!(field(&kept, "x-frame-options"), ["DENY"]);
}

#[test]
fn a_field_that_is_switched_off_is_the_applications_only_where_that_is_kept() {
    let own = [("x-frame-options", "DENY"), ("referrer-policy", "no-referrer"), ("x-content-type-options", "nosniff")];
    let config = |overrides| {
        json!({ "frames": "any", "referrer-policy": "off", "content-type-options": false, "hsts": false,
                "override": overrides })
    };
    for (overrides, is_kept) in [(true, false), (false, true)] {
        let response = own.iter().fold(Response::new(200), |response, (name, value)| response.field(name, *value));
        let all = sent(config(overrides), response);
        for (name, value) in own {
            assert_eq!(field(&all, name), Vec::from_iter(is_kept.then_some(value)), "override: {overrides}");
        }
        assert!(sent(config(overrides), Response::new(200)).is_empty(), "none is added");
    }
}

#[test]
fn each_response_has_a_nonce_that_the_upstream_knows_and_no_client_chooses() {
    let mut plugin = harness(json!({
        "content-security-policy": { "script-src": ["'self'", "'nonce-{nonce}'"], "style-src": "'nonce-{nonce}'" },
        "content-security-policy-report-only": "script-src 'nonce-{nonce}'",
    }));
    let mut seen = Vec::new();
    for _ in 0..3 {
        let forged = Request::get("/").field("x-csp-nonce", "forged").field("x_csp_nonce", "forged");
        let request = plugin.request(forged).passed().unwrap();
        let [nonce] = request.lines("x-csp-nonce").try_into().unwrap();
        assert!(nonce.len() == 32 && nonce.bytes().all(|digit| digit.is_ascii_hexdigit()), "{nonce}");
        assert!(request.lines("x_csp_nonce").is_empty());
        let response = plugin.response(&request, Response::new(200)).passed().unwrap();
        let value = |name: &str| {
            let line = response.fields.iter().find(|(known, _)| known == name).unwrap();
            String::from_utf8(line.1.clone()).unwrap()
        };
        let policy = format!("script-src 'self' 'nonce-{nonce}'; style-src 'nonce-{nonce}'");
        assert_eq!(value("content-security-policy"), policy);
        assert_eq!(value("content-security-policy-report-only"), format!("script-src 'nonce-{nonce}'"));
        assert!(!seen.contains(&nonce));
        seen.push(nonce);
    }
}

#[test]
fn a_policy_may_have_several_lines_and_switches() {
    let text = "default-src 'self';\n  img-src 'self' data:;\n  upgrade-insecure-requests;\n";
    let all = sent(json!({ "content-security-policy": text }), Response::new(200));
    let wanted = "default-src 'self'; img-src 'self' data:; upgrade-insecure-requests";
    assert_eq!(field(&all, "content-security-policy"), [wanted]);
    let table = json!({ "img-src": ["'self'", "data:"], "default-src": "'self'", "upgrade-insecure-requests": true,
                        "sandbox": false });
    let all = sent(json!({ "content-security-policy": table }), Response::new(200));
    assert_eq!(field(&all, "content-security-policy"), [wanted]);
}

#[test]
fn frames_of_other_sites_need_frame_ancestors() {
    let frames = json!(["https://portal.example.org"]);
    let own = || Response::new(200).field("content-security-policy", "img-src *").field("x-frame-options", "DENY");
    let ancestors = "frame-ancestors 'self' https://portal.example.org";
    let added = sent(json!({ "frames": frames }), own());
    assert_eq!(field(&added, "content-security-policy"), [ancestors, "img-src *"]);
    assert!(field(&added, "x-frame-options").is_empty());
    let config = json!({ "frames": frames, "content-security-policy": "default-src 'self'" });
    let joined = sent(config, own());
    assert_eq!(field(&joined, "content-security-policy"), [format!("default-src 'self'; {ancestors}")]);
    assert_eq!(field(&sent(json!({ "frames": "none" }), own()), "x-frame-options"), ["DENY"]);
    assert!(field(&sent(json!({ "frames": "any" }), Response::new(200)), "x-frame-options").is_empty());
}

#[test]
fn policies_of_features_and_origins_are_sent_as_browsers_read_them() {
    let all = sent(
        json!({
            "permissions-policy": { "camera": [], "fullscreen": "*", "geolocation": ["self", "https://maps.example"] },
            "cross-origin-opener-policy": "same-origin-allow-popups",
            "cross-origin-embedder-policy": "require-corp",
            "cross-origin-resource-policy": "same-site",
            "referrer-policy": "off",
            "content-type-options": false,
            "remove": ["X-Runtime"],
        }),
        Response::new(200).field("server", "a").field("x-runtime", "1"),
    );
    let features = "camera=(), fullscreen=*, geolocation=(self \"https://maps.example\")";
    assert_eq!(field(&all, "permissions-policy"), [features]);
    assert_eq!(field(&all, "cross-origin-opener-policy"), ["same-origin-allow-popups"]);
    assert_eq!(field(&all, "cross-origin-embedder-policy"), ["require-corp"]);
    assert_eq!(field(&all, "cross-origin-resource-policy"), ["same-site"]);
    for name in ["referrer-policy", "x-content-type-options", "x-runtime"] {
        assert!(field(&all, name).is_empty(), "{name}");
    }
    assert_eq!(field(&all, "server"), ["a"]);
}

#[test]
fn policies_in_the_syntax_of_browsers_are_accepted() {
    for config in [
        json!({ "permissions-policy": "camera=(), fullscreen=*, usb=self, midi=(self \"https://a.example\");report-to=x" }),
        json!({ "content-security-policy": "script-src 'SELF' 'sha256-YWJj' 'wasm-unsafe-eval'; sandbox allow-forms" }),
        json!({ "content-security-policy": "require-trusted-types-for 'script'; trusted-types a 'allow-duplicates'" }),
        json!({ "content-security-policy": "script-src 'url-sha256-YWJj' 'eval-sha384-YWJj'" }),
        json!({ "frames": "none", "content-security-policy": "frame-ancestors 'none'" }),
        json!({ "frames": "any", "content-security-policy": "frame-ancestors https://a.example" }),
        json!({ "content-security-policy": "default-src 'self'; worker-src 'self' blob:; webrtc 'block'" }),
        json!({ "content-security-policy": "default-src 'self'; plugin-types application/pdf; model-src 'self'" }),
        json!({ "content-security-policy-report-only": { "worker-src": ["'self'", "blob:"], "new-directive": true } }),
        json!({ "content-security-policy": "sandbox allow-scripts Allow-Popups allow-new-things" }),
        json!({ "referrer-policy": "no-referrer, strict-origin-when-cross-origin" }),
        json!({ "content-security-policy": "default-src 'self'; report-to none" }),
        json!({ "hsts": { "max-age": "0s" } }),
    ] {
        let found = errors(config.clone());
        assert!(found.is_empty(), "{config}: {found:?}");
    }
}

#[test]
fn names_of_directives_may_be_in_any_case() {
    let config =
        json!({ "content-security-policy": "Default-Src 'SELF'; IMG-SRC *; Frame-Ancestors 'none'", "frames": "none" });
    let all = sent(config, Response::new(200));
    assert_eq!(field(&all, "content-security-policy"), ["default-src 'SELF'; img-src *; frame-ancestors 'none'"]);
}

#[test]
fn referrer_policies_for_older_browsers_come_first() {
    let wanted = "no-referrer, strict-origin-when-cross-origin";
    for policies in [json!(wanted), json!(["no-referrer", "strict-origin-when-cross-origin"])] {
        let all = sent(json!({ "referrer-policy": policies }), Response::new(200));
        assert_eq!(field(&all, "referrer-policy"), [wanted]);
    }
    for policy in ["same-origin", "Same-Origin"] {
        let one = sent(json!({ "referrer-policy": policy }), Response::new(200));
        assert_eq!(field(&one, "referrer-policy"), ["same-origin"]);
    }
}

#[test]
fn configurations_that_protect_less_than_they_seem_to_are_errors() {
    let csp = |policy: &str| json!({ "content-security-policy": policy });
    for (config, path, part) in [
        (json!({ "hsts": { "preload": true } }), "/hsts/preload", "needs `include-subdomains = true`"),
        (
            json!({ "hsts": { "preload": true, "include-subdomains": true, "max-age": "30d" } }),
            "/hsts/preload",
            "at least `365d`",
        ),
        (json!({ "hsts": { "max-age": "1 year" } }), "/hsts/max-age", "invalid duration"),
        (json!({ "hsts": { "max-age": "500ms" } }), "/hsts/max-age", "whole seconds"),
        (csp("default-src self"), "/content-security-policy", "write `'self'`"),
        (csp("defaultsrc 'self'"), "/content-security-policy", "unknown directive: `defaultsrc`"),
        (csp("defaultsrc 'self'"), "/content-security-policy", "did you mean `default-src`?"),
        (csp("script 'self'"), "/content-security-policy", "did you mean `script-src`?"),
        (csp("workers-src 'self'"), "/content-security-policy", "did you mean `worker-src`?"),
        (csp("script-src 'self'; script-src *"), "/content-security-policy", "is there twice"),
        (csp("script-src 'self'; Script-Src *"), "/content-security-policy", "is there twice"),
        (
            json!({ "content-security-policy": { "img-src": "*", "Img-Src": "'self'" } }),
            "/content-security-policy/img-src",
            "is there twice",
        ),
        (csp("IMG-SRC self"), "/content-security-policy", "write `'self'`"),
        (csp("webrtc block"), "/content-security-policy", "expected `'allow'` or `'block'`"),
        (csp("sandbox allow-script"), "/content-security-policy", "did you mean `allow-scripts`?"),
        (json!({ "referrer-policy": "no-referrer, off" }), "/referrer-policy", "\"off\" is none of \"no-referrer\", "),
        (json!({ "referrer-policy": ["origin", "never"] }), "/referrer-policy", "\"never\" is none of"),
        (json!({ "referrer-policy": [] }), "/referrer-policy", "\"\" is none of"),
        (csp("script-src {nonce}"), "/content-security-policy", "write `'nonce-{nonce}'`"),
        (csp("script-src 'nonce-abc'"), "/content-security-policy", "is the same for all responses"),
        (csp("script-src 'none' https://a.example"), "/content-security-policy", "beside other sources"),
        (csp("script-src a, b"), "/content-security-policy", "can't stand in a policy"),
        (csp("default-src 'slef'"), "/content-security-policy", "unknown keyword: `'slef'` in `default-src`"),
        (csp("script-src-elem 'self"), "/content-security-policy", "unknown keyword: `'self`"),
        (csp(" ; "), "/content-security-policy", "the policy is empty"),
        (
            json!({ "content-security-policy": { "img-src": "data" , "imgsrc": "data:" } }),
            "/content-security-policy/imgsrc",
            "unknown directive",
        ),
        (
            json!({ "content-security-policy": { "img-src/a~b": "*" } }),
            "/content-security-policy/img-src~1a~0b",
            "unknown directive",
        ),
        (json!({ "permissions-policy": { "a/b": "*" } }), "/permissions-policy/a~1b", "invalid feature"),
        (json!({ "nonce-field": "X-N" }), "/nonce-field", "no policy has a nonce"),
        (json!({ "frames": ["portal.example.org"] }), "/frames/0", "invalid origin"),
        (json!({ "frames": ["https://a.example/x"] }), "/frames/0", "an origin has no path"),
        (
            json!({ "frames": ["https://a.example"], "content-security-policy": "frame-ancestors 'none'" }),
            "/frames",
            "write one of both",
        ),
        (json!({ "permissions-policy": { "camera": ["none"] } }), "/permissions-policy/camera", "invalid origin"),
        (json!({ "permissions-policy": "camera" }), "/permissions-policy", "invalid permissions policy: `camera`"),
        (
            json!({ "permissions-policy": "camera 'none'; geolocation=x" }),
            "/permissions-policy",
            "invalid permissions policy: `camera 'none'; geolocation=x`",
        ),
        (json!({ "permissions-policy": "camera=(), usb=none" }), "/permissions-policy", "policy: `usb=none`"),
        (
            json!({ "permissions-policy": "camera=(self https://a.example)" }),
            "/permissions-policy",
            "invalid permissions",
        ),
        (
            json!({ "frames": "none", "content-security-policy": "default-src 'self'; frame-ancestors *" }),
            "/frames",
            "browsers ignore `X-Frame-Options` beside it",
        ),
        (
            json!({ "frames": "same-origin", "content-security-policy": "frame-ancestors 'none'" }),
            "/frames",
            "or `frame-ancestors 'self'`",
        ),
        (json!({ "remove": ["A B"] }), "/remove/0", "invalid name of a field"),
    ] {
        let found = errors(config.clone());
        assert!(found.len() == 1 && found[0].0 == path && found[0].1.contains(part), "{config}: {found:?}");
    }
}
