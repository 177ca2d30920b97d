//! Field names that an origin may confuse with another. CGI, WSGI and FastCGI pass a field to an application as `HTTP_`
//! and its name in capitals, with `_` for `-` (RFC 3875 §4.1.18). Some servers write `_` for every byte that is no
//! letter or digit: `X_User` and `X.User` become `HTTP_X_USER` like `X-User`. `Proxy` becomes `HTTP_PROXY`, which
//! libraries use as the proxy of their own requests (CVE-2016-5385, "httpoxy").

use http::header::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// Whether a name in lower case has only letters, digits and `-`, so that no origin confuses it with another.
pub fn is_plain(name: &str) -> bool {
    // All bytes are tested, whatever is found: no name needs a branch of its own.
    name.bytes().fold(true, |plain, byte| plain & PLAIN[usize::from(byte)])
}

/// The bytes that every origin keeps unchanged.
const PLAIN: [bool; 256] = {
    let (mut plain, mut byte) = ([false; 256], 0_u8);
    while byte < 0x80 {
        plain[byte as usize] = byte.is_ascii_alphanumeric() || byte == b'-';
        byte += 1;
    }
    plain
};

/// Whether an origin may confuse the field of a name in lower case with another field, or with more than a field.
pub fn is_ambiguous(name: &str) -> bool {
    !is_plain(name) || name == "proxy"
}

/// Whether an origin may treat two names in lower case as equal.
pub fn are_alike(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().map(normal_byte).eq(other.bytes().map(normal_byte))
}

/// The normal form of a name: names with the same one are alike.
pub type NormalName = SmallVec<[u8; 32]>;

/// Returns the normal form of a name in lower case.
pub fn normal(name: &str) -> NormalName {
    name.bytes().map(normal_byte).collect()
}

fn normal_byte(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

/// Returns the names in a message that are aliases of a name, without the name.
pub fn aliases(fields: &HeaderMap, of: &HeaderName) -> SmallVec<[HeaderName; 2]> {
    fields.keys().filter(|name| *name != of && are_alike(name.as_str(), of.as_str())).cloned().collect()
}

/// Removes the aliases of a field, but not the field.
pub fn remove_aliases(fields: &mut HeaderMap, of: &HeaderName) {
    aliases(fields, of).iter().for_each(|alias| drop(fields.remove(alias)));
}

/// Writes the lines of a field's aliases behind a line break, each with its name. Origins may read these values as the
/// field's; no value of the field itself has this form. Returns `false` if there are none.
pub fn put_aliases(fields: &HeaderMap, of: &HeaderName, into: &mut Vec<u8>) -> bool {
    let aliases = aliases(fields, of);
    let lines = aliases.iter().flat_map(|alias| fields.get_all(alias).iter().map(move |line| (alias, line)));
    for (alias, line) in lines {
        let line: &HeaderValue = line;
        into.extend_from_slice(b"\n");
        into.extend_from_slice(alias.as_str().as_bytes());
        into.push(b'=');
        into.extend_from_slice(line.as_bytes());
    }
    !aliases.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_alike_for_an_origin() {
        for (one, other) in [("x-user", "x_user"), ("x-user", "x.user"), ("x_user", "x.user"), ("a-b-c", "a_b-c")] {
            assert!(are_alike(one, other) && are_alike(other, one), "{one} {other}");
        }
        for (one, other) in [("x-user", "xuser"), ("x-user", "x-users"), ("x-user", "x-usex"), ("x-user", "x--user")] {
            assert!(!are_alike(one, other), "{one} {other}");
        }
        assert!(is_ambiguous("x_user") && is_ambiguous("x.user") && is_ambiguous("proxy") && is_ambiguous("a~"));
        assert!(!is_ambiguous("x-user") && !is_ambiguous("proxy-authorization") && !is_ambiguous("x-2"));
    }

    #[test]
    fn aliases_are_removed_and_written_without_the_field() {
        let mut fields = HeaderMap::new();
        for (name, value) in [("x-user", "0"), ("x_user", "1"), ("x.user", "2"), ("x_user", "3"), ("x-users", "4")] {
            fields.append(name, HeaderValue::from_static(value));
        }
        let name = HeaderName::from_static("x-user");
        let mut written = Vec::new();
        assert!(put_aliases(&fields, &name, &mut written));
        assert_eq!(written, b"\nx_user=1\nx_user=3\nx.user=2");
        remove_aliases(&mut fields, &name);
        assert_eq!(fields.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-user", "x-users"]);
        assert!(!put_aliases(&fields, &name, &mut written));
    }
}
