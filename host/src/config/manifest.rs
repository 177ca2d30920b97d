//! The keys of a manifest. Unknown keys are errors.
//!
//! The tables of `docs/manifest.md` are made from the comments of the fields here: a test fails if they differ. The
//! last line of each comment has the type of the value, its default (or that it is required), and an example where the
//! default does not show how a value is written. `PLUGWAY_BLESS=1` writes the tables again.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::plugin_grants::PluginGrants;
use super::spanned::Spanned;

/// The keys at the top of a file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// Reads further files, in the order of these patterns, then of their names. `*` stands for any characters, in the
    /// last part of a path only; names that begin with a dot are left out, unless the pattern begins with one. Included
    /// files include no files.
    ///
    /// Type: list of paths. Default: none. Example: `["sites/*.toml"]`.
    pub include: Vec<Spanned<String>>,
    /// The number of threads that serve, from 1 to 1024. A change takes effect at the next start, not by a reload.
    ///
    /// Type: number. Default: one per core. Example: `2`.
    pub workers: Option<Spanned<usize>>,
    /// The time that exchanges in progress have to end after the first signal to stop. Exchanges that are cut off then
    /// are warnings in the log. A service manager has to wait for longer, such as by `TimeoutStopSec=` of systemd.
    ///
    /// Type: duration. Default: `"30s"`.
    pub drain_timeout: Option<Spanned<String>>,
    /// The addresses that accept connections. At least one is required.
    ///
    /// Type: list of tables `[[listener]]`. Required.
    pub listener: Vec<ListenerTable>,
    /// The named sets of endpoints.
    ///
    /// Type: tables `[upstream.NAME]`. Default: none.
    pub upstream: BTreeMap<Spanned<String>, UpstreamTable>,
    /// The routes, in any order. At least one is required, unless every listener has `redirect-to-https`.
    ///
    /// Type: list of tables `[[route]]`. Required.
    pub route: Vec<Spanned<RouteTable>>,
    /// Writes one line for each exchange.
    ///
    /// Type: table `[access-log]`. Default: no access log.
    pub access_log: Option<Spanned<AccessLogTable>>,
    /// The address and the token of the admin listener.
    ///
    /// Type: table `[admin]`. Default: its defaults.
    pub admin: Option<AdminTable>,
    /// Files that replace the pages of Plugway's own errors: the key is a status code from 400 to 599, or a class
    /// (`"4xx"`, `"5xx"`), and a code takes precedence over its class. `{status}`, `{reason}` and `{request-id}` in a
    /// file are replaced.
    ///
    /// Type: table `[error-page]` of paths. Default: small built-in pages. Example: `{ 404 = "pages/lost.html" }`.
    pub error_page: BTreeMap<Spanned<String>, Spanned<String>>,
    /// The file that switches the maintenance of all routes on, except those with `maintenance` of their own: while it exists,
    /// every request of these routes gets 503 with `Retry-After` and the error page for 503.
    ///
    /// Type: path, or table as `[route.maintenance]`. Default: none. Example: `"down"`, `{ file = "down", retry-after =
    /// "10m" }`.
    pub maintenance: Option<Spanned<MaintenanceEntry>>,
    /// The configured plugins.
    ///
    /// Type: tables `[plugin.NAME]`. Default: none.
    pub plugin: BTreeMap<Spanned<String>, PluginTable>,
    /// The limits for loading a component that was not loaded before.
    ///
    /// Type: table `[load]`. Default: its defaults.
    pub load: Option<LoadTable>,
    /// The name servers that `dns` and `srv` of endpoints are looked up at.
    ///
    /// Type: table `[resolver]`. Default: those of `/etc/resolv.conf`.
    pub resolver: Option<ResolverTable>,
    /// The room for bodies that wait for a slow client or are received before an endpoint is asked.
    ///
    /// Type: table `[buffers]`. Default: its defaults.
    pub buffers: Option<BuffersTable>,
    /// The store for responses, which all plugins that cache share.
    ///
    /// Type: table `[cache]`. Default: its defaults.
    pub cache: Option<Spanned<CacheTable>>,
    /// The state that the instances of a plugin share, for each plugin with `grants.shared`.
    ///
    /// Type: table `[shared]`. Default: its defaults.
    pub shared: Option<SharedTable>,
}

/// The state that the instances of a plugin share: its limits, and the server that has it for a fleet of proxies.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SharedTable {
    /// The memory of a plugin's entries, over all workers, at least `8 MiB`. An entry takes 128 bytes besides its key and
    /// its value. Without room, the entries that were not used for the longest time are evicted.
    ///
    /// Type: size. Default: `"16 MiB"`.
    pub memory: Option<Spanned<String>>,
    /// The most entries of a plugin, over all workers, from 1024 to 10,000,000.
    ///
    /// Type: number. Default: `100000`.
    pub entries: Option<Spanned<usize>>,
    /// The Redis or Valkey server that has the state, so that all proxies with the same server and `prefix` share it: a URL
    /// with `redis`, `rediss` (TLS) or `unix` as its scheme, and the number of a database if it is not 0. Calls of plugins
    /// then wait for the server, and `memory` and `entries` limit only what `fallback` keeps
    /// ([shared-state.md](shared-state.md#a-fleet-with-one-state)).
    ///
    /// Type: URL. Default: none, each process has a state of its own. Example: `"redis://cache.internal:6379/0"`.
    pub redis: Option<Spanned<String>>,
    /// The user at the server, in place of one in the URL.
    ///
    /// Type: string. Default: none, the server's default user. Example: `"plugway"`.
    pub user: Option<Spanned<String>>,
    /// The password at the server, in place of one in the URL.
    ///
    /// Type: string. Default: none. Example: `"${file:secrets/token}"`.
    pub password: Option<Spanned<String>>,
    /// The file with the authorities that may certify the server of a `rediss` URL, in PEM.
    ///
    /// Type: path. Default: none, the system's authorities. Example: `"ca.pem"`.
    pub ca: Option<Spanned<String>>,
    /// The beginning of all keys on the server; the name of the plugin and a colon follow.
    ///
    /// Type: string. Default: `"plugway:"`.
    pub prefix: Option<Spanned<String>>,
    /// The longest time of a call that asks the server, from `1ms` to `1m`. After a call that took longer, the server gets a
    /// ping. If it doesn't answer that in the same time, it is only asked again once it answers another one.
    ///
    /// Type: duration. Default: `"500ms"`.
    pub timeout: Option<Spanned<String>>,
    /// The most commands that wait for the server's answer at a time, from 1 to 10,000; others wait for their turn within
    /// `timeout`. A plugin has a quarter of them at most, and at least one. Besides, commands and answers under way have
    /// 4 MiB, and those of a plugin 1 MiB, whatever this number is.
    ///
    /// Type: number. Default: `256`.
    pub commands: Option<Spanned<usize>>,
    /// The answer of calls while the server is not available: `"error"` lets them fail with an error that plugins can
    /// handle; by `"local"`, the state of this process answers.
    ///
    /// Type: `"error"` or `"local"`. Default: `"error"`.
    pub fallback: Option<Spanned<String>>,
}

