//! The configuration as written in the manifest.

use schemars::JsonSchema;
use serde::Deserialize;

/// The pages of other origins that may read responses.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The origins whose pages may read responses: `https://app.example.org`, `https://*.example.org` for all names
    /// below, `https://pr-*.example.org` for a part of one label, `http://localhost:*` for any port, `null` for pages
    /// without an origin, `*` for all. An entry may have many lines.
    #[schemars(extend("x-plugway-public" = true))]
    pub origins: Vec<String>,
    /// `true`: pages may send cookies and other credentials, and read the responses. Not with `*`.
    pub credentials: bool,
    /// The methods that pages may use; GET, HEAD and POST by default. `["*"]` for any method, not with `credentials`.
    pub methods: Option<Vec<String>>,
    /// The request fields that pages may set besides those that are always allowed; `"reflect"` allows what a page asks
    /// for. `["*"]` for any field but `Authorization`, not with `credentials`.
    pub headers: Headers,
    /// The response fields that pages may read besides those that are always readable. `["*"]` for all, not with
    /// `credentials`.
    pub expose: Vec<String>,
    /// The time for which browsers remember the answer to a preflight, such as `"1h"`; without it, five seconds.
    #[schemars(extend("examples" = ["1h"]))]
    pub max_age: Option<String>,
    /// `true`: pages of public sites may reach this site in a private network (Private Network Access).
    pub private_network: bool,
    /// The handling of `Access-Control-*` fields that the upstream has sent.
    pub upstream_fields: UpstreamFields,
}

/// The request fields that pages may set.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Headers {
    /// The word `reflect`.
    Reflect(Reflect),
    /// The names of the fields.
    List(Vec<String>),
}

/// The word for the fields that a page asks for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reflect {
    /// All fields that a page asks for.
    Reflect,
}

impl Default for Headers {
    /// Returns a list without names.
    fn default() -> Self {
        Headers::List(Vec::new())
    }
}

/// The handling of `Access-Control-*` fields of the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamFields {
    /// The fields are removed, and those of this configuration sent.
    #[default]
    Replace,
    /// The fields of a response with `Access-Control-Allow-Origin` are kept.
    Keep,
}
