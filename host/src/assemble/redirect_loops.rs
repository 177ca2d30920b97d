//! Redirects that lead to their own route again and again: warnings, since a plugin may change what a request asks for, and
//! a folder may have no folders.

use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Uri};

use super::Assembly;
use crate::config::diagnostic::{Doubt, Source};
use crate::config::manifest::RouteTable;
use crate::config::spanned::Spanned;
use crate::generation::Route;
use crate::generation::ids::{Id, RouteId};
use crate::generation::router::{HostMatch, PathMatch, RouteMatch, Router};
use crate::generation::target::Target;

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
}

impl Assembly<'_> {
    /// Warns of redirects whose clients come back to the same route until they give up.
    pub(super) fn warn_of_redirect_loops(&mut self, router: &Router, routes: &[Route], sampled: &[SampledRoute<'_>]) {
        for (index, SampledRoute { sample, source, table }) in sampled.iter().enumerate() {
            let Some(RouteSample { request, listener }) = sample else { continue };
            let Target::Redirect(redirect) = &routes[index].target else { continue };
            let mut request = request.clone();
            let is_again = (0..MAX_REDIRECTS).all(|_| {
                let location = redirect.location.fill_path(request.uri.path());
                let Some(next) = location.as_ref().and_then(of_the_same_host) else { return false };
                request.uri = next;
                router.route(&request, listener) == Some(RouteId::new(index))
            });
            if is_again && routes[index].chain.is_empty() {
                let why = format!(
                    "redirect to itself: its clients come back to this route, for `{}` at last; name another location, or \
                     narrow the conditions of the route",
                    request.uri
                );
                let span = table.get_ref().redirect.as_ref().map_or(table.span(), Spanned::span);
                self.problems.warn(Doubt::Meaning, source, span, &why);
            }
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

/// Returns the path of a location without scheme and host; `None` for another location.
fn of_the_same_host(location: &HeaderValue) -> Option<Uri> {
    let text = location.to_str().ok()?;
    let path = text.split(['?', '#']).next().filter(|path| path.starts_with('/') && !path.starts_with("//"))?;
    path.parse().ok()
}
