//! Redirects that lead to their own route again and again: warnings, since a plugin may change what a request asks for, and
//! a folder may have no folders.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode, Uri};

use super::Assembly;
use crate::config::diagnostic::{Doubt, Source};
use crate::config::load::ManifestFile;
use crate::config::manifest::{ListenerTable, RouteTable};
use crate::config::spanned::Spanned;
use crate::context::template::SampleTarget;
use crate::generation::Route;
use crate::generation::ids::{Id, RouteId};
use crate::generation::router::{HostMatch, PathMatch, RouteMatch, Router};
use crate::generation::target::{Redirect, Target};

/// The redirects after which a client gives up, as browsers do after 20; each is looked up.
const MAX_REDIRECTS: usize = 5;

/// An example of the requests of a route.
pub(super) struct RouteSample {
    pub(super) request: Parts,
    pub(super) listener: String,
}

/// A route with an example of its requests; `None` if there is none.
pub(super) struct SampledRoute<'a> {
    pub(super) sample: Option<RouteSample>,
    pub(super) source: &'a Arc<Source>,
    pub(super) table: &'a Spanned<RouteTable>,
}

impl RouteSample {
    /// Returns an example of the requests of a route; `None` if the route has conditions that are not those of a path and
    /// a host.
    pub(super) fn of(conditions: &RouteMatch) -> Option<Self> {
        let is_plain = conditions.fields.is_empty() && conditions.query.is_empty();
        let path = match &conditions.path {
            PathMatch::Regex(_) => return None,
            _ if !is_plain => return None,
            PathMatch::Any => "/",
            PathMatch::Exact(path) | PathMatch::Prefix(path) => path.as_str(),
        };
        let path = if path.is_empty() { "/" } else { path };
        let mut request = Request::new(()).into_parts().0;
        request.method = conditions.methods.first().cloned().unwrap_or(Method::GET);
        request.uri = path.parse().ok()?;
        let host = match conditions.hosts.first() {
            None => "example.org".into(),
            Some(HostMatch::Exact(host)) => host.clone(),
            Some(HostMatch::Below(domain)) => format!("www{domain}"),
        };
        request.headers.insert(HOST, HeaderValue::from_str(&host).ok()?);
        Some(RouteSample { request, listener: conditions.listeners.first().cloned().unwrap_or_default() })
    }

    /// Returns the request of a client that comes to a route by a listener; `None` if the route isn't served there.
    fn following<'a>(&self, route: &RouteTable, start: &'a SampleListener<'a>) -> Option<Following<'a>> {
        let own = route.listeners.as_ref().map(|own| own.get_ref().as_slice());
        own.is_none_or(|own| own.iter().any(|address| address.get_ref() == start.address)).then_some(())?;
        let mut request = self.request.clone();
        let names_hosts = route.hosts.as_ref().is_some_and(|hosts| !hosts.get_ref().is_empty());
        if !names_hosts {
            request.headers.insert(HOST, HeaderValue::from_static(ANY_HOST));
        }
        let host = request.headers.get(HOST)?.to_str().ok()?.to_owned();
        Some(Following { request, host, at: vec![start] })
    }
}

/// A listener, as far as it decides which requests reach a route.
struct SampleListener<'a> {
    address: &'a str,
    scheme: &'static str,
    /// The port; `None` for a unix socket.
    port: Option<u16>,
    /// Whether all requests are redirected to HTTPS, except those of routes that name the listener.
    redirects: bool,
}

/// The listeners of a manifest, and the hosts that its routes name.
struct SampleSite<'a> {
    listeners: Vec<SampleListener<'a>>,
    hosts: Vec<&'a str>,
}

impl<'a> SampleSite<'a> {
    fn of(files: &'a [ManifestFile]) -> Self {
        let routes = files.iter().flat_map(|file| &file.manifest.route);
        let hosts = routes.flat_map(|route| route.get_ref().hosts.iter().flat_map(|hosts| hosts.get_ref()));
        SampleSite { listeners: SampleListener::of(files), hosts: hosts.map(|host| host.get_ref().as_str()).collect() }
    }

    /// Whether a route names a host, so that requests for the host arrive here.
    fn names(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.hosts.iter().any(|named| match named.to_ascii_lowercase().strip_prefix('*') {
            Some(domain) => host.ends_with(domain),
            None => host.eq_ignore_ascii_case(named),
        })
    }
}

/// The host of the requests of a route that names none. No location names it, so that a location with a host of its own is
/// taken for another site, unless another route names that host.
const ANY_HOST: &str = "any.invalid";

impl<'a> SampleListener<'a> {
    /// Returns all listeners of a manifest.
    fn of(files: &'a [ManifestFile]) -> Vec<Self> {
        let listeners = files.iter().flat_map(|file| &file.manifest.listener);
        let sample = |listener: &'a ListenerTable| SampleListener {
            address: listener.address.get_ref().as_str(),
            scheme: if listener.tls.is_some() { "https" } else { "http" },
            port: listener.address.get_ref().parse::<SocketAddr>().ok().map(|address| address.port()),
            redirects: listener.redirect_to_https.as_ref().is_some_and(|port| port.get_ref().port().is_some()),
        };
        listeners.map(sample).collect()
    }

    /// Returns the route of a request at this listener; `None` if there is none, or the listener redirects the request.
    fn route(&self, router: &Router, request: &Parts) -> Option<RouteId> {
        match self.redirects {
            true => router.route_of_listener(request, self.address),
            false => router.route(request, self.address),
        }
    }

    /// Whether requests with an absolute URI may arrive here. A container may publish the usual port of a scheme by another
    /// one, so that all listeners of the scheme count unless one has that port.
    fn may_get(&self, uri: &Uri, all: &[Self]) -> bool {
        let is_of_scheme = |listener: &Self| uri.scheme_str() == Some(listener.scheme);
        let usual = if self.scheme == "https" { 443 } else { 80 };
        let has_port = |listener: &Self| listener.port == Some(uri.port_u16().unwrap_or(usual));
        let is_any_fit = uri.port().is_none_or(|port| port.as_u16() == usual)
            && !all.iter().any(|listener| is_of_scheme(listener) && has_port(listener));
        is_of_scheme(self) && (has_port(self) || is_any_fit)
    }
}

