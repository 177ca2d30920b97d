//! Bodies in very small pieces: limits that count bytes also bound the cost of each piece, and a worker serves others
//! meanwhile.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::caching::{ADMIN, CACHE};
use crate::support::{Message, PATIENCE, Proxy, manifest, ok, raw_origin, read_message};

/// The chunks of a response in chunks of one byte.
const CHUNKS: usize = 2_000_000;

/// Starts an origin that answers `/tiny` in chunks of one byte, and others at once; returns its address.
fn tiny() -> String {
    raw_origin(|mut stream: TcpStream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_message(&mut reader) {
            if !request.start.contains("/tiny") {
                let _ = stream.write_all(&ok("answered"));
                continue;
            }
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=100\r\n\r\n";
            let chunks = b"1\r\nx\r\n".repeat(10_000);
            let _ = stream.write_all(head.as_bytes());
            (0..CHUNKS / 10_000).for_each(|_| drop(stream.write_all(&chunks)));
            let _ = stream.write_all(b"0\r\n\r\n");
        }
    })
}

/// Asks for `/tiny` on a connection.
fn ask(mut stream: TcpStream) -> Message {
    stream.write_all(b"GET /tiny HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

/// Asks for `/tiny`, and meanwhile for something else; returns the longest wait for that, and the growth of the
/// memory in KiB.
fn meanwhile() -> (Duration, u64) {
    let proxy = Proxy::start(&manifest(&tiny(), CACHE, ADMIN).replace("workers = 2", "workers = 1"));
    assert_eq!(proxy.get("/", "").status(), 200);
    let (before, is_over) = (proxy.memory_kib(), AtomicBool::new(false));
    let (mut longest, mut grown) = (Duration::ZERO, 0);
    let (stream, is_done) = (proxy.connect(), &is_over);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let response = ask(stream);
            is_done.store(true, Ordering::SeqCst);
            assert!(response.body.len() == CHUNKS && response.body.iter().all(|byte| *byte == b'x'));
        });
        while !is_over.load(Ordering::SeqCst) {
            let began = Instant::now();
            assert_eq!(proxy.get("/", "").status(), 200);
            longest = longest.max(began.elapsed());
            grown = grown.max(proxy.memory_kib().saturating_sub(before));
        }
    });
    (longest, grown)
}

#[test]
fn chunks_of_one_byte_hold_up_nobody_and_take_no_more_than_their_bytes() {
    let (longest, grown) = meanwhile();
    // Seen before: many seconds, and 40 bytes and more for each chunk, which the memory of the cache did not count.
    assert!(longest < Duration::from_secs(1) && grown < 24 << 10, "{longest:?}, {grown} KiB");
}

/// Starts an origin that tells of each read of a request; returns its address.
fn reading(telling: mpsc::Sender<()>) -> String {
    raw_origin(move |mut stream: TcpStream| {
        let mut bytes = [0; 4_096];
        while stream.read(&mut bytes).is_ok_and(|length| length > 0) {
            telling.send(()).unwrap();
        }
    })
}

/// Content whose bytes arrive one by one took 4 KiB for each, as each was a part of the memory that it was read into.
#[test]
fn content_that_arrives_byte_by_byte_takes_no_more_than_its_bytes() {
    const BYTES: usize = 8_000;
    let (telling, told) = mpsc::channel();
    let proxy = Proxy::start(&manifest(&reading(telling), "", "").replace("workers = 2", "workers = 1"));
    let mut upload = proxy.connect();
    upload.set_nodelay(true).unwrap();
    upload.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    let before = proxy.memory_kib();
    for _ in 0..BYTES {
        upload.write_all(b"1\r\nx\r\n").unwrap();
        told.recv_timeout(PATIENCE).unwrap();
    }
    let grown = proxy.memory_kib().saturating_sub(before);
    assert!(grown < 4 << 10, "{grown} KiB for {BYTES} bytes");
}
