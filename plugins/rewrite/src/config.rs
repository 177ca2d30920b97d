//! The configuration as written in the manifest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// The rewriting of requests, in this order: the canonical form of host and path, the map, the first rule that matches,
/// the query.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The one spelling of hosts and paths.
    pub canonical: Canonical,
    /// Lines `/old /new` (the upstream gets the new path) or `/old /new 301` (the client is redirected), such as
    /// `"${file:redirects.map}"`.
    #[schemars(extend("x-plugway-public" = true))]
    pub map: Option<String>,
    /// Regular expressions for paths that are not in the map; the first that matches is used.
    pub rules: Vec<RuleConfig>,
    /// The edits to the query that the upstream gets.
    pub query: QueryConfig,
}

/// The one spelling of hosts and paths.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Canonical {
    /// The host: `www` adds `www.`, `no-www` removes it, and any other text is the host itself.
    pub host: Option<String>,
    /// The slash at the end of paths.
    pub trailing_slash: Option<TrailingSlash>,
    /// `true`: paths are in lower case.
    pub lower_case: bool,
    /// The status of the redirect to the canonical form, 308 by default; `false`: the upstream gets the canonical form
    /// without a redirect.
    pub redirect: Option<Redirect>,
}

/// The slash at the end of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TrailingSlash {
    /// Paths end with a slash, unless their last segment has a dot, as a file has.
    Add,
    /// Paths end without a slash, except for `/`.
    Remove,
}

/// The status of a redirect, or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Redirect {
    /// The status: 301, 302, 303, 307 or 308.
    Status(u16),
    /// `false`: no redirect.
    Off(bool),
}

/// A rule for paths.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// The regular expression, which is searched for in the path.
    pub regex: String,
    /// The new path, with `$1` or `${name}` for the groups of the expression, and with a new query if it has a `?`. A
    /// redirect may also lead to `https://` and another host.
    pub to: String,
    /// The status of a redirect; without it, the upstream gets the new path.
    pub redirect: Option<u16>,
}

/// Edits to the query, made in this order: keep, remove, rename, set, sort. `*` at the end of a name in `keep` or `remove`
/// matches any suffix.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QueryConfig {
    /// The only parameters that stay.
    pub keep: Option<Vec<String>>,
    /// The parameters that are removed.
    pub remove: Vec<String>,
    /// New names of parameters, by their old names.
    pub rename: BTreeMap<String, String>,
    /// Parameters with their values, which replace those with these names.
    pub set: BTreeMap<String, String>,
    /// `true`: parameters are sorted by their names; those of one name keep their order.
    pub sort: bool,
}
