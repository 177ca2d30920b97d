//! The admin listener: figures for Prometheus, the state for people, and reload. Loopback unless the manifest says
//! otherwise.

mod cache;
mod upstreams;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use crate::body::ResponseBody;
use crate::error::Kind;
use crate::generation::Generation;
use crate::listener::SendLimit;
use crate::metrics::{BOUNDS, Count, CustomKind, Registry};

/// Where it listens if the manifest doesn't say.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:9145";

/// Asks for a reload; the answer is what `plugway reload` prints.
pub type ReloadOrder = oneshot::Sender<Result<String, String>>;

/// What the admin listener shows.
pub struct Admin {
    pub registry: Arc<Registry>,
    pub generation: watch::Receiver<Arc<Generation>>,
    /// Generations served so far.
    pub serial: Arc<AtomicU64>,
    pub reload: mpsc::Sender<ReloadOrder>,
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let admin = admin.clone();
        let service = service_fn(move |request| {
            let admin = admin.clone();
            async move { Ok::<_, Infallible>(answer(&admin, request).await) }
        });
        tokio::task::spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// Asks the process behind an admin listener to do something, such as `/reload`; the error is what it says is wrong.
pub fn order(address: &str, order: &str) -> anyhow::Result<String> {
    let mut stream = std::net::TcpStream::connect(address).map_err(|error| {
        anyhow::anyhow!("nothing answers at the admin address {address}: {error}; name it with --admin")
    })?;
    write!(stream, "POST {order} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.1 200 ") {
        Ok(body.trim_end().into())
    } else {
        Err(anyhow::anyhow!("{}", body.trim_end()))
    }
}

async fn answer(admin: &Admin, request: Request<Incoming>) -> Response<ResponseBody> {
    // A page in a browser could be made to ask loopback by a name of its own; by an address it can't.
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    if name != "localhost" && name.parse::<std::net::IpAddr>().is_err() {
        return text(StatusCode::FORBIDDEN, "text/plain", "use the address of the admin listener\n".into());
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => text(StatusCode::OK, "text/plain; version=0.0.4", metrics(admin)),
        (&Method::GET, "/" | "/status") => text(StatusCode::OK, "application/json", status(admin)),
        (&Method::POST, "/reload") => {
            let (done, outcome) = oneshot::channel();
            let sent = admin.reload.send(done).await.is_ok();
            match outcome.await {
                Ok(Ok(message)) if sent => text(StatusCode::OK, "text/plain", message + "\n"),
                Ok(Err(problems)) => text(StatusCode::UNPROCESSABLE_ENTITY, "text/plain", problems + "\n"),
                _ => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the process is stopping\n".into()),
            }
        }
        (&Method::POST, "/drain") => drain(admin, request.uri().query(), true),
        (&Method::POST, "/undrain") => drain(admin, request.uri().query(), false),
        (&Method::POST, "/purge") => cache::purge(admin, request.uri().query()).await,
        (_, path @ ("/metrics" | "/status" | "/" | "/reload" | "/drain" | "/undrain" | "/purge")) => {
            let allowed = if ["/metrics", "/status", "/"].contains(&path) { "GET" } else { "POST" };
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", format!("this takes {allowed}\n"));
            response.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static(allowed));
            response
        }
        _ => {
            let known = "/status, /metrics, POST /reload, /drain, /undrain, /purge\n";
            text(StatusCode::NOT_FOUND, "text/plain", known.into())
        }
    }
}

