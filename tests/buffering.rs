//! Slow clients in front of endpoints that serve one request at a time: the endpoint is free for others as soon as it has
//! sent its response, and is not asked before a request is there. `tests/drills/slow_clients.py` measures them beside nginx.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use plugway_test_guests::{BODIES, CALLER};
use socket2::{Domain, Socket, Type};

use crate::http2::frame;
use crate::support::{PATIENCE, Proxy, manifest, ok, origin, output, plugway, raw_origin, read_message, until, vanish};

const MIB: usize = 1 << 20;

/// The byte at a place of all content here, so that pieces out of order are seen.
fn byte(place: usize) -> u8 {
    (place % 251) as u8
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(byte).collect()
}

/// An endpoint that serves one request at a time, each on a connection of its own, as a synchronous worker does. It
/// answers `/N` with N bytes.
struct Worker {
    address: String,
    /// The first lines of the requests, in order, each with the bytes of its content.
    seen: Arc<Mutex<Vec<(String, usize)>>>,
    /// The bytes of responses that were accepted.
    sent: Arc<AtomicU64>,
}

impl Worker {
    /// Starts a worker whose responses have more fields.
    fn start(fields: &'static str) -> Worker {
        Worker::breaking_off(fields, usize::MAX)
    }

    /// Starts a worker that closes the connection after this many bytes of a response.
    fn breaking_off(fields: &'static str, most: usize) -> Worker {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, sent) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicU64>::default());
        let (log, count) = (seen.clone(), sent.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let Some(request) = read_message(&mut BufReader::new(stream.try_clone().unwrap())) else { continue };
                assert!(request.body.iter().enumerate().all(|(place, seen)| *seen == byte(place)));
                log.lock().unwrap().push((request.start.clone(), request.body.len()));
                let length = request.number();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{fields}Connection: close\r\n\r\n");
                let mut sent = stream.write_all(head.as_bytes());
                let all = content(length.min(most));
                for piece in all.chunks(64 << 10) {
                    sent = sent.and_then(|()| stream.write_all(piece));
                    count.fetch_add(sent.as_ref().map_or(0, |()| piece.len() as u64), Ordering::Relaxed);
                }
            }
        });
        Worker { address, seen, sent }
    }

    fn requests(&self) -> Vec<(String, usize)> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until no more bytes are accepted; returns how many were.
    fn until_still(&self) -> u64 {
        let (mut last, mut since) = (0, Instant::now());
        until("all stands still", || {
            let sent = self.sent.load(Ordering::Relaxed);
            if sent != last {
                (last, since) = (sent, Instant::now());
            }
            sent > 0 && since.elapsed() > Duration::from_millis(700)
        });
        last
    }
}

