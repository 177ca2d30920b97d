//! The normal form of an authority: a host has one meaning, however it is spelled (RFC 3986 §3.2.2, §6.2.2, §6.2.3).
//! [`crate::protocol::request_target`] normalises `Host`, so that routes, caches, plugins and endpoints see one spelling.
//!
//! - Letters are in lower case. Escapes are refused: names in the DNS have none, and neither the target of HTTP/1.1 in
//!   absolute form, nor `:authority`, nor TLS could carry one here, so that `Host` alone would give them a meaning.
//! - The dot that ends a fully qualified name is left out (RFC 3986 §3.2.2); empty labels are refused.
//! - A port has no leading zeros; an empty port and that of the scheme are left out (RFC 9110 §4.2.3).
//! - An IPv6 address is written as RFC 5952 says; a literal that is no address is refused.
//! - A name whose last label is a number is an IPv4 address in one of the forms that `inet_aton` and browsers read
//!   (`127.1`, `0x7f.1`, `2130706433`), and is written with four decimal numbers (RFC 3986 §7.4).

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::protocol::framing::is_authority;

/// The reason why an authority has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityError {
    /// The text is no host with an optional port.
    Form,
    /// The host has a percent sign.
    Escape,
    /// The port is more than 65535.
    Port,
    /// The brackets hold no IPv6 address.
    Literal,
    /// The host has an empty label.
    Label,
}

impl AuthorityError {
    /// Returns the reason as a text for the log.
    pub fn reason(self) -> &'static str {
        match self {
            AuthorityError::Form => "Host is no authority",
            AuthorityError::Escape => "the host has a percent-encoded byte, which no name in the DNS has",
            AuthorityError::Port => "the port of Host is more than 65535",
            AuthorityError::Literal => "the host has no IPv6 address in its brackets",
            AuthorityError::Label => "the host has an empty label",
        }
    }
}

/// Returns the normal form of an authority, without the port of the scheme if that is known.
pub fn normal(authority: &[u8], scheme_port: Option<u16>) -> Result<Cow<'_, [u8]>, AuthorityError> {
    if !is_authority(authority) {
        return Err(AuthorityError::Form);
    }
    let (written, digits) = split(authority);
    let host = host(written)?;
    let Some(port) = port(digits)?.filter(|port| Some(*port) != scheme_port) else { return Ok(host) };
    let port = port.to_string();
    match host {
        Cow::Borrowed(_) if digits == port.as_bytes() => Ok(Cow::Borrowed(authority)),
        host => Ok(Cow::Owned([&*host, b":", port.as_bytes()].concat())),
    }
}

/// Returns the normal form of a host without port.
pub fn host(host: &[u8]) -> Result<Cow<'_, [u8]>, AuthorityError> {
    if let Some(literal) = host.strip_prefix(b"[") {
        let literal = literal.strip_suffix(b"]").and_then(|literal| std::str::from_utf8(literal).ok());
        let normal = literal.and_then(normal_literal).ok_or(AuthorityError::Literal)?;
        return Ok(if normal.as_bytes() == host { Cow::Borrowed(host) } else { Cow::Owned(normal.into()) });
    }
    if is_normal_name(host) {
        return Ok(Cow::Borrowed(host));
    }
    if host.contains(&b'%') {
        return Err(AuthorityError::Escape);
    }
    let mut name = host.to_ascii_lowercase();
    if name.last() == Some(&b'.') {
        name.pop();
    }
    if name.split(|byte| *byte == b'.').any(<[u8]>::is_empty) && !host.is_empty() {
        return Err(AuthorityError::Label);
    }
    if let Some(address) = ipv4(&name) {
        name = address.to_string().into();
    }
    Ok(if name == host { Cow::Borrowed(host) } else { Cow::Owned(name) })
}

/// Returns the host of an authority without its port, in lower case.
pub fn without_port(authority: &[u8]) -> Cow<'_, [u8]> {
    let end = match authority.iter().rposition(|byte| *byte == b':') {
        Some(colon) if authority[colon + 1..].iter().all(u8::is_ascii_digit) => colon,
        _ => authority.len(),
    };
    let host = &authority[..end];
    if host.iter().any(u8::is_ascii_uppercase) { Cow::Owned(host.to_ascii_lowercase()) } else { Cow::Borrowed(host) }
}

