//! Connections of HTTP/2 to endpoints, which exchanges share: no exchange takes the connection from the others.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use crate::http2::{
    ACK, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE,
};
use crate::http2_endpoint::{REFUSED_STREAM, endpoint, head};
use crate::slow_clients::narrow;
use crate::support::origin::raw_origin;
use crate::support::{PATIENCE, Proxy, manifest, read_message, until, vanish};
use crate::unread::{start, sum};

/// The error code of a frame on a stream that has ended (RFC 9113 §7).
const STREAM_CLOSED: u32 = 5;

/// Starts an endpoint that ends its connection after a head of more than `max` bytes, as nginx does. It begins a response
/// to each other request, and ends them when one more than `downloads` have begun on a connection.
fn strict_endpoint(settings: &'static [u8], max: usize, downloads: usize) -> String {
    endpoint(move |raw| {
        raw.send(SETTINGS, 0, 0, settings);
        let mut begun = Vec::new();
        while let Some(frame) = raw.frame() {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(raw.send(SETTINGS, ACK, 0, &[])),
                HEADERS if frame.payload.len() > max => return raw.go_away(frame.stream),
                HEADERS => {
                    raw.send(HEADERS, END_HEADERS, frame.stream, &[0x88]);
                    raw.send(DATA, 0, frame.stream, b"begun");
                    begun.push(frame.stream);
                    if begun.len() > downloads {
                        for stream in begun.drain(..) {
                            raw.send(DATA, END_STREAM, stream, b" and done");
                        }
                    }
                }
                _ => {}
            }
        }
    })
}

#[test]
fn request_that_an_endpoint_ends_its_connection_for_ends_no_other_exchange() {
    const DOWNLOADS: usize = 4;
    let long = |length: usize| format!("\r\nX-Long: {}", "~^".repeat(length / 2));
    let many: String = (0..120).map(|number| format!("\r\nX-{number}: {number}")).collect();
    // A field that is long by itself, one that is longer than the endpoint says it accepts, and many fields.
    for (settings, max, fields) in
        [(&[][..], 4_096, long(8_000)), (&[0, 6, 0, 0, 1, 44], 300, long(500)), (&[], 400, many)]
    {
        let length = fields.len();
        let address = strict_endpoint(settings, max, DOWNLOADS);
        let listener = "address = \"127.0.0.1:0\"\n";
        let text = manifest(&address, "", "").replace("workers = 2", "workers = 1");
        let proxy = Proxy::start(&text.replace(listener, &format!("{listener}limits.fields = 200\n")));
        let download = || {
            let mut stream = proxy.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            stream
        };
        let mut downloads: Vec<_> = (0..DOWNLOADS)
            .map(|_| {
                let (mut stream, mut received) = (download(), Vec::new());
                while !received.ends_with(b"begun\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    received.extend(byte);
                }
                stream
            })
            .collect();
        assert_eq!(proxy.get("/", &fields).status(), 502, "{length}");
        let mut last = download();
        for stream in &mut downloads {
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            assert!(rest.ends_with("0\r\n\r\n"), "{length}: {rest:?}");
        }
        let mut rest = String::new();
        last.read_to_string(&mut rest).unwrap();
        assert!(rest.contains(" and done"), "{rest:?}");
    }
}

/// Endpoints end connections on which many streams are reset: nghttp2 one of 1,000, Envoy one of 500 (CVE-2023-44487).
#[test]
fn connection_on_which_many_streams_are_reset_is_left_to_its_exchanges() {
    const CLIENTS: usize = 1_000;
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    let endpoint = endpoint(move |raw| {
        let mut resets = 0;
        while let Some(frame) = raw.frame() {
            match frame.kind {
                HEADERS => {
                    raw.send(HEADERS, END_HEADERS, frame.stream, &[0x88]);
                    raw.send(DATA, 0, frame.stream, b"begun");
                }
                RST_STREAM => {
                    resets += 1;
                    seen.fetch_max(resets, Ordering::SeqCst);
                    if resets == 200 {
                        raw.send(DATA, END_STREAM, 1, b", ended");
                    }
                }
                _ => {}
            }
        }
    });
    let proxy = start(&[&endpoint], "");
    let ask = || {
        let mut stream = proxy.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut head = [0; 15];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        stream
    };
    let honest = ask();
    (0..CLIENTS).for_each(|_| vanish(ask()));
    // The honest client has the first connection, on which the first clients were.
    let whole = read_message(&mut BufReader::new((&b"HTTP/1.1 200 OK"[..]).chain(honest))).unwrap();
    assert_eq!(whole.text(), "begun, ended");
    let most = most.load(Ordering::SeqCst);
    assert!((200..=260).contains(&most), "{most} resets of one connection");
}

