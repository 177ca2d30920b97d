//! HTTP/2: real clients, and what an attacker can do with it.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::python::{self, Python};
use crate::support::{PATIENCE, Proxy, echo, limited, manifest, ok, origin, output, raw_origin, read_message};

fn curl(proxy: &Proxy, args: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "30"]);
    output(curl.args(args).arg(format!("http://{}/", proxy.address)))
}

#[test]
fn http2_is_spoken_in_clear_with_who_knows_it_beforehand() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let got = curl(&proxy, &["--write-out", "HTTP/%{http_version}", "--cookie", "a=1; b=2", "--data", "hello"]);
    assert!(got.ends_with("HTTP/2") && got.starts_with("POST / HTTP/1.1"), "{got}");
    assert!(got.contains("via: 2 plugway") && got.contains("cookie: a=1; b=2"), "{got}");
    let one = output(Command::new("curl").args(["--silent", &format!("http://{}/", proxy.address)]));
    assert!(one.contains("via: 1.1 plugway"), "the same listener: {one}");
}

#[test]
fn many_streams_share_a_connection() {
    let proxy = Proxy::start(&manifest(&origin(|_| ok("hello")), "", ""));
    let address = format!("http://{}/", proxy.address);
    let report = output(Command::new("h2load").args(["-n", "2000", "-c", "2", "-m", "50", &address]));
    assert!(report.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{report}");
    assert!(report.contains("status codes: 2000 2xx"), "{report}");
}

#[test]
fn a_stop_tells_the_client_and_finishes_its_streams() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(std::sync::Mutex::new(held));
    let (arrived, arrivals) = std::sync::mpsc::channel();
    let origin = origin(move |_| {
        arrived.send(()).unwrap();
        held.lock().unwrap().recv().unwrap();
        ok("late")
    });
    let mut proxy = Proxy::start(&manifest(&origin, "", ""));
    let mut client = Raw::connect(&proxy);
    client.request(1);
    arrivals.recv_timeout(PATIENCE).unwrap();
    proxy.signal("TERM");
    client.until(|frame| frame.kind == GOAWAY);
    let ping = client.until(|frame| frame.kind == PING);
    client.send(PING, ACK, 0, &ping.payload);
    release.send(()).unwrap();
    let end = client.until(|frame| frame.kind == DATA && frame.flags & END_STREAM != 0);
    assert_eq!((end.stream, end.payload.as_slice()), (1, &b"late"[..]));
    assert_eq!(proxy.wait_exit(), Some(0));
}

#[test]
fn announced_trailers_of_a_request_with_a_length_reach_an_endpoint_of_http1() {
    let proxy = Proxy::start(&manifest(&whole_request(), "", ""));
    let post = [&[0x83_u8][..], &GET[1..]].concat();
    let ask = |stream: u32, fields: &[(&str, &str)]| {
        let mut client = Raw::connect(&proxy);
        let fields = [&[("content-length", "3")], fields].concat();
        client.send(HEADERS, END_HEADERS, stream, &crate::http2_endpoint::head(&post, &fields));
        client.send(DATA, 0, stream, b"abc");
        let trailers = crate::http2_endpoint::head(&[], &[("x-sum", "900150983")]);
        client.send(HEADERS, END_HEADERS | END_STREAM, stream, &trailers);
        let answer = client.until(|frame| frame.kind == DATA && !frame.payload.is_empty());
        String::from_utf8(answer.payload).unwrap()
    };
    let announced = ask(1, &[("trailer", "x-sum")]);
    assert!(announced.contains("transfer-encoding: chunked") && !announced.contains("content-length"), "{announced}");
    assert!(announced.contains("trailer: x-sum\r\n"), "{announced}");
    assert!(announced.ends_with("3\r\nabc\r\n0\r\nx-sum: 900150983\r\n\r\n"), "{announced}");
    let unannounced = ask(1, &[]);
    assert!(unannounced.contains("content-length: 3\r\n") && unannounced.ends_with("\r\n\r\nabc"), "{unannounced}");
}

