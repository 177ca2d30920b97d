//! The cost of the head hooks of stock plugins, without a socket: the way down a chain of one plugin and the way up again,
//! less the same without a plugin. `cargo bench --package plugway --bench hooks [-- PLUGIN]`
#![expect(clippy::disallowed_methods, reason = "the benchmark measures")]

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use plugway::context::{ClientInfo, ExchangeContext, RequestLine, Words};
use plugway::exchange::chain::{self, ChainPosition};
use plugway::generation::ids::{Id, RouteId, UpstreamId};
use plugway::generation::worker_state::WorkerState;
use plugway::protocol::proxy_protocol::ConnectionAddresses;
use rustix::time::{ClockId, clock_gettime};

#[path = "worker.rs"]
mod worker;

/// The exchanges of a turn. The quickest turn is printed, since it was disturbed least.
const EXCHANGES: u32 = 20_000;
const TURNS: usize = 15;

/// The SHA-256 of `key-gamma`.
const HASH: &str = "48dcfc29339fe4f9ae052b80ed0ced40dc21f90a6e5da1a9076ff463be0e2cbb";

fn main() {
    let only = std::env::args().nth(1).filter(|name| !name.starts_with("--"));
    let networks: Vec<String> = (0..2000).map(|at| format!("\"10.{}.{}.0/24\"", at / 250, at % 250)).collect();
    let plugins = [
        ("headers", "request.set = { X-A = \"1\" }".into()),
        ("ip-filter", format!("deny = [{}]", networks.join(", "))),
        ("auth-key", format!("keys = [{{ name = \"carol\", hash = \"sha256:{HASH}\" }}]")),
        ("cors", "origins = [\"https://app.example.org\", \"https://*.example.net\"]".into()),
        ("body-limit", "max = \"64 KiB\"".into()),
        ("security-headers", String::new()),
        ("request-id", String::new()),
        ("log-fields", "log = { tenant = \"request.header.x-tenant\" }".into()),
        ("rewrite", "rules = [{ regex = '^/old/(.*)$', to = \"/new/$1\" }]".into()),
    ];
    let none = least(&running(""));
    println!("{:<20}{none:>8} ns", "none");
    for (name, config) in plugins.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name)) {
        let table = format!(
            "plugins = [\"it\"]\n[plugin.it]\nuse = \"{name}\"\nlimits.share = 100\n[plugin.it.config]\n{config}\n"
        );
        println!("{name:<20}{:>8} ns more", least(&running(&table)).saturating_sub(none));
    }
}

/// Returns the CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Returns the CPU time of one exchange in the quickest turn, in nanoseconds.
fn least(worker: &WorkerState) -> u128 {
    let route = &worker.generation.routes[RouteId::new(0)];
    let addresses = ConnectionAddresses {
        client: "203.0.113.7:4711".parse().expect("an address"),
        destination: "192.0.2.1:80".parse().expect("an address"),
    };
    let peer = Arc::new(ClientInfo::tcp(addresses));
    let (request, ()) = Request::get("/account?page=2")
        .header("host", "www.example.org")
        .header("user-agent", "bench/1.0")
        .header("accept", "*/*")
        .header("accept-language", "en")
        .header("origin", "https://app.example.org")
        .header("x-api-key", "key-gamma")
        .header("x-tenant", "north")
        .body(())
        .expect("a request")
        .into_parts();
    let response = || Response::builder().header("content-type", "text/plain").body(()).expect("a response");
    let exchange = || {
        let received = RequestLine::of(&request, Words::Unneeded);
        let (name, upstream) = ("r".into(), "app".into());
        let mut context = Box::new(ExchangeContext::new(received, request.clone(), peer.clone(), name, upstream));
        let mut upstream = Some(UpstreamId::new(0));
        let down = chain::down(worker, route, ChainPosition::top(), &mut context, &mut upstream);
        assert!(down.is_ok(), "a plugin failed");
        context.response = Some(response().into_parts().0);
        let up = chain::up(worker, route, ChainPosition::bottom(route).plugins(), &mut context);
        assert!(up.is_ok(), "a plugin failed");
    };
    let turn = |_| {
        let began = cpu_time();
        (0..EXCHANGES).for_each(|_| exchange());
        (cpu_time() - began).as_nanos() / u128::from(EXCHANGES)
    };
    (0..TURNS).map(turn).min().unwrap_or_default()
}

/// Returns a worker with one route, which has more keys.
fn running(keys: &str) -> WorkerState {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.app]\nendpoints = [\"127.0.0.1:9\"]\n\
         [[route]]\nupstream = \"app\"\n{keys}"
    );
    worker::running(worker::generation(&mut worker::assembler(), text))
}
