//! Floods of connections and of frames: each is bounded, and ends nobody else's service.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};

use socket2::{Domain, Socket, Type};

use crate::support::{PATIENCE, Proxy, echo, manifest, ok, origin, plugway_after, read_message, until};

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

/// A connection from one of the addresses of loopback.
fn connect_from(proxy: &Proxy, from: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&format!("{from}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&proxy.address.parse::<SocketAddr>().unwrap().into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request on a connection, and doesn't wait for the response.
fn ask(stream: &mut TcpStream, path: &str) -> bool {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).is_ok()
}

/// The status of the next response; 0 if the connection is closed before.
fn status(stream: &TcpStream) -> u16 {
    read_message(&mut BufReader::new(stream.try_clone().unwrap())).map_or(0, |message| message.status())
}

/// A request for `/` on a new connection from an address.
fn is_served_from(proxy: &Proxy, from: &str) -> bool {
    let mut stream = connect_from(proxy, from);
    ask(&mut stream, "/") && status(&stream) == 200
}

fn silent(proxy: &Proxy, from: &str, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| connect_from(proxy, from)).collect()
}

fn metric(proxy: &Proxy, name: &str, labels: &str) -> f64 {
    let text = proxy.ask_admin("GET /metrics").text();
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(labels));
    line.unwrap_or_else(|| panic!("no {name} with {labels} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

/// A manifest of a listener with limits, and an admin listener.
fn with_admin(origin: &str, limits: &str) -> String {
    let listener = format!("address = \"127.0.0.1:0\"\nlimits = {{ {limits} }}\n");
    manifest(origin, "", "[admin]\naddress = \"127.0.0.1:0\"\n")
        .replace("address = \"127.0.0.1:0\"\n[up", &format!("{listener}[up"))
}

const REFUSED: &str = "plugway_client_connections_closed_total";

// === Descriptors ===

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

#[test]
fn clients_that_are_all_served_let_others_wait_for_a_descriptor() {
    let held = Holding::start();
    let text = manifest(&held.address, "", "").replace("workers = 2", "workers = 1");
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start_by(plugway_after("ulimit -n 100"), folder.path(), &text);
    // More than there are descriptors for, each with a request.
    let mut streams: Vec<TcpStream> = (1..41).map(|n| connect_from(&proxy, &format!("127.0.0.{n}"))).collect();
    streams.iter_mut().for_each(|stream| assert!(ask(stream, "/held")));
    let used_up = proxy.wait_log("descriptors for clients are used up");
    assert!(used_up.contains("limit=100"), "{used_up}");
    (0..8).for_each(|_| held.wait());
    // Those that end make room for those that wait: in the end all have been served.
    (0..40).for_each(|_| held.release.send(()).unwrap());
    let served = streams.iter().filter(|stream| status(stream) == 200).count();
    assert_eq!(served, 40);
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
        until("the listener is full", || metric(&proxy, "plugway_client_connections{", "") >= 32.0);
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
