//! The configuration as written in the manifest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// The edits to the fields of requests and responses.
///
/// Values are templates: `{host}`, `{client.ip}`, `{request.header.NAME}`, `{note.NAME}` and others are replaced by
/// values of the exchange, `{{` and `}}` by braces. A field whose value is empty is removed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The edits to requests.
    pub request: Edits,
    /// The edits to responses.
    pub response: Edits,
    /// Conditions: the edits are made only if all conditions hold. For responses, the method and the path are those that
    /// the plugins below have left, as `rewrite` may have changed them.
    pub when: Option<When>,
    /// Fields that describe the client to the upstream, by the rules for proxies behind proxies.
    pub forwarded: Option<Forwarded>,
    /// Calls the filter for each message even if the host could make the edits by itself; for comparing both ways.
    pub evaluate_each: bool,
}

/// The edits to one kind of message, made in this order: rename, remove, set, append, default.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Edits {
    /// Renames all lines of a field.
    pub rename: BTreeMap<String, String>,
    /// Removes the fields with these names.
    pub remove: Vec<String>,
    /// Replaces all lines of a field by one line.
    pub set: BTreeMap<String, Template>,
    /// Adds a line to a field.
    pub append: BTreeMap<String, Template>,
    /// Adds a line if the field is absent.
    pub default: BTreeMap<String, Template>,
}

/// A text with values in braces, such as `{host}`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
// By the format, the proxy doubles the braces in what references stand for.
#[schemars(inline, extend("format" = "plugway-template"))]
pub struct Template(pub String);

/// Conditions for edits; an empty list is no condition.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct When {
    /// The method is one of these.
    pub methods: Vec<String>,
    /// The path begins with one of these.
    pub paths: Vec<String>,
    /// The status code of the response is one of these; no condition for requests.
    pub statuses: Vec<u16>,
}

/// The fields that describe the client to the upstream.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Forwarded {
    /// Has no effect any more: a listener's `trusted-proxies` decides which proxies are trusted, for the whole proxy.
    pub trusted_proxies: Vec<String>,
    /// The fields to send.
    pub fields: ForwardedFields,
}

/// The fields that describe the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedFields {
    /// The fields `X-Forwarded-For`, `-Proto` and `-Host`, and `X-Real-IP`.
    #[default]
    XForwarded,
    /// The field `Forwarded` (RFC 7239).
    Rfc7239,
    /// All of these fields.
    Both,
}
