//! The parts of a manifest that have no effect: warnings, since such a manifest works.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::Assembly;
use super::error_pages::codes_of_word;
use crate::config::diagnostic::{Diagnostics, Doubt, Source};
use crate::config::load::ManifestFile;
use crate::config::manifest::{
    AccessLogFormat, EndpointEntry, PluginRef, PluginTable, RouteTable, TableOrOff, UpstreamTable,
};
use crate::config::serde_messages::meant;
use crate::config::spanned::Spanned;
use crate::config::spans;
use crate::generation::error_pages;
use crate::plugin::settings::OnError;

/// The stock plugin that edits fields.
const HEADERS: &str = "headers";

/// The stock plugin that adds notes for the access log.
const LOG_FIELDS: &str = "log-fields";

impl Assembly<'_> {
    /// Warns of parts without effect, except of those that may have none because of an error.
    pub(super) fn warn_of_unused(&mut self, files: &[ManifestFile]) {
        let left_out = &self.left_out;
        if !left_out.has_any("route") && !left_out.has_any("upstream") && !left_out.has_any("plugin") {
            warn_of_plugins(&mut self.problems, files);
            warn_of_headers(&mut self.problems, files);
            warn_of_notes(&mut self.problems, files);
            warn_of_upstreams(&mut self.problems, files);
        }
        warn_of_targets(&mut self.problems, files);
        warn_of_log_file(&mut self.problems, files);
        if !left_out.has_any("upstream") {
            warn_of_resolver(&mut self.problems, files);
            self.warn_of_zones(files);
        }
        for (source, upstream) in
            files.iter().flat_map(|file| file.manifest.upstream.values().map(move |one| (&file.source, one)))
        {
            warn_of_rules(&mut self.problems, source, upstream);
        }
        // The next ones ask what configured plugins do, or what plugins are granted.
        if self.problems.count() > 0 {
            return;
        }
        self.warn_of_pages(files);
        warn_of_shared(&mut self.problems, files);
        let is_cache = self.bindings.iter().any(|configured| configured.cache.is_some());
        for (source, cache) in files.iter().filter_map(|file| Some((&file.source, file.manifest.cache.as_ref()?))) {
            if !is_cache {
                warn(
                    &mut self.problems,
                    source,
                    &cache.span(),
                    "`[cache]`: no route has a plugin that caches; add `plugins = [\"cache\"]` to one",
                );
            }
        }
    }

    /// Warns of error pages for status codes with which the proxy never responds.
    fn warn_of_pages(&mut self, files: &[ManifestFile]) {
        let bindings = &self.bindings;
        let is_named = |code: u16| {
            let mut named = bindings.iter().map(|configured| configured.on_error);
            named.any(|on_error| matches!(on_error, OnError::Respond(status) if status.as_u16() == code))
        };
        let all = || files.iter().flat_map(|file| &file.manifest.route).map(Spanned::get_ref);
        let is_shown = |route: &RouteTable, code: u16| {
            // A plugin may respond with any status, without content.
            !route.plugins.is_empty()
                || intercepts(route, code)
                || responds(route, code)
                || route.files.is_some() && error_pages::occurs_with_files(code)
        };
        let problems = &mut self.problems;
        for ManifestFile { source, manifest } in files {
            let is_shown_anywhere = |code: u16| is_named(code) || all().any(|route| is_shown(route, code));
            warn_of_pages_of(problems, source, manifest.error_page.keys(), is_shown_anywhere);
            for route in manifest.route.iter().map(Spanned::get_ref) {
                let is_shown = |code: u16| is_named(code) || is_shown(route, code);
                warn_of_pages_of(problems, source, route.error_page.keys(), is_shown);
            }
        }
    }

    /// Warns of a plugin that is twice in a chain.
    pub(super) fn warn_of_twice(&mut self, source: &Arc<Source>, plugins: &[Spanned<PluginRef>]) {
        let mut known = HashSet::new();
        for plugin in plugins {
            if let PluginRef::Name(name) = plugin.get_ref()
                && !known.insert(name)
            {
                let message = format!("plugin runs twice in a chain: `{name}`; remove it in one of its places");
                self.problems.warn(Doubt::Meaning, source, plugin.span(), &message);
            }
        }
    }
}

