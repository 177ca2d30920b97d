//! The keys of `[plugin.NAME.grants]`, a table of [`super::manifest`].

use schemars::JsonSchema;
use serde::Deserialize;

use super::spanned::Spanned;

/// The grants of a configured plugin.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PluginGrants {
    /// Whether the plugin may keep state that all its instances share, on all workers ([shared-state.md](shared-state.md)).
    ///
    /// Type: boolean. Default: `false`. Example: `true`.
    pub shared: Option<bool>,
    /// The variables of Plugway's environment that the plugin sees, by their names. They must be set. A plugin without this
    /// grant sees an empty environment.
    ///
    /// Type: list of names. Default: `[]`. Example: `["REGION"]`.
    pub env: Vec<Spanned<String>>,
}
