//! The configuration as written in the manifest.

use schemars::JsonSchema;
use serde::Deserialize;

/// The clients that may send requests.
///
/// An entry of a list is an address such as `192.0.2.1`, a network such as `10.0.0.0/8`, or a text of many lines with one
/// of these in each: `"${file:blocklist.txt}"`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(extend("x-plugway-guard" = true))]
pub struct Config {
    /// The addresses and networks that are allowed.
    pub allow: Option<List>,
    /// The addresses and networks that are denied, even if they are allowed too.
    pub deny: Option<List>,
    /// The decision about addresses in neither list; `deny` by default if there is a list `allow`, else `allow`.
    pub default: Option<Decision>,
    /// The decision about clients without an address, such as those at a unix socket; that of `default` by default.
    pub without_address: Option<Decision>,
    /// The status of the response to a denied client: 403 or 404; 403 by default.
    pub status: Option<u16>,
    /// `true`: each denied request is logged with the address of its client.
    pub log: bool,
}

/// A list of addresses and networks, or one text of many lines.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("x-plugway-public" = true))]
pub enum List {
    /// A list of several entries.
    Entries(Vec<String>),
    /// A single text of many lines.
    Lines(String),
}

impl List {
    /// Returns the entries, each with its JSON pointer below the list.
    pub fn entries(&self) -> Vec<(String, &str)> {
        match self {
            List::Entries(entries) => {
                entries.iter().enumerate().map(|(place, entry)| (format!("/{place}"), entry.as_str())).collect()
            }
            List::Lines(text) => vec![(String::new(), text)],
        }
    }
}

/// A decision about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The request continues.
    Allow,
    /// The client gets an error.
    Deny,
}