/// The limits of the child process that compiles a new component and checks its configurations.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoadTable {
    /// The CPU time of the child process, from `1s` to `1h`. Four times as much wall time may pass if other processes
    /// need the cores.
    ///
    /// Type: duration. Default: `"60s"`.
    pub time: Option<Spanned<String>>,
    /// The memory of the child process, from `256 MiB` to `64 GiB`.
    ///
    /// Type: size. Default: `"1 GiB"`.
    pub memory: Option<Spanned<String>>,
}

/// The room for bodies that wait for a slow peer, over all workers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BuffersTable {
    /// The memory for such bodies, at least `4 MiB`. One body has at most a sixteenth of it, and then goes into a file.
    /// Without room, bodies are streamed as their peers send and take them. The responses that plugins make, and lists of
    /// folders, have three quarters of what everything else leaves, for each route, and each client has three quarters of what
    /// the other clients of the route leave of that; beyond that they are 503.
    ///
    /// Type: size. Default: `"64 MiB"`.
    pub memory: Option<Spanned<String>>,
    /// The size of all files together; `0 B` for none. Without room, endpoints wait for slow clients.
    ///
    /// Type: size. Default: `"4 GiB"`.
    pub disk: Option<Spanned<String>>,
    /// The folder for the files. They have no names, and their room is free again when the process ends.
    ///
    /// Type: path. Default: the folder for temporary files. Example: `"/var/tmp"`.
    pub folder: Option<Spanned<String>>,
}

/// The store for responses.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CacheTable {
    /// The memory for stored responses, over all workers; at least `1 MiB`.
    ///
    /// Type: size. Default: `"256 MiB"`.
    pub memory: Option<Spanned<String>>,
    /// The longest body that is stored, at most a sixteenth of `memory`.
    ///
    /// Type: size. Default: `"16 MiB"`, or a sixteenth of `memory` if that is less.
    pub max_object: Option<Spanned<String>>,
    /// Stores responses on disk too, so that they outlast the process.
    ///
    /// Type: table `[cache.disk]`. Default: memory only.
    pub disk: Option<Spanned<DiskTable>>,
}

/// The part of the store that is on disk.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskTable {
    /// The folder for the files: an empty one, one that an earlier process filled, or one that is to be created.
    ///
    /// Type: path. Required. Example: `"/var/cache/plugway/responses"`.
    pub path: Spanned<String>,
    /// The size of all files together, at least `16 MiB`.
    ///
    /// Type: size. Required. Example: `"10 GiB"`.
    pub size: Spanned<String>,
    /// The longest body that is stored on disk, at most a sixteenth of `size`.
    ///
    /// Type: size. Default: `"1 GiB"`, or a sixteenth of `size` if that is less.
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
        let routes = || self.route.iter().map(Spanned::get_ref);
        let pages = self.error_page.values().chain(routes().flat_map(|route| route.error_page.values()));
        let responses = routes().filter_map(|route| route.respond.as_ref()?.get_ref().file.as_ref());
        let files = certificates.chain(authorities).chain(pages).chain(lists).chain(token).chain(responses);
        files.map(Spanned::get_ref)
    }
}

/// A file that holds endpoints and nothing else.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointValue {
    /// The endpoints, written as in an upstream, except for `file`.
    ///
    /// Type: list of endpoints. Required. Example: `["10.0.0.1:8000", { address = "10.0.0.2:8000", weight = 2 }]`.
    pub endpoints: Vec<Spanned<EndpointEntry>>,
}

/// The name servers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolverTable {
    /// The addresses of name servers, with their ports. At least one is required.
    ///
    /// Type: list of addresses. Required. Example: `["10.0.0.53:53"]`.
    pub servers: Vec<Spanned<String>>,
}

/// The access log.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLogTable {
    /// The form of a line: `"combined"` as Apache and nginx write it, or `"json"`. `"off"` writes no access log.
    ///
    /// Type: `"combined"`, `"json"` or `"off"`. Required.
    pub format: AccessLogFormat,
    /// A file or a named pipe that lines are appended to. Plugway opens it again on SIGUSR1.
    ///
    /// Type: path. Default: standard output. Example: `"access.log"`.
    pub file: Option<Spanned<String>>,
}

/// The form of a line of the access log.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    Combined,
    Json,
    Off,
}

/// The admin listener.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AdminTable {
    /// The address of `/status`, `/metrics` and commands: an IP address with a port, or a unix socket instead of TCP.
    /// `"off"` serves them nowhere, not even at the admin socket that `plugway reload` finds. The default is skipped while
    /// another process uses it.
    ///
    /// Type: address, `"unix:/path"` or `"off"`. Default: `"127.0.0.1:9145"`.
    pub address: Option<Spanned<String>>,
    /// A file with the token that changes over TCP need; at an address that is not loopback, every request needs the
    /// token. The file has 16 to 512 visible ASCII characters, and users other than its owner and group must not be
    /// able to read it.
    ///
    /// Type: path. Default: none, and no changes over TCP. Example: `"admin.token"`.
    pub token_file: Option<Spanned<String>>,
}

/// An address that accepts connections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenerTable {
    /// The IP address and port, or the unix socket. Port 0 takes a free port, which the log names. A reload opens and
    /// closes the sockets that have changed. `[::]` accepts IPv6 alone. Of listeners at one port, that of the most
    /// specific address gets a connection.
    ///
    /// Type: address or `"unix:/path"`. Required. Example: `"0.0.0.0:80"`, `"[::]:80"`, `"unix:/run/plugway.sock"`.
    pub address: Spanned<String>,
    /// The mode of the file of a unix socket, in octal. Clients need the permission to write, and the permission to enter
    /// the folder. Without this key, the mode is that which the umask of the process leaves: mostly 0755, with which
    /// only processes of the same user connect.
    ///
    /// Type: octal digits. Default: by the umask. Example: `"0660"`, `"0666"`.
    pub mode: Option<Spanned<String>>,
    /// The TLS settings; with them, the listener serves HTTPS.
    ///
    /// Type: table `[listener.tls]`. Default: no TLS.
    pub tls: Option<Spanned<TlsTable>>,
    /// Answers every request with 308 to the same URI with `https`: at port 443, or at this port.
    ///
    /// Type: boolean or port. Default: `false`. Example: `true`, `8443`.
    pub redirect_to_https: Option<Spanned<RedirectToHttps>>,
    /// The addresses and networks of load balancers that must name the client by the PROXY protocol, version 1 or 2.
    /// From other addresses the protocol is not accepted. `"unix:"` stands for all that connect to a unix socket.
    ///
    /// Type: list of networks. Default: none. Example: `["10.0.0.0/8", "2001:db8::1"]`.
    #[serde(default)]
    pub proxy_protocol_from: Vec<Spanned<String>>,
    /// The addresses and networks of proxies that name the client in a field. `"unix:"` stands for all that connect to
    /// a unix socket.
    ///
    /// Type: list of networks. Default: none. Example: `["10.0.0.0/8"]`.
    #[serde(default)]
    pub trusted_proxies: Vec<Spanned<String>>,
    /// The field in which trusted proxies name the client: `"x-forwarded-for"`, `"forwarded"` (RFC 7239), or the name
    /// of a field that holds addresses. It needs `trusted-proxies`.
    ///
    /// Type: field name. Default: `"x-forwarded-for"`. Example: `"cf-connecting-ip"`.
    pub client_address_from: Option<Spanned<String>>,
    /// The handling of request fields that origins confuse with others, such as `X_User` and `Proxy`: `"remove"`
    /// removes the fields, `"reject"` answers with 400, `"pass"` keeps them.
    ///
    /// Type: `"remove"`, `"reject"` or `"pass"`. Default: `"remove"`.
    pub field_aliases: Option<Spanned<String>>,
    /// The limits of the clients of this listener.
    ///
    /// Type: table `[listener.limits]`. Default: its defaults.
    #[serde(default)]
    pub limits: ListenerLimits,
}