/// A client whose system buffers only a few KiB.
fn narrow(proxy: &Proxy) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(&proxy.address.parse::<SocketAddr>().unwrap().into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Begins a download, and reads no more than the head.
fn download(proxy: &Proxy, length: usize) -> BufReader<TcpStream> {
    let mut stream = narrow(proxy);
    write!(stream, "GET /{length} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut reader = BufReader::with_capacity(1 << 10, stream);
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    reader
}

/// Reads content, and checks each byte; returns how many came before the connection ended.
fn read_content(reader: &mut impl Read, length: usize) -> usize {
    let (mut place, mut room) = (0, vec![0; 1 << 20]);
    while place < length {
        let most = room.len().min(length - place);
        match reader.read(&mut room[..most]) {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                assert!(
                    room[..read].iter().enumerate().all(|(at, seen)| *seen == byte(place + at)),
                    "changed at {place}"
                );
                place += read;
            }
        }
    }
    place
}

fn with(origin: &str, buffers: &str, route: &str) -> Proxy {
    let text = manifest(origin, "", &format!("{route}\n"));
    Proxy::start(&format!("{text}[buffers]\n{buffers}\n"))
}

fn buffered(proxy: &Proxy, place: &str) -> f64 {
    proxy.metric(&format!("plugway_buffered_bytes{{place=\"{place}\"}}"))
}

fn until_empty(proxy: &Proxy) {
    until("nothing is buffered", || buffered(proxy, "memory") + buffered(proxy, "file") == 0.0);
}

fn files(proxy: &Proxy) -> f64 {
    proxy.metric("plugway_buffer_files_total")
}

#[test]
fn a_slow_download_holds_no_endpoint() {
    let worker = Worker::start("");
    let proxy = Proxy::start(&manifest(&worker.address, "", ""));
    let mut slow = download(&proxy, 32 * MIB);
    assert_eq!(proxy.get("/5", "").body, content(5), "the worker is free");
    assert_eq!(read_content(&mut slow, 32 * MIB), 32 * MIB);
    assert_eq!(files(&proxy), 1.0);
    until_empty(&proxy);
}

#[test]
fn a_slow_download_in_chunks_keeps_its_trailers() {
    let origin = raw_origin(|mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        for piece in content(16 * MIB).chunks(MIB) {
            stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).unwrap();
            stream.write_all(&[piece, b"\r\n"].concat()).unwrap();
        }
        stream.write_all(b"0\r\nX-Sum: 1\r\n\r\n").unwrap();
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let mut stream = narrow(&proxy);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n").unwrap();
    until("it is buffered", || files(&proxy) == 1.0);
    let mut reader = BufReader::new(stream);
    let (mut got, mut line) = (Vec::<u8>::new(), String::new());
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).unwrap();
        got.extend(&chunk[..size]);
    }
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!((got == content(16 * MIB), line.to_lowercase().trim()), (true, "x-sum: 1"));
}

#[test]
fn a_slow_stream_of_http2_holds_no_endpoint() {
    let worker = Worker::start("");
    let proxy = Proxy::start(&manifest(&worker.address, "", ""));
    let mut stream = proxy.connect();
    let settings = frame(4, 0, 0, &[]);
    let target = "/33554432";
    let head = [&[0x82, 0x86, 0x41, 1, b'a', 0x44, target.len() as u8][..], target.as_bytes()].concat();
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), settings, frame(1, 5, 1, &head)].concat();
    stream.write_all(&hello).unwrap();
    // The window stays at 64 KiB.
    assert_eq!(proxy.get("/5", "").body, content(5), "the worker is free");
    let update = |stream_id: u32| frame(8, 0, stream_id, &(1u32 << 30).to_be_bytes());
    stream.write_all(&[update(0), update(1)].concat()).unwrap();
    let (mut reader, mut got) = (BufReader::new(stream), Vec::new());
    while got.len() < 32 * MIB {
        let mut head = [0; 9];
        reader.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        reader.read_exact(&mut payload).unwrap();
        if head[3] == 0 {
            got.extend(payload);
        }
    }
    assert!(got == content(32 * MIB));
    until_empty(&proxy);
}

#[test]
fn aborted_response_is_cut_off_after_all_received_bytes() {
    let worker = Worker::breaking_off("", 10 * MIB);
    let proxy = Proxy::start(&manifest(&worker.address, "", ""));
    let mut slow = download(&proxy, 20 * MIB);
    assert_eq!(proxy.get("/5", "").body, content(5), "the worker is free");
    assert_eq!(read_content(&mut slow, 20 * MIB), 10 * MIB);
    let failed = "plugway_errors_total{route=\"*\",kind=\"connection_terminated\"}";
    until("the exchange has failed", || proxy.ask_admin("GET /metrics").text().contains(failed));
    until_empty(&proxy);
}

#[test]
fn a_client_that_leaves_takes_its_buffer_along() {
    let worker = Worker::start("");
    let proxy = Proxy::start(&manifest(&worker.address, "", ""));
    let slow = download(&proxy, 32 * MIB);
    until("it is buffered", || buffered(&proxy, "file") > 16e6);
    vanish(slow.into_inner());
    until_empty(&proxy);
    assert_eq!(proxy.get("/5", "").body, content(5));
}

