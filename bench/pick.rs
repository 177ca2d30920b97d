//! The cost of choosing an endpoint: the stock `balance` plugin by policy, through the real runtime, beside an upstream
//! with a single endpoint, for which no balancer is called. `cargo bench --package plugway --bench pick`
#![expect(clippy::disallowed_methods, reason = "the benchmark measures")]

use std::time::Instant;

use plugway::assemble::Assembler;
use plugway::context::ExchangeContext;
use plugway::exchange::balance;
use plugway::generation::ids::{Id, UpstreamId};
use plugway::generation::worker_state::WorkerState;
use plugway::system::holder_counts::Holder;
use plugway::upstream::endpoint::RequestLimit;
use plugway::upstream::endpoint_view::InFlightGuard;

#[path = "worker.rs"]
mod worker;

/// Returns the id of the only upstream.
fn upstream_id() -> UpstreamId {
    UpstreamId::new(0)
}

/// The target of each policy: 0.5 µs for those that look up in a table, 1.5 for those that compare load.
const POLICIES: [(&str, &str); 7] = [
    ("round-robin", "{ policy = \"round-robin\" }"),
    ("source-hash", "{ policy = \"source-hash\" }"),
    ("consistent-hash", "{ policy = \"consistent-hash\", key = \"request.header.x-user\" }"),
    ("  bounded", "{ policy = \"consistent-hash\", key = \"request.header.x-user\", bounded-load = 125 }"),
    ("least-connections", "{ policy = \"least-connections\" }"),
    ("random-two-choices", "{ policy = \"random-two-choices\" }"),
    ("peak-ewma", "{ policy = \"peak-ewma\" }"),
];

/// The number of picks in a turn. The quickest turn is printed, since it was disturbed least, and in brackets the
/// median.
const PICKS: u32 = 10_000;
const TURNS: usize = 40;

/// The time of one pick, in nanoseconds.
struct Took {
    least: u128,
    median: u128,
}

fn main() {
    let mut assembler = worker::assembler();
    let fixed = measured(&mut assembler, 1, "{}");
    println!("a single endpoint: {} ns ({})", fixed.least, fixed.median);
    println!("{:<20}{:>20}{:>20}", "policy", "3 endpoints", "1,000 endpoints");
    for (name, config) in POLICIES {
        let beyond = |endpoints| {
            let Took { least, median } = measured(&mut assembler, endpoints, config);
            format!("+ {} ns ({})", least.saturating_sub(fixed.least), median.saturating_sub(fixed.median))
        };
        let [few, many] = [3, 1_000].map(beyond);
        println!("{name:<20}{few:>20}{many:>20}");
    }
}

fn measured(assembler: &mut Assembler, endpoints: usize, config: &str) -> Took {
    let running = running(assembler, endpoints, config);
    let mut head = ExchangeContext::empty();
    head.request.headers.insert("x-user", http::HeaderValue::from_static("somebody@example.org"));
    let now = Instant::now();
    let choose = || {
        balance::choose(&running, upstream_id(), &head, &[], now)
            .unwrap_or_else(|error| panic!("{error}"))
            .endpoint_view
    };
    // Requests in flight, as there would be: loads that differ.
    let endpoint_views = running.endpoint_views(upstream_id());
    let busy = endpoint_views
        .list
        .iter()
        .enumerate()
        .flat_map(|(at, endpoint_view)| std::iter::repeat_n(endpoint_view, at % 4));
    let limit = RequestLimit::default();
    let _in_flight_guards: Vec<InFlightGuard> =
        busy.filter_map(|endpoint_view| InFlightGuard::begin(endpoint_view, &limit, Holder::UNKNOWN, 0)).collect();
    let mut turns: Vec<u128> = (0..TURNS)
        .map(|_| {
            let began = Instant::now();
            (0..PICKS).for_each(|_| drop(choose()));
            began.elapsed().as_nanos() / u128::from(PICKS)
        })
        .collect();
    turns.sort_unstable();
    Took { least: turns[0], median: turns[TURNS / 2] }
}

fn running(assembler: &mut Assembler, endpoints: usize, config: &str) -> WorkerState {
    let addresses: Vec<String> =
        (0..endpoints).map(|at| format!("\"10.0.{}.{}:80\"", at / 250, at % 250 + 1)).collect();
    let balancer =
        if endpoints > 1 { format!("balancer = {{ use = \"balance\", config = {config} }}") } else { String::new() };
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"app\"\n[upstream.app]\nendpoints = [{}]\n{balancer}",
        addresses.join(", ")
    );
    let generation = worker::generation(assembler, text);
    let upstream = &generation.upstreams[upstream_id()];
    upstream.live.set_members(upstream.plan.members.clone(), Instant::now());
    worker::running(generation)
}
