//! Floods of connections and of frames: each is bounded, and other clients are still served.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::http2::{ACK, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, GET, GOAWAY, HEADERS};
use crate::http2::{PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE};
use crate::http2_endpoint::head;
use crate::support::{
    PATIENCE, Proxy, echo, limited, manifest, ok, origin, output, plugway, plugway_after, raw_origin, read_message,
    sized, until,
};

/// An origin that holds the requests for `/held` until they are released, and answers others at once.
struct Holding {
    address: String,
    release: Sender<()>,
    held: mpsc::Receiver<()>,
}

impl Holding {
    fn start() -> Holding {
        let (release, released) = mpsc::channel();
        let (arrived, held) = mpsc::channel();
        let released = Arc::new(Mutex::new(released));
        let address = origin(move |request| {
            if request.start.contains("/held") {
                arrived.send(()).unwrap();
                let _ = released.lock().unwrap().recv();
            }
            ok("answered")
        });
        Holding { address, release, held }
    }

    /// Waits until the origin holds one more request.
    fn wait(&self) {
        self.held.recv_timeout(PATIENCE).unwrap();
    }
}

/// Sends a request on a connection, and doesn't wait for the response.
fn ask(stream: &mut TcpStream, path: &str) -> bool {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).is_ok()
}

/// Returns the status of the next response; 0 if the connection is closed before.
fn status(stream: &TcpStream) -> u16 {
    read_message(&mut BufReader::new(stream.try_clone().unwrap())).map_or(0, |message| message.status())
}

/// Sends a request for `/` on a new connection from an address.
fn is_served_from(proxy: &Proxy, from: &str) -> bool {
    let mut stream = proxy.connect_from(from);
    ask(&mut stream, "/") && status(&stream) == 200
}

fn silent(proxy: &Proxy, from: &str, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| proxy.connect_from(from)).collect()
}

