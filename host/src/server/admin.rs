//! The admin listener: metrics for Prometheus, the status document, and commands. By default it listens at loopback and
//! at a unix socket of the owner.
//!
//! [`listener`] has its sockets, [`connection`] the limits of clients, [`access`] the access rules, [`requests`] the
//! responses; [`client`] is the other side, for the commands.

mod access;
mod cache;
pub mod client;
mod connection;
mod connections;
mod document;
pub mod listener;
mod plugins;
mod requests;
pub(crate) mod socket;
mod upstreams;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use crate::error::FailureKind;
use crate::exchange::response_body::ResponseBody;
use crate::generation::Generation;
use crate::generation::connection_counts::SendLimit;
use crate::system::supervise::Task;
use crate::telemetry::failure_log::{self, Topic};
use crate::telemetry::metrics::{BOUNDS, Counter, PluginMetricKind, Registry};
use crate::telemetry::process_log;
use crate::tls::validity::Validity;

/// The default address of the admin listener, used if the manifest names none.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9145));

/// The field in which a command names the manifest that it means, percent-encoded. A proxy of another manifest rejects
/// the command.
const MANIFEST_FIELD: &str = "plugway-manifest";

/// A request for a reload; the result is the text that `plugway reload` prints.
pub type ReloadOrder = oneshot::Sender<Result<String, String>>;

/// The state that the admin listener reports.
pub struct Admin {
    pub registry: Arc<Registry>,
    pub generation: watch::Receiver<Arc<Generation>>,
    /// The number of generations served so far.
    pub serial: Arc<AtomicU64>,
    pub reload: mpsc::Sender<ReloadOrder>,
}

/// Drains or undrains an endpoint: `upstream=app&endpoint=127.0.0.1:8000`. The endpoint is written as in the status
/// document.
fn drain(admin: &Admin, query: Option<&str>, drains: bool) -> Response<ResponseBody> {
    let (Some(upstream), Some(endpoint)) = (parameter(query, "upstream"), parameter(query, "endpoint")) else {
        let usage = "name both, such as upstream=app&endpoint=127.0.0.1:8000\n";
        return text(StatusCode::BAD_REQUEST, "text/plain", usage.into());
    };
    let generation = admin.generation.borrow().clone();
    let Some(upstream_id) = generation.upstream_ids.get(upstream.as_str()) else {
        return text(StatusCode::NOT_FOUND, "text/plain", "there is no such upstream; see /status\n".into());
    };
    if !generation.upstreams[*upstream_id].live.drain(&endpoint, drains, Instant::now()) {
        return text(StatusCode::NOT_FOUND, "text/plain", "the upstream has no such endpoint; see /status\n".into());
    }
    info!(?upstream, ?endpoint, "{}", if drains { "drained by order" } else { "in use again by order" });
    text(StatusCode::OK, "text/plain", if drains { "draining\n" } else { "in use\n" }.into())
}

/// Returns a parameter of a query; the empty string if the parameter has no value.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.find(|(known, _)| *known == name)?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

/// Returns a response with a text in which control characters are escaped: names come from manifests and plugins, and
/// the text is shown in a terminal.
fn text(status: StatusCode, media_type: &'static str, body: String) -> Response<ResponseBody> {
    respond(status, media_type, printable(&body).into())
}

/// Returns a response that no browser stores, interprets or shows to another page.
fn respond(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(body));
    *response.status_mut() = status;
    let fields = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fields {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Returns a text in which control characters are escaped, except line ends and tabs.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\t' => shown.push(letter),
            letter if letter.is_control() => shown.extend(letter.escape_default()),
            letter => shown.push(letter),
        }
    }
    shown
}

fn status(admin: &Admin) -> String {
    let generation = admin.generation.borrow().clone();
    let route = |route: &crate::generation::Route| {
        let chain =
            route.chain.iter().map(|plugin_index| &*generation.bindings[*plugin_index].name).collect::<Vec<_>>();
        json!({ "name": &*route.name, "upstream": &*generation.upstreams[route.upstream].name, "plugins": chain })
    };
    let document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "generation": admin.serial.load(Ordering::Relaxed),
        "routes": generation.routes.iter().map(route).collect::<Vec<_>>(),
        "upstreams": generation.upstreams.iter().map(upstreams::status).collect::<Vec<_>>(),
        "plugins": plugins::status(admin, &generation),
        "cache": cache::status(admin, &generation.store),
    });
    format!("{document:#}\n")
}