#[test]
fn without_room_the_endpoint_waits_for_the_client() {
    let worker = Worker::start("");
    let proxy = with(&worker.address, "memory = \"4 MiB\"\ndisk = \"0 B\"", "");
    let mut slow = download(&proxy, 32 * MIB);
    assert!(worker.until_still() < 20 * MIB as u64);
    assert!((0.0..=4.0 * MIB as f64).contains(&buffered(&proxy, "memory")));
    assert_eq!(read_content(&mut slow, 32 * MIB), 32 * MIB);
    assert_eq!((files(&proxy), buffered(&proxy, "memory")), (0.0, 0.0));
}

#[test]
fn a_full_disk_is_a_warning_and_loses_nothing() {
    let worker = Worker::start("");
    let proxy = with(&worker.address, "memory = \"16 MiB\"\ndisk = \"4 MiB\"", "");
    let mut slow = download(&proxy, 32 * MIB);
    assert!(worker.until_still() < 30 * MIB as u64);
    assert!(proxy.wait_log("fill all room on disk").contains("buffers.disk"));
    assert_eq!(read_content(&mut slow, 32 * MIB), 32 * MIB);
    until_empty(&proxy);
}

#[test]
fn a_folder_that_takes_no_files_is_a_warning_and_loses_nothing() {
    let worker = Worker::start("");
    let proxy = with(&worker.address, "folder = \"/proc\"", "");
    let mut slow = download(&proxy, 32 * MIB);
    assert!(proxy.wait_log("can't be buffered on disk").contains("buffers.folder"));
    assert!(worker.until_still() < 32 * MIB as u64);
    assert_eq!(read_content(&mut slow, 32 * MIB), 32 * MIB);
    assert_eq!(proxy.metric("plugway_buffer_failures_total"), 1.0);
}

#[test]
fn a_route_may_have_its_endpoints_wait() {
    let worker = Worker::start("");
    let proxy = with(&worker.address, "", "response-buffer = false");
    let mut slow = download(&proxy, 32 * MIB);
    assert!(worker.until_still() < 20 * MIB as u64);
    assert_eq!(buffered(&proxy, "memory"), 0.0);
    assert_eq!(read_content(&mut slow, 32 * MIB), 32 * MIB);
    let worker = Worker::start("");
    let small = with(&worker.address, "", "response-buffer = \"2 MiB\"");
    let _slow = download(&small, 32 * MIB);
    worker.until_still();
    assert!((1.0..4.0 * MIB as f64).contains(&(buffered(&small, "memory") + buffered(&small, "file"))));
}

#[test]
fn conversations_are_not_read_ahead() {
    for fields in
        ["Content-Type: text/event-stream\r\n", "Content-Type: application/grpc+proto\r\n", "X-Accel-Buffering: no\r\n"]
    {
        let worker = Worker::start(fields);
        let proxy = Proxy::start(&manifest(&worker.address, "", ""));
        let _slow = download(&proxy, 32 * MIB);
        assert!(worker.until_still() < 20 * MIB as u64, "{fields}");
        assert_eq!(buffered(&proxy, "memory") + buffered(&proxy, "file"), 0.0, "{fields}");
    }
}

