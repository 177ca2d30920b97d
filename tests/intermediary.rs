//! What RFC 9110 and RFC 9113 demand of an intermediary, as endpoints and clients see it.

use crate::support::{Proxy, echo, manifest, origin};

#[test]
fn fields_that_connection_names_beside_bytes_beyond_ascii_stay_on_their_hop() {
    let origin = origin(|request| {
        let has_hop = request.field("x-hop").is_some();
        format!(
            "HTTP/1.1 200 OK\r\nConnection: X-Back, \u{e9}\r\nX-Back: 1\r\nX-Got: {has_hop}\r\nContent-Length: 0\r\n\r\n"
        )
        .into_bytes()
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let answer = proxy.get("/", "\r\nConnection: \u{e9}, X-Hop\r\nX-Hop: 1");
    assert_eq!((answer.field("x-got"), answer.field("x-back")), (Some("false"), None));
}

#[test]
fn max_forwards_is_counted_down_and_obeyed() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let send = |method: &str, most: &str| {
        proxy.exchange(&format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {most}"))
    };
    for (method, most, left) in [
        ("OPTIONS", "5", "4"),
        ("TRACE", "1", "0"),
        ("OPTIONS", "many", "many"),
        ("GET", "0", "0"),
        ("POST", "5", "5"),
    ] {
        let got = send(method, most).text();
        assert!(got.contains(&format!("\nmax-forwards: {left}\n")), "{method} {most}:\n{got}");
    }
    let options = send("OPTIONS", "0");
    assert_eq!((options.status(), options.field("x-origin"), options.text().as_str()), (200, None, ""));
    let trace = send("TRACE", "0");
    assert_eq!((trace.status(), trace.field("x-origin")), (501, None));
}

#[test]
fn options_of_an_absolute_uri_without_path_asks_the_server() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    for (target, wanted) in [
        ("http://e", "*"),
        ("http://e/", "/"),
        ("http://e?a", "/?a"),
        ("*", "*"),
    ] {
        let got = proxy.exchange(&format!("OPTIONS {target} HTTP/1.1\r\nHost: e")).text();
        assert!(got.starts_with(&format!("OPTIONS {wanted} HTTP/1.1\n")), "{target}:\n{got}");
    }
    let got = proxy.exchange("GET http://e HTTP/1.1\r\nHost: e").text();
    assert!(got.starts_with("GET / HTTP/1.1\n"), "{got}");
}

#[test]
fn a_redirect_to_https_of_the_server_as_a_whole_has_no_path() {
    let text = manifest(&echo(), "", "").replacen("[upstream.app]", "redirect-to-https = true\n[upstream.app]", 1);
    let proxy = Proxy::start(&text);
    let location = |start: &str| {
        let answer = proxy.exchange(&format!("{start} HTTP/1.1\r\nHost: e"));
        (answer.status(), answer.field("location").map(String::from))
    };
    assert_eq!(location("OPTIONS *"), (308, Some("https://e".into())));
    assert_eq!(location("OPTIONS /"), (308, Some("https://e/".into())));
}
