//! Warnings about parts of a manifest that probably mean something else than their author intended. Such a manifest
//! works.

use std::ops::Range;
use std::sync::Arc;

use super::Assembly;
use super::addresses::Address;
use super::idioms;
use super::route_conditions::meant_method;
use crate::config::diagnostic::{Diagnostics, Doubt, Source};
use crate::config::load::ManifestFile;
use crate::config::manifest::{EndpointEntry, OtherPath, Path, PluginRef, PluginTable, RouteTable};
use crate::config::spanned::Spanned;
use crate::config::spans::ValueSpans;
use crate::context::template;
use crate::generation::target::Target;
use crate::plugin::settings::OnError;

impl Assembly<'_> {
    /// Warns of parts with a probably different intention.
    pub(super) fn warn_of_doubtful(&mut self, files: &[ManifestFile]) {
        let problems = &mut self.problems;
        warn_of_circles(problems, files);
        warn_of_templates(problems, files);
        for (source, route) in
            files.iter().flat_map(|file| file.manifest.route.iter().map(move |one| (&file.source, one)))
        {
            warn_of_route(problems, source, route.get_ref());
        }
        for (source, upstream) in
            files.iter().flat_map(|file| file.manifest.upstream.values().map(move |one| (&file.source, one)))
        {
            let is_draining =
                |endpoint: &EndpointEntry| matches!(endpoint, EndpointEntry::Table(table) if table.draining);
            if let [first, ..] = &upstream.endpoints[..]
                && upstream.endpoints.iter().all(|endpoint| is_draining(endpoint.get_ref()))
            {
                warn(
                    problems,
                    source,
                    &first.span(),
                    "all endpoints of the upstream are draining: they get no requests",
                );
            }
        }
    }
}

impl Assembly<'_> {
    /// Warns of a plugin behind a cache that decides which clients get a response.
    pub(super) fn warn_of_cached_guard(&mut self, source: &Arc<Source>, plugin: &Spanned<PluginRef>) {
        let name = match plugin.get_ref() {
            PluginRef::Name(name) => name,
            PluginRef::Inline(table) => table.r#use.get_ref(),
        };
        let why = format!(
            "`{name}` protects nothing that is stored: the cache before it answers any client without it; name it \
             before the cache"
        );
        warn(&mut self.problems, source, &plugin.span(), &why);
    }

    /// Warns of a cache in a route without an upstream. The responses of `respond` and `redirect` are in memory as they are, and
    /// so are files that are read often.
    pub(super) fn warn_of_idle_cache(&mut self, source: &Arc<Source>, plugin: &Spanned<PluginRef>, target: &Target) {
        let why = match target {
            Target::Files(_) => {
                "a cache before `files`: it serves a changed file as it was, for up to a day, and saves nothing, since the \
                 system keeps files in memory; remove it"
            }
            Target::Redirect(_) | Target::Respond(_) => {
                "a cache in a route without an upstream: it stores nothing; remove it"
            }
            Target::Upstream(_) => return,
        };
        warn(&mut self.problems, source, &plugin.span(), why);
    }

    /// Warns of a plugin that decides which clients get a response if the host skips it when it fails.
    pub(super) fn warn_of_skipped_guard(
        &mut self,
        source: &Arc<Source>,
        on_error: OnError,
        place: Option<Range<usize>>,
    ) {
        if let (OnError::Skip, Some(span)) = (on_error, place) {
            let why = "the plugin protects a route, and `skip` opens the route to all clients if the plugin fails; write \
                       \"fail\", or a status such as 503";
            warn(&mut self.problems, source, &span, why);
        }
    }
}

fn warn(problems: &mut Diagnostics, source: &Arc<Source>, span: &Range<usize>, why: &str) {
    problems.warn(Doubt::Meaning, source, span.clone(), why);
}

