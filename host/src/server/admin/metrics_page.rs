//! The page of metrics for Prometheus, with a function for each group of families.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::exposition::{family, line, sum};
use super::{Admin, cache, connections, fleet, plugins, upstreams};
use crate::body::buffer_space::BufferUse;
use crate::error::FailureKind;
use crate::generation::Generation;
use crate::generation::connection_counts::SendLimit;
use crate::protocol::client_address::FieldRemoval;
use crate::system::supervise::Task;
use crate::telemetry::failure_log::{self, Topic};
use crate::telemetry::metrics::{BOUNDS, PluginMetricKind, PluginMetrics, RouteMetrics};
use crate::telemetry::process_log;
use crate::tls::validity::Validity;

/// The metrics of each owner, one for each worker.
type ByName<T> = BTreeMap<Arc<str>, Vec<Arc<T>>>;

/// Returns the page.
pub fn metrics(admin: &Admin) -> String {
    let (mut out, generation) = (String::new(), admin.generation.borrow().clone());
    let routes = admin.registry.routes();
    responses(&mut out, &routes);
    errors(&mut out, &routes);
    bytes(&mut out, &routes);
    durations(&mut out, &routes);
    plugin_calls(&mut out, &admin.registry.plugins());
    plugins::metrics(&mut out, admin, &generation);
    plugins::shared_metrics(&mut out, &generation);
    fleet::metrics(&mut out, &generation);
    plugin_metrics(&mut out, admin);
    connections::metrics(&mut out, &generation.listeners);
    upstreams::metrics(&mut out, &generation.upstreams);
    cache::metrics(&mut out, admin, &generation.store);
    clients(&mut out, &generation);
    removed_fields(&mut out, &generation);
    buffers(&mut out, &admin.registry.buffers);
    logs(&mut out, &generation);
    process(&mut out, admin);
    certificates(&mut out, &generation);
    family(&mut out, "plugway_generation", "gauge", "Generations served so far.");
    line(&mut out, "plugway_generation", &[], admin.serial.load(Ordering::Relaxed) as f64);
    out
}

