//! Bodies and connections that are large, slow, cut off or special.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Instant;

use crate::http2::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Raw, SETTINGS};
use crate::http2_endpoint;
use crate::support::{PATIENCE, Proxy, echo, limited, manifest, ok, origin, raw_origin, read_message, vanish};

const MIB: usize = 1 << 20;

#[test]
fn a_hundred_mebibytes_pass_both_ways_in_little_memory() {
    let origin = raw_origin(|stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
            line.clear();
        }
        // Sends back what comes, piece by piece.
        let mut stream = stream;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 100 * MIB).unwrap();
        std::io::copy(&mut reader.take(100 * MIB as u64), &mut stream).unwrap();
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let before = proxy.memory_kib();
    let mut stream = proxy.connect();
    let mut sending = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        write!(sending, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 100 * MIB).unwrap();
        let piece: Vec<u8> = (0..MIB).map(|at| at as u8).collect();
        (0..100).for_each(|_| sending.write_all(&piece).unwrap());
    });
    let mut reader = BufReader::new(&mut stream);
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    let (mut buffer, mut got, mut peak) = (vec![0; MIB], 0, 0);
    while got < 100 * MIB {
        let length = reader.read(&mut buffer).unwrap();
        assert!(length > 0, "cut off after {got}");
        assert!(buffer[..length].iter().zip(got..).all(|(byte, at)| *byte == (at % MIB) as u8), "changed after {got}");
        got += length;
        peak = peak.max(proxy.memory_kib());
    }
    sender.join().unwrap();
    assert!(peak < before + 32 * 1024, "{before} KiB before, {peak} KiB at the most");
}

#[test]
fn a_response_that_http2_resets_without_an_error_is_cut_off() {
    let origin = http2_endpoint::endpoint(|raw| {
        while let Some(request) = raw.next_request() {
            let head = http2_endpoint::head(&[0x88], &[("cache-control", "max-age=100")]);
            raw.send(HEADERS, END_HEADERS, request.stream, &head);
            raw.send(DATA, 0, request.stream, b"partial");
            raw.reset(request.stream, 0);
        }
    });
    for plugins in ["", "\"cache\""] {
        let proxy = Proxy::start(&manifest(&origin, plugins, ""));
        for _ in 0..2 {
            let mut stream = proxy.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            let mut got = String::new();
            let _ = stream.read_to_string(&mut got);
            assert!(got.starts_with("HTTP/1.1 200") && !got.ends_with("0\r\n\r\n"), "{plugins}: {got}");
            assert!(!got.contains("hit"), "{got}");
        }
    }
}

#[test]
fn a_response_cut_off_at_the_origin_is_cut_off_at_the_client() {
    let origin = raw_origin(|stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        let mut stream = stream;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this").unwrap();
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    for _ in 0..2 {
        let mut stream = proxy.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        let text = String::from_utf8(got).unwrap();
        assert!(text.contains("content-length: 1000") && text.ends_with("only this"), "{text}");
    }
}

#[test]
fn an_origin_that_closes_without_a_word_is_a_bad_gateway() {
    let origin = raw_origin(|stream| drop(read_message(&mut BufReader::new(stream))));
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let failed = proxy.get("/", "");
    assert_eq!((failed.status(), failed.field("proxy-status")), (502, Some("plugway; error=connection_terminated")));
    let garbage = raw_origin(|mut stream| {
        // An origin that closes with the request unread resets the connection, which is another failure.
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"no HTTP at all\r\n\r\n").unwrap();
    });
    let proxy = Proxy::start(&manifest(&garbage, "", ""));
    assert_eq!(proxy.get("/", "").field("proxy-status"), Some("plugway; error=http_protocol_error"));
}

#[test]
fn a_client_that_vanishes_frees_its_upstream_connection() {
    let (told, seen) = mpsc::channel();
    let origin = raw_origin(move |stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_message(&mut reader);
        let _ = told.send("request");
        // Nothing is answered; what ends this read is the proxy hanging up.
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        let _ = told.send("end");
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE), Ok("request"));
    vanish(stream);
    assert_eq!(seen.recv_timeout(PATIENCE), Ok("end"), "the proxy hangs up at the origin");
}