#[test]
fn bytes_pass_as_they_come() {
    // Each event waits for the client to have the one before.
    let (go, may) = mpsc::channel::<()>();
    let may = Arc::new(Mutex::new(may));
    let origin = raw_origin(move |mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        for _ in 0..5 {
            stream.write_all(b"4\r\nping\r\n").unwrap();
            may.lock().unwrap().recv().unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    for _ in 0..5 {
        while !line.contains("ping") {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        line.clear();
        go.send(()).unwrap();
    }
}

#[test]
fn many_slow_clients_stay_within_the_memory() {
    let origin = raw_origin(|mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n");
        let _ = stream.write_all(&content(8 * MIB));
    });
    let proxy = with(&origin, "memory = \"8 MiB\"", "");
    let mut clients: Vec<_> = (0..30).map(|_| download(&proxy, 8 * MIB)).collect();
    until("all responses are in files", || files(&proxy) == 30.0 && buffered(&proxy, "file") > 30.0 * 2e6);
    // What is on its way to the client's system isn't counted: some 3 MiB a client.
    assert!(buffered(&proxy, "memory") <= 8e6);
    assert_eq!(read_content(&mut clients[29], 8 * MIB), 8 * MIB);
    assert_eq!(read_content(&mut clients[0], 8 * MIB), 8 * MIB);
    drop(clients);
    until_empty(&proxy);
}

// === Requests ===

/// Sends the head of an upload and a part of its content.
fn upload(proxy: &Proxy, length: usize, part: usize) -> TcpStream {
    let mut stream = proxy.connect();
    write!(stream, "POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").unwrap();
    stream.write_all(&content(length)[..part]).unwrap();
    stream
}

fn answer(stream: &TcpStream) -> crate::support::Message {
    read_message(&mut BufReader::new(stream.try_clone().unwrap())).unwrap()
}

fn post(bytes: usize) -> (String, usize) {
    ("POST /3 HTTP/1.1".into(), bytes)
}

fn get() -> (String, usize) {
    ("GET /5 HTTP/1.1".into(), 0)
}

#[test]
fn a_slow_upload_holds_no_endpoint() {
    let worker = Worker::start("");
    let proxy = Proxy::start(&manifest(&worker.address, "", ""));
    let mut slow = upload(&proxy, MIB, 100_000);
    until("the upload has begun", || buffered(&proxy, "memory") >= 100_000.0);
    assert_eq!(proxy.get("/5", "").body, content(5), "the worker is free");
    slow.write_all(&content(MIB)[100_000..]).unwrap();
    assert_eq!((answer(&slow).body, worker.requests()), (content(3), vec![get(), post(MIB)]));
    until_empty(&proxy);
}

#[test]
fn a_client_that_leaves_its_upload_reaches_no_endpoint() {
    let worker = Worker::start("");
    let proxy = Proxy::start(&manifest(&worker.address, "", ""));
    let slow = upload(&proxy, MIB, 100_000);
    until("the upload has begun", || buffered(&proxy, "memory") >= 100_000.0);
    vanish(slow);
    until_empty(&proxy);
    let ended = upload(&proxy, MIB, 100_000);
    until("the upload has begun", || buffered(&proxy, "memory") >= 100_000.0);
    ended.shutdown(Shutdown::Write).unwrap();
    until_empty(&proxy);
    proxy.get("/5", "");
    assert_eq!(worker.requests(), [get()]);
}

#[test]
fn the_proxy_answers_an_expectation_of_what_it_collects() {
    let worker = Worker::start("");
    let proxy = Proxy::start(&manifest(&worker.address, "", ""));
    let mut stream = proxy.connect();
    stream.write_all(b"POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(answer(&stream).status(), 100);
    assert_eq!(proxy.get("/5", "").body, content(5));
    stream.write_all(&content(9)).unwrap();
    assert_eq!((answer(&stream).status(), worker.requests()), (200, vec![get(), post(9)]));
}

#[test]
fn limits_hold_while_a_request_is_collected() {
    let worker = Worker::start("");
    let text = manifest(&worker.address, "", "request-buffer = \"1 MiB\"\nmax-body = \"1 KiB\"\n");
    let text = text.replace("[upstream.app]", "limits = { body-timeout = \"1s\" }\n[upstream.app]");
    let proxy = Proxy::start(&text);
    let mut long = proxy.connect();
    write!(long, "POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n401\r\n").unwrap();
    long.write_all(&content(0x401)).unwrap();
    assert_eq!(answer(&long).status(), 413);
    assert_eq!(answer(&upload(&proxy, 1000, 10)).status(), 408);
    assert_eq!(worker.requests(), []);
}

#[test]
fn content_of_an_unknown_length_goes_on_unless_the_route_says_otherwise() {
    let (told, seen) = mpsc::channel();
    let origin = raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
            line.clear();
        }
        line.clear();
        while reader.read_line(&mut line).is_ok_and(|length| length > 0) && line != "0\r\n" {
            told.send(std::mem::take(&mut line)).unwrap();
        }
        stream.write_all(&ok("done")).unwrap();
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").unwrap();
    let next = || seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!((next().as_str(), next().as_str()), ("5\r\n", "hello\r\n"));
    stream.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(answer(&stream).text(), "done");
}

#[test]
fn collected_chunks_get_a_length_or_keep_their_trailers() {
    let origin = raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut text, mut line) = (String::new(), String::new());
        while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
            text += &std::mem::take(&mut line).to_lowercase();
        }
        let mut rest = [0; 23];
        let length = if text.contains("content-length: 5") { 5 } else { rest.len() };
        reader.read_exact(&mut rest[..length]).unwrap();
        stream.write_all(&ok(&format!("{text}|{}", String::from_utf8_lossy(&rest[..length])))).unwrap();
    });
    let proxy = with(&origin, "", "request-buffer = \"1 MiB\"");
    let send = |end: &str| {
        let mut stream = proxy.connect();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n";
        write!(stream, "{head}2\r\nhe\r\n3\r\nllo\r\n0\r\n{end}\r\n").unwrap();
        answer(&stream).text()
    };
    let plain = send("");
    assert!(plain.contains("content-length: 5\r\n") && plain.ends_with("|hello"), "{plain}");
    let trailed = send("X-Sum: 1\r\n");
    assert!(trailed.contains("transfer-encoding: chunked\r\n"), "{trailed}");
    assert!(trailed.ends_with("|5\r\nhello\r\n0\r\nx-sum: 1\r\n"), "{trailed}");
}

