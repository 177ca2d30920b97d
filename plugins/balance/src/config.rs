//! The configuration as it stands in the manifest, and the rules that a schema can't tell.

use std::ops::RangeInclusive;

use plugway_sdk::{ConfigError, ValueName};
use schemars::JsonSchema;
use serde::Deserialize;

/// How to choose the endpoint of a request.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The policy.
    pub policy: PolicyName,
    /// With `consistent-hash`, the value that decides, written as in templates but without braces:
    /// `request.header.x-tenant`, `cookie.session`, `query.user`, `path`. A request that has no such value goes to a
    /// random endpoint.
    pub key: Option<String>,
    /// With `source-hash` and `consistent-hash`, the most that an endpoint may have in flight, in percent of the
    /// average for its weight: 101 to 1000. What is beyond goes to other endpoints. Without it there is no bound.
    pub bounded_load: Option<u32>,
    /// Sends a client back to the endpoint that it had before, by a cookie.
    pub sticky: Option<StickyConfig>,
    /// How much of its usual load a tier can bear, in percent: 100 to 1000. As long as the healthy part of a tier can
    /// bear all of it, the tier gets everything; beyond, the rest goes to the next tier.
    pub overflow: u32,
    /// Prefers the endpoints of this zone: within each tier they come first, and overflow to the others of the tier.
    pub zone: Option<String>,
}

/// The known policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// One after the other, spread evenly by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight for its weight.
    LeastConnections,
    /// The less loaded of two drawn at random.
    RandomTwoChoices,
    /// Of two drawn at random, the one that answers sooner, by its recent latency and its requests in flight.
    PeakEwma,
    /// Always the same for an address of a client, as far as the set of endpoints allows.
    SourceHash,
    /// Always the same for a value of `key`, as far as the set of endpoints allows.
    ConsistentHash,
}

/// The cookie that names a client's endpoint, without giving its address away.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StickyConfig {
    /// The cookie's name.
    #[serde(default = "default_cookie")]
    pub cookie: String,
    /// Keeps the cookie from being forged: at least 16 characters, the same in all proxies of a site.
    pub secret: String,
    /// The path that the cookie is for.
    #[serde(default = "default_path")]
    pub path: String,
    /// How long the cookie lives, in seconds; without it, until the browser is closed.
    #[serde(default)]
    pub max_age: Option<u64>,
    /// The domain that the cookie is for, with its subdomains; without it, just the host of the request.
    #[serde(default)]
    pub domain: Option<String>,
    /// Whether the cookie is sent over HTTPS only.
    #[serde(default)]
    pub secure: bool,
    /// Whether the cookie is kept from scripts.
    #[serde(default = "default_http_only")]
    pub http_only: bool,
    /// Whether the cookie comes along with requests from other sites.
    #[serde(default)]
    pub same_site: SameSite,
}

/// Which requests from other sites bring the cookie along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SameSite {
    /// Those that follow a link.
    #[default]
    Lax,
    /// None of them.
    Strict,
    /// All of them; needs `secure`.
    None,
}

impl Default for Config {
    fn default() -> Self {
        // Envoy's factor: a tier may lose nearly three in ten before it sheds load.
        let overflow = 140;
        Config { policy: PolicyName::default(), key: None, bounded_load: None, sticky: None, overflow, zone: None }
    }
}

fn default_cookie() -> String {
    "plugway".into()
}

fn default_path() -> String {
    "/".into()
}

fn default_http_only() -> bool {
    true
}

// === Rules ===

