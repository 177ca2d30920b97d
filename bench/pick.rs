//! What it costs to choose an endpoint: the stock `balance` plugin by policy, through the real runtime, beside an
//! upstream with a single endpoint, for which nobody is asked. `cargo bench --package plugway --bench pick`

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plugway::assemble::Assembly;
use plugway::balance;
use plugway::config::load;
use plugway::generation::Running;
use plugway::head::Head;
use plugway::metrics::Place;
use plugway::plugin::engine::Runtime;
use plugway::upstream::Pools;
use plugway::upstream::seats::Flight;

/// With what each policy is to be compared: 0.5 µs for those that look up in a table, 1.5 for those that look at load.
const POLICIES: [(&str, &str); 7] = [
    ("round-robin", "{ policy = \"round-robin\" }"),
    ("source-hash", "{ policy = \"source-hash\" }"),
    ("consistent-hash", "{ policy = \"consistent-hash\", key = \"request.header.x-user\" }"),
    ("  bounded", "{ policy = \"consistent-hash\", key = \"request.header.x-user\", bounded-load = 125 }"),
    ("least-connections", "{ policy = \"least-connections\" }"),
    ("random-two-choices", "{ policy = \"random-two-choices\" }"),
    ("peak-ewma", "{ policy = \"peak-ewma\" }"),
];

/// Picks in a turn, and turns of which the median is told.
const PICKS: u32 = 20_000;
const TURNS: usize = 15;

fn main() {
    let mut assembly = Assembly::new(Runtime::start(None).expect("the engine starts")).expect("tickets are made");
    let fixed = measured(&mut assembly, 1, "{}");
    println!("a single endpoint: {:.0} ns", fixed.as_nanos());
    println!("{:<20}{:>14}{:>18}", "policy", "3 endpoints", "1,000 endpoints");
    for (name, config) in POLICIES {
        let beyond = |endpoints| measured(&mut assembly, endpoints, config).saturating_sub(fixed).as_nanos();
        let [few, many] = [3, 1_000].map(beyond);
        println!("{name:<20}{:>14}{:>18}", format!("+ {few} ns"), format!("+ {many} ns"));
    }
}

/// The median time of a pick.
fn measured(assembly: &mut Assembly, endpoints: usize, config: &str) -> Duration {
    let running = running(assembly, endpoints, config);
    let mut head = Head::empty();
    head.request.headers.insert("x-user", http::HeaderValue::from_static("somebody@example.org"));
    let now = Instant::now();
    let choose = || balance::choose(&running, 0, &head, &[], now).unwrap_or_else(|error| panic!("{error}")).seat;
    // Requests in flight, as there would be: loads that differ.
    let seats = running.seats(0);
    let busy = seats.list.iter().enumerate().flat_map(|(at, seat)| std::iter::repeat_n(seat, at % 4));
    let _flights: Vec<Flight> = busy.filter_map(|seat| Flight::begin(seat, u32::MAX)).collect();
    let mut turns: Vec<Duration> = (0..TURNS)
        .map(|_| {
            let began = Instant::now();
            (0..PICKS).for_each(|_| drop(choose()));
            began.elapsed() / PICKS
        })
        .collect();
    turns.sort_unstable();
    turns[TURNS / 2]
}

fn running(assembly: &mut Assembly, endpoints: usize, config: &str) -> Running {
    let addresses: Vec<String> =
        (0..endpoints).map(|at| format!("\"10.0.{}.{}:80\"", at / 250, at % 250 + 1)).collect();
    let balancer =
        if endpoints > 1 { format!("balancer = {{ use = \"balance\", config = {config} }}") } else { String::new() };
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"app\"\n[upstream.app]\nendpoints = [{}]\n{balancer}",
        addresses.join(", ")
    );
    let files = load::parse("bench", text).expect("the manifest is well-formed");
    let generation = assembly.assemble(&files).unwrap_or_else(|problems| panic!("{problems}")).generation;
    let upstream = &generation.upstreams[0];
    upstream.live.set_members(upstream.plan.members.clone(), Instant::now());
    let place = Place { registry: Arc::default(), worker: 0 };
    Running::new(Arc::new(generation), &Rc::new(Pools::default()), place, Instant::now()).expect("it starts")
}