/// Returns the host, and the digits of the port behind the colon, of an authority that is one.
fn split(authority: &[u8]) -> (&[u8], &[u8]) {
    let end = match authority.first() {
        Some(b'[') => authority.iter().position(|byte| *byte == b']').map(|at| at + 1),
        _ => authority.iter().position(|byte| *byte == b':'),
    };
    let (host, port) = authority.split_at(end.unwrap_or(authority.len()));
    (host, port.strip_prefix(b":").unwrap_or(port))
}

fn port(digits: &[u8]) -> Result<Option<u16>, AuthorityError> {
    let zeros = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len().saturating_sub(1));
    match std::str::from_utf8(&digits[zeros..]) {
        Ok("") => Ok(None),
        digits => digits.ok().and_then(|digits| digits.parse().ok()).map(Some).ok_or(AuthorityError::Port),
    }
}

/// Whether a name is certainly in its normal form, as nearly all names are.
fn is_normal_name(name: &[u8]) -> bool {
    let mut before = b'.';
    for byte in name {
        if byte.is_ascii_uppercase() || *byte == b'%' || *byte == b'.' && before == b'.' {
            return false;
        }
        before = *byte;
    }
    let last = name.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    last.first().is_some_and(|first| !first.is_ascii_digit())
}

/// Returns an IPv6 address, or one of a later version (RFC 3986 §3.2.2), in its normal form with brackets.
fn normal_literal(literal: &str) -> Option<String> {
    if let Ok(address) = literal.parse::<Ipv6Addr>() {
        return Some(format!("[{address}]"));
    }
    let (version, address) = literal.strip_prefix(['v', 'V'])?.split_once('.')?;
    let is_version = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_address = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:".contains(&byte);
    let is_literal = is_version && !address.is_empty() && address.bytes().all(is_address);
    is_literal.then(|| format!("[{}]", literal.to_ascii_lowercase()))
}

/// Parses a name as an IPv4 address: up to four numbers, of which the last fills the remaining bytes.
fn ipv4(name: &[u8]) -> Option<Ipv4Addr> {
    let parts: Vec<&str> = std::str::from_utf8(name).ok()?.split('.').collect();
    let (last, others) = parts.split_last()?;
    if others.len() > 3 {
        return None;
    }
    let mut address: u32 = 0;
    for part in others {
        address = address << 8 | number(part).filter(|number| *number < 256)?;
    }
    let bits = 8 * (4 - others.len() as u32);
    let last = u64::from(number(last)?);
    let high = if bits == 32 { 0 } else { u64::from(address) << bits };
    (last < 1 << bits).then(|| Ipv4Addr::from((high | last) as u32))
}

