//! Clients that close their sending side after a request and read on (RFC 9112 §9.6), and clients that are gone.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::http2::{DATA, END_HEADERS, END_STREAM, Frame, GET as GET_FIELDS, GOAWAY, HEADERS, RST_STREAM, Raw};
use crate::support::{
    PATIENCE, Proxy, echo, limited, manifest, ok, origin, raw_origin, read_message, sized, until, vanish,
};
use crate::tls::{Authority, SITE, secure};

const GET: &str = "GET /10 HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST /order HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

/// Sends, ends the sending side, and reads until the proxy closes.
fn told(mut stream: TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    String::from_utf8(got).unwrap()
}

/// Starts an origin that answers on a signal, and reports when it has received a request and when its connection ends.
fn held() -> (String, Receiver<&'static str>, std::sync::mpsc::Sender<()>) {
    let (release, released) = channel::<()>();
    let released = Arc::new(std::sync::Mutex::new(released));
    let (tell, seen) = channel();
    let address = raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        if read_message(&mut reader).is_none() {
            return;
        }
        let _ = tell.send("request");
        let (tell, mut ends) = (tell.clone(), stream.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = ends.read(&mut [0; 1]);
            let _ = tell.send("end");
        });
        if released.lock().unwrap().recv().is_ok() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlate");
        }
    });
    (address, seen, release)
}

/// Starts an endpoint that begins a response as soon as it has a head, and then neither reads nor sends.
fn pausing() -> String {
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    raw_origin(move |mut stream| {
        if stream.read(&mut [0; 100]).is_ok_and(|length| length > 0) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun");
            kept.lock().unwrap().push(stream);
        }
    })
}

#[test]
fn a_reset_is_noticed_while_an_upload_is_blocked_and_the_response_pauses() {
    let proxy = Proxy::start(&manifest(&pausing(), "", ""));
    let in_flight = || {
        let figures = proxy.ask_admin("GET /metrics").text();
        let line = figures.lines().find(|line| line.starts_with("plugway_endpoint_in_flight")).unwrap();
        line.rsplit(' ').next().unwrap().to_string()
    };
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n").unwrap();
    let mut begun = [0; 10];
    stream.read_exact(&mut begun).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    // The sockets and buffers on the way are full.
    while stream.write_all(&[b'x'; 100_000]).is_ok() {}
    assert_eq!(in_flight(), "1");
    vanish(stream);
    until("the exchange has ended", || in_flight() == "0");
}

