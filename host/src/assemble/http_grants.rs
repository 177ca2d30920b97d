//! The destinations of plugins' own requests: from `grants.http` to upstreams. A server that a plugin may ask is an upstream
//! of its own, which no route names and no plugin chooses.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use http::Uri;

use super::{Assembly, named_table};
use crate::config::diagnostic::Source;
use crate::config::load::ManifestFile;
use crate::config::manifest::{EndpointEntry, UpstreamTable};
use crate::config::plugin_grants::HttpGrant;
use crate::config::spanned::Spanned;
use crate::generation::Upstream;
use crate::generation::ids::{ById, PluginId, UpstreamId};
use crate::plugin::outgoing_http::HttpDestination;

/// The places of the manifest that grant servers, and the names of its upstreams.
#[derive(Default)]
pub struct HttpGrants {
    upstreams: Vec<String>,
    servers: HashMap<HttpDestination, GrantPlace>,
}

/// The place of a grant in a manifest.
#[derive(Clone)]
struct GrantPlace {
    source: Arc<Source>,
    span: Range<usize>,
}

impl HttpGrants {
    /// Reads the names of a manifest's upstreams.
    pub(super) fn of(files: &[ManifestFile]) -> Self {
        let names = files.iter().flat_map(|file| file.manifest.upstream.keys());
        HttpGrants { upstreams: names.map(|name| name.get_ref().clone()).collect(), servers: HashMap::new() }
    }
}

impl Assembly<'_> {
    /// Returns the destinations that a plugin's table grants.
    pub(super) fn http_destinations(
        &mut self,
        source: &Arc<Source>,
        grants: &[Spanned<HttpGrant>],
    ) -> Arc<[HttpDestination]> {
        let mut destinations = Vec::new();
        for grant in grants {
            match grant.get_ref() {
                HttpGrant::Upstream(granted) => {
                    let name = &granted.upstream;
                    if !self.http_grants.upstreams.contains(name) && !self.left_out.has("upstream", name) {
                        let message = format!(
                            "unknown upstream `{name}`: add `{}`, or correct the name",
                            named_table("upstream", name)
                        );
                        self.problems.at(source, grant.span(), message);
                    }
                    destinations.push(HttpDestination::Upstream(name.as_str().into()));
                }
                HttpGrant::Url(url) => match server(url) {
                    Some(destination) => {
                        let place = GrantPlace { source: source.clone(), span: grant.span() };
                        self.http_grants.servers.insert(destination.clone(), place);
                        destinations.push(destination);
                    }
                    None => {
                        let message = format!(
                            "invalid destination: `{url}`; expected a scheme, a host and perhaps a port, such as \
                             \"https://auth.example\", or {{ upstream = \"auth\" }}"
                        );
                        self.problems.at(source, grant.span(), message);
                    }
                },
            }
        }
        destinations.into()
    }

    /// Returns the upstreams of each plugin's destinations, and adds those of servers to the others.
    pub(super) fn callout_targets(
        &mut self,
        upstreams: &mut ById<UpstreamId, Upstream>,
        upstream_ids: &HashMap<Arc<str>, UpstreamId>,
    ) -> ById<PluginId, Box<[UpstreamId]>> {
        let granted: Vec<Arc<[HttpDestination]>> =
            self.bindings.iter().map(|configured| configured.http_destinations().clone()).collect();
        let mut servers: HashMap<HttpDestination, UpstreamId> = HashMap::new();
        let mut targets = ById::default();
        for destinations in &granted {
            let mut of_plugin = Vec::new();
            for destination in destinations.iter() {
                let known = match destination {
                    HttpDestination::Upstream(name) => upstream_ids.get(&**name).copied(),
                    HttpDestination::Server { .. } => servers.get(destination).copied(),
                };
                let made = known.or_else(|| self.server(destination).map(|server| upstreams.push(server)));
                if let Some(upstream_id) = made {
                    servers.insert(destination.clone(), upstream_id);
                    of_plugin.push(upstream_id);
                }
            }
            targets.push(of_plugin.into());
        }
        // The upstream of a server may have brought a balancer.
        for _ in granted.len()..self.bindings.iter().count() {
            targets.push(Box::default());
        }
        targets
    }

    /// Makes the upstream of a server; returns `None` if the manifest grants no such server.
    fn server(&mut self, destination: &HttpDestination) -> Option<Upstream> {
        let GrantPlace { source, span } = self.http_grants.servers.get(destination)?.clone();
        let url = destination.to_string();
        let endpoint = Spanned::new(span.clone(), EndpointEntry::Address(url.clone()));
        let made = self.upstream(&source, &Spanned::new(span.clone(), url), &UpstreamTable::of(endpoint));
        // A balancer has an instance for each upstream, on each worker.
        let workers = self.assembly.workers.unwrap_or(1) as u32;
        let extended = self.reserved.as_mut().map(|reserved| reserved.extend(workers, 0));
        if let Some(Err(shortage)) = extended {
            self.problems.at(&source, span, shortage.to_string());
        }
        Some(made)
    }
}

/// Parses the URL of a server; returns `None` if it is none, or has more than a scheme, a host and a port.
fn server(url: &str) -> Option<HttpDestination> {
    let uri: Uri = url.parse().ok()?;
    let is_secure = match uri.scheme_str()? {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let is_bare = uri.path() == "/" && uri.query().is_none() && !url.ends_with('/');
    let has_user = uri.authority()?.as_str().contains('@');
    let host = uri.host().filter(|host| !host.is_empty() && is_bare && !has_user)?;
    let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
    Some(HttpDestination::Server { is_secure, host: host.to_ascii_lowercase().into(), port })
}
