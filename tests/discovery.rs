//! Endpoints that are found by name or listed in a file.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use crate::dead_endpoints::start_with_system;
use crate::python::Python;
use crate::support::client::ask;
use crate::support::name_server::{Failing, NameServer};
use crate::support::origin::Backend;
use crate::support::{Proxy, until};

const GET: &str = "GET / HTTP/1.1";

fn manifest(endpoints: &str, server: &NameServer, more: &str) -> String {
    format!(
        "workers = 2\n[resolver]\nservers = [{:?}]\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[route]]\nupstream = \"app\"\n[upstream.app]\nendpoints = {endpoints}\n{more}",
        server.address
    )
}

/// Backends on the same port of several addresses of loopback, as several machines have them.
fn machines<const N: usize>() -> ([Backend; N], u16) {
    loop {
        let first = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        drop(first);
        let bind = |machine: usize| std::net::TcpListener::bind((address(machine), port));
        let listeners: Vec<_> = (1..=N).map_while(|machine| bind(machine).ok()).collect();
        if let Ok(listeners) = <[_; N]>::try_from(listeners) {
            let mut machine = 0;
            let backends = listeners.map(|listener| {
                machine += 1;
                Backend::listening(&format!("m{machine}"), listener)
            });
            return (backends, port);
        }
    }
}

fn address(machine: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, machine as u8))
}

fn names(proxy: &Proxy) -> Vec<String> {
    ask(proxy, 12, GET).0.into_keys().collect()
}

#[test]
fn a_name_is_looked_up_again_when_its_time_is_over() {
    let (_machines, port) = machines::<3>();
    let server = NameServer::start();
    server.set("app.test", &[address(1), address(2)], 1);
    let endpoints = format!("[{{ dns = \"app.test:{port}\" }}]");
    let proxy = Proxy::start(&manifest(&endpoints, &server, ""));
    assert_eq!(names(&proxy), ["200 m1", "200 m2"]);
    server.set("app.test", &[address(3)], 1);
    until("the new address is used alone", || names(&proxy) == ["200 m3"]);
    server.set("app.test", &[address(1), address(2), address(3)], 1);
    until("all are used", || names(&proxy) == ["200 m1", "200 m2", "200 m3"]);
}

#[test]
fn a_name_that_stops_resolving_keeps_its_endpoints_and_says_so() {
    let (_machines, port) = machines::<2>();
    let server = NameServer::start();
    server.set("app.test", &[address(1)], 1);
    let endpoints = format!("[{{ dns = \"app.test:{port}\" }}]");
    let text = manifest(&endpoints, &server, "");
    let proxy = Proxy::start(&text);
    for failing in [Failing::NoSuchName, Failing::ServerFailure] {
        server.fail(failing);
        proxy.wait_log("its last endpoints are kept");
        assert_eq!(names(&proxy), ["200 m1"]);
    }
    // Nor does a reload that leaves the name alone forget them.
    proxy.reload(&text.replace("[[route]]", "[[route]]\nname = \"all\""));
    proxy.wait_log("reloaded");
    assert_eq!(names(&proxy), ["200 m1"]);
    proxy.reload(&text.replace("endpoints =", "connect-timeout = \"1s\"\nslow-start = \"1s\"\nendpoints ="));
    proxy.wait_log("reloaded");
    assert_eq!(names(&proxy), ["200 m1"]);
    server.set("app.test", &[address(2)], 1);
    server.fail(Failing::Never);
    until("it is looked up again", || names(&proxy) == ["200 m2"]);
}

#[test]
fn a_name_that_is_unknown_at_the_start_is_used_as_soon_as_it_is_known() {
    let (_machines, port) = machines::<1>();
    let server = NameServer::start();
    let proxy = Proxy::start(&manifest(&format!("[{{ dns = \"late.test:{port}\" }}]"), &server, ""));
    let refused = proxy.get("/", "");
    assert_eq!(
        (refused.status(), refused.field("proxy-status")),
        (503, Some("plugway; error=destination_unavailable"))
    );
    server.set("late.test", &[address(1)], 60);
    until("it is used", || proxy.get("/", "").status() == 200);
}

#[test]
fn a_name_that_is_unknown_harms_nobody_beside_it() {
    let a = Backend::start("a");
    let server = NameServer::start();
    let proxy = Proxy::start(&manifest(&format!("[{:?}, {{ dns = \"no.test:80\" }}]", a.address), &server, ""));
    assert_eq!(names(&proxy), ["200 a"]);
}

