//! The rules of HTTP and of the manifest for forwarded messages.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::http2::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, Raw};
use crate::support::{Message, Proxy, echo, manifest, ok, origin, raw_origin, read_message, refusing, until};

/// The fields of the classic site in front of gunicorn.
const CLASSIC: &str = r#"
[plugin.forwarded]
use = "headers"
[plugin.forwarded.config.request.set]
Host              = "{host}"
X-Real-IP         = "{client.ip}"
X-Forwarded-For   = "{forwarded-for}"
X-Forwarded-Proto = "{scheme}"
"#;

#[test]
fn the_classic_fields_reach_the_origin() {
    let proxy = Proxy::start(&manifest(&echo(), r#""forwarded""#, CLASSIC));
    let got = proxy.get("/a?b=c", "\r\nX-Forwarded-For: 203.0.113.7").text();
    assert!(got.starts_with("GET /a?b=c HTTP/1.1\n"), "{got}");
    for line in ["host: example.org", "x-real-ip: 127.0.0.1", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"] {
        assert!(got.lines().any(|known| known == line), "no `{line}` in\n{got}");
    }
}

#[test]
fn gunicorn_sees_what_nginx_would_send() {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-venv/bin/python");
    assert!(std::path::Path::new(python).exists(), "gunicorn is missing: run tests/run, which installs it");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let app = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/support");
    let mut gunicorn = Command::new(python);
    gunicorn.args(["-m", "gunicorn", "--bind", &address, "--chdir", app, "wsgi:app"]);
    let mut gunicorn = gunicorn.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("gunicorn listens", || std::net::TcpStream::connect(&address).is_ok());
    let proxy = Proxy::start(&manifest(&address, r#""forwarded""#, CLASSIC));
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--header", "Host: example.org", &format!("http://{}/", proxy.address)]);
    let got = curl.output().expect("curl is missing: run tests/run, which installs it");
    let _ = gunicorn.kill();
    let _ = gunicorn.wait();
    assert!(got.status.success(), "{got:?}");
    assert_eq!(String::from_utf8_lossy(&got.stdout), "host=example.org real=127.0.0.1 for=127.0.0.1 proto=http");
}

#[test]
fn fields_of_one_hop_stay_on_their_hop() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let mut stream = proxy.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTE: gzip\r\nX-End: 1\r\n\r\n")
        .unwrap();
    let got = read_message(&mut BufReader::new(stream)).unwrap().text();
    assert!(!got.contains("x-hop") && !got.contains("te:") && !got.contains("connection"), "{got}");
    assert!(got.contains("x-end: 1") && got.contains("via: 1.1 plugway"), "{got}");
}

#[test]
fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let proxy = Proxy::start(&manifest(&origin(|request| ok(&request.start)), "", ""));
    let mut stream = proxy.connect();
    let requests: String = (0..5).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    stream.write_all(requests.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    for n in 0..5 {
        assert_eq!(read_message(&mut reader).unwrap().text(), format!("GET /{n} HTTP/1.1"));
    }
}

/// The last chunk of content is read only when its end is asked for, so that the connection takes it for unread: it was
/// closed while the content of the next request was on its way.
#[test]
fn an_upload_behind_one_in_chunks_is_answered_on_the_same_connection() {
    let proxy = Proxy::start(&manifest(&origin(|request| ok(&request.text().len().to_string())), "", ""));
    let chunked =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n4\r\nabcd\r\n0\r\n\r\n";
    for length in [1_000, 8_000, 20_000, 200_000] {
        let mut stream = proxy.connect();
        let next = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{}", "z".repeat(length));
        stream.write_all(format!("{chunked}{next}{chunked}").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        for wanted in [9, length, 9] {
            let response =
                read_message(&mut reader).unwrap_or_else(|| panic!("no response before {wanted} of {length}"));
            assert_eq!((response.field("connection"), response.text()), (None, wanted.to_string()));
        }
    }
}

#[test]
fn bodies_pass_both_ways_in_either_framing() {
    let proxy = Proxy::start(&manifest(&origin(|request| ok(&request.text())), "", ""));
    let sent = "x".repeat(300_000);
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{:x}\r\n{sent}\r\n0\r\n\r\n",
        sent.len()
    );
    let known =
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{sent}", sent.len());
    for request in [chunked, known] {
        let mut stream = proxy.connect();
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().text(), sent);
    }
}

#[test]
fn three_endpoints_take_equal_shares() {
    let origins: Vec<String> = (0..3).map(|n| origin(move |_| ok(&n.to_string()))).collect();
    let text =
        manifest("x:1", "", "").replace("[\"x:1\"]", &format!("{origins:?}")).replace("workers = 2", "workers = 1");
    let proxy = Proxy::start(&text);
    let mut counts = [0; 3];
    (0..30).for_each(|_| counts[proxy.get("/", "").text().parse::<usize>().unwrap()] += 1);
    assert_eq!(counts, [10, 10, 10]);
}

#[test]
fn failures_have_a_status_and_a_reason() {
    let refused = Proxy::start(&manifest(&refusing(), "", "")).get("/", "");
    assert_eq!((refused.status(), refused.field("proxy-status")), (502, Some("plugway; error=connection_refused")));

    // No name ends with `invalid` (RFC 6761 §6.4). A machine without a network may take a while to find out.
    let nowhere = manifest("name.invalid:80", "", "").replace("endpoints", "connect-timeout = \"60s\"\nendpoints");
    let unknown = Proxy::start(&nowhere).get("/", "");
    assert_eq!((unknown.status(), unknown.field("proxy-status")), (502, Some("plugway; error=dns_error")));

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = manifest(&silent.local_addr().unwrap().to_string(), "", "")
        .replace("endpoints", "response-timeout = \"200ms\"\nendpoints");
    let late = Proxy::start(&text).get("/", "");
    assert_eq!((late.status(), late.field("proxy-status")), (504, Some("plugway; error=http_response_timeout")));

    let elsewhere = manifest(&echo(), "", "").replace("[[route]]", "[[route]]\nhosts = [\"other.example\"]");
    let lost = Proxy::start(&elsewhere).get("/", "");
    assert_eq!((lost.status(), lost.field("proxy-status")), (404, Some("plugway; error=no_route")));

    let no_host = Proxy::start(&manifest(&echo(), "", "")).exchange("GET / HTTP/1.1\r\nX-No: host");
    assert_eq!(no_host.status(), 400);
}

#[test]
fn a_request_on_a_connection_gone_stale_is_sent_again() {
    // This origin closes each connection after its first response without saying so.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            read_message(&mut BufReader::new(stream.try_clone().unwrap()));
            stream.write_all(&ok("served")).unwrap();
        }
    });
    let proxy = Proxy::start(&manifest(&address, "", "").replace("workers = 2", "workers = 1"));
    for _ in 0..20 {
        assert_eq!(proxy.get("/", "").text(), "served");
    }
}

