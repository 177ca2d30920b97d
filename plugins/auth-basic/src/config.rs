//! The configuration as written in the manifest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// The users whose requests are allowed, by name and password (HTTP Basic, RFC 7617).
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(extend("x-plugway-guard" = true))]
pub struct Config {
    /// The users: tables, or texts of many lines `NAME:HASH`, such as `"${file:htpasswd}"`; a list, or one text.
    pub users: List,
    /// The name of the protected area in `WWW-Authenticate`, which browsers show; `restricted` by default.
    pub realm: Option<String>,
    /// The field that tells the upstream the user's name; `X-Remote-User` by default.
    pub user_field: Option<String>,
    /// The note that has the user's name; `user` by default.
    pub user_note: Option<String>,
    /// The time for which a verified password is not verified again, of at most `1h`; `5m` by default, and `0s` for never.
    pub remember: Option<String>,
    /// `true`: the upstream receives the field `Authorization`. By default it is removed.
    #[serde(default)]
    pub keep: bool,
}

/// The list of users. Its schema takes more than its parser, because messages about schemas repeat values, and a value in
/// the wrong place may be a password.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum List {
    /// A list of several entries.
    Entries(Vec<Entry>),
    /// A text of lines of the form `NAME:HASH`.
    Lines(String),
}

/// An entry of the list of users.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Entry {
    /// A table that describes one user.
    User(User),
    /// A text of lines of the form `NAME:HASH`.
    Lines(String),
}

/// A user, of whose password only the hash is known.
#[derive(Deserialize, JsonSchema)]
pub struct User {
    /// The name of the user; required.
    pub name: Option<String>,
    /// The hash of the password, by bcrypt, Argon2 or SHA-crypt, such as `plugway hash-password` prints it; required.
    pub hash: Option<String>,
    /// Other keys of the table, which are errors.
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}