fn metric(proxy: &Proxy, name: &str, labels: &str) -> f64 {
    let text = proxy.ask_admin("GET /metrics").text();
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(labels));
    line.unwrap_or_else(|| panic!("no {name} with {labels} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

/// Returns a manifest of a listener with limits, and an admin listener.
fn with_admin(origin: &str, limits: &str) -> String {
    let listener = format!("address = \"127.0.0.1:0\"\nlimits = {{ {limits} }}\n");
    manifest(origin, "", "[admin]\naddress = \"127.0.0.1:0\"\n")
        .replace("address = \"127.0.0.1:0\"\n[up", &format!("{listener}[up"))
}

const REFUSED: &str = "plugway_client_connections_closed_total";

// === Descriptors ===

#[test]
fn descriptors_are_counted_as_far_as_connections_need_them() {
    let listener = |keys: &str| format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{keys}\n");
    let redirecting =
        listener("redirect-to-https = 8443\nlimits = { connections = 60 }").replace("127.0.0.1", "127.0.0.2");
    let begin = |listeners: &str, upstream: &str| {
        let routed = "[[route]]\nupstream = \"app\"\n";
        let text = format!(
            "workers = 1\n[admin]\naddress = \"off\"\n{listeners}[upstream.app]\nendpoints = [\"127.0.0.1:1\"]\n{upstream}\n{routed}"
        );
        let folder = tempfile::tempdir().unwrap();
        let proxy = Proxy::start_by(plugway_after("ulimit -n 300"), folder.path(), &text);
        // The lines of a start come before those of a reload.
        proxy.signal("HUP");
        proxy.log_until("reloaded", || ())
    };
    let warns = |lines: &[String]| lines.iter().any(|line| line.contains("too few descriptors"));
    let both = format!("{}{redirecting}", listener("limits = { connections = 60 }"));
    assert!(!warns(&begin(&both, "")), "a redirect needs no endpoint");
    let one = listener("limits = { connections = 120 }");
    let lines = begin(&one, "");
    assert!(warns(&lines) && lines.iter().any(|line| line.contains(" WARN ")), "each client may need an endpoint");
    let default = begin(&listener(""), "");
    assert!(warns(&default) && !default.iter().any(|line| line.contains(" WARN ")), "no one has set it: {default:?}");
    assert!(!warns(&begin(&one, "limits = { connections = 10 }")), "the upstream has ten connections");
}

#[test]
fn silent_clients_leave_descriptors_for_all_else() {
    let held = Holding::start();
    let text = with_admin(&held.address, "head-timeout = \"1h\"");
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::start_by(plugway_after("ulimit -n 128"), folder.path(), &text);
    let warning = proxy.wait_log("too few descriptors");
    assert!(warning.contains("connections=20000") && warning.contains("LimitNOFILE"), "{warning}");
    proxy.note("admin at http://");
    let mut under_way = proxy.connect();
    ask(&mut under_way, "/held");
    held.wait();
    let silent = silent(&proxy, "127.0.0.2", 300);
    assert_eq!(proxy.ask_admin("GET /status").status(), 200);
    for _ in 0..20 {
        assert!(is_served_from(&proxy, "127.0.0.1"));
    }
    let open =
        std::fs::read_dir(format!("/proc/{}/fd", proxy.proc("stat").split(' ').next().unwrap())).unwrap().count();
    assert!(open < 110, "{open} descriptors are open");
    held.release.send(()).unwrap();
    assert_eq!(status(&under_way), 200);
    drop(silent);
    let before = proxy.log_until("descriptors for clients are free again", || {});
    let told = before.iter().filter(|line| line.contains("descriptors for clients are used up")).count();
    assert!(told == 1 && before.len() < 5, "{before:?}");
    assert!(is_served_from(&proxy, "127.0.0.2"));
}

/// Each stream over HTTP/2 needs a connection to an endpoint with HTTP/1: a dozen client connections took all descriptors.
#[test]
fn streams_of_one_client_leave_descriptors_for_those_of_others() {
    const STREAMS: u32 = 100;
    let held = Holding::start();
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::start_by(plugway_after("ulimit -n 256"), folder.path(), &with_admin(&held.address, ""));
    proxy.note("admin at http://");
    let request = head(&[0x82, 0x86, 0x41, 1, b'a'], &[(":path", "/held")]);
    let mut clients: Vec<Raw> = (0..3).map(|_| Raw::over(proxy.connect_from("127.0.0.2"))).collect();
    for client in &mut clients {
        (0..STREAMS)
            .for_each(|number| assert!(client.send(HEADERS, END_STREAM | END_HEADERS, 1 + 2 * number, &request)));
    }
    let refused = proxy.wait_log("exchange failed");
    assert!(refused.contains("limit=\"descriptors\"") && refused.contains("ulimit -n"), "{refused}");
    (0..20).for_each(|_| assert!(is_served_from(&proxy, "127.0.0.1")));
    assert_eq!(proxy.ask_admin("GET /status").status(), 200);
    // All of its streams are answered, by the origin or with 503.
    for _ in 0..STREAMS * 3 {
        let _ = held.release.send(());
    }
    let (mut served, mut rejected) = (0, 0);
    for client in &mut clients {
        for _ in 0..STREAMS {
            match client.until(|frame| frame.kind == HEADERS).payload[0] {
                0x88 => served += 1,
                _ => rejected += 1,
            }
        }
    }
    assert!(served >= 64 && rejected >= 64, "{served} served, {rejected} rejected");
    assert!(is_served_from(&proxy, "127.0.0.2"), "its part is free again");
}

#[test]
fn clients_that_are_all_served_let_others_wait_for_a_descriptor() {
    let held = Holding::start();
    let text = manifest(&held.address, "", "").replace("workers = 2", "workers = 1");
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start_by(plugway_after("ulimit -n 100"), folder.path(), &text);
    // More than there are descriptors for, each with a request.
    let mut streams: Vec<TcpStream> = (1..41).map(|n| proxy.connect_from(&format!("127.0.0.{n}"))).collect();
    streams.iter_mut().for_each(|stream| assert!(ask(stream, "/held")));
    let used_up = proxy.wait_log("descriptors for clients are used up");
    assert!(used_up.contains("limit=100"), "{used_up}");
    (0..8).for_each(|_| held.wait());
    // Those that end make room for those that wait: in the end all have been served.
    (0..40).for_each(|_| held.release.send(()).unwrap());
    let served = streams.iter().filter(|stream| status(stream) == 200).count();
    assert_eq!(served, 40);
}

/// An origin that answers once it has as many requests as there are clients, each on a connection of its own, or when that
/// takes too long.
fn crowded(clients: usize) -> String {
    let arrived = Arc::new((Mutex::new(0), Condvar::new()));
    origin(move |_| {
        let (count, all) = &*arrived;
        *count.lock().unwrap() += 1;
        all.notify_all();
        let wait = all.wait_timeout_while(count.lock().unwrap(), PATIENCE / 4, |count| *count < clients);
        drop(wait.unwrap());
        ok("answered")
    })
}

#[test]
fn idle_connections_to_endpoints_make_room_for_a_connection_to_another() {
    const CLIENTS: usize = 12;
    const UPSTREAMS: usize = 10;
    let mut text = String::from("workers = 1\n[admin]\naddress = \"off\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n");
    for number in 0..UPSTREAMS {
        let address = crowded(CLIENTS);
        text += &format!("[upstream.u{number}]\nendpoints = [{address:?}]\n");
        text += &format!("[[route]]\npath = \"/{number}\"\nupstream = \"u{number}\"\n");
    }
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start_by(plugway_after("ulimit -n 100"), folder.path(), &text);
    // No client comes later: the limits of clients are not what makes room.
    let mut streams: Vec<TcpStream> = (1..=CLIENTS).map(|n| proxy.connect_from(&format!("127.0.0.{n}"))).collect();
    for number in 0..UPSTREAMS {
        streams.iter_mut().for_each(|stream| assert!(ask(stream, &format!("/{number}"))));
        let statuses: Vec<u16> = streams.iter().map(status).collect();
        // Seen: 500 for some from the sixth upstream on, each of which kept its twelve connections.
        assert_eq!(statuses, [200; CLIENTS], "upstream {number}");
    }
}

#[test]
fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
    let folder = tempfile::tempdir().unwrap();
    let command = plugway_after("ulimit -Sn 100; ulimit -Hn 1000");
    let proxy = Proxy::start_by(command, folder.path(), &manifest(&echo(), "", ""));
    let limits = proxy.proc("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["1000", "1000"]);
}

// === Fairness ===

#[test]
fn one_client_that_fills_the_listener_keeps_no_other_out() {
    for (what, opening) in [("silence", ""), ("a begun head", "GET / HTTP/1.1\r\nHo"), ("HTTP/2", "PRI * HTTP/2.0\r\n")]
    {
        let limits = "connections = 40, head-timeout = \"1h\", keep-alive = \"1h\"";
        let proxy = Proxy::start_after(&with_admin(&echo(), limits), "admin at http://");
        let mut all = silent(&proxy, "127.0.0.2", 60);
        all.iter_mut().for_each(|stream| drop(stream.write_all(opening.as_bytes())));
        // Else those that are still in the system's queue come together with the others.
        until("all have been accepted", || {
            let closed = metric(&proxy, REFUSED, "evicted") + metric(&proxy, REFUSED, "fair-share");
            metric(&proxy, "plugway_client_connections{", "") + closed >= 60.0
        });
        for _ in 0..10 {
            assert!(is_served_from(&proxy, "127.0.0.1"), "{what}");
        }
        let is_closed = |stream: &TcpStream| {
            stream.set_nonblocking(true).unwrap();
            !matches!((&*stream).read(&mut [0; 100]), Err(error) if error.kind() == ErrorKind::WouldBlock)
        };
        until("some have made room", || all.iter().filter(|stream| is_closed(stream)).count() >= 20);
        let (evicted, refused) = (metric(&proxy, REFUSED, "evicted"), metric(&proxy, REFUSED, "fair-share"));
        assert!(evicted + refused >= 20.0, "{what}: {evicted}, {refused}");
    }
}

#[test]
fn idle_connections_make_room_and_served_ones_never() {
    let held = Holding::start();
    let text = with_admin(&held.address, "connections = 3, keep-alive = \"1h\"");
    let proxy = Proxy::start_after(&text, "admin at http://");
    let mut under_way: Vec<TcpStream> = (0..2).map(|_| proxy.connect()).collect();
    under_way.iter_mut().for_each(|stream| assert!(ask(stream, "/held")));
    (0..2).for_each(|_| held.wait());
    let mut idle = proxy.connect();
    assert!(ask(&mut idle, "/") && status(&idle) == 200);
    // It makes room once its response has had time to leave.
    until("a newcomer is served", || is_served_from(&proxy, "127.0.0.1"));
    assert_eq!(status(&idle), 0);
    until("the newcomer is gone", || metric(&proxy, "plugway_client_connections{", "") == 2.0);
    let mut last = proxy.connect();
    assert!(ask(&mut last, "/held"));
    held.wait();
    for _ in 0..20 {
        assert!(!is_served_from(&proxy, "127.0.0.1"), "all are served");
    }
    let line = proxy.wait_log("reason=\"connections\"");
    assert!(line.contains("limits.connections") && line.contains("most=3"), "{line}");
    assert!(!proxy.has_logged("reason=\"connections\""), "it is logged once a minute");
    assert!(metric(&proxy, REFUSED, "\"connections\"") >= 20.0);
    (0..3).for_each(|_| held.release.send(()).unwrap());
    assert!(under_way.iter().chain([&last]).all(|stream| status(stream) == 200));
}

#[test]
fn a_client_whose_requests_fill_the_listener_leaves_a_fifth_to_others() {
    let held = Holding::start();
    let text = with_admin(&held.address, "connections = 60");
    let proxy = Proxy::start_after(&text, "admin at http://");
    let mut greedy = silent(&proxy, "127.0.0.2", 48);
    greedy.iter_mut().for_each(|stream| assert!(ask(stream, "/held")));
    (0..48).for_each(|_| held.wait());
    for _ in 0..5 {
        assert!(!is_served_from(&proxy, "127.0.0.2"), "it has more than its share");
    }
    assert!(metric(&proxy, REFUSED, "fair-share") >= 5.0);
    assert!(is_served_from(&proxy, "127.0.0.1"));
    drop(held.release);
}

#[test]
fn behind_a_load_balancer_each_told_client_has_its_share() {
    let held = Holding::start();
    let text = with_admin(&held.address, "connections = 60");
    let text = text.replace("limits =", "proxy-protocol-from = [\"127.0.0.1\"]\nlimits =");
    let proxy = Proxy::start_after(&text, "admin at http://");
    let from = |client: &str| {
        let mut stream = proxy.connect();
        stream.write_all(format!("PROXY TCP4 {client} 192.0.2.9 1000 443\r\n").as_bytes()).unwrap();
        stream
    };
    let mut greedy: Vec<TcpStream> = (0..48).map(|_| from("192.0.2.1")).collect();
    greedy.iter_mut().for_each(|stream| assert!(ask(stream, "/held")));
    (0..48).for_each(|_| held.wait());
    let mut one_more = from("192.0.2.1");
    assert!(!ask(&mut one_more, "/") || status(&one_more) == 0);
    assert!(metric(&proxy, REFUSED, "fair-share") >= 1.0);
    for other in ["192.0.2.2", "192.0.2.3"] {
        let mut stream = from(other);
        assert!(ask(&mut stream, "/") && status(&stream) == 200);
    }
    drop(held.release);
}

// === Frames ===

/// The index of `:status 200` in the static table of HPACK.
const STATUS_200: u8 = 0x88;

/// A frame that is sent repeatedly.
struct Flood {
    what: &'static str,
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'static [u8],
}

const FLOODS: [Flood; 9] = [
    Flood { what: "PING", kind: PING, flags: 0, stream: 0, payload: &[0; 8] },
    Flood { what: "acknowledged PING", kind: PING, flags: ACK, stream: 0, payload: &[0; 8] },
    Flood { what: "SETTINGS", kind: SETTINGS, flags: 0, stream: 0, payload: &[0, 4, 0, 1, 0, 0] },
    Flood { what: "WINDOW_UPDATE", kind: WINDOW_UPDATE, flags: 0, stream: 0, payload: &[0, 0, 0, 1] },
    Flood { what: "PRIORITY", kind: 2, flags: 0, stream: 5, payload: &[0, 0, 0, 0, 1] },
    Flood { what: "PRIORITY_UPDATE", kind: 16, flags: 0, stream: 0, payload: &[0, 0, 0, 5, b'u'] },
    Flood { what: "an unknown type", kind: 0x2a, flags: 0, stream: 0, payload: &[0; 100] },
    Flood { what: "empty DATA", kind: DATA, flags: 0, stream: 1, payload: &[] },
    Flood {
        what: "RST_STREAM of a stream that is over",
        kind: RST_STREAM,
        flags: 0,
        stream: 3,
        payload: &[0, 0, 0, 8],
    },
];

#[test]
fn floods_of_frames_end_their_connection() {
    let proxy = Proxy::start_after(&with_admin(&echo(), ""), "admin at http://");
    let before = proxy.memory_kib();
    for Flood { what, kind, flags, stream, payload } in FLOODS {
        let mut client = Raw::connect(&proxy);
        // A stream that stays open, and one that is over.
        client.send(HEADERS, END_HEADERS, 1, &[&[0x83][..], &GET[1..]].concat());
        client.request(3);
        client.until(|frame| frame.stream == 3 && frame.flags & END_STREAM != 0);
        // Few enough for all of them to be read.
        let sent = (0..3_000).take_while(|_| client.send(kind, flags, stream, payload)).count();
        assert!(sent > 100, "{what}: {sent}");
        assert_eq!(client.goaway(), ENHANCE_YOUR_CALM, "{what}");
        let mut rest = Vec::new();
        let _ = client.0.read_to_end(&mut rest);
        assert_eq!(proxy.get("/", "").status(), 200, "{what}");
    }
    assert!(metric(&proxy, REFUSED, "flood") >= 7.0);
    assert!(proxy.memory_kib() < before + 16 * 1024);
}

#[test]
fn lists_of_fields_that_unfold_to_much_cost_little() {
    // A field of 4,000 bytes in the dynamic table, and references to it of a byte each.
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let before = proxy.memory_kib();
    let field = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4_000]].concat();
    let bomb = |references: usize| [GET, &field, &vec![0xbe; references]].concat();
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = Raw::connect(&proxy);
        assert!(client.send(HEADERS, END_STREAM | END_HEADERS, 1, &bomb(12_000)));
        assert_eq!(client.goaway(), ENHANCE_YOUR_CALM);
        // Beyond the limit, but not far: the request is refused.
        let mut client = Raw::connect(&proxy);
        assert!(client.send(HEADERS, END_STREAM | END_HEADERS, 1, &bomb(20)));
        let end = client.until(|frame| frame.stream == 1);
        assert!(end.kind == HEADERS && end.payload[0] != STATUS_200, "it is refused");
        clients.push(client);
    }
    assert!(proxy.memory_kib() < before + 16 * 1024);
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn crumbs_of_cookies_are_joined_within_the_limit_of_the_head() {
    // CVE-2026-49975: `cookie: a=1` in the dynamic table, and references to it of a byte each.
    let crumbs = |count: usize| [GET, &[0x60, 3], b"a=1", &vec![0xbe; count - 1]].concat();
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    for (count, is_served) in [(100, true), (101, true), (700, true), (900, false)] {
        let mut client = Raw::connect(&proxy);
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, &crumbs(count));
        let head = client.until(|frame| frame.stream == 1);
        assert_eq!((head.kind, head.payload[0] == STATUS_200), (HEADERS, is_served), "{count} crumbs");
    }
    // Where the manifest allows many, they are joined in linear time.
    let proxy = limited(&echo(), "fields = 10000, head = \"1 MiB\"", "");
    let mut client = Raw::connect(&proxy);
    client.send(HEADERS, END_STREAM | END_HEADERS, 1, &crumbs(9_900));
    let head = client.until(|frame| frame.stream == 1);
    assert_eq!((head.kind, head.payload[0]), (HEADERS, STATUS_200));
    let mut body = 0;
    client.until(|frame| {
        body += frame.content();
        frame.stream == 1 && frame.flags & END_STREAM != 0
    });
    assert!(body > 9_900 * 5, "{body}");
}