#[test]
fn a_client_that_ends_its_sending_side_gets_its_response() {
    let count = Arc::new(AtomicUsize::new(0));
    let requests = count.clone();
    let origin = origin(move |request| {
        requests.fetch_add(1, Ordering::SeqCst);
        ok(&format!("{} {}", request.start, request.text()))
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    for _ in 0..10 {
        let got = told(proxy.connect(), GET);
        assert!(got.starts_with("HTTP/1.1 200 OK") && got.ends_with("GET /10 HTTP/1.1 "), "{got}");
        let posted = told(proxy.connect(), POST);
        assert!(posted.starts_with("HTTP/1.1 200 OK") && posted.ends_with("POST /order HTTP/1.1 abc"), "{posted}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 20, "each request is sent once");
}

#[test]
fn a_late_and_a_streamed_response_reach_a_half_closed_client() {
    let (address, seen, release) = held();
    let proxy = Proxy::start(&manifest(&address, "", ""));
    let mut stream = proxy.connect();
    stream.write_all(POST.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
    // The subject: the endpoint takes longer than the proxy waits before it looks whether the client is gone.
    assert!(seen.recv_timeout(Duration::from_millis(2500)).is_err(), "the exchange ended");
    release.send(()).unwrap();
    assert_eq!(read_message(&mut BufReader::new(&mut stream)).unwrap().text(), "late");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the connection ends with its last response");

    let proxy = Proxy::start(&manifest(&sized(), "", ""));
    let large = told(proxy.connect(), &GET.replace("/10", "/20000000"));
    assert_eq!(large.rsplit("\r\n\r\n").next().unwrap().len(), 20_000_000);
}

#[test]
fn pipelined_requests_before_the_end_are_all_answered() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let requests = ["/1", "/2", "/3"].map(|path| GET.replace("/10", path)).concat();
    let got = told(proxy.connect(), &requests);
    let answered: Vec<_> = got.lines().filter(|line| line.starts_with("GET /")).collect();
    assert_eq!(answered, ["GET /1 HTTP/1.1", "GET /2 HTTP/1.1", "GET /3 HTTP/1.1"]);
    // Without the end of the last head, the first two are answered, and it is none.
    let cut = told(proxy.connect(), requests.strip_suffix("\r\n").unwrap());
    assert!(cut.contains("GET /2 ") && !cut.contains("GET /3 "), "{cut}");
}

#[test]
fn a_request_that_is_cut_off_is_no_request() {
    let count = Arc::new(AtomicUsize::new(0));
    let requests = count.clone();
    let origin = origin(move |_| {
        requests.fetch_add(1, Ordering::SeqCst);
        ok("whole")
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let cut = [
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "GET / HTTP/1.1\r\nHost: a",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
    ];
    for request in cut {
        let got = told(proxy.connect(), request);
        assert!(!got.contains(" 200 ") && !got.contains("whole"), "{request:?}: {got}");
    }
    assert_eq!(proxy.get("/", "").text(), "whole");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[test]
fn over_tls_the_end_is_a_close_notify() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["localhost"]);
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        let (address, seen, release) = held();
        let proxy = Proxy::start_in(folder.path(), &secure(&address, SITE, ""));
        let config = ClientConfig::builder_with_protocol_versions(versions);
        let config = Arc::new(config.with_root_certificates(roots.clone()).with_no_client_auth());
        let open = || {
            let connection = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
            let mut stream = StreamOwned::new(connection, proxy.connect());
            stream.write_all(POST.as_bytes()).unwrap();
            stream.flush().unwrap();
            stream
        };
        let mut stream = open();
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        stream.sock.shutdown(Shutdown::Write).unwrap();
        assert!(seen.recv_timeout(Duration::from_millis(1500)).is_err(), "the exchange ended");
        release.send(()).unwrap();
        assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().text(), "late");
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"));
        // Without one the client was cut off.
        let stream = open();
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
        stream.sock.shutdown(Shutdown::Write).unwrap();
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"), "the proxy gives the exchange up");
    }
}

#[test]
fn a_client_that_resets_its_connection_is_gone() {
    for half_closed_before in [false, true] {
        let (address, seen, _release) = held();
        let proxy = Proxy::start(&manifest(&address, "", ""));
        let mut stream = proxy.connect();
        stream.write_all(POST.as_bytes()).unwrap();
        if half_closed_before {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
        let began = Instant::now();
        vanish(stream);
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"), "half-closed before: {half_closed_before}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn on_a_unix_socket_a_closed_client_is_gone_and_a_half_closed_one_is_not() {
    let (address, seen, release) = held();
    let folder = tempfile::tempdir().unwrap();
    let front = folder.path().join("front.sock");
    let also = format!("[[listener]]\naddress = \"unix:{}\"\n[[listener]]", front.display());
    let proxy = Proxy::start(&manifest(&address, "", "").replace("[[listener]]", &also));
    let open = || {
        let mut stream = UnixStream::connect(&front).unwrap();
        stream.write_all(GET.as_bytes()).unwrap();
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
        stream
    };
    let mut stream = open();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(seen.recv_timeout(Duration::from_millis(1500)).is_err(), "the exchange ended");
    release.send(()).unwrap();
    assert_eq!(read_message(&mut BufReader::new(&mut stream)).unwrap().text(), "late");
    assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"));
    drop(open());
    assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"), "the proxy gives the exchange up");
    drop(proxy);
}

#[test]
fn a_write_to_a_client_that_has_closed_ends_its_exchange() {
    let (stopped, seen) = channel();
    let origin = raw_origin(move |mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        while stream.write_all(b"5\r\nevent\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = stopped.send(());
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let mut stream = proxy.connect();
    stream.write_all(GET.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 15]).unwrap();
    drop(stream);
    seen.recv_timeout(PATIENCE).expect("the endpoint is told");
}

#[test]
fn a_half_closed_client_that_reads_nothing_is_cut_off() {
    let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
    let limits = "address = \"127.0.0.1:0\"\nlimits = { send-timeout = \"1s\" }\n";
    let text = manifest(&sized(), "", admin).replacen("address = \"127.0.0.1:0\"\n", limits, 1);
    let proxy = Proxy::start_after(&text, "admin at");
    let mut stream = proxy.connect();
    stream.write_all(GET.replace("/10", "/50000000").as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let is_cut_off = || {
        let figures = proxy.ask_admin("GET /metrics").text();
        let counted = figures.lines().find(|line| line.contains("cut_off") && line.contains("send-timeout"));
        counted.is_some_and(|line| line.ends_with(" 1"))
    };
    until("the client is cut off", is_cut_off);
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    assert!(rest.len() < 50_000_000, "{end:?}");
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
}

#[test]
fn a_half_closed_client_has_its_keep_alive_cut_short() {
    // Nothing more can come: the connection is not kept.
    let proxy = limited(&echo(), "keep-alive = \"60s\"", "");
    let began = Instant::now();
    told(proxy.connect(), GET);
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_tunnel_passes_the_end_of_a_half_closed_client_on() {
    let origin = raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_message(&mut reader);
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        stream.write_all(&[b"got ", &all[..]].concat()).unwrap();
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let asks = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    for early in ["", "ahead"] {
        let got = told(proxy.connect(), &format!("{asks}{early}"));
        assert!(got.starts_with("HTTP/1.1 101 ") && got.ends_with(&format!("got {early}")), "{got}");
    }
}

// === HTTP/2 ===

/// A preface and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The fields of a POST.
const POST_FIELDS: &[u8] = &[0x83, 0x86, 0x84, 0x41, 1, b'a'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, GET_FIELDS)
}

/// The head of a POST, and a part of its content.
fn upload(stream: u32, end: u8) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, POST_FIELDS), frame(DATA, end, stream, b"abc")].concat()
}

/// The frames up to the end of a connection.
fn frames(mut stream: impl Read) -> Vec<Frame> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while let [a, b, c, kind, flags, s, t, u, v, after @ ..] = rest {
        let (payload, next) = after.split_at(u32::from_be_bytes([0, *a, *b, *c]) as usize);
        let stream = u32::from_be_bytes([*s, *t, *u, *v]);
        frames.push(Frame { kind: *kind, flags: *flags, stream, payload: payload.into() });
        rest = next;
    }
    frames
}

/// The streams whose response came whole, with its content.
fn answered(frames: &[Frame]) -> Vec<(u32, String)> {
    let content = |stream| {
        let of_stream = frames.iter().filter(|frame| frame.kind == DATA && frame.stream == stream);
        of_stream.flat_map(|frame| frame.payload.clone()).map(char::from).collect()
    };
    let ends = frames.iter().filter(|frame| frame.kind == DATA && frame.flags & END_STREAM != 0);
    let mut answered: Vec<(u32, String)> = ends.map(|frame| (frame.stream, content(frame.stream))).collect();
    answered.sort();
    answered
}

#[test]
fn an_http2_client_that_ends_its_sending_side_gets_all_responses() {
    let origin = origin(|request| ok(&format!("{} {}", request.start, request.text())));
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let requests = [PREFACE, &get(1), &upload(3, END_STREAM), &get(5)].concat();
    for _ in 0..10 {
        let mut stream = proxy.connect();
        stream.write_all(&requests).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let frames = frames(&mut stream);
        let [got, posted] = ["GET / HTTP/1.1 ", "POST / HTTP/1.1 abc"].map(String::from);
        assert_eq!(answered(&frames), [(1, got.clone()), (3, posted), (5, got)]);
        assert_eq!(frames.last().unwrap().kind, GOAWAY, "the connection ends in order");
    }
    // Without a request there is nothing to wait for.
    for begin in [&b""[..], &PREFACE[..10], PREFACE] {
        let mut stream = proxy.connect();
        stream.write_all(begin).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let began = Instant::now();
        frames(&mut stream);
        assert!(began.elapsed() < Duration::from_secs(5), "{begin:?}: {:?}", began.elapsed());
    }
}

#[test]
fn a_late_response_reaches_a_half_closed_http2_client() {
    let (address, seen, release) = held();
    let proxy = Proxy::start(&manifest(&address, "", ""));
    let mut client = Raw::connect(&proxy);
    assert!(client.0.write_all(&upload(1, END_STREAM)).is_ok());
    assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
    client.0.shutdown(Shutdown::Write).unwrap();
    // The subject: the endpoint takes longer than the proxy waits before it looks whether the client is gone.
    assert!(seen.recv_timeout(Duration::from_millis(2500)).is_err(), "the exchange ended");
    release.send(()).unwrap();
    assert_eq!(answered(&frames(&mut client.0)), [(1, "late".into())]);
}

#[test]
fn over_tls_the_end_of_an_http2_client_is_a_close_notify() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["localhost"]);
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        let (address, seen, release) = held();
        let proxy = Proxy::start_in(folder.path(), &secure(&address, SITE, ""));
        let config = ClientConfig::builder_with_protocol_versions(versions);
        let mut config = config.with_root_certificates(roots.clone()).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let open = || {
            let connection = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
            let mut stream = StreamOwned::new(connection, proxy.connect());
            stream.write_all(&[PREFACE, &upload(1, END_STREAM)].concat()).unwrap();
            stream.flush().unwrap();
            assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
            stream
        };
        let mut stream = open();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        stream.sock.shutdown(Shutdown::Write).unwrap();
        assert!(seen.recv_timeout(Duration::from_millis(1500)).is_err(), "the exchange ended");
        release.send(()).unwrap();
        assert_eq!(answered(&frames(stream)), [(1, "late".into())]);
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"));
        // Without one the client was cut off.
        let stream = open();
        stream.sock.shutdown(Shutdown::Write).unwrap();
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"), "the proxy gives the exchange up");
    }
}

#[test]
fn an_http2_client_that_is_gone_ends_its_exchanges() {
    type End = fn(TcpStream);
    let half_closes_first: End = |stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        vanish(stream);
    };
    for (how, end) in [("reset", vanish as End), ("half-closed, then reset", half_closes_first), ("closed", drop)] {
        let (address, seen, _release) = held();
        let proxy = Proxy::start(&manifest(&address, "", ""));
        let mut client = Raw::connect(&proxy);
        assert!(client.0.write_all(&get(1)).is_ok());
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
        let began = Instant::now();
        end(client.0);
        assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"), "{how}");
        assert!(began.elapsed() < Duration::from_secs(10), "{how}: {:?}", began.elapsed());
    }
}

#[test]
fn an_http2_request_that_is_cut_off_is_no_request_and_hinders_no_other() {
    let (address, seen, _release) = held();
    let whole = origin(|_| ok("whole"));
    let route =
        format!("[upstream.held]\nendpoints = [{address:?}]\n[[route]]\nmethods = [\"POST\"]\nupstream = \"held\"\n");
    let proxy = Proxy::start(&manifest(&whole, "", &route));
    let mut stream = proxy.connect();
    // More than the endpoint of the first takes before it has all.
    let cut = frame(HEADERS, END_HEADERS, 1, POST_FIELDS);
    stream.write_all(&[PREFACE, &cut, &get(3)].concat()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let frames = frames(&mut stream);
    assert_eq!(answered(&frames), [(3, "whole".into())]);
    assert!(!frames.iter().any(|frame| frame.kind == RST_STREAM && frame.stream == 3));
    // Within a frame, the connection is cut off.
    let mut stream = proxy.connect();
    stream.write_all(&[PREFACE, &upload(1, END_STREAM), &get(3)[..12]].concat()).unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"));
}