/// The requests of a redirect, as their client follows it.
struct Following<'a> {
    request: Parts,
    host: String,
    /// The listeners that the next request may reach.
    at: Vec<&'a SampleListener<'a>>,
}

impl<'a> Following<'a> {
    /// Returns the request for the location of the redirect; `None` if the location belongs to another site, or to none of the listeners.
    fn follow(mut self, route: &RouteTable, redirect: &Redirect, site: &'a SampleSite<'a>) -> Option<Self> {
        let scheme = self.at.first()?.scheme;
        let target = SampleTarget { scheme, host: &self.host, path: self.request.uri.path() };
        let location = redirect.location.fill_sample(&target)?;
        // Clients take `//` at the beginning for a host.
        let text = location.to_str().ok().filter(|text| !text.starts_with("//"))?;
        let uri: Uri = text.split(['?', '#']).next()?.parse().ok()?;
        if let Some(host) = uri.host() {
            let names_hosts = route.hosts.as_ref().is_some_and(|hosts| !hosts.get_ref().is_empty());
            if !names_hosts && !host.eq_ignore_ascii_case(&self.host) && !site.names(host) {
                return None;
            }
            let all = &site.listeners;
            self.at = all.iter().filter(|listener| listener.may_get(&uri, all)).collect();
            self.host = host.to_ascii_lowercase();
            self.request.headers.insert(HOST, HeaderValue::from_str(&self.host).ok()?);
        }
        self.request.uri = uri.path().parse().ok()?;
        self.request.method = followed_by(self.request.method, redirect.status);
        (!self.at.is_empty()).then_some(self)
    }
}

/// Returns the method of the request by which clients follow a redirect (RFC 9110 §15.4): 303 asks for GET, and browsers send
/// GET after 301 and 302 of a POST.
fn followed_by(method: Method, status: StatusCode) -> Method {
    match status {
        StatusCode::SEE_OTHER if method != Method::HEAD => Method::GET,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND if method == Method::POST => Method::GET,
        _ => method,
    }
}

impl Assembly<'_> {
    /// Warns of redirects whose clients come back to the same route until they give up.
    pub(super) fn warn_of_redirect_loops(
        &mut self,
        files: &[ManifestFile],
        router: &Router,
        routes: &[Route],
        sampled: &[SampledRoute<'_>],
    ) {
        let site = SampleSite::of(files);
        let listeners = &site.listeners;
        for (index, SampledRoute { sample, source, table }) in sampled.iter().enumerate() {
            let (Some(sample), Target::Redirect(redirect)) = (sample, &routes[index].target) else { continue };
            // A plugin may change the request, or answer it.
            if !routes[index].chain.is_empty() {
                continue;
            }
            let (route_id, route) = (RouteId::new(index), table.get_ref());
            let mut looping = listeners.iter().filter_map(|start| {
                let mut following = sample.following(route, start)?;
                for _ in 0..MAX_REDIRECTS {
                    following = following.follow(route, redirect, &site)?;
                    let comes_back = |at: &&SampleListener| at.route(router, &following.request) == Some(route_id);
                    following.at.iter().all(comes_back).then_some(())?;
                }
                Some(following)
            });
            let Some(Following { request, at, .. }) = looping.next() else { continue };
            let (uri, ends_at_https) = (&request.uri, at.iter().all(|listener| listener.scheme == "https"));
            let plain = listeners.iter().find(|listener| listener.scheme == "http");
            let remedy = match plain.filter(|_| ends_at_https && route.listeners.is_none()) {
                Some(plain) => format!("write `listeners = [{:?}]` in the route", plain.address),
                None => "name another location".into(),
            };
            let why = format!(
                "redirect to itself: its clients come back to this route, for `{uri}` at last; {remedy}, or narrow the conditions \
                 of the route"
            );
            let span = route.redirect.as_ref().map_or(table.span(), Spanned::span);
            self.problems.warn(Doubt::Meaning, source, span, &why);
        }
    }

    /// Warns of routes with files whose plugin removes the slash at the end of paths, which the files add to those of
    /// folders.
    pub(super) fn warn_of_folder_loops(&mut self, routes: &[Route], sampled: &[SampledRoute<'_>]) {
        for (route, SampledRoute { source, table, .. }) in routes.iter().zip(sampled) {
            if !matches!(route.target, Target::Files(_)) {
                continue;
            }
            let mut chain = route.chain.iter().zip(&table.get_ref().plugins);
            let Some((_, plugin)) = chain.find(|(plugin_id, _)| self.slash_removers.contains(plugin_id)) else {
                continue;
            };
            let why = "`trailing-slash = \"remove\"` before `files`: the path of a folder is redirected again and again, since \
                       `files` adds the slash; write `redirect = false` in `canonical` too, or remove `trailing-slash`";
            self.problems.warn(Doubt::Meaning, source, plugin.span(), why);
        }
    }
}
