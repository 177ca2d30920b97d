//! Guards that get no credentials, since a plugin before them removes the field: warnings, since the proxy runs with such a
//! chain.

use serde_json::Value;

use super::Assembly;
use super::redirect_loops::SampledRoute;
use crate::config::diagnostic::Doubt;
use crate::generation::Route;

/// The use that a stock plugin makes of request fields with credentials, with names in lower case.
#[derive(Default)]
pub(super) struct CredentialUse {
    /// The field without which the plugin refuses a request; `None` if there is no such field.
    reads: Option<String>,
    /// The fields that no later plugin gets.
    removes: Vec<String>,
}

impl CredentialUse {
    /// Returns the use by a stock plugin with a configuration.
    pub(super) fn of(name: &str, config: &Value) -> Self {
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        let field = match name {
            "auth-basic" => "authorization".to_string(),
            // A key may also be in another place.
            "auth-key" if text("query").is_none() && text("cookie").is_none() => {
                text("field").unwrap_or("x-api-key").to_ascii_lowercase()
            }
            "headers" if config.get("when").is_none() => {
                let removed = config.pointer("/request/remove").and_then(Value::as_array);
                let names = removed.into_iter().flatten().filter_map(Value::as_str);
                return CredentialUse { reads: None, removes: names.map(str::to_ascii_lowercase).collect() };
            }
            _ => return CredentialUse::default(),
        };
        let is_kept = config.get("keep").is_some_and(|keep| *keep == true);
        CredentialUse { removes: Vec::from_iter((!is_kept).then(|| field.clone())), reads: Some(field) }
    }
}

impl Assembly<'_> {
    /// Warns of guards whose field a plugin before them removes: they refuse each request.
    pub(super) fn warn_of_taken_credentials(&mut self, routes: &[Route], sampled: &[SampledRoute<'_>]) {
        for (route, SampledRoute { source, table, .. }) in routes.iter().zip(sampled) {
            for (place, (guard, plugin)) in route.chain.iter().zip(&table.get_ref().plugins).enumerate() {
                let Some(field) = self.credentials.get(guard).and_then(|uses| uses.reads.as_ref()) else { continue };
                let removes = |other: &&_| {
                    **other != *guard && self.credentials.get(other).is_some_and(|uses| uses.removes.contains(field))
                };
                let Some(taker) = route.chain[..place].iter().find(removes) else { continue };
                let name = &self.bindings[*taker].name;
                let remedy = match self.credentials.get(taker).is_some_and(|uses| uses.reads.is_some()) {
                    true => format!("write `keep = true` in the configuration of `{name}`"),
                    false => format!("name `{name}` after it"),
                };
                let why = format!(
                    "`{}` refuses each request: `{name}` before it removes the field `{field}`; {remedy}",
                    self.bindings[*guard].name
                );
                self.problems.warn(Doubt::Meaning, source, plugin.span(), &why);
            }
        }
    }
}