/// Writes the number of responses by route and class.
fn responses(out: &mut String, routes: &ByName<RouteMetrics>) {
    family(out, "plugway_responses_total", "counter", "Responses, by route and first digit of the status.");
    for (name, figures) in routes {
        for (class, label) in ["aborted", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().enumerate() {
            let count = sum(figures, |figures| &figures.responses[class]);
            line(out, "plugway_responses_total", &[("route", name), ("class", label)], count as f64);
        }
    }
}

/// Writes the number of failed exchanges by route and kind.
fn errors(out: &mut String, routes: &ByName<RouteMetrics>) {
    family(out, "plugway_errors_total", "counter", "Failed exchanges, by route and kind (RFC 9209).");
    for (name, figures) in routes {
        for kind in FailureKind::ALL {
            let count = sum(figures, |figures| &figures.errors[kind as usize]);
            if count > 0 {
                line(out, "plugway_errors_total", &[("route", name), ("kind", kind.token())], count as f64);
            }
        }
    }
}

/// Writes the bytes of content by route.
fn bytes(out: &mut String, routes: &ByName<RouteMetrics>) {
    family(out, "plugway_request_bytes_total", "counter", "Content received from clients.");
    for (name, figures) in routes {
        let bytes = sum(figures, |figures| &figures.request_bytes);
        line(out, "plugway_request_bytes_total", &[("route", name)], bytes as f64);
    }
    family(out, "plugway_response_bytes_total", "counter", "Content sent to clients.");
    for (name, figures) in routes {
        let bytes = sum(figures, |figures| &figures.response_bytes);
        line(out, "plugway_response_bytes_total", &[("route", name)], bytes as f64);
    }
}

/// Writes the durations of exchanges by route.
fn durations(out: &mut String, routes: &ByName<RouteMetrics>) {
    let duration = "plugway_exchange_duration_seconds";
    family(out, duration, "histogram", "From the request head to the last byte of the response.");
    for (name, figures) in routes {
        let mut below = 0;
        for (bucket, bound) in
            BOUNDS.iter().map(|bound| (*bound as f64 / 1e6).to_string()).chain(["+Inf".into()]).enumerate()
        {
            below += sum(figures, |figures| &figures.durations[bucket]);
            line(out, &format!("{duration}_bucket"), &[("route", name), ("le", &bound)], below as f64);
        }
        let seconds = sum(figures, |figures| &figures.duration_us) as f64 / 1e6;
        line(out, &format!("{duration}_sum"), &[("route", name)], seconds);
        line(out, &format!("{duration}_count"), &[("route", name)], below as f64);
    }
}

/// Writes the calls of plugins, with their failures and times.
fn plugin_calls(out: &mut String, plugins: &ByName<PluginMetrics>) {
    family(out, "plugway_plugin_calls_total", "counter", "Calls of a plugin's hooks.");
    for (name, figures) in plugins {
        line(out, "plugway_plugin_calls_total", &[("plugin", name)], sum(figures, |f| &f.calls) as f64);
    }
    family(out, "plugway_plugin_failures_total", "counter", "Calls that trapped, were cut off or refused.");
    for (name, figures) in plugins {
        line(out, "plugway_plugin_failures_total", &[("plugin", name)], sum(figures, |f| &f.failures) as f64);
    }
    family(out, "plugway_plugin_seconds_total", "counter", "Time in a plugin's hooks, estimated from one call in 16.");
    for (name, figures) in plugins {
        let seconds = sum(figures, |f| &f.nanoseconds) as f64 / 1e9;
        line(out, "plugway_plugin_seconds_total", &[("plugin", name)], seconds);
    }
}

/// Writes the metrics that plugins define.
fn plugin_metrics(out: &mut String, admin: &Admin) {
    let custom = admin.registry.custom();
    for (name, kind) in
        [("plugway_plugin_counter", PluginMetricKind::Counter), ("plugway_plugin_gauge", PluginMetricKind::Gauge)]
    {
        let (word, help) = match kind {
            PluginMetricKind::Counter => ("counter", "Counters that plugins define."),
            PluginMetricKind::Gauge => ("gauge", "Gauges that plugins define."),
        };
        family(out, name, word, help);
        for (plugin, custom, sum) in custom.iter().filter(|(_, custom, _)| custom.definition.kind == kind) {
            line(out, name, &[("plugin", plugin), ("name", &custom.definition.name)], *sum);
        }
    }
}

/// Writes the number of fields that listeners have removed from requests.
fn removed_fields(out: &mut String, generation: &Generation) {
    let name = "plugway_fields_removed_total";
    family(out, name, "counter", "Fields that listeners have removed from requests, by reason.");
    let listeners: BTreeMap<_, _> = generation.listeners.iter().collect();
    for (address, listener) in listeners {
        for reason in FieldRemoval::ALL {
            let labels = [("listener", &**address), ("reason", reason.word())];
            line(out, name, &labels, listener.census.removed_for(reason) as f64);
        }
    }
}

/// Writes the listeners' metrics of their clients.
fn clients(out: &mut String, generation: &Generation) {
    let name = "plugway_clients_cut_off_total";
    family(out, name, "counter", "Connections and streams whose client took too little, by the limit that was met.");
    let listeners: BTreeMap<_, _> = generation.listeners.iter().collect();
    for (address, listener) in listeners {
        for limit in SendLimit::ALL {
            let labels = [("listener", &**address), ("limit", limit.key())];
            line(out, name, &labels, listener.census.cut_off_by(limit) as f64);
        }
    }
}

/// Writes the bodies that wait for a slow peer.
fn buffers(out: &mut String, usage: &BufferUse) {
    let bytes = "plugway_buffered_bytes";
    family(out, bytes, "gauge", "Bytes of bodies that wait for a slow peer, by where they are.");
    for (place, value) in [("memory", usage.memory()), ("file", usage.files())] {
        line(out, bytes, &[("place", place)], value as f64);
    }
    family(out, "plugway_buffer_files_total", "counter", "Bodies that were put into a file.");
    line(out, "plugway_buffer_files_total", &[], usage.spills() as f64);
    family(out, "plugway_buffer_failures_total", "counter", "Bodies for which there was no file, or no room in one.");
    line(out, "plugway_buffer_failures_total", &[], usage.refusals() as f64);
}

/// Writes the number of lines that the logs have lost.
fn logs(out: &mut String, generation: &Generation) {
    family(out, "plugway_access_log_dropped_total", "counter", "Lines of the access log that could not be written.");
    let dropped = generation.access_log.as_ref().map_or(0, |log| log.dropped());
    line(out, "plugway_access_log_dropped_total", &[], dropped as f64);
    family(out, "plugway_log_dropped_total", "counter", "Lines of the process log that could not be written.");
    line(out, "plugway_log_dropped_total", &[], process_log::dropped() as f64);
    let left_out = "plugway_log_failures_left_out_total";
    family(out, left_out, "counter", "Failures without a line in the process log, beyond what a second has room for.");
    for topic in Topic::all().filter(|topic| failure_log::dropped(*topic) > 0) {
        let labels = [("topic", topic.name()), ("kind", topic.kind().unwrap_or("-"))];
        line(out, left_out, &labels, failure_log::dropped(topic) as f64);
    }
}

/// Writes the failures of the process itself.
fn process(out: &mut String, admin: &Admin) {
    family(out, "plugway_panics_total", "counter", "Panics, by the task that they ended.");
    for task in Task::ALL {
        line(out, "plugway_panics_total", &[("task", task.name())], task.panics() as f64);
    }
    family(out, "plugway_control_holds_total", "counter", "Times that the control thread was held up for a second.");
    line(out, "plugway_control_holds_total", &[], admin.registry.control_holds.value() as f64);
}

/// Writes the validity dates of certificates. Comparing them with the current time shows which certificates are invalid
/// or expire soon.
fn certificates(out: &mut String, generation: &Generation) {
    type DateOf = fn(Validity) -> i64;
    let dates: [(&str, &str, DateOf); 2] = [
        ("plugway_certificate_not_after_seconds", "Time at which a certificate expires.", |validity| validity.until),
        ("plugway_certificate_not_before_seconds", "Time from which on a certificate is valid.", |validity| {
            validity.from
        }),
    ];
    for (name, help, date) in dates {
        family(out, name, "gauge", help);
        for dated in &generation.certificates {
            let chain = dated.chain.to_string_lossy();
            line(out, name, &[("chain", &chain)], date(dated.validity) as f64);
        }
    }
}
