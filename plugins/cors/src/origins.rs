//! The origins that are allowed: exact ones, and patterns with a `*` in the first label or instead of the port.

use std::collections::BTreeSet;

/// The allowed origins.
#[derive(Debug, Default)]
pub struct Origins {
    /// Whether all origins are allowed.
    pub is_any: bool,
    exact: BTreeSet<String>,
    patterns: Vec<Pattern>,
}

/// An origin with a `*`.
#[derive(Debug, PartialEq, Eq)]
struct Pattern {
    /// The scheme with `://`.
    scheme: String,
    host: Host,
    port: Port,
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    Exact(String),
    /// A name with a `*` in the first label, which stands for at least one character.
    Star {
        before: String,
        after: String,
        /// Whether the `*` is the whole label, and so stands for several labels too.
        is_label: bool,
    },
}

#[derive(Debug, PartialEq, Eq)]
enum Port {
    /// The scheme's default, which an origin leaves out.
    Default,
    Exact(String),
    Any,
}

impl Origins {
    /// Adds an origin, as the manifest writes it. The error says what is expected.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        match text {
            "*" => self.is_any = true,
            "null" => drop(self.exact.insert(text.into())),
            _ => {
                let pattern = Pattern::parse(text)?;
                match (&pattern.host, &pattern.port) {
                    (Host::Exact(_), Port::Default | Port::Exact(_)) => drop(self.exact.insert(text.into())),
                    _ => self.patterns.push(pattern),
                }
            }
        }
        Ok(())
    }

    /// Whether an origin, as a browser writes it, is allowed.
    pub fn allow(&self, origin: &str) -> bool {
        self.is_any || self.exact.contains(origin) || self.patterns.iter().any(|pattern| pattern.matches(origin))
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let example = "expected one such as `https://app.example.org`";
        let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| !scheme.is_empty()) else {
            return Err(format!("invalid origin: `{text}` has no scheme; {example}"));
        };
        if let Some(origin) = rest.split_once('/').map(|(authority, _)| format!("{scheme}://{authority}")) {
            return Err(format!("invalid origin: `{text}` has a path; write `{origin}`"));
        }
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(format!(
                "invalid origin: `{text}`; browsers send origins in lower case; write `{}`",
                text.to_ascii_lowercase()
            ));
        }
        let (host, port) = split_port(rest);
        if matches!((scheme, port), ("http", Some("80")) | ("https", Some("443"))) {
            return Err(format!(
                "invalid origin: `{text}`; browsers leave out the default port; write `{scheme}://{host}`"
            ));
        }
        let port = match port {
            None => Port::Default,
            Some("*") => Port::Any,
            Some(port) if port.parse::<u16>().is_ok_and(|number| number.to_string() == port) => {
                Port::Exact(port.into())
            }
            Some(port) => return Err(format!("invalid origin: `{text}` has the port `{port}`; {example}")),
        };
        let is_scheme = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let Some(host) = Host::parse(host).filter(|_| is_scheme) else {
            let stars = "a `*` stands for the first label or a part of it, such as `https://*.example.org`";
            return Err(format!("invalid origin: `{text}`; {example}; {stars}; other alphabets as `xn--`"));
        };
        Ok(Pattern { scheme: format!("{scheme}://"), host, port })
    }

    fn matches(&self, origin: &str) -> bool {
        let Some(rest) = origin.strip_prefix(&self.scheme) else { return false };
        let (host, port) = split_port(rest);
        let has_port = match &self.port {
            Port::Default => port.is_none(),
            Port::Exact(wanted) => port == Some(wanted),
            Port::Any => port.is_none_or(|port| port.parse::<u16>().is_ok()),
        };
        has_port && self.host.matches(host)
    }
}

/// Splits a port off a host; the colons of an IPv6 address divide nothing.
fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

