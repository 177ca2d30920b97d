//! Directives of nginx, Caddy and HAProxy that a newcomer writes as keys, each with the manifest's own key.

/// Returns the program that a key belongs to, and what to write instead; `None` for a key of no other program.
pub fn remedy(key: &str) -> Option<ForeignKey> {
    KEYS.iter().find(|known| known.name == key).copied()
}

/// Returns what to write instead of a key in a table whose known keys are given: words that are not of one program alone.
pub fn remedy_among(key: &str, known: &[&str]) -> Option<&'static str> {
    // A key that is appended to a manifest belongs to its last table.
    if TOP_KEYS.contains(&key) {
        return Some("it is a key of the top of the file: write it before the first table");
    }
    let is_here = |(of, names, _): &&(&str, &[&str], &str)| known.contains(of) && names.contains(&key);
    GUESSES.iter().find(is_here).map(|(_, _, remedy)| *remedy)
}

/// The keys of the process that are no tables, and that no table has.
const TOP_KEYS: [&str; 3] = ["include", "workers", "drain-timeout"];

/// A key that only one kind of table has, the keys that newcomers guess in such a table, and what to write.
const GUESSES: [(&str, &[&str], &str); 7] = [
    (
        "certificates",
        &["cert", "key", "certificate", "chain", "cert-file", "key-file", "cert_file", "key_file"],
        "write `certificates = [{ chain = \"cert.pem\", key = \"key.pem\" }]`",
    ),
    (
        "endpoints",
        &["servers", "server", "backends", "backend", "hosts", "targets", "address"],
        "write `endpoints = [\"127.0.0.1:8000\"]`",
    ),
    (
        "strip-prefix",
        &["headers", "header", "request-headers", "response-headers"],
        "write `plugins = [{ use = \"headers\", config = { request = { set = { X-A = \"1\" } } } }]`",
    ),
    (
        "strip-prefix",
        &["auth", "basic-auth", "auth-basic", "auth-key", "api-key"],
        "write `plugins = [\"auth\"]` and `[plugin.auth]` with `use = \"auth-basic\"` or `use = \"auth-key\"`",
    ),
    ("strip-prefix", &["prefix", "paths"], "write `path = \"/api\"`, and `strip-prefix = true` to remove it"),
    ("strip-prefix", &["to", "target", "backend", "proxy", "service"], "write `upstream = \"app\"`"),
    ("strip-prefix", &["host", "domain", "domains"], "write `hosts = [\"example.org\"]`"),
];

/// Returns why there is no stock plugin for a purpose, by the names under which other programs have it; `None` if the name
/// is none of these.
pub fn missing_plugin(name: &str) -> Option<&'static str> {
    match name.to_ascii_lowercase().replace('_', "-").as_str() {
        "gzip" | "brotli" | "zstd" | "compress" | "compression" | "encode" => Some(
            "responses are not compressed yet: the endpoint's own compression passes, and `files` has `precompressed`",
        ),
        "ratelimit" | "rate-limit" | "rate-limiting" | "limit-req" | "throttle" | "quota" => {
            Some("no stock plugin limits rates yet: build the filter of `examples/quota`, and name its file")
        }
        "auth-request" | "forward-auth" => Some(
            "no stock plugin asks another service yet: build the filter of `examples/forward-auth`, and name its file",
        ),
        _ => None,
    }
}

/// A directive of another program.
#[derive(Clone, Copy)]
pub struct ForeignKey {
    name: &'static str,
    /// The program that has the directive.
    pub program: &'static str,
    /// The words of a message that say what to write in a manifest.
    pub remedy: &'static str,
}

const fn nginx(name: &'static str, remedy: &'static str) -> ForeignKey {
    ForeignKey { name, program: "nginx", remedy }
}

const fn caddy(name: &'static str, remedy: &'static str) -> ForeignKey {
    ForeignKey { name, program: "Caddy", remedy }
}

const fn haproxy(name: &'static str, remedy: &'static str) -> ForeignKey {
    ForeignKey { name, program: "HAProxy", remedy }
}

const CERTIFICATES: &str = "write `tls = { certificates = [{ chain = \"cert.pem\", key = \"key.pem\" }] }` in the \
                            [[listener]]";
const FILES: &str = "write `files = { root = \"public\" }` in a [[route]], in place of `upstream`";
const NETWORKS: &str =
    "write `plugins = [{ use = \"ip-filter\", config = { allow = [\"10.0.0.0/8\"] } }]` in the [[route]]";
const ROUTE: &str = "write a [[route]] with `hosts`, `path` and `upstream`; the addresses are in [[listener]]";

