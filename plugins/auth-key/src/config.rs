//! The configuration as written in the manifest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// The keys that requests need, and where a request has its key.
///
/// Without `field`, `query` and `cookie`, the key is in the field `X-API-Key`. If several places are named, the first of
/// them that a request has decides: field, then query, then cookie.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(extend("x-plugway-guard" = true))]
pub struct Config {
    /// The keys: tables, or texts of many lines `NAME:sha256:DIGITS`, such as `"${file:keys.txt}"`; a list, or one text.
    pub keys: List,
    /// The field that has the key, such as `X-API-Key`.
    pub field: Option<String>,
    /// The authentication scheme before the key in the field, such as `Bearer`.
    pub scheme: Option<String>,
    /// The query parameter that has the key.
    pub query: Option<String>,
    /// The cookie that has the key.
    pub cookie: Option<String>,
    /// The owners whose requests are allowed; the owners of other keys get 403. All owners by default.
    pub owners: Option<Vec<String>>,
    /// The field that tells the upstream the owner's name; `X-Key-Owner` by default.
    pub owner_field: Option<String>,
    /// The note that has the owner's name; `key-owner` by default.
    pub owner_note: Option<String>,
    /// The name of the protected area in `WWW-Authenticate`; `api` by default.
    pub realm: Option<String>,
    /// `true`: the upstream receives the key. By default it is removed from the field, the query and the cookies.
    #[serde(default)]
    pub keep: bool,
}

/// The list of keys. Its schema takes more than its parser, because messages about schemas repeat values, and a value in the
/// wrong place may be a key.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum List {
    /// A list of several entries.
    Entries(Vec<Entry>),
    /// A text of lines of the form `NAME:sha256:DIGITS`.
    Lines(String),
}

/// An entry of the list of keys.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Entry {
    /// A table that describes one key.
    Key(Key),
    /// A text of lines of the form `NAME:sha256:DIGITS`.
    Lines(String),
}

/// A key, of which only the hash is known.
#[derive(Deserialize, JsonSchema)]
pub struct Key {
    /// The name of the key's owner; required.
    pub name: Option<String>,
    /// The hash of the key, as `sha256:` and 64 hexadecimal digits: `printf %s KEY | sha256sum` prints the digits; required.
    pub hash: Option<String>,
    /// Other keys of the table, which are errors.
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}
