//! The configuration, and its conversion to the options of the policy.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use plugway_sdk::cache::{Cookies, Options, Query};
use plugway_sdk::{CacheStatus, ConfigError, ValueName};
use schemars::JsonSchema;
use serde::Deserialize;

/// The configuration of the cache, for decisions that the messages leave open. The defaults are the rules of RFC 9111.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The values that a response depends on besides its URI and `Vary`.
    pub key: Key,
    /// Values, such as `cookie.session`: a request in which one of them is not empty bypasses the cache.
    pub bypass: Vec<String>,
    /// `true`: the caching directives of requests (`Cache-Control`, `Pragma`) are ignored.
    pub ignore_requests: bool,
    /// Fields that take precedence over `Cache-Control`, in this order (RFC 9213); `["CDN-Cache-Control"]` by default.
    pub targeted: Option<Vec<String>>,
    /// Fields with tags for purging; `["Surrogate-Key", "Cache-Tag"]` by default.
    pub tags: Option<Vec<String>>,
    /// `true`: fields with tags aren't stored, so that hits don't contain them.
    pub hide_tags: bool,
    /// The handling of responses with `Set-Cookie`.
    pub cookies: CookieRule,
    /// The freshness lifetimes of responses without an explicit lifetime.
    pub lifetimes: Lifetimes,
    /// The time beyond its lifetime in which a response is served while it is revalidated, if the response doesn't set
    /// it (RFC 5861 §3).
    pub stale_while_revalidate: Option<String>,
    /// The time beyond its lifetime in which a response is served when the upstream fails, if the response doesn't set
    /// it (RFC 5861 §4).
    pub stale_if_error: Option<String>,
    /// The name of the cache in `Cache-Status` (RFC 9211), or `false` for no such field; `plugway` by default.
    pub report: Option<Report>,
    /// `true`: `Cache-Status` contains the cache key.
    pub report_key: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Key {
    /// Query parameters that are not in the cache key; `*` at the end of a name matches any suffix.
    pub ignore_query: Vec<String>,
    /// The only query parameters in the cache key; `*` at the end of a name matches any suffix. An empty list: none.
    pub only_query: Option<Vec<String>>,
    /// `true`: the order of query parameters doesn't matter.
    pub sort_query: bool,
    /// Additional values in the cache key, such as `cookie.lang` or `request.header.x-device`.
    pub values: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lifetimes {
    /// Lifetimes by status (`"404"`) or class (`"2xx"`), for responses without an explicit lifetime. Error responses
    /// are stored only with such an entry or with an explicit lifetime.
    pub status: BTreeMap<String, String>,
    /// The heuristic lifetime, in percent of the time since the last modification, for responses without an explicit
    /// lifetime (RFC 9111 §4.2.2); 10 by default, 0 for no heuristic.
    pub heuristic_percent: Option<u64>,
    /// The maximum of the heuristic lifetime; 24h by default.
    pub heuristic_most: Option<String>,
    /// The maximum freshness lifetime of any response.
    pub most: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CookieRule {
    /// Responses with `Set-Cookie` aren't stored.
    #[default]
    Refuse,
    /// The response is stored without the cookie; only the client that made the request gets the cookie.
    Strip,
    /// The response is stored with the cookie; all clients get the same cookie.
    Keep,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Report {
    Switch(bool),
    Name(String),
}

impl Config {
    /// Returns the entry of the cache in `Cache-Status`.
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

    /// Returns the options of the policy.
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

/// Returns names of fields in lower case; the error is about an invalid name.
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

/// Returns the lifetimes by status, with codes before classes, so that the narrower entry applies.
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

/// Parses a duration as in the manifest, and also in days.
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
