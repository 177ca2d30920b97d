//! Body hooks: the values that they get, how a head hook decides about them, and what they may do with a message.

use std::io::{BufReader, Write};

use plugway_test_guests::BODIES;

use crate::support::{Message, Proxy, manifest, ok, origin, read_message};

/// A proxy in front of an origin that answers with what it got.
fn mirror(plugins: &str) -> Proxy {
    let origin = origin(|request| ok(&request.text()));
    Proxy::start(&manifest(&origin, plugins, ""))
}

fn bodies() -> String {
    format!("{{ use = {BODIES:?} }}")
}

/// Sends a request with content and more fields.
fn post(proxy: &Proxy, fields: &str, content: &str) -> Message {
    let mut stream = proxy.connect();
    let length = content.len();
    let head = "POST /in HTTP/1.1\r\nHost: a\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {length}{fields}\r\n\r\n{content}").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

#[test]
fn a_body_hook_gets_the_values_that_it_declared() {
    let proxy = mirror(&bodies());
    let answer = post(&proxy, "\r\nContent-Type: text/x", "abc");
    assert_eq!(answer.text(), "[200 -][POST text/x]abc");
}

#[test]
fn values_of_a_body_hook_are_those_after_the_edits_of_all_plugins() {
    let edits = "{ use = \"headers\", config = { request.set = { Content-Type = \"b\" }, response.set = { Content-Type = \"c\" } } }";
    // Above and below: edits of either are seen.
    for plugins in [format!("{edits}, {}", bodies()), format!("{}, {edits}", bodies())] {
        assert_eq!(post(&mirror(&plugins), "", "abc").text(), "[200 c][POST b]abc", "{plugins}");
    }
}
