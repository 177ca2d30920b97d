//! The assembly of an upstream's table: its endpoints, its balancer and its rules.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Assembly;
use super::endpoints::ListedEndpoints;
use crate::config::diagnostic::Source;
use crate::config::load::ManifestFile;
use crate::config::manifest::{self};
use crate::config::spanned::Spanned;
use crate::generation::Upstream;
use crate::generation::ids::{ById, PluginId, UpstreamId};
use crate::protocol::proxy_protocol;
use crate::upstream::connection_limit::ConnectionLimit;
use crate::upstream::discovery::UpstreamSpec;
use crate::upstream::endpoint::RequestLimit;
use crate::upstream::response_head_limits::ResponseHeadLimits;
use crate::upstream::{ConnectionSettings, EndpointProtocol};

/// The default of `pending`: the requests that may wait for a connection.
const PENDING: usize = 1024;

/// The default of `idle-connections`: as many as a worker rarely needs at once.
const IDLE_CONNECTIONS: usize = 1024;

impl Assembly<'_> {
    /// Returns the upstreams of the manifest, with the index of each by its name.
    pub(super) fn upstreams(
        &mut self,
        files: &[ManifestFile],
    ) -> (ById<UpstreamId, Upstream>, HashMap<Arc<str>, UpstreamId>) {
        let mut upstreams = ById::default();
        let mut upstream_ids = HashMap::new();
        for ManifestFile { source, manifest } in files {
            for (name, upstream) in &manifest.upstream {
                let made = self.upstream(source, name, upstream);
                let upstream_name = made.name.clone();
                if upstream_ids.insert(upstream_name, upstreams.push(made)).is_some() {
                    let message = format!(
                        "upstream name used twice: `{}` stands in another file too; choose another",
                        name.get_ref()
                    );
                    self.problems.at(source, name.span(), message);
                }
            }
        }
        (upstreams, upstream_ids)
    }

    pub(super) fn upstream(
        &mut self,
        source: &Arc<Source>,
        name: &Spanned<String>,
        upstream: &manifest::UpstreamTable,
    ) -> Upstream {
        let problems = self.problems.count();
        let members = self.members(source, upstream);
        let is_read = self.problems.count() == problems;
        if name.get_ref().trim().is_empty() {
            let message = "upstream without a name: expected one such as `[upstream.app]`";
            self.problems.at(source, name.span(), message);
        }
        if upstream.endpoints.is_empty() {
            self.problems.at(
                source,
                name.span(),
                "no endpoint: `endpoints` is empty; expected at least one, such as [\"127.0.0.1:8000\"]",
            );
        } else if is_read && members.count() == 0 {
            let message = "no endpoint: the files that `endpoints` names list none; expected at least one in a file, such as \
                           `endpoints = [\"127.0.0.1:8000\"]`";
            self.problems.at(source, upstream.endpoints[0].span(), message);
        }
        let may_speak_tls = |endpoint: &Spanned<manifest::EndpointEntry>| endpoint.get_ref().may_speak_tls();
        if let (Some(tls), false) = (&upstream.tls, upstream.endpoints.iter().any(may_speak_tls)) {
            let message = "`tls` without an endpoint that speaks TLS: write `https://` before those that do, such as \"https://app.internal:443\"";
            self.problems.at(source, tls.span(), message);
        }
        let balancer = self.balancer(source, name, upstream, &members);
        let rules = self.rules(source, upstream);
        let check = upstream.health.as_ref().and_then(|health| {
            self.speaks_grpc(source, upstream, &members);
            self.check(source, health.get_ref(), &rules)
        });
        let health = self.health(source, upstream);
        let offers_http2 = upstream.tls.as_ref().is_none_or(|tls| tls.get_ref().http2 != Some(false));
        let may_speak_http2 = members.speak().any(|speaks| match speaks {
            EndpointProtocol::Http1 => false,
            EndpointProtocol::Http2 => true,
            EndpointProtocol::Tls(_) => offers_http2,
        });
        let plan = UpstreamSpec { members: members.list, names: members.names, health, check };
        let (retry, name) = (self.retry(source, &upstream.retry), Arc::<str>::from(name.get_ref().as_str()));
        let connection_limit = self.connection_limit(source, &name, &upstream.limits);
        let requests = upstream.limits.requests.as_ref();
        let live = self.assembly.live(&name);
        let request_limit = requests.map_or_else(RequestLimit::default, |requests| {
            let max = self.up_to(source, Some(requests), 1, 1..=u32::MAX as usize) as u32;
            RequestLimit::limited(max, live.limited().clone())
        });
        Upstream { name, live, plan, balancer, rules, retry, may_speak_http2, connection_limit, request_limit }
    }

    fn balancer(
        &mut self,
        source: &Arc<Source>,
        name: &Spanned<String>,
        upstream: &manifest::UpstreamTable,
        members: &ListedEndpoints,
    ) -> Option<PluginId> {
        let Some(reference) = &upstream.balancer else {
            let several = members.list.len() > 1 || !members.names.is_empty();
            return several.then(|| self.round_robin(source, name.span())).flatten();
        };
        let balancer = self.reference(source, reference);
        if balancer.is_some_and(|balancer| !self.bindings[balancer].is_balancer()) {
            self.problems.at(
                source,
                reference.span(),
                "not a balancer: this plugin has no such hook; expected one that has, such as `balancer = \"balance\"`",
            );
        }
        balancer
    }

    fn rules(&mut self, source: &Arc<Source>, upstream: &manifest::UpstreamTable) -> ConnectionSettings {
        let proxy_protocol = upstream.proxy_protocol.as_ref().and_then(|version| match version.get_ref().as_str() {
            "v1" => Some(proxy_protocol::ProxyVersion::V1),
            "v2" => Some(proxy_protocol::ProxyVersion::V2),
            other => {
                let message = format!("unknown version of the PROXY protocol: `{other}`; expected \"v1\" or \"v2\"");
                self.problems.at(source, version.span(), message);
                None
            }
        });
        ConnectionSettings {
            proxy_protocol,
            read_timeout: self.duration(source, upstream.read_timeout.as_ref(), Duration::from_secs(60)),
            stream_timeout: self.duration(source, upstream.stream_timeout.as_ref(), STREAM_TIMEOUT),
            head: self.head_limits(
                source,
                upstream.limits.response_head.as_ref(),
                upstream.limits.response_fields.as_ref(),
                ResponseHeadLimits::default(),
            ),
            connect_timeout: self.duration(source, upstream.connect_timeout.as_ref(), Duration::from_secs(5)),
            response_timeout: self.duration(source, upstream.response_timeout.as_ref(), Duration::from_secs(60)),
            idle_timeout: self.duration(source, upstream.idle_timeout.as_ref(), Duration::from_secs(60)),
            idle_connections: upstream.idle_connections.unwrap_or(IDLE_CONNECTIONS),
        }
    }

    /// Returns the limits of the heads of responses, by the keys `response-head` and `response-fields`.
    pub(super) fn head_limits(
        &mut self,
        source: &Arc<Source>,
        head: Option<&Spanned<String>>,
        fields: Option<&Spanned<usize>>,
        default: ResponseHeadLimits,
    ) -> ResponseHeadLimits {
        let bytes = self.bytes(source, head, default.bytes);
        if let Some(head) = head.filter(|_| !(MIN_HEAD_BYTES..=MAX_HEAD_BYTES).contains(&bytes)) {
            let message = format!(
                "`response-head` out of range: `{}`; expected `1 KiB` to `16 MiB`, such as `32 KiB`",
                head.get_ref()
            );
            self.problems.at(source, head.span(), message);
        }
        let fields = self.up_to(source, fields, default.fields, 1..=MAX_FIELDS);
        ResponseHeadLimits { bytes, fields }
    }

    /// Returns the connection limit of the upstream: the former one if its numbers did not change, so that open
    /// connections still count.
    fn connection_limit(
        &mut self,
        source: &Arc<Source>,
        name: &Arc<str>,
        limits: &manifest::UpstreamLimits,
    ) -> ConnectionLimit {
        if limits.connections.is_none() {
            if let Some(pending) = &limits.pending {
                self.problems.at(
                    source,
                    pending.span(),
                    "`pending` without `connections`: it has no effect; add `connections`, or remove `pending`",
                );
            }
            return ConnectionLimit::default();
        }
        let connections = self.up_to(source, limits.connections.as_ref(), 1, 1..=MAX_CONNECTIONS);
        let pending = self.up_to(source, limits.pending.as_ref(), PENDING, 0..=u32::MAX as usize);
        self.assembly.connection_limit(name, connections as u32, pending as u32)
    }
}

/// The default of `stream-timeout`: longer than clients and servers of gRPC keep a stream without a ping, and short
/// enough that abandoned streams are few.
const STREAM_TIMEOUT: Duration = Duration::from_secs(3600);

/// The least limit of a head that hyper's buffer and the fields of a plain response leave room for.
const MIN_HEAD_BYTES: usize = 1 << 10;
/// The largest limit of a head in bytes, as for requests.
const MAX_HEAD_BYTES: usize = 16 << 20;
/// The largest limit of fields, as for requests.
const MAX_FIELDS: usize = 10_000;

/// The maximum of `connections`: as many as a semaphore can count, and far more than there are ports.
const MAX_CONNECTIONS: usize = 1 << 24;