/// Warns of error pages for codes with which the proxy never responds, unless the pages are shown for another reason.
fn warn_of_pages_of<'p>(
    problems: &mut Diagnostics,
    source: &Arc<Source>,
    keys: impl Iterator<Item = &'p Spanned<String>>,
    is_shown: impl Fn(u16) -> bool,
) {
    for codes in keys {
        // A class has codes that occur.
        let code = codes.get_ref().parse().ok().filter(|code| !error_pages::occurs(*code) && !is_shown(*code));
        if let Some(code) = code {
            let part = format!(
                "`{code}` of `error-page`: neither the proxy nor a plugin responds with {code} here, and the pages of the \
                 upstream pass as they are; write `intercept = [{code}]` in a route to replace them, or remove this page"
            );
            warn(problems, source, &codes.span(), &part);
        }
    }
}

/// Warns of keys for upstreams in routes whose requests never reach one.
fn warn_of_targets(problems: &mut Diagnostics, files: &[ManifestFile]) {
    let routes = files.iter().flat_map(|file| file.manifest.route.iter().map(move |route| (&file.source, route)));
    for (source, route) in routes {
        let route = route.get_ref();
        let target = match (&route.redirect, &route.respond, &route.files) {
            (Some(_), ..) => "redirect",
            (_, Some(_), _) => "respond",
            (.., Some(_)) => "files",
            _ => continue,
        };
        let keys = [
            ("intercept", route.intercept.first().map(Spanned::span)),
            ("request-buffer", route.request_buffer.as_ref().map(Spanned::span)),
            ("response-buffer", route.response_buffer.as_ref().map(Spanned::span)),
        ];
        for (key, span) in keys {
            if let Some(span) = span {
                let part = format!("`{key}` beside `{target}`: no request of the route reaches an upstream; remove it");
                warn(problems, source, &span, &part);
            }
        }
    }
}

/// Warns of a file of an access log that is switched off.
fn warn_of_log_file(problems: &mut Diagnostics, files: &[ManifestFile]) {
    for ManifestFile { source, manifest } in files {
        let log = manifest.access_log.as_ref().map(Spanned::get_ref);
        let file = log.filter(|log| matches!(log.format, AccessLogFormat::Off)).and_then(|log| log.file.as_ref());
        if let Some(file) = file {
            let part =
                "`file` of `[access-log]`: `format = \"off\"` writes no lines; write another format, or remove `file`";
            warn(problems, source, &file.span(), part);
        }
    }
}

/// Warns of name servers that no endpoint needs.
fn warn_of_resolver(problems: &mut Diagnostics, files: &[ManifestFile]) {
    let mut endpoints = files.iter().flat_map(|file| file.manifest.upstream.values()).flat_map(|one| &one.endpoints);
    let is_looked_up = endpoints.any(|endpoint| match endpoint.get_ref() {
        EndpointEntry::Table(table) => table.dns.is_some() || table.srv.is_some() || table.file.is_some(),
        EndpointEntry::Address(_) => false,
    });
    for ManifestFile { source, manifest } in files {
        let server = manifest.resolver.as_ref().and_then(|resolver| resolver.servers.first());
        if let Some(server) = server.filter(|_| !is_looked_up) {
            let part = "`[resolver]`: no endpoint has `dns` or `srv`, and the names in addresses are looked up by the system; \
                        write `{ dns = \"app.internal:8000\" }` as an endpoint, or remove `[resolver]`";
            warn(problems, source, &server.span(), part);
        }
    }
}

/// Whether a route intercepts a status code.
fn intercepts(route: &RouteTable, code: u16) -> bool {
    route.intercept.iter().any(|word| codes_of_word(word.get_ref()).is_some_and(|codes| codes.contains(&code)))
}

/// Whether a route answers with a status code, without content.
fn responds(route: &RouteTable, code: u16) -> bool {
    let respond = route.respond.as_ref().map(Spanned::get_ref);
    respond.is_some_and(|respond| {
        let is_code = respond.status.as_ref().is_some_and(|status| *status.get_ref() == code);
        is_code && respond.body.is_none() && respond.file.is_none()
    })
}

fn warn(problems: &mut Diagnostics, source: &Arc<Source>, span: &Range<usize>, part: &str) {
    problems.warn(Doubt::NoEffect, source, span.clone(), part);
}

/// Returns all mentions of plugins.
fn references(files: &[ManifestFile]) -> impl Iterator<Item = &PluginRef> {
    let in_routes = files.iter().flat_map(|file| &file.manifest.route).flat_map(|route| &route.get_ref().plugins);
    let upstreams = files.iter().flat_map(|file| file.manifest.upstream.values());
    in_routes.chain(upstreams.filter_map(|upstream| upstream.balancer.as_ref())).map(Spanned::get_ref)
}

