//! The cache key of a response: the values that it depends on besides `Vary`.

use super::Wanted;
use crate::{Input, Inputs, ValueName, Values};

/// The parts of the query that are in the cache key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Query {
    /// The complete query is in the key, unchanged.
    #[default]
    Whole,
    /// The query is in the key without the parameters of these names; `*` at the end of a name matches any suffix.
    Without(Vec<String>),
    /// Only the parameters of these names are in the key; `*` at the end of a name matches any suffix.
    Only(Vec<String>),
}

/// The fields of a request that are in a cache key.
#[derive(Clone, Copy)]
enum KeyFields {
    All,
    /// All fields except those that name another method.
    NoMethods,
    /// No field is in the key.
    Without,
}

/// The declared values that a cache key is made of.
#[derive(Clone, Debug)]
pub(super) struct KeyParts {
    scheme: Input,
    authority: Input,
    path: Input,
    query: Input,
    /// The fields with their names; absent fields are not in the key.
    fields: Vec<(Input, String)>,
    /// The additional values with their names, which are in the key even if a value is absent.
    extra: Vec<(Input, String)>,
}

impl KeyParts {
    pub fn new(needs: &mut Inputs, fields: &[Wanted], extra: &[Wanted]) -> Self {
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

    /// Returns the cache key: scheme, authority, path and query, then the other values that a response depends on.
    pub fn key(&self, values: &Values, query: &Query, sorts: bool) -> Vec<u8> {
        let mut key = self.uri(values, query, sorts);
        self.put_rest(values, KeyFields::All, &mut key);
        key
    }

    /// Returns the keys of a URI for requests that lack fields of this one. Clients send some of them, such as
    /// `X-HTTP-Method-Override`, with unsafe requests only, so that no response is stored under a key with them.
    pub fn keys(&self, values: &Values, uri: &[u8]) -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for fields in [KeyFields::All, KeyFields::NoMethods, KeyFields::Without] {
            let mut key = uri.to_vec();
            self.put_rest(values, fields, &mut key);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }

    /// Returns the beginning of the cache key: scheme, authority, path and query.
    pub fn uri(&self, values: &Values, query: &Query, sorts: bool) -> Vec<u8> {
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
        key
    }

    /// Returns the beginning of the key of another resource, by a reference from this one (RFC 3986 §5.2). `None` for a
    /// resource of another origin.
    pub fn referred(&self, values: &Values, reference: &[u8], query: &Query, sorts: bool) -> Option<Vec<u8>> {
        let bytes = |need| values.bytes(need).unwrap_or_default();
        let mut key = Vec::new();
        origin(bytes(self.scheme), bytes(self.authority), &mut key);
        let reference = reference.split(|byte| *byte == b'#').next().unwrap_or_default();
        let (scheme, rest) = split_scheme(reference);
        let (authority, rest) = split_authority(rest);
        match (scheme, authority) {
            (_, Some(authority)) => {
                let mut named = Vec::new();
                origin(&scheme.unwrap_or(bytes(self.scheme)).to_ascii_lowercase(), authority, &mut named);
                if named != key {
                    return None;
                }
            }
            (Some(_), None) => return None,
            (None, None) => {}
        }
        let mut parts = rest.splitn(2, |byte| *byte == b'?');
        let (path, search) = (parts.next().unwrap_or_default(), parts.next());
        let own = bytes(self.path);
        let (path, search) = match path {
            b"" if authority.is_some() => (b"/".to_vec(), search),
            b"" => (own.to_vec(), search.or(values.bytes(self.query))),
            [b'/', ..] => (path.to_vec(), search),
            _ => {
                let folder = own.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
                ([&own[..folder], path].concat(), search)
            }
        };
        key.extend(without_dots(&path));
        if let Some(search) = search {
            put_query(search, query, sorts, &mut key);
        }
        Some(key)
    }

    /// Appends the values that a response depends on besides the URI.
    fn put_rest(&self, values: &Values, fields: KeyFields, into: &mut Vec<u8>) {
        let mut put = |label: &str, value: &[u8]| {
            into.push(b'\n');
            into.extend_from_slice(label.as_bytes());
            into.push(b':');
            into.extend_from_slice(value);
        };
        let is_meant = |label: &str| match fields {
            KeyFields::All => true,
            KeyFields::NoMethods => !OTHER_METHODS.contains(&label),
            KeyFields::Without => false,
        };
        for (need, label) in self.fields.iter().filter(|(_, label)| is_meant(label)) {
            match values.bytes(*need) {
                Some(value) if label == FORWARDED => {
                    Some(of_the_request(value))
                        .filter(|said| !said.is_empty())
                        .iter()
                        .for_each(|said| put(label, said));
                }
                Some(value) => put(label, value),
                None => {}
            }
        }
        for (need, label) in &self.extra {
            put(label, values.bytes(*need).unwrap_or_default());
        }
    }
}

/// The fields that name the method which the origin takes a request for.
pub(super) const OTHER_METHODS: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

/// The name of the field of RFC 7239.
const FORWARDED: &str = "forwarded";

/// Returns what `Forwarded` says about the request, such as its host. The client's address is left out, because each
/// client would get a key of its own.
fn of_the_request(forwarded: &[u8]) -> Vec<u8> {
    let parts = forwarded.split(|byte| b",;".contains(byte)).map(<[u8]>::trim_ascii);
    let is_who = |part: &[u8]| {
        part.get(..4).is_some_and(|name| name.eq_ignore_ascii_case(b"for="))
            || part.get(..3).is_some_and(|name| name.eq_ignore_ascii_case(b"by="))
    };
    let parts: Vec<&[u8]> = parts.filter(|part| !part.is_empty() && !is_who(part)).collect();
    parts.join(&b';')
}

/// Returns the scheme of a reference, if it has one, and the text after the colon (RFC 3986 §3.1).
fn split_scheme(reference: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let end = reference.iter().position(|byte| !is_part(byte)).unwrap_or(reference.len());
    match reference.get(end) {
        Some(b':') if reference.first().is_some_and(u8::is_ascii_alphabetic) => {
            (Some(&reference[..end]), &reference[end + 1..])
        }
        _ => (None, reference),
    }
}

/// Returns the authority of a reference, if it has one, and the text after the authority (RFC 3986 §3.2).
fn split_authority(rest: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let Some(rest) = rest.strip_prefix(b"//") else { return (None, rest) };
    let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
    (Some(&rest[..end]), &rest[end..])
}

/// Appends scheme and authority in normal form (RFC 9110 §4.2.3). The host normalises the authority of requests
/// already; this function is for authorities from plugins and responses.
pub(crate) fn origin(scheme: &[u8], authority: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(scheme);
    into.extend_from_slice(b"://");
    let (host, port) = match authority.iter().rposition(|byte| *byte == b':') {
        Some(colon) if authority[colon + 1..].iter().all(u8::is_ascii_digit) => {
            (&authority[..colon], &authority[colon + 1..])
        }
        _ => (authority, &b""[..]),
    };
    let begin = into.len();
    put_host(host, into);
    if into.len() > begin + 1 && into.ends_with(b".") {
        into.pop();
    }
    let zeros = port.iter().take_while(|digit| **digit == b'0').count();
    let port = if zeros == port.len() { &port[zeros.saturating_sub(1)..] } else { &port[zeros..] };
    let default = if scheme == b"https" { &b"443"[..] } else { b"80" };
    if !port.is_empty() && port != default {
        into.push(b':');
        into.extend_from_slice(port);
    }
}

/// Appends a host in lower case, with escapes of unreserved characters decoded, and an IPv6 address in one form.
fn put_host(host: &[u8], into: &mut Vec<u8>) {
    let literal = host.strip_prefix(b"[").and_then(|rest| std::str::from_utf8(rest.strip_suffix(b"]")?).ok());
    if let Some(Ok(address)) = literal.map(str::parse::<std::net::Ipv6Addr>) {
        return into.extend_from_slice(format!("[{address}]").as_bytes());
    }
    let mut rest = host;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.filter(|digits| *first == b'%' && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte)) {
            Some(byte) => {
                into.push(byte.to_ascii_lowercase());
                rest = &after[2..];
            }
            None => {
                into.push(first.to_ascii_lowercase());
                rest = after;
            }
        }
    }
}

