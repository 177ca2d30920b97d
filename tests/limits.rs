//! The limits of clients: the size of their requests and their timeouts. Slow clients are disconnected and don't
//! prevent others from being served.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    PATIENCE, Proxy, echo, limited, manifest, ok, origin, output, raw_origin, read_message, sized, until,
};

/// Returns all bytes until the proxy closes, and how long that took.
fn until_closed(stream: &mut TcpStream) -> (String, Duration) {
    let (began, mut got) = (Instant::now(), Vec::new());
    let _ = stream.read_to_end(&mut got);
    assert!(began.elapsed() < PATIENCE, "it stays open");
    (String::from_utf8_lossy(&got).into_owned(), began.elapsed())
}

fn says(proxy: &Proxy, request: &str) -> String {
    let mut stream = proxy.connect();
    stream.write_all(request.as_bytes()).unwrap();
    until_closed(&mut stream).0
}

#[test]
fn heads_have_their_limits() {
    let proxy = limited(&echo(), "head = \"1 KiB\", target = \"100 B\"", "");
    let field =
        |length: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(length));
    assert!(says(&proxy, &field(900)).starts_with("HTTP/1.1 200 "));
    let long = says(&proxy, &field(1100));
    assert!(long.starts_with("HTTP/1.1 431 ") && long.contains("connection: close"), "{long}");
    let target =
        |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "x".repeat(length));
    assert!(says(&proxy, &target(99)).starts_with("HTTP/1.1 200 "));
    assert!(says(&proxy, &target(100)).starts_with("HTTP/1.1 414 "));
    let endless = format!("GET /{}", "x".repeat(200));
    assert!(says(&proxy, &endless).starts_with("HTTP/1.1 414 "), "it is not waited for the end");
}

#[test]
fn as_many_fields_come_through_as_the_limit_says() {
    for (limit, max) in [("", 100), ("fields = 5", 5), ("fields = 150", 150)] {
        let proxy = limited(&echo(), limit, "");
        let with = |fields: usize| {
            let others = "X: y\r\n".repeat(fields - 2);
            says(&proxy, &format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{others}\r\n"))
        };
        assert!(with(max).starts_with("HTTP/1.1 200 "), "{limit}");
        assert!(with(max + 1).starts_with("HTTP/1.1 431 "), "{limit}");
    }
}

#[test]
fn heads_are_waited_for_so_long() {
    let proxy = limited(&echo(), "head-timeout = \"300ms\", keep-alive = \"600ms\"", "");
    let mut slow = proxy.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
    let (said, _) = until_closed(&mut slow);
    assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("http_request_timeout"), "{said}");
    let (said, _) = until_closed(&mut proxy.connect());
    assert_eq!(said, "", "who says nothing is told nothing");
    let mut idle = proxy.connect();
    let began = Instant::now();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    read_message(&mut BufReader::new(idle.try_clone().unwrap())).unwrap();
    let (said, _) = until_closed(&mut idle);
    let took = began.elapsed();
    assert!(said.is_empty() && took >= Duration::from_millis(550), "{took:?} {said}");
}

#[test]
fn content_has_its_limits() {
    let count = origin(|request| ok(&request.body.len().to_string()));
    let proxy = limited(&count, "body-timeout = \"300ms\"", "max-body = \"10 B\"");
    let sized = |length: usize| {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        says(&proxy, &format!("{head}{}", "x".repeat(length)))
    };
    assert!(sized(10).ends_with("\r\n\r\n10"));
    let long = sized(11);
    assert!(long.starts_with("HTTP/1.1 413 ") && long.contains("http_request_body_size"), "{long}");
    let chunk = "5\r\nhello\r\n";
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let unknown = says(&proxy, &format!("{chunked}{}0\r\n\r\n", chunk.repeat(3)));
    assert!(unknown.starts_with("HTTP/1.1 413 "), "{unknown}");
    let mut slow = proxy.connect();
    slow.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").unwrap();
    let (said, took) = until_closed(&mut slow);
    assert!(said.starts_with("HTTP/1.1 408 ") && took >= Duration::from_millis(300), "{took:?} {said}");
    let expecting = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n";
    assert!(says(&proxy, expecting).starts_with("HTTP/1.1 413 "), "refused before it is sent");
}

/// Opens a connection that is served; retries until the proxy has noticed the end of another one.
fn admitted(proxy: &Proxy) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut stream = proxy.connect();
        let sent = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        if sent.is_ok() && read_message(&mut BufReader::new(stream.try_clone().unwrap())).is_some() {
            return stream;
        }
        assert!(Instant::now() < deadline, "a place that is free again is given");
    }
}

