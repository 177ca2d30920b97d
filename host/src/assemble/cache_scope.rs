//! The texts that distinguish the stored responses of routes.

use std::sync::Arc;

use crate::config::manifest;
use crate::generation::target::Target;

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
        Target::Respond(fixed) => scope += &format!("\nrespond {}", blake3::hash(&fixed.body)),
        Target::Files(files) => scope += &format!("\nfiles {}", files.root.display()),
    }
    if scope.is_empty() { name.clone() } else { format!("{name}{scope}").into() }
}
