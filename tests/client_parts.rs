//! The parts that clients have of what an upstream limits for all: one whose requests take long leaves some to others.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::{Proxy, manifest, ok, origin, read_message, until};

/// An origin that answers requests for `/held` once they are released, and others at once.
#[derive(Clone, Default)]
struct Holding {
    is_released: Arc<AtomicBool>,
    /// The start lines of the requests, in the order of their arrival.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Holding {
    fn start(&self) -> String {
        let Holding { is_released, seen } = self.clone();
        origin(move |request| {
            seen.lock().unwrap().push(request.start.clone());
            if request.start.starts_with("GET /held") {
                until("the responses are released", || is_released.load(Ordering::SeqCst));
            }
            ok("served")
        })
    }

    fn release(&self) {
        self.is_released.store(true, Ordering::SeqCst);
    }
}

/// Returns a manifest with limits of the upstream.
fn limited(holding: &Holding, limits: &str, plugins: &str) -> String {
    let limits =
        format!("[upstream.app]\nlimits = {{ {limits} }}\nconnect-timeout = \"1m\"\nresponse-timeout = \"1m\"");
    let text = manifest(&holding.start(), plugins, "[admin]\naddress = \"127.0.0.1:0\"\n");
    text.replace("[upstream.app]", &limits)
}

/// Starts a proxy in front of an origin, with limits of the upstream.
fn start(holding: &Holding, limits: &str) -> Proxy {
    Proxy::start(&limited(holding, limits, ""))
}

/// Sends requests for `/held` of a client, each on a connection of its own.
fn hold(proxy: &Proxy, client: &str, count: usize) -> Vec<TcpStream> {
    let send = |_| {
        let mut stream = proxy.connect_from(client);
        stream.write_all(b"GET /held HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        stream
    };
    (0..count).map(send).collect()
}

/// Returns the status of the response on each connection.
fn statuses(streams: Vec<TcpStream>) -> Vec<u16> {
    let status = |stream| read_message(&mut std::io::BufReader::new(stream)).unwrap().status();
    streams.into_iter().map(status).collect()
}

fn get(proxy: &Proxy) -> u16 {
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    statuses(vec![stream])[0]
}

#[test]
fn connections_that_one_client_keeps_busy_are_a_part_of_all() {
    let holding = Holding::default();
    let proxy = start(&holding, "connections = 4, pending = 16");
    let held = hold(&proxy, "127.0.0.2", 20);
    proxy.wait_log("limits.pending");
    for _ in 0..8 {
        assert_eq!(get(&proxy), 200);
    }
    holding.release();
    let statuses = statuses(held);
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!(served >= 15 && statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
}

#[test]
fn requests_of_one_client_that_wait_let_others_have_turns() {
    let holding = Holding::default();
    let proxy = start(&holding, "connections = 1, pending = 64");
    let held = hold(&proxy, "127.0.0.2", 40);
    let mut other = proxy.connect();
    other.write_all(b"GET /held/other HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    until("all requests are in flight", || {
        let figures = proxy.ask_admin("GET /metrics").text();
        figures.lines().any(|line| line.starts_with("plugway_endpoint_in_flight{") && line.ends_with(" 41"))
    });
    holding.release();
    assert_eq!(statuses(vec![other]), [200]);
    assert_eq!(statuses(held), [200; 40]);
    let place = holding.seen.lock().unwrap().iter().position(|start| start.starts_with("GET /held/other"));
    assert!(place.is_some_and(|place| place < 30), "{place:?} of 41");
}

#[test]
fn requests_in_flight_of_one_client_are_a_part_of_all() {
    let holding = Holding::default();
    let proxy = start(&holding, "requests = 8");
    let held = hold(&proxy, "127.0.0.2", 10);
    proxy.wait_log("limits.requests");
    for _ in 0..8 {
        assert_eq!(get(&proxy), 200);
    }
    holding.release();
    let served = statuses(held).into_iter().filter(|status| *status == 200).count();
    assert_eq!(served, 6);
}

#[test]
fn a_reload_keeps_the_parts_of_clients() {
    let holding = Holding::default();
    let text = limited(&holding, "requests = 16", "");
    let proxy = Proxy::start(&text);
    let mut held = hold(&proxy, "127.0.0.2", 12);
    let has = || holding.seen.lock().unwrap().len();
    until("the client has its part", || has() == 12);
    proxy.reload(&format!("{text}# changed\n"));
    proxy.wait_log("reloaded: generation 2");
    let more = hold(&proxy, "127.0.0.2", 5);
    held.extend(hold(&proxy, "127.0.0.3", 2));
    until("another client has its part too", || has() == 14);
    assert_eq!(get(&proxy), 200);
    assert_eq!(statuses(more), [503; 5]);
    holding.release();
    assert!(statuses(held).iter().all(|status| *status == 200));
}

/// A request that waits for a connection is not one for which others wait.
#[test]
fn requests_of_a_client_without_a_part_left_keep_no_shared_fetch() {
    let holding = Holding::default();
    let text = limited(&holding, "connections = 4", "\"cache\"");
    let proxy = Proxy::start(&text.replace("connect-timeout = \"1m\"", "connect-timeout = \"2s\""));
    let held = hold(&proxy, "127.0.0.2", 3);
    let has = || holding.seen.lock().unwrap().len();
    until("the client has its part", || has() == 3);
    let mut waiting = proxy.connect_from("127.0.0.2");
    waiting.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let misses = || proxy.metric("plugway_cache_requests_total{plugin=\"cache\",outcome=\"miss\"}");
    until("the request waits", || misses() >= 4.0);
    assert_eq!(get(&proxy), 200);
    drop(waiting);
    holding.release();
    assert_eq!(statuses(held), [200; 3]);
}
