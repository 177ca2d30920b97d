//! The targets of routes, and the keys that change what a target is asked for.

use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::Command;

use crate::support::{Message, Proxy, echo, manifest, origin, plugway, read_message};

/// Returns a manifest whose routes are written out, beside the upstream `app`.
fn with_routes(origin: &str, routes: &str) -> String {
    format!("workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.app]\nendpoints = [{origin:?}]\n{routes}")
}

/// Starts a proxy without an endpoint.
fn start(routes: &str) -> Proxy {
    Proxy::start(&with_routes("127.0.0.1:1", routes))
}

/// Returns the request line that the endpoint got for a request target.
fn forwarded(proxy: &Proxy, target: &str) -> String {
    let answer = proxy.get(target, "");
    assert_eq!(answer.status(), 200, "{target}: {answer:?}");
    answer.text().lines().next().unwrap().to_string()
}

/// Returns all that the proxy sends for a request.
fn raw(proxy: &Proxy, request: &str) -> String {
    let mut stream = proxy.connect();
    stream.write_all(request.as_bytes()).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all
}

/// Returns the head and the content of the response to a request over HTTP/2.
fn over_http2(proxy: &Proxy, args: &[&str], target: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--http2-prior-knowledge", "--path-as-is", "-sig", "-H", "host: example.org"]).args(args);
    let output = curl.arg(format!("http://{}{target}", proxy.address)).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn location(proxy: &Proxy, target: &str) -> (u16, Option<String>) {
    let answer = proxy.get(target, "");
    (answer.status(), answer.field("location").map(String::from))
}

// === redirect ===

#[test]
fn a_redirect_is_made_of_the_request() {
    let proxy = start(
        "[[route]]\nredirect = \"https://www.example.org{uri}\"\nstatus = 301\n\
         [[route]]\npath = \"/a\"\nredirect = \"/b{path}?from={host}&q={query.q}&{query}\"\n\
         [[route]]\npath = \"/c\"\nredirect = \"{scheme}://{authority}/{method}/{request.header.x-a}\"\nstatus = 308\n",
    );
    let got = proxy.get("/x/../y?z=1", "");
    assert_eq!((got.status(), got.field("location")), (301, Some("https://www.example.org/y?z=1")));
    assert_eq!(got.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(got.text(), "301 Moved Permanently\nhttps://www.example.org/y?z=1\n");
    assert_eq!(
        location(&proxy, "/a/%C3%A9?q=1%262"),
        (302, Some("/b/a/%C3%A9?from=example.org&q=1%262&q=1%262".into()))
    );
    let got = proxy.get("/c", "\r\nX-A: a/b?c=d&e f\"");
    assert_eq!(got.field("location"), Some("http://example.org/GET/a%2Fb%3Fc%3Dd%26e%20f%22"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let got = proxy.exchange(&format!("{method} /x HTTP/1.1\r\nHost: e\r\nContent-Length: 0"));
        assert_eq!((got.status(), got.field("location")), (301, Some("https://www.example.org/x")), "{method}");
    }
    let head = raw(&proxy, "HEAD /x HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 301") && head.contains("content-length: 48\r\n"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    let got = over_http2(&proxy, &[], "/x?y");
    assert!(got.starts_with("HTTP/2 301") && got.contains("location: https://www.example.org/x?y\r\n"), "{got}");
    let got = over_http2(&proxy, &["-I"], "/x");
    assert!(got.contains("content-length: 48\r\n") && got.ends_with("\r\n\r\n"), "{got}");
}

/// As nginx redirects from `/ui` to a location `/ui/`.
#[test]
fn a_redirect_to_a_fixed_path_can_keep_the_query() {
    let proxy = start("[[route]]\npath = { exact = \"/ui\" }\nredirect = \"/ui/{?query}\"\nstatus = 301\n");
    for (target, wanted) in [("/ui?x=1&y", "/ui/?x=1&y"), ("/ui", "/ui/"), ("/ui?", "/ui/")] {
        assert_eq!(proxy.get(target, "").field("location"), Some(wanted), "{target}");
    }
}

#[test]
fn no_request_leads_a_redirect_to_another_host_or_adds_a_field() {
    let proxy = start(
        "[[route]]\nredirect = \"{uri}\"\n[[route]]\npath = \"/slash\"\nredirect = \"/{path}\"\n\
         [[route]]\npath = \"/in\"\nredirect = \"/in/{query.to}\"\n\
         [[route]]\npath = \"/host\"\nredirect = \"https://{query.to}.example.org{uri}\"\n",
    );
    for (target, wanted) in [
        ("//evil.example", "/evil.example"),
        ("///evil.example/", "/evil.example/"),
        ("/%2e%2e//evil.example", ""),
        ("/./%2e//evil.example", "/evil.example"),
        ("/slash//evil.example", "/slash/evil.example"),
        ("/a%0d%0aSet-Cookie:%20a=1", "/a%0D%0ASet-Cookie:%20a=1"),
        ("/a?b=%0d%0aX:1", "/a?b=%0d%0aX:1"),
        ("/in?to=//evil.example", "/in/%2F%2Fevil.example"),
        ("/in?to=%0d%0aX:1", "/in/%0d%0aX%3A1"),
        ("/host?to=evil.example/", ""),
        ("/host?to=evil.example%23", ""),
        ("/host?to=a@evil.example?", ""),
        ("/host?to=w", "https://w.example.org/host?to=w"),
        ("http://example.org//evil.example", "/evil.example"),
        ("/\"^{|}", "/%22%5E%7B%7C%7D"),
    ] {
        let got = location(&proxy, target);
        let wanted = if wanted.is_empty() { (400, None) } else { (302, Some(wanted.to_string())) };
        assert_eq!(got, wanted, "{target}");
    }
    for bad in ["/a\rSet-Cookie: a=1", "/a\tb", "/\u{e9}"] {
        let got = raw(&proxy, &format!("GET {bad} HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"));
        assert!(got.starts_with("HTTP/1.1 400") && !got.contains("location"), "{got}");
    }
    let huge = format!("/?{}", "a".repeat(8_000));
    assert_eq!(location(&proxy, &huge), (302, Some(huge.clone())));
    assert_eq!(location(&proxy, &format!("{huge}{}", "a".repeat(1_000))).0, 414);
    assert_eq!(proxy.exchange("CONNECT e:443 HTTP/1.1\r\nHost: e:443").status(), 400);
    let got = proxy.exchange("OPTIONS * HTTP/1.1\r\nHost: e");
    assert_eq!((got.status(), got.field("location")), (400, None), "{got:?}");
    proxy.wait_log("the redirect has no valid location: ");
}

#[test]
fn a_redirect_without_a_host_is_an_error_of_the_client() {
    let proxy = start("[[route]]\nredirect = \"https://{host}{uri}\"\n");
    assert_eq!(location(&proxy, "/x?y"), (302, Some("https://example.org/x?y".into())));
    let got = proxy.exchange("GET / HTTP/1.0");
    assert_eq!((got.status(), got.field("location")), (400, None));
    assert!(proxy.wait_log("the redirect has no valid location").contains("it would have no host"));
    let star = proxy.exchange("OPTIONS * HTTP/1.1\r\nHost: e");
    assert_eq!(star.field("location"), Some("https://e"));
}

// === respond ===

#[test]
fn a_fixed_response_is_what_the_manifest_says() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("page.html"), "<p>one").unwrap();
    let text = with_routes(
        "127.0.0.1:1",
        "[[route]]\nrespond = { file = \"page.html\" }\n\
         [[route]]\npath = \"/gone\"\nrespond = { status = 410, body = \"It is gone.\\n\", fields = { X-A = \"b\" } }\n\
         [[route]]\npath = \"/json\"\nrespond = { body = \"{}\", fields = { content-type = \"application/json\" } }\n\
         [[route]]\npath = \"/none\"\nrespond = { status = 204 }\n\
         [[route]]\npath = \"/same\"\nrespond = { status = 304, fields = { ETag = \"\\\"a\\\"\" } }\n\
         [[route]]\npath = \"/empty\"\nrespond = {}\n",
    );
    let proxy = Proxy::start_in(folder.path(), &text);
    let got = proxy.get("/", "");
    let head = (got.status(), got.field("content-type"), got.field("content-length"));
    assert_eq!((head, &*got.text()), ((200, Some("text/html; charset=utf-8"), Some("6")), "<p>one"));
    let got = proxy.get("/gone/x", "");
    assert_eq!((got.status(), got.field("x-a"), &*got.text()), (410, Some("b"), "It is gone.\n"));
    assert_eq!(got.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(proxy.get("/json", "").field("content-type"), Some("application/json"));
    for (path, start) in [("/none", "HTTP/1.1 204"), ("/same", "HTTP/1.1 304")] {
        let got = raw(&proxy, &format!("GET {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"));
        assert!(got.starts_with(start) && !got.contains("content-length") && got.ends_with("\r\n\r\n"), "{got}");
    }
    let got = proxy.get("/empty", "");
    assert_eq!((got.status(), got.field("content-length"), got.field("content-type")), (200, Some("0"), None));
    let head = raw(&proxy, "HEAD /gone HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n");
    assert!(head.contains("content-length: 12\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let got = over_http2(&proxy, &[], "/gone");
    assert!(got.starts_with("HTTP/2 410") && got.ends_with("\r\n\r\nIt is gone.\n"), "{got}");
    std::fs::write(folder.path().join("page.html"), "<p>two").unwrap();
    crate::support::until("the file is read again", || proxy.get("/", "").text() == "<p>two");
}

#[test]
fn a_fixed_response_leaves_content_unread_as_an_answer_of_a_plugin_does() {
    let proxy = start("[[route]]\nrespond = { body = \"x\" }\n");
    let mut stream = proxy.connect();
    let content = "a".repeat(100_000);
    write!(stream, "POST / HTTP/1.1\r\nHost: e\r\nContent-Length: {}\r\n\r\n{content}", content.len()).unwrap();
    let got = read_message(&mut BufReader::new(&stream)).unwrap();
    assert_eq!((got.status(), &*got.text()), (200, "x"));
    let mut stream = proxy.connect();
    write!(stream, "POST / HTTP/1.1\r\nHost: e\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").unwrap();
    let got = read_message(&mut BufReader::new(&stream)).unwrap();
    assert_eq!(got.status(), 200, "no content is asked for: {got:?}");
    for framing in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        let mut stream = proxy.connect();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        // A client may send its content at once, and use the connection again unless told otherwise.
        write!(stream, "POST / HTTP/1.1\r\nHost: e\r\nExpect: 100-continue\r\n{framing}").unwrap();
        let got = read_message(&mut reader).unwrap();
        write!(stream, "GET / HTTP/1.1\r\nHost: e\r\n\r\n").unwrap();
        let next = read_message(&mut reader).map(|next| next.status());
        assert_eq!((got.field("connection"), next), (None, Some(200)), "{framing}");
    }
    let got = over_http2(&proxy, &["-d", &content], "/");
    assert!(got.starts_with("HTTP/2 200"), "{got}");
}

#[test]
fn plugins_see_the_requests_and_responses_of_every_target() {
    let edits = "{ use = \"headers\", config = { request = { set = { Host = \"plugin.example\" } }, \
                 response = { set = { X-Seen = \"{path}\" } } } }";
    let proxy = start(&format!(
        "[[route]]\nredirect = \"https://{{host}}{{uri}}\"\nplugins = [{edits}]\n\
         [[route]]\npath = \"/fixed\"\nrespond = {{ status = 503 }}\nplugins = [{edits}, \"cache\"]\n",
    ));
    let got = proxy.get("/a", "");
    assert_eq!((got.field("location"), got.field("x-seen")), (Some("https://plugin.example/a"), Some("/a")));
    let got = proxy.get("/fixed", "");
    assert_eq!((got.status(), got.field("x-seen")), (503, Some("/fixed")));
}

#[test]
fn a_plugin_transforms_a_fixed_response() {
    let text = with_routes(
        "127.0.0.1:1",
        &format!(
            "[[route]]\nrespond = {{ body = \"abc\" }}\nplugins = [\"hooks\"]\n[plugin.hooks]\nuse = {:?}\nconfig = {{}}\n",
            plugway_test_guests::HOOKS
        ),
    );
    assert_eq!(Proxy::start(&text).get("/", "").text(), "ABC!");
}

#[test]
fn no_plugin_chooses_an_upstream_for_another_target() {
    let text = with_routes(
        "127.0.0.1:1",
        &format!(
            "[[route]]\nrespond = {{ body = \"abc\" }}\nplugins = [\"wrong\"]\n[plugin.wrong]\nuse = {:?}\n",
            plugway_test_guests::MISBEHAVE
        ),
    );
    let proxy = Proxy::start(&text);
    assert_eq!(proxy.get("/", "\r\nX-Misbehave: half").status(), 502);
    proxy.wait_log("the route leads to no upstream");
}

// === strip-prefix, rewrite, path-as-is ===

#[test]
fn a_prefix_is_removed_on_segment_boundaries() {
    let proxy = Proxy::start(&with_routes(
        &echo(),
        "[[route]]\npath = \"/api\"\nupstream = \"app\"\nstrip-prefix = true\n\
         [[route]]\npath = \"/v1/app\"\nupstream = \"app\"\nstrip-prefix = \"/v1\"\n",
    ));
    for (target, wanted) in [
        ("/api", "/"),
        ("/api/", "/"),
        ("/api?a=b", "/?a=b"),
        ("/api/users?a=%2F&b", "/users?a=%2F&b"),
        ("/api/%C3%A9%20/", "/%C3%A9%20/"),
        ("/api//x", "/x"),
        ("/x/../api/y", "/y"),
        ("/%61pi/y", "/y"),
        ("/api;a=1/y;b", "/y;b"),
        ("/api/api/y", "/api/y"),
        ("/v1/app/x", "/app/x"),
    ] {
        assert_eq!(forwarded(&proxy, target), format!("GET {wanted} HTTP/1.1"), "{target}");
        let got = over_http2(&proxy, &[], target);
        assert!(got.contains(&format!("\r\n\r\nGET {wanted} HTTP/1.1\n")), "{target}: {got}");
    }
    for (target, status) in
        [("/apis", 404), ("/api/..", 404), ("/api%2Fx", 400), ("/other%2Fx", 400), ("/api/../..", 400)]
    {
        assert_eq!(proxy.get(target, "").status(), status, "{target}");
    }
    let got = proxy.exchange("GET http://other.example/api/x HTTP/1.1\r\nHost: e").text();
    assert!(
        got.starts_with("GET /x HTTP/1.1\nHost: other.example\n")
            || got.starts_with("GET /x HTTP/1.1\nhost: other.example\n"),
        "{got}"
    );
}

#[test]
fn a_rewrite_makes_the_target_that_is_forwarded() {
    let proxy = Proxy::start(&with_routes(
        &echo(),
        "[[route]]\nupstream = \"app\"\nrewrite = { regex = \"^/old/(?<rest>.*)$\", to = \"/new/${rest}\" }\n\
         [[route]]\npath = \"/u\"\nupstream = \"app\"\nrewrite = { regex = \"^/u/([^/]+)/?(.*)$\", to = \"/user?id=$1&at=$2\" }\n\
         [[route]]\npath = \"/q\"\nupstream = \"app\"\nrewrite = { regex = \"^/q\", to = \"/plain?\" }\n\
         [[route]]\npath = \"/cut\"\nupstream = \"app\"\nrewrite = { regex = \"^/cut/(.)/(.)$\", to = \"/x/$1$2/y\" }\n\
         [[route]]\npath = \"/slow\"\nupstream = \"app\"\nrewrite = { regex = \"^/slow/(a+)+$\", to = \"/$1\" }\n",
    ));
    for (target, wanted) in [
        ("/old/a/b?c=d", "/new/a/b?c=d"),
        ("/old//a", "/new/a"),
        ("/x/../old/a", "/new/a"),
        ("/other?c", "/other?c"),
        ("/u/7", "/user?id=7&at="),
        ("/u/7?", "/user?id=7&at="),
        ("/u/7/a&admin=1?x=y", "/user?id=7&at=a%26admin%3D1&x=y"),
        ("/q/a?b=c", "/plain"),
        ("/cut/a/b", "/x/ab/y"),
    ] {
        assert_eq!(forwarded(&proxy, target), format!("GET {wanted} HTTP/1.1"), "{target}");
        let got = over_http2(&proxy, &[], target);
        assert!(got.contains(&format!("\r\n\r\nGET {wanted} HTTP/1.1\n")), "{target}: {got}");
    }
    let blowing_up = format!("/slow/{}!", "a".repeat(7_000));
    assert_eq!(forwarded(&proxy, &blowing_up), format!("GET {blowing_up} HTTP/1.1"));
    let got = proxy.exchange("OPTIONS * HTTP/1.1\r\nHost: e").text();
    assert!(got.starts_with("OPTIONS * HTTP/1.1\n"), "{got}");
}

#[test]
fn plugins_see_the_target_of_the_client() {
    let edits = "{ use = \"headers\", config = { request = { set = { X-Down = \"{path}\" } }, \
                 response = { set = { X-Up = \"{path}\" } } } }";
    let proxy = Proxy::start(&with_routes(
        &echo(),
        &format!("[[route]]\npath = \"/api\"\nupstream = \"app\"\nstrip-prefix = true\nplugins = [{edits}]\n"),
    ));
    let got = proxy.get("/api/x", "");
    assert!(got.text().starts_with("GET /x HTTP/1.1\n") && got.text().contains("x-down: /api/x\n"), "{}", got.text());
    assert_eq!(got.field("x-up"), Some("/api/x"));
}

#[test]
fn paths_are_forwarded_as_they_are_where_the_route_says_so() {
    let proxy = Proxy::start(&with_routes(
        &echo(),
        "[[route]]\npath = \"/s3\"\nupstream = \"app\"\npath-as-is = true\n\
         [[route]]\npath = \"/git\"\nupstream = \"app\"\npath-as-is = true\nstrip-prefix = true\n\
         [[route]]\nupstream = \"app\"\n\
         [[route]]\npath = \"/s3/admin\"\nrespond = { status = 403 }\n",
    ));
    for (target, wanted) in [
        ("/s3/a%2Fb?c", "/s3/a%2Fb?c"),
        ("/s3/a%2fb", "/s3/a%2fb"),
        ("/s3//a//b/", "/s3//a//b/"),
        ("/s3/%61%7E", "/s3/%61%7E"),
        ("//s3/x", "//s3/x"),
        ("/s3/x", "/s3/x"),
        ("/git/api/v4/projects/g%2Fp/x", "/api/v4/projects/g%2Fp/x"),
        ("/git", "/"),
        ("/git//a", "//a"),
        ("//other", "/other"),
    ] {
        assert_eq!(forwarded(&proxy, target), format!("GET {wanted} HTTP/1.1"), "{target}");
        let got = over_http2(&proxy, &[], target);
        assert!(got.contains(&format!("\r\n\r\nGET {wanted} HTTP/1.1\n")), "{target}: {got}");
    }
    for (target, status) in [
        ("/other/a%2Fb", 400),
        ("/s3/../x", 200),
        ("/s3/a/../b", 400),
        ("/s3/./b", 400),
        ("/s3/a%2F..%2Fb", 400),
        ("/s3/a/%2e%2e/b", 400),
        ("/s3/%2e%2e/b", 200),
        ("/s3/a%2F%2E%2E%2F%2E%2E%2Fother", 400),
        ("/s3/..;x/b", 400),
        ("/s3/a%5Cb", 400),
        ("/s3/a%00", 400),
        ("/s3/%252e%252e/b", 400),
        ("/s3%2Fa", 400),
        ("/s3/admin", 403),
        ("/s3//admin", 403),
        ("/s3/%61dmin", 403),
        ("/s3/admin;x", 403),
        ("/s3/admin%2Fx", 400),
        ("/s3%2Fadmin", 400),
    ] {
        assert_eq!(proxy.get(target, "").status(), status, "{target}");
    }
}

#[test]
fn a_redirect_keeps_the_path_as_it_is_where_the_route_says_so() {
    let routes = "[[route]]\npath = \"/as-is\"\npath-as-is = true\nredirect = \"https://b.example{uri}\"\n\
                  [[route]]\npath = \"/below\"\npath-as-is = true\nredirect = \"/new{path}{?query}\"\n\
                  [[route]]\npath = \"/normal\"\nredirect = \"https://b.example{uri}\"\n";
    let proxy = Proxy::start(&with_routes(&echo(), routes));
    for (target, location) in [
        ("/as-is/a%2Fb//c?d=%7E", "https://b.example/as-is/a%2Fb//c?d=%7E"),
        ("/below/%7Ea%2F?b", "/new/below/%7Ea%2F?b"),
        ("/normal//a?b", "https://b.example/normal/a?b"),
    ] {
        assert_eq!(proxy.get(target, "").field("location"), Some(location));
    }
    assert_eq!(proxy.get("/normal/a%2Fb", "").status(), 400);
}

#[test]
fn spellings_that_are_forwarded_are_stored_apart() {
    let origin = origin(|request| {
        let body = request.start.clone();
        format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    });
    let proxy = Proxy::start(&with_routes(
        &origin,
        "[[route]]\nname = \"r\"\nupstream = \"app\"\npath-as-is = true\nplugins = [\"cache\"]\n\
         [[route]]\nname = \"r\"\nupstream = \"app\"\nfields = { X-V = \"2\" }\nplugins = [\"cache\"]\n\
         rewrite = { regex = \"^/a/(.*)$\", to = \"/two/$1\" }\n",
    ));
    for _ in 0..2 {
        for target in ["/a/b", "/a%2Fb", "/a//b", "/a/%62"] {
            assert_eq!(proxy.get(target, "").text(), format!("GET {target} HTTP/1.1"), "{target}");
        }
        assert_eq!(proxy.get("/a/b", "\r\nX-V: 2").text(), "GET /two/b HTTP/1.1");
    }
    assert!(proxy.get("/a%2Fb", "").field("cache-status").unwrap().contains("hit"));
    assert!(proxy.get("/a/b", "\r\nX-V: 2").field("cache-status").unwrap().contains("hit"));
}

// === stored responses of routes ===

/// Returns an origin whose cacheable responses show the whole request.
fn storable_echo() -> String {
    origin(|request| {
        let fields = request.fields.iter().map(|(name, value)| format!("{name}: {value}\n"));
        let body = format!("{}\n{}", request.start, fields.collect::<String>());
        format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    })
}

/// A plugin below the cache of a route, whose effect no other route should have.
const INNER: &str = r#"{ use = "headers", config = { request = { set = { X-Inner = "1" } } } }"#;

/// Two routes of one name, and a request for each of them: without the conditions, both requests have the same key.
struct Namesakes<'a> {
    plain: &'a str,
    inner: &'a str,
    to_plain: &'a str,
    to_inner: &'a str,
}

#[test]
fn routes_of_one_name_share_no_stored_responses() {
    let rewrite = "path = \"/a\"\nplugins = [{ use = \"rewrite\", config = { rules = [{ regex = \"^/a/\", to = \"/a\" }] } }, \"pages\"]";
    for Namesakes { plain, inner, to_plain, to_inner } in [
        Namesakes {
            plain: "",
            inner: "fields = { X-Beta = \"1\" }",
            to_plain: "GET /x HTTP/1.1\r\nHost: e",
            to_inner: "GET /x HTTP/1.1\r\nHost: e\r\nX-Beta: 1",
        },
        Namesakes {
            plain: "fields = { X-Beta = \"2\" }",
            inner: "fields = { X-Beta = \"1\" }",
            to_plain: "GET /x HTTP/1.1\r\nHost: e\r\nX-Beta: 2",
            to_inner: "GET /x HTTP/1.1\r\nHost: e\r\nX-Beta: 1",
        },
        Namesakes {
            plain: "",
            inner: "query = { preview = \"*\" }",
            to_plain: "GET /x HTTP/1.1\r\nHost: e",
            to_inner: "GET /x?preview=1 HTTP/1.1\r\nHost: e",
        },
        Namesakes {
            plain: "",
            inner: "methods = [\"HEAD\"]",
            to_plain: "GET /x HTTP/1.1\r\nHost: e",
            to_inner: "HEAD /x HTTP/1.1\r\nHost: e",
        },
        Namesakes {
            plain: rewrite,
            inner: "path = { exact = \"/a\" }",
            to_plain: "GET /a/b HTTP/1.1\r\nHost: e",
            to_inner: "GET /a HTTP/1.1\r\nHost: e",
        },
        Namesakes {
            plain: &format!("name = \"r\"\n{rewrite}"),
            inner: "name = \"r\"\npath = { regex = \"^/a$\" }",
            to_plain: "GET /a/b HTTP/1.1\r\nHost: e",
            to_inner: "GET /a HTTP/1.1\r\nHost: e",
        },
    ] {
        let plain = if plain.contains("plugins") { plain.into() } else { format!("plugins = [\"pages\"]\n{plain}") };
        let proxy = Proxy::start(&with_routes(
            &storable_echo(),
            &format!(
                "[[route]]\nupstream = \"app\"\n{plain}\n[[route]]\nupstream = \"app\"\nplugins = [\"pages\", {INNER}]\n{inner}\n\
                 [plugin.pages]\nuse = \"cache\"\nconfig.key.ignore-query = [\"preview\"]\n"
            ),
        ));
        let ask = |head: &str| raw(&proxy, &format!("{head}\r\nConnection: close\r\n\r\n"));
        for is_stored in [false, true] {
            let got = ask(to_inner);
            assert!(to_inner.starts_with("HEAD") || got.contains("\nx-inner: 1\n"), "{inner}: {got}");
            assert_eq!(got.contains("plugway; hit"), is_stored, "{inner}: {got}");
            let got = ask(to_plain);
            assert!(!got.contains("x-inner"), "{inner}: {got}");
            assert_eq!(got.contains("plugway; hit"), is_stored, "{inner}: {got}");
        }
    }
}

/// Below the cache, the second listener's route makes something else of the same request.
#[test]
fn what_is_stored_at_one_listener_is_not_served_at_another() {
    let text = format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.2:0\"\n\
         [upstream.app]\nendpoints = [{:?}]\n[[route]]\nupstream = \"app\"\nplugins = [\"cache\"]\n\
         [[route]]\nlisteners = [\"127.0.0.2:0\"]\nupstream = \"app\"\nplugins = [\"cache\", {INNER}]\n",
        storable_echo()
    );
    let proxy = Proxy::start(&text);
    let (public, internal) = listeners(&proxy);
    for _ in 0..2 {
        assert!(get_at(&internal, "/x").text().contains("x-inner: 1"));
        assert!(!get_at(&public, "/x").text().contains("x-inner"));
    }
    assert!(get_at(&public, "/x").field("cache-status").unwrap().contains("hit"));
}

/// Returns the addresses of listeners at 127.0.0.1 and 127.0.0.2.
fn listeners(proxy: &Proxy) -> (String, String) {
    let second = proxy.next_listener();
    match proxy.address.starts_with("127.0.0.1") {
        true => (proxy.address.clone(), second),
        false => (second, proxy.address.clone()),
    }
}

fn get_at(address: &str, path: &str) -> Message {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

#[test]
fn a_fixed_response_that_a_reload_changes_is_not_served_from_the_store() {
    let text = |respond: &str| with_routes("127.0.0.1:1", &format!("[[route]]\nplugins = [\"cache\"]\n{respond}\n"));
    let fixed = |status: u16, value: &str| {
        text(&format!(
            "respond = {{ status = {status}, body = \"b\", fields = {{ Cache-Control = \"max-age=60\", X-A = \"{value}\" }} }}"
        ))
    };
    let proxy = Proxy::start(&fixed(200, "1"));
    for (generation, (status, value)) in [(200, "1"), (410, "1"), (410, "2")].into_iter().enumerate() {
        if generation > 0 {
            proxy.reload(&fixed(status, value));
            proxy.wait_log(&format!("reloaded: generation {}", generation + 1));
        }
        for is_stored in [false, true] {
            let got = proxy.get("/", "");
            assert_eq!((got.status(), got.field("x-a")), (status, Some(value)), "{got:?}");
            assert_eq!(got.field("cache-status").unwrap().contains("hit"), is_stored, "{got:?}");
        }
    }
}

/// A listing is stored for as long as the route's lifetimes say.
#[test]
fn a_site_that_a_reload_changes_is_not_served_from_the_store() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.html"), "a").unwrap();
    std::fs::write(folder.path().join("b.html"), "b").unwrap();
    let site = |keys: &str| {
        let root = folder.path();
        with_routes(
            "127.0.0.1:1",
            &format!(
                "[[route]]\nfiles = {{ root = {root:?}, {keys} }}\nplugins = [\"pages\"]\n\
                 [plugin.pages]\nuse = \"cache\"\nconfig.lifetimes.status = {{ 200 = \"1h\" }}\n"
            ),
        )
    };
    let proxy = Proxy::start(&site("browse = true"));
    assert!(proxy.get("/", "").text().contains("a.html"));
    for (generation, (keys, wanted)) in
        [("index = [\"a.html\"]", "a"), ("index = [\"b.html\"]", "b"), ("index = [], fallback = \"a.html\"", "a")]
            .into_iter()
            .enumerate()
    {
        proxy.reload(&site(keys));
        proxy.wait_log(&format!("reloaded: generation {}", generation + 2));
        assert_eq!(proxy.get("/", "").text(), wanted, "{keys}");
    }
    proxy.reload(&site("index = []"));
    proxy.wait_log("reloaded: generation 5");
    assert_eq!(proxy.get("/", "").status(), 404);
}

// === listeners ===

#[test]
fn a_route_may_belong_to_a_listener() {
    let text = format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\nredirect-to-https = true\n\
         [[listener]]\naddress = \"127.0.0.2:0\"\n[upstream.app]\nendpoints = [{:?}]\n\
         [[route]]\nupstream = \"app\"\n\
         [[route]]\npath = \"/.well-known/acme-challenge\"\nlisteners = [\"127.0.0.1:0\"]\nrespond = {{ body = \"token\" }}\n\
         [[route]]\nlisteners = [\"127.0.0.2:0\"]\npath = \"/only\"\nrespond = {{ body = \"second\" }}\n",
        echo()
    );
    let proxy = Proxy::start(&text);
    let (first, second) = listeners(&proxy);
    assert_eq!(get_at(&first, "/.well-known/acme-challenge/x").text(), "token");
    assert_eq!(get_at(&first, "/x/../.well-known/acme-challenge/x").text(), "token");
    for path in ["/", "/only", "/.well-known/acme-challengex", "/.well-known/acme-challenge/../../y"] {
        assert_eq!(get_at(&first, path).status(), 308, "{path}");
    }
    assert_eq!(get_at(&first, "/.well-known%2Facme-challenge/x").status(), 400);
    // The URI stays as it was sent: a route with `path-as-is` takes these for other resources.
    for path in ["/a%2Fb", "/a//b?c=%7E", "/a/./b", "/%7Ea"] {
        let redirect = get_at(&first, path);
        let location = redirect.field("location").unwrap_or_default();
        assert!(location.starts_with("https://") && location.ends_with(path), "{location}");
    }
    assert_eq!(get_at(&second, "/only/x").text(), "second");
    assert!(get_at(&second, "/.well-known/acme-challenge/x").text().starts_with("GET /.well-known/"));
}

#[test]
fn a_listener_that_does_not_redirect_needs_a_route() {
    let folder = tempfile::tempdir().unwrap();
    let check = |redirect: &str| {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\nredirect-to-https = {redirect}\n");
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        let output = plugway().arg("check").current_dir(folder.path() as &Path).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(check("true").0 && check("8443").0);
    let (is_good, said) = check("false");
    assert!(!is_good && said.contains("no route: add `[[route]]`"), "{said}");
    let with_tls = manifest("127.0.0.1:1", "", "").replacen("[upstream", "redirect-to-https = false\n[upstream", 1);
    std::fs::write(folder.path().join("plugway.toml"), with_tls).unwrap();
    assert!(plugway().arg("check").current_dir(folder.path()).status().unwrap().success());
}