/// Go resets a stream that its handler has answered once for each DATA frame that arrives later. This endpoint does so for
/// each frame of an upload.
#[test]
fn an_endpoint_that_resets_an_upload_for_each_of_its_frames_keeps_its_connection() {
    const LENGTH: usize = 4 << 20;
    let (resetting, resets) = mpsc::channel();
    let endpoint = endpoint(move |raw| {
        // Windows for all of the upload.
        raw.send(SETTINGS, 0, 0, &[0, 4, 0, 0x80, 0, 0]);
        raw.send(WINDOW_UPDATE, 0, 0, &(8_u32 << 20).to_be_bytes());
        let (mut download, mut frames) = (None, 0);
        while let Some(frame) = raw.frame() {
            frames += usize::from(frame.kind == DATA);
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(raw.send(SETTINGS, ACK, 0, &[])),
                HEADERS if frame.flags & END_STREAM != 0 && download.is_none() => {
                    download = Some(frame.stream);
                    raw.send(HEADERS, END_HEADERS, frame.stream, &[0x88]);
                }
                HEADERS if frame.flags & END_STREAM != 0 => {
                    raw.respond(frame.stream, &[], b"other");
                    raw.send(DATA, END_STREAM, download.unwrap(), b"whole");
                }
                DATA if frame.flags & END_STREAM != 0 => {
                    raw.respond(frame.stream, &[], b"refused");
                    (0..frames).for_each(|_| raw.reset(frame.stream, STREAM_CLOSED));
                    resetting.send(frames).unwrap();
                }
                _ => {}
            }
        }
    });
    let proxy = start(&[&endpoint], "retry = false\nlimits.connections = 1");
    let ask = |fields: &str, content: &[u8]| {
        let mut stream = proxy.connect();
        stream.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).unwrap();
        stream.write_all(content).unwrap();
        BufReader::new(stream)
    };
    let mut download = ask("", b"");
    let mut head = [0; 15];
    download.read_exact(&mut head).unwrap();
    let upload = &mut ask(&format!("Content-Length: {LENGTH}\r\n"), &vec![b'x'; LENGTH]);
    assert_eq!(read_message(upload).unwrap().text(), "refused");
    assert!(resets.recv_timeout(PATIENCE).unwrap() >= LENGTH / (16 << 10));
    assert_eq!(read_message(&mut ask("", b"")).unwrap().text(), "other");
    let download = &mut BufReader::new((&head[..]).chain(download));
    assert_eq!(read_message(download).unwrap().text(), "whole");
}

/// Answers the requests of a connection. The response to content `stream` begins, which is told, and doesn't end; there is
/// none to `silent`.
fn serve_streams(raw: &mut Raw, streaming: &mpsc::Sender<()>) {
    while let Some(request) = raw.next_request() {
        match request.content.as_slice() {
            b"stream" => {
                raw.send(HEADERS, END_HEADERS, request.stream, &[0x88]);
                streaming.send(()).unwrap();
            }
            b"silent" => {}
            _ => raw.respond(request.stream, &[], b"whole"),
        }
    }
}

