//! Names that a request may repeat: query parameters and cookies.

use std::borrow::Cow;

use http::header::{self, HeaderMap};
use percent_encoding::percent_decode;

/// Returns the values of the query parameters of a name, still percent-encoded. A parameter without a `=` has an empty
/// value. Names are compared as forms decode them, because an origin takes `%69d` for `id`.
pub fn query_parameters<'q, 'n>(query: &'q str, name: &'n str) -> impl Iterator<Item = &'q [u8]> + use<'q, 'n> {
    let pairs = query.as_bytes().split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    pairs.filter_map(move |pair| value_of_parameter(pair, name))
}

/// Returns the value of a query parameter if it has this name.
pub fn value_of_parameter<'q>(pair: &'q [u8], name: &str) -> Option<&'q [u8]> {
    let (written, value) = match memchr::memchr(b'=', pair) {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &pair[pair.len()..]),
    };
    is_name(written, name.as_bytes()).then_some(value)
}

/// Returns the values of the cookies of a name (RFC 6265 §5.4), of all lines.
pub fn cookies<'f, 'n>(fields: &'f HeaderMap, name: &'n str) -> impl Iterator<Item = &'f [u8]> + use<'f, 'n> {
    let lines = fields.get_all(header::COOKIE).into_iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    pairs.filter_map(move |pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// Returns the values of the cookies that an origin may take for those of a name: also with a space before the `=`, and
/// behind a comma (RFC 2965 §3.3.4).
pub fn alike_cookies<'f, 'n>(fields: &'f HeaderMap, name: &'n str) -> impl Iterator<Item = &'f [u8]> + use<'f, 'n> {
    let lines = fields.get_all(header::COOKIE).into_iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| b";,".contains(byte)));
    pairs.filter_map(move |pair| {
        let equals = memchr::memchr(b'=', pair)?;
        (pair[..equals].trim_ascii() == name.as_bytes()).then(|| pair[equals + 1..].trim_ascii())
    })
}

/// Whether the name of a query parameter, as the query has it, is this name.
pub fn is_name(written: &[u8], name: &[u8]) -> bool {
    *decoded(written) == *name
}

/// Returns the name of a query parameter as forms decode it.
pub fn decoded(written: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'+', written).is_none() {
        return written.into();
    }
    let spaced: Vec<u8> = written.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect::<Vec<u8>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters<'q>(query: &'q str, name: &str) -> Vec<&'q str> {
        query_parameters(query, name).map(|value| std::str::from_utf8(value).unwrap()).collect()
    }

    #[test]
    fn query_parameters_are_found_by_their_decoded_names() {
        let query = "id=1&%69d=2&ids=3&id&i%64=%34&xid=5&&=6&ID=7&id=8=9";
        assert_eq!(parameters(query, "id"), ["1", "2", "", "%34", "8=9"]);
        assert_eq!(parameters("a+b=1&a%20b=2&a%2Bb=3&a%2bb=4&a b=5", "a b"), ["1", "2", "5"]);
        assert_eq!(parameters("a+b=1&a%2Bb=3&a%2bb=4", "a+b"), ["3", "4"]);
        assert_eq!(parameters("%=1&%6=2&%zz=3", "%"), ["1"]);
        assert_eq!(parameters("%=1&%6=2&%zz=3", "%zz"), ["3"]);
        assert!(parameters("", "id").is_empty() && parameters("a=id", "id").is_empty());
    }

    #[test]
    fn cookies_of_a_name_are_found_in_all_lines() {
        let mut fields = HeaderMap::new();
        fields.append(header::COOKIE, "a=1; ab=2;a=3 ; b=a=4; a".parse().unwrap());
        fields.append(header::COOKIE, " a=\"5\"; A=6".parse().unwrap());
        assert_eq!(cookies(&fields, "a").collect::<Vec<_>>(), [&b"1"[..], b"3", b"\"5\""]);
        assert_eq!(cookies(&fields, "c").count(), 0);
    }

    #[test]
    fn cookies_are_found_as_origins_may_read_them() {
        let mut fields = HeaderMap::new();
        fields.append(header::COOKIE, "a=1; a =2, a=3;b=a; ab=4".parse().unwrap());
        fields.append(header::COOKIE, "x=1,a\t= 5 ".parse().unwrap());
        assert_eq!(alike_cookies(&fields, "a").collect::<Vec<_>>(), [&b"1"[..], b"2", b"3", b"5"]);
        assert_eq!(alike_cookies(&fields, "c").count(), 0);
    }
}