fn put_query(search: &[u8], query: &Query, sorts: bool, into: &mut Vec<u8>) {
    if *query == Query::Whole && !sorts {
        into.push(b'?');
        into.extend_from_slice(search);
        return;
    }
    let counts = |parameter: &&[u8]| {
        let name = name_of(parameter);
        let is_named = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, name));
        let is_alike = |patterns: &[String]| patterns.iter().any(|pattern| matches_alike(pattern, name));
        match query {
            Query::Whole => true,
            // Some origins also split parameters at `;`, so that an ignored parameter could hide one that counts.
            Query::Without(patterns) => parameter.contains(&b';') || !is_named(patterns),
            Query::Only(patterns) => is_ambiguous(parameter) || is_alike(patterns),
        }
    };
    let parameters = search.split(|byte| *byte == b'&').filter(counts);
    let mut separator = b'?';
    let put = |parameter: &[u8]| {
        into.push(separator);
        into.extend_from_slice(parameter);
        separator = b'&';
    };
    if !sorts || search.split(|byte| *byte == b'&').any(is_ambiguous) || has_alike_names(search) {
        return parameters.for_each(put);
    }
    let mut parameters: Vec<&[u8]> = parameters.collect();
    // Sorted by name only, because the order of values of one name may be significant.
    parameters.sort_by_key(|parameter| name_of(parameter));
    parameters.into_iter().for_each(put);
}