fn metrics(admin: &Admin) -> String {
    let (mut out, generation) = (String::new(), admin.generation.borrow().clone());
    let routes = admin.registry.routes();
    family(&mut out, "plugway_responses_total", "counter", "Responses, by route and first digit of the status.");
    for (name, figures) in &routes {
        for (class, label) in ["aborted", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().enumerate() {
            let count = sum(figures, |figures| &figures.responses[class]);
            line(&mut out, "plugway_responses_total", &[("route", name), ("class", label)], count as f64);
        }
    }
    family(&mut out, "plugway_errors_total", "counter", "Failed exchanges, by route and kind (RFC 9209).");
    for (name, figures) in &routes {
        for kind in FailureKind::ALL {
            let count = sum(figures, |figures| &figures.errors[kind as usize]);
            if count > 0 {
                line(&mut out, "plugway_errors_total", &[("route", name), ("kind", kind.token())], count as f64);
            }
        }
    }
    family(&mut out, "plugway_request_bytes_total", "counter", "Content received from clients.");
    for (name, figures) in &routes {
        let bytes = sum(figures, |figures| &figures.request_bytes);
        line(&mut out, "plugway_request_bytes_total", &[("route", name)], bytes as f64);
    }
    family(&mut out, "plugway_response_bytes_total", "counter", "Content sent to clients.");
    for (name, figures) in &routes {
        let bytes = sum(figures, |figures| &figures.response_bytes);
        line(&mut out, "plugway_response_bytes_total", &[("route", name)], bytes as f64);
    }
    let duration = "plugway_exchange_duration_seconds";
    family(&mut out, duration, "histogram", "From the request head to the last byte of the response.");
    for (name, figures) in &routes {
        let mut below = 0;
        for (bucket, bound) in
            BOUNDS.iter().map(|bound| (*bound as f64 / 1e6).to_string()).chain(["+Inf".into()]).enumerate()
        {
            below += sum(figures, |figures| &figures.durations[bucket]);
            line(&mut out, &format!("{duration}_bucket"), &[("route", name), ("le", &bound)], below as f64);
        }
        let seconds = sum(figures, |figures| &figures.duration_us) as f64 / 1e6;
        line(&mut out, &format!("{duration}_sum"), &[("route", name)], seconds);
        line(&mut out, &format!("{duration}_count"), &[("route", name)], below as f64);
    }
    let plugins = admin.registry.plugins();
    family(&mut out, "plugway_plugin_calls_total", "counter", "Calls of a plugin's hooks.");
    for (name, figures) in &plugins {
        line(&mut out, "plugway_plugin_calls_total", &[("plugin", name)], sum(figures, |f| &f.calls) as f64);
    }
    family(&mut out, "plugway_plugin_failures_total", "counter", "Calls that trapped, were cut off or refused.");
    for (name, figures) in &plugins {
        line(&mut out, "plugway_plugin_failures_total", &[("plugin", name)], sum(figures, |f| &f.failures) as f64);
    }
    family(
        &mut out,
        "plugway_plugin_seconds_total",
        "counter",
        "Time in a plugin's hooks, estimated from one call in 16.",
    );
    for (name, figures) in &plugins {
        let seconds = sum(figures, |f| &f.nanoseconds) as f64 / 1e9;
        line(&mut out, "plugway_plugin_seconds_total", &[("plugin", name)], seconds);
    }
    let dropped = "plugway_plugin_log_dropped_total";
    family(&mut out, dropped, "counter", "Lines of a plugin beyond what it may log in a second.");
    // Several routes may use one plugin, each with its own configuration.
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    generation
        .bindings
        .iter()
        .for_each(|configured| *sums.entry(&configured.name).or_default() += configured.dropped_lines());
    for (name, count) in sums {
        line(&mut out, dropped, &[("plugin", name)], count as f64);
    }
    plugins::metrics(&mut out, admin, &generation);
    let custom = admin.registry.custom();
    for (name, kind) in
        [("plugway_plugin_counter", PluginMetricKind::Counter), ("plugway_plugin_gauge", PluginMetricKind::Gauge)]
    {
        let (word, help) = match kind {
            PluginMetricKind::Counter => ("counter", "Counters that plugins define."),
            PluginMetricKind::Gauge => ("gauge", "Gauges that plugins define."),
        };
        family(&mut out, name, word, help);
        for (plugin, custom, sum) in custom.iter().filter(|(_, custom, _)| custom.definition.kind == kind) {
            line(&mut out, name, &[("plugin", plugin), ("name", &custom.definition.name)], *sum);
        }
    }
    connections::metrics(&mut out, &generation.listeners);
    upstreams::metrics(&mut out, &generation.upstreams);
    cache::metrics(&mut out, admin, &generation.store);
    clients(&mut out, &generation);
    family(
        &mut out,
        "plugway_access_log_dropped_total",
        "counter",
        "Lines of the access log that could not be written.",
    );
    let dropped = generation.access_log.as_ref().map_or(0, |log| log.dropped());
    line(&mut out, "plugway_access_log_dropped_total", &[], dropped as f64);
    family(&mut out, "plugway_log_dropped_total", "counter", "Lines of the process log that could not be written.");
    line(&mut out, "plugway_log_dropped_total", &[], process_log::dropped() as f64);
    let left_out = "plugway_log_failures_left_out_total";
    family(
        &mut out,
        left_out,
        "counter",
        "Failures without a line in the process log, beyond what a second has room for.",
    );
    for topic in Topic::all().filter(|topic| failure_log::dropped(*topic) > 0) {
        let labels = [("topic", topic.name()), ("kind", topic.kind().unwrap_or("-"))];
        line(&mut out, left_out, &labels, failure_log::dropped(topic) as f64);
    }
    family(&mut out, "plugway_panics_total", "counter", "Panics, by the task that they ended.");
    for task in Task::ALL {
        line(&mut out, "plugway_panics_total", &[("task", task.name())], task.panics() as f64);
    }
    family(
        &mut out,
        "plugway_control_holds_total",
        "counter",
        "Times that the control thread was held up for a second.",
    );
    line(&mut out, "plugway_control_holds_total", &[], admin.registry.control_holds.value() as f64);
    certificates(&mut out, &generation);
    family(&mut out, "plugway_generation", "gauge", "Generations served so far.");
    line(&mut out, "plugway_generation", &[], admin.serial.load(Ordering::Relaxed) as f64);
    out
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

/// Writes the validity dates of certificates. Comparing them with the current time shows which certificates are invalid
/// or expire soon.
fn certificates(out: &mut String, generation: &Generation) {
    type Date = fn(Validity) -> i64;
    let dates: [(&str, &str, Date); 2] = [
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

fn sum<T>(figures: &[Arc<T>], one: impl Fn(&T) -> &Counter) -> u64 {
    figures.iter().map(|figures| one(figures).value()).sum()
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    out.push_str(name);
    for (index, (label, text)) in labels.iter().enumerate() {
        out.push_str(if index == 0 { "{" } else { "," });
        let _ = write!(out, "{label}=\"");
        escape(out, text);
        out.push('"');
    }
    let end = if labels.is_empty() { "" } else { "}" };
    let _ = writeln!(out, "{end} {value}");
}

/// Writes a label's value. The format has escapes for three characters; other control characters are written as the
/// text of their escapes, since the page is read in terminals too.
fn escape(out: &mut String, text: &str) {
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            letter if letter.is_control() => {
                let _ = write!(out, "\\\\u{{{:x}}}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut out = String::new();
        line(&mut out, "a", &[("x", "b\\\"\n"), ("y", "\r\u{1b}[2Jü\u{9b}\0")], 1.0);
        line(&mut out, "b", &[], 0.5);
        assert_eq!(out, "a{x=\"b\\\\\\\"\\n\",y=\"\\\\u{d}\\\\u{1b}[2Jü\\\\u{9b}\\\\u{0}\"} 1\nb 0.5\n");
    }

    #[test]
    fn texts_show_control_characters() {
        assert_eq!(printable("a\tb\nc\u{1b}[31m\r\u{9d}ü"), "a\tb\nc\\u{1b}[31m\\r\\u{9d}ü");
    }
}
