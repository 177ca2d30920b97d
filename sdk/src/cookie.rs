//! Cookies (RFC 6265): the field `Cookie` of requests is read and changed, and `Set-Cookie` of responses is written.
//!
//! ```
//! use std::time::Duration;
//!
//! use plugway_sdk::cookie::{self, SameSite, SetCookie};
//! use plugway_sdk::testing::{Harness, Request};
//! use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Response, ResponseFilter, Setup, Values, Verdict};
//!
//! /// A filter that remembers the language of a client, and hides the cookie from the upstream.
//! struct Language {
//!     cookies: Input,
//!     set: String,
//! }
//!
//! impl Plugin for Language {
//!     type Config = ();
//!
//!     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
//!         let set = SetCookie::new("lang", "en")
//!             .path("/")
//!             .max_age(Duration::from_secs(86_400))
//!             .same_site(SameSite::Lax)
//!             .secure()
//!             .build()
//!             .map_err(|error| ConfigError::at("", error.to_string()))?;
//!         Ok(Language { cookies: setup.request.field("cookie"), set })
//!     }
//! }
//!
//! impl RequestFilter for Language {
//!     fn on_request(&mut self, request: &Values) -> Verdict {
//!         let Some(left) = request.bytes(self.cookies).and_then(|field| cookie::without(field, "lang")) else {
//!             return Verdict::proceed();
//!         };
//!         if left.is_empty() { Verdict::proceed().remove_field("cookie") } else { Verdict::proceed().set_field("cookie", left) }
//!     }
//! }
//!
//! impl ResponseFilter for Language {
//!     fn on_response(&mut self, _: &Values) -> Verdict {
//!         Verdict::proceed().append_field("set-cookie", self.set.as_str())
//!     }
//! }
//!
//! let mut filter = Harness::<Language>::new(serde_json::json!({})).unwrap();
//! let passed = filter.request(Request::get("/").field("cookie", "a=1; lang=fr; b=2")).expect_passed();
//! assert_eq!(passed.text("cookie"), Some("a=1; b=2"));
//! let response = filter.response(&Request::get("/"), Response::new(200)).expect_passed();
//! assert_eq!(response.fields[0].1, b"lang=en; Path=/; Max-Age=86400; Secure; SameSite=Lax");
//! ```

use std::fmt;
use std::time::Duration;

use crate::token::is_token;

/// Returns the cookies of one line of the field `Cookie` as names and values (RFC 6265 §5.4). A value keeps its quotes. A
/// pair without a `=` is skipped.
///
/// ```
/// let cookies: Vec<_> = plugway_sdk::cookie::pairs(b"a=1; b=\"2\"; c").collect();
/// assert_eq!(cookies, [(&b"a"[..], &b"1"[..]), (b"b", b"\"2\"")]);
/// ```
pub fn pairs(field: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    field.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((&pair[..at], &pair[at + 1..]))
    })
}

/// Returns the cookies of the field `Cookie` as a declared value has it: several lines arrive as one, with commas between them.
///
/// ```
/// let cookies: Vec<_> = plugway_sdk::cookie::all_pairs(b"a=1; b=2,c=3").collect();
/// assert_eq!(cookies, [(&b"a"[..], &b"1"[..]), (b"b", b"2"), (b"c", b"3")]);
/// ```
pub fn all_pairs(field: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    field.split(|byte| *byte == b',').flat_map(pairs)
}

/// Returns the field `Cookie` without all cookies of a name; `None` if there is none of them. Several lines of the field
/// arrive as one, with commas between them.
pub fn without(field: &[u8], name: &str) -> Option<Vec<u8>> {
    let is_other =
        |pair: &&[u8]| pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii() != name.as_bytes();
    if field.split(|byte| [b';', b','].contains(byte)).all(|pair| is_other(&pair)) {
        return None;
    }
    let mut left: Vec<Vec<u8>> = Vec::new();
    for pair in field.split(|byte| *byte == b';') {
        let lines: Vec<&[u8]> = pair.split(|byte| *byte == b',').filter(is_other).collect();
        let pair = lines.join(&b',').trim_ascii().to_vec();
        if !pair.is_empty() {
            left.push(pair);
        }
    }
    Some(left.join(&b"; "[..]))
}

/// A cookie that a response sets, with its attributes.
///
/// [`build`](SetCookie::build) makes the checks of browsers, which silently discard a cookie with a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetCookie {
    name: String,
    value: String,
    path: Option<String>,
    domain: Option<String>,
    max_age: Option<Duration>,
    secure: bool,
    http_only: bool,
    same_site: Option<SameSite>,
    partitioned: bool,
}

/// The requests from other sites that include a cookie (RFC 6265bis §4.1.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Only requests that follow a link include the cookie.
    Lax,
    /// No requests from other sites include the cookie.
    Strict,
    /// All requests include the cookie; the cookie has to be [`secure`](SetCookie::secure).
    None,
}

