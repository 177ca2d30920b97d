//! Connections that leave HTTP: WebSocket and other upgrades, over HTTP/1.1 and HTTP/2.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use plugway_test_guests::{BODIES, OVERRIDES, WAITING};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::python::{self, Python};
use crate::support::{PATIENCE, Proxy, echo, limited, manifest, raw_origin, read_message, until, vanish};

/// Starts an origin that switches to an echo protocol, and sends the head that it received as its first bytes.
fn switching() -> String {
    raw_origin(switch)
}

fn switch(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let head = head(&mut reader);
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Origin: yes\r\n\r\n";
    if !head.contains("upgrade: ") {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
        return;
    }
    // In one piece: what follows the head at once is the new protocol's already.
    stream.write_all(format!("{answer}{head}").as_bytes()).unwrap();
    let _ = std::io::copy(&mut reader, &mut stream);
}

fn head(reader: &mut impl BufRead) -> String {
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
        head += &line;
        line.clear();
    }
    head + "\r\n"
}

const ASK: &str =
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\nX-Mine: 1\r\n\r\n";

/// Requests the switch; returns the two heads, and the connection with the protocol.
fn open(proxy: &Proxy) -> (String, String, BufReader<TcpStream>) {
    let mut stream = proxy.connect();
    stream.write_all(ASK.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let answer = head(&mut reader);
    let asked = head(&mut reader);
    (answer, asked, reader)
}

fn says_back(tunnel: &mut BufReader<TcpStream>, text: &str) {
    tunnel.get_mut().write_all(text.as_bytes()).unwrap();
    let mut got = vec![0; text.len()];
    tunnel.read_exact(&mut got).unwrap();
    assert_eq!(got, text.as_bytes());
}

#[test]
fn an_upgrade_becomes_a_tunnel_and_filters_see_its_handshake() {
    let plugin = "{ use = \"headers\", config = { request.set = { X-Edited = \"{path}\" }, response.set = { X-Seen = \"{status}\" } } }";
    let proxy = Proxy::start(&manifest(&switching(), plugin, ""));
    let (answer, asked, mut tunnel) = open(&proxy);
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    for field in ["connection: upgrade", "upgrade: echo", "x-origin: yes", "x-seen: 101"] {
        assert!(answer.contains(field), "{field} in {answer}");
    }
    assert!(asked.contains("connection: upgrade") && asked.contains("upgrade: echo"), "{asked}");
    assert!(asked.contains("x-edited: /chat") && !asked.contains("keep-alive"), "{asked}");
    says_back(&mut tunnel, "hello");
    says_back(&mut tunnel, &"x".repeat(100_000));
    tunnel.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(tunnel.read(&mut [0]).unwrap(), 0, "the end passes through");
}

#[test]
fn tunnels_outlive_a_reload_and_end_when_the_drain_time_has_passed() {
    let text = format!("drain-timeout = \"500ms\"\n{}", manifest(&switching(), "", ""));
    let mut proxy = Proxy::start(&text);
    let (_, _, mut tunnel) = open(&proxy);
    says_back(&mut tunnel, "before");
    proxy.reload(&text.replace("drain-timeout = \"500ms\"", "drain-timeout = \"400ms\""));
    proxy.wait_log("reloaded");
    says_back(&mut tunnel, "after the reload");
    proxy.signal("TERM");
    proxy.wait_log("stopping");
    says_back(&mut tunnel, "while draining");
    assert_eq!(proxy.wait_exit(), Some(0));
    let ended = tunnel.read(&mut [0]);
    assert!(ended.is_err() || ended.is_ok_and(|length| length == 0), "it ends with the process");
}

#[test]
fn a_silent_tunnel_is_closed() {
    let proxy = limited(&switching(), "tunnel-timeout = \"300ms\"", "");
    let (_, _, mut tunnel) = open(&proxy);
    let mut began = Instant::now();
    for _ in 0..4 {
        // As long as something passes, it stays open; the pauses are the subject.
        std::thread::sleep(Duration::from_millis(150));
        // The time counts from the last bytes, which pass after this.
        began = Instant::now();
        says_back(&mut tunnel, "ping");
    }
    assert_eq!(tunnel.read(&mut [0]).unwrap(), 0);
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[test]
fn the_access_log_says_how_a_tunnel_ended() {
    let log = "[access-log]\nformat = \"json\"\nfile = \"access.log\"\n";
    let ended = |endpoint: String, limits: &str, end: fn(&mut BufReader<TcpStream>)| {
        let listener = format!("address = \"127.0.0.1:0\"\nlimits = {{ {limits} }}\n");
        let text = manifest(&endpoint, "", log).replace("address = \"127.0.0.1:0\"\n", &listener);
        let proxy = Proxy::start(&text);
        let (_, _, mut tunnel) = open(&proxy);
        end(&mut tunnel);
        let logged = || std::fs::read_to_string(proxy.folder.path().join("access.log")).unwrap_or_default();
        until("the tunnel is logged", || logged().ends_with('\n'));
        let line: serde_json::Value = serde_json::from_str(&logged()).unwrap();
        (line["complete"].clone(), line["error"].clone())
    };
    let closed = |tunnel: &mut BufReader<TcpStream>| {
        tunnel.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(tunnel.read(&mut [0]).unwrap(), 0);
    };
    assert_eq!(ended(switching(), "", closed), (true.into(), serde_json::Value::Null));
    // The endpoint has said all that it has to say before it refuses what the client still sends.
    let ending = raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let head = head(&mut reader);
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(format!("{answer}{head}").as_bytes()).unwrap();
    });
    let lingers = |tunnel: &mut BufReader<TcpStream>| {
        assert_eq!(tunnel.read(&mut [0]).unwrap(), 0);
        until("the endpoint's refusal ends the tunnel", || tunnel.get_mut().write_all(b"bye").is_err());
    };
    assert_eq!(ended(ending, "", lingers), (true.into(), serde_json::Value::Null));
    let waits = |tunnel: &mut BufReader<TcpStream>| drop(tunnel.read(&mut [0]));
    let silent = ended(switching(), "tunnel-timeout = \"300ms\"", waits);
    assert_eq!(silent, (false.into(), "http_response_timeout".into()));
    let resetting = raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let head = head(&mut reader);
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(format!("{answer}{head}").as_bytes()).unwrap();
        let _ = reader.read(&mut [0]);
        vanish(stream);
    });
    let speaks = |tunnel: &mut BufReader<TcpStream>| {
        tunnel.get_mut().write_all(b"x").unwrap();
        drop(tunnel.read(&mut [0]));
    };
    assert_eq!(ended(resetting, "", speaks), (false.into(), "connection_terminated".into()));
}

