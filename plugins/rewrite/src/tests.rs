//! Native tests of the plugin `rewrite`.

use plugway_sdk::testing::{Harness, Outcome, Request};
use serde_json::{Value, json};

use super::Rewrite;

fn rewriter(config: Value) -> Harness<Rewrite> {
    Harness::new(config).unwrap()
}

/// Returns the target that the upstream gets, or `STATUS LOCATION`.
fn result(rewriter: &mut Harness<Rewrite>, request: Request) -> String {
    match rewriter.request(request) {
        Outcome::Passed(request) => {
            request.query().map_or(request.path().into(), |query| format!("{}?{query}", request.path()))
        }
        Outcome::Answered(response) => {
            let (_, location) = response.fields.iter().find(|(name, _)| name == "location").unwrap();
            format!("{} {}", response.status, String::from_utf8_lossy(location))
        }
        Outcome::Failed(reason) => format!("failed: {reason}"),
    }
}

fn results(config: Value, cases: &[(&str, &str)]) {
    let mut rewriter = rewriter(config);
    for (target, wanted) in cases {
        assert_eq!(result(&mut rewriter, Request::get(target)), *wanted, "{target}");
    }
}

fn errors(config: Value) -> Vec<(String, String)> {
    Harness::<Rewrite>::errors(config).into_iter().map(|error| (error.path, error.message)).collect()
}

fn error(config: Value) -> (String, String) {
    let mut errors = errors(config.clone());
    assert_eq!(errors.len(), 1, "{config}: {errors:?}");
    errors.swap_remove(0)
}

#[test]
fn the_first_rule_that_matches_rewrites() {
    results(
        json!({ "rules": [
            { "regex": r"^/blog/(?<year>\d{4})/([^/]+)$", "to": "/posts/${year}-$2" },
            { "regex": r"^/item/(\d+)$", "to": "/item.php?id=$1&all" },
            { "regex": r"^/tag/(.+)$", "to": "/search?tag=$1" },
            { "regex": "(?i)^/price$", "to": "/a$$b" },
            { "regex": "^/go/(.*)$", "to": "https://other.example/in/$1#top", "redirect": 302 },
            { "regex": r"^/old/(.*)\.html$", "to": "/new/$1", "redirect": 301 },
            { "regex": "^/(.+)/index$", "to": "/$1/", "redirect": 308 },
        ]}),
        &[
            ("/", "/"),
            ("/blog/2024/a-b", "/posts/2024-a-b"),
            ("/blog/24/a-b?x=1", "/blog/24/a-b?x=1"),
            ("/blog/2024/a?x=1", "/posts/2024-a?x=1"),
            ("/item/7?x=1", "/item.php?id=7&all"),
            ("/tag/a&admin=1", "/search?tag=a%26admin%3D1"),
            ("/tag/a%26b+c", "/search?tag=a%26b%2Bc"),
            ("/PRICE", "/a$b"),
            ("/go/a?b", "302 https://other.example/in/a?b#top"),
            ("/go/", "302 https://other.example/in/#top"),
            ("/old/a/b.html?x=1", "301 /new/a/b?x=1"),
            ("/a/index", "308 /a/"),
        ],
    );
}

#[test]
fn the_map_has_paths_redirects_and_comments() {
    let map = "# moved in 2024\n/old /new\n/shop\thttps://shop.example/ 301\n/help /support?from=help#top 302;\n/a;x=1 /b # b\n";
    results(
        json!({ "map": map, "rules": [{ "regex": "^/o", "to": "/rule" }] }),
        &[
            ("/old?q=1", "/new?q=1"),
            ("/shop?q=1", "301 https://shop.example/?q=1"),
            ("/help?q=1", "302 /support?from=help#top"),
            ("/a;x=1", "/b"),
            ("/other", "/rule"),
            ("/new", "/new"),
        ],
    );
}

#[test]
fn ten_thousand_lines_are_found() {
    let map: String = (0..10_000).map(|index| format!("/old/{index} /new/{index} 301\n")).collect();
    results(
        json!({ "map": map }),
        &[("/old/0", "301 /new/0"), ("/old/9999", "301 /new/9999"), ("/old/10000", "/old/10000")],
    );
}

#[test]
fn paths_have_one_spelling() {
    results(
        json!({ "canonical": { "lower-case": true, "trailing-slash": "remove" } }),
        &[
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/A/b/?X=Y", "308 /a/b?X=Y"),
            ("/a/%C3%A9/%2C", "/a/%C3%A9/%2C"),
            ("/A%C3%89B", "308 /a%C3%89b"),
            ("//evil.example/", "308 /evil.example"),
            ("*", "*"),
        ],
    );
    results(
        json!({ "canonical": { "trailing-slash": "add", "redirect": 301 } }),
        &[("/a", "301 /a/"), ("/a/", "/a/"), ("/", "/"), ("/a/b.css", "/a/b.css"), ("/a.b/c", "301 /a.b/c/")],
    );
    results(
        json!({ "canonical": { "lower-case": true, "redirect": false }, "map": "/old /new" }),
        &[("/Old", "/new"), ("/A", "/a")],
    );
}