#[test]
fn long_uploads_are_collected_in_a_file_where_the_route_says_so() {
    let worker = Worker::start("");
    let proxy = with(&worker.address, "memory = \"16 MiB\"", "request-buffer = \"64 MiB\"");
    let mut slow = proxy.connect();
    write!(slow, "POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", 20 * MIB).unwrap();
    slow.write_all(&content(20 * MIB)).unwrap();
    until("it is in a file", || buffered(&proxy, "file") > 15e6);
    assert_eq!(proxy.get("/5", "").body, content(5), "the worker is free");
    slow.write_all(b"\r\n0\r\n\r\n").unwrap();
    assert_eq!((answer(&slow).status(), worker.requests()), (200, vec![get(), post(20 * MIB)]));
    until_empty(&proxy);
}

#[test]
fn body_longer_than_the_buffer_is_sent_whole() {
    let worker = Worker::start("");
    for buffers in ["memory = \"4 MiB\"\ndisk = \"0 B\"", "memory = \"16 MiB\"\nfolder = \"/proc\""] {
        let proxy = with(&worker.address, buffers, "request-buffer = \"2 MiB\"");
        let mut slow = upload(&proxy, 2 * MIB, 2 * MIB - 1);
        assert_eq!(slow.write(&content(2 * MIB)[2 * MIB - 1..]).unwrap(), 1);
        assert_eq!(answer(&slow).status(), 200, "{buffers}");
        until_empty(&proxy);
    }
    let proxy = with(&worker.address, "", "request-buffer = \"1 MiB\"");
    let mut slow = proxy.connect();
    write!(slow, "POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", 3 * MIB).unwrap();
    slow.write_all(&[content(3 * MIB), b"\r\n0\r\n\r\n".to_vec()].concat()).unwrap();
    assert_eq!(answer(&slow).status(), 200);
    assert_eq!(worker.requests(), [post(2 * MIB), post(2 * MIB), post(3 * MIB)]);
}