// === TLS ===

/// A proxy with TLS, and the trust that its clients need.
struct Secure {
    proxy: Proxy,
    config: Arc<ClientConfig>,
    _folder: tempfile::TempDir,
}

impl Secure {
    fn start(limits: &str) -> Secure {
        Secure::start_by(plugway(), limits, 2)
    }

    /// Starts a proxy by a command, with limits of its listener.
    fn start_by(command: Command, limits: &str, workers: usize) -> Secure {
        let folder = tempfile::tempdir().unwrap();
        let made = plugway().args(["cert", "--self-signed", "--out"]).arg(folder.path()).status().unwrap();
        assert!(made.success());
        let tls = "[listener.tls]\ncertificates = [{ chain = \"cert.pem\", key = \"key.pem\" }]\n";
        let listener = format!("address = \"127.0.0.1:0\"\nlimits = {{ {limits} }}\n{tls}");
        let text = manifest(&echo(), "", "").replace("address = \"127.0.0.1:0\"\n", &listener);
        let text = text.replace("workers = 2", &format!("workers = {workers}"));
        let proxy = Proxy::start_by(command, folder.path(), &text);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.path().join("cert.pem")).unwrap()).unwrap();
        let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
        Secure { proxy, config, _folder: folder }
    }

    /// Opens a connection of a client that has received a response.
    fn client(&self) -> StreamOwned<ClientConnection, TcpStream> {
        let connection = ClientConnection::new(self.config.clone(), "localhost".try_into().unwrap()).unwrap();
        let mut client = StreamOwned::new(connection, self.proxy.connect());
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_eq!(read_message(&mut BufReader::new(&mut client)).unwrap().status(), 200);
        client
    }
}

