//! Purges on the admin listener.

use std::sync::Arc;

use http::{Response, StatusCode};
use tokio::sync::Semaphore;

use super::{Admin, parameter, text};
use crate::exchange::response_body::ResponseBody;
use crate::protocol::authority;
use crate::protocol::path;
use crate::store::purge_log::{Purge, PurgeTarget};
use crate::store::variant::PurgeKind;
use crate::system::printable::one_line;

/// Purges the responses that the query names: `uri`, `prefix`, `tag`, or `all`. With `soft` they stay in the store as
/// stale.
pub async fn purge(admin: &Admin, query: Option<&str>, purges: &Arc<Semaphore>) -> Response<ResponseBody> {
    let store = admin.generation.borrow().store.clone();
    let what = [
        parameter(query, "uri").map(|uri| PurgeTarget::Uri(normal_uri(&uri).unwrap_or(uri))),
        parameter(query, "prefix").map(|prefix| PurgeTarget::Prefix(normal_prefix(&prefix).unwrap_or(prefix))),
        parameter(query, "tag").map(PurgeTarget::Tag),
        parameter(query, "all").map(|_| PurgeTarget::All),
    ];
    let mut what = what.into_iter().flatten();
    let (Some(what), None) = (what.next(), what.next()) else {
        let usage = "name one of uri=http://example.org/a, prefix=http://example.org/, tag=a, all; and soft, to keep it \
                     as stale\n";
        return text(StatusCode::BAD_REQUEST, "text/plain", usage.into());
    };
    let strength = if parameter(query, "soft").is_some() { PurgeKind::Soft } else { PurgeKind::Hard };
    let incomplete_uri = parameter(query, "uri").filter(|uri| normal_uri(uri).is_none());
    let incomplete_prefix = parameter(query, "prefix").filter(|prefix| !begins_as_uri(prefix));
    let purge = Purge { what, strength };
    let permit = purges.clone().acquire_owned().await;
    // A purge of a large store takes long, so it runs on another thread. It continues if its client disconnects.
    let purged = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        store.purge(&purge)
    });
    match (purged.await, incomplete_uri.or(incomplete_prefix)) {
        (Ok(0), Some(found)) => incomplete(&found),
        (Ok(purged), _) => text(StatusCode::OK, "text/plain", format!("{purged} purged\n")),
        (Err(error), _) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
    }
}

/// Returns the response to a purge of a text that is no URI, and no key of a plugin: most keys are URIs with scheme and
/// host.
fn incomplete(found: &str) -> Response<ResponseBody> {
    let found = one_line(found, MAX_FOUND_BYTES);
    let message =
        format!("0 purged: incomplete URI `{found}`; expected scheme and host too, such as http://example.org/a\n");
    text(StatusCode::BAD_REQUEST, "text/plain", message)
}

/// The maximum number of bytes of a URI that an error repeats.
const MAX_FOUND_BYTES: usize = 200;

/// Whether a text can be the beginning of a stored response's URI.
fn begins_as_uri(prefix: &str) -> bool {
    let prefix = prefix.to_ascii_lowercase();
    ["http://", "https://"].iter().any(|start| prefix.starts_with(start) || start.starts_with(&prefix))
}

/// Returns a URI in the normal form in which responses are stored; `None` if the text is no such URI.
fn normal_uri(uri: &str) -> Option<String> {
    let (origin, target) = normal_origin(uri)?;
    let (path, query) = target.find('?').map_or((target, ""), |at| target.split_at(at));
    let path = path::normal(if path.is_empty() { "/" } else { path }).ok()?;
    Some(format!("{origin}{path}{query}"))
}

/// Returns a prefix of URIs in normal form. Without a path, the host may be incomplete; a default port and a dot at its
/// end are removed. Of the path, the last segment may be incomplete, and so may an escape at its end.
fn normal_prefix(prefix: &str) -> Option<String> {
    let Some((origin, target)) = normal_origin(prefix).filter(|(_, target)| !target.is_empty()) else {
        return normal_beginning(prefix);
    };
    if target.contains('?') {
        return normal_uri(prefix);
    }
    let (folders, last) = target.split_at(target.rfind('/')? + 1);
    let (last, escape) = last.split_at(last.rfind('%').filter(|at| last.len() - at < 3).unwrap_or(last.len()));
    let (folders, escape) = (path::normal(folders).ok()?, escape.to_ascii_uppercase());
    // The letter keeps dots from being a segment, which they may only be the beginning of.
    let last = format!("/x{last}");
    Some(format!("{origin}{folders}{}{escape}", path::normal(&last).ok()?.strip_prefix("/x")?))
}

/// Returns a prefix that ends within the authority, in normal form as far as an incomplete authority has one; `None` if it
/// ends elsewhere.
fn normal_beginning(prefix: &str) -> Option<String> {
    let (scheme, port, authority) = split_scheme(prefix).filter(|(.., rest)| !rest.contains(['/', '?']))?;
    let lower = authority.to_ascii_lowercase();
    if authority.starts_with('[') {
        let whole = authority::normal(authority.as_bytes(), Some(port)).ok();
        let whole = whole.and_then(|whole| String::from_utf8(whole.into_owned()).ok());
        return Some(format!("{scheme}://{}", whole.unwrap_or(lower)));
    }
    // No other host is read as an address: `127.1` may also be the beginning of `127.10.0.1`.
    let is_default = |digits: &str| digits.is_empty() || digits.parse() == Ok(port);
    let (host, digits) = lower.rsplit_once(':').filter(|(_, digits)| is_default(digits)).unwrap_or((&lower, ""));
    // The dot at the end of `example.` may be that before `org`.
    let is_name = |name: &&str| name.contains('.') && !name.ends_with(|last: char| last.is_ascii_digit());
    let host = host.strip_suffix('.').filter(is_name).unwrap_or(host);
    // A whole port ends the host, which would be the beginning of others without it.
    Some(format!("{scheme}://{host}{}", if digits.is_empty() { "" } else { "/" }))
}

/// Returns scheme and authority of a URI in normal form, and the rest of the URI.
fn normal_origin(uri: &str) -> Option<(String, &str)> {
    let (scheme, port, rest) = split_scheme(uri)?;
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = authority::normal(authority.as_bytes(), Some(port)).ok()?;
    Some((format!("{scheme}://{}", std::str::from_utf8(&authority).ok()?), target))
}

/// Returns the scheme of a URI in lower case, its default port, and the text after `://`; `None` for other schemes than
/// those of HTTP.
fn split_scheme(uri: &str) -> Option<(&'static str, u16, &str)> {
    let (scheme, rest) = uri.split_once("://")?;
    let known = [("http", 80), ("https", 443)].into_iter().find(|(known, _)| scheme.eq_ignore_ascii_case(known))?;
    Some((known.0, known.1, rest))
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
        ];
        for (uri, wanted) in cases {
            assert_eq!(normal_uri(uri).as_deref(), Some(wanted), "{uri}");
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
        ];
        for (prefix, wanted) in cases {
            assert_eq!(normal_prefix(prefix).as_deref(), Some(wanted), "{prefix}");
        }
        for prefix in ["key:", "ftp://a/", "http:/", "http://a@b/"] {
            assert_eq!(normal_prefix(prefix), None, "{prefix}");
        }
    }
}