/// A mistake in a cookie, for which browsers discard the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CookieError {
    /// The name is no token (RFC 6265 §4.1.1).
    Name,
    /// The value has spaces, quotes, commas, semicolons, backslashes, or is not ASCII.
    Value,
    /// Name and value have more than 4,096 bytes together (RFC 6265bis §5.6).
    TooLong,
    /// The path doesn't begin with `/`, has a `;` or a control character, or more than 1,024 bytes.
    Path,
    /// The domain is no name of a host, or has more than 1,024 bytes.
    Domain,
    /// `SameSite=None` without `Secure`.
    SameSiteWithoutSecure,
    /// `Partitioned` without `Secure`.
    PartitionedWithoutSecure,
    /// A name that begins with `__Secure-` or `__Host-`, without `Secure`.
    PrefixWithoutSecure,
    /// A name that begins with `__Host-`, with a domain, or without the path `/`.
    HostPrefix,
}

/// The maximum length of name and value together, in bytes.
const MAX_PAIR: usize = 4096;

/// The maximum length of the value of an attribute, in bytes.
const MAX_ATTRIBUTE: usize = 1024;

impl SetCookie {
    /// Creates a cookie without attributes: the browser sends it to the host that set it, below the path of the request,
    /// until the browser is closed.
    pub fn new(name: &str, value: &str) -> Self {
        SetCookie {
            name: name.into(),
            value: value.into(),
            path: None,
            domain: None,
            max_age: None,
            secure: false,
            http_only: false,
            same_site: None,
            partitioned: false,
        }
    }

    /// Replaces the value.
    pub fn value(mut self, value: &str) -> Self {
        self.value = value.into();
        self
    }

    /// Sets the path below which the cookie is sent.
    pub fn path(mut self, path: &str) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Sets the domain to whose hosts the cookie is sent.
    pub fn domain(mut self, domain: &str) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// Sets the lifetime, in whole seconds. A lifetime of zero deletes the cookie.
    pub fn max_age(mut self, lifetime: Duration) -> Self {
        self.max_age = Some(lifetime);
        self
    }

    /// Sends the cookie over HTTPS only.
    pub fn secure(mut self) -> Self {
        self.secure = true;
        self
    }

    /// Hides the cookie from scripts.
    pub fn http_only(mut self) -> Self {
        self.http_only = true;
        self
    }

    /// Sets the requests from other sites that include the cookie.
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = Some(same_site);
        self
    }

    /// Keeps the cookie apart for each site that embeds this one.
    pub fn partitioned(mut self) -> Self {
        self.partitioned = true;
        self
    }

    /// Returns the value of `Set-Cookie`; the first mistake if there is one.
    pub fn build(&self) -> Result<String, CookieError> {
        match self.errors().first() {
            Some(error) => Err(*error),
            None => Ok(self.line()),
        }
    }

    /// Returns all mistakes, in the order of [`CookieError`].
    pub fn errors(&self) -> Vec<CookieError> {
        let name = self.name.to_ascii_lowercase();
        let is_of_host = name.starts_with("__host-");
        let has_prefix = is_of_host || name.starts_with("__secure-");
        let is_path =
            |path: &String| path.starts_with('/') && path.bytes().all(is_of_attribute) && path.len() <= MAX_ATTRIBUTE;
        let checks = [
            (CookieError::Name, is_token(&self.name)),
            (CookieError::Value, is_value(&self.value)),
            (CookieError::TooLong, self.name.len() + self.value.len() <= MAX_PAIR),
            (CookieError::Path, self.path.as_ref().is_none_or(is_path)),
            (CookieError::Domain, self.domain.as_deref().is_none_or(is_domain)),
            (CookieError::SameSiteWithoutSecure, self.secure || self.same_site != Some(SameSite::None)),
            (CookieError::PartitionedWithoutSecure, self.secure || !self.partitioned),
            (CookieError::PrefixWithoutSecure, self.secure || !has_prefix),
            (CookieError::HostPrefix, !is_of_host || (self.path.as_deref() == Some("/") && self.domain.is_none())),
        ];
        checks.into_iter().filter(|(_, holds)| !holds).map(|(error, _)| error).collect()
    }

    fn line(&self) -> String {
        let mut line = format!("{}={}", self.name, self.value);
        let attributes = [
            ("; Path=", self.path.clone()),
            ("; Domain=", self.domain.clone()),
            ("; Max-Age=", self.max_age.map(|lifetime| lifetime.as_secs().to_string())),
            ("; Secure", self.secure.then(String::new)),
            ("; HttpOnly", self.http_only.then(String::new)),
            ("; SameSite=", self.same_site.map(|same_site| same_site.to_string())),
            ("; Partitioned", self.partitioned.then(String::new)),
        ];
        for (name, value) in attributes {
            if let Some(value) = value {
                line.push_str(name);
                line.push_str(&value);
            }
        }
        line
    }
}