/// A request that may share no connection took it from all clients, for as long as a stream was open on it.
#[test]
fn a_request_that_needs_a_connection_of_its_own_takes_none_from_others() {
    let (streaming, streams) = mpsc::channel();
    let endpoint = endpoint(move |raw| serve_streams(raw, &streaming));
    let proxy = start(&[&endpoint], "connect-timeout = \"1s\"\nlimits.connections = 1");
    let mut open = proxy.connect();
    open.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nstream").unwrap();
    streams.recv_timeout(PATIENCE).unwrap();
    let begin = |fields: &str| {
        let mut stream = proxy.connect();
        write!(stream, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n\r\n").unwrap();
        stream
    };
    let ask = |fields: &str| read_message(&mut BufReader::new(begin(fields))).unwrap().status();
    let (plain, long) = ("Content-Length: 0", format!("Content-Length: 0\r\nCookie: a={}", "b".repeat(5_000)));
    assert_eq!(ask(plain), 200);
    assert_eq!(ask("Content-Length: 0\r\nTrailer: X-Sum"), 200, "there are no trailers");
    assert_eq!(ask("Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1"), 200);
    // It waits for the end of the stream in vain.
    let own = begin(&long);
    own.set_nonblocking(true).unwrap();
    until("connect-timeout is over", || {
        assert_eq!(ask(plain), 200);
        own.peek(&mut [0]).is_ok()
    });
    assert_eq!(read_message(&mut BufReader::new(own)).unwrap().status(), 503);
    assert_eq!(ask(plain), 200);
    drop(open);
    until("the stream has ended, and its connection", || ask(&long) == 200);
    // The next stream shares the connection.
    let mut open = proxy.connect();
    open.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nstream").unwrap();
    streams.recv_timeout(PATIENCE).unwrap();
    assert_eq!(ask(plain), 200);
}

/// A request that waited for a connection of its own made others wait that could share one, and gave them its failure.
#[test]
fn a_fetch_that_needs_a_connection_of_its_own_stands_for_no_other() {
    let (streaming, streams) = mpsc::channel();
    let endpoint = endpoint(move |raw| serve_streams(raw, &streaming));
    // The second chain has the long field made below the cache.
    let copied = r#""cache", { use = "headers", config.request.set = { X-Copy = "{request.header.cookie}{request.header.cookie}" } }"#;
    for (chain, length) in [(r#""cache""#, 5_000), (copied, 3_000)] {
        let text = manifest(&endpoint, chain, "").replace("workers = 2", "workers = 1");
        let limits = "connect-timeout = \"2s\"\nlimits.connections = 1\nendpoints";
        let proxy = Proxy::start(&text.replace("endpoints", limits));
        let mut open = proxy.connect();
        open.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nstream").unwrap();
        streams.recv_timeout(PATIENCE).unwrap();
        let begin = |fields: &str| {
            let mut stream = proxy.connect();
            write!(stream, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n").unwrap();
            BufReader::new(stream)
        };
        let mut leader = begin(&format!("Cookie: a={}\r\n", "b".repeat(length)));
        let others = [(); 5].map(|()| begin(""));
        for mut other in others {
            assert_eq!(read_message(&mut other).unwrap().status(), 200, "{chain}");
        }
        assert_eq!(read_message(&mut leader).unwrap().status(), 503, "it has waited in vain");
    }
}

/// Exchanges that last used up the streams of the one connection, and all others waited.
#[test]
fn exchanges_that_use_up_the_streams_of_a_connection_leave_another_to_others() {
    // Three connections have room for all streams, and for one more.
    ["", "limits.connections = 3"].into_iter().for_each(streams_are_used_up);
}

fn streams_are_used_up(limits: &str) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let (streaming, streams) = mpsc::channel();
    let endpoint = endpoint(move |raw| {
        counted.fetch_add(1, Ordering::SeqCst);
        raw.send(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 4]);
        serve_streams(raw, &streaming);
    });
    let proxy = start(&[&endpoint], limits);
    let plain = || proxy.get("/", "").status();
    assert_eq!(plain(), 200);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let open: Vec<_> = (0..10)
        .map(|_| {
            let mut stream = proxy.connect();
            stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nstream").unwrap();
            streams.recv_timeout(PATIENCE).unwrap();
            assert_eq!(plain(), 200);
            stream
        })
        .collect();
    assert_eq!(connections.load(Ordering::SeqCst), 3, "each has four streams");
    drop(open);
}

/// Starts an endpoint that gives the stream of each request to `answer`, with the numbers of its connection and of the
/// request on it, from 0.
fn numbered(answer: impl Fn(&mut Raw, u32, usize, usize) + Send + Sync + Clone + 'static) -> String {
    let connections = Arc::new(AtomicUsize::new(0));
    endpoint(move |raw| {
        let connection = connections.fetch_add(1, Ordering::SeqCst);
        for number in 0.. {
            let Some(request) = raw.next_request() else { return };
            answer(raw, request.stream, connection, number);
        }
    })
}

/// Sends so many POST requests at a time; returns the statuses of their responses.
fn post_at_once(proxy: &Proxy, clients: usize) -> Vec<u16> {
    let begin = || {
        let mut stream = proxy.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").unwrap();
        stream
    };
    let clients: Vec<_> = (0..clients).map(|_| begin()).collect();
    clients.into_iter().map(|client| read_message(&mut BufReader::new(client)).unwrap().status()).collect()
}

/// An endpoint that has no memory left for a connection resets its streams: the next attempt goes over another one.
#[test]
fn a_connection_that_an_endpoint_has_no_memory_for_gets_no_more_requests() {
    let endpoint = numbered(|raw, stream, connection, number| match connection == 0 && number > 0 {
        true => raw.reset(stream, ENHANCE_YOUR_CALM),
        false => raw.respond(stream, &[], b"whole"),
    });
    let proxy = start(&[&endpoint], "");
    (0..20).for_each(|number| assert_eq!(proxy.get("/", "").status(), 200, "{number}"));
}

/// Serves a first request with a response of 5 MB that doesn't end, and then asks for calm at each request of the connection,
/// as node does for responses of more than 10 MB.
fn serve_download(raw: &mut Raw) {
    let Some(download) = raw.next_request() else { return };
    raw.send(HEADERS, END_HEADERS, download.stream, &head(&[0x88], &[("content-length", "5000000")]));
    while let Some(request) = raw.next_request() {
        raw.reset(request.stream, ENHANCE_YOUR_CALM);
    }
}

/// Nothing proves that an endpoint which asks for calm has not acted on a POST.
#[test]
fn a_request_that_can_not_be_repeated_does_not_share_a_connection_with_a_long_response() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let endpoint = endpoint(move |raw| {
        if counted.fetch_add(1, Ordering::SeqCst) == 0 {
            return serve_download(raw);
        }
        while let Some(request) = raw.next_request() {
            raw.respond(request.stream, &[], b"posted");
        }
    });
    let proxy = start(&[&endpoint], "");
    let mut client = proxy.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    client.read_exact(&mut [0; 15]).unwrap();
    assert_eq!(post_at_once(&proxy, 8), [200; 8]);
    // Requests beyond 64 share a connection.
    post_at_once(&proxy, 200);
    let opened = connections.load(Ordering::SeqCst);
    assert!(opened <= 1 + 64 + 2, "{opened} connections");
}

