//! What the admin listener shows of upstreams and their endpoints.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::{family, line};
use crate::generation::Upstream;
use crate::upstream::endpoint::Totals;
use crate::upstream::health::State;
use crate::upstream::live::{Events, Member};

/// An upstream in the status document.
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

fn endpoint(member: &Member, now: Instant) -> Value {
    let (endpoint, totals) = (&member.endpoint, member.endpoint.totals());
    json!({
        "address": &*endpoint.address.text,
        "state": member.state.word(),
        "weight": f64::from(member.weight) / 100.0,
        "tier": member.tier,
        "zone": &*member.zone,
        "in_flight": endpoint.in_flight.count(),
        "latency_ms": f64::from(endpoint.latency.micros(now)) / 1e3,
        "responses": totals.answered(),
        "failures": totals.failures + totals.bad_responses,
        "failures_in_a_row": endpoint.failures.load(Ordering::Relaxed),
        "ejections": member.ejections,
    })
}

/// The figures of all upstreams.
pub fn metrics(out: &mut String, upstreams: &[Upstream]) {
    let now = Instant::now();
    let mut each = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Member) -> f64| {
        family(out, name, kind, help);
        for upstream in upstreams {
            for member in &upstream.live.members().list {
                let labels = [("upstream", &*upstream.name), ("endpoint", &*member.endpoint.address.text)];
                line(out, name, &labels, value(member));
            }
        }
    };
    let sum = |one: fn(&Totals) -> u64| move |member: &Member| one(&member.endpoint.totals()) as f64;
    each("plugway_endpoint_in_flight", "gauge", "Requests in flight.", &|member| {
        member.endpoint.in_flight.count().into()
    });
    each("plugway_endpoint_weight", "gauge", "Its share, smaller in a slow start.", &|member| {
        f64::from(member.weight) / 100.0
    });
    each(
        "plugway_endpoint_latency_seconds",
        "gauge",
        "How long responses take to begin, as balancers see it.",
        &|member| f64::from(member.endpoint.latency.micros(now)) / 1e6,
    );
    each(
        "plugway_endpoint_response_seconds_total",
        "counter",
        "How long responses took to begin, in all.",
        &|member| member.endpoint.totals().latency_us as f64 / 1e6,
    );
    each(
        "plugway_endpoint_failures_total",
        "counter",
        "Requests that got no response, or not all of it.",
        &sum(|totals| totals.failures),
    );
    each(
        "plugway_endpoint_bad_responses_total",
        "counter",
        "Responses whose status counts as a failure.",
        &sum(|totals| totals.bad_responses),
    );
    each("plugway_endpoint_ejections_total", "counter", "Times that it was taken out for its failures.", &|member| {
        member.ejections as f64
    });
    responses(out, upstreams);
    states(out, upstreams);
    as_wholes(out, upstreams);
}

fn responses(out: &mut String, upstreams: &[Upstream]) {
    let name = "plugway_endpoint_responses_total";
    family(out, name, "counter", "Responses, by first digit of the status.");
    for upstream in upstreams {
        for member in &upstream.live.members().list {
            let totals = member.endpoint.totals();
            for (class, label) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().enumerate() {
                let endpoint = &*member.endpoint.address.text;
                let labels = [("upstream", &*upstream.name), ("endpoint", endpoint), ("class", label)];
                line(out, name, &labels, totals.responses[class + 1] as f64);
            }
        }
    }
}

fn states(out: &mut String, upstreams: &[Upstream]) {
    let name = "plugway_endpoint_state";
    family(out, name, "gauge", "1 for the state that it is in.");
    for upstream in upstreams {
        for member in &upstream.live.members().list {
            for state in State::ALL {
                let endpoint = &*member.endpoint.address.text;
                let labels = [("upstream", &*upstream.name), ("endpoint", endpoint), ("state", state.word())];
                line(out, name, &labels, f64::from(u8::from(member.state == state)));
            }
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
    family(out, "plugway_upstream_panicking", "gauge", "1 while too few endpoints are well, so that all are used.");
    for upstream in upstreams {
        let panicking = f64::from(u8::from(upstream.live.members().panicking));
        line(out, "plugway_upstream_panicking", &[("upstream", &*upstream.name)], panicking);
    }
}
