//! Purges on the admin listener.

use std::borrow::Cow;
use std::sync::Arc;

use http::{Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::sync::Semaphore;

use super::{Admin, parameter, text};
use crate::exchange::response_body::ResponseBody;
use crate::protocol::authority;
use crate::protocol::path::{self, PathError};
use crate::store::purge_log::{Purge, PurgeTarget};
use crate::store::variant::PurgeKind;
use crate::system::printable::one_line;

/// The target of a purge, as a client names it.
#[derive(Debug)]
struct NamedTarget {
    what: PurgeTarget,
    /// The reason why no request or response has it, unless a plugin's policy made it; `None` if they can have it.
    doubt: Option<String>,
}

/// The reason why no request has a URI, or any URI that begins so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UriError {
    /// The text lacks a scheme.
    Incomplete,
    /// The scheme is neither `http` nor `https`.
    Scheme,
    /// The authority has no normal form.
    Host,
    /// The path has no normal form.
    Path(PathError),
    /// The text has a fragment, which clients keep for themselves.
    Fragment,
}

/// A scheme of HTTP.
#[derive(Clone, Copy, Debug)]
struct Scheme {
    name: &'static str,
    /// The port of URIs without one.
    port: u16,
}

const SCHEMES: [Scheme; 2] = [Scheme { name: "http", port: 80 }, Scheme { name: "https", port: 443 }];

/// The maximum number of bytes of a URI or tag that an error repeats.
const MAX_FOUND_BYTES: usize = 200;

const USAGE: &str =
    "name one of uri=http://example.org/a, prefix=http://example.org/, tag=a, all; and soft, to keep it as stale";

/// The bytes below 128 that no URI has, and that nothing else in one means.
const NOT_IN_URIS: &AsciiSet = &CONTROLS.add(b' ');

/// Purges the responses that the query names: `uri`, `prefix`, `tag`, or `all`. With `soft` they stay in the store as
/// stale.
pub async fn purge(admin: &Admin, query: Option<&str>, purges: &Arc<Semaphore>) -> Response<ResponseBody> {
    let NamedTarget { what, doubt } = match named_target(query) {
        Ok(named) => named,
        Err(message) => return text(StatusCode::BAD_REQUEST, "text/plain", format!("{message}\n")),
    };
    let strength = if parameter(query, "soft").is_some() { PurgeKind::Soft } else { PurgeKind::Hard };
    let (store, purge) = (admin.generation.borrow().store.clone(), Purge { what, strength });
    let permit = purges.clone().acquire_owned().await;
    // A purge of a large store takes long, so it runs on another thread. It continues if its client disconnects.
    let purged = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        store.purge(&purge)
    });
    match (purged.await, doubt) {
        (Ok(0), Some(doubt)) => text(StatusCode::BAD_REQUEST, "text/plain", format!("0 purged: {doubt}\n")),
        (Ok(purged), _) => text(StatusCode::OK, "text/plain", format!("{purged} purged\n")),
        (Err(error), _) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
    }
}

/// Returns the target that a query names. The error says what to name.
fn named_target(query: Option<&str>) -> Result<NamedTarget, String> {
    let keys = ["uri", "prefix", "tag", "all"].into_iter();
    let mut given = keys.filter_map(|key| Some((key, parameter(query, key)?)));
    let (Some((key, value)), None) = (given.next(), given.next()) else { return Err(USAGE.into()) };
    let is_empty = value.trim_ascii().is_empty();
    match key {
        "uri" => Ok(NamedTarget::of_uri(normal_uri(value.trim_ascii()), value, PurgeTarget::Uri)),
        // Also what a script makes of a variable that is not set.
        "prefix" if is_empty => {
            Err("0 purged: empty prefix; name all stored responses by --all (`POST /purge?all`)".into())
        }
        "prefix" => Ok(NamedTarget::of_uri(normal_prefix(value.trim_ascii()), value, PurgeTarget::Prefix)),
        "tag" if is_empty => Err("0 purged: empty tag; expected a word of Surrogate-Key or Cache-Tag".into()),
        "tag" => Ok(NamedTarget::of_tag(value)),
        _ => Ok(NamedTarget { what: PurgeTarget::All, doubt: None }),
    }
}

impl NamedTarget {
    /// Returns the target that a text names: URIs in normal form, or else what a policy has put into its keys.
    fn of_uri(normal: Result<String, UriError>, found: String, target: fn(String) -> PurgeTarget) -> Self {
        match normal {
            Ok(normal) => NamedTarget { what: target(normal), doubt: None },
            Err(why) => NamedTarget { doubt: Some(why.message(&found)), what: target(found) },
        }
    }

    fn of_tag(tag: String) -> Self {
        let doubt = tag.contains([' ', ',', '\t', '\r', '\n']).then(|| {
            let found = one_line(&tag, MAX_FOUND_BYTES);
            format!("tag with a space or comma: `{found}`; a tag is one word, so purge each of them by itself")
        });
        NamedTarget { what: PurgeTarget::Tag(tag), doubt }
    }
}

