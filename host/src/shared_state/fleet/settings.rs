//! The settings of the server: its address, who we are for it, and what bounds each call.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

/// The settings of a server.
pub struct FleetSettings {
    pub(super) address: FleetAddress,
    /// The server as messages show it, without a password.
    pub name: Arc<str>,
    pub(super) account: RedisConnectionInfo,
    /// The TLS to the server; `None` without TLS.
    pub tls: Option<FleetTls>,
    /// The beginning of all keys.
    pub prefix: String,
    /// The longest time of a call.
    pub timeout: Duration,
    /// The most commands that wait for an answer.
    pub commands: usize,
    /// The answer of calls that the server can't be asked for.
    pub fallback: FleetFallback,
}

/// The place where the server listens.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum FleetAddress {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// The TLS to a server.
#[derive(Clone)]
pub struct FleetTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
    /// The digest of everything in the configuration.
    digest: blake3::Hash,
}

/// The answer of calls that the server can't be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FleetFallback {
    /// The plugin gets an error.
    Error,
    /// The state of this process answers.
    Local,
}

/// An address that is no URL of a server.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidFleetUrl(String);

impl FleetTls {
    /// Returns the TLS to a server that has a name.
    pub fn new(config: &ClientConfig, name: ServerName<'static>, digest: blake3::Hash) -> Self {
        // The protocol has no name that could be agreed on.
        let mut config = config.clone();
        config.alpn_protocols.clear();
        FleetTls { config: Arc::new(config), name, digest }
    }
}

impl FleetSettings {
    /// Returns the settings of a URL with the defaults of everything else, and the name that a certificate has to prove if
    /// the URL is one for TLS.
    pub fn of_url(url: &str) -> Result<(Self, Option<String>), InvalidFleetUrl> {
        let invalid = |error: redis::RedisError| InvalidFleetUrl(error.category().to_lowercase());
        let (scheme, rest) = url.split_once(':').unwrap_or_default();
        let (is_tls, plain) = match scheme {
            "rediss" | "valkeys" => (true, format!("redis:{rest}")),
            "redis" | "valkey" | "unix" | "redis+unix" | "valkey+unix" => (false, url.to_owned()),
            _ => return Err(InvalidFleetUrl("unknown scheme".into())),
        };
        if rest.contains('#') {
            return Err(InvalidFleetUrl("it has a fragment".into()));
        }
        let info = plain.into_connection_info().map_err(invalid)?;
        let (address, name) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
                (FleetAddress::Tcp { host: host.clone(), port: *port }, shown)
            }
            ConnectionAddr::Unix(path) => (FleetAddress::Unix(path.clone()), path.display().to_string()),
            _ => return Err(InvalidFleetUrl("unknown kind of address".into())),
        };
        let proven = match &address {
            FleetAddress::Tcp { host, .. } if is_tls => Some(host.clone()),
            _ => None,
        };
        let account = info.redis_settings().clone().set_skip_set_lib_name();
        let settings = FleetSettings {
            address,
            name: name.into(),
            account,
            tls: None,
            prefix: "plugway:".into(),
            timeout: FleetSettings::TIMEOUT,
            commands: FleetSettings::COMMANDS,
            fallback: FleetFallback::Error,
        };
        Ok((settings, proven))
    }

    /// The default of the longest time of a call: far more than a server in the same place takes.
    pub const TIMEOUT: Duration = Duration::from_millis(500);

    /// The default of the most commands that wait for an answer: as many as a quick server answers in a few milliseconds.
    pub const COMMANDS: usize = 256;

    /// Sets the user, in place of the one in the URL.
    pub fn set_user(&mut self, user: &str) {
        self.account = self.account.clone().set_username(user);
    }

    /// Sets the password, in place of the one in the URL.
    pub fn set_password(&mut self, password: &str) {
        self.account = self.account.clone().set_password(password);
    }

    /// Whether a client with these settings can serve in place of one with other settings.
    pub fn is_same(&self, other: &FleetSettings) -> bool {
        let account = |settings: &FleetSettings| {
            let account = &settings.account;
            let text = |text: Option<&str>| text.map(String::from);
            (text(account.username()), text(account.password()), account.db(), account.protocol())
        };
        let tls = |settings: &FleetSettings| settings.tls.as_ref().map(|tls| (tls.digest, tls.name.clone()));
        let limits = |settings: &FleetSettings| (settings.timeout, settings.commands, settings.fallback);
        self.address == other.address
            && account(self) == account(other)
            && tls(self) == tls(other)
            && self.prefix == other.prefix
            && limits(self) == limits(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<(FleetSettings, Option<String>), String> {
        FleetSettings::of_url(url).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_names_the_server_and_the_account() {
        let (settings, proven) = parsed("redis://user:pass%2Fword@cache.internal:7000/3").unwrap();
        let account = &settings.account;
        assert!(settings.address == FleetAddress::Tcp { host: "cache.internal".into(), port: 7000 });
        assert_eq!((account.username(), account.password(), account.db()), (Some("user"), Some("pass/word"), 3));
        assert_eq!((&*settings.name, proven), ("cache.internal:7000", None));
        let (settings, proven) = parsed("rediss://[::1]").unwrap();
        assert_eq!((&*settings.name, proven.as_deref()), ("[::1]:6379", Some("::1")));
        assert_eq!(parsed("valkeys://cache.internal").unwrap().1.as_deref(), Some("cache.internal"));
        let (settings, _) = parsed("unix:///run/redis.sock?db=2").unwrap();
        assert!(settings.address == FleetAddress::Unix("/run/redis.sock".into()));
        assert_eq!((&*settings.name, settings.account.db()), ("/run/redis.sock", 2));
    }

    #[test]
    fn other_texts_are_no_urls_of_a_server() {
        for url in ["", "cache.internal:6379", "http://cache.internal", "redis://", "redis://host/x", "redis://0.0.0.0"]
        {
            assert!(parsed(url).is_err(), "{url}");
        }
        // Certificates are always verified.
        assert_eq!(parsed("rediss://host/#insecure").err().as_deref(), Some("it has a fragment"));
    }

    #[test]
    fn settings_are_the_same_only_if_all_of_them_are() {
        let settings = |url: &str| parsed(url).unwrap().0;
        let one = || settings("redis://user:word@host/1");
        assert!(one().is_same(&one()));
        let mut others = ["redis://user:other@host/1", "redis://word@host/1", "redis://user:word@host/2"].map(settings);
        others.iter().for_each(|other| assert!(!one().is_same(other)));
        others = [one(), one(), one()];
        others[0].timeout *= 2;
        others[1].prefix = "other:".into();
        others[2].fallback = FleetFallback::Local;
        others.iter().for_each(|other| assert!(!one().is_same(other)));
        let mut set = settings("redis://host/1");
        set.set_user("user");
        set.set_password("word");
        assert!(one().is_same(&set));
    }
}
