//! The configuration of plugins that ask services meanwhile, such as for the keys of an issuer. It happens on the thread
//! that assembles, before a generation is served: the old generation serves meanwhile, whatever the services do.
//!
//! Requests go through the upstreams of the new generation, with endpoints of their own, which are looked up and checked for
//! as long as the plugins ask.
#![expect(clippy::disallowed_methods, reason = "the time at which a worker's view begins")]

use std::collections::HashSet;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::sync::mpsc;

use super::upstream_monitor::UpstreamMonitor;
use crate::assemble::{AskingPlugin, AssembledManifest};
use crate::context::CalloutCause;
use crate::exchange::callouts::CalloutOrigin;
use crate::generation::Generation;
use crate::generation::ids::{PluginId, UpstreamId};
use crate::generation::worker_state::{LastingState, WorkerState};
use crate::net::deadline::{Clock, TICK};
use crate::plugin::configured::{ConfigureError, ConfiguredPlugin};
use crate::plugin::outgoing_http::CalloutSender;
use crate::plugin::time_share::Shares;
use crate::system::holder_counts::Holder;
use crate::system::supervise::{Task, spawn_turns};
use crate::telemetry::metrics::{Registry, WorkerMetrics};
use crate::upstream::endpoint_set::EndpointSet;
use crate::upstream::pool::Pools;

/// A plugin with the outcome of its configuration.
struct Asked {
    plugin_id: PluginId,
    configured: Result<ConfiguredPlugin, ConfigureError>,
}

/// Configures the plugins of a manifest that ask services meanwhile, all at the same time. The error has the messages of
/// those that could not be configured. Blocks the thread for the longest `limits.call-time` of them.
pub fn configure(assembled: AssembledManifest) -> Result<AssembledManifest, String> {
    let AssembledManifest { mut generation, asking, .. } = assembled;
    if asking.is_empty() {
        return Ok(AssembledManifest { generation, asking, ..assembled });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    let runtime = runtime.map_err(|error| format!("plugins that ask while they are configured can't: {error}"))?;
    let served = take_endpoints(&mut generation);
    let generation = Arc::new(generation);
    let asked = runtime.block_on(ask_all(&generation, &asking));
    // With its tasks, which may hold the generation.
    drop(runtime);
    let generation = Arc::try_unwrap(generation);
    let mut generation = generation.map_err(|_| "a plugin that was configured still asks".to_string())?;
    generation.upstreams.iter_mut().zip(served).for_each(|(upstream, live)| upstream.live = live);
    let mut errors = Vec::new();
    for (Asked { plugin_id, configured }, AskingPlugin { place, .. }) in asked.into_iter().zip(&asking) {
        match configured {
            Ok(configured) => generation.bindings.replace(plugin_id, Arc::new(configured)),
            Err(error) => errors.push(place.error(&error.to_string())),
        }
    }
    if errors.is_empty() { Ok(AssembledManifest { generation, asking, ..assembled }) } else { Err(errors.join("\n")) }
}

/// Gives the upstreams of a generation endpoints of their own, and returns those that the workers use.
fn take_endpoints(generation: &mut Generation) -> Vec<Arc<EndpointSet>> {
    let own = |name: &Arc<str>| Arc::new(EndpointSet::new(name.clone()));
    generation.upstreams.iter_mut().map(|upstream| std::mem::replace(&mut upstream.live, own(&upstream.name))).collect()
}

/// Lets all plugins ask at the same time.
async fn ask_all(generation: &Arc<Generation>, asking: &[AskingPlugin]) -> Vec<Asked> {
    let targets = &generation.callout_targets;
    let wanted: HashSet<UpstreamId> = asking.iter().flat_map(|plugin| targets[plugin.plugin_id].to_vec()).collect();
    let mut monitor = UpstreamMonitor::start();
    monitor.watch_upstreams(generation, |upstream_id| wanted.contains(&upstream_id)).await;
    let clock = Clock::new();
    let ticking = spawn_turns(Task::Tick, tick(clock.clone()));
    let (alive, _ended) = mpsc::channel(1);
    let (ended, _endings) = mpsc::channel(1);
    let worker_metrics = WorkerMetrics { registry: Arc::new(Registry::default()), worker: 0 };
    let (pools, shares) = (Pools::unlimited(), Shares::new(Instant::now()));
    let lasting = LastingState { pools, shares, alive: alive.downgrade(), ended };
    let worker = WorkerState::new(generation.clone(), lasting, worker_metrics, Instant::now());
    let mut under_way: Vec<_> = asking.iter().map(|plugin| Box::pin(ask(&worker, plugin.plugin_id, &clock))).collect();
    let mut asked: Vec<Option<Asked>> = asking.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, asked) in under_way.iter_mut().zip(&mut asked).filter(|(_, asked)| asked.is_none()) {
            if let Poll::Ready(outcome) = Pin::new(future).poll(cx) {
                *asked = Some(outcome);
            }
        }
        if asked.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    ticking.abort();
    asked.into_iter().flatten().collect()
}

/// Lets a plugin ask while it is configured.
async fn ask(worker: &WorkerState, plugin_id: PluginId, clock: &Rc<Clock>) -> Asked {
    let cause = Some(CalloutCause::without_exchange("configure"));
    let origin = CalloutOrigin { worker, plugin_id, cause, client: Holder::UNKNOWN, clock: clock.clone() };
    let (sender, callouts) = CalloutSender::channel();
    let configured = origin.drive(worker.generation.bindings[plugin_id].ask(sender), callouts).await;
    Asked { plugin_id, configured }
}

async fn tick(clock: Rc<Clock>) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        clock.tick();
    }
}