impl UriError {
    /// Returns the reason, given the text.
    fn message(self, found: &str) -> String {
        let found = one_line(found, MAX_FOUND_BYTES);
        match self {
            UriError::Incomplete => {
                format!("incomplete URI `{found}`; expected scheme and host too, such as http://example.org/a")
            }
            UriError::Scheme => format!("no request has the scheme of `{found}`; expected `http` or `https`"),
            UriError::Host => format!(
                "no request has the host of `{found}`; expected one such as `example.org` or `[::1]:8080`, in its ASCII form \
                 and without a user"
            ),
            UriError::Path(why) => format!("no request has the path of `{found}`: {}", why.reason()),
            UriError::Fragment => format!("URI with a fragment: `{found}`; requests have none, so end it before `#`"),
        }
    }
}

/// Returns a URI in the normal form in which responses are stored.
fn normal_uri(uri: &str) -> Result<String, UriError> {
    let (origin, target) = normal_origin(uri)?;
    let target = escaped(target);
    let (path, query) = target.find('?').map_or((&*target, ""), |at| target.split_at(at));
    let path = normal_path(if path.is_empty() { "/" } else { path })?;
    Ok(format!("{origin}{path}{query}"))
}

/// Returns a path in the normal form that caches see: with escaped slashes as slashes, as routes with `path-as-is` accept
/// them.
fn normal_path(path: &str) -> Result<Cow<'_, str>, UriError> {
    let divided = |why| match why {
        PathError::Slash => path::readings(path).map(|readings| Cow::Owned(readings.divided)),
        _ => Err(why),
    };
    path::normal(path).or_else(divided).map_err(UriError::Path)
}

/// Returns a prefix of URIs in normal form. Without a path, the host may be incomplete; a default port and a dot at its
/// end are removed. Of the path, the last segment may be incomplete, and so may an escape at its end.
fn normal_prefix(prefix: &str) -> Result<String, UriError> {
    let lower = prefix.to_ascii_lowercase();
    if ["http://", "https://"].iter().any(|start| start.starts_with(&lower)) {
        return Ok(lower);
    }
    let (scheme, rest) = split_scheme(prefix)?;
    if !rest.contains(['/', '?']) {
        return normal_beginning(scheme, rest);
    }
    let (origin, target) = normal_origin(prefix)?;
    let target = escaped(target);
    if target.contains('?') {
        return normal_uri(prefix);
    }
    let divided = target.replace("%2F", "/").replace("%2f", "/");
    let (folders, last) = divided.split_at(divided.rfind('/').map_or(0, |at| at + 1));
    // A path with an escaped slash is forwarded as it was sent, or rejected: dot segments are rejected there.
    let folders = match divided == target {
        true => normal_path(folders)?,
        false => Cow::Owned(path::readings(folders).map_err(UriError::Path)?.divided),
    };
    let (last, escape) = last.split_at(last.rfind('%').filter(|at| last.len() - at < 3).unwrap_or(last.len()));
    // The letter keeps dots from being a segment, which they may only be the beginning of.
    let last = format!("/x{last}");
    let last = path::normal(&last).map_err(UriError::Path)?;
    Ok(format!("{origin}{folders}{}{}", last.strip_prefix("/x").unwrap_or_default(), escape.to_ascii_uppercase()))
}

/// Returns a prefix that ends within the authority, in normal form as far as an incomplete authority has one.
fn normal_beginning(scheme: Scheme, authority: &str) -> Result<String, UriError> {
    let Scheme { name, port } = scheme;
    check_fragment(authority)?;
    if authority.contains('@') || !authority.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(UriError::Host);
    }
    let lower = authority.to_ascii_lowercase();
    if authority.starts_with('[') {
        let whole = authority::normal(authority.as_bytes(), Some(port)).ok();
        let whole = whole.and_then(|whole| String::from_utf8(whole.into_owned()).ok());
        return Ok(format!("{name}://{}", whole.unwrap_or(lower)));
    }
    // No other host is read as an address: `127.1` may also be the beginning of `127.10.0.1`.
    let is_default = |digits: &str| digits.is_empty() || digits.parse() == Ok(port);
    let (host, digits) = lower.rsplit_once(':').filter(|(_, digits)| is_default(digits)).unwrap_or((&lower, ""));
    // The dot at the end of `example.` may be that before `org`.
    let is_name = |name: &&str| name.contains('.') && !name.ends_with(|last: char| last.is_ascii_digit());
    let host = host.strip_suffix('.').filter(is_name).unwrap_or(host);
    // A whole port ends the host, which would be the beginning of others without it.
    Ok(format!("{name}://{host}{}", if digits.is_empty() { "" } else { "/" }))
}

/// Returns scheme and authority of a URI in normal form, and the rest of the URI.
fn normal_origin(uri: &str) -> Result<(String, &str), UriError> {
    let (Scheme { name, port }, rest) = split_scheme(uri)?;
    check_fragment(rest)?;
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = authority::normal(authority.as_bytes(), Some(port)).map_err(|_| UriError::Host)?;
    let authority = std::str::from_utf8(&authority).map_err(|_| UriError::Host)?;
    Ok((format!("{name}://{authority}"), target))
}

