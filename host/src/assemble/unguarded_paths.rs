//! Paths that a guarded route leaves to another route: warnings, since an application may tell the two paths apart.

use super::Assembly;
use super::redirect_loops::{RouteSample, SampledRoute};
use crate::config::diagnostic::Doubt;
use crate::config::manifest::{OtherPath, Path};
use crate::generation::Route;
use crate::generation::ids::Id;
use crate::generation::router::Router;

impl Assembly<'_> {
    /// Warns of routes such as `/admin/` with a guard, if `/admin` belongs to a route to the same upstream without that
    /// guard: many applications serve both alike.
    pub(super) fn warn_of_unguarded_paths(&mut self, router: &Router, routes: &[Route], sampled: &[SampledRoute<'_>]) {
        for (route, SampledRoute { sample, source, table }) in routes.iter().zip(sampled) {
            let (Some(RouteSample { request, listener }), Some(path)) = (sample, &table.get_ref().path) else {
                continue;
            };
            let (Path::Below(text) | Path::Other(OtherPath::Prefix(text))) = path.get_ref() else { continue };
            let bare = request.uri.path().strip_suffix('/').filter(|bare| !bare.is_empty());
            let Some(bare) = bare.filter(|_| text.ends_with('/')) else { continue };
            let Some(other) = router.route_of_path(request, bare, listener) else { continue };
            let other = &routes[other.index()];
            if other.target.upstream().is_none() || other.target.upstream() != route.target.upstream() {
                continue;
            }
            let mut guards = route.chain.iter().filter(|plugin_id| self.guards.contains(plugin_id));
            let Some(guard) = guards.find(|guard| !other.chain.contains(guard)) else { continue };
            let why = format!(
                "`{text}` leaves `{bare}` to another route, without the protection of `{}`, and many applications serve both \
                 alike; write `{bare}`, which stands for all below it too",
                self.bindings[*guard].name
            );
            self.problems.warn(Doubt::Meaning, source, path.span(), &why);
        }
    }
}
