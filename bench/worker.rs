//! A worker without sockets, for the benchmarks that measure its parts.
#![expect(clippy::disallowed_methods, reason = "the benchmark measures")]

use std::sync::Arc;
use std::time::Instant;

use plugway::assemble::Assembler;
use plugway::config::load;
use plugway::generation::Generation;
use plugway::generation::worker_state::{LastingState, WorkerState};
use plugway::loading::Loader;
use plugway::plugin::engine::Runtime;
use plugway::plugin::time_share::Shares;
use plugway::telemetry::metrics::WorkerMetrics;
use plugway::upstream::pool::Pools;

/// Returns an assembler that loads plugins in this process.
pub fn assembler() -> Assembler {
    let runtime = Runtime::start(None).expect("the engine starts");
    Assembler::new(runtime, Loader::in_process()).expect("tickets are made")
}

/// Returns the generation of a manifest.
pub fn generation(assembler: &mut Assembler, text: String) -> Generation {
    let files = load::parse("bench", text, &Default::default()).expect("the manifest is well-formed");
    assembler.assemble(files).unwrap_or_else(|problems| panic!("{problems}")).generation
}

/// Returns a worker that serves a generation, with an instance of each plugin.
pub fn running(generation: Generation) -> WorkerState {
    let place = WorkerMetrics { registry: Arc::default(), worker: 0 };
    let (alive, _) = tokio::sync::mpsc::channel(1);
    let (pools, shares) = (Pools::unlimited(), Shares::new(Instant::now()));
    let (ended, _) = tokio::sync::mpsc::channel(1);
    let lasting = LastingState { pools, shares, alive: alive.downgrade(), ended };
    let running = WorkerState::new(Arc::new(generation), lasting, place, Instant::now());
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(running.warm()).expect("it starts");
    running
}