#[test]
fn a_collected_request_is_sent_again_whatever_its_length() {
    // Reads a request, and closes without a word.
    let mute = raw_origin(|stream| drop(read_message(&mut BufReader::new(stream))));
    let worker = Worker::start("");
    let text = manifest(&mute, "", "request-buffer = \"64 MiB\"\n");
    let both = format!("endpoints = [{mute:?}, {:?}]", worker.address);
    let text = text.replace(&format!("endpoints = [{mute:?}]"), &both);
    let proxy = Proxy::start(&format!("{text}[buffers]\nmemory = \"16 MiB\"\n"));
    for _ in 0..2 {
        let mut stream = proxy.connect();
        write!(stream, "PUT /3 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 8 * MIB).unwrap();
        stream.write_all(&content(8 * MIB)).unwrap();
        assert_eq!(answer(&stream).status(), 200);
    }
    assert_eq!(worker.requests(), vec![("PUT /3 HTTP/1.1".to_string(), 8 * MIB); 2]);
    until_empty(&proxy);
}

// === gunicorn ===

/// gunicorn with one synchronous worker, until dropped.
struct Gunicorn {
    child: Child,
    address: String,
}

impl Gunicorn {
    fn start() -> Gunicorn {
        let python = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-venv/bin/python");
        assert!(std::path::Path::new(python).exists(), "gunicorn is missing: run tests/run, which installs it");
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let app = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/support");
        let mut command = Command::new(python);
        // Its worker would be killed after 30 seconds, and another one would serve.
        command.args(["-m", "gunicorn", "--timeout", "600", "--bind", &address, "--chdir", app, "wsgi:bulk"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("gunicorn listens", || TcpStream::connect(&address).is_ok());
        Gunicorn { child, address }
    }
}

impl Drop for Gunicorn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn gunicorn_with_one_worker_serves_others_beside_slow_clients() {
    let gunicorn = Gunicorn::start();
    let proxy = Proxy::start(&manifest(&gunicorn.address, "", ""));
    let mut down = download(&proxy, 64 * MIB);
    let mut up = upload(&proxy, MIB, MIB - 1);
    until("the upload has begun", || buffered(&proxy, "memory") >= 1e6);
    assert_eq!(proxy.get("/7", "").body.len(), 7, "the worker is free");
    up.write_all(b"x").unwrap();
    assert_eq!(answer(&up).field("x-received"), Some("1048576"));
    assert_eq!(std::io::copy(&mut (&mut down).take(64 << 20), &mut std::io::sink()).unwrap(), 64 << 20);
    until_empty(&proxy);
}

#[test]
fn the_command_proxy_receives_slow_uploads_before_it_asks_gunicorn() {
    let gunicorn = Gunicorn::start();
    let mut command = Command::new("sh");
    // The shell ignores the arguments for a manifest.
    let program = plugway().get_program().to_owned();
    command.arg("-c").arg(format!("exec {program:?} proxy --to {} --listen 127.0.0.1:0", gunicorn.address));
    let proxy = Proxy::start_by(command, tempfile::tempdir().unwrap().path(), "");
    let uploads = ["Content-Length: 3145728\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n300000\r\n"].map(|framing| {
        let mut slow = proxy.connect();
        write!(slow, "POST / HTTP/1.1\r\nHost: a\r\n{framing}").unwrap();
        slow.write_all(&content(3 * MIB - 1)).unwrap();
        slow
    });
    for _ in 0..20 {
        assert_eq!(proxy.get("/7", "").body.len(), 7, "the worker is free");
    }
    for (mut slow, end) in uploads.into_iter().zip(["x", "x\r\n0\r\n\r\n"]) {
        slow.write_all(end.as_bytes()).unwrap();
        assert_eq!(answer(&slow).field("x-received"), Some("3145728"));
    }
}

/// Returns a manifest with an upstream that serves one connection at a time, and one for the path `/free`.
fn one_at_a_time(origin: &str, free: &str) -> String {
    let more = "[upstream.app.limits]\nconnections = 1\npending = 100\n";
    let more =
        format!("{more}[upstream.free]\nendpoints = [{free:?}]\n[[route]]\npath = \"/free\"\nupstream = \"free\"\n");
    manifest(origin, "", &more)
}

/// Returns an origin that answers with the length of a request's content.
fn measuring() -> String {
    origin(|request| ok(&request.body.len().to_string()))
}

#[test]
fn uploads_over_http2_that_wait_for_a_connection_reach_it_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("content");
    std::fs::write(&file, content(3 * MIB / 2)).unwrap();
    let proxy = Proxy::start(&one_at_a_time(&measuring(), &measuring()));
    let uris = ["1", "2", "free"].map(|path| format!("http://{}/{path}", proxy.address));
    let mut load = Command::new("h2load");
    let report = output(load.args(["-n", "9", "-c", "1", "-m", "9", "-d"]).arg(&file).args(uris));
    assert!(report.contains("status codes: 9 2xx"), "{report}");
}

/// Sends uploads with fields to `/stuck` on one HTTP/2 connection, and one to `/free`, which has to end while the others
/// wait. Then calls `release` and returns all responses, or the response of `/free` alone if nothing releases the others.
fn beside_waiting(proxy: &Proxy, fields: [&str; 2], release: Option<&dyn Fn()>) -> Vec<String> {
    use http_body_util::{BodyExt, Full};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(&proxy.address).await.unwrap();
        let (executor, socket) = (hyper_util::rt::TokioExecutor::new(), hyper_util::rt::TokioIo::new(stream));
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, socket).await.unwrap();
        tokio::spawn(connection);
        let mut upload = |path: &str| {
            let request = http::Request::post(format!("http://{}/{path}", proxy.address)).header(fields[0], fields[1]);
            let content = Full::new(bytes::Bytes::from(content(3 * MIB / 2)));
            let sent = sender.send_request(request.body(content).unwrap());
            async { sent.await.unwrap().into_body().collect().await.unwrap().to_bytes() }
        };
        let waiting: Vec<_> = (0..8).map(|_| tokio::spawn(upload("stuck"))).collect();
        let free = tokio::time::timeout(PATIENCE, upload("free")).await.expect("the upload stands still");
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        let mut received = vec![free];
        if let Some(release) = release {
            release();
            for waiting in waiting {
                received.push(waiting.await.unwrap());
            }
        }
        received.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    })
}

