//! Streams in which both sides are silent for a while, as those of gRPC are between two messages.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::http2::{HEADERS, PING, SERVER};
use crate::http2_endpoint::endpoint;
use crate::python::{self, Python};
use crate::support::{PATIENCE, Proxy, manifest, raw_origin};

/// Rests before the first message and between two, each longer than the endpoint may pause.
const CLIENT: &str = r#"
import grpc, queue, sys, time
channel = grpc.insecure_channel(sys.argv[1])
said = queue.Queue()
answers = channel.stream_stream("/t.T/Both")(iter(said.get, None), timeout=20)
try:
    for word in [b"one", b"two"]:
        time.sleep(1.5)
        said.put(word)
        assert next(answers) == word.upper()
    said.put(None)
    assert list(answers) == []
    print("all of it")
except grpc.RpcError as error:
    print(error.code())
"#;

/// Ends its side at once, and waits for a server that takes its time.
const IMPATIENT: &str = r#"
import grpc, sys, time
channel = grpc.insecure_channel(sys.argv[1])
began = time.time()
try:
    channel.unary_unary("/t.T/Unary")(b"slow", timeout=20)
except grpc.RpcError as error:
    print(error.code(), time.time() - began < 4)
"#;

fn start(server: &Python, more: &str) -> Proxy {
    let times = format!("response-timeout = \"300ms\"\nread-timeout = \"300ms\"\nretry = false\n{more}\n[[route]]");
    let text = manifest(&format!("h2c://127.0.0.1:{}", server.first_line), "", "");
    Proxy::start(&text.replace("[[route]]", &times))
}

#[test]
fn a_stream_of_grpc_may_rest_while_it_is_open_both_ways() {
    let server = Python::start(SERVER);
    let proxy = start(&server, "");
    assert_eq!(python::run(CLIENT, &[&proxy.address]).trim(), "all of it");
    assert_eq!(python::run(IMPATIENT, &[&proxy.address]).trim(), "StatusCode.UNAVAILABLE True");
    let proxy = start(&server, "stream-timeout = \"900ms\"");
    assert_eq!(python::run(CLIENT, &[&proxy.address]).trim(), "StatusCode.UNAVAILABLE");
}

/// Starts an endpoint that sends its head alone, and then answers each line of a request body until it is silenced.
fn lines(answers: mpsc::Receiver<()>) -> String {
    let answers = Arc::new(Mutex::new(answers));
    raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
            line.clear();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        while answers.lock().unwrap().recv_timeout(PATIENCE).is_ok() {
            let _ = stream.write_all(b"3\r\nyes\r\n");
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    })
}

#[test]
fn an_exchange_of_http1_may_rest_too_until_the_client_has_sent_all() {
    let (answer, answers) = mpsc::channel();
    let times = "read-timeout = \"300ms\"\n[[route]]";
    let proxy = Proxy::start(&manifest(&lines(answers), "", "").replace("[[route]]", times));
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na\n\r\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    for _ in 0..2 {
        // Longer than the endpoint may pause: this silence is the subject.
        std::thread::sleep(Duration::from_millis(1000));
        answer.send(()).unwrap();
        let mut chunk = [0; 8];
        reader.read_exact(&mut chunk).unwrap();
        assert_eq!(&chunk, b"3\r\nyes\r\n");
    }
    // With the client's last word, the endpoint has no longer than it ever had.
    stream.write_all(b"0\r\n\r\n").unwrap();
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = reader.read_to_end(&mut rest);
    assert!(rest.is_empty() && began.elapsed() < Duration::from_secs(5), "{rest:?} {:?}", began.elapsed());
}

/// Servers of gRPC take the third PING in five minutes without content for an attack, and end all calls of the connection.
/// The first one came after 20 seconds.
#[test]
fn an_endpoint_gets_no_ping_for_a_stream_that_rests() {
    const REST: Duration = Duration::from_secs(21);
    let (telling, told) = mpsc::channel();
    let endpoint = endpoint(move |raw| {
        raw.until(|frame| frame.kind == HEADERS);
        raw.0.set_read_timeout(Some(REST)).unwrap();
        let kinds: Vec<u8> = std::iter::from_fn(|| raw.frame()).map(|frame| frame.kind).collect();
        telling.send(kinds).unwrap();
    });
    let proxy = Proxy::start(&manifest(&endpoint, "", ""));
    let mut client = proxy.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let kinds = told.recv_timeout(REST + PATIENCE).unwrap();
    assert!(!kinds.contains(&PING), "{kinds:?}");
}