/// nginx ends its connection for trailers, and with it the exchanges of others that share it.
#[test]
fn trailers_of_a_request_pass_over_no_shared_connection_to_an_endpoint() {
    let connections = Arc::new(AtomicUsize::new(0));
    let endpoint = crate::http2_endpoint::endpoint(move |raw| {
        let connection = connections.fetch_add(1, Ordering::SeqCst).to_string();
        let mut begun = 0;
        while let Some(frame) = raw.frame() {
            let has_trailers = frame.kind == HEADERS && frame.stream == begun;
            if frame.kind == HEADERS {
                begun = frame.stream;
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                let fields =
                    [("x-connection", connection.as_str()), ("x-trailers", if has_trailers { "y" } else { "n" })];
                raw.respond(frame.stream, &fields, b"");
            }
        }
    });
    let proxy = Proxy::start(&manifest(&endpoint, "", ""));
    let ask = |announced: &str| {
        let mut stream = proxy.connect();
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{announced}Transfer-Encoding: chunked");
        write!(stream, "{head}\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n").unwrap();
        let answer = read_message(&mut BufReader::new(stream)).unwrap();
        ["x-connection", "x-trailers"].map(|name| answer.field(name).unwrap_or_default().to_string())
    };
    // Connections are each worker's own: a connection that one has seen without trailers is shared. Other content of unknown
    // length than that of gRPC has a connection of its own too.
    let unannounced: Vec<_> = (0..8).map(|_| ask("Content-Type: application/grpc\r\n")).collect();
    assert!(unannounced.iter().all(|[_, trailers]| trailers == "n"), "{unannounced:?}");
    for _ in 0..8 {
        let [connection, trailers] = ask("Trailer: X-Sum\r\n");
        assert_eq!(trailers, "y");
        assert!(!unannounced.iter().any(|[shared, _]| *shared == connection), "{connection} of {unannounced:?}");
    }
}

