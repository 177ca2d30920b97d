//! The keys of a manifest. Unknown ones are errors.

use std::collections::BTreeMap;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// One file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// Further files: patterns with `*` in the last part, relative to this file, taken in order of their names.
    pub include: Vec<Spanned<String>>,
    /// Threads that serve; as many as there are cores if not given.
    pub workers: Option<Spanned<usize>>,
    /// How long exchanges may go on after the first signal to stop; 30s if not given.
    pub drain_timeout: Option<Spanned<String>>,
    /// Sockets to listen at.
    pub listener: Vec<Listener>,
    /// Named sets of endpoints.
    pub upstream: BTreeMap<Spanned<String>, Upstream>,
    /// What goes where.
    pub route: Vec<Spanned<Route>>,
    /// A line for each exchange.
    pub access_log: Option<Spanned<AccessLog>>,
    /// Figures, state and reload.
    pub admin: Option<Admin>,
    /// Plugins with their configurations.
    pub plugin: BTreeMap<Spanned<String>, Plugin>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// `"combined"`, `"json"` or `"off"`; off if the table is not there.
    pub format: AccessLogFormat,
    /// A file, relative to this one, opened anew on SIGUSR1; standard output if not given.
    pub file: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    Combined,
    Json,
    Off,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// An address, or `"off"`; `127.0.0.1:9145` if not given.
    pub address: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// `127.0.0.1:8080`, `[::]:80`, `unix:/run/plugway.sock`. Port 0 takes a free one and prints it.
    pub address: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Upstream {
    /// Addresses, each alone or with a weight.
    pub endpoints: Vec<Spanned<Endpoint>>,
    /// The plugin that chooses among them; round robin if not given.
    pub balancer: Option<Spanned<PluginRef>>,
    /// How long a connect may take; 5s if not given.
    pub connect_timeout: Option<Spanned<String>>,
    /// How long the endpoint may take to begin its response; 60s if not given.
    pub response_timeout: Option<Spanned<String>>,
    /// How long an idle connection is kept; 60s if not given.
    pub idle_timeout: Option<Spanned<String>>,
    /// Idle connections that each worker keeps to each endpoint; 128 if not given.
    pub idle_connections: Option<usize>,
}

#[derive(Debug)]
pub enum Endpoint {
    Address(String),
    Weighted(WeightedEndpoint),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedEndpoint {
    pub address: String,
    /// 1 to 65535; 1 if not given.
    pub weight: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The name in logs and figures; made from host and path if not given.
    pub name: Option<String>,
    /// `example.org`, `*.example.org`; any if not given.
    #[serde(default)]
    pub hosts: Vec<Spanned<String>>,
    /// `"/api"` stands for this path and all below it; `{ exact = "/x" }` and `{ regex = "^/x[0-9]" }` for others.
    pub path: Option<Spanned<Path>>,
    /// One of these methods.
    #[serde(default)]
    pub methods: Vec<Spanned<String>>,
    /// All of these fields with these values; `"*"` for any value.
    #[serde(default)]
    pub fields: BTreeMap<Spanned<String>, String>,
    /// All of these query parameters with these values; `"*"` for any value.
    #[serde(default)]
    pub query: BTreeMap<String, String>,
    /// Where to.
    pub upstream: Spanned<String>,
    /// What requests pass on the way, from the outside in.
    #[serde(default)]
    pub plugins: Vec<Spanned<PluginRef>>,
}

#[derive(Debug)]
pub enum Path {
    Below(String),
    Other(OtherPath),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherPath {
    Exact(String),
    Prefix(String),
    Regex(String),
}

#[derive(Debug)]
pub enum PluginRef {
    Name(String),
    Inline(Box<Plugin>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Plugin {
    /// A stock plugin, or a `.wasm` file, relative to this file.
    pub r#use: Spanned<String>,
    /// What the plugin is told, by its own schema.
    pub config: Option<toml::Table>,
    /// What an instance may use.
    #[serde(default)]
    pub limits: Limits,
    /// `"fail"`, `"skip"`, or a status code.
    pub on_error: Option<Spanned<OnError>>,
    /// `"worker"` (an instance serves one request after the other) or `"request"` (each gets a fresh one).
    pub isolation: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// `"16 MiB"` if not given.
    pub memory: Option<Spanned<String>>,
    /// Time per call; `"50ms"` if not given.
    pub cpu: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "\"fail\", \"skip\" or a status code")]
pub enum OnError {
    Word(String),
    Status(u16),
}

impl<'de> Deserialize<'de> for PluginRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = "the name of a plugin, or a table with `use` and `config`";
        text_or_table(deserializer, expecting, PluginRef::Name, |plugin| PluginRef::Inline(Box::new(plugin)))
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = "an address, or a table with `address` and `weight`";
        text_or_table(deserializer, expecting, Endpoint::Address, Endpoint::Weighted)
    }
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = "a path, or a table with `exact`, `prefix` or `regex`";
        text_or_table(deserializer, expecting, Path::Below, Path::Other)
    }
}

/// Takes a text or a table. By hand, since what serde derives for untagged enums loses the places of values and the
/// names of unknown keys.
fn text_or_table<'de, D: Deserializer<'de>, Table: Deserialize<'de>, T>(
    deserializer: D,
    expecting: &'static str,
    of_text: fn(String) -> T,
    of_table: fn(Table) -> T,
) -> Result<T, D::Error> {
    struct TextOrTable<Table, T> {
        expecting: &'static str,
        of_text: fn(String) -> T,
        of_table: fn(Table) -> T,
    }

    impl<'de, Table: Deserialize<'de>, T> Visitor<'de> for TextOrTable<Table, T> {
        type Value = T;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.expecting)
        }

        fn visit_str<E>(self, text: &str) -> Result<T, E> {
            Ok((self.of_text)(text.into()))
        }

        fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<T, A::Error> {
            Table::deserialize(MapAccessDeserializer::new(table)).map(self.of_table)
        }
    }

    deserializer.deserialize_any(TextOrTable { expecting, of_text, of_table })
}