#[test]
fn uploads_over_http2_that_wait_hold_up_no_upload_to_another_upstream() {
    let silent = raw_origin(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let text = one_at_a_time(&silent, &measuring());
    let proxy = Proxy::start(&text.replace("[upstream.app]\n", "[upstream.app]\nconnect-timeout = \"10m\"\n"));
    assert_eq!(beside_waiting(&proxy, ["accept", "*/*"], None), [(3 * MIB / 2).to_string()]);
}

/// Starts a listener whose connections are accepted and never read, as of an application with no worker free.
fn unread() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 4 << 10).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Returns a manifest with two upstreams: one for the path `/free`, and one for all others.
fn two_upstreams(origin: &str, free: &str) -> String {
    one_at_a_time(origin, free).replace("[upstream.app.limits]\nconnections = 1\npending = 100\n", "")
}

/// Sends uploads to `/stuck` on one HTTP/2 connection, more than all sockets and windows hold, and a longer one to `/free`.
/// Calls `meanwhile`, and returns the response of `/free`.
fn beside_stuck(proxy: &Proxy, meanwhile: impl FnOnce(&tokio::task::JoinHandle<bytes::Bytes>)) -> String {
    use http_body_util::{BodyExt, Full};
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let content = bytes::Bytes::from(content(LONG));
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(&proxy.address).await.unwrap();
        let (executor, socket) = (hyper_util::rt::TokioExecutor::new(), hyper_util::rt::TokioIo::new(stream));
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, socket).await.unwrap();
        tokio::spawn(connection);
        let mut upload = |path: &str, length: usize| {
            let request = http::Request::post(format!("http://{}/{path}", proxy.address));
            sender.send_request(request.body(Full::new(content.slice(..length))).unwrap())
        };
        let stuck: Vec<_> = (0..8).map(|_| tokio::spawn(upload("stuck", LONG / 3))).collect();
        let free = upload("free", LONG);
        let free = tokio::spawn(async { free.await.unwrap().into_body().collect().await.unwrap().to_bytes() });
        meanwhile(&free);
        let free = tokio::time::timeout(PATIENCE, free).await.expect("the upload stands still").unwrap();
        drop(stuck);
        String::from_utf8_lossy(&free).into_owned()
    })
}

/// The length of an upload that ends long after others have shut the window.
const LONG: usize = 24 * MIB;

#[test]
fn uploads_over_http2_that_an_endpoint_does_not_read_hold_up_no_upload_to_another_upstream() {
    let (_listener, http1) = unread();
    // The endpoint opens no window.
    let http2 = crate::http2_endpoint::endpoint(|raw| while raw.frame().is_some() {});
    for address in [http1, http2] {
        let proxy = Proxy::start(&two_upstreams(&address, &measuring()));
        assert_eq!(beside_stuck(&proxy, |_| ()), LONG.to_string(), "{address}");
        assert!(!proxy.has_logged("limits.body-rate"));
    }
}