#[test]
fn hosts_have_one_spelling() {
    let cases = |config: Value, cases: &[(&str, &str)]| {
        let mut rewriter = rewriter(json!({ "canonical": config, "map": "/old /new 301\n/in /out" }));
        for (authority, wanted) in cases {
            let (authority, target) = authority.split_once('/').unwrap();
            let request = Request::get(&format!("/{target}")).authority(authority).secure();
            assert_eq!(result(&mut rewriter, request), *wanted, "{authority}/{target}");
        }
    };
    cases(
        json!({ "host": "www" }),
        &[
            ("example.org/a?b", "308 https://www.example.org/a?b"),
            ("example.org:8443/", "308 https://www.example.org:8443/"),
            ("www.example.org/a", "/a"),
            ("127.0.0.1:80/a", "/a"),
            ("[::1]:80/a", "/a"),
            ("localhost/a", "/a"),
            // One redirect for both, and a path of the upstream stays hidden.
            ("example.org/old?x", "308 https://www.example.org/new?x"),
            ("example.org/in", "308 https://www.example.org/in"),
            ("www.example.org/in", "/out"),
        ],
    );
    cases(
        json!({ "host": "no-www", "redirect": 301 }),
        &[("www.a.example/b", "301 https://a.example/b"), ("a.example/b", "/b")],
    );
    cases(
        json!({ "host": "a.example" }),
        &[
            ("b.example/", "308 https://a.example/"),
            ("b.example:81/", "308 https://a.example:81/"),
            ("[::1]:81/", "308 https://a.example:81/"),
            ("a.example:81/", "/"),
        ],
    );
    cases(json!({ "host": "a.example:444" }), &[("a.example/", "308 https://a.example:444/"), ("a.example:444/", "/")]);

    let mut internal = rewriter(json!({ "canonical": { "host": "a.example", "redirect": false } }));
    let passed = internal.request(Request::get("/x").authority("b.example")).passed().unwrap();
    assert_eq!((passed.host(), passed.path()), ("a.example", "/x"));
    let mut proxied = rewriter(json!({ "canonical": { "host": "www" } }));
    let behind = Request::get("/").field("x-forwarded-proto", "https");
    assert_eq!(result(&mut proxied, behind), "308 https://www.example.org/");
}

#[test]
fn the_query_is_edited_in_order() {
    results(
        json!({ "query": {
            "keep": ["b", "a", "old", "utm_x", "set"], "remove": ["utm_*"], "rename": { "old": "n w" }, "set": { "set": "x&y" },
            "sort": true,
        }}),
        &[
            ("/p?b=2&utm_x=1&b=1&other=1&a&old=%41", "/p?a&b=2&b=1&n%20w=%41&set=x%26y"),
            ("/p", "/p?set=x%26y"),
            ("/p?%61=1&set=2", "/p?%61=1&set=x%26y"),
        ],
    );
    results(
        json!({ "query": { "remove": ["fbclid"] } }),
        &[("/p?fbclid=1", "/p"), ("/p?a=1&b", "/p?a=1&b"), ("/p?", "/p")],
    );
    results(json!({ "query": { "keep": [] } }), &[("/p?a=1", "/p")]);
    results(
        json!({ "rules": [{ "regex": "^/i/(.)$", "to": "/i?id=$1" }], "query": { "set": { "v": "2" } } }),
        &[("/i/7?x=1", "/i?id=7&v=2"), ("/?v=1", "/?v=2")],
    );
}

#[test]
fn redirects_in_sequence_become_one() {
    results(
        json!({ "map": "/a /b 301\n/b /c?x=1 301\n/d /E 302\n/s https://example.org/a 301", "canonical": { "lower-case": true } }),
        &[("/a", "301 /c?x=1"), ("/d", "302 /E"), ("/E", "308 /e"), ("/A", "308 /a")],
    );
}

#[test]
fn a_long_sequence_of_redirects_that_ends_is_one_redirect() {
    let moves = |count: usize| -> String { (1..=count).map(|n| format!("/v{n} /v{} 301\n", n + 1)).collect() };
    results(json!({ "map": moves(8) }), &[("/v1", "301 /v9"), ("/v8", "301 /v9"), ("/v9", "/v9")]);
    results(json!({ "map": moves(64) }), &[("/v1", "301 /v65")]);
    let (path, message) = error(json!({ "map": moves(65) }));
    let trail = "more than 64 redirects in sequence: `/v1` -> `/v2` -> `/v3` -> `/v4` -> ...;";
    assert!(path == "/map" && message.starts_with(&format!("line 1: {trail}")), "{message}");
    let circle = format!("{}/v21 /v20 301\n", moves(20));
    let found = errors(json!({ "map": circle }));
    assert_eq!(found.len(), 20, "{found:?}");
    assert!(found.iter().all(|(_, message)| message.contains("redirects without an end: ")), "{found:?}");
}

