//! Hosts and authorities in configurations: the hosts that requests can have, and the sites that redirects can lead to.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Whether a text is an authority that clients can connect to: a domain name, or an address with IPv6 in brackets, and
/// perhaps a port.
///
/// ```
/// use plugway_sdk::authority::is_authority;
///
/// assert!(is_authority("example.org") && is_authority("[::1]:8080"));
/// assert!(!is_authority("a..example") && !is_authority("example.org:0") && !is_authority("[::1"));
/// ```
pub fn is_authority(text: &str) -> bool {
    let address = text.find(']').map_or(0, |end| end + 1);
    let (host, port) = match text[address..].split_once(':') {
        Some((rest, port)) => (&text[..address + rest.len()], Some(port)),
        None => (text, None),
    };
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|number| number > 0)
    };
    // A dot at the end says that the name is complete.
    (is_name(host.strip_suffix('.').unwrap_or(host)) || literal(host).is_some()) && port.is_none_or(is_port)
}

/// Returns why no request has a host, which may begin with `*.` for all names below; `None` if requests may have it. Meant
/// for the check of conditions that compare a text with the value [`Host`](crate::ValueName::Host).
///
/// The proxy gives hosts a normal form before filters see them: lower case, no dot at the end, IPv6 in its shortest form.
///
/// ```
/// use plugway_sdk::authority::never_requested;
///
/// assert_eq!(never_requested("*.example.org"), None);
/// assert!(never_requested("Example.org.").unwrap().ends_with("write `example.org`"));
/// assert!(never_requested("example.org:80").is_some() && never_requested("a..example").is_some());
/// ```
pub fn never_requested(host: &str) -> Option<String> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if !name.is_ascii() {
        return Some(format!(
            "host beyond ASCII: `{host}`; expected its ASCII form, which has labels such as `xn--bcher-kva`"
        ));
    }
    let whole = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    // An address has no names below it.
    let is_wild = name.len() < host.len();
    let normal = match literal(name) {
        Some(address) if !is_wild => format!("[{address}]"),
        None if is_name(&whole) && !(is_wild && whole.parse::<Ipv4Addr>().is_ok()) => whole,
        _ => {
            return Some(format!(
                "invalid host: `{host}`; expected one without a port, such as `example.org` or `*.example.org`"
            ));
        }
    };
    let written = format!("{}{normal}", if is_wild { "*." } else { "" });
    (written != host).then(|| format!("host that no request has: `{host}`; write `{written}`"))
}

/// Whether a text is a domain name or an IPv4 address. A name whose last label is a number is none (RFC 1123 §2.1).
fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_label = |label: &str| {
        let has_hyphen = label.starts_with('-') || label.ends_with('-');
        (1..=63).contains(&label.len()) && label.bytes().all(is_part) && !has_hyphen
    };
    let ends_in_number = text.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= 253 && text.split('.').all(is_label) && (!ends_in_number || text.parse::<Ipv4Addr>().is_ok())
}

/// Returns the IPv6 address of a text in brackets.
fn literal(text: &str) -> Option<Ipv6Addr> {
    text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_requests_can_have_are_told_from_others() {
        for good in
            ["example.org", "*.example.org", "localhost", "127.0.0.1", "[::1]", "a_b.example", "xn--bcher-kva.example"]
        {
            assert_eq!(never_requested(good), None, "{good}");
        }
        for (bad, reason) in [
            ("Files.example.org", "write `files.example.org`"),
            ("files.example.org.", "write `files.example.org`"),
            ("*.Example.org", "write `*.example.org`"),
            ("[0:0::1]", "write `[::1]`"),
            ("b\u{fc}cher.example", "beyond ASCII"),
        ] {
            let found = never_requested(bad);
            assert!(found.as_ref().is_some_and(|found| found.contains(reason)), "{bad}: {found:?}");
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            "*",
            "*.",
            ".",
            "a..b",
            ".a",
            "a..",
            "a:80",
            "A:1",
            "a/b",
            "a b",
            "-a",
            "[::1",
            "[1.2.3.4]",
            "*.[::1]",
            "*.127.0.0.1",
            "256.0.0.1",
            &long,
        ] {
            assert!(never_requested(bad).is_some_and(|found| found.starts_with("invalid host")), "{bad}");
        }
    }

    #[test]
    fn authorities_are_hosts_with_or_without_a_port() {
        for good in ["a", "Example.org", "example.org.", "example.org:8443", "127.0.0.1:1", "[::1]", "[::1]:65535"] {
            assert!(is_authority(good), "{good}");
        }
        for bad in [
            "", ":443", "a:", "a:0", "a:65536", "a:+1", "a:b", "a:1:2", "a..b", "[::1", "::1", "[::1]a", "[::1]:",
            "u@a", "*.a", "a]:1", "[a]",
        ] {
            assert!(!is_authority(bad), "{bad}");
        }
    }
}