/// A `Connection` with `close` alone would fail the handshake of a WebSocket (RFC 6455 §4.1).
#[test]
fn the_last_request_of_a_connection_may_open_a_tunnel() {
    let text = manifest(&switching(), "", "");
    let limited = "address = \"127.0.0.1:0\"\nlimits = { requests = 2 }\n";
    let proxy = Proxy::start(&text.replacen("address = \"127.0.0.1:0\"\n", limited, 1));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    assert_eq!(read_message(&mut reader).unwrap().text(), "no");
    reader.get_mut().write_all(ASK.as_bytes()).unwrap();
    let answer = head(&mut reader);
    assert!(answer.contains("connection: upgrade") && !answer.contains("close"), "{answer}");
    head(&mut reader);
    says_back(&mut reader, "hello");
}

#[test]
fn response_without_upgrade_stays_http() {
    let proxy = Proxy::start(&manifest(&switching(), "", ""));
    let refused = proxy.exchange("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: echo");
    assert_eq!((refused.status(), refused.text()), (200, "no".into()), "Connection doesn't ask for it");
    let hidden = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n";
    let mut stream = proxy.connect();
    stream.write_all(hidden.as_bytes()).unwrap();
    let got = head(&mut BufReader::new(stream));
    assert!(got.starts_with("HTTP/1.1 200 "), "HTTP/2 in a tunnel would be requests that nobody sees: {got}");
    let echo = Proxy::start(&manifest(&echo(), "", ""));
    let mut stream = echo.connect();
    stream.write_all(ASK.as_bytes()).unwrap();
    let answer = head(&mut BufReader::new(stream));
    assert!(answer.starts_with("HTTP/1.1 200 "), "an origin may decline: {answer}");
}

