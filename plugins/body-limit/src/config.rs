//! The configuration as written in the manifest.

use schemars::JsonSchema;
use serde::Deserialize;

/// The limits of request bodies. A request without a body passes unchanged.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The longest body, such as `"1 MiB"`; a longer one gets 413. The lower of this and the route's `max-body` applies.
    pub max: Option<String>,
    /// The media types that bodies may have, such as `application/json` or `image/*`; another one, or none, gets 415. By
    /// default, any.
    pub accept: Vec<String>,
    /// `true`: a body whose length is not announced gets 411.
    pub require_length: bool,
    /// Other limits for some requests: those of the first rule whose conditions all hold. A limit that the rule does not
    /// have is the one above.
    pub rules: Vec<Rule>,
}

/// The limits for some requests.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// Condition: the method is one of these.
    pub methods: Vec<String>,
    /// Condition: the path begins with one of these.
    pub paths: Vec<String>,
    /// Condition: the host is one of these; `*.example.org` for all names below.
    pub hosts: Vec<String>,
    /// Condition: the media type is one of these, such as `image/*`.
    pub types: Vec<String>,
    /// The longest body.
    pub max: Option<String>,
    /// The media types that bodies may have.
    pub accept: Option<Vec<String>>,
    /// `true`: a body whose length is not announced gets 411.
    pub require_length: Option<bool>,
}