#[test]
fn connections_are_counted() {
    let proxy = limited(&echo(), "requests = 3, connections = 4, connections-per-client = 2", "");
    let mut stream = proxy.connect();
    for last in [false, false, true] {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let answer = read_message(&mut BufReader::new(stream.try_clone().unwrap())).unwrap();
        assert_eq!(answer.field("connection") == Some("close"), last);
    }
    assert_eq!(until_closed(&mut stream).0, "");
    drop(stream);
    let mut held = vec![admitted(&proxy), admitted(&proxy)];
    assert_eq!(until_closed(&mut proxy.connect()).0, "", "a third of the same client");
    drop(held.pop());
    held.push(admitted(&proxy));
}

#[test]
fn a_connection_beyond_a_limit_is_one_warning_that_names_it() {
    for (limits, key, reason) in [
        ("connections = 9, connections-per-client = 2", "limits.connections-per-client", "connections-per-client"),
        ("connections = 2", "limits.connections", "connections"),
    ] {
        let (reach, reached) = std::sync::mpsc::channel();
        let silent = raw_origin(move |mut stream| {
            let _ = read_message(&mut BufReader::new(stream.try_clone().unwrap()));
            let _ = reach.send(());
            drop(std::io::copy(&mut stream, &mut std::io::sink()));
        });
        let proxy = limited(&silent, limits, "");
        // Connections with a request, which are never closed in favour of others.
        let _held: Vec<_> = (0..2)
            .map(|_| {
                let mut stream = proxy.connect();
                stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                reached.recv_timeout(PATIENCE).unwrap();
                stream
            })
            .collect();
        (0..3).for_each(|_| assert_eq!(until_closed(&mut proxy.connect()).0, ""));
        let line = proxy.wait_log("client connection limit reached");
        let listener = format!("listener={:?}", proxy.address);
        let reason = format!("reason={reason:?}");
        for part in [" WARN ", "client=\"127.0.0.1\"", &listener, &format!("limit={key:?}"), &reason] {
            assert!(line.contains(part), "{part} in {line}");
        }
        proxy.signal("HUP");
        let lines = proxy.log_until("reloaded", || ());
        assert!(!lines.iter().any(|line| line.contains("connection limit reached")), "once: {lines:?}");
    }
}

#[test]
fn endpoints_are_waited_for_so_long() {
    let stalling = origin(|request| {
        if request.start.contains("/stall") {
            return b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun".to_vec();
        }
        // The subject: an endpoint that takes its time.
        std::thread::sleep(Duration::from_millis(700));
        ok("late")
    });
    let text = manifest(&stalling, "", "").replace("endpoints", "read-timeout = \"300ms\"\nendpoints");
    let proxy = Proxy::start(&text);
    let cut = says(&proxy, "GET /stall HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(cut.starts_with("HTTP/1.1 200 ") && cut.ends_with("begun"), "{cut}");
    let proxy = limited(&stalling, "", "timeout = \"300ms\"");
    let late = proxy.get("/", "");
    assert_eq!((late.status(), late.field("proxy-status")), (504, Some("plugway; error=http_response_timeout")));
    let cut = says(&proxy, "GET /stall HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(cut.ends_with("begun"), "{cut}");
}

#[test]
fn a_client_that_takes_nothing_is_let_go() {
    let proxy = limited(&origin(|_| ok(&"x".repeat(64 << 20))), "send-timeout = \"500ms\"", "");
    let before = proxy.memory_kib();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    // Nothing is read before the proxy has hung up.
    proxy.wait_log("client took too little");
    assert!(proxy.memory_kib() < before + 16 * 1024);
    let (got, _) = until_closed(&mut stream);
    assert!(got.len() < 64 << 20, "{} bytes", got.len());
}

/// The attacks of slowhttptest, each with many connections.
const SLOW: [(&str, &[&str]); 3] = [
    ("slow heads", &["-H", "-i", "1", "-r", "200"]),
    ("slow content", &["-B", "-i", "1", "-r", "200", "-s", "8192"]),
    ("slow reading", &["-X", "-r", "200", "-w", "10", "-y", "20", "-n", "1", "-z", "8"]),
];

#[test]
fn slow_clients_keep_nobody_from_being_served() {
    let proxy = limited(&origin(|_| ok(&"x".repeat(100_000))), "head-timeout = \"2s\", body-timeout = \"2s\"", "");
    for (what, args) in SLOW {
        let url = format!("http://{}/", proxy.address);
        let mut slow = Command::new("slowhttptest");
        slow.args(["-c", "300", "-l", "4", "-u", &url]).args(args).stdout(std::process::Stdio::null());
        let mut slow = slow.spawn().unwrap();
        let mut served = 0;
        while slow.try_wait().unwrap().is_none() {
            assert_eq!(proxy.get("/", "").status(), 200, "{what}");
            served += 1;
        }
        // Held up by them, it would be one or two.
        assert!(served > 20, "{what}: {served}");
    }
}

// === What is said of failures ===

#[test]
fn errors_speak_the_clients_language_and_name_the_request() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("lost.html"), "<p>Lost: {status} {reason} {request-id}").unwrap();
    let pages = "[error-page]\n404 = \"lost.html\"\n";
    let text = manifest("127.0.0.1:1", "", pages).replace("[[route]]", "[[route]]\npath = \"/here\"");
    let proxy = Proxy::start_in(folder.path(), &text);
    let plain = proxy.get("/here", "");
    let id = plain.text().lines().last().unwrap().trim_start_matches("request ").to_string();
    assert!(plain.status() == 502 && id.len() == 32, "{}", plain.text());
    let json = proxy.get("/here", "\r\nAccept: application/json");
    let told: serde_json::Value = serde_json::from_slice(&json.body).unwrap();
    assert_eq!((&told["status"], &told["error"]), (&502.into(), &"connection_refused".into()));
    let html = proxy.get("/here", "\r\nAccept: text/html,*/*;q=0.1");
    assert!(html.text().contains("<h1>502 Bad Gateway</h1>"), "{}", html.text());
    let own = proxy.get("/", "\r\nAccept: text/html");
    assert!(own.text().starts_with("<p>Lost: 404 Not Found ") && own.text().len() > 50, "{}", own.text());
    for answer in [plain, json, html, own] {
        assert!(!answer.text().contains("127.0.0.1"), "nothing internal: {}", answer.text());
    }
}