#[test]
fn heads_without_bodies_keep_the_connection() {
    let origin = origin(|request| {
        if request.start.starts_with("HEAD") {
            return b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n".to_vec();
        }
        let status = request.start.split(' ').nth(1).unwrap().trim_start_matches('/');
        format!("HTTP/1.1 {status} Status\r\n\r\n").into_bytes()
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let mut stream = proxy.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = |request: &str| {
        write!(stream, "{request} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let (mut text, mut line) = (String::new(), String::new());
        while reader.read_line(&mut line).unwrap() > 2 {
            text += &line;
            line.clear();
        }
        text
    };
    let answer = head("HEAD /");
    assert!(answer.contains("content-length: 12345"), "{answer}");
    for status in ["204", "304"] {
        let answer = head(&format!("GET /{status}"));
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && !answer.contains("transfer-encoding"),
            "{answer}"
        );
    }
}

#[test]
fn an_http_1_0_client_gets_a_body_that_ends_with_the_connection() {
    let chunked = origin(|_| b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec());
    let proxy = Proxy::start(&manifest(&chunked, "", ""));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.0 200") && text.ends_with("\r\n\r\nhello") && !text.contains("chunked"), "{text}");
}

#[test]
fn a_client_that_expects_100_gets_it_and_the_origin_never_hears_of_it() {
    let proxy = Proxy::start(&manifest(
        &origin(|request| ok(&format!("{:?} {}", request.field("expect"), request.text()))),
        "",
        "",
    ));
    let mut stream = proxy.connect();
    stream
        .write_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 100 Continue\r\n");
    reader.read_line(&mut line).unwrap();
    stream.write_all(b"body").unwrap();
    assert_eq!(read_message(&mut reader).unwrap().text(), "None body");
}

#[test]
fn unix_sockets_serve_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("origin.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let request = read_message(&mut BufReader::new(stream.try_clone().unwrap())).unwrap();
            stream.write_all(&ok(&request.start)).unwrap();
        }
    });
    let front = folder.path().join("front.sock");
    let text = manifest(&format!("unix:{}", path.display()), "", "");
    let text =
        text.replace("[[listener]]", &format!("[[listener]]\naddress = \"unix:{}\"\n[[listener]]", front.display()));
    let proxy = Proxy::start(&text);
    assert_eq!(proxy.get("/tcp", "").text(), "GET /tcp HTTP/1.1");
    let mut stream = std::os::unix::net::UnixStream::connect(front).unwrap();
    stream.write_all(b"GET /unix HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().text(), "GET /unix HTTP/1.1");
}

#[test]
fn connections_that_rested_go_on() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let mut stream = proxy.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").unwrap();
        // Half a head while the connection comes to rest, and a pause between requests: rests are the subject here.
        std::thread::sleep(std::time::Duration::from_millis(300));
        stream.write_all(b"X-Late: 1\r\n\r\n").unwrap();
        assert!(read_message(&mut reader).unwrap().text().contains("x-late: 1"));
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
}

#[test]
fn a_hanging_origin_holds_up_nobody_else() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!(
        "[upstream.silent]\nendpoints = [\"{}\"]\nresponse-timeout = \"1s\"\n[[route]]\npath = \"/silent\"\nupstream = \"silent\"\n",
        silent.local_addr().unwrap()
    );
    let proxy = Proxy::start(&manifest(&echo(), "", &more).replace("workers = 2", "workers = 1"));
    let mut waiting: Vec<_> = (0..20).map(|_| proxy.connect()).collect();
    let began = Instant::now();
    waiting.iter_mut().for_each(|stream| stream.write_all(b"GET /silent HTTP/1.1\r\nHost: a\r\n\r\n").unwrap());
    (0..20).for_each(|_| assert_eq!(proxy.get("/", "").status(), 200));
    assert!(began.elapsed().as_millis() < 1000, "others waited {:?}", began.elapsed());
    for stream in waiting {
        assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().status(), 504);
    }
}