/// Warns of endpoints that are listeners of the same manifest. These are no errors, because a plugin may change a
/// request so that another route matches when it arrives again.
fn warn_of_circles(problems: &mut Diagnostics, files: &[ManifestFile]) {
    let listeners = files.iter().flat_map(|file| &file.manifest.listener);
    let listeners: Vec<Address> =
        listeners.filter_map(|listener| Address::parse(listener.address.get_ref()).ok()).collect();
    let upstreams = files.iter().flat_map(|file| file.manifest.upstream.values().map(move |one| (&file.source, one)));
    for (source, endpoint) in
        upstreams.flat_map(|(source, upstream)| upstream.endpoints.iter().map(move |one| (source, one)))
    {
        let Some(text) = endpoint.get_ref().address() else { continue };
        let address = Address::parse(text.rsplit("://").next().unwrap_or(text));
        if address.is_ok_and(|address| listeners.iter().any(|listener| listener.accepts(&address))) {
            let why = format!(
                "endpoint is a listener of this proxy: `{text}`, so requests may come back again and again; name the address \
                 of another server"
            );
            warn(problems, source, &endpoint.span(), &why);
        }
    }
}

/// Warns of variables of nginx in the templates of the plugin `headers`, which don't replace them.
fn warn_of_templates(problems: &mut Diagnostics, files: &[ManifestFile]) {
    for ManifestFile { source, manifest } in files {
        let inline = manifest.route.iter().flat_map(|route| &route.get_ref().plugins);
        let inline = inline.filter_map(|plugin| match plugin.get_ref() {
            PluginRef::Inline(plugin) => Some(&**plugin),
            PluginRef::Name(_) => None,
        });
        for plugin in manifest.plugin.values().chain(inline) {
            match plugin.r#use.get_ref().as_str() {
                "headers" => warn_of_template(problems, source, plugin),
                "rewrite" => warn_of_targets(problems, source, plugin),
                "cors" => warn_of_forbidden_methods(problems, source, plugin),
                _ => {}
            }
        }
    }
}