#[test]
fn a_service_has_ports_weights_and_priorities() {
    let (a, b, mut c) = (Backend::start("a"), Backend::start("b"), Backend::start("c"));
    let server = NameServer::start();
    server.set("host.test", &[address(1)], 60);
    let port = |backend: &Backend| backend.address.rsplit(':').next().unwrap().parse().unwrap();
    let records = [(10, 3, port(&a), "host.test"), (10, 1, port(&b), "host.test"), (20, 1, port(&c), "host.test")];
    server.set_services("_http._tcp.app.test", &records, 1);
    let proxy = Proxy::start(&manifest("[{ srv = \"_http._tcp.app.test\" }]", &server, "outliers = false"));
    let seen = ask(&proxy, 40, GET);
    assert_eq!((seen.of("a"), seen.of("b"), seen.of("c")), (30, 10, 0));
    c.kill();
    server.set_services("_http._tcp.app.test", &records[1..2], 1);
    until("b is alone", || ask(&proxy, 10, GET).of("b") == 10);
}

#[test]
fn the_weight_of_a_service_is_shared_by_the_addresses_of_its_target() {
    let (_machines, port) = machines::<4>();
    let server = NameServer::start();
    server.set("many.test", &[address(1), address(2), address(3)], 60);
    server.set("one.test", &[address(4)], 60);
    server.set_services("_http._tcp.app.test", &[(0, 50, port, "many.test"), (0, 50, port, "one.test")], 60);
    let proxy = Proxy::start(&manifest("[{ srv = \"_http._tcp.app.test\" }]", &server, ""));
    let seen = ask(&proxy, 120, GET);
    // Seen before: 30 for the target with one address (RFC 2782 has the weight per target).
    assert_eq!((seen.of("m4"), seen.of("m1") + seen.of("m2") + seen.of("m3")), (60, 60));
}

#[test]
fn a_target_of_a_service_that_is_unknown_is_named() {
    let (_machines, port) = machines::<1>();
    let server = NameServer::start();
    server.set("one.test", &[address(1)], 60);
    server.set_services("_http._tcp.app.test", &[(0, 50, port, "one.test"), (0, 50, port, "gone.test")], 60);
    let proxy = Proxy::start(&manifest("[{ srv = \"_http._tcp.app.test\" }]", &server, ""));
    let line = proxy.wait_log("a target of the service can't be looked up");
    assert!(line.contains("gone.test") && line.contains("NXDOMAIN") && line.contains("WARN"), "{line}");
    assert_eq!(names(&proxy), ["200 m1"]);
}

#[test]
fn endpoints_that_the_manifest_no_longer_has_get_nothing_once_the_new_name_is_unknown() {
    let (_machines, port) = machines::<1>();
    let server = NameServer::start();
    server.set("old.test", &[address(1)], 60);
    let text = manifest(&format!("[{{ dns = \"old.test:{port}\" }}]"), &server, "");
    let proxy = Proxy::start(&text);
    assert_eq!(names(&proxy), ["200 m1"]);
    // No server answers: nothing is known of the new name yet.
    server.fail(Failing::ServerFailure);
    proxy.reload(&text.replace("old.test", "nwe.test"));
    let line = proxy.wait_log("the name can't be looked up");
    assert!(line.contains("nwe.test") && line.contains("former manifest"), "{line}");
    assert_eq!(names(&proxy), ["200 m1"]);
    server.fail(Failing::Never);
    // Seen before: the old endpoint was asked for ever.
    until("the old endpoint is out", || proxy.get("/", "").status() == 503);
    server.set("nwe.test", &[address(1)], 60);
    until("the name is used", || proxy.get("/", "").status() == 200);
    // The same for an address in place of a name.
    let fixed = text.replace(&format!("{{ dns = \"old.test:{port}\" }}"), &format!("\"127.0.0.1:{port}\""));
    proxy.reload(&fixed);
    proxy.wait_log("reloaded: generation 3");
    assert_eq!(names(&proxy), ["200 m1"]);
    proxy.reload(&text.replace("old.test", "typo.test"));
    until("the address is out", || proxy.get("/", "").status() == 503);
}

#[test]
fn a_static_endpoint_beside_an_unknown_name_is_counted() {
    let a = Backend::start("a");
    let server = NameServer::start();
    let proxy = Proxy::start(&manifest(&format!("[{:?}, {{ dns = \"no.test:80\" }}]", a.address), &server, ""));
    let line = proxy.wait_log("the name can't be looked up");
    assert!(line.contains("endpoints=1") && !line.contains("no endpoints"), "{line}");
}

/// Returns a manifest that looks names up by the system's files.
fn by_system(endpoint: &str) -> String {
    format!(
        "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"app\"\n\
         [upstream.app]\nendpoints = [{{ dns = {endpoint:?} }}]\n"
    )
}

#[test]
fn a_reload_reads_the_hosts_file_again() {
    let (_machines, port) = machines::<2>();
    let text = by_system(&format!("app.internal:{port}"));
    let files = [("/etc/hosts", "127.0.0.1 app.internal\n"), ("/etc/resolv.conf", "nameserver 127.0.0.1\n")];
    let (proxy, folder) = start_with_system(&files, &text);
    assert_eq!(names(&proxy), ["200 m1"]);
    std::fs::write(folder.path().join("hosts"), "127.0.0.2 app.internal\n").unwrap();
    proxy.signal("HUP");
    proxy.wait_log("reloaded: generation 2");
    // Seen before: the first address for ever.
    until("the new address is used alone", || names(&proxy) == ["200 m2"]);
}