/// New connections were evicted as those of one client until they were counted: the oldest first, of whichever client.
#[test]
fn connections_that_are_accepted_at_once_with_those_of_a_crowd_stay() {
    let text = with_admin(&echo(), "connections = 40, head-timeout = \"1h\"").replace("workers = 2", "workers = 1");
    let proxy = Proxy::start(&text);
    proxy.signal("STOP");
    let mut honest = proxy.connect_from("127.0.0.3");
    assert!(ask(&mut honest, "/"));
    let crowd = silent(&proxy, "127.0.0.2", 60);
    proxy.signal("CONT");
    assert_eq!(status(&honest), 200);
    drop(crowd);
}

#[test]
fn handshakes_that_never_end_keep_no_other_out() {
    let secure = Secure::start("connections = 40, head-timeout = \"1h\"");
    let mut all = silent(&secure.proxy, "127.0.0.2", 60);
    // The beginning of a ClientHello of 16 KiB.
    let begun = [0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
    all.iter_mut().step_by(2).for_each(|stream| drop(stream.write_all(&begun)));
    for _ in 0..5 {
        secure.client();
    }
}

/// Returns the ClientHello of a client for `localhost`.
fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut connection = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn handshakes_of_one_client_leave_turns_to_others() {
    let mut command = plugway();
    command.env("PLUGWAY_LOG", "debug");
    let secure = Secure::start_by(command, "", 1);
    let mut flight = client_hello(&secure.config);
    // Enciphered, as the server expects, but with nothing in it: the handshake fails behind the answer to the ClientHello.
    flight.extend([0x17, 3, 3, 0, 32]);
    flight.extend([0; 32]);
    secure.proxy.signal("STOP");
    let mut clients = Vec::new();
    for from in std::iter::repeat_n("127.0.0.2", 200).chain(["127.0.0.3"]) {
        let mut stream = secure.proxy.connect_from(from);
        stream.write_all(&flight).unwrap();
        clients.push(stream);
    }
    secure.proxy.signal("CONT");
    let mut before = 0;
    while !secure.proxy.wait_log("client=\"127.0.0.").contains("127.0.0.3") {
        before += 1;
    }
    assert!(before < 100, "{before} handshakes of another client came first");
}

#[test]
fn a_client_that_has_left_gets_no_handshake() {
    let secure = Secure::start("");
    let hello = client_hello(&secure.config);
    secure.proxy.signal("STOP");
    let mut client = secure.proxy.connect();
    client.write_all(&hello).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    secure.proxy.signal("CONT");
    match client.read(&mut [0; 100]) {
        Ok(read) => assert_eq!(read, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    secure.client();
}

#[test]
fn floods_of_key_updates_end_their_connection() {
    let secure = Secure::start("");
    let mut client = secure.client();
    // rustls accepts 32 without content between them.
    for _ in 0..100 {
        client.conn.refresh_traffic_keys().unwrap();
        if client.flush().is_err() {
            break;
        }
    }
    match client.read(&mut [0; 100]) {
        Ok(read) => assert_eq!(read, 0),
        Err(error) => assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}"),
    }
    secure.client();
}

// === Honest traffic ===

#[test]
fn many_requests_on_a_connection_are_no_flood() {
    let proxy = limited(&origin(|_| ok("hello")), "requests = 100000", "");
    let address = format!("http://{}/", proxy.address);
    let report = output(Command::new("h2load").args(["-n", "10000", "-c", "1", "-m", "100", &address]));
    assert!(report.contains("10000 succeeded, 0 failed, 0 errored, 0 timeout"), "{report}");
}

/// Starts an origin that echoes each chunk of a request body at once.
fn parrot() -> String {
    raw_origin(|mut stream| {
        let mut piece = [0; 16 << 10];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_exact(&mut piece[..1]).is_err() {
                return;
            }
            head.push(piece[0]);
        }
        stream.set_nodelay(true).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        // Chunks pass as they are.
        while let Ok(length @ 1..) = stream.read(&mut piece) {
            if stream.write_all(&piece[..length]).is_err() {
                return;
            }
        }
    })
}

#[test]
fn small_messages_to_and_fro_are_no_flood() {
    let proxy = Proxy::start(&manifest(&parrot(), "", ""));
    let mut client = Raw::connect(&proxy);
    client.send(HEADERS, END_HEADERS, 1, &[&[0x83][..], &GET[1..]].concat());
    for round in 0..5_000 {
        assert!(client.send(DATA, 0, 1, b"0123456789"), "{round}");
        let mut got = 0;
        while got < 10 {
            got += client.until(|frame| frame.kind == DATA || frame.kind == GOAWAY).content();
        }
        // As gRPC does: it measures the bandwidth, and opens both windows.
        client.send(PING, 0, 0, &[1; 8]);
        client.send(WINDOW_UPDATE, 0, 0, &10_u32.to_be_bytes());
        client.send(WINDOW_UPDATE, 0, 1, &10_u32.to_be_bytes());
    }
    client.send(DATA, END_STREAM, 1, &[]);
    client.until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0);
}