fn warn_of_template(problems: &mut Diagnostics, source: &Arc<Source>, plugin: &PluginTable) {
    let Some(config) = &plugin.config else { return };
    let mut suspected = Vec::new();
    for message in ["request", "response"] {
        for kind in ["set", "append", "default"] {
            let edits = config.get(message).and_then(|edits| edits.get(kind)?.as_table()).into_iter().flatten();
            let edits = edits.filter(|(_, text)| text.as_str().is_some_and(|text| idioms::template(text).is_some()));
            let pointer = |name: &str| format!("/{message}/{kind}/{}", name.replace('~', "~0").replace('/', "~1"));
            suspected.extend(edits.map(|(name, _)| pointer(name)));
        }
    }
    // Finding the places needs the whole text to be parsed, so it is done for suspected templates only.
    let places = (!suspected.is_empty()).then(|| ValueSpans::new(&source.text, &plugin.r#use.span()));
    for span in places.iter().flat_map(|places| suspected.iter().map(|pointer| places.value(pointer))) {
        // The check reads the text of the manifest: the value of a reference was not written as a template.
        let written = source.text.get(span.clone()).unwrap_or_default().replace("$${", "");
        if let Some(remedy) = idioms::template(&written) {
            let why = format!("variable of another program in a template: it stands for itself; {remedy}");
            warn(problems, source, &span, &why);
        }
    }
}

/// Warns of values in braces in the targets of the plugin `rewrite`, which are no templates.
fn warn_of_targets(problems: &mut Diagnostics, source: &Arc<Source>, plugin: &PluginTable) {
    let Some(config) = &plugin.config else { return };
    let rules = config.get("rules").and_then(|rules| rules.as_array()).into_iter().flatten().enumerate();
    let targets = rules.filter_map(|(at, rule)| Some((format!("/rules/{at}/to"), rule.get("to")?.as_str()?)));
    let lines = config.get("map").and_then(|map| map.as_str()).into_iter().flat_map(str::lines);
    let lines = lines.filter(|line| !line.trim_start().starts_with('#'));
    let lines = lines.filter_map(|line| Some(("/map".to_string(), line.split_whitespace().nth(1)?)));
    let suspected = targets.chain(lines).filter(|(_, target)| first_value_of(target).is_some());
    let mut suspected: Vec<(String, &str)> = suspected.collect();
    // Each line of a map has the same place.
    suspected.dedup_by(|(pointer, _), (before, _)| pointer == before);
    let places = (!suspected.is_empty()).then(|| ValueSpans::new(&source.text, &plugin.r#use.span()));
    for (places, (pointer, target)) in places.iter().flat_map(|places| suspected.iter().map(move |one| (places, one))) {
        let span = places.value(pointer);
        if let Some(why) = value_in_target(target, source, &span) {
            warn(problems, source, &span, &why);
        }
    }
}

/// Warns of methods in the plugin `cors` that browsers let no page use (Fetch standard, "forbidden method").
fn warn_of_forbidden_methods(problems: &mut Diagnostics, source: &Arc<Source>, plugin: &PluginTable) {
    let methods = plugin.config.as_ref().and_then(|config| config.get("methods")?.as_array());
    for (at, method) in methods.into_iter().flatten().enumerate() {
        let Some(method @ ("CONNECT" | "TRACE" | "TRACK")) = method.as_str() else { continue };
        let span = ValueSpans::new(&source.text, &plugin.r#use.span()).value(&format!("/methods/{at}"));
        let why = format!("method that no page can use: `{method}`; browsers send no such requests, so remove it");
        problems.warn(Doubt::NoEffect, source, span, &why);
    }
}

/// Returns the warning about a value in braces in the target of a rewrite; `None` if the manifest has none at this place, where
/// a reference may stand.
pub(super) fn value_in_target(target: &str, source: &Source, span: &Range<usize>) -> Option<String> {
    let value = first_value_of(target)?;
    source.text.get(span.clone())?.contains(&value).then(|| {
        format!("value in the target of a rewrite: `{value}` stands for itself, as targets are no templates; remove it")
    })
}

/// Returns the first value in braces of a target, in which `${name}` is a group.
fn first_value_of(target: &str) -> Option<String> {
    template::first_value(&target.replace("${", "$"))
}

fn warn_of_route(problems: &mut Diagnostics, source: &Arc<Source>, route: &RouteTable) {
    for (key, list) in [("hosts", &route.hosts), ("methods", &route.methods), ("listeners", &route.listeners)] {
        if let Some(list) = list.as_ref().filter(|list| list.get_ref().is_empty()) {
            warn(
                problems,
                source,
                &list.span(),
                &format!("`{key}`: an empty list stands for all; name some, or remove the key"),
            );
        }
    }
    for method in route.methods.iter().flat_map(|methods| methods.get_ref()) {
        if let Some(meant) = meant_method(method.get_ref()) {
            let why = format!("method that hardly any client knows: `{}`; did you mean `{meant}`?", method.get_ref());
            warn(problems, source, &method.span(), &why);
        }
    }
    for host in route.hosts.iter().flat_map(|hosts| hosts.get_ref()) {
        if let Some(remedy) = idioms::host(host.get_ref()) {
            let why = format!("host that hardly any client names: `{}`; {remedy}", host.get_ref());
            warn(problems, source, &host.span(), &why);
        }
    }
    let Some(path) = &route.path else { return };
    let (Path::Below(text) | Path::Other(OtherPath::Exact(text) | OtherPath::Prefix(text))) = path.get_ref() else {
        return;
    };
    if let Some(pattern) = pattern(text) {
        let remedy = idioms::path(text)
            .unwrap_or_else(|| "a path stands for all below it, and { regex = \"^/x/[^/]+$\" } for patterns".into());
        warn(problems, source, &path.span(), &format!("`{pattern}` in a path stands for itself; {remedy}"));
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