/// The program of a WebSocket server that echoes messages.
const SERVER: &str = r#"
import asyncio, websockets
async def main():
    async def back(socket):
        async for message in socket:
            await socket.send(message)
    async with websockets.serve(back, "127.0.0.1", 0, subprotocols=["chat"]) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()
asyncio.run(main())
"#;

const CLIENT: &str = r#"
import asyncio, os, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1], subprotocols=["chat"], max_size=None) as socket:
        assert socket.subprotocol == "chat"
        for message in ["text", b"bytes", "x" * 200_000, os.urandom(500_000)]:
            await socket.send(message)
            assert await socket.recv() == message
        await (await socket.ping())
    print("closed", socket.close_code)
asyncio.run(main())
"#;

#[test]
fn websocket_works_between_a_real_client_and_a_real_server() {
    let server = Python::start(SERVER);
    let proxy = Proxy::start(&manifest(&format!("127.0.0.1:{}", server.first_line), "", ""));
    let said = python::run(CLIENT, &[&format!("ws://{}/", proxy.address)]);
    assert_eq!(said.trim(), "closed 1000");
}

/// Docker's API switches protocols in answer to a POST request with content.
#[test]
fn an_upgrade_with_content_becomes_a_tunnel_behind_it() {
    const CONTENT: &str = "{\"Detach\":false}";
    let origin = raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut content = [0; CONTENT.len()];
        if !head(&mut reader).contains("upgrade: tcp") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
            return;
        }
        reader.read_exact(&mut content).unwrap();
        let switch = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        stream.write_all(&[&switch[..], &content].concat()).unwrap();
        let _ = std::io::copy(&mut reader, &mut stream);
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let ask = |rest: &str| {
        let mut stream = proxy.connect();
        let head = "POST /exec/1/start HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp";
        write!(stream, "{head}\r\n{rest}").unwrap();
        BufReader::new(stream)
    };
    // The client's first bytes of the new protocol arrive with the content.
    for ahead in ["", "early"] {
        let mut tunnel = ask(&format!("Content-Length: {}\r\n\r\n{CONTENT}{ahead}", CONTENT.len()));
        assert!(head(&mut tunnel).starts_with("HTTP/1.1 101 "));
        let mut content = vec![0; CONTENT.len() + ahead.len()];
        tunnel.read_exact(&mut content).unwrap();
        assert_eq!(content, format!("{CONTENT}{ahead}").as_bytes());
        says_back(&mut tunnel, "hello");
    }
    let mut chunked = ask("Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n");
    assert_eq!(read_message(&mut chunked).unwrap().text(), "no", "where chunks end has several readings");
    // A plugin that transforms the content makes chunks of it.
    let transforming = format!("{{ use = {BODIES:?}, config = {{ bodies = \"stream\" }} }}");
    let proxy = Proxy::start(&manifest(&origin, &transforming, ""));
    let mut stream = proxy.connect();
    let fields = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 3";
    write!(stream, "POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nabc").unwrap();
    assert!(head(&mut BufReader::new(stream)).starts_with("HTTP/1.1 200 "));
}