const KEYS: [ForeignKey; 42] = [
    nginx("access_log", "write `[access-log]` with `format = \"combined\"` and `file = \"access.log\"`"),
    nginx(
        "add_header",
        "write `plugins = [{ use = \"headers\", config = { response = { append = { X-A = \"1\" } } } }]` in the [[route]]",
    ),
    nginx("alias", "write `files = { root = \"public\" }` and `strip-prefix = true` in a [[route]] with `path`"),
    nginx("allow", NETWORKS),
    nginx(
        "auth_basic",
        "write `plugins = [{ use = \"auth-basic\", config = { users = \"${file:htpasswd}\" } }]` in the [[route]]",
    ),
    haproxy("backend", "write `[upstream.NAME]` with `endpoints = [\"127.0.0.1:8000\"]`"),
    haproxy("bind", "write a [[listener]] with `address = \"0.0.0.0:80\"`"),
    nginx("client_max_body_size", "write `max-body = \"20 MiB\"` in the [[route]]"),
    nginx("deny", NETWORKS),
    nginx("error_page", "write `[error-page]` with `502 = \"sorry.html\"`"),
    caddy("file_server", FILES),
    haproxy("frontend", ROUTE),
    nginx("gzip", "responses are not compressed yet; what the upstream compresses is passed on"),
    caddy("handle", "write a [[route]] with `path = \"/api\"`"),
    nginx("index", "write `files = { root = \"public\", index = [\"index.html\"] }` in a [[route]]"),
    nginx(
        "keepalive_timeout",
        "write `limits = { keep-alive = \"75s\" }` in the [[listener]], or `idle-timeout = \"60s\"` in the upstream",
    ),
    nginx("limit_req", "requests are not limited by their rate yet; `limits` of an upstream limits those in flight"),
    nginx("listen", "write a [[listener]] with `address = \"0.0.0.0:80\"`"),
    nginx("location", "write a [[route]] with `path = \"/api\"`"),
    nginx("proxy_buffering", "write `response-buffer = false` in the [[route]] for `off`; `on` is the default"),
    nginx("proxy_cache", "write `plugins = [\"cache\"]` in the [[route]]"),
    nginx("proxy_connect_timeout", "write `connect-timeout = \"5s\"` in the upstream"),
    nginx(
        "proxy_pass",
        "write `upstream = \"app\"` in a [[route]], and `[upstream.app]` with `endpoints = [\"127.0.0.1:8000\"]`",
    ),
    nginx("proxy_read_timeout", "write `response-timeout = \"60s\"` and `read-timeout = \"60s\"` in the upstream"),
    nginx("proxy_request_buffering", "write `request-buffer = false` in the [[route]] for `off`"),
    nginx(
        "proxy_send_timeout",
        "remove it: an endpoint that stops reading the request meets `response-timeout` of the upstream",
    ),
    nginx(
        "proxy_set_header",
        "write `plugins = [{ use = \"headers\", config = { request = { set = { X-A = \"1\" } } } }]` in the [[route]]",
    ),
    nginx("return", "write `redirect = \"https://example.org{uri}\"` or `respond = { status = 404 }` in a [[route]]"),
    caddy(
        "reverse_proxy",
        "write `upstream = \"app\"` in a [[route]], and `[upstream.app]` with `endpoints = [\"127.0.0.1:8000\"]`",
    ),
    nginx("rewrite", "write `rewrite = { regex = \"^/old/(.*)$\", to = \"/new/$1\" }` in a [[route]]"),
    nginx("root", FILES),
    nginx(
        "server",
        "write a [[route]] with `hosts`, or for a server of an upstream `endpoints = [\"127.0.0.1:8000\"]`",
    ),
    nginx("server_name", "write `hosts = [\"example.org\"]` in each [[route]] of the site"),
    nginx("ssl_certificate", CERTIFICATES),
    nginx("ssl_certificate_key", CERTIFICATES),
    nginx("ssl_protocols", "write `tls = { min-version = \"1.2\" }` in the [[listener]]"),
    nginx("try_files", "write `files = { root = \"public\", fallback = \"index.html\" }` in a [[route]]"),
    nginx("upstream", "write `[upstream.NAME]` at the top of the file, and `upstream = \"NAME\"` in a [[route]]"),
    nginx("user", "start plugway as the user that it shall run as, such as by `User=` of systemd"),
    nginx("worker_connections", "write `limits = { connections = 20000 }` in the [[listener]]"),
    nginx("worker_processes", "write `workers = 4` at the top of the file, or nothing for one on each core"),
    nginx("http", "remove it: listeners, upstreams and routes are at the top of the file"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_in_the_table_once() {
        for key in KEYS {
            assert_eq!(KEYS.iter().filter(|other| other.name == key.name).count(), 1, "{}", key.name);
        }
        assert!(remedy("address").is_none());
    }
}
