//! The configuration as written in the manifest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// The values that the access log shows besides its own fields, in the table `notes` of its JSON lines.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The notes by name: the name of a value as in templates, such as `request.header.x-tenant`,
    /// `response.header.content-type`, `query.page` or `cookie.theme`, or a table with `value` and `redact`.
    pub log: BTreeMap<String, Entry>,
    /// A secret for `redact = "hash"`, such as `"${file:log.key}"`: without it, a reader of the log can try values.
    pub hash_key: Option<String>,
}

/// A value that is logged.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Entry {
    /// The name of a value.
    Value(String),
    /// The name of a value, with its redaction.
    Table(EntryTable),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EntryTable {
    /// The name of a value, as in templates.
    pub value: String,
    /// The form in which the value is logged: `"hash"`, 16 hexadecimal digits that are the same for the same value;
    /// `"first 4"` or `"last 4"`, so many bytes; `"present"`, the word `present`; `"none"`, the value as it is, which
    /// credentials need to be logged whole.
    pub redact: Option<String>,
}
