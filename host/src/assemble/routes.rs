//! The assembly of a route's table: its conditions, its chain, and its target.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::cache_scope::{cache_scope, tell_apart};
use super::path_regex::Paths;
use super::reach::UnusualHost;
use super::redirect_loops::{RouteSample, SampledRoute};
use super::route_conditions::ShownRemedy;
use super::{Assembly, head_of, route_conditions, some_of};
use crate::config::diagnostic::{Doubt, Source};
use crate::config::load::ManifestFile;
use crate::config::manifest::{self, OtherPath};
use crate::config::serde_messages::hint;
use crate::config::spanned::Spanned;
use crate::generation::Route;
use crate::generation::ids::{Id, PluginId, UpstreamId};
use crate::generation::router::{HostMatch, PathMatch, RouteMatch, Router};
use crate::protocol::authority;

/// The default of `max-body`, more than most uploads. Bodies are streamed, so the limit protects the endpoint.
const MAX_BODY: usize = 1 << 30;

/// The compiled form of a regular expression, in bytes: what a path is matched by has some kilobytes.
const MAX_REGEX_BYTES: usize = 1 << 20;
/// The maximum number of routes with a regular expression, each of which may be tried for a request.
const MAX_REGEXES: usize = 1_000;

impl Assembly<'_> {
    fn regex(&mut self, text: &str) -> Result<regex::Regex, regex::Error> {
        self.regexes += 1;
        if self.regexes > MAX_REGEXES {
            return Err(regex::Error::Syntax(format!("a manifest has {MAX_REGEXES} of them at most")));
        }
        regex::RegexBuilder::new(text).size_limit(MAX_REGEX_BYTES).dfa_size_limit(MAX_REGEX_BYTES).build()
    }

    /// Returns the routes of the manifest, with their router; `None` if two routes are equal.
    pub(super) fn routes(
        &mut self,
        files: &[ManifestFile],
        upstreams: &HashMap<Arc<str>, UpstreamId>,
    ) -> (Vec<Route>, Option<Router>) {
        let (mut routes, mut matches, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut sampled = Vec::new();
        let common = self.common_maintenance(files);
        let mut are_sound = !self.left_out.has_any("route");
        let listeners: Vec<&str> =
            files.iter().flat_map(|file| &file.manifest.listener).map(|one| one.address.get_ref().as_str()).collect();
        for (source, route) in
            files.iter().flat_map(|file| file.manifest.route.iter().map(move |route| (&file.source, route)))
        {
            let before = self.problems.count();
            let matching = self.matching(source, route.get_ref(), &listeners);
            are_sound &= self.problems.count() == before;
            let made = self.route(source, route, upstreams);
            sampled.push(SampledRoute { sample: RouteSample::of(&matching), source, table: route });
            let forwards_trace = matching.methods.contains(&http::Method::TRACE);
            routes.push(Route { maintenance: made.maintenance.or_else(|| common.clone()), forwards_trace, ..made });
            matches.push(matching);
            places.push((source, route.span()));
        }
        if routes.is_empty() {
            self.check_needs_no_route(files);
        }
        tell_apart(&mut routes, &matches);
        let router = Router::new(matches);
        // Routes that lack what was wrong in them may look alike.
        if let (Err((first, second)), true) = (&router, are_sound) {
            let (source, span) = &places[second.index()];
            let (other, at) = &places[first.index()];
            let message = format!(
                "equal routes: this one matches the same requests as the route at {}; change a condition, such as `path`, \
                 or remove one",
                other.location(at)
            );
            self.problems.at(source, head_of(span), message);
        }
        self.warn_of_folder_loops(&routes, &sampled);
        self.warn_of_taken_credentials(&routes, &sampled);
        if let (Ok(router), true) = (&router, are_sound) {
            self.warn_of_redirect_loops(files, router, &routes, &sampled);
            self.warn_of_lost_preflights(router, &routes, &sampled);
            self.warn_of_guarded_preflights(router, &routes, &sampled);
            self.warn_of_unguarded_paths(router, &routes, &sampled);
        }
        (routes, router.ok())
    }

    /// Checks that a manifest without routes needs none: all its listeners redirect to HTTPS.
    fn check_needs_no_route(&mut self, files: &[ManifestFile]) {
        let redirects = |listener: &manifest::ListenerTable| {
            listener.redirect_to_https.as_ref().is_some_and(|redirect| redirect.get_ref().port().is_some())
        };
        let needs_route = !files.iter().flat_map(|file| &file.manifest.listener).all(redirects);
        let is_missing = needs_route && !self.left_out.has_any("route");
        if let (Some(ManifestFile { source, .. }), true) = (files.first(), is_missing) {
            let message = "no route: add `[[route]]` with `upstream = \"app\"`";
            self.problems.at(source, 0..0, message);
        }
    }

    fn route(
        &mut self,
        source: &Arc<Source>,
        route: &Spanned<manifest::RouteTable>,
        upstreams: &HashMap<Arc<str>, UpstreamId>,
    ) -> Route {
        let uri = self.uri_rules(source, route.get_ref());
        let target = self.target(source, route, upstreams, uri.prefix.as_deref());
        let route = route.get_ref();
        self.warn_of_twice(source, &route.plugins);
        let mut chain: Vec<PluginId> = Vec::new();
        for plugin in &route.plugins {
            let Some(binding) = self.reference(source, plugin) else { continue };
            if self.bindings[binding].cache.is_some() {
                self.warn_of_idle_cache(source, plugin, &target);
            }
            let is_cache = |binding: &PluginId| self.bindings[*binding].cache.is_some();
            if is_cache(&binding) && chain.iter().any(is_cache) {
                let message = "second cache in a chain: expected one at most; remove one of them";
                self.problems.at(source, plugin.span(), message);
            }
            if self.guards.contains(&binding) && chain.iter().any(is_cache) {
                self.warn_of_cached_guard(source, plugin);
            }
            let is_balancer_alone = self.bindings[binding].is_balancer() && !self.bindings[binding].is_in_chains();
            if is_balancer_alone {
                let message = "balancer in a chain: it has no effect there; name it in the upstream, such as `balancer = \"balance\"`";
                self.problems.at(source, plugin.span(), message);
            }
            chain.push(binding);
        }
        let name: Arc<str> = route.name.clone().unwrap_or_else(|| derived_name(route)).into();
        let max_body = self.bytes(source, route.max_body.as_ref(), MAX_BODY) as u64;
        Route {
            uri,
            cache_scope: cache_scope(&name, route, &target),
            max_body,
            timeout: route.timeout.as_ref().map(|text| self.duration(source, Some(text), Duration::MAX)),
            error_pages: self.route_pages(source, route),
            intercept: self.intercepted(source, route),
            maintenance: route.maintenance.as_ref().and_then(|wanted| self.maintenance(source, wanted)),
            response_buffer: self.response_buffer(source, route),
            request_buffer: self.request_buffer(source, route, max_body),
            name,
            target,
            chain,
            forwards_trace: false,
            arriving: Default::default(),
            made: Default::default(),
        }
    }

    /// Returns the conditions of a route on requests.
    fn matching(&mut self, source: &Arc<Source>, route: &manifest::RouteTable, listeners: &[&str]) -> RouteMatch {
        RouteMatch {
            listeners: self.matching_listeners(source, route, listeners),
            hosts: self.matching_hosts(source, route),
            path: route.path.as_ref().map_or(PathMatch::Any, |path| self.matching_path(source, path)),
            methods: self.matching_methods(source, route),
            fields: self.matching_fields(source, route),
            query: self.matching_query(source, route),
        }
    }

    fn matching_listeners(
        &mut self,
        source: &Arc<Source>,
        route: &manifest::RouteTable,
        listeners: &[&str],
    ) -> Vec<String> {
        let mut matching = Vec::new();
        for address in route.listeners.iter().flat_map(Spanned::get_ref) {
            let name = address.get_ref();
            if !listeners.contains(&name.as_str()) && !self.left_out.has_any("listener") {
                let meant = hint(name, listeners);
                let message = format!(
                    "unknown listener `{name}`; {meant}expected the `address` of a `[[listener]]` as it is written there: {}",
                    some_of(listeners)
                );
                self.problems.at(source, address.span(), message);
            }
            matching.push(name.clone());
        }
        // Sorted, so that routes with the same values in another order are found to be equal.
        matching.sort_unstable();
        matching.dedup();
        matching
    }

    fn matching_hosts(&mut self, source: &Arc<Source>, route: &manifest::RouteTable) -> Vec<HostMatch> {
        let (mut matching, mut known_hosts) = (Vec::new(), HashSet::new());
        for host in route.hosts.iter().flat_map(Spanned::get_ref) {
            let name = host_name(host.get_ref());
            let wanted = match name.strip_prefix('*') {
                Some(below) if below.starts_with('.') => HostMatch::Below(below.into()),
                _ => HostMatch::Exact(name.clone()),
            };
            let foreign = route_conditions::foreign_host(host.get_ref());
            if let Some(message) = foreign.or_else(|| route_conditions::host(&name)) {
                self.problems.at(source, host.span(), message);
            } else if !known_hosts.insert(wanted.clone()) {
                let message =
                    format!("host named twice: `{}` is `{name}`, which this route has; remove it", host.get_ref());
                self.problems.at(source, host.span(), message);
                continue;
            }
            matching.push(wanted);
        }
        matching
    }

    fn matching_path(&mut self, source: &Arc<Source>, path: &Spanned<manifest::Path>) -> PathMatch {
        let text = path.get_ref().text();
        match path.get_ref() {
            manifest::Path::Other(OtherPath::Regex(text)) => self.matching_regex(source, path.span(), text),
            _ if let Some(message) = route_conditions::path(text) => {
                self.problems.at(source, path.span(), message);
                PathMatch::Any
            }
            manifest::Path::Other(OtherPath::Exact(text)) => PathMatch::Exact(text.clone()),
            _ if text == "/" => PathMatch::Any,
            _ => PathMatch::Prefix(text.into()),
        }
    }

    fn matching_regex(&mut self, source: &Arc<Source>, span: Range<usize>, text: &str) -> PathMatch {
        let Some(regex) = self.compiled_regex(source, span.clone(), text) else { return PathMatch::Any };
        self.check_path_regex(source, span, text);
        PathMatch::Regex(regex)
    }

    /// Compiles a regular expression; `None` if it is invalid.
    pub(super) fn compiled_regex(
        &mut self,
        source: &Arc<Source>,
        span: Range<usize>,
        text: &str,
    ) -> Option<regex::Regex> {
        let compiled = self.regex(text);
        if let Err(error) = &compiled {
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            let message = format!("invalid regular expression: {reason}; expected one such as `^/users/[0-9]+$`");
            self.problems.at(source, span, message);
        }
        compiled.ok()
    }

    /// Checks that some path matches a regular expression.
    pub(super) fn check_path_regex(&mut self, source: &Arc<Source>, span: Range<usize>, text: &str) {
        if let Some(reason) = self.paths.get_or_insert_with(Paths::new).mismatch(text) {
            let message = format!("no path matches the regular expression `{text}`: {reason}");
            self.problems.at(source, span, message);
        }
    }

    fn matching_methods(&mut self, source: &Arc<Source>, route: &manifest::RouteTable) -> Vec<http::Method> {
        let mut matching = Vec::new();
        for method in route.methods.iter().flat_map(Spanned::get_ref) {
            match route_conditions::method(method.get_ref()) {
                Ok(parsed) => matching.push(parsed),
                Err(message) => self.problems.at(source, method.span(), message),
            }
        }
        // Sorted, so that routes with the same values in another order are found to be equal.
        matching.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        matching.dedup();
        matching
    }

    fn matching_fields(
        &mut self,
        source: &Arc<Source>,
        route: &manifest::RouteTable,
    ) -> Vec<(http::HeaderName, Option<String>)> {
        let mut matching = Vec::new();
        for (name, value) in &route.fields {
            let (value_span, value) = (value.span(), value.get_ref());
            if let Some(message) = route_conditions::field_value(value) {
                self.problems.at(source, value_span.clone(), message);
            }
            let Ok(field) = http::HeaderName::from_bytes(name.get_ref().as_bytes()) else {
                let message = format!("invalid field name `{}`: expected one such as `X-Version`", name.get_ref());
                self.problems.at(source, name.span(), message);
                continue;
            };
            if let Some(message) = self.reach.obstacle(name.get_ref()) {
                self.problems.at(source, name.span(), message);
            } else if field == http::header::HOST && value != "*" {
                self.check_wanted_host(source, value_span, value);
            } else if matching.iter().any(|(known, _)| *known == field) {
                let message =
                    format!("field named twice: `{}`; names of fields have no case, so keep one", name.get_ref());
                self.problems.at(source, name.span(), message);
            }
            matching.push((field, wanted_value(value)));
        }
        matching.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        matching
    }

    /// Checks that requests have this value of `Host`, which is normalised before routes are matched.
    fn check_wanted_host(&mut self, source: &Arc<Source>, span: Range<usize>, value: &str) {
        let Some(UnusualHost { message, is_certain }) = self.reach.unusual_host(value) else { return };
        match is_certain {
            true => self.problems.at(source, span, message),
            false => self.problems.warn(Doubt::Meaning, source, span, &message),
        }
    }

    fn matching_query(&mut self, source: &Arc<Source>, route: &manifest::RouteTable) -> Vec<(String, Option<String>)> {
        for (name, value) in &route.query {
            if let Some(message) = route_conditions::query_name(name.get_ref()) {
                self.problems.at(source, name.span(), message);
            }
            let has_reference = self.problems.replaced_at(source, &value.span()).is_some();
            let remedy = if has_reference { ShownRemedy::InWords } else { ShownRemedy::Written };
            if let Some(message) = route_conditions::parameter(value.get_ref(), remedy) {
                self.problems.at(source, value.span(), message);
            }
        }
        route.query.iter().map(|(name, value)| (name.get_ref().clone(), wanted_value(value.get_ref()))).collect()
    }
}

/// Returns the name of a route that the manifest gives none.
fn derived_name(route: &manifest::RouteTable) -> String {
    let host = route.hosts.as_ref().and_then(|hosts| hosts.get_ref().first()).map_or("*", |host| host.get_ref());
    let path = route.path.as_ref().map_or("", |path| path.get_ref().text());
    format!("{host}{path}")
}

/// Returns the value that a condition expects; `None` if every value will do.
fn wanted_value(value: &str) -> Option<String> {
    (value != "*").then(|| value.into())
}

/// Returns a host, or the part behind the `*` of a pattern, in the form that requests have.
fn host_name(text: &str) -> String {
    let (star, name) = text.strip_prefix("*.").map_or(("", text), |name| ("*.", name));
    let normal = authority::host(name.as_bytes()).ok().and_then(|name| String::from_utf8(name.into_owned()).ok());
    // What has no normal form is told as it stands.
    format!("{star}{}", normal.unwrap_or_else(|| name.to_ascii_lowercase()))
}