impl Host {
    fn parse(host: &str) -> Option<Self> {
        let Some((before, after)) = host.split_once('*') else {
            let is_ip6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let is_name = !host.is_empty() && host.bytes().all(is_of_name);
            let is_host = is_name || is_ip6.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
            return is_host.then(|| Host::Exact(host.into()));
        };
        let is_first_label = before.bytes().all(is_of_label);
        // A `*` before a single label would be all names of a top-level domain.
        let has_domain =
            after.trim_start_matches(|letter: char| letter != '.').matches('.').count() > 1 || after == ".localhost";
        let is_name = after.bytes().all(is_of_name) && !after.ends_with('.');
        let is_label = before.is_empty() && after.starts_with('.');
        (is_first_label && has_domain && is_name).then(|| Host::Star {
            before: before.into(),
            after: after.into(),
            is_label,
        })
    }

    fn matches(&self, host: &str) -> bool {
        match self {
            Host::Exact(wanted) => host == wanted,
            Host::Star { before, after, is_label } => {
                let star = host.strip_prefix(before.as_str()).and_then(|rest| rest.strip_suffix(after.as_str()));
                let is_part = |byte| if *is_label { is_of_name(byte) } else { is_of_label(byte) };
                star.is_some_and(|star| !star.is_empty() && star.bytes().all(is_part))
            }
        }
    }
}

/// Whether a byte can stand in a label of a host name, as browsers write it.
fn is_of_label(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)
}

fn is_of_name(byte: u8) -> bool {
    is_of_label(byte) || byte == b'.'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(texts: &[&str]) -> Origins {
        let mut origins = Origins::default();
        texts.iter().for_each(|text| origins.add(text).unwrap());
        origins
    }

    #[test]
    fn a_star_stands_for_names_below_and_for_nothing_else() {
        let origins = origins(&["https://*.example.org", "https://pr-*.preview.example.net", "http://localhost:*"]);
        for allowed in [
            "https://a.example.org",
            "https://a.b.example.org",
            "https://pr-17.preview.example.net",
            "http://localhost:3000",
            "http://localhost",
        ] {
            assert!(origins.allow(allowed), "{allowed}");
        }
        for refused in [
            "https://example.org",
            "https://evilexample.org",
            "http://a.example.org",
            "https://a.example.org:8443",
            "https://a.example.org.evil.example",
            "https://evil.example/.example.org",
            "https://evil.example#.example.org",
            "https://user@a.example.org",
            "https://.example.org:1",
            "https://pr-.preview.example.net",
            "https://pr-a.b.preview.example.net",
            "https://x.pr-a.preview.example.net",
            "https://localhost:3000",
            "http://localhost:x",
            "http://localhost:99999",
            "null",
            "",
        ] {
            assert!(!origins.allow(refused), "{refused}");
        }
    }

    #[test]
    fn null_is_allowed_only_by_its_name_or_with_all() {
        assert!(origins(&["null"]).allow("null") && origins(&["*"]).allow("null"));
        assert!(!origins(&["https://a.example"]).allow("null"));
    }

    #[test]
    fn origin_that_no_browser_sends_is_an_error() {
        for (text, wanted) in [
            ("app.example.org", "has no scheme"),
            ("https://app.example.org/", "write `https://app.example.org`"),
            ("https://app.example.org:443", "write `https://app.example.org`"),
            ("http://app.example.org:80", "write `http://app.example.org`"),
            ("https://App.example.org", "write `https://app.example.org`"),
            ("https://a.example:099", "the port `099`"),
            ("https://*.org", "invalid origin"),
            ("https://*", "invalid origin"),
            ("https://a.*.example.org", "invalid origin"),
            ("https://*.*.example.org", "invalid origin"),
            ("https://b\u{fc}cher.example", "invalid origin"),
            ("https://user@a.example", "invalid origin"),
            ("https://", "invalid origin"),
        ] {
            let error = Origins::default().add(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        for text in ["https://[::1]:8443", "http://192.0.2.1", "capacitor://localhost", "chrome-extension://abc"] {
            assert!(origins(&[text]).allow(text), "{text}");
        }
    }
}