/// Warns of limits and of a server for state that no plugin may keep.
fn warn_of_shared(problems: &mut Diagnostics, files: &[ManifestFile]) {
    let is_granted = |table: &PluginTable| table.grants.shared == Some(true);
    let inline = references(files).any(|one| matches!(one, PluginRef::Inline(table) if is_granted(table)));
    if inline || files.iter().flat_map(|file| file.manifest.plugin.values()).any(is_granted) {
        return;
    }
    for source in files.iter().filter(|file| file.manifest.shared.is_some()).map(|file| &file.source) {
        let span = spans::key(&source.text, "shared").unwrap_or(0..0);
        let part = "`[shared]`: no plugin may keep state; write `grants = { shared = true }` in one, or remove it";
        warn(problems, source, &span, part);
    }
}

/// Whether the manifest has a plugin that is none of the stock plugins.
pub(super) fn has_own_plugin(files: &[ManifestFile]) -> bool {
    let is_own = |plugin: &PluginTable| plugin.r#use.get_ref().ends_with(".wasm");
    let inline = references(files).any(|reference| matches!(reference, PluginRef::Inline(plugin) if is_own(plugin)));
    inline || files.iter().flat_map(|file| file.manifest.plugin.values()).any(is_own)
}

/// Returns the names that are used, and the known names that misspelt ones probably mean: those are not unused.
fn used_names<'a>(names: impl Iterator<Item = &'a str>, known: &HashSet<&'a str>) -> HashSet<&'a str> {
    let meant = |name: &'a str| if known.contains(name) { None } else { meant(name, known.iter().copied()) };
    names.flat_map(|name| [Some(name), meant(name)]).flatten().collect()
}

fn warn_of_plugins(problems: &mut Diagnostics, files: &[ManifestFile]) {
    let names = references(files).filter_map(|reference| match reference {
        PluginRef::Name(name) => Some(name.as_str()),
        PluginRef::Inline(_) => None,
    });
    let known = files.iter().flat_map(|file| file.manifest.plugin.keys()).map(|name| name.get_ref().as_str());
    let used = used_names(names, &known.collect());
    for (source, name) in
        files.iter().flat_map(|file| file.manifest.plugin.keys().map(move |name| (&file.source, name)))
    {
        if !used.contains(name.get_ref().as_str()) {
            warn(
                problems,
                source,
                &name.span(),
                &format!(
                    "plugin `{name}`: no route or upstream names it; name it in `plugins`, or remove it",
                    name = name.get_ref()
                ),
            );
        }
    }
}

/// Warns of the plugin `headers` in a chain without anything to do.
fn warn_of_headers(problems: &mut Diagnostics, files: &[ManifestFile]) {
    let tables: HashMap<&str, &PluginTable> = files
        .iter()
        .flat_map(|file| &file.manifest.plugin)
        .map(|(name, table)| (name.get_ref().as_str(), table))
        .collect();
    let has_rules =
        |config: &toml::Table| ["request", "response", "forwarded"].iter().any(|key| config.contains_key(*key));
    let is_idle =
        |table: &PluginTable| table.r#use.get_ref() == HEADERS && !table.config.as_ref().is_some_and(has_rules);
    let chains = files.iter().flat_map(|file| file.manifest.route.iter().map(move |route| (&file.source, route)));
    for (source, plugin) in
        chains.flat_map(|(source, route)| route.get_ref().plugins.iter().map(move |plugin| (source, plugin)))
    {
        let is_idle = match plugin.get_ref() {
            PluginRef::Inline(table) => is_idle(table),
            PluginRef::Name(name) => tables.get(name.as_str()).map_or(name == HEADERS, |table| is_idle(table)),
        };
        if is_idle {
            let part = "plugin `headers` without rules: it changes no field; for `X-Forwarded-For` and other fields about the \
                        client write `{ use = \"headers\", config = { forwarded = {} } }`";
            warn(problems, source, &plugin.span(), part);
        }
    }
}

