//! The one spelling of hosts and paths. Both forms are their own canonical form, so that a redirect ends there.

use std::borrow::Cow;

use plugway_sdk::authority::{is_authority, never_requested};
use plugway_sdk::{ConfigError, Setup};

use crate::config::{self, Redirect, TrailingSlash};
use crate::rules::check_status;

/// The rules for hosts and paths.
#[derive(Debug)]
pub struct Canonical {
    host: Option<Host>,
    trailing_slash: Option<TrailingSlash>,
    is_lower: bool,
    /// The status of the redirect; `None` if the upstream gets the canonical form.
    pub status: Option<u16>,
}

#[derive(Debug, PartialEq)]
enum Host {
    Www,
    NoWww,
    Fixed(String),
}

impl Canonical {
    /// Checks the rules; errors are reported.
    pub fn new(config: &config::Canonical, setup: &mut Setup) -> Self {
        let host = config.host.as_deref().map(|host| match host {
            "www" => Host::Www,
            "no-www" => Host::NoWww,
            fixed => Host::Fixed(fixed.into()),
        });
        if let Some(Host::Fixed(host)) = &host
            && !is_host(host)
        {
            let message = format!(
                "invalid host: `{host}`; expected `www`, `no-www`, or a host in lower case such as `example.org`"
            );
            setup.report(ConfigError::at("/canonical/host", message));
        }
        let status = match config.redirect {
            None => Some(308),
            Some(Redirect::Status(status)) => Some(status),
            Some(Redirect::Off(_)) => None,
        };
        let invalid = match config.redirect {
            Some(Redirect::Off(true)) => {
                Err("invalid status: `true`; expected a status such as 308, or `false`".into())
            }
            _ => status.map_or(Ok(()), check_status),
        };
        if let Err(message) = invalid {
            setup.report(ConfigError::at("/canonical/redirect", message));
        }
        Canonical { host, trailing_slash: config.trailing_slash, is_lower: config.lower_case, status }
    }

    /// Returns whether hosts have a canonical form.
    pub fn has_host(&self) -> bool {
        self.host.is_some()
    }

    /// Returns the canonical form of an authority; `None` if the authority is canonical already.
    pub fn authority(&self, authority: &str) -> Option<String> {
        match self.host.as_ref()? {
            Host::Www if !authority.starts_with("www.") && is_name(authority) => Some(format!("www.{authority}")),
            Host::NoWww => authority.strip_prefix("www.").filter(|rest| is_name(rest)).map(String::from),
            Host::Fixed(fixed) if fixed.contains(':') && fixed != authority => Some(fixed.clone()),
            Host::Fixed(fixed) if !fixed.contains(':') => {
                let (host, port) = split_port(authority);
                (host != fixed).then(|| format!("{fixed}{port}"))
            }
            Host::Www | Host::Fixed(_) => None,
        }
    }

    /// Returns the canonical form of a path.
    pub fn path<'a>(&self, path: &'a str) -> Cow<'a, str> {
        let mut path = if self.is_lower { lower(path) } else { Cow::Borrowed(path) };
        match self.trailing_slash {
            Some(TrailingSlash::Remove) if path.len() > 1 && path.ends_with('/') => {
                let end = path.trim_end_matches('/').len().max(1);
                path.to_mut().truncate(end);
            }
            Some(TrailingSlash::Add)
                if !path.rsplit('/').next().is_some_and(|last| last.is_empty() || last.contains('.')) =>
            {
                path.to_mut().push('/');
            }
            _ => {}
        }
        path
    }
}

/// Returns a path in lower case, except for the digits of its escapes, which have upper case in the host's normal form.
fn lower(path: &str) -> Cow<'_, str> {
    if !path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Borrowed(path);
    }
    let mut digits = 0;
    let lowered = path.chars().map(|letter| {
        let is_digit = digits > 0;
        digits = if letter == '%' { 2 } else { digits - i32::from(is_digit) };
        if is_digit { letter } else { letter.to_ascii_lowercase() }
    });
    Cow::Owned(lowered.collect())
}

/// Splits an authority before the colon of its port; the port is empty if there is none.
fn split_port(authority: &str) -> (&str, &str) {
    let address = authority.rfind(']').map_or(0, |end| end + 1);
    let colon = authority[address..].find(':').map_or(authority.len(), |at| address + at);
    authority.split_at(colon)
}

/// Whether an authority is a domain name, to which `www.` may be added, and not an address or a name without a dot.
fn is_name(authority: &str) -> bool {
    let (host, _) = split_port(authority);
    host.contains('.') && !host.starts_with('[') && !host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// Whether a text is a host that requests can have, with or without a port. An address of IPv6 is none, because its colons
/// would be taken for a port.
fn is_host(host: &str) -> bool {
    let (name, _) = split_port(host);
    is_authority(host) && never_requested(name).is_none() && !name.starts_with('[')
}
