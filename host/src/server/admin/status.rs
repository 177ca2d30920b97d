//! The status document: the routes, upstreams, plugins and caches of the generation.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::{Admin, cache, fleet, plugins, upstreams};
use crate::generation::Route;

/// Returns the status document as JSON.
pub fn status(admin: &Admin) -> String {
    let generation = admin.generation.borrow().clone();
    let route = |route: &Route| {
        let chain =
            route.chain.iter().map(|plugin_index| &*generation.bindings[*plugin_index].name).collect::<Vec<_>>();
        let upstream = route.target.upstream().map(|upstream_id| &*generation.upstreams[upstream_id].name);
        let target = route.target.word();
        let mut shown = json!({ "name": &*route.name, "target": target, "upstream": upstream, "plugins": chain });
        if let Some(maintenance) = &route.maintenance {
            shown["maintenance"] = maintenance.switch.is_on().into();
        }
        shown
    };
    let document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "generation": admin.serial.load(Ordering::Relaxed),
        "routes": generation.routes.iter().map(route).collect::<Vec<_>>(),
        "upstreams": generation.upstreams.iter().map(upstreams::status).collect::<Vec<_>>(),
        "plugins": plugins::status(admin, &generation),
        "shared": { "redis": fleet::status(&generation) },
        "cache": cache::status(admin, &generation.store),
    });
    format!("{document:#}\n")
}