/// Whether a listener redirects to HTTPS, or the port that it redirects to.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "wrong value: expected `true`, or the port of HTTPS, such as 443")]
pub enum RedirectToHttps {
    Switch(bool),
    Port(u16),
}

impl RedirectToHttps {
    /// Returns the port that the listener redirects to; `None` if it doesn't redirect.
    pub fn port(&self) -> Option<u16> {
        match self {
            RedirectToHttps::Switch(on) => on.then_some(443),
            RedirectToHttps::Port(port) => Some(*port),
        }
    }
}

/// The TLS settings of a listener.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsTable {
    /// The certificates with their keys. A client gets the certificate that bears the name it asks for, or the first
    /// one if none does.
    ///
    /// Type: list of certificates. Required. Example: `[{ chain = "cert.pem", key = "key.pem" }]`.
    pub certificates: Vec<Spanned<Certificate>>,
    /// The lowest version of TLS that is accepted.
    ///
    /// Type: `"1.2"` or `"1.3"`. Default: `"1.2"`.
    pub min_version: Option<Spanned<String>>,
    /// Whether HTTP/2 is offered to clients.
    ///
    /// Type: boolean. Default: `true`.
    pub http2: Option<bool>,
    /// A PEM file with the authorities that client certificates are verified by.
    ///
    /// Type: path. Default: no client certificates. Example: `"ca.pem"`.
    pub client_ca: Option<Spanned<String>>,
    /// Whether clients must show a certificate, or may. It needs `client-ca`.
    ///
    /// Type: `"required"` or `"optional"`. Default: `"required"`.
    pub client_certificate: Option<Spanned<String>>,
}

/// A certificate with its key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// A PEM file with the certificate, followed by its intermediate certificates.
    ///
    /// Type: path. Required. Example: `"cert.pem"`.
    pub chain: Spanned<String>,
    /// A PEM file with the private key.
    ///
    /// Type: path. Required. Example: `"key.pem"`.
    pub key: Spanned<String>,
}

/// The limits of a listener's clients. Each default is safe and serves ordinary clients.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenerLimits {
    /// The longest request head, from `1 KiB` to `16 MiB`; beyond it 431.
    ///
    /// Type: size. Default: `"32 KiB"`.
    pub head: Option<Spanned<String>>,
    /// The most fields of a request, up to 10,000; beyond it 431.
    ///
    /// Type: number. Default: `100`.
    pub fields: Option<Spanned<usize>>,
    /// The longest request target, at most as long as `head`; beyond it 414.
    ///
    /// Type: size. Default: `"8 KiB"`.
    pub target: Option<Spanned<String>>,
    /// The time for a request head, from its first byte, after which the client gets 408; also for a TLS handshake.
    ///
    /// Type: duration. Default: `"15s"`.
    pub head_timeout: Option<Spanned<String>>,
    /// The time between two requests, after which the connection is closed.
    ///
    /// Type: duration. Default: `"75s"`.
    pub keep_alive: Option<Spanned<String>>,
    /// The most requests on one connection, which is closed afterwards.
    ///
    /// Type: number. Default: `10000`.
    pub requests: Option<Spanned<usize>>,
    /// The most connections at this listener at a time.
    ///
    /// Type: number. Default: `20000`.
    pub connections: Option<Spanned<usize>>,
    /// The most connections of one client at a time: of an IPv4 address, or of an IPv6 /64 network. Behind a trusted
    /// proxy, the most requests of one client at a time; beyond it 429.
    ///
    /// Type: number. Default: the value of `connections`. Example: `100`.
    pub connections_per_client: Option<Spanned<usize>>,
    /// The most requests at a time on one HTTP/2 connection, up to 10,000.
    ///
    /// Type: number. Default: `128`.
    pub streams: Option<Spanned<usize>>,
    /// The longest time between two pieces of a request body; beyond it 408.
    ///
    /// Type: duration. Default: `"30s"`.
    pub body_timeout: Option<Spanned<String>>,
    /// The least bytes of a request body per second, measured over 30 seconds, up to `1 GiB`; below it 408.
    ///
    /// Type: size. Default: `"128 B"`.
    pub body_rate: Option<Spanned<String>>,
    /// The longest time in which a client accepts nothing of a response. Beyond it the connection is reset, or the
    /// HTTP/2 connection is closed if none of its streams advances. A client whose HTTP/2 connection is ending has ten
    /// times as long to read the rest.
    ///
    /// Type: duration. Default: `"60s"`.
    pub send_timeout: Option<Spanned<String>>,
    /// The least bytes of a response that a waiting client must accept per second, up to `1 GiB`. A client that accepts
    /// less in two windows, each half of `send-timeout`, is cut off: over HTTP/2, its stream is reset.
    ///
    /// Type: size. Default: `"128 B"`.
    pub send_rate: Option<Spanned<String>>,
    /// The bytes of responses that wait in memory for the client of one connection; beyond them, responses wait in files.
    /// Over HTTP/2, as many bytes again are on their way to the client, with 8 KiB for each stream in any case, and as
    /// many bytes of requests wait for endpoints. From `64 KiB` to `1 GiB`.
    ///
    /// Type: size. Default: `"1 MiB"`.
    pub buffer: Option<Spanned<String>>,
    /// The longest head, and the longest trailers, of a response over HTTP/2 to a client that doesn't say how much it
    /// accepts, from `1 KiB` to `16 MiB`; beyond it 502. Clients may end their connection, with all its requests, for more:
    /// HAProxy does so beyond `16 KiB`.
    ///
    /// Type: size. Default: `"128 KiB"`.
    pub response_head: Option<Spanned<String>>,
    /// The most fields of a response over HTTP/2, up to 10,000; beyond it 502. HAProxy ends its connection for twice `100`.
    ///
    /// Type: number. Default: `10000`.
    pub response_fields: Option<Spanned<usize>>,
    /// The longest time in which nothing passes through a tunnel, such as a WebSocket, before it is closed.
    ///
    /// Type: duration. Default: `"1h"`.
    pub tunnel_timeout: Option<Spanned<String>>,
}

