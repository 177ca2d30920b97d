//! The parts of a manifest that probably mean something else than was meant: warnings, since such a manifest works.

use std::ops::Range;
use std::sync::Arc;

use super::Assembly;
use super::addresses::Address;
use super::route_conditions::meant_method;
use crate::config::diagnostic::Source;
use crate::config::manifest::{Endpoint, Manifest, OtherPath, Path, RouteTable};

type Files = [(Arc<Source>, Manifest)];

impl Assembly<'_> {
    /// Warns of what is probably meant otherwise, in a manifest without mistakes.
    pub(super) fn warn_of_doubtful(&self, files: &Files) {
        if self.problems.count() > 0 {
            return;
        }
        warn_of_circles(files);
        for (source, route) in files.iter().flat_map(|(source, file)| file.route.iter().map(move |one| (source, one))) {
            warn_of_route(source, route.get_ref());
        }
        for (source, upstream) in
            files.iter().flat_map(|(source, file)| file.upstream.values().map(move |one| (source, one)))
        {
            let is_draining = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Table(table) if table.draining);
            if let [first, ..] = &upstream.endpoints[..]
                && upstream.endpoints.iter().all(|endpoint| is_draining(endpoint.get_ref()))
            {
                warn(source, &first.span(), "all endpoints of the upstream are draining: they get no requests");
            }
        }
    }
}

fn warn(source: &Source, span: &Range<usize>, why: &str) {
    let place = source.location(span);
    tracing::warn!(%place, why, "part of the manifest in doubt");
}

/// Warns of endpoints that are listeners of the same manifest. A plugin may change a request so that another route matches
/// when it arrives again, so they are no errors.
fn warn_of_circles(files: &Files) {
    let listeners = files.iter().flat_map(|(_, file)| &file.listener);
    let listeners: Vec<Address> =
        listeners.filter_map(|listener| Address::parse(listener.address.get_ref()).ok()).collect();
    let upstreams = files.iter().flat_map(|(source, file)| file.upstream.values().map(move |one| (source, one)));
    for (source, endpoint) in
        upstreams.flat_map(|(source, upstream)| upstream.endpoints.iter().map(move |one| (source, one)))
    {
        let Some(text) = endpoint.get_ref().address() else { continue };
        let address = Address::parse(text.rsplit("://").next().unwrap_or(text));
        if address.is_ok_and(|address| listeners.iter().any(|listener| listener.accepts(&address))) {
            let (place, remedy) = (source.location(&endpoint.span()), "name the address of another server");
            tracing::warn!(
                %place,
                endpoint = text,
                remedy,
                "endpoint is a listener of this proxy: requests may come back again and again"
            );
        }
    }
}

fn warn_of_route(source: &Source, route: &RouteTable) {
    for (key, list) in [("hosts", &route.hosts), ("methods", &route.methods), ("listeners", &route.listeners)] {
        if let Some(list) = list.as_ref().filter(|list| list.get_ref().is_empty()) {
            warn(source, &list.span(), &format!("`{key}`: an empty list stands for all; name some, or remove the key"));
        }
    }
    for method in route.methods.iter().flat_map(|methods| methods.get_ref()) {
        if let Some(meant) = meant_method(method.get_ref()) {
            let why = format!("method that hardly any client knows: `{}`; did you mean `{meant}`?", method.get_ref());
            warn(source, &method.span(), &why);
        }
    }
    let Some(path) = &route.path else { return };
    let (Path::Below(text) | Path::Other(OtherPath::Exact(text) | OtherPath::Prefix(text))) = path.get_ref() else {
        return;
    };
    if let Some(pattern) = pattern(text) {
        let why = format!(
            "`{pattern}` in a path stands for itself; a path stands for all below it, and {{ regex = \"^/x/[^/]+$\" }} for \
             patterns"
        );
        warn(source, &path.span(), &why);
    }
}

/// Returns the first segment of a path that is a pattern for other proxies or frameworks.
fn pattern(path: &str) -> Option<&str> {
    path.split('/').find(|segment| {
        let is_name = |name: &str| name.starts_with(|letter: char| letter.is_ascii_alphabetic());
        let braced = segment.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        segment.contains('*') || segment.strip_prefix(':').is_some_and(is_name) || braced.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_others_are_known() {
        for path in ["/a/*", "/*", "/a*", "/a/{id}", "/a/{id}/b", "/v{version}", "/a/:id"] {
            assert!(pattern(path).is_some(), "{path}");
        }
        for path in ["/", "/a/b", "/a:b", "/:", "/:8", "/a/{", "/}{"] {
            assert_eq!(pattern(path), None, "{path}");
        }
    }
}