#[test]
fn events_reach_the_client_at_once() {
    let (next, said) = std::sync::mpsc::channel::<&str>();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            read_message(&mut BufReader::new(stream.try_clone().unwrap()));
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            while let Ok(event) = said.recv() {
                if event.is_empty() {
                    break;
                }
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).unwrap();
            }
            let _ = stream.write_all(b"0\r\n\r\n");
        }
    });
    let plugin = "{ use = \"headers\", config.response.set = { X-Seen = \"yes\" } }";
    let proxy = Proxy::start(&manifest(&address, plugin, ""));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--no-buffer", version, &format!("http://{}/", proxy.address)]);
        let mut curl = curl.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut events = curl.stdout.take().unwrap();
        for event in ["data: one\n\n", "data: two\n\n", "data: three\n\n"] {
            next.send(event).unwrap();
            let mut got = vec![0; event.len()];
            events.read_exact(&mut got).unwrap();
            assert_eq!(got, event.as_bytes(), "{version}: each before the next is said");
        }
        next.send("").unwrap();
        assert!(curl.wait().unwrap().success());
    }
}

// === PROXY protocol ===

const CLIENT: &str =
    "{ use = \"headers\", config.request.set = { X-Client = \"{client.ip}:{client.port} {listener.address}\" } }";

#[test]
fn a_trusted_balancer_says_who_the_client_is() {
    let listener = |from: &str| format!("address = \"127.0.0.1:0\"\nproxy-protocol-from = [{from}]\n");
    let with = |from: &str| {
        Proxy::start(&manifest(&echo(), CLIENT, "").replace("address = \"127.0.0.1:0\"\n", &listener(from)))
    };
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let proxy = with("\"127.0.0.0/8\"");
    let one = says(&proxy, &format!("PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n{request}"));
    assert!(one.contains("x-client: 192.0.2.1:1000 192.0.2.2:443"), "{one}");
    let mut stream = proxy.connect();
    let two = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x03\xc0\x00\x02\x04\x03\xe8\x01\xbb";
    stream.write_all(&[&two[..], request.as_bytes()].concat()).unwrap();
    let two = until_closed(&mut stream).0;
    assert!(two.contains("x-client: 192.0.2.3:1000 192.0.2.4:443"), "{two}");
    let own = says(&proxy, &format!("PROXY UNKNOWN\r\n{request}"));
    assert!(own.contains("x-client: 127.0.0.1:"), "{own}");
    assert_eq!(says(&proxy, request), "", "who is trusted has to say it");
    let distrusting = with("\"10.0.0.0/8\"");
    assert!(says(&distrusting, request).contains("x-client: 127.0.0.1:"));
    let forged = says(&distrusting, &format!("PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n{request}"));
    assert!(forged.starts_with("HTTP/1.1 400 "), "{forged}");
    let curl = output(Command::new("curl").args(["-s", "--haproxy-protocol", &format!("http://{}/", proxy.address)]));
    assert!(curl.contains("x-client: 127.0.0.1:"), "{curl}");
}

