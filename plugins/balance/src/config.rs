//! The configuration as written in the manifest, and the rules that a schema can't express.

use std::ops::RangeInclusive;
use std::time::Duration;

use plugway_sdk::cookie::{CookieError, SetCookie};
use plugway_sdk::{ConfigError, ValueName, cookie};
use schemars::JsonSchema;
use serde::Deserialize;

/// The configuration of the balancer.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The policy that chooses the endpoint of a request.
    pub policy: PolicyName,
    /// With `consistent-hash`, the value that is hashed, written as in templates but without braces:
    /// `request.header.x-tenant`, `cookie.session`, `query.user`, `path`. A request without this value goes to a random
    /// endpoint.
    pub key: Option<String>,
    /// With `source-hash` and `consistent-hash`, the maximum of requests in flight at an endpoint, in percent of the
    /// average for its weight: 101 to 1000. Further requests go to other endpoints. Without it there is no limit.
    pub bounded_load: Option<u32>,
    /// Sticky sessions: a cookie sends a client back to the same endpoint.
    pub sticky: Option<StickyConfig>,
    /// The load that a tier can bear, in percent of its usual load: 100 to 1000. As long as the healthy endpoints of a
    /// tier can bear its full load, the tier gets all requests; otherwise the rest goes to the next tier.
    /// `"when-all-down"`: the next tier gets requests only while no endpoint of the tier is up.
    #[schemars(extend("default" = 140))]
    pub overflow: Overflow,
    /// The preferred zone: within each tier its endpoints come first, and overflow to the other endpoints of the tier.
    pub zone: Option<String>,
}

/// The policies by which an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// Endpoints take turns, spread evenly by weight.
    #[default]
    RoundRobin,
    /// The endpoint with the fewest requests in flight for its weight.
    LeastConnections,
    /// The less loaded of two endpoints drawn at random.
    RandomTwoChoices,
    /// The faster of two endpoints drawn at random, by recent latency and requests in flight.
    PeakEwma,
    /// A fixed endpoint for each client address, as far as the set of endpoints allows.
    SourceHash,
    /// A fixed endpoint for each value of `key`, as far as the set of endpoints allows.
    ConsistentHash,
}

/// The load of a tier beyond which requests go to the next tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Overflow {
    /// The load that a tier can bear, in percent of its usual load.
    Percent(u32),
    /// A rule by one word.
    Rule(OverflowRule),
}

/// The rules for requests that go to the next tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OverflowRule {
    /// Requests go to the next tier only while no endpoint of the tier is up.
    WhenAllDown,
}

/// The cookie that names a client's endpoint without revealing its address.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StickyConfig {
    /// The name of the cookie.
    #[serde(default = "default_cookie")]
    pub cookie: String,
    /// The secret that protects the cookie from forgery: at least 16 characters, the same in all proxies of a site.
    pub secret: String,
    /// The path of the cookie.
    #[serde(default = "default_path")]
    pub path: String,
    /// The lifetime of the cookie, in seconds; without it, the cookie is deleted when the browser is closed.
    #[serde(default)]
    pub max_age: Option<u64>,
    /// The domain of the cookie, including its subdomains; without it, only the host of the request.
    #[serde(default)]
    pub domain: Option<String>,
    /// Whether the cookie is sent over HTTPS only.
    #[serde(default)]
    pub secure: bool,
    /// Whether the cookie is hidden from scripts.
    #[serde(default = "default_http_only")]
    pub http_only: bool,
    /// The requests from other sites that include the cookie.
    #[serde(default)]
    pub same_site: SameSite,
}

/// The requests from other sites that include the cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SameSite {
    /// Only requests that follow a link include the cookie.
    #[default]
    Lax,
    /// No requests from other sites include the cookie.
    Strict,
    /// All requests include the cookie; needs `secure`.
    None,
}