#[test]
fn a_hyper_client_and_a_hyper_origin_stream_to_each_other() {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::TokioIo;

    async fn mirror(
        request: hyper::Request<hyper::body::Incoming>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, std::convert::Infallible> {
        Ok(hyper::Response::new(request.into_body()))
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(mirror);
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
        });
        let proxy = Proxy::start(&manifest(&origin, "", ""));
        let stream = tokio::net::TcpStream::connect(&proxy.address).await.unwrap();
        let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for size in [0, 1, 70_000, 3 << 20] {
            let sent: Vec<u8> = (0..size).map(|at| at as u8).collect();
            let body = Full::new(hyper::body::Bytes::from(sent.clone()));
            let request = hyper::Request::post("/").header("host", "example.org").body(body).unwrap();
            let response = client.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(
                response.into_body().collect().await.unwrap().to_bytes() == sent,
                "{size} bytes came back otherwise"
            );
        }
    });
}

/// An endpoint closes idle connections, as most do after some seconds: the proxy closes its side too, and no request
/// waits until its timeout on a dead connection.
#[test]
fn connections_that_endpoints_close_while_idle_are_let_go() {
    let origin = raw_origin(move |mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap())).unwrap();
        stream.write_all(&ok("")).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let text = manifest(&origin, "", "").replace("workers = 2", "workers = 1");
    let proxy = Proxy::start(&text.replace("endpoints", "response-timeout = \"20s\"\nendpoints"));
    // It looks through them every five seconds; before and after that a request has to find its way.
    let began = Instant::now();
    until("it has looked through them", || {
        assert_eq!(proxy.get("/", "").status(), 200);
        began.elapsed() > Duration::from_secs(7)
    });
}

/// The proxy closes the connection even if no further request uses it.
#[test]
fn a_connection_that_was_closed_while_idle_is_let_go_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = manifest(&listener.local_addr().unwrap().to_string(), "", "");
    let proxy = Proxy::start(&text.replace("endpoints", "idle-timeout = \"1h\"\nendpoints"));
    let mut client = proxy.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
    let (mut endpoint, _) = listener.accept().unwrap();
    read_message(&mut BufReader::new(endpoint.try_clone().unwrap())).unwrap();
    endpoint.write_all(&ok("")).unwrap();
    assert_eq!(read_message(&mut BufReader::new(client)).unwrap().status(), 200);
    endpoint.shutdown(Shutdown::Write).unwrap();
    endpoint.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(endpoint.read(&mut [0]).expect("the proxy closes it too"), 0);
}

