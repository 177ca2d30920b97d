//! The server that has the state of plugins, on the admin listener: whether it is connected, and how the calls of each plugin
//! have ended.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::exposition::{family, line};
use crate::generation::Generation;
use crate::shared_state::fleet::{FleetFailure, FleetFallback, FleetUse, LinkStatus};

/// Returns the server for the status document; null if each process has a state of its own.
pub(super) fn status(generation: &Generation) -> Value {
    let Some(client) = &generation.fleet else { return Value::Null };
    let (settings, link) = (client.settings(), client.status());
    let (state, error) = match &link {
        LinkStatus::Connecting => ("connecting", None),
        LinkStatus::Up => ("up", None),
        LinkStatus::Down(error) => ("down", Some(&**error)),
    };
    let answers = match (&link, settings.fallback) {
        (LinkStatus::Down(_), FleetFallback::Error) => "none",
        (LinkStatus::Down(_), FleetFallback::Local) => "local",
        _ => "redis",
    };
    json!({ "server": &*settings.name, "state": state, "error": error, "answers": answers })
}

/// Returns the figures of one plugin's calls for the status document.
pub(super) fn plugin_status(usage: &FleetUse) -> Value {
    let failures = FleetFailure::ALL.map(|reason| (reason.word(), usage.failures[reason as usize]));
    json!({ "calls": usage.calls, "failures": BTreeMap::from(failures), "fallbacks": usage.fallbacks })
}

/// Writes the metrics of the server and of the calls that ask it.
pub(super) fn metrics(out: &mut String, generation: &Generation) {
    let Some(client) = &generation.fleet else { return };
    let name = "plugway_shared_redis_up";
    family(out, name, "gauge", "Whether the Redis server that has the shared state answers.");
    line(out, name, &[], f64::from(u8::from(client.status() == LinkStatus::Up)));
    let usage = by_name(generation);
    let name = "plugway_shared_redis_calls_total";
    family(out, name, "counter", "Calls of a plugin that asked the Redis server.");
    usage.iter().for_each(|(plugin, usage)| line(out, name, &[("plugin", plugin)], usage.calls as f64));
    let name = "plugway_shared_redis_failures_total";
    family(out, name, "counter", "Calls that the Redis server has not answered, by reason.");
    for (plugin, usage) in &usage {
        for reason in FleetFailure::ALL {
            let count = usage.failures[reason as usize];
            line(out, name, &[("plugin", plugin), ("reason", reason.word())], count as f64);
        }
    }
    let name = "plugway_shared_redis_fallbacks_total";
    family(out, name, "counter", "Calls that the state of this process has answered in the server's place.");
    usage.iter().for_each(|(plugin, usage)| line(out, name, &[("plugin", plugin)], usage.fallbacks as f64));
}

/// Returns the figures of each plugin's calls. Plugins without a name of their own may have several states.
pub(super) fn by_name(generation: &Generation) -> BTreeMap<Arc<str>, FleetUse> {
    let mut seen = HashSet::new();
    let mut sums: BTreeMap<Arc<str>, FleetUse> = BTreeMap::new();
    for configured in generation.bindings.iter() {
        let fleet = configured.shared().and_then(|state| state.fleet.as_ref());
        if let Some(fleet) = fleet.filter(|fleet| seen.insert(Arc::as_ptr(fleet))) {
            let sum = sums.entry(configured.name.clone()).or_default();
            *sum = sum.and(fleet.usage());
        }
    }
    sums
}
