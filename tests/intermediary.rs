//! What RFC 9110 and RFC 9113 demand of an intermediary, as endpoints and clients see it.

use std::io::{BufReader, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::http2::{DATA, END_HEADERS, END_STREAM, HEADERS, Raw, frame};
use crate::http2_endpoint::{endpoint, head};
use crate::support::{Proxy, echo, manifest, ok, origin, read_message};

/// Returns the content of the response to a request of HTTP/2: a method, `http://a/`, further fields, and the frames behind
/// its head.
fn over_http2(proxy: &Proxy, method: &str, fields: &[(&str, &str)], rest: &[u8]) -> String {
    let block = [head(&[], &[(":method", method)]), head(&[0x86, 0x84, 0x41, 1, b'a'], fields)].concat();
    let end = if rest.is_empty() { END_STREAM } else { 0 };
    let mut client = Raw::connect(proxy);
    // At once, so that the proxy reads them together.
    client.0.write_all(&[&frame(HEADERS, END_HEADERS | end, 1, &block), rest].concat()).unwrap();
    let content = client.until(|frame| frame.stream == 1 && frame.kind == DATA);
    String::from_utf8_lossy(&content.payload).into_owned()
}

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
    let trace = "[[route]]\nmethods = [\"TRACE\"]\nupstream = \"app\"\n";
    let proxy = Proxy::start(&manifest(&echo(), "", trace));
    let send =
        |method: &str, most: &str| proxy.exchange(&format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {most}"));
    for (method, most, left) in
        [("OPTIONS", "5", "4"), ("TRACE", "1", "0"), ("OPTIONS", "many", "many"), ("GET", "0", "0"), ("POST", "5", "5")]
    {
        let got = send(method, most).text();
        assert!(got.contains(&format!("\nmax-forwards: {left}\n")), "{method} {most}:\n{got}");
    }
    let options = send("OPTIONS", "0");
    assert_eq!((options.status(), options.field("x-origin"), options.text().as_str()), (200, None, ""));
    let trace = send("TRACE", "0");
    assert_eq!((trace.status(), trace.field("x-origin")), (501, None));
}

/// As in nginx. A reflected request would show its credentials, and the fields that proxies have added.
#[test]
fn trace_is_forwarded_only_by_a_route_that_names_it() {
    let proxy =
        Proxy::start(&manifest(&echo(), "", "[[route]]\npath = \"/t\"\nmethods = [\"TRACE\"]\nupstream = \"app\"\n"));
    let refused = proxy.exchange("TRACE / HTTP/1.1\r\nHost: a");
    assert_eq!((refused.status(), refused.field("x-origin")), (405, None));
    assert!(refused.field("allow").is_some_and(|allow| allow.starts_with("GET, ")), "{refused:?}");
    assert!(proxy.exchange("TRACE /t HTTP/1.1\r\nHost: a").text().starts_with("TRACE /t "));
}

#[test]
fn options_of_an_absolute_uri_without_path_asks_the_server() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    for (target, wanted) in [("http://e", "*"), ("http://e/", "/"), ("http://e?a", "/?a"), ("*", "*")] {
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

#[test]
fn content_of_http2_that_turns_out_empty_is_none() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let empty = frame(DATA, END_STREAM, 1, &[]);
    let begun = [frame(DATA, 0, 1, &[]), empty.clone()].concat();
    for (method, length) in [("POST", true), ("PUT", true), ("PATCH", true), ("GET", false), ("DELETE", false)] {
        for rest in [&empty, &begun] {
            let got = over_http2(&proxy, method, &[], rest);
            assert!(got.starts_with(method) && !got.contains("transfer-encoding"), "{got}");
            assert_eq!(got.contains("\ncontent-length: 0\n"), length, "{got}");
        }
    }
    let some = [frame(DATA, 0, 1, b"ab"), empty].concat();
    // All of it is there: its length is known.
    assert!(over_http2(&proxy, "POST", &[], &some).contains("\ncontent-length: 2\n"));
    assert!(over_http2(&proxy, "PUT", &[("content-length", "2")], &some).contains("\ncontent-length: 2\n"));
}

#[test]
fn a_get_of_http2_whose_content_turns_out_empty_is_served_by_a_cache() {
    let requests = Arc::new(AtomicUsize::new(0));
    let origin = origin(move |_| {
        let number = requests.fetch_add(1, Ordering::SeqCst);
        format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 1\r\n\r\n{number}").into_bytes()
    });
    let proxy = Proxy::start(&manifest(&origin, "\"cache\"", "").replace("workers = 2", "workers = 1"));
    assert_eq!(over_http2(&proxy, "GET", &[], &[]), "0");
    assert_eq!(over_http2(&proxy, "GET", &[], &frame(DATA, END_STREAM, 1, &[])), "0");
    assert_eq!(
        over_http2(&proxy, "GET", &[], &frame(DATA, END_STREAM, 1, b"a")),
        "1",
        "a cache knows no content of GET"
    );
}

#[test]
fn a_response_whose_status_has_no_content_has_none() {
    // `:status` 204 and 304 stand in the static table of HPACK.
    let heads: [(&str, Vec<u8>); 3] =
        [("204", vec![0x89]), ("304", vec![0x8b]), ("205", head(&[], &[(":status", "205")]))];
    for (status, block) in heads {
        let block = block.clone();
        let endpoint = endpoint(move |raw| {
            while let Some(request) = raw.next_request() {
                raw.send(HEADERS, END_HEADERS, request.stream, &block);
                raw.send(DATA, END_STREAM, request.stream, b"ab");
            }
        });
        let proxy = Proxy::start(&manifest(&endpoint, "", ""));
        let mut client = Raw::connect(&proxy);
        client.request(1);
        let answer = client.until(|frame| frame.stream == 1);
        assert!(answer.kind == HEADERS && answer.flags & END_STREAM != 0, "{status}: a frame is to follow");
        let answer = proxy.get("/", "");
        assert_eq!((answer.start.split(' ').nth(1), answer.text().as_str()), (Some(status), ""));
        assert_eq!(answer.field("content-length"), (status == "205").then_some("0"), "{status}");
    }
}

#[test]
fn of_several_protocols_to_switch_to_those_that_can_be_forwarded_are() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    for (lines, wanted) in [
        ("Upgrade: h2c, websocket", Some("upgrade: websocket")),
        ("Upgrade: websocket\r\nUpgrade: other/1", Some("upgrade: websocket, other/1")),
        ("Upgrade: h2c", None),
    ] {
        let mut stream = proxy.connect();
        write!(stream, "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n{lines}\r\n\r\n").unwrap();
        let got = read_message(&mut BufReader::new(stream)).unwrap().text();
        assert_eq!(got.lines().find(|line| line.starts_with("upgrade")), wanted, "{got}");
    }
}