/// An endpoint that has not begun its long responses yet refuses requests too.
#[test]
fn requests_that_can_not_be_repeated_share_no_connection_after_an_endpoint_has_asked_for_calm() {
    let (asking, asked) = mpsc::channel();
    let endpoint = numbered(move |raw, stream, connection, number| match (connection, number) {
        // The first response doesn't begin, so that others share its connection.
        (0, 0) => asking.send(()).unwrap(),
        (0, _) => raw.reset(stream, ENHANCE_YOUR_CALM),
        _ => raw.respond(stream, &[], b"posted"),
    });
    let proxy = start(&[&endpoint], "");
    let get = || {
        let mut client = proxy.connect();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        client
    };
    let _making = get();
    asked.recv_timeout(PATIENCE).unwrap();
    assert_eq!(post_at_once(&proxy, 1), [502]);
    assert_eq!(sum(&proxy, "plugway_endpoint_failures_total"), 0.0, "the connection is at fault");
    let _next = get();
    assert_eq!(post_at_once(&proxy, 8), [200; 8]);
}

#[test]
fn an_endpoint_that_asks_for_calm_on_a_connection_of_one_exchange_is_blamed() {
    let overloaded = numbered(|raw, stream, _, _| raw.reset(stream, ENHANCE_YOUR_CALM));
    let good = numbered(|raw, stream, _, _| raw.respond(stream, &[], b"posted"));
    let proxy = start(&[&overloaded, &good], "");
    until("the endpoint is ejected", || {
        post_at_once(&proxy, 1);
        sum(&proxy, "plugway_endpoint_ejections_total") > 0.0
    });
    assert_eq!(post_at_once(&proxy, 8), [200; 8]);
}

/// Begins a request whose response doesn't end, with fields; returns the client.
fn begin_stream(proxy: &Proxy, path: &str, fields: &str, streams: &mpsc::Receiver<()>) -> TcpStream {
    let mut stream = proxy.connect();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 6\r\n\r\nstream").unwrap();
    streams.recv_timeout(PATIENCE).unwrap();
    stream
}