/// A second burst of requests reuses the connections of the first.
#[test]
fn as_many_connections_are_kept_as_were_needed_at_once() {
    const CROWD: usize = 300;
    let (opened, barrier) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(CROWD)));
    let (known, all) = (opened.clone(), barrier.clone());
    let origin = raw_origin(move |mut stream| {
        known.fetch_add(1, Ordering::Relaxed);
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while read_message(&mut reader).is_some() {
            // Each of them has its connection.
            all.wait();
            stream.write_all(&ok("")).unwrap();
        }
    });
    let proxy = Proxy::start(&manifest(&origin, "", "").replace("workers = 2", "workers = 1"));
    let mut clients: Vec<_> = (0..CROWD).map(|_| proxy.connect()).collect();
    for _ in 0..2 {
        for client in &mut clients {
            client.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
        }
        for client in &clients {
            assert_eq!(read_message(&mut BufReader::new(client)).unwrap().status(), 200);
        }
    }
    assert_eq!(opened.load(Ordering::Relaxed), CROWD);
}

/// Returns an answer of the endpoint `name`, which contains that name.
fn named(name: &'static str) -> String {
    origin(move |request| ok(&format!("{name} {} {}", request.start, request.field("host").unwrap_or("none"))))
}

#[test]
fn every_spelling_of_a_host_reaches_the_same_route_and_is_sent_on_as_one() {
    let (site, any) = (named("site"), named("any"));
    let more = format!(
        "[upstream.any]\nendpoints = [{any:?}]\n[[route]]\nupstream = \"any\"\n[[route]]\nupstream = \"any\"\n\
         hosts = [\"*.below.example\", \"[2001:DB8::0]\", \"192.0.2.1\", \"Dotted.example.\"]\npath = \"/x\"\n"
    );
    let proxy =
        Proxy::start(&manifest(&site, "", &more).replacen("[[route]]", "[[route]]\nhosts = [\"Example.ORG\"]", 1));
    let ask = |host: &str, path: &str| proxy.exchange(&format!("GET {path} HTTP/1.1\r\nHost: {host}"));
    for host in ["example.org", "EXAMPLE.org", "example.org.", "example.org:80", "Example.org.:0080", "example.org:"] {
        assert_eq!(ask(host, "/").text(), "site GET / HTTP/1.1 example.org", "{host}");
        let absolute = proxy.exchange(&format!("GET http://{host}/ HTTP/1.1\r\nHost: other.example"));
        assert_eq!(absolute.text(), "site GET / HTTP/1.1 example.org", "{host}");
    }
    assert_eq!(ask("example.org:08080", "/").text(), "site GET / HTTP/1.1 example.org:8080");
    assert_eq!(ask("[2001:db8:0:0::]", "/x").text(), "any GET /x HTTP/1.1 [2001:db8::]");
    assert_eq!(ask("0xc0.0.513", "/x").text(), "any GET /x HTTP/1.1 192.0.2.1");
    assert_eq!(ask("3221225985", "/x").text(), "any GET /x HTTP/1.1 192.0.2.1");
    assert_eq!(ask("A.Below.example.", "/x").text(), "any GET /x HTTP/1.1 a.below.example");
    assert_eq!(ask("dotted.example", "/x").text(), "any GET /x HTTP/1.1 dotted.example");
    for host in ["a..b", ".", "example.org..", "a%2Fb", "a%C3%A9", "a:65536", "[::zz]", "[1.2.3.4]", "a%zz"] {
        assert_eq!(ask(host, "/").status(), 400, "{host}");
    }
}

#[test]
fn a_host_that_a_plugin_sets_lacks_the_port_of_the_scheme() {
    for (host, wanted) in [
        ("app.example:80", "app.example"),
        ("App.example.:080", "app.example"),
        ("app.example:443", "app.example:443"),
        ("{request.header.x-site}", "other.example"),
        ("{host}:80", "example.org"),
    ] {
        let plugin = format!("{{ use = \"headers\", config.request.set = {{ Host = {host:?} }} }}");
        let proxy = Proxy::start(&manifest(&echo(), &plugin, ""));
        let text = proxy.get("/", "\r\nX-Site: Other.example:80").text();
        assert!(text.contains(&format!("host: {wanted}\n")), "{host}: {text}");
    }
}

