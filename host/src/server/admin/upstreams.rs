//! Upstreams and their endpoints on the admin listener: status and metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::exposition::{family, line};
use crate::generation::Upstream;
use crate::upstream::endpoint::Totals;
use crate::upstream::endpoint_set::{EndpointState, Events};
use crate::upstream::health::HealthState;

/// Returns an upstream for the status document.
pub fn status(upstream: &Upstream) -> Value {
    let (members, now) = (upstream.live.members(), Instant::now());
    let events = &upstream.live.events;
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    json!({
        "name": &*upstream.name,
        "in_flight": members.in_flight.count(),
        "panicking": members.panicking,
        "retries": count(&events.retries),
        "retries_denied": count(&events.retries_denied),
        "overflows": count(&events.overflows),
        "endpoints": members.list.iter().map(|member| endpoint(member, now)).collect::<Vec<_>>(),
    })
}

fn endpoint(member: &EndpointState, now: Instant) -> Value {
    let (endpoint, totals) = (&member.endpoint, member.endpoint.totals());
    json!({
        "address": &*endpoint.address.text,
        "state": member.state.word(),
        "weight": f64::from(member.weight) / 100.0,
        "tier": member.tier,
        "zone": &*member.zone,
        "in_flight": endpoint.in_flight.count(),
        "latency_ms": f64::from(endpoint.latency.micros(now)) / 1e3,
        "responses": totals.total_responses(),
        "failures": totals.failures + totals.bad_responses,
        "failures_in_a_row": endpoint.failures.load(Ordering::Relaxed),
        "ejections": member.ejections,
    })
}

/// An endpoint with its metrics, all read at one moment.
struct Row<'a> {
    upstream: &'a str,
    member: &'a EndpointState,
    totals: Totals,
    latency_us: u32,
}

/// A metric with one value per endpoint.
struct UpstreamFigure {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&Row<'_>) -> f64,
}

/// Writes the metrics of all upstreams.
pub fn metrics(out: &mut String, upstreams: &[Upstream]) {
    let (sets, now) = (upstreams.iter().map(|upstream| upstream.live.members()).collect::<Vec<_>>(), Instant::now());
    let rows = upstreams.iter().zip(&sets).flat_map(|(upstream, set)| {
        set.list.iter().map(move |member| Row {
            upstream: &upstream.name,
            member,
            totals: member.endpoint.totals(),
            latency_us: member.endpoint.latency.micros(now),
        })
    });
    let rows: Vec<Row<'_>> = rows.collect();
    for UpstreamFigure { name, kind, help, value } in FIGURES {
        family(out, name, kind, help);
        rows.iter().for_each(|row| line(out, name, &row.labels(), value(row)));
    }
    responses(out, &rows);
    states(out, &rows);
    as_wholes(out, upstreams);
    family(out, "plugway_upstream_panicking", "gauge", "1 while too few endpoints are up, so that all are used.");
    for (upstream, set) in upstreams.iter().zip(&sets) {
        let labels = [("upstream", &*upstream.name)];
        line(out, "plugway_upstream_panicking", &labels, f64::from(u8::from(set.panicking)));
    }
}

const FIGURES: [UpstreamFigure; 7] = [
    gauge("plugway_endpoint_in_flight", "Requests in flight.", |row| row.member.endpoint.in_flight.count().into()),
    gauge("plugway_endpoint_weight", "Its share, smaller in a slow start.", |row| f64::from(row.member.weight) / 100.0),
    gauge("plugway_endpoint_latency_seconds", "How long responses take to begin, as balancers see it.", |row| {
        f64::from(row.latency_us) / 1e6
    }),
    counter("plugway_endpoint_response_seconds_total", "How long responses took to begin, in all.", |row| {
        row.totals.latency_us as f64 / 1e6
    }),
    counter("plugway_endpoint_failures_total", "Requests that got no response, or not all of it.", |row| {
        row.totals.failures as f64
    }),
    counter("plugway_endpoint_bad_responses_total", "Responses whose status counts as a failure.", |row| {
        row.totals.bad_responses as f64
    }),
    counter("plugway_endpoint_ejections_total", "Times that it was taken out for its failures.", |row| {
        row.member.ejections as f64
    }),
];

const fn gauge(name: &'static str, help: &'static str, value: fn(&Row<'_>) -> f64) -> UpstreamFigure {
    UpstreamFigure { name, kind: "gauge", help, value }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Row<'_>) -> f64) -> UpstreamFigure {
    UpstreamFigure { name, kind: "counter", help, value }
}

impl Row<'_> {
    fn labels(&self) -> [(&'static str, &str); 2] {
        [("upstream", self.upstream), ("endpoint", &self.member.endpoint.address.text)]
    }

    fn labels_with<'a>(&'a self, label: &'static str, value: &'a str) -> [(&'static str, &'a str); 3] {
        let [upstream, endpoint] = self.labels();
        [upstream, endpoint, (label, value)]
    }
}

fn responses(out: &mut String, rows: &[Row<'_>]) {
    let name = "plugway_endpoint_responses_total";
    family(out, name, "counter", "Responses, by first digit of the status.");
    for row in rows {
        for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(&row.totals.responses[1..]) {
            line(out, name, &row.labels_with("class", class), *count as f64);
        }
    }
}

fn states(out: &mut String, rows: &[Row<'_>]) {
    let name = "plugway_endpoint_state";
    family(out, name, "gauge", "1 for the state that it is in.");
    for row in rows {
        for state in HealthState::ALL {
            let is_in = f64::from(u8::from(row.member.state == state));
            line(out, name, &row.labels_with("state", state.word()), is_in);
        }
    }
}

fn as_wholes(out: &mut String, upstreams: &[Upstream]) {
    let mut each = |name: &str, help: &str, one: fn(&Events) -> &AtomicU64| {
        family(out, name, "counter", help);
        for upstream in upstreams {
            let value = one(&upstream.live.events).load(Ordering::Relaxed);
            line(out, name, &[("upstream", &*upstream.name)], value as f64);
        }
    };
    each("plugway_upstream_retries_total", "Requests sent once more.", |events| &events.retries);
    each("plugway_upstream_retries_denied_total", "Retries that were over the budget.", |events| {
        &events.retries_denied
    });
    each("plugway_upstream_overflows_total", "Requests refused since the upstream was full.", |events| {
        &events.overflows
    });
}