#[test]
fn a_response_that_requires_an_upgrade_says_to_what() {
    let origin = origin(|_| {
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: h2c, TLS/1.3\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n"
            .to_vec()
    });
    for plugins in ["", "\"cache\""] {
        let proxy = Proxy::start(&manifest(&origin, plugins, ""));
        let mut stream = proxy.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let answer = read_message(&mut BufReader::new(stream)).unwrap();
        assert_eq!((answer.field("upgrade"), answer.field("connection")), (Some("TLS/1.3"), Some("upgrade")));
    }
}

#[test]
fn an_empty_host_becomes_the_endpoints_over_http2() {
    let inner = Proxy::start(&manifest(&echo(), "", ""));
    let proxy = Proxy::start(&manifest(&format!("h2c://{}", inner.address), "", ""));
    let answer = proxy.exchange("GET / HTTP/1.1\r\nHost:");
    assert!(answer.text().contains(&format!("\nhost: {}\n", inner.address)), "{answer:?}");
}

#[test]
fn a_response_to_http_10_whose_end_is_the_connections_says_so() {
    let origin = origin(|request| match request.start.contains("/chunks") {
        true => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec(),
        false => ok("ok"),
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    for (path, connection) in [("/chunks", "close"), ("/length", "keep-alive")] {
        let mut stream = proxy.connect();
        write!(stream, "GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let answer = read_message(&mut BufReader::new(stream)).unwrap();
        assert_eq!((answer.field("connection"), answer.text().as_str()), (Some(connection), "ok"), "{path}");
    }
}

#[test]
fn a_request_in_a_loop_ends() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let text = manifest(&address, "", "").replace("address = \"127.0.0.1:0\"", &format!("address = \"{address}\""));
    let proxy = Proxy::start(&text);
    let answer = proxy.get("/", "");
    assert_eq!((answer.status(), answer.field("proxy-status")), (502, Some("plugway; error=proxy_loop_detected")));
    let line = proxy.wait_log("exchange failed");
    assert!(line.contains("an endpoint leads back to a listener") && line.contains("WARN"), "{line}");
    let passed = "\r\nVia: 1.1 plugway, 1.1 edge".repeat(15);
    let few = Proxy::start(&manifest(&echo(), "", ""));
    assert_eq!(few.get("/", &passed).status(), 200, "a long chain is no loop");
}

#[test]
fn the_scheme_of_a_target_fits_its_connection() {
    let text = manifest(&echo(), "", "");
    let proxy = Proxy::start(&text);
    assert_eq!(proxy.exchange("GET https://e/ HTTP/1.1\r\nHost: e").status(), 421);
    assert_eq!(proxy.exchange("GET http://e/ HTTP/1.1\r\nHost: e").status(), 200);
    let request = |scheme: &str| {
        let block = head(&[0x82], &[(":scheme", scheme), (":path", "/"), (":authority", "e:443")]);
        let mut client = Raw::connect(&proxy);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block);
        let content = client.until(|frame| frame.stream == 1 && frame.kind == DATA);
        String::from_utf8_lossy(&content.payload).into_owned()
    };
    assert!(request("https").contains("\nhost: e\n") && request("http").contains("\nhost: e:443\n"));
    assert!(request("ftp").contains("http_request_error"));
    let trusting = "address = \"127.0.0.1:0\"\ntrusted-proxies = [\"127.0.0.1\"]";
    let trusting = Proxy::start(&text.replace("address = \"127.0.0.1:0\"", trusting));
    let got = trusting.exchange("GET https://e:443/ HTTP/1.1\r\nHost: e").text();
    assert!(got.contains("\nhost: e\n"), "{got}");
}