#[test]
fn a_download_that_is_read_in_small_pieces_is_no_flood() {
    const LENGTH: usize = 8 << 20;
    let proxy = Proxy::start(&manifest(&sized(), "", ""));
    let mut client = Raw::connect(&proxy);
    let path = format!("/{LENGTH}");
    let head = [&[0x82, 0x86, 0x41, 1, b'a', 0x04, path.len() as u8][..], path.as_bytes()].concat();
    client.send(HEADERS, END_STREAM | END_HEADERS, 1, &head);
    let mut got = 0;
    while got < LENGTH {
        let frame = client.until(|frame| matches!(frame.kind, DATA | GOAWAY));
        assert_eq!(frame.kind, DATA, "after {got} bytes");
        got += frame.content();
        let mut updates = Vec::new();
        for piece in frame.payload.chunks(512) {
            for stream in [0, 1] {
                updates.extend([0, 0, 4, WINDOW_UPDATE, 0, 0, 0, 0, stream]);
                updates.extend((piece.len() as u32).to_be_bytes());
            }
        }
        client.0.write_all(&updates).unwrap();
    }
}

#[test]
fn an_upload_in_small_pieces_is_no_flood() {
    const LENGTH: usize = 8 << 20;
    let count = origin(|request| ok(&request.body.len().to_string()));
    let proxy = Proxy::start(&manifest(&count, "", ""));
    let mut client = Raw::connect(&proxy);
    client.send(HEADERS, END_HEADERS, 1, &[&[0x83][..], &GET[1..]].concat());
    let mut windows = [65_535_i64, 65_535];
    let settings = |frame: &Frame| {
        // The initial window of streams.
        let mut pairs = frame.payload.chunks_exact(6);
        let window =
            pairs.find(|pair| pair[..2] == [0, 4]).map(|pair| u32::from_be_bytes(pair[2..].try_into().unwrap()));
        window.map_or(0, |window| i64::from(window) - 65_535)
    };
    for _ in 0..LENGTH / 1024 {
        while windows.iter().any(|window| *window < 1024) {
            let frame = client.until(|frame| matches!(frame.kind, WINDOW_UPDATE | SETTINGS | GOAWAY));
            match frame.kind {
                WINDOW_UPDATE => {
                    windows[usize::from(frame.stream > 0)] +=
                        i64::from(u32::from_be_bytes(frame.payload[..4].try_into().unwrap()));
                }
                SETTINGS if frame.flags & ACK == 0 => {
                    windows[1] += settings(&frame);
                    client.send(SETTINGS, ACK, 0, &[]);
                }
                SETTINGS => {}
                _ => panic!("the proxy says farewell"),
            }
        }
        assert!(client.send(DATA, 0, 1, &[b'x'; 1024]));
        windows.iter_mut().for_each(|window| *window -= 1024);
    }
    client.send(DATA, END_STREAM, 1, &[]);
    let mut said = Vec::new();
    client.until(|frame| {
        said.extend_from_slice(if frame.kind == DATA { &frame.payload } else { &[] });
        frame.stream == 1 && frame.flags & END_STREAM != 0
    });
    assert_eq!(String::from_utf8(said).unwrap(), LENGTH.to_string());
}

