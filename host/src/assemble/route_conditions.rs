//! The conditions of routes. Each function returns the reason why no request can have a host, path, method, field or
//! query parameter; `None` if requests can have it.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use super::idioms;
use crate::config::serde_messages::meant;
use crate::protocol::{path, query};

/// Returns why a host of the manifest has a form that other programs read only; `None` if it has none.
pub fn foreign_host(written: &str) -> Option<String> {
    let remedy = idioms::host(written).filter(|_| !is_name(written))?;
    Some(format!("host as other programs write it: `{written}`; {remedy}"))
}

/// Returns the reason why no request has this host, which may begin with `*.`; `None` if requests can have it.
pub fn host(host: &str) -> Option<String> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if name.contains("${") {
        return Some(format!("template in a host: `{host}`; expected a name such as `example.org`"));
    }
    if !name.is_ascii() {
        return Some(format!(
            "host beyond ASCII: `{host}`; expected its ASCII form, which has labels such as `xn--bcher-kva`"
        ));
    }
    // An address has no names below it.
    let is_wild = name.len() < host.len();
    let is_fit =
        if is_wild { is_name(name) && name.parse::<Ipv4Addr>().is_err() } else { is_name(name) || is_literal(name) };
    (!is_fit).then(|| {
        format!("invalid host: `{host}`; expected one without a port, such as `example.org` or `*.example.org`")
    })
}

/// Whether a text is a domain name or an IPv4 address. A name whose last label is a number is none (RFC 1123 §2.1).
pub fn is_name(text: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| {
        let has_hyphen = label.starts_with('-') || label.ends_with('-');
        (1..=63).contains(&label.len()) && label.bytes().all(is_fit) && !has_hyphen
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let ends_in_number = text.rsplit('.').next().is_some_and(is_number);
    text.len() <= 253 && text.split('.').all(is_label) && (!ends_in_number || text.parse::<Ipv4Addr>().is_ok())
}

/// Whether a text is an IPv6 address in brackets.
pub fn is_literal(text: &str) -> bool {
    let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Returns the reason why no request has this path, or a path below it; `None` if requests can have it.
pub fn path(path: &str) -> Option<String> {
    if path.contains("${") {
        return Some(format!("template in a path: `{path}`; expected a path such as `/api`"));
    }
    if let Some(remedy) = idioms::path(path).filter(|_| !path.starts_with('/')) {
        return Some(format!("path as other programs write it: `{path}`; {remedy}"));
    }
    if !path.starts_with('/') {
        return Some(format!("invalid path: `{path}` does not begin with `/`; write `/{path}`"));
    }
    if path.contains(['?', '#']) {
        return Some(format!(
            "invalid path: `{path}`; a path ends before `?` and `#`, so move a query to `query = {{ name = \"value\" }}`"
        ));
    }
    if let Some(escaped) = escaped(path, NOT_IN_PATHS) {
        return Some(format!("path that no request has: `{path}`; write `{escaped}`"));
    }
    match path::normal(path) {
        Ok(normal) if normal == path => match path::without_parameters(path) {
            plain if plain == path => None,
            plain => {
                Some(format!("path with parameters: `{path}`; routes match paths without them, so write `{plain}`"))
            }
        },
        Ok(normal) => Some(format!("path that no request has: `{path}`; write its normal form `{normal}`")),
        Err(why) => Some(format!("path that no request has: `{path}`; {}", why.reason())),
    }
}

/// Returns a method. The error is the reason why no request has it.
pub fn method(method: &str) -> Result<http::Method, String> {
    // The star is a token.
    if method == "*" {
        return Err("`*` is no method; remove `methods` for any method".into());
    }
    let parsed = http::Method::from_bytes(method.as_bytes())
        .map_err(|_| format!("invalid method: `{method}`; expected one such as `GET`"))?;
    if parsed == http::Method::CONNECT {
        return Err("unsupported method: `CONNECT`, since this is no forward proxy; remove it".into());
    }
    // Methods are case-sensitive (RFC 9110 §9.1).
    let upper = method.to_ascii_uppercase();
    let is_known = STANDARD.contains(&upper.as_str()) && upper != method;
    if is_known { Err(format!("method in lower case: `{method}`; write `{upper}`")) } else { Ok(parsed) }
}

/// Returns the method that is probably meant by another one, which a client may also have invented.
pub fn meant_method(method: &str) -> Option<&'static str> {
    let is_known = STANDARD.contains(&method) || OTHERS_IN_USE.contains(&method);
    if is_known { None } else { meant(method, STANDARD.into_iter()) }
}

/// Methods that resemble others, and that IANA has registered or caches use.
const OTHERS_IN_USE: [&str; 12] =
    ["ACL", "BAN", "BIND", "LINK", "LIST", "MERGE", "PRI", "PURGE", "REPORT", "SEARCH", "UNBIND", "UNLINK"];

/// The methods that clients have in use (RFC 9110 §9.3, RFC 5789, RFC 4918).
const STANDARD: [&str; 16] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "QUERY",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
];

