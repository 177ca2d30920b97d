//! The number of plugin instances that a manifest may need at a time: the engine reserves room for them at start.

use std::sync::Arc;

use crate::config::manifest::{Manifest, Plugin, PluginRef};
use crate::config::problem::Source;
use crate::plugin::binding::Limits;
use crate::plugin::engine::LEAST_INSTANCES;

/// The largest room: half of a process's address space, of which an instance has 4 GiB, and no memory.
const MOST_INSTANCES: usize = 16_000;

/// Spare instances of a plugin.
const SPARES: usize = 16;

/// Returns the number of instances to make room for. Each worker has one of each plugin in a chain and of each balancer,
/// twice during a reload; each body that passes a plugin has one. Half as much again is for plugins that a reload adds.
pub fn instances(files: &[(Arc<Source>, Manifest)], cores: usize) -> u32 {
    let workers = files.iter().find_map(|(_, file)| Some(*file.workers.as_ref()?.get_ref())).unwrap_or(cores);
    let (mut in_workers, mut at_times) = (0_usize, 0_usize);
    for (_, file) in files {
        in_workers += file.upstream.len();
        let in_chains = file.route.iter().flat_map(|route| &route.get_ref().plugins);
        let balancers = file.upstream.values().filter_map(|upstream| upstream.balancer.as_ref());
        let inline = in_chains.chain(balancers).filter_map(|plugin| match plugin.get_ref() {
            PluginRef::Inline(plugin) => Some(&**plugin),
            PluginRef::Name(_) => None,
        });
        for plugin in file.plugin.values().chain(inline) {
            in_workers += 1;
            at_times += bodies(plugin) + SPARES;
        }
    }
    let reserved = workers.saturating_mul(in_workers).saturating_mul(2).saturating_add(at_times);
    let wanted = reserved.saturating_add(reserved / 2);
    wanted.clamp(LEAST_INSTANCES as usize, MOST_INSTANCES) as u32
}

fn bodies(plugin: &Plugin) -> usize {
    plugin.limits.bodies.as_ref().map_or(Limits::default().bodies as usize, |bodies| *bodies.get_ref())
}