#[test]
fn a_page_that_is_left_is_no_flood() {
    let held = Holding::start();
    let proxy = Proxy::start(&manifest(&held.address, "", ""));
    let mut client = Raw::connect(&proxy);
    let head = [&[0x82, 0x86, 0x41, 1, b'a', 0x04, 5][..], b"/held"].concat();
    for stream in (1..120).step_by(2) {
        client.send(HEADERS, END_STREAM | END_HEADERS, stream, &head);
        client.send(16, 0, 0, &[&stream.to_be_bytes()[..], b"u=5"].concat());
    }
    held.wait();
    for stream in (1..100).step_by(2) {
        client.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    }
    client.request(121);
    let answered = client.until(|frame| frame.stream == 121 || frame.kind == GOAWAY);
    assert_eq!(answered.kind, HEADERS);
    drop(held.release);
}

// === HTTP/1 ===

#[test]
fn pipelined_requests_whose_responses_nobody_reads_cost_little() {
    let proxy = limited(&sized(), "requests = 100000", "");
    let before = proxy.memory_kib();
    let mut client = proxy.connect();
    client.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let requests = b"GET /10000 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    // Until the proxy takes no more.
    let sent = (0..1000).take_while(|_| client.write_all(&requests).is_ok()).count();
    assert!(sent < 1000, "{sent}");
    assert!(proxy.memory_kib() < before + 16 * 1024);
    assert_eq!(proxy.get("/1", "").status(), 200);
}