#[test]
fn bytes_after_an_early_response_are_still_the_request_body() {
    let (told, seen) = mpsc::channel();
    let origin = raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap() > 2 {
            line.clear();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").unwrap();
        let mut body = vec![0; 60];
        reader.read_exact(&mut body).unwrap();
        told.send(String::from_utf8(body).unwrap()).unwrap();
    });
    let proxy = limited(&origin, "", "request-buffer = false\n");
    let mut stream = proxy.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut reader).unwrap().text(), "early");
    // Longer than a connection takes to come to rest: this silence is the subject.
    std::thread::sleep(std::time::Duration::from_millis(400));
    let body = format!("{:<60}", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(body.as_bytes()).unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), body);
    stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let more = reader.read(&mut [0; 1]);
    assert!(!matches!(more, Ok(1)), "the body was answered as a request");
}

#[test]
fn content_of_a_get_without_a_length_reaches_the_origin() {
    let proxy = Proxy::start(&manifest(&origin(|request| ok(&format!("got {}", request.text()))), "", ""));
    let mut stream = proxy.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nquery\r\n0\r\n\r\n")
        .unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().text(), "got query");
}

#[test]
fn a_slow_upload_is_not_the_endpoints_fault() {
    let text = manifest(&origin(|request| ok(&request.body.len().to_string())), "", "")
        .replace("endpoints", "response-timeout = \"500ms\"\nendpoints");
    let proxy = Proxy::start(&text);
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nConnection: close\r\n\r\n").unwrap();
    for _ in 0..6 {
        // In all longer than the limit, which is the subject.
        std::thread::sleep(std::time::Duration::from_millis(250));
        stream.write_all(b"x").unwrap();
    }
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().text(), "6");
}

/// Streams that other clients have reset are unknown soon, and what an endpoint still sends on them is an error.
#[test]
fn clients_that_vanish_end_no_response_that_shares_their_connection_to_an_endpoint() {
    const CLIENTS: usize = 10;
    const STREAMS: u32 = 50;
    // Later requests have another connection.
    const RESETS: usize = 250;
    let endpoint = http2_endpoint::endpoint(|raw| {
        let (mut first, mut reset) = (None, Vec::new());
        while let Some(frame) = raw.frame() {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(raw.send(SETTINGS, ACK, 0, &[])),
                HEADERS => {
                    first.get_or_insert(frame.stream);
                    raw.send(HEADERS, END_HEADERS, frame.stream, &[0x88]);
                    raw.send(DATA, 0, frame.stream, b"be");
                }
                RST_STREAM => {
                    reset.push(frame.stream);
                    if reset.len() == RESETS {
                        // The frame was on its way already.
                        reset.iter().for_each(|stream| {
                            raw.send(DATA, 0, *stream, b"late");
                        });
                        raw.send(PING, 0, 0, &[0; 8]);
                    }
                }
                PING if frame.flags & ACK != 0 => drop(raw.send(DATA, END_STREAM, first.unwrap(), b"gun")),
                _ => {}
            }
        }
    });
    let proxy = Proxy::start(&manifest(&endpoint, "", "").replace("workers = 2", "workers = 1"));
    let mut held = proxy.connect();
    held.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    held.read_exact(&mut [0; 15]).unwrap();
    for _ in 0..CLIENTS {
        let mut client = Raw::connect(&proxy);
        (0..STREAMS).for_each(|stream| assert!(client.request(2 * stream + 1)));
        let heads = std::iter::from_fn(|| client.frame()).filter(|frame| frame.kind == HEADERS);
        assert_eq!(heads.take(STREAMS as usize).count(), STREAMS as usize);
    }
    let mut rest = String::new();
    held.read_to_string(&mut rest).unwrap();
    // Seen before: "too_many_internal_resets" ended all that shared the connection.
    assert!(rest.ends_with("\r\n3\r\ngun\r\n0\r\n\r\n"), "{rest}");
}
