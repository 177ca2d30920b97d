//! The key of a response: what it depends on, as far as `Vary` doesn't say.

use super::Wanted;
use crate::{Need, Needs, ValueName, Values};

/// Which parts of the query count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Query {
    /// All of it, as it stands.
    #[default]
    Whole,
    /// All but the parameters of these names; `*` at the end stands for any rest.
    Without(Vec<String>),
    /// The parameters of these names alone; likewise.
    Only(Vec<String>),
}

/// The parts of a key.
#[derive(Clone, Debug)]
pub(super) struct KeyParts {
    scheme: Need,
    authority: Need,
    path: Need,
    query: Need,
    /// With their names, where they are there.
    fields: Vec<(Need, String)>,
    /// With their names in any case.
    extra: Vec<(Need, String)>,
}

impl KeyParts {
    pub fn new(needs: &mut Needs, fields: &[Wanted], extra: &[Wanted]) -> Self {
        let mut declared = |wanted: &[Wanted]| {
            wanted.iter().map(|(name, label)| (needs.value(name.clone()), label.clone())).collect::<Vec<_>>()
        };
        let (fields, extra) = (declared(fields), declared(extra));
        KeyParts {
            scheme: needs.value(ValueName::Scheme),
            authority: needs.value(ValueName::Authority),
            path: needs.value(ValueName::Path),
            query: needs.value(ValueName::Query),
            fields,
            extra,
        }
    }

    /// Scheme, authority, path and query, then what else a response depends on.
    pub fn key(&self, values: &Values, query: &Query, sorts: bool) -> Vec<u8> {
        let bytes = |need| values.bytes(need).unwrap_or_default();
        let (scheme, authority, path) = (bytes(self.scheme), bytes(self.authority), bytes(self.path));
        let search = values.bytes(self.query);
        let length = scheme.len() + authority.len() + path.len() + search.map_or(0, <[u8]>::len) + 8;
        let mut key = Vec::with_capacity(length);
        origin(scheme, authority, &mut key);
        key.extend_from_slice(path);
        if let Some(search) = search {
            put_query(search, query, sorts, &mut key);
        }
        let there = self.fields.iter().filter(|(need, _)| values.bytes(*need).is_some());
        for (need, label) in there.chain(&self.extra) {
            key.push(b'\n');
            key.extend_from_slice(label.as_bytes());
            key.push(b':');
            key.extend_from_slice(bytes(*need));
        }
        key
    }

    /// The key of another resource of the same origin, by a reference from this one (RFC 3986 §5); none for another
    /// origin's.
    pub fn referred(&self, values: &Values, reference: &[u8], query: &Query, sorts: bool) -> Option<Vec<u8>> {
        let bytes = |need| values.bytes(need).unwrap_or_default();
        let mut key = Vec::new();
        origin(bytes(self.scheme), bytes(self.authority), &mut key);
        let reference = reference.split(|byte| *byte == b'#').next().unwrap_or_default();
        let scheme_end = key.windows(3).position(|part| part == b"://").map_or(0, |at| at + 1);
        let target = if reference.starts_with(b"//") {
            let absolute = [&key[..scheme_end], reference].concat();
            same_origin(&absolute, &key)?.to_vec()
        } else if reference.windows(3).any(|part| part == b"://") && !reference.starts_with(b"/") {
            same_origin(reference, &key)?.to_vec()
        } else if reference.starts_with(b"/") {
            reference.to_vec()
        } else {
            let path = bytes(self.path);
            let folder = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
            [&path[..folder], reference].concat()
        };
        let mut parts = target.splitn(2, |byte| *byte == b'?');
        let path = parts.next().filter(|path| !path.is_empty()).unwrap_or(b"/");
        key.extend(without_dots(path));
        if let Some(search) = parts.next() {
            put_query(search, query, sorts, &mut key);
        }
        Some(key)
    }
}

