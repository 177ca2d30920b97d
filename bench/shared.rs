//! The cost of a call of shared state: of the store itself by one and by two threads, on one hot key and on a million
//! keys, and of a call from a plugin. `cargo bench --package plugway --bench shared`
#![expect(clippy::disallowed_methods, reason = "the benchmark measures")]

use std::sync::Barrier;
use std::time::Instant;

use plugway::context::edit_check::MessageSide;
use plugway::context::{ExchangeContext, ValueName};
use plugway::generation::ids::{Id, PluginId};
use plugway::generation::worker_state::WorkerState;
use plugway::plugin::breaker::HookKind;
use plugway::shared_state::{self, SharedLimits, SharedState, TakeRate};

#[path = "worker.rs"]
mod worker;

/// The calls of a turn, of each thread. The quickest turn is printed, since it was disturbed least.
const CALLS: usize = 200_000;
const TURNS: usize = 20;

/// The calls from a plugin of a turn.
const CALLS_OF_PLUGIN: u64 = 20_000;

const RATE: TakeRate = TakeRate { tokens: 1_000_000, period_ms: 1000, burst: 1_000_000 };

/// One call of a store with a key.
type Call = fn(&SharedState, Vec<u8>);

const OPERATIONS: [(&str, Call); 4] = [
    ("get", |state, key| drop(state.get(&key, shared_state::now()))),
    ("set", |state, key| _ = state.set(key, vec![b'v'; 16], Some(60_000), shared_state::now())),
    ("add", |state, key| _ = state.add(key, 1, Some(3_600_000), shared_state::now())),
    ("take", |state, key| _ = state.take(key, RATE, 1, shared_state::now())),
];

fn main() {
    println!("{:<28}{:>12}{:>12}", "the store, ns per call", "1 thread", "2 threads");
    for (keys, what) in [(1, "one hot key"), (1_000_000, "a million keys")] {
        let keys: Vec<Vec<u8>> = (0..keys).map(|key| format!("tenant-{key:07}").into_bytes()).collect();
        for (name, call) in OPERATIONS {
            let [one, two] = [1, 2].map(|threads| least(&keys, call, threads));
            println!("{:<28}{one:>12}{two:>12}", format!("{name}, {what}"));
        }
    }
    let running = running();
    let took = |call| call_of_plugin(&running, call);
    let nothing = took("none");
    println!(
        "\na call from a plugin, ns: get {}, add {}, take {}",
        took("get") - nothing,
        took("add") - nothing,
        took("take") - nothing
    );
}

/// Returns the time of one call in the quickest turn, while each of so many threads makes calls, in nanoseconds.
fn least(keys: &[Vec<u8>], call: Call, threads: usize) -> u128 {
    let state = SharedState::new(SharedLimits { bytes: 1 << 30, entries: 4_000_000 });
    keys.iter().for_each(|key| call(&state, key.clone()));
    let barrier = Barrier::new(threads);
    let turns = |thread: usize| {
        let mut at = thread * 7919;
        let turn = |_| {
            barrier.wait();
            let began = Instant::now();
            for _ in 0..CALLS {
                // A walk that no cache foresees.
                at = (at + 514_229) % keys.len();
                call(&state, keys[at].clone());
            }
            began.elapsed().as_nanos() / CALLS as u128
        };
        (0..TURNS).map(turn).min().unwrap_or_default()
    };
    std::thread::scope(|scope| {
        let turns = &turns;
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || turns(thread))).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).max().unwrap_or_default()
    })
}

/// Returns the time of one round of the loop of the test plugin `shared`, in nanoseconds.
fn call_of_plugin(running: &WorkerState, call: &str) -> i128 {
    let mut context = Box::new(ExchangeContext::empty());
    let what = format!("times {CALLS_OF_PLUGIN} {call}");
    context.request.headers.insert("x-shared", what.parse().expect("a field value"));
    let needs = [ValueName::RequestField(http::HeaderName::from_static("x-shared"))];
    let mut turn = || {
        let began = Instant::now();
        let called = running.call(PluginId::new(0), HookKind::RequestFilter, context.holder(), |instance| {
            instance.filter(MessageSide::Request, &needs, &mut context).map(drop)
        });
        called.unwrap_or_else(|failure| panic!("{failure}"));
        (began.elapsed().as_nanos() / u128::from(CALLS_OF_PLUGIN)) as i128
    };
    (0..TURNS).map(|_| turn()).min().unwrap_or_default()
}

fn running() -> WorkerState {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"app\"\nplugins = [\"it\"]\n[upstream.app]\n\
         endpoints = [\"127.0.0.1:9\"]\n[plugin.it]\nuse = {:?}\ngrants.shared = true\n\
         limits = {{ cpu = \"10s\", share = 100 }}\n",
        plugway_test_guests::SHARED
    );
    worker::running(worker::generation(&mut worker::assembler(), text))
}