/// The connection kept its permit, and requests did not find it any more.
#[test]
fn a_connection_with_a_long_stream_serves_others_after_its_idle_time() {
    let (streaming, streams) = mpsc::channel();
    let endpoint = endpoint(move |raw| serve_streams(raw, &streaming));
    let (closing, closed) = mpsc::channel();
    let other = raw_origin(move |mut stream| {
        let mut head = [0; 1_024];
        assert_ne!(stream.read(&mut head).unwrap(), 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        let _ = stream.read(&mut head);
        closing.send(()).unwrap();
    });
    let keys = "idle-timeout = \"1s\"\nconnect-timeout = \"1s\"\nlimits.connections = 1";
    let more = format!(
        "{keys}\n[upstream.other]\nendpoints = [{other:?}]\nidle-timeout = \"1s\"\n\
         [[route]]\npath = \"/other\"\nupstream = \"other\""
    );
    let proxy = start(&[&endpoint], &more);
    let open = begin_stream(&proxy, "/", "", &streams);
    assert_eq!(proxy.get("/other", "").status(), 200);
    closed.recv_timeout(PATIENCE).expect("the idle time of both connections has passed");
    assert_eq!(proxy.get("/", "").status(), 200);
    drop(open);
}

/// Each of them dropped the connections of the other one, which kept their permits.
#[test]
fn upstreams_with_limits_of_their_own_share_an_endpoint_and_no_connection() {
    let (streaming, streams) = mpsc::channel();
    let endpoint = endpoint(move |raw| serve_streams(raw, &streaming));
    for other in ["limits.connections = 50", "limits.response-head = \"64 KiB\""] {
        let more = format!(
            "connect-timeout = \"1s\"\nlimits.connections = 1\n[upstream.other]\nendpoints = [{endpoint:?}]\n{other}\n\
             [[route]]\npath = \"/other\"\nupstream = \"other\""
        );
        let proxy = start(&[&endpoint], &more);
        let open = begin_stream(&proxy, "/", "", &streams);
        for path in ["/", "/other", "/", "/other", "/"] {
            assert_eq!(proxy.get(path, "").status(), 200, "{path}, {other}");
        }
        drop(open);
    }
}

/// The endpoint answers others on the connection, which keeps its permit as long as a stream lasts.
#[test]
fn a_request_that_is_not_answered_in_time_leaves_its_connection_to_others() {
    let (streaming, streams) = mpsc::channel();
    let endpoint = endpoint(move |raw| serve_streams(raw, &streaming));
    let keys = "connect-timeout = \"1s\"\nresponse-timeout = \"500ms\"\nlimits.connections = 1\nretry = false";
    let proxy = start(&[&endpoint], keys);
    let open = begin_stream(&proxy, "/", "", &streams);
    let mut silent = proxy.connect();
    silent.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nsilent").unwrap();
    assert_eq!(read_message(&mut BufReader::new(silent)).unwrap().status(), 504);
    (0..3).for_each(|number| assert_eq!(proxy.get("/", "").status(), 200, "{number}"));
    drop(open);
}

/// An endpoint may have vanished without an end of its connection. The next request finds out by a connection of its own.
#[test]
fn a_connection_on_which_nothing_arrives_any_more_is_used_last() {
    let endpoint = numbered(|raw, stream, connection, number| {
        if connection > 0 || number == 0 {
            raw.respond(stream, &[], b"whole");
        }
    });
    let proxy = start(&[&endpoint], "response-timeout = \"500ms\"\nretry = false");
    let statuses: Vec<_> = (0..4).map(|_| proxy.get("/", "").status()).collect();
    assert_eq!(statuses, [200, 504, 200, 200]);
}

/// The limit has no room for a further connection, and the response lasts.
#[test]
fn a_long_stream_of_a_long_head_shares_the_last_connection() {
    let (streaming, streams) = mpsc::channel();
    let endpoint = endpoint(move |raw| serve_streams(raw, &streaming));
    let proxy = start(&[&endpoint], "connect-timeout = \"1s\"\nlimits.connections = 1");
    let open = begin_stream(&proxy, "/", &format!("Cookie: a={}\r\n", "b".repeat(5_000)), &streams);
    (0..3).for_each(|number| assert_eq!(proxy.get("/", "").status(), 200, "{number}"));
    drop(open);
}

/// Requests that began before the settings of the endpoint were read were refused, connection after connection.
#[test]
fn a_new_connection_gets_one_request_until_its_settings_are_read() {
    const CLIENTS: usize = 20;
    const STREAMS: usize = 2;
    let begun = Arc::new(AtomicUsize::new(0));
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = (begun.clone(), refused.clone());
    let address = raw_origin(move |stream| {
        let (begun, refused) = &counted;
        let mut raw = Raw(stream);
        raw.0.set_nodelay(true).unwrap();
        if raw.0.read_exact(&mut [0; 24]).is_err() {
            return;
        }
        raw.send(SETTINGS, 0, 0, &[&[0, 3, 0, 0, 0][..], &[STREAMS as u8]].concat());
        let mut streams = 0;
        while let Some(frame) = raw.frame() {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(raw.send(SETTINGS, ACK, 0, &[])),
                HEADERS => {
                    streams += 1;
                    if streams > STREAMS {
                        refused.fetch_add(1, Ordering::SeqCst);
                        raw.reset(frame.stream, REFUSED_STREAM);
                        continue;
                    }
                    begun.fetch_add(1, Ordering::SeqCst);
                    let (begun, mut raw) = (begun.clone(), Raw(raw.0.try_clone().unwrap()));
                    // The responses come once all clients have asked.
                    std::thread::spawn(move || {
                        until("all have asked", || begun.load(Ordering::SeqCst) >= CLIENTS);
                        raw.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &[0x88]);
                    });
                }
                _ => {}
            }
        }
    });
    let proxy = start(&[&format!("h2c://{address}")], "");
    assert_eq!(post_at_once(&proxy, CLIENTS), [200; CLIENTS]);
    assert_eq!((begun.load(Ordering::SeqCst), refused.load(Ordering::SeqCst)), (CLIENTS, 0));
}