/// Requests a protocol by extended CONNECT (RFC 8441), and uses the resulting tunnel.
async fn by_connect(
    address: String,
    protocol: &'static str,
    text: &str,
) -> (http::Response<hyper::body::Incoming>, Option<String>) {
    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let local = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = http2::handshake(local, TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::connect(format!("http://{address}/chat"));
    request = request.extension(Protocol::from_static(protocol)).header("x-mine", "1");
    let body = http_body_util::Empty::<bytes::Bytes>::new();
    // The server's settings say that it is allowed; with an answer they are there.
    let first = http::Request::get(format!("http://{address}/")).body(body).unwrap();
    sender.send_request(first).await.unwrap();
    let mut response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    if !response.status().is_success() {
        return (response, None);
    }
    let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    tunnel.write_all(text.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(text.as_bytes()) {
        assert!(tunnel.read_buf(&mut got).await.unwrap() > 0);
    }
    (response, Some(String::from_utf8(got).unwrap()))
}

#[test]
fn a_tunnel_over_http2_ends_in_an_upgrade() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let proxy = Proxy::start(&manifest(&switching(), "", ""));
    let (response, said) = runtime.block_on(by_connect(proxy.address.clone(), "echo", "hello"));
    let said = said.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("x-origin") && !response.headers().contains_key("upgrade"));
    assert!(said.starts_with("GET /chat HTTP/1.1\r\n") && said.contains("upgrade: echo\r\n"), "{said}");
    let marked = "{ use = \"headers\", config.response.append = { X-Seen = \"yes\" } }";
    let declining = Proxy::start(&manifest(&echo(), marked, ""));
    let (response, said) = runtime.block_on(by_connect(declining.address.clone(), "echo", "hello"));
    assert_eq!((response.status().as_u16(), said), (502, None), "success would mean that there is a tunnel");
    assert_eq!(response.headers().get_all("x-seen").iter().count(), 1, "the error has passed the response hooks");
}

#[test]
fn the_error_of_a_declined_tunnel_passes_hooks_that_wait() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let marked = "{ use = \"headers\", config.response.append = { X-Seen = \"yes\" } }";
    let more = format!("[plugin.waiting]\nuse = {WAITING:?}\nconfig.hash = \"\"\n");
    let proxy = Proxy::start(&manifest(&echo(), &format!("{marked}, \"waiting\""), &more));
    let (response, said) = runtime.block_on(by_connect(proxy.address.clone(), "echo", "hello"));
    assert_eq!((response.status().as_u16(), said), (502, None));
    for field in ["x-verified", "x-seen"] {
        assert_eq!(response.headers().get_all(field).iter().count(), 1, "{field} in {response:?}");
    }
}

#[test]
fn a_status_that_a_plugin_sets_denies_the_tunnel() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (ended, ends) = std::sync::mpsc::channel();
    let endpoint = raw_origin(move |stream| {
        switch(stream);
        let _ = ended.send(());
    });
    let denying = |status: u16| {
        let plugin = format!("{{ use = {OVERRIDES:?}, config.status = {status} }}");
        Proxy::start(&manifest(&endpoint, &plugin, ""))
    };
    for (status, wanted) in [(403, 403), (200, 502)] {
        let proxy = denying(status);
        let (response, said) = runtime.block_on(by_connect(proxy.address.clone(), "echo", "hello"));
        assert_eq!((response.status().as_u16(), said), (wanted, None));
        for request in ["an ordinary one", "the one that asks for the tunnel"] {
            ends.recv_timeout(PATIENCE).expect(request);
        }
        let mut stream = proxy.connect();
        stream.write_all(ASK.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let answer = head(&mut reader);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(!answer.contains("upgrade") && answer.contains("content-length: 0"), "{answer}");
        ends.recv_timeout(PATIENCE).expect("the tunnel's connection ends");
        reader.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!(head(&mut reader).starts_with("HTTP/1.1 "), "the client's connection still speaks HTTP");
        ends.recv_timeout(PATIENCE).expect("an ordinary one");
    }
}

#[test]
fn a_tunnel_over_http2_has_as_many_fields_as_the_limit_allows() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let text = manifest(&switching(), "", "");
    let limits = "address = \"127.0.0.1:0\"\nlimits = { fields = 1 }\n";
    let proxy = Proxy::start(&text.replace("address = \"127.0.0.1:0\"\n", limits));
    // The proxy adds fields of its own for the endpoint.
    let (response, said) = runtime.block_on(by_connect(proxy.address.clone(), "echo", "hello"));
    assert!(response.status() == 200 && said.is_some(), "{}", response.status());
}

