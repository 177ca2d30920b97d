//! The configuration, and what it comes to.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use plugway_sdk::cache::{Cookies, Options, Query};
use plugway_sdk::{CacheStatus, ConfigError, ValueName};
use schemars::JsonSchema;
use serde::Deserialize;

/// What the cache does where messages leave it free to. With nothing here it does what RFC 9111 says.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// What a response depends on besides its URI and `Vary`.
    pub key: Key,
    /// Values, such as `cookie.session`: requests that have one go past the cache.
    pub bypass: Vec<String>,
    /// `true`: what requests say about caching (`Cache-Control`, `Pragma`) doesn't count.
    pub ignore_requests: bool,
    /// Fields that go before `Cache-Control`, in this order (RFC 9213); `["CDN-Cache-Control"]` if not given.
    pub targeted: Option<Vec<String>>,
    /// Fields with tags for purging; `["Surrogate-Key", "Cache-Tag"]` if not given.
    pub tags: Option<Vec<String>>,
    /// `true`: fields with tags aren't stored, so that hits don't have them.
    pub hide_tags: bool,
    /// What becomes of responses with `Set-Cookie`.
    pub cookies: CookieRule,
    /// How long a response is fresh that doesn't say.
    pub lifetimes: Lifetimes,
    /// For so long beyond its lifetime a response is served while it is validated, where it doesn't say (RFC 5861 §3).
    pub stale_while_revalidate: Option<String>,
    /// For so long beyond its lifetime a response is served when the upstream fails, where it doesn't say
    /// (RFC 5861 §4).
    pub stale_if_error: Option<String>,
    /// The name of the cache in `Cache-Status` (RFC 9211), or `false` for no such field; `plugway` if not given.
    pub report: Option<Report>,
    /// `true`: `Cache-Status` tells the key.
    pub report_key: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Key {
    /// Query parameters that don't count; `*` at the end of one stands for any rest.
    pub ignore_query: Vec<String>,
    /// The only query parameters that count; likewise. An empty list: none counts.
    pub only_query: Option<Vec<String>>,
    /// `true`: the order of query parameters doesn't count.
    pub sort_query: bool,
    /// Further values that count, such as `cookie.lang` or `request.header.x-device`.
    pub values: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lifetimes {
    /// By status (`"404"`) or class (`"2xx"`), where the response has no lifetime of its own. Errors are kept only so, or
    /// where they say it themselves.
    pub status: BTreeMap<String, String>,
    /// Hundredths of the time since its last modification for which a response is fresh that doesn't say
    /// (RFC 9111 §4.2.2); 10 if not given, 0 for never.
    pub heuristic_percent: Option<u64>,
    /// The most that comes of that; 24h if not given.
    pub heuristic_most: Option<String>,
    /// No response is fresh for longer.
    pub most: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CookieRule {
    /// They aren't stored.
    #[default]
    Refuse,
    /// They are stored without the cookie, which only the client gets that made the request.
    Strip,
    /// They are stored with the cookie: everybody gets the same one.
    Keep,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Report {
    Switch(bool),
    Name(String),
}

impl Config {
    /// What responses tell of the cache.
    pub fn cache_status(&self) -> Result<CacheStatus, ConfigError> {
        let name = match &self.report {
            Some(Report::Switch(false)) => None,
            Some(Report::Switch(true)) | None => CacheStatus::default().name,
            Some(Report::Name(name)) => {
                let is_token = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte));
                if !is_token || !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
                    return Err(ConfigError::at("/report", format!("`{name}` is no name; write letters, digits, `-`")));
                }
                Some(name.clone())
            }
        };
        Ok(CacheStatus { name, key: self.report_key })
    }

    /// What the policy is to do.
    pub fn options(self) -> Result<Options, ConfigError> {
        let defaults = Options::default();
        let query = match self.key.only_query {
            Some(_) if !self.key.ignore_query.is_empty() => {
                let message = "either `only-query` or `ignore-query`: what isn't among the only ones is ignored anyway";
                return Err(ConfigError::at("/key/only-query", message));
            }
            Some(only) => Query::Only(only),
            None if self.key.ignore_query.is_empty() => Query::Whole,
            None => Query::Without(self.key.ignore_query),
        };
        let percent = self.lifetimes.heuristic_percent.unwrap_or(defaults.heuristic_percent);
        if percent > 100 {
            return Err(ConfigError::at("/lifetimes/heuristic-percent", "a share is between 0 and 100"));
        }
        let time = |text: Option<&String>, path: &str, default| text.map_or(Ok(default), |text| duration(text, path));
        Ok(Options {
            query,
            sort_query: self.key.sort_query,
            key: values(&self.key.values, "/key/values")?,
            bypass: values(&self.bypass, "/bypass")?,
            obey_requests: !self.ignore_requests,
            targeted: self.targeted.map_or(Ok(defaults.targeted), |names| fields(&names, "/targeted"))?,
            tags: self.tags.map_or(Ok(defaults.tags), |names| fields(&names, "/tags"))?,
            hide_tags: self.hide_tags,
            cookies: match self.cookies {
                CookieRule::Refuse => Cookies::Refuse,
                CookieRule::Strip => Cookies::Strip,
                CookieRule::Keep => Cookies::Keep,
            },
            heuristic_percent: percent,
            heuristic_most: time(
                self.lifetimes.heuristic_most.as_ref(),
                "/lifetimes/heuristic-most",
                defaults.heuristic_most,
            )?,
            lifetimes: lifetimes(&self.lifetimes.status)?,
            longest: time(self.lifetimes.most.as_ref(), "/lifetimes/most", defaults.longest)?,
            stale_while_revalidate: time(
                self.stale_while_revalidate.as_ref(),
                "/stale-while-revalidate",
                Duration::ZERO,
            )?,
            stale_if_error: time(self.stale_if_error.as_ref(), "/stale-if-error", Duration::ZERO)?,
        })
    }
}

