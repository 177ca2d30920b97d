//! Routes with the plugin `cors` that get no preflights: warnings, since requests without preflights are served.

use http::Method;

use super::Assembly;
use super::redirect_loops::{RouteSample, SampledRoute};
use crate::config::diagnostic::Doubt;
use crate::generation::Route;
use crate::generation::ids::Id;
use crate::generation::router::Router;

impl Assembly<'_> {
    /// Warns of methods that keep the preflights of browsers from the plugin `cors`, which answers them.
    pub(super) fn warn_of_lost_preflights(&mut self, router: &Router, routes: &[Route], sampled: &[SampledRoute<'_>]) {
        let has_cors = |route: &Route| route.chain.iter().any(|plugin_id| self.cors.contains(plugin_id));
        let takes_options = |route: &SampledRoute<'_>| {
            let methods = route.table.get_ref().methods.iter().flat_map(|methods| methods.get_ref());
            let mut methods = methods.map(|method| method.get_ref().as_str()).peekable();
            methods.peek().is_none() || methods.any(|method| method == "OPTIONS")
        };
        let mut lost = Vec::new();
        for (route, sampled_route) in routes.iter().zip(sampled) {
            if !has_cors(route) || takes_options(sampled_route) {
                continue;
            }
            let is_answered = match &sampled_route.sample {
                Some(RouteSample { request, listener }) => {
                    let mut preflight = request.clone();
                    preflight.method = Method::OPTIONS;
                    router.route(&preflight, listener).is_some_and(|other| has_cors(&routes[other.index()]))
                }
                None => routes.iter().zip(sampled).any(|(route, sampled)| has_cors(route) && takes_options(sampled)),
            };
            lost.extend((!is_answered).then_some(sampled_route));
        }
        for SampledRoute { source, table, .. } in lost {
            let Some(methods) = &table.get_ref().methods else { continue };
            let why = "`methods` without OPTIONS beside the plugin `cors`: it answers the preflights of browsers, which are \
                       requests with OPTIONS, and gets none here; add \"OPTIONS\"";
            self.problems.warn(Doubt::Meaning, source, methods.span(), why);
        }
    }
}
