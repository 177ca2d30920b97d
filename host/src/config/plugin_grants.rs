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
    /// The destinations of the plugin's own requests: servers by scheme, host and port, and upstreams of the manifest, which
    /// the plugin asks by `http://NAME/`.
    ///
    /// Type: list of URLs and of tables with `upstream`. Default: `[]`. Example: `["https://auth.example", { upstream = "app"
    /// }]`.
    pub http: Vec<Spanned<HttpGrant>>,
}

/// A destination of a plugin's own requests.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "wrong value: expected a URL such as \"https://auth.example\", or { upstream = \"auth\" }"
)]
pub enum HttpGrant {
    Url(String),
    Upstream(HttpUpstream),
}

/// An upstream as a destination of a plugin's own requests.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpUpstream {
    /// The name of the upstream, whose connections, limits and health checks hold.
    ///
    /// Type: name. Required. Example: `"app"`.
    pub upstream: String,
}
