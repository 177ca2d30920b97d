//! The configuration as it stands in the manifest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// What to do with fields.
///
/// Values are templates: `{host}`, `{client.ip}`, `{request.header.NAME}`, `{note.NAME}` and more stand for values of
/// the exchange, `{{` and `}}` for braces. A value that comes out empty removes the field.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Edits to requests.
    pub request: Edits,
    /// Edits to responses.
    pub response: Edits,
    /// Makes the edits only where all of this holds.
    pub when: Option<When>,
    /// Tells the upstream who the client is, by the rules for proxies behind proxies.
    pub forwarded: Option<Forwarded>,
    /// Runs the filter for each message even where the host could make the edits by itself; for comparing the two.
    pub evaluate_each: bool,
}

/// Edits to one kind of message, in this order: rename, remove, set, append, default.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Edits {
    /// Gives all lines of a field another name.
    pub rename: BTreeMap<String, String>,
    /// Removes fields.
    pub remove: Vec<String>,
    /// Replaces all lines of a field by one.
    pub set: BTreeMap<String, String>,
    /// Adds a line to a field.
    pub append: BTreeMap<String, String>,
    /// Adds a line if the field is absent.
    pub default: BTreeMap<String, String>,
}

/// Conditions; an empty list asks for nothing.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct When {
    /// One of these methods.
    pub methods: Vec<String>,
    /// A path that begins with one of these.
    pub paths: Vec<String>,
    /// A response with one of these status codes; says nothing about requests.
    pub statuses: Vec<u16>,
}

/// How the upstream learns of the client.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Forwarded {
    /// Has no effect any more: a listener's `trusted-proxies` says whose word is taken, for the whole proxy.
    pub trusted_proxies: Vec<String>,
    /// Which fields to send.
    pub fields: ForwardedFields,
}

/// Which fields tell of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedFields {
    /// `X-Forwarded-For`, `-Proto` and `-Host`, and `X-Real-IP`.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Rfc7239,
    /// Both.
    Both,
}