/// A named set of endpoints.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamTable {
    /// The endpoints: addresses such as `"127.0.0.1:8000"`, `"unix:/run/app.sock"` or `"app.internal:8000"`, or tables.
    /// `https://` before an address speaks TLS, `h2c://` speaks HTTP/2 without TLS. From 1 to 1,024, with those of files.
    ///
    /// Type: list of endpoints. Required. Example: `["127.0.0.1:8000", { dns = "app.internal:8000" }]`.
    pub endpoints: Vec<Spanned<EndpointEntry>>,
    /// The plugin that chooses an endpoint for each attempt: its name, or a table as `[plugin.NAME]`.
    ///
    /// Type: plugin. Default: round robin, by `balance`. Example: `{ use = "balance", config = { policy =
    /// "least-connections" } }`.
    pub balancer: Option<Spanned<PluginRef>>,
    /// The time to establish a connection, with its TLS handshake; beyond it 504. A request waits once for each
    /// endpoint.
    ///
    /// Type: duration. Default: `"5s"`.
    pub connect_timeout: Option<Spanned<String>>,
    /// The time until the head of the response; beyond it 504.
    ///
    /// Type: duration. Default: `"60s"`.
    pub response_timeout: Option<Spanned<String>>,
    /// The longest time between two pieces of a response, after which the response is cut off.
    ///
    /// Type: duration. Default: `"60s"`.
    pub read_timeout: Option<Spanned<String>>,
    /// The longest time between two pieces of a response while the request body is unfinished too, as in streams of
    /// gRPC, if it is longer than `read-timeout`.
    ///
    /// Type: duration. Default: `"1h"`.
    pub stream_timeout: Option<Spanned<String>>,
    /// The TLS settings for `https://` endpoints.
    ///
    /// Type: table `[upstream.NAME.tls]`. Default: its defaults.
    pub tls: Option<Spanned<UpstreamTls>>,
    /// Tells endpoints who the client is by the PROXY protocol of this version, on a connection for each request.
    ///
    /// Type: `"v1"` or `"v2"`. Default: none.
    pub proxy_protocol: Option<Spanned<String>>,
    /// The time for which an idle connection is kept.
    ///
    /// Type: duration. Default: `"60s"`.
    pub idle_timeout: Option<Spanned<String>>,
    /// The most idle connections that each worker keeps to each endpoint.
    ///
    /// Type: number. Default: `1024`.
    pub idle_connections: Option<usize>,
    /// Checks the health of endpoints.
    ///
    /// Type: table `[upstream.NAME.health]`. Default: no checks.
    pub health: Option<Spanned<HealthChecksTable>>,
    /// Ejects endpoints whose requests fail; `false` ejects none.
    ///
    /// Type: table `[upstream.NAME.outliers]` or `false`. Default: its defaults.
    #[serde(default)]
    pub outliers: TableOrOff<OutliersTable>,
    /// The time in which the share of an endpoint grows to its full weight, after it has returned or joined others.
    ///
    /// Type: duration. Default: no slow start. Example: `"30s"`.
    pub slow_start: Option<Spanned<String>>,
    /// The percentage of endpoints that are up below which all are used, from 0 to 100. With 0, all are never used, and
    /// clients get 503.
    ///
    /// Type: number. Default: `1`.
    pub panic_threshold: Option<Spanned<usize>>,
    /// Sends failed requests again, to another endpoint if there is one; `false` never does.
    ///
    /// Type: table `[upstream.NAME.retry]` or `false`. Default: its defaults.
    #[serde(default)]
    pub retry: TableOrOff<RetryTable>,
    /// The limits of requests, connections and response heads.
    ///
    /// Type: table `[upstream.NAME.limits]`. Default: its defaults.
    #[serde(default)]
    pub limits: UpstreamLimits,
}

impl UpstreamTable {
    /// Returns the table of an endpoint that is alone, with the defaults of all other keys.
    pub fn of(endpoint: Spanned<EndpointEntry>) -> Self {
        UpstreamTable {
            endpoints: vec![endpoint],
            balancer: None,
            connect_timeout: None,
            response_timeout: None,
            read_timeout: None,
            stream_timeout: None,
            tls: None,
            proxy_protocol: None,
            idle_timeout: None,
            idle_connections: None,
            health: None,
            outliers: TableOrOff::default(),
            slow_start: None,
            panic_threshold: None,
            retry: TableOrOff::default(),
            limits: UpstreamLimits::default(),
        }
    }
}

/// A table with defaults, or `false`.
#[derive(Debug)]
pub enum TableOrOff<T> {
    Off,
    On(T),
}

/// A size, or `false`.
#[derive(Debug, PartialEq, Eq)]
pub enum SizeOrOff {
    Off,
    Size(String),
}

/// The health checks of an upstream.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HealthChecksTable {
    /// The kind of check: a GET request, a connection (with TLS for `https://`), or a call of gRPC's health service,
    /// which needs `h2c://` or `https://`.
    ///
    /// Type: `"http"`, `"tcp"` or `"grpc"`. Default: `"http"`.
    pub kind: Option<Spanned<String>>,
    /// The path of the request, for `"http"`.
    ///
    /// Type: path of a URI. Default: `"/"`. Example: `"/healthz"`.
    pub path: Option<Spanned<String>>,
    /// The `Host` of the request, for `"http"`.
    ///
    /// Type: host. Default: the endpoint's address. Example: `"app.internal"`.
    pub host: Option<Spanned<String>>,
    /// The statuses of a healthy endpoint, for `"http"`.
    ///
    /// Type: list of statuses. Default: `["2xx", "3xx"]`.
    pub statuses: Option<Spanned<Vec<Spanned<StatusWord>>>>,
    /// A text that the first 64 KiB of the body must contain, for `"http"`.
    ///
    /// Type: text. Default: any body. Example: `"ready"`.
    pub content: Option<Spanned<String>>,
    /// The service whose health is asked for, for `"grpc"`.
    ///
    /// Type: text. Default: the server as a whole. Example: `"shop.Cart"`.
    pub service: Option<Spanned<String>>,
    /// The time between two checks of an endpoint, a tenth more or less.
    ///
    /// Type: duration. Default: `"5s"`.
    pub interval: Option<Spanned<String>>,
    /// The time for one check, after which it has failed.
    ///
    /// Type: duration. Default: `"2s"`.
    pub timeout: Option<Spanned<String>>,
    /// The passed checks in a row that make an endpoint healthy, from 1 to 100.
    ///
    /// Type: number. Default: `2`.
    pub healthy: Option<Spanned<usize>>,
    /// The failed checks in a row that make an endpoint unhealthy, from 1 to 100.
    ///
    /// Type: number. Default: `3`.
    pub unhealthy: Option<Spanned<usize>>,
}

