//! The assembly of a route's keys that change the forwarded target.

use std::ops::Range;
use std::sync::Arc;

use crate::config::spanned::Spanned;

use super::{Assembly, route_conditions};
use crate::config::diagnostic::Source;
use crate::config::manifest::{self, OtherPath, RewriteTable, RouteTable, StripPrefix};
use crate::generation::uri_rules::{Replacement, Rewrite, UriRules};

impl Assembly<'_> {
    /// Returns the rules of a route for the target that is forwarded.
    pub(super) fn uri_rules(&mut self, source: &Arc<Source>, route: &RouteTable) -> UriRules {
        self.check_uri_keys(source, route);
        UriRules {
            prefix: route.strip_prefix.as_ref().and_then(|strip| self.prefix(source, route, strip)),
            rewrite: route.rewrite.as_ref().and_then(|rewrite| self.rewrite(source, rewrite.get_ref())),
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
            (Some(_), ..) => (keys.into_iter().chain(as_is).collect(), "redirect"),
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

    fn rewrite(&mut self, source: &Arc<Source>, table: &RewriteTable) -> Option<Rewrite> {
        let (span, text) = (table.regex.span(), table.regex.get_ref());
        let regex = self.compiled_regex(source, span.clone(), text)?;
        // Rewrites see path parameters, but routes match without them.
        if !text.contains(';') && !text.contains("3B") {
            self.check_path_regex(source, span, text);
        }
        match Replacement::parse(table.to.get_ref(), &regex) {
            Ok(to) => Some(Rewrite { regex, to }),
            Err(reason) => {
                let message = format!("invalid target `{}` of a rewrite: {reason}", table.to.get_ref());
                self.problems.at(source, table.to.span(), message);
                None
            }
        }
    }
}