#[test]
fn the_chain_of_addresses_has_this_hop_once() {
    let chain = "{ use = \"headers\", config.request.set = { X-Forwarded-For = \"{forwarded-for}\" } }";
    let both = "{ use = \"headers\", config = { forwarded = {}, request.set = { X-Chain = \"{forwarded-for}\" } } }";
    let trusting = "[[listener]]\ntrusted-proxies = [\"127.0.0.1\", \"10.0.0.1\"]\n";
    for plugins in [both.to_string(), format!("{chain}, {both}"), format!("{both}, {chain}, {chain}")] {
        let proxy = Proxy::start(&manifest(&echo(), &plugins, "").replacen("[[listener]]\n", trusting, 1));
        for (received, wanted) in [
            ("", "127.0.0.1"),
            ("\r\nX-Forwarded-For: 203.0.113.9", "203.0.113.9, 127.0.0.1"),
            ("\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 10.0.0.1", "203.0.113.9, 10.0.0.1, 127.0.0.1"),
        ] {
            let text = proxy.get("/", received).text();
            for name in ["x-forwarded-for", "x-chain"] {
                assert!(text.contains(&format!("{name}: {wanted}\n")), "{plugins}: {name} in {text}");
            }
        }
    }
}

/// The host that the endpoint is told for one that is named in `:authority`; `None` if the request is refused.
fn by_authority(proxy: &Proxy, host: &str) -> Option<String> {
    let mut client = Raw::connect(proxy);
    let fields = [&[0x82, 0x86, 0x84, 0x41, host.len() as u8], host.as_bytes()].concat();
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &fields);
    let head = client.until(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY));
    if head.kind != HEADERS || head.payload[0] != 0x88 {
        return None;
    }
    let content = client.until(|frame| frame.kind == DATA).payload;
    String::from_utf8(content).unwrap().rsplit(' ').next().map(String::from)
}

#[test]
fn each_form_of_a_request_means_the_same_host() {
    let site = named("site");
    let proxy = Proxy::start(&manifest(&site, "", ""));
    let told = |message: Message| {
        let host = || message.text().rsplit(' ').next().unwrap().to_string();
        (message.status() == 200).then(host)
    };
    let of_each_byte = (b'!'..=b'~').map(|byte| format!("a{}b.example", char::from(byte)));
    let odd = [
        "%65xample.org",
        "example%2eorg",
        "%",
        "a%zz",
        "example.org.",
        "EXAMPLE.ORG.:080",
        "xn--bcher-kva.example",
        "XN--BCHER-KVA.example",
        "[::1]",
        "[0:0::1]:8080",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[::ffff:127.0.0.1]:00080",
        "127.1",
        "a:0",
        "a:65536",
        "a:",
        "a:b",
        "a..b",
        "[v1.a]",
        "_dmarc.example",
        "a~b",
    ];
    let mut served = 0;
    for host in of_each_byte.chain(odd.map(String::from)) {
        let named = told(proxy.exchange(&format!("GET / HTTP/1.1\r\nHost: {host}")));
        // A slash, a query or a fragment ends an authority in a target.
        if !host.contains(['/', '?', '#']) {
            let absolute = format!("GET http://{host}/ HTTP/1.1\r\nHost: other.example");
            assert_eq!(told(proxy.exchange(&absolute)), named, "{host}: absolute form");
        }
        assert_eq!(by_authority(&proxy, &host), named, "{host}: `:authority`");
        assert!(named.is_none() || !host.contains('%'), "{host}");
        served += usize::from(named.is_some());
    }
    assert!(served > 60, "{served}");
}

#[test]
fn routes_match_paths_without_parameters_and_send_them_on() {
    let (site, admin) = (named("site"), named("admin"));
    let route = |path: &str| format!("[[route]]\nupstream = \"admin\"\npath = {path}\n");
    let more = format!(
        "[upstream.admin]\nendpoints = [{admin:?}]\n{}{}{}",
        route("\"/admin\""),
        route("{ exact = \"/exact\" }"),
        route("{ regex = \"^/regex/[0-9]+$\" }")
    );
    let proxy = Proxy::start(&manifest(&site, "", &more));
    for path in [
        "/admin",
        "/admin;a=1",
        "/admin;",
        "/;/admin",
        "/;a;b/;c/admin/x",
        "/admin%3Ba",
        "/admin%3ba",
        "/%3B/admin;x/y",
        "/exact;a",
        "/exact%3B",
        "/;/exact",
        "/regex/1;a",
        "/regex;x/12",
        "/x/;/../../admin",
    ] {
        let got = proxy.get(path, "").text();
        let sent = path.replace("%3b", "%3B").replace("/x/;/../../admin", "/admin");
        assert_eq!(got, format!("admin GET {sent} HTTP/1.1 example.org"), "{path}");
    }
    for path in ["/adminx;/", "/x;/admin", "/a;admin", "/exact;/x", "/admi;n"] {
        assert!(proxy.get(path, "").text().starts_with("site "), "{path}");
    }
    for path in ["/x/..;/admin", "/.;/admin", "/..%3B/admin"] {
        assert_eq!(proxy.get(path, "").status(), 400, "{path}");
    }
}