/// Warns of the plugin `log-fields` if no access log shows its notes.
fn warn_of_notes(problems: &mut Diagnostics, files: &[ManifestFile]) {
    // Another plugin may read the notes: one of the user's own, or a template.
    if has_own_plugin(files) || files.iter().any(|file| file.source.text.contains("note.")) {
        return;
    }
    let format = files.iter().find_map(|file| Some(file.manifest.access_log.as_ref()?.get_ref().format));
    let has_user = |table: &PluginTable| {
        let notes = table.config.as_ref().and_then(|config| config.get("log")?.as_table());
        notes.is_some_and(|notes| notes.contains_key("user"))
    };
    for ManifestFile { source, manifest } in files {
        let inline = manifest.route.iter().flat_map(|route| &route.get_ref().plugins);
        let inline = inline.filter_map(|plugin| match plugin.get_ref() {
            PluginRef::Inline(table) => Some(&**table),
            PluginRef::Name(_) => None,
        });
        for table in manifest.plugin.values().chain(inline).filter(|table| table.r#use.get_ref() == LOG_FIELDS) {
            let why = match format {
                Some(AccessLogFormat::Json) => continue,
                Some(AccessLogFormat::Combined) if has_user(table) => continue,
                Some(AccessLogFormat::Combined) => "the format `combined` shows the note `user` only",
                Some(AccessLogFormat::Off) | None => "there is no access log",
            };
            let part = format!("plugin `log-fields`: {why}; write `format = \"json\"` in `[access-log]`");
            warn(problems, source, &table.r#use.span(), &part);
        }
    }
}

fn warn_of_upstreams(problems: &mut Diagnostics, files: &[ManifestFile]) {
    // A plugin of the user's own may choose any upstream.
    if has_own_plugin(files) {
        return;
    }
    let routes = files.iter().flat_map(|file| &file.manifest.route);
    let has_target = |route: &RouteTable| {
        let RouteTable { upstream, redirect, respond, files, .. } = route;
        let is_resolved = upstream.as_ref().is_some_and(|name| !name.get_ref().contains("${"));
        is_resolved || redirect.is_some() || respond.is_some() || files.is_some()
    };
    // A route without a target, or with a reference that has no value, may be the one that should lead there.
    if routes.clone().count() == 0 || !routes.clone().all(|route| has_target(route.get_ref())) {
        return;
    }
    let names = routes.filter_map(|route| Some(route.get_ref().upstream.as_ref()?.get_ref().as_str()));
    let known = files.iter().flat_map(|file| file.manifest.upstream.keys()).map(|name| name.get_ref().as_str());
    let used = used_names(names, &known.collect());
    for (source, name) in
        files.iter().flat_map(|file| file.manifest.upstream.keys().map(move |name| (&file.source, name)))
    {
        if !used.contains(name.get_ref().as_str()) {
            warn(
                problems,
                source,
                &name.span(),
                &format!(
                    "upstream `{name}`: no route leads to it; name it in a route, or remove it",
                    name = name.get_ref()
                ),
            );
        }
    }
}

fn warn_of_rules(problems: &mut Diagnostics, source: &Arc<Source>, upstream: &UpstreamTable) {
    if let TableOrOff::On(outliers) = &upstream.outliers
        && outliers.error_rate.is_none()
        && outliers.latency.is_none()
    {
        let keys = [
            ("requests", outliers.requests.as_ref().map(Spanned::span)),
            ("interval", outliers.interval.as_ref().map(Spanned::span)),
        ];
        for (key, span) in keys.into_iter().filter_map(|(key, span)| Some((key, span?))) {
            warn(problems, source, &span, &format!("`{key}` of `outliers`: it needs `error-rate` or `latency`"));
        }
    }
    let ca = upstream
        .tls
        .as_ref()
        .map(Spanned::get_ref)
        .and_then(|tls| tls.ca.as_ref().filter(|_| tls.insecure_skip_verify));
    if let Some(ca) = ca {
        warn(
            problems,
            source,
            &ca.span(),
            "`ca` beside `insecure-skip-verify`: no certificate is verified; remove one of both",
        );
    }
    let content = upstream.health.as_ref().and_then(|health| health.get_ref().content.as_ref());
    if let Some(content) = content.filter(|content| content.get_ref().is_empty()) {
        let part = "`content` of `health`: each response has the empty text; write a text, or remove it";
        warn(problems, source, &content.span(), part);
    }
    if let TableOrOff::On(retry) = &upstream.retry
        && let (Some(retries), Some(on)) = (&retry.retries, &retry.on)
        && *retries.get_ref() == 0
        && !on.is_empty()
    {
        warn(
            problems,
            source,
            &retries.span(),
            "`on` of `retry`: `retries = 0` repeats nothing; write `retry = false`",
        );
    }
    if let (Some(read), Some(stream)) = (&upstream.read_timeout, &upstream.stream_timeout)
        && super::units::duration(stream.get_ref()) < super::units::duration(read.get_ref())
    {
        warn(
            problems,
            source,
            &stream.span(),
            "`stream-timeout`: it is shorter than `read-timeout`, and extends that for streams",
        );
    }
}
