//! Plugins on the admin listener: calls, failures, rejected calls, and the state of the breaker.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Admin, family, line, sum};
use crate::generation::Generation;
use crate::plugin::breaker::State;
use crate::plugin::configured::Binding;
use crate::telemetry::metrics::{Count, PluginFigures, Rejection};

/// Returns the plugins for the status document: those of the generation, and those with earlier calls.
pub(super) fn status(admin: &Admin, generation: &Generation) -> Vec<Value> {
    let known = by_name(generation);
    let plugin = |(name, figures): (&Arc<str>, &Vec<Arc<PluginFigures>>)| {
        let sum = |one: fn(&PluginFigures) -> &Count| sum(figures, one);
        let seconds = sum(|figures| &figures.nanoseconds) as f64 / 1e9;
        let rejected = Rejection::ALL.map(|reason| (reason.word(), rejections(figures, reason)));
        let mut document = json!({
            "name": &**name,
            "calls": sum(|f| &f.calls),
            "failures": sum(|f| &f.failures),
            "seconds": seconds,
            "rejected": BTreeMap::from(rejected),
        });
        if let Some(binding) = known.get(name) {
            document["breaker"] = state(binding).word().into();
            document["live"] = binding.supply.live().into();
            document["instances"] = if binding.supply.is_failing() { "failing" } else { "ready" }.into();
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
        for reason in Rejection::ALL {
            let count = rejections(figures, reason);
            line(out, name, &[("plugin", plugin), ("reason", reason.word())], count as f64);
        }
    }
    let name = "plugway_plugin_breaker_state";
    family(out, name, "gauge", "The breaker of a plugin: 0 is closed, 1 is open, 2 is half open.");
    for (plugin, binding) in by_name(generation) {
        let state = state(binding);
        let number = State::ALL.iter().position(|known| *known == state).unwrap_or(0);
        line(out, name, &[("plugin", &plugin)], number as f64);
    }
}

fn by_name(generation: &Generation) -> BTreeMap<Arc<str>, &Arc<Binding>> {
    generation.bindings.iter().map(|binding| (binding.name.clone(), binding)).collect()
}

fn state(binding: &Binding) -> State {
    binding.supply.breaker.state()
}

fn rejections(figures: &[Arc<PluginFigures>], reason: Rejection) -> u64 {
    figures.iter().map(|figures| figures.rejected[reason as usize].value()).sum()
}