/// The rules by which failures of requests eject an endpoint.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct OutliersTable {
    /// The failures in a row that eject an endpoint; 0 for any number.
    ///
    /// Type: number. Default: `5`.
    pub consecutive: Option<Spanned<usize>>,
    /// The statuses of responses that count as failures.
    ///
    /// Type: list of statuses. Default: none. Example: `["5xx"]`.
    pub statuses: Vec<Spanned<StatusWord>>,
    /// The failures per hundred requests of an interval that eject an endpoint, from 1 to 100.
    ///
    /// Type: number. Default: no such rule. Example: `50`.
    pub error_rate: Option<Spanned<usize>>,
    /// The mean latency in an interval that ejects an endpoint if exceeded, in percent of the median of all endpoints;
    /// at least 101.
    ///
    /// Type: number. Default: no such rule. Example: `300`.
    pub latency: Option<Spanned<usize>>,
    /// The least requests to an endpoint in an interval for `error-rate` and `latency` to apply.
    ///
    /// Type: number. Default: `20`.
    pub requests: Option<Spanned<usize>>,
    /// The interval of `error-rate` and `latency`.
    ///
    /// Type: duration. Default: `"10s"`.
    pub interval: Option<Spanned<String>>,
    /// The time of an endpoint's first ejection. Each further ejection in a short while is longer by this time.
    ///
    /// Type: duration. Default: `"10s"`.
    pub ejection: Option<Spanned<String>>,
    /// The longest time of an ejection.
    ///
    /// Type: duration. Default: `"5m"`, or the value of `ejection` if that is longer.
    pub longest_ejection: Option<Spanned<String>>,
    /// The highest percentage of endpoints that are ejected at a time, dead ones not counted; from 0 to 100.
    ///
    /// Type: number. Default: `50`.
    pub most: Option<Spanned<usize>>,
}

/// The rules by which a failed request is sent again.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RetryTable {
    /// The attempts after the first, from 0 to 10.
    ///
    /// Type: number. Default: `2`.
    pub retries: Option<Spanned<usize>>,
    /// The failures that cause a retry: `"connect"`, `"reset"`, `"timeout"`, `"malformed"`, and statuses from 400.
    ///
    /// Type: list of words and statuses. Default: `["connect", "reset"]`. Example: `["connect", "reset", 503]`.
    pub on: Option<Vec<Spanned<StatusWord>>>,
    /// The methods of requests that are sent again although an endpoint may have acted on them: idempotent ones, or
    /// all.
    ///
    /// Type: `"idempotent"` or `"any"`. Default: `"idempotent"`.
    pub methods: Option<Spanned<String>>,
    /// The retries per hundred requests of the last ten seconds, besides ten per second for each worker; from 0 to 100.
    ///
    /// Type: number. Default: `20`.
    pub budget: Option<Spanned<usize>>,
    /// The longest request body that is kept to be sent again.
    ///
    /// Type: size. Default: `"64 KiB"`.
    pub buffer: Option<Spanned<String>>,
}

/// The limits of an upstream, over all workers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamLimits {
    /// The most requests in flight; beyond it 503. A client has three quarters of those that all others leave.
    ///
    /// Type: number. Default: no limit. Example: `1000`.
    pub requests: Option<Spanned<usize>>,
    /// The most connections; requests beyond it wait. A client's requests use three quarters of those that all others leave.
    /// With HTTP/2, each worker needs one for each endpoint at least.
    ///
    /// Type: number. Default: no limit. Example: `200`.
    pub connections: Option<Spanned<usize>>,
    /// The most requests that wait for a connection; beyond it 503. A client has three quarters of those that all others
    /// leave, or four. It needs `connections`.
    ///
    /// Type: number. Default: `1024`.
    pub pending: Option<Spanned<usize>>,
    /// The longest response head, from `1 KiB` to `16 MiB`; beyond it 502.
    ///
    /// Type: size. Default: `"32 KiB"`.
    pub response_head: Option<Spanned<String>>,
    /// The most fields of a response, up to 10,000; beyond it 502.
    ///
    /// Type: number. Default: `500`.
    pub response_fields: Option<Spanned<usize>>,
}

/// A status code, a class of status codes, or a word.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "wrong value: expected a status code such as 503, or a class such as \"5xx\"")]
pub enum StatusWord {
    Code(u16),
    Word(String),
}

/// The TLS settings for the endpoints of an upstream.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamTls {
    /// A PEM file with the authorities that certificates of endpoints are verified by.
    ///
    /// Type: path. Default: the system's authorities. Example: `"ca.pem"`.
    pub ca: Option<Spanned<String>>,
    /// The name that the certificate of an endpoint must bear.
    ///
    /// Type: host. Default: the host of the endpoint's address. Example: `"app.internal"`.
    pub server_name: Option<Spanned<String>>,
    /// The certificate that Plugway shows to endpoints.
    ///
    /// Type: certificate. Default: none. Example: `{ chain = "cert.pem", key = "key.pem" }`.
    pub certificate: Option<Spanned<Certificate>>,
    /// Whether any certificate of an endpoint is accepted. Use it for tests only.
    ///
    /// Type: boolean. Default: `false`.
    pub insecure_skip_verify: bool,
    /// Whether HTTP/2 is offered to endpoints.
    ///
    /// Type: boolean. Default: `true`.
    pub http2: Option<bool>,
}

/// An endpoint of an upstream, or several that a name or a file stands for.
#[derive(Debug)]
pub enum EndpointEntry {
    Address(String),
    Table(Box<EndpointTable>),
}

/// An endpoint with settings. It has exactly one of `address`, `dns`, `srv` and `file`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointTable {
    /// An address, as in the list of endpoints.
    ///
    /// Type: address or `"unix:/path"`. Default: none. Example: `"127.0.0.1:8000"`.
    pub address: Option<Spanned<String>>,
    /// A name and a port. Each address of the name is an endpoint, and is looked up again when its TTL has passed.
    ///
    /// Type: name and port. Default: none. Example: `"app.internal:8000"`.
    pub dns: Option<Spanned<String>>,
    /// The name of a service. Each target of its SRV records is an endpoint.
    ///
    /// Type: name. Default: none. Example: `"_http._tcp.app.internal"`.
    pub srv: Option<Spanned<String>>,
    /// A file with `endpoints`, which is read again when it changes. It takes no other key beside it.
    ///
    /// Type: path. Default: none. Example: `"app.toml"`.
    pub file: Option<Spanned<String>>,
    /// The share of requests relative to other endpoints, from 1 to 65535. SRV records have weights of their own.
    ///
    /// Type: number. Default: `1`.
    pub weight: Option<Spanned<i64>>,
    /// The tier, from 0 to 100. Tier 0 is preferred; a higher tier is used when too few endpoints of lower ones are up.
    ///
    /// Type: number. Default: `0`.
    pub tier: Option<Spanned<usize>>,
    /// The zone, for balancers that prefer near endpoints.
    ///
    /// Type: text. Default: none. Example: `"b"`.
    pub zone: Option<String>,
    /// Whether the endpoint gets no new requests.
    ///
    /// Type: boolean. Default: `false`.
    pub draining: bool,
}