/// Returns the scheme of a URI, and the text after `://`.
fn split_scheme(uri: &str) -> Result<(Scheme, &str), UriError> {
    let (scheme, rest) = uri.split_once("://").ok_or(UriError::Incomplete)?;
    let known = SCHEMES.into_iter().find(|known| scheme.eq_ignore_ascii_case(known.name));
    known.map(|known| (known, rest)).ok_or(UriError::Scheme)
}

fn check_fragment(rest: &str) -> Result<(), UriError> {
    if rest.contains('#') { Err(UriError::Fragment) } else { Ok(()) }
}

/// Returns the path and query of a URI with escapes in place of what no request has in them, such as letters beyond ASCII.
fn escaped(target: &str) -> Cow<'_, str> {
    utf8_percent_encode(target, NOT_IN_URIS).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purges_name_what_is_stored_in_any_spelling() {
        let cases = [
            ("HTTP://EXAMPLE.org.:0080", "http://example.org/"),
            ("https://example.org:443/a/../b?c", "https://example.org/b?c"),
            ("http://[0:0::1]:81/%7ea", "http://[::1]:81/~a"),
            ("http://example.org?a", "http://example.org/?a"),
            ("http://h/a%2Fb%2f//c?%2f", "http://h/a/b/c?%2f"),
            ("http://h/\u{e9} a?\u{e9} ", "http://h/%C3%A9%20a?%C3%A9%20"),
        ];
        for (uri, wanted) in cases {
            assert_eq!(normal_uri(uri).as_deref(), Ok(wanted), "{uri}");
        }
        let cases = [
            ("http://Example.org./a/.", "http://example.org/a/."),
            ("http://h/%7Euser/", "http://h/~user/"),
            ("http://h/%7Eus", "http://h/~us"),
            ("http://h/caf%c3%a9/", "http://h/caf%C3%A9/"),
            ("http://h/caf%c3%a", "http://h/caf%C3%A"),
            ("http://h/caf%", "http://h/caf%"),
            ("http://h/a//b/../c/./d", "http://h/a/c/d"),
            ("http://h/a/..", "http://h/a/.."),
            ("http://h/%7e?%7e", "http://h/~?%7e"),
            ("https://Example.org", "https://example.org"),
            ("HTTPS://example.org", "https://example.org"),
            ("https://example.org:443", "https://example.org/"),
            ("https://example.org.", "https://example.org"),
            ("http://example.org:8080", "http://example.org:8080"),
            ("http://example.or", "http://example.or"),
            ("http://127.1", "http://127.1"),
            ("http://10.", "http://10."),
            ("https://example.", "https://example."),
            ("Http://[2001:DB8:", "http://[2001:db8:"),
            ("http://[2001:DB8::0:1]:80", "http://[2001:db8::1]"),
            ("HTTP://", "http://"),
            ("HTT", "htt"),
            ("http:/", "http:/"),
            ("http://h/a%2Fb", "http://h/a/b"),
            ("http://h/a%2f", "http://h/a/"),
            ("http://h/%2F%2fa%2f..", "http://h/a/.."),
            ("http://h/a//%7e%2F%7e", "http://h/a/~/~"),
            ("http://h/a%2Fb?%2F", "http://h/a/b?%2F"),
            ("http://h/\u{e9} a", "http://h/%C3%A9%20a"),
            ("http://h/\u{e9}?\u{e9}", "http://h/%C3%A9?%C3%A9"),
        ];
        for (prefix, wanted) in cases {
            assert_eq!(normal_prefix(prefix).as_deref(), Ok(wanted), "{prefix}");
        }
    }

    #[test]
    fn what_no_request_has_is_told() {
        for (text, why) in [
            ("key:", UriError::Incomplete),
            ("/a", UriError::Incomplete),
            ("ftp://a/", UriError::Scheme),
            ("http://a@b/", UriError::Host),
            ("http://b\u{fc}cher.example/", UriError::Host),
            ("http://h/a#b", UriError::Fragment),
            ("http://h#b", UriError::Fragment),
            ("http://h/../a", UriError::Path(PathError::AboveRoot)),
            ("http://h/a\\/b", UriError::Path(PathError::Slash)),
            ("http://h/a%2F../b", UriError::Path(PathError::DotSegment)),
            ("http://h/./a%2Fb", UriError::Path(PathError::DotSegment)),
            ("http://h/%zz/", UriError::Path(PathError::Escape)),
            ("http://h/%252F/", UriError::Path(PathError::Twice)),
        ] {
            assert_eq!(normal_uri(text), Err(why), "{text}");
            assert_eq!(normal_prefix(text), Err(why), "{text}");
        }
        for prefix in ["http://a@b", "http://b\u{fc}"] {
            assert_eq!(normal_prefix(prefix), Err(UriError::Host), "{prefix}");
        }
    }
}