#[test]
fn a_tunnel_over_http2_is_logged_as_the_client_asked_for_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = "[access-log]\nformat = \"combined\"\nfile = \"access.log\"\n";
    let proxy = Proxy::start(&manifest(&switching(), "", log));
    let (_, said) = runtime.block_on(by_connect(proxy.address.clone(), "echo", "hello"));
    assert!(said.is_some());
    drop(runtime);
    let logged = || std::fs::read_to_string(proxy.folder.path().join("access.log")).unwrap_or_default();
    until("the tunnel is logged", || logged().contains("/chat"));
    assert!(logged().contains("\"CONNECT /chat HTTP/2.0\""), "{}", logged());
}

#[test]
fn a_switch_to_a_protocol_that_nobody_asked_for_is_an_error() {
    let answer = |fields: &'static str| {
        let origin = raw_origin(move |mut stream| {
            head(&mut BufReader::new(stream.try_clone().unwrap()));
            let answer = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{fields}\r\n");
            let _ = stream.write_all(answer.as_bytes());
        });
        let proxy = Proxy::start(&manifest(&origin, "", ""));
        let asked = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, Echo/2\r\n";
        proxy.exchange(&format!("{asked}Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==")).status()
    };
    for (fields, status) in [
        ("Upgrade: h2c\r\n", 502),
        ("Upgrade: websocket, h2c\r\n", 502),
        ("Upgrade: websocket\r\nUpgrade: foo\r\n", 502),
        ("Upgrade: echo\r\n", 502),
        ("Upgrade: \r\n", 502),
        ("", 502),
        ("Upgrade: echo/2\r\n", 101),
        ("Upgrade: WebSocket\r\n", 101),
    ] {
        assert_eq!(answer(fields), status, "{fields:?}");
    }
}

/// Starts an origin that switches to WebSocket, with further fields that are derived from the received key.
fn accepting(fields: impl Fn(&str) -> String + Send + Sync + Clone + 'static) -> String {
    raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let head = head(&mut reader);
        let Some((_, rest)) = head.split_once("sec-websocket-key: ") else {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
            return;
        };
        let fields = fields(rest.split("\r\n").next().unwrap());
        let answer = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{fields}\r\n");
        let _ = stream.write_all(answer.as_bytes());
        let _ = std::io::copy(&mut reader, &mut stream);
    })
}

/// Returns the answer of a server to a key (RFC 6455 §4.2.2).
fn proof(key: &str) -> String {
    const SCRIPT: &str = "import base64, hashlib, sys\n\
        key = sys.argv[1] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'\n\
        print(base64.b64encode(hashlib.sha1(key.encode()).digest()).decode(), end='')";
    python::run(SCRIPT, &[key])
}

#[test]
fn a_switch_to_websocket_over_http2_needs_its_proof() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |protocol, fields: fn(&str) -> String| {
        let proxy = Proxy::start(&manifest(&accepting(fields), "", ""));
        let (response, said) = runtime.block_on(by_connect(proxy.address.clone(), protocol, "hello"));
        (response.status().as_u16(), said)
    };
    let good = |key: &str| format!("Upgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n", proof(key));
    for protocol in ["websocket", "WebSocket"] {
        assert_eq!(ask(protocol, good), (200, Some("hello".into())), "{protocol}");
    }
    type Forge = fn(&str) -> String;
    let bad: [(&str, Forge); 5] = [
        ("none", |_| "Upgrade: websocket\r\n".into()),
        ("the key", |key| format!("Upgrade: websocket\r\nSec-WebSocket-Accept: {key}\r\n")),
        ("of another key", |_| "Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n".into()),
        ("another protocol", |key| format!("Upgrade: echo\r\nSec-WebSocket-Accept: {}\r\n", proof(key))),
        ("no protocol", |key| format!("Sec-WebSocket-Accept: {}\r\n", proof(key))),
    ];
    for (what, fields) in bad {
        assert_eq!(ask("websocket", fields), (502, None), "{what}");
    }
}