#[test]
fn loops_are_errors_of_the_configuration() {
    let loops = [
        (json!({ "map": "/a /b 301\n/b /a 302" }), "/map", 2),
        (json!({ "map": "/a /a 301" }), "/map", 1),
        (json!({ "map": "/a/ /a 301", "canonical": { "trailing-slash": "add" } }), "/map", 1),
        (json!({ "rules": [{ "regex": "^/a", "to": "/a?b=1", "redirect": 302 }] }), "/rules/0/to", 1),
    ];
    for (config, path, count) in loops {
        let found = errors(config.clone());
        assert_eq!(found.len(), count, "{config}: {found:?}");
        assert!(found.iter().all(|(at, message)| at == path && message.contains("without an end")), "{found:?}");
    }
    let (path, message) = error(json!({ "rules": [{ "regex": "^/(.*)$", "to": "/en/$1", "redirect": 302 }] }));
    assert!(path == "/rules/0/to" && message.starts_with("more than 64 redirects in sequence: `/en/x`"), "{message}");
    let behind_a_wrong_rule = errors(json!({ "rules": [
        { "regex": "(", "to": "/" },
        { "regex": "^/(.*)$", "to": "/en/$1", "redirect": 302 },
    ]}));
    let places: Vec<&str> = behind_a_wrong_rule.iter().map(|(at, _)| at.as_str()).collect();
    assert_eq!(places, ["/rules/0/regex", "/rules/1/to"]);
    results(
        json!({ "rules": [{ "regex": "^/([^e].*)$", "to": "/en/$1", "redirect": 302 }] }),
        &[("/a", "302 /en/a"), ("/en/a", "/en/a")],
    );
}

#[test]
fn a_loop_that_only_requests_show_fails_them() {
    // No example tells that numbers turn in circles, nor which site `example.org` is.
    let mut rewriter = rewriter(json!({
        "rules": [{ "regex": r"^/n(\d)$", "to": "/n$1", "redirect": 301 }],
        "map": "/s http://example.org/s 301\n/t https://example.org/t 301",
    }));
    for target in ["/n1", "/s"] {
        let failed = result(&mut rewriter, Request::get(target));
        assert!(failed.starts_with(&format!("failed: redirects without an end: `{target}` -> `{target}`")), "{failed}");
    }
    assert_eq!(result(&mut rewriter, Request::get("/t")), "301 https://example.org/t");
    let secure = result(&mut rewriter, Request::get("/t").secure());
    assert!(secure.starts_with("failed: "), "{secure}");
}

#[test]
fn no_request_chooses_the_host_of_a_redirect() {
    results(
        json!({ "rules": [
            { "regex": "^/r(.*)$", "to": "/$1", "redirect": 302 },
            { "regex": "^/t(.*)$", "to": "https://a.example/$1", "redirect": 302 },
        ]}),
        &[
            ("/r/evil.example/x", "302 /evil.example/x"),
            ("/r//evil.example", "302 /evil.example"),
            ("/t@evil.example", "302 https://a.example/@evil.example"),
        ],
    );
    for to in
        ["https://a.example$1", "https://$1/", "https://a@$1", "//a.example/", "https://u@a.example/", "https:///x"]
    {
        let (path, message) = error(json!({ "rules": [{ "regex": "^/(.*)$", "to": to, "redirect": 302 }] }));
        assert!(path == "/rules/0/to" && message.contains("invalid"), "{to}: {message}");
    }
}

#[test]
fn a_path_that_can_not_be_rewritten_is_the_clients_mistake() {
    let refused = |rewriter: &mut Harness<Rewrite>, target: &str| match rewriter.request(Request::get(target)) {
        Outcome::Answered(response) => assert_eq!(response.status, 400, "{target}"),
        other => panic!("{target}: {other:?}"),
    };
    let mut cut = rewriter(json!({ "rules": [{ "regex": "^/(..?)", "to": "/$1" }] }));
    for target in ["/%41", "/../x"] {
        refused(&mut cut, target);
    }
    let mut plain = rewriter(json!({ "rules": [{ "regex": r"^/(.*)\.html$", "to": "/$1", "redirect": 301 }] }));
    for target in ["/..html", "/x/...html", "/x/..html?a=1"] {
        refused(&mut plain, target);
    }
    assert_eq!(result(&mut plain, Request::get("/x/.html")), "301 /x/");
    let mut host = rewriter(json!({ "canonical": { "host": "a.example" } }));
    refused(&mut host, "/a/../b");
    results(json!({ "rules": [{ "regex": "^/(.*)$", "to": "/x/$1" }] }), &[("/a<\u{e9}", "/x/a%3C%C3%A9")]);
}