/// Starts an origin that answers with the bytes of a request whose content ends with `abc` or with trailers.
fn whole_request() -> String {
    raw_origin(|mut stream| {
        let (mut request, mut piece) = (Vec::new(), [0; 1024]);
        let is_whole = |request: &[u8]| {
            let text = String::from_utf8_lossy(request);
            text.split_once("\r\n\r\n").is_some_and(|(_, content)| content == "abc" || content.ends_with("\r\n\r\n"))
        };
        while !is_whole(&request) {
            match stream.read(&mut piece) {
                Ok(1..) if request.len() < 10_000 => {}
                _ => return,
            }
            request.extend_from_slice(piece.split(|byte| *byte == 0).next().unwrap());
            piece.fill(0);
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", request.len());
        let _ = stream.write_all(&[head.as_bytes(), &request].concat());
    })
}

// === gRPC ===

/// A server with a method of each kind, over bytes.
pub const SERVER: &str = r#"
import grpc, time
from concurrent import futures
def unary(request, context):
    if request == b"fail":
        context.set_trailing_metadata((("reason", "told"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish")
    if request == b"deadline":
        return str(round(context.time_remaining())).encode()
    if request == b"slow":
        time.sleep(5)
    context.set_trailing_metadata((("after", "all"),))
    return request[::-1]
def server_stream(request, context):
    for n in range(5):
        yield request + str(n).encode()
def client_stream(requests, context):
    return b"".join(requests)
def both(requests, context):
    for request in requests:
        yield request.upper()
handler = grpc.method_handlers_generic_handler("t.T", {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Server": grpc.unary_stream_rpc_method_handler(server_stream),
    "Client": grpc.stream_unary_rpc_method_handler(client_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
})
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((handler,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
"#;

const CLIENT: &str = r#"
import grpc, queue, sys, time
channel = grpc.insecure_channel(sys.argv[1])
answer, call = channel.unary_unary("/t.T/Unary").with_call(b"abc", timeout=20)
assert answer == b"cba" and ("after", "all") in call.trailing_metadata(), call.trailing_metadata()
assert int(channel.unary_unary("/t.T/Unary")(b"deadline", timeout=40)) in (39, 40)
try:
    channel.unary_unary("/t.T/Unary")(b"fail", timeout=20)
    assert False
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and error.details() == "as you wish"
    assert ("reason", "told") in error.trailing_metadata()
try:
    channel.unary_unary("/t.T/Unary")(b"slow", timeout=1)
    assert False
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
assert list(channel.unary_stream("/t.T/Server")(b"n", timeout=20)) == [b"n0", b"n1", b"n2", b"n3", b"n4"]
assert channel.stream_unary("/t.T/Client")(iter([b"a", b"b" * 100_000, b"c"]), timeout=20) == b"a" + b"b" * 100_000 + b"c"
said = queue.Queue()
answers = channel.stream_stream("/t.T/Both")(iter(said.get, None), timeout=20)
for word in [b"one", b"two", b"three"]:
    said.put(word)
    assert next(answers) == word.upper()
said.put(None)
assert list(answers) == []
print("all kinds")
"#;

#[test]
fn grpc_passes_in_all_its_kinds() {
    let server = Python::start(SERVER);
    let plugin = "{ use = \"headers\", config.response.set = { X-Seen = \"yes\" } }";
    let proxy = Proxy::start(&manifest(&format!("h2c://127.0.0.1:{}", server.first_line), plugin, ""));
    assert_eq!(python::run(CLIENT, &[&proxy.address]).trim(), "all kinds");
}

/// A client that prints the status and the details of failed calls, with the metadata that it got.
const FAILING_CLIENT: &str = r#"
import grpc, sys
channel = grpc.insecure_channel(sys.argv[1])
for service in sys.argv[2:]:
    try:
        channel.unary_unary(f"/{service}/Unary")(b"abc", timeout=20)
        assert False
    except grpc.RpcError as error:
        metadata = dict(list(error.initial_metadata() or ()) + list(error.trailing_metadata() or ()))
        print(service, error.code().name, error.details(), metadata.get("proxy-status"))
"#;

/// A client of gRPC shows no content, and no reason of an HTTP status.
#[test]
fn errors_reach_grpc_clients_with_a_status_and_a_reason() {
    let denied = "plugins = [{ use = \"ip-filter\", config = { deny = [\"127.0.0.0/8\"] } }]";
    let text = manifest("h2c://127.0.0.1:1", "", "").replacen("[[route]]", "[[route]]\npath = \"/dead.T\"", 1)
        + &format!(
            "\n[[route]]\npath = \"/denied.T\"\nupstream = \"app\"\n{denied}\n\
                   [[route]]\npath = \"/fixed.T\"\nrespond = {{ status = 503 }}\n"
        );
    let proxy = Proxy::start(&text);
    let got = python::run(FAILING_CLIENT, &[&proxy.address, "dead.T", "denied.T", "fixed.T", "none.T"]);
    let lines: Vec<&str> = got.lines().collect();
    for (line, start, end) in [
        (0, "dead.T UNAVAILABLE 502 Bad Gateway: connection_refused (request ", "plugway; error=connection_refused"),
        (1, "denied.T PERMISSION_DENIED 403 Forbidden (request ", "None"),
        (2, "fixed.T UNAVAILABLE 503 Service Unavailable (request ", "None"),
        (3, "none.T UNIMPLEMENTED 404 Not Found: ", ""),
    ] {
        let found = lines.get(line).copied().unwrap_or_default();
        assert!(found.starts_with(start) && found.ends_with(end), "{got}");
    }
    // The head ends the stream.
    let head = output(
        Command::new("curl")
            .args(["-si", "--http2-prior-knowledge", "-H", "Content-Type: application/grpc+proto"])
            .args(["-X", "POST", &format!("http://{}/dead.T/Unary", proxy.address)]),
    );
    assert!(
        head.starts_with("HTTP/2 200")
            && head.contains("grpc-status: 14")
            && head.contains("content-type: application/grpc+proto"),
        "{head}"
    );
}

// === Raw frames ===

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// `GET http://a/`, by the static table of HPACK and one literal.
pub const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'a'];

/// A client that sends whatever it likes.
pub struct Raw(pub TcpStream);

/// A frame that a client received.
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Returns the number of body bytes in the frame.
    pub fn content(&self) -> usize {
        if self.kind == DATA { self.payload.len() } else { 0 }
    }
}

/// Returns the bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

impl Raw {
    pub fn connect(proxy: &Proxy) -> Raw {
        Raw::over(proxy.connect())
    }

    /// Begins HTTP/2 on a connection.
    pub fn over(stream: TcpStream) -> Raw {
        let mut raw = Raw(stream);
        raw.0.set_nodelay(true).unwrap();
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        raw.send(SETTINGS, 0, 0, &[]);
        raw
    }

    /// Sends a frame; `false` once the proxy accepts no more.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.0.write_all(&frame(kind, flags, stream, payload)).is_ok()
    }

    pub fn request(&mut self, stream: u32) -> bool {
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, GET)
    }

    pub fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    pub fn until(&mut self, mut wanted: impl FnMut(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.frame().expect("the connection ended before");
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// Returns the error code with which the proxy closes the connection.
    pub fn goaway(&mut self) -> u32 {
        let frame = self.until(|frame| frame.kind == GOAWAY);
        u32::from_be_bytes(frame.payload[4..8].try_into().unwrap())
    }
}

/// Checks that a second connection is served, whatever the first does.
fn serves_others(proxy: &Proxy) {
    assert!(curl(proxy, &[]).contains("GET / HTTP/1.1"));
}

/// Checks that a client gets ENHANCE_YOUR_CALM if it sends a frame on each of its streams right after the request.
fn ends_calmly_after(kind: u8, payload: u32) {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let mut client = Raw::connect(&proxy);
    for stream in (1..20_000).step_by(2) {
        if !client.request(stream) || !client.send(kind, 0, stream, &payload.to_be_bytes()) {
            break;
        }
    }
    assert_eq!(client.goaway(), ENHANCE_YOUR_CALM);
    serves_others(&proxy);
}

#[test]
fn rapid_resets_end_the_connection() {
    // CVE-2023-44487.
    ends_calmly_after(RST_STREAM, 8);
}

#[test]
fn slower_resets_end_the_connection_too() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(&manifest(&silent.local_addr().unwrap().to_string(), "", ""));
    let mut client = Raw::connect(&proxy);
    let mut sent = 0;
    for stream in (1..20_000).step_by(2) {
        // Each is under way before it is reset: a PING that comes back says so.
        let sending = client.request(stream)
            && client.send(PING, 0, 0, &[0; 8])
            && std::iter::from_fn(|| client.frame()).any(|frame| frame.kind == PING)
            && client.send(RST_STREAM, 0, stream, &8u32.to_be_bytes());
        if !sending {
            break;
        }
        sent += 1;
    }
    assert!((100..1000).contains(&sent), "{sent}");
}

#[test]
fn made_resets_end_the_connection() {
    // CVE-2025-8671: the client breaks a rule, the proxy resets the stream, the request has been made all the same.
    ends_calmly_after(WINDOW_UPDATE, 0x7fff_ffff);
}

#[test]
fn trailers_are_the_end_of_a_response() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let origin = raw_origin(move |mut stream| {
        count.fetch_add(1, Ordering::Relaxed);
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while read_message(&mut reader).is_some() {
            let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-After: all\r\n\r\n";
            stream.write_all(answer).unwrap();
        }
    });
    let proxy = Proxy::start(&manifest(&origin, "", "").replace("workers = 2", "workers = 1"));
    let mut client = Raw::connect(&proxy);
    // More than may be given up before their end.
    for stream in (1..1_000).step_by(2) {
        assert!(client.request(stream));
        let is_end = |frame: &Frame| frame.stream > 0 && frame.flags & END_STREAM != 0;
        let end = client.until(|frame| is_end(frame) || frame.kind == GOAWAY);
        assert_eq!((end.kind, end.stream), (HEADERS, stream));
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1, "it is kept");
}

/// The end of a connection for a head that is too long for its client would be the end of all other streams: nghttp2 takes
/// no more than eight CONTINUATION frames.
#[test]
fn heads_and_trailers_that_a_client_may_not_take_end_no_connection() {
    let proxy = Proxy::start(&manifest(&long_sections(), "", LONG_HEADS));
    // The length of the field, its bytes, the list that the client says it accepts, and whether the client gets it.
    let cases = [
        ("head", 100 << 10, 'x', None, true),
        ("head", 400 << 10, 'x', None, false),
        // A byte of `~` takes 13 bits.
        ("head", 100 << 10, '~', None, false),
        ("head", 50 << 10, 'x', Some(64 << 10), true),
        ("head", 100 << 10, 'x', Some(64 << 10), false),
        ("head", 400 << 10, 'x', Some(1 << 20), true),
        ("trailers", 100 << 10, 'x', None, true),
        ("trailers", 400 << 10, 'x', None, false),
    ];
    for (section, length, byte, announced, is_sent) in cases {
        let case = format!("{section} {length} {byte} {announced:?}");
        let (is_whole, continuations) =
            section_of(&proxy, announced, &[("x-section", section), ("x-byte", &byte.to_string())], length);
        assert_eq!(is_whole, is_sent, "{case}");
        assert!(continuations <= 8 || announced.is_some(), "{case}: {continuations}");
    }
    for part in ["the response's head is longer", "the response's trailer section is longer"] {
        assert!(proxy.wait_log(part).contains("SETTINGS_MAX_HEADER_LIST_SIZE"));
    }
}

/// HAProxy ends its connection to the proxy for 16 KiB, or for some two hundred fields, and announces neither.
#[test]
fn heads_that_the_keys_of_a_listener_forbid_end_no_connection() {
    let text = manifest(&long_sections(), "", LONG_HEADS);
    let limits = "limits = { response-head = \"16 KiB\", response-fields = 100 }";
    let proxy = Proxy::start(&text.replacen(":0\"\n", &format!(":0\"\n{limits}\n"), 1));
    for (section, length, is_sent) in [
        ("head", 15_000, true),
        ("head", 20_000, false),
        ("fields", 90, true),
        ("fields", 150, false),
        ("trailer-fields", 90, true),
        ("trailer-fields", 150, false),
    ] {
        let (is_whole, _) = section_of(&proxy, None, &[("x-section", section), ("x-byte", "x")], length);
        assert_eq!(is_whole, is_sent, "{section} {length}");
    }
    let line = proxy.wait_log("the response's trailer section is longer");
    assert!(line.contains("limit=\"limits.response-head\"") && line.contains("(100) of the listener"), "{line}");
}

const LONG_HEADS: &str = "[upstream.app.limits]\nresponse-head = \"1 MiB\"\n";

/// Requests a response with a long section between two others on one connection, whose client says how long a list of fields
/// it accepts. Returns whether the response is whole, and the number of CONTINUATION frames.
fn section_of(proxy: &Proxy, announced: Option<u32>, fields: &[(&str, &str)], length: usize) -> (bool, usize) {
    let mut client = Raw::connect(proxy);
    if let Some(max) = announced {
        client.send(SETTINGS, 0, 0, &[&[0, 6][..], &u32::to_be_bytes(max)].concat());
    }
    client.request(1);
    client.until(|frame| frame.stream == 1 && frame.kind == HEADERS);
    let length = length.to_string();
    let fields = [fields, &[("x-length", &*length)]].concat();
    client.send(HEADERS, END_STREAM | END_HEADERS, 3, &crate::http2_endpoint::head(GET, &fields));
    let (mut continuations, mut first) = (0, None);
    let end = client.until(|frame| {
        continuations += usize::from(frame.kind == CONTINUATION);
        first = first.or((frame.stream == 3 && frame.kind == HEADERS).then(|| frame.payload[0]));
        let is_end = matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0;
        frame.stream == 3 && (is_end || frame.kind == RST_STREAM)
    });
    client.request(5);
    let next = client.until(|frame| {
        // Trailers have their continuations behind the end of the stream.
        continuations += usize::from(frame.kind == CONTINUATION);
        frame.stream == 5 && frame.kind == HEADERS
    });
    assert_eq!(next.payload[0], 0x88, "{fields:?}: the connection serves others");
    (first == Some(0x88) && end.kind != RST_STREAM, continuations)
}

/// Starts an origin whose response has a head or trailers as long as the request says.
fn long_sections() -> String {
    origin(|request| {
        let Some(length) = request.field("x-length").map(|length| length.parse().unwrap()) else { return ok("short") };
        let long = format!("X-Long: {}\r\n", request.field("x-byte").unwrap().repeat(length));
        let many = || (0..length).map(|number| format!("X-{number}: 1\r\n")).collect();
        let (fields, trailers) = match request.field("x-section") {
            Some("head") => (long, String::new()),
            Some("trailers") => (String::new(), long),
            Some("fields") => (many(), String::new()),
            _ => (String::new(), many()),
        };
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n";
        format!("{head}{fields}\r\n1\r\na\r\n0\r\n{trailers}\r\n").into_bytes()
    })
}

#[test]
fn endless_continuations_end_the_connection() {
    // CVE-2024-27316.
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let before = proxy.memory_kib();
    let mut client = Raw::connect(&proxy);
    client.send(HEADERS, END_STREAM, 1, GET);
    let field = [&[0x00, 1, b'x', 0x7f, 0x80, 0x1f][..], &[b'y'; 1018]].concat();
    let mut sent = 0;
    while sent < 100_000 && client.send(CONTINUATION, 0, 1, &field) {
        sent += 1;
    }
    assert!(sent < 100_000, "it takes no end of them");
    assert!(proxy.memory_kib() < before + 16 * 1024);
    serves_others(&proxy);
}

#[test]
fn a_list_of_fields_beyond_the_limit_is_refused() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let field = format!("X-Long: {}", "y".repeat(40_000));
    let got = curl(&proxy, &["--header", &field, "--write-out", "%{http_code}"]);
    assert!(got.ends_with("431") || got.contains("stream"), "{got}");
    serves_others(&proxy);
}

#[test]
fn floods_of_settings_and_pings_cost_no_memory() {
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[])] {
        let proxy = Proxy::start(&manifest(&echo(), "", ""));
        let before = proxy.memory_kib();
        let mut client = Raw::connect(&proxy);
        client.0.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        // Each wants an answer, and none is read.
        let sent = (0..300_000).take_while(|_| client.send(kind, 0, 0, payload)).count();
        assert!(sent > 1000, "{sent}");
        serves_others(&proxy);
        let after = proxy.memory_kib();
        assert!(after < before + 16 * 1024, "{before} KiB before, {after} after {sent} frames");
    }
}