fn name_of(parameter: &[u8]) -> &[u8] {
    parameter.split(|byte| *byte == b'=').next().unwrap_or_default()
}

/// Returns whether origins may read a parameter under another name than the written one: decoded, as a list, or split
/// at a `;`. A client that could hide such a parameter from the key could give its response to other clients.
fn is_ambiguous(parameter: &[u8]) -> bool {
    parameter.contains(&b';') || name_of(parameter).iter().any(|byte| b"%+[".contains(byte))
}

/// Returns the form in which origins compare names at most: ASP.NET ignores case, and PHP writes `_` for `.` and others.
fn loose(name: &[u8]) -> Vec<u8> {
    name.iter().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'_' }).collect()
}

/// Whether a query has several names that an origin may read as one, so that their order counts.
fn has_alike_names(search: &[u8]) -> bool {
    let mut names: Vec<_> = search.split(|byte| *byte == b'&').map(name_of).map(|name| (loose(name), name)).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1)
}

/// Whether a pattern matches a name as it is, or as an origin may read it.
fn matches_alike(pattern: &str, name: &[u8]) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => loose(name).starts_with(&loose(beginning.as_bytes())),
        None => loose(name) == loose(pattern.as_bytes()),
    }
}

fn matches(pattern: &str, name: &[u8]) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning.as_bytes()),
        None => name == pattern.as_bytes(),
    }
}

/// Returns a path without its dot segments (RFC 3986 §5.2.4).
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
    fn no_parameter_hides_behind_another_that_does_not_count() {
        let without = Query::Without(vec!["utm_*".into()]);
        assert_eq!(query("utm_a=1;id=2&utm_b;id=3&utm_c=4", &without, false), "?utm_a=1;id=2&utm_b;id=3");
        let only = Query::Only(vec!["id".into()]);
        for hidden in ["%69d=2", "a=1;id=2", "id[]=2", "+id=2"] {
            assert_eq!(query(hidden, &only, false), format!("?{hidden}"));
        }
        assert_ne!(query("id=1&%69d=2", &Query::Whole, true), query("%69d=2&id=1", &Query::Whole, true));
        let only = Query::Only(vec!["user_id".into(), "f_*".into()]);
        for hidden in ["user.id=5", "USER_ID=5", "User-Id=5", "F.x=1"] {
            assert_eq!(query(hidden, &only, false), format!("?{hidden}"));
        }
        assert_eq!(query("userid=5&user_id2=1", &only, false), "");
        assert_ne!(query("a_b=1&a.b=2", &Query::Whole, true), query("a.b=2&a_b=1", &Query::Whole, true));
    }

    #[test]
    fn forwarded_counts_but_for_whom_it_comes_from() {
        let counts = |field: &str| String::from_utf8(of_the_request(field.as_bytes())).unwrap();
        assert_eq!(counts("for=192.0.2.1;Host=a;proto=https, By=b, FOR=\"[::1]\""), "Host=a;proto=https");
        assert_eq!(counts("for=192.0.2.1, for=192.0.2.2"), "");
        assert_eq!(counts("for=\"a;host=b\""), "host=b\"", "what may be read as a host counts");
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
        assert_eq!(form("http", "[0:0::1]:0080"), "http://[::1]");
        assert_eq!(form("http", "Ex%61mple%2eorg.:08080"), "http://example.org:8080");
        assert_eq!(form("http", "example.org.:"), "http://example.org");
        assert_eq!(form("http", "example.org:000"), "http://example.org:0");
        assert_eq!(form("http", ""), "http://");
    }

    #[test]
    fn dots_are_gone() {
        let path = |path: &str| String::from_utf8(without_dots(path.as_bytes())).unwrap();
        assert_eq!([path("/a/../b"), path("/a/./b/"), path("/../a/.."), path("/a/b/..")], ["/b", "/a/b/", "/", "/a/"]);
    }
}