#[test]
fn mistakes_are_named_with_their_place() {
    let rule = |regex: &str, to: &str| json!({ "rules": [{ "regex": regex, "to": to }] });
    let cases = [
        (json!({}), "", "nothing to rewrite"),
        (rule("(", "/"), "/rules/0/regex", "invalid regular expression"),
        (rule("a{1000}{1000}", "/"), "/rules/0/regex", "invalid regular expression"),
        (rule(r"^/index\.php\?id=(\d+)$", "/item/$1"), "/rules/0/regex", "a path ends before `?`"),
        (rule("^old/", "/"), "/rules/0/regex", "no path matches: `^old/`; a path begins with `/`"),
        (rule("^/gr\u{f6}\u{df}e", "/"), "/rules/0/regex", "percent-encoded"),
        (
            json!({ "rules": [{ "regex": "^/Old$", "to": "/b" }], "canonical": { "lower-case": true } }),
            "/rules/0/regex",
            "no path matches: `^/Old$`; paths are in lower case here",
        ),
        (rule("^/(a)", "/$2"), "/rules/0/to", "unknown group: `2`"),
        (rule("^/(a)", "/${b}"), "/rules/0/to", "unknown group: `b`"),
        (rule("^/(a)", "/$"), "/rules/0/to", "`$` without a group"),
        (rule("^/(a)", "/${1"), "/rules/0/to", "not closed"),
        (rule("^/(a)", "$1"), "/rules/0/to", "expected a path"),
        (rule("^/a", "https://a.example/"), "/rules/0/to", "is for clients"),
        (rule("^/a", "/a b"), "/rules/0/to", "percent-encoded"),
        (json!({ "rules": [{ "regex": "a", "to": "/", "redirect": 200 }] }), "/rules/0/redirect", "expected 301"),
        (json!({ "canonical": { "host": "Example.org" } }), "/canonical/host", "lower case"),
        (json!({ "canonical": { "host": "a..example" } }), "/canonical/host", "invalid host"),
        (json!({ "canonical": { "host": ".example.org" } }), "/canonical/host", "invalid host"),
        (json!({ "canonical": { "host": "example.org." } }), "/canonical/host", "invalid host"),
        (json!({ "canonical": { "host": "-" } }), "/canonical/host", "invalid host"),
        (json!({ "canonical": { "host": "a.example:0" } }), "/canonical/host", "invalid host"),
        (json!({ "canonical": { "host": "[::1]" } }), "/canonical/host", "invalid host"),
        (json!({ "map": "/a https://a..b/x 301" }), "/map", "invalid host"),
        (json!({ "map": "/a https://[::1/ 301" }), "/map", "invalid host"),
        (json!({ "map": "/a https://:443/ 301" }), "/map", "invalid host"),
        (json!({ "canonical": { "host": "www", "redirect": true } }), "/canonical/redirect", "or `false`"),
        (json!({ "canonical": { "host": "www", "redirect": 200 } }), "/canonical/redirect", "expected 301"),
        (json!({ "query": { "remove": [""] } }), "/query/remove", "empty name"),
        (json!({ "map": "/a" }), "/map", "invalid line: `/a`; expected `/old /new`"),
        (json!({ "map": "\n/a /b x" }), "/map", "line 2: invalid status: `x`"),
        (json!({ "map": "/a /b 404" }), "/map", "expected 301"),
        (json!({ "map": "/a b" }), "/map", "expected a path"),
        (json!({ "map": "/a /../b" }), "/map", "dot segment"),
        (json!({ "map": "/a /b\n/a /c" }), "/map", "line 2: `/a` is in line 1 already"),
        (json!({ "map": "/a?b /b" }), "/map", "invalid path: `/a?b`"),
        (json!({ "map": "/a//b /b" }), "/map", "empty segment"),
        (json!({ "map": "/caf\u{e9} /b" }), "/map", "percent-encoded"),
        (json!({ "map": "/%e9 /b" }), "/map", "upper-case digits"),
        (json!({ "map": "/%41 /b" }), "/map", "letters as they are"),
        (json!({ "map": "/A /b", "canonical": { "lower-case": true } }), "/map", "its canonical form is `/a`"),
    ];
    for (config, path, part) in cases {
        let (found, message) = error(config.clone());
        assert!(found == path && message.contains(part), "{config}: {found}: {message}");
    }
    assert_eq!(errors(json!({ "map": "x\n".repeat(1000) })).len(), 20);
    let many = vec![json!({ "regex": "a", "to": "/" }); 65];
    assert!(error(json!({ "rules": many })).1.starts_with("too many rules: 65"));
}