/// Names of fields, in lower case.
fn fields(names: &[String], path: &str) -> Result<Vec<String>, ConfigError> {
    let field = |(place, name): (usize, &String)| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_part) {
            let message = format!("`{name}` is no name of a field; write one such as `Cache-Tag`");
            return Err(ConfigError::at(format!("{path}/{place}"), message));
        }
        Ok(name.to_ascii_lowercase())
    };
    names.iter().enumerate().map(field).collect()
}

fn values(names: &[String], path: &str) -> Result<Vec<ValueName>, ConfigError> {
    let value = |(place, name): (usize, &String)| {
        let message = |message: String| ConfigError::at(format!("{path}/{place}"), message);
        let value = name.parse().map_err(message)?;
        match value {
            ValueName::Status | ValueName::ResponseField(_) | ValueName::Endpoint | ValueName::RequestId => {
                Err(message(format!("`{name}` isn't known before the response, or differs each time")))
            }
            value => Ok(value),
        }
    };
    names.iter().enumerate().map(value).collect()
}

/// Codes before classes, so that the narrower counts.
fn lifetimes(status: &BTreeMap<String, String>) -> Result<Vec<(RangeInclusive<u16>, Duration)>, ConfigError> {
    let mut lifetimes = Vec::new();
    for (codes, text) in status {
        let path = format!("/lifetimes/status/{}", codes.replace('~', "~0").replace('/', "~1"));
        let range = match codes.as_bytes() {
            [class @ b'2'..=b'5', b'x', b'x'] => {
                let first = u16::from(class - b'0') * 100;
                first..=first + 99
            }
            _ => match codes.parse() {
                Ok(code) if (200..600).contains(&code) && code != 206 && code != 304 => code..=code,
                _ => return Err(ConfigError::at(&path, format!("`{codes}` is no status; write `404` or `4xx`"))),
            },
        };
        lifetimes.push((range, duration(text, &path)?));
    }
    lifetimes.sort_by_key(|(codes, _)| codes.end() - codes.start());
    Ok(lifetimes)
}

/// As the manifest writes times, and days.
fn duration(text: &str, path: &str) -> Result<Duration, ConfigError> {
    let digits = text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let number: Option<u64> = text[..digits].parse().ok().filter(|number| *number <= 1 << 32);
    let unit = match text[digits..].trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let message = || format!("`{text}` is no time; write `10s`, `5m`, `1h` or `7d`");
    let number = number.filter(|_| unit > 0).ok_or_else(|| ConfigError::at(path, message()))?;
    Ok(Duration::from_millis(number * unit))
}