impl EndpointEntry {
    /// Whether the entry has only the key `file`.
    pub fn is_file_alone(&self) -> bool {
        let EndpointEntry::Table(table) = self else { return false };
        let EndpointTable { address, dns, srv, file, weight, tier, zone, draining } = &**table;
        let says_more = address.is_some() || dns.is_some() || srv.is_some() || weight.is_some();
        file.is_some() && !says_more && tier.is_none() && zone.is_none() && !draining
    }

    /// Whether TLS may be spoken to it, as far as can be told without the file that it stands for.
    pub fn may_speak_tls(&self) -> bool {
        let is_https = |text: &str| text.starts_with("https://");
        match self {
            EndpointEntry::Address(address) => is_https(address),
            EndpointEntry::Table(table) => {
                let texts = [&table.address, &table.dns, &table.srv];
                table.file.is_some() || texts.into_iter().flatten().any(|text| is_https(text.get_ref()))
            }
        }
    }

    /// Returns the address of the endpoint, with its scheme; `None` for a name that is looked up and for a file.
    pub fn address(&self) -> Option<&str> {
        match self {
            EndpointEntry::Address(address) => Some(address),
            EndpointEntry::Table(table) => table.address.as_ref().map(|address| address.get_ref().as_str()),
        }
    }

    /// The file that it stands for.
    pub fn file(&self) -> Option<&Spanned<String>> {
        match self {
            EndpointEntry::Address(_) => None,
            EndpointEntry::Table(table) => table.file.as_ref(),
        }
    }
}

/// The conditions of a route, its target, and the chain.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RouteTable {
    /// The name in logs and metrics.
    ///
    /// Type: text. Default: the first host, or `*`, and the path. Example: `"api"`.
    pub name: Option<String>,
    /// The hosts, without a port and in any spelling. `*.example.org` matches any name below, at any depth.
    ///
    /// Type: list of hosts. Default: any host. Example: `["example.org", "*.example.org", "[::1]"]`.
    pub hosts: Option<Spanned<Vec<Spanned<String>>>>,
    /// The path. A text matches this path and all paths below it, on segment boundaries. A table matches in one other
    /// way.
    ///
    /// Type: path of a URI, or table. Default: any path. Example: `"/api"`, `{ exact = "/x" }`, `{ regex = "^/x[0-9]"
    /// }`.
    pub path: Option<Spanned<Path>>,
    /// The methods; the request has one of them.
    ///
    /// Type: list of methods. Default: any method. Example: `["GET", "HEAD"]`.
    pub methods: Option<Spanned<Vec<Spanned<String>>>>,
    /// The fields; the request has all of them, each with this value. `"*"` is any value.
    ///
    /// Type: table of texts. Default: none. Example: `{ X-Version = "2", X-Debug = "*" }`.
    #[serde(default)]
    pub fields: BTreeMap<Spanned<String>, Spanned<String>>,
    /// The query parameters; the request has all of them, each with this value. `"*"` is any value. Escapes of letters,
    /// digits, `-`, `.`, `_` and `~` in a request match those characters; `+` is no space.
    ///
    /// Type: table of texts. Default: none. Example: `{ page = "1", preview = "*" }`.
    #[serde(default)]
    pub query: BTreeMap<Spanned<String>, Spanned<String>>,
    /// The listeners, by their `address` as it is written there. At a listener, the routes that name it come before all
    /// others, and `redirect-to-https` of the listener leaves their requests alone.
    ///
    /// Type: list of addresses. Default: any listener. Example: `["127.0.0.1:0"]`.
    pub listeners: Option<Spanned<Vec<Spanned<String>>>>,
    /// The name of the upstream that requests are sent to. A route has exactly one target: `upstream`, `redirect`,
    /// `respond` or `files`. The plugins of the route see its requests and responses, whatever the target is.
    ///
    /// Type: text. Default: none. Example: `"app"`.
    pub upstream: Option<Spanned<String>>,
    /// The location that clients are redirected to: a URI with `//` and a host, or one that begins with `/`. Values in
    /// braces are those of templates; `{uri}` is the path with the query here.
    ///
    /// Type: template. Default: none. Example: `"https://www.example.org{uri}"`.
    pub redirect: Option<Spanned<String>>,
    /// The status of `redirect`: 301, 302, 303, 307 or 308.
    ///
    /// Type: status code. Default: `302`.
    pub status: Option<Spanned<u16>>,
    /// The response that every request gets.
    ///
    /// Type: table `[route.respond]`. Default: none. Example: `{ status = 410, body = "It is gone.\n" }`.
    pub respond: Option<Spanned<RespondTable>>,
    /// The folder whose files are served.
    ///
    /// Type: table `[route.files]`. Default: none. Example: `{ root = "public" }`.
    pub files: Option<Spanned<FilesTable>>,
    /// The prefix that is removed from the path when the request is forwarded, on segment boundaries; `true` is the route's
    /// own `path`. `/api/users` becomes `/users`, and `/api` becomes `/`. Plugins see the whole path.
    ///
    /// Type: boolean or path of a URI. Default: `false`. Example: `"/api"`.
    pub strip_prefix: Option<Spanned<StripPrefix>>,
    /// The rewrite of the path and query when the request is forwarded. Plugins see the client's path.
    ///
    /// Type: table `[route.rewrite]`. Default: none. Example: `{ regex = "^/old/(.*)$", to = "/new/$1" }`.
    pub rewrite: Option<Spanned<RewriteTable>>,
    /// Whether the upstream gets the path as the client has sent it: with escaped slashes, doubled slashes and all escapes.
    /// So do `{path}` and `{uri}` of `redirect`. Routes and plugins see the normal form, with escaped slashes as slashes. Paths
    /// with dot segments get 400.
    ///
    /// Type: boolean. Default: `false`.
    pub path_as_is: Option<Spanned<bool>>,
    /// The longest request body; beyond it 413. Bodies are streamed, so this protects the endpoint, not Plugway.
    ///
    /// Type: size. Default: `"1 GiB"`.
    pub max_body: Option<Spanned<String>>,
    /// The longest request body that is received before an endpoint is asked, so that a slow client holds no endpoint.
    /// By default that is done in memory, and only for bodies that declare their length. A size does it for all bodies,
    /// and those that the memory has no room for go into a file. `false` streams all bodies.
    ///
    /// Type: size or `false`. Default: `"1 MiB"`, for bodies that declare their length. Example: `"100 MiB"`.
    pub request_buffer: Option<Spanned<SizeOrOff>>,
    /// The bytes of a response that may wait for a slow client, in memory and then in a file, so that the endpoint is free.
    /// With `false`, the endpoint waits for the client. Events (`text/event-stream`) and gRPC are never kept.
    ///
    /// Type: size or `false`. Default: `"1 GiB"`.
    pub response_buffer: Option<Spanned<SizeOrOff>>,
    /// The time for the whole exchange, from the request head to the last byte of the response; beyond it 504. A
    /// connection that has switched protocols, such as WebSocket, may last longer.
    ///
    /// Type: duration. Default: no limit. Example: `"30s"`.
    pub timeout: Option<Spanned<String>>,
    /// The files that replace the pages of errors of this route. They take precedence over those of `[error-page]` at the
    /// top of the manifest.
    ///
    /// Type: table of paths. Default: those of the manifest. Example: `{ 503 = "pages/lost.html" }`.
    #[serde(default)]
    pub error_page: BTreeMap<Spanned<String>, Spanned<String>>,
    /// The statuses of the upstream's errors that are replaced by the error page for the status: the route's, the manifest's
    /// or the built-in one. The status stays. Responses of gRPC are never intercepted.
    ///
    /// Type: list of statuses. Default: none. Example: `["5xx", 404]`.
    #[serde(default)]
    pub intercept: Vec<Spanned<StatusWord>>,
    /// The file that switches maintenance on: while it exists, every request of the route gets 503 with `Retry-After` and
    /// the error page for 503. No plugin sees the request.
    ///
    /// Type: path, or table `[route.maintenance]`. Default: that of the manifest. Example: `"down"`, `{ file = "down", retry-after =
    /// "10m" }`.
    pub maintenance: Option<Spanned<MaintenanceEntry>>,
    /// The chain, outermost plugin first: names of configured or stock plugins, or tables as `[plugin.NAME]`.
    ///
    /// Type: list of plugins. Default: none. Example: `["guard", { use = "headers", config = { response = { remove =
    /// ["Server"] } } }]`.
    #[serde(default)]
    pub plugins: Vec<Spanned<PluginRef>>,
}