#[test]
fn a_client_that_takes_nothing_is_let_go() {
    let big = origin(|_| ok(&"x".repeat(10 << 20)));
    let proxy = limited(&big, "send-timeout = \"1s\"", "");
    let before = proxy.memory_kib();
    let mut client = Raw::connect(&proxy);
    (1..200).step_by(2).for_each(|stream| assert!(client.request(stream)));
    // The windows are never opened, so that each stream waits for ever.
    let began = Instant::now();
    while client.frame().is_some() {}
    assert!(began.elapsed() < PATIENCE, "the proxy closes");
    let after = proxy.memory_kib();
    assert!(after < before + 64 * 1024, "{before} KiB before, {after} after");
}

#[test]
fn the_last_response_reaches_a_client_that_has_more_to_say() {
    const LENGTH: usize = 200_000;
    let sized = origin(|_| ok(&"x".repeat(LENGTH)));
    let proxy = limited(&sized, "requests = 1", "");
    let mut client = Raw::connect(&proxy);
    rustix::net::sockopt::set_socket_recv_buffer_size(&client.0, 16 << 10).unwrap();
    // Windows for all of it, so that only the socket holds it up.
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0x10, 0, 0]);
    client.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes());
    client.request(1);
    // Once it is answered, no more streams are taken (RFC 9113 §6.8).
    let mut got = 0;
    while let Some(frame) = client.frame() {
        got += frame.content();
        if frame.kind == PING {
            client.send(PING, ACK, 0, &frame.payload);
            break;
        }
    }
    // The client reads nothing for a while, and continues to send.
    for _ in 0..50 {
        client.send(PING, 0, 0, &[0; 8]);
        std::thread::sleep(Duration::from_millis(10));
    }
    while let Some(frame) = client.frame() {
        got += frame.content();
    }
    assert_eq!(got, LENGTH);
}