/// An endpoint may accept no further connection: the requests wait for streams of the connection that there is.
#[test]
fn requests_use_the_connection_that_there_is_if_no_further_one_opens() {
    let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    // It leaves all connections but the first unanswered, as HAProxy does beyond its `maxconn`.
    let address = raw_origin(move |stream| {
        let mut open = open.lock().unwrap();
        open.push(stream.try_clone().unwrap());
        if open.len() > 1 {
            return;
        }
        drop(open);
        let mut raw = Raw(stream);
        raw.0.read_exact(&mut [0; 24]).unwrap();
        raw.send(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]);
        while let Some(request) = raw.next_request() {
            raw.respond(request.stream, &[], b"whole");
        }
    });
    let proxy = start(&[&format!("h2c://{address}")], "connect-timeout = \"1s\"");
    assert_eq!(proxy.get("/", "").status(), 200);
    assert_eq!(post_at_once(&proxy, 50), [200; 50]);
    // Long content has a connection of its own elsewhere.
    let mut upload = proxy.connect();
    upload.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n").unwrap();
    upload.write_all(&[b'x'; 20_000]).unwrap();
    assert_eq!(read_message(&mut BufReader::new(upload)).unwrap().status(), 200);
}

/// Requests were bound to the connection with the fewest requests, all of which were streams without end.
#[test]
fn requests_wait_for_whichever_stream_ends_first() {
    let (streaming, streams) = mpsc::channel();
    let endpoint = endpoint(move |raw| {
        raw.send(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 2]);
        serve_streams(raw, &streaming);
    });
    let proxy = start(&[&endpoint], "response-timeout = \"3s\"\nretry = false\nlimits.connections = 2");
    let open = [begin_stream(&proxy, "/", "", &streams), begin_stream(&proxy, "/", "", &streams)];
    assert_eq!(proxy.get("/", "").status(), 200);
    assert_eq!(post_at_once(&proxy, 40), [200; 40]);
    drop(open);
}

/// The connection of before the reload counts against the limit as long as its stream lasts.
#[test]
fn a_connection_with_a_long_stream_serves_others_after_a_reload_of_the_limits_of_heads() {
    let (streaming, streams) = mpsc::channel();
    let endpoint = endpoint(move |raw| serve_streams(raw, &streaming));
    let proxy = start(&[&endpoint], "connect-timeout = \"1s\"\nlimits.connections = 1");
    let open = begin_stream(&proxy, "/", "", &streams);
    let text = std::fs::read_to_string(proxy.folder.path().join("plugway.toml")).unwrap();
    proxy.reload(&format!("{text}\nlimits.response-head = \"64 KiB\"\n"));
    proxy.wait_log("reloaded");
    (0..3).for_each(|number| assert_eq!(proxy.get("/", "").status(), 200, "{number}"));
    drop(open);
}

/// The length of content that a stream has room for at first.
const WINDOW: usize = 60_000;

/// The number of windows of content for a request without content.
const WINDOWS: usize = 3;