/// Parses a number in decimal, in octal behind `0`, or in hexadecimal behind `0x`.
fn number(text: &str) -> Option<u32> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (digits, radix) = match text.strip_prefix("0x") {
        Some("") => ("0", 16),
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    // `from_str_radix` would accept a sign.
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, radix).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(authority: &str) -> Result<String, AuthorityError> {
        normal(authority.as_bytes(), Some(80)).map(|form| String::from_utf8(form.into_owned()).unwrap())
    }

    #[test]
    fn a_host_has_one_form() {
        let cases = [
            ("example.org", "example.org"),
            ("EXAMPLE.Org", "example.org"),
            ("example.org.", "example.org"),
            ("Example.org.:80", "example.org"),
            ("example.org:", "example.org"),
            ("example.org:0080", "example.org"),
            ("example.org:8080", "example.org:8080"),
            ("example.org:008080", "example.org:8080"),
            ("example.org:0", "example.org:0"),
            ("example.org:000", "example.org:0"),
            ("a_b-c~d.example", "a_b-c~d.example"),
            ("[::1]", "[::1]"),
            ("[0:0::0:1]:080", "[::1]"),
            ("[2001:DB8:0:0:0::1]:8080", "[2001:db8::1]:8080"),
            ("[::FFFF:192.0.2.1]", "[::ffff:192.0.2.1]"),
            ("[::ffff:c000:201]", "[::ffff:192.0.2.1]"),
            ("[V1.A:b]", "[v1.a:b]"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("127.1", "127.0.0.1"),
            ("0x7f.1", "127.0.0.1"),
            ("0X7F000001", "127.0.0.1"),
            ("2130706433:80", "127.0.0.1"),
            ("0177.0.0.01", "127.0.0.1"),
            ("127.0.0x0001", "127.0.0.1"),
            ("255.255.255.255", "255.255.255.255"),
            // These are no addresses, and so names.
            ("256.0.0.1", "256.0.0.1"),
            ("1.2.3.4.5", "1.2.3.4.5"),
            ("4294967296", "4294967296"),
            ("08", "08"),
            ("0xg", "0xg"),
            ("1a", "1a"),
            ("app.1", "app.1"),
            ("", ""),
            (":80", ""),
        ];
        for (authority, wanted) in cases {
            assert_eq!(form(authority).as_deref(), Ok(wanted), "{authority}");
            assert_eq!(form(wanted).as_deref(), Ok(wanted), "the normal form of {authority} is its own");
        }
        assert_eq!(normal(b"example.org:443", Some(443)).unwrap(), &b"example.org"[..]);
        assert_eq!(normal(b"example.org:80", Some(443)).unwrap(), &b"example.org:80"[..]);
        assert_eq!(normal(b"Example.org:080", None).unwrap(), &b"example.org:80"[..]);
    }

    #[test]
    fn nothing_is_copied_where_nothing_changes() {
        for authority in ["example.org", "example.org:8080", "[::1]", "[::1]:8080", "127.0.0.1:81", "localhost"] {
            assert!(matches!(normal(authority.as_bytes(), Some(80)), Ok(Cow::Borrowed(_))), "{authority}");
        }
    }

    #[test]
    fn ambiguous_authorities_are_rejected() {
        let cases = [
            ("a@b", AuthorityError::Form),
            ("a:b", AuthorityError::Form),
            ("a:80:80", AuthorityError::Form),
            ("a:65536", AuthorityError::Port),
            ("a:00000000000000000000065536", AuthorityError::Port),
            ("a%", AuthorityError::Escape),
            ("a%2", AuthorityError::Escape),
            ("a%zz", AuthorityError::Escape),
            ("a%00", AuthorityError::Escape),
            ("a%2Fb", AuthorityError::Escape),
            ("a%3A80", AuthorityError::Escape),
            ("a%C3%A9", AuthorityError::Escape),
            ("a%2561", AuthorityError::Escape),
            ("ex%61mple%2Eorg", AuthorityError::Escape),
            ("a%2e%2E", AuthorityError::Escape),
            (".", AuthorityError::Label),
            ("..", AuthorityError::Label),
            ("a..b", AuthorityError::Label),
            (".a", AuthorityError::Label),
            ("a..", AuthorityError::Label),
            ("[]", AuthorityError::Literal),
            ("[1.2.3.4]", AuthorityError::Literal),
            ("[fe80::1%25eth0]", AuthorityError::Literal),
            ("[v.a]", AuthorityError::Literal),
            ("[::1", AuthorityError::Form),
        ];
        for (authority, wanted) in cases {
            assert_eq!(form(authority), Err(wanted), "{authority}");
        }
    }

    #[test]
    fn the_normal_form_of_anything_is_its_own() {
        const PIECES: [&str; 20] = [
            "a", "B", ".", ".", "%61", "%2e", "%2E", "0", "1", "0x", "7", "-", "_", ":", "8", "080", "[", "]", "::1",
            "xn--",
        ];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize
        };
        let mut good = 0;
        for _ in 0..200_000 {
            let authority: String = (0..next() % 8).map(|_| PIECES[next() % PIECES.len()]).collect();
            let Ok(once) = form(&authority) else { continue };
            good += 1;
            assert_eq!(form(&once).as_deref(), Ok(once.as_str()), "{authority}");
        }
        assert!(good > 10_000, "{good}");
    }
}