/// What a URI has behind the origin, where that is this one.
fn same_origin<'a>(uri: &'a [u8], own: &[u8]) -> Option<&'a [u8]> {
    let scheme_end = uri.windows(3).position(|part| part == b"://")?;
    let rest = &uri[scheme_end + 3..];
    let authority_end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
    let mut found = Vec::new();
    origin(&uri[..scheme_end].to_ascii_lowercase(), &rest[..authority_end], &mut found);
    (found == own).then(|| &rest[authority_end..])
}

/// Scheme and authority in their normal form (RFC 9110 §4.2.3).
fn origin(scheme: &[u8], authority: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(scheme);
    into.extend_from_slice(b"://");
    let default = if scheme == b"https" { &b":443"[..] } else { b":80" };
    let authority = authority.strip_suffix(default).or_else(|| authority.strip_suffix(b":")).unwrap_or(authority);
    into.extend(authority.iter().map(u8::to_ascii_lowercase));
}

fn put_query(search: &[u8], query: &Query, sorts: bool, into: &mut Vec<u8>) {
    if *query == Query::Whole && !sorts {
        into.push(b'?');
        into.extend_from_slice(search);
        return;
    }
    let counts = |parameter: &&[u8]| {
        let name = parameter.split(|byte| *byte == b'=').next().unwrap_or_default();
        let is_named = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, name));
        match query {
            Query::Whole => true,
            Query::Without(patterns) => !is_named(patterns),
            Query::Only(patterns) => is_named(patterns),
        }
    };
    let mut parameters: Vec<&[u8]> = search.split(|byte| *byte == b'&').filter(counts).collect();
    if sorts {
        // By name alone: the order of values of one name may mean something.
        parameters.sort_by_key(|parameter| parameter.split(|byte| *byte == b'=').next());
    }
    for (place, parameter) in parameters.iter().enumerate() {
        into.push(if place == 0 { b'?' } else { b'&' });
        into.extend_from_slice(parameter);
    }
}

fn matches(pattern: &str, name: &[u8]) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning.as_bytes()),
        None => name == pattern.as_bytes(),
    }
}

/// A path without its dot segments (RFC 3986 §5.2.4).
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut parts = path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/').peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        match part {
            b"." | b".." => {
                if part == b".." {
                    segments.pop();
                }
                if is_last {
                    segments.push(b"");
                }
            }
            part => segments.push(part),
        }
    }
    [b"/", &segments.join(&b'/')[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(search: &str, query: &Query, sorts: bool) -> String {
        let mut key = Vec::new();
        put_query(search.as_bytes(), query, sorts, &mut key);
        String::from_utf8(key).unwrap()
    }

    #[test]
    fn only_what_counts_of_the_query_is_in_the_key() {
        let without = Query::Without(vec!["utm_*".into(), "fbclid".into()]);
        assert_eq!(query("utm_source=a&b=1&fbclid=2&c", &without, false), "?b=1&c");
        assert_eq!(query("utm_source=a", &without, false), "");
        assert_eq!(query("b=2&a=1&b=1", &Query::Whole, true), "?a=1&b=2&b=1");
        assert_eq!(query("a=1&b=2", &Query::Only(vec!["b".into()]), false), "?b=2");
        assert_eq!(query("", &Query::Whole, false), "?");
    }

    #[test]
    fn origins_have_one_form() {
        let form = |scheme: &str, authority: &str| {
            let mut key = Vec::new();
            origin(scheme.as_bytes(), authority.as_bytes(), &mut key);
            String::from_utf8(key).unwrap()
        };
        assert_eq!(form("http", "Example.ORG:80"), "http://example.org");
        assert_eq!(form("https", "example.org:443"), "https://example.org");
        assert_eq!(form("https", "example.org:80"), "https://example.org:80");
        assert_eq!(form("http", "[::1]:8080"), "http://[::1]:8080");
    }

    #[test]
    fn dots_are_gone() {
        let path = |path: &str| String::from_utf8(without_dots(path.as_bytes())).unwrap();
        assert_eq!([path("/a/../b"), path("/a/./b/"), path("/../a/.."), path("/a/b/..")], ["/b", "/a/b/", "/", "/a/"]);
    }
}