#[test]
fn an_upload_is_not_slow_while_others_that_find_no_room_shut_its_window() {
    let (listener, address) = unread();
    let text = two_upstreams(&address, &measuring());
    let limits = "address = \"127.0.0.1:0\"\nlimits = { body-timeout = \"1s\" }\n";
    let text = text.replace("address = \"127.0.0.1:0\"\n", limits);
    let proxy = Proxy::start(&format!("{text}[buffers]\nmemory = \"4 MiB\"\ndisk = \"0 B\"\n"));
    let received = beside_stuck(&proxy, |free| {
        // The subject: a time that is longer than the limit.
        std::thread::sleep(Duration::from_secs(3));
        assert!(!free.is_finished(), "the window is open, or the client is called slow");
        drop(listener);
    });
    assert_eq!(received, LONG.to_string());
}

/// Returns an origin that answers with the length of a request's content, which is that of [`content`].
fn comparing() -> String {
    origin(|request| {
        assert_eq!(request.body, content(request.body.len()), "content is out of order");
        ok(&request.body.len().to_string())
    })
}

/// Starts an origin that answers once it is released, and returns its address and the release.
fn held_until_released() -> (String, impl Fn()) {
    let (release, released) = mpsc::channel::<()>();
    let (release, released) = (Mutex::new(Some(release)), Arc::new(Mutex::new(released)));
    let address = origin(move |_| {
        let _ = released.lock().unwrap().recv();
        ok("")
    });
    (address, move || drop(release.lock().unwrap().take()))
}

/// Returns a manifest whose plugin `caller` asks an upstream, with a route `/free` that has no plugins.
fn asking(origin: &str, asked: &str, more: &str) -> String {
    let more = format!(
        "[upstream.auth]\nendpoints = [{asked:?}]\nread-timeout = \"10m\"\n\
         [plugin.caller]\nuse = {CALLER:?}\ngrants.http = [{{ upstream = \"auth\" }}]\n{more}\n\
         [[route]]\npath = \"/free\"\nupstream = \"app\"\n"
    );
    manifest(origin, "\"caller\"", &more)
}

#[test]
fn uploads_over_http2_that_wait_for_a_head_hook_hold_up_no_other_upload() {
    let (asked, release) = held_until_released();
    let proxy = Proxy::start(&asking(&comparing(), &asked, "limits.call-time = \"60s\""));
    let received = beside_waiting(&proxy, ["x-call", "http://auth/"], Some(&release));
    assert_eq!(received, vec![(3 * MIB / 2).to_string(); 9]);
}

#[test]
fn uploads_over_http2_that_wait_for_a_body_hook_hold_up_no_other_upload() {
    let (asked, release) = held_until_released();
    let more = "config.bodies = \"stream\"\nconfig.body-timeout = 60000\nlimits.call-time = \"60s\"";
    let proxy = Proxy::start(&asking(&measuring(), &asked, more));
    let received = beside_waiting(&proxy, ["x-body-call", "http://auth/"], Some(&release));
    assert_eq!(received[0], (3 * MIB / 2).to_string());
    assert!(received.iter().all(|length| length.parse::<usize>().unwrap() >= 3 * MIB / 2), "{received:?}");
}

#[test]
fn uploads_over_http2_that_wait_for_room_in_a_plugin_pass_it_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("content");
    std::fs::write(&file, content(300_000)).unwrap();
    let more = format!("[plugin.bodies]\nuse = {BODIES:?}\nconfig.bodies = \"skip\"\n");
    let more = format!("{more}limits = {{ bodies = 8, body-wait = \"20s\" }}\n");
    let proxy = Proxy::start(&manifest(&measuring(), "\"bodies\"", &more));
    let uri = format!("http://{}/", proxy.address);
    let mut load = Command::new("h2load");
    let report =
        output(load.args(["-n", "12", "-c", "1", "-m", "12", "-H", "x-body: stream", "-d"]).arg(&file).arg(uri));
    assert!(report.contains("status codes: 12 2xx"), "{report}");
}