/// Formats the value of the attribute.
impl fmt::Display for SameSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SameSite::Lax => "Lax",
            SameSite::Strict => "Strict",
            SameSite::None => "None",
        })
    }
}

impl fmt::Display for CookieError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CookieError::Name => "invalid name of a cookie; expected letters, digits, `-` and `_`",
            CookieError::Value => "invalid value of a cookie; expected ASCII without spaces, `\"`, `,`, `;` and `\\`",
            CookieError::TooLong => "name and value of a cookie are too long; expected at most 4096 bytes",
            CookieError::Path => "invalid path of a cookie; expected one such as `/app`, without `;`",
            CookieError::Domain => "invalid domain of a cookie; expected one such as `example.org`",
            CookieError::SameSiteWithoutSecure => "a cookie with `SameSite=None` without `Secure`; add `Secure`",
            CookieError::PartitionedWithoutSecure => "a cookie with `Partitioned` without `Secure`; add `Secure`",
            CookieError::PrefixWithoutSecure => {
                "a cookie with a prefix such as `__Secure-` without `Secure`; add `Secure`"
            }
            CookieError::HostPrefix => "a cookie with the prefix `__Host-`; expected `Path=/` and no domain",
        })
    }
}

impl std::error::Error for CookieError {}

/// Whether a text consists of the bytes of a value, with or without quotes around them (RFC 6265 §4.1.1).
fn is_value(text: &str) -> bool {
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    inner.bytes().all(|byte| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte))
}

/// Whether a byte may be in an attribute: RFC 6265 §4.1.1 excludes control characters and `;`, which ends the attribute.
fn is_of_attribute(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) && byte != b';'
}

fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(is_allowed)
    };
    text.len() <= MAX_ATTRIBUTE && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_removed_from_all_lines() {
        let without = |field: &str| without(field.as_bytes(), "key").map(|left| String::from_utf8(left).unwrap());
        let text = |text: &str| Some(text.to_string());
        assert_eq!(without("a=1; key=x; b=2"), text("a=1; b=2"));
        assert_eq!(without("key=x"), text(""));
        assert_eq!(without("key=x; a=1, 2, key=y; b=2"), text("a=1, 2; b=2"));
        assert_eq!(without("key"), text(""));
        assert_eq!((without("a=key; keys=1"), without("")), (None, None));
    }

    #[test]
    fn attributes_are_written_in_one_order() {
        let full = SetCookie::new("__Host-id", "\"a\"").partitioned().same_site(SameSite::None).http_only().secure();
        let full = full.max_age(Duration::from_millis(1999)).path("/");
        let line = "__Host-id=\"a\"; Path=/; Max-Age=1; Secure; HttpOnly; SameSite=None; Partitioned";
        assert_eq!(full.build().as_deref(), Ok(line));
        let wide = SetCookie::new("a", "").domain("example.org").max_age(Duration::ZERO);
        assert_eq!(wide.build().as_deref(), Ok("a=; Domain=example.org; Max-Age=0"));
    }

    #[test]
    fn cookies_that_browsers_discard_are_errors() {
        let cookie = SetCookie::new;
        let long = "x".repeat(4096);
        let cases = [
            (cookie("", "1"), CookieError::Name),
            (cookie("a b", "1"), CookieError::Name),
            (cookie("a", "1; Path=/"), CookieError::Value),
            (cookie("a", "\u{e9}"), CookieError::Value),
            (cookie("a", "\"1"), CookieError::Value),
            (cookie("a", "1\r\n"), CookieError::Value),
            (cookie("a", &long), CookieError::TooLong),
            (cookie("a", "1").path("app"), CookieError::Path),
            (cookie("a", "1").path("/;Secure"), CookieError::Path),
            (cookie("a", "1").path(&format!("/{long}")), CookieError::Path),
            (cookie("a", "1").domain("a..b"), CookieError::Domain),
            (cookie("a", "1").domain("a;b"), CookieError::Domain),
            (cookie("a", "1").same_site(SameSite::None), CookieError::SameSiteWithoutSecure),
            (cookie("a", "1").partitioned(), CookieError::PartitionedWithoutSecure),
            (cookie("__SECURE-a", "1"), CookieError::PrefixWithoutSecure),
            (cookie("__Host-a", "1").secure(), CookieError::HostPrefix),
            (cookie("__Host-a", "1").secure().path("/").domain("a"), CookieError::HostPrefix),
        ];
        for (cookie, error) in cases {
            assert_eq!((cookie.build(), cookie.errors()), (Err(error), vec![error]), "{cookie:?}");
        }
    }
}