#[test]
fn endpoints_can_be_told_who_the_client_is() {
    let behind = "address = \"127.0.0.1:0\"\nproxy-protocol-from = [\"127.0.0.1\"]\n";
    let inner = Proxy::start(&manifest(&echo(), CLIENT, "").replace("address = \"127.0.0.1:0\"\n", behind));
    for version in ["v1", "v2"] {
        let told = format!("proxy-protocol = \"{version}\"\nendpoints");
        let outer = Proxy::start(&manifest(&inner.address, "", "").replace("endpoints", &told));
        let mut stream = outer.connect();
        let own = stream.local_addr().unwrap();
        for _ in 0..2 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let got = read_message(&mut BufReader::new(stream.try_clone().unwrap())).unwrap().text();
            assert!(got.contains(&format!("x-client: {own} {}", outer.address)), "{version}: {got}");
        }
    }
}

/// Returns the PROXY header of the first connection to an endpoint, and the bytes behind it.
fn preface(endpoint: &TcpListener, length: usize) -> Vec<u8> {
    let (mut stream, _) = endpoint.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut read = vec![0; length];
    stream.read_exact(&mut read).unwrap();
    read
}

#[test]
fn connection_without_a_client_says_so_to_endpoints() {
    for (version, wanted) in [("v1", &b"PROXY UNKNOWN\r\nGET "[..]), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET ")] {
        let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
        let told = format!("proxy-protocol = \"{version}\"\nendpoints");
        let text = manifest(&endpoint.local_addr().unwrap().to_string(), "", "").replace("endpoints", &told);
        let checked = Proxy::start(&format!("{text}[upstream.app.health]\n"));
        assert_eq!(preface(&endpoint, wanted.len()), wanted, "{version}, of a health check");
        drop(checked);

        let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let text = manifest(&endpoint.local_addr().unwrap().to_string(), "", "").replace("endpoints", &told);
        let text = format!("{text}[[listener]]\naddress = \"unix:{}\"\n", path.display());
        let _proxy = Proxy::start(&text);
        until("the socket is there", || UnixStream::connect(&path).is_ok());
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(preface(&endpoint, wanted.len()), wanted, "{version}, of a client at a unix socket");
    }
}

#[test]
fn a_reload_that_tells_endpoints_takes_no_connection_that_was_not_told() {
    let inner = Proxy::start(&manifest(&echo(), "", ""));
    let text = manifest(&inner.address, "", "");
    let outer = Proxy::start(&text);
    assert_eq!(outer.get("/", "").status(), 200);
    outer.reload(&text.replace("endpoints", "proxy-protocol = \"v1\"\nendpoints"));
    outer.wait_log("reloaded");
    let refused = outer.get("/", "");
    assert_eq!(refused.status(), 400, "the endpoint, which wants no such header, has got one: {refused:?}");
}

#[test]
fn content_that_never_ends_after_its_response_holds_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (told, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 1024];
        assert!(stream.read(&mut head).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        told.send(()).unwrap();
    });
    let proxy = limited(&address, "keep-alive = \"500ms\"", "request-buffer = false\n");
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx").unwrap();
    let (said, _) = until_closed(&mut stream);
    assert!(said.starts_with("HTTP/1.1 401 "), "{said}");
    seen.recv_timeout(PATIENCE).expect("the endpoint's connection ends too");
}

#[test]
fn keep_alive_begins_once_a_response_has_left() {
    let proxy = limited(&sized(), "keep-alive = \"400ms\"", "");
    let address = &proxy.address;
    let ask = |length: usize| {
        let mut stream = TcpStream::connect(address).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 16 << 10).unwrap();
        write!(stream, "GET /{length} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It takes its time, much longer than the connection would be kept without it.
        std::thread::sleep(Duration::from_millis(1500));
        let response = read_message(&mut BufReader::new(stream)).unwrap_or_else(|| panic!("{length} don't come"));
        assert_eq!(response.body.len(), length);
    };
    // The capacity of the sockets is unknown. Of one of these bodies, the part beyond it is all within the proxy.
    let ask = &ask;
    std::thread::scope(|scope| (1..40).for_each(|part| drop(scope.spawn(move || ask(part * 120_000)))));
}