/// Answers requests with content in frames of one byte, as fast as the windows allow. The one to content `endless` has no
/// end, those to other content are empty.
fn serve_in_bytes(raw: &mut Raw, resets: &AtomicUsize) {
    let mut left = HashMap::new();
    while let Some(frame) = raw.frame() {
        let first = match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => {
                raw.send(SETTINGS, ACK, 0, &[]);
                continue;
            }
            HEADERS if frame.flags & END_STREAM != 0 => {
                left.insert(frame.stream, WINDOWS * WINDOW);
                raw.send(HEADERS, END_HEADERS, frame.stream, &[0x88]);
                WINDOW
            }
            DATA if frame.payload == b"endless" => {
                left.insert(frame.stream, usize::MAX);
                raw.send(HEADERS, END_HEADERS, frame.stream, &[0x88]);
                WINDOW
            }
            DATA if frame.flags & END_STREAM != 0 => {
                raw.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &[0x88]);
                continue;
            }
            RST_STREAM => {
                resets.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            WINDOW_UPDATE => u32::from_be_bytes(frame.payload[..].try_into().unwrap()) as usize,
            _ => continue,
        };
        let Some(left) = left.get_mut(&frame.stream) else { continue };
        let length = first.min(*left);
        *left -= length;
        let end = if *left == 0 { END_STREAM } else { 0 };
        let pieces = (0..length)
            .flat_map(|at| crate::http2::frame(DATA, if at + 1 == length { end } else { 0 }, frame.stream, b"x"));
        if raw.0.write_all(&pieces.collect::<Vec<_>>()).is_err() {
            return;
        }
    }
}

/// h2 keeps some 300 bytes for each frame: 20 MiB for each of these windows.
#[test]
fn content_in_frames_of_a_byte_takes_no_memory_beyond_its_windows() {
    let resets = Arc::new(AtomicUsize::new(0));
    let counted = resets.clone();
    let endpoint = endpoint(move |raw| serve_in_bytes(raw, &counted));
    let proxy = start(&[&endpoint], "");
    // What the system buffers for its client is short.
    let ask = |method: &str, fields: &str| {
        let mut stream = narrow(&proxy);
        write!(stream, "{method} / HTTP/1.1\r\nHost: a\r\n{fields}").unwrap();
        stream
    };
    assert_eq!(proxy.get("/", "").text().len(), WINDOWS * WINDOW);
    let before = proxy.memory_kib();
    let readers: Vec<_> = (0..12).map(|_| ask("GET", "\r\n")).collect();
    for reader in readers {
        assert_eq!(read_message(&mut BufReader::new(reader)).unwrap().text().len(), WINDOWS * WINDOW);
    }
    let grown = proxy.memory_kib().saturating_sub(before) >> 10;
    assert!(grown < 32, "{grown} MiB for clients that read all");
    // The responses of these clients fail, for which there is no room, and those of no others.
    let grpc = "Content-Type: application/grpc\r\nContent-Length: 7\r\n\r\nendless";
    let unread: Vec<_> = (0..2).map(|_| ask("POST", grpc)).collect();
    until("responses have failed", || resets.load(Ordering::SeqCst) > 0);
    let other = ask("POST", "Content-Length: 5\r\n\r\nother");
    assert_eq!(read_message(&mut BufReader::new(other)).unwrap().status(), 200);
    let grown = proxy.memory_kib().saturating_sub(before) >> 10;
    assert!(grown < 64, "{grown} MiB for clients that read nothing");
    for mut client in unread {
        let _ = std::io::copy(&mut client, &mut std::io::sink());
    }
    proxy.wait_log("pieces of less than 256 bytes");
}

/// Starts an endpoint that answers requests with content, and leaves the content of a request that begins with `u` unread:
/// it tells of 64 KiB of it, and never extends the window for it.
fn leaving_unread(received: mpsc::Sender<()>) -> String {
    endpoint(move |raw| {
        let mut unread = HashMap::new();
        while let Some(frame) = raw.frame() {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(raw.send(SETTINGS, ACK, 0, &[])),
                DATA if frame.payload.first() == Some(&b'u') => {
                    let bytes = unread.entry(frame.stream).or_insert(0);
                    *bytes += frame.payload.len();
                    if *bytes == 65_535 {
                        received.send(()).unwrap();
                    }
                }
                DATA => {
                    raw.send(WINDOW_UPDATE, 0, 0, &(frame.payload.len() as u32).to_be_bytes());
                    raw.respond(frame.stream, &[], b"whole");
                }
                HEADERS if frame.flags & END_STREAM != 0 => raw.respond(frame.stream, &[], b"whole"),
                _ => {}
            }
        }
    })
}

