//! The admin listener: metrics for Prometheus, the status document, and commands. By default it listens at loopback and
//! at a unix socket of the owner.
//!
//! [`listener`] has its sockets, [`connection`] the limits of clients, [`access`] the access rules, [`requests`] the
//! responses, [`status`] and [`metrics_page`] the documents; [`client`] is the other side, for the commands.

mod access;
mod cache;
pub mod client;
mod connection;
mod connections;
mod document;
mod exposition;
mod fleet;
pub mod listener;
mod metrics_page;
mod plugins;
mod purge;
mod requests;
pub(crate) mod socket;
mod status;
mod upstreams;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use percent_encoding::percent_decode_str;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use crate::exchange::response_body::ResponseBody;
use crate::generation::Generation;
use crate::telemetry::metrics::Registry;
use crate::upstream::endpoint_set::EndpointState;
use crate::upstream::health::HealthState;

/// The default address of the admin listener, used if the manifest names none.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9145));

/// The field in which a command names the manifest that it means, percent-encoded. A proxy of another manifest rejects
/// the command.
const MANIFEST_FIELD: &str = "plugway-manifest";

/// The field of each response, by which commands know an admin listener. They send a command, and the token for it, to no
/// other server.
const ADMIN_FIELD: &str = "plugway-admin";

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
    let live = &generation.upstreams[*upstream_id].live;
    if !live.drain(&endpoint, drains, Instant::now()) {
        return text(StatusCode::NOT_FOUND, "text/plain", "the upstream has no such endpoint; see /status\n".into());
    }
    let members = live.members();
    let is_draining = |member: &EndpointState| matches!(member.state, HealthState::Draining);
    let is_kept = members.list.iter().any(|one| *one.endpoint.address.text == *endpoint && is_draining(one));
    match drains {
        true => {
            info!(?upstream, ?endpoint, "drained by order");
            let is_last = members.list.iter().all(is_draining);
            let rest = format!(": no endpoint of `{upstream}` is left, so requests to it fail");
            text(StatusCode::OK, "text/plain", format!("draining{}\n", if is_last { &*rest } else { "" }))
        }
        false if is_kept => {
            let message =
                "still draining: `draining = true` in the manifest or in the file of endpoints; change it there\n";
            text(StatusCode::UNPROCESSABLE_ENTITY, "text/plain", message.into())
        }
        false => {
            info!(?upstream, ?endpoint, "in use again by order");
            text(StatusCode::OK, "text/plain", "in use\n".into())
        }
    }
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
        (HeaderName::from_static(ADMIN_FIELD), "1"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_show_control_characters() {
        assert_eq!(printable("a\tb\nc\u{1b}[31m\r\u{9d}ü"), "a\tb\nc\\u{1b}[31m\\r\\u{9d}ü");
    }
}
