//! The configuration, and its conversion to the options of the policy.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use plugway_sdk::cache::{Cookies, Options, Query};
use plugway_sdk::token::is_token;
use plugway_sdk::{CacheStatus, ConfigError, Setup, ValueName, pointer, units};
use schemars::JsonSchema;
use serde::Deserialize;

/// The configuration of the cache, for decisions that the messages leave open. The defaults are the rules of RFC 9111.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The values that a response depends on besides its URI and `Vary`.
    pub key: Key,
    /// Values, such as `cookie.session`: a request in which one of them is not empty bypasses the cache. `*` at the end
    /// of a cookie's name matches any suffix.
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
    #[schemars(extend("examples" = ["1m"]))]
    pub stale_while_revalidate: Option<String>,
    /// The time beyond its lifetime in which a response is served when the upstream fails, if the response doesn't set
    /// it (RFC 5861 §4).
    #[schemars(extend("examples" = ["1h"]))]
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
    #[schemars(extend("examples" = ["24h"]))]
    pub heuristic_most: Option<String>,
    /// The maximum freshness lifetime of any response.
    #[schemars(extend("examples" = ["1h"]))]
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
    /// Returns the entry of the cache in `Cache-Status`, and reports an invalid name.
    pub fn cache_status(&self, setup: &mut Setup) -> CacheStatus {
        let name = match &self.report {
            Some(Report::Switch(false)) => None,
            Some(Report::Switch(true)) | None => CacheStatus::default().name,
            Some(Report::Name(name)) => {
                let is_token = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte));
                if !is_token || !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
                    let message = format!("invalid name: `{name}`; expected letters, digits and `-`");
                    setup.report(ConfigError::at("/report", message));
                }
                Some(name.clone())
            }
        };
        CacheStatus { name, key: self.report_key }
    }

    /// Returns the options of the policy, and reports all errors in them.
    pub fn options(self, setup: &mut Setup) -> Options {
        let defaults = Options::default();
        let query = match self.key.only_query {
            Some(only) => {
                if !self.key.ignore_query.is_empty() {
                    let message =
                        "either `only-query` or `ignore-query`: what isn't among the only ones is ignored anyway";
                    setup.report(ConfigError::at("/key/only-query", message));
                }
                Query::Only(only)
            }
            None if self.key.ignore_query.is_empty() => Query::Whole,
            None => Query::Without(self.key.ignore_query),
        };
        let percent = self.lifetimes.heuristic_percent.unwrap_or(defaults.heuristic_percent);
        if percent > 100 {
            setup.report(ConfigError::at("/lifetimes/heuristic-percent", "a share is between 0 and 100"));
        }
        let whole_names = self.bypass.iter().enumerate().filter(|(_, name)| cookie_prefix(name).is_none());
        Options {
            query,
            sort_query: self.key.sort_query,
            key: values(self.key.values.iter().enumerate(), "/key/values", setup),
            bypass: values(whole_names, "/bypass", setup),
            bypass_cookies: self.bypass.iter().filter_map(|name| cookie_prefix(name)).map(String::from).collect(),
            obey_requests: !self.ignore_requests,
            targeted: self.targeted.map_or(defaults.targeted, |names| fields(&names, "/targeted", setup)),
            tags: self.tags.map_or(defaults.tags, |names| fields(&names, "/tags", setup)),
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
                setup,
            ),
            lifetimes: lifetimes(&self.lifetimes.status, setup),
            longest: time(self.lifetimes.most.as_ref(), "/lifetimes/most", defaults.longest, setup),
            stale_while_revalidate: time(
                self.stale_while_revalidate.as_ref(),
                "/stale-while-revalidate",
                Duration::ZERO,
                setup,
            ),
            stale_if_error: time(self.stale_if_error.as_ref(), "/stale-if-error", Duration::ZERO, setup),
        }
    }
}

/// Returns the value of a result; an error is reported.
fn reported<T>(parsed: Result<T, ConfigError>, setup: &mut Setup) -> Option<T> {
    parsed.map_err(|error| setup.report(error)).ok()
}

/// Returns the time that a text names, or a default; an invalid time is reported.
fn time(text: Option<&String>, path: &str, default: Duration, setup: &mut Setup) -> Duration {
    text.and_then(|text| reported(duration(text, path), setup)).unwrap_or(default)
}

/// Returns names of fields in lower case; invalid names are reported.
fn fields(names: &[String], path: &str, setup: &mut Setup) -> Vec<String> {
    let field = |(place, name): (usize, &String)| {
        if !is_token(name) {
            let message = format!("invalid name of a field: `{name}`; expected one such as `Cache-Tag`");
            return Err(ConfigError::at(format!("{path}/{place}"), message));
        }
        Ok(name.to_ascii_lowercase())
    };
    names.iter().enumerate().filter_map(|name| reported(field(name), setup)).collect()
}

/// Returns the beginning of the names of cookies that a pattern such as `cookie.wordpress_logged_in_*` stands for; `None`
/// for other values.
fn cookie_prefix(name: &str) -> Option<&str> {
    name.strip_prefix("cookie.")?.strip_suffix('*').filter(|begin| !begin.contains(['*', '=', ';']))
}

/// Returns the values with these names, each with its place in the list; invalid names are reported.
fn values<'a>(names: impl Iterator<Item = (usize, &'a String)>, path: &str, setup: &mut Setup) -> Vec<ValueName> {
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
    names.filter_map(|name| reported(value(name), setup)).collect()
}

/// Returns the lifetimes by status, with codes before classes, so that the narrower entry applies; errors are reported.
fn lifetimes(status: &BTreeMap<String, String>, setup: &mut Setup) -> Vec<(RangeInclusive<u16>, Duration)> {
    let mut lifetimes = Vec::new();
    for (codes, text) in status {
        let path = pointer::member("/lifetimes/status", codes);
        let range = status_codes(codes).ok_or_else(|| {
            ConfigError::at(&path, format!("invalid status: `{codes}`; expected one such as `404` or `4xx`"))
        });
        if let (Some(range), Some(lifetime)) = (reported(range, setup), reported(duration(text, &path), setup)) {
            lifetimes.push((range, lifetime));
        }
    }
    lifetimes.sort_by_key(|(codes, _)| codes.end() - codes.start());
    lifetimes
}

/// Returns the status codes of a code or a class; `None` for other texts, and for codes that no lifetime fits.
fn status_codes(text: &str) -> Option<RangeInclusive<u16>> {
    if let [class @ b'2'..=b'5', b'x', b'x'] = text.as_bytes() {
        let first = u16::from(class - b'0') * 100;
        return Some(first..=first + 99);
    }
    let code = text.parse().ok().filter(|code| (200..600).contains(code) && *code != 206 && *code != 304);
    code.map(|code| code..=code)
}

/// Parses a duration.
fn duration(text: &str, path: &str) -> Result<Duration, ConfigError> {
    units::duration(text).map_err(|message| ConfigError::at(path, message))
}
