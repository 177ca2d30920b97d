//! Upstreams whose endpoints are mostly dead: the other endpoints still get as many requests as they can serve.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::client::{ask, load};
use crate::support::origin::{Backend, Does};
use crate::support::{Proxy, RUNTIME, plugway, refusing, until};

const GET: &str = "GET / HTTP/1.1";
const POST: &str = "POST / HTTP/1.1\r\nContent-Length: 0";

/// An address at which the system drops connection requests, as its accept queue is full.
pub struct Hole {
    address: SocketAddr,
    _socket: socket2::Socket,
    _queued: Vec<socket2::Socket>,
}

impl Hole {
    pub fn at(ip: Ipv4Addr, port: u16) -> Hole {
        let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let socket = new();
        socket.bind(&SocketAddr::from((ip, port)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let queued = (0..4).map(|_| {
            let queued = new();
            queued.set_nonblocking(true).unwrap();
            let _ = queued.connect(&address.into());
            queued
        });
        let hole = Hole { address, _queued: queued.collect(), _socket: socket };
        until("its queue is full", || TcpStream::connect_timeout(&address, Duration::from_millis(50)).is_err());
        hole
    }

    fn new() -> Hole {
        Hole::at(Ipv4Addr::LOCALHOST, 0)
    }
}

fn manifest(endpoints: &[String], more: &str) -> String {
    format!(
        "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"app\"\n[upstream.app]\n\
         endpoints = {endpoints:?}\n{more}"
    )
}

/// Returns the state of each endpoint, in order.
fn states(proxy: &Proxy) -> Vec<String> {
    let status: serde_json::Value = serde_json::from_str(&proxy.ask_admin("GET /status").text()).unwrap();
    let endpoints = status["upstreams"][0]["endpoints"].as_array().unwrap().iter();
    endpoints.map(|endpoint| endpoint["state"].as_str().unwrap().into()).collect()
}

#[test]
fn of_many_that_refuse_connections_the_one_that_is_well_gets_all_requests() {
    let good = Backend::start("good");
    for dead in [1, 2, 4, 9] {
        let endpoints: Vec<String> = (0..dead).map(|_| refusing()).chain([good.address.clone()]).collect();
        for method in [GET, POST] {
            let proxy = Proxy::start(&manifest(&endpoints, ""));
            let before = good.requests();
            let seen = load(&proxy, 8, method, || until("3,000 have passed", || good.requests() > before + 3_000));
            assert_eq!(seen.status(200), seen.total(), "{dead} dead, {method}: {seen:?}");
            let states = states(&proxy);
            assert!(states[..dead].iter().all(|state| state == "ejected"), "{states:?}");
            assert_eq!(states[dead], "up");
            assert_eq!(proxy.metric("plugway_upstream_retries_denied_total{upstream=\"app\"}"), 0.0);
        }
    }
}

#[test]
fn connections_that_are_not_made_cost_no_retry() {
    let good = Backend::start("good");
    // More are dead than there are retries, and none may be ejected.
    let endpoints = [refusing(), refusing(), refusing(), refusing(), good.address.clone()];
    for more in ["outliers = false", "outliers = false\nretry = { retries = 1, budget = 1 }"] {
        let proxy = Proxy::start(&manifest(&endpoints, more));
        let seen = ask(&proxy, 400, POST);
        assert_eq!(seen.status(200), 400, "{seen:?}");
    }
    let proxy = Proxy::start(&manifest(&endpoints, "outliers = false\nretry = false"));
    assert!(ask(&proxy, 10, POST).status(502) >= 7, "nothing is repeated against the operator's word");
    let proxy = Proxy::start(&manifest(&endpoints[..4], ""));
    assert_eq!(ask(&proxy, 20, POST).status(502), 20, "with all of them dead, the client is told");
}

#[test]
fn addresses_that_answer_nothing_are_passed_over_and_left_out() {
    let (good, holes) = (Backend::start("good"), [Hole::new(), Hole::new()]);
    let endpoints = [holes[0].address.to_string(), holes[1].address.to_string(), good.address.clone()];
    let proxy = Proxy::start(&manifest(&endpoints, "connect-timeout = \"200ms\""));
    let seen = load(&proxy, 8, POST, || until("enough have passed", || good.requests() > 500));
    assert_eq!(seen.status(200), seen.total(), "{seen:?}");
    assert_eq!(states(&proxy), ["ejected", "ejected", "up"]);
}

#[test]
fn an_address_that_answers_nothing_holds_up_no_request_for_long() {
    let (good, holes) = (Backend::start("good"), [Hole::new(), Hole::new()]);
    let endpoints = [holes[0].address.to_string(), holes[1].address.to_string(), good.address.clone()];
    // With a whole connect-timeout of five seconds for each of them, a request would take ten.
    let proxy = Proxy::start(&manifest(&endpoints, ""));
    for method in [GET, POST] {
        let began = Instant::now();
        assert_eq!(ask(&proxy, 30, method).of("good"), 30);
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
    let failures = |place: usize| {
        let address = holes[place].address;
        proxy.metric(&format!("plugway_endpoint_failures_total{{upstream=\"app\",endpoint=\"{address}\"}}"))
    };
    until("the failures are noted", || failures(0) > 0.0 && failures(1) > 0.0);
    assert!(failures(0) + failures(1) < 6.0, "and once for each worker that had to find out");
    // With no other endpoint to go to, a request waits for as long as it may, and once.
    for count in [1, 2] {
        let proxy = Proxy::start(&manifest(&endpoints[..count], "connect-timeout = \"1s\""));
        let began = Instant::now();
        assert_eq!(ask(&proxy, 1, GET).status(504), 1);
        let took = began.elapsed();
        assert!((Duration::from_secs(1)..Duration::from_millis(1900)).contains(&took), "{count}: {took:?}");
    }
}

#[test]
fn an_endpoint_that_refuses_is_asked_again_beside_one_that_answers_nothing() {
    let (hole, refusing) = (Hole::new(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = refusing.local_addr().unwrap();
    drop(refusing);
    let endpoints = [hole.address.to_string(), address.to_string()];
    let proxy = Proxy::start(&manifest(&endpoints, "connect-timeout = \"1s\"\noutliers = false"));
    let began = Instant::now();
    let seen = ask(&proxy, 1, GET);
    assert_eq!(seen.status(502) + seen.status(504), 1, "{seen:?}");
    assert!(began.elapsed() < Duration::from_millis(2600), "{:?}", began.elapsed());
    let good = Backend::listening("good", TcpListener::bind(address).unwrap());
    assert_eq!(ask(&proxy, 10, GET).of("good"), 10);
    drop(good);
}

#[test]
fn the_last_that_answers_is_not_left_among_dead_ones_by_a_limit() {
    let good = Backend::start("good");
    let ill = [Backend::start("a"), Backend::start("b"), Backend::start("c")];
    ill.iter().for_each(|ill| ill.does(Does::Status(503)));
    let endpoints: Vec<String> = ill.iter().chain([&good]).map(|backend| backend.address.clone()).collect();
    let more = "retry = { on = [503] }\noutliers = { statuses = [503], ejection = \"1m\" }";
    let proxy = Proxy::start(&manifest(&endpoints, more));
    until("the dead are out", || {
        ask(&proxy, 10, GET);
        states(&proxy) == ["ejected", "ejected", "ejected", "up"]
    });
    assert_eq!(ask(&proxy, 100, GET).of("good"), 100);
    // One that does half of its work is spared, as `max` says.
    let more = "outliers = { consecutive = 2, most = 1, statuses = [503], ejection = \"1m\" }\nretry = false";
    let proxy = Proxy::start(&manifest(&endpoints, more));
    for _ in 0..20 {
        ill[1].does(Does::Answer);
        ask(&proxy, 4, GET);
        ill[1].does(Does::Status(503));
        ask(&proxy, 8, GET);
    }
    assert_eq!(states(&proxy), ["ejected", "up", "ejected", "up"]);
}

#[test]
fn of_endpoints_that_are_all_out_the_first_that_answers_is_taken_back() {
    let mut all = [Backend::start("a"), Backend::start("b"), Backend::start("c")];
    let endpoints: Vec<String> = all.iter().map(|backend| backend.address.clone()).collect();
    let proxy = Proxy::start(&manifest(&endpoints, "outliers = { ejection = \"1h\", longest-ejection = \"1h\" }"));
    for backend in &mut all {
        backend.kill();
    }
    ask(&proxy, 30, GET);
    assert_eq!(states(&proxy), ["ejected", "ejected", "ejected"]);
    for at in [1, 2] {
        all[at].revive();
        assert_eq!(ask(&proxy, 50, GET).status(200), 50);
        assert_eq!(states(&proxy)[at], "up");
        all[at].kill();
        ask(&proxy, 30, GET);
    }
}

#[test]
fn an_ejected_endpoint_is_asked_before_a_request_fails() {
    let (mut a, mut b) = (Backend::start("a"), Backend::start("b"));
    let endpoints = [a.address.clone(), b.address.clone()];
    let proxy = Proxy::start(&manifest(&endpoints, "outliers = { ejection = \"1h\", longest-ejection = \"1h\" }"));
    a.kill();
    assert_eq!(ask(&proxy, 20, GET).status(200), 20);
    assert_eq!(states(&proxy), ["ejected", "up"]);
    a.revive();
    b.kill();
    assert_eq!(ask(&proxy, 40, POST).of("a"), 40);
}

// === Names ===

/// Starts the proxy with a name that the system resolves by a hosts file.
pub fn start_with_hosts(hosts: &str, manifest: &str) -> (Proxy, tempfile::TempDir) {
    start_with_system(&[("/etc/hosts", &format!("127.0.0.1 localhost\n{hosts}"))], manifest)
}

/// Starts the proxy with other files in place of some of the system's. They are in the returned folder, under their last
/// names, and may be written again.
pub fn start_with_system(files: &[(&str, &str)], manifest: &str) -> (Proxy, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut script = String::new();
    for (path, text) in files {
        let own = folder.path().join(path.rsplit('/').next().unwrap());
        std::fs::write(&own, text).unwrap();
        script.push_str(&format!("mount --bind {} {path} && ", own.display()));
    }
    // A namespace of its own, in which the files lie over the system's.
    let mut command = Command::new("unshare");
    let script = format!("{script}exec \"$@\"");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    let program = plugway();
    command.arg(program.get_program());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    for (name, value) in program.get_envs().filter(|(name, _)| *name != RUNTIME) {
        command.env(name, value.unwrap());
    }
    let proxy = Proxy::start_by(command, folder.path(), manifest);
    (proxy, folder)
}

/// Returns a port at which one loopback address drops connections, and others are free.
fn with_hole(hole: Ipv4Addr, good: Ipv4Addr) -> (Hole, Backend) {
    let listener = TcpListener::bind((good, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (Hole::at(hole, port), Backend::listening("good", listener))
}

#[test]
fn a_name_whose_first_address_is_dead_is_reached_at_the_next() {
    let (dead, alive) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let (_hole, good) = with_hole(dead, alive);
    let port = good.address.rsplit(':').next().unwrap();
    let text = manifest(&[format!("two.test:{port}")], "[upstream.app.health]\nkind = \"tcp\"\ninterval = \"100ms\"");
    for hosts in [format!("{dead} two.test\n{alive} two.test\n"), format!("{alive} two.test\n{dead} two.test\n")] {
        let (proxy, _folder) = start_with_hosts(&hosts, &text);
        let before = good.requests();
        let began = Instant::now();
        assert_eq!(ask(&proxy, 20, POST).of("good"), 20);
        assert_eq!(good.requests() - before, 20);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        // The first check decides at once, so that a check has passed once the endpoint is up after a second one.
        assert_eq!(states(&proxy), ["up"]);
    }
}
