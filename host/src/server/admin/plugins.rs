//! Plugins on the admin listener: calls, failures, rejected calls, and the state of the breaker.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Admin;
use super::exposition::{family, line, sum};
use crate::generation::Generation;
use crate::plugin::breaker::BreakerState;
use crate::plugin::configured::ConfiguredPlugin;
use crate::telemetry::metrics::{CallRejection, Counter, PluginMetrics};

/// Returns the plugins for the status document: those of the generation, and those with earlier calls.
pub(super) fn status(admin: &Admin, generation: &Generation) -> Vec<Value> {
    let known = by_name(generation);
    let plugin = |(name, figures): (&Arc<str>, &Vec<Arc<PluginMetrics>>)| {
        let sum = |one: fn(&PluginMetrics) -> &Counter| sum(figures, one);
        let seconds = sum(|figures| &figures.nanoseconds) as f64 / 1e9;
        let rejected = CallRejection::ALL.map(|reason| (reason.word(), rejections(figures, reason)));
        let mut document = json!({
            "name": &**name,
            "calls": sum(|f| &f.calls),
            "failures": sum(|f| &f.failures),
            "seconds": seconds,
            "rejected": BTreeMap::from(rejected),
        });
        if let Some(configured) = known.get(name) {
            document["breaker"] = state(configured).word().into();
            document["live"] = configured.supply.live().into();
            document["instances"] = if configured.supply.is_failing() { "failing" } else { "ready" }.into();
        }
        document
    };
    admin.registry.plugins().iter().map(plugin).collect()
}

/// Writes the metrics of rejected calls and breakers.
pub(super) fn metrics(out: &mut String, admin: &Admin, generation: &Generation) {
    let name = "plugway_plugin_rejected_total";
    family(out, name, "counter", "Calls of a plugin's hooks that were not made, by reason.");
    for (plugin, figures) in &admin.registry.plugins() {
        for reason in CallRejection::ALL {
            let count = rejections(figures, reason);
            line(out, name, &[("plugin", plugin), ("reason", reason.word())], count as f64);
        }
    }
    let name = "plugway_plugin_breaker_state";
    family(out, name, "gauge", "The breaker of a plugin: 0 is closed, 1 is open, 2 is half open.");
    for (plugin, configured) in by_name(generation) {
        let state = state(configured);
        let number = BreakerState::ALL.iter().position(|known| *known == state).unwrap_or(0);
        line(out, name, &[("plugin", &plugin)], number as f64);
    }
}

fn by_name(generation: &Generation) -> BTreeMap<Arc<str>, &Arc<ConfiguredPlugin>> {
    generation.bindings.iter().map(|configured| (configured.name.clone(), configured)).collect()
}

fn state(configured: &ConfiguredPlugin) -> BreakerState {
    configured.supply.breaker.state()
}

fn rejections(figures: &[Arc<PluginMetrics>], reason: CallRejection) -> u64 {
    figures.iter().map(|figures| figures.rejected[reason as usize].value()).sum()
}
