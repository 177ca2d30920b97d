//! The places that the instances of a manifest's plugins need.

use std::num::NonZero;

use super::process::MAX_WORKERS;
use crate::config::load::ManifestFile;
use crate::config::manifest::{PluginRef, PluginTable};
use crate::plugin::body_filter::MAX_IDLE_INSTANCES;
use crate::plugin::settings::{Isolation, PluginLimits};
use crate::plugin::version::{RESERVED_BODIES, SPARES, SPARES_PER_CALL};
use crate::plugin::waiting_limit::RESERVED_CALLS;

/// Returns the number of workers that a manifest asks for.
pub fn workers(files: &[ManifestFile]) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    files
        .iter()
        .find_map(|file| Some(*file.manifest.workers.as_ref()?.get_ref()))
        .map_or_else(cores, |workers| workers.clamp(1, MAX_WORKERS))
}

/// Returns the number of places that the plugins need, except those for bodies. Each worker has an instance of each
/// plugin in a chain and of each balancer, and each plugin has spare ones.
pub fn places(files: &[ManifestFile], workers: usize) -> u32 {
    let (mut in_workers, mut spares) = (0_usize, 0_usize);
    for ManifestFile { manifest, .. } in files {
        in_workers += manifest.upstream.len();
        let in_chains = manifest.route.iter().flat_map(|route| &route.get_ref().plugins);
        let balancers = manifest.upstream.values().filter_map(|upstream| upstream.balancer.as_ref());
        let (mut inline, mut stock) = (Vec::new(), 0);
        for plugin in in_chains.chain(balancers) {
            match plugin.get_ref() {
                PluginRef::Inline(plugin) => inline.push(&**plugin),
                // Each mention of a stock plugin is a plugin of its own.
                PluginRef::Name(name) => {
                    stock += usize::from(!manifest.plugin.keys().any(|known| known.get_ref() == name))
                }
            }
        }
        in_workers += stock;
        spares += stock * SPARES;
        for plugin in manifest.plugin.values().chain(inline) {
            in_workers += 1;
            spares += if is_per_call(plugin) { SPARES_PER_CALL } else { SPARES };
        }
    }
    u32::try_from(workers.saturating_mul(in_workers).saturating_add(spares)).unwrap_or(u32::MAX)
}

/// Returns the number of places that a plugin needs for bodies, independent of other plugins.
pub fn of_bodies(limits: PluginLimits, workers: usize) -> u32 {
    limits.bodies.min(RESERVED_BODIES).saturating_add((workers * MAX_IDLE_INSTANCES) as u32)
}

/// Returns the number of places that a plugin needs for calls that may wait, whatever others do.
pub fn of_waiting_calls(limits: PluginLimits) -> u32 {
    limits.waiting.calls.min(RESERVED_CALLS)
}

/// Returns the number of stacks that the instances of a plugin whose calls may wait need, whatever others do.
pub fn stacks(limits: PluginLimits, isolation: Isolation, workers: usize) -> u32 {
    let spares = if isolation == Isolation::Request { SPARES_PER_CALL } else { SPARES };
    of_waiting_calls(limits).saturating_add((workers + spares) as u32)
}

fn is_per_call(plugin: &PluginTable) -> bool {
    plugin.isolation.as_ref().is_some_and(|isolation| isolation.get_ref() == "request")
}
