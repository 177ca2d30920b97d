//! Values that a message repeats: a plugin sees all of them, not the first one or a joined one.

use std::io::{BufReader, Write};

use plugway_test_guests::VALUES;

use crate::support::{Message, Proxy, echo, manifest, origin, read_message};

/// Sends a request with lines of fields, each with its line end, and returns the response.
fn post(proxy: &Proxy, target: &str, fields: &str) -> Message {
    let mut stream = proxy.connect();
    write!(stream, "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n{fields}\r\n{{}}").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

fn start(origin: &str) -> Proxy {
    Proxy::start(&manifest(origin, &format!("{{ use = {VALUES:?} }}"), ""))
}

#[test]
fn a_filter_refuses_a_request_for_any_of_several_values() {
    let proxy = start(&echo());
    let status = |target: &str, fields: &str| post(&proxy, target, fields).status();
    let (json, html) = ("Content-Type: application/json\r\n", "content-type: text/html\r\n");
    assert_eq!(status("/", json), 200);
    for lines in [format!("{json}{html}"), format!("{html}{json}"), html.into()] {
        assert_eq!(status("/", &lines), 415, "{lines}");
    }
    for target in ["/?id=1&id=2", "/?a=x&id=1&ids=x&xid=x", "/?ID=x"] {
        assert_eq!(status(target, ""), 200, "{target}");
    }
    for target in ["/?id=x", "/?id=1&id=2'--", "/?id='&id=1", "/?id=1&%69d=x", "/?id=1&i%64=", "/?id=1&id", "/?id=%32"]
    {
        assert_eq!(status(target, ""), 400, "{target}");
    }
    assert_eq!(status("/", "Cookie: session=1; session=2\r\n"), 200);
    for cookies in ["session=1; session=x", "a=b; session=x", "session=1\r\nCookie: a=b;session=x"] {
        assert_eq!(status("/", &format!("Cookie: {cookies}\r\n")), 400, "{cookies}");
    }
}

#[test]
fn values_arrive_in_order_and_apart() {
    let proxy = start(&echo());
    let fields = "Content-Type: application/json\r\nContent-Type: application/json\r\nCookie: session=3; a=1\r\n";
    let seen = post(&proxy, "/?id=1&b=2&id=3&%69d=2", &format!("{fields}Cookie: session=4\r\n")).text();
    for line in ["x-types: application/json|application/json\n", "x-ids: 1|3|2\n", "x-sessions: 3|4\n"] {
        assert!(seen.contains(line), "{seen}");
    }
    assert!(seen.contains("x-others: POST\n"), "a value that isn't repeated is a list of one: {seen}");
}

#[test]
fn all_lines_of_a_field_of_the_response_are_seen() {
    let cookies = "Set-Cookie: a=1, 2\r\nSet-Cookie: b=3\r\nContent-Length: 0";
    let proxy = start(&origin(move |_| format!("HTTP/1.1 200 OK\r\n{cookies}\r\n\r\n").into_bytes()));
    assert_eq!(post(&proxy, "/", "").field("x-cookies"), Some("a=1, 2|b=3"));
}

#[test]
fn more_values_than_the_bound_fail_the_call_and_name_it() {
    let text = manifest(&echo(), &format!("{{ use = {VALUES:?} }}"), "");
    let proxy = Proxy::start(&text.replace(":0\"\n", ":0\"\nlimits.head = \"256 KiB\"\n"));
    let cookies = |count: usize| format!("Cookie: {}\r\n", vec!["session=1"; count].join(";"));
    assert_eq!(post(&proxy, "/", &cookies(16_000)).status(), 200);
    let refused = post(&proxy, "/", &cookies(16_385));
    assert_eq!((refused.status(), refused.field("proxy-status")), (502, Some("plugway; error=plugin_error")));
    proxy.wait_log("it asked for all values of `cookie.session`, which are more than 16384");
    assert_eq!(post(&proxy, "/", "").status(), 200);
}
