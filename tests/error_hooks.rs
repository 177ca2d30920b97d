//! Responses that the proxy makes itself pass the response hooks of the plugins whose request hooks have run, whichever
//! way the error was found.

use std::io::{BufReader, Write};

use plugway_test_guests::{HOOKS, MISBEHAVE, RETITLE};

use crate::support::{Message, Proxy, manifest, ok, origin, raw_origin, read_message, refusing};

/// Returns a plugin of a route that adds its name to each response that it sees.
fn marked(name: &str) -> String {
    format!("{{ use = \"headers\", config.response.append = {{ X-Seen = \"{name}\" }} }}")
}

/// Starts a proxy with a chain, in front of an endpoint, with more keys of its upstream and its route.
fn chained(endpoint: &str, chain: &[String], upstream: &str, route: &str) -> Proxy {
    let text = manifest(endpoint, &chain.join(", "), "");
    let text = text.replacen("[upstream", "limits = { body-timeout = \"300ms\" }\n[upstream", 1);
    Proxy::start(&text.replace("[[route]]", &format!("{upstream}\n[[route]]\n{route}")))
}

/// Returns the names of the plugins that saw a response, in their order.
fn seen(response: &Message) -> Vec<&str> {
    let lines = response.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-seen"));
    lines.map(|(_, value)| value.as_str()).collect()
}

/// Sends bytes on a connection of their own, and returns the response.
fn ask(proxy: &Proxy, request: &str) -> Message {
    let mut stream = proxy.connect();
    stream.write_all(request.as_bytes()).unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

fn silent() -> String {
    raw_origin(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())))
}

fn plain() -> String {
    origin(|request| ok(&request.text()))
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
/// Longer than the `max-body` of 10 bytes, which the length says at once.
const LONG: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n";
/// As long, which shows as it arrives.
const LONG_CHUNKS: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n12345678901\r\n0\r\n\r\n";

#[test]
fn each_error_after_the_request_hooks_passes_all_response_hooks() {
    let chain = [marked("outer"), marked("inner")];
    let nowhere = "[{ dns = \"nowhere.invalid:80\" }]";
    let cases: [(&str, &str, &str, &str, u16); 8] = [
        (&plain(), "", "max-body = \"10 B\"", LONG, 413),
        (&plain(), "", "max-body = \"10 B\"", LONG_CHUNKS, 413),
        (&plain(), "", "", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx", 408),
        (&refusing(), "", "", GET, 502),
        (&silent(), "response-timeout = \"300ms\"", "", GET, 504),
        (&silent(), "", "timeout = \"300ms\"", GET, 504),
        (&origin(|_| b"nonsense\r\n\r\n".to_vec()), "", "", GET, 502),
        (nowhere, "", "", GET, 503),
    ];
    for (endpoint, upstream, route, request, status) in cases {
        let proxy = if endpoint == nowhere {
            let text = manifest("here", &chain.join(", "), "").replace("[\"here\"]", nowhere);
            Proxy::start(&text)
        } else {
            chained(endpoint, &chain, upstream, route)
        };
        let response = ask(&proxy, request);
        assert_eq!((response.status(), seen(&response)), (status, vec!["inner", "outer"]), "{request}");
    }
}

#[test]
fn an_error_of_a_body_hook_passes_the_hooks_of_plugins_below_too() {
    let buffered = format!("{{ use = {HOOKS:?}, config = {{ buffer = 8 }} }}");
    let proxy = chained(&plain(), &[marked("outer"), buffered, marked("inner")], "", "");
    for request in [LONG, LONG_CHUNKS] {
        let response = ask(&proxy, request);
        assert_eq!((response.status(), seen(&response)), (413, vec!["inner", "outer"]), "{request}");
    }
}

#[test]
fn an_error_below_a_cache_passes_the_hooks_below_and_above_it() {
    let chain = [marked("outer"), "{ use = \"cache\" }".into(), marked("inner")];
    for (endpoint, upstream, route, status) in [
        (refusing(), "", "", 502),
        (silent(), "response-timeout = \"300ms\"", "", 504),
        (silent(), "", "timeout = \"300ms\"", 504),
    ] {
        let proxy = chained(&endpoint, &chain, upstream, route);
        let response = ask(&proxy, GET);
        assert_eq!((response.status(), seen(&response)), (status, vec!["inner", "outer"]), "{upstream}{route}");
    }
}

#[test]
fn an_error_on_the_way_past_a_cache_passes_it_once() {
    let chain = [marked("outer"), "{ use = \"cache\" }".into(), marked("inner")];
    let proxy = chained(&plain(), &chain, "", "max-body = \"10 B\"");
    for request in [LONG, LONG_CHUNKS] {
        let response = ask(&proxy, request);
        assert_eq!((response.status(), seen(&response)), (413, vec!["inner", "outer"]), "{request}");
        let status: Vec<_> = response.fields.iter().filter(|(name, _)| name == "cache-status").collect();
        assert!(status.len() == 1 && status[0].1.contains("fwd=method"), "{response:?}");
    }
}

#[test]
fn an_error_in_a_request_hook_passes_the_hooks_above() {
    let chain = [marked("outer"), format!("{{ use = {MISBEHAVE:?} }}"), marked("inner")];
    let proxy = chained(&plain(), &chain, "", "");
    let response = ask(&proxy, "GET / HTTP/1.1\r\nHost: a\r\nX-Misbehave: trap\r\n\r\n");
    assert_eq!((response.status(), seen(&response)), (502, vec!["outer"]));
}

#[test]
fn an_error_in_a_response_hook_passes_the_hooks_above() {
    // No field has a line break, so that the edit is refused.
    let config = "{ field = \"x-origin\", from = \"yes\", to = \"\\n\" }";
    let failing = format!("{{ use = {RETITLE:?}, config = {config} }}");
    for cache in [vec![], vec!["{ use = \"cache\" }".to_string()]] {
        let chain = [vec![marked("outer")], cache, vec![failing.clone(), marked("inner")]].concat();
        let proxy = chained(&plain(), &chain, "", "");
        let response = ask(&proxy, GET);
        assert_eq!((response.status(), seen(&response)), (502, vec!["outer"]), "{chain:?}");
        assert_eq!(response.field("proxy-status"), Some("plugway; error=plugin_error"));
    }
}

#[test]
fn an_error_of_a_response_body_passes_the_hooks_above() {
    let buffered = format!("{{ use = {HOOKS:?}, config = {{ buffer = 8 }} }}");
    let chain = [marked("outer"), buffered, marked("inner")];
    let proxy = chained(&origin(|_| ok("much too long")), &chain, "", "");
    let response = ask(&proxy, GET);
    assert_eq!((response.status(), seen(&response)), (502, vec!["outer"]));
}

#[test]
fn requests_without_a_route_pass_no_hooks() {
    let proxy = chained(&plain(), &[marked("outer")], "", "path = \"/here\"");
    let response = ask(&proxy, GET);
    assert_eq!((response.status(), seen(&response)), (404, vec![]));
}
