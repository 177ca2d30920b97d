//! Redirects that lead to their own route again and again: warnings, since a plugin may change what a request asks for.

use std::ops::Range;
use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Uri};

use super::Assembly;
use crate::config::diagnostic::{Doubt, Source};
use crate::generation::Route;
use crate::generation::ids::{Id, RouteId};
use crate::generation::router::{HostMatch, PathMatch, RouteMatch, Router};
use crate::generation::target::Target;

/// The redirects after which a client gives up, as browsers do after 20; each is looked up.
const MAX_REDIRECTS: usize = 5;

/// An example of the requests that a route redirects.
pub(super) struct RedirectSample {
    request: Parts,
    listener: String,
}

impl RedirectSample {
    /// Returns an example of the requests of a route; `None` if the route does not redirect, or has conditions that are
    /// not those of a path and a host.
    pub(super) fn of(conditions: &RouteMatch, target: &Target) -> Option<Self> {
        let is_plain = conditions.fields.is_empty() && conditions.query.is_empty();
        let path = match (&conditions.path, target) {
            (_, Target::Upstream(_) | Target::Respond(_) | Target::Files(_)) | (PathMatch::Regex(_), _) => return None,
            _ if !is_plain => return None,
            (PathMatch::Any, _) => "/",
            (PathMatch::Exact(path) | PathMatch::Prefix(path), _) => path.as_str(),
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
        Some(RedirectSample { request, listener: conditions.listeners.first().cloned().unwrap_or_default() })
    }
}

impl Assembly<'_> {
    /// Warns of redirects whose clients come back to the same route until they give up.
    pub(super) fn warn_of_redirect_loops(
        &mut self,
        router: &Router,
        routes: &[Route],
        samples: Vec<(Option<RedirectSample>, &Arc<Source>, Range<usize>)>,
    ) {
        for (index, (sample, source, span)) in samples.into_iter().enumerate() {
            let Some(RedirectSample { mut request, listener }) = sample else { continue };
            let Target::Redirect(redirect) = &routes[index].target else { continue };
            let is_again = (0..MAX_REDIRECTS).all(|_| {
                let location = redirect.location.fill_path(request.uri.path());
                let Some(next) = location.as_ref().and_then(of_the_same_host) else { return false };
                request.uri = next;
                router.route(&request, &listener) == Some(RouteId::new(index))
            });
            if is_again && routes[index].chain.is_empty() {
                let why = format!(
                    "redirect to itself: its clients come back to this route, for `{}` at last; name another location, or \
                     narrow the conditions of the route",
                    request.uri
                );
                self.problems.warn(Doubt::Meaning, source, span, &why);
            }
        }
    }
}

/// Returns the path of a location without scheme and host; `None` for another location.
fn of_the_same_host(location: &HeaderValue) -> Option<Uri> {
    let text = location.to_str().ok()?;
    let path = text.split(['?', '#']).next().filter(|path| path.starts_with('/') && !path.starts_with("//"))?;
    path.parse().ok()
}