impl Config {
    /// What is wrong apart from `key`.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let Some(percent) = self.bounded_load {
            ensure(self.policy.hashes(), "/bounded-load", || {
                "only `source-hash` and `consistent-hash` bound the load; leave it out".into()
            })?;
            ensure_percent("/bounded-load", percent, 101..=1000)?;
        }
        ensure_percent("/overflow", self.overflow, 100..=1000)?;
        ensure(self.zone.as_deref() != Some(""), "/zone", || "a zone has a name; leave it out to prefer none".into())?;
        self.sticky.as_ref().map_or(Ok(()), StickyConfig::check)
    }

    /// The value that a policy hashes, if it does.
    pub fn hashed_value(&self) -> Result<Option<ValueName>, ConfigError> {
        const EXAMPLES: &str = "`request.header.x-tenant`, `cookie.session` or `path`";
        let wrong = |message: String| Err(ConfigError::at("/key", message));
        match (self.policy, &self.key) {
            (PolicyName::ConsistentHash, None) => wrong(format!("`consistent-hash` needs a key, such as {EXAMPLES}")),
            (PolicyName::ConsistentHash, Some(key)) => match key.parse() {
                Ok(ValueName::Status | ValueName::Endpoint | ValueName::ResponseField(_)) => {
                    wrong(format!("`{key}` isn't known before an endpoint is chosen; write one like {EXAMPLES}"))
                }
                Ok(name) => Ok(Some(name)),
                Err(unknown) => wrong(unknown),
            },
            (_, Some(_)) => wrong("only `consistent-hash` has a key; leave it out, or write that policy".into()),
            (PolicyName::SourceHash, None) => Ok(Some(ValueName::ClientAddress)),
            (_, None) => Ok(None),
        }
    }
}

impl PolicyName {
    /// Whether it sends the same value to the same endpoint.
    pub fn hashes(self) -> bool {
        matches!(self, PolicyName::SourceHash | PolicyName::ConsistentHash)
    }
}

impl StickyConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let StickyConfig { cookie, path, .. } = self;
        ensure(is_token(cookie), "/sticky/cookie", || {
            format!("`{cookie}` is no name of a cookie; write letters, digits, `-` and `_`")
        })?;
        ensure(self.secret.chars().count() >= 16, "/sticky/secret", || {
            "is too short to keep the cookie from being forged; write at least 16 random characters".into()
        })?;
        ensure(path.starts_with('/') && path.bytes().all(is_path_byte), "/sticky/path", || {
            format!("`{path}` is no path of a cookie; write one like `/app`, without `;`")
        })?;
        ensure(self.max_age != Some(0), "/sticky/max-age", || {
            "0 would delete the cookie; write at least 1, or leave it out".into()
        })?;
        if let Some(domain) = self.domain.as_ref().filter(|domain| !is_domain(domain)) {
            return Err(ConfigError::at("/sticky/domain", format!("`{domain}` is no domain; write `example.org`")));
        }
        self.check_as_browsers_do()
    }

    /// Browsers throw away cookies that ask for too much (RFC 6265bis §5.7).
    fn check_as_browsers_do(&self) -> Result<(), ConfigError> {
        let name = self.cookie.to_ascii_lowercase();
        let of_host = name.starts_with("__host-");
        ensure(self.same_site != SameSite::None || self.secure, "/sticky/same-site", || {
            "browsers refuse \"none\" without `secure = true`".into()
        })?;
        ensure(self.secure || !(of_host || name.starts_with("__secure-")), "/sticky/cookie", || {
            format!("browsers refuse `{}` without `secure = true`", self.cookie)
        })?;
        ensure(!of_host || (self.path == "/" && self.domain.is_none()), "/sticky/cookie", || {
            format!("browsers refuse `{}` with a domain, or a path other than `/`", self.cookie)
        })
    }
}

fn ensure(holds: bool, pointer: &str, message: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::at(pointer, message())) }
}

fn ensure_percent(pointer: &str, percent: u32, allowed: RangeInclusive<u32>) -> Result<(), ConfigError> {
    ensure(allowed.contains(&percent), pointer, || {
        format!("{percent} is out of range; write a percentage from {} to {}", allowed.start(), allowed.end())
    })
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_allowed)
}

/// RFC 6265 §4.1.1: no control characters, and `;` ends the attribute.
fn is_path_byte(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) && byte != b';'
}

fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(is_allowed)
    };
    text.split('.').all(is_label)
}
