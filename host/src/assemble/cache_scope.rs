//! The texts that distinguish the stored responses of routes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::manifest;
use crate::generation::Route;
use crate::generation::router::{PathMatch, RouteMatch};
use crate::generation::target::{FixedResponse, Target};

/// Returns the text that distinguishes the stored responses of a route from those of others. Routes of one name may
/// lead a request to different resources.
pub fn cache_scope(name: &Arc<str>, route: &manifest::RouteTable, target: &Target) -> Arc<str> {
    let mut scope = String::new();
    if let Some(strip) = &route.strip_prefix {
        scope += &format!("\nstrip-prefix {:?}", strip.get_ref());
    }
    if let Some(rewrite) = &route.rewrite {
        let manifest::RewriteTable { regex, to } = rewrite.get_ref();
        scope += &format!("\nrewrite {}\n{}", regex.get_ref(), to.get_ref());
    }
    match target {
        Target::Upstream(_) => {}
        Target::Redirect(to) => scope += &format!("\nredirect {} {:?}", to.status, to.location),
        Target::Respond(fixed) => scope += &format!("\nrespond {} {}", fixed.status, hash(fixed)),
        Target::Files(files) => {
            scope += &format!("\nfiles {}", files.root.display());
            if let Some(table) = &route.files {
                scope += &answers_of_files(table.get_ref());
            }
        }
    }
    extended(name, &scope)
}

/// Adds conditions of routes to their scopes, so that no two scopes are equal. Names need not be unique, and a plugin
/// below the cache may make something else of the requests of one route.
///
/// Most routes keep the scope that they have by their name, and with it the files of an earlier process.
pub fn tell_apart(routes: &mut [Route], matches: &[RouteMatch]) {
    for (route, matching) in routes.iter_mut().zip(matches) {
        route.cache_scope = extended(&route.cache_scope, &outside_names(matching));
    }
    let mut routes_by_scope: HashMap<Arc<str>, usize> = HashMap::new();
    for route in &*routes {
        *routes_by_scope.entry(route.cache_scope.clone()).or_default() += 1;
    }
    for (route, matching) in routes.iter_mut().zip(matches) {
        if routes_by_scope.get(&route.cache_scope).is_some_and(|count| *count > 1) {
            route.cache_scope = extended(&route.cache_scope, &host_and_path(matching));
        }
    }
}

fn extended(scope: &Arc<str>, more: &str) -> Arc<str> {
    if more.is_empty() { scope.clone() } else { format!("{scope}{more}").into() }
}

/// Returns the conditions that are no part of a name that is made of a route's host and path.
fn outside_names(matching: &RouteMatch) -> String {
    let RouteMatch { listeners, hosts: _, path: _, methods, fields, query } = matching;
    let mut text = String::new();
    if !listeners.is_empty() {
        text += &format!("\nlisteners {listeners:?}");
    }
    if !methods.is_empty() {
        text += &format!("\nmethods {methods:?}");
    }
    if !fields.is_empty() {
        text += &format!("\nfields {fields:?}");
    }
    if !query.is_empty() {
        text += &format!("\nquery {query:?}");
    }
    text
}

fn host_and_path(matching: &RouteMatch) -> String {
    let mut hosts: Vec<_> = matching.hosts.iter().collect();
    hosts.sort_unstable();
    let path = match &matching.path {
        PathMatch::Any => String::new(),
        PathMatch::Prefix(path) => format!("prefix {path}"),
        PathMatch::Exact(path) => format!("exact {path}"),
        PathMatch::Regex(regex) => format!("regex {}", regex.as_str()),
    };
    format!("\nhosts {hosts:?}\npath {path}")
}

/// Returns the keys that decide about the answer for a path, as far as they are there. Copies in a coding have the same
/// content, and `Vary`.
fn answers_of_files(table: &manifest::FilesTable) -> String {
    let mut text = String::new();
    if let Some(names) = &table.index {
        let names: Vec<&String> = names.iter().map(|name| name.get_ref()).collect();
        text += &format!("\nindex {names:?}");
    }
    if let Some(fallback) = &table.fallback {
        text += &format!("\nfallback {:?}", fallback.get_ref());
    }
    if table.browse {
        text += "\nbrowse";
    }
    text
}

/// Returns the hash of the fields and the body of a response.
fn hash(fixed: &FixedResponse) -> blake3::Hash {
    let mut fields: Vec<_> = fixed.fields.iter().collect();
    fields.sort_by_key(|(name, _)| name.as_str());
    let mut hasher = blake3::Hasher::new();
    for (name, value) in fields {
        hasher.update(name.as_str().as_bytes()).update(b":").update(value.as_bytes()).update(b"\n");
    }
    hasher.update(b"\n").update(&fixed.body).finalize()
}
