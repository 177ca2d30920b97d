//! Bodies in very small pieces: limits that count bytes also bound the cost of each piece, and a worker serves others
//! meanwhile.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::caching::{ADMIN, CACHE};
use crate::support::{Message, Proxy, manifest, ok, raw_origin, read_message};

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
