//! The assembly of a route's keys that change the forwarded target.

use std::ops::Range;
use std::sync::Arc;

use crate::config::spanned::Spanned;

use super::path_regex::RoutePaths;
use super::{Assembly, doubtful, route_conditions};
use crate::config::diagnostic::{Doubt, Source};
use crate::config::manifest::{self, OtherPath, RewriteTable, RouteTable, StripPrefix};
use crate::generation::uri_rules::{Replacement, Rewrite, UriRules};

impl Assembly<'_> {
    /// Returns the rules of a route for the target that is forwarded.
    pub(super) fn uri_rules(&mut self, source: &Arc<Source>, route: &RouteTable) -> UriRules {
        self.check_uri_keys(source, route);
        let prefix = route.strip_prefix.as_ref().and_then(|strip| self.prefix(source, route, strip));
        let rewrite = route.rewrite.as_ref().and_then(|rewrite| self.rewrite(source, rewrite.get_ref()));
        // A plugin may change the path before.
        if route.plugins.is_empty()
            && let Some(paths) = route.path.as_ref().and_then(|path| literal(path.get_ref()))
        {
            self.warn_of_idle_prefix(source, route, paths, prefix.as_deref());
            self.warn_of_idle_rewrite(source, route, paths, rewrite.is_some());
        }
        UriRules {
            prefix,
            rewrite,
            is_as_sent: route.path_as_is.as_ref().is_some_and(|is_as_sent| *is_as_sent.get_ref()),
        }
    }

    /// Checks that the keys have an effect, beside each other and for the target.
    fn check_uri_keys(&mut self, source: &Arc<Source>, route: &RouteTable) {
        let strip = route.strip_prefix.as_ref().map(|key| ("strip-prefix", key.span()));
        let rewrite = route.rewrite.as_ref().map(|key| ("rewrite", key.span()));
        let as_is = route.path_as_is.as_ref().filter(|key| *key.get_ref()).map(|key| ("path-as-is", key.span()));
        if let (Some(_), Some((_, span))) = (&strip, &rewrite) {
            let message = "`rewrite` beside `strip-prefix`: write the prefix into the regular expression, such as \
                           `{ regex = \"^/api/(.*)$\", to = \"/$1\" }`, and remove `strip-prefix`";
            self.problems.at(source, span.clone(), message);
        }
        if let (Some(_), Some((_, span))) = (&rewrite, &as_is) {
            let message = "`path-as-is` beside `rewrite`: regular expressions match the normal form of a path; remove one of them";
            self.problems.at(source, span.clone(), message);
        }
        let keys: Vec<(&str, Range<usize>)> = [strip, rewrite].into_iter().flatten().collect();
        let (without_effect, target) = match (&route.redirect, &route.respond, &route.files) {
            (Some(_), ..) => (keys, "redirect"),
            (_, Some(_), _) => (keys.into_iter().chain(as_is).collect(), "respond"),
            (.., Some(_)) => (as_is.into_iter().collect(), "files"),
            _ => (Vec::new(), ""),
        };
        for (key, span) in without_effect {
            let message = format!("`{key}` beside `{target}`: it has no effect there; remove it");
            self.problems.at(source, span, message);
        }
    }

    /// Returns the segments of a prefix; `None` if nothing is to be removed.
    fn prefix(
        &mut self,
        source: &Arc<Source>,
        route: &RouteTable,
        strip: &Spanned<StripPrefix>,
    ) -> Option<Vec<String>> {
        let text = match strip.get_ref() {
            StripPrefix::Switch(false) => return None,
            StripPrefix::Text(text) => {
                if let Some(message) = route_conditions::path(text) {
                    self.problems.at(source, strip.span(), message);
                    return None;
                }
                text
            }
            StripPrefix::Switch(true) => match route.path.as_ref().map(Spanned::get_ref) {
                Some(
                    manifest::Path::Below(path)
                    | manifest::Path::Other(OtherPath::Exact(path) | OtherPath::Prefix(path)),
                ) => path,
                Some(manifest::Path::Other(OtherPath::Regex(_))) | None => {
                    let message = "`strip-prefix = true` without a path: the route has no path that is a text; write the \
                                   prefix, such as `strip-prefix = \"/api\"`";
                    self.problems.at(source, strip.span(), message);
                    return None;
                }
            },
        };
        let segments: Vec<String> = text.split('/').filter(|segment| !segment.is_empty()).map(String::from).collect();
        if segments.is_empty() {
            let message = "prefix without a segment: nothing is left to be removed; expected one such as `/api`";
            self.problems.at(source, strip.span(), message);
        }
        Some(segments)
    }

    /// Warns of a prefix that no path of the route begins with.
    fn warn_of_idle_prefix(
        &mut self,
        source: &Arc<Source>,
        route: &RouteTable,
        paths: RoutePaths<'_>,
        prefix: Option<&[String]>,
    ) {
        let (Some(strip), Some(prefix)) = (&route.strip_prefix, prefix) else { return };
        let (RoutePaths::Exactly(path) | RoutePaths::Below(path)) = paths;
        let own: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let is_alike = own.iter().zip(prefix).all(|(own, stripped)| *own == stripped);
        let is_long_enough = matches!(paths, RoutePaths::Below(_)) || own.len() >= prefix.len();
        if !is_alike || !is_long_enough {
            let why = format!(
                "`strip-prefix` that no path of the route has: its paths begin with `{path}`; write `strip-prefix = true`, or \
                 remove it"
            );
            self.problems.warn(Doubt::NoEffect, source, strip.span(), &why);
        }
    }

    /// Warns of a rewrite whose expression no path of the route matches.
    fn warn_of_idle_rewrite(
        &mut self,
        source: &Arc<Source>,
        route: &RouteTable,
        paths: RoutePaths<'_>,
        is_sound: bool,
    ) {
        let Some(rewrite) = route.rewrite.as_ref().filter(|_| is_sound) else { return };
        let regex = &rewrite.get_ref().regex;
        if !paths.may_match(regex.get_ref()) {
            let (RoutePaths::Exactly(path) | RoutePaths::Below(path)) = paths;
            let why = format!(
                "`rewrite` that matches no path of the route: its paths begin with `{path}`, and are matched as a whole; \
                 correct the regular expression, or remove it"
            );
            self.problems.warn(Doubt::NoEffect, source, regex.span(), &why);
        }
    }

    fn rewrite(&mut self, source: &Arc<Source>, table: &RewriteTable) -> Option<Rewrite> {
        let (span, text) = (table.regex.span(), table.regex.get_ref());
        let regex = self.compiled_regex(source, span.clone(), text)?;
        // Rewrites see path parameters, but routes match without them.
        if !text.contains(';') && !text.contains("3B") {
            self.check_path_regex(source, span, text);
        }
        match Replacement::parse(table.to.get_ref(), &regex) {
            Ok(to) => {
                if let Some(value) = doubtful::value_in_target(table.to.get_ref(), source, &table.to.span()) {
                    self.problems.warn(Doubt::Meaning, source, table.to.span(), &value);
                }
                Some(Rewrite { regex, to })
            }
            Err(reason) => {
                let message = format!("invalid target `{}` of a rewrite: {reason}", table.to.get_ref());
                self.problems.at(source, table.to.span(), message);
                None
            }
        }
    }
}

/// Returns the paths of a route whose path is a text; `None` for another path, and for all paths.
fn literal(path: &manifest::Path) -> Option<RoutePaths<'_>> {
    let paths = match path {
        manifest::Path::Other(OtherPath::Regex(_)) => return None,
        manifest::Path::Other(OtherPath::Exact(path)) => RoutePaths::Exactly(path),
        manifest::Path::Below(path) | manifest::Path::Other(OtherPath::Prefix(path)) => RoutePaths::Below(path),
    };
    let (RoutePaths::Exactly(path) | RoutePaths::Below(path)) = paths;
    // The errors of other paths are reported elsewhere.
    route_conditions::path(path).is_none().then_some(paths)
}