/// The file that switches the maintenance of routes on.
#[derive(Debug)]
pub enum MaintenanceEntry {
    File(String),
    Table(Box<MaintenanceTable>),
}

/// The maintenance of routes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MaintenanceTable {
    /// The file. Plugway looks for it twice a second, and its content has no effect.
    ///
    /// Type: path. Required. Example: `"down"`.
    pub file: Spanned<String>,
    /// The value of `Retry-After`, at least `1s`.
    ///
    /// Type: duration. Default: `"1m"`.
    pub retry_after: Option<Spanned<String>>,
    /// The clients that are served during maintenance too.
    ///
    /// Type: list of networks. Default: none. Example: `["10.0.0.0/8"]`.
    #[serde(default)]
    pub except: Vec<Spanned<String>>,
}

/// Whether the route's path is removed from the path of requests, or the prefix that is.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "wrong value: expected `true`, or a prefix such as \"/api\"")]
pub enum StripPrefix {
    Switch(bool),
    Text(String),
}

/// A rewrite of paths.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewriteTable {
    /// The regular expression that is looked for in the path, in its normal form. Other paths stay as they are.
    ///
    /// Type: regular expression. Required. Example: `"^/old/(.*)$"`.
    pub regex: Spanned<String>,
    /// The new path, which begins with `/`, and after a `?` a new query. `$1`, `${1}`, `$name` and `${name}` are groups of the
    /// expression, `$$` is a dollar sign. The client's query is appended, unless the text ends with `?`.
    ///
    /// Type: text. Required. Example: `"/new?page=1"`.
    pub to: Spanned<String>,
}

/// The response that a route has for every request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RespondTable {
    /// The status, from 200 to 599. The statuses 204, 205 and 304 have no body.
    ///
    /// Type: status code. Default: `200`. Example: `410`.
    pub status: Option<Spanned<u16>>,
    /// The body as text. Its type is `text/plain; charset=utf-8`, unless `fields` names another.
    ///
    /// Type: text. Default: no body. Example: `"It is gone.\n"`.
    pub body: Option<Spanned<String>>,
    /// A file with the body, of at most 1 MiB, which is read when the manifest is loaded and when the file changes. Its
    /// type is that of the file's name, unless `fields` names another.
    ///
    /// Type: path. Default: none. Example: `"pages/sorry.html"`.
    pub file: Option<Spanned<String>>,
    /// The fields of the response.
    ///
    /// Type: table of texts. Default: none. Example: `{ Cache-Control = "max-age=60" }`.
    pub fields: BTreeMap<Spanned<String>, Spanned<String>>,
}

/// The files that a route serves.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesTable {
    /// The folder that paths are looked up in.
    ///
    /// Type: path. Required. Example: `"public"`.
    pub root: Spanned<String>,
    /// The names of files that answer for their folder: the first that exists does. With an empty list, no file does.
    ///
    /// Type: list of names. Default: `["index.html"]`.
    pub index: Option<Vec<Spanned<String>>>,
    /// The path, below `root`, of the file that answers for paths without a file, as applications in the browser need it.
    ///
    /// Type: path below `root`. Default: none, and 404. Example: `"index.html"`.
    pub fallback: Option<Spanned<String>>,
    /// The codings of compressed copies beside files, in the order of your preference: `br` (the file's name and `.br`),
    /// `zstd` (`.zst`) and `gzip` (`.gz`). A client gets the copy that it prefers. A copy that is older than its file is
    /// ignored.
    ///
    /// Type: list of codings. Default: none. Example: `["br", "gzip"]`.
    #[serde(default)]
    pub precompressed: Vec<Spanned<String>>,
    /// Whether a folder without an index file is answered with a list of its files.
    ///
    /// Type: boolean. Default: `false`.
    #[serde(default)]
    pub browse: bool,
}

/// The path of a route.
#[derive(Debug)]
pub enum Path {
    Below(String),
    Other(OtherPath),
}

/// The path of a route that is written as a table.
#[derive(Debug, Deserialize)]
#[serde(try_from = "PathTable")]
pub enum OtherPath {
    Exact(String),
    Prefix(String),
    Regex(String),
}

impl Path {
    /// Returns the text that the path is compared with.
    pub fn text(&self) -> &str {
        match self {
            Path::Below(text) => text,
            Path::Other(OtherPath::Exact(text) | OtherPath::Prefix(text) | OtherPath::Regex(text)) => text,
        }
    }
}

/// The ways to match a path. A table has exactly one of them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PathTable {
    /// Matches this path only.
    ///
    /// Type: path of a URI. Default: none. Example: `"/x"`.
    exact: Option<String>,
    /// Matches this path and all paths below it, on segment boundaries, as a text does.
    ///
    /// Type: path of a URI. Default: none. Example: `"/static/"`.
    prefix: Option<String>,
    /// Matches paths in which the regular expression is found. `^` and `$` are the beginning and the end of the path.
    ///
    /// Type: regular expression. Default: none. Example: `"^/users/[0-9]+$"`.
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

