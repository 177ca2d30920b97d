//! The metrics of client connections, by listener.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::exposition::{family, line};
use crate::generation::connection_counts::CloseReason;
use crate::generation::listener::Listener;

/// Writes the number of connections of each listener, and the number of connections that the listener closed.
pub fn metrics(out: &mut String, listeners: &HashMap<Arc<str>, Arc<Listener>>) {
    let listeners: BTreeMap<_, _> = listeners.iter().collect();
    family(out, "plugway_client_connections", "gauge", "Client connections, by listener.");
    for (address, listener) in &listeners {
        line(out, "plugway_client_connections", &[("listener", address)], listener.census.all() as f64);
    }
    let name = "plugway_client_connections_closed_total";
    family(out, name, "counter", "Client connections that were closed before their time, by listener and reason.");
    for (address, listener) in &listeners {
        for reason in CloseReason::ALL {
            let closed = listener.census.closed_count(reason) as f64;
            line(out, name, &[("listener", address), ("reason", reason.name())], closed);
        }
    }
}
