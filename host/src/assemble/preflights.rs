//! Routes with the plugin `cors` that get no preflights: warnings, since requests without preflights are served.

use http::Method;

use super::Assembly;
use super::redirect_loops::{RouteSample, SampledRoute};
use crate::config::diagnostic::Doubt;
use crate::generation::Route;
use crate::generation::ids::Id;
use crate::generation::router::Router;

impl Assembly<'_> {
    /// Warns of the plugin `cors` below a plugin that asks for credentials: preflights have none.
    pub(super) fn warn_of_guarded_preflights(
        &mut self,
        router: &Router,
        routes: &[Route],
        sampled: &[SampledRoute<'_>],
    ) {
        for (route, sampled_route) in routes.iter().zip(sampled) {
            let SampledRoute { sample, source, table } = sampled_route;
            let chain = || route.chain.iter().zip(&table.get_ref().plugins);
            let mut above = chain().take_while(|(plugin_id, _)| !self.cors.contains(plugin_id));
            let guard = above.find(|(plugin_id, _)| self.credential_guards.contains(plugin_id));
            let cors = chain().find(|(plugin_id, _)| self.cors.contains(plugin_id));
            let (Some((guard, _)), Some((_, cors))) = (guard, cors) else { continue };
            // Another route may be for preflights alone.
            let gets_preflights = takes_options(sampled_route)
                && sample.as_ref().is_none_or(|sample| {
                    preflighted(router, sample).is_none_or(|index| std::ptr::eq(&routes[index], route))
                });
            if gets_preflights {
                let why = format!(
                    "`cors` behind `{}`, which refuses the preflights of browsers: they have no credentials; name `cors` first",
                    self.bindings[*guard].name
                );
                self.problems.warn(Doubt::Meaning, source, cors.span(), &why);
            }
        }
    }

    /// Warns of methods that keep the preflights of browsers from the plugin `cors`, which answers them.
    pub(super) fn warn_of_lost_preflights(&mut self, router: &Router, routes: &[Route], sampled: &[SampledRoute<'_>]) {
        let has_cors = |route: &Route| route.chain.iter().any(|plugin_id| self.cors.contains(plugin_id));
        let mut lost = Vec::new();
        for (route, sampled_route) in routes.iter().zip(sampled) {
            if !has_cors(route) || takes_options(sampled_route) {
                continue;
            }
            let is_answered = match &sampled_route.sample {
                Some(sample) => preflighted(router, sample).is_some_and(|index| has_cors(&routes[index])),
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

/// Whether a route's conditions let requests with OPTIONS in.
fn takes_options(route: &SampledRoute<'_>) -> bool {
    let methods = route.table.get_ref().methods.iter().flat_map(|methods| methods.get_ref());
    let mut methods = methods.map(|method| method.get_ref().as_str()).peekable();
    methods.peek().is_none() || methods.any(|method| method == "OPTIONS")
}

/// Returns the index of the route of the preflight for a request; `None` if it has no route.
fn preflighted(router: &Router, sample: &RouteSample) -> Option<usize> {
    let mut preflight = sample.request.clone();
    preflight.method = Method::OPTIONS;
    router.route(&preflight, &sample.listener).map(|route| route.index())
}