/// A mention of a plugin: its name, or its table in this place.
#[derive(Debug)]
pub enum PluginRef {
    Name(String),
    Inline(Box<PluginTable>),
}

/// A plugin with its configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PluginTable {
    /// A [stock plugin](plugins/README.md), such as `headers`, or a `.wasm` file.
    ///
    /// Type: name or path. Required. Example: `"headers"`, `"./guard.wasm"`.
    pub r#use: Spanned<String>,
    /// The configuration, by the plugin's own schema, which `plugway inspect` shows.
    ///
    /// Type: table. Default: `{}`.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub config: Option<toml::Table>,
    /// The limits of the plugin.
    ///
    /// Type: table `[plugin.NAME.limits]`. Default: its defaults.
    #[serde(default)]
    pub limits: PluginLimitsTable,
    /// The access of the plugin to more than clocks, random numbers and the log. A component that wants more than it is granted
    /// doesn't load; `plugway inspect` prints the grants that it wants. Stock plugins need none.
    ///
    /// Type: table `[plugin.NAME.grants]`. Default: none.
    #[serde(default)]
    pub grants: PluginGrants,
    /// The effect of a failed call: `"fail"` answers with 502, `"skip"` continues without the plugin, a status from 200
    /// to 599 is the answer.
    ///
    /// Type: `"fail"`, `"skip"` or status code. Default: `"fail"`. Example: `503`.
    pub on_error: Option<Spanned<OnErrorValue>>,
    /// The life of an instance: with `"worker"`, it serves the calls of its worker one after the other; with
    /// `"request"`, each call gets a fresh instance, at the cost of 35 to 400 µs.
    ///
    /// Type: `"worker"` or `"request"`. Default: `"worker"`.
    pub isolation: Option<Spanned<String>>,
}

/// The limits of a configured plugin.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PluginLimitsTable {
    /// The linear memory of an instance, from `64 KiB` to `256 MiB`.
    ///
    /// Type: size. Default: `"16 MiB"`.
    pub memory: Option<Spanned<String>>,
    /// The CPU time of a call.
    ///
    /// Type: duration. Default: `"50ms"`.
    pub cpu: Option<Spanned<String>>,
    /// The percentage of each worker's time that calls may take, with the decoding of content and the receipt of responses for
    /// the plugin; from 1 to 100; 100 is no limit.
    ///
    /// Type: number. Default: `50`.
    pub share: Option<Spanned<usize>>,
    /// The most bodies that pass through the plugin at a time, over all workers, from 1 to 4096. The plugin has places
    /// for 32 of them, whatever others do; more take places that are free. A client has three quarters of the bodies that
    /// all others leave, or four.
    ///
    /// Type: number. Default: `256`.
    pub bodies: Option<Spanned<usize>>,
    /// The time for which a body beyond `bodies` waits for one that ends, before the exchange fails with 503. As many
    /// bodies wait as may pass; one more fails at once.
    ///
    /// Type: duration. Default: `"1s"`. Example: `"100ms"`.
    pub body_wait: Option<Spanned<String>>,
    /// The most bytes that a byte of coded content is decoded to for the plugin, from 1 to 100000, beyond the first MiB of
    /// decoded content. More is an error: 413 for a request, 502 for a response whose head has not been sent.
    ///
    /// Type: number. Default: `200`.
    pub decoded_ratio: Option<Spanned<usize>>,
    /// The maximum size of coded content once it is decoded for the plugin. More is an error, as with `decoded-ratio`.
    ///
    /// Type: size. Default: `"256 MiB"`. Example: `"16 MiB"`.
    pub decoded_size: Option<Spanned<String>>,
    /// The memory that the decoders of all messages for the plugin may hold, over all workers: at most 48 KiB each for gzip
    /// and deflate, 9 MiB for zstd and 20 MiB for br, as the senders have chosen. Beyond it a message fails with 503.
    ///
    /// Type: size. Default: `"128 MiB"`.
    pub decoded_memory: Option<Spanned<String>>,
    /// The most calls under way at a time, over all workers, of a plugin whose hooks may wait, from 1 to 1000. Each of
    /// them has an instance to itself. The plugin has places for 32 of them, whatever others do; more take places that
    /// are free. A client has three quarters of the calls that all others leave, or four.
    ///
    /// Type: number. Default: `256`.
    pub waiting_calls: Option<Spanned<usize>>,
    /// The most calls that are queued beyond `waiting-calls`, over all workers, from 1 to 65536; further calls are not
    /// made. A client has a part as of `waiting-calls`, and clients have turns.
    ///
    /// Type: number. Default: `1024`.
    pub queued_calls: Option<Spanned<usize>>,
    /// The longest time that a call is queued; then it is not made.
    ///
    /// Type: duration. Default: `"1s"`. Example: `"100ms"`.
    pub queue_time: Option<Spanned<String>>,
    /// The longest time of a call that may wait, with all that the call waits for, the worker's time included. A plugin that
    /// asks a service while it is configured holds up the start or the reload for this time at most.
    ///
    /// Type: duration. Default: `"10s"`. Example: `"2s"`.
    pub call_time: Option<Spanned<String>>,
    /// The most requests of the plugin's own that are under way at a time, over all workers, from 1 to 4000. Further ones
    /// wait, as a part of their own time for a response, and of `call-time`.
    ///
    /// Type: number. Default: `256`.
    pub callouts: Option<Spanned<usize>>,
}

/// The effect of a failed call as the manifest writes it.
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

impl<'de> Deserialize<'de> for EndpointEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = "an address, or a table with `address`, `dns`, `srv` or `file`";
        text_or_table(deserializer, expecting, EndpointEntry::Address, |table| EndpointEntry::Table(Box::new(table)))
    }
}

impl<'de> Deserialize<'de> for MaintenanceEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = "a path such as \"down\", or a table with `file`";
        text_or_table(deserializer, expecting, MaintenanceEntry::File, |table| MaintenanceEntry::Table(Box::new(table)))
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

impl<'de> Deserialize<'de> for SizeOrOff {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeOrFalse;

        impl Visitor<'_> for SizeOrFalse {
            type Value = SizeOrOff;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a size, such as \"1 MiB\", or `false`")
            }

            fn visit_bool<E: serde::de::Error>(self, is_on: bool) -> Result<SizeOrOff, E> {
                match is_on {
                    true => Err(E::invalid_value(serde::de::Unexpected::Bool(true), &self)),
                    false => Ok(SizeOrOff::Off),
                }
            }

            fn visit_str<E>(self, size: &str) -> Result<SizeOrOff, E> {
                Ok(SizeOrOff::Size(size.into()))
            }
        }

        deserializer.deserialize_any(SizeOrFalse)
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