#[test]
fn frames_without_a_request_are_limited() {
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let floods = [
        ("empty lines", String::new(), "\r\n".to_string()),
        ("extensions of chunks", chunked.to_string(), format!("1;{}\r\nx\r\n", "e".repeat(200))),
        ("trailers", format!("{chunked}0\r\n"), "X-Trailer: y\r\n".to_string()),
        ("fields", "GET / HTTP/1.1\r\nHost: a\r\n".to_string(), "X-Field: y\r\n".to_string()),
    ];
    let proxy = Proxy::start(&manifest(&echo(), "", ""));
    let before = proxy.memory_kib();
    for (what, head, piece) in floods {
        let mut client = proxy.connect();
        client.write_all(head.as_bytes()).unwrap();
        let pieces = piece.repeat(100);
        let began = Instant::now();
        while client.write_all(pieces.as_bytes()).is_ok() {
            assert!(began.elapsed() < PATIENCE, "{what} have no end");
        }
        assert_eq!(proxy.get("/", "").status(), 200, "{what}");
    }
    assert!(proxy.memory_kib() < before + 16 * 1024);
}

/// Starts an HTTP/2 endpoint that answers each request with frames of one kind as long as they are accepted. The
/// endpoint reports when its connection was closed.
fn flooding(frame: &'static [u8], cut_off: Sender<()>) -> String {
    raw_origin(move |mut stream| {
        // SETTINGS.
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
        let mut received = vec![0; 64 << 10];
        let frames = frame.repeat(100);
        while stream.read(&mut received).is_ok_and(|length| length > 0) {
            while stream.write_all(&frames).is_ok() {}
        }
        let _ = cut_off.send(());
    })
}

#[test]
fn an_endpoint_that_floods_is_cut_off() {
    let floods: [(&str, &[u8]); 5] = [
        // Of the stream of the first request, which is answered by the first of them.
        ("RST_STREAM", &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 5]),
        ("PING", &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("SETTINGS", &[0, 0, 0, 4, 0, 0, 0, 0, 0]),
        ("WINDOW_UPDATE", &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("frames without a use", &[0, 0, 1, 0x2a, 0, 0, 0, 0, 0, 7]),
    ];
    for (kind, frame) in floods {
        let (told, cut_off) = mpsc::channel();
        let origin = format!("h2c://{}", flooding(frame, told));
        let proxy = Proxy::start(&manifest(&origin, "", "").replace("endpoints", "retry = false\nendpoints"));
        assert_eq!(proxy.get("/", "").status(), 502, "{kind}");
        assert!(cut_off.recv_timeout(PATIENCE).is_ok(), "{kind}");
        let line = proxy.wait_log("too many frames");
        assert!(line.contains(kind), "{line}");
    }
}