#[test]
fn the_last_response_reaches_a_client_that_takes_it_slowly() {
    const LENGTH: usize = 90_000;
    let sized = origin(|_| ok(&"x".repeat(LENGTH)));
    let proxy = limited(&sized, "requests = 1, send-timeout = \"2s\"", "");
    let mut client = Raw::connect(&proxy);
    client.request(1);
    let mut got = 0;
    let began = Instant::now();
    while let Some(frame) = client.frame() {
        got += frame.content();
        if frame.kind == PING && frame.flags & ACK == 0 {
            client.send(PING, ACK, 0, &frame.payload);
        }
        // The windows let so much through; of the rest a little at a time.
        if (65_535..LENGTH).contains(&got) && frame.kind == DATA {
            std::thread::sleep(Duration::from_millis(300));
            for stream in [0, 1] {
                client.send(WINDOW_UPDATE, 0, stream, &1_000_u32.to_be_bytes());
            }
        }
    }
    assert_eq!(got, LENGTH);
    assert!(began.elapsed() > Duration::from_secs(7), "too quick to show anything");
}

#[test]
fn a_client_that_is_told_to_go_may_not_stay() {
    let proxy = limited(&echo(), "requests = 2, streams = 4, send-timeout = \"1s\"", "");
    // It never answers the PING that comes with the farewell, and so isn't sent what refuses further streams.
    let mut client = Raw::connect(&proxy);
    let answered = (1..2_000).step_by(2).take_while(|stream| {
        let sent = client.request(*stream);
        sent && std::iter::from_fn(|| client.frame())
            .any(|frame| frame.stream == *stream && frame.flags & END_STREAM != 0)
    });
    let answered = answered.count();
    assert!((2..20).contains(&answered), "{answered}");

    // Nor may one that has no requests any more and takes the answers to its PINGs, some KiB of them in each second.
    let mut client = Raw::connect(&proxy);
    client.request(1);
    client.request(3);
    client.until(|frame| frame.kind == GOAWAY);
    let began = Instant::now();
    while client.send(PING, 0, 0, &[0; 8]) && client.frame().is_some() {
        assert!(began.elapsed() < PATIENCE, "the proxy closes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn malformed_requests_of_http2_reach_nobody() {
    let counted = Arc::new(AtomicUsize::new(0));
    let count = counted.clone();
    let origin = origin(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        ok("reached")
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let literal = |name: &str, value: &str| {
        [&[0, name.len() as u8][..], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    let with = |name: &str, value: &str| [GET, &literal(name, value)].concat();
    let path = |path: &str| [&[0x82, 0x86, 0x41, 1, b'a'][..], &literal(":path", path)].concat();
    let cases = [
        ("CR LF in a value", with("x", "a\r\nb: c")),
        ("NUL in a value", with("x", "a\0b")),
        ("Connection", with("connection", "close")),
        ("Transfer-Encoding", with("transfer-encoding", "chunked")),
        ("Upgrade", with("upgrade", "websocket")),
        ("TE beyond trailers", with("te", "gzip")),
        ("an upper-case name", with("X-A", "b")),
        ("a colon in a name", with("x:y", "b")),
        ("another Host", with("host", "b")),
        ("a space before a value", with("x", " a")),
        ("a tab behind a value", with("x", "a\t")),
        ("a repeated length", [&with("content-length", "0"), &literal("content-length", "0")[..]].concat()),
        ("a path with a space", path("/a b")),
        ("a path with angle brackets", path("/<a>")),
        ("a query with quotes", path("/?a=\"b\"")),
        ("a path with CR LF", path("/a\r\nx")),
        ("a path without a slash", path("a")),
        ("an empty path", path("")),
        ("dots above the root", path("/../a")),
        ("an encoded slash", path("/a%2fb")),
        ("no path", vec![0x82, 0x86, 0x41, 1, b'a']),
        ("two paths", [GET, &[0x84]].concat()),
        ("a pseudo-field at the end", [&GET[..3], &literal("x", "y"), &GET[3..]].concat()),
        ("an unknown pseudo-field", with(":x", "y")),
    ];
    let mut wrong = Vec::new();
    for (what, block) in cases {
        let mut client = Raw::connect(&proxy);
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
        let frame = client.until(|frame| frame.kind == GOAWAY || frame.stream == 1);
        // `:status 400` stands in the static table of HPACK.
        let is_refused = matches!(frame.kind, GOAWAY | RST_STREAM) || frame.payload.first() == Some(&0x8c);
        if !is_refused {
            wrong.push(format!("{what}: kind {} {:?}", frame.kind, frame.payload));
        }
    }
    // A length that the content doesn't keep.
    let mut client = Raw::connect(&proxy);
    client.send(HEADERS, END_HEADERS, 1, &[&[0x83][..], &GET[1..], &literal("content-length", "3")].concat());
    client.send(DATA, END_STREAM, 1, b"hello");
    let frame = client.until(|frame| frame.kind == GOAWAY || frame.stream == 1);
    assert_eq!(frame.kind, RST_STREAM);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(counted.load(Ordering::Relaxed), 0);
}

#[test]
fn limits_of_targets_and_fields_hold_for_http2_too() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let mut curl = Command::new("curl");
    curl.args(["-s", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}"]);
    let long = output(curl.arg(format!("http://{}/{}", proxy.address, "x".repeat(9000))));
    assert_eq!(long, "414");
    let mut curl = Command::new("curl");
    curl.args(["-s", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}"]);
    for n in 0..120 {
        curl.args(["-H", &format!("x-{n}: y")]);
    }
    assert_eq!(output(curl.arg(format!("http://{}/", proxy.address))), "431");
}

#[test]
fn cookies_in_lines_of_their_own_count_as_one_field() {
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let mut curl = Command::new("curl");
    curl.args(["-s", "--http2-prior-knowledge"]);
    for n in 0..180 {
        curl.args(["-H", &format!("cookie: k{n}=v")]);
    }
    let got = output(curl.arg(format!("http://{}/", proxy.address)));
    let cookies = (0..180).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join("; ");
    assert!(got.contains(&format!("\ncookie: {cookies}\n")), "{got}");
}

#[test]
fn a_failure_has_no_content_for_head() {
    let proxy = Proxy::start(&manifest(&echo(), "", "").replace("[[route]]", "[[route]]\npath = \"/here\""));
    let got = curl(&proxy, &["--head", "--write-out", "%{http_code}"]);
    assert!(got.ends_with("404") && got.contains("content-length: ") && got.contains("error=no_route"), "{got}");
}

#[test]
fn an_early_response_of_an_endpoint_is_passed_on_whole() {
    // It refuses the content with END_STREAM, and then resets the stream without an error.
    let inner = manifest(&echo(), "", "").replace("[[route]]", "[[route]]\nmax-body = \"10 B\"");
    let inner = Proxy::start(&inner);
    let proxy = Proxy::start(&manifest(&format!("h2c://{}", inner.address), "", ""));
    for _ in 0..20 {
        // curl 7 takes a stream that is reset without an error for a failed one, so it speaks HTTP/1.1 here.
        let mut curl = Command::new("curl");
        curl.args(["-s", "--data", &"x".repeat(100_000), "--write-out", "%{http_code}"]);
        let got = output(curl.arg(format!("http://{}/", proxy.address)));
        assert!(got.ends_with("413") && got.contains("http_request_body_size"), "{got}");
    }
}

/// h2 ends a connection on which many short pieces wait, whose overhead is beyond half its window.
#[test]
fn an_upload_in_thousands_of_short_frames_passes() {
    const FRAMES: usize = 5_000;
    let origin = origin(|request| ok(&request.text().len().to_string()));
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    for round in 0..3 {
        let mut client = Raw::connect(&proxy);
        // POST / of http://a.
        client.send(HEADERS, END_HEADERS, 1, &[0x83, 0x86, 0x84, 0x41, 1, b'a']);
        let frames: Vec<u8> =
            (0..FRAMES).flat_map(|at| frame(DATA, u8::from(at + 1 == FRAMES), 1, &[b'x'; 10])).collect();
        client.0.write_all(&frames).unwrap();
        let content = client.until(|frame| frame.kind == DATA && frame.stream == 1);
        assert_eq!(content.payload, (10 * FRAMES).to_string().as_bytes(), "{round}");
    }
}