impl Default for Config {
    fn default() -> Self {
        // Envoy's factor: a tier may lose nearly three in ten of its endpoints before requests overflow.
        let overflow = Overflow::Percent(140);
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
    /// Returns all errors in everything except `key`.
    pub fn check(&self) -> Vec<ConfigError> {
        let mut errors = Errors::default();
        if let Some(percent) = self.bounded_load {
            let message = || "only `source-hash` and `consistent-hash` bound the load; leave it out".into();
            if errors.ensure(self.policy.hashes(), "/bounded-load", message) {
                errors.ensure_percent("/bounded-load", percent, 101..=1000);
            }
        }
        if let Overflow::Percent(percent) = self.overflow {
            errors.ensure_percent("/overflow", percent, 100..=1000);
        }
        errors.ensure(self.zone.as_deref() != Some(""), "/zone", || {
            "a zone has a name; leave it out to prefer none".into()
        });
        self.sticky.iter().for_each(|sticky| sticky.check(&mut errors));
        errors.0
    }

    /// Returns the value that the policy hashes; `None` if the policy doesn't hash a value.
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

impl Overflow {
    /// Returns the load that a tier can bear, as a multiple of its usual load. The tier has at least one endpoint that is up.
    pub fn factor(self) -> f64 {
        match self {
            Overflow::Percent(percent) => f64::from(percent) / 100.0,
            Overflow::Rule(OverflowRule::WhenAllDown) => f64::INFINITY,
        }
    }
}

impl PolicyName {
    /// Returns whether the policy sends the same value to the same endpoint.
    pub fn hashes(self) -> bool {
        matches!(self, PolicyName::SourceHash | PolicyName::ConsistentHash)
    }
}

impl StickyConfig {
    /// Returns the cookie with its attributes and without a value.
    pub fn set_cookie(&self) -> SetCookie {
        let mut cookie = SetCookie::new(&self.cookie, "").path(&self.path).same_site(match self.same_site {
            SameSite::Lax => cookie::SameSite::Lax,
            SameSite::Strict => cookie::SameSite::Strict,
            SameSite::None => cookie::SameSite::None,
        });
        if let Some(domain) = &self.domain {
            cookie = cookie.domain(domain);
        }
        if let Some(seconds) = self.max_age {
            cookie = cookie.max_age(Duration::from_secs(seconds));
        }
        if self.secure {
            cookie = cookie.secure();
        }
        if self.http_only { cookie.http_only() } else { cookie }
    }

    fn check(&self, errors: &mut Errors) {
        errors.0.extend(self.set_cookie().errors().into_iter().map(|error| self.cookie_error(error)));
        errors.ensure(self.secret.chars().count() >= 16, "/sticky/secret", || {
            "is too short to keep the cookie from being forged; write at least 16 random characters".into()
        });
        errors.ensure(self.max_age != Some(0), "/sticky/max-age", || {
            "0 would delete the cookie; write at least 1, or leave it out".into()
        });
    }

    /// Returns the error of the configuration for a mistake in the cookie.
    fn cookie_error(&self, error: CookieError) -> ConfigError {
        let StickyConfig { cookie, path, .. } = self;
        let (pointer, message) = match error {
            CookieError::Name => (
                "/sticky/cookie",
                format!("invalid name of a cookie: `{cookie}`; expected letters, digits, `-` and `_`"),
            ),
            CookieError::Path => (
                "/sticky/path",
                format!("invalid path of a cookie: `{path}`; expected one such as `/app`, without `;`"),
            ),
            CookieError::Domain => {
                let domain = self.domain.as_deref().unwrap_or_default();
                ("/sticky/domain", format!("invalid domain: `{domain}`; expected one such as `example.org`"))
            }
            CookieError::SameSiteWithoutSecure => {
                ("/sticky/same-site", "browsers refuse \"none\" without `secure = true`".into())
            }
            CookieError::PrefixWithoutSecure => {
                ("/sticky/cookie", format!("browsers refuse `{cookie}` without `secure = true`"))
            }
            CookieError::HostPrefix => {
                ("/sticky/cookie", format!("browsers refuse `{cookie}` with a domain, or a path other than `/`"))
            }
            CookieError::Value | CookieError::TooLong | CookieError::PartitionedWithoutSecure => {
                ("/sticky/cookie", error.to_string())
            }
        };
        ConfigError::at(pointer, message)
    }
}

/// The errors that were found in a configuration.
#[derive(Default)]
struct Errors(Vec<ConfigError>);

impl Errors {
    /// Notes an error unless a condition holds; returns whether it holds.
    fn ensure(&mut self, holds: bool, pointer: &str, message: impl FnOnce() -> String) -> bool {
        if !holds {
            self.0.push(ConfigError::at(pointer, message()));
        }
        holds
    }

    fn ensure_percent(&mut self, pointer: &str, percent: u32, allowed: RangeInclusive<u32>) -> bool {
        self.ensure(allowed.contains(&percent), pointer, || {
            format!("{percent} is out of range; write a percentage from {} to {}", allowed.start(), allowed.end())
        })
    }
}