/// Has an endpoint get nothing new, or lets it have its share again: `upstream=app&endpoint=127.0.0.1:8000`, the endpoint
/// as the status document writes it.
fn drain(admin: &Admin, query: Option<&str>, drains: bool) -> Response<ResponseBody> {
    let (Some(upstream), Some(endpoint)) = (parameter(query, "upstream"), parameter(query, "endpoint")) else {
        let usage = "name both, such as upstream=app&endpoint=127.0.0.1:8000\n";
        return text(StatusCode::BAD_REQUEST, "text/plain", usage.into());
    };
    let generation = admin.generation.borrow().clone();
    let Some(place) = generation.upstream_places.get(upstream.as_str()) else {
        return text(StatusCode::NOT_FOUND, "text/plain", "there is no such upstream; see /status\n".into());
    };
    if !generation.upstreams[*place].live.drain(&endpoint, drains, Instant::now()) {
        return text(StatusCode::NOT_FOUND, "text/plain", "the upstream has no such endpoint; see /status\n".into());
    }
    info!(%upstream, %endpoint, "{}", if drains { "drained by order" } else { "in use again by order" });
    text(StatusCode::OK, "text/plain", if drains { "draining\n" } else { "in use\n" }.into())
}

/// A parameter of a query; empty where it stands without a value.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.find(|(known, _)| *known == name)?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

fn text(status: StatusCode, media_type: &'static str, body: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    response
}

fn status(admin: &Admin) -> String {
    let generation = admin.generation.borrow().clone();
    let route = |route: &crate::generation::Route| {
        let chain = route.chain.iter().map(|place| &*generation.bindings[*place].name).collect::<Vec<_>>();
        json!({ "name": &*route.name, "upstream": &*generation.upstreams[route.upstream].name, "plugins": chain })
    };
    let plugins = admin.registry.plugins();
    let plugin = |(name, figures): (&Arc<str>, &Vec<_>)| {
        let sum = |one: fn(&crate::metrics::PluginFigures) -> &Count| sum(figures, one);
        let seconds = sum(|figures| &figures.nanoseconds) as f64 / 1e9;
        json!({ "name": &**name, "calls": sum(|f| &f.calls), "failures": sum(|f| &f.failures), "seconds": seconds })
    };
    let document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "generation": admin.serial.load(Ordering::Relaxed),
        "routes": generation.routes.iter().map(route).collect::<Vec<_>>(),
        "upstreams": generation.upstreams.iter().map(upstreams::status).collect::<Vec<_>>(),
        "plugins": plugins.iter().map(plugin).collect::<Vec<_>>(),
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
        for kind in Kind::ALL {
            let count = sum(figures, |figures| &figures.errors[kind as usize]);
            if count > 0 {
                line(&mut out, "plugway_errors_total", &[("route", name), ("kind", kind.token())], count as f64);
            }
        }
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
        for (place, bound) in
            BOUNDS.iter().map(|bound| (*bound as f64 / 1e6).to_string()).chain(["+Inf".into()]).enumerate()
        {
            below += sum(figures, |figures| &figures.durations[place]);
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
    let custom = admin.registry.custom();
    for (name, kind) in [("plugway_plugin_counter", CustomKind::Counter), ("plugway_plugin_gauge", CustomKind::Gauge)] {
        let (word, help) = match kind {
            CustomKind::Counter => ("counter", "Counters that plugins define."),
            CustomKind::Gauge => ("gauge", "Gauges that plugins define."),
        };
        family(&mut out, name, word, help);
        for (plugin, custom, sum) in custom.iter().filter(|(_, custom, _)| custom.kind == kind) {
            line(&mut out, name, &[("plugin", plugin), ("name", &custom.name)], *sum);
        }
    }
    upstreams::metrics(&mut out, &generation.upstreams);
    cache::metrics(&mut out, admin, &generation.store);
    clients(&mut out, &generation);
    family(&mut out, "plugway_access_log_dropped_total", "counter", "Lines that found the queue full.");
    let dropped = generation.access_log.as_ref().map_or(0, |log| log.dropped());
    line(&mut out, "plugway_access_log_dropped_total", &[], dropped as f64);
    family(&mut out, "plugway_generation", "gauge", "Generations served so far.");
    line(&mut out, "plugway_generation", &[], admin.serial.load(Ordering::Relaxed) as f64);
    out
}

/// Writes what the listeners counted of their clients.
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

fn sum<T>(figures: &[Arc<T>], one: impl Fn(&T) -> &Count) -> u64 {
    figures.iter().map(|figures| one(figures).value()).sum()
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<String> = labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(out, "{name}{labels} {value}");
}