/// One upload that the endpoint left unread shut the window of the connection, on which all other uploads waited.
#[test]
fn an_upload_that_an_endpoint_leaves_unread_holds_up_no_other() {
    // A long upload has a connection of its own. One of gRPC shares it, and then others do no more.
    for fields in ["", "Content-Type: application/grpc\r\n"] {
        let (receiving, received) = mpsc::channel();
        let proxy = start(&[&leaving_unread(receiving)], "");
        assert_eq!(proxy.get("/", "").status(), 200);
        let mut upload = proxy.connect();
        write!(upload, "POST / HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 100000\r\n\r\n").unwrap();
        upload.write_all(&[b'u'; 100_000]).unwrap();
        received.recv_timeout(PATIENCE).unwrap();
        let mut posts = Vec::new();
        until("a short upload is served", || {
            let mut post = proxy.connect();
            post.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1").unwrap();
            post.set_nonblocking(true).unwrap();
            posts.push(post);
            posts.iter().any(|post| post.peek(&mut [0]).is_ok())
        });
    }
}

/// Starts an endpoint that answers an upload of `u` after 64 KiB, reads no more of it and tells of that, and that reads other
/// uploads to their end.
fn answering_early(received: mpsc::Sender<()>) -> String {
    endpoint(move |raw| {
        let mut unread = 0;
        while let Some(frame) = raw.frame() {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(raw.send(SETTINGS, ACK, 0, &[])),
                DATA if frame.payload.first() == Some(&b'u') => {
                    unread += frame.payload.len();
                    if unread == 65_535 {
                        raw.respond(frame.stream, &[], b"early");
                        received.send(()).unwrap();
                    }
                }
                DATA => {
                    let length = (frame.payload.len() as u32).to_be_bytes();
                    raw.send(WINDOW_UPDATE, 0, 0, &length);
                    raw.send(WINDOW_UPDATE, 0, frame.stream, &length);
                    if frame.flags & END_STREAM != 0 {
                        raw.respond(frame.stream, &[], b"whole");
                    }
                }
                _ => {}
            }
        }
    })
}

/// An upload that was answered early, and is read no further, leaves its connection to no other.
#[test]
fn a_connection_whose_window_is_shut_is_not_kept() {
    let (receiving, received) = mpsc::channel();
    let endpoint = answering_early(receiving);
    let proxy = start(&[&endpoint], "response-timeout = \"2s\"");
    let post = |letter: u8| {
        let mut upload = proxy.connect();
        upload.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").unwrap();
        upload.write_all(&[letter; 100_000]).unwrap();
        read_message(&mut BufReader::new(upload)).unwrap().status()
    };
    assert_eq!(post(b'u'), 200);
    received.recv_timeout(PATIENCE).unwrap();
    (0..3).for_each(|number| assert_eq!(post(b'r'), 200, "{number}"));
}

/// An endpoint that answers no upload.
struct SilentToUploads {
    endpoint: String,
    connections: Arc<AtomicUsize>,
    begun: mpsc::Receiver<()>,
}

impl SilentToUploads {
    fn start() -> Self {
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let (beginning, begun) = mpsc::channel();
        let endpoint = endpoint(move |raw| {
            counted.fetch_add(1, Ordering::SeqCst);
            while let Some(frame) = raw.frame() {
                match frame.kind {
                    SETTINGS if frame.flags & ACK == 0 => drop(raw.send(SETTINGS, ACK, 0, &[])),
                    HEADERS if frame.flags & END_STREAM != 0 => raw.respond(frame.stream, &[], b"whole"),
                    HEADERS => beginning.send(()).unwrap(),
                    _ => {}
                }
            }
        });
        SilentToUploads { endpoint, connections, begun }
    }

    /// Begins an upload that is too long to be received before the endpoint is asked.
    fn upload(&self, proxy: &Proxy) -> TcpStream {
        let mut upload = proxy.connect();
        upload.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n1").unwrap();
        self.begun.recv_timeout(PATIENCE).unwrap();
        upload
    }
}

/// With one connection for all, a slow upload took it from all other requests.
#[test]
fn a_long_upload_takes_no_last_connection() {
    let silent = SilentToUploads::start();
    let proxy = start(&[&silent.endpoint], "connect-timeout = \"1s\"\nlimits.connections = 1");
    let upload = silent.upload(&proxy);
    (0..5).for_each(|number| assert_eq!(proxy.get("/", "").status(), 200, "{number}"));
    drop(upload);
}

/// Uploads that stall have a connection to the endpoint each, and took all descriptors.
#[test]
fn long_uploads_have_so_many_connections_of_their_own_and_share_one_beyond() {
    const UPLOADS: usize = 80;
    const OWN: usize = 64;
    let silent = SilentToUploads::start();
    let proxy = start(&[&silent.endpoint], "");
    let uploads: Vec<_> = (0..UPLOADS).map(|_| silent.upload(&proxy)).collect();
    assert_eq!(silent.connections.load(Ordering::SeqCst), OWN + 1);
    drop(uploads);
}