/// Whether a field, by its name in lower case, may contain the address of a client and nothing else. Fields of HTTP and
/// of browsers contain something else, and so do those about other facts of a client's connection to a proxy.
pub fn may_name_client(name: &str) -> bool {
    const BEGINNINGS: [&str; 6] = ["accept", "access-control-", "content-", "if-", "sec-", "proxy-auth"];
    const OTHERS: [&str; 44] = [
        "age",
        "alt-used",
        "authorization",
        "cache-control",
        "connection",
        "cookie",
        "date",
        "dnt",
        "early-data",
        "expect",
        "from",
        "host",
        "http2-settings",
        "keep-alive",
        "last-event-id",
        "max-forwards",
        "origin",
        "pragma",
        "prefer",
        "priority",
        "proxy-connection",
        "range",
        "referer",
        "save-data",
        "set-cookie",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "upgrade-insecure-requests",
        "user-agent",
        "via",
        "warning",
        "x-csrf-token",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-proto",
        "x-forwarded-scheme",
        "x-forwarded-server",
        "x-request-id",
        "x-requested-with",
    ];
    !BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) && !OTHERS.contains(&name)
}

/// Returns the reason why no request has this value of a field; `None` if requests can have it.
pub fn field_value(value: &str) -> Option<String> {
    if value.contains("${") {
        return Some(format!("template in a value: `{value}`; expected the value itself, or `*` for any"));
    }
    let is_fit = http::HeaderValue::from_str(value).is_ok() && value.trim_matches([' ', '\t']) == value;
    (!is_fit).then(|| {
        format!(
            "value that no field has: {value:?}; expected one without control characters, and without spaces around it"
        )
    })
}

/// Returns the reason why no request has this name of a query parameter; `None` if requests can have it.
pub fn query_name(name: &str) -> Option<String> {
    let (before, after) = name.split_once('=').unwrap_or((name, ""));
    let has_value = before.len() < name.len();
    if has_value {
        return Some(format!(
            "the name of a parameter ends before `=`: found `{name}`; write `query = {{ {before:?} = {after:?} }}`"
        ));
    }
    parameter(name, ShownRemedy::Written)
}

/// The remedy for a text of the manifest that no request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownRemedy {
    /// The text as it should be.
    Written,
    /// A description, because the text has a value that no message may show.
    InWords,
}

/// Returns the reason why no request has such a name or value of a query parameter, in the normal form that routes match;
/// `None` if requests can have it.
pub fn parameter(text: &str, shown: ShownRemedy) -> Option<String> {
    if text.contains("${") {
        return Some(format!("template in a parameter: `{text}`; expected the value itself, or `*` for any"));
    }
    if text.contains(['&', '#']) {
        return Some(format!("invalid parameter: `{text}`; write `&` as `%26` and `#` as `%23`"));
    }
    let written = escaped(text, NOT_IN_QUERIES).map_or(Cow::Borrowed(text), Cow::Owned);
    let normal = query::normal(&written);
    let remedy = match shown {
        ShownRemedy::Written => format!("write `{normal}`"),
        ShownRemedy::InWords => "escape what can't stand in a query, and no letters, digits and `-._~`".into(),
    };
    (normal != text).then(|| format!("parameter that no request has: `{text}`; {remedy}"))
}

/// The visible characters that requests with one of them in their path are rejected for.
const NOT_IN_PATHS: &[u8] = b"<>`";
const NOT_IN_QUERIES: &[u8] = b"\"<>";

/// Escapes what can't stand in a URI (RFC 3986 §2.1), given the visible characters among that; `None` if there is no such
/// byte.
fn escaped(text: &str, visible: &[u8]) -> Option<String> {
    let is_fit = |byte: &u8| byte.is_ascii_graphic() && !visible.contains(byte);
    if text.bytes().all(|byte| is_fit(&byte)) {
        return None;
    }
    let escape = |byte: u8| if is_fit(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    Some(text.bytes().map(escape).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_requests_can_have_are_told_from_others() {
        for good in
            ["example.org", "*.example.org", "localhost", "127.0.0.1", "[::1]", "a_b.example", "xn--bcher-kva.example"]
        {
            assert_eq!(host(good), None, "{good}");
        }
        let long = "a".repeat(64);
        let bad = [
            "",
            "a b",
            "a..b",
            ".a",
            "*",
            "*.",
            "a.*",
            "a:80",
            "a/b",
            "bücher.example",
            "${host}",
            "[::1",
            "a@b",
            "*.[::1]",
            "*.127.0.0.1",
            &long,
        ];
        for bad in bad {
            assert!(host(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn paths_that_requests_can_have_are_told_from_others() {
        for good in ["/", "/a", "/a/b.c/", "/caf%C3%A9", "/a%20b"] {
            assert_eq!(path(good), None, "{good}");
        }
        for bad in [
            "", "a", "/a b", "/a?b=1", "/a#b", "/café", "/${path}", "/a//b", "/a/../b", "/%zz", "/%2F", "/\t", "/a;b",
            "/<a>", "/`",
        ] {
            assert!(path(bad).is_some(), "{bad}");
        }
        assert!(path("/café").unwrap().contains("`/caf%C3%A9`"));
    }

    #[test]
    fn methods_and_parameters_that_requests_can_have_are_told_from_others() {
        for good in ["GET", "PURGE", "purge"] {
            assert!(method(good).is_ok(), "{good}");
        }
        for bad in ["get", "Post", "", "A B", "CONNECT", "*"] {
            assert!(method(bad).is_err(), "{bad}");
        }
        for (text, is_good) in [
            ("a", true),
            ("a%20b", true),
            ("a b", false),
            ("a&b", false),
            ("${x}", false),
            ("é", false),
            ("%61", false),
            ("%c3%a9", false),
            ("%C3%A9", true),
            ("\"a\"", false),
            ("<", false),
        ] {
            assert_eq!(parameter(text, ShownRemedy::Written).is_none(), is_good, "{text}");
        }
    }
}
