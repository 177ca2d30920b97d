//! Plugins on the admin listener: calls, failures, rejected calls, lost log lines, the state of the breaker, and the size
//! of the state that instances share.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::exposition::{family, line, sum};
use super::{Admin, fleet};
use crate::generation::Generation;
use crate::plugin::breaker::BreakerState;
use crate::plugin::configured::ConfiguredPlugin;
use crate::shared_state::SharedUse;
use crate::telemetry::metrics::{CallRejection, Counter, PluginMetrics};

/// Returns the plugins for the status document: those of the generation, and those with earlier calls.
pub(super) fn status(admin: &Admin, generation: &Generation) -> Vec<Value> {
    let (known, shared, fleet) = (by_name(generation), shared_by_name(generation), fleet::by_name(generation));
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
        if let Some(SharedUse { entries, bytes, evicted }) = shared.get(name) {
            document["shared"] = json!({ "entries": entries, "bytes": bytes, "evicted": evicted });
        }
        if let Some(usage) = fleet.get(name) {
            document["shared"]["redis"] = fleet::plugin_status(usage);
        }
        if let Some(versions) = known.get(&**name) {
            let is_failing = versions.iter().any(|configured| configured.supply.is_failing());
            document["breaker"] = worst_state(versions).word().into();
            document["live"] = versions.iter().map(|configured| configured.supply.live()).sum::<u32>().into();
            document["instances"] = if is_failing { "failing" } else { "ready" }.into();
        }
        document
    };
    admin.registry.plugins().iter().map(plugin).collect()
}

/// Writes the metrics of rejected calls, breakers and lines that plugins have lost.
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
    family(out, name, "gauge", "The breakers of a plugin: 0 is closed, 1 is open, 2 is half open.");
    let known = by_name(generation);
    for (plugin, versions) in &known {
        let state = worst_state(versions);
        let number = BreakerState::ALL.iter().position(|known| *known == state).unwrap_or(0);
        line(out, name, &[("plugin", plugin)], number as f64);
    }
    let name = "plugway_plugin_log_dropped_total";
    family(out, name, "counter", "Lines of a plugin beyond what it may log in a second.");
    for (plugin, versions) in &known {
        let dropped: u64 = versions.iter().map(|configured| configured.dropped_lines()).sum();
        line(out, name, &[("plugin", plugin)], dropped as f64);
    }
}

/// Writes the metrics of the state that each plugin's instances share.
pub(super) fn shared_metrics(out: &mut String, generation: &Generation) {
    type SharedFigure = fn(&SharedUse) -> f64;
    let families: [(&str, &str, &str, SharedFigure); 3] = [
        ("plugway_shared_entries", "gauge", "Entries that a plugin shares.", |usage| usage.entries as f64),
        ("plugway_shared_bytes", "gauge", "Memory of these entries.", |usage| usage.bytes as f64),
        ("plugway_shared_evicted_total", "counter", "Entries that left for others.", |usage| usage.evicted as f64),
    ];
    let shared = shared_by_name(generation);
    for (name, kind, help, value) in families {
        family(out, name, kind, help);
        shared.iter().for_each(|(plugin, usage)| line(out, name, &[("plugin", plugin)], value(usage)));
    }
}

/// Returns the size of what each plugin shares. Plugins without a name of their own may share several states.
fn shared_by_name(generation: &Generation) -> BTreeMap<Arc<str>, SharedUse> {
    let mut seen = HashSet::new();
    let mut sums: BTreeMap<Arc<str>, SharedUse> = BTreeMap::new();
    for configured in generation.bindings.iter() {
        if let Some(state) = configured.shared().filter(|state| seen.insert(Arc::as_ptr(&state.local))) {
            let sum = sums.entry(configured.name.clone()).or_default();
            *sum = sum.and(state.local.usage());
        }
    }
    sums
}

/// Returns the versions of each plugin, by its name. Routes that configure a plugin in different ways have versions of
/// their own; others share one, which is returned once.
fn by_name(generation: &Generation) -> BTreeMap<&str, Vec<&ConfiguredPlugin>> {
    let (mut known, mut seen) = (BTreeMap::<_, Vec<_>>::new(), HashSet::new());
    for configured in generation.bindings.iter().filter(|configured| seen.insert(Arc::as_ptr(&configured.supply))) {
        known.entry(&*configured.name).or_default().push(&**configured);
    }
    known
}

/// Returns the state of the breaker that rejects the most calls, of all versions and clients.
#[expect(clippy::disallowed_methods, reason = "the state is shown to operators, off the workers")]
fn worst_state(versions: &[&ConfiguredPlugin]) -> BreakerState {
    let now = Instant::now();
    BreakerState::worst(versions.iter().map(|configured| configured.supply.breakers.state(now)))
}

fn rejections(figures: &[Arc<PluginMetrics>], reason: CallRejection) -> u64 {
    figures.iter().map(|figures| figures.rejected[reason as usize].value()).sum()
}
