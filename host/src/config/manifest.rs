//! The keys of a manifest. Unknown ones are errors.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// The keys of one file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// Further files: patterns with `*` in the last part, relative to this file, taken in order of their names.
    pub include: Vec<Spanned<String>>,
    /// Threads that serve; as many as there are cores if not given.
    pub workers: Option<Spanned<usize>>,
    /// The time that exchanges have to end after the first signal to stop; 30s if not given.
    pub drain_timeout: Option<Spanned<String>>,
    /// Sockets to listen at.
    pub listener: Vec<ListenerTable>,
    /// Named sets of endpoints.
    pub upstream: BTreeMap<Spanned<String>, UpstreamTable>,
    /// The routes, in any order.
    pub route: Vec<Spanned<RouteTable>>,
    /// A line for each exchange.
    pub access_log: Option<Spanned<AccessLogTable>>,
    /// Figures, state and reload.
    pub admin: Option<AdminTable>,
    /// Files to show in place of the proxy's own error pages, by status code (`"404"`) or class (`"5xx"`); relative to
    /// this file. In them `{status}`, `{reason}` and `{request-id}` stand for what they say.
    pub error_page: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Plugins with their configurations.
    pub plugin: BTreeMap<Spanned<String>, PluginTable>,
    /// The limits for the loading of a plugin's component.
    pub load: Option<LoadTable>,
    /// The name servers for endpoints.
    pub resolver: Option<ResolverTable>,
    /// The store of the plugins that cache.
    pub cache: Option<Spanned<CacheTable>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadTable {
    /// CPU time of the child process that loads a new component; 30s if not given.
    pub time: Option<Spanned<String>>,
    /// Memory of that process; 1 GiB if not given.
    pub memory: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CacheTable {
    /// The maximum memory for all workers; 256 MiB if not given.
    pub memory: Option<Spanned<String>>,
    /// The longest content that is stored; 16 MiB if not given, and never more than a sixteenth of the memory.
    pub max_object: Option<Spanned<String>>,
    /// The folder in which responses outlast the process.
    pub disk: Option<Spanned<DiskTable>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskTable {
    /// The folder; an empty one, or one that is made.
    pub path: Spanned<String>,
    /// The maximum size of the files.
    pub size: Spanned<String>,
    /// The longest content that is stored there; 1 GiB if not given, and never more than a sixteenth of the size.
    pub max_object: Option<Spanned<String>>,
}

impl Manifest {
    /// The files that it names besides plugins and includes, as it writes them.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        let listeners = self.listener.iter().filter_map(|listener| listener.tls.as_ref()).map(Spanned::get_ref);
        let shown = listeners.clone().flat_map(|tls| &tls.certificates);
        let upstreams = self.upstream.values().filter_map(|upstream| upstream.tls.as_ref()).map(Spanned::get_ref);
        let certificates = shown.chain(upstreams.clone().filter_map(|tls| tls.certificate.as_ref()));
        let certificates = certificates.flat_map(|files| [&files.get_ref().chain, &files.get_ref().key]);
        let authorities = listeners.filter_map(|tls| tls.client_ca.as_ref());
        let authorities = authorities.chain(upstreams.filter_map(|tls| tls.ca.as_ref()));
        let lists = self.upstream.values().flat_map(|upstream| &upstream.endpoints);
        let lists = lists.filter_map(|endpoint| endpoint.get_ref().file());
        let token = self.admin.iter().filter_map(|admin| admin.token_file.as_ref());
        certificates.chain(authorities).chain(self.error_page.values()).chain(lists).chain(token).map(Spanned::get_ref)
    }
}

/// A file with endpoints, by themselves.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointValue {
    /// The endpoints of a file, written as in an upstream.
    pub endpoints: Vec<Spanned<Endpoint>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolverTable {
    /// Addresses of name servers with their ports; the system's if not given.
    pub servers: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLogTable {
    /// `"combined"`, `"json"` or `"off"`; off if the table is not there.
    pub format: AccessLogFormat,
    /// A file, relative to this one, opened anew on SIGUSR1; standard output if not given.
    pub file: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    Combined,
    Json,
    Off,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AdminTable {
    /// An address, `unix:/path`, or `"off"`; `127.0.0.1:9145` if not given.
    pub address: Option<Spanned<String>>,
    /// The file with the token that changes over TCP need, relative to this file.
    pub token_file: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenerTable {
    /// `127.0.0.1:8080`, `[::]:80`, `unix:/run/plugway.sock`. Port 0 takes a free one and prints it.
    pub address: Spanned<String>,
    /// The listener speaks HTTPS.
    pub tls: Option<Spanned<TlsTable>>,
    /// `true`, or the port of HTTPS: every request is answered with 308 to the same URI with `https`.
    pub redirect_to_https: Option<Spanned<Redirect>>,
    /// Addresses or networks of load balancers that say with the PROXY protocol (version 1 or 2) who the client is.
    /// They have to; from others it is not taken.
    #[serde(default)]
    pub proxy_protocol_from: Vec<Spanned<String>>,
    /// Addresses and networks of proxies whose word about the client is taken, and `unix:` for all that connect to a unix
    /// socket.
    #[serde(default)]
    pub trusted_proxies: Vec<Spanned<String>>,
    /// The field in which these name the client: `"x-forwarded-for"`, `"forwarded"` or another; the first if not given.
    pub client_address_from: Option<Spanned<String>>,
    /// `"remove"`, `"reject"` or `"pass"`: what becomes of fields whose names origins take for those of others; remove if
    /// not given.
    pub field_aliases: Option<Spanned<String>>,
    /// The limits of a client.
    #[serde(default)]
    pub limits: ListenerLimits,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "wrong value: expected `true`, or the port of HTTPS, such as 443")]
pub enum Redirect {
    Switch(bool),
    Port(u16),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsTable {
    /// The one that bears the name which the client asks for is shown; the first where none does.
    pub certificates: Vec<Spanned<Certificate>>,
    /// `"1.2"` or `"1.3"`; 1.2 if not given.
    pub min_version: Option<Spanned<String>>,
    /// Whether HTTP/2 is offered; `true` if not given.
    pub http2: Option<bool>,
    /// A PEM file, relative to this one, with the authorities that client certificates are checked against.
    pub client_ca: Option<Spanned<String>>,
    /// `"required"` or `"optional"`; required if not given and there is a `client-ca`.
    pub client_certificate: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// A PEM file, relative to this one: the certificate, then its intermediates.
    pub chain: Spanned<String>,
    /// A PEM file, relative to this one.
    pub key: Spanned<String>,
}

/// The limits of a client; each has a default that is safe and serves ordinary clients.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenerLimits {
    /// The head of a request; `"32 KiB"` if not given.
    pub head: Option<Spanned<String>>,
    /// Fields of a request; 100 if not given.
    pub fields: Option<Spanned<usize>>,
    /// The target of a request; `"8 KiB"` if not given.
    pub target: Option<Spanned<String>>,
    /// For a head to be whole, from its first byte, and for the handshake of TLS; `"15s"` if not given.
    pub head_timeout: Option<Spanned<String>>,
    /// Between two requests; `"75s"` if not given.
    pub keep_alive: Option<Spanned<String>>,
    /// Requests on a connection; 10,000 if not given.
    pub requests: Option<Spanned<usize>>,
    /// Connections at this listener; 20,000 if not given.
    pub connections: Option<Spanned<usize>>,
    /// Connections of one client at this listener, an IPv4 address or an IPv6 /64 network; as many as `connections` if not given.
    pub connections_per_client: Option<Spanned<usize>>,
    /// Requests at a time on a connection with HTTP/2; 128 if not given.
    pub streams: Option<Spanned<usize>>,
    /// Between two pieces of a request's content; `"30s"` if not given.
    pub body_timeout: Option<Spanned<String>>,
    /// The least that a request's content has to make per second, over thirty seconds; `"128 B"` if not given.
    pub body_rate: Option<Spanned<String>>,
    /// For a client that takes nothing of its response; `"60s"` if not given.
    pub send_timeout: Option<Spanned<String>>,
    /// The least that a client has to take of its response per second, over half of `send-timeout`; `"128 B"` if not given.
    pub send_rate: Option<Spanned<String>>,
    /// The most that waits on a connection with HTTP/2 for its client, and as much for endpoints; `"1 MiB"` if not given.
    pub buffer: Option<Spanned<String>>,
    /// For an upgraded connection on which nothing passes; `"1h"` if not given.
    pub tunnel_timeout: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamTable {
    /// Addresses, each alone or in a table: `127.0.0.1:8000`, `unix:/path`; with `https://` or `h2c://` before it, TLS or
    /// HTTP/2 is spoken.
    pub endpoints: Vec<Spanned<Endpoint>>,
    /// The plugin that chooses among them; round robin if not given.
    pub balancer: Option<Spanned<PluginRef>>,
    /// How long a connect may take; 5s if not given.
    pub connect_timeout: Option<Spanned<String>>,
    /// How long the endpoint may take to begin its response; 60s if not given.
    pub response_timeout: Option<Spanned<String>>,
    /// How long the endpoint may pause within its response; 60s if not given.
    pub read_timeout: Option<Spanned<String>>,
    /// The longest pause of the endpoint while the request's content is unfinished too, as in gRPC's streams; 1h if not
    /// given.
    pub stream_timeout: Option<Spanned<String>>,
    /// How `https://` endpoints are spoken to.
    pub tls: Option<Spanned<UpstreamTls>>,
    /// `"v1"` or `"v2"`: tells the endpoint who the client is, on a connection for each request.
    pub proxy_protocol: Option<Spanned<String>>,
    /// How long an idle connection is kept; 60s if not given.
    pub idle_timeout: Option<Spanned<String>>,
    /// Idle connections that each worker keeps to each endpoint; 1024 if not given.
    pub idle_connections: Option<usize>,
    /// Asks endpoints whether they are well.
    pub health: Option<Spanned<HealthChecksTable>>,
    /// Takes endpoints out whose requests fail; `false` for never.
    #[serde(default)]
    pub outliers: TableOrOff<OutliersTable>,
    /// How long an endpoint that came back, or is new, takes to get its whole share; none if not given.
    pub slow_start: Option<Spanned<String>>,
    /// The percentage of healthy endpoints below which all endpoints are used; 1 if not given, 0 for never.
    pub panic_threshold: Option<Spanned<usize>>,
    /// Sends failed requests again, to another endpoint; `false` for never.
    #[serde(default)]
    pub retry: TableOrOff<RetryTable>,
    /// The limits of connections and requests over all workers; requests beyond get 503.
    #[serde(default)]
    pub limits: UpstreamLimits,
}

/// A table with defaults, or `false`.
#[derive(Debug)]
pub enum TableOrOff<T> {
    Off,
    On(T),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HealthChecksTable {
    /// `"http"`, `"tcp"` or `"grpc"`; http if not given.
    pub kind: Option<Spanned<String>>,
    /// The path of the GET request; `"/"` if not given.
    pub path: Option<Spanned<String>>,
    /// The `Host` of the request; the endpoint's address if not given.
    pub host: Option<Spanned<String>>,
    /// The good ones: codes, or classes as `"2xx"`; `["2xx", "3xx"]` if not given.
    pub statuses: Option<Spanned<Vec<Spanned<StatusWord>>>>,
    /// A text that has to be in the answer.
    pub content: Option<Spanned<String>>,
    /// Which service gRPC is asked about; the server as a whole if not given.
    pub service: Option<Spanned<String>>,
    /// Between two checks of an endpoint, a tenth more or less; `"5s"` if not given.
    pub interval: Option<Spanned<String>>,
    /// For all of a check; `"2s"` if not given.
    pub timeout: Option<Spanned<String>>,
    /// Checks in a row that bring an endpoint back; 2 if not given.
    pub healthy: Option<Spanned<usize>>,
    /// Checks in a row that take an endpoint out; 3 if not given.
    pub unhealthy: Option<Spanned<usize>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct OutliersTable {
    /// Failures in a row that take an endpoint out; 5 if not given; 0: however many, they don't.
    pub consecutive: Option<Spanned<usize>>,
    /// Responses that count as failures: codes, or classes as `"5xx"`; none if not given.
    pub statuses: Vec<Spanned<StatusWord>>,
    /// Failures among a hundred requests of an interval that take an endpoint out; none if not given.
    pub error_rate: Option<Spanned<usize>>,
    /// The mean latency that takes an endpoint out, in percent of the median of all; none if not given.
    pub latency: Option<Spanned<usize>>,
    /// An interval with fewer requests to an endpoint says nothing of it; 20 if not given.
    pub requests: Option<Spanned<usize>>,
    /// `"10s"` if not given.
    pub interval: Option<Spanned<String>>,
    /// How long an endpoint is out the first time, which then grows by as much; `"10s"` if not given.
    pub ejection: Option<Spanned<String>>,
    /// How long at most; `"5m"` if not given.
    pub longest_ejection: Option<Spanned<String>>,
    /// No more than this many percent of the endpoints are out at a time; 50 if not given.
    pub most: Option<Spanned<usize>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RetryTable {
    /// Attempts after the first; 2 if not given.
    pub retries: Option<Spanned<usize>>,
    /// After what: `"connect"`, `"reset"`, `"timeout"`, `"malformed"`, codes, or classes as `"5xx"`;
    /// `["connect", "reset"]` if not given.
    pub on: Option<Vec<Spanned<StatusWord>>>,
    /// `"idempotent"` or `"any"`: which requests are repeated that an endpoint may have acted on; idempotent if not
    /// given.
    pub methods: Option<Spanned<String>>,
    /// Retries among a hundred requests, beside ten per second and worker; 20 if not given.
    pub budget: Option<Spanned<usize>>,
    /// The longest content that is kept to be sent again; `"64 KiB"` if not given.
    pub buffer: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamLimits {
    /// Requests in flight; without limit if not given.
    pub requests: Option<Spanned<usize>>,
    /// Connections; without limit if not given.
    pub connections: Option<Spanned<usize>>,
    /// Requests that wait for a connection; 1,024 if not given.
    pub pending: Option<Spanned<usize>>,
    /// Bytes of a response's head; `"32 KiB"` if not given.
    pub response_head: Option<Spanned<String>>,
    /// Fields of a response's head; 500 if not given.
    pub response_fields: Option<Spanned<usize>>,
}

/// A status code, a class of them, or a word.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "wrong value: expected a status code such as 503, or a class such as \"5xx\"")]
pub enum StatusWord {
    Code(u16),
    Word(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamTls {
    /// A PEM file, relative to this one, with the authorities to trust; the system's if not given.
    pub ca: Option<Spanned<String>>,
    /// The name that the endpoint's certificate has to bear; the host of its address if not given.
    pub server_name: Option<Spanned<String>>,
    /// The certificate that the proxy presents to endpoints.
    pub certificate: Option<Spanned<Certificate>>,
    /// Takes any certificate, from whomever: for tests only.
    pub insecure_skip_verify: bool,
    /// Whether HTTP/2 is offered; `true` if not given.
    pub http2: Option<bool>,
}

#[derive(Debug)]
pub enum Endpoint {
    Address(String),
    Table(Box<EndpointTable>),
}

/// One of `address`, `dns`, `srv` and `file`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointTable {
    pub address: Option<Spanned<String>>,
    /// A name and a port: all its addresses are endpoints, for as long as their TTL says.
    pub dns: Option<Spanned<String>>,
    /// The name of a service, such as `_http._tcp.app.internal`.
    pub srv: Option<Spanned<String>>,
    /// A file with `endpoints`, relative to this one, read anew when it changes.
    pub file: Option<Spanned<String>>,
    /// 1 to 65535; 1 if not given.
    pub weight: Option<Spanned<i64>>,
    /// 0 is preferred, the next ones are for overflow; 0 if not given.
    pub tier: Option<Spanned<usize>>,
    /// The zone of the endpoint, for balancers that prefer near ones.
    pub zone: Option<String>,
    /// `true`: it gets nothing new.
    pub draining: bool,
}

impl Endpoint {
    /// Whether it says nothing but a file.
    pub fn is_file_alone(&self) -> bool {
        let Endpoint::Table(table) = self else { return false };
        let EndpointTable { address, dns, srv, file, weight, tier, zone, draining } = &**table;
        let says_more = address.is_some() || dns.is_some() || srv.is_some() || weight.is_some();
        file.is_some() && !says_more && tier.is_none() && zone.is_none() && !draining
    }

    /// Whether TLS may be spoken to it, as far as can be told without the file that it stands for.
    pub fn may_speak_tls(&self) -> bool {
        let is_https = |text: &str| text.starts_with("https://");
        match self {
            Endpoint::Address(address) => is_https(address),
            Endpoint::Table(table) => {
                let texts = [&table.address, &table.dns, &table.srv];
                table.file.is_some() || texts.into_iter().flatten().any(|text| is_https(text.get_ref()))
            }
        }
    }

    /// Returns the address of the endpoint, with its scheme; `None` for a name that is looked up and for a file.
    pub fn address(&self) -> Option<&str> {
        match self {
            Endpoint::Address(address) => Some(address),
            Endpoint::Table(table) => table.address.as_ref().map(|address| address.get_ref().as_str()),
        }
    }

    /// The file that it stands for.
    pub fn file(&self) -> Option<&Spanned<String>> {
        match self {
            Endpoint::Address(_) => None,
            Endpoint::Table(table) => table.file.as_ref(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RouteTable {
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
    pub query: BTreeMap<Spanned<String>, String>,
    /// The name of the upstream.
    pub upstream: Spanned<String>,
    /// The largest content of a request; `"1 GiB"` if not given. It is never held whole, so this protects the upstream.
    pub max_body: Option<Spanned<String>>,
    /// For the whole exchange, from its head to the last byte of the response; without limit if not given.
    pub timeout: Option<Spanned<String>>,
    /// The plugins that requests pass, in order.
    #[serde(default)]
    pub plugins: Vec<Spanned<PluginRef>>,
}

#[derive(Debug)]
pub enum Path {
    Below(String),
    Other(OtherPath),
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "PathTable")]
pub enum OtherPath {
    Exact(String),
    Prefix(String),
    Regex(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PathTable {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<String>,
}

impl TryFrom<PathTable> for OtherPath {
    type Error = &'static str;

    fn try_from(table: PathTable) -> Result<Self, Self::Error> {
        match table {
            PathTable { exact: Some(path), prefix: None, regex: None } => Ok(OtherPath::Exact(path)),
            PathTable { prefix: Some(path), exact: None, regex: None } => Ok(OtherPath::Prefix(path)),
            PathTable { regex: Some(path), exact: None, prefix: None } => Ok(OtherPath::Regex(path)),
            _ => Err(
                "a path is matched in one way: expected one of `exact`, `prefix` and `regex`, such as { exact = \"/x\" }",
            ),
        }
    }
}

#[derive(Debug)]
pub enum PluginRef {
    Name(String),
    Inline(Box<PluginTable>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PluginTable {
    /// A stock plugin, or a `.wasm` file, relative to this file.
    pub r#use: Spanned<String>,
    /// The configuration of the plugin, by its own schema.
    pub config: Option<toml::Table>,
    /// The limits of an instance.
    #[serde(default)]
    pub limits: PluginLimitsTable,
    /// `"fail"`, `"skip"`, or a status code.
    pub on_error: Option<Spanned<OnErrorValue>>,
    /// `"worker"` (an instance serves one request after the other) or `"request"` (each gets a fresh one).
    pub isolation: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PluginLimitsTable {
    /// `"16 MiB"` if not given.
    pub memory: Option<Spanned<String>>,
    /// CPU time per call; `"50ms"` if not given.
    pub cpu: Option<Spanned<String>>,
    /// Percent of a worker's time, 1 to 100; 50 if not given, and 100 is no limit.
    pub share: Option<Spanned<usize>>,
    /// Bodies at a time, over all workers; 256 if not given.
    pub bodies: Option<Spanned<usize>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "wrong value: expected \"fail\", \"skip\" or a status code such as 503")]
pub enum OnErrorValue {
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
        let expecting = "an address, or a table with `address`, `dns`, `srv` or `file`";
        text_or_table(deserializer, expecting, Endpoint::Address, |table| Endpoint::Table(Box::new(table)))
    }
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = "a path such as \"/api\", or a table with `exact`, `prefix` or `regex`";
        text_or_table(deserializer, expecting, Path::Below, Path::Other)
    }
}

impl<T: Default> Default for TableOrOff<T> {
    fn default() -> Self {
        TableOrOff::On(T::default())
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for TableOrOff<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TableOrFalse<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for TableOrFalse<T> {
            type Value = TableOrOff<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a table, or `false`")
            }

            fn visit_bool<E>(self, is_on: bool) -> Result<TableOrOff<T>, E> {
                Ok(if is_on { TableOrOff::default() } else { TableOrOff::Off })
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<TableOrOff<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(table)).map(TableOrOff::On)
            }
        }

        deserializer.deserialize_any(TableOrFalse(PhantomData))
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