#[test]
fn a_resolver_configuration_that_is_put_right_is_read_without_a_reload() {
    let (_machines, port) = machines::<1>();
    let text = by_system(&format!("app.internal:{port}"));
    let files = [("/etc/hosts", "127.0.0.1 localhost\n"), ("/etc/resolv.conf", "search nowhere.test\n")];
    let (proxy, folder) = start_with_system(&files, &text);
    assert_eq!(proxy.get("/", "").status(), 503);
    std::fs::write(folder.path().join("hosts"), "127.0.0.1 app.internal\n").unwrap();
    // Seen before: 503 for ever, for the lookup was never repeated.
    until("the name is found", || proxy.get("/", "").status() == 200);
}

#[test]
fn a_file_of_endpoints_is_read_when_it_changes() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        std::fs::write(folder.path().join("new"), text).unwrap();
        std::fs::rename(folder.path().join("new"), folder.path().join("app.toml")).unwrap();
    };
    write(&format!("endpoints = [{:?}]", a.address));
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"app\"\n\
                [upstream.app]\nendpoints = [{ file = \"app.toml\" }]\n";
    let proxy = Proxy::start_in(folder.path(), text);
    assert_eq!(names(&proxy), ["200 a"]);
    write(&format!("endpoints = [{:?}, {{ address = {:?}, weight = 2 }}]", a.address, b.address));
    until("both are used", || names(&proxy) == ["200 a", "200 b"]);
    write("endpoints = [\"nonsense\"]");
    let refused = proxy.wait_log("invalid endpoint: `nonsense`");
    assert!(refused.contains("error"), "{refused}");
    assert_eq!(names(&proxy), ["200 a", "200 b"]);
    write("endpoints = []");
    let refused = proxy.wait_log("the files that `endpoints` names list none");
    assert!(refused.contains("error"), "{refused}");
    assert_eq!(names(&proxy), ["200 a", "200 b"]);
    write(&format!("endpoints = [{:?}]", b.address));
    until("a is gone", || names(&proxy) == ["200 b"]);
}

const GRPC_HEALTH: &str = r#"
import grpc, sys, threading
from concurrent import futures
state = {"serving": True}
def check(request, context):
    if request == b"\x0a\x03app":
        return b"\x08\x01" if state["serving"] else b"\x08\x02"
    context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {
    "Check": grpc.unary_unary_rpc_method_handler(check),
})
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((handler,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port)
for line in sys.stdin:
    state["serving"] = line.strip() == "up"
"#;

#[test]
fn grpc_is_asked_whether_it_serves() {
    let mut program = Python::start(GRPC_HEALTH);
    let server = NameServer::start();
    let endpoints = format!("[\"h2c://127.0.0.1:{}\"]", program.first_line);
    let checks = "[upstream.app.health]\nkind = \"grpc\"\nservice = \"app\"\ninterval = \"50ms\"";
    let proxy = Proxy::start(&manifest(&endpoints, &server, checks));
    program.write("down\n");
    let down = proxy.wait_log("endpoint is down: health checks fail");
    assert!(down.contains("it says that it isn't serving"), "{down}");
    program.write("up\n");
    proxy.wait_log("endpoint is up: health checks pass");
    let other = checks.replace("\"app\"", "\"other\"");
    // Not by another proxy: that could say so before it says where it listens, which is waited for first.
    proxy.reload(&manifest(&endpoints, &server, &other));
    assert!(proxy.wait_log("endpoint is down: health checks fail").contains("its gRPC status is 5"));
}

/// The library that asks name servers writes a line for each datagram that is no answer to its question.
#[test]
fn datagrams_that_answer_no_question_write_few_lines() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, from)) = server.recv_from(&mut message) {
            let id = u16::from_be_bytes([message[0], message[1]]);
            message[2] |= 0x80;
            for other in (0..2000).map(|more| id.wrapping_add(1 + more)) {
                message[..2].copy_from_slice(&other.to_be_bytes());
                let _ = server.send_to(&message[..length], from);
            }
        }
    });
    let text = format!(
        "workers = 2\n[resolver]\nservers = [\"{address}\"]\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[route]]\nupstream = \"app\"\n[upstream.app]\nendpoints = [{{ dns = \"app.test:80\" }}]\n"
    );
    let proxy = Proxy::start(&text);
    let left_out = || {
        let text = proxy.ask_admin("GET /metrics").text();
        let line = text.lines().find(|line| line.contains("left_out_total{topic=\"library\""));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    let mut lines = 0;
    until("most lines are left out", || {
        lines += std::iter::from_fn(|| proxy.has_logged("wrong message id").then_some(())).count();
        left_out() >= 500.0
    });
    assert!(lines < 100, "{lines} lines");
}
